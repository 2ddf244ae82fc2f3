"""Messages as octets: round trips, what is unknown, and what is broken."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.datapath.kernel import events, sad, spd, structs
from xfrmpy.datapath.kernel.messages import (
    ATTRIBUTES,
    BODIES,
    XFRM,
    XFRM_UNREAD,
    Attribute,
    MessageType,
)
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message, split_attributes

KEY = bytes(range(20))
AEAD = {"alg_name": b"rfc4106(gcm(aes))", "alg_key_len": 160, "alg_icv_len": 128, "alg_key": KEY}
REPLAY = {"bmp_len": 2, "replay_window": 64, "bmp": bytes(range(8))}
TEMPLATES = ({"reqid": 1}, {"reqid": 2, "mode": 1})
FULL = Message(
    type=MessageType.NEWSA,
    body={"id_spi": 0x12345678, "reqid": 7},
    attributes={
        Attribute.ALG_AEAD: AEAD,
        Attribute.REPLAY_ESN_VAL: REPLAY,
        Attribute.TMPL: TEMPLATES,
        Attribute.SET_MARK: {"value": 0x5846},
        60: b"odd",
    },
)
OCTETS = XFRM.encode(FULL)
BODY = BODIES[MessageType.NEWSA].size


def test_a_message_comes_back() -> None:
    message = XFRM.decode(FULL.type, OCTETS)
    assert message.body["id_spi"] == 0x12345678
    assert message.attributes[Attribute.ALG_AEAD] == AEAD | {
        "alg_name": AEAD["alg_name"] + bytes(47)  # type: ignore[operator]
    }
    assert message.attributes[Attribute.REPLAY_ESN_VAL]["bmp"] == REPLAY["bmp"]
    assert [t["reqid"] for t in message.attributes[Attribute.TMPL]] == [1, 2]
    assert message.attributes[60] == b"odd"
    assert XFRM.encode(message) == OCTETS


def test_attributes_begin_at_multiples_of_four() -> None:
    assert len(OCTETS) % 4 == 0
    assert OCTETS.endswith(bytes.fromhex("0700 3c00") + b"odd\0")


def test_a_message_without_a_row_survives() -> None:
    message = XFRM.decode(0x20, b"whatever")
    assert message.octets == b"whatever"
    assert XFRM.encode(message) == b"whatever"


def test_octets_may_stand_in_the_place_of_values() -> None:
    packed = Message(
        type=FULL.type,
        octets=BODIES[FULL.type].pack(FULL.body),
        attributes=FULL.attributes
        | {Attribute.TMPL: b"".join(map(structs.USER_TMPL.pack, TEMPLATES))},
    )
    assert XFRM.encode(packed) == OCTETS


def test_a_message_that_is_left_unread_has_its_octets() -> None:
    message = XFRM_UNREAD.decode(FULL.type, OCTETS)
    assert (message.octets, message.body, message.attributes) == (OCTETS, {}, {})


def test_keys_are_not_shown() -> None:
    message = XFRM.decode(FULL.type, OCTETS)
    assert KEY.hex() not in repr(message)
    assert repr(KEY)[2:-1] not in repr(message)
    assert "rfc4106" not in repr(message)


@pytest.mark.parametrize("size", range(len(OCTETS) - 1))  # the last octet is padding
def test_a_message_cut_anywhere_is_unreadable_or_lacks_attributes(size: int) -> None:
    """Cut between two attributes, nothing tells."""
    try:
        message = XFRM.decode(FULL.type, OCTETS[:size])
    except UnreadableMessage:
        return
    assert XFRM.encode(message) == OCTETS[:size]


@pytest.mark.parametrize("number", ATTRIBUTES)
def test_an_attribute_that_is_cut_is_unreadable(number: int) -> None:
    size = ATTRIBUTES[number].layout.size - 1
    data = (4 + size).to_bytes(2, "little") + number.to_bytes(2, "little") + bytes(size + 1)
    with pytest.raises(UnreadableMessage):
        XFRM.decode(MessageType.NEWSA, bytes(BODY) + data)


@pytest.mark.parametrize("tail", [Attribute.ALG_AEAD, Attribute.REPLAY_ESN_VAL])
def test_a_key_or_bitmap_shorter_than_announced_is_unreadable(tail: Attribute) -> None:
    value = {Attribute.ALG_AEAD: {**AEAD, "alg_key": KEY[1:]}}.get(
        tail, {**REPLAY, "bmp": bytes(7)}
    )
    octets = XFRM.encode(Message(type=MessageType.NEWSA, attributes={tail: value}))
    with pytest.raises(UnreadableMessage, match="cut short"):
        XFRM.decode(MessageType.NEWSA, octets)


@pytest.mark.parametrize("length", [0, 3, 9, 0xFFFF])
def test_a_lying_length_of_an_attribute_is_unreadable(length: int) -> None:
    with pytest.raises(UnreadableMessage):
        split_attributes(length.to_bytes(2, "little") + bytes(6))


DECODERS = (
    sad.decode_sa,
    spd.decode_policy,
    events.decode_acquire,
    events.decode_expire,
    events.decode_mapping,
    events.decode_larval,
)
BODY_OF = {
    sad.decode_sa: MessageType.NEWSA,
    events.decode_larval: MessageType.NEWSA,
    spd.decode_policy: MessageType.NEWPOLICY,
    events.decode_acquire: MessageType.ACQUIRE,
    events.decode_expire: MessageType.EXPIRE,
    events.decode_mapping: MessageType.MAPPING,
}


@given(kind=st.sampled_from(MessageType), data=st.binary(max_size=600))
def test_no_octets_raise_anything_but_unreadable(kind: MessageType, data: bytes) -> None:
    with suppress(UnreadableMessage):
        XFRM.decode(kind, data)


@given(
    decode=st.sampled_from(DECODERS),
    fill=st.binary(min_size=300, max_size=300),
    flips=st.lists(st.integers(0, 299), max_size=8),
    attributes=st.dictionaries(st.integers(0, 41), st.binary(max_size=100), max_size=4),
)
def test_no_values_raise_anything_but_unreadable(
    decode: object, fill: bytes, flips: list[int], attributes: dict[int, bytes]
) -> None:
    kind = BODY_OF[decode]  # type: ignore[index]
    size = BODIES[kind].size
    body = bytearray(XFRM.encode(FULL)[:size].ljust(size, b"\0"))
    for place in flips:
        body[place % size] = fill[place]
    data = bytes(body) + b"".join(
        (len(value) + 4).to_bytes(2, "little")
        + number.to_bytes(2, "little")
        + value
        + bytes(-len(value) % 4)
        for number, value in attributes.items()
    )
    with suppress(UnreadableMessage):
        decode(XFRM.decode(kind, data))  # type: ignore[operator]
