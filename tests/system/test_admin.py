"""The admin socket and its commands, with a real proxy that runs, is stopped, hangs, or is not the only one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.system.commands import admin, admin_json, tlsproxy
from tests.system.conftest import StartProxy
from tests.system.running import Proxy, client_context, running_proxy, until, write_pair
from tlsproxy import __version__, cli
from tlsproxy.runtime.privileges import acting_as, find_account

pytestmark = pytest.mark.system

NO_CA = 'acme = { directory = "https://127.0.0.1:9/directory" }'
INTERNAL = '[[sites]]\nhosts = ["localhost", "*.app.localhost"]\nbackends = ["http://127.0.0.1:9"]\n'
IMPORTED = '[[sites]]\nhosts = ["shop.example.com", "www.example.com"]\nbackends = ["http://127.0.0.1:9"]\n'


def files(pair: str) -> str:
    return f'[[sites]]\nhosts = ["files.test"]\ncertificate = {pair}\nbackends = ["http://127.0.0.1:9"]\n'


def curl(path: Path, target: str, *arguments: str) -> tuple[int, Any]:
    """Return status and JSON of http://localhost/`target`, as curl sees them."""
    command = ["curl", "-sS", "-m", "20", "-w", "\n%{http_code}", "--unix-socket", str(path), *arguments]
    said = subprocess.run([*command, f"http://localhost{target}"], capture_output=True, text=True, timeout=30)
    assert said.returncode == 0, said.stderr
    body, _, status = said.stdout.rpartition("\n")
    return int(status), json.loads(body)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a process do nothing meanwhile, as one that hangs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def import_command(folder: Path) -> list[str]:
    return ["certs", "import", "--chain", str(folder / "new.pem"), "--key", str(folder / "new.key")]


def certifier(proxy: Proxy) -> int:
    pid: int = admin_json(proxy, "status")["certifier"]["pid"]
    return pid


def served(proxy: Proxy, host: str, authority: trustme.CA) -> bytes | None:
    """Return the certificate that a client gets for this host, None if it gets none that it trusts."""
    with contextlib.suppress(OSError, ssl.SSLError), proxy.open(host, client_context(authority)) as client:
        return client.getpeercert(binary_form=True)
    return None


# --- status


def test_status_is_of_the_processes_that_run(start_proxy: StartProxy) -> None:
    proxy = start_proxy(INTERNAL, workers=2)
    with contextlib.suppress(ssl.SSLError):
        proxy.open().close()
    status = admin_json(proxy, "status")
    assert (status["version"], status["pid"], status["generation"], status["sites"]) == (__version__, proxy.pid, 1, 1)
    assert [worker["pid"] for worker in status["workers"]] == sorted(proxy.workers())
    assert all(worker["connections"] >= 0 and worker["requests"] >= 0 for worker in status["workers"])
    assert status["certifier"]["state"] == "running"
    assert status["certificates"] == {"valid": 1, "pending": 0, "failed": 0}
    assert status["listeners"] == [f"https 127.0.0.1:{proxy.port}"]
    assert f"pid           {proxy.pid}, generation 1\n" in admin(proxy, "status").out


def test_who_hangs_does_not_hang_the_answer(start_proxy: StartProxy) -> None:
    proxy = start_proxy(INTERNAL, workers=2)
    hanging, certifier_pid = proxy.workers()[0], certifier(proxy)
    with stopped(hanging), stopped(certifier_pid):
        status = admin_json(proxy, "status")
    assert {worker["pid"] for worker in status["workers"] if worker["requests"] is None} == {hanging}
    assert status["certifier"] == {"pid": certifier_pid, "state": "silent"}
    assert status["certificates"] is None
    until(lambda: admin_json(proxy, "status")["certifier"]["state"] == "running", "it answers again")


@pytest.mark.parametrize("spoilt", ["[listen", "[listen]\nhttp5 = 1"])
def test_a_file_that_is_spoilt_hides_no_running_proxy(start_proxy: StartProxy, spoilt: str) -> None:
    """Docker's HEALTHCHECK asks for the proxy that serves, not for what somebody is writing for the next one."""
    proxy = start_proxy(INTERNAL)
    path = proxy.folder / "tlsproxy.toml"
    path.write_text(f"{path.read_text()}\n{spoilt}\n")
    checked = admin(proxy, "status", "--check")
    assert (checked.code, checked.out.split(":")[0]) == (0, "ready")
    assert "tlsproxy.toml:" in checked.err
    assert "this is said by the proxy that runs" in checked.err
    refused = tlsproxy(proxy.folder, "admin", "reload")
    assert (refused.code, refused.out) == (2, "")
    assert admin(proxy, "stop").out.splitlines()[-1] == "stopped"
    assert tlsproxy(proxy.folder, "admin", "status").code == 2


def test_a_certifier_that_dies_is_stood_in_for_by_the_store(start_proxy: StartProxy) -> None:
    proxy = start_proxy(INTERNAL)
    rows, pid = admin_json(proxy, "certs", "list"), certifier(proxy)
    command = [sys.executable, "-m", "tlsproxy", "admin", "certs", "list", "--json"]
    with stopped(pid):
        asking = subprocess.Popen([*command, "--config", str(proxy.folder / "tlsproxy.toml")], stdout=subprocess.PIPE)
        until(lambda: _clients(proxy) == 1, "the question is asked")
        os.kill(pid, signal.SIGKILL)
        out, _ = asking.communicate(timeout=30)
    assert (asking.returncode, json.loads(out)[0]["serial"]) == (0, rows[0]["serial"])
    proxy.wait_for("certifier.replaced")
    assert admin(proxy, "certs", "list").err == ""


# --- certificates


def test_certificates_are_listed_shown_and_explained(
    start_proxy: StartProxy, authority: trustme.CA, tmp_path: Path
) -> None:
    proxy = start_proxy(INTERNAL + files(write_pair(tmp_path, authority, "files.test")))
    running = admin_json(proxy, "certs", "list")
    assert [(row["name"], row["status"], row["source"], row["served"]) for row in running] == [
        ("file/files.test", "valid", "file", True),
        ("internal/localhost", "valid", "internal", True),
    ]
    shown = admin_json(proxy, "certs", "show", "one.app.localhost")
    assert shown["names"] == ["localhost", "*.app.localhost"]
    assert admin(proxy, "certs", "why", "localhost").lines[0].startswith("internal/localhost: the certificate for")
    assert tlsproxy(tmp_path, "admin", "certs", "renew", "localhost").code == 1
    refused = tlsproxy(tmp_path, "admin", "certs", "show", "strange.test")
    assert (refused.code, refused.out) == (1, "")
    assert "no site has this host" in refused.err

    proxy.stop()
    offline = admin(proxy, "certs", "list", "--json")
    assert offline.err.startswith("no proxy is running: there is no admin socket at ")
    assert json.loads(offline.out) == [{**row, "served": False} for row in running]


def test_an_imported_certificate_is_served_and_exported_and_removed(
    start_proxy: StartProxy, authority: trustme.CA, tmp_path: Path
) -> None:
    proxy = start_proxy(IMPORTED, head=NO_CA, workers=2)
    workers = proxy.workers()
    assert served(proxy, "shop.example.com", authority) is None
    write_pair(tmp_path, authority, "shop.example.com", "www.example.com", stem="new")
    imported = admin(proxy, *import_command(tmp_path))
    assert imported.out.startswith("acme/shop.example.com: imported, valid until ")
    leaf = until(lambda: served(proxy, "www.example.com", authority), "the imported certificate is served")
    assert leaf == x509.load_pem_x509_certificate((tmp_path / "new.pem").read_bytes()).public_bytes(Encoding.DER)
    assert proxy.workers() == workers

    proxy.stop()
    admin(proxy, "certs", "export", "shop.example.com", "--out", str(tmp_path / "out"))
    assert (tmp_path / "out/fullchain.pem").read_bytes() == (tmp_path / "new.pem").read_bytes()
    assert stat.S_IMODE((tmp_path / "out/privkey.pem").stat().st_mode) == 0o600
    refused = tlsproxy(tmp_path, "admin", "certs", "remove", "shop.example.com", "--yes")
    assert (refused.code, "is served with it" in refused.err) == (1, True)
    admin(proxy, "certs", "remove", "shop.example.com", "--yes", "--force")
    assert admin_json(proxy, "certs", "list")[0]["serial"] is None


def test_a_running_proxy_removes_what_no_site_uses(
    start_proxy: StartProxy, authority: trustme.CA, tmp_path: Path
) -> None:
    with running_proxy(tmp_path, client_context(authority), IMPORTED, head=NO_CA) as proxy:
        write_pair(tmp_path, authority, "shop.example.com", "www.example.com", stem="new")
        admin(proxy, *import_command(tmp_path))
    proxy = start_proxy(INTERNAL)
    assert [row["name"] for row in admin_json(proxy, "certs", "list")] == [
        "acme/shop.example.com",
        "internal/localhost",
    ]
    assert admin(proxy, "certs", "remove", "shop.example.com", "--yes").err == ""
    assert [row["name"] for row in admin_json(proxy, "certs", "list")] == ["internal/localhost"]


# --- the socket


def test_curl_works_too(start_proxy: StartProxy) -> None:
    path = start_proxy(INTERNAL).folder / "admin.sock"
    assert curl(path, "/healthz") == (200, {"status": "ok", "workers": 1})
    assert curl(path, "/status")[1]["sites"] == 1
    assert curl(path, "/certs")[1][0]["name"] == "internal/localhost"
    assert curl(path, "/certs/internal%2Flocalhost/why")[1]["decision"] == "wait"
    assert curl(path, "/quota") == (200, [])
    status, body = curl(path, "/certs/localhost/renew", "--json", '{"force": true}')
    assert (status, "no CA is asked for it" in body["error"]) == (409, True)
    assert curl(path, "/certs/localhost", "-X", "DELETE")[0] == 409
    assert curl(path, "/nothing")[0] == 404
    assert curl(path, "/status", "-X", "POST")[0] == 405
    assert curl(path, "/status", "-H", "Origin: http://localhost")[0] == 403
    assert curl(path, "/status", "-H", "Host: rebound.example")[0] == 403
    assert curl(path, "/certs/localhost/renew", "--data-binary", "x" * 70_000, "-H", "Expect:")[0] == 413


def test_a_second_proxy_on_the_same_socket_serves_without(
    start_proxy: StartProxy, authority: trustme.CA, tmp_path: Path
) -> None:
    first = start_proxy(INTERNAL)
    (tmp_path / "second").mkdir()
    pair = write_pair(tmp_path / "second", authority, "files.test")
    config = tmp_path / "second" / "tlsproxy.toml"
    config.write_text(f"""
        listen = {{ https = ["127.0.0.1:0"], http = [] }}
        server = {{ workers = 1, drain = "1s" }}
        store = {{ url = "file://{tmp_path}/second/store" }}
        admin = {{ socket = "{tmp_path}/admin.sock" }}
        log = {{ format = "json", access = "off" }}
        {files(pair)}
    """)
    second = Proxy(config, client_context(authority))
    try:
        told = second.wait_for("admin.unavailable")
        assert told["level"] == "warning"
        assert "is in use by another running proxy. Give one of them a path of its own" in told["error"]
        assert served(second, "files.test", authority)
    finally:
        second.stop()
    assert admin_json(first, "status")["pid"] == first.pid


def test_what_a_killed_proxy_left_is_taken_over(start_proxy: StartProxy, tmp_path: Path, authority: trustme.CA) -> None:
    path = tmp_path / "admin.sock"
    killed = start_proxy(INTERNAL)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert path.is_socket()
    assert "nobody listens at" in tlsproxy(tmp_path, "admin", "status").err
    with running_proxy(tmp_path, client_context(authority), INTERNAL) as proxy:
        assert admin_json(proxy, "status")["pid"] == proxy.pid
    assert not path.exists()


def test_a_path_longer_than_an_address_works(tmp_path: Path, authority: trustme.CA) -> None:
    folder = tmp_path / ("f" * 120)
    folder.mkdir()
    with running_proxy(folder, client_context(authority), INTERNAL) as proxy:
        assert admin_json(proxy, "status")["pid"] == proxy.pid
        assert stat.S_IMODE((folder / "admin.sock").stat().st_mode) == 0o600
    assert not (folder / "admin.sock").exists()


def test_without_a_proxy_the_commands_end_with_3(start_proxy: StartProxy) -> None:
    proxy = start_proxy(INTERNAL)
    proxy.stop()
    said = tlsproxy(proxy.folder, "admin", "status")
    assert (said.code, said.out) == (3, "")
    assert f"there is no admin socket at {proxy.folder}/admin.sock" in said.err


def test_another_user_is_told_so(start_proxy: StartProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nobody = find_account("nobody") if os.geteuid() == 0 else None
    if nobody is None:
        pytest.skip("only root can be somebody else")
    proxy = start_proxy(INTERNAL)
    for folder in (tmp_path, *tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o001)  # the folders of pytest are closed to others
    command = ["admin", "status", "--json", "--socket", str(tmp_path / "admin.sock")]
    assert cli.main(command) == 0  # the program may lie where only root can read: imported here
    capsys.readouterr()
    with acting_as(nobody):
        assert cli.main(command) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{tmp_path}/admin.sock: this user may not talk to the proxy there." in said.err
    assert "sudo" in said.err
    assert admin_json(proxy, "status")["pid"] == proxy.pid


def test_no_child_holds_the_socket(start_proxy: StartProxy) -> None:
    proxy = start_proxy(INTERNAL, workers=2)
    (inode,) = (row[6] for row in _sockets(proxy) if row[5] == "01" and row[3] == "00010000")
    holders = [proxy.pid, *proxy.workers(), certifier(proxy)]
    open_in = [pid for pid in holders if any(str(each.readlink()) == f"socket:[{inode}]" for each in _descriptors(pid))]
    assert open_in == [proxy.pid]


def test_a_client_that_says_nothing_holds_nothing_up(start_proxy: StartProxy) -> None:
    proxy = start_proxy(INTERNAL)
    with socket.socket(socket.AF_UNIX) as idle:
        descriptor = os.open(proxy.folder, os.O_PATH)
        idle.connect(f"/proc/self/fd/{descriptor}/admin.sock")
        os.close(descriptor)
        assert admin_json(proxy, "status")["pid"] == proxy.pid
        proxy.stop()
    assert proxy.count("proxy.stopped", killed=[]) == 1


def _clients(proxy: Proxy) -> int:
    """Return how many connections to the admin socket are accepted."""
    return sum(row[5] == "03" for row in _sockets(proxy))


def _sockets(proxy: Proxy) -> list[list[str]]:
    """Return the rows of /proc/net/unix (proc(5)) for the admin socket: the listener and the accepted connections."""
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return [row for row in rows if row[-1].endswith("/admin.sock") and proxy.folder.name in row[-1]]


def _descriptors(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/fd").iterdir())
