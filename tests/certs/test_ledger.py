"""The quota guard: what a CA grants, what was used of it, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime

import pytest

from tests.certs.plans import BORN, DAY, HOUR, MINUTE
from tlsproxy.certs.ledger import Budget, Ledger, ledger_name, registered_domain
from tlsproxy.certs.limits import LETSENCRYPT, STAGING, limits_of

NAMES = ("a.example.com", "b.example.com")
EMPTY = Ledger(LETSENCRYPT)
Spend = Callable[[Ledger, datetime], Ledger]


def spend(ledger: Ledger, times: int, what: Spend, now: datetime = BORN) -> Ledger:
    for _ in range(times):
        ledger = what(ledger, now)
    return ledger


def certificate(ledger: Ledger, now: datetime) -> Ledger:
    return ledger.record_certificate(NAMES, now)


def failure(ledger: Ledger, now: datetime) -> Ledger:
    return ledger.record_failed_authorization("a.example.com", now)


def order(ledger: Ledger, now: datetime) -> Ledger:
    return ledger.record_order(NAMES, now)


# --- what is refused


@pytest.mark.parametrize(
    ("what", "allowed", "free_after"),
    [
        (certificate, 4, 7 * DAY / 5),
        (failure, 4, 12 * MINUTE),
        (order, 299, 36 * (HOUR / 3600)),
    ],
)
def test_the_last_one_is_kept_for_a_person(what: Spend, allowed: int, free_after: object) -> None:
    assert spend(EMPTY, allowed - 1, what).check(NAMES, BORN) is None
    full = spend(EMPTY, allowed, what)
    refusal = full.check(NAMES, BORN)
    assert refusal is not None
    assert refusal.possible_at - BORN == free_after
    assert "`--force`" in refusal.sentence
    assert full.check(NAMES, refusal.possible_at) is None


def test_fifty_certificates_of_one_registered_domain() -> None:
    ledger = EMPTY
    for number in range(49):
        name = f"n{number}.example.com"
        assert ledger.check([name], BORN) is None
        ledger = ledger.record_certificate([name, f"x.{name}"], BORN)
    assert ledger.check(["new.example.com"], BORN) is not None
    assert ledger.check(["new.example.com", "new.example.net"], BORN) is not None
    assert ledger.check(["new.example.net"], BORN) is None


def test_the_sentence_says_how_much_of_what_is_used_and_when_it_goes_on() -> None:
    refusal = spend(EMPTY, 4, certificate).check(NAMES, BORN)
    assert refusal is not None
    assert refusal.sentence == (
        "Let's Encrypt grants 5 certificates within 7 days for exactly these names (a.example.com, b.example.com); "
        "4 of 5 are used, the last is kept for you. `--force` spends it, or wait until 2026-01-02 09:36 UTC."
    )


def test_where_nothing_is_left_nobody_is_told_to_force() -> None:
    refusal = spend(EMPTY, 5, failure).check(NAMES, BORN)
    assert refusal is not None
    assert "none is left. Wait until 2026-01-01 00:24 UTC." in refusal.sentence


def test_of_several_refusals_the_longest() -> None:
    refusal = spend(spend(EMPTY, 4, failure), 4, certificate).check(NAMES, BORN)
    assert refusal is not None
    assert refusal.possible_at == BORN + 7 * DAY / 5


# --- what is exempt


def test_a_renewal_with_ari_is_exempt_from_everything() -> None:
    full = spend(spend(spend(EMPTY, 5, certificate), 300, order), 5, failure)
    assert full.check(NAMES, BORN, replaces=True) is None
    assert full.check(NAMES, BORN) is not None


def test_a_renewal_of_the_same_names_is_exempt_from_orders_and_domain_only() -> None:
    ledger = spend(EMPTY, 300, order)
    for number in range(50):
        ledger = ledger.record_certificate([f"n{number}.example.com"], BORN)
    assert ledger.check(NAMES, BORN) is not None
    assert ledger.check(NAMES, BORN, renews=True) is None
    assert spend(ledger, 4, certificate).check(NAMES, BORN, renews=True) is not None


@pytest.mark.parametrize(("replaces", "renews"), [(True, False), (False, True)])
def test_what_the_ca_does_not_count_is_not_counted(replaces: bool, renews: bool) -> None:
    ledger = EMPTY.record_order(NAMES, BORN, replaces=replaces, renews=renews)
    ledger = ledger.record_certificate(NAMES, BORN, replaces=replaces, renews=renews)
    assert [key.partition(" ")[0] for key in ledger.full_at] == ["set"]


# --- how it is counted


def test_names_are_one_set_in_any_order_and_writing() -> None:
    ledger = spend(EMPTY, 4, certificate)
    assert ledger.check(["B.example.com.", "A.EXAMPLE.com"], BORN) is not None
    assert ledger.check(["a.example.com"], BORN) is None


def test_a_wildcard_is_validated_by_its_parent() -> None:
    ledger = spend(EMPTY, 4, lambda ledger, now: ledger.record_failed_authorization("*.example.com", now))
    assert ledger.check(["example.com"], BORN) is not None


def test_a_bucket_refills_evenly() -> None:
    ledger = spend(EMPTY, 4, failure)
    assert [row.used for row in rows(ledger, "failed validations within", (0, 11, 12, 24, 36, 47, 48))] == [
        4,
        4,
        3,
        2,
        1,
        1,
        0,
    ]


def test_failures_in_a_row_end_with_a_success() -> None:
    ledger = EMPTY
    for day in range(0, 400, 1):
        for _ in range(4):
            ledger = failure(ledger, BORN + day * DAY)
    now = BORN + 399 * DAY
    assert ledger.check(NAMES, now + HOUR) is not None
    assert certificate(ledger, now).check(NAMES, now + HOUR) is None


def test_accounts_are_counted_by_themselves() -> None:
    ledger = Ledger(LETSENCRYPT)
    for _ in range(9):
        assert ledger.check_account(BORN) is None
        ledger = ledger.record_account(BORN)
    refusal = ledger.check_account(BORN)
    assert refusal is not None
    assert refusal.possible_at == BORN + 18 * MINUTE


def test_a_clock_set_back_does_not_lock_anybody_out_for_years() -> None:
    ledger = spend(EMPTY, 5, certificate, BORN + 1000 * DAY)
    refusal = ledger.check(NAMES, BORN)
    assert refusal is not None
    assert refusal.possible_at <= BORN + 7 * DAY


def test_full_buckets_are_dropped() -> None:
    ledger = EMPTY
    for hour in range(24 * 60):
        now = BORN + hour * HOUR
        ledger = ledger.record_order(NAMES, now).record_certificate([f"n{hour}.example.com"], now)
    assert len(ledger.full_at) < 40


def test_the_record_brings_it_back_and_holds_names_for_people() -> None:
    ledger = Ledger(LETSENCRYPT, "https://ca.test", "https://ca.test/1", spend(EMPTY, 3, certificate).full_at)
    record = json.loads(json.dumps(ledger.to_record()))
    assert (record["directory"], record["account"]) == ("https://ca.test", "https://ca.test/1")
    assert Ledger.from_record(record, LETSENCRYPT, "https://ca.test", "https://ca.test/1") == ledger
    assert Ledger.from_record(None, LETSENCRYPT) == EMPTY


@pytest.mark.parametrize("record", [[], {"full_at": 5}, {"full_at": {"set x": "soon"}}])
def test_a_damaged_record_counts_nothing(record: object) -> None:
    assert Ledger.from_record(record, LETSENCRYPT) == EMPTY


def test_every_account_has_its_own_record() -> None:
    assert len({ledger_name("a"), ledger_name("a", "1"), ledger_name("b", "1")}) == 3


# --- what is shown


def test_the_budget_begins_with_the_scarcest() -> None:
    ledger = spend(order(EMPTY, BORN), 2, certificate)
    budget = ledger.budget(NAMES, BORN)
    assert budget[0] == Budget(
        "certificates within 7 days for exactly these names (a.example.com, b.example.com)", 2, 5, BORN + 7 * DAY / 5
    )
    assert [(row.used, row.of) for row in budget] == [(2, 5), (2, 50), (1, 300), *[(0, 5)] * 2, *[(0, 1152)] * 2]
    assert budget[-1].refills_at is None


# --- tables


@pytest.mark.parametrize(
    ("directory", "quota", "expected"),
    [
        ("letsencrypt", "auto", LETSENCRYPT),
        ("https://acme-v02.api.letsencrypt.org/directory", "auto", LETSENCRYPT),
        ("letsencrypt", "off", None),
        ("letsencrypt-staging", "auto", STAGING),
        ("letsencrypt-staging", "letsencrypt", STAGING),
        ("https://ca.test/dir", "auto", None),
        ("https://ca.test/dir", "letsencrypt", LETSENCRYPT),
    ],
)
def test_which_table(directory: str, quota: str, expected: object) -> None:
    assert limits_of(directory, quota) is expected


def test_without_a_table_nothing_is_counted() -> None:
    ledger = spend(spend(Ledger(None), 400, order), 400, certificate)
    assert (ledger.check(NAMES, BORN), ledger.budget(NAMES, BORN), ledger.full_at) == (None, (), {})


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("example.com", "example.com"),
        ("*.a.b.example.co.uk", "example.co.uk"),
        ("me.github.io", "me.github.io"),
        ("x.me.github.io", "me.github.io"),
        ("github.io", "github.io"),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::9", "2001:db8:1:2::/64"),
        ("xn--bcher-kva.example.de", "example.de"),
    ],
)
def test_registered_domains(name: str, domain: str) -> None:
    assert registered_domain(name) == domain


def test_the_list_of_public_suffixes_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, tlsproxy.certs.ledger, tlsproxy.certs.plan; assert 'publicsuffixlist' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def rows(ledger: Ledger, begin: str, minutes: tuple[int, ...]) -> list[Budget]:
    names = ("a.example.com",)
    return [
        next(row for row in ledger.budget(names, BORN + minute * MINUTE) if row.limit.startswith(begin))
        for minute in minutes
    ]
