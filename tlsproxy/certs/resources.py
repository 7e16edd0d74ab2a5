"""What a CA's resources (RFC 8555 7.1) are for us, as values. PURE: must not import `acme`.

Knows: the fields that an order needs. Does not know: requests, keys. Rule: statuses and challenge types are plain text,
so that what a later RFC adds passes through; only what no order can go on without is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from tlsproxy.certs.problems import AcmeFailure, FailureKind, clean, from_problem


@dataclass(frozen=True, slots=True)
class Eab:
    """The CA's proof that an account belongs to a customer (RFC 8555 7.3.4). `hmac_key` is base64url."""

    kid: str
    hmac_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Directory:
    """What a CA offers. `profiles` maps names to descriptions; `terms` is the URL of the terms of service."""

    url: str
    profiles: Mapping[str, str] = field(default_factory=dict)
    eab_required: bool = False
    has_renewal_info: bool = False
    terms: str = ""
    caa_identities: tuple[str, ...] = ()

    @classmethod
    def parse(cls, document: Mapping[str, Any], url: str) -> Self:
        """Read it (RFC 8555 7.1.1). Raises AcmeFailure if it is no directory."""
        if missing := [name for name in ("newNonce", "newAccount", "newOrder") if not _text(document, name)]:
            raise AcmeFailure(
                FailureKind.UNREACHABLE,
                type="caAnswer",
                detail=f"no ACME directory: it has no {', '.join(missing)}",
                step="directory",
                directory=url,
            )
        meta = _object(document, "meta")
        return cls(
            url=url,
            profiles={clean(name): clean(str(text)) for name, text in _object(meta, "profiles").items()},
            eab_required=meta.get("externalAccountRequired") is True,
            has_renewal_info=bool(_text(document, "renewalInfo")),
            terms=_text(meta, "termsOfService"),
            caa_identities=_texts(meta, "caaIdentities"),
        )


@dataclass(frozen=True, slots=True)
class Order:
    """An order: status pending | ready | processing | valid | invalid, or what a CA else may say.

    `authorizations`, `finalize` and `certificate` are URLs. `error` is why it is invalid. `retry_after` is seconds.
    """

    url: str
    status: str
    identifiers: tuple[str, ...] = ()
    authorizations: tuple[str, ...] = ()
    finalize: str = ""
    certificate: str = ""
    error: AcmeFailure | None = None
    expires: datetime | None = None
    retry_after: float | None = None
    profile: str = ""
    directory: str = ""

    @property
    def failure(self) -> AcmeFailure | None:
        """Why it is invalid, None if it is not."""
        if self.status != "invalid":
            return None
        return self.error or AcmeFailure(
            FailureKind.BAD_ORDER, detail="the CA gave no reason", step="poll", directory=self.directory
        )

    @classmethod
    def parse(
        cls, document: Mapping[str, Any], url: str, *, directory: str = "", retry_after: float | None = None
    ) -> Self:
        """Read it (RFC 8555 7.1.3)."""
        identifiers = document.get("identifiers")
        error = _object(document, "error")
        return cls(
            url=url,
            status=_text(document, "status"),
            identifiers=tuple(
                _text(each, "value")
                for each in (identifiers if isinstance(identifiers, list) else ())
                if isinstance(each, dict)
            ),
            authorizations=_texts(document, "authorizations"),
            finalize=_text(document, "finalize"),
            certificate=_text(document, "certificate"),
            error=from_problem(error, step="validation", directory=directory) if error else None,
            expires=instant(_text(document, "expires")),
            retry_after=retry_after,
            profile=_text(document, "profile"),
            directory=directory,
        )


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to prove control. `type` may be one that we never heard of; `token` is "" for those without one."""

    type: str
    url: str
    token: str = ""
    status: str = "pending"
    failure: AcmeFailure | None = None

    @classmethod
    def parse(cls, document: Mapping[str, Any], identifier: str, *, directory: str = "") -> Self:
        """Read it (RFC 8555 8). `identifier` is whom its error is about."""
        error = _object(document, "error")
        return cls(
            type=_text(document, "type"),
            url=_text(document, "url"),
            token=_text(document, "token"),
            status=_text(document, "status") or "pending",
            failure=from_problem(error, step="validation", directory=directory, identifier=identifier)
            if error
            else None,
        )


@dataclass(frozen=True, slots=True)
class Authorization:
    """What has to be proven for one identifier (without the `*.` of a wildcard: `is_wildcard` says so).

    `retry_after` is seconds.
    """

    url: str
    identifier: str
    is_wildcard: bool
    status: str
    challenges: tuple[Challenge, ...] = ()
    retry_after: float | None = None
    directory: str = ""

    @classmethod
    def parse(
        cls, document: Mapping[str, Any], url: str, *, directory: str = "", retry_after: float | None = None
    ) -> Self:
        """Read it (RFC 8555 7.1.4)."""
        identifier, challenges = _text(_object(document, "identifier"), "value"), document.get("challenges")
        return cls(
            url=url,
            identifier=identifier,
            is_wildcard=document.get("wildcard") is True,
            status=_text(document, "status"),
            challenges=tuple(
                Challenge.parse(each, identifier, directory=directory)
                for each in (challenges if isinstance(challenges, list) else ())
                if isinstance(each, dict)
            ),
            retry_after=retry_after,
            directory=directory,
        )

    @property
    def failure(self) -> AcmeFailure | None:
        """Why it can't be used, None if it is valid or may become so.

        An error beside a status of pending is one look of several that the CA takes (RFC 8555 8.2).
        """
        if self.status in _ENDED:
            return AcmeFailure(FailureKind.BAD_ORDER, detail=f"the authorization is {self.status}", **self._whose)
        if self.status != "invalid":
            return None
        reason = next((each.failure for each in self.challenges if each.failure), None)
        return reason or AcmeFailure(FailureKind.VALIDATION, **self._whose)

    @property
    def _whose(self) -> dict[str, Any]:
        return {"identifier": self.identifier, "step": "validation", "directory": self.directory}


_ENDED = ("deactivated", "expired", "revoked")


@dataclass(frozen=True, slots=True)
class RenewalInfo:
    """When the CA wants a certificate renewed (RFC 9773 4.2). `retry_after` is seconds."""

    start: datetime
    end: datetime
    explanation_url: str = ""
    retry_after: float | None = None

    @classmethod
    def parse(cls, document: Mapping[str, Any], *, directory: str = "", retry_after: float | None = None) -> Self:
        """Read it. Raises AcmeFailure for a window that is none: whoever asked goes by the certificate's age then."""
        window = _object(document, "suggestedWindow")
        start, end = (instant(_text(window, name)) for name in ("start", "end"))
        if start is None or end is None or end <= start:
            raise AcmeFailure(
                FailureKind.INTERNAL,
                type="caAnswer",
                detail="renewal information without a window of time",
                step="renewal",
                directory=directory,
            )
        return cls(start, end, clean(_text(document, "explanationURL")), retry_after)


def instant(text: str) -> datetime | None:
    """Return the instant of an RFC 3339 time in UTC, None for what is none."""
    try:
        when = datetime.fromisoformat(text.upper())
        return when.astimezone(UTC) if when.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    return value if isinstance(value, str) else ""


def _texts(document: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = document.get(name)
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()


def _object(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}
