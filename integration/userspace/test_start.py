"""What keeps a worker from starting is said."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from integration.contract.sites import inside, run
from integration.lab.network import Network
from integration.userspace.place import open_here
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.ipsec.addresses import IKE_NATT_PORT

pytestmark = pytest.mark.native


def test_a_port_that_somebody_holds_is_said_and_no_worker_is_left(
    network: Network, tmp_path: Path
) -> None:
    with inside(network.moon.namespace):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as selfish:
            selfish.bind(("", IKE_NATT_PORT))
            with pytest.raises(DatapathError, match="UDP port 4500 cannot be shared"):
                open_here(tmp_path)
        assert DEVICE not in run("ip", "-n", network.moon.namespace, "link")
        open_here(tmp_path).stop()


_START = """
import sys
from pathlib import Path
from xfrmpy.datapath.userspace.client import UserspaceDatapath
datapath = UserspaceDatapath.start(Path(sys.argv[1]))
datapath.stop()
print("started")
"""


@pytest.mark.parametrize(
    ("obstacle", "words"),
    [
        (
            ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"],
            "the TUN device xfrmpy0 cannot be made: Operation not permitted",
        ),
        (
            ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net; exec "$@"', "-"],
            "/dev/net/tun cannot be opened: No such file or directory",
        ),
    ],
    ids=["privilege", "device"],
)
def test_what_is_missing_is_said(
    moon: str, tmp_path: Path, obstacle: list[str], words: str
) -> None:
    del moon
    command = [*obstacle, sys.executable, "-c", _START, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]


def test_root_of_a_user_namespace_is_root_enough(tmp_path: Path) -> None:
    command = ["unshare", "-Urn", sys.executable, "-c", _START, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare: " in done.stderr:
        pytest.skip(done.stderr)
