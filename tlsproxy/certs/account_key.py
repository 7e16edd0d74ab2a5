"""The key that an account at a CA is known by.

Knows: P-256 with ES256 (the one kind that every CA takes and that signs fast), RFC 7638 thumbprints, the key
authorization of RFC 8555 8.1. Does not know: requests, stores. Rule: the key reaches a repr or an error never.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True, slots=True)
class AccountKey:
    """A P-256 private key. Equal if the key is."""

    pem: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        key = ec.generate_private_key(ec.SECP256R1())
        form = serialization.PrivateFormat.PKCS8
        return cls(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))

    @property
    def private(self) -> ec.EllipticCurvePrivateKey:
        """The parsed key. Raises ValueError for what is no P-256 key."""
        key = serialization.load_pem_private_key(self.pem, password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return key
        raise ValueError("an account key must be a P-256 key")

    @property
    def thumbprint(self) -> str:
        """The RFC 7638 thumbprint (SHA-256, base64url): what a CA and a challenge know the account by."""
        numbers = self.private.public_key().public_numbers()
        x, y = (b64url(each.to_bytes(32, "big")) for each in (numbers.x, numbers.y))
        members = json.dumps({"crv": "P-256", "kty": "EC", "x": x, "y": y}, separators=(",", ":"))
        return b64url(hashlib.sha256(members.encode()).digest())

    def authorization(self, token: str) -> str:
        """Return the key authorization of a challenge's token (RFC 8555 8.1)."""
        return f"{token}.{self.thumbprint}"

    def dns_value(self, token: str) -> str:
        """Return what dns-01 wants in a TXT record (RFC 8555 8.4)."""
        return b64url(hashlib.sha256(self.authorization(token).encode()).digest())


def b64url(octets: bytes) -> str:
    """Return base64url without padding, as JOSE writes it."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
