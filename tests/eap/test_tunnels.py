"""EAP-TLS, EAP-TTLS and PEAP: who comes in, who does not, and who is told no password."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.eap.parties import USERS, numbered
from tests.eap.tls_ends import (
    CLIENT,
    GATEWAY,
    KINDS,
    STRANGER,
    client,
    gateway,
    key_of,
    leaf,
    pair,
    peer_of,
    run,
    server_of,
)
from tests.pki.chains import NOW, extended
from xfrmpy.eap.avps import MAX_AVPS, Avp, AvpType, decode_avps_untrusted, encode_avps
from xfrmpy.eap.eap_tls import COMMITMENT, TlsServer
from xfrmpy.eap.fragments import decode_piece_untrusted
from xfrmpy.eap.method import EapFailed
from xfrmpy.eap.packet import EapCode, EapMalformed, EapPacket, decode_eap_untrusted
from xfrmpy.eap.peap import PeapServer, Result, decode_result_untrusted
from xfrmpy.eap.peer import EapPeer, PeerState
from xfrmpy.eap.server import EapServer, ServerState
from xfrmpy.eap.tls import TlsEnd, TlsVersion, Tunnel
from xfrmpy.eap.ttls import Mschapv2Inside, TtlsPeer

ALICE = USERS[b"alice"]
SUCCESS = EapPacket(code=EapCode.SUCCESS, identifier=1).encode()
WITH_PASSWORD = [kind for kind in KINDS if kind != "tls"]
DAY = timedelta(days=1)
HANDSHAKE, CLIENT_HELLO = 22, 1
USAGE = ExtendedKeyUsageOID


@pytest.mark.parametrize("newest", TlsVersion)
@pytest.mark.parametrize("kind", KINDS)
def test_who_has_what_it_takes_comes_in(kind: str, newest: TlsVersion) -> None:
    ours, theirs = pair(kind, newest)
    said = list(run(ours, theirs))
    assert decode_eap_untrusted(said[-1]).code is EapCode.SUCCESS
    assert ours.outcome is not None
    assert theirs.outcome is not None
    assert len(ours.outcome.msk) == 64
    assert ours.outcome.msk == theirs.outcome.msk
    assert theirs.outcome.identity == (CLIENT.encode() if kind == "tls" else b"alice")
    assert max(map(len, said)) <= 1020


@pytest.mark.parametrize("kind", KINDS)
def test_two_authentications_have_two_keys(kind: str) -> None:
    keys = set()
    for _ in range(2):
        ours, theirs = pair(kind)
        list(run(ours, theirs))
        assert theirs.outcome is not None
        keys.add(theirs.outcome.msk)
    assert len(keys) == 2


@pytest.mark.parametrize("newest", TlsVersion)
@pytest.mark.parametrize(
    ("user", "password"),
    [(b"alice", "wrong horse"), (b"mallory", ALICE), (b"alice", ""), (b"carol", "")],
)
@pytest.mark.parametrize("kind", WITH_PASSWORD)
def test_who_does_not_know_the_password_is_refused(
    kind: str, user: bytes, password: str, newest: TlsVersion
) -> None:
    """An unknown user is refused like a wrong password, and an empty one is none."""
    ours, theirs = pair(kind, newest, user=user, password=password)
    with pytest.raises(EapFailed):
        list(run(ours, theirs))
    assert theirs.state is ServerState.FAILED
    assert theirs.outcome is ours.outcome is None
    assert password == "" or password not in theirs.failure


BAD_SERVERS: dict[str, tuple[Callable[[], TlsEnd], str]] = {
    "another authority": (
        lambda: gateway(leaf(GATEWAY, issuer=STRANGER)),
        "certificate verify failed",
    ),
    "another name": (lambda: gateway(leaf("other.example.net")), "XF2114"),
    "expired": (
        lambda: gateway(leaf(GATEWAY, start=NOW - 9 * DAY, end=NOW - DAY)),
        "certificate verify failed",
    ),
    "not yet valid": (
        lambda: gateway(leaf(GATEWAY, start=NOW + DAY, end=NOW + 9 * DAY)),
        "certificate verify failed",
    ),
    "only for clients": (
        lambda: gateway(leaf(GATEWAY, extensions=[extended(USAGE.CLIENT_AUTH.dotted_string)])),
        "certificate verify failed",
    ),
    "only for IKE": (
        lambda: gateway(leaf(GATEWAY, extensions=[extended(USAGE.IPSEC_IKE.dotted_string)])),
        "certificate verify failed",
    ),
    "an authority's": (
        lambda: gateway(leaf(GATEWAY, ca=True, usage=("digital_signature", "key_cert_sign"))),
        "XF2111",
    ),
}
"""Servers that must not be believed, and a word of the reason."""


@pytest.mark.parametrize("newest", TlsVersion)
@pytest.mark.parametrize("bad", BAD_SERVERS)
@pytest.mark.parametrize("kind", ["tls", "ttls pap", "ttls eap-gtc", "peap gtc"])
def test_a_server_that_is_not_verified_is_told_nothing(
    kind: str, bad: str, newest: TlsVersion
) -> None:
    """CVE-2015-4171: no credentials for the wrong server; neither password, name nor certificate.

    The server here takes whatever it gets, so what would come inside would be in its hands.
    """
    make, why = BAD_SERVERS[bad]
    curious = gateway(leaf(GATEWAY), peer=CLIENT).trust if kind == "tls" else None
    theirs = server_of(kind, replace(make(), trust=curious))
    ours = peer_of(kind, client(leaf(CLIENT) if kind == "tls" else None, newest=newest))
    told: list[bytes] = []

    def listen() -> None:
        request = theirs.begin()
        while (response := ours.handle(request)) is not None:
            told.append(response)
            request = theirs.handle(response)

    with pytest.raises(EapFailed, match=why):
        listen()
    assert ours.state is PeerState.FAILED
    assert ours.outcome is theirs.outcome is None
    pieces = [decode_piece_untrusted(decode_eap_untrusted(packet).data) for packet in told[1:]]
    stream = b"".join(each.data for each in pieces)
    assert (stream[0], stream[5]) == (HANDSHAKE, CLIENT_HELLO)
    assert int.from_bytes(stream[3:5]) == len(stream) - 5, "more than one record was told"
    assert b"alice" not in stream


@pytest.mark.parametrize("newest", TlsVersion)
@pytest.mark.parametrize(
    ("end", "why"),
    [
        (lambda **w: client(leaf(CLIENT, issuer=STRANGER), **w), "certificate verify failed"),
        (lambda **w: client(leaf("mallory.example.net"), **w), "XF2114"),
        (lambda **w: client(leaf(CLIENT, end=NOW - DAY / 2), **w), "certificate verify failed"),
        (
            lambda **w: client(
                leaf(CLIENT, extensions=[extended(USAGE.SERVER_AUTH.dotted_string)]), **w
            ),
            "certificate verify failed",
        ),
        (lambda **w: client(None, **w), "did not return a certificate"),
    ],
)
def test_a_client_whose_certificate_is_not_right_is_refused(
    end: Callable[..., TlsEnd], why: str, newest: TlsVersion
) -> None:
    theirs = server_of("tls", gateway(leaf(GATEWAY), peer=CLIENT))
    ours = peer_of("tls", end(newest=newest))
    with pytest.raises(EapFailed):
        list(run(ours, theirs))
    assert theirs.state is ServerState.FAILED
    assert why in theirs.failure
    assert theirs.outcome is ours.outcome is None


def test_a_key_that_is_not_of_the_certificate_is_of_no_use() -> None:
    hers, mine = key_of(leaf(CLIENT)), key_of(leaf("mallory.example.net"))
    end = replace(client(), key=replace(hers, pkcs8=mine.pkcs8))
    with pytest.raises(EapFailed, match="of no use"):
        list(run(peer_of("tls", end), server_of("tls", gateway(leaf(GATEWAY), peer=CLIENT))))


@pytest.mark.parametrize("newest", TlsVersion)
@pytest.mark.parametrize("kind", KINDS)
def test_success_at_any_step_but_the_last_fails(kind: str, newest: TlsVersion) -> None:
    """CVE-2015-8023, CVE-2021-45079: a word outside the tunnel is believed at its end only."""
    for step in count():
        # How many there are is not the same each time: signatures of ECDSA have several lengths.
        ours, theirs = pair(kind, newest)
        request = theirs.begin()
        for _ in range(step):
            response = ours.handle(request)
            assert response is not None
            request = theirs.handle(response)
            if ours.is_ready:
                assert step > 3
                return
        with pytest.raises(EapFailed, match="before anything is proved"):
            ours.handle(SUCCESS)
        assert ours.outcome is None


def test_with_tls_1_3_a_handshake_without_the_commitment_is_not_enough() -> None:
    """RFC 9190 section 2.5: until then the server may still refuse our certificate."""
    ours, theirs = pair("tls")
    request = theirs.begin()
    while True:
        response = ours.handle(request)
        assert response is not None
        request = theirs.handle(response)
        if _tunnel_of(theirs).is_open:
            break
    # The peer's handshake is over, and the octet that says so is on its way.
    assert _tunnel_of(ours).is_open
    assert not ours.is_ready
    assert ours.handle(request) is not None
    assert ours.is_ready


class Talkative(TlsServer):
    """Says within the tunnel what it is told to."""

    words = b""

    def _speak(self, plain: bytes) -> bytes:  # noqa: ARG002
        return self.words


@pytest.mark.parametrize("words", [b"\x01", COMMITMENT * 2, b"hello"])
@pytest.mark.parametrize("newest", TlsVersion)
def test_within_eap_tls_nothing_else_has_a_place(words: bytes, newest: TlsVersion) -> None:
    def make(_: bytes) -> TlsServer:
        method = Talkative(gateway(leaf(GATEWAY), peer=CLIENT))
        method.words = words
        return method

    ours = peer_of("tls", client(leaf(CLIENT), newest=newest))
    with pytest.raises(EapFailed, match="has no place"):
        list(run(ours, EapServer([make], first_id=0)))


class Impatient(PeapServer):
    """Says that all is well before the method inside has proved anything."""

    def _speak(self, plain: bytes) -> bytes:
        if plain:
            return bytes.fromhex("0107000b21 8003 0002 0001")
        return super()._speak(plain)


@pytest.mark.parametrize("inside", ["mschapv2", "gtc"])
def test_a_protected_success_that_skips_the_method_inside_is_not_believed(inside: str) -> None:
    theirs = EapServer([lambda _: Impatient(gateway(leaf(GATEWAY)), [], 0)], first_id=0)
    ours = peer_of(f"peap {inside}", client())
    with pytest.raises(EapFailed, match="before anything is proved"):
        list(run(ours, theirs))
    assert ours.outcome is None


def test_the_server_proves_that_it_knows_the_password_within_ttls() -> None:
    """MSCHAPv2 is mutual: a server that only says it is content is not believed."""
    theirs = server_of("ttls mschapv2", gateway(leaf(GATEWAY)))
    ours = peer_of("ttls mschapv2", client())
    method: Any = None
    request = theirs.begin()
    while True:
        response = ours.handle(request)
        assert response is not None
        method = ours._method
        if method is not None and method._inside._expected:
            break
        request = theirs.handle(response)
    method._inside._expected = bytes(len(method._inside._expected))
    with pytest.raises(EapFailed, match="does not know"):
        ours.handle(theirs.handle(response))
    with pytest.raises(EapFailed):
        ours.handle(SUCCESS)


def test_a_challenge_of_the_peers_choice_is_refused_within_ttls() -> None:
    """RFC 5281 section 11.2.4: a response that was overheard elsewhere is of no use."""
    overheard = Mschapv2Inside(b"alice", ALICE, numbered("peer"))

    class Replaying:
        is_finished = False

        def begin(self, tunnel: Tunnel) -> Iterable[Avp]:
            elsewhere: Any = SimpleNamespace(export=lambda *_: bytes(17))
            del tunnel
            return overheard.begin(elsewhere)

        def handle(self, avps: Sequence[Avp]) -> Iterable[Avp]:
            raise AssertionError(avps)

    theirs = server_of("ttls mschapv2", gateway(leaf(GATEWAY)))
    ours = EapPeer(b"anonymous", [lambda: TtlsPeer(client(), Replaying())])
    with pytest.raises(EapFailed):
        list(run(ours, theirs))
    assert theirs.failure == "the MSCHAPv2 challenge is not that of the tunnel"


class Saying:
    """Of a peer of TTLS: whatever octets, as attributes."""

    is_finished = True

    def __init__(self, octets: bytes) -> None:
        self._octets = octets

    def begin(self, tunnel: Tunnel) -> Iterable[Avp]:  # noqa: ARG002
        raw: Any = SimpleNamespace(encode=lambda: self._octets)
        return (raw,)

    def handle(self, avps: Sequence[Avp]) -> Iterable[Avp]:  # noqa: ARG002
        return ()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (encode_avps([Avp(AvpType.USER_NAME, b"alice")]), "neither a password"),
        (
            encode_avps([Avp(AvpType.USER_PASSWORD, b"x")] * 2),
            "comes 2 times",
        ),
        (encode_avps([Avp(AvpType.EAP_MESSAGE, b"\x02")]), "inside the tunnel"),
        (b"\0\0\0\1\x40\0\0", "ends in its head"),
    ],
)
def test_what_is_no_login_within_ttls_is_refused(said: bytes, why: str) -> None:
    theirs = server_of("ttls pap", gateway(leaf(GATEWAY)))
    with pytest.raises(EapFailed):
        list(run(EapPeer(b"anonymous", [lambda: TtlsPeer(client(), Saying(said))]), theirs))
    assert why in theirs.failure
    assert theirs.outcome is None


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=1, max_size=80))
def test_no_octets_within_a_tunnel_bring_the_server_down_or_let_a_peer_in(said: bytes) -> None:
    theirs = server_of("ttls pap", gateway(leaf(GATEWAY)))
    with pytest.raises(EapFailed):
        list(run(EapPeer(b"anonymous", [lambda: TtlsPeer(client(), Saying(said))]), theirs))
    assert theirs.outcome is None


@settings(max_examples=25, deadline=None)
@given(step=st.integers(0, 12), at=st.integers(0, 1100), change=st.integers(1, 255))
@pytest.mark.parametrize("kind", ["tls", "ttls pap", "peap mschapv2"])
def test_no_change_of_a_packet_brings_an_end_down_or_lets_anybody_in(
    kind: str, step: int, at: int, change: int
) -> None:
    """One octet is another: the authentication fails, or both ends have one key all the same."""
    ours, theirs = pair(kind)
    request = theirs.begin()
    try:
        while True:
            step -= 1
            request = _spoilt(request, at, change) if step == 0 else request
            response = ours.handle(request)
            if response is None:
                break
            step -= 1
            request = theirs.handle(_spoilt(response, at, change) if step == 0 else response)
    except EapFailed:
        assert ours.outcome is None
    if ours.outcome is not None and theirs.outcome is not None:
        assert ours.outcome.msk == theirs.outcome.msk


def _spoilt(packet: bytes, at: int, change: int) -> bytes:
    at %= len(packet)
    return packet[:at] + bytes([packet[at] ^ change]) + packet[at + 1 :]


@given(st.lists(st.tuples(st.sampled_from(AvpType), st.binary(max_size=40)), max_size=8))
def test_attributes_come_back_as_they_were(avps: list[tuple[AvpType, bytes]]) -> None:
    wanted = tuple(Avp(*avp) for avp in avps)
    octets = encode_avps(wanted)
    assert len(octets) % 4 == 0
    assert decode_avps_untrusted(octets) == wanted


@given(st.binary(max_size=80))
def test_no_octets_bring_the_attributes_down(octets: bytes) -> None:
    """CVE-2025-62291 and its like: every element takes octets, and none more than there are."""
    try:
        avps = decode_avps_untrusted(octets)
    except EapMalformed:
        return
    assert sum(8 + len(avp.data) for avp in avps) <= len(octets)


@pytest.mark.parametrize(
    "octets",
    [
        b"\0\0\0\1\x40\0\0\7",  # shorter than its head
        b"\0\0\0\1\x40\0\0\0",
        b"\0\0\0\1\xc0\0\0\x0b\0\0\0",  # ends in its vendor
        b"\0\0\0\1\x40\0\0\x09",  # longer than there is
        b"\0\0\0\1\x40\xff\xff\xff" + bytes(40),
        b"\0\0\x03\xe7\x40\0\0\x08",  # mandatory, and unknown
        encode_avps([Avp(AvpType.REPLY_MESSAGE, b"x")] * (MAX_AVPS + 1)),
    ],
)
def test_attributes_that_are_not_right_are_malformed(octets: bytes) -> None:
    with pytest.raises(EapMalformed):
        decode_avps_untrusted(octets)


def test_an_attribute_that_is_unknown_and_not_mandatory_is_ignored() -> None:
    known = Avp(AvpType.USER_NAME, b"alice")
    assert decode_avps_untrusted(b"\0\0\x03\xe7\0\0\0\x08" + known.encode()) == (known,)


@pytest.mark.parametrize(
    ("octets", "result"),
    [
        ("800300020001", Result.SUCCESS),
        ("800300020002", Result.FAILURE),
        ("000c0004deadbeef800300020001", Result.SUCCESS),  # optional, and unknown
    ],
)
def test_a_result_is_read(octets: str, result: Result) -> None:
    assert decode_result_untrusted(bytes.fromhex(octets)) is result


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "8003",
        "80030003000001",
        "800300020003",
        "80030002000180030002",
        "800300020001800300020002",
        "800c0000800300020001",
        "0003ffff0001",
    ],
)
def test_a_result_that_is_none_is_malformed(octets: str) -> None:
    with pytest.raises(EapMalformed):
        decode_result_untrusted(bytes.fromhex(octets))


@given(st.binary(max_size=40))
def test_no_octets_bring_the_result_down(octets: bytes) -> None:
    try:
        decode_result_untrusted(octets)
    except EapMalformed:
        return
    assert b"\0\2\0" in octets


@pytest.mark.parametrize("kind", KINDS)
def test_no_password_and_no_key_is_in_a_representation(kind: str) -> None:
    ours, theirs = pair(kind)
    said = list(run(ours, theirs))
    shown = repr([decode_eap_untrusted(octets) for octets in said])
    shown += repr([ours, theirs, ours.outcome, theirs.outcome, client(leaf(CLIENT))])
    assert ours.outcome is not None
    assert ALICE not in shown
    assert repr(ours.outcome.msk[:16])[2:-1] not in shown
    assert "PrivateKey" not in shown


def test_a_name_and_a_password_are_in_no_packet() -> None:
    for kind in WITH_PASSWORD:
        for newest in TlsVersion:
            ours, theirs = pair(kind, newest)
            said = b"".join(run(ours, theirs))
            assert b"alice" not in said
            assert ALICE.encode() not in said


def test_who_does_not_use_tls_does_not_load_it() -> None:
    program = (
        "import sys, xfrmpy.eap.eap_tls, xfrmpy.eap.ttls, xfrmpy.eap.peap, xfrmpy.ike.tls_trust\n"
        "assert 'OpenSSL' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def _tunnel_of(end: EapPeer | EapServer) -> Tunnel:
    method: Any = end._method
    tunnel = method._tunnel
    assert isinstance(tunnel, Tunnel)
    return tunnel
