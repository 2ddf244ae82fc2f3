"""What the options of several commands are, and how a command that fails is told.

As light as `main.py`, for the hot commands import it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from xfrmpy.cli.failure import tell_failure
from xfrmpy.control.client import Client, runtime_dir
from xfrmpy.failures import OperatorError


class Output(StrEnum):
    """How a command answers."""

    HUMAN = "human"
    JSON = "json"


def complete_tunnel(incomplete: str) -> list[str]:
    try:
        tunnels = Client(runtime_dir(os.environ)).status().tunnels
    except OperatorError:
        return []
    return [tunnel.name for tunnel in tunnels if tunnel.name.startswith(incomplete)]


Names = Annotated[
    list[str],
    typer.Argument(
        metavar="TUNNEL...",
        help="The tunnels, by their names in the policy.",
        autocompletion=complete_tunnel,
        show_default=False,
    ),
]


OneOfAll = Annotated[
    str | None,
    typer.Argument(
        metavar="[TUNNEL]",
        help="Only this one.",
        autocompletion=complete_tunnel,
        show_default=False,
    ),
]
One = Annotated[
    str,
    typer.Argument(
        metavar="TUNNEL",
        help="The tunnel, by its name in the policy.",
        autocompletion=complete_tunnel,
        show_default=False,
    ),
]
PolicyFiles = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[FILE|DIRECTORY]...",
        help="Policy files, or directories of them.",
        show_default="what the daemon would read",
    ),
]
Format = Annotated[Output, typer.Option("--output", "-o", help="How to answer.")]


def told(output: Output, command: Callable[[], int]) -> int:
    """The command's exit code; its failure as a document if that is what was asked for."""
    try:
        return command()
    except OperatorError as error:
        return tell_failure(error.failure, as_json=output is Output.JSON)
