"""The command line: what each command takes.

The hot commands (`status`, `up`, `down`) stay below 100 ms: whatever they do not need is imported
in the body of the command that needs it. Commands return their exit code; a failure of the
operator's is an `OperatorError`, which `ending.py` tells.
"""

# ruff: noqa: PLC0415 - see above
from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from copy import copy
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from xfrmpy import __version__
from xfrmpy.cli.cert import cert
from xfrmpy.cli.ending import end
from xfrmpy.cli.foreign_commands import export, import_
from xfrmpy.cli.options import (
    Format,
    Names,
    One,
    OneOfAll,
    Output,
    PolicyFiles,
    complete_tunnel,
    told,
)
from xfrmpy.cli.terminal import say
from xfrmpy.control.client import Client, runtime_dir
from xfrmpy.failures import ExitCode

if TYPE_CHECKING:
    from typer.models import CommandInfo

    from xfrmpy.cli.change import Verb

app = typer.Typer(
    name="xfrmpy",
    help="An IPsec gateway: IKEv2 tunnels through the Linux kernel or in user space.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class DatapathOption(StrEnum):
    """Who moves the packets."""

    AUTO = "auto"
    KERNEL = "kernel"
    USERSPACE = "userspace"


def _refuse_nan(seconds: float) -> float:
    """The one number that is neither below a minimum nor above a maximum."""
    if math.isnan(seconds):
        raise typer.BadParameter("'nan' is not a number of seconds.")
    return seconds


Timeout = Annotated[
    float,
    typer.Option(
        min=0.1, max=3600.0, callback=_refuse_nan, help="Seconds to wait for each tunnel."
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"xfrmpy {__version__}")
        raise typer.Exit


@app.callback()
def options(
    runtime: Annotated[
        Path | None,
        typer.Option(
            "--runtime-dir",
            metavar="DIRECTORY",
            envvar="XFRMPY_RUNTIME_DIR",
            help="Where the daemon's control socket is.",
            show_default="/run/xfrmpy",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print and exit."),
    ] = False,
) -> None:
    if runtime is not None:
        os.environ["XFRMPY_RUNTIME_DIR"] = str(runtime)


@app.command()
def up(tunnels: Names, timeout: Timeout = 60.0, output: Format = Output.HUMAN) -> int:
    """Bring tunnels up, and wait until they are.

    A tunnel that is up already is left as it is.
    """
    return _change("up", tunnels, timeout, output)


@app.command()
def down(tunnels: Names, timeout: Timeout = 10.0, output: Format = Output.HUMAN) -> int:
    """Take tunnels down, telling the peer."""
    return _change("down", tunnels, timeout, output)


@app.command()
def rekey(tunnels: Names, timeout: Timeout = 30.0, output: Format = Output.HUMAN) -> int:
    """Replace the keys of tunnels now, without losing a packet.

    It shows at once what would otherwise show when the lifetimes end: whether the peer agrees.
    """
    return _change("rekey", tunnels, timeout, output)


def _change(verb: Verb, tunnels: list[str], timeout: float, output: Output) -> int:
    from xfrmpy.cli.change import change_tunnels

    client = Client(runtime_dir(os.environ))
    return change_tunnels(client, verb, tunnels, timeout, as_json=output is Output.JSON)


@app.command()
def status(
    tunnel: Annotated[
        str | None,
        typer.Argument(
            metavar="[TUNNEL]",
            help="Show everything of this one; exit with 3 if it is not up.",
            autocompletion=complete_tunnel,
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it again on each change, until Ctrl-C.")
    ] = False,
    output: Format = Output.HUMAN,
) -> int:
    """Show the tunnels, or one of them in full."""
    from xfrmpy.cli.status import show_status

    client = Client(runtime_dir(os.environ))
    as_json = output is Output.JSON
    if watch:
        from xfrmpy.cli.watch import watch_status

        return told(output, lambda: watch_status(client, tunnel, as_json=as_json))
    return told(output, lambda: show_status(client, tunnel, as_json=as_json))


@app.command()
def describe(tunnel: One, output: Format = Output.HUMAN) -> int:
    """Show everything about one tunnel; exit with 3 if it is not up.

    Its policy, its SAs and when they are replaced, why it failed last, and what has happened.
    """
    from xfrmpy.cli.describe import describe_tunnel

    client = Client(runtime_dir(os.environ))
    as_json = output is Output.JSON
    return told(output, lambda: describe_tunnel(client, tunnel, as_json=as_json))


@app.command()
def log(
    tunnel: OneOfAll = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=1000, help="How many past events to show.")
    ] = 20,
    output: Format = Output.HUMAN,
) -> int:
    """Show what has happened to the tunnels, or to one; `-o json` is one document a line."""
    from xfrmpy.cli.log import show_log

    client = Client(runtime_dir(os.environ))
    as_json = output is Output.JSON
    return told(output, lambda: show_log(client, tunnel, lines, follow=follow, as_json=as_json))


@app.command()
def metrics(output: Format = Output.HUMAN) -> int:
    """Print the daemon's metrics in Prometheus' text format."""
    from xfrmpy.cli.documents import document

    def show() -> int:
        text = Client(runtime_dir(os.environ)).metrics().text
        as_json = output is Output.JSON
        say(document("Metrics", text=text) if as_json else text.removesuffix("\n"))
        return ExitCode.DONE

    return told(output, show)


show = typer.Typer(no_args_is_help=True, help="Show what is in force on this host.")
app.add_typer(show, name="show")
app.add_typer(cert, name="cert")


@show.command("kernel")
def show_kernel(tunnel: OneOfAll = None, output: Format = Output.HUMAN) -> int:
    """Show the SAs, policies and interfaces in force, whosever they are, and counters of drops.

    Of both datapaths, without keys. Where no daemon runs, root sees the kernel's, without names.
    """
    from xfrmpy.cli.show_kernel import show_kernel

    client = Client(runtime_dir(os.environ))
    as_json = output is Output.JSON
    return told(output, lambda: show_kernel(client, tunnel, as_json=as_json))


class State(StrEnum):
    """What a tunnel can come to."""

    UP = "up"
    DOWN = "down"


@app.command()
def wait(
    tunnel: One,
    state: Annotated[State, typer.Option("--for", help="What to wait for.")] = State.UP,
    timeout: Annotated[
        float,
        typer.Option(metavar="SPAN", parser=_parse_span, help="How long: 90, 60s, 2m, 1h."),
    ] = "60s",  # type: ignore[assignment]
    output: Format = Output.HUMAN,
) -> int:
    """Wait until a tunnel is up (or down), without bringing it there; exit with 4 if it is not."""
    from xfrmpy.cli.wait import wait_for_tunnel

    client = Client(runtime_dir(os.environ))
    as_json = output is Output.JSON
    return told(output, lambda: wait_for_tunnel(client, tunnel, state, timeout, as_json=as_json))


@app.command()
def check(
    paths: PolicyFiles = None,
    peer: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIRECTORY",
            help="The policy of the other end: say whether the two would agree.",
        ),
    ] = None,
    output: Format = Output.HUMAN,
) -> int:
    """Read policy files and say what is wrong, touching nothing.

    Needs neither a daemon nor root. With `--peer`, compares each tunnel with the other end's; in
    the place of a private key `secret:NAME`, the public one will do, as `secrets/NAME.pub`.
    """
    from xfrmpy.cli.check import check_policy
    from xfrmpy.cli.check_peer import check_pairs

    as_json = output is Output.JSON
    if peer is not None:
        return check_pairs(paths or [], peer, as_json=as_json)
    return check_policy(paths or [], as_json=as_json)


app.command("import")(import_)
app.command()(export)


@app.command()
def doctor(output: Format = Output.HUMAN) -> int:
    """Examine this host and its policy, and say what is in the way of tunnels, and what to do.

    Changes nothing; without root it says what it could not see. Exits with 1 if it finds a problem.
    """
    from xfrmpy.cli.doctor.report import examine_host

    client = Client(runtime_dir(os.environ))
    return told(output, lambda: examine_host(client, as_json=output is Output.JSON))


def _parse_span(text: str) -> float:
    from xfrmpy.cli.wait import parse_span

    try:
        return parse_span(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


PolicyPath = Annotated[
    str | None,
    typer.Argument(
        metavar="[FILE|DIRECTORY|-]",
        help="Policy files to put beside those that are there; `-` reads one.",
        show_default="the files that are there",
    ),
]
PolicyName = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="What a file from `-` is called, less `.yaml`."),
]
Prune = Annotated[
    bool,
    typer.Option("--prune", help="The files given are all there shall be: others go."),
]
Detailed = Annotated[
    bool,
    typer.Option("--detailed-exitcode", help="Exit with 2 if there is something to change."),
]


@app.command()
def plan(
    path: PolicyPath = None,
    name: PolicyName = None,
    prune: Prune = False,
    detailed: Detailed = False,
    output: Format = Output.HUMAN,
) -> int:
    """Show what `apply` would change, and what that does to tunnels that are up."""
    from xfrmpy.cli.apply import read_policy, show_plan

    as_json = output is Output.JSON
    client = Client(runtime_dir(os.environ))
    return told(
        output,
        lambda: show_plan(client, read_policy(path, name), prune, as_json, detailed=detailed),
    )


@app.command()
def diff(
    path: PolicyPath = None,
    name: PolicyName = None,
    prune: Prune = False,
    detailed: Detailed = False,
) -> int:
    """Show the policy in force and the one that is wanted, where they differ, key by key."""
    from xfrmpy.cli.apply import read_policy, show_diff

    client = Client(runtime_dir(os.environ))
    return show_diff(client, read_policy(path, name), prune, detailed=detailed)


@app.command()
def apply(
    path: PolicyPath = None,
    name: PolicyName = None,
    prune: Prune = False,
    confirm: Annotated[
        float | None,
        typer.Option(
            metavar="SPAN",
            parser=_parse_span,
            help="Take it back unless `xfrmpy confirm` comes within so long, such as 120s.",
        ),
    ] = None,
    accept_cut: Annotated[
        bool, typer.Option("--accept-cut", help="Even if it cuts the session typed in.")
    ] = False,
    allow_pending: Annotated[
        bool,
        typer.Option(
            "--allow-pending", help="Even if a peer does not follow yet, which stays up as it was."
        ),
    ] = False,
    timeout: Timeout = 60.0,
    output: Format = Output.HUMAN,
) -> int:
    """Put the policy in force: all of it, or nothing.

    Only what differs is touched. If a change fails, those before it are taken back.
    """
    from xfrmpy.cli.apply import apply_policy, read_policy

    as_json = output is Output.JSON
    client = Client(runtime_dir(os.environ))
    return told(
        output,
        lambda: apply_policy(
            client,
            read_policy(path, name),
            prune=prune,
            confirm_seconds=confirm or 0.0,
            accept_cut=accept_cut,
            allow_pending=allow_pending,
            timeout_seconds=timeout,
            as_json=as_json,
        ),
    )


@app.command()
def confirm(output: Format = Output.HUMAN) -> int:
    """Keep what `apply --confirm` has put in force."""
    from xfrmpy.cli.apply import confirm_policy

    client = Client(runtime_dir(os.environ))
    return told(output, lambda: confirm_policy(client, as_json=output is Output.JSON))


@app.command()
def rollback(timeout: Timeout = 60.0, output: Format = Output.HUMAN) -> int:
    """Put the policy before the last `apply` in force again."""
    from xfrmpy.cli.apply import roll_back

    client = Client(runtime_dir(os.environ))
    as_json = output is Output.JSON
    return told(output, lambda: roll_back(client, timeout, as_json=as_json))


key = typer.Typer(no_args_is_help=True, help="The key by which this host proves who it is.")
app.add_typer(key, name="key")


@key.command("show")
def show_key(output: Format = Output.HUMAN) -> int:
    """Show the public key of this host; it is made at its first use."""
    from xfrmpy.cli.join import show_key

    as_json = output is Output.JSON
    return told(output, lambda: show_key(as_json=as_json))


OurId = Annotated[
    str | None,
    typer.Option("--id", metavar="IDENTITY", help="Who we are.", show_default="made of the key"),
]
OurAddress = Annotated[
    str,
    typer.Option(
        "--address", metavar="HOST", help="Where the other end reaches us.", show_default="nowhere"
    ),
]
OurTraffic = Annotated[
    list[str] | None,
    typer.Option("--local", metavar="PREFIX", help="What is on this side.", show_default=False),
]


@app.command()
def invite(
    tunnel: Annotated[str, typer.Argument(metavar="TUNNEL", help="What it is to be called.")],
    local: OurTraffic = None,
    address: OurAddress = "",
    id_: OurId = None,
) -> int:
    """Print a token with which another host can be the other end of a new tunnel, once."""
    from xfrmpy.cli.join import Ours, invite

    ours = Ours(id=id_, address=address, local=tuple(local or ()))
    return told(Output.HUMAN, lambda: invite(tunnel, ours))


@app.command()
def join(
    token: Annotated[
        str,
        typer.Argument(
            metavar="TOKEN", help="What `invite` or `join` said; `-`: on standard input."
        ),
    ],
    local: OurTraffic = None,
    address: OurAddress = "",
    id_: OurId = None,
    timeout: Timeout = 60.0,
) -> int:
    """Put a tunnel in force with the host whose token this is, and reply to an invitation."""
    from xfrmpy.cli.apply import apply_policy
    from xfrmpy.cli.join import Ours, join

    client = Client(runtime_dir(os.environ))
    put_in_force = partial(
        apply_policy,
        client,
        prune=False,
        confirm_seconds=0.0,
        accept_cut=False,
        allow_pending=False,
        timeout_seconds=timeout,
        as_json=False,
    )
    ours = Ours(id=id_, address=address, local=tuple(local or ()))
    return told(Output.HUMAN, lambda: join(token, ours, put_in_force))


@app.command()
def units(
    install: Annotated[
        bool, typer.Option("--install", help="Write them; without it they are shown.")
    ] = False,
    root: Annotated[
        Path, typer.Option(metavar="DIRECTORY", help="The tree to write into.", show_default="/")
    ] = Path("/"),
    program: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The `xfrmpy` that they start.", show_default="this one"),
    ] = None,
) -> int:
    """Show or install the units for systemd, and what makes the daemon's own user."""
    from xfrmpy.cli.units import install_units, show_units

    return install_units(root, program) if install else show_units(program)


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it up, and say how to enter.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what --keep left up.")] = False,
    datapath: Annotated[
        DatapathOption, typer.Option(help="Who moves the packets.")
    ] = DatapathOption.AUTO,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.5, max=60.0, callback=_refuse_nan, help="Seconds to measure the throughput for."
        ),
    ] = 3.0,
    output: Format = Output.HUMAN,
) -> int:
    """Show a tunnel between two gateways and two hosts, made and removed on this machine."""
    from xfrmpy.cli.demo import remove_demos, run_demo

    as_json = output is Output.JSON
    if remove:
        return told(output, remove_demos)
    return told(
        output, lambda: run_demo(keep=keep, datapath=datapath, seconds=seconds, as_json=as_json)
    )


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def daemon(context: typer.Context) -> NoReturn:
    """Run the daemon in the foreground; `xfrmpy daemon --help` lists its options."""
    # -P: the current directory, which may be anybody's, does not belong on a root's import path.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "xfrmpy.daemon", *context.args])


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def block(context: typer.Context) -> NoReturn:
    """Block what must not go in clear (`on_down: block`), without a daemon; `--lift` lets it pass.

    For boot, before there is a network. The daemon does it, too, and leaves it so when it ends.
    """
    os.execv(sys.executable, [sys.executable, "-P", "-m", "xfrmpy.daemon.blocking", *context.args])


def main() -> NoReturn:
    """The entry point of the `xfrmpy` command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code, whatever happens."""

    def call() -> int:
        called = _app_for(arguments)
        return int(called(list(arguments), prog_name="xfrmpy", standalone_mode=False) or 0)

    return end(call)


def _app_for(arguments: Sequence[str]) -> typer.Typer:
    """The application with the command that is called alone, if it comes first.

    To make them all ready takes as long as Python does to start; only the general help, completion
    and a mistyped name need more than one.
    """
    named = [row for row in app.registered_commands if [_name_of(row)] == [*arguments[:1]]]
    if not named:
        return app
    alone = copy(app)
    alone.registered_commands, alone.registered_groups = named, []
    return alone


def _name_of(row: CommandInfo) -> str | None:
    return row.name or getattr(row.callback, "__name__", None)
