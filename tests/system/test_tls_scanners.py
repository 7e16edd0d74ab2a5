"""testssl.sh and sslyze against the running proxy: what they find, beyond what is expected, is a failure.

The expected findings are data, each with its reason. A finding that has gone is a failure too: the list says what is.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.system.running import Proxy, running_proxy, write_pair

pytestmark = pytest.mark.system

SSLYZE = Path(sys.executable).with_name("sslyze")
HARMLESS = {"OK", "INFO", "LOW", "DEBUG"}

TESTSSL_EXPECTED = {
    "cert_revocation": "the authority of this test publishes neither CRL nor OCSP",
}
SSLYZE_EXPECTED = {"certificate_path_validation": "the authority of this test is in no trust store"}


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA, trust: ssl.SSLContext, app: str
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("scanners")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    site = f"""
        [[sites]]
        hosts = ["localhost"]
        certificate = {write_pair(folder, authority, "localhost")}
        hsts = "2y"
        backends = ["{app}"]
    """
    # Some checks of testssl send no server name.
    with running_proxy(folder, trust, site, head='[tls]\ndefault_host = "localhost"') as running:
        yield running


@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which("testssl"), reason="testssl.sh is not installed")
def test_testssl(proxy: Proxy, tmp_path: Path) -> None:
    # Everything but the simulation of 40 clients, which only repeats what protocols and ciphers say.
    checks = ["--protocols", "--std", "--fs", "--server-preference", "--server-defaults", "--headers", "--vulnerable"]
    local = ["--ip", "127.0.0.1", "--nodns", "none", "--add-ca", str(proxy.folder / "ca.pem")]
    output = ["--quiet", "--color", "0", "--warnings", "batch", "--jsonfile", str(tmp_path / "findings.json")]
    url = f"https://localhost:{proxy.port}/careful"
    command = ["testssl", *output, *local, *checks, url]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=280, check=False)
    findings = json.loads((tmp_path / "findings.json").read_text())
    assert len(findings) > 80, done.stdout
    bad = {
        each["id"]: f"{each['severity']}: {each['finding']}" for each in findings if each["severity"] not in HARMLESS
    }
    assert bad.keys() == TESTSSL_EXPECTED.keys(), bad
    by_id = {each["id"]: each for each in findings}
    assert by_id["HSTS_time"]["severity"] == "OK"
    offered = {name: by_id[name]["finding"] for name in ("TLS1", "TLS1_1", "TLS1_2", "TLS1_3")}
    assert [name for name, said in offered.items() if said.startswith("offered")] == ["TLS1_2", "TLS1_3"]


@pytest.mark.skipif(not SSLYZE.exists(), reason="sslyze is not installed")
def test_sslyze(proxy: Proxy) -> None:
    command = [str(SSLYZE), "--mozilla_config=intermediate", f"localhost:{proxy.port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    _, found, verdict = done.stdout.partition("COMPLIANCE AGAINST TLS CONFIGURATION")
    assert found, done.stdout + done.stderr
    assert set(re.findall(r"^ +\* (\w+):", verdict, re.MULTILINE)) == SSLYZE_EXPECTED.keys(), verdict


def test_hsts_is_long_enough(proxy: Proxy) -> None:
    with proxy.client() as client:
        header = client.get("/hello").headers["Strict-Transport-Security"]
    assert int(header.removeprefix("max-age=")) >= 63_072_000
