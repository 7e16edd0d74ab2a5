"""Rules about certificates of a public CA: what [acme], [on_demand], [listen] and the sites say must fit together.

Half of `rules`, and as it works on raw data. Rule: only what can't succeed is a fault here; what may be right behind
some router or private CA is a doubt, which `doubts` finds in the finished settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tlsproxy.settings import acme_values, directories, raw
from tlsproxy.settings.raw import DEFAULT_LISTEN, Fault, Path
from tlsproxy.settings.values import as_address, parse_backend

DEFAULT_CHALLENGES = ("tls-alpn-01", "http-01")
# Which table of [acme.dns] belongs to a provider, and what it needs.
_PROVIDERS = {
    "exec": ("exec", ("command",)),
    "rfc2136": ("rfc2136", ("server", "key_name", "key_secret")),
    "acme-dns": ("acme_dns", ("server", "credentials")),
    "lexicon": ("lexicon", ("provider",)),
}
_LISTENERS = {"http-01": ("http", ":80"), "tls-alpn-01": ("https", ":443")}
# letsencrypt.org/docs/profiles: names in one certificate. The others keep to 100 as well.
_MOST_HOSTS = {"shortlived": 25, "tlsserver": 25}
_MOST_HOSTS_ELSE = 100


@dataclass(frozen=True, slots=True)
class _Site:
    """A site with certificates of a public CA, looked at once: there may be ten thousand."""

    path: Path
    hosts: list[tuple[int, str]]
    is_on_demand: bool


def find_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what can't succeed."""
    acme, sites = data.get("acme"), list(_find_sites(data))
    yield from _authorities_faults(acme)
    yield from _dns_faults(acme)
    yield from _challenge_faults(data, sites)
    yield from _on_demand_faults(data, sites)
    yield from _key_faults(data)
    yield from _sites_faults(acme, sites)


def _find_sites(data: Mapping[str, Any]) -> Iterator[_Site]:
    for index, site in enumerate(raw.items(data.get("sites"))):
        word = raw.certificate(site)
        if word in ("acme", "on_demand"):
            yield _Site(("sites", index), list(raw.hosts(site)), word == "on_demand")


def _authorities_faults(acme: Any) -> Iterator[Fault]:
    places: dict[str, Path] = {}
    fallbacks = raw.items(raw.get(acme, "fallback"))
    for path, table in [(("acme",), acme), *((("acme", "fallback", n), each) for n, each in enumerate(fallbacks))]:
        yield from _binding_faults(path, table)
        directory = _directory(table) if table is acme else _directory(table, default="")
        url = directories.directory_url(directory)
        if url and url in places:
            yield Fault((*path, "directory"), f"{directory} is asked twice", other=places[url])
        places.setdefault(url, (*path, "directory"))


def _binding_faults(path: Path, table: Any) -> Iterator[Fault]:
    kid, key = bool(raw.get(table, "eab_kid")), bool(raw.get(table, "eab_hmac_key"))
    if kid and not key:
        yield Fault((*path, "eab_kid"), "needs eab_hmac_key (or eab_hmac_key_file), which the CA gives with it")
    if key and not kid:
        yield Fault((*path, "eab_hmac_key"), "needs eab_kid, the key id that the CA gives with it")
    directory = _directory(table)
    known = directories.find_known(directory)
    if known and known.eab and not (kid or key):
        message = f"{directory} wants an external account binding: write eab_kid and eab_hmac_key, from {known.eab}"
        yield Fault((*path, "directory"), message)


def _dns_faults(acme: Any) -> Iterator[Fault]:
    dns, challenges = raw.get(acme, "dns"), _challenges(acme)
    provider = raw.get(dns, "provider", "")
    if not provider and "dns-01" in challenges:
        words = ", ".join(f'"{word}"' for word in _PROVIDERS)
        message = f'"dns-01" needs somebody who makes TXT records: write provider = … in [acme.dns], one of {words}'
        yield Fault(("acme", "challenges", challenges.index("dns-01")), message)
    if not isinstance(provider, str) or provider not in _PROVIDERS:
        return
    if "dns-01" not in challenges:
        message = 'has no effect while "dns-01" is not in challenges; write challenges = ["dns-01"] in [acme]'
        yield Fault(("acme", "dns", "provider"), message)
    name, needed = _PROVIDERS[provider]
    for key in needed:
        if not raw.get(raw.get(dns, name), key):
            message = f'is required by provider = "{provider}"; write {key} = … in [acme.dns.{name}]'
            yield Fault(("acme", "dns", name, key), message)


def _challenge_faults(data: Mapping[str, Any], sites: list[_Site]) -> Iterator[Fault]:
    challenges = _challenges(data.get("acme"))
    for index, word in enumerate(challenges):
        if word in challenges[:index]:
            yield Fault(("acme", "challenges", index), f"{word} is listed twice")
    if not challenges or not sites:
        return
    closed = [word for word in challenges if word in _LISTENERS and not _listens(data, _LISTENERS[word][0])]
    if closed == challenges:
        kind, address = _LISTENERS[closed[0]]
        message = f'no challenge is left: {closed[0]} needs an address in [listen]; write {kind} = ["{address}"]'
        yield Fault(("acme", "challenges"), message)


def _on_demand_faults(data: Mapping[str, Any], sites: list[_Site]) -> Iterator[Fault]:
    places: list[Path] = [(*site.path, "certificate") for site in sites if site.is_on_demand]
    ask = raw.get(data.get("on_demand"), "ask", "")
    if places and ask == "":
        message = (
            "without leave anybody could make you order certificates for any name; write in [on_demand] "
            'ask = "/may-have-certificate", a path on this site\'s backend that answers 200 for ?domain=NAME, or a URL'
        )
        yield Fault(places[0], message)
    if isinstance(ask, str) and ask.startswith("/") and len(places) > 1:
        message = "is a path, and more than one site is on demand: whose backend is meant? Write a URL"
        yield Fault(("on_demand", "ask"), message, other=places[1])
    elif isinstance(ask, str) and ask.startswith("/"):
        yield from _asking_faults([site for site in raw.items(data.get("sites")) if _is_on_demand(site)])


def _asking_faults(sites: list[Any]) -> Iterator[Fault]:
    """A path is asked for at the backends of the site's first route, by HTTP/1.1."""
    for site in sites:
        routes = raw.items(raw.get(site, "routes"))
        given = raw.get(site, "backends") or (raw.get(routes[0], "backends") if routes else ())
        for _, backend in raw.parsed(raw.items(given), parse_backend):
            if backend.startswith("h2c"):
                message = f"is asked for by HTTP/1.1, and {backend} is spoken to in HTTP/2; write a URL"
                yield Fault(("on_demand", "ask"), message)
                return


def _is_on_demand(site: Any) -> bool:
    return bool(raw.get(site, "certificate") == "on_demand")


def _key_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    seen: set[str] = set()
    keys = raw.items(raw.get(data.get("store"), "encryption_keys"))
    for index, key in raw.parsed(keys, acme_values.parse_master_key):
        if key in seen:
            yield Fault(("store", "encryption_keys", index), "is listed twice")
        seen.add(key)


def _sites_faults(acme: Any, sites: list[_Site]) -> Iterator[Fault]:
    challenges, known = _challenges(acme), directories.find_known(_directory(acme))
    profile = raw.get(acme, "profile", "")
    most = _MOST_HOSTS.get(profile, _MOST_HOSTS_ELSE) if isinstance(profile, str) else _MOST_HOSTS_ELSE
    for site in sites:
        for index, host in site.hosts:
            place: Path = (*site.path, "hosts", index)
            if as_address(host):
                yield from _address_faults(acme, place, host, challenges, is_on_demand=site.is_on_demand)
            if known and host != "*" and directories.is_private_name(host):
                yield Fault(place, _private_name_message(host, is_alone=len(site.hosts) == 1))
            elif host.startswith("*.") and not site.is_on_demand and "dns-01" not in challenges:
                yield Fault(place, _WILDCARD_MESSAGE.format(host))
        if known and not site.is_on_demand and len(site.hosts) > most:
            message = (
                f"{len(site.hosts)} hosts in one certificate, the CA takes at most {most}; make several sites of them"
            )
            yield Fault((*site.path, "hosts"), message)


_WILDCARD_MESSAGE = (
    '{}: certificates for wildcard names need "dns-01"; write challenges = ["dns-01"] in [acme] and a provider in '
    "[acme.dns]"
)


def _private_name_message(host: str, *, is_alone: bool) -> str:
    where = "" if is_alone else "; put it into a site of its own and"
    return f'{host}: no public CA certifies this name{where or ";"} write certificate = "internal"'


def _address_faults(acme: Any, place: Path, host: str, challenges: list[str], *, is_on_demand: bool) -> Iterator[Fault]:
    if is_on_demand:
        message = f'{host}: a client names no IP address in its handshake; write certificate = "acme" in a site for it'
        yield Fault(place, message)
    elif challenges == ["dns-01"]:
        yield Fault(place, f'{host}: "dns-01" is for names; add "http-01" or "tls-alpn-01" to challenges in [acme]')
    elif directories.is_letsencrypt(_directory(acme)) and raw.get(acme, "profile", "") != "shortlived":
        message = f"{host}: Let's Encrypt certifies IP addresses for six days only; write"
        yield Fault(place, f'{message} profile = "shortlived" in [acme]')


def _directory(authority: Any, default: str = "letsencrypt") -> str:
    """Return the normal form, "" for one that is wrong."""
    return next(raw.one(raw.get(authority, "directory", default), acme_values.parse_directory), "")


def _challenges(acme: Any) -> list[str]:
    return [word for word in raw.items(raw.get(acme, "challenges", DEFAULT_CHALLENGES)) if isinstance(word, str)]


def _listens(data: Mapping[str, Any], kind: str) -> bool:
    return bool(raw.items(raw.get(data.get("listen"), kind, DEFAULT_LISTEN[kind])))
