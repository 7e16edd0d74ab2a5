"""Two supervisors talk: the old one is in here, the new one a process of its own, well or broken in some way."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tlsproxy.errors import ConfigError
from tlsproxy.runtime.messages import BackendPlan, Handover
from tlsproxy.runtime.predecessor import Predecessor, find_predecessor, told_of_failure
from tlsproxy.runtime.succession import VARIABLE, UpgradeFailed, digests, unchanged
from tlsproxy.runtime.successor import Successor, own_command
from tlsproxy.settings import Site

system = pytest.mark.system

SECRET = "5ec3e7" * 8
HANDOVER = Handover(4, SECRET, (), totals={"requests": 7.0})

# Takes over, tells what its environment and arguments were, drains its predecessor, waits for the totals.
_WELL = """
import asyncio, os, sys
from tlsproxy.runtime.messages import Prepared, Ready
from tlsproxy.runtime.predecessor import find_predecessor
predecessor = find_predecessor(os.environ)
handover = predecessor.receive()
async def main():
    await predecessor.open()
    taken = await predecessor.hand_over(Prepared({"a.test": str(handover.generation)}))
    if taken is None:
        sys.exit(3)
    predecessor.send(Ready())
    predecessor.reopen_logs()
    predecessor.hurry(2.5)
    await predecessor.follow(lambda totals: print("totals", totals, taken.plan.drained, flush=True))
asyncio.run(main())
"""


async def _with_successor(code: str, act: Callable[[Successor], Coroutine[Any, Any, None]]) -> int:
    """Start python with this code as the new version; return how it ended."""
    successor = await Successor.start([sys.executable, "-c", code], ())
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, successor.poll)
    try:
        await act(successor)
    finally:
        await successor.end()
    return successor._ended.result()


def _failure_of(code: str, patience: float = 20.0) -> str:
    """Return why an upgrade to this fails, after it was made sure that nothing of it is left."""

    async def act(successor: Successor) -> None:
        with pytest.raises(UpgradeFailed) as caught:
            await successor.prepare(lambda: HANDOVER, patience, lambda _: None)
        reasons.append(str(caught.value))

    reasons: list[str] = []
    asyncio.run(_with_successor(code, act))
    return reasons[0]


@system
def test_one_after_the_other_is_the_proxy(capfd: pytest.CaptureFixture[str]) -> None:
    steps: list[str] = []
    heard: list[object] = []

    async def act(successor: Successor) -> None:
        prepared = await successor.prepare(lambda: HANDOVER, 20.0, steps.append)
        assert prepared.sites == {"a.test": "4"}
        await successor.take_over(BackendPlan(drained=("http://a",)), {})
        hurried = asyncio.Event()

        def hurry(seconds: float) -> None:
            heard.append(seconds)
            hurried.set()

        orders = asyncio.create_task(successor.orders(lambda: heard.append("reopen"), hurry))
        await hurried.wait()
        await successor.leave({"requests": 1.0})
        await orders
        await asyncio.wait({successor._ended}, timeout=20)

    assert asyncio.run(_with_successor(_WELL, act)) == 0
    assert heard == ["reopen", 2.5, 0.0]  # the last one: it has closed, so nobody needs us
    assert "process" in steps[0]
    assert capfd.readouterr().out == "totals {'requests': 1.0} ('http://a',)\n"


@system
def test_one_that_is_not_wanted_learns_of_it() -> None:
    async def act(successor: Successor) -> None:
        await successor.prepare(lambda: HANDOVER, 20.0, lambda _: None)
        successor._channel.close()
        await asyncio.wait({successor._ended}, timeout=20)

    assert asyncio.run(_with_successor(_WELL, act)) == 3


@system
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(7)", "the new version ended with exit status 7 before it said a word"),
        ("import os; os.abort()", "the new version ended with signal SIGABRT before it said a word"),
        (
            f"import os; os.close(int(os.environ['{VARIABLE}'])); import time; time.sleep(60)",
            "the new version closed its socket before it said a word",
        ),
        (f"import os; os.write(int(os.environ['{VARIABLE}']), b'hello\\n')", "does not speak as this one does"),
        (
            f"import os; os.write(int(os.environ['{VARIABLE}']),"
            """b'{"type":"Hello","protocol":99,"version":"9.9"}\\n'); import time; time.sleep(60)""",
            "version 9.9 takes over in another way than this one hands over; restart the proxy instead",
        ),
        (
            "import os; from tlsproxy.runtime.predecessor import find_predecessor;"
            "find_predecessor(os.environ).fail('tlsproxy.toml:3: sites: what is wrong')",
            "tlsproxy.toml:3: sites: what is wrong",
        ),
    ],
)
def test_a_broken_version_is_one_sentence(code: str, reason: str) -> None:
    assert reason in _failure_of(code)


@system
def test_one_that_is_silent_is_given_up() -> None:
    assert "had said nothing after 0.3 s" in _failure_of("import time; time.sleep(60)", patience=0.3)


@system
def test_one_that_hangs_on_the_way_is_given_up() -> None:
    hangs = (
        "import os, time; from tlsproxy.runtime.predecessor import find_predecessor;"
        "old = find_predecessor(os.environ); old.receive(); time.sleep(60)"
    )
    assert "the new version was not ready after 5 s" in _failure_of(hangs, patience=5.0)


@system
def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(UpgradeFailed, match="cannot be started: /nowhere/tlsproxy: No such file"):
        asyncio.run(Successor.start(["/nowhere/tlsproxy", "run"], ()))


@system
def test_no_secret_is_in_the_environment_or_the_arguments(tmp_path: Path) -> None:
    async def act(successor: Successor) -> None:
        await successor.prepare(lambda: HANDOVER, 20.0, lambda _: None)
        proc = Path(f"/proc/{successor.pid}")
        seen.append((proc / "environ").read_bytes() + (proc / "cmdline").read_bytes())

    seen: list[bytes] = []
    asyncio.run(_with_successor(_WELL, act))
    assert VARIABLE.encode() in seen[0]
    assert SECRET.encode() not in seen[0]


# --- the parts without a process


def test_a_script_is_executed_itself(tmp_path: Path) -> None:
    script = tmp_path / "tlsproxy"
    script.write_text("#!/usr/bin/python3\n")
    original = ["python3", str(script), "run"]
    assert own_command([str(script), "run"], original, "/venv/python", is_module=False) == [
        "/venv/python",
        *original[1:],
    ]
    script.chmod(0o755)
    assert own_command([str(script), "run"], original, "/venv/py", is_module=False) == [str(script), "run"]


def test_a_script_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (script := tmp_path / "one").write_text("#!/usr/bin/python3\n")
    script.chmod(0o755)
    (link := tmp_path / "tlsproxy").symlink_to(script)
    assert own_command([str(link)], [], "", is_module=False) == [str(link)]


def test_a_module_is_started_by_the_same_interpreter() -> None:
    original = ["python", "-X", "dev", "-m", "tlsproxy", "run"]
    started = own_command(["/lib/tlsproxy/__main__.py", "run"], original, "/venv/python", is_module=True)
    assert started == ["/venv/python", "-X", "dev", "-m", "tlsproxy", "run"]


def test_without_the_variable_there_is_no_predecessor(tmp_path: Path) -> None:
    assert find_predecessor({}) is None
    with (tmp_path / "file").open("w") as file:
        environ = {VARIABLE: str(file.fileno())}
        assert find_predecessor(environ) is None
    assert environ == {}
    assert find_predecessor({VARIABLE: "1000000"}) is None


def test_the_old_one_is_told_why_the_new_one_fails() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ConfigError), told_of_failure(Predecessor(theirs)):
            raise ConfigError([])
        assert b'"Failed"' in ours.recv(4096)


def test_an_old_one_that_gives_up_is_no_handover() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(UpgradeFailed, match="given up the upgrade"):
            Predecessor(theirs).receive()


def test_a_site_is_the_same_in_both_versions_until_a_value_is_another() -> None:
    def site(host: str, backend: str) -> Site:
        return Site.model_validate({"hosts": [host], "certificate": "internal", "backends": [backend]})

    before = digests([site("a.test", "http://127.0.0.1:1"), site("b.test", "http://127.0.0.1:1")])
    after = digests([site("b.test", "http://127.0.0.1:2"), site("a.test", "http://127.0.0.1:1")])
    assert unchanged(before, after) == ("a.test",)
