"""What comes alone takes a shorter way than what comes together, and the same is written of it."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datapath.userspace.test_forwarding import REQID, gateway, packet
from tests.datapath.userspace.test_outbound import counting
from xfrmpy.datapath.userspace.forwarding import NEXT_HEADER, Forwarder, Refused
from xfrmpy.datapath.userspace.inbound import Inbound
from xfrmpy.datapath.userspace.tun import Tun
from xfrmpy.datapath.userspace.turns import Readable
from xfrmpy.datapath.userspace.virtio import COMPLETE, SIZE, encode_offload
from xfrmpy.esp.packet import OutboundSa
from xfrmpy.esp.transport import Fields
from xfrmpy.ipsec.addresses import SocketAddress

UDP_SEGMENT = 103
STRIDE = Struct("=H")
CE = 3


class Laboratory:
    """A worker's inbound half between a peer and a device, both of which are sockets of ours."""

    def __init__(self) -> None:
        self._peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for each in (self._peer, self.opened):
            each.bind(("127.0.0.1", 0))
        self.opened.setblocking(False)
        self._peer.connect(self.opened.getsockname())
        self._host, self._inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._host.setblocking(False)
        self.tun = Tun.__new__(Tun)
        self.tun._descriptor = self._inside.fileno()
        self.tun.takes_datagrams = False

    @property
    def source(self) -> SocketAddress:
        address, port = self._peer.getsockname()
        return SocketAddress(ip_address(address), port)

    def send(self, datagrams: list[bytes], traffic_class: int) -> None:
        """As one piece, if there are several, which are of one length."""
        self._peer.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, traffic_class)
        stride = STRIDE.pack(len(datagrams[0]))
        told = [(socket.IPPROTO_UDP, UDP_SEGMENT, stride)] if len(datagrams) > 1 else []
        self._peer.sendmsg([b"".join(datagrams)], told)

    def written(self) -> Iterator[bytes]:
        """Packets by themselves."""
        while select.select([self._host], [], [], 0)[0]:
            octets = self._host.recv(65535)
            assert octets.startswith(encode_offload(COMPLETE))
            yield octets[SIZE:]

    def close(self) -> None:
        for each in (self._peer, self.opened, self._host, self._inside):
            each.close()


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    opened = Laboratory()
    yield opened
    opened.close()


def no_clear(_: list[bytes]) -> None:
    raise AssertionError("nothing is to leave in clear")


def forged(sealed: bytes) -> bytes:
    return sealed[:-1] + bytes([sealed[-1] ^ 1])


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "intact": lambda sealed: sealed,
    "forged": forged,
    "short": lambda sealed: sealed[:11],
    "of nobody": lambda sealed: b"\x80\0\1\1" + sealed[4:],
    "keepalive": lambda _: b"\xff",
}
OUTSIDE = "10.3.0.1"


@given(
    bursts=st.lists(
        st.tuples(
            st.sampled_from([1, 1, 1, 2, 9]),
            st.sampled_from(["intact", "intact", *SPOILED]),
            st.sampled_from(["10.1.0.9", "fd00:1::9", OUTSIDE]),
            st.sampled_from([0, 0, 0xB8, CE]),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_what_comes_alone_is_written_as_a_plain_forwarder_lets_it_in(
    laboratory: Laboratory, bursts: list[tuple[int, str, str, int, bool]]
) -> None:
    sending, twin, forwarder = gateway(0), gateway(1), gateway(1)
    readable = Readable()
    inbound = Inbound(forwarder, counting(forwarder), lambda _: laboratory.tun, no_clear)
    inbound.listen(laboratory.opened, 4, readable)
    for count, spoiled, source, traffic_class, is_repeated in bursts:
        destination = "fd00:2::7" if ":" in source else "10.2.0.7"
        sealed = [seal(sending, packet(source, destination)) for _ in range(count)]
        datagrams = [SPOILED[spoiled](each) for each in sealed]
        if spoiled == "keepalive":  # Several in one piece would be the daemon's.
            datagrams = datagrams[:1]
        for _ in range(1 + is_repeated):
            laboratory.send(datagrams, traffic_class)
            expected = plainly(twin, datagrams, laboratory.source, Fields(traffic_class, 64))
            while select.select([laboratory.opened], [], [], 0)[0]:
                readable.serve(0)
            assert [*laboratory.written()] == expected
    assert forwarder.refused == twin.refused
    assert [type(each) for each in forwarder.events] == [type(each) for each in twin.events]
    assert progress(forwarder) == progress(twin)


def seal(sending: Forwarder, inner: bytes) -> bytes:
    """By the SA, whatever the policies say of the packet."""
    ((sa, _),) = sending.sad.outbound[REQID]
    assert isinstance(sa, OutboundSa)
    return sa.seal(inner, NEXT_HEADER[inner[0] >> 4])


def plainly(
    twin: Forwarder, datagrams: list[bytes], source: SocketAddress, fields: Fields
) -> list[bytes]:
    written = []
    for each in datagrams:
        try:
            written.append(twin.unprotect(each, source, time.monotonic(), fields=fields)[0])
        except Refused as refused:
            twin.refused[refused.reason] += 1
    return written


def progress(forwarder: Forwarder) -> list[tuple[int, int, int, int, int]]:
    return [
        (sa.sequence, sa.octets, sa.packets, sa.replayed, sa.integrity_failed)
        for sa, _ in forwarder.sad.inbound.values()
    ]
