"""EAP with strongSwan: its users at our gateway, and ours at its; who does not get in, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.keys import make_key
from integration.lab.process import eventually
from integration.lab.site import Pair, Role, Site
from integration.lab.strongswan import StrongswanPeer
from integration.lab.tunnel import Tunnel, User

pytestmark = pytest.mark.native

METHODS = ("mschapv2", "md5", "gtc")
OF_THEIR_GATEWAY = ("mschapv2", "md5")
"""As a gateway its GTC asks PAM."""


def carol(method: str, password: str = "correct horse: battery", name: str = "carol") -> User:
    return User(name=name, password=password, method=method)


@pytest.fixture(scope="module")
def users() -> Iterator[Pair]:
    """strongSwan has a user for each method, whose index is the tunnel's number; we the gateway."""
    with Site() as site:
        key = make_key(site.directory, "ecdsa256", "moon")
        tunnels = [
            site.network.tunnel(number).called_by(carol(method), key, is_ours=False)
            for number, method in enumerate(METHODS)
        ]
        theirs = site.strongswan(site.network.sun, *(t.mirrored() for t in tunnels))
        yield Pair(site, site.xfrmpy(site.network.moon, *tunnels), theirs)


@pytest.mark.parametrize("method", METHODS)
def test_a_user_of_strongswan_comes_in_at_our_gateway(users: Pair, method: str) -> None:
    number = METHODS.index(method)
    users.connect(Role.RESPONDER, number)
    users.site.assert_protected(number)
    assert users.ours.tunnel(number).remote_id == "eap:carol"
    users.disconnect(Role.RESPONDER, number)


def test_a_tunnel_of_a_user_is_rekeyed_by_either_end(users: Pair) -> None:
    assert isinstance(users.theirs, StrongswanPeer)
    users.connect(Role.RESPONDER)
    users.ours.rekey()
    users.theirs.rekey_ike_sa()
    eventually("both rekeyings to be done", lambda: users.ours.is_up() and users.theirs.is_up())
    users.site.assert_protected()
    assert users.ours.tunnel().remote_id == "eap:carol"
    users.disconnect(Role.RESPONDER)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Pair]:
    """The other way round."""
    with Site() as site:
        key = make_key(site.directory, "ed25519", "sun")
        tunnels = [
            site.network.tunnel(number).called_by(carol(method), key, is_ours=True)
            for number, method in enumerate(OF_THEIR_GATEWAY)
        ]
        theirs = site.strongswan(site.network.sun, *(t.mirrored() for t in tunnels))
        yield Pair(site, site.xfrmpy(site.network.moon, *tunnels), theirs)


@pytest.mark.parametrize("method", OF_THEIR_GATEWAY)
def test_our_user_comes_in_at_a_gateway_of_strongswan(gateway: Pair, method: str) -> None:
    number = OF_THEIR_GATEWAY.index(method)
    gateway.connect(Role.INITIATOR, number)
    gateway.site.assert_protected(number)
    assert isinstance(gateway.theirs, StrongswanPeer)
    assert f"EAP method EAP_{method.upper()} succeeded" in gateway.theirs.log
    gateway.disconnect(Role.INITIATOR, number)


# Who does not get in.


def ends(
    site: Site, ours: Tunnel, theirs: Tunnel, connection: str = ""
) -> tuple[XfrmpyGateway, StrongswanPeer]:
    """Each with its own idea of the tunnel, as our end sees it."""
    peer = site.strongswan(site.network.sun, theirs.mirrored(), connection=connection)
    return site.xfrmpy(site.network.moon, ours), peer


@pytest.mark.parametrize(
    "user", [carol("mschapv2", password="wrong"), carol("md5", name="mallory")], ids=["key", "name"]
)
def test_a_user_of_strongswan_who_is_none_of_ours_stays_out(site: Site, user: User) -> None:
    key = make_key(site.directory, "ecdsa256", "moon")
    tunnel = site.network.tunnel()
    ours = tunnel.called_by(carol(user.method), key, is_ours=False)
    moon, sun = ends(site, ours, tunnel.called_by(user, key, is_ours=False))
    sun.swanctl("--initiate", "--child", "net0", "--timeout", "30", check=False)
    code = "XF2056" if user.method == "mschapv2" else "XF2052"
    eventually("the refusal to be told", lambda: code in moon.log)
    assert f"eap:{user.name}" in moon.log
    assert not moon.is_up()
    assert user.password not in moon.log


def test_our_user_with_a_wrong_password_is_told_by_code(site: Site) -> None:
    key = make_key(site.directory, "ed25519", "sun")
    tunnel = site.network.tunnel()
    ours = tunnel.called_by(carol("mschapv2", password="no good"), key, is_ours=True)
    moon, _ = ends(site, ours, tunnel.called_by(carol("mschapv2"), key, is_ours=True))
    answer = moon.command("up", "net0")
    assert answer.code == 5
    assert "XF2050" in answer.errors
    assert "no good" not in answer.errors + moon.log


def test_our_user_says_nothing_to_a_gateway_with_another_key(site: Site) -> None:
    """CVE-2015-4171: not even a name."""
    right, other = (make_key(site.directory, "ed25519", name) for name in ("sun", "mars"))
    tunnel = site.network.tunnel()
    ours = tunnel.called_by(carol("md5"), right, is_ours=True)
    moon, sun = ends(site, ours, tunnel.called_by(carol("md5"), other, is_ours=True))
    answer = moon.command("up", "net0")
    assert answer.code == 5
    assert "XF2041" in answer.errors
    assert "initiating EAP_IDENTITY" in sun.log
    assert "EAP/RES" not in sun.log


def test_our_user_says_nothing_to_a_gateway_that_does_not_prove_itself(site: Site) -> None:
    """It wants EAP alone (RFC 5998), and we have not asked for that."""
    key = make_key(site.directory, "ed25519", "sun")
    ours = site.network.tunnel().called_by(carol("mschapv2"), key, is_ours=True)
    theirs = replace(ours, theirs=replace(ours.theirs, key=None, user=carol("mschapv2")))
    moon, sun = ends(site, ours, theirs)
    answer = moon.command("up", "net0")
    assert answer.code == 5
    assert "EAP/RES" not in sun.log
    assert not moon.is_up()
