"""What the admin commands share: their options, and the proxy they are about.

Knows where a running proxy is found and where its store lies; asks neither before it has to. Rule: a proxy that is not
running is no failure for a question that the store alone can answer, but it is said.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tlsproxy.cli.output import complain
from tlsproxy.errors import ConfigError, NotRunning, StoreError

if TYPE_CHECKING:
    from tlsproxy.certs.catalogue import Catalogue
    from tlsproxy.runtime.adminclient import AdminClient
    from tlsproxy.settings import Loaded, Settings
    from tlsproxy.store.base import CertificateStore, Records

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration file; else TLSPROXY_CONFIG, ./tlsproxy.toml, /etc/tlsproxy/tlsproxy.toml.",
    ),
]
SocketOption = Annotated[
    Path | None,
    # Whether it may be read is for the answer to say: that is exit code 3, not a mistake in the option.
    typer.Option("--socket", metavar="PATH", help="Admin socket of the proxy; else admin.socket.", readable=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

SERVICE_SOCKET = Path("/run/tlsproxy/admin.sock")
_WHICH = "If the proxy has another one, name its configuration (--config FILE)."
WRONG_USER = "Or run this command as the user that runs the proxy (with sudo, if that is root)."
_AWAY = frozenset({503, 504})  # what the proxy says while its certifier is not there


def load(config: Path | None, options: dict[str, Any] | None = None, *, require_sites: bool = True) -> Loaded:
    from tlsproxy.settings import load as load_settings

    return load_settings(config, options or {}, os.environ, require_sites=require_sites)


class Target:
    """The proxy that a command is about. Its configuration is read when something in it is needed."""

    def __init__(self, config: Path | None, socket: Path | None) -> None:
        self._config = config
        self._socket = socket

    @functools.cached_property
    def settings(self) -> Settings:
        return self._loaded.settings

    @functools.cached_property
    def _loaded(self) -> Loaded:
        return load(self._config, require_sites=False)

    @property
    def is_unreachable(self) -> bool:
        """Tell whether the configuration says that no running proxy can be asked."""
        return self._socket is None and self.settings.admin.socket == "off"

    @functools.cached_property
    def client(self) -> AdminClient:
        """Raises NotRunning if the configuration says that there is no socket."""
        from tlsproxy.runtime.adminclient import AdminClient

        return AdminClient(self._socket or self._find_socket_anyhow())

    def _find_socket_anyhow(self) -> Path:
        """A proxy that runs with an earlier configuration is there whatever has been written into the file since."""
        try:
            if self.is_unreachable:
                raise NotRunning('the running proxy cannot be asked: the configuration says admin.socket = "off"')
            return self._find_socket()
        except ConfigError as reason:
            path = self._guess_socket()
            if path is None or not os.path.lexists(path):
                raise
            complain(f"{reason}\nThat is the configuration as it is now; this is said by the proxy that runs ({path}).")
            return path

    def _guess_socket(self) -> Path | None:
        from tlsproxy.settings import guess_socket

        return guess_socket(self._config, os.environ)

    def _find_socket(self) -> Path:
        """Return where the proxy listens. A guess for this user gives way to a service's socket that is there."""
        path = Path(self.settings.admin.socket)
        is_guess = self._loaded.origins["admin.socket"].startswith("default") and not path.exists()
        return SERVICE_SOCKET if is_guess and SERVICE_SOCKET.exists() else path

    def ask(
        self,
        question: Callable[[AdminClient], T],
        offline: Callable[[], T],
        instead: str = "this is what the store says",
    ) -> T:
        """Ask the running proxy, or do without if there is none: `instead` says what. Who may not ask gets an error."""
        from tlsproxy.runtime.adminclient import AdminError, NoAccess

        try:
            return question(self.client)
        except NoAccess:
            raise
        except NotRunning as reason:
            complain(f"{str(reason).partition('. ')[0]}; {instead}")
        except AdminError as error:
            if error.status not in _AWAY:
                raise
            complain(f"{error} Until then, {instead}.")
        return offline()

    def look_up(self, question: Callable[[Catalogue], T]) -> T:
        """Answer a question from configuration and store alone."""
        from tlsproxy.certs.catalogue import Catalogue

        if not self.settings.sites and self._is_missing(self.settings.store.url):
            raise StoreError(
                f"store.url {self.settings.store.url}: there is no store, and no site is configured. "
                "Name the configuration of the proxy: --config FILE."
            )
        with self.store(for_reading=True) as store:
            return question(Catalogue(self.settings, store))

    @contextlib.contextmanager
    def store(self, *, for_reading: bool = False) -> Iterator[CertificateStore]:
        """Open the store of the configuration. For reading, one that is not there is empty, and is not made."""
        from tlsproxy.store.base import open_store

        section = self.settings.store
        url = "memory:" if for_reading and self._is_missing(section.url) else section.url
        with self.explained():
            store = open_store(url, section.master_keys())
            try:
                yield store
            finally:
                store.close()

    def require_store(self) -> None:
        """Raise StoreError if there is no store yet: nothing to save, and nothing to be made by the way."""
        url = self.settings.store.url
        if self._is_missing(url):
            raise StoreError(f"store.url {url}: there is no certificate store. {_WHICH}")

    def require_records(self, records: Records) -> None:
        """Raise StoreError if the store holds nothing at all."""
        if not any(records.keys(folder) for folder in records.folders()):
            raise StoreError(f"store.url {self.settings.store.url}: there is nothing in this store. {_WHICH}")

    def _is_missing(self, url: str) -> bool:
        from tlsproxy.store.base import directory_of

        folder = directory_of(url)
        try:
            return folder is None or not folder.exists()
        except PermissionError:  # opening it says more
            return False

    @staticmethod
    @contextlib.contextmanager
    def explained() -> Iterator[None]:
        """Add to what a store says the thing that a person can do who is simply the wrong user."""
        try:
            yield
        except StoreError as error:
            if isinstance(error.__cause__, PermissionError):
                raise StoreError(f"{error} {WRONG_USER}") from error
            raise
