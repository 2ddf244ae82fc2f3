"""Two endpoints in memory, a virtual clock, and a link that the test controls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest

from xfrmpy.datapath.recording import RecordingDatapath
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.outputs import (
    AddPolicy,
    AddSa,
    Output,
    RemovePolicy,
    RemoveSa,
    SendDatagram,
)
from xfrmpy.ipsec.addresses import IKE_PORT, Path, SocketAddress
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.model import ChildPolicy, DatapathChoice, SharedKey, TunnelPolicy
from xfrmpy.registry import ProtocolId


def seeded_random(seed: str) -> Callable[[int], bytes]:
    """A reproducible source of octets: the same seed, the same run."""
    blocks = _blocks(seed)
    buffer = bytearray()

    def take(size: int) -> bytes:
        while len(buffer) < size:
            buffer.extend(next(blocks))
        octets = bytes(buffer[:size])
        del buffer[:size]
        return octets

    return take


def _blocks(seed: str) -> Iterator[bytes]:
    counter = 0
    while True:
        yield hashlib.sha256(f"{seed}/{counter}".encode()).digest()
        counter += 1


def tunnel_policy(
    local: str = "10.1.0.0/16",
    remote: str = "10.2.0.0/16",
    *,
    here: str = "moon",
    there: str = "sun",
    ike: str = "aes128gcm16-prfsha256-x25519",
    esp: str = "aes128gcm16",
    key: bytes = b"a shared key of thirty-two octets",
    peer: str = "192.0.2.2",
) -> TunnelPolicy:
    """A policy as the loader would make it; several selectors or proposals are split at blanks."""

    def selectors(text: str) -> tuple[TrafficSelector, ...]:
        return tuple(TrafficSelector.parse(word) for word in text.split())

    child = ChildPolicy(
        name="net",
        local=selectors(local),
        remote=selectors(remote),
        proposals=tuple(parse_proposal(p, ProtocolId.ESP) for p in esp.split()),
    )
    return TunnelPolicy(
        name="tunnel-a",
        origin="test:1",
        reqid=0x58460001,
        peers=(peer,),
        local_id=Identity.parse(here),
        remote_id=Identity.parse(there),
        shared_key=SharedKey(octets=key, origin="test"),
        proposals=tuple(parse_proposal(p, ProtocolId.IKE) for p in ike.split()),
        children=(child,),
        datapath=DatapathChoice.KERNEL,
    )


def mirrored(policy: TunnelPolicy, *, peer: str = "192.0.2.1") -> TunnelPolicy:
    """The policy of the other end."""
    children = tuple(replace(c, local=c.remote, remote=c.local) for c in policy.children)
    return replace(
        policy,
        peers=(peer,),
        local_id=policy.remote_id,
        remote_id=policy.local_id,
        children=children,
    )


@dataclass
class Host:
    """One end: its endpoint, its datapath, and everything that its endpoint put out."""

    name: str
    policy: TunnelPolicy
    address: str
    outputs: list[Output] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.endpoint = IkeEndpoint([self.policy], seeded_random(self.name))
        self.datapath = RecordingDatapath()
        peers = tuple(ip_address(peer) for peer in self.policy.peers)
        self.endpoint.set_peer_addresses("tunnel-a", peers)

    def take_outputs(self) -> list[SendDatagram]:
        """Do what the endpoint wants done; returns the datagrams it wants sent."""
        sent: list[SendDatagram] = []
        while (output := self.endpoint.next_output()) is not None:
            self.outputs.append(output)
            match output:
                case SendDatagram():
                    sent.append(output)
                case AddSa() | AddPolicy():
                    self._add(output)
                case RemoveSa():
                    self.datapath.remove_sa(output.sa)
                case RemovePolicy():
                    self.datapath.remove_policy(output.entry)
        return sent

    def _add(self, output: AddSa | AddPolicy) -> None:
        from xfrmpy.datapath.interface import DatapathError  # noqa: PLC0415

        try:
            if isinstance(output, AddSa):
                self.datapath.add_sa(output.entry)
            else:
                self.datapath.add_policy(output.entry)
        except DatapathError as error:
            self.endpoint.handle_failure(output, str(error))

    def reports(self, kind: type[Output]) -> list[Output]:
        return [o for o in self.outputs if isinstance(o, kind)]


Impairment = Callable[[SendDatagram, Host], list[bytes]]


class Pair:
    """Moon (the initiator by habit) and sun. `impair` may drop, repeat or change what is sent."""

    def __init__(self, moon: TunnelPolicy, sun: TunnelPolicy | None = None) -> None:
        self.now = 0.0
        self.moon = Host("moon", moon, "192.0.2.1")
        self.sun = Host("sun", sun or mirrored(moon), "192.0.2.2")
        self.impair: Impairment = lambda output, _sender: [output.data]
        self.translate: Callable[[SocketAddress], SocketAddress] = lambda address: address
        self.sent: list[tuple[str, SendDatagram]] = []

    def up(self) -> None:
        """Moon brings the tunnel up; everything is delivered."""
        self.initiate()
        self.deliver()

    def initiate(self, host: Host | None = None) -> None:
        host = host or self.moon
        other = self.sun if host is self.moon else self.moon
        path = Path(
            local=SocketAddress(ip_address(host.address), IKE_PORT),
            remote=SocketAddress(ip_address(other.address), IKE_PORT),
        )
        host.endpoint.initiate("tunnel-a", path, self.now)

    def deliver(self) -> None:
        """Carry datagrams both ways until there are none."""
        while True:
            moved = [self._carry(self.moon, self.sun), self._carry(self.sun, self.moon)]
            if not any(moved):
                return

    def _carry(self, sender: Host, receiver: Host) -> bool:
        datagrams = sender.take_outputs()
        for output in datagrams:
            self.sent.append((sender.name, output))
            for data in self.impair(output, sender):
                path = Path(
                    local=output.path.remote,
                    remote=self.translate(output.path.local),
                    natt=output.path.natt,
                )
                receiver.endpoint.receive_datagram(data, path, self.now)
        return bool(datagrams)

    def run(self, seconds: float) -> None:
        """Let time pass, from one timeout to the next."""
        end = self.now + seconds
        while True:
            self.deliver()
            due = [h.endpoint.next_timeout() for h in (self.moon, self.sun)]
            moments = [moment for moment in due if moment is not None and moment <= end]
            if not moments:
                break
            self.now = max(self.now, min(moments))
            for host in (self.moon, self.sun):
                host.endpoint.handle_timeout(self.now)
        self.now = end


@pytest.fixture
def make_pair() -> type[Pair]:
    return Pair


@pytest.fixture
def make_policy() -> Callable[..., TunnelPolicy]:
    return tunnel_policy


@pytest.fixture
def make_mirror() -> Callable[..., TunnelPolicy]:
    return mirrored


@pytest.fixture
def pair() -> Pair:
    """A pair whose ends agree in everything."""
    return Pair(tunnel_policy())
