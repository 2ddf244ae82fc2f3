"""Why a certificate, a path or a proof of revocation is not accepted: a code, a sentence, evidence.

The codes are those of the catalogue of failures, which this room does not know: a test compares.
"""

from __future__ import annotations

from enum import StrEnum

Evidence = tuple[tuple[str, str], ...]


class Problem(StrEnum):
    """What is wrong, each with its code in the catalogue of failures."""

    MALFORMED = "XF2101"
    TOO_MUCH = "XF2102"
    UNTRUSTED = "XF2103"
    BAD_SIGNATURE = "XF2104"
    NOT_YET_VALID = "XF2105"
    EXPIRED = "XF2106"
    NOT_AN_AUTHORITY = "XF2107"
    PATH_TOO_LONG = "XF2108"
    NAME_NOT_PERMITTED = "XF2109"
    UNKNOWN_CRITICAL = "XF2110"
    AUTHORITY_AS_LEAF = "XF2111"
    WRONG_USAGE = "XF2112"
    WEAK = "XF2113"
    WRONG_IDENTITY = "XF2114"
    REVOKED = "XF2115"
    STATUS_UNKNOWN = "XF2116"
    MISSING = "XF2117"
    NOT_FETCHED = "XF2118"


class Strictness(StrEnum):
    """STRICT: a certificate must be known to be good. SOFT: unknown will do. OFF: not asked."""

    STRICT = "strict"
    SOFT = "soft"
    OFF = "off"


class CertificateRefused(Exception):
    """The only exception that leaves this room."""

    def __init__(self, problem: Problem, summary: str, evidence: Evidence = ()) -> None:
        super().__init__(f"{problem.value}: {summary}")
        self.problem = problem
        self.summary = summary
        self.evidence = evidence
