"""A small HTTP client for what certificates and peers point to: lists, OCSP, certificates.

Read RFC 6960 appendix A.1 and RFC 5280 section 4.2.1.13 first. The address was named by an
authority that is trusted to vouch for peers, and for nothing else, or by a peer, at a host that
policy allows: so there are limits of time and size, no redirections, and no address that only this
host or its own link has. HTTP/1.0, for an answer has no chunks then (RFC 9112 section 6.1) and ends
with the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from ipaddress import ip_address

from xfrmpy import __version__
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.pki.places import Place, parse_place

log = logging.getLogger(__name__)

SECONDS = 5.0
"""Ours, for all of one exchange; strongSwan's fetcher waits ten. A peer's first retransmissions
come meanwhile."""

MAX_AT_ONCE = 8
"""Ours, of one `Fetcher`; the others wait."""

MAX_HEAD_OCTETS = 16 * 1024
"""Ours; of the status line and the fields. Servers send some 500."""

OCSP_REQUEST_TYPE = "application/ocsp-request"


class NotFetched(Exception):
    """Why there is nothing, in a sentence without a full stop."""


class Fetcher:
    """Fetches in the background, so many at once; whoever is to be told always is."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    def begin(
        self, url: str, limit: int, tell: Callable[[bytes | str], None], request: bytes = b""
    ) -> None:
        """`tell` gets what is there, or a sentence that says why nothing is; see `fetch`."""
        task = asyncio.get_running_loop().create_task(self._fetch(url, limit, tell, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Nobody is told any more."""
        for task in self._tasks:
            task.cancel()

    async def _fetch(
        self, url: str, limit: int, tell: Callable[[bytes | str], None], request: bytes
    ) -> None:
        answer: bytes | str
        async with self._slots:
            try:
                answer = await fetch(url, limit, request)
            except NotFetched as error:
                answer = str(error)
            except Exception as error:
                log.exception("a defect met %s", ascii(url))
                answer = f"{type(error).__name__} in the attempt"
        tell(answer)


async def fetch(url: str, limit: int, request: bytes = b"", seconds: float = SECONDS) -> bytes:
    """What is at `url`, of at most `limit` octets; a `request` is posted as an OCSP question.

    Raises `NotFetched`.
    """
    try:
        place = parse_place(url)
    except ValueError as error:
        raise NotFetched(str(error)) from error
    try:
        async with asyncio.timeout(seconds):
            return await _fetch(place, limit, request)
    except TimeoutError as error:
        raise NotFetched(f"no answer within {seconds:g} s") from error
    except OSError as error:
        raise NotFetched(f"cannot be reached: {error.strerror or error}") from error


def is_forbidden(address: IpAddress) -> bool:
    """What a server elsewhere cannot be, but services of this host and of its cloud may be.

    Private networks are not among it: there most authorities of VPNs are.
    """
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        return is_forbidden(mapped)
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
    )


async def _fetch(place: Place, limit: int, request: bytes) -> bytes:
    reader, writer = await _connect(place)
    try:
        writer.write(_head(place, request) + request)
        await writer.drain()
        head = await _read_head(reader)
        return await _read_body(reader, _length(head, limit), limit)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _connect(place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To an address that was looked at, and not to what the name may mean a moment later."""
    rows = await asyncio.get_running_loop().getaddrinfo(
        place.host, place.port, type=socket.SOCK_STREAM
    )
    addresses = [str(row[4][0]).partition("%")[0] for row in rows]
    allowed = [each for each in addresses if not is_forbidden(ip_address(each))]
    if not allowed:
        raise NotFetched(f"{', '.join(addresses)} is this host's or its link's own")
    failure: OSError | None = None
    for address in allowed[:4]:
        try:
            return await asyncio.open_connection(address, place.port, limit=MAX_HEAD_OCTETS)
        except OSError as error:
            failure = error
    assert failure is not None
    raise failure


def _head(place: Place, request: bytes) -> bytes:
    lines = [
        f"{'POST' if request else 'GET'} {place.target} HTTP/1.0",
        f"Host: {place.authority}",
        f"User-Agent: xfrmpy/{__version__}",
        "Connection: close",
    ]
    if request:
        lines += [f"Content-Type: {OCSP_REQUEST_TYPE}", f"Content-Length: {len(request)}"]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


async def _read_head(reader: asyncio.StreamReader) -> list[str]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise NotFetched("what answers there does not speak HTTP") from error
    lines = head.decode("latin-1").split("\r\n")
    version, _, status = lines[0].partition(" ")
    if not version.startswith("HTTP/1."):
        raise NotFetched("what answers there does not speak HTTP")
    if not status.startswith("200"):
        raise NotFetched(f"the server answers {ascii(status[:60])[1:-1]}")
    return lines[1:]


def _length(head: list[str], limit: int) -> int | None:
    """Of the body, if the server tells."""
    for line in head:
        name, _, value = line.partition(":")
        match name.strip().lower(), value.strip():
            case "content-length", text if not (text.isascii() and text.isdigit()):
                raise NotFetched("the answer's length is no number")
            case "content-length", text if len(text) > 12 or int(text) > limit:
                raise NotFetched(f"the answer has more than {limit} octets")
            case "content-length", text:
                return int(text)
            case (("transfer-encoding" | "content-encoding"), _):
                raise NotFetched("the answer is encoded in a way that was not asked for")
    return None


async def _read_body(reader: asyncio.StreamReader, length: int | None, limit: int) -> bytes:
    body = bytearray()
    while length is None or len(body) < length:
        wanted = (limit + 1 if length is None else length) - len(body)
        block = await reader.read(min(wanted, 64 * 1024))
        if not block:
            break
        body += block
        if len(body) > limit:
            raise NotFetched(f"the answer has more than {limit} octets")
    if length is not None and len(body) < length:
        raise NotFetched("the answer ends too early")
    return bytes(body)
