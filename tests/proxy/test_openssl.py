"""The TLS front as OpenSSL's own client sees it, and OpenSSL's configuration as a worker gets it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.proxy.echo import EchoWorker, bundle
from tlsproxy.proxy.openssl import openssl_environment
from tlsproxy.proxy.sitetls import SiteTls

pytestmark = pytest.mark.system

AUTHORITY = trustme.CA()
SITE = SiteTls(("a.test",), (bundle(AUTHORITY, "a.test"),))


@pytest.fixture(name="worker")
def _worker() -> Iterator[EchoWorker]:
    with EchoWorker([SITE]) as worker:
        yield worker


def s_client(worker: EchoWorker, *options: str, name: str = "a.test", say: str = "") -> str:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{worker.port}", "-servername", name, *options]
    done = subprocess.run(command, input=say, capture_output=True, text=True, timeout=20)
    return done.stdout + done.stderr


def test_shows_the_alert_of_an_unknown_name(worker: EchoWorker) -> None:
    answer = s_client(worker, name="b.test")
    assert "unrecognized name" in answer
    assert "unexpected eof" not in answer


def test_shows_the_alert_of_a_failed_handshake(worker: EchoWorker) -> None:
    answer = s_client(worker, "-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256")
    assert "handshake failure" in answer
    assert "unexpected eof" not in answer


def test_old_versions_are_refused_by_alert(worker: EchoWorker) -> None:
    assert "protocol version" in s_client(worker, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")


def test_a_key_update_passes_unseen(worker: EchoWorker) -> None:
    answer = conversation(worker, ["K\n", "after the update\n"], until="after the update")
    assert "KEYUPDATE" in answer


def test_renegotiation_is_refused(worker: EchoWorker) -> None:
    answer = conversation(worker, ["R\n"], "-tls1_2", until="no renegotiation")
    assert "RENEGOTIATING" in answer


def conversation(worker: EchoWorker, lines: list[str], *options: str, until: str) -> str:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{worker.port}", "-servername", "a.test", *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        read: list[str] = []
        # s_client obeys K and R when connected, and only at the beginning of what it reads at once.
        for line in lines:
            worker.wait(lambda: len(worker.drivers) == 1)
            client.stdin.write(line)
            client.stdin.flush()
            if line in ("K\n", "R\n"):
                while read[-1:] != ["KEYUPDATE\n"] and read[-1:] != ["RENEGOTIATING\n"]:
                    read.append(client.stdout.readline())
        while until not in read[-1]:
            read.append(client.stdout.readline())
            assert read[-1], read
        client.kill()
        return "".join(read)


SERVER = Path(__file__).with_name("echo.py")


@pytest.mark.parametrize(
    ("group", "accepted"),
    [("X25519", True), ("P-256", True), ("P-384", True), ("X448", False), ("P-521", False), ("ffdhe2048", False)],
)
def test_groups_of_a_worker_are_mozilla_s(served: int, group: str, accepted: bool) -> None:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{served}", "-servername", "a.test", "-groups", group],
        input="",
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ("Cipher is TLS_" in done.stdout) is accepted
    assert accepted or "handshake failure" in done.stderr


@pytest.fixture(name="served", scope="module")
def _served() -> Iterator[int]:
    """A worker-like process with the environment that the supervisor gives."""
    code = "from tests.proxy.test_openssl import serve; serve()"
    environment = {**os.environ, **openssl_environment()}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        yield int(child.stdout.readline())
        child.communicate()


def serve() -> None:
    with EchoWorker([SITE]) as worker:
        print(worker.port, flush=True)
        sys.stdin.read()
