"""Limits and deadlines over HTTP/2: each is answered on the stream that meets it, and costs no other one anything."""

from __future__ import annotations

import json
import socket

import pytest

from tests.fakes.backend import OK, url_of
from tests.fakes.frames import CANCEL, ENHANCE_YOUR_CALM, NO_ERROR, Fields, FramePeer, block, headers_frames
from tests.fakes.stage import Stage
from tlsproxy.proxy import front


def other_stream_is_served(stage: Stage, client: FramePeer) -> None:
    """A request that no backend is asked for: a name that this server does not have."""
    fields = [(name, b"nobody.test" if name == b":authority" else value) for name, value in client.head("/other")]
    stream = client.new_stream()
    client.send(*headers_frames(block(fields), stream))
    assert client.answer(stream).status == 421


class TestHeads:
    @pytest.mark.parametrize(
        ("path", "headers", "status", "note"),
        [
            ("/" + "x" * 100, [], 414, "limits.target_size 64 exceeded"),
            ("/", [(b"x-big", b"x" * 999)], 431, "biggest field: x-big 1004"),
            ("/", [(b"x-%d" % number, b"y") for number in range(9)], 431, "limits.header_count 8 exceeded"),
            ("/", [(b"expect", b"a miracle")], 417, ""),
        ],
    )
    def test_a_head_that_is_too_large(self, stage: Stage, path: str, headers: Fields, status: int, note: str) -> None:
        """The log names the limit and the biggest field; the connection goes on."""
        backend = stage.backend()
        stage.serve(backend, limits={"header_size": 1024, "header_count": 8, "target_size": 64})
        client = stage.connect_http2()
        stream = client.request(path, headers)
        answer = client.answer(stream)
        assert answer.status == status
        assert json.loads(answer.body)["status"] == status
        [line] = stage.log()
        assert (line["status"], line["http"], line["host"]) == (status, "2", "a.test")
        assert note in line["error"]
        assert answer.body.find(line["request_id"].encode()) > 0
        assert client.stream(stream).reset is None
        other_stream_is_served(stage, client)
        assert not backend.is_called(0)

    def test_the_rest_of_a_refused_request_is_not_wanted(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"header_size": 1024})
        client = stage.connect_http2()
        stream = client.request("/", [(b"x-big", b"x" * 999)], end=False)
        assert client.answer(stream).status == 431
        client.expect_reset(stream, NO_ERROR)
        client.data(stream, b"late")
        other_stream_is_served(stage, client)

    def test_the_size_is_that_of_the_fields_not_of_their_compression(self, stage: Stage) -> None:
        """RFC 9113 6.5.2: names and values, and 32 bytes for each; Huffman code makes nothing fit."""
        stage.serve(stage.backend(), limits={"header_size": 2048})
        client = stage.connect_http2()
        head = block(client.head("/", [(b"x-e", b"e" * 2000)]))
        assert len(head) < 1400
        stream = client.new_stream()
        client.send(*headers_frames(head, stream))
        assert client.answer(stream).status == 431

    def test_a_head_that_does_not_arrive_in_time(self, stage: Stage) -> None:
        """Nothing else can come between its frames, so it is the connection that ends (RFC 9113 4.3)."""
        backend = stage.backend()
        stage.serve(backend, limits={"header_timeout": 9})
        client = stage.connect_http2()
        first, _ = headers_frames(block(client.head()), client.new_stream(), cuts=[5])
        client.send(first)
        stage.wait(lambda: any("OPEN" in repr(each) for each in stage.front.connections))
        stage.tick(after=8)
        assert client.is_quiet(0, 0.02)
        stage.tick(after=10)
        client.expect_goaway(ENHANCE_YOUR_CALM)
        assert not backend.is_called(0)

    def test_a_frame_that_does_not_arrive_in_time(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"header_timeout": 9, "keep_alive": 1000})
        client = stage.connect_http2()
        client.ping()
        client.send(b"\0\0\x08\6\0\0\0")
        stage.wait(lambda: all(getattr(each._driver, "_head_since", 0) for each in stage.front.connections))
        stage.tick(after=10)
        client.expect_goaway(ENHANCE_YOUR_CALM)

    def test_a_client_that_never_says_anything(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"header_timeout": 9, "keep_alive": 1000})
        client = stage.connect_http2(begin=False)
        stage.wait(lambda: any("OPEN" in repr(each) for each in stage.front.connections))
        stage.tick(after=10)
        client.expect_closed()
        assert not client.streams
        assert stage.log(0) == []


class TestIdle:
    def test_an_idle_connection_ends_with_goaway(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"keep_alive": 20})
        client = stage.connect_http2()
        other_stream_is_served(stage, client)
        stage.tick(after=19)
        client.ping()
        assert client.goaways == []
        stage.tick(after=21)
        assert client.expect_goaway(NO_ERROR).last_stream_id == 1

    def test_a_ping_keeps_nothing_alive(self, stage: Stage) -> None:
        stage.serve(stage.backend(), limits={"keep_alive": 20})
        client = stage.connect_http2()
        client.ping()
        stage.tick(after=21)
        client.expect_goaway(NO_ERROR)

    def test_a_connection_with_a_stream_is_not_idle(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"response_timeout": 1000}, limits={"keep_alive": 20})
        client = stage.connect_http2()
        stream = client.request("/")
        upstream = backend.accept()
        upstream.message()
        stage.tick(after=21)
        upstream.send(OK)
        assert client.answer(stream).body == b"ok"
        stage.tick(after=19)  # counted from the end of the last stream
        client.ping()
        assert client.goaways == []


class TestBodies:
    def test_a_length_that_is_too_large_never_reaches_the_backend(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"max_body": 10})
        client = stage.connect_http2()
        stream = client.request("/", [(b"content-length", b"11")], end=False)
        assert client.answer(stream).status == 413
        client.expect_reset(stream, NO_ERROR)
        assert not backend.is_called(0)
        assert stage.log()[0]["error"] == "max_body 10 bytes exceeded"
        other_stream_is_served(stage, client)

    def test_frames_are_counted(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"max_body": 10})
        client = stage.connect_http2()
        stream = client.request("/", body=b"0123456789", end=False)
        upstream = backend.accept()
        upstream.until(b"0123456789\r\n")
        client.data(stream, b"x", end=True)
        assert client.answer(stream).status == 413
        assert upstream.has_ended()
        other_stream_is_served(stage, client)

    def test_a_body_that_stops(self, stage: Stage) -> None:
        """408, and the backend never sees a complete request."""
        backend = stage.backend()
        stage.serve(backend, limits={"body_idle": 9})
        client = stage.connect_http2()
        stream = client.request("/", body=b"half", end=False)
        upstream = backend.accept()
        upstream.until(b"half\r\n")
        stage.tick(after=8)
        client.ping()
        assert client.kinds(stream) == []
        stage.tick(after=10)
        assert client.answer(stream).status == 408
        client.expect_reset(stream, NO_ERROR)
        assert upstream.has_ended()
        assert stage.log()[0]["error"] == "limits.body_idle exceeded"
        other_stream_is_served(stage, client)

    def test_a_client_that_waits_for_continue_is_not_slow(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, limits={"body_idle": 9})
        client = stage.connect_http2()
        stream = client.request("/", [(b"expect", b"100-continue"), (b"content-length", b"4")], end=False)
        upstream = backend.accept()
        upstream.until(b"\r\n\r\n")
        stage.tick(after=50)
        upstream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.until(lambda: bool(client.stream(stream).interim))
        stage.tick(after=10)  # now it is
        assert client.answer(stream).status == 408

    def test_one_that_begins_without_it_may_not_stop(self, stage: Stage) -> None:
        """Or its backend would be blamed for what did not come."""
        backend = stage.backend()
        stage.serve(backend, limits={"body_idle": 9})
        client = stage.connect_http2()
        stream = client.request("/", [(b"expect", b"100-continue"), (b"content-length", b"4")], end=False)
        upstream = backend.accept()
        upstream.until(b"\r\n\r\n")
        client.data(stream, b"ha")
        upstream.until(b"ha")
        stage.tick(after=10)
        assert client.answer(stream).status == 408

    def test_a_client_whose_backend_takes_nothing_is_not_slow(self, stage: Stage) -> None:
        """Its window is closed: it can't send, so it is the backend's time that runs."""
        backend = stage.backend(receive_buffer=4096)
        stage.serve(backend, route={"response_timeout": 1000}, limits={"body_idle": 9})
        client = stage.connect_http2()
        stream = client.request("/", end=False)
        backend.accept().until(b"\r\n\r\n")
        while client.room(stream) >= 16_384:
            client.data(stream, b"x" * 16_384)
            client.ping()
        client.ping()
        stage.tick(after=500)
        client.ping()
        assert client.kinds(stream).count("HEADERS") == 0

    def test_who_listens_to_an_answer_that_has_begun_need_not_speak(self, stage: Stage) -> None:
        """As in a call of gRPC with streams both ways: the limit of a tunnel holds then."""
        backend = stage.backend()
        stage.serve(backend, limits={"body_idle": 9, "tunnel_idle": 100})
        client = stage.connect_http2()
        stream = client.request("/", body=b"half", end=False)
        upstream = backend.accept()
        upstream.until(b"half\r\n")
        upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
        client.until(lambda: client.stream(stream).body == b"hi")
        stage.tick(after=90)
        client.data(stream, b"more")
        upstream.until(b"more\r\n")
        stage.tick(after=200)
        client.expect_reset(stream)


class TestBackends:
    def test_one_that_does_not_answer_in_time_is_504(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, route={"response_timeout": 30})
        client = stage.connect_http2()
        stream = client.request("/")
        upstream = backend.accept()
        upstream.message()
        stage.tick(after=29)
        client.ping()
        assert client.kinds(stream) == []
        stage.tick(after=31)
        assert client.answer(stream).status == 504
        assert upstream.has_ended()
        assert "response_timeout 30 s" in stage.log()[0]["error"]

    def test_one_that_accepts_nothing_is_504_after_connect_timeout(self, stage: Stage) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            with socket.create_connection(listener.getsockname()):
                url = url_of(listener)
                stage.serve(sites=[{"hosts": ["a.test"], "backends": [url]}], limits={"connect_timeout": 0.1})
                assert stage.connect_http2().get("/").status == 504

    def test_those_that_are_left_alone_are_503(self, stage: Stage) -> None:
        """Three failures in a row, and a backend gets no requests for a while: with both away there is nobody."""
        backends = [stage.backend(), stage.backend()]
        stage.serve(*backends)
        client = stage.connect_http2()
        for backend in backends:
            backend.refuse()
        answers = [client.get("/") for _ in range(4)]
        assert [each.status for each in answers] == [502, 502, 502, 503]
        assert answers[-1].get("retry-after")


class TestAnswersNobodyTakes:
    def test_a_stream_whose_window_stays_closed_is_reset(self, stage: Stage) -> None:
        """After limits.write_idle without a byte taken; the connection and its other streams go on."""
        backend = stage.backend()
        stage.serve(backend, limits={"write_idle": 9})
        client = stage.connect_http2(settings={4: 0})
        stream = client.request("/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        client.head_of(stream)
        stage.tick()  # from now on it is known that bytes wait
        stage.tick(after=8)
        client.ping()
        assert client.stream(stream).reset is None
        stage.tick(after=10)
        client.expect_reset(stream, CANCEL)
        assert upstream.has_ended()
        [line] = stage.log()
        assert "write_idle" in line["error"]
        client.ping()

    def test_one_byte_is_progress(self, stage: Stage) -> None:
        backend = stage.backend()
        stage.serve(backend, limits={"write_idle": 9})
        client = stage.connect_http2(settings={4: 0})
        stream = client.request("/")
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        client.head_of(stream)
        stage.tick()
        client.grant(1, stream)
        client.until(lambda: client.stream(stream).body == b"o")
        stage.tick(after=10)
        client.grant(1, stream)
        assert client.answer(stream).body == b"ok"

    def test_who_waits_behind_others_is_not_to_blame(self, stage: Stage) -> None:
        """Without a word on it, answers go one after the other (RFC 9218 10): the last may wait for long."""
        backend = stage.backend()
        stage.serve(backend, limits={"write_idle": 9})
        client = stage.connect_http2(settings={4: 2**20})
        client.request("/first")
        upstream = backend.accept()
        upstream.message()
        # More than one read brings: else the connection may be free again, and the next request not need another.
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n" + b"x" * 600_000)
        client.until(lambda: client.given(0) == 0)
        last = client.request("/last")
        upstream = backend.accept()
        upstream.message()
        upstream.send(OK)
        client.head_of(last)
        stage.tick()
        for seconds in (8, 16):
            client.grant(1000)
            client.until(lambda: client.given(0) == 0)
            stage.tick(after=seconds)
        client.ping()
        assert client.stream(last).body == b""
        assert client.stream(last).reset is None
        stage.tick(after=26)  # now nothing has moved
        client.expect_reset(last, CANCEL)


class TestBusyWorker:
    def test_who_has_many_streams_gets_no_more_of_them_and_others_get_theirs(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each stream may cost a descriptor, and a worker has only so many."""
        monkeypatch.setattr(front, "_most_connections", lambda: 27)  # so 20 streams
        backend = stage.backend()
        stage.serve(backend)
        greedy, modest = stage.connect_http2(), stage.connect_http2()
        streams = [greedy.request(f"/{number}") for number in range(21)]
        answer = greedy.answer(streams[20])
        assert answer.status == 503
        assert "nofile" in stage.log()[0]["error"]
        stream = modest.request("/modest")
        calls = [backend.accept() for _ in range(21)]
        upstream = next(each for each in calls if each.message().target == b"/modest")
        upstream.send(OK)
        assert modest.answer(stream).status == 200
        greedy.reset(streams[0], CANCEL)
        greedy.reset(streams[1], CANCEL)
        greedy.ping()
        greedy.request("/again")
        assert upstream.message().target == b"/again"  # on the connection that is free
