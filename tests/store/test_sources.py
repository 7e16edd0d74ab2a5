"""Where the certificates of a site come from."""

from pathlib import Path
from typing import Literal

import pytest

from tests.store.pki import issue, rsa_key, write_pair
from tlsproxy.errors import CertificateError
from tlsproxy.settings import CertificateFiles, Route, Site
from tlsproxy.store.memory import MemoryStore
from tlsproxy.store.sources import NotYet, acme_name, bundles_for, certificate_files, certificate_name

ECDSA = issue("a.test", "b.test")
RSA = issue("a.test", "b.test", key=rsa_key())
ROUTES = (Route(backends=("http://127.0.0.1:1",)),)


def site(*files: CertificateFiles) -> Site:
    return Site(hosts=("a.test", "b.test"), certificate=files or "internal", routes=ROUTES)


def pair(directory: Path) -> CertificateFiles:
    return CertificateFiles(chain=directory / "chain.pem", key=directory / "key.pem")


@pytest.fixture
def ecdsa(tmp_path: Path) -> CertificateFiles:
    (tmp_path / "ecdsa").mkdir()
    write_pair(tmp_path / "ecdsa", ECDSA)
    return pair(tmp_path / "ecdsa")


@pytest.fixture
def rsa(tmp_path: Path) -> CertificateFiles:
    (tmp_path / "rsa").mkdir()
    write_pair(tmp_path / "rsa", RSA)
    return pair(tmp_path / "rsa")


def test_internal_certificates_come_from_the_store() -> None:
    store = MemoryStore()
    with pytest.raises(CertificateError, match=r"a\.test: there is no certificate of the internal CA"):
        bundles_for(site(), store)
    store.put("internal/a.test", ECDSA.bundle())
    assert bundles_for(site(), store) == (ECDSA.bundle(),)


def test_one_pair_and_two(ecdsa: CertificateFiles, rsa: CertificateFiles) -> None:
    single = Site(hosts=("a.test",), certificate=ecdsa, routes=ROUTES)
    assert bundles_for(single, MemoryStore()) == (ECDSA.bundle(),)
    assert bundles_for(site(ecdsa, rsa), MemoryStore()) == (ECDSA.bundle(), RSA.bundle())


def test_two_pairs_of_one_kind_are_refused(ecdsa: CertificateFiles) -> None:
    with pytest.raises(CertificateError, match="two certificates have ecdsa keys"):
        bundles_for(site(ecdsa, ecdsa), MemoryStore())


def test_every_pair_covers_every_host(ecdsa: CertificateFiles) -> None:
    other = Site(hosts=("a.test", "c.test"), certificate=ecdsa, routes=ROUTES)
    with pytest.raises(CertificateError, match=r"does not cover c\.test; it is for a\.test, b\.test"):
        bundles_for(other, MemoryStore())


def test_names_of_sites(ecdsa: CertificateFiles) -> None:
    assert certificate_name(site()) == "internal/a.test"
    assert certificate_name(site(ecdsa)) == "file/a.test"
    assert certificate_files(site()) == ()
    assert certificate_files(site(ecdsa)) == (ecdsa,)


@pytest.mark.parametrize("word", ["acme", "on_demand"])
def test_certificates_of_a_public_ca_come_from_the_store_as_soon_as_they_are_there(
    word: Literal["acme", "on_demand"],
) -> None:
    store = MemoryStore()
    wanted = Site(hosts=("a.test", "b.test"), certificate=word, routes=ROUTES)
    assert (certificate_name(wanted), certificate_files(wanted)) == (acme_name("a.test"), ())
    with pytest.raises(NotYet, match=r"a\.test: there is no certificate yet\. .*tlsproxy admin certs why"):
        bundles_for(wanted, store)
    store.put("acme/a.test", ECDSA.bundle())
    assert bundles_for(wanted, store) == (ECDSA.bundle(),)


def test_only_a_public_ca_makes_one_wait() -> None:
    with pytest.raises(CertificateError) as caught:
        bundles_for(site(), MemoryStore())
    assert not isinstance(caught.value, NotYet)
