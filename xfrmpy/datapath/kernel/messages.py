"""NETLINK_XFRM messages: which structure a type carries, and which attributes follow.

Tables only; the numbers are those of <linux/xfrm.h>. Nothing here knows SAs or sockets.
"""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum

from xfrmpy.datapath.kernel import structs
from xfrmpy.datapath.netlink.layout import Layout
from xfrmpy.datapath.netlink.messages import Family, Shape, Tail


class MessageType(IntEnum):
    """XFRM_MSG_*, those that we send, read or probe."""

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
    NEWAE = 0x1E
    GETAE = 0x1F
    MIGRATE = 0x21
    MAPPING = 0x26
    SETDEFAULT = 0x27
    GETDEFAULT = 0x28


class Attribute(IntEnum):
    """XFRMA_*; the last of <linux/xfrm.h> of Linux 6.1 is MTIMER_THRESH, the others came later."""

    ALG_AUTH = 1
    ALG_CRYPT = 2
    ALG_COMP = 3
    ENCAP = 4
    TMPL = 5
    SA = 6
    POLICY = 7
    SEC_CTX = 8
    LTIME_VAL = 9
    REPLAY_VAL = 10
    REPLAY_THRESH = 11
    ETIMER_THRESH = 12
    SRCADDR = 13
    COADDR = 14
    LASTUSED = 15
    POLICY_TYPE = 16
    MIGRATE = 17
    ALG_AEAD = 18
    KMADDRESS = 19
    ALG_AUTH_TRUNC = 20
    MARK = 21
    TFCPAD = 22
    REPLAY_ESN_VAL = 23
    SA_EXTRA_FLAGS = 24
    PROTO = 25
    ADDRESS_FILTER = 26
    PAD = 27
    OFFLOAD_DEV = 28
    SET_MARK = 29
    SET_MARK_MASK = 30
    IF_ID = 31
    MTIMER_THRESH = 32
    SA_DIR = 33
    NAT_KEEPALIVE_INTERVAL = 34
    SA_PCPU = 35
    IPTFS_DROP_TIME = 36
    IPTFS_REORDER_WINDOW = 37
    IPTFS_DONT_FRAG = 38
    IPTFS_INIT_DELAY = 39
    IPTFS_MAX_QSIZE = 40
    IPTFS_PKT_SIZE = 41


class Group(IntEnum):
    """XFRMNLGRP_*, those that we listen to."""

    ACQUIRE = 1
    EXPIRE = 2
    SA = 3
    POLICY = 4
    AEVENTS = 5
    MIGRATE = 7
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
    MessageType.NEWAE: structs.AEVENT_ID,
    MessageType.GETAE: structs.AEVENT_ID,
    MessageType.MIGRATE: structs.USERPOLICY_ID,
    MessageType.MAPPING: structs.USER_MAPPING,
    MessageType.SETDEFAULT: structs.USERPOLICY_DEFAULT,
    MessageType.GETDEFAULT: structs.USERPOLICY_DEFAULT,
}


_KEY = Tail("alg_key", lambda values: (values["alg_key_len"] + 7) // 8)
_BITMAP = Tail("bmp", lambda values: values["bmp_len"] * 4)

ATTRIBUTES: dict[int, Shape] = {
    Attribute.ALG_AUTH: Shape(structs.ALGO, _KEY),
    Attribute.ALG_CRYPT: Shape(structs.ALGO, _KEY),
    Attribute.ALG_COMP: Shape(structs.ALGO, _KEY),
    Attribute.ENCAP: Shape(structs.ENCAP_TMPL),
    Attribute.TMPL: Shape(structs.USER_TMPL, repeated=True),
    Attribute.SA: Shape(structs.USERSA_INFO),
    Attribute.LTIME_VAL: Shape(structs.LIFETIME_CUR),
    Attribute.REPLAY_VAL: Shape(structs.REPLAY_STATE),
    Attribute.REPLAY_THRESH: Shape(structs.U32),
    Attribute.ETIMER_THRESH: Shape(structs.U32),
    Attribute.LASTUSED: Shape(structs.U64),
    Attribute.MIGRATE: Shape(structs.USER_MIGRATE, repeated=True),
    Attribute.ALG_AEAD: Shape(structs.ALGO_AEAD, _KEY),
    Attribute.ALG_AUTH_TRUNC: Shape(structs.ALGO_AUTH, _KEY),
    Attribute.MARK: Shape(structs.MARK),
    Attribute.TFCPAD: Shape(structs.U32),
    Attribute.REPLAY_ESN_VAL: Shape(structs.REPLAY_STATE_ESN, _BITMAP),
    Attribute.SA_EXTRA_FLAGS: Shape(structs.U32),
    Attribute.OFFLOAD_DEV: Shape(structs.USER_OFFLOAD),
    Attribute.SET_MARK: Shape(structs.U32),
    Attribute.SET_MARK_MASK: Shape(structs.U32),
    Attribute.IF_ID: Shape(structs.U32),
    Attribute.MTIMER_THRESH: Shape(structs.U32),
    Attribute.SA_DIR: Shape(structs.U8),
    Attribute.NAT_KEEPALIVE_INTERVAL: Shape(structs.U32),
    Attribute.SA_PCPU: Shape(structs.U32),
    Attribute.IPTFS_DROP_TIME: Shape(structs.U32),
    Attribute.IPTFS_REORDER_WINDOW: Shape(structs.U16),
    Attribute.IPTFS_DONT_FRAG: Shape(structs.FLAG),
    Attribute.IPTFS_INIT_DELAY: Shape(structs.U32),
    Attribute.IPTFS_MAX_QSIZE: Shape(structs.U32),
    Attribute.IPTFS_PKT_SIZE: Shape(structs.U32),
}

XFRM = Family(number=6, name="IPsec (XFRM)", bodies=BODIES, attributes=ATTRIBUTES)
"""NETLINK_XFRM."""

XFRM_UNREAD = replace(XFRM, bodies={}, attributes={})
"""The same, whose messages are left as octets: for who goes through ten thousand and needs little
of each."""
