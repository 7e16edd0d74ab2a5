"""`scripts/bench names`: what it makes to measure is what tlsproxy takes, and a small run of it says something."""

import json
from pathlib import Path

import pytest

from scripts.benchmark import cli, names
from tlsproxy.settings import load
from tlsproxy.store.base import open_store


def test_every_site_finds_its_certificate(tmp_path: Path) -> None:
    hosts = ["h0.example.com", "h1.example.com"]
    names.fill_store(tmp_path, hosts)
    names.write_config(tmp_path, hosts, names.parse([]))
    settings = load(tmp_path / "tlsproxy.toml", {}, {}).settings
    assert [(site.hosts, site.certificate) for site in settings.sites] == [((host,), "acme") for host in hosts]
    assert settings.limits.contexts == 1000
    assert settings.listen.https == (f"127.0.0.1:{names.https_port(tmp_path)}",)
    store = open_store(settings.store.url)
    for host in hosts:
        bundle = store.get(f"acme/{host}")
        assert bundle is not None
        assert bundle.names == (host,)


def test_a_report_names_the_budgets() -> None:
    figures: dict[str, float | str] = {"start_s": 2.5, "worker_mib": 99.0, "asked": 10}
    assert names.report(figures, as_json=False).splitlines() == [
        "start_s                    2.5  (at most 3)",
        "worker_mib                 99.0  (at most 120)",
        "asked                      10",
    ]
    assert json.loads(names.report(figures, as_json=True)) == figures


@pytest.mark.system
def test_a_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--names", "8", "--asked", "4", "--contexts", "2", "--rounds", "1", "--idle", "1"]
    assert cli.main(["names", *sizes, "--json"]) in {0, 1}
    figures = json.loads(capsys.readouterr().out)
    assert (figures["names"], figures["asked"]) == (8, 8)
    assert figures["start_cpu_s"] > 0
    assert 10 < figures["worker_start_mib"] <= figures["worker_mib"] + 1
    assert 0 < figures["handshake_warm_ms"] < 1000
    assert 0 <= figures["certifier_idle_percent"] <= 100
    assert figures["certifier_mib"] > 10


@pytest.mark.system
def test_a_small_run_without_certificates(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["names", "--names", "3", "--empty", "--rounds", "1", "--idle", "1", "--json"]) in {0, 1}
    figures = json.loads(capsys.readouterr().out)
    assert figures["start_s"] > 0
    assert "handshake_cold_ms" not in figures
