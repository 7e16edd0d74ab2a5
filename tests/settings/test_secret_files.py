"""Secrets out of files, in every layer: which one wins, where a problem is, and that no text of them is shown."""

from pathlib import Path

import pytest

from tlsproxy.errors import ConfigError
from tlsproxy.settings import Loaded, Settings, load, loader
from tlsproxy.settings.explain import HIDDEN, explain

KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
MASTER = "kP0zq3nYH3Sw1vVvN9y8aJm4o5Q2x7Lr"
SITE = '[[sites]]\nhosts = ["a.example.com"]\nbackends = ["127.0.0.1:8000"]\n'


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loader, "SEARCHED", (Path("tlsproxy.toml"),))


def load_text(text: str, **environ: str) -> Loaded:
    Path("tlsproxy.toml").write_text(text + SITE)
    return load(None, {}, environ)


def problems(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, **environ)
    return str(caught.value).replace(f"{Path.cwd()}/", "").splitlines()


def test_every_secret_may_be_in_a_file() -> None:
    Path("secrets").mkdir()
    for name, text in [
        ("eab", f"{KEY}\n"),
        ("google", KEY),
        ("tsig", "c2VjcmV0"),
        ("lexicon", 'auth_token = "t-4711"\n'),
        ("keys", f"\n{MASTER}\n  {MASTER[::-1]}\n"),
        ("hook", "https://hooks.example.net/T0"),
    ]:
        Path("secrets", name).write_text(text)
    settings = load_text("""
        [acme]
        eab_kid = "k"
        eab_hmac_key_file = "secrets/eab"
        challenges = ["dns-01"]
        fallback = [{ directory = "google", eab_kid = "g", eab_hmac_key_file = "secrets/google" }]
        [acme.dns]
        provider = "lexicon"
        rfc2136 = { key_secret_file = "secrets/tsig" }
        lexicon = { provider = "cloudflare", options = { sandbox = true }, options_file = "secrets/lexicon" }
        [store]
        encryption_keys_file = "secrets/keys"
        [events]
        webhook_file = "secrets/hook"
    """).settings
    assert settings.acme.eab_hmac_key.get_secret_value() == KEY
    assert settings.acme.fallback[0].eab_hmac_key.get_secret_value() == KEY
    assert settings.acme.dns.rfc2136.key_secret.get_secret_value() == "c2VjcmV0"
    options = settings.acme.dns.lexicon.options
    assert {name: each.get_secret_value() for name, each in options.items()} == {
        "sandbox": "true",
        "auth_token": "t-4711",
    }
    assert settings.store.master_keys() == (MASTER, MASTER[::-1])
    assert settings.events.webhook.get_secret_value() == "https://hooks.example.net/T0"
    assert Settings.from_parent(settings.for_child()) == settings


def test_a_higher_layer_wins_whether_text_or_file() -> None:
    Path("run").write_text(MASTER)
    inline, named = f'store.encryption_keys = ["{MASTER[::-1]}"]\n', 'store.encryption_keys_file = "run"\n'
    loaded = load_text(inline, TLSPROXY_STORE__ENCRYPTION_KEYS_FILE="run")
    assert loaded.settings.store.master_keys() == (MASTER,)
    assert loaded.origins["store.encryption_keys"] == "environment TLSPROXY_STORE__ENCRYPTION_KEYS_FILE"
    loaded = load_text(named, TLSPROXY_STORE__ENCRYPTION_KEYS=MASTER[::-1])
    assert loaded.settings.store.master_keys() == (MASTER[::-1],)
    loaded = load_text(named)
    assert loaded.origins["store.encryption_keys"] == "tlsproxy.toml:1"


def test_the_key_of_an_account_binding_from_the_environment() -> None:
    Path("eab").write_text(KEY)
    loaded = load_text("", TLSPROXY_ACME__EAB_KID="k", TLSPROXY_ACME__EAB_HMAC_KEY_FILE="eab")
    assert loaded.settings.acme.eab_hmac_key.get_secret_value() == KEY


def test_what_is_wrong_is_told_at_its_line() -> None:
    Path("empty").touch()
    Path("two").write_text("a\nb\n")
    Path("latin").write_bytes(b"\xe9")
    Path("long").write_text("a" * 70_000)
    Path("weak").write_text("hunter2")
    Path("options").write_text('auth_token "hunter2"')
    Path("clash").write_text('auth_token = "hunter2"')
    for text, problem in [
        (
            'acme.eab_kid = "k"\nacme.eab_hmac_key_file = "gone"\n',
            "2: acme.eab_hmac_key_file: gone can't be read: No such",
        ),
        ('events.webhook_file = "empty"\n', "1: events.webhook_file: empty is empty; write the secret into it"),
        ('events.webhook_file = "two"\n', "1: events.webhook_file: two has more than one line"),
        ('events.webhook_file = "latin"\n', "1: events.webhook_file: latin is not text"),
        ('events.webhook_file = "long"\n', "1: events.webhook_file: long is too long"),
        ('events.webhook_file = "."\n', f"1: events.webhook_file: {Path.cwd()} can't be read: Is a directory"),
        ('events.webhook_file = "weak"\n', "1: events.webhook_file: this is not a URL to send to"),
        ('store.encryption_keys_file = "weak"\n', "1: store.encryption_keys_file: too weak for an encryption key"),
        ("store.encryption_keys_file = 7\n", "1: store.encryption_keys_file: unknown key"),
        ('acme.dns.lexicon.options_file = "options"\n', "1: acme.dns.lexicon.options_file: options holds no options"),
        (
            'acme.dns.lexicon = { options = { auth_token = "x" }, options_file = "clash" }\n',
            "1: acme.dns.lexicon.options_file: auth_token is given twice",
        ),
        (
            f'acme.eab_kid = "k"\nacme.eab_hmac_key = "{KEY}"\nacme.eab_hmac_key_file = "weak"\n',
            "3: acme.eab_hmac_key_file: eab_hmac_key is given twice",
        ),
    ]:
        (told,) = problems(text)
        assert told.startswith(f"tlsproxy.toml:{problem}"), told
        assert "hunter2" not in told
    (told,) = problems("", TLSPROXY_EVENTS__WEBHOOK_FILE="gone")
    assert told.startswith("environment: TLSPROXY_EVENTS__WEBHOOK_FILE: gone can't be read")


def test_explain_says_only_that_there_is_a_secret() -> None:
    text = f"""
        [acme]
        eab_kid = "k"
        eab_hmac_key = "{KEY}"
        dns.lexicon.options = {{ auth_token = "t-4711", user = "me" }}
        fallback = [{{ directory = "google", eab_kid = "g", eab_hmac_key = "{KEY}" }}]
        [store]
        encryption_keys = ["{MASTER}"]
        [on_demand]
        per_client = "7/1m"
    """
    rows = {row.key: row.value for row in explain(load_text(text))}
    assert rows["acme.eab_hmac_key"] == rows["acme.fallback.0.eab_hmac_key"] == HIDDEN
    assert rows["store.encryption_keys"] == [HIDDEN]
    assert rows["acme.dns.lexicon.options"] == {"auth_token": HIDDEN, "user": HIDDEN}
    assert (rows["acme.dns.rfc2136.key_secret"], rows["events.webhook"]) == ("", "")
    assert rows["on_demand.per_client"] == "7/1m"
    assert not any(secret in repr(rows) for secret in (KEY, MASTER, "4711"))


def test_unknown_keys_are_told_with_what_was_meant() -> None:
    text = """
        acme.eab_hmac_keyfile = "x"
        acme.resolvers = ["192.0.2.1"]
        acme.dns.rfc2136.sevrer = "192.0.2.1"
        acme.dns.exec = "x"
        on_demand.perdomain = "1/1h"
        acme.fallback = [3]
    """
    assert [each.partition(": ")[2] for each in problems(text)] == [
        'acme.eab_hmac_keyfile: unknown key, did you mean "eab_hmac_key_file"?',
        'acme.resolvers: unknown key; it belongs to [acme.dns], did you mean "acme.dns.resolvers"?',
        'acme.dns.rfc2136.sevrer: unknown key, did you mean "server"?',
        "acme.dns.exec: is a table; write [acme.dns.exec] and its keys",
        'on_demand.perdomain: unknown key, did you mean "per_domain"?',
        "acme.fallback.0: is a table; write [[acme.fallback]]",
    ]
    (told,) = problems("", TLSPROXY_ACME_EAB_KID="x")
    assert told.endswith("has no effect, did you mean TLSPROXY_ACME__EAB_KID?")
