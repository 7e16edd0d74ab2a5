"""The load generators: wrk and h2load for saturation, wrk at a fixed rate, our own clients for connections.

Knows how to run each and read what it prints; knows neither peers nor rows. A result with a `problem` is not a
measurement: the run it belongs to is invalid.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark import client
from scripts.benchmark.peers import CONFIGS
from scripts.benchmark.processes import Processes

URL = f"https://{client.NAME}"
HEADER_OPTIONS = tuple(part for name, value in client.HEADERS.items() for part in ("-H", f"{name}: {value}"))
REST = 20  # milliseconds a paced connection rests on average
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}  # as h2load tells times
# h2load has options of its own for what configs/openssl.cnf says to the others.
CIPHER_OPTIONS = ("--tls13-ciphers=TLS_AES_128_GCM_SHA256", "--groups=X25519")
GRACE = 60.0  # seconds a generator may take longer than it was told


@dataclass(frozen=True)
class Load:
    """What a generator did. Latencies in milliseconds; `bytes` as decrypted, heads included (h2load: without heads)."""

    requests: int
    seconds: float
    p50: float
    p99: float
    bytes: int = 0
    resumed: int = 0
    problem: str = ""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds if self.seconds else 0.0


def parse_wrk(output: str) -> Load:
    """Read the line of configs/wrk.lua."""
    result = parse_result(output)
    failures = {kind: result[kind] for kind in ("connect", "read", "write", "timeout", "status") if result[kind]}
    problem = ", ".join(f"{count} {kind} errors" for kind, count in failures.items())
    return Load(
        requests=result["requests"],
        seconds=result["microseconds"] / 1e6,
        p50=result["p50"] / 1e3,
        p99=result["p99"] / 1e3,
        bytes=result["bytes"],
        problem=problem or ("" if result["requests"] else "no request was completed"),
    )


def parse_h2load(output: str, log: str) -> Load:
    """Read h2load's summary, and its log of one line per answer: start, status, microseconds, separated by tabs."""
    summary = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded", output)
    clean = re.search(r"^status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx$", output, re.MULTILINE)
    spent = re.search(r"^finished in ([\d.]+)(us|ms|s|m|h),", output, re.MULTILINE)
    traffic = re.search(r", [\d.]+[KMG]?B \((\d+)\) data$", output, re.MULTILINE)
    if not (summary and spent and traffic):
        raise ValueError(f"the generator gave no result: {output.strip()[-500:]}")
    done, succeeded = int(summary[1]), int(summary[2])
    times = sorted(int(line.split("\t")[2]) for line in log.splitlines())
    # An answer cut off by the end of a run has its status counted, and is not done.
    problem = "" if clean and int(clean[1]) >= done == succeeded == len(times) else _failures(output)
    if "Application protocol: h2\n" not in output:
        problem = problem or "ALPN did not choose h2"
    return Load(
        requests=succeeded,
        seconds=float(spent[1]) * UNITS[spent[2]],
        p50=percentile(times, 50) / 1e3,
        p99=percentile(times, 99) / 1e3,
        bytes=int(traffic[1]),
        problem=problem or ("" if succeeded else "no request was completed"),
    )


def _failures(output: str) -> str:
    return "; ".join(line for line in output.splitlines() if line.startswith(("requests:", "status codes:")))


def parse_result(output: str) -> dict[str, int]:
    """Return the JSON of the one line marked RESULT; the whole output is the error message when there is none."""
    for line in output.splitlines():
        if line.startswith("RESULT "):
            parsed: dict[str, int] = json.loads(line.removeprefix("RESULT "))
            return parsed
    raise ValueError(f"the generator gave no result: {output.strip()[-500:]}")


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of sorted values."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def merge_connects(results: Sequence[Mapping[str, object]], seconds: float) -> Load:
    """Add up what several `client connect` processes report."""
    latencies: list[int] = sorted(value for result in results for value in result["microseconds"])  # type: ignore[attr-defined]
    errors = sum(int(str(result["errors"])) for result in results)
    problems = [str(result["problem"]) for result in results if result["problem"]]
    problem = f"{errors} connections failed: {problems[0]}" if errors else ""
    return Load(
        requests=len(latencies),
        seconds=seconds,
        p50=percentile(latencies, 50) / 1e3,
        p99=percentile(latencies, 99) / 1e3,
        resumed=sum(int(str(result["resumed"])) for result in results),
        problem=problem or ("" if latencies else "no connection was made"),
    )


def merge_varied(result: Mapping[str, object], length: int) -> Load:
    """Read what `client_h2 varied` reports."""
    latencies: list[int] = sorted(result["microseconds"])  # type: ignore[call-overload]
    return Load(
        requests=len(latencies),
        seconds=float(str(result["seconds"])),
        p50=percentile(latencies, 50) / 1e3,
        p99=percentile(latencies, 99) / 1e3,
        bytes=len(latencies) * length,
        problem=str(result["problem"]) or ("" if latencies else "no request was completed"),
    )


class Generators:
    """Runs generators on the given cores against one port of the loopback."""

    def __init__(self, processes: Processes, cores: frozenset[int], port: int, folder: Path) -> None:
        self._processes = processes
        self._cores = cores
        self._port = port
        self._folder = folder
        self._environ = {"OPENSSL_CONF": str(CONFIGS / "openssl.cnf"), "PYTHONPATH": str(CONFIGS.parents[2])}

    def saturate(
        self, path: str, *, connections: int, seconds: float, threads: int = 1, timeout: int = 10, varied: bool = False
    ) -> Load:
        """Let wrk send as fast as the answers come, on keep-alive connections; with `varied` no two heads the same."""
        options = [f"-t{threads}", f"-c{connections}", "--timeout", f"{timeout}s"]
        return self._wrk(path, seconds, options, {"BENCH_VARIED": "1"} if varied else {})

    def _wrk(self, path: str, seconds: float, options: Sequence[str], environ: Mapping[str, str]) -> Load:
        duration = f"-d{max(1, round(seconds))}s"
        script = ["-s", str(CONFIGS / "wrk.lua")]
        command: list[str | Path] = ["wrk", *options, duration, *script, *HEADER_OPTIONS, f"{URL}:{self._port}{path}"]
        return parse_wrk(self._run(command, seconds, environ))

    def multiplex(
        self, path: str, *, connections: int, streams: int, seconds: float = 0, requests: int = 0, upload: bytes = b""
    ) -> Load:
        """Let h2load keep `streams` requests open on each HTTP/2 connection, for a time or until so many are answered.

        At the end of a time it cuts answers off; with a number of requests the sum of the bytes is exact.
        """
        log, body = self._folder / "h2load.log", self._folder / "h2load.body"
        log.unlink(missing_ok=True)
        body.write_bytes(upload)
        options = [f"-c{connections}", f"-m{streams}", f"-n{requests}" if requests else f"-D{max(1, round(seconds))}"]
        options += [f"--log-file={log}", f"--connect-to=127.0.0.1:{self._port}", *CIPHER_OPTIONS]
        options += [f"--data={body}"] if upload else []
        output = self._run(["h2load", *options, *HEADER_OPTIONS, f"{URL}:{self._port}{path}"], seconds, {})
        return parse_h2load(output, log.read_text() if log.exists() else "")

    def vary(self, path: str, *, length: int, connections: int, streams: int, seconds: float) -> Load:
        """Keep requests open on each HTTP/2 connection of which no head repeats; every length is checked."""
        where = [f"--path={path}", f"--length={length}", f"--connections={connections}", f"--streams={streams}"]
        process = self._client("client_h2", "varied", *where, f"--seconds={seconds}")
        return merge_varied(parse_result(self._finish(process, seconds)), length)

    def pace(self, path: str, *, rate: float, seconds: float) -> Load:
        """Let wrk send at about a fixed rate: each connection rests after an answer, so bursts come as from people.

        h2load's --rps was tried: its connections fire on the same tick of 10 ms, and the burst is all one measures.
        """
        connections = max(10, round(rate * REST / 1000))
        return self._wrk(path, seconds, ["-t1", f"-c{connections}", "--timeout", "10s"], {"BENCH_REST": str(REST)})

    def connect(self, path: str, *, length: int, clients: int, seconds: float, resume: bool) -> Load:
        """Open connections one after another in several processes, one request on each."""
        options = [f"--seconds={seconds}", f"--path={path}", f"--length={length}", *(["--resume"] if resume else [])]
        running = [self._client("client", "connect", *options) for _ in range(clients)]
        results = [parse_result(self._finish(process, seconds)) for process in running]
        return merge_connects(results, seconds)

    @contextmanager
    def hold(self, path: str, *, length: int, count: int, http2: bool = False) -> Iterator[None]:
        """Keep `count` connections open that have served requests; ValueError when they did not last."""
        program = "client_h2" if http2 else "client"
        process = self._client(program, "hold", f"--count={count}", f"--path={path}", f"--length={length}")
        assert process.stdin
        assert process.stdout
        first = process.stdout.readline()
        if first.strip() == "holding":
            yield
            process.stdin.write("enough\n")
            process.stdin.flush()
            first = ""
        result: Mapping[str, object] = parse_result(first + self._finish(process, 0))
        if result["problem"]:
            raise ValueError(f"connection {result['held']} of {count}: {result['problem']}")

    def _client(self, program: str, work: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", f"scripts.benchmark.{program}", work, f"--port={self._port}", *options]
        return self._processes.open(command, cores=self._cores, environ=self._environ)

    def _run(self, command: Sequence[str | Path], seconds: float, environ: Mapping[str, str]) -> str:
        process = self._processes.open(command, cores=self._cores, environ={**self._environ, **environ})
        return self._finish(process, seconds)

    def _finish(self, process: subprocess.Popen[str], seconds: float) -> str:
        try:
            return process.communicate(timeout=seconds + GRACE)[0]
        finally:
            self._processes.stop(process)
