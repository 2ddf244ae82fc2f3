"""C structures as tables over precompiled structs: the alphabet of netlink's messages.

Only how a table is read; the tables stand beside those who use them. What the kernel sends is
trusted to be the kernel's, not to be well laid out: `UnreadableMessage` says so.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from socket import htonl, htons
from typing import Any

from xfrmpy.datapath.interface import DatapathError


class UnreadableMessage(DatapathError):
    """The kernel said something that is not laid out as its header says."""


class Layout:
    """A C structure: values by name <-> octets.

    A field is a code of the `struct` module in native order, `n` or `N` for a 16-bit or 32-bit
    number in network order, padding (`3x`), or another layout, whose names get the field's as a
    prefix (`sel_daddr`). Numbers are int, arrays of octets bytes; what is not given is zero.
    """

    def __init__(self, **fields: str | Layout) -> None:
        self.codes: dict[str, str] = {}
        self.format = "="
        for name, code in fields.items():
            if isinstance(code, Layout):
                self.codes |= {f"{name}_{inner}": kind for inner, kind in code.codes.items()}
                self.format += code.format[1:]
            else:
                if not code.endswith("x"):
                    self.codes[name] = code
                self.format += _NETWORK_ORDER[code][0] if code in _NETWORK_ORDER else code
        self._struct = struct.Struct(self.format)
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

    def unpack(self, data: bytes, offset: int = 0) -> dict[str, Any]:
        """Octets behind the structure are left alone. Raises `UnreadableMessage` if it is cut."""
        if len(data) - offset < self.size:
            raise UnreadableMessage(
                f"the kernel sent {len(data) - offset} octets where {self.size} are due"
            )
        row = dict(zip(self._empty, self._struct.unpack_from(data, offset), strict=True))
        for name, swap in self._swaps:
            row[name] = swap(row[name])
        return row


_NETWORK_ORDER: dict[str, tuple[str, Callable[[int], int]]] = {
    "n": ("H", htons),
    "N": ("I", htonl),
}
