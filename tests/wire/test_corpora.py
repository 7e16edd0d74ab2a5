"""The requests and answers that gunicorn's and llhttp's own suites call valid and invalid.

They are other people's data and stay outside of the project: in the folder `TLSPROXY_CORPORA`, or in
`shared/data/corpora` of a folder above.
What they call invalid, we refuse, or read exactly as h11 does; what they call valid we read as h11 does, or refuse for
a reason that is written down here. llhttp's lenient modes are what we never want, so those cases are left out.

Many of the cases have no Host, an error of its own (RFC 9112 3.2) that would hide what they are about: they get one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.codec import read_answer, read_requests
from tests.fakes.vectors import decode
from tests.wire.test_differential import compare_answer, compare_requests

# Valid elsewhere, refused here.
STRICTER = {
    "a fragment is never sent (RFC 9112 3.2)": {
        "gunicorn_valid 005",
        "gunicorn_valid 009",
        "llhttp request/uri.md#Fragment in URI",
        "llhttp request/transfer-encoding.md#POST with `chunked` as last transfer-encoding",
        "llhttp request/transfer-encoding.md#POST with `chunked` as last transfer-encoding (multiple headers)",
    },
    "a target has no bytes beyond ASCII (RFC 3986 2)": {"gunicorn_valid 027"},
    "user information in a target is an error (RFC 9110 4.2.4)": {
        "gunicorn_valid rfc9112_target_absolute_userinfo_01",
        "llhttp request/uri.md#`host:port` and basic auth",
    },
    "no white space in chunk extensions (RFC 9112 7.1.1 calls it bad)": {"gunicorn_valid 013"},
    "the only transfer coding is chunked (RFC 9112 6.1: 501 for others)": {
        "gunicorn_valid 025",
        "gunicorn_valid 025_line",
        "gunicorn_valid 029",
        "gunicorn_valid 030",
        "gunicorn_valid rfc9112_smuggle_gzip_chunked_01",
        "gunicorn_valid rfc9112_smuggle_te_identity_chunked_01",
        "llhttp response/transfer-encoding.md#`chunked` before other transfer-encoding",
        "llhttp response/transfer-encoding.md#multiple transfer-encoding where chunked is not the last one",
        "llhttp response/transfer-encoding.md#`chunkedchunked` transfer-encoding does not enable chunked enconding",
    },
    "no blank before a colon, no folding, whatever an option of gunicorn's allows": {
        "gunicorn_valid 028",
        "gunicorn_valid compat_obs_fold",
        "gunicorn_valid compat_obs_fold_huge",
    },
    "methods that are not registered are answered 501": {
        "gunicorn_valid 031",
        "gunicorn_valid 031compat",
        "gunicorn_valid 031compat2",
        "llhttp request/method.md#SOURCE request",
    },
    "no tunnels": {
        "gunicorn_valid rfc9112_target_authority_connect_01",
        "gunicorn_valid rfc9112_target_authority_ipv6_01",
    },
    "`*` is for OPTIONS only (RFC 9112 3.2.4)": {"llhttp request/method.md#M-SEARCH request"},
    "only HTTP/1.1 and HTTP/1.0": {
        "llhttp request/method.md#SOURCE request with ICE",
        "llhttp request/method.md#OPTIONS request with RTSP",
        "llhttp request/method.md#ANNOUNCE request with RTSP",
        "llhttp request/sample.md#No HTTP version",
        "llhttp response/sample.md#RTSP response",
        "llhttp response/sample.md#ICE response",
        "llhttp response/sample.md#HTTP version 0.9",
    },
    "an answer does not begin with an empty line (RFC 9112 2.2 allows that to requests)": {
        "llhttp response/connection.md#HTTP 100 first, then 400",
        "llhttp response/sample.md#Response starting with CRLF",
    },
    "the PROXY protocol is read before HTTP, by wire/proxy_protocol.py": {
        "gunicorn_valid pp_01",
        "gunicorn_valid pp_02",
        "gunicorn_valid pp_04",
        "gunicorn_valid pp_05",
    },
}
REFUSED_HERE = {case: reason for reason, cases in STRICTER.items() for case in cases}

# Invalid elsewhere, accepted here; still compared with h11.
LOOSER = {
    "our limits are larger, or set by another option": {
        "gunicorn_invalid 006",
        "gunicorn_invalid 007",
        "gunicorn_invalid 008",
        "gunicorn_invalid 010",
        "gunicorn_invalid 011",
        "gunicorn_invalid 012",
        "gunicorn_invalid 017",
        "gunicorn_invalid limit_header_default_01",
    },
    "a repeated Content-Type is the application's affair": {"gunicorn_invalid 041"},
    "names with an underscore and forwarding fields are not refused, but dropped": {
        "gunicorn_invalid 019",
        "gunicorn_invalid 040",
        "gunicorn_invalid chunked_07",
    },
    "trailer fields that frame or route are not refused, but dropped (RFC 9110 6.5.1)": {
        "gunicorn_invalid rfc9110_trailer_forbidden_cl_01",
        "gunicorn_invalid rfc9110_trailer_forbidden_host_01",
        "gunicorn_invalid rfc9110_trailer_forbidden_te_01",
    },
    "not whole yet: refused when the client closes": {"gunicorn_invalid rfc9112_chunked_missing_final_crlf_01"},
    "bytes behind the last message of a connection are not read at all": {
        "llhttp request/connection.md#No restart when keep-alive is off (1.0)",
        "llhttp response/connection.md#HTTP/1.1 with keep-alive disabled and 204 status",
        "llhttp response/connection.md#HTTP/1.1 with keep-alive disabled, content-length",
    },
    "llhttp pauses where a protocol might change; ours goes on until a 101": {
        "llhttp request/connection.md#Multiple tokens with folding and LWS",
        "llhttp request/connection.md#`upgrade`\n\n### Setting a flag and pausing",
        "llhttp request/connection.md#Emitting part of body and pausing",
        "llhttp request/connection.md#Upgrade GET request",
        "llhttp request/connection.md#Upgrade POST request",
        "llhttp response/connection.md#HTTP 101 response with Upgrade and Content-Length header",
        "llhttp response/connection.md#HTTP 101 response with Upgrade and Transfer-Encoding header",
    },
}
ACCEPTED_HERE = {case: reason for reason, cases in LOOSER.items() for case in cases}


@dataclass(frozen=True)
class Entry:
    id: str
    raw: bytes
    is_answer: bool
    is_valid: bool


def corpora() -> Path | None:
    named = os.environ.get("TLSPROXY_CORPORA")
    above = [folder / "shared" / "data" / "corpora" for folder in Path(__file__).resolve().parents]
    return next((folder for folder in ([Path(named)] if named else above) if folder.is_dir()), None)


def entries() -> Iterator[Entry]:
    folder = corpora()
    for path in sorted(folder.glob("*.json")) if folder else ():
        for case in json.loads(path.read_text())["cases"]:
            kind = case.get("type", "request")
            if "lenient" not in kind and "finish" not in kind:
                yield Entry(
                    f"{path.stem} {case['id']}",
                    decode(case["raw"]),
                    kind == "response",
                    case["expect"] in ("ok", "valid"),
                )


ENTRIES = list(entries())
needs_corpora = pytest.mark.skipif(not ENTRIES, reason="the corpora are not here: set TLSPROXY_CORPORA to their folder")


def with_host(raw: bytes) -> bytes:
    raw = raw.replace(b"Host: 0.0.0.0=5000", b"Host: 0.0.0.0:5000")  # "=" is in no name; gunicorn's data is old
    if re.search(rb"\nhost[ \t]*:", raw, re.IGNORECASE):
        return raw
    return raw.replace(b" HTTP/1.1\r\n", b" HTTP/1.1\r\nHost: a.test\r\n")


def is_accepted(entry: Entry) -> bool:
    """Read it, and compare whatever was accepted of it with h11."""
    if entry.is_answer:
        answer = read_answer([entry.raw])
        compare_answer(entry.raw, b"GET", answer, eof=False)
        return answer.head is not None and answer.error is None
    data = with_host(entry.raw)
    read = read_requests([data])
    compare_requests(data, read)
    return bool(read.requests) and read.error is None


@needs_corpora
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_corpus(entry: Entry) -> None:
    if entry.is_valid:
        assert is_accepted(entry) is (entry.id not in REFUSED_HERE), REFUSED_HERE.get(entry.id)
    else:
        assert is_accepted(entry) is (entry.id in ACCEPTED_HERE), ACCEPTED_HERE.get(entry.id)


@needs_corpora
def test_every_deviation_is_one() -> None:
    assert set(REFUSED_HERE) <= {entry.id for entry in ENTRIES if entry.is_valid}
    assert set(ACCEPTED_HERE) <= {entry.id for entry in ENTRIES if not entry.is_valid}
