"""The configuration: read once per process, checked whole, handed down in sections.

`load` is the only reader of files and environment; everything else here is values. The loader is imported when it is
called: a worker gets its settings as JSON and must not pay for the import of what reads TOML and .env files.
"""

from __future__ import annotations

from tlsproxy.settings.loader import Loaded, load
from tlsproxy.settings.models import CertificateFiles, Limits, Listen, Log, Route, Server, Settings, Site, Store, Tls

__all__ = [
    "CertificateFiles",
    "Limits",
    "Listen",
    "Loaded",
    "Log",
    "Route",
    "Server",
    "Settings",
    "Site",
    "Store",
    "Tls",
    "load",
]
