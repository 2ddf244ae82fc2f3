"""`xfrmpy import` of a swanctl.conf whose ends prove themselves by certificates, keys or users."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.pki.chains import Entity, authority, dns, issue, key
from xfrmpy.cli.main import run
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.verdicts import Strictness
from xfrmpy.policy.load import load_policy
from xfrmpy.policy.model import EapMethod, TunnelPolicy
from xfrmpy.policy.pairing import pair_policies

Captured = pytest.CaptureFixture[str]

CONNECTION = """\
connections {{
    office {{
        remote_addrs = {peer}
        proposals = aes128gcm16-prfsha256-x25519
        local {{
{ours}
        }}
        remote {{
{theirs}
        }}
        children {{
            office {{
                local_ts = 10.1.0.0/16
                remote_ts = 10.2.0.0/16
                esp_proposals = aes128gcm16-x25519
            }}
        }}
    }}
}}
secrets {{
    ike-office {{
        secret = the shared key of both
    }}
    eap-carol {{
        id = carol
        secret = "of carol"
    }}
    eap-dave {{
        id-a = dave
        secret = 0x6f662064617665
    }}
}}
"""


def named(text: str, ca: bool = False) -> Entity:
    """Valid today, for files are looked at by the clock of this host."""
    now = datetime.now(UTC).replace(microsecond=0)
    dates: dict[str, Any] = {"start": now - timedelta(days=1), "end": now + timedelta(days=300)}
    if ca:
        return authority(text, **dates)
    return issue(
        text, issuer=ROOT, names=[dns(text)], private_key=key("p256", 500 + len(text)), **dates
    )


ROOT = named("corp root", ca=True)
GATEWAY = named("moon.example.net")
OTHER = named("sun.example.net")


def pem(entity: Entity) -> bytes:
    above = [ROOT] if entity is GATEWAY else []
    return b"".join(e.library.public_bytes(Encoding.PEM) for e in (entity, *above))


def private(entity: Entity) -> bytes:
    return entity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public(entity: Entity) -> bytes:
    return entity.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


FILES: dict[str, Callable[[], bytes]] = {
    "x509/gw.pem": lambda: pem(GATEWAY),
    "x509ca/root.pem": lambda: pem(ROOT),
    "private/a-stranger.pem": lambda: private(ROOT),
    "private/another.pem": lambda: private(OTHER),
    "private/of-some-name.pem": lambda: private(GATEWAY),
    "pubkey/moon.pem": lambda: public(GATEWAY),
    "pubkey/sun.pem": lambda: public(OTHER),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of strongSwan's."""
    directory = tmp_path / "swanctl"
    for name, content in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        path.write_bytes(content())
    return directory


def imported(
    place: Path, ours: Iterable[str], theirs: Iterable[str], peer: str = "192.0.2.2"
) -> TunnelPolicy:
    """The tunnel as our loader reads it."""
    ends = {"ours": "\n".join(ours), "theirs": "\n".join(theirs)}
    (place / "swanctl.conf").write_text(CONNECTION.format(peer=peer, **ends))
    into = place.parent / "etc"
    assert run(["import", str(place / "swanctl.conf"), "--into", str(into)]) == 0
    loaded = load_policy([into / "conf.d"])
    assert not loaded.errors
    (tunnel,) = loaded.tunnels
    return tunnel


@pytest.mark.parametrize("cacerts", ["cacerts = root.pem", ""])
def test_certificates_stay_where_they_are_and_their_key_is_found(
    place: Path, cacerts: str, capsys: Captured
) -> None:
    tunnel = imported(
        place,
        ["auth = pubkey", "certs = gw.pem", "id = moon.example.net"],
        ["auth = pubkey", cacerts, "id = sun.example.net", "revocation = strict"],
    )
    assert tunnel.shared_key is None
    assert tunnel.local_key is not None
    assert tunnel.local_key.origin.endswith("private/of-some-name.pem")
    assert tunnel.local_certificates is not None
    assert tunnel.local_certificates.ders == (GATEWAY.certificate.der, ROOT.certificate.der)
    assert tunnel.remote_authorities is not None
    assert tunnel.remote_authorities.ders == (ROOT.certificate.der,)
    assert tunnel.revocation is Strictness.STRICT
    assert "PRIVATE KEY" not in "".join(capsys.readouterr())


def test_without_an_identity_it_is_the_subject_as_there(place: Path) -> None:
    ends = (["certs = gw.pem"], ["id = sun.example.net"])
    assert imported(place, *ends).local_id == Identity.parse("O=Example, CN=moon.example.net")


def test_public_keys_are_those_of_their_files(place: Path) -> None:
    tunnel = imported(
        place,
        ["auth = pubkey", "pubkeys = moon.pem", "id = moon"],
        ["auth = pubkey", "pubkeys = sun.pem", "id = sun"],
    )
    assert tunnel.local_key is not None
    assert tunnel.local_key.public == GATEWAY.certificate.public_key_info
    assert tunnel.remote_key is not None
    assert tunnel.remote_key.spki == OTHER.certificate.public_key_info


def test_each_end_may_have_a_proof_of_its_own(place: Path) -> None:
    tunnel = imported(
        place,
        ["auth = psk", "id = moon"],
        ["auth = pubkey", "pubkeys = sun.pem", "id = sun"],
    )
    assert tunnel.shared_key is not None
    assert tunnel.shared_key.octets == b"the shared key of both"
    assert (tunnel.local_key, tunnel.remote_key is None) == (None, False)


@pytest.mark.parametrize("who", ["%any", "carol"])
def test_users_with_passwords_come_in(place: Path, who: str, capsys: Captured) -> None:
    tunnel = imported(
        place,
        ["auth = pubkey", "certs = gw.pem", "id = moon.example.net"],
        ["auth = eap-mschapv2", f"eap_id = {who}"],
        peer="%any",
    )
    assert tunnel.remote_eap is not None
    assert tunnel.remote_eap.methods == (EapMethod.MSCHAPV2,)
    assert tunnel.remote_eap.identities == (() if who == "%any" else ("carol",))
    users = (place.parent / "etc/secrets/office.users").read_text()
    assert users == "carol: of carol\ndave: of dave\n"
    assert "of carol" not in "".join(capsys.readouterr())


def test_we_are_a_user_with_a_password(place: Path) -> None:
    tunnel = imported(
        place,
        ["auth = eap-md5", "eap_id = dave", "id = dave@example.net"],
        ["auth = pubkey", "cacerts = root.pem", "id = sun.example.net"],
    )
    assert tunnel.local_eap is not None
    assert tunnel.local_eap.methods == (EapMethod.MD5,)
    assert (place.parent / "etc/secrets/office.user").read_text() == "of dave\n"


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (["certs = gw.pem, other.pem"], [], "an end has one here"),
        (["certs = missing.pem"], [], "none of the private keys"),
        (["pubkeys = sun.pem"], ["certs = sun.pem"], "an authority vouches for the peer"),
        (["certs = gw.pem"], ["cacerts = a.pem, b.pem"], "put those to trust in one file"),
        (["certs = gw.pem"], ["pubkeys = a.pem, b.pem"], "a peer has one here"),
        (["auth = eap-md5", "eap_id = eve"], [], "no secret is that of the user eve"),
        (["certs = gw.pem"], ["auth = eap-tls"], "write it as `eap` of `auth`"),
        (["auth = xauth"], [], "local auth = xauth"),
    ],
)
def test_what_cannot_be_is_left_out_with_its_reason(
    place: Path, ours: list[str], theirs: list[str], words: str, capsys: Captured
) -> None:
    ends = {"ours": "\n".join(ours), "theirs": "\n".join([*theirs, "id = sun"])}
    (place / "swanctl.conf").write_text(CONNECTION.format(peer="192.0.2.2", **ends))
    assert run(["import", str(place / "swanctl.conf")]) != 0
    told = capsys.readouterr().err
    assert "left out" in told
    assert words in told


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (["auth = psk", "certs = gw.pem"], ["auth = psk"], "beside auth = psk"),
        (["auth = psk"], ["auth = psk", "cacerts = root.pem"], "beside auth = psk"),
        (
            ["auth = ecdsa-sha384", "pubkeys = moon.pem"],
            ["pubkeys = sun.pem"],
            "that is not weak",
        ),
        (["auth = psk"], ["pubkeys = sun.pem", "revocation = ifuri"], "revocation = ifuri"),
    ],
)
def test_what_is_not_as_it_was_is_told(
    place: Path, ours: list[str], theirs: list[str], words: str, capsys: Captured
) -> None:
    imported(place, ours, [*theirs, "id = sun"])
    assert words in capsys.readouterr().err


BY_CERTIFICATE = ["certs = gw.pem", "id = moon.example.net"], ["id = sun.example.net"]
BY_KEY = ["pubkeys = moon.pem", "id = moon"], ["pubkeys = sun.pem", "id = sun"]
BY_BOTH = ["auth = psk", "id = moon"], ["pubkeys = sun.pem", "id = sun"]


@pytest.mark.parametrize(
    ("ends", "own"),
    [
        (BY_CERTIFICATE, {"x509/office.pem": pem(OTHER)}),
        (BY_KEY, {}),
        (BY_BOTH, {}),
    ],
    ids=["certificates", "keys", "both"],
)
def test_what_is_exported_is_the_other_end_when_its_files_are_there(
    place: Path, ends: tuple[list[str], list[str]], own: dict[str, bytes], capsys: Captured
) -> None:
    """`own` is what the other end alone has, beside its private key."""
    ours = imported(place, *ends)
    told = exported(place, capsys)
    other = place.parent / "other"
    for name, content in {
        **told_files(told),
        **own,
        "private/a.pem": private(OTHER),
        "private/b.pem": private(ROOT),
    }.items():
        path = other / "swanctl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        path.write_bytes(content)
    into = other / "etc"
    secrets = exported(place, capsys, "--secrets") if ours.shared_key else ""
    (other / "swanctl/swanctl.conf").write_text(told + secrets)
    assert run(["import", str(other / "swanctl/swanctl.conf"), "--into", str(into)]) == 0
    (theirs,) = load_policy([into / "conf.d"]).tunnels
    assert "PRIVATE" not in told
    (pairing,) = pair_policies([ours], [theirs])
    assert pairing.works, pairing.disagreements


def exported(place: Path, capsys: Captured, *more: str) -> str:
    capsys.readouterr()
    command = ["export", "office", str(place.parent / "etc/conf.d"), "--address", "192.0.2.1"]
    assert run([*command, *more]) == 0
    return capsys.readouterr().out


def told_files(told: str) -> dict[str, bytes]:
    """What stands in the comments of a swanctl.conf, by its path, where the text is told."""
    commented = "".join(
        line.removeprefix("# ") for line in told.splitlines(True) if line.startswith("# ")
    )
    found = re.findall(r"^(\S+): .*\n(-----BEGIN[^:]*-----END.*\n)", commented, re.MULTILINE)
    return {path: text.encode() for path, text in found}


def test_what_only_the_other_end_has_is_named(place: Path, capsys: Captured) -> None:
    imported(place, *BY_CERTIFICATE)
    told = exported(place, capsys)
    words = "the certificate of sun.example.net, from O=Example, CN=corp root; its private key"
    assert f"# x509/office.pem: {words} goes to private/\n" in told
    assert [*told_files(told)] == ["x509ca/office-peer.pem"]


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--secrets"], "there is no shared key"), (["--for", "libreswan"], "ipsec import")],
)
def test_what_has_nothing_there_is_an_error(
    place: Path, more: list[str], words: str, capsys: Captured
) -> None:
    imported(place, *BY_KEY)
    command = ["export", "office", str(place.parent / "etc/conf.d"), "--address", "192.0.2.1"]
    assert run([*command, *more]) == 65
    assert words in " ".join(capsys.readouterr().err.split())
