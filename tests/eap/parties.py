"""Users of the tests, and octets that are random and repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import count

USERS = {b"alice": "correct horse", b"DOMAIN\\bob": "battery staple", b"carol": ""}


def numbered(seed: str) -> Callable[[int], bytes]:
    """Octets that are others each time, and the same in each run."""
    numbers = count()
    return lambda size: hashlib.sha256(f"{seed}{next(numbers)}".encode()).digest()[:size]
