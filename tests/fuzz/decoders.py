"""Octets that anybody may send, given to what decodes them.

A finding is any exception but those that the decoder's contract names, and a value that does not
come back from the octets that it is encoded to.
"""

from __future__ import annotations

import contextlib
from enum import IntEnum

from tests.fuzz.findings import Finding
from tests.policy.test_fuzz import load_octets
from xfrmpy.control.protocol import TunnelStatus
from xfrmpy.control.values import Unfit, decode, parse_object
from xfrmpy.daemon.control_server import _decode_call
from xfrmpy.registry import PayloadType
from xfrmpy.wire.cursor import Cursor, Malformed
from xfrmpy.wire.header import HEADER_SIZE
from xfrmpy.wire.message import (
    decode_message_untrusted,
    decode_payloads_untrusted,
    encode_message,
    encode_payloads,
)
from xfrmpy.wire.payloads import (
    DECODERS,
    SEALED_DECODERS,
    Payload,
    SaPayload,
    TsiPayload,
    TsrPayload,
)


class Decoder(IntEnum):
    """What the first octet of an input chooses; the second is the type of the (first) payload."""

    MESSAGE = 0
    MESSAGE_OF_RIGHT_LENGTH = 1
    CHAIN = 2
    BODY = 3


def decode_wire(data: bytes) -> None:
    """Everything of `wire`. Raises `Finding`, or whatever a decoder should not raise."""
    kind, first, octets = Decoder(data[0] % len(Decoder)) if data else 0, data[1:2], data[2:]
    payload_type = PayloadType(first[0] if first else 0)
    try:
        match kind:
            case Decoder.MESSAGE:
                _decode_message(octets)
            case Decoder.MESSAGE_OF_RIGHT_LENGTH:
                _decode_message(octets[:24] + len(octets).to_bytes(4) + octets[HEADER_SIZE:])
            case Decoder.CHAIN:
                _decode_chain(payload_type, octets)
            case _:
                _decode_body(payload_type, octets)
    except Malformed:
        return


def _decode_message(octets: bytes) -> None:
    message = decode_message_untrusted(octets)
    if all(map(_can_be_sent, message.payloads)):
        _compare(message, decode_message_untrusted(encode_message(message)))


def _decode_chain(first: PayloadType, octets: bytes) -> None:
    payloads = decode_payloads_untrusted(first, octets)
    if all(map(_can_be_sent, payloads)):
        _compare(payloads, decode_payloads_untrusted(*encode_payloads(payloads)))


def _decode_body(kind: PayloadType, octets: bytes) -> None:
    payload = _payload(kind, octets)
    if payload is not None and _can_be_sent(payload):
        _compare(payload, _payload(kind, payload.encode_body()))


def _payload(kind: PayloadType, octets: bytes) -> Payload | None:
    cursor = Cursor(octets, "body")
    with cursor.nested(len(octets), kind.name):
        if kind in SEALED_DECODERS:
            return SEALED_DECODERS[kind](cursor, PayloadType.NONCE)
        if kind in DECODERS:
            return DECODERS[kind](cursor)
        cursor.rest()
    return None


def _can_be_sent(payload: Payload) -> bool:
    """False for what is kept only to be shown: it has not all of its octets."""
    match payload:
        case SaPayload():
            return not any(t.unknown_attributes for p in payload.proposals for t in p.transforms)
        case TsiPayload() | TsrPayload():
            return not payload.unknown
        case _:
            return True


def _compare(decoded: object, again: object) -> None:
    if decoded != again:
        raise Finding(f"{decoded!r} comes back as {again!r}")
    repr(decoded)


def decode_policy(data: bytes) -> None:
    """A policy file, which gives tunnels or errors and raises nothing."""
    load_octets(data)


def decode_control(data: bytes) -> None:
    """A call as the daemon reads it, and a tunnel as the command line reads it."""
    with contextlib.suppress(Unfit):
        _decode_call(data)
    with contextlib.suppress(Unfit):
        decode(TunnelStatus, parse_object(data))
