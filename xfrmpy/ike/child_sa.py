"""One Child SA: its negotiation, and the SAD and SPD entries that it puts in force.

Read RFC 7296 sections 1.2, 2.9 and 2.17 first. Nothing here sends a message.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypedDict

from xfrmpy.crypto.key_schedule import ChildKeys
from xfrmpy.ike.core import FIRST_CHILD_SPI, Core
from xfrmpy.ike.errors import PeerIncompatible, PeerMisbehaved
from xfrmpy.ike.outputs import AddPolicy, AddSa, ChildSaClosed, ChildSaEstablished, RemoveSa
from xfrmpy.ike.states import CHILD_SA_TRANSITIONS, ChildSaState, IllegalTransition
from xfrmpy.ipsec.addresses import IpAddress, Path, SocketAddress
from xfrmpy.ipsec.proposals import Proposal, answers, choose_proposal, esp_suite
from xfrmpy.ipsec.sad import Direction, SadEntry, UdpEncapsulation
from xfrmpy.ipsec.selectors import TrafficSelector, covered_by, narrow_selectors
from xfrmpy.ipsec.spd import SpdEntry, Template, protect_entries
from xfrmpy.policy.model import ChildPolicy, TunnelPolicy
from xfrmpy.registry import NotifyType, TransformType
from xfrmpy.wire.payloads import OpenPayload, SaPayload, TsiPayload, TsrPayload

SPI_SIZE = 4

MAX_SPD_ENTRIES = 3 * 4096
"""Of one Child SA. 255 selectors at each end (RFC 7296 section 3.13), each an odd range of
addresses and of ports, would make thousands of millions: no peer needs that, however authentic."""

MASKS_OF_PORT_RANGE = 30
"""The most masked ports that a range of ports is cut into: 2 * 16 - 2."""


class ChildSa:
    """See the module. `local` and `remote` are what was agreed, within what policy allows."""

    def __init__(self, core: Core, tunnel: TunnelPolicy, policy: ChildPolicy) -> None:
        self.policy = policy
        self.tunnel = tunnel
        self.state = ChildSaState.CREATING
        self.spi_in = core.new_child_spi(tunnel)
        self.proposal: Proposal | None = None
        self.local: tuple[TrafficSelector, ...] = policy.local
        self.remote: tuple[TrafficSelector, ...] = policy.remote
        self.entries: tuple[SadEntry, ...] = ()
        self.failure = ""
        self._absent: tuple[SadEntry | SpdEntry, ...] = ()
        self.established_at = 0.0
        self._core = core
        core.children[self.spi_in] = self

    # Negotiation.

    def offer(self) -> tuple[OpenPayload, ...]:
        """SAi2, TSi and TSr of an initiator."""
        return (
            SaPayload(proposals=self._offered()),
            TsiPayload(selectors=self.local),
            TsrPayload(selectors=self.remote),
        )

    def accept(self, sa: SaPayload, tsi: TsiPayload, tsr: TsrPayload) -> None:
        """Take a responder's choice. Raises `PeerMisbehaved` if it is not within our offer."""
        if len(sa.proposals) != 1 or not answers(sa.proposals[0], self._offered()):
            raise PeerMisbehaved("the peer chose an ESP proposal that we did not offer")
        if not (tsi.selectors and covered_by(tsi.selectors, self.policy.local)):
            raise PeerMisbehaved("the peer's TSi is not within ours")
        if not (tsr.selectors and covered_by(tsr.selectors, self.policy.remote)):
            raise PeerMisbehaved("the peer's TSr is not within ours")
        if not _is_affordable(tsi.selectors, tsr.selectors):
            raise PeerMisbehaved("the peer's traffic selectors make too many policies")
        self.proposal = _checked_spi(sa.proposals[0])
        self.local, self.remote = tsi.selectors, tsr.selectors

    def choose(self, sa: SaPayload, tsi: TsiPayload, tsr: TsrPayload) -> None:
        """Choose from an initiator's offer. Raises `PeerIncompatible` with both sides' values."""
        offered = tuple(p.without(TransformType.KE) for p in sa.proposals)
        ours = _for_first_child(self.policy)
        chosen = choose_proposal(offered, ours)
        if chosen is None:
            raise PeerIncompatible.of(
                "XF2003",
                "no ESP proposal of the peer is one of ours",
                NotifyType.NO_PROPOSAL_CHOSEN,
                evidence=(("we accept", _listed(ours)), ("they offered", _listed(sa.proposals))),
            )
        remote = narrow_selectors(tsi.selectors, self.policy.remote)
        local = narrow_selectors(tsr.selectors, self.policy.local)
        if not remote or not local:
            raise PeerIncompatible.of(
                "XF2004",
                "the peer's traffic selectors have nothing in common with ours",
                NotifyType.TS_UNACCEPTABLE,
                evidence=(
                    ("our local", _listed(self.policy.local)),
                    ("their TSr", _listed(tsr.selectors)),
                    ("our remote", _listed(self.policy.remote)),
                    ("their TSi", _listed(tsi.selectors)),
                ),
            )
        if not _is_affordable(local, remote):
            raise PeerIncompatible.of(
                "XF2004",
                "the peer's traffic selectors make too many policies",
                NotifyType.TS_UNACCEPTABLE,
                evidence=(
                    ("their selectors", f"{len(tsr.selectors)} by {len(tsi.selectors)}"),
                    ("we accept", f"{MAX_SPD_ENTRIES} policies"),
                ),
            )
        self.proposal = _checked_spi(chosen)
        self.local, self.remote = local, remote

    def answer(self) -> tuple[OpenPayload, ...]:
        """SAr2, TSi and TSr of a responder that has chosen."""
        assert self.proposal is not None
        ours = replace(self.proposal, spi=self.spi_in.to_bytes(SPI_SIZE, "big"))
        return (
            SaPayload(proposals=(ours,)),
            TsiPayload(selectors=self.remote),
            TsrPayload(selectors=self.local),
        )

    # In force and out of it.

    def install(
        self, keys: ChildKeys, path: Path, *, is_initiator: bool, encapsulated: bool
    ) -> None:
        """Ask for both SAs, the inbound one first, and for the policies."""
        self.entries = self._entries(
            keys, path, is_initiator=is_initiator, encapsulated=encapsulated
        )
        for sad_entry in self.entries:
            self._core.emit(AddSa(**self._names(), entry=sad_entry))
        for spd_entry in self._policies(path):
            addition = self._core.policies.claim(AddPolicy(**self._names(), entry=spd_entry))
            if addition is not None:
                self._core.emit(addition)

    def established(self, now: float) -> None:
        """The peer knows that the SAs are in force."""
        self._move_to(ChildSaState.INSTALLED)
        self.established_at = now
        self._core.emit(
            ChildSaEstablished(
                tunnel=self.tunnel.name,
                child=self.policy.name,
                spi_in=self.spi_in,
                spi_out=self.spi_out,
                suite=str(self.entries[0].suite),
            )
        )

    def refused(self, output: AddSa | AddPolicy, reason: str) -> None:
        """The datapath refused a part of it: ask for no more, and remember why.

        What was refused may be somebody else's, so `close` leaves it alone.
        """
        self.failure = reason
        withdrawn = self._core.withdraw_additions(self.spi_in)
        self._absent = tuple(addition.entry for addition in (output, *withdrawn))

    def close(self) -> None:
        """Take everything out of force."""
        if self.state is ChildSaState.DELETED:
            return
        was_installed = self.state is ChildSaState.INSTALLED
        self._move_to(ChildSaState.DELETED)
        for change in self._core.policies.release(self.spi_in):
            if change.entry not in self._absent:
                self._core.emit(change)
        for entry in reversed(self.entries):
            if entry not in self._absent:
                self._core.emit(RemoveSa(**self._names(), sa=entry.id))
        del self._core.children[self.spi_in]
        if was_installed:
            self._core.emit(
                ChildSaClosed(tunnel=self.tunnel.name, child=self.policy.name, spi_in=self.spi_in)
            )

    @property
    def spi_out(self) -> int:
        assert self.proposal is not None
        return int.from_bytes(self.proposal.spi, "big")

    def _offered(self) -> tuple[Proposal, ...]:
        spi = self.spi_in.to_bytes(SPI_SIZE, "big")
        ours = _for_first_child(self.policy)
        return tuple(replace(p, number=n, spi=spi) for n, p in enumerate(ours, 1))

    def _entries(
        self, keys: ChildKeys, path: Path, *, is_initiator: bool, encapsulated: bool
    ) -> tuple[SadEntry, SadEntry]:
        assert self.proposal is not None
        suite = esp_suite(self.proposal)
        keys_i = (keys.encryption_i, keys.integrity_i)
        keys_r = (keys.encryption_r, keys.integrity_r)
        keys_out, keys_in = (keys_i, keys_r) if is_initiator else (keys_r, keys_i)

        def entry(
            direction: Direction,
            spi: int,
            source: SocketAddress,
            destination: SocketAddress,
            key: tuple[bytes, bytes],
        ) -> SadEntry:
            udp = UdpEncapsulation(source.port, destination.port) if encapsulated else None
            return SadEntry(
                direction=direction,
                spi=spi,
                source=source.address,
                destination=destination.address,
                reqid=self.tunnel.reqid,
                suite=suite,
                encryption_key=key[0],
                integrity_key=key[1],
                mode=self.policy.mode,
                replay_window=self.policy.replay_window,
                encapsulation=udp,
                lifetime=self.policy.lifetime,
            )

        return (
            entry(Direction.IN, self.spi_in, path.remote, path.local, keys_in),
            entry(Direction.OUT, self.spi_out, path.local, path.remote, keys_out),
        )

    def _policies(self, path: Path) -> tuple[SpdEntry, ...]:
        def template(source: IpAddress, destination: IpAddress) -> Template:
            return Template(
                source=source,
                destination=destination,
                reqid=self.tunnel.reqid,
                mode=self.policy.mode,
            )

        return protect_entries(
            local=self.local,
            remote=self.remote,
            outbound=template(path.local.address, path.remote.address),
            inbound=template(path.remote.address, path.local.address),
        )

    def _names(self) -> _Names:
        return {"owner": self.spi_in, "tunnel": self.tunnel.name, "child": self.policy.name}

    def _move_to(self, state: ChildSaState) -> None:
        if state not in CHILD_SA_TRANSITIONS[self.state]:
            raise IllegalTransition(f"Child SA: {self.state} to {state}")
        self.state = state


class _Names(TypedDict):
    owner: int
    tunnel: str
    child: str


def choose_child_policy(tunnel: TunnelPolicy, tsi: TsiPayload, tsr: TsrPayload) -> ChildPolicy:
    """The first child of a tunnel that an initiator's selectors meet; else simply the first."""
    for child in tunnel.children:
        if narrow_selectors(tsi.selectors, child.remote) and narrow_selectors(
            tsr.selectors, child.local
        ):
            return child
    return tunnel.children[0]


def _for_first_child(policy: ChildPolicy) -> tuple[Proposal, ...]:
    """Our proposals for IKE_AUTH, where the IKE SA's key exchange serves (RFC 7296 section 1.2)."""
    return tuple(dict.fromkeys(p.without(TransformType.KE) for p in policy.proposals))


def _is_affordable(local: tuple[TrafficSelector, ...], remote: tuple[TrafficSelector, ...]) -> bool:
    """Whether the SPD entries of these selectors, counted high, are few enough."""
    directions = 3
    return _pieces(local) * _pieces(remote) * directions <= MAX_SPD_ENTRIES


def _pieces(selectors: tuple[TrafficSelector, ...]) -> int:
    """At most so many prefixes with masked ports cover the selectors."""
    return sum(
        len(s.networks())
        * (1 if s.has_all_ports or s.start_port >= s.end_port else MASKS_OF_PORT_RANGE)
        for s in selectors
    )


def _checked_spi(proposal: Proposal) -> Proposal:
    if len(proposal.spi) != SPI_SIZE or int.from_bytes(proposal.spi, "big") < FIRST_CHILD_SPI:
        raise PeerMisbehaved(f"0x{proposal.spi.hex()} is no SPI of ESP")
    return proposal


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
