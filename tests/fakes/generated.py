"""Messages for hypothesis: well-formed ones, and ones with a trick or two where parsers are known to differ."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fakes.vectors import backend_cases, client_cases

LINE_TRICKS = [
    b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n ", b"\r\n\t", b"\r\n\r\n", b"\x0b\r\n", b"\x00\r\n",
]  # fmt: skip
BLANKS = [
    b"", b" ", b"\t", b"  ", b" \t ", b"\x0b", b"\x0c", b"\x85", b"\xa0", b"\x00", b"\r", b"\n", b"\x1c",
    b"\x7f",
]  # fmt: skip
NUMBERS = [
    b"0", b"5", b"05", b"+5", b"-5", b"5_0", b"1_0", b" 5", b"5 ", b"0x5", b"5.0", b"5e0", b"\xb2", b"\xb9\xb2",
    b"5,5", b"5, 5", b"5;5", b"", b"9" * 18, b"9" * 19, b"0" * 18 + b"5", b"18446744073709551621",
    b"4294967301", b"\xd9\xa5", b"5\x00", b"inf", b"five",
]  # fmt: skip
CODINGS = [
    b"chunked", b"CHUNKED", b"Chunked", b" chunked", b"chunked ", b"\tchunked", b"\x0bchunked", b"chunked\x0b",
    b"chunked,", b",chunked", b"chunked, chunked", b"chunked;q=1", b"chunked;foo", b'"chunked"', b"xchunked",
    b"chunkedx", b"identity", b"gzip, chunked", b"chunked, identity", b"gzip", b"", b"chun\x00ked",
    b"chunked\x85", b"\xa0chunked", b"chunked, ", b"cow",
]  # fmt: skip
NAMES = [
    b"X-A", b"x", b"Content-Length", b"content-length", b"CONTENT-LENGTH", b"Content_Length",
    b"Content-Length ", b" Content-Length", b"Content-Length\x00", b"\x00Content-Length", b"Content-Length\t",
    b"Content\xadLength", b"Transfer-Encoding", b"transfer-encoding", b"Transfer_Encoding",
    b"Transfer-Encoding ", b"\tTransfer-Encoding", b"Transfer-\xe5ncoding", b"Connection", b"Upgrade",
    b"Expect", b"TE", b"Trailer", b"Host", b"hOST", b"Host ", b"X-Forwarded-For", b"User-Agent", b"Referer",
    b"", b":", b"X:", b"(", b"X@", b"\xc3\xa9", b"X\x85", b"X-Empty", b"Kelvin-\xe2\x84\xaa",
]  # fmt: skip
VALUES = [
    b"", b" ", b"a", b"a b", b" a ", b"\ta\t", b"caf\xe9", b"\x85", b"\xa0a\xa0", b"a\x00b", b"a\x0bb",
    b"a\x7fb", b"a\rb", b"a\nb", b"close", b"keep-alive", b"close, keep-alive", b"x-a", b"Upgrade",
    b"content-length", b"host", b"transfer-encoding, close", b"websocket", b"h2c", b"100-continue", b"trailers",
    b"a.test", b"b.test", b'"a, b"', b"a,,b",
]  # fmt: skip
METHODS = [
    b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"get", b"GE T", b"", b"PRI", b"CONNECT",
    b"G\x00T", b"G(T", b"FOO", b"TRACE",
]  # fmt: skip
TARGETS = [
    b"/", b"/x", b"/x?y=z", b"?x", b"", b"*", b"x", b"//host/path", b"http://a.test/x", b"HTTP://A.test",
    b"https://a.test?q", b"http:///x", b"http://", b"http://u@a.test/", b"http://a.test:80:80/",
    b"ftp://a.test/", b"a.test:443", b"@a.test/", b"/a#b", b"/\xe9", b"/a\x85b", b"/%00", b"/a\tb", b"/a b",
    b"/..;/\\", b"/\x7f", b"/a\x00", b"http://a.test\\@b.test/", b"http://[::1]:8/x", b"http:/a.test/",
]  # fmt: skip
VERSIONS = [
    b"HTTP/1.1", b"HTTP/1.0", b"http/1.1", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/1.10", b"HTTP/1.1 ", b"HTTP/01.1",
    b"HTTP/1,1", b"HTTP/\xb9.1", b"", b"HTTP/0.9",
]  # fmt: skip
HOSTS = [
    b"a.test", b"A.TEST", b"a.test:80", b"a.test:", b"a.test:x", b"a.test:80:80", b"", b" ", b"a.test,b.test",
    b"a.test b.test", b"u@a.test", b"a.test/x", b"a_b.test", b"a%2etest", b"a.test.", b".a.test", b"a..test",
    b".", b"[::1]", b"[::1]:8", b"[::1", b"::1", b"[zz]", b"[]", b"a.test#", b"a.test?", b"a\\b", b"\xe9.test",
    b"a.test\x00", b"a.test:99999", b"a.test:+80", b"a.test\x85", b"a.test:\xb2",
]  # fmt: skip
SIZES = [
    b"5", b"05", b"+5", b"-5", b" 5", b"5 ", b"5\t", b"0x5", b"5_", b"0_5", b"\xb5", b"", b"g", b"5;a",
    b"5;a=b", b'5;a="b"', b'5;a="\\""', b"5;", b"5;;", b"5;a=", b"5 ;a", b"5; a", b'5;a="b', b"5;a\x00",
    b"5;\ra", b"5;\na", b"A", b"a", b"10000000000000005", b"0000000000000005", b"000000000000005",
    b"FFFFFFFFFFFFFFFFF", b"7fffffffffffffff", b"5\x0b", b"5\xa0", b"5,", b"5.0",
]  # fmt: skip


def mostly(usual: bytes, tricks: list[bytes]) -> st.SearchStrategy[bytes]:
    """`usual` most of the time: with dozens of places in a message, it has a trick or two."""
    return st.integers(0, 23).flatmap(lambda drawn: st.just(usual) if drawn else st.sampled_from(tricks))


END = mostly(b"\r\n", LINE_TRICKS)
GOOD_NAMES = [
    b"X-A", b"x", b"Connection", b"User-Agent", b"referer", b"X-Empty", b"Kelvin", b"X-Forwarded-For", b"TE",
    b"Trailer", b"x_y",
]  # fmt: skip
GOOD_VALUES = [
    b"", b" ", b"a", b"a b", b" a ", b"\ta\t", b"caf\xe9", b"\x85", b"\xa0a\xa0", b"close", b"keep-alive",
    b"x-a", b"x, close", b'"a, b"', b"a,,b",
]  # fmt: skip
HEADER = st.integers(0, 23).flatmap(
    lambda drawn: (
        st.tuples(st.sampled_from(GOOD_NAMES), st.sampled_from(GOOD_VALUES))
        if drawn
        else st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES + NUMBERS + CODINGS))
    )
)


@st.composite
def header_lines(draw: st.DrawFn, host: bool) -> bytes:
    fields = draw(st.lists(HEADER, max_size=3))
    framing = draw(st.sampled_from([*["none", "length", "chunked"] * 4, "both"]))
    if framing in ("length", "both"):
        fields.insert(draw(st.integers(0, len(fields))), (b"Content-Length", draw(mostly(b"5", NUMBERS))))
    if framing in ("chunked", "both"):
        fields.insert(draw(st.integers(0, len(fields))), (b"Transfer-Encoding", draw(mostly(b"chunked", CODINGS))))
    if host:
        fields.insert(draw(st.integers(0, len(fields))), (b"Host", draw(mostly(b"a.test", HOSTS))))
    colon = mostly(b": ", [b":", b" :", b"\t:", b":\t", b": \x0b", b"\x00:", b";", b"", b"::"])
    return b"".join(name + draw(colon) + value + draw(END) for name, value in fields)


@st.composite
def bodies(draw: st.DrawFn, lines: bytes) -> bytes:
    """A body that mostly fits the framing of the header `lines`."""
    if not draw(st.integers(0, 23)):
        lines = b""
    if b"\nContent-Length" in lines and b"Transfer-Encoding" not in lines:
        return draw(mostly(b"hello", [b"", b"hell", b"hello!"]))
    if b"Transfer-Encoding" not in lines:
        return draw(
            mostly(b"", [b"", b"hello", b"hell", b"hello!", b"0\r\n\r\n", b"GET /s HTTP/1.1\r\nHost: a.test\r\n\r\n"])
        )
    chunks = draw(st.lists(mostly(b"5", SIZES), max_size=3))
    body = b"".join(size + draw(END) + b"hello" + draw(END) for size in chunks)
    trailers = draw(st.lists(HEADER, max_size=2))
    lines = b"".join(name + b": " + value + draw(END) for name, value in trailers)
    return (
        body
        + draw(mostly(b"0", [b"00", b"0;a=b", b"", b"0 ", b"-0", b"+0", b"0" * 16]))
        + draw(END)
        + lines
        + draw(END)
    )


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    blank = mostly(b" ", BLANKS)
    head = (
        draw(mostly(b"", [b"\r\n", b"\n", b" ", b"\x00", b"\r\n\r\n"])) + draw(mostly(b"POST", METHODS)) + draw(blank)
        + draw(mostly(b"/x", TARGETS)) + draw(blank) + draw(mostly(b"HTTP/1.1", VERSIONS)) + draw(END)
    )  # fmt: skip
    lines = draw(header_lines(host=True))
    return head + lines + draw(END) + draw(bodies(b"\n" + lines))


STATUSES = [b"099", b"2 0", b"20", b"2000", b"+20", b"\xb200", b"100", b"101", b"600", b"", b"20x", b"500", b"205"]


@st.composite
def repeating_streams(draw: st.DrawFn) -> bytes:
    """Requests of one client that says the same fields each time: a reader may remember them, but not more."""
    lines = draw(header_lines(host=True)) + b"\r\n"
    body = draw(bodies(b"\n" + lines))
    starts = st.tuples(
        mostly(b"POST", METHODS), st.sampled_from([b"/x", b"/y", *TARGETS]), mostly(b"HTTP/1.1", VERSIONS)
    )
    return b"".join(
        b" ".join(start) + b"\r\n" + lines + body for start in draw(st.lists(starts, min_size=2, max_size=4))
    )


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    interim = draw(mostly(b"", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"]))
    usual = draw(st.sampled_from([b"200", b"200", b"200", b"404", b"204", b"304"]))
    status = mostly(
        usual,
        [
            b"204",
            b"304",
            b"099",
            b"2 0",
            b"20",
            b"2000",
            b"+20",
            b"\xb200",
            b"100",
            b"101",
            b"600",
            b"",
            b"20x",
            b"500",
            b"205",
        ],
    )
    line = draw(mostly(b"HTTP/1.1", VERSIONS)) + draw(mostly(b" ", BLANKS)) + draw(status) + draw(mostly(b" ", BLANKS))
    reason = draw(mostly(b"OK", [b"", b" ", b"\xe9", b"a\x00", b"a\rb", b"a\tb", b"O K ", b"\x7f"]))
    lines = draw(header_lines(host=False))
    return interim + line + reason + draw(END) + lines + draw(END) + draw(bodies(b"\n" + lines))


PUNCTUATION = [b":", b",", b";", b"0", b"-", b"_"]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "replace", "double"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.sampled_from(BLANKS + LINE_TRICKS + [b":", b",", b";", b"0", b"-", b"_"]),
            st.binary(min_size=1, max_size=1),
        ),
    ),
    max_size=3,
)


def edited(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for what, where, piece in edits:
        at = int(where * len(data))
        if what == "insert":
            data = data[:at] + piece + data[at:]
        elif what == "delete":
            data = data[:at] + data[at + 1 :]
        elif what == "replace":
            data = data[:at] + piece + data[at + 1 :]
        else:
            data = data[:at] + data[at : at + 9] + data[at:]
    return data


REQUEST_SEEDS = [case.raw for case in client_cases() if len(case.raw) < 700]
ANSWER_SEEDS = [case.raw for case in backend_cases() if len(case.raw) < 700]
STREAMS = st.one_of(
    repeating_streams(),
    st.lists(requests(), min_size=1, max_size=3).map(b"".join),
    st.builds(edited, st.one_of(requests(), st.sampled_from(REQUEST_SEEDS)), EDITS),
)
ANSWERS = st.one_of(answers(), st.builds(edited, st.one_of(answers(), st.sampled_from(ANSWER_SEEDS)), EDITS))
