"""Questions to the DNS: where a name leads, which servers speak for it, and what one of them answers.

Knows: resolvers, CNAMEs, zones, single servers. Does not know: challenges, providers, how long to wait
(propagation.py). Rules: resolvers are asked only where names lead, since they remember what was not there a moment ago;
whether a record is there, the zone's own servers are asked; every question has a deadline, every chain and list an end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.rdatatype
import dns.resolver

from tlsproxy.certs.dns.base import is_host_name
from tlsproxy.errors import TlsproxyError

LONGEST_CHAIN = 8
_MOST_SERVERS = 20
_MOST_ADDRESSES = 4  # of one server; what goes beyond is somebody's joke


class LookupFailed(TlsproxyError):
    """The DNS gave no answer, or one that leads nowhere."""


@dataclass(frozen=True, slots=True)
class Server:
    """One authoritative server of a zone, with all its addresses (none if its name has none)."""

    name: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one address of a server says about the TXT records of a name.

    `problem` is why there are no values ("NXDOMAIN", "no answer within 3 s"), "" if there are. `is_reached` is False
    when nothing came back at all.
    """

    values: tuple[str, ...] = ()
    problem: str = ""
    is_reached: bool = True

    def __str__(self) -> str:
        shown = ", ".join(repr(value[:60]) for value in self.values[:3])
        return self.problem or (f"{shown} and {len(self.values) - 3} more" if len(self.values) > 3 else shown)


class Lookup:
    """Asks resolvers and servers. Without state; may be shared by all orders."""

    def __init__(self, resolvers: Sequence[str] = (), *, timeout: float = 3.0, port: int = 53) -> None:
        """`resolvers` are ADDRESS or ADDRESS:PORT ([v6]:PORT); none means those of the system.

        `timeout` is for one question to one server, in seconds; a resolver gets three times as long, because it has
        to ask others. `port` is that of authoritative servers.
        """
        self._resolvers = [dns.nameserver.Do53Nameserver(*split_address(each)) for each in resolvers]
        self._timeout, self._port = timeout, port

    async def follow(self, name: str) -> str:
        """Return where the CNAMEs of a name end: the name itself if it has none. Raises LookupFailed."""
        chain = [name]
        while target := await self._cname(chain[-1]):
            if target in chain:
                raise LookupFailed(f"{name}: its CNAMEs lead in a circle ({' → '.join([*chain, target])}). Remove one.")
            chain.append(target)
            if len(chain) > LONGEST_CHAIN:
                raise LookupFailed(
                    f"{name}: more than {LONGEST_CHAIN - 1} CNAMEs in a row (up to {target}). "
                    "Let it point to the last one directly."
                )
            if not is_host_name(target):
                raise LookupFailed(f"{chain[-2]}: its CNAME leads to {target[:300]!r}, which is no host name.")
        return chain[-1]

    async def zone_of(self, name: str) -> str:
        """Return the zone that a name lies in: the nearest name above it, or itself, that has NS records."""
        return (await self._zone(name))[0]

    async def servers_of(self, name: str) -> tuple[Server, ...]:
        """Return all authoritative servers of the zone a name lies in, by name. Raises LookupFailed."""
        _, names = await self._zone(name)
        return tuple(await asyncio.gather(*map(self._server, names[:_MOST_SERVERS])))

    async def records(self, name: str, kind: str) -> dns.resolver.Answer | None:
        """Return the records of a kind ("A", "CAA"), CNAMEs followed; None if there are none. Raises LookupFailed."""
        return await self._resolve(name, kind)

    async def ask(self, address: str, name: str) -> Answer:
        """Ask one address for the TXT records of a name, without recursion. Never raises."""
        query = dns.message.make_query(name, dns.rdatatype.TXT)
        query.flags &= ~dns.flags.RD
        try:
            reply, _ = await dns.asyncquery.udp_with_fallback(query, address, timeout=self._timeout, port=self._port)
        except dns.exception.Timeout:
            return Answer(problem=f"no answer within {self._timeout:g} s", is_reached=False)
        except OSError as error:
            return Answer(problem=f"can't be reached ({error.strerror or error})", is_reached=False)
        except (dns.exception.DNSException, EOFError) as error:
            return Answer(problem=f"an answer that is no DNS ({type(error).__name__})")
        return _read(reply)

    async def _cname(self, name: str) -> str:
        found = await self._resolve(name, "CNAME")
        return "" if found is None else _text(found[0].target)

    async def _zone(self, name: str) -> tuple[str, list[str]]:
        """Return the zone's name and its servers' names. A CNAME on the way is no zone: its target's NS are others'."""
        zone = dns.name.from_text(name)
        while zone != dns.name.root:
            found = await self._resolve(_text(zone), "NS")
            if found is not None and found.canonical_name == zone:
                return _text(zone), sorted(_text(each.target) for each in found)
            zone = zone.parent()
        raise LookupFailed(f"{name}: no zone that it lies in was found. Is the domain registered and delegated?")

    async def _server(self, name: str) -> Server:
        found = await asyncio.gather(self._resolve(name, "A"), self._resolve(name, "AAAA"), return_exceptions=True)
        answers = [each for each in found if isinstance(each, dns.resolver.Answer)]
        return Server(name, tuple(rdata.address for answer in answers for rdata in answer)[:_MOST_ADDRESSES])

    async def _resolve(self, name: str, kind: str) -> dns.resolver.Answer | None:
        """Return the answer, or None if there is no such name or record. Raises LookupFailed."""
        try:
            resolver = self._resolver()
            found = await resolver.resolve(dns.name.from_text(name), kind, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN:
            return None
        except dns.resolver.NoResolverConfiguration as error:
            raise LookupFailed(
                "this machine names no DNS resolver (/etc/resolv.conf). Set acme.dns.resolvers."
            ) from error
        except (dns.exception.DNSException, OSError, EOFError) as error:
            raise LookupFailed(
                f"{name}: no resolver answers the question for {kind} ({_reason(error)}). "
                "Look at the servers of this zone, or set acme.dns.resolvers."
            ) from error
        return found if found.rrset is not None else None

    def _resolver(self) -> dns.asyncresolver.Resolver:
        """Return one that reads /etc/resolv.conf now: it changes under a proxy that runs for months."""
        resolver = dns.asyncresolver.Resolver(configure=not self._resolvers)
        if self._resolvers:
            resolver.nameservers = self._resolvers
        resolver.timeout, resolver.lifetime = self._timeout, 3 * self._timeout
        return resolver


def is_in_zone(name: str, zone: str) -> bool:
    return name == zone or name.endswith(f".{zone}")


def split_address(text: str) -> tuple[str, int]:
    """Read HOST, HOST:PORT, v6, [v6] or [v6]:PORT; the port is 53 if there is none."""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        return address, int(port.removeprefix(":") or 53)
    host, _, port = text.partition(":")
    return (text, 53) if ":" in port or not port else (host, int(port))


def _read(reply: dns.message.Message) -> Answer:
    if reply.rcode() != dns.rcode.NOERROR:
        return Answer(problem=dns.rcode.to_text(reply.rcode()))
    records = (rdata for rrset in reply.answer if rrset.rdtype == dns.rdatatype.TXT for rdata in rrset)
    values = tuple(_value(rdata.strings) for rdata in records)
    return Answer(values) if values else Answer(problem="no TXT record")


def _value(strings: Iterable[bytes]) -> str:
    return b"".join(strings).decode("ascii", "replace")


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _reason(error: Exception) -> str:
    """dnspython's own text repeats every attempt; the last is enough."""
    if isinstance(error, dns.exception.Timeout):
        return "no answer in time"
    if isinstance(error, dns.resolver.NoNameservers) and error.kwargs.get("errors"):
        return str(error.kwargs["errors"][-1][3])
    return str(error) or type(error).__name__
