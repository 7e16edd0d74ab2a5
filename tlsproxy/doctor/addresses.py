"""The addresses of this machine, as the kernel lists them. Reads /proc; elsewhere nothing is known."""

from __future__ import annotations

import contextlib
import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

Address = IPv4Address | IPv6Address

_TRIE = Path("/proc/net/fib_trie")
_INET6 = Path("/proc/net/if_inet6")
# A leaf ("|-- 10.0.0.5") and below it the lines that say what it is.
_LOCAL = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL")


def own_addresses() -> frozenset[Address]:
    """Return every address of every interface, the loopback's too; nothing where the kernel does not tell."""
    try:
        found: set[Address] = {ip_address(text) for text in _LOCAL.findall(_TRIE.read_text())}
    except OSError:
        found = set()
    with contextlib.suppress(OSError):
        found |= {IPv6Address(bytes.fromhex(line.split()[0])) for line in _INET6.read_text().splitlines()}
    return frozenset(found)


def is_own(address: Address, own: frozenset[Address]) -> bool:
    return address.is_loopback or address in own


def public(own: frozenset[Address], version: int) -> str:
    """Return an address of ours that the world can reach, "" if no interface has one (NAT, containers)."""
    return next((str(each) for each in sorted(own, key=int) if each.version == version and each.is_global), "")
