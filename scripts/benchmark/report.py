"""From samples to tables: medians, ratios, verdicts; for a terminal, as Markdown, as JSON.

Pure: no processes, no files. Ratios are taken inside each round, where noise hits the peers alike, and their median is
reported; a ratio of medians would compare different minutes.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table as RichTable

from scripts.benchmark.rows import Budget, Row, Sample

OURS = "tlsproxy"
# Detail name: heading, digits, factor.
COLUMNS: dict[str, tuple[str, int, float]] = {
    "cpu_us": ("CPU µs", 1, 1),
    "rps": ("requests/s", 0, 1),
    "rps_1": ("with 1 worker", 0, 1),
    "measured": ("measured ×", 2, 1),
    "capacity": ("capacity ×", 2, 1),
    "offered": ("offered/s", 0, 1),
    "mib_s": ("MiB/s", 0, 1),
    "resumed": ("resumed %", 1, 100),
    "p50": ("p50 ms", 2, 1),
    "p99": ("p99 ms", 2, 1),
    "rss_mib": ("RSS MiB", 0, 1),
    "others": ("others %", 0, 100),
    "grown_mib": ("growth MiB", 0, 1),
}


@dataclass(frozen=True)
class Run:
    """One peer in one round of one row: a sample, or the reason why there is none."""

    row: str
    peer: str
    round: int
    sample: Sample | None
    problem: str = ""


@dataclass(frozen=True)
class Standing:
    """One peer in one row over all rounds."""

    peer: str
    valid: int
    figure: float
    spread: float
    nginx: float | None
    caddy: float | None
    details: dict[str, float]


@dataclass(frozen=True)
class Verdict:
    """The budget in words, and whether it is kept; None when there is nothing to compare with."""

    must: str
    inside: bool | None


@dataclass(frozen=True)
class Sheet:
    """One row of the benchmark as a table of strings."""

    title: str
    note: str
    header: list[str]
    lines: list[list[str]]
    problems: list[str]


def standings(runs: Sequence[Run]) -> list[Standing]:
    """Sum up the runs of one row, one standing per peer with at least one valid run."""
    peers = list(dict.fromkeys(run.peer for run in runs))
    return [found for peer in peers if (found := _standing(peer, runs))]


def _standing(peer: str, runs: Sequence[Run]) -> Standing | None:
    samples = [run.sample for run in runs if run.peer == peer and run.sample]
    if not samples:
        return None
    figures = [sample.figure for sample in samples]
    names = [name for name in COLUMNS if name in samples[0].details]
    return Standing(
        peer=peer,
        valid=len(samples),
        figure=statistics.median(figures),
        spread=spread(figures),
        nginx=paired_ratio(runs, peer, "nginx"),
        caddy=paired_ratio(runs, peer, "caddy"),
        details={name: statistics.median(sample.details[name] for sample in samples) for name in names},
    )


def paired_ratio(runs: Sequence[Run], peer: str, other: str) -> float | None:
    """Return the median over the rounds of peer's figure to other's; None without a common valid round."""
    figures = {(run.peer, run.round): run.sample.figure for run in runs if run.sample}
    rounds = sorted({number for _, number in figures})
    pairs = [(figures.get((peer, number)), figures.get((other, number))) for number in rounds]
    ratios = [mine / theirs for mine, theirs in pairs if mine is not None and theirs]
    return statistics.median(ratios) if ratios else None


def spread(values: Sequence[float]) -> float:
    """Return half the range as a share of the median: how far a median of few runs can be trusted."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / 2 / middle if middle else 0.0


def judge(standing: Standing, budget: Budget) -> Verdict:
    """Hold one standing against the budget."""
    checks: list[tuple[str, bool | None]] = []
    for name, limit, ratio in (("nginx", budget.nginx, standing.nginx), ("Caddy", budget.caddy, standing.caddy)):
        if limit is not None:
            checks.append((f"≤ {limit} × {name}", None if ratio is None else ratio <= limit))
    for name, least in budget.at_least.items():
        value = standing.details.get(name) if name else standing.figure
        checks.append((f"≥ {least} {name}".strip(), None if value is None else value >= least))
    results = [result for _, result in checks]
    inside = False if False in results else None if None in results or not results else True
    return Verdict(", ".join(words for words, _ in checks), inside)


def sheet(row: Row, runs: Sequence[Run]) -> Sheet:
    """Lay out one row."""
    found = standings(runs)
    details = [name for name in COLUMNS if any(name in standing.details for standing in found)]
    header = ["proxy", row.figure, "±", "× nginx", "× Caddy", *(COLUMNS[name][0] for name in details), "must", "inside"]
    lines = [_line(row, standing, details) for standing in found]
    problems = [f"{run.peer}, round {run.round}: {run.problem}" for run in runs if run.problem]
    return Sheet(f"{row.title} ({row.name})", row.note, header, lines, problems)


def _line(row: Row, standing: Standing, details: Sequence[str]) -> list[str]:
    verdict = judge(standing, row.budget) if standing.peer == OURS else Verdict("", None)
    mark = {True: "yes", False: "NO", None: "?" if verdict.must else ""}[verdict.inside]
    return [
        standing.peer,
        f"{standing.figure:.{row.digits}f}",
        f"{standing.spread:.0%}" if standing.valid > 1 else "",
        _number(standing.nginx, 2),
        _number(standing.caddy, 2),
        *(_number(standing.details.get(name), COLUMNS[name][1], COLUMNS[name][2]) for name in details),
        verdict.must,
        mark,
    ]


def _number(value: float | None, digits: int, factor: float = 1) -> str:
    return "–" if value is None else f"{value * factor:.{digits}f}"


def rich_table(sheet: Sheet) -> RichTable:
    """Draw one row for a terminal."""
    table = RichTable(title=sheet.title, title_justify="left", caption=sheet.note, caption_justify="left")
    for number, heading in enumerate(sheet.header):
        table.add_column(heading, justify="left" if number == 0 or heading == "must" else "right")
    for line in sheet.lines:
        style = "bold" if line[0] == OURS else ""
        colour = {"yes": "[green]yes[/]", "NO": "[red]NO[/]"}.get(line[-1], line[-1])
        table.add_row(*line[:-1], colour, style=style)
    return table


def markdown(sheet: Sheet) -> str:
    """Write one row as a Markdown section."""
    rule = ["---"] + ["---:"] * (len(sheet.header) - 1)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in [sheet.header, rule, *sheet.lines])
    problems = "".join(f"\n* invalid: {problem}" for problem in sheet.problems)
    return f"### {sheet.title}\n\n{sheet.note}\n\n{table}\n" + (problems + "\n" if problems else "")


def as_json(machine: dict[str, str], rows: Sequence[Row], runs: Sequence[Run]) -> dict[str, object]:
    """Return everything: the machine, every run, every standing and verdict."""
    return {"machine": machine, "rows": [_row_json(row, [run for run in runs if run.row == row.name]) for row in rows]}


def _row_json(row: Row, runs: Sequence[Run]) -> dict[str, object]:
    found = standings(runs)
    verdicts = {standing.peer: asdict(judge(standing, row.budget)) for standing in found if standing.peer == OURS}
    return {
        "name": row.name,
        "title": row.title,
        "figure": row.figure,
        "standings": [asdict(standing) for standing in found],
        "verdict": verdicts.get(OURS),
        "runs": [asdict(run) for run in runs],
    }
