"""Who waits for which certificate: one question per host, limits for everything that a stranger can make grow."""

from __future__ import annotations

import pytest

from tests.fakes.clock import Clock
from tlsproxy.proxy.choice import TOO_MANY_WAIT, Refused
from tlsproxy.proxy.waiting import LONGEST_WAIT, WaitingRoom


class Client:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def certificate_ready(self) -> None:
        self.told.append("ready")

    def certificate_refused(self, refused: Refused) -> None:
        self.told.append(refused.reason)


class Scene:
    def __init__(self, *, total: int = 100, per_network: int = 10) -> None:
        self.clock = Clock()
        self.wanted: list[tuple[str, str]] = []
        self.room = WaitingRoom(
            lambda host, client: self.wanted.append((host, client)),
            total=total,
            per_network=per_network,
            clock=self.clock,
        )

    def wait(self, host: str = "a.test", client: str = "192.0.2.1") -> Client | None:
        """Let a client come; None if it is turned away."""
        waiter = Client()
        return waiter if self.room.join(host, waiter, client) is None else None


def came(client: Client | None) -> Client:
    assert client is not None
    return client


class TestQuestions:
    def test_one_for_all_who_wait_for_a_host(self) -> None:
        scene = Scene()
        for number in range(3):
            came(scene.wait(client=f"192.0.2.{number}"))
        came(scene.wait("b.test"))
        assert scene.wanted == [("a.test", "192.0.2.0"), ("b.test", "192.0.2.1")]

    def test_who_leaves_and_comes_back_asks_nothing_new(self) -> None:
        scene = Scene()
        for _ in range(5):
            scene.room.leave("a.test", came(scene.wait()))
        assert len(scene.wanted) == 1

    def test_a_question_without_an_answer_is_asked_again_after_the_longest_wait(self) -> None:
        """The certifier may have died with it."""
        scene = Scene()
        came(scene.wait())
        scene.clock.now += LONGEST_WAIT
        came(scene.wait())
        assert len(scene.wanted) == 2

    def test_a_new_certifier_is_asked_what_the_earlier_one_was(self) -> None:
        scene = Scene()
        came(scene.wait())
        scene.room.leave("b.test", came(scene.wait("b.test", "192.0.2.2")))
        scene.wanted.clear()
        scene.clock.now += LONGEST_WAIT - 1
        scene.room.ask_again()
        assert scene.wanted == [("a.test", "192.0.2.1")]
        scene.clock.now += LONGEST_WAIT - 1
        came(scene.wait(client="192.0.2.3"))
        came(scene.wait("b.test", "192.0.2.3"))  # nobody waited for it any more: it is asked for when somebody does
        assert scene.wanted[1:] == [("b.test", "192.0.2.3")]

    def test_an_answer_ends_it(self) -> None:
        scene = Scene()
        came(scene.wait())
        scene.room.settle("a.test")
        came(scene.wait())
        assert len(scene.wanted) == 2

    def test_names_without_end_are_asked_for_at_a_limited_rate(self) -> None:
        scene = Scene(total=1000)
        for number in range(300):
            scene.wait(f"n{number}.test", f"192.0.{number % 200}.1")
        assert len(scene.wanted) == 100
        assert not scene.room.remind("z.test", "198.51.100.1")  # what needs no answer counts too
        scene.clock.now += 1
        for number in range(300):
            scene.wait(f"m{number}.test", f"192.0.{number % 200}.1")
        assert len(scene.wanted) == 120

    @pytest.mark.parametrize("how", ["join", "remind"])
    def test_one_network_does_not_use_up_what_there_is_for_all(self, how: str) -> None:
        scene = Scene()

        def ask(count: int) -> int:
            before = len(scene.wanted)
            for number in range(count):
                host, client = f"n{len(scene.wanted)}.test", f"192.0.2.{number % 7}"
                if how == "remind":
                    scene.room.remind(host, client)
                elif (waiter := scene.wait(host, client)) is not None:
                    scene.room.leave(host, waiter)
            return len(scene.wanted) - before

        assert ask(200) == 10
        scene.clock.now += 1
        assert ask(200) == 5
        came(scene.wait("z.test", "198.51.100.1"))
        assert scene.room.remind("y.test", "198.51.100.1")
        assert scene.wanted[15:] == [("z.test", "198.51.100.1"), ("y.test", "198.51.100.1")]

    def test_networks_are_told_apart_in_bounds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tlsproxy.proxy.waiting._NETWORKS", 3)
        scene = Scene()
        for number in range(9):
            for _ in range(11):
                scene.room.remind("a.test", "192.0.2.1")  # is never the one that has not come for longest
                scene.room.remind("a.test", f"198.51.{number}.1")
            assert len(scene.room._shares) == min(number + 2, 3)
        assert [client for _, client in scene.wanted].count("192.0.2.1") == 10

    def test_old_questions_are_forgotten(self) -> None:
        scene = Scene()
        for number in range(50):
            host = f"n{number}.test"
            scene.room.leave(host, came(scene.wait(host, f"192.0.{number}.1")))
        scene.clock.now += LONGEST_WAIT
        came(scene.wait("new.test"))
        assert list(scene.room._questions) == ["new.test"]


class TestAnswers:
    def test_ready_goes_to_those_who_wait_for_the_host(self) -> None:
        scene = Scene()
        first, second, other = came(scene.wait()), came(scene.wait()), came(scene.wait("b.test"))
        scene.room.settle("a.test")
        assert (first.told, second.told, other.told) == (["ready"], ["ready"], [])
        assert (len(scene.room), scene.room.hosts()) == (1, ["b.test"])

    def test_nobody_is_told_twice_or_after_leaving(self) -> None:
        scene = Scene()
        stays, leaves = came(scene.wait()), came(scene.wait())
        scene.room.leave("a.test", leaves)
        scene.room.leave("a.test", leaves)
        scene.room.settle("a.test")
        scene.room.settle("a.test")
        assert (stays.told, leaves.told, len(scene.room)) == (["ready"], [], 0)

    def test_a_host_that_nobody_waits_for_is_no_news(self) -> None:
        scene = Scene()
        scene.room.settle("a.test")
        assert repr(scene.room) == "<WaitingRoom 0 wait for 0 hosts, 0 refused>"

    def test_no_goes_to_all_and_holds_for_a_while(self) -> None:
        scene = Scene()
        client = came(scene.wait())
        scene.room.refuse("a.test", "the application said no", 30)
        assert client.told == ["no certificate: the application said no"]
        refused = scene.room.refusal("a.test")
        assert refused is not None
        assert refused.reason == "no certificate: the application said no"
        scene.clock.now += 30
        assert scene.room.refusal("a.test") is None

    def test_a_certificate_ends_a_refusal(self) -> None:
        scene = Scene()
        scene.room.refuse("a.test", "no", 1000)
        scene.room.settle("a.test")
        assert scene.room.refusal("a.test") is None

    def test_no_refusal_is_for_ever(self) -> None:
        scene = Scene()
        scene.room.refuse("a.test", "no", float("inf"))
        scene.clock.now += 86_400
        assert scene.room.refusal("a.test") is None

    def test_refusals_are_remembered_in_bounds_the_oldest_is_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tlsproxy.proxy.waiting._MOST_REFUSED", 3)
        scene = Scene()
        for host in ("a", "b", "c", "a", "d"):
            scene.room.refuse(host, "no", 1000)
        assert [host for host in "abcd" if scene.room.refusal(host)] == ["a", "c", "d"]


class TestLimits:
    def test_in_all(self) -> None:
        scene = Scene(total=2)
        first = came(scene.wait(client="192.0.2.1"))
        came(scene.wait(client="198.51.100.1"))
        assert scene.room.join("a.test", Client(), "203.0.113.1") is TOO_MANY_WAIT
        scene.room.leave("a.test", first)
        came(scene.wait(client="203.0.113.1"))

    @pytest.mark.parametrize(
        ("neighbours", "stranger"),
        [
            (("192.0.2.1", "192.0.2.77"), "192.0.3.1"),
            (("2001:db8::1", "2001:db8::ffff:0:1"), "2001:db8:0:1::1"),
            (("fe80::1%eth0", "fe80::2"), "fe80:0:0:1::1"),
            (("", ""), "192.0.2.1"),
        ],
    )
    def test_per_network(self, neighbours: tuple[str, str], stranger: str) -> None:
        scene = Scene(per_network=2)
        clients = [came(scene.wait(client=client)) for client in neighbours]
        assert scene.wait(client=neighbours[0]) is None
        came(scene.wait(client=stranger))
        scene.room.leave("a.test", clients[1])
        came(scene.wait(client=neighbours[0]))

    @pytest.mark.parametrize("ending", ["leave", "settle", "refuse"])
    def test_every_ending_gives_the_place_back(self, ending: str) -> None:
        scene = Scene(total=1)
        client = came(scene.wait())
        match ending:
            case "leave":
                scene.room.leave("a.test", client)
            case "settle":
                scene.room.settle("a.test")
            case _:
                scene.room.refuse("a.test", "no", 1)
        assert len(scene.room) == 0
        came(scene.wait("b.test"))
