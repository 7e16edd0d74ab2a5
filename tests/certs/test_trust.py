"""The root of the internal CA in the trust stores: the steps on every kind of system, and for real on this one."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tlsproxy.certs.internal import ensure, ensure_root, make_root
from tlsproxy.certs.trust import Machine, Outcome, Root, install, root_certificate, uninstall
from tlsproxy.errors import StoreError
from tlsproxy.store.memory import MemoryStore
from tlsproxy.store.sources import ROOT_NAME

NOW = datetime.now(UTC)
ROOT = make_root(NOW, "box").chain_pem
DEBIAN_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


class Commands:
    """Stands for the system: the programs that exist there, and a record of what was run."""

    def __init__(self, tmp_path: Path, *programs: str, failure: str = "") -> None:
        self.directory = tmp_path / "bin"
        self.directory.mkdir()
        for program in programs:
            (self.directory / program).touch(0o755)
        self.ran: list[list[str]] = []
        self._failure = failure

    def __call__(self, command: Sequence[str]) -> str:
        self.ran.append([Path(command[0]).name, *command[1:]])
        return self._failure

    def machine(self, top: Path, *, root: bool = True, platform: str = "linux") -> Machine:
        return Machine(
            home=top / "home", top=top, platform=platform, is_root=root, run=self, search_path=str(self.directory)
        )


SYSTEMS = [
    ("Debian, Ubuntu, Alpine", "usr/local/share/ca-certificates", "update-ca-certificates"),
    ("Fedora, RHEL", "etc/pki/ca-trust/source/anchors", "update-ca-trust"),
    ("Arch", "etc/ca-certificates/trust-source/anchors", "update-ca-trust"),
    ("SUSE", "etc/pki/trust/anchors", "update-ca-certificates"),
]


@pytest.mark.parametrize(("name", "directory", "program"), SYSTEMS)
def test_anchors_come_and_go(tmp_path: Path, name: str, directory: str, program: str) -> None:
    commands = Commands(tmp_path, program)
    (tmp_path / directory).mkdir(parents=True)
    (added,) = install(ROOT, commands.machine(tmp_path))
    (file,) = (tmp_path / directory).iterdir()
    assert (added.store, added.ok, file.read_bytes(), file.suffix) == (name, True, ROOT, ".crt")
    assert install(ROOT, commands.machine(tmp_path)) == [added]
    (removed,) = uninstall(ROOT, commands.machine(tmp_path))
    assert (removed.ok, list((tmp_path / directory).iterdir())) == (True, [])
    removal = [program, "--fresh"] if name.startswith("Debian") else [program]
    assert commands.ran == [[program], [program], removal]
    assert "nothing to remove" in uninstall(ROOT, commands.machine(tmp_path))[0].message


def test_another_root_is_not_touched(tmp_path: Path) -> None:
    commands = Commands(tmp_path, "update-ca-certificates")
    (tmp_path / SYSTEMS[0][1]).mkdir(parents=True)
    install(ROOT, commands.machine(tmp_path))
    other = make_root(NOW, "box").chain_pem
    assert "nothing to remove" in uninstall(other, commands.machine(tmp_path))[0].message
    assert len(list((tmp_path / SYSTEMS[0][1]).iterdir())) == 1


def test_without_root_the_exact_command_is_given(tmp_path: Path) -> None:
    commands = Commands(tmp_path, "update-ca-certificates")
    directory = tmp_path / SYSTEMS[0][1]
    directory.mkdir(parents=True)
    (outcome,) = install(ROOT, commands.machine(tmp_path, root=False))
    assert not outcome.ok
    assert f"tlsproxy trust --print | sudo tee {directory}/tlsproxy-" in outcome.message
    assert outcome.message.endswith("&& sudo update-ca-certificates")
    assert commands.ran == []
    install(ROOT, commands.machine(tmp_path))
    (outcome,) = uninstall(ROOT, commands.machine(tmp_path, root=False))
    assert f"sudo rm {directory}/tlsproxy-" in outcome.message


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    commands = Commands(tmp_path, "update-ca-certificates", failure="it broke")
    (tmp_path / SYSTEMS[0][1]).mkdir(parents=True)
    assert install(ROOT, commands.machine(tmp_path)) == [Outcome(SYSTEMS[0][0], ok=False, message="it broke")]


@pytest.mark.parametrize("act", [install, uninstall])
def test_macos(tmp_path: Path, act: Callable[..., list[Outcome]]) -> None:
    commands = Commands(tmp_path)
    assert act(ROOT, commands.machine(tmp_path, platform="darwin"))[0].ok
    words = ["add-trusted-cert", "-d"] if act is install else ["delete-certificate", "-t"]
    assert commands.ran[0][:3] == ["security", *words]
    (outcome,) = act(ROOT, commands.machine(tmp_path, platform="darwin", root=False))
    assert f"sudo security {words[0]}" in outcome.message


def test_browser_databases_without_certutil(tmp_path: Path) -> None:
    database = tmp_path / "home/.pki/nssdb"
    database.mkdir(parents=True)
    (database / "cert9.db").touch()
    (outcome,) = install(ROOT, Commands(tmp_path).machine(tmp_path))
    assert not outcome.ok
    assert "Install libnss3-tools" in outcome.message


def test_a_machine_without_any_known_store(tmp_path: Path) -> None:
    (outcome,) = install(ROOT, Commands(tmp_path).machine(tmp_path))
    assert not outcome.ok
    assert "tlsproxy trust --print" in outcome.message


def test_the_root_is_made_on_demand_and_its_key_stays() -> None:
    store = MemoryStore()
    with pytest.raises(StoreError, match="nothing to remove"):
        root_certificate(store, make=False)
    root = root_certificate(store)
    assert root.is_new
    assert b"PRIVATE" not in root.pem
    assert root_certificate(store) == root_certificate(store, make=False) == Root(root.pem, is_new=False)
    assert store.list() == (ROOT_NAME,)


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0 or not DEBIAN_BUNDLE.exists(), reason="needs root on Debian")
def test_debian_trusts_the_root_until_it_is_removed(tmp_path: Path) -> None:
    store = MemoryStore()
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(ensure(store, ["localhost"], NOW).chain_pem)
    pem = ensure_root(store, NOW).chain_pem
    machine = Machine(home=tmp_path)
    # Links from earlier failures, by anybody, go with the first update.
    subprocess.run(["update-ca-certificates", "--fresh"], check=True, capture_output=True)
    before, names = DEBIAN_BUNDLE.read_bytes(), _trusted_names()
    try:
        (outcome,) = install(pem, machine)
        assert outcome.ok, outcome.message
        assert _accepted(leaf, "-CAfile", str(DEBIAN_BUNDLE))
        assert _accepted(leaf, "-CApath", "/etc/ssl/certs")
        assert _trusted_names() != names
    finally:
        (outcome,) = uninstall(pem, machine)
    assert outcome.ok, outcome.message
    assert not _accepted(leaf, "-CAfile", str(DEBIAN_BUNDLE))
    assert not _accepted(leaf, "-CApath", "/etc/ssl/certs")
    assert (DEBIAN_BUNDLE.read_bytes(), _trusted_names()) == (before, names)


@pytest.mark.system
@pytest.mark.skipif(shutil.which("certutil") is None, reason="certutil (libnss3-tools) is not installed")
def test_browser_databases_trust_the_root_until_it_is_removed(tmp_path: Path) -> None:
    databases = [tmp_path / ".pki/nssdb", tmp_path / ".mozilla/firefox/x.default"]
    for database in databases:
        database.mkdir(parents=True)
        subprocess.run(["certutil", "-N", "-d", f"sql:{database}", "--empty-password"], check=True)
    # Only the databases: whatever else this machine has is left alone.
    machine = Machine(home=tmp_path, top=tmp_path)
    leaf_store = MemoryStore()
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(ensure(leaf_store, ["localhost"], NOW).chain_pem)
    pem = ensure_root(leaf_store, NOW).chain_pem
    for _ in range(2):
        outcomes = install(pem, machine)
        assert [outcome.ok for outcome in outcomes] == [True, True], outcomes
    assert [_browser_accepts(database, leaf) for database in databases] == [True, True]
    for message in ("removed", "nothing to remove"):
        assert [message in outcome.message for outcome in uninstall(pem, machine)] == [True, True]
    assert [_browser_accepts(database, leaf) for database in databases] == [False, False]


def _trusted_names() -> set[str]:
    """What lies in the directory of the system, and in the key store of Java where there is one."""
    names = {path.name for path in DEBIAN_BUNDLE.parent.iterdir()}
    java, keytool = DEBIAN_BUNDLE.parent / "java/cacerts", shutil.which("keytool")
    if keytool and java.exists():
        listing = [keytool, "-list", "-keystore", str(java), "-storepass", "changeit"]
        done = subprocess.run(listing, capture_output=True, text=True)
        names |= {line.split(",")[0] for line in done.stdout.splitlines()}
    return names


def _accepted(leaf: Path, *option: str) -> bool:
    # The settings of whoever runs the tests must not stand in for the store under test.
    environment = {"PATH": os.defpath + ":/usr/sbin"}
    command = ["openssl", "verify", "-purpose", "sslserver", "-verify_hostname", "localhost", *option, str(leaf)]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def _browser_accepts(database: Path, leaf: Path) -> bool:
    subprocess.run(["certutil", "-A", "-d", f"sql:{database}", "-n", "leaf", "-t", ",,", "-i", str(leaf)], check=True)
    # -u V: as an SSL server; certutil says so in words, its exit code is 0 either way in some versions.
    verify = ["certutil", "-V", "-d", f"sql:{database}", "-n", "leaf", "-u", "V", "-e"]
    done = subprocess.run(verify, capture_output=True, text=True)
    return "certificate is valid" in done.stdout
