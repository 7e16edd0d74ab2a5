"""What a client of the admin API can send, and what it gets: bytes in, bytes out, over a socketpair."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.runtime import adminhttp
from tlsproxy.runtime.adminhttp import (
    MAX_BODY,
    MAX_HEAD,
    READ_TIME,
    Answer,
    LastCall,
    Lines,
    Refusal,
    Request,
    serve,
    turn_away,
)

GET = b"GET /certs HTTP/1.1\r\nHost: localhost\r\n\r\n"
Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


async def mirror(request: Request) -> Answer:
    return Answer(200, {"method": request.method, "path": request.path, "options": dict(request.options)})


async def play_with(handle: adminhttp.Handler, play: Play, last_call: LastCall | None = None) -> bytes:
    """Return what `play` returns; by then the server has closed its end."""
    ours, theirs = socket.socketpair()
    served = asyncio.create_task(serve(*await asyncio.open_unix_connection(sock=theirs), handle, last_call=last_call))
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        async with asyncio.timeout(20):
            seen = await play(reader, writer)
            await served
            return seen
    finally:
        writer.close()


def talk(sent: bytes, handle: adminhttp.Handler = mirror) -> bytes:
    """Return everything that comes back for `sent`, after which the client says no more."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(sent)
        writer.write_eof()
        return await reader.read()

    return asyncio.run(play_with(handle, play))


def answer_to(sent: bytes, handle: adminhttp.Handler = mirror) -> tuple[int, Any]:
    head, _, body = talk(sent, handle).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"
    return int(head.split()[1]), json.loads(body)


def request(target: str, *headers: str, method: str = "GET", body: bytes = b"", host: str = "localhost") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def test_a_request_is_understood() -> None:
    sent = request(
        "/certs/%2A.example.com/renew?reason=superseded&force=false", method="POST", body=b'{"force":true,"n":3}'
    )
    assert answer_to(sent) == (
        200,
        {
            "method": "POST",
            "path": ["certs", "*.example.com", "renew"],
            "options": {"reason": "superseded", "force": "true", "n": "3"},
        },
    )


def test_a_slash_within_a_name_is_no_border() -> None:
    assert answer_to(request("/certs/acme%2Fa.test"))[1]["path"] == ["certs", "acme/a.test"]


def test_an_answer_is_one_line_and_not_to_be_kept() -> None:
    head, _, body = talk(GET).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nServer: tlsproxy/")
    assert b"\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n" in head
    assert body.count(b"\n") == 1


def test_several_requests_on_one_connection() -> None:
    assert talk(GET + GET).count(b"HTTP/1.1 200") == 2


def test_an_older_client_is_served() -> None:
    assert talk(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9000", "tlsproxy", "unix", "127.0.0.1:80", "127.8.8.8", "[::1]:80", ""]
)
def test_this_machine_may_be_named(host: str) -> None:
    assert answer_to(request("/", host=host))[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "192.0.2.1", "[::", "a", "[2001:db8::1]"])
def test_a_name_that_a_stranger_gave_this_machine_is_refused(host: str) -> None:
    status, body = answer_to(request("/", host=host))
    assert (status, host in body["error"]) == (403, True)


@pytest.mark.parametrize(
    "header", ["Origin: http://localhost", "Origin: null", "Sec-Fetch-Site: same-origin", "sec-fetch-site: cross-site"]
)
def test_web_pages_are_refused(header: str) -> None:
    status, body = answer_to(request("/certs/a/renew", header, method="POST"))
    assert (status, "web page" in body["error"]) == (403, True)


def test_what_a_person_typed_into_a_browser_is_no_web_page() -> None:
    assert answer_to(request("/status", "Sec-Fetch-Site: none"))[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (request("localhost:443", method="CONNECT"), 400),
        (request("/a%ff"), 400),
        (request("/?" + "&".join(f"a{n}=1" for n in range(30))), 400),
        (request("/", method="POST", body=b"force=true"), 400),
        (request("/", method="POST", body=b"[1]"), 400),
        (request("/", method="POST", body=b'{"a":{"b":1}}'), 400),
        (request("/", "Content-Length: 5", "Transfer-Encoding: chunked", method="POST"), 200),  # h11: chunked wins
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * MAX_HEAD * 2 + b"\r\n\r\n", 431),
        (request("/", method="POST", body=b"x" * (MAX_BODY + 1)), 413),
    ],
)
def test_what_is_wrong_is_said(sent: bytes, status: int) -> None:
    if status == 200:
        sent += b"0\r\n\r\n"
    found, body = answer_to(sent)
    assert found == status
    assert status == 200 or body["error"]


def test_after_a_refusal_the_connection_ends() -> None:
    said = talk(request("/", host="evil.example") + GET)
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in said


def test_a_body_that_waits_for_a_word_gets_it() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(request("/", "Expect: 100-continue", "Content-Length: 2", method="POST"))
        first = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"{}")
        writer.write_eof()
        return first + await reader.read()

    said = asyncio.run(play_with(mirror, play))
    assert said.startswith(b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 OK\r\n")


def test_lines_come_as_they_are_told() -> None:
    told = asyncio.Event()

    async def handle(_: Request) -> Lines:
        async def lines() -> Lines:
            yield {"step": "order"}
            await told.wait()
            yield None
            yield {"status": 200, "result": "ü"}

        return lines()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(GET)
        seen = await reader.readuntil(b"}\n")
        told.set()
        writer.write_eof()
        return seen + await reader.read()

    said = asyncio.run(play_with(handle, play))
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: application/x-ndjson\r\n" in head + b"\r\n"
    chunks = ['{"step":"order"}\n', "\n", '{"status":200,"result":"ü"}\n', ""]
    assert body.decode() == "".join(f"{len(chunk.encode()):x}\r\n{chunk}\r\n" for chunk in chunks)


def test_one_who_leaves_in_the_middle_ends_the_lines() -> None:
    ended: list[bool] = []

    async def handle(_: Request) -> Lines:
        async def lines() -> Lines:
            try:
                while True:
                    yield {"step": "x" * 10_000}
            finally:
                ended.append(True)

        return lines()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(GET)
        seen = await reader.readexactly(100)
        writer.close()
        return seen

    asyncio.run(play_with(handle, play))
    assert ended == [True]


def test_one_who_does_not_listen_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adminhttp, "WRITE_TIME", 0.05)

    async def handle(_: Request) -> Answer:
        return Answer(200, "x" * 10_000_000)

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GET)
        return b""

    assert asyncio.run(play_with(handle, play)) == b""


def test_a_flaw_is_told_of_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(_: Request) -> Answer:
        raise RuntimeError("the inside of it")

    with caplog.at_level(logging.ERROR):
        status, body = answer_to(GET, handle)
    assert status == 500
    assert "inside" not in body["error"]
    assert [(record.getMessage(), bool(record.exc_info)) for record in caplog.records] == [("admin.crashed", True)]


def test_a_handler_may_refuse() -> None:
    async def handle(_: Request) -> Answer:
        raise Refusal(409, "it is being renewed")

    assert answer_to(GET, handle) == (409, {"error": "it is being renewed"})


def test_one_too_many_is_turned_away() -> None:
    async def scene() -> bytes:
        ours, theirs = socket.socketpair()
        served = await asyncio.open_unix_connection(sock=theirs)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        writer.write(GET)
        await turn_away(*served, 503, "too many")
        seen = await reader.read()
        writer.close()
        return seen

    head, _, body = asyncio.run(scene()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert json.loads(body) == {"error": "too many"}


@given(st.lists(st.sampled_from([b"GET ", b"/", b" HTTP/1.1", b"\r\n", b"Host: ", b"localhost", b"\0", b":", b"0"])))
def test_no_bytes_are_an_accident(pieces: list[bytes]) -> None:
    said = talk(b"".join(pieces))
    assert said == b"" or said.split(b" ")[1] in {b"200", b"400", b"403"}


def test_a_head_is_answered_without_a_body() -> None:
    head, _, body = talk(request("/certs", method="HEAD")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: " in head
    assert body == b""


def test_a_body_that_is_nested_without_end_is_refused() -> None:
    assert answer_to(request("/certs", method="POST", body=b"[" * 60_000))[0] == 400


@pytest.mark.parametrize(("sent", "answered"), [(b"", b""), (GET[:20], b"HTTP/1.1 408 "), (GET[:-2], b"HTTP/1.1 408 ")])
def test_who_begins_and_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch, sent: bytes, answered: bytes) -> None:
    monkeypatch.setattr(adminhttp, "READ_TIME", 0.05)

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(sent)
        return await reader.read()

    assert asyncio.run(play_with(mirror, play))[: len(answered) or None] == answered


# --- the last call


def test_at_the_last_call_who_waits_for_nothing_is_seen_off() -> None:
    last_call = LastCall()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(GET)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Connection: close" not in head
        await reader.readline()
        last_call.make()
        async with asyncio.timeout(READ_TIME / 2):
            return await reader.read()

    assert asyncio.run(play_with(mirror, play, last_call)) == b""


@pytest.mark.parametrize("asked_before", [0, 1])
def test_after_the_last_call_what_was_begun_is_answered(asked_before: int) -> None:
    last_call = LastCall()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        for _ in range(asked_before):
            writer.write(GET)
            await reader.readuntil(b"}\n")
        writer.write(GET[:-2])
        await asyncio.sleep(0.05)  # it is read; if not, this test only sees less
        last_call.make()
        await asyncio.sleep(0.05)
        writer.write(b"\r\n" + GET)
        return await reader.read()

    seen = asyncio.run(play_with(mirror, play, last_call))
    assert (seen.count(b"HTTP/1.1 200"), seen.count(b"Connection: close")) == (1, 1)


def test_after_the_last_call_one_who_has_just_come_is_answered_once() -> None:
    last_call = LastCall()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        await asyncio.sleep(0)
        last_call.make()
        writer.write(GET)
        return await reader.read()

    assert asyncio.run(play_with(mirror, play, last_call)).count(b"Connection: close") == 1


def test_lines_that_are_told_go_on_after_the_last_call_and_are_the_last() -> None:
    last_call = LastCall()

    async def tell(_: Request) -> Lines:
        async def lines() -> Lines:
            yield {"step": 1}
            last_call.make()
            yield {"step": 2}

        return lines()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(GET)
        return await reader.read()

    seen = asyncio.run(play_with(tell, play, last_call))
    assert (b'"step":2' in seen, seen.endswith(b"0\r\n\r\n")) == (True, True)


def test_its_repr_counts_who_is_to_hear_it() -> None:
    assert repr(LastCall()) == "<LastCall to come, 0 connections>"
