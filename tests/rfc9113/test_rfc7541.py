"""RFC 7541, header compression: what a decoder must take, and what it must refuse.

Refusal is a connection error of type COMPRESSION_ERROR (RFC 9113 4.3).
"""

from __future__ import annotations

import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from tests.fakes.frames import COMPRESSION_ERROR, FramePeer, headers_frames, plain_block
from tests.rfc9113.origin import Origin
from tests.rfc9113.reactions import connection_error, goes_on

_LITERAL_ADDED = b"\x40"  # 6.2.1
_LITERAL = b"\x00"  # 6.2.2
_LITERAL_NEVER = b"\x10"  # 6.2.3
_NEWEST = b"\xbe"  # 6.1: index 62, the first of the dynamic table (2.3.3)
_SIZE_0 = b"\x20"  # 6.3
_SIZE_4096 = b"\x3f\xe1\x1f"
_SIZE_4097 = b"\x3f\xe2\x1f"


def _send(peer: FramePeer, path: str, more: bytes, *, before: bytes = b"") -> int:
    """A request with `more` behind the fields of an ordinary one, and `before` in front."""
    stream = peer.new_stream()
    peer.send(*headers_frames(before + plain_block(peer.head(path)) + more, stream))
    return stream


def _text(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _huffman(text: bytes) -> bytes:
    coded = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)
    return bytes([0x80 | len(coded)]) + coded


def test_2_3_2_table_is_first_in_first_out(peer: FramePeer, origin: Origin) -> None:
    """RFC 7541 2.3.2: the newest entry has the lowest index."""
    entries = b"".join(_LITERAL_ADDED + _text(b"x-%d" % number) + _text(b"v%d" % number) for number in range(3))
    peer.answer(_send(peer, "/2-3-2-first", entries))
    peer.answer(_send(peer, "/2-3-2", b"\xbe\xbf\xc0"))
    order = [field for field in origin.only("/2-3-2").fields if field[0] in (b"x-0", b"x-1", b"x-2")]
    assert order == [(b"x-2", b"v2"), (b"x-1", b"v1"), (b"x-0", b"v0")]


def test_2_3_2_duplicates_are_no_error(peer: FramePeer, origin: Origin) -> None:
    """RFC 7541 2.3.2: the table may hold the same entry twice."""
    entry = _LITERAL_ADDED + _text(b"x-twice") + _text(b"v")
    peer.answer(_send(peer, "/2-3-2-twice", entry + entry))
    assert origin.only("/2-3-2-twice").all("x-twice") == [b"v", b"v"]


@pytest.mark.parametrize("index", [b"\xbe", b"\xff\x00", b"\xff\x80\x01"], ids=["62", "127", "255"])
def test_2_3_3_index_beyond_both_tables(peer: FramePeer, index: bytes) -> None:
    """RFC 7541 2.3.3: an index greater than both tables together is a decoding error."""
    _send(peer, "/2-3-3", index)
    connection_error(peer, COMPRESSION_ERROR)


@pytest.mark.parametrize("prefix", [b"\x7f\x00", b"\x0f\x2f", b"\x1f\x2f"], ids=["added", "plain", "never"])
def test_2_3_3_name_index_beyond_both_tables(peer: FramePeer, prefix: bytes) -> None:
    """RFC 7541 2.3.3: also where only the name is taken from the table."""
    _send(peer, "/2-3-3-name", prefix + _text(b"v"))
    connection_error(peer, COMPRESSION_ERROR)


def test_4_1_entry_is_evicted(peer: FramePeer, origin: Origin) -> None:
    """RFC 7541 4.1, 4.4: an entry counts 32 bytes more than its text; what has no room leaves the table."""
    entry = _LITERAL_ADDED + _text(b"x-b") + _text(b"v" * 61)  # 96 bytes of 4096: 42 of them have room
    peer.answer(_send(peer, "/4-1", entry * 50))
    peer.answer(_send(peer, "/4-1-there", bytes([0x80 | 62 + 41])))
    assert origin.only("/4-1-there").all("x-b") == [b"v" * 61]
    _send(peer, "/4-1-gone", bytes([0x80 | 62 + 42]))
    connection_error(peer, COMPRESSION_ERROR)


def test_4_2_size_update_at_the_start(peer: FramePeer) -> None:
    """RFC 7541 4.2: a dynamic table size update at the beginning of a block."""
    peer.answer(_send(peer, "/4-2", b"", before=_SIZE_0))
    goes_on(peer)


def test_4_2_two_size_updates_at_the_start(peer: FramePeer) -> None:
    """RFC 7541 4.2: two of them, the smaller first."""
    peer.answer(_send(peer, "/4-2", b"", before=_SIZE_0 + _SIZE_4096))
    goes_on(peer)


def test_4_2_size_update_at_the_end(peer: FramePeer) -> None:
    """RFC 7541 4.2: a change of the size comes at the beginning of a block, nowhere else."""
    _send(peer, "/4-2-end", _SIZE_0)
    connection_error(peer, COMPRESSION_ERROR)


def test_4_2_size_update_between_fields(peer: FramePeer) -> None:
    """RFC 7541 4.2: the same within a block."""
    _send(peer, "/4-2-between", _LITERAL + _text(b"x-c") + _text(b"v"), before=b"\x82" + _SIZE_0)
    connection_error(peer, COMPRESSION_ERROR)


def test_4_3_table_is_emptied_by_size_0(peer: FramePeer) -> None:
    """RFC 7541 4.3: what no longer fits is evicted when the size changes."""
    peer.answer(_send(peer, "/4-3", _LITERAL_ADDED + _text(b"x-a") + _text(b"1")))
    _send(peer, "/4-3", _NEWEST, before=_SIZE_0 + _SIZE_4096)
    connection_error(peer, COMPRESSION_ERROR)


def test_4_4_entry_larger_than_the_table_empties_it(peer: FramePeer) -> None:
    """RFC 7541 4.4: that is no error; but nothing is left to refer to."""
    peer.answer(_send(peer, "/4-4", _LITERAL_ADDED + _text(b"x-a") + _text(b"1")))
    value = b"v" * 5000
    peer.answer(_send(peer, "/4-4", _LITERAL_ADDED + _text(b"x-a") + b"\x7f\x89\x26" + value))
    _send(peer, "/4-4", _NEWEST)
    connection_error(peer, COMPRESSION_ERROR)


@pytest.mark.parametrize(
    "length", [b"\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x7f\xff\xff\xff\xff\x7f"], ids=["64", "35"]
)
def test_5_1_integer_too_large(peer: FramePeer, length: bytes) -> None:
    """RFC 7541 5.1: integers beyond the implementation's limits are decoding errors."""
    _send(peer, "/5-1", _LITERAL + _text(b"x-a") + length)
    connection_error(peer, COMPRESSION_ERROR)


def test_5_1_integer_of_several_bytes(peer: FramePeer, origin: Origin) -> None:
    """RFC 7541 5.1: one that does not fit its prefix goes on in the next bytes."""
    peer.answer(_send(peer, "/5-1-long", _LITERAL + _text(b"x-a") + b"\x7f\x81\x02" + b"v" * 384))
    assert origin.only("/5-1-long").all("x-a") == [b"v" * 384]


def test_5_2_text_longer_than_the_block(peer: FramePeer) -> None:
    """RFC 7541 5.2: a string literal ends within its block."""
    _send(peer, "/5-2", _LITERAL + _text(b"x-a") + b"\x20" + b"short")
    connection_error(peer, COMPRESSION_ERROR)


def test_5_2_huffman(peer: FramePeer, origin: Origin) -> None:
    """RFC 7541 5.2: names and values in Huffman code."""
    peer.answer(_send(peer, "/5-2-huffman", _LITERAL + _huffman(b"x-coded") + _huffman(b"a value, ~^`{}")))
    assert origin.only("/5-2-huffman").all("x-coded") == [b"a value, ~^`{}"]


@pytest.mark.parametrize(
    "coded",
    [
        b"\x82\x1f\xff",  # "a" is 00011
        b"\x81\x18",
        b"\x81\x1b",
        b"\x84\xff\xff\xff\xff",
    ],
    ids=["longer-than-7-bits", "zeros", "not-all-ones", "eos"],
)
def test_5_2_huffman_padding(peer: FramePeer, coded: bytes) -> None:
    """RFC 7541 5.2: padding is the first bits of EOS, less than 8 of them; EOS itself is not allowed."""
    _send(peer, "/5-2-padding", _LITERAL + _text(b"x-a") + coded)
    connection_error(peer, COMPRESSION_ERROR)


def test_5_2_huffman_padding_of_a_few_bits(peer: FramePeer, origin: Origin) -> None:
    """RFC 7541 5.2: the beginning of EOS, and no padding where none is needed."""
    peer.answer(
        _send(peer, "/5-2-padded", _LITERAL + _text(b"x-a") + b"\x81\x1f" + _LITERAL + _text(b"x-b") + b"\x81\xf8")
    )
    assert origin.only("/5-2-padded").all("x-a") == [b"a"]
    assert origin.only("/5-2-padded").all("x-b") == [b"&"]


def test_6_1_index_0(peer: FramePeer) -> None:
    """RFC 7541 6.1: the index 0 is not used."""
    _send(peer, "/6-1", b"\x80")
    connection_error(peer, COMPRESSION_ERROR)


def test_6_1_indexed_from_the_static_table(peer: FramePeer, origin: Origin) -> None:
    """RFC 7541 6.1: `accept-encoding: gzip, deflate` is entry 16."""
    peer.answer(_send(peer, "/6-1-static", b"\x90"))
    assert origin.only("/6-1-static").all("accept-encoding") == [b"gzip, deflate"]


@pytest.mark.parametrize("kind", ["added", "plain", "never"])
@pytest.mark.parametrize("name", ["new", "indexed"])
def test_6_2_literals(peer: FramePeer, origin: Origin, kind: str, name: str) -> None:
    """RFC 7541 6.2.1 to 6.2.3: literals with, without and never with indexing; the name new or from a table."""
    prefix = {"added": _LITERAL_ADDED, "plain": _LITERAL, "never": _LITERAL_NEVER}[kind]
    path = f"/6-2-{kind}-{name}"
    if name == "new":
        field = prefix + _text(b"x-new") + _text(b"v")
    else:  # entry 58: user-agent
        field = b"\x7a" + _text(b"v") if kind == "added" else bytes([prefix[0] | 15, 58 - 15]) + _text(b"v")
    peer.answer(_send(peer, path, field))
    assert origin.only(path).all("x-new" if name == "new" else "user-agent") == [b"v"]
    _send(peer, path, _NEWEST)  # only the first kind has entered the table
    if kind == "added":
        goes_on(peer)
    else:
        connection_error(peer, COMPRESSION_ERROR)


def test_6_3_size_beyond_what_was_announced(peer: FramePeer) -> None:
    """RFC 7541 6.3: a size over SETTINGS_HEADER_TABLE_SIZE is a decoding error."""
    assert peer.server_settings.get(1, 4096) == 4096
    _send(peer, "/6-3", b"", before=_SIZE_4097)
    connection_error(peer, COMPRESSION_ERROR)


def test_7_1_3_never_indexed_is_forwarded_like_any(peer: FramePeer, origin: Origin) -> None:
    """RFC 7541 7.1.3: the mark is about compression; on the way to an HTTP/1.1 backend it means nothing."""
    peer.answer(_send(peer, "/7-1-3", _LITERAL_NEVER + _text(b"authorization") + _text(b"secret")))
    assert origin.only("/7-1-3").all("authorization") == [b"secret"]
