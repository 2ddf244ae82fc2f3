"""What the kernel says about requests, as octets; a real kernel is asked under integration/."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.kernel.messages import XFRM, MessageType
from xfrmpy.datapath.netlink import socket as netlink
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Reply, Request

REQUEST = Request(Message(type=MessageType.GETSA), "add the SA")
SENTENCE = b"Requested type not found\0"
EXTENDED = (
    struct.pack("=i", -errno.EPROTONOSUPPORT)
    + bytes(16)  # the header of the request
    + struct.pack("=HH", 4 + len(SENTENCE), 1)
    + SENTENCE
    + bytes(3)
)


def _answer(kind: int, flags: int, payload: bytes) -> Reply:
    reply = Reply(REQUEST)
    netlink._add_answer(XFRM, reply, kind, flags, payload)
    return reply


def test_the_kernels_sentence_is_in_the_error() -> None:
    reply = _answer(2, 0x300, EXTENDED)
    assert reply.done
    with pytest.raises(DatapathError, match=r"^cannot add the SA: Requested type not found$") as e:
        reply.unless()
    assert e.value.errno == errno.EPROTONOSUPPORT
    assert reply.unless(errno.EPROTONOSUPPORT) is reply


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EPERM, "Operation not permitted (it needs root or CAP_NET_ADMIN)"),
        (errno.EEXIST, "File exists"),
        (errno.ENOSYS, "no such algorithm"),
    ],
)
def test_an_error_without_a_sentence_is_the_systems(code: int, words: str) -> None:
    reply = _answer(2, 0x100, struct.pack("=i", -code) + bytes(16))
    assert words in str(reply.error)


def test_an_error_of_zero_is_an_acknowledgement() -> None:
    reply = _answer(2, 0x100, bytes(20))
    assert reply.done
    assert reply.unless().error is None


def test_a_dump_may_end_with_an_error() -> None:
    assert _answer(3, 2, bytes(4)).error is None
    assert _answer(3, 2, struct.pack("=i", -errno.EINTR)).error is not None


def test_a_cut_acknowledgement_is_unreadable() -> None:
    with pytest.raises(UnreadableMessage):
        _answer(2, 0, bytes(3))


def test_a_datagram_is_split_into_its_messages() -> None:
    first = struct.pack("=IHHII", 19, 0x10, 2, 5, 0) + b"abc\0"
    second = struct.pack("=IHHII", 16, 3, 2, 6, 0)
    assert [*netlink._split_messages(first + second)] == [(0x10, 2, 5, b"abc"), (3, 2, 6, b"")]


@pytest.mark.parametrize("ports", [(), (7,), (7, 0xFFFF0001, 300)])
def test_the_filter_drops_what_bears_one_of_the_ports_and_keeps_the_rest(
    ports: tuple[int, ...],
) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        program = netlink._filter_out(ports)
        code = ctypes.create_string_buffer(program, len(program))
        filtering = netlink._Program(len(program) // 8, ctypes.addressof(code))
        other.setsockopt(socket.SOL_SOCKET, 26, bytes(filtering))
        other.setblocking(False)
        told = [0, 7, 300, 301, 0xFFFF0001, 0x0100FFFF]
        for port in told:
            # A datagram that a filter drops is refused to its sender.
            with suppress(PermissionError):
                one.send(struct.pack("=IHHII", 16, 3, 0, 0, port))
        heard = []
        with suppress(BlockingIOError):
            while True:
                heard.append(struct.unpack("=IHHII", other.recv(100))[4])
    assert heard == [port for port in told if port not in ports]


@pytest.mark.parametrize("length", [0, 15, 21, 0xFFFFFFFF])
def test_a_lying_length_of_a_message_is_unreadable(length: int) -> None:
    data = struct.pack("=IHHII", length, 0x10, 0, 1, 0) + bytes(4)
    with pytest.raises(UnreadableMessage):
        [*netlink._split_messages(data)]


@given(data=st.binary(max_size=200), flags=st.integers(0, 0xFFFF))
def test_no_octets_raise_anything_but_unreadable(data: bytes, flags: int) -> None:
    with suppress(UnreadableMessage):
        [*netlink._split_messages(data)]
    with suppress(UnreadableMessage):
        _answer(2, flags, data)


def test_a_kernel_without_xfrm_is_recognised() -> None:
    absent = replace(XFRM, number=22)  # NETLINK_SMC's once, never used
    with pytest.raises(DatapathError, match=r"the kernel has no IPsec \(XFRM\)") as refused:
        NetlinkSocket(absent)
    assert refused.value.errno == errno.EPROTONOSUPPORT
