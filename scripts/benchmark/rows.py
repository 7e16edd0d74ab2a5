"""The works that are compared, their figures, and the budgets of the design.

A row runs one peer once and returns a Sample; interleaving, medians and ratios are not its business. The proxy is
started fresh for every run and warmed up with the same work, so no run inherits the memory or the luck of another.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import monotonic, sleep

from scripts.benchmark import measure
from scripts.benchmark.arena import LENGTHS, Arena, Contest, MeasurementError, answer_size
from scripts.benchmark.load import Load
from scripts.benchmark.peers import PEERS, Peer

WARM_UP = 1.0
WARM_UP_REQUESTS = 10_000  # over HTTP/2, where the slowest have hardly begun with 5000 open requests after a second
CONNECTIONS = 50
STREAMS = 10  # open at once on each HTTP/2 connection
UPLOAD = bytes(range(256)) * 256
IDLE_CONNECTIONS = 800
CUT_OFF = 100  # answers the end of a run may cut in the middle: no more than there are connections
CLIENTS = 6
MEBI, GIBI = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Sample:
    """One run: the figure that is compared, and what else is worth a column."""

    figure: float
    details: dict[str, float]


@dataclass(frozen=True)
class Budget:
    """The *must* column: at most these ratios, or at least these values (figure or detail by name)."""

    nginx: float | None = None
    caddy: float | None = None
    at_least: dict[str, float] = field(default_factory=dict)


@dataclass
class Effort:
    """How long to run, and what one row learned that others need. Mutable state: nginx's saturation rate."""

    arena: Arena
    seconds: float
    saturation: float = 0.0


@dataclass(frozen=True)
class Usage:
    """CPU seconds of the peer for a load; `others` is the share of its cores that other processes took meanwhile."""

    cpu: float
    load: Load
    others: float


@dataclass(frozen=True)
class Row:
    """One work. `run` raises MeasurementError or ValueError when the run is invalid."""

    name: str
    title: str
    figure: str
    budget: Budget
    run: Callable[[Effort, Peer], Sample]
    digits: int = 1
    note: str = ""


def keep_alive(path: str, *, varied: bool = False) -> Callable[[Effort, Peer], Sample]:
    """CPU per request on busy keep-alive connections; with `varied` every request's head is another."""

    def run(effort: Effort, peer: Peer) -> Sample:
        with effort.arena.running(peer) as contest:
            saturate(contest, path, WARM_UP, varied=varied)
            usage = timed(contest, lambda: saturate(contest, path, effort.seconds, varied=varied))
            return per_request(contest, usage)

    return run


def multiplexed(path: str, *, streams: int = STREAMS, upload: bytes = b"") -> Callable[[Effort, Peer], Sample]:
    """CPU per request over HTTP/2 connections with many streams; with `upload` each request has this body.

    The measured run is a number of requests that takes about as long as a run should: every answer is complete then,
    and the bytes of all bodies must be right to the last one.
    """

    def run(effort: Effort, peer: Peer) -> Sample:
        with effort.arena.running(peer) as contest:
            at_once = CONNECTIONS * streams
            warm = multiplex(contest, path, streams, effort.seconds, WARM_UP_REQUESTS, upload=upload)
            count = max(1, round(warm.rate * effort.seconds / at_once)) * at_once
            usage = timed(contest, lambda: multiplex(contest, path, streams, effort.seconds, count, upload=upload))
            if usage.load.bytes != count * LENGTHS[path]:
                raise MeasurementError(f"bodies of {usage.load.bytes} bytes together, not {count} × {LENGTHS[path]}")
            return per_request(contest, usage)

    return run


def varied_streams(effort: Effort, peer: Peer) -> Sample:
    """CPU per request over HTTP/2 when every request's head is another."""
    with effort.arena.running(peer) as contest:
        vary(contest, WARM_UP)
        return per_request(contest, timed(contest, lambda: vary(contest, effort.seconds)))


def new_connections(effort: Effort, peer: Peer) -> Sample:
    """CPU per connection with a full TLS 1.3 handshake and one request."""
    with effort.arena.running(peer) as contest:
        connect(contest, WARM_UP, resume=False)
        usage = timed(contest, lambda: connect(contest, effort.seconds, resume=False))
        if usage.load.resumed:
            raise MeasurementError(f"{usage.load.resumed} handshakes were resumed without a ticket")
        return per_request(contest, usage)


def resumed_connections(effort: Effort, peer: Peer) -> Sample:
    """CPU per connection that offers the last ticket, before two workers."""
    with effort.arena.running(peer, workers=2) as contest:
        connect(contest, WARM_UP, resume=True)
        usage = timed(contest, lambda: connect(contest, effort.seconds, resume=True))
        sample = per_request(contest, usage)
        offered = max(1, usage.load.requests - CLIENTS)  # the first connection of each client has no ticket yet
        return Sample(sample.figure, {**sample.details, "resumed": usage.load.resumed / offered})


def bulk(effort: Effort, peer: Peer) -> Sample:
    """CPU per GiB of 100 MiB downloads, and how far the memory grows meanwhile."""
    with effort.arena.running(peer) as contest:
        saturate(contest, "/small", WARM_UP, connections=4)
        with measure.PeakMemory(contest.pid) as memory:
            usage = timed(contest, lambda: downloads(contest, effort.seconds))
        answer_size(contest.place.port, "/bulk")  # one more, counted to the last byte
        details = {
            "mib_s": usage.load.bytes / usage.load.seconds / MEBI,
            "rss_mib": memory.peak / MEBI,
            "grown_mib": (memory.peak - memory.before) / MEBI,
            "others": usage.others,
        }
        return Sample(usage.cpu / (usage.load.bytes / GIBI), details)


def memory_per_connection(*, http2: bool = False) -> Callable[[Effort, Peer], Sample]:
    """Resident memory each idle connection adds after serving three requests."""

    def run(effort: Effort, peer: Peer) -> Sample:
        with effort.arena.running(peer) as contest:
            with hold(contest, 20, http2=http2):
                pass
            before = measure.rss_bytes(contest.pid)
            with hold(contest, IDLE_CONNECTIONS, http2=http2):
                sleep(0.5)  # what the proxy frees by itself after a burst is its merit
                held = measure.rss_bytes(contest.pid)
            return Sample((held - before) / 1024 / IDLE_CONNECTIONS, {"rss_mib": held / MEBI})

    return run


def two_workers(effort: Effort, peer: Peer) -> Sample:
    """Throughput of two workers on two cores against one on one, with the same generator."""
    single, single_cost = throughput(effort, peer, workers=1)
    double, double_cost = throughput(effort, peer, workers=2, paced=single / 2)
    details = {"rps": double, "rps_1": single, "measured": double / single}
    if not peer.worker_is:
        return Sample(double / single, details)
    capacity = single_cost / double_cost
    details["capacity"] = capacity
    return Sample(capacity if effort.arena.cores.shared else double / single, details)


def throughput(effort: Effort, peer: Peer, *, workers: int, paced: float = 0) -> tuple[float, float]:
    """Return requests per second at saturation, and the busiest worker's CPU for each of all requests at a fixed rate.

    The rate is fixed, by default half of that saturation, because on shared cores wrk would send more to the worker
    that has the better core, and hide how evenly the connections were spread.
    """
    with effort.arena.running(peer, workers=workers, spread=workers > 1) as contest:
        saturate(contest, "/small", WARM_UP, connections=100, threads=2)
        rate = saturate(contest, "/small", effort.seconds, connections=100, threads=2).rate
        before = cpu_by_worker(contest)
        load = pace(contest, paced or rate / 2, effort.seconds)
        after = cpu_by_worker(contest)
        return rate, max(after[worker] - before.get(worker, 0) for worker in after) / load.requests


def latency(effort: Effort, peer: Peer) -> Sample:
    """The 99th percentile at half of what nginx can do at most."""
    rate = nginx_saturation(effort) / 2
    with effort.arena.running(peer) as contest:
        saturate(contest, "/small", WARM_UP)
        usage = timed(contest, lambda: pace(contest, rate, effort.seconds))
        sample = per_request(contest, usage)
        columns = {name: value for name, value in sample.details.items() if name != "p99"}
        return Sample(usage.load.p99, {**columns, "cpu_us": sample.figure, "offered": rate})


def nginx_saturation(effort: Effort) -> float:
    """Measure once how many small requests a second nginx answers."""
    if not effort.saturation:
        with effort.arena.running(PEERS["nginx"]) as contest:
            saturate(contest, "/small", WARM_UP)
            effort.saturation = saturate(contest, "/small", effort.seconds).rate
    return effort.saturation


def timed(contest: Contest, generate: Callable[[], Load]) -> Usage:
    """Return what the peer used while the load ran."""
    busy, cpu, began = measure.core_seconds(contest.cores), measure.cpu_seconds(contest.pid), monotonic()
    load = generate()
    cpu = measure.cpu_seconds(contest.pid) - cpu
    busy = measure.core_seconds(contest.cores) - busy
    if load.problem:
        raise MeasurementError(load.problem)
    return Usage(cpu, load, max(0.0, busy - cpu) / (monotonic() - began))


def saturate(
    contest: Contest,
    path: str,
    seconds: float,
    *,
    connections: int = CONNECTIONS,
    threads: int = 1,
    varied: bool = False,
) -> Load:
    """Run wrk with as many requests as it gets answered."""
    load = contest.load.saturate(path, connections=connections, seconds=seconds, threads=threads, varied=varied)
    return checked(contest, path, load)


def checked(contest: Contest, path: str, load: Load) -> Load:
    """Hold the answers' average size against one answer that was checked byte by byte."""
    if load.problem:
        raise MeasurementError(load.problem)
    expected = contest.answer_sizes[path]
    slack = expected * CUT_OFF / load.requests + 0.01 * expected
    if abs(load.bytes / load.requests - expected) > slack:
        raise MeasurementError(f"answers of {load.bytes / load.requests:.0f} bytes on average, not {expected}")
    return load


def multiplex(
    contest: Contest, path: str, streams: int, seconds: float, requests: int = 0, *, upload: bytes = b""
) -> Load:
    """Run h2load; a load with a problem is no warm-up either."""
    size = {"connections": CONNECTIONS, "streams": streams, "requests": requests}
    load = contest.load.multiplex(path, **size, seconds=seconds, upload=upload)
    if load.problem:
        raise MeasurementError(load.problem)
    return load


def vary(contest: Contest, seconds: float) -> Load:
    """Run the client whose heads never repeat."""
    size = {"connections": CONNECTIONS, "streams": STREAMS}
    return contest.load.vary("/varied", length=LENGTHS["/varied"], **size, seconds=seconds)


def hold(contest: Contest, count: int, *, http2: bool) -> AbstractContextManager[None]:
    """Keep connections idle that have served requests."""
    return contest.load.hold("/small", length=LENGTHS["/small"], count=count, http2=http2)


def connect(contest: Contest, seconds: float, *, resume: bool) -> Load:
    """Run the connecting clients."""
    return contest.load.connect("/small", length=LENGTHS["/small"], clients=CLIENTS, seconds=seconds, resume=resume)


def pace(contest: Contest, rate: float, seconds: float) -> Load:
    """Run wrk with small requests at a fixed rate."""
    return checked(contest, "/small", contest.load.pace("/small", rate=rate, seconds=seconds))


def downloads(contest: Contest, seconds: float) -> Load:
    """Run wrk with the 100 MiB file; too few are completed in a run to judge by their average size."""
    return contest.load.saturate("/bulk", connections=4, seconds=seconds, timeout=60)


def per_request(contest: Contest, usage: Usage) -> Sample:
    """CPU microseconds per request, with the usual columns."""
    load = usage.load
    columns = {"rps": load.rate, "p50": load.p50, "p99": load.p99, "rss_mib": measure.rss_bytes(contest.pid) / MEBI}
    return Sample(usage.cpu / load.requests * 1e6, {**columns, "others": usage.others})


def cpu_by_worker(contest: Contest) -> dict[int, float]:
    """CPU seconds of each worker, whatever a worker is to this peer."""
    if contest.peer.worker_is == "thread":
        return measure.cpu_by_thread(contest.pid)
    return measure.cpu_by_process(contest.pid)


SMALL_NOTE = f"{CONNECTIONS} keep-alive connections, 9 request fields, wrk at saturation."
STREAMS_NOTE = f"{CONNECTIONS} connections, {STREAMS} streams each, 9 request fields, h2load at saturation."
ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("http1-small", "HTTP/1.1 keep-alive, 216 B JSON", "CPU µs/request", Budget(nginx=1.8, caddy=0.45),
            keep_alive("/small"), note=SMALL_NOTE),
        Row("http1-varied", "The same, but no head repeats", "CPU µs/request", Budget(nginx=1.8, caddy=0.45),
            keep_alive("/varied", varied=True),
            note=f"{CONNECTIONS} keep-alive connections. Every request has another query, Cookie, Referer and X-Trace "
            "(a tenth field), every answer another ETag, X-Trace and Set-Cookie, so that nothing is gained by "
            "recognising a whole head. wrk writes each request in Lua, which costs the generator's core more: compare "
            "the proxy's CPU with http1-small, not requests/s and latencies."),
        Row("http1-64k", "HTTP/1.1 keep-alive, 64 KiB answer", "CPU µs/request", Budget(nginx=1.25),
            keep_alive("/large"), note=SMALL_NOTE),
        Row("http2-small", "HTTP/2, 10 streams a connection, 216 B JSON", "CPU µs/request",
            Budget(nginx=1.5, caddy=0.3), multiplexed("/small"), note=STREAMS_NOTE),
        Row("http2-varied", "The same, but no head repeats", "CPU µs/request", Budget(nginx=1.5, caddy=0.3),
            varied_streams,
            note=f"{CONNECTIONS} connections, {STREAMS} streams each; what varies is the same as in http1-varied. The "
            "generator is written in Python: compare the proxy's CPU, not requests/s and latencies."),
        Row("http2-64k", "HTTP/2, 64 KiB answer", "CPU µs/request", Budget(nginx=1.25), multiplexed("/large"),
            note=STREAMS_NOTE),
        Row("http2-upload", "HTTP/2 uploads of 64 KiB", "CPU µs/request", Budget(nginx=1.25),
            multiplexed("/upload", upload=UPLOAD),
            note=f"POST, answered when the application has read the whole body. {STREAMS_NOTE}"),
        Row("http2-100x50", "HTTP/2, 100 streams on each of 50 connections", "CPU µs/request", Budget(nginx=1.5),
            multiplexed("/small", streams=100),
            note="Small requests, 5000 of them open at once, h2load at saturation."),
        Row("tls-connection", "New TLS 1.3 connection and one request, full handshake", "CPU µs/connection",
            Budget(nginx=1.4), new_connections, digits=0,
            note=f"{CLIENTS} clients, P-256 and X25519, Connection: close."),
        Row("tls-resumed", "TLS 1.3 connection and one request, resumed across 2 workers", "CPU µs/connection",
            Budget(nginx=1.5, at_least={"resumed": 0.95}), resumed_connections, digits=0,
            note=f"{CLIENTS} clients, each offers the newest ticket it has; 2 workers on the proxy's one core."),
        Row("bulk", "100 MiB downloads", "CPU s/GiB", Budget(nginx=1.2), bulk, digits=2,
            note="4 connections. Growth is the highest resident memory seen less that before the first download."),
        Row("rss", "Memory per open connection", "RSS KiB/connection", Budget(nginx=1.3),
            memory_per_connection(),
            note=f"{IDLE_CONNECTIONS} idle keep-alive TLS connections that have served 3 requests each."),
        Row("rss-http2", "Memory per open HTTP/2 connection", "RSS KiB/connection", Budget(nginx=1.3),
            memory_per_connection(http2=True),
            note=f"{IDLE_CONNECTIONS} idle HTTP/2 connections that have served 3 requests each."),
        Row("workers-2", "2 workers on 2 cores against 1 on 1", "× throughput", Budget(at_least={"": 1.8}),
            two_workers, digits=2,
            note="100 connections. Where the generators share the two cores with the proxy, measured throughput can't "
            "double for anyone; the figure is then the capacity: the only worker's CPU at half of its saturation rate "
            "over the busier one's of two at the same rate, which is what two unshared cores would carry, an uneven "
            "spread of connections included. Go moves work between threads: measured only."),
        Row("latency", "p99 at half of nginx's saturation rate", "p99 ms", Budget(nginx=2.0), latency, digits=2,
            note="wrk with small requests, a rest of 10 to 30 ms after each answer, as many connections as the "
            "rate takes. A peer with fewer requests/s than offered is saturated."),
    )
}  # fmt: skip
