"""A daemon is restarted, as an upgrade does it: the peer notices nothing, and no packet is lost.

Its policy may have changed meanwhile; then the next daemon does what `apply` would have done. And
whatever happens to a daemon, what is protected is never on the wire in clear.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import unanswered
from integration.lab.process import eventually
from integration.lab.site import Site

pytestmark = [pytest.mark.native, pytest.mark.vm]

COUNT = 3


def pair(site: Site, **keys: Any) -> tuple[XfrmpyGateway, XfrmpyGateway]:
    """Tunnels between moon and sun, all up."""
    tunnels = [site.network.tunnel(number) for number in range(COUNT)]
    theirs = site.xfrmpy(site.network.sun, *(tunnel.mirrored() for tunnel in tunnels))
    ours = site.xfrmpy(site.network.moon, *tunnels, **keys)
    for number in range(COUNT):
        site.connect(ours, theirs, number)
    return ours, theirs


def reqids(gateway: XfrmpyGateway) -> list[str]:
    """What the datapath finds the SAs of the kernel by; they tell nothing in user space."""
    listed = gateway.host.run("ip", "xfrm", "policy")
    return sorted(word for word in listed.split() if word.startswith("0x5846"))


@pytest.mark.parametrize("keys", [{}, {"start": "auto"}], ids=["manual", "auto"])
def test_a_restart_is_noticed_by_nobody(site: Site, keys: dict[str, str]) -> None:
    ours, theirs = site.beside_strongswan(**keys)
    before = ours.spis()
    said = theirs.log.count("[ENC] parsed")
    with site.network.alice.pinging(site.network.bob.inside_address(), site.log):
        for _ in range(2):
            ours.be_relieved()
            ours.start_again()
            assert ours.spis() == before
    assert unanswered(site.log) == []
    assert theirs.log.count("[ENC] parsed") == said
    assert "leaving every SA to the next daemon" in ours.log
    ours.rekey()
    site.assert_protected()
    ours.terminate()
    eventually("the peer to be told", lambda: not theirs.is_up())


def test_a_policy_that_changed_meanwhile_is_followed_as_apply_would(site: Site) -> None:
    """Hot, rekey, one that takes the tunnel down; and one more, whose hash may be another's."""
    ours, theirs = pair(site)
    before, named = ours.spis(), reqids(ours)
    with site.network.alice.pinging(site.network.bob.inside_address(), site.log):
        ours.be_relieved()
        ours.change(0, dpd="7s")
        ours.start_again()
        assert ours.spis() == before
        ours.be_relieved()
        esp = yaml.safe_load((ours.policies / "net0.yaml").read_text())["esp"]
        ours.change(0, esp={**esp, "replay_window": 512})
        ours.start_again()
        eventually("it to follow", lambda: ours.spis()["net0"][1] != before["net0"][1])
        eventually("one to stay", lambda: len(ours.spis()["net0"][1]) == 1)
    assert unanswered(site.log) == []
    assert ours.spis()["net0"][0] == before["net0"][0]
    ours.be_relieved()
    ours.change(1, encapsulation="auto", local_address=None)
    (ours.policies / "net2.yaml").unlink()
    ours.start_again()
    eventually("the tunnel to come again", lambda: ours.is_up(1))
    eventually("the other to be gone", lambda: not theirs.is_up(2))
    assert ours.spis()["net1"][0] != before["net1"][0]
    assert ours.command("plan", "--detailed-exitcode").code == 0
    assert {*reqids(ours)} <= {*named}
    site.assert_protected(0)
    site.assert_protected(1)


def test_another_key_is_proved_by_the_next_daemon_before_the_old_ike_sa_goes(site: Site) -> None:
    ours, theirs = pair(site)
    before = ours.spis()
    with site.network.alice.pinging(site.network.bob.inside_address(), site.log):
        for gateway in (theirs, ours):
            gateway.be_relieved()
            (gateway.policies.parent / "secrets/net0").write_text("the key of the next year\n")
            gateway.start_again()
        eventually("another IKE SA", lambda: ours.spis()["net0"][0] != before["net0"][0], 60)
        eventually("the old one to go", lambda: ours.is_up() and theirs.is_up())
    assert unanswered(site.log) == []
    assert {name: ours.spis()[name] for name in ("net1", "net2")} == {
        name: before[name] for name in ("net1", "net2")
    }
    site.assert_protected()


def test_nothing_is_in_clear_while_daemons_come_and_go_and_policies_change(site: Site) -> None:
    """Of both address families; and as nothing is lost, everything was protected."""
    net = site.network
    tunnels = [net.tunnel(0), net.tunnel(1, inside=6)]
    theirs = site.xfrmpy(net.sun, *(tunnel.mirrored() for tunnel in tunnels))
    ours = site.xfrmpy(net.moon, *tunnels)
    for number in range(len(tunnels)):
        site.connect(ours, theirs, number)
    for name, happen in HAPPENINGS.items():
        logs = [site.directory / f"{name}-{version}.log" for version in (4, 6)]
        with (
            site.capture() as wire,
            net.alice.pinging(net.bob.inside_address(), logs[0]),
            net.bob.pinging(net.alice.inside_address(1, 6), logs[1]),
        ):
            happen(ours, theirs)
            net.alice.await_answer(net.bob.inside_address())
            net.bob.await_answer(net.alice.inside_address(1, 6))
        print(f"{name}: {wire.kinds}")
        assert wire.kinds["clear"] == 0, name
        assert wire.protected > 0, name
        assert [unanswered(log) for log in logs] == [[], []], name


def _crash(*gateways: XfrmpyGateway) -> None:
    for gateway in gateways:
        gateway.crash()
        gateway.start_again()


def _restart(*gateways: XfrmpyGateway) -> None:
    for gateway in gateways:
        gateway.be_relieved()
        gateway.start_again()


def _apply_hot(ours: XfrmpyGateway, _theirs: XfrmpyGateway) -> None:
    ours.change(dpd="7s")
    _apply(ours)


def _apply_rekey(ours: XfrmpyGateway, _theirs: XfrmpyGateway) -> None:
    for number in range(2):
        esp = yaml.safe_load((ours.policies / f"net{number}.yaml").read_text())["esp"]
        ours.change(number, esp={**esp, "replay_window": 512})
    _apply(ours)


def _apply_reauth(ours: XfrmpyGateway, theirs: XfrmpyGateway) -> None:
    for gateway in (theirs, ours):
        for number in range(2):
            secret = gateway.policies.parent / f"secrets/net{number}"
            secret.write_text("the key of the next year\n")
    _apply(theirs, "--allow-pending", "--timeout", "5")
    _apply(ours)


def _apply(gateway: XfrmpyGateway, *options: str) -> None:
    answer = gateway.command("apply", *options)
    assert answer.code == 0, answer


HAPPENINGS: dict[str, Callable[[XfrmpyGateway, XfrmpyGateway], None]] = {
    "kill -9": _crash,
    "restart": _restart,
    "hot": _apply_hot,
    "rekey": _apply_rekey,
    "reauth": _apply_reauth,
}


def test_what_came_to_be_confirmed_does_not_outlive_the_daemon(site: Site, tmp_path: Path) -> None:
    """Its file is not kept yet, so the next daemon reads the one before."""
    ours, _ = pair(site)
    before = ours.spis()
    file = tmp_path / "net0.yaml"
    file.write_text((ours.policies / "net0.yaml").read_text() + "dpd: 11s\n")
    assert ours.command("apply", str(file), "--confirm", "600s").code == 0
    assert "Nothing to change" in ours.command("plan", str(file)).output
    ours.crash()
    ours.start_again()
    assert "Nothing to change" in ours.command("plan").output
    assert "dpd: 30 s -> 11 s" in ours.command("plan", str(file)).output
    assert ours.command("confirm").code == 1
    assert ours.spis() == before
