"""What `check` and start look at for certificates of a public CA: the store's place, hooks, files, the ports a CA uses.

Knows settings and files; starts no program, asks no CA, imports no client of one. Part of `preflight`, which runs this
with the rights of the children. A problem is (key, message); a doubt is a sentence, for it may be right all the same.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from tlsproxy.settings import Acme, Dns, Settings, directories
from tlsproxy.settings.values import did_you_mean
from tlsproxy.store.base import ephemeral_store

_CHALLENGE_PORTS = {"http-01": ("http", "80"), "tls-alpn-01": ("https", "443")}
# The CA refuses such a contact (invalidContact), although it keeps none.
_EXAMPLE_DOMAINS = ("example.com", "example.net", "example.org")


def find_problems(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield what keeps certificates from being obtained."""
    if problem := _program_problem(settings.events.command):
        yield "events.command", problem
    if not asks_ca(settings):
        return
    yield from _bundle_problems(settings.acme)
    if "dns-01" in settings.acme.challenges:
        yield from _dns_problems(settings.acme.dns)


def find_doubts(settings: Settings) -> Iterator[str]:
    """Yield what will probably not do what was meant."""
    if asks_ca(settings):
        yield from _staging_doubts(settings.acme)
        yield from _email_doubts(settings.acme)
        yield from _port_doubts(settings)


def judge_place(settings: Settings, *, is_kubernetes: bool) -> tuple[str, bool]:
    """Return why the store must not be used with a production CA, or "", and whether that is to be refused."""
    if settings.store.allow_ephemeral or not asks_ca(settings) or not _asks_production(settings.acme):
        return "", False
    found = ephemeral_store(settings.store.url, is_kubernetes=is_kubernetes)
    return (str(found), found.is_fatal) if found else ("", False)


def asks_ca(settings: Settings) -> bool:
    """Tell whether any site has certificates of a public CA."""
    return any(site.certificate in ("acme", "on_demand") for site in settings.sites)


def _asks_production(acme: Acme) -> bool:
    """A CA with a bundle of its own is private: what is lost there it makes again."""
    return any(directories.is_production(each.directory_url) and not each.ca_bundle for each in acme.issuers())


def _bundle_problems(acme: Acme) -> Iterator[tuple[str, str]]:
    places = [
        ("acme", acme.ca_bundle),
        *((f"acme.fallback.{n}", each.ca_bundle) for n, each in enumerate(acme.fallback)),
    ]
    for place, path in places:
        if path is not None and (problem := certificates_problem(path)):
            yield f"{place}.ca_bundle", problem


def certificates_problem(path: Path) -> str:
    """Return why certificates can't be read from a file, or ""."""
    try:
        x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        return f"{path} can't be read: {error.strerror}"
    except ValueError:
        return f"{path} holds no certificates in PEM form"
    return ""


def _dns_problems(dns: Dns) -> Iterator[tuple[str, str]]:
    match dns.provider:
        case "exec":
            if problem := _program_problem(dns.exec.command):
                yield "acme.dns.exec.command", problem
        case "acme-dns":
            if problem := _accounts_problem(dns.acme_dns.credentials):
                yield "acme.dns.acme_dns.credentials", problem
        case "lexicon":
            if problem := _lexicon_problem(dns.lexicon.provider):
                yield "acme.dns.lexicon.provider", problem


def _program_problem(command: tuple[str, ...]) -> str:
    if not command:
        return ""
    program = command[0]
    if "/" not in program:
        folders = [Path(folder) for folder in os.get_exec_path() if folder]
        if any(_is_executable(folder / program) for folder in folders):
            return ""
        return f"there is no program {program} in PATH; write its path, as in /usr/local/bin/{program}"
    path = Path(program)
    if not os.access(path, os.F_OK, effective_ids=True):
        return f"there is no program {path}; correct the path"
    if not _is_executable(path):
        return f"{path} can't be run by this user; make it a program (chmod 755 {path}) that the user can reach"
    return ""


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK, effective_ids=True)


def _accounts_problem(path: Path | None) -> str:
    """The accounts are added to while running: the file may be missing, its folder may not."""
    if path is None:
        return ""
    try:
        accounts = json.loads(path.read_bytes())
    except FileNotFoundError:
        writable = os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True)
        return "" if writable else f"{path} can't be made; choose a folder that the proxy's user may write to"
    except OSError as error:
        return f"{path} can't be read: {error.strerror}"
    except ValueError:
        return f"{path} is not JSON; correct it, or move it away to have new accounts registered"
    return "" if isinstance(accounts, dict) else f"{path} holds no accounts by domain"


def _lexicon_problem(provider: str) -> str:
    """Look for the files alone: the import costs a quarter of a second, and belongs to the certifier."""
    spec = importlib.util.find_spec("lexicon")
    if spec is None or not spec.submodule_search_locations:
        return 'dns-lexicon is not installed; run: pip install "tlsproxy[dns]"'
    folders = [Path(place, "_private", "providers") for place in spec.submodule_search_locations]
    known = [file.stem for folder in folders if folder.is_dir() for file in folder.glob("[a-z]*.py")]
    if not known or provider in known:
        return ""
    hint = did_you_mean(provider, known) or "; `lexicon --help` lists them"
    return f'dns-lexicon has no provider "{provider}"{hint}'


def _staging_doubts(acme: Acme) -> Iterator[str]:
    known = directories.find_known(acme.directory)
    if known and known.is_staging:
        yield (
            "acme.directory: clients do not trust certificates of the staging CA; once they arrive, "
            'write directory = "letsencrypt"'
        )


def _email_doubts(acme: Acme) -> Iterator[str]:
    domain = acme.email.rpartition("@")[2].lower()
    if any(domain == each or domain.endswith(f".{each}") for each in _EXAMPLE_DOMAINS):
        yield f"acme.email: {acme.email} is an example, which CAs refuse; write your own address, or none"


def _port_doubts(settings: Settings) -> Iterator[str]:
    """A CA comes to ports 80 and 443, whatever is configured; a router or container may forward them, we can't see."""
    challenges = [word for word in settings.acme.challenges if word in _CHALLENGE_PORTS]
    if not challenges or "dns-01" in settings.acme.challenges:
        return
    if any(_has_port(settings, *_CHALLENGE_PORTS[word]) for word in challenges):
        return
    ports = " and ".join(f"port {_CHALLENGE_PORTS[word][1]} ({word})" for word in challenges)
    yield f"listen: the CA always comes to {ports} of the public address, and nothing here listens there; forward them"


def _has_port(settings: Settings, kind: str, port: str) -> bool:
    addresses: tuple[str, ...] = getattr(settings.listen, kind)
    return any(address.rpartition(":")[2] == port for address in addresses)
