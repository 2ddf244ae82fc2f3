"""NETLINK_ROUTE messages: links, addresses, routes and rules, as far as we ask for them.

Tables only; the numbers are those of <linux/rtnetlink.h>, <linux/if_link.h>, <linux/if_addr.h> and
<linux/fib_rules.h>. Attributes stay octets: each kind of message has numbers of its own for them.
"""

from __future__ import annotations

from enum import IntEnum

from xfrmpy.datapath.netlink.layout import Layout
from xfrmpy.datapath.netlink.messages import Family


class MessageType(IntEnum):
    """RTM_*, those that we send or read."""

    NEWLINK = 16
    DELLINK = 17
    GETLINK = 18
    NEWADDR = 20
    DELADDR = 21
    GETADDR = 22
    NEWROUTE = 24
    DELROUTE = 25
    GETROUTE = 26
    NEWRULE = 32
    DELRULE = 33
    GETRULE = 34


class Group(IntEnum):
    """RTNLGRP_*."""

    LINK = 1
    IPV4_ADDRESS = 5
    IPV4_ROUTE = 7
    IPV4_RULE = 8
    IPV6_ADDRESS = 9
    IPV6_ROUTE = 11
    IPV6_RULE = 19


class LinkAttribute(IntEnum):
    """IFLA_*."""

    IFNAME = 3
    MTU = 4
    MASTER = 10
    LINKINFO = 18
    AF_SPEC = 26
    GROUP = 27
    NET_NS_FD = 28
    EXT_MASK = 29
    GSO_MAX_SIZE = 41


class LinkInfo(IntEnum):
    """IFLA_INFO_*, within `LinkAttribute.LINKINFO`."""

    KIND = 1
    DATA = 2


class XfrmLink(IntEnum):
    """IFLA_XFRM_*, within `LinkInfo.DATA` of the kind `xfrm`."""

    LINK = 1
    IF_ID = 2


class VrfLink(IntEnum):
    """IFLA_VRF_*, within `LinkInfo.DATA`."""

    TABLE = 1


class LinkInet6(IntEnum):
    """IFLA_INET6_*, within AF_INET6 within `LinkAttribute.AF_SPEC`."""

    ADDR_GEN_MODE = 8


class Address(IntEnum):
    """IFA_*."""

    ADDRESS = 1
    LOCAL = 2


class Route(IntEnum):
    """RTA_*."""

    DST = 1
    SRC = 2
    OIF = 4
    GATEWAY = 5
    PREFSRC = 7
    METRICS = 8
    TABLE = 15
    MARK = 16


class Metric(IntEnum):
    """RTAX_*, within `Route.METRICS`."""

    MTU = 2


class Rule(IntEnum):
    """FRA_*."""

    DST = 1
    SRC = 2
    GOTO = 4
    PRIORITY = 6
    FWMARK = 10
    TABLE = 15
    FWMASK = 16
    PROTOCOL = 21
    IP_PROTO = 22
    SPORT_RANGE = 23
    DPORT_RANGE = 24


LINK = Layout(family="B", pad="x", type="H", index="i", flags="I", change="I")

ADDRESS = Layout(family="B", prefixlen="B", flags="B", scope="B", index="I")

ROUTE = Layout(
    family="B",
    dst_len="B",
    src_len="B",
    tos="B",
    table="B",
    protocol="B",
    scope="B",
    type="B",
    flags="I",
)

RULE = Layout(
    family="B",
    dst_len="B",
    src_len="B",
    tos="B",
    table="B",
    pad="2x",
    action="B",
    flags="I",
)

RTNETLINK = Family(
    number=0,
    name="routing (rtnetlink)",
    bodies={
        MessageType.NEWLINK: LINK,
        MessageType.DELLINK: LINK,
        MessageType.GETLINK: LINK,
        MessageType.NEWADDR: ADDRESS,
        MessageType.DELADDR: ADDRESS,
        MessageType.GETADDR: ADDRESS,
        MessageType.NEWROUTE: ROUTE,
        MessageType.DELROUTE: ROUTE,
        MessageType.GETROUTE: ROUTE,
        MessageType.NEWRULE: RULE,
        MessageType.DELRULE: RULE,
        MessageType.GETRULE: RULE,
    },
)
"""NETLINK_ROUTE."""
