"""Gather the configuration from its layers, check it whole, and remember where every value came from.

The only reader of files and environment. Order, highest first: options, environment, .env, TOML file, defaults.
Rule: all problems of all layers are reported at once; only what can't be read at all is reported alone.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tlsproxy.errors import ConfigError, Problem
from tlsproxy.settings import layers as sources
from tlsproxy.settings import raw, rules
from tlsproxy.settings.models import Settings
from tlsproxy.settings.problems import find_place, translate

SEARCHED = (Path("tlsproxy.toml"), Path("/etc/tlsproxy/tlsproxy.toml"))
_SOCKET = re.compile(r"""^[^#\n]*\bsocket\s*=\s*["']([^"'\n]+)["']""", re.MULTILINE)
_SYSTEM_STORE = Path("/var/lib/tlsproxy")
_SYSTEM_RUN = Path("/run/tlsproxy")


@dataclass(frozen=True)
class Loaded:
    """Settings, the file read, if any, whether this is a pod, and on demand where each value came from."""

    settings: Settings
    path: Path | None
    is_kubernetes: bool
    _layers: Sequence[sources.Layer] = field(repr=False)
    _merged: dict[str, Any] = field(repr=False)

    @functools.cached_property
    def origins(self) -> dict[str, str]:
        """Return the origin of every effective key: "sites.0.hosts" -> "tlsproxy.toml:12"."""
        return _find_origins(self.settings, self._layers, self._merged)


def load(
    config: Path | None,
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    *,
    dotenv: Path = Path(".env"),
    require_sites: bool = True,
) -> Loaded:
    """Return the effective configuration, or raise ConfigError with everything that is wrong.

    `options` are named as on the command line ("site", "https", "http", "workers", "email") or as "section.key".
    Without `require_sites` a configuration that serves nothing is fine, as it is for `explain`.
    """
    path, layers = _read_layers(config, options, environ, dotenv)
    merged = _merge(layers)
    settings = _validate(layers, merged)
    if require_sites and not settings.sites:
        raise ConfigError([_nothing_to_serve(path)])
    return Loaded(settings, path, "KUBERNETES_SERVICE_HOST" in environ, layers, merged)


def guess_socket(config: Path | None, environ: Mapping[str, str], *, dotenv: Path = Path(".env")) -> Path | None:
    """Return where the admin socket is by as much of the configuration as makes sense; None: its file can't be read.

    A file that is being edited says nothing about the proxy that runs with an earlier state of it.
    """
    path, readers = _find_layers(config, {}, environ, dotenv)
    for read in readers:
        try:
            section = read().values.get("admin")
        except ConfigError:
            text = _read_text(path)
            if text is None:
                return None
            found = _SOCKET.search(text)  # it is no TOML; no other key is called so
            section = {"socket": str(path.parent / found[1])} if path and found else None
        written = section.get("socket") if isinstance(section, dict) else None
        if isinstance(written, str):
            return Path(written)
    return Path(Settings().admin.socket)


def _read_text(path: Path | None) -> str | None:
    try:
        return path.read_text() if path else ""
    except (OSError, ValueError):
        return None


def flatten(section: BaseModel, path: raw.Path = ()) -> Iterator[tuple[raw.Path, Any]]:
    """Yield every key of a section with its value: ("sites", 0, "routes", 0, "path"), "/"."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from flatten(value, (*path, name))
        elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
            for index, item in enumerate(value):
                yield from flatten(item, (*path, name, index))
        else:
            yield (*path, name), value


def _read_layers(
    config: Path | None, options: Mapping[str, Any], environ: Mapping[str, str], dotenv: Path
) -> tuple[Path | None, list[sources.Layer]]:
    """Return the file and the layers, highest first. Layers that can't be read are reported together."""
    path, readers = _find_layers(config, options, environ, dotenv)
    layers: list[sources.Layer] = []
    problems: list[Problem] = []
    for read in readers:
        try:
            layers.append(read())
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return path, layers


def _find_layers(
    config: Path | None, options: Mapping[str, Any], environ: Mapping[str, str], dotenv: Path
) -> tuple[Path | None, Sequence[Callable[[], sources.Layer]]]:
    variables = sources.read_dotenv(dotenv)
    path = _find_file(config, {**variables, **environ})
    return path, (
        lambda: sources.read_options(options, environ),
        lambda: sources.read_environment(environ, "environment"),
        lambda: sources.read_environment(variables, str(dotenv)),
        lambda: sources.read_file(path, environ) if path else _default_store(environ),
        lambda: _default_socket(environ),
    )


def _find_file(config: Path | None, variables: Mapping[str, str]) -> Path | None:
    """Return the file to read. A file that was asked for is read even if it is not there: then that is the problem."""
    if config is not None:
        return config
    if variables.get(sources.CONFIG_VARIABLE):
        return Path(variables[sources.CONFIG_VARIABLE])
    return next((path for path in SEARCHED if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that is closed to this user: not ours
        return False


def _default_store(environ: Mapping[str, str]) -> sources.Layer:
    """Without a file a normal user should get a working proxy: keep the store where that user may write."""
    if _is_ours(_SYSTEM_STORE):
        return sources.Layer("default", {})
    url = (_state_folder(environ) / "tlsproxy").as_uri()
    return sources.Layer(f"default ({_SYSTEM_STORE} is not writable for this user)", {"store": {"url": url}})


def _default_socket(environ: Mapping[str, str]) -> sources.Layer:
    """Put the admin socket where this user may make one. `admin` finds it there, for it asks here as `run` does."""
    if _is_ours(_SYSTEM_RUN):
        return sources.Layer("default", {})
    run = environ.get("XDG_RUNTIME_DIR", "")
    folder = Path(run) if run.startswith("/") else _state_folder(environ)
    source = f"default ({_SYSTEM_RUN} is not writable for this user)"
    return sources.Layer(source, {"admin": {"socket": str(folder / "tlsproxy" / "admin.sock")}})


def _is_ours(folder: Path) -> bool:
    return os.geteuid() == 0 or os.access(folder, os.W_OK)


def _state_folder(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME") or str(Path("~").expanduser())
    return Path(environ.get("XDG_STATE_HOME") or f"{home}/.local/state").absolute()


def _merge(layers: Sequence[sources.Layer]) -> dict[str, Any]:
    """Lay the layers on each other: tables are merged, lists and single values replaced."""
    # Its import costs five times that of the models, and worker processes never come here.
    from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource  # noqa: PLC0415

    class Merged(BaseSettings, extra="allow"):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(InitSettingsSource(settings_cls, layer.values) for layer in layers)

    return dict(Merged().model_extra or {})


def _validate(layers: Sequence[sources.Layer], merged: dict[str, Any]) -> Settings:
    problems = [problem for layer in layers for problem in layer.problems]
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise ConfigError([*translate(error, layers, merged), *problems]) from error
    if problems:
        raise ConfigError(problems)
    return settings


def _find_origins(settings: Settings, layers: Sequence[sources.Layer], merged: dict[str, Any]) -> dict[str, str]:
    origins = {}
    for path, _ in flatten(settings):
        written = rules.written_path(path, merged)
        # A pair of files for one name may be written without the list around it, and a list of one is a list.
        layer = find_place(layers, written)
        origins[sources.dotted(path)] = layer.origin(written) if layer else "default"
    return origins


def _nothing_to_serve(path: Path | None) -> Problem:
    looked = f"no file at {' or '.join(map(str, SEARCHED))}" if path is None else ""
    message = "there is no site to serve; add [[sites]] to the configuration, or --site HOST=BACKEND"
    return Problem(str(path or ""), "sites", message + (f" ({looked})" if looked else ""))
