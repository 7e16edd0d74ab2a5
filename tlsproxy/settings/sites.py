"""A site of the configuration: its names, its certificate, its routes, and how each route treats its backends.

Knows every key of `[[sites]]` and below; the rest of the file is `models`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    ValidationInfo,
    model_validator,
)

from tlsproxy.settings import fields, rules
from tlsproxy.settings.section import Section


class CertificateFiles(Section):
    """A chain and its key, as PEM files; both are absolute once loaded from a file."""

    FILES: ClassVar[tuple[str, ...]] = ("chain", "key")

    chain: Path = Field(description="Certificate with its intermediates, PEM.")
    key: Path = Field(description="Private key, PEM.")


KEPT = {"rules": "kept"}
"""The context of a validation that may trust its input: another process has checked it."""


def _certificate_form(value: Any) -> str:
    if isinstance(value, str):
        return "word"
    return "files" if isinstance(value, (list, tuple)) else "file"


Certificate = Annotated[
    Annotated[Literal["internal", "acme", "on_demand"], Tag("word")]
    | Annotated[CertificateFiles, Tag("file")]
    | Annotated[tuple[CertificateFiles, ...], Field(min_length=1), Tag("files")],
    Discriminator(_certificate_form),
]


class Health(Section):
    """How a backend is asked whether it is well."""

    path: fields.RoutePath = Field(default="/healthz", description="Asked with GET; 2xx or 3xx is well.")
    interval: fields.PositiveDuration = Field(default=5.0, description="Time between two questions.")
    timeout: fields.PositiveDuration = Field(default=2.0, description="Time for the answer; then it counts as failed.")
    fails: fields.Count = Field(default=2, ge=1, le=100, description="Failures in a row that make a backend down.")
    passes: fields.Count = Field(default=1, ge=1, le=100, description="Successes in a row that make it up again.")
    host: fields.OptionalHost = Field(default="", description="Host header of the question; empty is the site's name.")


class Route(Section):
    path: fields.RoutePath = Field(
        default="/", description="Path prefix, matched on segment borders; the longest wins."
    )
    strip_prefix: bool = Field(default=False, description="Forward without the prefix and send X-Forwarded-Prefix.")
    backends: fields.Backends = Field(
        min_length=1, description="http://host:port, h2c://host:port (HTTP/2) or unix:/path."
    )
    balance: Literal["least_conn", "round_robin", "random", "ip_hash"] = Field(
        default="least_conn", description="Choice of a backend."
    )
    response_timeout: fields.PositiveDuration = Field(
        default=300.0, description="Time for a backend's answer to begin; then 504."
    )
    max_body: fields.SizeOrOff = Field(
        default=0, description="Largest request body; beyond is 413. 0 or off is no limit."
    )
    health: Health | None = Field(
        default=None, description='Ask the backends whether they are well, as { path = "/healthz" }.'
    )
    max_requests: fields.Count = Field(
        default=0, description="Requests under way at one backend, over all workers; further ones queue. 0 is no limit."
    )
    queue: fields.Count = Field(default=100, description="Requests of the route that may wait in one worker; then 503.")
    queue_timeout: fields.PositiveDuration = Field(
        default=10.0, description="How long a request may wait for its turn; then 503."
    )
    hold: fields.Duration = Field(
        default=0.0, le=5.0, description="How long requests wait while every backend refuses connections; at most 5 s."
    )
    sticky: fields.CookieName = Field(
        default="", description="Cookie that keeps a client with its backend, as tlsproxy_backend; empty is off."
    )
    repair_redirects: bool = Field(
        default=False, description="Mend redirects of a backend that lead from https back to http on the same host."
    )
    templates: bool = Field(
        default=True,
        description="Name paths by their route template in metrics and log, from the middleware or /openapi.json.",
    )


def _describe_short_form(schema: dict[str, Any]) -> None:
    """Tell the JSON Schema about the short form of a site, which is no field, and that a default depends on hosts."""
    route = Route.model_json_schema(ref_template="#/$defs/{model}")["properties"]
    about = 'Short form of one route with path "/"; the keys of a route may then stand beside it.'
    backends = {"type": "array", "items": {"type": "string"}, "minItems": 1, "description": about}
    # A reference made here would not be known to the schema around it.
    health = {"type": "object", "description": Route.model_fields["health"].description}
    schema["properties"].update({key: route[key] for key in rules.SHORT_FORM}, backends=backends, health=health)
    schema["required"].remove("routes")
    del schema["properties"]["certificate"]["default"]
    schema["anyOf"] = [{"required": ["routes"]}, {"required": ["backends"]}]


class Site(Section):
    model_config = ConfigDict(json_schema_extra=_describe_short_form)
    FILES: ClassVar[tuple[str, ...]] = ("client_ca",)

    hosts: fields.Hosts = Field(
        min_length=1, description="Names served: exact, *.example.com, or * with certificates on demand."
    )
    certificate: Certificate = Field(
        default="internal",
        description="acme, internal, on_demand, or files: { chain, key }, or a list of them; "
        "without it internal for local names, else acme.",
    )
    client_ca: fields.OptionalPath = Field(
        default=None, description="CA certificates (PEM) that client certificates must come from."
    )
    client_auth: Literal["off", "request", "require"] = Field(
        default="off", description="Whether clients are asked for a certificate."
    )
    minimum_version: Literal["", "1.2", "1.3"] = Field(
        default="", description="Oldest TLS version here; empty follows [tls]."
    )
    hsts: fields.DurationOrOff = Field(default=0.0, description="max-age of Strict-Transport-Security; off sends none.")
    routes: Annotated[tuple[Route, ...], Field(min_length=1)] = Field(description="Where requests go, by path prefix.")

    @model_validator(mode="wrap")
    @classmethod
    def _keep_rules(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if info.context is KEPT or not isinstance(data, dict):
            return handler(data)
        return rules.validate(rules.expand_site(data), handler, rules.find_site_faults(data))
