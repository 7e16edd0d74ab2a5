"""The look at a certificate that a CA has issued, before it counts.

Knows: X.509 and PEM. Does not know: ACME, stores, processes; the clock is an argument. Rule: nothing that a client
would refuse ever replaces a certificate that works, so a chain is judged here before anybody stores it.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from tlsproxy.certs.identifiers import ari_id
from tlsproxy.errors import CertificateError
from tlsproxy.store import pem
from tlsproxy.store.bundle import Bundle

SKEW = timedelta(minutes=5)
"""A certificate that begins this much from now is taken: CAs backdate by an hour, clocks differ by seconds."""


def accept(chain_pem: bytes, key_pem: bytes, hosts: Sequence[str], now: datetime) -> Bundle:
    """Return what a CA has issued as a bundle, with its ARI id. Raises CertificateError for what can't be served."""
    label = f"{hosts[0]}: the certificate that the CA sent"
    certificates = pem.certificates(chain_pem, label)
    key = pem.private_key(key_pem, f"{hosts[0]}: the new key")
    if not pem.belongs(key, certificates[0]):
        raise CertificateError(f"{label} is not for the key of this order. It is dropped and ordered again later.")
    ordered, _ = pem.order_chain(certificates[0], certificates)
    pem.refuse_unusable(ordered, label)
    bundle = Bundle.build(ordered, key, "acme")
    if missing := bundle.check_names(hosts):
        raise CertificateError(f"{label} does not cover {', '.join(missing)}. It is dropped and ordered again later.")
    if bundle.not_before > now + SKEW or bundle.is_expired(now):
        raise CertificateError(f"{label} {bundle.date_problem(now)}. Set the clock of this machine (NTP).")
    return replace(bundle, ari_id=ari_id(ordered[0]))
