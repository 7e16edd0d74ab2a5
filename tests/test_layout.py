"""The house keeps its shape: import direction, pure rooms, file length, nothing of one machine in the files.

Reads the sources as text and syntax trees; imports nothing of the package.
"""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tlsproxy"

# Each room and the rooms it may import from, besides itself (docs/architecture.md shows the picture).
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "settings": {"errors"},
    "logs": {"errors", "settings"},
    "wire": {"errors"},
    "store": {"errors", "settings", "logs", "wire"},
    "proxy": {"errors", "settings", "logs", "wire", "store"},
    "certs": {"errors", "settings", "logs", "wire", "store"},
    "runtime": {"errors", "settings", "logs", "wire", "store", "proxy", "certs"},
    "doctor": {"errors", "settings", "logs", "wire", "store", "proxy", "certs", "runtime"},
    "cli": {"errors", "settings", "logs", "wire", "store", "proxy", "certs", "runtime", "doctor"},
    "__main__": {"cli"},
    "asgi": set(),  # goes into applications, where the rest is not
    "pytest_plugin": {"store", "certs"},  # runs the command, and reads the root of its CA
}
# Bytes to values and nothing else: no loop, socket, clock, file or log in there.
NOT_IN_WIRE = {"asyncio", "uvloop", "ssl", "socket", "selectors", "logging", "time", "datetime", "os", "io", "pathlib"}
# On the request path and in the supervisor, certificates are not made; in the certificate path, no traffic is served.
NOT_IN: dict[str, set[str]] = {
    "wire": NOT_IN_WIRE | {"threading", "subprocess", "random"},
    "proxy": {"subprocess", "multiprocessing", "requests", "acme", "ngh2"},  # the codec is a plug: `wire` knows it
    "certs": {"uvloop", "httptools"},
}
LONGEST_FILE = 400


def package_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    """Return the room of a module named by its parts below the package: ("proxy", "tls") is in "proxy"."""
    return parts[0] if parts else ""


def imports_of(path: Path, root: Path = ROOT) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything a file imports, inside functions too."""
    here = path.relative_to(root).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            origin = ".".join(part for part in (base, node.module or "") if part)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def rooms_imported(path: Path) -> Iterator[tuple[int, str]]:
    rooms = {entry.stem for entry in PACKAGE.iterdir()}
    for line, name in imports_of(path):
        top, _, rest = name.partition(".")
        if top == "tlsproxy" and (room := rest.partition(".")[0]) in rooms:
            yield line, room


def test_every_room_is_in_the_plan() -> None:
    rooms = {room_of(path.relative_to(PACKAGE).with_suffix("").parts) for path in package_files()}
    assert rooms - {"__init__"} <= set(MAY_IMPORT), "a new room needs a place in MAY_IMPORT and in docs/architecture.md"


def test_imports_go_down_only() -> None:
    wrong = []
    for path in package_files():
        room = room_of(path.relative_to(PACKAGE).with_suffix("").parts)
        allowed = MAY_IMPORT.get(room, set()) | {room}
        wrong += [f"{path.relative_to(ROOT)}:{n} {got}" for n, got in rooms_imported(path) if got not in allowed]
    assert wrong == []


@pytest.mark.parametrize("room", sorted(NOT_IN))
def test_rooms_stay_clean_of_what_is_not_their_work(room: str) -> None:
    wrong = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        found = [(line, name.partition(".")[0]) for line, name in imports_of(path)]
        wrong += [f"{path.relative_to(ROOT)}:{line} {top}" for line, top in found if top in NOT_IN[room]]
    assert wrong == []


def test_the_package_itself_imports_nothing() -> None:
    assert list(imports_of(PACKAGE / "__init__.py")) == []


def test_a_forbidden_import_is_seen(tmp_path: Path) -> None:
    """The reader above must see every form of an import, or the tests that use it say nothing."""
    source = tmp_path / "tlsproxy" / "wire" / "x.py"
    source.parent.mkdir(parents=True)
    source.write_text("import ssl as s\ndef f():\n    from tlsproxy import proxy\nfrom ..certs.plan import plan\n")
    assert {name for _, name in imports_of(source, tmp_path)} == {"ssl", "tlsproxy.proxy", "tlsproxy.certs.plan.plan"}


def test_only_settings_and_the_command_read_the_environment() -> None:
    reading = re.compile(r"\bgetenv\(|\benviron(?:\[|\.get\()")
    wrong = []
    for path in package_files():
        if room_of(path.relative_to(PACKAGE).with_suffix("").parts) not in {"settings", "cli"}:
            lines = enumerate(path.read_text().splitlines(), 1)
            wrong += [f"{path.relative_to(ROOT)}:{number}" for number, line in lines if reading.search(line)]
    assert wrong == []


def test_files_stay_short_enough_to_read() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in package_files()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_every_file_says_what_it_is_for() -> None:
    silent = [
        path for path in package_files() if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert [str(path.relative_to(ROOT)) for path in silent] == []


# --- nothing of a machine, a registry or a secret


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: the list of files is not known")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(?:work|root|home/(?!me/|user/)\w+)/",
    "a package index": r"(?i)\b(?:files\.pythonhosted|pypi\.org/simple|registry\.npmjs|proxy\.golang|deb\.debian)\b"
    r"|(?:extra-)?index-url|trusted-host|find-links",
    "a private key": r"-----BEGIN (?:RSA |EC |ENCRYPTED )?PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}",
    "a token": r"\b(?:ghp|gho|pypi|glpat|xox[bp])[-_][A-Za-z0-9_-]{16,}\b|\bAKIA[A-Z0-9]{16}\b",
}


@pytest.mark.parametrize("what", sorted(FORBIDDEN))
def test_no_file_holds(what: str) -> None:
    found = []
    for path in tracked_files():
        if path != Path(__file__).resolve():
            text = path.read_bytes().decode("utf-8", "replace")
            found += [f"{path.relative_to(ROOT)}: {match.group()[:60]}" for match in re.finditer(FORBIDDEN[what], text)]
    assert found == []


def test_the_patterns_see_what_they_look_for() -> None:
    samples = {
        "a path of one machine": "open('/root/x')",
        "a package index": "pip install --index-url x",
        "a private key": "-----BEGIN PRIVATE KEY-----\n" + "A" * 64,
        "a token": "ghp_" + "a" * 36,
    }
    assert all(re.search(FORBIDDEN[what], sample) for what, sample in samples.items())
    assert samples.keys() == FORBIDDEN.keys()


# --- constraints and README


def test_constraints_hold_names_and_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    assert pins == sorted(pins, key=lambda line: line.lower().replace("_", "-"))


def test_constraints_cover_every_dependency_of_the_project() -> None:
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {normal(re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]) for requirement in wanted}
    assert names - pinned == set()


def test_scripts_named_in_the_readme_exist_and_run() -> None:
    named = set(re.findall(r"(?<![\w/.])(?:\./)?(scripts/[a-z]+|\.ci/run)\b(?![./])", (ROOT / "README.md").read_text()))
    assert {"scripts/demo", "scripts/test"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).stat().st_mode & 0o111] == []
