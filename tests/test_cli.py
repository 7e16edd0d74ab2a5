"""The commands: exit codes, what goes to stdout and what to stderr, no tracebacks."""

import io
import json
import os
import pty
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from tests.store.pki import issue, write_pair
from tlsproxy import __version__, cli
from tlsproxy.settings import loader

CONFIG = """\
[store]
url = "file:store"
[[sites]]
hosts = ["localhost", "a.test"]
backends = ["127.0.0.1:8000"]
"""

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loader, "SEARCHED", (Path("tlsproxy.toml"),))
    for name in [name for name in os.environ if name.startswith("TLSPROXY_")]:
        monkeypatch.delenv(name)
    Path("tlsproxy.toml").write_text(CONFIG)


def test_version(capsys: Output) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tlsproxy {__version__}\n"


@pytest.mark.parametrize("arguments", [["no-such"], ["run", "--no-such"], ["trust"], ["trust", "--print", "--install"]])
def test_usage_errors_end_with_2(arguments: list[str], capsys: Output) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().out == ""


def test_check_says_what_was_understood(capsys: Output) -> None:
    assert cli.main(["check"]) == 0
    assert capsys.readouterr() == ("tlsproxy.toml: 1 site, 2 hosts, 1 route; https on :443, http on :80\n", "")


def test_check_shows_every_problem(capsys: Output) -> None:
    Path("other.toml").write_text(CONFIG + 'backend = 1\nhsts = "x"\n')
    assert cli.main(["check", "--config", "other.toml"]) == 2
    assert capsys.readouterr() == (
        "",
        'other.toml:6: sites.0.backend: unknown key, did you mean "backends"?\n'
        'other.toml:7: sites.0.hsts: "x" is not a duration; write "10s", "5m", "1h" or a number of seconds\n',
    )


def test_check_looks_into_the_files(tmp_path: Path, capsys: Output) -> None:
    write_pair(tmp_path, issue("localhost"))
    Path("ca.pem").write_text("no certificates")
    files = 'certificate = { chain = "chain.pem", key = "key.pem" }\nclient_ca = "ca.pem"\nclient_auth = "require"\n'
    Path("tlsproxy.toml").write_text(CONFIG + files)
    assert cli.main(["check"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("tlsproxy.toml:6: sites.0.certificate: ")
    assert "does not cover a.test" in first
    assert second == f"tlsproxy.toml:7: sites.0.client_ca: {tmp_path}/ca.pem holds no certificates in PEM form"


def test_check_warns_of_what_works_and_is_wrong(tmp_path: Path, capsys: Output) -> None:
    chain, _ = write_pair(tmp_path, issue("localhost", "a.test", days=(-9, -1)))
    Path("tlsproxy.toml").write_text(CONFIG + 'certificate = { chain = "chain.pem", key = "key.pem" }\n')
    assert cli.main(["check"]) == 0
    assert f"warning: {chain}: the certificate expired on " in capsys.readouterr().err


def test_check_refuses_a_store_that_can_not_be_shared(capsys: Output) -> None:
    Path("tlsproxy.toml").write_text(CONFIG.replace("file:store", "memory:"))
    assert cli.main(["check"]) == 2
    assert capsys.readouterr().err.startswith("tlsproxy.toml:2: store.url: ")


def test_explain(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLSPROXY_SERVER__DRAIN", "3s")
    assert cli.main(["explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'sites.0.hosts = ["localhost", "a.test"]  # tlsproxy.toml:4' in lines
    assert 'server.drain = "3s"  # environment TLSPROXY_SERVER__DRAIN' in lines
    assert 'server.workers = "auto"  # default' in lines


def test_the_quick_start_can_be_checked_and_explained(capsys: Output) -> None:
    options = ["--site", "b.localhost=127.0.0.1:8000", "--https", ":8443", "--http", ":8080", "--workers", "1"]
    options += ["--email", "ops@example.net"]
    assert cli.main(["check", *options]) == 0
    assert capsys.readouterr().out == "tlsproxy.toml: 1 site, 1 host, 1 route; https on :8443, http on :8080\n"
    assert cli.main(["explain", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'listen.https = [":8443"]  # option --https' in lines
    assert 'acme.email = "ops@example.net"  # option --email' in lines
    assert 'sites.0.hosts = ["b.localhost"]  # option --site' in lines
    assert not [line for line in lines if "null" in line]


def test_explain_as_json(capsys: Output) -> None:
    assert cli.main(["explain", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["sites.0.hosts"] == {
        "key": "sites.0.hosts",
        "value": ["localhost", "a.test"],
        "origin": "tlsproxy.toml:4",
    }


def test_schema(capsys: Output) -> None:
    assert cli.main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    first = {"listen", "server", "limits", "tls", "acme", "on_demand", "store"}
    keys = first | {"admin", "events", "log", "sites", "tracing"}
    assert schema["properties"].keys() == keys
    site = schema["$defs"]["Site"]
    assert site["required"] == ["hosts"]
    assert {"routes", "backends"} <= site["properties"].keys()
    assert site["additionalProperties"] is False
    sections = schema["$defs"].values()
    assert [
        key for section in sections for key, about in section["properties"].items() if "description" not in about
    ] == []


def test_trust_prints_the_root(capsys: Output) -> None:
    roots, remarks = [], []
    for _ in range(2):
        assert cli.main(["trust", "--print"]) == 0
        said = capsys.readouterr()
        roots.append(said.out)
        remarks.append(said.err)
    which = f"the root of the internal CA in {Path('store').absolute().as_uri()} (store.url from: tlsproxy.toml:2)\n"
    assert remarks[0].startswith(f"{which}WARNING: a new root was MADE")
    assert remarks[1] == which
    assert x509.load_pem_x509_certificate(roots[0].encode()).version is x509.Version.v3
    assert roots[0] == roots[1]
    assert "PRIVATE" not in roots[0]


def test_a_failure_is_a_sentence_and_debug_shows_more(capsys: Output) -> None:
    assert cli.main(["trust", "--uninstall"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("tlsproxy: ")
    assert "Traceback" not in told
    assert cli.main(["trust", "--uninstall", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_even_a_bug_is_a_sentence(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SEARCHED", None)
    assert cli.main(["check"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("tlsproxy: unexpected TypeError: ")
    assert "--debug" in told
    assert "Traceback" not in told


def test_run_refuses_what_check_refuses(capsys: Output) -> None:
    assert cli.main(["run", "--site", "localhost", "--workers", "0"]) == 2
    assert "option --workers: server.workers: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_log_that_can_not_be_written_is_told_in_one_line(command: str, capsys: Output) -> None:
    Path("tlsproxy.toml").write_text('log = { access = "gone/access.log" }\n' + CONFIG)
    assert cli.main([command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tlsproxy.toml:1: log.access: there is no folder ")


# --- as a process


def tlsproxy(*arguments: str, **keywords: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tlsproxy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **keywords)  # type: ignore[call-overload,no-any-return]


@pytest.mark.system
def test_run_tells_of_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = tlsproxy("run", "--site", "localhost=127.0.0.1:1", "--https", address, "--http", "127.0.0.1:0")
    assert ended.returncode == 1
    assert address in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.system
def test_a_reader_that_goes_away_is_no_accident() -> None:
    command = f"{sys.executable} -m tlsproxy schema | head -c 1"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""


def _read_to_the_end(screen: io.FileIO) -> bytes:
    pieces: list[bytes] = []
    while True:
        try:
            piece = screen.read(4096)
        except OSError:  # EIO is how a Linux terminal says that its last writer is gone
            piece = b""
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


@pytest.mark.system
def test_a_terminal_gets_a_table() -> None:
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "tlsproxy", "explain"]
    environment = {**os.environ, "COLUMNS": "120"}
    with io.FileIO(outer) as screen, subprocess.Popen(command, stdout=inner, env=environment):
        os.close(inner)
        shown = _read_to_the_end(screen).decode()
    assert "origin" in shown.splitlines()[0]
    assert any(line.split()[:2] == ["log.level", '"info"'] for line in shown.splitlines())


@pytest.mark.system
def test_workers_pay_for_nothing_they_do_not_use() -> None:
    code = "import sys, tlsproxy.settings, tlsproxy.logs; print(*sorted(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert {"typer", "click", "rich", "pydantic_settings", "dotenv"} & set(ended.stdout.split()) == set()
