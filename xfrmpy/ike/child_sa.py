"""One Child SA: its negotiation, and the SAD and SPD entries that it puts in force.

Read RFC 7296 sections 1.2, 2.8, 2.9 and 2.17 first. Nothing here sends a message.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeAlias, TypedDict

from xfrmpy.crypto.key_schedule import ChildKeys
from xfrmpy.ike.agreement import choose_for_method
from xfrmpy.ike.collisions import Nonces
from xfrmpy.ike.compression import compression_payloads, cpi_of
from xfrmpy.ike.core import FIRST_CHILD_SPI, Core
from xfrmpy.ike.errors import PeerIncompatible, PeerMisbehaved
from xfrmpy.ike.evidence import listed
from xfrmpy.ike.lifetimes import datapath_lifetime, replacement_seconds
from xfrmpy.ike.modes import Traffic, inner_ends, mode_payloads
from xfrmpy.ike.outputs import (
    AddPolicy,
    AddSa,
    ChildSaClosed,
    ChildSaEstablished,
    ChildSaRekeyed,
    MoveSa,
    RemoveSa,
)
from xfrmpy.ike.resource_info import resource_payloads
from xfrmpy.ike.states import CHILD_SA_TRANSITIONS, ChildSaState, IllegalTransition
from xfrmpy.ipsec.addresses import IpAddress, Path, SocketAddress
from xfrmpy.ipsec.proposals import KEY_EXCHANGES, Proposal, answers, child_suite
from xfrmpy.ipsec.sad import Direction, InnerEnds, Mode, SadEntry, SaId, UdpEncapsulation, lane_of
from xfrmpy.ipsec.selectors import TrafficSelector, covered_by, narrow_selectors
from xfrmpy.ipsec.spd import SpdEntry, Template, protect_entries
from xfrmpy.policy.model import ChildPolicy, DatapathChoice, TunnelPolicy
from xfrmpy.registry import KeyExchangeMethod, NotifyType, ProtocolId
from xfrmpy.wire.payloads import OpenPayload, SaPayload, TsiPayload, TsrPayload

SPI_SIZE = 4

MAX_SPD_ENTRIES = 3 * 4096
"""Of one Child SA. 255 selectors at each end (RFC 7296 section 3.13), each an odd range of
addresses and of ports, would make thousands of millions: no peer needs that, however authentic."""

MASKS_OF_PORT_RANGE = 30
"""The most masked ports that a range of ports is cut into: 2 * 16 - 2."""


Scope: TypeAlias = tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]]
"""Our selectors, and the peer's."""

_NO_SPIS: frozenset[bytes] = frozenset()


class ChildSa:
    """See the module. `local` and `remote` are what was agreed, within what was offered.

    `nonces` are those of the exchange that made it, of which we may be the initiator. `replaces` is
    the Child SA whose place it takes; `heir` is what the peer has made to take its place, perhaps
    while we were at the same. `scope` is a part of what policy allows; `packet` is what has just
    been met and needs it, and is offered first (RFC 7296 section 2.9). `gone_spis` are what the
    peer has deleted before we could know whether one of them is ours: a Delete may overtake the
    answer that makes the Child SA. `claimed_as` tells whose claim to its policies is older.
    `outdated_at`: when the policy of its tunnel changed, if what that means to it is still to
    be seen. `is_lost`: SAs of it were found to be in force no more. It `is_per_resource` if it may
    be one of several with the same traffic, each of its own `resource`; before the answer is known,
    if that is asked for. Its lane is another than that of those `beside` it, if one is left.
    """

    __slots__ = (
        *("claimed_as", "entries", "established_at", "failure", "gone_spis", "heir", "ids"),
        *("in_force",),
        *("is_asking_usage", "is_initiator", "is_lost", "is_per_resource", "is_told"),
        *("outdated_at",),
        *("last_received_at", "last_sent_at", "last_used_at", "local", "nonces", "peer_address"),
        *("peer_cpi", "peer_takes_tfc"),
        *("policy", "proposal", "rekey_at", "remote", "replaces", "reqid", "spi_in", "state"),
        *("tunnel", "wait_until", "_absent", "_core", "_packet", "_proposals"),
    )

    def __init__(
        self,
        core: Core,
        tunnel: TunnelPolicy,
        policy: ChildPolicy,
        proposals: tuple[Proposal, ...],
        *,
        replaces: ChildSa | None = None,
        scope: Scope | None = None,
        packet: Scope | None = None,
        beside: Iterable[ChildSa] = (),
    ) -> None:
        self.policy = policy
        self.tunnel = tunnel
        self.state = ChildSaState.CREATING
        self.spi_in = core.new_child_spi(tunnel, policy, replaces=replaces, beside=beside)
        self.proposal: Proposal | None = None
        self.local, self.remote = scope or scope_of(policy if replaces is None else replaces)
        self.reqid: int = policy.reqid if replaces is None else replaces.reqid
        self.peer_address: IpAddress | None = None
        self.peer_cpi: int | None = None
        self.peer_takes_tfc = True
        self.is_per_resource = policy.per_resource > 0
        self._packet = packet or ((), ())
        self.nonces: Nonces = (b"", b"")
        self.is_initiator = False
        self.replaces = replaces
        self.heir: ChildSa | None = None
        self.entries: tuple[SadEntry, ...] = ()
        self.ids: tuple[SaId, ...] = ()
        self.in_force: list[SadEntry] = []
        self.failure = ""
        self.established_at = 0.0
        self.rekey_at: float | None = None
        self.wait_until: float | None = None
        self.is_told = self.is_lost = False
        self.outdated_at: float | None = None if replaces is None else replaces.outdated_at
        self.claimed_as: int | None = None
        self.gone_spis = _NO_SPIS
        self.is_asking_usage = False
        self.last_received_at = 0.0
        self.last_sent_at = 0.0
        self.last_used_at = 0.0
        self._proposals = proposals
        self._absent: tuple[SpdEntry, ...] = ()
        self._core = core
        core.add_child(self)

    # Negotiation.

    def offer(self) -> tuple[OpenPayload, ...]:
        """SA, TSi and TSr of an initiator, and the mode."""
        return (
            SaPayload(proposals=self._offered()),
            TsiPayload(selectors=(*self._packet[0], *self.local)),
            TsrPayload(selectors=(*self._packet[1], *self.remote)),
            *mode_payloads(self.policy.mode),
            *compression_payloads(self.spi_in, wanted=self.policy.compresses),
            *resource_payloads(self.lane),
        )

    def accept(self, sa: SaPayload, traffic: Traffic) -> None:
        """Take a responder's choice. Raises `PeerMisbehaved` if it is not within our offer."""
        if len(sa.proposals) != 1 or not answers(sa.proposals[0], self._offered()):
            raise PeerMisbehaved(f"the peer chose an {self._kind} proposal that we did not offer")
        if not (traffic.local and covered_by(traffic.local, self.local)):
            raise PeerMisbehaved("the peer's TSi is not within ours")
        if not (traffic.remote and covered_by(traffic.remote, self.remote)):
            raise PeerMisbehaved("the peer's TSr is not within ours")
        if not _is_affordable(traffic.local, traffic.remote):
            raise PeerMisbehaved("the peer's traffic selectors make too many policies")
        if traffic.peer_cpi is not None and not self.policy.compresses:
            raise PeerMisbehaved("the peer chose a compression that we did not offer")
        self.proposal = _checked_spi(sa.proposals[0])
        self.local, self.remote = traffic.local, traffic.remote
        self.peer_address = traffic.peer_address
        self.peer_cpi = traffic.peer_cpi
        self.peer_takes_tfc = traffic.peer_takes_tfc
        self.is_per_resource = self.is_per_resource and traffic.is_per_resource

    def choose(
        self,
        offered: tuple[Proposal, ...],
        traffic: Traffic,
        method: KeyExchangeMethod | None = None,
    ) -> None:
        """Choose from an initiator's offer; `method` is that of its KE payload, if there is one.

        Raises `PeerIncompatible` with both sides' values.
        """
        chosen = choose_for_method(offered, self._proposals, method)
        if chosen is None:
            ours = listed(self._proposals)
            raise PeerIncompatible.of(
                "XF2003",
                f"no {self._kind} proposal of the peer is one of ours",
                NotifyType.NO_PROPOSAL_CHOSEN,
                evidence=(("we accept", ours), ("they offered", listed(offered))),
            )
        remote = narrow_selectors(traffic.remote, self.policy.remote)
        local = narrow_selectors(traffic.local, self.policy.local)
        if not remote or not local:
            raise PeerIncompatible.of(
                "XF2004",
                "the peer's traffic selectors have nothing in common with ours",
                NotifyType.TS_UNACCEPTABLE,
                evidence=(
                    ("our local", listed(self.policy.local)),
                    ("their TSr", listed(traffic.local)),
                    ("our remote", listed(self.policy.remote)),
                    ("their TSi", listed(traffic.remote)),
                ),
            )
        if not _is_affordable(local, remote):
            raise PeerIncompatible.of(
                "XF2004",
                "the peer's traffic selectors make too many policies",
                NotifyType.TS_UNACCEPTABLE,
                evidence=(
                    ("their selectors", f"{len(traffic.local)} by {len(traffic.remote)}"),
                    ("we accept", f"{MAX_SPD_ENTRIES} policies"),
                ),
            )
        self.proposal = _checked_spi(chosen)
        self.local, self.remote = local, remote
        self.peer_address = traffic.peer_address
        self.peer_cpi = traffic.peer_cpi if self.policy.compresses else None
        self.peer_takes_tfc = traffic.peer_takes_tfc
        self.is_per_resource = self.policy.per_resource > 0 and traffic.is_per_resource

    def answer(self) -> tuple[OpenPayload, ...]:
        """SA, TSi and TSr of a responder that has chosen, and the mode."""
        assert self.proposal is not None
        ours = replace(self.proposal, spi=self.spi_in.to_bytes(SPI_SIZE, "big"))
        return (
            SaPayload(proposals=(ours,)),
            TsiPayload(selectors=self.remote),
            TsrPayload(selectors=self.local),
            *mode_payloads(self.policy.mode),
            *compression_payloads(self.spi_in, wanted=self.peer_cpi is not None),
            *resource_payloads(self.lane),
        )

    # In force and out of it.

    def install(
        self,
        keys: ChildKeys,
        path: Path,
        *,
        is_initiator: bool,
        encapsulated: bool,
        sends: bool = True,
    ) -> None:
        """Ask for the inbound SA, for the outbound one if it `sends` at once, and for policies.

        A responder that replaces an SA goes on sending on the old one until it knows that the
        initiator can receive on the new one (RFC 7296 section 2.8).
        """
        self.is_initiator = is_initiator
        if self.replaces is None:
            self.reqid = self._free_reqid()
        self.name(self._entries(keys, path, is_initiator=is_initiator, encapsulated=encapsulated))
        inbound, outbound = self.entries
        self._add(inbound)
        if sends:
            self._add(outbound)
        self.claimed_as = self._core.policies.new_number()
        for addition in self.claim_policies(path):
            self._core.emit(addition)

    def claim_policies(self, path: Path) -> list[AddPolicy]:
        """Want its policies in force; gives those that were not."""
        wanted = (AddPolicy(**self._names(), entry=entry) for entry in self._policies(path))
        claimed = (self._core.policies.claim(addition) for addition in wanted)
        return [addition for addition in claimed if addition is not None]

    def start_sending(self) -> None:
        """Ask for the outbound SA, if that was not done before."""
        if not self.sends and not self.is_lost:
            self._add(self.entries[1])

    @property
    def sends(self) -> bool:
        """Whether the outbound SA is in force."""
        return Direction.OUT in [entry.direction for entry in self.in_force]

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Which of its SAs are in force, in the order in which they came to be."""
        return tuple(entry.direction for entry in self.in_force)

    @directions.setter
    def directions(self, directions: tuple[Direction, ...]) -> None:
        by_direction = {entry.direction: entry for entry in self.entries}
        self.in_force = [by_direction[direction] for direction in directions]

    @property
    def is_outdated(self) -> bool:
        """Whether it may have to follow another policy."""
        return self.outdated_at is not None

    @property
    def is_in_use(self) -> bool:
        """Whether it carries the traffic: no other has replaced it, or is to."""
        return self.sends and self.state in (ChildSaState.INSTALLED, ChildSaState.REKEYING)

    @property
    def waits_to_send(self) -> bool:
        """Whether it is to carry the traffic of another soon, which still does."""
        return self.state is ChildSaState.INSTALLED and not self.sends and not self.is_lost

    @property
    def is_rival(self) -> bool:
        """Whether another one carries the very same traffic at present, of another IKE SA."""
        return any(
            other.is_in_use and scope_of(other) == scope_of(self)
            for other in self._core.kin_of(self)
        )

    def stop_sending(self) -> None:
        """Take the outbound SA out of force; what is still on its way to us gets in."""
        self._remove(Direction.OUT)

    def established(self, now: float) -> None:
        """The peer knows that the SAs are in force."""
        self.move_to(ChildSaState.INSTALLED)
        self._core.leave_nothing_over(self)
        self.established_at = self.last_used_at = now
        if self.policy.lifetime_seconds is not None:
            wait = replacement_seconds(self.policy.lifetime_seconds, self._core.random)
            self.rekey_at = now + wait
        if self.is_lost:
            self.rekey_at = now
        report = ChildSaEstablished if self.replaces is None else ChildSaRekeyed
        self._core.emit(
            report(
                tunnel=self.tunnel.name,
                child=self.policy.name,
                spi_in=self.spi_in,
                spi_out=self.spi_out,
                suite=self.suite,
            )
        )

    @property
    def protocol(self) -> ProtocolId:
        """ESP or AH: what was agreed, or what is offered."""
        return (self.proposal or self._proposals[0]).protocol

    @property
    def _kind(self) -> str:
        return self.protocol.name

    @property
    def suite(self) -> str:
        """The algorithms, with the key exchanges that it had for itself."""
        assert self.proposal is not None
        exchanges = (t for t in self.proposal.transforms if t.type in KEY_EXCHANGES)
        named = (str(t) for t in exchanges if t.id != KeyExchangeMethod.NONE)
        return "-".join((str(self.entries[0].suite), *named))

    def handle_usage(self, direction: Direction, seconds_idle: float, now: float) -> None:
        """The last packet of one direction was so long ago."""
        moment = now - seconds_idle
        self.last_used_at = max(self.last_used_at, moment)
        if direction is Direction.IN:
            self.last_received_at = max(self.last_received_at, moment)
        else:
            self.last_sent_at = max(self.last_sent_at, moment)

    def refused(
        self, output: AddSa | AddPolicy, reason: str, not_done: Iterable[AddSa | AddPolicy] = ()
    ) -> None:
        """The datapath refused a part of it: ask for no more, and remember why.

        What was refused may be somebody else's, so `close` leaves it alone.
        """
        self.failure = reason
        withdrawn = self._core.withdraw_additions(self.spi_in)
        refused = (output, *not_done, *withdrawn)
        absent = [addition.entry for addition in refused]
        self.in_force = [entry for entry in self.in_force if entry not in absent]
        self._absent = tuple(
            addition.entry
            for addition in refused
            if isinstance(addition, AddPolicy) and not addition.is_in_place
        )

    def give_way(self) -> None:
        """Made in vain: the peer is to be told, and meanwhile may only send on it."""
        self.move_to(ChildSaState.DELETING)
        self._release_policies()
        self.stop_sending()
        if self.failure:
            self._remove(Direction.IN)

    def retire(self) -> None:
        """Deleted after another took its place; what is on its way gets in until `close`."""
        self.move_to(ChildSaState.DELETED)
        self._release_policies()
        self.stop_sending()

    def adopt_outbound(self) -> None:
        """It is in force, of which an earlier daemon did not live to record it."""
        self.in_force.append(self.entries[1])
        self._core.changed_children.add(self)

    def lose(self, missing: Iterable[SadEntry], now: float) -> None:
        """SAs of it are in force no more, and never can be again: their sequence numbers are gone.

        Its policies stay, so that nothing leaves in clear, until another is in its place.
        """
        self.in_force = [entry for entry in self.in_force if entry not in missing]
        self.is_lost, self.rekey_at = True, now
        self._core.changed_children.add(self)

    def move(self, path: Path) -> None:
        """Go on between the addresses and ports of `path`, with the same keys and numbers."""
        if not self.entries or self.failure:
            return
        self._core.changed_children.add(self)
        for old in self.in_force:
            self._core.emit(MoveSa(**self._names(), sa=old.id, entry=_moved(old, path)))
        self.in_force = [_moved(entry, path) for entry in self.in_force]
        self.name(tuple(_moved(entry, path) for entry in self.entries))
        for spd_entry in self._policies(path):
            change = self._core.policies.renew(AddPolicy(**self._names(), entry=spd_entry))
            if change is not None:
                self._core.emit(change)

    def close(self) -> None:
        """Take everything out of force."""
        was_in_use = self.is_in_use
        if self.state is not ChildSaState.DELETED:
            self.move_to(ChildSaState.DELETED)
        self._release_policies()
        self._remove(Direction.OUT)
        self._remove(Direction.IN)
        self._core.leave_nothing_over(self)
        self._core.forget_child(self)
        self.replaces = None  # Or each would keep all its forerunners in memory.
        if was_in_use:
            self._core.emit(
                ChildSaClosed(tunnel=self.tunnel.name, child=self.policy.name, spi_in=self.spi_in)
            )

    @property
    def is_bound_to_addresses(self) -> bool:
        """In transport mode the peer's address is the traffic's: another would be other traffic."""
        return self.policy.mode is Mode.TRANSPORT

    @property
    def lane(self) -> int | None:
        """Which of several of one traffic it is (RFC 9611), if it may be one."""
        lanes = self._core.lanes_of(self.tunnel, self.policy)
        return lane_of(self.spi_in, lanes) if self.is_per_resource else None

    def _resource(self, direction: Direction) -> int | None:
        """The userspace worker of its lane; in the kernel the CPU, to which outbound SAs are bound,
        and of the first lane none."""
        if self.lane is None or self.tunnel.datapath is DatapathChoice.USERSPACE:
            return self.lane
        return self.lane - 1 if self.lane and direction is Direction.OUT else None

    def _window(self, resource: int | None, direction: Direction) -> int:
        """A kernel that knows which way an SA works takes none of an outbound one."""
        in_kernel = self.tunnel.datapath is not DatapathChoice.USERSPACE
        is_bound = in_kernel and resource is not None and direction is Direction.OUT
        return 0 if is_bound else self.policy.replay_window

    @property
    def spi_out(self) -> int:
        assert self.proposal is not None
        return int.from_bytes(self.proposal.spi, "big")

    def note_gone(self) -> None:
        """The peer has deleted it, and may have told us too early."""
        assert self.proposal is not None
        self.gone_spis |= {self.proposal.spi}

    @property
    def is_gone(self) -> bool:
        """Whether the peer has deleted it before it told us of it, or of what replaces it."""
        assert self.proposal is not None
        return self.proposal.spi in self.gone_spis

    def move_to(self, state: ChildSaState) -> None:
        if state not in CHILD_SA_TRANSITIONS[self.state]:
            raise IllegalTransition(f"Child SA: {self.state} to {state}")
        self.state = state
        self._core.changed_children.add(self)

    def _free_reqid(self) -> int:
        """That of the policy, or one apart if the policy has several Child SAs with parts of it.

        A datapath finds an SA by its reqid alone: it must carry all that the policies with that
        reqid want, a trap among them.
        """
        kin = [child for child in self._core.kin_of(self) if child.in_force]
        for child in kin:
            if scope_of(child) == scope_of(self):
                return child.reqid
        if self.policy.reqid in self._core.trapped_children and _is_part(self):
            return self._core.new_reqid()
        if any(child.reqid == self.policy.reqid for child in kin):
            return self._core.new_reqid()
        return self.policy.reqid

    def name(self, entries: tuple[SadEntry, ...]) -> None:
        """These are its SAs from now on, and are found by their `ids`."""
        self._core.forget_names(self)
        self.entries = entries
        self.ids = tuple(entry.id for entry in entries)
        self._core.holders.update(dict.fromkeys(self.ids, self))

    def _add(self, entry: SadEntry) -> None:
        self._core.changed_children.add(self)
        leftover = self._core.leftovers.pop(entry.id, None)
        if leftover is not None and replace(leftover.entry, lifetime=entry.lifetime) != entry:
            self.failure = f"another SA is in the place of {entry.id}"
            self._core.emit(RemoveSa(**self._names(), sa=entry.id))
            return
        self.in_force.append(entry)
        if leftover is None:
            self._core.emit(AddSa(**self._names(), entry=entry))

    def _remove(self, direction: Direction) -> None:
        for entry in [e for e in self.in_force if e.direction is direction]:
            self.in_force.remove(entry)
            self._core.changed_children.add(self)
            self._core.emit(RemoveSa(**self._names(), sa=entry.id))

    def _release_policies(self) -> None:
        self.claimed_as = None
        for change in self._core.policies.release(self.spi_in):
            if change.entry not in self._absent:
                self._core.emit(change)

    def _offered(self) -> tuple[Proposal, ...]:
        spi = self.spi_in.to_bytes(SPI_SIZE, "big")
        return tuple(replace(p, number=n, spi=spi) for n, p in enumerate(self._proposals, 1))

    def _entries(
        self, keys: ChildKeys, path: Path, *, is_initiator: bool, encapsulated: bool
    ) -> tuple[SadEntry, SadEntry]:
        assert self.proposal is not None
        suite = child_suite(self.proposal)
        lifetime = datapath_lifetime(self.policy, suite, self._core.random)
        keys_i = (keys.encryption_i, keys.integrity_i)
        keys_r = (keys.encryption_r, keys.integrity_r)
        keys_out, keys_in = (keys_i, keys_r) if is_initiator else (keys_r, keys_i)
        cpis, inner = self._cpis(), self._inner_ends()
        marks = {Direction.IN: self.policy.mark_in, Direction.OUT: self.policy.mark_set}

        def entry(
            direction: Direction,
            spi: int,
            source: SocketAddress,
            destination: SocketAddress,
            key: tuple[bytes, bytes],
        ) -> SadEntry:
            original = self.peer_address if direction is Direction.IN else None
            resource = self._resource(direction)
            udp = UdpEncapsulation(source.port, destination.port, original)
            return SadEntry(
                direction=direction,
                spi=spi,
                source=source.address,
                destination=destination.address,
                reqid=self.reqid,
                suite=suite,
                encryption_key=key[0],
                integrity_key=key[1],
                mode=self.policy.mode,
                inner=inner[direction],
                replay_window=self._window(resource, direction),
                outer=self.policy.outer,
                cpi=cpis[direction],
                tfc=self._padding_of(direction),
                encapsulation=udp if encapsulated else None,
                lifetime=lifetime,
                set_mark=marks[direction],
                if_id=self.policy.if_id,
                resource=resource,
                offload=self.policy.offload,
            )

        return (
            entry(Direction.IN, self.spi_in, path.remote, path.local, keys_in),
            entry(Direction.OUT, self.spi_out, path.local, path.remote, keys_out),
        )

    def _padding_of(self, direction: Direction) -> int:
        """What is received needs none told: the inner packet says how long it is."""
        is_taken = direction is Direction.OUT and self.peer_takes_tfc
        return self.policy.tfc if is_taken and self.policy.mode is Mode.TUNNEL else 0

    def _inner_ends(self) -> dict[Direction, InnerEnds | None]:
        if self.policy.mode is not Mode.BEET:
            return {Direction.IN: None, Direction.OUT: None}
        return {
            Direction.IN: inner_ends(self.remote, self.local),
            Direction.OUT: inner_ends(self.local, self.remote),
        }

    def _cpis(self) -> dict[Direction, int | None]:
        """Those of compression, if both ends have agreed to it."""
        ours = None if self.peer_cpi is None else cpi_of(self.spi_in)
        return {Direction.IN: ours, Direction.OUT: self.peer_cpi}

    def _policies(self, path: Path) -> tuple[SpdEntry, ...]:
        def template(source: IpAddress, destination: IpAddress) -> Template:
            return Template(
                source=source,
                destination=destination,
                reqid=self.reqid,
                protocol=self.protocol,
                mode=self.policy.mode,
                compresses=self.peer_cpi is not None,
            )

        return protect_entries(
            local=self.local,
            remote=self.remote,
            outbound=template(path.local.address, path.remote.address),
            inbound=template(path.remote.address, path.local.address),
            priority=self.policy.priority,
            mark_out=self.policy.mark_out,
            mark_in=self.policy.mark_in,
            if_id=self.policy.if_id,
        )

    def _names(self) -> _Names:
        return {"owner": self.spi_in, "tunnel": self.tunnel.name, "child": self.policy.name}


def scope_of(limits: ChildPolicy | ChildSa) -> Scope:
    return limits.local, limits.remote


def _is_part(child: ChildSa) -> bool:
    """Whether the peer has narrowed what policy allows."""
    return scope_of(child) != scope_of(child.policy)


class _Names(TypedDict):
    owner: int
    tunnel: str
    child: str


def _moved(entry: SadEntry, path: Path) -> SadEntry:
    ends = (path.local, path.remote)
    source, destination = ends if entry.direction is Direction.OUT else ends[::-1]
    udp = entry.encapsulation
    if udp is not None:
        udp = replace(udp, source_port=source.port, destination_port=destination.port)
    return replace(entry, source=source.address, destination=destination.address, encapsulation=udp)


def proposals_of_first_child(policy: ChildPolicy) -> tuple[Proposal, ...]:
    """Our proposals for IKE_AUTH, where the IKE SA's key exchange serves (RFC 7296 section 1.2)."""
    return tuple(dict.fromkeys(p.without(*KEY_EXCHANGES) for p in policy.proposals))


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
        raise PeerMisbehaved(f"0x{proposal.spi.hex()} is no SPI of {proposal.protocol.name}")
    return proposal
