"""What the kernel tells by itself: packets that want an SA, limits that are met, peers that move.

An acquire leaves a larval SA behind, without an SPI, which holds the next one back until it goes.
"""

from __future__ import annotations

from xfrmpy.datapath.interface import Acquire, Expired, MappingChanged
from xfrmpy.datapath.kernel.messages import Attribute, MessageType
from xfrmpy.datapath.kernel.sad import decode_sa_id
from xfrmpy.datapath.kernel.spd import name_of
from xfrmpy.datapath.kernel.values import (
    IPPROTO_COMP,
    MODES,
    PROTOCOLS,
    address_of,
    decoded,
    family_of,
    naming_of,
)
from xfrmpy.datapath.netlink.messages import Message, Values
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.sad import NEGOTIATED_CPIS, OUR_REQIDS, SaId
from xfrmpy.ipsec.selectors import MAX_PORT, TrafficSelector
from xfrmpy.ipsec.spd import SpdEntry

_PORT_PROTOCOLS = frozenset({6, 17, 33, 132, 136})  # TCP, UDP, DCCP, SCTP, UDP-Lite


def is_larval(message: Message) -> bool:
    """Whether this is no SA but the kernel's note that one has been asked for (an acquire)."""
    return bool(message.body["id_spi"] == 0)


LARVAL_SPI = 0x58460000
"""Given to a larval SA that is to go, or its successors to several."""


def encode_larval_spi(larval: Message, spi: int) -> Message:
    """Give a larval SA an SPI, without which it cannot be deleted."""
    info = {f"info_{name}": value for name, value in larval.body.items()}
    body = {**info, **_spi_range(larval.body["id_proto"], spi)}
    return Message(type=MessageType.ALLOCSPI, body=body, attributes=naming_of(larval))


def encode_acquired_spi(entry: SpdEntry, spi: int) -> Message:
    """The same for the larval SA of a policy, which the kernel makes if there is none."""
    template = entry.template
    assert template is not None, "only PROTECT entries ask for SAs"
    # The kernel asks for the first that has none.
    protocol = IPPROTO_COMP if template.compresses else PROTOCOLS[template.protocol]
    body = {
        "info_id_daddr": template.destination.packed,
        "info_id_proto": protocol,
        "info_saddr": template.source.packed,
        "info_reqid": template.reqid,
        "info_family": family_of(template.destination),
        "info_mode": MODES[template.mode],
        **_spi_range(protocol, spi),
    }
    return Message(type=MessageType.ALLOCSPI, body=body, attributes=name_of(entry))


def _spi_range(protocol: int, spi: int) -> Values:
    """An index of compression has 16 bits, and the kernel finds a free one."""
    if protocol == IPPROTO_COMP:
        return {"min": NEGOTIATED_CPIS[0], "max": NEGOTIATED_CPIS[-1]}
    return {"min": spi, "max": spi}


def decode_acquire(message: Message) -> Acquire | None:
    """None for an acquire that is another program's."""
    templates = message.attributes.get(Attribute.TMPL, ())
    reqid = next((t["reqid"] for t in templates if t["reqid"] in OUR_REQIDS), None)
    return None if reqid is None else _acquire(reqid, message.body)


def decode_larval(message: Message) -> Acquire:
    """The acquire that a larval SA stands for."""
    return _acquire(message.body["reqid"], message.body)


def decode_expire(message: Message) -> Expired | None:
    """None for another program's SA, for a larval one, and for what compresses beside ours."""
    body = message.body
    if body["state_reqid"] not in OUR_REQIDS or body["state_id_spi"] == 0:
        return None
    if body["state_id_proto"] not in PROTOCOLS.values():
        return None
    state = {name.removeprefix("state_"): value for name, value in body.items()}
    return Expired(sa=decode_sa_id(state), reqid=body["state_reqid"], hard=bool(body["hard"]))


def decode_mapping(message: Message) -> MappingChanged | None:
    """None for another program's SA."""
    body = message.body
    if body["reqid"] not in OUR_REQIDS:
        return None
    family = body["id_family"]
    return MappingChanged(
        sa=SaId(
            spi=body["id_spi"],
            protocol=decoded(PROTOCOLS, body["id_proto"]),
            destination=address_of(family, body["id_daddr"]),
        ),
        reqid=body["reqid"],
        old=SocketAddress(address_of(family, body["old_saddr"]), body["old_sport"]),
        new=SocketAddress(address_of(family, body["new_saddr"]), body["new_sport"]),
    )


def _acquire(reqid: int, body: Values) -> Acquire:
    has_ports = body["sel_proto"] in _PORT_PROTOCOLS
    source, destination = (
        TrafficSelector(
            protocol=body["sel_proto"],
            start_port=body[f"sel_{end}port"] if has_ports else 0,
            end_port=body[f"sel_{end}port"] if has_ports else MAX_PORT,
            start_address=(address := address_of(body["sel_family"], body[f"sel_{end}addr"])),
            end_address=address,
        )
        for end in ("s", "d")
    )
    return Acquire(reqid=reqid, source=source, destination=destination)
