"""What may prove a name, and that the answers for HTTP and TLS lie in the store as the RFCs want them."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import shutil
import ssl
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tlsproxy.certs.alpn import make_answer
from tlsproxy.certs.challenges import Http01, Solver, TlsAlpn01, is_solvable
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Step, unwatched
from tlsproxy.store.base import open_store
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.challenges import Challenges

NOW = datetime.now(UTC)
SOON = NOW + timedelta(minutes=15)
TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
ANSWER = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def challenges() -> Challenges:
    return Challenges(open_store("memory:"))


# --- which challenge for which name


@pytest.mark.parametrize(
    ("kind", "identifier", "is_wildcard", "expected"),
    [
        ("http-01", "a.example.com", False, True),
        ("http-01", "a.example.com", True, False),
        ("http-01", "192.0.2.1", False, True),
        ("tls-alpn-01", "2001:db8::1", False, True),
        ("tls-alpn-01", "a.example.com", True, False),
        ("dns-01", "a.example.com", False, True),
        ("dns-01", "a.example.com", True, True),
        ("dns-01", "192.0.2.1", False, False),
        ("dns-01", "2001:db8::1", False, False),
        ("dns-01", ".".join(["a" * 59] * 4), False, False),  # 239 octets: no room for the label before it
        ("dns-persist-01", "a.example.com", False, False),
    ],
)
def test_what_can_prove_a_name(kind: str, identifier: str, is_wildcard: bool, expected: bool) -> None:
    assert is_solvable(kind, identifier, is_wildcard=is_wildcard) is expected


# --- http-01


def test_http_answer_lies_in_the_store_until_it_is_cleaned_up(challenges: Challenges, executor: Executor) -> None:
    solver, steps = Http01(challenges, executor), list[Step]()
    assert solver.can_solve("a.test", is_wildcard=False)
    asyncio.run(solver.present("a.test", TOKEN, ANSWER, SOON, steps.append))
    assert challenges.http(TOKEN, NOW) == ANSWER
    assert [(step.kind, step.host) for step in steps] == [("challenge", "a.test")]
    assert TOKEN not in str(steps)
    asyncio.run(solver.clean_up("a.test", TOKEN, ANSWER))
    assert challenges.http(TOKEN, NOW) is None


def test_an_answer_that_nobody_can_read_is_no_answer(challenges: Challenges, executor: Executor) -> None:
    with pytest.raises(AcmeFailure, match="can't be read back") as caught:
        asyncio.run(Http01(challenges, executor).present("a.test", TOKEN, ANSWER, NOW - timedelta(1), unwatched))
    assert (caught.value.kind, caught.value.identifier) == (FailureKind.STORE, "a.test")


def test_a_token_that_is_none_is_refused(challenges: Challenges, executor: Executor) -> None:
    with pytest.raises(AcmeFailure, match="no ACME token") as caught:
        asyncio.run(Http01(challenges, executor).present("a.test", "../../x", ANSWER, SOON, unwatched))
    assert caught.value.kind is FailureKind.INTERNAL
    assert "../../x" not in str(caught.value)


@pytest.mark.parametrize("kind", ["http-01", "tls-alpn-01"])
def test_a_store_that_is_gone(kind: str, tmp_path: Path, executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "store"
    store = open_store(f"file://{folder}")
    challenges = Challenges(store)
    solver: Solver = Http01(challenges, executor) if kind == "http-01" else TlsAlpn01(challenges, executor)
    asyncio.run(solver.present("a.test", TOKEN, ANSWER, SOON, unwatched))
    shutil.rmtree(folder)
    folder.write_text("no directory")
    with pytest.raises(AcmeFailure) as caught:
        asyncio.run(solver.present("a.test", TOKEN, ANSWER, SOON, unwatched))
    assert caught.value.kind is FailureKind.STORE
    with caplog.at_level(logging.WARNING):
        asyncio.run(solver.clean_up("a.test", TOKEN, ANSWER))
    assert "challenge.cleanup_failed" in [record.getMessage() for record in caplog.records]
    assert TOKEN not in caplog.text


# --- tls-alpn-01


def certificate(bundle: Bundle) -> x509.Certificate:
    return x509.load_pem_x509_certificate(bundle.chain_pem)


@pytest.mark.parametrize("identifier", ["a.example.com", "192.0.2.7", "2001:db8::7"])
def test_profile_of_the_tls_answer(identifier: str) -> None:
    """RFC 8737 3: one name, and the SHA-256 as an OCTET STRING in a critical extension."""
    made = certificate(make_answer(identifier, ANSWER, NOW))
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    expected = x509.DNSName(identifier) if identifier[0] == "a" else x509.IPAddress(ipaddress.ip_address(identifier))
    assert list(names) == [expected]
    proof = made.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31"))
    assert proof.critical
    assert proof.value.public_bytes() == b"\x04\x20" + hashlib.sha256(ANSWER.encode()).digest()
    key = made.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert made.not_valid_after_utc - made.not_valid_before_utc == timedelta(days=7)
    assert made.not_valid_before_utc < NOW < made.not_valid_after_utc
    made.verify_directly_issued_by(made)


def test_tls_answer_lies_in_the_store_until_it_is_cleaned_up(
    challenges: Challenges, executor: Executor, tmp_path: Path
) -> None:
    solver = TlsAlpn01(challenges, executor)
    assert not solver.can_solve("a.test", is_wildcard=True)
    asyncio.run(solver.present("127.0.0.7", TOKEN, ANSWER, SOON, unwatched))
    held = challenges.tls_alpn("7.0.0.127.in-addr.arpa", NOW)
    assert held is not None
    assert loads_in_openssl(held, tmp_path)
    asyncio.run(solver.clean_up("127.0.0.7", TOKEN, ANSWER))
    assert challenges.tls_alpn("7.0.0.127.in-addr.arpa", NOW) is None


def test_clean_up_leaves_the_answer_of_a_newer_order(challenges: Challenges, executor: Executor) -> None:
    solver, newer = TlsAlpn01(challenges, executor), f"newer.{ANSWER.partition('.')[2]}"
    asyncio.run(solver.present("a.test", TOKEN, ANSWER, SOON, unwatched))
    asyncio.run(solver.present("a.test", "newer", newer, SOON, unwatched))
    asyncio.run(solver.clean_up("a.test", TOKEN, ANSWER))
    held = challenges.tls_alpn("a.test", NOW)
    assert held is not None
    asyncio.run(solver.clean_up("a.test", "newer", newer))
    assert challenges.tls_alpn("a.test", NOW) is None


def loads_in_openssl(bundle: Bundle, folder: Path) -> bool:
    pair = folder / "pair.pem"
    pair.write_bytes(bundle.key_pem + bundle.chain_pem)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pair)
    return True
