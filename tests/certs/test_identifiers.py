"""Identifiers, signing requests, names in challenges, ids of certificates."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from tests.store.pki import issue
from tlsproxy.certs.account_key import AccountKey, b64url
from tlsproxy.certs.identifiers import KEY_TYPES, acme_identifier, ari_id, new_key, server_name, signing_request


@pytest.mark.parametrize(
    ("host", "kind", "value", "sni"),
    [
        ("a.test", "dns", "a.test", "a.test"),
        ("*.a.test", "dns", "*.a.test", "*.a.test"),
        ("192.0.2.7", "ip", "192.0.2.7", "7.2.0.192.in-addr.arpa"),
        ("2001:DB8:0::7", "ip", "2001:db8::7", "7." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa"),
    ],
)
def test_hosts_become_identifiers_and_server_names(host: str, kind: str, value: str, sni: str) -> None:
    assert acme_identifier(host) == {"type": kind, "value": value}
    assert server_name(host) == sni


def test_a_signing_request_has_names_and_nothing_else() -> None:
    key = new_key()
    request = x509.load_der_x509_csr(signing_request(["a.test", "*.a.test", "192.0.2.7", "::1"], key))
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each.value) for each in names] == ["a.test", "*.a.test", "192.0.2.7", "::1"]
    assert list(request.subject) == []
    assert len(request.extensions) == 1
    assert request.is_signature_valid
    assert request.public_key() == key.public_key()


def test_keys_are_of_the_kind_that_is_asked_for() -> None:
    kinds = {each: new_key(each) for each in KEY_TYPES if each != "rsa-4096"}
    assert isinstance(kinds["ecdsa-p256"], ec.EllipticCurvePrivateKey)
    assert kinds["ecdsa-p256"].curve.name == "secp256r1"
    assert isinstance(kinds["ecdsa-p384"], ec.EllipticCurvePrivateKey)
    assert kinds["ecdsa-p384"].curve.name == "secp384r1"
    assert isinstance(kinds["rsa-2048"], rsa.RSAPrivateKey)
    assert kinds["rsa-2048"].key_size == 2048
    with pytest.raises(ValueError, match="dsa-1024"):
        new_key("dsa-1024")


class _Certificate:
    """As much of an x509.Certificate as its id needs: a real one takes a key and a signature for each example."""

    def __init__(self, serial: int, key_id: bytes | None) -> None:
        self.serial_number = serial
        extension = x509.AuthorityKeyIdentifier(key_id, None, None)
        self.extensions = x509.Extensions(
            [x509.Extension(x509.AuthorityKeyIdentifier.oid, critical=False, value=extension)] if key_id else []
        )


def test_the_id_of_a_certificate_is_that_of_the_standard() -> None:
    """RFC 9773 4.1: its example, where the serial number has its first bit set and so a zero before it."""
    key_id = bytes.fromhex("69885b6b8746404 1e1b37b847ba0ae2cde01c8d4".replace(" ", ""))
    assert ari_id(_Certificate(0x8765_4321, key_id)) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"  # type: ignore[arg-type]


@given(serial=st.integers(min_value=1, max_value=(1 << 160) - 1))
def test_ids_are_those_that_acme_makes(serial: int) -> None:
    from acme.client import _renewal_info_path_component

    certificate = _Certificate(serial, b"k" * 20)
    assert ari_id(certificate) == _renewal_info_path_component(certificate)  # type: ignore[arg-type]


def test_a_certificate_that_does_not_name_its_issuers_key_has_no_id() -> None:
    assert ari_id(issue("a.test").certificate) == ""
    assert ari_id(_Certificate(7, None)) == ""  # type: ignore[arg-type]


def test_a_thumbprint_is_that_of_the_standard() -> None:
    from josepy.jwk import JWKEC

    key = AccountKey.generate()
    assert key.thumbprint == b64url(JWKEC(key=key.private).thumbprint())
    assert key.authorization("tok") == f"tok.{key.thumbprint}"
