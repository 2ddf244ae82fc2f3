"""`docs/org.xfrmpy.varlink` is the interface; `python -m tests.test_varlink_doc` renews it."""

from __future__ import annotations

from pathlib import Path

from xfrmpy.control.interface import describe_interface

PAGE = Path(__file__).parent.parent / "docs" / "org.xfrmpy.varlink"


def test_the_interface_in_the_docs_is_the_one_of_the_daemon() -> None:
    assert PAGE.read_text() == describe_interface()


if __name__ == "__main__":
    PAGE.write_text(describe_interface())
