"""libreswan as a peer: pluto inside a gateway's namespace, configured from a `Tunnel`."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from integration.lab.network import Host
from integration.lab.process import LAB, eventually, has_ended, run
from integration.lab.tunnel import Tunnel
from xfrmpy.policy.foreign.rendering import LIBRESWAN

_PATH = str(LAB / "libreswan-peer")
_ESN = {"esn": "yes", "noesn": "no"}

_CONNECTION = """\
conn net{number}
    left={local_address}
    leftid=@{local_id}
    {local}
    right={remote_address}
    rightid=@{remote_id}
    {remote}
    ike={ike}
    phase2={protocol}
    esp={packets}
    esn={esn}
    ikev2=insist
    auto={auto}
    {mode}
    {mark}
    {connection}

"""


@dataclass(frozen=True, kw_only=True)
class HostKey:
    """One that libreswan has made: its `public` half in PEM, and the `files` of a peer with it."""

    public: Path
    files: Mapping[str, bytes]


def make_host_key(directory: Path, kind: str) -> HostKey:
    """Of the kind `rsa` or `ecdsa`, in a new directory."""
    run(_PATH, "hostkey", str(directory), kind)
    files = {name: (directory / name).read_bytes() for name in ("nss/cert9.db", "nss/key4.db")}
    return HostKey(public=directory / "hostkey.pem", files=files)


def key_line(side: str, public: Path) -> str:
    """The line of a conn with the key of the `right` or `left`, which is in PEM."""
    return f"{side}pubkey={''.join(public.read_text().splitlines()[1:-1])}"


class LibreswanPeer:
    """A pluto for tunnels as this end sees them, by their numbers; one subnet at either end.

    `auto` is "add", or "start" for one that initiates by itself; `connection` are further lines of
    each connection ("dpddelay=1"), and `marks` the marks of their policies ("0x10/0xf0"), if any.
    `secrets` are further lines of ipsec.secrets. `authby` is how both ends prove themselves, and
    `files` certificates and keys as `libreswan-peer` wants them, by their paths in its directory.
    `configuration` are ipsec.conf and ipsec.secrets in the place of what is made of the tunnels.
    """

    def __init__(
        self,
        host: Host,
        tunnels: Sequence[Tunnel],
        directory: Path,
        *,
        auto: str = "add",
        connection: Sequence[str] = (),
        marks: Sequence[str] = (),
        secrets: Sequence[str] = (),
        authby: str = "secret",
        files: Mapping[str, bytes] | None = None,
        configuration: tuple[str, str] | None = None,
    ) -> None:
        self._directory = directory
        directory.mkdir()
        for name, octets in (files or {}).items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(octets)
        connections = [
            _connection(number, tunnel, auto, (f"authby={authby}", *connection), mark)
            for number, (tunnel, mark) in enumerate(zip_longest(tunnels, marks))
        ]
        keys = [f'@{t.ours.id} @{t.theirs.id} : PSK "{t.psk}"\n' for t in tunnels]
        texts = configuration or ("".join(connections), "".join([*keys, *secrets]))
        for name, text in zip(("ipsec.conf", "ipsec.secrets"), texts, strict=True):
            (directory / name).write_text(text)
        run(_PATH, "start", "--netns", host.namespace, str(directory), seconds=90)

    def initiate(self, number: int = 0) -> None:
        """Bring a tunnel up; `AssertionError` with pluto's words if that fails."""
        self.whack("--name", f"net{number}", "--initiate")

    def terminate(self, number: int = 0) -> None:
        self.whack("--name", f"net{number}", "--terminate")

    def rekey_child_sa(self, number: int = 0) -> None:
        self.whack("--name", f"net{number}", "--rekey-ipsec")

    def rekey_ike_sa(self, number: int = 0) -> None:
        self.whack("--name", f"net{number}", "--rekey-ike")

    def is_up(self, number: int = 0) -> bool:
        return f'"net{number}", type=' in self.whack("--trafficstatus")

    def whack(self, *argv: str) -> str:
        return run(_PATH, "whack", str(self._directory), *argv, seconds=90).stdout

    @property
    def logs(self) -> tuple[Path, ...]:
        return (self._directory / "pluto.log", self._directory / "pluto.out")

    @property
    def log(self) -> str:
        return self.logs[0].read_text(errors="replace")

    def kill(self) -> None:
        """Let it vanish without a word to its peers: what it held is free afterwards."""
        pid = int((self._directory / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        eventually("pluto to be gone", lambda: has_ended(pid))

    def stop(self) -> None:
        run(_PATH, "stop", str(self._directory), seconds=90)


def _connection(
    number: int, tunnel: Tunnel, auto: str, more: Sequence[str], mark: str | None
) -> str:
    (local,), (remote,) = tunnel.ours.subnets, tunnel.theirs.subnets
    packets = [p.rpartition("-") for p in (tunnel.ah or tunnel.esp).split(",")]
    return _CONNECTION.format(
        number=number,
        local_address=tunnel.ours.address,
        remote_address=tunnel.theirs.public,
        local_id=tunnel.ours.id,
        remote_id=tunnel.theirs.id,
        local="" if tunnel.is_transport else f"leftsubnet={local}",
        remote="" if tunnel.is_transport else f"rightsubnet={remote}",
        mode="type=transport" if tunnel.is_transport else "type=tunnel",
        ike=_translated(tunnel.ike),
        protocol="ah" if tunnel.ah else "esp",
        packets=",".join(_translated(names).replace("-dh", ";dh") for names, _, _ in packets),
        esn=_ESN[packets[0][2]],
        auto=auto,
        mark=f"mark={mark}" if mark else "",
        connection="\n    ".join(more),
    )


def _translated(proposal: str) -> str:
    """`aes128-sha256-prfsha256-x25519` is `aes128-sha2_256-dh31`: the PRF follows the integrity."""
    words = proposal.split("-")
    named = dict.fromkeys(LIBRESWAN.get(word, word) for word in words)
    return "-".join(named)
