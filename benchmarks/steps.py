"""What each step of a segment takes a worker, in one process and without the system calls.

The least of many rounds is what counts: whatever else the machine does only adds to it. The same
loops run as in a worker (docs/userspace-datapath.md); what is not crypto and not the checksum is
the difference.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address

from tests.datapath.userspace.super_packets import Stream
from xfrmpy.crypto.cipher import InPlace
from xfrmpy.datapath.userspace.arrivals import Arrivals
from xfrmpy.datapath.userspace.bursts import Layouts, shape_of
from xfrmpy.datapath.userspace.forwarding import Forwarder
from xfrmpy.datapath.userspace.pieces import Piece, Stretch, open_piece
from xfrmpy.datapath.userspace.vectors import sums_of, table
from xfrmpy.esp.packet import IPV4_IN_ESP, InboundSa, OutboundSa
from xfrmpy.esp.transport import Fields
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.algorithms import CIPHERS
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT, Direction, SadEntry, UdpEncapsulation
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import Template, protect_entries

ROUNDS = 500
COUNT = 42
"""Segments of a burst."""

STREAM = Stream(payload=secrets.token_bytes(COUNT * 1378), mss=1378, options=bytes([1, 1]) * 6)
"""What a path of 1,500 octets leaves of a stream with time stamps."""

_ENDS = ip_address("198.51.100.1"), ip_address("198.51.100.2")

Steps = dict[str, float]


def steps_of(cipher: str) -> dict[str, Steps]:
    """Microseconds for each segment, by direction and step."""
    entry = _entry(cipher)
    return {"sending": _sending(entry), "receiving": _receiving(entry)}


def is_fast(cipher: str) -> bool:
    """Whether it has these loops: others go packet by packet."""
    return cipher in {each.name for each in CIPHERS if each.is_aead}


def _entry(cipher: str) -> SadEntry:
    suite = EspSuite(cipher=next(c for c in CIPHERS if c.name == cipher), integrity=None, esn=False)
    return SadEntry(
        direction=Direction.OUT,
        spi=USERSPACE_SPI_BIT | 1,
        source=_ENDS[0],
        destination=_ENDS[1],
        reqid=7,
        suite=suite,
        encryption_key=secrets.token_bytes(suite.cipher.keymat),
        encapsulation=UdpEncapsulation(4500, 4500),
    )


def _least(measured: Callable[[], object], before: Callable[[], None] = lambda: None) -> float:
    """Of the rounds, in microseconds for a segment."""
    least = float("inf")
    for _ in range(ROUNDS):
        before()
        began_at = time.perf_counter()
        measured()
        least = min(least, time.perf_counter() - began_at)
    return 1e6 * least / COUNT


def _sending(entry: SadEntry) -> Steps:
    packet, offload = STREAM.super_packet()
    shape = shape_of(packet, offload)
    assert shape is not None
    layout = Layouts().of(shape)
    layout.scatter(packet)
    sa = OutboundSa(entry, secrets.token_bytes)

    def seal() -> None:
        run = sa.take_run(COUNT, len(packet))
        assert run is not None, "no limit is near"
        layout.seal(len(STREAM.payload), run)

    run = sa.take_run(1, 1)
    assert run is not None
    return _told(
        all=_least(seal),
        crypto=_crypto(run.in_place, shape.headers + shape.segment),
        checksum=_checksums(shape.headers + shape.segment),
    )


def _crypto(in_place: InPlace, size: int) -> float:
    """The cipher alone, sealing in place."""
    buffer = memoryview(bytearray(size + 16))
    nonce, associated = in_place.salt + bytes(8), bytes(8)
    plaintext = buffer[:size]
    return _least(lambda: _repeat(lambda: in_place.seal_into(nonce, plaintext, associated, buffer)))


def _checksums(size: int) -> float:
    """The sums of a burst, taken in one pass."""
    size += -size % 4
    words = table(memoryview(bytearray(COUNT * size)), COUNT, size, 0, size, "=u4")
    return _least(lambda: sums_of(words))


def _repeat(once: Callable[[], object]) -> None:
    for _ in range(COUNT):
        once()


def _receiving(entry: SadEntry) -> Steps:
    sender = OutboundSa(entry, secrets.token_bytes)
    bursts = _bursts(sender)
    forwarder = _receiver(replace(entry, direction=Direction.IN))
    source, fields = SocketAddress(_ENDS[0], 4500), Fields()
    piece = next(bursts)

    def come() -> None:
        nonlocal piece
        piece = next(bursts)

    def take() -> None:
        arrivals = Arrivals(forwarder)
        arrivals.add_piece(piece, source, fields, 1.0)
        for _, joined in arrivals.take():
            assert joined.offload.segment_size == STREAM.mss, "all are one super-packet"
            assert len(joined.pieces) > COUNT

    whole = _least(take, come)
    opening = InboundSa(replace(entry, direction=Direction.IN))
    opened = _least(lambda: _open(opening, piece), come)
    run = sender.take_run(1, 1)
    assert run is not None
    return _told(
        all=whole,
        crypto=_crypto(run.in_place, len(STREAM.packets()[0])),
        checksum=_checksums(len(STREAM.packets()[0])),
    ) | {"of it opening, crypto included": opened}


def _open(sa: InboundSa, piece: Piece) -> None:
    opened = open_piece(sa, piece)
    assert isinstance(opened, Stretch)
    assert opened.streaks == [(0, COUNT)]


def _bursts(sender: OutboundSa) -> Iterator[Piece]:
    """Always in the same place, as with little to do."""
    packets, size = STREAM.packets(), 0
    while True:
        sealed = b"".join(sender.seal(each, IPV4_IN_ESP) for each in packets)
        if not size:
            size = len(sealed) // COUNT
            piece = Piece(memoryview(bytearray(sealed)), size)
        piece.octets[:] = sealed
        yield piece


def _receiver(entry: SadEntry) -> Forwarder:
    made = Forwarder(secrets.token_bytes)
    made.add_sa(entry, 0.0)
    ours, theirs = (TrafficSelector.parse(text) for text in ("10.2.0.0/16", "10.1.0.0/16"))
    templates = [
        Template(source=a, destination=b, reqid=entry.reqid) for a, b in (_ENDS[::-1], _ENDS)
    ]
    for policy in protect_entries(
        local=[ours], remote=[theirs], outbound=templates[0], inbound=templates[1]
    ):
        made.add_policy(policy)
    return made


def _told(*, all: float, crypto: float, checksum: float) -> Steps:  # noqa: A002
    return {
        "the cipher alone": crypto,
        "checksum": checksum,
        "headers and the rest": all - crypto - checksum,
        "together": all,
    }
