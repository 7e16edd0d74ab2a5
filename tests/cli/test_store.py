"""`tlsproxy admin store`: a backup and back, new keys: the words around it. The work is tested in tests/store."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.cli.answering import answering
from tests.store.pki import issue
from tlsproxy import cli
from tlsproxy.runtime.adminhttp import Answer
from tlsproxy.store.base import CertificateStore, open_store

Output = pytest.CaptureFixture[str]
OLD, NEW = (bytes(range(start, start + 32)).hex() for start in (1, 101))


def configure_keys(*keys: str) -> None:
    text = Path("tlsproxy.toml").read_text()
    keyless = "\n".join(line for line in text.splitlines() if not line.startswith("encryption_keys"))
    listed = ", ".join(f'"{key}"' for key in keys)
    Path("tlsproxy.toml").write_text(keyless.replace("[admin]", f"encryption_keys = [{listed}]\n[admin]", 1))


@pytest.fixture
def filled(store: CertificateStore) -> CertificateStore:
    store.put("acme/api.example.com", issue("api.example.com", "www.example.com").bundle())
    store.put_record("state", "acme/api.example.com", {"attempts": 0})
    return store


def test_out_and_in_again(filled: CertificateStore, folder: Path, capsys: Output) -> None:
    bundle = filled.get("acme/api.example.com")
    assert cli.main(["admin", "store", "export", "backup"]) == 0
    said = capsys.readouterr()
    assert said.out == "backup: 2 records\n"
    assert said.err.startswith("warning: the file is not encrypted and holds private keys")
    assert stat.S_IMODE(Path("backup").stat().st_mode) == 0o600
    (folder / "store").rename(folder / "lost")
    assert cli.main(["admin", "store", "import", "backup"]) == 0
    assert capsys.readouterr() == ("2 records written, 0 there already\n", "")
    assert open_store(f"file://{folder}/store").get("acme/api.example.com") == bundle
    assert cli.main(["admin", "store", "import", "backup"]) == 0
    assert capsys.readouterr().out == "0 records written, 2 there already\n"


def test_a_backup_is_not_overwritten_unasked(filled: CertificateStore, capsys: Output) -> None:
    Path("backup").write_text("the last one")
    assert cli.main(["admin", "store", "export", "backup"]) == 2
    assert Path("backup").read_text() == "the last one"
    assert cli.main(["admin", "store", "export", "backup", "--force"]) == 0
    assert Path("backup").read_text() != "the last one"


EXPORT, REKEY = ["admin", "store", "export", "backup", "--force"], ["admin", "store", "rekey"]


@pytest.mark.parametrize("command", [EXPORT, REKEY], ids=["export", "rekey"])
def test_a_store_that_is_missing_is_told_and_not_made(folder: Path, command: list[str], capsys: Output) -> None:
    configure_keys(NEW)
    Path("backup").write_text("the last one")
    assert cli.main(command) == 1
    assert f"store.url file://{folder}/store: there is no certificate store. If" in capsys.readouterr().err
    assert not (folder / "store").exists()
    assert Path("backup").read_text() == "the last one"


@pytest.mark.parametrize("command", [EXPORT, REKEY], ids=["export", "rekey"])
def test_a_store_that_is_empty_is_told(
    store: CertificateStore, folder: Path, command: list[str], capsys: Output
) -> None:
    configure_keys(NEW)
    Path("backup").write_text("the last one")
    assert store.acquire("a")  # no record
    assert cli.main(command) == 1
    assert f"store.url file://{folder}/store: there is nothing in this store. If" in capsys.readouterr().err
    assert Path("backup").read_text() == "the last one"


def sealed(folder: Path) -> bool:
    return all(b'"name"' not in file.read_bytes() for file in (folder / "store").glob("*/*.json"))


@pytest.mark.parametrize("answer", [Answer(200, {}), Answer(503, {"error": "not yet"})])
def test_no_new_key_beside_a_proxy_that_may_not_know_it(
    filled: CertificateStore, folder: Path, answer: Answer, capsys: Output
) -> None:
    configure_keys(NEW)
    with answering(folder / "admin.sock", {"GET /status": answer}):
        assert cli.main(REKEY) == 1
        said = capsys.readouterr().err
        assert said.startswith("tlsproxy: the proxy is running")
        assert "Put the new key before the old one in store.encryption_keys and restart the proxy" in said
        assert not sealed(folder)
        assert cli.main([*REKEY, "--force"]) == 0
    assert sealed(folder)


def test_a_proxy_is_looked_for_at_the_socket_that_is_given(filled: CertificateStore, folder: Path) -> None:
    configure_keys(NEW)
    with answering(folder / "other.sock", {"GET /status": Answer(200, {})}):
        assert cli.main([*REKEY, "--socket", "other.sock"]) == 1
    assert not sealed(folder)


def test_a_proxy_that_cannot_be_asked_is_told_of(filled: CertificateStore, folder: Path, capsys: Output) -> None:
    configure_keys(NEW)
    text = Path("tlsproxy.toml").read_text()
    Path("tlsproxy.toml").write_text(text.replace('socket = "admin.sock"', 'socket = "off"'))
    assert cli.main(REKEY) == 0
    assert "if one runs, it must know all keys" in capsys.readouterr().err
    assert sealed(folder)


def test_newer_records_are_named_and_left_alone(filled: CertificateStore, capsys: Output) -> None:
    assert cli.main(["admin", "store", "export", "backup"]) == 0
    archive = Path("backup").read_text()
    written = archive.split('"written": "')[1].split('"')[0]
    Path("backup").write_text(archive.replace(written, "2020-01-01T00:00:00+00:00"))
    capsys.readouterr()
    assert cli.main(["admin", "store", "import", "backup"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0 records written, 0 there already",
        "2 records left alone, the store has newer ones (--force replaces them):",
        "  certificates/acme/api.example.com",
        "  state/acme/api.example.com",
    ]
    assert cli.main(["admin", "store", "import", "backup", "--force"]) == 0
    assert capsys.readouterr().out == "2 records written, 0 there already\n"


def test_what_is_no_backup_is_told(capsys: Output) -> None:
    assert cli.main(["admin", "store", "import", "tlsproxy.toml"]) == 1
    assert "this is no complete archive of a store" in capsys.readouterr().err


def test_a_record_that_is_damaged_is_told_and_the_rest_is_saved(
    filled: CertificateStore, folder: Path, capsys: Output
) -> None:
    next((folder / "store" / "state").glob("*.json")).write_text("{")
    assert cli.main(["admin", "store", "export", "backup"]) == 1
    said = capsys.readouterr()
    assert said.out == "backup: 1 record\n"
    assert "this record is damaged" in said.err


def test_rekeying_and_back(filled: CertificateStore, folder: Path, capsys: Output) -> None:
    records = [folder / "store" / place for place in ("certificates", "state")]

    def is_plain() -> bool:
        return all(b'"name"' in file.read_bytes() for place in records for file in place.glob("*.json"))

    assert cli.main(["admin", "store", "rekey"]) == 2
    assert "store.encryption_keys" in capsys.readouterr().err
    configure_keys(OLD)
    assert cli.main(["admin", "store", "rekey"]) == 0
    assert capsys.readouterr().out.startswith("2 records encrypted with the first key, ")
    assert not is_plain()
    configure_keys(NEW, OLD)
    assert cli.main(["admin", "store", "rekey"]) == 0
    configure_keys(NEW)
    assert cli.main(["admin", "certs", "show", "api.example.com"]) == 0
    capsys.readouterr()
    assert cli.main(["admin", "store", "export", "backup"]) == 0
    assert capsys.readouterr().err == ""
    assert b"api.example.com" not in Path("backup").read_bytes()
    assert cli.main(["admin", "store", "rekey", "--plain"]) == 0
    assert capsys.readouterr().out.startswith("2 records decrypted, ")
    assert is_plain()


def test_a_lost_key_is_told_record_by_record(filled: CertificateStore, capsys: Output) -> None:
    configure_keys(OLD)
    assert cli.main(["admin", "store", "rekey"]) == 0
    capsys.readouterr()
    configure_keys(NEW)
    assert cli.main(["admin", "store", "rekey"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("0 records encrypted")
    assert len(said.err.splitlines()) >= 2
    assert cli.main(["admin", "certs", "list"]) == 0
    assert "acme/api.example.com\tfailed" in capsys.readouterr().out


def test_the_root_of_a_sealed_store_is_found(folder: Path, capsys: Output) -> None:
    configure_keys(OLD)
    assert cli.main(["trust", "--print"]) == 0
    root = capsys.readouterr().out
    assert cli.main(["trust", "--print"]) == 0
    assert capsys.readouterr().out == root
