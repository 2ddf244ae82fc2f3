"""What a RADIUS server would answer, made with pyrad from the request as it was sent."""

from __future__ import annotations

from collections.abc import Sequence

from pyrad.packet import AcctPacket, AuthPacket

from xfrmpy.eap.packet import EapCode, EapPacket, EapType
from xfrmpy.radius.attributes import MICROSOFT, Code, MicrosoftKind, eap_attributes
from xfrmpy.radius.packet import SentRequest, access_request

SECRET = b"xyzzy5461"
IDENTITY = EapPacket(
    code=EapCode.RESPONSE, identifier=1, type=EapType.IDENTITY, data=b"alice"
).encode()
CHALLENGE = EapPacket(
    code=EapCode.REQUEST, identifier=2, type=EapType.MD5_CHALLENGE, data=b"\x01?"
).encode()
ANSWER = EapPacket(
    code=EapCode.RESPONSE, identifier=2, type=EapType.MD5_CHALLENGE, data=b"\x01!"
).encode()
SUCCESS = EapPacket(code=EapCode.SUCCESS, identifier=2).encode()
FAILURE = EapPacket(code=EapCode.FAILURE, identifier=2).encode()


def asked(identifier: int = 7) -> SentRequest:
    """Some Access-Request."""
    return access_request(identifier, bytes(range(16)), SECRET, list(eap_attributes(IDENTITY)))


def reply(
    request: SentRequest | bytes,
    code: Code,
    attributes: Sequence[tuple[int, bytes]] = (),
    *,
    eap: bytes = b"",
    keys: Sequence[bytes] = (),
    secret: bytes = SECRET,
    signed: bool = True,
) -> bytes:
    """A genuine one; `keys` are for sending and for receiving."""
    octets = request if isinstance(request, bytes) else request.octets
    if octets[0] == Code.ACCOUNTING_REQUEST:
        made = AcctPacket(packet=octets, secret=secret).CreateReply()
    else:
        asked_packet = AuthPacket(packet=octets, secret=secret)
        made = asked_packet.CreateReply(message_authenticator=signed)
    made.code = int(code)
    for kind, value in (*attributes, *((79, each.value) for each in eap_attributes(eap))):
        made.setdefault(kind, []).append(value)
    kinds = (MicrosoftKind.MPPE_SEND_KEY, MicrosoftKind.MPPE_RECV_KEY)
    for kind, key in zip(kinds, keys, strict=False):
        made.setdefault((MICROSOFT, int(kind)), []).append(made.SaltCrypt(key))
    done: bytes = made.ReplyPacket()
    return done
