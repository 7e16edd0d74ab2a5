"""The environment that makes OpenSSL of a child process offer Mozilla's groups and no others.

Python before 3.15 can set one group or all, nothing between; OpenSSL's own configuration file can. It is read once,
when `ssl` is imported, so it has to be in the environment of the process before it starts.
"""

from __future__ import annotations

import ssl
from pathlib import Path


def openssl_environment() -> dict[str, str]:
    """Return what to add to a worker's environment. An OPENSSL_CONF of the user's own should win over it.

    The file replaces the system's configuration of OpenSSL for that process (engines, FIPS providers).
    """
    name = "openssl-pq.cnf" if ssl.OPENSSL_VERSION_INFO >= (3, 5) else "openssl.cnf"
    return {"OPENSSL_CONF": str(Path(__file__).with_name(name))}
