"""A worker whose certificates come from an ACME CA: not there yet, there, changed, expired, dropped while in use."""

from __future__ import annotations

import logging
import socket
import ssl

import pytest

from tests.fakes.backend import OK, Backend
from tests.fakes.peer import Peer
from tests.fakes.stage import Json, Stage, authority, issue, issued
from tests.store.pki import issue as self_issue
from tlsproxy.errors import StoreError
from tlsproxy.proxy.front import Front

A, B, C = "a.example.com", "b.example.com", "c.example.com"


def serve(stage: Stage, *hosts: str, backend: Backend | None = None, **sections: Json) -> Front:
    """A Front with one site per host, all with a certificate of an ACME CA."""
    url = (backend or stage.backend()).url
    sites: list[Json] = [{"hosts": [host], "certificate": "acme", "backends": [url]} for host in hosts]
    return stage.serve(sites=sites, **sections)


def refused(stage: Stage, host: str) -> bool:
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        stage.connect(host)
    return True


def serial(peer: Peer) -> str:
    assert isinstance(peer.sock, ssl.SSLSocket)
    certificate = peer.sock.getpeercert()
    assert certificate
    return str(certificate["serialNumber"]).lstrip("0").lower()


def exchange(client: Peer, backend: Backend, host: str) -> bytes:
    client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host.encode())
    upstream = backend.accept()
    upstream.message()
    upstream.send(OK)
    return client.message().body


def test_what_is_not_there_yet_is_refused_with_words_and_then_served(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    serve(stage, A)
    for _ in range(3):
        assert refused(stage, A)
    [line] = [record for record in caplog.records if record.name.startswith("tlsproxy.proxy")]
    assert (line.message, line.site) == ("certificate.pending", A)  # type: ignore[attr-defined]
    stage.store.put(f"acme/{A}", issued(A))
    assert stage.call(lambda: stage.front.certificates_changed([f"acme/{A}"])) == []
    stage.connect(A)


def test_a_renewed_one_is_for_new_connections_and_live_ones_go_on(stage: Stage) -> None:
    backend = stage.backend()
    serve(stage, A, backend=backend)
    old, new = issued(A), issue(A)
    stage.store.put(f"acme/{A}", old)
    client = stage.connect(A)
    stage.store.put(f"acme/{A}", new)
    assert serial(stage.connect(A)) == old.serial
    assert stage.call(lambda: stage.front.certificates_changed([f"acme/{A}"])) == []
    assert serial(stage.connect(A)) == new.serial
    assert exchange(client, backend, A) == b"ok"


def test_a_message_that_was_lost_is_made_up_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(stage, A, B)
    stage.store.put(f"acme/{A}", issued(A))
    stage.connect(A)
    assert refused(stage, B)
    new = issue(A)
    stage.store.put(f"acme/{A}", new)
    stage.store.put(f"acme/{B}", issued(B))
    poll_now(stage)
    assert serial(stage.connect(A)) == new.serial
    stage.connect(B)


def poll_now(stage: Stage) -> None:
    """What the tick does every half minute."""
    certificates = stage.front._certificates

    def run() -> None:
        certificates._poll_at = 0.0
        certificates.tick()

    stage.call(run)


def test_a_store_that_can_not_tell_is_said_and_costs_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    serve(stage, A)
    stage.store.put(f"acme/{A}", issued(A))
    stage.connect(A)

    def fail(*_: object) -> str:
        raise StoreError("the disk is gone")

    monkeypatch.setattr(stage.store.records, "version", fail)
    for _ in range(3):
        poll_now(stage)
    [line] = [record for record in caplog.records if record.message == "certificate.poll_failed"]
    assert line.error == "the disk is gone"  # type: ignore[attr-defined]
    stage.connect(A)


def test_nothing_is_read_at_the_start(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    records = stage.store.records
    original = records.read

    def watch(key: str) -> bytes | None:
        read.append(key)
        return original(key)

    monkeypatch.setattr(records, "read", watch)
    for host in (A, B, C):
        stage.store.put(f"acme/{host}", issued(host))
    serve(stage, A, B, C)
    stage.call(lambda: stage.front.certificates_changed([f"acme/{host}" for host in (A, B, C)]))
    stage.call(lambda: stage.front.certificates_changed([]))
    poll_now(stage)
    assert read == []
    stage.connect(B)
    assert read == [f"certificates/acme/{B}"]


def test_an_expired_one_is_better_than_nothing(stage: Stage) -> None:
    serve(stage, A)
    expired = self_issue(A, days=(-30, -1))
    stage.store.put(f"acme/{A}", expired.bundle())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(stage.dial(), server_hostname=A) as client:
        seen = client.getpeercert(binary_form=True)
    assert seen == ssl.PEM_cert_to_DER_cert(expired.pem.decode())


def test_hosts_that_the_certificate_does_not_cover_yet_wait_alone(stage: Stage) -> None:
    stage.serve(sites=[{"hosts": [A, B], "certificate": "acme", "backends": ["http://127.0.0.1:9"]}])
    stage.store.put(f"acme/{A}", issued(A))
    stage.connect(A)
    assert refused(stage, B)
    stage.store.put(f"acme/{A}", issued(A, B))
    stage.call(lambda: stage.front.certificates_changed([f"acme/{A}"]))
    stage.connect(B)


class TestContextsThatAreDropped:
    def test_their_connections_go_on(self, stage: Stage) -> None:
        backend = stage.backend()
        serve(stage, A, B, C, backend=backend, limits={"contexts": 1})
        for host in (A, B, C):
            stage.store.put(f"acme/{host}", issued(host))
        first, _, last = [stage.connect(host) for host in (A, B, C)]
        assert stage.call(stage.front.stats)["contexts"] == 1
        assert exchange(first, backend, A) == b"ok"
        first.send(b"GET / HTTP/1.1\r\nHost: nobody.example.com\r\n\r\n")
        assert first.message().status == 421
        last.send(b"GET / HTTP/1.1\r\nHost: nobody.example.com\r\n\r\n")
        assert last.message().status == 421

    def test_a_handshake_in_progress_goes_on(self, stage: Stage) -> None:
        serve(stage, A, B, limits={"contexts": 1})
        for host in (A, B):
            stage.store.put(f"acme/{host}", issued(host))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context()
        authority().configure_trust(context)
        client = context.wrap_bio(incoming, outgoing, server_hostname=A)
        with stage.dial() as raw:
            handshake_step(client, incoming, outgoing, raw)  # the ServerHello is here, our Finished is not sent
            stage.connect(B)
            assert stage.call(stage.front.stats)["contexts"] == 1
            while not handshake_step(client, incoming, outgoing, raw):
                pass
            assert client.getpeercert()["subjectAltName"] == (("DNS", A),)  # type: ignore[index]

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_their_tickets_are_good_for_the_next(self, stage: Stage, version: ssl.TLSVersion) -> None:
        backend = stage.backend()
        serve(stage, A, B, backend=backend, limits={"contexts": 1})
        for host in (A, B):
            stage.store.put(f"acme/{host}", issued(host))
        context = ssl.create_default_context()
        authority().configure_trust(context)
        context.minimum_version = context.maximum_version = version
        with context.wrap_socket(stage.dial(), server_hostname=A) as first:
            assert exchange(Peer(first), backend, A) == b"ok"
            session = first.session
        stage.connect(B)
        with context.wrap_socket(stage.dial(), server_hostname=A, session=session) as second:
            assert second.session_reused


def handshake_step(client: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, raw: socket.socket) -> bool:
    """Go on until bytes of the server are needed, and fetch them. True when the handshake is complete."""
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        raw.sendall(outgoing.read())
        incoming.write(raw.recv(65_536))
        return False
    raw.sendall(outgoing.read())
    return True


def test_stats_tell_what_is_ready(stage: Stage) -> None:
    serve(stage, A, B)
    stage.store.put(f"acme/{A}", issued(A))
    ready = {"connections": 0, "log_batches_dropped": 0, "contexts": 0, "names": 2, "waiting": 0}
    assert ready.items() <= stage.call(stage.front.stats).items()
    stage.connect(A)
    assert stage.call(stage.front.stats)["contexts"] == 1
