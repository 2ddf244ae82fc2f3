"""What `import` and `export` take; `foreign.py`, which is heavier, does them."""

# ruff: noqa: PLC0415 - the hot commands import this
from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from xfrmpy.cli.options import Format, One, Output, PolicyFiles, told


class ForeignKind(StrEnum):
    """Whose configuration a file is."""

    SWANCTL = "swanctl"
    STRONGSWAN = "strongswan"
    LIBRESWAN = "libreswan"


class Side(StrEnum):
    """Which end of a conn this host is."""

    LEFT = "left"
    RIGHT = "right"


class ForeignPeer(StrEnum):
    """For whom the other end is written."""

    STRONGSWAN = "strongswan"
    LIBRESWAN = "libreswan"


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A swanctl.conf or ipsec.conf.")],
    kind: Annotated[
        ForeignKind | None,
        typer.Option(
            "--from",
            help="Whose it is; `strongswan` and `libreswan` are the two kinds of ipsec.conf.",
            show_default="what it looks like",
        ),
    ] = None,
    secrets: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The ipsec.secrets of an ipsec.conf.",
            show_default="the one beside it",
        ),
    ] = None,
    ours: Annotated[Side, typer.Option(help="Which end of a conn this host is.")] = Side.LEFT,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help="Write `conf.d` and `secrets` there, such as /etc/xfrmpy.",
            show_default="the policy is printed, without secrets",
        ),
    ] = None,
    output: Format = Output.HUMAN,
) -> int:
    """Make policies of strongSwan's or libreswan's configuration, and say what they leave out.

    Needs neither a daemon nor root, and puts nothing in force.
    """
    from xfrmpy.cli.foreign import Foreign, import_file

    return told(
        output,
        lambda: import_file(
            file,
            kind=None if kind is None else Foreign(kind),
            secrets=secrets,
            ours=ours,
            into=into,
            as_json=output is Output.JSON,
        ),
    )


def export(
    tunnel: One,
    paths: PolicyFiles = None,
    kind: Annotated[
        ForeignPeer, typer.Option("--for", help="Who the other end is.")
    ] = ForeignPeer.STRONGSWAN,
    address: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where the other end finds this one.",
            show_default="`local_address` of the policy",
        ),
    ] = "",
    secrets: Annotated[
        bool, typer.Option("--secrets", help="Print the file of its secret in its place.")
    ] = False,
    output: Format = Output.HUMAN,
) -> int:
    """Write the other end of a tunnel: swanctl.conf for strongSwan, ipsec.conf for libreswan."""
    from xfrmpy.cli.foreign import Foreign, export_tunnel

    return told(
        output,
        lambda: export_tunnel(
            tunnel,
            paths or [],
            kind=Foreign(kind),
            address=address,
            with_secrets=secrets,
            as_json=output is Output.JSON,
        ),
    )
