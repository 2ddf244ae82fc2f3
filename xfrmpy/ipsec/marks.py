"""Marks: numbers that a host gives to packets of its own, to treat alike what looks different.

They never leave the host. Which packets bear one is the operator's business (nftables, a program);
what an SA takes in can be given one (XFRMA_SET_MARK).
"""

from __future__ import annotations

from dataclasses import dataclass

OUR_MARK = 0x5846
"""`XF`, as in `OUR_REQIDS`: that of every packet that is protected already, and of IKE's."""

OUR_BITS = 0xFFFF
"""Those of a mark by which it is ours. The others of a packet that is protected are free."""

MAX_MARK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Mark:
    """A packet whose mark equals `value` in the bits of `mask` is meant."""

    value: int
    mask: int = MAX_MARK

    def __post_init__(self) -> None:
        if not 0 <= self.value <= MAX_MARK or not 0 < self.mask <= MAX_MARK:
            raise ValueError("a mark and its mask have 32 bits")
        if self.value & ~self.mask:
            raise ValueError(f"the mark 0x{self.value:x} is not within the mask 0x{self.mask:x}")
        if self.value & OUR_BITS == OUR_MARK:
            raise ValueError(f"the mark 0x{OUR_MARK:x} is xfrmpy's own")

    @classmethod
    def parse(cls, text: str) -> Mark:
        """Read `VALUE` or `VALUE/MASK`, each in decimal or in hex. Raises `ValueError`."""
        value, slash, mask = text.partition("/")
        return cls(_number(value), _number(mask) if slash else MAX_MARK)

    @classmethod
    def parse_outer(cls, text: str) -> Mark:
        """The same of what protected packets get beside `OUR_MARK`, in the upper 16 bits."""
        value, slash, mask = text.partition("/")
        found = cls(_number(value), _number(mask) if slash else MAX_MARK & ~OUR_BITS)
        if found.mask & OUR_BITS or not found.value:
            raise ValueError("protected packets take marks in the upper 16 bits, such as 0x10000")
        return found

    def __str__(self) -> str:
        return f"0x{self.value:x}" + (f"/0x{self.mask:x}" if self.mask != MAX_MARK else "")


def are_apart(one: Mark | None, other: Mark | None) -> bool:
    """Whether no packet is meant by both; None means every packet."""
    if one is None or other is None:
        return False
    return bool((one.value ^ other.value) & one.mask & other.mask)


def _number(text: str) -> int:
    digits = text.strip().lower()
    base = 16 if digits.startswith("0x") else 10
    if not digits.isascii() or "_" in digits or digits[:1] in ("+", "-"):
        raise ValueError(f"{text!r} is no number")
    try:
        return int(digits, base)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
