"""The certificate sections as values: CAs resolved, secrets that nothing shows and that still reach a child process."""

import json
import traceback
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from tlsproxy.settings import Rate, Settings, directories

SECRETS = {
    "hmac": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W",
    "tsig": "dHNpZy1zZWNyZXQtb2YtdGhlLXpvbmU",
    "token": "cloud-token-4711",
    "master": "kP0zq3nYH3Sw1vVvN9y8aJm4o5Q2x7Lr",
    "hook": "https://hooks.example.net/T0/B0/xoxo",
}
SECTIONS: dict[str, Any] = {
    "acme": {
        "email": "ops@example.net",
        "eab_kid": "kid",
        "eab_hmac_key": SECRETS["hmac"],
        "challenges": ["dns-01"],
        "fallback": [{"directory": "google", "eab_kid": "g", "eab_hmac_key": SECRETS["hmac"]}],
        "dns": {
            "provider": "lexicon",
            "rfc2136": {"key_secret": SECRETS["tsig"]},
            "lexicon": {"provider": "cloudflare", "options": {"auth_token": SECRETS["token"], "sandbox": True}},
        },
    },
    "on_demand": {"ask": "/ask", "per_domain": "3/1m", "per_client": "off"},
    "events": {"webhook": SECRETS["hook"], "command": ["/bin/hook", "-v"]},
    "store": {"encryption_keys": [SECRETS["master"]]},
}


def test_secrets_reach_a_child_unchanged() -> None:
    sites = [
        {"hosts": hosts, "backends": ["127.0.0.1:8000"], "certificate": certificate}
        for hosts, certificate in [("*", "on_demand"), ("a.example.com", "acme"), ("b.example.com", "internal")]
    ]
    settings = Settings.model_validate({**SECTIONS, "sites": sites})
    received = Settings.from_parent(settings.for_child())
    assert received == settings
    assert received.store.master_keys() == (SECRETS["master"],)
    assert received.events.webhook.get_secret_value() == SECRETS["hook"]
    assert received.acme.dns.lexicon.options["sandbox"].get_secret_value() == "true"
    assert received.on_demand.per_domain == Rate(3, 60.0)


def test_a_worker_gets_the_key_of_the_store_and_no_other_secret() -> None:
    sites = [{"hosts": ["*"], "backends": ["127.0.0.1:8000"], "certificate": "on_demand"}]
    settings = Settings.model_validate({**SECTIONS, "sites": sites})
    text = settings.for_worker()
    assert [name for name, secret in SECRETS.items() if secret in text] == ["master"]
    received = Settings.from_parent(text)
    assert received.sites == settings.sites
    assert received.store == settings.store


def test_nothing_else_shows_a_secret() -> None:
    settings = Settings.model_validate(SECTIONS)
    shown = repr(settings) + str(settings) + repr(settings.model_dump()) + repr(settings.acme.issuers())
    assert [name for name, secret in SECRETS.items() if secret in shown] == []


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("acme", {"eab_kid": "k", "eab_hmac_key": "hunter2 is not base64url"}),
        ("acme", {"eab_hmac_key": ["hunter2"]}),
        ("acme", {"dns": {"rfc2136": {"key_secret": "hunter2\n"}}}),
        ("acme", {"dns": {"lexicon": {"options": {"token": "hunter2\0"}}}}),
        ("acme", {"dns": {"lexicon": {"options": "hunter2"}}}),
        ("store", {"encryption_keys": ["hunter2"]}),
        ("store", {"encryption_keys": {"hunter2": "hunter2"}}),
        ("events", {"webhook": "ftp://hunter2"}),
        ("acme", "hunter2"),
    ],
)
def test_an_error_does_not_repeat_a_secret(section: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({section: value})
    told = "".join(traceback.format_exception(caught.value)) + json.dumps([e["msg"] for e in caught.value.errors()])
    assert "hunter2" not in told


def test_issuers_in_order() -> None:
    first, second = Settings.model_validate(SECTIONS).acme.issuers()
    assert (first.directory_url, first.staging_url) == (
        "https://acme-v02.api.letsencrypt.org/directory",
        "https://acme-staging-v02.api.letsencrypt.org/directory",
    )
    assert (first.email, second.email) == ("ops@example.net", "ops@example.net")
    assert (second.directory_url, second.staging_url) == ("https://dv.acme-v02.api.pki.goog/directory", "")
    assert second.eab_hmac_key == SecretStr(SECRETS["hmac"])


def test_staging_is_known_named_or_off() -> None:
    def staging(**acme: Any) -> str:
        return Settings.model_validate({"acme": acme}).acme.issuers()[0].staging_url

    assert staging(staging="off") == ""
    assert staging(directory="https://ca.example.net/dir") == ""
    assert staging(directory="https://ca.example.net/dir", staging="https://ca.example.net/test") == (
        "https://ca.example.net/test"
    )
    assert staging(directory="https://acme-v02.api.letsencrypt.org/directory") == (
        "https://acme-staging-v02.api.letsencrypt.org/directory"
    )


@pytest.mark.parametrize(
    ("directory", "production"),
    [
        ("letsencrypt", True),
        ("letsencrypt-staging", False),
        ("https://acme-staging-v02.api.letsencrypt.org/directory", False),
        ("zerossl", True),
        ("google", True),
        ("https://acme.example.net/directory", True),
        ("https://localhost:14000/dir", False),
        ("https://10.1.2.3/acme", False),
        ("https://step-ca.internal/acme/acme/directory", False),
        ("https://pebble:14000/dir", False),
    ],
)
def test_which_ca_counts(directory: str, production: bool) -> None:
    assert directories.is_production(directory) is production


def test_the_schema_knows_the_files_of_secrets() -> None:
    schema = Settings.model_json_schema()["$defs"]
    assert "eab_hmac_key_file" in schema["Acme"]["properties"]
    assert "encryption_keys_file" in schema["Store"]["properties"]
    assert "default" not in schema["Site"]["properties"]["certificate"]
    for key in ("per_domain", "per_client"):
        assert schema["OnDemand"]["properties"][key]["default"] == str(getattr(Settings().on_demand, key))
