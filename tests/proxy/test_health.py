"""Asking servers for their health: what counts as well, what is said of the rest, and who is asked at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.fakes.frames import block, frame
from tlsproxy.proxy import health
from tlsproxy.proxy.dialing import Place
from tlsproxy.proxy.health import HealthChecks, Tally
from tlsproxy.proxy.inquiry import Question, ask
from tlsproxy.proxy.pool import Backend
from tlsproxy.proxy.router import Route, Site
from tlsproxy.proxy.upstream import Upstream
from tlsproxy.settings import Site as ConfiguredSite
from tlsproxy.wire.http2_base import EMPTY_SETTINGS

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GET = Question("/healthz", [(b"Host", b"a.test")], timeout=2.0)


@contextlib.asynccontextmanager
async def serving(answer: bytes | Serve, heard: list[bytes] | None = None) -> AsyncIterator[str]:
    """A server that gives this answer to whatever comes, and then closes; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if callable(answer):
                await answer(reader, writer)
            else:
                request = await reader.readuntil(b"\r\n\r\n")
                if heard is not None:
                    heard.append(request)
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the end of the loop is the end of all
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def verdict(answer: bytes | Serve, question: Question = GET) -> str:
    async def main() -> str:
        async with serving(answer) as url:
            return await ask(url, Place(url), question)

    return asyncio.run(main())


def refused() -> str:
    """The URL of a port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


class TestAsk:
    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000,
        ],
        ids=["200", "204", "redirect", "1.0", "interim and chunks", "long"],
    )
    def test_it_is_well(self, answer: bytes) -> None:
        assert verdict(answer) == ""

    @pytest.mark.parametrize(
        ("answer", "why"),
        [
            (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "503 Service Unavailable"),
            (b"HTTP/1.1 404 Nope\r\nContent-Length: 0\r\n\r\n", "GET /healthz was answered with 404 Not Found"),
            (b"HTTP/1.1 499 x\r\nContent-Length: 0\r\n\r\n", "GET /healthz was answered with 499"),
            (b"", "it closed the connection without an answer"),
            (b"HTTP/1.1 200", "it closed the connection without an answer"),
            (b"SSH-2.0-OpenSSH_9\r\n\r\n", "its answer is not valid HTTP/1.1"),
            (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, "its answer is not valid HTTP/1.1"),
        ],
        ids=["503", "404", "499", "closed", "cut", "no HTTP", "endless head"],
    )
    def test_it_is_not(self, answer: bytes, why: str) -> None:
        assert why in verdict(answer)

    def test_nobody_listens(self) -> None:
        url = refused()
        why = asyncio.run(ask(url, Place(url), GET))
        assert why.startswith("cannot connect (")

    def test_no_answer_in_time(self) -> None:
        async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await reader.read()

        assert verdict(silent, Question("/", [(b"Host", b"a")], timeout=0.1)) == "no answer within 0.1 s"

    def test_a_body_that_does_not_end_changes_nothing(self) -> None:
        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            await reader.read()

        assert verdict(endless, Question("/", [(b"Host", b"a")], timeout=0.1)) == ""

    def test_a_connection_is_enough_where_there_is_nothing_to_ask(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        question = Question(timeout=1.0)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            assert asyncio.run(ask(f"unix:{path}", Place(f"unix:{path}"), question)) == ""
        gone = asyncio.run(ask(f"unix:{path}.not", Place(f"unix:{path}.not"), question))
        assert gone == "cannot connect (No such file or directory)"


def over_http2(*frames: bytes, path: str = "/healthz") -> str:
    """The verdict on a server that sends these behind its SETTINGS."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(EMPTY_SETTINGS + b"".join(frames))
        await reader.read()

    async def main() -> str:
        async with serving(serve) as url:
            h2c = url.replace("http:", "h2c:")
            return await ask(h2c, Place(h2c), Question(path, GET.fields, timeout=1.0))

    return asyncio.run(main())


def headers(*fields: tuple[bytes, bytes], ended: bool = True) -> bytes:
    return frame(1, block(fields), flags=5 if ended else 4, stream=1)


class TestAskOverHttp2:
    @pytest.mark.parametrize(
        "frames",
        [
            [headers((b":status", b"200"))],
            [headers((b":status", b"200"), ended=False), frame(0, b"ok", flags=1, stream=1)],
            [headers((b":status", b"302"))],
            [headers((b":status", b"415"))],
            [headers((b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"12"))],
            [frame(3, b"\0\0\0\x08", stream=1)],
        ],
        ids=["200", "body", "redirect", "grpc-go", "grpc", "reset"],
    )
    def test_it_is_well(self, frames: list[bytes]) -> None:
        assert over_http2(*frames) == ""

    def test_it_is_not(self) -> None:
        assert over_http2(headers((b":status", b"503"))) == "GET /healthz was answered with 503 Service Unavailable"

    def test_settings_are_enough_where_there_is_nothing_to_ask(self) -> None:
        assert over_http2(path="") == ""

    def test_one_that_speaks_http_1_is_told_from_one_that_is_down(self) -> None:
        async def main() -> str:
            async with serving(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as url:
                h2c = url.replace("http:", "h2c:")
                return await ask(h2c, Place(h2c), GET)

        assert asyncio.run(main()) == 'it answers in HTTP/1.1; write its address with "http://"'


class TestTally:
    def run(self, answers: str, fails: int = 2, passes: int = 2) -> str:
        """`answers` has + for well and - for not; return the verdict after each, ? while there is none."""
        tally, verdict = Tally(fails=fails, passes=passes), "?"
        said = ""
        for each in answers:
            if tally.count("" if each == "+" else "no"):
                verdict = each
            said += verdict
        return said

    @pytest.mark.parametrize(
        ("answers", "verdicts"),
        [
            ("+", "+"),
            ("-", "?"),  # one that is slow to answer the first time may be all that a route has
            ("--", "?-"),
            ("-+-", "?++"),
            ("+-+-+-", "++++++"),
            ("+--", "++-"),
            ("--+-++", "?----+"),
            ("+-----", "++----"),
        ],
    )
    def test_one_good_answer_decides_at_first_and_then_several_in_a_row(self, answers: str, verdicts: str) -> None:
        assert self.run(answers) == verdicts

    def test_how_many_is_configured(self) -> None:
        assert self.run("+---", fails=3) == "+++-"
        assert self.run("--+++", passes=3) == "?---+"


def checks(url: str, **health: object) -> tuple[HealthChecks, list[Site], Backend]:
    route = {"path": "/api", "backends": [url], "health": {"interval": "20ms", "timeout": "1s", **health}}
    configured = ConfiguredSite.model_validate({"hosts": ["*.b.test", "a.test"], "routes": [route]})
    backend = Backend(url, most_idle=1)
    upstream = Upstream([backend], "least_conn")
    site = Site(configured.hosts, [Route("/api", upstream, strip=False, response_timeout=1, max_body=0)])
    return HealthChecks([configured], connect_timeout=1.0, fields=[(b"X-Proof", b"1")]), [site], backend


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


class TestChecks:
    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(health, "_FIRST_WITHIN", 0.0)

    def test_a_server_goes_down_and_comes_up_again_as_it_answers(self) -> None:
        states = [b"503 No", b"200 OK"]

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 " + states[0] + b"\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

        async def main() -> None:
            async with serving(answer) as url:
                found, sites, backend = checks(url)
                found.follow(sites)
                await soon(lambda: backend.is_down)
                assert "503" in backend.down_why
                states.pop(0)
                await soon(lambda: not backend.is_down)
                found.close()

        asyncio.run(main())

    def test_it_is_asked_as_a_client_of_the_site_would_over_https(self) -> None:
        heard: list[bytes] = []

        async def main() -> None:
            async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", heard) as url:
                found, sites, _ = checks(url, path="/up")
                found.follow(sites)
                await soon(lambda: bool(heard))
                found.close()

        asyncio.run(main())
        lines = heard[0].split(b"\r\n")
        assert lines[0] == b"GET /up HTTP/1.1"
        fields = {line.partition(b": ")[0].lower(): line.partition(b": ")[2] for line in lines[1:] if line}
        assert fields[b"host"] == b"a.test"
        assert fields[b"x-forwarded-proto"] == b"https"
        assert fields[b"x-proof"] == b"1"

    def test_one_that_has_left_its_route_is_not_judged_any_more(self) -> None:
        async def main() -> None:
            url = refused()
            found, sites, backend = checks(url)
            found.follow(sites)
            await soon(lambda: backend.is_down)
            other = Backend(url, most_idle=1)
            sites[0].forwards[0].route.upstream = Upstream([other], "least_conn")
            found.follow(sites)
            assert not backend.is_down
            await soon(lambda: other.is_down)
            assert not backend.is_down
            found.close()

        asyncio.run(main())

    def test_a_route_without_a_check_is_asked_for_a_connection_only(self) -> None:
        async def main(url: str) -> list[str]:
            found, *_ = checks("http://10.0.0.1:80", timeout="100ms")
            return [(await found.probe(route, [url]))[url] for route in ("a.test /", "*.b.test /api")]

        with socket.create_server(("127.0.0.1", 0)) as server:
            answers = asyncio.run(main(f"http://127.0.0.1:{server.getsockname()[1]}"))
        assert answers == ["", "no answer within 0.1 s"]
