"""Where the key of a store is: in the kernel if it takes it, else in a file of its own.

The keyring of the user keeps it as long as the host runs and no file system ever sees it. Many
containers forbid the calls. See keyrings(7), add_key(2) and keyctl(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import secrets
from pathlib import Path

from xfrmpy.store.interface import StoreError
from xfrmpy.store.sealing import KEY_SIZE

FILE_NAME = "store-key"

_CALLS = {"x86_64": (248, 250), "aarch64": (217, 219)}
"""The numbers of add_key(2) and keyctl(2)."""

_USER_KEYRING = -4
_SETPERM, _UNLINK, _SEARCH, _READ = 5, 9, 10, 11
_OWNER_ONLY = 0x3F3F0000
"""Everything for who possesses the key, and for its user, who after a restart may not."""


class KernelKeyring:
    """A key in the user's keyring, under a description. Methods raise `OSError`."""

    def __init__(self, description: str) -> None:
        numbers = _CALLS.get(platform.machine())
        if numbers is None:
            raise OSError(f"the system calls of {platform.machine()} are not known")
        self._add_key, self._keyctl = numbers
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._description = description.encode()

    def write(self, key: bytes) -> None:
        ring = ctypes.c_int(_USER_KEYRING)
        found = self._call(self._add_key, b"user", self._description, key, len(key), ring)
        self._call(self._keyctl, _SETPERM, found, ctypes.c_uint(_OWNER_ONLY))

    def read(self) -> bytes:
        buffer = ctypes.create_string_buffer(KEY_SIZE)
        size = self._call(self._keyctl, _READ, self._find(), buffer, KEY_SIZE)
        return buffer.raw[:size]

    def remove(self) -> None:
        self._call(self._keyctl, _UNLINK, self._find(), ctypes.c_int(_USER_KEYRING))

    def _find(self) -> int:
        ring = ctypes.c_int(_USER_KEYRING)
        return self._call(self._keyctl, _SEARCH, ring, b"user", self._description, 0)

    def _call(self, number: int, *arguments: object) -> int:
        result = int(self._libc.syscall(number, *arguments))
        if result < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return result


class KeyFile:
    """The same in a file that only its owner can read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, key: bytes) -> None:
        self._path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags, 0o600), "wb") as stream:
            stream.write(key)

    def read(self) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags), "rb") as stream:
            return stream.read(KEY_SIZE + 1)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class KeyPlace:
    """Wherever the key of the store in a directory is. `in_kernel` says where that was at last."""

    def __init__(self, directory: Path) -> None:
        self._file = KeyFile(directory / FILE_NAME)
        self._keyring: KernelKeyring | None = None
        self.in_kernel = False
        with contextlib.suppress(OSError):
            self._keyring = KernelKeyring(f"xfrmpy:{directory.resolve()}")

    def make(self) -> bytes:
        """A new key in the place of any other. Raises `StoreError`."""
        key = secrets.token_bytes(KEY_SIZE)
        self.in_kernel = self._is_in_kernel(key)
        try:
            if self.in_kernel:
                self._file.remove()
            else:
                self._file.write(key)
        except OSError as error:
            raise StoreError(f"its key cannot be kept: {error.strerror}") from error
        return key

    def _is_in_kernel(self, key: bytes) -> bool:
        """Whether the kernel has taken the key and gives it back."""
        if self._keyring is None:
            return False
        try:
            self._keyring.write(key)
            return self._keyring.read() == key
        except OSError:
            return False

    def find(self) -> bytes:
        """The key that was made before. Raises `StoreError`."""
        for place in (self._keyring, self._file):
            with contextlib.suppress(OSError):
                key = b"" if place is None else place.read()
                if len(key) == KEY_SIZE:
                    self.in_kernel = place is self._keyring
                    return key
        raise StoreError("its key is gone")

    def remove(self) -> None:
        for place in (self._keyring, self._file):
            with contextlib.suppress(OSError):
                if place is not None:
                    place.remove()
