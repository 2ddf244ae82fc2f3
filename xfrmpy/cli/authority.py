"""What `xfrmpy cert` does: the files around `pki.issuing`.

Nothing that is there is written over, but the list of revocations, which is replaced whole.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from xfrmpy.cli.terminal import note, say
from xfrmpy.failures import ExitCode, OperatorError
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.certificate import Certificate, load_bundle
from xfrmpy.pki.checks import check_certificate, check_leaf
from xfrmpy.pki.identities import identities_of
from xfrmpy.pki.issuing import Authority, Issued, KeyType, make_authority, pem_of
from xfrmpy.pki.revocation import RevocationList, decode_crl_untrusted
from xfrmpy.pki.verdicts import CertificateRefused

CRL_DAYS = 30


def make_authority_in(directory: Path, name: str, key: str, days: int) -> int:
    """`xfrmpy cert ca`."""
    try:
        made = make_authority(name, KeyType(key), serial=_serial(), now=_now(), days=days)
    except ValueError as error:
        raise OperatorError("XF5001", str(error)) from error
    _write_pair(directory, "ca", made)
    revoke_in(directory, [], CRL_DAYS)
    note(f"Give {directory / 'ca.pem'} to the peers; keep {directory / 'ca.key'} to yourself.")
    return ExitCode.DONE


def issue_from(directory: Path, name: str, ids: list[str], out: Path, key: str, days: int) -> int:
    """`xfrmpy cert issue`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,62}", name):
        summary = f"{name!r} cannot name files: letters, digits, and `.`, `-`, `_`, `@`, `:`"
        raise OperatorError("XF5001", summary)
    authority = _authority(directory)
    try:
        identities = [Identity.parse(text) for text in ids]
        issued = authority.issue(
            name, identities, KeyType(key), serial=_serial(), now=_now(), days=days
        )
    except ValueError as error:
        raise OperatorError("XF5001", str(error)) from error
    except CertificateRefused as refused:
        raise _failure(refused, directory / "ca.pem") from refused
    _write_pair(out, name, issued)
    return ExitCode.DONE


def show_file(file: Path) -> int:
    """`xfrmpy cert show`. Fails if IKE peers would not take the first certificate."""
    certificates = _certificates(file)
    for number, certificate in enumerate(certificates):
        for line in _described(certificate):
            say(line)
        if number + 1 < len(certificates):
            say("")
    first = certificates[0]
    try:
        check_certificate(first, _now())
        if not first.is_authority:
            check_leaf(first)
    except CertificateRefused as refused:
        raise _failure(refused, file) from refused
    return ExitCode.DONE


def revoke_in(directory: Path, files: list[Path], days: int) -> int:
    """`xfrmpy cert revoke`."""
    authority = _authority(directory)
    serials = []
    for file in files:
        leaf = _certificates(file)[0]
        if leaf.issuer != authority.certificate.subject:
            raise OperatorError("XF4030", f"{file} is not of this authority", leaf.evidence)
        serials.append(leaf.library.serial_number)
    path = directory / "crl.pem"
    crl = authority.revoke(serials, _crl(path), now=_now(), days=days)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    _write(temporary, crl)
    temporary.replace(path)
    say(str(path))
    return ExitCode.DONE


def _described(certificate: Certificate) -> Iterator[str]:
    key = certificate.public_key
    for label, value in (
        ("subject", certificate.name),
        *(("id", str(identity)) for identity in identities_of(certificate)),
        ("issuer", certificate.evidence[1][1]),
        ("serial", certificate.serial),
        ("valid from", certificate.validity.not_before.isoformat()),
        ("valid to", certificate.validity.not_after.isoformat()),
        ("key", f"{type(key).__name__.removesuffix('PublicKey')} {getattr(key, 'key_size', '')}"),
        ("authority", "yes" if certificate.is_authority else "no"),
        ("sha256", certificate.fingerprint),
    ):
        yield f"{label:<11} {value}".rstrip()


def _authority(directory: Path) -> Authority:
    certificate = _certificates(directory / "ca.pem")[0]
    key = directory / "ca.key"
    try:
        return Authority.load(certificate, _read(key))
    except CertificateRefused as refused:
        raise _failure(refused, key) from refused


def _certificates(file: Path) -> tuple[Certificate, ...]:
    try:
        return load_bundle(_read(file))
    except CertificateRefused as refused:
        raise _failure(refused, file) from refused


def _crl(file: Path) -> RevocationList | None:
    if not file.exists():
        return None
    try:
        return decode_crl_untrusted(_read(file))
    except CertificateRefused as refused:
        raise _failure(refused, file) from refused


def _failure(refused: CertificateRefused, file: Path) -> OperatorError:
    evidence = (("file", str(file)), *refused.evidence)
    return OperatorError("XF4030", f"{refused.summary} ({refused.problem.value})", evidence)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise OperatorError("XF4030", f"{file} cannot be read: {error.strerror}") from error


def _write_pair(directory: Path, name: str, issued: Issued) -> None:
    """The key first: a certificate that nobody can use is of no use."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError("XF4025", f"{directory}: {error.strerror}") from error
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    _refuse_existing(certificate)
    _write(key, issued.key_pem, mode=0o600)
    _write(certificate, pem_of(issued.certificate))
    say(f"{certificate}\n{key}")


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise OperatorError("XF4025", f"{path} is there already, and is not written over")


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """A new file, with its mode from the first moment on."""
    _refuse_existing(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(path, flags, mode), "wb") as stream:
            stream.write(data)
    except OSError as error:
        raise OperatorError("XF4025", f"{path} cannot be written: {error.strerror}") from error


def _serial() -> int:
    """RFC 5280 section 4.1.2.2: positive, at most 20 octets; not to be guessed."""
    return secrets.randbits(128) | 1 << 127


def _now() -> datetime:
    return datetime.now(UTC)
