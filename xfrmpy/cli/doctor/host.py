"""What `xfrmpy doctor` knows of a host. Everything is read here, and nothing is judged.

What cannot be read is `Unseen`, with the reason: a check must not take it for well.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from stat import S_ISDIR
from struct import Struct
from typing import Any, TypeVar

import xfrmpy
from xfrmpy.cli.check import load_checked
from xfrmpy.control.client import Client, read_reply
from xfrmpy.control.kernel import KernelReply
from xfrmpy.control.protocol import StatusReply
from xfrmpy.control.trial import TrialReply
from xfrmpy.failures import Failure, OperatorError
from xfrmpy.policy.custody import DAEMON_USER
from xfrmpy.policy.load import LoadedPolicy, config_path

PORTS = (500, 4500)
UNITS = ("xfrmpyd.service", "xfrmpy-block.service")
_OTHER_DAEMONS = ("charon", "charon-systemd", "charon-nm", "iked", "pluto", "racoon")
_IPV4 = (
    *("rp_filter", "disable_xfrm", "disable_policy", "accept_redirects", "send_redirects"),
    "forwarding",
)
_SECONDS = 30.0
_TIME_ERROR = 5  # adjtimex(2)
_SIOCGIFFLAGS, _SIOCGIFMTU, _IFF_UP = 0x8913, 0x8921, 0x1
_REQUEST = Struct("=16si20x")  # struct ifreq with ifr_flags, of which this is more, or ifr_mtu


Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Unseen:
    """What could not be seen, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """`elsewhere` is None where nobody tells whether it is in another network namespace."""

    pid: int
    name: str
    arguments: tuple[str, ...] = ()
    elsewhere: bool | None = False

    @property
    def is_ours(self) -> bool:
        return any(argument.startswith("xfrmpy.") for argument in self.arguments)

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpSocket:
    """One on a port of IKE's; without `owners` if they cannot be seen."""

    address: str
    port: int
    owners: tuple[Process, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A file or a directory of ours; `owner` is a uid."""

    path: str
    mode: int
    owner: int
    is_directory: bool = False
    is_secret: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """In seconds since 1970; `is_synchronised` is what the kernel thinks."""

    now: float
    installed_at: float
    is_synchronised: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """`settings` are sysctls by name, as far as they can be read; `mtus` of devices, by name.

    `trusted` are the users who may own what is ours.
    """

    user: int
    version: str
    trusted: frozenset[int]
    trial: TrialReply | Unseen
    daemon: StatusReply | Failure
    policy: LoadedPolicy
    places: tuple[Place, ...]
    unread: tuple[str, ...]
    sockets: tuple[UdpSocket, ...]
    others: tuple[Process, ...]
    settings: Mapping[str, str]
    mtus: Mapping[str, int]
    clock: Clock
    units: Mapping[str, str] | Unseen
    ruleset: tuple[Mapping[str, Any], ...] | Unseen
    kernel: KernelReply | Unseen


def read_host(client: Client) -> Host:
    """The one that this process runs on."""
    processes = tuple(read_processes())
    places, unread = _places()
    return Host(
        user=os.geteuid(),
        version=xfrmpy.__version__,
        trusted=frozenset({0, os.geteuid(), *_daemon_user()}),
        trial=_ask_program(TrialReply, "xfrmpy.cli.doctor.sandbox"),
        daemon=_ask(client),
        policy=load_checked(()),
        places=places,
        unread=unread,
        sockets=tuple(_sockets(processes)),
        others=tuple(p for p in processes if p.name in _OTHER_DAEMONS and not p.elsewhere),
        settings=dict(_settings()),
        mtus=dict(_mtus()),
        clock=_clock(),
        units=_units(),
        ruleset=_ruleset(),
        kernel=_ask_program(KernelReply, "xfrmpy.daemon.inventory"),
    )


def _daemon_user() -> Iterator[int]:
    with suppress(KeyError):
        yield pwd.getpwnam(DAEMON_USER).pw_uid


def _ask_program(kind: type[Reply], module: str) -> Reply | Unseen:
    """What a program of the daemon's room says, which may know a datapath."""
    command = [sys.executable, "-P", "-m", module]
    try:
        done = subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
        return read_reply(kind, done.stdout)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        return Unseen(said[-1] if said else f"{module} ended with {error.returncode}")
    except (OSError, subprocess.TimeoutExpired, OperatorError) as error:
        return Unseen(str(error))


def _ask(client: Client) -> StatusReply | Failure:
    try:
        return client.status()
    except OperatorError as error:
        return error.failure


def _places() -> tuple[tuple[Place, ...], tuple[str, ...]]:
    places: list[Place] = []
    unread: list[str] = []
    for layer in config_path(os.environ):
        secrets = layer.parent / "secrets"
        for path in (layer.parent, layer, secrets):
            if os.path.isdir(path):
                places += _stat(path, unread)
        for directory, is_secret in ((layer, False), (secrets, True)):
            try:
                found = sorted(directory.iterdir())
            except FileNotFoundError:
                continue
            except OSError as error:
                unread.append(f"{directory}: {error.strerror}")
                continue
            for path in found:
                places += _stat(path, unread, is_secret=is_secret)
    return tuple(dict.fromkeys(places)), tuple(unread)


def _stat(path: Path, unread: list[str], *, is_secret: bool = False) -> Iterator[Place]:
    try:
        status = path.stat()
    except OSError as error:
        unread.append(f"{path}: {error.strerror}")
        return
    yield Place(
        path=str(path),
        mode=status.st_mode & 0o7777,
        owner=status.st_uid,
        is_directory=S_ISDIR(status.st_mode),
        is_secret=is_secret and not S_ISDIR(status.st_mode),
    )


def read_processes() -> Iterator[Process]:
    """Those that run: one that has ended, and waits for its parent, has no arguments any more."""
    ours = os.readlink("/proc/self/ns/net")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            name = (entry / "comm").read_text().rstrip("\n")
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if arguments == [""]:
                continue
            try:
                elsewhere: bool | None = os.readlink(entry / "ns/net") != ours
            except PermissionError:
                elsewhere = None
            yield Process(
                pid=int(entry.name), name=name, arguments=tuple(arguments), elsewhere=elsewhere
            )


def _sockets(processes: tuple[Process, ...]) -> Iterator[UdpSocket]:
    found: dict[str, tuple[str, int]] = {}
    for table in ("udp", "udp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                address, _, digits = fields[1].partition(":")
                port = int(digits, 16)
                if port in PORTS:
                    found[fields[9]] = (_address(address), port)
    owners = _owners(processes, found) if found else {}
    for inode, (address, port) in found.items():
        yield UdpSocket(address=address, port=port, owners=tuple(owners.get(inode, ())))


def _address(text: str) -> str:
    """As /proc/net has it: words of four octets, each a number in the order of this machine."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    return str(ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words)))


def _owners(
    processes: tuple[Process, ...], inodes: Mapping[str, object]
) -> dict[str, list[Process]]:
    owners: dict[str, list[Process]] = {}
    for process in processes:
        with suppress(OSError):
            for descriptor in Path("/proc", str(process.pid), "fd").iterdir():
                with suppress(OSError):
                    inode = os.readlink(descriptor).removeprefix("socket:[").rstrip("]")
                    if inode in inodes and process not in owners.get(inode, []):
                        owners.setdefault(inode, []).append(process)
    return owners


def _settings() -> Iterator[tuple[str, str]]:
    base = Path("/proc/sys")
    names = ["net/ipv4/ip_forward", "net/ipv4/ip_no_pmtu_disc"]
    for device in sorted(Path("/proc/sys/net/ipv4/conf").glob("*")):
        names += [f"net/ipv4/conf/{device.name}/{key}" for key in _IPV4]
    for device in sorted(Path("/proc/sys/net/ipv6/conf").glob("*")):
        names += [f"net/ipv6/conf/{device.name}/{key}" for key in ("forwarding", "disable_policy")]
    for name in names:
        with suppress(OSError):
            # A device may have dots in its name: `/` is what sysctl(8) takes beside them.
            yield name, (base / name).read_text().strip()


def _mtus() -> Iterator[tuple[str, int]]:
    """Of devices that are up; not by /sys, which may be another network namespace's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _, name in socket.if_nameindex():
            request = _REQUEST.pack(name.encode(), 0)
            with suppress(OSError):
                flags = _REQUEST.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
                if flags & _IFF_UP:
                    yield name, _REQUEST.unpack(fcntl.ioctl(control, _SIOCGIFMTU, request))[1]


def _clock() -> Clock:
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    return Clock(
        now=time.time(),
        installed_at=os.stat(xfrmpy.__file__).st_mtime,
        is_synchronised=state not in (-1, _TIME_ERROR),
    )


def _units() -> Mapping[str, str] | Unseen:
    if not os.path.isdir("/run/systemd/system"):
        return Unseen("this host does not run systemd")
    units = {}
    for unit in UNITS:
        done = _run("systemctl", "is-enabled", unit)
        if isinstance(done, Unseen):
            return done
        units[unit] = done.stdout.strip() or "not-found"
    return units


def _ruleset() -> tuple[Mapping[str, Any], ...] | Unseen:
    if shutil.which("nft") is None:
        return Unseen("there is no `nft` to read it with")
    done = _run("nft", "-j", "list", "ruleset")
    if isinstance(done, Unseen):
        return done
    if done.returncode:
        return Unseen((done.stderr.strip().splitlines() or ["nft fails"])[0])
    try:
        return tuple(json.loads(done.stdout)["nftables"])
    except (ValueError, LookupError) as error:
        return Unseen(f"nft answers what is no ruleset: {error}")


def _run(*command: str) -> subprocess.CompletedProcess[str] | Unseen:
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Unseen(str(error))
