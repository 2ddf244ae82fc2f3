"""Keys on tokens of softhsm2: read, signing for us towards strongSwan, and gone while we run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pkcs11 import Attribute, CertificateType, ObjectClass

from integration.lab.keys import make_key
from integration.lab.site import Pair, Role, Site
from integration.lab.softhsm import MODULE, PIN, SoftToken, here, new_token
from integration.lab.tunnel import KeyFiles
from tests.documentation import blocks
from tests.pki.chains import DAY, authority, dns, issue
from xfrmpy.crypto.signatures import LEGACY_ECDSA, LEGACY_RSA, SCHEMES, SigningKey, verifying_key
from xfrmpy.policy.load import LoadedPolicy, load_files, load_policy
from xfrmpy.tokens.access import TokenFailed, read_certificates, read_public, sign
from xfrmpy.tokens.uri import parse_uri

pytestmark = pytest.mark.native

GENERATE: dict[str, Callable[[], object]] = {
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ed448": ed448.Ed448PrivateKey.generate,
}


def generated(kind: str) -> SigningKey:
    key = GENERATE[kind]()
    octets = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined]
    return SigningKey.of_pkcs8(octets)


@pytest.fixture(scope="module")
def keys() -> dict[str, SigningKey]:
    return {kind: generated(kind) for kind in GENERATE}


@pytest.fixture(scope="module")
def token(keys: dict[str, SigningKey]) -> SoftToken:
    return new_token(*keys.items())


# What a token is asked.


@pytest.mark.parametrize("kind", GENERATE)
def test_a_key_of_a_token_signs_in_every_way_of_its_kind(
    kind: str, keys: dict[str, SigningKey], token: SoftToken
) -> None:
    uri, expected = parse_uri(token.uri(kind)), keys[kind].public
    assert read_public(uri, PIN.encode()) == expected.spki
    usable = [
        s for s in (*SCHEMES, *LEGACY_RSA, *LEGACY_ECDSA.values()) if expected.kind in s.kinds
    ]
    assert usable
    for scheme in usable:
        signature = sign(uri, PIN.encode(), expected.spki, scheme, b"what is signed")
        verifying_key(expected.spki).verify(scheme, signature, b"what is signed")


def test_a_key_is_found_by_its_id_and_the_serial_of_its_token(
    keys: dict[str, SigningKey], token: SoftToken
) -> None:
    (found,) = pkcs11.lib(str(MODULE)).get_tokens(token_label=token.label)
    serial = found.serial if isinstance(found.serial, str) else found.serial.decode()
    more = {"token": "", "serial": serial, "object": "", "id": "%65d25519"}
    uri = parse_uri(token.uri("ed25519", **more))
    assert read_public(uri, PIN.encode()) == keys["ed25519"].public.spki


def test_a_token_that_signs_by_another_key_is_found_out(token: SoftToken) -> None:
    uri, other = parse_uri(token.uri("p256")), generated("p256").public
    (scheme,) = (s for s in SCHEMES if other.kind in s.kinds and s.hash == 2)
    with pytest.raises(TokenFailed, match="another key"):
        sign(uri, PIN.encode(), other.spki, scheme, b"octets")


def test_a_wrong_pin_is_tried_once_and_again_when_the_policy_is_read(
    keys: dict[str, SigningKey],
) -> None:
    """A token locks itself after a few; a tunnel that comes back by itself tries for ever."""
    uri, key = parse_uri(new_token(("p256", keys["p256"])).uri("p256")), keys["p256"].public
    (scheme,) = (s for s in SCHEMES if key.kind in s.kinds and s.hash == 2)
    read_public(uri, PIN.encode())
    for reason in ("the PIN is wrong$", "not tried again", "not tried again"):
        with pytest.raises(TokenFailed, match=reason):
            sign(uri, b"not this one", key.spki, scheme, b"octets")
    with pytest.raises(TokenFailed, match=r"the PIN is wrong$"):
        read_public(uri, b"not this one")
    assert read_public(uri, PIN.encode()) == key.spki
    sign(uri, PIN.encode(), key.spki, scheme, b"octets")


def test_the_certificates_of_a_token_go_with_its_key() -> None:
    top = authority("top")
    leaf = issue("gateway", issuer=top, names=[dns("moon")])
    key = SigningKey.of_pkcs8(
        leaf.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    )
    token = new_token(("key", key))
    uri = parse_uri(token.uri("key"))
    assert read_public(uri, PIN.encode()) == key.public.spki  # A token that is new to the module.
    assert read_certificates(uri, PIN.encode(), key.public.spki) == ()
    ders = [each.certificate.der for each in (top, leaf)]
    (found,) = pkcs11.lib(str(MODULE)).get_tokens(token_label=token.label)
    session = found.open(rw=True)  # Our module is logged in: that is of the process.
    for number, der in enumerate(ders):
        session.create_object(
            {
                Attribute.CLASS: ObjectClass.CERTIFICATE,
                Attribute.CERTIFICATE_TYPE: CertificateType.X_509,
                Attribute.TOKEN: True,
                Attribute.SUBJECT: b"subject",
                Attribute.ID: bytes([number]),
                Attribute.VALUE: der,
            }
        )
    session.close()
    assert read_certificates(uri, PIN.encode(), key.public.spki) == (ders[1], ders[0])


# What is wrong with a key on a token, at `check`.


def policy(directory: Path, key: str, pin: str | None = PIN) -> LoadedPolicy:
    file, secret = directory / "office.yaml", directory / "pin"
    if pin is not None:
        secret.write_text(pin + "\n")
        secret.chmod(0o600)
    passphrase = "" if pin is None else f', passphrase: "file:{secret}"'
    file.write_text(
        "peer: 192.0.2.2\nlocal: 10.1.0.0/16\nremote: 10.2.0.0/16\nauth:\n"
        f'  local: {{id: moon, key: "{key}"{passphrase}}}\n'
        "  remote: {id: sun, key: MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=}\n"
    )
    return load_files([file], secrets=[directory])


def test_a_policy_names_a_key_on_a_token(
    tmp_path: Path, keys: dict[str, SigningKey], token: SoftToken
) -> None:
    found = policy(tmp_path, token.uri("p256"))
    assert found.errors == ()
    (tunnel,) = found.tunnels
    assert tunnel.local_key is not None
    assert tunnel.local_key.public == keys["p256"].public.spki
    assert not tunnel.local_key.octets
    assert PIN not in repr(tunnel)


def test_the_example_of_the_page_is_a_policy(tmp_path: Path) -> None:
    (example,) = (b for b in blocks("docs/tokens.md") if b.language == "yaml")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "branch.yaml").write_text(example.text)
    (tmp_path / "secrets").mkdir()
    pin = tmp_path / "secrets" / "gw1.pin"
    pin.touch(0o600)
    pin.write_text(PIN)
    key = here() / "ike.pem"
    key.write_bytes(generated("ed25519").pem())
    token = SoftToken.make(here(), "gw1")
    token.take(key, "ike")
    try:
        assert load_policy([tmp_path / "conf.d"]).errors == ()
    finally:
        token.destroy()


@pytest.mark.parametrize(
    ("changes", "pin", "reason"),
    [
        ({"token": "nowhere"}, PIN, "the token is not there: there are "),
        ({"object": "nothing"}, PIN, "the key is not there"),
        ({}, "wrong, and long enough", "the PIN is wrong"),
        ({}, None, "needs a PIN to be seen"),
    ],
)
def test_what_cannot_be_used_is_an_error_at_its_place(
    tmp_path: Path, token: SoftToken, changes: dict[str, str], pin: str | None, reason: str
) -> None:
    found = policy(tmp_path, token.uri("p256", **changes), pin)
    (error,) = found.errors
    assert (error.code, error.line) == ("XF1045", 5)
    assert reason in error.message
    assert (pin or PIN) not in str(error)
    assert policy(tmp_path, token.uri("p256")).errors == ()  # Nothing of it has stayed.


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("absent", "is not there"),
        ("writable", "can be changed by others"),
        ("text", "cannot be loaded"),
    ],
)
def test_a_module_that_cannot_be_used_is_an_error(
    tmp_path: Path, token: SoftToken, module: str, reason: str
) -> None:
    path = tmp_path / "module.so"
    if module == "writable":
        shutil.copy(MODULE, path)
        path.chmod(0o666)
    elif module == "text":
        path.write_text("no module")
    uri = token.uri("p256").replace(str(MODULE), str(path))
    (error,) = policy(tmp_path, uri).errors
    assert error.code == "XF1045"
    assert reason in error.message


def test_tls_within_eap_does_not_sign_by_a_token(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    leaf = issue(
        "gw", issuer=authority("top"), names=[dns("gw")], start=now - DAY, end=now + DAY * 90
    )
    key = SigningKey.of_pkcs8(
        leaf.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    )
    token = new_token(("key", key))
    for name, octets in {"pin": PIN.encode(), "users": b"carol: horse"}.items():
        file = tmp_path / name
        file.touch(0o600)
        file.write_bytes(octets)
    (tmp_path / "gw.pem").write_bytes(leaf.library.public_bytes(Encoding.PEM))
    (tmp_path / "people.yaml").write_text(
        "local: 10.1.0.0/16\nremote: 10.9.0.0/24\nauth:\n"
        f'  local: {{id: gw, cert: "file:{tmp_path}/gw.pem", key: "{token.uri("key")}", '
        f'passphrase: "file:{tmp_path}/pin"}}\n'
        f'  remote: {{eap: {{users: "file:{tmp_path}/users", methods: [ttls]}}}}\n'
    )
    (error,) = load_files([tmp_path / "people.yaml"], secrets=[tmp_path]).errors
    assert error.code == "XF1011"
    assert "on a token" in error.message


# A daemon that signs by a token.


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as made:
        yield made


def on_token(token: SoftToken, directory: Path, key: KeyFiles, name: str) -> KeyFiles:
    """The same key, on a token and no more in its file."""
    pin = directory / f"{name}.pin"
    pin.touch(0o600)
    pin.write_text(PIN)
    token.take(key.private, name)
    key.private.unlink()
    return KeyFiles(private=key.private, public=key.public, uri=token.uri(name), pin=pin)


SIGNED_AS = {
    "rsa": "RSA_EMSA_PSS_SHA2_256_SALT_32",
    "ecdsa256": "ECDSA_WITH_SHA256_DER",
    "ed25519": "ED25519",
}


def test_strongswan_believes_our_token_in_both_roles(site: Site) -> None:
    token = new_token()
    known = []
    for number, kind in enumerate(SIGNED_AS):
        files = make_key(site.directory, kind, f"moon{number}")
        ours = on_token(token, site.directory, files, f"{kind}-{number}")
        theirs = make_key(site.directory, "ecdsa256", f"sun{number}")
        known.append(site.network.tunnel(number).signed(ours, theirs))
    strongswan = site.strongswan(site.network.sun, *(t.mirrored() for t in known))
    moon = site.xfrmpy(site.network.moon, *known)
    pair = Pair(site, moon, strongswan)
    for role in Role:
        for number in range(len(known)):
            pair.connect(role, number)
        site.assert_protected(0)
        for number in range(len(known)):
            pair.disconnect(role, number)
    log = strongswan.logs[0].read_text(errors="replace")
    for number, method in enumerate(SIGNED_AS.values()):
        name = f"moon{number or ''}.example.net"
        assert log.count(f"authentication of '{name}' with {method} successful") == len(Role)
    assert PIN not in moon.log


def test_a_token_that_is_gone_costs_its_tunnel_and_no_other(site: Site) -> None:
    token = new_token()
    files = make_key(site.directory, "ecdsa256", "moon0")
    ours = on_token(token, site.directory, files, "moon0")
    tokens = site.network.tunnel(0).signed(ours, make_key(site.directory, "ecdsa256", "sun0"))
    plain = site.network.tunnel(1)
    sun = site.xfrmpy(site.network.sun, tokens.mirrored(), plain.mirrored())
    moon = site.xfrmpy(site.network.moon, tokens, plain)
    site.connect(moon, sun, 0)
    moon.terminate(0)
    token.destroy()
    refused = moon.command("up", "net0")
    assert "XF2044" in refused.errors
    site.connect(moon, sun, 1)
    log = moon.log
    assert "Traceback" not in log
    assert PIN not in log
