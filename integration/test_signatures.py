"""Keys in place of a shared secret, beside strongSwan: each kind and role, old and new methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA87PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from integration.lab.keys import make_key
from integration.lab.marks import BOTH_ROLES
from integration.lab.process import eventually
from integration.lab.site import Pair, Role, Site
from integration.lab.tunnel import KeyFiles

pytestmark = pytest.mark.native

COMPAT = {"ike": {"profile": "compat", "proposals": "aes128gcm16-prfsha256-x25519"}}


@dataclass(frozen=True)
class Flavour:
    """What charon signs with by kind of key, as its log says it, and we where that is not the
    same; its settings, and further keys of our policy."""

    theirs: dict[str, str]
    ours: dict[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    keys: dict[str, Any] = field(default_factory=dict)


FLAVOURS = {
    "rfc7427": Flavour(
        theirs={
            "rsa": "RSA_EMSA_PKCS1_SHA2_256",
            "ecdsa256": "ECDSA_WITH_SHA256_DER",
            "ecdsa384": "ECDSA_WITH_SHA384_DER",
            "ecdsa521": "ECDSA_WITH_SHA512_DER",
            "ed25519": "ED25519",
            "ed448": "ED448",
        },
        ours={"rsa": "RSA_EMSA_PSS_SHA2_256_SALT_32"},
    ),
    "pss": Flavour(theirs={"rsa": "RSA_EMSA_PSS_SHA2_256_SALT_32"}, settings=("rsa_pss=yes",)),
    "older": Flavour(
        theirs={
            "rsa": "RSA signature",
            "ecdsa256": "ECDSA-256 signature",
            "ecdsa384": "ECDSA-384 signature",
            "ecdsa521": "ECDSA-521 signature",
        },
        settings=("signature_authentication=no",),
        keys=COMPAT,
    ),
}


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A daemon of each kind that know a tunnel for each kind of key, whose index is its number."""
    flavour = FLAVOURS[request.param]
    with Site() as site:
        known = [
            site.network.tunnel(number).signed(
                make_key(site.directory, kind, f"moon{number}"),
                make_key(site.directory, kind, f"sun{number}"),
            )
            for number, kind in enumerate(flavour.theirs)
        ]
        theirs = site.strongswan(
            site.network.sun, *(t.mirrored() for t in known), settings=flavour.settings
        )
        yield Pair(site, site.xfrmpy(site.network.moon, *known, **flavour.keys), theirs)


@BOTH_ROLES
@pytest.mark.parametrize(
    ("pair", "name", "kind"),
    [(name, name, kind) for name, flavour in FLAVOURS.items() for kind in flavour.theirs],
    indirect=["pair"],
)
def test_strongswan_and_we_prove_ourselves_by_keys(
    pair: Pair, role: Role, name: str, kind: str
) -> None:
    flavour = FLAVOURS[name]
    number = list(flavour.theirs).index(kind)
    pair.connect(role, number)
    pair.site.assert_protected(number)
    pair.disconnect(role, number)
    log = pair.theirs.logs[0].read_text(errors="replace")
    moon, sun = f"moon{number or ''}.example.net", f"sun{number or ''}.example.net"
    ours = flavour.ours.get(kind, flavour.theirs[kind])
    assert f"authentication of '{moon}' with {ours} successful" in log
    assert f"authentication of '{sun}' (myself) with {flavour.theirs[kind]}" in log


@BOTH_ROLES
@pytest.mark.parametrize("signer", ["moon", "sun"])
def test_one_end_may_sign_and_the_other_know_the_shared_key(
    site: Site, role: Role, signer: str
) -> None:
    key = make_key(site.directory, "ed25519", signer)
    ours, theirs = (key, None) if signer == "moon" else (None, key)
    tunnel = site.network.tunnel().signed(ours, theirs)
    strongswan = site.strongswan(site.network.sun, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel), strongswan)
    pair.connect(role)
    site.assert_protected()


def test_two_of_us_sign_by_ml_dsa_in_fragments(site: Site) -> None:
    """No other daemon of Debian's has it; this OpenSSL has it not, either."""
    ours, theirs = (
        _write_pair(site.directory, name, kind.generate())
        for name, kind in (("moon", MLDSA87PrivateKey), ("sun", MLDSA65PrivateKey))
    )
    tunnel = site.network.tunnel().signed(ours, theirs)
    ike = {"proposals": tunnel.ike, "experimental": "ml-dsa"}
    moon = site.xfrmpy(site.network.moon, tunnel, ike=ike)
    sun = site.xfrmpy(site.network.sun, tunnel.mirrored(), ike=ike)
    with site.capture() as wire:
        site.connect(moon, sun)
    assert wire.kinds["ike-fragment"] >= 8  # An AUTH of 4627 octets, and one of 3309.
    site.assert_protected()


def _write_pair(directory: Path, name: str, key: MLDSA87PrivateKey | MLDSA65PrivateKey) -> KeyFiles:
    private, public = directory / f"{name}.key", directory / f"{name}.pub"
    private.touch(0o600)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    public.write_bytes(pem)
    return KeyFiles(private=private, public=public)


@BOTH_ROLES
def test_strongswan_with_another_valid_key_does_not_get_in(site: Site, role: Role) -> None:
    ours, theirs, other = (
        make_key(site.directory, "ecdsa256", name) for name in ("moon", "sun", "mars")
    )
    tunnel = site.network.tunnel()
    strongswan = site.strongswan(site.network.sun, tunnel.signed(ours, other).mirrored())
    moon = site.xfrmpy(site.network.moon, tunnel.signed(ours, theirs))
    if role is Role.INITIATOR:
        answer = moon.command("up", "net0")
        assert answer.code == 5
        assert "XF2041" in answer.errors
    else:
        strongswan.swanctl("--initiate", "--child", "net0", "--timeout", "30", check=False)
        eventually("the refusal to be told", lambda: "XF2041" in moon.log)
        assert "received AUTHENTICATION_FAILED notify error" in strongswan.log
    assert not moon.is_up()
    assert "SHA256:" in moon.log
