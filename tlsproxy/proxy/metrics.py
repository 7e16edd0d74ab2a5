"""What a worker counts: plain numbers on the request path, named and handed over when the supervisor asks.

Strategy: what an exchange was is kept as a tuple, and some hundreds are counted in one go, while the caches are warm.
One dictionary look-up finds the `_Cell` of each (site, route, method, status); everything else is an addition to a
plain number. Names and labels are put together off the request path, and only for what has changed:
`series` returns the increments since it was last called and begins at zero again, so that a worker that dies takes
with it what happened since then and no more. What is added up over workers and generations is the supervisor's.

Rule: no label value is a stranger's. Hosts are those of the configuration, methods and statuses those of the standards,
templates the application's own and at most `MOST_TEMPLATES` a route; all else is "other".
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from tlsproxy.proxy.pool import Backend
    from tlsproxy.proxy.record import Record
    from tlsproxy.proxy.router import Forward, Site
    from tlsproxy.proxy.stream import ConnectionInfo

BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds (seconds, inclusive) of the buckets of both histograms; one more bucket has no bound."""

MOST_TEMPLATES: Final = 200
OTHER: Final = "other"

EDGES: Final = (*map(repr, BOUNDS), "+Inf")
"""The same as `le` says it (OpenMetrics wants 1.0, not 1)."""

_BOUNDS_MS: Final = tuple(round(bound * 1000, 1) for bound in BOUNDS)
_BUCKETS: Final = len(EDGES)
_METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"QUERY"))
_STATUSES: Final = frozenset((*map(int, HTTPStatus), 499))  # 499: the client has left (access log)
_MOST_CELLS: Final = 4000  # of a worker; then all are made anew, nothing counted is lost
_SWITCHED: Final = 101
# What a handshake can fail of, as the log says it -> what the metric says. The rest is "failed".
_RESULTS: Final = {
    "unrecognized name": "unknown_name",
    "timeout": "timeout",
    "connection lost": "connection_lost",
    "plain HTTP on the TLS port": "plain_http",
    "not TLS": "not_tls",
    "no common application protocol": "no_protocol",
    "no usable certificate": "no_certificate",
    "the certificate did not come in time": "no_certificate",
}
_UNKNOWN_NAME: Final = "unrecognized name"

_TOGETHER: Final = 256  # exchanges that are counted in one go

_Kind: TypeAlias = tuple[object, bytes, int, str]
_Ended: TypeAlias = "tuple[Forward | None, Site | None, bytes, int, str, int, int, int, float, Backend | None, float]"


class _Times:
    """A histogram: how many in each bucket, and the time of all together (seconds; of backends: milliseconds)."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS
        self.sum = 0.0


class _Cell:
    """All exchanges of one site, route, method and status. `waits`: how long its backends took, by their URL."""

    __slots__ = ("bytes_in", "bytes_out", "is_timed", "labels", "requests", "retries", "site", "times", "waits")

    def __init__(self, site: str, labels: str, times: _Times, *, is_timed: bool) -> None:
        self.site = site
        self.labels = labels
        self.times = times  # shared by the cells of a route
        self.is_timed = is_timed
        self.waits: dict[str, _Times] = {}
        self.requests = 0
        self.retries = 0
        self.bytes_in = 0
        self.bytes_out = 0


class Metrics:
    """The counters of a worker since the last `series`.

    Mutable: all of it. `_ended` has what is yet to be counted, `_cells` the cells by what they are looked up with,
    `_times` and `_waits` the histograms by their labels, `_templates` what was seen of each route, `_counts` the series
    that are rare enough to be counted by name.
    """

    def __init__(self) -> None:
        self._templates: dict[object, set[str]] = {}
        self._counts: defaultdict[str, float] = defaultdict(float)
        self._ended: list[_Ended] = []
        self._forget()

    def tally(self, record: Record) -> None:
        """Remember an exchange that has ended. On the request path: what it adds to is counted with others, later."""
        ended = self._ended
        ended.append(
            (
                record.forward, record.site, record.head.method, record.status, record.template, record.bytes_in,
                record.bytes_out, record.retries, record.ended - record.started, record.backend, record.backend_ms,
            )
        )  # fmt: skip
        if len(ended) >= _TOGETHER:
            self._count_ended()

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter that is not on the path of every request. Labels must come from a set that is bounded."""
        self._counts[series_name(name, labels)] += by

    def handshake_done(self, info: ConnectionInfo) -> None:
        resumed = "true" if info.resumed else "false"
        self.count("tlsproxy_tls_handshakes_total", version=info.tls, resumed=resumed, result="ok")

    def handshake_failed(self, reason: str) -> None:
        """`reason` as in the log: OpenSSL's words are many, and clients can choose among them."""
        result = _RESULTS.get(reason, "failed")
        self.count("tlsproxy_tls_handshakes_total", version="", resumed="false", result=result)
        if reason == _UNKNOWN_NAME:
            self.count("tlsproxy_tls_unknown_sni_total")

    def series(self) -> dict[str, float]:
        """Return what was added since the last call, by "name{labels}"; buckets of histograms are not cumulated."""
        self._count_ended()
        added, self._counts = self._counts, defaultdict(float)
        for cell in self._all_cells:
            if cell.requests:
                _take_cell(cell, added)
        for labels, times in self._times.items():
            _take_times("tlsproxy_request_duration_seconds", labels, times, 1, added)
        for labels, times in self._waits.items():
            _take_times("tlsproxy_backend_duration_seconds", labels, times, 1000, added)
        if len(self._all_cells) > _MOST_CELLS or len(self._waits) > _MOST_CELLS:
            self._forget()
        return dict(added)

    # --- off the ordinary path

    def _forget(self) -> None:
        """Begin with no cells. Everything in them was handed over."""
        self._cells: dict[_Kind, _Cell] = {}
        self._all_cells: list[_Cell] = []
        self._times: dict[tuple[str, str], _Times] = {}
        self._waits: dict[tuple[str, str], _Times] = {}

    def _count_ended(self) -> None:
        """Add up what has ended since: in one go, for between two requests caches forget what the counting needs."""
        ended, self._ended = self._ended, []
        cells = self._cells
        for forward, site, method, status, template, bytes_in, bytes_out, retries, took, backend, backend_ms in ended:
            try:
                cell = cells[forward or site, method, status, template]
            except KeyError:
                cell = self._find_cell(forward, site, method, status, template)
            cell.requests += 1
            cell.bytes_in += bytes_in
            cell.bytes_out += bytes_out
            cell.retries += retries
            if cell.is_timed:
                cell.times.counts[bisect_left(BOUNDS, took)] += 1
                cell.times.sum += took
            if backend_ms >= 0 and backend is not None:
                try:
                    times = cell.waits[backend.url]
                except KeyError:
                    times = self._find_wait(cell, backend.url)
                times.counts[bisect_left(_BOUNDS_MS, backend_ms)] += 1
                times.sum += backend_ms

    def _find_cell(
        self, forward: Forward | None, site: Site | None, method: bytes, status: int, template: str
    ) -> _Cell:
        """The cell of what the exchange is known as; only that has a place in the table, not what the client said."""
        method = method if method in _METHODS else b""
        status = status if status in _STATUSES else 0
        template = self._known_template(forward, template)
        cell = self._cells.get((forward or site, method, status, template))
        if cell is None:
            cell = self._make_cell(forward, site, method, status, template)
            self._cells[forward or site, method, status, template] = cell
        return cell

    def _make_cell(
        self, forward: Forward | None, site: Site | None, method: bytes, status: int, template: str
    ) -> _Cell:
        name = site.name if site is not None else OTHER
        route = template or (forward.route.label if forward is not None else OTHER)
        shown = {"site": name, "route": route, "method": method.decode() or OTHER, "status": str(status or OTHER)}
        times = self._times.setdefault((name, route), _Times())
        # A WebSocket takes as long as its people stay.
        cell = _Cell(name, series_name("", shown), times, is_timed=status != _SWITCHED)
        self._all_cells.append(cell)
        return cell

    def _known_template(self, forward: Forward | None, template: str) -> str:
        if not template:
            return ""
        known = self._templates.setdefault(forward, set())
        if template not in known:
            if len(known) >= MOST_TEMPLATES:
                return OTHER
            known.add(template)
        return template

    def _find_wait(self, cell: _Cell, url: str) -> _Times:
        wait = cell.waits[url] = self._waits.setdefault((cell.site, url), _Times())
        return wait


def series_name(name: str, labels: dict[str, str]) -> str:
    """Return name{label="value",…} as in Prometheus' text format."""
    if not labels:
        return name
    inside = ",".join(f'{label}="{_escaped(value)}"' for label, value in labels.items())
    return f"{name}{{{inside}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _take_cell(cell: _Cell, added: dict[str, float]) -> None:
    added["tlsproxy_requests_total" + cell.labels] += cell.requests
    site = series_name("", {"site": cell.site})
    if cell.retries:
        added["tlsproxy_backend_retries_total" + site] += cell.retries
    if cell.bytes_in:
        added["tlsproxy_request_body_bytes_total" + site] += cell.bytes_in
    if cell.bytes_out:
        added["tlsproxy_response_body_bytes_total" + site] += cell.bytes_out
    cell.requests = cell.retries = cell.bytes_in = cell.bytes_out = 0


def _take_times(name: str, labels: tuple[str, str], times: _Times, unit: int, added: dict[str, float]) -> None:
    """`unit`: how many of what the times are kept in make a second."""
    second = "backend" if name == "tlsproxy_backend_duration_seconds" else "route"
    named = {"site": labels[0], second: labels[1]}
    if not any(times.counts):
        return
    for edge, count in zip(EDGES, times.counts, strict=True):
        if count:
            added[series_name(name + "_bucket", {**named, "le": edge})] += count
    added[series_name(name + "_sum", named)] += times.sum / unit
    times.counts[:] = [0] * _BUCKETS
    times.sum = 0.0
