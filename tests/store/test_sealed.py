"""Sealed records: only what was sealed under that name with a known key opens, and each refusal says its reason."""

import base64
import re

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from hypothesis import given
from hypothesis import strategies as st

from tests.store.stores import BOTH, NEW, NEW_RING, OLD, OLD_RING
from tlsproxy.errors import StoreError
from tlsproxy.store.certificates import CertificateStore
from tlsproxy.store.memory import MemoryRecords
from tlsproxy.store.records import RecordDamaged
from tlsproxy.store.sealed import OVERHEAD, Keyring, SealedRecords, Unopened, is_sealed

RAW = bytes(range(32))
SEALED = OLD_RING.seal("certificates/a", b'{"name": "a"}')
OTHER_END = bytes([SEALED[-1] ^ 1])
PLAIN = Keyring()


def refused(ring: Keyring, value: bytes, key: str = "certificates/a") -> str:
    with pytest.raises(StoreError) as caught:
        ring.open(key, value, "here")
    assert str(caught.value).startswith("here: ")
    return str(caught.value)


class TestFormat:
    def test_as_the_text_says(self) -> None:
        ring = Keyring([RAW])
        sealed = ring.seal("certificates/ä", b"value")
        assert len(sealed) == len(b"value") + OVERHEAD == len(b"value") + 35
        key = HKDF(hashes.SHA256(), 32, None, b"tlsproxy storage v1").derive(RAW)
        header, nonce = sealed[:19], sealed[7:19]
        assert header[:3] == b"TP1"
        assert AESGCM(key).decrypt(nonce, sealed[19:], header + "certificates/ä".encode()) == b"value"

    def test_no_two_are_the_same(self) -> None:
        assert OLD_RING.seal("a", b"x") != OLD_RING.seal("a", b"x")

    @given(st.binary(max_size=300), st.text(max_size=40))
    def test_what_is_sealed_opens(self, value: bytes, name: str) -> None:
        sealed = OLD_RING.seal(f"state/{name}", value)
        assert OLD_RING.open(f"state/{name}", sealed, "here") == value
        assert is_sealed(sealed)
        assert value not in sealed or len(value) < 4

    @given(st.integers(0, 8 * len(SEALED) - 1))
    def test_one_flipped_bit_is_refused(self, bit: int) -> None:
        damaged = bytearray(SEALED)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(OLD_RING, bytes(damaged))

    @given(st.integers(0, len(SEALED) - 1))
    def test_cut_short_it_is_refused(self, length: int) -> None:
        assert re.search(r"cut short", refused(OLD_RING, SEALED[:length]))

    @given(st.binary(min_size=1, max_size=20))
    def test_with_something_added_it_is_refused(self, more: bytes) -> None:
        refused(OLD_RING, SEALED + more)

    def test_without_keys_nothing_changes(self) -> None:
        assert PLAIN.seal("a/a", b"{}") == PLAIN.open("a/a", b"{}", "here") == b"{}"


class TestRefusals:
    def test_a_wrong_key(self) -> None:
        said = refused(NEW_RING, SEALED)
        assert "sealed with a key that is not among store.encryption_keys" in said
        assert said.endswith("Add the old key after the new one, then run: tlsproxy admin store rekey")

    def test_the_record_of_another_name(self) -> None:
        assert "moved here from another name" in refused(OLD_RING, SEALED, "certificates/b")
        assert "moved here from another name" in refused(OLD_RING, SEALED, "state/a")

    def test_a_plain_record_where_all_are_sealed(self) -> None:
        said = refused(OLD_RING, b'{"name": "a"}')
        assert "not sealed, although there are store.encryption_keys" in said
        assert said.endswith("tlsproxy admin store rekey")

    def test_a_sealed_record_without_keys(self) -> None:
        assert "sealed, but there are no store.encryption_keys. Give the key" in refused(PLAIN, SEALED)

    def test_two_records_exchanged_in_a_store(self) -> None:
        raw = MemoryRecords()
        store = CertificateStore(raw, OLD_RING)
        store.put_record("state", "a", {"n": 1})
        store.put_record("state", "b", {"n": 2})
        raw.write("state/a", raw.read("state/b") or b"")
        with pytest.raises(StoreError, match="memory: state/a: sealed, and then changed"):
            store.get_record("state", "a")
        assert store.get_record("state", "b") == {"n": 2}
        assert store.list_records("state") == ("a", "b")

    def test_in_a_plain_store_the_name_inside_tells(self) -> None:
        raw = MemoryRecords()
        store = CertificateStore(raw)
        store.put_record("state", "b", {"n": 2})
        raw.write("state/a", raw.read("state/b") or b"")
        with pytest.raises(StoreError, match=r"the record is damaged \(it is the record of 'b'\)"):
            store.get_record("state", "a")


class TestWhetherMakingItAgainHelps:
    """Whoever renews certificates must not order new ones because a key is missing."""

    @pytest.mark.parametrize("value", [b"", SEALED[:2], SEALED[:34], SEALED[:-1], SEALED[:-1] + OTHER_END])
    def test_damage(self, value: bytes) -> None:
        with pytest.raises(RecordDamaged):
            OLD_RING.open("certificates/a", value, "here")

    @pytest.mark.parametrize(("ring", "value"), [(PLAIN, SEALED), (NEW_RING, SEALED), (OLD_RING, b"{}")])
    def test_another_key_would_do(self, ring: Keyring, value: bytes) -> None:
        with pytest.raises(Unopened) as caught:
            ring.open("certificates/a", value, "here")
        assert not isinstance(caught.value, RecordDamaged)


class TestKeys:
    def test_the_newest_seals_and_each_opens(self) -> None:
        assert BOTH.open("certificates/a", SEALED, "here") == b'{"name": "a"}'
        assert NEW_RING.open("a/a", BOTH.seal("a/a", b"x"), "here") == b"x"
        assert (BOTH.is_newest(SEALED), BOTH.is_newest(BOTH.seal("a/a", b"x"))) == (False, True)
        assert (len(BOTH), len(Keyring([OLD, OLD, bytes.fromhex(OLD)])), len(PLAIN)) == (2, 1, 0)

    @pytest.mark.parametrize(
        "text",
        [
            RAW.hex(),
            RAW.hex().upper(),
            base64.b64encode(RAW).decode(),
            f" {base64.b64encode(RAW).decode()}\n",
            base64.urlsafe_b64encode(RAW).decode(),
        ],
    )
    def test_one_key_in_many_forms(self, text: str) -> None:
        assert Keyring([text]).open("a/a", Keyring([RAW]).seal("a/a", b"x"), "here") == b"x"

    @given(st.binary(min_size=32, max_size=32))
    def test_every_base64_and_hex_of_32_bytes_is_that_key(self, raw: bytes) -> None:
        sealed = Keyring([raw]).seal("a/a", b"x")
        for text in (base64.b64encode(raw), base64.urlsafe_b64encode(raw), raw.hex().encode()):
            assert Keyring([text.decode()]).open("a/a", sealed, "here") == b"x"

    @pytest.mark.parametrize("alphabet", ["+/", "-_"])
    def test_both_alphabets_of_base64(self, alphabet: str) -> None:
        raw = b"\xfb\xff" * 16
        text = base64.b64encode(raw, alphabet.encode()).decode()
        assert set(alphabet) <= set(text)
        assert Keyring([text]).open("a/a", Keyring([raw]).seal("a/a", b"x"), "here") == b"x"

    @pytest.mark.parametrize(
        "text",
        [
            "correcthorsebatterystaplecorrecthorsebattery",  # 44 letters
            "deadbeefcafe" * 4,
            "dead beef " * 8,
            base64.b64encode(bytes(33)).decode(),
            base64.b64encode(bytes(31)).decode(),
        ],
    )
    def test_a_passphrase_that_could_be_base64_or_hex_of_something_is_stretched(self, text: str) -> None:
        stretched = Scrypt(salt=b"tlsproxy storage v1", length=32, n=2**14, r=8, p=1).derive(text.strip().encode())
        assert Keyring([text]).open("a/a", Keyring([stretched]).seal("a/a", b"x"), "here") == b"x"

    def test_a_passphrase(self) -> None:
        assert NEW_RING.open("a/a", Keyring([NEW]).seal("a/a", b"x"), "here") == b"x"
        refused(Keyring([NEW + "!"]), NEW_RING.seal("a/a", b"x"), "a/a")

    @pytest.mark.parametrize("key", ["", "secret", "x" * 31, RAW[:15].hex(), b"", RAW[:31]])
    def test_too_short_ones_are_refused_and_not_repeated(self, key: str | bytes) -> None:
        with pytest.raises(StoreError, match=r"store\.encryption_keys, key 2: .*openssl rand -base64 32") as caught:
            Keyring([OLD, key])
        assert not key or str(key) not in str(caught.value)

    def test_repr_shows_no_key(self) -> None:
        assert repr(BOTH) == "<Keyring 2 keys>"
        assert repr(SealedRecords(MemoryRecords(), BOTH)) == "<MemoryRecords 0 records>, sealed"
