"""Who is told what the supervisor is about: nobody here. An init system that listens gets one that speaks to it."""

from __future__ import annotations


class Notifier:
    """Told by the supervisor, from its event loop; must return at once and not raise."""

    def ready(self, status: str = "") -> None:
        """All serve: after the start, and after each reload, whether it went well or not."""

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""

    def stopping(self) -> None:
        """No new connection is accepted any more."""

    def failed(self, reason: str) -> None:
        """There will be no proxy."""

    def alive(self) -> None:
        """Somebody answers for the workers."""

    def hand_over(self, pid: int) -> None:
        """Process `pid`, which serves already, is the proxy from now on."""
