"""A host that systemd boots: in the network namespace of a gateway, with this xfrmpy installed.

`systemd-nspawn` runs it on a throw-away copy (overlayfs) of this machine's root, with its own /tmp,
/run, /dev and processes: whatever its systemd does, nothing of this machine is touched. What is
installed is this checkout and its interpreter, bound to where a unit sees them.
"""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from integration.lab.gateway import Answer, ask
from integration.lab.network import Host, Network
from integration.lab.process import LOG_TAIL, PATIENCE, Background, eventually, run
from integration.lab.tunnel import Tunnel
from xfrmpy.cli.units import install_units

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAM = "/opt/xfrmpy/bin/xfrmpy"
PYTHON = f"/opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
"""One without what xfrmpy needs."""

_UNITS = "/etc/systemd/system"

_NETWORK = """\
[Unit]
After=network-pre.target
Before=network.target
Wants=network.target network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip link set wan up
ExecStart=ip route add default via 192.0.2.254
"""
_DEPENDENT = """\
[Unit]
Requires=xfrmpy-tunnel@net0.service
After=xfrmpy-tunnel@net0.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ping -n -c 1 -W 5 -I {ours} {theirs}
"""
_LAB = """\
[Unit]
Requires=basic.target
After=basic.target
Wants=xfrmpy-block.service xfrmpyd.service lab-network.service lab-dependent.service
"""
_PYTHON, _PACKAGES, _SOURCE = "/opt/python", "/opt/packages", "/opt/checkout"
_NAME = f"python{sys.version_info.major}.{sys.version_info.minor}"

_TARGET = """\
[Unit]
Requires=basic.target
After=basic.target
AllowIsolate=yes
"""

_UNWANTED = (
    "systemd-modules-load.service",  # The kernel is this machine's.
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-hwdb-update.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-firstboot.service",
    "console-getty.service",
    "ldconfig.service",
)

_START = """\
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$3,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
rm -rf "$1/root/etc/systemd/system"
cp -a "$2/." "$1/root/"
shift 3
exec "$@"
"""
"""In a mount namespace of its own, which ends with it. What is enabled on this machine is none of
the other's business."""


def policy_keys(tunnel: Tunnel, datapath: str) -> dict[str, Any]:
    """Of a tunnel that comes up by itself, with its shared key in the secret `net0`."""
    return {
        "peer": tunnel.theirs.public,
        "id": tunnel.ours.id,
        "peer_id": tunnel.theirs.id,
        "psk": "secret:net0",
        "local": [*tunnel.ours.subnets],
        "remote": [*tunnel.theirs.subnets],
        "ike": {"proposals": [tunnel.ike]},
        "esp": {"proposals": [tunnel.esp]},
        "datapath": datapath,
        "start": "auto",
    }


def boot_files(network: Network, datapath: str) -> dict[str, str]:
    """Of moon: its first tunnel, `lab-network` once nothing can leave in clear, and a service of
    `lab.target` that needs the tunnel, `lab-dependent`."""
    tunnel = network.tunnel()
    policy = {**policy_keys(tunnel, datapath), "on_down": "block"}
    router = network.alice.inside_address().rpartition(".")[0] + ".1"
    return {
        "/etc/xfrmpy/conf.d/net0.yaml": yaml.safe_dump(policy),
        "/etc/xfrmpy/secrets/net0": tunnel.psk + "\n",
        f"{_UNITS}/lab-network.service": _NETWORK,
        f"{_UNITS}/lab-dependent.service": _DEPENDENT.format(
            ours=router, theirs=network.bob.inside_address()
        ),
        f"{_UNITS}/lab.target": _LAB,
    }


class Machine:
    """See the module. A context; `files` are those it has beside, by their paths in it.

    With a `root` it is a copy of that Debian, in which xfrmpy is installed already.
    """

    def __init__(
        self, host: Host, directory: Path, files: Mapping[str, str], root: Path | None = None
    ) -> None:
        self.host = host
        self._directory = directory
        self._layer = directory / "layer"
        self._root = root or Path("/")
        self._program = PROGRAM if root is None else "/usr/bin/xfrmpy"
        self._binds: tuple[str, ...] = (
            f"--bind-ro={sys.base_prefix}:{_PYTHON}",
            f"--bind-ro={sysconfig.get_path('purelib')}:{_PACKAGES}",
            f"--bind-ro={CHECKOUT}:{_SOURCE}",
        )
        if root is None:
            self._install()
        else:
            self._binds = ()
        self._prepare(files)
        self.log = directory / "machine.log"

    def __enter__(self) -> Machine:
        mount = self._directory / "mount"
        mount.mkdir()
        command = [
            "unshare",
            "--mount",
            "bash",
            "-c",
            _START,
            "bash",
            str(mount),
            str(self._layer),
            str(self._root),
            "systemd-nspawn",
            "--quiet",
            f"--directory={mount}/root",
            f"--network-namespace-path=/run/netns/{self.host.namespace}",
            "--keep-unit",
            "--register=no",
            "--link-journal=no",
            "--machine=xfrmpy-lab",
            "--capability=all",
            "--system-call-filter=@keyring bpf",
            "--console=pipe",
            "--bind=/dev/net/tun",
            *self._binds,
            "--boot",
            "--",
            "--unit=lab.target",
        ]
        self._machine = Background(command, self.log)
        try:
            self._leader = eventually("systemd to be process 1", self._find_leader, seconds=60)
            eventually("systemd to answer", self._answers, seconds=60)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            print(self.run("journalctl", "--no-pager", "-o", "short-monotonic").output[-LOG_TAIL:])
        self._end()

    @property
    def leader(self) -> int:
        """Its process 1, as it is called here."""
        return self._leader

    def run(self, *argv: str) -> Answer:
        """What a command in it says."""
        into = ("nsenter", f"--target={self._leader}", "--all", "--wd=/")
        return ask((*into, "env", "-i", _PATH, *argv), {})

    def must(self, *argv: str) -> str:
        answer = self.run(*argv)
        assert answer.code == 0, (argv, answer)
        return answer.output

    def xfrmpy(self, *argv: str) -> Answer:
        return self.run(self._program, *argv)

    def shown(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.must("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def await_active(self, *units: str, seconds: float = 60.0) -> None:
        def active() -> bool:
            states = [self.shown(unit, "ActiveState") for unit in units]
            assert "failed" not in states, (units, states)
            return set(states) == {"active"}

        eventually(f"{', '.join(units)} to be active", active, seconds)

    def assert_booted_in_order(self) -> None:
        """Nothing in clear before there is a network, and a tunnel before what needs one."""

        def moment(unit: str, when: str) -> int:
            return int(self.shown(unit, f"{when}TimestampMonotonic"))

        blocked = moment("xfrmpy-block.service", "ActiveEnter")
        assert 0 < blocked <= moment("lab-network.service", "InactiveExit")
        ready = moment("xfrmpyd.service", "ActiveEnter")
        waited = moment("xfrmpy-tunnel@net0.service", "ActiveEnter")
        assert ready <= waited <= moment("lab-dependent.service", "InactiveExit")
        eventually(
            "systemd to know how many are up",
            lambda: self.shown("xfrmpyd", "StatusText") == "1 of 1 tunnels up",
        )

    def write(self, path: str, text: str) -> None:
        run(
            "nsenter",
            f"--target={self._leader}",
            "--all",
            "sh",
            "-c",
            f"cat >{path}",
            stdin=text,
        )

    def _install(self) -> None:
        """This checkout and its interpreter, in the layer above this machine's root."""
        binaries = self._layer / "opt/xfrmpy/bin"
        binaries.mkdir(parents=True)
        for directory in (_PYTHON, _PACKAGES, _SOURCE):
            (self._layer / directory[1:]).mkdir()
        (binaries / "python").symlink_to(f"{_PYTHON}/bin/{_NAME}")
        (binaries.parent / "pyvenv.cfg").write_text(f"home = {_PYTHON}/bin\n")
        packages = binaries.parent / "lib" / _NAME / "site-packages"
        packages.mkdir(parents=True)
        (packages / "lab.pth").write_text(f"{_SOURCE}\n{_PACKAGES}\n")
        script = binaries / "xfrmpy"
        script.write_text("#!/opt/xfrmpy/bin/python -P\nfrom xfrmpy.cli.main import main\nmain()\n")
        script.chmod(0o755)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            assert install_units(self._layer, Path(PROGRAM)) == 0

    def _prepare(self, files: Mapping[str, str]) -> None:
        """What a machine of the laboratory has above its root."""
        for path, text in {f"{_UNITS}/lab.target": _TARGET, **files}.items():
            file = self._layer / path[1:]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        for name in _UNWANTED:
            (self._layer / _UNITS[1:] / name).symlink_to("/dev/null")

    def _find_leader(self) -> int:
        for child in _children(self._machine.process.pid):
            with suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return child
        return 0

    def _answers(self) -> bool:
        return self.run("systemctl", "is-system-running").output.strip() in {
            "running",
            "degraded",
            "starting",
        }

    def _end(self) -> None:
        with suppress(ProcessLookupError, AttributeError):
            os.kill(self._leader, signal.SIGKILL)
        with suppress(AssertionError):
            self._machine.stop(signal.SIGKILL, seconds=10 * PATIENCE)


_PATH = "PATH=/opt/xfrmpy/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _children(process: int) -> Iterable[int]:
    """Of a process, and theirs."""
    with suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            yield int(child)
            yield from _children(int(child))
