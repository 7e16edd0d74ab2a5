"""Certificates into the store, out of it and away: what is checked, what is refused, who is told."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.cli.answering import answering
from tests.store.pki import Issued, issue, write_pair
from tlsproxy import cli
from tlsproxy.runtime.adminhttp import Answer
from tlsproxy.runtime.privileges import acting_as, find_account
from tlsproxy.store.base import CertificateStore

Output = pytest.CaptureFixture[str]
SOCKET = Path("admin.sock")
API = ("api.example.com", "www.example.com")
ROOT = issue(cn="Test CA", ca=True)
PAIR = ["--chain", "chain.pem", "--key", "key.pem"]
IMPORT = ["admin", "certs", "import", *PAIR]


def given(*hosts: str, days: tuple[float, float] = (-1, 30)) -> Issued:
    """Write a pair of files for these hosts."""
    leaf = issue(*hosts, by=ROOT, days=days)
    write_pair(Path(), leaf, ROOT)
    return leaf


# --- import


def test_an_import_lands_in_the_store(store: CertificateStore, capsys: Output) -> None:
    leaf = given(*API)
    assert cli.main(IMPORT) == 0
    bundle = store.get("acme/api.example.com")
    assert bundle is not None
    assert (bundle.serial, bundle.source) == (f"{leaf.certificate.serial_number:x}", "file")
    said = capsys.readouterr()
    assert said.out.startswith("acme/api.example.com: imported, valid until 20")
    assert said.err.endswith("admin.sock; it will be served once the proxy runs\n")


def test_a_running_proxy_is_told_the_name_alone(store: CertificateStore, capsys: Output) -> None:
    given(*API)
    told = {"POST /certs/acme/api.example.com/announce": Answer(200, {})}
    with answering(SOCKET, told) as asked:
        assert cli.main(IMPORT) == 0
    (request,) = asked
    assert (request.path, request.options) == (("certs", "acme/api.example.com", "announce"), {})
    assert capsys.readouterr().err == ""


def test_a_proxy_that_can_not_be_told_is_no_failure(store: CertificateStore, capsys: Output) -> None:
    given(*API)
    with answering(SOCKET, {}):
        assert cli.main(IMPORT) == 0
    assert "will find it by itself: nothing was prepared" in capsys.readouterr().err


def test_a_chain_out_of_order_is_mended(store: CertificateStore, capsys: Output) -> None:
    leaf = issue(*API, by=ROOT)
    write_pair(Path(), leaf)
    Path("chain.pem").write_bytes(ROOT.pem + leaf.pem)
    assert cli.main(IMPORT) == 0
    assert "warning: chain.pem: the chain is out of order" in capsys.readouterr().err
    bundle = store.get("acme/api.example.com")
    assert bundle is not None
    assert bundle.chain_pem == leaf.pem + ROOT.pem


def test_a_strange_key_is_refused(store: CertificateStore, capsys: Output) -> None:
    given(*API)
    Path("key.pem").write_bytes(issue(*API).key_pem())
    assert cli.main(IMPORT) == 1
    told = capsys.readouterr().err
    assert "this key does not belong to" in told
    assert "PRIVATE" not in told
    assert store.list() == ()


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        (["api.example.com"], "The site api.example.com also has www.example.com."),
        (["stranger.test"], "is for stranger.test, and no site is covered by that. Add the hosts"),
        (["localhost"], 'The site localhost would be, but its certificate is not configured as "acme".'),
        (["*.example.com"], "covers several sites (api.example.com, shop.example.com). Say which it is for: --site"),
    ],
)
def test_one_that_no_single_site_wants_is_explained(
    hosts: list[str], said: str, store: CertificateStore, capsys: Output
) -> None:
    given(*hosts)
    assert cli.main(IMPORT) == 1
    assert said in capsys.readouterr().err
    assert store.list() == ()


def test_several_sites_may_be_chosen(store: CertificateStore) -> None:
    given("*.example.com")
    assert cli.main([*IMPORT, "--site", "shop.example.com"]) == 0
    assert store.list() == ("acme/shop.example.com",)
    assert cli.main([*IMPORT, "--site", "www.example.com", "--site", "shop.example.com"]) == 0
    assert store.list() == ("acme/api.example.com", "acme/shop.example.com")


@pytest.mark.parametrize(
    ("site", "said"),
    [("localhost", "no site with certificate"), ("api.example.com", "does not cover api.example.com, www.example.com")],
)
def test_a_choice_has_to_fit(site: str, said: str, store: CertificateStore, capsys: Output) -> None:
    given("shop.example.com")
    assert cli.main([*IMPORT, "--site", site]) == 1
    assert said in capsys.readouterr().err


def test_an_expired_one_has_to_be_meant(store: CertificateStore, capsys: Output) -> None:
    given(*API, days=(-9, -1))
    assert cli.main(IMPORT) == 1
    assert "the certificate has expired. Have it renewed, or say --force." in capsys.readouterr().err
    assert cli.main([*IMPORT, "--force"]) == 0


def test_a_better_one_is_not_replaced_by_accident(store: CertificateStore, capsys: Output) -> None:
    store.put("acme/api.example.com", issue(*API, days=(-1, 60)).bundle())
    leaf = given(*API)
    assert cli.main(IMPORT) == 1
    assert "the certificate in the store is valid for longer" in capsys.readouterr().err
    assert cli.main([*IMPORT, "--force"]) == 0
    bundle = store.get("acme/api.example.com")
    assert bundle is not None
    assert bundle.serial == f"{leaf.certificate.serial_number:x}"


def test_an_order_that_is_under_way_does_not_keep_an_import_out(store: CertificateStore, capsys: Output) -> None:
    leaf = given(*API)
    lease = store.acquire("acme/api.example.com")
    assert lease is not None
    assert cli.main(IMPORT) == 0
    assert "is being obtained for it right now; this one stays unless renewal is due" in capsys.readouterr().err
    bundle = store.get("acme/api.example.com")
    assert bundle is not None
    assert bundle.serial == f"{leaf.certificate.serial_number:x}"
    store.renew(lease)


def test_nothing_is_removed_from_under_an_order(store: CertificateStore, capsys: Output) -> None:
    command = ["admin", "certs", "remove", "old.test", "--yes"]
    store.put("acme/old.test", issue("old.test").bundle())
    lease = store.acquire("acme/old.test")
    assert lease is not None
    assert cli.main(command) == 1
    assert "is being obtained for it right now. Try again" in capsys.readouterr().err
    store.release(lease)
    assert cli.main(command) == 0
    assert store.acquire("acme/old.test") is not None


def test_what_root_imports_belongs_to_the_stores_owner(store: CertificateStore, folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root writes into the store of somebody else")
    for path in [folder / "store", *(folder / "store").rglob("*")]:
        os.chown(path, 65534, 65534)
    given(*API)
    assert cli.main(IMPORT) == 0
    made = [path for path in (folder / "store").rglob("*") if path.is_file()]
    assert len(made) >= 1
    assert {path.stat().st_uid for path in made} == {65534}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}


# --- export


EXPORT = ["admin", "certs", "export", "www.example.com", "--out", "out/deep"]


def test_an_export_is_two_files_for_its_owner(store: CertificateStore, capsys: Output) -> None:
    bundle = issue(*API).bundle()
    store.put("acme/api.example.com", bundle)
    assert cli.main(EXPORT) == 0
    chain, key = Path("out/deep/fullchain.pem"), Path("out/deep/privkey.pem")
    assert (chain.read_bytes(), key.read_bytes()) == (bundle.chain_pem, bundle.key_pem)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (chain, key)} == {0o600}
    assert stat.S_IMODE(Path("out/deep").stat().st_mode) == 0o700
    assert sorted(path.name for path in Path("out/deep").iterdir()) == ["fullchain.pem", "privkey.pem"]
    assert capsys.readouterr().out == "out/deep/fullchain.pem\nout/deep/privkey.pem\n"


@pytest.mark.parametrize("present", ["fullchain.pem", "privkey.pem"])
def test_an_export_overwrites_nothing_unasked(present: str, store: CertificateStore, capsys: Output) -> None:
    store.put("acme/api.example.com", issue(*API).bundle())
    Path("out/deep").mkdir(parents=True)
    (Path("out/deep") / present).write_text("mine")
    assert cli.main(EXPORT) == 1
    assert f"out/deep/{present} is there already" in capsys.readouterr().err
    assert [path.read_text() for path in Path("out/deep").iterdir()] == ["mine"]
    assert cli.main([*EXPORT, "--force"]) == 0
    assert (Path("out/deep") / present).read_text().startswith("-----BEGIN")


def test_an_export_follows_no_link(store: CertificateStore) -> None:
    store.put("acme/api.example.com", issue(*API).bundle())
    Path("out/deep").mkdir(parents=True)
    Path("elsewhere").write_text("mine")
    Path("out/deep/privkey.pem").symlink_to(Path("elsewhere").absolute())
    assert cli.main(EXPORT) == 1
    assert cli.main([*EXPORT, "--force"]) == 0
    assert Path("elsewhere").read_text() == "mine"
    assert not Path("out/deep/privkey.pem").is_symlink()


def test_an_export_to_nowhere_is_told(store: CertificateStore, capsys: Output) -> None:
    store.put("acme/api.example.com", issue(*API).bundle())
    Path("out").write_text("a file")
    assert cli.main(EXPORT) == 1
    assert "cannot write there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shop.example.com", "acme/shop.example.com: there is no certificate yet."),
        ("files.test", "lies in the files that the configuration names already"),
        ("stranger.test", "no site has this host"),
        ("internal-ca", "tlsproxy trust --print"),
    ],
)
def test_what_can_not_be_exported_is_told(name: str, said: str, store: CertificateStore, capsys: Output) -> None:
    store.put("internal-ca", issue("internal-ca").bundle())
    assert cli.main(["admin", "certs", "export", name, "--out", "out"]) == 1
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


# --- remove


def test_what_no_site_uses_may_go(store: CertificateStore, capsys: Output) -> None:
    store.put("acme/old.test", issue("old.test").bundle())
    store.put_record("state", "acme/old.test", {"attempts": 3})
    assert cli.main(["admin", "certs", "remove", "old.test", "--yes"]) == 0
    assert (store.list(), store.list_records("state")) == ((), ())
    said = capsys.readouterr()
    assert said.out == "acme/old.test: removed\n"
    assert said.err.endswith("it is taken out of the store alone\n")


def test_a_running_proxy_removes_it_itself(store: CertificateStore, capsys: Output) -> None:
    store.put("acme/old.test", issue("old.test").bundle())
    with answering(SOCKET, {"DELETE /certs/acme/old.test": Answer(200, {})}) as asked:
        assert cli.main(["admin", "certs", "remove", "acme/old.test", "--yes"]) == 0
    assert asked[0].options == {}
    assert store.list() == ("acme/old.test",)


def test_nothing_is_removed_unasked(store: CertificateStore, capsys: Output) -> None:
    store.put("acme/old.test", issue("old.test").bundle())
    assert cli.main(["admin", "certs", "remove", "old.test"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert store.list() == ("acme/old.test",)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("www.example.com", "the site api.example.com is served with it"),
        ("internal/localhost", "the site localhost is served with it"),
        ("internal-ca", "is the root that clients trust"),
    ],
)
def test_what_is_in_use_has_to_be_meant(name: str, said: str, store: CertificateStore, capsys: Output) -> None:
    for stored in ("acme/api.example.com", "internal/localhost", "internal-ca"):
        store.put(stored, issue("a.test").bundle())
    assert cli.main(["admin", "certs", "remove", name, "--yes"]) == 1
    assert said in capsys.readouterr().err
    assert len(store.list()) == 3
    assert cli.main(["admin", "certs", "remove", name, "--yes", "--force"]) == 0
    assert len(store.list()) == 2


def test_files_are_not_removed(store: CertificateStore, capsys: Output) -> None:
    assert cli.main(["admin", "certs", "remove", "files.test", "--yes", "--force"]) == 1
    assert "lies in files of the configuration" in capsys.readouterr().err


# --- by the wrong user


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["admin", "certs", "list"], 1),
        (["admin", "certs", "show", "api.example.com"], 1),
        (["admin", "certs", "export", "api.example.com", "--out", "elsewhere"], 1),
        (["trust", "--print"], 1),
        (["check"], 2),
    ],
)
def test_the_wrong_user_is_told_which_is_right(
    command: list[str], code: int, store: CertificateStore, folder: Path, capsys: Output
) -> None:
    nobody = find_account("nobody") if os.geteuid() == 0 else None
    if nobody is None:
        pytest.skip("only root can be somebody else")
    store.put("acme/api.example.com", issue(*API).bundle())
    for path in (folder, *folder.parents):
        path.chmod(path.stat().st_mode | 0o001)  # the folders of pytest are closed to others
    assert cli.main(command) == 0  # the program may lie where only root can read: imported here
    capsys.readouterr()
    with acting_as(nobody):
        assert cli.main(command) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{folder}/store" in said.err
    assert f"uid {nobody.uid} (chown), if that one runs the proxy" in said.err
    assert said.err.count("Or run this command as the user that runs the proxy (with sudo, if that is root).") == 1
