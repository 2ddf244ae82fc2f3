"""Gateways that Ansible provisions: each with its own /etc and /run, and all on one network.

moon, sun and mars, with 10.N.0.1 inside each == internet (a bridge)
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from integration.lab.gateway import XFRMPY
from integration.lab.network import Host
from integration.lab.process import LAB, LOG_TAIL, PATIENCE, Background, eventually, run
from xfrmpy.control.client import Client
from xfrmpy.control.protocol import StatusReply

COLLECTION = LAB.parents[1] / "ansible"
NAMES = ("moon", "sun", "mars")

_ENTER = """\
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" overlay /etc
mount -t tmpfs -o mode=755 tmpfs /run
echo entered
exec sleep infinity
"""

SYSTEM_PYTHON = str(Path(sys.base_prefix, "bin/python3"))
"""One without our dependencies: modules have the standard library alone."""


_MODULE = """\
import json, runpy, sys
from ansible.module_utils.testing import patch_module_args
name = f"ansible_collections.xfrmpy.gateway.plugins.modules.{sys.argv[1]}"
with patch_module_args(json.loads(sys.argv[2])):
    runpy.run_module(name, run_name="__main__")
"""
_serial = itertools.count(1)

_ALONE = ("secret", "secret_info")
"""Modules that ask `xfrmpy` nothing."""


class Member:
    """A gateway of a fleet, and the daemon that a service manager would run there."""

    def __init__(self, host: Host, number: int, directory: Path) -> None:
        self.host = host
        self.number = number
        self._directory = directory
        (directory / "tmp").mkdir(parents=True)
        mount = directory / "mount"
        mount.mkdir()
        command = host.command("unshare", "--mount", "bash", "-c", _ENTER, "bash", str(mount))
        self._leader = Background(command, directory / "leader.log")
        eventually("its directories to be its own", lambda: "entered" in self._leader.output)
        self._daemon: Background | None = None

    @property
    def leader(self) -> int:
        return self._leader.process.pid

    @property
    def inside(self) -> str:
        return f"10.{self.number}.0.1"

    @property
    def outside(self) -> str:
        return self.host.outside[4]

    @property
    def root(self) -> Path:
        """Its files as they are seen from here."""
        return Path(f"/proc/{self.leader}/root")

    @property
    def log(self) -> str:
        return (self._directory / "daemon.log").read_text(errors="replace")

    def start(self) -> None:
        """The daemon, which finds no policy at first."""
        self.run("mkdir", "-p", "/etc/xfrmpy/conf.d")
        environment = {"PYDANTIC_DISABLE_PLUGINS": "__all__", "RES_OPTIONS": "timeout:1 attempts:1"}
        command = self._inside(XFRMPY, "daemon")
        self._daemon = Background(command, self._directory / "daemon.log", environment)

    def await_ready(self) -> None:
        def answers() -> bool:
            assert self._daemon is not None
            assert self._daemon.process.poll() is None, self.log[-LOG_TAIL:]
            return (self.root / "run/xfrmpy/control.sock").exists()

        eventually("the daemon to answer", answers, seconds=30)

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.stop(seconds=20)
            self._daemon = None

    def close(self) -> None:
        try:
            self.stop()
        finally:
            self._leader.stop()

    def status(self) -> StatusReply:
        return Client(self.root / "run/xfrmpy").status()

    def spis(self) -> dict[str, tuple[str, list[str]]]:
        """Of every tunnel that is up, its IKE SA and its Child SAs."""
        return {
            tunnel.name: (tunnel.spi_i, [child.spi_in for child in tunnel.children])
            for tunnel in self.status().tunnels
            if tunnel.state == "up"
        }

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(*self._inside(*argv), check=check)

    def reaches(self, other: Member) -> bool:
        """Whether a host behind it could ping one behind the other."""
        ping = ("ping", "-n", "-c", "2", "-W", "5", "-I", self.inside, other.inside)
        return self.run(*ping, check=False).returncode == 0

    def module(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """What a module of the collection answers here; without Ansible around it."""
        environment = {**os.environ, "PYTHONPATH": str(self._directory.parent)}
        given = {"program": XFRMPY, **arguments} if name not in _ALONE else arguments
        done = subprocess.run(
            self._inside(sys.executable, "-c", _MODULE, name, json.dumps(given)),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=environment,
        )
        assert done.stdout.lstrip().startswith("{"), done
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    @contextmanager
    def holding_lock(self, path: str) -> Iterator[None]:
        """Another process has locked a directory meanwhile."""
        command = self._inside("flock", path, "sh", "-c", "echo locked; exec cat")
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        try:
            yield
        finally:
            holder.communicate()

    @contextmanager
    def full_disk(self, path: str) -> Iterator[None]:
        """A directory is on a disk of its own meanwhile, of which a few pages are free."""
        script = (
            "set -e; mkdir /run/small; mount -t tmpfs -o size=64k,mode=755 tmpfs /run/small; "
            'cp -a "$1/." /run/small; mount --move /run/small "$1"'
        )
        self.run("sh", "-c", script, "sh", path)
        try:
            yield
        finally:
            self.run("umount", path)
            self.run("rmdir", "/run/small")

    def files(self) -> dict[str, bytes]:
        """All of /etc/xfrmpy, by path."""
        top = self.root / "etc/xfrmpy"
        return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}

    def _inside(self, *argv: str) -> tuple[str, ...]:
        return ("nsenter", f"--target={self.leader}", "--net", "--mount", "--wd=/", *argv)


class Played:
    """What `ansible-playbook` said."""

    def __init__(self, code: int, output: str) -> None:
        self.code = code
        self.output = output

    def count(self, word: str) -> dict[str, int]:
        """Of each host, how many tasks ended so: `changed`, `failed`, `unreachable`, ..."""
        recap = self.output.rpartition("PLAY RECAP")[2]
        found = re.findall(rf"^(\w+) +:.* {word}=(\d+)", recap, re.MULTILINE)
        return {host: int(number) for host, number in found}

    def diffs(self) -> list[str]:
        """The lines that files and secrets differ by, in their order."""
        lines = self.output.splitlines()
        return sorted(line for line in lines if re.match(r"[-+](?! after| before|\+\+|--)", line))


def changed(played: Played) -> set[str]:
    """The hosts where it did something."""
    return {host for host, count in played.count("changed").items() if count}


def good(played: Played) -> Played:
    """What was played, which did not fail."""
    assert played.code == 0, played.output
    return played


class Controller:
    """Where `ansible-playbook` runs, with nothing of its own but the collection."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "ansible.cfg").touch()
        collections = directory / "ansible_collections/xfrmpy"
        collections.mkdir(parents=True)
        (collections / "gateway").symlink_to(COLLECTION)

    def play(
        self, text: str, hosts: Mapping[str, Mapping[str, Any]], arguments: Sequence[str] = ()
    ) -> Played:
        """Run a playbook; the group of `hosts`, here with their variables, is `gateways`."""
        playbook = self._directory / "play.yml"
        playbook.write_text(text)
        return self.play_file(playbook, {"gateways": hosts}, arguments)

    def play_file(
        self,
        playbook: Path,
        groups: Mapping[str, Mapping[str, Mapping[str, Any]]],
        arguments: Sequence[str] = (),
    ) -> Played:
        """Run a playbook for hosts by their groups, with their variables."""
        inventory = self._directory / "inventory.yml"
        inventory.write_text(
            yaml.safe_dump({group: {"hosts": dict(hosts)} for group, hosts in groups.items()})
        )
        command = (str(Path(XFRMPY).parent / "ansible-playbook"), "-i", str(inventory))
        done = subprocess.run(
            (*command, *arguments, str(playbook)),
            capture_output=True,
            text=True,
            check=False,
            timeout=600 * PATIENCE,
            env={**os.environ, **self._environment(sum(map(len, groups.values())))},
        )
        return Played(done.returncode, done.stdout + done.stderr)

    def _environment(self, forks: int) -> dict[str, str]:
        return {
            "ANSIBLE_COLLECTIONS_PATH": str(self._directory),
            "ANSIBLE_CONNECTION_PLUGINS": str(LAB / "connection_plugins"),
            "ANSIBLE_CONFIG": str(self._directory / "ansible.cfg"),
            "ANSIBLE_FORKS": str(forks),
            "ANSIBLE_HOME": str(self._directory / "home"),
            "ANSIBLE_LOCAL_TEMP": str(self._directory / "home/tmp"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
            "PYDANTIC_DISABLE_PLUGINS": "__all__",
            "PATH": f"{Path(XFRMPY).parent}:{os.environ['PATH']}",
        }


class Fleet:
    """A context: the gateways, each with a daemon that has no policy."""

    def __init__(self, names: Sequence[str] = NAMES) -> None:
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xf-")))
            self._internet, hosts = _network(f"xf{os.getpid()}-{next(_serial)}", names, stack)
            self.members: dict[str, Member] = {}
            for number, host in enumerate(hosts, 1):
                member = Member(host, number, self.directory / host.name)
                stack.callback(member.close)
                self.members[host.name] = member
            for member in self.members.values():
                member.start()
            for member in self.members.values():
                member.await_ready()
            self._controller = Controller(self.directory)
            self._stack = stack.pop_all()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def play(
        self,
        *tasks: Mapping[str, Any],
        hosts: str,
        arguments: Sequence[str] = (),
        variables: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Played:
        """Run a play of these tasks with `ansible-playbook`; `variables` are those of hosts."""
        play = {"hosts": hosts, "gather_facts": False, "tasks": list(tasks)}
        return self.play_text(yaml.safe_dump([play], sort_keys=False), arguments, variables)

    def play_text(
        self,
        text: str,
        arguments: Sequence[str] = (),
        variables: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Played:
        """Run a playbook."""
        return self._controller.play(text, self._inventory(variables or {}), arguments)

    def _inventory(self, variables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        def host(name: str, member: Member) -> dict[str, Any]:
            return {
                "ansible_connection": "namespace",
                "ansible_python_interpreter": SYSTEM_PYTHON,
                "ansible_remote_tmp": str(self.directory / name / "tmp"),
                "namespace_leader": member.leader,
                "gateway_program": XFRMPY,
                "gateway_service": False,
                "mesh_address": member.outside,
                "mesh_subnets": [f"10.{member.number}.0.0/16"],
                **variables.get("all", {}),
                **variables.get(name, {}),
            }

        return {name: host(name, member) for name, member in self.members.items()}


def _network(prefix: str, names: Sequence[str], stack: ExitStack) -> tuple[Host, list[Host]]:
    internet = Host(name="internet", namespace=f"{prefix}-net")
    hosts = [
        Host(name=name, namespace=f"{prefix}-{name}", outside={4: f"192.0.2.{number}"})
        for number, name in enumerate(names, 1)
    ]
    for host in (internet, *hosts):
        run("ip", "netns", "add", host.namespace)
        stack.callback(run, "ip", "netns", "del", host.namespace)
    internet.batch("link add br0 type bridge mcast_snooping 0", "link set br0 up")
    for number, host in enumerate(hosts, 1):
        internet.batch(
            f"link add {host.name} type veth peer name wan netns {host.namespace}",
            f"link set {host.name} master br0 up",
        )
        host.batch(
            "link set lo up",
            "link set wan up",
            f"addr add {host.outside[4]}/24 dev wan",
            f"addr add 10.{number}.0.1/32 dev lo",
            "route add default via 192.0.2.254",
        )
        for file in ("default", "all", "wan"):
            host.run("sysctl", "-qw", f"net.ipv4.conf.{file}.rp_filter=0")
    for host in hosts:
        host.await_links()
    return internet, hosts
