"""Health checks with real servers: who does not answer well gets no requests, and who does gets them again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.system.conftest import StartProxy
from tests.system.regulars import returning
from tests.system.releases import COMMANDS, Release, asked, released
from tests.system.running import until, write_pair
from tests.system.test_backends_admin import backend, site
from tlsproxy.proxy.dialing import Place
from tlsproxy.proxy.inquiry import Question, ask

pytestmark = pytest.mark.system


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[list[Release]]:
    with released(tmp_path, "blue", "green") as running:
        yield running


def test_who_is_not_well_gets_no_requests_until_it_is(
    start_proxy: StartProxy, tmp_path: Path, authority: trustme.CA, releases: list[Release]
) -> None:
    blue, green = releases
    proxy = start_proxy(site(write_pair(tmp_path, authority, "localhost", "127.0.0.1"), blue, green), workers=2)
    with returning(proxy):
        until(lambda: asked(proxy, 6) == {"blue", "green"}, "both are asked")
        blue.sick.touch()
        until(lambda: backend(proxy, blue)["workers"] == {"down": 2}, "both workers see it down")
        row = backend(proxy, blue)
        assert (row["state"], row["why"]) == ("down", "GET /healthz was answered with 503 Service Unavailable")
        assert asked(proxy, 10) == {"green"}
        blue.sick.unlink()
        until(lambda: "down" not in backend(proxy, blue)["workers"], "both workers see it up")
        until(lambda: asked(proxy, 10) == {"blue", "green"}, "it is asked again")
    assert proxy.count("backend.down", backend=blue.url) == proxy.count("backend.up", backend=blue.url) == 2


def test_the_only_one_gets_none_either(
    start_proxy: StartProxy, tmp_path: Path, authority: trustme.CA, releases: list[Release]
) -> None:
    blue, _ = releases
    proxy = start_proxy(site(write_pair(tmp_path, authority, "localhost", "127.0.0.1"), blue))
    assert asked(proxy) == {"blue"}
    blue.sick.touch()
    proxy.wait_for("backend.down", backend=blue.url)
    with proxy.client() as client:
        answer = client.get("/hello")
    assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
    blue.sick.unlink()
    proxy.wait_for("backend.up", backend=blue.url)
    assert asked(proxy) == {"blue"}


@pytest.mark.parametrize("server", sorted(COMMANDS))
def test_servers_are_understood_and_complain_of_nothing(server: str, tmp_path: Path) -> None:
    question = Question("/healthz", [(b"Host", b"a.test")], timeout=5.0)
    well = Release(tmp_path, server, server=server)
    try:

        async def examine() -> list[str]:
            place = Place(well.url)
            found = [await ask(well.url, place, question)]
            await asyncio.to_thread(well.sick.touch)
            found.append(await ask(well.url, place, question))
            if server == "hypercorn":  # speaks HTTP/2 on the same port
                h2c = well.url.replace("http:", "h2c:")
                found.append(await ask(h2c, Place(h2c), question))
            return found

        first, *others = asyncio.run(examine())
    finally:
        well.stop()
    assert first == ""
    assert set(others) == {"GET /healthz was answered with 503 Service Unavailable"}
    said = (tmp_path / f"{server}.log").read_text().lower()
    assert "error" not in said
    assert "traceback" not in said
