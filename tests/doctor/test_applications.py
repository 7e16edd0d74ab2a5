"""What is asked of an application, and what is made of odd answers. The application is a table of paths."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from tlsproxy.doctor import backends, prefixes, schemes, streams
from tlsproxy.doctor.asking import Address
from tlsproxy.doctor.facts import Facts
from tlsproxy.doctor.findings import Finding, Report
from tlsproxy.doctor.subject import Asked, Subject
from tlsproxy.settings import Route, Settings

HOST = "a.test"
Examine = Callable[[Subject, Facts], Awaitable[Report]]


def described(paths: Any, **more: Any) -> bytes:
    body = json.dumps({"openapi": "3.1.0", "paths": paths, **more}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def redirect(location: str) -> bytes:
    return f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def examined(
    examine: Examine, answers: Mapping[str, bytes], path: str = "/", *, strips: bool = False, **asked: str
) -> tuple[Finding, list[str]]:
    """Return what is found at an application that answers these paths, and which paths it was asked for."""
    heard: list[str] = []
    serving: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append(head.split()[1].decode())
        writer.write(answers.get(heard[-1], NOT_FOUND))
        with contextlib.suppress(OSError):
            await reader.read()
            writer.close()
            await writer.wait_closed()

    async def run(socket: str) -> Report:
        async with await asyncio.start_unix_server(serve, socket):
            url = f"unix:{socket}"
            route = Route.model_validate({"path": path, "strip_prefix": strips, "backends": [url]})
            facts = Facts()
            try:
                return await examine(Subject(Address(url), HOST, route, Settings(), Asked(**asked)), facts)
            finally:
                await facts.close()
                await asyncio.gather(*filter(None, serving))

    with tempfile.TemporaryDirectory() as folder:
        (finding,) = asyncio.run(run(f"{folder}/app.sock")).findings
    return finding, heard


# --- paths as people write them


@pytest.mark.parametrize(
    ("path", "target"), [("/größe", "/gr%C3%B6%C3%9Fe"), ("/a b", "/a%20b"), ("/half \ud800", "/half%20%ED%A0%80")]
)
def test_a_described_path_is_asked_for_percent_encoded(path: str, target: str) -> None:
    answers = {"/openapi.json": described({path: {}}), f"{target}/": redirect(f"http://{HOST}{target}")}
    finding, heard = examined(schemes.examine, answers)
    assert finding.state == "bad"
    assert heard[-1] == f"{target}/"
    assert finding.details[-1] == f"GET {target}/ → 307 http://{HOST}{target}"


def test_named_paths_are_asked_for_percent_encoded() -> None:
    finding, heard = examined(schemes.examine, {"/a%20b/": redirect(f"https://{HOST}/a%20b")}, probe="/a b/")
    assert (finding.state, heard[-1]) == ("ok", "/a%20b/")
    finding, heard = examined(streams.examine, {}, stream="/ä")
    assert (finding.text, heard) == ("/ä answers 404", ["/%C3%A4"])
    finding, heard = examined(backends.examine_websocket, {}, websocket="/ä b")
    assert heard[-1] == "/%C3%A4%20b"


@pytest.mark.parametrize("examine", [schemes.examine, prefixes.examine])
@pytest.mark.parametrize("paths", [None, [], "x"])
def test_a_description_without_paths_is_one(examine: Examine, paths: Any) -> None:
    finding, _ = examined(examine, {"/openapi.json": described(paths)}, "/api")
    assert finding.state in ("unknown", "bad")


@pytest.mark.parametrize("examine", [schemes.examine, prefixes.examine])
def test_a_location_that_is_no_url_tells_nothing(examine: Examine) -> None:
    finding, _ = examined(examine, {"/docs/": redirect("http://[::1/docs")}, "/api", strips=True)
    assert finding.state == "unknown"


# --- endpoints that nobody named


def test_an_endpoint_at_the_path_of_a_route_is_not_run() -> None:
    answers = {"/openapi.json": described({"/reports": {}}), "/reports": EMPTY}
    finding, heard = examined(prefixes.examine, answers, "/reports")
    assert finding.state == "ok"
    assert "/reports" not in heard


@pytest.mark.parametrize("path", ["/api", "/{name}", "/{rest}/x"])
def test_an_endpoint_on_the_way_to_the_path_of_a_route_is_not_run(path: str) -> None:
    answers = {"/openapi.json": described({path: {}})}
    finding, heard = examined(prefixes.examine, answers, "/api/x")
    assert finding.state == "unknown"
    assert not {"/api", "/api/x"} & set(heard)


def test_a_root_path_that_fits_needs_no_more_questions() -> None:
    answers = {"/openapi.json": described({}, servers=[{"url": "/api"}])}
    finding, heard = examined(prefixes.examine, answers, "/api")
    assert finding.fix.startswith("strip_prefix = true")
    assert "/api" not in heard


@pytest.mark.parametrize(("folder", "state"), [("/api", "unknown"), ("/api/v1", "unknown"), ("/other", "bad")])
def test_what_is_mounted_on_the_way_is_looked_for(folder: str, state: str) -> None:
    answers = {"/openapi.json": described({"/items": {}}), folder: redirect(f"http://{HOST}{folder}/")}
    finding, _ = examined(prefixes.examine, answers, "/api/v1")
    assert finding.state == state
