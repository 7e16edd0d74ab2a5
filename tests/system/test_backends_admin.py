"""Deploys and other work of operators, with a real proxy, real applications and clients that never stop asking."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from websockets.sync.client import connect

from tests.system.commands import admin, admin_json, following, tlsproxy
from tests.system.conftest import StartProxy
from tests.system.regulars import multiplexing, pressing, returning
from tests.system.releases import Release, asked, released
from tests.system.running import PATIENCE, ROOT, Proxy, running_proxy, until, write_pair
from tlsproxy.runtime.planfile import decode
from tlsproxy.store.directory import open_lock

pytestmark = pytest.mark.system

DEPLOYS = int(os.environ.get("DEPLOYS", "3"))
HEALTH = 'health = { path = "/healthz", interval = "500ms" }'


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[list[Release]]:
    with released(tmp_path, "blue", "green") as running:
        yield running


@pytest.fixture
def pair(tmp_path: Path, authority: trustme.CA) -> str:
    return write_pair(tmp_path, authority, "localhost", "127.0.0.1")


def site(pair: str, *backends: Release, more: str = HEALTH) -> str:
    urls = ", ".join(f'"{each.url}"' for each in backends)
    return f"""
        [tls]
        default_host = "localhost"
        [[sites]]
        hosts = ["localhost", "127.0.0.1"]
        certificate = {pair}
        backends = [{urls}]
        {more}
    """


def swap(proxy: Proxy, *to: Release, **options: str) -> None:
    admin(proxy, "backends", "swap", "--site", "localhost", *arguments(*to, **options))


def arguments(*to: Release, **options: str) -> list[str]:
    return [each for url in to for each in ("--to", url.url)] + [
        each for name, value in options.items() for each in (f"--{name}", value)
    ]


def backend(proxy: Proxy, release: Release) -> dict[str, Any]:
    rows: list[dict[str, Any]] = admin_json(proxy, "backends", "list")
    return next(row for row in rows if row["url"] == release.url)


def wait_for_change(path: Path) -> None:
    def content() -> bytes:
        return path.read_bytes() if path.exists() else b""

    before = content()
    until(lambda: content() != before, f"{path} is written")


def state_file(proxy: Proxy) -> Path:
    return proxy.folder / "store" / "plan" / "backends.json"


# --- deploys ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
def test_deploys_lose_nothing(start_proxy: StartProxy, pair: str, tmp_path: Path) -> None:
    """Start the new release, swap, stop the old one: counted by the clients, not one request is lost."""
    with released(tmp_path, "release-0") as running, contextlib.ExitStack() as clients:
        proxy = start_proxy(site(pair, running[0]), workers=2, drain="9.5s")
        kept = clients.enter_context(pressing(proxy, "-c8"))
        new = clients.enter_context(pressing(proxy, "-c2", "-H", "Connection: close"))
        busy = clients.enter_context(returning(proxy))
        streams = clients.enter_context(multiplexing(proxy))
        for number in range(1, DEPLOYS + 1):
            running.append(Release(tmp_path, f"release-{number}"))
            swap(proxy, running[-1])
            running.pop(0).stop()
            assert asked(proxy, 4) == {f"release-{number}"}
        clients.close()
    print(kept, new, busy, streams, sep="\n")
    assert (kept.bad, new.bad) == ("", "")
    assert min(kept.good, new.good, busy.good, streams.good) > DEPLOYS


def test_the_old_release_ends_what_it_has_begun(start_proxy: StartProxy, pair: str, releases: list[Release]) -> None:
    """The command returns when the old one may be stopped, and not before."""
    blue, green = releases
    proxy = start_proxy(site(pair, blue))
    with proxy.client() as slow, contextlib.ExitStack() as stack:
        answer: list[str] = []
        stack.enter_context(_in_thread(lambda: answer.append(slow.get("/held").text)))
        until(lambda: backend(proxy, blue)["active"] == 1, "the request is at the old release")
        with following(proxy, "backends", "swap", "--site", "localhost", *arguments(green)) as lines:
            until(lambda: next(lines).startswith("drain"), "the switch is done")
            assert asked(proxy) == {"green"}
            assert answer == []
            httpx.get(f"{blue.url}/go", timeout=PATIENCE, trust_env=False)
            assert list(lines) == [f"localhost /: {green.url}"]
        stack.close()
        assert answer == ["blue"]
    assert [row["url"] for row in admin_json(proxy, "backends", "list")] == [green.url]


def test_a_websocket_stays_with_the_old_release_and_is_said(
    start_proxy: StartProxy, pair: str, releases: list[Release], app: str
) -> None:
    _, green = releases
    proxy = start_proxy(site(pair, green, more="").replace(green.url, app))
    url = f"ws://localhost:{proxy.port}/ws/echo"
    with connect(url, sock=proxy.open(), proxy=None, open_timeout=PATIENCE) as socket:
        socket.recv(PATIENCE)
        command = ("backends", "swap", "--site", "localhost", *arguments(green, drain="500ms"))
        assert "requests still under way at the old backends: 1. They go on." in admin(proxy, *command).err
        assert asked(proxy) == {"green"}
        socket.send("still there")
        assert socket.recv(PATIENCE) == "still there"
        rows = {row["url"]: (row["state"], row["active"]) for row in admin_json(proxy, "backends", "list")}
        assert rows[app] == ("draining", 1)
    until(lambda: len(admin_json(proxy, "backends", "list")) == 1, "the old one is forgotten")


def test_a_release_that_never_becomes_well_changes_nothing(
    start_proxy: StartProxy, pair: str, releases: list[Release], tmp_path: Path
) -> None:
    blue, green = releases
    green.sick.touch()
    gone = Release(tmp_path, "gone")
    gone.stop()
    proxy = start_proxy(site(pair, blue))
    with returning(proxy):
        command = ("backends", "swap", "--site", "localhost", *arguments(green, gone, timeout="2s"))
        said = tlsproxy(proxy.folder, "admin", *command)
        assert said.code == 1
        assert f"{green.url}: GET /healthz was answered with 503 Service Unavailable" in said.err
        assert f"{gone.url}: cannot connect (Connection refused)" in said.err
        assert "Nothing was changed" in said.err
        assert asked(proxy, 4) == {"blue"}
    assert not state_file(proxy).exists()
    assert admin_json(proxy, "sites", "list")[0]["routes"][0]["swapped"] is False


def test_a_release_that_becomes_well_is_waited_for(start_proxy: StartProxy, pair: str, releases: list[Release]) -> None:
    """And a worker that dies meanwhile, or afterwards, changes nothing: its successor has the plan."""
    blue, green = releases
    green.sick.touch()
    proxy = start_proxy(site(pair, blue), workers=2)
    with following(proxy, "backends", "swap", "--site", "localhost", *arguments(green)) as lines:
        until(lambda: next(lines).startswith("wait"), "it has been asked")
        victim, survivor = proxy.workers()
        os.kill(victim, signal.SIGKILL)
        proxy.wait_for("worker.replaced")
        green.sick.unlink()
        assert list(lines)[-1] == f"localhost /: {green.url}"
    os.kill(survivor, signal.SIGKILL)
    until(lambda: proxy.count("worker.replaced") == 2, "both workers are new")
    for worker in proxy.workers():
        with proxy.alone(worker), contextlib.closing(proxy.connection()) as client:
            client.request("GET", "/hello")
            assert client.getresponse().getheader("X-Release") == "green"


def test_of_two_operators_at_once_one_is_told_of_the_other(
    start_proxy: StartProxy, pair: str, releases: list[Release]
) -> None:
    blue, green = releases
    green.sick.touch()
    proxy = start_proxy(site(pair, blue))
    command = ("backends", "swap", "--site", "localhost")
    with following(proxy, *command, *arguments(green)) as first:
        until(lambda: next(first).startswith("wait"), "the first is under way")
        said = tlsproxy(proxy.folder, "admin", *command, *arguments(blue))
        assert (said.code, f"another swap of localhost / is under way, to {green.url}" in said.err) == (1, True)
        with following(proxy, *command, *arguments(green)) as second:
            until(lambda: next(second).startswith("wait"), "who asks for the same follows it")
            green.sick.unlink()
            assert list(first)[-1] == list(second)[-1] == f"localhost /: {green.url}"


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_what_was_said_survives_kill_9_a_restart_and_a_reload(
    start_proxy: StartProxy, pair: str, releases: list[Release], tmp_path: Path
) -> None:
    blue, green = releases
    releases.append(Release(tmp_path, "red"))
    sites = site(pair, blue)
    proxy = start_proxy(sites)
    swap(proxy, green, releases[2])
    admin(proxy, "backends", "drain", green.url)
    os.kill(proxy.pid, signal.SIGKILL)
    proxy.wait()
    proxy = start_proxy(sites)
    assert asked(proxy, 6) == {"red"}
    assert backend(proxy, green)["state"] == "draining"
    admin(proxy, "reload")
    assert asked(proxy, 6) == {"red"}
    admin(proxy, "backends", "resume", green.url)
    until(lambda: asked(proxy, 6) == {"red", "green"}, "both are asked")
    config = proxy.folder / "tlsproxy.toml"
    config.write_text(config.read_text().replace(blue.url, releases[2].url))
    admin(proxy, "reload")
    assert proxy.wait_for("backends.state_dropped")["entry"].startswith("swap of localhost /: the configuration")
    assert asked(proxy, 6) == {"red"}
    assert json.loads(state_file(proxy).read_text())["swapped"] == {}


def test_a_swap_that_is_kept_nowhere_ends_after_an_upgrade_as_before_it(
    tmp_path: Path, trust: ssl.SSLContext, pair: str, releases: list[Release]
) -> None:
    blue, green = releases
    releases.append(Release(tmp_path, "red"))
    nowhere = ("env", "TLSPROXY_STORE__URL=memory:", "TLSPROXY_SERVER__DRAIN_STREAMS=1s")
    with running_proxy(tmp_path, trust, site(pair, blue), before=nowhere) as proxy:
        swap(proxy, green)
        assert "is the proxy now" in admin(proxy, "upgrade").out
        assert asked(proxy) == {"green"}
        admin(proxy, "reload")
        assert asked(proxy) == {"green"}
        config = proxy.folder / "tlsproxy.toml"
        config.write_text(config.read_text().replace(blue.url, releases[2].url))
        admin(proxy, "reload")
        assert asked(proxy) == {"red"}
        assert proxy.count("backends.state_dropped") == 1


_WRITER = """
import sys
import threading
from tlsproxy.runtime.messages import BackendPlan
from tlsproxy.runtime.planfile import PlanFile
file = PlanFile(sys.argv[1])
print("ready", flush=True)
for number in range(1_000_000):
    file.save(BackendPlan(drained=tuple(f"http://10.0.0.1:{port}" for port in range(1, number % 50 + 2))))
"""


def test_whoever_is_killed_while_writing_leaves_a_state_that_can_be_read(
    start_proxy: StartProxy, pair: str, releases: list[Release]
) -> None:
    proxy = start_proxy(site(pair, *releases))
    for _ in range(3):
        command = [sys.executable, "-c", _WRITER, f"file://{proxy.folder}/store"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            wait_for_change(state_file(proxy))
            writer.kill()
        assert decode(state_file(proxy).read_bytes()).drained
    # Whoever writes next clears away what the dead have left.
    admin(proxy, "backends", "drain", releases[0].url)
    assert decode(state_file(proxy).read_bytes()).drained == (releases[0].url,)
    assert list((proxy.folder / "store" / "new").iterdir()) == []


# --- draining and pausing ---------------------------------------------------------------------------------------------


def test_a_drained_backend_gets_no_new_request(start_proxy: StartProxy, pair: str, releases: list[Release]) -> None:
    blue, green = releases
    proxy = start_proxy(site(pair, blue, green), workers=2)
    with returning(proxy), multiplexing(proxy):
        until(lambda: asked(proxy, 6) == {"blue", "green"}, "both are asked")
        admin(proxy, "backends", "drain", blue.url)
        until(lambda: backend(proxy, blue)["active"] == 0, "nothing is under way there")
        before = backend(proxy, blue)["requests"]
        assert asked(proxy, 10) == {"green"}
        assert backend(proxy, blue)["requests"] == before
        releases.remove(blue)
        blue.stop()
        assert asked(proxy, 2) == {"green"}
    assert "no other backend" in admin(proxy, "backends", "drain", green.url).err
    with proxy.client() as client:
        answer = client.get("/hello")
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)


def test_a_drain_does_not_wait_for_the_store(start_proxy: StartProxy, pair: str, releases: list[Release]) -> None:
    """Another process writes there, and does not come to an end: who stops a backend next must not lose requests."""
    blue, green = releases
    proxy = start_proxy(site(pair, blue, green), workers=2)
    lock = open_lock(proxy.folder / "store")
    try:
        assert "would not survive a restart of the proxy yet" in admin(proxy, "backends", "drain", blue.url).err
        assert asked(proxy, 6) == {"green"}
        assert not state_file(proxy).exists()
    finally:
        os.close(lock)
    until(state_file(proxy).exists, "it is kept")
    assert decode(state_file(proxy).read_bytes()).drained == (blue.url,)


def test_what_is_wrong_is_said(start_proxy: StartProxy, pair: str, releases: list[Release]) -> None:
    blue, green = releases
    proxy = start_proxy(site(pair, blue))
    for command, code, words in (
        (("backends", "drain", green.url), 1, f"no route has this backend. There is {blue.url}"),
        (("backends", "drain", "https://a.test"), 2, "backends are spoken to in plain HTTP"),
        (("sites", "pause", "other.test"), 1, "no site has this host. There is localhost"),
        (("sites", "pause", "localhost", "--for", "tomorrow"), 2, "is not a duration"),
        (("backends", "swap", "--site", "localhost", "--path", "/x", "--to", green.url), 1, "no route /x. There is /"),
    ):
        said = tlsproxy(proxy.folder, "admin", *command)
        assert (said.code, words in said.err) == (code, True), said
    assert tlsproxy(proxy.folder, "admin", "backends", "swap", "--site", "localhost").code == 2


@contextlib.contextmanager
def _in_thread(work: Any) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)
