"""The internal CA: what it issues is accepted by openssl and by Python, and it renews by itself."""

import logging
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tlsproxy.certs.internal import LEAF_LIFE, ensure, ensure_root, issue, make_root
from tlsproxy.errors import StoreError
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.file import FileStore
from tlsproxy.store.memory import MemoryStore
from tlsproxy.store.sources import ROOT_NAME

NOW = datetime.now(UTC)
HOSTS = ("localhost", "*.app.localhost", "127.0.0.1", "::1")


def certificate(bundle: Bundle) -> x509.Certificate:
    return x509.load_pem_x509_certificate(bundle.chain_pem)


def test_profile_of_the_root() -> None:
    root = certificate(make_root(NOW, "box"))
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    usage = root.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, False)
    assert root.subject.rfc4514_string().startswith("CN=tlsproxy internal CA box ")
    assert not root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).critical
    assert 3650 <= (root.not_valid_after_utc - root.not_valid_before_utc).days <= 3653


def test_two_roots_never_have_one_name() -> None:
    assert make_root(NOW, "box").issuer != make_root(NOW, "box").issuer


def test_profile_of_a_leaf() -> None:
    root = make_root(NOW, "box")
    leaf = certificate(issue(root, HOSTS, NOW))
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "*.app.localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    above = certificate(root).extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == above.digest
    assert leaf.serial_number.bit_length() <= 159
    assert leaf.not_valid_before_utc <= NOW - timedelta(minutes=59)
    leaf.verify_directly_issued_by(certificate(root))


def test_a_host_too_long_for_a_common_name_leaves_the_subject_empty() -> None:
    host = f"{'a' * 60}.{'b' * 20}.test"
    leaf = certificate(issue(make_root(NOW, "box"), [host], NOW))
    assert list(leaf.subject) == []
    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical


def test_openssl_accepts_the_chain(tmp_path: Path) -> None:
    store = MemoryStore()
    leaf = ensure(store, HOSTS, NOW)
    (tmp_path / "root.pem").write_bytes(ensure_root(store, NOW).chain_pem)
    (tmp_path / "leaf.pem").write_bytes(leaf.chain_pem)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(tmp_path / "root.pem")]
    for check in (["-verify_hostname", "x.app.localhost"], ["-verify_ip", "127.0.0.1"], ["-verify_ip", "::1"]):
        done = subprocess.run([*command, *check, str(tmp_path / "leaf.pem")], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("host", ["localhost", "x.app.localhost", "127.0.0.1", "::1"])
def test_python_accepts_the_chain(tmp_path: Path, host: str) -> None:
    store = MemoryStore()
    leaf = ensure(store, HOSTS, NOW)
    _handshake(tmp_path, leaf, ensure_root(store, NOW).chain_pem, host)


def test_python_refuses_other_names(tmp_path: Path) -> None:
    store = MemoryStore()
    leaf = ensure(store, HOSTS, NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _handshake(tmp_path, leaf, ensure_root(store, NOW).chain_pem, "other.test")


def test_ensure_makes_once_and_renews_with_a_new_key() -> None:
    store = MemoryStore()
    first = ensure(store, HOSTS, NOW)
    assert ensure(store, HOSTS, NOW + LEAF_LIFE / 2) == first
    second = ensure(store, HOSTS, NOW + LEAF_LIFE * 0.7)
    assert second.key_pem != first.key_pem
    assert second.issuer == first.issuer
    assert store.get("internal/localhost") == second
    assert store.list() == (ROOT_NAME, "internal/localhost")


def test_a_new_host_makes_a_new_certificate_and_a_lost_one_does_not() -> None:
    store = MemoryStore()
    ensure(store, ["a.test"], NOW)
    both = ensure(store, ["a.test", "b.test"], NOW)
    assert both.names == ("a.test", "b.test")
    assert ensure(store, ["a.test"], NOW) == both


def test_a_root_near_its_end_is_replaced_with_its_leaves(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    old = ensure(store, HOSTS, NOW)
    with caplog.at_level(logging.WARNING):
        new = ensure(store, HOSTS, NOW + timedelta(days=9.1 * 365))
    assert new.issuer != old.issuer
    (record,) = caplog.records
    assert record.message == "certificate.root_replaced"
    assert "tlsproxy trust" in record.__dict__["advice"]


def test_a_damaged_leaf_is_made_again_and_a_damaged_root_is_not(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    ensure(store, HOSTS, NOW)
    records = tmp_path / "store" / "certificates"
    (records / "internal%2flocalhost.json").write_text("{")
    assert ensure(store, HOSTS, NOW).covers("localhost")
    (records / "internal-ca.json").write_text("{")
    with pytest.raises(StoreError, match=r"internal-ca\.json"):
        ensure(store, HOSTS, NOW)


def _handshake(directory: Path, leaf: Bundle, root_pem: bytes, host: str) -> None:
    (directory / "chain.pem").write_bytes(leaf.chain_pem)
    (directory / "key.pem").write_bytes(leaf.key_pem)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(directory / "chain.pem", directory / "key.pem")
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.load_verify_locations(cadata=root_pem.decode())
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(down, up, server_hostname=host)
    server = server_context.wrap_bio(up, down, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert client.version() == "TLSv1.3"
