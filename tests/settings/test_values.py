"""The words of the configuration: what is taken, what is refused, and that a normal form stays as it is."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlsproxy.settings import values, writing

SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "": 1}
PARSERS: list[Callable[[object], Any]] = [
    values.parse_duration,
    values.parse_duration_or_off,
    values.parse_positive_duration,
    values.parse_size,
    values.parse_size_or_off,
    values.parse_count,
    values.parse_workers,
    values.parse_host,
    values.parse_optional_host,
    values.parse_listen,
    values.parse_network,
    values.parse_store_url,
    values.parse_backend,
    values.parse_route_path,
]
LIKELY = st.text(alphabet="0123456789abcxzMKiB.:/[]*-_@%?#~ \x00\x7fßéİ١", max_size=30)
ANYTHING = st.one_of(
    LIKELY, st.text(max_size=80), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(LIKELY)
)


@pytest.mark.parametrize("parse", PARSERS)
@settings(max_examples=50)
@given(value=ANYTHING)
def test_a_value_is_normal_or_refused(parse: Callable[[object], Any], value: object) -> None:
    try:
        normal, refusal = parse(value), ""
    except ValueError as error:
        normal, refusal = None, str(error)
    assert refusal.isprintable()
    assert refusal or parse(normal) == normal


@given(st.integers(0, 5000), st.sampled_from(sorted(SECONDS)))
def test_durations_are_seconds(number: int, unit: str) -> None:
    assert values.parse_duration(f"{number}{unit}") == number * SECONDS[unit]


@pytest.mark.parametrize(("text", "seconds"), [("9.5s", 9.5), ("1y", 31536000), (" 5m ", 300), (0, 0), (2.5, 2.5)])
def test_durations(text: object, seconds: float) -> None:
    assert values.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "10 sec", "-1s", "1h30m", "1_0s", "٣s", True, None, float("nan"), "200y", -1]
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        values.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("64KiB", 65536), ("1MB", 10**6), ("1 mib", 2**20), (7, 7), ("1.5KiB", 1536)]
)
def test_sizes(text: object, size: int) -> None:
    assert values.parse_size(text) == size


@pytest.mark.parametrize("text", ["64K", "64k", "-1", "", True, 1.5, "1PiB", "9" * 40, -1])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="size"):
        values.parse_size(text)


def test_off_is_zero() -> None:
    assert values.parse_size_or_off("off") == values.parse_duration_or_off("off") == 0


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("API.Example.COM", "api.example.com"),
        ("example.com.", "example.com"),
        ("*.Example.org", "*.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.bücher.example", "*.xn--bcher-kva.example"),
        ("localhost", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
    ],
)
def test_hosts(text: str, host: str) -> None:
    assert values.parse_host(text) == host


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a.example:443", 'has no port.*write "a.example"'),
        ("https://a.example", "name alone"),
        ("a.example/x", "name alone"),
        ("*", "whole first label"),
        ("a*.example", "whole first label"),
        ("*.*.example", "whole first label"),
        ("a..example", "label"),
        ("-a.example", "label"),
        ("a_b.example", "label"),
        ("a" * 64 + ".example", "label"),
        ("a." * 127 + "example", "neither"),
        ("300.1.1.1", "neither an IP address"),
        ("straße.example", "xn-- form"),
        ("", "empty"),
        ("a\nb", "invisible characters"),
        (7, "text in quotes"),
    ],
)
def test_what_is_no_host(text: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        values.parse_host(text)


@pytest.mark.parametrize(
    "host", ["localhost", "a.localhost", "*.localhost", "x.test", "10.0.0.1", "::1", "fd00::1", "127.0.0.1"]
)
def test_names_no_public_ca_certifies(host: str) -> None:
    assert values.is_local_name(host)


@pytest.mark.parametrize("host", ["example.com", "*.example.org", "localhost.com", "8.8.8.8", "test.example"])
def test_public_names(host: str) -> None:
    assert not values.is_local_name(host)


@pytest.mark.parametrize(
    ("text", "address"),
    [(":443", ":443"), ("192.0.2.1:443", "192.0.2.1:443"), ("[::1]:443", "[::1]:443"), ("127.0.0.1:0", "127.0.0.1:0")],
)
def test_listen_addresses(text: str, address: str) -> None:
    assert values.parse_listen(text) == address


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("443", 'did you mean ":443"'),
        (443, 'did you mean ":443"'),
        ("::1:443", r"\[::1\]:443"),
        ("localhost:443", 'not an IP address; write ":443"'),
        (":65536", "not a port"),
        (":http", "not a port"),
        (":", "not a port"),
        ("[1.2.3.4]:443", "not an IP address"),
        ("*:443", "not an IP address"),
        ("[fe80::1%eth0]:443", "not an IP address"),
    ],
)
def test_what_is_no_listen_address(text: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        values.parse_listen(text)


def test_networks() -> None:
    assert values.parse_network("10.0.0.0/8") == "10.0.0.0/8"
    assert values.parse_network("10.0.0.7") == "10.0.0.7/32"
    assert values.parse_network("FD00::/8") == "fd00::/8"
    with pytest.raises(ValueError, match=r'did you mean "10\.0\.0\.0/8"'):
        values.parse_network("10.0.0.1/8")
    with pytest.raises(ValueError, match="not a network"):
        values.parse_network("everyone")


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://App:8000/", "http://app:8000"),
        ("http://app", "http://app:80"),
        ("my_app:8000", "http://my_app:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("unix:/run/app.sock", "unix:/run/app.sock"),
        ("unix:///run/app.sock", "unix:/run/app.sock"),
        ("h2c://App:50051/", "h2c://app:50051"),
        ("H2C://[::1]:50051", "h2c://[::1]:50051"),
        ("h2c+unix:/run/app.sock", "h2c+unix:/run/app.sock"),
        ("h2c+unix:///run/app.sock", "h2c+unix:/run/app.sock"),
    ],
)
def test_backends(text: str, backend: str) -> None:
    assert values.parse_backend(text) == backend


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("https://app:8000", "plain HTTP"),
        ("grpc://app:8000", r"unknown scheme 'grpc'; write .* h2c://HOST:PORT \(HTTP/2, gRPC\)"),
        ("h2c://app:8000/v1", "HOST:PORT alone"),
        ("h2c://:8000", "host name"),
        ("h2c+unix:app.sock", "absolute path"),
        ("http://app:8000/v1", "HOST:PORT alone"),
        ("http://app:8000?x", "HOST:PORT alone"),
        ("http://me:pw@app:8000", "HOST:PORT alone"),
        ("app", "lacks a port"),
        ("8000", 'did you mean "127.0.0.1:8000"'),
        (":8000", 'did you mean "127.0.0.1:8000"'),
        ("app:0", "not a port"),
        ("app:65536", "not a port"),
        ("::1:8000", "not a port"),
        ("[::1:8000", "not a backend"),
        ("unix:app.sock", "absolute path"),
        ("unix://run/app.sock", "absolute path"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
    ],
)
def test_what_is_no_backend(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        values.parse_backend(text)


def test_route_paths() -> None:
    assert values.parse_route_path("/") == "/"
    assert values.parse_route_path("/api/v1/") == "/api/v1"
    assert values.parse_route_path("/a%20b") == "/a%20b"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("api", 'did you mean "/api"'),
        ("/a?x=1", "path alone"),
        ("/a#x", "path alone"),
        ("/a/../b", "no place"),
        ("/a/%2e%2E/b", "no place"),
        ("/a//b", "empty segment"),
        ("//", "empty segment"),
        ("/a b", "percent-encoded"),
        ("/ä", "percent-encoded"),
        ("/a%2", "percent-encoded"),
    ],
)
def test_what_is_no_route_path(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        values.parse_route_path(text)


@pytest.mark.parametrize("text", ["file://$HOME/x", "file:///$HOME/x", "file://~/x", "file:///~/x", "file://${HOME}/x"])
def test_a_store_is_named_without_variables(text: str) -> None:
    with pytest.raises(ValueError, match=r"the path must be absolute.*\$HOME and ~ are not expanded"):
        values.parse_store_url(text)


@given(
    st.one_of(st.floats(0, 3e9), st.integers(0, 3_000_000).map(lambda number: number * 0.001), st.integers(0, 10**9))
)
def test_a_duration_is_written_as_it_is_read(seconds: float) -> None:
    assert values.parse_duration(writing.write_duration(float(seconds))) == seconds
    assert values.parse_duration_or_off(writing.write_duration_or_off(float(seconds))) == seconds


@given(st.one_of(st.integers(0, 2**53 - 1), st.integers(0, 4096).map(lambda number: number * 1024)))
def test_a_size_is_written_as_it_is_read(size: int) -> None:
    assert values.parse_size(writing.write_size(size)) == size
    assert values.parse_size_or_off(writing.write_size_or_off(size)) == size


def test_values_are_written_in_short_forms() -> None:
    durations = {9.5: "9.5s", 75.0: "75s", 300.0: "5m", 3600.0: "1h", 0.25: "250ms", 63072000.0: "2y", 0.0: "0s"}
    assert {seconds: writing.write_duration(seconds) for seconds in durations} == durations
    sizes = {32768: "32KiB", 10**6: "1MB", 10**9: "1GB", 300: "300B", 0: "0B", 2**20 * 5: "5MiB"}
    assert {size: writing.write_size(size) for size in sizes} == {**sizes}
    assert (writing.write_duration_or_off(0), writing.write_size_or_off(0)) == ("off", "off")


def test_near_words_are_offered() -> None:
    assert values.did_you_mean("worker", ["workers", "drain"]) == ', did you mean "workers"?'
    assert values.did_you_mean("zzz", ["workers"]) == values.did_you_mean("1.1", ["1.2"]) == ""
