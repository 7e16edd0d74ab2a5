"""What a CA's resources (RFC 8555 7.1) are for us, as values. PURE: must not import `acme`.

Knows: the fields that an order needs. Does not know: requests, keys. Rule: statuses and challenge types are plain text,
so that what a later RFC adds passes through; only what no order can go on without is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tlsproxy.certs.problems import AcmeFailure


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


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to prove control. `type` may be one that we never heard of; `token` is "" for those without one."""

    type: str
    url: str
    token: str = ""
    status: str = "pending"
    failure: AcmeFailure | None = None


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

    @property
    def failure(self) -> AcmeFailure | None:
        """Why it is invalid: the first challenge's error that there is."""
        return next((each.failure for each in self.challenges if each.failure), None)


@dataclass(frozen=True, slots=True)
class RenewalInfo:
    """When the CA wants a certificate renewed (RFC 9773 4.2). `retry_after` is seconds."""

    start: datetime
    end: datetime
    explanation_url: str = ""
    retry_after: float | None = None
