"""The configuration as frozen values: one class per section of the file.

Knows every key, its default and its meaning; the words of a value are in `values`, the rules between values in `rules`.
Rule: a Settings that exists is right, whoever built it, and goes to a child process as JSON and back without a change.
The child takes the rules as kept: at 10 000 sites that, and leaving out defaults, is 0.5 s and 35 MiB a process.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationInfo,
    model_validator,
)

from tlsproxy.settings import acme_values, fields, rules
from tlsproxy.settings.acme import Acme
from tlsproxy.settings.cpus import available_cpus
from tlsproxy.settings.section import Section
from tlsproxy.settings.sites import KEPT, Site


class Listen(Section):
    https: fields.Addresses = Field(
        default=(":443",), description="Addresses that speak TLS: host:port, [v6]:port or :port."
    )
    http: fields.Addresses = Field(
        default=(":80",), description="Addresses that redirect to https; an empty list is off."
    )
    proxy_protocol: fields.ProxyProtocol = Field(
        default=(), description="Networks that must speak the PROXY protocol; true is all."
    )
    http2: bool = Field(default=True, description="Offer HTTP/2 to clients; without it HTTP/1.1 only.")


class Server(Section):
    SECRETS: ClassVar[tuple[str, ...]] = ("backend_secret",)

    workers: fields.Workers = Field(default="auto", description="Worker processes; auto counts the usable CPUs.")
    user: str = Field(default="", description="User to become after the sockets are bound.")
    trusted_proxies: fields.Networks = Field(default=(), description="Networks whose forwarding headers are believed.")
    drain: fields.Duration = Field(default=9.5, description="How long requests in flight may take after a stop.")
    drain_streams: fields.Duration = Field(
        default=600.0, description="How long requests and WebSockets of unchanged sites may go on after a reload."
    )
    backend_secret: fields.BackendSecret = Field(
        default=SecretStr(""),
        description="Proves to TLSProxyMiddleware in the application who is asking.",
    )
    forwarded: bool = Field(default=False, description="Also send the Forwarded header of RFC 7239 to backends.")
    via: bool = Field(default=False, description="Send Via to backends.")


class Limits(Section):
    header_size: fields.Size = Field(
        default=32768, ge=256, le=2**20, description="Bytes of a request's head; beyond is 431."
    )
    header_count: fields.Count = Field(
        default=100, ge=1, le=10_000, description="Fields of a request's head; beyond is 431."
    )
    target_size: fields.Size = Field(
        default=8192, ge=16, le=2**20, description="Bytes of a request target; beyond is 414."
    )
    header_timeout: fields.PositiveDuration = Field(
        default=15.0, description="Time for a request's head to arrive; then 408."
    )
    handshake_timeout: fields.PositiveDuration = Field(default=10.0, description="Time for a TLS handshake.")
    body_idle: fields.PositiveDuration = Field(default=60.0, description="Longest pause within a request's body.")
    write_idle: fields.PositiveDuration = Field(
        default=60.0, description="Longest time a client may take nothing of its answer."
    )
    keep_alive: fields.PositiveDuration = Field(default=75.0, description="How long an idle client connection is kept.")
    connections: fields.Count = Field(
        default=0, description="Client connections of one worker; 0 follows the open-file limit."
    )
    connections_per_client: fields.Count = Field(
        default=0, description="Connections of one client address to one worker; 0 is off."
    )
    connect_timeout: fields.PositiveDuration = Field(default=3.0, description="Time to connect to a backend.")
    tunnel_idle: fields.PositiveDuration = Field(
        default=3600.0, description="Longest silence of an upgraded connection."
    )
    pool_idle_per_backend: fields.Count = Field(
        default=32, le=10_000, description="Idle connections a worker keeps per backend."
    )
    http2_streams: fields.Count = Field(
        default=100, ge=1, le=1000, description="Requests under way at once on one HTTP/2 connection."
    )
    contexts: fields.Count = Field(
        default=1000,
        ge=1,
        description="Certificates that a worker keeps ready for handshakes; others are loaded again.",
    )


class Tls(Section):
    minimum_version: fields.TlsVersion = Field(default="1.2", description="Oldest TLS version spoken.")
    default_host: fields.OptionalHost = Field(
        default="", description="Site for clients that send no or an unknown name; empty refuses."
    )


class Store(Section):
    SECRETS: ClassVar[tuple[str, ...]] = ("encryption_keys",)
    FILES: ClassVar[tuple[str, ...]] = ("url",)

    url: fields.StoreUrl = Field(
        default="file:///var/lib/tlsproxy",
        description="Where certificates and keys are kept: file:///folder or memory:.",
    )
    encryption_keys: fields.MasterKeys = Field(
        default=(), description="Keys that records are encrypted with, newest first; empty keeps them plain, mode 0600."
    )
    allow_ephemeral: bool = Field(
        default=False, description="Use a production CA even if the store ends with its container."
    )

    def master_keys(self) -> tuple[str, ...]:
        """Return the encryption keys as they are, newest first, for whoever opens the store."""
        return tuple(map(SecretStr.get_secret_value, self.encryption_keys))


class OnDemand(Section):
    ask: fields.Ask = Field(
        default="", description="Who allows a name: a path on the on-demand site's first backend, or a URL."
    )
    timeout: fields.PositiveDuration = Field(default=2.0, description="How long the answer may take; then it is no.")
    per_domain: fields.Rate = Field(
        default=acme_values.Rate(10, 3600.0),
        json_schema_extra={"default": "10/1h"},
        description="New names of one registered domain; off is no limit.",
    )
    per_client: fields.Rate = Field(
        default=acme_values.Rate(10, 3600.0),
        json_schema_extra={"default": "10/1h"},
        description="New names asked for by one client network (/24, /56).",
    )


class Events(Section):
    SECRETS: ClassVar[tuple[str, ...]] = ("webhook",)
    FILES: ClassVar[tuple[str, ...]] = ("command",)

    command: fields.Command = Field(
        default=(), description="Program and arguments run for each event, which it reads as JSON on its stdin."
    )
    webhook: fields.SecretUrl = Field(default=SecretStr(""), description="URL that each event is sent to, as JSON.")


class Admin(Section):
    FILES: ClassVar[tuple[str, ...]] = ("socket",)

    socket: fields.Socket = Field(
        default="/run/tlsproxy/admin.sock", description='Unix socket of the admin API, mode 0600; "off" has none.'
    )
    metrics: fields.OptionalAddress = Field(
        default="", description="Address that answers /metrics, /healthz and /readyz over plain HTTP; empty is off."
    )


class Tracing(Section):
    SECRETS: ClassVar[tuple[str, ...]] = ("headers",)

    traceparent: bool = Field(
        default=False, description="Send traceparent (W3C Trace Context) to backends: the client's, or a new one."
    )
    otlp: fields.OptionalUrl = Field(
        default="",
        description="Where spans go (OTLP over HTTP), as http://127.0.0.1:4318/v1/traces; empty is off.",
    )
    headers: fields.Secret = Field(
        default=SecretStr(""), description="Headers for that place, as name=value,name=value."
    )
    sample: fields.Part = Field(default=0.01, description="Part of the requests that begin a sampled trace, 0 to 1.")


class Log(Section):
    FILES: ClassVar[tuple[str, ...]] = ("access",)

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged."
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto is console in a terminal, JSON else."
    )
    access: str = Field(default="-", description='Access log: "-" is stdout, a file, or "off".')
    redact_query: fields.Texts = Field(
        default=(
            "token",
            "access_token",
            "id_token",
            "refresh_token",
            "code",
            "password",
            "secret",
            "client_secret",
            "api_key",
            "key",
            "jwt",
            "signature",
            "sig",
            "x-amz-signature",
            "x-amz-security-token",
        ),
        description="Query parameters whose values never reach the access log.",
    )


class Settings(Section):
    """All of it. `for_child` and `from_parent` carry it to a child process unchanged, `for_worker` without secrets."""

    listen: Listen = Listen()
    server: Server = Server()
    limits: Limits = Limits()
    tls: Tls = Tls()
    acme: Acme = Acme()
    on_demand: OnDemand = OnDemand()
    events: Events = Events()
    store: Store = Store()
    admin: Admin = Admin()
    tracing: Tracing = Tracing()
    log: Log = Log()
    sites: tuple[Site, ...] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _keep_rules(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if info.context is KEPT or not isinstance(data, dict):
            return handler(data)
        return rules.validate(data, handler, rules.find_settings_faults(data))

    def for_child(self) -> str:
        """Return JSON for a child process, secrets and all: nothing to be logged."""
        return self.model_dump_json(exclude_defaults=True)

    def for_worker(self) -> str:
        """Return JSON for a process that faces strangers: without what only those need who talk to CAs and DNS."""
        return self.model_dump_json(exclude_defaults=True, exclude={"acme", "on_demand", "events", "admin"})

    @classmethod
    def from_parent(cls, text: str) -> Self:
        """Return what `for_child` or `for_worker` gave another process of this version."""
        return cls.model_validate_json(text, context=KEPT)

    def resolve_workers(self) -> int:
        """Return the number of workers to start; "auto" is counted here, when it is needed."""
        return available_cpus() if self.server.workers == "auto" else self.server.workers
