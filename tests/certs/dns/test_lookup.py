"""Where names lead, which servers speak for them and what these say, with real BIND servers and a real resolver."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.named import KEY, LOOPBACK, SECOND, Named, Primary, Secondary
from tests.system.running import free_port
from tlsproxy.certs.dns.lookup import Answer, Lookup, LookupFailed, Server, split_address

pytestmark = pytest.mark.system

CHAIN = [f"c{number} CNAME c{number + 1}" for number in range(1, 12)]
RECORDS = [
    "_acme-challenge.api CNAME api.challenges.test.",
    "_acme-challenge.far CNAME one.challenges.test.",
    "_acme-challenge.lost CNAME nothing.challenges.test.",
    "_acme-challenge.odd CNAME -rf.challenges.test.",
    "*.wild CNAME pool.challenges.test.",
    "round CNAME about.example.test.",
    "about CNAME round.example.test.",
    "self CNAME self.example.test.",
    "www CNAME elsewhere.test.",
    "child NS ns1.example.test.",
    'txt TXT "a value" "in parts"',
    'txt TXT "another"',
    "host A 192.0.2.1",
    *CHAIN,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Named]:
    zones = [
        Primary("example.test", RECORDS, servers=2),
        Primary("child.example.test"),
        Primary("challenges.test", ["one CNAME two", "two CNAME three.example.test.", "@ NS ns.nowhere.test."]),
        Primary("elsewhere.test"),
    ]
    with Named(tmp_path_factory.mktemp("primary"), port=free_port(), zones=zones) as named:
        yield named


@pytest.fixture(scope="module", params=["authoritative", "recursive"])
def lookup(request: pytest.FixtureRequest, server: Named, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lookup]:
    """Ask the server itself, and a resolver that asks it: the first answers whole chains at once, both must do."""
    if request.param == "authoritative":
        yield Lookup([server.resolver], port=server.port)
        return
    folder = tmp_path_factory.mktemp("resolver")
    with Named(folder, port=free_port(), recursor_of=(LOOPBACK, server.port)) as resolver:
        yield Lookup([resolver.resolver], port=server.port)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_acme-challenge.host.example.test", "_acme-challenge.host.example.test"),
        ("_acme-challenge.api.example.test", "api.challenges.test"),
        ("_acme-challenge.far.example.test", "three.example.test"),
        ("_acme-challenge.lost.example.test", "nothing.challenges.test"),
        ("_acme-challenge.wild.example.test", "pool.challenges.test"),
        ("c5.example.test", "c12.example.test"),  # seven in a row
    ],
)
def test_where_a_name_leads(lookup: Lookup, name: str, expected: str) -> None:
    assert asyncio.run(lookup.follow(name)) == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("round.example.test", r"in a circle \(round\.example\.test → about\.example\.test → round\.example\.test\)"),
        ("self.example.test", "in a circle"),
        ("c4.example.test", "more than 7 CNAMEs in a row"),
        ("_acme-challenge.odd.example.test", "leads to '-rf.challenges.test', which is no host name"),
        ("a.refused.test", "no resolver answers the question for CNAME .(REFUSED|SERVFAIL)"),
    ],
)
def test_what_leads_nowhere(lookup: Lookup, name: str, reason: str) -> None:
    with pytest.raises(LookupFailed, match=reason):
        asyncio.run(lookup.follow(name))


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        ("_acme-challenge.example.test", "example.test"),
        ("_acme-challenge.a.b.c.example.test", "example.test"),
        ("_acme-challenge.child.example.test", "child.example.test"),
        ("challenges.test", "challenges.test"),
        # www is a CNAME to the top of another zone; what lies below www does not lie there.
        ("_acme-challenge.www.example.test", "example.test"),
    ],
)
def test_the_zone_of_a_name(lookup: Lookup, name: str, zone: str) -> None:
    assert asyncio.run(lookup.zone_of(name)) == zone


def test_all_servers_of_a_zone(lookup: Lookup) -> None:
    both = (Server("ns1.example.test", (LOOPBACK,)), Server("ns2.example.test", (SECOND,)))
    assert asyncio.run(lookup.servers_of("_acme-challenge.a.example.test")) == both


def test_a_server_without_an_address(lookup: Lookup) -> None:
    servers = asyncio.run(lookup.servers_of("x.challenges.test"))
    assert servers == (Server("ns.nowhere.test", ()), Server("ns1.challenges.test", (LOOPBACK,)))


def test_what_a_server_says(server: Named) -> None:
    lookup = Lookup([server.resolver], port=server.port)

    def ask(name: str) -> Answer:
        return asyncio.run(lookup.ask(LOOPBACK, name))

    assert set(ask("txt.example.test").values) == {"a valuein parts", "another"}
    assert ask("host.example.test") == Answer(problem="no TXT record")
    assert ask("absent.example.test") == Answer(problem="NXDOMAIN")
    assert ask("a.refused.test") == Answer(problem="REFUSED")
    assert str(ask("absent.example.test")) == "NXDOMAIN"


def test_nobody_there() -> None:
    lookup = Lookup(["127.0.0.1:1"], timeout=0.2, port=1)
    answer = asyncio.run(lookup.ask(LOOPBACK, "a.test"))
    assert not answer.is_reached
    assert answer.values == ()
    with pytest.raises(
        LookupFailed, match=r"a\.test: no resolver answers the question for CNAME \(no answer in time\)"
    ):
        asyncio.run(lookup.follow("a.test"))


def test_many_values_are_told_in_short() -> None:
    assert str(Answer(values=("a", "b"))) == "'a', 'b'"
    assert str(Answer(values=("x" * 100, "b", "c", "d", "e"))) == f"'{'x' * 60}', 'b', 'c' and 2 more"


def test_a_secondary_is_another_server(server: Named, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, zones = tmp_path_factory.mktemp("secondary"), [Secondary("example.test")]
    with Named(folder, port=server.port, address=SECOND, zones=zones) as second:
        server.update("example.test", "fresh 60 TXT new", key=KEY)
        lookup = Lookup([second.resolver], port=server.port)
        assert asyncio.run(lookup.ask(LOOPBACK, "fresh.example.test")).values == ("new",)
        assert asyncio.run(lookup.ask(SECOND, "fresh.example.test")).problem == "NXDOMAIN"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
        ("ns.test", ("ns.test", 53)),
        ("ns.test:5353", ("ns.test", 5353)),
    ],
)
def test_addresses_of_servers(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected
