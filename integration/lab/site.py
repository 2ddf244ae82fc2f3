"""One test's laboratory: a network, the daemons at its gateways, and an orderly end of it all."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from integration.lab.capture import Capture
from integration.lab.cases import CASES, Case
from integration.lab.gateway import XfrmpyGateway
from integration.lab.libreswan import LibreswanPeer
from integration.lab.network import Host, Network
from integration.lab.process import IN_VM, LOG_TAIL, eventually
from integration.lab.strongswan import StrongswanPeer
from integration.lab.transfer import transfer
from integration.lab.tunnel import Tunnel


class Peer(Protocol):
    """An IKE daemon at a gateway, whoever wrote it."""

    @property
    def logs(self) -> tuple[Path, ...]: ...

    def initiate(self, number: int = 0) -> None: ...

    def terminate(self, number: int = 0) -> None: ...

    def is_up(self, number: int = 0) -> bool: ...

    def stop(self) -> None:
        """Stop it, if that was not done before."""


class Role(StrEnum):
    """What our end is."""

    INITIATOR = "initiator"
    RESPONDER = "responder"


class Site:
    """A context. At its end, daemons are stopped in the reverse order of their start.

    A daemon's complaint on its way out (a leftover, a bad exit status) is the test's failure.
    Where xfrmpy is `copied`, its processes begin as copies (`preloaded`).
    `policy_files`, by their names, are in force at each gateway of ours, beside its tunnels.
    """

    def __init__(
        self, *, nat: Collection[str] = (), with_venus: bool = False, copied: bool = IN_VM
    ) -> None:
        self._copied = copied
        self._peers: list[Peer] = []
        self.policy_files: dict[str, str] = {}
        with ExitStack() as stack:
            # Short, for it holds sockets; and of our own, for two runs may share a machine.
            temporary = tempfile.TemporaryDirectory(prefix="xl-")
            self.directory = Path(stack.enter_context(temporary))
            self.network = Network(nat=nat, with_venus=with_venus)
            stack.callback(self.network.close)
            self._stack = stack.pop_all()

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def xfrmpy(
        self, host: Host, *tunnels: Tunnel, options: Sequence[str] = (), **keys: Any
    ) -> XfrmpyGateway:
        place, files = self._directory_of(host), self.policy_files
        peer = XfrmpyGateway(host, tunnels, place, keys, options, files, copied=self._copied)
        self._keep(peer)
        return peer

    def strongswan(self, host: Host, *tunnels: Tunnel, **options: Any) -> StrongswanPeer:
        peer = StrongswanPeer(host, tunnels, self._directory_of(host), **options)
        self._keep(peer)
        return peer

    def libreswan(self, host: Host, *tunnels: Tunnel, **options: Any) -> LibreswanPeer:
        peer = LibreswanPeer(host, tunnels, self._directory_of(host), **options)
        self._keep(peer)
        return peer

    def capture(self) -> Capture:
        return Capture(self.network, self.directory)

    def connect(self, initiator: Peer, responder: Peer, number: int = 0) -> None:
        """Bring a tunnel up from one end, and see it up at the other."""
        initiator.initiate(number)
        eventually("the responder to be up", lambda: responder.is_up(number))

    def beside_strongswan(self, **keys: Any) -> tuple[XfrmpyGateway, StrongswanPeer]:
        """Moon with xfrmpy and sun with strongSwan, and a tunnel between them that is up."""
        tunnel = self.network.tunnel()
        theirs = self.strongswan(self.network.sun, tunnel.mirrored())
        ours = self.xfrmpy(self.network.moon, tunnel, **keys)
        self.connect(ours, theirs)
        return ours, theirs

    def assert_protected(
        self, number: int = 0, family: int = 4, count: int = 3, others: int = 3
    ) -> Capture:
        """Hosts of both sites ping each other, and the wire carries ESP and nothing else of it.

        At most so many packets of `others` go the same way: the device of a route-based tunnel
        says a few words of its own when it is made.
        """
        alice, bob = self.network.alice, self.network.bob
        with self.capture() as wire:
            assert alice.ping(bob.inside_address(number, family), count) == 0
            assert bob.ping(alice.inside_address(number, family), count) == 0
        assert wire.kinds["clear"] == 0
        assert 4 * count <= wire.protected <= 4 * count + others
        return wire

    def assert_blocked(self, number: int = 0) -> None:
        """Nothing of a ping arrives, and nothing of it is on the wire."""
        with self.capture() as wire:
            assert self.network.alice.ping(self.network.bob.inside_address(number), 1) == 1
        assert wire.kinds["clear"] == 0

    def transfer(self, octets: int) -> None:
        """`octets` from alice to bob arrive intact, and none of them in the clear."""
        alice, bob = self.network.alice, self.network.bob
        with self.capture() as wire:
            transfer(alice, bob, bob.inside_address(), octets, self.log)
        assert wire.kinds["clear"] == 0

    def log_tails(self) -> list[tuple[str, str]]:
        """The end of each daemon's log, for the report of a failure."""
        logs = [log for peer in self._peers for log in peer.logs if log.exists()]
        texts = {log: log.read_text(errors="replace")[-LOG_TAIL:] for log in logs}
        return [(f"{log.parent.name}/{log.name}", text) for log, text in texts.items() if text]

    @property
    def log(self) -> Path:
        """For the output of a tool of the test's own."""
        return self.directory / "tool.log"

    def _directory_of(self, host: Host) -> Path:
        number = len(self._peers)
        return self.directory / f"{host.name}{number}"

    def _keep(self, peer: Peer) -> None:
        self._peers.append(peer)
        self._stack.callback(peer.stop)


@dataclass(frozen=True, slots=True)
class Pair:
    """xfrmpy at moon, and a peer at sun that knows the same tunnels."""

    site: Site
    ours: XfrmpyGateway
    theirs: Peer

    def connect(self, role: Role, number: int = 0) -> None:
        """Bring a tunnel up, our end in that role."""
        initiator, responder = self.in_order(role)
        self.site.connect(initiator, responder, number)

    def each_role(self) -> Iterator[Role]:
        """The tunnel is up, our end in one role and then in the other: daemons start slowly.

        Between them NAT routers forget the first, lest the second be led by its mappings.
        """
        for role in Role:
            self.connect(role)
            yield role
            self.disconnect(role)
            self.site.network.forget_mappings()

    def disconnect(self, role: Role, number: int = 0) -> None:
        """Whoever began ends it."""
        ends = self.in_order(role)
        ends[0].terminate(number)
        eventually("both ends to be down", lambda: not any(end.is_up(number) for end in ends))

    def in_order(self, role: Role) -> tuple[Peer, Peer]:
        """Initiator and responder."""
        if role is Role.INITIATOR:
            return self.ours, self.theirs
        return self.theirs, self.ours

    def assert_case(self, role: Role, number: int) -> None:
        """A case comes up, carries packets both ways, says so, and goes down at both ends."""
        self.assert_carries(role, number, CASES[number])
        self.disconnect(role, number)

    def assert_carries(self, role: Role, number: int, case: Case) -> None:
        """The tunnel of a number, which is as the case says, comes up, carries and says so."""
        self.connect(role, number)
        self.site.assert_protected(number, case.inside)
        self._assert_told(role, number, case)

    def _assert_told(self, role: Role, number: int, case: Case) -> None:
        tunnel = self.ours.tunnel(number)
        assert (tunnel.role, tunnel.suite) == (role, case.ike)
        (child,) = tunnel.children
        assert child.suite == case.esp.removesuffix("-noesn")
        assert child.packets_in == child.packets_out > 0
        assert (child.replayed, child.integrity_failed) == (0, 0)
