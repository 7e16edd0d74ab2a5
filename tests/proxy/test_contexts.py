from __future__ import annotations

import os
import socket
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from tests.proxy.echo import EchoWorker, bundle, client_context
from tests.proxy.test_tls import tls_client
from tlsproxy.errors import CertificateError
from tlsproxy.proxy.choice import UNKNOWN_NAME, UNUSABLE
from tlsproxy.proxy.contexts import ContextTable
from tlsproxy.proxy.sitetls import ServerContext, SiteTls, TlsPolicy, alpn_protocols
from tlsproxy.wire.clienthello import ClientHello

AUTHORITY = trustme.CA()
CLIENTS_A, CLIENTS_B = trustme.CA(), trustme.CA()
A = SiteTls(("a.test", "also-a.test"), (bundle(AUTHORITY, "a.test", "also-a.test"),))
WILD = SiteTls(("*.w.test",), (bundle(AUTHORITY, "*.w.test"),))
EXACT = SiteTls(("x.w.test",), (bundle(AUTHORITY, "x.w.test"),))
MTLS = SiteTls(("m.test",), (bundle(AUTHORITY, "m.test"),), CLIENTS_A.cert_pem.bytes().decode(), "require")
MTLS_B = SiteTls(("n.test",), (bundle(AUTHORITY, "n.test"),), CLIENTS_B.cert_pem.bytes().decode(), "require")
SITES = (A, WILD, EXACT, MTLS, MTLS_B)


def hello(name: str | None) -> ClientHello:
    return ClientHello(name, (), (0x0304,))


def chosen(table: ContextTable, name: str | None, address: str = "") -> ServerContext:
    context = table.choose(hello(name), address)
    assert isinstance(context, ServerContext)
    return context


class TestChoose:
    def test_exact_before_wildcard_by_one_label(self) -> None:
        table = ContextTable(SITES)
        assert chosen(table, "a.test") is chosen(table, "also-a.test")
        assert chosen(table, "y.w.test") is chosen(table, "z.w.test")
        assert chosen(table, "x.w.test") is not chosen(table, "y.w.test")

    @pytest.mark.parametrize("name", ["b.test", "w.test", "a.b.w.test", "test", "", None])
    def test_the_rest_is_the_default_s_or_nobody_s(self, name: str | None) -> None:
        assert ContextTable(SITES).choose(hello(name)) is UNKNOWN_NAME
        table = ContextTable(SITES, default_host="a.test")
        assert chosen(table, name) is chosen(table, "a.test")

    def test_contexts_are_built_when_asked_for_and_kept(self) -> None:
        table = ContextTable(SITES)
        assert repr(table) == "<ContextTable 5 sites, 0 built>"
        assert chosen(table, "a.test") is chosen(table, "a.test")
        assert repr(table) == "<ContextTable 5 sites, 1 built>"

    def test_a_site_without_certificate_refuses(self) -> None:
        assert ContextTable([SiteTls(("a.test",), ())]).choose(hello("a.test")) is UNKNOWN_NAME

    def test_no_descriptor_stays_open(self) -> None:
        descriptors = Path("/proc/self/fd")
        before = len(list(descriptors.iterdir()))
        chosen(ContextTable(SITES), "a.test")
        assert len(list(descriptors.iterdir())) == before


class TestAddresses:
    """`https://127.0.0.1/`: such a client names nobody, so what it called decides."""

    SITES = (SiteTls(("10.0.0.1",), A.bundles), SiteTls(("::1",), MTLS.bundles, MTLS.client_ca_pem, "request"))

    def test_an_address_is_asked_for_without_a_name(self) -> None:
        table = ContextTable([A, *self.SITES], default_host="a.test")
        assert table.choose(hello(None), "10.0.0.1") is not chosen(table, "a.test")
        assert table.choose(hello(None), "10.0.0.2") is chosen(table, "a.test")
        assert table.choose(hello("a.test"), "10.0.0.1") is chosen(table, "a.test")
        assert ContextTable(self.SITES).choose(hello(None), "10.0.0.2") is UNKNOWN_NAME

    def test_the_site_of_the_address_may_use_the_connection_and_no_other(self) -> None:
        table = ContextTable(self.SITES)
        policy = table.policy_for("::1")
        assert policy is not None
        assert chosen(table, None, "::1").site == "::1"
        assert table.may_serve(policy, "::1", "::1")
        assert not table.may_serve(policy, "::1", "10.0.0.1")
        assert not table.may_serve(policy, "", "::1")


class TestReplace:
    def test_new_connections_get_the_new_certificate_and_old_ones_stay(self) -> None:
        with EchoWorker([A]) as worker, tls_client(worker, context=client_context(AUTHORITY)) as old:
            renewed = bundle(AUTHORITY, "a.test")
            worker.call(lambda: worker.contexts.replace(["also-a.test"], (renewed,)))
            with tls_client(worker, context=client_context(AUTHORITY)) as new:
                assert int(new.getpeercert()["serialNumber"], 16) == int(renewed.serial, 16)  # type: ignore[index,arg-type]
            old.sendall(b"x")
            assert old.recv(1) == b"x"

    def test_a_broken_bundle_changes_nothing(self) -> None:
        table = ContextTable([A])
        before = chosen(table, "a.test")
        broken = replace(A.bundles[0], key_pem=bundle(AUTHORITY, "a.test").key_pem)
        with pytest.raises(CertificateError, match=r"a\.test: OpenSSL refuses the certificate or its key \(KEY_VALUES"):
            table.replace(["a.test"], (broken,))
        assert chosen(table, "a.test") is before

    def test_an_unknown_host_is_nobody_s(self) -> None:
        ContextTable([A]).replace(["b.test"], A.bundles)


class TestPolicies:
    def test_policy_for(self) -> None:
        table = ContextTable([*SITES, SiteTls(("new.test",), (), minimum_version="1.3")])
        assert table.policy_for("also-a.test") == TlsPolicy()
        assert table.policy_for("new.test") == TlsPolicy("1.3")
        assert table.policy_for("unknown.test") is None
        assert table.policy_for("m.test") != table.policy_for("n.test")

    @pytest.mark.parametrize(
        ("sni", "host", "allowed"),
        [
            ("a.test", "also-a.test", True),
            ("a.test", "y.w.test", True),
            ("a.test", "m.test", False),
            ("m.test", "a.test", False),
            ("m.test", "n.test", False),
            ("m.test", "also-m.test", True),
            ("m.test", "same-ca.test", False),
            ("a.test", "only-13.test", False),
            ("a.test", "unknown.test", False),
            ("", "a.test", True),
            ("", "also-m.test", False),
        ],
    )
    def test_may_serve(self, sni: str, host: str, allowed: bool) -> None:
        sites = [
            A,
            WILD,
            replace(MTLS, hosts=("m.test", "also-m.test")),
            replace(MTLS, hosts=("same-ca.test",)),
            MTLS_B,
            replace(A, hosts=("only-13.test",), minimum_version="1.3"),
        ]
        table = ContextTable(sites, default_host="a.test")
        context = chosen(table, sni or None)
        assert table.may_serve(context.policy, context.site, host) is allowed

    def test_a_context_knows_the_site_that_it_was_chosen_for(self) -> None:
        table = ContextTable(SITES, default_host="x.w.test")
        names = ("also-a.test", "y.w.test", "x.w.test", "nobody.test", None)
        assert [chosen(table, name).site for name in names] == [
            "a.test",
            "*.w.test",
            "x.w.test",
            "x.w.test",
            "x.w.test",
        ]
        table.replace(["also-a.test"], A.bundles)
        assert chosen(table, "also-a.test").site == "a.test"


class TestContext:
    def test_is_mozilla_intermediate(self) -> None:
        context = chosen(ContextTable([A]), "a.test").ssl
        old = [cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] == "TLSv1.2"]
        assert set(old) == {
            f"ECDHE-{signature}-{sealing}"
            for signature in ("ECDSA", "RSA")
            for sealing in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
        }
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_CIPHER_SERVER_PREFERENCE  # with ChaCha20 for those who put it first
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert context.options & ssl.OP_NO_COMPRESSION

    def test_a_site_may_ask_for_tls_1_3(self) -> None:
        with EchoWorker([replace(A, minimum_version="1.3")]) as worker:
            with pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
                tls_client(worker, context=client_context(AUTHORITY, "1.2"))
            with tls_client(worker, context=client_context(AUTHORITY)) as client:
                assert client.version() == "TLSv1.3"

    @pytest.mark.parametrize(
        ("offered", "taken", "taken_without_http2"),
        [
            (("h2", "http/1.1"), "h2", "http/1.1"),
            (("http/1.1", "h2"), "h2", "http/1.1"),  # the order is ours
            (("http/1.0", "http/1.1"), "http/1.1", "http/1.1"),
            (("http/1.0",), "http/1.0", "http/1.0"),
            ((), None, None),
        ],
    )
    def test_the_newest_protocol_that_both_speak(
        self, offered: tuple[str, ...], taken: str | None, taken_without_http2: str | None
    ) -> None:
        context = client_context(AUTHORITY)
        context.set_alpn_protocols(offered)
        for http2, expected in ((True, taken), (False, taken_without_http2)):
            table = ContextTable([A], alpn=alpn_protocols(http2=http2))
            with EchoWorker(contexts=table) as worker, tls_client(worker, context=context) as client:
                assert client.selected_alpn_protocol() == expected

    @pytest.mark.parametrize(("http2", "offered"), [(True, ("h3", "spdy/3")), (False, ("h2",))])
    def test_a_client_with_no_protocol_of_ours_is_told_so(self, http2: bool, offered: tuple[str, ...]) -> None:
        context = client_context(AUTHORITY)
        context.set_alpn_protocols(offered)
        table = ContextTable([A], alpn=alpn_protocols(http2=http2))
        with EchoWorker(contexts=table) as worker, pytest.raises(ssl.SSLError, match="no application protocol"):
            tls_client(worker, context=context)

    def test_rsa_and_ecdsa_under_one_name(self) -> None:
        pair = (bundle(AUTHORITY, "a.test"), bundle(AUTHORITY, "a.test", rsa=True))
        with EchoWorker([replace(A, bundles=pair)]) as worker:
            for kind in ("RSA", "ECDSA"):
                context = client_context(AUTHORITY, "1.2")
                context.set_ciphers(f"ECDHE-{kind}-AES128-GCM-SHA256")
                with tls_client(worker, context=context) as client:
                    assert client.cipher()[0] == f"ECDHE-{kind}-AES128-GCM-SHA256"  # type: ignore[index]

    @pytest.mark.parametrize(
        ("offered", "taken"),
        [
            ("CHACHA20-POLY1305 AES128-GCM-SHA256", "CHACHA20-POLY1305"),
            ("AES256-GCM-SHA384 AES128-GCM-SHA256", "AES128-GCM-SHA256"),
            ("AES128-GCM-SHA256 CHACHA20-POLY1305", "AES128-GCM-SHA256"),
        ],
    )
    def test_the_order_is_ours_but_chacha_is_for_who_puts_it_first(self, offered: str, taken: str) -> None:
        context = client_context(AUTHORITY, "1.2")
        context.set_ciphers(":".join(f"ECDHE-ECDSA-{name}" for name in offered.split()))
        with EchoWorker([A]) as worker, tls_client(worker, context=context) as client:
            assert client.cipher()[0] == f"ECDHE-ECDSA-{taken}"  # type: ignore[index]

    @pytest.mark.parametrize(
        ("client_ca", "problem"), [(None, "client_auth needs client_ca"), ("nonsense", "no usable CA")]
    )
    def test_client_auth_without_a_ca_is_an_error(
        self, client_ca: str | None, problem: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        table = ContextTable([replace(MTLS, client_ca_pem=client_ca)])
        assert [table.choose(hello("m.test")) for _ in range(3)] == [UNUSABLE] * 3
        [line] = caplog.records
        assert (line.message, problem in line.error) == ("certificate.unusable", True)  # type: ignore[attr-defined]


def with_certificate(authority: trustme.CA, version: str) -> ssl.SSLContext:
    context = client_context(AUTHORITY, version)
    authority.issue_cert("client@a.test").configure_cert(context)
    return context


def begin(worker: EchoWorker, name: str, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> str:
    """Connect and echo a byte. Returns "new" or "resumed"; raises as the client sees it."""
    raw = socket.create_connection(("127.0.0.1", worker.port), timeout=5)
    with context.wrap_socket(raw, server_hostname=name, session=session, suppress_ragged_eofs=False) as client:
        client.sendall(b"x")
        if client.recv(1) != b"x":
            raise ssl.SSLError("refused")
        begin.session = client.session  # type: ignore[attr-defined]
        return "resumed" if client.session_reused else "new"


def session_of(worker: EchoWorker, name: str, context: ssl.SSLContext) -> ssl.SSLSession:
    assert begin(worker, name, context) == "new"
    session: ssl.SSLSession = begin.session  # type: ignore[attr-defined]
    assert session.has_ticket
    return session


@pytest.mark.parametrize("version", ["1.2", "1.3"])
class TestClientCertificates:
    """The attacks of CVE-2025-23419: a session of one name carried to another."""

    def test_require_and_request(self, version: str) -> None:
        with EchoWorker([MTLS, replace(MTLS, hosts=("m2.test",), client_auth="request")]) as worker:
            assert begin(worker, "m.test", with_certificate(CLIENTS_A, version)) == "new"
            certificate = worker.drivers[0].stream.info.client_certificate
            assert certificate is not None
            assert b"client@a.test" in certificate
            with pytest.raises(ssl.SSLError):
                begin(worker, "m.test", client_context(AUTHORITY, version))
            with pytest.raises(ssl.SSLError):
                begin(worker, "m.test", with_certificate(CLIENTS_B, version))
            assert [reason for reason, *_ in worker.failures] == [
                "peer did not return a certificate",
                "certificate verify failed",
            ]

    def test_request_takes_a_client_without_one(self, version: str) -> None:
        with EchoWorker([replace(MTLS, client_auth="request")]) as worker:
            assert begin(worker, "m.test", client_context(AUTHORITY, version)) == "new"
            assert worker.drivers[0].stream.info.client_certificate is None
            with pytest.raises(ssl.SSLError):
                begin(worker, "m.test", with_certificate(CLIENTS_B, version))

    def test_the_name_decides_whatever_the_default_is(self, version: str) -> None:
        """No certificate is asked for under the default name; under the other one it can't be skipped."""
        with EchoWorker([A, MTLS], default_host="a.test") as worker:
            assert begin(worker, "a.test", client_context(AUTHORITY, version)) == "new"
            with pytest.raises(ssl.SSLError):
                begin(worker, "m.test", client_context(AUTHORITY, version))

    def test_a_session_resumes_under_its_own_name(self, version: str) -> None:
        with EchoWorker([MTLS]) as worker:
            context = with_certificate(CLIENTS_A, version)
            session = session_of(worker, "m.test", context)
            assert begin(worker, "m.test", context, session) == "resumed"
            first, second = (driver.stream.info for driver in worker.drivers)
            assert second.resumed
            assert first.client_certificate == second.client_certificate is not None

    def test_a_session_of_another_ca_is_worth_nothing(self, version: str) -> None:
        with EchoWorker([MTLS, MTLS_B]) as worker:
            context = with_certificate(CLIENTS_A, version)
            session = session_of(worker, "m.test", context)
            with pytest.raises(ssl.SSLError):
                begin(worker, "n.test", context, session)

    def test_a_session_without_certificate_is_worth_nothing(self, version: str) -> None:
        with EchoWorker([A, MTLS]) as worker:
            context = client_context(AUTHORITY, version)
            session = session_of(worker, "a.test", context)
            with pytest.raises(ssl.SSLError):
                begin(worker, "m.test", context, session)

    def test_nor_is_one_from_before_the_rules_changed(self, version: str) -> None:
        """A new generation asks for certificates: the tickets of the old one, same name and secret, are void."""
        secret = bytes(32)
        context = client_context(AUTHORITY, version)
        with EchoWorker(contexts=ContextTable([replace(A, hosts=("m.test",))], ticket_secret=secret)) as worker:
            context.check_hostname = False
            session = session_of(worker, "m.test", context)
        with EchoWorker(contexts=ContextTable([MTLS], ticket_secret=secret)) as worker, pytest.raises(ssl.SSLError):
            begin(worker, "m.test", context, session)

    def test_no_session_crosses_names_even_without_client_certificates(self, version: str) -> None:
        with EchoWorker([A, WILD]) as worker:
            context = client_context(AUTHORITY, version)
            session = session_of(worker, "a.test", context)
            assert begin(worker, "y.w.test", context, session) == "new"


def test_a_key_file_is_read_from_memory_after_privileges_are_dropped(tmp_path: Path) -> None:
    """/proc/self/fd belongs to root then; a process may look into its own all the same."""
    if os.getuid() != 0:
        pytest.skip("needs root to give privileges up")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgid(65_534)
            os.setuid(65_534)
            code = 0 if isinstance(ContextTable([A]).choose(hello("a.test")), ServerContext) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
