"""Certificate files that change under a running proxy. `poll` is the clock: nothing here waits."""

import logging
from datetime import timedelta
from pathlib import Path

import pytest

from tests.store.pki import NOW, issue, replace, write_pair
from tlsproxy.certs.files import Changed, FileWatch, Rejected, WatchedPair
from tlsproxy.settings import CertificateFiles, Route, Site
from tlsproxy.store.bundle import Bundle
from tlsproxy.store.sources import load_files

OLD = issue("a.test")
NEW = issue("a.test")
OTHER = issue("b.test")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    chain, key = write_pair(tmp_path, OLD)
    return Site(
        hosts=("a.test",),
        certificate=CertificateFiles(chain=chain, key=key),
        routes=(Route(backends=("http://127.0.0.1:1",)),),
    )


@pytest.fixture
def watched(site: Site) -> WatchedPair:
    assert isinstance(site.certificate, CertificateFiles)
    return WatchedPair(site, site.certificate)


def polls(watched: WatchedPair, times: int = 4, days: float = 0) -> list[Changed | Rejected]:
    return [event for _ in range(times) if (event := watched.poll(NOW + timedelta(days=days)))]


def test_nothing_new(watched: WatchedPair) -> None:
    assert polls(watched) == []


def test_a_new_pair_is_announced_once(watched: WatchedPair, tmp_path: Path) -> None:
    write_pair(tmp_path, NEW)
    (event,) = polls(watched)
    assert isinstance(event, Changed)
    assert (event.name, event.bundle) == ("file/a.test", NEW.bundle())


def test_the_same_contents_are_nothing_new(watched: WatchedPair, tmp_path: Path) -> None:
    write_pair(tmp_path, OLD)
    (tmp_path / "key.pem").touch()
    assert polls(watched) == []


@pytest.mark.parametrize("order", [("chain", "key"), ("key", "chain")])
def test_half_a_replacement_is_waited_for(watched: WatchedPair, tmp_path: Path, order: tuple[str, str]) -> None:
    texts = {"chain": NEW.pem, "key": NEW.key_pem()}
    replace(tmp_path / f"{order[0]}.pem", texts[order[0]])
    assert watched.poll(NOW) is None
    replace(tmp_path / f"{order[1]}.pem", texts[order[1]])
    assert [type(event) for event in polls(watched)] == [Changed]


@pytest.mark.parametrize(
    ("chain", "key", "reason"),
    [
        (b"", OLD.key_pem(), "the file is empty"),
        (OLD.pem[:100], OLD.key_pem(), "this is not PEM"),
        (NEW.pem, OLD.key_pem(), "this key does not belong"),
        (OTHER.pem, OTHER.key_pem(), "does not cover a.test; it is for b.test"),
    ],
)
def test_a_broken_pair_is_rejected_once(
    watched: WatchedPair, tmp_path: Path, chain: bytes, key: bytes, reason: str
) -> None:
    replace(tmp_path / "chain.pem", chain)
    replace(tmp_path / "key.pem", key)
    (event,) = polls(watched)
    assert isinstance(event, Rejected)
    assert reason in event.reason
    (tmp_path / "chain.pem").touch()
    assert polls(watched) == []


def test_every_new_flaw_is_said_and_the_mending_announced(watched: WatchedPair, tmp_path: Path) -> None:
    seen: list[Changed | Rejected] = []
    for text in (b"bad", b"worse", NEW.pem):
        replace(tmp_path / "chain.pem", text)
        replace(tmp_path / "key.pem", NEW.key_pem())
        seen += polls(watched)
    assert [type(event) for event in seen] == [Rejected, Rejected, Changed]


def test_going_back_to_what_was_served_is_announced(watched: WatchedPair, tmp_path: Path) -> None:
    """For a worker that was started meanwhile: it found the broken files, and nobody else tells it of good ones."""
    replace(tmp_path / "chain.pem", b"bad")
    assert len(polls(watched)) == 1
    write_pair(tmp_path, OLD)
    assert [type(event) for event in polls(watched)] == [Changed]
    replace(tmp_path / "chain.pem", b"bad")
    assert len(polls(watched)) == 1


def test_an_expired_pair_does_not_replace_a_valid_one(watched: WatchedPair, tmp_path: Path) -> None:
    write_pair(tmp_path, issue("a.test", days=(-9, -1)))
    (event,) = polls(watched)
    assert isinstance(event, Rejected)
    assert event.reason.startswith(f"{tmp_path}/chain.pem: the certificate expired on ")
    assert "still valid and stays" in event.reason
    write_pair(tmp_path, NEW)
    assert [type(event) for event in polls(watched)] == [Changed]
    assert polls(watched, days=99) == []


def test_among_expired_pairs_the_new_one_is_announced(tmp_path: Path, site: Site) -> None:
    assert isinstance(site.certificate, CertificateFiles)
    write_pair(tmp_path, issue("a.test", days=(-9, -2)))
    watched = WatchedPair(site, site.certificate)
    write_pair(tmp_path, issue("a.test", days=(-9, -1)))
    assert [type(event) for event in polls(watched)] == [Changed]


def test_a_pair_that_expires_while_it_is_served_can_be_replaced_by_any(watched: WatchedPair, tmp_path: Path) -> None:
    write_pair(tmp_path, issue("a.test", days=(-9, 31)))
    assert [type(event) for event in polls(watched, days=32)] == [Changed]


def test_a_missing_file_is_a_flaw(watched: WatchedPair, tmp_path: Path) -> None:
    (tmp_path / "key.pem").unlink()
    (event,) = polls(watched)
    assert isinstance(event, Rejected)
    assert "there is no such file" in event.reason


def test_symbolic_links_that_are_swapped_far_away(tmp_path: Path, site: Site) -> None:
    for name, pair in {"one": OLD, "two": NEW}.items():
        (tmp_path / name).mkdir()
        write_pair(tmp_path / name, pair)
    (tmp_path / "live").symlink_to("one")
    files = CertificateFiles(chain=tmp_path / "live/chain.pem", key=tmp_path / "live/key.pem")
    watched = WatchedPair(site, files)
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(tmp_path / "live")
    assert [type(event) for event in polls(watched)] == [Changed]


def test_the_watch_logs_and_returns_names(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = FileWatch([site])
    caplog.set_level(logging.INFO)
    replace(tmp_path / "chain.pem", b"bad")
    assert [watch.poll(NOW) for _ in range(4)] == [()] * 4
    replace(tmp_path / "chain.pem", NEW.pem)
    replace(tmp_path / "key.pem", NEW.key_pem())
    (tmp_path / "key.pem").chmod(0o644)
    assert watch.poll(NOW) == ("file/a.test",)
    events = [(record.levelname, record.message) for record in caplog.records]
    assert events == [
        ("WARNING", "certificate.file_rejected"),
        ("INFO", "certificate.file_changed"),
        ("WARNING", "certificate.file_doubtful"),
    ]
    assert "PRIVATE" not in caplog.text
    assert repr(watch) == "<FileWatch 1 pairs>"


def test_one_pair_s_trouble_costs_the_others_no_news(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    chain, key = write_pair(tmp_path / "b", OTHER)
    route = Route(backends=("http://127.0.0.1:1",))
    other = Site(hosts=("b.test",), certificate=CertificateFiles(chain=chain, key=key), routes=(route,))
    watch = FileWatch([other, site])

    def fail(site: Site, pair: CertificateFiles) -> Bundle:
        if site is other:
            raise RuntimeError("not foreseen")
        return load_files(site, pair)

    monkeypatch.setattr("tlsproxy.certs.files.load_files", fail)
    write_pair(tmp_path / "b", issue("b.test"))
    write_pair(tmp_path, NEW)
    assert watch.poll(NOW) == ("file/a.test",)
    [record] = [record for record in caplog.records if record.message == "certificate.watch_failed"]
    assert vars(record)["chain"] == str(chain)
