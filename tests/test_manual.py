"""`docs/commands.md` and the manual pages are what the program says of itself; see `manual.py`."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.manual import DOCS, EXIT_STATUS, commands, commands_markdown, man_pages
from xfrmpy.failures import ExitCode


def test_the_reference_of_the_commands_is_what_they_take() -> None:
    assert (DOCS / "commands.md").read_text() == commands_markdown()


def test_the_manual_pages_are_what_the_program_says() -> None:
    files = {path.name: path.read_text() for path in (DOCS / "man").iterdir()}
    assert files == man_pages()


def test_every_exit_code_has_a_meaning() -> None:
    assert set(EXIT_STATUS) == set(ExitCode)


def test_every_option_has_a_meaning() -> None:
    for command in commands():
        assert command.text, command
        for option in command.options:
            assert option.usage.strip("-, "), command
            assert option.meaning.endswith((".", "`.")), (command.name, option)


@pytest.mark.parametrize("name", man_pages())
@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff")
def test_groff_finds_nothing_wrong_with_a_page(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", "-k", str(DOCS / "man" / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
