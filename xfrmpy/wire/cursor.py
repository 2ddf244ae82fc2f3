"""Reading and writing octets: the one place that slices and checks lengths.

Everything that decodes in this package goes through a `Cursor`, so that no decoder can read past
its end, leave octets over, or raise anything but `Malformed`. No payload is known here.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError  # noqa: N812 (a class with a function's name)
from types import TracebackType
from typing import Any, TypeVar

from xfrmpy.registry import Registry

R = TypeVar("R", bound=Registry)


class Malformed(Exception):
    """The octets break the format; the message says what is wrong, and where in the datagram.

    Decoders raise nothing else.
    """


class Cursor:
    """Reads octets from front to back.

    A stretch whose length has been read from the wire is a `with` block: `with
    cursor.nested(length, place)`. Within it the cursor ends with the stretch, at whose end every
    octet must have been read; a value that refuses to be made of the octets (`ValueError`) is
    malformed too. `place` names what is being read, for error messages.
    """

    __slots__ = ("_data", "_end", "_outer", "_places", "_position")

    def __init__(self, data: bytes, place: str) -> None:
        self._data = data
        self._position = 0
        self._end = len(data)
        self._places = [place]
        self._outer: list[int] = []

    def nested(self, size: int, place: str) -> Cursor:
        """The cursor itself, for a `with` block that reads the next `size` octets."""
        if not 0 <= size <= self._end - self._position:
            raise self._too_short(size)
        self._outer.append(self._end)
        self._places.append(place)
        self._end = self._position + size
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.expect_end()
        elif issubclass(kind, ValueError):
            raise self.malformed(str(error)) from error
        self._end = self._outer.pop()
        self._places.pop()

    @property
    def remaining(self) -> int:
        """How many octets are left."""
        return self._end - self._position

    def take(self, size: int) -> bytes:
        """The next `size` octets."""
        start = self._position
        end = start + size
        if not start <= end <= self._end:
            raise self._too_short(size)
        self._position = end
        return self._data[start:end]

    def rest(self) -> bytes:
        """All octets that are left."""
        return self.take(self._end - self._position)

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """The next fields, as `layout` says."""
        start = self._position
        end = start + layout.size
        if end > self._end:
            raise self._too_short(layout.size)
        self._position = end
        return layout.unpack_from(self._data, start)

    def expect_end(self) -> None:
        """Raise `Malformed` if any octet is left."""
        if self._position != self._end:
            raise self.malformed(f"{self.remaining} octets too many")

    def malformed(self, problem: str) -> Malformed:
        """The error to raise for a problem in what has just been read."""
        return Malformed(f"{', '.join(self._places)}, octet {self._position}: {problem}")

    def _too_short(self, size: int) -> Malformed:
        if size < 0:
            return self.malformed("a length that does not even cover its own header")
        return self.malformed(f"{size} octets expected, {self.remaining} left")


class Members(dict[int, R]):
    """A registry's members by number, unknown ones too: `registry(number)`, but ten times faster.

    An unknown member is made afresh each time, so that a peer cannot grow us.
    """

    def __init__(self, registry: type[R]) -> None:
        super().__init__((int(member), member) for member in registry)
        self._registry = registry

    def __missing__(self, number: int) -> R:
        return self._registry(number)


def pack(layout: Struct, *fields: int | bytes) -> bytes:
    """The octets of the fields. Raises `ValueError` where a number does not fit its field."""
    try:
        return layout.pack(*fields)
    except StructError as error:
        raise ValueError(f"a field does not fit its place on the wire: {error}") from error
