"""Redirects from https back to http: which ones are meant, what is said of them and how they are mended."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.backend import Backend
from tests.fakes.h2c_backend import H2cBackend
from tests.fakes.stage import Stage
from tlsproxy.proxy.downgrade import advice

METRIC = 'tlsproxy_backend_scheme_downgrade_total{site="a.test"}'
REPAIR = {"repair_redirects": True, "templates": False}
HEED = "run it with --proxy-headers --forwarded-allow-ips "


def redirect(
    stage: Stage, backend: Backend, location: str, status: int = 307, host: str = "a.test", more: str = ""
) -> str:
    """Send one request that is answered so, over connections of its own; return the Location the client gets."""
    client = stage.connect()
    client.send(f"GET /a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n".encode())
    upstream = backend.accept()
    upstream.message()
    head = f"HTTP/1.1 {status} Moved\r\nserver: uvicorn\r\nlocation: {location}\r\n"
    upstream.send(f"{head}Connection: close\r\nContent-Length: 0\r\n\r\n".encode())
    answer = client.message()
    assert answer.status == status
    return (answer.get("location") or b"").decode("latin-1")


def counted(stage: Stage) -> float:
    return stage.call(stage.front.series).get(METRIC, 0)


def said(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.message == "backend.scheme_downgrade"]


@pytest.mark.parametrize(
    ("location", "mended"),
    [
        ("http://a.test/a/", "https://a.test/a/"),
        ("http://a.test/a/?b=c#d", "https://a.test/a/?b=c#d"),
        ("http://A.TEST/a/", "https://a.test/a/"),
        ("HTTP://a.test/a/", "https://a.test/a/"),
        ("http://a.test:80/a/", "https://a.test/a/"),
        ("http://a.test", "https://a.test"),
        ("http://a.test?b=http://c/d", "https://a.test/?b=http://c/d"),
        ("http://a.test#e/f", "https://a.test/#e/f"),
    ],
)
def test_a_redirect_to_the_same_place_is_counted_and_mended(stage: Stage, location: str, mended: str) -> None:
    backend = stage.backend()
    stage.serve(backend, route=REPAIR)
    assert redirect(stage, backend, location) == mended
    assert counted(stage) == 1


def test_the_port_of_the_client_is_the_same_place(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend, route=REPAIR)
    assert redirect(stage, backend, "http://a.test:8443/x", host="a.test:8443") == "https://a.test:8443/x"
    assert redirect(stage, backend, "http://a.test/x", host="a.test:8443") == "https://a.test:8443/x"
    assert counted(stage) == 2


@pytest.mark.parametrize(
    ("location", "status"),
    [
        ("https://a.test/a/", 307),
        ("http://b.test/a/", 307),
        ("http://a.test.evil.test/", 307),
        ("http://a.test@evil.test/", 307),
        ("http://evil.test@a.test/", 307),
        ("http://a.test:8080/a/", 307),
        ("/a/", 307),
        ("//a.test/a", 307),
        ("ws://a.test/a", 307),
        ("http://", 307),
        ("http:///a", 307),
        ("http://[::1/a", 307),
        ("http://a.test/a/", 201),
        ("http://a.test/a/", 404),
    ],
)
def test_others_are_the_applications_own_affair(
    stage: Stage, location: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    backend = stage.backend()
    stage.serve(backend, route=REPAIR)
    assert redirect(stage, backend, location, status) == location
    assert (counted(stage), said(caplog)) == (0, [])


def test_it_is_said_once_and_left_as_it_is_by_default(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    backend = stage.backend()
    stage.serve(backend, route={"templates": False})
    for _ in range(3):
        assert redirect(stage, backend, "http://a.test/login?token=secret") == "http://a.test/login?token=secret"
    assert counted(stage) == 3
    [line] = said(caplog)
    assert (line["backend"], line["site"], line["server"]) == (backend.url, "a.test", "uvicorn")
    assert (line["location"], line["repaired"]) == ("http://a.test/login", False)
    assert HEED + "127.0.0.1" in line["fix"]


def test_a_client_that_came_to_a_trusted_proxy_by_http_may_go_back(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend, route=REPAIR, server={"trusted_proxies": ["127.0.0.0/8"]})
    plain = "X-Forwarded-Proto: http\r\n"
    assert redirect(stage, backend, "http://a.test/", more=plain) == "http://a.test/"
    assert counted(stage) == 0
    assert redirect(stage, backend, "http://a.test/", more="X-Forwarded-Proto: https\r\n") == "https://a.test/"
    assert counted(stage) == 1


def test_who_is_no_trusted_proxy_cannot_hide_it(stage: Stage) -> None:
    backend = stage.backend()
    stage.serve(backend, route=REPAIR)
    assert redirect(stage, backend, "http://a.test/", more="X-Forwarded-Proto: http\r\n") == "https://a.test/"


def test_over_http2_on_both_sides(stage: Stage) -> None:
    with H2cBackend() as backend:
        stage.serve(route={"backends": [backend.url], **REPAIR})
        client = stage.connect_http2()
        stream = client.request("/a")
        upstream = backend.connection()
        request = upstream.next_request()
        upstream.answer(request.stream, b"", [(b"location", b"http://a.test/a/")], status=307)
        assert client.answer(stream).get("location") == b"https://a.test/a/"
        assert counted(stage) == 1


@pytest.mark.parametrize(
    ("server", "url", "seen_as", "expected"),
    [
        (b"uvicorn", "http://127.0.0.1:8000", "127.0.0.1", [HEED + "127.0.0.1", "--no-proxy-headers", "gunicorn"]),
        (b"uvicorn", "http://app:8000", "172.18.0.3", ["believe 172.18.0.3", HEED + "172.18.0.3"]),
        (b"uvicorn", "unix:/run/app.sock", "", [HEED + "'*'", "folder"]),
        (b"hypercorn-h11", "http://app:8000", "172.18.0.3", ["ProxyFixMiddleware", 'mode="legacy"']),
        (b"hypercorn-h2", "unix:/run/app.sock", "", ["ProxyFixMiddleware"]),
        (b"granian", "http://app:8000", "10.0.0.3", ["wrap_asgi_with_proxy_headers", 'trusted_hosts=["10.0.0.3"]']),
        (b"granian", "unix:/run/app.sock", "", ['trusted_hosts="*"']),
        (b"gunicorn/27.0.1", "http://app:8000", "172.18.0.3", ["gunicorn", "--forwarded-allow-ips 172.18.0.3"]),
        (b"gunicorn", "unix:/run/app.sock", "", ["writes http:// itself", "TLSProxyMiddleware"]),
        (b"", "http://app:8000", "172.18.0.3", ["X-Forwarded-Proto from 172.18.0.3", "TLSProxyMiddleware"]),
        (b"WSGIServer/0.2", "unix:/run/app.sock", "", ["the socket"]),
        (b"uvicorn", "http://app:8000", "", ["ADDRESS-OF-TLSPROXY"]),
    ],
)
def test_each_server_has_its_own_fix(server: bytes, url: str, seen_as: str, expected: list[str]) -> None:
    fix = advice(server, url, seen_as)
    assert [part for part in expected if part not in fix] == []
    assert fix.endswith("(docs/fastapi.md).")
