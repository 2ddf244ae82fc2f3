"""`xfrmpy import` and `xfrmpy export`: from and to the files of strongSwan and libreswan.

Neither shows a secret unless `export --secrets` asks for it.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path

from xfrmpy.cli.check import load_checked
from xfrmpy.cli.documents import document
from xfrmpy.cli.failure import tell_failure
from xfrmpy.cli.terminal import Painter, note, printable, say
from xfrmpy.failures import ExitCode, Failure, OperatorError
from xfrmpy.policy.foreign import rendering
from xfrmpy.policy.foreign.exporting import other_end
from xfrmpy.policy.foreign.importing import Imported
from xfrmpy.policy.foreign.ipsec_conf import Dialect, import_ipsec_conf
from xfrmpy.policy.foreign.keyring import SwanctlFiles
from xfrmpy.policy.foreign.swanctl import import_swanctl
from xfrmpy.policy.foreign.syntax import (
    ForeignSyntaxError,
    SharedSecret,
    Text,
    parse_ipsec_conf,
    parse_ipsec_secrets,
    parse_swanctl,
)
from xfrmpy.policy.load import LoadedPolicy, load_policy

_MAX_FILE = 1 << 20
_SECRET_MODE = 0o600


class Foreign(StrEnum):
    """Whose file it is."""

    SWANCTL = "swanctl"
    STRONGSWAN = "strongswan"
    LIBRESWAN = "libreswan"


def import_file(
    path: Path,
    *,
    kind: Foreign | None,
    secrets: Path | None,
    ours: str,
    into: Path | None,
    as_json: bool,
) -> int:
    """Read the file, write or print its policies, and tell what they leave out."""
    text = _read(str(path))
    kind = kind or (Foreign.SWANCTL if _looks_like_swanctl(text) else None)
    try:
        imported = _import(text, kind, secrets, ours)
    except ForeignSyntaxError as error:
        evidence = (("at", error.place),)
        raise OperatorError("XF1040", str(error), evidence) from error
    policy = imported.policy_text()
    loaded = _loaded(imported, policy)
    faults = [f"{error.code}: {error.message}" for error in loaded.errors]
    if into is not None and policy:
        _write(into, f"{path.stem}.yaml", policy, _secret_files(imported))
    if as_json:
        say(_document(imported, faults))
    else:
        if into is None and policy:
            say(policy.removesuffix("\n"))
        _tell(imported, faults, into)
    if not policy:
        failure = Failure(code="XF1041", summary=f"{path} has no connection that xfrmpy could have")
        return failure.kind.exit_code if as_json else tell_failure(failure)
    return ExitCode.BAD_POLICY if faults else ExitCode.DONE


def export_tunnel(
    name: str,
    paths: Sequence[Path],
    *,
    kind: Foreign,
    address: str,
    with_secrets: bool,
    as_json: bool,
) -> int:
    """Print the other end of a tunnel, or its secrets, as the other daemon has them."""
    loaded = load_checked(paths)
    tunnel = next((t for t in loaded.tunnels if t.name == name), None)
    if tunnel is None:
        raise OperatorError("XF1013", f"no policy has a tunnel {name!r} without errors")
    try:
        end = other_end(tunnel, address)
        text = _RENDERED[kind, with_secrets](end)
    except rendering.Unrenderable as error:
        raise OperatorError("XF1042", f"{name}: {error}") from error
    say(document("Export", tunnel=name, text=text) if as_json else text.removesuffix("\n"))
    return ExitCode.DONE


_RENDERED = {
    (Foreign.STRONGSWAN, False): rendering.swanctl_conf,
    (Foreign.STRONGSWAN, True): rendering.swanctl_secrets,
    (Foreign.LIBRESWAN, False): rendering.ipsec_conf,
    (Foreign.LIBRESWAN, True): rendering.ipsec_secrets,
}


def _import(text: Text, kind: Foreign | None, secrets: Path | None, ours: str) -> Imported:
    if kind is Foreign.SWANCTL:
        files = SwanctlFiles(Path(text.name).parent)
        return import_swanctl(parse_swanctl(text, _include), files)
    beside = secrets or Path(text.name).with_name("ipsec.secrets")
    keys: list[SharedSecret] = []
    if secrets is not None or beside.exists():
        keys = parse_ipsec_secrets(_read(str(beside)), _include)
    dialect = None if kind is None else Dialect(kind.value)
    return import_ipsec_conf(parse_ipsec_conf(text, _include), keys, dialect=dialect, ours=ours)


def _looks_like_swanctl(text: Text) -> bool:
    """An ipsec.conf is called so, or has sections without braces."""
    is_ipsec = os.path.basename(text.name).startswith("ipsec")
    return not is_ipsec and not re.search(
        r"^(conn|config|ca)\s+[\w%]|^version\s+\d", text.content, re.MULTILINE
    )


def _read(name: str) -> Text:
    try:
        with open(name, "rb") as file:
            data = file.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise OperatorError("XF1040", f"{name} is longer than {_MAX_FILE} octets")
        return Text(name=name, content=data.decode())
    except UnicodeDecodeError as error:
        raise OperatorError("XF1040", f"{name} is not UTF-8") from error
    except OSError as error:
        raise OperatorError("XF1012", f"{name}: {error.strerror}") from error


def _include(pattern: str, within: str) -> Iterator[Text]:
    """Relative to the file that includes; a pattern that meets nothing is nothing."""
    where = os.path.join(os.path.dirname(within), pattern)
    for name in sorted(glob.glob(where)):
        yield _read(name)


def _loaded(imported: Imported, policy: str) -> LoadedPolicy:
    """The policy as the daemon would read it; a secret that is missing is told of elsewhere."""
    with tempfile.TemporaryDirectory(prefix="xfrmpy-import-") as place:
        stand_in = dict.fromkeys(imported.tunnels, b"0" * 32)
        _write(Path(place), "imported.yaml", policy, {**stand_in, **_secret_files(imported)})
        return load_policy([Path(place, "conf.d")])


def _write(directory: Path, name: str, policy: str, secrets: Mapping[str, bytes]) -> None:
    """As `conf.d` and `secrets` of a layer; nothing that is there is touched."""
    files = [(directory / "conf.d" / name, policy.encode(), 0o644)]
    files += [
        (directory / "secrets" / secret, content, _SECRET_MODE)
        for secret, content in secrets.items()
    ]
    for path, _, _ in files:
        if path.exists():
            raise OperatorError("XF1043", f"{path} is there already, and nothing was written")
    try:
        for path, data, mode in files:
            path.parent.mkdir(
                parents=True, exist_ok=True, mode=0o700 if mode == _SECRET_MODE else 0o755
            )
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
    except OSError as error:
        raise OperatorError("XF1012", f"{error.filename}: {error.strerror}") from error


def _secret_files(imported: Imported) -> dict[str, bytes]:
    shared = {name: _secret_file(octets) for name, octets in imported.secrets.items()}
    return {**shared, **imported.passwords}


def _secret_file(octets: bytes) -> bytes:
    """As our loader reads it back: text, or hex."""
    text = octets.decode("latin-1")
    if octets.isascii() and text.isprintable() and text[:2] not in ("0x", "0s"):
        return octets + b"\n"
    return b"0x" + octets.hex().encode() + b"\n"


def _tell(imported: Imported, faults: Sequence[str], into: Path | None) -> None:
    paint = Painter(sys.stderr)
    for each in imported.notes:
        note(f"{paint(each.place, 'dim')}: {printable(each.setting)}: {printable(each.reason)}")
    for fault in faults:
        note(f"the policy would not load: {printable(fault)}")
    secrets = [*imported.secrets, *imported.passwords]
    if secrets and into is None:
        names = ", ".join(secrets)
        note(f"secrets are not shown: `--into DIRECTORY` writes them, too ({names})")
    counts = [(len(imported.tunnels), "tunnel"), (len(imported.shunts), "shunt")]
    what = ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counts if n) or "nothing"
    lost = len(imported.notes)
    note(f"{what} carried over, with {lost} note{'s' * (lost != 1)} on what is not as it was")


def _document(imported: Imported, faults: Sequence[str]) -> str:
    return document(
        "Import",
        tunnels=dict(imported.tunnels),
        shunts=dict(imported.shunts),
        secrets=[*imported.secrets, *imported.passwords],
        notes=[asdict(each) for each in imported.notes],
        faults=list(faults),
    )
