from __future__ import annotations

import fcntl
import random
import socket
import ssl
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_network

import pytest
import trustme

from tests.proxy.echo import EchoWorker, bundle, client_context
from tlsproxy.proxy.choice import Choice
from tlsproxy.proxy.contexts import ContextTable
from tlsproxy.proxy.sitetls import SiteTls
from tlsproxy.wire.clienthello import ClientHello

AUTHORITY = trustme.CA()
SITE = SiteTls(("a.test",), (bundle(AUTHORITY, "a.test"),))
TRUSTED = client_context(AUTHORITY)


@pytest.fixture(name="worker")
def _worker() -> Iterator[EchoWorker]:
    with EchoWorker([SITE]) as worker:
        yield worker


def connect(worker: EchoWorker) -> socket.socket:
    return socket.create_connection(("127.0.0.1", worker.port), timeout=5)


def tls_client(worker: EchoWorker, name: str = "a.test", context: ssl.SSLContext = TRUSTED) -> ssl.SSLSocket:
    return context.wrap_socket(connect(worker), server_hostname=name, suppress_ragged_eofs=False)


def read_exactly(client: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size and (more := client.recv(min(size - len(got), 65_536))):
        got += more
    return bytes(got)


def read_all(client: socket.socket) -> bytes:
    got = bytearray()  # joining bytes would be quadratic
    while more := client.recv(65_536):
        got += more
    return bytes(got)


def answer_to(worker: EchoWorker, data: bytes) -> bytes:
    """Everything the worker says to these first bytes, up to its FIN."""
    with connect(worker) as client:
        client.sendall(data)
        return read_all(client)


def alert(description: int) -> bytes:
    return bytes((21, 3, 3, 0, 2, 2, description))


def first_flight(name: str = "a.test", context: ssl.SSLContext = TRUSTED) -> bytes:
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


class TestBytes:
    @pytest.mark.parametrize("version", ["1.2", "1.3"])
    @pytest.mark.parametrize("size", [1, 200, 16_384, 16_385, 1_000_000])
    def test_echo(self, worker: EchoWorker, version: str, size: int) -> None:
        data = bytes(i & 0xFF for i in range(size))
        with tls_client(worker, context=client_context(AUTHORITY, version)) as client:
            received = b""
            for start in range(0, size, 100_000):
                part = data[start : start + 100_000]
                client.sendall(part)
                received += read_exactly(client, len(part))
            assert received == data

    def test_a_record_may_come_in_any_pieces(self, worker: EchoWorker) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = TRUSTED.wrap_bio(incoming, outgoing, server_hostname="a.test")
        with connect(worker) as raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def flush() -> None:
                for byte in outgoing.read():
                    raw.sendall(bytes((byte,)))

            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    flush()
                    incoming.write(raw.recv(65_536))
            client.write(b"hello ")
            client.write(b"again")
            flush()
            received = b""
            while len(received) < 11:
                incoming.write(raw.recv(65_536))
                try:
                    while True:
                        received += client.read(100)
                except ssl.SSLWantReadError:
                    pass
            assert received == b"hello again"

    def test_a_hello_may_come_in_many_records(self, worker: EchoWorker) -> None:
        message = first_flight()[5:]
        with connect(worker) as raw:
            pieces = [message[start : start + 50] for start in range(0, len(message), 50)]
            raw.sendall(b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2) + piece for piece in pieces))
            header = read_exactly(raw, 6)
            assert (header[0], header[5]) == (22, 2)  # a ServerHello

    def test_what_the_driver_knows(self, worker: EchoWorker) -> None:
        context = client_context(AUTHORITY, "1.3")
        context.set_alpn_protocols(["h2", "http/1.1"])
        with tls_client(worker, "A.Test", context) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            info = worker.drivers[0].stream.info
            assert (info.scheme, info.tls, info.sni, info.alpn) == ("https", "TLSv1.3", "a.test", "http/1.1")
            assert (info.client, info.client_port) == client.getsockname()
            assert (info.server_port, info.resumed, info.client_certificate) == (worker.port, False, None)
            assert info.cipher == client.cipher()[0]  # type: ignore[index]
            assert info.policy == SITE.policy

    def test_protocols_that_nobody_speaks_are_refused(self, worker: EchoWorker) -> None:
        context = client_context(AUTHORITY)
        context.set_alpn_protocols(["h2", "foo"])
        with pytest.raises(ssl.SSLError, match="no application protocol"):
            tls_client(worker, "a.test", context)

    def test_writes_of_one_batch_stay_in_order(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"!two")
            assert read_exactly(client, 7) == b"one two"

    def test_a_paused_driver_gets_nothing_more(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"!pause")
            assert read_exactly(client, 6) == b"paused"
            client.sendall(b"x")
            client.settimeout(0.05)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(5)
            worker.call(worker.drivers[0].stream.resume_reading)
            assert client.recv(1) == b"x"


class TestRefusals:
    def test_an_unknown_name_gets_its_alert(self, worker: EchoWorker) -> None:
        assert answer_to(worker, first_flight("b.test")) == alert(112)
        assert worker.failures == [("unrecognized name", "127.0.0.1", "b.test")]
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized"):
            tls_client(worker, "b.test")

    def test_a_failing_choice_fails_closed(self, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(ContextTable):
            def choose(self, hello: ClientHello, address: str = "", client: str = "") -> Choice:
                raise RuntimeError("no")

        with EchoWorker(contexts=Broken([SITE])) as worker:
            assert answer_to(worker, first_flight()) == alert(80)
            assert [name for name, *_ in worker.failures] == ["no usable certificate"]
        assert [record.message for record in caplog.records] == ["tls.choose_failed"]

    def test_openssl_s_own_alert_is_sent(self, worker: EchoWorker) -> None:
        context = client_context(AUTHORITY, "1.2")
        context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # the certificate is ECDSA
        assert answer_to(worker, first_flight(context=context)) == alert(40)
        assert worker.failures == [("no shared cipher", "127.0.0.1", "a.test")]

    @pytest.mark.parametrize(
        ("data", "description"),
        [
            (b"\x00", 10),
            (b"\x80\x2e\x01\x00\x02", 70),
            (b"\x16\x02\x00", 70),
            (b"SSH-2.0-OpenSSH_9.2\r\n", 10),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", 10),
            (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", 50),
        ],
    )
    def test_garbage_gets_an_alert(self, worker: EchoWorker, data: bytes, description: int) -> None:
        assert answer_to(worker, data) == alert(description)
        assert len(worker.failures) == 1

    def test_the_alert_survives_bytes_behind_the_garbage(self, worker: EchoWorker) -> None:
        assert answer_to(worker, b"\x00" * 500_000) == alert(10)

    @pytest.mark.parametrize(
        "request_line",
        [
            b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\n",
            b"CONNECT a.test:443 HTTP/1.1\r\n",
            b"GET http://a.test/ HTTP/1.0\r\n\r\n",
        ],
    )
    def test_plain_http_gets_a_page(self, worker: EchoWorker, request_line: bytes) -> None:
        answer = answer_to(worker, request_line)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert worker.failures == [("plain HTTP on the TLS port", "127.0.0.1", "")]

    def test_plain_http_may_come_slowly(self, worker: EchoWorker) -> None:
        with connect(worker) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in b"GET / ":
                client.sendall(bytes((byte,)))
            assert read_all(client).startswith(b"HTTP/1.1 400 ")

    def test_a_broken_record_gets_an_alert(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            raw = socket.socket(fileno=client.detach())
        with raw:
            raw.settimeout(5)
            raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            answer = read_all(raw)
            assert answer[-24:-19] == b"\x17\x03\x03\x00\x13"  # sealed: 2 bytes of alert, a type and a tag
        worker.wait(lambda: worker.events == ["lost"])

    def test_no_bytes_reach_an_exception_of_ours(self, worker: EchoWorker, caplog: pytest.LogCaptureFixture) -> None:
        dice = random.Random(2)  # the same bytes in every run
        for _ in range(200):
            data = bytearray(first_flight())
            for _ in range(dice.randrange(1, 8)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            with connect(worker) as client:
                client.sendall(data + dice.randbytes(dice.randrange(50)))
                client.shutdown(socket.SHUT_WR)
                with suppress(ConnectionResetError):
                    read_all(client)
        worker.wait(lambda: not worker.connections)
        assert caplog.records == []

    def test_an_unfinished_handshake_ends_at_its_deadline(self, worker: EchoWorker) -> None:
        with connect(worker) as silent, connect(worker) as partial, connect(worker) as half:
            partial.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
            half.sendall(first_flight())
            assert half.recv(1) == b"\x16"
            worker.wait(lambda: len(worker.connections) == 3)
            worker.tick(after=9.5)
            worker.wait(lambda: len(worker.connections) == 3)
            worker.tick(after=10.5)
            for client in (silent, partial, half):
                with pytest.raises(ConnectionResetError):
                    read_all(client)
        assert [reason for reason, *_ in worker.failures] == ["timeout"] * 3

    def test_a_client_that_leaves_in_the_handshake_is_counted(self, worker: EchoWorker) -> None:
        with connect(worker):
            pass  # a port probe is no failed handshake
        with connect(worker) as client:
            client.sendall(first_flight()[:100])
        worker.wait(lambda: worker.failures == [("connection lost", "127.0.0.1", "")])


class TestEnds:
    def test_close_says_close_notify(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"!close")
            assert read_all(client) == b"bye"  # a ragged end would raise
        worker.wait(lambda: worker.events == ["lost"])

    def test_close_sends_what_is_written(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"!bigclose 20000000")
            assert len(read_all(client)) == 20_000_000

    def test_abort_is_seen(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"!abort")
            with pytest.raises(OSError, match=r"(?i)reset|eof"):
                read_all(client)

    def test_finish_lets_the_answer_arrive(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"!finish")
            worker.wait(lambda: "CLOSING" in repr(next(iter(worker.connections))))
            client.sendall(b"x" * 500_000)  # unread bytes would turn the FIN into an RST
            assert read_all(client) == b"bye"
        worker.wait(lambda: worker.events == ["lost"])

    def test_finish_reads_a_bounded_time(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"!finish")
            assert read_all(client) == b"bye"
            worker.tick(after=1.5)
            worker.wait(lambda: len(worker.connections) == 1)
            worker.tick(after=2.5)
            worker.wait(lambda: not worker.connections)

    def test_finish_reads_bounded_bytes(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"!finish")
            assert read_all(client) == b"bye"
            with socket.socket(fileno=client.detach()) as raw:
                raw.settimeout(5)
                with pytest.raises(OSError, match=r"(?i)reset|pipe"):
                    raw.sendall(b"x" * 50_000_000)

    def test_close_notify_of_the_client(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            with pytest.raises(ssl.SSLError, match="AFTER_CLOSE_NOTIFY"):  # the driver's last words
                client.unwrap()
        worker.wait(lambda: worker.events == ["eof", "lost"])

    def test_a_fin_alone_is_a_truncation(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            client.shutdown(socket.SHUT_WR)
        worker.wait(lambda: worker.events == ["truncated", "lost"])

    def test_a_half_closed_client_gets_its_answer(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            raw = socket.socket(fileno=socket.dup(client.fileno()))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            raw.shutdown(socket.SHUT_WR)
            raw.close()
            assert read_all(client) == b"end"

    def test_a_peer_that_never_reads_is_cut(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"!big 30000000")
            worker.wait(lambda: "pause" in worker.events)
            worker.tick()
            worker.tick(after=59)
            assert len(worker.connections) == 1
            worker.tick(after=61)
            worker.wait(lambda: not worker.connections)

    def test_a_closing_peer_that_never_reads_is_cut(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"!bigclose 30000000")
            worker.wait(lambda: "CLOSING" in repr(list(worker.connections)))
            worker.tick()
            worker.tick(after=61)
            worker.wait(lambda: not worker.connections)

    def test_a_slow_reader_is_not_cut(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"!big 30000000")
            worker.wait(lambda: "pause" in worker.events)
            for seconds in range(0, 500, 50):
                worker.tick(after=seconds)
                read_exactly(client, 1_000_000)
            assert len(worker.connections) == 1

    def test_writing_resumes(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client:
            client.sendall(b"!big 20000000")
            assert len(read_exactly(client, 20_000_000)) == 20_000_000
            worker.wait(lambda: worker.events == ["pause", "resume"])

    def test_an_exception_costs_one_connection(self, worker: EchoWorker, caplog: pytest.LogCaptureFixture) -> None:
        with tls_client(worker) as other, tls_client(worker) as client:
            client.sendall(b"!raise")
            with pytest.raises(OSError, match=r"(?i)reset|eof"):
                read_all(client)
            other.sendall(b"x")
            assert other.recv(1) == b"x"
        assert [record.message for record in caplog.records] == ["connection.crashed"]

    def test_drain_reaches_the_driver_and_idle_sockets(self, worker: EchoWorker) -> None:
        with tls_client(worker) as client, connect(worker) as silent, connect(worker) as late:
            late.sendall(first_flight()[:50])
            worker.wait(lambda: len(worker.connections) == 3)
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            worker.wait(lambda: any(getattr(c, "_early", b"") for c in worker.connections))
            worker.each(lambda connection: connection.drain())
            assert read_all(client) == b""
            assert read_all(silent) == b""
            worker.wait(lambda: len(worker.connections) == 1)
        assert worker.events[0] == "drain"


class TestProxyProtocol:
    @pytest.fixture(name="worker")
    def _worker(self) -> Iterator[EchoWorker]:
        with EchoWorker([SITE], proxy_networks=(ip_network("127.0.0.0/8"),)) as worker:
            yield worker

    @pytest.mark.parametrize(
        "header",
        [
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 8443\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c" + struct.pack(">4B4B2H", 192, 0, 2, 7, 1, 2, 3, 4, 56324, 8443),
        ],
    )
    def test_gives_the_client(self, worker: EchoWorker, header: bytes) -> None:
        raw = connect(worker)
        raw.sendall(header)
        with TRUSTED.wrap_socket(raw, server_hostname="a.test") as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        info = worker.drivers[0].stream.info
        assert (info.client, info.client_port, info.server_port) == ("192.0.2.7", 56324, 8443)

    def test_is_owed(self, worker: EchoWorker) -> None:
        with connect(worker) as client:
            client.sendall(first_flight())
            with pytest.raises(ConnectionResetError):
                read_all(client)
        assert worker.failures == [("no PROXY header", "127.0.0.1", "")]

    def test_unknown_keeps_the_socket_s_address(self, worker: EchoWorker) -> None:
        raw = connect(worker)
        raw.sendall(b"PROXY UNKNOWN\r\n")
        with TRUSTED.wrap_socket(raw, server_hostname="a.test") as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        assert worker.drivers[0].stream.info.client == "127.0.0.1"

    def test_is_not_taken_from_strangers(self) -> None:
        with EchoWorker([SITE], proxy_networks=(ip_network("192.0.2.0/24"),)) as worker:
            assert answer_to(worker, b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 8443\r\n") == alert(10)


class TestTicket:
    def test_a_client_with_nagle_is_not_kept_waiting_for_an_acknowledgement(self, worker: EchoWorker) -> None:
        """Its request would wait for the delayed ACK (40 ms) of its Finished. One in twenty shows it: none would do."""
        assert any(self._is_acknowledged_soon(worker) for _ in range(20))

    def _is_acknowledged_soon(self, worker: EchoWorker) -> bool:
        with tls_client(worker) as client:
            limit = time.monotonic() + 0.02
            while time.monotonic() < limit:
                if fcntl.ioctl(client.fileno(), termios.TIOCOUTQ, bytes(4)) == bytes(4):
                    return True
        return False
