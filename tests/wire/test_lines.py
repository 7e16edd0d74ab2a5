from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.wire.answers import STATUS_LINES
from tlsproxy.wire.fields import REQUEST_KIND, Kind
from tlsproxy.wire.grammar import TOKEN
from tlsproxy.wire.lines import FieldLines, parse_field_line
from tlsproxy.wire.messages import ProtocolError


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"A: b", (b"A", b"b")),
        (b"A:b", (b"A", b"b")),
        (b"A: \t b \t ", (b"A", b"b")),
        (b"A:", (b"A", b"")),
        (b"A: ", (b"A", b"")),
        (b"A: b: c", (b"A", b"b: c")),
        (b"A: caf\xe9\x85\xa0", (b"A", b"caf\xe9\x85\xa0")),
        (b"Transfer-Encoding: chunked", (b"Transfer-Encoding", b"chunked")),
        (b"Connection: upgrade", (b"Connection", b"upgrade")),
        (b"Upgrade: websocket", (b"Upgrade", b"websocket")),
    ],
)
def test_lines(line: bytes, field: tuple[bytes, bytes]) -> None:
    assert parse_field_line(line) == field


@given(st.binary(max_size=20))
def test_a_line_is_a_token_a_colon_and_text_or_refused(line: bytes) -> None:
    name, colon, value = line.partition(b":")
    is_text = not value.translate(None, b"\t" + bytes(range(32, 127)) + bytes(range(128, 256)))
    if name.lower() in (b"content-length", b"transfer-encoding"):
        with contextlib.suppress(ProtocolError):  # llhttp looks at what these say, too
            assert parse_field_line(line) == (name, value.strip(b" \t"))
    elif colon and name and not name.translate(None, TOKEN) and is_text:
        assert parse_field_line(line) == (name, value.strip(b" \t"))
    else:
        with pytest.raises(ProtocolError):
            parse_field_line(line)


def test_only_good_short_lines_without_secrets_are_remembered() -> None:
    lines = FieldLines(REQUEST_KIND)
    assert lines[b"Accept: */*"] == (Kind.PLAIN, (b"Accept", b"*/*"))
    secrets = [b"Cookie", b"Authorization", b"X-Api-Key", b"Content-Location", b"X-Amzn-Oidc-JWT", b"SAML-Assertion"]
    for line in (b"X-Long: " + b"y" * 300, b"Client-Credential: x", *(name + b": x" for name in secrets)):
        assert lines[line][0] is Kind.PLAIN
    assert lines[b"Referer: https://a.test/?code=1"][0] is Kind.NOTED
    with pytest.raises(ProtocolError):
        lines[b"A : b"]
    assert list(lines) == [b"Accept: */*"]


def test_memory_is_bounded() -> None:
    lines = FieldLines(REQUEST_KIND)
    for number in range(5000):
        assert lines[b"X: %d" % number] == (Kind.PLAIN, (b"X", b"%d" % number))
        assert len(lines) <= 4096


def test_names_are_learnt_however_many_came_before() -> None:
    """Somebody who sends thousands of names must not make all later ones dear."""
    lines = FieldLines(REQUEST_KIND)
    for number in range(5000):
        assert lines[b"X-%d: y" % number][1] == (b"X-%d" % number, b"y")
    for memory in (lines, lines._good_names, lines._secret):
        assert len(memory) <= 4096
    assert b"X-4999" in lines._good_names
    assert b"X-4999" in lines._secret


@pytest.mark.parametrize(
    "line", [b"Accept", b"Accept ", b"Accept : x", b"Accept\t: x", b" Accept: x", b"Accept: a\x00b"]
)
def test_a_known_name_excuses_nothing(line: bytes) -> None:
    lines = FieldLines(REQUEST_KIND)
    assert lines[b"Accept: text/html"][1] == (b"Accept", b"text/html")
    with pytest.raises(ProtocolError):
        lines[line]


def test_status_lines_are_remembered_if_short_and_not_for_ever() -> None:
    memory = type(STATUS_LINES)()
    long = b"HTTP/1.1 500 " + b"x" * 200
    assert memory[long] == (500, b"x" * 200, 11)
    assert not memory
    for number in range(1000):
        assert memory[b"HTTP/1.1 200 %d" % number] == (200, b"%d" % number, 11)
        assert len(memory) <= 256
    assert b"HTTP/1.1 200 999" in memory
