"""`tlsproxy doctor` beside a real proxy, with and without it: certificates, listeners, DNS, CAs, and how it speaks."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.pebble import ChallTestSrv, Pebble
from tests.store.pki import issue
from tests.store.pki import write_pair as write_issued
from tests.system import acme
from tests.system.running import ROOT, Proxy, free_port, running_proxy, write_pair

pytestmark = pytest.mark.system

NOBODY = acme.NOBODY_HOME  # where the backend is not looked at: to watch a connection takes seconds


@dataclass
class Run:
    """One run of the command with --json."""

    code: int
    findings: list[dict[str, Any]]

    def of(self, about: str, check: str) -> dict[str, Any]:
        (found,) = [each for each in self.findings if (each["about"], each["check"]) == (about, check)]
        return found

    def state(self, about: str, check: str) -> str:
        state: str = self.of(about, check)["state"]
        return state


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "tlsproxy", "doctor", *map(str, options)]


def doctor(*options: object) -> Run:
    done = subprocess.run(command(*options, "--json"), capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stderr == ""
    document = json.loads(done.stdout)
    run = Run(done.returncode, document["findings"])
    states = [each["state"] for each in run.findings]
    assert document["counts"] == {state: states.count(state) for state in ("ok", "bad", "unknown")}
    assert all(each["fix"] for each in run.findings if each["state"] == "bad")
    return run


def site(host: str, certificate: str, backend: str) -> str:
    return f'[[sites]]\nhosts = ["{host}"]\ncertificate = {certificate}\nbackends = ["{backend}"]\n'


# --- beside a proxy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doctor")


@pytest.fixture(scope="module")
def proxy(folder: Path, authority: trustme.CA, trust: ssl.SSLContext, app: str) -> Iterator[Proxy]:
    """One with a certificate of the internal CA, one of an unknown authority, and one without its intermediate."""
    root = issue(cn="A root", ca=True)
    between = issue(cn="An intermediate", ca=True, by=root)
    write_issued(folder, issue("short.test", by=between, issuer_url="http://ca.test/between.der"))
    sites = [
        site("files.test", write_pair(folder, authority, "files.test"), app),
        site("localhost", '"internal"', app),
        site("short.test", '{ chain = "chain.pem", key = "key.pem" }', app),
    ]
    with running_proxy(folder, trust, "".join(sites), http="127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="module")
def run(proxy: Proxy) -> Run:
    return doctor("--config", proxy.folder / "tlsproxy.toml")


def test_a_proxy_that_is_well(run: Run, app: str) -> None:
    for check in ("proxy", "store", "configuration"):
        assert run.state("this machine", check) == "ok"
    assert [each["state"] for each in run.findings if each["check"] == "ports"] == ["ok", "ok"]
    for host in ("files.test", "localhost"):
        for check in ("certificate", "handshake", "served", "http"):
            assert run.state(host, check) == "ok"
    chain = run.of("localhost", "chain")
    assert (chain["state"], chain["text"]) == (
        "ok",
        "complete, 1 certificate; clients that trust the internal CA accept it",
    )
    assert "holds 1 certificate and the root of the internal CA," in run.of("this machine", "store")["text"]
    assert "1 worker," in run.of("this machine", "proxy")["text"]
    # Of an authority that this machine does not know, nothing bad is said.
    assert run.state("files.test", "chain") == "unknown"
    assert run.state(app, "backend") == "ok"


def test_the_handshake_is_shown_step_by_step(run: Run, proxy: Proxy) -> None:
    steps = run.of("localhost", "handshake")["details"]
    assert steps[0] == f"SNI localhost to 127.0.0.1:{proxy.port}"
    assert steps[1].startswith("TLSv1.3, TLS_")
    assert steps[2].removeprefix("key exchange ") in ("x25519", "X25519MLKEM768", "secp256r1")
    assert steps[3] == "ALPN h2"
    assert steps[4].startswith("chain 0: ")
    assert "issued by CN=tlsproxy internal CA" in steps[4]
    assert any(step.startswith("valid until ") for step in steps)


def test_a_chain_without_its_intermediate(run: Run, folder: Path) -> None:
    found = run.of("short.test", "chain")
    assert [each["check"] for each in run.findings if each["state"] == "bad"] == ["chain"]
    assert run.code == 1
    assert "CN=An intermediate is not sent" in found["text"]
    assert found["fix"] == f"curl -sS http://ca.test/between.der | openssl x509 -inform der >> {folder}/chain.pem"


def test_a_certificate_that_is_not_served(proxy: Proxy, authority: trustme.CA, tmp_path: Path) -> None:
    """The proxy runs with one certificate, the configuration on disk names another."""
    pair = write_pair(tmp_path, authority, "files.test")
    text = (proxy.folder / "tlsproxy.toml").read_text().replace("[[sites]]", "#", 1).partition("#")[0]
    (tmp_path / "tlsproxy.toml").write_text(text + site("files.test", pair, NOBODY))
    found = doctor("--config", tmp_path / "tlsproxy.toml").of("files.test", "served")
    assert found["state"] == "bad"
    assert found["fix"] == f"tlsproxy admin reload --config {tmp_path}/tlsproxy.toml"


LATE = "late.localhost"


def test_a_host_that_the_running_proxy_does_not_know_yet(proxy: Proxy, tmp_path: Path) -> None:
    """It was written into the file, and not reloaded: that is said, once, and nothing that follows from it."""
    config = tmp_path / "tlsproxy.toml"
    config.write_text((proxy.folder / "tlsproxy.toml").read_text() + site(LATE, '"internal"', NOBODY))
    for name in ("site.pem", "site.key", "chain.pem", "key.pem"):
        shutil.copy(proxy.folder / name, tmp_path)
    run = doctor(LATE, "--config", config)
    found = run.of(LATE, "site")
    assert found["state"] == "bad"
    assert found["text"].startswith(f"the running proxy (pid {proxy.pid}) does not serve {LATE}: its configuration is")
    assert found["fix"] == f"tlsproxy admin reload --config {config}"
    assert {each["check"] for each in run.findings if each["about"] == LATE} == {"site", "DNS", "certificate"}
    stored = run.of(LATE, "certificate")
    assert (stored["state"], stored["fix"]) == ("unknown", None)
    assert "when the running proxy serves this host" in stored["text"]


def test_a_host_of_the_command_line_beside_another_configuration(proxy: Proxy) -> None:
    run = doctor("--site", f"{LATE}={NOBODY}", "--config", proxy.folder / "tlsproxy.toml")
    found = run.of(LATE, "site")
    assert found["state"] == "unknown"
    assert f"(pid {proxy.pid}) does not serve {LATE}" in found["text"]
    assert found["fix"].startswith("tlsproxy admin reload --config ")
    assert not [each for each in run.findings if each["about"] == LATE and each["check"] == "handshake"]


def test_a_worker_that_hangs_is_not_waited_for(proxy: Proxy) -> None:
    """What listens and does not answer takes its deadline, not all the time there is."""
    (worker,) = proxy.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        found = doctor("localhost", "--config", proxy.folder / "tlsproxy.toml").of("localhost", "handshake")
    finally:
        os.kill(worker, signal.SIGCONT)
    assert found["state"] == "bad"
    assert "no handshake in time" in found["text"]


# --- without a proxy


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tlsproxy.toml"
    path.write_text(f"""
        listen = {{ https = ["127.0.0.1:{free_port()}"], http = [] }}
        store = {{ url = "file://{tmp_path}/store" }}
        admin = {{ socket = "{tmp_path}/admin.sock" }}
        {site("localhost", '"internal"', NOBODY)}
    """)
    return path


def test_without_a_proxy_nothing_of_it_is_bad(config: Path) -> None:
    run = doctor("--config", config)
    assert [each["about"] for each in run.findings if each["state"] == "bad"] == [NOBODY]
    assert run.of("this machine", "proxy")["fix"] == f"tlsproxy run --config {config}"
    assert run.state("localhost", "handshake") == "unknown"
    assert run.state("localhost", "certificate") == "unknown"
    assert not (config.parent / "store").exists()


def test_a_host_that_no_site_has(config: Path) -> None:
    done = subprocess.run(command("localhots", "--config", config), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Did you mean localhost?" in " ".join(done.stderr.split()).replace("│ ", "")


def test_a_pipe_gets_plain_lines(config: Path) -> None:
    done = subprocess.run(command("--config", config), capture_output=True, text=True, timeout=60)
    assert "\x1b" not in done.stdout
    assert f"bad\t{NOBODY}\tbackend\tnobody listens there (Connection refused)" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1].endswith("unknown")


def test_a_terminal_gets_a_table_and_sees_progress(config: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(command("--config", config), stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b"")).decode()
        assert process.wait(30) == 1
    os.close(ours)
    assert "\x1b[2K" in shown  # a line that was replaced
    assert "✗ bad" in shown
    assert "→ uvicorn main:app --host 127.0.0.1 --port 1" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b""


AS_NOBODY = """
import os, sys
from tlsproxy.cli import main
arguments = sys.argv[1:]
sys.stdout = open(os.devnull, "w")
main(arguments)  # what is imported now need not be read by the other user
sys.stdout = sys.__stdout__
os.setgroups([])
os.setegid(65534)
os.seteuid(65534)
sys.exit(main(arguments))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_may_not_see_is_not_told_that_it_is_bad(proxy: Proxy) -> None:
    """Nobody may read the store or ask the proxy; the handshake is for everybody."""
    with tempfile.TemporaryDirectory() as name:
        store = Path(name, "store")
        shutil.copytree(proxy.folder / "store", store)
        Path(name).chmod(0o755)
        store.chmod(0o700)
        config = Path(name, "tlsproxy.toml")
        text = (proxy.folder / "tlsproxy.toml").read_text().partition("[[sites]]")[0]
        text = text.replace(f"{proxy.folder}/store", str(store)).replace(
            'https = ["127.0.0.1:0"]', f'https = ["127.0.0.1:{proxy.port}"]'
        )
        config.write_text(text + site("localhost", '"internal"', NOBODY))
        words = [sys.executable, "-c", AS_NOBODY, "doctor", "--config", str(config), "--json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=ROOT)
    run = Run(done.returncode, json.loads(done.stdout)["findings"])
    assert run.state("this machine", "store") == "unknown"
    assert run.state("this machine", "proxy") == "unknown"
    assert run.state("localhost", "certificate") == "unknown"
    assert run.state("localhost", "handshake") == "ok"
    assert [each["about"] for each in run.findings if each["state"] == "bad"] == [NOBODY]


# --- DNS and CAs


def write(folder: Path, hosts: Sequence[str], directory: str, resolver: str) -> Path:
    path = folder / "tlsproxy.toml"
    path.write_text(f"""
        listen = {{ https = ["127.0.0.1:{free_port()}"], http = [] }}
        store = {{ url = "file://{folder}/store", allow_ephemeral = true }}
        admin = {{ socket = "{folder}/admin.sock" }}
        acme = {{ directory = "{directory}", dns = {{ resolvers = ["{resolver}"] }} }}
        {"".join(site(host, '"acme"', NOBODY) for host in hosts)}
    """)
    return path


OTHERS, OURS, AWAY, GONE = (f"{name}.example.org" for name in ("www.others", "ours", "away", "gone"))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """What is said where the DNS knows these, a CA of the table of known ones is asked for, and cannot be reached."""
    folder = tmp_path_factory.mktemp("records")
    with ChallTestSrv(folder, ipv4="", ipv6="") as dns:
        for host in (OTHERS, OURS):
            dns.a(host, "127.0.0.1")
        dns.a(AWAY, "192.0.2.77")
        dns.caa("others.example.org", "other.example")
        dns.caa(OURS, "letsencrypt.org")
        yield doctor("--config", write(folder, (OTHERS, OURS, AWAY, GONE), "letsencrypt", dns.address))


def test_records_that_keep_the_ca_off(records: Run) -> None:
    found = records.of(OTHERS, "CAA")
    assert (found["state"], found["fix"]) == ("bad", 'others.example.org. IN CAA 0 issue "letsencrypt.org"')
    assert records.state(OURS, "CAA") == "ok"
    assert records.state(AWAY, "CAA") == "ok"


def test_addresses(records: Run) -> None:
    """Who is at somebody else's address can't be seen, and that is what is said; 192.0.2.0/24 is nobody's."""
    assert records.of(OURS, "DNS")["text"] == "127.0.0.1: this machine"
    assert records.state(AWAY, "DNS") == "unknown"
    assert "192.0.2.77" in records.of(AWAY, "DNS")["text"]
    assert records.state(GONE, "DNS") == "bad"
    assert records.of(GONE, "DNS")["fix"].startswith(f"{GONE}. 300 IN A ")


def test_what_lies_before_this_machine_is_said_to_be_unseen(records: Run) -> None:
    found = records.of(OURS, "from outside")
    assert found["state"] == "unknown"
    assert found["fix"].startswith(f"curl -sSI http://{OURS}/")


def test_a_ca_and_a_resolver_that_are_away(tmp_path: Path) -> None:
    away = f"https://127.0.0.1:{free_port()}/dir"
    run = doctor("--config", write(tmp_path, ["a.example.org"], away, f"127.0.0.1:{free_port()}"))
    found = run.of("127.0.0.1", "CA")
    assert (found["state"], found["fix"]) == ("bad", f"curl -sSI {away}")
    assert run.state("a.example.org", "DNS") == "unknown"
    assert run.state("a.example.org", "CAA") == "unknown"


def test_a_certificate_of_a_ca(tmp_path: Path) -> None:
    ports = acme.Ports()
    with (
        ChallTestSrv(tmp_path, ipv6="") as dns,
        Pebble(tmp_path, dns=dns.address, http_port=ports.http, tls_port=ports.https) as ca,
        acme.running(
            tmp_path, ca, acme.site("a.test"), ports=ports, more=f'[acme.dns]\nresolvers = ["{dns.address}"]'
        ) as proxy,
    ):
        proxy.wait_for("certificate.obtained", certificate="acme/a.test")
        run = doctor("a.test", "--config", tmp_path / "tlsproxy.toml")
    assert run.state("127.0.0.1", "CA") == "ok"
    assert run.state("this machine", "clock") == "ok"
    for check in ("DNS", "CAA", "certificate", "served"):
        assert run.state("a.test", check) == "ok"
    assert run.state("a.test", "chain") == "unknown"
