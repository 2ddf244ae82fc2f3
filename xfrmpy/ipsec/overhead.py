"""What ESP or AH adds to a packet, and so how large an inner packet may be.

RFC 4303 section 2 and RFC 4302 section 2.
"""

from __future__ import annotations

from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.ipsec.sad import Mode

ESP_HEADER = 8  # SPI and sequence number
ESP_TRAILER = 2  # pad length and next header
AH_HEADER = 12  # next header, length, reserved, SPI, sequence number; the ICV follows
UDP_HEADER = 8
AGGFRAG_HEADER = 4  # RFC 9347 section 2.2.1
BEET_OPTIONS = 8  # the header before what an inner IPv4 header has of options
IP_HEADER = {4: 20, 6: 40}
IPV6_MINIMUM_MTU = 1280  # RFC 8200 section 5: where less fits, outer packets are fragmented
ALIGNMENT = 4  # RFC 4303 section 2.4: the trailer ends on a 4-octet boundary


def inner_mtu(
    outer_mtu: int, suite: EspSuite | AhSuite, *, outer_version: int, encapsulated: bool, mode: Mode
) -> int:
    """The size in octets of the largest inner packet that fits `outer_mtu` once protected.

    In transport mode the outer header is the packet's own, so its size counts as payload again. So
    it is in BEET mode, where the inner packet may be IPv4 inside of IPv6 and have options.
    """
    header = IP_HEADER[outer_version] + (UDP_HEADER if encapsulated else 0)
    if isinstance(suite, AhSuite):
        payload = outer_mtu - header - ah_size(suite, outer_version)
    else:
        room = outer_mtu - header - ESP_HEADER - suite.cipher.iv - suite.icv
        block = max(suite.cipher.block, ALIGNMENT)
        payload = room // block * block - ESP_TRAILER
    return (
        payload
        + {
            Mode.TUNNEL: 0,
            Mode.TRANSPORT: IP_HEADER[outer_version],
            Mode.BEET: IP_HEADER[4] - BEET_OPTIONS,
            Mode.IPTFS: -AGGFRAG_HEADER,
        }[mode]
    )


def ah_size(suite: AhSuite, version: int) -> int:
    """Octets of the authentication header in an IP packet of a version.

    RFC 4302 section 3.3.3.2.1: a multiple of 4 octets (IPv4) or of 8 (IPv6).
    """
    unit = 4 if version == 4 else 8
    return -(-(AH_HEADER + suite.icv) // unit) * unit
