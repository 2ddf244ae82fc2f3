"""How the two ends of a connection of swanctl.conf prove who they are, in the keys of our policy.

Certificates and keys stay where strongSwan has them, below the directory of swanctl.conf, and the
policy names their files. Which private key belongs to a certificate strongSwan finds out by their
octets; so does whoever imports, and hands it in as a `Keyring`. Nothing is read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from xfrmpy.policy.foreign.importing import listed, put
from xfrmpy.policy.foreign.syntax import Section

CERTS, AUTHORITIES, PUBLIC_KEYS = "x509", "x509ca", "pubkey"
"""The directories of swanctl.conf(5)."""

OF_PROOFS = frozenset({"certs", "cacerts", "pubkeys", "eap_id"})
"""The settings of an end that are looked at here, each beside an `auth` of its kind."""

ANYBODY = ("", "%any")
_SIGNATURES = ("pubkey", "rsa", "ecdsa", "ed25519", "ed448")
_METHODS = {f"eap-{method}": method for method in ("mschapv2", "md5", "gtc")}


class Unproved(ValueError):
    """An end whose proof has nothing that stands for it here; a sentence for the operator."""


class Keyring(Protocol):
    """The files beside a swanctl.conf."""

    def path(self, directory: str, name: str) -> str:
        """Of a file that a setting names, in one of its directories unless it says where."""

    def all_in(self, directory: str) -> Sequence[str]:
        """The paths of every file in a directory."""

    def private_key(self, path: str) -> str | None:
        """The path of the private key of a certificate or public key, if it is there."""

    def subject(self, path: str) -> str | None:
        """Whose certificate it is, as an identity; None if it is none."""


class NoFiles:
    """A file that stands nowhere."""

    def path(self, directory: str, name: str) -> str:
        return f"{directory}/{name}"

    def all_in(self, directory: str) -> Sequence[str]:  # noqa: ARG002
        return ()

    def private_key(self, path: str) -> str | None:  # noqa: ARG002
        return None

    def subject(self, path: str) -> str | None:  # noqa: ARG002
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class EapSecret:
    """`eap-NAME` of the secrets."""

    users: tuple[str, ...]
    octets: bytes = field(repr=False)

    def line(self) -> bytes:
        """Of a list of users of ours. Raises `Unproved`."""
        try:
            password = self.octets.decode()
        except UnicodeDecodeError as error:
            raise Unproved(f"the password of {self.users[0]} is no text") from error
        return "".join(f"{user}: {password}\n" for user in self.users).encode()


@dataclass(slots=True, kw_only=True)
class Proofs:
    """What of a tunnel is about proofs. `passwords` are called by what comes behind its name."""

    settings: dict[str, Any] = field(default_factory=dict)
    passwords: dict[str, bytes] = field(default_factory=dict, repr=False)
    is_shared: bool = False
    our_id: str | None = None
    has_users: bool = False
    used: dict[str, set[str]] = field(default_factory=lambda: {"local": set(), "remote": set()})


def proofs_of(
    ours: Section, theirs: Section, keyring: Keyring, users: Sequence[EapSecret], name: str
) -> Proofs:
    """Of both ends; `name` is what their tunnel will be called. Raises `Unproved`."""
    found = Proofs()
    for side, end in (("local", ours), ("remote", theirs)):
        auth = auth_of(end)
        if auth == "psk":
            found.is_shared = True
        elif auth.split("-")[0] in _SIGNATURES:
            (_sign if side == "local" else _verify)(end, keyring, found)
        elif auth in _METHODS:
            (_be_user if side == "local" else _admit)(end, users, found, name)
        else:
            raise Unproved(f"{side} auth = {auth}: {_REASONS.get(auth, 'is not carried over')}")
    return found


_REASONS = {
    "eap": "the method must be named",
    "eap-dynamic": "the method must be named",
    "eap-radius": "its servers are in strongswan.conf: write `radius`, docs/radius.md",
    **{
        f"eap-{method}": "write it as `eap` of `auth`, docs/eap.md"
        for method in ("tls", "ttls", "peap")
    },
}


def constrains_signatures(end: Section) -> bool:
    """Whether it says by which algorithms, which is not carried over."""
    auth = auth_of(end)
    return auth != "pubkey" and auth.split("-")[0] in _SIGNATURES


def auth_of(end: Section) -> str:
    """In small letters, and what strongSwan means where there is none."""
    setting = end.settings.get("auth")
    return setting.value.lower() if setting is not None and setting.value else "pubkey"


def _sign(end: Section, keyring: Keyring, found: Proofs) -> None:
    for key, directory in (("certs", CERTS), ("pubkeys", PUBLIC_KEYS)):
        named = listed(end.settings.get(key))
        if not named:
            continue
        if len(named) > 1:
            raise Unproved(f"local {key} = {', '.join(named)}: an end has one here")
        found.used["local"].add(key)
        path = keyring.path(directory, named[0])
        private = keyring.private_key(path)
        if private is None:
            raise Unproved(f"none of the private keys is that of {path}, or it is encrypted")
        put(found.settings, "auth.local.key", f"file:{private}")
        if key == "certs":
            put(found.settings, "auth.local.cert", f"file:{path}")
            found.our_id = keyring.subject(path)
        return
    raise Unproved("local auth = pubkey, without `certs` or `pubkeys`: name the one to show")


def _verify(end: Section, keyring: Keyring, found: Proofs) -> None:
    keys, certs = (listed(end.settings.get(key)) for key in ("pubkeys", "certs"))
    if certs:
        raise Unproved("remote certs: here an authority vouches for the peer, or its key is known")
    if keys:
        if len(keys) > 1:
            raise Unproved(f"remote pubkeys = {', '.join(keys)}: a peer has one here")
        found.used["remote"].add("pubkeys")
        put(found.settings, "auth.remote.key", f"file:{keyring.path(PUBLIC_KEYS, keys[0])}")
        return
    named = [keyring.path(AUTHORITIES, each) for each in listed(end.settings.get("cacerts"))]
    found.used["remote"].add("cacerts")
    trusted = named or list(keyring.all_in(AUTHORITIES))
    if len(trusted) != 1:
        shown = ", ".join(trusted) or "none"
        raise Unproved(f"authorities: {shown}; put those to trust in one file, and name it `ca`")
    put(found.settings, "auth.remote.ca", f"file:{trusted[0]}")


def _be_user(end: Section, users: Sequence[EapSecret], found: Proofs, name: str) -> None:
    setting = end.settings.get("eap_id") or end.settings.get("id")
    found.used["local"].add("eap_id")
    user = "" if setting is None else setting.value
    passwords = [each.octets for each in users if user in each.users]
    if not passwords:
        raise Unproved(f"no secret is that of the user {user or '(none is named)'}")
    found.passwords["user"] = passwords[0] + b"\n"
    eap = {"method": _METHODS[auth_of(end)], "identity": user, "password": f"secret:{name}.user"}
    put(found.settings, "auth.local.eap", eap)


def _admit(end: Section, users: Sequence[EapSecret], found: Proofs, name: str) -> None:
    lines = b"".join(dict.fromkeys(each.line() for each in users if each.users))
    if not lines:
        raise Unproved("no secret is that of a user")
    found.passwords["users"] = lines
    found.has_users = True
    found.used["remote"].add("eap_id")
    eap: dict[str, Any] = {"users": f"secret:{name}.users", "methods": _METHODS[auth_of(end)]}
    named = [*_named(end)]
    if named:
        eap["identities"] = named
    put(found.settings, "auth.remote.eap", eap)


def _named(end: Section) -> Iterator[str]:
    setting = end.settings.get("eap_id")
    if setting is not None and setting.value not in (*ANYBODY, "*"):
        yield setting.value
