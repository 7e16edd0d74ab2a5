"""A real ACME CA for tests: Pebble, with pebble-challtestsrv as the DNS it asks (Debian package `pebble`).

Both run on free loopback ports with a configuration and a TLS certificate of their own, and are ended by their pids.
Readiness is a port that answers, with a deadline. A test that uses them is skipped where they are not installed.

    with ChallTestSrv(folder) as dns, Pebble(folder, dns=dns.address, http_port=…, tls_port=…) as ca:
        ca.directory        the directory URL (https://127.0.0.1:…/dir)
        ca.ca_bundle        PEM file with which a client trusts that URL
        ca.root()           PEM of the root that issued certificates end in; ca.root(1): of the first alternate
        dns.txt("_acme-challenge.a.test", "value"); dns.a("a.test", "127.0.0.7")

What Pebble validates: http-01 on `http_port` and tls-alpn-01 on `tls_port` of whatever address `dns` gives for a name
(127.0.0.1 and ::1 unless told); for IP identifiers of the address itself. Without `dns` it asks the machine's resolver,
which knows localhost only. ChallTestSrv has validation servers of its own: `dns.http_port`, `dns.tls_port`, filled by
`dns.http01()`, `dns.tls_alpn01()`.

Pebble forgets everything when it ends, and makes a new root: `restart()` is the CA that has lost its accounts.
It has neither renewalInfo nor profiles; tests/fakes/certificate_authority.py has.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import trustme

from tests.system.running import free_port, until

LOOPBACK = "127.0.0.1"


class _Daemon:
    """One program, started when it is made ready, ended by its pid; its output lies in `log`."""

    def __init__(self, program: str, log: Path) -> None:
        found = shutil.which(program)
        if found is None:
            pytest.skip(f"{program} is not installed (Debian package pebble)")
        self._program = found
        self._process: subprocess.Popen[bytes] | None = None
        self.log = log

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _start(self, *options: str, environment: Mapping[str, str] | None = None) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *options], stdout=log, stderr=log, env={**os.environ, **(environment or {})}
            )

    def _is_up(self, port: int, host: str = LOOPBACK) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self._program} has ended:\n{self.output}"
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return True
        return False

    def _await(self, condition: Callable[[], bool]) -> None:
        """Wait until it answers. One that does not is ended: nobody else knows of it yet."""
        try:
            until(condition, f"{self._program} answers")
        except BaseException:
            self.stop()
            raise

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait for that. May be called twice."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(10)
            self._process = None


class ChallTestSrv(_Daemon):
    """pebble-challtestsrv: a DNS server with records to order, and servers that answer challenges.

    `address` is what Pebble and resolvers are given, "127.0.0.1:PORT" (UDP and TCP) unless told; `port` the port alone.
    `ipv4`, `ipv6` are what any name without records of its own resolves to; "" for none.
    """

    def __init__(
        self, folder: Path, *, ipv4: str = LOOPBACK, ipv6: str = "::1", host: str = LOOPBACK, port: int = 0
    ) -> None:
        super().__init__("pebble-challtestsrv", folder / "dns.log")
        self.host, self.port = host, port or free_port()
        self.management_port, self.http_port, self.tls_port = (free_port() for _ in range(3))
        self._defaults = (ipv4, ipv6)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> Self:
        ipv4, ipv6 = self._defaults
        self._start(
            *("-dns01", self.address, "-management", f"{LOOPBACK}:{self.management_port}", "-https01", ""),
            *("-http01", _on_both(self.http_port), "-tlsalpn01", _on_both(self.tls_port)),
            *("-defaultIPv4", ipv4, "-defaultIPv6", ipv6),
        )
        ports = (self.management_port, self.http_port, self.tls_port)
        until(lambda: self._is_up(self.port, self.host) and all(map(self._is_up, ports)), "pebble-challtestsrv answers")
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- DNS: a name's records replace what it had of that kind; no value removes them

    def a(self, host: str, *addresses: str) -> None:
        self._set_or_clear("a", host, addresses=list(addresses))

    def aaaa(self, host: str, *addresses: str) -> None:
        self._set_or_clear("aaaa", host, addresses=list(addresses))

    def cname(self, host: str, target: str = "") -> None:
        self._post(f"{'set' if target else 'clear'}-cname", {"host": _absolute(host), "target": _absolute(target)})

    def txt(self, host: str, value: str) -> None:
        """Add a TXT value; the others of that name stay."""
        self._post("set-txt", {"host": _absolute(host), "value": value})

    def clear_txt(self, host: str) -> None:
        """Remove all TXT values of a name."""
        self._post("clear-txt", {"host": _absolute(host)})

    def caa(self, host: str, *issuers: str) -> None:
        policies = [{"tag": "issue", "value": issuer} for issuer in issuers]
        self._post(f"{'add' if issuers else 'clear'}-caa", {"host": _absolute(host), "policies": policies})

    def servfail(self, host: str, *, on: bool = True) -> None:
        self._post(f"{'set' if on else 'clear'}-servfail", {"host": _absolute(host)})

    def default_addresses(self, ipv4: str = LOOPBACK, ipv6: str = "::1") -> None:
        self._post("set-default-ipv4", {"ip": ipv4})
        self._post("set-default-ipv6", {"ip": ipv6})

    # --- challenges that its own servers answer

    def http01(self, token: str, content: str) -> None:
        self._post("add-http01", {"token": token, "content": content})

    def tls_alpn01(self, host: str, key_authorization: str) -> None:
        self._post("add-tlsalpn01", {"host": host, "content": key_authorization})

    def _set_or_clear(self, kind: str, host: str, addresses: list[str]) -> None:
        self._post(f"clear-{kind}", {"host": _absolute(host)})
        if addresses:
            self._post(f"add-{kind}", {"host": _absolute(host), "addresses": addresses})

    def _post(self, action: str, body: Mapping[str, Any]) -> None:
        url = f"http://{LOOPBACK}:{self.management_port}/{action}"
        request = urllib.request.Request(url, json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200


class Pebble(_Daemon):
    """Pebble: see the options. `start()` again after `stop()` is a new CA at the same URL."""

    def __init__(
        self,
        folder: Path,
        *,
        dns: str = "",
        http_port: int = 5002,
        tls_port: int = 5001,
        bad_nonces: int = 0,
        reuse_authorizations: int = 0,
        eab_keys: Mapping[str, str] | None = None,
        alternate_roots: int = 0,
        chain_length: int = 1,
        always_valid: bool = False,
        validation_sleep: int = 0,
        strict: bool = False,
        validity: int = 90 * 86400,
        blocked: tuple[str, ...] = (),
    ) -> None:
        """`bad_nonces` and `reuse_authorizations` are percentages, `eab_keys` base64url HMAC keys by kid (giving any
        makes EAB required), `chain_length` the number of intermediates, `always_valid` lets every validation succeed
        without looking, `validation_sleep` is at most so many seconds before each, `validity` of certificates is in
        seconds, `blocked` are domains it refuses. All of them are attributes: change them before `start`/`restart`."""
        super().__init__("pebble", folder / "pebble.log")
        self.port, self.management_port = free_port(), free_port()
        self.folder, self.dns, self.http_port, self.tls_port = folder, dns, http_port, tls_port
        self.bad_nonces, self.reuse_authorizations = bad_nonces, reuse_authorizations
        self.eab_keys, self.alternate_roots, self.chain_length = dict(eab_keys or {}), alternate_roots, chain_length
        self.always_valid, self.validation_sleep, self.strict = always_valid, validation_sleep, strict
        self.validity, self.blocked = validity, blocked
        self.ca_bundle = folder / "pebble-https.pem"
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(self.ca_bundle)

    @property
    def directory(self) -> str:
        return f"https://{LOOPBACK}:{self.port}/dir"

    @property
    def orders(self) -> int:
        """How many orders were made, those before a restart included."""
        return self.output.count("Added order ")

    @property
    def accounts(self) -> int:
        """How many accounts were made, those before a restart included."""
        return self.output.count(" accounts in memory")

    def start(self) -> Self:
        options = ["-config", str(self._write_config())]
        options += ["-dnsserver", self.dns] if self.dns else []
        options += ["-strict"] if self.strict else []
        self._start(*options, environment=self._environment())
        self._await(lambda: self._is_up(self.port) and self._is_up(self.management_port))
        return self

    def restart(self) -> Self:
        """Kill it and start it again: accounts, orders and root are gone."""
        self.stop(signal.SIGKILL)
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- the management interface

    def root(self, number: int = 0) -> bytes:
        """Return a root as PEM: 0 the usual one, 1… the alternates."""
        return self._manage(f"/roots/{number}")

    def intermediate(self, number: int = 0) -> bytes:
        return self._manage(f"/intermediates/{number}")

    def certificate_status(self, serial: int) -> dict[str, Any]:
        """Return what Pebble knows of a certificate: "Status" is Valid or Revoked, "Reason" a number."""
        answer: dict[str, Any] = json.loads(self._manage(f"/cert-status-by-serial/{serial:x}"))
        return answer

    def _manage(self, path: str) -> bytes:
        context = ssl.create_default_context(cafile=self.ca_bundle)
        url = f"https://{LOOPBACK}:{self.management_port}{path}"
        with urllib.request.urlopen(url, timeout=10, context=context) as response:
            content: bytes = response.read()
            return content

    def _write_config(self) -> Path:
        own = self._authority.issue_cert(LOOPBACK, "localhost")
        certificate, key = self.folder / "pebble-https-leaf.pem", self.folder / "pebble-https.key"
        own.cert_chain_pems[0].write_to_path(certificate)
        own.private_key_pem.write_to_path(key)
        config = {
            "listenAddress": f"{LOOPBACK}:{self.port}",
            "managementListenAddress": f"{LOOPBACK}:{self.management_port}",
            "certificate": str(certificate),
            "privateKey": str(key),
            "httpPort": self.http_port,
            "tlsPort": self.tls_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": bool(self.eab_keys),
            "externalAccountMACKeys": self.eab_keys,
            "domainBlocklist": list(self.blocked),
            "certificateValidityPeriod": self.validity,
        }
        path = self.folder / "pebble.json"
        path.write_text(json.dumps({"pebble": config}))
        return path

    def _environment(self) -> dict[str, str]:
        values = {
            "PEBBLE_WFE_NONCEREJECT": self.bad_nonces,
            "PEBBLE_AUTHZREUSE": self.reuse_authorizations,
            "PEBBLE_ALTERNATE_ROOTS": self.alternate_roots,
            "PEBBLE_CHAIN_LENGTH": self.chain_length,
            "PEBBLE_VA_ALWAYS_VALID": int(self.always_valid),
            "PEBBLE_VA_NOSLEEP": int(not self.validation_sleep),
            "PEBBLE_VA_SLEEPTIME": self.validation_sleep or 1,
        }
        return {name: str(value) for name, value in values.items()}


def _on_both(port: int) -> str:
    return f"{LOOPBACK}:{port},[::1]:{port}"


def _absolute(host: str) -> str:
    return f"{host.rstrip('.')}." if host else ""
