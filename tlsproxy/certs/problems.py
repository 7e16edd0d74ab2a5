"""What a CA or the way to it can answer instead of a certificate, as one kind of error. PURE: must not import `acme`.

Knows: the problem types of RFC 8555 6.7 and RFC 9773, which of them pass by themselves and which wait for a person.
Does not know: requests, retries, stores; how a CA's own words become a sentence (wording.py does).
Rule: whatever goes wrong between us and a CA leaves this room as an AcmeFailure, and its text ends with what to do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from tlsproxy.certs import wording
from tlsproxy.errors import TlsproxyError


class FailureKind(StrEnum):
    """What a failure means for the next attempt."""

    UNREACHABLE = "unreachable"
    """No answer: DNS, network, TLS of the CA. Passes by itself, or never (a wrong URL); retried."""
    BUSY = "busy"
    """The CA has trouble (5xx) or asks for patience; retried, not before `retry_at`."""
    RATE_LIMITED = "rate_limited"
    """A limit of the CA; nothing before `retry_at`."""
    VALIDATION = "validation"
    """The CA has looked at the host and not found what it must find."""
    REFUSED = "refused"
    """Stays so until somebody changes the configuration (or the world outside): parked, never retried by itself."""
    ACCOUNT_GONE = "account_gone"
    """The CA does not know the account, or has closed it: register again."""
    ALREADY_REPLACED = "already_replaced"
    """The certificate named in `replaces` has a successor: order once more without it (RFC 9773 5)."""
    BAD_ORDER = "bad_order"
    """The order, or something in it, is of no use any more: begin a new one."""
    STORE = "store"
    """Our own store can't be used."""
    QUOTA = "quota"
    """Refused by ourselves: it would burn what the CA grants."""
    CANCELLED = "cancelled"
    """Stopped by us, with nobody to blame."""
    INTERNAL = "internal"
    """A fault of ours, or an answer that no ACME server may give."""


@dataclass(eq=False, repr=False)
class AcmeFailure(TlsproxyError):
    """One failure on the way to a certificate. `str()` is one sentence for a person, and what to do.

    `type` is the last part of the problem's URN ("rateLimited"), "" if the CA named none. `detail` is the CA's own
    text. `status` is the HTTP status, None if there was no answer. `retry_at` is when the CA wants to be asked again
    (UTC). `identifier` is the host it is about, `address` the address the CA tried, `step` what was being done
    (directory, account, rollover, order, authorization, challenge, validation, finalize, poll, download, renewal,
    revoke), `directory` the CA. Where no CA has spoken, `type` is "" or one of transport.py and `detail` is ours.
    """

    kind: FailureKind
    _: KW_ONLY
    type: str = ""
    detail: str = ""
    status: int | None = None
    retry_at: datetime | None = None
    identifier: str = ""
    address: str = ""
    step: str = ""
    directory: str = ""
    subproblems: tuple[AcmeFailure, ...] = ()

    def __str__(self) -> str:
        return wording.sentence(self)

    def __repr__(self) -> str:
        return f"<AcmeFailure {self.kind} {self.type or '-'} {self.status or '-'} {self.identifier or self.directory}>"

    def about(self, identifier: str, *, step: str = "") -> AcmeFailure:
        """Return the same failure with the host (and step) it belongs to, where it does not say so itself."""
        return replace(self, identifier=self.identifier or identifier, step=self.step or step)

    def to_record(self) -> dict[str, Any]:
        """Return JSON values; empty fields are left out."""
        record: dict[str, Any] = {"kind": str(self.kind)}
        for name in (*_TEXTS, "status"):
            if getattr(self, name):
                record[name] = getattr(self, name)
        if self.retry_at:
            record["retry_at"] = self.retry_at.isoformat()
        if self.subproblems:
            record["subproblems"] = [each.to_record() for each in self.subproblems]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Rebuild from `to_record`. Unknown fields are ignored, an unknown kind is INTERNAL."""
        texts = {name: str(record.get(name, "")) for name in _TEXTS}
        status, again = record.get("status"), record.get("retry_at")
        return cls(
            _kind_named(record.get("kind")),
            **texts,
            status=status if isinstance(status, int) else None,
            retry_at=_instant(again) if isinstance(again, str) else None,
            subproblems=tuple(cls.from_record(each) for each in record.get("subproblems", ())),
        )


_TEXTS = ("type", "detail", "identifier", "address", "step", "directory")

_ORDER_STEPS = {"authorization", "challenge", "finalize", "poll", "download"}
"""The steps that work on an order that is there already: if it is refused, another order may succeed."""

_BY_TYPE = {
    "accountDoesNotExist": FailureKind.ACCOUNT_GONE,
    "alreadyReplaced": FailureKind.ALREADY_REPLACED,
    "badCSR": FailureKind.REFUSED,
    "badNonce": FailureKind.BUSY,
    "badPublicKey": FailureKind.REFUSED,
    "badSignatureAlgorithm": FailureKind.REFUSED,
    "connection": FailureKind.VALIDATION,
    "dns": FailureKind.VALIDATION,
    "dnssec": FailureKind.VALIDATION,
    "externalAccountRequired": FailureKind.REFUSED,
    "incorrectResponse": FailureKind.VALIDATION,
    "invalidContact": FailureKind.REFUSED,
    "invalidProfile": FailureKind.REFUSED,
    "orderNotReady": FailureKind.BAD_ORDER,
    "rejectedIdentifier": FailureKind.REFUSED,
    "serverInternal": FailureKind.BUSY,
    "tls": FailureKind.VALIDATION,
    "unknownHost": FailureKind.VALIDATION,
    "unsupportedContact": FailureKind.REFUSED,
    "unsupportedIdentifier": FailureKind.REFUSED,
    "userActionRequired": FailureKind.REFUSED,
}
"""What does not stand here (malformed, unauthorized, types of later RFCs and of single CAs …) is judged by the HTTP
status and the step, and as a rule refused for good."""

_URN = "urn:ietf:params:acme:error:"
_CLOSED_ACCOUNT = re.compile(r"(?i)account (?:is not valid|.*deactivated|.*revoked)|key exists but is deactivated")
_STALE_KEY = re.compile(r"(?i)(?<!binding )JWS verification error")
"""The account has another key by now: somebody has replaced it. What the store says about the account is newer."""
_PAUSED = re.compile(r"(?i)temporarily prevented from requesting")
_PASSING_CAA = re.compile(r"(?i)DNS problem|SERVFAIL|timed out|timeout|looking up CAA")
_RETRY_IN_WORDS = re.compile(r"(?i)retry after (\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d) ?(?:UTC|Z)")
_NAMED_IN_WORDS = re.compile(r'(?:Cannot issue for|forbidden by policy:) "([^"]+)"')
_LONGEST_DETAIL = 1000


def from_problem(
    document: Mapping[str, Any],
    *,
    status: int | None = None,
    retry_at: datetime | None = None,
    step: str = "",
    directory: str = "",
    identifier: str = "",
) -> AcmeFailure:
    """Build from a problem document (RFC 7807), at most one level of subproblems deep (RFC 8555 6.7.1).

    Takes whatever a CA sends: wrong JSON types count as absent.
    """
    whose = _identifier_of(document) or identifier
    parts = document.get("subproblems")
    below = tuple(
        from_problem({**part, "subproblems": None}, status=status, step=step, directory=directory, identifier=whose)
        for part in (parts if isinstance(parts, list) else ())[:100]
        if isinstance(part, dict)
    )
    kind_of, detail = _type_in(_text(document.get("type"))), clean(_text(document.get("detail")))
    return AcmeFailure(
        classify(kind_of, detail, status, step, tuple(each.kind for each in below)),
        type=kind_of,
        detail=detail,
        status=status,
        retry_at=retry_at or _retry_in_words(detail),
        identifier=whose if whose or len(below) != 1 else below[0].identifier,
        address=wording.address_in(detail),
        step=step,
        directory=directory,
        subproblems=below,
    )


def _type_in(urn: str) -> str:
    """Return the ACME type, "" for another's: about:blank, or the page of a firewall that speaks RFC 7807 as well."""
    return urn.removeprefix(_URN) if urn.startswith(_URN) else ""


def classify(
    problem: str, detail: str, status: int | None, step: str, below: tuple[FailureKind, ...] = ()
) -> FailureKind:
    """Tell what a problem type means. `below` are the kinds of its subproblems."""
    if problem == "compound" and below:
        return FailureKind.REFUSED if FailureKind.REFUSED in below else below[0]
    if problem == "rateLimited":
        return _limited(detail, status)
    if problem == "caa":  # forbidden by a record stays forbidden; a CAA record that could not be read may pass
        return FailureKind.VALIDATION if _PASSING_CAA.search(detail) else FailureKind.REFUSED
    if problem in ("unauthorized", "malformed") and step == "validation":
        return FailureKind.VALIDATION  # of what was found; Pebble also says malformed of a name without an address
    if (problem == "unauthorized" and _CLOSED_ACCOUNT.search(detail)) or _STALE_KEY.search(detail):
        return FailureKind.ACCOUNT_GONE
    if problem == "malformed" and step == "account" and not wording.names_binding(detail):
        # It says nothing of a contact, a key or a binding. Parked on that, no name would ever be renewed.
        return FailureKind.BUSY
    return _BY_TYPE.get(problem) or _by_status(problem, status, step)


def _limited(detail: str, status: int | None) -> FailureKind:
    if _PAUSED.search(detail):  # a person has to lift it on the CA's web site
        return FailureKind.REFUSED
    return FailureKind.BUSY if status == 503 else FailureKind.RATE_LIMITED


def _by_status(problem: str, status: int | None, step: str) -> FailureKind:
    if status is not None and (status >= 500 or status in (408, 425)):
        return FailureKind.BUSY
    if status == 429:
        return FailureKind.RATE_LIMITED
    if status == 409 and step == "order" and not problem:
        return FailureKind.ALREADY_REPLACED
    if step in _ORDER_STEPS and problem in ("", "malformed", "unauthorized"):
        return FailureKind.BAD_ORDER
    if problem:
        return FailureKind.REFUSED
    # No ACME server speaks without a type. Something before it does, or another server: that may pass.
    return FailureKind.VALIDATION if step == "validation" else FailureKind.UNREACHABLE


def clean(text: str) -> str:
    """Return text of others fit for a log line and a terminal: one line, no control characters, not endless."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if len(line) <= _LONGEST_DETAIL else f"{line[:_LONGEST_DETAIL]}…"


def _identifier_of(document: Mapping[str, Any]) -> str:
    """Return the host that a problem names in its field, or in words that Boulder and Pebble write."""
    identifier = document.get("identifier")
    if isinstance(identifier, dict):
        return clean(_text(identifier.get("value")))
    found = _NAMED_IN_WORDS.search(_text(document.get("detail")))
    return clean(found[1]) if found else ""


def _retry_in_words(detail: str) -> datetime | None:
    """Read the time that Let's Encrypt also writes into the text ("retry after 2026-11-05 10:05:00 UTC")."""
    found = _RETRY_IN_WORDS.search(detail)
    return _instant(f"{found[1]}+00:00") if found else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _kind_named(value: object) -> FailureKind:
    return next((kind for kind in FailureKind if kind == value), FailureKind.INTERNAL)


def _instant(text: str) -> datetime | None:
    """Return the instant with its zone, None for what is none: a record must not keep a store from being read."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return instant if instant.tzinfo else None
