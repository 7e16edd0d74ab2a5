"""Other backends for a route: first all of them are well, then new requests go there, then the old ones have none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.herd import BLUE, GREEN, RED, Herd, House, made_store, settings, site, told
from tlsproxy.runtime import swaps
from tlsproxy.runtime.adminhttp import Refusal
from tlsproxy.runtime.messages import AdminResult, Probed

ROUTE = "a.test /"
HEALTH = {"path": "/up", "passes": 2, "timeout": "1s"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swaps, "PROBE_APART", 0.005)
    monkeypatch.setattr(swaps, "LOOK_APART", 0.005)
    monkeypatch.setattr(swaps, "PROBE_GRACE", 0.02)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return made_store(tmp_path / "store")


def swap(house: House, *to: str, **options: str) -> tuple[list[str], AdminResult]:
    async def main() -> tuple[list[str], AdminResult]:
        return await told(await house.swap(*to, **options))

    return asyncio.run(main())


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


class TestGate:
    def test_the_route_has_the_new_ones_when_all_are_well(self, store: Path) -> None:
        house = House(settings(store))
        steps, result = swap(house, GREEN, RED)
        assert (result.status, result.body["backends"], result.body["before"]) == (200, [GREEN, RED], [BLUE])
        assert house.herds[0].plan.swapped == {ROUTE: (GREEN, RED)}
        assert [step.partition(":")[0] for step in steps] == ["check", "switch", "drain"]
        assert (house.probes[0].route, house.probes[0].backends) == (ROUTE, (GREEN, RED))

    def test_they_are_asked_until_they_are_well(self, store: Path) -> None:
        house = House(settings(store))
        house.faults = [{GREEN: "refused"}, {GREEN: "refused"}, {GREEN: "503"}, {}]
        steps, result = swap(house, GREEN, timeout="5s")
        assert result.status == 200
        assert [step for step in steps if step.startswith("wait")] == [f"wait: {GREEN}: refused", f"wait: {GREEN}: 503"]

    def test_nothing_changes_when_one_of_them_never_is_and_each_reason_is_told(self, store: Path) -> None:
        house = House(settings(store))
        house.faults = [{RED: "cannot connect (Connection refused)"}]
        _, result = swap(house, GREEN, RED)
        assert result.status == 502
        assert "Nothing was changed" in result.body["error"]
        assert f"{RED}: cannot connect (Connection refused)" in result.body["error"]
        assert GREEN not in result.body["error"].partition("changed.")[2]
        assert house.herds[0].plans == []
        assert not (store / "plan").exists()

    def test_as_many_times_in_a_row_as_the_health_check_says(self, store: Path) -> None:
        house = House(settings(store, site(health=HEALTH)))
        house.faults = [{}, {GREEN: "503"}, {}, {}]
        assert swap(house, GREEN, timeout="5s")[1].status == 200
        assert len(house.probes) == 4

    def test_a_worker_that_dies_while_it_is_asked_is_not_waited_for(self, store: Path) -> None:
        house = House(settings(store))
        house.faults = [None, {}]
        steps, result = swap(house, GREEN, timeout="5s")
        assert result.status == 200
        assert "has not answered" in steps[1]

    def test_without_any_worker_it_is_tried_until_the_time_is_up(self, store: Path) -> None:
        house = House(settings(store))
        house.operators._swaps._ask_worker = lambda _: False
        assert "no worker was there" in swap(house, GREEN)[1].body["error"]

    def test_an_answer_that_nobody_waits_for_changes_nothing(self, store: Path) -> None:
        house = House(settings(store))
        house.operators.probed(Probed(99, {GREEN: ""}))
        house.faults = [{GREEN: "503"}]
        assert swap(house, GREEN)[1].status == 502

    def test_a_reload_that_takes_the_route_away_ends_it(self, store: Path) -> None:
        house = House(settings(store))
        house.on_probe = lambda: house.backends.settle(settings(store, site(hosts=["c.test"])))
        _, result = swap(house, GREEN)
        assert result.status == 409
        assert "configuration was changed" in result.body["error"]

    def test_one_that_is_drained_while_it_is_asked_gets_no_route(self, store: Path) -> None:
        house = House(settings(store, site(BLUE, GREEN)))
        house.faults = [{GREEN: "503"}, {}]

        async def main() -> AdminResult:
            call = await house.swap(GREEN, timeout="5s")
            await house.operators.act("drain", GREEN, {})
            return await call.wait()

        result = run(main)
        assert result.status == 409
        assert f"{GREEN} was drained meanwhile" in result.body["error"]
        assert house.backends.plan.swapped == {}


class TestSwitch:
    def test_it_survives_a_restart(self, store: Path) -> None:
        swap(House(settings(store)), GREEN)
        assert House(settings(store)).backends.plan.swapped == {ROUTE: (GREEN,)}
        assert House(settings(store, site(RED))).backends.plan.swapped == {}

    def test_the_configured_ones_are_the_end_of_it(self, store: Path) -> None:
        house = House(settings(store))
        swap(house, GREEN)
        swap(house, BLUE)
        assert house.backends.plan.swapped == {}

    def test_to_what_it_has_is_checked_and_nothing_else(self, store: Path) -> None:
        house = House(settings(store))
        steps, result = swap(house, BLUE)
        assert result.status == 200
        assert [step.partition(":")[0] for step in steps] == ["check", "switch"]


class TestOldOnes:
    def test_it_ends_when_they_have_no_request(self, store: Path) -> None:
        house = House(settings(store), Herd(), Herd())
        serving, draining = house.herds
        serving.active, draining.active = {BLUE: 2}, {BLUE: 1}

        async def main() -> AdminResult:
            call = await house.swap(GREEN, drain="5s")
            while serving.looks < 3:
                await asyncio.sleep(0)
            serving.active = {BLUE: 0}
            assert call.result is None
            draining.active = {}
            return await call.wait()

        result = run(main)
        assert (result.status, result.body["warnings"]) == (200, [])

    def test_what_takes_longer_goes_on_and_is_said(self, store: Path) -> None:
        house = House(settings(store))
        house.herds[0].active = {BLUE: 2}
        _, result = swap(house, GREEN)
        assert result.status == 200
        assert result.body["warnings"] == ["requests still under way at the old backends: 2. They go on."]

    def test_a_worker_that_says_nothing_is_no_proof(self, store: Path) -> None:
        house = House(settings(store), Herd(silent=True))
        assert "not known" in swap(house, GREEN)[1].body["warnings"][0]

    def test_one_that_another_route_has_too_is_not_waited_for(self, store: Path) -> None:
        routes = [{"path": "/", "backends": [BLUE]}, {"path": "/api", "backends": [BLUE]}]
        house = House(settings(store, {"hosts": ["b.test"], "routes": routes}))
        house.herds[0].active = {BLUE: 2}
        steps, result = swap(house, GREEN, path="/api")
        assert (result.body["route"], result.body["warnings"]) == ("b.test /api", [])
        assert house.herds[0].looks == 0
        assert "drain" not in steps[-1]


class TestOperators:
    def test_who_asks_for_the_same_follows_it(self, store: Path) -> None:
        house = House(settings(store))
        house.faults = [{GREEN: "503"}]

        async def main() -> bool:
            first, second = await house.swap(GREEN), await house.swap(GREEN)
            await first.wait()
            return first is second

        assert run(main)

    def test_who_asks_for_something_else_is_told_what_is_under_way(self, store: Path) -> None:
        house = House(settings(store))
        house.faults = [{GREEN: "503"}]

        async def main() -> None:
            call = await house.swap(GREEN)
            with pytest.raises(Refusal, match=rf"another swap of {ROUTE} is under way, to {GREEN}") as refusal:
                await house.swap(RED)
            assert refusal.value.status == 409
            await call.wait()
            house.faults = [{}]
            assert (await (await house.swap(RED)).wait()).status == 200

        run(main)

    def test_swaps_of_two_routes_don_t_undo_each_other(self, store: Path) -> None:
        routes = [{"path": "/", "backends": [BLUE]}, {"path": "/api", "backends": [BLUE]}]
        house = House(settings(store, {"hosts": ["b.test"], "routes": routes}))

        async def main() -> None:
            calls = [await house.swap(GREEN), await house.swap(RED, path="/api")]
            assert [(await call.wait()).status for call in calls] == [200, 200]

        run(main)
        assert house.herds[0].plan.swapped == {"b.test /": (GREEN,), "b.test /api": (RED,)}

    def test_the_end_of_the_proxy_is_the_end_of_it(self, store: Path) -> None:
        house = House(settings(store))
        house.faults = [None]

        async def main() -> AdminResult:
            call = await house.swap(GREEN)
            await asyncio.sleep(0)
            await house.operators.close()
            return await call.wait()

        assert run(main).status == 503
        assert house.herds[0].plans == []

    @pytest.mark.parametrize(
        ("options", "status"),
        [
            ({"site": "c.test"}, 404),
            ({"site": ""}, 400),
            ({"to": ""}, 400),
            ({"to": "https://a"}, 400),
            ({"to": ","}, 400),
            ({"path": "/none"}, 404),
            ({"path": "none"}, 400),
            ({"timeout": "0"}, 400),
            ({"timeout": "2h"}, 400),
            ({"drain": "x"}, 400),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, options: dict[str, str], status: int, store: Path) -> None:
        house = House(settings(store))

        async def main() -> None:
            with pytest.raises(Refusal) as refusal:
                await house.operators.act("swap", "", {"site": "a.test", "to": GREEN, **options})
            assert refusal.value.status == status

        run(main)

    def test_one_that_is_drained_would_get_nothing(self, store: Path) -> None:
        house = House(settings(store, site(BLUE, GREEN)))

        async def main() -> None:
            await house.operators.act("drain", GREEN, {})
            with pytest.raises(Refusal, match="Resume it first"):
                await house.swap(GREEN)

        run(main)
