"""Where certificates come from: the sections [acme], [[acme.fallback]] and [acme.dns] as frozen values.

Knows keys, defaults and the order of CAs; what contradicts itself is in `certificates`, the words in `values`. Rule: a
secret is a SecretStr, so that nothing shows it by accident, and only the JSON for a child process carries it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, SecretStr

from tlsproxy.settings import directories, fields
from tlsproxy.settings.section import Section

_NO_SECRET = SecretStr("")


@dataclass(frozen=True, slots=True)
class Issuer:
    """One CA to order from, with everything resolved. `staging_url`: where to rehearse, "" nowhere."""

    directory_url: str
    staging_url: str
    email: str
    ca_bundle: str
    profile: str
    preferred_chain: str
    eab_kid: str
    eab_hmac_key: SecretStr


class Authority(Section):
    """What can be said about a CA, the first one ([acme]) or a further one ([[acme.fallback]])."""

    SECRETS: ClassVar[tuple[str, ...]] = ("eab_hmac_key",)
    FILES: ClassVar[tuple[str, ...]] = ("ca_bundle",)

    directory: fields.Directory = Field(
        default="letsencrypt", description="letsencrypt, letsencrypt-staging, zerossl, google, or the URL of another."
    )
    staging: fields.StagingDirectory = Field(
        default="", description='Directory where a retry is rehearsed; empty is the known one, "off" none.'
    )
    email: fields.Email = Field(default="", description="Contact for the CA; most do without.")
    ca_bundle: fields.OptionalPath = Field(
        default=None, description="CA certificates (PEM) that the ACME server's own certificate comes from."
    )
    profile: str = Field(default="", description="Profile of the CA, as shortlived; empty is the CA's default.")
    preferred_chain: str = Field(default="", description="Common name of the root wanted, if the CA offers several.")
    eab_kid: str = Field(default="", description="Key id of the external account binding that some CAs ask for.")
    eab_hmac_key: fields.EabKey = Field(default=_NO_SECRET, description="Its key, base64url as the CA shows it.")

    def as_issuer(self, email: str = "") -> Issuer:
        """Return the resolved form; `email` where none is configured."""
        return Issuer(
            directory_url=directories.directory_url(self.directory),
            staging_url=self._staging_url(),
            email=self.email or email,
            ca_bundle=str(self.ca_bundle or ""),
            profile=self.profile,
            preferred_chain=self.preferred_chain,
            eab_kid=self.eab_kid,
            eab_hmac_key=self.eab_hmac_key,
        )

    def _staging_url(self) -> str:
        if self.staging == "off":
            return ""
        return directories.directory_url(self.staging) or directories.staging_url(self.directory)


class Fallback(Authority):
    """A further CA: one that is asked when those before it fail."""

    directory: fields.Directory = Field(description="letsencrypt, zerossl, google, or the URL of another.")


class ExecDns(Section):
    FILES: ClassVar[tuple[str, ...]] = ("command",)

    command: fields.Command = Field(
        default=(), description="Program and arguments; called with present or cleanup, NAME and VALUE appended."
    )


class Rfc2136Dns(Section):
    SECRETS: ClassVar[tuple[str, ...]] = ("key_secret",)

    server: fields.OptionalServer = Field(
        default="", description="Primary server of the zone: ADDRESS or ADDRESS:PORT."
    )
    key_name: str = Field(default="", description="Name of the TSIG key.")
    key_secret: fields.Secret = Field(default=_NO_SECRET, description="The TSIG key, base64.")
    key_algorithm: Literal["hmac-sha256", "hmac-sha384", "hmac-sha512", "hmac-sha224", "hmac-sha1", "hmac-md5"] = Field(
        default="hmac-sha256", description="Algorithm of the TSIG key."
    )
    zone: fields.OptionalHost = Field(default="", description="Zone to update; empty finds it through its SOA record.")


class AcmeDns(Section):
    FILES: ClassVar[tuple[str, ...]] = ("credentials",)

    server: fields.OptionalUrl = Field(default="", description="URL of the acme-dns server.")
    credentials: fields.OptionalPath = Field(
        default=None, description="JSON file with the registered accounts by domain, as acme-dns clients keep it."
    )


class LexiconDns(Section):
    SECRETS: ClassVar[tuple[str, ...]] = ("options",)

    provider: str = Field(default="", description="Name of the provider in dns-lexicon, as cloudflare.")
    zone: fields.OptionalHost = Field(default="", description="Zone to update; empty finds it through its SOA record.")
    options: dict[str, fields.Option] = Field(
        default_factory=dict, description="What the provider asks for, as auth_token."
    )


class Dns(Section):
    """How TXT records for dns-01 are made. The table named like the provider holds what it needs."""

    provider: fields.DnsProvider = Field(
        default="", description="Who makes the TXT records of dns-01; empty is nobody."
    )
    propagation: fields.PositiveDuration = Field(
        default=120.0, description="How long to wait until all authoritative servers show the record."
    )
    resolvers: fields.Resolvers = Field(
        default=(), description="Name servers to ask: ADDRESS or ADDRESS:PORT; empty follows the system."
    )
    exec: ExecDns = Field(default=ExecDns(), description='provider = "exec": a program writes the records.')
    rfc2136: Rfc2136Dns = Field(
        default=Rfc2136Dns(), description='provider = "rfc2136": dynamic updates to a name server.'
    )
    acme_dns: AcmeDns = Field(default=AcmeDns(), description='provider = "acme-dns": a server for these records alone.')
    lexicon: LexiconDns = Field(default=LexiconDns(), description='provider = "lexicon": one of its many DNS services.')


class Acme(Authority):
    challenges: Annotated[fields.Challenges, Field(min_length=1)] = Field(
        default=("tls-alpn-01", "http-01"), description="Challenges in order of preference; dns-01 needs [acme.dns]."
    )
    key_type: Literal["ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-4096"] = Field(
        default="ecdsa-p256", description="Kind of key that is made for each certificate."
    )
    quota: Literal["auto", "letsencrypt", "off"] = Field(
        default="auto", description="Limits that are kept to: those published by a known CA, Let's Encrypt's, or none."
    )
    fallback: tuple[Fallback, ...] = Field(default=(), description="Further CAs, asked in order when the first fails.")
    dns: Dns = Field(default=Dns(), description="How the records of dns-01 are written.")

    def issuers(self) -> tuple[Issuer, ...]:
        """Return all CAs in order of preference."""
        return (self.as_issuer(), *(each.as_issuer(self.email) for each in self.fallback))
