"""What supervisors and children tell each other: one frozen value for each message. `control` carries them.

Knows nothing of sockets, of encoding or of what a message leads to. Rule: a message is plain data that JSON can hold.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

ListenerKind: TypeAlias = Literal["https", "http"]


@dataclasses.dataclass(frozen=True)
class BackendPlan:
    """What operators have said about backends and sites since the start: the same for all workers, whole each time.

    `drained` are URLs that get no new request; `swapped` the backends of a route instead of the configured ones, by
    "SITE PATH" (a site is named by its first host); `paused` until when (time.time()) requests of a site wait.
    `key` (hex) keeps the cookies of sticky routes from being made up or read. `instead_of` says for each swap what the
    configuration named then (without an entry: not known, as older versions hand it over); no worker needs it.
    """

    drained: tuple[str, ...] = ()
    swapped: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    paused: dict[str, float] = dataclasses.field(default_factory=dict)
    key: str = dataclasses.field(default="", repr=False)
    instead_of: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Start:
    """Supervisor → child, once and first: everything a child needs to know.

    `settings` is `Settings.for_child()`; `listeners` are (kind, inherited file descriptor, slot) of all slots,
    none for the certifier; `ticket_secret` is hex and common to all workers: TLS sessions resume in any of them.
    `addresses` are the https addresses that are really bound, as getsockname tells them ("127.0.0.1:8443", "[::]:443"):
    for the certifier, which looks whether what it obtained is served.
    """

    settings: str = dataclasses.field(repr=False)
    listeners: tuple[tuple[ListenerKind, int, int], ...] = ()
    ticket_secret: str = dataclasses.field(default="", repr=False)
    slot: int = 0
    generation: int = 1
    addresses: tuple[str, ...] = ()
    plan: BackendPlan = BackendPlan()


@dataclasses.dataclass(frozen=True)
class Ready:
    """Child → supervisor, the answer to Start: it serves."""


@dataclasses.dataclass(frozen=True)
class Failed:
    """Child → supervisor, the other answer to Start: what, why, what to do. The child then exits with 1."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Serve:
    """Supervisor → child: all of the generation are ready. A worker may accept from its slot, a certifier begin to work
    for CAs, which takes CPU from the others.
    """


@dataclasses.dataclass(frozen=True)
class CertificatesChanged:
    """Certifier → supervisor → workers: names whose bundle in the store is new. Never keys; empty means all."""

    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CertificateWanted:
    """Worker → supervisor → certifier: `client` (an address) asks for `host`, and the store has nothing for it.

    Answered by CertificatesChanged or CertificateRefused; by nothing if the certifier dies, so the wait needs a limit.
    """

    host: str
    client: str


@dataclasses.dataclass(frozen=True)
class CertificateRefused:
    """Certifier → supervisor → workers: there will be no certificate for `host`, nobody need wait for it.

    `until` is how many seconds from now nobody need ask again either.
    """

    host: str
    reason: str
    until: float


@dataclasses.dataclass(frozen=True)
class AdminCall:
    """Supervisor → certifier: what somebody wants to know or to have done. Any number may be open at once.

    `verb` is list, show, why, obtain, renew, revoke, remove, announce, quota, rollover or status; `name` is what the
    user called the certificate. Answered by one AdminResult of the same `id`, with AdminProgress before it.
    """

    id: int
    verb: str
    name: str = ""
    options: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class AdminProgress:
    """Certifier → supervisor: a step of an open AdminCall. The words are for a person."""

    id: int
    step: str
    host: str
    text: str


@dataclasses.dataclass(frozen=True)
class AdminResult:
    """Certifier → supervisor: the end of an AdminCall. `status` is HTTP's; `body` JSON, {"error": …} if it failed."""

    id: int
    status: int
    body: Any


@dataclasses.dataclass(frozen=True)
class Drain:
    """Supervisor → child: take nothing new, finish what is in flight, be gone within `timeout` seconds.

    Without a `timeout` the child takes the time of its settings. `last`: nobody listens after this child, so what is
    queued for it is to be served too; so it is with the listeners whose descriptors (as in Start) are in `dropped`.
    What belongs to the sites named in `unchanged` may take `streams` seconds. A second Drain shortens the first.
    """

    timeout: float | None = None
    last: bool = False
    unchanged: tuple[str, ...] = ()
    streams: float = 0.0
    dropped: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class PlanChanged:
    """Supervisor → workers: this is what holds for backends and sites from now on."""

    plan: BackendPlan


@dataclasses.dataclass(frozen=True)
class Probe:
    """Supervisor → one worker: ask these backends of a route ("SITE PATH") once whether they are well, as it does."""

    id: int
    route: str
    backends: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Probed:
    """Worker → supervisor, the answer to Probe: what is wrong with each backend; an empty text is well."""

    id: int
    faults: dict[str, str]


@dataclasses.dataclass(frozen=True)
class AdoptListeners:
    """Supervisor → worker: listen on the sockets of these slots too, theirs is gone."""

    slots: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ReleaseListeners:
    """Supervisor → worker: no longer listen on these adopted slots, they have a worker again."""

    slots: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Leaving:
    """Worker → supervisor: it accepts no more connections from now on, whoever asked it to."""


@dataclasses.dataclass(frozen=True)
class Drained:
    """Child → supervisor, its last word: how many connections had to be cut when the time was up."""

    cut: int = 0


@dataclasses.dataclass(frozen=True)
class ReopenLogs:
    """Supervisor → child: log files were rotated away, open them again."""


@dataclasses.dataclass(frozen=True)
class StatsRequest:
    """Supervisor → child: answer with Stats."""


@dataclasses.dataclass(frozen=True)
class Stats:
    """Child → supervisor: counters since the child's start, by name; and what a worker has to tell besides.

    `series` are increments of metrics since the last Stats, by "name{label="value",…}" as in the exposition format;
    `backends` the state of each backend as this worker sees it.
    """

    values: dict[str, int]
    series: dict[str, float] = dataclasses.field(default_factory=dict)
    backends: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Hello:
    """New supervisor → old one, first: here is a tlsproxy that can take over; `protocol` is how the two go on."""

    protocol: int
    version: str


@dataclasses.dataclass(frozen=True)
class Handover:
    """Old supervisor → new one: what a proxy goes on with, in place of what it would make for itself.

    Descriptors are inherited: `listeners` are (kind, file descriptor, slot, text, entry) as in sockets.Listener,
    `admin` the path and the descriptor of the admin socket, `metrics` address and descriptors of the port for scrapers,
    `line` that of the stand-in (-1: there is none).
    `notify` and `watchdog` are as in systemd.Service, `totals` the metrics, `started` (RFC 3339) when the first of all
    supervisors was ready.
    """

    generation: int
    ticket_secret: str = dataclasses.field(repr=False)
    listeners: tuple[tuple[ListenerKind, int, int, str, int], ...]
    plan: BackendPlan = BackendPlan()
    admin: tuple[str, int] | None = None
    metrics: tuple[str, tuple[int, ...]] = ("", ())
    line: int = -1
    notify: str = ""
    watchdog: float = 0.0
    started: str = ""
    totals: dict[str, float] = dataclasses.field(default_factory=dict, repr=False)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """New supervisor → old one: all its children are ready.

    `sites` has a digest of each, by its first host; `dropped` are listeners of the Handover (descriptors) that it has
    no use for.
    """

    sites: dict[str, str] = dataclasses.field(default_factory=dict)
    dropped: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class TakeOver:
    """Old supervisor → new one: be the proxy. Answered by Ready; from then on the old one takes nothing new.

    `plan` is what operators have said meanwhile, `totals` what was counted meanwhile.
    """

    plan: BackendPlan = BackendPlan()
    totals: dict[str, float] = dataclasses.field(default_factory=dict, repr=False)


@dataclasses.dataclass(frozen=True)
class Totals:
    """Old supervisor → new one, now and then until its end: what its children have counted since the last time."""

    series: dict[str, float]


Message: TypeAlias = (
    Start
    | Ready
    | Failed
    | Serve
    | CertificatesChanged
    | CertificateWanted
    | CertificateRefused
    | AdminCall
    | AdminProgress
    | AdminResult
    | PlanChanged
    | Probe
    | Probed
    | AdoptListeners
    | ReleaseListeners
    | Drain
    | Leaving
    | Drained
    | ReopenLogs
    | StatsRequest
    | Stats
    | Hello
    | Handover
    | Prepared
    | TakeOver
    | Totals
)
