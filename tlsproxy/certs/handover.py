"""The look at a certificate that a CA has issued, before it counts.

Knows: X.509 and PEM. Does not know: ACME, stores, processes; the clock is an argument. Rule: nothing that a client
would refuse ever replaces a certificate that works, so a chain is judged here before anybody stores it. One that begins
later by our clock is good: the clock is wrong, no CA dates ahead, and another one would begin even later.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from tlsproxy.certs.identifiers import ari_id
from tlsproxy.certs.words import moment, span
from tlsproxy.errors import CertificateError
from tlsproxy.store import pem
from tlsproxy.store.bundle import Bundle

SKEW = timedelta(minutes=5)
"""A certificate that begins no later than so much from now says nothing of the clock: clocks differ by seconds."""


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
    if bundle.is_expired(now):
        raise CertificateError(f"{label} {bundle.date_problem(now)}. Set the clock of this machine (NTP).")
    return replace(bundle, ari_id=ari_id(ordered[0]))


def clock_problem(bundle: Bundle, now: datetime) -> str:
    """Return what a new certificate tells about our clock, "" if nothing."""
    if bundle.not_before <= now + SKEW:
        return ""
    behind, begin = span(bundle.not_before - now), moment(bundle.not_before)
    return (
        f"the clock of this machine is at least {behind} behind: the CA has just issued a certificate for "
        f"{bundle.names[0]} that begins on {begin}. It is kept and served. Set the clock (NTP)."
    )
