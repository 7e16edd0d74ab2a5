"""Records sealed at rest: nobody reads or exchanges them without a master key.

A sealed record is `TP1 | key id (4) | nonce (12) | AES-256-GCM ciphertext and tag (16)`. Its key is HKDF-SHA-256 of the
master key; the header and the record's own key ("folder/name") are authenticated with it, so a record moved to another
name does not open. Nonces are random: fine below 2^32 records per master key (NIST SP 800-38D 8.3).
Knows: keys, bytes. Does not know: what a record says, where it lies. Rule: what opens is what was sealed under that
name; whatever else lies there is an error, plain records too once there are keys.
"""

import base64
import functools
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tlsproxy.errors import StoreError
from tlsproxy.store.records import Lease, RecordDamaged, Records, split_key

MAGIC = b"TP1"
_KID, _NONCE, _TAG = 4, 12, 16
_HEADER = len(MAGIC) + _KID + _NONCE
OVERHEAD = _HEADER + _TAG
_LEAST_BYTES = 32
_LEAST_LETTERS = 32
_HEX = re.compile(r"[0-9A-Fa-f]{64}")
_BASE64 = re.compile(r"[0-9A-Za-z+/_-]{43}=")
_HOW = "Make one with: openssl rand -base64 32"
_PURPOSE = b"tlsproxy storage v1"


class Unopened(StoreError):
    """What lies there does not open with the keys that there are: with others it may be as good as new."""


def is_sealed(value: bytes) -> bool:
    """Tell by the first bytes; no JSON begins with them."""
    return value.startswith(MAGIC)


class Keyring:
    """Master keys, the newest first. The first one seals, each of them opens; without any, nothing is sealed."""

    def __init__(self, keys: Sequence[bytes | str] = ()) -> None:
        """Take keys as text (base64 or hex of 32 bytes, else a passphrase) or raw bytes (32 at least). StoreError."""
        self._ciphers: dict[bytes, AESGCM] = {}
        for number, key in enumerate(keys, 1):
            master = _master(key, number)
            self._ciphers.setdefault(_derived(master, _PURPOSE + b" key id", _KID), AESGCM(_derived(master, _PURPOSE)))
        self._newest = next(iter(self._ciphers), b"")

    def seal(self, key: str, value: bytes) -> bytes:
        """Return the value sealed for the record `key` with the newest master; as it is when there are no keys."""
        if not self:
            return value
        nonce = os.urandom(_NONCE)
        header = MAGIC + self._newest + nonce
        return header + self._ciphers[self._newest].encrypt(nonce, value, header + key.encode())

    def open(self, key: str, value: bytes, where: str) -> bytes:
        """Return what was sealed for the record `key`. Raises Unopened, RecordDamaged; they begin with `where`."""
        if not self:
            return _plain(value, where)
        if len(value) < OVERHEAD and (is_sealed(value) or MAGIC.startswith(value)):
            raise RecordDamaged(f"{where}: sealed, but cut short. Restore it from a backup, or delete it.")
        if not is_sealed(value):
            raise Unopened(
                f"{where}: not sealed, although there are store.encryption_keys. "
                "Seal the records that there are: tlsproxy admin store rekey"
            )
        header, nonce = value[:_HEADER], value[len(MAGIC) + _KID : _HEADER]
        cipher = self._ciphers.get(header[len(MAGIC) : len(MAGIC) + _KID])
        if cipher is None:
            raise Unopened(
                f"{where}: sealed with a key that is not among store.encryption_keys. "
                "Add the old key after the new one, then run: tlsproxy admin store rekey"
            )
        try:
            return cipher.decrypt(nonce, value[_HEADER:], header + key.encode())
        except InvalidTag as error:
            raise RecordDamaged(
                f"{where}: sealed, and then changed, cut short or moved here from another name. "
                "Restore it from a backup, or delete it."
            ) from error

    def is_newest(self, value: bytes) -> bool:
        """Tell whether the record is as `seal` would make it now: with the newest key, or plain without keys."""
        if not self:
            return not is_sealed(value)
        return value.startswith(MAGIC + self._newest)

    def __len__(self) -> int:
        return len(self._ciphers)

    def __repr__(self) -> str:
        return f"<Keyring {len(self)} keys>"


class SealedRecords:
    """Records as they are meant, over records as they lie there."""

    def __init__(self, records: Records, keyring: Keyring) -> None:
        self.keyring = keyring
        self._records = records

    def read(self, key: str) -> bytes | None:
        value = self._records.read(key)
        return None if value is None else self.keyring.open(key, value, self.where(key))

    def write(self, key: str, value: bytes, lease: Lease | None = None) -> None:
        split_key(key)  # sealing encodes the key, so it is judged before
        self._records.write(key, self.keyring.seal(key, value), lease)

    def remove(self, key: str, lease: Lease | None = None) -> None:
        self._records.remove(key, lease)

    def keys(self, folder: str) -> tuple[str, ...]:
        return self._records.keys(folder)

    def folders(self) -> tuple[str, ...]:
        return self._records.folders()

    def version(self, folder: str) -> str:
        return self._records.version(folder)

    def where(self, key: str) -> str:
        return self._records.where(key)

    def acquire(self, name: str, seconds: float) -> Lease | None:
        return self._records.acquire(name, seconds)

    def renew(self, lease: Lease, seconds: float) -> None:
        self._records.renew(lease, seconds)

    def release(self, lease: Lease) -> None:
        self._records.release(lease)

    def exclusive(self) -> AbstractContextManager[None]:
        return self._records.exclusive()

    def close(self) -> None:
        self._records.close()

    def __repr__(self) -> str:
        return f"{self._records!r}, sealed" if self.keyring else repr(self._records)


def _plain(value: bytes, where: str) -> bytes:
    if is_sealed(value):
        raise Unopened(
            f"{where}: sealed, but there are no store.encryption_keys. Give the key that it was sealed with."
        )
    return value


def _master(key: bytes | str, number: int) -> bytes:
    """Return the master key that `key` stands for; the message names it by its number only."""
    label = f"store.encryption_keys, key {number}"
    if isinstance(key, bytes):
        if len(key) < _LEAST_BYTES:
            raise StoreError(f"{label}: {len(key)} bytes, at least {_LEAST_BYTES} are needed. {_HOW}")
        return key
    text = key.strip()
    if (decoded := _decoded(text)) is not None:
        return decoded
    if len(text) < _LEAST_LETTERS:
        raise StoreError(
            f"{label}: too short. Give {_LEAST_BYTES} random bytes as base64 or hex, "
            f"or a passphrase of at least {_LEAST_LETTERS} characters. {_HOW}"
        )
    return _stretched(text.encode())


def _decoded(text: str) -> bytes | None:
    """Return the bytes behind 64 digits of hex, or base64 of 32 bytes (also the URL-safe alphabet); None for others.

    No other length: words in a row are base64 as well, and a passphrase must not go without being stretched.
    """
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    if _BASE64.fullmatch(text):
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    return None


@functools.lru_cache(maxsize=8)
def _stretched(passphrase: bytes) -> bytes:
    """Return a key from a passphrase, which may be guessed: each guess costs 16 MiB and some 40 ms."""
    return Scrypt(salt=_PURPOSE, length=32, n=2**14, r=8, p=1).derive(passphrase)


def _derived(master: bytes, purpose: bytes, length: int = 32) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=purpose).derive(master)
