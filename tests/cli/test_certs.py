"""`tlsproxy admin certs`: what a running proxy answers and what the store says in its place; work, watched."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.answering import answering
from tests.cli.test_output import make_screen
from tests.store.pki import issue
from tlsproxy import cli
from tlsproxy.cli import certs, common
from tlsproxy.cli.certs import _cells
from tlsproxy.runtime import adminclient
from tlsproxy.runtime.adminhttp import Answer
from tlsproxy.store.base import CertificateStore

Output = pytest.CaptureFixture[str]
SOCKET = Path("admin.sock")
NOT_RUNNING = "no proxy is running: there is no admin socket at {}; this is what the store says\n"
KEYS = (
    "name names issuer not_before not_after serial source status renew_at next_attempt attempts last_error ari served"
)
STEP = {"step": "validation", "host": "api.example.com", "text": "the CA is looking"}
DONE = {"name": "acme/api.example.com", "issuer": "CN=R11,O=Let's Encrypt", "serial": "0f", "not_after": "2026-05-01"}


@pytest.fixture
def held(store: CertificateStore) -> CertificateStore:
    """A store with a certificate for the first site."""
    store.put("acme/api.example.com", issue("api.example.com", "www.example.com").bundle())
    return store


# --- while the proxy is stopped


def test_list_comes_from_the_store(held: CertificateStore, folder: Path, capsys: Output) -> None:
    assert cli.main(["admin", "certs", "list"]) == 0
    said = capsys.readouterr()
    assert said.err == NOT_RUNNING.format(folder / "admin.sock")
    head, *rows = [line.split("\t") for line in said.out.splitlines()]
    assert head == ["NAME", "STATUS", "LEFT", "EXPIRES", "SOURCE", "ISSUER", "NEXT", "NOTE"]
    assert [row[:2] for row in rows] == [
        ["acme/api.example.com", "valid"],
        ["acme/shop.example.com", "pending"],
        ["file/files.test", "valid"],
        ["internal/localhost", "pending"],
    ]
    assert rows[0][2] == "29 d"


def test_in_a_terminal_an_error_stands_whole_below_the_table(
    held: CertificateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "shop.example.com: the CA could not reach http://shop.example.com/… Open port 80 there."
    when = "2026-11-22T20:00:00+00:00"
    held.put_record("state", "acme/shop.example.com", {"last_error": {"when": when, "sentence": sentence}})
    screen = make_screen(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["admin", "certs", "list"]) == 0
    table, _, below = screen.getvalue().partition("\n\n")
    assert below == f"{sentence}\n"
    assert "NOTE" not in table


def test_list_as_json_has_the_promised_keys(held: CertificateStore, capsys: Output) -> None:
    assert cli.main(["admin", "certs", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(sorted(row) == sorted(KEYS.split()) for row in rows)
    assert rows[0]["names"] == ["api.example.com", "www.example.com"]
    assert [row["served"] for row in rows] == [False] * 4


@pytest.mark.parametrize("name", ["api.example.com", "www.example.com", "acme/api.example.com"])
def test_show_knows_a_certificate_by_all_its_names(held: CertificateStore, name: str, capsys: Output) -> None:
    assert cli.main(["admin", "certs", "show", name]) == 0
    said = capsys.readouterr().out
    assert said.startswith("name          acme/api.example.com\nnames         api.example.com\n")
    bundle = held.get("acme/api.example.com")
    assert bundle is not None
    assert bundle.fingerprint in said
    assert "\nchain         subject " in said
    assert "PRIVATE" not in said


def test_show_as_json(held: CertificateStore, capsys: Output) -> None:
    assert cli.main(["admin", "certs", "show", "api.example.com", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["hosts"] == ["api.example.com", "www.example.com"]
    assert len(shown["chain"]) == 1
    assert "PRIVATE" not in json.dumps(shown)


def test_why_is_sentences(held: CertificateStore, capsys: Output) -> None:
    assert cli.main(["admin", "certs", "why", "shop.example.com"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "acme/shop.example.com: there is no certificate for shop.example.com."
    assert second.startswith("A certificate is due: ")
    assert cli.main(["admin", "certs", "why", "shop.example.com", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"] == "obtain"


def test_quota_comes_from_the_store_too(held: CertificateStore, capsys: Output) -> None:
    assert cli.main(["admin", "certs", "quota"]) == 0
    assert cli.main(["admin", "certs", "quota", "--json"]) == 0
    assert capsys.readouterr().out == "nothing is used up\n[]\n"


def test_quota_is_a_table(capsys: Output) -> None:
    row = {"ca": "https://ca.test", "limit": "orders", "used": 3, "of": 300, "refills_at": "2026-03-01T04:05:06Z"}
    with answering(SOCKET, {"GET /quota": Answer(200, [row])}):
        assert cli.main(["admin", "certs", "quota"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "CA\tLIMIT\tUSED\tOF\tREFILLS",
        "https://ca.test\torders\t3\t300\t2026-03-01 04:05",
    ]


@pytest.mark.parametrize("command", ["show", "why"])
def test_a_name_that_nobody_has_is_told_with_the_next_best(command: str, capsys: Output) -> None:
    assert cli.main(["admin", "certs", command, "shop.exmaple.com"]) == 1
    assert "Did you mean shop.example.com?" in capsys.readouterr().err


def test_looking_makes_no_store(folder: Path) -> None:
    assert cli.main(["admin", "certs", "list"]) == 0
    assert not (folder / "store").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["certs", "obtain", "api.example.com"],
        ["certs", "renew", "api.example.com", "--force"],
        ["certs", "revoke", "api.example.com", "--yes"],
        ["accounts", "rollover"],
    ],
)
def test_what_needs_a_proxy_ends_with_3(command: list[str], folder: Path, capsys: Output) -> None:
    assert cli.main(["admin", *command]) == 3
    told = capsys.readouterr().err
    assert told.startswith(f"tlsproxy: no proxy is running: there is no admin socket at {folder / 'admin.sock'}. ")
    assert cli.main(["admin", *command, "--socket", "/nonexistent/other.sock"]) == 3
    assert "/nonexistent/other.sock" in capsys.readouterr().err


def test_a_socket_that_is_off_is_told(capsys: Output) -> None:
    Path("tlsproxy.toml").write_text(Path("tlsproxy.toml").read_text().replace('"admin.sock"', '"off"'))
    assert cli.main(["admin", "status"]) == 3
    assert 'admin.socket = "off"' in capsys.readouterr().err
    assert cli.main(["admin", "certs", "list"]) == 0


def test_who_may_not_ask_is_not_given_the_stores_word(
    held: CertificateStore, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def refuse(path: Path, timeout: float) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(adminclient, "connect_admin_socket", refuse)
    assert cli.main(["admin", "certs", "list"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "sudo" in said.err


# --- while it runs


def test_a_user_of_the_machine_hears_of_the_services_proxy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    """Whoever has no socket of their own is not told that nothing runs, and to start something."""
    service = folder / "service.sock"
    service.touch()  # there, and nobody can connect
    monkeypatch.setattr(common, "SERVICE_SOCKET", service)
    Path("tlsproxy.toml").write_text(Path("tlsproxy.toml").read_text().replace('[admin]\nsocket = "admin.sock"\n', ""))
    monkeypatch.setenv("HOME", str(folder))
    assert cli.main(["admin", "status"]) == 3
    assert str(service) in capsys.readouterr().err
    service.unlink()
    assert cli.main(["admin", "status"]) == 3
    assert str(service) not in capsys.readouterr().err


def test_a_running_proxy_is_believed(folder: Path, capsys: Output) -> None:
    with answering(SOCKET, {"GET /certs": Answer(200, []), "GET /certs/a.test": Answer(200, {"name": "acme/a.test"})}):
        assert cli.main(["admin", "certs", "list", "--json"]) == 0
        assert capsys.readouterr() == ("[]\n", "")
        assert cli.main(["admin", "certs", "show", "a.test", "--socket", str(folder / SOCKET)]) == 0
        assert capsys.readouterr() == ("name  acme/a.test\n", "")


def test_one_without_its_certifier_is_stood_in_for(held: CertificateStore, capsys: Output) -> None:
    with answering(SOCKET, {"GET /certs": Answer(503, {"error": "the certifier is being started again."})}):
        assert cli.main(["admin", "certs", "list"]) == 0
    said = capsys.readouterr()
    assert said.err == "the certifier is being started again. Until then, this is what the store says.\n"
    assert "acme/api.example.com\tvalid" in said.out


def test_its_refusal_is_a_sentence(capsys: Output) -> None:
    with answering(SOCKET, {"GET /certs/a.test": Answer(404, {"error": "a.test: no site has this host."})}):
        assert cli.main(["admin", "certs", "show", "a.test"]) == 1
    assert capsys.readouterr() == ("", "tlsproxy: a.test: no site has this host.\n")


@pytest.mark.parametrize("verb", ["obtain", "renew"])
@pytest.mark.parametrize("force", [True, False])
def test_work_is_shown_step_by_step(verb: str, force: bool, capsys: Output) -> None:
    lines: list[dict[str, Any]] = [
        STEP,
        {"step": "finalize", "host": "", "text": "waiting"},
        {"status": 200, "result": DONE},
    ]
    with answering(SOCKET, {f"POST /certs/api.example.com/{verb}": lines}) as asked:
        assert cli.main(["admin", "certs", verb, "api.example.com", *(["--force"] if force else [])]) == 0
    assert [dict(request.options) for request in asked] == [{"force": "true"} if force else {}]
    assert capsys.readouterr().out.splitlines() == [
        "validation: api.example.com: the CA is looking",
        "finalize: waiting",
        "acme/api.example.com: valid until 2026-05-01, issuer R11, serial 0f",
    ]


def test_work_that_fails_ends_with_1_and_its_reason(capsys: Output) -> None:
    with answering(SOCKET, {"POST /certs/a.test/renew": [STEP, {"status": 502, "error": "a.test: the CA said no."}]}):
        assert cli.main(["admin", "certs", "renew", "a.test"]) == 1
    assert capsys.readouterr() == (
        "validation: api.example.com: the CA is looking\n",
        "tlsproxy: a.test: the CA said no.\n",
    )


def test_a_revocation_names_its_reason_and_the_successor(capsys: Output) -> None:
    lines = [{"status": 200, "result": {**DONE, "revoked": True}}]
    with answering(SOCKET, {"POST /certs/a.test/revoke": lines}) as asked:
        assert cli.main(["admin", "certs", "revoke", "a.test", "--reason", "keyCompromise", "--yes"]) == 0
    assert dict(asked[0].options) == {"reason": "keyCompromise"}
    assert "revoked; its successor is valid until 2026-05-01" in capsys.readouterr().out


def test_a_revocation_is_not_made_by_accident(capsys: Output) -> None:
    with answering(SOCKET, {}) as asked:
        assert cli.main(["admin", "certs", "revoke", "a.test"]) == 2
        assert cli.main(["admin", "certs", "revoke", "a.test", "--yes", "--reason", "bored"]) == 2
    assert asked == []
    assert "superseded" in capsys.readouterr().err


def test_to_stop_watching_stops_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[adminclient.Progress]:
        yield adminclient.Progress("order", "", "placed")
        raise KeyboardInterrupt

    monkeypatch.setattr(adminclient.AdminClient, "work", interrupted)
    assert cli.main(["admin", "certs", "renew", "a.test"]) == 130
    told = capsys.readouterr().err
    assert told == ("no longer watching; the proxy goes on with it. How it went: tlsproxy admin certs why a.test\n")


@pytest.mark.system
def test_ctrl_c_ends_the_watching_in_a_process_of_its_own(folder: Path) -> None:
    command = [sys.executable, "-m", "tlsproxy", "admin", "certs", "renew", "a.test", "--socket", str(folder / SOCKET)]
    with (
        answering(SOCKET, {"POST /certs/a.test/renew": [STEP, None]}),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching,
    ):
        assert watching.stdout is not None
        assert "the CA is looking" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, told = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert told.startswith("no longer watching; the proxy goes on with it.")
    assert "Traceback" not in told


def test_status_in_words_and_as_json(capsys: Output) -> None:
    status = {
        "version": "1.0",
        "pid": 7,
        "generation": 1,
        "started": (datetime.now(UTC) - timedelta(hours=3)).isoformat(),
        "workers": [
            {"pid": 8, "connections": 5, "requests": 60},
            {"pid": 9, "connections": None, "requests": None},
        ],
        "ready": False,
        "not_ready": ["none of 2 certificates is there yet"],
        "draining": [{"generation": 1, "workers": [3, 4], "seconds_left": 500.0}],
        "certifier": {"pid": None, "state": "restarting"},
        "sites": 2,
        "paused": ["a.test"],
        "certificates": None,
        "backends": {"up": 2, "down": 1},
        "listeners": ["https :443", "http :80"],
    }
    with answering(SOCKET, {"GET /status": Answer(200, status)}):
        assert cli.main(["admin", "status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == status
        assert cli.main(["admin", "status"]) == 0
    said = capsys.readouterr().out
    assert "started       2" in said
    assert "(3 hours ago)\n" in said
    assert "listeners     https :443\n              http :80\n" in said
    assert "workers       pid 8, 5 connections, 60 requests\n              pid 9, does not answer\n" in said
    assert "ready         no: none of 2 certificates is there yet\n" in said
    assert "paused        a.test\n" in said
    assert "backends      1 down, 2 up\n" in said
    assert "draining      generation 1, pid 3, 4, for 8 minutes at most\n" in said
    assert said.endswith("certifier     pid -, restarting\ncertificates  not known\n")


def test_accounts_that_rolled_over_are_named(capsys: Output) -> None:
    done = [{"directory": "https://ca.test/dir", "account": "https://ca.test/acct/1"}]
    with answering(SOCKET, {"POST /accounts/rollover": [{"status": 200, "result": done}]}):
        assert cli.main(["admin", "accounts", "rollover"]) == 0
    assert capsys.readouterr().out == "https://ca.test/acct/1: has a new key\n"


# --- a row


@pytest.mark.parametrize(
    ("days", "left", "style"),
    [(89, "89 d", "green"), (31, "31 d", "green"), (29, "29 d", "yellow"), (14, "14 d", "red"), (-1, "expired", "red")],
)
def test_colours_follow_the_share_of_life_that_is_left(days: float, left: str, style: str) -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    end = now + timedelta(days=days)
    row: dict[str, Any] = dict.fromkeys(KEYS.split()) | {
        "name": "acme/a.test",
        "not_before": (end - timedelta(days=90)).isoformat(),
        "not_after": end.isoformat(),
        "status": "valid",
        "source": "acme",
    }
    assert _cells(row, now)[2] == (left, style)


def test_a_short_life_is_told_in_hours() -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    assert certs._left(now - timedelta(days=3), now + timedelta(hours=30), now) == ("30 h", "yellow")


@pytest.mark.parametrize(
    ("issuer", "short"),
    [("CN=R11,O=Let's Encrypt,C=US", "R11"), ("O=Some\\, Inc,CN=X", "X"), ("O=Nameless", "O=Nameless"), ("", "")],
)
def test_an_issuer_is_called_by_its_common_name(issuer: str, short: str) -> None:
    assert certs._short_issuer(issuer) == short


def test_without_sites_store_and_proxy_there_is_nothing_to_list(tmp_path: Path, capsys: Output) -> None:
    """An empty list would read as: all is well."""
    path = tmp_path / "empty.toml"
    path.write_text(f'store = {{ url = "file://{tmp_path}/nowhere" }}\nadmin = {{ socket = "{tmp_path}/no.sock" }}\n')
    assert cli.main(["admin", "certs", "list", "--json", "--config", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "there is no store, and no site is configured" in said.err
