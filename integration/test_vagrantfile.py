"""The Vagrantfile is one, has the networks of the laboratory, and its playbook is one.

No machine is booted: there is no hypervisor where these tests run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from integration.lab.fleet import COLLECTION
from integration.lab.gateway import XFRMPY
from integration.lab.process import LAB, run
from integration.lab.site import Site

pytestmark = pytest.mark.native

CHECKOUT = LAB.parents[1]
VAGRANTFILE = (CHECKOUT / "Vagrantfile").read_text()
PLAYBOOK = LAB / "vagrant.yml"


def test_vagrant_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    validate = ("vagrant", "validate", "--ignore-provider")
    places = (f"VAGRANT_HOME={tmp_path}/home", f"VAGRANT_DOTFILE_PATH={tmp_path}/dot")
    done = run("env", *places, f"VAGRANT_CWD={CHECKOUT}", *validate, seconds=120)
    assert "Vagrantfile validated successfully." in done.stdout


def test_its_networks_are_those_of_the_laboratory(site: Site) -> None:
    network = site.network
    drawn = VAGRANTFILE.partition("Vagrant.configure")[0]
    for host in (network.moon, network.sun):
        assert re.search(
            rf"\b{host.outside[4]} {host.name}\b|\b{host.name} {host.outside[4]} ", drawn
        )
    for host in (network.alice, network.bob):
        assert re.search(
            rf"{host.name} {host.inside_address()} |{host.inside_address()} {host.name}", drawn
        )
        assert host.inside_address() in PLAYBOOK.read_text()


def test_the_playbook_that_it_names_is_one_for_its_groups(tmp_path: Path) -> None:
    (named,) = re.findall(r'ansible\.playbook = "(.*)"', VAGRANTFILE)
    assert CHECKOUT / named == PLAYBOOK
    (groups,) = re.findall(r"ansible\.groups = \{(.*)\}", VAGRANTFILE)
    plays = yaml.safe_load(PLAYBOOK.read_text())
    assert {play["hosts"] for play in plays} == {*re.findall(r'"([a-z]+)" =>', groups)}
    collections = tmp_path / "ansible_collections/xfrmpy"
    collections.mkdir(parents=True)
    (collections / "gateway").symlink_to(COLLECTION)
    ansible = Path(XFRMPY).parent / "ansible-playbook"
    places = (f"ANSIBLE_COLLECTIONS_PATH={tmp_path}", f"ANSIBLE_HOME={tmp_path}/home")
    path = f"PATH={ansible.parent}{os.pathsep}{os.environ['PATH']}"
    run("env", *places, path, str(ansible), "--syntax-check", str(PLAYBOOK))
