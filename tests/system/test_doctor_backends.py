"""`tlsproxy doctor` before every server that people run FastAPI with, each configured well and badly.

All of them run at once, and one run of the command looks at them all: each case is a site of its own. No proxy runs.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.running import ROOT, Server, free_port, until

pytestmark = pytest.mark.system

APP, WRAPPED = "tests.system.apps.examined:app", "tests.system.apps.examined_wrapped:wrapped"
PREFIX = "/api/v1"
SECRET = "0123456789abcdef" * 4
ELSEWHERE = ("--forwarded-allow-ips", "10.9.9.9")
QUIET = ("--log-level", "warning")
SERVERS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "uvicorn": (("uvicorn", APP, *QUIET), {}),
    "uvicorn-bad": (("uvicorn", APP, *QUIET, *ELSEWHERE, "--timeout-keep-alive", "1", "--ws", "none"), {}),
    "uvicorn-unix": (("uvicorn", APP, *QUIET, "--forwarded-allow-ips", "*"), {}),
    "uvicorn-unix-bad": (("uvicorn", APP, *QUIET), {}),
    "uvicorn-root": (("uvicorn", APP, *QUIET, "--root-path", PREFIX), {}),
    "uvicorn-app-root": (("uvicorn", APP, *QUIET), {"APP_ROOT_PATH": PREFIX}),
    "uvicorn-middleware": (("uvicorn", WRAPPED, *QUIET, *ELSEWHERE), {"SERVER": "middleware", "SECRET": SECRET}),
    "uvicorn-hidden": (("uvicorn", APP, *QUIET, "--no-server-header"), {"HIDDEN": "1"}),
    "hypercorn": (("hypercorn", WRAPPED), {"SERVER": "hypercorn"}),
    "hypercorn-bad": (("hypercorn", APP, "--keep-alive", "1"), {}),
    "hypercorn-root": (("hypercorn", WRAPPED, "--root-path", PREFIX), {"SERVER": "hypercorn"}),
    "granian": (("granian", "--interface", "asgi", WRAPPED), {"SERVER": "granian"}),
    "granian-bad": (
        ("granian", "--interface", "asgi", "--no-ws", "--http1-header-read-timeout", "1000", APP),
        {},
    ),
    "granian-app-root": (("granian", "--interface", "asgi", APP), {"APP_ROOT_PATH": PREFIX}),
    "gunicorn": (("gunicorn", APP, "-k", "asgi", *QUIET), {}),
    "gunicorn-bad": (("gunicorn", APP, "-k", "asgi", *QUIET, *ELSEWHERE, "--keep-alive", "1"), {}),
    "gunicorn-root": (("gunicorn", APP, "-k", "asgi", *QUIET, "--root-path", PREFIX), {}),
}


@dataclass(frozen=True)
class Case:
    """A site: the server behind it, and its route."""

    server: str
    path: str = "/"
    strips: bool = False
    http2: bool = False

    @property
    def host(self) -> str:
        words = [self.server, self.path.strip("/").replace("/", "-"), "strips" * self.strips, "h2c" * self.http2]
        return f"{'-'.join(filter(None, words))}.test"


OF_SERVERS = [Case(name) for name in SERVERS]
OF_HTTP2 = [Case("hypercorn", http2=True), Case("uvicorn", http2=True)]
OF_PREFIXES = [Case(name, PREFIX, strips) for name in SERVERS for strips in (True, False) if "bad" not in name]
CASES = [*OF_SERVERS, *OF_HTTP2, *OF_PREFIXES]


def _bind(name: str, address: str) -> tuple[str, ...]:
    path, port = address.removeprefix("unix:"), address.rpartition(":")[2]
    if "-unix" in name:
        return ("--uds", path)
    bound = name.startswith(("hypercorn", "gunicorn"))
    return ("--bind", f"127.0.0.1:{port}") if bound else ("--port", port)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doctor")


@pytest.fixture(scope="module")
def addresses(folder: Path) -> Iterator[dict[str, str]]:
    """Start all servers; return where each listens."""
    found = {
        name: f"unix:{folder}/{name}.sock" if "-unix" in name else f"http://127.0.0.1:{free_port()}" for name in SERVERS
    }

    def start(name: str) -> Server:
        (program, *options), environment = SERVERS[name]
        command = (str(Path(sys.executable).with_name(program)), *options, *_bind(name, found[name]))
        return Server(command, found[name], folder / f"{name}.log", environment)

    with ExitStack() as stack, ThreadPoolExecutor(len(SERVERS)) as pool:
        for starting in [pool.submit(start, name) for name in SERVERS]:
            stack.callback(_stop, starting)
        for name, address in found.items():
            until(partial(_answers, address), f"{name} answers")  # one that listens may not answer yet
        yield found


def _answers(address: str) -> bool:
    path = address.removeprefix("unix:")
    transport = httpx.HTTPTransport(uds=path if path != address else None)
    with contextlib.suppress(httpx.HTTPError), httpx.Client(transport=transport) as client:
        return bool(client.get("http://localhost/" if path != address else address).status_code)
    return False


def _stop(starting: Future[Server]) -> None:
    starting.result().stop()


@pytest.fixture(scope="module")
def config(folder: Path, addresses: dict[str, str]) -> Path:
    dead = f"http://127.0.0.1:{free_port()}"
    written = folder / "tlsproxy.toml"
    sites = [_site(case, addresses[case.server]) for case in CASES]
    sites.append(f'[[sites]]\nhosts = ["dead.test"]\nbackends = ["{dead}"]')
    sites.append(f'[[sites]]\nhosts = ["missing.test"]\nbackends = ["unix:{folder}/missing.sock"]')
    written.write_text(
        f"""
        listen = {{ https = ["127.0.0.1:{free_port()}"], http = [] }}
        store = {{ url = "file://{folder}/store" }}
        admin = {{ socket = "{folder}/admin.sock" }}
        server = {{ backend_secret = "{SECRET}" }}
    """
        + "\n".join(sites)
    )
    return written


def _site(case: Case, address: str) -> str:
    backend = address.replace("http://", "h2c://") if case.http2 else address
    strips = "strip_prefix = true" if case.strips else ""
    return f"""
        [[sites]]
        hosts = ["{case.host}"]
        [[sites.routes]]
        path = "{case.path}"
        backends = ["{backend}"]
        {strips}
    """


class Findings:
    """What one run of the command says."""

    def __init__(self, config: Path, *options: str) -> None:
        command = [sys.executable, "-m", "tlsproxy", "doctor", "--config", str(config), "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert done.stderr == ""
        self.code = done.returncode
        self.all: list[dict[str, Any]] = json.loads(done.stdout)["findings"]

    def of(self, about: str, check: str) -> dict[str, Any]:
        (found,) = [each for each in self.all if each["about"] == about and each["check"] == check]
        return found


@pytest.fixture(scope="module")
def findings(config: Path) -> Findings:
    """What is said when all sites are examined at once."""
    return Findings(config)


def _runs() -> Iterator[tuple[str, ...]]:
    for name in ("uvicorn", "hypercorn", "granian", "gunicorn"):
        yield f"{name}.test", "--websocket", "/ws", "--stream", "/slowly", "--probe", "/items"
    yield from ((f"{name}.test", "--websocket", "/ws") for name in ("uvicorn-bad", "granian-bad"))
    yield "uvicorn.test", "--stream", "/collected"
    yield Case("uvicorn-root", PREFIX, True).host, "--probe", f"{PREFIX}/items"


@pytest.fixture(scope="module")
def named(config: Path, findings: Findings) -> dict[tuple[str, ...], Findings]:
    """What is said when one host is examined, with paths; most of such a run is waiting, so all are made at once."""
    runs = list(_runs())
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(runs, pool.map(lambda run: Findings(config, *run), runs), strict=True))


@pytest.fixture(scope="module")
def posted(addresses: dict[str, str]) -> Callable[[], list[str]]:
    return lambda: httpx.get(f"{addresses['uvicorn']}/posted", trust_env=False).json()


WELL = ("uvicorn", "uvicorn-unix", "uvicorn-middleware", "hypercorn", "granian", "gunicorn")
# What each has to be told, by the words of its own documentation.
BELIEVING = {
    "uvicorn-bad": "uvicorn tests.system.apps.examined:app --host 127.0.0.1 --port {port} "
    "--forwarded-allow-ips 127.0.0.1",
    "uvicorn-unix-bad": "uvicorn tests.system.apps.examined:app --uds {path} --forwarded-allow-ips '*'",
    "hypercorn-bad": "from hypercorn.middleware import ProxyFixMiddleware; "
    'app = ProxyFixMiddleware(app, mode="legacy", trusted_hops=1)',
    "granian-bad": "from granian.utils.proxies import wrap_asgi_with_proxy_headers; "
    'app = wrap_asgi_with_proxy_headers(app, trusted_hosts=["127.0.0.1"])',
    "gunicorn-bad": "gunicorn -k asgi tests.system.apps.examined:app --bind 127.0.0.1:{port} "
    "--forwarded-allow-ips 127.0.0.1",
}


@pytest.mark.parametrize("name", SERVERS)
def test_says_which_server_and_version_answers(name: str, addresses: dict[str, str], findings: Findings) -> None:
    found = findings.of(addresses[name], "backend")
    program = name.partition("-")[0]
    assert found["state"] == "ok", found["text"]
    assert f"{program} {importlib.metadata.version(program)}" in found["text"]


@pytest.mark.parametrize("name", WELL)
def test_a_server_that_believes_the_proxy_is_well(name: str, addresses: dict[str, str], findings: Findings) -> None:
    found = findings.of(addresses[name], "scheme")
    assert (found["state"], found["fix"]) == ("ok", None)
    assert f"https://{name}.test/docs" in found["details"][0]


@pytest.mark.parametrize("name", BELIEVING)
def test_a_server_that_does_not_believe_the_proxy_is_told_how(
    name: str, addresses: dict[str, str], findings: Findings
) -> None:
    found = findings.of(addresses[name], "scheme")
    address = addresses[name]
    wanted = BELIEVING[name].format(port=address.rpartition(":")[2], path=address.removeprefix("unix:"))
    command, _, note = found["fix"].partition("  # ")
    assert (found["state"], command) == ("bad", wanted)
    # Each was started with options that are not repeated here.
    options = wanted[wanted.index("--forwarded-allow-ips") :] if "--forwarded-allow-ips" in wanted else ""
    assert note == (options and f"add to your own command: {options}")


def test_what_shows_no_redirect_is_unknown(addresses: dict[str, str], findings: Findings) -> None:
    assert findings.of(addresses["uvicorn-hidden"], "scheme")["state"] == "unknown"
    assert findings.of(addresses["uvicorn-hidden"], "root_path")["state"] == "unknown"


@pytest.mark.parametrize("name", ["uvicorn-bad", "hypercorn-bad", "granian-bad", "gunicorn-bad"])
def test_a_server_that_closes_too_early_is_told_how(name: str, addresses: dict[str, str], findings: Findings) -> None:
    found = findings.of(addresses[name], "keep-alive")
    option = {
        "uvicorn-bad": "--timeout-keep-alive 5",
        "hypercorn-bad": "--keep-alive 5",
        "granian-bad": "--http1-header-read-timeout 26000",
        "gunicorn-bad": "--keep-alive 2",
    }
    assert found["state"] == "bad"
    assert found["fix"].endswith(option[name])


@pytest.mark.parametrize("name", WELL)
def test_a_server_that_keeps_connections_long_enough_is_not_blamed(
    name: str, addresses: dict[str, str], findings: Findings
) -> None:
    """granian keeps them for longer than anybody wants to wait."""
    expected = "unknown" if name == "granian" else "ok"
    assert findings.of(addresses[name], "keep-alive")["state"] == expected


OK, BAD = "ok", "bad"
# By server, and whether the proxy strips the prefix: docs/fastapi.md, "An application under a prefix".
PREFIXES: dict[tuple[str, bool], tuple[str, str]] = {
    ("uvicorn", True): (BAD, "--root-path /api/v1"),
    ("uvicorn", False): (BAD, 'app = FastAPI(root_path="/api/v1")'),
    ("uvicorn-root", True): (OK, ""),
    ("uvicorn-root", False): (BAD, "strip_prefix = true"),
    ("uvicorn-app-root", True): (BAD, "strip_prefix = false"),
    # It learns the prefix from each request.
    ("uvicorn-middleware", True): (OK, ""),
    ("uvicorn-app-root", False): (OK, ""),
    ("hypercorn", True): (BAD, "strip_prefix = false"),
    ("hypercorn", False): (BAD, 'app = FastAPI(root_path="/api/v1")'),
    ("hypercorn-root", True): (BAD, "strip_prefix = false"),
    ("hypercorn-root", False): (OK, ""),
    ("granian", True): (BAD, 'app = FastAPI(root_path="/api/v1")'),
    ("granian-app-root", True): (BAD, "strip_prefix = false"),
    ("granian-app-root", False): (OK, ""),
    ("gunicorn", True): (BAD, "strip_prefix = false"),
    ("gunicorn-root", True): (BAD, "strip_prefix = false"),
    ("gunicorn-root", False): (OK, ""),
}


@pytest.mark.parametrize(("name", "strips"), PREFIXES)
def test_a_prefix_fits_or_the_line_that_mends_it_is_said(
    name: str, strips: bool, addresses: dict[str, str], findings: Findings
) -> None:
    state, fix = PREFIXES[name, strips]
    found = findings.of(f"{addresses[name]} at {Case(name, PREFIX, strips).host}{PREFIX}", "root_path")
    assert found["state"] == state
    assert fix in (found["fix"] or "")


@pytest.mark.parametrize(
    ("name", "state"),
    [("uvicorn", OK), ("uvicorn-app-root", OK), ("hypercorn-root", OK), ("uvicorn-root", BAD), ("granian", OK)],
)
def test_a_root_path_without_a_prefix(name: str, state: str, addresses: dict[str, str], findings: Findings) -> None:
    assert findings.of(addresses[name], "root_path")["state"] == state


def test_http2_is_asked_in_http2(addresses: dict[str, str], findings: Findings) -> None:
    url = addresses["hypercorn"].replace("http://", "h2c://")
    assert findings.of(url, "backend")["state"] == OK
    assert findings.of(url, "scheme")["state"] == OK
    assert findings.of(url, "keep-alive")["state"] == OK
    assert findings.of(url, "WebSocket")["state"] == "unknown"


def test_a_backend_that_knows_no_http2(addresses: dict[str, str], findings: Findings) -> None:
    found = findings.of(addresses["uvicorn"].replace("http://", "h2c://"), "backend")
    assert (found["state"], found["fix"]) == (BAD, f'backends = ["{addresses["uvicorn"]}"]')


def test_a_backend_that_is_not_there_is_said_once(findings: Findings) -> None:
    gone = [each for each in findings.all if each["check"] == "backend" and "nobody listens" in each["text"]]
    assert [each["state"] for each in gone] == [BAD, BAD]
    assert all(each["fix"].startswith("uvicorn main:app --") for each in gone)
    assert [each for each in findings.all if each["about"] in {each["about"] for each in gone}] == gone


@pytest.mark.parametrize("name", [*WELL, "hypercorn-bad"])
def test_upgrades_are_seen_without_a_path(name: str, addresses: dict[str, str], findings: Findings) -> None:
    assert findings.of(addresses[name], "WebSocket")["state"] == OK


@pytest.mark.parametrize("name", ["uvicorn-bad", "granian-bad"])
def test_a_server_without_upgrades_is_bad_only_where_a_path_is_named(
    name: str, addresses: dict[str, str], findings: Findings, named: dict[tuple[str, ...], Findings]
) -> None:
    assert findings.of(addresses[name], "WebSocket")["state"] == "unknown"
    found = named[f"{name}.test", "--websocket", "/ws"].of(addresses[name], "WebSocket")
    assert found["state"] == BAD
    assert {"uvicorn-bad": "uvicorn[standard]", "granian-bad": "tests.system.apps.examined:app --ws"}[name] in found[
        "fix"
    ]


@pytest.mark.parametrize("name", ["uvicorn", "hypercorn", "granian", "gunicorn"])
def test_paths_that_are_named_are_tried(
    name: str, addresses: dict[str, str], named: dict[tuple[str, ...], Findings]
) -> None:
    run = named[f"{name}.test", "--websocket", "/ws", "--stream", "/slowly", "--probe", "/items"]
    assert run.of(addresses[name], "WebSocket")["text"] == "/ws is accepted (101)"
    assert run.of(addresses[name], "streaming")["state"] == OK
    scheme = run.of(addresses[name], "scheme")
    assert (scheme["state"], scheme["details"]) == (OK, [f"GET /items → 307 https://{name}.test/items/"])
    assert run.code == 0


def test_a_stream_that_is_collected_is_bad(addresses: dict[str, str], named: dict[tuple[str, ...], Findings]) -> None:
    run = named["uvicorn.test", "--stream", "/collected"]
    found = run.of(addresses["uvicorn"], "streaming")
    assert (found["state"], run.code) == (BAD, 1)
    assert found["fix"] == f"curl -N -H 'Host: uvicorn.test' '{addresses['uvicorn']}/collected'"


def test_named_paths_go_where_their_route_leads(
    addresses: dict[str, str], named: dict[tuple[str, ...], Findings]
) -> None:
    """A client asks for /api/v1/…; the backend gets what the route makes of it."""
    run = named[Case("uvicorn-root", PREFIX, True).host, "--probe", f"{PREFIX}/items"]
    found = run.of(addresses["uvicorn-root"], "scheme")
    assert found["details"] == [f"GET /items → 307 https://uvicorn-root-api-v1-strips.test{PREFIX}/items/"]


def test_nothing_is_changed_by_looking(posted: Callable[[], list[str]], findings: Findings) -> None:
    assert findings.code == 1
    assert posted() == []
