"""Interfaces come and go with tunnels, and one that cannot be had costs nobody his."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.daemon.interfaces import (
    interface_status,
    remove_interface,
    replace_interface,
    require_interface,
    set_interface,
)
from xfrmpy.datapath.recording import RecordingDatapath
from xfrmpy.failures import OperatorError
from xfrmpy.ipsec.interfaces import TunnelInterface
from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.policy.model import SharedKey, TunnelPolicy
from xfrmpy.registry import ProtocolId

EAST = TunnelInterface(name="east", if_id=7)
POLICY = TunnelPolicy(
    name="east",
    origin="east.yaml:1",
    peers=("192.0.2.2",),
    shared_key=SharedKey(octets=b"one secret of the east", origin="secrets/east"),
    proposals=(parse_proposal("aes128gcm16-prfsha256-x25519", ProtocolId.IKE),),
    children=(),
    interface=EAST,
)


@pytest.fixture
def datapath() -> Iterator[RecordingDatapath]:
    with closing(RecordingDatapath()) as made:
        yield made


def changed(**keys: Any) -> TunnelPolicy:
    return replace(POLICY, interface=replace(EAST, **keys))


def test_an_interface_is_set_once_and_shown(datapath: RecordingDatapath) -> None:
    set_interface(POLICY, datapath)
    require_interface(POLICY, datapath)
    assert [call.name for call in datapath.calls] == ["set_interface"]
    status = interface_status(POLICY, datapath)
    assert status is not None
    assert (status.name, status.state, status.if_id) == ("east", "up", 7)
    remove_interface(POLICY, datapath)
    missing = interface_status(POLICY, datapath)
    assert missing is not None
    assert (missing.state, missing.mtu) == ("missing", 0)
    assert interface_status(replace(POLICY, interface=None), datapath) is None


@pytest.mark.parametrize("keys", [{"name": "west"}, {"if_id": 8}, {"mtu": 1300}])
def test_one_that_cannot_be_had_leaves_the_one_before(
    datapath: RecordingDatapath, keys: dict[str, Any]
) -> None:
    set_interface(POLICY, datapath)
    datapath.refuse("set_interface", nth=2, reason="the name is taken")
    with pytest.raises(OperatorError, match=r"XF3009: .* the name is taken"):
        replace_interface(POLICY, changed(**keys), datapath)
    assert datapath.interfaces.there == {7: EAST}


def test_another_number_takes_the_place_of_the_one_before(datapath: RecordingDatapath) -> None:
    set_interface(POLICY, datapath)
    replace_interface(POLICY, changed(if_id=8), datapath)
    assert [*datapath.interfaces.there] == [8]
    replace_interface(changed(if_id=8), replace(POLICY, interface=None), datapath)
    assert datapath.interfaces.there == {}


def test_what_is_equal_is_not_touched(datapath: RecordingDatapath) -> None:
    replace_interface(POLICY, changed(), datapath)
    assert datapath.calls == []
