"""Nonces, as every exchange that makes keys has one of each end (RFC 7296 section 2.10)."""

from __future__ import annotations

NONCE_SIZE = 32
"""Octets. RFC 7296 section 2.10: at least half the PRF's key size, whose largest here is 64."""
