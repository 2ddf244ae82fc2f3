"""X.509 certificates with libreswan, which keeps them in a database of NSS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from integration.lab.authority import Hierarchy, key_pem, pem, signed, write_credentials
from integration.lab.site import Pair, Site

pytestmark = pytest.mark.vm

MOON, SUN = "moon.example.net", "sun.example.net"


@dataclass(frozen=True)
class Method:
    """What libreswan calls it, the kind of the keys, and further keys of our policy."""

    authby: str
    kind: str
    keys: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "ECDSA with SHA2_256": Method("ecdsa", "p256"),
    "ECDSA with SHA2_384": Method("ecdsa", "p384"),
    "RSASSA-PSS with SHA2_256": Method("rsa-sha2", "rsa"),
    "PKCS#1 1.5 RSA with SHA1": Method("rsa-sha1", "rsa", {"ike": {"profile": "compat"}}),
}
"""By what libreswan's log says of a signature that it has verified; the last is the older method,
without RFC 7427."""


@pytest.mark.parametrize("words", METHODS)
def test_certificates_of_one_authority_prove_both_ends(site: Site, words: str) -> None:
    method = METHODS[words]
    corp = Hierarchy.of(method.kind)
    theirs, ours = (corp.gateway(name, issuer=corp.root) for name in (SUN, MOON))
    peer = site.libreswan(
        site.network.sun,
        site.network.tunnel().mirrored(),
        authby=method.authby,
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
    gateway = site.xfrmpy(site.network.moon, site.network.tunnel(), **policy, **method.keys)
    for _ in Pair(site, gateway, peer).each_role():
        site.assert_protected()
        assert words in peer.log
