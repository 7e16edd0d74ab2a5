"""`scripts/bench --profile ROW`: where tlsproxy's time goes under that row's load.

py-spy samples the busiest worker while the generator runs. Writes collapsed stacks (speedscope.app and flamegraph.pl
open them) and prints the functions with the most time.
"""

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from scripts.benchmark import measure
from scripts.benchmark.arena import Arena, Contest, MeasurementError
from scripts.benchmark.load import Load
from scripts.benchmark.peers import PEERS, VENV
from scripts.benchmark.rows import STREAMS, UPLOAD, connect, downloads, multiplex, saturate, vary

RATE = 200  # a second; each sample halts the worker, at 500 it served half as much
LOADS: dict[str, Callable[[Contest, float], Load]] = {
    "http1-small": lambda contest, seconds: saturate(contest, "/small", seconds),
    "http1-varied": lambda contest, seconds: saturate(contest, "/varied", seconds, varied=True),
    "http1-64k": lambda contest, seconds: saturate(contest, "/large", seconds),
    "http2-small": lambda contest, seconds: multiplex(contest, "/small", STREAMS, seconds),
    "http2-varied": vary,
    "http2-64k": lambda contest, seconds: multiplex(contest, "/large", STREAMS, seconds),
    "http2-upload": lambda contest, seconds: multiplex(contest, "/upload", STREAMS, seconds, upload=UPLOAD),
    "http2-100x50": lambda contest, seconds: multiplex(contest, "/small", 100, seconds),
    "tls-connection": lambda contest, seconds: connect(contest, seconds, resume=False),
    "tls-resumed": lambda contest, seconds: connect(contest, seconds, resume=True),
    "bulk": downloads,
}


def profile(arena: Arena, row: str, seconds: float, target: Path, *, native: bool) -> str:
    """Run the row's load on tlsproxy alone, write `target`, return the summary."""
    spy = shutil.which("py-spy", path=f"{VENV}:/usr/local/bin:/usr/bin")
    if spy is None:
        raise MeasurementError("py-spy is not installed: pip install py-spy")
    with arena.running(PEERS["tlsproxy"]) as contest:
        generate = LOADS[row]
        worker = _busiest(contest, lambda: generate(contest, 1))
        options = ["--format", "raw", "--rate", str(RATE), "--duration", str(round(seconds))]
        command = [spy, "record", "--threads", *options, "--output", str(target), "--pid", str(worker)]
        command += ["--native"] if native else []
        sampler = arena.processes.open(command, cores=arena.cores.load, environ={})
        try:
            before = measure.cpu_by_thread(worker)
            load = generate(contest, seconds + 1)
            after = measure.cpu_by_thread(worker)
            said = sampler.communicate(timeout=60)[0]
        finally:
            arena.processes.stop(sampler)
    if not target.exists():
        raise MeasurementError(f"py-spy wrote nothing: {said.strip()[-500:]}")
    used = {thread: after[thread] - before.get(thread, 0.0) for thread in after}
    share = used[worker] / (sum(used.values()) or 1)
    return (
        f"{load.rate:.0f} requests/s while sampled, worker {worker}; "
        f"its main thread, shown here, used {share:.0%} of its CPU\n{summarise(target.read_text())}"
    )


def _busiest(contest: Contest, warm_up: Callable[[], Load]) -> int:
    before = measure.cpu_by_process(contest.pid)
    warm_up()
    after = measure.cpu_by_process(contest.pid)
    return max(after, key=lambda pid: after[pid] - before.get(pid, 0.0))


def summarise(collapsed: str, top: int = 40) -> str:
    """Return the main thread's functions by their own time: share alone, and with what they call.

    The other threads are left out: py-spy takes one that waits inside a C call for a busy one.
    """
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        if "MainThread" in thread and frames:
            own[frames[-1]] += int(count)
            total.update(dict.fromkeys(frames, int(count)))
    samples = sum(own.values()) or 1
    lines = [f"{own[name] / samples:6.1%} {total[name] / samples:6.1%}  {name}" for name, _ in own.most_common(top)]
    return "\n".join(["   own   total  function", *lines])
