"""What the tests of orders share: tools over a store in memory, solvers that only remember, settings for a CA.

A `Desk` is all that an AcmeIssuer needs, against one fake CA or several; nothing in it is a mock of our own classes but
the solvers, whose answers no fake CA looks at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from unittest import mock

from pydantic import SecretStr

from tests.fakes.certificate_authority import CertificateAuthority
from tlsproxy.certs import conversation
from tlsproxy.certs.issuer import AcmeIssuer
from tlsproxy.certs.job import Job
from tlsproxy.certs.login import LogIns
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Progress, Step
from tlsproxy.certs.quota import QuotaGuard
from tlsproxy.certs.tools import Tools
from tlsproxy.settings.acme import Issuer
from tlsproxy.store.base import CertificateStore, open_store

SOON = 0.02
"""Seconds to the second look at an order: the fake CA is done at once, and hundreds of orders need not take a while."""


@dataclass
class RememberingSolver:
    """Proves everything to a CA that does not look, and knows what lies there."""

    kind: str
    wildcards: bool = False
    fails: bool = False
    present_now: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)

    def can_solve(self, identifier: str, *, is_wildcard: bool) -> bool:
        return self.wildcards or not is_wildcard

    async def present(
        self, identifier: str, token: str, key_authorization: str, expires: datetime, progress: Progress
    ) -> None:
        assert key_authorization.startswith(f"{token}.")
        if self.fails:
            raise AcmeFailure(FailureKind.VALIDATION, detail="not ready", identifier=identifier, step="challenge")
        self.present_now.add(token)
        self.log.append(f"present {identifier}")

    async def clean_up(self, identifier: str, token: str, key_authorization: str) -> None:
        self.present_now.discard(token)
        self.log.append(f"clean {identifier}")


@dataclass
class TestClock:
    """The time of a test: real, or as far ahead as it says."""

    __test__ = False
    ahead: timedelta = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class Desk:
    """Everything around an issuer."""

    tools: Tools
    solvers: list[RememberingSolver]
    issuer: AcmeIssuer
    clock: TestClock
    logins: LogIns
    steps: list[Step] = field(default_factory=list)

    @property
    def store(self) -> CertificateStore:
        return self.tools.store

    def progress(self, step: Step) -> None:
        self.steps.append(step)


@contextlib.contextmanager
def make_desk(store: CertificateStore | None = None, *, quota: str = "auto", dns: bool = False) -> Iterator[Desk]:
    clock = TestClock()
    tools = Tools.make(store or open_store("memory:"), clock)
    solvers = [RememberingSolver("tls-alpn-01"), RememberingSolver("http-01")]
    if dns:
        solvers.append(RememberingSolver("dns-01", wildcards=True))
    guard = QuotaGuard(tools, quota)
    try:
        logins = LogIns(tools, guard.permit_account)
        with mock.patch.object(conversation, "FIRST_PAUSE", SOON):
            yield Desk(tools, solvers, AcmeIssuer(tools, solvers, guard, logins), clock, logins)
    finally:
        tools.close()


def issuer_of(ca: CertificateAuthority, *, staging: CertificateAuthority | None = None, profile: str = "") -> Issuer:
    return Issuer(
        directory_url=ca.directory,
        staging_url=staging.directory if staging else "",
        email="",
        ca_bundle=str(ca.ca_bundle),
        profile=profile,
        preferred_chain="",
        eab_kid="",
        eab_hmac_key=SecretStr(""),
    )


def job_for(ca: CertificateAuthority, *hosts: str, replaces: str = "", winners: dict[str, str] | None = None) -> Job:
    names = hosts or ("a.test",)
    return Job(f"acme/{names[0]}", names, issuer_of(ca), replaces=replaces, winners=winners or {})
