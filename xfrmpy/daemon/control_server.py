"""The daemon's end of the control socket: who may call, what came, and what goes back.

The protocol is `xfrmpy.control.protocol`. The socket is of mode 0600 and the caller's uid is
checked as well, so that a socket opened up by accident gives nobody a tunnel.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from struct import Struct
from typing import Any

from xfrmpy.control.protocol import (
    MAX_CALL,
    FailureReply,
    Progress,
    encode_failure,
    encode_reply,
)
from xfrmpy.failures import Failure, OperatorError

Call = Callable[[dict[str, Any]], AsyncIterator[Any]]
"""A method: its parameters in, any number of `Progress` and then one reply out."""

log = logging.getLogger(__name__)

SEND_SECONDS = 10.0
"""A caller that does not read for so long is hung up on."""

_UCRED = Struct("=iII")


class ControlServer:
    """Serves `methods` on a Unix socket."""

    def __init__(self, path: Path, methods: dict[str, Call]) -> None:
        self._path = path
        self._methods = methods
        self._server: asyncio.Server | None = None
        self._callers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        old_mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._accept, path=self._path, limit=MAX_CALL
            )
        finally:
            os.umask(old_mask)

    async def stop(self) -> None:
        """Stop listening, and hang up on every caller."""
        if self._server is not None:
            self._server.close()
        for caller in tuple(self._callers):
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._callers.add(task)
        task.add_done_callback(self._callers.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            _check_caller(writer)
            while True:
                await self._answer(await reader.readuntil(b"\0"), writer)
        except OperatorError as error:
            with contextlib.suppress(ConnectionError, TimeoutError):
                await _send(writer, encode_failure(reply_of(error.failure)))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # The caller is done, or sends what no caller of ours would.
        except (ConnectionError, TimeoutError):
            log.debug("a caller of the control socket went away")
        finally:
            writer.close()

    async def _answer(self, octets: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            method, parameters = _decode_call(octets)
            async for reply in self._methods[method](parameters):
                await _send(writer, encode_reply(reply, continues=isinstance(reply, Progress)))
        except OperatorError as error:
            await _send(writer, encode_failure(reply_of(error.failure)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            log.debug("a call that makes no sense", exc_info=error)
            failure = Failure(code="XF5001", summary=f"not a call that we know: {error!r}")
            await _send(writer, encode_failure(reply_of(failure)))


def reply_of(failure: Failure) -> FailureReply:
    """A failure as it goes over the socket."""
    return FailureReply(
        code=failure.code,
        summary=failure.summary,
        evidence=[list(pair) for pair in failure.evidence],
    )


async def _send(writer: asyncio.StreamWriter, octets: bytes) -> None:
    writer.write(octets)
    await asyncio.wait_for(writer.drain(), SEND_SECONDS)


def _decode_call(octets: bytes) -> tuple[str, dict[str, Any]]:
    call = json.loads(octets[:-1])
    if not isinstance(call, dict) or not isinstance(call.get("method"), str):
        raise TypeError("a call is an object with a method")
    parameters = call.get("parameters", {})
    if not isinstance(parameters, dict):
        raise TypeError("parameters are an object")
    return call["method"], parameters


def _check_caller(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    octets = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(octets)
    if uid not in (0, os.geteuid()):
        raise OperatorError("XF4003", f"user {uid} may not control this daemon")
