"""The certificates and keys beside a swanctl.conf, read to find out what belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xfrmpy.crypto.signatures import KeyRefused, SigningKey, VerifyingKey
from xfrmpy.pki.certificate import MAX_BUNDLE_OCTETS, load_bundle
from xfrmpy.pki.verdicts import CertificateRefused
from xfrmpy.policy.files import read_regular

_PRIVATE = ("private", "pkcs8", "rsa", "ecdsa")
"""Where swanctl looks for private keys."""


class SwanctlFiles:
    """Those of one directory; what cannot be read is passed over. See `credentials.Keyring`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()

    def path(self, directory: str, name: str) -> str:
        return str(self._directory / directory / name)

    def all_in(self, directory: str) -> Sequence[str]:
        return sorted(str(each) for each in (self._directory / directory).glob("*"))

    def private_key(self, path: str) -> str | None:
        public = _public_key(path)
        candidates = (path for directory in _PRIVATE for path in self.all_in(directory))
        return next((c for c in candidates if public and public == _public_of(c)), None)

    def subject(self, path: str) -> str | None:
        try:
            return load_bundle(_read(path))[0].name
        except CertificateRefused:
            return None


def _public_key(path: str) -> bytes | None:
    """That of a certificate, or of a file of a public key."""
    data = _read(path)
    try:
        return load_bundle(data)[0].public_key_info
    except CertificateRefused:
        pass
    try:
        return VerifyingKey.of_file(data).spki
    except KeyRefused:
        return None


def _public_of(path: str) -> bytes | None:
    try:
        return SigningKey.of_file(_read(path)).public.spki
    except KeyRefused:
        return None


def _read(path: str) -> bytes:
    try:
        data, _ = read_regular(Path(path), MAX_BUNDLE_OCTETS)
    except (OSError, ValueError):
        return b""
    return data
