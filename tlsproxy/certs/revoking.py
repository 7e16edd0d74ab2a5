"""Have a CA revoke a certificate, and have it replaced at once.

Knows: who may revoke (the account that ordered it, or whoever has its key: RFC 8555 7.6), what is remembered. Does not
know: how the successor is obtained. Rule: that the certificate is to be replaced is remembered, under the lease, before
the CA is told: whatever is killed in between, nothing revoked stays without a successor. A refusal takes it back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from tlsproxy.certs import accounts
from tlsproxy.certs import state as states
from tlsproxy.certs.account_key import AccountKey
from tlsproxy.certs.conversation import Conversation, finish_first
from tlsproxy.certs.leasing import holding
from tlsproxy.certs.login import opener
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Progress, Step
from tlsproxy.certs.shelf import Shelf
from tlsproxy.certs.state import State
from tlsproxy.certs.tools import Tools
from tlsproxy.certs.wanted import Held
from tlsproxy.errors import CertificateError, StoreError
from tlsproxy.settings.acme import Issuer
from tlsproxy.store import pem
from tlsproxy.store.base import Lease, LeaseLost
from tlsproxy.store.bundle import Bundle

if TYPE_CHECKING:
    from tlsproxy.certs.session import AcmeSession

logger = logging.getLogger(__name__)

# RFC 5280 5.3.1: those that a CA takes from its subscribers.
REASONS = {"unspecified": 0, "keyCompromise": 1, "affiliationChanged": 3, "superseded": 4, "cessationOfOperation": 5}


class Busy(StoreError):
    """Another process works on this certificate."""


class Revoker:
    """Revokes certificates of this store."""

    def __init__(self, tools: Tools, shelf: Shelf, issuers: Iterable[Issuer]) -> None:
        self._tools, self._shelf = tools, shelf
        self._issuers = {issuer.directory_url: issuer for issuer in issuers}

    async def revoke(self, name: str, reason: str, progress: Progress) -> Held:
        """Revoke what is in the store now and remember it; return it. AcmeFailure, CertificateError, StoreError."""
        if reason not in REASONS:
            raise CertificateError(f"{name}: {reason!r} is no reason to revoke. Give one of {', '.join(REASONS)}.")
        async with holding(self._tools, name) as lease:
            if lease is None:
                raise Busy(f"{name}: another process works on this certificate now. Try again in a minute.")
            held, state = await self._shelf.reread(name)
            bundle = await self._tools.in_store(self._tools.store.get, name)
            if bundle is None or held is None:
                raise CertificateError(f"{name}: there is no certificate of that name, so there is nothing to revoke.")
            if not bundle.directory:
                raise CertificateError(
                    f"{name}: this certificate was imported, no CA is known that would revoke it. "
                    f"Revoke it where it comes from; tlsproxy admin certs renew {name} replaces it here."
                )
            await self._intend(name, replace(state, replace_now=held.fingerprint), lease)
            await finish_first(self._revoke(name, bundle, state, reason, progress, lease))
        return held

    async def _intend(self, name: str, state: State, lease: Lease) -> None:
        """Remember it in the store, not in memory alone. Raises StoreError."""
        try:
            await self._tools.in_store(self._tools.store.put_record, states.FOLDER, name, state.to_record(), lease)
        except LeaseLost:
            raise
        except StoreError as error:
            raise StoreError(
                f"{name}: it was not revoked, because the store can't remember that it is to be replaced ({error}). "
                "Mend the store, then revoke it again."
            ) from error

    async def _revoke(
        self, name: str, bundle: Bundle, state: State, reason: str, progress: Progress, lease: Lease
    ) -> None:
        """Tell the CA, and remember what came of it. Goes on to its end when the caller is cancelled."""
        held = Held.of(bundle)
        try:
            await self._tell_ca(bundle, reason, progress)
        except Exception as error:
            # Without an answer nobody knows whether it happened: one certificate more costs less than a revoked one.
            if not isinstance(error, AcmeFailure) or not _may_have_happened(error):
                await self._shelf.save(name, state, lease)
            raise
        await self._shelf.save(name, states.after_revocation(state, held, self._tools.now(), reason), lease)

    async def _tell_ca(self, bundle: Bundle, reason: str, progress: Progress) -> None:
        issuer = self._issuers.get(bundle.directory)
        open_session = opener(bundle.directory, issuer.ca_bundle if issuer else "")
        kid = issuer.eab_kid if issuer else ""
        account = await self._tools.in_store(accounts.load, self._tools.store, bundle.directory, kid)
        progress(Step("account", "", f"asking {bundle.directory} to revoke it"))
        if account and account.url:
            session = await self._tools.in_thread(open_session, account.key, account.url)
            try:
                await self._ask(session, bundle, reason)
            except AcmeFailure as failure:
                if not _is_strange(failure):
                    raise
                logger.info("certificate.revoke_by_key", extra={"directory": bundle.directory, "error": str(failure)})
            else:
                return
        session = await self._tools.in_thread(open_session, _own_key(bundle), "")
        await self._ask(session, bundle, reason)

    async def _ask(self, session: AcmeSession, bundle: Bundle, reason: str) -> None:
        talk = Conversation(self._tools)
        leaf = pem.certificates(bundle.chain_pem, "the certificate")[0]
        try:
            await talk.ask(session.connect)
            await talk.ask(session.revoke, pem.chain_pem([leaf]), REASONS[reason])
        finally:
            session.close()


def _may_have_happened(failure: AcmeFailure) -> bool:
    """Tell whether the request may have reached the CA although its answer did not reach us."""
    return failure.step == "revoke" and failure.kind in (FailureKind.UNREACHABLE, FailureKind.BUSY)


def _is_strange(failure: AcmeFailure) -> bool:
    """Tell whether the CA does not take the account for the one that may revoke."""
    return failure.kind is FailureKind.ACCOUNT_GONE or failure.type == "unauthorized" or failure.status in (401, 403)


def _own_key(bundle: Bundle) -> AccountKey:
    """Return the certificate's key in the role of an account's: it may sign the one request that revokes it."""
    if bundle.key_type != "ecdsa-p256":
        raise CertificateError(
            f"{bundle.names[0]}: the account that ordered this certificate is not known any more, and only a P-256 key "
            f"can sign in its place (this one is {bundle.key_type}). Revoke it with another client, with its key."
        )
    return AccountKey(bundle.key_pem)
