"""The layers a configuration is made of: defaults of this machine, TOML file, .env, environment, options.

Each layer is the values it sets and the answer to "where is this written". Knows the names of variables and options and
the form of the file; not what a value means. A layer that can't be read at all is a ConfigError; whatever else is wrong
is kept with the layer, or found when all layers lie on each other.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tlsproxy.errors import ConfigError, Problem
from tlsproxy.settings import raw, secret_files, tree
from tlsproxy.settings.models import Settings
from tlsproxy.settings.positions import Lines

PREFIX = "TLSPROXY_"
CONFIG_VARIABLE = "TLSPROXY_CONFIG"
_SECTIONS = {
    name: tree.known_keys(section) if (section := tree.find_section((name,))) else [] for name in Settings.model_fields
}
_OPTIONS: dict[str, raw.Path] = {
    "site": ("sites",),
    "https": ("listen", "https"),
    "http": ("listen", "http"),
    "workers": ("server", "workers"),
    "email": ("acme", "email"),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """Values and their places. `names` says which variable or option set a path, `lines` on which line it stands.

    `written`: where a secret is named whose text was read out of a file.
    """

    source: str
    values: dict[str, Any]
    names: Mapping[raw.Path, str] = field(default_factory=dict)
    lines: Lines = field(default_factory=Lines)
    problems: tuple[Problem, ...] = ()
    written: Mapping[raw.Path, raw.Path] = field(default_factory=dict)

    def place(self, path: raw.Path) -> tuple[str, str]:
        """Return source and key for a message about this path."""
        path = next((self.written[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.written), path)
        if self.source == "option":
            return f"option {self._name(path)}", dotted(path)
        if self.names:
            return self.source, self._name(path)
        line = self.lines.find(path)
        return (f"{self.source}:{line}" if line else self.source), dotted(path)

    def origin(self, path: raw.Path) -> str:
        """Return where this path was set, for `explain`."""
        source, key = self.place(path)
        return f"{source} {key}" if self.names and self.source != "option" else source

    def _name(self, path: raw.Path) -> str:
        for length in range(len(path), 0, -1):
            if path[:length] in self.names:
                rest = dotted(path[length:]) if self.source != "option" else ""
                return self.names[path[:length]] + (f".{rest}" if rest else "")
        beneath = (name for known, name in self.names.items() if known[: len(path)] == path)
        return next(beneath, dotted(path))


def dotted(path: raw.Path) -> str:
    """Return "sites.0.hosts" for its path."""
    return ".".join(map(str, path))


def read_file(path: Path, environ: Mapping[str, str]) -> Layer:
    """Read a TOML file; relative paths in it are relative to its folder."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        values = tomllib.loads(text)
    except OSError as error:
        raise _unreadable(path, f"can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _unreadable(f"{path}:{line}", "is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(path, text, str(error)) from error
    except RecursionError as error:
        raise _unreadable(path, "is nested too deeply") from error
    return _finish(Layer(str(path), values, lines=Lines(text)), path.absolute().parent, environ)


def read_environment(environ: Mapping[str, str], source: str) -> Layer:
    """Read the variables TLSPROXY_SECTION__KEY; other names that begin alike belong to others and are left alone."""
    values: dict[str, Any] = {}
    names: dict[raw.Path, str] = {}
    problems: list[Problem] = []
    for name, text in sorted(environ.items()):
        path = _variable_path(name)
        if path is None:
            problems += _near_miss(name, source)
        elif len(path) > 1 and path[0] == "sites":
            problems.append(Problem(source, name, """sites are set as a whole: TLSPROXY_SITES='[{"hosts": […], …}]'"""))
        else:
            names[path] = name
            _put(values, path, _decoded(text))
    return _finish(Layer(source, values, names, problems=tuple(problems)), Path.cwd(), environ)


def read_dotenv(path: Path) -> dict[str, str]:
    """Return the variables of a .env file; none if there is no such file."""
    from dotenv import dotenv_values  # noqa: PLC0415 - only the process that reads the configuration needs it

    try:
        found = dotenv_values(path) if path.is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, f"can't be read: {error}") from error
    return {name: text for name, text in found.items() if text is not None}


def read_options(options: Mapping[str, Any], environ: Mapping[str, str]) -> Layer:
    """Read options named as on the command line ("site", "https" …) or "section.key"; None and () are not set."""
    values: dict[str, Any] = {}
    names: dict[raw.Path, str] = {}
    for name, value in options.items():
        if value is None or value == () or value == []:
            continue
        path = _OPTIONS.get(name, tuple(name.split(".")))
        names[path] = f"--{name}"
        # One that is no HOST=BACKEND is told as a whole, not once more for each part it lacks.
        _put(values, path, [_parse_site(text) for text in value if _is_site(text)] if name == "site" else value)
    problems = tuple(_site_problems(options.get("site") or ()))
    return _finish(Layer("option", values, names, problems=problems), Path.cwd(), environ)


def _parse_site(text: str) -> dict[str, Any]:
    host, _, backends = text.partition("=")
    return {"hosts": [host], "backends": backends}


def _is_site(text: str) -> bool:
    host, _, backends = text.partition("=")
    return bool(host and backends)


def _site_problems(sites: Iterable[str]) -> Iterator[Problem]:
    for text in sites:
        if not _is_site(text):
            message = f'"{text}" is not HOST=BACKEND[,BACKEND…], as in localhost=127.0.0.1:8000'
            yield Problem("option --site", "", message)


def _variable_path(name: str) -> raw.Path | None:
    """Return the path a variable sets, or None for names that are not ours."""
    upper = name.upper()
    if not upper.startswith(PREFIX) or upper == CONFIG_VARIABLE:
        return None
    path = tuple(upper.removeprefix(PREFIX).lower().split("__"))
    return path if len(path) > 1 or path[0] in Settings.model_fields else None


def _near_miss(name: str, source: str) -> Iterator[Problem]:
    """Find TLSPROXY_LOG_LEVEL (one underscore), which would have no effect.

    Only keys that exist: Kubernetes sets TLSPROXY_SERVICE_HOST, TLSPROXY_PORT … in every container beside a service
    of this name.
    """
    for section, keys in _SECTIONS.items():
        for key in keys:
            if name.upper() == f"{PREFIX}{section}_{key}".upper().replace(".", "_"):
                meant = f"{PREFIX}{section}__{key}".upper().replace(".", "__")
                yield Problem(source, name, f"has no effect, did you mean {meant}?")


def _decoded(text: str) -> Any:
    """Lists and tables may be written as JSON; "[::1]:443" begins like a list and is none."""
    if text.lstrip()[:1] in {"[", "{"}:
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _put(values: dict[str, Any], path: raw.Path, value: Any) -> None:
    *parents, last = (str(step) for step in path)
    for step in parents:
        if not isinstance(values.get(step), dict):
            values[step] = {}
        values = values[step]
    values[last] = value


def _finish(layer: Layer, folder: Path, environ: Mapping[str, str]) -> Layer:
    """Make file names absolute and read the secrets that are in files."""
    for holder, key in _file_names(layer.values):
        holder[key] = _absolute(holder[key], folder, environ)
    outcome = secret_files.resolve(layer.values)
    layer = replace(layer, written=outcome.written)
    found = (Problem(*layer.place(fault.path), fault.message) for fault in outcome.faults)
    return replace(layer, problems=(*layer.problems, *found))


def _file_names(values: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Find what names files, as a table or list and the place in it: who reads them may stand elsewhere."""
    for _, table, section in tree.find_tables(values):
        for key in (*section.FILES, *(f"{key}_file" for key in section.SECRETS)):
            given = table.get(key)
            if isinstance(given, str) and given not in {"-", "off", ""}:
                yield table, key
            elif isinstance(given, list) and given and isinstance(given[0], str) and "/" in given[0]:
                yield given, 0  # a command; a program without a path is looked for in PATH


def _absolute(text: str, folder: Path, environ: Mapping[str, str]) -> str:
    if text.startswith("file:") and not text.startswith("file:/"):
        return Path(_absolute(unquote(text.removeprefix("file:")), folder, environ)).as_uri()
    if not text or re.match(r"[a-z][a-z0-9+.-]*:", text):
        return text
    if text.startswith("~/") and environ.get("HOME"):
        return str(Path(environ["HOME"], text[2:]))
    return str(folder / text)


def _syntax_error(path: Path, text: str, message: str) -> ConfigError:
    found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    line = int(found[1]) if found else text.count("\n") + 1
    detail = message[: found.start()] + f" (column {found[2]})" if found else message
    return _unreadable(f"{path}:{line}", f"is not TOML: {detail}")


def _unreadable(source: Path | str, message: str) -> ConfigError:
    return ConfigError([Problem(str(source), "", message)])
