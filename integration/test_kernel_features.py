"""What the kernel has and xfrmpy makes no use of, asked for by our own tables.

docs/datapaths.md says why it is not used. Here it is done for once, so that the tables are what the
kernel reads, and the reasons are true.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address
from socket import AF_INET, IPPROTO_ESP
from typing import Any

import pytest

from integration.contract.entries import OUTER, REQID, sad_entry, spd_entry
from xfrmpy.datapath.kernel import sad, spd, structs, values
from xfrmpy.datapath.kernel.datapath import KernelDatapath
from xfrmpy.datapath.kernel.messages import XFRM, Attribute, Group, MessageType
from xfrmpy.datapath.kernel.per_cpu import look_again
from xfrmpy.datapath.netlink.messages import Message, Values
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.sad import Direction, Mode, SadEntry
from xfrmpy.ipsec.spd import PolicyDirection

HERE, THERE = OUTER[4]
ELSEWHERE = ip_address("198.51.100.77")


@pytest.fixture
def requests(gateway: str) -> Iterator[NetlinkSocket]:
    del gateway
    with closing(NetlinkSocket(XFRM)) as opened:
        yield opened


def _migrate(new_destination: IpAddress) -> Message:
    """Of the OUT policy and its SAs, from where they are."""
    policy = structs.USERPOLICY_INFO.unpack(XFRM.encode(spd.encode_policy(spd_entry())))
    selector = {name: value for name, value in policy.items() if name.startswith("sel_")}
    change: Values = {
        "old_daddr": THERE.packed,
        "old_saddr": HERE.packed,
        "new_daddr": new_destination.packed,
        "new_saddr": HERE.packed,
        "proto": IPPROTO_ESP,
        "mode": values.MODES[Mode.TUNNEL],
        "reqid": REQID,
        "old_family": AF_INET,
        "new_family": AF_INET,
    }
    return Message(
        type=MessageType.MIGRATE,
        body={**selector, "dir": policy["dir"]},
        attributes={Attribute.MIGRATE: (change,)},
    )


def _outbound(number: int) -> SadEntry:
    entry = sad_entry(0, direction=Direction.OUT, source=HERE, destination=THERE)
    return replace(entry, spi=0x4000_0000 + number)


@pytest.mark.native
@pytest.mark.vm
def test_migration_moves_a_policy(datapath: KernelDatapath, requests: NetlinkSocket) -> None:
    datapath.add([spd_entry()])
    requests.ask(Request(_migrate(ELSEWHERE), "migrate"))
    (policy,) = datapath.dump().spd
    assert policy.template is not None
    assert (policy.template.source, policy.template.destination) == (HERE, ELSEWHERE)


@pytest.mark.native
@pytest.mark.vm
def test_the_outbound_policies_of_a_reqid_are_renewed_and_no_others(
    datapath: KernelDatapath, requests: NetlinkSocket
) -> None:
    """By which packets look for their SAs anew."""
    ours, other = spd_entry(), spd_entry(version=6)
    assert other.template is not None
    other = replace(other, template=replace(other.template, reqid=REQID + 1))
    datapath.add([ours, spd_entry(PolicyDirection.IN), other])
    before = datapath.dump().spd
    with closing(NetlinkSocket(XFRM, (Group.POLICY,))) as news:
        look_again(requests, {REQID})
        (told,) = news.notifications()
    assert told.type == MessageType.UPDPOLICY
    assert spd.decode_policy(told) == ours
    assert set(datapath.dump().spd) == {*before}


@pytest.mark.vm
def test_of_two_sas_that_overlap_migration_moves_but_one(
    datapath: KernelDatapath, requests: NetlinkSocket
) -> None:
    """As when a rekeying is under way: nothing in the message tells which."""
    datapath.add([_outbound(1), _outbound(2), spd_entry()])
    requests.ask(Request(_migrate(ELSEWHERE), "migrate"))
    destinations = sorted(entry.destination for entry in datapath.dump().sad)
    assert destinations == [THERE, ELSEWHERE]


@pytest.mark.vm
def test_the_state_of_an_sa_can_be_set_and_read(
    datapath: KernelDatapath, requests: NetlinkSocket
) -> None:
    entry = _outbound(1)
    datapath.add([entry])
    name = sad.encode_sa_id(entry.id, MessageType.GETSA).body
    body = {f"sa_{key}": value for key, value in name.items()}
    state = {"bmp_len": 8, "replay_window": 256, "oseq": 5000, "oseq_hi": 3, "bmp": bytes(32)}
    carried = {"bytes": 70_000, "packets": 700, "add_time": 1, "use_time": 1}
    attributes: dict[int, Any] = {Attribute.REPLAY_ESN_VAL: state, Attribute.LTIME_VAL: carried}
    told = Message(type=MessageType.NEWAE, body=body, attributes=attributes)
    requests.ask(Request(told, "set the state", replace=True))
    (back,) = requests.ask(Request(replace(told, type=MessageType.GETAE, attributes={}), "read it"))
    found = back.attributes[Attribute.REPLAY_ESN_VAL]
    assert {key: found[key] for key in state} == state
    assert back.attributes[Attribute.LTIME_VAL]["packets"] == 700
    usage = datapath.usage(entry.id)
    assert (usage.octets, usage.packets) == (70_000, 700)
