"""gRPC end to end: grpcio's client, TLS and HTTP/2 to the proxy, `h2c://` to grpcio's server. As docs/grpc.md says."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import trustme

from tests.system.apps.grpc_calls import MOST, SERVICE
from tests.system.conftest import StartProxy
from tests.system.running import PATIENCE, Proxy, Server, free_port, running_proxy, until, write_pair

pytestmark = pytest.mark.system

names = (f"run-{number}" for number in itertools.count())
MIB = 1024 * 1024


class Calls:
    """The server, which can be killed and started again, and the client's side of its calls."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._log = folder / next(names)
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.system.apps.grpc_calls", str(self.port)]
        self.server = Server(command, f"http://127.0.0.1:{self.port}", self._log)

    def connect(self, proxy: Proxy, authority: trustme.CA) -> grpc.Channel:
        options = [
            ("grpc.ssl_target_name_override", "calls.test"),
            ("grpc.default_authority", "calls.test"),
            ("grpc.max_receive_message_length", MOST),
            ("grpc.enable_retries", 0),
        ]
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        return grpc.secure_channel(f"127.0.0.1:{proxy.port}", credentials, options=options)

    def has_said(self, words: str) -> None:
        until(lambda: words in self.server.said(), f"the server says {words!r}")


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    calls = Calls(tmp_path_factory.mktemp("calls"))
    yield calls
    calls.server.stop()


def site(folder: Path, calls: Calls, authority: trustme.CA) -> str:
    return f"""
        [[sites]]
        hosts = ["calls.test"]
        certificate = {write_pair(folder, authority, "calls.test")}
        backends = ["h2c://127.0.0.1:{calls.port}"]
    """


@pytest.fixture(scope="module")
def proxy(
    calls: Calls, authority: trustme.CA, trust: ssl.SSLContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("proxy")
    with running_proxy(folder, trust, site(folder, calls, authority)) as proxy:
        yield proxy


@pytest.fixture
def channel(calls: Calls, proxy: Proxy, authority: trustme.CA) -> Iterator[grpc.Channel]:
    with calls.connect(proxy, authority) as channel:
        yield channel


def unary(channel: grpc.Channel, method: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(f"/{SERVICE}/{method}")


def streamed(channel: grpc.Channel, method: str) -> grpc.UnaryStreamMultiCallable[bytes, bytes]:
    return channel.unary_stream(f"/{SERVICE}/{method}")


def talk(channel: grpc.Channel) -> grpc.StreamStreamMultiCallable[bytes, bytes]:
    return channel.stream_stream(f"/{SERVICE}/Talk")


def spoken(words: queue.Queue[bytes | None]) -> Iterator[bytes]:
    """What is put into `words`, up to None."""
    while (word := words.get(timeout=PATIENCE)) is not None:
        yield word


def status_of(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_call_with_metadata_both_ways(channel: grpc.Channel) -> None:
    sent = (("x-test-a", "b"), ("x-test-bin", b"\0\xff\n"), ("x-test-twice", "1"), ("x-test-twice", "2"))

    answer, call = unary(channel, "Echo").with_call(b"hello", timeout=PATIENCE, metadata=sent)

    assert answer == b"hello"
    assert {("x-initial", "1"), ("x-initial-bin", b"\0\xff")} <= set(call.initial_metadata())
    assert {*sent, ("under_score", "1")} <= set(call.trailing_metadata())
    left = next(float(value) for key, value in call.trailing_metadata() if key == "x-left")
    assert 0 < left <= PATIENCE


def test_an_error_with_details_has_no_answer(channel: grpc.Channel, proxy: Proxy) -> None:
    error = status_of(lambda: unary(channel, "Refuse")(b"", timeout=PATIENCE))

    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing: 100 % ä")
    assert ("grpc-status-details-bin", b"\0why\xff") in {(each.key, each.value) for each in error.trailing_metadata()}
    line = proxy.logged(path=f"/{SERVICE}/Refuse")
    assert (line["status"], line["http"]) == (200, "2")


def test_a_method_that_is_not_there(channel: grpc.Channel) -> None:
    error = status_of(lambda: unary(channel, "Nothing")(b"", timeout=PATIENCE))

    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("size", [0, 1, 4 * MIB + 1, 16 * MIB])
def test_messages_of_any_size(channel: grpc.Channel, size: int) -> None:
    message = os.urandom(size)

    assert unary(channel, "Echo")(message, timeout=PATIENCE) == message


def test_a_stream_of_answers(channel: grpc.Channel) -> None:
    answers = list(streamed(channel, "Count")(b"2000 1000", timeout=PATIENCE))

    assert answers == [bytes(1000)] * 2000


def test_an_error_behind_answers(channel: grpc.Channel) -> None:
    answers = streamed(channel, "Count")(b"3 5 fail", timeout=PATIENCE)

    assert [next(answers) for _ in range(3)] == [bytes(5)] * 3
    error = status_of(lambda: next(answers))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "too late")


def test_a_stream_of_requests(channel: grpc.Channel) -> None:
    total: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(f"/{SERVICE}/Total")

    assert total(iter([bytes(10_000)] * 2000), timeout=PATIENCE) == b"20000000"


def test_both_sides_take_turns(channel: grpc.Channel) -> None:
    """Each message has to arrive before the next one is sent: nothing is held back on the way."""
    words: queue.Queue[bytes | None] = queue.Queue()
    answers = talk(channel)(spoken(words), timeout=PATIENCE)

    for number in range(100):
        words.put(b"%d" % number)
        assert next(answers) == b"<%d>" % number
    words.put(None)

    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK


def test_many_calls_at_once_share_connections(channel: grpc.Channel, calls: Calls, proxy: Proxy) -> None:
    echo = unary(channel, "Echo")

    under_way = [echo.future(b"%d" % number, timeout=PATIENCE) for number in range(1000)]

    assert [call.result() for call in under_way] == [b"%d" % number for number in range(1000)]
    worker = proxy.workers()[0]
    peers = Path(f"/proc/{worker}/net/tcp").read_text()
    established = [line for line in peers.splitlines() if f":{calls.port:04X} 01 " in line]
    assert 1 <= len(established) <= 10


def test_a_stream_that_nobody_reads_stops_no_other(channel: grpc.Channel) -> None:
    unread = streamed(channel, "Count")(b"64 1000000", timeout=PATIENCE)
    assert next(unread) == bytes(1_000_000)

    for number in range(20):
        assert unary(channel, "Echo")(b"%d" % number, timeout=PATIENCE) == b"%d" % number

    assert sum(map(len, unread)) == 63_000_000


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_deadline_reaches_the_server(channel: grpc.Channel, calls: Calls) -> None:
    error = status_of(lambda: list(streamed(channel, "Hang")(b"deadline", timeout=0.5)))

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    calls.has_said("ended deadline")


def test_a_cancelled_call_reaches_the_server(channel: grpc.Channel, calls: Calls, proxy: Proxy) -> None:
    answers = streamed(channel, "Hang")(b"cancelled", timeout=PATIENCE)
    assert next(answers) == b"cancelled"

    answers.cancel()

    calls.has_said("ended cancelled")
    assert proxy.logged(path=f"/{SERVICE}/Hang")["error"] == "the client reset the stream (CANCEL)"
    assert unary(channel, "Echo")(b"still here", timeout=PATIENCE) == b"still here"


def test_a_client_that_leaves_takes_its_calls_with_it(proxy: Proxy, calls: Calls, authority: trustme.CA) -> None:
    channel = calls.connect(proxy, authority)
    answers = streamed(channel, "Hang")(b"left", timeout=PATIENCE)
    assert next(answers) == b"left"

    channel.close()

    calls.has_said("ended left")


def test_calls_of_a_server_that_is_killed_are_unavailable(channel: grpc.Channel, calls: Calls) -> None:
    answers = streamed(channel, "Hang")(b"killed", timeout=PATIENCE)
    assert next(answers) == b"killed"
    silent = streamed(channel, "Hang")(b"silent", timeout=PATIENCE)
    calls.has_said("began silent")

    os.kill(calls.server.pid, signal.SIGKILL)

    assert status_of(lambda: next(answers)).code() is grpc.StatusCode.UNAVAILABLE
    assert status_of(lambda: next(silent)).code() is grpc.StatusCode.UNAVAILABLE
    assert status_of(lambda: unary(channel, "Echo")(b"", timeout=PATIENCE)).code() is grpc.StatusCode.UNAVAILABLE
    calls.server.stop()
    calls.start()
    assert unary(channel, "Echo")(b"back", timeout=PATIENCE) == b"back"


def test_a_proxy_that_leaves_lets_calls_end(
    start_proxy: StartProxy, calls: Calls, authority: trustme.CA, tmp_path: Path
) -> None:
    """New calls of a good client go elsewhere (GOAWAY); what it has begun gets its answer."""
    proxy = start_proxy(site(tmp_path, calls, authority))
    words: queue.Queue[bytes | None] = queue.Queue()
    with calls.connect(proxy, authority) as channel:
        answers = talk(channel)(spoken(words), timeout=PATIENCE)
        words.put(b"before")
        assert next(answers) == b"<before>"

        os.kill(proxy.pid, signal.SIGTERM)
        words.put(b"meanwhile")
        assert next(answers) == b"<meanwhile>"
        words.put(None)

        assert list(answers) == []
        assert proxy.wait() == 0


def test_calls_from_many_threads(channel: grpc.Channel) -> None:
    """Small and large, both ways, for a second or so."""
    until_then = time.monotonic() + 1

    def work(seed: int) -> int:
        done = 0
        while time.monotonic() < until_then:
            message = bytes([seed]) * (1 + seed * seed * 1000)
            assert unary(channel, "Echo")(message, timeout=PATIENCE) == message
            done += 1
        return done

    with futures.ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(work, range(16))) >= 16
