"""The command line of `scripts/bench`: which rows and peers, how often, and in what form the outcome is wanted."""

import argparse
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console

from scripts.benchmark import machine, names, report
from scripts.benchmark.arena import Arena, MeasurementError
from scripts.benchmark.peers import PEERS, Peer
from scripts.benchmark.profiling import LOADS, profile
from scripts.benchmark.rows import ROWS, Effort, Row

TOOLS = {
    "wrk": "apt-get install wrk",
    "h2load": "apt-get install nghttp2-client",
    "taskset": "apt-get install util-linux",
}
PLAIN_WIDTH = 160  # of a table that is not printed on a terminal


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0 when every run was valid, 1 when some were not, 2 when it could not start."""
    if arguments[:1] == ["names"]:
        return names.main(arguments[1:])
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _interrupt)  # so that `finally` runs
    peers = available_peers(options.peers)
    problem = missing_tools() or ("" if peers else "none of the proxies is installed")
    if problem:
        progress(problem)
        return 2
    try:
        return _profile(options) if options.profile else _contest(options, peers)
    except KeyboardInterrupt:
        progress("interrupted")
        return 130
    except MeasurementError as error:
        progress(str(error))
        return 2


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options."""
    rows = ", ".join(ROWS)
    parser = argparse.ArgumentParser(prog="scripts/bench", description="tlsproxy and its peers on the same work.")
    parser.add_argument("rows", nargs="*", metavar="NAME", help=f"rows to run, all by default: {rows}")
    parser.add_argument("--peers", type=_peer_names, default=list(PEERS), help=f"comma-separated: {','.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often every peer runs every row (5)")
    parser.add_argument("--seconds", type=float, default=4, help="length of one run (4)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--profile", choices=list(LOADS), metavar="ROW", help="sample tlsproxy under this row's load")
    parser.add_argument("--native", action="store_true", help="with --profile: C functions too")
    parser.add_argument("--output", type=Path, help="with --profile: the file for the collapsed stacks")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"unknown row {unknown[0]}; there are {rows}")
    if options.rounds < 1 or options.seconds < 1:
        parser.error("at least one round and one second")
    return options


def available_peers(wanted: Sequence[str]) -> list[Peer]:
    """Return the wanted peers that are installed, and name the others."""
    peers = [PEERS[name] for name in wanted]
    for peer in peers:
        if peer.find() is None:
            progress(f"skipped: {peer.name} is not installed ({peer.missing})")
    return [peer for peer in peers if peer.find()]


def missing_tools() -> str:
    """Name what nothing runs without: the generators, and nginx for the backend."""
    lacking = [f"{tool} ({hint})" for tool, hint in TOOLS.items() if shutil.which(tool) is None]
    if PEERS["nginx"].find() is None:
        lacking.append(f"nginx, the backend ({PEERS['nginx'].missing})")
    return f"missing: {', '.join(lacking)}" if lacking else ""


def run_rows(arena: Arena, rows: Sequence[Row], peers: Sequence[Peer], rounds: int, seconds: float) -> list[report.Run]:
    """Run every row, peers interleaved: A B C A B C."""
    effort, runs = Effort(arena, seconds), []
    for row in rows:
        for number in range(1, rounds + 1):
            for peer in peers:
                run = _run_once(effort, row, peer, number)
                figure = f"{run.sample.figure:.{row.digits}f} {row.figure}" if run.sample else f"INVALID: {run.problem}"
                progress(f"{row.name} {number}/{rounds} {peer.name}: {figure}")
                runs.append(run)
    return runs


def _run_once(effort: Effort, row: Row, peer: Peer, number: int) -> report.Run:
    try:
        return report.Run(row.name, peer.name, number, row.run(effort, peer))
    except (MeasurementError, ValueError, OSError, subprocess.TimeoutExpired) as error:
        return report.Run(row.name, peer.name, number, None, str(error))


def _contest(options: argparse.Namespace, peers: Sequence[Peer]) -> int:
    rows = [ROWS[name] for name in options.rows or ROWS]
    facts = machine.describe(peers, seconds=options.seconds, rounds=options.rounds)
    arena = Arena()
    try:
        _start(arena)
        runs = run_rows(arena, rows, peers, options.rounds, options.seconds)
    finally:
        arena.close()
    _print(options, facts, rows, runs)
    return 1 if any(run.problem for run in runs) else 0


def _profile(options: argparse.Namespace) -> int:
    target = options.output or Path(f"profile-{options.profile}.txt")
    arena = Arena()
    try:
        _start(arena)
        print(profile(arena, options.profile, options.seconds, target, native=options.native))
    finally:
        arena.close()
    progress(f"collapsed stacks in {target}")
    return 0


def _start(arena: Arena) -> None:
    nginx = PEERS["nginx"].find()
    assert nginx  # missing_tools has looked
    arena.start_backend(nginx)
    shared = "; two workers share theirs with the load" if arena.cores.shared else ""
    progress(f"proxy on core {min(arena.cores.proxy)}, load and backend on {sorted(arena.cores.load)}{shared}")


def _print(options: argparse.Namespace, facts: dict[str, str], rows: Sequence[Row], runs: list[report.Run]) -> None:
    if options.json:
        print(json.dumps(report.as_json(facts, rows, runs), indent=2, ensure_ascii=False))
        return
    sheets = [report.sheet(row, [run for run in runs if run.row == row.name]) for row in rows]
    if options.markdown:
        print("\n".join(f"* {name}: {value}" for name, value in facts.items()) + "\n")
        print("\n".join(report.markdown(sheet) for sheet in sheets))
        return
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    for name, value in facts.items():
        console.print(f"{name}: {value}", highlight=False)
    for sheet in sheets:
        console.print()
        console.print(report.rich_table(sheet))
        for problem in sheet.problems:
            console.print(f"invalid: {problem}", style="red", markup=False)


def _peer_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"unknown peer {unknown[0]}")
    return names


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def progress(text: str) -> None:
    """Say what goes on, beside the output."""
    print(text, file=sys.stderr, flush=True)
