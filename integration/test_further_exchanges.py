"""Further key exchanges (RFC 9370) with a strongSwan that has them: that of Debian 14.

Debian 12's has none (`test_post_quantum`). There is no libreswan with them in any Debian.
"""

from __future__ import annotations

from functools import partial

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.marks import BOTH_ROLES
from integration.lab.process import eventually
from integration.lab.site import Pair, Role, Site
from integration.lab.strongswan import strongswan_of

pytestmark = [pytest.mark.native, pytest.mark.copied]

SUITES = {
    "ml-kem-768": ("x25519-ke1_mlkem768", "x25519-ke1_mlkem768"),
    "ml-kem-1024": ("ecp384-ke1_mlkem1024", "ecp384-ke1_mlkem1024"),
    "several": ("x25519-ke1_mlkem768-ke2_ecp384-ke3_modp3072", "x25519-ke1_ecp256-ke2_mlkem768"),
}
"""Of the IKE SA and of its Child SAs, by what they show."""


@pytest.fixture(scope="module")
def usr() -> str:
    return strongswan_of("forky")


@BOTH_ROLES
@pytest.mark.parametrize(("ike", "esp"), SUITES.values(), ids=SUITES)
def test_it_agrees_with_us_and_goes_on_through_rekeyings(
    site: Site, usr: str, role: Role, ike: str, esp: str
) -> None:
    """Either end rekeys either SA, with IKE_FOLLOWUP_KE for what has several exchanges."""
    tunnel = site.network.tunnel(ike=f"aes256gcm16-prfsha384-{ike}", esp=f"aes256gcm16-{esp}-noesn")
    ours = site.xfrmpy(site.network.moon, tunnel)
    theirs = site.strongswan(site.network.sun, tunnel.mirrored(), usr=usr)
    Pair(site, ours, theirs).connect(role)
    site.assert_protected()
    assert ours.tunnel().suite == tunnel.ike
    assert "IKE_INTERMEDIATE" in theirs.log
    for rekey, parts in (
        (ours.rekey, {0, 1}),
        (theirs.rekey_child_sa, {1}),
        (theirs.rekey_ike_sa, {0}),
    ):
        before = spis(ours)
        rekey()
        eventually("new SAs, and only those", partial(has_changed, ours, before, parts))
        assert ours.tunnel().suite == tunnel.ike
        site.assert_protected()
    assert "IKE_FOLLOWUP_KE" in theirs.log


def spis(ours: XfrmpyGateway) -> tuple[str, str]:
    """Of the IKE SA and of its Child SA."""
    tunnel = ours.tunnel()
    return tunnel.spi_i, tunnel.children[0].spi_in


def has_changed(ours: XfrmpyGateway, before: tuple[str, str], parts: set[int]) -> bool:
    """Whether these of the two are others, and no more."""
    return {number for number, spi in enumerate(spis(ours)) if spi != before[number]} == parts
