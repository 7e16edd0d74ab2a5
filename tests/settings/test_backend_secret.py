"""server.backend_secret: workers get it, nobody else is shown it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tlsproxy.errors import ConfigError
from tlsproxy.settings import Settings, load, loader
from tlsproxy.settings.explain import HIDDEN, explain

SECRET = "0123456789abcdef-the-secret"
SITE = '[[sites]]\nhosts = ["a.example.com"]\nbackends = ["127.0.0.1:8000"]\n'


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loader, "SEARCHED", (Path("tlsproxy.toml"),))
    Path("tlsproxy.toml").write_text(SITE)


def test_explain_and_everything_printed_say_only_that_there_is_one() -> None:
    loaded = load(None, {}, {"TLSPROXY_SERVER__BACKEND_SECRET": SECRET})
    rows = {row.key: row.value for row in explain(loaded)}
    assert rows["server.backend_secret"] == HIDDEN
    assert SECRET not in repr(rows) + repr(loaded) + str(loaded.settings) + repr(loaded.settings.server)
    child = Settings.from_parent(loaded.settings.for_child())
    assert child.server.backend_secret.get_secret_value() == SECRET


def test_it_may_be_in_a_file() -> None:
    Path("secret").write_text(SECRET + "\n")
    loaded = load(None, {}, {"TLSPROXY_SERVER__BACKEND_SECRET_FILE": "secret"})
    assert loaded.settings.server.backend_secret.get_secret_value() == SECRET


@pytest.mark.parametrize(
    "bad", ["hunter2", "hunter2 " * 5, "hunter2\r\nX-Evil: 1234567", "hünter2" * 4, "hunter2" * 50]
)
def test_one_that_can_be_guessed_or_is_no_header_is_refused_unseen(bad: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {}, {"TLSPROXY_SERVER__BACKEND_SECRET": bad})
    assert "backend_secret" in str(caught.value).lower()
    assert "unter2" not in str(caught.value)
    Path("tlsproxy.toml").write_text(f"server.backend_secret = {json.dumps(bad)}\n{SITE}")
    with pytest.raises(ConfigError) as caught:
        load(None, {}, {})
    assert "unter2" not in str(caught.value)
