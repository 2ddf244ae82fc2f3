"""TLS in pieces: the packets that EAP-TLS, EAP-TTLS and PEAP share (RFC 5216 sections 2.1.5, 3.1).

A packet's data is an octet of flags, whose three lowest bits are a version (TTLS, PEAP), the octets
of the whole message if L is set, and a piece of it. A piece that has M is acknowledged by a packet
without a piece, and then comes the next. Both ends do the same, so both ends use a `Conversation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntFlag

from xfrmpy.eap.method import EapFailed
from xfrmpy.eap.packet import EapMalformed

MAX_PIECE = 1000
"""Octets of ours: everybody takes an EAP packet of 1020 (RFC 3748 section 3.1)."""

MAX_MESSAGE = 65536
"""Octets, ours; a chain of eight certificates with large keys has 20,000."""

MAX_PIECES = 80
"""Of one message, ours: `MAX_MESSAGE` in pieces of the least size that is usual, and some."""

_VERSION = 0x07
_TOTAL_SIZE = 4


class Flag(IntFlag):
    """RFC 5216 section 3.1."""

    LENGTH = 0x80
    MORE = 0x40
    START = 0x20


NONE = Flag(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A packet's data. `total` is of the whole message, None where L is not set."""

    flags: Flag = NONE
    version: int = 0
    total: int | None = None
    data: bytes = field(default=b"", repr=False)

    def encode(self) -> bytes:
        total = b"" if self.total is None else self.total.to_bytes(_TOTAL_SIZE)
        length = NONE if self.total is None else Flag.LENGTH
        return bytes([self.flags | length | self.version]) + total + self.data


def decode_piece_untrusted(octets: bytes) -> Piece:
    """The packet's data in these octets. Raises `EapMalformed`; bits without a name are ignored."""
    if not octets:
        raise EapMalformed("a packet of TLS without flags")
    flags, start = Flag(octets[0] & (Flag.LENGTH | Flag.MORE | Flag.START)), 1
    total = None
    if flags & Flag.LENGTH:
        start += _TOTAL_SIZE
        if len(octets) < start:
            raise EapMalformed("a packet of TLS ends in its length")
        total = int.from_bytes(octets[1:start])
    data = octets[start:]
    if flags & Flag.MORE and not data:
        raise EapMalformed("a piece of TLS without octets, and more to follow")
    if total is not None and len(data) > total:
        raise EapMalformed(f"a piece of {len(data)} octets of a message of {total}")
    return Piece(flags=flags & ~Flag.LENGTH, version=octets[0] & _VERSION, total=total, data=data)


@dataclass(slots=True)
class Conversation:
    """One end's pieces, one in for one out; messages are never empty, but for acknowledgements."""

    _unsent: bytes = field(default=b"", init=False, repr=False)
    _received: bytearray = field(default_factory=bytearray, init=False, repr=False)
    _total: int | None = field(default=None, init=False)
    _pieces: int = field(default=0, init=False)

    @property
    def has_more(self) -> bool:
        """Whether a message of ours waits for acknowledgements."""
        return bool(self._unsent)

    def exchange(self, piece: Piece, answer: Callable[[bytes], bytes]) -> bytes:
        """The data to send for a piece; `answer` makes a message of one that is whole.

        Raises `EapFailed`, and what `answer` raises.
        """
        if self._unsent:
            if piece.data or piece.flags:
                raise EapFailed("a piece of our TLS message is not acknowledged")
            return self._next_piece(total=None)
        self._collect(piece)
        if piece.flags & Flag.MORE:
            return Piece().encode()
        message = bytes(self._received)
        self._received.clear()
        self._total, self._pieces = None, 0
        self._unsent = answer(message)
        return self._next_piece(total=len(self._unsent))

    def _collect(self, piece: Piece) -> None:
        self._pieces += 1
        if self._total is None:
            self._total = piece.total
        if piece.total not in (None, self._total):
            raise EapFailed("a TLS message changes its length amid its pieces")
        self._received += piece.data
        size = len(self._received)
        if max(size, self._total or 0) > MAX_MESSAGE or self._pieces > MAX_PIECES:
            raise EapFailed(
                f"a TLS message of more than {MAX_MESSAGE} octets or {MAX_PIECES} pieces"
            )
        is_whole = not piece.flags & Flag.MORE
        if self._total is not None and (size > self._total or (is_whole and size < self._total)):
            raise EapFailed(f"{size} octets of a TLS message of {self._total}")

    def _next_piece(self, total: int | None) -> bytes:
        """Only the first of several says how long the message is."""
        data, self._unsent = self._unsent[:MAX_PIECE], self._unsent[MAX_PIECE:]
        if not self._unsent:
            return Piece(data=data).encode()
        return Piece(flags=Flag.MORE, total=total, data=data).encode()
