"""AH: a packet authenticated together with its IP header, in tunnel and transport mode (RFC 4302).

Read RFC 4302 sections 2 and 3.3 to 3.4 and appendix A first. What may change on the way counts as
zeros in the ICV. One object is one SA: it alone has its sequence numbers, its window and its
counters. What may pass it is the SPD's business, not ours.
"""

from __future__ import annotations

from hmac import compare_digest
from struct import Struct

from xfrmpy.crypto.mac import Mac, keyed_mac
from xfrmpy.esp.replay import Replayed, ReplayWindow
from xfrmpy.esp.sa import Dropped, EspDrop, Receiving, Sa, Sending
from xfrmpy.esp.transport import Fields, with_header
from xfrmpy.ipsec.overhead import AH_HEADER, IP_HEADER, ah_size
from xfrmpy.ipsec.proposals import AhSuite
from xfrmpy.ipsec.sad import SadEntry

AH_PROTOCOL = 51

_FIXED = Struct(">BBHII")  # next header, length, reserved, SPI, low half of the sequence number
_HIGH = Struct(">I")

# IPv4 (section 3.3.3.1.1): where DSCP with ECN, flags with offset, TTL and checksum stand.
_MUTABLE_IPV4 = ((1, 2), (6, 9), (10, 12))
_END_OF_OPTIONS, _NO_OPERATION = 0, 1
_IMMUTABLE_OPTIONS = frozenset({130, 133, 134, 148, 149})  # appendix A1, with class and copy bit

_WITH_OPTIONS, _ROUTING = frozenset({0, 60}), 43  # hop-by-hop and destination options
_PAD1 = 0
_MAY_CHANGE = 0x20  # of an IPv6 option's type (RFC 8200 section 4.2)

_DF = 0x40


class _Sa(Sa):
    """What both directions share: the MAC, made for the first packet."""

    __slots__ = ("_mac_made", "_suite")

    def __init__(self, entry: SadEntry) -> None:
        suite = entry.suite
        if not isinstance(suite, AhSuite):
            raise ValueError(f"{entry.id} is no SA of AH")
        super().__init__(entry)
        self._suite = suite
        self._mac_made: Mac | None = None

    def _icv(self, header: bytes, fixed: bytes, padding: bytes, rest: bytes, high: int) -> bytes:
        """Of a packet in its parts; `header` has its mutable fields zeroed already.

        With ESN "the high-order 32 bits [...] are appended (implicitly) immediately after the end
        of the payload" (section 3.3.3.2.2).
        """
        if self._mac_made is None:
            self._mac_made = keyed_mac(self._suite.integrity.mac, self.entry.integrity_key)
        covered = header + fixed + bytes(self._suite.icv) + padding + rest
        return self._mac_made(covered + _HIGH.pack(high) * self._esn)[: self._suite.icv]


class OutboundAh(_Sa, Sending):
    """Seals. Sequence numbers are taken once and never given back."""

    __slots__ = ()

    def __init__(self, entry: SadEntry) -> None:
        super().__init__(entry)
        self._begin_to_send()

    def seal(self, payload: bytes, next_header: int, fields: Fields, *, has_df: bool) -> bytes:
        """The whole packet in IPv4; in IPv6 what is behind the header, which whoever sends makes.

        Raises `Dropped` once the SA may carry no more.
        """
        if self.is_past_hard_limit:
            raise Dropped(EspDrop.EXPIRED)
        self._sequence += 1
        entry, low, high = self.entry, self._sequence & 0xFFFFFFFF, self._sequence >> 32
        version = entry.source.version
        size = ah_size(self._suite, version)
        padding = bytes(size - AH_HEADER - self._suite.icv)
        fixed = _FIXED.pack(next_header, size // 4 - 2, 0, entry.spi, low)
        header = self._header(size + len(payload), fields, has_df=has_df)
        icv = self._icv(immutable(header), fixed, padding, payload, high)
        self.count(len(payload))
        sealed = fixed + icv + padding + payload
        return header + sealed if version == 4 else sealed

    def _header(self, size: int, fields: Fields, *, has_df: bool) -> bytes:
        """The Identification is covered, and zero would be replaced by the kernel."""
        entry = self.entry
        packet = with_header(entry.source, entry.destination, AH_PROTOCOL, bytes(size), fields)
        header = packet[: IP_HEADER[entry.source.version]]
        if entry.source.version == 6:
            return header
        identification = self._sequence % 0xFFFF + 1
        flags = _DF if has_df else 0
        # The checksum is made by the kernel, which also puts its own in the place of any other.
        return header[:4] + Struct(">HBB").pack(identification, flags, 0) + header[8:]


class InboundAh(_Sa, Receiving):
    """Opens. The window moves only for what is authentic."""

    __slots__ = ("_window",)

    def __init__(self, entry: SadEntry) -> None:
        super().__init__(entry)
        self._window = ReplayWindow(entry.replay_window, esn=self._esn)

    def open(self, packet: bytes, header: bytes) -> tuple[int, bytes, bool]:
        """Next header and payload of a packet, and whether it is the newest of the SA.

        `header` is the IP header with its options and extension headers, `packet` what begins with
        the authentication header. Raises `Dropped`; the order of checks is that of section 3.4.
        """
        if len(packet) < AH_HEADER:
            raise Dropped(EspDrop.TOO_SHORT)
        if self.is_past_hard_limit:
            raise Dropped(EspDrop.EXPIRED)
        next_header, length, _, _, low = _FIXED.unpack_from(packet)
        size = ah_size(self._suite, self.entry.source.version)
        # Section 3.3.3.2.1: "Inclusion of padding in excess of the minimum amount required to
        # satisfy IPv4/IPv6 alignment requirements is prohibited."
        if length != size // 4 - 2 or len(packet) < size:
            raise Dropped(EspDrop.BAD_HEADER)
        sequence = self._window.infer(low)
        self._verify(header, packet, size, sequence)
        is_newest = self._window.advance(sequence)
        self.count(len(packet) - size)
        return next_header, packet[size:], is_newest

    def _verify(self, header: bytes, packet: bytes, size: int, sequence: int) -> None:
        icv_end = AH_HEADER + self._suite.icv
        try:
            self._window.check(sequence)
        except Replayed:
            self.replayed += 1
            raise Dropped(EspDrop.REPLAYED) from None
        parts = packet[:AH_HEADER], packet[icv_end:size], packet[size:]
        icv = self._icv(immutable(header), *parts, sequence >> 32)
        if not compare_digest(icv, packet[AH_HEADER:icv_end]):
            self.integrity_failed += 1
            raise Dropped(EspDrop.NOT_AUTHENTIC)


def immutable(header: bytes) -> bytes:
    """An IP header, its options and extension headers too, with all that may change zeroed.

    Raises `Dropped` for a header that makes no sense.
    """
    zeroed = bytearray(header)
    try:
        if header[0] >> 4 == 4:
            _zero_ipv4(zeroed)
        else:
            _zero_ipv6(zeroed)
    except IndexError:
        raise Dropped(EspDrop.BAD_HEADER) from None
    return bytes(zeroed)


def _zero_ipv4(header: bytearray) -> None:
    for start, end in _MUTABLE_IPV4:
        header[start:end] = bytes(end - start)
    at = IP_HEADER[4]
    while at < len(header) and header[at] != _END_OF_OPTIONS:
        if header[at] == _NO_OPERATION:
            at += 1
            continue
        end = _end_of(header, at, header[at + 1])
        if header[at] not in _IMMUTABLE_OPTIONS:
            header[at:end] = bytes(end - at)
        at = end


def _zero_ipv6(header: bytearray) -> None:
    """Version stays, traffic class and flow label go, and the hop limit."""
    header[0] &= 0xF0
    header[1:4] = bytes(3)
    header[7] = 0
    kind, at = header[6], IP_HEADER[6]
    while at < len(header):
        end = _end_of(header, at, (header[at + 1] + 1) * 8)
        if kind in _WITH_OPTIONS:
            _zero_options(header, at + 2, end)
        elif kind != _ROUTING:
            raise Dropped(EspDrop.BAD_HEADER)
        kind, at = header[at], end


def _zero_options(header: bytearray, at: int, end: int) -> None:
    while at < end:
        if header[at] == _PAD1:
            at += 1
            continue
        after = at + 2 + header[at + 1]
        if after > end:
            raise Dropped(EspDrop.BAD_HEADER)
        if header[at] & _MAY_CHANGE:
            header[at + 2 : after] = bytes(after - at - 2)
        at = after


def _end_of(header: bytearray, at: int, size: int) -> int:
    if size < 2 or at + size > len(header):
        raise Dropped(EspDrop.BAD_HEADER)
    return at + size
