"""Extended BPF programs and the tables that they look into (bpf(2)).

As much of it as choosing a queue takes: the machine's instructions are in the kernel's
Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from struct import Struct

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280}
"""Of the system call, by machine, as Python has no name for it."""

_MAP_CREATE, _MAP_UPDATE, _MAP_DELETE, _PROG_LOAD = 0, 2, 3, 5
_LPM_TRIE, _NO_PREALLOC = 11, 1
_SOCKET_FILTER = 1

_INSTRUCTION = Struct("=BBhi")
_WORD = Struct("=I")
_TABLE = Struct("=5I")  # what kind, octets of a key, of a value, entries, flags
_ENTRY = Struct("=I4xQQQ")  # which table, key, value, flags
_LOADED = Struct("=IIQQIIQI")  # of what kind, instructions and where, licence, log
_ATTRIBUTES = 128
"""Octets; the kernel takes more than it knows if they are zero."""


def instruction(code: int, to: int = 0, of: int = 0, jump: int = 0, operand: int = 0) -> bytes:
    """The registers that it is about, how far to jump or where in memory, and the operand."""
    return _INSTRUCTION.pack(code, to | of << 4, jump, operand)


class PrefixTable:
    """A number for each prefix; of those that begin an address the longest is found."""

    def __init__(self, octets: int, entries: int) -> None:
        """Of addresses of so many octets. Raises `OSError`."""
        key = _WORD.size + octets
        made = _TABLE.pack(_LPM_TRIE, key, _WORD.size, entries, _NO_PREALLOC)
        self._descriptor = _bpf(_MAP_CREATE, made)

    def fileno(self) -> int:
        return self._descriptor

    def put(self, address: bytes, bits: int, number: int) -> None:
        """Raises `OSError`, for one too many, too."""
        key = ctypes.create_string_buffer(_WORD.pack(bits) + address)
        value = ctypes.create_string_buffer(_WORD.pack(number))
        places = map(ctypes.addressof, (key, value))
        _bpf(_MAP_UPDATE, _ENTRY.pack(self._descriptor, *places, 0))

    def remove(self, address: bytes, bits: int) -> None:
        """Raises `OSError`, if it is not there, too."""
        key = ctypes.create_string_buffer(_WORD.pack(bits) + address)
        _bpf(_MAP_DELETE, _ENTRY.pack(self._descriptor, ctypes.addressof(key), 0, 0))

    def close(self) -> None:
        os.close(self._descriptor)


def load_filter(program: bytes, licence: bytes) -> int:
    """A descriptor of a program about packets. Raises `OSError`, if the verifier objects, too."""
    code, words = ctypes.create_string_buffer(program), ctypes.create_string_buffer(licence)
    count, places = len(program) // _INSTRUCTION.size, map(ctypes.addressof, (code, words))
    return _bpf(_PROG_LOAD, _LOADED.pack(_SOCKET_FILTER, count, *places, 0, 0, 0, 0))


def _bpf(command: int, attributes: bytes) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    padded = ctypes.create_string_buffer(attributes, _ATTRIBUTES)
    done: int = ctypes.CDLL(None, use_errno=True).syscall(number, command, padded, _ATTRIBUTES)
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done
