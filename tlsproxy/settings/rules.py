"""Rules between values: what no single key can know.

Works on the raw data, which may be wrong anywhere, so that a broken rule is reported together with broken values, not
one run later. Knows nothing about files; a fault names its place by path, and the other place it clashes with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from tlsproxy.settings import certificate_rules, raw, values
from tlsproxy.settings.raw import DEFAULT_LISTEN, Fault, Path

T = TypeVar("T")

SHORT_FORM = (
    "backends", "balance", "response_timeout", "max_body", "health", "max_requests", "queue", "queue_timeout", "hold",
    "sticky", "repair_redirects", "templates",
)  # fmt: skip
"""Keys of a route that may stand in `[[sites]]` beside `backends`: they are those of its route "/"."""


def validate(data: Any, handler: Callable[[Any], T], faults: Sequence[Fault]) -> T:
    """Validate `data` and raise one error that holds the broken values and the broken rules."""
    errors: list[InitErrorDetails] = [_fault_details(fault) for fault in faults]
    try:
        result = handler(data)
    except ValidationError as error:
        errors = [_copied_details(dict(found)) for found in error.errors(include_url=False)] + errors
    else:
        if not errors:
            return result
    raise ValidationError.from_exception_data("settings", errors, hide_input=True)


def expand_site(site: dict[str, Any]) -> dict[str, Any]:
    """Write out what a site leaves open: the route that `backends` stands for, the certificate that fits its hosts."""
    expanded = expand_short_form(site)
    return expanded if "certificate" in site else {**expanded, "certificate": raw.certificate(site)}


def expand_short_form(site: dict[str, Any]) -> dict[str, Any]:
    """Turn `backends = […]` of a site, and what goes with it, into a first route with path "/"."""
    if "backends" not in site:
        return site
    expanded = {key: value for key, value in site.items() if key not in SHORT_FORM}
    routes = site.get("routes", [])
    if isinstance(routes, (list, tuple)):
        expanded["routes"] = [{key: site[key] for key in SHORT_FORM if key in site}, *routes]
    return expanded


def written_path(path: Path, data: Any) -> Path:
    """Return the path as the user wrote it for a path in expanded data: the inverse of `expand_short_form`."""
    if len(path) < 4 or path[0] != "sites" or path[2] != "routes" or not isinstance(path[3], int):
        return path
    if "backends" not in values.as_mapping(_at(data, path[:2])):
        return path
    return (*path[:2], *path[4:]) if path[3] == 0 else (*path[:3], path[3] - 1, *path[4:])


def find_site_faults(site: Mapping[str, Any]) -> list[Fault]:
    """Return what contradicts itself within one site."""
    return [*_client_auth_faults(site), *_certificate_faults(site), *_route_faults(site)]


def find_settings_faults(data: Mapping[str, Any]) -> list[Fault]:
    """Return what contradicts itself between sections and between sites."""
    return [
        *_host_faults(data),
        *_default_host_faults(data),
        *_listen_faults(data),
        *certificate_rules.find_faults(data),
    ]


def _client_auth_faults(site: Mapping[str, Any]) -> Iterator[Fault]:
    mode, has_ca = site.get("client_auth", "off"), bool(site.get("client_ca"))
    if mode in {"request", "require"} and not has_ca:
        yield Fault(
            ("client_auth",), f'"{mode}" needs client_ca, the CA certificates that client certificates must come from'
        )
    if mode == "off" and has_ca and isinstance(site["client_ca"], (str, PurePath)):
        yield Fault(
            ("client_ca",), 'has no effect while client_auth is "off"; set client_auth = "require" or "request"'
        )


def _certificate_faults(site: Mapping[str, Any]) -> Iterator[Fault]:
    if site.get("certificate") == "on_demand":
        return
    for index, host in enumerate(raw.items(site.get("hosts"))):
        if host == "*":
            yield Fault(("hosts", index), '"*" has no certificate of its own; write certificate = "on_demand"')


def _route_faults(site: Mapping[str, Any]) -> Iterator[Fault]:
    routes = raw.items(expand_short_form(dict(site)).get("routes"))
    if "routes" not in site and "backends" not in site:
        yield Fault((), 'nothing to forward to; add backends = ["http://127.0.0.1:8000"] or [[sites.routes]]')
    seen: dict[str, Path] = {}
    for index, route in enumerate(routes):
        yield from _duplicate_backends(index, route)
        for path in raw.one(raw.get(route, "path", "/"), values.parse_route_path):
            place: Path = ("routes", index, "path") if index or "backends" not in site else ("backends",)
            if path in seen:
                yield Fault(place, f'"{path}" is routed twice in this site', other=seen[path])
            seen.setdefault(path, place)


def _duplicate_backends(index: int, route: Any) -> Iterator[Fault]:
    seen: set[str] = set()
    for position, backend in raw.parsed(raw.items(raw.get(route, "backends", ())), values.parse_backend):
        if backend in seen:
            yield Fault(("routes", index, "backends", position), f"{backend} is listed twice")
        seen.add(backend)


def _host_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    seen: dict[str, Path] = {}
    for path, host in _all_hosts(data):
        if host in seen:
            yield Fault(path, f"{host} is served twice", other=seen[host])
        seen.setdefault(host, path)


def _default_host_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    for default in raw.one(raw.get(data.get("tls"), "default_host", ""), values.parse_optional_host):
        if default and default not in (hosts := [host for _, host in _all_hosts(data)]):
            hint = values.did_you_mean(default, hosts)
            yield Fault(
                ("tls", "default_host"), f"{default} is not a host of any site{hint or '; add it to the hosts of one'}"
            )


def _listen_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    listen, seen, total = data.get("listen"), dict[str, Path](), 0
    for kind, default in DEFAULT_LISTEN.items():
        addresses = values.split_list(raw.get(listen, kind, default))
        total += len(raw.items(addresses))
        for index, address in raw.parsed(raw.items(addresses), values.parse_listen):
            if address in seen and not address.endswith(":0"):
                yield Fault(("listen", kind, index), f"{address} is listened on twice", other=seen[address])
            seen.setdefault(address, ("listen", kind, index))
    if not total:
        yield Fault(("listen", "https"), 'there is no address to listen on; write https = [":443"]')


def _all_hosts(data: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    for number, site in enumerate(raw.items(data.get("sites"))):
        for index, host in raw.hosts(site):
            yield ("sites", number, "hosts", index), host


def _at(data: Any, path: Path) -> Any:
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _fault_details(fault: Fault) -> InitErrorDetails:
    kind = PydanticCustomError(
        "rule", "{message}", {"message": fault.message, "other": fault.other, "depth": len(fault.path)}
    )
    return InitErrorDetails(type=kind, loc=fault.path, input=None)


def _copied_details(error: dict[str, Any]) -> InitErrorDetails:
    """Carry an error over as it is; its text is final, so it goes in as a value and never as a template."""
    context = {**error.get("ctx", {}), "message": error["msg"]}
    kind = PydanticCustomError(error["type"], "{message}", context)
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"])
