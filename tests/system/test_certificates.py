"""Certificates as clients see them: which one is served for which name, and that a new one costs no connection."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.system.conftest import StartProxy
from tests.system.running import PATIENCE, Proxy, client_context, put, running_proxy, until, write_pair

pytestmark = pytest.mark.system


def site(certificate: str, backend: str, host: str = "localhost") -> str:
    return f"""
        [[sites]]
        hosts = ["{host}"]
        certificate = {certificate}
        backends = ["{backend}"]
    """


def der(client: ssl.SSLSocket) -> bytes:
    return client.getpeercert(binary_form=True) or b""


def served(proxy: Proxy, host: str = "localhost", context: ssl.SSLContext | None = None) -> x509.Certificate:
    """Return the certificate that a new connection gets."""
    with proxy.open(host, context) as client:
        return x509.load_der_x509_certificate(der(client))


def on_disk(proxy: Proxy, stem: str = "site") -> int:
    """Return the serial number of the certificate in a file."""
    return x509.load_pem_x509_certificate((proxy.folder / f"{stem}.pem").read_bytes()).serial_number


def ask(client: http.client.HTTPConnection) -> bytes:
    client.request("GET", "/hello")
    return client.getresponse().read()


class TestNewFiles:
    @pytest.fixture
    def proxy(self, start_proxy: StartProxy, app: str, tmp_path: Path, authority: trustme.CA) -> Proxy:
        return start_proxy(site(write_pair(tmp_path, authority, "localhost"), app), workers=2)

    def test_reach_every_worker_and_cost_no_connection(self, proxy: Proxy, authority: trustme.CA) -> None:
        old = on_disk(proxy)
        with contextlib.ExitStack() as stack:
            before = []
            for worker in proxy.workers():
                with proxy.alone(worker):
                    before.append(stack.enter_context(contextlib.closing(proxy.connection())))
                    assert ask(before[-1]) == b"hello"
            ports = [client.sock.getsockname() for client in before]
            write_pair(proxy.folder, authority, "localhost")
            new = on_disk(proxy)
            for worker in proxy.workers():
                self._wait_for(proxy, worker, old, new)
            assert [ask(client) for client in before] == [b"hello", b"hello"]
            assert [client.sock.getsockname() for client in before] == ports
        assert proxy.count("certificate.file_changed") == 1

    def _wait_for(self, proxy: Proxy, worker: int, old: int, new: int) -> None:
        """Every connection on the way there must succeed, with the one or the other."""

        def has_come() -> bool:
            with proxy.alone(worker):
                serial = served(proxy).serial_number
            assert serial in (old, new)
            return serial == new

        until(has_come, f"worker {worker} serves the new certificate")

    def test_that_are_broken_change_nothing_and_are_said_once(self, proxy: Proxy, authority: trustme.CA) -> None:
        old = on_disk(proxy)
        whole = (proxy.folder / "site.pem").read_bytes()
        put(proxy.folder / "site.pem", whole[: len(whole) // 2])
        assert str(proxy.folder / "site.pem") in self._rejection(proxy, 1)
        assert served(proxy).serial_number == old
        write_pair(proxy.folder, authority, "elsewhere.test")
        assert "does not cover localhost" in self._rejection(proxy, 2)
        assert served(proxy).serial_number == old
        write_pair(proxy.folder, authority, "localhost")
        until(lambda: served(proxy).serial_number == on_disk(proxy), "the mended certificate is served")
        assert proxy.count("certificate.file_rejected") == 2

    def _rejection(self, proxy: Proxy, number: int) -> str:
        until(lambda: proxy.count("certificate.file_rejected") >= number, f"rejection {number}")
        said = [event for event in proxy.events if event["event"] == "certificate.file_rejected"]
        assert len(said) == number
        return str(said[-1]["error"])

    @pytest.mark.parametrize(("first", "second"), [("pem", "key"), ("key", "pem")])
    def test_may_come_one_after_the_other(self, proxy: Proxy, authority: trustme.CA, first: str, second: str) -> None:
        old = on_disk(proxy)
        write_pair(proxy.folder, authority, "localhost", stem="next")
        put(proxy.folder / f"site.{first}", (proxy.folder / f"next.{first}").read_bytes())
        proxy.wait_for("certificate.file_rejected")  # both halves were looked at apart from each other
        assert served(proxy).serial_number == old
        put(proxy.folder / f"site.{second}", (proxy.folder / f"next.{second}").read_bytes())
        until(lambda: served(proxy).serial_number == on_disk(proxy, "next"), "the new pair is served")


def all_kinds(folder: Path, authority: trustme.CA, app: str) -> str:
    """Sites with both kinds of key, with a wildcard, with an exact name below it, of the internal CA."""
    both = [write_pair(folder, authority, "both.test", stem=kind, rsa=kind == "rsa") for kind in ("rsa", "ecdsa")]
    wild = write_pair(folder, authority, "*.wild.test", stem="wild")
    exact = write_pair(folder, authority, "exact.wild.test", stem="exact")
    return "".join(
        [
            site(f"[{', '.join(both)}]", app, "both.test"),
            site(wild, app, "*.wild.test"),
            site(exact, app, "exact.wild.test"),
            site('"internal"', app, "app.localhost"),
        ]
    )


@pytest.fixture(scope="module")
def kinds(
    tmp_path_factory: pytest.TempPathFactory, trust: ssl.SSLContext, authority: trustme.CA, app: str
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("kinds")
    with running_proxy(folder, trust, all_kinds(folder, authority, app)) as running:
        yield running


class TestChoice:
    @pytest.mark.parametrize(
        ("version", "ciphers", "kind"),
        [
            ("1.2", "ECDHE-RSA-AES128-GCM-SHA256", rsa.RSAPublicKey),
            ("1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", ec.EllipticCurvePublicKey),
            ("1.2", "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-GCM-SHA256", ec.EllipticCurvePublicKey),
            ("1.2", "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256", ec.EllipticCurvePublicKey),
            ("1.3", "", ec.EllipticCurvePublicKey),
        ],
    )
    def test_is_ecdsa_for_every_client_that_knows_it(
        self, kinds: Proxy, authority: trustme.CA, version: str, ciphers: str, kind: type
    ) -> None:
        context = client_context(authority, version=version)
        if ciphers:
            context.set_ciphers(ciphers)
        assert isinstance(served(kinds, "both.test", context).public_key(), kind)

    def test_an_exact_name_before_a_wildcard(self, kinds: Proxy) -> None:
        assert served(kinds, "a.wild.test").serial_number == on_disk(kinds, "wild")
        assert served(kinds, "A.WILD.TEST").serial_number == on_disk(kinds, "wild")
        assert served(kinds, "exact.wild.test").serial_number == on_disk(kinds, "exact")
        with kinds.client("b.wild.test") as client:
            assert client.get("/hello").text == "hello"

    @pytest.mark.parametrize("name", ["elsewhere.test", "wild.test", "a.b.wild.test", ""])
    def test_nobody_s_name_is_refused(self, kinds: Proxy, authority: trustme.CA, name: str) -> None:
        context = client_context(authority)
        context.check_hostname = False
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            served(kinds, name, context)

    def test_the_internal_ca(self, kinds: Proxy) -> None:
        command = [
            sys.executable,
            "-m",
            "tlsproxy",
            "trust",
            "--print",
            "--config",
            str(kinds.folder / "tlsproxy.toml"),
        ]
        root = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
        context = client_context(None)
        context.load_verify_locations(cadata=root)
        assert isinstance(served(kinds, "app.localhost", context).public_key(), ec.EllipticCurvePublicKey)
        with pytest.raises(ssl.SSLCertVerificationError):
            served(kinds, "app.localhost")  # by somebody who trusts another authority

    @pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
    def test_the_internal_ca_keeps_to_the_letter_of_x509(self, kinds: Proxy, tmp_path: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "tlsproxy",
            "trust",
            "--print",
            "--config",
            str(kinds.folder / "tlsproxy.toml"),
        ]
        (tmp_path / "root.pem").write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
        context = client_context(None)
        context.load_verify_locations(tmp_path / "root.pem")
        with kinds.open("app.localhost", context) as client:
            (tmp_path / "leaf.pem").write_text(ssl.DER_cert_to_PEM_cert(der(client)))
        verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "app.localhost"]
        said = subprocess.run([*verify, "-CAfile", "root.pem", "leaf.pem"], cwd=tmp_path, capture_output=True)
        assert said.stdout == b"leaf.pem: OK\n", said.stderr


def test_the_default_host_takes_unknown_names_and_none(
    start_proxy: StartProxy, app: str, tmp_path: Path, authority: trustme.CA
) -> None:
    others = site(write_pair(tmp_path, authority, "other.test", stem="other"), app, "other.test")
    mine = site(write_pair(tmp_path, authority, "default.test"), app, "default.test")
    proxy = start_proxy(others + mine, head='[tls]\ndefault_host = "default.test"')
    context = client_context(authority)
    context.check_hostname = False
    assert served(proxy, "elsewhere.test", context).serial_number == on_disk(proxy)
    assert served(proxy, "", context).serial_number == on_disk(proxy)
    assert served(proxy, "other.test", context).serial_number == on_disk(proxy, "other")
    with contextlib.closing(proxy.connection("", context)) as client:
        client.request("GET", "/hello", headers={"Host": "default.test"})
        assert client.getresponse().read() == b"hello"
