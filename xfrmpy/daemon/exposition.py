"""Where the metrics can be had without a command: over HTTP, and as a file.

Whoever reaches the port may read them, so it is one of this host's own unless the operator says
otherwise; a Unix socket is for those who may look at the control socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from xfrmpy.daemon.callers import give_to_group
from xfrmpy.failures import OperatorError

log = logging.getLogger(__name__)

FILE_SECONDS = 15.0
"""How often the file is written: Prometheus' own usual interval."""

MAX_READERS = 16
REQUEST_SECONDS = 5.0
MAX_REQUEST = 8192
FRESH_SECONDS = 1.0
"""Asked more often than this, the answer is the same one."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """`listen` is `ADDRESS:PORT` or `unix:PATH`, empty for nowhere; `file` is a path or empty."""

    listen: str = ""
    file: str = ""
    anywhere: bool = False

    def __post_init__(self) -> None:
        if not self.listen or self.listen.startswith("unix:"):
            return
        host, port = self.place()
        try:
            is_own = ip_address(host).is_loopback
            wrong = not 0 <= int(port) <= 65535
        except ValueError:
            is_own, wrong = False, True
        evidence = (("--metrics", self.listen),)
        if wrong:
            raise OperatorError("XF5001", "metrics are told at ADDRESS:PORT or unix:PATH", evidence)
        if not is_own and not self.anywhere:
            reason = "metrics would be open to other hosts; --metrics-anywhere allows it"
            raise OperatorError("XF5001", reason, evidence)

    def place(self) -> tuple[str, str]:
        """The address, without its brackets, and the port, as they were written."""
        host, _, port = self.listen.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), port


class Exposition:
    """See the module. `measure` gives the text; `gid` is the group that may read the socket."""

    def __init__(self, exposure: Exposure, measure: Callable[[], str], gid: int | None) -> None:
        self._exposure = exposure
        self._measure = measure
        self._gid = gid
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._writing: asyncio.Task[None] | None = None
        self._readers: set[asyncio.Task[None]] = set()
        self._text = b""
        self._stale_at = 0.0

    async def start(self) -> None:
        """Raises `OperatorError` if the place is taken."""
        if self._exposure.listen:
            try:
                listener = self._listen()
            except OSError as error:
                evidence = (("--metrics", self._exposure.listen),)
                reason = f"metrics cannot be told there: {error.strerror}"
                raise OperatorError("XF4005", reason, evidence) from error
            self._server = await asyncio.start_server(
                self._accept, sock=listener, limit=MAX_REQUEST
            )
        if self._exposure.file:
            self._writing = self._loop.create_task(self._keep_writing(Path(self._exposure.file)))

    async def stop(self) -> None:
        tasks = {*self._readers, *({self._writing} if self._writing else ())}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        if self._exposure.listen.startswith("unix:"):
            Path(self._exposure.listen.removeprefix("unix:")).unlink(missing_ok=True)
        if self._exposure.file:
            # What is no longer true must not be collected.
            Path(self._exposure.file).unlink(missing_ok=True)

    def _listen(self) -> socket.socket:
        if self._exposure.listen.startswith("unix:"):
            return self._listen_unix(Path(self._exposure.listen.removeprefix("unix:")))
        host, port = self._exposure.place()
        family = socket.AF_INET if ip_address(host).version == 4 else socket.AF_INET6
        return socket.create_server((host, int(port)), family=family)

    def _listen_unix(self, path: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.unlink(missing_ok=True)
        old_mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old_mask)
        if self._gid is not None:
            give_to_group(path, self._gid)
        return listener

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._readers) >= MAX_READERS:
            writer.transport.abort()
            return
        task = self._loop.create_task(self._serve(reader, writer))
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer (RFC 9112 section 9.6: `Connection: close`)."""
        writer.transport.set_write_buffer_limits(high=0)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(request.split(b"\r\n", 1)[0].split()))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            log.debug("a reader of the metrics went away")
        finally:
            writer.transport.abort()

    def _answer(self, request: list[bytes]) -> bytes:
        method, target = [*request, b"", b""][:2]
        if method not in {b"GET", b"HEAD"}:
            return _response("405 Method Not Allowed", b"GET /metrics\n")
        if target.partition(b"?")[0] not in {b"/metrics", b"/"}:
            return _response("404 Not Found", b"the metrics are at /metrics\n")
        body = self._fresh()
        return _response("200 OK", body, shown=method == b"GET")

    def _fresh(self) -> bytes:
        now = self._loop.time()
        if now >= self._stale_at:
            self._text = self._measure().encode()
            self._stale_at = now + FRESH_SECONDS
        return self._text

    async def _keep_writing(self, path: Path) -> None:
        while True:
            try:
                write_whole(path, self._fresh())
            except OSError as error:
                log.warning("cannot write the metrics to %s: %s", path, error)
            await asyncio.sleep(FILE_SECONDS)


def _response(status: str, body: bytes, *, shown: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\n"
        f"Content-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (body if shown else b"")


def write_whole(path: Path, octets: bytes) -> None:
    """Whoever reads the file sees it as it was, or as it is."""
    # node_exporter reads `*.prom`: the one that is not whole must have another ending.
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_bytes(octets)
        unfinished.chmod(0o644)
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
