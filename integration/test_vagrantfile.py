"""The Vagrantfile is one, and the laboratory becomes what it draws by the playbook that it names.

No machine of it is booted: there is no hypervisor where these tests run. Natively its gateways are
containers with a systemd of their own, and its hosts network namespaces.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.lab.fleet import SYSTEM_PYTHON, Controller, changed, good
from integration.lab.process import LAB, Background, eventually, run
from integration.lab.site import Site
from integration.lab.systemd import PYTHON, Machine
from integration.lab.tunnel import End

CHECKOUT = LAB.parents[1]
VAGRANTFILE = (CHECKOUT / "Vagrantfile").read_text()
PLAYBOOK = LAB / "vagrant.yml"
INSIDE_VENUS = "10.3.0.1"
LIBIPSEC = {"/etc/strongswan.d/charon/kernel-libipsec.conf": "kernel-libipsec { load = 10 }\n"}
CLASSIC = {"esp": "aes256gcm16-noesn"}
"""Natively strongSwan has ESP of its own, which knows no ESN."""


@pytest.mark.native
def test_vagrant_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    validate = ("vagrant", "validate", "--ignore-provider")
    places = (f"VAGRANT_HOME={tmp_path}/home", f"VAGRANT_DOTFILE_PATH={tmp_path}/dot")
    done = run("env", *places, f"VAGRANT_CWD={CHECKOUT}", *validate, seconds=120)
    assert "Vagrantfile validated successfully." in done.stdout


@pytest.mark.native
def test_its_networks_are_those_of_the_laboratory() -> None:
    with Site(with_venus=True) as site:
        network = site.network
    drawn = VAGRANTFILE.partition("Vagrant.configure")[0]
    venus = network.venus
    assert venus is not None
    assert f"{venus.outside[4]} {venus.name} (strongSwan), with {INSIDE_VENUS}" in drawn
    for host in (network.moon, network.sun):
        assert re.search(
            rf"\b{host.outside[4]} {host.name}\b|\b{host.name} {host.outside[4]} ", drawn
        )
    for host in (network.alice, network.bob):
        assert re.search(
            rf"{host.name} {host.inside_address()} |{host.inside_address()} {host.name}", drawn
        )
        assert host.inside_address() in PLAYBOOK.read_text()


@pytest.mark.native
def test_the_playbook_that_it_names_is_for_its_groups() -> None:
    (named,) = re.findall(r'ansible\.playbook = "(.*)"', VAGRANTFILE)
    assert CHECKOUT / named == PLAYBOOK
    (groups,) = re.findall(r"ansible\.groups = \{(.*)\}", VAGRANTFILE)
    plays = yaml.safe_load(PLAYBOOK.read_text())
    assert {play["hosts"] for play in plays} == {*re.findall(r'"([a-z]+)" =>', groups)}


@pytest.mark.native
def test_the_playbook_makes_of_the_laboratory_what_the_vagrantfile_draws() -> None:
    """Each gateway is a host of its own, under systemd; Debian's packages are there already."""
    with ExitStack() as stack:
        site = stack.enter_context(Site(with_venus=True))
        groups = inventory(site, stack)
        controller = Controller(site.directory)
        playbook = site.directory / "integration/lab/vagrant.yml"
        playbook.parent.mkdir(parents=True)
        shutil.copy(PLAYBOOK, playbook)
        made = good(controller.play_file(playbook, groups, arguments()))
        assert changed(made) == {"moon", "sun", "venus"}
        assert_protected(site)
        assert changed(good(controller.play_file(playbook, groups, arguments()))) == set()


def arguments() -> tuple[str, ...]:
    """From the laboratory no registry and no mirror is reached: what is installed stays."""
    variables = {"gateway_package": "", "venus_tunnel": venus_tunnel() | CLASSIC}
    return "--skip-tags", "packages", "--extra-vars", json.dumps(variables)


def venus_tunnel() -> dict[str, Any]:
    """Moon's policy for it."""
    plays = yaml.safe_load(PLAYBOOK.read_text())
    return next(play["vars"]["venus_tunnel"] for play in plays if "vars" in play)


Groups = dict[str, dict[str, dict[str, Any]]]


def inventory(site: Site, stack: ExitStack) -> Groups:
    """The Vagrantfile's, with the ways there; what runs there ends with the stack."""
    network = site.network
    assert network.venus is not None

    def way(leader: int, python: str) -> dict[str, Any]:
        return {
            "ansible_connection": "namespace",
            "ansible_user": "root",
            "ansible_python_interpreter": python,
            "namespace_leader": leader,
        }

    groups: Groups = {"gateways": {}, "strongswan": {}, "hosts": {}}
    for host in (network.moon, network.sun, network.venus):
        place = site.directory / f"machine-{host.name}"
        place.mkdir()
        files = LIBIPSEC if host is network.venus else {}
        machine = stack.enter_context(Machine(host, place, files))
        machine.must("mount", "-o", "remount,rw,bind", "/proc/sys")  # As on a host of its own.
        group = "strongswan" if host is network.venus else "gateways"
        groups[group][host.name] = way(machine.leader, PYTHON)
    for host in (network.alice, network.bob):
        log = site.directory / f"{host.name}.log"
        sleep = Background(host.command("sleep", "infinity"), log)
        stack.callback(sleep.process.wait)
        stack.callback(sleep.process.kill)
        groups["hosts"][host.name] = way(sleep.process.pid, SYSTEM_PYTHON)
    return groups


@pytest.mark.vm
def test_every_site_reaches_every_other() -> None:
    """The Vagrantfile's topology in the emulated machine, where Ansible would take ten minutes."""
    with Site(with_venus=True) as site:
        net = site.network
        assert net.venus is not None
        tunnel, policy = net.tunnel(), venus_tunnel()
        venus = End(
            address=net.venus.outside[4],
            public=policy["peer"],
            id=policy["peer_id"],
            subnets=(policy["remote"],),
        )
        moon = replace(tunnel.ours, id=policy["id"], subnets=(policy["local"],))
        third = replace(tunnel, ours=moon, theirs=venus)
        theirs = site.strongswan(net.venus, third.mirrored())
        other = site.xfrmpy(net.sun, tunnel.mirrored())
        ours = site.xfrmpy(net.moon, tunnel, third)
        site.connect(ours, other)
        ours.initiate(1)
        eventually("venus to be up", theirs.is_up)
        assert_protected(site)


def assert_protected(site: Site) -> None:
    """Hosts reach the other sites, and nothing of it is seen on the way."""
    alice, bob = site.network.alice, site.network.bob
    with site.capture() as wire:
        assert alice.ping(bob.inside_address()) == 0
        assert bob.ping(alice.inside_address()) == 0
        assert alice.ping(INSIDE_VENUS) == 0
    assert wire.protected >= 18
    assert wire.kinds["clear"] == 0
