"""Ansible's way to a gateway: into the namespaces of its first process.

Where the way there is a tunnel, `namespace_reach` is the address that must answer through it, or
the host is unreachable; pings go from process `namespace_source` and its address
`namespace_address`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: namespace
short_description: Enter namespaces of this machine
description: [See the module.]
author: [The xfrmpy authors]
version_added: 0.1.0
options:
  leader:
    description: The process whose namespaces it is.
    type: int
    vars: [{name: namespace_leader}]
  reach:
    description: An address that must answer.
    type: str
    default: ""
    vars: [{name: namespace_reach}]
  source:
    description: The process from whose namespaces it must.
    type: int
    default: 0
    vars: [{name: namespace_source}]
  address:
    description: The address that it asks from.
    type: str
    default: ""
    vars: [{name: namespace_address}]
"""


_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""A gateway's own: its Python is not the one of a checkout."""


class Connection(ConnectionBase):  # type: ignore[misc]
    transport = "namespace"
    has_pipelining = True

    def _connect(self) -> Connection:
        reach = self.get_option("reach")
        if reach:
            ping = ("ping", "-n", "-c", "3", "-W", "5", "-I", self.get_option("address"), reach)
            done = subprocess.run(
                _inside(self.get_option("source"), *ping), capture_output=True, check=False
            )
            if done.returncode:
                raise AnsibleConnectionFailure(f"{reach} does not answer")
        return self

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        self._connect()
        command = _inside(self.get_option("leader"), "env", _PATH, "/bin/sh", "-c", cmd)
        done = subprocess.run(command, capture_output=True, check=False, input=in_data or b"")
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        shutil.copyfile(in_path, self._seen_from_here(out_path))

    def fetch_file(self, in_path: str, out_path: str) -> None:
        shutil.copyfile(self._seen_from_here(in_path), out_path)

    def close(self) -> None:
        """There is nothing to close."""

    def _seen_from_here(self, path: str) -> Path:
        return Path(f"/proc/{self.get_option('leader')}/root{path}")


def _inside(leader: int, *argv: str) -> tuple[Any, ...]:
    return ("nsenter", f"--target={leader}", "--all", "--wd=/", *argv)
