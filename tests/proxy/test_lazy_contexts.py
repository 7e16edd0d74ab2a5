"""Certificates in the store: loaded when asked for, kept while in use, looked at again when they may be new."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest

from tests.fakes.clock import Clock
from tests.fakes.stage import issue, issued
from tests.store.pki import issue as self_issue
from tlsproxy.errors import StoreError
from tlsproxy.proxy.choice import PENDING, UNKNOWN_NAME, UNUSABLE, Choice, Refused
from tlsproxy.proxy.contexts import ContextTable
from tlsproxy.proxy.sitetls import ServerContext, SiteTls
from tlsproxy.proxy.tickets import _control, _pointer, _read
from tlsproxy.proxy.waiting import Awaited, WaitingRoom
from tlsproxy.store.base import open_store
from tlsproxy.store.bundle import Bundle
from tlsproxy.wire.clienthello import ClientHello

HOSTS = ("a.test", "b.test", "c.test")


class Scene:
    """A table over a store in memory, and what was asked of the store."""

    def __init__(self, *sites: SiteTls, limit: int = 1000, default_host: str = "") -> None:
        self.clock = Clock()
        self.wall = Clock(time.time())
        self.store = open_store("memory:")
        self.looked: list[str] = []
        self.broken = False
        self.wanted: list[str] = []
        self.room = WaitingRoom(lambda host, _: self.wanted.append(host), clock=self.clock)
        self.table = ContextTable(
            sites or [site(host) for host in HOSTS],
            default_host=default_host,
            ticket_secret=b"s" * 32,
            limit=limit,
            load=self._load,
            room=self.room,
            clock=self.wall,
            now=self.clock,
        )

    def _load(self, name: str) -> Bundle | None:
        self.looked.append(name)
        if self.broken:
            raise StoreError("the disk is gone")
        return self.store.get(name)

    def choose(self, host: str | None) -> Choice:
        return self.table.choose(ClientHello(host, (), (0x0304,)))

    def chosen(self, host: str) -> ServerContext:
        choice = self.choose(host)
        assert isinstance(choice, ServerContext), choice
        return choice

    def put(self, host: str, *names: str) -> None:
        self.store.put(f"acme/{host}", issued(*(names or (host,))))


class Sleeper:
    """Waits, whatever it is told."""

    def certificate_ready(self) -> None: ...

    def certificate_refused(self, refused: Refused) -> None: ...


def site(*hosts: str) -> SiteTls:
    return SiteTls(hosts, certificate=f"acme/{hosts[0]}")


@pytest.fixture(name="scene")
def _scene() -> Scene:
    scene = Scene()
    for host in HOSTS:
        scene.put(host)
    return scene


class TestLoading:
    def test_nothing_is_loaded_before_a_client_asks(self, scene: Scene) -> None:
        assert scene.looked == []
        first = scene.chosen("b.test")
        assert scene.chosen("b.test") is first
        assert scene.looked == ["acme/b.test"]
        assert scene.table.built == 1

    def test_an_unknown_name_is_looked_for_nowhere(self, scene: Scene) -> None:
        assert scene.choose("x.test") is UNKNOWN_NAME
        assert scene.looked == []

    def test_a_site_has_one_certificate_for_all_hosts(self) -> None:
        scene = Scene(site("a.test", "*.a.test"))
        scene.put("a.test", "a.test", "*.a.test")
        assert scene.chosen("a.test") is scene.chosen("x.a.test")
        assert scene.looked == ["acme/a.test"]

    def test_the_default_site_is_loaded_for_who_gives_no_name(self) -> None:
        scene = Scene(default_host="a.test")
        scene.put("a.test")
        assert scene.choose(None) is scene.chosen("a.test")


class TestKeeping:
    def test_the_ones_used_last(self) -> None:
        scene = Scene(limit=2)
        for host in HOSTS:
            scene.put(host)
        a, b = scene.chosen("a.test"), scene.chosen("b.test")
        assert scene.chosen("a.test") is a
        scene.chosen("c.test")
        assert scene.table.built == 2
        assert scene.chosen("a.test") is a
        assert scene.chosen("b.test") is not b

    def test_a_context_that_is_built_again_has_the_same_ticket_keys(self) -> None:
        scene = Scene(limit=1)
        keys = []
        for host in ("a.test", "b.test", "a.test"):
            scene.put(host)
            assert _control is not None
            keys.append(_read(_control, scene.chosen(host).ssl))
            assert _pointer(scene.chosen(host).ssl)
        assert keys[0] == keys[2] != keys[1]

    def test_files_stay_loaded_and_their_context_comes_back(self) -> None:
        scene = Scene(SiteTls(("a.test",), (issued("a.test"),)), site("b.test"), limit=1)
        scene.put("b.test")
        first = scene.chosen("a.test")
        scene.chosen("b.test")
        assert scene.chosen("a.test") is not first
        assert scene.looked == ["acme/b.test"]


class TestPending:
    def test_is_refused_and_said_once_a_minute_and_site(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        scene = Scene(site("a.test", "also-a.test"), site("b.test"))
        for host in ("a.test", "also-a.test", "a.test", "b.test"):
            assert scene.choose(host) is PENDING
        lines = [(line.message, line.site, line.host) for line in caplog.records]  # type: ignore[attr-defined]
        assert lines == [("certificate.pending", "a.test", "a.test"), ("certificate.pending", "b.test", "b.test")]
        assert {line.levelno for line in caplog.records} == {logging.INFO}
        scene.clock.now += 60
        scene.choose("a.test")
        assert len(caplog.records) == 3

    def test_the_store_is_not_asked_by_every_hello(self) -> None:
        scene = Scene()
        for _ in range(50):
            scene.choose("a.test")
        assert len(scene.looked) == 1
        scene.put("a.test")
        scene.clock.now += 5
        scene.chosen("a.test")

    @pytest.mark.parametrize("names", [["acme/a.test"], []])
    def test_what_is_announced_is_served_at_once(self, names: list[str]) -> None:
        scene = Scene()
        scene.choose("a.test")
        scene.put("a.test")
        if names:
            assert scene.table.renew(names) == []
        else:
            scene.table.suspect_all()
        scene.chosen("a.test")

    def test_a_site_with_files_that_are_no_good_is_not_pending(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        assert Scene(SiteTls(("a.test",))).choose("a.test") is UNKNOWN_NAME
        assert caplog.records == []


class TestPartOfTheHosts:
    def test_those_that_are_covered_are_served(self) -> None:
        scene = Scene(site("a.test", "new.test", "*.new.test", "x.new.test"))
        scene.put("a.test", "a.test", "x.new.test")
        scene.chosen("a.test")
        scene.chosen("x.new.test")
        for host in ("new.test", "y.new.test"):
            assert scene.choose(host) is PENDING
        assert scene.looked == ["acme/a.test"]
        scene.put("a.test", "a.test", "new.test", "*.new.test", "x.new.test")
        scene.table.renew(["acme/a.test"])
        for host in ("a.test", "new.test", "y.new.test", "x.new.test"):
            scene.chosen(host)

    def test_as_the_default_too(self) -> None:
        scene = Scene(site("a.test", "new.test"), default_host="new.test")
        scene.put("a.test")
        assert scene.choose(None) is PENDING


class TestRenewing:
    def test_a_new_one_is_built_and_an_unchanged_one_keeps_its_context(self, scene: Scene) -> None:
        a, b = scene.chosen("a.test"), scene.chosen("b.test")
        scene.store.put("acme/a.test", issue("a.test"))
        assert scene.table.renew(["acme/a.test", "acme/b.test", "acme/c.test"]) == []
        assert scene.chosen("a.test") is not a
        assert scene.chosen("b.test") is b
        assert "acme/c.test" not in scene.looked  # nobody has asked for it

    def test_another_key_or_chain_is_a_new_one(self, scene: Scene) -> None:
        first = scene.chosen("a.test")
        bundle = issued("a.test")
        scene.store.put("acme/a.test", replace(bundle, chain_pem=bundle.chain_pem + b"\n"))
        scene.table.renew(["acme/a.test"])
        assert scene.chosen("a.test") is not first

    def test_names_of_others_are_nothing(self, scene: Scene) -> None:
        scene.chosen("a.test")
        assert scene.table.renew(["internal/a.test", "file/a.test", "acme/x.test", "acme", "", "internal-ca"]) == []
        assert len(scene.looked) == 1

    def test_all_of_them_costs_no_look_before_a_client_asks(self, scene: Scene) -> None:
        a = scene.chosen("a.test")
        scene.table.suspect_all()
        assert len(scene.looked) == 1
        assert scene.chosen("a.test") is scene.chosen("a.test") is a
        assert len(scene.looked) == 2

    def test_nor_do_very_many(self) -> None:
        sites = [site(f"n{number}.test") for number in range(30)]
        scene = Scene(*sites)
        bundle = issued("n.test")
        for each in sites:
            scene.store.put(each.certificate, replace(bundle, names=each.hosts))
            scene.chosen(each.hosts[0])
        scene.looked.clear()
        assert scene.table.renew([each.certificate for each in sites]) == []
        assert scene.looked == []
        scene.chosen("n7.test")
        assert scene.looked == ["acme/n7.test"]

    def test_what_can_not_be_used_leaves_what_there_is(self, scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
        first = scene.chosen("a.test")
        scene.store.put("acme/a.test", replace(issued("a.test"), key_pem=issued("b.test").key_pem))
        [problem] = scene.table.renew(["acme/a.test"])
        assert problem.startswith("a.test: OpenSSL refuses the certificate or its key (KEY_VALUES")
        assert scene.chosen("a.test") is first
        [line] = caplog.records
        assert (line.message, line.served) == ("certificate.unusable", True)  # type: ignore[attr-defined]
        scene.store.put("acme/a.test", issue("a.test"))
        scene.table.renew(["acme/a.test"])
        assert scene.chosen("a.test") is not first

    def test_one_that_was_lost_is_still_served(self, scene: Scene) -> None:
        first = scene.chosen("a.test")
        scene.store.delete("acme/a.test")
        assert scene.table.renew(["acme/a.test"]) == []
        assert scene.chosen("a.test") is first


class TestAStoreInTrouble:
    def test_refuses_says_so_once_and_is_asked_again_a_little_later(
        self, scene: Scene, caplog: pytest.LogCaptureFixture
    ) -> None:
        scene.broken = True
        assert [scene.choose("a.test") for _ in range(50)] == [UNUSABLE] * 50
        assert len(scene.looked) == 1
        [line] = caplog.records
        assert (line.message, line.error, line.site) == ("certificate.unusable", "the disk is gone", "a.test")  # type: ignore[attr-defined]
        scene.broken = False
        scene.clock.now += 5
        scene.chosen("a.test")

    def test_costs_nothing_that_is_loaded(self, scene: Scene) -> None:
        first = scene.chosen("a.test")
        scene.broken = True
        assert scene.table.renew(["acme/a.test"]) == ["the disk is gone"]
        assert [scene.chosen("a.test") for _ in range(50)] == [first] * 50
        assert len(scene.looked) == 3


class TestOnDemand:
    SITES = (
        replace(site("*"), certificate="acme/", on_demand=True),
        replace(site("shop.test", "*.w.test"), certificate="acme/", on_demand=True),
        site("a.test"),
    )

    def test_every_host_has_a_certificate_and_tickets_of_its_own(self) -> None:
        scene = Scene(*self.SITES)
        for host in ("x.w.test", "y.w.test", "any.test"):
            scene.put(host)
        contexts = [scene.chosen(host) for host in ("x.w.test", "y.w.test", "any.test")]
        assert [scene.chosen(host) for host in ("x.w.test", "y.w.test", "any.test")] == contexts
        assert scene.looked == ["acme/x.w.test", "acme/y.w.test", "acme/any.test"]
        assert _control is not None
        assert len({_read(_control, context.ssl) for context in contexts}) == 3

    @pytest.mark.parametrize("host", ["shop.test", "x.w.test", "any.where.test"])
    def test_what_is_not_there_is_awaited(self, host: str) -> None:
        scene = Scene(*self.SITES)
        choice = scene.choose(host)
        assert isinstance(choice, Awaited)
        assert choice.host == host
        assert scene.wanted == []  # joining asks

    @pytest.mark.parametrize(
        "host", ["a.test", "intranet", "192.0.2.1", "1.2.3.4.5", "_dmarc.x.test", "-x.test", "x-.test", None]
    )
    def test_what_nobody_could_certify_is_not(self, host: str | None) -> None:
        assert not isinstance(Scene(*self.SITES).choose(host), Awaited)

    def test_an_address_without_a_name_is_not(self) -> None:
        scene = Scene(replace(site("192.0.2.1"), certificate="acme/", on_demand=True))
        assert scene.table.choose(ClientHello(None, (), ()), "192.0.2.1") is UNKNOWN_NAME

    def test_a_name_that_was_refused_is_not_looked_for(self) -> None:
        scene = Scene(*self.SITES)
        scene.room.refuse("any.test", "no", 60)
        choice = scene.choose("any.test")
        assert choice is scene.room.refusal("any.test")
        assert scene.looked == []

    def test_their_contexts_count_and_are_dropped_like_all(self) -> None:
        scene = Scene(*self.SITES, limit=2)
        for number in range(5):
            host = f"n{number}.any.test"
            scene.put(host)
            scene.chosen(host)
        assert scene.table.built == len(scene.table._demanded) == 2

    def test_one_that_was_removed_is_no_longer_served(self) -> None:
        """Unlike a site's: here the next client's question brings another, or a refusal."""
        scene = Scene(*self.SITES)
        scene.put("any.test")
        scene.chosen("any.test")
        scene.store.delete("acme/any.test")
        assert scene.table.renew(["acme/any.test"]) == []
        assert isinstance(scene.choose("any.test"), Awaited)
        assert scene.table.built == 0

    def test_a_connection_is_for_its_own_host_alone(self) -> None:
        """Each was to be allowed by itself: one that is must not open the way to the others."""
        scene = Scene(*self.SITES)
        policy = scene.table.policy_for("a.test")
        assert policy is not None
        for host in ("x.w.test", "any.test"):
            scene.put(host)
        of_wildcard, of_all = scene.chosen("x.w.test").site, scene.chosen("any.test").site
        assert not scene.table.may_serve(policy, of_wildcard, "y.w.test")
        assert not scene.table.may_serve(policy, "a.test", "any.test")
        assert scene.table.may_serve(policy, of_all, "a.test")

    def test_a_store_in_trouble_refuses(self) -> None:
        scene = Scene(*self.SITES)
        scene.broken = True
        assert scene.choose("any.test") is UNUSABLE

    @pytest.mark.parametrize(
        ("days", "signs"), [((-1, 89), 0), ((-46, 44), 1), ((-90, -1), 1)], ids=["new", "half over", "expired"]
    )
    def test_the_certifier_hears_that_an_old_one_is_in_use(self, days: tuple[float, float], signs: int) -> None:
        """It renews what clients ask for, and lets the rest expire."""
        scene = Scene(*self.SITES)
        scene.store.put("acme/any.test", self_issue("any.test", days=days).bundle())
        for _ in range(3):
            scene.chosen("any.test")
        assert scene.wanted == ["any.test"] * signs
        scene.wall.now += 6 * 3600
        scene.chosen("any.test")
        assert scene.wanted == ["any.test"] * signs * 2

    def test_and_hears_it_later_if_there_are_too_many_questions(self) -> None:
        scene = Scene(*self.SITES)
        scene.store.put("acme/any.test", self_issue("any.test", days=(-46, 44)).bundle())
        while scene.room.remind("other.test", ""):
            pass
        scene.wanted.clear()
        scene.chosen("any.test")
        assert scene.wanted == []
        scene.clock.now += 1
        for _ in range(2):
            scene.chosen("any.test")
        assert scene.wanted == ["any.test"]

    def test_one_that_is_waited_for_is_not_looked_for_again(self) -> None:
        """Anybody can ask, and a look is a question to the disk; what is found there ends the wait by itself."""
        scene = Scene(*self.SITES)
        first = scene.choose("any.test")
        assert isinstance(first, Awaited)
        assert scene.choose("any.test") is not first
        assert scene.looked == ["acme/any.test"] * 2  # nobody waits
        assert first.join(Sleeper(), "") is None
        assert isinstance(scene.choose("any.test"), Awaited)
        assert scene.looked == ["acme/any.test"] * 2

    def test_not_of_a_site_s_own(self) -> None:
        scene = Scene(*self.SITES)
        scene.store.put("acme/a.test", self_issue("a.test", days=(-90, -1)).bundle())
        scene.chosen("a.test")
        assert scene.wanted == []

    def test_as_the_default_it_is_the_default_host_s(self) -> None:
        scene = Scene(*self.SITES[1:], default_host="shop.test")
        scene.put("shop.test")
        assert scene.choose(None) is scene.chosen("shop.test")


def test_a_challenge_is_for_who_offers_nothing_else() -> None:
    scene = Scene()
    scene.put("a.test")
    asked: list[str] = []
    scene.table._answer_challenge = asked.append
    for alpn in ((b"acme-tls/1", b"http/1.1"), (b"http/1.1", b"acme-tls/1"), ()):
        assert isinstance(scene.table.choose(ClientHello("a.test", alpn, ())), ServerContext)
    assert asked == []
    scene.table.choose(ClientHello("a.test", (b"acme-tls/1",), ()))
    scene.table.choose(ClientHello(None, (b"acme-tls/1",), ()), "192.0.2.1")
    assert asked == ["a.test"]
