"""The kernel's entries as an operator sees them, whosever they are."""

from __future__ import annotations

from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from typing import Any

import pytest

from xfrmpy.datapath.kernel import inventory, sad
from xfrmpy.datapath.kernel.compression import encode_states
from xfrmpy.datapath.kernel.messages import XFRM, Attribute, MessageType
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.ipsec.algorithms import CIPHERS
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import OUR_REQIDS, Direction, SadEntry, UdpEncapsulation

GCM = next(cipher for cipher in CIPHERS if cipher.name == "aes256gcm16")
KEY = bytes(range(1, 1 + GCM.keymat))
NOW = 1_000_000.0


def ours(**changes: Any) -> SadEntry:
    values: dict[str, Any] = {
        "direction": Direction.OUT,
        "spi": 0xC0FFEE01,
        "source": ip_address("192.0.2.1"),
        "destination": ip_address("192.0.2.2"),
        "reqid": OUR_REQIDS[7],
        "suite": EspSuite(cipher=GCM, integrity=None, esn=True),
        "encryption_key": KEY,
        "encapsulation": UdpEncapsulation(4500, 4501),
        **changes,
    }
    return SadEntry(**values)


def as_dumped(message: Message) -> Message:
    """As it comes back from the kernel."""
    return XFRM.decode(MessageType.NEWSA, XFRM.encode(message))


def foreign(attributes: dict[int, Any], **body: Any) -> Message:
    values = {
        "id_daddr": ip_address("192.0.2.9").packed,
        "id_spi": 0x101,
        "id_proto": 51,
        "saddr": ip_address("192.0.2.8").packed,
        "reqid": 7,
        "family": AF_INET,
        "curlft_add_time": int(NOW) - 60,
        **body,
    }
    return as_dumped(Message(type=MessageType.NEWSA, body=values, attributes=attributes))


def test_an_sa_of_ours_is_told_in_our_words_and_without_its_key() -> None:
    held = inventory.held_sa(as_dumped(sad.encode_sa(ours())), NOW)
    assert held.is_ours
    assert (held.protocol, held.mode, held.suite) == ("esp", "tunnel", "aes256gcm16-esn")
    assert held.direction is Direction.OUT
    assert held.options["encapsulation"] == "espinudp 4500 to 4501"
    assert held.options["flags"] == "af-unspec esn"
    assert KEY.hex() not in repr(held)
    assert repr(KEY)[2:-1] not in repr(held)


def test_what_compresses_is_told_with_the_sa_that_it_is_beside() -> None:
    beside, protecting = encode_states(ours(cpi=0x1234))
    held = inventory.held_sa(as_dumped(beside), NOW)
    assert held.is_ours
    assert (held.protocol, held.mode, held.suite) == ("ipcomp", "tunnel", "deflate")
    assert (held.spi, held.options["beside"]) == (0x1234, "0xc0ffee01")
    assert inventory.held_sa(as_dumped(protecting), NOW).mode == "transport"


@pytest.mark.parametrize(("protocol", "word"), [(4, "ipip"), (41, "ipv6")])
def test_what_the_kernel_makes_for_uncompressed_packets_is_explained(
    protocol: int, word: str
) -> None:
    held = inventory.held_sa(foreign({}, id_proto=protocol, reqid=0), NOW)
    assert held.protocol == word
    assert held.options["made_by"].startswith("the kernel")
    assert "made_by" not in inventory.held_sa(foreign({}, id_proto=protocol), NOW).options


def test_an_sa_of_others_is_told_in_the_kernels_words() -> None:
    authentication = {
        "alg_name": b"hmac(sha256)",
        "alg_key_len": 256,
        "alg_trunc_len": 128,
        "alg_key": bytes(32),
    }
    held = inventory.held_sa(
        foreign(
            {
                Attribute.ALG_AUTH_TRUNC: authentication,
                Attribute.MARK: {"v": 5, "m": 0xFF},
                Attribute.IF_ID: {"value": 9},
                Attribute.SA_DIR: {"value": 1},
                Attribute.OFFLOAD_DEV: {"ifindex": 3, "flags": 4},
                Attribute.SA_EXTRA_FLAGS: {"value": 1},
            },
            mode=4,
            flags=1,
            replay_window=32,
        ),
        NOW,
    )
    assert not held.is_ours
    assert (held.protocol, held.mode, held.suite) == ("ah", "beet", "hmac(sha256) 256/128")
    assert held.direction is Direction.IN
    assert held.seconds_old == 60
    assert held.options == {
        "replay_window": "32",
        "flags": "noecn dont-encap-dscp",
        "mark": "0x5/0xff",
        "if_id": "9",
        "offload": "packet by device 3",
    }


def test_nothing_tells_which_way_an_sa_of_others_works_before_linux_6_10() -> None:
    assert inventory.held_sa(foreign({}), NOW).direction is None


@pytest.mark.parametrize(("number", "word"), [(5, "iptfs"), (9, "9")])
def test_a_mode_that_is_not_ours_is_told(number: int, word: str) -> None:
    assert inventory.held_sa(foreign({}, mode=number), NOW).mode == word


def policy(attributes: dict[int, Any], **body: Any) -> Message:
    message = Message(type=MessageType.NEWPOLICY, body=body, attributes=attributes)
    return XFRM.decode(message.type, XFRM.encode(message))


def test_a_policy_of_others_may_have_what_we_never_make() -> None:
    template = {
        "id_proto": 108,
        "family": AF_INET6,
        "id_daddr": ip_address("2001:db8::2").packed,
        "saddr": ip_address("2001:db8::1").packed,
        "mode": 1,
        "reqid": 4,
        "optional": 1,
    }
    esp = {"id_proto": 50, "family": AF_INET, "mode": 0, "reqid": 5}
    held = inventory.held_policy(
        policy(
            {Attribute.TMPL: (template, esp), Attribute.IF_ID: {"value": 9}},
            sel_family=AF_INET,
            sel_saddr=ip_address("10.1.0.5").packed,  # host bits beyond the prefix
            sel_daddr=ip_address("10.2.0.0").packed,
            sel_prefixlen_s=24,
            sel_prefixlen_d=16,
            sel_proto=6,
            sel_dport=443,
            sel_dport_mask=0xFFFF,
            sel_sport=0x400,
            sel_sport_mask=0xFC00,
            dir=2,
            priority=9,
            index=17,
            flags=1,
        )
    )
    assert not held.is_ours
    assert held.selector == "10.1.0.5/24 -> 10.2.0.0/16 tcp sport 1024/0xfc00 dport 443"
    assert (held.direction, held.action, held.priority, held.index) == ("fwd", "protect", 9, 17)
    assert held.options == {"flags": "localok", "if_id": "9"}
    first, second = held.templates
    assert (first.protocol, first.source, first.is_optional) == ("ipcomp", "2001:db8::1", True)
    assert (second.mode, second.source, second.destination) == ("transport", "", "")


def test_the_policy_of_a_socket_has_no_family() -> None:
    held = inventory.held_policy(policy({}, dir=4))
    assert (held.direction, held.selector, held.action) == ("socket-out", "any -> any", "bypass")
