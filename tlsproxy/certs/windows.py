"""Ask CAs when they want certificates renewed (RFC 9773), one question for each certificate in the whole cluster.

Knows: sessions without an account, one for each CA, and when a CA is not worth asking. Does not know: when to ask
(ari.py), what a window means (plan.py). Rules: the answer lies in the state, written under the certificate's lease, so
no other process asks again; a CA that is away is left alone for a while by all names; nothing here ever fails anybody.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tlsproxy.certs.account_key import AccountKey
from tlsproxy.certs.ari import after_ari_failure, ari_due, window_of, with_ari
from tlsproxy.certs.conversation import Conversation
from tlsproxy.certs.leasing import holding
from tlsproxy.certs.login import opener
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.resources import RenewalInfo
from tlsproxy.certs.shelf import Shelf
from tlsproxy.certs.state import State
from tlsproxy.certs.tools import Tools
from tlsproxy.certs.wanted import Held
from tlsproxy.errors import StoreError
from tlsproxy.settings.acme import Issuer

if TYPE_CHECKING:
    from tlsproxy.certs.session import AcmeSession

logger = logging.getLogger(__name__)

SESSION_LIFE = timedelta(hours=1)
"""A directory is read again after this: a CA may begin to offer windows, or move."""
PATIENCE = timedelta(minutes=10)
"""A CA that could not be asked is not asked for any other certificate for so long."""
_AWAY = (FailureKind.UNREACHABLE, FailureKind.BUSY, FailureKind.RATE_LIMITED)


@dataclass(frozen=True, slots=True)
class _Line:
    """An open session with one CA; `session` is None for one that offers no windows, or is away."""

    session: AcmeSession | None
    talk: Conversation
    until: datetime


class Windows:
    """All questions of one process."""

    # Mutable: _lines (by directory), _locks (by directory).

    def __init__(
        self, tools: Tools, shelf: Shelf, issuers: Iterable[Issuer], *, rnd: Callable[[], float] = random.random
    ) -> None:
        self._tools, self._shelf, self._rnd = tools, shelf, rnd
        self._bundles = {issuer.directory_url: issuer.ca_bundle for issuer in issuers}
        self._lines: dict[str, _Line] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def is_free(self, held: Held | None) -> bool:
        """Tell whether a question about this certificate would be put at once, with no other one before it."""
        return held is None or not self._locks[held.directory].locked()

    async def fetch(self, name: str) -> bool:
        """Fetch the window of the certificate that is in the store now, if it is due. Logs what goes wrong.

        False: nothing could be asked, for want of the store or because another process works on the certificate.
        """
        try:
            async with holding(self._tools, name) as lease:
                if lease is None:
                    return False
                held, state = await self._shelf.reread(name)
                if held is not None and ari_due(state, held, self._tools.now()):
                    await self._shelf.save(name, await self._ask(name, held, state), lease)
                return True
        except StoreError as error:
            logger.warning("certificate.window_not_kept", extra={"certificate": name, "error": str(error)})
            return False

    def close(self) -> None:
        for line in self._lines.values():
            if line.session:
                line.session.close()
        self._lines.clear()

    async def _ask(self, name: str, held: Held, state: State) -> State:
        try:
            # One at a time: who has waited behind a question without an answer need not ask it once more.
            async with self._locks[held.directory]:
                line, now = await self._line(held.directory), self._tools.now()
                if line.session is None:
                    until = max(0.0, (line.until - now).total_seconds())
                    return after_ari_failure(state, held, retry_after=until, now=now, rnd=self._rnd())
                window = await self._question(line, line.session, held)
        except AcmeFailure as failure:
            now = self._tools.now()
            logger.info("certificate.window_unknown", extra={"certificate": name, "error": str(failure)})
            wait = (failure.retry_at - now).total_seconds() if failure.retry_at else None
            return after_ari_failure(state, held, retry_after=wait, now=now, rnd=self._rnd())
        _log_window(name, held, state, window)
        return with_ari(
            state, held, window.start, window.end, window.explanation_url, retry_after=window.retry_after, now=now
        )

    async def _question(self, line: _Line, session: AcmeSession, held: Held) -> RenewalInfo:
        """Ask for one window. If the CA is away, nobody else asks it for a while. Raises AcmeFailure."""
        try:
            return await line.talk.ask(session.renewal_info, held.ari_id)
        except asyncio.CancelledError:  # the request may hang on for a while: the next one has a session of its own
            session.close()
            self._lines.pop(held.directory, None)
            raise
        except AcmeFailure as failure:
            if failure.kind in _AWAY:
                session.close()
                self._lines[held.directory] = _Line(None, line.talk, self._tools.now() + PATIENCE)
            raise

    async def _line(self, directory: str) -> _Line:
        """Return the session with a CA, for the one who has its lock. Raises AcmeFailure."""
        line, now = self._lines.get(directory), self._tools.now()
        if line and now < line.until:
            return line
        if line and line.session:
            line.session.close()
        talk = Conversation(self._tools)
        # RFC 9773 4.1: the question is a plain GET. The key signs nothing, but a session has one.
        open_session = opener(directory, self._bundles.get(directory, ""))
        session = await self._tools.in_thread(open_session, AccountKey.generate(), "")
        try:
            offer = await talk.ask(session.connect)
        except AcmeFailure:
            session.close()
            self._lines[directory] = _Line(None, talk, self._tools.now() + PATIENCE)
            raise
        if not offer.has_renewal_info:
            session.close()
        line = _Line(session if offer.has_renewal_info else None, talk, now + SESSION_LIFE)
        self._lines[directory] = line
        return line


def _log_window(name: str, held: Held, state: State, window: RenewalInfo) -> None:
    """A reason that the CA gives is for people (RFC 9773 4.2): it may be about to revoke the certificate."""
    known = window_of(state, held)
    extra = {"certificate": name, "start": window.start.isoformat(), "end": window.end.isoformat()}
    if window.explanation_url and not (known and known.explanation_url == window.explanation_url):
        extra["advice"] = f"the CA says why at {window.explanation_url}"
        logger.warning("certificate.window_explained", extra=extra)
    elif known is None or (known.start, known.end) != (window.start, window.end):
        logger.info("certificate.window", extra=extra)
