"""`xfrmpy units`: the files of `systemd/`, made for where this xfrmpy is, shown or installed.

They are for `systemctl`, which is for the operator to call: nothing is enabled or started here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from xfrmpy.cli.terminal import note, say
from xfrmpy.failures import ExitCode, OperatorError

_SOURCE = Path(__file__).parent / "systemd"
_PLACES = {
    "xfrmpyd.service": "etc/systemd/system/xfrmpyd.service",
    "xfrmpy-block.service": "etc/systemd/system/xfrmpy-block.service",
    "xfrmpy-tunnel@.service": "etc/systemd/system/xfrmpy-tunnel@.service",
    "xfrmpy.sysusers": "etc/sysusers.d/xfrmpy.conf",
    "xfrmpy.tmpfiles": "etc/tmpfiles.d/xfrmpy.conf",
    "xfrmpy.modules-load": "etc/modules-load.d/xfrmpy.conf",
    "xfrmpy.sysctl": "etc/sysctl.d/50-xfrmpy.conf",
}
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""What a unit does not see, or sees empty."""

_NEXT = """\
systemd-sysusers && systemd-tmpfiles --create xfrmpy.conf && systemctl daemon-reload
systemctl restart systemd-modules-load systemd-sysctl
systemctl enable --now xfrmpy-block.service xfrmpyd.service"""


def show_units(program: Path | None) -> int:
    """Print them one after the other, each behind the name of its file."""
    for place, text in _units(program):
        say(f"# /{place}")
        say(text)
    return ExitCode.DONE


def install_units(root: Path, program: Path | None) -> int:
    """Write them below a directory, and say what comes next."""
    for place, text in _units(program):
        path = root / place
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o644)
        except OSError as error:
            raise OperatorError("XF4025", f"{path} cannot be written: {error.strerror}") from error
        say(str(path))
    note(f"Next:\n{_NEXT}")
    return ExitCode.DONE


def _units(program: Path | None) -> Iterator[tuple[str, str]]:
    path = program or Path(sys.prefix, "bin", "xfrmpy")
    for seen in (path, path.resolve(), Path(sys.executable).resolve()):
        if any(seen.is_relative_to(hidden) for hidden in _HIDDEN):
            note(f"A unit does not see {seen}: install xfrmpy elsewhere, /opt for example.")
            break
    for name, place in _PLACES.items():
        yield place, (_SOURCE / name).read_text().replace("@xfrmpy@", str(path))
