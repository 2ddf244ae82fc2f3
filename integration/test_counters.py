"""What a Child SA has carried, and since when it is up: onwards only, through rekeying."""

from __future__ import annotations

import json
import re

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.site import Site
from xfrmpy.control.protocol import ChildSaStatus

pytestmark = [pytest.mark.native, pytest.mark.vm]

PINGS = 3


def child_of(gateway: XfrmpyGateway) -> ChildSaStatus:
    (child,) = gateway.tunnel().children
    return child


def in_metrics(gateway: XfrmpyGateway) -> tuple[int, int]:
    """Packets received and sent."""
    text = gateway.command("metrics").output
    found = dict(re.findall(r"\nxfrmpy_child_(received|sent)_packets_total\{.*\} (\d+)", text))
    return int(found["received"]), int(found["sent"])


def in_description(gateway: XfrmpyGateway) -> tuple[int, int]:
    document = json.loads(gateway.command("describe", "net0", "-o", "json").output)
    (child,) = document["tunnel"]["children"]
    return child["total_packets_in"], child["total_packets_out"]


def test_counters_and_age_of_a_child_go_through_rekeying_and_a_kill(site: Site) -> None:
    tunnel = site.network.tunnel()
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel)
    site.connect(ours, theirs)
    last = child_of(ours)
    for round_ in range(1, 4):
        assert site.network.alice.ping(site.network.bob.inside_address(), PINGS) == 0
        ours.rekey()
        now = child_of(ours)
        assert now.spi_in != last.spi_in
        assert now.packets_in < now.total_packets_in == PINGS * round_
        assert now.total_packets_out == PINGS * round_
        assert now.total_octets_in == now.total_octets_out == PINGS * round_ * 84
        assert now.total_seconds_up > last.total_seconds_up
        assert now.seconds_up < now.total_seconds_up
        last = now
    carried = (3 * PINGS, 3 * PINGS)
    assert in_metrics(ours) == in_description(ours) == carried

    assert site.network.alice.ping(site.network.bob.inside_address(), PINGS) == 0
    ours.crash()
    ours.start_again()
    assert child_of(ours).total_packets_in == PINGS, "of the SA that was in force"
    assert in_metrics(ours) == in_description(ours) == (PINGS, PINGS)
    ours.rekey()
    assert in_metrics(ours) == in_description(ours) == (PINGS, PINGS)
