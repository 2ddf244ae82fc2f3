"""Peer and server with each method: who comes in, who does not, and nobody before his time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.eap.parties import USERS, numbered
from xfrmpy.eap.gtc import GtcPeer, GtcServer
from xfrmpy.eap.md5 import Md5Peer, Md5Server
from xfrmpy.eap.method import MAX_ROUNDS, EapFailed
from xfrmpy.eap.mschapv2 import Mschapv2Peer, Mschapv2Server, OpCode
from xfrmpy.eap.packet import (
    MAX_PACKET,
    EapCode,
    EapMalformed,
    EapPacket,
    EapType,
    decode_eap_untrusted,
)
from xfrmpy.eap.peer import EapPeer, PeerState
from xfrmpy.eap.server import EapServer, ServerState

ALICE = USERS[b"alice"]
T = EapType
METHODS = [T.MD5_CHALLENGE, T.MSCHAPV2, T.GTC]
SUCCESS = EapPacket(code=EapCode.SUCCESS, identifier=1).encode()


def peer(
    *kinds: EapType, user: bytes = b"alice", password: str = ALICE, identity: bytes = b""
) -> EapPeer:
    make: dict[EapType, Any] = {
        T.MD5_CHALLENGE: partial(Md5Peer, password),
        T.MSCHAPV2: partial(Mschapv2Peer, user, password, numbered("peer")),
        T.GTC: partial(GtcPeer, password),
    }
    return EapPeer(identity or user, [make[kind] for kind in kinds])


def server(*kinds: EapType, users: dict[bytes, str] = USERS) -> EapServer:
    random = numbered("server")
    make: dict[EapType, Any] = {
        T.MD5_CHALLENGE: lambda user: Md5Server(user, users.get, random),
        T.MSCHAPV2: lambda _: Mschapv2Server(b"gw.example.net", users.get, random),
        T.GTC: lambda user: GtcServer(user, users.get),
    }
    return EapServer([make[kind] for kind in kinds], first_id=250)


def run(ours: EapPeer, theirs: EapServer) -> Iterator[bytes]:
    """What is said, in turn, the server first."""
    request = theirs.begin()
    while True:
        yield request
        response = ours.handle(request)
        if response is None:
            return
        yield response
        request = theirs.handle(response)


@pytest.mark.parametrize("kind", METHODS)
def test_who_knows_the_password_comes_in(kind: EapType) -> None:
    ours, theirs = peer(kind), server(kind)
    said = list(run(ours, theirs))
    assert decode_eap_untrusted(said[-1]).code is EapCode.SUCCESS
    assert (ours.state, theirs.state) == (PeerState.SUCCEEDED, ServerState.SUCCEEDED)
    assert ours.outcome is not None
    assert theirs.outcome is not None
    assert (theirs.outcome.identity, theirs.outcome.method) == (b"alice", kind)
    assert ours.outcome.msk == theirs.outcome.msk
    assert len(ours.outcome.msk) == (64 if kind == T.MSCHAPV2 else 0)


def test_two_authentications_have_two_keys() -> None:
    random = numbered("one stream")

    def once() -> bytes:
        ours = EapPeer(b"alice", [lambda: Mschapv2Peer(b"alice", ALICE, random)])
        theirs = EapServer([lambda _: Mschapv2Server(b"gw", USERS.get, random)], 0)
        list(run(ours, theirs))
        assert ours.outcome is not None
        return ours.outcome.msk

    assert once() != once()


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(
    ("user", "password"),
    [(b"alice", "wrong horse"), (b"mallory", ALICE), (b"alice", ""), (b"carol", "")],
)
def test_who_does_not_is_refused_and_told_nothing_else(
    kind: EapType, user: bytes, password: str
) -> None:
    """An unknown user is refused like a wrong password, and an empty one is none."""
    ours, theirs = peer(kind, user=user, password=password), server(kind)
    said: list[bytes] = []
    with pytest.raises(EapFailed):
        said.extend(run(ours, theirs))
    assert theirs.state is ServerState.FAILED
    assert theirs.outcome is ours.outcome is None
    assert theirs.failure
    assert password == "" or password not in theirs.failure


@pytest.mark.parametrize("kind", METHODS)
def test_success_at_any_step_but_the_last_fails(kind: EapType) -> None:
    """CVE-2015-8023, CVE-2021-45079: nobody gets in, and no server is believed, by a word."""
    steps = len(list(run(peer(kind), server(kind)))) // 2
    for step in range(steps):
        ours, theirs = peer(kind), server(kind)
        request = theirs.begin()
        for _ in range(step):
            response = ours.handle(request)
            assert response is not None
            request = theirs.handle(response)
        with pytest.raises(EapFailed, match="before anything is proved"):
            ours.handle(SUCCESS)
        assert ours.state is PeerState.FAILED
        assert ours.outcome is None
        with pytest.raises(EapFailed):
            ours.handle(request)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("code", [EapCode.SUCCESS, EapCode.FAILURE, EapCode.REQUEST])
def test_a_server_takes_responses_alone(kind: EapType, code: EapCode) -> None:
    theirs = server(kind)
    request = decode_eap_untrusted(theirs.begin())
    kind_of = T.IDENTITY if code is EapCode.REQUEST else None
    packet = EapPacket(code=code, identifier=request.identifier, type=kind_of)
    answer = decode_eap_untrusted(theirs.handle(packet.encode()))
    assert answer.code is EapCode.FAILURE
    assert theirs.outcome is None


def test_a_peer_that_skips_to_the_end_of_mschapv2_is_refused() -> None:
    """CVE-2021-45079's other half: the acknowledgement without a response that was right."""
    for code in (OpCode.SUCCESS, OpCode.FAILURE):
        ours, theirs = peer(T.MSCHAPV2), server(T.MSCHAPV2)
        identity = ours.handle(theirs.begin())
        assert identity is not None
        request = decode_eap_untrusted(theirs.handle(identity))
        skipped = EapPacket(
            code=EapCode.RESPONSE,
            identifier=request.identifier,
            type=T.MSCHAPV2,
            data=bytes([code]),
        )
        assert decode_eap_untrusted(theirs.handle(skipped.encode())).code is EapCode.FAILURE
        assert theirs.outcome is None


def test_a_refused_peer_cannot_acknowledge_a_success() -> None:
    ours, theirs = peer(T.MSCHAPV2, password="wrong"), server(T.MSCHAPV2)
    request = theirs.begin()
    for _ in range(2):
        response = ours.handle(request)
        assert response is not None
        request = theirs.handle(response)
    refusal = decode_eap_untrusted(request)
    assert refusal.data[0] == OpCode.FAILURE
    assert b"E=691 R=0" in refusal.data
    acknowledged = EapPacket(
        code=EapCode.RESPONSE, identifier=refusal.identifier, type=T.MSCHAPV2, data=b"\x03"
    )
    assert decode_eap_untrusted(theirs.handle(acknowledged.encode())).code is EapCode.FAILURE


def test_a_refused_peer_does_not_try_another_password() -> None:
    """Nor another response to the same challenge, however right it is."""
    wrong, right, theirs = (
        peer(T.MD5_CHALLENGE, password="wrong"),
        peer(T.MD5_CHALLENGE),
        server(T.MD5_CHALLENGE),
    )
    request = theirs.begin()
    identity = wrong.handle(request)
    assert identity is not None
    right.handle(request)
    challenge = theirs.handle(identity)
    for ours in (wrong, right):
        response = ours.handle(challenge)
        assert response is not None
        assert decode_eap_untrusted(theirs.handle(response)).code is EapCode.FAILURE
    assert theirs.outcome is None


def test_a_response_to_another_challenge_of_mschapv2_is_none() -> None:
    """By its own number, which stands in each packet beside the identifier of EAP."""
    ours, theirs = peer(T.MSCHAPV2), server(T.MSCHAPV2)
    identity = ours.handle(theirs.begin())
    assert identity is not None
    response = ours.handle(theirs.handle(identity))
    assert response is not None
    changed = response[:6] + bytes([response[6] ^ 1]) + response[7:]
    assert decode_eap_untrusted(theirs.handle(changed)).code is EapCode.FAILURE
    assert "no answer to the challenge" in theirs.failure


def test_a_server_that_does_not_know_the_password_is_not_believed() -> None:
    """It says that the response is right; it cannot prove that it knows why."""
    ours, theirs = peer(T.MSCHAPV2), server(T.MSCHAPV2, users={b"alice": "something else"})
    request = theirs.begin()
    for _ in range(2):
        response = ours.handle(request)
        assert response is not None
        request = theirs.handle(response)
    refusal = decode_eap_untrusted(request)
    body = b"S=" + b"0" * 40 + b" M=OK"
    data = bytes([OpCode.SUCCESS, refusal.data[1]]) + (4 + len(body)).to_bytes(2, "big") + body
    claim = EapPacket(
        code=EapCode.REQUEST, identifier=refusal.identifier, type=T.MSCHAPV2, data=data
    )
    with pytest.raises(EapFailed, match="does not know the password"):
        ours.handle(claim.encode())
    with pytest.raises(EapFailed):
        ours.handle(SUCCESS)


def test_the_user_is_whom_the_method_proves_and_not_the_identity_before_it() -> None:
    ours = peer(T.MSCHAPV2, user=b"DOMAIN\\bob", password="battery staple", identity=b"alice")
    theirs = server(T.MSCHAPV2)
    list(run(ours, theirs))
    assert theirs.identity == b"alice"
    assert theirs.outcome is not None
    assert theirs.outcome.identity == b"DOMAIN\\bob"


@pytest.mark.parametrize(
    ("known", "offered", "chosen"),
    [
        ([T.GTC], METHODS, T.GTC),
        ([T.MSCHAPV2, T.GTC], [T.MD5_CHALLENGE, T.GTC, T.MSCHAPV2], T.GTC),
        ([T.MSCHAPV2], [T.MD5_CHALLENGE], None),
        ([], [T.MD5_CHALLENGE], None),
        ([T.GTC], [], None),
    ],
)
def test_a_peer_asks_for_what_it_knows_and_gets_it_if_it_is_there(
    known: list[EapType], offered: list[EapType], chosen: EapType | None
) -> None:
    ours, theirs = peer(*known), server(*offered)
    if chosen is None:
        with pytest.raises(EapFailed, match="refuses us"):
            list(run(ours, theirs))
        return
    list(run(ours, theirs))
    assert theirs.outcome is not None
    assert theirs.outcome.method == chosen


def test_a_nak_amid_a_method_is_none() -> None:
    ours, theirs = peer(T.MSCHAPV2), server(T.MSCHAPV2, T.GTC)
    request = theirs.begin()
    for _ in range(2):
        response = ours.handle(request)
        assert response is not None
        request = theirs.handle(response)
    identifier = decode_eap_untrusted(request).identifier
    nak = EapPacket(code=EapCode.RESPONSE, identifier=identifier, type=T.NAK, data=bytes([T.GTC]))
    assert decode_eap_untrusted(theirs.handle(nak.encode())).code is EapCode.FAILURE


def test_naks_without_an_end_come_to_one() -> None:
    theirs = server(*METHODS)
    ours = peer(T.GTC)
    response = ours.handle(theirs.begin())
    assert response is not None
    for _ in range(len(METHODS)):
        request = decode_eap_untrusted(theirs.handle(response))
        response = EapPacket(
            code=EapCode.RESPONSE, identifier=request.identifier, type=T.NAK, data=bytes(METHODS)
        ).encode()
    assert decode_eap_untrusted(theirs.handle(response)).code is EapCode.FAILURE


@pytest.mark.parametrize("amid", [False, True], ids=["at first", "amid a method"])
def test_no_type_that_is_not_offered_is_answered_or_taken(amid: bool) -> None:
    """The whole space of numbers, as a server's question and as a peer's answer."""
    known = {T.IDENTITY, T.NOTIFICATION, T.NAK, T.MSCHAPV2}
    for number in set(range(256)) - known:
        kind = T(number)
        ours, theirs = peer(T.MSCHAPV2), server(T.MSCHAPV2)
        request = theirs.begin()
        response = ours.handle(request)
        assert response is not None
        if amid:
            request = theirs.handle(response)
            response = ours.handle(request)
            assert response is not None
        asked, answered = decode_eap_untrusted(request), decode_eap_untrusted(response)
        strange = replace(asked, identifier=asked.identifier + 1, type=kind, data=b"\0" * 20)
        with contextlib.suppress(EapFailed):
            said = ours.handle(strange.encode())
            assert said is not None
            assert decode_eap_untrusted(said).type is T.NAK
        with contextlib.suppress(EapFailed):
            theirs.handle(replace(answered, type=kind, data=b"\0" * 20).encode())
        assert ours.outcome is theirs.outcome is None
        assert theirs.state is not ServerState.SUCCEEDED


@pytest.mark.parametrize("kind", METHODS)
def test_a_server_does_not_change_the_method(kind: EapType) -> None:
    ours, theirs = peer(*METHODS), server(kind)
    request = theirs.begin()
    for _ in range(2):
        response = ours.handle(request)
        assert response is not None
        request = theirs.handle(response)
    other = next(k for k in METHODS if k != kind)
    change = EapPacket(code=EapCode.REQUEST, identifier=9, type=other, data=b"\x01x")
    with pytest.raises(EapFailed, match="amid a method"):
        ours.handle(change.encode())


@pytest.mark.parametrize("kind", [T.MD5_CHALLENGE, T.GTC])
def test_a_second_question_of_one_answer_is_refused(kind: EapType) -> None:
    ours = peer(kind)
    question = EapPacket(code=EapCode.REQUEST, identifier=1, type=kind, data=b"\x04abcd").encode()
    assert ours.handle(question) is not None
    with pytest.raises(EapFailed):
        ours.handle(question)


def test_notifications_are_kept_and_answered_but_not_for_ever() -> None:
    ours = peer(T.GTC)
    note = EapPacket(
        code=EapCode.REQUEST, identifier=1, type=T.NOTIFICATION, data=b"x" * 1000
    ).encode()
    for _ in range(MAX_ROUNDS):
        answer = ours.handle(note)
        assert answer is not None
        assert decode_eap_untrusted(answer).data == b""
    assert {len(kept) for kept in ours.notes} == {253}
    with pytest.raises(EapFailed, match=f"more than {MAX_ROUNDS}"):
        ours.handle(note)


def test_another_identifier_is_no_answer() -> None:
    theirs = server(T.GTC)
    request = decode_eap_untrusted(theirs.begin())
    answer = EapPacket(
        code=EapCode.RESPONSE,
        identifier=(request.identifier + 1) % 256,
        type=T.IDENTITY,
        data=b"alice",
    )
    assert decode_eap_untrusted(theirs.handle(answer.encode())).code is EapCode.FAILURE


@pytest.mark.parametrize("size", [0, 254, 1000])
def test_an_identity_has_a_size(size: int) -> None:
    theirs = server(T.GTC)
    request = decode_eap_untrusted(theirs.begin())
    answer = EapPacket(
        code=EapCode.RESPONSE, identifier=request.identifier, type=T.IDENTITY, data=b"x" * size
    )
    assert decode_eap_untrusted(theirs.handle(answer.encode())).code is EapCode.FAILURE


# Octets of anybody's.


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x01\x01\x00",
        b"\x01\x01\x00\x04",  # a request without a type
        b"\x01\x01\x00\x06\x01",  # cut off
        b"\x01\x01\x00\x05\x01\x00",  # with more behind
        b"\x01\x01\x00\x00\x01",
        b"\x03\x01\x00\x05\x00",  # a success with data
        b"\x05\x01\x00\x04",
        b"\x00\x01\x00\x04",
        b"\x01\x01\xff\xff" + bytes(65531),
        b"\x01\x01" + (MAX_PACKET + 1).to_bytes(2, "big") + bytes(MAX_PACKET - 3),
    ],
)
def test_what_is_no_packet_is_malformed(octets: bytes) -> None:
    with pytest.raises(EapMalformed):
        decode_eap_untrusted(octets)


@given(st.binary(max_size=80))
def test_whatever_decodes_comes_back(octets: bytes) -> None:
    try:
        packet = decode_eap_untrusted(octets)
    except EapMalformed:
        return
    assert packet.encode() == octets


@pytest.mark.parametrize("kind", METHODS)
@given(data=st.binary(max_size=100), step=st.integers(0, 3))
def test_no_octets_bring_down_a_peer_or_let_a_server_in(
    kind: EapType, data: bytes, step: int
) -> None:
    ours, theirs = peer(kind), server(kind)
    request = theirs.begin()
    for _ in range(step):
        response = ours.handle(request)
        if response is None:
            return
        request = theirs.handle(response)
    packet = EapPacket(code=EapCode.REQUEST, identifier=1, type=kind, data=data)
    try:
        ours.handle(packet.encode())
        ours.handle(SUCCESS)
    except EapFailed:
        assert ours.outcome is None
    else:
        assert kind != T.MSCHAPV2, "only who knows the password gets so far"


@pytest.mark.parametrize("kind", METHODS)
@given(data=st.binary(max_size=100), step=st.integers(1, 3))
def test_no_octets_bring_down_a_server_or_let_a_peer_in(
    kind: EapType, data: bytes, step: int
) -> None:
    ours, theirs = peer(kind, password="wrong"), server(kind)
    request = theirs.begin()
    for _ in range(step):
        try:
            response = ours.handle(request)
        except EapFailed:
            return
        assert response is not None
        request = theirs.handle(response)
    packet = EapPacket(
        code=EapCode.RESPONSE,
        identifier=decode_eap_untrusted(request).identifier,
        type=kind,
        data=data,
    )
    answer = decode_eap_untrusted(theirs.handle(packet.encode()))
    assert answer.code in (EapCode.FAILURE, EapCode.REQUEST)
    assert theirs.outcome is None


@pytest.mark.parametrize("change", [-50, -1, 1, 50, 60000])
@pytest.mark.parametrize("at", [5, 7, 9])
def test_the_lengths_of_mschapv2_are_what_they_say(change: int, at: int) -> None:
    """The outer length, the size of the value, and what is between them (CVE-2025-62291)."""
    ours, theirs = peer(T.MSCHAPV2), server(T.MSCHAPV2)
    response = ours.handle(theirs.begin())
    assert response is not None
    response = ours.handle(theirs.handle(response))
    assert response is not None
    octets = bytearray(response)
    if at == 7:
        octets[7:9] = max(0, int.from_bytes(octets[7:9], "big") + change).to_bytes(4, "big")[2:]
    else:
        octets[at] = (octets[at] + change) % 256
    if bytes(octets) == response:
        return
    assert decode_eap_untrusted(theirs.handle(bytes(octets))).code is EapCode.FAILURE
    assert theirs.outcome is None


def test_no_password_is_in_a_representation() -> None:
    ours, theirs = peer(T.MSCHAPV2), server(T.MSCHAPV2)
    said = list(run(ours, theirs))
    shown = repr([decode_eap_untrusted(octets) for octets in said])
    shown += repr([ours, theirs, ours.outcome, theirs.outcome])
    assert ours.outcome is not None
    assert ALICE not in shown
    assert repr(ours.outcome.msk[:16])[2:-1] not in shown
