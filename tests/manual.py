"""The reference of the commands and the manual pages, drawn from what the program itself says.

`docs/commands.md` and `docs/man/` hold them; `python -m tests.manual` renews both, and
`tests/test_manual.py` compares.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from xfrmpy.cli.main import app
from xfrmpy.daemon import __main__ as daemon
from xfrmpy.daemon import blocking
from xfrmpy.failures import ExitCode
from xfrmpy.policy.reference import Key, file_keys, radius_keys, tunnel_keys

DOCS = Path(__file__).parent.parent / "docs"

HEAD = """\
# Commands

What each command takes, as `xfrmpy COMMAND --help` says it; `man xfrmpy` is the same page.
`-o json` answers with one document, whose keys stay.
"""
ABOUT_THE_COMMAND = """
A daemon, xfrmpyd(8), negotiates IKEv2 tunnels and has the Linux kernel, or a process of its own,
move the packets. `xfrmpy` is how it is spoken to. What there shall be stands in policy files,
xfrmpy.yaml(5).
"""
ABOUT_THE_DAEMON = """
The daemon speaks IKEv2 on UDP ports 500 and 4500, and installs SAs and policies in the kernel, or
in a worker process where the kernel has no ESP. It runs in the foreground, and says to systemd(1)
when it is ready. `xfrmpy units --install` writes its unit, xfrmpyd.
"""
ABOUT_THE_POLICY = """
YAML. A file with `tunnels` is in the long form, and can have several; any other file is one tunnel,
whose name is the file's, less `.yaml`. `xfrmpy check` reads them and says what is wrong, with file,
line and column.
"""
EXIT_STATUS = {
    ExitCode.DONE: "Done; or the tunnel is as it was asked for.",
    ExitCode.FAILED: "Something else failed: what is printed has its code, XF....",
    ExitCode.CHANGES_PENDING: "With `--detailed-exitcode`: there is something to change.",
    ExitCode.NOT_UP: "The tunnel is not up.",
    ExitCode.TIMED_OUT: "It was not so within the time given.",
    ExitCode.PEER_REFUSED: "The peer refused.",
    ExitCode.USAGE: "The command line is wrong.",
    ExitCode.BAD_POLICY: "The policy has errors.",
    ExitCode.DAEMON_UNREACHABLE: "No daemon answers.",
    ExitCode.NO_PERMISSION: "The caller may not do that.",
    ExitCode.HOST_CANNOT: "This host lacks what is needed.",
}
FILES = {
    "/etc/xfrmpy/conf.d/*.yaml": "The policy: see xfrmpy.yaml(5).",
    "/run/xfrmpy/conf.d/*.yaml": "Policy until the next boot; hides files of one name in `/etc`.",
    "/usr/lib/xfrmpy/conf.d/*.yaml": "Policy of packages; hidden by files of one name in `/etc`.",
    "/etc/xfrmpy/secrets/": "One secret a file, which nobody else may read.",
    "/run/xfrmpy/": "The control socket, and what a daemon that is killed leaves to the next.",
}
SIGNALS = {
    "SIGTERM, SIGINT": "Take the tunnels down, telling the peers, and end.",
    "SIGUSR2": "End at once and leave the tunnels in force, for the next daemon to go on with.",
}
ENVIRONMENT = {
    "XFRMPY_RUNTIME_DIR": "Where the control socket is, in the place of `/run/xfrmpy`.",
    "XFRMPY_CONFIG_PATH": "Where the policy is, in the place of the three directories.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option or an argument: `--timeout SECONDS`, and what it is for."""

    usage: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command; `usage` is what follows its name."""

    name: str
    usage: str
    text: str
    options: tuple[Option, ...]


def commands() -> Iterator[Command]:
    """All of them, in the order of the general help; those of a group after it."""
    yield from _commands(typer.main.get_command(app), "xfrmpy")


def general_options() -> tuple[Option, ...]:
    """Those that stand before the name of a command, or alone."""
    return tuple(_of_parameter(parameter) for parameter in typer.main.get_command(app).params)


def _commands(group: Any, prefix: str) -> Iterator[Command]:
    parsers = {"daemon": daemon.option_parser(), "block": blocking.option_parser()}
    for name, command in group.commands.items():
        full = f"{prefix} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, full)
        elif name in parsers:
            options = tuple(_of_parser(parsers[name]))
            yield Command(name=full, usage="[OPTION]...", text=command.help, options=options)
        else:
            options = tuple(_of_parameter(parameter) for parameter in command.params)
            named = ["[OPTION]..."] if any(o.usage.startswith("-") for o in options) else []
            usage = " ".join(named + [o.usage for o in options if not o.usage.startswith("-")])
            yield Command(name=full, usage=usage, text=command.help, options=options)


def _of_parameter(parameter: Any) -> Option:
    if parameter.param_type_name == "argument":
        return Option(usage=parameter.metavar, meaning=parameter.help + _default(parameter))
    names = ", ".join(sorted(parameter.opts, key=len))
    value = "" if parameter.is_flag else " " + _value(parameter)
    return Option(usage=names + value, meaning=parameter.help + _default(parameter))


def _value(parameter: Any) -> str:
    if parameter.metavar:
        return str(parameter.metavar)
    choices = getattr(parameter.type, "choices", None)
    if choices:
        return "|".join(str(getattr(choice, "value", choice)) for choice in choices)
    return "NUMBER"


def _default(parameter: Any) -> str:
    shown, default = parameter.show_default, parameter.default
    if isinstance(shown, str):
        return f" Otherwise {shown}."
    if not shown or default is None or isinstance(default, bool):
        return ""
    if isinstance(default, Enum):
        default = default.value
    return f" Otherwise {default:g}." if isinstance(default, float) else f" Otherwise {default}."


def _of_parser(parser: argparse.ArgumentParser) -> Iterator[Option]:
    for action in parser._actions:
        if action.dest != "help":
            value = f" {action.metavar}" if action.metavar else ""
            usage = ", ".join(action.option_strings) + value
            assert action.help
            meaning = action.help[0].upper() + action.help[1:] + "."
            yield Option(usage=usage, meaning=meaning)


def commands_markdown() -> str:
    """`docs/commands.md`."""
    parts = [HEAD]
    for command in commands():
        parts.append(f"## {command.name}\n\n`{f'{command.name} {command.usage}'.strip()}`\n")
        parts.append(_unwrapped(command.text) + "\n")
        if command.options:
            parts.append(_table((f"`{o.usage}`", o.meaning) for o in command.options))
    parts.append("## Options before the command\n")
    parts.append(_table((f"`{o.usage}`", o.meaning) for o in general_options()))
    parts.append("## Exit status\n")
    parts.append(_table((str(int(code)), meaning) for code, meaning in EXIT_STATUS.items()))
    return "\n".join(parts)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {_cell(name)} | {_cell(meaning)} |" for name, meaning in rows]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _unwrapped(text: str) -> str:
    """Paragraphs of one line each."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def man_pages() -> dict[str, str]:
    """The pages by their file names, in the language of man(7)."""
    return {"xfrmpy.1": _xfrmpy_1(), "xfrmpyd.8": _xfrmpyd_8(), "xfrmpy.yaml.5": _xfrmpy_yaml_5()}


def _xfrmpy_1() -> str:
    lines = [
        *_head("xfrmpy", 1, "an IPsec gateway: its tunnels, and what is in force"),
        _synopsis("xfrmpy", "[--runtime-dir DIRECTORY] COMMAND [OPTION]... [ARGUMENT]..."),
        ".SH DESCRIPTION",
        _roff(_unwrapped(ABOUT_THE_COMMAND)),
        ".SH COMMANDS",
    ]
    for command in commands():
        if command.name.removeprefix("xfrmpy ") not in ("daemon", "block"):
            lines.append(".SS " + _roff(f"{command.name} {command.usage}"))
            lines += _paragraphs(command.text)
            lines += _list((o.usage, o.meaning) for o in command.options)
    lines += [".SH OPTIONS", *_list((o.usage, o.meaning) for o in general_options())]
    lines += [".SH EXIT STATUS", *_list((str(int(c)), m) for c, m in EXIT_STATUS.items())]
    lines += [".SH ENVIRONMENT", *_list(ENVIRONMENT.items())]
    lines += [".SH FILES", *_list(FILES.items())]
    lines += [
        ".SH EXAMPLES",
        "Change a policy file; see what that does; do it, unless it cuts you off:",
        *_example("xfrmpy plan && xfrmpy apply --confirm 2m && xfrmpy confirm"),
    ]
    return _page(lines, "xfrmpyd(8), xfrmpy.yaml(5), ip-xfrm(8)")


def _xfrmpyd_8() -> str:
    lines = [
        *_head("xfrmpyd", 8, "the keying daemon of xfrmpy"),
        _synopsis("xfrmpy daemon", "[OPTION]..."),
        _synopsis("xfrmpy block", "[OPTION]...", heading=False),
        ".SH DESCRIPTION",
        _roff(_unwrapped(ABOUT_THE_DAEMON)),
    ]
    for command in commands():
        if command.name in ("xfrmpy daemon", "xfrmpy block"):
            lines.append(".SH " + _roff(command.name.upper()))
            lines += _paragraphs(command.text)
            lines += _list((o.usage, o.meaning) for o in command.options)
    lines += [".SH SIGNALS", *_list(SIGNALS.items())]
    lines += [".SH ENVIRONMENT", *_list(ENVIRONMENT.items())]
    lines += [".SH FILES", *_list(FILES.items())]
    return _page(lines, "xfrmpy(1), xfrmpy.yaml(5)")


def _xfrmpy_yaml_5() -> str:
    lines = [
        *_head("xfrmpy.yaml", 5, "the policy of xfrmpy: which tunnels there are"),
        ".SH DESCRIPTION",
        _roff(_unwrapped(ABOUT_THE_POLICY)),
        ".SH KEYS OF A FILE IN THE LONG FORM",
        *_keys(file_keys()),
        ".SH KEYS OF A TUNNEL",
        "NAME is yours to choose.",
        *_keys(tunnel_keys()),
        ".SH KEYS OF A GROUP OF RADIUS SERVERS",
        *_keys(radius_keys()),
        ".SH EXAMPLES",
        "A tunnel between two sites, in /etc/xfrmpy/conf.d/office.yaml:",
        *_example(
            "peer: vpn.example.org",
            "id: gw1.example.net",
            "psk: secret:office",
            "local: 10.1.0.0/16",
            "remote: 10.2.0.0/16",
        ),
        ".SH FILES",
        *_list(FILES.items()),
    ]
    return _page(lines, "xfrmpy(1), xfrmpyd(8)")


def _keys(keys: Iterable[Key]) -> list[str]:
    return _list((f"{key.name}: {key.example}", key.meaning) for key in keys)


def _head(name: str, section: int, what: str) -> list[str]:
    return [
        '.\\" Drawn from the program by tests/manual.py; changes here are lost.',
        f'.TH {name.upper()} {section} "" xfrmpy "xfrmpy manual"',
        ".SH NAME",
        f"{_roff(name)} \\- {what}",
    ]


def _synopsis(name: str, usage: str, *, heading: bool = True) -> str:
    return (".SH SYNOPSIS\n" if heading else ".br\n") + f"\\fB{_roff(name)}\\fR {_roff(usage)}"


def _paragraphs(text: str) -> list[str]:
    first, *others = _unwrapped(text).split("\n\n")
    return [_roff(first), *(f".PP\n{_roff(other)}" for other in others)]


def _list(rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f".TP\n\\fB{_roff(name)}\\fR\n{_roff(meaning)}" for name, meaning in rows]


def _example(*lines: str) -> list[str]:
    return [".PP", ".in +4n", ".EX", *(_roff(line) for line in lines), ".EE", ".in"]


def _roff(text: str) -> str:
    """Text that no character of is a command; `in backticks` is bold, as are no other marks."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    escaped = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", escaped)
    escaped = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", escaped)
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped


def _page(lines: list[str], see_also: str) -> str:
    return "\n".join([*lines, ".SH SEE ALSO", _roff(see_also)]) + "\n"


def renew() -> None:
    """Write all of it."""
    (DOCS / "commands.md").write_text(commands_markdown())
    (DOCS / "man").mkdir(exist_ok=True)
    for name, page in man_pages().items():
        (DOCS / "man" / name).write_text(page)


if __name__ == "__main__":
    renew()
