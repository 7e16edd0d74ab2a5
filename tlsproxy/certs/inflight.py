"""Orders in flight: what has to be known to take an order up again after this process was killed in the middle of it.

Knows: the record of one order, with the key that its certificate is for. Does not know: ACME, sites, leases' lives.
Rules: the record is written before the CA is asked for anything that counts (an order that nobody remembers is an order
wasted), at most one per certificate name; it is taken up only by a job that wants the very same thing, and removed when
the certificate is in the store, or the order is dead or looks like it: no CA may block a name by never getting done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tlsproxy.store.base import CertificateStore, Lease

FOLDER = "orders"
LONGEST_LIFE = timedelta(days=6)
"""Nothing older is taken up: orders live 7 days at most CAs, and a key should be new."""
LONGEST_UNSERVED = timedelta(days=1)
"""The same for a name that has no certificate yet, whose life could tell."""
MOST_STALLS = 2
"""So many more times an order is taken up that the CA did not get done with."""


@dataclass(frozen=True, slots=True)
class OrderInFlight:
    """An order by its URL. `key_pem` is the new key; it never reaches a repr."""

    url: str
    directory: str
    account: str
    profile: str
    hosts: tuple[str, ...]
    key_type: str
    created: datetime
    key_pem: str = field(repr=False)
    stalls: int = 0
    """Attempts that the CA has let end without getting anywhere with it."""

    def is_for(self, directory: str, account: str, profile: str, hosts: tuple[str, ...], key_type: str) -> bool:
        """Tell whether it leads to the same certificate from the same CA."""
        mine = (self.directory, self.account, self.profile, sorted(self.hosts), self.key_type)
        return mine == (directory, account, profile, sorted(hosts), key_type)

    def is_young(self, now: datetime, held_life: timedelta | None) -> bool:
        """Tell whether it is worth a look; one that is dead may take little of the life of what is held."""
        longest = LONGEST_UNSERVED if held_life is None else min(LONGEST_LIFE, held_life / 20)
        return abs(now - self.created) < longest

    @property
    def is_stuck(self) -> bool:
        return self.stalls > MOST_STALLS

    def to_record(self) -> dict[str, Any]:
        """Return the JSON record. It holds the private key."""
        return {
            "url": self.url,
            "directory": self.directory,
            "account": self.account,
            "profile": self.profile,
            "hosts": list(self.hosts),
            "key_type": self.key_type,
            "created": self.created.isoformat(),
            "key_pem": self.key_pem,
            "stalls": self.stalls,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> OrderInFlight | None:
        """Return None for a record of another version: the worst that comes of it is one more order."""
        try:
            return cls(
                url=str(record["url"]),
                directory=str(record["directory"]),
                account=str(record["account"]),
                profile=str(record["profile"]),
                hosts=tuple(map(str, record["hosts"])),
                key_type=str(record["key_type"]),
                created=datetime.fromisoformat(record["created"]),
                key_pem=str(record["key_pem"]),
                stalls=int(record.get("stalls", 0)),
            )
        except (KeyError, TypeError, ValueError):
            return None


class OrdersInFlight:
    """The folder of the store. All methods block for one call of the store and raise StoreError, `save` LeaseLost."""

    def __init__(self, store: CertificateStore) -> None:
        self._store = store

    def find(self, name: str) -> OrderInFlight | None:
        record = self._store.get_record(FOLDER, name)
        return OrderInFlight.from_record(record) if record is not None else None

    def save(self, name: str, order: OrderInFlight, lease: Lease | None) -> None:
        self._store.put_record(FOLDER, name, order.to_record(), lease)

    def forget(self, name: str, lease: Lease | None) -> None:
        self._store.delete_record(FOLDER, name, lease)

    def names(self) -> tuple[str, ...]:
        return self._store.list_records(FOLDER)
