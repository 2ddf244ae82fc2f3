"""SAD entries: one security association in one direction (RFC 4301 section 4.4.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.marks import OUR_BITS, Mark
from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.registry import ProtocolId

MAX_RESOURCES = 64
"""Userspace workers, and so Child SAs of one traffic: each has its own (RFC 9611)."""

DEFAULT_REPLAY_WINDOW = 256
"""Packets. RFC 4303 section 3.4.3 asks for at least 32 and suggests 64; multi-queue paths reorder
by more, and WireGuard and strongSwan-with-ESN hold thousands. 256 costs 32 octets an SA."""

OUR_REQIDS = range(0x58460000, 0x58470000)
"""`XF` in the upper half: how our objects are told from others' in a shared kernel."""


NEGOTIATED_CPIS = range(256, 61440)
"""RFC 3173 section 3.3: the others are well-known, reserved or private."""

USERSPACE_SPI_BIT = 0x80000000
"""Set in the SPI of every inbound SA of the userspace datapath, clear in every one of the kernel's:
by it the port that both share with IKE tells whose a packet is."""


def lane_of(spi: int, lanes: int) -> int:
    """Which of so many userspace workers has the inbound SA of an SPI."""
    return spi % lanes


class Direction(StrEnum):
    """Which way an SA carries packets, seen from this host."""

    IN = "in"
    OUT = "out"


class Mode(StrEnum):
    """RFC 4301 section 4.1, and the bound end-to-end tunnel of draft-nikander-esp-beet-mode: one of
    which both ends know the two inner addresses, so that no packet needs to bear them."""

    TUNNEL = "tunnel"
    TRANSPORT = "transport"
    BEET = "beet"


class Offload(StrEnum):
    """What of an SA's work a network device is asked to do."""

    CRYPTO = "crypto"


class DontFragment(StrEnum):
    """What becomes of DF in the outer IPv4 header of tunnel mode (RFC 4301 section 8.1)."""

    COPY = "copy"
    SET = "set"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterHeader:
    """What the outer header of tunnel mode has of the inner one, and gives back to it.

    RFC 4301 section 5.1.2.1. `copies_dscp` outwards, `restores_dscp` inwards; with `copies_ecn` all
    that RFC 6040 says of either way. Transport mode has but one header: nothing here is about it.
    """

    copies_dscp: bool = True
    restores_dscp: bool = False
    copies_ecn: bool = True
    dont_fragment: DontFragment = DontFragment.COPY


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerEnds:
    """The addresses that packets have before and behind an SA of BEET mode, in its direction."""

    source: IpAddress
    destination: IpAddress


@dataclass(frozen=True, slots=True)
class UdpEncapsulation:
    """The UDP ports of encapsulated ESP (RFC 3948), seen in the direction of the SA.

    `original` is the address that the sender has itself, where a NAT gives it another: in transport
    mode checksums are about it (RFC 3948 section 3.1.2).
    """

    source_port: int
    destination_port: int
    original: IpAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """When an SA should be replaced (soft) and when it must not be used any more (hard).

    None means no limit. Seconds count from the installation (RFC 4301 section 4.4.2.1).
    """

    soft_seconds: int | None = None
    hard_seconds: int | None = None
    soft_bytes: int | None = None
    hard_bytes: int | None = None
    soft_packets: int | None = None
    hard_packets: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaId:
    """What names an SA to the host that receives its packets (RFC 4301 section 4.1)."""

    spi: int
    protocol: ProtocolId
    destination: IpAddress

    def __str__(self) -> str:
        return f"{self.protocol.name} 0x{self.spi:08x} to {self.destination}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SadEntry:
    """One SA as a datapath takes and gives it.

    `encryption_key` is the cipher's key with its salt behind it, as the keying material has them,
    and empty for AH; `integrity_key` is empty for an AEAD cipher. The protocol is the suite's. With
    a `cpi` packets are compressed, by DEFLATE under that index (RFC 3173). BEET mode, and no other,
    has `inner` ends. In tunnel mode a packet
    of less than `tfc` octets is padded to that size, as far as the path allows, to hide its own
    (RFC 4303 section 2.7). With an `if_id` it carries what policies of the same one lead to it, and
    its packets come out of the interface of that number; 0 is none. `set_mark` is what an inbound
    one gives to the packets that it takes in, and an outbound one, in bits that are not
    `OUR_BITS`, to those that it makes. With a `resource` it is one of several of a policy (RFC
    9611), for packets that this userspace worker reads, or that the kernel sends on this CPU; of
    the kernel's it is an outbound one, and has no window. `offload` is a wish: a datapath may do
    without, and then says so, so that entries which differ in nothing else are equal.
    """

    direction: Direction
    spi: int
    source: IpAddress
    destination: IpAddress
    reqid: int
    suite: EspSuite | AhSuite
    encryption_key: bytes = field(repr=False)
    integrity_key: bytes = field(default=b"", repr=False)
    mode: Mode = Mode.TUNNEL
    inner: InnerEnds | None = None
    replay_window: int = DEFAULT_REPLAY_WINDOW
    encapsulation: UdpEncapsulation | None = None
    outer: OuterHeader = OuterHeader()
    cpi: int | None = None
    tfc: int = 0
    lifetime: Lifetime = Lifetime()
    set_mark: Mark | None = None
    if_id: int = 0
    resource: int | None = None
    offload: Offload | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 256 <= self.spi <= 0xFFFFFFFF:  # RFC 4303 section 2.1: 1 to 255 are reserved
            raise ValueError(f"SPI 0x{self.spi:x} is out of range")
        if len(self.encryption_key) != self.suite.keymat:
            raise ValueError("the encryption key has the wrong size")
        wanted = 0 if self.suite.integrity is None else self.suite.integrity.key
        if len(self.integrity_key) != wanted:
            raise ValueError("the integrity key has the wrong size")
        if self.encapsulation is not None and isinstance(self.suite, AhSuite):
            raise ValueError("AH does not go in UDP")  # RFC 3948 section 1
        if (self.inner is None) == (self.mode is Mode.BEET):
            raise ValueError("inner ends go with BEET mode, and only with it")
        if self.mode is Mode.BEET and (self.cpi is not None or isinstance(self.suite, AhSuite)):
            raise ValueError("BEET mode is of ESP alone")

        is_outbound = self.direction is Direction.OUT
        if is_outbound and self.set_mark is not None and self.set_mark.mask & OUR_BITS:
            raise ValueError(f"the mark {self.set_mark} is in bits of xfrmpy's own")

    @property
    def protocol(self) -> ProtocolId:
        return self.suite.protocol

    @property
    def id(self) -> SaId:
        return SaId(spi=self.spi, protocol=self.protocol, destination=self.destination)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an SA has carried: octets of inner packets, packets, and what was refused.

    `seconds_idle` is the time since the last packet, None if there has been none.
    """

    octets: int
    packets: int
    replayed: int = 0
    integrity_failed: int = 0
    seconds_idle: float | None = None
