"""A TLS client on the standard library, run as a process of its own beside the proxy under test.

`connect` opens one connection after another, one request each, with a full handshake or the last session's ticket;
`hold` opens many and keeps them idle. Prints one line of JSON. Only the proxy's CPU counts, so it need not be fast.
"""

import argparse
import json
import socket
import ssl
import sys
import time

NAME = "bench.test"
# Nine fields with Host, the size of what a browser's fetch() sends to an API.
HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "application/json, text/plain, */*",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br",
    "Referer": "https://bench.test/dashboard/orders",
    "Cookie": "session=4f1c2f0c0b6f4d3c9a5e7d1b2a3c4d5e; theme=dark",
    "Sec-Fetch-Mode": "cors",
    "Cache-Control": "no-cache",
}


class AnswerError(Exception):
    """The proxy answered something else than the backend did."""


def client_context() -> ssl.SSLContext:
    """Return a TLS 1.3 client that trusts anyone: checking the chain is not the proxy's work."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def request_bytes(path: str, *, close: bool) -> bytes:
    """Return a GET request with the nine fields; with `close` one more."""
    fields = {"Host": NAME, **HEADERS} | ({"Connection": "close"} if close else {})
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode()


def open_connection(context: ssl.SSLContext, port: int, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    """Connect to the proxy on the loopback."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    try:
        # As every HTTP client does: else the request waits 40 ms for the acknowledgement of the Finished before it.
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(raw, server_hostname=NAME, session=session)
    except BaseException:
        raw.close()
        raise


def read_head(connection: ssl.SSLSocket) -> tuple[bytes, bytes]:
    """Return the head of an answer and what came after it."""
    received = b""
    while b"\r\n\r\n" not in received:
        block = connection.recv(65536)
        if not block:
            raise AnswerError(f"closed after {len(received)} bytes of the head")
        received += block
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


def check_head(head: bytes, length: int) -> None:
    """Refuse anything but 200 with the right Content-Length."""
    lines = head.lower().split(b"\r\n")
    if lines[0].split(b" ")[1:2] != [b"200"]:
        raise AnswerError(f"status line {lines[0].decode('latin-1')}")
    if f"content-length: {length}".encode() not in lines:
        raise AnswerError(f"no Content-Length {length} in {head.decode('latin-1')!r}")


def exchange(connection: ssl.SSLSocket, request: bytes, length: int) -> int:
    """Send a request, read and check the answer; return the size of the answer with its head."""
    connection.sendall(request)
    return read_answer(connection, length)


def read_answer(connection: ssl.SSLSocket, length: int) -> int:
    """Read and check one answer; return its size with the head."""
    head, rest = read_head(connection)
    check_head(head, length)
    got = len(rest)
    while got < length:
        block = connection.recv(65536)
        if not block:
            break
        got += len(block)
    if got != length:
        raise AnswerError(f"body of {got} bytes, not {length}")
    return len(head) + 4 + got


def connect_repeatedly(port: int, path: str, length: int, seconds: float, *, resume: bool) -> dict[str, object]:
    """Open connections until the time is over; errors are counted, the first is told."""
    context, request = client_context(), request_bytes(path, close=True)
    session: ssl.SSLSession | None = None
    resumed, errors, problem = 0, 0, ""
    microseconds: list[int] = []
    ends = time.monotonic() + seconds
    while (began := time.monotonic()) < ends:
        try:
            with open_connection(context, port, session) as connection:
                exchange(connection, request, length)
                while connection.recv(65536):
                    pass
                resumed += bool(connection.session_reused)
                session = connection.session if resume else None
        except (OSError, AnswerError) as error:
            errors, problem = errors + 1, problem or str(error)
            continue
        microseconds.append(int((time.monotonic() - began) * 1e6))
    return {"microseconds": microseconds, "resumed": resumed, "errors": errors, "problem": problem}


def hold_connections(port: int, path: str, length: int, count: int) -> dict[str, object]:
    """Open `count` connections, three requests on each, say so, and keep them until a line arrives on stdin.

    The requests of a round go out on all connections before the first answer is read, so that the proxy serves many
    at once and keeps the memory it takes for that.
    """
    context, request = client_context(), request_bytes(path, close=False)
    held: list[ssl.SSLSocket] = []
    try:
        held.extend(open_connection(context, port) for _ in range(count))
        for _ in range(3):
            serve_all(held, request, length)
        print("holding", flush=True)
        sys.stdin.readline()
        for connection in held[:: max(1, count // 20)]:  # still open, and still served?
            exchange(connection, request, length)
    except (OSError, AnswerError) as error:
        return {"held": len(held), "problem": str(error)}
    finally:
        for connection in held:
            connection.close()
    return {"held": len(held), "problem": ""}


def serve_all(held: list[ssl.SSLSocket], request: bytes, length: int) -> None:
    """Have one request answered on every connection, all at once."""
    for connection in held:
        connection.sendall(request)
    for connection in held:
        read_answer(connection, length)


def main() -> None:
    """Run one of the two works."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=("connect", "hold"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    result = (
        connect_repeatedly(options.port, options.path, options.length, options.seconds, resume=options.resume)
        if options.work == "connect"
        else hold_connections(options.port, options.path, options.length, options.count)
    )
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
