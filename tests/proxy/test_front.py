"""The whole front door: what a backend is told, redirects, HSTS, certificates that change, draining."""

from __future__ import annotations

import json
import re
import ssl
import time
from pathlib import Path

import pytest

from tests.fakes.backend import OK
from tests.fakes.peer import Message
from tests.fakes.stage import Json, Stage, client_context, issue
from tests.store.pki import Issued, replace, write_pair
from tests.store.pki import issue as self_issue
from tlsproxy.settings import Site
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.sources import bundles_for

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
FORGED = (
    b"X-Forwarded-For: 203.0.113.9, 198.51.100.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: forged.test\r\n"
    b"X-Forwarded-Port: 1\r\nX-Forwarded-Prefix: /forged\r\nX-Forwarded-User: root\r\nX-Real-IP: 203.0.113.9\r\n"
    b"Forwarded: for=203.0.113.9\r\nX-Request-ID: mine-1\r\nX-Request-Start: t=1\r\nX_Forwarded_For: 203.0.113.9\r\n"
)


def told(stage: Stage, request: bytes, **sections: object) -> Message:
    """What the backend gets."""
    backend = stage.backend()
    stage.serve(backend, **sections)  # type: ignore[arg-type]
    stage.connect().send(request)
    return backend.accept().message()


class TestWhatABackendIsTold:
    def test_every_field(self, stage: Stage) -> None:
        request = told(
            stage,
            b"GET /a?b HTTP/1.1\r\nHost: a.test:8443\r\nAccept: */*\r\nX-Own: 1\r\nConnection: keep-alive, X-Hop\r\n"
            b"X-Hop: 1\r\nKeep-Alive: 5\r\nProxy: x\r\nProxy-Connection: x\r\nx_odd: 1\r\nCookie: a=b\r\n"
            b"X-Own: 2\r\n\r\n",
        )
        volatile = {b"X-Request-ID", b"X-Request-Start"}
        assert sorted(field for field in request.fields if field[0] not in volatile) == sorted(
            [
                (b"Host", b"a.test:8443"),
                (b"Accept", b"*/*"),
                (b"X-Own", b"1"),
                (b"X-Own", b"2"),
                (b"Cookie", b"a=b"),
                (b"X-Forwarded-For", b"127.0.0.1"),
                (b"X-Real-IP", b"127.0.0.1"),
                (b"X-Forwarded-Proto", b"https"),
                (b"X-Forwarded-Host", b"a.test:8443"),
                (b"X-Forwarded-Port", b"8443"),
            ]
        )
        assert re.fullmatch(rb"[0-9a-f]{24}", request.get("x-request-id") or b"")
        started = re.fullmatch(rb"t=(\d+)", request.get("x-request-start") or b"")
        assert started
        assert abs(int(started[1]) / 1000 - time.time()) < 5

    def test_what_a_stranger_says_about_itself_is_dropped(self, stage: Stage) -> None:
        request = told(stage, b"GET / HTTP/1.1\r\nHost: a.test\r\n" + FORGED + b"\r\n")
        assert request.get("x-forwarded-for") == request.get("x-real-ip") == b"127.0.0.1"
        assert request.get("x-forwarded-proto") == b"https"
        assert request.get("x-forwarded-host") == b"a.test"
        assert request.get("x-forwarded-port") == b"443"
        assert request.get("x-request-id") != b"mine-1"
        for name in ("x-forwarded-prefix", "x-forwarded-user", "forwarded", "x_forwarded_for"):
            assert request.all(name) == []

    def test_what_a_trusted_proxy_says_is_believed_and_continued(self, stage: Stage) -> None:
        """X-Forwarded-For is walked from the right: the first address that is no proxy of ours is the client."""
        backend = stage.backend()
        stage.serve(backend, server={"trusted_proxies": ["127.0.0.0/8", "198.51.100.0/24"]})
        client = stage.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n" + FORGED + b"\r\n")
        upstream = backend.accept()
        request = upstream.message()
        assert request.get("x-forwarded-for") == b"203.0.113.9, 198.51.100.1, 127.0.0.1"
        assert request.get("x-real-ip") == b"203.0.113.9"
        assert request.get("x-forwarded-proto") == b"http"
        assert request.get("x-forwarded-host") == b"forged.test"
        assert request.get("x-forwarded-prefix") == b"/forged"
        assert request.get("x-request-id") == b"mine-1"
        assert request.all("x_forwarded_for") == []
        upstream.send(OK)
        client.message()
        [line] = stage.log()
        assert (line["client"], line["request_id"]) == ("203.0.113.9", "mine-1")

    def test_forwarded_and_via_if_configured(self, stage: Stage) -> None:
        request = told(stage, GET, server={"forwarded": True, "via": True})
        assert request.get("forwarded") == b'for=127.0.0.1;host="a.test";proto=https'
        assert request.get("via") == b"1.1 tlsproxy"

    def test_a_stripped_prefix_and_its_name(self, stage: Stage) -> None:
        request = told(stage, GET.replace(b"/", b"/api/v1/x%2Fy?z", 1), route={"path": "/api/v1", "strip_prefix": True})
        assert (request.target, request.get("x-forwarded-prefix")) == (b"/x%2Fy?z", b"/api/v1")

    def test_a_prefix_that_is_kept_is_not_announced(self, stage: Stage) -> None:
        request = told(stage, GET.replace(b"/", b"/api/x", 1), route={"path": "/api"})
        assert (request.target, request.all("x-forwarded-prefix")) == (b"/api/x", [])

    def test_a_client_without_host_is_given_the_name_it_asked_tls_for(self, stage: Stage) -> None:
        request = told(stage, b"GET / HTTP/1.0\r\n\r\n")
        assert request.get("host") == request.get("x-forwarded-host") == b"a.test"

    def test_the_client_that_a_balancer_names_by_proxy_protocol(self, stage: Stage) -> None:
        stage.serve(stage.backend(), listen={"https": [], "http": ["127.0.0.1:80"], "proxy_protocol": ["127.0.0.0/8"]})
        client = stage.connect_plain()
        client.send(b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 80\r\n" + GET)
        assert client.message().status == 308
        assert stage.log()[0]["client"] == "203.0.113.9"


class TestSites:
    def test_routes_and_hosts_of_one_front(self, stage: Stage) -> None:
        app, api, other = stage.backend(), stage.backend(), stage.backend()
        routes = [{"backends": [app.url]}, {"path": "/api", "backends": [api.url]}]
        stage.serve(
            sites=[{"hosts": ["a.test"], "routes": routes}, {"hosts": ["*.w.test"], "backends": [other.url]}],
        )
        for host, path, backend in ((b"a.test", b"/", app), (b"a.test", b"/api/x", api), (b"x.w.test", b"/", other)):
            client = stage.connect(host.decode())
            client.send(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (path, host))
            upstream = backend.accept()
            assert upstream.message().target == path
            upstream.send(OK)
            assert client.message().body == b"ok"
        assert [line["route"] for line in stage.log(3)] == ["/", "/api", "/"]

    def test_one_connection_may_serve_sites_with_the_same_rules(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(sites=[{"hosts": [host], "backends": [backend.url]} for host in ("a.test", "b.test")])
        stage.connect().send(b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n")
        assert backend.accept().message().get("host") == b"b.test"

    def test_but_not_with_others(self, stage: Stage) -> None:
        backend = stage.backend()
        sites: list[Json] = [{"hosts": ["a.test"]}, {"hosts": ["b.test"], "minimum_version": "1.3"}]
        stage.serve(sites=[{**site, "backends": [backend.url]} for site in sites])
        client = stage.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n")
        assert client.message().status == 421
        client.send(GET)  # the connection is good for its own name
        assert backend.accept().message().get("host") == b"a.test"

    def test_an_unknown_host(self, stage: Stage) -> None:
        stage.serve(stage.backend())
        for client, status in ((stage.connect(), 421), (stage.connect_plain(), 404)):
            client.send(GET.replace(b"a.test", b"nobody.test"))
            answer = client.message()
            assert (answer.status, json.loads(answer.body)["status"]) == (status, status)

    def test_dot_segments_are_400_where_prefixes_decide(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"path": "/public"})
        client = stage.connect()
        client.send(GET.replace(b"/", b"/public/%2e%2e/private", 1))
        assert client.message().status == 400
        assert not backend.is_called(0)


class TestSitesNamedByAddress:
    """Clients send no server name for them (RFC 6066 3)."""

    CASES = (("127.0.0.1", "127.0.0.1", b"127.0.0.1"), ("::1", "::1", b"[::1]"), ("::1", "[0::1]", b"[0:0::1]"))

    @pytest.mark.parametrize(("address", "site", "host"), CASES)
    def test_are_served(self, stage: Stage, address: str, site: str, host: bytes) -> None:
        backend = stage.backend()
        stage.address = address
        stage.serve(sites=[{"hosts": [name], "backends": [backend.url]} for name in ("a.test", site)])
        client = stage.connect(address)
        upstream = None
        for name in (host, b"a.test"):
            client.send(b"GET / HTTP/1.1\r\nHost: %b:%d\r\n\r\n" % (name, stage.port))
            upstream = upstream or backend.accept()
            assert upstream.message().get("host") == b"%b:%d" % (name, stage.port)
            upstream.send(OK)
            assert client.message().body == b"ok"
        assert not stage.log(2)[0]["sni"]

    @pytest.mark.parametrize(("address", "site", "host"), CASES)
    def test_their_connections_are_theirs_alone_if_clients_show_certificates(
        self, stage: Stage, tmp_path: Path, address: str, site: str, host: bytes
    ) -> None:
        (tmp_path / "clients.pem").write_bytes(self_issue(cn="clients", ca=True).pem)
        rules = {"client_auth": "request", "client_ca": str(tmp_path / "clients.pem")}
        backend = stage.backend()
        stage.address = address
        stage.serve(sites=[{"hosts": [name], "backends": [backend.url], **rules} for name in ("a.test", site)])
        client = stage.connect(address)
        client.send(GET)
        assert client.message().status == 421
        client.send(GET.replace(b"a.test", host))
        assert backend.accept().message().get("host") == host

    def test_the_address_that_a_balancer_names_counts(self, stage: Stage) -> None:
        stage.serve(
            sites=[{"hosts": ["192.0.2.1"], "backends": ["http://127.0.0.1:9"]}],
            listen={"proxy_protocol": ["127.0.0.0/8"]},
        )
        with stage.dial() as raw:
            raw.sendall(b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n")
            with client_context().wrap_socket(raw, server_hostname="192.0.2.1") as client:
                assert client.getpeercert()["subjectAltName"] == (("IP Address", "192.0.2.1"),)  # type: ignore[index]

    def test_an_address_that_is_no_site_is_the_default_s_or_nobody_s(self, stage: Stage) -> None:
        stage.serve(sites=[{"hosts": ["127.0.0.2"], "backends": ["http://127.0.0.1:9"]}])
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            stage.connect("127.0.0.1")


class TestRedirect:
    def test_to_https_with_path_and_query(self, stage: Stage) -> None:
        stage.serve(stage.backend())
        client = stage.connect_plain()
        client.send(GET.replace(b"/", b"/a%2Fb?c=d", 1))
        answer = client.message()
        assert answer.start == b"HTTP/1.1 308 Permanent Redirect"
        assert answer.get("location") == b"https://a.test:%d/a%%2Fb?c=d" % stage.port
        assert (answer.get("content-length"), answer.get("connection")) == (b"0", None)
        assert answer.get("date") is not None
        client.send(GET)
        assert client.message().status == 308

    def test_a_body_is_not_waited_for(self, stage: Stage) -> None:
        stage.serve(stage.backend())
        client = stage.connect_plain()
        client.send(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\n")
        answer = client.message()
        assert (answer.status, answer.get("connection")) == (308, b"close")
        client.send(b"x" * 1000)
        assert client.rest() == b""


class TestHsts:
    def test_replaces_what_the_backend_says_and_covers_our_own_answers(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(sites=[{"hosts": ["a.test"], "backends": [backend.url], "hsts": "1y"}])
        client = stage.connect()
        client.send(GET)
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 200 OK\r\nstrict-transport-security: max-age=1\r\nContent-Length: 2\r\n\r\nok")
        assert client.message().get("strict-transport-security") == b"max-age=31536000"
        upstream.close()
        stage.wait_for_pool(backend.url, "0 idle")
        backend.refuse()
        client.send(GET)
        answer = client.message()
        assert (answer.status, answer.get("strict-transport-security")) == (502, b"max-age=31536000")

    def test_is_never_sent_over_http(self, stage: Stage) -> None:
        """RFC 6797 7.2."""
        stage.serve(sites=[{"hosts": ["a.test"], "backends": ["http://127.0.0.1:9"], "hsts": "1y"}])
        client = stage.connect_plain()
        client.send(GET)
        assert client.message().get("strict-transport-security") is None

    def test_off_leaves_the_backends(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET)
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 204 No Content\r\nStrict-Transport-Security: max-age=1\r\n\r\n")
        assert client.message().get("strict-transport-security") == b"max-age=1"


def test_every_request_has_an_id_of_its_own(stage: Stage) -> None:
    stage.serve(stage.backend())
    client = stage.connect_plain()
    client.send(GET * 50)
    for _ in range(50):
        client.message()
    assert len({line["request_id"] for line in stage.log(50)}) == 50


class TestCertificates:
    def served(self, stage: Stage) -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        sock = stage.dial()
        with context.wrap_socket(sock, server_hostname="a.test") as client:
            return client.getpeercert(binary_form=True) or b""

    def test_new_connections_get_the_new_one_and_live_ones_go_on(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        old = self.served(stage)
        stage.store.put("internal/a.test", issue("a.test"))
        assert self.served(stage) == old
        assert stage.call(lambda: stage.front.certificates_changed(["internal/b.test", "internal/a.test"])) == []
        assert self.served(stage) != old
        client.send(GET)
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        assert client.message().body == b"ok"

    def test_no_names_are_all_names(self, stage: Stage) -> None:
        stage.serve(stage.backend())
        old = self.served(stage)
        stage.store.put("internal/a.test", issue("a.test"))
        assert stage.call(lambda: stage.front.certificates_changed([])) == []
        assert self.served(stage) != old

    def test_what_did_not_change_keeps_its_context(self, stage: Stage) -> None:
        """A certifier that starts anew announces all it has; building that again would pause every client."""
        stage.serve(stage.backend())
        self.served(stage)
        [before] = {entry.context for entry in stage.front.contexts._entries.values()}
        assert stage.call(lambda: stage.front.certificates_changed(["internal/a.test"])) == []
        [after] = {entry.context for entry in stage.front.contexts._entries.values()}
        assert after is before is not None

    @pytest.mark.parametrize("broken", [b"", b"not a certificate", b"for another host"])
    def test_a_broken_new_file_keeps_the_old_one_and_says_so(self, stage: Stage, tmp_path: Path, broken: bytes) -> None:
        first: Issued = self_issue("a.test")
        chain, key = write_pair(tmp_path, first)
        site = {"hosts": ["a.test"], "certificate": {"chain": str(chain), "key": str(key)}}
        stage.serve(sites=[{**site, "backends": ["http://127.0.0.1:9"]}])
        old = self.served(stage)
        replace(chain, self_issue("b.test", key=first.key).pem if broken == b"for another host" else broken)
        [problem] = stage.call(lambda: stage.front.certificates_changed(["file/a.test"]))
        assert str(chain) in problem
        assert self.served(stage) == old
        write_pair(tmp_path, self_issue("a.test"))
        assert stage.call(lambda: stage.front.certificates_changed(["file/a.test"])) == []
        assert self.served(stage) != old

    def test_files_that_are_as_they_were_are_not_loaded_again(
        self, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every certifier that starts asks for a look at all, and an RSA pair takes 50 ms in which nobody is served."""
        hosts = ("a.test", "b.test")
        pairs = {}
        for host in hosts:
            (tmp_path / host).mkdir()
            pairs[host] = dict(
                zip(("chain", "key"), map(str, write_pair(tmp_path / host, self_issue(host))), strict=True)
            )
        stage.serve(
            sites=[{"hosts": [host], "certificate": pairs[host], "backends": ["http://127.0.0.1:9"]} for host in hosts]
        )
        loaded: list[str] = []

        def load(site: Site, store: CertificateStore) -> tuple[Bundle, ...]:
            loaded.append(site.hosts[0])
            return bundles_for(site, store)

        def look(*names: str) -> list[str]:
            loaded.clear()
            assert len(stage.call(lambda: stage.front.certificates_changed(names))) == ("b.test" in broken)
            return loaded

        broken: set[str] = set()
        monkeypatch.setattr("tlsproxy.proxy.certificates.bundles_for", load)
        assert look() == []
        assert look("file/a.test") == ["a.test"]  # the certifier has seen something
        replace(Path(pairs["b.test"]["chain"]), b"")
        broken.add("b.test")
        for _ in range(2):
            assert look() == ["b.test"]
        Path(pairs["b.test"]["chain"]).unlink()
        assert look() == ["b.test"]
        write_pair(tmp_path / "b.test", self_issue("b.test"))
        broken.clear()
        assert look() == ["b.test"]
        assert look() == []

    def test_a_site_without_a_usable_one_costs_no_other(self, stage: Stage, tmp_path: Path) -> None:
        chain, key = write_pair(tmp_path, self_issue("b.test"))
        chain.write_bytes(b"")
        files = {"chain": str(chain), "key": str(key)}
        backend = stage.backend()
        sites: list[Json] = [{"hosts": ["a.test"]}, {"hosts": ["b.test"], "certificate": files}]
        stage.serve(sites=[{**site, "backends": [backend.url]} for site in sites])
        stage.connect().send(GET)
        assert backend.accept().message().target == b"/"
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            stage.connect("b.test")


class TestDrain:
    def test_what_is_in_flight_is_finished_and_told_to_close(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET)
        upstream = backend.accept()
        upstream.message()
        end = stage.begin_drain()
        with pytest.raises(ConnectionRefusedError):
            stage.connect()
        upstream.send(OK)
        answer = client.message()
        assert (answer.body, answer.get("connection")) == (b"ok", b"close")
        assert client.has_ended()
        end.result(5)
        assert upstream.has_ended()
        assert stage.log_path.read_text().count("\n") == 1  # the log is written before the worker leaves

    def test_an_idle_connection_may_send_one_more_request_and_is_closed_within_a_second(self, stage: Stage) -> None:
        """Its next request may be under way already; a close would lose it."""
        backend = stage.backend()
        stage.serve(backend)
        clients = [stage.connect() for _ in range(2)]
        for client in clients:
            client.send(GET.replace(b"a.test", b"nobody.test"))
            client.message()
        end = stage.begin_drain()
        clients[0].send(GET)
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        assert clients[0].message().get("connection") == b"close"
        stage.tick(after=1.1)
        assert clients[1].rest() == b""
        end.result(5)

    def test_what_takes_too_long_is_cut_and_logged(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend)
        client = stage.connect()
        client.send(GET)
        upstream = backend.accept()
        upstream.message()
        stage.begin_drain(0.05).result(5)
        assert client.has_ended()
        assert upstream.has_ended()
        [line] = map(json.loads, stage.log_path.read_text().splitlines())
        assert line["status"] == 499

    def test_nothing_open_is_no_wait(self, stage: Stage) -> None:
        stage.serve(stage.backend())
        begun = time.monotonic()
        stage.begin_drain(30).result(5)
        assert time.monotonic() - begun < 1


def test_stats_count(stage: Stage) -> None:
    stage.serve(stage.backend())
    client = stage.connect_plain()
    client.send(GET)
    client.message()
    stage.connect()
    stats = stage.call(stage.front.stats)
    assert stats.pop("loop_lag_ms") < 60_000
    assert stats == {
        "connections": 2,
        "connections_idle": 2,
        "requests": 1,
        "requests_waiting": 0,
        "log_batches_dropped": 0,
        "contexts": 1,
        "names": 1,
        "waiting": 0,
    }
