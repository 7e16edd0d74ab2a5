"""A real Chromium before the proxy: the internal CA, FastAPI's documentation page, a page that uses everything.

Its home is a folder of the test with a certificate database of its own; the root of the internal CA gets there as users
put it there. No host but this machine is asked: names resolve here or nowhere.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.ui import WebDriverWait

from tests.system.running import PATIENCE, Proxy, Server, free_port, running_proxy

CHROMIUM, DRIVER, CERTUTIL = (shutil.which(name) for name in ("chromium", "chromedriver", "certutil"))
needs_chromium = [
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="chromium and chromedriver are not installed"),
    pytest.mark.skipif(not CERTUTIL, reason="certutil (libnss3-tools) is not installed"),
]
pytestmark = [pytest.mark.system, *needs_chromium]

# FastAPI's page loads Swagger UI from here; the proxy serves the name itself, from the application's stand-in.
CDN = "cdn.jsdelivr.net"


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The application as it runs behind a route that strips /api/v1."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "tests.system.apps.everything:app", "--port", str(port)]
    server = Server(
        [*command, "--root-path", "/api/v1"], f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("prefixed") / "log"
    )
    yield server.address
    server.stop()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, trust: ssl.SSLContext, app: str, prefixed: str) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("browser")
    sites = f"""
        [[sites]]
        hosts = ["app.localhost", "{CDN}"]
        certificate = "internal"
        backends = ["{app}"]
        [[sites.routes]]
        path = "/api/v1"
        strip_prefix = true
        backends = ["{prefixed}"]
        [[sites.routes]]
        path = "/down"
        backends = ["http://127.0.0.1:{free_port()}"]
    """
    with running_proxy(folder, trust, sites) as running:
        yield running


def start_chromium(home: Path, proxy: Proxy, *more: str) -> Chrome:
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    rules = f"MAP {CDN}:443 127.0.0.1:{proxy.port}, MAP *.localhost 127.0.0.1, MAP * ^NOTFOUND"
    for argument in (
        "--headless",
        "--no-sandbox",  # the tests may run as root
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1000,700",
        f"--host-resolver-rules={rules}",
        f"--user-data-dir={home}/profile",
        *more,
    ):
        options.add_argument(argument)
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    return Chrome(options, ChromeService(DRIVER, env=environment))


def let_trust(home: Path, root: bytes) -> None:
    """Put the certificate of an authority where users put it."""
    (home / "root.pem").write_bytes(root)
    database = home / ".pki" / "nssdb"
    database.mkdir(parents=True)
    subprocess.run(["certutil", "-N", "-d", f"sql:{database}", "--empty-password"], check=True)
    adding = ["-A", "-n", "tlsproxy", "-t", "C,,", "-i", str(home / "root.pem")]
    subprocess.run(["certutil", "-d", f"sql:{database}", *adding], check=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, proxy: Proxy) -> Iterator[Chrome]:
    """A browser that has the root of the internal CA, and that alone."""
    home = tmp_path_factory.mktemp("home")
    config = str(proxy.folder / "tlsproxy.toml")
    root = subprocess.run(
        [sys.executable, "-m", "tlsproxy", "trust", "--print", "--config", config], capture_output=True, check=True
    )
    let_trust(home, root.stdout)
    driver = start_chromium(home, proxy)
    yield driver
    driver.quit()


def see(browser: Chrome, element: str, condition: Callable[[str], bool]) -> str:
    """Return the text of an element once it is as wanted."""

    def look(driver: Chrome) -> str:
        text = driver.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", element)
        return text if condition(text) else ""

    return str(WebDriverWait(browser, PATIENCE, 0.05).until(look))


def test_without_the_root_the_page_is_refused(proxy: Proxy, tmp_path: Path) -> None:
    driver = start_chromium(tmp_path, proxy)
    try:
        driver.get(f"https://app.localhost:{proxy.port}/hello")
        assert see(driver, "#error-code", bool).upper() == "NET::ERR_CERT_AUTHORITY_INVALID"
    finally:
        driver.quit()


def test_the_internal_ca_is_accepted(browser: Chrome, proxy: Proxy) -> None:
    browser.get(f"https://app.localhost:{proxy.port}/hello")
    assert see(browser, "body", bool) == "hello"
    assert browser.execute_script("return isSecureContext") is True
    protocol = "return performance.getEntriesByType('navigation')[0].nextHopProtocol"
    assert browser.execute_script(protocol) == "h2"


def test_the_documentation_page_behind_a_stripped_prefix(browser: Chrome, proxy: Proxy) -> None:
    here = f"https://app.localhost:{proxy.port}/api/v1"
    browser.get(f"{here}/docs")
    assert see(browser, "#title", bool) == "everything"
    assert see(browser, "#from", bool) == "/api/v1/openapi.json"
    assert "/whoami" in see(browser, "#paths", bool).split()
    assert see(browser, "#tried", bool) == f"{here}/whoami"
    assert proxy.logged(path="/api/v1/openapi.json")["status"] == 200
    assert [line for line in proxy.request_lines() if line["host"] == CDN and line["path"].endswith(".js")]


@pytest.mark.parametrize("prefix", ["", "/api/v1"])
def test_a_page_that_uses_everything(browser: Chrome, proxy: Proxy, prefix: str) -> None:
    browser.get(f"https://app.localhost:{proxy.port}{prefix}/page")
    said = see(browser, "#log", lambda text: text.count("\n") == 5)
    assert sorted(said.splitlines()) == [
        "closed 3001 clean true",
        "echo ping",
        "event 0",
        "scheme wss",
        f"upload {3 << 20}",
    ]


def test_an_error_is_a_page_for_people(browser: Chrome, proxy: Proxy, tmp_path: Path) -> None:
    browser.get(f"https://app.localhost:{proxy.port}/down")
    assert see(browser, "h1", bool).startswith("502")
    assert browser.title == "502 Bad Gateway"
    request_id = see(browser, "code", bool)
    assert proxy.logged(path="/down")["request_id"] == request_id
    for words in ("127.0.0.1", "Traceback", "refused"):
        assert words not in browser.page_source
    fits = "return document.documentElement.scrollWidth <= innerWidth"
    assert browser.execute_script(fits) is True
    assert browser.save_screenshot(str(tmp_path / "error.png"))
