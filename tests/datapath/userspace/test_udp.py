"""The selector of the shared port, by a tiny twin of the kernel's BPF and by the kernel itself."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datapath.userspace.bpf import result_of
from xfrmpy.datapath.userspace.shares import MAX_WORKERS
from xfrmpy.datapath.userspace.udp import (
    attach_reuseport_selector,
    open_shared_udp_socket,
    packet_info,
    reuseport_program,
)
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
KEEPALIVE = b"\xff"
WORKERS = [1, 2, 3, 64]


@given(payload=st.binary(max_size=12), workers=st.sampled_from(WORKERS))
def test_each_payload_has_its_socket(payload: bytes, workers: int) -> None:
    word = int.from_bytes(payload[:4], "big") if len(payload) >= 4 else 0
    expected = 1 + word % workers if word & USERSPACE_SPI_BIT else 0
    assert result_of(reuseport_program(workers), payload) == expected


def test_ike_keepalives_and_the_kernels_esp_are_not_for_workers() -> None:
    for payload in (bytes(28), KEEPALIVE, b"", b"\x80\0\0", b"\x7f\xff\xff\xff" + bytes(40)):
        assert result_of(reuseport_program(4), payload) == 0


@pytest.mark.parametrize("workers", [0, -1, MAX_WORKERS + 1])
def test_the_number_of_workers_has_its_limits(workers: int) -> None:
    with pytest.raises(ValueError, match="1 to 64 workers"):
        reuseport_program(workers)


class Group:
    """The sockets of one port on the loopback: the daemon's first, as in life."""

    def __init__(self, stack: ExitStack, family: socket.AddressFamily, workers: int) -> None:
        self.family = family
        self._stack = stack
        self.sockets = [self.opened(0)]
        self.port = self.sockets[0].getsockname()[1]
        self.sockets += [self.opened(self.port) for _ in range(workers)]
        attach_reuseport_selector(self.sockets[-1], workers)

    def opened(self, port: int) -> socket.socket:
        return self._stack.enter_context(open_shared_udp_socket(self.family, port))

    def receiver_of(self, payload: bytes) -> int:
        """The number of the one socket that a datagram reaches."""
        with socket.socket(self.family, socket.SOCK_DGRAM) as sender:
            sender.sendto(payload, (LOOPBACK[self.family], self.port))
        (ready,), _, _ = select.select(self.sockets, [], [], 5)
        assert ready.recv(100) == payload
        return self.sockets.index(ready)


@pytest.fixture(params=list(LOOPBACK), ids=["v4", "v6"])
def family(request: pytest.FixtureRequest) -> socket.AddressFamily:
    chosen: socket.AddressFamily = request.param
    with socket.socket(chosen, socket.SOCK_DGRAM) as attempt:
        try:
            attempt.bind((LOOPBACK[chosen], 0))
        except OSError as error:
            pytest.skip(str(error))
    return chosen


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_the_kernel_agrees_with_the_twin(
    stack: ExitStack, family: socket.AddressFamily, workers: int
) -> None:
    group = Group(stack, family, workers)
    program = reuseport_program(workers)
    words = [0, 1, 0x7FFFFFFF, 0x80000000, 0x80000001, 0x80000002, 0xFFFFFFFF]
    payloads = [word.to_bytes(4, "big") + bytes(8) for word in words]
    for payload in (*payloads, KEEPALIVE, b"\x80\x00\x00"):
        assert group.receiver_of(payload) == result_of(program, payload)


def test_a_worker_that_opens_anew_behind_a_new_daemon_keeps_the_order(
    stack: ExitStack, family: socket.AddressFamily
) -> None:
    """The daemon dies, its successor opens, and the worker joins: closes first, then opens."""
    group = Group(stack, family, 1)
    daemon, worker = group.sockets
    daemon.close()
    group.sockets = [worker]
    esp = USERSPACE_SPI_BIT.to_bytes(4, "big") + bytes(8)
    assert group.receiver_of(esp) == 0, "the one that is left gets everything"
    successor = group.opened(group.port)
    worker.close()
    group.sockets = [successor, group.opened(group.port)]
    attach_reuseport_selector(group.sockets[1], 1)
    assert [group.receiver_of(payload) for payload in (bytes(12), esp, KEEPALIVE)] == [0, 1, 0]


def test_a_port_that_is_not_shared_is_refused(family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as selfish:
        selfish.bind((LOOPBACK[family], 0))
        with pytest.raises(OSError, match="in use"):
            open_shared_udp_socket(family, selfish.getsockname()[1])


def test_a_datagram_leaves_from_the_address_asked_for(stack: ExitStack) -> None:
    receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    receiver.bind(("127.0.0.1", 0))
    receiver.settimeout(5)
    sender = stack.enter_context(open_shared_udp_socket(socket.AF_INET, 0))
    source = ip_address("127.0.0.77")
    sender.sendmsg([b"hello"], [packet_info(source)], 0, receiver.getsockname())
    assert receiver.recvfrom(10)[1][0] == "127.0.0.77"
