"""The netlink socket: requests with their answers, dumps, and notifications; never blocks.

The kernel works while we send: when `sendto` returns, every answer waits in the socket,
and a dump goes on each time we read. So requests are synchronous without ever waiting. Every error
has the kernel's own sentence if it gives one (extended acknowledgements). RFC 3549 is the idea of
the header; <linux/netlink.h> the numbers. Which messages there are, a `Family` says.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from socket import AF_NETLINK, SO_RCVBUF, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_RAW, SOL_SOCKET, socket
from typing import NamedTuple

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Family, Message, split_attributes

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ERROR = struct.Struct("=i")
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _ACK_TLVS = 0x1, 0x4, 0x200
_DUMP, _REPLACE, _EXCLUSIVE, _CREATE = 0x300, 0x100, 0x200, 0x400
_ACK_MESSAGE = 1  # NLMSGERR_ATTR_MSG
_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 1, 2
_CAP_ACK, _EXT_ACK, _STRICT_CHECK = 10, 11, 12
_RECEIVE_BUFFER_FORCE = 33  # SO_RCVBUFFORCE

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, if false, operand
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD+W+ABS, BPF_JMP+JEQ+K, BPF_RET+K
_PORT_OFFSET = 12

_BUFFER = 4 << 20
"""Octets, of the kernel's in each direction: room for some 10,000 notifications."""
_DATAGRAM = 1 << 16
"""The kernel's dumps come in pieces of at most 32 KiB."""
_BATCH = 100
"""Requests in one send: beyond it nothing is gained (measured), and answers need buffer."""


class Words:
    """A sentence's parts, put together only if somebody wants to read it: most are for errors."""

    __slots__ = ("_parts",)

    def __init__(self, *parts: object) -> None:
        self._parts = parts

    def __str__(self) -> str:
        return " ".join(map(str, self._parts))


class Request(NamedTuple):
    """One message to the kernel; `what` completes "cannot ..." in an error.

    A dump that says nothing has no body, whatever the same type has for a single object. What is
    answered is read by the tables of `reads`, if they are others than the socket's.
    """

    message: Message
    what: str | Words
    create: bool = False
    replace: bool = False
    dump: bool = False
    reads: Family | None = None

    @property
    def is_bare(self) -> bool:
        return self.dump and not self.message.body

    @property
    def flags(self) -> int:
        """Those of the message's header, but for the wish to be acknowledged."""
        if self.create:
            return _REQUEST | _CREATE | _EXCLUSIVE
        if self.replace:
            return _REQUEST | _CREATE | _REPLACE
        return _REQUEST | _DUMP if self.dump else _REQUEST


@dataclass(slots=True)
class Reply:
    """What came back for one request: messages, and the error if it was refused."""

    request: Request
    messages: list[Message] = field(default_factory=list)
    error: DatapathError | None = None
    done: bool = False

    def unless(self, *codes: int) -> Reply:
        """Itself; raises the error unless it is one of `codes` (from `errno`)."""
        if self.error is not None and self.error.errno not in codes:
            raise self.error
        return self


class NetlinkSocket:
    """A socket of one family, of the caller's network namespace. Raises `DatapathError`."""

    def __init__(self, family: Family, groups: Sequence[int] = ()) -> None:
        self._family = family
        kind = SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC
        try:
            self._socket = socket(AF_NETLINK, kind, family.number)
        except OSError as error:
            raise DatapathError(f"the kernel has no {family.name}: {error}", error.errno) from error
        try:
            self._prepare(groups)
        except OSError as error:
            self._socket.close()
            raise _refused(f"listen to the kernel's {family.name}", error.errno or 0) from error
        self.port: int = self._socket.getsockname()[0]
        """By which the kernel tells, and others hear, whose request has changed something."""
        self._sequence = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def ask(self, request: Request) -> list[Message]:
        """Send one request; returns what the kernel answers. Raises `DatapathError`."""
        return self.exchange([request])[0].unless().messages

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """Send requests, up to a hundred at a time; one reply for each, in their order.

        A refusal is in its reply. Dumps go alone: the kernel serves one at a time.
        """
        replies: list[Reply] = []
        for start in range(0, len(requests), _BATCH):
            replies += self._exchange(requests[start : start + _BATCH])
        return replies

    def ignore(self, ports: Sequence[int]) -> None:
        """Hear no notification of what requests of these ports cause: the kernel drops them.

        Raises `OSError`.
        """
        program = _filter_out(ports)
        code = ctypes.create_string_buffer(program, len(program))
        descriptor = _Program(len(program) // _INSTRUCTION.size, ctypes.addressof(code))
        self._socket.setsockopt(SOL_SOCKET, _ATTACH_FILTER, bytes(descriptor))

    def notifications(self) -> Iterator[Message]:
        """What waits on a socket that joined groups.

        Raises `OSError` ENOBUFS where some were lost; what came after can still be read.
        """
        while (data := self._receive()) is not None:
            for kind, _, _, payload in _split_messages(data):
                yield self._family.decode(kind, payload)

    @contextmanager
    def joined(self, group: int) -> Iterator[None]:
        """Hear a group's notifications meanwhile; what is not read by the end is forgotten."""
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        try:
            yield
        finally:
            self._socket.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, group)
            while self._receive() is not None:
                pass

    def _prepare(self, groups: Sequence[int]) -> None:
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        with suppress(OSError):  # Before Linux 4.20 a dump is of everything: who asks must look.
            self._socket.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
        try:
            self._socket.setsockopt(SOL_SOCKET, _RECEIVE_BUFFER_FORCE, _BUFFER)
        except PermissionError:  # in a user namespace: what the system allows to all
            self._socket.setsockopt(SOL_SOCKET, SO_RCVBUF, _BUFFER)
        self._socket.bind((0, 0))
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def _exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """Only the last is acknowledged if all is well: the kernel works through them in order."""
        replies: dict[int, Reply] = {}
        parts: list[bytes] = []
        last = len(requests) - 1
        for place, request in enumerate(requests):
            self._sequence = self._sequence % 0xFFFFFFFF + 1  # 0 is the notifications'
            payload = b"" if request.is_bare else self._family.encode(request.message)
            flags = request.flags | (_ACK if place == last and not request.dump else 0)
            size = _HEADER.size + len(payload)
            kind = request.message.type
            # XFRM tells others the port that stands here, not the one that it came from.
            parts += (_HEADER.pack(size, kind, flags, self._sequence, self.port), payload)
            replies[self._sequence] = Reply(request)
        try:
            self._socket.send(b"".join(parts))
            self._collect(replies, replies[self._sequence])
        except OSError as error:
            self._discard()
            raise _refused(requests[0].what, error.errno or 0) from error
        return [*replies.values()]

    def _discard(self) -> None:
        """What is left of answers when some were lost, lest they leave no room for the next."""
        with suppress(OSError):
            while self._receive() is not None:
                pass

    def _collect(self, replies: dict[int, Reply], last: Reply) -> None:
        while not last.done:
            data = self._receive()
            if data is None:
                raise DatapathError(f"cannot {last.request.what}: the kernel did not answer")
            for kind, flags, sequence, payload in _split_messages(data):
                if sequence in replies:
                    _add_answer(self._family, replies[sequence], kind, flags, payload)

    def _receive(self) -> bytes | None:
        """One datagram of the kernel's own; None if there is none."""
        while True:
            try:
                data, (port, _) = self._socket.recvfrom(_DATAGRAM)
            except BlockingIOError:
                return None
            if port == 0:  # another process may send to our port
                return data


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _filter_out(ports: Sequence[int]) -> bytes:
    """A classic BPF program: nothing of a message whose header names one of the ports.

    BPF reads as the network does, netlink's headers are written as the host does.
    """
    operands = [int.from_bytes(port.to_bytes(4, sys.byteorder), "big") for port in ports]
    keep, drop = (_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)
    jumps = [
        (_JUMP_IF_EQUAL, len(operands) - number, 0, operand)
        for number, operand in enumerate(operands)
    ]
    program = [(_LOAD_WORD, 0, 0, _PORT_OFFSET), *jumps, keep, drop]
    return b"".join(_INSTRUCTION.pack(*fields) for fields in program)


def _add_answer(family: Family, reply: Reply, kind: int, flags: int, payload: bytes) -> None:
    if kind == _NLMSG_ERROR:
        reply.error = _decode_error(reply.request.what, flags, payload)
        reply.done = True
    elif kind == _NLMSG_DONE:
        reply.error = _decode_error(reply.request.what, 0, payload)
        reply.done = True
    else:
        reads = reply.request.reads or family
        reply.messages.append(reads.decode(kind, payload))


def _decode_error(what: str | Words, flags: int, payload: bytes) -> DatapathError | None:
    """None for an acknowledgement: an error of zero."""
    if len(payload) < _ERROR.size:
        raise UnreadableMessage("the kernel sent an acknowledgement that is cut")
    code = -_ERROR.unpack_from(payload)[0]
    if code == 0:
        return None
    sentence = ""
    if flags & _ACK_TLVS:
        attributes = split_attributes(payload[_ERROR.size + _HEADER.size :])
        sentence = attributes.get(_ACK_MESSAGE, b"").rstrip(b"\0").decode("utf-8", "replace")
    return _refused(what, code, sentence)


def _split_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The type, flags, sequence number and payload of each message of a datagram."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < _HEADER.size:
            raise UnreadableMessage("the kernel sent a message that is cut in its header")
        size, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= size <= len(data) - offset:
            raise UnreadableMessage(f"the kernel sent a message with a length of {size}")
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + size]
        offset += size + -size % 4


def _refused(what: str | Words, code: int, sentence: str = "") -> DatapathError:
    reason = sentence or os.strerror(code)
    hint = _HINTS.get(code)
    return DatapathError(f"cannot {what}: {reason}" + (f" ({hint})" if hint else ""), code)


_HINTS = {
    errno.EPERM: "it needs root or CAP_NET_ADMIN",
    errno.ENOSYS: "the kernel has no such algorithm or feature",
}
