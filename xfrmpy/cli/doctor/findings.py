"""A finding: what a check says, what it has seen, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from xfrmpy.cli.doctor.host import Unseen
from xfrmpy.failures import CATALOGUE

Evidence = tuple[tuple[str, str], ...]


class Verdict(StrEnum):
    """NOTE: it may be meant, or matter only to some. UNSEEN: nothing can be said."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"
    UNSEEN = "unseen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`code` is a row of `xfrmpy.failures.CATALOGUE`: what the daemon would say; often empty."""

    check: str
    verdict: Verdict
    summary: str
    code: str = ""
    evidence: Evidence = ()
    fixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """Makes the findings of one check, by its name."""

    name: str

    def ok(self, summary: str, *evidence: tuple[str, str]) -> Finding:
        return Finding(check=self.name, verdict=Verdict.OK, summary=summary, evidence=evidence)

    def note(self, summary: str, *evidence: tuple[str, str], fix: str = "") -> Finding:
        return Finding(
            check=self.name,
            verdict=Verdict.NOTE,
            summary=summary,
            evidence=evidence,
            fixes=(fix,) if fix else (),
        )

    def problem(
        self, summary: str, *evidence: tuple[str, str], code: str = "", fix: str = ""
    ) -> Finding:
        """With a code and no fix, the catalogue's are taken."""
        return Finding(
            check=self.name,
            verdict=Verdict.PROBLEM,
            summary=summary,
            code=code,
            evidence=evidence,
            fixes=(fix,) if fix else CATALOGUE[code].fixes,
        )

    def unseen(self, summary: str, why: Unseen) -> Finding:
        return Finding(
            check=self.name,
            verdict=Verdict.UNSEEN,
            summary=summary,
            evidence=(("because", why.reason),),
        )
