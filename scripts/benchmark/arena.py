"""The place of the contest: cores, certificate, backend, and one peer at a time before it.

Owns the temporary folder and every process; `close` leaves nothing behind. Knows no rows and no ratios.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scripts.benchmark import client
from scripts.benchmark.load import Generators
from scripts.benchmark.peers import Peer, Place, render
from scripts.benchmark.processes import Processes

START_PATIENCE = 20.0
LARGE, BULK = 64 << 10, 100 << 20
SMALL_BODY = '{"id":471100,"status":"shipped","items":[' + ",".join(["17"] * 58) + "]}"
LENGTHS = {path: len(SMALL_BODY) for path in ("/small", "/varied", "/upload")} | {"/large": LARGE, "/bulk": BULK}


class MeasurementError(Exception):
    """A run that gives no figure: message says whose fault it was."""


@dataclass(frozen=True)
class Cores:
    """Who runs where. `shared` says that proxies with two workers meet the generators on the same cores."""

    proxy: frozenset[int]
    pair: frozenset[int]
    load: frozenset[int]
    pair_load: frozenset[int]

    @property
    def shared(self) -> bool:
        """Whether two workers compete with the load."""
        return bool(self.pair & self.pair_load)


def divide_cores(available: list[int]) -> Cores:
    """Give the proxy the first core (or two) and the load the rest; two cores are all a pair of workers needs."""
    if len(available) < 2:
        raise MeasurementError("the benchmark needs two cores: one for the proxy, one for the load")
    first, second, *rest = available
    load = frozenset([second, *rest])
    return Cores(frozenset([first]), frozenset([first, second]), load, frozenset(rest if len(rest) > 1 else available))


@dataclass(frozen=True)
class Contest:
    """One running peer and the generators aimed at it."""

    peer: Peer
    pid: int
    cores: frozenset[int]
    place: Place
    load: Generators
    answer_sizes: dict[str, int]


class Arena:
    """Mutable state: the processes, and the port of the backend once it runs."""

    def __init__(self) -> None:
        self.cores = divide_cores(sorted(os.sched_getaffinity(0)))
        self.folder = Path(tempfile.mkdtemp(prefix="tlsproxy-bench-"))
        self.processes = Processes()
        self._backend_port = free_port()
        self._chain, self._key = write_certificate(self.folder)
        self._runs = 0

    def close(self) -> None:
        """End every process and remove the folder."""
        self.processes.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_backend(self, nginx: Path) -> int:
        """Start the nginx that answers for the application; return its port."""
        files = self.folder / "files"
        files.mkdir()
        (files / "large").write_bytes(bytes(range(256)) * (LARGE // 256))
        (files / "bulk").write_bytes(bytes(range(256)) * (BULK // 256))
        place = self._place("backend", workers=1)
        more = {"small": SMALL_BODY, "files": files}
        (place.folder / "backend.conf").write_text(render("backend.conf", place, **more))
        log, config = place.folder / "error.log", place.folder / "backend.conf"
        command: list[str | Path] = [nginx, "-e", log, "-p", place.folder, "-c", config]
        self.processes.start(command, cores=self.cores.load, environ={}, output=place.folder / "output.log")
        wait_for_port(self._backend_port)
        return self._backend_port

    @contextmanager
    def running(self, peer: Peer, *, workers: int = 1, spread: bool = False) -> Iterator[Contest]:
        """Run a freshly started peer; with `spread` on two cores."""
        program = peer.find()
        assert program
        place = self._place(peer.name, workers=workers)
        peer.prepare(place)
        cores = self.cores.pair if spread else self.cores.proxy
        process = self.processes.start(
            peer.command(program, place),
            cores=cores,
            environ=peer.environ(place),
            output=place.log if peer.name == "haproxy" else place.folder / "output.log",
        )
        load_cores = self.cores.pair_load if spread else self.cores.load
        generators = Generators(self.processes, load_cores, place.port, place.folder)
        try:
            yield Contest(peer, process.pid, cores, place, generators, wait_for_answer(process, peer, place))
        finally:
            self.processes.stop(process)
            shutil.rmtree(place.folder, ignore_errors=True)

    def _place(self, name: str, workers: int) -> Place:
        self._runs += 1
        folder = self.folder / f"{self._runs:03}-{name}"
        folder.mkdir()
        return Place(folder, free_port(), self._backend_port, self._chain, self._key, workers)


def wait_for_answer(process: subprocess.Popen[str], peer: Peer, place: Place) -> dict[str, int]:
    """Wait until the peer answers rightly; return the exact sizes of its answers."""
    deadline = time.monotonic() + START_PATIENCE
    while True:
        try:
            return {path: answer_size(place.port, path) for path in ("/small", "/varied", "/large")}
        except (OSError, client.AnswerError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise MeasurementError(f"{peer.name} did not answer: {error} {_last_lines(place)}") from error
            time.sleep(0.05)


def answer_size(port: int, path: str) -> int:
    """Ask once and check the answer; return its size with the head."""
    with client.open_connection(client.client_context(), port) as connection:
        return client.exchange(connection, client.request_bytes(path, close=False), LENGTHS[path])


def free_port() -> int:
    """Return a port of the loopback nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int) -> None:
    """Return as soon as somebody listens."""
    deadline = time.monotonic() + START_PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise MeasurementError(f"the backend did not start: {error}") from error
            time.sleep(0.05)
        else:
            return


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed ECDSA P-256 certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, client.NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(client.NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain_path, key_path = folder / "chain.pem", folder / "key.pem"
    pem = serialization.Encoding.PEM
    chain_path.write_bytes(certificate.public_bytes(pem))
    key_path.touch(mode=0o600)
    plain = serialization.NoEncryption()
    key_path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return chain_path, key_path


def _last_lines(place: Place) -> str:
    logs = [path for path in (place.folder / "output.log", place.folder / "error.log") if path.exists()]
    return " ".join(" ".join(path.read_text(errors="replace").split())[-1500:] for path in logs)
