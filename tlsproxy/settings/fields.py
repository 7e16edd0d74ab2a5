"""The field types of the models: a parser of `values`, and what the JSON Schema says about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, SecretStr, WithJsonSchema

from tlsproxy.settings import acme_values, values

_DURATION: dict[str, Any] = {"type": "string", "pattern": r"^\d+(\.\d+)?\s*(ms|s|m|h|d|w|y)?$"}
_SECONDS: dict[str, Any] = {"type": "number", "minimum": 0}
_SIZE: dict[str, Any] = {"type": "string", "pattern": r"^\d+(\.\d+)?\s*([KMGTkmgt]?[iI]?[bB])?$"}
_BYTES: dict[str, Any] = {"type": "integer", "minimum": 0}
_OFF: dict[str, Any] = {"const": "off"}

Duration = Annotated[
    float, BeforeValidator(values.parse_duration), WithJsonSchema({"anyOf": [_DURATION, _SECONDS]}, mode="validation")
]
PositiveDuration = Annotated[
    float,
    BeforeValidator(values.parse_positive_duration),
    WithJsonSchema({"anyOf": [_DURATION, _SECONDS]}, mode="validation"),
]
DurationOrOff = Annotated[
    float,
    BeforeValidator(values.parse_duration_or_off),
    WithJsonSchema({"anyOf": [_OFF, _DURATION, _SECONDS]}, mode="validation"),
]
Size = Annotated[int, BeforeValidator(values.parse_size), WithJsonSchema({"anyOf": [_SIZE, _BYTES]}, mode="validation")]
SizeOrOff = Annotated[
    int, BeforeValidator(values.parse_size_or_off), WithJsonSchema({"anyOf": [_OFF, _SIZE, _BYTES]}, mode="validation")
]
Count = Annotated[int, BeforeValidator(values.parse_count), WithJsonSchema(_BYTES, mode="validation")]
Workers = Annotated[int | Literal["auto"], BeforeValidator(values.parse_workers)]

OptionalHost = Annotated[str, BeforeValidator(values.parse_optional_host)]
Address = Annotated[str, BeforeValidator(values.parse_listen)]
Network = Annotated[str, BeforeValidator(values.parse_network)]
StoreUrl = Annotated[str, BeforeValidator(values.parse_store_url)]
Backend = Annotated[str, BeforeValidator(values.parse_backend)]
RoutePath = Annotated[str, BeforeValidator(values.parse_route_path)]
CookieName = Annotated[str, BeforeValidator(values.parse_cookie_name)]
OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)]

_commas = BeforeValidator(values.split_list)
Texts = Annotated[tuple[str, ...], _commas]
Hosts = Annotated[tuple[Annotated[str, BeforeValidator(values.parse_site_host)], ...], _commas]
Addresses = Annotated[tuple[Address, ...], _commas]
Networks = Annotated[tuple[Network, ...], _commas]
Backends = Annotated[tuple[Backend, ...], _commas]
ProxyProtocol = Annotated[
    tuple[Network, ...],
    BeforeValidator(values.parse_proxy_protocol),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "string"}}]}, mode="validation"),
]
TlsVersion = Literal["1.2", "1.3"]

Directory = Annotated[str, BeforeValidator(acme_values.parse_directory)]
StagingDirectory = Annotated[str, BeforeValidator(acme_values.parse_staging)]
Email = Annotated[str, BeforeValidator(acme_values.parse_email)]
OptionalUrl = Annotated[str, BeforeValidator(acme_values.parse_optional_url)]
Ask = Annotated[str, BeforeValidator(acme_values.parse_ask)]
Socket = Annotated[str, BeforeValidator(acme_values.parse_socket)]
OptionalServer = Annotated[str, BeforeValidator(acme_values.parse_optional_server)]
Resolvers = Annotated[tuple[Annotated[str, BeforeValidator(acme_values.parse_resolver)], ...], _commas]
Command = Annotated[tuple[str, ...], BeforeValidator(acme_values.parse_command)]
DnsProvider = Annotated[
    Literal["", "exec", "rfc2136", "acme-dns", "lexicon"], BeforeValidator(acme_values.parse_dns_provider)
]
Challenges = Annotated[tuple[Literal["tls-alpn-01", "http-01", "dns-01"], ...], _commas]
Rate = Annotated[
    acme_values.Rate,
    BeforeValidator(acme_values.parse_rate),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"anyOf": [_OFF, {"type": "string", "pattern": r"^\d+/.+$"}]}, mode="validation"),
]

# Only the JSON for a child process shows a secret; whatever else prints one shows stars.
_revealed = PlainSerializer(SecretStr.get_secret_value, return_type=str, when_used="json")
Secret = Annotated[SecretStr, BeforeValidator(acme_values.parse_secret), _revealed]
EabKey = Annotated[SecretStr, BeforeValidator(acme_values.parse_eab_key), _revealed]
BackendSecret = Annotated[SecretStr, BeforeValidator(acme_values.parse_backend_secret), _revealed]
OptionalAddress = Annotated[str, BeforeValidator(values.parse_optional_listen)]
Part = Annotated[float, Field(ge=0.0, le=1.0)]
SecretUrl = Annotated[SecretStr, BeforeValidator(acme_values.parse_secret_url), _revealed]
Option = Annotated[
    SecretStr,
    BeforeValidator(acme_values.parse_option),
    _revealed,
    WithJsonSchema({"type": ["string", "number", "boolean"], "writeOnly": True}, mode="validation"),
]
MasterKeys = Annotated[
    tuple[Annotated[SecretStr, BeforeValidator(acme_values.parse_master_key), _revealed], ...],
    BeforeValidator(acme_values.split_secrets),
]
