"""`check --peer`: two directories of policy files, and whether their tunnels would come up."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path

import pytest

from tests.keypairs import key_pair
from xfrmpy.cli.main import run
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.policy.keys import host_key

Captured = pytest.CaptureFixture[str]
NAMES = ("moon", "sun")


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The policy files of moon and sun, which agree."""
    monkeypatch.setenv("XFRMPY_CONFIG_PATH", str(tmp_path / "nowhere/conf.d"))
    monkeypatch.setenv("NO_COLOR", "1")
    found = []
    for name, (here, there) in {"moon": (1, 2), "sun": (2, 1)}.items():
        directory = tmp_path / name / "conf.d"
        secret = tmp_path / name / "secrets/site"
        directory.mkdir(parents=True)
        secret.parent.mkdir()
        secret.write_text("k" * 32)
        secret.chmod(0o600)
        (directory / "site.yaml").write_text(
            f"peer: 192.0.2.{there}\nlocal_address: 192.0.2.{here}\npsk: secret:site\n"
            f"local: 10.{here}.0.0/16\nremote: 10.{there}.0.0/16\nstart: auto\n"
        )
        found.append(directory)
    moon, sun = found
    return moon, sun


def test_ends_that_agree_are_told_what_they_would_agree_on(
    ends: tuple[Path, Path], capsys: Captured
) -> None:
    moon, sun = ends
    assert run(["check", str(moon), "--peer", str(sun)]) == 0
    said = capsys.readouterr().out
    assert "site and site" in said
    assert "agree" in said
    assert "10.1.0.0/16 to 10.2.0.0/16" in said
    assert "1 of 1 tunnels would come up" in said


def test_what_differs_is_told_with_both_sides_values(
    ends: tuple[Path, Path], capsys: Captured
) -> None:
    moon, sun = ends
    (sun.parent / "secrets/site").write_text("x" * 32)
    file = sun / "site.yaml"
    file.write_text(file.read_text() + "ike: {proposals: [aes128-sha512-modp2048]}\n")
    arguments = ["check", str(moon), "--peer", str(file)]
    assert run(arguments) == 65
    said = capsys.readouterr().out
    assert "XF2002" in said
    assert "XF2005" in said
    assert "xxx" not in said
    assert run([*arguments, "-o", "json"]) == 65
    document = json.loads(capsys.readouterr().out)
    (pair,) = document["pairs"]
    assert (document["kind"], pair["works"], pair["peer_tunnel"]) == ("CheckPeer", False, "site")
    assert {d["code"] for d in pair["disagreements"]} == {"XF2002", "XF2005"}
    assert all(d["title"] for d in pair["disagreements"])


def test_a_file_with_an_error_is_told_at_its_place_and_no_counterpart_is_a_failure(
    ends: tuple[Path, Path], capsys: Captured
) -> None:
    moon, sun = ends
    file = sun / "site.yaml"
    file.write_text(file.read_text() + "lokal: 10.9.0.0/16\n")
    assert run(["check", str(moon), "--peer", str(sun)]) == 65
    said = capsys.readouterr().out
    assert "site.yaml:7:1" in said
    assert "nothing of the other end is meant for it" in said
    assert "0 of 1 tunnels" in said


def test_of_private_keys_the_public_ones_are_enough(
    ends: tuple[Path, Path], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both ends, and although this host has a private key of that name itself."""
    keys = [b64encode(key_pair(KeyKind.ED25519, name).public.spki).decode() for name in NAMES]
    for directory, ours, theirs in zip(ends, keys, reversed(keys), strict=True):
        file = directory / "site.yaml"
        auth = f"auth: {{local: {{key: secret:host.key}}, remote: {{key: {theirs}}}}}"
        file.write_text(file.read_text().replace("psk: secret:site", auth))
        (directory.parent / "secrets/host.key.pub").write_text(f"{ours}\n")
    host = ends[0].parents[1] / "host"
    monkeypatch.setenv("XFRMPY_CONFIG_PATH", str(host / "conf.d"))
    host_key(host / "secrets")
    moon, sun = map(str, ends)
    assert run(["check", moon, "--peer", sun]) == 0, capsys.readouterr()
    (ends[1].parent / "secrets/host.key.pub").write_text(f"{keys[0]}\n")
    assert run(["check", moon, "--peer", sun]) == 65
    assert "their key is not the one that is expected" in capsys.readouterr().out
    (ends[1].parent / "secrets/host.key.pub").unlink()
    assert run(["check", moon, "--peer", sun]) == 65, "the host's own key is not the peer's"
    assert run(["check", moon]) == 0, "by the host's own"
    (host / "secrets/host.key").unlink()
    assert run(["check", moon]) == 65, "nothing can be signed with a public key"
