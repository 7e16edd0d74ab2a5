"""The group of a key exchange, read from what real OpenSSL sends, and from bytes that mean nothing."""

from __future__ import annotations

import contextlib
import ssl

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.wire.serverhello import key_exchange


@pytest.fixture(scope="module")
def server() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("a.test").configure_cert(context)
    return context


def sent_by(server: ssl.SSLContext, version: ssl.TLSVersion) -> bytes:
    """Do a handshake in memory; return all that the server sent in it."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.minimum_version = client.maximum_version = version
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(incoming, outgoing, server_side=True)
    sent = b""
    for _ in range(4):
        for side in (ours, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            incoming.write(to_server.read())
            octets = outgoing.read()
            sent += octets
            to_client.write(octets)
    return sent


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_reads_the_group_from_the_clear(server: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    server.set_ecdh_curve("prime256v1")
    assert key_exchange(sent_by(server, version)) == "secp256r1"


def test_of_two_hellos_the_last_counts(server: ssl.SSLContext) -> None:
    """A client offers a share for x25519 first; a server that wants another curve asks again (HelloRetryRequest)."""
    server.set_ecdh_curve("secp521r1")
    assert key_exchange(sent_by(server, ssl.TLSVersion.TLSv1_3)) == "secp521r1"


@given(st.binary(max_size=200))
def test_noise_is_no_answer_and_no_error(noise: bytes) -> None:
    key_exchange(noise)
    key_exchange(b"\x16\x03\x03\x00\xc8\x02\x00\x00\xc4" + noise)


def test_an_alert_is_no_answer() -> None:
    assert key_exchange(b"\x15\x03\x03\x00\x02\x02\x70") == ""
