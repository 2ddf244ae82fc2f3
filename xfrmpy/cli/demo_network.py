"""The demo's machines: five network namespaces of no name, and the links between them.

    alice ---- moon ==== wire ==== sun ---- bob
    10.1.0.10  .1 192.0.2.1  198.51.100.1 .1  10.2.0.10

Each namespace is held by a `sleep` of its own; nothing is done in the namespace that the command
was started in. Without root it all happens inside a user namespace, where the kernel allows that.
`wire` is a router that knows only the two gateways' networks (RFC 5737), as the internet would.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from xfrmpy.failures import OperatorError

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end the demo, in order."""

ALICE, MOON, WIRE, SUN, BOB = "alice", "moon", "wire", "sun", "bob"
NAMES = (ALICE, MOON, WIRE, SUN, BOB)
ALICE_ADDRESS, ALICE_NETWORK = "10.1.0.10", "10.1.0.0/24"
BOB_ADDRESS, BOB_NETWORK = "10.2.0.10", "10.2.0.0/24"
MOON_ADDRESS, SUN_ADDRESS = "192.0.2.1", "198.51.100.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Link:
    """A cable: at each end a namespace, the interface's name there, and its address."""

    near: tuple[str, str, str]
    far: tuple[str, str, str]


_LINKS = (
    _Link(near=(ALICE, "eth0", ALICE_ADDRESS), far=(MOON, "lan", "10.1.0.1")),
    _Link(near=(MOON, "wan", MOON_ADDRESS), far=(WIRE, "to-moon", "192.0.2.254")),
    _Link(near=(WIRE, "to-sun", "198.51.100.254"), far=(SUN, "wan", SUN_ADDRESS)),
    _Link(near=(SUN, "lan", "10.2.0.1"), far=(BOB, "eth0", BOB_ADDRESS)),
)
_GATEWAYS = {ALICE: "10.1.0.1", MOON: "192.0.2.254", SUN: "198.51.100.254", BOB: "10.2.0.1"}
_ROUTERS = (MOON, WIRE, SUN)

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: int) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function)


def leave_the_host() -> bool:
    """Move this process into a network namespace of its own; True if a user namespace had to help.

    Raises `OperatorError` XF4003 if the kernel allows neither.
    """
    try:
        _call("unshare", CLONE_NEWNET)
    except PermissionError:
        _enter_user_namespace()
        return True
    except OSError as error:
        raise _impossible(error) from error
    return False


def _enter_user_namespace() -> None:
    """Become root of a user namespace in which we are alone (user_namespaces(7))."""
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _call("unshare", CLONE_NEWNET)
    except OSError as error:
        raise _impossible(error) from error


def _impossible(error: OSError) -> OperatorError:
    evidence = [("the kernel said", error.strerror or str(error))]
    for name in (
        "kernel.unprivileged_userns_clone",
        "kernel.apparmor_restrict_unprivileged_userns",
        "user.max_user_namespaces",
    ):
        path = Path("/proc/sys") / name.replace(".", "/")
        if path.exists():
            evidence.append((name, path.read_text().strip()))
    summary = "neither network namespaces nor user namespaces may be made here"
    return OperatorError("XF4003", summary, tuple(evidence))


@contextmanager
def _signals_waiting() -> Iterator[set[int | signal.Signals]]:
    """Signals that end the demo wait meanwhile; gives the mask that was in force before.

    What a signal's handler raises within the hooks that Python runs at a fork is ignored, and a
    process between its start and its place in a list would be left behind.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Network:
    """The five namespaces, while they are held. `holders` are the process ids that hold them."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._processes: list[subprocess.Popen[Any]] = []
        self.holders: dict[str, int] = {}

    def make(self) -> None:
        """Make the namespaces and the links. XF4005: the kernel lacks something."""
        sleep = shutil.which("sleep") or "/bin/sleep"
        try:
            with _returning_home():
                for name in NAMES:
                    _call("unshare", CLONE_NEWNET)
                    self.holders[name] = self._spawn([sleep, "infinity"]).pid
                _connect(self)
        except (OSError, subprocess.SubprocessError) as error:
            raise OperatorError(
                "XF4005", "the demo's networks cannot be made", _why(error)
            ) from error

    def start(self, name: str, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command inside a namespace; `options` are those of `Popen`."""
        return self._spawn(command, lambda: enter(self.holders[name]), **options)

    def devices(self, name: str) -> set[str]:
        """The network devices of a namespace: see /proc/PID/net/dev in proc(5)."""
        _, _, *lines = Path(f"/proc/{self.holders[name]}/net/dev").read_text().splitlines()
        return {line.partition(":")[0].strip() for line in lines}

    def _spawn(
        self, command: Sequence[str], prepare: Callable[[], None] = lambda: None, **options: Any
    ) -> subprocess.Popen[Any]:
        """A process in a session of its own: Ctrl-C is for us, and then we end it in order."""
        keep = self._keep

        def before_exec() -> None:
            prepare()
            if not keep:
                _call("prctl", _PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, usual)

        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        with _signals_waiting() as usual:
            # preexec_fn is safe here: this process has one thread.
            process = subprocess.Popen(
                command,
                **{**quiet, **options},
                preexec_fn=before_exec,  # noqa: PLW1509
                start_new_session=True,
            )
            self._processes.append(process)
        return process

    def close(self) -> None:
        """End every process that was started here, the last first."""
        for process in reversed(self._processes):
            end_process(process)
        self._processes.clear()

    @contextmanager
    def program(self, name: str, *arguments: str) -> Iterator[Program]:
        """A program of `demo_probe` inside a namespace; it is ended on the way out."""
        command = [sys.executable, "-P", "-m", "xfrmpy.cli.demo_probe", *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = self.start(name, command, **pipes)
        try:
            yield Program(process, arguments[0])
        finally:
            end_process(process)
            self._processes.remove(process)


class Program:
    """A running program of `demo_probe`."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process = process
        self._name = name

    def wait_ready(self) -> None:
        """Until it says that it serves. `OperatorError` XF4005 if it cannot."""
        line = self._stdout.readline()
        if line.strip() != "ready":
            raise OperatorError("XF4005", f"`{self._name}` did not start", (("it said", line),))

    def result(self) -> dict[str, Any]:
        """End its input, and read what it has to say."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        said = self._stdout.read()
        try:
            result: dict[str, Any] = json.loads(said)
        except ValueError:
            result = {"error": said.strip() or "nothing"}
        if "error" in result:
            evidence = (("it said", str(result["error"])),)
            raise OperatorError("XF4005", f"`{self._name}` failed", evidence)
        return result

    @property
    def _stdout(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout


def end_process(process: subprocess.Popen[Any], seconds: float = 10.0) -> int:
    """SIGTERM, and SIGKILL to its whole session if it does not listen; returns its exit code."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def enter(holder: int) -> None:
    """Move this process into the network namespace of another."""
    with open(f"/proc/{holder}/ns/net", "rb") as namespace:
        _call("setns", namespace.fileno(), CLONE_NEWNET)


def _connect(network: Network) -> None:
    """Links, addresses and routes, by netlink: `ip` may not be installed."""
    for link in _LINKS:
        _lay(link, network.holders)
    for name in NAMES:
        enter(network.holders[name])
        _route(name)


@contextmanager
def _returning_home() -> Iterator[None]:
    """This process in its own network namespace again, wherever it went meanwhile."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _call("setns", home, CLONE_NEWNET)
        os.close(home)


def _lay(link: _Link, holders: dict[str, int]) -> None:
    (near, interface, _), (far, far_interface, _) = link.near, link.far
    enter(holders[near])
    with _netlink() as netlink:
        peer = {"ifname": far_interface, "net_ns_pid": holders[far]}
        netlink.link("add", ifname=interface, kind="veth", peer=peer)
    for name, interface, address in (link.near, link.far):
        enter(holders[name])
        with _netlink() as netlink:
            index = netlink.link_lookup(ifname=interface)[0]
            netlink.addr("add", index=index, address=address, prefixlen=24)
            netlink.link("set", index=index, state="up")
            netlink.link("set", index=netlink.link_lookup(ifname="lo")[0], state="up")


def _route(name: str) -> None:
    if name in _GATEWAYS:
        with _netlink() as netlink:
            netlink.route("add", dst="default", gateway=_GATEWAYS[name])
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    if name in _ROUTERS and forwarding.read_text().strip() != "1":
        forwarding.write_text("1")


def _netlink() -> Any:
    from pyroute2 import IPRoute  # noqa: PLC0415 - it takes longer to import than a hot command lives

    return IPRoute()


def _why(error: Exception) -> tuple[tuple[str, str], ...]:
    return (("error", str(error)),)
