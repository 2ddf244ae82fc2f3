"""Requests to octets, and octets to replies that are genuine: the shared secret's one place.

A reply counts only if it has what makes it one (RFC 2865 section 3, RFC 3579 section 3.2). An
Access-Request has a Message-Authenticator as its first attribute, and an answer to it without one
is refused, whatever its Response Authenticator: MD5 collisions make that one forgeable
(CVE-2024-3596).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pyrad.packet import AcctPacket, AuthPacket, Packet, PacketError

from xfrmpy.radius.attributes import (
    MICROSOFT,
    Attribute,
    AttributeType,
    Code,
    Kind,
    MicrosoftKind,
    split_untrusted,
)

MAX_PACKET = 4096
"""Octets (RFC 2865 section 3)."""

_HEADER = 20

_ANSWERS = {
    Code.ACCESS_REQUEST: {Code.ACCESS_ACCEPT, Code.ACCESS_REJECT, Code.ACCESS_CHALLENGE},
    Code.ACCOUNTING_REQUEST: {Code.ACCOUNTING_RESPONSE},
}


class Refusal(StrEnum):
    """Why a datagram is not believed to be a server's reply."""

    SOURCE = "not-from-the-server"
    MALFORMED = "malformed"
    NOT_ASKED = "not-asked"
    CODE = "no-answer-to-the-request"
    NO_MESSAGE_AUTHENTICATOR = "without-message-authenticator"
    PROXY_STATE = "with-proxy-state"
    NOT_GENUINE = "not-genuine"
    KEYS = "keys-not-readable"


class ReplyRefused(Exception):
    """The datagram is dropped; nothing is known of who sent it."""

    def __init__(self, reason: Refusal, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SentRequest:
    """A request as it went to a server, by which its reply is judged."""

    code: Code
    identifier: int
    authenticator: bytes
    secret: bytes = field(repr=False)
    octets: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A genuine reply; keys of MPPE in it are decrypted."""

    code: Code
    attributes: tuple[Attribute, ...]


def access_request(
    identifier: int, authenticator: bytes, secret: bytes, attributes: Sequence[Attribute]
) -> SentRequest:
    """`authenticator` is 16 octets that nobody can guess (RFC 2865 section 3)."""
    packet = AuthPacket(id=identifier, secret=secret, authenticator=authenticator)
    packet.add_message_authenticator()
    _fill(packet, attributes)
    return _sent(Code.ACCESS_REQUEST, packet)


def accounting_request(
    identifier: int, secret: bytes, attributes: Sequence[Attribute]
) -> SentRequest:
    """Its authenticator follows from all the rest (RFC 2866 section 3)."""
    packet = AcctPacket(id=identifier, secret=secret)
    _fill(packet, attributes)
    return _sent(Code.ACCOUNTING_REQUEST, packet)


def decode_reply_untrusted(octets: bytes, request: SentRequest) -> Reply:
    """What a server has answered to a request. Raises `ReplyRefused`."""
    octets = _whole(octets)
    code = Code(octets[0])
    if octets[1] != request.identifier:
        raise ReplyRefused(Refusal.NOT_ASKED)
    if code not in _ANSWERS[request.code]:
        raise ReplyRefused(Refusal.CODE, code.name)
    try:
        found = list(split_untrusted(octets[_HEADER:]))
    except ValueError as error:
        raise ReplyRefused(Refusal.MALFORMED, str(error)) from error
    _require_message_authenticator(request, found)
    if any(kind == Kind.PROXY_STATE for kind, _ in found):
        raise ReplyRefused(Refusal.PROXY_STATE)  # We send none: it is somebody's collision.
    _verify(octets, request)
    return Reply(code=code, attributes=tuple(_attribute(each, request) for each in found))


def _fill(packet: Packet, attributes: Sequence[Attribute]) -> None:
    for each in attributes:
        packet.setdefault(each.type, []).append(each.value)


def _sent(code: Code, packet: Packet) -> SentRequest:
    octets = packet.RequestPacket()
    if len(octets) > MAX_PACKET:
        raise ValueError(f"{len(octets)} octets are too long for RADIUS")
    return SentRequest(
        code=code,
        identifier=packet.id,
        authenticator=packet.authenticator,
        secret=packet.secret,
        octets=octets,
    )


def _whole(octets: bytes) -> bytes:
    """The packet without what is behind it, which is padding (RFC 2865 section 3)."""
    length = int.from_bytes(octets[2:4], "big")
    if not _HEADER <= length <= min(len(octets), MAX_PACKET):
        raise ReplyRefused(Refusal.MALFORMED, f"a length of {length} for {len(octets)} octets")
    return octets[:length]


def _require_message_authenticator(request: SentRequest, found: list[tuple[int, bytes]]) -> None:
    """RFC 3579 section 3.2: there is one, once; accounting may do without."""
    ours = [value for kind, value in found if kind == Kind.MESSAGE_AUTHENTICATOR]
    if not ours and request.code is Code.ACCESS_REQUEST:
        raise ReplyRefused(Refusal.NO_MESSAGE_AUTHENTICATOR)
    if len(ours) > 1 or any(len(value) != 16 for value in ours):
        raise ReplyRefused(Refusal.MALFORMED, "Message-Authenticator")


def _verify(octets: bytes, request: SentRequest) -> None:
    """Both authenticators; pyrad compares them in constant time."""
    packet = Packet(
        code=int(request.code),
        id=request.identifier,
        secret=request.secret,
        authenticator=request.authenticator,
    )
    try:
        reply = Packet(secret=request.secret, packet=octets)
    except PacketError as error:
        raise ReplyRefused(Refusal.MALFORMED, str(error)) from error
    needs = request.code is Code.ACCESS_REQUEST
    if not packet.VerifyReply(reply, octets, enforce_ma=needs):
        raise ReplyRefused(Refusal.NOT_GENUINE)


def _attribute(found: tuple[int, bytes], request: SentRequest) -> Attribute:
    kind, value = found
    if kind != Kind.VENDOR_SPECIFIC or int.from_bytes(value[:4], "big") != MICROSOFT:
        return Attribute(type=Kind(kind), value=value)
    try:
        inner = list(split_untrusted(value[4:]))
    except ValueError as error:
        raise ReplyRefused(Refusal.MALFORMED, str(error)) from error
    if len(inner) != 1:  # Nobody sends several in one, and none of ours has a use then.
        return Attribute(type=Kind.VENDOR_SPECIFIC, value=value)
    number, sealed = inner[0]
    type_: AttributeType = (MICROSOFT, number)
    is_key = number in (MicrosoftKind.MPPE_SEND_KEY, MicrosoftKind.MPPE_RECV_KEY)
    return Attribute(type=type_, value=_opened(sealed, request) if is_key else sealed)


def _opened(sealed: bytes, request: SentRequest) -> bytes:
    """A key of RFC 2548 section 2.4.2: a salt, and the key with its length, hidden by MD5."""
    hidden = Packet(secret=request.secret, authenticator=request.authenticator)
    hidden.request_authenticator = request.authenticator
    if len(sealed) < 18 or len(sealed) % 16 != 2:
        raise ReplyRefused(Refusal.KEYS, f"{len(sealed)} octets")
    key: bytes = hidden.SaltDecrypt(sealed)
    if not key:
        raise ReplyRefused(Refusal.KEYS, "an empty key")
    return key
