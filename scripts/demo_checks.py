"""What `scripts/demo --check` tries against the running demo: real clients, real bytes.

Each check returns what it saw in a few words, or raises. Knows the demo's routes (demo_app.py) and what tlsproxy
promises about them; knows nothing of how the processes were started.
"""

import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngh2 import Connection, DataReceived, NGH2Error, ResponseReceived, Role, StreamClosed
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

TIMEOUT = 15.0
MIB = 1 << 20


class UnexpectedError(Exception):
    """The answer came, and it is not what it should be."""


@dataclass(frozen=True)
class Target:
    """Where the demo listens and which CA its certificate comes from."""

    https_port: int
    http_port: int
    ca: Path

    @property
    def origin(self) -> str:
        return f"localhost:{self.https_port}"

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self.https_port, timeout=TIMEOUT, context=self.tls())


def certificate(target: Target) -> str:
    with (
        socket.create_connection(("localhost", target.https_port), timeout=TIMEOUT) as plain,
        target.tls().wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        peer: dict[str, Any] = dict(tls.getpeercert() or {})
        cipher = (tls.cipher() or ("no cipher",))[0]
        issuer = {name: value for ((name, value),) in peer["issuer"]}
        return f"{tls.version()}, {cipher}, verified, issued by {issuer['commonName']}, until {peer['notAfter']}"


def json_both_ways(target: Target) -> str:
    value = {"text": "grüße", "numbers": list(range(1000))}
    status, headers, body = request(target, "POST", "/echo", json.dumps(value), {"Content-Type": "application/json"})
    expect(status == 200 and json.loads(body) == value, f"{status}, {body[:80]!r}")
    return f"200, {len(body)} bytes of {headers['content-type']}"


def two_instances(target: Target) -> str:
    connection = target.connect()
    try:
        seen = set()
        for _ in range(6):
            connection.request("GET", "/")
            seen.add(json.loads(connection.getresponse().read())["instance"])
    finally:
        connection.close()
    expect(seen == {"one", "two"}, f"only {sorted(seen)} answered")
    return "6 requests on one connection, answered by one and two"


def http_2(target: Target) -> str:
    """Twenty requests at once on one connection, by the codec that the proxy has too, in its role of a client."""
    context = target.tls()
    context.set_alpn_protocols(["h2", "http/1.1"])
    wanted = 20
    with (
        socket.create_connection(("localhost", target.https_port), timeout=TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        expect(tls.selected_alpn_protocol() == "h2", f"ALPN agreed on {tls.selected_alpn_protocol()}")
        codec = Connection(Role.CLIENT)
        codec.initiate_connection()
        fields = [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":authority", target.origin.encode()),
            (b":path", b"/"),
        ]
        streams = [codec.send_request(fields, end_stream=True) for _ in range(wanted)]
        statuses, bodies = _answers(tls, codec, wanted)
    expect([statuses[stream] for stream in streams] == [b"200"] * wanted, f"statuses {sorted(statuses.values())}")
    seen = {json.loads(bodies[stream])["instance"] for stream in streams}
    expect(seen == {"one", "two"}, f"only {sorted(seen)} answered")
    return f"ALPN h2, {wanted} requests at once on one connection, answered by one and two"


def _answers(tls: ssl.SSLSocket, codec: Connection, wanted: int) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Return the status and the body of each stream, once all are closed."""
    statuses: dict[int, bytes] = {}
    bodies: dict[int, bytes] = {}
    closed = 0
    while closed < wanted:
        tls.sendall(codec.data_to_send())
        data = tls.recv(65_536)
        expect(bool(data), f"the connection was closed after {closed} of {wanted} answers")
        codec.receive_data(data)
        for event in codec.events():
            if isinstance(event, ResponseReceived):
                statuses[event.stream_id] = dict(event.headers)[b":status"]
            elif isinstance(event, DataReceived):
                bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
            elif isinstance(event, StreamClosed):
                closed += 1
    return statuses, bodies


def curl_http_2(target: Target) -> str:
    """By a codec that is not ours, if there is one here."""
    curl = shutil.which("curl")
    if not curl or b"HTTP2" not in subprocess.run([curl, "--version"], capture_output=True, check=True).stdout:
        return "there is no curl here that speaks HTTP/2"
    command = [curl, "--http2", "-sS", "--noproxy", "*", "--cacert", str(target.ca), "-o", os.devnull]
    report = ["-w", "HTTP/%{http_version} %{http_code}, %{num_connects} new\n", f"https://{target.origin}/?[1-10]"]
    said = subprocess.run([*command, *report], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    wanted = ["HTTP/2 200, 1 new", *["HTTP/2 200, 0 new"] * 9]
    expect(said.stdout.splitlines() == wanted, f"curl saw {said.stdout!r} {said.stderr!r}")
    return "10 requests on one connection, each answered with HTTP/2 200"


def forwarded_headers(target: Target) -> str:
    _, _, body = request(target, "GET", "/whoami")
    seen = json.loads(body)
    headers = dict(seen["headers"])
    loopback = ("127.0.0.1", "::1")
    expect(seen["scheme"] == "https", f"the app believes in {seen['scheme']}://")
    expect(seen["client"] in loopback, f"the app's client is {seen['client']}")
    expect(headers.get("x-forwarded-for") in loopback, f"X-Forwarded-For: {headers.get('x-forwarded-for')}")
    wanted = {"host": target.origin, "x-forwarded-proto": "https", "x-forwarded-host": target.origin}
    for name, value in {**wanted, "x-forwarded-port": str(target.https_port)}.items():
        expect(headers.get(name) == value, f"{name}: {headers.get(name)} instead of {value}")
    expect(bool(headers.get("x-request-id")), "no X-Request-ID")
    return f"{seen['url']} from {seen['client']}, X-Forwarded-Proto/Host/Port right"


def forged_headers(target: Target) -> str:
    forged = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Prefix": "/evil",
        "X-Real-IP": "203.0.113.9",
        "Forwarded": "for=203.0.113.9;proto=http",
        "X_Forwarded_For": "203.0.113.9",
        "Proxy": "http://203.0.113.9",
    }
    _, _, body = request(target, "GET", "/whoami", None, forged)
    text = body.decode()
    expect("203.0.113.9" not in text and "/evil" not in text, f"a forged value reached the app: {text[:300]}")
    expect(json.loads(body)["scheme"] == "https", "the forged X-Forwarded-Proto was believed")
    return f"{len(forged)} forged headers, none reached the app"


def own_redirect(target: Target) -> str:
    status, headers, _ = request(target, "GET", "/items")
    wanted = f"https://{target.origin}/items/"
    expect(headers.get("location") == wanted, f"{status} to {headers.get('location')} instead of {wanted}")
    return f"{status} /items → {wanted}"


def streaming(target: Target) -> str:
    started = time.monotonic()
    status, headers, body = request(target, "GET", "/download?mib=32")
    wanted = b"".join(bytes([number % 256]) * (MIB // 16) for number in range(32 * 16))
    expect(status == 200 and body == wanted, f"{status}, {len(body)} bytes, not what the app sent")
    return f"32 MiB, {headers.get('transfer-encoding')}, {time.monotonic() - started:.2f} s, every byte right"


def server_sent_events(target: Target) -> str:
    """An event must be here before the next one is sent: both times come from one clock."""
    connection = target.connect()
    try:
        connection.request("GET", "/events?count=5&pause=0.1")
        response = connection.getresponse()
        sent, received = [], []
        while line := response.readline():
            if line.startswith(b"data: "):
                sent.append(float(line[6:]))
                received.append(time.time())
    finally:
        connection.close()
    expect(len(sent) == 5, f"{len(sent)} events instead of 5")
    expect(all(got < after for got, after in zip(received, sent[1:], strict=False)), "events were held back")
    slowest = max(got - at for got, at in zip(received, sent, strict=True))
    return f"5 events, each before the next was sent, slowest {slowest * 1000:.1f} ms"


def upload(target: Target) -> str:
    content, edge = os.urandom(32 * MIB), "demo-boundary-5f1c"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    status, _, answer = request(target, "POST", "/upload", body, kind)
    expect(status == 200, f"{status}, {answer[:80]!r}")
    expect(json.loads(answer)["sha256"] == hashlib.sha256(content).hexdigest(), "the app received other bytes")
    return "32 MiB multipart, SHA-256 of the app is ours"


def web_socket(target: Target) -> str:
    with connect(f"wss://{target.origin}/ws", ssl=target.tls(), open_timeout=TIMEOUT, max_size=4 * MIB) as socket_:
        hello = json.loads(socket_.recv(timeout=TIMEOUT))
        expect(hello["scheme"] == "wss", f"the app believes in {hello['scheme']}://")
        for message in ("grüße", b"", os.urandom(2 * MIB)):  # random: compression must not shrink it
            socket_.send(message)
            expect(socket_.recv(timeout=TIMEOUT) == message, "the echo differs")
        expect(socket_.ping().wait(TIMEOUT), "no pong")
    return f"wss, text and 2 MiB of binary echoed, ping answered, instance {hello['instance']}"


def redirect_to_https(target: Target) -> str:
    connection = http.client.HTTPConnection("localhost", target.http_port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/items/?a=1&b=%2F")
        response = connection.getresponse()
        location = response.getheader("Location")
    finally:
        connection.close()
    wanted = f"https://{target.origin}/items/?a=1&b=%2F"
    expect(response.status == 308 and location == wanted, f"{response.status} to {location} instead of 308 to {wanted}")
    return f"308 → {location}"


def plain_on_tls_port(target: Target) -> str:
    with socket.create_connection(("localhost", target.https_port), timeout=TIMEOUT) as plain:
        plain.sendall(f"GET / HTTP/1.1\r\nHost: {target.origin}\r\n\r\n".encode())
        first = plain.makefile("rb").readline()
    expect(first.startswith(b"HTTP/1.1 400"), f"answered {first!r}")
    return first.decode().strip()


def unknown_host(target: Target) -> str:
    status, _, _ = request(target, "GET", "/", None, {"Host": "unknown.test"})
    expect(status == 421, f"{status} instead of 421")
    return "Host: unknown.test → 421"


CHECKS: dict[str, Callable[[Target], str]] = {
    "certificate": certificate,
    "JSON": json_both_ways,
    "two instances": two_instances,
    "HTTP/2": http_2,
    "curl --http2": curl_http_2,
    "X-Forwarded": forwarded_headers,
    "forged headers": forged_headers,
    "app's redirect": own_redirect,
    "streaming": streaming,
    "events (SSE)": server_sent_events,
    "upload": upload,
    "WebSocket": web_socket,
    "http → https": redirect_to_https,
    "http on TLS port": plain_on_tls_port,
    "unknown host": unknown_host,
}


def run_checks(target: Target) -> bool:
    """Run all checks, print one line each as it ends; True only if all passed."""
    passed = [_run(name, check, target) for name, check in CHECKS.items()]
    print(f"\n{sum(passed)} of {len(passed)} checks passed", flush=True)
    return all(passed)


def _run(name: str, check: Callable[[Target], str], target: Target) -> bool:
    try:
        verdict, saw = "ok", check(target)
    except (
        UnexpectedError,
        OSError,
        ValueError,
        KeyError,
        http.client.HTTPException,
        WebSocketException,
        NGH2Error,
    ) as error:
        verdict, saw = "FAILED", f"{type(error).__name__}: {error}"
    print(f"  {verdict:6}  {name:16}  {saw}", flush=True)
    return verdict == "ok"


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise UnexpectedError(otherwise)


def request(
    target: Target, method: str, path: str, body: str | bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send one request on a connection of its own; return status, headers (lower case) and the whole body."""
    connection = target.connect()
    try:
        content: Any = body.encode() if isinstance(body, str) else body
        connection.request(method, path, content, headers or {})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()
