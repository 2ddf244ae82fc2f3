"""Routes that lead packets into tunnels, in a table and behind a rule of our own.

Decides how a remote subnet is reached without touching one route of the operator's: every route of
ours is in table `OUR_TABLE`, which `not fwmark OUR_MARK/OUR_BITS lookup OUR_TABLE` (priority
`RULE_PRIORITY`, one rule a family) puts before the main table while there is a route in it.
Whoever sends protected packets sets SO_MARK, or the SA's output mark, to `OUR_MARK`, so that they
never meet these routes and cannot loop into a tunnel. Nothing here knows of SAs or policies.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, closing
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.links import FAMILIES, Links
from xfrmpy.datapath.netlink.messages import (
    NUMBER,
    Message,
    Values,
    decode_number,
    encode_attributes,
    split_attributes,
)
from xfrmpy.datapath.netlink.route import (
    RTNETLINK,
    MessageType,
    Metric,
    Route,
    Rule,
)
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Reply, Request, Words
from xfrmpy.ipsec import marks
from xfrmpy.ipsec.addresses import IpAddress, IpNetwork
from xfrmpy.ipsec.drift import Difference, Ends, Finding

Attributes: TypeAlias = dict[int, bytes]

OUR_MARK, OUR_BITS = marks.OUR_MARK, marks.OUR_BITS
"""The SO_MARK of every socket that sends IKE or protected packets, and the bits that count."""
OUR_TABLE = 0x5846
RULE_PRIORITY = 220
"""strongSwan's; before the main table (32766), behind what operators tend to number below 100."""

_OUR_MARK, _OUR_TABLE = NUMBER.pack(OUR_MARK), NUMBER.pack(OUR_TABLE)
_EVERYTHING = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_ANY_SCOPE = 255  # RT_SCOPE_NOWHERE
_UNICAST, _THROW = 1, 9  # RTN_*
_ON_LINK = 4  # RTNH_F_ONLINK
_TO_TABLE, _INVERT = 1, 2  # FR_ACT_TO_TBL, FIB_RULE_INVERT


class RouteOwner(IntEnum):
    """Whose a route is: its protocol number, so that each datapath can clean up after itself."""

    KERNEL = 0x58
    USERSPACE = 0x59


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterPath:
    """The way to a peer: a device, a gateway unless the peer is on the link, and the path's MTU."""

    device: str
    gateway: IpAddress | None
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How packets for a destination are to be led; see `Routes.add`."""

    local: IpNetwork
    via: OuterPath | str
    mtu: int | None = None


@dataclass(slots=True)
class _Held:
    """How many times a destination was added, how packets for it were led last, and which
    exceptions stand beside it."""

    users: int = 0
    way: Way | None = None
    exceptions: frozenset[IpNetwork] = frozenset()


class Routes:
    """The routes of one datapath, in the network namespace of the thread that made it.

    Every method raises `DatapathError`.
    """

    def __init__(self, owner: RouteOwner) -> None:
        self._owner = owner
        self._held: dict[IpNetwork, _Held] = {}
        self._exceptions: Counter[IpNetwork] = Counter()
        self._ruled: set[int] = set()  # the IP versions whose rule is there
        with ExitStack() as stack:
            self._netlink = stack.enter_context(closing(NetlinkSocket(RTNETLINK)))
            self._links = Links()
            stack.pop_all()

    def add(
        self,
        destination: IpNetwork,
        *,
        local: IpNetwork,
        via: OuterPath | str,
        mtu: int | None = None,
    ) -> None:
        """Lead packets for `destination` to the device named, or the way that a peer is reached.

        An address of this host within `local` becomes the preferred source. If `destination`
        contains `local`, packets for `local` are excepted: they are for our own side. Added again
        for another policy, the newest way counts, and as many `remove` are needed.
        """
        (error,) = self.add_many([(destination, Way(local=local, via=via, mtu=mtu))])
        if error is not None:
            raise error

    def add_many(self, wanted: Sequence[tuple[IpNetwork, Way]]) -> list[DatapathError | None]:
        """`add` of many, which is cheaper: for each, why it could not be."""
        errors = self._add(wanted)
        for place, (destination, way) in enumerate(wanted):
            if errors[place] is None:
                errors[place] = self._hold(destination, way)
        return errors

    def _hold(self, destination: IpNetwork, way: Way) -> DatapathError | None:
        is_exception = self._is_exception(way.local, destination)
        try:
            if is_exception:
                self._add_exception(way.local)
        except DatapathError as error:
            return error
        self._claim(destination, way.local if is_exception else None).way = way
        return None

    def claim(self, destination: IpNetwork, *, local: IpNetwork) -> None:
        """Know of an `add` of an earlier process, whose route may be there."""
        self._claim(destination, local if self._is_exception(local, destination) else None)

    def _claim(self, destination: IpNetwork, exception: IpNetwork | None) -> _Held:
        held = self._held.setdefault(destination, _Held())
        held.users += 1
        if exception is not None:
            held.exceptions |= {exception}
            self._exceptions[exception] += 1
        return held

    def remove(self, destination: IpNetwork) -> None:
        """The inverse of one `add`; the route goes with the last. One that is gone is no error."""
        held = self._held.get(destination, _Held(users=1))
        held.users -= 1
        if held.users > 0:
            return
        self._held.pop(destination, None)
        self._exceptions.subtract(held.exceptions)
        self._delete(destination, *(e for e in held.exceptions if not self._exceptions[e]))
        self._remove_rule_if_idle(destination.version)

    def remove_all(self) -> int:
        """Remove every route of this owner's, whoever added it, and the rules; returns how many."""
        self._held.clear()
        self._exceptions.clear()
        return self.remove_unclaimed()

    def remove_unclaimed(self) -> int:
        """Remove every route of this owner's that nobody has added or claimed here."""
        claimed = {*self._held, *+self._exceptions}
        count = 0
        for version in FAMILIES:
            ours = (r for r in self._table(version) if r.body["protocol"] == self._owner)
            destinations = (_destination(route, version) for route in ours)
            surplus = [each for each in destinations if each not in claimed]
            self._delete(*surplus)
            count += len(surplus)
            self._remove_rule_if_idle(version)
        return count

    def outer_path(self, source: IpAddress, destination: IpAddress) -> OuterPath:
        """How a packet from one of our addresses to a peer's leaves this host."""
        (found,) = self.outer_paths([(source, destination)])
        if isinstance(found, DatapathError):
            raise found
        return found

    def device_towards(self, source: IpAddress, destination: IpAddress) -> int:
        """The number of the device by which packets between the two leave."""
        return self._links.named(self.outer_path(source, destination).device).index

    def outer_paths(self, ends: Sequence[Ends]) -> list[OuterPath | DatapathError]:
        """`outer_path` of many: the way, or why there is none."""
        with self._links.stand_still():
            requests = [self._question(*each) for each in ends]
            asked = [each for each in requests if isinstance(each, Request)]
            replies = iter(self._netlink.exchange(asked))
            return [
                self._answer(next(replies)) if isinstance(each, Request) else each
                for each in requests
            ]

    def _question(self, source: IpAddress, destination: IpAddress) -> Request | DatapathError:
        what = Words("find a route from", source, "to", destination)
        if not self._links.has(source):
            reason = f"cannot {what}: {source} is no address of this host"
            return DatapathError(reason, errno.EADDRNOTAVAIL)
        message = Message(
            type=MessageType.GETROUTE,
            body={
                "family": FAMILIES[destination.version],
                "dst_len": destination.max_prefixlen,
                "src_len": source.max_prefixlen,
            },
            attributes={
                Route.DST: destination.packed,
                Route.SRC: source.packed,
                Route.MARK: _OUR_MARK,
            },
        )
        return Request(message, what)

    def _answer(self, reply: Reply) -> OuterPath | DatapathError:
        if reply.error is not None:
            return reply.error
        (route,) = reply.messages
        try:
            link = self._links.numbered(decode_number(route.attributes[Route.OIF]))
        except DatapathError as error:  # it has gone since
            return error
        gateway = route.attributes.get(Route.GATEWAY)
        metrics = split_attributes(route.attributes.get(Route.METRICS, b""))
        return OuterPath(
            device=link.name,
            gateway=None if gateway is None else ip_address(gateway),
            mtu=decode_number(metrics[Metric.MTU]) if Metric.MTU in metrics else link.mtu,
        )

    def find_amiss(self) -> Iterator[Difference]:
        """Which of our routes and rules are not there as they were added."""
        for version in FAMILIES:
            if any(held.version == version for held in self._held) and not self._has_rule(version):
                what = f"the rule that leads IPv{version} packets to our routes"
                yield Difference(finding=Finding.RULE_MISSING, what=what, subject=version)
            there = {
                _destination(route, version): _course(route)
                for route in self._table(version)
                if route.body["protocol"] == self._owner
            }
            yield from self._compare(version, there)

    def mend(self, amiss: Difference) -> None:
        """Put right what `find_amiss` has found."""
        subject = amiss.subject
        if amiss.finding is Finding.RULE_MISSING:
            assert isinstance(subject, int)
            self._add_rules({subject})
            return
        assert isinstance(subject, IPv4Network | IPv6Network)
        way = self._held.get(subject, _Held()).way
        if way is not None:
            for error in filter(None, self._add([(subject, way)])):
                raise error
        elif self._exceptions[subject]:
            self._add_exception(subject)
        else:
            self._delete(subject)

    @property
    def port(self) -> int:
        """Of the socket by which everything here is changed."""
        return self._netlink.port

    def close(self) -> None:
        """Free the sockets; the routes stay."""
        self._netlink.close()
        self._links.close()

    def _add(self, wanted: Sequence[tuple[IpNetwork, Way]]) -> list[DatapathError | None]:
        """Put routes into the table, and the rules that lead to it; for each, why not."""
        with self._links.stand_still():
            requests = [self._addition(*each) for each in wanted]
        asked = [each for each in requests if isinstance(each, Request)]
        replies = iter(self._netlink.exchange(asked))
        errors = [next(replies).error if isinstance(each, Request) else each for each in requests]
        added = zip(wanted, errors, strict=True)
        self._add_rules({to.version for (to, _), error in added if error is None} - self._ruled)
        return errors

    def _addition(self, destination: IpNetwork, way: Way) -> Request | DatapathError:
        try:
            route = self._route_along(destination, way)
        except DatapathError as error:
            return error
        return Request(route, Words("add a route to", destination), replace=True)

    def _add_rules(self, versions: Set[int]) -> None:
        """Those that are not there yet; who takes one away is found out by `find_amiss`."""
        for version in versions:
            rule = Request(_rule(MessageType.NEWRULE, version), "add our rule", create=True)
            self._exchange(rule, errno.EEXIST)
            self._ruled.add(version)

    def _route_along(self, destination: IpNetwork, way: Way) -> Message:
        via = way.via
        device = via if isinstance(via, str) else via.device
        attributes: Attributes = {Route.OIF: NUMBER.pack(self._links.named(device).index)}
        gateway = None if isinstance(via, str) else via.gateway
        body: Values = {"type": _UNICAST}
        # A gateway of the other family cannot be named, nor need it be: the packet is protected,
        # and becomes one of the gateway's family, before it looks for a neighbour.
        if gateway is not None and gateway.version == destination.version:
            attributes[Route.GATEWAY] = gateway.packed
            body["flags"] = _ON_LINK
        if way.mtu is not None:
            attributes[Route.METRICS] = encode_attributes({Metric.MTU: NUMBER.pack(way.mtu)})
        # Where `local` is everything, any address will do.
        source = self._links.address_within(way.local) if way.local.prefixlen else None
        if source is not None:
            attributes[Route.PREFSRC] = source.packed
        return self._route(MessageType.NEWROUTE, destination, body, attributes)

    def _compare(self, version: int, there: dict[IpNetwork, _Course]) -> Iterator[Difference]:
        wanted: dict[IpNetwork, _Course | None] = {
            exception: _Course(type=_THROW)
            for exception in +self._exceptions
            if exception.version == version
        }
        for destination, held in self._held.items():
            if destination.version == version and held.way is not None:
                wanted[destination] = self._course_along(destination, held.way)
        for destination, course in wanted.items():
            found = there.pop(destination, None)
            if found is None or found != course:
                finding = Finding.ROUTE_MISSING if found is None else Finding.ROUTE_CHANGED
                yield _amiss(finding, destination)
        for destination in there.keys() - self._held.keys():
            yield _amiss(Finding.ROUTE_SURPLUS, destination)

    def _course_along(self, destination: IpNetwork, way: Way) -> _Course | None:
        """None if there is no such device just now."""
        try:
            return _course(self._route_along(destination, way))
        except DatapathError as error:
            if error.errno != errno.ENODEV:
                raise
            return None

    def _is_exception(self, local: IpNetwork, destination: IpNetwork) -> bool:
        """Whether it is one, and not there yet."""
        if not _contains(destination, local) or local == destination:
            return False
        held = self._held.get(destination)
        return held is None or local not in held.exceptions

    def _add_exception(self, network: IpNetwork) -> None:
        route = self._route(MessageType.NEWROUTE, network, {"type": _THROW}, {})
        self._exchange(Request(route, f"except {network} from what is led away", replace=True))

    def _delete(self, *destinations: IpNetwork) -> None:
        requests = [
            Request(
                self._route(MessageType.DELROUTE, destination, {"scope": _ANY_SCOPE}, {}),
                Words("remove the route to", destination),
            )
            for destination in destinations
        ]
        for reply in self._netlink.exchange(requests):
            reply.unless(errno.ESRCH)

    def _route(
        self,
        kind: MessageType,
        destination: IpNetwork,
        body: Values,
        attributes: Attributes,
    ) -> Message:
        return Message(
            type=kind,
            body={
                "family": FAMILIES[destination.version],
                "dst_len": destination.prefixlen,
                "protocol": self._owner,
                **body,
            },
            attributes={
                Route.DST: destination.network_address.packed,
                Route.TABLE: _OUR_TABLE,
                **attributes,
            },
        )

    def _table(self, version: int) -> Iterator[Message]:
        table = Message(
            type=MessageType.GETROUTE,
            body={"family": FAMILIES[version]},
            attributes={Route.TABLE: _OUR_TABLE},
        )
        # A table that never had a route is not there.
        request = Request(table, "list our routes", dump=True)
        for route in self._exchange(request, errno.ENOENT):
            if route.attributes[Route.TABLE] == _OUR_TABLE:
                yield route

    def _has_rule(self, version: int) -> bool:
        body = {"family": FAMILIES[version]}
        rules = Message(type=MessageType.GETRULE, body=body)
        ours = _rule(MessageType.NEWRULE, version)
        return any(
            ours.attributes.items() <= rule.attributes.items()
            and rule.body["action"] == _TO_TABLE
            and rule.body["flags"] & _INVERT
            for rule in self._exchange(Request(rules, "list the rules", dump=True))
        )

    def _remove_rule_if_idle(self, version: int) -> None:
        if any(held.version == version for held in self._held):
            return
        if next(self._table(version), None) is None:
            self._ruled.discard(version)
            rule = _rule(MessageType.DELRULE, version)
            self._exchange(Request(rule, "remove our rule"), errno.ENOENT)

    def _exchange(self, request: Request, *but: int) -> list[Message]:
        """What the kernel answers; an error of a number in `but` is none."""
        return self._netlink.exchange([request])[0].unless(*but).messages


def _rule(kind: MessageType, version: int) -> Message:
    return Message(
        type=kind,
        body={"family": FAMILIES[version], "action": _TO_TABLE, "flags": _INVERT},
        attributes={
            Rule.TABLE: _OUR_TABLE,
            Rule.PRIORITY: NUMBER.pack(RULE_PRIORITY),
            Rule.FWMARK: _OUR_MARK,
            Rule.FWMASK: NUMBER.pack(OUR_BITS),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """What makes a route lead where it does, apart from its destination."""

    type: int
    attributes: tuple[tuple[int, bytes], ...] = ()
    mtu: bytes | None = None


def _course(route: Message) -> _Course:
    if route.body["type"] != _UNICAST:
        return _Course(type=route.body["type"])
    telling = (Route.OIF, Route.GATEWAY, Route.PREFSRC)
    metrics = split_attributes(route.attributes.get(Route.METRICS, b""))
    return _Course(
        type=_UNICAST,
        attributes=tuple((n, route.attributes[n]) for n in telling if n in route.attributes),
        mtu=metrics.get(Metric.MTU),
    )


def _amiss(finding: Finding, destination: IpNetwork) -> Difference:
    return Difference(finding=finding, what=f"the route to {destination}", subject=destination)


def _destination(route: Message, version: int) -> IpNetwork:
    octets = route.attributes.get(Route.DST)
    if octets is None:
        return _EVERYTHING[version]
    # Of an address the library would make text, and read that.
    return ip_network((octets, route.body["dst_len"]))


def _contains(outer: IpNetwork, inner: IpNetwork) -> bool:
    # The longer prefix is told by numbers, which nearly all pairs differ in: `subnet_of` is slow.
    if outer.version != inner.version or outer.prefixlen > inner.prefixlen:
        return False
    return inner.subnet_of(outer)  # type: ignore[arg-type]
