from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar

import pytest

from tests.fakes.codec import read_requests
from tests.fakes.refused import HOST, request
from tlsproxy.wire.fields import Fields
from tlsproxy.wire.forwarding import (
    Options,
    Peer,
    Trust,
    is_request_id,
    outbound_fields,
    outbound_request,
    parse_address,
)
from tlsproxy.wire.messages import RequestHead

NOBODY = Options(Trust([]))
PROXIES = Options(Trust(["10.0.0.0/8", "2001:db8::/32"]))


@dataclass
class Sent:
    """An outbound head, taken apart."""

    start: bytes
    fields: Fields
    client: str
    request_id: bytes


def outbound(lines: bytes = b"", peer: Peer | None = None, *, prefix: bytes = b"", raw: bytes = b"") -> Sent:
    read = read_requests([raw or request(HOST + lines)])
    assert read.error is None
    return send(read.complete[0].head, peer or Peer("198.51.100.7", "https", NOBODY), prefix)


def send(head: RequestHead, peer: Peer, prefix: bytes = b"") -> Sent:
    made = outbound_request(head, peer, head.target, request_id=b"made", started_ms=5, prefix=prefix)
    assert made.data.endswith(b"\r\n\r\n")
    start, *lines = made.data[:-4].split(b"\r\n")
    fields = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
    return Sent(start, fields, made.client, made.request_id)


def trusted(lines: bytes, options: Options = PROXIES) -> Sent:
    return outbound(lines, Peer("10.0.0.1", "https", options))


def get(fields: Fields, name: str) -> bytes | None:
    """The value of a field; it must not come twice."""
    values = [value for key, value in fields if key.lower() == name.encode()]
    assert len(values) <= 1, values
    return values[0] if values else None


def test_what_a_backend_is_told() -> None:
    sent = outbound(b"Accept: */*\r\n", prefix=b"/api")
    assert sent.start == b"GET /x HTTP/1.1"
    assert sent.fields == [
        (b"Host", b"a.test"),
        (b"Accept", b"*/*"),
        (b"X-Forwarded-For", b"198.51.100.7"),
        (b"X-Real-IP", b"198.51.100.7"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Port", b"443"),
        (b"X-Forwarded-Host", b"a.test"),
        (b"X-Forwarded-Prefix", b"/api"),
        (b"X-Request-ID", b"made"),
        (b"X-Request-Start", b"t=5"),
    ]
    assert (sent.client, sent.request_id) == ("198.51.100.7", b"made")


LIES = [
    b"X-Forwarded-For: 6.6.6.6",
    b"X-FORWARDED-FOR: 6.6.6.6",
    b"x-forwarded-for: 6.6.6.6",
    b"X_Forwarded_For: 6.6.6.6",
    b"X-Forwarded_For: 6.6.6.6",
    b"X.Forwarded.For: 6.6.6.6",
    b"x-forwarded.for: 6.6.6.6",
    b"X-Forwarded-By: 6.6.6.6",
    b"X-Forwarded-Server: 6.6.6.6",
    b"X-Forwarded-Host: 6.6.6.6",
    b"X-Forwarded-Prefix: /6.6.6.6",
    b"X-Forwarded-Proto: 6.6.6.6",
    b"X-Forwarded-Port: 6.6.6.6",
    b"X-Forwarded-Ssl: 6.6.6.6",
    b"X-Real-IP: 6.6.6.6",
    b"X_Real_IP: 6.6.6.6",
    b"X.Real.IP: 6.6.6.6",
    b'Forwarded: for="6.6.6.6"',
    b"Forwarded: by=6.6.6.6;for=6.6.6.6",
    b"X-Request-ID: 6.6.6.6",
    b"X-Request-Start: t=6.6.6.6",
    b"Proxy: http://6.6.6.6/",
    b"Client-Cert: :6.6.6.6:",
    b"Client-Cert-Chain: :6.6.6.6:",
    b"Proxy-Authorization: 6.6.6.6",
    b"Proxy-Connection: 6.6.6.6",
    b"Keep-Alive: 6.6.6.6",
    b"TE: 6.6.6.6",
    b"Upgrade: 6.6.6.6",
    b"Trailer: 6.6.6.6",
    b"Transfer_Encoding: 6.6.6.6",
    b"Content_Length: 6666",
    b"Remote_Addr: 6.6.6.6",
]


@pytest.mark.parametrize("line", LIES, ids=lambda line: line.decode())
def test_nothing_a_client_says_about_itself_passes(line: bytes) -> None:
    sent = outbound(line + b"\r\n" + line + b"\r\n")
    assert b"6.6" not in b"".join(name + value for name, value in sent.fields)
    assert get(sent.fields, "x-forwarded-for") == b"198.51.100.7"


@pytest.mark.parametrize("lie", [b"x-forwarded-for", b"X-Forwarded-Proto, x-real-ip, close", b"host, content-length"])
def test_connection_takes_nothing_of_ours_away(lie: bytes) -> None:
    sent = outbound(b"Connection: " + lie + b"\r\n")
    assert get(sent.fields, "host") == b"a.test"
    assert get(sent.fields, "x-forwarded-for") == b"198.51.100.7"
    assert get(sent.fields, "x-forwarded-proto") == b"https"
    assert get(sent.fields, "connection") is None


def test_the_port_is_the_one_that_was_asked_for() -> None:
    sent = outbound(raw=request(b"Host: a.test:8443\r\n"))
    assert get(sent.fields, "x-forwarded-port") == b"8443"
    assert get(sent.fields, "x-forwarded-host") == b"a.test:8443"
    assert get(outbound(peer=Peer("198.51.100.7", "http", NOBODY)).fields, "x-forwarded-port") == b"80"


def test_http_1_0_without_host_gets_the_name_of_the_handshake() -> None:
    old = request(b"", line=b"GET / HTTP/1.0")
    sent = outbound(raw=old, peer=Peer("198.51.100.7", "https", Options(Trust([]), forwarded=True), "a.test"))
    assert get(sent.fields, "host") == b"a.test"
    assert get(sent.fields, "x-forwarded-host") == b"a.test"
    assert get(sent.fields, "forwarded") == b'for=198.51.100.7;host="a.test";proto=https'
    odd = outbound(raw=old, peer=Peer("198.51.100.7", "https", NOBODY, "a\r\nb"))
    assert get(odd.fields, "host") == b""


def test_a_client_that_repeats_itself_is_told_of_the_same_way() -> None:
    """What was made of a head is kept for the next one with the same fields; nothing else may leak into that one."""
    lines = HOST + b"Content-Length: 0\r\nX-A: b\r\n"
    starts = [b"POST /x HTTP/1.1", b"POST /y HTTP/1.1", b"PUT /y HTTP/1.1", b"POST http://b.test:8/ HTTP/1.1"]
    peer = Peer("198.51.100.7", "https", NOBODY)
    for prefix in (b"", b"/api", b""):
        read = read_requests([b"".join(request(lines, line=start) for start in [*starts, *starts])])
        together = [send(each.head, peer, prefix) for each in read.complete]
        apart = [outbound(raw=request(lines, line=start), peer=peer, prefix=prefix) for start in starts]
        assert together == [*apart, *apart]
    head = read_requests([request(lines)]).complete[0].head
    for prefix in (b"", b"/api", b"/v2", b""):
        assert get(send(head, peer, prefix).fields, "x-forwarded-prefix") == (prefix or None)


# --- a proxy that is trusted


@pytest.mark.parametrize(
    ("lines", "client", "chain"),
    [
        (b"", "10.0.0.1", b"10.0.0.1"),
        (b"X-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9", b"203.0.113.9, 10.0.0.1"),
        (
            b"X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.9.9.9\r\n",
            "203.0.113.9",
            b"6.6.6.6, 203.0.113.9, 10.9.9.9, 10.0.0.1",
        ),
        (
            b"X-Forwarded-For: 6.6.6.6\r\nx-forwarded-for: 203.0.113.9\r\n",
            "203.0.113.9",
            b"6.6.6.6, 203.0.113.9, 10.0.0.1",
        ),
        (b"X-Forwarded-For: 203.0.113.9:5000\r\n", "203.0.113.9", b"203.0.113.9:5000, 10.0.0.1"),
        (b"X-Forwarded-For: [2001:db9::1]:5000\r\n", "2001:db9::1", b"[2001:db9::1]:5000, 10.0.0.1"),
        (
            b"X-Forwarded-For: 203.0.113.9, unknown, 10.9.9.9\r\n",
            "10.9.9.9",
            b"203.0.113.9, unknown, 10.9.9.9, 10.0.0.1",
        ),
        (b"X-Forwarded-For: 10.1.1.1, 10.9.9.9\r\n", "10.1.1.1", b"10.1.1.1, 10.9.9.9, 10.0.0.1"),
        (b"X-Forwarded-For: ::ffff:10.9.9.9\r\n", "10.9.9.9", b"::ffff:10.9.9.9, 10.0.0.1"),
        (b"X-Forwarded-For: , ,\r\n", "10.0.0.1", b"10.0.0.1"),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_not_ours(lines: bytes, client: str, chain: bytes) -> None:
    sent = trusted(lines)
    assert sent.client == client
    assert get(sent.fields, "x-real-ip") == client.encode()
    assert get(sent.fields, "x-forwarded-for") == chain


def test_a_trusted_proxy_is_believed() -> None:
    sent = trusted(
        b"X-Forwarded-Proto: http\r\nX-Forwarded-Host: b.test:81\r\nX-Forwarded-Port: 81\r\n"
        b"X-Forwarded-Prefix: /outer/\r\n"
        b"X-Request-ID: abc-1\r\nX-Forwarded-Custom: yes\r\n"
    )
    assert get(sent.fields, "x-forwarded-proto") == b"http"
    assert get(sent.fields, "x-forwarded-host") == b"b.test:81"
    assert get(sent.fields, "x-forwarded-port") == b"81"
    assert get(sent.fields, "x-forwarded-prefix") == b"/outer"
    assert get(sent.fields, "x-forwarded-custom") == b"yes"
    assert get(sent.fields, "x-request-id") == b"abc-1"
    assert sent.request_id == b"abc-1"


def test_but_not_whatever_it_says() -> None:
    sent = trusted(
        b"X-Forwarded-Proto: javascript\r\nX-Forwarded-Host: b test\r\nX-Forwarded-Port: 99999999\r\n"
        b"X-Forwarded-Prefix: x\r\n"
        b"X-Request-ID: a b\r\nX_Forwarded_For: 6.6.6.6\r\nProxy: 6.6.6.6\r\n"
    )
    assert get(sent.fields, "x-forwarded-proto") == b"https"
    assert get(sent.fields, "x-forwarded-host") == b"a.test"
    assert get(sent.fields, "x-forwarded-port") == b"443"
    assert get(sent.fields, "x-forwarded-prefix") is None
    assert sent.request_id == b"made"
    assert b"6.6.6.6" not in b"".join(value for _, value in sent.fields)


@pytest.mark.parametrize(
    ("said", "passed"),
    [
        (b"/gr%C3%BCn/v1.2/", b"/gr%C3%BCn/v1.2"),
        (b"/", None),
        (b"//evil.test", None),
        (b"/%2Fevil.test", None),
        (b"/a/../b", None),
        (b"/a/%2e%2E", None),
        (b"/a\\evil.test", None),
        (b"/';alert(1)//", None),
        (b"/%27;alert(1)", None),
        (b"/%3Cscript%3E", None),
        (b"/a%0D%0Ab", None),
        (b"/a?b", None),
    ],
)
def test_a_prefix_leads_nowhere_else_and_ends_no_string(said: bytes, passed: bytes | None) -> None:
    assert get(trusted(b"X-Forwarded-Prefix: %b\r\n" % said).fields, "x-forwarded-prefix") == passed


def test_the_nearest_hop_counts() -> None:
    sent = trusted(
        b"X-Forwarded-Proto: http, https\r\nX-Forwarded-Host: b.test\r\nX-Forwarded-Host: c.test, d.test\r\n"
    )
    assert get(sent.fields, "x-forwarded-proto") == b"https"
    assert get(sent.fields, "x-forwarded-host") == b"d.test"


def test_forwarded_and_via_when_configured() -> None:
    options = Options(Trust(["10.0.0.0/8"]), forwarded=True, via=True)
    sent = trusted(b"Forwarded: for=203.0.113.9\r\nVia: 1.1 x\r\n", options)
    assert sent.client == "10.0.0.1"
    assert get(sent.fields, "forwarded") == b'for=203.0.113.9, for=10.0.0.1;host="a.test";proto=https'
    assert [value for name, value in sent.fields if name == b"Via"] == [b"1.1 x", b"1.1 tlsproxy"]
    six = outbound(b"Forwarded: for=6.6.6.6\r\n", Peer("2001:db8::1", "https", options))
    assert get(six.fields, "forwarded") == b'for="[2001:db8::1]";host="a.test";proto=https'
    assert get(trusted(b"Forwarded: for=203.0.113.9\r\n").fields, "forwarded") is None


@pytest.mark.parametrize(
    ("networks", "address", "believed"),
    [
        ([], "10.0.0.1", False),
        (["10.0.0.0/8"], "10.0.0.1", True),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["10.0.0.0/8"], "2001:db8::1", False),
        (["2001:db8::/32"], "2001:db8::1", True),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["0.0.0.0/0"], "unix", False),
    ],
)
def test_trust(networks: list[str], address: str, believed: bool) -> None:
    assert (address in Trust(networks)) is believed


@pytest.mark.parametrize(
    "text",
    ["", "unknown", "_hidden", "1.2.3", "01.2.3.4", "1.2.3.4.5", "1.2.3.\xb2", "[::1", "::1]", "a:b", "256.1.1.1"],
)
def test_what_is_no_address(text: str) -> None:
    assert parse_address(text) is None or text == "[::1"


def test_addresses() -> None:
    assert parse_address("1.2.3.4:80") == ip_address("1.2.3.4")
    assert parse_address("[::1]:80") == ip_address("::1")
    assert parse_address("::ffff:1.2.3.4") == ip_address("1.2.3.4")


@pytest.mark.parametrize("value", [b"", b"a" * 129, b"a b", b'a"', b"a\x00", b"\xe9", b"a,b", b"<x>"])
def test_request_ids_that_are_not_passed_on(value: bytes) -> None:
    assert not is_request_id(value)


def test_request_ids() -> None:
    assert is_request_id(b"a" * 128)
    assert is_request_id(b"0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331")


@pytest.mark.parametrize(("version", "via"), [(10, b"1.0 tlsproxy"), (11, b"1.1 tlsproxy"), (20, b"2 tlsproxy")])
def test_via_names_the_protocol_the_request_came_by(version: int, via: bytes) -> None:
    """RFC 9110 7.6.3."""
    head = RequestHead(b"GET", b"/", version)
    fields = outbound_fields(head, Peer("192.0.2.1", "https", Options(Trust([]), via=True)), b"")
    assert (b"Via", via) in fields


class TestExtra:
    """Fields of one request, as a trace's: they replace the client's, and are not remembered with its head."""

    EXTRA: ClassVar[Fields] = [(b"traceparent", b"00-new-01")]

    @pytest.mark.parametrize("address", ["198.51.100.7", "10.0.0.1"], ids=["client", "trusted proxy"])
    def test_they_replace_what_the_client_says(self, address: str) -> None:
        head = read_requests([request(HOST + b"TraceParent: 00-old-00\r\nX-Own: 1\r\n")]).complete[0].head
        peer = Peer(address, "https", PROXIES)
        for extra in (self.EXTRA, [], [(b"traceparent", b"00-third-01")]):
            sent = outbound_request(head, peer, b"/", request_id=b"i", started_ms=5, prefix=b"", extra=extra)
            lines = sent.data[:-4].split(b"\r\n")[1:]
            expected = [b"traceparent: " + value for _, value in extra] or [b"TraceParent: 00-old-00"]
            assert [line for line in lines if line.lower().startswith(b"traceparent")] == expected
            assert b"X-Own: 1" in lines

    def test_what_is_vouched_for_reaches_the_backend_but_for_trace(self) -> None:
        vouched = [(b"X-Tlsproxy-Secret", b"s")]
        for address, method, expected in (
            ("198.51.100.7", b"GET", b"s"),
            ("10.0.0.1", b"GET", b"s"),
            ("198.51.100.7", b"TRACE", None),
            ("10.0.0.1", b"TRACE", None),
        ):
            raw = request(HOST + b"X-Tlsproxy-Secret: forged\r\n").replace(b"GET", method, 1)
            head = read_requests([raw]).complete[0].head
            sent = send(head, Peer(address, "https", PROXIES, vouched=vouched))
            assert get(sent.fields, "x-tlsproxy-secret") == expected
