"""Attributes within a tunnel of EAP-TTLS: Diameter's AVPs with RADIUS's numbers (RFC 5281 10).

A code, flags, a length that counts the head, the vendor if V is set, and the data, with zeros up to
a multiple of four octets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from struct import Struct

from xfrmpy.eap.packet import EapMalformed

MAX_AVPS = 64
"""Of one message, ours; the longest that is usual has three."""

_HEAD = Struct(">II")
_VENDOR = 0x80
_MANDATORY = 0x40
_LENGTH = 0xFFFFFF
_MICROSOFT = 311


class AvpType(Enum):
    """Vendor (0 is the IETF) and code, of those that are known here (RFC 2865, 3579, 2548)."""

    USER_NAME = (0, 1)
    USER_PASSWORD = (0, 2)
    REPLY_MESSAGE = (0, 18)
    EAP_MESSAGE = (0, 79)
    MS_CHAP_ERROR = (_MICROSOFT, 2)
    MS_CHAP_CHALLENGE = (_MICROSOFT, 11)
    MS_CHAP2_RESPONSE = (_MICROSOFT, 25)
    MS_CHAP2_SUCCESS = (_MICROSOFT, 26)


@dataclass(frozen=True, slots=True)
class Avp:
    """One attribute. `data` may be a password."""

    type: AvpType
    data: bytes = field(repr=False)

    def encode(self) -> bytes:
        vendor, code = self.type.value
        inside = (vendor.to_bytes(4) if vendor else b"") + self.data
        flags = _MANDATORY | (_VENDOR if vendor else 0)
        length = _HEAD.size + len(inside)
        return _HEAD.pack(code, flags << 24 | length) + inside + bytes(-length % 4)


def encode_avps(avps: Iterable[Avp]) -> bytes:
    """All of them, one behind the other."""
    return b"".join(avp.encode() for avp in avps)


def decode_avps_untrusted(octets: bytes) -> tuple[Avp, ...]:
    """Those that are known, in their order. Raises `EapMalformed`, also for M and unknown."""
    avps = []
    for number, (kind, is_mandatory, data) in enumerate(_elements(octets)):
        if number >= MAX_AVPS:
            raise EapMalformed(f"more than {MAX_AVPS} AVPs")
        try:
            avps.append(Avp(AvpType(kind), data))
        except ValueError as error:
            if is_mandatory:
                raise EapMalformed("a mandatory AVP {}/{} is unknown".format(*kind)) from error
    return tuple(avps)


def _elements(octets: bytes) -> Iterator[tuple[tuple[int, int], bool, bytes]]:
    """Vendor and code, whether M is set, data. The last one may lack its zeros."""
    while octets:
        if len(octets) < _HEAD.size:
            raise EapMalformed("an AVP ends in its head")
        code, word = _HEAD.unpack_from(octets)
        flags, length = word >> 24, word & _LENGTH
        start = _HEAD.size + (4 if flags & _VENDOR else 0)
        if not start <= length <= len(octets):
            raise EapMalformed(f"an AVP of {length} octets, where {len(octets)} are left")
        vendor = int.from_bytes(octets[_HEAD.size : start])
        yield (vendor, code), bool(flags & _MANDATORY), octets[start:length]
        octets = octets[length + -length % 4 :]
