"""EAP packets (RFC 3748 section 4), octets to values and back.

IKEv2 carries each whole in a payload of its own (RFC 7296 section 3.16), so octets behind the end
are no padding of a link, as section 4 has them, but an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct

from xfrmpy.registry import Registry

MAX_PACKET = 4096
"""Octets. RFC 3748 section 3.1 asks for no more than 1020 to be taken."""

_HEADER = Struct(">BBH")


class EapMalformed(Exception):
    """The octets break the format; decoders raise nothing else."""


class EapCode(IntEnum):
    """RFC 3748 section 4."""

    REQUEST = 1
    RESPONSE = 2
    SUCCESS = 3
    FAILURE = 4


class EapType(Registry):
    """IANA "Extensible Authentication Protocol (EAP) Registry", those that have a name here."""

    IDENTITY = 1
    NOTIFICATION = 2
    NAK = 3
    MD5_CHALLENGE = 4
    OTP = 5
    GTC = 6
    TLS = 13
    SIM = 18
    TTLS = 21
    AKA = 23
    PEAP = 25
    MSCHAPV2 = 26
    EXTENSIONS = 33
    AKA_PRIME = 50
    EXPANDED = 254


@dataclass(frozen=True, slots=True, kw_only=True)
class EapPacket:
    """A request or a response of a type with its data; success and failure have neither.

    `data` may be a password.
    """

    code: EapCode
    identifier: int
    type: EapType | None = None
    data: bytes = field(default=b"", repr=False)

    def encode(self) -> bytes:
        inside = b"" if self.type is None else bytes([self.type]) + self.data
        return _HEADER.pack(self.code, self.identifier, _HEADER.size + len(inside)) + inside


def decode_eap_untrusted(octets: bytes) -> EapPacket:
    """The packet in these octets, all of them. Raises `EapMalformed`."""
    if not _HEADER.size <= len(octets) <= MAX_PACKET:
        raise EapMalformed(f"{len(octets)} octets are no EAP packet")
    number, identifier, length = _HEADER.unpack_from(octets)
    if length != len(octets):
        raise EapMalformed(f"a length of {length} for {len(octets)} octets")
    try:
        code = EapCode(number)
    except ValueError as error:
        raise EapMalformed(f"the code {number} is unknown") from error
    inside = octets[_HEADER.size :]
    if code in (EapCode.SUCCESS, EapCode.FAILURE):
        if inside:
            raise EapMalformed(f"{code.name} has data")
        return EapPacket(code=code, identifier=identifier)
    if not inside:
        raise EapMalformed(f"{code.name} has no type")
    return EapPacket(code=code, identifier=identifier, type=EapType(inside[0]), data=inside[1:])
