"""The kernel's SAD and SPD as they are, whosever the entries are, without their keys.

What is not of our making is told in the kernel's words: a foreign SA has algorithms and a mode that
the tables of `ipsec/` need not know, so nothing here goes through `SadEntry`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import ip_address
from socket import AF_INET6, IPPROTO_AH, IPPROTO_ESP, IPPROTO_IPIP, IPPROTO_IPV6
from typing import Any

from xfrmpy.datapath.held_interfaces import read_interfaces
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.inventory import (
    HeldDefault,
    HeldPolicy,
    HeldSa,
    HeldTemplate,
    Inventory,
    selector_words,
)
from xfrmpy.datapath.kernel import events, sad, spd, values
from xfrmpy.datapath.kernel.default_policy import read_default
from xfrmpy.datapath.kernel.messages import XFRM, Attribute, MessageType
from xfrmpy.datapath.kernel.statistics import read_statistics
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message, Values
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.sad import Direction
from xfrmpy.ipsec.selectors import MaskedPort
from xfrmpy.ipsec.spd import OF_DEFAULT, PolicyDirection

_PROTOCOLS = {
    IPPROTO_ESP: "esp",
    IPPROTO_AH: "ah",
    values.IPPROTO_COMP: "ipcomp",
    IPPROTO_IPIP: "ipip",
    IPPROTO_IPV6: "ipv6",
}
_MODES = ("transport", "tunnel", "route-optimization", "in-trigger", "beet", "iptfs")
_POLICY_DIRECTIONS = ("in", "out", "fwd", "socket-in", "socket-out")
_ENCAPSULATIONS = {1: "espinudp-non-ike", 2: "espinudp", 7: "espintcp"}
_SA_DIRECTIONS = {1: Direction.IN, 2: Direction.OUT}
_PACKET_OFFLOAD = 4  # XFRM_OFFLOAD_PACKET

# XFRM_STATE_*, XFRM_SA_XFLAG_* and XFRM_POLICY_* by their bits, as iproute2 names them.
_FLAGS = ("noecn", "decap-dscp", "nopmtudisc", "wildrecv", "icmp", "af-unspec", "align4", "esn")
_EXTRA_FLAGS = ("dont-encap-dscp", "oseq-may-wrap")
_POLICY_FLAGS = ("localok", "icmp", "cpu-acquire")


def read_inventory() -> Inventory:
    """All of this thread's network namespace. Raises `DatapathError`."""
    with closing(NetlinkSocket(XFRM)) as requests:
        states = requests.ask(_dump(MessageType.GETSA, "list the SAs"))
        policies = requests.ask(_dump(MessageType.GETPOLICY, "list the policies"))
        defaults = tuple(_defaults(requests, policies))
    now = time.time()
    return Inventory(
        sas=tuple(held_sa(sa, now) for sa in states if not events.is_larval(sa)),
        policies=tuple(map(held_policy, policies)),
        defaults=defaults,
        interfaces=read_interfaces(),
        errors=read_statistics(),
    )


def _defaults(requests: NetlinkSocket, policies: list[Message]) -> Iterator[HeldDefault]:
    """None of a kernel that has no default policy."""
    try:
        blocked = read_default(requests)
    except DatapathError:
        return
    is_ours = any(
        spd.is_our_policy(policy) and policy.body["priority"] == OF_DEFAULT for policy in policies
    )
    for direction in PolicyDirection:
        blocks = direction in blocked
        yield HeldDefault(direction=direction.value, blocks=blocks, is_ours=blocks and is_ours)


def _dump(kind: MessageType, what: str) -> Request:
    return Request(Message(type=kind), what, dump=True)


def held_sa(message: Message, now: float) -> HeldSa:
    body = message.body
    family = body["family"]
    is_ours = sad.is_our_sa(message)
    return HeldSa(
        spi=body["id_spi"],
        protocol=_protocol(body["id_proto"]),
        mode=_word(_MODES, body["mode"]),
        direction=_direction(message, is_ours=is_ours),
        source=_address(family, body["saddr"]),
        destination=_address(family, body["id_daddr"]),
        reqid=body["reqid"],
        suite=_suite(message),
        usage=sad.decode_usage(message, now),
        lifetime=sad.decode_lifetime(body),
        seconds_old=max(0.0, now - body["curlft_add_time"]),
        is_ours=is_ours,
        options=dict(_sa_options(message)),
    )


def _direction(message: Message, *, is_ours: bool) -> Direction | None:
    told = message.attributes.get(Attribute.SA_DIR)
    if told is not None:
        return _SA_DIRECTIONS.get(told["value"])
    if is_ours:
        return Direction.OUT if sad.is_outbound(message) else Direction.IN
    return None


def _suite(message: Message) -> str:
    """In our words where we have them, else in the kernel's."""
    try:
        return str(sad.decode_sa(message).suite)
    except UnreadableMessage:
        return " ".join(_algorithms(message)) or "none"


def _algorithms(message: Message) -> Iterator[str]:
    """The names and sizes alone: `rfc4106(gcm(aes)) 160/128`, bits of the key and of the ICV."""
    for number, icv in _ALGORITHMS.items():
        found = message.attributes.get(number)
        if found is not None:
            size = f" {found['alg_key_len']}" if number != Attribute.ALG_COMP else ""
            yield sad.algorithm_name(found) + size + (f"/{found[icv]}" if icv else "")


_MADE_BY_THE_KERNEL = (IPPROTO_IPIP, IPPROTO_IPV6)
"""With each state of IPComp that is a tunnel (`ipcomp_tunnel_create` of Linux)."""

_ALGORITHMS = {
    Attribute.ALG_AEAD: "alg_icv_len",
    Attribute.ALG_CRYPT: "",
    Attribute.ALG_AUTH_TRUNC: "alg_trunc_len",
    Attribute.ALG_COMP: "",
}
"""Not ALG_AUTH: the kernel tells it a second time, for programs that do not know the other."""


def _sa_options(message: Message) -> Iterator[tuple[str, str]]:
    if sad.is_compression(message) and sad.is_our_sa(message):
        yield "beside", f"0x{message.body['seq']:08x}"
    if message.body["id_proto"] in _MADE_BY_THE_KERNEL and not message.body["reqid"]:
        yield "made_by", "the kernel, for packets that ipcomp has left as they are"
    encapsulation = message.attributes.get(Attribute.ENCAP)
    if encapsulation is not None:
        kind = _ENCAPSULATIONS.get(encapsulation["encap_type"], str(encapsulation["encap_type"]))
        ports = f"{encapsulation['encap_sport']} to {encapsulation['encap_dport']}"
        yield "encapsulation", f"{kind} {ports}"
    window = message.attributes.get(Attribute.REPLAY_ESN_VAL, {}).get("replay_window")
    yield "replay_window", str(message.body["replay_window"] if window is None else window)
    flags = list(_set_bits(_FLAGS, message.body["flags"]))
    extra = message.attributes.get(Attribute.SA_EXTRA_FLAGS, {}).get("value", 0)
    flags += _set_bits(_EXTRA_FLAGS, extra)
    if flags:
        yield "flags", " ".join(flags)
    for name, (number, tell) in _OPTIONS.items():
        if number in message.attributes:
            yield name, tell(message.attributes[number])


def _number(values: Values) -> str:
    return str(values["value"])


def _hex(values: Values) -> str:
    return f"{values['value']:#x}"


def _mark(values: Values) -> str:
    return f"{values['v']:#x}/{values['m']:#x}"


def _offload(values: Values) -> str:
    kind = "packet" if values["flags"] & _PACKET_OFFLOAD else "crypto"
    return f"{kind} by device {values['ifindex']}"


_OPTIONS: dict[str, tuple[Attribute, Callable[[Any], str]]] = {
    "mark": (Attribute.MARK, _mark),
    "set_mark": (Attribute.SET_MARK, _hex),
    "set_mark_mask": (Attribute.SET_MARK_MASK, _hex),
    "if_id": (Attribute.IF_ID, _number),
    "tfc_padding": (Attribute.TFCPAD, _number),
    "offload": (Attribute.OFFLOAD_DEV, _offload),
    "cpu": (Attribute.SA_PCPU, _number),
}


def held_policy(message: Message) -> HeldPolicy:
    body = message.body
    templates = message.attributes.get(Attribute.TMPL, ())
    action = "discard" if body["action"] else "protect" if templates else "bypass"
    return HeldPolicy(
        direction=_word(_POLICY_DIRECTIONS, body["dir"]),
        selector=_selector(body),
        action=action,
        priority=body["priority"],
        index=body["index"],
        is_ours=spd.is_our_policy(message),
        templates=tuple(map(_template, templates)),
        options=dict(_policy_options(message)),
    )


def _selector(body: Values) -> str:
    family = body["sel_family"]
    if not family:
        return "any -> any"
    source, destination = (
        f"{_address(family, body[f'sel_{end}addr'])}/{body[f'sel_prefixlen_{end}']}" for end in "sd"
    )
    ports = (MaskedPort(body[f"sel_{end}port"], body[f"sel_{end}port_mask"]) for end in "sd")
    return selector_words(source, destination, body["sel_proto"], *ports)


def _template(values: Values) -> HeldTemplate:
    family, is_tunnel = values["family"], values["mode"] != 0
    return HeldTemplate(
        protocol=_protocol(values["id_proto"]),
        mode=_word(_MODES, values["mode"]),
        reqid=values["reqid"],
        source=str(_address(family, values["saddr"])) if is_tunnel else "",
        destination=str(_address(family, values["id_daddr"])) if is_tunnel else "",
        is_optional=bool(values["optional"]),
    )


def _policy_options(message: Message) -> Iterator[tuple[str, str]]:
    flags = " ".join(_set_bits(_POLICY_FLAGS, message.body["flags"]))
    if flags:
        yield "flags", flags
    if message.body["sel_ifindex"]:
        yield "device", str(message.body["sel_ifindex"])
    for name in ("mark", "if_id"):
        number, tell = _OPTIONS[name]
        if number in message.attributes:
            yield name, tell(message.attributes[number])


def _set_bits(names: tuple[str, ...], bits: int) -> Iterator[str]:
    return (name for place, name in enumerate(names) if bits >> place & 1)


def _protocol(number: int) -> str:
    return _PROTOCOLS.get(number, f"protocol {number}")


def _word(words: tuple[str, ...], number: int) -> str:
    return words[number] if number < len(words) else str(number)


def _address(family: int, octets: bytes) -> IpAddress:
    return ip_address(octets if family == AF_INET6 else octets[:4])
