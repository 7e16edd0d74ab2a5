"""Our codec against h11, an independent one: whatever ours accepts, h11 must accept with the same meaning.

Ours is the stricter one on purpose, so the comparison goes one way. Where the two differ by policy:

* we refuse what h11 takes: lines that end with LF, obs-fold, repeated or listed Content-Length, Content-Length next to
  Transfer-Encoding, Transfer-Encoding in HTTP/1.0, unknown methods, a Host that is not a DNS name or address, two Hosts
  in HTTP/1.0, targets other than a path, `*` or an absolute URL, malformed chunk extensions, expectations but one;
* h11 refuses what we take: trailer fields that frame (`Content-Length: x` in a trailer), which we drop unread; a 101 or
  a 2xx to CONNECT, which it reads as a change of protocol. Such inputs are not compared;
* we normalise: an absolute target becomes a path and sets the host, names that `Connection` lists and hop-by-hop fields
  are gone, an empty line before a request line is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.codec import Answer, Conversation, Request, read_answer, read_requests
from tests.fakes.generated import ANSWERS, STREAMS
from tests.fakes.vectors import Case, client_cases
from tlsproxy.wire.fields import REQUEST_KIND, RESPONSE_KIND, Fields, Kind, connection_names
from tlsproxy.wire.messages import RequestHead

WIRE = settings(max_examples=120)
PASSED_ON = (Kind.PLAIN, Kind.NOTED)


# --- what h11 makes of the same bytes


@dataclass
class Read:
    """One message as h11 read it."""

    head: h11.Request | h11.Response
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    complete: bool = False
    keep_alive: bool = False


def h11_requests(data: bytes) -> tuple[list[Read], str]:
    """The requests that h11 reads from `data`, and why it stopped ("" = it wants more)."""
    requests: list[Read] = []
    try:
        while data:
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=200_000)
            connection.receive_data(data.removeprefix(b"\r\n"))
            data = b""
            for event in h11_events(connection):
                if isinstance(event, h11.Request):
                    requests.append(Read(event))
                elif take(event, requests[-1]):
                    requests[-1].keep_alive = connection.their_state is not h11.MUST_CLOSE
                    data = connection.trailing_data[0]  # read on: h11 keeps no HTTP/1.0 connection, we do if asked
                    break
    except h11.RemoteProtocolError as error:
        return requests, str(error)
    return requests, ""


def h11_answer(data: bytes, method: bytes, *, eof: bool) -> tuple[Read | None, str]:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=200_000)
    connection.send(h11.Request(method=method, target=b"/", headers=[("Host", "a.test")]))
    connection.send(h11.EndOfMessage())
    answer: Read | None = None
    try:
        connection.receive_data(data)
        for _ in range(2 if eof else 1):
            for event in h11_events(connection):
                if isinstance(event, h11.Response):
                    answer = Read(event)
                elif answer is not None and take(event, answer):
                    answer.keep_alive = connection.their_state is not h11.MUST_CLOSE
                    return answer, ""
            if eof:
                connection.receive_data(b"")
    except h11.RemoteProtocolError as error:
        return answer, str(error)
    return answer, ""


def h11_events(connection: h11.Connection) -> Iterator[object]:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            return
        yield event


def take(event: object, message: Read) -> bool:
    """Add a piece to `message`; True at its end."""
    if isinstance(event, h11.Data):
        message.body += bytes(event.data)
    elif isinstance(event, h11.EndOfMessage):
        message.trailers = [(bytes(name), bytes(value)) for name, value in event.headers]
        message.complete = True
    return message.complete


# --- comparing


def lower(fields: Fields) -> Fields:
    return sorted((name.lower(), value) for name, value in fields)


def compare_requests(data: bytes, ours: Conversation) -> None:
    theirs, stopped = h11_requests(data)
    for index, request in enumerate(ours.requests):
        if request.complete and frames_in_trailers(request.trailers):
            return
        assert index < len(theirs), (stopped, request)
        compare_request(request, theirs[index], failed=ours.error is not None)


def compare_request(ours: Request, theirs: Read, *, failed: bool) -> None:
    head, other = ours.head, theirs.head
    assert isinstance(other, h11.Request)
    assert head.method == other.method
    assert head.version == (11 if other.http_version == b"1.1" else 10)
    compare_target(head, other)
    theirs_fields = [(bytes(name), bytes(value)) for name, value in other.headers]
    gone = {name for key, value in theirs_fields if key == b"connection" for name in connection_names(value)}
    passed = [pair for pair in theirs_fields if REQUEST_KIND[pair[0]] in PASSED_ON and pair[0] not in gone]
    assert lower(head.fields) == sorted(passed)
    compare_bodies(ours.body, theirs, complete=ours.complete, failed=failed)
    if ours.complete:
        kept = [pair for pair in theirs.trailers if pair[0] not in gone]
        assert lower(ours.trailers) == sorted(kept)
        assert head.keep_alive == theirs.keep_alive or head.version == 10  # h11 never keeps HTTP/1.0


def compare_target(head: RequestHead, other: h11.Request) -> None:
    hosts = [value for name, value in other.headers if name == b"host"]
    if other.target == b"*" or other.target[:1] == b"/":
        assert head.target == other.target
        assert [head.authority] == hosts or (head.version == 10 and not hosts and head.authority == b"")
    else:
        scheme, _, rest = other.target.partition(b"://")
        assert scheme.lower() in (b"http", b"https")
        assert rest.startswith(head.authority)
        path = rest[len(head.authority) :]
        assert head.target in (path, b"/" + path, b"*")


def compare_bodies(body: bytes, theirs: Read, *, complete: bool, failed: bool) -> None:
    if complete:
        assert theirs.complete
        assert body == theirs.body
    elif failed:
        assert body.startswith(theirs.body) or theirs.body.startswith(body)
    else:
        assert not theirs.complete
        assert body == theirs.body


def frames_in_trailers(trailers: Fields) -> bool:
    return any(name.lower() in (b"content-length", b"transfer-encoding", b"host") for name, _ in trailers)


def compare_answer(data: bytes, method: bytes, ours: Answer, *, eof: bool) -> None:
    if ours.head is None or ours.head.status == 101 or frames_in_trailers(ours.trailers):
        return
    theirs, stopped = h11_answer(data, method, eof=eof)
    assert theirs is not None, stopped
    assert isinstance(theirs.head, h11.Response)
    assert theirs.head.status_code == ours.head.status
    assert bytes(theirs.head.reason) == ours.head.reason
    fields = [(bytes(name), bytes(value)) for name, value in theirs.head.headers]
    gone = {name for key, value in fields if key == b"connection" for name in connection_names(value)}
    passed = [pair for pair in fields if RESPONSE_KIND[pair[0]] in PASSED_ON and pair[0] not in gone]
    assert lower(ours.head.fields) == sorted(passed)
    compare_bodies(ours.body, theirs, complete=ours.complete, failed=ours.error is not None)
    if ours.complete:
        assert lower(ours.trailers) == sorted(pair for pair in theirs.trailers if pair[0] not in gone)


@settings(WIRE)
@given(STREAMS)
def test_a_request_means_to_us_what_it_means_to_h11(data: bytes) -> None:
    compare_requests(data, read_requests([data]))


@settings(WIRE)
@given(ANSWERS, st.sampled_from([b"GET", b"GET", b"HEAD"]), st.booleans())
def test_an_answer_means_to_us_what_it_means_to_h11(data: bytes, method: bytes, eof: bool) -> None:
    compare_answer(data, method, read_answer([data], method, eof=eof), eof=eof)


@pytest.mark.parametrize("case", client_cases(), ids=lambda case: case.id)
def test_the_list_means_to_us_what_it_means_to_h11(case: Case) -> None:
    compare_requests(case.raw, read_requests([case.raw]))
