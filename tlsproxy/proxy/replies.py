"""The answers the proxy gives itself: errors, for programs and for people. Pure.

Knows statuses and media types, not connections. Rules: what comes from a request is escaped; an answer holds the
request id and never a stack, a header or an internal address. A cold path: written for reading, not for speed.
"""

from __future__ import annotations

import json
import re
from email.utils import formatdate
from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlsproxy.wire.fields import Fields
    from tlsproxy.wire.messages import RequestHead

# The names of RFC 9110 15 (and 6585, 7725); Python 3.11 still has the older names of 413, 414, 416 and 422.
_RENAMED = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    421: "Misdirected Request",
    422: "Unprocessable Content",
    499: "Client Closed Request",
}
_HINTS = {
    400: "The request could not be understood.",
    403: "This is not open to you.",
    404: "There is nothing at this address.",
    408: "The request took too long to arrive.",
    411: "The request must say how long its content is.",
    413: "The request is larger than this server accepts.",
    414: "The address is longer than this server accepts.",
    417: "The expectation of the request can't be met.",
    421: "This connection does not serve the requested host. A new connection may.",
    429: "Too many requests or connections. Try again in a moment.",
    431: "The header of the request is larger than this server accepts.",
    500: "Something went wrong in this server.",
    501: "This server does not support the request's method or coding.",
    502: "The application behind this server gave no usable answer.",
    503: "The application behind this server is not available. Try again in a moment.",
    504: "The application behind this server did not answer in time.",
    505: "This version of HTTP is not supported.",
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{status} {title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; font: 1rem/1.6 system-ui, sans-serif;
  background: #fafafa; color: #222; }}
main {{ max-width: 34rem; padding: 2rem; }}
h1 {{ margin: 0 0 .5rem; font-size: 1.5rem; font-weight: 600; }}
h1 b {{ color: #b3261e; font-weight: 600; margin-right: .4em; }}
p {{ margin: 0 0 1rem; overflow-wrap: anywhere; }}
small {{ color: #666; }}
code {{ font-family: ui-monospace, monospace; }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #161616; color: #e6e6e6; }}
  h1 b {{ color: #ff8a80; }}
  small {{ color: #9a9a9a; }}
}}
</style>
</head>
<body>
<main>
<h1><b>{status}</b>{title}</h1>
<p>{detail}</p>
{footer}</main>
</body>
</html>
"""


def title_of(status: int) -> str:
    """Return the reason phrase of a status, "Error" for one that has none."""
    if status in _RENAMED:
        return _RENAMED[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def error_reply(status: int, detail: str, request_id: str, accept: bytes | None) -> tuple[Fields, bytes]:
    """Return fields and body of an error answer: problem+json (RFC 9457), or a page where Accept prefers one.

    Empty `detail` is filled with a sentence for the status. The caller adds the status line, Date, Connection, and
    whatever the status asks for (Allow, Retry-After, …); to HEAD it sends the fields without the body.
    """
    detail = detail or _HINTS.get(status, title_of(status))
    if prefers_html(accept):
        media_type, body = b"text/html; charset=utf-8", _page(status, detail, request_id)
    else:
        media_type, body = b"application/problem+json", _problem(status, detail, request_id)
    fields = [
        (b"content-type", media_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"vary", b"accept"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if media_type.startswith(b"text/html"):
        fields.append((b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"))
    return fields, body


def http_date() -> bytes:
    """Return the time as RFC 9110 5.6.7 writes it."""
    return formatdate(usegmt=True).encode()


def refusal(status: int, detail: str, request_id: str, head: RequestHead, retry_after: int = 5) -> tuple[Fields, bytes]:
    """Return fields and body that refuse the request of `head`, with what some statuses owe (RFC 9110 10.2)."""
    accept = next((value for name, value in head.fields if name.lower() == b"accept"), None)
    fields, body = error_reply(status, detail, request_id, accept)
    fields = [field for field in fields if field[0].lower() != b"content-length"]  # the driver frames
    if status == 503:
        fields.append((b"Retry-After", b"%d" % retry_after))
    if status == 405:
        fields.append((b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
    return fields, body


def plain_http_on_tls_page() -> bytes:
    """Return the whole answer to plain HTTP on a TLS port: a 400 that says so, and the end of the connection."""
    detail = "This port speaks HTTPS, and the request came without TLS. Use an address that begins with https://."
    body = _page(400, detail, "")
    fields = [
        b"HTTP/1.1 400 Bad Request",
        b"content-type: text/html; charset=utf-8",
        b"content-length: %d" % len(body),
        b"cache-control: no-store",
        b"connection: close",
    ]
    return b"\r\n".join([*fields, b"", body])


def prefers_html(accept: bytes | None) -> bool:
    """Tell whether a client wants a page rather than JSON (RFC 9110 12.5.1).

    Only a client that names text/html gets one: curl and most libraries send */* and are programs. At equal quality the
    page wins if it is named first or JSON is not named.
    """
    if not accept or len(accept) > 4096:
        return False
    qualities = _qualities(accept.decode("latin-1"))
    html = qualities.get("text/html", qualities.get("application/xhtml+xml", 0.0))
    names = ("application/problem+json", "application/json")
    json_quality = max((qualities.get(name, 0.0) for name in names), default=0.0)
    if html == json_quality:
        order = [name for name in qualities if name in {"text/html", *names}]
        return html > 0 and order[:1] == ["text/html"]
    return html > json_quality


def _qualities(accept: str) -> dict[str, float]:
    qualities: dict[str, float] = {}
    for item in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = next((part[2:].strip() for part in parameters if part.startswith("q=")), "1")
        is_weight = re.fullmatch(r"0(\.\d{0,3})?|1(\.0{0,3})?", weight)
        qualities.setdefault(media_type, float(weight) if is_weight else 0.0)
    return qualities


def _problem(status: int, detail: str, request_id: str) -> bytes:
    """RFC 9457 3.1: without a `type` the title is that of the status. `request_id` is an extension member (3.2)."""
    members: dict[str, object] = {"type": "about:blank", "title": title_of(status), "status": status, "detail": detail}
    if request_id:
        members["request_id"] = request_id
    return json.dumps(members).encode() + b"\n"


def _page(status: int, detail: str, request_id: str) -> bytes:
    footer = f"<p><small>Request <code>{escape(request_id)}</code></small></p>\n" if request_id else ""
    page = _PAGE.format(status=status, title=escape(title_of(status)), detail=escape(detail), footer=footer)
    return page.encode("utf-8", "replace")
