"""Who may have a certificate on demand: names, memory, limits by table; the driver with an asker of the test."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tlsproxy.certs import ondemand
from tlsproxy.certs.asking import Answer
from tlsproxy.certs.buckets import Buckets
from tlsproxy.certs.ondemand import (
    FAILED_FOR,
    REFUSED_FOR,
    Allow,
    Decision,
    OnDemand,
    Policy,
    Refuse,
    client_network,
    is_public_suffix,
)
from tlsproxy.settings import Rate, Settings

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CLIENT = "192.0.2.7"
OFF = Rate(0, 1.0)
YES, NO = Answer(200), Answer(404, "who?")


def policy(*patterns: str, per_domain: Rate = OFF, per_client: Rate = OFF) -> Policy:
    return Policy(patterns or ("*",), per_domain, per_client)


# --- names


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "this is no host name"),
        ("2001:db8::1", "this is no host name"),
        ("*.example.com", "this is no host name"),
        ("Shop.example.com", "this is no host name"),
        ("shop.example.com.", "this is no host name"),
        ("a_b.example.com", "this is no host name"),
        ("-a.example.com", "this is no host name"),
        ("a..example.com", "this is no host name"),
        ("", "this is no host name"),
        ("x\n.example.com", "this is no host name"),
        ("www." * 9 + "example.com", "more than 10 labels"),
        ("co.uk", "a public suffix belongs to nobody"),
        ("github.io", "a public suffix belongs to nobody"),
        ("localhost", "a public suffix belongs to nobody"),
        ("com", "a public suffix belongs to nobody"),
    ],
)
def test_what_is_not_even_asked(host: str, reason: str) -> None:
    assert policy().examine(host, CLIENT, NOW) == Refuse(host, reason, NOW + REFUSED_FOR)


@pytest.mark.parametrize("host", ["example.com", "www." * 8 + "example.com", "me.github.io", "xn--bcher-kva.example"])
def test_what_is_asked(host: str) -> None:
    assert policy().examine(host, CLIENT, NOW) is None


def test_only_hosts_of_on_demand_sites() -> None:
    subject = policy("*.shop.example.com", "one.example.org")
    for host in ("a.shop.example.com", "one.example.org"):
        assert subject.examine(host, CLIENT, NOW) is None
    for host in ("shop.example.com", "a.b.shop.example.com", "two.example.org"):
        refused = subject.examine(host, CLIENT, NOW)
        assert refused is not None
        assert refused.reason == "no on-demand site has this host"


# --- memory


@pytest.mark.parametrize(
    ("answer", "reason", "duration"),
    [
        (NO, "not allowed, status 404", REFUSED_FOR),
        (Answer(204), "not allowed, status 204", REFUSED_FOR),
        (Answer(302), "not allowed, status 302", REFUSED_FOR),
        (Answer(503), "who was asked has failed with status 503", FAILED_FOR),
        (Answer(None, "Connection refused"), "nobody could be asked: Connection refused", FAILED_FOR),
    ],
)
def test_a_no_is_remembered(answer: Answer, reason: str, duration: timedelta) -> None:
    subject = policy()
    refused = Refuse("a.example.com", reason, NOW + duration)
    assert subject.conclude("a.example.com", answer, NOW) == refused
    assert subject.examine("a.example.com", CLIENT, NOW + duration - timedelta(seconds=1)) == refused
    assert subject.examine("a.example.com", CLIENT, NOW + duration) is None
    assert subject.examine("b.example.com", CLIENT, NOW) is None
    assert subject.examine("a.example.com", CLIENT, NOW - timedelta(days=1)) is None, "a clock that was set back"


def test_a_yes_is_not_remembered() -> None:
    subject = policy()
    assert subject.conclude("a.example.com", YES, NOW) == Allow("a.example.com")
    assert subject.examine("a.example.com", CLIENT, NOW) is None
    assert isinstance(subject.conclude("a.example.com", NO, NOW), Refuse)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ondemand, "_MOST_REFUSALS", 3)
    subject = policy()
    for number in range(5):
        subject.conclude(f"a{number}.example.com", NO, NOW)
    known = [number for number in range(5) if subject.examine(f"a{number}.example.com", CLIENT, NOW)]
    assert known == [2, 3, 4]


# --- limits


def test_a_client_network_has_so_many_new_names() -> None:
    subject = policy(per_client=Rate(2, 3600.0))
    assert subject.examine("a.example.com", "192.0.2.1", NOW) is None
    assert subject.examine("b.example.com", "192.0.2.2", NOW) is None
    refused = subject.examine("c.example.com", "192.0.2.3", NOW)
    assert refused == Refuse("c.example.com", "192.0.2.0/24 has asked for too many new names; the next in 1800 s", NOW)
    assert subject.examine("c.example.com", "198.51.100.1", NOW) is None, "another network is not to blame"
    assert subject.examine("d.example.com", "192.0.2.1", NOW + timedelta(seconds=1800)) is None


def test_a_domain_has_so_many_new_names() -> None:
    subject = policy(per_domain=Rate(2, 3600.0))
    for host in ("a.example.co.uk", "b.x.example.co.uk"):
        assert subject.conclude(host, YES, NOW) == Allow(host)
    refused = subject.conclude("c.example.co.uk", YES, NOW)
    assert isinstance(refused, Refuse)
    assert refused.reason == "example.co.uk has had too many new names; the next in 1800 s"
    assert refused.until == NOW + timedelta(seconds=1800)
    assert subject.conclude("other.co.uk", YES, NOW) == Allow("other.co.uk")
    for _ in range(9):
        subject.conclude("d.other.co.uk", NO, NOW)
    assert subject.conclude("e.other.co.uk", YES, NOW) == Allow("e.other.co.uk"), "a no costs the domain nothing"


def test_buckets() -> None:
    buckets = Buckets(Rate(2, 10.0))
    assert [buckets.take("a", NOW), buckets.take("a", NOW), buckets.take("a", NOW)] == [0.0, 0.0, 5.0]
    assert buckets.take("a", NOW + timedelta(seconds=3)) == pytest.approx(2.0)
    assert buckets.take("a", NOW + timedelta(seconds=5)) == 0.0
    assert buckets.take("a", NOW - timedelta(days=9)) > 0.0, "a clock that was set back gives nothing"
    later = NOW + timedelta(days=1)
    assert [buckets.take("a", later), buckets.take("a", later), buckets.take("a", later)] == [0.0, 0.0, 5.0]
    assert {Buckets(OFF).take("a", NOW) for _ in range(100)} == {0.0}


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:0:1ff::7", "2001:db8:0:100::/56"),
        ("", ""),
        ("unix", "unix"),
    ],
)
def test_client_networks(client: str, network: str) -> None:
    assert client_network(client) == network


# --- the driver


class Application:
    """Answers when it is told to; remembers who asked."""

    def __init__(self, answer: Callable[[str], Answer]) -> None:
        self.questions: list[tuple[str, str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._answer = answer

    def __call__(self, host: str, client: str) -> Answer:
        self.questions.append((host, client))
        assert self.gate.wait(20)
        return self._answer(host)


def yes(host: str) -> Answer:
    return YES


def driving(application: Application, run: Callable[[OnDemand], object], **limits: Rate) -> None:
    async def drive() -> None:
        subject = OnDemand(policy(**limits), application, now=lambda: NOW)
        try:
            await run(subject)  # type: ignore[misc]
        finally:
            application.gate.set()
            await subject.close()

    asyncio.run(drive())


def test_many_clients_of_one_name_are_one_question() -> None:
    application = Application(yes)
    application.gate.clear()

    async def run(subject: OnDemand) -> None:
        waiting = [asyncio.create_task(subject.decide("a.example.com", f"192.0.{n}.1")) for n in range(20)]
        while not application.questions:
            await asyncio.sleep(0)
        waiting[0].cancel()
        application.gate.set()
        decisions = await asyncio.gather(*waiting[1:])
        assert set(decisions) == {Allow("a.example.com")}

    driving(application, run)
    assert application.questions == [("a.example.com", "192.0.0.1")]


def test_a_yes_is_good_for_one_order() -> None:
    application = Application(yes)

    async def run(subject: OnDemand) -> None:
        assert await subject.decide("a.example.com", CLIENT) == Allow("a.example.com")
        assert await subject.decide("a.example.com", "198.51.100.1") == Allow("a.example.com")
        assert len(application.questions) == 1
        subject.done("a.example.com")
        assert await subject.decide("a.example.com", CLIENT) == Allow("a.example.com")
        assert len(application.questions) == 2

    driving(application, run)


def test_a_yes_that_nobody_waited_for_is_not_kept() -> None:
    application = Application(yes)
    application.gate.clear()

    async def run(subject: OnDemand) -> None:
        waiting = asyncio.create_task(subject.decide("a.example.com", CLIENT))
        while not application.questions:
            await asyncio.sleep(0)
        waiting.cancel()
        application.gate.set()
        while "0 asking" not in repr(subject):
            await asyncio.sleep(0.001)
        assert repr(subject) == "<OnDemand 0 asking, 0 allowed>"

    driving(application, run)


def test_a_no_is_told_with_the_words_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tlsproxy")
    application = Application(lambda host: Answer(403, "not your customer"))

    async def run(subject: OnDemand) -> None:
        for _ in range(3):
            decision = await subject.decide("a.example.com", CLIENT)
            assert decision == Refuse("a.example.com", "not allowed, status 403", NOW + REFUSED_FOR)

    driving(application, run)
    assert len(application.questions) == 1
    (record,) = caplog.records
    told = {key: vars(record)[key] for key in ("host", "client", "reason", "answer")}
    assert told == {
        "host": "a.example.com",
        "client": CLIENT,
        "reason": "not allowed, status 403",
        "answer": "not your customer",
    }


def test_an_application_that_is_down_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    application = Application(lambda host: Answer(None, "Connection refused"))

    async def run(subject: OnDemand) -> None:
        for number in range(5):
            assert isinstance(await subject.decide(f"a{number}.example.com", CLIENT), Refuse)

    driving(application, run)
    assert [record.getMessage() for record in caplog.records] == ["on_demand.ask_failed"]


def test_the_queue_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ondemand, "WAITING", 3)
    application = Application(yes)
    application.gate.clear()

    async def run(subject: OnDemand) -> None:
        waiting = [asyncio.create_task(subject.decide(f"a{n}.example.com", CLIENT)) for n in range(4)]
        refused = await waiting[3]
        assert refused == Refuse("a3.example.com", "too many new names at once, try again in a moment", NOW)
        application.gate.set()
        assert [type(each) for each in await asyncio.gather(*waiting)] == [Allow, Allow, Allow, Refuse]

    driving(application, run)


def test_orders_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ondemand, "PENDING", 2)

    async def run(subject: OnDemand) -> None:
        kinds: list[type[Decision]] = [type(await subject.decide(f"a{n}.example.com", CLIENT)) for n in range(3)]
        assert kinds == [Allow, Allow, Refuse]
        subject.done("a0.example.com")
        assert isinstance(await subject.decide("a3.example.com", CLIENT), Allow)

    driving(Application(yes), run)


def test_only_a_few_are_asked_at_once() -> None:
    application = Application(yes)
    application.gate.clear()

    async def run(subject: OnDemand) -> None:
        waiting = [asyncio.create_task(subject.decide(f"a{n}.example.com", CLIENT)) for n in range(20)]
        while len(application.questions) < ondemand.PARALLEL:
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(application.questions) == ondemand.PARALLEL
        application.gate.set()
        await asyncio.gather(*waiting)

    driving(application, run)
    assert len(application.questions) == 20


# --- from the settings


def test_it_is_made_of_the_settings() -> None:
    sites = [
        {"hosts": ["*.shop.example.com"], "certificate": "on_demand", "backends": ["unix:/run/app.sock"]},
        {"hosts": ["www.example.com"], "backends": ["b:1"]},
    ]
    settings = Settings.model_validate({"sites": sites, "on_demand": {"ask": "/ask", "per_client": "1/1h"}})

    async def run() -> list[Decision]:
        subject = OnDemand.make(settings.on_demand, settings.sites, now=lambda: NOW)
        assert subject is not None
        hosts = ("www.example.com", "a.shop.example.com", "b.shop.example.com")
        decisions = [await subject.decide(host, CLIENT) for host in hosts]
        await subject.close()
        return decisions

    assert [decision.reason for decision in asyncio.run(run()) if isinstance(decision, Refuse)] == [
        "no on-demand site has this host",
        "nobody could be asked: No such file or directory",
        "192.0.2.0/24 has asked for too many new names; the next in 3600 s",
    ]
    assert OnDemand.make(settings.on_demand, settings.sites[1:]) is None


@pytest.mark.parametrize(
    ("host", "is_suffix"), [("com", True), ("co.uk", True), ("a.com", False), ("b.a.co.uk", False)]
)
def test_what_others_register_names_below_is_nobodys(host: str, is_suffix: bool) -> None:
    assert is_public_suffix(host) is is_suffix
