"""The load generators: wrk for saturation and at a fixed rate, our own client for connections.

Knows how to run each and read what it prints; knows neither peers nor rows. A result with a `problem` is not a
measurement: the run it belongs to is invalid.
"""

import json
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
GRACE = 60.0  # seconds a generator may take longer than it was told


@dataclass(frozen=True)
class Load:
    """What a generator did. Latencies in milliseconds; `bytes` as decrypted, heads included."""

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


class Generators:
    """Runs generators on the given cores against one port of the loopback."""

    def __init__(self, processes: Processes, cores: frozenset[int], port: int) -> None:
        self._processes = processes
        self._cores = cores
        self._port = port
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

    def pace(self, path: str, *, rate: float, seconds: float) -> Load:
        """Let wrk send at about a fixed rate: each connection rests after an answer, so bursts come as from people.

        h2load's --rps was tried: its connections fire on the same tick of 10 ms, and the burst is all one measures.
        """
        connections = max(10, round(rate * REST / 1000))
        return self._wrk(path, seconds, ["-t1", f"-c{connections}", "--timeout", "10s"], {"BENCH_REST": str(REST)})

    def connect(self, path: str, *, length: int, clients: int, seconds: float, resume: bool) -> Load:
        """Open connections one after another in several processes, one request on each."""
        options = [f"--seconds={seconds}", f"--path={path}", f"--length={length}", *(["--resume"] if resume else [])]
        running = [self._client("connect", *options) for _ in range(clients)]
        results = [parse_result(self._finish(process, seconds)) for process in running]
        return merge_connects(results, seconds)

    @contextmanager
    def hold(self, path: str, *, length: int, count: int) -> Iterator[None]:
        """Keep `count` connections open that have served requests; ValueError when they did not last."""
        process = self._client("hold", f"--count={count}", f"--path={path}", f"--length={length}")
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

    def _client(self, work: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "scripts.benchmark.client", work, f"--port={self._port}", *options]
        return self._processes.open(command, cores=self._cores, environ=self._environ)

    def _run(self, command: Sequence[str | Path], seconds: float, environ: Mapping[str, str]) -> str:
        process = self._processes.open(command, cores=self._cores, environ={**self._environ, **environ})
        return self._finish(process, seconds)

    def _finish(self, process: subprocess.Popen[str], seconds: float) -> str:
        try:
            return process.communicate(timeout=seconds + GRACE)[0]
        finally:
            self._processes.stop(process)
