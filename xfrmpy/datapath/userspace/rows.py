"""Packets of one length that lie at equal distances in a buffer, as a suite seals them there.

Whoever puts a payload into each (`bursts`, `trains`) leaves ESP header, IV and cipher to this. The
views that it takes are made once for each buffer and length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import TypeAlias

import numpy as np

from xfrmpy.datapath.userspace.vectors import MAX_ROWS, NUMBERS, Numbers, column, table
from xfrmpy.esp.packet import Form, Run

_ASSOCIATED = 8  # SPI, sequence number
_EXTENDED = 12  # the same with the whole number
_IV = 8  # of AEAD ciphers
_LOW = 0xFFFFFFFF
_Views: TypeAlias = list[memoryview]


class Rows(ABC):
    """See the module. Each row begins with its ESP header."""

    def __init__(
        self, buffer: memoryview, count: int, stride: int, form: Form, plaintext: int
    ) -> None:
        """`plaintext` octets are encrypted in each, the trailer included."""
        self._buffer = buffer
        self._count = count
        self._stride = stride
        self._form = form
        self._end = form.head + plaintext
        self._headers = self._column(0, ">u8")  # SPI, low half of the sequence number

    def seal(self, run: Run, begin: int, end: int, last: int) -> None:
        """Give rows the numbers of a run, and encrypt each in place.

        The last of them has a plaintext of its own length, no longer than the others'.
        """
        steps = NUMBERS[: end - begin]
        # The low half overflows in no run (`take_run`).
        self._headers[begin:end] = steps + (run.spi << 32 | run.first & _LOW)
        self._seal(run, slice(begin, end), steps + run.first, self._form.head + last)

    @abstractmethod
    def _seal(self, run: Run, rows: slice, numbers: Numbers, last: int) -> None:
        """The rest; the plaintext of the last row ends there."""

    def _column(self, offset: int, kind: str) -> Numbers:
        return column(self._buffer, self._count, self._stride, offset, kind)

    def _views(self, begin: int, end: int) -> _Views:
        starts = range(0, self._count * self._stride, self._stride)
        return [self._buffer[at + begin : at + end] for at in starts]


class _AeadRows(Rows):
    """The IV is the whole sequence number."""

    def __init__(
        self, buffer: memoryview, count: int, stride: int, form: Form, plaintext: int
    ) -> None:
        super().__init__(buffer, count, stride, form, plaintext)
        self._ivs = self._column(_ASSOCIATED, ">u8")
        self._associated = self._views(0, _ASSOCIATED)
        self._plaintexts = self._views(form.head, self._end)
        self._sealed = self._views(form.head, self._end + form.icv)

    def _seal(self, run: Run, rows: slice, numbers: Numbers, last: int) -> None:
        aead, size = run.aead, last - self._form.head
        self._ivs[rows] = numbers
        nonces = nonces_with(len(aead.salt))
        associated = self._associated[rows]
        if run.is_extended:
            associated = nonces.extended(run.spi, numbers)
        plaintexts, sealed = self._plaintexts[rows], self._sealed[rows]
        plaintexts[-1] = plaintexts[-1][:size]
        sealed[-1] = sealed[-1][: size + self._form.icv]
        seal_into, views = aead.seal_into, nonces.of(aead.salt, numbers)
        for nonce, plaintext, data, into in zip(views, plaintexts, associated, sealed, strict=True):
            seal_into(nonce, plaintext, data, into)


class _CbcRows(Rows):
    """The IV is what a block of random octets is encrypted to (`Run.seal_chained`)."""

    def __init__(
        self, buffer: memoryview, count: int, stride: int, form: Form, plaintext: int
    ) -> None:
        super().__init__(buffer, count, stride, form, plaintext)
        self._iv = form.head - _ASSOCIATED
        self._ivs = table(buffer, count, stride, _ASSOCIATED, self._iv)
        end = self._end
        self._packets = [
            self._views(0, end),
            self._views(_ASSOCIATED, end),
            self._views(_ASSOCIATED, end + form.icv),
            self._views(end, end + form.icv),
        ]

    def _seal(self, run: Run, rows: slice, numbers: Numbers, last: int) -> None:
        octets = run.random(len(numbers) * self._iv)
        self._ivs[rows] = np.frombuffer(octets, np.uint8).reshape(-1, self._iv)
        packets = [views[rows] for views in self._packets]
        if last < self._end:
            at, end = (rows.stop - 1) * self._stride, last + self._form.icv
            whole = self._buffer[at : at + end]
            cut = whole[:last], whole[_ASSOCIATED:last], whole[_ASSOCIATED:], whole[last:]
            for views, view in zip(packets, cut, strict=True):
                views[-1] = view
        run.seal_chained(*packets)


def rows_of(buffer: memoryview, count: int, stride: int, form: Form, plaintext: int) -> Rows:
    """Those of a form."""
    kind = _AeadRows if form.is_aead else _CbcRows
    return kind(buffer, count, stride, form, plaintext)


class Nonces:
    """What an AEAD cipher takes beside the packets of a run (`InPlace`), in views made once."""

    def __init__(self, salt: int) -> None:
        size = salt + _IV
        octets = memoryview(bytearray(MAX_ROWS * size))
        self._views = [octets[at : at + size] for at in range(0, len(octets), size)]
        self._salt = bytes(salt)  # That is in all of them.
        self._salts = table(octets, MAX_ROWS, size, 0, salt)
        self._ivs = column(octets, MAX_ROWS, size, salt, ">u8")
        extended = memoryview(bytearray(MAX_ROWS * _EXTENDED))
        self._extended = [
            extended[at : at + _EXTENDED] for at in range(0, len(extended), _EXTENDED)
        ]
        self._spis = column(extended, MAX_ROWS, _EXTENDED, 0, ">u4")
        self._wholes = column(extended, MAX_ROWS, _EXTENDED, 4, ">u8")

    def of(self, salt: bytes, ivs: Numbers) -> _Views:
        """Salt || IV of each packet, until the next call."""
        count = len(ivs)
        if salt != self._salt:
            self._salt = salt
            self._salts[:] = np.frombuffer(salt, np.uint8)
        self._ivs[:count] = ivs
        return self._views[:count]

    def extended(self, spi: int, sequences: Numbers) -> _Views:
        """Associated data with ESN: SPI and whole sequence number (RFC 4106 section 5)."""
        count = len(sequences)
        self._spis[:count] = spi
        self._wholes[:count] = sequences
        return self._extended[:count]


@cache
def nonces_with(salt: int) -> Nonces:
    """Those of ciphers whose salt has so many octets."""
    return Nonces(salt)
