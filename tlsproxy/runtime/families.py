"""Every metric there is: its name, kind, labels and what it says. And how the name of one series is taken apart. PURE.

Knows names; no values. Rule: what is not in `FAMILIES` with just these labels is no metric of ours, whoever says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TypeAlias

from tlsproxy.proxy.metrics import EDGES

Kind: TypeAlias = Literal["counter", "histogram", "gauge"]

ROLES: Final = ("supervisor", "certifier", "worker")


@dataclass(frozen=True)
class Family:
    """A metric. A counter's `name` ends with _total, a histogram's series have _bucket, _count and _sum after it."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """One series of a family: `part` is "", or "bucket" (`edge` is its le) or "sum" of a histogram."""

    family: Family
    labels: tuple[str, ...]
    part: Literal["", "bucket", "sum"] = ""
    edge: str = ""


def _counter(name: str, *labels: str, tell: str) -> Family:
    return Family(name, "counter", tell, labels)


def _gauge(name: str, *labels: str, tell: str) -> Family:
    return Family(name, "gauge", tell, labels)


REQUESTS: Final = _counter(
    "tlsproxy_requests_total", "site", "route", "method", "status", tell="Requests answered, or given up by the client."
)
REQUEST_DURATION: Final = Family(
    "tlsproxy_request_duration_seconds",
    "histogram",
    "From the request's head to the end of its answer; without WebSockets.",
    ("site", "route"),
)
BACKEND_DURATION: Final = Family(
    "tlsproxy_backend_duration_seconds",
    "histogram",
    "From sending a request to a backend to the head of its answer.",
    ("site", "backend"),
)
RETRIES: Final = _counter(
    "tlsproxy_backend_retries_total", "site", tell="Requests sent again, or to another backend, before an answer came."
)
DOWNGRADES: Final = _counter(
    "tlsproxy_backend_scheme_downgrade_total",
    "site",
    tell="Redirects of backends from https to http on the same host: they do not believe X-Forwarded-Proto.",
)
HANDSHAKES: Final = _counter(
    "tlsproxy_tls_handshakes_total",
    "version",
    "resumed",
    "result",
    tell="TLS handshakes by their end; ok, or why they failed.",
)
UNKNOWN_SNI: Final = _counter(
    "tlsproxy_tls_unknown_sni_total",
    tell="Handshakes refused because no site has the name that the client asked for, or it asked for none.",
)
TURNED_AWAY: Final = _counter(
    "tlsproxy_connections_turned_away_total", tell="Connections closed at once because a limit was reached."
)
LOG_DROPPED: Final = _counter(
    "tlsproxy_log_batches_dropped_total", tell="Batches of the access log that could not be written."
)
ACME_FAILURES: Final = _counter(
    "tlsproxy_acme_failures_total",
    "name",
    "type",
    tell="Failed attempts to obtain a certificate; all names on demand are counted as on_demand.",
)
DEATHS: Final = _counter(
    "tlsproxy_process_deaths_total", "role", tell="Children that ended without having been told to."
)
HANGS: Final = _counter("tlsproxy_process_hangs_total", "role", tell="Children ended because they no longer answered.")
RELOADS: Final = _counter("tlsproxy_reloads_total", "result", tell="Reloads by result: ok or failed.")
CPU: Final = _counter("tlsproxy_process_cpu_seconds_total", "role", tell="CPU time of the processes.")
SERIES_DROPPED: Final = _counter(
    "tlsproxy_series_dropped_total", tell="Increments that were not counted because there are too many series."
)
REQUEST_BYTES: Final = _counter("tlsproxy_request_body_bytes_total", "site", tell="Bytes of request bodies.")
RESPONSE_BYTES: Final = _counter("tlsproxy_response_body_bytes_total", "site", tell="Bytes of answers' bodies.")

CONNECTIONS: Final = _gauge(
    "tlsproxy_connections", "state", tell="Client connections: in their handshake, active, idle, closing."
)
NOT_AFTER: Final = _gauge(
    "tlsproxy_certificate_not_after_seconds", "name", "issuer", tell="End of a certificate's life, as Unix time."
)
NOT_BEFORE: Final = _gauge(
    "tlsproxy_certificate_not_before_seconds", "name", "issuer", tell="Begin of a certificate's life, as Unix time."
)
NEXT_ATTEMPT: Final = _gauge(
    "tlsproxy_certificate_next_attempt_seconds", "name", tell="When a CA is asked next for a certificate, as Unix time."
)
SERVED: Final = _gauge(
    "tlsproxy_certificate_served", "name", tell="1 if the listeners serve the certificate that the store has."
)
CERTIFICATES: Final = _gauge(
    "tlsproxy_certificates", "status", tell="Certificates by status, those on demand included."
)
BACKEND_UP: Final = _gauge(
    "tlsproxy_backend_up", "site", "backend", tell="1 unless all workers see the backend down or leave it alone."
)
BACKEND_ACTIVE: Final = _gauge("tlsproxy_backend_active_requests", "backend", tell="Requests under way at a backend.")
BACKEND_IDLE: Final = _gauge("tlsproxy_backend_idle_connections", "backend", tell="Idle connections to a backend.")
WAITING: Final = _gauge(
    "tlsproxy_requests_waiting", tell="Requests that wait for a backend: its limit is reached, or the site is paused."
)
GENERATION: Final = _gauge(
    "tlsproxy_generation", tell="Number of the generation that serves; a reload makes a new one."
)
DRAINING: Final = _gauge("tlsproxy_generations_draining", tell="Generations that only finish what they have begun.")
WORKERS: Final = _gauge("tlsproxy_workers", tell="Workers of the serving generation that are ready.")
WORKERS_WANTED: Final = _gauge("tlsproxy_workers_wanted", tell="Workers that the configuration asks for.")
LOOP_LAG: Final = _gauge(
    "tlsproxy_worker_loop_lag_seconds", tell="How late the slowest worker's event loop was at its last tick."
)
MEMORY: Final = _gauge("tlsproxy_process_resident_memory_bytes", "role", tell="Resident memory of the processes.")
DESCRIPTORS: Final = _gauge("tlsproxy_process_open_fds", "role", tell="Open file descriptors of the processes.")
STARTED: Final = _gauge("tlsproxy_start_time_seconds", tell="When the proxy was started, as Unix time.")
BUILD: Final = _gauge("tlsproxy_build_info", "version", tell="1; the version is in the label.")

FAMILIES: Final[Mapping[str, Family]] = {
    family.name: family for family in list(globals().values()) if isinstance(family, Family)
}

_NAME: Final = re.compile(r"([a-z_]+)(?:\{(.*)\})?\Z", re.DOTALL)
_LABEL: Final = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\["\\n])*)"(?:,|\Z)')
_ESCAPE: Final = re.compile(r'\\(["\\n])')


@lru_cache(maxsize=100_000)
def parse_series(name: str) -> Series | None:
    """Take "name{label="value",…}" apart, the form of `Stats.series`; None if it is no counter of ours."""
    found = _NAME.match(name)
    if found is None:
        return None
    base, inside = found.groups()
    labels = _parse_labels(inside or "")
    family = FAMILIES.get(base)
    if family is not None and family.kind == "counter":
        return Series(family, tuple(labels.values())) if labels is not None and tuple(labels) == family.labels else None
    return _parse_part(base, labels)


def _parse_part(base: str, labels: dict[str, str] | None) -> Series | None:
    name, _, part = base.rpartition("_")
    family = FAMILIES.get(name)
    if family is None or family.kind != "histogram" or labels is None:
        return None
    if part == "bucket":
        edge = labels.pop("le", "")
        is_known = edge in EDGES and tuple(labels) == family.labels
        return Series(family, tuple(labels.values()), "bucket", edge) if is_known else None
    if part == "sum" and tuple(labels) == family.labels:
        return Series(family, tuple(labels.values()), "sum")
    return None


def _parse_labels(inside: str) -> dict[str, str] | None:
    labels: dict[str, str] = {}
    end = 0
    while end < len(inside):
        found = _LABEL.match(inside, end)
        if found is None:
            return None
        labels[found[1]] = _ESCAPE.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], found[2])
        end = found.end()
    return labels
