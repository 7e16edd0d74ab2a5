"""The words of the certificate sections: CAs, addresses of name servers, commands, rates, secrets. Pure.

Like `values`, of which this is the second half: parsers return the normal form or raise ValueError with a sentence.
Rule: a sentence about a secret never repeats it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from tlsproxy.settings import directories
from tlsproxy.settings.values import (
    as_address,
    as_port,
    as_text,
    did_you_mean,
    parse_count,
    parse_host,
    parse_positive_duration,
    show,
    split_list,
)
from tlsproxy.settings.writing import write_duration

DNS_PROVIDERS = ("exec", "rfc2136", "acme-dns", "lexicon")
_EMAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?P<host>[^@\s]+)")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]{16,}")
_LEAST_KEY_LENGTH = 32
_LEAST_KEY_VARIETY = 10
_SOCKET_NAME_LIMIT = 80  # of 107 in an address; a long path to it is no problem, adminsocket.py goes through its folder


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` in any `seconds`; a count of 0 is no limit. Its text is how one writes it: "10/1h"."""

    count: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.count}/{write_duration(self.seconds)}" if self.count else "off"


def parse_rate(value: object) -> Rate:
    """Return the rate behind "10/1h" or "off"."""
    if isinstance(value, Rate):
        return value
    if value == "off" or value is False:
        return Rate(0, 1.0)
    count, slash, period = value.partition("/") if isinstance(value, str) else ("", "", "")
    try:
        rate = Rate(parse_count(count), parse_positive_duration(period))
    except ValueError:
        rate = Rate(0, 1.0)
    if not slash or not rate.count:
        raise ValueError(f'{show(value)} is not a rate; write "10/1h" for ten in an hour, or "off"')
    return rate


def parse_directory(value: object) -> str:
    """Return the word for a known CA, or the URL of an ACME directory."""
    text = as_text(value, "a CA").strip()
    if text.lower() in directories.KNOWN:
        return text.lower()
    if "://" not in text:
        words = ", ".join(f'"{word}"' for word in directories.KNOWN)
        hint = did_you_mean(text, directories.KNOWN)
        raise ValueError(f"{show(value)} is not a known CA; write {words} or the https:// URL of its directory{hint}")
    parts = _split_url(text)
    if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
        raise ValueError(f"{show(value)}: an ACME directory is asked over https only; write https://")
    return text


def parse_dns_provider(value: object) -> object:
    """Return who makes TXT records. One of the many that dns-lexicon knows is named there, not here."""
    if isinstance(value, str) and value and value not in DNS_PROVIDERS:
        words = ", ".join(f'"{word}"' for word in DNS_PROVIDERS)
        hint = did_you_mean(value, DNS_PROVIDERS)
        hint = hint or '; a provider of dns-lexicon is named as in lexicon = { provider = "cloudflare", … }'
        raise ValueError(f"{show(value)} is not one of {words}{hint}")
    return value


def parse_staging(value: object) -> str:
    """Return a directory, "off", or an empty text as it is."""
    return str(value) if value in {"", "off"} else parse_directory(value)


def parse_email(value: object) -> str:
    """Return one mail address, or an empty text as it is."""
    if value == "":
        return ""
    text = as_text(value, "a mail address").strip()
    match = _EMAIL.fullmatch(text.removeprefix("mailto:"))
    if match is None or "." not in match["host"]:
        raise ValueError(f'{show(value)} is not a mail address; write one, as in "ops@example.net", or leave it empty')
    parse_host(match["host"])
    return match[0]


def parse_secret(value: object) -> str:
    """Return a secret in one line; empty is none."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str):
        raise ValueError("write the secret as text in quotes")  # noqa: TRY004 - pydantic's protocol
    if not text.isprintable():
        raise ValueError("the secret has invisible characters; write it in one line")
    return text.strip()


def parse_eab_key(value: object) -> str:
    """Return the key of an external account binding in base64url (RFC 8555 7.3.4) without padding."""
    text = parse_secret(value).replace("+", "-").replace("/", "_").rstrip("=")
    if text and not _BASE64URL.fullmatch(text):
        raise ValueError("this is not a base64url key; copy the HMAC key as the CA shows it")
    return text


def parse_master_key(value: object) -> str:
    """Return a key that the store is encrypted with: 32 random bytes, or a passphrase too long to be guessed."""
    key = parse_secret(value)
    if len(key) < _LEAST_KEY_LENGTH or len(set(key)) < _LEAST_KEY_VARIETY:
        raise ValueError(
            f"too weak for an encryption key: it needs {_LEAST_KEY_LENGTH} random characters; "
            "make one with `openssl rand -base64 32`"
        )
    return key


def parse_option(value: object) -> str:
    """Return an option of a DNS provider, which may be a secret; a number or truth value becomes its text."""
    return parse_secret(str(value).lower() if isinstance(value, (bool, int, float)) else value)


def parse_backend_secret(value: object) -> str:
    """Return a secret that can stand in a header and cannot be guessed, or an empty text as it is."""
    text = parse_secret(value)
    if text and not (16 <= len(text) <= 256 and text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("must be 16 to 256 ASCII characters without spaces, as from `openssl rand -hex 32`")
    return text


def parse_secret_url(value: object) -> str:
    """Return an http(s) URL that may carry a token, or an empty one."""
    text = parse_secret(value)
    if text:
        try:
            parse_url(text)
        except ValueError:
            raise ValueError("this is not a URL to send to; write https://HOST/PATH") from None
    return text


def parse_optional_url(value: object) -> str:
    """Return an http(s) URL, or an empty text as it is."""
    return "" if value == "" else parse_url(value)


def parse_url(value: object) -> str:
    """Return an http(s) URL."""
    text = as_text(value, "a URL").strip()
    parts = _split_url(text)
    if parts.scheme not in {"http", "https"}:
        raise ValueError(f"{show(value)}: write a URL with http:// or https://")
    return text


def parse_ask(value: object) -> str:
    """Return who is asked for leave: a path on the backend of the on-demand site, or a URL; empty is nobody."""
    if value == "":
        return ""
    text = as_text(value, "a path or URL").strip()
    if "://" in text:
        return parse_url(text)
    if not text.startswith("/") or not text.isascii() or " " in text or "#" in text or text.startswith("//"):
        raise ValueError(
            f'{show(value)}: write a path on the backend of the on-demand site, as in "/may-have-certificate", or a URL'
        )
    return text


def parse_resolver(value: object) -> str:
    """Return a name server as "192.0.2.1", "192.0.2.1:5353", "2001:db8::1" or "[2001:db8::1]:5353"."""
    text = as_text(value, "a name server").strip()
    address = as_address(text.removeprefix("[").removesuffix("]"))
    if address is not None:
        return str(address)
    host, _, port = text.rpartition(":")
    address = as_address(host.removeprefix("[").removesuffix("]"))
    if address is None or (address.version == 6) != host.startswith("["):
        raise ValueError(f'{show(value)} is not the address of a name server; write "192.0.2.53" or "192.0.2.53:5353"')
    number = as_port(port, value, lowest=1)
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"


def parse_optional_server(value: object) -> str:
    """Return a name server by address or by name, with or without port; an empty text as it is."""
    if value == "":
        return ""
    text = as_text(value, "a name server").strip()
    host, colon, port = text.rpartition(":")
    if as_address(text) or text.startswith("[") or as_address(host or text):
        return parse_resolver(text)
    return f"{parse_host(host)}:{as_port(port, value, lowest=1)}" if colon else parse_host(text)


def parse_command(value: object) -> object:
    """Return program and arguments as a list. One text is refused: nothing here splits as a shell would."""
    if isinstance(value, str):
        if value == "":
            return []
        raise ValueError(f'{show(value)}: write program and arguments as a list, as in ["/usr/local/bin/hook", "-v"]')
    items = list(value) if isinstance(value, (list, tuple)) else None
    if items is None or any(not isinstance(item, str) or "\0" in item for item in items) or items[:1] == [""]:
        raise ValueError('write program and arguments as a list of texts, as in ["/usr/local/bin/hook", "-v"]')
    return items


def parse_socket(value: object) -> str:
    """Return the path of a unix socket, or "off"."""
    text = as_text(value, "the path of a socket").strip().removeprefix("unix:")
    if text != "off" and (not text.startswith("/") or text.endswith("/")):
        raise ValueError(
            f'{show(value)}: write the absolute path of a socket, as in "/run/tlsproxy/admin.sock", or "off"'
        )
    if len(text.rpartition("/")[2].encode()) > _SOCKET_NAME_LIMIT:
        raise ValueError(f"{show(value)}: the file name of a socket has at most {_SOCKET_NAME_LIMIT} bytes")
    return text


def split_secrets(value: object) -> object:
    """Let secrets be written as one text with commas; hide them if they are something else altogether."""
    split = split_list(value)
    if not isinstance(split, Iterable) or isinstance(split, dict):
        raise ValueError('write a list, as in ["…", "…"]')  # noqa: TRY004 - pydantic's protocol
    return split


def _split_url(text: str) -> Any:
    try:
        parts = urlsplit(text)
        usable = bool(parts.hostname) and (parts.port is None or math.isfinite(parts.port)) and not parts.fragment
    except ValueError as error:
        raise ValueError(f"{show(text)} is not a URL") from error
    if not usable or parts.username is not None or not text.isascii() or " " in text:
        raise ValueError(f"{show(text)} is not a URL to use here; write https://HOST/PATH without user and fragment")
    return parts


def _is_loopback(host: str) -> bool:
    address = as_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)
