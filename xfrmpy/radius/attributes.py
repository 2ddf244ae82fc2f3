"""The attributes of RADIUS that we write or read, by number, and how values go into them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from xfrmpy.registry import Registry

MAX_VALUE = 253
"""Octets of a value (RFC 2865 section 5)."""

MICROSOFT = 311
"""The SMI number of RFC 2548."""


class Code(Registry):
    """IANA "RADIUS Packet Type Codes", those of a client."""

    ACCESS_REQUEST = 1
    ACCESS_ACCEPT = 2
    ACCESS_REJECT = 3
    ACCOUNTING_REQUEST = 4
    ACCOUNTING_RESPONSE = 5
    ACCESS_CHALLENGE = 11


class Kind(Registry):
    """IANA "RADIUS Attribute Types", those that have a use here."""

    USER_NAME = 1
    NAS_IP_ADDRESS = 4
    SERVICE_TYPE = 6
    FRAMED_IP_ADDRESS = 8
    FRAMED_MTU = 12
    REPLY_MESSAGE = 18
    STATE = 24
    CLASS = 25
    VENDOR_SPECIFIC = 26
    SESSION_TIMEOUT = 27
    IDLE_TIMEOUT = 28
    TERMINATION_ACTION = 29
    CALLED_STATION_ID = 30
    CALLING_STATION_ID = 31
    NAS_IDENTIFIER = 32
    PROXY_STATE = 33
    ACCT_STATUS_TYPE = 40
    ACCT_DELAY_TIME = 41
    ACCT_INPUT_OCTETS = 42
    ACCT_OUTPUT_OCTETS = 43
    ACCT_SESSION_ID = 44
    ACCT_AUTHENTIC = 45
    ACCT_SESSION_TIME = 46
    ACCT_INPUT_PACKETS = 47
    ACCT_OUTPUT_PACKETS = 48
    ACCT_TERMINATE_CAUSE = 49
    ACCT_INPUT_GIGAWORDS = 52
    ACCT_OUTPUT_GIGAWORDS = 53
    EVENT_TIMESTAMP = 55
    NAS_PORT_TYPE = 61
    EAP_MESSAGE = 79
    MESSAGE_AUTHENTICATOR = 80
    ACCT_INTERIM_INTERVAL = 85
    NAS_IPV6_ADDRESS = 95
    FRAMED_IPV6_PREFIX = 97
    FRAMED_IPV6_ADDRESS = 168


class MicrosoftKind(Registry):
    """RFC 2548 section 2.4."""

    MPPE_SEND_KEY = 16
    MPPE_RECV_KEY = 17


AttributeType: TypeAlias = int | tuple[int, int]
"""A number of `Kind`, or a vendor and his number."""

NAS_PORT_VIRTUAL = 5
"""RFC 2865 section 5.41."""

SERVICE_FRAMED = 2
"""RFC 2865 section 5.6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One attribute; the value may be a secret."""

    type: AttributeType
    value: bytes = field(repr=False)

    @classmethod
    def text(cls, kind: Kind, value: str | bytes) -> Attribute:
        """Cut where it does not fit, for a name that is too long is no reason to say nothing."""
        octets = value.encode() if isinstance(value, str) else value
        return cls(type=kind, value=octets[:MAX_VALUE])

    @classmethod
    def number(cls, kind: Kind, value: int) -> Attribute:
        """An integer of 32 bits (RFC 2865 section 5)."""
        return cls(type=kind, value=value.to_bytes(4, "big"))

    @classmethod
    def of_address(
        cls, kind: Kind, kind_of_6: Kind, address: IPv4Address | IPv6Address
    ) -> Attribute:
        return cls(type=kind if address.version == 4 else kind_of_6, value=address.packed)


def eap_attributes(packet: bytes) -> Iterator[Attribute]:
    """An EAP packet in as many attributes as it takes (RFC 3579 section 3.1)."""
    for start in range(0, len(packet), MAX_VALUE):
        yield Attribute(type=Kind.EAP_MESSAGE, value=packet[start : start + MAX_VALUE])


def values_of(attributes: Iterable[Attribute], wanted: AttributeType) -> tuple[bytes, ...]:
    """The values of one type, in their order."""
    return tuple(each.value for each in attributes if each.type == wanted)


def split_untrusted(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Types and values of the attributes in these octets, all of them.

    Raises `ValueError` where a length is not right (RFC 2865 section 5: such a packet is rejected
    or discarded).
    """
    at = 0
    while at < len(octets):
        length = octets[at + 1] if at + 1 < len(octets) else 0
        if length < 2 or at + length > len(octets):
            raise ValueError(f"an attribute at octet {at} has a length of {length}")
        yield octets[at], octets[at + 2 : at + length]
        at += length
