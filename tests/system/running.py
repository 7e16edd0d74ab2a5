"""Real processes for the system tests: `tlsproxy run` and the servers behind it, on free ports, ended by their pids.

Knows how each is started, when it is ready and what it said. Nothing here waits by sleeping for a guess: readiness is a
line in a log or a port that answers, with a deadline.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, TypeVar

import httpx
import trustme

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
CLIENT = "127.0.0.2"  # clients come from here, so that their address is not the proxy's
_GIVEN: set[int] = set()


def until(condition: Callable[[], T | None], what: str, patience: float = PATIENCE) -> T:
    """Return the first result of `condition` that is true. The pause between two looks only spares the CPU."""
    deadline = time.monotonic() + patience
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(0.02)
    return result


def free_port() -> int:
    """Return a port below those that the kernel gives to clients, so that none of these can take it meanwhile.

    No port twice: whoever got one may not have bound it yet.
    """
    for _ in range(100):
        port = random.randrange(20_000, 30_000)
        if port in _GIVEN:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _GIVEN.add(port)
            return port
    raise OSError("no free port found")


def write_pair(
    folder: Path, authority: trustme.CA, *names: str, stem: str = "site", rsa: bool = False, days: int = 90
) -> str:
    """Issue a certificate, write `stem`.pem and `stem`.key by rename; return the TOML value that names them."""
    kind = trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA
    begin = datetime.now(UTC) - timedelta(hours=1)
    leaf = authority.issue_cert(*names, key_type=kind, not_before=begin, not_after=begin + timedelta(days=days))
    put(folder / f"{stem}.pem", b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    put(folder / f"{stem}.key", leaf.private_key_pem.bytes())
    return f'{{ chain = "{stem}.pem", key = "{stem}.key" }}'


def put(path: Path, content: bytes) -> None:
    """Write as renewers do: whoever reads sees the old content or the new one."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(path)


def client_context(authority: trustme.CA | None, *, version: str = "") -> ssl.SSLContext:
    """Return what a client trusts: this authority and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority is not None:
        authority.configure_trust(context)
    context.set_alpn_protocols(["http/1.1"])
    if version:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
    return context


def offering(trust: ssl.SSLContext, *protocols: str) -> ssl.SSLContext:
    """Return what trusts the same authorities and offers these protocols, in this order (none: no ALPN at all)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=b"".join(trust.get_ca_certs(binary_form=True)))
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


class Proxy:
    """A running `tlsproxy run`: its ports, its children, its log, and clients for it."""

    def __init__(
        self, config: Path, trust: ssl.SSLContext, *, before: Sequence[str] = (), stdout: int = subprocess.DEVNULL
    ) -> None:
        """`before` is a command that ends by executing what follows it (prlimit, unshare)."""
        self.folder = config.parent
        self.trust = trust
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self._wanted = 0  # the worker to talk to, 0 = any
        self._has_ended = False
        self._changed = threading.Condition()
        command = [*before, sys.executable, "-m", "tlsproxy", "run", "--config", str(config)]
        self._process = subprocess.Popen(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.pid = self._process.pid
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,))
        self._reader.start()

    def wait_for(self, event: str, **fields: object) -> dict[str, Any]:
        """Return the first event of that name with these fields, once it is there. Fails when all have left before."""
        with self._changed:
            self._changed.wait_for(lambda: self._with(event, fields) or self._has_ended, PATIENCE)
            found = next(iter(self._with(event, fields)), None)
            assert found, f"no {event} {fields} in\n{''.join(self.lines)}"
            return found

    def count(self, event: str, **fields: object) -> int:
        with self._changed:
            return len(self._with(event, fields))

    def _with(self, event: str, fields: Mapping[str, object]) -> list[dict[str, Any]]:
        wanted = {"event": event, **fields}
        return [each for each in self.events if wanted.items() <= each.items()]

    @property
    def port(self) -> int:
        """The https port."""
        listeners: list[str] = self.wait_for("proxy.ready")["listeners"]
        return next(int(each.rpartition(":")[2]) for each in listeners if each.startswith("https "))

    @property
    def http_port(self) -> int:
        listeners: list[str] = self.wait_for("proxy.ready")["listeners"]
        return next(int(each.rpartition(":")[2]) for each in listeners if each.startswith("http "))

    def workers(self) -> list[int]:
        pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in pids if b"tlsproxy.runtime.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def open(
        self, host: str = "localhost", context: ssl.SSLContext | None = None, session: ssl.SSLSession | None = None
    ) -> ssl.SSLSocket:
        """Return a finished handshake with this name in it, or with none if `host` is empty."""
        raw = self._dial()
        try:
            return (context or self.trust).wrap_socket(raw, server_hostname=host or None, session=session)
        except BaseException:
            raw.close()
            raise

    @contextlib.contextmanager
    def alone(self, worker: int) -> Iterator[None]:
        """Meanwhile new connections are to this worker: the kernel deals them out, those to others are given back."""
        self._wanted = worker
        try:
            yield
        finally:
            self._wanted = 0

    def holder(self, client: socket.socket) -> int:
        """Return which worker has accepted this connection."""
        return self.holders([client])[0]

    def holders(self, clients: Sequence[socket.socket]) -> list[int]:
        """Return which worker has accepted each of these. The kernel's table may be long: one look."""
        inodes = until(lambda: _peer_inodes(clients), "the connections are accepted")
        return [until(lambda inode=inode: self._owner(inode), "a worker has it") for inode in inodes]  # type: ignore[misc]

    def _owner(self, inode: str) -> int:
        return next((pid for pid in self.workers() if _has_open(pid, inode)), 0)

    def _dial(self) -> socket.socket:
        """Nothing is sent before it is known who has it."""
        for _ in range(100):
            raw = socket.create_connection(("127.0.0.1", self.port), PATIENCE, (CLIENT, 0))
            if not self._wanted or self.holder(raw) == self._wanted:
                return raw
            raw.close()
        raise AssertionError(f"worker {self._wanted} gets no connections")

    def connection(self, host: str = "localhost", context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
        """Return http.client on a connection of ours; it stays on that one connection or fails."""
        client = http.client.HTTPConnection(host, self.port, timeout=PATIENCE)
        client.sock = self.open(host, context)
        client.auto_open = 0
        return client

    def client(self, host: str = "localhost", *, http2: bool = False) -> httpx.Client:
        """Return httpx for this host, wherever its name may lead."""

        def name(request: httpx.Request) -> None:
            request.headers["Host"] = f"{host}:{self.port}"
            request.extensions["sni_hostname"] = host

        trust = offering(self.trust, "h2") if http2 else self.trust
        return httpx.Client(
            transport=httpx.HTTPTransport(verify=trust, local_address=CLIENT, trust_env=False, http2=http2),
            base_url=f"https://127.0.0.1:{self.port}",
            event_hooks={"request": [name]},
            timeout=PATIENCE,
            trust_env=False,
        )

    def request_lines(self) -> list[dict[str, Any]]:
        """Return the access log so far; its last line may be half written."""
        path = self.folder / "access.log"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def logged(self, **fields: object) -> dict[str, Any]:
        """Return the last line of the access log with these fields, once it is there."""

        def find() -> dict[str, Any] | None:
            return next((line for line in reversed(self.request_lines()) if fields.items() <= line.items()), None)

        return until(find, f"a request {fields} in the access log")

    def wait(self) -> int:
        """Return the exit code; everything it said has been read then."""
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def stop(self) -> None:
        """End it, the polite way first. Nothing of it is left after that."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        finally:
            _kill_group(self.pid)
            self._process.wait(PATIENCE)
            self._reader.join(PATIENCE)

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    self.lines.append(line)
                    with contextlib.suppress(json.JSONDecodeError):
                        self.events.append(json.loads(line))
                    self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()


@contextlib.contextmanager
def running_proxy(
    folder: Path,
    trust: ssl.SSLContext,
    sites: str,
    *,
    head: str = "",
    workers: int = 1,
    http: str = "",
    https: str = "127.0.0.1:0",
    listen: str = "",
    drain: str = "1s",
    before: Sequence[str] = (),
) -> Iterator[Proxy]:
    """Run a proxy with these sites; `head` is TOML for before them, `listen` for the section of that name.

    An exception inside a worker fails the test.
    """
    config = folder / "tlsproxy.toml"
    config.write_text(f"""
        listen = {{ https = ["{https}"], http = [{f'"{http}"' if http else ""}]{listen and ", "}{listen} }}
        server = {{ workers = {workers}, drain = "{drain}" }}
        store = {{ url = "file://{folder}/store" }}
        admin = {{ socket = "{folder}/admin.sock" }}
        log = {{ format = "json", access = "{folder}/access.log" }}
        {head}
        {sites}
    """)
    proxy = Proxy(config, trust, before=before)
    try:
        proxy.wait_for("proxy.ready")
        yield proxy
    finally:
        proxy.stop()
    crashes = [line for line in proxy.lines if "traceback" in line.lower() or '"exchange.crashed"' in line]
    assert not crashes, "".join(crashes)


class Server:
    """A process that listens at `address` ("http://127.0.0.1:port" or "unix:/path") when the constructor returns."""

    def __init__(
        self, command: Sequence[str], address: str, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.address = address
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        try:
            until(self._is_up, f"{command[0]} at {address}")
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill_group(self.pid)
            self._process.wait(PATIENCE)

    def _is_up(self) -> bool:
        assert self._process.poll() is None, f"it ended:\n{self.said()}"
        path = self.address.removeprefix("unix:")
        with socket.socket(socket.AF_INET if path == self.address else socket.AF_UNIX) as probe:
            host, _, port = self.address.removeprefix("http://").partition(":")
            return probe.connect_ex(path if path != self.address else (host, int(port))) == 0


def _peer_inodes(clients: Sequence[socket.socket]) -> list[str]:
    """Return the inodes of the other ends, nothing while somebody is not accepted (/proc/net/tcp of proc(5))."""
    found: dict[tuple[str, str], str] = {}
    for row in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:]):
        if row[9] != "0":  # else it has no owner: not accepted yet, or closed long ago
            found[row[1][-4:], row[2][-4:]] = row[9]
    inodes = [found.get((f"{each.getpeername()[1]:04X}", f"{each.getsockname()[1]:04X}"), "") for each in clients]
    return inodes if all(inodes) else []


def _has_open(pid: int, inode: str) -> bool:
    with contextlib.suppress(OSError):
        return any(str(each.readlink()) == f"socket:[{inode}]" for each in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _kill_group(leader: int) -> None:
    """Both kinds of process are started as leaders of a session of their own: this is them and their children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
