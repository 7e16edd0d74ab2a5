"""What operators have said, as a value: how it changes, and what of it holds for another configuration."""

from __future__ import annotations

from dataclasses import replace

from tlsproxy.runtime import plans
from tlsproxy.runtime.messages import BackendPlan
from tlsproxy.settings import Site

BLUE, GREEN, RED = "http://10.0.0.1:80", "http://10.0.0.2:80", "http://10.0.0.3:80"
ROUTE = "a.test /"


def sites(*backends: str, host: str = "a.test", path: str = "/") -> list[Site]:
    return [Site.model_validate({"hosts": [host, "b.test"], "routes": [{"path": path, "backends": list(backends)}]})]


def swapped(*backends: str, configured: str = BLUE) -> BackendPlan:
    return plans.swapped(BackendPlan(), plans.configured(sites(configured)), ROUTE, backends)


class TestChanges:
    def test_a_swap_is_what_the_route_has_now(self) -> None:
        state = swapped(GREEN, RED)
        assert plans.in_use(plans.configured(sites(BLUE)), state) == {ROUTE: (GREEN, RED)}
        assert state.instead_of == {ROUTE: (BLUE,)}

    def test_a_swap_to_the_configured_ones_is_the_end_of_it(self) -> None:
        routes = plans.configured(sites(BLUE, RED))
        state = plans.swapped(BackendPlan(), routes, ROUTE, [GREEN])
        assert plans.swapped(state, routes, ROUTE, [RED, BLUE]) == BackendPlan()

    def test_drained_twice_is_drained(self) -> None:
        plan = plans.drained(plans.drained(BackendPlan(), BLUE), BLUE)
        assert plan.drained == (BLUE,)
        assert plans.resumed(plan, BLUE) == plans.resumed(plans.resumed(plan, BLUE), BLUE) == BackendPlan()

    def test_a_route_of_which_all_are_drained_is_known(self) -> None:
        routes = plans.configured(sites(BLUE, RED))
        assert plans.without_others(routes, BackendPlan(drained=(BLUE,))) == []
        assert plans.without_others(routes, BackendPlan(drained=(BLUE, RED))) == [ROUTE]


class TestFit:
    def fit(self, state: BackendPlan, configured: list[Site], now: float = 1000.0) -> tuple[BackendPlan, list[str]]:
        fitted, dropped = plans.fit(state, configured, now)
        assert set(fitted.instead_of) == set(fitted.swapped)
        return fitted, dropped

    def test_what_fits_stays(self) -> None:
        swap = swapped(GREEN, RED)
        plan = replace(swap, drained=(GREEN,), paused={"a.test": 1001.0}, key="00")
        assert self.fit(plan, sites(BLUE)) == (plan, [])

    def test_a_swap_holds_until_the_configuration_names_other_backends(self) -> None:
        plan, dropped = self.fit(swapped(GREEN), sites(RED))
        assert plan.swapped == {}
        assert dropped == [f"swap of {ROUTE}: the configuration was changed since then, and names {RED}"]

    def test_a_swap_that_the_configuration_has_caught_up_with_ends_without_a_word(self) -> None:
        assert self.fit(swapped(GREEN), sites(GREEN)) == (BackendPlan(), [])

    def test_a_swap_of_which_nobody_knows_what_it_replaced_stays_until_the_next_change(self) -> None:
        plan, dropped = self.fit(BackendPlan(swapped={ROUTE: (GREEN,)}), sites(RED))
        assert (plan.swapped, plan.instead_of, dropped) == ({ROUTE: (GREEN,)}, {ROUTE: (RED,)}, [])
        assert self.fit(plan, sites(BLUE))[0].swapped == {}

    def test_a_route_that_is_gone_takes_its_swap_along(self) -> None:
        plan, dropped = self.fit(swapped(GREEN), sites(BLUE, path="/api"))
        assert (plan.swapped, dropped) == ({}, [f"swap of {ROUTE}: there is no such route any more"])

    def test_a_drained_backend_that_no_route_names_is_forgotten(self) -> None:
        """Also one that only a swap named that is over: when it comes again, it is a new one."""
        state = BackendPlan(drained=(GREEN, BLUE), swapped={ROUTE: (GREEN,)}, instead_of={ROUTE: (BLUE,)})
        plan, dropped = self.fit(state, sites(RED))
        assert plan.drained == ()
        assert dropped[1:] == [f"drain of {url}: no route names it any more" for url in (GREEN, BLUE)]

    def test_a_pause_ends_with_its_time_and_with_its_site(self) -> None:
        paused = BackendPlan(paused={"a.test": 999.0, "c.test": 2000.0})
        plan, dropped = self.fit(paused, sites(BLUE))
        assert (plan.paused, dropped) == ({}, ["pause of c.test: there is no such site any more"])
