"""What the documents say is so: links resolve, configurations load, commands and limits are the real ones."""

import ast
import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from tlsproxy import settings
from tlsproxy.certs.limits import LETSENCRYPT
from tlsproxy.certs.problems import from_problem
from tlsproxy.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text())


def anchors(document: Path) -> set[str]:
    """Return the anchors a document's headings get: lower case, punctuation gone, spaces to hyphens."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(document: Path) -> Iterator[tuple[str, str]]:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_resolve(document: Path) -> None:
    broken = []
    for path, anchor in links(document):
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{path}#{anchor}")
    assert broken == []


def test_the_index_names_every_document() -> None:
    index = ROOT / "docs" / "README.md"
    named = {(index.parent / path).resolve() for path, _ in links(index) if path} | {index}
    written = set((ROOT / "docs").rglob("*.md"))
    assert {name(path) for path in written - named} == set()


# --- commands


def console_lines(document: Path) -> Iterator[str]:
    """Yield what is typed: all lines of a block, or those after a prompt where it also has what was printed."""
    for language, text in FENCE.findall(document.read_text()):
        if language == "console":
            lines = [line.strip() for line in text.splitlines()]
            typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
            yield from typed or lines


def calls(document: Path) -> Iterator[list[str]]:
    """Yield the words after `tlsproxy`. In "docker … exec tlsproxy tlsproxy check" the first one is a service."""
    for line in console_lines(document):
        for part in re.split(r"[|;&>#]", line):
            match = re.search(r"(?:^|[ /])tlsproxy (?!tlsproxy )(?![^ ]*/)([a-z].*)", part)
            if match and "docker" not in part.partition("tlsproxy ")[2]:
                yield match[1].split()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_and_their_options_exist(document: Path) -> None:
    for words in calls(document):
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        assert not getattr(command, "commands", {}), f"no such command: tlsproxy {' '.join(words)}"
        known = {option for parameter in command.params for option in parameter.opts}
        assert [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known] == [], words


# --- configurations


def snippets() -> list[Any]:
    found = []
    for document in DOCUMENTS:
        blocks = [text for language, text in FENCE.findall(document.read_text()) if language == "toml"]
        found += [pytest.param(text, id=f"{name(document)}-{number}") for number, text in enumerate(blocks, 1)]
    return found


@pytest.mark.parametrize("text", snippets())
def test_configurations_in_documents_load(text: str, tmp_path: Path) -> None:
    """A snippet may be one section of a file: whatever it is, every key and value in it must be accepted."""
    config = tmp_path / "tlsproxy.toml"
    config.write_text(text)
    (tmp_path / "secrets").mkdir()
    for secret in re.findall(r'_file = "(secrets/[\w-]+)"', text):
        (tmp_path / secret).write_text("bm90LWEtc2VjcmV0LWJ1dC1hcy1sb25nLWFzLW9uZSE=\n")
    assert settings.load(config, {}, {}, require_sites=False).path == config


@pytest.mark.parametrize("config", sorted((ROOT / "config").rglob("*.toml")), ids=name)
def test_example_configurations_load(config: Path) -> None:
    assert settings.load(config, {}, {}).settings.sites != ()


# --- docs/limits.md


def test_the_table_of_limits_has_every_limit_and_its_default() -> None:
    rows = re.findall(
        r"^\| `limits\.(\w+)` \| `?([^|`]+?)`? \|", (ROOT / "docs" / "limits.md").read_text(), re.MULTILINE
    )
    documented = dict(rows)
    limits = settings.Limits()
    assert documented.keys() == type(limits).model_fields.keys()
    for key, text in documented.items():
        written = text if text.isdecimal() else f'"{text}"'
        parsed = settings.Limits.model_validate(tomllib.loads(f"{key} = {written}"))
        assert getattr(parsed, key) == getattr(limits, key), key


# --- docs/logs.md


def logged_events() -> Iterator[str]:
    """Yield the name of each event in the code; "%s.died" stands for one event of every role."""
    for path in sorted((ROOT / "tlsproxy").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"), attr=method), args=[*arguments]):
                    name = arguments[method == "log"]
                    assert isinstance(name, ast.Constant), f"{path}:{node.lineno}: write the event's name out"
                    yield str(name.value)


def documented_events() -> set[str]:
    rows = re.findall(r"^\| (`[^|]+`) \|", (ROOT / "docs" / "logs.md").read_text(), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([a-z0-9_]+\.[a-z0-9_]+)`", row)}


def test_every_event_is_explained() -> None:
    explained = " ".join(sorted(documented_events()))
    known = {event: re.search(rf"\b{event.replace('%s', '[a-z_]+')}\b", explained) for event in logged_events()}
    assert len(known) > 90
    assert [event for event, found in known.items() if not found] == []


def test_no_event_is_explained_that_is_never_logged() -> None:
    patterns = [re.compile(event.replace(".", r"\.").replace("%s", "[a-z_]+")) for event in set(logged_events())]
    assert [name for name in documented_events() if not any(each.fullmatch(name) for each in patterns)] == []


# --- docs/certificates.md

LOOKS = [
    ("connection", "2001:db8::7: Fetching {url}: Connection refused"),
    ("connection", "203.0.113.10: Fetching {url}: Timeout during connect (likely firewall problem)"),
    ("connection", "203.0.113.10: Connection refused"),
    ("connection", "During secondary validation: 203.0.113.10: Fetching {url}: Timeout during connect (likely …)"),
    ("unauthorized", "203.0.113.10: Invalid response from {url}: 404"),
    ("unauthorized", '203.0.113.10: Cannot negotiate ALPN protocol "acme-tls/1" for tls-alpn-01 challenge'),
    ("dns", "DNS problem: NXDOMAIN looking up A for api.example.com - check that a DNS record exists"),
    ("dns", "DNS problem: SERVFAIL looking up A for api.example.com - the nameservers may be malfunctioning"),
    ("dns", "No valid IP addresses found for api.example.com"),
    ("caa", "CAA record for example.com prevents issuance"),
    ("unauthorized", "No TXT record found at _acme-challenge.api.example.com"),
]
"""What Let's Encrypt says after a look at a name: type of the problem, words."""


@pytest.mark.parametrize(("problem", "words"), LOOKS)
def test_the_sentences_about_failures_are_those_that_are_said(problem: str, words: str) -> None:
    detail = words.format(url="http://api.example.com/.well-known/acme-challenge/Zm9v")
    document = {"type": f"urn:ietf:params:acme:error:{problem}", "detail": detail}
    failure = from_problem(document, status=403, step="validation", identifier="api.example.com")
    assert f"| {failure} |" in (ROOT / "docs" / "certificates.md").read_text()


def test_the_limits_of_the_ca_are_those_that_are_kept_to() -> None:
    section = (ROOT / "docs" / "certificates.md").read_text().partition("## Limits of the CA")[2].partition("##")[0]
    rows = re.findall(r"^\| [a-z][^|]+ \| (\d+)(?: in|,)", section, re.MULTILINE)
    assert sorted(map(int, rows)) == sorted(limit.capacity for limit in LETSENCRYPT.table.values())


# --- compose


@dataclasses.dataclass(frozen=True)
class Compose:
    path: Path
    content: dict[str, Any]

    def service(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = self.content["services"][service]
        return found


@pytest.fixture
def compose() -> Compose:
    path = ROOT / "config" / "compose.yaml"
    return Compose(path, yaml.safe_load(path.read_text()))


def test_compose_runs_the_proxy_before_two_applications(compose: Compose) -> None:
    loaded = settings.load(ROOT / "config" / "compose" / "tlsproxy.toml", {}, {}).settings
    backends = {backend for site in loaded.sites for route in site.routes for backend in route.backends}
    applications = set(compose.content["services"]) - {"tlsproxy"}
    assert backends == {f"http://{application}:8000" for application in applications}
    assert len(applications) == 2


def test_compose_mounts_and_builds_what_exists(compose: Compose) -> None:
    folder = compose.path.parent
    mounts = [volume.split(":") for volume in compose.service("tlsproxy")["volumes"]]
    files = [source for source, *_ in mounts if source.startswith(".")]
    assert files != []
    assert [source for source in files if not (folder / source).is_file()] == []
    assert {source for source, *_ in mounts} - set(files) <= set(compose.content["volumes"])
    build = compose.service("app-one")["build"]
    assert (folder / build["context"] / build["dockerfile"]).is_file()
    assert (folder / compose.service("tlsproxy")["build"] / "Dockerfile").is_file()


def test_compose_gives_the_proxy_its_time_to_drain(compose: Compose) -> None:
    grace = float(compose.service("tlsproxy")["stop_grace_period"].removesuffix("s"))
    assert grace > settings.Server().drain


def test_only_the_proxy_is_reachable_from_outside(compose: Compose) -> None:
    published = {service for service, content in compose.content["services"].items() if "ports" in content}
    assert published == {"tlsproxy"}
    assert compose.content["networks"]["apps"]["internal"] is True
    assert compose.service("app-one")["networks"] == ["apps"]
