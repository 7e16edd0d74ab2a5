"""Whether one server may be asked: what operators said of it, what it answers when asked for its health, how it fails.

Knows no connection. Three things are kept apart, for each ends in its own way:
* drained: an operator wants no new request there, until he says otherwise;
* down: it failed the health checks of its route (`health`); nothing is sent there, also if it is a route's only one;
* left alone: requests failed `_FAILURES` times in a row. It is left alone for 1 s, then 2, 4 … 30 s; after each pause
  ONE request may try it. A route's only backend is always tried: leaving it alone would help nobody.

Who comes back, from the last two, gets a share of the requests that rises from a tenth to all of its own in 10 s: an
application that has only just started compiles, connects and fills its caches with the first ones.
"""

from __future__ import annotations

import logging
import random
import time
from typing import Final

logger = logging.getLogger(__name__)

_FAILURES: Final = 3
_LONGEST_PAUSE: Final = 30.0
_TRIAL_APART: Final = 1.0
_RECOVERY: Final = 10.0  # seconds
_FIRST_SHARE: Final = 0.1


class Condition:
    """Mutable state: `is_drained`; `_faults` and with it `is_down` (health checks); `_failures`, `_pause`,
    `_ejected_until`, `_last_trial`, `_on_trial` (requests); `is_recovering`, `_recovers_since`; `_since` and `_why`.
    """

    __slots__ = (
        "_ejected_until", "_failures", "_faults", "_last_trial", "_on_trial", "_pause", "_recovers_since", "_since",
        "_why", "has_siblings", "is_down", "is_drained", "is_recovering", "url",
    )  # fmt: skip

    def __init__(self, url: str) -> None:
        self.url = url
        self.has_siblings = False  # somebody else can be asked
        self.is_drained = False
        self.is_down = False
        self.is_recovering = False
        self._faults: dict[str, str] = {}  # by health check: routes may ask the same server different things
        self._failures = 0
        self._pause = 0.0
        self._ejected_until = 0.0
        self._last_trial = 0.0
        self._on_trial = False
        self._recovers_since = 0.0
        self._since = time.time()  # it is in the state it is in
        self._why = ""  # the last request to it failed

    @property
    def may_be_asked(self) -> bool:
        """False: no request at all. One that is left alone may be asked, but only by `take_trial`."""
        return not (self.is_drained or self.is_down)

    @property
    def is_left_alone(self) -> bool:
        return self._ejected_until > 0.0

    @property
    def down_why(self) -> str:
        return next(iter(self._faults.values()), "")

    def state(self) -> tuple[str, str, float]:
        """The state as a word, why it is so, and since when (time.time())."""
        if self.is_drained:
            return "draining", "an operator has drained it", self._since
        if self.is_down:
            return "down", self.down_why, self._since
        if self.is_left_alone:
            return "ejected", self._why, self._since
        return "recovering" if self.is_recovering else "up", "", self._since

    def let_go(self) -> None:
        """Called when it gets no more requests: idle connections have no use."""

    # --- operators ----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """No new request from now on; those under way go on."""
        if not self.is_drained:
            self.is_drained = True
            self._since = time.time()
            logger.info("backend.drained", extra={"backend": self.url})
            self.let_go()

    def resume(self) -> None:
        """An end of `drain`: it waited in working order, so it gets its whole share at once."""
        if self.is_drained:
            self.is_drained = False
            self._since = time.time()
            logger.info("backend.resumed", extra={"backend": self.url})

    # --- health checks ------------------------------------------------------------------------------------------------

    def judged(self, check: str, why: str) -> None:
        """The health check so named has come to a verdict: `why` it is down, or "" for well."""
        if why:
            self._faults[check] = why
        else:
            self._faults.pop(check, None)
        if self.is_down != bool(self._faults):
            self.is_down = bool(self._faults)
            self._turned()

    def _turned(self) -> None:
        self._since = time.time()
        if self.is_down:
            logger.warning("backend.down", extra={"backend": self.url, "why": self.down_why})
            self.let_go()
            return
        logger.info("backend.up", extra={"backend": self.url})
        self._forget_failures()
        self._recover()

    # --- requests -----------------------------------------------------------------------------------------------------

    def succeeded(self) -> None:
        if self._failures:
            logger.info("backend.recovered", extra={"backend": self.url, "failures": self._failures})
            was_left_alone = self.is_left_alone
            self._forget_failures()
            if was_left_alone:
                self._recover()

    def failed(self, why: str) -> None:
        """Count a failure. The first is said; the third in a row starts a pause, and each failed trial a longer one.

        The only backend of a route is never left alone.
        """
        self._failures += 1
        self._why = why
        if self._failures == 1:
            level = logging.WARNING if self.has_siblings else logging.ERROR
            logger.log(level, "backend.failing", extra={"backend": self.url, "why": why})
        on_trial, self._on_trial = self._on_trial, False
        if self.has_siblings and self._failures >= _FAILURES and (on_trial or not self.is_left_alone):
            self._leave_alone(why)

    def _leave_alone(self, why: str) -> None:
        if not self.is_left_alone:
            self._since = time.time()
        self._pause = min(self._pause * 2 or 1.0, _LONGEST_PAUSE)
        self._last_trial = time.monotonic()
        self._ejected_until = self._last_trial + self._pause
        self.is_recovering = False
        logger.warning("backend.left_alone", extra={"backend": self.url, "seconds": self._pause, "why": why})
        self.let_go()

    def take_trial(self, now: float, *, early: bool = False) -> bool:
        """True for one caller after a pause; the next one has to wait a second for the outcome.

        `early` does not wait for the pause to end: there is nobody else to ask.
        """
        if not self.is_left_alone or now - self._last_trial < _TRIAL_APART or (now < self._ejected_until and not early):
            return False
        self._last_trial = now
        self._on_trial = True
        return True

    def _forget_failures(self) -> None:
        self._on_trial = False
        self._failures = 0
        self._pause = 0.0
        self._ejected_until = 0.0

    # --- recovery -----------------------------------------------------------------------------------------------------

    def takes_share(self, now: float) -> bool:
        """Whether the next request is among those that a recovering server gets; true for every other server.

        `now` is time.monotonic(). To be asked only while there is somebody else for the request.
        """
        if not self.is_recovering:
            return True
        share = _FIRST_SHARE + (1 - _FIRST_SHARE) * (now - self._recovers_since) / _RECOVERY
        if share >= 1:
            self.is_recovering = False
            self._since = time.time()
            return True
        return random.random() < share  # noqa: S311

    def _recover(self) -> None:
        self._since = time.time()
        if self.has_siblings:
            self.is_recovering = True
            self._recovers_since = time.monotonic()
