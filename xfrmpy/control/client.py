"""The blocking client of the control socket: one connection a call, one call at a time.

What can go wrong here is the operator's to put right, so everything is an `OperatorError` with a
code of the catalogue, and never a bare `OSError`. Nothing of ours but `failures` may be imported,
and no asyncio: this is what the hot commands wait for. A dataclass costs a millisecond to make, so
each method imports what it alone is answered with. The wire format is in `protocol`.
"""

# ruff: noqa: PLC0415 - see above
from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from xfrmpy.control import protocol
from xfrmpy.control.protocol import FailureReply, Progress, StatusReply, TunnelReply
from xfrmpy.control.values import Unfit, decode, parse_object
from xfrmpy.failures import OperatorError

if TYPE_CHECKING:
    from xfrmpy.control.calls import ApplyCall, PlanCall
    from xfrmpy.control.kernel import KernelReply
    from xfrmpy.control.observed import DescribeReply, EventsReply, MetricsReply, WaitReply
    from xfrmpy.control.plans import KeepReply, PlanReply

_Reply = TypeVar("_Reply")

DEFAULT_RUNTIME_DIR = Path("/run/xfrmpy")

MAX_REPLY = 32 * 1024 * 1024
"""Octets. A tunnel takes about 1.5 KiB in a status, so this is some twenty thousand of them."""

STATUS_SECONDS = 10.0
KERNEL_SECONDS = 60.0
"""A kernel with a hundred thousand entries takes a while to tell."""

APPLY_SECONDS = 3600.0
"""A thousand tunnels may be replaced, one after the other."""

GRACE_SECONDS = 5.0
"""How much longer than the daemon we wait: its own time-out says more than ours can."""


def runtime_dir(environ: Mapping[str, str]) -> Path:
    """Where the daemon's socket is: `XFRMPY_RUNTIME_DIR`, or `/run/xfrmpy`."""
    return Path(environ.get("XFRMPY_RUNTIME_DIR") or DEFAULT_RUNTIME_DIR)


class Client:
    """Calls to the daemon that serves `runtime_dir`. Every method may raise `OperatorError`.

    XF4001: no daemon; XF4003: not for this user; XF4006: the reply makes no sense; XF4007: no reply
    in time; XF4008: the daemon went away during the call; any other code: the daemon's own answer.
    """

    def __init__(self, runtime_dir: Path) -> None:
        self._socket_path = runtime_dir / protocol.SOCKET_NAME

    def status(self, tunnel: str | None = None) -> StatusReply:
        """The daemon and all its tunnels, or the one named."""
        parameters = _without_none({"tunnel": tunnel})
        return _decode(StatusReply, self._ask(protocol.STATUS, parameters, STATUS_SECONDS))

    def describe(self, tunnel: str) -> DescribeReply:
        """Everything about one tunnel."""
        from xfrmpy.control.observed import DescribeReply

        parameters = {"tunnel": tunnel}
        return _decode(DescribeReply, self._ask(protocol.DESCRIBE, parameters, STATUS_SECONDS))

    def events(self, tunnel: str | None, last: int) -> EventsReply:
        """The last events, of all or of one tunnel."""
        from xfrmpy.control.observed import EventsReply

        parameters = _without_none({"tunnel": tunnel, "last": last})
        return _decode(EventsReply, self._ask(protocol.MONITOR, parameters, STATUS_SECONDS))

    def metrics(self) -> MetricsReply:
        """The metrics in Prometheus' text format."""
        from xfrmpy.control.observed import MetricsReply

        return _decode(MetricsReply, self._ask(protocol.METRICS, {}, STATUS_SECONDS))

    def show_kernel(self, tunnel: str | None = None) -> KernelReply:
        """What is in force on both datapaths, or of it what is one tunnel's."""
        from xfrmpy.control.kernel import KernelReply

        parameters = _without_none({"tunnel": tunnel})
        return _decode(KernelReply, self._ask(protocol.SHOW_KERNEL, parameters, KERNEL_SECONDS))

    def follow(
        self, tunnel: str | None, last: int, *, heartbeat_seconds: float | None = None
    ) -> Iterator[EventsReply]:
        """The same, and then what happens, for ever; or nothing, as often as is said."""
        from xfrmpy.control.observed import EventsReply

        call = {"tunnel": tunnel, "last": last, "heartbeat_seconds": heartbeat_seconds}
        parameters = _without_none(call)
        for reply, _ in self._call(protocol.MONITOR, parameters, math.inf, more=True):
            yield _decode(EventsReply, reply)

    def wait(self, tunnel: str, state: str, timeout_seconds: float) -> WaitReply:
        """Wait until a tunnel is `up` or `down`; XF4007 if it is not in time."""
        from xfrmpy.control.observed import WaitReply

        parameters = {"tunnel": tunnel, "state": state, "timeout_seconds": timeout_seconds}
        seconds = timeout_seconds + GRACE_SECONDS
        return _decode(WaitReply, self._ask(protocol.WAIT, parameters, seconds))

    def up(self, tunnel: str, timeout_seconds: float) -> Iterator[Progress | TunnelReply]:
        """Bring a tunnel up: what happens on the way, and at last a `TunnelReply`."""
        return self._change(protocol.UP, tunnel, timeout_seconds)

    def down(self, tunnel: str, timeout_seconds: float) -> Iterator[Progress | TunnelReply]:
        """Take a tunnel down, likewise."""
        return self._change(protocol.DOWN, tunnel, timeout_seconds)

    def rekey(self, tunnel: str, timeout_seconds: float) -> Iterator[Progress | TunnelReply]:
        """Replace the Child SAs and the IKE SA of a tunnel, likewise."""
        return self._change(protocol.REKEY, tunnel, timeout_seconds)

    def plan(self, call: PlanCall) -> PlanReply:
        """What it takes to get from what is in force to what policy says."""
        from xfrmpy.control.plans import PlanReply

        return _decode(PlanReply, self._ask(protocol.PLAN, asdict(call), APPLY_SECONDS))

    def apply(self, call: ApplyCall) -> Iterator[Progress | PlanReply]:
        """Put a policy in force: what happens on the way, and at last what was done."""
        from xfrmpy.control.plans import PlanReply

        return self._steps(protocol.APPLY, asdict(call), APPLY_SECONDS, PlanReply)

    def confirm(self) -> KeepReply:
        """Keep what was applied to be confirmed."""
        from xfrmpy.control.plans import KeepReply

        return _decode(KeepReply, self._ask(protocol.CONFIRM, {}, STATUS_SECONDS))

    def rollback(self, timeout_seconds: float) -> Iterator[Progress | PlanReply]:
        """Put the policy before the last one in force again, likewise."""
        from xfrmpy.control.plans import PlanReply

        parameters = {"timeout_seconds": timeout_seconds}
        return self._steps(protocol.ROLLBACK, parameters, APPLY_SECONDS, PlanReply)

    def _change(
        self, method: str, tunnel: str, timeout_seconds: float
    ) -> Iterator[Progress | TunnelReply]:
        parameters = {"tunnel": tunnel, "timeout_seconds": timeout_seconds}
        return self._steps(method, parameters, timeout_seconds + GRACE_SECONDS, TunnelReply)

    def _steps(
        self, method: str, parameters: dict[str, Any], seconds: float, last: type[_Reply]
    ) -> Iterator[Progress | _Reply]:
        for reply, continues in self._call(method, parameters, seconds, more=True):
            if continues:
                yield _decode(Progress, reply.get("progress"))
            else:
                yield _decode(last, reply)

    def _ask(self, method: str, parameters: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The one reply."""
        for reply, _ in self._call(method, parameters, seconds, more=False):
            return reply
        raise _gone(self._socket_path)

    def _call(
        self, method: str, parameters: dict[str, Any], seconds: float, *, more: bool
    ) -> Iterator[tuple[dict[str, Any], bool]]:
        """The parameters of each reply, and whether more replies follow it."""
        deadline_at = time.monotonic() + seconds
        with self._connect(deadline_at) as connection:
            call = {"method": method, "parameters": parameters, "more": more}
            try:
                connection.sendall(protocol.encode_message(call))
            except OSError as error:
                raise _gone(self._socket_path) from error
            continues = True
            messages = _messages(connection, deadline_at, self._socket_path)
            while continues:
                message = _decode_message(next(messages))
                if "error" in message:
                    raise _decode_failure(message, method)
                continues = message.get("continues") is True
                yield message.get("parameters", {}), continues

    def _connect(self, deadline_at: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(_left(deadline_at))
            connection.connect(str(self._socket_path))
        except OSError as error:
            connection.close()
            raise _unreachable(self._socket_path, error) from error
        return connection


def read_reply(kind: type[_Reply], octets: bytes) -> _Reply:
    """One reply that a program of ours wrote, as the daemon would have. Raises XF4006."""
    return _decode(kind, _decode_message(octets.rstrip(b"\0")).get("parameters", {}))


def _messages(connection: socket.socket, deadline_at: float, socket_path: Path) -> Iterator[bytes]:
    """The messages of the daemon, without their NULs; ends only by raising."""
    buffer = bytearray()
    while True:
        searched = len(buffer)
        buffer += _receive(connection, deadline_at, socket_path)
        while (end := buffer.find(0, searched)) >= 0:
            yield bytes(buffer[:end])
            del buffer[: end + 1]
            searched = 0
        if len(buffer) > MAX_REPLY:
            raise _malformed(f"a reply of more than {MAX_REPLY} octets")


def _receive(connection: socket.socket, deadline_at: float, socket_path: Path) -> bytes:
    try:
        connection.settimeout(_left(deadline_at))
        octets = connection.recv(256 * 1024)
    except TimeoutError as error:
        raise OperatorError("XF4007", "the daemon did not answer in time") from error
    except OSError as error:
        raise _gone(socket_path) from error
    if not octets:
        raise _gone(socket_path)
    return octets


def _without_none(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _left(deadline_at: float) -> float | None:
    """None is for ever, to a socket."""
    if math.isinf(deadline_at):
        return None
    left = deadline_at - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _decode_message(octets: bytes) -> dict[str, Any]:
    try:
        message = parse_object(octets)
    except Unfit as error:
        raise _malformed(f"a reply that {error}") from error
    if not isinstance(message.get("parameters", {}), dict):
        raise _malformed("a reply whose parameters are no object")
    return message


def _decode_failure(message: dict[str, Any], method: str) -> OperatorError:
    name, parameters = message["error"], message.get("parameters", {})
    if name == protocol.PERMISSION_DENIED:
        return _denied(method)
    if name != protocol.FAILED:
        told = "".join(f", {key} {value!r}" for key, value in parameters.items())
        return _malformed(f"the error {name!r}{told}")
    reply = _decode(FailureReply, parameters)
    return OperatorError(
        reply.code, reply.summary, tuple((label, seen) for label, seen in reply.evidence)
    )


def _decode(kind: type[_Reply], value: object) -> _Reply:
    try:
        return decode(kind, value)
    except Unfit as error:
        raise _malformed(f"a {kind.__name__}: {error}") from error


def _denied(method: str) -> OperatorError:
    verb = method.rpartition(".")[2].lower()
    evidence = (("asked for", verb), ("may ask for it", "root, and the user of the daemon"))
    return OperatorError("XF4003", "the daemon does not do this for this user", evidence)


def _unreachable(socket_path: Path, error: OSError) -> OperatorError:
    evidence = (("socket", str(socket_path)), ("error", error.strerror or str(error)))
    if isinstance(error, PermissionError):
        return OperatorError("XF4003", "the daemon's socket is not open to this user", evidence)
    if isinstance(error, TimeoutError | BlockingIOError):
        return OperatorError("XF4007", "the daemon does not take the call", evidence)
    return OperatorError("XF4001", "no daemon listens at the control socket", evidence)


def _gone(socket_path: Path) -> OperatorError:
    evidence = (("socket", str(socket_path)),)
    return OperatorError("XF4008", "the daemon went away before it had answered", evidence)


def _malformed(what: str) -> OperatorError:
    summary = "the daemon's answer makes no sense to this command"
    hint = "the daemon may be of another version: restart it after an upgrade"
    return OperatorError("XF4006", summary, (("it sent", what), ("note", hint)))
