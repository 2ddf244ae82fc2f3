"""Classic BPF programs, and how the kernel is given one (Documentation/networking/filter.rst)."""

from __future__ import annotations

import ctypes
import socket
from struct import Struct

_INSTRUCTION = Struct("=HBBI")  # struct sock_filter

LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
LOAD_WORD_BEHIND_X = 0x40  # BPF_LD | BPF_W | BPF_IND
LOAD_HEADER_SIZE = 0xB1  # BPF_LDX | BPF_B | BPF_MSH: X is four times the octet's lower half
JUMP_IF_SET, JUMP_IF_EQUAL = 0x45, 0x15  # BPF_JMP | ... | BPF_K
ADD, MODULO = 0x04, 0x94  # BPF_ALU | ... | BPF_K
RETURN_A, RETURN = 0x16, 0x06


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def assemble(*instructions: tuple[int, int, int, int]) -> bytes:
    """Each: the code, how far to jump if true, and if false, and the operand."""
    return b"".join(_INSTRUCTION.pack(*fields) for fields in instructions)


def attach(sock: socket.socket, option: int, program: bytes) -> None:
    """Give a program to a socket by an option of SOL_SOCKET. Raises `OSError`."""
    code = ctypes.create_string_buffer(program, len(program))
    descriptor = _Program(len(program) // _INSTRUCTION.size, ctypes.cast(code, ctypes.c_char_p))
    sock.setsockopt(socket.SOL_SOCKET, option, bytes(descriptor))
