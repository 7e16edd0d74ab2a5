"""The secret and what it proves: it reaches every backend, no client says any of it, and no client ever hears it."""

from __future__ import annotations

import base64

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.fakes.h2c_backend import H2cBackend
from tests.fakes.stage import Stage
from tests.proxy.test_tunnel import SWITCHED, UPGRADE
from tlsproxy.proxy.stream import ConnectionInfo
from tlsproxy.proxy.vouching import vouched_fields

SECRET = "the-secret-of-this-stage-is-long"
PROVEN = {"backend_secret": SECRET}
FORGED = {
    "X-Tlsproxy-Secret": SECRET,  # even who knows it must not be able to say it
    "x-tlsproxy-tls": "version=771",
    "X-TLSPROXY-ROUTE": "/forged",
    "X-Tlsproxy-Anything": "forged",
    "X_Tlsproxy_Secret": SECRET,
    "X-Tlsproxy_Secret": SECRET,
    "X.Tlsproxy.Secret": SECRET,
    "x.tlsproxy-tls": "version=771",
    "Client-Cert": ":Zm9yZ2Vk:",
    "CLIENT-CERT-CHAIN": ":Zm9yZ2Vk:",
    "Client_Cert": ":Zm9yZ2Vk:",
    "client.cert.chain": ":Zm9yZ2Vk:",
}
LINES = "".join(f"{name}: {value}\r\n" for name, value in FORGED.items()).encode()
OURS = ("tlsproxy", "client-cert")


def said(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What a framework could take for ours."""
    plain = [(name.lower().replace(b"_", b"-").replace(b".", b"-"), value) for name, value in fields]
    return [field for field in plain if any(word.encode() in field[0] for word in OURS)]


PROOF = (b"x-tlsproxy-secret", SECRET.encode())


@pytest.mark.parametrize("trusted", [(), ("127.0.0.0/8",)], ids=["client", "trusted proxy"])
@pytest.mark.parametrize("secret", [SECRET, ""])
class TestFromClients:
    def test_over_http1_nothing_passes_but_our_own(self, stage: Stage, secret: str, trusted: tuple[str, ...]) -> None:
        backend = stage.backend()
        stage.serve(backend, server={"backend_secret": secret, "trusted_proxies": trusted})
        client = stage.connect()
        request = b"POST /%d HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n%bX-Own: 1\r\n\r\n0\r\n%b\r\n"
        upstream = None
        for number in range(2):  # the second head is one that was seen before
            client.send(request % (number, LINES, LINES))
            upstream = upstream or backend.accept()
            message = upstream.message()
            self._check(message.fields, secret)
            assert said(message.trailers) == []
            assert message.get("x-own") == b"1"
            upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            assert client.message().status == 200

    def test_over_http2_neither(self, stage: Stage, secret: str, trusted: tuple[str, ...]) -> None:
        backend = stage.backend()
        stage.serve(backend, server={"backend_secret": secret, "trusted_proxies": trusted})
        fields = [(name.lower().encode(), value.encode()) for name, value in FORGED.items()]
        stage.connect_http2().request("/", fields)
        self._check(backend.accept().message().fields, secret)

    def test_an_http2_backend_gets_the_same(self, stage: Stage, secret: str, trusted: tuple[str, ...]) -> None:
        with H2cBackend() as backend:
            stage.serve(
                route={"backends": [backend.url]}, server={"backend_secret": secret, "trusted_proxies": trusted}
            )
            stage.connect().send(b"GET / HTTP/1.1\r\nHost: a.test\r\n%b\r\n" % LINES)
            upstream = backend.connection()
            request = upstream.next_request()
            self._check(request.fields, secret)
            upstream.answer(request.stream)

    def _check(self, fields: list[tuple[bytes, bytes]], secret: str) -> None:
        found = said(fields)
        if not secret:
            assert found == []
            return
        assert found[0] == PROOF
        assert [name for name, _ in found] == [b"x-tlsproxy-secret", b"x-tlsproxy-tls"]
        assert found[1][1].startswith(b"version=772, cipher=")


class TestProof:
    def test_a_client_cannot_have_it_taken_out(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, server=PROVEN)
        stage.connect().send(
            b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, X-Tlsproxy-Secret, X-Tlsproxy-Tls\r\n\r\n"
        )
        assert backend.accept().message().get("x-tlsproxy-secret") == SECRET.encode()

    def test_trace_would_repeat_it_to_the_client(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, server=PROVEN)
        stage.connect().send(b"TRACE / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert said(backend.accept().message().fields) == []

    def test_a_websocket_has_it_too(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, server=PROVEN)
        stage.connect().send(UPGRADE)
        assert backend.accept().message().get("x-tlsproxy-secret") == SECRET.encode()


ECHO = b"X-Tlsproxy-Secret: %b\r\nx-tlsproxy-route: /a/{b}\r\nX-Tlsproxy-Tls: version=772\r\n" % SECRET.encode()


class TestToClients:
    @pytest.mark.parametrize("secret", [SECRET, ""])
    def test_what_is_between_us_stays_there(self, stage: Stage, secret: str) -> None:
        backend = stage.backend()
        stage.serve(backend, server={"backend_secret": secret})
        client = stage.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n%b\r\n" % ECHO)
        head = b"HTTP/1.1 200 OK\r\n%bX-Own: 1\r\nTransfer-Encoding: chunked\r\n\r\n" % ECHO
        upstream.send(head + b"2\r\nok\r\n0\r\nX-End: 1\r\n%b\r\n" % ECHO)
        early, answer = client.message(), client.message()
        assert (early.get("link"), said(early.fields)) == (b"</a>", [])
        assert (answer.get("x-own"), said(answer.fields), said(answer.trailers)) == (b"1", [], [])

    def test_nor_over_http2_from_an_http2_backend(self, stage: Stage) -> None:
        with H2cBackend() as backend:
            stage.serve(route={"backends": [backend.url]}, server=PROVEN)
            client = stage.connect_http2()
            stream = client.request("/")
            upstream = backend.connection()
            request = upstream.next_request()
            fields = [(b"x-tlsproxy-route", b"/a/{b}"), (b"x-tlsproxy-secret", SECRET.encode()), (b"x-own", b"1")]
            upstream.answer(request.stream, fields=fields)
            answer = client.answer(stream)
            assert (answer.get("x-own"), said(answer.fields)) == (b"1", [])
            assert stage.log()[0]["template"] == "/a/{b}"

    def test_nor_with_a_websocket(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, server=PROVEN)
        client = stage.connect()
        client.send(UPGRADE)
        upstream = backend.accept()
        upstream.message()
        upstream.send(SWITCHED.removesuffix(b"\r\n") + ECHO + b"\r\n")
        answer = client.until(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"tlsproxy" not in answer.lower()

    def test_no_error_and_no_log_line_has_it(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        backend = stage.backend()
        stage.serve(backend, server=PROVEN)
        client = stage.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n%b\r\n" % LINES)
        upstream = backend.accept()
        echoed = upstream.until(b"\r\n\r\n")
        assert SECRET.encode() in echoed
        upstream.send(echoed)  # a request is no answer
        answer = client.message()
        assert answer.status == 502
        assert SECRET.encode() not in answer.body
        assert SECRET not in stage.log_path.read_text() + repr(stage.log())
        assert SECRET not in "".join(repr(vars(record)) for record in caplog.records)


def connection(**known: object) -> ConnectionInfo:
    info = ConnectionInfo("192.0.2.1", 1, 443, "https")
    for name, value in known.items():
        setattr(info, name, value)
    return info


class TestFields:
    @pytest.mark.parametrize(
        ("version", "cipher", "facts"),
        [
            ("TLSv1.3", "TLS_AES_128_GCM_SHA256", b"version=772, cipher=4865"),
            ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", b"version=771, cipher=49195"),
            ("TLSv1.9", "UNKNOWN", b""),
        ],
    )
    def test_tls(self, version: str, cipher: str, facts: bytes) -> None:
        [_, field] = vouched_fields(connection(tls=version, cipher=cipher), b"s")
        assert field == (b"X-Tlsproxy-Tls", facts)

    def test_the_clients_certificate_is_told_with_and_without_a_secret(self) -> None:
        leaf = trustme.CA().issue_cert("client@example.test", common_name="Jürgen, Client")
        certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
        der = certificate.public_bytes(Encoding.DER)
        info = connection(tls="TLSv1.3", cipher="TLS_AES_128_GCM_SHA256", client_certificate=der)
        field = (b"Client-Cert", b":" + base64.b64encode(der) + b":")
        assert vouched_fields(info, b"") == [field]
        name = base64.b64encode(certificate.subject.rfc4514_string().encode())
        assert vouched_fields(info, b"s")[0] == field
        assert vouched_fields(info, b"s")[2][1].endswith(b", name=:" + name + b":")

    def test_a_certificate_without_a_readable_name_is_told_all_the_same(self) -> None:
        fields = dict(vouched_fields(connection(client_certificate=b"odd"), b"s"))
        assert fields[b"Client-Cert"] == b":b2Rk:"
