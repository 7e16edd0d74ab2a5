"""The exec hook, with real scripts: what it is given, what its end means, and what never gets to it or out of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.running import until
from tlsproxy.certs.dns.base import DnsProviderError
from tlsproxy.certs.dns.exec import ExecProvider

NAME, VALUE = "_acme-challenge.a.test", "x" * 43

Script = Callable[[str], list[str]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Return the command of a script with this body; `$HERE` in it is the test's folder."""

    def write(body: str) -> list[str]:
        path = tmp_path / "hook"
        path.write_text(f"#!/bin/sh\nHERE={tmp_path}\n{body}\n")
        path.chmod(0o755)
        return [str(path)]

    return write


def test_it_gets_verb_name_and_value_after_its_own_arguments(script: Script, tmp_path: Path) -> None:
    command = script('printf "%s|" "$#" "$@" >>"$HERE/seen"; echo >>"$HERE/seen"')
    provider = ExecProvider([*command, "--zone", "a b;$(touch x)*"])
    provider.create(NAME, VALUE)
    provider.delete(NAME, VALUE)
    assert (tmp_path / "seen").read_text().splitlines() == [
        f"5|--zone|a b;$(touch x)*|present|{NAME}|{VALUE}|",
        f"5|--zone|a b;$(touch x)*|cleanup|{NAME}|{VALUE}|",
    ]


def test_failure_is_told_by_the_end_of_its_stderr(script: Script) -> None:
    provider = ExecProvider(script("seq 1 5000 >&2; echo not this; echo the API says no >&2; exit 3"))
    with pytest.raises(DnsProviderError) as caught:
        provider.create(NAME, VALUE)
    text = str(caught.value)
    assert text.startswith(f"hook present {NAME} failed with exit code 3: ")
    assert text.endswith("5000 the API says no. Run it by hand to see why.")
    assert len(text) < 700
    assert "not this" not in text


def test_failure_without_a_word(script: Script) -> None:
    with pytest.raises(DnsProviderError, match=f"cleanup {NAME} was ended by signal 9: it wrote nothing to stderr"):
        ExecProvider(script("kill -9 $$")).delete(NAME, VALUE)


def test_secrets_of_its_environment_don_t_come_out(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER_API_TOKEN", "t0ken-of-the-provider")
    monkeypatch.setenv("PROVIDER_REGION", "eu-central")
    provider = ExecProvider(script('echo "curl -H $PROVIDER_API_TOKEN in $PROVIDER_REGION failed" >&2; exit 1'))
    with pytest.raises(DnsProviderError, match=r"curl -H \*\*\* in eu-central failed"):
        provider.create(NAME, VALUE)


def test_the_proxy_s_own_variables_stay_away_from_it(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLSPROXY_STORE__ENCRYPTION_KEYS", "master")
    monkeypatch.setenv("PROVIDER_API_TOKEN", "token")
    ExecProvider(script('env >"$HERE/env"')).create(NAME, VALUE)
    seen = (tmp_path / "env").read_text()
    assert "PROVIDER_API_TOKEN=token" in seen
    assert "TLSPROXY" not in seen


def test_a_script_that_never_ends_is_ended_with_its_children(script: Script, tmp_path: Path) -> None:
    provider = ExecProvider(script('echo waiting >&2; sleep 1000 & echo $! >"$HERE/child"; wait'), timeout=0.3)
    with pytest.raises(DnsProviderError, match=r"was stopped after 0\.3 s: waiting"):
        provider.create(NAME, VALUE)
    child = int((tmp_path / "child").read_text())
    until(lambda: not is_alive(child), "the child is gone")


def test_a_process_left_in_the_background_holds_nobody_up(script: Script, tmp_path: Path) -> None:
    ExecProvider(script('sleep 1000 & echo $! >"$HERE/child"'), timeout=5).create(NAME, VALUE)
    child = int((tmp_path / "child").read_text())
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ([], "acme.dns.exec.command is empty"),
        (["/nonexistent/hook"], "No such file or directory"),
        (["/etc/passwd"], "Permission denied"),
        (["hook\0"], "null byte"),
    ],
)
def test_a_command_that_is_none(command: list[str], reason: str) -> None:
    with pytest.raises(DnsProviderError, match=reason):
        ExecProvider(command).create(NAME, VALUE)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
