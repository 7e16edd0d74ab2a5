"""Layers, their order, where a problem and where a value is said to be written."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tlsproxy.errors import ConfigError
from tlsproxy.settings import CertificateFiles, Loaded, Settings, guess_socket, load, loader, positions, raw, rules
from tlsproxy.settings.explain import explain

FILE = """\
[server]
drain = "5s"

[[sites]]
hosts = ["localhost"]
backends = ["127.0.0.1:8000"]
  [[sites.routes]]
  path = "/api"
  backends = [
    "127.0.0.1:8001",
  ]
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loader, "SEARCHED", (Path("tlsproxy.toml"), tmp_path / "etc/tlsproxy.toml"))


def write(text: str, name: str = "tlsproxy.toml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load_text(text: str, options: Mapping[str, Any] | None = None, **environ: str) -> Loaded:
    return load(write(text), options or {}, environ)


def problems(text: str | None = None, options: Mapping[str, Any] | None = None, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(write(text) if text is not None else None, options or {}, environ)
    return str(caught.value).splitlines()


# --- order


def test_options_beat_environment_beats_dotenv_beats_file() -> None:
    write("TLSPROXY_SERVER__DRAIN=6s\nTLSPROXY_LOG__LEVEL=debug\nTLSPROXY_SERVER__WORKERS=6\nOTHER=1\n", ".env")
    loaded = load_text(FILE, {"workers": "8"}, TLSPROXY_LOG__LEVEL="error", TLSPROXY_SERVER__WORKERS="7")
    server = loaded.settings.server
    assert (server.drain, loaded.settings.log.level, server.workers) == (6.0, "error", 8)
    assert {key: loaded.origins[key] for key in ("server.drain", "log.level", "server.workers", "server.user")} == {
        "server.drain": ".env TLSPROXY_SERVER__DRAIN",
        "log.level": "environment TLSPROXY_LOG__LEVEL",
        "server.workers": "option --workers",
        "server.user": "default",
    }


def test_origins_are_lines() -> None:
    origins = load_text(FILE).origins
    assert {key: origin for key, origin in origins.items() if origin != "default"} == {
        "server.drain": "tlsproxy.toml:2",
        "sites.0.hosts": "tlsproxy.toml:5",
        "sites.0.routes.0.backends": "tlsproxy.toml:6",
        "sites.0.routes.1.path": "tlsproxy.toml:8",
        "sites.0.routes.1.backends": "tlsproxy.toml:9",
    }


def test_sites_of_options_replace_those_of_the_file() -> None:
    loaded = load_text(FILE, {"site": ["a.test=b:1,b:2", "c.test=unix:/c.sock"], "https": [":8443"], "http": []})
    assert [(site.hosts, site.routes[0].backends) for site in loaded.settings.sites] == [
        (("a.test",), ("http://b:1", "http://b:2")),
        (("c.test",), ("unix:/c.sock",)),
    ]
    assert (loaded.settings.listen.https, loaded.settings.listen.http) == ((":8443",), (":80",))
    assert loaded.origins["sites.0.hosts"] == loaded.origins["sites.1.routes.0.backends"] == "option --site"


def test_no_file_is_needed() -> None:
    loaded = load(None, {"site": ["localhost=127.0.0.1:8000"]}, {})
    assert loaded.path is None
    assert loaded.settings.sites[0].certificate == "internal"


def test_any_key_may_come_as_an_option() -> None:
    loaded = load_text(FILE, {"store.url": "memory:"})
    assert (loaded.settings.store.url, loaded.origins["store.url"]) == ("memory:", "option --store.url")


def test_sites_from_the_environment() -> None:
    sites = '[{"hosts": ["a.test"], "backends": ["b:1"], "certificate": {"chain": "c.pem", "key": "/k.pem"}}]'
    loaded = load(None, {}, {"TLSPROXY_SITES": sites, "TLSPROXY_LISTEN__HTTPS": "[::1]:8443,:9443"})
    assert loaded.settings.sites[0].certificate == CertificateFiles(chain=Path.cwd() / "c.pem", key=Path("/k.pem"))
    assert loaded.settings.listen.https == ("[::1]:8443", ":9443")
    assert loaded.origins["sites.0.certificate.chain"] == "environment TLSPROXY_SITES.0.certificate.chain"


# --- files


def test_the_file_is_searched() -> None:
    etc = write(FILE, "etc/tlsproxy.toml")
    assert load(None, {}, {}).path == etc.absolute()
    write(FILE)
    assert load(None, {}, {}).path == Path("tlsproxy.toml")
    other = write(FILE, "other.toml")
    assert load(None, {}, {"TLSPROXY_CONFIG": "other.toml"}).path == other
    assert load(etc, {}, {"TLSPROXY_CONFIG": "other.toml"}).path == etc
    write("TLSPROXY_CONFIG=other.toml\n", ".env")
    assert load(None, {}, {}).path == other


def test_file_names_are_relative_to_the_file(tmp_path: Path) -> None:
    text = """
[acme]
ca_bundle = "acme.pem"
dns = { acme_dns = { credentials = "accounts.json" }, exec = { command = ["hook"] } }
[admin]
socket = "run/a.sock"
[events]
command = ["bin/hook", "x/y"]
[log]
access = "logs/access.log"
[store]
url = "file:my state"
[[sites]]
hosts = ["a.example.com"]
backends = ["b:1"]
certificate = [{ chain = "c.pem", key = "~/k.pem" }, { chain = "/r.pem", key = "/r.key" }]
client_ca = "ca.pem"
client_auth = "require"
"""
    settings = load(write(text, "conf/x.toml"), {}, {"HOME": "/home"}).settings
    folder = tmp_path / "conf"
    assert (settings.acme.ca_bundle, settings.admin.socket) == (folder / "acme.pem", str(folder / "run/a.sock"))
    assert settings.acme.dns.acme_dns.credentials == folder / "accounts.json"
    assert (settings.events.command, settings.acme.dns.exec.command) == ((str(folder / "bin/hook"), "x/y"), ("hook",))
    assert settings.log.access == str(folder / "logs/access.log")
    assert settings.store.url == f"{folder.as_uri()}/my%20state"
    assert settings.sites[0].certificate == (
        CertificateFiles(chain=folder / "c.pem", key=Path("/home/k.pem")),
        CertificateFiles(chain=Path("/r.pem"), key=Path("/r.key")),
    )
    assert settings.sites[0].client_ca == folder / "ca.pem"


def test_a_normal_user_gets_a_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(loader, "_SYSTEM_STORE", tmp_path / "absent")
    site = {"site": ["localhost=a:1"]}
    loaded = load(None, site, {"HOME": "/home/me"})
    assert loaded.settings.store.url == "file:///home/me/.local/state/tlsproxy"
    assert loaded.origins["store.url"] == f"default ({tmp_path}/absent is not writable for this user)"
    assert load(None, site, {"XDG_STATE_HOME": "/state"}).settings.store.url == "file:///state/tlsproxy"
    assert load(None, {**site, "store.url": "memory:"}, {}).settings.store.url == "memory:"
    assert load_text(FILE, HOME="/home/me").settings.store.url == "file:///var/lib/tlsproxy"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load(None, site, {"HOME": "/"}).settings.store.url == "file:///var/lib/tlsproxy"


def test_a_normal_user_gets_an_admin_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def socket(text: str = FILE, **environ: str) -> str:
        return load(write(text), {}, environ).settings.admin.socket

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(loader, "_SYSTEM_RUN", tmp_path / "absent")
    assert socket(XDG_RUNTIME_DIR="/run/user/7", HOME="/home/me") == "/run/user/7/tlsproxy/admin.sock"
    assert socket(HOME="/home/me") == "/home/me/.local/state/tlsproxy/admin.sock"
    assert socket(XDG_RUNTIME_DIR="relative", XDG_STATE_HOME="/state") == "/state/tlsproxy/admin.sock"
    assert socket("admin.socket = 'a.sock'\n" + FILE, XDG_RUNTIME_DIR="/run/user/7") == str(tmp_path / "a.sock")
    assert (
        load_text(FILE, HOME="/").origins["admin.socket"]
        == f"default ({tmp_path}/absent is not writable for this user)"
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert socket(XDG_RUNTIME_DIR="/run/user/0") == "/run/tlsproxy/admin.sock"


def test_the_mail_address_is_an_option() -> None:
    loaded = load_text(FILE, {"email": "ops@example.net"})
    assert (loaded.settings.acme.email, loaded.origins["acme.email"]) == ("ops@example.net", "option --email")
    (problem,) = problems(FILE, {"email": "ops"})
    assert problem.startswith('option --email: acme.email: "ops" is not a mail address')


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = \n", "tlsproxy.toml:1: is not TOML: Invalid value (column 5)"),
        ("[a]\nb = 1\nb = 2\n", "tlsproxy.toml:3: is not TOML: Cannot overwrite a value (column 6)"),
        ("a = [\n", "tlsproxy.toml:2: is not TOML: "),
        ("a = " + "[" * 5000, "tlsproxy.toml: is nested too deeply"),
    ],
)
def test_what_is_no_toml(text: str, problem: str) -> None:
    assert problems(text)[0].startswith(problem)


def test_files_that_can_not_be_read() -> None:
    Path("latin.toml").write_bytes(b"# caf\xc3\xa9\n# caf\xe9\n")
    for path, problem in [
        ("absent.toml", "absent.toml: can't be read: No such file or directory"),
        (".", ".: can't be read: Is a directory"),
        ("latin.toml", "latin.toml:2: is not UTF-8 text"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load(Path(path), {}, {})
        assert str(caught.value) == problem


def test_a_byte_order_mark_is_no_problem() -> None:
    Path("bom.toml").write_bytes(b"\xef\xbb\xbf" + FILE.encode())
    assert load(Path("bom.toml"), {}, {}).settings.server.drain == 5.0


# --- problems

WRONG = """\
lissen = 3
[listen]
https = [
  ":443",
  "443",
]
[server]
drain = "x"
levle = 1
level = "info"
via = "maybe"
[limits]
header_count = 0
[tls]
minimum_version = "1.1"
default_host = "c.test"
[[sites]]
hosts = ["a.test", "a.test:80", 7]
backends = ["https://x"]
client_auth = "require"
certificate = { chain = "x", kee = "y" }
  [[sites.routes]]
  bakends = 1
  balance = "leastconn"
  [[sites.routes]]
  path = "/"
  backends = ["1"]
[[sites]]
hosts = ["A.test"]
certificate = "acne"
max_body = 1
[[sites]]
hosts = []
backends = []
client_ca = 3
"""


def test_all_problems_at_once_each_at_its_place() -> None:
    assert problems(WRONG, TLSPROXY_LISTEN__HTTP=":80,80", TLSPROXY_LOG__LEVL="x", TLSPROXY_LOG_LEVEL="x") == [
        line.strip()
        for line in """\
        environment: TLSPROXY_LISTEN__HTTP.1: "80" is not an address to listen on, did you mean ":80"?
        environment: TLSPROXY_LOG__LEVL: unknown key, did you mean "level"?
        tlsproxy.toml:1: lissen: unknown key, did you mean "listen"?
        tlsproxy.toml:5: listen.https.1: "443" is not an address to listen on, did you mean ":443"?
        tlsproxy.toml:8: server.drain: "x" is not a duration; write "10s", "5m", "1h" or a number of seconds
        tlsproxy.toml:9: server.levle: unknown key
        tlsproxy.toml:10: server.level: unknown key; it belongs to [log], did you mean "log.level"?
        tlsproxy.toml:11: server.via: write true or false
        tlsproxy.toml:13: limits.header_count: must be at least 1
        tlsproxy.toml:15: tls.minimum_version: "1.1" is not one of "1.2", "1.3"
        tlsproxy.toml:16: tls.default_host: c.test is not a host of any site, did you mean "a.test"?
        tlsproxy.toml:18: sites.0.hosts.1: "a.test:80": a site has no port (ports are set in [listen]), write \
"a.test"
        tlsproxy.toml:18: sites.0.hosts.2: 7 is not a host name; write it as text in quotes
        tlsproxy.toml:19: sites.0.backends.0: "https://x": backends are spoken to in plain HTTP, TLS towards them is \
not supported; write http://
        tlsproxy.toml:20: sites.0.client_auth: "require" needs client_ca, the CA certificates that client certificates \
must come from
        tlsproxy.toml:21: sites.0.certificate.key: is required
        tlsproxy.toml:21: sites.0.certificate.kee: unknown key, did you mean "key"?
        tlsproxy.toml:22: sites.0.routes.0.path: "/" is routed twice in this site; first as sites.0.backends at \
tlsproxy.toml:19
        tlsproxy.toml:22: sites.0.routes.0.backends: is required
        tlsproxy.toml:23: sites.0.routes.0.bakends: unknown key, did you mean "backends"?
        tlsproxy.toml:24: sites.0.routes.0.balance: "leastconn" is not one of "least_conn", "round_robin", "random", \
"ip_hash", did you mean "least_conn"?
        tlsproxy.toml:26: sites.0.routes.1.path: "/" is routed twice in this site; first as sites.0.backends at \
tlsproxy.toml:19
        tlsproxy.toml:27: sites.0.routes.1.backends.0: "1" lacks a host, did you mean "127.0.0.1:1"?
        tlsproxy.toml:28: sites.1: nothing to forward to; add backends = ["http://127.0.0.1:8000"] or [[sites.routes]]
        tlsproxy.toml:29: sites.1.hosts.0: a.test is served twice; first as sites.0.hosts.0 at tlsproxy.toml:18
        tlsproxy.toml:30: sites.1.certificate: "acne" is not one of "internal", "acme", "on_demand", did you mean \
"acme"?
        tlsproxy.toml:31: sites.1.max_body: unknown key; it belongs to [[sites.routes]]
        tlsproxy.toml:33: sites.2.hosts: must not be empty
        tlsproxy.toml:34: sites.2.backends: must not be empty
        tlsproxy.toml:35: sites.2.client_ca: write it as a path in quotes
        environment: TLSPROXY_LOG_LEVEL: has no effect, did you mean TLSPROXY_LOG__LEVEL?""".splitlines()
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sites = 3\n", "tlsproxy.toml:1: sites: "),
        ("listen = 3\n" + FILE, "tlsproxy.toml:1: listen: is a table; write [listen] and its keys"),
        ("[sites]\nhosts = ['a.test']\n", "tlsproxy.toml:1: sites: "),
        ("sites = [3]\n", "tlsproxy.toml:1: sites.0: is a table; write [[sites]]"),
        ("", "tlsproxy.toml: sites: there is no site to serve"),
    ],
)
def test_wrong_forms(text: str, problem: str) -> None:
    assert problems(text)[0].startswith(problem)


def test_problems_of_options() -> None:
    assert problems(options={"site": ["a.test=1"], "workers": "many"}) == [
        'option --site: sites.0.backends.0: "1" lacks a host, did you mean "127.0.0.1:1"?',
        'option --workers: server.workers: "many" is not a number of workers; write "auto" or a number from 1 to 1024',
    ]
    for text in ("localhost", "localhost=", "=a:1", ""):
        problem = f'option --site: "{text}" is not HOST=BACKEND[,BACKEND…], as in localhost=127.0.0.1:8000'
        assert problems(options={"site": [text]})[-1] == problem


def test_problems_of_variables() -> None:
    assert problems(FILE, TLSPROXY_LOGG__LEVEL="x") == [
        'environment: TLSPROXY_LOGG__LEVEL: unknown key, did you mean "log"?'
    ]
    assert problems(FILE, TLSPROXY_SITES="[{")[0].startswith("environment: TLSPROXY_SITES: ")
    assert problems(FILE, TLSPROXY_SITES__0__HOSTS="x")[0].startswith(
        "environment: TLSPROXY_SITES__0__HOSTS: sites are set as"
    )


def test_variables_of_others_are_left_alone() -> None:
    kubernetes = {"TLSPROXY_PORT": "tcp://10.0.0.1:443", "TLSPROXY_SERVICE_HOST": "10.0.0.1", "TLSPROXY_TLS_PORT": "x"}
    assert load(write(FILE), {}, kubernetes).settings.server.drain == 5.0


def test_there_is_no_site() -> None:
    with pytest.raises(ConfigError, match=r"add \[\[sites\]\].*--site.*no file at tlsproxy\.toml"):
        load(None, {}, {})
    assert load(None, {}, {}, require_sites=False).settings.sites == ()


# --- explain


def test_explain_tells_every_key() -> None:
    rows = {row.key: row for row in explain(load_text(FILE))}
    assert rows.keys() == load_text(FILE).origins.keys()
    assert (rows["sites.0.hosts"].value, rows["sites.0.client_ca"].value) == (["localhost"], "")
    assert (rows["server.drain"].value, rows["server.drain"].origin) == (5.0, "tlsproxy.toml:2")


def test_explain_writes_values_as_the_file_would() -> None:
    rows = {row.key: row for row in explain(load_text(FILE, {"limits.connect_timeout": "250ms", "log.access": "off"}))}
    written = {key: rows[key].written for key in ("limits.header_size", "limits.connect_timeout", "limits.tunnel_idle")}
    assert list(written.values()) == ["32KiB", "250ms", "1h"]
    assert (rows["sites.0.hsts"].written, rows["sites.0.hsts"].value) == ("off", 0.0)
    assert (rows["limits.connections"].written, rows["sites.0.hosts"].written) == (0, ["localhost"])
    assert None not in [value for row in rows.values() for value in (row.value, row.written)]


def test_a_site_that_is_none_is_told_once() -> None:
    for text in ("localhost", "localhost=", "=a:1"):
        (problem,) = problems(None, {"site": [text, "b.test=a:1"]})
        assert problem.startswith(f'option --site: "{text}" is not HOST=BACKEND')


def test_lines_and_origins_cost_only_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str) -> dict[positions.Path, int]:
        raise AssertionError("the lines were looked for")

    monkeypatch.setattr(positions, "scan_positions", refuse)
    loaded = load_text(FILE)
    with pytest.raises(AssertionError, match="looked for"):
        _ = loaded.origins


def test_a_child_does_not_judge_again(monkeypatch: pytest.MonkeyPatch) -> None:
    text = load_text(FILE).settings.for_child()

    def refuse(data: Mapping[str, Any]) -> list[raw.Fault]:
        raise AssertionError("the rules were asked")

    monkeypatch.setattr(rules, "find_site_faults", refuse)
    monkeypatch.setattr(rules, "find_settings_faults", refuse)
    assert Settings.from_parent(text).server.drain == 5.0


# --- the socket of a proxy whose configuration has been spoilt since


@pytest.mark.parametrize(
    "spoilt",
    [
        '[admin]\nsocket = "run/a.sock"\nmetric = 1\n',
        '[admin]\nsocket = "run/a.sock"\n[listen\n',
        "listen = [\nadmin.socket='run/a.sock'\n",
        'listen = [\nadmin = { socket = "run/a.sock" }\n',
    ],
)
def test_the_socket_is_found_in_what_cannot_be_used(spoilt: str) -> None:
    path = write(spoilt)
    assert problems(spoilt)
    assert guess_socket(path, {}) in {Path("run/a.sock"), Path("run/a.sock").absolute()}
    assert guess_socket(path, {"TLSPROXY_ADMIN__SOCKET": "/b.sock"}) == Path("/b.sock")


@pytest.mark.parametrize("spoilt", ["[listen\n", '# socket = "run/a.sock"\n[listen\n', "[admin]\nsocket = 1\n"])
def test_the_socket_is_where_it_is_by_default(spoilt: str) -> None:
    assert guess_socket(write(spoilt), {}) == Path(Settings().admin.socket)


def test_a_file_that_is_not_there_says_nothing_about_the_socket() -> None:
    assert guess_socket(Path("missing.toml"), {}) is None
