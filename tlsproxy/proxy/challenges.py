"""Answers to a CA that asks whether we hold a name: HTTP-01 and TLS-ALPN-01, whichever worker it reaches.

Knows where the certifier leaves the answers, and the forms they are given in. Does not know orders or CAs. Rules: what
strangers ask costs a look at the store's version, and keeps no CA from its answer; a store in trouble answers nothing
and says so once in a while; an answer is never remembered, because the next order has another for the same name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tlsproxy.errors import StoreError
from tlsproxy.proxy.rate import Bucket, Quiet
from tlsproxy.proxy.sitetls import ServerContext, SiteTls, build_context

if TYPE_CHECKING:
    from tlsproxy.store.challenges import Challenges

logger = logging.getLogger(__name__)

ACME_TLS: Final = "acme-tls/1"  # RFC 8737 3
HTTP_PREFIX: Final = b"/.well-known/acme-challenge/"  # RFC 8555 8.3
_MOST_EXPECTED: Final = 10_000  # questions that are listed; with more, each is looked up
_LOOKS: Final = 1000  # into the store, a second of each kind, while they are; one that finds nothing takes about 20 µs
_GRAIN: Final = 1.0  # seconds: two changes so close may leave one version (a kernel's tick; a second on old ext4)
_CONTEXTS: Final = 8  # an order asks for a name from several places at once


class _Expected:
    """The questions that a CA may ask, known from a listing for as long as the store's version is the same.

    After a change the list is made anew whenever it lacks what is asked, until no other change can hide behind the same
    version. Mutable: `_names` (None: too many to list), of `_version`, which came at `_changed_at`; `_listed_at`.
    """

    def __init__(self, challenges: Challenges, clock: Callable[[], float]) -> None:
        self._challenges = challenges
        self._clock = clock
        self._names: frozenset[str] | None = frozenset()
        self._version: str | None = None
        self._changed_at = self._listed_at = 0.0
        self._buckets = {kind: Bucket(_LOOKS, _LOOKS, clock=clock) for kind in ("http-01", "tls-alpn-01")}

    def has(self, kind: str, name: str) -> bool:
        """Tell whether the store may have an answer. Raises StoreError."""
        version, now = self._challenges.version(), self._clock()
        question = f"{kind}/{name}"
        if version != self._version:
            self._list(now)
            self._version, self._changed_at = version, now
        elif self._names is not None and question not in self._names and self._listed_at < self._changed_at + _GRAIN:
            self._list(now)
        return self._buckets[kind].take() if self._names is None else question in self._names

    def _list(self, now: float) -> None:
        names = self._challenges.expected()
        self._names = frozenset(names) if len(names) <= _MOST_EXPECTED else None
        self._listed_at = now


class ChallengeAnswers:
    """One per worker. Mutable: `_contexts`, the latest by what they are made of."""

    def __init__(self, challenges: Challenges, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._challenges = challenges
        self._expected = _Expected(challenges, clock)
        self._quiet = Quiet(clock=clock)
        self._contexts: dict[str, ServerContext] = {}

    def http(self, target: bytes) -> bytes | None:
        """Return the key authorization for a target that begins with HTTP_PREFIX; None if the question is not ours."""
        token = target[len(HTTP_PREFIX) :].decode("latin-1")
        try:
            if not self._expected.has("http-01", token):
                return None
            answer = self._challenges.http(token, datetime.now(UTC))
        except (StoreError, ValueError, LookupError, TypeError) as error:
            if self._quiet.may_say("unusable"):
                logger.error("challenge.unusable", extra={"challenge": "http-01", "error": str(error)})  # noqa: TRY400
            return None
        return None if answer is None else answer.encode("ascii")

    def tls_alpn(self, server_name: str) -> ServerContext | None:
        """Return the context that answers for this name, None if nobody is to ask. Raises StoreError, CertificateError.

        It speaks `acme-tls/1` and nothing else (RFC 8737 3).
        """
        if not self._expected.has("tls-alpn-01", server_name):
            return None
        try:
            bundle = self._challenges.tls_alpn(server_name, datetime.now(UTC))
        except (ValueError, LookupError, TypeError) as error:
            raise StoreError(f"the answer for {server_name} is damaged; the next order replaces it") from error
        if bundle is None:
            return None
        context = self._contexts.get(bundle.fingerprint)
        if context is None:
            site = SiteTls((server_name,))
            context = ServerContext(build_context(site, (bundle,), (ACME_TLS,)), site.policy, (ACME_TLS,))
            context.ssl.num_tickets = 0
            while len(self._contexts) >= _CONTEXTS:
                del self._contexts[next(iter(self._contexts))]
            self._contexts[bundle.fingerprint] = context
        if self._quiet.may_say(bundle.fingerprint):
            logger.info("challenge.answered", extra={"challenge": "tls-alpn-01", "host": server_name})
        return context
