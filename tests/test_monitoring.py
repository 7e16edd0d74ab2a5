"""The dashboard and the alert rules know the metrics that there are, and only those; promtool agrees if it is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tlsproxy.runtime.families import FAMILIES

ROOT = Path(__file__).parents[1]
ALERTS = ROOT / "config" / "alerts.yml"
DASHBOARD = ROOT / "config" / "grafana-dashboard.json"
DOCS = ROOT / "docs" / "metrics.md"
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*", "$site": ".*"}


def families_in(text: str) -> set[str]:
    """Return the families that are named, by their own names."""
    named = set(re.findall(r"\btlsproxy_[a-z_]+\b", text))
    return {re.sub(r"_(bucket|sum|count)$", "", name) if name not in FAMILIES else name for name in named}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return made


def expressions() -> Iterator[str]:
    """Yield the query of every panel, with the dashboard's variables filled in."""
    for panel in panels():
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            yield expression


def promtool(*arguments: str | Path) -> str:
    """Return what it says; it must be content."""
    command = shutil.which("promtool")
    if command is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    said = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


class TestAlerts:
    def test_promtool_loads_them(self) -> None:
        assert f"{len(rules())} rules found" in promtool("check", "rules", "--lint-fatal", ALERTS)

    @pytest.mark.system
    def test_they_fire_when_they_should_and_not_before(self) -> None:
        assert "SUCCESS" in promtool("test", "rules", ROOT / "tests" / "data" / "alerts.test.yml")

    def test_they_are_about_metrics_that_there_are(self) -> None:
        unknown = {rule["alert"]: families_in(rule["expr"]) - set(FAMILIES) for rule in rules()}
        assert {alert: names for alert, names in unknown.items() if names} == {}

    def test_each_says_how_bad_it_is_and_what_to_do(self) -> None:
        for rule in rules():
            assert set(rule["annotations"]) == {"summary", "description", "runbook"}, rule["alert"]
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"]["runbook"].endswith((".", ")."))

    def test_labels_that_are_shown_come_with_the_series(self) -> None:
        kept = {"instance", "job"}
        for rule in rules():
            shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) - kept
            known = {label for name in families_in(rule["expr"]) for label in FAMILIES[name].labels}
            assert shown <= known, rule["alert"]

    def test_no_two_have_one_name(self) -> None:
        names = [rule["alert"] for rule in rules()]
        assert len(names) == len(set(names))


class TestDashboard:
    def test_it_shows_every_metric_and_no_other(self) -> None:
        assert families_in("\n".join(expressions())) == set(FAMILIES)

    def test_promtool_reads_every_query(self, tmp_path: Path) -> None:
        recorded = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
        path = tmp_path / "panels.yml"
        path.write_text(json.dumps({"groups": [{"name": "panels", "rules": recorded}]}))
        assert f"{len(recorded)} rules found" in promtool("check", "rules", path)

    def test_it_can_be_imported(self) -> None:
        dashboard = json.loads(DASHBOARD.read_text())
        assert dashboard["schemaVersion"] >= 39
        assert (dashboard["uid"], dashboard.get("id")) == ("tlsproxy", None)
        variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
        assert set(variables) == {"datasource", "instance", "site"}
        assert variables["datasource"]["type"] == "datasource"
        for panel in panels():
            if panel["type"] != "row":
                assert panel["datasource"]["uid"] == "${datasource}"
                assert panel["title"]
                assert [target["refId"] for target in panel["targets"]] == list("ABCDEF")[: len(panel["targets"])]

    def test_panels_lie_side_by_side(self) -> None:
        placed = panels()
        assert len({panel["id"] for panel in placed}) == len(placed)
        for panel in placed:
            place = panel["gridPos"]
            assert place["x"] >= 0
            assert place["x"] + place["w"] <= 24
        for one, other in combinations((panel["gridPos"] for panel in placed), 2):
            beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            assert beside or below


def test_the_documentation_has_every_metric_with_its_labels() -> None:
    rows = dict(re.findall(r"^\| `(tlsproxy_\w+)` \| ([^|]*) \|", DOCS.read_text(), re.MULTILINE))
    assert set(rows) == set(FAMILIES)
    for name, family in FAMILIES.items():
        assert tuple(re.findall(r"`(\w+)`", rows[name])) == family.labels, name
