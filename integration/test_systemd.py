"""Under a real systemd: boot, reload, watchdog, crash; as a user of its own, and never in clear."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from integration.lab.gateway import DATAPATH
from integration.lab.process import IN_VM, PATIENCE, Background, eventually, run
from integration.lab.site import Site
from integration.lab.systemd import PROGRAM, Machine, boot_files
from xfrmpy.cli.units import install_units

UNITS = ("xfrmpyd.service", "xfrmpy-block.service", "xfrmpy-tunnel@.service")
MOST_EXPOSED = 20
"""Tenths, of systemd's own scale of 0 to 10."""

WATCHDOG_SECONDS = 3 * PATIENCE
START_SECONDS = 180 * PATIENCE


def files(site: Site) -> dict[str, str]:
    patience = f"WatchdogSec={WATCHDOG_SECONDS}\nTimeoutStartSec={START_SECONDS}\n"
    return {
        **boot_files(site.network, DATAPATH),
        "/etc/systemd/system/xfrmpyd.service.d/lab.conf": f"[Service]\n{patience}",
    }


@contextmanager
def sending(site: Site, directory: Path) -> Iterator[None]:
    """Alice sends to bob all the while, answered or not."""
    bob = site.network.bob.inside_address()
    ping = site.network.alice.command("ping", "-n", "-i", "0.05", bob)
    sender = Background(ping, directory / "sending.log")
    try:
        yield
    finally:
        sender.process.kill()
        sender.process.wait()


def names(machine: Machine) -> tuple[str, list[str]]:
    """What the SAs of the tunnel are known by."""
    answer = machine.xfrmpy("status", "net0", "-o", "json")
    (tunnel,) = json.loads(answer.output)["tunnels"]
    return tunnel["spi_i"], [child["spi_in"] for child in tunnel["children"]]


def is_up(machine: Machine) -> bool:
    return machine.xfrmpy("status", "net0").code == 0


def process_of(machine: Machine) -> int:
    return int(machine.shown("xfrmpyd", "MainPID"))


@pytest.mark.native
@pytest.mark.vm
def test_a_host_boots_crashes_hangs_reloads_and_stops(site: Site, tmp_path: Path) -> None:
    """All of it natively. In the emulated machine, where a daemon starts in half a minute, what
    the kernel has a part in: the boot, in the units' sandbox, and what a crash leaves in force.
    """
    net = site.network
    site.xfrmpy(net.sun, net.tunnel().mirrored())
    bob = net.bob.inside_address()
    with sending(site, tmp_path):
        with site.capture() as wire:
            assert net.alice.ping(bob, 2) == 2
        assert wire.kinds["clear"], "the capture would not see it"
        net.moon.batch("link set wan down")
        with site.capture() as wire, Machine(net.moon, site.directory, files(site)) as machine:
            machine.await_active("xfrmpyd.service", "lab-dependent.service", seconds=120)
            machine.assert_booted_in_order()
            assert_runs_as_a_user_of_its_own(machine)
            assert net.alice.ping(bob) == 0
            with net.alice.pinging(bob, site.log) as counts:
                assert_survives_a_kill(machine)
                if not IN_VM:
                    assert_survives_a_hang_and_a_restart(machine)
                    assert_reloads(machine)
                    assert_others_may_look_at_most(machine)
            assert counts[1] == 0
            if DATAPATH == "userspace":
                assert_recovers_from_a_worker_that_hangs(machine)
                assert net.alice.ping(bob) == 0
            machine.must("systemctl", "stop", "xfrmpyd")
            net.alice.ping(bob)
        assert wire.protected
        assert wire.kinds["clear"] == 0, wire.kinds


def assert_runs_as_a_user_of_its_own(machine: Machine) -> None:
    user = machine.must("id", "-u", "xfrmpy").strip()
    assert user != "0"
    control = machine.shown("xfrmpyd", "ControlGroup")
    processes = ("ps", "-o", "uid=,args=", "-u", "xfrmpy")
    eventually(
        f"two processes in {control}", lambda: len(machine.must(*processes).splitlines()) == 2
    )
    admin_raw_and_bind = 1 << 12 | 1 << 13 | 1 << 10
    status = machine.must("cat", f"/proc/{process_of(machine)}/status")
    for which in ("Prm", "Eff", "Bnd", "Amb"):
        assert f"Cap{which}:\t{admin_raw_and_bind:016x}" in status
    assert "NoNewPrivs:\t1" in status
    secret = machine.must("stat", "-c", "%U %a", "/etc/xfrmpy/secrets/net0")
    assert secret == "xfrmpy 400\n"
    assert "fe80" not in machine.must("ip", "-6", "addr", "show", "to", "fe80::/10", "type", "tun")
    kept = machine.must("ls", "/run/xfrmpy")
    assert "store.db" in kept
    assert "store-key" not in kept, "the kernel keeps it"


def assert_others_may_look_at_most(machine: Machine) -> None:
    refused = machine.run("setpriv", "--reuid=nobody", "--clear-groups", PROGRAM, "status")
    assert refused.code == 77
    groups = ("--regid=nogroup", "--groups=xfrmpy")
    member = ("setpriv", "--reuid=nobody", *groups, PROGRAM)
    assert machine.run(*member, "status", "net0").code == 0
    assert machine.run(*member, "down", "net0").code == 77
    assert machine.run(*member[:-1], "cat", "/etc/xfrmpy/secrets/net0").code != 0


def assert_reloads(machine: Machine) -> None:
    file = "/etc/xfrmpy/conf.d/net0.yaml"
    policy = yaml.safe_load(machine.must("cat", file))
    before = names(machine)
    machine.write(file, yaml.safe_dump({**policy, "dpd": "17s"}))
    assert machine.xfrmpy("plan", "--detailed-exitcode").code == 2
    machine.must("systemctl", "reload", "xfrmpyd")
    assert machine.xfrmpy("plan", "--detailed-exitcode").code == 0
    assert "17" in machine.xfrmpy("describe", "net0").output
    machine.write(file, "peer: [\n")
    assert machine.run("systemctl", "reload", "xfrmpyd").code != 0
    machine.write(file, yaml.safe_dump(policy))
    assert machine.xfrmpy("apply").code == 0, "by root, to a daemon that is not"
    assert names(machine) == before


def assert_survives_a_kill(machine: Machine) -> None:
    """Systemd starts another daemon, which has the same SAs."""
    before, process = names(machine), process_of(machine)
    machine.must("systemctl", "kill", "--kill-who=main", "--signal=KILL", "xfrmpyd")
    await_another(machine, process)
    assert machine.shown("xfrmpyd", "NRestarts") == "1"
    assert names(machine) == before
    assert machine.shown("lab-dependent", "ActiveState") == "active"


def assert_survives_a_hang_and_a_restart(machine: Machine) -> None:
    before, process = names(machine), process_of(machine)
    machine.must("kill", "-STOP", str(process))
    process = await_another(machine, process)
    assert machine.shown("xfrmpyd", "NRestarts") == "2"
    assert names(machine) == before
    machine.must("systemctl", "restart", "xfrmpyd")
    assert process_of(machine) != process
    assert names(machine) == before


def assert_recovers_from_a_worker_that_hangs(machine: Machine) -> None:
    """The daemon is not well without it, and is started anew with another: the SAs are new ones."""
    before, process = names(machine), process_of(machine)
    (worker,) = machine.must("pgrep", "-f", "xfrmpy.datapath.userspace.worker").split()
    machine.must("kill", "-STOP", worker)
    await_another(machine, process)
    eventually("the tunnel to be up", lambda: is_up(machine), seconds=30)
    assert names(machine) != before


def await_another(machine: Machine, process: int) -> int:
    def started() -> bool:
        state = machine.shown("xfrmpyd", "ActiveState")
        return state == "active" and process_of(machine) not in (0, process)

    eventually("systemd to start another daemon", started, seconds=30)
    return process_of(machine)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    assert install_units(tmp_path, Path("/usr/bin/true")) == 0
    return tmp_path / "etc/systemd/system"


@pytest.mark.native
def test_no_device_of_a_host_sends_or_believes_redirects(units: Path, gateway: str) -> None:
    within = ("ip", "netns", "exec", gateway)
    for way in ("send", "accept"):
        run(*within, "sysctl", "-qw", f"net.ipv4.conf.all.{way}_redirects=1")
    snippet = units.parents[1] / "sysctl.d/50-xfrmpy.conf"
    run(*within, "/usr/lib/systemd/systemd-sysctl", str(snippet))
    shown = "cd /proc/sys/net; cat ipv[46]/conf/*/accept_redirects ipv4/conf/*/send_redirects"
    assert {*run(*within, "sh", "-c", shown).stdout.splitlines()} == {"0"}


@pytest.mark.vm
def test_the_modules_that_a_gateway_uses_are_there_and_loaded(units: Path) -> None:
    snippet = units.parents[1] / "modules-load.d/xfrmpy.conf"
    run("/usr/lib/systemd/systemd-modules-load", str(snippet), seconds=120)
    named = [line for line in snippet.read_text().splitlines() if not line.startswith("#")]
    assert [name for name in named if not Path("/sys/module", name).exists()] == []


@pytest.mark.native
def test_systemd_finds_nothing_wrong_with_the_units(units: Path) -> None:
    paths = [str(units / name) for name in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.native
@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_exposes_no_more_than_two_in_ten(units: Path, unit: str) -> None:
    done = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            f"--threshold={MOST_EXPOSED}",
            "--no-pager",
            str(units / unit),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
