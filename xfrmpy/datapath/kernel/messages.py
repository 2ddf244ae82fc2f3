"""NETLINK_XFRM messages: which structure a type carries, and which attributes follow.

Tables only; the numbers are those of <linux/xfrm.h>. Nothing here knows SAs or sockets.
"""

from __future__ import annotations

from enum import IntEnum

from xfrmpy.datapath.kernel import structs
from xfrmpy.datapath.netlink.layout import Layout
from xfrmpy.datapath.netlink.messages import Family, Shape, Tail


class MessageType(IntEnum):
    """XFRM_MSG_*, those that we send or read."""

    NEWSA = 0x10
    DELSA = 0x11
    GETSA = 0x12
    NEWPOLICY = 0x13
    DELPOLICY = 0x14
    GETPOLICY = 0x15
    ALLOCSPI = 0x16
    ACQUIRE = 0x17
    EXPIRE = 0x18
    UPDPOLICY = 0x19
    UPDSA = 0x1A
    MAPPING = 0x26


class Attribute(IntEnum):
    """XFRMA_*, those that we send or read."""

    ALG_CRYPT = 2
    ENCAP = 4
    TMPL = 5
    SA = 6
    LTIME_VAL = 9
    LASTUSED = 15
    ALG_AEAD = 18
    ALG_AUTH_TRUNC = 20
    REPLAY_ESN_VAL = 23
    SET_MARK = 29
    IF_ID = 31


class Group(IntEnum):
    """XFRMNLGRP_*, those that we listen to."""

    ACQUIRE = 1
    EXPIRE = 2
    SA = 3
    POLICY = 4
    MAPPING = 8


BODIES: dict[int, Layout] = {
    MessageType.NEWSA: structs.USERSA_INFO,
    MessageType.DELSA: structs.USERSA_ID,
    MessageType.GETSA: structs.USERSA_ID,
    MessageType.NEWPOLICY: structs.USERPOLICY_INFO,
    MessageType.DELPOLICY: structs.USERPOLICY_ID,
    MessageType.GETPOLICY: structs.USERPOLICY_ID,
    MessageType.ALLOCSPI: structs.USERSPI_INFO,
    MessageType.ACQUIRE: structs.USER_ACQUIRE,
    MessageType.EXPIRE: structs.USER_EXPIRE,
    MessageType.UPDPOLICY: structs.USERPOLICY_INFO,
    MessageType.UPDSA: structs.USERSA_INFO,
    MessageType.MAPPING: structs.USER_MAPPING,
}


_KEY = Tail("alg_key", lambda values: (values["alg_key_len"] + 7) // 8)
_BITMAP = Tail("bmp", lambda values: values["bmp_len"] * 4)

ATTRIBUTES: dict[int, Shape] = {
    Attribute.ALG_CRYPT: Shape(structs.ALGO, _KEY),
    Attribute.ENCAP: Shape(structs.ENCAP_TMPL),
    Attribute.TMPL: Shape(structs.USER_TMPL, repeated=True),
    Attribute.SA: Shape(structs.USERSA_INFO),
    Attribute.LTIME_VAL: Shape(structs.LIFETIME_CUR),
    Attribute.LASTUSED: Shape(structs.U64),
    Attribute.ALG_AEAD: Shape(structs.ALGO_AEAD, _KEY),
    Attribute.ALG_AUTH_TRUNC: Shape(structs.ALGO_AUTH, _KEY),
    Attribute.REPLAY_ESN_VAL: Shape(structs.REPLAY_STATE_ESN, _BITMAP),
    Attribute.SET_MARK: Shape(structs.U32),
    Attribute.IF_ID: Shape(structs.U32),
}

XFRM = Family(number=6, name="IPsec (XFRM)", bodies=BODIES, attributes=ATTRIBUTES)
"""NETLINK_XFRM."""
