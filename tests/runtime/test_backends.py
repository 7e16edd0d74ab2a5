"""Draining, resuming and pausing: what operators get to hear, what workers go by, what is left after a restart."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.herd import BLUE, GREEN, RED, Herd, House, made_store, settings, site, warnings
from tlsproxy.runtime import backends
from tlsproxy.runtime.adminhttp import Refusal
from tlsproxy.runtime.control import decode, encode
from tlsproxy.runtime.messages import BackendPlan, TakeOver
from tlsproxy.runtime.planfile import PlanFile
from tlsproxy.settings import Settings
from tlsproxy.store import directory
from tlsproxy.store.directory import open_lock


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return made_store(tmp_path / "store")


def act(house: House, verb: str, name: str = "", **options: str) -> Any:
    return asyncio.run(house.operators.act(verb, name, options))


@contextmanager
def closed(descriptor: int) -> Iterator[None]:
    """Until the end of the block it is open."""
    try:
        yield
    finally:
        os.close(descriptor)


class TestDrain:
    def test_all_workers_of_all_generations_hear_of_it(self, store: Path) -> None:
        house = House(settings(store, site(BLUE, GREEN)), Herd(), Herd())
        assert act(house, "drain", BLUE) == {"url": BLUE, "state": "draining", "warnings": []}
        assert [herd.plan.drained for herd in house.herds] == [(BLUE,), (BLUE,)]
        act(house, "resume", BLUE)
        assert [herd.plan.drained for herd in house.herds] == [(), ()]

    def test_it_is_kept_when_the_command_ends(self, store: Path) -> None:
        configuration = settings(store, site(BLUE, GREEN))
        act(House(configuration), "drain", BLUE)
        assert House(configuration).backends.plan.drained == (BLUE,)

    def test_a_url_is_known_by_its_meaning(self, store: Path) -> None:
        house = House(settings(store, site(BLUE, GREEN)))
        assert act(house, "drain", "10.0.0.1:80")["url"] == BLUE

    def test_the_last_one_of_a_route_is_drained_with_a_warning(self, store: Path) -> None:
        house = House(settings(store, site(BLUE, GREEN)))
        act(house, "drain", BLUE)
        assert "a.test / has no other backend" in warnings(act(house, "drain", GREEN))[0]

    @pytest.mark.parametrize(("name", "status"), [(RED, 404), ("ftp://a", 400), ("", 400)])
    def test_one_that_is_none_is_refused_and_nothing_changes(self, name: str, status: int, store: Path) -> None:
        house = House(settings(store))
        with pytest.raises(Refusal) as refusal:
            act(house, "drain", name)
        assert refusal.value.status == status
        assert house.herds[0].plans == []

    def test_a_state_that_cannot_be_kept_does_not_keep_anybody_from_draining(self) -> None:
        house = House(settings("memory:", site(BLUE, GREEN)))
        assert "will not survive a restart" in warnings(act(house, "drain", BLUE))[0]
        assert house.herds[0].plan.drained == (BLUE,)

    @pytest.mark.parametrize("verb", ["drain", "pause"])
    def test_nobody_waits_for_a_store_that_another_process_writes(
        self, verb: str, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It holds at once, who asked hears that it is not kept yet, and it is kept as soon as that can be."""
        monkeypatch.setattr(backends, "SAVE_LIMIT", 0.05)
        configuration = settings(store, site(BLUE, GREEN))
        house = House(configuration)

        async def main() -> Any:
            with closed(open_lock(store)):
                asked = asyncio.create_task(house.operators.act(verb, BLUE if verb == "drain" else "a.test", {}))
                while not house.herds[0].plans:
                    await asyncio.sleep(0)
                assert not asked.done()
                answer = await asked
            await asyncio.gather(*house.backends._tasks)
            return answer

        assert "would not survive a restart of the proxy yet" in warnings(asyncio.run(main()))[0]
        assert house.herds[0].plan == House(configuration).backends.plan
        assert house.herds[0].plan != BackendPlan(key=house.backends.plan.key)

    def test_a_save_that_is_late_and_fails_then_is_in_the_log(
        self, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(backends, "SAVE_LIMIT", 0.05)
        monkeypatch.setattr(directory, "_LOCK_TIMEOUT", 0.2)
        house = House(settings(store, site(BLUE, GREEN)))

        async def main() -> None:
            with closed(open_lock(store)):
                await house.operators.act("drain", BLUE, {})
                await asyncio.gather(*house.backends._tasks)

        asyncio.run(main())
        assert [record.message for record in caplog.records] == ["backends.state_not_kept"] * 2
        assert "another process has been writing" in vars(caplog.records[1])["error"]

    def test_two_operators_at_once_both_get_what_they_want(self, store: Path) -> None:
        configuration = settings(store, site(BLUE, GREEN, RED))
        house = House(configuration)

        async def both() -> None:
            await asyncio.gather(*(house.operators.act("drain", url, {}) for url in (BLUE, GREEN, RED)))

        asyncio.run(both())
        assert set(house.herds[0].plan.drained) == {BLUE, GREEN, RED}
        assert set(House(configuration).backends.plan.drained) == {BLUE, GREEN, RED}


class TestPause:
    def test_a_site_is_paused_by_any_of_its_hosts_until_a_time(self, store: Path) -> None:
        house = House(settings(store))
        before = time.time()
        answer = act(house, "pause", "B.test", **{"for": "20s"})
        assert (answer["site"], answer["paused_for"]) == ("a.test", 20.0)
        assert before + 20 <= house.herds[0].plan.paused["a.test"] <= time.time() + 20
        assert 19 < act(house, "sites")[0]["paused_for"] <= 20
        assert act(house, "unpause", "b.test")["was_paused"] is True
        assert house.herds[0].plan.paused == {}
        assert act(house, "unpause", "a.test")["was_paused"] is False

    def test_a_pause_that_has_ended_by_itself_is_none(self, store: Path) -> None:
        house = House(settings(store))
        act(house, "pause", "a.test", **{"for": "0.001s"})
        time.sleep(0.002)
        assert act(house, "unpause", "a.test")["was_paused"] is False

    @pytest.mark.parametrize(
        ("host", "options", "status"),
        [
            ("c.test", {}, 404),
            ("a.test", {"for": "soon"}, 400),
            ("a.test", {"for": "0"}, 400),
            ("a.test", {"for": "2d"}, 400),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, host: str, options: Mapping[str, str], status: int, store: Path
    ) -> None:
        with pytest.raises(Refusal) as refusal:
            act(House(settings(store)), "pause", host, **options)
        assert refusal.value.status == status


class TestLists:
    def test_backends_are_those_of_routes_and_those_that_have_requests(self, store: Path) -> None:
        house = House(settings(store, site(BLUE, GREEN)))
        house.herds[0].active = {BLUE: 3, RED: 1}
        rows = {row["url"]: (row["state"], row["active"]) for row in act(house, "backends")}
        assert rows == {BLUE: ("up", 3), GREEN: ("unknown", 0), RED: ("draining", 1)}

    def test_sites_with_their_routes(self, store: Path) -> None:
        house = House(settings(store))
        assert act(house, "sites") == [
            {
                "site": "a.test",
                "hosts": ["a.test", "b.test"],
                "paused_for": 0.0,
                "routes": [{"path": "/", "backends": [BLUE], "swapped": False}],
            }
        ]


class TestGenerations:
    def reload(self, house: House, configuration: Any) -> None:
        async def main() -> None:
            move = await house.backends.prepare(configuration)
            await move.commit()

        asyncio.run(main())

    def test_a_configuration_that_is_not_served_yet_changes_nothing(self, store: Path) -> None:
        house = House(settings(store, site(BLUE, GREEN)))
        act(house, "drain", GREEN)
        assert house.backends.plan_for(settings(store, site(BLUE))).drained == ()
        assert house.backends.plan.drained == (GREEN,)

    def test_what_does_not_fit_is_dropped_when_it_is_served_and_said(
        self, store: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        house = House(settings(store, site(BLUE, GREEN)), Herd(), Herd())
        act(house, "drain", GREEN)
        self.reload(house, settings(store, site(BLUE)))
        serving, draining = house.herds
        assert (serving.plan.drained, draining.plan.drained) == ((), (GREEN,))  # who leaves has its old routes
        assert caplog.records[-1].message == "backends.state_dropped"

    def test_the_key_of_cookies_survives_a_restart_if_there_are_cookies(self, store: Path) -> None:
        sticky = settings(store, site(sticky="server"))
        house = House(sticky)
        asyncio.run(house.backends.keep())
        assert len(house.backends.plan.key) == 64
        assert House(sticky).backends.plan.key == house.backends.plan.key

    def test_without_them_nothing_is_written_before_anything_was_said(self, store: Path) -> None:
        house = House(settings(store))
        asyncio.run(house.backends.keep())
        assert not (store / "plan").exists()

    def test_a_store_that_is_elsewhere_now_gets_what_was_said(self, store: Path, tmp_path: Path) -> None:
        house = House(settings(store, site(BLUE, GREEN)))
        act(house, "drain", GREEN)
        elsewhere = settings(made_store(tmp_path / "other"), site(BLUE, GREEN))

        async def main() -> None:
            await (await house.backends.prepare(elsewhere)).commit()
            await asyncio.gather(*house.backends._tasks)

        asyncio.run(main())
        assert House(elsewhere).backends.plan.drained == (GREEN,)

    def test_what_was_dropped_at_the_start_is_said_once(self, store: Path, caplog: pytest.LogCaptureFixture) -> None:
        act(House(settings(store, site(BLUE, GREEN))), "drain", GREEN)
        asyncio.run(House(settings(store)).backends.keep())
        assert len(caplog.records) == 1
        House(settings(store))
        assert len(caplog.records) == 1

    def test_another_supervisors_plan_is_taken_over(self, store: Path) -> None:
        house = House(settings("memory:", site(BLUE, GREEN)))
        plan = BackendPlan(drained=(BLUE,), key="ab")
        house.backends.adopt(plan)
        assert house.backends.plan == plan

    def upgraded(self, house: House, configuration: Settings, *forgotten: str) -> House:
        """The next supervisor, told twice of the plan; an older version says nothing of what is `forgotten`."""
        after = House(configuration)
        message = json.loads(encode(TakeOver(house.backends.plan)))
        for name in forgotten:
            del message["plan"][name]
        word = decode(json.dumps(message).encode())
        assert isinstance(word, TakeOver)
        after.backends.adopt(word.plan)
        after.backends.adopt(word.plan)
        return after

    def swapped(self, store: Path | str) -> House:
        house = House(settings(store))

        async def main() -> None:
            await (await house.swap(GREEN)).wait()

        asyncio.run(main())
        return house

    @pytest.mark.parametrize("forgotten", [(), ("instead_of",)])
    @pytest.mark.parametrize("is_kept", [False, True])
    def test_a_swap_holds_over_an_upgrade_until_the_configuration_names_others(
        self, is_kept: bool, forgotten: Sequence[str], store: Path
    ) -> None:
        place = store if is_kept else "memory:"
        house = self.upgraded(self.swapped(place), settings(place), *forgotten)
        assert house.backends.plan.swapped == {"a.test /": (GREEN,)}
        self.reload(house, settings(place, site(RED)))
        assert house.herds[0].plan.swapped == {}

    @pytest.mark.parametrize(("is_kept", "forgotten"), [(False, ()), (True, ()), (True, ("instead_of",))])
    def test_an_upgrade_to_a_configuration_that_names_others_ends_a_swap_and_says_so_once(
        self, is_kept: bool, forgotten: Sequence[str], store: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        place = store if is_kept else "memory:"
        before = self.swapped(place)
        caplog.clear()
        after = self.upgraded(before, settings(place, site(RED)), *forgotten)
        assert after.backends.plan.swapped == {}
        assert [record.message for record in caplog.records] == ["backends.state_dropped"]

    def test_what_a_newer_version_says_besides_is_passed_over(self) -> None:
        """Back again to an older version: a plan with more in it than it knows is still one."""
        assert decode(b'{"type":"TakeOver","plan":{"key":"ab","tomorrow":{"a":["b"]}}}') == TakeOver(
            BackendPlan(key="ab")
        )

    def test_a_state_that_cannot_be_read_is_none(self, store: Path) -> None:
        configuration = settings(store)
        act(House(configuration), "pause", "a.test")
        path = PlanFile(configuration.store.url).path
        assert path is not None
        path.write_bytes(b"{")
        assert House(configuration).backends.plan.paused == {}
