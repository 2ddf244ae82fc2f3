"""Who else could read a secret's file, or put another in its place."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import NamedTuple

DAEMON_USER = "xfrmpy"
"""Who runs the daemon where it has a user of its own; secrets may be his. Not his group's, whose
members may only look at tunnels."""


class Exposure(NamedTuple):
    """Why a secret is not used: its continuation of `the secret NAME ...`, and what mends it."""

    problem: str
    hint: str


def find_exposure(path: Path, status: os.stat_result, name: str) -> Exposure | None:
    """What is wrong with a file that has this status, if anything.

    `name` is the path for messages. A link says nothing of who may write what it leads to, so the
    file itself has to be named. Raises `OSError`.
    """
    if path.is_symlink():
        return Exposure("is a symbolic link", f"write where it leads to: file:{path.resolve()}")
    if status.st_uid not in trusted_users():
        problem = f"belongs to another user (uid {status.st_uid})"
        owner = "root" if daemon_user() is None else DAEMON_USER
        return Exposure(problem, f"chown {owner} {name}")
    if status.st_mode & 0o077:
        problem = f"can be read by others (mode {status.st_mode & 0o7777:04o})"
        return Exposure(problem, f"chmod 600 {name}")
    return _of_directory(path.parent, name)


def _of_directory(directory: Path, name: str) -> Exposure | None:
    """Who may write a directory may put another file there, unless only owners may move theirs."""
    status, shown = os.stat(directory), os.path.dirname(name) or "."
    if status.st_uid not in trusted_users():
        problem = f"is in a directory of another user (uid {status.st_uid})"
        return Exposure(problem, f"chown root {shown}")
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        problem = f"is in a directory that others can write (mode {status.st_mode & 0o7777:04o})"
        return Exposure(problem, f"chmod go-w {shown}")
    return None


def trusted_users() -> set[int]:
    """Who may have the secrets: root, the daemon's user, and who asks."""
    known = {0, os.geteuid(), daemon_user()}
    return {uid for uid in known if uid is not None}


def daemon_user() -> int | None:
    try:
        return pwd.getpwnam(DAEMON_USER).pw_uid
    except KeyError:
        return None
