"""SPD entries <-> NETLINK_XFRM values, with the templates of what protects (RFC 4301, 4.4.1).

A PROTECT policy is ours by the reqid of its template (`OUR_REQIDS`), another by its index
(`OUR_INDICES`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xfrmpy.datapath.kernel import structs
from xfrmpy.datapath.kernel.messages import Attribute, MessageType
from xfrmpy.datapath.kernel.sad import LIMITS, encode_lifetime
from xfrmpy.datapath.kernel.values import (
    IPPROTO_COMP,
    MODES,
    PROTOCOLS,
    SELECTOR,
    address_of,
    decode_if_id,
    decode_selector,
    decoded,
    encode_if_id,
    encode_selector,
    family_of,
    naming_of,
    selector_row,
)
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message, Values
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.sad import OUR_REQIDS, Lifetime, Mode
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry, Template

_DIRECTIONS = {PolicyDirection.IN: 0, PolicyDirection.OUT: 1, PolicyDirection.FORWARD: 2}
_ALLOW, _BLOCK = 0, 1
_ANY_ALGORITHMS = (0xFFFFFFFF,) * 3
OUR_INDICES = range(OUR_REQIDS.start, OUR_REQIDS.stop)
"""Of policies without a template, and so without a reqid. The kernel numbers policies upwards from
zero unless it is given a number; the lower three bits must be the direction."""


def encode_policy(entry: SpdEntry, index: int = 0, *, replace: bool = False) -> Message:
    """The message that puts `entry` in force; `index` 0 lets the kernel number it."""
    octets = _pack_policy(
        *selector_row(entry.selector),
        *_NO_LIMITS,
        entry.priority,
        index,
        _DIRECTIONS[entry.direction],
        _BLOCK if entry.action is Action.DISCARD else _ALLOW,
    )
    attributes = name_of(entry)
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
            selector=decode_selector(body),
            action=Action.PROTECT if templates else action,
            priority=body["priority"],
            template=_decode_templates(templates) if templates else None,
            mark=_decode_mark(message.attributes.get(Attribute.MARK)),
            if_id=decode_if_id(message.attributes),
        )
    except (KeyError, ValueError) as error:
        what = f"the kernel has a policy that is not like ours: {error!r}"
        raise UnreadableMessage(what) from error


def encode_policy_id(entry: SpdEntry, kind: MessageType) -> Message:
    """GETPOLICY or DELPOLICY by direction, selector and interface."""
    body = {**encode_selector(entry.selector), "dir": _DIRECTIONS[entry.direction]}
    return Message(type=kind, body=body, attributes=name_of(entry))


def name_of(entry: SpdEntry) -> dict[int, Any]:
    """What names a policy beside its selector and direction."""
    naming = encode_if_id(entry.if_id)
    if entry.mark is not None:
        naming[Attribute.MARK] = {"v": entry.mark.value, "m": entry.mark.mask}
    return naming


def _decode_mark(values: Values | None) -> Mark | None:
    return None if values is None else Mark(values["v"], values["m"])


def encode_policy_index(policy: Message) -> Message:
    """DELPOLICY of exactly the policy that a dump showed."""
    octets = pack_policy_index(policy.body["index"], policy.body["dir"])
    return Message(type=MessageType.DELPOLICY, octets=octets, attributes=naming_of(policy))


def policy_index(number: int, direction: PolicyDirection) -> int:
    """The `number`-th index of ours for a policy of one direction."""
    return OUR_INDICES[(number * 8 + _DIRECTIONS[direction]) % len(OUR_INDICES)]


def is_our_policy(message: Message) -> bool:
    """See the module."""
    templates = message.attributes.get(Attribute.TMPL, ())
    if not templates:
        return message.body["index"] in OUR_INDICES
    return any(template["reqid"] in OUR_REQIDS for template in templates)


def _encode_templates(template: Template, *, is_inbound: bool) -> bytes:
    """In the order in which they are met on the way out: what compresses comes first.

    That has the mode, and ESP or AH is transport mode around it. Inbound it is optional, for a
    packet that would not become smaller goes as it is.
    """
    if not template.compresses:
        return _encode_template(template, PROTOCOLS[template.protocol])
    compressing = _encode_template(template, IPPROTO_COMP, is_optional=is_inbound)
    transport = replace(template, mode=Mode.TRANSPORT)
    return compressing + _encode_template(transport, PROTOCOLS[template.protocol])


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
        source=address_of(values["family"], values["saddr"]),
        destination=address_of(values["family"], values["id_daddr"]),
        reqid=values["reqid"],
        protocol=decoded(PROTOCOLS, values["id_proto"]),
        mode=decoded(MODES, values["mode"]),
    )


# Entries are sent by the ten thousand.
_NO_LIMITS = tuple(encode_lifetime(Lifetime()).values())
_pack_policy = structs.USERPOLICY_INFO.packer(
    *SELECTOR, *LIMITS, "priority", "index", "dir", "action"
)
pack_policy_index = structs.USERPOLICY_ID.packer("index", "dir")
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
