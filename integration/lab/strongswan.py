"""strongSwan as a peer: charon inside a gateway's namespace, configured from a `Tunnel`."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from integration.lab.network import Host
from integration.lab.process import IN_VM, LAB, eventually, has_ended, run
from integration.lab.tunnel import End, Tunnel, User

BACKEND = "kernel" if IN_VM else "libipsec"
"""ESP in user space goes inside UDP always, knows no ESN, and needs nothing from the kernel."""

_CONFIGURATION = """\
connections {{
    site{number} {{
        version = 2
        local_addrs = {local_address}
        remote_addrs = {remote_address}
        proposals = {ike}
        {connection}
        local {{
            {local_end}
        }}
        remote {{
            {remote_end}
        }}
        {rounds}
        children {{
            net{number} {{
                local_ts = {local}
                remote_ts = {remote}
                {packets}
                mode = {mode}
                {child}
            }}
        }}
    }}
}}
secrets {{
    ike-{number} {{
        id-1 = {local_id}
        id-2 = {remote_id}
        secret = "{psk}"
    }}
    {users}
}}
"""


PACKAGES = (
    "charon-systemd",
    "strongswan-swanctl",
    "libstrongswan-standard-plugins",
    "libstrongswan-extra-plugins",
    "libcharon-extra-plugins",
)


def strongswan_of(suite: str) -> str:
    """Where the strongSwan of another Debian is, for `usr`; unpacked if it is not yet."""
    return run(str(LAB / "debian-usr"), suite, *PACKAGES, seconds=600).stdout.strip()


class StrongswanPeer:
    """A charon for tunnels as this end sees them, by their numbers.

    `connection` and `child` are further swanctl lines ("dpd_delay = 1s"), of each child if there
    are several of the latter; `ends` the lines of who is local and who remote, in the place of what
    the tunnels say, and `rounds` those of each further round of authentication, where an end that
    has none says nothing; `secrets` further secrets ("ppk-a { id = a ... }"); `authorities` what is
    known of those; `settings` further settings of charon ("cookie_threshold=1");
    `configuration` is swanctl.conf in the place of the one that the tunnels are made into, and
    `files` what else is there, certificates and keys, by their paths in its directory; `usr` has
    the programs of another Debian (`debian-usr`).
    """

    def __init__(
        self,
        host: Host,
        tunnels: Sequence[Tunnel],
        directory: Path,
        *,
        connection: str = "",
        child: str | Sequence[str] = "",
        ends: tuple[str, str] | None = None,
        rounds: Sequence[tuple[str, str]] = (),
        secrets: str = "",
        authorities: str = "",
        settings: Sequence[str] = (),
        configuration: str = "",
        files: Mapping[str, bytes] | None = None,
        usr: str = "",
    ) -> None:
        self._directory = directory
        directory.mkdir()
        for name, data in (files or {}).items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(data)
        texts = [
            _configuration(
                number,
                tunnel,
                connection,
                child if isinstance(child, str) else child[number],
                ends or (_end(tunnel.ours, is_ours=True), _end(tunnel.theirs, is_ours=False)),
                rounds,
            )
            for number, tunnel in enumerate(tunnels)
        ]
        texts.append(f"secrets {{\n{secrets}\n}}\nauthorities {{\n{authorities}\n}}\n")
        (directory / "swanctl.conf").write_text(configuration or "".join(texts))
        (directory / "private").mkdir()
        for number, key in enumerate(tunnel.ours.key for tunnel in tunnels):
            if key is not None:
                shutil.copy(key.private, directory / "private" / f"{number}.pem")
        options = [word for setting in settings for word in ("--set", setting)]
        where = ["--netns", host.namespace, "--backend", BACKEND]
        if usr:
            where += ["--usr", usr]
        self._script("start", *where, *options, str(directory))

    def initiate(self, number: int = 0) -> None:
        """Bring a tunnel up; `AssertionError` with charon's words if that fails."""
        self.swanctl("--initiate", "--child", f"net{number}", "--timeout", "60")

    def terminate(self, number: int = 0) -> None:
        self.swanctl("--terminate", "--ike", f"site{number}", "--timeout", "60")

    def rekey_child_sa(self, number: int = 0) -> None:
        self.swanctl("--rekey", "--child", f"net{number}")

    def rekey_ike_sa(self, number: int = 0) -> None:
        self.swanctl("--rekey", "--ike", f"site{number}")

    def list_sas(self, number: int = 0) -> str:
        return self.swanctl("--list-sas", "--ike", f"site{number}")

    def is_up(self, number: int = 0) -> bool:
        sas = self.list_sas(number)
        return "ESTABLISHED" in sas and "INSTALLED" in sas

    def swanctl(self, *argv: str, check: bool = True) -> str:
        done = run(self._path, "swanctl", str(self._directory), *argv, check=check, seconds=90)
        return done.stdout + done.stderr

    @property
    def logs(self) -> tuple[Path, ...]:
        return (self._directory / "charon.log", self._directory / "charon.out")

    @property
    def log(self) -> str:
        return self.logs[0].read_text(errors="replace")

    def kill(self) -> None:
        """Let it vanish without a word to its peers: what it held is free afterwards."""
        pid = int((self._directory / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        eventually("charon to be gone", lambda: has_ended(pid))

    def stop(self) -> None:
        self._script("stop", str(self._directory))

    _path = str(LAB / "strongswan-peer")

    def _script(self, *argv: str) -> None:
        run(self._path, *argv, seconds=90)


def _configuration(
    number: int,
    tunnel: Tunnel,
    connection: str,
    child: str,
    ends: tuple[str, str],
    rounds: Sequence[tuple[str, str]],
) -> str:
    return _CONFIGURATION.format(
        number=number,
        local_address=tunnel.ours.address,
        remote_address=tunnel.theirs.public,
        local_id=tunnel.ours.id,
        remote_id=tunnel.theirs.id,
        local="dynamic" if tunnel.is_transport else ",".join(tunnel.ours.subnets),
        remote="dynamic" if tunnel.is_transport else ",".join(tunnel.theirs.subnets),
        mode="transport" if tunnel.is_transport else "tunnel",
        ike=tunnel.ike,
        packets=f"ah_proposals = {tunnel.ah}" if tunnel.ah else f"esp_proposals = {tunnel.esp}",
        psk=tunnel.psk,
        connection=connection,
        child=child,
        local_end=ends[0],
        remote_end=ends[1],
        rounds="\n".join(_round(n, *each) for n, each in enumerate(rounds, 2)),
        users="".join(_user(number, end.user) for end in (tunnel.ours, tunnel.theirs)),
    )


def _round(number: int, local: str, remote: str) -> str:
    said = (("local", local), ("remote", remote))
    return "\n".join(
        f"{end}-{number} {{\n round = {number}\n {lines}\n}}" for end, lines in said if lines
    )


def _user(number: int, user: User | None) -> str:
    if user is None:
        return ""
    return f'eap-{number} {{ id = "{user.name}"\n secret = "{user.password}" }}'


def _end(end: End, *, is_ours: bool) -> str:
    return f"{_auth(end, is_ours=is_ours)}\n            id = {end.id}"


def _auth(end: End, *, is_ours: bool) -> str:
    if end.user is not None:
        name = end.user.name if is_ours else "%any"
        return f'auth = eap-{end.user.method}\n            eap_id = "{name}"'
    if end.key is None:
        return "auth = psk"
    return f"auth = pubkey\n            pubkeys = {end.key.public}"
