"""A Settings that exists is right: defaults, the rules between values, the way to a child process."""

from typing import Any

import pytest
from pydantic import ValidationError

from tlsproxy.settings import CertificateFiles, Listen, Settings, Site, raw
from tlsproxy.settings.models import Limits, Log

SITE: dict[str, Any] = {"hosts": ["localhost"], "backends": ["127.0.0.1:8000"]}
FILES = {"chain": "/c.pem", "key": "/k.pem"}


def messages(**sections: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        Settings(**sections)
    return {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()}


def test_defaults() -> None:
    settings = Settings()
    assert settings.listen == Listen(https=(":443",), http=(":80",), proxy_protocol=())
    assert settings.limits == Limits(header_size=32768, header_count=100, header_timeout=15, tunnel_idle=3600)
    assert settings.limits.http2_streams == 100
    assert (settings.server.workers, settings.server.drain, settings.tls.minimum_version) == ("auto", 9.5, "1.2")
    assert settings.sites == ()
    assert {"https": Listen().https, "http": Listen().http} == raw.DEFAULT_LISTEN


def test_a_short_site_is_one_route() -> None:
    site = Site.model_validate(SITE)
    assert (site.certificate, site.hosts, site.hsts) == ("internal", ("localhost",), 0.0)
    assert [(route.path, route.backends) for route in site.routes] == [("/", ("http://127.0.0.1:8000",))]


def test_the_short_form_stands_beside_routes() -> None:
    site = Site.model_validate({**SITE, "routes": [{"path": "/api/", "backends": ["a:1"], "max_body": "1MiB"}]})
    assert [route.path for route in site.routes] == ["/", "/api"]
    assert (site.routes[0].max_body, site.routes[1].max_body) == (0, 2**20)


@pytest.mark.parametrize("certificate", ["internal", FILES, [FILES, {"chain": "/r.pem", "key": "/r.key"}]])
def test_settings_reach_a_child_unchanged(certificate: Any) -> None:
    site = {**SITE, "certificate": certificate, "client_ca": "/ca.pem", "client_auth": "request", "hsts": "1y"}
    sections = {"listen": {"proxy_protocol": True}, "server": {"drain": "0.1s"}, "tls": {"default_host": "localhost"}}
    settings = Settings.model_validate({"sites": [site], **sections})
    assert Settings.from_parent(settings.for_child()) == settings
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
    assert Settings.model_validate(settings.model_dump()) == settings


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().server.user = "root"


def test_lists_may_be_texts_with_commas() -> None:
    assert Listen.model_validate({"https": ":1, [::1]:2"}).https == (":1", "[::1]:2")
    assert Listen.model_validate({"http": ""}).http == ()
    assert Log.model_validate({"redact_query": "a,b"}).redact_query == ("a", "b")


@pytest.mark.parametrize(
    ("given", "networks"),
    [(False, ()), (True, ("0.0.0.0/0", "::/0")), ("true", ("0.0.0.0/0", "::/0")), ("10.0.0.1", ("10.0.0.1/32",))],
)
def test_proxy_protocol(given: object, networks: tuple[str, ...]) -> None:
    assert Listen.model_validate({"proxy_protocol": given}).proxy_protocol == networks


@pytest.mark.parametrize(("streams", "why"), [(0, "greater than or equal to 1"), (1001, "less than or equal to 1000")])
def test_streams_of_a_connection_are_some_and_not_thousands(streams: int, why: str) -> None:
    assert why in messages(limits={"http2_streams": streams})["limits.http2_streams"]


def test_one_file_pair_or_several() -> None:
    one = Site.model_validate({**SITE, "certificate": FILES})
    assert isinstance(one.certificate, CertificateFiles)
    assert "sites.0.certificate.files" in messages(sites=[{**SITE, "certificate": []}])


def test_client_auth_without_a_ca_can_not_exist() -> None:
    for mode in ("request", "require"):
        assert "needs client_ca" in messages(sites=[{**SITE, "client_auth": mode}])["sites.0.client_auth"]
    assert "no effect" in messages(sites=[{**SITE, "client_ca": "/ca.pem"}])["sites.0.client_ca"]


def test_public_names_get_a_public_certificate() -> None:
    for hosts, certificate in [
        (["localhost", "a.test", "10.0.0.1"], "internal"),
        (["api.example.com"], "acme"),
        (["localhost", "api.example.com"], "acme"),
        (["8.8.8.8"], "acme"),
    ]:
        assert Site.model_validate({**SITE, "hosts": hosts}).certificate == certificate
    assert (
        Site.model_validate({**SITE, "hosts": ["api.example.com"], "certificate": "internal"}).certificate == "internal"
    )


def test_every_name_there_is_needs_certificates_on_demand() -> None:
    for certificate in ("acme", "internal", FILES):
        wrong = messages(sites=[{**SITE, "hosts": ["*"], "certificate": certificate}])
        assert 'write certificate = "on_demand"' in wrong["sites.0.hosts.0"]
    assert Site.model_validate({**SITE, "hosts": ["*"], "certificate": "on_demand"}).hosts == ("*",)


def test_a_host_is_served_once() -> None:
    other = {"hosts": ["x.test", "LOCALHOST"], "backends": ["b:1"]}
    assert messages(sites=[SITE, other]) == {"sites.1.hosts.1": "localhost is served twice"}
    assert messages(sites=[{**SITE, "hosts": ["a.test", "A.test"]}]) == {"sites.0.hosts.1": "a.test is served twice"}


def test_a_path_is_routed_once() -> None:
    routes = [{"path": "/a", "backends": ["a:1"]}, {"path": "/a/", "backends": ["b:1"]}]
    assert messages(sites=[{"hosts": ["a.test"], "routes": routes}]) == {
        "sites.0.routes.1.path": '"/a" is routed twice in this site'
    }


def test_a_backend_is_listed_once() -> None:
    site = {**SITE, "backends": ["127.0.0.1:1", "http://127.0.0.1:1/"]}
    assert messages(sites=[site]) == {"sites.0.routes.0.backends.1": "http://127.0.0.1:1 is listed twice"}


def test_the_default_host_is_served() -> None:
    wrong = messages(sites=[SITE], tls={"default_host": "locahost"})
    assert wrong == {"tls.default_host": 'locahost is not a host of any site, did you mean "localhost"?'}


def test_addresses_are_listened_on_once() -> None:
    assert "twice" in messages(listen={"https": [":443"], "http": [":443"]})["listen.http.0"]
    assert "twice" in messages(listen={"https": [":80"]})["listen.http.0"]
    assert "no address" in messages(listen={"https": [], "http": []})["listen.https"]
    assert Settings(listen={"https": ["127.0.0.1:0", "127.0.0.1:0"]}).listen.https  # type: ignore[arg-type]


def test_broken_rules_and_broken_values_are_told_together() -> None:
    sites = [{**SITE, "hsts": "soon", "client_auth": "require"}, {**SITE, "minimum_version": "1.1"}]
    found = messages(sites=sites, server={"drain": "x"}, tls={"default_host": "b.test"})
    assert found.keys() == {
        "server.drain",
        "sites.0.hsts",
        "sites.0.client_auth",
        "sites.1.minimum_version",
        "sites.1.hosts.0",
        "tls.default_host",
    }


def test_nothing_strange_breaks_the_rules() -> None:
    for odd in (
        None,
        1,
        "x",
        [1],
        {"hosts": 3},
        [{"hosts": {"a": 1}, "routes": "x"}, 5],
        [{"routes": [1, {"path": 2}]}],
    ):
        messages(sites=odd, listen=odd, tls=odd)


def test_workers_are_counted_when_needed() -> None:
    assert Settings(server={"workers": 3}).resolve_workers() == 3  # type: ignore[arg-type]
    assert Settings().resolve_workers() >= 1
