"""`xfrmpy key show`, `invite` and `join`: two hosts that come to know each other's public key."""

from __future__ import annotations

import json
import os
import secrets
import sys
from base64 import b64encode
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from xfrmpy.cli.documents import document
from xfrmpy.cli.terminal import note, printable, say
from xfrmpy.control.calls import PolicyText
from xfrmpy.failures import ExitCode, OperatorError
from xfrmpy.policy.invitation import (
    MAX_TOKEN,
    SECRET_SIZE,
    Invitation,
    Offer,
    Reply,
    check_reply,
    identity_of,
    policy_text,
    read_token,
    write_invitation,
    write_reply,
)
from xfrmpy.policy.keys import HOST_KEY, HostKey, host_key
from xfrmpy.policy.load import config_path, operator_layer
from xfrmpy.policy.values import NAME, NAME_RULE

Apply = Callable[[list[PolicyText]], int]
"""Puts policy files in force, and keeps them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """What an operator says of this end."""

    id: str | None
    address: str
    local: tuple[str, ...]

    def offer(self, tunnel: str) -> Offer:
        spki = _host_key().spki
        return Offer(
            tunnel=tunnel,
            id=self.id or identity_of(spki),
            address=self.address,
            key=b64encode(spki).decode(),
            local=self.local,
        )


def show_key(*, as_json: bool) -> int:
    """The public key of this host, which is made if there is none yet."""
    host = _host_key()
    spki, key = host.spki, b64encode(host.spki).decode()
    if as_json:
        say(document("Key", key=key, fingerprint=host.fingerprint, id=identity_of(spki)))
    else:
        say(key)
        note(f"fingerprint {host.fingerprint}, id {identity_of(spki)}")
    return ExitCode.DONE


def invite(tunnel: str, ours: Ours) -> int:
    """Print the token, and remember what it says until the reply comes."""
    if not NAME.fullmatch(tunnel):
        raise OperatorError("XF5001", f"the name of the tunnel: {NAME_RULE}")
    if not ours.local:
        raise OperatorError("XF5001", "what is on this side is missing: --local PREFIX")
    invitation = Invitation(offer=ours.offer(tunnel), secret=secrets.token_bytes(SECRET_SIZE))
    plain = {**asdict(invitation.offer), "secret": invitation.secret.hex()}
    path = _pending(tunnel)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            json.dump(plain, file)
    except OSError as error:
        raise _cannot_write(path, error) from error
    say(write_invitation(invitation))
    note("Who has this token can be the other end: hand it over like a password. There:")
    note("xfrmpy join TOKEN --local PREFIX")
    return ExitCode.DONE


def join(token: str, ours: Ours, apply: Apply) -> int:
    """Take an invitation, and print the reply; or take the reply. Raises `OperatorError`.

    `-` is the next line of the standard input: what is an argument, every user of a host may read.
    """
    try:
        said = read_token(sys.stdin.readline(MAX_TOKEN + 1).strip() if token == "-" else token)
        return _accept(said, apply) if isinstance(said, Reply) else _answer(said, ours, apply)
    except ValueError as error:
        raise OperatorError("XF5002", str(error)) from error


def _answer(invitation: Invitation, ours: Ours, apply: Apply) -> int:
    if not ours.local:
        raise OperatorError("XF5001", "what is on this side is missing: --local PREFIX")
    offer = ours.offer(invitation.offer.tunnel)
    # Where nobody can call us, it is we who begin.
    code = _put_in_force(offer, invitation.offer, apply, begins=not offer.address)
    if code == ExitCode.DONE:
        say(write_reply(offer, invitation))
        note("Give this to the host that has invited you: xfrmpy join TOKEN")
    return code


def _accept(reply: Reply, apply: Apply) -> int:
    path = _pending(reply.offer.tunnel)
    try:
        plain = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"this host has not invited anybody to '{reply.offer.tunnel}'") from error
    secret = bytes.fromhex(plain.pop("secret"))
    invitation = Invitation(offer=Offer(**{**plain, "local": tuple(plain["local"])}), secret=secret)
    check_reply(reply, invitation)
    code = _put_in_force(invitation.offer, reply.offer, apply, begins=True)
    if code == ExitCode.DONE:
        path.unlink()
    return code


def _put_in_force(ours: Offer, theirs: Offer, apply: Apply, *, begins: bool) -> int:
    text = policy_text(ours, theirs, key=f"secret:{HOST_KEY}", begins=begins)
    _keep_what_is_there(ours.tunnel, text)
    note(
        printable(
            f"{ours.tunnel}: {', '.join(ours.local)} here, {', '.join(theirs.local)} there, "
            f"with {theirs.id} at {theirs.address or 'any address'}"
        )
    )
    return apply([PolicyText(name=f"{ours.tunnel}.yaml", text=text)])


def _keep_what_is_there(tunnel: str, text: str) -> None:
    """The other end chooses the name: it must not take the place of another tunnel of ours."""
    path = _directory() / "conf.d" / f"{tunnel}.yaml"
    try:
        found = path.read_text(errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_write(path, error) from error
    if found != text:
        raise OperatorError("XF1043", f"{path} has a tunnel of that name already")


def _host_key() -> HostKey:
    directory = _directory() / "secrets"
    try:
        return host_key(directory)
    except OSError as error:
        raise _cannot_write(directory / HOST_KEY, error) from error
    except ValueError as error:
        raise OperatorError("XF1030", f"{directory / HOST_KEY}: {error}") from error


def _directory() -> Path:
    return operator_layer(config_path(os.environ)).parent


def _pending(tunnel: str) -> Path:
    return _directory() / "invitations" / f"{tunnel}.json"


def _cannot_write(path: Path, error: OSError) -> OperatorError:
    code = "XF4003" if isinstance(error, PermissionError) else "XF4024"
    return OperatorError(code, f"{path}: {error.strerror or error}")
