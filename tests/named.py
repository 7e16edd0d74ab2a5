"""Real DNS servers for tests: BIND's `named` on a loopback address, with zones that take signed updates.

Each runs in the foreground with a configuration of its own, without controls, and is ended by its pid. Readiness is its
log, with a deadline. Tests that use it are skipped where it is not installed, or may not read a test's files.

    with Named(folder / "one", port=free_port(), zones=[Primary("example.test", key=KEY)]) as first:
        first.resolver                 "127.0.0.1:PORT", for acme.dns.resolvers
        first.txt("_acme-challenge.example.test")
        first.update("example.test", "www 60 CNAME elsewhere.test.")

A zone's servers are ns1 (127.0.0.1) and, with `servers=2`, ns2 (::1), which is a Named with a Secondary. Primaries
notify nobody: a secondary lags until `second.notify("example.test")`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rcode
import dns.tsig
import dns.update
import pytest

from tests.system.running import until

LOOPBACK = "127.0.0.1"
SECOND = "::1"  # named listens only on addresses that an interface has


@dataclass(frozen=True, slots=True)
class TsigKey:
    """A key as both sides have it; the secret is base64."""

    name: str = "proxy-key"
    secret: str = "c2VjcmV0LW9mLXRoZS10c2lnLWtleS1vZi10ZXN0cw=="
    algorithm: str = "hmac-sha256"

    def statement(self) -> str:
        return f'key "{self.name}" {{ algorithm {self.algorithm}; secret "{self.secret}"; }};'


KEY = TsigKey()


@dataclass(frozen=True, slots=True)
class Primary:
    """A zone that this server is the source of; `records` are lines of a zone file, names relative to the zone.

    `key` may change everything in it, or only TXT records if `txt_only`; without a key nobody may.
    """

    name: str
    records: Sequence[str] = ()
    key: TsigKey | None = KEY
    servers: int = 1
    txt_only: bool = False

    def statement(self, port: int) -> str:
        return f'zone "{self.name}" {{ type primary; file "{self.name}.zone"; {self._policy()} }};'

    def _policy(self) -> str:
        if self.key is None:
            return ""
        if self.txt_only:
            return f'update-policy {{ grant "{self.key.name}" zonesub TXT; }};'
        return f'allow-update {{ key "{self.key.name}"; }};'

    def content(self) -> str:
        hosts = {"ns1": f"A {LOOPBACK}", "ns2": f"AAAA {SECOND}"}
        names = list(hosts)[: self.servers]
        lines = ["$TTL 60", "@ SOA ns1 hostmaster 1 3600 600 86400 5", *(f"@ NS {name}" for name in names)]
        return "\n".join([*lines, *(f"{name} {hosts[name]}" for name in names), *self.records, ""])


@dataclass(frozen=True, slots=True)
class Secondary:
    """A copy of a zone, fetched from the primary on the first loopback address and the same port."""

    name: str

    def statement(self, port: int) -> str:
        source = f"primaries {{ {LOOPBACK} port {port}; }};"
        return f'zone "{self.name}" {{ type secondary; file "{self.name}.copy"; {source} allow-notify {{ any; }}; }};'


def skip_without(address: str) -> None:
    """Skip where the loopback has no such address: containers often have no IPv6."""
    try:
        with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET):
            pass
    except OSError as error:
        pytest.skip(f"this machine has no address {address} ({error.strerror})")


class Named:
    """One server.

    `address` and `port` are where it listens, with UDP and TCP; `recursor_of` makes it a resolver that asks the server
    at (address, port) and remembers, also what was not there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        address: str = LOOPBACK,
        zones: Sequence[Primary | Secondary] = (),
        keys: Sequence[TsigKey] = (KEY,),
        recursor_of: tuple[str, int] | None = None,
    ) -> None:
        self.folder, self.address, self.port = folder, address, port
        self._zones, self._keys, self._source = tuple(zones), tuple(keys), recursor_of
        self._log = folder / "named.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def resolver(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> Self:
        program = shutil.which("named", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            pytest.skip("named is not installed (Debian package bind9)")
        skip_without(self.address)
        self._write_files()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, "-g", "-n", "1", "-c", str(self.folder / "named.conf")], stdout=log, stderr=log
            )
        try:
            until(self._is_running, "named is running")
            for zone in self._zones:
                until(lambda zone=zone: self._has(zone.name), f"named has {zone.name}")  # type: ignore[misc]
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it and wait for that. May be called twice."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- what a test sees and does

    def ask(self, name: str, kind: str) -> dns.message.Message:
        return self._tcp(dns.message.make_query(name, kind))

    def txt(self, name: str) -> set[str]:
        """Return the TXT values of a name itself, as this server shows them."""
        absolute = dns.name.from_text(name)
        found = [rrset for rrset in self.ask(name, "TXT").answer if rrset.name == absolute]
        return {b"".join(rdata.strings).decode() for rrset in found for rdata in rrset}

    def update(self, zone: str, *lines: str, key: TsigKey = KEY) -> None:
        """Add records to a primary zone: "NAME TTL TYPE DATA", names relative to the zone."""
        update = dns.update.UpdateMessage(zone)
        update.use_tsig(dns.tsig.Key(key.name, key.secret, key.algorithm))
        for line in lines:
            name, ttl, kind, text = line.split(maxsplit=3)
            update.add(name, int(ttl), kind, text)
        reply = self._tcp(update)
        assert reply.rcode() == dns.rcode.NOERROR, reply

    def notify(self, zone: str) -> None:
        """Tell this secondary that the zone has changed: it fetches it."""
        message = dns.message.make_query(zone, "SOA", flags=dns.flags.AA)
        message.set_opcode(dns.opcode.NOTIFY)
        reply = dns.query.udp(message, self.address, timeout=5, port=self.port)
        assert reply.rcode() == dns.rcode.NOERROR, reply

    def _tcp(self, message: dns.message.Message) -> dns.message.Message:
        return dns.query.tcp(message, self.address, timeout=5, port=self.port)

    # --- how it is run

    def _is_running(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None and "permission denied" in self.log:
            pytest.skip("named may not read the files of a test here (AppArmor?)")
        assert self._process.poll() is None, f"named has ended:\n{self.log}"
        return "all zones loaded" in self.log and " running\n" in self.log

    def _has(self, zone: str) -> bool:
        reply = self.ask(zone, "SOA")
        return reply.rcode() == dns.rcode.NOERROR and bool(reply.answer)

    def _write_files(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for zone in self._zones:
            if isinstance(zone, Primary):
                (self.folder / f"{zone.name}.zone").write_text(zone.content())
        parts = [self._options(), "controls {};", *(key.statement() for key in self._keys)]
        parts += [zone.statement(self.port) for zone in self._zones]
        (self.folder / "named.conf").write_text("\n".join([*parts, ""]))

    def _options(self) -> str:
        recursion = "recursion no;"
        if self._source is not None:
            address, port = self._source
            recursion = f"recursion yes; forward only; forwarders {{ {address} port {port}; }}; empty-zones-enable no;"
        v4, v6 = ("none", self.address) if ":" in self.address else (self.address, "none")
        return (
            f'options {{ directory "{self.folder}"; pid-file none; session-keyfile none; '
            f"listen-on port {self.port} {{ {v4}; }}; listen-on-v6 port {self.port} {{ {v6}; }}; "
            f"allow-query {{ any; }}; allow-transfer {{ any; }}; notify no; dnssec-validation no; {recursion} }};"
        )
