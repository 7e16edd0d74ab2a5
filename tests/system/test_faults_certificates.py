"""A CA, a disk, a clock that fail while certificates are due (docs/faults.md).

In every case what is there is served on, what can't be had now is tried again, and no fault costs an order twice. The
CA is Pebble where it can fail in that way, else the fake one.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from tests.fakes.certificate_authority import CertificateAuthority
from tests.pebble import ChallTestSrv, Pebble
from tests.system.acme import (
    Ports,
    check_store,
    obtain_earlier,
    running,
    served,
    site,
    store_of,
    trusting,
    until_served,
)
from tests.system.commands import admin, tlsproxy
from tests.system.pressure import as_mounted, mounted
from tests.system.running import Proxy, put, until
from tlsproxy.store.bundle import Bundle

pytestmark = pytest.mark.system

HOST, NAME = "a.test", "acme/a.test"
LONG_AGO = timedelta(days=80)  # of 90: due
LATELY = timedelta(days=10)
NOBODY = 65534


@pytest.fixture
def ports() -> Ports:
    return Ports()


@pytest.fixture
def ca(tmp_path: Path, ports: Ports) -> Iterator[CertificateAuthority]:
    with CertificateAuthority(tmp_path, http_port=ports.http) as ca:
        yield ca


@pytest.fixture
def dns(tmp_path: Path) -> Iterator[ChallTestSrv]:
    with ChallTestSrv(tmp_path, ipv6="") as dns:
        yield dns


def orders(ca: CertificateAuthority) -> int:
    return len(ca.payloads["order"])


def serial(bundle: Bundle) -> int:
    return int(bundle.serial, 16)


def expect_served(proxy: Proxy, bundle: Bundle, host: str = HOST) -> None:
    found = served(proxy, host)
    assert found is not None
    assert found.serial_number == serial(bundle)


def expect_renewed(proxy: Proxy, ca: CertificateAuthority) -> None:
    proxy.wait_for("certificate.renewed", certificate=NAME)
    until_served(proxy, HOST, ca)


class TestFullDisk:
    """Row 21: a disk of 400 kB for the store, in a mount namespace."""

    @pytest.fixture
    def old(self, tmp_path: Path, ca: CertificateAuthority) -> Bundle:
        return obtain_earlier(tmp_path, ca, HOST, age=LONG_AGO)

    def disk(self, folder: Path, then: str = "true") -> tuple[str, ...]:
        """Return what moves the store to a small disk of its own before the proxy starts."""
        store, seed = folder / "store", folder / "seed"
        store.rename(seed)
        store.mkdir(mode=0o700)
        small = f"mount -t tmpfs -o size=400k,mode=0700 none {store}"
        return mounted(f"{small} && cp -a {seed}/. {store} && {{ {then}; }}")

    def test_a_renewal_that_finds_no_room_is_kept_at_the_ca(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports, old: Bundle
    ) -> None:
        """Full when the certificate arrives. With room again the very same order is fetched."""
        gate = ca.gate("certificate")
        with running(tmp_path, ca, site(HOST), ports=ports, before=self.disk(tmp_path)) as proxy:
            gate.wait()
            store = as_mounted(proxy.pid, tmp_path / "store")
            filler = store / "certificates" / "filler"
            fill(filler)
            gate.open()
            told = proxy.wait_for("certificate.failing")
            assert "The disk is full: make room." in told["error"]
            left = datetime.fromisoformat(told["next_attempt"]) - datetime.now(UTC)
            assert timedelta(minutes=5) < left < timedelta(minutes=15)
            expect_served(proxy, old)
            filler.unlink()
            admin(proxy, "certs", "obtain", HOST)
            until_served(proxy, HOST, ca)
            check_store(store)
        assert orders(ca) == 2  # the first is the old one's
        assert len(ca.issued) == 2

    @pytest.mark.parametrize("room", [0, 40], ids=["no room", "no room for the trial"])
    def test_nothing_is_ordered_that_could_not_be_kept(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports, old: Bundle, room: int
    ) -> None:
        filler = f"{tmp_path}/store/certificates/filler"
        full = f"dd if=/dev/zero of={filler} bs=1k 2>/dev/null; truncate -s -{room}k {filler}"
        before = ca.count.copy()
        with running(tmp_path, ca, site(HOST), ports=ports, before=self.disk(tmp_path, full)) as proxy:
            assert "The disk is full: make room." in proxy.wait_for("certificate.failing")["error"]
            expect_served(proxy, old)
            assert "The disk is full: make room." in admin(proxy, "certs", "why", HOST).out
        assert ca.count == before


def as_other_user(path: Path) -> tuple[str, ...]:
    """Give a place to somebody else, and return what takes from root the right to look at it all the same."""
    shutil.chown(path, NOBODY)
    command = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    if not shutil.which("setpriv") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("needs root and setpriv")
    return command


def fill(path: Path) -> None:
    """Take all the room that a disk has."""
    size = 1 << 20
    with path.open("wb", buffering=0) as file:
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


class TestStore:
    """Rows 23 and 25."""

    def test_one_that_can_only_be_read_is_served_from_and_nothing_is_ordered(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports
    ) -> None:
        old, store = obtain_earlier(tmp_path, ca, HOST, age=LONG_AGO), tmp_path / "store"
        before = ca.count.copy()
        read_only = mounted(f"mount --bind {store} {store} && mount -o remount,ro,bind {store}")
        with running(tmp_path, ca, site(HOST), ports=ports, before=read_only) as proxy:
            told = proxy.wait_for("certificate.failing")["error"]
            assert str(store) in told
            assert "mount it for writing or change store.url" in told
            assert "mount it for writing or change store.url" in admin(proxy, "certs", "why", HOST).out
            expect_served(proxy, old)
        assert ca.count == before

    def test_a_record_of_another_user_harms_its_own_name_alone(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports
    ) -> None:
        """As after a command that was run with sudo. It may be good: nothing is ordered in its place."""
        obtain_earlier(tmp_path, ca, HOST, age=LATELY)
        other = obtain_earlier(tmp_path, ca, "b.test", age=LATELY)
        record = tmp_path / "store" / "certificates" / "acme%2fa.test.json"
        with running(tmp_path, ca, site(HOST) + site("b.test"), ports=ports, before=as_other_user(record)) as proxy:
            assert f"{record}" in proxy.wait_for("certificate.unreadable")["error"]
            expect_served(proxy, other, "b.test")
            assert served(proxy, HOST) is None
        assert orders(ca) == 2

    def test_one_of_another_user_is_refused_with_its_place(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports
    ) -> None:
        obtain_earlier(tmp_path, ca, HOST, age=LATELY)
        store = tmp_path / "store"
        proxy = running(tmp_path, ca, site(HOST), ports=ports, before=as_other_user(store))
        with pytest.raises(AssertionError, match=f"{store}.*Give it to the user with uid"), proxy:
            pass

    @pytest.mark.parametrize("left", [0, 1000], ids=["empty", "cut"])
    def test_a_damaged_record_is_replaced_while_others_are_served(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports, left: int
    ) -> None:
        obtain_earlier(tmp_path, ca, HOST, age=LATELY)
        other = obtain_earlier(tmp_path, ca, "b.test", age=LATELY)
        os.truncate(tmp_path / "store" / "certificates" / "acme%2fa.test.json", left)
        with running(tmp_path, ca, site(HOST) + site("b.test"), ports=ports) as proxy:
            expect_served(proxy, other, "b.test")
            until_served(proxy, HOST, ca)
        assert orders(ca) == 3
        check_store(tmp_path / "store")


class TestClock:
    """Rows 26 and 27: wall clocks that are wrong; what measures time is not concerned."""

    def test_ninety_days_later_the_certificate_is_renewed_at_once_and_once(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports
    ) -> None:
        """A machine that has slept: both have gone past the end. What has expired is served until then."""
        old = obtain_earlier(tmp_path, ca, HOST, age=timedelta(days=1))
        ahead = timedelta(days=91)
        ca.now = lambda: datetime.now(UTC) + ahead
        gate = ca.gate("order")
        with running(tmp_path, ca, site(HOST), ports=ports, before=at(ahead)) as proxy:
            gate.wait()
            expect_served(proxy, old)
            gate.open()
            expect_renewed(proxy, ca)
            settled(ca)
        assert orders(ca) == 2

    def test_leaps_while_it_runs_end_no_connection(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports, app: str
    ) -> None:
        """One client stays through 91 days, a renewal, and the way back; what is then from the future is kept."""
        obtain_earlier(tmp_path, ca, HOST, age=timedelta(days=1))
        clock, ahead = tmp_path / "clock", timedelta(days=91)
        clock.write_text("+0d")
        with (
            running(tmp_path, ca, site(HOST, backend=app), ports=ports, before=at(clock)) as proxy,
            contextlib.closing(proxy.connection(HOST)) as client,
        ):
            hello(client)
            until(lambda: ca.count["renewal-info"], "the certifier is at work")
            ca.now = lambda: datetime.now(UTC) + ahead
            put(clock, b"+91d")
            hello(client)
            tlsproxy(tmp_path, "admin", "certs", "obtain", HOST)  # by itself it looks within ten minutes
            expect_renewed(proxy, ca)
            hello(client)
            put(clock, b"-2d")
            hello(client)
            said = tlsproxy(tmp_path, "admin", "certs", "obtain", HOST)
            assert said.code == 1
            assert "is the clock right?" in said.err
        assert orders(ca) == 2

    def test_two_days_back_what_is_not_valid_yet_is_served_and_not_replaced(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports
    ) -> None:
        """Another one would be from the future as well."""
        old = obtain_earlier(tmp_path, ca, HOST, age=timedelta(hours=1))
        behind = at(timedelta(days=-2))
        with running(tmp_path, ca, site(HOST) + site("b.test"), ports=ports, before=behind) as proxy:
            told = proxy.wait_for("certificate.clock_behind", certificate="acme/b.test")
            assert "Set the clock (NTP)" in told["problem"]
            proxy.wait_for("certificate.obtained", certificate="acme/b.test")
            expect_served(proxy, old)
            settled(ca)
            assert "is the clock right?" in admin(proxy, "certs", "why", HOST).out
        assert orders(ca) == 2  # that of an hour ago, and one for b.test


def hello(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/hello", headers={"Host": HOST})
    response = client.getresponse()
    assert (response.status, response.read()) == (200, b"hello")


def at(when: timedelta | Path) -> tuple[str, ...]:
    """Return what gives a command another wall clock: so far from ours, or as the file says, "+2d", at any time."""
    if not shutil.which("faketime"):
        pytest.skip("faketime is not installed (Debian package faketime)")
    said = subprocess.run(["faketime", "-m", "-f", "+0d", "env"], capture_output=True, text=True, check=True).stdout
    preload = next(line for line in said.splitlines() if line.startswith("LD_PRELOAD="))
    clock = f"_TIMESTAMP_FILE={when}" if isinstance(when, Path) else f"={when.total_seconds():+.0f}"
    return "env", preload, f"FAKETIME{clock}", "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"


def settled(ca: CertificateAuthority, quiet: float = 1.5) -> None:
    """Wait until nobody has asked the CA for so many seconds: long enough for anything that would go on and on."""
    last, since = ca.count.total(), time.monotonic()

    def is_quiet() -> bool:
        nonlocal last, since
        if ca.count.total() != last:
            last, since = ca.count.total(), time.monotonic()
        return time.monotonic() - since > quiet

    until(is_quiet, "the CA is left alone")


class TestAway:
    """Row 28: a CA that is not there, or says so."""

    def test_at_the_start_nobody_waits_for_it(self, tmp_path: Path, ca: CertificateAuthority, ports: Ports) -> None:
        """What has expired is served; when the CA is back the attempt that has lasted until then succeeds."""
        old = obtain_earlier(tmp_path, ca, HOST, age=timedelta(days=91))
        ca.stop()
        with running(tmp_path, ca, site(HOST), ports=ports) as proxy:
            proxy.wait_for("certificate.ordering")
            expect_served(proxy, old)
            ca.start()
            expect_renewed(proxy, ca)
            assert proxy.count("certificate.failing") == 0
        assert orders(ca) == 2

    def test_one_that_says_when_to_come_again_is_left_alone_until_then(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports
    ) -> None:
        """With little time left people are told; a restart asks no sooner, and `why` says what is waited for."""
        old = obtain_earlier(tmp_path, ca, HOST, age=timedelta(days=88))
        ca.fails("directory", status=503, body=b"<html>maintenance</html>", headers={"Retry-After": "3600"}, times=99)
        with running(tmp_path, ca, site(HOST), ports=ports) as proxy:
            told = proxy.wait_for("certificate.failing")
            assert until_next(told["next_attempt"]) > timedelta(minutes=55)
            proxy.wait_for("certificate.expiring", certificate=NAME)
            expect_served(proxy, old)
        with running(tmp_path, ca, site(HOST), ports=ports) as proxy:
            proxy.wait_for("certificate.expiring")
            why = admin(proxy, "certs", "why", HOST).out
            assert f"but there is nothing from {ca.directory} before" in why
            assert "503 Service Unavailable: maintenance" in why
            settled(ca)
            assert proxy.count("certificate.ordering") == 0
        assert orders(ca) == 1


def until_next(instant: str) -> timedelta:
    return datetime.fromisoformat(instant) - datetime.now(UTC)


class TestTrouble:
    """Rows 29 to 32: a CA that is there and makes it hard."""

    @pytest.mark.parametrize("share", [60, 85])
    def test_nonces_that_are_refused(self, tmp_path: Path, dns: ChallTestSrv, ports: Ports, share: int) -> None:
        with (
            Pebble(tmp_path, dns=dns.address, http_port=ports.http, bad_nonces=share) as ca,
            running(tmp_path, ca, site(HOST), ports=ports) as proxy,
        ):
            proxy.wait_for("certificate.obtained")
            proxy.open(HOST, trusting(ca.root())).close()
            assert ca.orders == 1

    def test_validation_and_signature_that_take_their_time(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports
    ) -> None:
        """Polls come when the CA has said, neither sooner nor for ever."""
        ca.processing_polls, ca.processing_retry_after = 3, "1"
        with running(tmp_path, ca, site(HOST), ports=ports) as proxy:
            begun, done = (proxy.wait_for(f"certificate.{each}")["ts"] for each in ("ordering", "obtained"))
            assert datetime.fromisoformat(done) - datetime.fromisoformat(begun) >= timedelta(seconds=3)
        assert ca.count["order-poll"] == 1 + 3  # once when the names are proven

    def test_a_validation_that_sleeps(self, tmp_path: Path, dns: ChallTestSrv, ports: Ports) -> None:
        with (
            Pebble(tmp_path, dns=dns.address, http_port=ports.http, validation_sleep=4) as ca,
            running(tmp_path, ca, site(HOST, "b.test", "c.test"), ports=ports) as proxy,
        ):
            proxy.wait_for("certificate.obtained")
            assert ca.orders == 1

    def test_a_name_that_is_refused_holds_up_no_other(self, tmp_path: Path, dns: ChallTestSrv, ports: Ports) -> None:
        sites = site("blocked.test") + site(HOST)
        with (
            Pebble(tmp_path, dns=dns.address, http_port=ports.http, blocked=("blocked.test",)) as ca,
            running(tmp_path, ca, sites, ports=ports) as proxy,
        ):
            proxy.wait_for("certificate.obtained", certificate=NAME)
            told = proxy.wait_for("certificate.failing", certificate="acme/blocked.test")
            assert "blocked.test" in told["error"]
            assert "next_attempt" not in told
            why = admin(proxy, "certs", "why", "blocked.test").out
            assert "until somebody changes the configuration" in why

    def test_a_limit_that_is_reached_stops_its_name_alone_and_outlives_a_restart(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports
    ) -> None:
        ca.next_order_fails("rateLimited", "too many new orders recently", status=429, headers={"Retry-After": "7200"})
        sites = site(HOST) + site("b.test")
        with running(tmp_path, ca, sites, ports=ports) as proxy:
            told = proxy.wait_for("certificate.failing")
            assert until_next(told["next_attempt"]) > timedelta(minutes=115)
            assert "too many new orders recently" in told["error"]
            proxy.wait_for("certificate.obtained")
        with running(tmp_path, ca, sites, ports=ports) as proxy:
            why = admin(proxy, "certs", "why", told["names"][0]).out
            assert "too many new orders recently" in why
            settled(ca)
        assert ca.count["order"] == 2

    def test_a_ca_that_forgets_us_between_two_certificates(
        self, tmp_path: Path, dns: ChallTestSrv, ports: Ports
    ) -> None:
        with (
            Pebble(tmp_path, dns=dns.address, http_port=ports.http) as ca,
            running(tmp_path, ca, site(HOST), ports=ports) as proxy,
        ):
            proxy.wait_for("certificate.obtained")
            before = (ca.accounts, ca.orders)
            ca.restart()
            admin(proxy, "certs", "renew", HOST)
            proxy.open(HOST, trusting(ca.root())).close()
            assert (ca.accounts - before[0], ca.orders - before[1]) == (1, 1)
            assert proxy.count("certificate.failing") == 0


class TestWindows:
    """Row 33: what the CA says about when to renew (RFC 9773)."""

    @pytest.mark.parametrize("ended", [timedelta(), timedelta(days=30)], ids=["just over", "over for long"])
    def test_one_that_is_over_renews_at_once_and_names_the_predecessor(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports, ended: timedelta
    ) -> None:
        old = obtain_earlier(tmp_path, ca, HOST, age=LATELY)
        end = datetime.now(UTC) - ended
        ca.ari(old.ari_id, end - timedelta(days=2), end)
        with running(tmp_path, ca, site(HOST), ports=ports) as proxy:
            expect_renewed(proxy, ca)
            settled(ca)
        assert [each.get("replaces", "") for each in ca.payloads["order"]] == ["", old.ari_id]

    @pytest.mark.parametrize(
        ("status", "body", "age"),
        [
            (500, "<html>", LATELY),
            (200, "{", LONG_AGO),
            (200, '{"suggestedWindow": {"start": "soon", "end": 7}}', LATELY),
            (200, '{"suggestedWindow": {"start": "2020-01-02T00:00:00Z", "end": "2020-01-01T00:00:00Z"}}', LONG_AGO),
        ],
        ids=["error, not due", "half of one, due", "nonsense, not due", "backwards, due"],
    )
    def test_one_that_is_none_changes_nothing(
        self, tmp_path: Path, ca: CertificateAuthority, ports: Ports, status: int, body: str, age: timedelta
    ) -> None:
        """Two thirds of the life are the rule then, and the question is not asked again at once."""
        obtain_earlier(tmp_path, ca, HOST, age=age)
        ca.fails("renewal-info", status=status, body=body.encode(), times=99)
        with running(tmp_path, ca, site(HOST), ports=ports) as proxy:
            until(lambda: ca.count["renewal-info"], "the CA is asked")
            if age == LONG_AGO:
                expect_renewed(proxy, ca)
            settled(ca)
            assert ca.count["renewal-info"] == 1
        assert orders(ca) == (2 if age == LONG_AGO else 1)


def test_authorizations_that_are_still_valid_and_chains_that_are_long(
    tmp_path: Path, dns: ChallTestSrv, ports: Ports
) -> None:
    """Row 34: the second order needs no challenge; what is served leads a client to the root over all of them."""
    with (
        Pebble(tmp_path, dns=dns.address, http_port=ports.http, reuse_authorizations=100, chain_length=3) as ca,
        running(tmp_path, ca, site(HOST), ports=ports) as proxy,
    ):
        proxy.wait_for("certificate.obtained")
        steps = [line.partition(":")[0] for line in admin(proxy, "certs", "renew", HOST).lines]
        assert "finalize" in steps
        assert "challenge" not in steps
        proxy.open(HOST, trusting(ca.root())).close()
        with contextlib.closing(store_of(tmp_path)) as store:
            bundle = store.get(NAME)
            assert bundle is not None
            assert len(x509.load_pem_x509_certificates(bundle.chain_pem)) == 4
