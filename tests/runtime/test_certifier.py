"""The certifier as a process: what it says on its control socket, and when it leaves."""

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.certificate_authority import CertificateAuthority
from tests.store.pki import issue, replace, write_pair
from tlsproxy.certs.manager import CertificateManager
from tlsproxy.runtime.certifier import Certifier as CertifierProcess
from tlsproxy.runtime.control import ControlChannel, FrameDecoder, control_pair, encode
from tlsproxy.runtime.messages import (
    AdminCall,
    AdminProgress,
    AdminResult,
    CertificateRefused,
    CertificatesChanged,
    CertificateWanted,
    Drain,
    Drained,
    Failed,
    Message,
    Ready,
    ReopenLogs,
    Serve,
    Start,
    Stats,
    StatsRequest,
)
from tlsproxy.settings import CertificateFiles, Log, Route, Settings, Site, Store
from tlsproxy.store.base import open_store

pytestmark = pytest.mark.system
ROUTES = (Route(backends=("http://127.0.0.1:1",)),)
INTERNAL = Site(hosts=("localhost",), certificate="internal", routes=ROUTES)


@dataclass
class Certifier:
    """A real certifier, the supervisor's end of its socket, and what it has logged."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    log: Path

    def __post_init__(self) -> None:
        self._decoder = FrameDecoder()
        self._heard: list[Message] = []

    def say(self, message: Message) -> None:
        self.control.sendall(encode(message))

    def hear(self) -> Message | None:
        while not self._heard:
            received = self.control.recv(65536)
            if not received:
                return None
            self._heard += self._decoder.feed(received)
        return self._heard.pop(0)

    def end(self) -> int:
        return self.process.wait(10)


@pytest.fixture
def certifier(tmp_path: Path) -> Iterator[Certifier]:
    ours, theirs = control_pair()
    ours.settimeout(15)
    log = tmp_path / "log"
    with theirs, log.open("wb") as stderr:
        command = [sys.executable, "-P", "-m", "tlsproxy.runtime.certifier", "--control-fd", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=stderr)
    with ours, process:
        yield Certifier(process, ours, log)
        process.kill()


def start(tmp_path: Path, *sites: Site) -> Start:
    store = Store(url=f"file://{tmp_path / 'store'}")
    return Start(settings=Settings(store=store, log=Log(format="json"), sites=sites).model_dump_json())


def file_site(tmp_path: Path) -> Site:
    files = CertificateFiles(chain=tmp_path / "chain.pem", key=tmp_path / "key.pem")
    return Site(hosts=("a.test",), certificate=files, routes=ROUTES)


def become_ready(certifier: Certifier, message: Start) -> None:
    certifier.say(message)
    assert [certifier.hear(), certifier.hear()] == [CertificatesChanged(()), Ready()]


def test_it_makes_internal_certificates_then_is_ready_then_drains(certifier: Certifier, tmp_path: Path) -> None:
    become_ready(certifier, start(tmp_path, INTERNAL))
    bundle = open_store(f"file://{tmp_path / 'store'}").get("internal/localhost")
    assert bundle
    assert bundle.covers("localhost")
    certifier.say(ReopenLogs())
    certifier.say(StatsRequest())
    assert isinstance(certifier.hear(), Stats)
    certifier.say(Drain(5.0))
    assert isinstance(certifier.hear(), Stats)  # what was counted since
    assert [certifier.hear(), certifier.hear(), certifier.end()] == [Drained(), None, 0]
    assert "PRIVATE" not in certifier.log.read_text()


def test_it_fails_with_all_problems(certifier: Certifier, tmp_path: Path) -> None:
    other = Site(hosts=("b.test",), certificate=file_site(tmp_path).certificate, routes=ROUTES)
    write_pair(tmp_path, issue("c.test"))
    certifier.say(start(tmp_path, file_site(tmp_path), other))
    answer = certifier.hear()
    assert isinstance(answer, Failed)
    assert "does not cover a.test" in answer.reason.splitlines()[0]
    assert "does not cover b.test" in answer.reason.splitlines()[1]
    assert [certifier.hear(), certifier.end()] == [None, 1]
    assert "Traceback" not in certifier.log.read_text()


def test_it_announces_new_files_and_rejects_broken_ones(certifier: Certifier, tmp_path: Path) -> None:
    write_pair(tmp_path, issue("a.test"))
    become_ready(certifier, start(tmp_path, file_site(tmp_path)))
    replace(tmp_path / "chain.pem", b"bad")
    _until(lambda: "certificate.file_rejected" in certifier.log.read_text())
    write_pair(tmp_path, issue("a.test"))
    assert certifier.hear() == CertificatesChanged(("file/a.test",))
    assert certifier.log.read_text().count("certificate.file_rejected") == 1


def test_it_leaves_when_the_supervisor_is_gone(certifier: Certifier, tmp_path: Path) -> None:
    become_ready(certifier, start(tmp_path, INTERNAL))
    certifier.control.shutdown(socket.SHUT_RDWR)
    assert certifier.end() == 0


def test_it_leaves_when_nobody_ever_starts_it(certifier: Certifier) -> None:
    certifier.control.shutdown(socket.SHUT_RDWR)
    assert certifier.end() == 0


def test_no_signal_of_the_terminal_ends_it(certifier: Certifier, tmp_path: Path) -> None:
    become_ready(certifier, start(tmp_path, INTERNAL))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        certifier.process.send_signal(number)
    certifier.say(StatsRequest())
    assert isinstance(certifier.hear(), Stats)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # what is waited for is a line in a file that another process writes


# --- certificates of a CA


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[CertificateAuthority]:
    folder = tmp_path / "ca"
    folder.mkdir()
    with CertificateAuthority(folder) as ca:
        yield ca


def acme_start(tmp_path: Path, ca: CertificateAuthority, **more: Any) -> Start:
    acme = {"directory": ca.directory, "ca_bundle": str(ca.ca_bundle)}
    store, backends = {"url": f"file://{tmp_path / 'store'}"}, ["http://127.0.0.1:1"]
    sites = [{"hosts": ["a.test"], "certificate": "acme", "backends": backends}]
    values = {"acme": acme, "store": store, "log": {"format": "json"}, "sites": sites, **more}
    return Start(settings=Settings.model_validate(values).for_child())


def hear_only(certifier: Certifier, kind: type[Message]) -> Message:
    """Return the next message of this kind; what else is said is not of interest."""
    while not isinstance(message := certifier.hear(), kind):
        assert message is not None, certifier.log.read_text()
    return message


def test_it_is_ready_before_any_ca_is_asked(certifier: Certifier, tmp_path: Path, ca: CertificateAuthority) -> None:
    ca.hangs("directory", 100)
    become_ready(certifier, acme_start(tmp_path, ca))
    certifier.say(Serve())
    _until(lambda: ca.count["directory"] > 0)
    certifier.say(AdminCall(1, "status"))
    answer = hear_only(certifier, AdminResult)
    assert isinstance(answer, AdminResult)
    assert answer.body == {"state": "running", "valid": 0, "pending": 1, "failed": 0}
    certifier.say(Drain(2.0))
    hear_only(certifier, Drained)
    assert certifier.end() == 0


def test_it_obtains_and_announces(certifier: Certifier, tmp_path: Path, ca: CertificateAuthority) -> None:
    become_ready(certifier, acme_start(tmp_path, ca))
    certifier.say(Serve())
    assert hear_only(certifier, CertificatesChanged) == CertificatesChanged(("acme/a.test",))
    assert open_store(f"file://{tmp_path / 'store'}").get("acme/a.test")
    certifier.say(AdminCall(1, "renew", "a.test"))
    steps = [hear_only(certifier, AdminProgress) for _ in range(4)]
    assert all(isinstance(step, AdminProgress) and step.id == 1 for step in steps)
    hear_only(certifier, AdminResult)
    assert "PRIVATE" not in certifier.log.read_text()


def test_it_cleans_up_when_it_is_told_to_leave(certifier: Certifier, tmp_path: Path, ca: CertificateAuthority) -> None:
    ca.hangs("challenge")
    become_ready(certifier, acme_start(tmp_path, ca))
    certifier.say(Serve())
    _until(lambda: ca.count["challenge"] > 0)
    store = open_store(f"file://{tmp_path / 'store'}")
    assert len(store.list_records("challenges")) == 1
    certifier.say(Drain(2.0))
    hear_only(certifier, Drained)
    assert certifier.end() == 0
    assert store.list_records("challenges") == ()
    assert store.list_records("orders") == ("acme/a.test",)  # the next one takes it up
    assert store.acquire("acme/a.test")


def test_without_a_site_on_demand_no_wish_is_granted(certifier: Certifier, tmp_path: Path) -> None:
    become_ready(certifier, start(tmp_path, INTERNAL))
    certifier.say(CertificateWanted("x.test", "192.0.2.1"))
    refused = certifier.hear()
    assert isinstance(refused, CertificateRefused)
    assert refused.host == "x.test"


def test_a_wish_that_comes_early_is_answered_like_any_other(
    certifier: Certifier, tmp_path: Path, ca: CertificateAuthority
) -> None:
    site = {"hosts": ["*"], "certificate": "on_demand", "backends": ["http://127.0.0.1:1"]}
    become_ready(certifier, acme_start(tmp_path, ca, sites=[site], on_demand={"ask": "/may"}))
    certifier.say(CertificateWanted("x.shop.test", "192.0.2.1"))
    certifier.say(Serve())
    refused = hear_only(certifier, CertificateRefused)
    assert isinstance(refused, CertificateRefused)
    assert (refused.host, refused.reason) == ("x.shop.test", "nobody could be asked: Connection refused")


def test_what_talks_to_cas_is_set_up_again_until_it_works(
    tmp_path: Path, ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None in sys.modules makes an import fail, as a damaged installation or a full memory would."""
    monkeypatch.setattr("tlsproxy.runtime.certifier.FIRST_RETRY", 0.05)
    monkeypatch.setitem(sys.modules, "tlsproxy.certs.acme_manager", None)
    settings = Settings.from_parent(acme_start(tmp_path, ca).settings)

    async def story() -> tuple[str, str]:
        ours, theirs = control_pair()
        channel, other = await ControlChannel.open(theirs), await ControlChannel.open(ours)
        store = open_store(settings.store.url)
        living = asyncio.create_task(
            CertifierProcess(channel, settings, store, CertificateManager(settings.sites, store), ()).serve()
        )
        other.send(Serve())
        broken = await ask_state(other, "failed")
        monkeypatch.delitem(sys.modules, "tlsproxy.certs.acme_manager")
        working = await ask_state(other, "running")
        other.send(Drain(1.0, last=True))
        await living
        channel.close()
        other.close()
        return broken, working

    broken, working = asyncio.run(asyncio.wait_for(story(), 20))
    assert broken.startswith("failed: ModuleNotFoundError: ")
    assert working == "running"


async def ask_state(supervisor: ControlChannel, wanted: str) -> str:
    """Ask for the status until its state begins so."""
    while True:
        supervisor.send(AdminCall(1, "status"))
        while not isinstance(message := await supervisor.receive(), AdminResult):
            assert message is not None
        state: str = message.body["state"]
        if state.startswith(wanted):
            return state
        await asyncio.sleep(0.01)
