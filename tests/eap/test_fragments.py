"""TLS messages in pieces: put together as they were, acknowledged, and with limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.eap.fragments import (
    MAX_MESSAGE,
    MAX_PIECE,
    MAX_PIECES,
    Conversation,
    Flag,
    Piece,
    decode_piece_untrusted,
)
from xfrmpy.eap.method import EapFailed
from xfrmpy.eap.packet import EapMalformed

ACKNOWLEDGEMENT = Piece()


def piece(data: bytes, *, more: bool = False, total: int | None = None) -> Piece:
    return Piece(flags=Flag.MORE if more else Flag(0), data=data, total=total)


def whole(_message: bytes) -> bytes:
    raise AssertionError("the message is not whole")


@given(st.binary(min_size=1, max_size=5 * MAX_PIECE), st.binary(max_size=5 * MAX_PIECE))
def test_messages_arrive_as_they_were_in_pieces_that_every_end_takes(
    question: bytes, answer: bytes
) -> None:
    ours, theirs = Conversation(), Conversation()
    arrived: list[bytes] = []

    def take(message: bytes) -> bytes:
        arrived.append(message)
        return answer

    def end(message: bytes) -> bytes:
        arrived.append(message)
        return b""

    said = ours.exchange(ACKNOWLEDGEMENT, lambda _: question)
    while len(arrived) < 2:
        assert len(said) <= 1 + 4 + MAX_PIECE
        said = theirs.exchange(decode_piece_untrusted(said), take)
        assert len(said) <= 1 + 4 + MAX_PIECE
        said = ours.exchange(decode_piece_untrusted(said), end)
    assert arrived == [question, answer]
    assert not ours.has_more
    assert not theirs.has_more


def test_the_first_piece_of_several_alone_says_how_long_the_message_is() -> None:
    conversation = Conversation()
    message = bytes(2 * MAX_PIECE + 1)
    first = decode_piece_untrusted(conversation.exchange(ACKNOWLEDGEMENT, lambda _: message))
    second = decode_piece_untrusted(conversation.exchange(ACKNOWLEDGEMENT, whole))
    third = decode_piece_untrusted(conversation.exchange(ACKNOWLEDGEMENT, whole))
    assert [p.total for p in (first, second, third)] == [len(message), None, None]
    assert [bool(p.flags & Flag.MORE) for p in (first, second, third)] == [True, True, False]


def test_a_length_in_every_piece_is_taken_as_freeradius_sends_it() -> None:
    conversation = Conversation()
    assert conversation.exchange(piece(b"ab", more=True, total=3), whole) == b"\0"
    assert conversation.exchange(piece(b"c", total=3), lambda m: m + b"!") == b"\0abc!"


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([piece(b"abc", more=True, total=6), piece(b"d", total=7)], "changes its length"),
        ([piece(b"abc", more=True, total=6), piece(b"d")], "4 octets of a TLS message of 6"),
        ([piece(b"abc", more=True, total=6), piece(b"defg")], "7 octets of a TLS message of 6"),
        ([piece(b"abc", total=6)], "3 octets of a TLS message of 6"),
        ([piece(b"abc", more=True, total=MAX_MESSAGE + 1)], "more than"),
        ([piece(bytes(MAX_MESSAGE), more=True), piece(b"x", more=True)], "more than"),
        ([piece(b"x", more=True)] * (MAX_PIECES + 1), "more than"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(pieces: list[Piece], why: str) -> None:
    conversation = Conversation()
    *before, last = pieces
    for each in before:
        conversation.exchange(each, whole)
    with pytest.raises(EapFailed, match=why):
        conversation.exchange(last, whole)


def test_our_pieces_want_to_be_acknowledged() -> None:
    for answer in (piece(b"x"), piece(b"x", more=True), Piece(flags=Flag.START)):
        conversation = Conversation()
        conversation.exchange(ACKNOWLEDGEMENT, lambda _: bytes(MAX_PIECE + 1))
        with pytest.raises(EapFailed, match="not acknowledged"):
            conversation.exchange(answer, whole)


@pytest.mark.parametrize(
    "octets", [b"", b"\x80", b"\x80\0\0\0", b"\x40", b"\xc0\0\0\0\1", b"\x80\0\0\0\0x"]
)
def test_what_is_no_piece_is_malformed(octets: bytes) -> None:
    """A piece with M and without octets would make a message that never ends."""
    with pytest.raises(EapMalformed):
        decode_piece_untrusted(octets)


@given(st.binary(max_size=40))
def test_whatever_decodes_comes_back(octets: bytes) -> None:
    try:
        found = decode_piece_untrusted(octets)
    except EapMalformed:
        return
    unnamed = octets[0] & 0x18
    assert found.encode() == bytes([octets[0] & ~unnamed]) + octets[1:]


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_no_octets_bring_a_conversation_down(packets: list[bytes]) -> None:
    conversation = Conversation()
    for octets in packets:
        try:
            conversation.exchange(decode_piece_untrusted(octets), lambda m: m[:1])
        except (EapFailed, EapMalformed):
            return
