"""Build the Debian package: `python .ci/build_deb.py DIRECTORY` prints the path of the `.deb`.

It has an environment of its own in `/usr/lib/xfrmpy`, with what `requirements.lock` names, and
shares nothing with other packages but Debian's Python. It needs `dpkg-deb`, and the virtual
environment that `make venv` makes.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import metadata, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from xfrmpy import __version__

ROOT = Path(__file__).resolve().parent.parent
HOME = Path("usr/lib/xfrmpy")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
SHELLS = {
    "bash": "usr/share/bash-completion/completions/xfrmpy",
    "zsh": "usr/share/zsh/vendor-completions/_xfrmpy",
    "fish": "usr/share/fish/vendor_completions.d/xfrmpy.fish",
}

CONTROL = """\
Package: xfrmpy
Version: {version}
Architecture: {architecture}
Maintainer: The xfrmpy authors <xfrmpy@localhost>
Section: net
Priority: optional
Installed-Size: {size}
Depends: python3 (>= {minor}), python3 (<< {next}), libc6 (>= 2.34),
 systemd | systemd-standalone-sysusers, systemd | systemd-standalone-tmpfiles
Recommends: nftables
Description: IPsec gateway with an IKEv2 daemon
 IKEv2 tunnels through the Linux kernel's XFRM, or in user space where the
 kernel has no ESP: policy in files, plan and apply, failures explained.
"""
SCRIPTS = {
    "postinst": """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
  /usr/lib/xfrmpy/bin/python -m compileall -q /usr/lib/xfrmpy/lib || true
  systemd-sysusers xfrmpy.conf
  systemd-tmpfiles --create xfrmpy.conf || true
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl restart systemd-modules-load.service || true
    sysctl -q -p /usr/lib/sysctl.d/50-xfrmpy.conf || true
    # The next daemon goes on with every SA.
    if [ -n "$2" ]; then systemctl try-restart xfrmpyd.service; fi
  fi
fi
""",
    "prerm": """\
#!/bin/sh
set -e
if [ "$1" = remove ]; then
  if [ -d /run/systemd/system ]; then
    systemctl disable --now xfrmpyd.service xfrmpy-block.service || true
  fi
  # Nothing would be left that could lift it.
  xfrmpy block --lift || true
fi
find /usr/lib/xfrmpy -name __pycache__ -type d -prune -exec rm -r {} +
""",
    "postrm": """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
if [ "$1" = purge ]; then
  rm -rf /run/xfrmpy
  # Policies and secrets are the operator's: what is not empty stays.
  for directory in conf.d secrets .; do
    rmdir "/etc/xfrmpy/$directory" 2>/dev/null || true
  done
  rmdir /etc/xfrmpy 2>/dev/null || true
fi
""",
}


def main(directory: Path) -> Path:
    """Build it in `directory`; returns the file's path."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "tree")
        tree.mkdir(mode=0o755)
        install_environment(tree, Path(scratch))
        install_units(tree)
        install_documentation(tree)
        install_completions(tree)
        describe(tree)
        directory.mkdir(parents=True, exist_ok=True)
        # With xz, the default, it is smaller by a fifth, and takes twenty times as long.
        compression = ("-Zzstd", "-z9")
        run("dpkg-deb", "--root-owner-group", *compression, "--build", str(tree), str(directory))
    (package,) = directory.glob(f"xfrmpy_{__version__}_*.deb")
    return package


def install_environment(tree: Path, scratch: Path) -> None:
    """A virtual environment, as for Debian's own interpreter."""
    home = tree / HOME
    packages = home / "lib" / PYTHON / "site-packages"
    packages.mkdir(parents=True)
    lock = scratch / "requirements.txt"
    lock.write_text("".join(locked_requirements()))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    into = ("--target", str(packages), "--no-compile", "--no-deps")
    run(*pip, "install", *into, "--require-hashes", "-r", str(lock))
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(scratch), str(ROOT))
    (wheel,) = scratch.glob("xfrmpy-*.whl")
    run(*pip, "install", *into, str(wheel))
    for unused in ("bin", "share"):
        shutil.rmtree(packages / unused, ignore_errors=True)
    binaries = home / "bin"
    binaries.mkdir()
    (binaries / "python").symlink_to(f"/usr/bin/{PYTHON}")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    program = binaries / "xfrmpy"
    program.write_text(f"#!/{HOME}/bin/python -P\nfrom xfrmpy.cli.__main__ import main\n\nmain()\n")
    program.chmod(0o755)
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/xfrmpy").symlink_to("../lib/xfrmpy/bin/xfrmpy")


def locked_requirements() -> list[str]:
    """The entries of the lock file that xfrmpy and its extras need, with their hashes."""
    entries = re.findall(r"^(?:[a-z0-9].*\\\n)(?:    --hash.*\n)+", lock_text(), re.MULTILINE)
    by_name = {canonicalize_name(entry.partition("==")[0]): entry for entry in entries}
    extras = metadata("xfrmpy").get_all("Provides-Extra") or []
    wanted, waiting = set[str](), ["xfrmpy"]
    while waiting:
        package = waiting.pop()
        installed = ["", *(extras if package == "xfrmpy" else [])]
        for line in requires(package) or []:
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            marker = requirement.marker
            needed = marker is None or any(marker.evaluate({"extra": e}) for e in installed)
            if needed and name not in wanted:
                wanted.add(name)
                waiting.append(name)
    return [by_name[name] for name in sorted(wanted)]


def lock_text() -> str:
    return (ROOT / "requirements.lock").read_text()


def install_units(tree: Path) -> None:
    """What `xfrmpy units` writes, in the places that are a package's."""
    program = ("--program", "/usr/bin/xfrmpy")
    run(xfrmpy(), "units", "--install", "--root", str(tree), *program)
    for place in ("systemd/system", "sysusers.d", "tmpfiles.d", "modules-load.d", "sysctl.d"):
        (tree / "usr/lib" / place).parent.mkdir(parents=True, exist_ok=True)
        (tree / "etc" / place).rename(tree / "usr/lib" / place)
    shutil.rmtree(tree / "etc")


def install_documentation(tree: Path) -> None:
    for page in sorted((ROOT / "docs/man").iterdir()):
        section = page.suffix[1:]
        write_compressed(tree / f"usr/share/man/man{section}/{page.name}.gz", page.read_bytes())
    doc = tree / "usr/share/doc/xfrmpy"
    write_compressed(doc / "changelog.gz", (ROOT / "CHANGELOG.md").read_bytes())
    shutil.copy(ROOT / "LICENSE", doc / "copyright")
    shutil.copytree(ROOT / "docs", doc / "docs", ignore=shutil.ignore_patterns("man"))
    shutil.copy(ROOT / "README.md", doc)


def write_compressed(path: Path, octets: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(octets, mtime=0))


def install_completions(tree: Path) -> None:
    for shell, place in SHELLS.items():
        # Which shell it is for is asked of the variable, and not found out.
        environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
        script = run(xfrmpy(), "--show-completion", shell, environment=environment)
        path = tree / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)


def describe(tree: Path) -> None:
    """The files that dpkg reads."""
    for path in tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    files = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()]
    sums = [f"{hashlib.md5(p.read_bytes()).hexdigest()}  {p.relative_to(tree)}\n" for p in files]
    control = tree / "DEBIAN"
    control.mkdir()
    (control / "md5sums").write_text("".join(sums))
    major, minor = sys.version_info[:2]
    text = CONTROL.format(
        version=__version__,
        architecture=run("dpkg", "--print-architecture").strip(),
        size=sum(path.stat().st_size for path in files) // 1024,
        minor=f"{major}.{minor}",
        next=f"{major}.{minor + 1}",
    )
    (control / "control").write_text(text)
    for name, script in SCRIPTS.items():
        (control / name).write_text(script)
        (control / name).chmod(0o755)


def xfrmpy() -> str:
    return str(Path(sys.executable).with_name("xfrmpy"))


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    """What it prints; a failure ends all, with what it complained of."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"build_deb: {command[0]} ended with {done.returncode}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(main(Path(sys.argv[1])))
