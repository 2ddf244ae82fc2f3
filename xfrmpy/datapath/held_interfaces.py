"""The devices that lead packets to SAs: xfrm interfaces, whosever, and TUN devices of ours.

For who looks at them; what must know a device to lead packets there asks `links`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from ipaddress import ip_address, ip_interface

from xfrmpy.datapath.inventory import HeldInterface
from xfrmpy.datapath.netdevices import OUR_GROUP
from xfrmpy.datapath.netlink.messages import NUMBER, Message, decode_number, split_attributes
from xfrmpy.datapath.netlink.route import (
    RTNETLINK,
    Address,
    LinkAttribute,
    LinkInfo,
    MessageType,
    XfrmLink,
)
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request

_OUR_STEM = "xfrmpy"
"""With which the names of our TUN devices begin that are no tunnel's own."""
_UP = 1  # IFF_UP
_WITHOUT_STATISTICS = NUMBER.pack(8)  # RTEXT_FILTER_SKIP_STATS


def read_interfaces() -> tuple[HeldInterface, ...]:
    """Those of this thread's network namespace, in the order of their names.

    Raises `DatapathError`.
    """
    with closing(NetlinkSocket(RTNETLINK)) as questions:
        mask: dict[int, bytes] = {LinkAttribute.EXT_MASK: _WITHOUT_STATISTICS}
        listing = Message(type=MessageType.GETLINK, body={"family": 0}, attributes=mask)
        links = questions.ask(Request(listing, "list the devices", dump=True))
        ours = [link for link in links if _leads_to_sas(link)]
        addresses = _read_addresses(questions) if ours else {}
    names = {link.body["index"]: _name(link) for link in links}
    held = [_held(link, names, addresses.get(link.body["index"], ())) for link in ours]
    return tuple(sorted(held, key=lambda each: each.name))


def _read_addresses(questions: NetlinkSocket) -> Mapping[int, tuple[str, ...]]:
    listing = Message(type=MessageType.GETADDR, body={"family": 0})
    found: defaultdict[int, tuple[str, ...]] = defaultdict(tuple)
    for each in questions.ask(Request(listing, "list the addresses", dump=True)):
        octets = each.attributes.get(Address.LOCAL) or each.attributes[Address.ADDRESS]
        address = ip_interface((ip_address(octets), each.body["prefixlen"]))
        found[each.body["index"]] += (str(address),)
    return found


def _leads_to_sas(link: Message) -> bool:
    kind = _kind(link)
    return kind == "xfrm" or (kind == "tun" and _is_our_tun(link))


def _is_our_tun(link: Message) -> bool:
    group = link.attributes.get(LinkAttribute.GROUP)
    in_ours = group is not None and decode_number(group) == OUR_GROUP
    return in_ours or _name(link).startswith(_OUR_STEM)


def _held(link: Message, names: Mapping[int, str], addresses: tuple[str, ...]) -> HeldInterface:
    data = split_attributes(_info(link).get(LinkInfo.DATA, b""))
    is_xfrm = _kind(link) == "xfrm"
    under = decode_number(data[XfrmLink.LINK]) if is_xfrm and XfrmLink.LINK in data else 0
    return HeldInterface(
        name=_name(link),
        kind=_kind(link),
        mtu=decode_number(link.attributes[LinkAttribute.MTU]),
        is_up=bool(link.body["flags"] & _UP),
        if_id=decode_number(data[XfrmLink.IF_ID]) if is_xfrm and XfrmLink.IF_ID in data else None,
        underlying=names.get(under, f"device {under} of another namespace") if under else "",
        addresses=addresses,
    )


def _info(link: Message) -> Mapping[int, bytes]:
    return split_attributes(link.attributes.get(LinkAttribute.LINKINFO, b""))


def _kind(link: Message) -> str:
    return _info(link).get(LinkInfo.KIND, b"").rstrip(b"\0").decode(errors="replace")


def _name(link: Message) -> str:
    name: bytes = link.attributes[LinkAttribute.IFNAME]
    return name.rstrip(b"\0").decode(errors="replace")
