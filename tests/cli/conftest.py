"""A folder with a configuration, for the commands; no proxy runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.store.pki import issue, write_pair
from tlsproxy.settings import loader
from tlsproxy.store.base import CertificateStore, open_store

CONFIG = """\
[store]
url = "file:store"
[admin]
socket = "admin.sock"
[[sites]]
hosts = ["api.example.com", "www.example.com"]
backends = ["127.0.0.1:8000"]
[[sites]]
hosts = ["shop.example.com"]
backends = ["127.0.0.1:8000"]
[[sites]]
hosts = ["localhost"]
backends = ["127.0.0.1:8000"]
[[sites]]
hosts = ["files.test"]
certificate = { chain = "files/chain.pem", key = "files/key.pem" }
backends = ["127.0.0.1:8000"]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loader, "SEARCHED", (Path("tlsproxy.toml"),))
    for name in [name for name in os.environ if name.startswith("TLSPROXY_")]:
        monkeypatch.delenv(name)
    Path("tlsproxy.toml").write_text(CONFIG)
    Path("files").mkdir()
    write_pair(Path("files"), issue("files.test"))
    return tmp_path


@pytest.fixture
def store(folder: Path) -> CertificateStore:
    """The store of the configuration. It is made by this."""
    return open_store(f"file://{folder}/store")
