"""Seal every record of a store anew: after a first key, a new key, or when there shall be none any more.

Knows: raw records, keys. Does not know: what a record says. Rules: each record is replaced in one step under the lock
of the writers, so the work may be killed at any moment and begun again; a record that does not open is reported and
left as it is, and keeps nobody from the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tlsproxy.store.records import RecordDamaged, Records
from tlsproxy.store.sealed import Keyring, Unopened, is_sealed


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """How it went: records written anew, records that were right already, and one sentence for each that failed."""

    changed: int
    unchanged: int
    failed: tuple[str, ...]


def rekey(
    records: Records,
    keyring: Keyring,
    *,
    plain: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rekeyed:
    """Seal all records with the newest key, whatever key they have now, or none. Raises StoreError.

    `records` are raw (`open_records`). `plain`: open them instead, so that the store needs no keys any more.
    `progress` is called with the records done so far and all.
    """
    target = Keyring() if plain else keyring
    keys = [f"{folder}/{name}" for folder in records.folders() for name in records.keys(folder)]
    changed, failed = 0, []
    for done, key in enumerate(keys, 1):
        try:
            changed += _rekey(records, key, keyring, target)
        except (RecordDamaged, Unopened) as error:
            failed.append(str(error))
        progress(done, len(keys))
    return Rekeyed(changed, len(keys) - changed - len(failed), tuple(failed))


def _rekey(records: Records, key: str, keyring: Keyring, target: Keyring) -> bool:
    """Tell whether the record had to be written anew."""
    with records.exclusive():
        value = records.read(key)
        if value is None:
            return False  # removed since it was listed
        opened = keyring.open(key, value, records.where(key)) if is_sealed(value) else value
        if target.is_newest(value):
            return False
        records.write(key, target.seal(key, opened))
    return True
