"""Certificates that strongSwan names by a hash and a URL, in both roles, from a real server."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.lab.authority import Hierarchy, key_pem, pem, write_credentials
from integration.lab.gateway import XfrmpyGateway
from integration.lab.process import Background, eventually
from integration.lab.site import Pair, Site
from integration.lab.status_server import HTTP_PORT, http_server
from integration.lab.strongswan import StrongswanPeer
from integration.test_certificates import MOON, SUN, assert_refused
from tests.pki.chains import Entity

pytestmark = [pytest.mark.native, pytest.mark.copied]

CORP = Hierarchy.of("p256")


def sha1(entity: Entity) -> str:
    return hashlib.sha1(entity.certificate.der, usedforsecurity=False).hexdigest()


def strongswan(site: Site, leaf: Entity) -> StrongswanPeer:
    """At sun: of what the two authorities have issued it says where it is."""
    base = f"http://{site.network.sun.outside[4]}:{HTTP_PORT}/"
    authorities = "\n".join(
        f"{name} {{ cacert = {name}.pem\n cert_uri_base = {base} }}" for name in ("root", "issuing")
    )
    ends = (
        f'auth = pubkey\n certs = gw.pem\n id = "{SUN}"',
        f'auth = pubkey\n id = "{MOON}"',
    )
    files = {
        "x509/gw.pem": pem(leaf),
        "x509/issuing.pem": pem(CORP.issuing),
        "x509ca/root.pem": pem(CORP.root),
        "x509ca/issuing.pem": pem(CORP.issuing),
        "pkcs8/gw.pem": key_pem(leaf),
    }
    return site.strongswan(
        site.network.sun,
        site.network.tunnel().mirrored(),
        ends=ends,
        authorities=authorities,
        files=files,
        settings=("hash_and_url=yes",),
    )


def xfrmpy(site: Site, hosts: Any = None) -> XfrmpyGateway:
    """At moon; without `hosts` it fetches from where strongSwan says."""
    directory = site.directory / "moon-certs"
    write_credentials(directory, CORP.gateway(MOON), CORP.issuing, anchor=CORP.root)
    auth = {
        "local": {
            "id": MOON,
            "cert": f"file:{directory}/certs/gw.pem",
            "key": f"file:{directory}/keys/gw.key",
        },
        "remote": {
            "id": SUN,
            "ca": f"file:{directory}/cas/corp.pem",
            "hash_and_url": hosts or f"{site.network.sun.outside[4]}:{HTTP_PORT}",
        },
    }
    psk: dict[str, Any] = {"psk": None, "id": None, "peer_id": None}
    return site.xfrmpy(site.network.moon, site.network.tunnel(), auth=auth, **psk)


@contextmanager
def published(site: Site, files: dict[str, bytes]) -> Iterator[Path]:
    """At sun, beside strongSwan; gives the log of the server."""
    directory = site.directory / "http"
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    sun = site.network.sun
    with http_server(sun, sun.outside[4], directory):
        yield directory / "server.log"


def of(*entities: Entity) -> dict[str, bytes]:
    return {sha1(each): each.certificate.der for each in entities}


def test_what_strongswan_names_is_fetched_once_in_both_roles(site: Site) -> None:
    theirs = CORP.gateway(SUN)
    with published(site, of(theirs, CORP.issuing)) as log:
        peer, gateway = strongswan(site, theirs), xfrmpy(site)
        for _ in Pair(site, gateway, peer).each_role():
            site.assert_protected()
        asked = [line for line in log.read_text().splitlines() if "GET /" in line]
    for entity in (theirs, CORP.issuing):
        assert sum(f"GET /{sha1(entity)} " in line for line in asked) == 1
    assert len(asked) == 2


def test_a_server_that_has_something_else_there_lets_nobody_in(site: Site) -> None:
    theirs, other = CORP.gateway(SUN), CORP.gateway("mars.example.net")
    files = {**of(CORP.issuing), sha1(theirs): other.certificate.der}
    with published(site, files):
        peer, gateway = strongswan(site, theirs), xfrmpy(site)
        assert_refused(gateway, peer, "XF2118")
        told = gateway.command("describe", "net0").output
        assert sha1(theirs) in told
        assert sha1(other) in told


def test_a_server_that_is_missing_lets_nobody_in_and_the_next_time_it_may_be_there(
    site: Site,
) -> None:
    theirs = CORP.gateway(SUN)
    peer, gateway = strongswan(site, theirs), xfrmpy(site)
    assert_refused(gateway, peer, "XF2118")
    assert "Connect call failed" in gateway.log
    with published(site, of(theirs, CORP.issuing)):
        site.connect(gateway, peer)


def test_hosts_that_policy_does_not_name_are_not_asked(site: Site) -> None:
    theirs = CORP.gateway(SUN)
    with published(site, of(theirs, CORP.issuing)) as log:
        peer = strongswan(site, theirs)
        gateway = xfrmpy(site, hosts=["certs.example.net", site.network.sun.outside[4]])
        assert_refused(gateway, peer, "XF2118")
        assert "GET" not in log.read_text()


_SILENT = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
held = []
while True:
    held.append(server.accept())
"""


def test_a_server_that_says_nothing_is_given_up(site: Site) -> None:
    sun = site.network.sun
    address = sun.outside[4]
    silent = Background(
        sun.command(sys.executable, "-c", _SILENT, address, str(HTTP_PORT)), site.log
    )
    try:
        eventually("the server to listen", lambda: f":{HTTP_PORT} " in sun.run("ss", "-Hltn"))
        peer, gateway = strongswan(site, CORP.gateway(SUN)), xfrmpy(site)
        assert_refused(gateway, peer, "XF2118")
    finally:
        silent.stop()
    assert "no answer within 5 s" in gateway.log
