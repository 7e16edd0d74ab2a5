"""Make TXT records through dns-lexicon, which speaks to about ninety DNS providers. An extra: `tlsproxy[dns]`.

Knows: how its client is called. Does not know: any provider. Rules: the zone is always said, as it would otherwise be
guessed from a list in the internet; a value is removed by its content; what the providers say is passed on without the
options that we gave them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote_plus

from tlsproxy.certs.dns.base import DnsProviderError
from tlsproxy.certs.dns.lookup import LookupFailed, is_in_zone

_LONGEST_REASON = 500
_SHORTEST_SECRET = 4
_importing = threading.Lock()


class LexiconProvider:
    """One of dns-lexicon's providers, with a client of its own for each call."""

    def __init__(
        self,
        provider: str,
        options: Mapping[str, str],
        *,
        zone: str = "",
        find_zone: Callable[[str], str] | None = None,
    ) -> None:
        """`options` are those of the provider (`auth_token` …), and `ttl`; `find_zone` blocks, and is for no `zone`."""
        self._provider, self._options = provider, dict(options)
        self._zone, self._find_zone = zone.rstrip("."), find_zone

    def create(self, name: str, value: str) -> None:
        with self._client(name) as client:
            self._check(client.create_record("TXT", name, value), name)

    def delete(self, name: str, value: str) -> None:
        with self._client(name) as client:
            self._check(client.delete_record(rtype="TXT", name=name, content=value), name)

    @contextmanager
    def _client(self, name: str) -> Iterator[Any]:
        """Give an authenticated client. Whatever it raises inside or outside of the block becomes our error."""
        make_client, make_config = _load()
        config = make_config().with_dict(self._config(self._zone_of(name)))
        try:
            with make_client(config) as client:
                yield client
        except DnsProviderError:
            raise
        except Exception as error:  # noqa: BLE001 - its providers have no common class
            # Without the cause: providers put tokens into URLs, and a traceback would show them.
            raise DnsProviderError(f"dns-lexicon's {self._provider} failed for {name}: {self._words(error)}") from None

    def _config(self, zone: str) -> dict[str, Any]:
        # Some providers look for the zone among their own options.
        options = {"domain": zone, **self._options}
        config = {"provider_name": self._provider, "domain": zone, "delegated": zone, self._provider: options}
        return {**config, "ttl": int(options["ttl"])} if "ttl" in options else config

    def _zone_of(self, name: str) -> str:
        if not self._zone and self._find_zone is None:
            raise DnsProviderError("acme.dns.lexicon.zone is empty. Name the zone as the provider calls it.")
        try:
            zone = self._zone or (self._find_zone(name) if self._find_zone else "")
        except LookupFailed as error:
            raise DnsProviderError(f"{error} Or set acme.dns.lexicon.zone.") from error
        if not is_in_zone(name, zone):
            raise DnsProviderError(f"{name} does not lie in the zone {zone}. Correct acme.dns.lexicon.zone.")
        return zone

    def _check(self, is_done: object, name: str) -> None:
        if not is_done:
            raise DnsProviderError(
                f"dns-lexicon's {self._provider} has not changed {name}, and does not say why. Look at its web page."
            )

    def _words(self, error: Exception) -> str:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        for secret in self._options.values():
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "***").replace(quote_plus(secret), "***")
        return f"{text[:_LONGEST_REASON]}. Compare acme.dns.lexicon with dns-lexicon's page on this provider."

    def __repr__(self) -> str:
        return f"<lexicon {self._provider}>"


def _load() -> tuple[Callable[..., Any], Callable[[], Any]]:
    """Import it when it is needed: 240 ms and 20 MiB that nobody else should pay."""
    with _importing:
        try:
            import lexicon.client  # noqa: PLC0415
            import lexicon.config  # noqa: PLC0415
        except ImportError as error:
            raise DnsProviderError(
                f"dns-lexicon is not installed ({error}). Run: pip install 'tlsproxy[dns]'"
            ) from error
        # Its client splits the domain with tldextract, which fetches its list from the internet at first use, and takes
        # the result only if there is no `delegated`, which there always is here.
        vars(lexicon.client)["tldextract"] = SimpleNamespace(TLDExtract=_no_suffix_list)
    return lexicon.client.Client, lexicon.config.ConfigResolver


def _no_suffix_list(**_: object) -> Callable[[str], SimpleNamespace]:
    def split(domain: str) -> SimpleNamespace:
        label, _, rest = domain.partition(".")
        return SimpleNamespace(domain=label, suffix=rest)

    return split
