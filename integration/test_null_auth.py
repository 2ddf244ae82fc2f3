"""NULL authentication (RFC 7619) beside libreswan in both roles; strongSwan does not have it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from integration.lab.keys import make_key
from integration.lab.libreswan import LibreswanPeer
from integration.lab.site import Pair, Site

pytestmark = pytest.mark.vm

NOTHING = {"null_auth": "yes"}

CONNECTION = """\
conn net0
    left={theirs.address}
    leftid=%null
    leftauth=null
    leftsubnet={theirs.subnets[0]}
    right={ours.public}
    rightsubnet={ours.subnets[0]}
    {right}
    ike=aes_gcm128-sha2_256-dh31
    esp=aes_gcm128
    esn=no
    ikev2=insist
    auto=add

"""


def resource_record(public: Path) -> str:
    """An RSA key as libreswan's files have it: the octets of RFC 3110 section 2."""
    key = load_pem_public_key(public.read_bytes())
    assert isinstance(key, RSAPublicKey)
    numbers = key.public_numbers()
    exponent, modulus = (
        n.to_bytes((n.bit_length() + 7) // 8, "big") for n in (numbers.e, numbers.n)
    )
    return "0s" + base64.b64encode(bytes([len(exponent)]) + exponent + modulus).decode()


def beside_libreswan(site: Site, local: dict[str, Any], right: str) -> Pair:
    """A pluto that proves nothing, and we by what `local` of our policy has."""
    tunnel = site.network.tunnel()
    conf = CONNECTION.format(ours=tunnel.ours, theirs=tunnel.theirs, right=right)
    sun = site.libreswan(site.network.sun, tunnel.mirrored(), configuration=(conf, ""))
    auth = {"local": dict(local), "remote": dict(NOTHING)}  # YAML would point at one of them.
    ours = site.xfrmpy(site.network.moon, tunnel, id=None, peer_id=None, psk=None, auth=auth)
    return Pair(site, ours, sun)


def assert_both_roles(pair: Pair, told: str) -> None:
    for _ in pair.each_role():
        pair.site.assert_protected()
        assert pair.ours.tunnel().remote_id == "%null"
    assert isinstance(pair.theirs, LibreswanPeer)
    assert pair.theirs.log.count(told) >= 2


def test_neither_end_proves_anything(site: Site) -> None:
    right = "rightid=%null\n    rightauth=null"
    assert_both_roles(beside_libreswan(site, NOTHING, right), "NULL")


def test_we_sign_and_the_peer_proves_nothing(site: Site) -> None:
    key = make_key(site.directory, "rsa", "moon")
    name = site.network.tunnel().ours.id
    right = (
        f"rightid=@{name}\n    rightauth=rsasig\n    rightrsasigkey={resource_record(key.public)}"
    )
    local = {"id": name, "key": f"file:{key.private}"}
    assert_both_roles(beside_libreswan(site, local, right), "NULL")
