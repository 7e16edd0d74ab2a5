"""TXT records that were made and perhaps never removed: remembered in the store, so that a kill leaves none for ever.

Knows: which records this provider was told to make. Does not know: challenges, orders. Rules: a record is remembered
before it is made and forgotten after it is removed; what is older than any order lasts is removed by whoever tidies,
through the provider that made it; a store that can't remember keeps no certificate from being obtained. Blocks.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

from tlsproxy.certs.dns.base import DnsProvider, DnsProviderError
from tlsproxy.certs.tools import Clock, utc_now
from tlsproxy.errors import StoreError
from tlsproxy.store.base import CertificateStore

logger = logging.getLogger(__name__)

FOLDER = "challenges"
AGE = timedelta(hours=1)
"""Younger ones may be of an order under way, here or on another machine."""
KEPT = timedelta(days=30)
"""So long it is tried to remove one; also how long one of another provider is kept."""
_KIND = "dns-01/"
_MOST = 20  # removals at one time: each may take as long as a provider's API does


class Leftovers:
    """The records of one provider, named `kind` in the settings, in one store."""

    def __init__(self, store: CertificateStore, provider: DnsProvider, kind: str, now: Clock = utc_now) -> None:
        self._store, self._provider, self._kind, self._now = store, provider, kind, now

    def remember(self, name: str, value: str) -> None:
        """Note a record that is about to be made. Never raises."""
        now = self._now()
        answer = {"provider": self._kind, "name": name, "value": value, "made": now.isoformat()}
        try:
            # With an end and an answer, as all of this folder: else the sweep of it would take it away.
            self._store.put_record(FOLDER, _KIND + value, {"expires": (now + KEPT).isoformat(), "answer": answer})
        except StoreError as error:
            logger.warning("dns.not_remembered", extra={"record": name, "error": str(error)})

    def forget(self, value: str) -> None:
        """The record is gone. Never raises: at worst it is removed once more."""
        try:
            self._store.delete_record(FOLDER, _KIND + value)
        except StoreError as error:
            logger.info("dns.not_forgotten", extra={"error": str(error)})

    def sweep(self) -> int:
        """Remove what was left behind; return how many records that were. Raises StoreError."""
        found = [key for key in self._store.list_records(FOLDER) if key.startswith(_KIND)]
        old = [each for each in (self._find(key) for key in found) if each]
        return sum(self._remove(name, value) for name, value in old[:_MOST])

    def _find(self, key: str) -> tuple[str, str] | None:
        record: dict[str, Any] = self._store.get_record(FOLDER, key) or {}
        try:
            answer = record["answer"]
            is_old = datetime.fromisoformat(answer["made"]) + AGE < self._now()
            return (str(answer["name"]), str(answer["value"])) if is_old and answer["provider"] == self._kind else None
        except (KeyError, TypeError, ValueError):
            return None  # the sweep of the folder takes it away

    def _remove(self, name: str, value: str) -> bool:
        try:
            self._provider.delete(name, value)
        except DnsProviderError as error:
            advice = f"tried again every hour; remove the TXT record {name} with this value by hand if that goes on"
            logger.warning(
                "dns.leftover_stays", extra={"record": name, "value": value, "error": str(error), "advice": advice}
            )
            return False
        self.forget(value)
        logger.info("dns.leftover_removed", extra={"record": name, "value": value})
        return True

    def __repr__(self) -> str:
        return f"<Leftovers of {self._kind}>"
