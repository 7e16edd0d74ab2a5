"""Where certificates of a CA are kept: sealed, under new keys, moved elsewhere; and none is ordered again for it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pebble import ChallTestSrv, Pebble
from tests.system.acme import Ports, running, served, site, trusting
from tests.system.commands import admin
from tests.system.running import Proxy
from tests.system.visitors import visiting

pytestmark = pytest.mark.system

FIRST, SECOND, THIRD = (secrets.token_urlsafe(32) for _ in range(3))
SECRETS = (b"PRIVATE KEY", b"CERTIFICATE", b"a.test", b"https://")


@pytest.fixture(scope="module")
def ports() -> Ports:
    return Ports()


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory, ports: Ports) -> Iterator[Pebble]:
    folder = tmp_path_factory.mktemp("ca")
    with (
        ChallTestSrv(folder, ipv6="") as dns,
        Pebble(folder, dns=dns.address, http_port=ports.http, tls_port=ports.https) as ca,
    ):
        yield ca


@contextlib.contextmanager
def proxy_with(folder: Path, ca: Pebble, ports: Ports, app: str, *keys: str) -> Iterator[Proxy]:
    """Run a proxy whose store has these keys, the newest first."""
    before = ("env", *(f"{name}={value}" for name, value in knowing(*keys).items()))
    with running(folder, ca, site("a.test", backend=app), ports=ports, before=before) as proxy:
        yield proxy


def knowing(*keys: str) -> dict[str, str]:
    return {"TLSPROXY_STORE__ENCRYPTION_KEYS": ",".join(keys)} if keys else {}


def obtain(proxy: Proxy) -> int:
    proxy.wait_for("certificate.obtained", certificate="acme/a.test")
    return serial(proxy)


def serial(proxy: Proxy) -> int:
    found = served(proxy, "a.test")
    assert found is not None
    return found.serial_number


def files_in(folder: Path) -> list[Path]:
    return [path for path in (folder / "store").rglob("*") if path.is_file()]


def showing(folder: Path) -> set[tuple[str, bytes]]:
    """Return what of our secrets can be read in which file of the store."""
    contents = {path.name: path.read_bytes() for path in files_in(folder)}
    return {(name, secret) for name, content in contents.items() for secret in SECRETS if secret in content}


def test_keys_are_replaced_while_it_is_stopped_and_while_it_runs(
    tmp_path: Path, ca: Pebble, ports: Ports, app: str
) -> None:
    with proxy_with(tmp_path, ca, ports, app, FIRST) as proxy:
        held = obtain(proxy)
    assert showing(tmp_path) == set()
    orders = ca.orders

    said = admin(tmp_path, "store", "rekey", environment=knowing(SECOND, FIRST))
    assert "encrypted with the first key" in said.out
    with proxy_with(tmp_path, ca, ports, app, SECOND) as proxy:
        assert serial(proxy) == held

    with (
        proxy_with(tmp_path, ca, ports, app, THIRD, SECOND) as proxy,
        visiting(proxy, "a.test", trusting(ca.root())) as visits,
    ):
        admin(tmp_path, "store", "rekey", "--force", environment=knowing(THIRD, SECOND))
    assert visits.serials == [held]
    assert ca.orders == orders

    with proxy_with(tmp_path, ca, ports, app, THIRD) as proxy:
        assert serial(proxy) == held
        admin(proxy, "certs", "renew", "a.test")
        assert serial(proxy) != held
    assert showing(tmp_path) == set()


def test_without_its_key_nothing_is_ordered_in_its_place(tmp_path: Path, ca: Pebble, ports: Ports, app: str) -> None:
    with proxy_with(tmp_path, ca, ports, app, FIRST) as proxy:
        held = obtain(proxy)
    orders = ca.orders
    with proxy_with(tmp_path, ca, ports, app, SECOND) as proxy:
        told = proxy.wait_for("certificate.unreadable", certificate="acme/a.test")["error"]
        assert told.endswith(
            "sealed with a key that is not among store.encryption_keys. Add the old key after the new one, then run: "
            "tlsproxy admin store rekey"
        )
        assert served(proxy, "a.test") is None
        why = admin(proxy, "certs", "why", "a.test").lines
        assert why[0] == "acme/a.test: the certificate for a.test cannot be read."
        assert why[2] == told
    with proxy_with(tmp_path, ca, ports, app, SECOND, FIRST) as proxy:
        assert serial(proxy) == held
    assert ca.orders == orders


@pytest.mark.parametrize("keys", [(), (FIRST,)], ids=["plain", "sealed"])
def test_a_store_that_was_moved_is_served_from(
    tmp_path: Path, ca: Pebble, ports: Ports, app: str, keys: tuple[str, ...]
) -> None:
    old, new, backup = tmp_path / "old", tmp_path / "new", tmp_path / "backup"
    old.mkdir()
    new.mkdir()
    with proxy_with(old, ca, ports, app, *keys) as proxy:
        held = obtain(proxy)
        said = admin(proxy, "store", "export", str(backup), environment=knowing(*keys))
        assert ("warning: the file is not encrypted" in said.err) is not bool(keys)
    assert backup.stat().st_mode & 0o777 == 0o600
    assert (b"PRIVATE KEY" in backup.read_bytes()) is not bool(keys)
    orders, accounts = ca.orders, ca.accounts
    elsewhere = {**knowing(*keys), "TLSPROXY_STORE__URL": f"file://{new}/store"}
    said = admin(old, "store", "import", str(backup), environment=elsewhere)
    assert said.lines == ["3 records written, 0 there already"]  # certificate, state, account
    with proxy_with(new, ca, ports, app, *keys) as proxy:
        assert serial(proxy) == held
        assert proxy.count("certificate.ordering") == 0
        admin(proxy, "certs", "renew", "a.test")  # the account was moved as well
    assert (ca.orders, ca.accounts) == (orders + 1, accounts)


@pytest.mark.parametrize("challenge", ["http-01", "tls-alpn-01"])
def test_another_proxy_with_the_same_store_answers_the_ca(
    tmp_path: Path, ca: Pebble, ports: Ports, app: str, challenge: str
) -> None:
    """The CA looks where the one proxy listens; the other one has ordered."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    shared, kinds, trust = ("env", f"TLSPROXY_STORE__URL=file://{one}/store"), (challenge,), trusting(ca.root())
    with running(one, ca, site("b.test", backend=app), ports=ports, challenges=kinds) as first:
        first.wait_for("certificate.obtained", certificate="acme/b.test")
        sites = site("a.test", backend=app) + site("b.test", backend=app)
        with running(other, ca, sites, ports=Ports(), challenges=kinds, before=shared) as second:
            obtain(second)
            second.open("a.test", trust).close()
            second.open("b.test", trust).close()
            assert second.count("certificate.ordering") == 1
