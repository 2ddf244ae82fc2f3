"""What SAs, policies and events of the kernel have in common, and what it means to us.

Selectors, addresses, interface ids, and the numbers of protocols and modes.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_network
from socket import AF_INET, AF_INET6, IPPROTO_AH, IPPROTO_ESP
from typing import Any, TypeVar

from xfrmpy.datapath.kernel.messages import Attribute
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message, Values
from xfrmpy.ipsec.addresses import IpAddress, IpNetwork
from xfrmpy.ipsec.sad import Mode
from xfrmpy.ipsec.selectors import MaskedPort, Selector
from xfrmpy.registry import ProtocolId

# The kernel's numbers, <linux/xfrm.h>.
PROTOCOLS = {ProtocolId.ESP: IPPROTO_ESP, ProtocolId.AH: IPPROTO_AH}
MODES = {Mode.TRANSPORT: 0, Mode.TUNNEL: 1, Mode.BEET: 4, Mode.IPTFS: 5}
IPPROTO_COMP = 108  # which Python's socket module does not name


def naming_of(shown: Message) -> dict[int, Values]:
    """What has a mark or an interface is found by that, whatever else names it."""
    attributes = shown.attributes
    return {k: attributes[k] for k in NAMING if k in attributes}


NAMING = (Attribute.MARK, Attribute.IF_ID)


def encode_if_id(if_id: int) -> dict[int, Any]:
    return {Attribute.IF_ID: {"value": if_id}} if if_id else {}


def decode_if_id(attributes: Mapping[int, Values]) -> int:
    return int(attributes.get(Attribute.IF_ID, {"value": 0})["value"])


SELECTOR = (
    "sel_daddr",
    "sel_saddr",
    "sel_dport",
    "sel_dport_mask",
    "sel_sport",
    "sel_sport_mask",
    "sel_family",
    "sel_prefixlen_d",
    "sel_prefixlen_s",
    "sel_proto",
)


def selector_row(selector: Selector) -> tuple[bytes | int, ...]:
    source, destination = selector.source, selector.destination
    return (
        destination.network_address.packed,
        source.network_address.packed,
        selector.destination_port.value,
        selector.destination_port.mask,
        selector.source_port.value,
        selector.source_port.mask,
        family_of(source.network_address),
        destination.prefixlen,
        source.prefixlen,
        selector.protocol,
    )


def encode_selector(selector: Selector) -> Values:
    return dict(zip(SELECTOR, selector_row(selector), strict=True))


def decode_selector(body: Values) -> Selector:
    family = body["sel_family"]
    return Selector(
        source=network_of(family, body["sel_saddr"], body["sel_prefixlen_s"]),
        destination=network_of(family, body["sel_daddr"], body["sel_prefixlen_d"]),
        protocol=body["sel_proto"],
        source_port=MaskedPort(body["sel_sport"], body["sel_sport_mask"]),
        destination_port=MaskedPort(body["sel_dport"], body["sel_dport_mask"]),
    )


def family_of(address: IpAddress) -> int:
    return AF_INET if address.version == 4 else AF_INET6


def address_of(family: int, octets: bytes) -> IpAddress:
    if family == AF_INET:
        return IPv4Address(octets[:4])
    if family == AF_INET6:
        return IPv6Address(octets)
    raise UnreadableMessage(f"the kernel sent an address of family {family}")


def network_of(family: int, octets: bytes, prefixlen: int) -> IpNetwork:
    return ip_network((address_of(family, octets).packed, prefixlen))


_T = TypeVar("_T")


def decoded(table: Mapping[_T, int], number: int) -> _T:
    """The key of a kernel's number in a table."""
    for key, value in table.items():
        if value == number:
            return key
    raise UnreadableMessage(f"the kernel sent {number} where one of {[*table.values()]} is due")
