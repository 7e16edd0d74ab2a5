"""Sites that change while their certificates live on."""

from pathlib import Path

import pytest

from tests.fakes.certificate_authority import CertificateAuthority
from tests.system.acme import Ports, running, served, site, until_served

pytestmark = pytest.mark.system


def test_a_reordered_site_is_served_from_its_first_handshake_on(tmp_path: Path) -> None:
    ports = Ports()
    with CertificateAuthority(tmp_path, http_port=ports.http) as ca:
        with running(tmp_path, ca, site("a.test", "b.test"), ports=ports) as proxy:
            until_served(proxy, "a.test", ca)
        with running(tmp_path, ca, site("b.test", "a.test"), ports=ports) as proxy:
            assert [served(proxy, host) for host in ("b.test", "a.test")] == ca.issued * 2
            proxy.wait_for("certificate.adopted", certificate="acme/b.test")
    assert ca.count["order"] == len(ca.issued) == 1
