"""EAP-TLS and EAP-TTLS with strongSwan, in both roles, and whose certificate is not believed.

Debian's strongSwan has no PEAP. Moon is ours, sun strongSwan's; the gateway proves itself to IKE,
too, by the certificate that it shows within EAP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.lab.authority import Hierarchy, key_pem, pem
from integration.lab.gateway import XfrmpyGateway
from integration.lab.process import eventually
from integration.lab.site import Site
from integration.lab.strongswan import StrongswanPeer, strongswan_of
from tests.pki.chains import Entity

pytestmark = [pytest.mark.native, pytest.mark.copied]

MOON, SUN, ALICE = "moon.example.net", "sun.example.net", "alice.example.net"
PASSWORD = "correct horse"
CORP = Hierarchy.of("p256")
STRANGER = Hierarchy.of("p384")

TLS, TTLS = "tls", "ttls"
NEWER = "forky"


def strongswan(
    site: Site,
    leaf: Entity,
    local_auth: str,
    remote_auth: str,
    *,
    password: str = PASSWORD,
    anchor: Entity = CORP.root,
    usr: str = "",
) -> StrongswanPeer:
    """With TLS 1.3 where it is `NEWER`, whose EAP has what RFC 9190 asks for."""
    tunnel = site.network.tunnel().mirrored()
    files = {
        "x509/gw.pem": pem(leaf),
        "x509/issuing.pem": pem(CORP.issuing),
        "x509ca/root.pem": pem(anchor),
        "pkcs8/gw.pem": key_pem(leaf),
    }
    return site.strongswan(
        site.network.sun,
        tunnel,
        connection="send_certreq = yes",
        ends=(local_auth, remote_auth),
        secrets=f'eap-alice {{ id = {ALICE}\n secret = "{password}" }}',
        files=files,
        settings=(f"tls.version_max={'1.3' if usr else '1.2'}",),
        usr=usr,
    )


def their_user(
    site: Site, method: str, leaf: Entity | None = None, **wishes: Any
) -> StrongswanPeer:
    """Sun as a user, who believes moon."""
    local = f"auth = eap-{method}\n id = {ALICE}\n eap_id = {ALICE}\n aaa_id = {MOON}"
    if method == TLS:
        local += "\n certs = gw.pem"
    remote = f"auth = pubkey\n id = {MOON}"
    return strongswan(site, leaf or CORP.gateway(ALICE), local, remote, **wishes)


def their_gateway(
    site: Site, method: str, leaf: Entity | None = None, **wishes: Any
) -> StrongswanPeer:
    """Sun as a gateway."""
    local = f"auth = pubkey\n id = {SUN}\n certs = gw.pem"
    remote = f"auth = eap-{method}\n id = %any\n eap_id = %any"
    return strongswan(site, leaf or CORP.gateway(SUN), local, remote, **wishes)


def credentials(site: Site, leaf: Entity, anchor: Entity = CORP.root) -> Path:
    """What moon finds under names: the certificate `gw`, and the authorities `corp`."""
    directory = site.directory / f"{site.network.moon.name}0"
    for name, data in {
        "certs/gw.pem": pem(leaf, CORP.issuing),
        "keys/gw.key": key_pem(leaf),
        "cas/corp.pem": pem(anchor),
        "secrets/alice": PASSWORD.encode(),
        "secrets/users": f"{ALICE}: {PASSWORD}\n".encode(),
    }.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch(0o600)
        path.write_bytes(data)
    return directory


_PLAIN: dict[str, Any] = {"psk": None, "id": None, "peer_id": None}


def our_gateway(site: Site, method: str) -> XfrmpyGateway:
    credentials(site, CORP.gateway(MOON))
    eap: dict[str, Any] = {"methods": method}
    eap |= {"ca": "corp"} if method == TLS else {"users": "secret:users"}
    auth = {"local": {"id": MOON, "cert": "gw"}, "remote": {"eap": eap}}
    tunnel = site.network.tunnel()
    return site.xfrmpy(site.network.moon, tunnel, auth=auth, peer=None, **_PLAIN)


def our_user(site: Site, method: str, leaf: Entity | None = None, **wishes: Any) -> XfrmpyGateway:
    credentials(site, leaf or CORP.gateway(ALICE))
    eap = {"method": method, "identity": ALICE, "ca": "corp", **wishes}
    within = {"password": "secret:alice", "inside": "eap-md5"}
    eap |= {"cert": "gw"} if method == TLS else within
    auth = {"local": {"id": ALICE, "eap": eap}, "remote": {"id": SUN, "ca": "corp"}}
    tunnel = site.network.tunnel()
    return site.xfrmpy(site.network.moon, tunnel, auth=auth, **_PLAIN)


@pytest.fixture(scope="module", params=["", NEWER], ids=["TLS 1.2", "TLS 1.3"])
def usr(request: pytest.FixtureRequest) -> str:
    """Debian 12's strongSwan, whose TLS 1.3 is none for EAP, and one whose is."""
    return strongswan_of(request.param) if request.param else ""


@pytest.mark.parametrize("method", [TLS, TTLS])
def test_a_user_of_strongswan_comes_in_at_our_gateway(site: Site, method: str, usr: str) -> None:
    moon, sun = our_gateway(site, method), their_user(site, method, usr=usr)
    site.connect(sun, moon)
    assert f"negotiated TLS {'1.3' if usr else '1.2'}" in sun.log
    site.assert_protected()
    assert moon.tunnel().remote_id == f"eap:{ALICE}"


@pytest.mark.parametrize("method", [TLS, TTLS])
def test_our_user_comes_in_at_a_gateway_of_strongswan(site: Site, method: str, usr: str) -> None:
    moon, sun = our_user(site, method), their_gateway(site, method, usr=usr)
    site.connect(moon, sun)
    assert f"negotiated TLS {'1.3' if usr else '1.2'}" in sun.log
    site.assert_protected()
    assert f"EAP method EAP_{method.upper()} succeeded" in sun.log


def test_a_user_of_strongswan_by_a_stranger_s_certificate_stays_out(site: Site) -> None:
    moon = our_gateway(site, TLS)
    sun = their_user(site, TLS, STRANGER.gateway(ALICE))
    sun.swanctl("--initiate", "--child", "net0", "--timeout", "30", check=False)
    eventually("the refusal to be told", lambda: "certificate verify failed" in moon.log)
    assert "XF2052" in moon.log
    assert not moon.is_up()


def test_a_user_of_strongswan_with_a_wrong_password_stays_out(site: Site) -> None:
    moon = our_gateway(site, TTLS)
    sun = their_user(site, TTLS, password="guessed")
    sun.swanctl("--initiate", "--child", "net0", "--timeout", "30", check=False)
    eventually("the refusal to be told", lambda: "XF2052" in moon.log)
    assert not moon.is_up()


@pytest.mark.parametrize("method", [TLS, TTLS])
def test_a_server_within_eap_that_is_another_is_told_nothing(site: Site, method: str) -> None:
    """It has proved itself in IKE, and is still not the server that the policy names."""
    moon = our_user(site, method, server="radius.example.org")
    sun = their_gateway(site, method)
    answer = moon.command("up", "net0")
    assert answer.code == 5
    assert "XF2114" in answer.errors
    assert "received TLS client" not in sun.log
    assert "received tunneled" not in sun.log
    assert PASSWORD not in answer.errors + moon.log
