"""The internal CA: a root of our own that signs certificates for names no public CA knows (localhost, *.test).

Knows: X.509 profiles, what is due (plan_internal.py), where root and leaves lie in the store. Does not know: sites,
processes, how a root gets into a trust store (trust.py). Rules: the root's key never leaves the store; every leaf has a
new key; whoever makes something does it inside `store.exclusive()` and looks again first.
"""

import ipaddress
import logging
import os
import socket
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tlsproxy.certs.plan_internal import plan_leaf, plan_root
from tlsproxy.certs.wanted import Obtain
from tlsproxy.errors import StoreError
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.bundle import Bundle, normal_host
from tlsproxy.store.sources import ROOT_NAME, internal_name

logger = logging.getLogger(__name__)

ROOT_LIFE = timedelta(days=3653)
LEAF_LIFE = timedelta(days=47)
"""The most that public CAs may issue from 2029 (CA/B forum SC-081v3). Nobody has to act at a renewal, so a short life
costs nothing, and a development set-up lives by the rhythm of the real one. Clients only ask for less than 825 days."""

CLOCK_SKEW = timedelta(hours=1)
"""Leaves and roots begin this much before now: containers and phones with a clock behind ours accept them at once."""

_LONGEST_CN = 64  # RFC 5280 appendix A, ub-common-name
_SHA256 = hashes.SHA256()


def ensure(store: CertificateStore, hosts: Sequence[str], now: datetime) -> Bundle:
    """Return a certificate of the internal CA that covers `hosts`, made or renewed if it is due. Raises StoreError.

    It lies in the store under `internal_name(hosts)`. A damaged record of a leaf is replaced.
    """
    name = internal_name(hosts)
    held, root = _leaf(store, name), store.get(ROOT_NAME)
    if held and root and not _due(hosts, held, root, now):
        return held
    with store.exclusive():
        root = ensure_root(store, now)
        held = _leaf(store, name)
        reason = _due(hosts, held, root, now)
        if held and not reason:
            return held
        made = issue(root, hosts, now)
        store.put(name, made)
    logger.info(
        "certificate.issued",
        extra={"certificate": name, "reason": reason, "serial": made.serial, "not_after": made.not_after.isoformat()},
    )
    return made


def ensure_root(store: CertificateStore, now: datetime) -> Bundle:
    """Return the root, made if there is none or too little is left of it. Raises StoreError, for a damaged root too."""
    with store.exclusive():
        held = store.get(ROOT_NAME)
        action = plan_root(held, now)
        if held and not isinstance(action, Obtain):
            return held
        made = make_root(now, _host_label())
        store.put(ROOT_NAME, made)
    if held:
        logger.warning(
            "certificate.root_replaced",
            extra={"issuer": made.issuer, "advice": "install the new root where the old one was: tlsproxy trust"},
        )
    else:
        logger.info("certificate.root_made", extra={"issuer": made.issuer, "not_after": made.not_after.isoformat()})
    return made


def make_root(now: datetime, label: str) -> Bundle:
    """Make a root for ten years. `label` tells people which machine it belongs to.

    It has no name constraints (local names have no common suffix), and pathlen 0: it signs leaves only.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = _common_name(f"tlsproxy internal CA {label[:30]} {os.urandom(4).hex()}")
    subject_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _builder(now, ROOT_LIFE, key)
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(subject_key, critical=False)
    )
    return Bundle.build([builder.sign(key, _SHA256)], key, "internal")


def issue(root: Bundle, hosts: Sequence[str], now: datetime) -> Bundle:
    """Make a server certificate for `hosts` with a new key. The chain is the leaf alone: clients have the root."""
    root_certificate = x509.load_pem_x509_certificate(root.chain_pem)
    root_key = serialization.load_pem_private_key(root.key_pem, password=None)
    if not isinstance(root_key, ec.EllipticCurvePrivateKey):
        raise StoreError(
            f"the record {ROOT_NAME!r} holds no root of the internal CA. Delete it to have a new one made."
        )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _common_name(hosts[0]) if len(hosts[0]) <= _LONGEST_CN else x509.Name([])
    root_key_id = root_certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(now, LEAF_LIFE, key)
        .subject_name(subject)
        .issuer_name(root_certificate.subject)
        # RFC 5280 4.2.1.6: the alternative names are critical when the subject is empty.
        .add_extension(_alternative_names(hosts), critical=not list(subject))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_key_id), critical=False)
    )
    return Bundle.build([builder.sign(root_key, _SHA256)], key, "internal")


def _leaf(store: CertificateStore, name: str) -> Bundle | None:
    try:
        return store.get(name)
    except StoreError as error:
        logger.warning("certificate.record_damaged", extra={"certificate": name, "error": str(error)})
        return None


def _due(hosts: Sequence[str], held: Bundle | None, root: Bundle, now: datetime) -> str:
    """Return why a new certificate is needed, or "". A root that is due itself is a reason too."""
    for action in (plan_root(root, now), plan_leaf(hosts, held, root, now)):
        if isinstance(action, Obtain):
            return action.reason
    return ""


def _builder(now: datetime, life: timedelta, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    begin = (now - CLOCK_SKEW).replace(microsecond=0)  # X.509 counts whole seconds
    return (
        x509.CertificateBuilder()
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())  # 20 random bytes, positive: RFC 5280 4.1.2.2
        .not_valid_before(begin)
        .not_valid_after(begin + life)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(map(normal_host, hosts))])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host_label() -> str:
    # A host name is bytes of somebody's choice; RFC 4514 escaping in logs and trust lists helps nobody.
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in socket.gethostname())
