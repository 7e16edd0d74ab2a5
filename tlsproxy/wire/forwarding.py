"""What the backend is told about the client: the outbound head's fields. Pure.

Strategy: a `Peer` is made once per client connection and holds everything that is the same for all its requests. The
outbound fields are a NEW list; the inbound head is never edited. Hop-by-hop and forwarding fields were set aside by the
codec (`head.special`), so nothing a client says about itself passes unless this module puts it back, and it does that
only for a peer in `trusted_proxies`.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import unquote_to_bytes

from tlsproxy.wire import grammar
from tlsproxy.wire.fields import Field, Fields, Kind, without
from tlsproxy.wire.messages import Framing, ProtocolError, RequestHead

_ID_BYTES: Final = b"-._~+/=:@0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LONGEST_ID: Final = 128
_PREFIX_BYTES: Final = b"/-._~+=:@" + bytes(
    [*range(0x30, 0x3A), *range(0x41, 0x5B), *range(0x61, 0x7B), *range(128, 256)]
)
_BY_LENGTH: Final = Framing.LENGTH  # a global costs a third of looking a member up on its Enum
_CHUNKED: Final = Framing.CHUNKED
_VIA: Final = {10: b"1.0 tlsproxy", 11: b"1.1 tlsproxy", 20: b"2 tlsproxy"}  # the protocol it came by (RFC 9110 7.6.3)
_DEFAULT_PORT: Final = {b"https": b"443", b"http": b"80"}
# The forwarding fields this module writes; a trusted peer's values are merged into them instead of being repeated.
_OURS: Final = frozenset(
    b"x-forwarded-for x-forwarded-proto x-forwarded-host x-forwarded-port x-forwarded-prefix "
    b"x-real-ip x-request-id x-request-start forwarded".split()
)


class Trust:
    """The networks whose forwarding headers are believed. An empty list believes nobody."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(network) for network in networks]

    def __contains__(self, address: str) -> bool:
        if not self._networks:
            return False
        parsed = parse_address(address)
        return parsed is not None and any(parsed in network for network in self._networks)


class Options:
    """What the operator chose for outbound heads: RFC 7239 `Forwarded`, `Via`, the secret that proves who asks."""

    __slots__ = ("forwarded", "secret", "trust", "via")

    def __init__(self, trust: Trust, *, forwarded: bool = False, via: bool = False, secret: bytes = b"") -> None:
        self.trust = trust
        self.forwarded = forwarded
        self.via = via
        self.secret = secret


class Peer:
    """The other end of one client connection, as far as forwarding cares.

    `name` is the host it asked TLS for; it stands in where HTTP/1.0 came without Host, as it does in routing. `vouched`
    are fields that only we may write, with the proof that it was us (proxy/vouching.py).
    """

    __slots__ = ("address", "fixed", "is_trusted", "name", "options", "ports", "scheme", "vouched")

    def __init__(
        self, address: str, scheme: str, options: Options, name: str = "", vouched: Sequence[Field] = ()
    ) -> None:
        self.address = address
        self.name = _well_formed_host(name.encode("latin-1", "replace"), b"")
        self.scheme = scheme.encode()
        self.options = options
        self.is_trusted = address in options.trust
        encoded = address.encode()
        self.fixed: Fields = [
            (b"X-Forwarded-For", encoded),
            (b"X-Real-IP", encoded),
            (b"X-Forwarded-Proto", self.scheme),
        ]
        self.vouched = vouched
        self.ports: Field = (b"X-Forwarded-Port", _DEFAULT_PORT[self.scheme])


class Outbound:
    """What was decided for one request: the head's bytes for an HTTP/1.1 backend, and who the client really is."""

    __slots__ = ("client", "data", "request_id")

    def __init__(self, data: bytes, client: str, request_id: bytes) -> None:
        self.data = data
        self.client = client
        self.request_id = request_id


def outbound_request(
    head: RequestHead,
    peer: Peer,
    target: bytes,
    *,
    request_id: bytes,
    started_ms: int,
    prefix: bytes,
    extra: Sequence[Field] = (),
) -> Outbound:
    """The head for the backend. `request_id` is used unless a trusted peer sent a good one; `prefix` was stripped.

    `extra` are fields of this one request; they replace what the client sent under their names, one without a value by
    nothing.

    The framing field that goes out is the one of `head.framing`, exactly one (security rule 2). The part that is the
    same for all requests with the same fields is kept with the head: a client that repeats itself is served from it.
    """
    client = peer.address
    key: object = (prefix, *(name for name, _ in extra)) if extra else prefix
    if peer.is_trusted:
        fields, client, request_id = _trusted_fields(head, peer, request_id, prefix, extra)
        block = _block(fields)
    elif head.outbound is not None and head.outbound[0] == key:
        block = head.outbound[1]
    else:
        block = _block(outbound_fields(head, peer, prefix, extra))
        head.outbound = (key, block)
    data = b"%b %b HTTP/1.1\r\n%bX-Request-ID: %b\r\nX-Request-Start: t=%d\r\n%b\r\n" % (
        head.method,
        target,
        block,
        request_id,
        started_ms,
        _block([field for field in extra if field[1]]) if extra else b"",
    )
    return Outbound(data, client, request_id)


def outbound_fields(head: RequestHead, peer: Peer, prefix: bytes, extra: Sequence[Field] = ()) -> Fields:
    """The fields for the backend of a peer that is not trusted, without request id, start time and `extra`."""
    authority = head.authority or peer.name
    fields: Fields = [(b"Host", authority), *_passed(head, extra), *peer.fixed, *_vouched(head, peer)]
    fields.append(peer.ports if not head.port else (b"X-Forwarded-Port", head.port))
    fields.append((b"X-Forwarded-Host", authority))
    if prefix:
        fields.append((b"X-Forwarded-Prefix", prefix))
    if peer.options.forwarded:
        fields.append((b"Forwarded", _forwarded_element(peer, head)))
    return _with_framing(fields, head, peer)


def _passed(head: RequestHead, extra: Sequence[Field]) -> Fields:
    """What passes of the client's own fields."""
    return without(head.fields, {name.lower() for name, _ in extra}) if extra else head.fields


def _vouched(head: RequestHead, peer: Peer) -> Sequence[Field]:
    """RFC 9110 9.3.8: the answer to TRACE repeats the request to the client, who must not learn the secret."""
    return () if head.method == b"TRACE" else peer.vouched


def _block(fields: Sequence[Field]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def _with_framing(fields: Fields, head: RequestHead, peer: Peer) -> Fields:
    if peer.options.via:
        fields.append((b"Via", _VIA[head.version]))
    _add_framing(fields, head)
    return fields


def _add_framing(fields: Fields, head: RequestHead) -> None:
    if head.framing is _BY_LENGTH:
        fields.append((b"Content-Length", b"%d" % head.length))
    elif head.framing is _CHUNKED:
        fields.append((b"Transfer-Encoding", b"chunked"))
        fields += [(name, value) for kind, name, value in head.special if kind is Kind.TRAILER]
    if head.expect_continue:
        fields.append((b"Expect", b"100-continue"))
    if head.upgrade:
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    elif head.trailers_accepted:
        fields += [(b"TE", b"trailers"), (b"Connection", b"TE")]  # RFC 9110 10.1.4


def _trusted_fields(
    head: RequestHead, peer: Peer, request_id: bytes, prefix: bytes, extra: Sequence[Field]
) -> tuple[Fields, str, bytes]:
    """Merge what a trusted proxy said with what we see: the fields, the real client's address, the request id."""
    fields: Fields = [(b"Host", head.authority or peer.name), *_passed(head, extra), *_vouched(head, peer)]
    said: dict[bytes, list[bytes]] = {}
    for kind, name, value in head.special:
        if kind is Kind.FORWARDING:
            said.setdefault(name.lower(), []).append(value)
    chain = [part.strip(b" \t") for value in said.get(b"x-forwarded-for", []) for part in value.split(b",")]
    chain = [part for part in chain if part]
    client = _client_of(chain, peer)
    fields.append((b"X-Forwarded-For", b", ".join([*chain, peer.address.encode()])))
    fields.append((b"X-Real-IP", client.encode()))
    scheme = _last(said, b"x-forwarded-proto").lower()
    scheme = scheme if scheme in (b"http", b"https") else peer.scheme
    fields.append((b"X-Forwarded-Proto", scheme))
    host = _well_formed_host(_last(said, b"x-forwarded-host"), head.authority or peer.name)
    fields.append((b"X-Forwarded-Host", host))
    port = _last(said, b"x-forwarded-port")
    fields.append((b"X-Forwarded-Port", port if port and grammar.is_port(port) else head.port or _DEFAULT_PORT[scheme]))
    prefix = _well_formed_prefix(_last(said, b"x-forwarded-prefix")) + prefix
    if prefix:
        fields.append((b"X-Forwarded-Prefix", prefix))
    if peer.options.forwarded:
        fields.append((b"Forwarded", b", ".join([*said.get(b"forwarded", []), _forwarded_element(peer, head)])))
    fields += [(name, value) for name, values in said.items() if name not in _OURS for value in values]
    sent_id = _last(said, b"x-request-id")
    return _with_framing(fields, head, peer), client, sent_id if is_request_id(sent_id) else request_id


def _last(said: dict[bytes, list[bytes]], name: bytes) -> bytes:
    """The nearest hop's word: the last member of the last field."""
    values = said.get(name)
    return values[-1].rpartition(b",")[2].strip(b" \t") if values else b""


def _client_of(chain: list[bytes], peer: Peer) -> str:
    """Walk X-Forwarded-For from the right: the first address that is not one of our proxies is the client."""
    client = peer.address
    for part in reversed(chain):
        address = parse_address(part.decode("latin-1"))
        if address is None:
            return client  # what stands left of garbage is not worth believing
        client = str(address)
        if client not in peer.options.trust:
            return client
    return client


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address as people write it in X-Forwarded-For: plain, `[v6]`, `[v6]:port` or `v4:port`. None if it is none.

    IPv4-mapped IPv6 addresses become IPv4, so that one network in `trusted_proxies` is enough.
    """
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _well_formed_host(value: bytes, otherwise: bytes) -> bytes:
    if not value:
        return otherwise
    try:
        grammar.HOSTS[value]
    except ProtocolError:
        return otherwise
    return value


def _well_formed_prefix(value: bytes) -> bytes:
    """A path's beginning without the last slash; b"" for anything else, in an encoding too.

    Proxies that set this field are few, so what a trusted one says may be its client's. Applications put it before the
    links they write: `//evil.test` would lead away, and a quotation mark end a string in a page.
    """
    prefix = value.rstrip(b"/")
    plain = unquote_to_bytes(prefix)
    if plain[:1] != b"/" or b"//" in plain or plain.translate(None, _PREFIX_BYTES):
        return b""
    return b"" if {b".", b".."} & set(plain.split(b"/")) else prefix


def is_request_id(value: bytes) -> bool:
    """True for an id that may be passed on and logged: 1 to 128 characters of a small alphabet."""
    return 0 < len(value) <= _LONGEST_ID and not value.translate(None, _ID_BYTES)


def _forwarded_element(peer: Peer, head: RequestHead) -> bytes:
    """One element of RFC 7239 4: addresses of IPv6 are bracketed and quoted (section 6)."""
    node = b'"[%b]"' % peer.address.encode() if ":" in peer.address else peer.address.encode()
    return b'for=%b;host="%b";proto=%b' % (node, head.authority or peer.name, peer.scheme)
