"""IP compression of a Child SA: offered and agreed to by IPCOMP_SUPPORTED (RFC 7296 section 2.22).

Each end names an index (CPI) for what it receives. Ours follows from the SPI of the same SA: it is
as random, lives as long, and nobody needs to remember it.
"""

from __future__ import annotations

from struct import Struct

from xfrmpy.ike.errors import PeerMisbehaved
from xfrmpy.ike.exchange import notifications
from xfrmpy.ipsec.sad import NEGOTIATED_CPIS
from xfrmpy.registry import IpCompressionTransform, NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

_CPI = Struct(">HB")  # and the transform's id; its attributes follow, and DEFLATE has none


def cpi_of(spi: int) -> int:
    return NEGOTIATED_CPIS[spi % len(NEGOTIATED_CPIS)]


def compression_payloads(spi: int, *, wanted: bool) -> tuple[NotifyPayload, ...]:
    """What offers DEFLATE for the SA that we receive by, or agrees to it."""
    if not wanted:
        return ()
    data = _CPI.pack(cpi_of(spi), IpCompressionTransform.DEFLATE)
    return (NotifyPayload(type=NotifyType.IPCOMP_SUPPORTED, data=data),)


def named_cpi(payloads: tuple[OpenPayload, ...], *, is_answer: bool) -> int | None:
    """The peer's index for DEFLATE; None if it says nothing of compression, or of others only.

    Implementations "MUST NOT accept an IPComp algorithm that was not proposed, MUST NOT accept more
    than one". Raises `PeerMisbehaved`.
    """
    indices = _indices(payloads)
    ours = [cpi for cpi, is_ours in indices if is_ours]
    if is_answer and (len(indices) > 1 or len(ours) < len(indices)):
        raise PeerMisbehaved("the peer chose a compression that we did not offer")
    return ours[0] if ours else None


def _indices(payloads: tuple[OpenPayload, ...]) -> list[tuple[int, bool]]:
    """Each index, and whether it is for DEFLATE. Raises `PeerMisbehaved` for one that cannot be."""
    found = []
    for notify in notifications(payloads, NotifyType.IPCOMP_SUPPORTED):
        if len(notify.data) < _CPI.size:
            raise PeerMisbehaved("IPCOMP_SUPPORTED names no algorithm")
        cpi, transform = _CPI.unpack_from(notify.data)
        is_ours = transform == IpCompressionTransform.DEFLATE
        if is_ours and cpi not in NEGOTIATED_CPIS:
            raise PeerMisbehaved("IPCOMP_SUPPORTED names an index that is not to be negotiated")
        found.append((cpi, is_ours))
    return found
