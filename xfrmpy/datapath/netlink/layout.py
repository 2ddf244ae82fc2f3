"""C structures as tables over precompiled structs: the alphabet of netlink's messages.

Only how a table is read; the tables stand beside those who use them. What the kernel sends is
trusted to be the kernel's, not to be well laid out: `UnreadableMessage` says so.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from socket import htonl, htons
from typing import Any, TypeAlias

from xfrmpy.datapath.interface import DatapathError

_Swap: TypeAlias = Callable[[int], int]


class UnreadableMessage(DatapathError):
    """The kernel said something that is not laid out as its header says."""


class Layout:
    """A C structure: values by name <-> octets.

    A field is a code of the `struct` module in native order, `n` or `N` for a 16-bit or 32-bit
    number in network order, padding (`3x`), or another layout, whose names get the field's as a
    prefix (`sel_daddr`). Numbers are int, arrays of octets bytes; what is not given is zero.
    """

    def __init__(self, **fields: str | Layout) -> None:
        self._fields: dict[str, str] = {}  # with the padding
        for name, code in fields.items():
            if isinstance(code, Layout):
                self._fields |= {f"{name}_{inner}": kind for inner, kind in code._fields.items()}
            else:
                self._fields[name] = code
        self.codes = {name: c for name, c in self._fields.items() if not c.endswith("x")}
        self._struct = struct.Struct("=" + "".join(map(_native, self._fields.values())))
        self._empty = {name: b"" if "s" in code else 0 for name, code in self.codes.items()}
        self._swaps = tuple(
            (name, _NETWORK_ORDER[code][1])
            for name, code in self.codes.items()
            if code in _NETWORK_ORDER
        )
        self.size = self._struct.size

    def pack(self, values: dict[str, Any]) -> bytes:
        """Raises `TypeError` for a name that is no field's."""
        row = {**self._empty, **values}
        if len(row) != len(self._empty):
            raise TypeError(f"no such fields: {sorted(row.keys() - self._empty.keys())}")
        for name, swap in self._swaps:
            if row[name]:
                row[name] = swap(row[name])
        return self._struct.pack(*row.values())

    def packer(self, *names: str) -> Callable[..., bytes]:
        """What packs the values of just these fields, given in the structure's own order.

        For what is sent by the ten thousand: it takes a third of the time of `pack`. Raises
        `TypeError` for names that are no fields', or in another order.
        """
        packed, swaps = self._part(names)

        def pack(*values: Any) -> bytes:
            row = [*values]
            for place, swap in swaps:
                row[place] = swap(row[place])
            return packed.pack(*row)

        return pack

    def reader(self, *names: str) -> Callable[[bytes, int], Sequence[Any]]:
        """What reads the values of just these fields at an offset, in the structure's own order.

        For what is read by the ten thousand. Raises `TypeError` as `packer` does, and what it
        returns `UnreadableMessage` if the structure is cut.
        """
        packed, swaps = self._part(names)

        def read(data: bytes, offset: int) -> Sequence[Any]:
            self._check(len(data) - offset)
            row = packed.unpack_from(data, offset)
            if not swaps:
                return row
            values = [*row]
            for place, swap in swaps:
                values[place] = swap(values[place])
            return values

        return read

    def _part(self, names: Sequence[str]) -> tuple[struct.Struct, list[tuple[int, _Swap]]]:
        """The structure with all but these fields left out, and which of those to swap."""
        if [name for name in self.codes if name in names] != [*names]:
            raise TypeError(f"not these fields in this order: {names}")
        codes = (
            _native(code) if name in names else f"{struct.calcsize('=' + _native(code))}x"
            for name, code in self._fields.items()
        )
        swaps = [(names.index(name), swap) for name, swap in self._swaps if name in names]
        return struct.Struct("=" + "".join(codes)), swaps

    def unpack(self, data: bytes, offset: int = 0) -> dict[str, Any]:
        """Octets behind the structure are left alone. Raises `UnreadableMessage` if it is cut."""
        self._check(len(data) - offset)
        row = dict(zip(self._empty, self._struct.unpack_from(data, offset), strict=True))
        for name, swap in self._swaps:
            row[name] = swap(row[name])
        return row

    def _check(self, octets: int) -> None:
        if octets < self.size:
            raise UnreadableMessage(f"the kernel sent {octets} octets where {self.size} are due")


def _native(code: str) -> str:
    return _NETWORK_ORDER[code][0] if code in _NETWORK_ORDER else code


_NETWORK_ORDER: dict[str, tuple[str, _Swap]] = {
    "n": ("H", htons),
    "N": ("I", htonl),
}
