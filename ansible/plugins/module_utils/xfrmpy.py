# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What the modules share: the `xfrmpy` command, and files that are replaced whole or not at all.

Standard library only, for it runs on the gateways.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import tempfile

COMMON = {
    "program": {"type": "str", "default": "xfrmpy"},
    "runtime_dir": {"type": "path", "default": "/run/xfrmpy"},
}
"""Arguments of every module that asks the daemon."""

CONFIG_DIR = "/etc/xfrmpy"

HOST_KEY = "host.key"
"""The secret that a gateway's own key is in; `xfrmpy key show` makes it."""

DONE, NOT_UP, BAD_POLICY = 0, 3, 65
"""What `xfrmpy` exits with."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_SECRETS_MODE = 0o711
"""The daemon, under systemd no root, opens those that it knows by name."""
_SECRET_MODE = 0o400
_OWNER = "xfrmpy"
"""Whose user the daemon is under systemd; secrets are his."""

_FINGERPRINT_ROUNDS = 50_000
"""So that who sees the fingerprint of a weak secret does not find it by trying words."""


class Xfrmpy:
    """The `xfrmpy` command on this host."""

    def __init__(self, module):
        self._module = module
        self._program = module.get_bin_path(module.params["program"], required=True)
        self._environment = {}
        if "runtime_dir" in module.params:
            self._environment["XFRMPY_RUNTIME_DIR"] = module.params["runtime_dir"]
        config_dir = module.params.get("config_dir", CONFIG_DIR)
        if config_dir != CONFIG_DIR:
            self._environment["XFRMPY_CONFIG_PATH"] = os.path.join(config_dir, "conf.d")

    def ask(self, *argv):
        """Its exit code, and the document that it answers with (`-o json`)."""
        command = [self._program, *argv, "-o", "json"]
        code, output, errors = self._module.run_command(
            command, environ_update=self._environment, handle_exceptions=True
        )
        try:
            return code, json.loads(output)
        except ValueError:
            said = (errors or output).strip()
            self._module.fail_json(msg=f"{' '.join(command)} ended with {code}: {said}", rc=code)

    def make_key(self, layer):
        """A key of a host whose policy is in the directory `layer`; ends the module if it fails."""
        outside = self._environment
        self._environment = {**outside, "XFRMPY_CONFIG_PATH": layer}
        self.must("key", "show")
        self._environment = outside

    def must(self, *argv):
        """The document; ends the module with the failure if it is one."""
        code, answer = self.ask(*argv)
        failure = failure_of(answer)
        if failure is not None:
            self._module.fail_json(**failed(failure, code))
        return answer


def failure_of(answer):
    """The failure that a document tells of, or None."""
    outcomes = answer.get("tunnels") if answer["kind"] in ("Up", "Down", "Rekey") else None
    found = [outcome["failure"] for outcome in outcomes or () if outcome["failure"]]
    return next(iter(found), None) or answer.get("failure")


def failed(failure, code, **more):
    """What `fail_json` is to say of a failure: its words, what was seen, and what to do."""
    seen = "; ".join(f"{each['label']}: {each['seen']}" for each in failure["evidence"])
    parts = [f"{failure['code']}: {failure['title']}: {failure['summary']}", seen]
    if failure["fixes"]:
        parts.append("To do: " + "; ".join(failure["fixes"]))
    told = ". ".join(part.rstrip(".") for part in parts if part)
    return {"msg": told + ".", "rc": code, "failure": failure, **more}


def named(module, status, names):
    """The tunnels of a status by name, all or those named; ends the module if one is not there."""
    tunnels = {tunnel["name"]: tunnel for tunnel in status["tunnels"]}
    unknown = [name for name in names if name not in tunnels]
    if unknown:
        known = ", ".join(tunnels) or "none"
        module.fail_json(msg=f"no such tunnel: {', '.join(unknown)}; the policy has {known}")
    return {name: tunnels[name] for name in names or tunnels}


def check_name(module, name, what):
    """End the module unless it is fit to be a file's name."""
    if not _NAME.match(name):
        module.fail_json(
            msg=f"{name!r} cannot be {what}: letters, digits, `.`, `_` and `-`, no dot in front"
        )


def fingerprint(secret):
    """Twelve hexadecimal digits that tell a secret (octets) from another, and no more."""
    digest = hashlib.pbkdf2_hmac("sha256", secret.strip(), b"xfrmpy secret", _FINGERPRINT_ROUNDS)
    return digest[:6].hex()


def read_octets(module, path):
    """What a file holds, None if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        module.fail_json(msg=f"{path} cannot be read: {error.strerror}")


def replace_file(path, octets, mode, owner=None):
    """Write a file that is whole or as it was; raises `OSError`."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".xfrmpy.")
    try:
        with open(handle, "wb") as file:
            file.write(octets)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        if owner is not None:
            os.chown(temporary, owner, -1)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def write_tree(root, files):
    """Make a directory of private files, by their paths in it."""
    for path, text in files.items():
        place = os.path.join(root, path)
        os.makedirs(os.path.dirname(place), 0o700, exist_ok=True)
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)


class Secrets:
    """The directory of secrets: what is there, and a change of it that can be taken back."""

    def __init__(self, module, config_dir):
        self._module = module
        self.directory = os.path.join(config_dir, "secrets")
        self._replaced = {}

    def read(self, name):
        """A secret's octets without the line's end, None if there is none."""
        octets = read_octets(self._module, self.path(name))
        return None if octets is None else octets.strip()

    def names(self):
        """Of all that are there."""
        try:
            return [name for name in os.listdir(self.directory) if name[0] != "."]
        except FileNotFoundError:
            return []
        except OSError as error:
            self._module.fail_json(msg=f"{self.directory} cannot be read: {error.strerror}")

    def write(self, name, secret):
        """Replace it. Until `settle` what was there can be brought back. Raises `OSError`."""
        os.makedirs(self.directory, _SECRETS_MODE, exist_ok=True)
        memory = self.path(f".before.{name}.{os.getpid()}")
        if os.path.exists(self.path(name)):
            os.link(self.path(name), memory)  # A copy might not fit on a disk that is full.
        self._replaced[name] = memory
        replace_file(self.path(name), secret + b"\n", _SECRET_MODE, _owner())

    def settle(self, restore=False):
        """What was written stays; or, to `restore`, all is as it was."""
        for name, memory in self._replaced.items():
            if os.path.exists(memory):
                if restore:
                    os.replace(memory, self.path(name))
                else:
                    os.unlink(memory)
            elif restore and os.path.exists(self.path(name)):
                os.unlink(self.path(name))
        self._replaced = {}

    def path(self, name):
        return os.path.join(self.directory, name)


def _owner():
    try:
        return pwd.getpwnam(_OWNER).pw_uid
    except KeyError:
        return None


def secret_diff(directory, name, before, after, generated=False):
    """What `--diff` shows of a secret: its fingerprints, never the secret.

    Of one that this run generates it says only that, for a check cannot know which it will be.
    """
    now = "newly generated" if generated else after is not None and fingerprint(after)
    place = os.path.join(directory, name)
    return {
        "before_header": place,
        "after_header": place,
        "before": f"{name}: {fingerprint(before)}\n" if before is not None else "",
        "after": f"{name}: {now}\n" if now else "",
    }
