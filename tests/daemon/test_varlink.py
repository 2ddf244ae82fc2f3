"""The control socket as Varlink: a client that is not ours, the service interface, the flags."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import varlink
from varlink.scanner import Interface

from xfrmpy import __version__
from xfrmpy.control import protocol
from xfrmpy.control.interface import METHODS, SERVICE_DESCRIPTION, describe_interface
from xfrmpy.control.protocol import (
    SOCKET_NAME,
    STATUS,
    UP,
    Progress,
    StatusReply,
    TunnelReply,
    TunnelStatus,
)
from xfrmpy.control.values import field_types
from xfrmpy.daemon.callers import Doorkeeper
from xfrmpy.daemon.control_server import ControlServer
from xfrmpy.failures import OperatorError

TUNNEL = TunnelStatus(
    **{name: "" for name, kind in field_types(TunnelStatus).items() if kind is str},
    seconds_up=1.5,
    children=[],
    failure=None,
    interface=None,
)


class Daemon:
    """Its tunnels come up in two steps, but for `refused`; `ups` are those that were asked for."""

    def __init__(self) -> None:
        self.ups: list[str] = []

    async def status(self, _parameters: dict[str, Any]) -> AsyncIterator[StatusReply]:
        tunnels = [replace(TUNNEL, name=name) for name in self.ups]
        yield StatusReply(version="1", pid=7, seconds_up=0.5, drops={"a": 1}, tunnels=tunnels)

    async def up(self, parameters: dict[str, Any]) -> AsyncIterator[Progress | TunnelReply]:
        name = parameters["tunnel"]
        yield Progress(tunnel=name, seconds=0.25, text="IKE_SA_INIT")
        yield Progress(tunnel=name, seconds=0.5, text="IKE_AUTH")
        if name == "refused":
            raise OperatorError("XF2005", "no", (("we sent", "IKE_AUTH"),))
        self.ups.append(name)
        yield TunnelReply(changed=True, tunnel=replace(TUNNEL, name=name))

    def serve(self, directory: Path, talk: Callable[[], Any]) -> Any:
        """Run `talk`, which blocks, beside the server."""

        async def both() -> Any:
            methods = {STATUS: self.status, UP: self.up}
            server = ControlServer(directory / SOCKET_NAME, methods, Doorkeeper(None))
            await server.start()
            try:
                return await asyncio.to_thread(talk)
            finally:
                await server.stop()

        return asyncio.run(both())


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


def calls(directory: Path, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """Send calls at once, say that no more come, and take all that comes back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(5.0)
        caller.connect(str(directory / SOCKET_NAME))
        caller.sendall(b"".join(json.dumps(message).encode() + b"\0" for message in messages))
        caller.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := caller.recv(65536):
            answer += piece
    return [json.loads(message) for message in answer.split(b"\0")[:-1]]


def up(name: str, **flags: bool) -> dict[str, Any]:
    return {"method": UP, "parameters": {"tunnel": name, "timeout_seconds": 5}, **flags}


def test_a_foreign_client_finds_its_way_by_the_description_alone(
    tmp_path: Path, daemon: Daemon
) -> None:
    def talk() -> tuple[Any, ...]:
        with (
            varlink.Client(f"unix:{tmp_path / SOCKET_NAME}") as client,
            contextlib.closing(client.open("org.varlink.service")) as service,
            contextlib.closing(client.open("org.xfrmpy")) as connection,
        ):
            steps = list(connection.Up("office", 5.0, _more=True))
            return service.GetInfo(), steps, connection.Status(), connection.Status("office")

    info, steps, status, one = daemon.serve(tmp_path, talk)
    assert (info["product"], info["version"]) == ("xfrmpy", __version__)
    assert info["interfaces"] == ["org.varlink.service", "org.xfrmpy"]
    assert [step["progress"]["text"] for step in steps[:-1]] == ["IKE_SA_INIT", "IKE_AUTH"]
    assert steps[-1]["tunnel"]["name"] == "office"
    assert (status["pid"], status["tunnels"][0]["seconds_up"]) == (7, 1.5)
    assert one == status


def test_a_foreign_client_is_told_our_failure_as_it_is_described(
    tmp_path: Path, daemon: Daemon
) -> None:
    def talk() -> None:
        with (
            varlink.Client(f"unix:{tmp_path / SOCKET_NAME}") as client,
            contextlib.closing(client.open("org.xfrmpy")) as connection,
        ):
            connection.Up("refused", 5.0)

    with pytest.raises(varlink.VarlinkError) as caught:
        daemon.serve(tmp_path, talk)
    assert caught.value.error() == "org.xfrmpy.Failed"
    assert caught.value.parameters()["evidence"] == [["we sent", "IKE_AUTH"]]


def test_the_description_has_every_method_and_every_field_of_what_is_said() -> None:
    members = Interface(describe_interface()).members
    for name, method in METHODS.items():
        described = members[name.removeprefix("org.xfrmpy.")]
        assert list(described.in_type.fields) == list(field_types(method.takes))
        replied = [field for field in described.out_type.fields if field != "progress"]
        assert replied == list(field_types(method.gives))
    for kind in (protocol.TunnelStatus, protocol.ChildSaStatus, protocol.FailureReply):
        assert list(members[kind.__name__].type.fields) == list(field_types(kind))


def test_both_descriptions_are_what_the_service_answers_with(
    tmp_path: Path, daemon: Daemon
) -> None:
    asked = [
        {"method": protocol.GET_INTERFACE_DESCRIPTION, "parameters": {"interface": name}}
        for name in ("org.varlink.service", "org.xfrmpy")
    ]
    service, ours = daemon.serve(tmp_path, lambda: calls(tmp_path, *asked))
    assert service["parameters"]["description"] == SERVICE_DESCRIPTION
    assert ours["parameters"]["description"] == describe_interface()
    errors = re.findall(r"error (\w+)", SERVICE_DESCRIPTION)
    assert "PermissionDenied" in Interface(SERVICE_DESCRIPTION).members
    assert len(errors) == 6


@pytest.mark.parametrize(
    ("call", "error", "parameters"),
    [
        ({"method": "org.xfrmpy.Nothing"}, "MethodNotFound", {"method": "org.xfrmpy.Nothing"}),
        ({"method": "org.varlink.service.X"}, "MethodNotFound", None),
        ({"method": "com.example.Up"}, "InterfaceNotFound", {"interface": "com.example"}),
        ({"method": "Up"}, "InterfaceNotFound", {"interface": ""}),
        ({"method": UP}, "InvalidParameter", None),
        (
            {"method": UP, "parameters": {"tunnel": "a", "timeout_seconds": "soon"}},
            "InvalidParameter",
            {"parameter": "timeout_seconds"},
        ),
        (
            {"method": UP, "parameters": {"tunnel": 7, "timeout_seconds": 1}},
            "InvalidParameter",
            {"parameter": "tunnel"},
        ),
        (
            {"method": STATUS, "parameters": {"colour": "red"}},
            "InvalidParameter",
            {"parameter": "colour"},
        ),
        (
            {"method": protocol.GET_INTERFACE_DESCRIPTION},
            "InvalidParameter",
            {"parameter": "interface"},
        ),
        (
            {
                "method": protocol.GET_INTERFACE_DESCRIPTION,
                "parameters": {"interface": "com.example"},
            },
            "InterfaceNotFound",
            {"interface": "com.example"},
        ),
    ],
)
def test_a_call_that_cannot_be_has_the_error_that_varlink_has_for_it(
    tmp_path: Path,
    daemon: Daemon,
    call: dict[str, Any],
    error: str,
    parameters: dict[str, str] | None,
) -> None:
    (reply,) = daemon.serve(tmp_path, lambda: calls(tmp_path, call))
    assert reply["error"] == f"org.varlink.service.{error}"
    assert parameters is None or reply["parameters"] == parameters


def test_a_method_of_the_interface_that_the_daemon_does_not_serve_is_not_implemented(
    tmp_path: Path, daemon: Daemon
) -> None:
    call = {**up("a"), "method": protocol.DOWN}
    (reply,) = daemon.serve(tmp_path, lambda: calls(tmp_path, call))
    assert reply["error"] == "org.varlink.service.MethodNotImplemented"


def test_without_more_there_is_one_reply(tmp_path: Path, daemon: Daemon) -> None:
    with_more = daemon.serve(tmp_path, lambda: calls(tmp_path, up("a", more=True)))
    without = daemon.serve(tmp_path, lambda: calls(tmp_path, up("b")))
    assert [reply.get("continues") for reply in with_more] == [True, True, None]
    assert [reply["parameters"]["tunnel"]["name"] for reply in without] == ["b"]


@pytest.mark.parametrize("name", ["a", "refused"])
def test_a_oneway_call_is_done_and_never_answered(
    tmp_path: Path, daemon: Daemon, name: str
) -> None:
    replies = daemon.serve(
        tmp_path,
        lambda: calls(tmp_path, up(name, oneway=True), {"method": "no.such", "oneway": True}),
    )
    assert replies == []
    assert daemon.ups == ([] if name == "refused" else [name])


def test_calls_sent_together_are_answered_in_their_order(tmp_path: Path, daemon: Daemon) -> None:
    status = {"method": STATUS}
    replies = daemon.serve(
        tmp_path, lambda: calls(tmp_path, status, up("a"), status, up("b"), status)
    )
    seen = [len(r["parameters"]["tunnels"]) for r in replies if "tunnels" in r["parameters"]]
    assert seen == [0, 1, 2]
