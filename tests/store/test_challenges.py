"""Answers to challenges: read by whoever is asked, gone when their time is up, never looked up for nonsense."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.pki import issue
from tests.store.stores import KINDS, make_store
from tlsproxy.errors import StoreError
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.challenges import Challenges
from tlsproxy.store.memory import MemoryStore

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
TOKEN = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"
ANSWER = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
BUNDLE = issue("a.test").bundle()
NONSENSE = ["", "../a", "a/b", "a b", "a%2f", "ä", "a\0", "x" * 257, "a\n", "a.b"]
NO_NAMES = ["", "../a", "a/b", "a b", ".a", "a..b", "-a.test", "ä.test", "x" * 64, "a." * 127 + "ab", "a.test\n", "*.a"]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CertificateStore:
    return make_store(request.param, tmp_path / "store")


@pytest.fixture
def challenges(store: CertificateStore) -> Challenges:
    return Challenges(store)


def test_http(challenges: Challenges, store: CertificateStore) -> None:
    challenges.put_http(TOKEN, ANSWER, LATER)
    assert Challenges(store).http(TOKEN, NOW) == ANSWER
    assert challenges.http(TOKEN[:-1], NOW) is None
    challenges.remove_http(TOKEN)
    challenges.remove_http(TOKEN)
    assert challenges.http(TOKEN, NOW) is None


def test_tls_alpn(challenges: Challenges, store: CertificateStore) -> None:
    challenges.put_tls_alpn("A.test.", BUNDLE, LATER)
    assert Challenges(store).tls_alpn("a.TEST", NOW) == BUNDLE
    assert challenges.tls_alpn("b.test", NOW) is None
    challenges.remove_tls_alpn("a.test")
    assert challenges.tls_alpn("a.test", NOW) is None


@pytest.mark.parametrize(
    "name", ["1.2.0.192.in-addr.arpa", "_x.test", "xn--bcher-kva.test", "localhost", f"{'1.' * 32}ip6.arpa"]
)
def test_server_names_of_all_kinds(challenges: Challenges, name: str) -> None:
    challenges.put_tls_alpn(name, BUNDLE, LATER)
    assert challenges.tls_alpn(name, NOW) == BUNDLE


def test_what_has_expired_is_no_answer_and_is_swept(challenges: Challenges, store: CertificateStore) -> None:
    challenges.put_http(TOKEN, ANSWER, NOW)
    challenges.put_tls_alpn("a.test", BUNDLE, NOW)
    challenges.put_http("other", "other.x", LATER)
    assert challenges.http(TOKEN, NOW) is None
    assert challenges.tls_alpn("a.test", NOW) is None
    assert challenges.sweep(NOW) == 2
    assert challenges.sweep(NOW) == 0
    assert challenges.http("other", NOW) == "other.x"
    assert store.list_records("challenges") == ("http-01/other",)


@pytest.mark.parametrize("token", NONSENSE)
def test_what_is_no_token_has_no_answer_and_takes_none(challenges: Challenges, token: str) -> None:
    assert challenges.http(token, NOW) is None
    with pytest.raises(ValueError, match="no ACME token"):
        challenges.put_http(token, ANSWER, LATER)


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_server_name_has_no_answer_and_takes_none(challenges: Challenges, name: str) -> None:
    assert challenges.tls_alpn(name, NOW) is None
    with pytest.raises(ValueError, match="no server name"):
        challenges.put_tls_alpn(name, BUNDLE, LATER)


@given(st.text(max_size=300))
def test_any_text_may_be_asked_for(text: str) -> None:
    challenges = Challenges(MemoryStore())
    assert challenges.http(text, NOW) is None
    assert challenges.tls_alpn(text, NOW) is None


@pytest.mark.parametrize("answer", ["", "a", "a.b.c", "a.b\r\nX: y", "a. b"])
def test_what_is_no_key_authorization_is_refused(challenges: Challenges, answer: str) -> None:
    with pytest.raises(ValueError, match="no key authorization"):
        challenges.put_http(TOKEN, answer, LATER)


def test_a_time_has_a_zone(challenges: Challenges) -> None:
    with pytest.raises(ValueError, match="without zone"):
        challenges.put_http(TOKEN, ANSWER, LATER.replace(tzinfo=None))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda store: store.records.write("challenges/http-01/x", b"{"),
        lambda store: store.put_record("challenges", "http-01/x", {}),
        lambda store: store.put_record("challenges", "http-01/x", {"expires": "then", "answer": "a"}),
        lambda store: store.put_record("challenges", "http-01/x", {"expires": 1, "answer": "a"}),
        lambda store: store.put_record("challenges", "http-01/x", {"expires": LATER.isoformat()}),
    ],
)
def test_damaged_answers_are_store_errors_and_are_swept(
    challenges: Challenges, store: CertificateStore, spoil: Callable[[CertificateStore], None]
) -> None:
    spoil(store)
    with pytest.raises(StoreError, match="damaged"):
        challenges.http("x", NOW)
    assert challenges.sweep(NOW) == 1


def test_a_damaged_certificate_of_an_answer(challenges: Challenges, store: CertificateStore) -> None:
    store.put_record("challenges", "tls-alpn-01/a.test", {"expires": LATER.isoformat(), "answer": {}})
    with pytest.raises(StoreError, match=r"a\.test: the answer.*damaged"):
        challenges.tls_alpn("a.test", NOW)
