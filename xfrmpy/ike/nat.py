"""Who is behind a NAT, and which ports that means: RFC 7296 section 2.23."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from xfrmpy.ike.exchange import notifications
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IKE_PORT, Path, SocketAddress
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


def first_path(path: Path) -> Path:
    """Where IKE_SA_INIT goes: to port 500, unless the peer is elsewhere."""
    if not path.natt or path.remote.port != IKE_NATT_PORT:
        return path
    return Path(
        local=SocketAddress(path.local.address, IKE_PORT),
        remote=SocketAddress(path.remote.address, IKE_PORT),
    )


def path_for(peer_port: int | None, path: Path, our_port: int) -> Path:
    """Where IKE_SA_INIT goes to a peer whose port a policy may name.

    "An initiator can use port 4500 for both IKE and ESP, regardless of whether or not there is a
    NAT, even at the beginning of IKE" (RFC 7296 section 2.23): so with any other that is in its
    place.
    """
    if peer_port is None or path.natt:
        return path
    return _natt_path(path, our_port, peer_port)


def natt_path(path: Path, our_port: int) -> Path:
    """The same ends on the ports that IKE shares with ESP in UDP."""
    return path if path.natt else _natt_path(path, our_port, IKE_NATT_PORT)


def is_open(path: Path, our_port: int) -> bool:
    """Whether we still have the port on which a path begins: an earlier daemon may have had
    another beside ESP."""
    return not path.natt or path.local.port == our_port


def on_our_port(path: Path, our_port: int) -> Path:
    """The same path from where we are now."""
    if is_open(path, our_port):
        return path
    return replace(path, local=SocketAddress(path.local.address, our_port))


def _natt_path(path: Path, our_port: int, their_port: int) -> Path:
    return Path(
        local=SocketAddress(path.local.address, our_port),
        remote=SocketAddress(path.remote.address, their_port),
        natt=True,
    )
