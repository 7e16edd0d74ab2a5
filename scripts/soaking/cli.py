"""`scripts/soak`: moderate load for hours while everything is changed, then a table of what it cost.

Writes a line of JSON for each look at the processes to samples.jsonl in its folder, so that a soak that is cut short
has something to tell as well. Exit code 0: no request failed and every deed was done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
import sys
import tempfile
import time
from pathlib import Path

from scripts.soaking.deeds import HOST, Stage
from scripts.soaking.samples import Sample, look, slope, stamp
from scripts.soaking.visitors import Crowd, Place

MIB = 1 << 20
WARM_UP = 0.15
"""Part of the time that the slope leaves out: caches fill, pools grow."""


def main() -> int:
    arguments = _arguments()
    folder = arguments.dir or Path(tempfile.mkdtemp(prefix="tlsproxy-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"==> {arguments.minutes:g} minutes; files in {folder}", flush=True)
    return asyncio.run(_soak(arguments, folder))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0, help="how long (120)")
    parser.add_argument("--reload", type=float, default=60.0, metavar="S", help="seconds between reloads (60)")
    parser.add_argument("--certificate", type=float, default=97.0, metavar="S", help="between new certificates (97)")
    parser.add_argument("--backend", type=float, default=131.0, metavar="S", help="between restarts of a backend (131)")
    parser.add_argument("--upgrade", type=float, default=907.0, metavar="S", help="between upgrades (907); 0: none")
    parser.add_argument("--dir", type=Path, help="folder for logs and samples (a temporary one)")
    return parser.parse_args()


async def _soak(arguments: argparse.Namespace, folder: Path) -> int:
    stage = Stage(folder, _free_port(), [_free_port(), _free_port()])
    samples: list[Sample] = []
    try:
        await stage.start()
        place = Place(HOST, stage.https, _context(stage))
        async with Crowd(place) as crowd:
            await _keep_busy(arguments, stage, crowd, samples)
    finally:
        await stage.close()
    print(report(samples, crowd, stage))
    return 1 if crowd.failures or stage.failed.total() else 0


async def _keep_busy(arguments: argparse.Namespace, stage: Stage, crowd: Crowd, samples: list[Sample]) -> None:
    deeds = [
        asyncio.create_task(stage.repeat("reload", stage.reload, arguments.reload)),
        asyncio.create_task(stage.repeat("new certificate", stage.swap_certificate, arguments.certificate)),
        asyncio.create_task(stage.repeat("restart of a backend", stage.restart_backend, arguments.backend)),
    ]
    if arguments.upgrade:
        deeds.append(asyncio.create_task(stage.repeat("upgrade", stage.upgrade, arguments.upgrade)))
    began, seconds = time.monotonic(), arguments.minutes * 60
    try:
        with (stage.folder / "samples.jsonl").open("a") as file:
            while (elapsed := time.monotonic() - began) < seconds:
                await asyncio.sleep(min(10.0, seconds - elapsed))
                sample = await asyncio.to_thread(_look, stage, crowd, time.monotonic() - began)
                if sample is not None:
                    samples.append(sample)
                    file.write(sample.line() + "\n")
                    file.flush()
    finally:
        for deed in deeds:
            deed.cancel()
        await asyncio.gather(*deeds, return_exceptions=True)


def _look(stage: Stage, crowd: Crowd, elapsed: float) -> Sample | None:
    """None while an upgrade changes who is asked."""
    told = stage.admin("status", "--json")
    if told.returncode:
        return None
    sample = look(json.loads(told.stdout)["pid"], elapsed, crowd.done, crowd.failures)
    if int(elapsed) % 300 < 11:
        print(
            f"{stamp()} {elapsed / 60:5.1f} min  {sample.requests} requests, {sample.failures} failed, "
            f"{sample.memory / MIB:.0f} MiB in {sample.processes} processes, {sample.descriptors} descriptors",
            flush=True,
        )
    return sample


def report(samples: list[Sample], crowd: Crowd, stage: Stage) -> str:
    """Return Markdown: the visitors, the deeds, the processes."""
    lines = [
        "",
        "| visitors | requests or messages | failed | closed as announced | slowest |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {tally.kind} | {tally.done} | {tally.failures.total()} | {tally.announced} | {tally.slowest_ms:.0f} ms |"
        for tally in crowd.tallies
    ]
    lines += ["", "| deed | done | failed |", "|---|---|---|"]
    deeds = sorted({*stage.done, *stage.failed})
    lines += [f"| {deed} | {stage.done[deed]} | {stage.failed[deed]} |" for deed in deeds]
    lines += ["", "| | first | last | median | slope per hour |", "|---|---|---|---|---|"]
    settled = samples[int(len(samples) * WARM_UP) :]
    for name, unit in (("supervisor", MIB), ("worker", MIB), ("certifier", MIB), ("memory", MIB)):
        lines.append(_row(f"{name}, MiB", [(s.elapsed, getattr(s, name) / unit) for s in settled]))
    for name in ("descriptors", "processes"):
        lines.append(_row(name, [(s.elapsed, float(getattr(s, name))) for s in settled]))
    lines += ["", *(moment for tally in crowd.tallies for moment in tally.moments)]
    return "\n".join(lines)


def _row(name: str, points: list[tuple[float, float]]) -> str:
    if not points:
        return f"| {name} | | | | |"
    values = sorted(y for _, y in points)
    return (
        f"| {name} | {points[0][1]:.1f} | {points[-1][1]:.1f} | {values[len(values) // 2]:.1f} | "
        f"{slope(points) * 3600:+.2f} |"
    )


def _context(stage: Stage) -> ssl.SSLContext:
    context = ssl.create_default_context()
    stage.authority.configure_trust(context)
    # The visitors come by address and name the host they mean.
    context.check_hostname = False
    return context


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
