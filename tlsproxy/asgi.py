"""ASGI middleware for the application: it believes tlsproxy by a secret, not by an address.

Needs the standard library only, and nothing else of this package: the file may be copied into an image. Wrap the whole
application, outermost:

    app = TLSProxyMiddleware(FastAPI(...), secret=secret)

Strategy: a request is proven if it has exactly one X-Tlsproxy-Secret and that is the right one. Then its forwarding
headers say who asked, and the scope is made to say the same. If it is not proven, none of them reaches the
application. Either way the secret itself is taken out. The server's scope is never edited: the application gets a new
one.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import textwrap
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import quote, unquote

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

_SECRET: Final = b"x-tlsproxy-secret"
_TLS: Final = b"x-tlsproxy-tls"
_ROUTE: Final = b"x-tlsproxy-route"
_OURS: Final = b"x-tlsproxy-"
# What only a proxy may say. Names with an underscore are the same to frameworks that read headers as CGI does.
_SAID_BY_PROXY: Final = frozenset((b"forwarded", b"x-real-ip", b"client-cert", b"client-cert-chain"))
_SAID_BY_PROXY_BEGINS: Final = (b"x-forwarded-", _OURS)
_PROVEN: Final = "tlsproxy"  # key in the scope: one of us, further out, has found this request proven
_SCHEMES: Final = {("http", b"https"): "https", ("http", b"http"): "http"} | {
    ("websocket", b"https"): "wss",
    ("websocket", b"http"): "ws",
}
_SECURE: Final = {"https": "http", "wss": "ws"}
_LONGEST_TEMPLATE: Final = 256  # characters; the proxy takes no longer ones
_SAFE: Final = "/{}:-._~!$&'()*+,;=@%"
_REFUSED: Final = b"This application answers its proxy only.\n"


class TLSProxyMiddleware:
    """See the module's text.

    `secret` is what `server.backend_secret` of the proxy says, or several while it is being changed. `reject` answers
    403 to whatever does not come from the proxy, instead of passing it on without forwarding headers. `templates`
    reports the matched route ("/items/{item_id}") back to the proxy, for its metrics and its access log. Raises
    ValueError for a missing secret: everybody could prove that.
    """

    def __init__(self, app: App, secret: str | Sequence[str], *, reject: bool = False, templates: bool = True) -> None:
        self.app = app
        secrets = [secret] if isinstance(secret, str) else list(secret or ())
        self._secrets = [each.strip().encode() for each in secrets]
        if not self._secrets or b"" in self._secrets:
            raise ValueError("TLSProxyMiddleware needs the secret that server.backend_secret of tlsproxy says.")
        self._reject = reject
        self._templates = templates

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._secrets)} secrets>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope.get(_PROVEN):
            await self.app(scope, receive, send)
            return
        headers: Headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
        if not self._is_proven(headers):
            await self._without_proof(scope, headers, receive, send)
            return
        scope = told_scope(scope, headers)
        await self.app(scope, receive, self._reporting(scope, send) if self._templates else send)

    def _is_proven(self, headers: Headers) -> bool:
        """Whether the proxy has written this head. Two secrets are one too many: somebody has added the other."""
        given = [value for name, value in headers if name == _SECRET]
        if len(given) != 1:
            return False
        matches = [hmac.compare_digest(given[0], secret) for secret in self._secrets]  # all: no time tells which
        return any(matches)

    async def _without_proof(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        if not self._reject:
            await self.app(bare_scope(scope, headers), receive, send)
        elif scope["type"] == "websocket":
            await receive()  # websocket.connect
            await send({"type": "websocket.close", "code": 1008, "reason": "proxy only"})  # the client sees a 403
        else:
            fields = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(_REFUSED))]
            await send({"type": "http.response.start", "status": 403, "headers": fields})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else _REFUSED})

    def _reporting(self, scope: Scope, send: Send) -> Send:
        """`send` with the route's template in the head of the answer. Routers write what they find into `scope`."""
        root = scope.get("root_path", "")

        async def send_with_route(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                template = quote(_template_of(scope, root), safe=_SAFE, errors="replace")
                if 0 < len(template) <= _LONGEST_TEMPLATE:
                    message = {**message, "headers": [*message.get("headers", ()), (_ROUTE, template.encode())]}
            await send(message)

        return send_with_route


# --- scopes -----------------------------------------------------------------------------------------------------------


def bare_scope(scope: Scope, headers: Headers) -> Scope:
    """A scope that nobody has vouched for: without what only a proxy may say.

    Servers that trust an address (uvicorn does 127.0.0.1) may have believed these headers already. What they made of
    them is taken back as far as it can be told: they give a client without its port, and a scheme they do not serve.
    """
    kept = [(name, value) for name, value in headers if not _is_said_by_proxy(name)]
    made: Scope = {**scope, "headers": kept}
    names = {name for name, _ in headers}
    if names & {b"x-forwarded-for", b"x-real-ip", b"forwarded"} and made.get("client") and not made["client"][1]:
        made["client"] = None
    if names & {b"x-forwarded-proto", b"forwarded"} and "tls" not in (made.get("extensions") or ()):
        made["scheme"] = _SECURE.get(made.get("scheme", "http"), made.get("scheme", "http"))
    return made


def told_scope(scope: Scope, headers: Headers) -> Scope:
    """The scope as the proxy, which is proven, tells it."""
    said = {name: value for name, value in headers if _is_said_by_proxy(name)}
    made: Scope = {**scope, _PROVEN: True}
    made["headers"] = [(name, value) for name, value in headers if not name.startswith(_OURS)]
    made["scheme"] = _SCHEMES.get((scope["type"], said.get(b"x-forwarded-proto", b"")), scope.get("scheme", "http"))
    client = said.get(b"x-real-ip", b"").decode("latin-1")
    if client:
        server_says = scope.get("client")
        made["client"] = (client, server_says[1] if server_says and server_says[0] == client else 0)
    _take_host(made, said.get(b"x-forwarded-host", b""), said.get(b"x-forwarded-port", b""))
    _take_prefix(made, said.get(b"x-forwarded-prefix", b"").decode("latin-1").rstrip("/"))
    made["extensions"] = dict(scope.get("extensions") or {})
    made["extensions"].pop("tls", None)  # the server's would be of its connection with the proxy
    if said.get(b"x-forwarded-proto") == b"https" or _TLS in said:
        made["extensions"]["tls"] = _tls_extension(headers)
    return made


def _is_said_by_proxy(name: bytes) -> bool:
    plain = name.replace(b"_", b"-")
    return plain in _SAID_BY_PROXY or plain.startswith(_SAID_BY_PROXY_BEGINS)


def _take_host(scope: Scope, host: bytes, port: bytes) -> None:
    """Name the server as the client did. A proxy before ours may have put another name into Host."""
    if not host:
        return
    name, colon, number = host.rpartition(b":")
    if not colon or b"]" in number or not number.isdigit():
        name, number = host, port
    default = 443 if scope["scheme"] in _SECURE else 80
    scope["server"] = (name.decode("latin-1").strip("[]"), int(number) if number.isdigit() else default)
    headers: Headers = scope["headers"]
    if (b"host", host) not in headers:
        scope["headers"] = [(b"host", host), *(field for field in headers if field[0] != b"host")]


def _take_prefix(scope: Scope, prefix: str) -> None:
    """Put the stripped prefix before the path again, and say so (ASGI: `path` includes `root_path`).

    A server that was told (uvicorn --root-path) has done so already.
    """
    raw, prefix = prefix, unquote(prefix)
    root = scope.get("root_path", "").rstrip("/")
    if not prefix.startswith("/") or root == prefix or root.startswith(prefix + "/"):
        return
    scope["root_path"] = prefix + root
    scope["path"] = prefix + scope["path"]
    if scope.get("raw_path") is not None:
        scope["raw_path"] = quote(raw, safe=_SAFE).encode() + scope["raw_path"]


# --- TLS --------------------------------------------------------------------------------------------------------------


def _tls_extension(headers: Headers) -> dict[str, Any]:
    """The `tls` extension of ASGI, version 0.2. The proxy's certificate is not told: None, as its text says."""
    facts = _parse_facts(_only(headers, _TLS))
    chain = _parse_certificates(_only(headers, b"client-cert"))
    if chain:
        chain += _parse_certificates(_only(headers, b"client-cert-chain"))
    return {
        "server_cert": None,
        "client_cert_chain": chain,
        "client_cert_name": _text(facts.get("name", "")) if chain else None,
        "client_cert_error": None,
        "tls_version": _number(facts.get("version", "")),
        "cipher_suite": _number(facts.get("cipher", "")),
    }


def _only(headers: Headers, wanted: bytes) -> str:
    values = [value for name, value in headers if name == wanted]
    return values[0].decode("latin-1") if len(values) == 1 else ""


def _parse_facts(value: str) -> dict[str, str]:
    """`version=772, cipher=4865, name=:…:`, a dictionary of RFC 9651 3.2 of which the proxy uses this much."""
    pairs = [part.strip().partition("=") for part in value.split(",")]
    return {key: item for key, _, item in pairs if item}


def _parse_certificates(value: str) -> list[str]:
    """The certificates of Client-Cert or Client-Cert-Chain (RFC 9440 2.1: byte sequences of DER) as PEM."""
    return [_pem(der) for der in (_octets(item.strip()) for item in value.split(",")) if der]


def _octets(item: str) -> bytes:
    """A byte sequence of RFC 9651 3.3.5, b"" if it is none."""
    if len(item) < 3 or item[0] != ":" or item[-1] != ":":
        return b""
    try:
        return base64.b64decode(item[1:-1], validate=True)
    except (binascii.Error, ValueError):
        return b""


def _pem(der: bytes) -> str:
    """RFC 7468 2."""
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])


def _text(item: str) -> str | None:
    return _octets(item).decode("utf-8", "replace") or None


def _number(item: str) -> int | None:
    return int(item) if item.isascii() and item.isdigit() and len(item) < 6 else None


# --- route templates --------------------------------------------------------------------------------------------------


def _template_of(scope: Mapping[str, Any], root: str) -> str:
    """`route_template`, whatever a framework has put into the scope: an answer must not fail of its name."""
    try:
        return route_template(scope, root)
    except Exception:  # noqa: BLE001  # values and types of any kind are looked at
        return ""


def route_template(scope: Mapping[str, Any], outer_root: str = "") -> str:
    """The template of the route that was taken, as clients see it: with the root path, mounts and router prefixes.

    `outer_root` is the root path that the application was called with. "" when no route was taken, or none can be told.
    Starlette and FastAPI leave the route itself, the values of its parameters and the root path of the last mount in
    the scope; what is in the path besides is a prefix, and the parameters in it are known by their values.
    """
    root: str = scope.get("root_path", "").rstrip("/")
    path: str = scope["path"]
    params: Mapping[str, Any] = scope.get("path_params") or {}
    own = _own_template(scope)
    if own:
        rest = path[len(root) :] if path == root or path.startswith(root + "/") else path
        prefix, others = _split_prefix(rest, own, params)
        return _if_all_named(_templated(root, others, outer_root) + _templated(prefix, others) + own, others)
    if "app_root_path" in scope and root != scope["app_root_path"].rstrip("/"):
        # A mount; what is in there did not say.
        return _if_all_named(_templated(root, params, outer_root) + "/{path}", params)
    return ""


def _own_template(scope: Mapping[str, Any]) -> str:
    """What the route itself was declared with. FastAPI does not name those that are not its own, as /docs."""
    route = scope.get("route")
    if route is None and "endpoint" in scope:
        routes = getattr(scope.get("app"), "routes", ())
        route = next((each for each in routes if getattr(each, "endpoint", None) is scope["endpoint"]), None)
    if hasattr(route, "routes"):
        return ""  # a mount
    own = getattr(route, "path_format", None) or getattr(route, "path", None)
    return own if isinstance(own, str) else ""


def _split_prefix(rest: str, own: str, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What stands in `rest` before the part that is the route's own, and the parameters that are not the route's."""
    filled = own
    others: dict[str, Any] = {}
    for name, value in params.items():
        if f"{{{name}}}" in own:
            filled = filled.replace(f"{{{name}}}", str(value))
        else:
            others[name] = value
    return (rest[: -len(filled)] if filled and rest.endswith(filled) else ""), others


def _templated(path: str, params: Mapping[str, Any], outer: str = "") -> str:
    """`path` with what is a parameter's value behind `outer` replaced by its name: no client chooses a template."""
    if not params:
        return path
    outer = outer if outer and path.startswith(outer) else ""
    rest = path[len(outer) :]
    for name, value in params.items():
        if isinstance(value, str) and "/" in value:
            rest = rest.replace(value, f"{{{name}}}", 1)
    return outer + "/".join(_name_of(segment, params) for segment in rest.split("/"))


def _if_all_named(template: str, params: Mapping[str, Any]) -> str:
    """`template`, or "" if the value of one of `params` was not found: it would be in there as the client wrote it."""
    return template if all(f"{{{name}}}" in template for name in params) else ""


def _name_of(segment: str, params: Mapping[str, Any]) -> str:
    return next((f"{{{name}}}" for name, value in params.items() if segment and _means(segment, value)), segment)


def _means(segment: str, value: Any) -> bool:
    """Whether this is how the value was written: 7 may have been "007"."""
    if isinstance(value, str):
        return segment == value
    try:
        return bool(type(value)(segment) == value)
    except Exception:  # noqa: BLE001  # an application's own type of parameter
        return False


__all__ = ["TLSProxyMiddleware"]
