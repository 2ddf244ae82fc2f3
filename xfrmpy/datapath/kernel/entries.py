"""SAD and SPD entries <-> NETLINK_XFRM values: what each field of the kernel's means to us.

What is not told by the kernel's own fields must survive a crash of ours, so it is written into the
kernel: an SA or a PROTECT policy is ours by its reqid (`OUR_REQIDS`), another policy by its index
(`OUR_INDICES`); an SA is outbound if it puts `OUR_MARK` on its packets, which also keeps them off
our own routes. Read RFC 4301 sections 4.4.1 and 4.4.2, and RFC 3948 for the encapsulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from errno import EOPNOTSUPP
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from socket import AF_INET, AF_INET6, IPPROTO_AH, IPPROTO_ESP
from typing import Any, TypeVar

from xfrmpy.datapath.interface import Acquire, DatapathError, Expired, MappingChanged
from xfrmpy.datapath.kernel import structs
from xfrmpy.datapath.kernel.messages import Attribute, MessageType
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message, Values
from xfrmpy.datapath.routes import OUR_BITS, OUR_MARK
from xfrmpy.ipsec.addresses import IpAddress, IpNetwork, SocketAddress
from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY, Integrity
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.ipsec.sad import (
    NEGOTIATED_CPIS,
    OUR_REQIDS,
    Direction,
    DontFragment,
    InnerEnds,
    Lifetime,
    Mode,
    Offload,
    OuterHeader,
    SadEntry,
    SaId,
    UdpEncapsulation,
    Usage,
)
from xfrmpy.ipsec.selectors import MAX_PORT, MaskedPort, Selector, TrafficSelector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry, Template
from xfrmpy.registry import ProtocolId

# The kernel's numbers, <linux/xfrm.h>.
_PROTOCOLS = {ProtocolId.ESP: IPPROTO_ESP, ProtocolId.AH: IPPROTO_AH}
MODES = {Mode.TRANSPORT: 0, Mode.TUNNEL: 1, Mode.BEET: 4}
_DIRECTIONS = {PolicyDirection.IN: 0, PolicyDirection.OUT: 1, PolicyDirection.FORWARD: 2}
_ALLOW, _BLOCK = 0, 1
_OFFLOAD_INBOUND = 2  # XFRM_OFFLOAD_INBOUND
_NOECN, _DECAP_DSCP, _NOPMTUDISC, _AF_UNSPEC = 1, 2, 4, 32  # XFRM_STATE_*
_ALIGN4, _ESN = 64, 128
_DONT_ENCAP_DSCP = 1  # XFRM_SA_XFLAG_*
_INFINITE = (1 << 64) - 1  # XFRM_INF
_ESP_IN_UDP = 2  # UDP_ENCAP_ESPINUDP of <linux/udp.h>
IPPROTO_COMP = 108  # which Python's socket module does not name
_ANY_ALGORITHMS = (0xFFFFFFFF,) * 3

OUR_INDICES = range(OUR_REQIDS.start, OUR_REQIDS.stop)
"""Of policies without a template, and so without a reqid. The kernel numbers policies upwards from
zero unless it is given a number; the lower three bits must be the direction."""

_PORT_PROTOCOLS = frozenset({6, 17, 33, 132, 136})  # TCP, UDP, DCCP, SCTP, UDP-Lite


def encode_sa(entry: SadEntry, kind: MessageType = MessageType.NEWSA) -> Message:
    """The message that puts `entry` in force (NEWSA) or replaces it (UPDSA).

    Of one that compresses, the ESP or AH alone: what stands beside it is in `compression.py`.
    """
    is_beside = entry.cpi is not None
    if is_beside and entry.tfc:
        raise DatapathError("the kernel does not pad what it compresses", EOPNOTSUPP)
    body = {
        "id_daddr": entry.destination.packed,
        "id_spi": entry.spi,
        "id_proto": _PROTOCOLS[entry.protocol],
        "saddr": entry.source.packed,
        "reqid": entry.reqid,
        "family": family_of(entry.destination),
        "mode": MODES[Mode.TRANSPORT if is_beside else entry.mode],
        # What may pass is the SPD's business, of either inner family. BEET mode's headers are here.
        **_encode_inner(entry.inner),
        "flags": _flags(entry),
        **encode_lifetime(entry.lifetime),
    }
    attributes = _encode_suite(entry)
    attributes[Attribute.REPLAY_ESN_VAL] = _encode_window(entry.replay_window)
    if entry.encapsulation is not None:
        attributes[Attribute.ENCAP] = {
            "encap_type": _ESP_IN_UDP,
            "encap_sport": entry.encapsulation.source_port,
            "encap_dport": entry.encapsulation.destination_port,
            "encap_oa": _octets(entry.encapsulation.original),
        }
    if entry.tfc and entry.mode is Mode.TUNNEL:
        attributes[Attribute.TFCPAD] = {"value": entry.tfc}
    return Message(type=kind, body=body, attributes=attributes | encode_bearing(entry))


def encode_bearing(entry: SadEntry) -> dict[int, Values]:
    """The attributes of every state of an SA, whatever the state does to a packet."""
    attributes: dict[int, Values] = {}
    if not entry.outer.copies_dscp:
        attributes[Attribute.SA_EXTRA_FLAGS] = {"value": _DONT_ENCAP_DSCP}
    value, bits = (OUR_MARK, OUR_BITS) if entry.direction is Direction.OUT else (0, 0)
    if entry.set_mark is not None:
        attributes[Attribute.SET_MARK] = {"value": value | entry.set_mark.value}
        attributes[Attribute.SET_MARK_MASK] = {"value": bits | entry.set_mark.mask}
    elif value:
        attributes[Attribute.SET_MARK] = {"value": value}
    return attributes | _encode_if_id(entry.if_id)


def decode_sa(message: Message) -> SadEntry:
    """The inverse of `encode_sa`. Raises `UnreadableMessage` for what we could not have added."""
    body, attributes = message.body, message.attributes
    family = body["family"]
    try:
        return SadEntry(
            direction=Direction.OUT if is_outbound(message) else Direction.IN,
            spi=body["id_spi"],
            source=_address(family, body["saddr"]),
            destination=_address(family, body["id_daddr"]),
            reqid=body["reqid"],
            mode=decoded(MODES, body["mode"]),
            inner=_decode_inner(body),
            replay_window=attributes[Attribute.REPLAY_ESN_VAL]["replay_window"],
            encapsulation=_decode_encapsulation(family, attributes.get(Attribute.ENCAP)),
            outer=_decode_outer(message),
            tfc=attributes.get(Attribute.TFCPAD, {}).get("value", 0),
            lifetime=decode_lifetime(body),
            set_mark=_decode_set_mark(message),
            if_id=_decode_if_id(attributes),
            offload=Offload.CRYPTO if is_offloaded(message) else None,
            **_decode_suite(message),
        )
    except (KeyError, ValueError) as error:
        raise UnreadableMessage(f"the kernel has an SA that is not like ours: {error!r}") from error


def _encode_inner(inner: InnerEnds | None) -> Values:
    if inner is None:
        return {}
    bits = inner.source.max_prefixlen
    return {
        "sel_family": family_of(inner.source),
        "sel_saddr": inner.source.packed,
        "sel_daddr": inner.destination.packed,
        "sel_prefixlen_s": bits,
        "sel_prefixlen_d": bits,
    }


def _decode_inner(body: Values) -> InnerEnds | None:
    if body["mode"] != MODES[Mode.BEET]:
        return None
    source, destination = (_address(body["sel_family"], body[f"sel_{end}addr"]) for end in "sd")
    return InnerEnds(source=source, destination=destination)


def is_outbound(message: Message) -> bool:
    """Which way an SA of ours works: see the module."""
    value = message.attributes.get(Attribute.SET_MARK, {}).get("value", 0)
    return bool(value & OUR_BITS == OUR_MARK)


def _decode_set_mark(message: Message) -> Mark | None:
    """Without what is ours of it."""
    value = message.attributes.get(Attribute.SET_MARK, {}).get("value")
    if value is None or value == OUR_MARK:
        return None
    mask = message.attributes[Attribute.SET_MARK_MASK]["value"]
    ours = OUR_BITS if is_outbound(message) else 0
    return Mark(value & ~ours, mask & ~ours)


def offload_by(entry: SadEntry, device: int) -> Values:
    """The attribute that asks a device, by its number, to do the cryptography of an SA."""
    flags = _OFFLOAD_INBOUND if entry.direction is Direction.IN else 0
    return {"ifindex": device, "flags": flags}


def is_offloaded(message: Message) -> bool:
    return Attribute.OFFLOAD_DEV in message.attributes


def encode_state_id(state: Message, kind: MessageType) -> Message:
    """GETSA or DELSA of exactly the state that a NEWSA message is about."""
    body = state.body
    octets = pack_sa_id(body["id_daddr"], body["id_spi"], body["family"], body["id_proto"])
    return Message(type=kind, octets=octets, attributes=_naming(state))


def encode_sa_id(sa: SaId, kind: MessageType) -> Message:
    """GETSA or DELSA of one SA."""
    body = {
        "daddr": sa.destination.packed,
        "spi": sa.spi,
        "family": family_of(sa.destination),
        "proto": _PROTOCOLS[sa.protocol],
    }
    return Message(type=kind, body=body)


def decode_sa_id(body: Values) -> SaId:
    """The id of the SA of a NEWSA message's body."""
    return SaId(
        spi=body["id_spi"],
        protocol=decoded(_PROTOCOLS, body["id_proto"]),
        destination=_address(body["family"], body["id_daddr"]),
    )


def is_our_sa(message: Message) -> bool:
    return message.body["reqid"] in OUR_REQIDS


def is_compression(message: Message) -> bool:
    """Whether this is no SA but what compresses beside one: see `compression.py`."""
    return bool(message.body["id_proto"] == IPPROTO_COMP)


def is_larval(message: Message) -> bool:
    """Whether this is no SA but the kernel's note that one has been asked for (an acquire)."""
    return bool(message.body["id_spi"] == 0)


LARVAL_SPI = 0x58460000
"""Given to a larval SA that is to go, or its successors to several."""


def encode_acquired_spi(entry: SpdEntry, spi: int) -> Message:
    """The same for the larval SA of a policy, which the kernel makes if there is none."""
    template = entry.template
    assert template is not None, "only PROTECT entries ask for SAs"
    # The kernel asks for the first that has none.
    protocol = IPPROTO_COMP if template.compresses else _PROTOCOLS[template.protocol]
    body = {
        "info_id_daddr": template.destination.packed,
        "info_id_proto": protocol,
        "info_saddr": template.source.packed,
        "info_reqid": template.reqid,
        "info_family": family_of(template.destination),
        "info_mode": MODES[template.mode],
        **_spi_range(protocol, spi),
    }
    return Message(type=MessageType.ALLOCSPI, body=body, attributes=_encode_name(entry))


def encode_larval_spi(larval: Message, spi: int) -> Message:
    """Give a larval SA an SPI, without which it cannot be deleted."""
    info = {f"info_{name}": value for name, value in larval.body.items()}
    body = {**info, **_spi_range(larval.body["id_proto"], spi)}
    return Message(type=MessageType.ALLOCSPI, body=body, attributes=_naming(larval))


def _spi_range(protocol: int, spi: int) -> Values:
    """An index of compression has 16 bits, and the kernel finds a free one."""
    if protocol == IPPROTO_COMP:
        return {"min": NEGOTIATED_CPIS[0], "max": NEGOTIATED_CPIS[-1]}
    return {"min": spi, "max": spi}


def decode_usage(message: Message, now: float) -> Usage:
    """What an SA has carried; `now` is the wall clock's, as the kernel's "last used" is."""
    body = message.body
    used = message.attributes.get(Attribute.LASTUSED, {}).get("value", 0)
    return Usage(
        octets=body["curlft_bytes"],
        packets=body["curlft_packets"],
        replayed=body["stats_replay"] + body["stats_replay_window"],
        integrity_failed=body["stats_integrity_failed"],
        seconds_idle=max(0.0, now - used) if used and body["curlft_packets"] else None,
    )


def is_past_soft_limit(message: Message, now: float) -> bool:
    """Whether an SA has met its soft limit by the wall clock's `now`."""
    body = message.body
    seconds = body["lft_soft_add_expires_seconds"]
    return bool(
        body["curlft_bytes"] >= body["lft_soft_byte_limit"]
        or body["curlft_packets"] >= body["lft_soft_packet_limit"]
        or (seconds and now - body["curlft_add_time"] >= seconds)
    )


def encode_policy(entry: SpdEntry, index: int = 0, *, replace: bool = False) -> Message:
    """The message that puts `entry` in force; `index` 0 lets the kernel number it."""
    octets = _pack_policy(
        *_selector_row(entry.selector),
        *_NO_LIMITS,
        entry.priority,
        index,
        _DIRECTIONS[entry.direction],
        _BLOCK if entry.action is Action.DISCARD else _ALLOW,
    )
    attributes = _encode_name(entry)
    if entry.template is not None:
        is_inbound = entry.direction is not PolicyDirection.OUT
        attributes[Attribute.TMPL] = _encode_templates(entry.template, is_inbound=is_inbound)
    kind = MessageType.UPDPOLICY if replace else MessageType.NEWPOLICY
    return Message(type=kind, octets=octets, attributes=attributes)


def decode_policy(message: Message) -> SpdEntry:
    """The inverse of `encode_policy`. Raises `UnreadableMessage` for what we never add."""
    body = message.body
    templates = message.attributes.get(Attribute.TMPL, ())
    try:
        action = Action.DISCARD if body["action"] == _BLOCK else Action.BYPASS
        return SpdEntry(
            direction=decoded(_DIRECTIONS, body["dir"]),
            selector=_decode_selector(body),
            action=Action.PROTECT if templates else action,
            priority=body["priority"],
            template=_decode_templates(templates) if templates else None,
            mark=_decode_mark(message.attributes.get(Attribute.MARK)),
            if_id=_decode_if_id(message.attributes),
        )
    except (KeyError, ValueError) as error:
        what = f"the kernel has a policy that is not like ours: {error!r}"
        raise UnreadableMessage(what) from error


def encode_policy_id(entry: SpdEntry, kind: MessageType) -> Message:
    """GETPOLICY or DELPOLICY by direction, selector and interface."""
    body = {**_encode_selector(entry.selector), "dir": _DIRECTIONS[entry.direction]}
    return Message(type=kind, body=body, attributes=_encode_name(entry))


def _encode_name(entry: SpdEntry) -> dict[int, Any]:
    """What names a policy beside its selector and direction."""
    naming = _encode_if_id(entry.if_id)
    if entry.mark is not None:
        naming[Attribute.MARK] = {"v": entry.mark.value, "m": entry.mark.mask}
    return naming


def _decode_mark(values: Values | None) -> Mark | None:
    return None if values is None else Mark(values["v"], values["m"])


def encode_policy_index(policy: Message) -> Message:
    """DELPOLICY of exactly the policy that a dump showed."""
    octets = pack_policy_index(policy.body["index"], policy.body["dir"])
    return Message(type=MessageType.DELPOLICY, octets=octets, attributes=_naming(policy))


def _naming(shown: Message) -> dict[int, Values]:
    """What has a mark or an interface is found by that, whatever else names it."""
    attributes = shown.attributes
    return {k: attributes[k] for k in NAMING if k in attributes}


NAMING = (Attribute.MARK, Attribute.IF_ID)


def policy_index(number: int, direction: PolicyDirection) -> int:
    """The `number`-th index of ours for a policy of one direction."""
    return OUR_INDICES[(number * 8 + _DIRECTIONS[direction]) % len(OUR_INDICES)]


def is_our_policy(message: Message) -> bool:
    """See the module."""
    templates = message.attributes.get(Attribute.TMPL, ())
    if not templates:
        return message.body["index"] in OUR_INDICES
    return any(template["reqid"] in OUR_REQIDS for template in templates)


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
    if body["state_id_proto"] not in _PROTOCOLS.values():
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
            protocol=decoded(_PROTOCOLS, body["id_proto"]),
            destination=_address(family, body["id_daddr"]),
        ),
        reqid=body["reqid"],
        old=SocketAddress(_address(family, body["old_saddr"]), body["old_sport"]),
        new=SocketAddress(_address(family, body["new_saddr"]), body["new_sport"]),
    )


def _encode_if_id(if_id: int) -> dict[int, Any]:
    return {Attribute.IF_ID: {"value": if_id}} if if_id else {}


def _decode_if_id(attributes: Mapping[int, Values]) -> int:
    return int(attributes.get(Attribute.IF_ID, {"value": 0})["value"])


@lru_cache(maxsize=16)
def _encode_window(packets: int) -> bytes:
    """The only way to one of more than 32 packets, with or without ESN."""
    words = (packets + 31) // 32
    empty = {"bmp_len": words, "replay_window": packets}
    return structs.REPLAY_STATE_ESN.pack(empty) + bytes(4 * words)


def _encode_suite(entry: SadEntry) -> dict[int, Any]:
    if isinstance(entry.suite, AhSuite):
        return {Attribute.ALG_AUTH_TRUNC: _encode_integrity(entry.suite.integrity, entry)}
    cipher, integrity = entry.suite.cipher, entry.suite.integrity
    name, key = cipher.kernel_name.encode(), entry.encryption_key
    if integrity is None:
        return {Attribute.ALG_AEAD: _pack_aead(name, cipher.keymat * 8, cipher.icv * 8) + key}
    return {
        Attribute.ALG_CRYPT: {"alg_name": name, "alg_key_len": cipher.keymat * 8, "alg_key": key},
        Attribute.ALG_AUTH_TRUNC: _encode_integrity(integrity, entry),
    }


def _encode_integrity(integrity: Integrity, entry: SadEntry) -> Values:
    return {
        "alg_name": integrity.kernel_name.encode(),
        "alg_key_len": integrity.key * 8,
        "alg_trunc_len": integrity.icv * 8,
        "alg_key": entry.integrity_key,
    }


_CIPHERS = {(c.kernel_name, c.keymat * 8, c.icv * 8): c for c in CIPHERS if c.kernel_name}
_INTEGRITY = {(i.kernel_name, i.key * 8, i.icv * 8): i for i in INTEGRITY}


def _decode_suite(message: Message) -> Values:
    """The suite and the keys, by the names of `SadEntry`. Raises `KeyError`."""
    esn = bool(message.body["flags"] & _ESN)
    if decoded(_PROTOCOLS, message.body["id_proto"]) is ProtocolId.AH:
        auth = message.attributes[Attribute.ALG_AUTH_TRUNC]
        ah = AhSuite(integrity=_decode_integrity(auth), esn=esn)
        return {"suite": ah, "encryption_key": b"", "integrity_key": auth["alg_key"]}
    aead = message.attributes.get(Attribute.ALG_AEAD)
    if aead is not None:
        cipher = _CIPHERS[algorithm_name(aead), aead["alg_key_len"], aead["alg_icv_len"]]
        suite = EspSuite(cipher=cipher, integrity=None, esn=esn)
        return {"suite": suite, "encryption_key": aead["alg_key"]}
    crypt = message.attributes[Attribute.ALG_CRYPT]
    auth = message.attributes[Attribute.ALG_AUTH_TRUNC]
    cipher = _CIPHERS[algorithm_name(crypt), crypt["alg_key_len"], 0]
    return {
        "suite": EspSuite(cipher=cipher, integrity=_decode_integrity(auth), esn=esn),
        "encryption_key": crypt["alg_key"],
        "integrity_key": auth["alg_key"],
    }


def _decode_integrity(auth: Values) -> Integrity:
    return _INTEGRITY[algorithm_name(auth), auth["alg_key_len"], auth["alg_trunc_len"]]


def algorithm_name(algorithm: Values) -> str:
    return str(algorithm["alg_name"].rstrip(b"\0").decode("ascii", "replace"))


def _flags(entry: SadEntry) -> int:
    """Without AF_UNSPEC the kernel takes an SA for one of its outer family, as transport is.

    Without ALIGN4 it makes an AH header a multiple of 8 octets in IPv4, too, where RFC 4302 section
    3.3.3.2.1 forbids more than 4.
    """
    is_ah4 = entry.protocol is ProtocolId.AH and entry.source.version == 4
    own = (_ALIGN4 if is_ah4 else 0) | (_ESN if entry.suite.esn else 0)
    return own | shared_flags(entry)


def shared_flags(entry: SadEntry) -> int:
    """The flags of every state of an SA.

    Of NOPMTUDISC only DF is left: the kernel clears it where it would have copied it.
    """
    outer = entry.outer
    if outer.dont_fragment is DontFragment.SET:
        raise DatapathError("the kernel cannot set DF whatever a packet says", EOPNOTSUPP)
    flags = _AF_UNSPEC if entry.mode is Mode.TUNNEL else 0
    if not outer.copies_ecn:
        flags |= _NOECN
    if outer.restores_dscp:
        flags |= _DECAP_DSCP
    return flags | (_NOPMTUDISC if outer.dont_fragment is DontFragment.CLEAR else 0)


def _decode_outer(message: Message) -> OuterHeader:
    flags = message.body["flags"]
    extra = message.attributes.get(Attribute.SA_EXTRA_FLAGS, {}).get("value", 0)
    return OuterHeader(
        copies_dscp=not extra & _DONT_ENCAP_DSCP,
        restores_dscp=bool(flags & _DECAP_DSCP),
        copies_ecn=not flags & _NOECN,
        dont_fragment=DontFragment.CLEAR if flags & _NOPMTUDISC else DontFragment.COPY,
    )


def _octets(address: IpAddress | None) -> bytes:
    return b"" if address is None else address.packed


def _decode_encapsulation(family: int, values: Values | None) -> UdpEncapsulation | None:
    if values is None:
        return None
    if values["encap_type"] != _ESP_IN_UDP:
        raise ValueError(f"encapsulation {values['encap_type']}")
    original = values["encap_oa"]
    return UdpEncapsulation(
        values["encap_sport"],
        values["encap_dport"],
        _address(family, original) if any(original) else None,
    )


_LIMITS = {
    "lft_soft_byte_limit": ("soft_bytes", _INFINITE),
    "lft_hard_byte_limit": ("hard_bytes", _INFINITE),
    "lft_soft_packet_limit": ("soft_packets", _INFINITE),
    "lft_hard_packet_limit": ("hard_packets", _INFINITE),
    "lft_soft_add_expires_seconds": ("soft_seconds", 0),
    "lft_hard_add_expires_seconds": ("hard_seconds", 0),
}
"""The kernel's field: the field of `Lifetime`, and the number that stands for "no limit"."""


@lru_cache(maxsize=256)
def encode_lifetime(lifetime: Lifetime) -> Mapping[str, int]:
    """Those of a gateway's SAs are of a few kinds, all policies' of one."""
    values: dict[str, int] = {}
    for field, (name, none) in _LIMITS.items():
        limit = getattr(lifetime, name)
        values[field] = none if limit is None else limit
    return values


def decode_lifetime(body: Values) -> Lifetime:
    return Lifetime(
        **{
            name: None if body[field] == none else body[field]
            for field, (name, none) in _LIMITS.items()
        }
    )


_SELECTOR = (
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


def _selector_row(selector: Selector) -> tuple[bytes | int, ...]:
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


def _encode_selector(selector: Selector) -> Values:
    return dict(zip(_SELECTOR, _selector_row(selector), strict=True))


def _decode_selector(body: Values) -> Selector:
    family = body["sel_family"]
    return Selector(
        source=_network(family, body["sel_saddr"], body["sel_prefixlen_s"]),
        destination=_network(family, body["sel_daddr"], body["sel_prefixlen_d"]),
        protocol=body["sel_proto"],
        source_port=MaskedPort(body["sel_sport"], body["sel_sport_mask"]),
        destination_port=MaskedPort(body["sel_dport"], body["sel_dport_mask"]),
    )


def _encode_templates(template: Template, *, is_inbound: bool) -> bytes:
    """In the order in which they are met on the way out: what compresses comes first.

    That has the mode, and ESP or AH is transport mode around it. Inbound it is optional, for a
    packet that would not become smaller goes as it is.
    """
    if not template.compresses:
        return _encode_template(template, _PROTOCOLS[template.protocol])
    compressing = _encode_template(template, IPPROTO_COMP, is_optional=is_inbound)
    transport = replace(template, mode=Mode.TRANSPORT)
    return compressing + _encode_template(transport, _PROTOCOLS[template.protocol])


def _encode_template(template: Template, protocol: int, *, is_optional: bool = False) -> bytes:
    return _pack_template(
        template.destination.packed,
        protocol,
        family_of(template.destination),
        template.source.packed,
        template.reqid,
        MODES[template.mode],
        int(is_optional),
        *_ANY_ALGORITHMS,
    )


def _decode_templates(templates: tuple[Values, ...]) -> Template:
    first, last = templates[0], templates[-1]
    if first["id_proto"] != IPPROTO_COMP:
        return _decode_template(first)
    mode = decoded(MODES, first["mode"])
    return replace(_decode_template(last), mode=mode, compresses=True)


def _decode_template(values: Values) -> Template:
    return Template(
        source=_address(values["family"], values["saddr"]),
        destination=_address(values["family"], values["id_daddr"]),
        reqid=values["reqid"],
        protocol=decoded(_PROTOCOLS, values["id_proto"]),
        mode=decoded(MODES, values["mode"]),
    )


def _acquire(reqid: int, body: Values) -> Acquire:
    has_ports = body["sel_proto"] in _PORT_PROTOCOLS
    source, destination = (
        TrafficSelector(
            protocol=body["sel_proto"],
            start_port=body[f"sel_{end}port"] if has_ports else 0,
            end_port=body[f"sel_{end}port"] if has_ports else MAX_PORT,
            start_address=(address := _address(body["sel_family"], body[f"sel_{end}addr"])),
            end_address=address,
        )
        for end in ("s", "d")
    )
    return Acquire(reqid=reqid, source=source, destination=destination)


def family_of(address: IpAddress) -> int:
    return AF_INET if address.version == 4 else AF_INET6


def _address(family: int, octets: bytes) -> IpAddress:
    if family == AF_INET:
        return IPv4Address(octets[:4])
    if family == AF_INET6:
        return IPv6Address(octets)
    raise UnreadableMessage(f"the kernel sent an address of family {family}")


def _network(family: int, octets: bytes, prefixlen: int) -> IpNetwork:
    return ip_network((_address(family, octets).packed, prefixlen))


_T = TypeVar("_T")


def decoded(table: Mapping[_T, int], number: int) -> _T:
    """The key of a kernel's number in one of the tables above."""
    for key, value in table.items():
        if value == number:
            return key
    raise UnreadableMessage(f"the kernel sent {number} where one of {[*table.values()]} is due")


# Entries are sent by the ten thousand.
_NO_LIMITS = tuple(encode_lifetime(Lifetime()).values())
_pack_policy = structs.USERPOLICY_INFO.packer(
    *_SELECTOR, *_LIMITS, "priority", "index", "dir", "action"
)
pack_sa_id = structs.USERSA_ID.packer("daddr", "spi", "family", "proto")
pack_policy_index = structs.USERPOLICY_ID.packer("index", "dir")
_pack_aead = structs.ALGO_AEAD.packer("alg_name", "alg_key_len", "alg_icv_len")
_pack_template = structs.USER_TMPL.packer(
    *(
        "id_daddr",
        "id_proto",
        "family",
        "saddr",
        "reqid",
        "mode",
        "optional",
        "aalgos",
        "ealgos",
        "calgos",
    )
)
