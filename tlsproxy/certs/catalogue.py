"""All certificates that a configuration has to do with, as they lie in the store: the answers of `admin certs`.

    settings ─┐
              ├ Entry ─ row (list) ─ details (show) ─ explanation (why, in explanation.py)
    store  ───┘

Knows: sites, the store, the plan. Does not know: processes, CAs; nothing is asked, nothing is changed, the proxy may be
stopped. Rules: a record that can't be read is a row that says so; what no site uses is listed as well; no key leaves
here. Blocks on the disk; keep the import light, the command line pays for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tlsproxy.certs import accounts, plan_internal
from tlsproxy.certs import state as states
from tlsproxy.certs.ari import window_of
from tlsproxy.certs.explanation import explain, quota_rows, utc
from tlsproxy.certs.ledger import FOLDER, Ledger, ledger_name
from tlsproxy.certs.limits import limits_of
from tlsproxy.certs.outages import Outage
from tlsproxy.certs.plan import Obtain, Wait, plan, renewal_time
from tlsproxy.certs.state import State
from tlsproxy.certs.wanted import Held, Wanted
from tlsproxy.certs.wishes import Wishes
from tlsproxy.errors import CertificateError, StoreError, TlsproxyError
from tlsproxy.settings import Settings, Site
from tlsproxy.store.base import CertificateStore, RecordDamaged
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.sources import ROOT_NAME, certificate_files, certificate_name, host_meant, load_files

Kind = Literal["acme", "on_demand", "internal", "file", "unused"]
Served = Callable[[str], bool]
"""Tells by the name whether a running proxy serves it."""


class UnknownCertificate(TlsproxyError):
    """There is no certificate that a person could mean by this name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One certificate: what is wanted of it, what is there, what is remembered.

    `hosts` are those it is served for, none if no site uses it. `bundles` is more than one for files with two kinds of
    keys. `problem` says why what should be there can't be read. `is_withheld`: it may be good all the same (sealed with
    another key, another user's), so no CA is asked for another one.
    """

    name: str
    kind: Kind
    hosts: tuple[str, ...]
    bundles: tuple[Bundle, ...] = ()
    problem: str = ""
    is_withheld: bool = False
    wanted: Wanted | None = None
    state: State = field(default_factory=State)

    @property
    def held(self) -> Held | None:
        return Held.of(self.bundles[0]) if self.bundles else None


class Catalogue:
    """Reads settings and store; each answer is of the moment it is asked for. `now` is UTC.

    Of a running proxy: `served`, and `away`, the CAs that it leaves alone now.
    """

    def __init__(
        self,
        settings: Settings,
        store: CertificateStore,
        served: Served = lambda _: False,
        away: Mapping[str, Outage] | None = None,
    ) -> None:
        self._settings, self._store, self._served, self._away = settings, store, served, away or {}
        self._sites = {certificate_name(site): site for site in settings.sites if site.certificate != "on_demand"}
        self._on_demand = [site for site in settings.sites if site.certificate == "on_demand"]

    def __repr__(self) -> str:
        return f"<Catalogue of {len(self._settings.sites)} sites in {self._store!r}>"

    # --- the answers

    def rows(self, now: datetime) -> list[dict[str, Any]]:
        """Return a row for each certificate, sorted by name, in the shape of `admin certs list --json`."""
        return [row for entry in self._entries() for row in self._rows(entry, now)]

    def show(self, name: str, now: datetime) -> dict[str, Any]:
        """Return all there is to know of one: its row, key, CA and chain. Raises UnknownCertificate, StoreError."""
        entry = self.entry(name)
        row, *others = self._details(entry, now)
        return {**row, "hosts": list(entry.hosts), "others": others}

    def why(self, name: str, now: datetime) -> dict[str, Any]:
        """Return what is done about one next, and why; `sentences` say it in words. Raises UnknownCertificate."""
        entry = self.entry(name)
        return explain(entry, self._budget(entry.wanted, now), now, self._away)

    def quota(self, now: datetime) -> list[dict[str, Any]]:
        """Return what is used of the limits of the configured CAs, for everything that any limit of theirs counts."""
        return [row for directory, ledger in self._ledgers() for row in quota_rows(ledger.usage(now), directory)]

    def entry(self, name: str) -> Entry:
        """Return the one that a person means by `name`. Raises UnknownCertificate, StoreError."""
        return self._read(self.resolve(name), frozenset(self._store.list_records(states.FOLDER)))

    def resolve(self, name: str) -> str:
        """Return the full name for a host (also one that a wildcard covers), or a full name itself."""
        stored = {*self._store.list(), *self._store.list_records(states.FOLDER)}
        if name in self._sites or name in stored:
            return name
        host = host_meant(name)
        site = self._site_of_host.get(host) or self._site_of_host.get(f"*.{host.partition('.')[2]}")
        if site:
            return certificate_name(site)
        for full in (f"acme/{host}", f"internal/{host}"):
            if full in stored:
                return full
        raise UnknownCertificate(self._unknown(name, host, stored))

    # --- from settings and store to entries

    def _entries(self) -> Iterator[Entry]:
        stored, with_state = self._store.list(), frozenset(self._store.list_records(states.FOLDER))
        demanded = {name for name in with_state if self._demanding_site(name)}
        for name in sorted({*self._sites, *stored, *demanded} - {ROOT_NAME}):
            entry = self._read(name, with_state)
            if entry.kind != "on_demand" or entry.bundles or entry.problem or entry.state.attempts:
                yield entry

    def _read(self, name: str, with_state: frozenset[str]) -> Entry:
        site = self._sites.get(name) or self._demanding_site(name)
        if site and certificate_files(site):
            return _file_entry(name, site)
        kind, hosts, wanted = self._use(name, site)
        bundle, problem, is_withheld = self._bundle(name)
        state = self._state(name) if name in with_state else State()
        return Entry(name, kind, hosts, (bundle,) if bundle else (), problem, is_withheld, wanted, state)

    def _use(self, name: str, site: Site | None) -> tuple[Kind, tuple[str, ...], Wanted | None]:
        if site is None:
            return "unused", (), None
        if site.certificate == "internal":
            return "internal", site.hosts, None
        if site.certificate == "on_demand":
            host = name.partition("/")[2]
            return "on_demand", (host,), self._wishes.of_demand(host)
        return "acme", site.hosts, self._wishes.of_hosts(site.hosts)

    def _demanding_site(self, name: str) -> Site | None:
        """Return the site whose clients may have asked for this certificate."""
        kind, _, host = name.partition("/")
        if kind != "acme" or name in self._sites:
            return None
        patterns = {host, f"*.{host.partition('.')[2]}", "*"}
        return next((site for site in self._on_demand if patterns.intersection(site.hosts)), None)

    def _bundle(self, name: str) -> tuple[Bundle | None, str, bool]:
        try:
            return self._store.get(name), "", False
        except StoreError as error:
            return None, str(error), not isinstance(error, RecordDamaged)

    def _state(self, name: str) -> State:
        try:
            return State.from_record(self._store.get_record(states.FOLDER, name))
        except StoreError:
            return State()

    @cached_property
    def _site_of_host(self) -> dict[str, Site]:
        return {host: site for site in self._sites.values() for host in site.hosts}

    @cached_property
    def _wishes(self) -> Wishes:
        return Wishes(self._settings.acme, self._accounts)

    @cached_property
    def _accounts(self) -> dict[str, str]:
        return {issuer.directory_url: self._account(issuer.directory_url, issuer.eab_kid) for issuer in self._issuers}

    @cached_property
    def _issuers(self) -> Sequence[Any]:
        return self._settings.acme.issuers()

    def _account(self, directory: str, kid: str) -> str:
        try:
            account = accounts.load(self._store, directory, kid)
        except (StoreError, ValueError):
            return ""
        return account.url if account else ""

    def _unknown(self, name: str, host: str, stored: set[str]) -> str:
        if self._demanding_site(f"acme/{host}"):
            return f"{name}: there is no certificate for this host. It is obtained when a client first asks for it."
        known = [*self._site_of_host, *self._sites, *stored, *(full.partition("/")[2] for full in stored)]
        close = difflib.get_close_matches(host, known, n=1)
        guess = f"Did you mean {close[0]}?" if close else "See: tlsproxy admin certs list"
        return f"{name}: no site has this host, and no certificate this name. {guess}"

    # --- the quota

    def _budget(self, wanted: Wanted | None, now: datetime) -> list[dict[str, Any]]:
        """Return the use of the first CA's limits, by what an order for these hosts would be counted with."""
        if wanted is None:
            return []
        directory, ledger = next(self._ledgers())
        return quota_rows(ledger.budget(wanted.hosts, now), directory)

    def _ledgers(self) -> Iterator[tuple[str, Ledger]]:
        for directory, account in self._accounts.items():
            limits = limits_of(directory, self._settings.acme.quota)
            try:
                record = self._store.get_record(FOLDER, ledger_name(directory, account)) if limits else None
            except StoreError:
                record = None
            yield directory, Ledger.from_record(record, limits, directory, account)

    # --- from entries to rows

    def _rows(self, entry: Entry, now: datetime) -> Iterator[dict[str, Any]]:
        timing = _timing(entry, now, self._away)
        for bundle in entry.bundles or (None,):
            yield {
                "name": entry.name,
                "names": list(bundle.names if bundle else entry.hosts),
                "issuer": bundle.issuer if bundle else None,
                "not_before": utc(bundle.not_before) if bundle else None,
                "not_after": utc(bundle.not_after) if bundle else None,
                "serial": bundle.serial if bundle else None,
                "source": bundle.source if bundle else entry.name.partition("/")[0],
                "status": _status(entry, bundle, now),
                **timing,
                "served": bool(bundle and entry.hosts and self._served(entry.name)),
            }

    def _details(self, entry: Entry, now: datetime) -> Iterator[dict[str, Any]]:
        for row, bundle in zip(self._rows(entry, now), entry.bundles or (None,), strict=True):
            yield row if bundle is None else {**row, **_identity(bundle)}


def _file_entry(name: str, site: Site) -> Entry:
    bundles, problems = [], []
    for files in certificate_files(site):
        try:
            bundles.append(load_files(site, files))
        except CertificateError as error:
            problems.append(str(error))
    return Entry(name, "file", site.hosts, tuple(bundles), "\n".join(problems))


def _status(entry: Entry, bundle: Bundle | None, now: datetime) -> str:
    """valid: within its dates, and for all hosts. Renewals that fail meanwhile show in attempts and last_error."""
    if bundle and bundle.is_expired(now):
        return "expired"
    if bundle and bundle.not_before <= now and not bundle.check_names(entry.hosts):
        return "valid"
    return "failed" if entry.problem or entry.state.last_error else "pending"


def _timing(entry: Entry, now: datetime, away: Mapping[str, Outage]) -> dict[str, Any]:
    state, held = entry.state, entry.held
    window = window_of(state, held) if held else None
    renew_at, next_attempt = _due(entry, held, now, away)
    return {
        "renew_at": utc(renew_at),
        "next_attempt": utc(next_attempt),
        "attempts": state.attempts,
        "last_error": state.last_error.sentence if state.last_error else entry.problem or None,
        "ari": {"start": utc(window.start), "end": utc(window.end)} if window and window.start else None,
    }


def _due(
    entry: Entry, held: Held | None, now: datetime, away: Mapping[str, Outage]
) -> tuple[datetime | None, datetime | None]:
    """Return when it is to be renewed, and when a CA is asked next."""
    if entry.kind == "internal" and entry.bundles:
        return plan_internal.renewal_time(entry.bundles[0]), None
    if entry.wanted is None or entry.is_withheld:
        return None, None
    action = plan(entry.wanted, held, entry.state, now, away=away)
    if isinstance(action, Wait) and held and entry.wanted.on_demand and action.until == held.not_after:
        return None, None  # left to expire
    next_attempt = action.until if isinstance(action, Wait) else now if isinstance(action, Obtain) else None
    return renewal_time(held, window_of(entry.state, held)) if held else None, next_attempt


def _identity(bundle: Bundle) -> dict[str, Any]:
    return {
        "fingerprint": bundle.fingerprint,
        "key_type": bundle.key_type,
        "directory": bundle.directory,
        "account": bundle.account,
        "profile": bundle.profile,
        "ari_id": bundle.ari_id,
        "chain": [_member(certificate) for certificate in x509.load_pem_x509_certificates(bundle.chain_pem)],
    }


def _member(certificate: x509.Certificate) -> dict[str, Any]:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "not_before": utc(certificate.not_valid_before_utc),
        "not_after": utc(certificate.not_valid_after_utc),
        "serial": f"{certificate.serial_number:x}",
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
    }
