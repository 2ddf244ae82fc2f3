"""Suites to try: each cipher, and each integrity algorithm, in one combination at least.

Cipher and integrity algorithm know nothing of each other, so all their combinations would prove no
more, ten times as slowly.
"""

from __future__ import annotations

from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY, Cipher, Integrity
from xfrmpy.ipsec.proposals import AhSuite, EspSuite

COMBINED_FULLY = ("aes256", "null")
"""Ciphers that are tried with every integrity algorithm."""

PAIRS: list[tuple[Cipher, Integrity | None]] = [
    (cipher, integrity)
    for cipher in CIPHERS
    for integrity in ((None,) if cipher.is_aead else INTEGRITY)
    if integrity in (None, INTEGRITY[0]) or cipher.name in COMBINED_FULLY
]

ESP_SUITES = [
    EspSuite(cipher=cipher, integrity=integrity, esn=esn)
    for cipher, integrity in PAIRS
    for esn in (False, True)
]

AH_SUITES = [AhSuite(integrity=row, esn=esn) for row in INTEGRITY for esn in (False, True)]
