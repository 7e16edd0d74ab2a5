"""A scraper for the system tests: reads /metrics as Prometheus does, and sees when a counter goes back."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from tests.system.running import PATIENCE, Proxy

Key: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


class Scrape:
    """The samples of one answer."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self.samples: dict[Key, float] = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }
        rising = {family.name for family in families if family.type in ("counter", "histogram")}
        self.counters = {key: value for key, value in self.samples.items() if _family(key[0]) in rising}

    def sum(self, name: str, **labels: str) -> float:
        """Add up the samples of that name that have these labels."""
        wanted = set(labels.items())
        return sum(value for (found, has), value in self.samples.items() if found == name and wanted <= set(has))

    def values(self, name: str, label: str) -> set[str]:
        return {dict(has)[label] for found, has in self.samples if found == name}

    def fallen_since(self, before: Scrape) -> dict[Key, tuple[float, float | None]]:
        """Return each counter that is gone, or less than it was."""
        now = self.counters
        return {
            key: (value, now.get(key)) for key, value in before.counters.items() if key not in now or now[key] < value
        }


def scrape(proxy: Proxy) -> Scrape:
    """Ask on the admin socket."""
    return Scrape(get_from_socket(proxy.folder / "admin.sock", "/metrics"))


def get_from_socket(path: Path, target: str) -> str:
    client = http.client.HTTPConnection("localhost", timeout=PATIENCE)
    client.sock = socket.socket(socket.AF_UNIX)
    client.sock.settimeout(PATIENCE)
    client.sock.connect(str(path))
    try:
        client.request("GET", target)
        answer = client.getresponse()
        body = answer.read().decode()
    finally:
        client.close()
    assert answer.status == 200, body
    return body


def _family(name: str) -> str:
    for ending in ("_total", "_bucket", "_count", "_sum"):
        name = name.removesuffix(ending)
    return name
