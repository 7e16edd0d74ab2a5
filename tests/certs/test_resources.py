"""What a CA sends becomes values, whatever it sends: a program that reads JSON of others must not stumble over it."""

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlsproxy.certs.problems import AcmeFailure, FailureKind, from_problem
from tlsproxy.certs.resources import Authorization, Challenge, Directory, Order, RenewalInfo, instant

URLS = {"newNonce": "https://ca.test/n", "newAccount": "https://ca.test/a", "newOrder": "https://ca.test/o"}
FIELDS = (
    *(
        "status",
        "identifiers",
        "identifier",
        "authorizations",
        "finalize",
        "certificate",
        "error",
        "expires",
        "profile",
    ),
    *("challenges", "wildcard", "type", "url", "token", "value", "detail", "subproblems", "meta", "profiles", "start"),
    *("suggestedWindow", "end", "explanationURL", "caaIdentities", "externalAccountRequired", "termsOfService"),
)
TEXTS = st.sampled_from(["valid", "invalid", "pending", "2026-01-02T03:04:05Z", "9999-12-31T23:59:59-23:59", "é\n"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=12,
)


@settings(max_examples=80)
@given(document=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8))
def test_any_object_becomes_a_value_or_a_failure(document: dict[str, Any]) -> None:
    order = Order.parse(document, "u")
    authorization = Authorization.parse(document, "u")
    Challenge.parse(document, "a.test")
    Directory.parse({**document, **URLS}, "u")
    for failure in (order.failure, authorization.failure, from_problem(document, step="order")):
        if isinstance(failure, AcmeFailure):
            assert str(failure)
            assert AcmeFailure.from_record(failure.to_record()).to_record() == failure.to_record()
    with contextlib.suppress(AcmeFailure):
        info = RenewalInfo.parse(document)
        assert info.start < info.end


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02t03:04:05.123456789z", datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)),
        ("2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05", None),
        ("2026-99-02T03:04:05Z", None),
        ("9999-12-31T23:59:59-23:59", None),
        ("soon", None),
        ("", None),
    ],
)
def test_times_of_a_ca_are_read_as_rfc_3339_writes_them(text: str, expected: datetime | None) -> None:
    assert instant(text) == expected


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("pending", None),
        ("valid", None),
        ("of a later version", None),
        ("invalid", FailureKind.VALIDATION),
        ("deactivated", FailureKind.BAD_ORDER),
        ("expired", FailureKind.BAD_ORDER),
        ("revoked", FailureKind.BAD_ORDER),
    ],
)
def test_an_authorization_fails_by_its_status_and_by_nothing_else(status: str, kind: FailureKind | None) -> None:
    """An error beside `pending` is one of several looks of the CA (RFC 8555 8.2); `invalid` needs no error."""
    challenge = {
        "type": "http-01",
        "url": "u",
        "token": "t",
        "error": {"type": "urn:x:connection", "detail": "refused"},
    }
    for challenges in ([challenge], []):
        document = {"status": status, "identifier": {"type": "dns", "value": "a.test"}, "challenges": challenges}
        failure = Authorization.parse(document, "u", directory="https://ca.test/d").failure
        assert (failure.kind if failure else None) == kind
        assert failure is None or (failure.identifier, failure.directory) == ("a.test", "https://ca.test/d")


@pytest.mark.parametrize("status", ["pending", "ready", "processing", "valid", "of a later version"])
def test_an_order_that_is_not_invalid_has_not_failed(status: str) -> None:
    assert Order.parse({"status": status, "error": {"type": "urn:x:caa"}}, "u").failure is None


def test_an_invalid_order_without_a_reason_has_failed_all_the_same() -> None:
    failure = Order.parse({"status": "invalid"}, "u").failure
    assert failure
    assert failure.kind is FailureKind.BAD_ORDER


@pytest.mark.parametrize("window", [None, {}, {"start": "2026-01-02T03:04:05Z"}, {"start": "x", "end": "y"}])
def test_renewal_information_without_a_window_is_none(window: object) -> None:
    with pytest.raises(AcmeFailure) as caught:
        RenewalInfo.parse({"suggestedWindow": window}, directory="https://ca.test/d")
    assert (caught.value.kind, caught.value.directory) == (FailureKind.INTERNAL, "https://ca.test/d")


def test_a_time_in_words_that_is_none_is_none() -> None:
    document = {"type": "urn:x:rateLimited", "detail": "retry after 2026-99-99 10:05:00 UTC"}
    assert from_problem(document, status=429).retry_at is None
