"""Every bad input ends inside its `accept`, fed whole, byte by byte and cut at every offset.

How a codec's verdict maps to the outcomes of the file:

* an error before any request was complete is its status ("400"); behind a complete request it only ends the connection;
* a complete first request is "forward" and "forward-normalised" alike: every message is built anew from its parts, so
  the two can't be told apart here. Whether the meaning is kept is what `backend_must_(not_)see` and `test_differential`
  judge. A host that is not `a.test` would be answered 421 by the router, which the codec does not know;
* bytes that never become a request are "timeout" (the driver answers 408 or closes when its deadline passes);
* an answer that fails before its head is "502", behind it "truncate-close"; one that never comes is "504".

Cases of layer `tls-port-plaintext` and `upstream-tls` have no HTTP/1.1 codec in them: see
tests/system/test_bad_inputs.py.
"""

from __future__ import annotations

import pytest

from tests.fakes.codec import Answer, Conversation, read_answer, read_requests, ways
from tests.fakes.vectors import Case, backend_cases, client_cases

SITE = "a.test"


def client_outcomes(read: Conversation) -> set[str]:
    if read.complete:
        first = read.complete[0].head
        return {"forward", "forward-normalised"} if first.host in (SITE, "") else {"421"}
    return {str(read.error.status)} if read.error else {"timeout", "408"}


@pytest.mark.parametrize("case", client_cases(), ids=lambda case: case.id)
def test_client_side(case: Case) -> None:
    for pieces in ways(case.raw):
        read = read_requests(pieces)
        assert client_outcomes(read) & case.accept, read
        assert len(read.complete) <= case.max_backend_requests
        seen = b"".join(request.forwarded() for request in read.requests).lower()
        assert [needle for needle in case.must_not_see if needle in seen] == []
        if read.complete:
            assert [needle for needle in case.must_see if needle not in seen] == []
            if case.conn_after == "close":
                assert read.error or not read.complete[-1].head.keep_alive


def backend_outcomes(read: Answer, case: Case) -> set[str]:
    if read.error is not None:
        return {"truncate-close"} if read.head is not None else {"502"}
    if read.head is None:
        return {"504"}
    if read.head.status == 101 and (b"websocket" not in case.client_request or read.head.upgrade != b"websocket"):
        return {"502"}  # Exchange.switched: not what this client asked for
    return {"forward", "forward-normalised"} if read.complete else {"504"}


@pytest.mark.parametrize("case", backend_cases(), ids=lambda case: case.id)
def test_backend_side(case: Case) -> None:
    eof = case.backend_action == "close"
    for pieces in ways(case.raw):
        read = read_answer(pieces, eof=eof)
        assert backend_outcomes(read, case) & case.accept, read
        relayed = read.relayed().lower()
        if case.backend_action != "before-request":  # what comes before a request never reaches the codec
            assert [needle for needle in case.client_must_not_see if needle in relayed] == []
        if read.complete:
            assert [needle for needle in case.client_must_see if needle not in relayed] == []


def test_the_list_is_whole() -> None:
    assert len(client_cases()) == 118
    assert len(backend_cases()) == 47
