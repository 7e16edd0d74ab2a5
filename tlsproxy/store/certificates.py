"""The certificate store as everybody uses it: bundles and small JSON records by name, over records of any kind.

Knows: the form of the records. Does not know: where they lie (Records does), what a name stands for (sources.py does),
sites, processes. Rule: the name stands in the record too, so a record found under another name is refused.
"""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, TypeVar

from tlsproxy.errors import StoreError
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.records import CERTIFICATES, Lease, RecordDamaged, Records, check_folder
from tlsproxy.store.sealed import Keyring, SealedRecords

_PROBE = "probe/self-test"
_PROBE_SIZE = 64 << 10  # bytes; as much as the records of a dozen certificates, so that a disk just short of full shows

T = TypeVar("T")


class CertificateStore:
    """Certificates by name, and JSON objects by folder and name. What request path and certificate path both know.

    Names are opaque, case-sensitive text of 1 to 512 characters; others raise ValueError. All methods raise StoreError
    and block as Records says. `repr` and errors never contain a key.
    """

    def __init__(self, records: Records, keyring: Keyring | None = None) -> None:
        """Keep everything in `records`, sealed if the keyring has keys. The store closes the records."""
        self.records = SealedRecords(records, keyring or Keyring())

    def get(self, name: str) -> Bundle | None:
        """Return the bundle, or None."""
        return self._read(CERTIFICATES, name, Bundle.from_record)

    def put(self, name: str, bundle: Bundle, lease: Lease | None = None) -> None:
        """Store or replace. Raises LeaseLost if `lease` is no longer the current one."""
        self._write(CERTIFICATES, name, bundle.to_record(), lease)

    def delete(self, name: str, lease: Lease | None = None) -> None:
        """Forget the certificate, if there is one. Raises LeaseLost."""
        self.delete_record(CERTIFICATES, name, lease)

    def list(self) -> tuple[str, ...]:
        """Return the names of all certificates, sorted; of damaged ones too."""
        return self.list_records(CERTIFICATES)

    def get_record(self, folder: str, name: str) -> dict[str, Any] | None:
        """Return the JSON object, or None."""
        return self._read(folder, name, _content)

    def put_record(self, folder: str, name: str, record: dict[str, Any], lease: Lease | None = None) -> None:
        """Store or replace a JSON object. Raises LeaseLost, TypeError for what JSON can't say."""
        self._write(folder, name, {"record": record}, lease)

    def delete_record(self, folder: str, name: str, lease: Lease | None = None) -> None:
        """Forget the record, if there is one. Raises LeaseLost."""
        self.records.remove(_key(folder, name), lease)

    def list_records(self, folder: str) -> tuple[str, ...]:
        """Return the names of a folder's records, sorted; of damaged ones too."""
        return self.records.keys(folder)

    def version(self, folder: str = CERTIFICATES) -> str:
        """Return a text that differs from an earlier one if something in the folder was written since. Cheap."""
        return self.records.version(folder)

    def acquire(self, name: str, seconds: float = 60.0) -> Lease | None:
        """Take the lease of `name`; None while somebody alive holds it."""
        return self.records.acquire(name, seconds)

    def renew(self, lease: Lease, seconds: float = 60.0) -> None:
        """Let the lease last for `seconds` from now. Raises LeaseLost: stop the work and drop its result."""
        self.records.renew(lease, seconds)

    def release(self, lease: Lease) -> None:
        """Give the lease back; does nothing when it is not the current one."""
        self.records.release(lease)

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold off every other writer while the block runs; all methods work inside. Never wait on a network there."""
        return self.records.exclusive()

    def self_test(self) -> None:
        """Write a record, read it back and remove it. StoreError says what keeps the store from being used."""
        probe = os.urandom(_PROBE_SIZE // 2).hex().encode()
        with self.exclusive():
            self.records.write(_PROBE, probe)
            found = self.records.read(_PROBE)
            self.records.remove(_PROBE)
        if found != probe:
            raise StoreError(
                f"{self.records.where(_PROBE)}: what was written there reads back different. "
                "Look at the disk, or change store.url."
            )

    def close(self) -> None:
        """Give back what is open, the leases too. May be called twice."""
        self.records.close()

    def __repr__(self) -> str:
        return f"<CertificateStore {self.records!r}>"

    def _read(self, folder: str, name: str, parse: Callable[[Any], T]) -> T | None:
        key = _key(folder, name)
        value = self.records.read(key)
        if value is None:
            return None
        try:
            return parse(parse_envelope(name, value))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            kind = "certificate record" if folder == CERTIFICATES else "record"
            raise RecordDamaged(
                f"{self.records.where(key)}: the {kind} is damaged ({_short(error)}). "
                "Restore it from a backup, or delete it to have it made again."
            ) from error

    def _write(self, folder: str, name: str, content: dict[str, Any], lease: Lease | None) -> None:
        written = datetime.now(UTC).isoformat(timespec="seconds")
        envelope = {"name": name, "written": written, **content}
        self.records.write(_key(folder, name), json.dumps(envelope, indent=1).encode("ascii"), lease)


def _key(folder: str, name: str) -> str:
    check_folder(folder)
    return f"{folder}/{name}"


def parse_envelope(name: str, value: bytes) -> dict[str, Any]:
    """Return the JSON object of a record as it lies in the store: with its name, and when it was written.

    Raises ValueError, KeyError or TypeError for anything else, and for the record of another name.
    """
    envelope = json.loads(value)
    if envelope["name"] != name:
        raise ValueError(f"it is the record of {str(envelope['name'])[:80]!r}")
    return dict(envelope)


def _content(envelope: dict[str, Any]) -> dict[str, Any]:
    record = envelope["record"]
    if not isinstance(record, dict):
        raise TypeError("no JSON object")
    return record


def _short(error: Exception) -> str:
    """Return the reason without any piece of the record: a damaged one may still hold a key."""
    return f"not JSON at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else str(error)[:100]
