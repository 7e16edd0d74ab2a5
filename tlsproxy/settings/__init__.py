"""The configuration: read once per process, checked whole, handed down in sections.

`load` is the only reader of files and environment; everything else here is values. The loader is imported when it is
called: a worker gets its settings as JSON and must not pay for the import of what reads TOML and .env files.
"""

from __future__ import annotations

from tlsproxy.settings.acme import Acme, Dns, Issuer
from tlsproxy.settings.acme_values import Rate
from tlsproxy.settings.loader import Loaded, guess_socket, load
from tlsproxy.settings.models import (
    Admin,
    Events,
    Limits,
    Listen,
    Log,
    OnDemand,
    Server,
    Settings,
    Store,
    Tls,
    Tracing,
)
from tlsproxy.settings.sites import CertificateFiles, Health, Route, Site

__all__ = [
    "Acme",
    "Admin",
    "CertificateFiles",
    "Dns",
    "Events",
    "Health",
    "Issuer",
    "Limits",
    "Listen",
    "Loaded",
    "Log",
    "OnDemand",
    "Rate",
    "Route",
    "Server",
    "Settings",
    "Site",
    "Store",
    "Tls",
    "Tracing",
    "guess_socket",
    "load",
]
