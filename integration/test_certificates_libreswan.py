"""X.509 certificates with libreswan, which keeps them in a database of NSS."""

from __future__ import annotations

import pytest

from integration.lab.authority import Hierarchy, key_pem, pem, signed, write_credentials
from integration.lab.site import Pair, Site

pytestmark = pytest.mark.vm

MOON, SUN = "moon.example.net", "sun.example.net"


@pytest.mark.parametrize(
    ("kind", "authby"), [("p256", "ecdsa"), ("p384", "ecdsa"), ("rsa", "rsa-sha2")]
)
def test_certificates_of_one_authority_prove_both_ends(site: Site, kind: str, authby: str) -> None:
    """Of RSA keys, libreswan makes RSASSA-PSS of that."""
    corp = Hierarchy.of(kind)
    theirs, ours = (corp.gateway(name, issuer=corp.root) for name in (SUN, MOON))
    peer = site.libreswan(
        site.network.sun,
        site.network.tunnel().mirrored(),
        authby=authby,
        connection=("leftcert=peer", "leftsendcert=always", "rightca=%same"),
        files={
            "x509/cert.pem": pem(theirs),
            "private/key.pem": key_pem(theirs),
            "x509ca/ca.pem": pem(corp.root),
        },
    )
    directory = site.directory / "moon-certs"
    write_credentials(directory, ours, anchor=corp.root)
    policy = signed(directory, MOON, SUN)
    gateway = site.xfrmpy(site.network.moon, site.network.tunnel(), **policy)
    for _ in Pair(site, gateway, peer).each_role():
        site.assert_protected()
