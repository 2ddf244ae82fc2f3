"""The daemon's end of the control socket: what came, who may have it, and what goes back.

The protocol is `xfrmpy.control.protocol`, the methods are `xfrmpy.control.interface`. A caller
costs a bounded amount of memory and keeps nobody waiting: what he sends is cut off at `MAX_CALL`,
and who does not read what he asked for is hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from xfrmpy import __version__
from xfrmpy.control import protocol
from xfrmpy.control.interface import (
    INTERFACE,
    METHODS,
    SERVICE_DESCRIPTION,
    Replies,
    describe_interface,
)
from xfrmpy.control.protocol import (
    MAX_CALL,
    Progress,
    encode_error,
    encode_failure,
    encode_message,
    encode_reply,
)
from xfrmpy.control.values import Unfit, decode, parse_object
from xfrmpy.daemon.callers import Caller, Doorkeeper, give_to_group
from xfrmpy.daemon.replies import reply_of
from xfrmpy.failures import Failure, OperatorError

Answer = Callable[[dict[str, Any]], AsyncIterator[Any]]
"""A method: its parameters in, any number of `Progress` and then one reply out; or a stream."""

Send = Callable[[bytes], Awaitable[None]]

log = logging.getLogger(__name__)

SEND_SECONDS = 10.0
"""A caller that does not read for so long is hung up on."""

MAX_CALL_OF_READERS = 64 * 1024

SERVICE = "org.varlink.service"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    method: str
    parameters: dict[str, Any]
    more: bool
    oneway: bool


class _VarlinkError(Exception):
    """An error of `org.varlink.service` to answer with."""

    def __init__(self, error: str, **parameters: str) -> None:
        super().__init__(error)
        self.octets = encode_error(error, **parameters)


class ControlServer:
    """Serves `methods` on a Unix socket, to whom `doorkeeper` lets in."""

    def __init__(self, path: Path, methods: dict[str, Answer], doorkeeper: Doorkeeper) -> None:
        self._path = path
        self._methods = methods
        self._doorkeeper = doorkeeper
        self._server: asyncio.Server | None = None
        self._callers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        listener = self._listen()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._meet, sock=listener)

    async def stop(self) -> None:
        """Stop listening, and hang up on every caller."""
        if self._server is not None:
            self._server.close()
        for caller in tuple(self._callers):
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    def _listen(self) -> socket.socket:
        """Closed to all others from its first moment on, then open to the group if there is one."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        old_mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(old_mask)
        if self._doorkeeper.gid is not None:
            give_to_group(self._path, self._doorkeeper.gid)
        return listener

    def _meet(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(_Reader(limit=MAX_CALL), self._accept)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, _Reader)
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._callers.add(task)
        task.add_done_callback(self._callers.discard)

    async def _serve(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        # Nothing waits in our memory: `drain` returns when the kernel has taken all.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            caller = self._doorkeeper.identify(writer.get_extra_info("socket"))
            with self._doorkeeper.admit(caller):
                if not caller.may_change:
                    reader.restrict(MAX_CALL_OF_READERS)
                await self._converse(reader, writer, caller)
        except OperatorError as error:
            with contextlib.suppress(ConnectionError, TimeoutError):
                await _send(writer, encode_failure(reply_of(error.failure)))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # The caller is done, or sends what no caller of ours would.
        except (ConnectionError, TimeoutError):
            log.debug("a caller of the control socket went away")
        finally:
            writer.transport.abort()

    async def _converse(
        self, reader: _Reader, writer: asyncio.StreamWriter, caller: Caller
    ) -> None:
        async def send(octets: bytes) -> None:
            await _send(writer, octets)

        while True:
            octets = await reader.readuntil(b"\0")
            try:
                call = _decode_call(octets[:-1])
            except Unfit as error:
                failure = Failure(code="XF5001", summary=f"not a call: {error}")
                await send(encode_failure(reply_of(failure)))
                continue
            if call.oneway:
                await self._answer(call, caller, _discard)
            else:
                await _unless_hung_up(self._answer(call, caller, send), reader, writer)

    async def _answer(self, call: _Call, caller: Caller, send: Send) -> None:
        try:
            async for reply in self._replies(call, caller):
                await send(reply)
        except _VarlinkError as error:
            await send(error.octets)
        except OperatorError as error:
            await send(encode_failure(reply_of(error.failure)))

    async def _replies(self, call: _Call, caller: Caller) -> AsyncIterator[bytes]:
        interface, _, _ = call.method.rpartition(".")
        if interface == SERVICE:
            yield encode_message({"parameters": _describe(call)})
            return
        if interface != INTERFACE:
            raise _VarlinkError(protocol.INTERFACE_NOT_FOUND, interface=interface)
        self._check(call, caller)
        is_stream = METHODS[call.method].replies is Replies.STREAM
        replies = self._methods[call.method](call.parameters)
        # Closed at once, and not when its memory is collected: it may listen to something.
        async with contextlib.aclosing(cast("AsyncGenerator[Any, None]", replies)):
            async for reply in replies:
                continues = is_stream or isinstance(reply, Progress)
                if call.more or not continues or is_stream:
                    yield encode_reply(reply, continues=continues and call.more)
                if is_stream and not call.more:
                    return

    def _check(self, call: _Call, caller: Caller) -> None:
        method = METHODS.get(call.method)
        if method is None:
            raise _VarlinkError(protocol.METHOD_NOT_FOUND, method=call.method)
        if not (caller.may_change or method.for_readers):
            raise _VarlinkError(protocol.PERMISSION_DENIED)
        if call.method not in self._methods:
            raise _VarlinkError(protocol.METHOD_NOT_IMPLEMENTED, method=call.method)
        try:
            decode(method.takes, call.parameters)
        except Unfit as error:
            raise _VarlinkError(protocol.INVALID_PARAMETER, parameter=error.where) from error


class _Reader(asyncio.StreamReader):
    """Knows that nothing more will come, also while nobody reads."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit=limit)
        self.ended = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.ended.set()

    def restrict(self, octets: int) -> None:
        """Take no longer calls than this from now on."""
        self._limit = octets

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.ended.set()


async def _unless_hung_up(
    answer: Coroutine[Any, Any, None], reader: _Reader, writer: asyncio.StreamWriter
) -> None:
    """Work for a caller ends when he is gone; raises `ConnectionResetError` then."""
    work = asyncio.ensure_future(answer)
    ended = asyncio.ensure_future(reader.ended.wait())
    try:
        await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and _has_hung_up(writer.transport):
            raise ConnectionResetError
        await work
    finally:
        work.cancel()
        ended.cancel()


def _has_hung_up(transport: asyncio.WriteTransport) -> bool:
    """Whether the other end is closed both ways; one way means only that no more calls come."""
    if transport.is_closing():
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)
    return bool(poll.poll(0))


async def _send(writer: asyncio.StreamWriter, octets: bytes) -> None:
    writer.write(octets)
    # Not `wait_for`, which may swallow a cancellation that comes when it is about to return.
    async with asyncio.timeout(SEND_SECONDS):
        await writer.drain()


async def _discard(_octets: bytes) -> None:
    """What a `oneway` call is answered."""


def _decode_call(octets: bytes) -> _Call:
    call = parse_object(octets)
    method, parameters = call.get("method"), call.get("parameters")
    if not isinstance(method, str):
        raise Unfit("method", "is no string")
    if not isinstance(parameters, dict | None):
        raise Unfit("parameters", "are no object")
    return _Call(
        method=method,
        parameters=parameters or {},
        more=call.get("more") is True,
        oneway=call.get("oneway") is True,
    )


def _describe(call: _Call) -> dict[str, Any]:
    """What `org.varlink.service` answers."""
    if call.method == protocol.GET_INFO:
        return {
            "vendor": "The xfrmpy authors",
            "product": "xfrmpy",
            "version": __version__,
            "url": "",
            "interfaces": [SERVICE, INTERFACE],
        }
    if call.method != protocol.GET_INTERFACE_DESCRIPTION:
        raise _VarlinkError(protocol.METHOD_NOT_FOUND, method=call.method)
    described = {SERVICE: SERVICE_DESCRIPTION, INTERFACE: describe_interface()}
    wanted = call.parameters.get("interface")
    if not isinstance(wanted, str):
        raise _VarlinkError(protocol.INVALID_PARAMETER, parameter="interface")
    if wanted not in described:
        raise _VarlinkError(protocol.INTERFACE_NOT_FOUND, interface=wanted)
    return {"description": described[wanted]}
