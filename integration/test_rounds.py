"""Several rounds of authentication (RFC 4739) with strongSwan, in both roles, and who stays out."""

from __future__ import annotations

from typing import Any

import pytest

from integration.lab.authority import (
    NO_SHORT_FORM,
    Hierarchy,
    key_pem,
    pem,
    signed,
    write_credentials,
)
from integration.lab.gateway import XfrmpyGateway
from integration.lab.keys import make_key
from integration.lab.process import eventually
from integration.lab.site import Pair, Role, Site
from integration.lab.strongswan import StrongswanPeer

pytestmark = [pytest.mark.native, pytest.mark.copied]

MOON, SUN = "moon.example.net", "sun.example.net"
PASSWORD = "correct horse: battery"
CORP = Hierarchy.of("p256")


def certificates(site: Site) -> tuple[dict[str, Any], dict[str, bytes], tuple[str, str]]:
    """The first round: what our policy has as local and remote, and strongSwan's files and ends."""
    directory = site.directory / "moon-certs"
    write_credentials(directory, CORP.gateway(MOON), CORP.issuing, anchor=CORP.root)
    leaf = CORP.gateway(SUN)
    files = {
        "x509/gw.pem": pem(leaf),
        "x509/above.pem": pem(CORP.issuing),
        "x509ca/root.pem": pem(CORP.root),
        "pkcs8/gw.pem": key_pem(leaf),
    }
    ends = (f"auth = pubkey\n certs = gw.pem\n id = {SUN}", f"auth = pubkey\n id = {MOON}")
    return signed(directory, MOON, SUN)["auth"], files, ends


def user_at_strongswan(site: Site, password: str = PASSWORD) -> Pair:
    """We are a host with a certificate, and then a user."""
    auth, files, ends = certificates(site)
    secret = _written(site, "carol", password)
    then = {"local": {"eap": {"identity": "carol", "password": secret}}}
    sun = site.strongswan(
        site.network.sun,
        site.network.tunnel().mirrored(),
        ends=ends,
        rounds=[("", "auth = eap-mschapv2\n eap_id = carol")],
        files=files,
        secrets=f'eap-a {{\n id = carol\n secret = "{PASSWORD}"\n}}',
    )
    return Pair(site, ours(site, {**auth, "then": then}), sun)


def user_of_strongswan(site: Site, password: str = PASSWORD, *, rounds: int = 2) -> Pair:
    """It is a host with a certificate, and then a user."""
    auth, files, ends = certificates(site)
    users = _written(site, "users", f"carol: {PASSWORD}")
    then = {"remote": {"eap": {"users": users}}}
    local = f"auth = eap-mschapv2\n id = {SUN}\n eap_id = carol"
    sun = site.strongswan(
        site.network.sun,
        site.network.tunnel().mirrored(),
        ends=ends,
        rounds=[(local, "")][: rounds - 1],
        files=files,
        secrets=f'eap-a {{\n id = carol\n secret = "{password}"\n}}',
    )
    return Pair(site, ours(site, {**auth, "then": then}, peer=None), sun)


def both_twice(
    site: Site, role: Role, *, ours_is: str = "one", theirs_is: str = "two", rounds: int = 2
) -> Pair:
    """Both ends prove themselves twice, the second time by raw keys under other names.

    The first time by a shared key; but charon, where it calls with one, wants all our proofs in the
    first round, and so it is by raw keys there, too.
    """
    kinds = {"one": "ecdsa256", "two": "ecdsa256", "other": "ecdsa256", "first": "ed25519"}
    keys = {name: make_key(site.directory, kind, name) for name, kind in kinds.items()}
    tunnel = site.network.tunnel()
    auth: dict[str, Any] = {
        "local": {"id": MOON},
        "remote": {"id": SUN},
        "then": {
            "local": {"id": f"host.{MOON}", "key": f"file:{keys[ours_is].private}"},
            "remote": {"id": f"host.{SUN}", "key": f"file:{keys['two'].public}"},
        },
    }
    files = {"pkcs8/host.pem": keys[theirs_is].private.read_bytes()}
    first = "auth = psk"
    if role is Role.INITIATOR:
        auth["psk"] = _written(site, "psk", tunnel.psk)
    else:
        first = f"auth = pubkey\n pubkeys = {keys['first'].public}"
        auth["local"]["key"] = f"file:{keys['first'].private}"
        auth["remote"]["key"] = f"file:{keys['first'].public}"
        files["pkcs8/first.pem"] = keys["first"].private.read_bytes()
    local = f"auth = pubkey\n pubkeys = {keys[theirs_is].public}\n id = host.{SUN}"
    remote = f"auth = pubkey\n pubkeys = {keys['one'].public}\n id = host.{MOON}"
    sun = site.strongswan(
        site.network.sun,
        tunnel.mirrored(),
        ends=(f"{first}\n id = {SUN}", f"{first}\n id = {MOON}"),
        rounds=[(local, remote)][: rounds - 1],
        files=files,
        secrets=f'ike-a {{\n id-1 = {MOON}\n id-2 = {SUN}\n secret = "{tunnel.psk}"\n}}',
    )
    return Pair(site, ours(site, auth), sun)


def ours(site: Site, auth: dict[str, Any], **keys: Any) -> XfrmpyGateway:
    tunnel = site.network.tunnel()
    return site.xfrmpy(site.network.moon, tunnel, auth=auth, **{**NO_SHORT_FORM, **keys})


def _written(site: Site, name: str, text: str) -> str:
    path = site.directory / name
    path.touch(0o600)
    path.write_text(text + "\n")
    return f"file:{path}"


def charon(pair: Pair) -> StrongswanPeer:
    assert isinstance(pair.theirs, StrongswanPeer)
    return pair.theirs


def refused(pair: Pair, role: Role) -> str:
    """All that our end tells of a tunnel that does not come up."""
    if role is Role.INITIATOR:
        assert pair.ours.command("up", "net0").code == 5
    else:
        charon(pair).swanctl("--initiate", "--child", "net0", "--timeout", "20", check=False)
    told = eventually("the refusal to be told", lambda: _told(pair))
    assert not pair.ours.is_up()
    assert not charon(pair).is_up()
    return told


def _told(pair: Pair) -> str:
    events = pair.ours.command("log", "-o", "json").output
    return events if '"XF2' in events else ""


def test_a_user_at_a_host_with_a_certificate_comes_in_at_strongswan(site: Site) -> None:
    pair = user_at_strongswan(site)
    pair.connect(Role.INITIATOR)
    site.assert_protected()
    assert "EAP method EAP_MSCHAPV2 succeeded" in charon(pair).log


def test_a_user_of_strongswan_at_a_host_with_a_certificate_comes_in(site: Site) -> None:
    pair = user_of_strongswan(site)
    pair.connect(Role.RESPONDER)
    site.assert_protected()
    assert pair.ours.tunnel().remote_id == "eap:carol"
    pair.ours.rekey()
    eventually("it to be up again", lambda: pair.ours.is_up() and pair.theirs.is_up())
    site.assert_protected()


@pytest.mark.parametrize("role", Role)
def test_both_ends_prove_themselves_twice(site: Site, role: Role) -> None:
    pair = both_twice(site, role)
    pair.connect(role)
    site.assert_protected()
    assert pair.ours.tunnel().remote_id == SUN


def test_a_wrong_password_at_a_right_host_does_not_come_in(site: Site) -> None:
    assert "XF2050" in refused(user_at_strongswan(site, "wrong"), Role.INITIATOR)


def test_a_wrong_password_of_strongswan_at_a_right_host_does_not_come_in(site: Site) -> None:
    told = refused(user_of_strongswan(site, "wrong"), Role.RESPONDER)
    assert "XF2056" in told or "XF2052" in told


@pytest.mark.parametrize("role", Role)
def test_another_key_of_strongswan_in_the_second_round_is_refused(site: Site, role: Role) -> None:
    told = refused(both_twice(site, role, theirs_is="other"), role)
    assert "XF2041" in told or "XF2042" in told


@pytest.mark.parametrize("role", Role)
def test_strongswan_refuses_another_key_of_ours_in_the_second_round(site: Site, role: Role) -> None:
    told = refused(both_twice(site, role, ours_is="other"), role)
    assert "XF2005" in told or "XF2058" in told or "XF2011" in told


@pytest.mark.parametrize("role", Role)
def test_a_strongswan_of_one_round_gets_nothing(site: Site, role: Role) -> None:
    told = refused(both_twice(site, role, rounds=1), role)
    assert "XF2057" in told or "XF2005" in told


def test_a_strongswan_that_leaves_the_user_out_gets_nothing(site: Site) -> None:
    assert "XF2057" in refused(user_of_strongswan(site, rounds=1), Role.RESPONDER)
