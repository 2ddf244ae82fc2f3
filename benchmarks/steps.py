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
from xfrmpy.esp.packet import IPV4_IN_ESP, InboundSa, OutboundSa, chained
from xfrmpy.esp.transport import Fields
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.proposals import esp_suite, parse_proposal
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT, Direction, SadEntry, UdpEncapsulation
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import Template, protect_entries
from xfrmpy.registry import ProtocolId

ROUNDS = 500
COUNT = 42
"""Segments of a burst."""

STREAM = Stream(payload=secrets.token_bytes(COUNT * 1378), mss=1378, options=bytes([1, 1]) * 6)
"""What a path of 1,500 octets leaves of a stream with time stamps."""

_ENDS = ip_address("198.51.100.1"), ip_address("198.51.100.2")

Steps = dict[str, float]


def steps_of(suite: str) -> dict[str, Steps]:
    """Microseconds for each segment, by direction and step."""
    entry = _entry(suite)
    return {"sending": _sending(entry), "receiving": _receiving(entry)}


def _entry(name: str) -> SadEntry:
    suite = esp_suite(parse_proposal(f"{name}-noesn", ProtocolId.ESP))
    return SadEntry(
        direction=Direction.OUT,
        spi=USERSPACE_SPI_BIT | 1,
        source=_ENDS[0],
        destination=_ENDS[1],
        reqid=7,
        suite=suite,
        encryption_key=secrets.token_bytes(suite.cipher.keymat),
        integrity_key=secrets.token_bytes(suite.integrity.key if suite.integrity else 0),
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
    sa = OutboundSa(entry, secrets.token_bytes)
    assert sa.form is not None, "the suite is a fast one"
    layout = Layouts().of(shape, sa.form)

    def seal() -> None:
        run = sa.take_run(COUNT, len(packet))
        assert run is not None, "no limit is near"
        layout.next_places()
        layout.add(len(STREAM.payload))
        layout.seal(run)

    layout.scatter(packet, offload)
    seal()

    return _told(
        all=_least(seal),
        crypto=_crypto(sa, shape.headers + shape.segment),
        checksum=_checksums(shape.headers + shape.segment),
    )


def _crypto(sa: OutboundSa, size: int, *, opening: bool = False) -> float:
    """The cipher alone, in place."""
    form, in_place = sa.form, sa.in_place
    assert form is not None, "the suite is a fast one"
    if isinstance(in_place, InPlace):
        buffer, seal_into = memoryview(bytearray(size + form.icv)), in_place.seal_into
        nonce, associated = in_place.salt + bytes(8), bytes(8)
        plaintext = buffer[:size]
        return _least(lambda: _repeat(lambda: seal_into(nonce, plaintext, associated, buffer)))
    assert in_place is not None
    stride = form.head + size + -size % form.alignment + form.icv
    buffer = memoryview(bytearray(secrets.token_bytes(COUNT * stride)))
    views = [buffer[at : at + stride] for at in range(0, len(buffer), stride)]
    packets = chained(views, form.icv)
    if not opening:
        return _least(lambda: in_place.seal_each(packets, b""))
    in_place.seal_each(packets, b"")
    sealed = bytes(buffer)

    def come() -> None:
        buffer[:] = sealed

    return _least(lambda: in_place.open_each(packets, b""), come)


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
    return _told(
        all=whole,
        crypto=_crypto(sender, len(STREAM.packets()[0]), opening=True),
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
