"""The Debian package in a fresh Debian: installed by apt, the demo run, removed cleanly."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.lab.gateway import DATAPATH
from integration.lab.process import run
from integration.lab.site import Site
from integration.lab.systemd import Machine, boot_files

BUILD = Path(__file__).parents[1] / ".ci" / "build_deb.py"
SUITE = "bookworm"
INSTALL = """
mv "$1"/xfrmpy_*.deb "$1/xfrmpy.deb"
chroot "$1" apt-get -q -y --no-install-recommends install /xfrmpy.deb
"""
CONTAINER = (
    "env",
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network",
    "systemd-nspawn",
    "--quiet",
    "--register=no",
    "--keep-unit",
    "--as-pid2",
    "--console=pipe",
    "--private-network",
    "--capability=all",
    "--system-call-filter=@keyring bpf",
    "--bind=/dev/net/tun",
)
TOOLS = ("--include=iproute2,iputils-ping",)
"""What the laboratory's own units call."""
SHIPPED = (
    "/usr/share/man/man1/xfrmpy.1.gz",
    "/usr/share/man/man5/xfrmpy.yaml.5.gz",
    "/usr/share/man/man8/xfrmpyd.8.gz",
    "/usr/share/bash-completion/completions/xfrmpy",
    "/usr/share/zsh/vendor-completions/_xfrmpy",
    "/usr/share/fish/vendor_completions.d/xfrmpy.fish",
    "/usr/lib/systemd/system/xfrmpyd.service",
    "/usr/lib/modules-load.d/xfrmpy.conf",
    "/usr/lib/sysctl.d/50-xfrmpy.conf",
)

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(
        SUITE not in Path("/etc/os-release").read_text(), reason=f"this is no Debian {SUITE}"
    ),
]


class Root:
    """A Debian in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = f"xfrmpy-{uuid.uuid4().hex[:8]}"

    def must(self, *command: str, seconds: float = 120.0) -> str:
        """What a command in it says."""
        where = (f"--directory={self.path}", f"--machine={self._name}")
        return run(*CONTAINER, *where, *command, seconds=seconds).stdout

    def files(self, *places: str) -> set[str]:
        """What is below these places, by paths in it."""
        found: set[str] = set()
        for place in places:
            top = self.path / place
            found |= {str(path.relative_to(self.path)) for path in top.rglob("*")}
        return found


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    """A fresh one, by the package sources of this machine, with the package installed."""
    package = run(sys.executable, str(BUILD), str(tmp_path), seconds=300).stdout.strip()
    path = tmp_path / "root"
    apt = Path("/etc/apt")
    sources = [*apt.glob("sources.list"), *apt.glob("sources.list.d/debian*.sources")]
    make = ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", *TOOLS]
    hooks = [f"--customize-hook=copy-in {package} /", f"--customize-hook={INSTALL}"]
    try:
        run(*make, *hooks, SUITE, str(path), *map(str, sources), seconds=900)
        yield Root(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def test_it_is_installed_boots_shows_the_demo_and_is_removed_cleanly(
    root: Root, site: Site
) -> None:
    assert root.must("xfrmpy", "--version").startswith("xfrmpy ")
    for place in SHIPPED:
        assert (root.path / place[1:]).is_file(), place
    user = root.must("stat", "-c", "%U %a", "/etc/xfrmpy/secrets")
    assert user == "root 711\n"
    assert "xfrmpy:" in (root.path / "etc/passwd").read_text()
    assert root.must("xfrmpy", "check") == "0 tunnels in 0 files: ok\n"
    assert_boots_with_its_tunnel(root, site)
    assert "not one packet clear" in root.must("xfrmpy", "demo", "--seconds", "1")
    policy = root.path / "etc/xfrmpy/conf.d/kept.yaml"
    policy.write_text("peer: 192.0.2.1\n")
    root.must("apt-get", "-q", "-y", "purge", "xfrmpy")
    assert root.files("etc/xfrmpy") == {"etc/xfrmpy/conf.d", "etc/xfrmpy/conf.d/kept.yaml"}
    left = root.files("usr", "run", "var/lib")
    assert [path for path in left if "xfrmpy" in path] == []


def assert_boots_with_its_tunnel(root: Root, site: Site) -> None:
    """The units that the package brings: the tunnel is up before the service that needs it."""
    moon, sun = site.network.moon, site.network.sun
    site.xfrmpy(sun, site.network.tunnel().mirrored())
    moon.batch("link set wan down")
    place = site.directory / "machine"
    place.mkdir()
    files = boot_files(site.network, DATAPATH)
    with Machine(moon, place, files, root=root.path) as machine:
        machine.await_active("xfrmpyd.service", "lab-dependent.service", seconds=120)
        machine.assert_booted_in_order()
        assert site.network.alice.ping(site.network.bob.inside_address()) == 0
        machine.must("systemctl", "stop", "xfrmpyd")
