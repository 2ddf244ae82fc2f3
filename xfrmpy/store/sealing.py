"""Sealing of records, each by itself and all of them together.

A record is sealed with AES-256-GCM for the name that it has, so that it is of no use under another.
The `Digest` of all records is kept sealed beside them and changes with each: so a record that was
taken away, or put back as it was before, is noticed. That all of them together were put back as
they were before cannot be noticed: whoever can write the file of a root that has been killed, and
has a copy of a moment ago, can make its successor use nonces twice.
"""

from __future__ import annotations

import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from xfrmpy.store.interface import StoreError

KEY_SIZE = 32
_NONCE_SIZE = 12
_DIGEST_SIZE = 32


class Seal:
    """Seals for one store: `context` are the octets that tell it from any other."""

    def __init__(self, key: bytes, context: bytes) -> None:
        self._cipher = AESGCM(key)
        self._mac = hmac.digest(key, b"digest of records", "sha256")
        self._context = context

    def seal(self, name: bytes, record: bytes) -> bytes:
        # Random nonces do for 2**32 records under a key (NIST SP 800-38D section 8.3): each second
        # a hundred for more than a year.
        nonce = secrets.token_bytes(_NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, record, self._context + name)

    def open(self, name: bytes, sealed: bytes) -> bytes:
        """Raises `StoreError` for what was not sealed here, or not under this name."""
        nonce, rest = sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:]
        try:
            return self._cipher.decrypt(nonce, rest, self._context + name)
        except (InvalidTag, ValueError):
            raise StoreError("a record is not as it was sealed") from None

    def print_of(self, name: bytes, sealed: bytes) -> int:
        """A number for a record as it is sealed, of which nobody can make another one."""
        return int.from_bytes(hmac.digest(self._mac, name + b"\0" + sealed, "sha256"))


class Digest:
    """The sum of the prints of all records: a change costs no more than the record itself."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def add(self, number: int) -> None:
        self.value = (self.value + number) % (1 << 8 * _DIGEST_SIZE)

    def remove(self, number: int) -> None:
        self.add(-number)

    def octets(self) -> bytes:
        return self.value.to_bytes(_DIGEST_SIZE)
