"""Cryptography by a network device, asked for: done by one that can, and else refused and told."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from integration.contract.entries import OUTER, SUITES, sad_entry
from integration.contract.sites import run
from xfrmpy.datapath.interface import OffloadRefused
from xfrmpy.datapath.kernel.datapath import KernelDatapath
from xfrmpy.ipsec.sad import Direction, Offload, UdpEncapsulation

pytestmark = pytest.mark.vm

GCM = SUITES["aes128gcm16"]


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("udp", [None, UdpEncapsulation(4500, 4500)], ids=["esp", "udp"])
def test_where_no_device_does_it_the_kernel_does_and_it_is_told(
    datapath: KernelDatapath, direction: Direction, udp: UdpEncapsulation | None
) -> None:
    """Of ESP in UDP the kernel says that it cannot; of ESP it says nothing, and does it itself."""
    ends = OUTER[4] if direction is Direction.OUT else OUTER[4][::-1]
    entry = sad_entry(0, suite=GCM, direction=direction, source=ends[0], destination=ends[1])
    entry = replace(entry, encapsulation=udp, offload=Offload.CRYPTO)
    datapath.read_events()
    datapath.add([entry])
    (taken,) = datapath.dump().sad
    assert taken == entry
    assert taken.offload is None
    (refused,) = datapath.read_events()
    assert isinstance(refused, OffloadRefused)
    assert (refused.sa, refused.reqid) == (entry.id, entry.reqid)


def test_a_device_that_can_does_it(gateway: str, datapath: KernelDatapath) -> None:
    """The kernel's own simulation of a device, which knows AES-GCM with 128 bits."""
    subprocess.run(["modprobe", "-q", "netdevsim"], check=False)
    bus = Path("/sys/bus/netdevsim/new_device")
    if not bus.exists():
        pytest.skip("this kernel has no netdevsim")
    bus.write_text("77 1")
    try:
        devices = Path("/sys/bus/netdevsim/devices/netdevsim77/net")
        (device,) = (path.name for path in devices.iterdir())
        run("nsenter", "--net=/proc/1/ns/net", "ip", "link", "set", device, "netns", gateway)
        run("ip", "-n", gateway, "address", "add", "203.0.113.1/24", "dev", device)
        run("ip", "-n", gateway, "link", "set", device, "up")
        entry = sad_entry(
            0,
            suite=GCM,
            direction=Direction.OUT,
            source=ip_address("203.0.113.1"),
            destination=ip_address("203.0.113.2"),
            offload=Offload.CRYPTO,
        )
        datapath.read_events()
        datapath.add([entry])
        (taken,) = datapath.dump().sad
        assert taken.offload is Offload.CRYPTO
        assert datapath.read_events() == ()
        assert "crypto offload parameters" in run("ip", "-n", gateway, "xfrm", "state")
        datapath.remove_sa(entry.id)
    finally:
        Path("/sys/bus/netdevsim/del_device").write_text("77")
