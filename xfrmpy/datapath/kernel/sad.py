"""SAD entries <-> NETLINK_XFRM values: what each field of the kernel's means to us.

What is not told by the kernel's own fields must survive a crash of ours, so it is written into the
kernel: an SA is ours by its reqid (`OUR_REQIDS`), and outbound if it puts `OUR_MARK` on its
packets, which also keeps them off our own routes. Read RFC 4301 section 4.4.2, and RFC 3948 for
the encapsulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import EOPNOTSUPP
from functools import lru_cache
from typing import Any

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.kernel import structs
from xfrmpy.datapath.kernel.messages import Attribute, MessageType
from xfrmpy.datapath.kernel.values import (
    IPPROTO_COMP,
    MODES,
    PROTOCOLS,
    address_of,
    decode_if_id,
    decoded,
    encode_if_id,
    family_of,
    naming_of,
)
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message, Values
from xfrmpy.datapath.routes import OUR_BITS, OUR_MARK
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY, Integrity
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.ipsec.sad import (
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
from xfrmpy.registry import ProtocolId

SA_IN, SA_OUT = 1, 2  # XFRM_SA_DIR_*
_OFFLOAD_INBOUND = 2  # XFRM_OFFLOAD_INBOUND
_NOECN, _DECAP_DSCP, _NOPMTUDISC, _AF_UNSPEC = 1, 2, 4, 32  # XFRM_STATE_*
_ALIGN4, _ESN = 64, 128


_DONT_ENCAP_DSCP = 1  # XFRM_SA_XFLAG_*
_INFINITE = (1 << 64) - 1  # XFRM_INF
_ESP_IN_UDP = 2  # UDP_ENCAP_ESPINUDP of <linux/udp.h>


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
        "id_proto": PROTOCOLS[entry.protocol],
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
    if entry.resource is not None and entry.direction is Direction.OUT:
        # Of one CPU is only what has a direction, and an outbound one has no window.
        attributes[Attribute.SA_DIR] = {"value": SA_OUT}
        attributes[Attribute.SA_PCPU] = {"value": entry.resource}
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
    return attributes | encode_if_id(entry.if_id)


def decode_sa(message: Message) -> SadEntry:
    """The inverse of `encode_sa`. Raises `UnreadableMessage` for what we could not have added."""
    body, attributes = message.body, message.attributes
    family = body["family"]
    try:
        return SadEntry(
            direction=Direction.OUT if is_outbound(message) else Direction.IN,
            spi=body["id_spi"],
            source=address_of(family, body["saddr"]),
            destination=address_of(family, body["id_daddr"]),
            reqid=body["reqid"],
            mode=decoded(MODES, body["mode"]),
            inner=_decode_inner(body),
            replay_window=attributes[Attribute.REPLAY_ESN_VAL]["replay_window"],
            encapsulation=_decode_encapsulation(family, attributes.get(Attribute.ENCAP)),
            outer=_decode_outer(message),
            tfc=attributes.get(Attribute.TFCPAD, {}).get("value", 0),
            lifetime=decode_lifetime(body),
            set_mark=_decode_set_mark(message),
            if_id=decode_if_id(attributes),
            resource=attributes.get(Attribute.SA_PCPU, {}).get("value"),
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
    source, destination = (address_of(body["sel_family"], body[f"sel_{end}addr"]) for end in "sd")
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
    return Message(type=kind, octets=octets, attributes=naming_of(state))


def encode_sa_id(sa: SaId, kind: MessageType) -> Message:
    """GETSA or DELSA of one SA."""
    body = {
        "daddr": sa.destination.packed,
        "spi": sa.spi,
        "family": family_of(sa.destination),
        "proto": PROTOCOLS[sa.protocol],
    }
    return Message(type=kind, body=body)


def decode_sa_id(body: Values) -> SaId:
    """The id of the SA of a NEWSA message's body."""
    return SaId(
        spi=body["id_spi"],
        protocol=decoded(PROTOCOLS, body["id_proto"]),
        destination=address_of(body["family"], body["id_daddr"]),
    )


def is_our_sa(message: Message) -> bool:
    return message.body["reqid"] in OUR_REQIDS


def is_compression(message: Message) -> bool:
    """Whether this is no SA but what compresses beside one: see `compression.py`."""
    return bool(message.body["id_proto"] == IPPROTO_COMP)


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
    if decoded(PROTOCOLS, message.body["id_proto"]) is ProtocolId.AH:
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
        address_of(family, original) if any(original) else None,
    )


LIMITS = {
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
    for field, (name, none) in LIMITS.items():
        limit = getattr(lifetime, name)
        values[field] = none if limit is None else limit
    return values


def decode_lifetime(body: Values) -> Lifetime:
    return Lifetime(
        **{
            name: None if body[field] == none else body[field]
            for field, (name, none) in LIMITS.items()
        }
    )


pack_sa_id = structs.USERSA_ID.packer("daddr", "spi", "family", "proto")
_pack_aead = structs.ALGO_AEAD.packer("alg_name", "alg_key_len", "alg_icv_len")
