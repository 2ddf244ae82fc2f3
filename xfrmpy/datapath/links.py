"""The host's links and addresses, asked of the kernel once, and again when it tells of a change.

Every route of ours needs its device's number, the MTU of a path, an address of this host. They are
many on a gateway and change rarely, so that asking each time would cost more than the route. Routes
themselves are asked for anew each time: an MTU that a path turns out to have is told to nobody.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from socket import AF_INET, AF_INET6

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.netlink.messages import NUMBER, Message, decode_number
from xfrmpy.datapath.netlink.route import (
    RTNETLINK,
    Address,
    Group,
    LinkAttribute,
    MessageType,
)
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request
from xfrmpy.ipsec.addresses import IpAddress, IpNetwork

FAMILIES = {4: AF_INET, 6: AF_INET6}
_LINKS_AND_ADDRESSES = (Group.LINK, Group.IPV4_ADDRESS, Group.IPV6_ADDRESS)
_UP = 1  # IFF_UP
_HOST_SCOPE = 254  # RT_SCOPE_HOST: the loopback addresses
_WITHOUT_STATISTICS: dict[int, bytes] = {
    LinkAttribute.EXT_MASK: NUMBER.pack(8)
}  # RTEXT_FILTER_SKIP_STATS


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network device."""

    index: int
    name: str
    mtu: int
    is_up: bool


class Links:
    """See the module; of the network namespace of the thread that made it.

    Every method but `close` may raise `DatapathError`.
    """

    def __init__(self) -> None:
        with ExitStack() as stack:
            self._questions = stack.enter_context(closing(NetlinkSocket(RTNETLINK)))
            self._news = NetlinkSocket(RTNETLINK, _LINKS_AND_ADDRESSES)
            stack.pop_all()
        self._by_name: dict[str, Link] = {}
        self._by_index: dict[int, Link] = {}
        self._addresses: dict[int, dict[IpAddress, int]] = {}  # of a version, with their scopes
        self._within: dict[IpNetwork, IpAddress | None] = {}
        self._is_still = False

    def close(self) -> None:
        self._questions.close()
        self._news.close()

    @contextmanager
    def stand_still(self) -> Iterator[None]:
        """Meanwhile what is known counts: whoever asks thousands of times at once waits for it."""
        self._forget_if_changed()
        self._is_still = True
        try:
            yield
        finally:
            self._is_still = False

    def named(self, device: str) -> Link:
        self._forget_if_changed()
        return self._by_name.get(device) or self._ask_for(device)

    def numbered(self, index: int) -> Link:
        self._forget_if_changed()
        return self._by_index.get(index) or self._ask_about(
            f"find the network device {index}", {"index": index}, {}
        )

    def address_within(self, network: IpNetwork) -> IpAddress | None:
        """An address of this host's, and not only the host's own business, within `network`."""
        addresses = self._addresses_of(network.version)
        if network not in self._within:
            self._within[network] = next(
                (a for a, scope in addresses.items() if scope < _HOST_SCOPE and a in network), None
            )
        return self._within[network]

    def has(self, address: IpAddress) -> bool:
        """Whether it is one of this host's."""
        return address in self._addresses_of(address.version)

    def _addresses_of(self, version: int) -> dict[IpAddress, int]:
        self._forget_if_changed()
        if version not in self._addresses:
            self._addresses[version] = self._ask_for_addresses(version)
        return self._addresses[version]

    def _forget_if_changed(self) -> None:
        if self._is_still:
            return
        try:
            has_changed = bool([*self._news.notifications()])
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise DatapathError(f"cannot read of links: {error}", error.errno) from error
            has_changed = True
        if has_changed:
            for known in (self._by_name, self._by_index, self._addresses, self._within):
                known.clear()

    def _ask_for(self, device: str) -> Link:
        what = f"find the network device {device!r}"
        try:
            return self._ask_about(what, {}, {LinkAttribute.IFNAME: device.encode() + b"\0"})
        except DatapathError as error:
            if error.errno != errno.ENODEV:
                raise
            raise DatapathError(f"there is no network device {device!r}", errno.ENODEV) from error

    def _ask_about(self, what: str, body: dict[str, int], attributes: dict[int, bytes]) -> Link:
        message = Message(
            type=MessageType.GETLINK, body=body, attributes={**attributes, **_WITHOUT_STATISTICS}
        )
        (found,) = self._questions.ask(Request(message, what))
        link = Link(
            index=found.body["index"],
            name=found.attributes[LinkAttribute.IFNAME].rstrip(b"\0").decode(errors="replace"),
            mtu=decode_number(found.attributes[LinkAttribute.MTU]),
            is_up=bool(found.body["flags"] & _UP),
        )
        self._by_name[link.name] = self._by_index[link.index] = link
        return link

    def _ask_for_addresses(self, version: int) -> dict[IpAddress, int]:
        listing = Message(type=MessageType.GETADDR, body={"family": FAMILIES[version]})
        return {
            ip_address(
                each.attributes.get(Address.LOCAL) or each.attributes[Address.ADDRESS]
            ): each.body["scope"]
            for each in self._questions.ask(Request(listing, "list the addresses", dump=True))
        }
