"""The contract of a store: records by name, changed many at once or not at all.

It knows nothing of what it keeps. Records come sealed out of its hands and into them in clear, so
whoever implements it seals them: they hold keys. The same contract is for what several gateways
share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class StoreError(Exception):
    """A store cannot be used, or refuses what it finds; the sentence says what and why."""


class Store(Protocol):
    """See the module. Every method but `close` may raise `StoreError`."""

    def load(self) -> dict[bytes, bytes]:
        """Every record by its name."""

    def commit(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Put records in place, and delete those that are None: all of it, or nothing."""

    def clear(self) -> None:
        """Leave nothing behind; the store cannot be used any more."""

    def close(self) -> None:
        """Free what this process holds. What is kept stays."""
