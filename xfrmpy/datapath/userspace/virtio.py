"""The header before each packet of a TUN device: what its sender has left undone.

It is `struct virtio_net_hdr` of linux/virtio_net.h in the legacy layout of 10 octets, in the host's
byte order. What is left undone is a checksum, or the cutting of a super-packet into segments.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

_HEADER = Struct("=BBHHHH")
SIZE = _HEADER.size

NEEDS_CHECKSUM = 0x01  # VIRTIO_NET_HDR_F_NEEDS_CSUM
_ECN = 0x80  # VIRTIO_NET_HDR_GSO_ECN: the first segment alone has CWR


class Segments(IntEnum):
    """What a super-packet is to be cut into (VIRTIO_NET_HDR_GSO_*)."""

    NONE = 0
    TCP_IPV4 = 1
    UDP_FRAGMENTS = 3
    TCP_IPV6 = 4
    UDP = 5


class Offload(NamedTuple):
    """`checksum_start` is where the sum begins, in octets of the packet, and `checksum_offset`
    where it is put, from there on; `segment_size` is the payload of each segment but the last.

    One is made for each packet that is read: as a frozen dataclass it took 1.3 us, so 0.4.
    """

    needs_checksum: bool = False
    segments: int = Segments.NONE
    header_size: int = 0
    segment_size: int = 0
    checksum_start: int = 0
    checksum_offset: int = 0
    has_ecn: bool = False


COMPLETE = Offload()

NOTHING = bytes(SIZE)
"""The header where nothing is left undone."""

_KNOWN = 256
"""Headers that are kept in either form: a stream has the same one over and over."""


@lru_cache(_KNOWN)
def encode_offload(offload: Offload) -> bytes:
    return _HEADER.pack(
        NEEDS_CHECKSUM if offload.needs_checksum else 0,
        offload.segments | (_ECN if offload.has_ecn else 0),
        offload.header_size,
        offload.segment_size,
        offload.checksum_start,
        offload.checksum_offset,
    )


def decode_offload(octets: bytes | bytearray | memoryview) -> Offload:
    """Of at least `SIZE` octets; any of them are a header, though not one that can be followed."""
    return COMPLETE if octets[:SIZE] == NOTHING else _decode(bytes(octets[:SIZE]))


@lru_cache(_KNOWN)
def _decode(octets: bytes) -> Offload:
    flags, kind, header_size, segment_size, start, offset = _HEADER.unpack(octets)
    return Offload(
        bool(flags & NEEDS_CHECKSUM),
        kind & ~_ECN,
        header_size,
        segment_size,
        start,
        offset,
        bool(kind & _ECN),
    )
