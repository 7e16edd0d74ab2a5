"""Messages that must be refused whatever stands around them: what other parsers are known to read in two ways.

Requests with the status that answers them; answers of a backend, each of which becomes a 502.
"""

from __future__ import annotations

HOST = b"Host: a.test\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"


def request(lines: bytes = HOST, *, line: bytes = b"GET /x HTTP/1.1", body: bytes = b"") -> bytes:
    return line + b"\r\n" + lines + b"\r\n" + body


def post(lines: bytes, body: bytes = b"") -> bytes:
    return request(HOST + lines, line=b"POST /x HTTP/1.1", body=body)


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", body)


def answer(lines: bytes = b"", body: bytes = b"", *, line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return line + b"\r\n" + lines + b"\r\n" + body


REFUSED = {
    # framing: CL.TE, TE.CL, TE.TE, CL.CL
    "CL and TE": (400, post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    "TE and CL": (400, post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n")),
    "CL and TE with other case": (400, post(b"content-length: 5\r\ntransfer-encoding: CHUNKED\r\n", b"0\r\n\r\n")),
    "CL and unknown TE": (400, post(b"Content-Length: 5\r\nTransfer-Encoding: x\r\n", b"hello")),
    "TE twice, one unknown": (400, post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n", b"0\r\n\r\n")),
    "TE twice, unknown first": (501, post(b"Transfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    "TE in HTTP/1.0": (400, chunked(b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")),
    "TE with a parameter": (501, post(b"Transfer-Encoding: chunked;foo\r\n", b"0\r\n\r\n")),
    "TE in quotes": (400, post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n")),
    "TE with a comma behind": (400, post(b"Transfer-Encoding: chunked,\r\n", b"0\r\n\r\n")),
    "TE with 0x85": (400, post(b"Transfer-Encoding: chunked\x85\r\n", b"0\r\n\r\n")),
    "TE folded": (400, post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n")),
    "CL +5": (400, post(b"Content-Length: +5\r\n", b"hello")),
    "CL 1_0": (400, post(b"Content-Length: 1_0\r\n", b"0123456789")),
    "CL 0x5": (400, post(b"Content-Length: 0x5\r\n", b"hello")),
    "CL of 20 digits": (400, post(b"Content-Length: 18446744073709551621\r\n", b"hello")),
    "CL of 5000 digits": (400, post(b"Content-Length: " + b"9" * 5000 + b"\r\n", b"hello")),
    "CL with a blank inside": (400, post(b"Content-Length: 1 0\r\n", b"0123456789")),
    "CL with NBSP": (400, post(b"Content-Length: \xa05\r\n", b"hello")),
    "CL twice, with other case": (400, post(b"Content-Length: 5\r\ncontent-length: 5\r\n", b"hello")),
    "CL with a semicolon": (400, post(b"Content-Length: 5;\r\n", b"hello")),
    # chunks
    "chunk size 0x5": (400, chunked(b"0x5\r\nhello\r\n0\r\n\r\n")),
    "chunk size with a blank before": (400, chunked(b" 5\r\nhello\r\n0\r\n\r\n")),
    "chunk size with a blank behind": (400, chunked(b"5 \r\nhello\r\n0\r\n\r\n")),
    "chunk size of 16 digits": (400, chunked(b"0000000000000005\r\nhello\r\n0\r\n\r\n")),
    "chunk size 2**64": (400, chunked(b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n")),
    "chunk extension with LF": (400, chunked(b"5;a\nb\r\nhello\r\n0\r\n\r\n")),
    "chunk extension with CR": (400, chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n")),
    "chunk extension with NUL": (400, chunked(b"5;a\x00\r\nhello\r\n0\r\n\r\n")),
    "chunk extension with an open quote": (400, chunked(b'5;a="\r\nhello\r\n0\r\n\r\n')),
    "chunk ended by CR": (400, chunked(b"5\r\nhello\r0\r\n\r\n")),
    "last chunk ended by LF": (400, chunked(b"5\r\nhello\r\n0\n\n")),
    "trailer ended by LF": (400, chunked(b"0\r\nX: y\n\r\n")),
    "trailer folded": (400, chunked(b"0\r\nX: y\r\n z\r\n\r\n")),
    "trailer begins with a blank": (400, chunked(b"0\r\n X: y\r\n\r\n")),
    "trailer without a name": (400, chunked(b"0\r\n: y\r\n\r\n")),
    "trailer with a blank before the colon": (400, chunked(b"0\r\nX : y\r\n\r\n")),
    "trailer without a colon": (400, chunked(b"0\r\nGET /smuggled HTTP/1.1\r\n\r\n")),
    "trailer with NUL": (400, chunked(b"0\r\nX: \x00\r\n\r\n")),
    "trailers of 9 KiB": (431, chunked(b"0\r\nX: " + b"y" * 9000 + b"\r\n\r\n")),
    "chunk extensions without end": (400, chunked((b"1;" + b"a" * 900 + b"\r\nx\r\n") * 30)),
    # fields
    "folded first field": (400, request(b" " + HOST)),
    "folded with a tab": (400, request(HOST + b"X: a\r\n\tb\r\n")),
    "line of blanks": (400, request(HOST + b" \r\n")),
    "no colon": (400, request(HOST + b"Garbage\r\n")),
    "no name": (400, request(HOST + b": x\r\n")),
    "blank before the colon": (400, request(HOST + b"X : y\r\n")),
    "tab before the colon": (400, request(HOST + b"X\t: y\r\n")),
    "VT before the colon": (400, request(HOST + b"X\x0b: y\r\n")),
    "0x85 in a name": (400, request(HOST + b"X\x85: y\r\n")),
    "NBSP in a name": (400, request(HOST + b"X\xa0: y\r\n")),
    "soft hyphen in a name": (400, post(b"Content\xadLength: 5\r\n", b"hello")),
    "blank in a name": (400, request(HOST + b"X Y: z\r\n")),
    "quote in a name": (400, request(HOST + b'"X": z\r\n')),
    "FF in a value": (400, request(HOST + b"X: a\x0cb\r\n")),
    "ESC in a value": (400, request(HOST + b"X: a\x1bb\r\n")),
    "CR CR LF": (400, b"GET /x HTTP/1.1\r\n" + HOST + b"X: y\r\r\n\r\n"),
    "CR alone as an end": (400, b"GET /x HTTP/1.1\r" + HOST + b"\r\n"),
    "LF CR": (400, b"GET /x HTTP/1.1\r\n" + HOST + b"\n\r\n"),
    # hosts
    "two Hosts with other case": (400, request(HOST + b"hOsT: a.test\r\n")),
    "two Hosts in HTTP/1.0": (400, request(HOST + HOST, line=b"GET / HTTP/1.0")),
    "Host with user information": (400, request(b"Host: u@a.test\r\n")),
    "Host with a comma": (400, request(b"Host: a.test,b.test\r\n")),
    "Host with a blank": (400, request(b"Host: a.test b.test\r\n")),
    "Host with a tab": (400, request(b"Host: a.test\tb.test\r\n")),
    "Host with an escape": (400, request(b"Host: a%2etest\r\n")),
    "Host with a fragment": (400, request(b"Host: a.test#\r\n")),
    "Host with a backslash": (400, request(b"Host: a.test\\b\r\n")),
    "Host with 0x85": (400, request(b"Host: a.test\x85\r\n")),
    "Host with an empty label first": (400, request(b"Host: .a.test\r\n")),
    "Host with an empty label inside": (400, request(b"Host: a..test\r\n")),
    "Host of two final dots": (400, request(b"Host: a.test..\r\n")),
    "Host of one dot": (400, request(b"Host: .\r\n")),
    "Host of a port only": (400, request(b"Host: :443\r\n")),
    "Host with +80": (400, request(b"Host: a.test:+80\r\n")),
    "Host with a superscript port": (400, request(b"Host: a.test:\xb2\r\n")),
    "Host with port 65536": (400, request(b"Host: a.test:65536\r\n")),
    "Host with an open bracket": (400, request(b"Host: [::1\r\n")),
    "Host with a bad address": (400, request(b"Host: [::1::2]\r\n")),
    "Host with a zone": (400, request(b"Host: [fe80::1%25eth0]\r\n")),
    "Host with text behind the bracket": (400, request(b"Host: [::1]a\r\n")),
    "Host is a URL": (400, request(b"Host: http://a.test\r\n")),
    "Host too long": (400, request(b"Host: " + b"a" * 300 + b"\r\n")),
    # request lines and targets
    "version in lower case": (400, request(line=b"GET /x http/1.1")),
    "version 1.2": (505, request(line=b"GET /x HTTP/1.2")),
    "version with two digits": (400, request(line=b"GET /x HTTP/1.10")),
    "version with a superscript": (400, request(line=b"GET /x HTTP/1.\xb9")),
    "no version": (400, request(line=b"GET /x")),
    "no target": (400, request(line=b"GET  HTTP/1.1")),
    "query only": (400, request(line=b"GET ?x HTTP/1.1")),
    "fragment": (400, request(line=b"GET /x#y HTTP/1.1")),
    "non-ASCII target": (400, request(line=b"GET /\xc3\xa9 HTTP/1.1")),
    "0x85 in the target": (400, request(line=b"GET /\x85 HTTP/1.1")),
    "DEL in the target": (400, request(line=b"GET /\x7f HTTP/1.1")),
    "tab in the target": (400, request(line=b"GET /a\tb HTTP/1.1")),
    "absolute without a host": (400, request(line=b"GET http:///x HTTP/1.1")),
    "absolute with one slash": (400, request(line=b"GET http:/a.test/x HTTP/1.1")),
    "absolute with two ports": (400, request(line=b"GET http://a.test:80:80/x HTTP/1.1")),
    "absolute with a backslash": (400, request(line=b"GET http://a.test\\b.test/x HTTP/1.1")),
    "absolute with another scheme": (400, request(line=b"GET ftp://a.test/x HTTP/1.1")),
    "absolute, but two Hosts": (400, request(HOST + HOST, line=b"GET http://a.test/ HTTP/1.1")),
    "absolute, but no Host": (400, request(b"", line=b"GET http://a.test/ HTTP/1.1")),
    "absolute, but a bad Host": (400, request(b"Host: a b\r\n", line=b"GET http://a.test/ HTTP/1.1")),
    "asterisk for GET": (400, request(line=b"GET * HTTP/1.1")),
    "method in lower case": (501, request(line=b"get / HTTP/1.1")),
    "method with NUL": (400, request(line=b"G\x00ET / HTTP/1.1")),
    "method with a blank before": (400, request(line=b" GET / HTTP/1.1")),
    "CONNECT": (405, request(line=b"CONNECT a.test:443 HTTP/1.1")),
    "h2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "two empty lines first": (400, b"\r\n\r\n" + request()),
    "an LF first": (400, b"\n" + request()),
    "a body that is a header": (400, b"0\r\n\r\n" + request()),
    # the rest
    "expectation": (417, post(b"Expect: 200-ok\r\nContent-Length: 1\r\n", b"x")),
    "list of expectations": (417, post(b"Expect: 100-continue, x\r\nContent-Length: 1\r\n", b"x")),
    "WebSocket with a length": (400, request(HOST + UPGRADE + b"Content-Length: 0\r\n")),
    "WebSocket with chunks": (400, request(HOST + UPGRADE + b"Transfer-Encoding: chunked\r\n", body=b"0\r\n\r\n")),
}

REFUSED_ANSWERS = {
    "leading blank": answer(line=b" HTTP/1.1 200 OK"),
    "leading empty line": b"\r\n" + answer(b"Content-Length: 0\r\n"),
    "two blanks": answer(line=b"HTTP/1.1  200 OK"),
    "tab": answer(line=b"HTTP/1.1\t200\tOK"),
    "status 2 0": answer(line=b"HTTP/1.1 2 0 OK"),
    "status +20": answer(line=b"HTTP/1.1 +20 OK"),
    "status with a superscript": answer(line=b"HTTP/1.1 20\xb2 OK"),
    "status 0200": answer(line=b"HTTP/1.1 0200 OK"),
    "status 099": answer(line=b"HTTP/1.1 099 OK"),
    "status 600": answer(line=b"HTTP/1.1 600 OK"),
    "status missing": answer(line=b"HTTP/1.1"),
    "version in lower case": answer(line=b"http/1.1 200 OK"),
    "version 1.2": answer(line=b"HTTP/1.2 200 OK"),
    "ICY": answer(line=b"ICY 200 OK"),
    "reason with NUL": answer(line=b"HTTP/1.1 200 O\x00K"),
    "reason with ESC": answer(line=b"HTTP/1.1 200 \x1b[31mOK"),
    "reason with CR": answer(line=b"HTTP/1.1 200 O\rK"),
    "two status lines": answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"),
    "folded": answer(b"X: a\r\n b\r\nContent-Length: 0\r\n"),
    "folded first": answer(b" X: a\r\nContent-Length: 0\r\n"),
    "LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "blank before the colon": answer(b"Content-Length : 5\r\n", b"hello"),
    "no name": answer(b": x\r\n"),
    "CL twice": answer(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"),
    "CL list": answer(b"Content-Length: 5, 5\r\n", b"hello"),
    "CL and TE": answer(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "TE and CL": answer(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
    "TE in HTTP/1.0": answer(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", line=b"HTTP/1.0 200 OK"),
    "TE gzip": answer(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "TE not last": answer(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"),
    "TE on a 204 with a length": answer(b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", line=b"HTTP/1.1 204 X"),
    "interim with a length": answer(b"Content-Length: 5\r\n", b"hello", line=b"HTTP/1.1 103 Early Hints"),
    "interim with chunks": answer(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", line=b"HTTP/1.1 100 Continue"),
    "257 fields": answer(b"X: y\r\n" * 257),
    "70 KB of header": answer(b"X: " + b"y" * 70_000 + b"\r\n"),
}
