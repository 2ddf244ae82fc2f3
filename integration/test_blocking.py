"""`on_down: block`: not one packet of a tunnel in clear, whatever becomes of the daemon.

The wire is captured from before there is a daemon until after there is one, while hosts send.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from integration.lab.capture import Capture
from integration.lab.gateway import XFRMPY, XfrmpyGateway
from integration.lab.network import Host, subnet
from integration.lab.process import Background, eventually
from integration.lab.site import Site
from integration.userspace.place import end_workers


def gateways(site: Site, on_down: str = "block") -> tuple[XfrmpyGateway, XfrmpyGateway]:
    tunnel = site.network.tunnel()
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored())
    return site.xfrmpy(site.network.moon, tunnel, on_down=on_down), theirs


@contextmanager
def sending(site: Site, directory: Path) -> Iterator[None]:
    """Alice sends to bob all the while, twenty packets a second, answered or not."""
    bob = site.network.bob.inside_address()
    log = directory / "sending.log"
    ping = Background(site.network.alice.command("ping", "-n", "-i", "0.05", bob), log)
    try:
        yield
        assert ping.process.poll() is None, ping.output
    finally:
        ping.process.kill()
        ping.process.wait()


def lose_everything(gateway: XfrmpyGateway) -> None:
    """What a reboot takes away: processes, the runtime directory, what is in the kernel."""
    gateway.crash()
    end_workers(gateway.runtime.parent)
    shutil.rmtree(gateway.runtime, ignore_errors=True)  # A worker may be taking its socket away.
    for what in ("state", "policy"):
        gateway.host.run("ip", "xfrm", what, "flush")
    gateway.host.run("nft", "flush", "ruleset")


def leaves(wire: Capture) -> bool:
    return bool(wire.kinds["clear"])


def watched(site: Site) -> Capture:
    """A second of what is sent."""
    with site.capture() as wire:
        run_for_a_second(site.network.alice)
    return wire


def run_for_a_second(host: Host) -> None:
    host.run("ping", "-n", "-c", "10", "-i", "0.1", "-W", "1", host.inside_address())


@pytest.mark.native
@pytest.mark.vm
def test_nothing_goes_in_clear_from_boot_to_the_end(site: Site, tmp_path: Path) -> None:
    ours, _ = gateways(site)
    lose_everything(ours)
    with sending(site, tmp_path):
        assert leaves(watched(site)), "the capture would not see it"
        assert ours.command("block").code == 0
        with site.capture() as wire:
            run_for_a_second(site.network.alice)
            ours.start_again()
            run_for_a_second(site.network.alice)
            ours.initiate()
            assert site.network.alice.ping(site.network.bob.inside_address()) == 0
            ours.crash()
            run_for_a_second(site.network.alice)
            ours.start_again()
            ours.rekey()
            ours.terminate()
            run_for_a_second(site.network.alice)
            ours.initiate()
            ours.stop()
            run_for_a_second(site.network.alice)
        assert wire.protected
        assert not leaves(wire), wire.kinds


@pytest.mark.native
@pytest.mark.vm
def test_nothing_comes_in_in_clear(site: Site) -> None:
    """From the internet, with the address of somebody whom the tunnel should protect."""
    internet, alice = site.network.internet, site.network.alice
    ours, _ = gateways(site)
    forger = site.network.bob.inside_address().rpartition(".")[0] + ".99"
    internet.batch(f"addr add {forger}/32 dev br0", f"route add {subnet(1)} via 192.0.2.1")
    alice.run(
        "nft", "add table inet lab; add chain inet lab in { type filter hook input priority 0; }"
    )
    alice.run("nft", f"add rule inet lab in ip saddr {forger} counter")

    def forge() -> int:
        ping = ("ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", "-I", forger)
        internet.run(*ping, alice.inside_address(), check=False)
        found = re.search(
            r"counter packets (\d+)", alice.run("nft", "list", "table", "inet", "lab")
        )
        assert found
        return int(found[1])

    assert forge() == 0
    ours.initiate()
    assert forge() == 0
    assert site.network.alice.ping(site.network.bob.inside_address()) == 0
    lose_everything(ours)
    assert forge() == 3, "it would not have arrived anyway"
    ours.start_again()


@pytest.mark.native
def test_a_changed_policy_blocks_and_lifts_by_apply(site: Site, tmp_path: Path) -> None:
    ours, _ = gateways(site, on_down="clear")
    file = ours.policies / "net0.yaml"
    policy = yaml.safe_load(file.read_text())
    with sending(site, tmp_path):
        assert leaves(watched(site))
        file.write_text(yaml.safe_dump({**policy, "on_down": "block"}))
        assert ours.command("apply").code == 0
        assert not leaves(watched(site))
        file.write_text(yaml.safe_dump({**policy, "on_down": "clear"}))
        assert ours.command("apply").code == 0
        assert leaves(watched(site))


@pytest.mark.native
def test_a_policy_with_a_mistake_lifts_nothing(site: Site) -> None:
    ours, _ = gateways(site)
    before = blocked(ours)
    (ours.policies / "net0.yaml").write_text("peer: [\n")
    answer = ours.command("block")
    assert (answer.code, "XF1001" in answer.errors) == (65, True)
    ours.crash()
    ours.start_again()
    assert before <= blocked(ours)


@pytest.mark.native
@pytest.mark.parametrize("command", ["flush ruleset", "flush table inet xfrmpy-block"])
def test_what_somebody_takes_away_is_put_back(site: Site, command: str) -> None:
    ours, _ = gateways(site)
    before = rules(ours)
    ours.host.run("nft", command)
    eventually("it to be back", lambda: rules(ours) == before, seconds=1)
    told = ours.command("log", "-o", "json").output
    assert told.count('"block-restored"') == 1


def rules(gateway: XfrmpyGateway) -> str:
    return gateway.host.run("nft", "list", "table", "inet", "xfrmpy-block", check=False)


@pytest.mark.native
def test_a_secret_that_is_not_there_yet_blocks_all_the_same(site: Site) -> None:
    ours, _ = gateways(site)
    before = blocked(ours)
    lose_everything(ours)
    (ours.policies.parent / "secrets" / "net0").unlink()
    assert ours.command("block").code == 65
    assert blocked(ours) == before
    ours.start_again()


def blocked(gateway: XfrmpyGateway) -> set[str]:
    table = gateway.host.run("nft", "list", "table", "inet", "xfrmpy-block")
    found = set(re.findall(r"elements = { (.*?) }", table, re.DOTALL))
    assert found
    return found


@pytest.mark.native
@pytest.mark.vm
def test_ike_and_esp_pass_where_the_gateways_themselves_are_blocked(site: Site) -> None:
    """Tunnel mode between the gateways' own addresses, and what else they say is not in clear."""
    net = site.network
    ends = {"local": [f"{net.moon.outside[4]}/32"], "remote": [f"{net.sun.outside[4]}/32"]}
    mirrored = {"local": ends["remote"], "remote": ends["local"]}
    tunnel = net.tunnel()
    theirs = site.xfrmpy(net.sun, tunnel.mirrored(), on_down="block", **mirrored)
    ours = site.xfrmpy(net.moon, tunnel, on_down="block", **ends)
    with site.capture() as wire:
        assert net.moon.ping(net.sun.outside[4]) == 3
        site.connect(ours, theirs)
        assert net.moon.ping(net.sun.outside[4]) == 0
    assert wire.protected == 6
    assert not leaves(wire)


@pytest.mark.native
@pytest.mark.parametrize("family", [4, 6])
def test_fragments_do_not_pass_because_they_have_no_ports(site: Site, family: int) -> None:
    tunnel = site.network.tunnel(inside=family)
    ends = {"local": [*tunnel.ours.subnets], "remote": [f"{tunnel.theirs.subnets[0]}[udp/5000]"]}
    site.xfrmpy(site.network.moon, tunnel, on_down="block", **ends)
    bob = site.network.bob.inside_address(family=family)

    def leaks(port: int, octets: int) -> bool:
        kind = {4: "AF_INET", 6: "AF_INET6"}[family]
        sent = f"sendto(bytes({octets}), ({bob!r}, {port}))"
        program = f"import socket; socket.socket(socket.{kind}, socket.SOCK_DGRAM).{sent}"
        with site.capture() as wire:
            site.network.alice.run(sys.executable, "-c", program)
        return leaves(wire)

    assert leaks(5001, 100), "another port is not the tunnel's"
    assert not leaks(5000, 100)
    assert not leaks(5000, 4000)


@pytest.mark.native
def test_a_thousand_tunnels_are_blocked_in_one_go(site: Site) -> None:
    host, policies = site.network.moon, site.directory / "conf.d"
    policies.mkdir()
    (site.directory / "secrets").mkdir(mode=0o700)
    secret = site.directory / "secrets" / "k"
    secret.write_text("k" * 32)
    secret.chmod(0o600)
    tunnels = {
        f"t{n}": {
            "peer": "192.0.2.2",
            "psk": "secret:k",
            "local": "10.1.0.0/16",
            "remote": f"10.{100 + n // 256}.{n % 256}.0/24",
        }
        for n in range(1000)
    }
    text = yaml.safe_dump({"tunnels": tunnels, "defaults": {"on_down": "block"}})
    (policies / "all.yaml").write_text(text)
    environment = f"XFRMPY_CONFIG_PATH={policies}"
    host.run("env", environment, XFRMPY, "block")
    rules = host.run("nft", "list", "table", "inet", "xfrmpy-block")
    assert rules.count(" : drop") == 2000
    assert rules.count(" vmap @") == 2
    host.run("env", environment, XFRMPY, "block", "--lift")
    assert "xfrmpy-block" not in host.run("nft", "list", "tables")
