"""Every example in config/ is a configuration that loads, and the full one says the truth about the defaults."""

from pathlib import Path

import pytest

from tlsproxy.settings import Settings, load
from tlsproxy.settings.loader import flatten

CONFIG = Path(__file__).resolve().parents[2] / "config"
EXAMPLES = sorted(path.name for path in CONFIG.rglob("*.toml"))


def test_there_are_examples() -> None:
    usual = {"tlsproxy.toml", "minimal.toml", "routes.toml", "client-certificates.toml"}
    assert usual | {"acme.toml", "dns-01.toml", "on-demand.toml", "http2-backends.toml"} <= set(EXAMPLES)


@pytest.mark.parametrize("path", sorted(CONFIG.rglob("*.toml")), ids=lambda path: path.name)
def test_an_example_loads(path: Path, tmp_path: Path) -> None:
    assert load(path, {}, {}, dotenv=tmp_path / ".env").settings.sites


def test_the_full_example_holds_every_key_with_its_default(tmp_path: Path) -> None:
    loaded = load(CONFIG / "tlsproxy.toml", {}, {}, dotenv=tmp_path / ".env")
    defaults = dict(flatten(Settings()))
    shown = {path: value for path, value in flatten(loaded.settings) if path[0] != "sites"}
    assert shown == {path: value for path, value in defaults.items() if path != ("sites",)}
    left_out = {key for key, origin in loaded.origins.items() if origin == "default"}
    assert left_out == {"sites.0.client_ca", "sites.0.routes.0.health"}  # without a file, or off
