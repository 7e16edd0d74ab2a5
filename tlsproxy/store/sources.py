"""Where the certificates of a site come from: its files, or the store. Workers and certifier both ask here.

Knows: the names under which certificates are kept and announced. Does not know: contexts, renewal, processes.
Rule: both sides judge a site's certificates by the same function, so what the certifier announces, a worker can load.

Names, in the store and in CertificatesChanged, by the first host of the site (hosts are unique over all sites):

    internal-ca               root of the internal CA, with its key
    internal/<first host>     certificate of the internal CA for all hosts of the site
    acme/<first host>         certificate of a public CA for all hosts of the site; also one somebody imported
    acme/<host>               the same for one host of an on-demand site, obtained when a client first asks for it
    file/<first host>         the site's files; announced only, never in the store
"""

from collections.abc import Sequence

from tlsproxy.errors import CertificateError
from tlsproxy.settings import CertificateFiles, Site
from tlsproxy.settings.values import parse_host
from tlsproxy.store.base import CertificateStore
from tlsproxy.store.bundle import Bundle, load_pair, normal_host

ROOT_NAME = "internal-ca"


class NotYet(CertificateError):
    """Nothing is wrong: the certificate is still to be obtained, and the site has none until then."""


def certificate_name(site: Site) -> str:
    """Return the name under which the site's certificates are kept and announced.

    A site with on-demand certificates has one per host (`acme_name(host)`); this one stands for the site as a whole.
    """
    word = _word(site)
    if word == "internal":
        return internal_name(site.hosts)
    return acme_name(site.hosts[0]) if word else f"file/{site.hosts[0]}"


def internal_name(hosts: Sequence[str]) -> str:
    return f"internal/{hosts[0]}"


def acme_name(host: str) -> str:
    """Return the name of a public CA's certificate: of a site by its first host, of an on-demand host by itself."""
    return f"acme/{host}"


def host_meant(given: str) -> str:
    """Return a host as the settings write it: a person may say "Bücher.example" for xn--bcher-kva.example."""
    try:
        return parse_host(given)
    except ValueError:
        return normal_host(given)


def certificate_files(site: Site) -> tuple[CertificateFiles, ...]:
    """Return the site's pairs of files; none for certificates that lie in the store."""
    if isinstance(site.certificate, str):
        return ()
    return (site.certificate,) if isinstance(site.certificate, CertificateFiles) else site.certificate


def bundles_for(site: Site, store: CertificateStore) -> tuple[Bundle, ...]:
    """Return the certificates to serve for a site: one, or one per kind of key (RSA and ECDSA). Blocks on the disk.

    Raises NotYet while the certificate of a public CA is to be obtained; CertificateError when files are wrong, do not
    cover the hosts, or nothing is in the store; StoreError.
    """
    word = _word(site)
    if word:
        return (_stored(site, word, store),)
    bundles = tuple(load_files(site, files) for files in certificate_files(site))
    if problem := same_kind_twice(site, bundles):
        raise CertificateError(problem)
    return bundles


def _stored(site: Site, word: str, store: CertificateStore) -> Bundle:
    bundle = store.get(certificate_name(site))
    if bundle is not None:
        return bundle
    if word == "internal":
        raise CertificateError(
            f"{site.hosts[0]}: there is no certificate of the internal CA in {store!r}. "
            "All processes must use one file store (store.url)."
        )
    when = "when a client first asks for it" if word == "on_demand" else "as soon as the CA has issued it"
    raise NotYet(f"{site.hosts[0]}: there is no certificate yet. It is served {when}; see: tlsproxy admin certs why")


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


def _word(site: Site) -> str:
    """Return the word that the site has for a certificate, "" for files."""
    return site.certificate if isinstance(site.certificate, str) else ""
