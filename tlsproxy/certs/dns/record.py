"""One TXT record on its way: made by a thread that nobody can stop, and removed exactly once whatever happens.

Knows: the provider, and whether the record is wanted. Does not know: the event loop, challenges, propagation.
Rule: when it is given up while the thread still makes it, that thread removes it as soon as it is made; otherwise the
caller does. A removal that fails is logged and never raised: the certificate does not depend on it, and what was left
behind, also by a kill, is removed later (leftovers.py).
"""

from __future__ import annotations

import logging
import threading

from tlsproxy.certs.dns.base import DnsProvider, DnsProviderError
from tlsproxy.certs.dns.leftovers import Leftovers

logger = logging.getLogger(__name__)


class TxtRecord:
    """A value under a name. Both methods that block are for a thread, `give_up` is for anybody."""

    # Mutable, under the lock: _is_over (create has ended, well or not), _is_given_up.

    def __init__(self, provider: DnsProvider, name: str, value: str, leftovers: Leftovers | None = None) -> None:
        self._provider, self._leftovers = provider, leftovers
        self.name, self.value = name, value
        self._lock = threading.Lock()
        self._is_over = self._is_given_up = False

    def create(self) -> None:
        """Make it. Raises DnsProviderError. Does nothing if it was given up before."""
        with self._lock:
            if self._is_given_up:
                return
        if self._leftovers:
            self._leftovers.remember(self.name, self.value)
        try:
            self._provider.create(self.name, self.value)
        finally:
            with self._lock:
                self._is_over = True
                is_late = self._is_given_up
            if is_late:
                self.delete()

    def give_up(self) -> bool:
        """Say that it is not wanted any more. Returns True if the caller has to `delete` it.

        That is so too when making it failed: it may have failed after the record was there.
        """
        with self._lock:
            is_first, self._is_given_up = not self._is_given_up, True
            return is_first and self._is_over

    def delete(self) -> None:
        """Remove it; log what goes wrong."""
        try:
            self._provider.delete(self.name, self.value)
        except DnsProviderError as error:
            advice = f"if the TXT record {self.name} with this value is still there, remove it by hand"
            extra = {"record": self.name, "value": self.value, "error": str(error), "advice": advice}
            logger.warning("dns.cleanup_failed", extra=extra)
        except Exception:
            logger.exception("dns.cleanup_failed", extra={"record": self.name, "value": self.value})
        else:
            if self._leftovers:
                self._leftovers.forget(self.value)

    def __repr__(self) -> str:
        return f"<TxtRecord {self.name}>"
