"""Routes that lead packets into tunnels, in a table and behind a rule of our own.

Decides how a remote subnet is reached without touching one route of the operator's: every route of
ours is in table `OUR_TABLE`, which `not fwmark OUR_MARK lookup OUR_TABLE` (priority
`RULE_PRIORITY`, one rule a family) puts before the main table while there is a route in it.
Whoever sends protected packets sets SO_MARK, or the SA's output mark, to `OUR_MARK`, so that they
never meet these routes and cannot loop into a tunnel. Nothing here knows of SAs or policies.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import ip_address, ip_network
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any, TypeVar

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.ipsec.addresses import IpAddress, IpNetwork

if TYPE_CHECKING:
    from pyroute2 import IPRoute

T = TypeVar("T")

OUR_MARK = 0x5846
"""`XF`, as in `OUR_REQIDS`: the SO_MARK of every socket that sends IKE or protected packets."""
OUR_TABLE = 0x5846
RULE_PRIORITY = 220
"""strongSwan's; before the main table (32766), behind what operators tend to number below 100."""

_FAMILY = {4: AF_INET, 6: AF_INET6}
_EVERYTHING = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_RULE_INVERT = 2  # FIB_RULE_INVERT of <linux/fib_rules.h>
_HOST_SCOPE = 254  # RT_SCOPE_HOST: the loopback addresses


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


@dataclass(slots=True)
class _Held:
    """How many times a destination was added, and which exceptions stand beside it."""

    users: int = 0
    exceptions: set[IpNetwork] = field(default_factory=set)


class Routes:
    """The routes of one datapath, in the network namespace of the thread that made it.

    Blocking, some 0.5 ms a call: pyroute2 runs an event loop of its own, on a thread of its own
    because the caller may well be inside one. Every method raises `DatapathError`.
    """

    def __init__(self, owner: RouteOwner) -> None:
        self._owner = owner
        self._held: dict[IpNetwork, _Held] = {}
        self._exceptions: Counter[IpNetwork] = Counter()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="routes")
        try:
            self._netlink = self._thread.submit(_open).result()
        except OSError as error:
            self._thread.shutdown()
            raise DatapathError(f"cannot open a route socket: {error}", error.errno) from error

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
        self._run(f"add a route to {destination}", lambda: self._add(destination, local, via, mtu))
        held = self._held.setdefault(destination, _Held())
        held.users += 1
        if local != destination and _contains(destination, local) and local not in held.exceptions:
            self._run(f"except {local} from {destination}", lambda: self._add_exception(local))
            held.exceptions.add(local)
            self._exceptions[local] += 1

    def remove(self, destination: IpNetwork) -> None:
        """The inverse of one `add`; the route goes with the last. One that is gone is no error."""
        held = self._held.get(destination, _Held(users=1))
        held.users -= 1
        if held.users > 0:
            return
        self._held.pop(destination, None)
        self._exceptions.subtract(held.exceptions)
        gone = [destination, *(e for e in held.exceptions if not self._exceptions[e])]
        self._run(f"remove the route to {destination}", lambda: self._remove(gone))

    def remove_all(self) -> int:
        """Remove every route of this owner's, whoever added it, and the rules; returns how many."""
        self._held.clear()
        self._exceptions.clear()
        return self._run("remove our routes", self._remove_all)

    def outer_path(self, source: IpAddress, destination: IpAddress) -> OuterPath:
        """How a packet from one of our addresses to a peer's leaves this host."""
        what = f"find a route from {source} to {destination}"
        return self._run(what, lambda: self._outer_path(source, destination))

    def close(self) -> None:
        """Free the socket; the routes stay."""
        self._thread.submit(self._netlink.close).result()
        self._thread.shutdown()

    def _run(self, what: str, action: Callable[[], T]) -> T:
        from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 (290 ms)

        try:
            return self._thread.submit(action).result()
        except NetlinkError as error:
            reason = error.args[1] if len(error.args) > 1 else error
            raise DatapathError(f"cannot {what}: {reason}", error.code) from error

    # What follows runs on our thread.

    def _add(
        self, destination: IpNetwork, local: IpNetwork, via: OuterPath | str, mtu: int | None
    ) -> None:
        device = via if isinstance(via, str) else via.device
        route: dict[str, Any] = {**self._key(destination), "oif": self._index(device)}
        gateway = None if isinstance(via, str) else via.gateway
        # A gateway of the other family cannot be named, nor need it be: the packet is protected,
        # and becomes one of the gateway's family, before it looks for a neighbour.
        if gateway is not None and gateway.version == destination.version:
            route |= {"gateway": str(gateway), "flags": ["onlink"]}
        if mtu is not None:
            route["metrics"] = {"mtu": mtu}
        if source := self._address_within(local):
            route["prefsrc"] = source
        self._netlink.route("replace", **route)
        self._add_rule(destination.version)

    def _add_exception(self, network: IpNetwork) -> None:
        self._netlink.route("replace", **self._key(network), type="throw")

    def _remove(self, destinations: list[IpNetwork]) -> None:
        for destination in destinations:
            self._delete(destination)
        self._remove_rule_if_idle(destinations[0].version)

    def _delete(self, destination: IpNetwork) -> None:
        key = self._key(destination)
        _ignoring(errno.ESRCH, lambda: self._netlink.route("del", **key))

    def _remove_all(self) -> int:
        count = 0
        for version, family in _FAMILY.items():
            for route in self._table(family):
                if route["proto"] == self._owner:
                    default = _EVERYTHING[version].network_address
                    address = route.get("dst") or default
                    self._delete(ip_network(f"{address}/{route['dst_len']}"))
                    count += 1
            self._remove_rule_if_idle(version)
        return count

    def _key(self, destination: IpNetwork) -> dict[str, Any]:
        return {
            "family": _FAMILY[destination.version],
            "dst": str(destination),
            "table": OUR_TABLE,
            "proto": int(self._owner),
        }

    def _table(self, family: int) -> list[Any]:
        routes = self._netlink.get_routes(family=family, table=OUR_TABLE)
        return [route for route in routes if route.get("table") == OUR_TABLE]

    def _add_rule(self, version: int) -> None:
        _ignoring(errno.EEXIST, lambda: self._netlink.rule("add", **_rule(version)))

    def _remove_rule_if_idle(self, version: int) -> None:
        if any(held.version == version for held in self._held):
            return
        if not self._table(_FAMILY[version]):
            _ignoring(errno.ENOENT, lambda: self._netlink.rule("del", **_rule(version)))

    def _address_within(self, local: IpNetwork) -> str | None:
        """An address of this host within `local`; none where `local` is everything: any will do."""
        if local.prefixlen == 0:
            return None
        for message in self._netlink.get_addr(family=_FAMILY[local.version]):
            address = message.get("local") or message.get("address")
            if message["scope"] < _HOST_SCOPE and address and ip_address(address) in local:
                return str(address)
        return None

    def _outer_path(self, source: IpAddress, destination: IpAddress) -> OuterPath:
        (route,) = self._netlink.route(
            "get",
            family=_FAMILY[destination.version],
            dst=str(destination),
            src=str(source),
            mark=OUR_MARK,
        )
        (link,) = self._netlink.get_links(route.get("oif"))
        gateway = route.get("gateway")
        return OuterPath(
            device=link.get("ifname"),
            gateway=ip_address(gateway) if gateway else None,
            mtu=(route.get("metrics") or {}).get("mtu") or link.get("mtu"),
        )

    def _index(self, device: str) -> int:
        found: list[int] = self._netlink.link_lookup(ifname=device)
        if not found:
            raise DatapathError(f"there is no network device {device!r}", errno.ENODEV)
        return found[0]


def _open() -> IPRoute:
    from pyroute2 import IPRoute  # noqa: PLC0415 (290 ms and 32 MB: only who needs it pays)

    return IPRoute(strict_check=True)


def _rule(version: int) -> dict[str, Any]:
    return {
        "family": _FAMILY[version],
        "table": OUR_TABLE,
        "priority": RULE_PRIORITY,
        "fwmark": OUR_MARK,
        "flags": _RULE_INVERT,
    }


def _contains(outer: IpNetwork, inner: IpNetwork) -> bool:
    return outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _ignoring(code: int, action: Callable[[], object]) -> None:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 (290 ms)

    try:
        action()
    except NetlinkError as error:
        if error.code != code:
            raise
