"""Tokens of Debian's softhsm2, one for each test, in a directory of its own.

The module reads its configuration once a process, so all tokens of one process are in one place.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

from xfrmpy.crypto.signatures import SigningKey

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
UTILITY = shutil.which("softhsm2-util")
PIN = "a pin, not a number"
SO_PIN = "another one"

CONFIGURATION = """\
directories.tokendir = {directory}/tokens
objectstore.backend = file
log.level = ERROR
slots.removable = false
"""

_numbers = count()


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftToken:
    """A token by its label, and where its configuration is."""

    label: str
    configuration: Path

    @classmethod
    def make(cls, directory: Path, label: str, pin: str = PIN) -> SoftToken:
        """A new one in `directory`, which others may share."""
        configuration = directory / "softhsm2.conf"
        (directory / "tokens").mkdir(exist_ok=True)
        configuration.write_text(CONFIGURATION.format(directory=directory))
        token = cls(label=label, configuration=configuration)
        pins = ("--so-pin", SO_PIN, "--pin", pin)
        token._run("--init-token", "--free", "--label", label, *pins)
        return token

    def take(self, file: Path, name: str, pin: str = PIN) -> None:
        """Import a private key in PEM (PKCS #8), and its public half."""
        identity = name.encode().hex()
        where = ("--token", self.label, "--label", name, "--id", identity, "--pin", pin)
        self._run("--import", str(file), *where)

    def destroy(self) -> None:
        self._run("--delete-token", "--token", self.label)

    def uri(self, name: str, **more: str) -> str:
        """Of a key; `more` are attributes in place of others or besides."""
        path = {"token": self.label, "object": name, **more}
        named = ";".join(f"{key}={value}" for key, value in path.items() if value)
        return f"pkcs11:{named}?module-path={MODULE}"

    def _run(self, *arguments: str) -> None:
        assert UTILITY is not None
        environment = {**os.environ, "SOFTHSM2_CONF": str(self.configuration)}
        command = [UTILITY, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)


@cache
def here() -> Path:
    """The directory of the tokens of this process, as its module sees them."""
    directory = Path(tempfile.mkdtemp(prefix="xfrmpy-softhsm-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    os.environ["SOFTHSM2_CONF"] = str(directory / "softhsm2.conf")
    return directory


def new_token(*keys: tuple[str, SigningKey]) -> SoftToken:
    """One that this process sees, with these keys by their names."""
    token = SoftToken.make(here(), f"token{next(_numbers)}")
    for name, key in keys:
        file = here() / f"{token.label}-{name}.pem"
        file.write_bytes(key.pem())
        token.take(file, name)
        file.unlink()
    return token
