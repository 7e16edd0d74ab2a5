"""The name and the value of the TXT record that proves a name."""

from __future__ import annotations

import base64
import hashlib

import dns.name
import pytest
from acme import challenges
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from josepy.jwk import JWKEC

from tlsproxy.certs.challenges import is_solvable
from tlsproxy.certs.dns.base import challenge_name, txt_value

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
HOSTS = st.lists(LABELS, min_size=1, max_size=8).map(".".join)


@settings(max_examples=50)
@given(host=HOSTS, wildcard=st.booleans())
def test_a_name_that_can_be_proven_has_a_record_that_the_dns_can_hold(host: str, wildcard: bool) -> None:
    is_provable = is_solvable("dns-01", host, is_wildcard=wildcard)
    try:
        name = challenge_name(f"*.{host}" if wildcard else host)
    except ValueError:
        assert not is_provable
        assert len(host) > 253 - len("_acme-challenge.") or host.replace(".", "").isdigit()
    else:
        assert is_provable
        assert name == f"_acme-challenge.{host}"
        assert dns.name.from_text(name).to_text(omit_final_dot=True) == name


@given(text=st.text(max_size=300))
def test_whatever_is_no_name_is_refused_or_stays_one_name(text: str) -> None:
    """The name goes to programs as an argument: neither blank nor dash at its beginning, nor a control character."""
    try:
        name = challenge_name(text)
    except ValueError:
        return
    assert name.startswith("_acme-challenge.")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("Example.COM.", "_acme-challenge.example.com"),
        ("*.example.com", "_acme-challenge.example.com"),
        ("xn--bcher-kva.example", "_acme-challenge.xn--bcher-kva.example"),
    ],
)
def test_one_name_for_a_host_and_its_wildcard(identifier: str, expected: str) -> None:
    assert challenge_name(identifier) == expected


@pytest.mark.parametrize("identifier", ["", "192.0.2.1", "2001:db8::1", "a..b", "a b.test", "bücher.example", "a;b"])
def test_what_has_no_record(identifier: str) -> None:
    with pytest.raises(ValueError, match="can't be proven by a TXT record"):
        challenge_name(identifier)


def test_value_is_what_the_acme_library_computes() -> None:
    key = JWKEC(key=ec.generate_private_key(ec.SECP256R1()))
    challenge = challenges.DNS01(token=b"0123456789abcdef")
    answer = challenge.key_authorization(key)
    assert txt_value(answer) == challenge.validation(key)
    assert len(txt_value(answer)) == 43
    assert base64.urlsafe_b64decode(f"{txt_value(answer)}=") == hashlib.sha256(answer.encode()).digest()
