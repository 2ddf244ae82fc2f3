"""What is in force as the control socket tells it: names for ours, none for others', no keys."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.control.kernel import KernelReply
from xfrmpy.daemon.inventory import Name, Surveyor, kernel_reply
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.inventory import HeldInterface, HeldPolicy, HeldSa, HeldTemplate, Inventory
from xfrmpy.failures import OperatorError
from xfrmpy.ipsec.sad import OUR_REQIDS, Direction, Lifetime, Usage

OURS, UNKNOWN, THEIRS = OUR_REQIDS[7], OUR_REQIDS[8], 7
NAMES = {OURS: Name(tunnel="office", child="lan")}


def sa(reqid: int, **changes: Any) -> HeldSa:
    held = HeldSa(
        spi=0x1001,
        protocol="esp",
        mode="tunnel",
        direction=Direction.IN,
        source=ip_address("192.0.2.1"),
        destination=ip_address("192.0.2.2"),
        reqid=reqid,
        suite="aes256gcm16",
        usage=Usage(octets=10, packets=2, replayed=1, seconds_idle=0.5),
        lifetime=Lifetime(soft_seconds=60, hard_packets=9),
        seconds_old=3.5,
        is_ours=reqid in OUR_REQIDS,
    )
    return dataclasses.replace(held, **changes)


def policy(reqid: int, direction: str = "out", **options: str) -> HeldPolicy:
    return HeldPolicy(
        direction=direction,
        selector="10.1.0.0/16 -> 10.2.0.0/16",
        action="protect",
        priority=5,
        index=8,
        is_ours=reqid in OUR_REQIDS,
        templates=(HeldTemplate(protocol="esp", mode="tunnel", reqid=reqid),),
        options=options,
    )


def owners(told: KernelReply) -> set[tuple[str, str, str]]:
    """Of the SAs and the policies."""
    sas = {(sa.owner, sa.tunnel, sa.child) for sa in told.sas}
    return sas | {(policy.owner, policy.tunnel, policy.child) for policy in told.policies}


def reply(held: Inventory, tunnel: str | None = None) -> KernelReply:
    return kernel_reply({"kernel": held}, NAMES, {}, tunnel)


def test_an_entry_of_ours_bears_the_names_of_its_reqid() -> None:
    told = reply(Inventory(sas=(sa(OURS),), policies=(policy(OURS),)))
    assert owners(told) == {("ours", "office", "lan")}
    assert told.sas[0].limits == {"soft_seconds": 60, "hard_packets": 9}
    assert told.sas[0].spi == "0x00001001"


def test_an_entry_with_a_reqid_of_ours_that_no_tunnel_has_is_ours_without_names() -> None:
    told = reply(Inventory(sas=(sa(UNKNOWN),), policies=(policy(UNKNOWN),)))
    assert owners(told) == {("ours", "", "")}


def test_an_entry_of_others_is_foreign_and_has_no_names() -> None:
    told = reply(Inventory(sas=(sa(THEIRS),), policies=(policy(THEIRS),)))
    assert owners(told) == {("foreign", "", "")}


def test_a_policy_of_a_socket_is_told_as_that() -> None:
    (told,) = reply(Inventory(policies=(policy(THEIRS, "socket-in"),))).policies
    assert told.owner == "socket"


def test_of_one_tunnel_only_its_own_is_told_and_every_counter() -> None:
    held = Inventory(
        sas=(sa(OURS), sa(UNKNOWN), sa(THEIRS)),
        policies=(policy(OURS, if_id="7"), policy(THEIRS, if_id="8")),
        interfaces=tuple(
            HeldInterface(name=f"x{number}", kind="xfrm", mtu=1400, is_up=True, if_id=number)
            for number in (7, 8)
        ),
        errors={"XfrmInError": 3},
    )
    told = reply(held, "office")
    assert [entry.reqid for entry in told.sas] == [OURS]
    assert [entry.tunnel for entry in told.policies] == ["office"]
    assert [(device.name, device.tunnels) for device in told.interfaces] == [("x7", ["office"])]
    assert [counter.count for counter in told.errors] == [3]
    assert len(reply(held).interfaces) == 2


def test_a_counter_that_nobody_knows_is_told_all_the_same() -> None:
    (counter,) = reply(Inventory(errors={"XfrmOfTheFuture": 3})).errors
    assert counter.meaning.startswith("a reason that this version")
    assert counter.look_at == ""


def test_nothing_that_is_told_has_room_for_a_key() -> None:
    kinds = {type(each) for each in reply(Inventory(sas=(sa(OURS),), policies=(policy(OURS),))).sas}
    for kind in (*kinds, HeldSa):
        names = {field.name for field in dataclasses.fields(kind)}
        assert not any("key" in name for name in names)


def ask(surveyor: Surveyor, **parameters: Any) -> KernelReply:
    async def first(replies: AsyncIterator[KernelReply]) -> KernelReply:
        return await anext(replies)

    return asyncio.run(first(surveyor.show_kernel(parameters)))


def test_a_datapath_that_cannot_be_read_is_told_and_the_other_is_shown() -> None:
    def fail() -> Inventory:
        raise DatapathError("the worker has ended")

    told = ask(Surveyor(list, lambda name: name, fail))
    assert told.unread["userspace"] == "the worker has ended"
    assert "kernel" in told.unread or any(e.datapath == "kernel" for e in told.errors)


def test_a_tunnel_that_is_not_there_is_refused_before_anything_is_read() -> None:
    def missing(name: object) -> object:
        raise OperatorError("XF1013", f"there is no tunnel {name!r}")

    def never() -> Inventory:
        raise AssertionError

    with pytest.raises(OperatorError, match="nowhere"):
        ask(Surveyor(list, missing, never), tunnel="nowhere")
