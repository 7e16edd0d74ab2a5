"""What a CA sends is looked at before it counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.store.pki import issue
from tlsproxy.certs.handover import SKEW, accept
from tlsproxy.errors import CertificateError

NOW = datetime.now(UTC)


def test_what_is_good_becomes_a_bundle() -> None:
    pair = issue("a.test", "*.a.test", days=(0, 90))
    bundle = accept(pair.pem, pair.key_pem(), ["a.test", "*.a.test"], NOW)
    assert (bundle.source, bundle.names) == ("acme", ("a.test", "*.a.test"))
    assert bundle.key_pem == pair.key_pem()


def test_a_certificate_for_another_key_is_dropped() -> None:
    with pytest.raises(CertificateError, match="not for the key of this order"):
        accept(issue("a.test").pem, issue("a.test").key_pem(), ["a.test"], NOW)


def test_one_that_lacks_a_host_is_dropped() -> None:
    pair = issue("a.test")
    with pytest.raises(CertificateError, match=r"does not cover b\.test"):
        accept(pair.pem, pair.key_pem(), ["a.test", "b.test"], NOW)


@pytest.mark.parametrize(("days", "words"), [((-9, -1), "expired"), ((1, 90), "is not valid before")])
def test_one_of_another_time_is_dropped(days: tuple[float, float], words: str) -> None:
    pair = issue("a.test", days=days)
    with pytest.raises(CertificateError, match=words):
        accept(pair.pem, pair.key_pem(), ["a.test"], NOW)


def test_clocks_may_differ_a_little() -> None:
    begin = (SKEW - timedelta(minutes=1)) / timedelta(days=1)
    pair = issue("a.test", days=(begin, 90))
    assert accept(pair.pem, pair.key_pem(), ["a.test"], NOW).not_before > NOW


def test_what_is_no_certificate_is_dropped() -> None:
    with pytest.raises(CertificateError):
        accept(b"<html>", issue("a.test").key_pem(), ["a.test"], NOW)
