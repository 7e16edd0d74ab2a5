"""A handshake that waits for its certificate: alone, bounded, and freed by whatever comes first."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fakes.backend import OK
from tests.fakes.peer import Peer
from tests.fakes.stage import Json, Stage, client_context, issued
from tests.proxy.test_tls import alert, first_flight, read_all
from tests.store.pki import issue as self_issue
from tlsproxy.errors import StoreError
from tlsproxy.proxy.connection import State

HOST, OTHER, FIXED = "new.example.com", "other.example.com", "fixed.example.com"
UNRECOGNIZED, INTERNAL = 112, 80


@pytest.fixture(name="scene")
def _scene(stage: Stage) -> Stage:
    serve(stage)
    return stage


def serve(stage: Stage, *hosts: str, **sections: Json) -> None:
    """A Front for every name there is, beside one ordinary site."""
    backend = stage.backend()
    sites: list[Json] = [
        {"hosts": list(hosts) or ["*"], "certificate": "on_demand", "backends": [backend.url]},
        {"hosts": [FIXED], "certificate": "acme", "backends": [backend.url]},
    ]
    stage.serve(sites=sites, on_demand={"ask": "/may-have-certificate"}, **sections)
    stage.store.put(f"acme/{FIXED}", issued(FIXED))


class Client:
    """A TLS client in a thread of its own, because its handshake waits."""

    def __init__(self, stage: Stage, host: str = HOST) -> None:
        self.outcome = ""
        self.raw = stage.dial()
        self._host = host
        self._thread = threading.Thread(target=self._shake_hands, daemon=True)
        self._thread.start()

    def _shake_hands(self) -> None:
        try:
            with client_context().wrap_socket(self.raw, server_hostname=self._host) as client:
                certificate = client.getpeercert()
                self.outcome = str(certificate and certificate["subjectAltName"])
        except OSError as error:
            self.outcome = str(error).lower().replace("_", " ")

    def result(self) -> str:
        """The certificate's names, or what went wrong."""
        self._thread.join(5)
        assert not self._thread.is_alive(), "the handshake still waits"
        return self.outcome


@contextmanager
def raw_client(stage: Stage, host: str = HOST) -> Iterator[socket.socket]:
    """One that has sent its ClientHello and nothing else."""
    with stage.dial() as raw:
        raw.sendall(first_flight(host, client_context()))
        yield raw


def wait_for(stage: Stage, count: int) -> None:
    """Until so many clients wait."""
    stage.wait(lambda: stage.front.stats()["waiting"] == count)


def arrive(stage: Stage, host: str = HOST) -> None:
    """The certifier has done its work, and says so."""
    stage.store.put(f"acme/{host}", issued(host))
    stage.call(lambda: stage.front.certificates_changed([f"acme/{host}"]))


class TestWaiting:
    def test_ends_with_the_certificate(self, scene: Stage) -> None:
        clients = [Client(scene) for _ in range(3)]
        wait_for(scene, 3)
        assert scene.wanted == [(HOST, "127.0.0.1")]
        arrive(scene)
        assert [client.result() for client in clients] == [f"(('DNS', '{HOST}'),)"] * 3
        wait_for(scene, 0)

    def test_others_go_on_meanwhile(self, scene: Stage) -> None:
        with raw_client(scene):
            wait_for(scene, 1)
            scene.connect(FIXED)
            arrive(scene, OTHER)
            scene.connect(OTHER)
            assert scene.call(scene.front.stats)["waiting"] == 1

    def test_what_the_store_has_is_not_asked_for(self, scene: Stage) -> None:
        scene.store.put(f"acme/{HOST}", issued(HOST))
        scene.connect(HOST)
        assert scene.wanted == []

    def test_the_connection_is_an_ordinary_one_afterwards(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(
            sites=[{"hosts": ["*"], "certificate": "on_demand", "backends": [backend.url]}], on_demand={"ask": "/may"}
        )
        got: list[bytes] = []

        def visit() -> None:
            with client_context().wrap_socket(stage.dial(), server_hostname=HOST) as sock:
                client = Peer(sock)
                client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % HOST.encode())
                got.append(client.message().body)

        visitor = threading.Thread(target=visit, daemon=True)
        visitor.start()
        wait_for(stage, 1)
        stage.tick(after=59.0)  # `limits.handshake_timeout` is no matter here
        arrive(stage)
        upstream = backend.accept()
        assert upstream.message().get("host") == HOST.encode()
        upstream.send(OK)
        visitor.join(5)
        assert got == [b"ok"]

    def test_the_handshake_has_its_own_time_again(self, scene: Stage) -> None:
        with raw_client(scene) as raw:
            wait_for(scene, 1)
            arrive(scene)
            assert raw.recv(1) == b"\x16"  # a ServerHello; the client's Finished does not come
            scene.tick(after=9.0)
            assert scene.call(lambda: len(scene.front.connections)) == 1
            scene.tick(after=11.0)
            scene.wait(lambda: len(scene.front.connections) == 0)

    def test_ends_with_a_refusal_that_is_remembered(self, scene: Stage) -> None:
        with raw_client(scene) as raw:
            wait_for(scene, 1)
            scene.call(lambda: scene.front.certificate_refused(HOST, "the application said no", 60.0))
            assert read_all(raw) == alert(UNRECOGNIZED)
        with raw_client(scene) as raw:
            assert read_all(raw) == alert(UNRECOGNIZED)
        assert len(scene.wanted) == 1
        wait_for(scene, 0)

    def test_a_refused_renewal_takes_nothing_away(self, scene: Stage) -> None:
        """All workers hear of it, also those that have not loaded the certificate."""
        scene.store.put(f"acme/{HOST}", issued(HOST))
        scene.call(lambda: scene.front.certificate_refused(HOST, "the application said no", 60.0))
        scene.connect(HOST)

    def test_a_store_in_trouble_does_not_hold_up_a_refusal(self, scene: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: str) -> bytes:
            raise StoreError("the disk is gone")

        with raw_client(scene) as raw:
            wait_for(scene, 1)
            monkeypatch.setattr(scene.store.records, "read", fail)
            scene.call(lambda: scene.front.certificate_refused(HOST, "the application said no", 60.0))
            assert read_all(raw) == alert(UNRECOGNIZED)

    def test_has_an_end_when_nobody_answers(self, scene: Stage) -> None:
        with raw_client(scene) as raw:
            wait_for(scene, 1)
            scene.tick(after=59.0)
            assert scene.call(scene.front.stats)["waiting"] == 1
            scene.tick(after=60.5)
            assert read_all(raw) == alert(UNRECOGNIZED)
            wait_for(scene, 0)

    def test_ends_when_the_message_is_lost_but_the_store_has_it(self, scene: Stage) -> None:
        client = Client(scene)
        wait_for(scene, 1)
        scene.store.put(f"acme/{HOST}", issued(HOST))
        assert client.result() == f"(('DNS', '{HOST}'),)"  # within a tick of the worker

    def test_and_when_everything_may_have_changed(self, scene: Stage) -> None:
        client = Client(scene)
        with raw_client(scene, OTHER):
            wait_for(scene, 2)
            scene.store.put(f"acme/{HOST}", issued(HOST))
            scene.call(lambda: scene.front.certificates_changed([]))
            assert client.result() == f"(('DNS', '{HOST}'),)"
            assert scene.call(scene.front.stats)["waiting"] == 1
            assert scene.wanted[2:] == [(OTHER, "127.0.0.1")]  # the earlier certifier has died with the question

    def test_an_announcement_without_a_certificate_ends_it(self, scene: Stage) -> None:
        with raw_client(scene) as raw:
            wait_for(scene, 1)
            scene.call(lambda: scene.front.certificates_changed([f"acme/{HOST}"]))
            assert read_all(raw) == alert(UNRECOGNIZED)
            wait_for(scene, 0)

    def test_a_store_that_breaks_meanwhile_ends_it(self, scene: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: str) -> bytes:
            raise StoreError("the disk is gone")

        with raw_client(scene) as raw:
            wait_for(scene, 1)
            monkeypatch.setattr(scene.store.records, "read", fail)
            scene.call(lambda: scene.front.certificates_changed([f"acme/{HOST}"]))
            assert read_all(raw) == alert(INTERNAL)


def test_a_use_that_the_certifier_hears_of_is_told_with_its_client(scene: Stage) -> None:
    scene.store.put(f"acme/{HOST}", self_issue(HOST, days=(-60, 30)).bundle())
    with raw_client(scene) as raw:
        assert raw.recv(1) == b"\x16"
    assert scene.wanted == [(HOST, "127.0.0.1")]
    assert scene.call(scene.front.stats)["waiting"] == 0


class TestLeaving:
    @pytest.mark.parametrize("how", ["close", "reset", "half-close"])
    def test_a_client_that_goes_frees_its_place(self, scene: Stage, how: str) -> None:
        with raw_client(scene) as raw:
            wait_for(scene, 1)
            match how:
                case "close":
                    raw.close()
                case "reset":
                    Peer(raw).reset()
                case _:
                    raw.shutdown(socket.SHUT_WR)
            wait_for(scene, 0)
            scene.wait(lambda: len(scene.front.connections) == 0)
        arrive(scene)  # finds nobody, and harms nobody
        scene.connect(HOST)

    def test_one_that_goes_leaves_the_others_waiting(self, scene: Stage) -> None:
        stays = Client(scene)
        with raw_client(scene):
            wait_for(scene, 2)
        wait_for(scene, 1)
        arrive(scene)
        assert stays.result() == f"(('DNS', '{HOST}'),)"

    def test_one_that_sends_on_and_on_is_refused(self, scene: Stage) -> None:
        with raw_client(scene) as raw:
            wait_for(scene, 1)
            raw.sendall(b"\x17\x03\x03\x40\x00" * 7000)
            assert read_all(raw) == alert(10)
            wait_for(scene, 0)

    def test_a_little_more_is_kept_for_the_handshake(self, scene: Stage) -> None:
        with raw_client(scene) as raw:
            wait_for(scene, 1)
            raw.sendall(b"\x14\x03\x03\x00\x01\x01")  # RFC 8446 D.4, early
            arrive(scene)
            assert raw.recv(1) == b"\x16"

    def test_drain_lets_them_wait_as_long_as_the_worker_may(self, scene: Stage) -> None:
        client = Client(scene)
        wait_for(scene, 1)
        end = scene.begin_drain(5.0)
        scene.tick(after=4.0)
        scene.store.put(f"acme/{HOST}", issued(HOST))  # a worker that leaves hears no messages any more
        assert client.result() == f"(('DNS', '{HOST}'),)"
        assert end.result(5) == 0

    def test_and_cuts_them_then(self, scene: Stage) -> None:
        client = Client(scene)
        wait_for(scene, 1)
        assert scene.begin_drain(0.1).result(5) == 1
        assert "reset" in client.result() or "eof" in client.result()
        assert len(scene.front._certificates.room) == 0

    def test_one_that_waits_is_not_shed_for_newcomers(self, scene: Stage) -> None:
        with raw_client(scene):
            wait_for(scene, 1)
            [connection] = scene.call(lambda: list(scene.front.connections))
            assert connection.idle_since is None
            assert connection._state is State.WAITING


class TestLimits:
    def test_ten_of_a_network(self, scene: Stage) -> None:
        waiting = [scene.dial(source=f"127.0.0.{number}") for number in range(10, 20)]
        for number, raw in enumerate(waiting):
            raw.sendall(first_flight(f"n{number}.example.com", client_context()))
        wait_for(scene, 10)
        with raw_client(scene) as raw:
            assert read_all(raw) == alert(INTERNAL)
        stranger = scene.dial(source="127.0.1.1")
        stranger.sendall(first_flight(HOST, client_context()))
        wait_for(scene, 11)
        waiting[0].close()
        wait_for(scene, 10)
        for raw in (*waiting, stranger):
            raw.close()
        wait_for(scene, 0)

    @pytest.mark.parametrize("host", ["192.0.2.1", "a_b.example.com"])
    def test_names_that_nobody_could_certify_are_not_asked_for(self, scene: Stage, host: str) -> None:
        with raw_client(scene, host) as raw:
            assert read_all(raw) == alert(UNRECOGNIZED)
        assert scene.wanted == []

    def test_nor_are_hosts_of_nobody(self, stage: Stage) -> None:
        serve(stage, "*.w.example.com", "x.example.com")
        for host in ("y.example.com", "a.b.w.example.com", "w.example.com"):
            with raw_client(stage, host) as raw:
                assert read_all(raw) == alert(UNRECOGNIZED)
        assert stage.wanted == []
        with raw_client(stage, "x.example.com"), raw_client(stage, "y.w.example.com"):
            wait_for(stage, 2)


class TestRouting:
    def test_the_rest_of_the_names_are_redirected(self, scene: Stage) -> None:
        client = scene.connect_plain()
        client.send(b"GET /x HTTP/1.1\r\nHost: any.where.example.com\r\n\r\n")
        assert client.message().get("location") == b"https://any.where.example.com:%d/x" % scene.port

    @pytest.mark.parametrize("host", [b"192.0.2.1", b"[2001:db8::1]", b"intranet"])
    def test_but_no_address_and_no_bare_name(self, scene: Stage, host: bytes) -> None:
        client = scene.connect_plain()
        client.send(b"GET /x HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
        assert client.message().status == 404

    def test_a_connection_serves_its_own_name_alone(self, scene: Stage) -> None:
        for host in (HOST, OTHER):
            scene.store.put(f"acme/{host}", issued(host))
        client = scene.connect(HOST)
        client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % OTHER.encode())
        assert client.message().status == 421


def test_a_record_may_be_of_a_dropped_context(stage: Stage) -> None:
    """On demand, too, a context that makes room for another comes back from the store."""
    serve(stage, limits={"contexts": 1})
    for host in (HOST, OTHER):
        stage.store.put(f"acme/{host}", issued(host))
    for host in (HOST, OTHER, HOST, FIXED, HOST):
        stage.connect(host)
    assert stage.call(stage.front.stats)["contexts"] == 1
    assert stage.wanted == []


def test_who_speaks_no_http_is_not_worth_a_certificate(scene: Stage) -> None:
    context = client_context_for("imap")
    with scene.dial() as raw:
        raw.sendall(first_flight(HOST, context))
        assert read_all(raw) == alert(120)
    assert scene.wanted == []


def client_context_for(protocol: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols([protocol])
    return context
