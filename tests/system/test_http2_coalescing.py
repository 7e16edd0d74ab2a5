"""Requests for another host on a connection that is there (RFC 9113 9.1.1): served, or sent away with 421 to a new one.

Browsers do that for every name on the certificate that leads to the same address. Where the sites differ in what TLS
must have shown, the client has to come again (RFC 9110 15.5.20); one that acts as browsers do then gets its answer.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.ui import WebDriverWait

from tests.system.running import CLIENT, PATIENCE, Proxy, offering, running_proxy, write_pair

pytestmark = pytest.mark.system

CHROMIUM, DRIVER, CERTUTIL = (shutil.which(name) for name in ("chromium", "chromedriver", "certutil"))
HOSTS = ("www.shop.test", "api.shop.test", "modern.shop.test", "asked.shop.test", "members.shop.test")
members = trustme.CA()


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA, trust: ssl.SSLContext, app: str
) -> Iterator[Proxy]:
    """One certificate for all hosts, and a site for each."""
    folder = tmp_path_factory.mktemp("coalescing")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    members.cert_pem.write_to_path(folder / "members.pem")
    pair = write_pair(folder, authority, *HOSTS)
    rules = {
        "modern.shop.test": 'minimum_version = "1.3"',
        "asked.shop.test": 'client_ca = "members.pem"\nclient_auth = "request"',
        "members.shop.test": 'client_ca = "members.pem"\nclient_auth = "require"',
    }
    sites = [
        f'[[sites]]\nhosts = ["{host}"]\ncertificate = {pair}\nbackends = ["{app}"]\n{rules.get(host, "")}\n'
        for host in HOSTS
    ]
    with running_proxy(folder, trust, "".join(sites)) as running:
        yield running


class Client:
    """One HTTP/2 connection, made for `host`, and what it asks for any host. It has a certificate to show."""

    def __init__(self, proxy: Proxy, host: str) -> None:
        context = offering(proxy.trust, "h2")
        members.issue_cert("client@shop.test").configure_cert(context)
        limits = httpx.Limits(max_connections=1)
        transport = httpx.HTTPTransport(
            verify=context, local_address=CLIENT, trust_env=False, http1=False, http2=True, limits=limits
        )
        self.port = proxy.port
        self._sni = host
        self._client = httpx.Client(
            transport=transport, base_url=f"https://127.0.0.1:{proxy.port}", timeout=PATIENCE, trust_env=False
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, host: str, query: str = "") -> httpx.Response:
        headers = {"Host": f"{host}:{self.port}"}
        return self._client.get(f"/hello?{query}", headers=headers, extensions={"sni_hostname": self._sni})


def ask_as_browsers_do(proxy: Proxy, client: Client, host: str, query: str) -> tuple[int, bool]:
    """Return the status and whether it took a new connection: after a 421 one more try, on no connection of before."""
    answer = client.ask(host, query)
    if answer.status_code != 421:
        return answer.status_code, False
    with Client(proxy, host) as fresh:
        return fresh.ask(host, query).status_code, True


@pytest.mark.parametrize(
    ("made_for", "host", "is_shared"),
    [
        ("www.shop.test", "api.shop.test", True),
        ("www.shop.test", "modern.shop.test", False),
        ("modern.shop.test", "www.shop.test", False),
        ("www.shop.test", "asked.shop.test", False),
        ("www.shop.test", "members.shop.test", False),
        ("members.shop.test", "www.shop.test", False),
        ("asked.shop.test", "members.shop.test", False),
    ],
)
def test_a_connection_is_shared_where_the_rules_are_the_same(
    proxy: Proxy, made_for: str, host: str, is_shared: bool
) -> None:
    query = f"{made_for}-{host}"
    with Client(proxy, made_for) as client:
        assert client.ask(made_for).status_code == 200
        assert ask_as_browsers_do(proxy, client, host, query) == (200, not is_shared)
        assert client.ask(made_for).status_code == 200  # it is as good as before
    line = proxy.logged(query=query, status=200)
    assert (line["http"], line["sni"]) == ("2", made_for if is_shared else host)
    sent_away = [line for line in proxy.request_lines() if line.get("query") == query and line["status"] == 421]
    assert len(sent_away) == (not is_shared)


def test_the_421_says_what_to_do_and_is_no_end_of_the_connection(proxy: Proxy) -> None:
    with Client(proxy, "www.shop.test") as client:
        answers = [client.ask(host) for host in ("www.shop.test", "members.shop.test", "www.shop.test")]
    assert [answer.status_code for answer in answers] == [200, 421, 200]
    assert "open a new one for this host" in answers[1].text
    assert len({answer.extensions["network_stream"] for answer in answers}) == 1


def test_a_host_that_nobody_serves_is_sent_away_too(proxy: Proxy) -> None:
    with Client(proxy, "www.shop.test") as client:
        assert client.ask("elsewhere.test").status_code == 421
        assert client.ask("www.shop.test").status_code == 200


# --- Chromium


@pytest.fixture
def browser(tmp_path: Path, proxy: Proxy) -> Iterator[Chrome]:
    """It resolves the hosts to the proxy and trusts the authority of its certificate."""
    database = tmp_path / ".pki" / "nssdb"
    database.mkdir(parents=True)
    subprocess.run(["certutil", "-N", "-d", f"sql:{database}", "--empty-password"], check=True)
    adding = ["-A", "-n", "authority", "-t", "C,,", "-i", str(proxy.folder / "ca.pem")]
    subprocess.run(["certutil", "-d", f"sql:{database}", *adding], check=True)
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP *.shop.test 127.0.0.1, MAP * ^NOTFOUND", f"--user-data-dir={tmp_path}/profile",
    ):  # fmt: skip
        options.add_argument(argument)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    driver = Chrome(options, ChromeService(DRIVER, env=environment))
    yield driver
    driver.quit()


@pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="chromium and chromedriver are not installed")
@pytest.mark.skipif(not CERTUTIL, reason="certutil (libnss3-tools) is not installed")
def test_chromium_shares_a_connection_and_comes_again_where_it_may_not(browser: Chrome, proxy: Proxy) -> None:
    """Hosts of one domain: others have connections of their own, whatever the certificate says."""
    for host in ("www.shop.test", "api.shop.test", "modern.shop.test"):
        browser.get(f"https://{host}:{proxy.port}/hello?chromium")
        body = WebDriverWait(browser, PATIENCE, 0.05).until(
            lambda driver: driver.execute_script("return document.body.textContent")
        )
        assert body == "hello"
    proxy.logged(query="chromium", host="modern.shop.test", status=200)
    seen = [
        (line["host"], line["sni"], line["status"]) for line in proxy.request_lines() if line.get("query") == "chromium"
    ]
    assert seen == [
        ("www.shop.test", "www.shop.test", 200),
        ("api.shop.test", "www.shop.test", 200),
        ("modern.shop.test", "www.shop.test", 421),
        ("modern.shop.test", "modern.shop.test", 200),
    ]
