"""Client certificates and session tickets through the real proxy with two workers, and the ways around them.

The attacks are those of nginx's CVE-2025-23419 and of virtual host confusion: a session, or a connection, that was won
under the rules of one site is used for another.
"""

from __future__ import annotations

import http.client
import itertools
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.system.running import Proxy, client_context, running_proxy, write_pair

pytestmark = pytest.mark.system

VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])
members = trustme.CA()
staff = trustme.CA()
stranger = trustme.CA()


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA, trust: ssl.SSLContext, app: str
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("clients")
    members.cert_pem.write_to_path(folder / "members-ca.pem")
    staff.cert_pem.write_to_path(folder / "staff-ca.pem")
    sites = [
        _site(folder, authority, app, "open.test"),
        _site(folder, authority, app, "too.test"),
        _site(folder, authority, app, "asked.test", 'client_ca = "members-ca.pem"', 'client_auth = "request"'),
        _site(folder, authority, app, "members.test", 'client_ca = "members-ca.pem"', 'client_auth = "require"'),
        _site(folder, authority, app, "again.test", 'client_ca = "members-ca.pem"', 'client_auth = "require"'),
        _site(folder, authority, app, "staff.test", 'client_ca = "staff-ca.pem"', 'client_auth = "require"'),
        _site(folder, authority, app, "modern.test", 'minimum_version = "1.3"'),
    ]
    with running_proxy(folder, trust, "".join(sites), workers=2) as running:
        yield running


def _site(folder: Path, authority: trustme.CA, app: str, host: str, *more: str) -> str:
    return f"""
        [[sites]]
        hosts = ["{host}"]
        certificate = {write_pair(folder, authority, host, stem=host)}
        backends = ["{app}"]
        {chr(10).join(more)}
    """


def context_of(authority: trustme.CA, issuer: trustme.CA | None, version: str) -> ssl.SSLContext:
    """Return a client with a certificate of `issuer`, or with none."""
    context = client_context(authority, version=version)
    if issuer is not None:
        issuer.issue_cert("client@example.test").configure_cert(context)
    return context


def status(
    proxy: Proxy, name: str, context: ssl.SSLContext, host: str = "", session: ssl.SSLSession | None = None
) -> int:
    """Return what a request for `host` (else `name`) gets on a connection made for `name`."""
    with proxy.open(name, context, session) as client:
        return ask(client, host or name)


def ask(client: ssl.SSLSocket, host: str) -> int:
    client.sendall(f"GET /hello HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    with http.client.HTTPResponse(client) as response:
        response.begin()
        response.read()
        return response.status


@VERSIONS
class TestWhoMayCome:
    def test_require(self, proxy: Proxy, authority: trustme.CA, version: str) -> None:
        assert status(proxy, "members.test", context_of(authority, members, version)) == 200
        for wrong in (None, stranger, staff):
            with pytest.raises(ssl.SSLError, match=r"alert (handshake failure|certificate required|unknown ca)"):
                status(proxy, "members.test", context_of(authority, wrong, version))

    def test_request(self, proxy: Proxy, authority: trustme.CA, version: str) -> None:
        for welcome in (None, members):
            assert status(proxy, "asked.test", context_of(authority, welcome, version)) == 200
        with pytest.raises(ssl.SSLError, match="alert unknown ca"):
            status(proxy, "asked.test", context_of(authority, stranger, version))

    def test_nobody_is_asked_elsewhere(self, proxy: Proxy, authority: trustme.CA, version: str) -> None:
        assert status(proxy, "open.test", context_of(authority, stranger, version)) == 200


def test_a_site_may_insist_on_tls_1_3(proxy: Proxy, authority: trustme.CA) -> None:
    assert status(proxy, "modern.test", context_of(authority, None, "1.3")) == 200
    with pytest.raises(ssl.SSLError, match="alert protocol version"):
        status(proxy, "modern.test", context_of(authority, None, "1.2"))


@pytest.mark.parametrize(
    ("name", "host", "expected"),
    [
        ("open.test", "too.test", 200),  # the same rules and nobody's certificate
        ("open.test", "OPEN.test", 200),
        ("members.test", "members.test", 200),
        ("open.test", "members.test", 421),
        ("open.test", "asked.test", 421),
        ("asked.test", "members.test", 421),
        ("members.test", "open.test", 421),
        ("members.test", "asked.test", 421),
        ("members.test", "staff.test", 421),
        ("members.test", "again.test", 421),  # even where the rules are the same
        ("open.test", "modern.test", 421),
        ("modern.test", "open.test", 421),
        ("open.test", "elsewhere.test", 421),
    ],
)
def test_a_connection_serves_other_hosts_only_under_the_same_rules(
    proxy: Proxy, authority: trustme.CA, name: str, host: str, expected: int
) -> None:
    context = context_of(authority, members, "1.3")
    assert status(proxy, name, context, host) == expected
    with proxy.open(name, context) as client:  # and a good request before does not help
        assert ask(client, name) == 200
        assert ask(client, host) == expected


@VERSIONS
class TestSessions:
    def session(self, proxy: Proxy, name: str, context: ssl.SSLContext) -> ssl.SSLSession:
        with proxy.open(name, context) as client:
            assert ask(client, name) == 200  # TLS 1.3 brings the ticket after the handshake
            assert client.session is not None
            return client.session

    def test_resume_on_either_worker(self, proxy: Proxy, authority: trustme.CA, version: str) -> None:
        context = client_context(authority, version=version)
        first, second = proxy.workers()
        resumed, session = 0, self.session(proxy, "open.test", context)
        for worker, _ in zip(itertools.cycle((first, second)), range(40), strict=False):
            with proxy.alone(worker), proxy.open("open.test", context, session) as client:
                assert ask(client, "open.test") == 200
                resumed += bool(client.session_reused)
                session = client.session or session
        print(f"TLS {version}: {resumed} of 40 resumed, on the worker that did not make the ticket each time")
        assert resumed >= 38

    def test_resume_with_a_client_certificate(self, proxy: Proxy, authority: trustme.CA, version: str) -> None:
        context = context_of(authority, members, version)
        session = self.session(proxy, "members.test", context)
        for worker in proxy.workers():
            with proxy.alone(worker), proxy.open("members.test", context, session) as client:
                assert ask(client, "members.test") == 200
                assert client.session_reused

    @pytest.mark.parametrize(("name", "issuer"), [("open.test", None), ("asked.test", None), ("staff.test", staff)])
    def test_of_another_name_open_nothing(
        self, proxy: Proxy, authority: trustme.CA, version: str, name: str, issuer: trustme.CA | None
    ) -> None:
        context = context_of(authority, issuer, version)
        session = self.session(proxy, name, context)
        for worker in proxy.workers():
            with (
                proxy.alone(worker),
                pytest.raises(ssl.SSLError, match="alert"),
                proxy.open("members.test", context, session) as client,
            ):
                ask(client, "members.test")

    def test_of_another_name_are_not_resumed_where_the_client_is_welcome(
        self, proxy: Proxy, authority: trustme.CA, version: str
    ) -> None:
        context = context_of(authority, members, version)
        session = self.session(proxy, "again.test", context)
        for worker in proxy.workers():
            with proxy.alone(worker), proxy.open("members.test", context, session) as client:
                assert ask(client, "members.test") == 200
                assert not client.session_reused
