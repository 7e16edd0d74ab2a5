"""Certificates, CAs and moments for tests of plans: a fake clock that begins at BORN."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tlsproxy.certs.ari import with_ari
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.state import State, after_failure
from tlsproxy.certs.wanted import Held, IssuerId, Obtain, Wanted

BORN = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
CA, STAGING, OTHER = "https://ca.test/directory", "https://staging.ca.test/directory", "https://other.test/directory"
ACCOUNT = "https://ca.test/account/1"

FIRST = IssuerId(CA, staging=STAGING, account=ACCOUNT)
SECOND = IssuerId(OTHER)
WANTED = Wanted("acme/a.test", ("a.test", "b.test"), (FIRST,), "one")
TWO = replace(WANTED, issuers=(FIRST, SECOND))
SITE = Held(
    names=("a.test", "b.test"),
    not_before=BORN,
    not_after=BORN + 90 * DAY,
    serial="5e",
    fingerprint="f1",
    issuer="CN=R1",
    directory=CA,
    account=ACCOUNT,
    ari_id="aki.serial",
)


def at(days: float) -> datetime:
    return BORN + days * DAY


def living(life: timedelta, ari_id: str = "aki.serial") -> Held:
    return replace(SITE, not_after=BORN + life, ari_id=ari_id)


def windowed(start: datetime, end: datetime, held: Held = SITE, url: str = "", state: State | None = None) -> State:
    """A state that knows the CA's window for `held`."""
    return with_ari(state or State(), held, start, end, url, retry_after=None, now=BORN)


def failed(
    *failures: AcmeFailure | FailureKind,
    now: datetime = BORN,
    state: State | None = None,
    wanted: Wanted = WANTED,
    held: Held | None = None,
    action: Obtain | None = None,
    rnd: float = 0.5,
) -> State:
    """The state after these failures, all at once at the CA whose turn it was."""
    state = state or State()
    for failure in failures:
        error = AcmeFailure(failure) if isinstance(failure, FailureKind) else failure
        done = action or Obtain("test", issuer=state.issuer)
        state = after_failure(state, error, action=done, wanted=wanted, held=held, now=now, rnd=rnd)
    return state
