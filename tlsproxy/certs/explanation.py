"""Why a certificate is as it is, and what comes next: the answer of `admin certs why`, as values and in words. PURE.

Knows: plans, states, the words for them. Does not know: stores, terminals. Rule: a sentence says what happened, why and
what to do; the CA's own words are quoted, never paraphrased.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tlsproxy.certs import plan_internal
from tlsproxy.certs.ledger import Budget
from tlsproxy.certs.plan import Action, Obtain, Park, Wait, plan
from tlsproxy.certs.words import listing, moment, span

if TYPE_CHECKING:
    from tlsproxy.certs.catalogue import Entry
    from tlsproxy.certs.outages import Outage
    from tlsproxy.certs.wanted import Wanted
    from tlsproxy.store.bundle import Bundle


def explain(
    entry: Entry, quota: list[dict[str, Any]], now: datetime, away: Mapping[str, Outage] | None = None
) -> dict[str, Any]:
    """Return the decision about one certificate with all that led to it.

    `decision` is obtain, wait, park (until somebody does something) or nothing (it is not ours to renew); `next` is
    {what, when}, `when` None if nobody knows. `away` are the CAs that a running proxy leaves alone now.
    """
    away = away or {}
    decision, reason, then = _decide(entry, now, away)
    state = entry.state
    answer = {
        "name": entry.name,
        "decision": decision,
        "reason": reason,
        "next": then,
        "attempts": state.attempts,
        "failing_since": utc(state.failing_since),
        "last_error": _last_error(entry),
        "quota": quota,
        "history": [{"when": utc(event.when), "what": event.what, "text": event.text} for event in state.history],
    }
    return {**answer, "sentences": [*_sentences(entry, answer, now, away)]}


def quota_rows(budgets: Iterable[Budget], directory: str) -> list[dict[str, Any]]:
    """Return the lines of a ledger as JSON."""
    return [
        {"ca": directory, "limit": row.limit, "used": row.used, "of": row.of, "refills_at": utc(row.refills_at)}
        for row in budgets
    ]


def utc(when: datetime | None) -> str | None:
    """Return RFC 3339 in UTC, e.g. "2026-03-01T04:05:06Z"."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if when else None


def _decide(entry: Entry, now: datetime, away: Mapping[str, Outage]) -> tuple[str, str, dict[str, Any]]:
    if entry.wanted and entry.is_withheld:
        what = "the proxy looks again every few minutes"
        return "park", "it may be good, so none is ordered in its place", {"what": what, "when": None}
    if entry.wanted:
        action = plan(entry.wanted, entry.held, entry.state, now, away=away)
        return _word(action), action.reason, _next(action, entry, now)
    if entry.kind == "internal":
        return _decide_internal(entry.bundles[0] if entry.bundles else None, now)
    if entry.kind == "file":
        what = "the files are loaded again when they change; whoever writes them renews it"
        return "nothing", "it comes from files", {"what": what, "when": None}
    what = f"it is kept and not renewed; to remove it: tlsproxy admin certs remove {entry.name}"
    return "nothing", "no site uses it", {"what": what, "when": None}


def _decide_internal(bundle: Bundle | None, now: datetime) -> tuple[str, str, dict[str, Any]]:
    what = "the internal CA makes another one"
    if bundle is None:
        return "obtain", "there is no certificate yet", {"what": what, "when": utc(now)}
    due = plan_internal.renewal_time(bundle)
    if due <= now:
        return "obtain", "a third of its life is left", {"what": what, "when": utc(now)}
    return "wait", "a third of its life is left then", {"what": what, "when": utc(due)}


def _word(action: Action) -> str:
    return {Obtain: "obtain", Wait: "wait", Park: "park"}[type(action)]


def _next(action: Action, entry: Entry, now: datetime) -> dict[str, Any]:
    """Say what happens next: for a wait, what the plan will be when it is over."""
    if isinstance(action, Park):
        on_demand = entry.wanted is not None and entry.wanted.on_demand and not entry.state.refused
        what = "a client asks for it" if on_demand else "somebody changes the configuration, or asks for it by hand"
        return {"what": f"nothing, until {what}", "when": None}
    when = now if isinstance(action, Obtain) else action.until
    return {"what": _then(action, entry), "when": utc(when)}


def _then(action: Obtain | Wait, entry: Entry) -> str:
    wanted = entry.wanted
    if wanted is None:
        return "nothing"
    then = action if isinstance(action, Obtain) else plan(wanted, entry.held, entry.state, action.until)
    if isinstance(then, Obtain):
        return _order_words(then, wanted)
    return "it expires" if isinstance(then, Park) else "it is looked at again"


def _order_words(action: Obtain, wanted: Wanted) -> str:
    issuer = wanted.issuers[action.issuer]
    profile = f" with profile {issuer.profile}" if issuer.profile else ""
    order = f"a certificate is ordered from {issuer.directory}{profile}"
    return f"a rehearsal at {issuer.staging}; if that goes well, {order}" if action.rehearse else order


def _last_error(entry: Entry) -> dict[str, Any] | None:
    error = entry.state.last_error
    if error is None:
        return {"sentence": entry.problem, "when": None} if entry.problem else None
    return {
        "sentence": error.sentence,
        "ca_words": error.ca_words,
        "address": error.address,
        "when": utc(error.when),
        "rehearsal": error.rehearsal,
    }


# --- in words


def _sentences(entry: Entry, answer: dict[str, Any], now: datetime, away: Mapping[str, Outage]) -> Iterator[str]:
    yield _certificate_words(entry, now)
    yield _decision_words(answer)
    yield from _outage_words(entry, answer, away)
    yield from _error_words(entry)
    yield from _quota_words(answer["quota"])
    yield from (f"{moment(event.when)}  {event.what}: {event.text}" for event in entry.state.history)


def _certificate_words(entry: Entry, now: datetime) -> str:
    hosts = listing(entry.hosts) or "no site"
    if not entry.bundles and entry.problem:
        return f"{entry.name}: the certificate for {hosts} cannot be read."
    if not entry.bundles:
        return f"{entry.name}: there is no certificate for {hosts}."
    bundle = entry.bundles[0]
    what = f"the certificate for {listing(bundle.names)}, issued by {bundle.issuer}"
    if bundle.is_expired(now):
        return f"{entry.name}: {what}, expired on {moment(bundle.not_after)}."
    left = span(bundle.not_after - now)
    return f"{entry.name}: {what}, is valid until {moment(bundle.not_after)}, {left}."


def _decision_words(answer: dict[str, Any]) -> str:
    what, when = answer["next"]["what"], answer["next"]["when"]
    reason = answer["reason"]
    if answer["decision"] == "wait":
        return f"It waits until {_at(when)}: {reason}. Then {what}."
    if answer["decision"] == "obtain":
        return f"A certificate is due: {reason}. Next, as soon as the proxy runs: {what}."
    return f"Nothing is done: {reason}. Next: {what}."


def _outage_words(entry: Entry, answer: dict[str, Any], away: Mapping[str, Outage]) -> Iterator[str]:
    """Say what another certificate has met, if this one waits for that reason."""
    for issuer in entry.wanted.issuers if entry.wanted else ():
        outage = away.get(issuer.directory)
        if outage and outage.words in answer["reason"]:
            yield f"Another certificate was told: {outage.error}"


def _error_words(entry: Entry) -> Iterator[str]:
    error = entry.state.last_error
    if entry.problem:
        yield entry.problem
    if error is None:
        return
    where = "The rehearsal" if error.rehearsal else "The attempt"
    count = f", failure {entry.state.attempts} in a row" if entry.state.attempts > 1 else ""
    yield f"{where} of {moment(error.when)} failed{count}: {error.sentence}"
    if error.ca_words and error.ca_words not in error.sentence:
        yield f'The CA\'s own words: "{error.ca_words}"'
    if error.address and error.address not in error.sentence:
        yield f"The address that the CA tried: {error.address}"


def _quota_words(quota: list[dict[str, Any]]) -> Iterator[str]:
    for row in quota:
        if row["used"]:
            yield f"Used {row['used']} of {row['of']} {row['limit']}; one more is free on {_at(row['refills_at'])}."


def _at(when: str) -> str:
    return moment(datetime.fromisoformat(when))
