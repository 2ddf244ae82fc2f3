"""X.509 certificates with strongSwan, in both roles: chains of each kind, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from integration.lab.authority import (
    Hierarchy,
    expired,
    key_pem,
    pem,
    revocations,
    signed,
    write_credentials,
)
from integration.lab.gateway import XfrmpyGateway
from integration.lab.process import eventually, run
from integration.lab.site import Pair, Site
from integration.lab.strongswan import StrongswanPeer
from tests.pki.chains import Entity, dns, key

pytestmark = [pytest.mark.native, pytest.mark.copied]

MOON, SUN = "moon.example.net", "sun.example.net"
KINDS = ("rsa", "p256", "p384", "p521", "ed25519", "ed448")


def strongswan(
    site: Site,
    leaf: Entity,
    *above: Entity,
    anchor: Entity,
    local_id: str = SUN,
    remote_id: str = MOON,
    **options: Any,
) -> StrongswanPeer:
    """At sun: it shows the leaf and what is above it, and trusts the anchor."""
    tunnel = site.network.tunnel().mirrored()
    ends = (
        f'auth = pubkey\n certs = gw.pem\n id = "{local_id}"',
        f'auth = pubkey\n id = "{remote_id}"',
    )
    files = {
        "x509/gw.pem": pem(leaf),
        **{f"x509/above{number}.pem": pem(each) for number, each in enumerate(above)},
        "x509ca/root.pem": pem(anchor),
        "pkcs8/gw.pem": key_pem(leaf),
    }
    return site.strongswan(site.network.sun, tunnel, ends=ends, files=files, **options)


def xfrmpy(site: Site, leaf: Entity, *above: Entity, anchor: Entity, **keys: Any) -> XfrmpyGateway:
    """At moon, likewise."""
    directory = site.directory / "moon-certs"
    write_credentials(directory, leaf, *above, anchor=anchor)
    policy = signed(directory, keys.get("local_id", MOON), keys.get("remote_id", SUN))
    return site.xfrmpy(site.network.moon, site.network.tunnel(), **policy)


@pytest.mark.parametrize("kind", KINDS)
def test_chains_with_an_intermediate_prove_both_ends(site: Site, kind: str) -> None:
    """Neither end has the other's intermediate but from the other."""
    ours, theirs = Hierarchy.of(kind), Hierarchy.of(kind)
    peer = strongswan(site, theirs.gateway(SUN), theirs.issuing, anchor=ours.root)
    gateway = xfrmpy(site, ours.gateway(MOON), ours.issuing, anchor=theirs.root)
    for _ in Pair(site, gateway, peer).each_role():
        site.assert_protected()


def test_the_two_ends_may_have_other_kinds_and_distinguished_names(site: Site) -> None:
    ours, theirs = Hierarchy.of("ed25519"), Hierarchy.of("rsa")
    ids = {"local_id": f"O=Example, CN={SUN}", "remote_id": f"O=Example, CN={MOON}"}
    peer = strongswan(site, theirs.gateway(SUN), theirs.issuing, anchor=ours.root, **ids)
    gateway = xfrmpy(
        site,
        ours.gateway(MOON),
        ours.issuing,
        anchor=theirs.root,
        local_id=ids["remote_id"],
        remote_id=ids["local_id"],
    )
    for _ in Pair(site, gateway, peer).each_role():
        site.assert_protected()


CORP = Hierarchy.of("p256")
STRANGER = Hierarchy.of("p384")

BAD: dict[str, tuple[str, Callable[[], tuple[Entity, ...]]]] = {
    "wrong authority": ("XF2103", lambda: (STRANGER.gateway(SUN), STRANGER.issuing)),
    "expired": ("XF2106", lambda: (CORP.gateway(SUN, **expired()), CORP.issuing)),
    "wrong identity": (
        "XF2114",
        lambda: (CORP.gateway(SUN, names=[dns("mars.example.net")]), CORP.issuing),
    ),
    "no intermediate": ("XF2103", lambda: (CORP.gateway(SUN),)),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_peer_may_not_show_is_refused_by_us(site: Site, case: str) -> None:
    code, make = BAD[case]
    leaf, *above = make()
    # Our own intermediates complete a path, so here they may not be the peer's.
    ours = STRANGER if case == "no intermediate" else CORP
    peer = strongswan(site, leaf, *above, anchor=ours.root)
    gateway = xfrmpy(site, ours.gateway(MOON), ours.issuing, anchor=CORP.root)
    assert_refused(gateway, peer, code)


def test_what_its_authority_has_revoked_is_refused_by_us(site: Site) -> None:
    leaf = CORP.gateway(SUN)
    peer = strongswan(site, leaf, CORP.issuing, anchor=CORP.root)
    gateway = xfrmpy(site, CORP.gateway(MOON), CORP.issuing, anchor=CORP.root)
    site.connect(gateway, peer)
    gateway.terminate()
    (site.directory / "moon-certs/cas/corp.crl").write_bytes(revocations(CORP.issuing, leaf))
    assert gateway.command("apply").code == 0
    assert_refused(gateway, peer, "XF2115")


def test_a_renewed_certificate_is_taken_by_apply_and_no_tunnel_ends(site: Site) -> None:
    """With the same key nothing happens; with another the IKE SA is made anew before it ends."""
    peer = strongswan(site, CORP.gateway(SUN), CORP.issuing, anchor=CORP.root)
    gateway = xfrmpy(site, CORP.gateway(MOON), CORP.issuing, anchor=CORP.root)
    site.connect(gateway, peer)
    before = gateway.spis()
    renew(site, gateway, CORP.gateway(MOON))
    assert gateway.spis() == before
    renew(site, gateway, CORP.gateway(MOON, private_key=key("p256", 999)))
    eventually("the IKE SA to be another", lambda: gateway.spis() != before)
    eventually("the tunnel to be up", gateway.is_up)
    site.assert_protected()


def renew(site: Site, gateway: XfrmpyGateway, leaf: Entity) -> None:
    directory = site.directory / "moon-certs"
    write_credentials(directory, leaf, CORP.issuing, anchor=CORP.root)
    answer = gateway.command("apply")
    assert answer.code == 0, answer.errors


def test_strongswan_s_refusal_of_our_certificate_is_told(site: Site) -> None:
    strongswan(site, CORP.gateway(SUN), CORP.issuing, anchor=CORP.root)
    gateway = xfrmpy(site, STRANGER.gateway(MOON), STRANGER.issuing, anchor=CORP.root)
    answer = gateway.command("up", "net0")
    assert answer.code == 5
    assert "XF2005" in answer.errors
    assert not gateway.is_up()


def assert_refused(gateway: XfrmpyGateway, peer: StrongswanPeer, code: str) -> None:
    """In both roles the tunnel does not come up, and our operator is told the step that failed."""
    answer = gateway.command("up", "net0")
    assert answer.code == 5
    assert code in answer.errors
    told = gateway.log.count(code)
    peer.swanctl("--initiate", "--child", "net0", "--timeout", "30", check=False)
    eventually("the refusal to be told", lambda: gateway.log.count(code) > told)
    assert not gateway.is_up()


def await_log(gateway: XfrmpyGateway, words: str) -> None:
    """Files are looked at every five seconds, and once more a second later."""
    eventually(f"the log to have {words!r}", lambda: words in gateway.log, seconds=40)


def test_a_renewed_certificate_is_taken_by_itself_and_no_sa_ends(site: Site) -> None:
    """Another key has the peers authenticate anew; a file that is half written changes nothing."""
    peer = strongswan(site, CORP.gateway(SUN), CORP.issuing, anchor=CORP.root)
    gateway = xfrmpy(site, CORP.gateway(MOON), CORP.issuing, anchor=CORP.root)
    site.connect(gateway, peer)
    before = gateway.spis()
    directory = site.directory / "moon-certs"
    half = (directory / "certs/gw.pem").read_bytes()[:300]
    (directory / "certs/gw.pem").write_bytes(half)
    await_log(gateway, "a certificate without end")
    assert gateway.spis() == before
    write_credentials(directory, CORP.gateway(MOON), CORP.issuing, anchor=CORP.root)
    await_log(gateway, "net0: update, hot")
    assert gateway.spis() == before
    renewed = CORP.gateway(MOON, private_key=key("p256", 998))
    write_credentials(directory, renewed, CORP.issuing, anchor=CORP.root)
    eventually("the IKE SA to be another", lambda: gateway.spis() != before, seconds=40)
    eventually("the tunnel to be up", gateway.is_up)
    site.assert_protected()


def test_a_list_that_is_put_there_ends_the_tunnel_of_whoever_is_on_it(site: Site) -> None:
    """Without a word of the operator's; and it is not up again, whoever begins."""
    leaf = CORP.gateway(SUN)
    peer = strongswan(site, leaf, CORP.issuing, anchor=CORP.root)
    gateway = xfrmpy(site, CORP.gateway(MOON), CORP.issuing, anchor=CORP.root)
    site.connect(gateway, peer)
    crl = site.directory / "moon-certs/cas/corp.crl"
    crl.write_bytes(revocations(CORP.issuing))
    eventually("the list to be taken", lambda: "net0: update, " in gateway.log, seconds=40)
    eventually("the tunnel to be up", gateway.is_up)
    crl.write_bytes(revocations(CORP.issuing, leaf))
    eventually("the tunnel to be down", lambda: not gateway.is_up(), seconds=40)
    assert "XF2115" in gateway.log
    assert_refused(gateway, peer, "XF2115")


@pytest.mark.parametrize("form", ["modern", "legacy"])
def test_a_pkcs12_file_of_openssl_s_is_key_and_chain(site: Site, form: str) -> None:
    """As other programs hand out what a gateway needs, in one file with a passphrase."""
    peer = strongswan(site, CORP.gateway(SUN), CORP.issuing, anchor=CORP.root)
    leaf = CORP.gateway(MOON)
    directory = site.directory / "moon-certs"
    write_credentials(directory, leaf, CORP.issuing, anchor=CORP.root)
    word, held = directory / "word", directory / "gw.p12"
    word.touch(0o600)
    word.write_text("a passphrase of many words")
    held.touch(0o600)
    certs = (str(directory / "certs/gw.pem"), str(directory / "keys/gw.key"))
    old = ("-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES", "-macalg", "sha1")
    run(
        *("openssl", "pkcs12", "-export", "-in", certs[0], "-inkey", certs[1]),
        *("-passout", f"file:{word}", "-out", str(held), *(old if form == "legacy" else ())),
    )
    local = {"id": MOON, "key": f"file:{held}", "passphrase": f"file:{word}"}
    remote = {"id": SUN, "ca": f"file:{directory}/cas/corp.pem"}
    psk: dict[str, Any] = {"psk": None, "id": None, "peer_id": None}
    auth = {"local": local, "remote": remote}
    gateway = site.xfrmpy(site.network.moon, site.network.tunnel(), auth=auth, **psk)
    site.connect(gateway, peer)
    site.assert_protected()


@pytest.mark.parametrize("pattern", ["*.example.net", "O=Example, CN=*"])
def test_a_pattern_takes_whom_its_certificate_proves_to_be_one_of_them(
    site: Site, pattern: str
) -> None:
    """strongSwan is told no identity that it should have, and says its own."""
    told = SUN if pattern.startswith("*") else f"O=Example, CN={SUN}"
    peer = strongswan(site, CORP.gateway(SUN), CORP.issuing, anchor=CORP.root, local_id=told)
    leaf = CORP.gateway(MOON)
    gateway = xfrmpy(site, leaf, CORP.issuing, anchor=CORP.root, remote_id=pattern)
    for _ in Pair(site, gateway, peer).each_role():
        site.assert_protected()
    assert f"IKE SA with {told} at" in gateway.log
