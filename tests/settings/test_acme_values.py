"""The words of the certificate sections, right and wrong."""

import re
from collections.abc import Callable

import pytest

from tlsproxy.settings import acme_values
from tlsproxy.settings.acme_values import Rate

Parse = Callable[[object], object]


@pytest.mark.parametrize(
    ("parse", "given", "normal"),
    [
        (acme_values.parse_rate, "10/1h", Rate(10, 3600.0)),
        (acme_values.parse_rate, " 3 / 90s", Rate(3, 90.0)),
        (acme_values.parse_rate, "off", Rate(0, 1.0)),
        (acme_values.parse_rate, Rate(2, 60.0), Rate(2, 60.0)),
        (acme_values.parse_directory, "LetsEncrypt", "letsencrypt"),
        (acme_values.parse_directory, "https://ca.example.net/d", "https://ca.example.net/d"),
        (acme_values.parse_directory, "http://127.0.0.1:4000/d", "http://127.0.0.1:4000/d"),
        (acme_values.parse_staging, "", ""),
        (acme_values.parse_staging, "off", "off"),
        (acme_values.parse_email, "mailto:ops@example.net", "ops@example.net"),
        (acme_values.parse_email, "", ""),
        (acme_values.parse_eab_key, "ab+/" * 8 + "==", "ab-_" * 8),
        (acme_values.parse_option, 7, "7"),
        (acme_values.parse_option, False, "false"),
        (acme_values.parse_resolver, "192.0.2.53", "192.0.2.53"),
        (acme_values.parse_resolver, "192.0.2.53:5353", "192.0.2.53:5353"),
        (acme_values.parse_resolver, "2001:DB8::1", "2001:db8::1"),
        (acme_values.parse_resolver, "[2001:db8::1]:5353", "[2001:db8::1]:5353"),
        (acme_values.parse_optional_server, "NS1.example.net", "ns1.example.net"),
        (acme_values.parse_optional_server, "ns1.example.net:5353", "ns1.example.net:5353"),
        (acme_values.parse_optional_server, "[::1]:5353", "[::1]:5353"),
        (acme_values.parse_optional_server, "::1", "::1"),
        (acme_values.parse_optional_server, "", ""),
        (acme_values.parse_command, ["/bin/hook", "a b"], ["/bin/hook", "a b"]),
        (acme_values.parse_command, "", []),
        (acme_values.parse_ask, "/ask?x=1", "/ask?x=1"),
        (acme_values.parse_ask, "https://app.example.net/ask", "https://app.example.net/ask"),
        (acme_values.parse_ask, "", ""),
        (acme_values.parse_socket, "unix:/run/a.sock", "/run/a.sock"),
        (acme_values.parse_socket, "off", "off"),
        (acme_values.parse_socket, f"/{'x' * 200}/a.sock", f"/{'x' * 200}/a.sock"),
        (acme_values.parse_optional_url, "https://acme-dns.example.net", "https://acme-dns.example.net"),
        (acme_values.parse_dns_provider, "exec", "exec"),
    ],
)
def test_what_is_right(parse: Parse, given: object, normal: object) -> None:
    assert parse(given) == normal
    assert parse(normal) == normal


@pytest.mark.parametrize("text", ["10/1h", "1/2d", "off"])
def test_a_rate_is_written_as_it_is_read(text: str) -> None:
    assert str(acme_values.parse_rate(text)) == text


@pytest.mark.parametrize(
    ("parse", "given", "why"),
    [
        (acme_values.parse_rate, "10", 'write "10/1h"'),
        (acme_values.parse_rate, "10/", 'write "10/1h"'),
        (acme_values.parse_rate, "0/1h", '"off"'),
        (acme_values.parse_rate, "1/0s", 'write "10/1h"'),
        (acme_values.parse_rate, 10, 'write "10/1h"'),
        (acme_values.parse_directory, "letsencrpyt", 'did you mean "letsencrypt"'),
        (acme_values.parse_directory, "http://ca.example.net/d", "over https only"),
        (acme_values.parse_directory, "https://user@ca.example.net/d", "without user"),
        (acme_values.parse_directory, "https://ca.example.net:99999/d", "is not a URL"),
        (acme_values.parse_directory, "https:///d", "is not a URL"),
        (acme_values.parse_directory, 1, "text in quotes"),
        (acme_values.parse_email, "ops", "mail address"),
        (acme_values.parse_email, "a@b", "mail address"),
        (acme_values.parse_email, "a@b.net,c@d.net", "mail address"),
        (acme_values.parse_email, "a b@c.net", "mail address"),
        (acme_values.parse_email, "a@-b.net", "host name"),
        (acme_values.parse_eab_key, "short", "base64url"),
        (acme_values.parse_secret, 1, "text in quotes"),
        (acme_values.parse_resolver, "ns1.example.net", "address of a name server"),
        (acme_values.parse_resolver, "::1:53:x", "address of a name server"),
        (acme_values.parse_resolver, "192.0.2.1:0", "not a port"),
        (acme_values.parse_optional_server, "ns_1.example.net", "host name"),
        (acme_values.parse_command, "/bin/hook -v", "as a list"),
        (acme_values.parse_command, ["/bin/hook", 1], "list of texts"),
        (acme_values.parse_command, [""], "list of texts"),
        (acme_values.parse_ask, "ask", "write a path"),
        (acme_values.parse_ask, "//evil/ask", "write a path"),
        (acme_values.parse_ask, "ftp://x/ask", "http"),
        (acme_values.parse_socket, "run/a.sock", "absolute path"),
        (acme_values.parse_socket, "/" + "x" * 81, "at most 80 bytes"),
        (acme_values.parse_dns_provider, "rfc1236", 'did you mean "rfc2136"'),
        (acme_values.parse_dns_provider, "cloudflare", 'lexicon = { provider = "cloudflare"'),
    ],
)
def test_what_is_wrong(parse: Parse, given: object, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parse(given)
