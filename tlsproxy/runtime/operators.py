"""What operators may ask about backends and sites, by verb: from the words of the admin API to `Backends` and `Swaps`.

Knows names, options and their forms; neither HTTP nor workers. Rule: whatever is wrong with the words is a Refusal that
says what to write, before anything is changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from tlsproxy.runtime.adminhttp import Refusal
from tlsproxy.runtime.backends import Backends
from tlsproxy.runtime.calls import Call
from tlsproxy.runtime.messages import Probe, Probed
from tlsproxy.runtime.swaps import Swaps
from tlsproxy.settings import values

T = TypeVar("T")

Options: TypeAlias = Mapping[str, str]

SWAP_TIMEOUT: Final = "30s"
SWAP_DRAIN: Final = "30s"
PAUSE: Final = "30s"


class Operators:
    """One object for the admin API; its parts are for the supervisor."""

    def __init__(self, backends: Backends, ask_worker: Callable[[Probe], bool]) -> None:
        self.backends = backends
        self._swaps = Swaps(backends, ask_worker)
        self._verbs: dict[str, Callable[[str, Options], Awaitable[Any]]] = {
            "backends": self._tell_backends,
            "drain": self._drain,
            "resume": self._resume,
            "swap": self._swap,
            "sites": self._tell_sites,
            "pause": self._pause,
            "unpause": self._unpause,
        }

    def __repr__(self) -> str:
        return f"<Operators of {self.backends!r}>"

    def probed(self, answer: Probed) -> None:
        """A worker has answered a Probe."""
        self._swaps.probed(answer)

    async def close(self) -> None:
        await self._swaps.close()

    async def act(self, verb: str, name: str, options: Options) -> Any:
        """Return JSON, or a Call that is to be followed. Raises Refusal."""
        return await self._verbs[verb](name, options)

    async def _tell_backends(self, _: str, __: Options) -> Any:
        return await self.backends.rows()

    async def _drain(self, name: str, _: Options) -> Any:
        return await self.backends.drain(_read(values.parse_backend, name))

    async def _resume(self, name: str, _: Options) -> Any:
        return await self.backends.resume(_read(values.parse_backend, name))

    async def _swap(self, _: str, options: Options) -> Call:
        backends = _urls(options.get("to", ""))
        if not options.get("site") or not backends:
            raise Refusal(400, 'a swap needs "site", a host of it, and "to", its new backends with commas between them')
        return self._swaps.begin(
            options["site"],
            _read(values.parse_route_path, options.get("path", "/")),
            backends,
            timeout=_read(values.parse_positive_duration, options.get("timeout", SWAP_TIMEOUT)),
            drain=_read(values.parse_duration, options.get("drain", SWAP_DRAIN)),
        )

    async def _tell_sites(self, _: str, __: Options) -> Any:
        return self.backends.site_rows()

    async def _pause(self, name: str, options: Options) -> Any:
        return await self.backends.pause(name, _read(values.parse_positive_duration, options.get("for", PAUSE)))

    async def _unpause(self, name: str, _: Options) -> Any:
        return await self.backends.resume_site(name)


def _urls(text: str) -> Sequence[str]:
    return [_read(values.parse_backend, each) for each in text.split(",") if each.strip()]


def _read(parse: Callable[[object], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise Refusal(400, str(error)) from error
