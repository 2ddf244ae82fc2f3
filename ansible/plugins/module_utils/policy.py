# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""A change of a gateway's policy files and secrets: all of it, or nothing, and told beforehand.

The daemon decides what changes and does it (`xfrmpy apply`); here is what it is asked, what of it
can be told before it is done, and how secrets and files come back if it cannot be done.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager

from ansible_collections.xfrmpy.gateway.plugins.module_utils.xfrmpy import (
    BAD_POLICY,
    COMMON,
    DONE,
    HOST_KEY,
    Secrets,
    Xfrmpy,
    check_name,
    failed,
    failure_of,
    read_octets,
    secret_diff,
    write_tree,
)

CHANGE = {
    **COMMON,
    "config_dir": {"type": "path", "default": "/etc/xfrmpy"},
    "confirm": {"type": "int", "default": 0},
    "timeout": {"type": "int", "default": 60},
    "allow_pending": {"type": "bool", "default": False},
    "accept_cut": {"type": "bool", "default": False},
}
"""Arguments of every module that changes the policy."""

_NOT_KEPT = "XF4024"
"""The policy is in force, and its files could not be written."""

_PLAIN_KEY = re.compile(r"(?!(?:yes|no|on|off|true|false|null|y|n)\Z)[a-z][a-z0-9_-]*\Z")


def policy_text(policy, indent=""):
    """A policy as YAML: a key a line, and values in JSON, which is YAML."""
    lines = []
    for key, value in policy.items():
        name = key if _PLAIN_KEY.match(key) else json.dumps(key)
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{name}:\n{policy_text(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{name}: {json.dumps(value)}\n")
    return "".join(lines)


def wanted_files(module, given):
    """Policy files by name, from `{name: text or mapping}`; ends the module if it is none."""
    files = {}
    for name, policy in given.items():
        stem = name.removesuffix(".yaml")
        check_name(module, stem, "the name of a policy file")
        text = policy_text(policy) if isinstance(policy, dict) else policy
        if not isinstance(text, str):
            kind = type(policy).__name__
            module.fail_json(
                msg=f"the policy of {stem!r} is neither a mapping nor text, but a {kind}"
            )
        files[f"{stem}.yaml"] = text if text.endswith("\n") else text + "\n"
    return files


def files_of(module, source):
    """The policy files of a directory on this host, or the one file that is named."""
    paths = [source]
    if os.path.isdir(source):
        paths = [os.path.join(source, name) for name in sorted(os.listdir(source))]
    chosen = [p for p in paths if p.endswith(".yaml") and os.path.basename(p)[0] != "."]
    if not chosen:
        module.fail_json(msg=f"{source} is no policy file, and no directory with one (*.yaml)")
    octets = {os.path.basename(path): read_octets(module, path) for path in chosen}
    absent = [name for name, content in octets.items() if content is None]
    if absent:
        module.fail_json(msg=f"{source} is not there")
    return {name: content.decode(errors="surrogateescape") for name, content in octets.items()}


def take_turn(module):
    """End the module if another play changes the policy; until it ends, nobody else does."""
    directory = module.params["config_dir"]
    if module.check_mode:
        return
    try:
        os.makedirs(os.path.join(directory, "conf.d"), exist_ok=True)
        fcntl.flock(os.open(directory, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        module.fail_json(
            msg=f"another play is changing {directory}: nothing was changed; run again"
        )
    except OSError as error:
        module.fail_json(msg=f"{error.filename} cannot be made or opened: {error.strerror}")


def remaining_files(module, name):
    """The policy files that are there, but for the one of a tunnel."""
    files = _texts(module, os.path.join(module.params["config_dir"], "conf.d"))
    check_name(module, name, "the name of a policy file")
    files.pop(f"{name}.yaml", None)
    return files


class PolicyChange:
    """What is to become of the policy: `files` in `conf.d`, beside others or in their place.

    `secrets` are values by name; those that this run has generated are named in `generated`, and
    public keys in `files` are in `generated_keys`.
    """

    def __init__(self, module, files, prune=False, secrets=None, generated=(), generated_keys=()):
        self._module = module
        self._xfrmpy = Xfrmpy(module)
        self._config_dir = module.params["config_dir"]
        self._directory = os.path.join(self._config_dir, "conf.d")
        self._before = _texts(module, self._directory)
        self._files = files
        self._prune = prune
        self._after = {**({} if prune else self._before), **files}
        self._secrets = Secrets(module, self._config_dir)
        self._new_secrets = self._different(secrets or {})
        self._generated = generated
        self._generated_keys = generated_keys
        self._lacks_key = (
            module.check_mode
            and any(f"secret:{HOST_KEY}" in text for text in files.values())
            and HOST_KEY not in self._secrets.names()
        )

    def run(self):
        """Do it, or in check mode only tell; ends the module either way."""
        diff = [*self._file_diffs(), *self._secret_diffs()]
        self._check()
        plan = self._plan()
        changes, drift = plan["changes"], [each for each in plan["drift"] if each["remedy"]]
        if not diff and (changes or drift):
            diff = [_in_force_diff(changes, drift)]
        result = {
            "changed": bool(diff),
            "changes": changes,
            "drift": plan["drift"],
            "diff": diff,
            "confirm_seconds": None,
        }
        if result["changed"] and not self._module.check_mode:
            plan = self._apply()
            result.update({key: plan[key] for key in ("changes", "drift", "confirm_seconds")})
        for warning in plan["warnings"]:
            self._module.warn(warning)
        self._module.exit_json(**result)

    def _different(self, secrets):
        for name, value in secrets.items():
            check_name(self._module, name, "the name of a secret")
            if not isinstance(value, str) or not value.strip():
                self._module.fail_json(msg=f"the secret {name!r} is not text, or empty")
        octets = {name: value.strip().encode() for name, value in secrets.items()}
        return {name: new for name, new in octets.items() if self._secrets.read(name) != new}

    def _file_diffs(self):
        for name in sorted({*self._before, *self._after}):
            before, after = self._before.get(name), self._after.get(name)
            if before != after:
                place = os.path.join(self._directory, name)
                yield {
                    "before_header": place if before is not None else f"{place} (absent)",
                    "after_header": place if after is not None else f"{place} (absent)",
                    "before": before or "",
                    "after": self._shown(after or ""),
                }

    def _shown(self, text):
        """A file as a check would show it, which cannot know what keys there will be."""
        for key in self._generated_keys:
            text = text.replace(key, "newly generated")
        return text

    def _secret_diffs(self):
        for name, new in sorted(self._new_secrets.items()):
            before, is_generated = self._secrets.read(name), name in self._generated
            yield secret_diff(self._secrets.directory, name, before, new, is_generated)

    def _check(self):
        """`xfrmpy check` of everything as it would be; ends the module if it finds an error."""
        with self._staged(self._module.tmpdir, self._after, self._new_secrets) as stage:
            if self._lacks_key:
                self._xfrmpy.make_key(stage)  # As good as the one that will be there.
            code, answer = self._xfrmpy.ask("check", stage)
        errors = [
            f"{error['file'].replace(stage, self._directory)}:{error['line']}:{error['column']}: "
            f"{error['code']}: {error['message']}" + (error["hint"] and f" ({error['hint']})")
            for error in answer.get("errors", ())
        ]
        if code != DONE:
            told = "; ".join(errors) or json.dumps(answer)
            self._module.fail_json(msg=f"bad policy, nothing was changed: {told}", rc=BAD_POLICY)

    def _plan(self):
        """What the daemon would do, or as much as can be told before the secrets are there."""
        with self._staged(self._module.tmpdir, self._files) as stage:
            code, answer = self._xfrmpy.ask("plan", *self._named(stage))
        failure = failure_of(answer)
        if failure is None:
            self._check_directory(answer["directory"])
            return answer
        if code != BAD_POLICY or not (self._new_secrets or self._lacks_key):
            self._module.fail_json(**failed(failure, code))
        return {"changes": [], "drift": [], "warnings": []}  # `_check` has seen the new ones.

    def _check_directory(self, directory):
        if os.path.realpath(directory) != os.path.realpath(self._directory):
            self._module.fail_json(
                msg=f"the daemon keeps its policy in {directory}, and `config_dir` says"
                f" {self._config_dir}: nothing was changed"
            )

    def _apply(self):
        given = self._module.params
        options = [f"--timeout={given['timeout']}"]
        options += [f"--confirm={given['confirm']}s"] if given["confirm"] else []
        options += ["--allow-pending"] if given["allow_pending"] else []
        options += ["--accept-cut"] if given["accept_cut"] else []
        try:
            for name, new in self._new_secrets.items():
                self._secrets.write(name, new)
            with self._staged(self._config_dir, self._files) as stage:
                command = ("apply", *self._named(stage), *options)
                done = keep_or_restore(self._module, self._xfrmpy, command)
            self._secrets.settle()
            return done
        except OSError as error:
            self._secrets.settle(restore=True)
            place = error.filename2 or error.filename or self._config_dir
            self._module.fail_json(
                msg=f"nothing was changed: {place} cannot be written: {error.strerror}"
            )
        except Refused as refused:
            self._secrets.settle(restore=True)
            self._module.fail_json(**failed(refused.failure, refused.code))

    def _named(self, stage):
        """The arguments for the files of a stage; none for what is there already."""
        if self._prune:
            return stage, "--prune"
        return (stage,) if self._files else ()

    @contextmanager
    def _staged(self, place, files, secrets=None):
        """A directory with those files, in one of its own that has `secrets` beside it."""
        parent = tempfile.mkdtemp(dir=place, prefix=".xfrmpy.")
        try:
            stage = os.path.join(parent, "conf.d")
            os.mkdir(stage)
            tree = {f"conf.d/{name}": text for name, text in files.items()}
            tree.update(
                {f"secrets/{name}": value.decode() for name, value in (secrets or {}).items()}
            )
            write_tree(parent, tree)
            yield stage
        finally:
            shutil.rmtree(parent, ignore_errors=True)


class Refused(Exception):
    """`xfrmpy` has failed, and all is as it was; `failure` says why."""

    def __init__(self, failure, code):
        super().__init__(failure["summary"])
        self.failure, self.code = failure, code


def keep_or_restore(module, xfrmpy, command):
    """Run a command that writes policy files; returns its document.

    Where the files cannot be written, the policy is rolled back and they are as they were. Raises
    `Refused`, and `OSError` if they cannot even be remembered.
    """
    directory = os.path.join(module.params["config_dir"], "conf.d")
    memory = tempfile.mkdtemp(dir=module.params["config_dir"], prefix=".before.")
    try:
        before = _yaml_files(directory)
        for name in before:
            os.link(os.path.join(directory, name), os.path.join(memory, name))
        code, answer = xfrmpy.ask(*command)
        failure = failure_of(answer)
        if failure is None:
            return answer
        if failure["code"] == _NOT_KEPT:
            for name in before:
                os.replace(os.path.join(memory, name), os.path.join(directory, name))
            for name in _yaml_files(directory):
                if name not in before:
                    os.unlink(os.path.join(directory, name))
            xfrmpy.ask("rollback")
            failure = {**failure, "title": "the policy is taken back, for its files cannot be kept"}
        raise Refused(failure, code)
    finally:
        shutil.rmtree(memory, ignore_errors=True)


def _yaml_files(directory):
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    return [name for name in names if name.endswith(".yaml") and name[0] != "."]


def _texts(module, directory):
    octets = {n: read_octets(module, os.path.join(directory, n)) for n in _yaml_files(directory)}
    return {name: (o or b"").decode(errors="surrogateescape") for name, o in octets.items()}


def _in_force_diff(changes, drift):
    """Where the files stay as they are: what is in force, and what they say."""
    before, after = [f"{each['what']}\n" for each in drift], []
    for change in changes:
        name = change["tunnel"]
        before += [f"{name}\n"] if change["action"] != "create" else []
        after += [f"{name}\n"] if change["action"] != "delete" else []
        for each in change["differences"]:
            key = ".".join(part for part in (name, each["child"], each["key"]) if part)
            before += [f"{key}: {each['before']}\n"] if each["before"] else []
            after += [f"{key}: {each['after']}\n"] if each["after"] else []
    return {
        "before_header": "in force",
        "after_header": "policy files",
        "before": "".join(before),
        "after": "".join(after),
    }
