"""What the certifier answers to the admin API: one verb, one method.

Knows the verbs, whose certificate a name means, which status an outcome is. Does not know sockets, HTTP, orders. Rules:
every call gets exactly one result, whatever goes wrong; questions are answered from the store, so they say the same as
the commands do while the proxy is stopped; no key is in any answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tlsproxy.certs.attempt import Asked, Elsewhere, Failed, NotNow, Obtained, Outcome
from tlsproxy.certs.catalogue import Catalogue, UnknownCertificate
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.progress import Progress, Step
from tlsproxy.certs.wanted import Held, Wait
from tlsproxy.certs.words import moment
from tlsproxy.errors import CertificateError, StoreError, TlsproxyError
from tlsproxy.runtime.control import ControlError
from tlsproxy.runtime.messages import AdminCall, AdminProgress, AdminResult
from tlsproxy.runtime.naming import Names
from tlsproxy.settings import Settings
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.sources import certificate_name

if TYPE_CHECKING:
    from tlsproxy.certs.acme_manager import AcmeManager

logger = logging.getLogger(__name__)

Send = Callable[[AdminProgress | AdminResult], None]
_BY_HAND = "it was asked for by hand"
_WORK = frozenset(("obtain", "renew", "revoke", "remove", "rollover"))
LONGEST_START = 10.0
"""Seconds that work waits after a start for what does it."""


@dataclass(frozen=True)
class Refusal(Exception):
    """The answer is no; `status` as in HTTP, `sentence` for the user."""

    status: int
    sentence: str


class CertifierCalls:
    """Answers calls, each in a task of its own; `close` ends them."""

    # Mutable: acme (set when it is there), trouble (why it is not, "" while it starts), tried (that is known), _tasks
    # (without a result).

    def __init__(
        self, settings: Settings, store: CertificateStore, send: Send, announce: Callable[[str], None]
    ) -> None:
        self._settings, self._store, self._send, self._announce = settings, store, send, announce
        self._names = Names(settings.sites)
        self._sites = {certificate_name(site): site for site in settings.sites if site.certificate != "on_demand"}
        self._tasks: set[asyncio.Task[None]] = set()
        self.acme: AcmeManager | None = None
        self.trouble = ""
        self.tried = asyncio.Event()
        self._verbs: Mapping[str, Callable[[AdminCall], Awaitable[Any]]] = {
            "list": self._list,
            "show": self._show,
            "why": self._why,
            "status": self._status,
            "obtain": self._obtain,
            "renew": self._renew,
            "revoke": self._revoke,
            "remove": self._remove,
            "announce": self._tell_workers,
            "quota": self._quota,
            "rollover": self._roll_over,
        }

    def take(self, call: AdminCall) -> None:
        """Answer in the background."""
        task = asyncio.create_task(self._answer(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all calls; those who wait get a result."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, call: AdminCall) -> None:
        status, body = 500, _error("something went wrong in the certifier, see the log of the proxy")
        try:
            status, body = 200, await self._carry_out(call)
        except Refusal as refusal:
            status, body = refusal.status, _error(refusal.sentence)
        except AcmeFailure as failure:
            status, body = _status_of(failure), _error(str(failure))
        except (CertificateError, StoreError) as error:
            status, body = 409 if isinstance(error, CertificateError) else 503, _error(str(error))
        except UnknownCertificate as error:
            status, body = 404, _error(str(error))
        except TlsproxyError as error:
            status, body = 409, _error(str(error))
        except asyncio.CancelledError:
            status, body = 503, _error("the certifier is leaving; ask again in a moment")
            raise
        except Exception:
            logger.exception("certifier.call_failed", extra={"verb": call.verb, "certificate": call.name})
        finally:
            self._conclude(call, status, body)

    def _conclude(self, call: AdminCall, status: int, body: Any) -> None:
        try:
            self._send(AdminResult(call.id, status, body))
        except ControlError as error:  # longer than the wire takes
            self._send(AdminResult(call.id, 500, _error(f"the answer is too long to be passed on ({error})")))

    async def _carry_out(self, call: AdminCall) -> Any:
        verb = self._verbs.get(call.verb)
        if verb is None:
            raise Refusal(404, f"the certifier knows no {call.verb!r}")
        if call.verb in _WORK and self._state() == "starting":
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_START):
                    await self.tried.wait()
        return await verb(call)

    # --- questions

    async def _list(self, _: AdminCall) -> Any:
        return await asyncio.to_thread(lambda: self._catalogue().rows(_now()))

    async def _show(self, call: AdminCall) -> Any:
        return await self._look_up(call, lambda catalogue, name: catalogue.show(name, _now()))

    async def _why(self, call: AdminCall) -> Any:
        answer = await self._look_up(call, lambda catalogue, name: catalogue.why(name, _now()))
        step = self.acme.keeper.step(answer["name"]) if self.acme else None
        if step:
            return _with_step(answer, step)
        return _with_trouble(answer, await asyncio.to_thread(self._store_trouble))

    def _store_trouble(self) -> str:
        """Return why the store takes nothing, or "". It is tried: what came of it could be remembered nowhere."""
        try:
            self._store.self_test()
        except StoreError as error:
            return str(error)
        return ""

    async def _look_up(self, call: AdminCall, look: Callable[[Catalogue, str], Any]) -> Any:
        return await asyncio.to_thread(lambda: look(self._catalogue(), call.name))

    async def _status(self, _: AdminCall) -> Any:
        """From memory: monitoring asks often, and a walk through ten thousand records takes seconds."""
        others = [site for site in self._settings.sites if site.certificate not in ("acme", "on_demand")]
        has_looked = self.acme is not None and self.acme.keeper.has_looked
        counts = self.acme.counts() if self.acme and has_looked else {"valid": 0, "pending": 0, "failed": 0}
        state = "starting" if self.acme and not has_looked else self._state()
        return {"state": state, **counts, "valid": counts["valid"] + len(others)}

    def _state(self) -> str:
        """While it is "starting", certificates of CAs are counted nowhere: nobody knows them yet."""
        if self.acme or all(site.certificate not in ("acme", "on_demand") for site in self._settings.sites):
            return "running"
        return f"failed: {self.trouble}" if self.trouble else "starting"

    async def _quota(self, _: AdminCall) -> Any:
        return await asyncio.to_thread(lambda: self._catalogue().quota(_now()))

    def _catalogue(self) -> Catalogue:
        if self.acme is None:
            return Catalogue(self._settings, self._store, lambda _: True)
        return Catalogue(self._settings, self._store, self.acme.is_served, self.acme.keeper.away())

    # --- work

    async def _obtain(self, call: AdminCall) -> Any:
        return await self._order(call, Asked(force=_is_forced(call)))

    async def _renew(self, call: AdminCall) -> Any:
        return await self._order(call, Asked(reason=_BY_HAND, force=_is_forced(call)))

    async def _order(self, call: AdminCall, asked: Asked) -> Any:
        name, acme = self._wanted(call.name)
        return _result(name, await acme.obtain(name, asked, self._progress(call)))

    async def _revoke(self, call: AdminCall) -> Any:
        name, acme = self._names.certificate(call.name), self._ready_acme()
        outcome = await acme.revoke(name, call.options.get("reason", "unspecified"), self._progress(call))
        if outcome is None:
            return {"name": name, "revoked": True}
        return {**_result(name, outcome), "revoked": True}

    async def _remove(self, call: AdminCall) -> Any:
        name = self._names.certificate(call.name)
        site = self._sites.get(name)
        if site is not None and not _is_forced(call):
            raise Refusal(409, f"{name}: the site {site.hosts[0]} is served with it. Say --force to have another one.")
        if name not in await asyncio.to_thread(self._store.list):
            raise Refusal(404, f"{name}: there is no such certificate. See: tlsproxy admin certs list")
        if self.acme and name.startswith("acme/"):
            await self.acme.remove(name, self._progress(call))
        else:
            await asyncio.to_thread(self._store.delete, name)
            self._announce(name)
        return {"name": name, "removed": True}

    async def _tell_workers(self, call: AdminCall) -> Any:
        """Somebody has put a certificate into the store."""
        name = self._names.certificate(call.name)
        self._announce(name)
        if self.acme:
            await self.acme.notice(name)
        return {"name": name, "announced": True}

    async def _roll_over(self, call: AdminCall) -> Any:
        changed = await self._ready_acme().roll_over(call.name)
        if not changed:
            raise Refusal(404, "there is no account yet: it is made with the first order")
        return [{"directory": directory, "account": url} for directory, url in changed]

    def _wanted(self, given: str) -> tuple[str, AcmeManager]:
        """Return the name of a certificate that a site wants of a CA, and who obtains it. Raises Refusal."""
        name = self._names.certificate(given)
        site = self._sites.get(name)
        if site is not None and site.certificate != "acme":
            kind = "of the internal CA" if site.certificate == "internal" else "in files"
            raise Refusal(409, f"{given}: the certificate of this site is {kind}, no CA is asked for it.")
        if site is None and (self.acme is None or not self.acme.wants(name)):
            raise Refusal(404, f"{given}: no site has this host. Add it to the configuration first.")
        return name, self._ready_acme()

    def _ready_acme(self) -> AcmeManager:
        if self.acme is None:
            why = f"it could not be set up ({self.trouble})" if self.trouble else "it has just started"
            idle = "no site wants a certificate of one" if self._state() == "running" else why
            raise Refusal(503, f"the certifier can't ask a CA: {idle}. See the log of the proxy, and try again.")
        return self.acme

    def _progress(self, call: AdminCall) -> Progress:
        def tell(step: Step) -> None:
            self._send(AdminProgress(call.id, step.kind, step.host, step.text))

        return tell


def _result(name: str, outcome: Outcome) -> dict[str, Any]:
    """Return what became of an order. Raises Refusal or the failure."""
    match outcome:
        case Obtained(held=held):
            return {"name": name, **_described(held)}
        case Failed(failure=failure):
            raise failure
        case NotNow(action=Wait(until=until, reason=reason)):
            see = f"See: tlsproxy admin certs why {name}"
            raise Refusal(409, f"{name}: nothing is ordered before {moment(until)}: {reason}. {see}")
        case NotNow(action=action):
            raise Refusal(409, f"{name}: {action.reason or 'nothing is due'}.")
        case Elsewhere():
            raise Refusal(503, f"{name}: another process or machine works on it. See: tlsproxy admin certs why {name}")


def _with_trouble(answer: dict[str, Any], trouble: str) -> dict[str, Any]:
    """Say that nothing can be obtained, if that is not said already."""
    sentences: list[str] = answer["sentences"]
    if not trouble or any(trouble in sentence for sentence in sentences):
        return answer
    return {**answer, "sentences": [*sentences[:2], f"That can't be done at the moment: {trouble}", *sentences[2:]]}


def _with_step(why: dict[str, Any], step: Step) -> dict[str, Any]:
    """Say what is done now where the plan says what would be done next."""
    certificate, _, *others = why["sentences"]
    now = f"Under way now: {step}{'' if str(step).endswith('.') else '.'}"
    return {
        **why,
        "now": {"step": step.kind, "host": step.host, "text": step.text},
        "sentences": [certificate, now, *others],
    }


def _described(held: Held) -> dict[str, Any]:
    return {
        "names": list(held.names),
        "issuer": held.issuer,
        "serial": held.serial,
        "not_before": _instant(held.not_before),
        "not_after": _instant(held.not_after),
    }


def _status_of(failure: AcmeFailure) -> int:
    match failure.kind:
        case FailureKind.QUOTA | FailureKind.RATE_LIMITED:
            return 429
        case FailureKind.STORE | FailureKind.CANCELLED:
            return 503
        case FailureKind.INTERNAL:
            return 500
        case _:
            return 502


def _is_forced(call: AdminCall) -> bool:
    return call.options.get("force", "") == "true"


def _error(sentence: str) -> dict[str, str]:
    return {"error": sentence}


def _now() -> datetime:
    return datetime.now(UTC)


def _instant(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
