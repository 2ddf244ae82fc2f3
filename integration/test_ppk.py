"""Post-quantum preshared keys (RFC 8784) beside strongSwan, and beside libreswan in the VM."""

from __future__ import annotations

from typing import Any

import pytest

from integration.lab.keys import make_key
from integration.lab.marks import BOTH_ROLES
from integration.lab.process import eventually
from integration.lab.site import Pair, Role, Site
from integration.lab.strongswan import StrongswanPeer, strongswan_of
from integration.lab.tunnel import User

pytestmark = pytest.mark.copied

ID = "office-2026"
KEY = "a preshared key that no quantum computer guesses"
OTHER = "another preshared key, which is not that of peers"


def ours(site: Site, *, key: str = KEY, **more: str) -> dict[str, Any]:
    """The keys of a policy."""
    file = site.directory / "ppk"
    file.touch(0o600)
    file.write_text(key + "\n")
    return {"ppk": {"secret": f"file:{file}", "id": ID, **more}}


def theirs(*, ppk_id: str = ID, key: str = KEY, required: str = "no") -> dict[str, str]:
    """strongSwan's."""
    return {
        "connection": f"ppk_id = {ppk_id}\n ppk_required = {required}",
        "secrets": f'ppk-a {{\n id = {ppk_id}\n secret = "{key}"\n}}',
    }


def beside_strongswan(site: Site, keys: dict[str, Any], their_keys: dict[str, str]) -> Pair:
    tunnel = site.network.tunnel()
    sun = site.strongswan(site.network.sun, tunnel.mirrored(), **their_keys)
    return Pair(site, site.xfrmpy(site.network.moon, tunnel, **keys), sun)


def charon(pair: Pair) -> StrongswanPeer:
    assert isinstance(pair.theirs, StrongswanPeer)
    return pair.theirs


def rekey(pair: Pair) -> None:
    before = pair.ours.tunnel().spi_i
    pair.ours.rekey()
    eventually("another IKE SA", lambda: pair.ours.tunnel().spi_i not in ("", before))


def refused(pair: Pair, role: Role) -> str:
    """What our end says of a tunnel that does not come up."""
    if role is Role.INITIATOR:
        answer = pair.ours.command("up", "net0")
        assert answer.code == 5
        return answer.output + answer.errors
    before = len(pair.ours.log)
    charon(pair).swanctl("--initiate", "--child", "net0", "--timeout", "10", check=False)
    eventually("the refusal in our log", lambda: "XF2" in pair.ours.log[before:])
    return pair.ours.log[before:]


@pytest.mark.native
@pytest.mark.parametrize("required", ["yes", "no"])
def test_a_key_of_both_ends_is_used_in_either_role_and_kept_by_rekeying(
    site: Site, required: str
) -> None:
    pair = beside_strongswan(site, ours(site, required=required), theirs(required=required))
    for role in pair.each_role():
        site.assert_protected()
        tunnel = pair.ours.tunnel()
        assert (tunnel.role, tunnel.ppk, tunnel.ppk_exchange) == (role, ID, "IKE_AUTH")
        if role is Role.INITIATOR:
            rekey(pair)
            assert pair.ours.tunnel().ppk == ID
            site.assert_protected()
    assert charon(pair).log.count(f"using PPK for PPK_ID '{ID}'") >= 2


@pytest.mark.native
def test_a_peer_without_it_gets_a_tunnel_without_unless_it_is_required(site: Site) -> None:
    pair = beside_strongswan(site, ours(site), {})
    for _ in pair.each_role():
        assert pair.ours.tunnel().ppk == ""
    pair.ours.change(**ours(site, required="yes"))
    assert pair.ours.command("apply").code == 0
    for role in Role:
        assert "XF2033" in refused(pair, role)
        assert not pair.ours.is_up()


@pytest.mark.native
def test_a_peer_that_names_another_gets_a_tunnel_without_unless_it_is_required(site: Site) -> None:
    """As a responder strongSwan takes none but the name that it has."""
    pair = beside_strongswan(site, ours(site), theirs(ppk_id="branch-2026"))
    pair.connect(Role.RESPONDER)
    assert pair.ours.tunnel().ppk == ""
    pair.disconnect(Role.RESPONDER)
    assert "XF2005" in refused(pair, Role.INITIATOR)
    pair.ours.change(**ours(site, required="yes"))
    assert pair.ours.command("apply").code == 0
    said = refused(pair, Role.RESPONDER)
    assert "XF2033" in said
    assert "branch-2026" in said


@pytest.mark.native
@BOTH_ROLES
def test_where_it_requires_one_that_we_do_not_have_nothing_comes_up(site: Site, role: Role) -> None:
    pair = beside_strongswan(site, {}, theirs(required="yes"))
    if role is Role.INITIATOR:
        assert pair.ours.command("up", "net0").code == 5
    else:
        charon(pair).swanctl("--initiate", "--child", "net0", "--timeout", "10", check=False)
    assert not pair.ours.is_up()
    assert "PPK required but" in charon(pair).log


@pytest.mark.native
def test_another_key_under_the_same_name_is_told_and_is_no_way_in(site: Site) -> None:
    pair = beside_strongswan(site, ours(site, key=OTHER), theirs())
    for role, code in ((Role.INITIATOR, "XF2005"), (Role.RESPONDER, "XF2034")):
        said = refused(pair, role)
        assert code in said
        assert ID in said
        assert OTHER not in said
        assert not pair.ours.is_up()


@pytest.mark.native
@BOTH_ROLES
@pytest.mark.parametrize("method", ["mschapv2", "md5"])
def test_a_user_of_eap_has_it_too(site: Site, role: Role, method: str) -> None:
    """With the last AUTH. Who names another comes in without, unless one end requires it."""
    calls = role is Role.INITIATOR
    user = User(name="carol", password="correct horse", method=method)
    gateway = make_key(site.directory, "ecdsa256", "gateway")
    tunnel = site.network.tunnel().called_by(user, gateway, is_ours=calls)
    sun = site.strongswan(site.network.sun, tunnel.mirrored(), **theirs(required="yes"))
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, **ours(site, required="yes")), sun)
    pair.connect(role)
    site.assert_protected()
    assert (pair.ours.tunnel().ppk, pair.ours.tunnel().ppk_exchange) == (ID, "IKE_AUTH")
    pair.disconnect(role)
    pair.ours.change(**ours(site, key=OTHER))
    assert pair.ours.command("apply").code == 0
    assert ("XF2005" if calls else "XF20") in refused(pair, role)
    assert not pair.ours.is_up()


@pytest.mark.native
@pytest.mark.parametrize("further", ["-ke1_mlkem768", ""])
def test_it_goes_into_keys_that_have_ml_kem_already(site: Site, further: str) -> None:
    """Debian 14's strongSwan has both: AUTH covers the exchange between, by keys without it. Where
    both ends know of such exchanges and there is none, AUTH covers nothing of them."""
    tunnel = site.network.tunnel(ike=f"aes256gcm16-prfsha384-x25519{further}")
    sun = site.strongswan(
        site.network.sun,
        tunnel.mirrored(),
        usr=strongswan_of("forky"),
        **theirs(required="yes"),
    )
    moon = site.xfrmpy(site.network.moon, tunnel, **ours(site, required="yes"))
    pair = Pair(site, moon, sun)
    for _ in pair.each_role():
        assert (pair.ours.tunnel().ppk, pair.ours.tunnel().suite) == (ID, tunnel.ike)
        site.assert_protected()


@pytest.mark.vm
def test_beside_libreswan_in_either_role(site: Site) -> None:
    tunnel = site.network.tunnel()
    sun = site.libreswan(
        site.network.sun,
        tunnel.mirrored(),
        connection=("ppk=insist",),
        secrets=(f'@{tunnel.theirs.id} @{tunnel.ours.id} : PPKS "{ID}" "{KEY}"\n',),
    )
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, **ours(site, required="yes")), sun)
    for _ in pair.each_role():
        site.assert_protected()
        assert pair.ours.tunnel().ppk == ID
