"""The middleware alone, asked as an ASGI server asks it: what the application gets to see, and what goes back."""

from __future__ import annotations

import ast
import asyncio
import base64
import sys
from collections.abc import Awaitable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from tlsproxy import asgi
from tlsproxy.asgi import App, Headers, Message, Receive, Scope, Send, TLSProxyMiddleware

SECRET = "a-secret-of-thirty-two-characters"
PROOF = (b"x-tlsproxy-secret", SECRET.encode())
SAID = [
    (b"host", b"api.test"),
    (b"x-forwarded-for", b"203.0.113.9"),
    (b"x-real-ip", b"203.0.113.9"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-port", b"443"),
    (b"x-forwarded-host", b"api.test"),
    (b"x-tlsproxy-tls", b"version=772, cipher=4865"),
]


class Seen:
    """An application that keeps what it was called with."""

    scope: Scope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
            await send({"type": "http.response.body", "body": b"seen"})

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.scope["headers"])


def request(headers: Headers, path: str = "/", **more: Any) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("172.17.0.1", 40_000),
        "server": ("172.17.0.2", 8000),
        **more,
    }


def run(work: Awaitable[None]) -> None:
    async def wait() -> None:
        await work

    asyncio.run(wait())


def call(app: App, scope: Scope) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        kinds = {"http": "http.request", "websocket": "websocket.connect", "lifespan": "lifespan.startup"}
        return {"type": kinds[scope["type"]]}

    async def send(message: Message) -> None:
        sent.append(message)

    run(app(scope, receive, send))
    return sent


def seen(headers: Headers, path: str = "/", **more: Any) -> Seen:
    app = Seen()
    call(TLSProxyMiddleware(app, SECRET), request(headers, path, **more))
    return app


def reported(app: App, path: str, *, root_path: str = "", kind: str = "http", method: str = "GET") -> str | None:
    """The template that goes back to the proxy."""
    scope = request([PROOF, *SAID], path, type=kind, method=method, root_path=root_path, subprotocols=[])
    sent = call(TLSProxyMiddleware(app, SECRET), scope)
    found = [value for name, value in sent[0]["headers"] if name == b"x-tlsproxy-route"]
    assert len(found) <= 1
    return found[0].decode() if found else None


class TestProven:
    def test_the_scope_says_what_the_proxy_says(self) -> None:
        scope = seen([PROOF, *SAID]).scope
        assert (scope["scheme"], scope["client"], scope["server"]) == ("https", ("203.0.113.9", 0), ("api.test", 443))

    def test_the_secret_is_out_of_reach_and_the_servers_scope_is_as_it_was(self) -> None:
        original = request([PROOF, *SAID])
        before = dict(original, headers=list(original["headers"]))
        app = Seen()
        call(TLSProxyMiddleware(app, SECRET), original)
        assert original == before
        assert not [name for name in app.headers if name.startswith(b"x-tlsproxy")]
        assert SECRET not in repr(app.scope)
        assert app.headers[b"x-forwarded-for"] == b"203.0.113.9"  # true, and of use to some

    def test_several_secrets_hold_while_one_is_changed(self) -> None:
        app = Seen()
        middleware = TLSProxyMiddleware(app, ["another-secret-that-comes-next", SECRET])
        call(middleware, request([PROOF, *SAID]))
        assert app.scope["scheme"] == "https"
        assert SECRET not in repr(middleware)

    def test_a_secret_read_from_a_file_may_end_its_line(self) -> None:
        app = Seen()
        call(TLSProxyMiddleware(app, SECRET + "\n"), request([PROOF, *SAID]))
        assert app.scope["scheme"] == "https"

    def test_a_websocket_is_wss(self) -> None:
        assert seen([PROOF, *SAID], type="websocket", scheme="ws").scope["scheme"] == "wss"

    @pytest.mark.parametrize(
        ("host", "port", "server"),
        [
            (b"api.test:8443", b"8443", ("api.test", 8443)),
            (b"[2001:db8::1]", b"443", ("2001:db8::1", 443)),
            (b"[2001:db8::1]:8443", b"8443", ("2001:db8::1", 8443)),
        ],
    )
    def test_the_server_is_named_as_the_client_did(self, host: bytes, port: bytes, server: tuple[str, int]) -> None:
        fields = [field for field in SAID if field[0] not in (b"host", b"x-forwarded-host", b"x-forwarded-port")]
        app = seen(
            [PROOF, *fields, (b"host", b"lb.internal"), (b"x-forwarded-host", host), (b"x-forwarded-port", port)]
        )
        assert app.scope["server"] == server
        assert [value for name, value in app.scope["headers"] if name == b"host"] == [host]

    def test_the_stripped_prefix_is_the_root_path(self) -> None:
        scope = seen([PROOF, *SAID, (b"x-forwarded-prefix", b"/api/v1")], "/items/").scope
        assert (scope["root_path"], scope["path"], scope["raw_path"]) == (
            "/api/v1",
            "/api/v1/items/",
            b"/api/v1/items/",
        )

    def test_a_prefix_may_need_an_encoding(self) -> None:
        scope = seen([PROOF, *SAID, (b"x-forwarded-prefix", b"/gr%C3%BCn")], "/items").scope
        assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/grün", "/grün/items", b"/gr%C3%BCn/items")

    @pytest.mark.parametrize("root", ["/api/v1", "/api/v1/sub"])
    def test_a_server_that_knows_the_prefix_is_left_alone(self, root: str) -> None:
        scope = seen([PROOF, *SAID, (b"x-forwarded-prefix", b"/api/v1")], root + "/items", root_path=root).scope
        assert (scope["root_path"], scope["path"]) == (root, root + "/items")

    def test_lifespan_passes(self) -> None:
        app = Seen()
        call(TLSProxyMiddleware(app, SECRET), {"type": "lifespan"})
        assert app.scope == {"type": "lifespan"}

    def test_twice_is_as_once(self) -> None:
        app = Seen()
        call(TLSProxyMiddleware(TLSProxyMiddleware(app, SECRET, reject=True), SECRET), request([PROOF, *SAID]))
        assert app.scope["scheme"] == "https"


WRONG: list[Headers] = [
    [],
    [(b"x-tlsproxy-secret", b"")],
    [(b"x-tlsproxy-secret", SECRET.encode()[:-1])],
    [(b"x-tlsproxy-secret", SECRET.encode() + b"x")],
    [(b"x-tlsproxy-secret", SECRET.upper().encode())],
    [(b"x-tlsproxy-secret", "sécret".encode("latin-1"))],
    [(b"x-tlsproxy-secret", b"a-wrong-one-of-our-own"), PROOF],
    [PROOF, PROOF],
    [(b"x_tlsproxy_secret", SECRET.encode())],
    [(b"x-tlsproxy-route", SECRET.encode())],
    [(b"authorization", SECRET.encode())],
]
FORGED: Headers = [
    *SAID,
    (b"x-forwarded-prefix", b"/evil"),
    (b"forwarded", b"for=6.6.6.6;proto=https"),
    (b"client-cert", b":AAAA:"),
    (b"client-cert-chain", b":AAAA:"),
    (b"client_cert", b":AAAA:"),
    (b"x_forwarded_proto", b"https"),
    (b"X-Forwarded-Server", b"evil"),
]


class TestNotProven:
    @pytest.mark.parametrize("wrong", WRONG)
    def test_nothing_forged_is_believed_or_passed(self, wrong: Headers) -> None:
        app = seen([*wrong, *FORGED])
        assert (app.scope["scheme"], app.scope["client"]) == ("http", ("172.17.0.1", 40_000))
        assert (app.scope["root_path"], app.scope["path"]) == ("", "/")
        assert "tls" not in app.scope.get("extensions", {})
        assert set(app.headers) <= {b"host", b"authorization"}

    @pytest.mark.parametrize("wrong", WRONG)
    def test_reject_answers_403(self, wrong: Headers) -> None:
        app = Seen()
        start, body = call(TLSProxyMiddleware(app, SECRET, reject=True), request([*wrong, *FORGED]))
        assert (start["status"], hasattr(app, "scope")) == (403, False)
        assert SECRET.encode() not in body["body"]

    def test_reject_closes_a_websocket_before_it_opens(self) -> None:
        app = Seen()
        [message] = call(TLSProxyMiddleware(app, SECRET, reject=True), request([], type="websocket"))
        assert (message["type"], hasattr(app, "scope")) == ("websocket.close", False)

    def test_what_the_server_has_believed_already_is_taken_back(self) -> None:
        """uvicorn trusts 127.0.0.1 by default, and then gives a client without its port."""
        scope = seen(FORGED, scheme="https", client=("203.0.113.9", 0)).scope
        assert (scope["scheme"], scope["client"]) == ("http", None)
        socket = seen(FORGED, type="websocket", scheme="wss", client=("203.0.113.9", 0)).scope
        assert (socket["scheme"], socket["client"]) == ("ws", None)

    def test_a_server_with_tls_of_its_own_keeps_its_word(self) -> None:
        extensions = {"tls": {"tls_version": 772}}
        assert seen([], scheme="https").scope["scheme"] == "https"
        assert seen(FORGED, scheme="https", extensions=extensions).scope["scheme"] == "https"

    def test_no_template_goes_to_a_stranger(self) -> None:
        app = FastAPI()
        app.get("/items/{item_id}")(lambda item_id: item_id)
        [start, *_] = call(TLSProxyMiddleware(app, SECRET), request([], "/items/5"))
        assert b"x-tlsproxy-route" not in dict(start["headers"])

    @pytest.mark.parametrize("secret", ["", " ", [], [""], [SECRET, ""], None])
    def test_an_empty_secret_is_refused(self, secret: Any) -> None:
        with pytest.raises(ValueError, match="backend_secret"):
            TLSProxyMiddleware(Seen(), secret)


@pytest.fixture(scope="module")
def certificate() -> x509.Certificate:
    leaf = trustme.CA().issue_cert("client@example.test", common_name="Jürgen, Client")
    return x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())


class TestTls:
    def test_version_and_cipher(self) -> None:
        assert seen([PROOF, *SAID]).scope["extensions"]["tls"] == {
            "server_cert": None,
            "client_cert_chain": [],
            "client_cert_name": None,
            "client_cert_error": None,
            "tls_version": 0x0304,
            "cipher_suite": 0x1301,
        }

    def test_the_clients_certificate(self, certificate: x509.Certificate) -> None:
        pem = certificate.public_bytes(Encoding.PEM).decode()
        der = base64.b64encode(certificate.public_bytes(Encoding.DER))
        name = certificate.subject.rfc4514_string()
        facts = b"version=771, cipher=49195, name=:" + base64.b64encode(name.encode()) + b":"
        fields = [field for field in SAID if field[0] != b"x-tlsproxy-tls"]
        headers = [PROOF, *fields, (b"x-tlsproxy-tls", facts), (b"client-cert", b":" + der + b":")]
        tls = seen(headers).scope["extensions"]["tls"]
        assert (tls["client_cert_chain"], tls["client_cert_name"]) == ([pem], name)
        both = seen([*headers, (b"client-cert-chain", b":" + der + b":, :" + der + b":")])
        assert both.scope["extensions"]["tls"]["client_cert_chain"] == [pem] * 3

    @pytest.mark.parametrize("odd", [b"", b":", b"::", b":A:", b"AAAA", b":AAAA", b":\xff\xff:", b'"AAAA"'])
    def test_what_is_no_byte_sequence_is_no_certificate(self, odd: bytes) -> None:
        tls = seen([PROOF, *SAID, (b"client-cert", odd)]).scope["extensions"]["tls"]
        assert (tls["client_cert_chain"], tls["client_cert_name"]) == ([], None)

    def test_the_connection_between_proxy_and_server_is_not_the_clients(self) -> None:
        plain = [(name, b"http" if name == b"x-forwarded-proto" else value) for name, value in SAID[:-1]]
        scope = seen([PROOF, *plain], extensions={"tls": {"tls_version": 772}, "http.response.push": {}}).scope
        assert scope["extensions"] == {"http.response.push": {}}


def application() -> FastAPI:
    app, sub, inner, api = FastAPI(), FastAPI(), FastAPI(), APIRouter(prefix="/r/{x}")

    @app.get("/items/{item_id}")
    def item(item_id: int) -> int:
        return item_id

    @app.get("/files/{path:path}")
    def file(path: str) -> str:
        return path

    @api.get("/inner/{y}")
    def routed(x: str, y: str) -> str:
        return x + y

    @sub.get("/s/{z}")
    def mounted(z: str) -> str:
        return z

    @inner.get("/deep/{d}")
    def deep(d: str) -> str:
        return d

    @app.get("/crash/{n}")
    def crash(n: str) -> None:
        raise RuntimeError(n)

    @app.get("/grüße/{name}")
    def greet(name: str) -> str:
        return name

    @app.websocket("/ws/{room}")
    async def talk(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        await websocket.close()

    app.include_router(api, prefix="/v1")
    sub.mount("/inner", inner)
    app.mount("/sub/{tenant}", sub)
    app.add_route("/plain/{q}", lambda _: PlainTextResponse("plain"))
    return app


class Amount(Convertor[Decimal]):
    regex = "[0-9]+[.][0-9]+"

    def convert(self, value: str) -> Decimal:
        return Decimal(value)

    def to_string(self, value: Decimal) -> str:
        return str(value)


class Day(Convertor[date]):
    regex = "[0-9]{8}"

    def convert(self, value: str) -> date:
        return date.fromisoformat(value)

    def to_string(self, value: date) -> str:
        return f"{value:%Y%m%d}"


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no words")


class TestTemplates:
    @pytest.mark.parametrize(
        ("path", "template"),
        [
            ("/items/5", "/items/{item_id}"),
            ("/items/no-number", "/items/{item_id}"),
            ("/files/a/b/c", "/files/{path}"),
            ("/v1/r/1/inner/2", "/v1/r/{x}/inner/{y}"),
            ("/v1/r/v1/inner/v1", "/v1/r/{x}/inner/{y}"),
            ("/sub/acme/s/5", "/sub/{tenant}/s/{z}"),
            ("/sub/acme/inner/deep/acme", "/sub/{tenant}/inner/deep/{d}"),
            ("/sub/acme/nothing", "/sub/{tenant}/{path}"),
            ("/plain/7", "/plain/{q}"),
            ("/docs", "/docs"),
            ("/grüße/you", "/gr%C3%BC%C3%9Fe/{name}"),
            ("/nothing/here", None),
            ("/items/5/", None),
        ],
    )
    def test_fastapi(self, path: str, template: str | None) -> None:
        assert reported(application(), path) == template

    def test_a_wrong_method_has_the_template_all_the_same(self) -> None:
        assert reported(application(), "/items/5", method="DELETE") == "/items/{item_id}"

    def test_a_crash_is_the_routes(self) -> None:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.request"}

        wrapped = TLSProxyMiddleware(application(), SECRET)
        with pytest.raises(RuntimeError):
            run(wrapped(request([PROOF, *SAID], "/crash/1"), receive, send))
        assert (b"x-tlsproxy-route", b"/crash/{n}") in sent[0]["headers"]

    def test_a_websocket(self) -> None:
        assert reported(application(), "/ws/lobby", kind="websocket") == "/ws/{room}"

    def test_the_root_path_is_in_front(self) -> None:
        assert reported(application(), "/api/items/5", root_path="/api") == "/api/items/{item_id}"
        assert reported(application(), "/5/items/5", root_path="/5") == "/5/items/{item_id}"
        assert reported(application(), "/api/sub/acme/s/5", root_path="/api") == "/api/sub/{tenant}/s/{z}"

    def test_added_as_middleware_it_sees_the_same(self) -> None:
        app = application()
        app.add_middleware(TLSProxyMiddleware, secret=SECRET)
        sent = call(app, request([PROOF, *SAID], "/sub/acme/s/5"))
        assert (b"x-tlsproxy-route", b"/sub/{tenant}/s/{z}") in sent[0]["headers"]

    def test_starlette(self) -> None:
        async def ok(_: Request) -> PlainTextResponse:
            return PlainTextResponse("ok")

        app = Starlette(routes=[Route("/a/{b}", ok), Mount("/m/{t}", routes=[Route("/c/{d:int}", ok)])])
        assert reported(app, "/a/1") == "/a/{b}"
        assert reported(app, "/m/x/c/12") == "/m/{t}/c/{d:int}".replace(":int", "")
        assert reported(app, "/none") is None

    @pytest.mark.parametrize(
        ("path", "template"),
        [
            ("/m/007/x", "/m/{n}/x"),
            ("/m/7/none", "/m/{n}/{path}"),
            ("/p/a/b/c/x", "/p/{deep}/x"),
            ("/u/6BA7B810-9DAD-11D1-80B4-00C04FD430C8/x", "/u/{id}/x"),
            ("/s/any/file", "/s/{path}"),
        ],
    )
    def test_no_client_chooses_a_name(self, path: str, template: str) -> None:
        """However a mount's parameter is written, none of it is left: names are counted."""

        async def ok(_: Request) -> PlainTextResponse:
            return PlainTextResponse("ok")

        below = [Route("/x", ok)]
        mounts = [Mount(at, routes=below) for at in ("/m/{n:int}", "/p/{deep:path}", "/u/{id:uuid}")]
        assert reported(Starlette(routes=[*mounts, Mount("/s", app=PlainTextResponse("file"))]), path) == template

    @pytest.mark.parametrize("kind", ["amount", "day"])
    def test_a_parameter_of_the_applications_own_kind_is_no_name_and_no_crash(self, kind: str) -> None:
        """Decimal("x") raises an ArithmeticError, date("…") a TypeError; neither says how the value was written."""

        async def ok(_: Request) -> PlainTextResponse:
            return PlainTextResponse("ok")

        register_url_convertor("amount", Amount())
        register_url_convertor("day", Day())
        written = {"amount": "1.50", "day": "20260102"}[kind]
        app = Starlette(routes=[Mount(f"/m/{{n:{kind}}}", routes=[Route("/x", ok)])])
        assert reported(app, f"/m/{written}/x") == {"amount": "/m/{n}/x", "day": None}[kind]

    def test_a_value_that_can_not_be_shown_harms_no_answer(self) -> None:
        async def odd(scope: Scope, receive: Receive, send: Send) -> None:
            scope["path_params"] = {"n": Unspeakable()}
            scope["route"] = Route("/{n}", PlainTextResponse("ok"))
            await PlainTextResponse("ok")(scope, receive, send)

        assert reported(odd, "/a/b") is None

    def test_documents_of_a_mounted_application(self) -> None:
        assert reported(application(), "/sub/acme/docs") == "/sub/{tenant}/docs"

    def test_an_application_of_no_framework_names_nothing(self) -> None:
        assert reported(Seen(), "/a/b") is None

    def test_it_can_be_left_out(self) -> None:
        sent = call(TLSProxyMiddleware(application(), SECRET, templates=False), request([PROOF, *SAID], "/items/5"))
        assert b"x-tlsproxy-route" not in dict(sent[0]["headers"])


def test_it_needs_the_standard_library_only() -> None:
    tree = ast.parse(Path(asgi.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
