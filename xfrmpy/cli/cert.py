"""`xfrmpy cert`: what its commands take. They need neither a daemon nor root."""

# ruff: noqa: PLC0415 - what a command does not need is not imported
from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

cert = typer.Typer(
    no_args_is_help=True, help="Make certificates with a small authority of your own."
)

Directory = Annotated[
    Path,
    typer.Option("--ca", metavar="DIRECTORY", help="Where the authority is: ca.pem, ca.key."),
]
HERE = Path("ca")


class Key(StrEnum):
    """What a new key is of; as `KeyType`, which costs the library's import."""

    P256 = "p256"
    P384 = "p384"
    ED25519 = "ed25519"
    RSA3072 = "rsa3072"


KeyOption = Annotated[
    Key, typer.Option("--key", help="Of what kind the key is. All peers know p256 and rsa3072.")
]


@cert.command("ca")
def make_ca(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Its name, such as `O=Example, CN=Example VPN`.")
    ],
    ca: Directory = HERE,
    key: KeyOption = Key.P256,
    days: Annotated[int, typer.Option(min=1, max=36500, help="Days that it is valid.")] = 3650,
) -> int:
    """Make an authority: its certificate, its key (mode 600) and an empty list of revocations.

    Peers get ca.pem; ca.key stays where certificates are issued, and nowhere else.
    """
    from xfrmpy.cli.authority import make_authority_in

    return make_authority_in(ca, name, key, days)


@cert.command()
def issue(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Names the files, and the subject by its CN.")
    ],
    identities: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            metavar="ID",
            help="A host name, address or mailbox that the peer's `id` may be; several are given "
            "one by one.",
            show_default="the name",
        ),
    ] = None,
    ca: Directory = HERE,
    out: Annotated[
        Path, typer.Option(metavar="DIRECTORY", help="Where NAME.pem and NAME.key go.")
    ] = Path(),
    key: KeyOption = Key.P256,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days that it is valid.")] = 365,
) -> int:
    """Issue a certificate for a gateway, with a new key (mode 600)."""
    from xfrmpy.cli.authority import issue_from

    return issue_from(ca, name, identities or [name], out, key, days)


@cert.command("show")
def show_certificates(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Certificates, in PEM or DER.")],
) -> int:
    """Show who a certificate is for, by whom, until when, and whether IKE peers would take it."""
    from xfrmpy.cli.authority import show_file

    return show_file(file)


@cert.command()
def revoke(
    certificates: Annotated[
        list[Path] | None,
        typer.Argument(help="The certificates to take back.", metavar="[FILE]..."),
    ] = None,
    ca: Directory = HERE,
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="Days until the list must be renewed.")
    ] = 30,
) -> int:
    """Take certificates back, in the list crl.pem; without any, renew the list."""
    from xfrmpy.cli.authority import revoke_in

    return revoke_in(ca, certificates or [], days)
