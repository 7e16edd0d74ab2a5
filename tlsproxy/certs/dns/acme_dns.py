"""Make TXT records at an acme-dns server (github.com/joohoi/acme-dns), where each domain has an account of its own.

Knows: its two requests, and the file with the accounts, in the format of the acme-dns clients: domain → username,
password, fulldomain, subdomain. Does not know: the user's DNS, in which a CNAME has to lead to the account once.
Rules: registered is once per domain, and what was registered is on disk before anybody is told the CNAME; the server
keeps the last two values of an account, enough for `x` and `*.x`, and none is ever removed.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from tlsproxy.certs.dns.base import LABEL, DnsProviderError

_PART, _MOST_PARTS = 4096, 16  # bytes, and how many times that an answer may have
_FIELDS = ("username", "password", "fulldomain", "subdomain")

Account = dict[str, Any]


class AcmeDnsProvider:
    """The accounts at one server."""

    # Mutable: the file, under _lock.

    def __init__(self, server: str, credentials: Path | None, *, timeout: float = 10.0) -> None:
        """`server` is a URL, `credentials` the JSON file; `timeout` is in seconds, for one request."""
        self._server, self._path, self._timeout = server.rstrip("/"), credentials, timeout
        self._lock = threading.Lock()

    def create(self, name: str, value: str) -> None:
        account = self._account(name)
        headers = {"X-Api-User": account["username"], "X-Api-Key": account["password"]}
        self._post("update", {"subdomain": account["subdomain"], "txt": value}, headers)

    def delete(self, name: str, value: str) -> None:
        """Do nothing: the server has no way to remove a value, and the next ones push it out."""

    def _account(self, name: str) -> Account:
        """Return the account that a name (after its CNAMEs) is the address of, or say what is missing."""
        with self._lock:
            path = self._file()
            accounts = _load(path)
            for account in accounts.values():
                if account["fulldomain"].lower().rstrip(".") == name:
                    return account
            if not name.startswith(LABEL):
                raise DnsProviderError(
                    f"{path} has no account for {name}, where a CNAME leads. "
                    "Point the CNAME to the fulldomain of an account in that file, or remove it to have one registered."
                )
            domain = name.removeprefix(LABEL)
            if domain not in accounts:
                accounts[domain] = self._register(path)
                _save(path, accounts)
        raise DnsProviderError(
            f"{domain} has an account at {self._server}, but its DNS does not lead there. "
            f"Create this record once: {name}. CNAME {accounts[domain]['fulldomain']}."
        )

    def _file(self) -> Path:
        if self._path is None:
            raise DnsProviderError(
                "acme.dns.acme_dns.credentials is empty. Name the file in which the accounts are to be kept."
            )
        return self._path

    def _register(self, path: Path) -> Account:
        if not os.access(path.parent, os.W_OK):  # before the server makes an account that would be lost
            raise DnsProviderError(f"{path} can't be written. Give the proxy's user a directory that it may write to.")
        answer = self._post("register", {}, {})
        if not _is_account(answer):
            raise DnsProviderError(f"{self._server} has answered a registration with something else. Is it acme-dns?")
        account: Account = answer
        return account

    def _post(self, action: str, body: Mapping[str, str], headers: Mapping[str, str]) -> Any:
        url = f"{self._server}/{action}"
        try:
            with requests.post(
                url, json=body, headers=dict(headers), timeout=self._timeout, allow_redirects=False, stream=True
            ) as response:
                content = b"".join(itertools.islice(response.iter_content(_PART), _MOST_PARTS))
        except requests.RequestException as error:
            raise DnsProviderError(
                f"{url} can't be asked ({_network_reason(error)}). "
                "Correct acme.dns.acme_dns.server, or start that server."
            ) from error
        if response.status_code not in (200, 201):
            raise DnsProviderError(f"{url} has refused: {_refusal(response.status_code, content)}")
        return _parse(content)

    def __repr__(self) -> str:
        return f"<acme-dns {self._server}>"


def _load(path: Path) -> dict[str, Account]:
    try:
        accounts = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DnsProviderError(
            f"{path} can't be read ({error.strerror}). Give the proxy's user access to it."
        ) from error
    except ValueError:
        accounts = None
    if not isinstance(accounts, dict) or not all(map(_is_account, accounts.values())):
        raise DnsProviderError(
            f"{path} is not a file of acme-dns accounts (JSON, domain → {', '.join(_FIELDS)}). "
            "Correct it, or move it away to have new accounts registered."
        )
    return accounts


def _save(path: Path, accounts: Mapping[str, Account]) -> None:
    """Write whole or not at all, for this user's eyes only."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(accounts, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise DnsProviderError(
            f"{path} can't be written ({error.strerror}), so a new acme-dns account is lost. Make room or give access."
        ) from error


def _is_account(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(each), str) for each in _FIELDS)


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _refusal(status: int, content: bytes) -> str:
    answer = _parse(content)
    word = str(answer.get("error", ""))[:100] if isinstance(answer, dict) else ""
    advice = {
        401: "It does not know this account, or not from this address. Remove the account from the credentials.",
        403: "Registration or this address is not allowed there.",
        404: "Is it the URL of an acme-dns server, and is registration enabled there?",
    }
    return f"HTTP {status} {word}. ".replace(" .", ".") + advice.get(status, "Look into its log.")


def _network_reason(error: requests.RequestException) -> str:
    """The library's own text repeats the URL and its objects; what the system said is in there somewhere."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate is not trusted"
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__context__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else type(error).__name__
