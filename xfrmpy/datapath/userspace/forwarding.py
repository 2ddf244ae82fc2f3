"""The worker's SAD and SPD, and the decision about each packet (RFC 4301 section 5).

Octets in, octets out: no sockets and no clock, so that every rule can be tried by itself. Outbound,
a packet meets the SPD and then the newest SA of the policy's reqid; inbound, the SA by its SPI, and
then the policy that must have asked for it.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum
from socket import IPPROTO_AH, IPPROTO_ESP, IPPROTO_UDP
from typing import TypeAlias

from xfrmpy.datapath.interface import Acquire, Event
from xfrmpy.datapath.userspace.holding import Holding
from xfrmpy.datapath.userspace.ledger import Ledger
from xfrmpy.datapath.userspace.policies import Policies
from xfrmpy.datapath.userspace.requests import MAX_EVENTS
from xfrmpy.datapath.userspace.sad import Held, Outbound, Sad, ah_key
from xfrmpy.esp.ah import OutboundAh
from xfrmpy.esp.compression import IPCOMP, BadCompression, compress, decompress
from xfrmpy.esp.ip import InnerHeader, NotIp, flow_of, parse_inner_header
from xfrmpy.esp.outer import Congested, inner_after, outer_header
from xfrmpy.esp.packet import IPV4_IN_ESP, IPV6_IN_ESP, Form, OutboundSa, Run
from xfrmpy.esp.reassembly import Reassembly, fragment_of
from xfrmpy.esp.sa import Dropped, EspDrop
from xfrmpy.esp.transport import Fields, NotCarried, payload_of, with_checksum, with_header
from xfrmpy.ipsec.addresses import ADDRESS_KINDS, SocketAddress
from xfrmpy.ipsec.drift import Dump
from xfrmpy.ipsec.sad import Mode, SadEntry
from xfrmpy.ipsec.selectors import ICMP_PROTOCOLS, MAX_PORT, TrafficSelector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry
from xfrmpy.registry import ProtocolId

ACQUIRE_SECONDS = 5.0
"""How often a policy without an SA asks for one; its packets meanwhile are held, as many as may."""

MAX_PATHS = 4096
"""Flows whose way is remembered. To find it anew takes microseconds for each policy."""

NEXT_HEADER = {4: IPV4_IN_ESP, 6: IPV6_IN_ESP}
_NO_FIELDS = Fields()

# To find a member in its class takes longer than to compare it.
_TUNNEL, _TRANSPORT, _AH = Mode.TUNNEL, Mode.TRANSPORT, ProtocolId.AH


class Refusal(StrEnum):
    """Why a packet is dropped, beyond what `EspDrop` says of the packet itself."""

    NOT_IP = "not-ip"
    NO_POLICY = "no-policy"
    NO_SA = "no-sa"
    UNKNOWN_SPI = "unknown-spi"
    OUTSIDE_SELECTORS = "outside-selectors"
    NOT_FOR_TRANSPORT = "not-for-transport"
    CONGESTED = "congested"
    ROUTING_LOOP = "routing-loop"
    BAD_COMPRESSION = "bad-compression"
    BAD_OFFLOAD = "bad-offload"


class Refused(Exception):
    """The packet goes no further; `reason` is a counter's name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def refused_by_system(what: str, error: OSError) -> Refused:
    """Such as `udp-send-enobufs`: what the system did not take, and why."""
    return Refused(f"{what}-{errno.errorcode.get(error.errno or 0, 'error').lower()}")


class Waits(Exception):
    """The packet goes no further now: it waits for an SA (`Forwarder.take_waiting`), or is a
    fragment and waits for the rest of its datagram."""


class Elsewhere(Exception):
    """The SA that is to carry these `packets`, which are one datagram, is in another worker."""

    def __init__(self, worker: int, packets: list[bytes]) -> None:
        super().__init__()
        self.worker = worker
        self.packets = packets


class InClear(Exception):
    """No SA is to carry these `packets`, which are one datagram: they go as they are."""

    def __init__(self, packets: list[bytes]) -> None:
        super().__init__()
        self.packets = packets


_Path: TypeAlias = tuple[Outbound, Held]

Way: TypeAlias = tuple[OutboundSa, Held]
"""The SA by which several packets may leave at once."""


class Forwarder:
    """See the module. `events` collects what the daemon should know.

    How far each SA has got is in the `ledger` (`Sad`).
    """

    def __init__(self, random: Callable[[int], bytes], ledger: Ledger | None = None) -> None:
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.refused: Counter[str] = Counter()
        self._paths: dict[tuple[bytes, int], _Path] = {}  # by flow and interface, until a change
        self.sad = Sad(random, ledger or Ledger(), self.events, self._paths.clear)
        self._let_in: set[tuple[bytes, int, int]] = set()  # with the reqid, until one of policies
        self._policies = Policies()
        self._reassembly = Reassembly()
        self._room: dict[int, int] = {}
        self._acquired_at: dict[int, float] = {}
        self._holding = Holding()
        self._led_by: dict[int, int] = {}  # by reqid, the interface of what is held
        self._elsewhere: dict[int, int] = {}  # by reqid, the worker that has its outbound SA

    # Packets.

    def protect(self, packet: bytes, now: float, if_id: int = 0) -> tuple[bytes, SadEntry]:
        """An inner packet as ESP or AH, and the SA that carries it. AH in IPv4 has its IP header.

        `if_id` is that of the interface into which it was led, 0 for the one that has none. Raises
        `Refused` and `Waits`, `Elsewhere`, and `InClear` for packets to the peer of transport mode.
        """
        flow = flow_of(packet)
        path = self._paths.get((flow, if_id)) if flow else None
        if path is None:
            packet, path = self._find_path(packet, flow, now, if_id)
        sa, held = path
        try:
            if held.is_plain and isinstance(sa, OutboundSa):
                sealed = sa.seal(packet, NEXT_HEADER[packet[0] >> 4])
            else:
                sealed = _seal(sa, packet, self._hiding_in(sa.entry))
        except Dropped as dropped:
            self.sad.check_limits(held, now)
            raise Refused(dropped.reason) from None
        self.sad.note_use(held, now)
        return sealed, sa.entry

    def _find_path(
        self, packet: bytes, flow: bytes | None, now: float, if_id: int
    ) -> tuple[bytes, _Path]:
        """The packet, as it is to be sealed, and with what. Raises as `protect`."""
        header = parse(packet)
        pieces = [packet]
        if not if_id and self._policies.is_host(header):
            flow = None
            packet, pieces = self._gather(packet)
            header = parse(packet)
        policy = self._policies.find((PolicyDirection.OUT, if_id), header)
        if policy is None or policy.template is None:
            if not if_id:
                self._let_pass(policy, header, pieces)
            raise Refused(Refusal.NO_POLICY)
        if policy.template.reqid in self._elsewhere:
            raise Elsewhere(self._elsewhere[policy.template.reqid], pieces)
        candidates = self.sad.outbound.get(policy.template.reqid)
        if not candidates:
            self._acquire(policy.template.reqid, header, now)
            if self._holding.hold(policy.template.reqid, packet, now):
                self._led_by[policy.template.reqid] = if_id
                raise Waits
            raise Refused(Refusal.NO_SA)
        if if_id and _is_carried_by(header, candidates[-1][0].entry):
            raise Refused(Refusal.ROUTING_LOOP)
        if flow is not None:
            if len(self._paths) >= MAX_PATHS:
                self._paths.clear()
            self._paths[flow, if_id] = candidates[-1]
        return packet[: header.length], candidates[-1]

    def worker_of(self, packet: bytes, if_id: int) -> int | None:
        """Which other worker is to carry a packet that came by the device of an `if_id`."""
        if not self._elsewhere:
            return None
        try:
            policy = self._policies.find((PolicyDirection.OUT, if_id), parse(packet))
        except Refused:
            return None
        if policy is None or policy.template is None:
            return None
        return self._elsewhere.get(policy.template.reqid)

    def lead(self, reqid: int, worker: int | None) -> None:
        """Packets of a reqid are another worker's from now on, or our own again (None)."""
        self._paths.clear()
        if worker is None:
            self._elsewhere.pop(reqid, None)
        else:
            self._elsewhere[reqid] = worker

    def way_of(self, head: bytes, if_id: int = 0) -> Way | None:
        """By which SA packets of a flow leave that are sealed together, if its way is known and
        they may be. `head` has their addresses, protocol and ports."""
        flow = flow_of(head, is_whole=False)
        path = self._paths.get((flow, if_id)) if flow else None
        if path is None or not path[1].takes_runs:
            return None
        sa, held = path
        return (sa, held) if isinstance(sa, OutboundSa) and sa.form is not None else None

    def form_of(self, head: bytes, if_id: int = 0) -> Form | None:
        """How the packets of `way_of` lie."""
        way = self.way_of(head, if_id)
        return None if way is None else way[0].form

    def take_run(self, way: Way, packets: int, octets: int, now: float) -> Run | None:
        """Numbers of an SA for as many inner packets, of so many octets in all. None if `protect`
        must look at each, for a limit is near."""
        sa, held = way
        run = None if held.is_due(now) else sa.take_run(packets, octets)
        if run is not None:
            self.sad.note_use(held, now)
        return run

    def run_of(
        self, head: bytes, packets: int, octets: int, now: float, if_id: int = 0
    ) -> tuple[Run, SadEntry] | None:
        """The same of the way of a flow, and its SA. None if `protect` must look at each: that
        finds where they go, after any change of SAs and policies."""
        way = self.way_of(head, if_id)
        run = None if way is None else self.take_run(way, packets, octets, now)
        return None if way is None or run is None else (run, way[0].entry)

    def unprotect(
        self,
        packet: bytes,
        source: SocketAddress | None,
        now: float,
        *,
        protocol: ProtocolId = ProtocolId.ESP,
        fields: Fields = _NO_FIELDS,
        header: bytes = b"",
    ) -> tuple[bytes, SadEntry]:
        """The inner packet of a protected one, from its SPI on, and its SA. Raises `Refused`.

        `source` is where it came from in UDP; None if it came without. `fields` are those of its IP
        header, and `header` is that, for AH. RFC 7296 section 2.23: "all devices MUST be able to
        receive and process both UDP-encapsulated ESP and non-UDP-encapsulated ESP packets at any
        time".
        """
        is_ah = protocol is _AH
        found = self.sad.inbound.get(ah_key(packet[4:8]) if is_ah else packet[:4])
        if found is None:
            raise Refused(Refusal.UNKNOWN_SPI)
        sa, held = found
        try:
            next_header, inner, is_newest = sa.open(packet, header)
        except Dropped as dropped:
            # Only what is authentic is use: a forger must not make a dead peer look alive.
            if dropped.reason is EspDrop.DUMMY:
                self.sad.note_use(held, now)
            raise Refused(dropped.reason) from None
        self.sad.note_use(held, now)
        entry = sa.entry
        if next_header == IPCOMP:
            next_header, inner = _decompressed(entry, inner)
        if entry.mode is _TUNNEL:
            if not inner or next_header != NEXT_HEADER.get(inner[0] >> 4):
                raise Refused(Refusal.NOT_IP)
        elif entry.mode is _TRANSPORT:
            inner = _as_in_clear(entry, next_header, inner, fields)
        flow = flow_of(inner)
        if flow is None or (flow, entry.if_id, entry.reqid) not in self._let_in:
            inner = self.let_in(inner, entry)
        is_usual = source is held.own_source and held.told_source is None
        if is_newest and source is not None and not is_usual:
            self.sad.note_source(held, source, now)
        if fields.traffic_class or entry.outer.restores_dscp:
            inner = with_outer(inner, entry, fields)
        return inner, entry

    def let_in(self, packet: bytes, sa: SadEntry) -> bytes:
        """A packet that has come by an SA, without what is behind it. Raises `Refused`."""
        flow = flow_of(packet)
        if flow is not None and (flow, sa.if_id, sa.reqid) in self._let_in:
            return packet
        header = parse(packet)
        if not self._policies.allow(sa, header):
            raise Refused(Refusal.OUTSIDE_SELECTORS)
        if flow is not None:
            if len(self._let_in) >= MAX_PATHS:
                self._let_in.clear()
            self._let_in.add((flow, sa.if_id, sa.reqid))
        return packet[: header.length]

    def set_room(self, reqid: int, octets: int) -> None:
        """How large an inner packet the path takes, for those that are padded."""
        self._room[reqid] = octets

    def _hiding_in(self, sa: SadEntry) -> int:
        return min(sa.tfc, self._room.get(sa.reqid, sa.tfc)) if sa.tfc else 0

    def _gather(self, packet: bytes) -> tuple[bytes, list[bytes]]:
        """A whole datagram and the packets that it came in. Raises `Waits`."""
        fragment = fragment_of(packet)
        if fragment is None:
            return packet, [packet]
        gathered = self._reassembly.add(packet, fragment)
        if gathered is None:
            raise Waits
        return gathered

    def _let_pass(self, policy: SpdEntry | None, header: InnerHeader, pieces: list[bytes]) -> None:
        """What routes led here though no SA is to carry it: the peer of transport mode has other
        traffic, too, as its selectors go by protocol and port and routes do not."""
        is_exempt = policy is None or policy.action is Action.BYPASS
        if is_exempt and self._policies.is_host(header):
            raise InClear(pieces)

    def _acquire(self, reqid: int, header: InnerHeader, now: float) -> None:
        if now < self._acquired_at.get(reqid, -ACQUIRE_SECONDS) + ACQUIRE_SECONDS:
            return
        self._acquired_at[reqid] = now
        self._ask_for(reqid, header)

    def _ask_for(self, reqid: int, header: InnerHeader) -> None:
        source = _selector_of(header, header.source, header.source_port)
        destination = _selector_of(header, header.destination, header.destination_port)
        self.events.append(Acquire(reqid=reqid, source=source, destination=destination))

    def take_waiting(self, now: float) -> list[tuple[bytes, int]]:
        """What has waited for an SA that is there by now, with its `if_id`; for the rest of it
        another is asked."""
        taken = self._holding.take(self._has_sa, now)
        served = {reqid for reqid, _ in taken}
        for reqid in served:  # By an SA with another one, perhaps, that has a part of its traffic.
            self._acquired_at.pop(reqid, None)
        for reqid, packet in self._holding.firsts():
            if reqid in served:
                self._ask_for(reqid, parse(packet))
        return [(packet, self._led_by[reqid]) for reqid, packet in taken]

    def _has_sa(self, reqid: int, packet: bytes) -> bool:
        table = PolicyDirection.OUT, self._led_by[reqid]
        policy = self._policies.find(table, parse(packet))
        if policy is None or policy.template is None:
            return True
        reqids = (self.sad.outbound, self._elsewhere)
        return any(policy.template.reqid in each for each in reqids)

    def expire(self, now: float) -> None:
        """What is past a limit by time: packets that wait, and SAs."""
        self._holding.expire(now)
        self.sad.expire(now)

    def remind(self) -> None:
        """Tell again of the SAs past a soft limit, and of packets that wait for one: whoever was
        told may have died of it since."""
        for reqid, packet in self._holding.firsts():
            self._ask_for(reqid, parse(packet))
        self.sad.remind()

    # SAD and SPD.

    def add_sa(self, entry: SadEntry, now: float) -> None:
        """As `Sad.add`; if packets of its reqid want for another one, that is asked for at once."""
        self.sad.add(entry, now)
        self._acquired_at.pop(entry.reqid, None)

    def add_policy(self, entry: SpdEntry) -> None:
        """In place of one of the same direction and selector."""
        self._forget_flows()
        self._policies.add(entry)

    def remove_policy(self, entry: SpdEntry) -> None:
        """That of the same place, if there is one."""
        self._forget_flows()
        self._policies.remove(entry)

    def _forget_flows(self) -> None:
        self._paths.clear()
        self._let_in.clear()

    def dump(self) -> Dump:
        return Dump(sad=self.sad.entries, spd=self._policies.entries)

    def remove_all(self) -> int:
        """Empty both databases; returns how many entries there were."""
        count = len(self.sad) + len(self._policies)
        self.sad.clear()
        self._policies.clear()
        self._acquired_at.clear()
        self._forget_flows()
        self._room.clear()
        self._holding.clear()
        self._led_by.clear()
        self._elsewhere.clear()
        return count


_IP_PROTOCOLS = {ProtocolId.ESP: IPPROTO_ESP, ProtocolId.AH: IPPROTO_AH}


def _is_carried_by(header: InnerHeader, sa: SadEntry) -> bool:
    """Whether a packet is what the SA has made: the route to the peer leads into its tunnel."""
    if (header.version, header.destination) != (sa.destination.version, int(sa.destination)):
        return False
    ports = sa.encapsulation
    if ports is None:
        return header.protocol == _IP_PROTOCOLS[sa.protocol]
    own = (ports.source_port, ports.destination_port)
    return header.protocol == IPPROTO_UDP and (header.source_port, header.destination_port) == own


def _seal(sa: Outbound, packet: bytes, hidden_in: int) -> bytes:
    """Raises `Refused` and `Dropped`."""
    version = packet[0] >> 4
    protocol, payload = NEXT_HEADER[version], packet
    if sa.entry.mode is _TRANSPORT:
        try:
            protocol, payload = payload_of(packet)
        except NotCarried:
            raise Refused(Refusal.NOT_FOR_TRANSPORT) from None
    if sa.entry.cpi is not None:
        protocol, payload = compress(protocol, payload, sa.entry.cpi)
    if isinstance(sa, OutboundAh):
        fields, has_df = outer_header(packet, sa.entry)
        return sa.seal(payload, protocol, fields or _NO_FIELDS, has_df=has_df)
    # RFC 4303 section 2.7: the receiver goes by the length that an inner IP packet has.
    is_packet = protocol == NEXT_HEADER[version] and sa.entry.mode is _TUNNEL
    return sa.seal(payload, protocol, hidden_in=hidden_in if is_packet else 0)


def check_version(packet: bytes, next_header: int) -> None:
    """Whether a packet out of tunnel mode is of the version announced. Raises `Refused`."""
    if not packet or next_header != NEXT_HEADER.get(packet[0] >> 4):
        raise Refused(Refusal.NOT_IP)


def _decompressed(sa: SadEntry, payload: bytes) -> tuple[int, bytes]:
    """RFC 3173 section 2.2: what did not get smaller comes as it was, and not here."""
    if sa.cpi is None:
        raise Refused(Refusal.BAD_COMPRESSION)
    try:
        return decompress(payload, sa.cpi)
    except BadCompression:
        raise Refused(Refusal.BAD_COMPRESSION) from None


def _as_in_clear(sa: SadEntry, protocol: int, payload: bytes, fields: Fields) -> bytes:
    """The packet of transport mode as its host is to have it, between the addresses of the SA."""
    ends = sa.source, sa.destination
    if sa.encapsulation is not None:  # A NAT may be on the way.
        payload = with_checksum(*ends, protocol, payload)
    return with_header(*ends, protocol, payload, fields)


def with_outer(inner: bytes, sa: SadEntry, fields: Fields) -> bytes:
    if sa.mode is _TRANSPORT:
        return inner
    try:
        return inner_after(inner, fields, sa.outer)
    except Congested:
        raise Refused(Refusal.CONGESTED) from None


def parse(packet: bytes) -> InnerHeader:
    try:
        return parse_inner_header(packet)
    except NotIp:
        raise Refused(Refusal.NOT_IP) from None


def _selector_of(header: InnerHeader, address: int, port: int | None) -> TrafficSelector:
    exact = ADDRESS_KINDS[header.version](address)
    if header.protocol in ICMP_PROTOCOLS:
        port = None
    return TrafficSelector(
        protocol=header.protocol,
        start_port=0 if port is None else port,
        end_port=MAX_PORT if port is None else port,
        start_address=exact,
        end_address=exact,
    )
