"""What we say to the kernel of devices is what iproute2 says."""

from __future__ import annotations

from dataclasses import dataclass, field

from xfrmpy.datapath.netdevices import OUR_GROUP, Devices
from xfrmpy.datapath.netlink.messages import Message, split_attributes
from xfrmpy.datapath.netlink.route import LINK, RTNETLINK, LinkAttribute, LinkInfo, MessageType
from xfrmpy.datapath.netlink.socket import Request


@dataclass
class Wire:
    """In place of a socket: the kernel of a test need not have xfrm interfaces."""

    sent: list[Request] = field(default_factory=list)

    def ask(self, request: Request) -> list[Message]:
        self.sent.append(request)
        return []


def test_an_xfrm_interface_is_asked_for_as_iproute2_does() -> None:
    """`ip link add name east group 22598 type xfrm if_id 7`, as strace shows it."""
    devices, wire = Devices(), Wire()
    devices.close()
    devices._netlink = wire  # type: ignore[assignment]
    devices.make_xfrm("east", 7, OUR_GROUP)
    (request,) = wire.sent
    assert (request.message.type, request.create) == (MessageType.NEWLINK, True)
    octets = RTNETLINK.encode(request.message)
    assert octets[: LINK.size] == bytes(LINK.size)
    attributes = split_attributes(octets[LINK.size :])
    assert attributes[LinkAttribute.IFNAME] == b"east\0"
    assert attributes[LinkAttribute.GROUP] == (22598).to_bytes(4, "little")
    info = split_attributes(attributes[LinkAttribute.LINKINFO])
    assert info[LinkInfo.KIND].rstrip(b"\0") == b"xfrm"
    assert info[LinkInfo.DATA] == bytes.fromhex("0800020007000000")
