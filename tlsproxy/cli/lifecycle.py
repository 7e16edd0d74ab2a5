"""`tlsproxy admin reload`, `upgrade`, `stop`: have the running proxy change or end itself, and see how it goes.

Knows the commands and what they tell; the proxy does the work. Rule: who stops looking ends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from tlsproxy.cli.certs import follow
from tlsproxy.cli.common import ConfigOption, JsonOption, SocketOption, Target
from tlsproxy.cli.output import say, say_json
from tlsproxy.errors import TlsproxyError

_UNSERVED = (422, 500)  # how a reload that was begun ends, but for a stop of the proxy


def reload(config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Serve the configuration as it is now; if it can't be served, all goes on as before."""
    target = Target(config, socket)
    if socket is None:
        _ = target.settings  # what is wrong with them need not be asked of the proxy
    try:
        _work("reload", target, _reloaded, as_json=as_json)
    except TlsproxyError as error:
        raise _unchanged(error) from error


def upgrade(
    config: ConfigOption = None,
    socket: SocketOption = None,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Until all of the new version is ready.")
    ] = "120s",
    as_json: JsonOption = False,
) -> None:
    """Have the version that is installed now take over; if it does not come up, all goes on as before."""
    _work("upgrade", Target(config, socket), _upgraded, as_json=as_json, timeout=timeout)


def stop(config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """End the proxy; what is in flight has server.drain to come to its end."""
    _work("stop", Target(config, socket), _stopped, as_json=as_json)


def _work(
    deed: str, target: Target, words: Callable[[Mapping[str, Any]], str], *, as_json: bool, **options: str
) -> None:
    lines = target.client.work(deed, options=options)
    result = follow(lines, "status", is_silent=as_json)
    if as_json:
        say_json(result)
    else:
        say(words(result))


def _unchanged(error: TlsproxyError) -> TlsproxyError:
    """What was read and could not be served has changed nothing; who reads why wants to know that first of all."""
    from tlsproxy.runtime.adminclient import AdminError

    if not isinstance(error, AdminError) or error.status not in _UNSERVED:
        return error
    return type(error)(f"{error}\nThe proxy goes on with the configuration it had.", error.status)


def _reloaded(result: Mapping[str, Any]) -> str:
    serving = f"{_count(result['sites'], 'site')}, {_count(result['workers'], 'worker')}"
    return f"generation {result['generation']} serves: {serving}, after {result['seconds']:.1f} s"


def _upgraded(result: Mapping[str, Any]) -> str:
    number, seconds = result["generation"], result["seconds"]
    return f"process {result['proxy']} is the proxy now, generation {number}, after {seconds:.1f} s"


def _stopped(result: Mapping[str, Any]) -> str:
    said = ["stopped"]
    if result["cut"]:
        said.append(f"{result['cut']} connections had to be cut")
    if result["killed"]:
        said.append(f"killed: {', '.join(result['killed'])}")
    return "; ".join(said)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
