"""Post-quantum key exchange (RFC 9370): between gateways of ours, and beside peers without it."""

from __future__ import annotations

from typing import Any

import pytest

from integration.lab.marks import BOTH_ROLES
from integration.lab.process import eventually
from integration.lab.site import Pair, Role, Site

pytestmark = [pytest.mark.native, pytest.mark.copied]

MODERN: dict[str, Any] = {"ike": "modern", "esp": "modern"}
HYBRID = "x25519-ke1_mlkem768"
REQUIRED: dict[str, Any] = {"ike": {"post_quantum": "require"}, "esp": "modern"}
CHILD = "aes256gcm16-x25519-ke1_mlkem768-noesn"


def test_two_gateways_of_ours_come_to_ml_kem_by_default_and_keep_it(site: Site) -> None:
    tunnel = site.network.tunnel()
    keys = {**MODERN, "esp": CHILD}
    moon = site.xfrmpy(site.network.moon, tunnel, **keys)
    sun = site.xfrmpy(site.network.sun, tunnel.mirrored(), **keys)
    site.connect(moon, sun)
    site.assert_protected()
    before = moon.tunnel()
    assert before.suite.endswith(HYBRID)
    moon.rekey()
    eventually("another IKE SA", lambda: moon.tunnel().spi_i != before.spi_i)
    after = moon.tunnel()
    assert after.suite == before.suite
    assert after.children[0].spi_in != before.children[0].spi_in
    assert "IKE_FOLLOWUP_KE" in moon.log
    site.assert_protected()


@BOTH_ROLES
def test_a_peer_without_it_gets_a_classical_ike_sa(site: Site, role: Role) -> None:
    """strongSwan 5.9 passes over a proposal that has types of transform it does not know."""
    tunnel = site.network.tunnel(ike="aes256gcm16-prfsha384-x25519", esp="aes256gcm16-noesn")
    pair = Pair(
        site,
        site.xfrmpy(site.network.moon, tunnel, **MODERN),
        site.strongswan(site.network.sun, tunnel.mirrored()),
    )
    pair.connect(role)
    site.assert_protected()
    assert pair.ours.tunnel().suite == "aes256gcm16-prfsha384-x25519"


@BOTH_ROLES
def test_where_it_is_required_a_peer_without_it_is_refused(site: Site, role: Role) -> None:
    tunnel = site.network.tunnel(ike="aes256gcm16-prfsha384-x25519", esp="aes256gcm16-noesn")
    ours = site.xfrmpy(site.network.moon, tunnel, **REQUIRED)
    theirs = site.strongswan(site.network.sun, tunnel.mirrored())
    if role is Role.INITIATOR:
        answer = ours.command("up", "net0")
        assert answer.code == 5
        assert "XF2031" in answer.errors + answer.output
    else:
        theirs.swanctl("--initiate", "--child", "net0", "--timeout", "10", check=False)
        assert "NO_PROP" in theirs.log
        eventually("the refusal in our log", lambda: "XF2031" in ours.log)
    assert not theirs.is_up()
