"""`xfrmpy demo`: one tunnel from nothing to packets and back to nothing, on this machine alone.

Two real daemons, two policy files, the real commands; `demo_network` lays the cables and
`demo_probe` measures. Each step ends with what it has shown. Only processes started here are ended,
and they end with this one, however that ends, unless they are to be kept.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from xfrmpy.cli import demo_network
from xfrmpy.cli.demo_network import (
    ALICE,
    ALICE_NETWORK,
    BOB,
    BOB_ADDRESS,
    BOB_NETWORK,
    MOON,
    MOON_ADDRESS,
    NAMES,
    SUN,
    SUN_ADDRESS,
    WIRE,
    Network,
)
from xfrmpy.cli.documents import document
from xfrmpy.cli.terminal import Painter, duration, note, octets, printable, say, wrapped
from xfrmpy.control.client import Client
from xfrmpy.control.protocol import TunnelStatus
from xfrmpy.failures import ExitCode, OperatorError

TUNNEL = "tunnel-a"
_PREFIX = "xfrmpy-demo-"
_STATE = "kept.json"
_READY_SECONDS = 120.0
_LINES_OF_LOG = 12
_WIRE_INTERFACE = "to-moon"
_PORT = 5201

PICTURE = """\
  host         gateway            router           gateway           host
  alice ───────── moon ═══════════ wire ═══════════ sun ──────────── bob
10.1.0.10      192.0.2.1                        198.51.100.1      10.2.0.10"""

POLICY = """\
peer: {peer}
id: {us}.example
peer_id: {them}.example
psk: file:{key}
local: {local}
remote: {remote}
datapath: {datapath}
"""


def run_demo(*, keep: bool, datapath: str, seconds: float, as_json: bool) -> int:
    """Run it all; returns 0, or raises the `OperatorError` that stopped it."""
    started_at = time.monotonic()
    tell = _Narrator(to_stderr=as_json)
    needs_user_namespace = demo_network.leave_the_host()
    with _ended_by_signals(), ExitStack() as undo:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        demo = _Demo(directory, tell, datapath, keep=keep)
        undo.callback(demo.close)
        try:
            result = demo.run(seconds)
            if not keep:
                demo.end(undo)
        except OperatorError:
            demo.show_logs()
            raise
        except BrokenPipeError:
            raise
        except OSError as error:
            evidence = (("error", str(error)), ("in", str(directory)))
            raise OperatorError("XF4005", "the demo cannot be set up", evidence) from error
        if keep:
            undo.pop_all()
            demo.leave(needs_user_namespace)
    seconds_in_all = time.monotonic() - started_at
    tell.line(tell.paint("done", "bold green") + f" in {duration(seconds_in_all)}")
    if as_json:
        say(document("Demo", **result, seconds=round(seconds_in_all, 1)))
    return ExitCode.DONE


class _Demo:
    def __init__(self, directory: Path, tell: _Narrator, datapath: str, *, keep: bool) -> None:
        self._directory = directory
        self._tell = tell
        self._datapath = datapath
        self._network = Network(keep=keep)
        self._daemons: dict[str, subprocess.Popen[Any]] = {}

    def run(self, seconds: float) -> dict[str, Any]:
        """All steps but the last; returns what was measured."""
        self._make_networks()
        self._show_nothing_passes()
        self._start_gateways()
        with self._network.program(WIRE, "capture", _WIRE_INTERFACE) as wire:
            wire.wait_ready()
            self._bring_up()
            moon = self._show_sas()
            ping = self._ping_through()
            throughput = self._measure(seconds)
            seen = self._show_wire(wire.result(), moon)
        return {"datapath": moon.datapath, "ping": ping, "throughput": throughput, "wire": seen}

    def close(self) -> None:
        self._network.close()

    def end(self, undo: ExitStack) -> None:
        """The last step: both daemons are asked to stop, and must leave nothing behind."""
        with self._tell.step("Clean up") as step:
            for name, daemon in self._daemons.items():
                code = demo_network.end_process(daemon)
                _demand(code == 0, f"the daemon of {name} did not stop in good order", code)
                left = self._network.devices(name)
                _demand(left == {"lo", "lan", "wan"}, f"a device is left on {name}", left)
            step.line("both daemons stopped when asked, and left no device")
            undo.close()
            step.shows("namespaces, files and processes are gone")

    def _make_networks(self) -> None:
        with self._tell.step("Two hosts, two gateways, and a wire between them") as step:
            self._network.make()
            for line in PICTURE.splitlines():
                step.line(line)
            step.shows("five network namespaces; nothing of this host is touched")

    def _show_nothing_passes(self) -> None:
        """Also the control of the experiment: a capture that sees nothing would prove nothing."""
        with self._tell.step("Before the tunnel: alice pings bob") as step:
            with self._network.program(WIRE, "capture", _WIRE_INTERFACE) as wire:
                wire.wait_ready()
                ping = self._run_program(ALICE, "ping", BOB_ADDRESS, "1", "0.5")
                clear = wire.result()["packets"]["clear"]
            _demand(not ping["received"], "bob answers, without a tunnel", ping)
            _demand(clear > 0, "the capture on the wire does not see clear text", clear)
            step.shows(f"no answer, and the wire saw it in clear text ({_counted(clear)})")

    def _start_gateways(self) -> None:
        key = self._directory / "shared-key"
        _write_secret(key, os.urandom(32).hex())
        title = "A policy file and a daemon on each gateway"
        with self._tell.step(title) as step, ExitStack() as close:
            listening = {}
            for name, them in ((MOON, SUN), (SUN, MOON)):
                policy = _policy(name, them, key, self._datapath)
                home = self._make_home(name, policy)
                listening[name] = close.enter_context(_notify_socket(home / "notify"))
                self._start_daemon(name, home)
                if name == MOON:
                    step.file(f"moon: {TUNNEL}.yaml", policy)
            for name, ready in listening.items():
                _wait_ready(ready, self._daemons[name], name)
            step.shows("both daemons are ready; sun's policy is the mirror of moon's")

    def _make_home(self, name: str, policy: str) -> Path:
        home = self._directory / name
        for directory in (home, home / "conf.d", home / "run"):
            directory.mkdir(mode=0o700)
        (home / "conf.d" / f"{TUNNEL}.yaml").write_text(policy)
        return home

    def _start_daemon(self, name: str, home: Path) -> None:
        environment = {
            **self._environment(name),
            "XFRMPY_CONFIG_PATH": str(home / "conf.d"),
            "NOTIFY_SOCKET": str(home / "notify"),
        }
        command = [sys.executable, "-P", "-m", "xfrmpy.daemon"]
        with (home / "log").open("wb") as log:
            daemon = self._network.start(name, command, stderr=log, env=environment)
        self._daemons[name] = daemon

    def _bring_up(self) -> None:
        with self._tell.step("The handshake") as step:
            step.command(f"xfrmpy up {TUNNEL}")
            command = [*_XFRMPY, "up", TUNNEL, "--timeout", "60", "-o", "json"]
            answer = json.loads(step.steps_of(command, self._environment(MOON)))
            _raise_failure(answer)
            suite = answer["tunnels"][0]["tunnel"]["suite"]
            step.shows(f"both ends know the key, and agreed on {suite}")

    def _show_sas(self) -> TunnelStatus:
        with self._tell.step("The SAs on both ends") as step:
            for name in (MOON, SUN):
                step.command(f"xfrmpy status {TUNNEL}", on=name)
                step.output([*_XFRMPY, "status", TUNNEL], self._environment(name))
            moon, sun = self._status(MOON), self._status(SUN)
            ours = {(child.spi_in, child.spi_out) for child in moon.children}
            theirs = {(child.spi_out, child.spi_in) for child in sun.children}
            _demand(ours == theirs, "the two ends do not have the same SAs", (ours, theirs))
            step.shows("what goes out at one end comes in at the other, by the same SPIs")
            return moon

    def _ping_through(self) -> dict[str, Any]:
        with self._tell.step("Through the tunnel: alice pings bob") as step:
            ping = self._run_program(ALICE, "ping", BOB_ADDRESS, "5", "2")
            _demand(ping["received"] == ping["sent"], "bob does not answer every ping", ping)
            mean = sum(ping["milliseconds"]) / len(ping["milliseconds"])
            step.shows(f"{ping['received']} of {ping['sent']} answered, {mean:.2f} ms on average")
            return ping

    def _measure(self, seconds: float) -> dict[str, Any]:
        with self._tell.step(f"Throughput: one TCP connection for {duration(seconds)}") as step:
            port = str(_PORT)
            with self._network.program(BOB, "sink", BOB_ADDRESS, port) as sink:
                sink.wait_ready()
                sent = self._run_program(ALICE, "send", BOB_ADDRESS, port, str(seconds))
                got = sink.result()
            _demand(got["octets"] == sent["octets"], "octets were lost", (sent, got))
            rate = got["bits_per_second"] / 1e6
            step.shows(f"{rate:,.0f} Mbit/s: {octets(got['octets'])} sent, and all arrived")
            return got

    def _show_wire(self, seen: dict[str, Any], moon: TunnelStatus) -> dict[str, Any]:
        spis = {int(spi, 16) for child in moon.children for spi in (child.spi_in, child.spi_out)}
        with self._tell.step("What the wire saw, from the first packet to the last") as step:
            for kind, what in _KINDS:
                count = seen["packets"][kind]
                if count or kind in ("ike", "esp", "clear"):
                    size = octets(seen["octets"][kind]) if count else ""
                    step.line(f"{what:<24}{count:>10,}  {size:>9}".rstrip())
            _demand(seen["packets"]["clear"] == 0, "clear text was on the wire", seen["packets"])
            _demand(seen["packets"]["esp"] > 0, "no ESP was on the wire", seen["packets"])
            _demand(set(seen["spis"]) <= spis, "ESP of another SA was on the wire", seen["spis"])
            missed = f" but {_counted(seen['lost'])} too fast to see" if seen["lost"] else ""
            step.shows(f"all of it{missed} was ESP of these two SAs, and not one packet clear")
            return {**seen, "spis": [f"0x{spi:08x}" for spi in seen["spis"]]}

    def _run_program(self, name: str, *arguments: str) -> dict[str, Any]:
        with self._network.program(name, *arguments) as program:
            return program.result()

    def _status(self, name: str) -> TunnelStatus:
        return Client(self._runtime(name)).status(TUNNEL).tunnels[0]

    def _runtime(self, name: str) -> Path:
        return self._directory / name / "run"

    def _environment(self, name: str) -> dict[str, str]:
        painted = {"FORCE_COLOR": "1"} if self._tell.colour else {"NO_COLOR": "1"}
        own = {"XFRMPY_RUNTIME_DIR": str(self._runtime(name)), "PYTHONUNBUFFERED": "1"}
        inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
        columns = str(self._tell.paint.width - len(_Step.INDENT))
        return {**inherited, **painted, **own, "COLUMNS": columns}

    def show_logs(self) -> None:
        """The end of each daemon's log, when something went wrong."""
        for name in self._daemons:
            lines = (self._directory / name / "log").read_text(errors="replace").splitlines()
            note(f"--- the log of {name}, its last {min(len(lines), _LINES_OF_LOG)} lines ---")
            for line in lines[-_LINES_OF_LOG:]:
                note(printable(line))
        note()

    def leave(self, needs_user_namespace: bool) -> None:
        """Say how to enter what is kept, and write down what to remove."""
        holders = self._network.holders
        processes = [*holders.values(), *(daemon.pid for daemon in self._daemons.values())]
        state = {"processes": [[pid, _started(pid)] for pid in processes]}
        (self._directory / _STATE).write_text(json.dumps(state))
        options = "-U --preserve-credentials -n" if needs_user_namespace else "-n"
        with self._tell.step("It stays up") as step:
            step.line("a shell on each machine:")
            for name in NAMES:
                step.command(f"nsenter -t {holders[name]} {options}".ljust(52) + f"# {name}")
            step.line("the commands, from anywhere:")
            for name in self._daemons:
                step.command(f"xfrmpy --runtime-dir {self._runtime(name)} status {TUNNEL}")
            step.line(f"policies and logs are in {self._directory}; to remove it all:")
            step.command("xfrmpy demo --remove")


_XFRMPY = (sys.executable, "-P", "-m", "xfrmpy.cli")

_KINDS = (
    ("ike", "IKE"),
    ("esp", "ESP"),
    ("nat-keepalive", "NAT keep-alive"),
    ("neighbour", "ARP, neighbour discovery"),
    ("fragment", "IP fragments"),
    ("clear", "clear text"),
)


def _policy(us: str, them: str, key: Path, datapath: str) -> str:
    ours, theirs = (ALICE_NETWORK, BOB_NETWORK) if us == MOON else (BOB_NETWORK, ALICE_NETWORK)
    peer = SUN_ADDRESS if us == MOON else MOON_ADDRESS
    return POLICY.format(
        us=us, them=them, peer=peer, key=key, local=ours, remote=theirs, datapath=datapath
    )


def _write_secret(path: Path, text: str) -> None:
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text + "\n")


@contextmanager
def _running(
    command: list[str], environment: dict[str, str], *, stderr: int
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        demo_network.end_process(process)


def _counted(packets: int) -> str:
    return f"{packets:,} packet" if packets == 1 else f"{packets:,} packets"


def _demand(holds: bool, otherwise: str, seen: object) -> None:
    if not holds:
        raise OperatorError("XF4006", f"the demo failed: {otherwise}", (("seen", str(seen)),))


def _raise_failure(answer: dict[str, Any]) -> None:
    """The failure in the answer of `xfrmpy up -o json`, if there is one."""
    failure = answer["tunnels"][0]["failure"] if "tunnels" in answer else answer["failure"]
    if failure is not None:
        evidence = tuple((pair["label"], pair["seen"]) for pair in failure["evidence"])
        raise OperatorError(failure["code"], failure["summary"], evidence)


@contextmanager
def _notify_socket(path: Path) -> Iterator[socket.socket]:
    """Where a daemon says that it is ready, as to systemd: sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(path))
        yield ready


def _wait_ready(ready: socket.socket, daemon: subprocess.Popen[Any], name: str) -> None:
    process = os.pidfd_open(daemon.pid)
    watched: list[socket.socket | int] = [ready, process]
    deadline_at = time.monotonic() + _READY_SECONDS
    try:
        while (left := deadline_at - time.monotonic()) > 0:
            readable = select.select(watched, [], [], left)[0]
            if ready in readable and b"READY=1" in ready.recv(4096).split(b"\n"):
                return
            if process in readable:
                summary = f"the daemon of {name} ended before it was ready"
                evidence = (("exit code", str(daemon.wait())),)
                raise OperatorError("XF4006", summary, evidence)
    finally:
        os.close(process)
    raise OperatorError(
        "XF4007", f"the daemon of {name} was not ready within {_READY_SECONDS:.0f} s"
    )


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind as Ctrl-C does, so that everything is cleaned up."""

    def unwind(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, unwind) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def remove_demos() -> int:
    """End the processes of every demo of this user that was kept, and remove its files."""
    found = 0
    for state in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_STATE}")):
        if state.parent.is_symlink() or state.parent.stat().st_uid != os.getuid():
            continue
        processes = json.loads(state.read_text())["processes"]
        for pid, started in reversed(processes):
            _end_kept(pid, started)
        shutil.rmtree(state.parent)
        say(f"removed {state.parent}")
        found += 1
    if not found:
        say("no demo is kept")
    return ExitCode.DONE


def _end_kept(pid: int, started: str) -> None:
    """SIGTERM, and SIGKILL after ten seconds; nothing if the number is another process's now."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            if _started(pid) != started:
                return
            signal.pidfd_send_signal(process, signal.SIGTERM)
            if not select.select([process], [], [], 10.0)[0]:
                os.killpg(pid, signal.SIGKILL)
        finally:
            os.close(process)


def _started(pid: int) -> str:
    """When a process started, in ticks since boot: field 22 of proc(5)'s stat; empty if gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return ""


class _Narrator:
    """Numbered steps, each with its time and with what it has shown."""

    def __init__(self, *, to_stderr: bool) -> None:
        self._say: Callable[[str], None] = note if to_stderr else say
        self.paint = Painter(sys.stderr if to_stderr else sys.stdout)
        self.colour = self.paint("x", "bold") != "x"
        self._number = 0

    def line(self, text: str = "") -> None:
        self._say(text)

    @contextmanager
    def step(self, title: str) -> Iterator[_Step]:
        self._number += 1
        self.line(f"{self.paint(f'{self._number:>2}', 'cyan')}  {self.paint(title, 'bold')}")
        step = _Step(self)
        try:
            yield step
        except BaseException:
            step.line(f"{self.paint('✗', 'red')} stopped here")
            self.line()
            raise
        self.line()


class _Step:
    INDENT = " " * 4

    def __init__(self, tell: _Narrator) -> None:
        self._tell = tell
        self._started_at = time.monotonic()

    def line(self, text: str) -> None:
        self._tell.line(f"{self.INDENT}{text}".rstrip())

    def command(self, text: str, on: str = "") -> None:
        where = f"{on}" if on else ""
        self.line(self._tell.paint(f"{where}$ {text}", "cyan"))

    def file(self, name: str, text: str) -> None:
        self.line(self._tell.paint(name, "dim"))
        for line in text.splitlines():
            self.line(f"  {line}")

    def output(self, command: list[str], environment: dict[str, str]) -> None:
        """Run a command, and show what it says."""
        with _running(command, environment, stderr=subprocess.STDOUT) as process:
            for line in process.stdout or ():
                self.line(line.rstrip())
            code = process.wait()
        _demand(code == 0, f"`{' '.join(command[3:])}` failed", code)

    def steps_of(self, command: list[str], environment: dict[str, str]) -> str:
        """Run a command, and show its progress; returns what else it says."""
        with _running(command, environment, stderr=subprocess.PIPE) as process:
            for line in process.stderr or ():
                self._progress(line.rstrip())
            return process.stdout.read() if process.stdout is not None else ""

    def _progress(self, line: str) -> None:
        """`tunnel-a   0.01s  IKE_AUTH to ...`, wrapped below its text."""
        before, seconds, text = line.partition("s  ")
        columns = self._tell.paint.width - len(self.INDENT)
        for part in wrapped(text, columns, first=before + seconds):
            self.line(part)

    def shows(self, what: str) -> None:
        paint = self._tell.paint
        taken = duration(time.monotonic() - self._started_at)
        self.line(f"{paint('✓', 'green')} {what}  {paint(taken, 'dim')}")
