"""The rooms of the house: who may import whom, which of them are pure, and what stays light.

The table is the one of `docs/architecture.md`. Every file's imports are read with `ast`, those in
functions and under TYPE_CHECKING too: a room that is only named is known all the same.
"""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import xfrmpy
from tests.statuses import OFFICE
from xfrmpy.control.observed import (
    DescribeReply,
    EventsReply,
    MetricsReply,
    PolicyStatus,
    WaitReply,
)
from xfrmpy.control.protocol import (
    SOCKET_NAME,
    StatusReply,
    TunnelReply,
    encode_reply,
)

PACKAGE = Path(xfrmpy.__file__).parent

MAY_IMPORT: dict[str, set[str]] = {
    "registry": set(),
    "failures": set(),
    "ipsec": {"registry"},
    "wire": {"registry", "ipsec"},
    "crypto": {"registry", "ipsec"},
    "pki": {"registry", "ipsec"},
    "eap": {"registry"},
    "tokens": {"registry", "crypto"},
    "policy": {"registry", "failures", "ipsec", "crypto", "pki", "tokens"},
    "ike": {
        "registry",
        "failures",
        "ipsec",
        "wire",
        "crypto",
        "pki",
        "eap",
        "policy.model",
        "policy.changes",
    },
    "esp": {"registry", "ipsec", "crypto"},
    "radius": {"registry", "eap"},
    "datapath": {"registry", "ipsec", "esp"},
    "datapath.kernel": {"registry", "ipsec", "esp", "datapath"},
    "datapath.userspace": {"registry", "ipsec", "esp", "datapath"},
    "store": {"registry", "ipsec"},
    "control": {"failures"},
    "daemon": {
        *("registry", "failures", "ipsec", "wire", "crypto", "pki", "eap", "policy", "ike"),
        "tokens",
        *("esp", "radius", "datapath", "datapath.kernel", "datapath.userspace", "store", "control"),
    },
    "cli": {"failures", "policy", "control", "ipsec", "pki"},
}
"""What each room may import of ours beside itself. Naming a room does not name those inside it."""

LIBRARIES: dict[str, set[str]] = {
    "ipsec": {"cryptography"},
    "crypto": {"cryptography"},
    "store": {"cryptography"},
    "pki": {"cryptography"},
    "eap": {"cryptography", "OpenSSL"},
    "radius": {"pyrad"},
    "tokens": {"cryptography", "pkcs11"},
    "datapath.userspace": {"numpy"},
    "policy": {"yaml", "pydantic", "pydantic_core"},
    "cli": {"typer", "rich", "pyroute2"},
}
"""What each room may import of others; a room that is not named here has the standard library."""

PURE = (
    "registry",
    "failures",
    "ipsec",
    "wire",
    "crypto",
    "pki",
    "eap",
    "policy",
    "ike",
    "esp",
    "radius",
)
IMPURE_FILES = {
    f"policy/{name}.py" for name in ("certificates", "custody", "files", "keys", "load")
}
IMPURE_MODULES = {"socket", "asyncio", "threading", "time", "os", "random", "secrets", "logging"}

HEAVY = ("pydantic", "pyroute2", "cryptography", "asyncio")
"""Each costs more than the 100 ms that `status`, `up` and `down` may take in all."""

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_a_room_imports_only_what_the_table_allows(file: str) -> None:
    assert list(violations(file, (PACKAGE / file).read_text())) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("ike/core.py", "import socket"),
        ("ike/core.py", "from xfrmpy.policy.load import load"),
        ("ike/core.py", "from xfrmpy.daemon import service"),
        ("ike/core.py", "from ..daemon import service"),
        ("ike/core.py", "import cryptography.x509"),
        ("ike/core.py", "def later():\n    import asyncio.events"),
        ("wire/header.py", "from xfrmpy.crypto import prf"),
        ("datapath/kernel/datapath.py", "from xfrmpy.datapath.userspace import client"),
        ("datapath/routes.py", "from xfrmpy.datapath.kernel import structs"),
        ("cli/main.py", "from xfrmpy.daemon.service import Service"),
        ("control/client.py", "import yaml"),
        ("datapath/routes.py", "import numpy"),
        ("esp/checksum.py", "import numpy"),
        ("attic/old.py", ""),
    ],
)
def test_an_import_across_the_house_is_found(file: str, line: str) -> None:
    assert list(violations(file, line))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("policy/load.py", "import os"),
        ("ike/core.py", "from xfrmpy.policy.model import TunnelPolicy"),
        ("ike/core.py", "from xfrmpy.ike import states"),
        ("datapath/kernel/datapath.py", "from xfrmpy.datapath.interface import Datapath"),
        ("cli/main.py", "from xfrmpy import __version__"),
    ],
)
def test_an_import_that_the_table_allows_is_none(file: str, line: str) -> None:
    assert list(violations(file, line)) == []


@pytest.mark.parametrize(
    "arguments",
    [
        *(["status"], ["status", "-o", "json"], ["up", "net"], ["down", "net"]),
        *(["log"], ["wait", "net"], ["describe", "net"], ["metrics"]),
    ],
)
@pytest.mark.parametrize("daemon", ["absent", "present"])
def test_a_hot_command_imports_nothing_heavy(
    tmp_path: Path, arguments: list[str], daemon: str
) -> None:
    if daemon == "present":
        _serve_once(tmp_path, arguments[0])
    code, heavy = _run_and_look(tmp_path, arguments)
    assert heavy == []
    assert code == (0 if daemon == "present" else 69)


def test_only_a_worker_that_carries_packets_holds_what_they_need() -> None:
    """15 MiB of numpy, which neither the daemon nor a worker that keeps its sockets has use for."""
    program = (
        "import sys, xfrmpy.daemon.service, xfrmpy.daemon.datapaths\n"
        "worker = 'xfrmpy.datapath.userspace.worker'\n"
        "assert worker not in sys.modules\n"
        "__import__(worker)\n"
        "assert 'numpy' not in sys.modules\n"
        "__import__('xfrmpy.datapath.userspace.outbound')\n"
        "assert 'numpy' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_daemon_without_radius_in_its_policy_does_not_import_it() -> None:
    program = (
        "import sys, xfrmpy.daemon.service\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in {'pyrad', 'netaddr'}]\n"
        "import xfrmpy.daemon.aaa\n"
        "assert 'pyrad.packet' in sys.modules\n"
        "assert 'netaddr' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def violations(file: str, source: str) -> Iterator[str]:
    """What is wrong with a file's imports, a sentence each."""
    room = _room_of(file.removesuffix(".py").replace("/", "."))
    if room not in {*MAY_IMPORT, ""}:
        yield f"{file} stands in no room"
        return
    for line, module in _imports(file, source):
        if reason := _objection(file, room, module):
            yield f"{file}:{line}: {module}: {reason}"


def _objection(file: str, room: str, module: str) -> str:
    top, _, rest = module.partition(".")
    if top == "xfrmpy":
        return _objection_to_ours(room, rest)
    if top in sys.stdlib_module_names:
        impure = room.partition(".")[0] in PURE and file not in IMPURE_FILES
        return f"{room} is pure" if impure and top in IMPURE_MODULES else ""
    known = LIBRARIES.get(room, set()) | LIBRARIES.get(room.partition(".")[0], set())
    return "" if top in known else f"not a library for {room}"


def _objection_to_ours(room: str, module: str) -> str:
    target = _room_of(module)
    allowed = MAY_IMPORT.get(room, set()) | {room, ""}
    if target in allowed or any(_is_within(module, part) for part in allowed if "." in part):
        return ""
    return f"not for {room}"


def _room_of(module: str) -> str:
    """`datapath.kernel.structs` is in `datapath.kernel`; the package itself is in no room, ""."""
    if module in {"", "__init__"}:
        return ""
    parts = module.split(".")
    inner = ".".join(parts[:2])
    return inner if inner in MAY_IMPORT else parts[0]


def _is_within(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def _imports(file: str, source: str) -> Iterator[tuple[int, str]]:
    """The line and the full name of every import; `from a import b` may mean `a.b`, and is that."""
    package = ("xfrmpy/" + file).split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                yield node.lineno, name if _is_module(name) else origin


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def _run_and_look(runtime: Path, arguments: list[str]) -> tuple[int, list[str]]:
    """A command's exit code, and what heavy modules its process held in the end."""
    program = (
        "import json, sys\n"
        "from xfrmpy.cli.main import run\n"
        f"code = run({arguments!r})\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print('\\n' + json.dumps([code, heavy]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XFRMPY_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code, heavy = json.loads(done.stdout.splitlines()[-1])
    return code, heavy


def _serve_once(runtime: Path, verb: str) -> None:
    """Answer one call on the control socket of `runtime`, as the daemon would."""
    replies: dict[str, object] = {
        "status": StatusReply(version="1", pid=1, seconds_up=1.0, drops={}, tunnels=[OFFICE]),
        "log": EventsReply(events=[]),
        "metrics": MetricsReply(text=""),
        "describe": DescribeReply(
            tunnel=OFFICE,
            wanted=False,
            policy=PolicyStatus(
                origin="",
                start="auto",
                key_from="",
                ppks=[],
                ppk_required=False,
                proposals=[],
                lifetime_seconds=None,
                reauth_seconds=None,
                dpd_seconds=30.0,
                children=[],
            ),
            ike_sas=[],
            child_sas=[],
            last_failure=None,
            events=[],
        ),
        "wait": WaitReply(tunnel=OFFICE),
    }
    reply = replies.get(verb, TunnelReply(changed=True, tunnel=OFFICE))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(runtime / SOCKET_NAME))
    listener.listen()

    def answer() -> None:
        connection, _ = listener.accept()
        with listener, connection:
            connection.recv(65536)
            connection.sendall(encode_reply(reply))

    threading.Thread(target=answer, daemon=True).start()
