"""Keeps out what comes in clear and should have been protected (RFC 4301 section 5.2).

A packet that does not come out of our device is judged by the IN and FORWARD policies before the
host takes or forwards it: the first that matches must say BYPASS. A kernel with ESP does this
itself; here it is a table of our own in nf_tables, left standing when the worker dies. Policies
of one shape (priority, prefix lengths, which of protocol and ports matter) share a rule: it cuts
the packet's fields to that shape and looks them up in a map, so that one more policy is one more
element, whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TypeAlias

from xfrmpy.datapath.interface import DatapathError, Realm
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.datapath.userspace import nftables
from xfrmpy.datapath.userspace.nftables import Field, NfTables, Request
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.datapath.watch import Source
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IKE_PORT, IpNetwork
from xfrmpy.ipsec.selectors import ANY_PROTOCOL, ICMP_PROTOCOLS, Selector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry

_UDP, _ICMPV6 = 17, 58
_NFPROTO = {4: 2, 6: 10}
_ADDRESS_OFFSETS = {4: (12, 16), 6: (8, 24)}
_ADDRESS_TYPES = {4: 7, 6: 8}  # nft's numbers of its datatypes
_PROTOCOL_TYPE, _PORT_TYPE = 12, 13
_ICMP_TYPES = {4: (14, 32), 6: (29, 33)}  # of a type, and a code

_Key: TypeAlias = tuple[PolicyDirection, Selector]
_Claims: TypeAlias = dict[_Key, int]
"""The policies that speak of one key of one shape, and their verdicts: IN and FORWARD mostly."""


class Guard:
    """The table of the network namespace of the thread that makes this. Raises `DatapathError`."""

    def __init__(self) -> None:
        self._nf_tables = NfTables()
        self._entries: dict[_Key, SpdEntry] = {}
        self._shapes: dict[_Shape, dict[bytes, _Claims]] = {}
        self._is_known = False

    def enforce(self, entries: Iterable[SpdEntry]) -> None:
        """Judge by these IN and FORWARD policies and no others; by none, let everything in."""
        self._entries.clear()
        self._shapes.clear()
        for entry in entries:
            self._enter(_key(entry), entry)
        self._is_known = False
        self.renew()

    def add(self, entry: SpdEntry) -> None:
        """Judge by this one too, in place of any of the same direction and selector."""
        self._change(_key(entry), entry)

    def remove(self, entry: SpdEntry) -> None:
        self._change(_key(entry), None)

    def watch(self) -> tuple[Source, int]:
        """What tells of the hands of others in our table, and the port by which we change it."""
        groups = (nftables.CHANGES_GROUP,)
        source = Source(family=nftables.NFTABLES, groups=groups, concerns=self._hear)
        return source, self._nf_tables.port

    def _hear(self, message: Message | None) -> Realm:
        if message is not None and not nftables.is_of_our_table(message):
            return Realm.NOTHING
        self._is_known = False
        return Realm.WAYS

    @property
    def is_doubtful(self) -> bool:
        """Whether what is enforced may not be what should be."""
        return bool(self._shapes) and not self._is_known

    def renew(self) -> None:
        """Whatever is there, make it anew."""
        self._nf_tables.send(self._everything())
        self._is_known = True

    def close(self) -> None:
        """What is enforced stays enforced."""
        self._nf_tables.close()

    def _change(self, key: _Key, entry: SpdEntry | None) -> None:
        old = self._entries.get(key)
        places = {_place(each) for each in (old, entry) if each is not None}
        shapes = self._shapes.keys() & {shape for shape, _ in places}
        had_table = bool(self._shapes)
        before = {place: self._verdict(*place) for place in places}
        self._enter(key, entry)
        after = {place: self._verdict(*place) for place in places}
        try:
            if not self._is_known or not had_table:
                self._nf_tables.send(self._everything())
            elif before != after:
                self._send_difference(before, after, shapes)
        except DatapathError:
            self._enter(key, old)
            raise
        self._is_known = True

    def _enter(self, key: _Key, entry: SpdEntry | None) -> None:
        """Keep an entry in mind in place of what is there under its key, if anything."""
        if (old := self._entries.pop(key, None)) is not None:
            shape, value = _place(old)
            del self._shapes[shape][value][key]
            if not self._shapes[shape][value]:
                del self._shapes[shape][value]
            if not self._shapes[shape]:
                del self._shapes[shape]
        if entry is not None:
            self._entries[key] = entry
            shape, value = _place(entry)
            self._shapes.setdefault(shape, {}).setdefault(value, {})[key] = _verdict_of(entry)

    def _verdict(self, shape: _Shape, value: bytes) -> int | None:
        claims = self._shapes.get(shape, {}).get(value)
        return None if claims is None else _strictest(claims)

    # What the kernel is told.

    def _send_difference(self, before: _Verdicts, after: _Verdicts, shapes: set[_Shape]) -> None:
        """One that fails, because others have had their hands in our table, makes it anew."""
        try:
            self._nf_tables.send(self._difference(before, after, shapes))
        except DatapathError:
            self._nf_tables.send(self._everything())

    def _everything(self) -> list[Request]:
        requests = nftables.delete_table()
        if not self._shapes:
            return requests
        requests += nftables.add_table()
        requests += [nftables.add_map(s.name, s.fields()) for s in self._shapes]
        requests += self._rules()
        requests += [
            nftables.add_element(shape.name, value, _strictest(claims))
            for shape, values in self._shapes.items()
            for value, claims in values.items()
        ]
        return requests

    def _difference(
        self, before: _Verdicts, after: _Verdicts, shapes: set[_Shape]
    ) -> list[Request]:
        """What leads from the verdicts `before` to those `after`; there were these `shapes`."""
        if not self._shapes:
            return nftables.delete_table()
        changed = [place for place in before if before[place] != after[place]]
        requests = [
            nftables.delete_element(shape.name, value)
            for shape, value in changed
            if before[shape, value] is not None
        ]
        left = self._shapes.keys() & {shape for shape, _ in before}
        if left != shapes:
            requests.append(nftables.delete_rules())
            requests += [nftables.delete_map(s.name) for s in shapes - left]
            requests += [nftables.add_map(s.name, s.fields()) for s in left - shapes]
            requests += self._rules()
        requests += [
            nftables.add_element(shape.name, value, verdict)
            for shape, value in changed
            if (verdict := after[shape, value]) is not None
        ]
        return requests

    def _rules(self) -> list[Request]:
        in_order = sorted(self._shapes, key=lambda shape: shape.priority)
        rules = [*_EXEMPT, *(shape.rule() for shape in in_order)]
        return [nftables.add_rule(rule) for rule in rules]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What the policies of one map have in common. From `own_side` nothing is judged."""

    priority: int
    version: int
    source_length: int
    destination_length: int
    own_side: IpNetwork | None
    has_protocol: bool
    is_icmp: bool
    source_port_mask: int
    destination_port_mask: int

    @property
    def name(self) -> str:
        parts = [
            f"p{self.priority}",
            f"ip{self.version}",
            f"from-{self.source_length}",
            f"to-{self.destination_length}",
        ]
        if self.own_side is not None:
            parts.append(f"but-{self.own_side.network_address.packed.hex()}")
        if self.has_protocol:
            parts.append("icmp" if self.is_icmp else "protocol")
        which = ("type", "code") if self.is_icmp else ("sport", "dport")
        parts += [f"{w}-{bits:x}" for w, bits in zip(which, self._port_masks, strict=True) if bits]
        return "-".join(parts)

    def rule(self) -> bytes:
        """The expressions of its rule."""
        parts = [
            nftables.load_meta(nftables.META_NFPROTO),
            nftables.compare(bytes([_NFPROTO[self.version]])),
        ]
        if self.own_side is not None:
            parts += self._is_not_from(self.own_side)
        parts += [field.load for field in self.fields()]
        return b"".join([*parts, nftables.look_up(self.name)])

    def fields(self) -> list[Field]:
        """Those of its map's key, in the order of `_value`."""
        fields: list[Field] = []
        register = nftables.FIRST_REGISTER
        for size, datatype, base, offset, cut in self._wanted():
            if base is None:
                octets = nftables.load_meta(nftables.META_L4PROTO, register)
            else:
                octets = nftables.load(base, offset, size, register)
            if not set(cut) <= {0xFF}:
                octets += nftables.mask(cut, register)
            fields.append(Field(size, datatype, octets))
            register += -(-size // 4)
        return fields

    def _wanted(self) -> Iterator[tuple[int, int, int | None, int, bytes]]:
        """Size, datatype, header, offset and mask of each field; the protocol is in no header."""
        lengths = (self.source_length, self.destination_length)
        for offset, length in zip(_ADDRESS_OFFSETS[self.version], lengths, strict=True):
            cut = _netmask(self.version, length)
            yield len(cut), _ADDRESS_TYPES[self.version], nftables.NETWORK_HEADER, offset, cut
        if self.has_protocol:
            yield 1, _PROTOCOL_TYPE, None, 0, b"\xff"
        size = _port_size(self.is_icmp)
        datatypes = _ICMP_TYPES[self.version] if self.is_icmp else (_PORT_TYPE, _PORT_TYPE)
        for position, bits in enumerate(self._port_masks):
            if bits:
                where = (nftables.TRANSPORT_HEADER, position * size)
                yield size, datatypes[position], *where, bits.to_bytes(size, "big")

    @property
    def _port_masks(self) -> tuple[int, int]:
        return self.source_port_mask, self.destination_port_mask

    def _is_not_from(self, network: IpNetwork) -> Iterator[bytes]:
        cut = network.netmask.packed
        yield nftables.load(nftables.NETWORK_HEADER, _ADDRESS_OFFSETS[self.version][0], len(cut))
        yield nftables.mask(cut)
        yield nftables.compare(network.network_address.packed, nftables.UNEQUAL)


_Place: TypeAlias = tuple[_Shape, bytes]
_Verdicts: TypeAlias = dict[_Place, int | None]


def _key(entry: SpdEntry) -> _Key:
    return entry.direction, entry.selector


def _place(entry: SpdEntry) -> _Place:
    selector = entry.selector
    source, destination = selector.source, selector.destination
    shape = _Shape(
        priority=entry.priority,
        version=source.version,
        source_length=source.prefixlen,
        destination_length=destination.prefixlen,
        # As with our routes: what comes from our own side is not the peer's to protect.
        own_side=destination if _contains(source, destination) else None,
        has_protocol=selector.protocol != ANY_PROTOCOL,
        is_icmp=selector.protocol in ICMP_PROTOCOLS,
        source_port_mask=selector.source_port.mask,
        destination_port_mask=selector.destination_port.mask,
    )
    return shape, nftables.padded_key(_values(selector))


def _values(selector: Selector) -> Iterator[bytes]:
    yield selector.source.network_address.packed
    yield selector.destination.network_address.packed
    if selector.protocol != ANY_PROTOCOL:
        yield bytes([selector.protocol])
    for port in (selector.source_port, selector.destination_port):
        if port.mask:
            yield port.value.to_bytes(_port_size(selector.protocol in ICMP_PROTOCOLS), "big")


def _port_size(is_icmp: bool) -> int:
    """Octets of a port, or of the ICMP type and the code that stand in the place of ports."""
    return 1 if is_icmp else 2


def _verdict_of(entry: SpdEntry) -> int:
    return nftables.ACCEPT if entry.action is Action.BYPASS else nftables.DROP


def _strictest(claims: _Claims) -> int:
    return nftables.DROP if nftables.DROP in claims.values() else nftables.ACCEPT


def _netmask(version: int, length: int) -> bytes:
    return ip_network(("0.0.0.0" if version == 4 else "::", length)).netmask.packed


def _contains(outer: IpNetwork, inner: IpNetwork) -> bool:
    return outer != inner and outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _from_device(name: str) -> bytes:
    device = name.encode().ljust(16, b"\0")
    return nftables.load_meta(nftables.META_IIFNAME) + nftables.compare(device)


def _has_protocol(number: int) -> bytes:
    return nftables.load_meta(nftables.META_L4PROTO) + nftables.compare(bytes([number]))


def _to_udp_port(port: int) -> bytes:
    to_port = nftables.load(nftables.TRANSPORT_HEADER, 2, 2)
    return _has_protocol(_UDP) + to_port + nftables.compare(port.to_bytes(2, "big"))


def _neighbour_discovery() -> bytes:
    first, last = (bytes([kind]) for kind in (133, 137))
    is_between = nftables.compare(first, nftables.AT_LEAST) + nftables.compare(
        last, nftables.AT_MOST
    )
    return _has_protocol(_ICMPV6) + nftables.load(nftables.TRANSPORT_HEADER, 0, 1) + is_between


_EXEMPT = tuple(
    matches + nftables.conclude(nftables.ACCEPT)
    for matches in (
        _from_device(DEVICE),
        _from_device("lo"),
        # IKE and ESP themselves, where a policy covers the gateways (RFC 7296 section 2.23).
        _to_udp_port(IKE_PORT),
        _to_udp_port(IKE_NATT_PORT),
        # Hop limit 255 keeps it on the link (RFC 4861 section 6.1); without it nothing moves.
        _neighbour_discovery(),
    )
)
"""What is let in whatever the policies say."""
