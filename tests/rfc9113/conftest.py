"""One proxy for the whole folder, and an honest client beside every test that must not notice anything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.frames import FramePeer
from tests.fakes.stage import Stage
from tests.rfc9113.origin import Origin


@pytest.fixture(scope="package")
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="package")
def stage(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("rfc9113")) as stage:
        stage.serve(sites=[{"hosts": ["a.test"], "routes": [{"backends": [origin.url]}]}])
        yield stage


@pytest.fixture(scope="package")
def honest(stage: Stage) -> FramePeer:
    return stage.connect_http2()


@pytest.fixture(autouse=True)
def _others_are_served(stage: Stage, honest: FramePeer, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does on its connection, another one is served, and nothing of ours has crashed."""
    yield
    assert honest.get("/honest").body == b"ok"
    assert stage.crashes == []
    assert not [each for each in caplog.records if each.exc_info]


@pytest.fixture
def peer(stage: Stage) -> Iterator[FramePeer]:
    """A connection that has begun."""
    peer = stage.connect_http2()
    yield peer
    peer.close()


@pytest.fixture
def silent(stage: Stage) -> Iterator[FramePeer]:
    """A connection whose client has said nothing yet."""
    peer = stage.connect_http2(begin=False)
    yield peer
    peer.close()


@pytest.fixture
def stingy(stage: Stage) -> Iterator[FramePeer]:
    """A connection whose client takes no DATA until it grants some: answers stay unfinished."""
    peer = stage.connect_http2(settings={4: 0})
    yield peer
    peer.close()
