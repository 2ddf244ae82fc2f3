"""What the machines of one endpoint share: the output queue, randomness, tunnels and SPIs."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from xfrmpy.crypto.authentication import SignaturePolicy
from xfrmpy.ike.candidates import Tunnel, TunnelIndex
from xfrmpy.ike.certificates import WallClock, stopped_clock
from xfrmpy.ike.compression import cpi_of
from xfrmpy.ike.fragments import FragmentStore
from xfrmpy.ike.inquiries import Inquiries
from xfrmpy.ike.lookups import Lookups
from xfrmpy.ike.outputs import AddPolicy, AddSa, AskUsage, Output, RemoveSa
from xfrmpy.ike.policies import PolicyBook
from xfrmpy.ike.signing import Signings
from xfrmpy.ike.tickets import TicketKeys
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, Path
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.sad import MAX_RESOURCES, OUR_REQIDS, USERSPACE_SPI_BIT, SaId, lane_of
from xfrmpy.policy.model import ChildPolicy, DatapathChoice, TunnelPolicy

if TYPE_CHECKING:
    from xfrmpy.ike.child_sa import ChildSa, Scope
    from xfrmpy.ike.crash import TokenMaker
    from xfrmpy.ike.ike_sa import IkeSa
    from xfrmpy.ike.resumption import HeldTicket

K = TypeVar("K")
S = TypeVar("S")
V = TypeVar("V")

IKE_SPI_SIZE = 8
FIRST_CHILD_SPI = 256
"""RFC 4303 section 2.1 reserves 1 to 255."""


class Deferred(NamedTuple):
    """A step of an IKE SA that waits until every output before it has succeeded or failed."""

    sa: IkeSa
    step: Callable[[float], None]
    now: float


class Core:
    """See the module. Owned by the endpoint; the IKE SAs hold a reference.

    `authentications` counts the IKE SAs whose peer has proved who it is, ever.
    `touched` are the IKE SAs whose next timeout may have changed, and `attended` those, with the
    moment of their next duty, of which all is done that was due; `handling` is the one whose keys
    (or, before there are keys, whose open request) the datagram at hand has matched. `changed` are
    the SPIs of IKE SAs, and `changed_children` the Child SAs, of which a restarted daemon must know
    more than it would; of those that are `counted` it must know only what they have sent, and have
    been asked. `leftovers` are what an earlier one had put in force for a Child SA whose making
    it did not live to record. `trapped` are the tunnels whose traps are in force, with their ends,
    and `trapped_children` their children by reqid, each with its tunnel; `demands` are the packets
    that wait for an IKE SA to be begun, by tunnel and child. The endpoint
    sets `reauthenticate`: it begins an IKE SA that is to take the place of another. `lanes` is how
    many workers the userspace datapath has, over which Child SAs are spread by their SPIs; `cpus`
    how many CPUs the kernel has.
    `signatures` are those that work on this host; the `wall_clock` dates certificates, whose
    `inquiries` tell whether they are revoked. `signings` are what tokens have been asked for.
    """

    def __init__(
        self,
        random: Callable[[int], bytes],
        natt_port: int = IKE_NATT_PORT,
        lanes: int = 1,
        cpus: int = 1,
    ) -> None:
        self.random = random
        self.lanes = lanes
        self.cpus = cpus
        self.natt_port = natt_port
        self.tunnels: dict[str, Tunnel] = {}
        self.ike_sas: dict[bytes, IkeSa] = {}
        self.authentications = 0
        self.touched: set[IkeSa] = set()
        self.attended: dict[IkeSa, float | None] = {}
        self.changed: set[bytes] = set()
        self.counted: set[bytes] = set()
        self.changed_children: set[ChildSa] = set()
        self.leftovers: dict[SaId, AddSa] = {}
        self.handling: IkeSa | None = None
        self.children: dict[int, ChildSa] = {}
        self.holders: dict[SaId, ChildSa] = {}
        self.policies = PolicyBook()
        self.trapped: dict[str, Path] = {}
        self.trapped_children: dict[int, tuple[str, str]] = {}
        self.demands: dict[str, dict[str, Scope]] = {}
        self.crash_tokens: TokenMaker | None = None
        self.fragments = FragmentStore()
        self.ticket_keys = TicketKeys(random)
        self.signatures = SignaturePolicy()
        self.wall_clock: WallClock = stopped_clock
        self.inquiries = Inquiries(self)
        self.lookups = Lookups(self)
        self.signings = Signings(self)
        self.tickets: dict[str, HeldTicket] = {}
        self.redirects: dict[str, deque[float]] = {}
        self.reauthenticate: Callable[[IkeSa, float], None]
        self._queue: deque[Output | Deferred] = deque()
        self._questions: list[tuple[str, SaId]] = []
        self._conclusions: list[Deferred] = []
        self._index: TunnelIndex | None = None
        self._of_tunnel: dict[str, dict[bytes, IkeSa]] = {}
        self._of_peer: dict[Identity | None, dict[bytes, IkeSa]] = {}
        self._of_policy: dict[int, dict[int, ChildSa]] = {}
        self._lane_load: Counter[int] = Counter()

    def emit(self, output: Output) -> None:
        self._queue.append(output)

    def defer(self, sa: IkeSa, step: Callable[[float], None], now: float) -> None:
        """Run `step` when every output before it has been taken, and so has succeeded or failed."""
        self._queue.append(Deferred(sa, step, now))

    def put_back(self, output: Output) -> None:
        """It is the next again: another must come before it."""
        self._queue.appendleft(output)

    def ask_usage(
        self, sa: IkeSa, asked: Iterable[SaId], then: Callable[[float], None], now: float
    ) -> None:
        """Have the datapath asked, and run `then` when its answers are in.

        It is asked when there is nothing else left to do, about all at once: a question costs a
        datapath more than an answer.
        """
        self._questions += [(sa.tunnel_name, sa_id) for sa_id in asked]
        self._conclusions.append(Deferred(sa, then, now))

    def next_item(self) -> Output | Deferred | None:
        if not self._queue and self._conclusions:
            self._queue_questions()
        return self._queue.popleft() if self._queue else None

    def _queue_questions(self) -> None:
        if self._questions:
            self._queue.append(AskUsage(sas=tuple(self._questions)))
        self._queue.extend(self._conclusions)
        self._questions.clear()
        self._conclusions.clear()

    def next_additions(self, owner: int) -> list[AddSa | AddPolicy]:
        """What a Child SA asks for before there is anything else to do."""
        found: list[AddSa | AddPolicy] = []
        while self._queue:
            item = self._queue[0]
            if not isinstance(item, AddSa | AddPolicy) or item.owner != owner:
                break
            found.append(item)
            self._queue.popleft()
        return found

    def withdraw_additions(self, owner: int) -> list[AddSa | AddPolicy]:
        """Take back what a Child SA has asked for and nobody has done yet."""
        withdrawn: list[AddSa | AddPolicy] = []
        kept: deque[Output | Deferred] = deque()
        for item in self._queue:
            if isinstance(item, AddSa | AddPolicy) and item.owner == owner:
                withdrawn.append(item)
            else:
                kept.append(item)
        self._queue = kept
        return withdrawn

    @property
    def tunnel_index(self) -> TunnelIndex:
        """The tunnels by the addresses of their peers."""
        if self._index is None:
            self._index = TunnelIndex(self.tunnels.values())
        return self._index

    def tunnels_changed(self) -> None:
        """Whoever changes `tunnels` or one of them says so."""
        self._index = None

    def ike_sas_of(self, tunnel: str) -> tuple[IkeSa, ...]:
        """Every IKE SA of a tunnel, the oldest first, those that are ending included."""
        return tuple(self._of_tunnel.get(tunnel, {}).values())

    def ike_sas_with(self, peer: Identity | None) -> tuple[IkeSa, ...]:
        """Every IKE SA whose tunnel is with this identity, or with any."""
        known = (self._of_peer.get(identity, {}) for identity in {peer, None})
        return tuple(sa for found in known for sa in found.values())

    def file(self, sa: IkeSa, tunnel: TunnelPolicy) -> None:
        """It is known which tunnel an IKE SA belongs to."""
        if sa.tunnel_name != tunnel.name:
            self.unfile(sa)
        self._of_tunnel.setdefault(tunnel.name, {})[sa.our_spi] = sa
        self._of_peer.setdefault(_peer_of(tunnel), {})[sa.our_spi] = sa

    def forget(self, sa: IkeSa) -> None:
        """An IKE SA that is deleted, and need not repeat itself any more."""
        self.ike_sas.pop(sa.our_spi, None)
        self.changed.add(sa.our_spi)
        self.unfile(sa)

    def unfile(self, sa: IkeSa) -> None:
        """It is not to be found by its tunnel or peer any more."""
        if sa.tunnel is not None:
            _take_out(self._of_tunnel, sa.tunnel.name, sa.our_spi)
            _take_out(self._of_peer, _peer_of(sa.tunnel), sa.our_spi)

    def add_child(self, child: ChildSa) -> None:
        self.children[child.spi_in] = child
        self._of_policy.setdefault(child.policy.reqid, {})[child.spi_in] = child
        if child.tunnel.datapath is DatapathChoice.USERSPACE:
            self._lane_load[lane_of(child.spi_in, self.lanes)] += 1

    def forget_child(self, child: ChildSa) -> None:
        is_known = self.children.pop(child.spi_in, None) is not None
        if is_known and child.tunnel.datapath is DatapathChoice.USERSPACE:
            self._lane_load[lane_of(child.spi_in, self.lanes)] -= 1
        self.forget_names(child)
        _take_out(self._of_policy, child.policy.reqid, child.spi_in)

    def forget_names(self, child: ChildSa) -> None:
        for sa_id in child.ids:
            if self.holders.get(sa_id) is child:
                del self.holders[sa_id]

    def leave_nothing_over(self, child: ChildSa) -> None:
        """What became of a Child SA is known: what it does not use of `leftovers` goes."""
        mine = [left for left in self.leftovers.values() if left.owner == child.spi_in]
        for left in mine:
            del self.leftovers[left.entry.id]
            self.emit(
                RemoveSa(owner=left.owner, tunnel=left.tunnel, child=left.child, sa=left.entry.id)
            )

    def kin_of(self, child: ChildSa) -> tuple[ChildSa, ...]:
        """The other Child SAs of its policy."""
        found = self._of_policy.get(child.policy.reqid, {}).values()
        return tuple(other for other in found if other is not child)

    def new_ike_spi(self) -> bytes:
        while True:
            spi = self.random(IKE_SPI_SIZE)
            if spi not in self.ike_sas and any(spi):
                return spi

    def new_reqid(self) -> int:
        """One of ours that no policy has, nor any Child SA."""
        taken = {c.reqid for t in self.tunnels.values() for c in t.policy.children}
        taken |= {child.reqid for child in self.children.values()}
        return next(reqid for reqid in reversed(OUR_REQIDS) if reqid not in taken)

    def lanes_of(self, tunnel: TunnelPolicy, policy: ChildPolicy) -> int:
        """Over how many lanes the Child SAs of a child are spread.

        Of the kernel's the first is of no CPU, for packets of those without one (RFC 9611); where
        there is but one CPU it is enough.
        """
        if tunnel.datapath is DatapathChoice.USERSPACE:
            return self.lanes
        is_spread = policy.per_resource and self.cpus > 1
        return min(1 + self.cpus, MAX_RESOURCES) if is_spread else 1

    def new_child_spi(
        self,
        tunnel: TunnelPolicy,
        policy: ChildPolicy,
        *,
        replaces: ChildSa | None = None,
        beside: Iterable[ChildSa] = (),
    ) -> int:
        """A free SPI from the half of the numbers that belongs to the tunnel's datapath, and from
        the lane that its Child SA is to have, not one of those `beside` it.

        Where packets may be compressed, the index that follows from it is free, too: these have but
        16 bits, and a kernel does not take one twice.
        """
        others = self.children.values() if policy.compresses else ()
        taken = {cpi_of(child.spi_in) for child in others if child.policy.compresses}
        lanes = self.lanes_of(tunnel, policy)
        lane = self._choose_lane(tunnel, lanes, replaces, beside) if lanes > 1 else 0
        while True:
            spi = int.from_bytes(self.random(4), "big")
            if tunnel.datapath is DatapathChoice.USERSPACE:
                spi |= USERSPACE_SPI_BIT
            else:
                spi &= ~USERSPACE_SPI_BIT
            if lane_of(spi, lanes) != lane:
                continue
            is_free = spi not in self.children and not (taken and cpi_of(spi) in taken)
            if spi >= FIRST_CHILD_SPI and is_free:
                return spi

    def _choose_lane(
        self,
        tunnel: TunnelPolicy,
        lanes: int,
        replaces: ChildSa | None,
        beside: Iterable[ChildSa],
    ) -> int:
        """A rekey changes nothing, and packets of one peer may come in one piece: all of a tunnel
        with one peer have one lane in user space, unless each lane is to have its own. Else it is
        the lane with the fewest Child SAs."""
        is_in_userspace = tunnel.datapath is DatapathChoice.USERSPACE
        of_tunnel = (
            other
            for policy in tunnel.children
            if tunnel.peers and is_in_userspace
            for other in self._of_policy.get(policy.reqid, {}).values()
        )
        taken = Counter(lane_of(other.spi_in, lanes) for other in beside)
        kin = replaces or (None if taken else next(of_tunnel, None))
        if kin is not None:
            return lane_of(kin.spi_in, lanes)
        load = self._lane_load if is_in_userspace else Counter[int]()
        return min(range(lanes), key=lambda lane: (taken[lane], load[lane]))


def _peer_of(tunnel: TunnelPolicy) -> Identity | None:
    """Whom a tunnel is with; None if it may be several."""
    peer = tunnel.remote_id
    return None if peer is None or peer.is_pattern else peer


def _take_out(index: dict[K, dict[S, V]], key: K, spi: S) -> None:
    """Strike an SA from an index, and its key with the last."""
    found = index.get(key, {})
    found.pop(spi, None)
    if not found:
        index.pop(key, None)
