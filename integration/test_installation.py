"""The wheel and the sdist are whole, and `pipx` and `uv` make a working program of the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

import pytest

from integration.lab.process import LAB, run
from xfrmpy import __version__

pytestmark = pytest.mark.native

CHECKOUT = LAB.parents[1]
BINARIES = Path(sys.executable).parent
PAGES = {"share/man/man1/xfrmpy.1", "share/man/man5/xfrmpy.yaml.5", "share/man/man8/xfrmpyd.8"}


def build(checkout: Path, directory: Path) -> tuple[Path, Path]:
    """The sdist and the wheel."""
    command = (sys.executable, "-m", "hatchling", "build", "-d", str(directory))
    run("env", f"--chdir={checkout}", *command, seconds=120)
    (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(CHECKOUT, tmp_path_factory.mktemp("dist"))


def contents(wheel: Path) -> set[str]:
    """Of what it installs, without what tells of it."""
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    return {name.removeprefix(f"xfrmpy-{__version__}.data/data/") for name in names}


def kept() -> set[str]:
    """Files under version control."""
    listed = subprocess.run(
        ["git", "-C", str(CHECKOUT), "ls-files", "-z"], capture_output=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no clone: nobody knows which files are the project's")
    names = {name for name in listed.stdout.decode().split("\0") if name}
    return {name for name in names if (CHECKOUT / name).exists()}


def test_the_wheel_has_the_package_and_the_manual(built: tuple[Path, Path]) -> None:
    package = {name for name in kept() if name.startswith("xfrmpy/")}
    assert contents(built[1]) >= package | PAGES
    assert {name for name in contents(built[1]) if not name.endswith(".py")} <= package | PAGES


def test_the_sdist_has_everything_and_makes_the_same_wheel(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    run("tar", "-xf", str(built[0]), "-C", str(tmp_path))
    root = tmp_path / f"xfrmpy-{__version__}"
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert {name for name in kept() if not name.startswith(".git")} <= files
    _, again = build(root, tmp_path / "dist")
    assert contents(again) == contents(built[1])


@pytest.mark.parametrize(
    ("install", "extras", "refused"),
    [
        (("pipx", "install", "--python", sys.executable), "", "install xfrmpy[radius]"),
        (("uv", "tool", "install", "--no-cache", "--python", sys.executable), "[radius]", ""),
    ],
    ids=["pipx", "uv"],
)
def test_a_tool_of_its_own_shows_the_demo_and_has_the_extras_that_were_asked_for(
    install: tuple[str, ...],
    extras: str,
    refused: str,
    built: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    home = environment(tmp_path)
    tool(home, str(BINARIES / install[0]), *install[1:], f"{built[1]}{extras}")
    program = str(tmp_path / ".local/bin/xfrmpy")
    assert tool(home, program, "--version") == f"xfrmpy {__version__}\n"
    assert "not one packet clear" in tool(home, program, "demo", "--seconds", "0.5")
    policy = tmp_path / "radius.yaml"
    policy.write_text(RADIUS_POLICY.format(secret=secret_file(tmp_path)))
    said = tool(home, program, "check", str(policy), code=65 if refused else 0)
    assert refused in said


def environment(home: Path) -> Mapping[str, str]:
    """Of somebody who has nothing yet; how this machine reaches the registry stays."""
    known = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "PYTHON", "VIRTUAL_ENV", "PIPX_"))
    }
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {**known, "HOME": str(home), "PATH": path, "LC_ALL": "C.UTF-8"}


RADIUS_POLICY = """
radius: {{corp: {{servers: 192.0.2.10, secret: "file:{secret}"}}}}
"""


def secret_file(directory: Path) -> Path:
    path = directory / "secret"
    path.write_text("of radius, longer than needed\n")
    path.chmod(0o600)
    return path


def tool(environment: Mapping[str, str], *argv: str, code: int = 0) -> str:
    """What it says; with its errors if it is to fail."""
    done = subprocess.run(
        argv,
        env=environment,
        cwd=environment["HOME"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, (argv, done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stdout + done.stderr
