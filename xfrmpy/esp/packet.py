"""ESP in tunnel and transport mode: an inner packet sealed, a packet opened (RFC 4303).

Read RFC 4303 sections 2 and 3.3 to 3.4 first. One object is one SA: it alone has its sequence
numbers, its window and its counters. What may pass it is the SPD's business, not ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress
from struct import Struct
from typing import NamedTuple, TypeVar

from xfrmpy.crypto.cipher import (
    Chained,
    ChainedInPlace,
    InPlace,
    IntegrityFailed,
    PacketCipher,
    packet_cipher,
)
from xfrmpy.esp.replay import END, Replayed, ReplayWindow
from xfrmpy.esp.sa import Dropped, EspDrop, Receiving, Sa, Sending
from xfrmpy.ipsec.overhead import ALIGNMENT, ESP_TRAILER
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import SadEntry

_HEADER = Struct(">II")  # SPI, low half of the sequence number
_COUNTED = Struct(">IIQ")  # the same, and the whole number as the IV
_EXTENDED = Struct(">IQ")  # SPI, whole sequence number: the AAD with ESN (RFC 4106 section 5)
_HIGH = Struct(">I")

_COUNTED_IV = 8
"""Octets of the IV that AEAD ciphers have in the packet."""

IPV4_IN_ESP, IPV6_IN_ESP, NO_NEXT_HEADER = 4, 41, 59
_PADDING = bytes(range(1, 256))
"""RFC 4303 section 2.4: "a series of (unsigned, 1-byte) integer values" from 1 on."""

_Plaintext = TypeVar("_Plaintext", bytes, memoryview)


def trailer_of(payload: int, next_header: int, alignment: int = ALIGNMENT) -> bytes:
    """Behind a payload of so many octets: padding, its length, and what the payload is."""
    padding = -(payload + ESP_TRAILER) % alignment
    return _PADDING[:padding] + bytes((padding, next_header))


_trailer_behind = cache(trailer_of)
"""The same, by the length modulo the alignment."""


class Form(NamedTuple):
    """How a suite's packets lie that are sealed and opened in place; in octets.

    `head` is before the payload (SPI, sequence number, IV), `icv` behind the trailer, which ends at
    a multiple of `alignment`. The IV of an AEAD cipher is the whole sequence number.
    """

    head: int
    icv: int
    alignment: int
    is_aead: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Sequence numbers of one SA from `first` on, and what seals packets with them in place.

    `is_extended` puts the whole number into what is authenticated (RFC 4106 section 5, RFC 4303
    section 2.2.1). `random` is for the IVs of CBC; the upper half of its numbers is the same.
    """

    spi: int
    first: int
    is_extended: bool
    in_place: InPlace | ChainedInPlace
    random: Callable[[int], bytes]

    @property
    def aead(self) -> InPlace:
        """That of a form which is."""
        assert isinstance(self.in_place, InPlace), "the form is of CBC"
        return self.in_place

    def seal_chained(self, *views: Sequence[memoryview]) -> None:
        """Seal packets of a form that is of CBC, of which these are the views (`Chained`)."""
        assert not isinstance(self.in_place, InPlace), "the form is of an AEAD cipher"
        self.in_place.seal_each(Chained(*views), _trailer_of(self.first, self.is_extended))


class _Sa(Sa):
    """What both directions share: the cipher.

    It is made for the first packet: OpenSSL's takes 2.5 KiB, and most SAs of a gateway with
    thousands carry nothing.
    """

    __slots__ = (
        "_cipher_made",
        "_counted",
        "_form",
        "_is_aead",
        "_iv_size",
        "_suite",
        "_whole_iv_size",
    )

    def __init__(self, entry: SadEntry) -> None:
        suite = entry.suite
        if not isinstance(suite, EspSuite):
            raise ValueError(f"{entry.id} is no SA of ESP")
        super().__init__(entry)
        self._suite = suite
        self._cipher_made: PacketCipher | None = None
        self._counted: InPlace | None = None
        self._form: Form | None = None
        self._iv_size = suite.cipher.iv
        self._whole_iv_size = suite.cipher.whole_iv
        self._is_aead = suite.cipher.is_aead

    @property
    def form(self) -> Form | None:
        """None for a suite whose packets are not sealed and opened several at a time."""
        if self._cipher_made is None:
            self._make_cipher()
        return self._form

    @property
    def in_place(self) -> InPlace | ChainedInPlace | None:
        """What seals and opens where packets lie."""
        return (self._cipher_made or self._cipher).in_place

    @property
    def _cipher(self) -> PacketCipher:
        return self._cipher_made or self._make_cipher()

    def _make_cipher(self) -> PacketCipher:
        entry, suite = self.entry, self._suite
        made = packet_cipher(
            suite.cipher, suite.integrity, entry.encryption_key, entry.integrity_key
        )
        if made.in_place is not None and (not made.is_aead or self._iv_size == _COUNTED_IV):
            alignment = max(made.block, ALIGNMENT)
            head = _HEADER.size + self._iv_size
            self._form = Form(head, made.icv_size, alignment, made.is_aead)
            self._counted = made.in_place if isinstance(made.in_place, InPlace) else None
        self._cipher_made = made
        return made

    @property
    def aead(self) -> InPlace:
        """That of a form which is."""
        assert isinstance(self.in_place, InPlace), "the form is of CBC"
        return self.in_place

    def _find_counted(self) -> InPlace | None:
        """That of a suite whose IV is the whole sequence number, all of it in the packet."""
        if self._cipher_made is None:
            self._make_cipher()
        return self._counted

    def _authenticated(self, sequence: int) -> tuple[bytes, bytes]:
        """The associated data, and the trailer that HMAC covers, for a sequence number."""
        spi = self.entry.spi
        if not self._esn:
            return _HEADER.pack(spi, sequence), b""
        if self._is_aead:
            return _EXTENDED.pack(spi, sequence), b""
        return _HEADER.pack(spi, sequence & 0xFFFFFFFF), _HIGH.pack(sequence >> 32)


class OutboundSa(_Sa, Sending):
    """Seals. Sequence numbers are taken once and never given back."""

    __slots__ = ("_alignment", "_counts_iv", "_random")

    def __init__(self, entry: SadEntry, random: Callable[[int], bytes]) -> None:
        super().__init__(entry)
        self._random = random
        self._begin_to_send()
        self._alignment = max(self._suite.cipher.block, ALIGNMENT)
        self._counts_iv = self._suite.cipher.counts_iv

    def seal(self, payload: bytes, next_header: int, *, hidden_in: int = 0) -> bytes:
        """The ESP packet of a payload. Raises `Dropped` once the SA may carry no more.

        With `hidden_in` the payload is made so many octets long, which only whoever finds its true
        length inside can undo (RFC 4303 section 2.7).

        RFC 4303 section 3.3.3: the sequence number must not cycle.

        A suite whose IV is the sequence number has all of it here: where a packet is alone, each
        call of another function takes some 3 us.
        """
        if self.leeway <= 0 and self.is_past_hard_limit:
            raise Dropped(EspDrop.EXPIRED)
        self._sequence += 1
        aead = self._counted or self._find_counted()
        if aead is None or hidden_in:
            return self._seal(payload, next_header, hidden_in)
        sequence, spi, size = self._sequence, self.entry.spi, len(payload)
        head = _COUNTED.pack(spi, sequence & 0xFFFFFFFF, sequence)
        associated = _EXTENDED.pack(spi, sequence) if self._esn else head[:8]
        plaintext = payload + _trailer_behind(size % ALIGNMENT, next_header)
        sealed = aead.seal(aead.salt + head[8:], plaintext, associated)
        self.octets += size
        self.packets += 1
        self.leeway -= 1
        return head + sealed

    def _seal(self, payload: bytes, next_header: int, hidden_in: int) -> bytes:
        """Of any suite."""
        carried = payload.ljust(hidden_in, b"\0") if hidden_in else payload
        plaintext = carried + trailer_of(len(carried), next_header, self._alignment)
        iv = self._iv()
        associated, trailer = self._authenticated(self._sequence)
        sealed = (self._cipher_made or self._cipher).seal(iv, plaintext, associated, trailer)
        self.count(len(payload))
        header = _HEADER.pack(self.entry.spi, self._sequence & 0xFFFFFFFF)
        return header + iv[: self._iv_size] + sealed

    def take_run(self, packets: int, octets: int) -> Run | None:
        """As many sequence numbers as there are packets, for so many octets of payload in all.

        They count as sealed, and have one upper half. None if that cannot be, or would meet a
        limit, and for a suite without a form.
        """
        form, in_place = self.form, self.in_place
        if form is None or in_place is None:
            return None
        last = self._sequence + packets
        if last >> 32 != self._sequence + 1 >> 32:
            return None
        if last >= self._last_sequence or not self.has_room(packets, octets):
            return None
        self._sequence = last
        self.count(octets, packets)
        return Run(self.entry.spi, last - packets + 1, self._esn, in_place, self._random)

    def _iv(self) -> bytes:
        # The sequence number is unique under the key, which is all that a counter mode asks (RFC
        # 4106 section 3.1); CBC wants an IV that nobody can predict (RFC 3602 section 3).
        if self._counts_iv:
            return self._sequence.to_bytes(self._whole_iv_size, "big")
        return self._random(self._iv_size)


class OpenedRun(NamedTuple):
    """Next headers and payloads of what was authentic, in place; why the others were dropped."""

    payloads: list[tuple[int, memoryview]]
    drops: list[EspDrop]


class InboundSa(_Sa, Receiving):
    """Opens. The window moves only for what is authentic."""

    __slots__ = ("_around", "_block", "_icv", "_shortest", "_unpack_header", "_window")

    def __init__(self, entry: SadEntry) -> None:
        super().__init__(entry)
        self._window = ReplayWindow(entry.replay_window, esn=self._esn)
        self._icv = entry.suite.icv
        self._around = _HEADER.size + self._iv_size + entry.suite.icv
        self._block = self._suite.cipher.block
        self._shortest = self._around + ESP_TRAILER
        # SPI, the low half of the sequence number, IV.
        self._unpack_header = Struct(f">II{self._iv_size}s").unpack_from

    def open(self, packet: bytes, _header: bytes = b"") -> tuple[int, bytes, bool]:
        """Next header and payload of an ESP packet, and whether it is the newest of the SA.

        The IP header, which AH covers, is nothing to ESP. Raises `Dropped`. The order of checks is
        that of RFC 4303 section 3.4: replay, ICV, window, padding.
        """
        if len(packet) < self._shortest:
            raise Dropped(EspDrop.TOO_SHORT)
        if self.leeway <= 0 and self.is_past_hard_limit:
            raise Dropped(EspDrop.EXPIRED)
        sequence, window, aead = _HEADER.unpack_from(packet)[1], self._window, self._counted
        if self._esn:
            sequence = window.infer(sequence)
        if aead is None or not window.highest < sequence < END:
            plaintext, is_newest = self._verify(packet, sequence)
        else:  # In one function, as in `OutboundSa.seal`.
            associated = packet[:8] if not self._esn else _EXTENDED.pack(self.entry.spi, sequence)
            try:
                plaintext = aead.open(aead.salt + packet[8:16], packet[16:], associated)
            except IntegrityFailed:
                self.integrity_failed += 1
                raise Dropped(EspDrop.NOT_AUTHENTIC) from None
            is_newest = window.advance(sequence)
        next_header, payload = _without_padding(plaintext)
        self.octets += len(payload)
        self.packets += 1
        self.leeway -= 1
        if next_header == NO_NEXT_HEADER:
            raise Dropped(EspDrop.DUMMY)
        return next_header, payload, is_newest

    def _verify(self, packet: bytes, sequence: int) -> tuple[bytes, bool]:
        iv_end = _HEADER.size + self._iv_size
        try:
            self._window.check(sequence)
            iv = packet[_HEADER.size : iv_end]
            if self._iv_size < self._whole_iv_size:  # RFC 8750 section 4
                iv = sequence.to_bytes(self._whole_iv_size, "big")
            associated, trailer = self._authenticated(sequence)
            plaintext = self._cipher.open(iv, packet[iv_end:], associated, trailer)
        except Replayed:
            self.replayed += 1
            raise Dropped(EspDrop.REPLAYED) from None
        except IntegrityFailed:
            self.integrity_failed += 1
            raise Dropped(EspDrop.NOT_AUTHENTIC) from None
        return plaintext, self._window.advance(sequence)

    def open_run(self, packets: Sequence[memoryview]) -> OpenedRun | None:
        """As `open`, of packets that came together, each of which is the newest; in place.

        None if they must be opened one by one, and are as they were: the cipher does not work in
        place, one is of another SA, too short or not newer than those before, or they may reach a
        limit.
        """
        in_place = self.in_place
        if in_place is None or min(map(len, packets)) < self._shortest:
            return None
        around, block = self._around, self._block
        if block > 1 and any((len(packet) - around) % block for packet in packets):
            return None
        spis, lows, ivs = zip(*map(self._unpack_header, packets), strict=True)
        if spis.count(self.entry.spi) != len(spis):
            return None
        sequences = self.numbers_of_run(lows, sum(map(len, packets)))
        if sequences is None:
            return None
        begin, end = _HEADER.size + self._iv_size, -self._icv
        plaintexts = [packet[begin:end] for packet in packets]
        if not isinstance(in_place, InPlace):
            are_authentic = self.open_chained(sequences, *chained(packets, self._icv))
        else:
            if self._iv_size < self._whole_iv_size:  # RFC 8750 section 4
                ivs = tuple(number.to_bytes(self._whole_iv_size, "big") for number in sequences)
            pack = _EXTENDED.pack if self._esn else _HEADER.pack
            are_authentic = in_place.open_each(
                [in_place.salt + iv for iv in ivs],
                [packet[begin:] for packet in packets],
                [pack(self.entry.spi, sequence) for sequence in sequences],
                plaintexts,
            )
        return self.read_run(self.admit_run(sequences, are_authentic, plaintexts), len(packets))

    def numbers_of_run(self, lows: Sequence[int], octets: int) -> Sequence[int] | None:
        """The whole sequence numbers of packets that came together, by their low halves.

        None if one is not newer than those before, or so many octets may reach a limit.
        """
        sequences = self._window.infer_run(lows)
        if sequences is None or not self.has_room(len(lows), octets):
            return None
        return sequences

    def open_chained(self, sequences: Sequence[int], *views: Sequence[memoryview]) -> list[bool]:
        """Which packets of a form that is of CBC are authentic: these are open then.

        They have numbers out of `numbers_of_run`, and these are the views of them (`Chained`).
        """
        in_place = self.in_place
        assert in_place is not None
        assert not isinstance(in_place, InPlace), "the form is of an AEAD cipher"
        return in_place.open_each(Chained(*views), _trailer_of(sequences[0], self._esn))

    def admit_run(
        self,
        sequences: Sequence[int],
        are_authentic: Sequence[bool],
        plaintexts: list[memoryview],
    ) -> list[memoryview]:
        """Of packets with numbers out of `numbers_of_run`, the plaintexts of those that have proved
        authentic. The window moves once, and for these only."""
        forged = are_authentic.count(False)
        if forged:
            self.integrity_failed += forged
            sequences = list(compress(sequences, are_authentic))
            plaintexts = list(compress(plaintexts, are_authentic))
        if sequences:
            self._window.advance_run(sequences)
        return plaintexts

    def read_run(self, plaintexts: Sequence[memoryview], packets: int) -> OpenedRun:
        """What is in the authentic ones of so many packets; these count from now on."""
        run = OpenedRun([], [EspDrop.NOT_AUTHENTIC] * (packets - len(plaintexts)))
        octets = 0
        for plaintext in plaintexts:
            try:
                next_header, payload = _without_padding(plaintext)
            except Dropped as dropped:
                run.drops.append(dropped.reason)
                continue
            octets += len(payload)
            if next_header == NO_NEXT_HEADER:
                run.drops.append(EspDrop.DUMMY)
            else:
                run.payloads.append((next_header, payload))
        self.count(octets, len(plaintexts) - run.drops.count(EspDrop.BAD_PADDING))
        return run


def _trailer_of(sequence: int, is_extended: bool) -> bytes:
    """What a MAC covers behind the ciphertext of packets whose numbers have one upper half."""
    return _HIGH.pack(sequence >> 32) if is_extended else b""


def chained(packets: Sequence[memoryview], icv: int) -> Chained:
    """Whole packets of a suite with CBC, whose ICV has so many octets."""
    return Chained(
        [packet[:-icv] for packet in packets],
        [packet[_HEADER.size : -icv] for packet in packets],
        [packet[_HEADER.size :] for packet in packets],
        [packet[-icv:] for packet in packets],
    )


def _without_padding(plaintext: _Plaintext) -> tuple[int, _Plaintext]:
    padding, next_header = plaintext[-2], plaintext[-1]
    end = len(plaintext) - ESP_TRAILER - padding
    # Section 2.4: "the receiver SHOULD inspect the Padding field".
    if end < 0 or plaintext[end:-ESP_TRAILER] != _PADDING[:padding]:
        raise Dropped(EspDrop.BAD_PADDING)
    return next_header, plaintext[:end]


def trailer_in(plaintext: memoryview) -> bytes | None:
    """What is behind the payload; None if it is not as it should be, or there is no payload."""
    try:
        next_header, payload = _without_padding(plaintext)
    except Dropped:
        return None
    return None if next_header == NO_NEXT_HEADER else bytes(plaintext[len(payload) :])
