"""`scripts/bench names`: what ten thousand names cost: the start, memory, a handshake that loads, and doing nothing.

One site and one certificate per name, in a file store; the CA of the configuration is a closed port, nothing is due.
With `--empty` there are no certificates, and all are due. The start is from the command to `proxy.ready`, when every
worker serves; the median of several, after one that is not counted: it compiles the modules, as an installation does.
Memory and CPU are read from /proc for each process.
"""

import argparse
import json
import os
import random
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scripts.benchmark import machine, measure
from scripts.benchmark.arena import MeasurementError, free_port
from scripts.benchmark.processes import Processes
from tlsproxy.store.base import open_store
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.sources import acme_name

MEBI = 1 << 20
START_PATIENCE = 60.0
SETTLED = 3.0  # seconds without work of the certifier, after which its first look at everything is over
BUDGETS = {"start_s": 3.0, "worker_mib": 120.0, "certifier_idle_percent": 1.0}
_CONFIG = """\
[listen]
https = ["127.0.0.1:{https}"]
http = ["127.0.0.1:{http}"]
[server]
workers = {workers}
[limits]
contexts = {contexts}
[store]
url = "file://{folder}/store"
allow_ephemeral = true
[admin]
socket = "{folder}/admin.sock"
[acme]
directory = "https://127.0.0.1:9/directory"
[log]
access = "off"
format = "json"
"""
_SITE = """
[[sites]]
hosts = ["{host}"]
certificate = "acme"
backends = ["http://127.0.0.1:9"]
"""


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 0 when the budgets are kept, 1 when not, 2 when nothing could be measured."""
    options = parse(arguments)
    hosts = [f"h{number}.example.com" for number in range(options.names)]
    with tempfile.TemporaryDirectory(prefix="tlsproxy-names-") as name:
        folder = Path(name)
        progress("starting without certificates" if options.empty else f"making {len(hosts)} certificates")
        fill_store(folder, [] if options.empty else hosts)
        write_config(folder, hosts, options)
        try:
            figures = measure_all(folder, hosts, options)
        except MeasurementError as error:
            progress(str(error))
            return 2
    print(report({"commit": machine.commit(), "cpu": machine.cpu_model(), **figures}, as_json=options.json))
    return 0 if all(float(figures.get(key, 0)) <= most for key, most in BUDGETS.items()) else 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="scripts/bench names", description="What thousands of names cost.")
    parser.add_argument("--names", type=int, default=10_000, help="sites, each with one name (10000)")
    parser.add_argument("--asked", type=int, default=2_000, help="names that clients ask each worker for (2000)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (2)")
    parser.add_argument("--rounds", type=int, default=3, help="starts, of which the median counts (3)")
    parser.add_argument("--idle", type=float, default=60, help="seconds to watch the certifier doing nothing (60)")
    parser.add_argument("--empty", action="store_true", help="no certificate is there, and the CA can't be reached")
    parser.add_argument("--contexts", type=int, default=1_000, help="limits.contexts (1000)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


def fill_store(folder: Path, hosts: Sequence[str]) -> None:
    """Put a certificate of one throw-away CA for every host; one key is enough for all."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificate("Benchmark CA", authority, "Benchmark CA", authority, is_authority=True)
    with closing(open_store(f"file://{folder}/store")) as store, mock.patch("os.fsync"):
        for host in hosts:
            leaf = certificate(host, key, "Benchmark CA", authority)
            store.put(acme_name(host), Bundle.build([leaf, root], key, "acme"))


def certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    authority: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool = False,
) -> x509.Certificate:
    """Sign a certificate that is valid for 90 days."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=89))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if not is_authority:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(authority, hashes.SHA256())


def write_config(folder: Path, hosts: Sequence[str], options: argparse.Namespace) -> None:
    """Write the configuration with one site per host."""
    head = _CONFIG.format(
        https=free_port(), http=free_port(), workers=options.workers, contexts=options.contexts, folder=folder
    )
    sites = [_SITE.format(host=host) for host in hosts]
    (folder / "tlsproxy.toml").write_text(head + "".join(sites))


def measure_all(folder: Path, hosts: Sequence[str], options: argparse.Namespace) -> dict[str, float | str]:
    """Start tlsproxy several times, ask the last one for names, watch it idle; return the figures."""
    with running(folder):
        pass  # compiles
    starts: list[float] = []
    for _ in range(options.rounds - 1):
        with running(folder) as (_, took):
            starts.append(took)
    with running(folder) as (pid, took):
        figures: dict[str, float | str] = {
            "names": len(hosts),
            "start_s": round(statistics.median([*starts, took]), 2),
            "start_slowest_s": round(max([*starts, took]), 2),
            "start_cpu_s": round(measure.cpu_seconds(pid), 2),  # of all processes, on as many cores as there are
            "worker_start_mib": mebi(max(stat.rss for stat in of_role(pid, "worker"))),
        }
        if not options.empty:
            figures |= ask(pid, folder, hosts, options)
        return (
            figures | idle(pid, options.idle) | {"tree_mib": mebi(measure.rss_bytes(pid)), "load": os.getloadavg()[0]}
        )


def ask(pid: int, folder: Path, hosts: Sequence[str], options: argparse.Namespace) -> dict[str, float | str]:
    """Shake hands for many names, then often for one."""
    port = https_port(folder)
    shake_hands(port, hosts[0])
    # The kernel deals connections to the workers: so many that each sees about `asked` names.
    asked = random.Random(1).sample(hosts, min(len(hosts), options.asked * options.workers))
    cold = [shake_hands(port, host) for host in asked]
    warm = [shake_hands(port, asked[-1]) for _ in range(200)]
    return {
        "worker_mib": mebi(max(stat.rss for stat in of_role(pid, "worker"))),
        "asked": len(asked),
        "handshake_cold_ms": round(statistics.median(cold) * 1000, 2),
        "handshake_warm_ms": round(statistics.median(warm) * 1000, 2),
    }


def idle(pid: int, seconds: float) -> dict[str, float | str]:
    """Wait until the certifier has looked at everything once, then see what it does without a reason."""
    deadline = time.monotonic() + START_PATIENCE
    while certifier_cpu(pid, SETTLED) > BUDGETS["certifier_idle_percent"] and time.monotonic() < deadline:
        pass
    (certifier,) = of_role(pid, "certifier")
    return {
        "certifier_first_look_cpu_s": round(certifier.own_cpu, 2),
        "certifier_idle_percent": round(certifier_cpu(pid, seconds), 2),
        "certifier_mib": mebi(of_role(pid, "certifier")[0].rss),
    }


def certifier_cpu(pid: int, seconds: float) -> float:
    """Percent of a core that the certifier needs in the next seconds."""
    (before,) = of_role(pid, "certifier")
    time.sleep(seconds)
    (after,) = of_role(pid, "certifier")
    return (after.own_cpu - before.own_cpu) / seconds * 100


@contextmanager
def running(folder: Path) -> Iterator[tuple[int, float]]:
    """Run tlsproxy until the block ends; yield its pid and the seconds until it was ready."""
    processes, output = Processes(), folder / "output.log"
    output.write_bytes(b"")
    program = Path(sys.executable).with_name("tlsproxy")
    cores = frozenset(os.sched_getaffinity(0))
    # Compiled modules, as an installation has them, also where the environment forbids to write them.
    environ = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "pycache")}
    began = time.monotonic()
    command: list[str | Path] = [program, "run", "--config", folder / "tlsproxy.toml"]
    process = processes.start(command, cores=cores, environ=environ, output=output)
    try:
        while '"proxy.ready"' not in output.read_text():
            if process.poll() is not None or time.monotonic() - began > START_PATIENCE:
                raise MeasurementError(f"tlsproxy did not start:\n{output.read_text()[-2000:]}")
            time.sleep(0.005)
        yield process.pid, time.monotonic() - began
    finally:
        processes.close()


def https_port(folder: Path) -> int:
    """Read it back from the configuration."""
    line = (folder / "tlsproxy.toml").read_text().splitlines()[1]
    return int(line.rpartition(":")[2].rstrip('"]'))


def shake_hands(port: int, host: str) -> float:
    """Make a TLS 1.3 connection to `host`, and return the seconds it took."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    began = time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", port), 10) as raw,
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        took = time.monotonic() - began
        names = tls.getpeercert(binary_form=True) or b""
    if host.encode() not in names:
        raise MeasurementError(f"{host} was served another certificate")
    return took


def of_role(pid: int, role: str) -> list[measure.ProcessStat]:
    """Return the processes of a role, "worker" or "certifier"."""
    found = [stat for stat in measure.tree(pid) if f"tlsproxy.runtime.{role}" in command_line(stat.pid)]
    if not found:
        raise MeasurementError(f"no {role} is left")
    return found


def mebi(size: int) -> float:
    """Bytes in MiB."""
    return round(size / MEBI, 1)


def command_line(pid: int) -> str:
    """Return the arguments of a process."""
    return (measure.PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()


def report(figures: dict[str, float | str], *, as_json: bool) -> str:
    """Return the figures, with the budgets they have to keep."""
    if as_json:
        return json.dumps(figures, indent=2)
    lines = [
        f"{key:26} {value}" + (f"  (at most {BUDGETS[key]:g})" if key in BUDGETS else "")
        for key, value in figures.items()
    ]
    return "\n".join(lines)


def progress(text: str) -> None:
    """Say what goes on, beside the output."""
    print(text, file=sys.stderr, flush=True)
