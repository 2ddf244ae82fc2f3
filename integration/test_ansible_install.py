"""The role `gateway` under a real systemd: xfrmpy comes from wheels, and tunnels stay meanwhile."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from integration.lab.fleet import Controller, changed, good
from integration.lab.gateway import DATAPATH
from integration.lab.process import LAB, run
from integration.lab.site import Site
from integration.lab.systemd import Machine, policy_keys
from xfrmpy import __version__

pytestmark = pytest.mark.native

CHECKOUT = LAB.parents[1]
NEWER = "99.0"
INTERPRETER = "/usr/bin/python3"
UNITS = ("xfrmpyd.service", "xfrmpy-block.service")
ROLE = """
- hosts: gateways
  gather_facts: false
  roles: [xfrmpy.gateway.gateway]
"""


@pytest.mark.skipif(
    not Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}").exists(),
    reason="the wheels are for this Python, and this machine's own is another",
)
def test_a_gateway_that_sees_no_registry_is_installed_and_upgraded(
    site: Site, tmp_path: Path
) -> None:
    """Nothing but a Debian with its Python is there; its packets lead nowhere but to sun."""
    net, tunnel = site.network, site.network.tunnel()
    wheels = tmp_path / "wheels"
    first, newer = (build(tmp_path, version) for version in (__version__, NEWER))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--wheel-dir", str(wheels), str(first), seconds=300)
    site.xfrmpy(net.sun, tunnel.mirrored())
    host: dict[str, Any] = {
        "ansible_connection": "namespace",
        "ansible_python_interpreter": INTERPRETER,
        "gateway_wheels": str(wheels),
        "gateway_policies": {"net0": policy_keys(tunnel, DATAPATH)},
        "gateway_secrets": {"net0": tunnel.psk},
        "gateway_required": ["net0"],
    }
    controller = Controller(site.directory)
    place = site.directory / "machine"
    place.mkdir()
    with Machine(net.moon, place, {}, root=Path("/")) as machine:
        host["namespace_leader"] = machine.leader
        machine.must("mount", "-o", "remount,rw,bind", "/proc/sys")  # As on a host of its own.

        def play(*arguments: str) -> set[str]:
            return changed(good(controller.play(ROLE, {"moon": host}, arguments)))

        def process() -> str:
            return machine.shown("xfrmpyd", "MainPID")

        def spis() -> tuple[str, list[str]]:
            answer = machine.must("xfrmpy", "status", "net0", "-o", "json")
            (status,) = json.loads(answer)["tunnels"]
            return status["spi_i"], [child["spi_in"] for child in status["children"]]

        assert play("--check") == {"moon"}
        assert machine.run("ls", "/opt/xfrmpy").code != 0
        assert play() == {"moon"}
        assert machine.must("xfrmpy", "--version") == f"xfrmpy {__version__}\n"
        assert net.alice.ping(net.bob.inside_address()) == 0
        machine.must("xfrmpy", "describe", "net0")
        machine.await_active(*UNITS)
        for unit in UNITS:
            assert machine.shown(unit, "UnitFileState") == "enabled"
        assert machine.must("sysctl", "-n", "net.ipv4.ip_forward") == "1\n"
        assert machine.must("stat", "-c", "%a %U", "/etc/xfrmpy/secrets/net0") == "400 xfrmpy\n"

        before, daemon = spis(), process()
        host["gateway_policies"]["net0"]["dpd"] = "17s"
        assert play() == {"moon"}
        assert "17s" in machine.must("cat", "/etc/xfrmpy/conf.d/net0.yaml")
        machine.must("rm", f"/opt/xfrmpy/wheels/{first.name}")
        assert play() == set(), "what is installed is not brought again"
        assert (spis(), process()) == (before, daemon)

        (wheels / first.name).unlink()
        shutil.copy(newer, wheels)
        assert play("--check") == {"moon"}
        assert process() == daemon
        with net.alice.pinging(net.bob.inside_address(), site.log) as counts:
            assert play() == {"moon"}
        assert counts[1] == 0
        assert machine.must("xfrmpy", "--version") == f"xfrmpy {NEWER}\n"
        assert process() != daemon
        assert spis() == before

        shutil.copy(newer, wheels / f"xfrmpy-{__version__}-py3-none-any.whl")
        refused = controller.play(ROLE, {"moon": host})
        assert refused.code != 0
        assert "must have one wheel of xfrmpy" in refused.output


def build(directory: Path, version: str) -> Path:
    """A wheel of this checkout that calls itself a version."""
    source, made = directory / version, directory / f"{version}-made"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    for name in ("xfrmpy", "docs"):
        shutil.copytree(CHECKOUT / name, source / name)
    for name in ("pyproject.toml", "xfrmpy/__init__.py"):
        file = source / name
        file.write_text(file.read_text().replace(f'"{__version__}"', f'"{version}"', 1))
    command = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(made))
    run("env", f"--chdir={source}", *command, seconds=120)
    (wheel,) = made.glob("*.whl")
    return wheel
