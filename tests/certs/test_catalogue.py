"""What `admin certs list`, `show` and `why` answer, from settings and a store alone."""

import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.certs.plans import ACCOUNT, CA, DAY, HOUR, STAGING, failed
from tests.store.pki import issue, rsa_key, write_pair
from tlsproxy.certs import accounts
from tlsproxy.certs.account_key import AccountKey
from tlsproxy.certs.ari import with_ari
from tlsproxy.certs.catalogue import Catalogue, UnknownCertificate
from tlsproxy.certs.internal import ensure
from tlsproxy.certs.ledger import Ledger, ledger_name
from tlsproxy.certs.limits import LETSENCRYPT
from tlsproxy.certs.outages import Outage
from tlsproxy.certs.plan_internal import renewal_time as internal_renewal_time
from tlsproxy.certs.problems import AcmeFailure, FailureKind
from tlsproxy.certs.state import State, after_revocation, after_success, used
from tlsproxy.certs.wanted import Held, Wanted
from tlsproxy.certs.wishes import Wishes
from tlsproxy.settings import Settings
from tlsproxy.store.base import CertificateStore, open_store
from tlsproxy.store.bundle import Bundle

NOW = datetime.now(UTC).replace(microsecond=0)
BORN = NOW - 10 * DAY
KEYS = [
    "name",
    "names",
    "issuer",
    "not_before",
    "not_after",
    "serial",
    "source",
    "status",
    "renew_at",
    "next_attempt",
    "attempts",
    "last_error",
    "ari",
    "served",
]
FAILURE = AcmeFailure(
    FailureKind.VALIDATION,
    type="connection",
    detail="2001:db8::7: Fetching http://a.test/.well-known/acme-challenge/x: Connection refused",
    identifier="a.test",
    address="2001:db8::7",
    step="validation",
    directory=CA,
)


def settings(*sites: dict[str, Any], **acme: Any) -> Settings:
    backends = {"backends": ["http://127.0.0.1:1"]}
    whole = {"directory": CA, "staging": STAGING, "quota": "letsencrypt", **acme}
    return Settings.model_validate(
        {"acme": whole, "on_demand": {"ask": "/may"}, "sites": [{**backends, **site} for site in sites]}
    )


def acme(*hosts: str) -> dict[str, Any]:
    return {"hosts": list(hosts), "certificate": "acme"}


ONE = settings(acme("a.test", "b.test"))


def bundle(*names: str, born: datetime = BORN, life: timedelta = 90 * DAY) -> Bundle:
    made = replace(issue(*names).bundle(), source="acme", not_before=born, not_after=born + life)
    return replace(made, directory=CA, account=ACCOUNT, ari_id=f"aki.{names[0]}")


@pytest.fixture
def store() -> CertificateStore:
    return open_store("memory:")


def remember(store: CertificateStore, name: str, state: State) -> None:
    store.put_record("state", name, state.to_record())


def wanted(hosts: tuple[str, ...] = ("a.test", "b.test"), configured: Settings = ONE) -> Wanted:
    return Wishes(configured.acme).of_hosts(hosts)


def only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    assert len(rows) == 1
    return rows[0]


# --- list


def test_a_good_certificate(store: CertificateStore) -> None:
    held = bundle("a.test", "b.test")
    store.put("acme/a.test", held)
    start, end = NOW + 30 * DAY, NOW + 32 * DAY
    remember(store, "acme/a.test", with_ari(State(), Held.of(held), start, end, retry_after=None, now=NOW))
    row = only(Catalogue(ONE, store, served=lambda name: name == "acme/a.test").rows(NOW))
    assert list(row) == KEYS
    assert start <= moment(row["renew_at"]) <= end
    assert moment(row["next_attempt"]) == moment(row["renew_at"]) - timedelta(minutes=10)
    assert {**row, "renew_at": None, "next_attempt": None} == {
        "name": "acme/a.test",
        "names": ["a.test", "b.test"],
        "issuer": "CN=a.test",
        "not_before": stamp(BORN),
        "not_after": stamp(BORN + 90 * DAY),
        "serial": held.serial,
        "source": "acme",
        "status": "valid",
        "renew_at": None,
        "next_attempt": None,
        "attempts": 0,
        "last_error": None,
        "ari": {"start": stamp(start), "end": stamp(end)},
        "served": True,
    }


def test_nothing_yet(store: CertificateStore) -> None:
    row = only(Catalogue(ONE, store, served=lambda _: True).rows(NOW))
    assert row == dict.fromkeys(KEYS) | {
        "name": "acme/a.test",
        "names": ["a.test", "b.test"],
        "source": "acme",
        "status": "pending",
        "next_attempt": stamp(NOW),
        "attempts": 0,
        "served": False,
    }


def test_what_fails_says_why_and_when_it_goes_on(store: CertificateStore) -> None:
    remember(store, "acme/a.test", failed(FAILURE, wanted=wanted(), now=NOW))
    row = only(Catalogue(ONE, store).rows(NOW))
    assert (row["status"], row["attempts"], row["last_error"]) == ("failed", 1, str(FAILURE))
    assert row["next_attempt"] == stamp(NOW + timedelta(minutes=1))


def test_a_parked_one_has_no_next_attempt(store: CertificateStore) -> None:
    remember(store, "acme/a.test", failed(FailureKind.REFUSED, wanted=wanted(), now=NOW))
    row = only(Catalogue(ONE, store).rows(NOW))
    assert (row["status"], row["next_attempt"]) == ("failed", None)


@pytest.mark.parametrize(
    ("names", "born", "fails", "status"),
    [
        (("a.test", "b.test"), BORN, True, "valid"),
        (("a.test", "b.test"), NOW - 91 * DAY, False, "expired"),
        (("a.test", "b.test"), NOW + DAY, False, "pending"),
        (("a.test",), BORN, False, "pending"),
        (("a.test",), BORN, True, "failed"),
    ],
)
def test_status(store: CertificateStore, names: tuple[str, ...], born: datetime, fails: bool, status: str) -> None:
    """A renewal that fails leaves a certificate valid; one that does not cover all hosts is not there yet."""
    store.put("acme/a.test", bundle(*names, born=born))
    remember(store, "acme/a.test", failed(FAILURE, wanted=wanted(), now=NOW) if fails else State())
    row = only(Catalogue(ONE, store).rows(NOW))
    assert (row["status"], row["attempts"]) == (status, int(fails))


def test_every_source(store: CertificateStore, tmp_path: Path) -> None:
    write_pair(tmp_path, issue("files.test"))
    files = {"chain": str(tmp_path / "chain.pem"), "key": str(tmp_path / "key.pem")}
    configured = settings(
        acme("a.test"),
        {"hosts": ["i.test"], "certificate": "internal"},
        {"hosts": ["files.test"], "certificate": files},
        {"hosts": ["*.od.test"], "certificate": "on_demand"},
    )
    ensure(store, ["i.test"], NOW)
    store.put("acme/x.od.test", bundle("x.od.test"))
    store.put("acme/old.test", bundle("old.test"))
    remember(store, "acme/y.od.test", failed(FAILURE, now=NOW))
    remember(store, "acme/gone.test", failed(FAILURE, now=NOW))
    rows = Catalogue(configured, store, served=lambda _: True).rows(NOW)
    assert [(row["name"], row["source"], row["status"], row["served"]) for row in rows] == [
        ("acme/a.test", "acme", "pending", False),
        ("acme/old.test", "acme", "valid", False),
        ("acme/x.od.test", "acme", "valid", True),
        ("acme/y.od.test", "acme", "failed", False),
        ("file/files.test", "file", "valid", True),
        ("internal/i.test", "internal", "valid", True),
    ]
    internal = store.get("internal/i.test")
    assert internal is not None
    assert rows[-1]["renew_at"] == stamp(internal_renewal_time(internal))


def test_an_imported_one_is_a_file_that_will_be_renewed(store: CertificateStore) -> None:
    store.put("acme/a.test", replace(bundle("a.test", "b.test"), source="file", directory="", account="", ari_id=""))
    row = only(Catalogue(ONE, store).rows(NOW))
    assert (row["source"], row["status"]) == ("file", "valid")
    assert row["renew_at"] is not None


def test_two_kinds_of_keys_are_two_rows(store: CertificateStore, tmp_path: Path) -> None:
    for kind in ("ec", "rsa"):
        (tmp_path / kind).mkdir()
        write_pair(tmp_path / kind, issue("a.test", key=rsa_key() if kind == "rsa" else None))
    pairs = [
        {"chain": str(tmp_path / kind / "chain.pem"), "key": str(tmp_path / kind / "key.pem")} for kind in ("ec", "rsa")
    ]
    catalogue = Catalogue(settings({"hosts": ["a.test"], "certificate": pairs}), store)
    rows = catalogue.rows(NOW)
    assert [row["name"] for row in rows] == ["file/a.test"] * 2
    shown = catalogue.show("a.test", NOW)
    assert (shown["key_type"], [other["key_type"] for other in shown["others"]]) == ("ecdsa-p256", ["rsa-2048"])


def test_a_file_that_is_wrong_says_so(store: CertificateStore, tmp_path: Path) -> None:
    files = {"chain": str(tmp_path / "chain.pem"), "key": str(tmp_path / "key.pem")}
    row = only(Catalogue(settings({"hosts": ["a.test"], "certificate": files}), store).rows(NOW))
    assert row["status"] == "failed"
    assert "there is no such file" in row["last_error"]


def test_an_unused_on_demand_name_is_left_to_expire(store: CertificateStore) -> None:
    configured = settings({"hosts": ["*"], "certificate": "on_demand"})
    store.put("acme/x.test", bundle("x.test", born=NOW - 65 * DAY))
    row = only(Catalogue(configured, store).rows(NOW))
    assert (row["status"], row["renew_at"], row["next_attempt"]) == ("valid", None, None)
    remember(store, "acme/x.test", used(State(), NOW - DAY))
    row = only(Catalogue(configured, store).rows(NOW))
    assert row["next_attempt"] == stamp(NOW)


def test_a_damaged_record_is_one_row_that_says_so(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    for host in ("a.test", "c.test"):
        store.put(f"acme/{host}", bundle(host))
    [damaged] = [path for path in (tmp_path / "certificates").iterdir() if "c.test" in path.name]
    damaged.write_text("{")
    rows = Catalogue(settings(acme("a.test"), acme("c.test")), store).rows(NOW)
    assert [row["status"] for row in rows] == ["valid", "failed"]
    assert "damaged" in rows[1]["last_error"]
    assert rows[1]["next_attempt"] == stamp(NOW)  # another one takes its place


def test_one_that_is_sealed_with_another_key_is_not_ordered_again(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}", ["old key old key old key old key!"]).put(
        "acme/a.test", bundle("a.test", "b.test")
    )
    catalogue = Catalogue(ONE, open_store(f"file://{tmp_path}", ["new key new key new key new key!"]))
    row = only(catalogue.rows(NOW))
    assert (row["status"], row["next_attempt"]) == ("failed", None)
    why = catalogue.why("a.test", NOW)
    assert why["decision"] == "park"
    assert why["sentences"][:2] == [
        "acme/a.test: the certificate for a.test, b.test cannot be read.",
        "Nothing is done: it may be good, so none is ordered in its place. "
        "Next: the proxy looks again every few minutes.",
    ]


# --- names


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("a.test", "acme/a.test"),
        ("B.test.", "acme/a.test"),
        ("acme/a.test", "acme/a.test"),
        ("*.w.test", "acme/*.w.test"),
        ("x.w.test", "acme/*.w.test"),
        ("2001:DB8::1", "acme/2001:db8::1"),
        ("i.test", "internal/i.test"),
        ("x.od.test", "acme/x.od.test"),
        ("failing.od.test", "acme/failing.od.test"),
        ("old.test", "acme/old.test"),
        ("internal-ca", "internal-ca"),
    ],
)
def test_any_host_of_a_site_names_its_certificate(store: CertificateStore, given: str, name: str) -> None:
    assert Catalogue(many(store), store).resolve(given) == name


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a.tset", "Did you mean a.test?"),
        ("acme/a.tset", "Did you mean acme/a.test?"),
        ("nothing.like.it.example", "See: tlsproxy admin certs list"),
        ("new.od.test", "It is obtained when a client first asks for it."),
    ],
)
def test_an_unknown_name_is_told_what_is_near(store: CertificateStore, given: str, words: str) -> None:
    with pytest.raises(UnknownCertificate) as caught:
        Catalogue(many(store), store).show(given, NOW)
    assert str(caught.value).startswith(given)
    assert str(caught.value).endswith(words)


def many(store: CertificateStore) -> Settings:
    ensure(store, ["i.test"], NOW)
    for host in ("x.od.test", "old.test"):
        store.put(f"acme/{host}", bundle(host))
    remember(store, "acme/failing.od.test", failed(FAILURE, now=NOW))
    return settings(
        acme("a.test", "b.test"),
        acme("*.w.test"),
        acme("2001:db8::1"),
        {"hosts": ["i.test"], "certificate": "internal"},
        {"hosts": ["*.od.test"], "certificate": "on_demand"},
        challenges=["dns-01", "http-01"],
        dns={"provider": "exec", "exec": {"command": ["/bin/true"]}},
    )


# --- show


def test_show_has_the_chain_the_key_and_the_ca_but_no_key(store: CertificateStore) -> None:
    root = issue(ca=True, cn="Root")
    leaf = issue("a.test", "b.test", by=root)
    held = replace(leaf.bundle(root), source="acme", directory=CA, account=ACCOUNT, profile="classic")
    store.put("acme/a.test", held)
    shown = Catalogue(ONE, store).show("b.test", NOW)
    assert list(shown)[: len(KEYS)] == KEYS
    assert shown["hosts"] == ["a.test", "b.test"]
    assert (shown["directory"], shown["account"], shown["profile"]) == (CA, ACCOUNT, "classic")
    assert (shown["fingerprint"], shown["key_type"]) == (held.fingerprint, "ecdsa-p256")
    assert [(member["subject"], member["issuer"]) for member in shown["chain"]] == [
        ("CN=a.test", "CN=Root"),
        ("CN=Root", "CN=Root"),
    ]
    assert shown["chain"][0]["serial"] == held.serial
    assert "PRIVATE" not in repr(shown)


def test_show_of_what_is_not_there_yet(store: CertificateStore) -> None:
    shown = Catalogue(ONE, store).show("a.test", NOW)
    assert (shown["status"], shown["serial"]) == ("pending", None)
    assert "chain" not in shown


# --- why


def test_why_of_a_good_one(store: CertificateStore) -> None:
    store.put("acme/a.test", bundle("a.test", "b.test"))
    why = Catalogue(ONE, store).why("a.test", NOW)
    assert (why["decision"], why["reason"]) == ("wait", "about two thirds of its life are over then")
    assert why["next"]["what"] == f"a certificate is ordered from {CA}"
    assert moment(why["next"]["when"]) > NOW + 47 * DAY
    assert why["last_error"] is None
    assert why["sentences"][0] == (
        "acme/a.test: the certificate for a.test, b.test, issued by CN=a.test, "
        f"is valid until {(BORN + 90 * DAY):%Y-%m-%d %H:%M} UTC, 80 days."
    )


def test_why_of_one_that_fails_has_the_cas_own_words_and_the_address_it_tried(store: CertificateStore) -> None:
    remember(store, "acme/a.test", failed(FAILURE, FAILURE, wanted=wanted(), now=NOW))
    why = Catalogue(ONE, store).why("a.test", NOW)
    assert (why["decision"], why["attempts"], why["failing_since"]) == ("wait", 2, stamp(NOW))
    assert why["reason"].startswith("there is no certificate yet, but 2 attempts failed; the next is on ")
    assert why["next"] == {
        "what": f"a rehearsal at {STAGING}; if that goes well, a certificate is ordered from {CA}",
        "when": stamp(NOW + timedelta(minutes=10)),
    }
    assert why["last_error"] == {
        "sentence": str(FAILURE),
        "ca_words": FAILURE.detail,
        "address": "2001:db8::7",
        "when": stamp(NOW),
        "rehearsal": False,
    }
    text = "\n".join(why["sentences"])
    assert f"failed, failure 2 in a row: {FAILURE}" in text
    assert FAILURE.detail in text
    assert [event["what"] for event in why["history"]] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("state", "decision", "what"),
    [
        (failed(FailureKind.REFUSED, wanted=wanted()), "park", "nothing, until somebody changes the configuration"),
        (failed(FailureKind.VALIDATION, now=NOW, wanted=wanted()), "wait", "a reh"),
        (failed(FailureKind.BUSY, now=NOW, wanted=wanted()), "wait", f"a certificate is ordered from {CA}"),
        (State(), "obtain", f"a certificate is ordered from {CA}"),
    ],
)
def test_why_says_what_is_next(store: CertificateStore, state: State, decision: str, what: str) -> None:
    remember(store, "acme/a.test", state)
    why = Catalogue(ONE, store).why("a.test", NOW)
    assert why["decision"] == decision
    assert why["next"]["what"].startswith(what)


def test_why_of_one_that_waits_for_a_ca_that_another_has_found_away(store: CertificateStore) -> None:
    away = {CA: Outage(CA, NOW - HOUR, NOW + HOUR / 10, error="the CA can't be reached")}
    catalogue = Catalogue(ONE, store, away=away)
    why = catalogue.why("a.test", NOW)
    assert (why["decision"], why["attempts"], why["last_error"]) == ("wait", 0, None)
    assert why["reason"].startswith(f"there is no certificate yet, but the CA {CA} has been out of service since ")
    assert why["next"] == {"what": f"a certificate is ordered from {CA}", "when": stamp(NOW + HOUR / 10)}
    assert "Another certificate was told: the CA can't be reached" in why["sentences"]
    row = only(catalogue.rows(NOW))
    assert (row["next_attempt"], row["attempts"], row["status"]) == (stamp(NOW + HOUR / 10), 0, "pending")


def test_why_of_a_revoked_one(store: CertificateStore) -> None:
    held = bundle("a.test", "b.test")
    store.put("acme/a.test", held)
    remember(store, "acme/a.test", after_revocation(State(), Held.of(held), NOW, "keyCompromise"))
    why = Catalogue(ONE, store).why("a.test", NOW)
    assert (why["decision"], why["reason"]) == ("obtain", "it was revoked")
    assert "revoked: serial" in why["sentences"][-1]


def test_why_of_what_is_not_ours_to_renew(store: CertificateStore, tmp_path: Path) -> None:
    write_pair(tmp_path, issue("files.test"))
    files = {"chain": str(tmp_path / "chain.pem"), "key": str(tmp_path / "key.pem")}
    configured = settings({"hosts": ["files.test"], "certificate": files})
    store.put("acme/old.test", bundle("old.test"))
    ensure(store, ["i.test"], NOW)
    catalogue = Catalogue(configured, store)
    assert catalogue.why("files.test", NOW)["reason"] == "it comes from files"
    old = catalogue.why("old.test", NOW)
    assert (old["decision"], old["reason"]) == ("nothing", "no site uses it")
    assert "tlsproxy admin certs remove acme/old.test" in old["sentences"][1]


def test_why_of_an_internal_one(store: CertificateStore) -> None:
    configured = settings({"hosts": ["i.test"], "certificate": "internal"})
    catalogue = Catalogue(configured, store)
    assert catalogue.why("i.test", NOW)["decision"] == "obtain"
    ensure(store, ["i.test"], NOW)
    assert catalogue.why("i.test", NOW)["decision"] == "wait"
    assert catalogue.why("i.test", NOW + 40 * DAY)["decision"] == "obtain"


def test_why_of_a_parked_on_demand_name(store: CertificateStore) -> None:
    configured = settings({"hosts": ["*"], "certificate": "on_demand"})
    remember(store, "acme/x.test", failed(FAILURE, now=NOW - 2 * DAY))
    why = Catalogue(configured, store).why("x.test", NOW)
    assert (why["decision"], why["next"]["what"]) == ("park", "nothing, until a client asks for it")


# --- the quota


def test_why_shows_the_budget_of_our_account_there(store: CertificateStore) -> None:
    spend(store)
    why = Catalogue(ONE, store).why("a.test", NOW)
    assert why["quota"][0] == {
        "ca": CA,
        "limit": "certificates within 7 days for exactly these names (a.test, b.test)",
        "used": 3,
        "of": 5,
        "refills_at": stamp(NOW + 7 * DAY / 5),
    }
    assert any(sentence.startswith("Used 3 of 5 certificates within 7 days") for sentence in why["sentences"])


def test_the_quota_of_everything(store: CertificateStore) -> None:
    spend(store)
    rows = Catalogue(ONE, store).quota(NOW)
    assert [(row["used"], row["of"]) for row in rows] == [(3, 5), (3, 50), (3, 50)]
    domains = {row["limit"] for row in rows[1:]}
    assert domains == {f"certificates within 7 days for {name} and the names below it" for name in ("a.test", "b.test")}


def test_without_published_limits_there_is_no_quota(store: CertificateStore) -> None:
    catalogue = Catalogue(settings(acme("a.test"), quota="auto"), store)
    assert (catalogue.quota(NOW), catalogue.why("a.test", NOW)["quota"]) == ([], [])


def spend(store: CertificateStore) -> None:
    account = accounts.Account(accounts.account_name(CA), CA, AccountKey.generate(), ACCOUNT)
    store.put_record("accounts", account.name, account.to_record())
    ledger = Ledger(LETSENCRYPT, CA, ACCOUNT)
    for _ in range(3):
        ledger = ledger.record_certificate(["a.test", "b.test"], NOW)
    store.put_record("ledger", ledger_name(CA, ACCOUNT), ledger.to_record())


# --- wishes


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        ({"profile": "tlsserver"}, True),
        ({"eab_kid": "kid", "eab_hmac_key": "A" * 43}, True),
        ({"challenges": ["http-01"]}, True),
        ({}, False),
    ],
)
def test_the_fingerprint_changes_with_whatever_could_change_an_answer(change: dict[str, Any], changes: bool) -> None:
    other = settings(acme("a.test", "b.test"), **change)
    assert (wanted(configured=other).fingerprint != wanted().fingerprint) is changes
    assert wanted(("a.test",)).fingerprint != wanted().fingerprint


def test_a_key_of_the_binding_is_in_no_value() -> None:
    secret = "c2VjcmV0LXRoYXQtbm9ib2R5LXNlZXM"
    made = wanted(configured=settings(acme("a.test"), eab_kid="kid", eab_hmac_key=secret))
    assert secret not in repr(made)


def test_wishes_of_sites_are_those_with_a_public_ca() -> None:
    configured = settings(acme("a.test"), {"hosts": ["i.test"], "certificate": "internal"})
    [made] = Wishes(configured.acme, {CA: ACCOUNT}).of_sites(configured.sites)
    assert (made.name, made.hosts, made.issuers[0].account) == ("acme/a.test", ("a.test",), ACCOUNT)


# --- cost


def test_ten_thousand_names_are_listed_within_two_seconds(tmp_path: Path) -> None:
    """By a fiftieth of them, in CPU time; scripts/bench has all of them."""
    hosts = [f"n{number}.test" for number in range(200)]
    store, made = open_store(f"file://{tmp_path}"), bundle("n.test")
    state = after_success(State(), wanted(("n.test",)), Held.of(made), NOW)
    with store.exclusive():
        for host in hosts:
            store.put(f"acme/{host}", replace(made, names=(host,)))
            remember(store, f"acme/{host}", state)
    catalogue = Catalogue(settings(*(acme(host) for host in hosts)), store)
    taken = []
    for _ in range(3):
        begun = time.process_time()
        assert len(catalogue.rows(NOW)) == len(hosts)
        taken.append(time.process_time() - begun)
    assert min(taken) < 2 / 50


def test_the_command_line_pays_for_no_acme() -> None:
    heavy = "'acme', 'josepy', 'requests', 'dns', 'publicsuffixlist'"
    code = f"import sys, tlsproxy.certs.catalogue; print([name for name in ({heavy}) if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=30, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def stamp(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_name_is_found_as_people_write_it(store: CertificateStore) -> None:
    store.put("acme/xn--bcher-kva.example", issue("xn--bcher-kva.example").bundle())
    assert Catalogue(many(store), store).resolve("Bücher.example") == "acme/xn--bcher-kva.example"
