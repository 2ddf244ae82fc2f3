"""A policy changes under a running gateway: what differs is touched, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from integration.lab.gateway import Answer, XfrmpyGateway
from integration.lab.network import subnet
from integration.lab.process import PATIENCE, eventually
from integration.lab.site import Site

pytestmark = [pytest.mark.native, pytest.mark.copied]
"""What a plan needs no datapath for is tested here alone."""

COUNT = 3


@pytest.fixture
def gateways(site: Site) -> tuple[XfrmpyGateway, XfrmpyGateway]:
    """Three tunnels between moon and sun, all up."""
    tunnels = [site.network.tunnel(number) for number in range(COUNT)]
    theirs = site.xfrmpy(site.network.sun, *(tunnel.mirrored() for tunnel in tunnels))
    ours = site.xfrmpy(site.network.moon, *tunnels)
    for number in range(COUNT):
        site.connect(ours, theirs, number)
    return ours, theirs


def planned(gateway: XfrmpyGateway, *argv: str) -> list[tuple[str, str, str]]:
    answer = gateway.command("plan", "-o", "json", *argv)
    assert answer.code == 0, answer
    changes = json.loads(answer.output)["changes"]
    return [(c["tunnel"], c["action"], c["impact"]) for c in changes]


def applied(gateway: XfrmpyGateway, *argv: str) -> Answer:
    answer = gateway.command("apply", *argv)
    assert answer.code == 0, answer
    return answer


@contextmanager
def no_ping_lost(site: Site) -> Iterator[None]:
    with site.network.alice.pinging(site.network.bob.inside_address(), site.log) as counts:
        yield
    sent, lost = counts
    assert sent
    assert lost == 0


@pytest.mark.vm
def test_nothing_changed_means_that_nothing_is_done(
    gateways: tuple[XfrmpyGateway, XfrmpyGateway],
) -> None:
    ours, _ = gateways
    before = ours.spis()
    assert planned(ours) == []
    assert ours.command("plan", "--detailed-exitcode").code == 0
    assert "Nothing changed" in applied(ours).output
    assert ours.spis() == before


@pytest.mark.vm
def test_each_change_has_its_impact_and_leaves_the_other_tunnels_alone(
    site: Site, gateways: tuple[XfrmpyGateway, XfrmpyGateway]
) -> None:
    ours, theirs = gateways
    before = ours.spis()
    with no_ping_lost(site):
        ours.change(dpd="7s")
        assert planned(ours) == [("net0", "update", "hot")]
        assert ours.command("plan", "--detailed-exitcode").code == 2
        applied(ours)
        assert ours.spis() == before

        esp = yaml.safe_load((ours.policies / "net0.yaml").read_text())["esp"]
        ours.change(esp={**esp, "replay_window": 512})
        assert planned(ours) == [("net0", "update", "rekey")]
        applied(ours)
        after = ours.spis()
        assert after["net0"][0] == before["net0"][0]
        assert after["net0"][1] != before["net0"][1]
    assert planned(ours) == []
    site.assert_protected()
    assert {name: after[name] for name in ("net1", "net2")} == {
        name: before[name] for name in ("net1", "net2")
    }
    assert theirs.is_up(1)
    assert theirs.is_up(2)


@pytest.mark.vm
def test_another_key_is_proved_before_the_old_ike_sa_goes(
    site: Site, gateways: tuple[XfrmpyGateway, XfrmpyGateway]
) -> None:
    ours, theirs = gateways
    before = ours.spis()["net0"]
    with no_ping_lost(site):
        for gateway in (theirs, ours):
            (gateway.policies.parent / "secrets/net0").write_text("the key of the next year\n")
        assert planned(ours) == [("net0", "update", "reauth")]
        # One end first: the other does not know the key yet, so all is as it was.
        refused = ours.command("apply")
        assert refused.code == 5
        assert "XF2005" in refused.errors
        assert "taken back" in refused.errors
        assert ours.spis()["net0"] == before
        applied(theirs, "--allow-pending")
        assert ours.spis()["net0"] == before
        applied(ours)
    assert ours.spis()["net0"][0] != before[0]
    site.assert_protected()


@pytest.mark.vm
def test_tunnels_come_and_go_with_their_files(
    site: Site, gateways: tuple[XfrmpyGateway, XfrmpyGateway]
) -> None:
    ours, theirs = gateways
    before = ours.spis()
    (ours.policies / "net2.yaml").rename(ours.policies / "later.yaml")
    assert planned(ours) == [("net2", "delete", "replace"), ("later", "create", "hot")]
    applied(ours)
    eventually("the other end to be down", lambda: not theirs.is_up(2))
    assert ours.command("up", "later").code == 0
    assert {name: ours.spis()[name] for name in ("net0", "net1")} == {
        name: before[name] for name in ("net0", "net1")
    }
    site.assert_protected(2)


@pytest.mark.vm
def test_other_traffic_is_carried_by_a_new_child_sa_and_nothing_goes_in_clear(
    site: Site, gateways: tuple[XfrmpyGateway, XfrmpyGateway]
) -> None:
    ours, theirs = gateways
    more = [subnet(2), subnet(2, 5)]
    bob = site.network.bob.inside_address()
    with site.capture() as wire, site.network.alice.pinging(bob, site.log):
        theirs.change(local=more)
        applied(theirs)
        ours.change(remote=more)
        applied(ours)
    assert wire.kinds["clear"] == 0
    site.assert_protected()
    assert ours.tunnel().children[-1].remote == more
    assert planned(ours) == []


def test_a_policy_with_an_error_changes_nothing(
    gateways: tuple[XfrmpyGateway, XfrmpyGateway],
) -> None:
    ours, _ = gateways
    before = ours.spis()
    ours.change(1, dpd="1h")
    ours.change(2, lokal=["10.1.0.0/16"])
    answer = ours.command("apply")
    assert answer.code == 65
    assert "net2.yaml" in answer.errors
    assert ours.spis() == before
    ours.change(2, lokal=None)
    assert planned(ours) == [("net1", "update", "hot")]


@pytest.mark.vm
def test_what_is_not_confirmed_is_taken_back_and_what_is_stays(
    gateways: tuple[XfrmpyGateway, XfrmpyGateway],
) -> None:
    ours, _ = gateways
    ours.change(dpd="9s")
    applied(ours, "--confirm", f"{2 * PATIENCE:g}s")
    assert ours.command("apply").code == 1  # One at a time.
    eventually("it to be taken back", lambda: planned(ours) == [("net0", "update", "hot")])
    assert ours.command("confirm").code == 1
    applied(ours, "--confirm", "120s")
    assert ours.command("confirm").code == 0
    assert planned(ours) == []
    assert ours.command("rollback").code == 0
    assert planned(ours) == [("net0", "update", "hot")]


def test_a_file_from_elsewhere_is_in_force_and_kept_when_confirmed(
    gateways: tuple[XfrmpyGateway, XfrmpyGateway], tmp_path: Path
) -> None:
    ours, _ = gateways
    file = tmp_path / "net1.yaml"
    there = ours.policies / "net1.yaml"
    old = there.read_text()
    file.write_text(old + "dpd: 11s\n")
    applied(ours, str(file), "--confirm", "120s")
    assert there.read_text() == old
    assert ours.command("confirm").code == 0
    assert there.read_text() == file.read_text()
    assert planned(ours) == []
    applied(ours, "--prune", str(file))
    assert [tunnel.name for tunnel in ours.status().tunnels] == ["net1"]
    assert [path.name for path in ours.policies.iterdir()] == ["net1.yaml"]


@pytest.mark.copied(False)  # It asks the kernel with which environment it began.
def test_a_change_that_would_cut_the_session_it_is_typed_in_is_refused(
    site: Site, gateways: tuple[XfrmpyGateway, XfrmpyGateway]
) -> None:
    """The session comes from bob, through the tunnel, to moon's address inside."""
    ours, _ = gateways
    bob = site.network.bob.inside_address()
    ours.environment["SSH_CONNECTION"] = f"{bob} 50000 10.1.0.1 22"
    before = ours.spis()
    ours.change(encapsulation="auto", local_address=None)
    assert planned(ours) == [("net0", "update", "replace")]
    refused = ours.command("apply")
    assert refused.code == 1
    assert "XF4022" in refused.errors
    assert ours.spis() == before
    assert "CUTS THE SESSION" in ours.command("plan").output
    applied(ours, "--accept-cut")
    assert ours.spis()["net0"] != before["net0"]
