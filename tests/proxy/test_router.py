"""Which outcome a request gets: hosts, prefixes, redirects, refusals. No network: heads in, outcomes out."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.fakes.codec import request_reader
from tlsproxy.proxy.pool import Backend
from tlsproxy.proxy.router import Forward, Outcome, Redirect, Refuse, Route, Router, Site
from tlsproxy.proxy.stream import ConnectionInfo
from tlsproxy.proxy.upstream import Upstream
from tlsproxy.wire.messages import RequestHead


def route(path: str, *, strip: bool = False) -> Route:
    upstream = Upstream([Backend("http://10.0.0.1:80", most_idle=1)], "least_conn")
    return Route(path, upstream, strip=strip, response_timeout=1, max_body=0)


SITES = [
    Site(["a.test", "www.a.test"], [route("/")]),
    Site(["*.w.test", "b.test"], [route("/"), route("/api"), route("/api/v1", strip=True), route("/with space%20/")]),
    Site(["x.w.test"], [route("/only")]),
]


def head_of(target: bytes = b"/", host: bytes = b"a.test", method: bytes = b"GET") -> RequestHead:
    reader = request_reader()
    reader.receive(method + b" " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    head = reader.next_head()
    assert head is not None
    return head


def info(scheme: Literal["https", "http"] = "https", sni: str = "a.test") -> ConnectionInfo:
    connection = ConnectionInfo("198.51.100.7", 1, 443, scheme)
    connection.sni = sni if scheme == "https" else ""
    connection.site = {"a.test": "a.test", "b.test": "*.w.test", "x.w.test": "x.w.test"}[sni] if connection.sni else ""
    return connection


def decide(head: RequestHead, connection: ConnectionInfo, *, may_share: bool = True, port: int = 443) -> Outcome:
    return Router(SITES, may_share=lambda _info, _host: may_share, https_port=port).decide(head, connection)


def label(outcome: Outcome) -> str:
    assert isinstance(outcome, Forward), outcome
    return outcome.route.label


class TestHosts:
    @pytest.mark.parametrize(
        ("host", "site"),
        [
            (b"a.test", "a.test"),
            (b"WWW.A.Test.:8443", "a.test"),
            (b"y.w.test", "*.w.test"),
            (b"x.w.test", "x.w.test"),  # exact before wildcard
            (b"z.x.w.test", None),  # a wildcard is one label
            (b"w.test", None),
            (b"*.w.test.evil.test", None),
            (b"", None),
        ],
    )
    def test_exact_then_wildcard(self, host: bytes, site: str | None) -> None:
        router = Router(SITES, may_share=lambda _info, _host: True)
        found = router.find(host.decode().lower().partition(":")[0].rstrip("."))
        assert (found.name if found else None) == site

    def test_an_unknown_host_is_421_over_tls_and_404_over_http(self) -> None:
        head = head_of(host=b"nobody.test")
        for connection, status in ((info(), 421), (info("http"), 404)):
            outcome = decide(head, connection)
            assert isinstance(outcome, Refuse)
            assert outcome.status == status

    @pytest.mark.parametrize("may_share", [True, False])
    def test_a_host_other_than_the_sni_is_421_unless_their_rules_allow_it(self, *, may_share: bool) -> None:
        outcome = decide(head_of(host=b"b.test"), info(sni="a.test"), may_share=may_share)
        assert isinstance(outcome, Forward) == may_share
        if isinstance(outcome, Refuse):
            assert outcome.status == 421

    def test_the_same_name_is_not_questioned(self) -> None:
        assert isinstance(decide(head_of(), info(), may_share=False), Forward)

    @pytest.mark.parametrize("may_share", [True, False])
    def test_unless_the_connection_was_made_under_another_site_s_rules(self, *, may_share: bool) -> None:
        """Whatever made TLS choose the default site for a name that has one of its own here."""
        connection = info()
        connection.site = "b.test"
        outcome = decide(head_of(), connection, may_share=may_share)
        assert isinstance(outcome, Refuse)
        assert outcome.status == 421

    def test_what_is_judged_is_the_site_that_the_request_is_for(self) -> None:
        asked: list[str] = []
        router = Router(SITES, may_share=lambda _, site: not asked.append(site))  # type: ignore[func-returns-value]
        router.decide(head_of(host=b"y.w.test"), info())
        assert asked == ["*.w.test"]


class TestRoutes:
    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            (b"/", "/"),
            (b"/api", "/api"),
            (b"/api/", "/api"),
            (b"/api?x=/api/v1", "/api"),
            (b"/apis", "/"),  # not a border of segments
            (b"/api;v=1", "/"),
            (b"/api/v1", "/api/v1"),  # the longest wins
            (b"/api/v1/docs", "/api/v1"),
            (b"/api/v10", "/api"),
            (b"//api", "/"),
            (b"/API", "/"),
            (b"/%61pi", "/"),  # compared raw, as it is forwarded
            (b"/api%2Fv1", "/"),
        ],
    )
    def test_the_longest_prefix_on_a_border_of_segments(self, target: bytes, expected: str) -> None:
        assert label(decide(head_of(target, b"b.test"), info(sni="b.test"))) == expected

    def test_no_route_is_404(self) -> None:
        outcome = decide(head_of(b"/other", b"x.w.test"), info(sni="x.w.test"))
        assert isinstance(outcome, Refuse)
        assert outcome.status == 404

    @pytest.mark.parametrize(
        "target",
        [
            b"/api/../secret", b"/api/%2e%2e/secret", b"/api/.%2E/x", b"/./api", b"/api/..", b"/api/..;a=b/secret",
            b"/api/..%2fsecret", b"/api\\..\\secret", b"/api/..%5Csecret", b"/x/%2e", b"/..",
        ],
    )  # fmt: skip
    def test_dot_segments_are_refused_where_a_prefix_decides(self, target: bytes) -> None:
        """The backend might resolve what was compared raw."""
        outcome = decide(head_of(target, b"b.test"), info(sni="b.test"))
        assert isinstance(outcome, Refuse)
        assert outcome.status == 400
        assert label(decide(head_of(target), info())) == "/"  # one route for everything: nothing to get around

    @pytest.mark.parametrize(
        "target", [b"/api/...", b"/api/a..b", b"/api/.well-known", b"/api/x.", b"/api?q=/../", b"/%2f"]
    )
    def test_other_dots_pass(self, target: bytes) -> None:
        assert isinstance(decide(head_of(target, b"b.test"), info(sni="b.test")), Forward)

    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            (b"/api/v1", b"/"),
            (b"/api/v1/", b"/"),
            (b"/api/v1?x", b"/?x"),
            (b"/api/v1/a%2Fb//c;d?e=/api/v1", b"/a%2Fb//c;d?e=/api/v1"),
            (b"/api/v1//x", b"//x"),
        ],
    )
    def test_a_stripped_prefix_leaves_a_path_and_the_rest_as_it_came(self, target: bytes, expected: bytes) -> None:
        outcome = decide(head_of(target, b"b.test"), info(sni="b.test"))
        assert isinstance(outcome, Forward)
        assert outcome.route.outbound_target(target) == expected

    def test_options_star_goes_to_the_root_route(self) -> None:
        outcome = decide(head_of(b"*", b"b.test", b"OPTIONS"), info(sni="b.test"))
        assert label(outcome) == "/"


class TestRedirect:
    @pytest.mark.parametrize(
        ("target", "port", "location"),
        [
            (b"/a%2Fb//c?d=e&f", 443, b"https://a.test/a%2Fb//c?d=e&f"),
            (b"/", 8443, b"https://a.test:8443/"),
            (b"http://a.test/x?y", 443, b"https://a.test/x?y"),
            (b"//evil.test/", 443, b"https://a.test//evil.test/"),
        ],
    )
    def test_keeps_host_path_and_query(self, target: bytes, port: int, location: bytes) -> None:
        outcome = decide(head_of(target, b"A.test:80"), info("http"), port=port)
        assert isinstance(outcome, Redirect)
        assert outcome.fields == [(b"Location", location)]

    def test_options_star_has_no_path_to_keep(self) -> None:
        outcome = decide(head_of(b"*", method=b"OPTIONS"), info("http"))
        assert isinstance(outcome, Redirect)
        assert outcome.fields == [(b"Location", b"https://a.test/")]

    @pytest.mark.parametrize("host", [b"[::1]", b"[::1]:80", b"[0:0::0:1]:80"])
    def test_an_address_keeps_its_brackets(self, host: bytes) -> None:
        router = Router([Site(["::1"], [route("/")])], may_share=lambda _info, _host: True, https_port=8443)
        outcome = router.decide(head_of(host=host), info("http"))
        assert isinstance(outcome, Redirect)
        assert outcome.fields == [(b"Location", b"https://[::1]:8443/")]
