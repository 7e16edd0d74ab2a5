"""What the doctor makes of what it sees: tables of observations and verdicts."""

from __future__ import annotations

import ssl
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest

from tests.store.pki import issue
from tlsproxy.doctor import schemes, streams
from tlsproxy.doctor.asking import Address, Answer
from tlsproxy.doctor.caa import CaaRecord, decide
from tlsproxy.doctor.certificates import find_gap, judge_dates
from tlsproxy.doctor.findings import Report, counted
from tlsproxy.doctor.handshake import Seen, Target
from tlsproxy.doctor.names import judge_foreign
from tlsproxy.doctor.prefixes import roots
from tlsproxy.doctor.schemes import Belief
from tlsproxy.doctor.servers import Server, believing, is_plain, product, starting, staying
from tlsproxy.doctor.subject import Asked, Subject, listed, whose
from tlsproxy.settings import Route, Settings, Site

HOST = "a.test"


def subject(path: str = "/", *, strips: bool = False, url: str = "http://127.0.0.1:8000", **asked: str) -> Subject:
    route = Route.model_validate({"path": path, "strip_prefix": strips, "backends": [url]})
    return Subject(Address(url), HOST, route, Settings(), Asked(**asked))


# --- the scheme that an application believes in


@pytest.mark.parametrize(
    ("asked", "status", "location", "belief"),
    [
        ("/docs/", 307, "https://a.test/docs", Belief.HTTPS),
        ("/docs/", 307, "http://a.test/docs", Belief.HTTP),
        ("/docs/", 307, "http://a.test:8443/docs", Belief.HTTP),
        ("/items", 307, "https://a.test/items/", Belief.HTTPS),
        ("/docs/", 307, "https://a.test/api/v1/docs", Belief.HTTPS),
        # HTTPSRedirectMiddleware, which believes that it was asked over http
        ("/docs/", 307, "https://a.test/docs/", Belief.LOOP),
        # a login, another host, a relative one, no redirect: nothing is known
        ("/docs/", 302, "http://a.test/login?next=/docs/", Belief.NOTHING),
        ("/docs/", 307, "http://login.test/docs", Belief.NOTHING),
        ("/docs/", 307, "/docs", Belief.NOTHING),
        # no URL at all, which is the application's fault and not ours
        ("/docs/", 307, "http://[::1/docs", Belief.NOTHING),
        ("/a%20b/", 307, "http://a.test/a%20b", Belief.HTTP),
        ("/gr%C3%B6%C3%9Fe", 307, "https://a.test/gr%c3%b6%c3%9fe/", Belief.HTTPS),
        ("/docs/", 200, "", Belief.NOTHING),
        ("/docs/", 404, "", Belief.NOTHING),
    ],
)
def test_belief(asked: str, status: int, location: str, belief: Belief) -> None:
    assert schemes.judge(asked, HOST, status, location) is belief


def test_only_paths_that_nothing_answers_are_tried() -> None:
    paths: dict[str, Any] = {"/items/": {}, "/users": {}, "/users/": {}, "/{name}/": {}, "/x/{id}": {}, "/files": {}}
    # "/items" would be a redirect, but "/users" and its like run code; "/files/" is "/{name}/".
    assert schemes._redirected(listed({"paths": paths})) == ["/items"]


@pytest.mark.parametrize("document", [None, {}, {"paths": None}, {"paths": ["/x"]}, {"paths": {"x": {}}}])
def test_a_description_may_say_anything_for_paths(document: Any) -> None:
    assert listed(document) == []


# --- streams


def answer(head_after: float, *times: float, whole: bool = True, status: int = 200) -> Answer:
    return Answer(status, [], b"", [(when, 1) for when in times], head_after, whole)


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (answer(0.01, 0.01, 0.2, 0.4), "ok"),
        (answer(0.01, 1.0, 1.0), "ok"),
        (answer(0.01, 0.01, 0.3, whole=False), "ok"),
        (answer(1.4, 1.4, 1.41), "bad"),
        (answer(0.2, 0.2, 0.21), "unknown"),
        (answer(0.01, whole=False), "unknown"),
        (answer(0.01, 0.01, status=404), "unknown"),
    ],
)
def test_streams(seen: Answer, state: str) -> None:
    report = Report("x")
    streams.judge(report, subject(stream="/events"), seen)
    assert [finding.state for finding in report.findings] == [state]


# --- CAA


def caa(*records: tuple[str, str]) -> list[CaaRecord]:
    return [CaaRecord(0, tag, value) for tag, value in records]


@pytest.mark.parametrize(
    ("records", "wildcard", "allowed"),
    [
        (caa(("issue", "letsencrypt.org")), False, True),
        (caa(("issue", "LetsEncrypt.org ; x=y")), False, True),
        (caa(("issue", "other.example")), False, False),
        (caa(("issue", ";")), False, False),
        (caa(("iodef", "mailto:a@b.example")), False, True),
        (caa(("issue", "other.example"), ("issue", "letsencrypt.org")), False, True),
        (caa(("issue", "letsencrypt.org"), ("issuewild", ";")), True, False),
        (caa(("issue", "letsencrypt.org"), ("issuewild", ";")), False, True),
        (caa(("issue", "letsencrypt.org")), True, True),
        (caa(("issue", "letsencrypt.org; validationmethods=dns-01")), False, False),
        (caa(("issue", "letsencrypt.org; validationmethods=dns-01,http-01")), False, True),
        (caa(("issue", "letsencrypt.org; accounturi=https://ca/1")), False, None),
        ([CaaRecord(128, "future", "x")], False, None),
    ],
)
def test_caa(records: list[CaaRecord], wildcard: bool, allowed: bool | None) -> None:
    decision = decide(records, ["letsencrypt.org"], ["tls-alpn-01", "http-01"], is_wildcard=wildcard)
    assert decision.allowed is allowed


# --- somebody else's address


def seen(*, cn: str = "a.test") -> Seen:
    return Seen(Target("192.0.2.1", 443, HOST), "TLSv1.3", "", "", "", (issue(HOST, cn=cn).certificate,), 0.1)


REFUSED = ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize(
    ("address", "found", "state"),
    [
        ("2a00:1450::1", REFUSED, "bad"),
        ("2001:db8::7", REFUSED, "unknown"),  # of documentation: nobody's
        ("8.8.8.8", REFUSED, "unknown"),  # a router may not let us visit ourselves
        ("2a00:1450::1", TimeoutError(), "unknown"),
        ("2a00:1450::1", OSError(101, "Network is unreachable"), "unknown"),
        ("8.8.8.8", ssl.SSLError(1, "handshake failure"), "unknown"),
        ("8.8.8.8", seen(), "unknown"),
    ],
)
def test_foreign_addresses(address: str, found: Any, state: str) -> None:
    assert judge_foreign(ip_address(address), found, HOST, set()).state == state


def test_who_serves_our_certificate_leads_here() -> None:
    there = seen()
    assert judge_foreign(ip_address("8.8.8.8"), there, HOST, {there.fingerprint}).state == "ok"


# --- certificates


@pytest.mark.parametrize(
    ("days", "host", "state"),
    [((-1, 30), HOST, "ok"), ((-30, -1), HOST, "bad"), ((1, 30), HOST, "bad"), ((-1, 30), "b.test", "bad")],
)
def test_dates_and_names(days: tuple[float, float], host: str, state: str) -> None:
    report = Report(host)
    site = Site.model_validate({"hosts": [HOST], "backends": ["http://127.0.0.1:1"]})
    judge_dates(report, site, [issue(HOST, days=days).bundle()], host, datetime.now(UTC))
    assert [finding.state for finding in report.findings] == [state]


def test_only_a_leaf_that_names_its_issuer_is_blamed_for_a_gap() -> None:
    root = issue(cn="root", ca=True)
    between = issue(cn="between", ca=True, by=root)
    known = issue(HOST, by=between, issuer_url="http://ca.test/x.der")
    assert find_gap([known.certificate]) is not None
    assert find_gap([known.certificate, between.certificate]) is None
    assert find_gap([issue(HOST, by=between).certificate]) is None
    assert find_gap([issue(HOST).certificate]) is None


# --- servers and routes


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("uvicorn", "uvicorn"),
        ("hypercorn-h11", "hypercorn"),
        ("gunicorn/21", "gunicorn"),
        ("nginx/1", "nginx"),
        ("", ""),
    ],
)
def test_products(header: str, name: str) -> None:
    assert product(header) == name


def test_commands_stand_for_themselves() -> None:
    unix = Address("unix:/run/app.sock")
    assert starting(Server("uvicorn", app="api:app"), unix) == "uvicorn api:app --uds /run/app.sock"
    assert believing(Server("granian"), unix, "").endswith('trusted_hosts="*")')
    worker = Server("uvicorn", app="api:app", runs_in="gunicorn")
    assert staying(worker, Address("http://[::1]:80"), 5) == (
        "gunicorn -k uvicorn.workers.UvicornWorker api:app --bind [::1]:80 --keep-alive 5  "
        "# add to your own command: --keep-alive 5"
    )
    deaf = Server("uvicorn", app="api:app", is_deaf=True, is_plain=True)
    assert believing(deaf, Address("http://127.0.0.1:80"), "127.0.0.1") == (
        "uvicorn api:app --host 127.0.0.1 --port 80 --proxy-headers --forwarded-allow-ips 127.0.0.1"
    )
    assert "FORWARDED_ALLOW_IPS=10.0.0.2" in believing(Server("nginx"), Address("http://b:1"), "10.0.0.2")


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        ("api:app", True),
        ("api:app --port=8000 --host 127.0.0.1", True),
        ("api:app --app-dir src --port 8000", False),
        ("api:app --host 0.0.0.0 --port 8000", False),
    ],
)
def test_a_command_that_is_not_repeated_in_full_says_so(said: str, plain: bool) -> None:
    """What else is in it is not shown: it may be a secret."""
    address = Address("http://127.0.0.1:8000")
    server = Server("uvicorn", app="api:app")
    assert is_plain(said.split(), server, address) is plain
    advice = believing(replace(server, is_plain=plain), address, "127.0.0.1")
    assert advice.endswith("# add to your own command: --forwarded-allow-ips 127.0.0.1") is not plain
    assert "src" not in advice
    assert not is_plain([], Server("uvicorn"), address)  # whose application is not known


def test_numbers_of_things() -> None:
    assert [counted(number, "certificate") for number in (0, 1, 2)] == [
        "0 certificates",
        "1 certificate",
        "2 certificates",
    ]


def test_a_subject_asks_as_the_proxy_does() -> None:
    stripped, whole = subject("/api/", strips=True), subject("/api/")
    assert (stripped.target("/api/items"), stripped.fields()["X-Forwarded-Prefix"]) == ("/items", "/api")
    assert whole.target("/api/items") == "/api/items"
    assert "X-Forwarded-Prefix" not in whole.fields()
    assert whole.fields()["X-Forwarded-Proto"] == "https"


def test_paths_are_asked_for_percent_encoded() -> None:
    stripped = subject("/api", strips=True)
    assert stripped.target("/api/a b/größe?x=%2F'") == "/a%20b/gr%C3%B6%C3%9Fe?x=%2F%27"
    assert subject().target("/half \ud800 of it") == "/half%20%ED%A0%80%20of%20it"


def test_an_address_is_in_brackets_where_a_name_would_stand() -> None:
    there = replace(subject(), host="::1", settings=Settings.model_validate({"server": {"forwarded": True}}))
    assert there.fields()["X-Forwarded-Host"] == "[::1]"
    assert 'host="[::1]"' in there.fields()["Forwarded"]


def test_a_named_path_belongs_to_the_longest_route() -> None:
    routes = tuple(
        Route.model_validate({"path": path, "backends": ["http://127.0.0.1:1"]}) for path in ("/", "/api", "/api/v1")
    )
    assert [whose(path, routes) for path in ("/x", "/api", "/apix", "/api/v1/x")] == [
        routes[0],
        routes[1],
        routes[0],
        routes[2],
    ]


def test_root_paths_are_those_without_a_host() -> None:
    servers = [{"url": "/api/"}, {"url": "https://a.test/x"}, {"url": "/"}, {"no": "url"}, 7]
    assert roots({"servers": servers}) == ["/api"]
    assert roots({"servers": "x"}) == roots({}) == roots(None) == []
