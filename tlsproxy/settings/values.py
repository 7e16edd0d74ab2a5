"""The words of the configuration: text -> value, pure.

Every parser takes what TOML, JSON or the environment can hold and returns the normal form, or raises ValueError whose
message is a sentence for the user. Rule: a normal form parses to itself, so settings reach a child process unchanged.
Knows nothing about files, sections or where a value came from.
"""

from __future__ import annotations

import difflib
import functools
import ipaddress
import json
import math
import re
from collections.abc import Iterable
from typing import Any, Literal
from urllib.parse import urlsplit

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w|y)?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
_LONGEST = 100 * _SECONDS["y"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_ORDINARY_NAME = re.compile(rf"(?:\*\.)?(?:{_LABEL.pattern}\.)*[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")
# Names of backends are not only DNS names of the public kind: Docker Compose makes service names with underscores.
_BACKEND_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_COOKIE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SEGMENT = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+")  # RFC 3986 3.3 pchar
# The four characters that IDNA 2003 (what Python has) and IDNA 2008 (what browsers do) turn into different names.
_IDNA_DEVIATIONS = frozenset("\u00df\u03c2\u200c\u200d")
_UNIX_PATH_LIMIT = 107  # sun_path of Linux without its NUL


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `, did you mean "x"?` for the nearest choice, or an empty string."""
    if not any(char.isalpha() for char in word):
        return ""
    near = difflib.get_close_matches(word.lower(), list(choices), n=1, cutoff=0.6)
    return f', did you mean "{near[0]}"?' if near else ""


def split_list(value: object) -> object:
    """Let a list be written as one text with commas, as the environment has to; leave anything else alone."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def parse_duration(value: object) -> float:
    """Return seconds for "250ms", "10s", "5m", "1h", "1d", "1w", "1y" or a number of seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _checked_duration(float(value), value)
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{show(value)} is not a duration; write "10s", "5m", "1h" or a number of seconds')
    return _checked_duration(float(match[1]) * _SECONDS[match[2] or "s"], value)


def parse_positive_duration(value: object) -> float:
    """Return a duration above zero: a deadline of zero would refuse everything."""
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError('must be longer than zero; write a duration as "10s"')
    return seconds


def parse_duration_or_off(value: object) -> float:
    """Return seconds, 0 for "off"."""
    return 0.0 if value == "off" or value is False else parse_duration(value)


def parse_size(value: object) -> int:
    """Return bytes for "64KiB" (1024), "1MB" (1000) or a number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _checked_size(value, value)
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = _BYTES.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f'{show(value)} is not a size; write "64KiB", "1MiB", "1MB" or a number of bytes')
    return _checked_size(float(match[1]) * unit, value)


def parse_size_or_off(value: object) -> int:
    """Return bytes, 0 for "off"."""
    return 0 if value == "off" or value is False else parse_size(value)


def parse_count(value: object) -> int:
    """Return a whole number, zero or more."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value) if len(value) < 20 else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise ValueError(f"{show(value)} is not a whole number (0 or more)")
    return value


def parse_workers(value: object) -> int | Literal["auto"]:
    """Return the number of worker processes, or "auto"."""
    if value == "auto":
        return "auto"
    try:
        count = parse_count(value)
    except ValueError:
        count = 0
    if not 1 <= count <= 1024:
        raise ValueError(f'{show(value)} is not a number of workers; write "auto" or a number from 1 to 1024')
    return count


def parse_host(value: object) -> str:
    """Return the name of a site in lower case and IDNA form: "api.example.com", "*.example.org", "127.0.0.1", "::1"."""
    if isinstance(value, str) and len(value) <= 253 and _ORDINARY_NAME.fullmatch(value):
        return value  # nine of ten: 1 µs instead of 8, of 10 000 names that are looked at eight times
    text = as_text(value, "a host name").strip()
    if "://" in text or "/" in text:
        raise ValueError(f"{show(value)} is not a host name; give the name alone, without scheme and path")
    address = as_address(text.removeprefix("[").removesuffix("]"))
    if address is not None:
        return str(address)
    if ":" in text:
        raise ValueError(f'{show(value)}: a site has no port (ports are set in [listen]), write "{text.split(":")[0]}"')
    wildcard, rest = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    if "*" in rest:
        raise ValueError(f'{show(value)}: a wildcard stands for the whole first label, as in "*.example.com"')
    return wildcard + _dns_name(rest, text, _LABEL)


def parse_site_host(value: object) -> str:
    """Return a host, or "*": every name there is, which only a site with certificates on demand can mean."""
    return "*" if value == "*" else parse_host(value)


def parse_optional_host(value: object) -> str:
    """Return a host, or an empty text as it is."""
    return "" if value == "" else parse_host(value)


def parse_cookie_name(value: object) -> str:
    """Return the name of a cookie (RFC 6265 4.1.1), or an empty text as it is."""
    if not isinstance(value, str) or (value and not _COOKIE_NAME.fullmatch(value)):
        raise ValueError('must be the name of a cookie, as "tlsproxy_backend"')
    return value


def parse_optional_listen(value: object) -> str:
    """Return an address to listen on, or an empty text as it is."""
    return "" if value == "" else parse_listen(value)


def is_local_name(host: str) -> bool:
    """Tell whether no public CA could certify this normalised host, so that the internal CA is the default."""
    address = as_address(host)
    if address is not None:
        return address.is_private or address.is_loopback or address.is_link_local
    return host.rpartition(".")[2] in {"localhost", "test"}


def parse_listen(value: object) -> str:
    """Return an address to listen on: ":443", "192.0.2.1:443" or "[2001:db8::1]:443"."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else as_text(value, "an address")
    host, colon, port = text.strip().rpartition(":")
    if not colon or (host.count(":") and not host.startswith("[")):
        hint = f', did you mean ":{text}"?' if text.isdigit() else '; write ":443", "192.0.2.1:443" or "[::1]:443"'
        raise ValueError(f"{show(value)} is not an address to listen on{hint}")
    number = as_port(port, value, lowest=0)
    if host == "":
        return f":{number}"
    address = as_address(host.removeprefix("[").removesuffix("]"))
    if address is None or (address.version == 6) != host.startswith("["):
        raise ValueError(f'{show(value)}: {host!r} is not an IP address; write ":{number}" for all addresses')
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"


def parse_network(value: object) -> str:
    """Return a CIDR: "10.0.0.0/8"; a single address stands for itself."""
    text = as_text(value, "a network").strip()
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(f'{show(value)} is not a network; write "10.0.0.0/8" or "fd00::/8"') from error
    if as_address(text.partition("/")[0]) != network.network_address:
        raise ValueError(f'{show(value)} has bits set outside its mask, did you mean "{network}"?')
    return str(network)


def parse_proxy_protocol(value: object) -> object:
    """Return networks: none for false, all for true, else the list as it was given."""
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() in {"true", "false", ""}):
        return ["0.0.0.0/0", "::/0"] if str(value).lower() == "true" else []
    return split_list(value)


def parse_store_url(value: object) -> str:
    """Return where the store is: "file:///folder" or "memory:"."""
    text = as_text(value, "a store URL")
    parts = urlsplit(text)
    if parts.scheme == "memory" and text == "memory:":
        return text
    if parts.scheme == "file" and (parts.netloc[:1] in {"$", "~"} or parts.path[:2] in {"/$", "/~"}):
        raise ValueError(
            f"{show(value)}: the path must be absolute, as in file:///var/lib/tlsproxy; $HOME and ~ are not expanded"
        )
    if parts.scheme != "file" or parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
        raise ValueError(f"{show(value)} is not a store; write file:///var/lib/tlsproxy")
    return text


def parse_backend(value: object) -> str:
    """Return a backend as "http://host:port" or "unix:/path", for HTTP/2 "h2c://host:port" or "h2c+unix:/path"."""
    text = as_text(value, "a backend").strip()
    for prefix in ("unix:", "h2c+unix:"):
        if text.lower().startswith(prefix):
            return f"{prefix}{_unix_path(text, text[len(prefix) :])}"
    if text.lower().startswith("https://"):
        raise ValueError(
            f"{show(value)}: backends are spoken to in plain HTTP, TLS towards them is not supported; write http://"
        )
    scheme, found, _ = text.partition("://")
    if found and scheme.lower() not in {"http", "h2c"}:
        raise ValueError(
            f"{show(value)}: unknown scheme {scheme!r}; write http://HOST:PORT, h2c://HOST:PORT (HTTP/2, gRPC) "
            "or unix:/path"
        )
    return _tcp_backend(text, text if found else f"http://{text}")


def parse_route_path(value: object) -> str:
    """Return the path prefix of a route, without a slash at its end (except for "/")."""
    text = as_text(value, "a path")
    if not text.startswith("/"):
        raise ValueError(f'{show(value)}: a route path starts with "/", did you mean "/{text}"?')
    if "?" in text or "#" in text:
        raise ValueError(f"{show(value)}: a route is chosen by path alone; remove the query or fragment")
    path = text.removesuffix("/")
    for segment in path.split("/")[1:]:
        _check_segment(segment, value)
    return path or "/"


def _check_segment(segment: str, value: object) -> None:
    if segment in {".", ".."} or segment.lower().replace("%2e", ".") in {".", ".."}:
        raise ValueError(f'{show(value)}: "." and ".." have no place in a route path')
    if not segment:
        raise ValueError(f"{show(value)}: empty segment in a route path; write single slashes")
    if not _SEGMENT.fullmatch(segment):
        raise ValueError(f"{show(value)}: {segment!r} has characters a URL can't hold; write them percent-encoded")


def _checked_duration(seconds: float, value: object) -> float:
    if not math.isfinite(seconds) or not 0 <= seconds <= _LONGEST:
        raise ValueError(f"{show(value)} is not a usable duration: zero to 100 years")
    return seconds


def _checked_size(size: float, value: object) -> int:
    if not 0 <= size < 2**53:
        raise ValueError(f"{show(value)} is not a usable size")
    return int(size)


def as_text(value: object, what: str) -> str:
    """Return a value that must be text, or raise ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{show(value)} is not {what}; write it as text in quotes")  # noqa: TRY004 - pydantic's protocol
    if not value.strip() or not value.isprintable():
        raise ValueError(f"{show(value)} is not {what}: empty, or with invisible characters")
    return value


def show(value: object) -> str:
    """Return a value as the user wrote it, or near to it: text in quotes with everything odd escaped."""
    text = json.dumps(value, default=repr, ensure_ascii=False)
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= 80 else text[:77] + "…"


def as_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a text is, if it is one."""
    if ":" not in text and not text[-1:].isdigit():
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if getattr(address, "scope_id", None) else address


def _dns_name(name: str, shown: str, label_form: re.Pattern[str]) -> str:
    if _IDNA_DEVIATIONS & set(name):
        raise ValueError(f"{show(shown)}: this name has two IDNA forms; write the xn-- form that your registrar shows")
    labels = [_idna(label, shown) for label in name.removesuffix(".").split(".")]
    bad = next((label for label in labels if not label_form.fullmatch(label)), None)
    if bad is not None:
        raise ValueError(
            f"{show(shown)} is not a host name: {bad!r} is not a label (letters, digits, hyphens; 1 to 63 of them)"
        )
    ascii_name = ".".join(labels)
    if len(ascii_name) > 253 or labels[-1].isdigit():
        raise ValueError(f"{show(shown)} is neither an IP address nor a host name")
    return ascii_name


def _idna(label: str, shown: str) -> str:
    if label.isascii():
        return label.lower()
    try:
        return label.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise ValueError(f"{show(shown)} can't be written in IDNA; write its xn-- form") from error


def as_port(text: str, value: object, *, lowest: int) -> int:
    """Return the port of an address `value`, or raise ValueError that shows the whole."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5) or not lowest <= int(text) <= 65535:
        raise ValueError(f"{show(value)}: {text!r} is not a port (1 to 65535)")
    return int(text)


def _unix_path(text: str, path: str) -> str:
    if path.startswith("///"):  # the URL form, unix:///run/app.sock: an empty authority before the path
        path = path[2:]
    if not path.startswith("/") or path.startswith("//") or path.endswith("/"):
        raise ValueError(f"{show(text)}: a unix socket is named by its absolute path, as in unix:/run/app.sock")
    if len(path.encode()) > _UNIX_PATH_LIMIT:
        raise ValueError(f"{show(text)}: the path of a unix socket has at most {_UNIX_PATH_LIMIT} bytes")
    return path


@functools.lru_cache(maxsize=1024)
def _tcp_backend(text: str, url: str) -> str:
    if text.removeprefix(":").isdigit():
        raise ValueError(f'{show(text)} lacks a host, did you mean "127.0.0.1:{text.removeprefix(":")}"?')
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(f"{show(text)} is not a backend; write http://HOST:PORT or unix:/path") from error
    if parts.username is not None or parts.query or parts.fragment or parts.path not in {"", "/"}:
        raise ValueError(
            f"{show(text)}: a backend is HOST:PORT alone; requests keep their own path, query and credentials"
        )
    host, port = _split_authority(parts.netloc, text)
    address = as_address(host)
    name = str(address) if address else _dns_name(host, text, _BACKEND_LABEL)
    return (
        f"{parts.scheme}://[{name}]:{port}" if address and address.version == 6 else f"{parts.scheme}://{name}:{port}"
    )


def _split_authority(authority: str, text: str) -> tuple[str, int]:
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        if as_address(host) is None or (rest and not rest.startswith(":")):
            raise ValueError(f"{show(text)}: {authority!r} is not an IPv6 address with a port, as in [::1]:8000")
        port = rest.removeprefix(":")
    else:
        host, _, port = authority.partition(":")
    if not port and "://" not in text:
        raise ValueError(f"{show(text)} lacks a port, as in {text.rstrip(':')}:8000")
    return host, as_port(port, text, lowest=1) if port else 80


def as_mapping(value: Any) -> dict[str, Any]:
    """Return a table, or an empty one for anything else: cross checks look at values that may be wrong."""
    return value if isinstance(value, dict) else {}
