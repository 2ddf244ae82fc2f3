"""Secrets that others could read or replace are not used; credentials of systemd are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from xfrmpy.policy.errors import PolicyError
from xfrmpy.policy.load import LoadedPolicy, load_policy

Load = Callable[..., LoadedPolicy]

TUNNEL = "{peer: vpn.example.org, psk: %s, local: 10.1.0.0/16, remote: 10.2.0.0/16}\n"
SECRET = "hunter2 and thirty octets more, or so"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The directory of the secrets; a policy's key is `key` in it."""
    (tmp_path / "conf.d").mkdir()
    directory = tmp_path / "secrets"
    directory.mkdir(mode=0o700)
    (directory / "key").write_text(SECRET)
    (directory / "key").chmod(0o600)
    return directory


def errors(secrets: Path, reference: str = "secret:key") -> tuple[PolicyError, ...]:
    layer = secrets.parent / "conf.d"
    (layer / "office.yaml").write_text(TUNNEL % reference)
    loaded = load_policy([layer])
    assert bool(loaded.tunnels) is not bool(loaded.errors)
    assert SECRET not in repr(loaded)
    return loaded.errors


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_one_that_is_its_owners_alone_is_used(secrets: Path, mode: int) -> None:
    (secrets / "key").chmod(mode)
    assert errors(secrets) == errors(secrets, f"file:{secrets}/key") == ()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722, 0o720, 0o702])
def test_one_that_others_could_replace_is_refused(secrets: Path, mode: int) -> None:
    secrets.chmod(mode)
    (error,) = errors(secrets)
    assert error.code == "XF1009"
    assert "is in a directory that others can write" in error.message
    assert error.hint == f"chmod go-w {secrets}"


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o711, 0o1777])
def test_a_directory_may_be_looked_into(secrets: Path, mode: int) -> None:
    secrets.chmod(mode)
    assert errors(secrets) == ()


@needs_root
def test_a_directory_of_another_user_is_refused(secrets: Path) -> None:
    os.chown(secrets, 12345, 12345)
    (error,) = errors(secrets)
    assert (error.code, "uid 12345" in error.message) == ("XF1009", True)


@pytest.mark.parametrize("form", ["secret:link", "file:{}/link"])
def test_a_link_is_refused_and_where_it_leads_is_told(secrets: Path, form: str) -> None:
    (secrets / "link").symlink_to(secrets / "key")
    (error,) = errors(secrets, form.format(secrets))
    assert (error.code, "is a symbolic link" in error.message) == ("XF1009", True)
    assert error.hint == f"write where it leads to: file:{secrets}/key"
    assert errors(secrets, f"file:{secrets}/key") == ()


def test_a_link_to_a_secret_of_anothers_does_not_get_around_it(secrets: Path) -> None:
    (secrets / "key").chmod(0o644)
    (secrets / "link").symlink_to(secrets / "key")
    assert [e.code for e in errors(secrets, "secret:link")] == ["XF1009"]


def test_a_credential_is_read_where_systemd_has_put_it(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rights may be of an access control list, which a mode does not tell."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secrets))
    (secrets / "key").chmod(0o440)
    assert errors(secrets, "credential:key") == ()
    (error,) = errors(secrets, "credential:other")
    assert (error.code, "LoadCredential=other:/PATH" in error.hint) == ("XF1008", True)


def test_without_a_service_there_are_no_credentials(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.chdir(secrets)
    assert [e.code for e in errors(secrets, "credential:key")] == ["XF1008"]


@pytest.mark.parametrize("name", ["../key", "", "a/b", ".hidden"])
def test_a_credential_is_named_and_no_path(secrets: Path, name: str) -> None:
    assert [e.code for e in errors(secrets, f"'credential:{name}'")] == ["XF1004"]
