"""What an outer header takes from an inner one in tunnel mode, and what it gives back.

Read RFC 4301 section 5.1.2.1 first, and RFC 6040 sections 4.1 and 4.2, which replaces what that
says of ECN: outwards the field is copied, CE too; inwards the two are combined.
"""

from __future__ import annotations

from xfrmpy.esp.transport import Fields, fields_of, traffic_class_of
from xfrmpy.ipsec.overhead import IPV6_MINIMUM_MTU
from xfrmpy.ipsec.sad import DontFragment, Mode, OuterHeader, SadEntry

HOPS = 64
"""RFC 4301 section 5.1.2.1 leaves the outer hop limit to the sender. Linux's own default."""

# To find a member in its class takes longer than to compare it.
_TRANSPORT, _COPY, _SET = Mode.TRANSPORT, DontFragment.COPY, DontFragment.SET

_DSCP, _ECN = 0xFC, 0x03
_NOT_ECT, _ECT_1, _ECT_0, _CE = range(4)
_DF = 0x40


class Congested(Exception):
    """The path has marked a packet whose ends do not know of marks, so it counts as lost."""


def outer_fields(inner: bytes, header: OuterHeader) -> Fields:
    """Of the packet that an inner one becomes."""
    traffic_class = traffic_class_of(inner)
    dscp = traffic_class & _DSCP if header.copies_dscp else 0
    return Fields(dscp | (traffic_class & _ECN if header.copies_ecn else 0), HOPS)


def dont_fragment(inner: bytes, header: OuterHeader) -> bool:
    """Whether the outer packet has DF. An IPv6 packet is never cut on its way, as if it had it;
    but one that every link must take (RFC 8200 section 5) cannot be made smaller by its sender."""
    wanted = header.dont_fragment
    if wanted is not _COPY:
        return wanted is _SET
    if inner[0] >> 4 == 6:
        return len(inner) > IPV6_MINIMUM_MTU
    return inner[6] & _DF != 0


def outer_header(packet: bytes, sa: SadEntry) -> tuple[Fields | None, bool]:
    """The fields of what a packet becomes, None for the usual ones; and whether it has DF."""
    if sa.mode is _TRANSPORT:
        return fields_of(packet), False
    has_df = dont_fragment(packet, sa.outer)
    if not (packet[1] if packet[0] >> 4 == 4 else traffic_class_of(packet)):
        return None, has_df
    fields = outer_fields(packet, sa.outer)
    return fields if fields.traffic_class else None, has_df


def inner_after(inner: bytes, outer: Fields, header: OuterHeader) -> bytes:
    """The inner packet with what its outer header brings along. Raises `Congested`."""
    if not outer.traffic_class & _ECN and not header.restores_dscp:
        return inner  # Whatever the inner field is, the outer one says nothing of the path.
    before = traffic_class_of(inner)
    ecn = (
        _combined(before & _ECN, outer.traffic_class & _ECN) if header.copies_ecn else before & _ECN
    )
    dscp = (outer.traffic_class if header.restores_dscp else before) & _DSCP
    return inner if dscp | ecn == before else _with_traffic_class(inner, dscp | ecn)


def _combined(inner: int, outer: int) -> int:
    """RFC 6040 figure 4."""
    if outer == _CE:
        if inner == _NOT_ECT:
            raise Congested
        return _CE
    return _ECT_1 if (inner, outer) == (_ECT_0, _ECT_1) else inner


def _with_traffic_class(packet: bytes, traffic_class: int) -> bytes:
    if packet[0] >> 4 == 6:
        first = packet[0] & 0xF0 | traffic_class >> 4
        return bytes([first, (traffic_class & 0xF) << 4 | packet[1] & 0xF]) + packet[2:]
    # RFC 1624: the checksum changes by what the word does, in ones' complement.
    checksum = (packet[10] << 8 | packet[11]) + packet[1] - traffic_class
    checksum = checksum % 0xFFFF
    return (
        packet[:1]
        + bytes([traffic_class])
        + packet[2:10]
        + checksum.to_bytes(2, "big")
        + packet[12:]
    )
