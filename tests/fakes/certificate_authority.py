"""A fake ACME CA inside the test process, for what no real one does on demand: a real HTTPS server in a thread.

It checks signatures, nonces and signing requests, and issues real certificates; what it claims to have validated it has
not looked at, unless it is given `http_port`. Everything else a test scripts:

    with CertificateAuthority(folder) as ca:            # ca.directory, ca.ca_bundle (file), ca.root (PEM)
        ca.fails("order", "rateLimited", status=429, headers={"Retry-After": "120"})    # the next new order
        ca.fails("directory", status=503, body=b"<html>busy", times=3)
        ca.hangs("finalize")                            # accepted, never answered
        ca.drops("order", after=True)                   # done, and the answer is lost
        ca.when("challenge", lambda: os.kill(pid, 9))   # once, before it is done; after=True: done, not yet answered
        gate = ca.gate("finalize", 2, after=True)       # hold the second one from now on, done and not yet answered:
        gate.wait(); …; gate.open()                     # gate.drop() ends the connection instead (gate.py)
        ca.validation_fails("a.test", "connection", "192.0.2.1: Fetching http://a.test/…: Connection refused")
        ca.issuance_fails("caa", "CAA record for a.test prevents issuance")             # the next finalize
        ca.processing_polls = 3                         # so often a finalized order is still `processing`; -1: for ever
        ca.ari(certificate, start, end, explanation="https://…", retry_after="3600")
        assert ca.count["order"] == 1                   # requests by kind, see KINDS
        assert ca.payloads["order"][-1]["replaces"]     # what was signed, by kind

`stop()` and `start()` keep accounts and orders (a CA that was away); `forget()` loses them (the same CA, restored from
nothing). `profiles` are lifetimes by name; `lifetime` is that of certificates without one. `now` is its clock.
A certificate that was named in `replaces` of an order that was issued can't be named again: 409 alreadyReplaced.
"""

from __future__ import annotations

import http.client
import json
import secrets
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.fakes.acme_server import URN, HttpsServer, Problem, Reply, b64, thumbprint, unb64, verify
from tests.fakes.gate import Gate
from tests.system.running import free_port

KINDS = (
    *("directory", "nonce", "account", "account-update", "order", "order-poll", "authorization", "challenge"),
    *("finalize", "certificate", "renewal-info", "revoke", "key-change"),
)
FETCH = "fetch"
"""No request but a place for a gate: the CA's look at an http-01 answer. Before: connected, it has not asked yet."""


@dataclass
class _Order:
    account: str
    hosts: tuple[str, ...]
    authorizations: list[str]
    profile: str
    replaces: str
    state: str = ""  # "" = as its authorizations are
    polls_left: int = 0
    chain: bytes = b""
    error: dict[str, Any] | None = None


@dataclass
class _Authorization:
    host: str
    wildcard: bool
    thumbprint: str
    challenges: list[dict[str, Any]]
    state: str = "pending"


class CertificateAuthority:
    """See the text at the top of this file."""

    def __init__(
        self,
        folder: Path,
        *,
        http_port: int = 0,
        lifetime: timedelta = timedelta(days=90),
        profiles: Mapping[str, timedelta] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """With `http_port` it really asks 127.0.0.1 at that port for the http-01 answer, under the host's name."""
        self.http_port, self.lifetime, self.profiles, self.now = http_port, lifetime, dict(profiles or {}), now
        self.challenge_types = ["http-01", "tls-alpn-01", "dns-01"]
        self.eab_required = self.reuses_authorizations = False
        self.has_renewal_info = True
        self.processing_polls = 0
        self.processing_retry_after = ""  # of such an answer, as in the header
        self.order_status = ""  # overrides the status that orders are shown with
        self.port = free_port()
        self.directory = f"https://127.0.0.1:{self.port}/directory"
        self.ca_bundle = folder / "fake-ca-https.pem"
        self._https = trustme.CA()
        self._https.cert_pem.write_to_path(self.ca_bundle)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._root = self._make_root()
        self.root = self._root.public_bytes(Encoding.PEM)
        self._lock = threading.RLock()
        self._server: HttpsServer | None = None
        self._ended = threading.Event()
        self._scripts: dict[str, list[Callable[[], Reply | None]]] = defaultdict(list)
        self._hooks: dict[tuple[str, bool], Callable[[], object]] = {}
        self._gates: dict[tuple[str, bool], Gate] = {}
        self._lost: list[str] = []
        self._windows: dict[str, Reply] = {}
        self._failing: dict[str, dict[str, Any]] = {}
        self._refused: dict[str, Any] = {}
        self.forget()

    def forget(self) -> None:
        """Lose accounts, orders, and what was counted."""
        self.count: Counter[str] = Counter()
        self.payloads: dict[str, list[Any]] = defaultdict(list)
        self.headers: dict[str, list[Mapping[str, str]]] = defaultdict(list)
        self.issued: list[x509.Certificate] = []
        self.revoked: dict[int, int] = {}  # reasons by serial
        self.accounts: dict[str, dict[str, Any]] = {}  # {"jwk": …, "contact": […], "status": …} by URL
        self._orders: dict[str, _Order] = {}
        self._authorizations: dict[str, _Authorization] = {}
        self._nonces: set[str] = set()
        self._replaced: set[str] = set()

    # --- what a test scripts

    def fails(
        self,
        kind: str,
        problem: str = "",
        detail: str = "",
        *,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        times: int = 1,
        **more: Any,
    ) -> None:
        """Answer the next requests of this kind with a problem document (`more` are further fields), or with `body`."""
        document = {"type": URN + problem, "detail": detail or problem, "status": status, **more}
        content_type = {"Content-Type": "text/html" if body is not None else "application/problem+json"}
        reply = Reply(status, document if body is None else body, {**content_type, **(headers or {})})
        self._scripts[_checked(kind)] += [lambda: reply] * times

    def next_order_fails(self, problem: str, detail: str = "", **options: Any) -> None:
        self.fails("order", problem, detail, **options)

    def hangs(self, kind: str, times: int = 1) -> None:
        """Take the next requests of this kind and leave them without an answer until the CA is stopped."""
        self._scripts[_checked(kind)] += [self._hang] * times

    def drops(self, kind: str, *, after: bool = False) -> None:
        """Close the connection in place of the next answer: before anything is done, or after it was."""
        if after:
            self._lost.append(_checked(kind))
        else:
            self._scripts[_checked(kind)].append(lambda: None)

    def when(self, kind: str, action: Callable[[], object], *, after: bool = False) -> None:
        """Call `action` once, in the server's thread, when the next request of this kind comes (or has been done)."""
        self._hooks[_checked(kind), after] = action

    def gate(self, kind: str, number: int = 1, *, after: bool = False) -> Gate:
        """Hold the `number`th request of this kind from now on, before it is done, or done and not yet answered."""
        gate = Gate(number, f"{'after' if after else 'before'} {kind} {number}")
        self._gates[kind if kind == FETCH else _checked(kind), after] = gate
        return gate

    def validation_fails(self, host: str, problem: str = "", detail: str = "") -> None:
        """Let every challenge of this host fail; without a problem: succeed again."""
        self._failing[host] = {"type": URN + problem, "detail": detail or problem, "status": 400} if problem else {}

    def issuance_fails(self, problem: str, detail: str = "", **more: Any) -> None:
        """Let the next order become invalid when it is finalized."""
        self._refused = {"type": URN + problem, "detail": detail or problem, "status": 403, **more}

    def ari(
        self, certificate_id: str, start: datetime, end: datetime, *, explanation: str = "", retry_after: str = "21600"
    ) -> None:
        """Set the renewal window of a certificate (by its RFC 9773 id); else it is at 2/3 of its life."""
        window = {"start": start.isoformat(), "end": end.isoformat()}
        document = {"suggestedWindow": window, **({"explanationURL": explanation} if explanation else {})}
        self._windows[certificate_id] = Reply(200, document, {"Retry-After": retry_after} if retry_after else {})

    def forget_nonces(self) -> None:
        """Let no nonce that was given out be good any more."""
        self._nonces.clear()

    def close_account(self, url: str) -> None:
        """Deactivate an account: its key can't be used any more, and registers no other."""
        self.accounts[url]["status"] = "deactivated"

    # --- its life

    def start(self) -> Self:
        self._ended.clear()
        self._server = HttpsServer(("127.0.0.1", self.port), self.answer, self._https)
        threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.002},
            daemon=True,  # one that a test that failed has left behind must not keep pytest from ending
        ).start()
        return self

    def stop(self) -> None:
        """Close the port and every connection. What is hanging ends. May be called twice."""
        self._ended.set()
        for gate in self._gates.values():
            gate.drop()
        if self._server:
            self._server.stop()
            self._server = None  # last: `is_running` says that the port is closed

    @property
    def is_running(self) -> bool:
        return self._server is not None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    # --- answering

    def answer(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply | None:
        """Return the answer to one request, None for none at all."""
        kind, name = _kind(path)
        with self._lock:
            self.count[kind] += 1
            self.headers[kind].append(headers)
            script = self._scripts[kind].pop(0) if self._scripts[kind] else None
        self._run_hook(kind, after=False)
        if not self._passes(kind, after=False):
            return None
        reply = script() if script else self._do(kind, name, path, method, body)
        self._run_hook(kind, after=True)
        if kind in self._lost:
            self._lost.remove(kind)
            return None
        if not self._passes(kind, after=True):
            return None
        if reply and kind not in ("directory", "renewal-info"):
            reply.headers.setdefault("Replay-Nonce", self._nonce())
        return reply

    def _run_hook(self, kind: str, *, after: bool) -> None:
        if hook := self._hooks.pop((kind, after), None):
            hook()

    def _passes(self, kind: str, *, after: bool) -> bool:
        gate = self._gates.get((kind, after))
        return gate is None or gate.pass_through()

    def _hang(self) -> Reply | None:
        self._ended.wait(60)
        return None

    def _do(self, kind: str, name: str, path: str, method: str, body: bytes) -> Reply:
        with self._lock:
            try:
                if method != "POST":
                    return self._get(kind, name)
                url = f"https://127.0.0.1:{self.port}{path}"
                header, payload = self._open(body, url)
                self.payloads[kind].append(payload)
                if kind == "account":
                    return self._register(header["jwk"], payload)
                account = header.get("kid", "")  # "": revocation with the key of the certificate itself
                step: Callable[[str, str, Any], Reply] = getattr(self, "_" + kind.replace("-", "_"))
                return step(account, name, payload)
            except Problem as problem:
                return Reply(problem.status, problem.document, {"Content-Type": "application/problem+json"})

    def _get(self, kind: str, name: str) -> Reply:
        if kind == "directory":
            return Reply(200, self._directory())
        if kind == "renewal-info" and name in self._windows:
            return self._windows[name]
        if kind == "renewal-info":
            return self._usual_window(name)
        return Reply(200)

    def _directory(self) -> dict[str, Any]:
        meta: dict[str, Any] = {"termsOfService": self._url("terms"), "externalAccountRequired": self.eab_required}
        if self.profiles:
            meta["profiles"] = {name: f"{life} long" for name, life in self.profiles.items()}
        urls = {"newNonce": "nonce", "newAccount": "account", "newOrder": "order", "revokeCert": "revoke"}
        urls |= {"keyChange": "key-change"} | ({"renewalInfo": "renewal-info"} if self.has_renewal_info else {})
        return {name: self._url(place) for name, place in urls.items()} | {"meta": meta}

    def _usual_window(self, certificate_id: str) -> Reply:
        found = next((each for each in self.issued if ari_id(each) == certificate_id), None)
        if found is None:
            raise Problem("malformed", "no such certificate", 404)
        life = found.not_valid_after_utc - found.not_valid_before_utc
        start = found.not_valid_before_utc + life * 2 / 3
        self.ari(certificate_id, start, start + life / 30)
        return self._windows.pop(certificate_id)

    def _register(self, jwk: dict[str, Any], payload: dict[str, Any]) -> Reply:
        known = next((url for url, account in self.accounts.items() if account["jwk"] == jwk), "")
        if known and self.accounts[known]["status"] != "valid":
            raise Problem("unauthorized", "An account with the provided public key exists but is deactivated", 403)
        if known:
            return Reply(200, {"status": "valid"}, {"Location": known})
        if payload.get("onlyReturnExisting"):
            raise Problem("accountDoesNotExist", "unable to find existing account")
        if self.eab_required and "externalAccountBinding" not in payload:
            raise Problem("externalAccountRequired", status=403)
        url = self._url("account-update", secrets.token_hex(4))
        self.accounts[url] = {"jwk": jwk, "contact": payload.get("contact", []), "status": "valid"}
        echo = {name: payload[name] for name in ("externalAccountBinding",) if name in payload}
        return Reply(201, {"status": "valid", **echo}, {"Location": url})

    def _account_update(self, account: str, name: str, payload: Any) -> Reply:
        self.accounts[account] |= {"contact": payload.get("contact", self.accounts[account]["contact"])}
        return Reply(200, {"status": "valid"})

    def _key_change(self, account: str, name: str, payload: Any) -> Reply:
        inner = json.loads(unb64(payload["protected"]))
        verify(inner["jwk"], payload)
        statement = json.loads(unb64(payload["payload"]))
        if statement != {"account": account, "oldKey": self.accounts[account]["jwk"]}:
            raise Problem("malformed", "not this account or not its key")
        if taken := [url for url, each in self.accounts.items() if each["jwk"] == inner["jwk"]]:
            return Reply(409, {"type": URN + "malformed", "detail": "key in use"}, {"Location": taken[0]})
        self.accounts[account]["jwk"] = inner["jwk"]
        return Reply(200, {"status": "valid"})

    def _order(self, account: str, name: str, payload: Any) -> Reply:
        replaces, profile = payload.get("replaces", ""), payload.get("profile", "")
        if replaces in self._replaced:
            raise Problem("alreadyReplaced", f"certificate {replaces} has already been replaced", 409)
        if profile and profile not in self.profiles:
            raise Problem("invalidProfile", f"profile {profile!r} not recognized")
        hosts = tuple(each["value"] for each in payload["identifiers"])
        authorizations = [self._authorize(account, host) for host in hosts]
        order = secrets.token_hex(4)
        self._orders[order] = _Order(account, hosts, authorizations, profile, replaces)
        return self._show(order, 201)

    def _authorize(self, account: str, host: str) -> str:
        whose = thumbprint(self.accounts[account]["jwk"])
        plain, name = host.removeprefix("*."), secrets.token_hex(4)
        for known, each in self._authorizations.items():
            same = (each.host, each.wildcard, each.thumbprint) == (plain, plain != host, whose)
            if self.reuses_authorizations and same and each.state == "valid":
                return known
        types = [each for each in self.challenge_types if plain == host or each == "dns-01"]
        challenges = [
            {"type": each, "url": self._url("challenge", f"{name}.{number}"), "token": secrets.token_urlsafe(24)}
            | {"status": "pending"}
            for number, each in enumerate(types)
        ]
        self._authorizations[name] = _Authorization(plain, plain != host, whose, challenges)
        return name

    def _order_poll(self, account: str, name: str, payload: Any) -> Reply:
        order = self._own_order(account, name)
        if order.state == "processing":
            order.polls_left -= 1
            if order.polls_left == 0:
                order.state = "valid"
        return self._show(name, 200)

    def _authorization(self, account: str, name: str, payload: Any) -> Reply:
        if isinstance(payload, dict) and payload.get("status") == "deactivated":
            self._authorizations[name].state = "deactivated"
        each = self._authorizations[name]
        document = {"status": each.state, "challenges": each.challenges, "identifier": _identifier(each.host)}
        return Reply(200, document | ({"wildcard": True} if each.wildcard else {}))

    def _challenge(self, account: str, name: str, payload: Any) -> Reply:
        authorization, _, number = name.partition(".")
        each = self._authorizations[authorization]
        challenge = each.challenges[int(number)]
        error = self._failing.get(each.host) or self._look(each, challenge)
        challenge["status"] = each.state = "invalid" if error else "valid"
        if error:
            challenge["error"] = error
        return Reply(200, challenge, {"Link": f'<{self._url("authorization", authorization)}>;rel="up"'})

    def _look(self, authorization: _Authorization, challenge: dict[str, Any]) -> dict[str, Any]:
        """Return what is wrong with the answer to a challenge; {} if nothing, or if nobody looks."""
        if not self.http_port or challenge["type"] != "http-01":
            return {}
        client = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=10)
        place = f"/.well-known/acme-challenge/{challenge['token']}"
        try:
            client.connect()
            self._passes(FETCH, after=False)
            client.request("GET", place, headers={"Host": authorization.host})
            answer = client.getresponse()
            status, text = answer.status, answer.read(1000).decode("ascii", "replace").strip()
            self._passes(FETCH, after=True)
        except (OSError, http.client.HTTPException) as error:
            return {
                "type": URN + "connection",
                "detail": f"127.0.0.1: Fetching http://{authorization.host}{place}: {error}",
            }
        finally:
            client.close()
        if status == 200 and text == f"{challenge['token']}.{authorization.thumbprint}":
            return {}
        return {
            "type": URN + "unauthorized",
            "detail": f"127.0.0.1: Invalid response from http://{authorization.host}{place}: {status}",
        }

    def _finalize(self, account: str, name: str, payload: Any) -> Reply:
        order = self._own_order(account, name)
        if self._state(order) != "ready":
            raise Problem("orderNotReady", f"Order's status ({self._state(order)!r}) was not ready", 403)
        csr = x509.load_der_x509_csr(unb64(payload["csr"]))
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if not csr.is_signature_valid or sorted(_values(names)) != sorted(order.hosts):
            raise Problem("badCSR", f"the names are {_values(names)}, the order's {order.hosts}")
        if self._refused:
            order.state, order.error, self._refused = "invalid", self._refused, {}
            return self._show(name, 200)
        order.chain = self._issue(csr, names, self.profiles.get(order.profile, self.lifetime))
        self._replaced |= {order.replaces} - {""}
        order.polls_left = self.processing_polls
        order.state = "processing" if order.polls_left else "valid"
        return self._show(name, 200)

    def _certificate(self, account: str, name: str, payload: Any) -> Reply:
        chain = self._own_order(account, name).chain
        return Reply(200, chain, {"Content-Type": "application/pem-certificate-chain"})

    def _revoke(self, account: str, name: str, payload: Any) -> Reply:
        certificate = x509.load_der_x509_certificate(unb64(payload["certificate"]))
        serial = certificate.serial_number
        if certificate not in self.issued:
            raise Problem("malformed", "Certificate from unrecognized issuer", 404)
        if serial in self.revoked:
            raise Problem("alreadyRevoked")
        self.revoked[serial] = payload.get("reason", 0)
        return Reply(200)

    def _own_order(self, account: str, name: str) -> _Order:
        order = self._orders.get(name)
        if order is None or order.account != account:
            raise Problem("malformed", f"No order for ID {name}", 404)
        return order

    def _show(self, name: str, status: int) -> Reply:
        order = self._orders[name]
        document: dict[str, Any] = {
            "status": self.order_status or self._state(order),
            "expires": (self.now() + timedelta(days=1)).isoformat(),
            "identifiers": [_identifier(host) for host in order.hosts],
            "authorizations": [self._url("authorization", each) for each in order.authorizations],
            "finalize": self._url("finalize", name),
        }
        if order.state == "valid":
            document["certificate"] = self._url("certificate", name)
        if order.profile:
            document["profile"] = order.profile
        headers = {"Location": self._url("order-poll", name)}
        if order.state == "processing" and self.processing_retry_after:
            headers["Retry-After"] = self.processing_retry_after
        if order.error:
            document["error"] = order.error
        return Reply(status, document, headers)

    def _state(self, order: _Order) -> str:
        states = {self._authorizations[each].state for each in order.authorizations}
        if order.state or states <= {"valid"}:
            return order.state or "ready"
        return "pending" if states <= {"valid", "pending"} else "invalid"

    # --- signatures, nonces, certificates

    def _open(self, body: bytes, url: str) -> tuple[dict[str, Any], Any]:
        """Check a JWS; return its header, with the account's "kid", and its payload ("" for a POST-as-GET)."""
        signed = json.loads(body)
        header: dict[str, Any] = json.loads(unb64(signed["protected"]))
        if header.get("nonce") not in self._nonces:
            raise Problem("badNonce", "unknown nonce")
        self._nonces.remove(header["nonce"])
        if header["url"] != url or ("jwk" in header) == ("kid" in header):
            raise Problem("malformed", "the header names another URL, or not exactly one of jwk and kid")
        if "kid" in header and header["kid"] not in self.accounts:
            raise Problem("accountDoesNotExist", f"Account {header['kid']} not found")
        account = self.accounts.get(header.get("kid", ""))
        if account and account["status"] != "valid":
            raise Problem("unauthorized", 'Account is not valid, has status "deactivated"', 403)
        verify(account["jwk"] if account else header["jwk"], signed)
        payload = unb64(signed["payload"])
        return header, json.loads(payload) if payload else ""

    def _nonce(self) -> str:
        nonce = secrets.token_urlsafe(16)
        with self._lock:
            self._nonces.add(nonce)
        return nonce

    def _url(self, *parts: str) -> str:
        return "/".join((f"https://127.0.0.1:{self.port}", *parts))

    def _issue(self, csr: x509.CertificateSigningRequest, names: x509.SubjectAlternativeName, life: timedelta) -> bytes:
        begin = self.now().replace(microsecond=0)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        leaf = (
            x509.CertificateBuilder(self._root.subject, csr.subject, csr.public_key(), x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + life)
            .add_extension(names, critical=True)
            .add_extension(authority, critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.issued.append(leaf)
        return leaf.public_bytes(Encoding.PEM) + self.root

    def _make_root(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Fake CA {secrets.token_hex(3)}")])
        begin = datetime(2020, 1, 1, tzinfo=UTC)
        key_id = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder(name, name, self._key.public_key(), x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=36500))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_id, critical=False)
            .sign(self._key, hashes.SHA256())
        )


def ari_id(certificate: x509.Certificate) -> str:
    """Return the id of RFC 9773 4.1, made here once more: the package's own is under test."""
    authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    serial = certificate.serial_number
    octets = serial.to_bytes((serial.bit_length() + 8) // 8, "big")
    return f"{b64(authority or b'')}.{b64(octets)}"


def _kind(path: str) -> tuple[str, str]:
    kind, _, name = path.strip("/").partition("/")
    return _checked(kind), name


def _checked(kind: str) -> str:
    assert kind in KINDS, f"{kind!r} is none of {KINDS}"
    return kind


def _identifier(host: str) -> dict[str, str]:
    is_address = ":" in host or host.replace(".", "").isdigit()
    return {"type": "ip" if is_address else "dns", "value": host}


def _values(names: x509.SubjectAlternativeName) -> list[str]:
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
