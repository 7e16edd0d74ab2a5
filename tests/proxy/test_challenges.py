"""A CA comes to see whether we hold a name: HTTP-01 on both ports, TLS-ALPN-01, and nobody else is disturbed."""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fakes.backend import OK
from tests.fakes.clock import Clock
from tests.fakes.peer import Message, Peer
from tests.fakes.stage import Stage, issued
from tests.proxy.test_tls import alert, read_all
from tests.store.pki import issue as self_issue
from tlsproxy.errors import StoreError
from tlsproxy.proxy.challenges import ChallengeAnswers
from tlsproxy.store.base import CertificateStore, open_store
from tlsproxy.store.challenges import Challenges

HOST = "a.example.com"
TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
ANSWER = f"{TOKEN}.nP1qzpXGymHBrUEepNY9HCsQk7K8KhOypzEt62jcerQ"
PATH = f"/.well-known/acme-challenge/{TOKEN}".encode()
SOON = timedelta(minutes=5)


def now() -> datetime:
    return datetime.now(UTC)


def serve(stage: Stage, backend_url: str = "http://127.0.0.1:9") -> Challenges:
    stage.serve(sites=[{"hosts": [HOST], "certificate": "acme", "backends": [backend_url], "hsts": "1y"}])
    stage.store.put(f"acme/{HOST}", issued(HOST))
    return Challenges(stage.store)


def ask(client: Peer, target: bytes = PATH, host: bytes = HOST.encode(), method: bytes = b"GET") -> Message:
    client.send(b"%b %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (method, target, host))
    return client.message(bodiless=method == b"HEAD")


class TestHttp01:
    @pytest.mark.parametrize("host", [HOST, "192.0.2.1", "[2001:db8::1]", "nobody.example.com", f"{HOST}:80"])
    def test_is_answered_whatever_the_host(self, stage: Stage, host: str) -> None:
        serve(stage).put_http(TOKEN, ANSWER, now() + SOON)
        answer = ask(stage.connect_plain(), host=host.encode())
        assert (answer.status, answer.body) == (200, ANSWER.encode())
        assert answer.get("content-type") == b"text/plain"
        assert answer.get("cache-control") == b"no-store"
        assert answer.get("strict-transport-security") is None
        [line] = stage.log()
        assert (line["status"], line["site"]) == (200, None)

    def test_and_over_tls_for_a_ca_that_was_redirected(self, stage: Stage) -> None:
        serve(stage).put_http(TOKEN, ANSWER, now() + SOON)
        client = stage.connect(HOST)
        assert ask(client).body == ANSWER.encode()
        assert ask(client, method=b"HEAD").get("content-length") == b"%d" % len(ANSWER)

    def test_a_token_of_somebody_else_is_redirected_and_forwarded_as_ever(self, stage: Stage) -> None:
        """The application behind us may run an ACME client of its own."""
        backend = stage.backend()
        serve(stage, backend.url).put_http(TOKEN, ANSWER, now() + SOON)
        theirs = PATH + b"x"
        plain = stage.connect_plain()
        assert ask(plain, theirs).get("location") == b"https://%b:%d%b" % (HOST.encode(), stage.port, theirs)
        assert ask(plain, theirs, b"nobody.example.com").status == 404
        client = stage.connect(HOST)
        client.send(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (theirs, HOST.encode()))
        upstream = backend.accept()
        assert upstream.message().target == theirs
        upstream.send(OK)
        assert client.message().body == b"ok"

    @pytest.mark.parametrize(
        ("target", "method"),
        [
            (PATH, b"POST"),
            (PATH + b"?", b"GET"),
            (PATH + b"/", b"GET"),
            (PATH.replace(b"evaG", b"%65vaG"), b"GET"),
            (b"/.well-known/acme-challenge/", b"GET"),
            (b"/.well-known/acme-challenge/../certificates", b"GET"),
            (b"/.well-known/acme-challenge/\xff", b"GET"),
            (b"/.well-known/acme-challenges/" + TOKEN.encode(), b"GET"),
        ],
    )
    def test_what_no_ca_asks_is_not_answered(self, stage: Stage, target: bytes, method: bytes) -> None:
        serve(stage).put_http(TOKEN, ANSWER, now() + SOON)
        assert ask(stage.connect_plain(), target, method=method).status in {308, 400}

    def test_an_answer_is_good_until_it_expires_or_is_removed(self, stage: Stage) -> None:
        challenges = serve(stage)
        client = stage.connect_plain()
        challenges.put_http(TOKEN, ANSWER, now() - timedelta(seconds=1))
        assert ask(client).status == 308
        challenges.put_http(TOKEN, ANSWER, now() + SOON)
        assert ask(client).status == 200
        challenges.remove_http(TOKEN)
        assert ask(client).status == 308

    @pytest.mark.parametrize("what", ["version", "keys", "read"])
    def test_a_store_in_trouble_answers_nothing_and_says_so_once(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
    ) -> None:
        serve(stage).put_http(TOKEN, ANSWER, now() + SOON)

        def fail(_: str) -> bytes:
            raise StoreError("the disk is gone")

        monkeypatch.setattr(stage.store.records, what, fail)
        client = stage.connect_plain()
        assert [ask(client).status for _ in range(3)] == [308] * 3
        [line] = caplog.records
        assert (line.message, line.error) == ("challenge.unusable", "the disk is gone")  # type: ignore[attr-defined]

    @pytest.mark.parametrize("record", [{}, {"expires": "tomorrow"}, {"expires": "2099-01-01T00:00:00+00:00"}])
    def test_a_damaged_answer_is_none(self, record: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
        store = open_store("memory:")
        store.put_record("challenges", f"http-01/{TOKEN}", record)
        store.put_record("challenges", f"tls-alpn-01/{HOST}", record)
        answers = ChallengeAnswers(Challenges(store))
        assert answers.http(PATH) is None
        assert [line.message for line in caplog.records] == ["challenge.unusable"]
        with pytest.raises(StoreError, match=r"damaged"):
            answers.tls_alpn(HOST)

    def test_other_records_are_out_of_reach(self, tmp_path: Path) -> None:
        """Whatever the token says, it names a challenge or nothing."""
        store = open_store(f"file://{tmp_path}/store")
        store.put("acme/x", issued(HOST))
        store.put_record("accounts", "x", {"answer": "secret", "expires": (now() + SOON).isoformat()})
        answers = ChallengeAnswers(Challenges(store))
        for token in (b"../../accounts/x", b"..%2f..%2faccounts%2fx", b"../accounts/x.json", b"x\x00", b"", b"." * 300):
            assert answers.http(b"/.well-known/acme-challenge/" + token) is None
        for name in ("../accounts/x", "x/../../certificates/acme%2Fx", "", "a..b", "\x00"):
            assert answers.tls_alpn(name) is None


class TestAFlood:
    """Strangers ask as often as they like."""

    def flood(self, answers: ChallengeAnswers) -> None:
        for number in range(2000):
            assert answers.http(PATH[:-1] + b"%d" % number) is None
            assert answers.tls_alpn(f"n{number}.test") is None

    def test_costs_no_read_and_hides_no_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store, clock = open_store("memory:"), Clock()
        challenges = Challenges(store)
        answers = ChallengeAnswers(challenges, clock=clock)
        asked: list[str] = []
        watch(monkeypatch, store, "read", asked)
        watch(monkeypatch, store, "keys", asked)
        assert answers.http(PATH) is None
        clock.now += 1.0
        self.flood(answers)
        assert asked == ["challenges"] * 2
        challenges.put_http(TOKEN, ANSWER, now() + SOON)
        challenges.put_tls_alpn(HOST, self_issue(HOST).bundle(), now() + SOON)
        assert answers.http(PATH) == ANSWER.encode()
        assert answers.tls_alpn(HOST) is not None
        assert asked == ["challenges"] * 3 + [f"challenges/http-01/{TOKEN}", f"challenges/tls-alpn-01/{HOST}"]

    def test_of_more_questions_than_are_listed_is_looked_up_at_a_limited_rate(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tlsproxy.proxy.challenges._MOST_EXPECTED", 1)
        store = open_store("memory:")
        challenges = Challenges(store)
        for token in (TOKEN, "other"):
            challenges.put_http(token, ANSWER, now() + SOON)
        asked: list[str] = []
        watch(monkeypatch, store, "read", asked)
        watch(monkeypatch, store, "keys", asked)
        answers = ChallengeAnswers(challenges, clock=lambda: 0.0)
        assert answers.http(PATH) == ANSWER.encode()
        self.flood(answers)
        kinds = [question.rpartition("/")[0] for question in asked]
        assert [kinds.count(f"challenges/{kind}") for kind in ("http-01", "tls-alpn-01")] == [1000, 1000]
        assert asked.count("challenges") == 1
        challenges.remove_http("other")
        assert answers.http(PATH) == ANSWER.encode()


def watch(monkeypatch: pytest.MonkeyPatch, store: CertificateStore, method: str, asked: list[str]) -> None:
    """Note what the store's records are asked by this method."""
    original = getattr(store.records, method)

    def note(key: str) -> object:
        asked.append(key)
        return original(key)

    monkeypatch.setattr(store.records, method, note)


def test_an_answer_is_found_that_hides_behind_another_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put in the same tick of the kernel: the folder's time of change is as it was."""
    store, clock = open_store("memory:"), Clock()
    monkeypatch.setattr(store.records, "version", lambda _: "the same")
    challenges = Challenges(store)
    answers = ChallengeAnswers(challenges, clock=clock)
    assert answers.http(PATH) is None
    assert answers.tls_alpn(HOST) is None
    challenges.put_http(TOKEN, ANSWER, now() + SOON)
    challenges.put_tls_alpn(HOST, self_issue(HOST).bundle(), now() + SOON)
    clock.now += 1.5  # whenever it is asked for
    assert answers.http(PATH) == ANSWER.encode()
    assert answers.tls_alpn(HOST) is not None


def test_an_answer_is_found_as_soon_as_it_was_put(tmp_path: Path) -> None:
    challenges = Challenges(open_store(f"file://{tmp_path}/store"))
    answers = ChallengeAnswers(challenges)
    for number in range(100):
        challenges.put_http(f"{number}", ANSWER, now() + SOON)
        assert answers.http(b"/.well-known/acme-challenge/%d" % number) == ANSWER.encode()
        assert answers.http(b"/.well-known/acme-challenge/%d" % (number + 1)) is None


def test_nor_does_a_store_that_was_in_trouble_stay_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("memory:")
    challenges = Challenges(store)
    challenges.put_http(TOKEN, ANSWER, now() + SOON)
    answers = ChallengeAnswers(challenges)

    def fail(_: str) -> tuple[str, ...]:
        raise StoreError("the disk is gone")

    with monkeypatch.context() as trouble:
        trouble.setattr(store.records, "keys", fail)
        assert answers.http(PATH) is None
    assert answers.http(PATH) == ANSWER.encode()


def ca_context(*protocols: str) -> ssl.SSLContext:
    """How a CA looks: it verifies nothing but what it wants to find."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols))
    return context


class TestTlsAlpn01:
    CERTIFICATE = self_issue(HOST)

    def begin(self, stage: Stage, *protocols: str, name: str = HOST) -> ssl.SSLSocket:
        return ca_context(*protocols).wrap_socket(stage.dial(), server_hostname=name, suppress_ragged_eofs=False)

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_gets_the_challenge_s_certificate_and_nothing_else(
        self, stage: Stage, version: ssl.TLSVersion, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        challenges = serve(stage)
        challenges.put_tls_alpn(HOST, self.CERTIFICATE.bundle(), now() + SOON)
        context = ca_context("acme-tls/1")
        context.minimum_version = context.maximum_version = version
        with context.wrap_socket(stage.dial(), server_hostname=HOST, suppress_ragged_eofs=False) as client:
            assert client.selected_alpn_protocol() == "acme-tls/1"
            assert client.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(self.CERTIFICATE.pem.decode())
            client.sendall(b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
            assert client.recv(1) == b""  # close_notify, and not a word of HTTP
        assert [line.message for line in caplog.records] == ["challenge.answered"]

    def test_leaves_no_session_behind(self, stage: Stage) -> None:
        """Nobody comes back to resume it."""
        serve(stage).put_tls_alpn(HOST, self.CERTIFICATE.bundle(), now() + SOON)
        with self.begin(stage, "acme-tls/1") as client:
            assert client.version() == "TLSv1.3"
            assert client.recv(1) == b""
            assert client.session is None or not client.session.has_ticket

    def test_while_ordinary_clients_get_the_ordinary_one(self, stage: Stage) -> None:
        challenges = serve(stage)
        challenges.put_tls_alpn(HOST, self.CERTIFICATE.bundle(), now() + SOON)
        self.begin(stage, "acme-tls/1").close()
        for protocols in (("http/1.1",), ("acme-tls/1", "http/1.1"), ("http/1.1", "acme-tls/1")):
            with self.begin(stage, *protocols) as client:
                assert client.selected_alpn_protocol() == "http/1.1"
                assert client.getpeercert(binary_form=True) != ssl.PEM_cert_to_DER_cert(self.CERTIFICATE.pem.decode())
        stage.connect(HOST)

    def test_for_a_name_that_has_no_certificate_yet(self, stage: Stage) -> None:
        challenges = serve(stage)
        stage.store.delete(f"acme/{HOST}")
        challenges.put_tls_alpn(HOST, self.CERTIFICATE.bundle(), now() + SOON)
        self.begin(stage, "acme-tls/1").close()

    def test_the_reverse_name_of_an_address(self, stage: Stage) -> None:
        """RFC 8738 6."""
        name = "1.2.0.192.in-addr.arpa"
        serve(stage).put_tls_alpn(name, self_issue("192.0.2.1").bundle(), now() + SOON)
        self.begin(stage, "acme-tls/1", name=name).close()

    def test_the_next_order_s_certificate_is_the_one_that_counts(self, stage: Stage) -> None:
        challenges = serve(stage)
        for issued_now in (self.CERTIFICATE, self_issue(HOST), self.CERTIFICATE):
            challenges.put_tls_alpn(HOST, issued_now.bundle(), now() + SOON)
            with self.begin(stage, "acme-tls/1") as client:
                assert client.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(issued_now.pem.decode())

    def test_few_of_their_contexts_are_kept(self, stage: Stage) -> None:
        challenges = serve(stage)
        for number in range(12):
            challenges.put_tls_alpn(HOST, self_issue(HOST).bundle(), now() + SOON)
            self.begin(stage, "acme-tls/1").close()
            assert len(stage.front._certificates.challenges._contexts) == min(number + 1, 8)
        assert stage.call(stage.front.stats)["contexts"] == 0  # they are no site's

    @pytest.mark.parametrize("what", ["nothing", "expired", "removed", "another name"])
    def test_without_an_answer_it_is_refused(self, stage: Stage, what: str) -> None:
        challenges = serve(stage)
        if what != "nothing":
            name = HOST if what != "another name" else "b.example.com"
            expires = now() - SOON if what == "expired" else now() + SOON
            challenges.put_tls_alpn(name, self.CERTIFICATE.bundle(), expires)
        if what == "removed":
            challenges.remove_tls_alpn(HOST)
        with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
            self.begin(stage, "acme-tls/1")

    @pytest.mark.parametrize("what", ["version", "keys", "read"])
    def test_a_store_in_trouble_refuses_and_says_so_once(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
    ) -> None:
        serve(stage).put_tls_alpn(HOST, self.CERTIFICATE.bundle(), now() + SOON)

        def fail(_: str) -> bytes:
            raise StoreError("the disk is gone")

        monkeypatch.setattr(stage.store.records, what, fail)
        for _ in range(3):
            with stage.dial() as raw:
                outgoing = ssl.MemoryBIO()
                client = ca_context("acme-tls/1").wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=HOST)
                with pytest.raises(ssl.SSLWantReadError):
                    client.do_handshake()
                raw.sendall(outgoing.read())
                assert read_all(raw) == alert(80)
        [line] = caplog.records
        assert (line.message, line.error) == ("challenge.unusable", "the disk is gone")  # type: ignore[attr-defined]
