"""Questions to backends that answer oddly, or not at all. Servers of a few lines on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from tlsproxy.doctor.asking import USER_AGENT, Address, Answer, Unanswered, ask, conversation

T = TypeVar("T")


def against(
    answer: bytes | None, question: Callable[[Address], Awaitable[T]], *, stays: bool = False
) -> tuple[T, bytes]:
    """Ask a server that answers everything with these bytes and closes, or stays; None: with nothing, and stays."""
    stays = stays or answer is None

    async def run() -> tuple[T, bytes]:
        heard = bytearray()
        served: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.extend(await reader.readuntil(b"\r\n\r\n"))
            if answer is not None:
                writer.write(answer)
            with contextlib.suppress(OSError):
                await (reader.read() if stays else writer.drain())
                writer.close()
                await writer.wait_closed()
            served.set_result(None)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            try:
                return await question(Address(f"http://127.0.0.1:{port}")), bytes(heard)
            finally:
                await served

    return asyncio.run(run())


def get(timeout: float = 5.0) -> Callable[[Address], Awaitable[Answer]]:
    return lambda address: ask(address, "/x", "a.test", {"X-Forwarded-Proto": "https"}, timeout=timeout)


def test_asks_with_get_and_says_who_asks() -> None:
    answer, heard = against(b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nContent-Length: 2\r\n\r\nhi", get())
    assert (answer.status, answer.body, answer.get("server"), answer.is_whole) == (200, b"hi", "uvicorn", True)
    assert heard.startswith(b"GET /x HTTP/1.1\r\nHost: a.test\r\n")
    assert f"User-Agent: {USER_AGENT}\r\n".encode() in heard


def test_a_path_and_an_address_are_asked_for_as_http_writes_them() -> None:
    _, heard = against(b"HTTP/1.1 204 No Content\r\n\r\n", lambda address: ask(address, "/a b/ä%20", "::1"))
    assert heard.startswith(b"GET /a%20b/%C3%A4%20 HTTP/1.1\r\nHost: [::1]\r\n")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(b"", "closed"), (b"SSH-2.0-x\r\n\r\n", "garbage"), (b"HTTP/1.1 200 OK\r\nContent-Le", "closed")],
)
def test_what_is_no_answer(answer: bytes, kind: str) -> None:
    with pytest.raises(Unanswered) as caught:
        against(answer, get())
    assert caught.value.kind == kind


def test_silence_has_a_deadline() -> None:
    with pytest.raises(Unanswered, match=r"within 0\.05 s"):
        against(None, get(0.05))


def test_an_answer_has_a_largest_size() -> None:
    with pytest.raises(Unanswered, match="4 MiB"):
        against(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5 << 20), get())


def test_nobody_there() -> None:
    with pytest.raises(Unanswered) as caught:
        asyncio.run(ask(Address("unix:/nonexistent/x.sock"), "/", "a.test"))
    assert caught.value.kind == "missing"


def test_an_endless_stream_is_left_after_some_pieces() -> None:
    async def look(address: Address) -> Answer:
        async with conversation(address) as talk:
            return await talk.ask("/", "a.test", {}, timeout=5, most_pieces=1)

    answer, _ = against(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", look, stays=True)
    assert (answer.body, answer.is_whole) == (b"a", False)


def test_a_server_that_speaks_no_http2() -> None:
    async def look(address: Address) -> Answer:
        return await ask(Address(address.url.replace("http", "h2c")), "/", "a.test")

    with pytest.raises(Unanswered) as caught:
        against(b"HTTP/1.1 400 Bad Request\r\n\r\n", look)
    assert caught.value.kind == "garbage"


@pytest.mark.parametrize(
    ("url", "bind", "is_http2"),
    [
        ("http://127.0.0.1:80", "127.0.0.1:80", False),
        ("http://[::1]:80", "[::1]:80", False),
        ("h2c://app:80", "app:80", True),
        ("unix:/a.sock", "/a.sock", False),
        ("h2c+unix:/a.sock", "/a.sock", True),
    ],
)
def test_addresses(url: str, bind: str, is_http2: bool) -> None:
    address = Address(url)
    assert (address.bind, address.is_http2) == (bind, is_http2)
