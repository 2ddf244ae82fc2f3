"""Super-packets as a host hands them to its device, and what a network would have seen instead."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from socket import inet_aton
from struct import pack

from hypothesis import strategies as st

from xfrmpy.datapath.userspace.virtio import Offload, Segments

FIN, SYN, PSH, ACK, ECE, CWR = 1, 2, 8, 16, 64, 128
DF = 0x4000


def slow_sum(octets: bytes) -> int:
    """RFC 1071 section 4.1, word by word."""
    total = 0
    for at in range(0, len(octets), 2):
        total += int.from_bytes(octets[at : at + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What the segments of a super-packet share, and what tells the first and the last."""

    version: int = 4
    is_tcp: bool = True
    payload: bytes = field(default=bytes(3000), repr=False)
    mss: int = 1000
    options: bytes = b""
    ip_options: bytes = b""
    traffic_class: int = 0
    identification: int = 1
    fragment_bits: int = DF
    sequence: int = 1
    flags: int = ACK
    ports: tuple[int, int] = (40000, 443)
    addresses: tuple[str, str] = ("10.1.0.2", "10.2.0.2")  # of IPv4

    def super_packet(self) -> tuple[bytes, Offload]:
        """With the sum of the pseudo-header in the place of the checksum."""
        segment = self._segment(self.payload, self.sequence, self.flags)
        ip = self._ip(len(segment), self.identification)
        at = 16 if self.is_tcp else 6
        partial = slow_sum(self._pseudo(len(segment)))
        whole = ip + segment[:at] + pack(">H", partial) + segment[at + 2 :]
        tcp = Segments.TCP_IPV4 if self.version == 4 else Segments.TCP_IPV6
        return whole, Offload(
            needs_checksum=True,
            segments=tcp if self.is_tcp else Segments.UDP,
            header_size=len(whole) - len(self.payload),
            segment_size=self.mss,
            checksum_start=len(ip),
            checksum_offset=at,
            has_ecn=bool(self.flags & CWR) and self.is_tcp,
        )

    def packets(self) -> list[bytes]:
        """One by one, each as its sender would have made it without a device that helps."""
        made = []
        offsets = range(0, len(self.payload), self.mss)
        for number, offset in enumerate(offsets):
            flags = self.flags
            if number > 0:
                flags &= ~CWR
            if number < len(offsets) - 1:
                flags &= ~(FIN | PSH)
            step = 0 if self.fragment_bits & DF else number
            made.append(
                replace(
                    self,
                    payload=self.payload[offset : offset + self.mss],
                    sequence=(self.sequence + offset) % 2**32,
                    identification=(self.identification + step) % 2**16,
                    flags=flags,
                ).packet()
            )
        return made

    def packet(self) -> bytes:
        segment = self._segment(self.payload, self.sequence, self.flags)
        total = 0xFFFF - slow_sum(self._pseudo(len(segment)) + segment)
        at = 16 if self.is_tcp else 6
        segment = segment[:at] + pack(">H", total or 0xFFFF) + segment[at + 2 :]
        return self._ip(len(segment), self.identification) + segment

    def _segment(self, payload: bytes, sequence: int, flags: int) -> bytes:
        if not self.is_tcp:
            return pack(">HHHH", *self.ports, 8 + len(payload), 0) + payload
        size = (20 + len(self.options)) // 4
        fixed = pack(">HHIIBBHHH", *self.ports, sequence, 77, size << 4, flags, 500, 0, 0)
        return fixed + self.options + payload

    def _ip(self, length: int, identification: int) -> bytes:
        ends = self._ends()
        if self.version == 6:
            first = 6 << 28 | self.traffic_class << 20 | 0x12345
            following = 60 if self.ip_options else self._protocol
            own = b""
            if self.ip_options:  # Destination options, padded.
                pad = len(self.ip_options) - 4
                own = pack(">BBBB", self._protocol, len(self.ip_options) // 8 - 1, 1, pad)
                own += bytes(pad)
            start = pack(">IHBB", first, len(own) + length, following, 61)
            return start + ends + own
        size = 20 + len(self.ip_options)
        begin = 0x40 | size // 4, self.traffic_class, size + length
        start = pack(">BBHHH", *begin, identification, self.fragment_bits)
        rest = ends + self.ip_options
        blank = start + pack(">BBH", 61, self._protocol, 0) + rest
        return start + pack(">BBH", 61, self._protocol, 0xFFFF - slow_sum(blank)) + rest

    @property
    def _protocol(self) -> int:
        return 6 if self.is_tcp else 17

    def _ends(self) -> bytes:
        if self.version == 4:
            return b"".join(map(inet_aton, self.addresses))
        return bytes.fromhex("fd010000000000000000000000000002fd020000000000000000000000000002")

    def _pseudo(self, length: int) -> bytes:
        return self._ends() + pack(">II", length, self._protocol)


STREAMS = st.builds(
    Stream,
    version=st.sampled_from([4, 6]),
    is_tcp=st.booleans(),
    payload=st.binary(min_size=1, max_size=300),
    mss=st.integers(1, 301),
    options=st.integers(0, 10).map(lambda n: b"\1" * (4 * n)),
    ip_options=st.sampled_from([b"", bytes(8), bytes(16)]),
    traffic_class=st.integers(0, 255),
    identification=st.integers(0, 0xFFFF),
    fragment_bits=st.sampled_from([0, DF]),
    sequence=st.integers(0, 2**32 - 1),
    flags=st.integers(0, 255),
    ports=st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
)
