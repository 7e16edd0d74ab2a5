"""An HTTP/2 client for what h2load can't do, run as a process of its own beside the proxy under test.

`varied` keeps streams busy with requests of which no head repeats, for a time, and then lets every answer arrive;
`hold` opens many connections, has three requests answered on each and keeps them idle. Every status and every length is
checked. Prints one line of JSON. libnghttp2 does the protocol here as in the proxy; only the proxy's CPU counts.
"""

import argparse
import json
import random
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence

import ngh2

from scripts.benchmark import client

Field = tuple[bytes, bytes]

# No RFC 9218 scheduling asked for, no push; windows so large that they hold nothing up, as h2load's.
SETTINGS = {ngh2.Setting.ENABLE_PUSH: 0, ngh2.Setting.INITIAL_WINDOW_SIZE: (1 << 30) - 1}
CONNECTION_WINDOW = (1 << 30) - 1
DRAIN = 10.0  # seconds for the answers that are still on their way when the time is over


def fixed_fields(path: str) -> list[Field]:
    """Return the request with the same fields as over HTTP/1.1; `:authority` is Host."""
    pseudo = {":method": "GET", ":scheme": "https", ":authority": client.NAME, ":path": path}
    return [(name.lower().encode(), value.encode()) for name, value in {**pseudo, **client.HEADERS}.items()]


def varied_fields(path: str) -> Callable[[], list[Field]]:
    """Return a maker of requests with another query, Cookie, Referer and X-Trace each, as wrk.lua's."""
    fixed = [field for field in fixed_fields(path) if field[0] not in (b":path", b"cookie", b"referer")]
    start, choose = path.encode() + b"?cursor=", random.getrandbits

    def fresh() -> bytes:
        return b"%014x" % choose(56)

    def fields() -> list[Field]:
        return [
            *fixed[:3],
            (b":path", start + fresh()),
            *fixed[3:],
            (b"cookie", b"session=" + fresh() + b"; theme=dark"),
            (b"referer", b"https://bench.test/dashboard/orders/" + fresh()),
            (b"x-trace", fresh()),
        ]

    return fields


class Session:
    """One connection. Mutable state: what of each stream's answer has come, and the finished ones' times.

    TLS over memory: a read takes everything that has come, however many records a proxy made of it. Else the client
    would be the bottleneck before those that write each answer by itself, and keep them from working in batches.
    """

    def __init__(self, context: ssl.SSLContext, port: int, length: int) -> None:
        self.open: dict[int, list[float]] = {}  # stream: when it began, bytes that are missing
        self.microseconds: list[int] = []
        self._length = length
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=client.NAME)
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._shake_hands()
        except BaseException:
            self.socket.close()
            raise
        self._codec = ngh2.Connection(ngh2.Role.CLIENT)
        self._codec.initiate_connection(SETTINGS)
        self._codec.set_local_window_size(CONNECTION_WINDOW)

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.socket.sendall(self._out.read())
                self._in.write(self._receive())
            else:
                break
        if self._tls.selected_alpn_protocol() != "h2":
            raise client.AnswerError(f"ALPN chose {self._tls.selected_alpn_protocol()}, not h2")

    def _receive(self) -> bytes:
        block = self.socket.recv(1 << 18)
        if not block:
            raise client.AnswerError(f"closed with {len(self.open)} open streams")
        return block

    def request(self, fields: Sequence[Field], now: float) -> None:
        """Begin a request; `send` sends it."""
        self.open[self._codec.send_request(fields, end_stream=True)] = [now, self._length]

    def send(self) -> None:
        """Write what there is to write; requests are small, the socket takes them."""
        if plain := self._codec.data_to_send():
            self._tls.write(plain)
        if cipher := self._out.read():
            self.socket.sendall(cipher)

    def receive(self, now: float) -> int:
        """Read what has come; return how many answers are complete by it."""
        self._in.write(self._receive())
        done = 0
        while True:
            try:
                plain = self._tls.read(1 << 18)
            except ssl.SSLWantReadError:
                return done
            if not plain:
                raise client.AnswerError(f"closed with {len(self.open)} open streams")
            self._codec.receive_data(plain)
            done += sum(self._take(event, now) for event in self._codec.events())

    def _take(self, event: ngh2.Event, now: float) -> int:
        match event:
            case ngh2.DataReceived(number, piece):
                self.open[number][1] -= len(piece)
            case ngh2.ResponseReceived(_, fields):
                if fields[0] != (b":status", b"200"):
                    raise client.AnswerError(f"status {fields[0][1].decode()}")
            case ngh2.StreamClosed(number, code):
                began, missing = self.open.pop(number)
                if missing or code:
                    raise client.AnswerError(f"{missing} bytes are missing, error code {code}")
                self.microseconds.append(int((now - began) * 1e6))
                return 1
            case ngh2.GoAwayReceived() | ngh2.ConnectionClosed():
                raise client.AnswerError(f"the connection was ended: error code {event.error_code}")
        return 0


def h2_context() -> ssl.SSLContext:
    """Return the client context of the other works, offering HTTP/2 alone."""
    context = client.client_context()
    context.set_alpn_protocols(["h2"])
    return context


def keep_busy(sessions: Sequence[Session], streams: int, seconds: float, make: Callable[[], list[Field]]) -> None:
    """Keep `streams` requests open on every session until the time is over, then wait for the last answers."""
    poll, by_number = select.epoll(), {session.socket.fileno(): session for session in sessions}
    now = time.monotonic()
    ends = now + seconds
    for number, session in by_number.items():
        poll.register(number, select.EPOLLIN)
        for _ in range(streams):
            session.request(make(), now)
        session.send()
    while any(session.open for session in sessions) if now >= ends else True:
        if now > ends + DRAIN:
            raise client.AnswerError(f"answers did not come within {DRAIN:.0f} s")
        for number, _ in poll.poll(1):
            now, session = time.monotonic(), by_number[number]
            for _ in range(session.receive(now)):
                if now < ends:
                    session.request(make(), now)
            session.send()
        now = time.monotonic()


def send_varied(port: int, path: str, length: int, connections: int, streams: int, seconds: float) -> dict[str, object]:
    """Run the load; latencies of all requests, and the first problem."""
    context = h2_context()
    sessions: list[Session] = []
    problem, began = "", time.monotonic()
    try:
        sessions.extend(Session(context, port, length) for _ in range(connections))
        began = time.monotonic()
        keep_busy(sessions, streams, seconds, varied_fields(path))
    except (OSError, client.AnswerError, ngh2.NGH2Error) as error:
        problem = str(error) or repr(error)
    taken = [value for session in sessions for value in session.microseconds]
    return {"microseconds": taken, "seconds": time.monotonic() - began, "problem": problem}


def hold_connections(port: int, path: str, length: int, count: int) -> dict[str, object]:
    """Open `count` connections, three requests on each, say so, and keep them until a line arrives on stdin.

    As the HTTP/1.1 client does it: a round's requests go out on all connections before the first answer is read.
    """
    context, fields = h2_context(), fixed_fields(path)
    held: list[Session] = []
    try:
        held.extend(Session(context, port, length) for _ in range(count))
        for _ in range(3):
            serve_all(held, fields)
        print("holding", flush=True)
        sys.stdin.readline()
        serve_all(held[:: max(1, count // 20)], fields)  # still open, and still served?
    except (OSError, client.AnswerError, ngh2.NGH2Error) as error:
        return {"held": len(held), "problem": str(error) or repr(error)}
    finally:
        for session in held:
            session.socket.close()
    return {"held": len(held), "problem": ""}


def serve_all(held: Sequence[Session], fields: Sequence[Field]) -> None:
    """Have one request answered on every connection, all at once."""
    now = time.monotonic()
    for session in held:
        session.request(fields, now)
        session.send()
    for session in held:
        while session.open:
            session.receive(now)
        session.send()  # the acknowledgement of SETTINGS


def main() -> None:
    """Run one of the two works."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=("varied", "hold"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--count", type=int, default=0)
    options = parser.parse_args()
    where = options.port, options.path, options.length
    result = (
        send_varied(*where, options.connections, options.streams, options.seconds)
        if options.work == "varied"
        else hold_connections(*where, options.count)
    )
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
