"""Raw public keys with libreswan: each end knows the other's, and libreswan has made its own."""

from __future__ import annotations

from typing import Any

import pytest

from integration.lab.keys import make_key
from integration.lab.libreswan import key_line, make_host_key
from integration.lab.site import Pair, Site

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("authby", "kind", "our_kind"),
    [("rsa-sha2", "rsa", "rsa"), ("ecdsa", "ecdsa", "ecdsa256")],
    ids=["rsa", "ecdsa"],
)
def test_keys_that_the_ends_know_of_each_other_prove_them(
    site: Site, authby: str, kind: str, our_kind: str
) -> None:
    theirs = make_host_key(site.directory / "hostkey", kind)
    ours = make_key(site.directory, our_kind, "moon")
    tunnel = site.network.tunnel()
    peer = site.libreswan(
        site.network.sun,
        tunnel.mirrored(),
        authby=authby,
        connection=(key_line("left", theirs.public), key_line("right", ours.public)),
        files=theirs.files,
    )
    auth = {
        "local": {"id": tunnel.ours.id, "key": f"file:{ours.private}"},
        "remote": {"id": tunnel.theirs.id, "key": f"file:{theirs.public}"},
    }
    psk: dict[str, Any] = {"psk": None, "id": None, "peer_id": None}
    gateway = site.xfrmpy(site.network.moon, tunnel, auth=auth, **psk)
    for _ in Pair(site, gateway, peer).each_role():
        site.assert_protected()
