"""libreswan as a peer: pluto inside a gateway's namespace, configured from a `Tunnel`."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from integration.lab.network import Host
from integration.lab.process import LAB, run
from integration.lab.tunnel import Tunnel

_WORDS = {
    "aes128gcm16": "aes_gcm128",
    "aes192gcm16": "aes_gcm192",
    "aes256gcm16": "aes_gcm256",
    "chacha20poly1305": "chacha20_poly1305",
    "sha256": "sha2_256",
    "sha384": "sha2_384",
    "sha512": "sha2_512",
    "prfsha256": "sha2_256",
    "prfsha384": "sha2_384",
    "prfsha512": "sha2_512",
    **{f"aes{bits}gcm8": f"aes_gcm_a_{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}gcm12": f"aes_gcm_b_{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}ccm8": f"aes_ccm_a_{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}ccm12": f"aes_ccm_b_{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}ccm16": f"aes_ccm_c_{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}ctr": f"aes_ctr{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}gmac": f"null_auth_aes_gmac_{bits}" for bits in (128, 192, 256)},
    "aesxcbc": "aes_xcbc",
    "aescmac": "aes_cmac",
    "prfsha1": "sha1",
    "prfaesxcbc": "aes_xcbc",
    "modp2048": "dh14",
    "modp3072": "dh15",
    "modp4096": "dh16",
    "ecp256": "dh19",
    "ecp384": "dh20",
    "ecp521": "dh21",
    "x25519": "dh31",
}
"""xfrmpy's names of algorithms in libreswan's; what is not here is called the same."""

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
    authby=secret
    ikev2=insist
    auto={auto}
    {mode}
    {mark}
    {connection}

"""


class LibreswanPeer:
    """A pluto for tunnels as this end sees them, by their numbers; one subnet at either end.

    `auto` is "add", or "start" for one that initiates by itself; `connection` are further lines of
    each connection ("dpddelay=1"), and `marks` the marks of their policies ("0x10/0xf0"), if any.
    `secrets` are further lines of ipsec.secrets.
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
    ) -> None:
        self._directory = directory
        directory.mkdir()
        connections = [
            _connection(number, tunnel, auto, connection, mark)
            for number, (tunnel, mark) in enumerate(zip_longest(tunnels, marks))
        ]
        keys = [f'@{t.ours.id} @{t.theirs.id} : PSK "{t.psk}"\n' for t in tunnels]
        (directory / "ipsec.conf").write_text("".join(connections))
        (directory / "ipsec.secrets").write_text("".join([*keys, *secrets]))
        self._script("start", "--netns", host.namespace, str(directory))

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
        return run(self._path, "whack", str(self._directory), *argv, seconds=90).stdout

    @property
    def logs(self) -> tuple[Path, ...]:
        return (self._directory / "pluto.log", self._directory / "pluto.out")

    @property
    def log(self) -> str:
        return self.logs[0].read_text(errors="replace")

    def kill(self) -> None:
        """Let it vanish without a word to its peers."""
        os.kill(int((self._directory / "pid").read_text()), signal.SIGKILL)

    def stop(self) -> None:
        self._script("stop", str(self._directory))

    _path = str(LAB / "libreswan-peer")

    def _script(self, *argv: str) -> None:
        run(self._path, *argv, seconds=90)


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
    named = dict.fromkeys(_WORDS.get(word, word) for word in words)
    return "-".join(named)
