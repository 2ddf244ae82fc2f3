"""The interfaces of route-based tunnels, and what is told apart by their numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from integration.contract.entries import GCM, OUTER, sad_entry, spd_entry
from integration.contract.sites import OpenDatapath, run
from integration.contract.watching import await_calm, findings, is_told
from xfrmpy.datapath.interface import Datapath, DatapathError, Realm
from xfrmpy.datapath.routes import OUR_TABLE
from xfrmpy.ipsec.drift import Finding
from xfrmpy.ipsec.interfaces import InterfaceAddress, TunnelInterface
from xfrmpy.ipsec.overhead import inner_mtu
from xfrmpy.ipsec.sad import Direction, Mode, SadEntry
from xfrmpy.ipsec.spd import PolicyDirection

IF_ID = 7
ADDRESS = "169.254.10.1/30"
EAST = TunnelInterface(
    name="east",
    if_id=IF_ID,
    addresses=(InterfaceAddress(address=ip_address("169.254.10.1"), prefixlen=30),),
    routes=(ip_network("10.9.0.0/16"),),
)

BY_HAND = {
    "address": ("address", "del", ADDRESS, "dev", "east"),
    "down": ("link", "set", "east", "down"),
    "mtu": ("link", "set", "east", "mtu", "999"),
    "route": ("route", "del", "10.9.0.0/16"),
    "removed": ("link", "del", "east"),
}
"""What somebody types after `ip`."""


def outbound(spi_bits: int, if_id: int = IF_ID) -> SadEntry:
    inbound = sad_entry(spi_bits, if_id=if_id)
    return replace(
        inbound,
        direction=Direction.OUT,
        spi=0x7654321,
        source=inbound.destination,
        destination=inbound.source,
    )


def link(namespace: str, name: str = "east") -> dict[str, Any]:
    found = json.loads(run("ip", "-n", namespace, "-json", "-d", "addr", "show") or "[]")
    return next((each for each in found if each.get("ifname") == name), {})


class InterfaceContract:
    """See the module."""

    @pytest.fixture
    def datapath(self, gateway: object, open_datapath: OpenDatapath) -> Iterator[Datapath]:
        del gateway
        with closing(open_datapath()) as opened:
            opened.remove_ours()
            opened.interfaces.keep_only(())
            yield opened
            opened.remove_ours()
            opened.interfaces.keep_only(())

    def test_policies_of_interfaces_are_apart(self, gateway: str, datapath: Datapath) -> None:
        plain = [spd_entry(direction) for direction in PolicyDirection]
        others = [replace(entry, if_id=n) for n in (IF_ID, 8) for entry in plain]
        datapath.add(others)
        assert "10.2.0.0" not in run("ip", "-n", gateway, "route", "show", "table", "all")
        datapath.add(plain)
        assert set(datapath.dump().spd) == {*plain, *others}
        assert "10.2.0.0" in run("ip", "-n", gateway, "route", "show", "table", str(OUR_TABLE))
        for entry in others[:3]:
            datapath.remove_policy(entry)
        assert set(datapath.dump().spd) == {*plain, *others[3:]}
        for entry in plain:
            datapath.remove_policy(entry)
        assert set(datapath.dump().spd) == {*others[3:]}

    def test_an_sa_keeps_its_interface(self, datapath: Datapath, spi_bits: int) -> None:
        entries = {sad_entry(spi_bits, if_id=0xFFFFFFFF), outbound(spi_bits)}
        datapath.add([*entries])
        assert set(datapath.dump().sad) == entries

    def test_an_interface_comes_and_goes(self, gateway: str, datapath: Datapath) -> None:
        assert datapath.interfaces.state(IF_ID) is None
        datapath.interfaces.set(EAST)
        state = datapath.interfaces.state(IF_ID)
        assert state is not None
        assert (state.name, state.is_up, state.is_adopted) == ("east", True, False)
        assert ADDRESS in run("ip", "-n", gateway, "-brief", "address", "show", "dev", "east")
        assert "10.9.0.0/16 dev east" in run("ip", "-n", gateway, "route")
        assert findings(datapath) == []
        datapath.interfaces.remove(IF_ID)
        assert link(gateway) == {}
        datapath.interfaces.remove(IF_ID)
        assert datapath.interfaces.state(IF_ID) is None

    def test_an_interface_is_changed_where_it_is(self, gateway: str, datapath: Datapath) -> None:
        datapath.interfaces.set(EAST)
        index = link(gateway)["ifindex"]
        datapath.interfaces.set(replace(EAST, addresses=(), routes=(), mtu=1300))
        found = link(gateway)
        assert (found["ifindex"], found["mtu"], found["addr_info"]) == (index, 1300, [])
        assert "east" not in run("ip", "-n", gateway, "route")

    def test_its_mtu_is_what_fits_through_its_sas(
        self, gateway: str, datapath: Datapath, spi_bits: int
    ) -> None:
        datapath.interfaces.set(EAST)
        datapath.add([outbound(spi_bits)])
        wanted = inner_mtu(
            1500, GCM, outer_version=4, encapsulated=bool(spi_bits), mode=Mode.TUNNEL
        )
        assert link(gateway)["mtu"] == wanted
        run("ip", "-n", gateway, "route", "add", f"{OUTER[4][1]}/32", "dev", "wan", "mtu", "1400")
        try:
            for amiss in datapath.find_amiss():
                assert amiss.finding is Finding.PATH_CHANGED
                datapath.mend(amiss)
            assert link(gateway)["mtu"] < wanted
        finally:
            run("ip", "-n", gateway, "route", "del", f"{OUTER[4][1]}/32", "dev", "wan")

    @pytest.mark.parametrize("name", BY_HAND)
    def test_what_others_do_to_it_is_told_and_mended(
        self, gateway: str, datapath: Datapath, name: str
    ) -> None:
        datapath.interfaces.set(EAST)
        await_calm(datapath)
        run("ip", "-n", gateway, *BY_HAND[name])
        assert is_told(datapath)
        assert Realm.WAYS in datapath.read_changes()
        assert {*findings(datapath)} <= {Finding.INTERFACE_MISSING, Finding.INTERFACE_CHANGED}
        assert findings(datapath)
        for amiss in datapath.find_amiss():
            datapath.mend(amiss)
        assert findings(datapath) == []
        assert ADDRESS in run("ip", "-n", gateway, "-brief", "address", "show", "dev", "east")
        assert "10.9.0.0/16 dev east" in run("ip", "-n", gateway, "route")

    def test_another_process_goes_on_with_it(
        self, gateway: str, datapath: Datapath, open_datapath: OpenDatapath
    ) -> None:
        datapath.interfaces.set(EAST)
        datapath.interfaces.set(replace(EAST, name="west", if_id=8, addresses=(), routes=()))
        before = link(gateway)
        with closing(open_datapath()) as another:
            another.interfaces.keep_only({IF_ID})
            assert link(gateway, "west") == {}
            another.interfaces.set(EAST)
            assert link(gateway)["ifindex"] == before["ifindex"]
            assert findings(another) == []
            another.interfaces.keep_only(())
            assert link(gateway) == {}

    def test_the_name_of_another_device_is_refused_until_it_is_free(
        self, gateway: str, datapath: Datapath
    ) -> None:
        run("ip", "-n", gateway, "link", "add", "east", "type", "bridge")
        try:
            with pytest.raises(DatapathError, match="bridge"):
                datapath.interfaces.set(EAST)
            assert link(gateway)["linkinfo"]["info_kind"] == "bridge"
            assert findings(datapath) == [Finding.INTERFACE_MISSING]
        finally:
            run("ip", "-n", gateway, "link", "del", "east")
        for amiss in datapath.find_amiss():
            datapath.mend(amiss)
        assert findings(datapath) == []
