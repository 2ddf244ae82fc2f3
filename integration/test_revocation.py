"""Revoked certificates with strongSwan, in both roles: OCSP and lists from real servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from integration.lab.authority import Hierarchy, revocations, signed, write_credentials
from integration.lab.gateway import XfrmpyGateway
from integration.lab.process import Background, eventually
from integration.lab.site import Pair, Site
from integration.lab.status_server import HTTP_PORT, OCSP_PORT, http_server, ocsp_responder
from integration.lab.strongswan import strongswan_of
from integration.test_certificates import MOON, SUN, assert_refused, strongswan
from tests.pki.chains import Entity, extended

pytestmark = [pytest.mark.native, pytest.mark.copied]

CORP = Hierarchy.of("p256")


class Authority:
    """At sun, beside strongSwan, that both gateways reach."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.address = site.network.sun.outside[4]
        self.directory = site.directory / "http"

    def gateway(self, identity: str, *, by_ocsp: bool = False, **wishes: Any) -> Entity:
        """A certificate that says where its status is."""
        listed = x509.UniformResourceIdentifier(f"http://{self.address}:{HTTP_PORT}/issuing.crl")
        responder = x509.UniformResourceIdentifier(f"http://{self.address}:{OCSP_PORT}/")
        access = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, responder)
        point = x509.DistributionPoint([listed], None, None, None)
        extensions = [
            (x509.AuthorityInformationAccess([access]), False)
            if by_ocsp
            else (x509.CRLDistributionPoints([point]), False)
        ]
        return CORP.gateway(identity, extensions=extensions, **wishes)

    @contextmanager
    def lists(self, *revoked: Entity) -> Iterator[Background]:
        """RFC 5280 section 4.2.1.13 wants DER there."""
        self.directory.mkdir(exist_ok=True)
        crl = x509.load_pem_x509_crl(revocations(CORP.issuing, *revoked))
        (self.directory / "issuing.crl").write_bytes(crl.public_bytes(Encoding.DER))
        with http_server(self.site.network.sun, self.address, self.directory) as server:
            yield server

    @contextmanager
    def responder(self, *known: Entity, revoked: Entity) -> Iterator[Background]:
        """One to whom the issuing authority has delegated it."""
        usage = extended(ExtendedKeyUsageOID.OCSP_SIGNING.dotted_string)
        signer = CORP.gateway("responder", extensions=[usage, (x509.OCSPNoCheck(), False)])
        with ocsp_responder(
            self.site.network.sun,
            self.site.directory / "ocsp",
            CORP.issuing,
            signer,
            *known,
            revoked=revoked,
        ) as responder:
            yield responder


def xfrmpy(site: Site, leaf: Entity, **remote: Any) -> XfrmpyGateway:
    """At moon; the list of its authority's own authority is on its disk."""
    directory = site.directory / "moon-certs"
    write_credentials(directory, leaf, CORP.issuing, anchor=CORP.root)
    (directory / "cas/corp.crl").write_bytes(revocations(CORP.root))
    policy = signed(directory, MOON, SUN)
    policy["auth"]["remote"] |= remote
    return site.xfrmpy(site.network.moon, site.network.tunnel(), **policy)


@pytest.mark.parametrize("by_ocsp", [False, True], ids=["list", "ocsp"])
def test_strict_takes_whom_the_authority_vouches_for(site: Site, by_ocsp: bool) -> None:
    """And asks once, for what it was told holds, over a restart of the daemon, too."""
    corp = Authority(site)
    theirs, other = corp.gateway(SUN, by_ocsp=by_ocsp), corp.gateway("other")
    with corp.lists(other), corp.responder(theirs, revoked=other):
        peer = strongswan(site, theirs, CORP.issuing, anchor=CORP.root)
        gateway = xfrmpy(site, CORP.gateway(MOON), revocation="strict")
        for _ in Pair(site, gateway, peer).each_role():
            site.assert_protected()
        gateway.terminate()
    gateway.be_relieved()
    gateway.start_again()
    site.connect(gateway, peer)
    (question,) = questions(gateway)
    assert ("OCSP" if by_ocsp else "CRL") in question


@pytest.mark.parametrize("by_ocsp", [False, True], ids=["list", "ocsp"])
def test_whom_the_authority_has_revoked_is_refused_by_us(site: Site, by_ocsp: bool) -> None:
    """Without strictness, too."""
    corp = Authority(site)
    theirs = corp.gateway(SUN, by_ocsp=by_ocsp)
    with corp.lists(theirs), corp.responder(revoked=theirs):
        peer = strongswan(site, theirs, CORP.issuing, anchor=CORP.root)
        gateway = xfrmpy(site, CORP.gateway(MOON))
        assert_refused(gateway, peer, "XF2115")


def test_strict_refuses_when_nobody_answers_and_soft_does_not(site: Site) -> None:
    corp = Authority(site)
    theirs = corp.gateway(SUN)
    peer = strongswan(site, theirs, CORP.issuing, anchor=CORP.root)
    gateway = xfrmpy(site, CORP.gateway(MOON), revocation="strict")
    assert_refused(gateway, peer, "XF2116")
    url = f"http://{corp.address}:{HTTP_PORT}/issuing.crl"
    assert f"CRL {url}" in gateway.command("describe", "net0").output
    (policy,) = gateway.policies.iterdir()
    policy.write_text(policy.read_text().replace("strict", "soft"))
    assert gateway.command("apply").code == 0
    site.connect(gateway, peer)


def test_strongswan_fetches_the_list_of_ours_and_refuses_us_if_we_are_on_it(site: Site) -> None:
    """In both roles; its plugin `revocation` reads what our authority has signed."""
    corp = Authority(site)
    ours = corp.gateway(MOON)
    with corp.lists(ours):
        peer = strongswan(site, CORP.gateway(SUN), CORP.issuing, anchor=CORP.root)
        gateway = xfrmpy(site, ours)
        answer = gateway.command("up", "net0")
        assert answer.code == 5
        assert "XF2005" in answer.errors
        peer.swanctl("--initiate", "--child", "net0", "--timeout", "30", check=False)
        log = Path(peer.logs[0])
        eventually(
            "strongSwan to refuse it in both roles",
            lambda: log.read_text().count("certificate was revoked on") >= 2,
        )
        assert not gateway.is_up()


def test_both_ends_send_along_what_an_ocsp_responder_says_of_them(site: Site) -> None:
    """RFC 4806, with strongSwan 6.1. We ask nobody of its certificate, and strictly; of our own we
    do, so it has the answer from the second time on."""
    corp = Authority(site)
    ours, theirs = (corp.gateway(name, by_ocsp=True) for name in (MOON, SUN))
    with corp.responder(ours, theirs, revoked=corp.gateway("other")):
        peer = strongswan(
            site,
            theirs,
            CORP.issuing,
            anchor=CORP.root,
            usr=strongswan_of("forky"),
            connection="ocsp = both",
        )
        gateway = xfrmpy(site, ours, revocation="strict")
        for _ in Pair(site, gateway, peer).each_role():
            site.assert_protected()
            eventually("our own to be there", lambda: questions(gateway))
    assert len(questions(gateway)) == 1
    assert peer.log.count("sending OCSP status for certificate") == 2
    assert "received OCSP response issued by" in peer.log


def questions(gateway: XfrmpyGateway) -> list[str]:
    """Whom it has asked, and what came."""
    return [line for line in gateway.log.splitlines() if " of http://" in line]
