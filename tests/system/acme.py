"""A real proxy whose certificates come from a CA on this machine, for tests that disturb both.

    ports = Ports()                                         # fixed, so that a CA and a second start find them
    with running(folder, ca, site("a.test"), ports=ports) as proxy:
        proxy.wait_for("certificate.obtained", certificate="acme/a.test")
        assert served(proxy, "a.test") == …

Knows: the settings that lead to the CA, the processes, what is served, what lies in the store. Works with Pebble and
with the fake CA. `obtain_earlier` fills a store before the proxy starts, with the certificate of an earlier day.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.certs.ordering import RememberingSolver, TestClock, issuer_of
from tests.fakes.certificate_authority import CertificateAuthority
from tests.fakes.gate import Gate
from tests.system.running import Proxy, free_port, running_proxy, until
from tlsproxy.certs.issuer import AcmeIssuer
from tlsproxy.certs.job import Job
from tlsproxy.certs.login import LogIns
from tlsproxy.certs.quota import QuotaGuard
from tlsproxy.certs.tools import Tools
from tlsproxy.store.base import CertificateStore, open_store
from tlsproxy.store.bundle import Bundle

NOBODY_HOME = "http://127.0.0.1:1"
"""A backend for sites of which only the handshake counts."""


class Authority(Protocol):
    """What a proxy has to know of a CA: CertificateAuthority and Pebble have it."""

    ca_bundle: Path

    @property
    def directory(self) -> str: ...


@dataclass(frozen=True)
class Ports:
    """Where the proxy listens. A CA is told `http` and `https` before there is a proxy."""

    http: int = field(default_factory=free_port)
    https: int = field(default_factory=free_port)


def site(*hosts: str, backend: str = NOBODY_HOME) -> str:
    names = ", ".join(f'"{host}"' for host in hosts)
    return f"""
        [[sites]]
        hosts = [{names}]
        certificate = "acme"
        backends = ["{backend}"]
    """


def acme(ca: Authority, *challenges: str, more: str = "") -> str:
    """Return the settings that lead to this CA, http-01 unless told otherwise."""
    kinds = ", ".join(f'"{kind}"' for kind in challenges or ("http-01",))
    return f"""
        [acme]
        directory = "{ca.directory}"
        ca_bundle = "{ca.ca_bundle}"
        challenges = [{kinds}]
        {more}
    """


@contextlib.contextmanager
def running(
    folder: Path,
    ca: Authority,
    sites: str,
    *,
    ports: Ports,
    challenges: Sequence[str] = (),
    more: str = "",
    workers: int = 1,
    before: Sequence[str] = (),
) -> Iterator[Proxy]:
    """Run a proxy with certificates of this CA; its store is `folder`/store. Its clients trust nobody: see `served`."""
    head = acme(ca, *challenges, more=more)
    http, https = f"127.0.0.1:{ports.http}", f"127.0.0.1:{ports.https}"
    with running_proxy(
        folder, blind(), sites, head=head, workers=workers, http=http, https=https, before=before
    ) as proxy:
        yield proxy


def certifier_of(proxy: Proxy) -> int:
    """Return the pid of the certifier, once there is one."""

    def find() -> int:
        pids = Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()
        return next((int(pid) for pid in pids if _runs(int(pid), b"tlsproxy.runtime.certifier")), 0)

    return until(find, "there is a certifier")


def _runs(pid: int, module: bytes) -> bool:
    with contextlib.suppress(OSError):
        return module in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


# --- what clients see


def blind() -> ssl.SSLContext:
    """Return a client that takes every certificate: the test looks at it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def trusting(root: bytes) -> ssl.SSLContext:
    """Return a client that trusts this root (PEM) and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=root.decode())
    context.set_alpn_protocols(["http/1.1"])
    return context


def served(proxy: Proxy, host: str) -> x509.Certificate | None:
    """Return the certificate that clients of this host get; None while the handshake is refused."""
    with contextlib.suppress(ssl.SSLError), proxy.open(host, blind()) as client:
        return x509.load_der_x509_certificate(client.getpeercert(binary_form=True) or b"")
    return None


def until_served(proxy: Proxy, host: str, ca: CertificateAuthority) -> None:
    """Wait until clients of this host get what the CA has issued last."""
    until(lambda: ca.issued and served(proxy, host) == ca.issued[-1], f"{host} is served with the latest certificate")


# --- what lies in the store


def store_of(folder: Path) -> CertificateStore:
    return open_store(f"file://{folder}/store")


def check_store(directory: Path) -> None:
    """Fail unless every record can be read, every certificate has its key, and nothing is left half written."""
    with contextlib.closing(open_store(f"file://{directory}")) as store:
        for name in store.list():
            bundle = store.get(name)
            assert bundle is not None
            assert _is_pair(bundle), name
        for folder in sorted(path.name for path in directory.iterdir() if path.is_dir()):
            if folder not in ("certificates", "leases", "new"):
                assert all(store.get_record(folder, name) is not None for name in store.list_records(folder)), folder
        with store.exclusive():  # whoever writes next removes what was left
            assert list((directory / "new").iterdir()) == []


def _is_pair(bundle: Bundle) -> bool:
    key = load_pem_private_key(bundle.key_pem, None)
    certificate = x509.load_pem_x509_certificate(bundle.chain_pem)
    return key.public_key() == certificate.public_key()


def obtain_earlier(folder: Path, ca: CertificateAuthority, *hosts: str, age: timedelta) -> Bundle:
    """Fill the store with a real certificate of this CA, obtained so long ago, and the account that obtained it."""
    store, clock = store_of(folder), TestClock(-age)
    tools = Tools.make(store, clock)
    guard = QuotaGuard(tools, "off")
    issuer = AcmeIssuer(tools, [RememberingSolver("http-01")], guard, LogIns(tools, guard.permit_account))
    job = Job(f"acme/{hosts[0]}", hosts, issuer_of(ca))

    async def obtain() -> Bundle:
        bundle = (await issuer.obtain(job, lambda step: None)).bundle
        store.put(job.name, bundle)
        await issuer.forget(job.name)
        return bundle

    usual, ca.now, ca.http_port = (ca.now, ca.http_port), clock, 0
    try:
        return asyncio.run(obtain())
    finally:
        ca.now, ca.http_port = usual
        tools.close()
        store.close()


class StoreGate(Gate):
    """Holds the certifier of a proxy just before it changes a file of its store (held/sitecustomize.py).

    `place` is "os.rename state/acme%2fa.test.json" or "os.remove …"; `command` goes before the proxy's own.
    """

    def __init__(self, place: str) -> None:
        super().__init__(1, place)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.command = (
            "env",
            f"PYTHONPATH={Path(__file__).parent / 'held'}",
            f"HELD_AT={place}",
            f"HELD_PORT={self._server.getsockname()[1]}",
        )
        self._thread = threading.Thread(target=self._hold)
        self._thread.start()

    def close(self) -> None:
        self.open()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _hold(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection:
                    self.pass_through()
