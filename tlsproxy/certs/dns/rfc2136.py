"""Make TXT records by dynamic update (RFC 2136), signed with a TSIG key (RFC 8945): BIND, Knot, PowerDNS, Windows DNS.

Knows: the update, and what each refusal means for the configuration. Does not know: challenges, other records.
Rules: over TCP, since an update must not be sent twice by accident; one value is added or removed, never a whole set;
the zone is the one configured, or the one that the server itself names.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import dns.exception
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.tsig
import dns.update

from tlsproxy.certs.dns.base import TTL, DnsProviderError
from tlsproxy.certs.dns.lookup import is_in_zone

_ALGORITHMS = {
    "hmac-sha256": dns.tsig.HMAC_SHA256,
    "hmac-sha384": dns.tsig.HMAC_SHA384,
    "hmac-sha512": dns.tsig.HMAC_SHA512,
    "hmac-sha224": dns.tsig.HMAC_SHA224,
    "hmac-sha1": dns.tsig.HMAC_SHA1,
    "hmac-md5": dns.tsig.HMAC_MD5,
}
_REFUSALS = {
    dns.rcode.REFUSED: "it does not let us change this record. Allow it to this key (update-policy, allow-update).",
    dns.rcode.NOTAUTH: "it is not authoritative for the zone. Name its primary server and its zone.",
    dns.rcode.NOTZONE: "the record does not lie in the zone. Correct acme.dns.rfc2136.zone.",
    dns.rcode.SERVFAIL: "it could not do it. Look into its log; often it may not write its journal.",
    dns.rcode.FORMERR: "it does not understand updates.",
    dns.rcode.NOTIMP: "it does not take updates. Name the zone's primary server.",
}
_KEY_ERRORS: dict[type[Exception], str] = {
    dns.tsig.PeerBadKey: "it does not know the TSIG key. Compare name and algorithm of the key with its configuration.",
    dns.tsig.PeerBadSignature: "the signature is wrong (BADSIG). Compare the secret of the key with its configuration.",
    dns.tsig.PeerBadTime: "its clock and ours differ too much (BADTIME). Set the clocks of both machines.",
    dns.tsig.PeerBadTruncation: "it wants a longer signature (BADTRUNC). Give a key_algorithm that it takes.",
    dns.tsig.BadSignature: "its answer carries a wrong signature. Is there somebody between us and the server?",
    dns.tsig.BadTime: "its answer is signed at another time than ours. Set the clocks of both machines.",
}


class Rfc2136Provider:
    """Sends updates to one server."""

    def __init__(
        self,
        server: str,
        *,
        port: int = 53,
        key_name: str = "",
        key_secret: str = "",
        key_algorithm: str = "hmac-sha256",
        zone: str = "",
        timeout: float = 10.0,
    ) -> None:
        """`server` is an address or a name. `key_secret` is base64; without `key_name` nothing is signed.

        `timeout` is in seconds, for one update.
        """
        self._server, self._port, self._zone, self._timeout = server, port, zone.rstrip("."), timeout
        self._where = f"the DNS server {server} (port {port})"
        self._key = (key_name, key_secret, key_algorithm)

    def create(self, name: str, value: str) -> None:
        update = self._update(name)
        update.add(dns.name.from_text(name), TTL, "TXT", f'"{value}"')
        self._send(update, name)

    def delete(self, name: str, value: str) -> None:
        update = self._update(name)
        update.delete(dns.name.from_text(name), "TXT", f'"{value}"')
        self._send(update, name)

    def _update(self, name: str) -> dns.update.UpdateMessage:
        zone = self._zone or self._find_zone(name)
        if not is_in_zone(name, zone):
            raise DnsProviderError(f"{name} does not lie in the zone {zone}. Correct acme.dns.rfc2136.zone.")
        update = dns.update.UpdateMessage(zone)
        self._sign(update)
        return update

    def _find_zone(self, name: str) -> str:
        """Ask the server itself: whatever the name, its SOA comes as the answer or beside a negative one (RFC 2308)."""
        query = dns.message.make_query(name, dns.rdatatype.SOA)
        self._sign(query)
        reply = self._send(query, name)
        for rrset in (*reply.answer, *reply.authority):
            if rrset.rdtype == dns.rdatatype.SOA:
                return rrset.name.to_text(omit_final_dot=True).lower()
        raise DnsProviderError(
            f"{self._where} knows no zone of {name}. Name the zone's primary server, or set acme.dns.rfc2136.zone."
        )

    def _sign(self, message: dns.message.Message) -> None:
        name, secret, algorithm = self._key
        if name:
            message.use_tsig(_key(name, secret, algorithm))

    def _send(self, message: dns.message.Message, name: str) -> dns.message.Message:
        with self._translated(name):
            address = socket.getaddrinfo(self._server, self._port, type=socket.SOCK_STREAM)[0][4][0]
            reply = dns.query.tcp(message, str(address), timeout=self._timeout, port=self._port)
        if reply.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise self._refusal(
                name, dns.rcode.to_text(reply.rcode()), _REFUSALS.get(reply.rcode(), "Look into its log.")
            )
        return reply

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except tuple(_KEY_ERRORS) as error:
            raise self._refusal(name, type(error).__name__, _KEY_ERRORS[type(error)]) from error
        except dns.exception.Timeout as error:
            raise self._unreachable(name, f"no answer within {self._timeout:g} s") from error
        except (OSError, EOFError) as error:
            raise self._unreachable(name, getattr(error, "strerror", None) or "it closed the connection") from error
        except dns.exception.DNSException as error:
            raise self._unreachable(name, f"{type(error).__name__}: {error}") from error

    def _refusal(self, name: str, word: str, why: str) -> DnsProviderError:
        return DnsProviderError(f"{self._where} refuses {name} ({word}): {why}")

    def _unreachable(self, name: str, why: str) -> DnsProviderError:
        return DnsProviderError(
            f"{self._where} can't be asked for {name} ({why}). "
            "Correct acme.dns.rfc2136.server, or open its TCP port for this machine."
        )

    def __repr__(self) -> str:
        return f"<rfc2136 {self._server} port {self._port}>"


def _key(name: str, secret: str, algorithm: str) -> dns.tsig.Key:
    try:
        # Strictly: dnspython skips what is not base64, and the mistake would come back as a bad signature.
        return dns.tsig.Key(name, base64.b64decode(secret, validate=True), _ALGORITHMS[algorithm])
    except (ValueError, KeyError, dns.exception.DNSException):
        # Without the cause: its text may hold the secret.
        raise DnsProviderError(
            f"the TSIG key {name!r} can't be used. Its secret is base64, as `tsig-keygen` prints it; "
            f"its algorithm one of {', '.join(_ALGORITHMS)}."
        ) from None
