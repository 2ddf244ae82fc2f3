"""A tiny twin of the kernel's classic BPF (Linux: Documentation/networking/filter.rst)."""

from __future__ import annotations

import struct


def result_of(program: bytes, payload: bytes) -> int:
    """What a program returns for a payload; 0 if it loads from beyond the end."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = index = 0
    while True:
        code, if_true, if_false, k = instructions[at]
        at += 1
        match code:
            case 0x20 | 0x40:  # ld [k], ld [x + k]
                start = k + (index if code == 0x40 else 0)
                if start + 4 > len(payload):
                    return 0
                accumulator = int.from_bytes(payload[start : start + 4], "big")
            case 0xB1:  # ldxb 4*([k]&0xf)
                if k >= len(payload):
                    return 0
                index = 4 * (payload[k] & 0xF)
            case 0x45:  # jset
                at += if_true if accumulator & k else if_false
            case 0x15:  # jeq
                at += if_true if accumulator == k else if_false
            case 0x94:
                accumulator %= k
            case 0x04:
                accumulator = (accumulator + k) & 0xFFFFFFFF
            case 0x06:
                return int(k)
            case 0x16:
                return accumulator
            case _:
                raise AssertionError(f"instruction {code:#x}")
