"""`tlsproxy admin top`: what goes on right now, again and again: a screen in a terminal, lines in a pipe, or JSON.

Takes a sample of the proxy every few seconds and shows what happened since the one before. Rules: the terminal is as it
was when the command ends, whatever ends it; a proxy that is gone for a moment (a restart) is waited for in a terminal,
where somebody looks; over a slow line little is written: once per sample, nothing in between.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tlsproxy.cli.common import ConfigOption, JsonOption, SocketOption, Target
from tlsproxy.cli.output import in_terminal, say
from tlsproxy.cli.rates import Sample, View, compare
from tlsproxy.errors import TlsproxyError

if TYPE_CHECKING:
    from rich.console import Console

_LONGEST_HISTORY = 300
_FIRST = 0.5  # seconds to the second sample, so that there is something to see soon
_LEAST = 0.2


def top(
    config: ConfigOption = None,
    socket: SocketOption = None,
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", help="Between two samples.")] = 2.0,
    count: Annotated[int, typer.Option("--count", metavar="N", help="End after so many; 0: go on.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show requests per second, latency, connections, backends and certificates, live; q or Ctrl-C ends it.

    In a pipe a line per sample, with --json a JSON object per line.
    """
    if interval < _LEAST:
        raise typer.BadParameter(f"at least {_LEAST} seconds", param_hint="--interval")
    client = Target(config, socket).client
    views = _views(lambda: client.get("top"), interval)
    with contextlib.suppress(KeyboardInterrupt):
        if in_terminal() and not as_json:
            _show_live(lambda: client.get("top"), interval, count)
        else:
            _print(views, count, as_json=as_json)


def _views(ask: Callable[[], Sample], interval: float) -> Iterator[View]:
    before = ask()
    time.sleep(min(_FIRST, interval))
    while True:
        after = ask()
        if (view := compare(before, after)) is not None:
            yield view
        before = after
        time.sleep(interval)


def _print(views: Iterator[View], count: int, *, as_json: bool) -> None:
    from tlsproxy.cli import topview

    for number, view in enumerate(views, 1):
        say(json.dumps(topview.as_json(view)) if as_json else topview.line(view))
        sys.stdout.flush()
        if number == count:
            return


def _show_live(ask: Callable[[], Sample], interval: float, count: int) -> None:
    """Raises what keeps the first sample from coming; later on that is shown, and tried again."""
    from rich.console import Console
    from rich.live import Live

    signal.signal(signal.SIGTERM, _interrupt)  # the terminal is to be as it was after that, too
    console = Console()
    before, shown = ask(), 0
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        show = _Screen(console, live)
        pause = min(_FIRST, interval)
        while not pressed(pause):
            pause = interval
            try:
                after = ask()
            except TlsproxyError as error:
                show.trouble(str(error))
                continue
            if (view := compare(before, after)) is not None:
                show.view(view)
                shown += 1
            before = after
            if shown == count > 0:
                return


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


class _Screen:
    # Mutable: _last (view), _history (requests per second).

    def __init__(self, console: Console, live: Any) -> None:
        self._console = console
        self._live = live
        self._last: View | None = None
        self._history: deque[float] = deque(maxlen=_LONGEST_HISTORY)

    def view(self, view: View) -> None:
        self._last = view
        self._history.append(view.total.rate)
        self._draw("")

    def trouble(self, text: str) -> None:
        self._draw(text)

    def _draw(self, notice: str) -> None:
        from tlsproxy.cli import topview

        if self._last is None:
            self._live.update(notice, refresh=True)
            return
        width, height = self._console.size
        drawn = topview.screen(self._last, list(self._history), width, height, notice=notice)
        self._live.update(drawn, refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Yield what waits so many seconds and tells whether somebody has pressed q meanwhile. Keys are not shown."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield lambda seconds: _is_over(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _is_over(descriptor: int, seconds: float) -> bool:
    """Also at the end of the input: the terminal is gone."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            keys = os.read(descriptor, 64)
            if not keys or b"q" in keys or b"Q" in keys:
                return True
    return False
