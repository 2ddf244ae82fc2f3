"""xfrmpy itself at a gateway: its policy files, its daemon, its commands, and what it leaves."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import yaml

from integration.lab.network import Host
from integration.lab.preloaded import start_copy
from integration.lab.process import IN_VM, PATIENCE, Background, Start, eventually, popen, run
from integration.lab.tunnel import KeyFiles, Tunnel
from integration.userspace.place import ANY_WORKER_SOCKET, WORKERS, end_workers
from xfrmpy.cli.change import Verb
from xfrmpy.control.client import Client
from xfrmpy.control.protocol import StatusReply, TunnelStatus
from xfrmpy.ipsec.algorithms import WEAKNESSES

XFRMPY = str(Path(sys.executable).parent / "xfrmpy")

DATAPATH = "kernel" if IN_VM else "userspace"
"""What is under test where we are, unless a test asks for another."""

SECRET_MODE = 0o600

_COMMAND_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a command ended, and what it said."""

    code: int
    output: str
    errors: str


def ask(command: Sequence[str], environment: Mapping[str, str], start: Start = popen) -> Answer:
    """What a command says that is to end by itself."""
    with TemporaryFile() as output, TemporaryFile() as errors, open(os.devnull, "rb") as nothing:
        files = nothing.fileno(), output.fileno(), errors.fileno()
        process = start(command, {**os.environ, **environment}, files)
        try:
            code = process.wait(120 * PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        return Answer(code=code, output=_said(output), errors=_said(errors))


def _said(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


class XfrmpyGateway:
    """A daemon for tunnels as this end sees them, by their numbers; their names are `net0` and on.

    `keys` are further keys of each tunnel's policy, or others for those made from the tunnel; one
    that is None is left out. `options` are the daemon's, `files` further policy files by their
    names. Where it is `copied`, its processes begin as copies (`preloaded`).
    """

    def __init__(
        self,
        host: Host,
        tunnels: Sequence[Tunnel],
        directory: Path,
        keys: Mapping[str, Any],
        options: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
        *,
        copied: bool = IN_VM,
    ) -> None:
        self.host = host
        self._copied = copied
        self._options = options
        self._directory = directory
        self._stopped = False
        self.runtime = directory / "run"
        self._before = _kernel_objects(host)
        # It reads all policies first, a millisecond or two each on an idle machine.
        self._start_seconds = 20 * PATIENCE + len(tunnels) / 50
        (directory / "conf.d").mkdir(parents=True, exist_ok=True)
        for number, tunnel in enumerate(tunnels):
            _write_policy(directory, f"net{number}", tunnel, keys)
        for name, text in (files or {}).items():
            (directory / "conf.d" / name).write_text(text)
        self.environment = {
            "XFRMPY_CONFIG_PATH": str(directory / "conf.d"),
            "XFRMPY_RUNTIME_DIR": str(self.runtime),
            # No name server is reached from a namespace of ours: it need not be waited for.
            "RES_OPTIONS": "timeout:1 attempts:1",
            # There are none, but looking for them in every package is a sixth of a daemon's start.
            "PYDANTIC_DISABLE_PLUGINS": "__all__",
        }
        self._daemon = self._start()

    def initiate(self, number: int = 0) -> None:
        """`up`; `AssertionError` with what it and the daemon said if that fails."""
        self._must("up", f"net{number}")

    def terminate(self, number: int = 0) -> None:
        self._must("down", f"net{number}")

    def rekey(self, number: int = 0) -> None:
        """Its Child SAs, then its IKE SA."""
        self._must("rekey", f"net{number}")

    def command(self, *argv: str) -> Answer:
        """What `xfrmpy ARGV...` says, run here."""
        return ask(*self._xfrmpy(*argv))

    def status(self) -> StatusReply:
        """What `status` shows."""
        return Client(self.runtime).status()

    def tunnel(self, number: int = 0) -> TunnelStatus:
        name = f"net{number}"
        return next(tunnel for tunnel in self.status().tunnels if tunnel.name == name)

    def is_up(self, number: int = 0) -> bool:
        return self.tunnel(number).state == "up"

    def is_running(self) -> bool:
        return self._daemon.process.poll() is None

    @property
    def policies(self) -> Path:
        """The directory of its policy files."""
        return self._directory / "conf.d"

    def change(self, number: int = 0, **keys: Any) -> None:
        """Write other values into the policy file of a tunnel; None takes a key away."""
        file = self.policies / f"net{number}.yaml"
        policy = {**yaml.safe_load(file.read_text()), **keys}
        kept = {key: value for key, value in policy.items() if value is not None}
        file.write_text(yaml.safe_dump(kept, sort_keys=False))

    def spis(self) -> dict[str, tuple[str, list[tuple[str, str]]]]:
        """Of every tunnel, its IKE SA and its Child SAs."""
        return {
            tunnel.name: (
                tunnel.spi_i,
                [(child.spi_in, child.spi_out) for child in tunnel.children],
            )
            for tunnel in self.status().tunnels
        }

    @property
    def pid(self) -> int:
        return self._daemon.process.pid

    @property
    def logs(self) -> tuple[Path, ...]:
        return (self._directory / "daemon.log",)

    @property
    def log(self) -> str:
        return self.logs[0].read_text(errors="replace")

    def kill(self) -> None:
        """Let it vanish without a word to its peers; what is left goes with the namespace."""
        self._stopped = True
        self._daemon.stop(signal.SIGKILL)
        end_workers(self._directory)

    def stop(self) -> None:
        """SIGTERM; `AssertionError` unless the daemon ends well and leaves nothing behind."""
        if self._stopped:
            return
        self._stopped = True
        assert self.is_running(), "the daemon ended by itself"
        status = self._daemon.stop(signal.SIGTERM, seconds=20)
        assert status == 0, f"SIGTERM: the daemon ended with {status}"
        self._assert_nothing_left()
        assert not list(self.runtime.glob(ANY_WORKER_SOCKET)), "a worker is left"

    def ended(self) -> int:
        """The exit status of a daemon that ends by itself, and leaves nothing behind."""
        self._stopped = True
        eventually("the daemon to end", lambda: not self.is_running(), seconds=40)
        self._assert_nothing_left()
        return self._daemon.process.wait()

    def _assert_nothing_left(self) -> None:
        """The kernel removes a device when it finds the time; what we forget stays."""

        def is_clean() -> bool:
            return _kernel_objects(self.host) == self._before

        try:
            eventually("all of it to go", is_clean, seconds=4 * PATIENCE)
        except AssertionError:  # to tell what it is
            assert _kernel_objects(self.host) == self._before
            raise

    def crash(self) -> None:
        """`kill -9`: no word to anybody, and everything left behind."""
        self._daemon.stop(signal.SIGKILL)

    def be_relieved(self) -> None:
        """As a service manager restarts it: it ends well, and leaves everything to the next one."""
        status = self._daemon.stop(signal.SIGUSR2, seconds=5)
        assert status == 0, f"SIGUSR2: the daemon ended with {status}"

    def forget(self) -> None:
        """Lose what a daemon that was killed has kept for the next one."""
        for file in self.runtime.glob("store.db*"):
            file.unlink()

    def start_again(self, *options: str) -> None:
        """With other options, if some are given."""
        self._options = options or self._options
        self._daemon = self._start()

    def _start(self) -> Background:
        """Start the daemon and wait for the message that a service manager waits for."""
        path = self._directory / "notify"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(path))
            workers = ("--workers", str(WORKERS)) if WORKERS > 1 else ()
            command, environment, start = self._xfrmpy("daemon", *workers, *self._options)
            environment = {**environment, "NOTIFY_SOCKET": str(path)}
            daemon = Background(command, self._directory / "daemon.log", environment, start)
            notify.settimeout(0.1)
            deadline_at = time.monotonic() + self._start_seconds
            while not _is_ready(notify):
                ended = daemon.process.poll()
                if ended is not None or time.monotonic() > deadline_at:
                    daemon.stop()
                    raise AssertionError(f"the daemon is not ready ({ended})\n{daemon.output}")
        return daemon

    def _xfrmpy(self, *argv: str) -> tuple[Sequence[str], Mapping[str, str], Start]:
        """`xfrmpy ARGV...` here: the command, its environment, and how it is started."""
        if self._copied:
            return argv, self.environment, partial(start_copy, namespace=self.host.namespace)
        return self.host.command(XFRMPY, *argv), self.environment, popen

    def _must(self, verb: Verb, name: str) -> None:
        answer = self.command(verb, name, "--timeout", f"{_COMMAND_SECONDS * PATIENCE:g}")
        if answer.code:
            told = f"{answer.output}{answer.errors}\nThe daemon:\n{self.log}"
            raise AssertionError(f"xfrmpy {verb} {name} ended with {answer.code}\n{told}")


def _write_policy(directory: Path, name: str, tunnel: Tunnel, keys: Mapping[str, Any]) -> None:
    policies, secrets = directory / "conf.d", directory / "secrets"
    secrets.mkdir(mode=0o700, exist_ok=True)
    secret = secrets / name
    secret.touch(SECRET_MODE)
    secret.write_text(tunnel.psk + "\n")
    given = {**_policy(tunnel), **_proof(tunnel, name, secrets), **keys}
    policy = {key: value for key, value in given.items() if value is not None}
    (policies / f"{name}.yaml").write_text(yaml.safe_dump(policy, sort_keys=False))


def _policy(tunnel: Tunnel) -> dict[str, Any]:
    subnets = {"local": list(tunnel.ours.subnets), "remote": list(tunnel.theirs.subnets)}
    return {
        "peer": tunnel.theirs.public,
        **({"mode": "transport"} if tunnel.is_transport else subnets),
        "local_address": tunnel.ours.address,
        "ike": _settings(tunnel.ike),
        "ah" if tunnel.ah else "esp": _settings(tunnel.ah or tunnel.esp),
        "datapath": DATAPATH,
    }


def _proof(tunnel: Tunnel, secret: str, secrets: Path) -> dict[str, Any]:
    """Who the ends are, and by what each proves it."""
    if tunnel.ours.user is not None or tunnel.theirs.user is not None:
        return _eap(tunnel, secret, secrets)
    ours, theirs = tunnel.ours.key, tunnel.theirs.key
    psk = {"psk": f"secret:{secret}"}
    if ours is None and theirs is None:
        return {"id": tunnel.ours.id, "peer_id": tunnel.theirs.id, **psk}
    local = {"id": tunnel.ours.id, **(_signs_by(ours) if ours else {})}
    remote = {"id": tunnel.theirs.id, **({"key": f"file:{theirs.public}"} if theirs else {})}
    return {"auth": {"local": local, "remote": remote, **({} if ours and theirs else psk)}}


def _signs_by(key: KeyFiles) -> dict[str, str]:
    if key.uri:
        return {"key": key.uri, "passphrase": f"file:{key.pin}"}
    return {"key": f"file:{key.private}"}


def _eap(tunnel: Tunnel, name: str, secrets: Path) -> dict[str, Any]:
    """One end is a user, and the other has a key."""
    user, called = (end.user for end in (tunnel.ours, tunnel.theirs))
    if user is not None:
        password = _write_secret(secrets / f"{name}.password", user.password)
        eap = {"method": user.method, "identity": user.name, "password": password}
        assert tunnel.theirs.key is not None
        remote = {"id": tunnel.theirs.id, "key": f"file:{tunnel.theirs.key.public}"}
        return {"auth": {"local": {"id": tunnel.ours.id, "eap": eap}, "remote": remote}}
    assert called is not None
    assert tunnel.ours.key is not None
    acceptance = tunnel.acceptance
    if acceptance is None:
        users = _write_secret(secrets / f"{name}.users", f"{called.name}: {called.password}")
        acceptance = {"users": users, "methods": ["mschapv2", "md5", "gtc"]}
    local = {"id": tunnel.ours.id, "key": f"file:{tunnel.ours.key.private}"}
    return {"peer": None, "auth": {"local": local, "remote": {"eap": dict(acceptance)}}}


def _write_secret(path: Path, text: str) -> str:
    path.touch(SECRET_MODE)
    path.write_text(text + "\n")
    return f"secret:{path.name}"


def _settings(proposals: str) -> dict[str, Any]:
    is_weak = not WEAKNESSES.keys().isdisjoint(proposals.replace(",", "-").split("-"))
    compat = {"profile": "compat"} if is_weak else {}
    return {"proposals": proposals.split(","), **compat}


def _is_ready(notify: socket.socket) -> bool:
    try:
        return b"READY=1" in notify.recv(4096).split(b"\n")
    except TimeoutError:
        return False


def _kernel_objects(host: Host) -> dict[str, str]:
    """Every device, address, route, rule, SA, policy and table of nf_tables of a namespace.

    What is blocked is to outlive a daemon.
    """
    ip = ("ip", "-n", host.namespace, "-brief")
    links = run(*ip, "-batch", "-", stdin="address show\nroute show table all\n").stdout
    entries = run(*ip, "-batch", "-", stdin="rule show\nxfrm state\nxfrm policy\n").stdout
    return {
        "devices, addresses and routes": _settled(links),
        "rules, SAs and policies": entries,
        "IPv6 rules": run(*ip, "-6", "rule", "show").stdout,
        "tables": host.run("nft", "list", "tables").replace("table inet xfrmpy-block\n", ""),
    }


def _settled(listing: str) -> str:
    """Without what the kernel adds by itself, when it finds time, for links and addresses."""
    own = re.compile(r"(\w+ )?fe80:|.* (table local|proto kernel) ")
    lines = (line for line in listing.splitlines() if not own.match(line))
    return "\n".join(re.sub(r" fe80:\S+", "", line).rstrip() for line in lines)


def kernel_has_esp(host: Host) -> bool:
    """Whether an SA of another's making comes into force there; in a namespace without a daemon."""
    algorithm = ("aead", "rfc4106(gcm(aes))", "0x" + "00" * 20, "128")
    state = ("proto", "esp", "spi", "0x1234", "mode", "tunnel", *algorithm)
    ends = ("src", "192.0.2.1", "dst", "192.0.2.2")
    host.run("ip", "xfrm", "state", "add", *ends, *state, check=False)
    return "0x00001234" in host.run("ip", "xfrm", "state")
