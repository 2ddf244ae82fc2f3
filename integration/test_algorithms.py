"""Every algorithm that a foreign peer shares with us, in IKE or for packets, in both roles.

What each end has agreed upon is asked at both: our status, and strongSwan's own or, of libreswan,
what it has put into its kernel. In user space strongSwan has some of the algorithms for ESP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from integration.lab.cases import Case
from integration.lab.marks import BOTH_ROLES
from integration.lab.process import IN_VM
from integration.lab.site import Pair, Peer, Role, Site
from integration.lab.strongswan import StrongswanPeer
from integration.lab.tunnel import Tunnel
from xfrmpy.ipsec.proposals import EspSuite, esp_suite, parse_proposal
from xfrmpy.registry import ProtocolId


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is negotiated, and how strongSwan writes it; where strongSwan lacks it in user space.

    `of_libreswan` is what the IKE SA takes instead with libreswan, which has less for it.
    """

    ike: str
    ike_words: str
    esp: str
    esp_words: str
    is_native: bool = True
    of_libreswan: str = ""

    def __str__(self) -> str:
        return f"{self.ike}+{self.esp}"

    @property
    def case(self) -> Case:
        return Case(ike=self.ike, esp=f"{self.esp}-noesn")

    @property
    def beside_libreswan(self) -> Row:
        return replace(self, ike=self.of_libreswan or self.ike)


_COMMON = "aes128gcm16-prfsha256-x25519"

ROWS = (
    Row(
        ike="aes128gcm8-prfsha256-x25519",
        ike_words="AES_GCM_8-128/PRF_HMAC_SHA2_256/CURVE_25519",
        esp="aes128gcm8",
        esp_words="AES_GCM_8-128",
    ),
    Row(
        ike="aes256gcm12-prfsha256-x25519",
        ike_words="AES_GCM_12-256/PRF_HMAC_SHA2_256/CURVE_25519",
        esp="aes192gcm12",
        esp_words="AES_GCM_12-192",
    ),
    Row(
        ike="aes192gcm16-prfsha512-x25519",
        ike_words="AES_GCM_16-192/PRF_HMAC_SHA2_512/CURVE_25519",
        esp="aes192gcm16",
        esp_words="AES_GCM_16-192",
    ),
    Row(
        ike="aes128ccm8-prfsha256-x25519",
        ike_words="AES_CCM_8-128/PRF_HMAC_SHA2_256/CURVE_25519",
        esp="aes128ccm8",
        esp_words="AES_CCM_8-128",
        of_libreswan=_COMMON,
    ),
    Row(
        ike="aes192ccm12-prfsha384-x25519",
        ike_words="AES_CCM_12-192/PRF_HMAC_SHA2_384/CURVE_25519",
        esp="aes192ccm12",
        esp_words="AES_CCM_12-192",
        of_libreswan=_COMMON,
    ),
    Row(
        ike="aes256ccm16-prfsha512-x25519",
        ike_words="AES_CCM_16-256/PRF_HMAC_SHA2_512/CURVE_25519",
        esp="aes256ccm16",
        esp_words="AES_CCM_16-256",
        of_libreswan=_COMMON,
    ),
    Row(
        ike=_COMMON,
        ike_words="AES_GCM_16-128/PRF_HMAC_SHA2_256/CURVE_25519",
        esp="aes128gmac",
        esp_words="NULL_AES_GMAC-128",
        is_native=False,
    ),
    Row(
        ike="aes256ctr-sha256-prfsha256-x25519",
        ike_words="AES_CTR-256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/CURVE_25519",
        esp="aes256ctr-sha256",
        esp_words="AES_CTR-256/HMAC_SHA2_256_128",
    ),
    Row(
        ike="camellia256-sha256-prfsha256-x25519",
        ike_words="CAMELLIA_CBC-256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/CURVE_25519",
        esp="camellia256-sha256",
        esp_words="CAMELLIA_CBC-256/HMAC_SHA2_256_128",
    ),
    Row(
        ike="3des-sha1-prfsha1-modp2048",
        ike_words="3DES_CBC/HMAC_SHA1_96/PRF_HMAC_SHA1/MODP_2048",
        esp="3des-sha1",
        esp_words="3DES_CBC/HMAC_SHA1_96",
    ),
    Row(
        ike="aes128-sha1-prfsha1-x25519",
        ike_words="AES_CBC-128/HMAC_SHA1_96/PRF_HMAC_SHA1/CURVE_25519",
        esp="null-sha256",
        esp_words="NULL/HMAC_SHA2_256_128",
    ),
    Row(
        ike="aes128-aesxcbc-prfaesxcbc-x25519",
        ike_words="AES_CBC-128/AES_XCBC_96/PRF_AES128_XCBC/CURVE_25519",
        esp="aes128-aesxcbc",
        esp_words="AES_CBC-128/AES_XCBC_96",
    ),
    Row(
        ike="aes128-aescmac-prfaescmac-x25519",
        ike_words="AES_CBC-128/AES_CMAC_96/PRF_AES128_CMAC/CURVE_25519",
        esp="aes256-aescmac",
        esp_words="AES_CBC-256/AES_CMAC_96",
        of_libreswan=_COMMON,
    ),
)

OF_STRONGSWAN = [row for row in ROWS if IN_VM or row.is_native]
OF_LIBRESWAN = [row.beside_libreswan for row in ROWS]


def _tunnels(site: Site, rows: list[Row]) -> list[Tunnel]:
    return [
        site.network.tunnel(number, ike=row.ike, esp=row.case.esp)
        for number, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def strongswan() -> Iterator[Pair]:
    with Site(copied=True) as site:
        known = _tunnels(site, OF_STRONGSWAN)
        theirs = site.strongswan(site.network.sun, *(tunnel.mirrored() for tunnel in known))
        yield Pair(site, site.xfrmpy(site.network.moon, *known), theirs)


@pytest.fixture(scope="module")
def libreswan() -> Iterator[Pair]:
    with Site() as site:
        known = _tunnels(site, OF_LIBRESWAN)
        theirs = site.libreswan(site.network.sun, *(tunnel.mirrored() for tunnel in known))
        yield Pair(site, site.xfrmpy(site.network.moon, *known), theirs)


@pytest.mark.native
@pytest.mark.vm
@pytest.mark.parametrize("number", range(len(OF_STRONGSWAN)), ids=map(str, OF_STRONGSWAN))
@BOTH_ROLES
def test_strongswan_and_we_agree_upon_it(strongswan: Pair, role: Role, number: int) -> None:
    row = OF_STRONGSWAN[number]
    strongswan.assert_carries(role, number, row.case)
    assert isinstance(strongswan.theirs, StrongswanPeer)
    theirs = strongswan.theirs.list_sas(number)
    assert row.ike_words in theirs
    assert f"ESP:{row.esp_words}" in theirs or f"ESP in UDP:{row.esp_words}" in theirs
    strongswan.disconnect(role, number)


@pytest.mark.vm
@pytest.mark.parametrize("number", range(len(OF_LIBRESWAN)), ids=map(str, OF_LIBRESWAN))
@BOTH_ROLES
def test_libreswan_and_we_agree_upon_it(libreswan: Pair, role: Role, number: int) -> None:
    row = OF_LIBRESWAN[number]
    libreswan.assert_carries(role, number, row.case)
    states = libreswan.site.network.sun.run("ip", "xfrm", "state")
    for name in _kernel_names(esp_suite(parse_proposal(row.esp, ProtocolId.ESP))):
        assert name in states
    libreswan.disconnect(role, number)


def _kernel_names(suite: EspSuite) -> list[str]:
    return [part.kernel_name for part in (suite.cipher, suite.integrity) if part is not None]


AH_ROWS = {"sha256": "HMAC_SHA2_256_128", "sha1": "HMAC_SHA1_96", "aesxcbc": "AES_XCBC_96"}


@pytest.mark.vm
@pytest.mark.parametrize(
    ("name", "mode", "outside"),
    [
        ("sha256", "tunnel", 4),
        ("sha256", "transport", 4),
        ("sha1", "tunnel", 6),
        ("sha1", "transport", 4),
        ("aesxcbc", "tunnel", 4),
        ("aesxcbc", "transport", 4),
    ],
)
def test_ah_with_strongswan_in_both_roles(site: Site, name: str, mode: str, outside: int) -> None:
    tunnel = site.network.tunnel(
        outside=outside, ah=f"{name}-noesn", is_transport=mode == "transport"
    )
    theirs = site.strongswan(site.network.sun, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel), theirs)
    for _ in pair.each_role():
        _assert_authenticated(pair, f"ah-{name}", mode, outside)
        assert f"AH:{AH_ROWS[name]}" in theirs.list_sas()


@pytest.mark.vm
@pytest.mark.parametrize("mode", ["tunnel", "transport"])
@pytest.mark.parametrize("name", ["sha256", "sha512"])
def test_ah_with_libreswan_in_both_roles(site: Site, name: str, mode: str) -> None:
    tunnel = replace(site.network.tunnel(), ah=f"{name}-noesn", is_transport=mode == "transport")
    theirs = site.libreswan(site.network.sun, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel), theirs)
    for _ in pair.each_role():
        _assert_authenticated(pair, f"ah-{name}", mode)
        states = site.network.sun.run("ip", "xfrm", "state")
        assert "proto ah" in states
        assert f"hmac({name})" in states


@pytest.mark.vm
@pytest.mark.parametrize("mode", ["tunnel", "transport"])
@pytest.mark.parametrize("make_peer", [Site.strongswan, Site.libreswan], ids=lambda f: f.__name__)
def test_ah_of_user_space_is_understood_by_the_kernels_of_others(
    site: Site, make_peer: Callable[..., Peer], mode: str
) -> None:
    tunnel = replace(site.network.tunnel(), ah="sha256-noesn", is_transport=mode == "transport")
    theirs = make_peer(site, site.network.sun, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, datapath="userspace"), theirs)
    for _ in pair.each_role():
        _assert_authenticated(pair, "ah-sha256", mode)


@pytest.mark.vm
def test_ah_with_extended_sequence_numbers_is_rekeyed(site: Site) -> None:
    tunnel = replace(site.network.tunnel(), ah="sha512-esn")
    theirs = site.strongswan(site.network.sun, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel), theirs)
    pair.connect(Role.INITIATOR)
    _assert_authenticated(pair, "ah-sha512-esn", "tunnel")
    before = pair.ours.tunnel().children[0].spi_in
    pair.ours.rekey()
    _assert_authenticated(pair, "ah-sha512-esn", "tunnel")
    assert pair.ours.tunnel().children[0].spi_in != before


def _assert_authenticated(pair: Pair, suite: str, mode: str, outside: int = 4) -> None:
    """Pings in both directions, each packet in AH; and our end says so."""
    network = pair.site.network
    with pair.site.capture() as wire:
        if mode == "transport":
            assert network.moon.ping(network.sun.public[outside]) == 0
            assert network.sun.ping(network.moon.public[outside]) == 0
        else:
            assert network.alice.ping(network.bob.inside_address()) == 0
            assert network.bob.ping(network.alice.inside_address()) == 0
    assert wire.kinds["clear"] == 0
    assert wire.kinds["ah"] == wire.protected > 0
    (child,) = pair.ours.tunnel().children
    assert (child.suite, child.mode) == (suite, mode)


@pytest.mark.vm
@pytest.mark.nat
def test_behind_a_nat_ah_fails_and_says_why(site: Site) -> None:
    tunnel = replace(site.network.tunnel(), ah="sha256-noesn")
    site.strongswan(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel)
    answer = ours.command("up", "net0")
    assert answer.code == 5
    assert "XF2030" in answer.errors


@pytest.mark.native
@pytest.mark.copied
@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("mode", ["tunnel", "transport"])
@pytest.mark.parametrize("name", ["sha256", "aescmac"])
def test_two_userspace_datapaths_speak_ah(site: Site, name: str, mode: str, outside: int) -> None:
    tunnel = site.network.tunnel(
        outside=outside, ah=f"{name}-esn", is_transport=mode == "transport"
    )
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel), theirs)
    pair.connect(Role.INITIATOR)
    _assert_authenticated(pair, f"ah-{name}-esn", mode, outside)
