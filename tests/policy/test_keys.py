"""Keys in a policy: what is read, what is refused and where, and that none of it is shown."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from tests.keypairs import key_pair
from xfrmpy.crypto.signatures import EXPERIMENTAL, KeyKind
from xfrmpy.policy.load import LoadedPolicy
from xfrmpy.policy.model import RsaSignature

Load = Callable[..., LoadedPolicy]
Lines = Callable[[LoadedPolicy], list[str]]

PUBLIC = "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
"""RFC 8032 section 7.1, TEST 1; a new one each time would give the cases other names."""

OURS = key_pair(KeyKind.ED25519)


def pem(kind: KeyKind = KeyKind.ED25519, passphrase: bytes | None = None) -> bytes:
    locked = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    key = load_der_private_key(key_pair(kind).pkcs8(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)


def tunnel(auth: str, more: str = "") -> str:
    return f"{{peer: 192.0.2.1, auth: {auth}, local: 10.1.0.0/16, remote: 10.2.0.0/16{more}}}\n"


BOTH = f"{{local: {{key: secret:gw}}, remote: {{key: {PUBLIC}}}}}"


def test_each_end_proves_itself_by_the_key_that_it_has(load: Load, lines: Lines) -> None:
    loaded = load(**{"a.yaml": tunnel(BOTH), "../secrets/gw": pem()})
    assert lines(loaded) == []
    (policy,) = loaded.tunnels
    assert policy.shared_key is None
    assert policy.local_key is not None
    assert policy.local_key.octets == OURS.pkcs8()
    assert policy.local_key.public == OURS.public.spki
    assert policy.remote_key is not None
    assert policy.remote_key.spki == base64.b64decode(PUBLIC)
    assert policy.remote_key.origin.endswith("a.yaml:1")
    assert not policy.weak_signatures


@pytest.mark.parametrize("kind", list(KeyKind))
def test_keys_of_each_kind_are_read(load: Load, lines: Lines, kind: KeyKind) -> None:
    more = ", ike: {experimental: ml-dsa}" if kind in EXPERIMENTAL else ""
    loaded = load(**{"a.yaml": tunnel(BOTH, more), "../secrets/gw": pem(kind)})
    assert lines(loaded) == []


@pytest.mark.parametrize("kind", sorted(EXPERIMENTAL))
@pytest.mark.parametrize("end", ["local", "remote"])
def test_a_key_that_signs_by_a_draft_has_to_be_wanted(
    load: Load, lines: Lines, kind: KeyKind, end: str
) -> None:
    public = base64.b64encode(key_pair(kind).public.spki).decode()
    keys = {"local": "local: {key: secret:gw}", "remote": f"remote: {{key: {public}}}"}
    text = tunnel(f"{{psk: secret:key, {keys[end]}}}")
    (line,) = lines(load(**{"a.yaml": text, "../secrets/gw": pem(kind)}))
    assert f"XF1004: a key of {kind} signs by a draft" in line


def test_an_encrypted_key_is_read_with_its_passphrase(load: Load, lines: Lines) -> None:
    auth = BOTH.replace("secret:gw", "secret:gw, passphrase: secret:word, rsa: pkcs1")
    files = {"../secrets/gw": pem(KeyKind.RSA, b"open sesame"), "../secrets/word": "open sesame\n"}
    loaded = load(**{"a.yaml": tunnel(auth, ", ike: compat"), **files})
    assert lines(loaded) == []
    (policy,) = loaded.tunnels
    assert policy.local_key is not None
    assert policy.local_key.rsa is RsaSignature.PKCS1
    assert policy.weak_signatures


def test_a_public_key_may_be_in_a_file(load: Load, lines: Lines, tmp_path: Path) -> None:
    path = tmp_path / "peer.pub"
    path.write_text(f"{PUBLIC}\n")
    path.chmod(0o644)
    auth = f"{{psk: secret:key, remote: {{key: 'file:{path}'}}}}"
    loaded = load(**{"a.yaml": tunnel(auth)})
    assert lines(loaded) == []
    assert loaded.tunnels[0].remote_key is not None
    assert loaded.tunnels[0].remote_key.origin == str(path)
    assert loaded.tunnels[0].shared_key is not None


def test_a_public_key_that_others_may_change_is_refused(
    load: Load, lines: Lines, tmp_path: Path
) -> None:
    path = tmp_path / "peer.pub"
    path.write_text(PUBLIC)
    path.chmod(0o666)
    auth = f"{{psk: secret:key, remote: {{key: 'file:{path}'}}}}"
    (line,) = lines(load(**{"a.yaml": tunnel(auth)}))
    assert "XF1030" in line
    assert "can be changed by others" in line


@pytest.mark.parametrize(
    ("auth", "code", "part"),
    [
        (f"{{remote: {{key: {PUBLIC}}}}}", "XF1005", "'remote' alone has another way"),
        ("{local: {key: secret:gw}}", "XF1005", "add auth.remote.key, or auth.psk"),
        (BOTH.replace("{local", "{psk: secret:key, local"), "XF1004", "proves nothing"),
        ("{psk: secret:key, local: {rsa: pss}}", "XF1004", "without a 'key'"),
        ("{psk: secret:key, local: {passphrase: secret:key}}", "XF1004", "without a 'key'"),
        ("{psk: secret:key, local: {key: secret:missing}}", "XF1008", "is not there"),
        ("{psk: secret:key, local: {key: secret:key}}", "XF1030", "no private key"),
        ("{psk: secret:key, remote: {key: AAAA}}", "XF1030", "SubjectPublicKeyInfo"),
        ("{psk: secret:key, remote: {key: 'no base64!'}}", "XF1004", "in base64"),
        ("{psk: secret:key, remote: {key: 'file:/nowhere.pub'}}", "XF1030", "No such file"),
        (
            "{psk: secret:key, local: {key: secret:gw, passphrase: secret:key}}",
            "XF1030",
            "not encrypted",
        ),
        ("{psk: secret:key, local: {key: secret:locked}}", "XF1030", "'passphrase' is missing"),
        ("{psk: secret:key, local: {key: MC4CAQAwBQYDK2VwBCIEIA}}", "XF1010", "not hold"),
    ],
)
def test_what_cannot_be_is_told_where_it_stands(
    load: Load, lines: Lines, auth: str, code: str, part: str
) -> None:
    files = {"../secrets/gw": pem(), "../secrets/locked": pem(passphrase=b"x" * 20)}
    (line,) = lines(load(**{"a.yaml": tunnel(auth), **files}))
    assert line.startswith("a.yaml:1:")
    assert code in line
    assert part in line.replace("`", "'")


def test_a_key_that_others_can_read_is_refused(load: Load, lines: Lines, tmp_path: Path) -> None:
    path = tmp_path / "gw.key"
    path.write_bytes(pem())
    path.chmod(0o644)
    auth = f"{{psk: secret:key, local: {{key: 'file:{path}'}}}}"
    (line,) = lines(load(**{"a.yaml": tunnel(auth)}))
    assert "XF1009" in line


def test_a_private_key_is_not_shown(load: Load) -> None:
    loaded = load(**{"a.yaml": tunnel(BOTH), "../secrets/gw": pem()})
    secret = OURS.pkcs8()[-32:]
    for told in (repr(loaded), str(loaded.tunnels[0])):
        assert secret.hex() not in told
        assert repr(secret)[2:-1] not in told
    assert secret in pickle.dumps(loaded.tunnels[0])  # It is there, after all.
