"""Accounts at an acme-dns server: used, registered once, kept for this user's eyes only."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.acme_dns_server import DOMAIN, FakeAcmeDnsServer
from tests.system.running import free_port
from tlsproxy.certs.dns.acme_dns import AcmeDnsProvider
from tlsproxy.certs.dns.base import DnsProviderError

NAME = "_acme-challenge.example.com"
ONE, TWO, THREE = "1" * 43, "2" * 43, "3" * 43


@pytest.fixture
def server() -> Iterator[FakeAcmeDnsServer]:
    with FakeAcmeDnsServer() as fake:
        yield fake


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "accounts.json"


def accounts(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def registered(server: FakeAcmeDnsServer, path: Path, domain: str = "example.com") -> str:
    """Register and return where the CNAME has to lead."""
    with pytest.raises(DnsProviderError):
        AcmeDnsProvider(server.url, path).create(f"_acme-challenge.{domain}", ONE)
    fulldomain: str = accounts(path)[domain]["fulldomain"]
    return fulldomain


def test_without_an_account_one_is_registered_and_the_cname_told(server: FakeAcmeDnsServer, path: Path) -> None:
    provider = AcmeDnsProvider(server.url + "/", path)
    with pytest.raises(DnsProviderError) as caught:
        provider.create(NAME, ONE)
    account = accounts(path)["example.com"]
    assert f"Create this record once: {NAME}. CNAME {account['fulldomain']}." in str(caught.value)
    assert account == next(iter(server.accounts.values()))
    assert account["password"] not in str(caught.value)
    assert account["password"] not in repr(provider)


def test_the_file_is_for_its_owner_alone(server: FakeAcmeDnsServer, path: Path) -> None:
    registered(server, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["accounts.json"]


def test_an_account_is_registered_once(server: FakeAcmeDnsServer, path: Path) -> None:
    assert registered(server, path) == registered(server, path)
    other = registered(server, path, "other.example")
    assert set(accounts(path)) == {"example.com", "other.example"}
    assert other.endswith(DOMAIN)
    assert len(server.accounts) == 2


def test_threads_that_ask_at_once_register_once(server: FakeAcmeDnsServer, path: Path) -> None:
    provider, told = AcmeDnsProvider(server.url, path), list[str]()

    def create() -> None:
        try:
            provider.create(NAME, ONE)
        except DnsProviderError as error:
            told.append(str(error))

    threads = [threading.Thread(target=create) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.accounts) == 1
    assert len(set(told)) == 1
    assert len(told) == 5


def test_the_two_newest_values_are_shown(server: FakeAcmeDnsServer, path: Path) -> None:
    fulldomain = registered(server, path)
    provider = AcmeDnsProvider(server.url, path)
    for value in (ONE, TWO, THREE):
        provider.create(fulldomain, value)
    assert server.values(fulldomain) == [TWO, THREE]
    asked = len(server.requests)
    provider.delete(fulldomain, TWO)
    assert len(server.requests) == asked


def test_a_file_of_another_client(server: FakeAcmeDnsServer, path: Path) -> None:
    """With fields that we don't know, which stay; keyed by a name that is not the one after the CNAME."""
    account = server.answer("/register", "", "", {})[1] | {"server_url": server.url}
    path.write_text(json.dumps({"example.com": account}))
    AcmeDnsProvider(server.url, path).create(account["fulldomain"], ONE)
    assert server.values(account["fulldomain"]) == [ONE]
    registered(server, path, "other.example")
    assert accounts(path)["example.com"] == account


def test_a_cname_that_leads_to_an_unknown_account(server: FakeAcmeDnsServer, path: Path) -> None:
    with pytest.raises(DnsProviderError, match=rf"accounts\.json has no account for x\.{DOMAIN}, where a CNAME leads"):
        AcmeDnsProvider(server.url, path).create(f"x.{DOMAIN}", ONE)
    assert server.accounts == {}


def test_an_account_that_the_server_has_forgotten(server: FakeAcmeDnsServer, path: Path) -> None:
    fulldomain = registered(server, path)
    server.accounts.clear()
    with pytest.raises(
        DnsProviderError, match=r"/update has refused: HTTP 401 forbidden\. It does not know this account"
    ):
        AcmeDnsProvider(server.url, path).create(fulldomain, ONE)


def test_registration_is_closed(path: Path) -> None:
    with FakeAcmeDnsServer(is_open=False) as server, pytest.raises(DnsProviderError, match="is registration enabled"):
        AcmeDnsProvider(server.url, path).create(NAME, ONE)
    assert not path.exists()


@pytest.mark.parametrize("broken", [b"<html>", b"[]", b'{"username": 1}', b"x" * 1_000_000])
def test_a_server_that_is_something_else(server: FakeAcmeDnsServer, path: Path, broken: bytes) -> None:
    server.broken = broken
    with pytest.raises(DnsProviderError, match="has answered a registration with something else"):
        AcmeDnsProvider(server.url, path).create(NAME, ONE)


def test_nobody_there(path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(DnsProviderError, match=rf"{url}/register can't be asked \(Connection refused\)"):
        AcmeDnsProvider(url, path).create(NAME, ONE)


def test_a_folder_that_is_none_loses_no_account(server: FakeAcmeDnsServer, tmp_path: Path) -> None:
    with pytest.raises(DnsProviderError, match="can't be written"):
        AcmeDnsProvider(server.url, tmp_path / "none" / "accounts.json").create(NAME, ONE)
    assert server.accounts == {}


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"example.com": {"username": "u"}}', '{"example.com": 1}'])
def test_a_file_that_is_something_else_is_left_alone(server: FakeAcmeDnsServer, path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(DnsProviderError, match="is not a file of acme-dns accounts"):
        AcmeDnsProvider(server.url, path).create(NAME, ONE)
    assert path.read_text() == content


def test_no_file_configured(server: FakeAcmeDnsServer) -> None:
    with pytest.raises(DnsProviderError, match=r"acme\.dns\.acme_dns\.credentials is empty"):
        AcmeDnsProvider(server.url, None).create(NAME, ONE)
