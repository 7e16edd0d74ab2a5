"""What would keep a CA from granting a certificate, or a hook from running, is found before the start."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests.store.pki import issue, write_pair
from tlsproxy.errors import ConfigError
from tlsproxy.runtime import preflight
from tlsproxy.settings import load
from tlsproxy.store import mounts

OVERLAY = "1 0 0:1 / / rw - overlay overlay rw\n"
DISK = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
PRIVATE_CA = 'acme.directory = "https://localhost:14000/dir"\n'


class Checked:
    """What preflight has to say about a configuration in `folder`."""

    def __init__(self, folder: Path, text: str, environ: dict[str, str]) -> None:
        sites = '[[sites]]\nhosts = ["a.example.com"]\nbackends = ["127.0.0.1:8000"]\n'
        (folder / "t.toml").write_text(f"{text}\n{sites if '[[sites]]' not in text else ''}")
        self.problems: list[str] = []
        self.warnings: list[str] = []
        try:
            self.warnings = preflight.inspect(load(folder / "t.toml", {}, environ))
        except ConfigError as error:
            self.problems = str(error).replace(f"{folder}/", "").splitlines()


def check(folder: Path, text: str, **environ: str) -> Checked:
    return Checked(folder, f'store.url = "file:store"\n{text}', environ)


@pytest.fixture(autouse=True)
def _on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lie_on(DISK, tmp_path, monkeypatch)


def lie_on(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(table)
    monkeypatch.setattr(mounts, "_MOUNTINFO", mountinfo)


def test_an_ordinary_start(tmp_path: Path) -> None:
    checked = check(tmp_path, "")
    assert (checked.problems, checked.warnings) == ([], [])


# --- a store that does not last


def test_a_store_that_ends_with_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lie_on(OVERLAY, tmp_path, monkeypatch)
    (problem,) = check(tmp_path, "").problems
    assert problem.startswith("t.toml:1: store.url: store: the store lies on the overlay of a container and is gone")
    assert "set store.allow_ephemeral = true" in problem
    assert check(tmp_path, "store.allow_ephemeral = true").problems == []
    assert check(tmp_path, 'acme.directory = "letsencrypt-staging"').problems == []
    assert check(tmp_path, PRIVATE_CA).problems == []
    assert check(tmp_path, '[[sites]]\nhosts = ["a.test"]\nbackends = ["b:1"]').problems == []


def test_a_fallback_counts_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lie_on(OVERLAY, tmp_path, monkeypatch)
    fallback = 'acme.fallback = [{ directory = "letsencrypt" }]'
    assert len(check(tmp_path, PRIVATE_CA + fallback).problems) == 1


def test_on_kubernetes_it_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lie_on(OVERLAY, tmp_path, monkeypatch)
    checked = check(tmp_path, "", KUBERNETES_SERVICE_HOST="10.0.0.1")
    assert checked.problems == []
    assert checked.warnings[0].startswith("store.url: ")


def test_nothing_is_kept_in_memory(tmp_path: Path) -> None:
    (problem,) = Checked(tmp_path, 'store.url = "memory:"', {}).problems
    assert problem == (
        't.toml:1: store.url: "memory:" can\'t keep the certificates that are made here; write file:///FOLDER'
    )


# --- files


def test_the_bundle_of_a_private_ca(tmp_path: Path) -> None:
    (problem,) = check(tmp_path, f'{PRIVATE_CA}acme.ca_bundle = "gone.pem"').problems
    assert problem == "t.toml:3: acme.ca_bundle: gone.pem can't be read: No such file or directory"
    (problem,) = check(tmp_path, f'{PRIVATE_CA}acme.ca_bundle = "t.toml"').problems
    assert problem.endswith("t.toml holds no certificates in PEM form")
    fallback = 'acme.fallback = [{ directory = "https://b.localhost/", ca_bundle = "gone.pem" }]'
    (problem,) = check(tmp_path, fallback).problems
    assert problem.startswith("t.toml:2: acme.fallback.0.ca_bundle: gone.pem can't be read")
    write_pair(tmp_path, issue("ca.test"))
    assert check(tmp_path, f'{PRIVATE_CA}acme.ca_bundle = "chain.pem"').problems == []


def test_the_accounts_of_acme_dns(tmp_path: Path) -> None:
    def problems(credentials: str) -> list[str]:
        table = f'{{ server = "https://a.example.com", credentials = "{credentials}" }}'
        text = f'acme.challenges = ["dns-01"]\nacme.dns.provider = "acme-dns"\nacme.dns.acme_dns = {table}\n'
        return check(tmp_path, text).problems

    assert problems("accounts.json") == []
    (problem,) = problems("gone/accounts.json")
    assert problem.startswith("t.toml:4: acme.dns.acme_dns.credentials: gone/accounts.json can't be made; choose a")
    (tmp_path / "accounts.json").write_text("{")
    assert "is not JSON; correct it" in problems("accounts.json")[0]
    (tmp_path / "accounts.json").write_text("[]")
    assert "holds no accounts" in problems("accounts.json")[0]
    (tmp_path / "accounts.json").write_text(json.dumps({"a.example.com": {}}))
    assert problems("accounts.json") == []


# --- programs


def test_a_hook_that_can_not_run(tmp_path: Path) -> None:
    def problems(key: str, program: str) -> list[str]:
        text = f'acme.challenges = ["dns-01"]\nacme.dns.provider = "exec"\nacme.dns.exec.command = ["{program}", "-v"]'
        return check(tmp_path, text if key == "dns" else f'events.command = ["{program}"]').problems

    for key in ("dns", "events"):
        (problem,) = problems(key, "./gone")
        assert problem.endswith("command: there is no program gone; correct the path")
        (problem,) = problems(key, "t.toml/x")
        assert "there is no program t.toml/x" in problem
        (problem,) = problems(key, "./t.toml")
        assert "t.toml can't be run by this user; make it a program (chmod 755 t.toml)" in problem
        (problem,) = problems(key, "no-such-program-4711")
        assert "there is no program no-such-program-4711 in PATH" in problem
        assert problems(key, sys.executable) == []
        assert problems(key, "sh") == []
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    assert problems("events", "./hook") == []


def test_lexicon_is_looked_for_and_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def problems(provider: str) -> list[str]:
        table = f'provider = "lexicon"\nlexicon.provider = "{provider}"'
        return check(tmp_path, f'[acme]\nchallenges = ["dns-01"]\n[acme.dns]\n{table}').problems

    assert problems("cloudflare") == []
    (problem,) = problems("cloudfare")
    assert problem == (
        't.toml:6: acme.dns.lexicon.provider: dns-lexicon has no provider "cloudfare", did you mean "cloudflare"?'
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = problems("cloudflare")
    assert problem.endswith('dns-lexicon is not installed; run: pip install "tlsproxy[dns]"')


def test_what_nobody_uses_is_not_looked_at(tmp_path: Path) -> None:
    local = '[[sites]]\nhosts = ["a.test"]\nbackends = ["b:1"]'
    assert check(tmp_path, f'acme.ca_bundle = "gone.pem"\nacme.email = "a@example.com"\n{local}').problems == []


# --- doubts


def test_what_is_probably_not_meant(tmp_path: Path) -> None:
    def warnings(text: str) -> list[str]:
        checked = check(tmp_path, text)
        assert checked.problems == []
        return checked.warnings

    (doubt,) = warnings('acme.directory = "letsencrypt-staging"')
    assert doubt.endswith('once they arrive, write directory = "letsencrypt"')
    (doubt,) = warnings('acme.email = "you@mail.example.com"')
    assert doubt.startswith("acme.email: you@mail.example.com is an example")
    (doubt,) = warnings('listen.https = [":8443"]\nlisten.http = ["127.0.0.1:8080"]')
    assert doubt.startswith("listen: the CA always comes to port 443 (tls-alpn-01) and port 80 (http-01)")
    assert warnings('listen.https = [":8443"]') == []
    (doubt,) = warnings('acme.challenges = ["tls-alpn-01"]\nlisten.https = [":8443"]')
    assert "port 443 (tls-alpn-01) of the public address" in doubt
