"""`xfrmpy import` and `export`: files in, files out, and no secret shown by the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.policy.test_foreign import IPSEC, SWANCTL
from xfrmpy.cli.main import run

Golden = Callable[[str, str], None]
Captured = pytest.CaptureFixture[str]


def test_what_is_imported_can_be_checked_and_exported(tmp_path: Path, capsys: Captured) -> None:
    """The end that was imported is the one that is exported by the other."""
    (tmp_path / "swanctl.conf").write_text(SWANCTL)
    into = tmp_path / "etc"
    assert run(["import", str(tmp_path / "swanctl.conf"), "--into", str(into)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "1 tunnel carried over, with 0 notes on what is not as it was\n"
    assert (into / "secrets/office").stat().st_mode & 0o777 == 0o600
    assert (into / "secrets/office").read_text() == "key\n"
    assert run(["check", str(into / "conf.d")]) == 0
    capsys.readouterr()
    assert run(["export", "office", str(into / "conf.d"), "--for", "strongswan"]) == 0
    told = capsys.readouterr().out
    assert "local_addrs = 192.0.2.2\n" in told
    assert "secret" not in told
    assert run(["export", "office", str(into / "conf.d"), "--secrets"]) == 0
    assert f"secret = 0x{b'key'.hex()}\n" in capsys.readouterr().out
    assert run(["export", "office", str(into / "conf.d"), "--for", "libreswan"]) == 65
    assert "XF1042" in capsys.readouterr().err


def test_nothing_that_is_there_is_written_over(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "swanctl.conf").write_text(SWANCTL)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/office").write_text("mine")
    assert run(["import", str(tmp_path / "swanctl.conf"), "--into", str(tmp_path)]) == 64
    assert "XF1043" in capsys.readouterr().err
    assert (tmp_path / "secrets/office").read_text() == "mine"
    assert not (tmp_path / "conf.d").exists()


def test_the_secrets_beside_an_ipsec_conf_are_found_and_included_files_too(
    tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "ipsec.conf").write_text("include conf.d/*.conf\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/a.conf").write_text(IPSEC)
    (tmp_path / "ipsec.secrets").write_text('@#616263 : PSK "a key that is never shown"\n')
    assert run(["import", str(tmp_path / "ipsec.conf"), "-o", "json"]) == 0
    said = capsys.readouterr()
    assert "never shown" not in said.out + said.err
    document = json.loads(said.out)
    assert (document["kind"], document["secrets"]) == ("Import", ["base"])
    assert [*document["tunnels"]["base"]["children"]] == ["base", "voice"]
    assert document["notes"][0]["setting"] == "conn voice"


def test_the_documents_are_as_they_were(
    tmp_path: Path, capsys: Captured, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.conf").write_text(SWANCTL.replace("version = 2", "mobike = yes"))
    assert run(["import", "s.conf", "-o", "json"]) == 0
    golden("import.json", capsys.readouterr().out)
    assert run(["import", "s.conf"]) == 0
    said = capsys.readouterr()
    golden("import.txt", said.out + said.err)
    assert run(["import", "s.conf", "--into", "etc"]) == 0
    capsys.readouterr()
    assert run(["export", "office", "etc/conf.d", "-o", "json"]) == 0
    golden("export.json", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("connections {", "XF1040", "s.conf:1"),
        ("conn a\n x\n", "XF1040", "s.conf:2"),
        ("connections { }", "XF1041", "no connection"),
        ("\xff", "XF1040", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_use_says_why(
    tmp_path: Path, capsys: Captured, text: str, code: str, words: str
) -> None:
    (tmp_path / "s.conf").write_bytes(text.encode("latin-1"))
    assert run(["import", str(tmp_path / "s.conf")]) == 65
    told = capsys.readouterr().err
    assert code in told
    assert words in told.replace("\n  ", " ")


def test_a_policy_that_would_not_load_is_told_of(tmp_path: Path, capsys: Captured) -> None:
    text = SWANCTL.replace("dpd_delay = 30s", "dpd_delay = 100d")
    (tmp_path / "s.conf").write_text(text)
    assert run(["import", str(tmp_path / "s.conf")]) == 65
    assert "the policy would not load: XF1004" in capsys.readouterr().err


def test_a_file_or_a_tunnel_that_is_not_there(tmp_path: Path, capsys: Captured) -> None:
    assert run(["import", str(tmp_path / "none.conf")]) == 65
    assert "No such file" in capsys.readouterr().err
    assert run(["export", "office", str(tmp_path)]) == 64
    assert "XF1013" in capsys.readouterr().err
