"""Every bad input, and what our own tests call refused, through the real front: `tlsproxy run`, TLS, a recorder.

Outcomes are read off the wire: "forward" and "forward-normalised" are an answer with `X-Backend: yes`, a number is an
answer of the proxy's own, "close" and "timeout" no answer at all, "truncate-close" one that h11 calls incomplete.
The cases run side by side, each from an address of its own; afterwards each makes an ordinary request.
The layer `upstream-tls` does not apply: tlsproxy speaks plain HTTP to its backends.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import h11
import pytest
import trustme

from tests.fakes.recording_backend import Misbehaviour, Recorded, RecordingBackend
from tests.fakes.refused import REFUSED, REFUSED_ANSWERS
from tests.fakes.vectors import Case, backend_cases, client_cases, load
from tests.system.running import Proxy, running_proxy, until, write_pair

pytestmark = pytest.mark.system

PATIENCE = 15.0
SIDE_BY_SIDE = 48
LIMITS = '[limits]\nheader_timeout = "1s"\nhandshake_timeout = "1s"\nkeep_alive = "1s"\nbody_idle = "1s"\n'
ASK = b"GET /after HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"


@dataclass
class Seen:
    """What the client of a case got: every answer as h11 read it, the bytes, and the ordinary request's status."""

    answers: list[tuple[h11.Response, bytes]]
    truncated: bool
    raw: bytes
    after: int


def refused_request(what: str) -> Case:
    status, raw = REFUSED[what]
    accept = frozenset((str(status), "close"))
    return Case(what, "client", raw, str(status), accept, max_backend_requests=0, conn_after="close")


def refused_answer(what: str) -> Case:
    ask = b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n"
    return Case(
        f"answer: {what}",
        "backend",
        REFUSED_ANSWERS[what],
        "502",
        frozenset(("502",)),
        client_request=ask,
        backend_action="keep",
    )


CLIENT_CASES = [*client_cases(), *map(refused_request, REFUSED)]
BACKEND_CASES = [*backend_cases(), *map(refused_answer, REFUSED_ANSWERS)]
ADDRESS = {
    case.id: f"127.0.{9 + number // 250}.{1 + number % 250}"
    for number, case in enumerate([*CLIENT_CASES, *BACKEND_CASES])
}


@pytest.fixture(scope="module")
def backend() -> Iterator[RecordingBackend]:
    with RecordingBackend() as recording:
        recording.misbehave = {ADDRESS[case.id]: Misbehaviour(case.raw, case.backend_action) for case in BACKEND_CASES}
        yield recording


@pytest.fixture(scope="module")
def proxy(
    backend: RecordingBackend, authority: trustme.CA, trust: ssl.SSLContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("bad_inputs")
    pair = write_pair(folder, authority, "a.test")
    site = f"""
        [[sites]]
        hosts = ["a.test"]
        certificate = {pair}
        [[sites.routes]]
        path = "/"
        backends = ["{backend.url}"]
        response_timeout = "1s"
    """
    with running_proxy(folder, trust, site, head=LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def played(proxy: Proxy) -> Iterator[dict[str, Future[Seen]]]:
    """All cases, side by side; a test waits for its own only."""
    alone = {case.id for case in BACKEND_CASES if case.backend_action == "before-request"}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        cases = [case for case in [*CLIENT_CASES, *BACKEND_CASES] if case.id not in alone]
        yield {case.id: pool.submit(play, case, proxy) for case in cases}


def play(case: Case, proxy: Proxy) -> Seen:
    source = ADDRESS[case.id]
    sent = case.raw if case.side == "client" else case.client_request
    raw = converse(proxy, source, sent)
    answers, truncated = read_answers(raw, sent)
    after, _ = read_answers(converse(proxy, source, ASK), ASK)
    return Seen(answers, truncated, raw, after[0][0].status_code if after else 0)


def converse(proxy: Proxy, source: str, data: bytes) -> bytes:
    """Send, and read until the proxy closes: its deadlines are short here."""
    with open_tls(proxy, source) as stream:
        received = b""
        # The proxy may refuse and close before all is sent.
        with suppress(ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            stream.sendall(data)
        with suppress(ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            while piece := stream.recv(65_536):
                received += piece
        return received


def open_tls(proxy: Proxy, source: str) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", proxy.port), PATIENCE, (source, 0))
    try:
        return proxy.trust.wrap_socket(raw, server_hostname="a.test")
    except BaseException:
        raw.close()
        raise


def read_answers(data: bytes, request: bytes) -> tuple[list[tuple[h11.Response, bytes]], bool]:
    """The final answers in `data`, the stream having ended, and whether the last one is incomplete."""
    answers: list[tuple[h11.Response, bytes]] = []
    method = request[:4].strip() if request[:4] in (b"HEAD", b"GET ", b"POST") else b"GET"
    while data:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=200_000)
        connection.send(h11.Request(method=method, target=b"/", headers=[("Host", "a.test")]))
        connection.send(h11.EndOfMessage())
        connection.receive_data(data)
        connection.receive_data(b"")
        try:
            head, body = read_answer(connection)
        except h11.RemoteProtocolError:
            return answers, True
        answers.append((head, body))
        data = connection.trailing_data[0]
    return answers, False


def read_answer(connection: h11.Connection) -> tuple[h11.Response, bytes]:
    head, body = None, b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
    assert head is not None
    return head, body


def is_relayed(answer: h11.Response) -> bool:
    return (b"x-backend", b"yes") in [(bytes(name), bytes(value)) for name, value in answer.headers]


def is_ours(answer: h11.Response) -> bool:
    return any(bytes(value) == b"application/problem+json" for name, value in answer.headers if name == b"content-type")


def outcomes(case: Case, seen: Seen) -> set[str]:
    if not seen.answers:
        return {"truncate-close"} if seen.raw else {"close", "timeout"}
    first = seen.answers[0][0]
    relayed = is_relayed(first) if case.side == "client" else not is_ours(first)
    return {"forward", "forward-normalised"} if relayed else {str(first.status_code)}


def check_backend_sees(case: Case, recorded: list[Recorded]) -> None:
    assert [each.broken for each in recorded if each.broken] == []
    raw = b"".join(each.raw for each in recorded).lower()
    assert [needle for needle in case.must_not_see if needle in raw] == []
    if any(each.complete for each in recorded):
        assert [needle for needle in case.must_see if needle not in raw] == []


def of_case(backend: RecordingBackend, case: Case) -> list[Recorded]:
    return [each for each in backend.log(ADDRESS[case.id]).requests if each.target != b"/after"]


@pytest.mark.parametrize("case", CLIENT_CASES, ids=lambda case: case.id)
def test_client_side(case: Case, backend: RecordingBackend, played: dict[str, Future[Seen]]) -> None:
    seen = played[case.id].result()
    assert outcomes(case, seen) & case.accept, seen
    recorded = of_case(backend, case)
    assert len([each for each in recorded if each.complete]) <= case.max_backend_requests
    check_backend_sees(case, recorded)
    if case.conn_after == "close" and seen.answers:
        last = [bytes(value).lower() for name, value in seen.answers[-1][0].headers if name == b"connection"]
        assert last == [b"close"], seen
    assert seen.after == 200


@pytest.mark.parametrize(
    "case", [case for case in BACKEND_CASES if case.backend_action != "before-request"], ids=lambda case: case.id
)
def test_backend_side(case: Case, backend: RecordingBackend, played: dict[str, Future[Seen]]) -> None:
    seen = played[case.id].result()
    assert outcomes(case, seen) & case.accept, seen
    relayed = seen.raw.lower()
    assert [needle for needle in case.client_must_not_see if needle in relayed] == []
    if "forward" in outcomes(case, seen):
        assert [needle for needle in case.client_must_see if needle not in relayed] == []
    used = {each.connection for each in of_case(backend, case)}
    assert used, "the backend never saw the request"
    for connection in used:  # backend_conn_reuse is "no" for all of them
        assert backend.users_of(connection)[-1] == b"/x", "used again after the bad answer"
    assert seen.after == 200


def test_an_answer_on_an_idle_connection_answers_nothing(backend: RecordingBackend, proxy: Proxy) -> None:
    """B-PRE-RESPONSE: the pooled connection is given up, and the next request gets its own answer."""
    case = next(case for case in BACKEND_CASES if case.backend_action == "before-request")
    source = ADDRESS[case.id]
    answers, _ = read_answers(converse(proxy, source, case.client_request), case.client_request)
    assert is_relayed(answers[0][0])
    poisoned = backend.log(source).requests[-1].connection
    backend.say(poisoned, case.raw)
    until(lambda: proxy.count("backend.unasked_answer"), "the unasked answer is noticed")
    raw = converse(proxy, source, case.client_request)
    assert b"POISON" not in raw
    assert is_relayed(read_answers(raw, case.client_request)[0][0][0])
    assert backend.users_of(poisoned)[-1] == b"/x"
    assert backend.log(source).requests[-1].connection != poisoned


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n"


@pytest.mark.parametrize(
    ("number", "lines", "body"),
    [
        (1, b"Content-Length: 100\r\n", SMUGGLED),
        (2, b"Content-Length: 100\r\nExpect: 100-continue\r\n", SMUGGLED),
        (3, b"Transfer-Encoding: chunked\r\n", b"100\r\n" + SMUGGLED),
        (4, b"Content-Length: 4\r\nExpect: 100-continue\r\n", b"0\r\n"),
    ],
)
def test_an_answer_before_the_body_is_whole_is_the_last_on_both_sides(
    number: int, lines: bytes, body: bytes, backend: RecordingBackend, proxy: Proxy
) -> None:
    """What comes later of that body must be nobody's request (CL.0 and 0.CL, security rule 3)."""
    source = f"127.0.20.{number}"
    head = b"POST /early HTTP/1.1\r\nHost: a.test\r\n" + lines + b"\r\n"
    raw = converse(proxy, source, head + body)
    answers, truncated = read_answers(raw, head)
    assert not truncated
    assert len(answers) == 1
    assert is_relayed(answers[0][0])
    assert b"\r\nconnection: close\r\n" in raw.lower()
    (recorded,) = backend.log(source).requests
    assert not recorded.complete
    assert converse(proxy, source, ASK)
    assert backend.users_of(recorded.connection)[-1] == b"/early"


def test_a_refused_upgrade_leaves_no_connection_behind(backend: RecordingBackend, proxy: Proxy) -> None:
    """B-WS-REFUSED-TUNNEL, alone: nobody else could have taken the connection."""
    source = "127.0.20.100"
    ask = (
        b"GET /upgrade HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with open_tls(proxy, source) as stream:
        stream.sendall(ask + SMUGGLED)
        received = b""
        while received.count(b"\r\n\r\nok") < 2:
            received += stream.recv(65_536)
    refused, next_one = backend.log(source).requests
    assert (refused.target, next_one.target) == (b"/upgrade", b"/smuggled")
    assert refused.connection != next_one.connection


TLS_CASES = [case for case in load() if case.layer == "tls-port-plaintext"]


@pytest.mark.parametrize("case", TLS_CASES, ids=lambda case: case.id)
def test_tls_port(case: Case, proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as raw:
        raw.sendall(case.raw)
        received = b""
        with suppress(ConnectionError):
            while piece := raw.recv(65_536):
                received += piece
    # An alert record may come before the close; no HTTP is spoken.
    assert received[:1] in (b"", b"\x15")
    answers, _ = read_answers(converse(proxy, "127.0.0.1", ASK), ASK)
    assert is_relayed(answers[0][0])
