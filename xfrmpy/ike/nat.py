"""Who is behind a NAT: the two hashes of RFC 7296 section 2.23."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from xfrmpy.ike.exchange import notifications
from xfrmpy.ipsec.addresses import Path, SocketAddress
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

HASH_SIZE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NatSituation:
    """`ours`, `theirs`: the end that sits behind a NAT. `forced`: we pretended that we do.

    `supported` is False for a peer that sent no hashes: it cannot encapsulate.
    """

    ours: bool = False
    theirs: bool = False
    forced: bool = False
    supported: bool = False

    @property
    def encapsulated(self) -> bool:
        """Whether ESP goes in UDP. Both ends come to the same answer."""
        return self.supported and (self.ours or self.theirs or self.forced)

    @property
    def peer_may_move(self) -> bool:
        """Whether the peer is to be followed when it seems to come from elsewhere.

        A NAT before it may forget its mapping. Behind a NAT of our own we do not follow, for one
        forged source address would break the connection; and without any NAT there is nothing
        that would change the address (RFC 7296 section 2.23).
        """
        return self.theirs and not self.ours


def detection_payloads(
    spi_i: bytes, spi_r: bytes, path: Path, *, force: bool, random: Callable[[int], bytes]
) -> tuple[NotifyPayload, NotifyPayload]:
    """Our two notifications. With `force` the source hash is noise, so that the peer sees a NAT."""
    source = random(HASH_SIZE) if force else address_hash(spi_i, spi_r, path.local)
    return (
        NotifyPayload(type=NotifyType.NAT_DETECTION_SOURCE_IP, data=source),
        NotifyPayload(
            type=NotifyType.NAT_DETECTION_DESTINATION_IP,
            data=address_hash(spi_i, spi_r, path.remote),
        ),
    )


def detect_nat(
    payloads: tuple[OpenPayload, ...], spi_i: bytes, spi_r: bytes, path: Path, *, forced: bool
) -> NatSituation:
    """Compare the peer's hashes with what the datagram's addresses give.

    A peer may send several source hashes, one for each of its addresses; one match is enough.
    """
    sources = notifications(payloads, NotifyType.NAT_DETECTION_SOURCE_IP)
    destinations = notifications(payloads, NotifyType.NAT_DETECTION_DESTINATION_IP)
    if not sources or not destinations:
        return NatSituation()
    theirs = address_hash(spi_i, spi_r, path.remote)
    ours = address_hash(spi_i, spi_r, path.local)
    return NatSituation(
        theirs=all(n.data != theirs for n in sources),
        ours=all(n.data != ours for n in destinations),
        forced=forced,
        supported=True,
    )


def address_hash(spi_i: bytes, spi_r: bytes, socket: SocketAddress) -> bytes:
    """SHA-1 over the SPIs, the address and the port."""
    octets = spi_i + spi_r + socket.address.packed + socket.port.to_bytes(2, "big")
    return hashlib.sha1(octets, usedforsecurity=False).digest()
