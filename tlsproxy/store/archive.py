"""A whole store in one file, for backups: out and in again.

The file is one JSON object, `{"archive": "tlsproxy store", "version": 1, "made": …, "records": {"folder/name": …}}`,
sealed like a record (sealed.py) under the key "archive" if the store has keys. Leases, answers to challenges and
probes stay out: they mean nothing later.
Knows: envelopes of records. Does not know: where the store lies. Rules: the file is there whole or not at all, with
mode 0600; what comes in is judged record by record, and never replaces a newer record unless asked to.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tlsproxy.errors import CertificateError, StoreError
from tlsproxy.store import pem
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.certificates import CertificateStore, parse_envelope
from tlsproxy.store.records import CERTIFICATES, RecordDamaged, split_key
from tlsproxy.store.sealed import is_sealed
from tlsproxy.store.whole import replace_file

_KIND = "tlsproxy store"
_VERSION = 1
_SEALED_AS = "archive"  # has no slash: no record has this key
_LEFT_OUT = ("challenges", "probe")
_LARGEST = 1 << 30  # bytes; a hundred thousand certificates are a third of this

Progress = Callable[[int, int], None]
"""Called with the records done so far and all."""


@dataclass(frozen=True, slots=True)
class Exported:
    """`failed` has a sentence for each record that could not be read, and so is missing in the file."""

    records: int
    is_sealed: bool
    failed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """`newer` are keys of records that were left alone because the store has newer ones; `failed` are sentences."""

    written: int
    unchanged: int
    newer: tuple[str, ...]
    failed: tuple[str, ...]


def export_store(store: CertificateStore, path: Path, progress: Progress = lambda done, total: None) -> Exported:
    """Write everything to one file, replacing it. Raises StoreError. Not sealed, the file holds private keys."""
    records: dict[str, Any] = {}
    failed = []
    keys = _keys(store)
    for done, key in enumerate(keys, 1):
        try:
            value = store.records.read(key)
            if value is not None:
                records[key] = _checked(key, parse_envelope(split_key(key)[1], value))
        except StoreError as error:
            failed.append(str(error))
        except _BAD as error:
            failed.append(f"{store.records.where(key)}: this record is damaged ({_reason(error)}). It is left out.")
        progress(done, len(keys))
    if not records:
        why = f"not one record could be read. The first: {failed[0]}" if failed else "nothing there is to be saved."
        raise StoreError(f"{path} is not written: {why}")
    made = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"archive": _KIND, "version": _VERSION, "made": made, "records": records}).encode("ascii")
    _write(path, store.records.keyring.seal(_SEALED_AS, text))
    return Exported(len(records), bool(store.records.keyring), tuple(failed))


def import_store(
    store: CertificateStore, path: Path, *, force: bool = False, progress: Progress = lambda done, total: None
) -> Imported:
    """Write everything in the file to the store. Raises StoreError if the file can't be used.

    A record that the store has newer is left alone unless `force`. What is in the store only stays there.
    """
    records = _load(store, path)
    counts = {"written": 0, "unchanged": 0, "left out": 0}
    newer, failed = [], []
    for done, (key, envelope) in enumerate(sorted(records.items()), 1):
        try:
            outcome = _import(store, key, envelope, force=force)
        except StoreError as error:
            failed.append(f"{path}: the record {key[:200]!r} is left out. {error}")
        except _BAD as error:
            failed.append(f"{path}: the record {key[:200]!r} can't be used ({_reason(error)}). It is left out.")
        else:
            if outcome == "newer":
                newer.append(key)
            else:
                counts[outcome] += 1
        progress(done, len(records))
    return Imported(counts["written"], counts["unchanged"], tuple(newer), tuple(failed))


_BAD = (CertificateError, ValueError, KeyError, TypeError, AttributeError)
"""What a record that makes no sense raises while it is judged."""


def _keys(store: CertificateStore) -> list[str]:
    folders = [folder for folder in store.records.folders() if folder not in _LEFT_OUT]
    return [f"{folder}/{name}" for folder in folders for name in store.list_records(folder)]


def _checked(key: str, envelope: dict[str, Any]) -> dict[str, Any]:
    """Return the record if it is one that a store could have written under this key. Raises one of _BAD."""
    folder, name = split_key(key)
    if envelope["name"] != name:
        raise ValueError("it is the record of another name")
    _written(envelope)
    if folder == CERTIFICATES:
        _check_certificate(Bundle.from_record(envelope))
    elif not isinstance(envelope["record"], dict):
        raise TypeError("no JSON object")
    return envelope


def _check_certificate(bundle: Bundle) -> None:
    leaf = pem.certificates(bundle.chain_pem, "chain")[0]
    if not pem.belongs(pem.private_key(bundle.key_pem, "key"), leaf):
        raise ValueError("the key does not belong to the certificate")


def _import(store: CertificateStore, key: str, envelope: dict[str, Any], *, force: bool) -> str:
    """Return what became of the record: "written", "unchanged", "newer" or "left out"."""
    if split_key(key)[0] in _LEFT_OUT:
        return "left out"
    checked = _checked(key, envelope)
    with store.exclusive():
        held = _held(store, key)
        if held == checked:
            return "unchanged"
        if held and not force and _written(held) > _written(checked):
            return "newer"
        store.records.write(key, json.dumps(checked, indent=1).encode("ascii"))
    return "written"


def _held(store: CertificateStore, key: str) -> dict[str, Any] | None:
    """Return the store's own record; None if there is none, or one that makes no sense."""
    try:
        value = store.records.read(key)
        return None if value is None else _checked(key, parse_envelope(split_key(key)[1], value))
    except (RecordDamaged, *_BAD):
        return None


def _written(envelope: dict[str, Any]) -> datetime:
    """Return when the record was written; stores of old did not say, but a certificate is not older than itself."""
    instant = datetime.fromisoformat(envelope.get("written") or envelope.get("not_before") or "1970-01-01T00:00+00:00")
    if instant.tzinfo is None:
        raise ValueError("time without zone")
    return instant


def _load(store: CertificateStore, path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            value = file.read(_LARGEST + 1)
    except OSError as error:
        raise StoreError(
            f"{path}: the archive can't be read ({error.strerror}). Correct the path or the mode."
        ) from error
    if is_sealed(value):
        value = store.records.keyring.open(_SEALED_AS, value, str(path))
    try:
        archive = json.loads(value)
        if archive["archive"] != _KIND or archive["version"] < _VERSION:
            raise ValueError("another kind of file")
        return dict(archive["records"])
    except (*_BAD, RecursionError) as error:
        raise StoreError(
            f"{path}: this is no complete archive of a store ({_reason(error)}). "
            "Give a file made by: tlsproxy admin store export"
        ) from error


def _write(path: Path, value: bytes) -> None:
    try:
        replace_file(path, value)
    except OSError as error:
        raise StoreError(
            f"{path}: the archive can't be written ({error.strerror}). "
            "Give a file where there is room and where you may write."
        ) from error


def _reason(error: BaseException) -> str:
    """Return the reason without any piece of the record: it may hold a key."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON at line {error.lineno}"
    return str(error)[:100] or type(error).__name__
