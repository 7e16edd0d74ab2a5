"""Where the certificates of a site come from: its files, or the store. Workers and certifier both ask here.

Knows: the names under which certificates are kept and announced. Does not know: contexts, renewal, processes.
Rule: both sides judge a site's certificates by the same function, so what the certifier announces, a worker can load.

Names, in the store and in CertificatesChanged, by the first host of the site (hosts are unique over all sites):

    internal-ca               root of the internal CA, with its key
    internal/<first host>     certificate of the internal CA for all hosts of the site
    file/<first host>         the site's files; announced only, never in the store
"""

from collections.abc import Sequence

from tlsproxy.errors import CertificateError
from tlsproxy.settings import CertificateFiles, Site
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.bundle import Bundle, load_pair

ROOT_NAME = "internal-ca"


def certificate_name(site: Site) -> str:
    """Return the name under which the site's certificates are kept and announced."""
    return internal_name(site.hosts) if site.certificate == "internal" else f"file/{site.hosts[0]}"


def internal_name(hosts: Sequence[str]) -> str:
    return f"internal/{hosts[0]}"


def certificate_files(site: Site) -> tuple[CertificateFiles, ...]:
    """Return the site's pairs of files; none for an internal certificate."""
    if isinstance(site.certificate, str):
        return ()
    return (site.certificate,) if isinstance(site.certificate, CertificateFiles) else site.certificate


def bundles_for(site: Site, store: CertificateStore) -> tuple[Bundle, ...]:
    """Return the certificates to serve for a site: one, or one per kind of key (RSA and ECDSA). Blocks on the disk.

    Raises CertificateError when files are wrong, do not cover the hosts, or nothing is in the store yet; StoreError.
    """
    if site.certificate == "internal":
        bundle = store.get(certificate_name(site))
        if bundle is None:
            raise CertificateError(
                f"{site.hosts[0]}: there is no certificate of the internal CA in {store!r}. "
                "All processes must use one file store (store.url)."
            )
        return (bundle,)
    bundles = tuple(load_files(site, files) for files in certificate_files(site))
    if problem := same_kind_twice(site, bundles):
        raise CertificateError(problem)
    return bundles


def load_files(site: Site, files: CertificateFiles) -> Bundle:
    """Load one pair and see that it covers every host of the site. Raises CertificateError."""
    bundle = load_pair(files.chain, files.key)
    if missing := bundle.check_names(site.hosts):
        raise CertificateError(
            f"{files.chain}: the certificate does not cover {', '.join(missing)}; "
            f"it is for {', '.join(bundle.names) or 'no name at all'}. "
            "Have it issued for all hosts of the site, or move hosts to a site of their own."
        )
    return bundle


def same_kind_twice(site: Site, bundles: Sequence[Bundle]) -> str:
    """Return the problem when two pairs have one kind of key, or "": OpenSSL would silently serve only the last."""
    kinds = [bundle.key_type.partition("-")[0] for bundle in bundles]
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), "")
    return twice and f"{site.hosts[0]}: two certificates have {twice} keys. Give one RSA and one ECDSA certificate."
