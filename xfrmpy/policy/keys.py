"""Secrets and keys that a policy names: where they are, who else may read them, what they hold.

Read RFC 7296 section 2.15 on shared keys, RFC 5958 and RFC 7468 on the files of others. Nothing of
a secret's octets gets into a message. Whether a key may be used is decided in `crypto.signatures`.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from xfrmpy.crypto.signatures import (
    KeyRefused,
    SigningKey,
    VerifyingKey,
    certificates_of_pkcs12,
    is_pkcs12,
)
from xfrmpy.policy.certificates import CertificateFiles, Where
from xfrmpy.policy.custody import DAEMON_USER, daemon_user, find_exposure, trusted_users
from xfrmpy.policy.eap import parse_users
from xfrmpy.policy.errors import Findings, Mark
from xfrmpy.policy.extras import Extra
from xfrmpy.policy.files import printable, read_regular, reason_of
from xfrmpy.policy.model import (
    Certificates,
    EapUsers,
    PrivateKey,
    PublicKey,
    SharedKey,
    TokenKey,
)
from xfrmpy.policy.values import SecretReference
from xfrmpy.tokens.uri import SCHEME, parse_uri

TOKEN = SCHEME.removesuffix(":")
"""The scheme of references to keys on tokens."""

MAX_SECRET = 4096
MAX_KEY_FILE = 65536
"""Octets. An RSA key of 8192 bits takes 6,400 as PEM; PKCS #12 has certificates, too."""

MAX_USERS_FILE = 1 << 20
"""Octets: some 30,000 users. For more there are AAA servers."""

WEAK_SECRET = 16
"""Octets. RFC 7296 section 2.15 asks for as much unpredictability as the strongest key negotiated;
below 128 bits even a random secret has less, and can be guessed off-line by an active attacker."""


class KeyReader(Protocol):
    """Reads what a policy refers to; or gives None, and reports at the mark why it cannot."""

    def shared_key(
        self, reference: SecretReference, mark: Mark, findings: Findings
    ) -> SharedKey | None: ...

    def private_key(
        self,
        reference: SecretReference,
        passphrase: SecretReference | None,
        mark: Mark,
        findings: Findings,
    ) -> PrivateKey | None: ...

    def certificates_with(
        self,
        reference: SecretReference,
        passphrase: SecretReference | None,
        key: PrivateKey,
        where: Where,
    ) -> Certificates | None:
        """Those in the file or on the token of a private key; None, too, if there are none."""

    def public_key(self, value: str, mark: Mark, findings: Findings) -> PublicKey | None: ...

    def password(
        self, reference: SecretReference, mark: Mark, findings: Findings
    ) -> SharedKey | None: ...

    def users(
        self, reference: SecretReference, mark: Mark, findings: Findings
    ) -> EapUsers | None: ...

    def has_extra(self, extra: Extra, mark: Mark, findings: Findings) -> bool:
        """Whether what a key of the policy needs is installed here."""

    @property
    def certificates(self) -> CertificateFiles | None:
        """Where those are; None if nothing is to be read."""


class NoKeys:
    """Reads nothing: for what does not depend on keys."""

    def shared_key(self, *_: object) -> SharedKey:
        return SharedKey(octets=b"", origin="")

    def private_key(self, *_: object) -> PrivateKey:
        return PrivateKey(octets=b"", public=b"", origin="")

    def certificates_with(self, *_: object) -> None:
        return None

    def public_key(self, *_: object) -> PublicKey:
        return PublicKey(spki=b"", origin="")

    def password(self, *_: object) -> SharedKey:
        return SharedKey(octets=b"", origin="")

    def users(self, *_: object) -> EapUsers:
        return EapUsers(passwords=(), origin="")

    def has_extra(self, *_: object) -> bool:
        return True

    @property
    def certificates(self) -> None:
        return None


class KeyFiles:
    """See `KeyReader`. `secrets` are the directories of `secret:NAME`, lowest first.

    With `public_halves`, NAME.pub there is as good as a private key NAME: to be compared, not used.
    """

    def __init__(self, secrets: Sequence[Path], *, public_halves: bool = False) -> None:
        self._secrets = secrets
        self._public_halves = public_halves
        self.certificates = CertificateFiles([directory.parent for directory in secrets])

    def shared_key(
        self, reference: SecretReference, mark: Mark, findings: Findings
    ) -> SharedKey | None:
        found = self._read(reference, MAX_SECRET, mark, findings)
        if found is None:
            return None
        octets, name = found
        if len(octets) < WEAK_SECRET:
            message = f"the secret {name} is shorter than {WEAK_SECRET} octets"
            findings.warn("XF1015", mark, message, "make one with `openssl rand -base64 32`")
        return SharedKey(octets=octets, origin=name)

    def private_key(
        self,
        reference: SecretReference,
        passphrase: SecretReference | None,
        mark: Mark,
        findings: Findings,
    ) -> PrivateKey | None:
        if reference.scheme == TOKEN:
            return self._token_key(reference, passphrase, mark, findings)
        half = self._public_half(reference)
        if half is not None:
            public = self.public_key(f"file:{half}", mark, findings)
            if public is None:
                return None
            return PrivateKey(octets=b"", public=public.spki, origin=public.origin)
        found = self._unlock(reference, passphrase, mark, findings)
        if found is None:
            return None
        octets, name, password = found
        try:
            key = SigningKey.of_file(octets, password)
        except KeyRefused as error:
            findings.error("XF1030", mark, f"the key {name} cannot be used: {error}")
            return None
        return PrivateKey(octets=key.pkcs8(), public=key.public.spki, origin=name)

    def certificates_with(
        self,
        reference: SecretReference,
        passphrase: SecretReference | None,
        key: PrivateKey,
        where: Where,
    ) -> Certificates | None:
        if key.token is not None:
            return self._token_certificates(key, key.token, where)
        if not key.octets:
            return None
        found = self._unlock(reference, passphrase, where.mark, where.findings)
        if found is None or not is_pkcs12(found[0]):
            return None
        octets, name, password = found
        try:
            ders = certificates_of_pkcs12(octets, password)
        except KeyRefused as error:
            where.findings.error("XF1031", where.mark, f"{name} cannot be used: {error}")
            return None
        return self.certificates.ours_of(ders, name, key, where)

    def _token_key(
        self,
        reference: SecretReference,
        passphrase: SecretReference | None,
        mark: Mark,
        findings: Findings,
    ) -> PrivateKey | None:
        if not self.has_extra(Extra.hsm, mark, findings):
            return None
        from xfrmpy.tokens import access  # noqa: PLC0415

        name = f"{reference.scheme}:{reference.name}"
        pin = None if passphrase is None else self.password(passphrase, mark, findings)
        if passphrase is not None and pin is None:
            return None
        token = TokenKey(uri=parse_uri(name), pin=b"" if pin is None else pin.octets)
        try:
            public = access.read_public(token.uri, token.pin)
        except access.TokenFailed as error:
            findings.error("XF1045", mark, f"the key {name} cannot be used: {error}")
            return None
        return PrivateKey(octets=b"", public=public, origin=name, token=token)

    def _token_certificates(
        self, key: PrivateKey, token: TokenKey, where: Where
    ) -> Certificates | None:
        from xfrmpy.tokens import access  # noqa: PLC0415

        try:
            ders = access.read_certificates(token.uri, token.pin, key.public)
        except access.TokenFailed as error:
            where.findings.error("XF1045", where.mark, f"{key.origin} cannot be used: {error}")
            return None
        return self.certificates.ours_of(ders, key.origin, key, where) if ders else None

    def _unlock(
        self,
        reference: SecretReference,
        passphrase: SecretReference | None,
        mark: Mark,
        findings: Findings,
    ) -> tuple[bytes, str, bytes | None] | None:
        """What the file of a key holds, its name, and the passphrase if there is one."""
        found = self._read(reference, MAX_KEY_FILE, mark, findings, is_raw=True)
        unlocks = None
        if found is not None and passphrase is not None:
            unlocks = self._read(passphrase, MAX_SECRET, mark, findings)
            if unlocks is None:
                return None
        return None if found is None else (*found, None if unlocks is None else unlocks[0])

    def public_key(self, value: str, mark: Mark, findings: Findings) -> PublicKey | None:
        """A key itself, as base64, or `file:/PATH` of one."""
        path = Path(value.removeprefix("file:")) if value.startswith("file:") else None
        name = f"{findings.file}:{mark.line}" if path is None else printable(path)
        try:
            octets = value.encode() if path is None else _read_public(path)
            key = VerifyingKey.of_file(octets)
        except (KeyRefused, OSError, ValueError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else str(error)
            findings.error("XF1030", mark, f"the public key cannot be used: {reason}", _SHOW)
            return None
        return PublicKey(spki=key.spki, origin=name)

    def password(
        self, reference: SecretReference, mark: Mark, findings: Findings
    ) -> SharedKey | None:
        """What a person would type: text as it is, short as it may be."""
        found = self._read(reference, MAX_SECRET, mark, findings, is_raw=True)
        if found is None:
            return None
        octets, name = _without_newline(found[0]), found[1]
        try:
            if not octets.decode():
                raise ValueError("it is empty")
        except ValueError as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            findings.error("XF1008", mark, f"the secret {name} cannot be read: {reason}")
            return None
        return SharedKey(octets=octets, origin=name)

    def users(self, reference: SecretReference, mark: Mark, findings: Findings) -> EapUsers | None:
        found = self._read(reference, MAX_USERS_FILE, mark, findings, is_raw=True)
        if found is None:
            return None
        octets, name = found
        try:
            return EapUsers(passwords=parse_users(octets), origin=name)
        except ValueError as error:
            findings.error("XF1037", mark, f"the users {name} cannot be used: {error}", _USERS)
            return None

    def has_extra(self, extra: Extra, mark: Mark, findings: Findings) -> bool:
        if not extra.is_installed:
            message = f"this needs the Python package '{extra.value}', which is not installed"
            findings.error("XF1044", mark, message, f"install xfrmpy[{extra.name}]")
        return extra.is_installed

    def _public_half(self, reference: SecretReference) -> Path | None:
        """In the place of a private key that is not there, or is in a directory below only."""
        if not self._public_halves or reference.scheme != "secret":
            return None
        half = SecretReference("secret", f"{reference.name}.pub")
        for directory in reversed(self._secrets):
            if _secret_path([directory], reference) is not None:
                return None
            path = _secret_path([directory], half)
            if path is not None:
                return path
        return None

    def _read(
        self,
        reference: SecretReference,
        limit: int,
        mark: Mark,
        findings: Findings,
        *,
        is_raw: bool = False,
    ) -> tuple[bytes, str] | None:
        """What a secret holds, and its name for messages."""
        path = _secret_path(self._secrets, reference)
        if path is None and reference.scheme == "credential":
            message = f"the credential '{reference.name}' is not there"
            hint = f"LoadCredential={reference.name}:/PATH of the service, which alone can read it"
            findings.error("XF1008", mark, message, hint)
            return None
        if path is None:
            places = [printable(directory / reference.name) for directory in self._secrets]
            message = f"the secret '{reference.name}' is not there"
            findings.error("XF1008", mark, message, f"looked for {', '.join(places) or 'nothing'}")
            return None
        name = printable(path)
        try:
            data, status = read_regular(path, limit)
            octets = data if is_raw else _parse_secret(data)
        except (OSError, ValueError) as error:
            message = f"the secret {name} cannot be read: {reason_of(error)}"
            is_his = isinstance(error, PermissionError) and os.geteuid() == daemon_user()
            findings.error("XF1008", mark, message, f"chown {DAEMON_USER} {name}" if is_his else "")
            return None
        is_given = reference.scheme == "credential"
        exposure = None if is_given else find_exposure(path, status, name)
        if exposure is not None:
            findings.error("XF1009", mark, f"the secret {name} {exposure.problem}", exposure.hint)
            return None
        return octets, name


_USERS = "a line is NAME: PASSWORD, or empty, or begins with #"
_SHOW = "`xfrmpy key show` at the peer shows its key"


def _read_public(path: Path) -> bytes:
    """Everybody may read it, but who may write it says whom we trust. Raises `ValueError`."""
    data, status = read_regular(path, MAX_KEY_FILE)
    if status.st_mode & 0o022 or status.st_uid not in trusted_users():
        raise ValueError(f"{printable(path)} can be changed by others")
    return data


def _secret_path(secrets: Sequence[Path], reference: SecretReference) -> Path | None:
    """Of `secret:` the highest that has it, or may have it: a directory that cannot be searched.

    systemd hands out credentials as files of a directory, whose rights are its business.
    """
    if reference.scheme == "file":
        return Path(reference.name)
    if reference.scheme == "credential":
        given = os.environ.get("CREDENTIALS_DIRECTORY", "")
        path = Path(given, reference.name)
        return path if given and path.exists() else None
    for directory in reversed(secrets):
        path = directory / reference.name
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            pass
        return path
    return None


def _parse_secret(data: bytes) -> bytes:
    """The key that a file means: `0x` and hex, `0s` and base64, or the octets as they are.

    One newline at the end is not part of it. Raises `ValueError` without the secret.
    """
    text = _without_newline(data)
    try:
        match text[:2]:
            case b"0x":
                octets = binascii.unhexlify(text[2:])
            case b"0s":
                octets = base64.b64decode(text[2:], validate=True)
            case _:
                octets = text
    except binascii.Error:
        form = "hex" if text[:2] == b"0x" else "base64"
        raise ValueError(f"it begins as {form} but goes on otherwise") from None
    if not octets:
        raise ValueError("it is empty")
    return octets


def _without_newline(data: bytes) -> bytes:
    return data.removesuffix(b"\r\n" if data.endswith(b"\r\n") else b"\n")


HOST_KEY = "host.key"
"""The secret that the key of this host is in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """The public half of the key of this host, and how people compare it."""

    spki: bytes
    fingerprint: str


def host_key(secrets: Path) -> HostKey:
    """The key of this host, made at its first use: Ed25519, which only the daemon's user reads.

    Raises `OSError`, and `KeyRefused` if what is there is no key.
    """
    path = secrets / HOST_KEY
    try:
        data, _ = read_regular(path, MAX_KEY_FILE)
        return _shown(SigningKey.of_file(data))
    except FileNotFoundError:
        pass
    key, owner = SigningKey.generate(), daemon_user()
    secrets.mkdir(mode=0o711, parents=True, exist_ok=True)  # The daemon's user finds it there.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        if owner is not None and os.geteuid() == 0:
            os.fchown(descriptor, owner, -1)
        file.write(key.pem())
    return _shown(key)


def _shown(key: SigningKey) -> HostKey:
    return HostKey(spki=key.public.spki, fingerprint=key.public.fingerprint)
