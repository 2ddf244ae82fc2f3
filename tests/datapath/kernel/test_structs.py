"""Sizes and offsets as gcc gives them for <linux/xfrm.h> of Linux 6.1 on x86-64.

The numbers of SA_DIR (6.10), NAT_KEEPALIVE_INTERVAL (6.11), SA_PCPU (6.13) and IPTFS_* (6.14) are
those of the header of 6.18.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from xfrmpy.datapath.kernel import structs
from xfrmpy.datapath.kernel.messages import Attribute, Group, MessageType
from xfrmpy.datapath.netlink.layout import Layout, UnreadableMessage

SIZES = {
    "ID": 24,
    "SELECTOR": 56,
    "LIFETIME_CFG": 64,
    "LIFETIME_CUR": 32,
    "STATS": 12,
    "USERSA_INFO": 224,
    "USERSA_ID": 24,
    "USERSPI_INFO": 232,
    "USERPOLICY_INFO": 168,
    "USERPOLICY_ID": 64,
    "USER_TMPL": 64,
    "USER_ACQUIRE": 280,
    "USER_EXPIRE": 232,
    "USER_MAPPING": 64,
    "ENCAP_TMPL": 24,
    "ALGO": 68,
    "ALGO_AUTH": 72,
    "ALGO_AEAD": 72,
    "REPLAY_STATE_ESN": 24,
    "REPLAY_STATE": 12,
    "AEVENT_ID": 48,
    "USER_MIGRATE": 76,
    "USER_OFFLOAD": 8,
    "USERPOLICY_DEFAULT": 3,
    "MARK": 8,
    "U8": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
}

OFFSETS = """
ID: daddr 0, spi 16, proto 20
SELECTOR: daddr 0, saddr 16, dport 32, dport_mask 34, sport 36, sport_mask 38, family 40,
  prefixlen_d 42, prefixlen_s 43, proto 44, ifindex 48, user 52
LIFETIME_CFG: soft_byte_limit 0, hard_byte_limit 8, soft_packet_limit 16, hard_packet_limit 24,
  soft_add_expires_seconds 32, hard_add_expires_seconds 40, soft_use_expires_seconds 48,
  hard_use_expires_seconds 56
LIFETIME_CUR: bytes 0, packets 8, add_time 16, use_time 24
STATS: replay_window 0, replay 4, integrity_failed 8
USERSA_INFO: sel_daddr 0, id_daddr 56, saddr 80, lft_soft_byte_limit 96, curlft_bytes 160,
  stats_replay_window 192, seq 204, reqid 208, family 212, mode 214, replay_window 215, flags 216
USERSA_ID: daddr 0, spi 16, family 20, proto 22
USERSPI_INFO: info_sel_daddr 0, min 224, max 228
USERPOLICY_INFO: sel_daddr 0, lft_soft_byte_limit 56, curlft_bytes 120, priority 152, index 156,
  dir 160, action 161, flags 162, share 163
USERPOLICY_ID: sel_daddr 0, index 56, dir 60
USER_TMPL: id_daddr 0, family 24, saddr 28, reqid 44, mode 48, share 49, optional 50, aalgos 52,
  ealgos 56, calgos 60
USER_ACQUIRE: id_daddr 0, saddr 24, sel_daddr 40, policy_sel_daddr 96, aalgos 264, ealgos 268,
  calgos 272, seq 276
USER_EXPIRE: state_sel_daddr 0, hard 224
USER_MAPPING: id_daddr 0, reqid 24, old_saddr 28, new_saddr 44, old_sport 60, new_sport 62
ENCAP_TMPL: encap_type 0, encap_sport 2, encap_dport 4, encap_oa 8
ALGO: alg_name 0, alg_key_len 64
ALGO_AUTH: alg_name 0, alg_key_len 64, alg_trunc_len 68
ALGO_AEAD: alg_name 0, alg_key_len 64, alg_icv_len 68
REPLAY_STATE_ESN: bmp_len 0, oseq 4, seq 8, oseq_hi 12, seq_hi 16, replay_window 20
REPLAY_STATE: oseq 0, seq 4, bitmap 8
AEVENT_ID: sa_daddr 0, sa_spi 16, saddr 24, flags 40, reqid 44
USER_MIGRATE: old_daddr 0, old_saddr 16, new_daddr 32, new_saddr 48, proto 64, mode 65, reqid 68,
  old_family 72, new_family 74
USER_OFFLOAD: ifindex 0, flags 4
USERPOLICY_DEFAULT: in 0, fwd 1, out 2
MARK: v 0, m 4
"""

NUMBERS: dict[type[MessageType | Attribute | Group], dict[str, int]] = {
    MessageType: {
        "NEWSA": 16,
        "DELSA": 17,
        "GETSA": 18,
        "NEWPOLICY": 19,
        "DELPOLICY": 20,
        "GETPOLICY": 21,
        "ALLOCSPI": 22,
        "ACQUIRE": 23,
        "EXPIRE": 24,
        "UPDPOLICY": 25,
        "UPDSA": 26,
        "NEWAE": 30,
        "GETAE": 31,
        "MIGRATE": 33,
        "MAPPING": 38,
        "SETDEFAULT": 39,
        "GETDEFAULT": 40,
    },
    Attribute: {
        "ALG_AUTH": 1,
        "ALG_CRYPT": 2,
        "ALG_COMP": 3,
        "ENCAP": 4,
        "TMPL": 5,
        "SA": 6,
        "POLICY": 7,
        "SEC_CTX": 8,
        "LTIME_VAL": 9,
        "REPLAY_VAL": 10,
        "REPLAY_THRESH": 11,
        "ETIMER_THRESH": 12,
        "SRCADDR": 13,
        "COADDR": 14,
        "LASTUSED": 15,
        "POLICY_TYPE": 16,
        "MIGRATE": 17,
        "ALG_AEAD": 18,
        "KMADDRESS": 19,
        "ALG_AUTH_TRUNC": 20,
        "MARK": 21,
        "TFCPAD": 22,
        "REPLAY_ESN_VAL": 23,
        "SA_EXTRA_FLAGS": 24,
        "PROTO": 25,
        "ADDRESS_FILTER": 26,
        "PAD": 27,
        "OFFLOAD_DEV": 28,
        "SET_MARK": 29,
        "SET_MARK_MASK": 30,
        "IF_ID": 31,
        "MTIMER_THRESH": 32,
        "SA_DIR": 33,
        "NAT_KEEPALIVE_INTERVAL": 34,
        "SA_PCPU": 35,
        "IPTFS_DROP_TIME": 36,
        "IPTFS_REORDER_WINDOW": 37,
        "IPTFS_DONT_FRAG": 38,
        "IPTFS_INIT_DELAY": 39,
        "IPTFS_MAX_QSIZE": 40,
        "IPTFS_PKT_SIZE": 41,
    },
    Group: {
        "ACQUIRE": 1,
        "EXPIRE": 2,
        "SA": 3,
        "POLICY": 4,
        "AEVENTS": 5,
        "MIGRATE": 7,
        "MAPPING": 8,
    },
}

LAYOUTS: dict[str, Layout] = {name: getattr(structs, name) for name in SIZES}


def _rows() -> list[tuple[str, str, int]]:
    rows = []
    for line in OFFSETS.replace("\n  ", " ").strip().splitlines():
        layout, _, fields = line.partition(": ")
        for field in fields.split(", "):
            name, offset = field.split()
            rows.append((layout, name, int(offset)))
    return rows


@pytest.mark.parametrize("name", SIZES)
def test_a_structure_has_the_size_of_the_headers(name: str) -> None:
    assert LAYOUTS[name].size == SIZES[name]


@pytest.mark.parametrize(("layout", "name", "offset"), _rows())
def test_a_field_stands_where_the_header_has_it(layout: str, name: str, offset: int) -> None:
    table = LAYOUTS[layout]
    code = table.codes[name]
    ones = b"\xff" if "s" in code else -1 if code == "i" else (1 << 8 * _width(code)) - 1
    packed = table.pack({name: ones})
    assert packed.index(b"\xff") == offset
    assert packed.count(b"\xff") == (1 if "s" in code else _width(code))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("first", [0, 1])
def test_a_packer_of_some_fields_packs_as_the_whole_table_does(name: str, first: int) -> None:
    table = LAYOUTS[name]
    some = {
        field: bytes([place]) if "s" in code else place
        for place, (field, code) in enumerate([*table.codes.items()][first::2], start=1)
    }
    assert table.packer(*some)(*some.values()) == table.pack(some)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("first", [0, 1])
def test_a_reader_of_some_fields_reads_what_the_whole_table_does(name: str, first: int) -> None:
    table = LAYOUTS[name]
    octets = b"??" + bytes(range(table.size % 256))[::-1].rjust(table.size, b"!")
    names = [*table.codes][first::2]
    whole = table.unpack(octets, 2)
    assert [*table.reader(*names)(octets, 2)] == [whole[each] for each in names]
    with pytest.raises(UnreadableMessage):
        table.reader(*names)(octets, 3)


@pytest.mark.parametrize("names", [("spi", "daddr"), ("daddr", "ttl")])
@pytest.mark.parametrize("make", [Layout.packer, Layout.reader])
def test_fields_are_wanted_in_their_order(
    make: Callable[..., object], names: tuple[str, ...]
) -> None:
    with pytest.raises(TypeError, match="not these fields in this order"):
        make(structs.ID, *names)


def _width(code: str) -> int:
    return struct.calcsize({"n": "H", "N": "I"}.get(code, code))


@pytest.mark.parametrize("kind", NUMBERS)
def test_the_numbers_are_those_of_the_header(kind: type[MessageType]) -> None:
    assert {member.name: int(member) for member in kind} == NUMBERS[kind]


def test_ports_and_spis_are_in_network_order() -> None:
    assert structs.ID.pack({"spi": 0x01020304})[16:20] == bytes([1, 2, 3, 4])
    assert structs.ENCAP_TMPL.pack({"encap_sport": 4500})[2:4] == (4500).to_bytes(2, "big")


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_packed_is_unpacked(name: str) -> None:
    layout = LAYOUTS[name]
    values = {
        field: bytes(range(1, 1 + struct.calcsize(code))) if "s" in code else number
        for number, (field, code) in enumerate(layout.codes.items(), 1)
    }
    assert layout.unpack(b"??" + layout.pack(values) + b"!", 2) == values


def test_a_misspelt_field_is_refused() -> None:
    with pytest.raises(TypeError, match="sip"):
        structs.ID.pack({"sip": 1})


def test_a_cut_structure_is_unreadable() -> None:
    with pytest.raises(UnreadableMessage, match="23 octets where 24 are due"):
        structs.ID.unpack(bytes(23))
