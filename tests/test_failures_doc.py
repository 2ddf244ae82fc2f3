"""`docs/failures.md` is the catalogue; `python tests/test_failures_doc.py` renews it."""

from __future__ import annotations

from pathlib import Path

from xfrmpy.failures import CATALOGUE, FailureKind

PAGE = Path(__file__).parent.parent / "docs" / "failures.md"

HEAD = """# Failures

Every failure has a code that never changes its meaning. The same code is in what a command prints,
in `status`, in the log, and in `-o json`. Causes stand in the order of their likelihood.
"""

GROUPS = {
    "XF1": "The policy",
    "XF2": "The peer",
    "XF3": "The datapath",
    "XF4": "This host and the daemon",
    "XF5": "The command line",
}


def page() -> str:
    parts = [HEAD]
    for prefix, title in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [entry(c, k) for c, k in sorted(CATALOGUE.items()) if c.startswith(prefix)]
    return "\n".join(parts)


def entry(code: str, kind: FailureKind) -> str:
    lines = [f"### {code}: {kind.title}", "", f"Exit code {int(kind.exit_code)}.", ""]
    lines += [f"- Cause: {cause}." for cause in kind.causes]
    lines += [f"- Try: {fix}." for fix in kind.fixes]
    return "\n".join(lines).rstrip() + "\n"


def test_the_page_of_failures_is_the_catalogue() -> None:
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    PAGE.write_text(page())
