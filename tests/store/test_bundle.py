"""A pair of files becomes one checked value, and every refusal says what to do."""

import json
import os
import shlex
import subprocess
from dataclasses import replace as changed
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.store.pki import NOW, issue, rsa_key, write_pair
from tlsproxy.errors import CertificateError
from tlsproxy.store import pem
from tlsproxy.store.bundle import Bundle, load_pair, normal_host

ROOT = issue(cn="root", ca=True)
MIDDLE = issue(cn="middle", ca=True, by=ROOT)
LEAF = issue("a.test", "*.b.test", "10.0.0.7", "::1", by=MIDDLE)

# Signed with SHA-1 by `openssl x509 -sha1`: the library that makes all others here refuses to.
SHA1 = Path(__file__).parent / "sha1.pem"


def load(directory: Path, chain: bytes, key: bytes, mode: int = 0o600) -> Bundle:
    (directory / "chain.pem").write_bytes(chain)
    (directory / "key.pem").write_bytes(key)
    (directory / "key.pem").chmod(mode)
    return load_pair(directory / "chain.pem", directory / "key.pem")


def refusal(directory: Path, chain: bytes, key: bytes) -> str:
    with pytest.raises(CertificateError) as caught:
        load(directory, chain, key)
    return str(caught.value).replace(str(directory), "DIR")


def test_a_good_pair_is_read_whole(tmp_path: Path) -> None:
    bundle = load_pair(*write_pair(tmp_path, LEAF, MIDDLE))
    assert bundle.names == ("a.test", "*.b.test", "10.0.0.7", "::1")
    assert bundle.chain_pem == LEAF.pem + MIDDLE.pem
    assert bundle.key_pem == LEAF.key_pem()
    assert bundle.issuer == "CN=middle"
    assert bundle.serial == f"{LEAF.certificate.serial_number:x}"
    assert len(bundle.fingerprint) == 64
    assert bundle.not_after == NOW + timedelta(days=30)
    assert bundle.not_before.tzinfo is not None
    assert (bundle.key_type, bundle.source, bundle.warnings) == ("ecdsa-p256", "file", ())


def test_the_key_is_in_no_repr() -> None:
    shown = repr(LEAF.bundle())
    assert "PRIVATE" not in shown
    assert "a.test" in shown


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (rsa_key(), "rsa-2048"),
        (ec.generate_private_key(ec.SECP384R1()), "ecdsa-p384"),
        (ec.generate_private_key(ec.SECP521R1()), "ecdsa-p521"),
    ],
)
def test_kinds_of_keys(tmp_path: Path, key: Any, kind: str) -> None:
    leaf = issue("a.test", key=key)
    bundle = load(tmp_path, leaf.pem, leaf.key_pem(legacy=True))
    assert bundle.key_type == kind
    assert bundle.key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_a_key_browsers_do_not_know_is_served_with_a_warning(tmp_path: Path) -> None:
    leaf = issue("a.test", key=ed25519.Ed25519PrivateKey.generate())
    assert "browsers don't accept ed25519" in load(tmp_path, leaf.pem, leaf.key_pem()).warnings[0]


def test_chain_and_key_in_one_file(tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(b"# made by hand\n" + LEAF.key_pem() + LEAF.pem + MIDDLE.pem)
    both.chmod(0o600)
    assert load_pair(both, both) == LEAF.bundle(MIDDLE)


@pytest.mark.parametrize(
    ("chain", "key", "expected"),
    [
        (b"", LEAF.key_pem(), "DIR/chain.pem: the file is empty"),
        (b"hello", LEAF.key_pem(), "DIR/chain.pem: this is not PEM"),
        (LEAF.pem[:-30], LEAF.key_pem(), "DIR/chain.pem: this is not PEM"),
        (LEAF.certificate.public_bytes(serialization.Encoding.DER), LEAF.key_pem(), "openssl x509 -inform DER"),
        (LEAF.key_pem(), LEAF.key_pem(), "there is no certificate in it, only PRIVATE KEY"),
        (LEAF.pem, LEAF.pem, "DIR/key.pem: there is no private key in it"),
        (LEAF.pem, LEAF.key_pem(b"secret"), "the private key is encrypted"),
        (LEAF.pem, LEAF.key_pem(b"secret", legacy=True), "the private key is encrypted"),
        (LEAF.pem.replace(b"M", b"N", 1), LEAF.key_pem(), "a certificate in it can't be read"),
        (LEAF.pem, LEAF.key_pem().replace(b"\nM", b"\nN", 1), "the private key can't be read"),
        (
            LEAF.pem,
            MIDDLE.key_pem(),
            "DIR/key.pem: this key does not belong to the certificate 'CN=a.test' in DIR/chain",
        ),
        (b"x" * (1 << 20) + b"x", LEAF.key_pem(), "the file is larger than 1048576 bytes"),
    ],
)
def test_refusals(tmp_path: Path, chain: bytes, key: bytes, expected: str) -> None:
    assert expected in refusal(tmp_path, chain, key)


@pytest.mark.parametrize("names", [b"\x30\x05\x82\x09a", b"nonsense", b"\x30\x06\x87\x04abcd\x00"])
def test_one_that_parses_only_until_its_names_are_asked_for(tmp_path: Path, names: bytes) -> None:
    leaf = issue(cn="a.test", raw_names=names)
    said = refusal(tmp_path, leaf.pem, leaf.key_pem())
    assert said.startswith("DIR/chain.pem: this certificate can't be used (")
    assert said.endswith("). Have it issued again.")


def test_a_key_that_is_gone_when_its_mode_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, key = write_pair(tmp_path, LEAF, MIDDLE)
    order_chain = pem.order_chain

    def order(leaf: Any, others: Any) -> Any:
        key.unlink()
        return order_chain(leaf, others)

    monkeypatch.setattr(pem, "order_chain", order)
    with pytest.raises(CertificateError, match=r"No such file.*\. Have it issued again"):
        load_pair(chain, key)


def _binaries() -> dict[str, tuple[bytes, bytes]]:
    """What people get from Windows and Java: the bytes in place of the chain, and in place of the key."""
    der, form = serialization.Encoding.DER, serialization.PrivateFormat
    certificate = LEAF.certificate.public_bytes(der)
    both = pkcs12.serialize_key_and_certificates(
        b"a",
        LEAF.key,
        LEAF.certificate,
        None,
        serialization.NoEncryption(),
    )
    several = pkcs7.serialize_certificates([LEAF.certificate], der)
    pkcs8 = LEAF.key.private_bytes(der, form.PKCS8, serialization.NoEncryption())
    old = LEAF.key.private_bytes(der, form.TraditionalOpenSSL, serialization.NoEncryption())
    return {"DER": (certificate, pkcs8), "DER, SEC1": (certificate, old), "#12": (both, both), "#7": (several, pkcs8)}


@pytest.mark.parametrize("kind", _binaries())
def test_the_command_for_a_binary_file_works(tmp_path: Path, kind: str) -> None:
    paths = {"chain": tmp_path / "my chain", "key": tmp_path / "my key"}
    for path, content in zip(paths.values(), _binaries()[kind], strict=True):
        path.write_bytes(content)
    for which, path in tuple(paths.items()):
        with pytest.raises(CertificateError, match=r"this is binary \(") as caught:
            load_pair(paths["chain"], paths["key"])
        command = shlex.split(str(caught.value).rpartition("new file: ")[2])
        if "pkcs12" in command:
            command += ["-passin", "pass:"]
        subprocess.run(command, check=True, capture_output=True)
        paths[which] = Path(f"{path}.pem")
    assert load_pair(paths["chain"], paths["key"]) == LEAF.bundle()


def test_weak_and_unfit_certificates_are_refused(tmp_path: Path) -> None:
    weak = issue("a.test", key=rsa_key(1024))
    assert "RSA key of 1024 bits" in refusal(tmp_path, weak.pem, weak.key_pem())
    odd = issue("a.test", key=ec.generate_private_key(ec.SECP256K1()))
    assert "a key no browser accepts" in refusal(tmp_path, odd.pem, odd.key_pem())
    client = issue("a.test", by=ROOT, usage=[ExtendedKeyUsageOID.CLIENT_AUTH])
    assert "is not for servers" in refusal(tmp_path, client.pem, client.key_pem())


def test_a_sha1_signature_is_refused() -> None:
    with pytest.raises(CertificateError, match=r"x: the certificate 'CN=a\.test' is signed with sha1"):
        pem.refuse_unusable(pem.certificates(SHA1.read_bytes(), "x"), "x")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"gone\.pem: there is no such file"):
        load_pair(tmp_path / "gone.pem", tmp_path / "gone.key")
    with pytest.raises(CertificateError, match="Is a directory"):
        load_pair(tmp_path, tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
def test_an_unreadable_file_names_user_and_mode(tmp_path: Path) -> None:
    chain, key = write_pair(tmp_path, LEAF)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    chain.chmod(0o644)
    os.seteuid(65534)
    try:
        with pytest.raises(CertificateError) as caught:
            load_pair(chain, key)
    finally:
        os.seteuid(0)
    assert "user nobody may not read it (mode 0600, owner root)" in str(caught.value)


def test_a_key_for_everybody_is_warned_of(tmp_path: Path) -> None:
    (warning,) = load(tmp_path, LEAF.pem, LEAF.key_pem(), mode=0o644).warnings
    assert "everybody on this machine can read the private key (mode 0644)" in warning


def test_a_chain_in_disorder_is_mended(tmp_path: Path) -> None:
    bundle = load(tmp_path, ROOT.pem + MIDDLE.pem + LEAF.pem, LEAF.key_pem())
    assert bundle.chain_pem == LEAF.pem + MIDDLE.pem + ROOT.pem
    assert "out of order" in bundle.warnings[0]


def test_strangers_leave_the_chain_and_repetitions_too(tmp_path: Path) -> None:
    stranger = issue(cn="stranger", ca=True)
    bundle = load(tmp_path, LEAF.pem + LEAF.pem + stranger.pem + MIDDLE.pem, LEAF.key_pem())
    assert bundle.chain_pem == LEAF.pem + MIDDLE.pem
    assert ["'CN=stranger' has no place" in warning for warning in bundle.warnings] == [True]


def test_a_cross_signed_twin_stays(tmp_path: Path) -> None:
    other = issue(cn="other root", ca=True)
    twin = issue(cn="middle", ca=True, by=other, key=MIDDLE.key)
    bundle = load(tmp_path, LEAF.pem + MIDDLE.pem + twin.pem, LEAF.key_pem())
    assert (bundle.chain_pem, bundle.warnings) == (LEAF.pem + MIDDLE.pem + twin.pem, ())


def test_a_leaf_whose_issuer_is_missing_is_warned_of(tmp_path: Path) -> None:
    lonely = issue("a.test", by=MIDDLE, issuer_url="http://ca.test/middle.der")
    assert "'CN=middle' is missing" in load(tmp_path, lonely.pem, lonely.key_pem()).warnings[0]


@pytest.mark.parametrize(("days", "said"), [((-30, -1), "expired on"), ((1, 30), "is not valid before")])
def test_wrong_dates_are_served_and_said(tmp_path: Path, days: tuple[float, float], said: str) -> None:
    leaf = issue("a.test", days=days)
    bundle = load(tmp_path, leaf.pem, leaf.key_pem())
    assert f"{tmp_path}/chain.pem: the certificate {said}" in bundle.warnings[0]
    assert said in bundle.date_problem(NOW)


@pytest.mark.parametrize(
    ("host", "covered"),
    [
        ("a.test", True),
        ("A.Test.", True),
        ("x.b.test", True),
        ("*.b.test", True),
        ("b.test", False),
        ("x.y.b.test", False),
        ("*.a.test", False),
        ("10.0.0.7", True),
        ("10.0.0.8", False),
        ("::1", True),
        ("[0:0::1]", True),
        ("test", False),
        ("", False),
    ],
)
def test_names_cover_hosts(host: str, covered: bool) -> None:
    assert LEAF.bundle().covers(host) is covered
    assert LEAF.bundle().check_names([host]) == ([] if covered else [host])


def test_a_wildcard_covers_no_address() -> None:
    assert not issue("*.0.0.7").bundle().covers("10.0.0.7")


def test_a_common_name_is_no_name() -> None:
    assert issue(cn="a.test").bundle().names == ()


def test_the_record_comes_back_whole() -> None:
    bundle = LEAF.bundle(MIDDLE)
    record = json.loads(json.dumps(bundle.to_record()))
    assert Bundle.from_record(record) == bundle
    assert Bundle.from_record({**record, "version": 2, "of a later version": 1}) == bundle
    assert changed(bundle, warnings=("x",)) == bundle


@pytest.mark.parametrize(
    "spoil",
    [
        {"key_pem": None},
        {"not_after": "soon"},
        {"not_after": "2030-01-01T00:00:00"},
        {"names": 7},
        {"source": "moon"},
        {"version": 0},
        {"version": "1"},
    ],
)
def test_a_spoilt_record_is_refused(spoil: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the reason differs, the type is the contract
        Bundle.from_record({**LEAF.bundle().to_record(), **spoil})


@pytest.mark.parametrize("record", [None, [], "x", {}, 3])
def test_what_is_no_record_is_refused(record: Any) -> None:
    with pytest.raises(ValueError, match="no certificate record"):
        Bundle.from_record(record)


def test_hosts_have_one_form() -> None:
    assert [normal_host(host) for host in ("A.Test.", "[::0:1]", "127.0.0.1")] == ["a.test", "::1", "127.0.0.1"]
