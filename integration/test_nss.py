"""A certificate that leaves libreswan's database of NSS is ours then, as docs/migrating.md says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.lab.authority import Hierarchy, key_pem, pem
from integration.lab.process import run
from integration.lab.site import Pair, Site
from integration.test_certificates import MOON, SUN, strongswan
from tests.pki.chains import Entity

pytestmark = [pytest.mark.native, pytest.mark.copied]

CORP = Hierarchy.of("p256")
WORD = "a word of twenty octets"


def taken_from_nss(directory: Path, leaf: Entity, issuer: Entity) -> Path:
    """A file of PKCS #12, by way of a database in which both certificates and the key are."""
    database = f"sql:{directory / 'nss'}"
    (directory / "nss").mkdir(parents=True)
    files = {"chain.pem": pem(leaf, issuer), "key.pem": key_pem(leaf)}
    for name, octets in files.items():
        (directory / name).touch(0o600)
        (directory / name).write_bytes(octets)
    chain, key, brought, taken = (
        str(directory / name) for name in ("chain.pem", "key.pem", "in.p12", "gw.p12")
    )
    run("certutil", "-N", "-d", database, "--empty-password")
    run(
        *("openssl", "pkcs12", "-export", "-name", "gw", "-in", chain, "-inkey", key),
        *("-passout", "pass:", "-out", brought),
    )
    run("pk12util", "-i", brought, "-d", database, "-W", "")
    run("pk12util", "-o", taken, "-n", "gw", "-d", database, "-W", WORD)
    return Path(taken)


def test_what_pk12util_writes_proves_us_in_both_roles(site: Site) -> None:
    directory = site.directory / "moon-nss"
    taken = taken_from_nss(directory, CORP.gateway(MOON), CORP.issuing)
    taken.chmod(0o600)
    for name, octets in (("word", WORD.encode()), ("corp.pem", pem(CORP.root))):
        (directory / name).touch(0o600)
        (directory / name).write_bytes(octets)
    peer = strongswan(site, CORP.gateway(SUN), CORP.issuing, anchor=CORP.root)
    auth = {
        "local": {"id": MOON, "key": f"file:{taken}", "passphrase": f"file:{directory}/word"},
        "remote": {"id": SUN, "ca": f"file:{directory}/corp.pem"},
    }
    psk: dict[str, Any] = {"psk": None, "id": None, "peer_id": None}
    gateway = site.xfrmpy(site.network.moon, site.network.tunnel(), auth=auth, **psk)
    for _ in Pair(site, gateway, peer).each_role():
        site.assert_protected()
    assert "UserWarning" not in gateway.command("check").errors
