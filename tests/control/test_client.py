"""The client against a real socket: what it sends, what it believes, and how it fails."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest

from tests.statuses import OFFICE
from xfrmpy.control import client as client_module
from xfrmpy.control.client import MAX_REPLY, Client, runtime_dir
from xfrmpy.control.protocol import (
    FAILED,
    SOCKET_NAME,
    FailureReply,
    Progress,
    StatusReply,
    TunnelReply,
    encode_failure,
    encode_message,
    encode_reply,
)
from xfrmpy.failures import OperatorError

STATUS = StatusReply(version="1", pid=2, seconds_up=3.0, drops={"malformed": 4}, tunnels=[OFFICE])
REFUSED = FailureReply(code="XF2005", summary="no", evidence=[["we sent", "IKE_AUTH"]])


class Daemon(Protocol):
    runtime_dir: Path
    answers: list[bytes]
    holds: bool
    calls: list[dict[str, Any]]


def code_of(error: pytest.ExceptionInfo[OperatorError]) -> str:
    return error.value.failure.code


def test_the_runtime_directory_is_the_one_of_the_environment() -> None:
    assert runtime_dir({"XFRMPY_RUNTIME_DIR": "/run/other"}) == Path("/run/other")
    assert runtime_dir({}) == Path("/run/xfrmpy")
    assert runtime_dir({"XFRMPY_RUNTIME_DIR": ""}) == Path("/run/xfrmpy")


def test_a_status_comes_back_as_it_was_sent(daemon: Daemon) -> None:
    daemon.answers = [encode_reply(STATUS)]
    assert Client(daemon.runtime_dir).status() == STATUS
    assert daemon.calls == [{"method": "org.xfrmpy.Status", "parameters": {}, "more": False}]


def test_a_tunnel_is_asked_for_by_its_name(daemon: Daemon) -> None:
    daemon.answers = [encode_reply(STATUS)]
    Client(daemon.runtime_dir).status("office")
    assert daemon.calls[0]["parameters"] == {"tunnel": "office"}


def test_a_reply_may_come_octet_by_octet(daemon: Daemon) -> None:
    daemon.answers = [bytes([octet]) for octet in encode_reply(STATUS)]
    assert Client(daemon.runtime_dir).status() == STATUS


@pytest.mark.parametrize(("verb", "method"), [("up", "org.xfrmpy.Up"), ("down", "org.xfrmpy.Down")])
def test_a_change_tells_its_progress_and_then_its_result(
    daemon: Daemon, verb: str, method: str
) -> None:
    steps = [Progress(tunnel="office", seconds=n / 10, text=f"step {n}") for n in range(3)]
    result = TunnelReply(changed=True, tunnel=OFFICE)
    daemon.answers = [
        b"".join(encode_reply(step, continues=True) for step in steps) + encode_reply(result)
    ]
    replies = list(getattr(Client(daemon.runtime_dir), verb)("office", 7.5))
    assert replies == [*steps, result]
    parameters = {"tunnel": "office", "timeout_seconds": 7.5}
    assert daemon.calls == [{"method": method, "parameters": parameters, "more": True}]


def test_the_daemons_own_failure_is_raised_with_its_evidence(daemon: Daemon) -> None:
    step = Progress(tunnel="office", seconds=0.1, text="IKE_AUTH")
    daemon.answers = [encode_reply(step, continues=True), encode_failure(REFUSED)]
    replies = Client(daemon.runtime_dir).up("office", 5)
    assert next(replies) == step
    with pytest.raises(OperatorError) as error:
        next(replies)
    assert error.value.failure.evidence == (("we sent", "IKE_AUTH"),)
    assert code_of(error) == "XF2005"


def test_without_a_socket_the_daemon_is_not_running(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as error:
        Client(tmp_path).status()
    assert code_of(error) == "XF4001"
    assert ("socket", str(tmp_path / SOCKET_NAME)) in error.value.failure.evidence


def test_a_socket_that_nobody_serves_is_a_daemon_that_is_not_running(runtime_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(runtime_dir / SOCKET_NAME))
    with pytest.raises(OperatorError) as error:
        Client(runtime_dir).status()
    assert code_of(error) == "XF4001"


def test_a_path_too_long_for_a_socket_is_no_defect_of_ours(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as error:
        Client(tmp_path / ("x" * 200)).status()
    assert code_of(error) == "XF4001"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")
def test_a_socket_of_root_is_not_for_others(daemon: Daemon) -> None:
    daemon.runtime_dir.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(OperatorError) as error:
            Client(daemon.runtime_dir).status()
    finally:
        os.seteuid(0)
    assert code_of(error) == "XF4003"


@pytest.mark.parametrize("sent", [b"", b'{"parameters"', encode_reply(STATUS)[:-1]])
def test_a_daemon_that_goes_away_in_mid_reply_is_stopping(daemon: Daemon, sent: bytes) -> None:
    daemon.answers = [sent]
    with pytest.raises(OperatorError) as error:
        Client(daemon.runtime_dir).status()
    assert code_of(error) == "XF4008"


def test_a_daemon_that_goes_away_between_steps_is_stopping(daemon: Daemon) -> None:
    step = Progress(tunnel="office", seconds=0.1, text="IKE_SA_INIT")
    daemon.answers = [encode_reply(step, continues=True)]
    replies = Client(daemon.runtime_dir).up("office", 5)
    assert next(replies) == step
    with pytest.raises(OperatorError) as error:
        next(replies)
    assert code_of(error) == "XF4008"


def test_a_silent_daemon_times_out(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.holds = True
    moments = iter([0.0, 1.0, 1000.0])
    clock = SimpleNamespace(monotonic=lambda: next(moments))
    monkeypatch.setattr(client_module, "time", clock)
    with pytest.raises(OperatorError) as error:
        Client(daemon.runtime_dir).status()
    assert code_of(error) == "XF4007"


def test_a_reply_without_end_is_cut_off(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_REPLY > 1 << 20
    monkeypatch.setattr(client_module, "MAX_REPLY", 1000)
    daemon.answers = [b"x" * 5000]
    daemon.holds = True
    with pytest.raises(OperatorError) as error:
        Client(daemon.runtime_dir).status()
    assert code_of(error) == "XF4006"


def changed(path: str, value: object) -> bytes:
    """The status with one value replaced; `...` removes it."""
    message: dict[str, Any] = json.loads(json.dumps({"parameters": asdict(STATUS)}))
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place: Any = message
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return encode_message(message)


SENSELESS = {
    "not JSON": b"hello\0",
    "not UTF-8": b"\xff\xfe\0",
    "empty": b"\0",
    "no object": b"[]\0",
    "parameters no object": b'{"parameters": []}\0',
    "nothing in it": b"{}\0",
    "NaN": changed("parameters.seconds_up", 1).replace(b'"seconds_up":1,', b'"seconds_up":NaN,'),
    "too deep": b"[" * 100_000 + b"\0",
    "a number for a string": changed("parameters.version", 7),
    "a string for a number": changed("parameters.pid", "7"),
    "an unknown field": changed("parameters.colour", "red"),
    "a missing field": changed("parameters.pid", ...),
    "drops of strings": changed("parameters.drops", {"malformed": "many"}),
    "tunnels no list": changed("parameters.tunnels", {}),
    "a tunnel no object": changed("parameters.tunnels", [7]),
    "a tunnel without children": changed("parameters.tunnels.0.children", ...),
    "children no list": changed("parameters.tunnels.0.children", 7),
    "a child no object": changed("parameters.tunnels.0.children.0", 7),
    "a child's count a string": changed("parameters.tunnels.0.children.0.octets_in", "1"),
    "a selector no string": changed("parameters.tunnels.0.children.0.local", [1]),
    "a failure no object": changed("parameters.tunnels.0.failure", "XF2001"),
    "a failure of no code": changed(
        "parameters.tunnels.0.failure", {"code": "XF9999", "summary": "", "evidence": []}
    ),
    "evidence not in pairs": changed(
        "parameters.tunnels.0.failure", {"code": "XF2001", "summary": "", "evidence": [["x"]]}
    ),
    "another error": encode_message({"error": "org.varlink.service.MethodNotFound"}),
    "a failure without code": encode_message({"error": FAILED, "parameters": {}}),
}


@pytest.mark.parametrize("sent", SENSELESS.values(), ids=SENSELESS)
def test_a_reply_that_makes_no_sense_is_told_as_such(daemon: Daemon, sent: bytes) -> None:
    daemon.answers = [sent]
    with pytest.raises(OperatorError) as error:
        Client(daemon.runtime_dir).status()
    assert code_of(error) == "XF4006"
