"""A policy tree on disk, made from a dictionary and loaded for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xfrmpy.policy.load import LoadedPolicy, load_policy
from xfrmpy.policy.model import SharedKey, TunnelPolicy

STRONG = "0123456789abcdef0123456789abcdef\n"


def key_of(tunnel: TunnelPolicy) -> SharedKey:
    """The shared key of a tunnel that has one."""
    assert tunnel.shared_key is not None
    return tunnel.shared_key


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., LoadedPolicy]:
    """Writes files by their path below one layer (`office.yaml`, `../secrets/key`) and loads it.

    The secret `key` is always there. Paths in errors are relative to the layer.
    """
    layer = tmp_path / "etc" / "conf.d"
    secrets = tmp_path / "etc" / "secrets"

    def write_and_load(**files: str | bytes) -> LoadedPolicy:
        layer.mkdir(parents=True)
        secrets.mkdir()
        for name, content in {"../secrets/key": STRONG, **files}.items():
            data = content.encode() if isinstance(content, str) else content
            path = layer / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o600)
        return load_policy([layer])

    return write_and_load


@pytest.fixture
def lines(tmp_path: Path) -> Callable[[LoadedPolicy], list[str]]:
    """The errors of a policy as text, without the directories before the files."""

    def errors_as_text(loaded: LoadedPolicy) -> list[str]:
        layer, etc = f"{tmp_path}/etc/conf.d/", f"{tmp_path}/etc/"
        return [str(error).replace(layer, "").replace(etc, "") for error in loaded.errors]

    return errors_as_text
