"""What a CA sends is looked at before it counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.store.pki import issue
from tlsproxy.certs.handover import SKEW, accept, clock_problem
from tlsproxy.errors import CertificateError

NOW = datetime.now(UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


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


def test_one_of_another_time_is_dropped() -> None:
    pair = issue("a.test", days=(-9, -1))
    with pytest.raises(CertificateError, match="expired"):
        accept(pair.pem, pair.key_pem(), ["a.test"], NOW)


@pytest.mark.parametrize(("ahead", "is_told"), [(-HOUR, False), (SKEW - MINUTE, False), (2.5 * HOUR, True)])
def test_one_that_begins_later_is_kept_and_tells_that_the_clock_is_behind(ahead: timedelta, is_told: bool) -> None:
    pair = issue("a.test", days=(ahead / timedelta(days=1), 90))
    bundle = accept(pair.pem, pair.key_pem(), ["a.test"], NOW)
    assert ("2 hours behind" in clock_problem(bundle, NOW)) == is_told
    assert bool(clock_problem(bundle, NOW)) == is_told


def test_what_is_no_certificate_is_dropped() -> None:
    with pytest.raises(CertificateError):
        accept(b"<html>", issue("a.test").key_pem(), ["a.test"], NOW)
