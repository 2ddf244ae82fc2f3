"""`xfrmpy cert`, and the tutorial of docs/certificates.md, which runs here as it stands there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from xfrmpy.cli.main import run
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.certificate import Certificate, load_bundle
from xfrmpy.pki.identities import check_identity
from xfrmpy.pki.paths import validate
from xfrmpy.pki.revocation import decode_crl_untrusted
from xfrmpy.pki.statuses import Proofs, check_revocation
from xfrmpy.pki.verdicts import CertificateRefused, Problem, Strictness
from xfrmpy.policy.load import load_policy

PAGE = Path(__file__).parent.parent.parent / "docs" / "certificates.md"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(*arguments: str) -> None:
    assert run(["cert", *arguments]) == 0


def path_of(name: str) -> tuple[Certificate, ...]:
    (leaf,) = load_bundle(Path(f"{name}.pem").read_bytes())
    anchors = load_bundle(Path("ca/ca.pem").read_bytes())
    return validate(leaf, intermediates=[], anchors=anchors, now=datetime.now(UTC))


def check_list(name: str) -> None:
    crl = decode_crl_untrusted(Path("ca/crl.pem").read_bytes())
    check_revocation(path_of(name), Proofs(lists=(crl,)), Strictness.STRICT, datetime.now(UTC))


def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    commands = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    assert len(commands) >= 6
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "xfrmpy"
        assert run(arguments) == 0
    _load_the_policy(tmp_path)
    check_list("gw1.example.net")
    with pytest.raises(CertificateRefused) as caught:
        check_list("gw2.example.net")
    assert caught.value.problem is Problem.REVOKED


def _load_the_policy(here: Path) -> None:
    """The page's policy finds the files that its commands have made, where it says they go."""
    etc = here / "etc"
    for name in ("certs", "keys", "cas", "conf.d"):
        (etc / name).mkdir(parents=True)
    (here / "gw1.example.net.pem").rename(etc / "certs/gw1.example.net.pem")
    (here / "gw1.example.net.key").rename(etc / "keys/gw1.example.net.key")
    (etc / "cas/example.pem").write_bytes((here / "ca/ca.pem").read_bytes())
    text, *_ = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (etc / "conf.d/gw2.yaml").write_text(text)
    loaded = load_policy([etc / "conf.d"])
    assert loaded.errors == loaded.warnings == ()
    (tunnel,) = loaded.tunnels
    assert str(tunnel.local_id) == "gw1.example.net"
    assert str(tunnel.remote_id) == "gw2.example.net"
    (etc / "certs/gw1.example.net.pem").rename(here / "gw1.example.net.pem")


@pytest.mark.parametrize("kind", ["p256", "p384", "ed25519", "rsa3072"])
def test_what_is_issued_is_valid_for_its_identities(kind: str) -> None:
    made("ca", "O=Example, CN=Example VPN", "--key", kind)
    ids = ("gw.example.net", "192.0.2.1", "2001:db8::1", "ann@example.org")
    made("issue", "gw", "--key", kind, *(word for text in ids for word in ("--id", text)))
    leaf, authority = path_of("gw")
    for text in (*ids, "O=Example, CN=gw"):
        check_identity(leaf, Identity.parse(text))
    assert leaf.usages is None
    assert authority.path_length == 0
    check_list("gw")


def test_keys_are_for_their_owner_only() -> None:
    made("ca", "CN=Example VPN")
    made("issue", "gw", "--out", "out")
    for file in ("ca/ca.key", "out/gw.key"):
        assert Path(file).stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in Path("out/gw.pem").read_bytes()


def test_nothing_is_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    made("ca", "CN=Example VPN")
    made("issue", "gw")
    before = {path: path.read_bytes() for path in Path().rglob("*.*")}
    assert run(["cert", "ca", "CN=Another"]) == 1
    assert run(["cert", "issue", "gw"]) == 1
    Path("gw.pem").unlink()
    assert run(["cert", "issue", "gw"]) == 1
    assert {path: path.read_bytes() for path in before if path.exists()} == {
        path: data for path, data in before.items() if path != Path("gw.pem")
    }
    assert "XF4025" in capsys.readouterr().err


def test_a_key_is_not_written_through_a_link() -> None:
    made("ca", "CN=Example VPN")
    Path("gw.key").symlink_to("elsewhere")
    assert run(["cert", "issue", "gw"]) == 1
    assert not Path("elsewhere").exists()


def test_a_certificate_ends_with_its_authority() -> None:
    made("ca", "CN=Example VPN", "--days", "30")
    made("issue", "gw", "--days", "365")
    leaf, authority = path_of("gw")
    assert leaf.validity.not_after == authority.validity.not_after
    assert leaf.validity.not_after < datetime.now(UTC) + timedelta(days=31)


def test_what_was_revoked_once_stays_so() -> None:
    made("ca", "CN=Example VPN")
    for name in ("one", "two", "three"):
        made("issue", name)
    made("revoke", "one.pem")
    made("revoke", "two.pem", "one.pem")
    made("revoke")
    crl = decode_crl_untrusted(Path("ca/crl.pem").read_bytes())
    assert (len(crl.library), crl.number) == (2, 4)
    check_list("three")
    for name in ("one", "two"):
        with pytest.raises(CertificateRefused):
            check_list(name)


def test_show_says_who_it_is_and_fails_for_what_peers_refuse(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made("ca", "O=Example, CN=Example VPN")
    made("issue", "gw", "--id", "gw.example.net")
    capsys.readouterr()
    made("show", "gw.pem")
    shown = capsys.readouterr().out
    assert "id          gw.example.net\n" in shown
    assert "issuer      O=Example, CN=Example VPN\n" in shown
    made("show", "ca/ca.pem")
    Path("old.pem").write_bytes(_expired())
    assert run(["cert", "show", "old.pem"]) == 1
    assert "has expired (XF2106)" in capsys.readouterr().err


def _expired() -> bytes:
    from tests.pki.chains import DAY, NOW, issue  # noqa: PLC0415 - makes no key unless used
    from xfrmpy.pki.issuing import pem_of  # noqa: PLC0415

    return pem_of(issue("old", start=NOW - 900 * DAY, end=NOW - 800 * DAY).certificate)


def _foreign() -> None:
    made("ca", "CN=Another", "--ca", "other")
    made("issue", "x", "--ca", "other")


@pytest.mark.parametrize(
    ("prepare", "arguments", "code", "told"),
    [
        (None, ["ca", "Example VPN"], 64, "is not a distinguished name"),
        (None, ["issue", "gw", "--ca", "nowhere"], 1, "nowhere/ca.pem cannot be read"),
        (None, ["issue", "../gw"], 64, "cannot name files"),
        (None, ["issue", "gw", "--id", "O=x"], 64, "neither an address, a domain name nor"),
        (None, ["issue", "gw", "--id", "two words"], 64, "is neither an address"),
        (None, ["show", "ca/ca.key"], 1, "no certificate in it"),
        (_foreign, ["revoke", "x.pem"], 1, "is not of this authority"),
    ],
)
def test_what_cannot_be_done_is_said(
    prepare: Callable[[], None] | None,
    arguments: list[str],
    code: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made("ca", "CN=Example VPN")
    if prepare is not None:
        prepare()
    assert run(["cert", *arguments]) == code
    assert told in capsys.readouterr().err


def test_the_key_must_be_the_authority_s() -> None:
    made("ca", "CN=Example VPN")
    made("ca", "CN=Another", "--ca", "other")
    Path("ca/ca.key").write_bytes(Path("other/ca.key").read_bytes())
    assert run(["cert", "issue", "gw"]) == 1
