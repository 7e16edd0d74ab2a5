"""The servers that applications run on: how each is told what it needs. A table of what was measured; no I/O.

Tried with uvicorn 0.54, hypercorn 0.18, granian 2.8 and gunicorn 27 (docs/fastapi.md). Every answer is a command or a
line of code that stands for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tlsproxy.doctor.asking import Address

KNOWN = ("gunicorn", "uvicorn", "hypercorn", "granian")
_NO_APP = "main:app"


@dataclass(frozen=True, slots=True)
class Server:
    """Who answers. `name` is of KNOWN, or what the server calls itself, "" if nothing is known.

    `app` is what it was started with ("main:app"), `runs_in` is "gunicorn" for uvicorn's workers there.
    `is_deaf`: it was told to believe no forwarding headers at all. `is_plain`: its own command says nothing that
    `starting` would leave out.
    """

    name: str = ""
    version: str = ""
    app: str = ""
    pid: int = 0
    runs_in: str = ""
    is_deaf: bool = False
    is_plain: bool = False

    def __str__(self) -> str:
        named = " ".join(part for part in (self.name, self.version) if part) or "a server that does not say its name"
        return f"{named} under {self.runs_in}" if self.runs_in else named


def product(header: str) -> str:
    """Return the server's name from its Server header: "hypercorn-h11" is hypercorn."""
    first = header.partition(" ")[0].partition("/")[0].lower()
    return next((name for name in KNOWN if first.startswith(name)), first)


def starting(server: Server, address: Address) -> str:
    """Return the command that makes a server listen where the proxy looks for it."""
    app = server.app or _NO_APP
    host, port = (address.host, address.port)
    match server.runs_in or server.name, bool(address.path):
        case "hypercorn", is_unix:
            return f"hypercorn {app} --bind {f'unix:{address.path}' if is_unix else address.bind}"
        case "gunicorn", is_unix:
            kind = "uvicorn.workers.UvicornWorker" if server.runs_in else "asgi"
            return f"gunicorn -k {kind} {app} --bind {f'unix:{address.path}' if is_unix else address.bind}"
        case "granian", True:
            return f"granian --interface asgi --uds {address.path} {app}"
        case "granian", False:
            return f"granian --interface asgi --host {host} --port {port} {app}"
        case _, True:
            return f"uvicorn {app} --uds {address.path}"
        case _:
            return f"uvicorn {app} --host {host} --port {port}"


def is_plain(words: Sequence[str], server: Server, address: Address) -> bool:
    """Tell whether `starting` repeats all of a command; `words` are what follows the server's name in it."""
    said = set(starting(server, address).split())
    return bool(server.app) and all(part in said for word in words for part in word.split("=", 1))


def _with(server: Server, address: Address, options: str) -> str:
    """Return the command with options added, and say so where it is not all of the server's own.

    What else is in a command line is not repeated: it may hold secrets, and is not always seen.
    """
    note = "" if server.is_plain else f"  # add to your own command: {options}"
    return f"{starting(server, address)} {options}{note}"


def believing(server: Server, address: Address, peer: str) -> str:
    """Return how a server learns to believe X-Forwarded-Proto of the proxy, which connects from `peer`."""
    match server.runs_in or server.name:
        case "hypercorn":
            return (
                "from hypercorn.middleware import ProxyFixMiddleware; "
                'app = ProxyFixMiddleware(app, mode="legacy", trusted_hops=1)'
            )
        case "granian":
            trusted = '"*"' if address.path else f'["{peer}"]'
            return (
                "from granian.utils.proxies import wrap_asgi_with_proxy_headers; "
                f"app = wrap_asgi_with_proxy_headers(app, trusted_hosts={trusted})"
            )
        case "uvicorn" | "gunicorn":
            # The last of two contrary options counts, so this mends the command wherever it is added.
            heed = "--proxy-headers " if server.is_deaf else ""
            return _with(server, address, f"{heed}--forwarded-allow-ips {_allowed(address, peer)}")
        case _:
            return f"FORWARDED_ALLOW_IPS={_allowed(address, peer)}  # in the environment of uvicorn or gunicorn"


def _allowed(address: Address, peer: str) -> str:
    """A unix socket has no address that could be compared; its folder protects it."""
    return "'*'" if address.path else peer


def staying(server: Server, address: Address, seconds: int) -> str:
    """Return how a server is made to keep idle connections for longer."""
    option = {
        "uvicorn": f"--timeout-keep-alive {seconds}",
        "hypercorn": f"--keep-alive {seconds}",
        "gunicorn": f"--keep-alive {seconds}",
        "granian": f"--http1-header-read-timeout {1000 * seconds}",
    }.get(server.runs_in or server.name)
    if option is None:
        return f"# make the server at {address.url} keep idle connections for {seconds} s or longer"
    return _with(server, address, option)


def prefixed(server: Server, address: Address, prefix: str, *, strips: bool) -> str:
    """Return how an application learns that it lives under a prefix. Which way is right depends on who strips it."""
    if strips and server.name == "uvicorn" and not server.runs_in:
        return _with(server, address, f"--root-path {prefix}")
    return f'app = FastAPI(root_path="{prefix}")'


def with_websockets(server: Server, address: Address) -> str:
    """Return how a server comes to take WebSockets, "" where it always does."""
    match server.name:
        case "uvicorn":
            return "pip install 'uvicorn[standard]'  # and start it without --ws none"
        case "granian":
            return _with(server, address, "--ws")
        case _:
            return ""
