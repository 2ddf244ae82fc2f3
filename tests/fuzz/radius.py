"""What a RADIUS server may send, or whoever can answer in its place.

The first octet of an input chooses: the rest is a datagram as it comes, or the attributes of one
that is made genuine, so that what stands behind the authenticators is reached. A finding is any
exception but a refusal, and a grant without an EAP success.
"""

from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress
from enum import IntEnum
from ipaddress import ip_address

from tests.fuzz.findings import Finding
from tests.radius.replies import ANSWER, CHALLENGE, IDENTITY, SECRET, SUCCESS, asked, reply
from xfrmpy.eap.packet import EapCode, decode_eap_untrusted
from xfrmpy.radius.attributes import Code, Kind
from xfrmpy.radius.login import Grant, Login, LoginFailed, Nas
from xfrmpy.radius.packet import ReplyRefused, decode_reply_untrusted

_NAS = Nas(identifier="gw", our_address=ip_address("192.0.2.9"))
_KEY = bytes(range(32))


class Form(IntEnum):
    """What the octets are."""

    DATAGRAM = 0
    CHALLENGE = 1
    ACCEPT = 2
    REJECT = 3


_CODES = {
    Form.CHALLENGE: Code.ACCESS_CHALLENGE,
    Form.ACCEPT: Code.ACCESS_ACCEPT,
    Form.REJECT: Code.ACCESS_REJECT,
}


def decode_radius(data: bytes) -> None:
    """Everything of `radius` that looks at octets of others."""
    form, octets = Form(data[0] % len(Form)) if data else Form.DATAGRAM, data[1:]
    if form is not Form.DATAGRAM:
        octets = genuine(_CODES[form], octets)
    with suppress(ReplyRefused, LoginFailed):
        found = decode_reply_untrusted(octets, asked())
        login = Login(_NAS)
        login.request(IDENTITY)
        if found.code is not Code.ACCESS_CHALLENGE:
            first = decode_reply_untrusted(
                reply(asked(), Code.ACCESS_CHALLENGE, eap=CHALLENGE), asked()
            )
            login.handle(0, first)
        judged = login.handle(0, found)
        if isinstance(judged, Grant):
            assert judged.groups is not None
            if decode_eap_untrusted(judged.eap).code is not EapCode.SUCCESS:
                raise Finding("a grant without an EAP success")
        else:
            login.request(ANSWER)


def genuine(code: Code, attributes: bytes) -> bytes:
    """An answer to `asked()` with these attributes, and both authenticators right (RFC 3579)."""
    length = (20 + 18 + len(attributes)) & 0xFFFF
    head = bytes([code, 7]) + length.to_bytes(2, "big")
    kind = bytes([Kind.MESSAGE_AUTHENTICATOR, 18])
    blank = head + asked().authenticator + kind + bytes(16) + attributes
    signed = kind + hmac.digest(SECRET, blank, "md5") + attributes
    proof = hashlib.md5(head + asked().authenticator + signed + SECRET).digest()
    return head + proof + signed


def radius_seeds() -> dict[str, bytes]:
    """One of each form, with every attribute that is read."""
    accept = reply(
        asked(),
        Code.ACCESS_ACCEPT,
        [
            (Kind.USER_NAME, b"alice"),
            (Kind.CLASS, b"staff"),
            (Kind.FRAMED_IP_ADDRESS, bytes([10, 9, 0, 7])),
            (Kind.FRAMED_IPV6_ADDRESS, bytes(16)),
            (Kind.FRAMED_IPV6_PREFIX, bytes.fromhex("003020010db80001")),
            (Kind.SESSION_TIMEOUT, bytes(4)),
            (Kind.TERMINATION_ACTION, bytes(4)),
            (Kind.ACCT_INTERIM_INTERVAL, bytes(4)),
            (Kind.REPLY_MESSAGE, b"welcome"),
        ],
        eap=SUCCESS,
        keys=(_KEY, _KEY),
    )
    challenge = reply(asked(), Code.ACCESS_CHALLENGE, [(Kind.STATE, b"s")], eap=CHALLENGE)
    rejected = reply(asked(), Code.ACCESS_REJECT, [(Kind.REPLY_MESSAGE, b"no")])
    packets = {Form.CHALLENGE: challenge, Form.ACCEPT: accept, Form.REJECT: rejected}
    return {
        "datagram": bytes([Form.DATAGRAM]) + accept,
        **{
            form.name.lower(): bytes([form]) + octets[20:].replace(octets[20:38], b"", 1)
            for form, octets in packets.items()
        },
    }
