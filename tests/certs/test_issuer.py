"""One order against a fake CA: every step, and what a failure of each leads to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path

import pytest

from tests.certs.ordering import Desk, issuer_of, job_for, make_desk
from tests.fakes.acme_server import Problem, Reply
from tests.fakes.certificate_authority import CertificateAuthority
from tests.store.pki import issue
from tlsproxy.certs import issuer, validation
from tlsproxy.certs.inflight import OrdersInFlight
from tlsproxy.certs.job import Issued, Job
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.store.bundle import Bundle


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path) as ca:
        yield ca


@pytest.fixture
def desk() -> Iterator[Desk]:
    with make_desk() as desk:
        yield desk


def obtain(desk: Desk, job: Job) -> Issued:
    return asyncio.run(desk.issuer.obtain(job, desk.progress))


def failure_of(desk: Desk, job: Job) -> AcmeFailure:
    with pytest.raises(AcmeFailure) as caught:
        obtain(desk, job)
    return caught.value


def test_an_order_leads_to_a_bundle_and_leaves_nothing(desk: Desk, ca: CertificateAuthority) -> None:
    issued = obtain(desk, job_for(ca, "a.test", "b.test", "192.0.2.7"))
    bundle = issued.bundle
    assert bundle.check_names(["a.test", "b.test", "192.0.2.7"]) == []
    assert (bundle.source, bundle.directory, bundle.key_type) == ("acme", ca.directory, "ecdsa-p256")
    assert bundle.account in ca.accounts
    assert bundle.ari_id
    assert issued.winners == {"a.test": "tls-alpn-01", "b.test": "tls-alpn-01", "192.0.2.7": "tls-alpn-01"}
    assert desk.solvers[0].present_now == set()
    assert [step.kind for step in desk.steps][0::100] == ["account"]
    assert {step.kind for step in desk.steps} == {"account", "order", "challenge", "validation", "finalize", "download"}


def test_the_next_kind_of_challenge_is_tried_and_remembered(desk: Desk, ca: CertificateAuthority) -> None:
    refuse_once(ca, "a.test")
    issued = obtain(desk, job_for(ca))
    assert issued.winners == {"a.test": "http-01"}
    assert (ca.count["order"], ca.count["challenge"]) == (2, 2)
    assert [solver.present_now for solver in desk.solvers] == [set(), set()]
    asyncio.run(desk.issuer.forget("acme/a.test"))
    obtain(desk, job_for(ca, winners=dict(issued.winners)))
    assert (ca.count["order"], ca.count["challenge"]) == (3, 3)
    assert desk.solvers[0].log == ["present a.test", "clean a.test"]


def test_a_kind_that_can_not_be_made_ready_costs_no_order(desk: Desk, ca: CertificateAuthority) -> None:
    desk.solvers[0].fails = True
    assert obtain(desk, job_for(ca)).winners == {"a.test": "http-01"}
    assert ca.count["order"] == 1


def test_when_all_kinds_fail_the_ca_has_the_last_word(desk: Desk, ca: CertificateAuthority) -> None:
    ca.validation_fails("b.test", "connection", "192.0.2.1: Fetching http://b.test/x: Connection refused")
    failure = failure_of(desk, job_for(ca, "a.test", "b.test"))
    assert (failure.kind, failure.identifier, failure.address) == (FailureKind.VALIDATION, "b.test", "192.0.2.1")
    assert failure.directory == ca.directory
    assert ca.count["order"] == 2
    assert [solver.present_now for solver in desk.solvers] == [set(), set()]
    assert OrdersInFlight(desk.store).names() == ()


def test_a_wildcard_that_nothing_can_prove_is_refused_by_us(desk: Desk, ca: CertificateAuthority) -> None:
    failure = failure_of(desk, job_for(ca, "*.a.test"))
    assert (failure.kind, failure.identifier) == (FailureKind.REFUSED, "*.a.test")
    assert "dns-01" in str(failure)
    assert ca.count["challenge"] == 0


def test_a_wildcard_and_its_parent_are_proven_together(desk: Desk, ca: CertificateAuthority) -> None:
    """Two values under one name: both have to be there before the CA looks at the first."""
    with make_desk(dns=True) as desk:
        ca.when("challenge", lambda: seen.append(len(desk.solvers[-1].present_now)))
        seen: list[int] = []
        issued = obtain(desk, job_for(ca, "a.test", "*.a.test", winners={"a.test": "dns-01"}))
    assert seen == [2]
    assert issued.winners == {"a.test": "dns-01", "*.a.test": "dns-01"}
    assert issued.bundle.covers("x.a.test")


def test_the_predecessor_is_named(desk: Desk, ca: CertificateAuthority) -> None:
    first = obtain(desk, job_for(ca)).bundle
    desk.store.put("acme/a.test", first)
    obtain(desk, job_for(ca, replaces=first.ari_id))
    assert [each.get("replaces") for each in ca.payloads["order"]] == [None, first.ari_id]


@pytest.mark.parametrize(
    ("problem", "status"), [("alreadyReplaced", 409), ("unauthorized", 401), ("malformed", 400), ("malformed", 404)]
)
def test_a_ca_that_does_not_take_the_predecessor_is_asked_without(
    desk: Desk, ca: CertificateAuthority, problem: str, status: int
) -> None:
    ca.next_order_fails(problem, "no such certificate", status=status)
    obtain(desk, job_for(ca, replaces="aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"))
    assert ca.count["order"] == 2
    assert "replaces" not in ca.payloads["order"][-1]


@pytest.mark.parametrize("retry_after", ["3600", "date"])
def test_a_limit_of_the_ca_ends_the_job_and_says_until_when(
    desk: Desk, ca: CertificateAuthority, retry_after: str
) -> None:
    until = datetime.now(UTC) + timedelta(hours=1)
    header = format_datetime(until, usegmt=True) if retry_after == "date" else retry_after
    ca.next_order_fails("rateLimited", "too many certificates", status=429, headers={"Retry-After": header})
    failure = failure_of(desk, job_for(ca))
    assert failure.kind is FailureKind.RATE_LIMITED
    assert failure.retry_at
    assert abs(failure.retry_at - until) < timedelta(seconds=20)
    assert ca.count["order"] == 1


@pytest.mark.parametrize("step", ["directory", "account", "authorization", "challenge", "finalize", "certificate"])
def test_a_ca_that_is_busy_for_a_moment_costs_time_only(desk: Desk, ca: CertificateAuthority, step: str) -> None:
    ca.fails(step, status=503, body=b"<html>Service Unavailable</html>", headers={"Retry-After": "0"}, times=2)
    obtain(desk, job_for(ca))
    assert ca.count["order"] == 1


def test_a_ca_that_is_restarted_in_the_middle_costs_time_only(desk: Desk, ca: CertificateAuthority) -> None:
    def restart() -> None:
        ca.stop()
        ca.start()

    ca.when("challenge", lambda: threading.Thread(target=restart).start(), after=True)
    obtain(desk, job_for(ca))
    assert ca.count["order"] == 1


def test_a_ca_that_forgets_us_is_registered_with_again(desk: Desk, ca: CertificateAuthority) -> None:
    first = obtain(desk, job_for(ca)).bundle
    ca.forget()
    second = obtain(desk, job_for(ca)).bundle
    assert first.account != second.account
    assert list(ca.accounts) == [second.account]


def test_a_ca_that_forgets_us_in_the_middle_of_an_order(desk: Desk, ca: CertificateAuthority) -> None:
    ca.when("challenge", ca.forget)
    bundle = obtain(desk, job_for(ca)).bundle
    assert list(ca.accounts) == [bundle.account]
    assert desk.solvers[0].present_now == set()


def test_an_order_that_stays_in_processing_is_asked_for_again_next_time(
    desk: Desk, ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer, "FINALIZE_LIMIT", 0.5)
    ca.processing_polls = 10
    failure = failure_of(desk, job_for(ca))
    assert (failure.kind, failure.step) == (FailureKind.BUSY, "finalize")
    monkeypatch.setattr(issuer, "FINALIZE_LIMIT", 20.0)
    ca.processing_retry_after = "0"
    obtain(desk, job_for(ca))
    assert (ca.count["order"], ca.count["finalize"]) == (1, 1)


def test_an_order_that_the_ca_makes_invalid_is_placed_once_more(desk: Desk, ca: CertificateAuthority) -> None:
    ca.issuance_fails("caa", "CAA record for a.test prevents issuance")
    failure = failure_of(desk, job_for(ca))
    assert (failure.kind, failure.identifier) == (FailureKind.REFUSED, "a.test")
    assert "CAA" in str(failure)
    assert ca.count["order"] == 1


@pytest.mark.parametrize("step", ["order", "authorization", "challenge", "finalize", "certificate"])
def test_a_job_that_is_cancelled_is_cleaned_up_and_taken_up(desk: Desk, ca: CertificateAuthority, step: str) -> None:
    async def cancelled() -> None:
        loop, job = asyncio.get_running_loop(), asyncio.ensure_future(desk.issuer.obtain(job_for(ca), desk.progress))
        ca.when(step, lambda: loop.call_soon_threadsafe(job.cancel), after=True)
        with pytest.raises(asyncio.CancelledError):
            await job

    asyncio.run(cancelled())
    assert [solver.present_now for solver in desk.solvers] == [set(), set()]
    assert OrdersInFlight(desk.store).names() == ("acme/a.test",)
    obtain(desk, job_for(ca))
    assert (ca.count["order"], ca.count["finalize"]) == (1, 1)


def test_a_challenge_that_the_ca_is_done_with_needs_no_answer(desk: Desk, ca: CertificateAuthority) -> None:
    def be_done() -> None:
        for each in ca._authorizations.values():
            each.state = "valid"

    ca.when("challenge", be_done)
    ca.fails("challenge", "malformed", "Unable to update challenge :: authorization must be pending")
    obtain(desk, job_for(ca))
    ca.fails("challenge", "malformed", "no such thing", times=5)
    assert failure_of(desk, job_for(ca, "b.test")).detail == "no such thing"


@pytest.mark.parametrize("change", ["hosts", "key type", "age", "gone", "done", "garbage"])
def test_an_order_that_leads_elsewhere_is_not_taken_up(desk: Desk, ca: CertificateAuthority, change: str) -> None:
    bundle = obtain(desk, job_for(ca)).bundle  # remembered until the caller has stored the certificate
    job = job_for(ca)
    match change:
        case "hosts":
            job = replace(job, hosts=("a.test", "b.test"))
        case "key type":
            job = replace(job, key_type="ecdsa-p384")
        case "age":
            desk.clock.ahead = timedelta(days=6, hours=1)
        case "gone":
            ca._orders.clear()
        case "done":
            desk.store.put(job.name, bundle)
        case "garbage":
            desk.store.put_record("orders", job.name, {"url": 1})
    assert obtain(desk, job).bundle.serial != bundle.serial
    assert ca.count["order"] == 2


def test_what_is_forgotten_is_not_taken_up(desk: Desk, ca: CertificateAuthority) -> None:
    first = obtain(desk, job_for(ca)).bundle
    asyncio.run(desk.issuer.forget("acme/a.test"))
    second = obtain(desk, job_for(ca)).bundle
    assert first.key_pem != second.key_pem


@pytest.mark.parametrize("key_type", ["ecdsa-p384", "rsa-2048"])
def test_the_kind_of_key_is_as_configured(desk: Desk, ca: CertificateAuthority, key_type: str) -> None:
    assert obtain(desk, replace(job_for(ca), key_type=key_type)).bundle.key_type == key_type


def test_the_quota_is_kept_unless_forced(ca: CertificateAuthority) -> None:
    with make_desk(quota="letsencrypt") as desk:
        for _ in range(4):
            obtain(desk, job_for(ca))
            asyncio.run(desk.issuer.forget("acme/a.test"))
        failure = failure_of(desk, job_for(ca))
        assert (failure.kind, ca.count["order"]) == (FailureKind.QUOTA, 4)
        assert failure.retry_at
        assert failure.retry_at > datetime.now(UTC)
        assert "5 certificates" in str(failure)
        obtain(desk, replace(job_for(ca), force=True))
        obtain(desk, job_for(ca, "b.test"))


def test_what_the_quota_refuses_costs_no_request(ca: CertificateAuthority) -> None:
    with make_desk(quota="letsencrypt") as desk:
        use_up_set(desk, ca)
        asked = ca.count.total()
        assert failure_of(desk, job_for(ca)).kind is FailureKind.QUOTA
        assert ca.count.total() == asked


def test_who_is_refused_takes_up_an_order_all_the_same(ca: CertificateAuthority) -> None:
    with make_desk(quota="letsencrypt") as desk:
        use_up_set(desk, ca)
        obtain(desk, replace(job_for(ca), force=True))
        obtain(desk, job_for(ca))
        assert ca.count["order"] == 5


def test_jobs_side_by_side_spend_no_more_than_there_is(ca: CertificateAuthority) -> None:
    async def all_at_once(desk: Desk) -> list[Issued | BaseException]:
        jobs = [replace(job_for(ca), name=f"acme/{number}.test") for number in range(8)]
        return await asyncio.gather(*(desk.issuer.obtain(job, desk.progress) for job in jobs), return_exceptions=True)

    with make_desk(quota="letsencrypt") as desk:
        outcomes = asyncio.run(all_at_once(desk))
    assert sum(isinstance(each, Issued) for each in outcomes) == ca.count["order"] == 4
    refused = [each for each in outcomes if isinstance(each, AcmeFailure)]
    assert {each.kind for each in refused} == {FailureKind.QUOTA}
    assert len({each.retry_at for each in refused}) == 4, "they come back one by one"


@pytest.mark.parametrize("step", ["order", "finalize"])
def test_an_order_that_leads_to_nothing_takes_no_certificate_of_the_quota(ca: CertificateAuthority, step: str) -> None:
    with make_desk(quota="letsencrypt") as desk:
        ca.fails(step, "rejectedIdentifier", "not today", times=5)
        assert {failure_of(desk, job_for(ca)).kind for _ in range(5)} == {FailureKind.REFUSED}
        use_up_set(desk, ca)
        assert failure_of(desk, job_for(ca)).kind is FailureKind.QUOTA


def test_a_job_that_is_cancelled_gives_its_certificate_back(ca: CertificateAuthority) -> None:
    async def cancelled(desk: Desk) -> None:
        loop, job = asyncio.get_running_loop(), asyncio.ensure_future(desk.issuer.obtain(job_for(ca), desk.progress))
        ca.when("order", lambda: loop.call_soon_threadsafe(job.cancel), after=True)
        with pytest.raises(asyncio.CancelledError):
            await job

    with make_desk(quota="letsencrypt") as desk:
        asyncio.run(cancelled(desk))
        assert used(desk) == {"orders"}
        obtain(desk, job_for(ca))
        assert used(desk) == {"orders", "domain", "set"}


def test_a_predecessor_that_is_not_taken_makes_an_order_like_any_other(ca: CertificateAuthority) -> None:
    with make_desk(quota="letsencrypt") as desk:
        ca.next_order_fails("alreadyReplaced", "no such certificate", status=409)
        obtain(desk, job_for(ca, replaces="aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"))
        assert used(desk) == {"orders", "domain", "set"}
        asyncio.run(desk.issuer.forget("acme/a.test"))
        use_up_set(desk, ca, 3)
        ca.next_order_fails("alreadyReplaced", "no such certificate", status=409)
        asked = ca.count["order"]
        assert failure_of(desk, job_for(ca, replaces="aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")).kind is FailureKind.QUOTA
        assert ca.count["order"] == asked + 1


def test_failed_validations_use_up_the_quota(ca: CertificateAuthority) -> None:
    with make_desk(quota="letsencrypt") as desk:
        ca.validation_fails("a.test", "dns", "NXDOMAIN")
        kinds = [failure_of(desk, job_for(ca)).kind for _ in range(3)]
    assert kinds == [FailureKind.VALIDATION, FailureKind.VALIDATION, FailureKind.QUOTA]
    assert ca.count["challenge"] == 4  # two kinds each; the fifth is left for a person


def test_a_rehearsal_leaves_no_trace(desk: Desk, ca: CertificateAuthority, tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    with CertificateAuthority(tmp_path / "staging") as staging:
        job = replace(job_for(ca), issuer=issuer_of(ca, staging=staging), rehearsal=True)
        bundle = tmp_path / "both.pem"
        bundle.write_bytes(ca.ca_bundle.read_bytes() + staging.ca_bundle.read_bytes())
        job = replace(job, issuer=replace(job.issuer, ca_bundle=str(bundle)))
        obtain(desk, job)
        assert (staging.count["order"], ca.count["order"]) == (1, 0)
    assert OrdersInFlight(desk.store).names() == ()


def test_no_key_shows(desk: Desk, ca: CertificateAuthority) -> None:
    obtain(desk, job_for(ca))
    left = OrdersInFlight(desk.store).find("acme/a.test")
    assert left
    assert "PRIVATE" in left.key_pem
    assert "PRIVATE" not in repr(left) + str(desk.steps)


def use_up_set(desk: Desk, ca: CertificateAuthority, count: int = 4) -> None:
    """Obtain as many certificates for one set of names as the quota grants without force."""
    for _ in range(count):
        obtain(desk, job_for(ca))
        asyncio.run(desk.issuer.forget("acme/a.test"))


def used(desk: Desk) -> set[str]:
    """The kinds of limits that something is used of."""
    ledgers = [desk.store.get_record("ledger", name) or {} for name in desk.store.list_records("ledger")]
    return {key.partition(" ")[0] for ledger in ledgers for key in ledger.get("full_at", {})} - {"accounts"}


def refuse_once(ca: CertificateAuthority, host: str) -> None:
    """Let the CA refuse the next challenge of this host, and no other."""
    ca.validation_fails(host, "connection", f"192.0.2.1: Fetching http://{host}/x: Connection refused")
    ca.when("challenge", lambda: ca.validation_fails(host), after=True)


@pytest.mark.parametrize("stuck", ["order", "challenge"])
def test_an_order_that_the_ca_never_gets_done_with_is_placed_anew(
    desk: Desk, ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch, stuck: str
) -> None:
    monkeypatch.setattr(issuer, "FINALIZE_LIMIT", 0.1)
    monkeypatch.setattr(validation, "VALIDATION_LIMIT", 0.1)
    ca.processing_polls = 10**6 if stuck == "order" else 0
    if stuck == "challenge":
        monkeypatch.setattr(ca, "_challenge", partial(lose_answer, ca))
    kinds = [failure_of(desk, job_for(ca)).kind for _ in range(3)]
    assert (kinds, ca.count["order"]) == ([FailureKind.BUSY] * 3, 1)
    monkeypatch.undo()
    ca.processing_polls = 0
    obtain(desk, job_for(ca))
    assert ca.count["order"] == 2


def test_a_challenge_that_the_ca_has_lost_is_answered_again(
    desk: Desk, ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as during:
        during.setattr(validation, "VALIDATION_LIMIT", 0.1)
        during.setattr(ca, "_challenge", partial(lose_answer, ca))
        failure_of(desk, job_for(ca))
    obtain(desk, job_for(ca))
    assert (ca.count["order"], ca.count["challenge"]) == (1, 2)


@pytest.mark.parametrize(("life", "hours", "orders"), [(90, 26, 1), (90, 120, 2), (6, 8, 2), (0, 23, 1), (0, 26, 2)])
def test_the_life_of_the_certificate_says_how_long_an_order_is_worth_a_look(
    desk: Desk, ca: CertificateAuthority, life: float, hours: float, orders: int
) -> None:
    if life:
        held = issue("a.test", days=(0, life))
        desk.store.put("acme/a.test", Bundle.build([held.certificate], held.key, "acme"))
    obtain(desk, job_for(ca))
    desk.clock.ahead = timedelta(hours=hours)
    obtain(desk, job_for(ca))
    assert ca.count["order"] == orders


def lose_answer(ca: CertificateAuthority, account: str, name: str, payload: object) -> Reply:
    """What a CA does whose validator has died: the challenge stays in processing, the authorization pending."""
    authorization, _, number = name.partition(".")
    challenge = ca._authorizations[authorization].challenges[int(number)]
    if challenge["status"] == "processing":
        raise Problem("malformed", "it is being looked at", 400)
    challenge["status"] = "processing"
    return Reply(200, challenge)
