"""xfrmpy and strongSwan: natively both move packets in user space, in the VM both in the kernel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from integration.lab.cases import CASES, tunnels
from integration.lab.hostile import half_open
from integration.lab.marks import BOTH_ROLES
from integration.lab.network import subnet
from integration.lab.process import IN_VM, eventually
from integration.lab.site import Pair, Role, Site
from integration.lab.tunnel import Tunnel

pytestmark = [pytest.mark.native, pytest.mark.copied]

IN_VM_TOO = pytest.mark.vm
"""Of what the datapath does; what is IKE alone need not be seen twice."""

QUICK: dict[str, Any] = {"dpd": "1s", "retransmission": {"tries": 2, "initial": "500ms"}}


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """One daemon of each kind, which know a tunnel for every case."""
    with Site() as site:
        known = tunnels(site.network)
        theirs = site.strongswan(site.network.sun, *(tunnel.mirrored() for tunnel in known))
        yield Pair(site, site.xfrmpy(site.network.moon, *known), theirs)


@IN_VM_TOO
@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
@BOTH_ROLES
def test_a_tunnel_comes_up_carries_packets_and_goes_down(
    pair: Pair, role: Role, number: int
) -> None:
    pair.assert_case(role, number)


@IN_VM_TOO
def test_a_large_transfer_is_intact(pair: Pair) -> None:
    pair.connect(Role.INITIATOR)
    pair.site.transfer(4_000_000 if IN_VM else 100_000_000)
    pair.ours.terminate()


@IN_VM_TOO
def test_up_again_changes_nothing(pair: Pair) -> None:
    pair.connect(Role.INITIATOR)
    before = pair.ours.tunnel()
    assert pair.ours.command("up", "net0").code == 0
    after = pair.ours.tunnel()
    assert (after.spi_i, after.spi_r) == (before.spi_i, before.spi_r)
    assert after.children[0].spi_in == before.children[0].spi_in
    pair.ours.terminate()


@IN_VM_TOO
@BOTH_ROLES
def test_the_responder_may_end_the_tunnel(pair: Pair, role: Role) -> None:
    pair.connect(role)
    initiator, responder = pair.in_order(role)
    responder.terminate()
    eventually("the other end to be down", lambda: not initiator.is_up())


def pair_with(site: Site, ours: Tunnel, theirs: Tunnel | None = None) -> Pair:
    """Both ends of one tunnel; `theirs` is what the peer is told, in moon's view."""
    network = site.network
    return Pair(
        site,
        site.xfrmpy(network.moon, ours),
        site.strongswan(network.sun, (theirs or ours).mirrored()),
    )


@BOTH_ROLES
@pytest.mark.parametrize("wider", ["ours", "theirs"])
def test_the_narrower_end_decides_what_the_tunnel_carries(
    site: Site, role: Role, wider: str
) -> None:
    narrow = site.network.tunnel()
    wide = narrow.between(("10.1.0.0/16",), ("10.2.0.0/16",))
    pair = pair_with(site, *((wide, narrow) if wider == "ours" else (narrow, wide)))
    pair.connect(role)
    site.assert_protected()
    (child,) = pair.ours.tunnel().children
    assert (child.local, child.remote) == (["10.1.0.0/24"], ["10.2.0.0/24"])


@IN_VM_TOO
def test_one_child_sa_carries_several_subnets(site: Site) -> None:
    tunnel = site.network.tunnel()
    pair = pair_with(site, tunnel.between((subnet(1), subnet(1, 1)), (subnet(2), subnet(2, 1))))
    for _ in pair.each_role():
        site.assert_protected(0)
        site.assert_protected(1)
        assert len(pair.ours.tunnel().children) == 1


@BOTH_ROLES
def test_the_responder_may_ask_for_another_group(site: Site, role: Role) -> None:
    """INVALID_KE_PAYLOAD: the initiator guessed x25519, the responder knows only ecp384."""
    both, one = "aes128gcm16-prfsha256-x25519-ecp384", "aes128gcm16-prfsha256-ecp384"
    ours, theirs = (both, one) if role is Role.INITIATOR else (one, both)
    pair = pair_with(site, site.network.tunnel(ike=ours), site.network.tunnel(ike=theirs))
    pair.connect(role)
    site.assert_protected()
    assert pair.ours.tunnel().suite == one


def test_a_cookie_is_returned(site: Site) -> None:
    network = site.network
    theirs = site.strongswan(
        network.sun, network.tunnel().mirrored(), settings=("cookie_threshold=1",)
    )
    half_open(network.moon, "192.0.2.2")
    eventually("a half-open IKE SA", lambda: "CONNECTING" in theirs.swanctl("--list-sas"))
    ours = site.xfrmpy(network.moon, network.tunnel())
    site.connect(ours, theirs)
    assert "N(COOKIE)" in theirs.log


@pytest.mark.parametrize("demand", ["cookies", "puzzles"])
def test_a_peer_that_we_demand_something_of_connects(site: Site, demand: str) -> None:
    """charon knows no puzzles: it returns the cookie alone, and is served by lot."""
    network = site.network
    theirs = site.strongswan(network.sun, network.tunnel().mirrored())
    ours = site.xfrmpy(network.moon, network.tunnel(), options=(f"--{demand}-at", "0"))
    site.connect(theirs, ours)
    assert "N(COOKIE)" in theirs.log
    assert ours.status().drops[f"{demand.removesuffix('s')}-demanded"] == 1


@BOTH_ROLES
def test_lost_datagrams_are_sent_again(site: Site, role: Role) -> None:
    """Every second datagram that comes to us is lost, the first one too."""
    site.network.moon.drop("udp sport { 500, 4500 } numgen inc mod 2 == 0")
    pair_with(site, site.network.tunnel()).connect(role)


def with_many_subnets(site: Site) -> Tunnel:
    """A tunnel whose IKE_AUTH has more than 1,800 octets both ways."""
    more = tuple(f"10.1.{number}.0/24" for number in range(100, 200))
    return site.network.tunnel().between((subnet(1), *more), (subnet(2),))


@IN_VM_TOO
@pytest.mark.parametrize("path", [1280, 600], ids="path of {}".format)
def test_large_messages_pass_where_their_ip_fragments_would_not(site: Site, path: int) -> None:
    site.network.narrow(path)
    tunnel = with_many_subnets(site)
    size = (f"fragment_size={min(path, 1200)}",)
    theirs = site.strongswan(site.network.sun, tunnel.mirrored(), settings=size)
    ours = site.xfrmpy(site.network.moon, tunnel, retransmission={"initial": "300ms", "tries": 8})
    for role in Pair(site, ours, theirs).each_role():
        site.assert_protected(count=1)
        received, sent = ("request", "response")[:: 1 if role is Role.INITIATOR else -1]
        assert re.search(rf"parsed IKE_AUTH {received} 1 \[ EF\(1/\d\) \]", theirs.log)
        assert re.search(rf"generating IKE_AUTH {sent} 1 \[ EF\(1/\d\) \]", theirs.log)
        assert len(ours.tunnel().children[0].local) == 101


@BOTH_ROLES
def test_who_does_not_want_fragments_gets_none(site: Site, role: Role) -> None:
    tunnel = with_many_subnets(site)
    theirs = site.strongswan(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel, fragmentation=False)
    Pair(site, ours, theirs).connect(role)
    assert "[ EF(" not in theirs.log


def test_a_peer_that_asks_whether_we_live_is_answered(site: Site) -> None:
    network = site.network
    mirrored = network.tunnel().mirrored()
    theirs = site.strongswan(network.sun, mirrored, connection="dpd_delay = 1s")
    site.connect(site.xfrmpy(network.moon, network.tunnel()), theirs)
    answered = "parsed INFORMATIONAL response"
    eventually("two answers", lambda: theirs.log.count(answered) >= 2, seconds=20)
    assert theirs.is_up()


def test_a_peer_that_lives_stays_up(site: Site) -> None:
    network = site.network
    theirs = site.strongswan(network.sun, network.tunnel().mirrored())
    ours = site.xfrmpy(network.moon, network.tunnel(), **QUICK)
    site.connect(ours, theirs)
    asked = "parsed INFORMATIONAL request"
    eventually("two questions", lambda: theirs.log.count(asked) >= 2, seconds=20)
    assert ours.is_up()


def test_a_peer_that_vanished_is_noticed(site: Site) -> None:
    network = site.network
    theirs = site.strongswan(network.sun, network.tunnel().mirrored())
    ours = site.xfrmpy(network.moon, network.tunnel(), **QUICK)
    site.connect(ours, theirs)
    theirs.kill()
    eventually("us to notice", lambda: not ours.is_up(), seconds=30)


def test_sigterm_tells_the_peer_and_leaves_nothing(site: Site) -> None:
    pair = pair_with(site, site.network.tunnel())
    pair.connect(Role.INITIATOR)
    pair.ours.stop()
    eventually("the peer to be told", lambda: not pair.theirs.is_up())


def test_status_is_for_people_and_for_programs(pair: Pair) -> None:
    pair.connect(Role.INITIATOR)
    told = pair.ours.command("status", "net0")
    assert told.code == 0
    for words in ("192.0.2.2", "aes128gcm16", pair.ours.tunnel().children[0].spi_in):
        assert words in told.output
    document = json.loads(pair.ours.command("status", "-o", "json").output)
    assert (document["api"], document["kind"]) == ("xfrmpy/v1", "Status")
    assert [tunnel["state"] for tunnel in document["tunnels"]].count("up") == 1
    pair.ours.terminate()
    assert pair.ours.command("status", "net0").code == 3


def test_a_peer_may_begin_without_a_child_sa(site: Site) -> None:
    """RFC 6023: the IKE SA first, and then its Child SA by CREATE_CHILD_SA."""
    network = site.network
    forced = "childless = force"
    theirs = site.strongswan(network.sun, network.tunnel().mirrored(), connection=forced)
    ours = site.xfrmpy(network.moon, network.tunnel())
    site.connect(theirs, ours)
    site.assert_protected()
    assert "N(CHDLESS_SUP)" in theirs.log
    assert "parsed CREATE_CHILD_SA response" in theirs.log


def test_we_may_begin_without_a_child_sa(site: Site) -> None:
    network = site.network
    forced = "childless = force"
    theirs = site.strongswan(network.sun, network.tunnel().mirrored(), connection=forced)
    ours = site.xfrmpy(network.moon, network.tunnel(), childless="yes")
    site.connect(ours, theirs)
    site.assert_protected()
    assert "parsed CREATE_CHILD_SA request" in theirs.log


def test_we_redirect_a_client_to_another_address(site: Site) -> None:
    """RFC 5685 in IKE_SA_INIT: whoever comes to our first address is sent to the second."""
    network, second = site.network, "192.0.2.101"
    network.moon.run("ip", "addr", "add", f"{second}/24", "dev", "wan")
    ours = site.xfrmpy(network.moon, network.tunnel(), local_address=None, redirect_to=second)
    theirs = site.strongswan(network.sun, network.tunnel().mirrored())
    site.connect(theirs, ours)
    site.assert_protected()
    assert ours.tunnel().local_address.startswith(second)
    assert "N(REDIR)" in theirs.log
    assert "N(REDIR_FROM)" in theirs.log


def test_a_gateway_moves_us_to_another_address(site: Site) -> None:
    """RFC 5685 in the middle of a session, by strongSwan's operator."""
    network, second = site.network, "192.0.2.102"
    network.sun.run("ip", "addr", "add", f"{second}/24", "dev", "wan")
    both = f"local_addrs = 192.0.2.2,{second}"
    theirs = site.strongswan(network.sun, network.tunnel().mirrored(), connection=both)
    ours = site.xfrmpy(network.moon, network.tunnel())
    site.connect(ours, theirs)
    theirs.swanctl("--redirect", "--ike", "site0", "--gateway", second)
    eventually("us to be there", lambda: ours.tunnel().remote_address.startswith(second))
    eventually("the tunnel to be up", lambda: ours.is_up() and theirs.is_up())
    site.assert_protected()
    assert "N(REDIR_FROM)" in theirs.log


def test_we_stay_if_our_policy_does_not_follow(site: Site) -> None:
    network = site.network
    theirs = site.strongswan(network.sun, network.tunnel().mirrored())
    ours = site.xfrmpy(network.moon, network.tunnel(), redirect="no")
    site.connect(ours, theirs)
    before = ours.tunnel().spi_i
    said = theirs.swanctl("--redirect", "--ike", "site0", "--gateway", "192.0.2.102", check=False)
    assert "redirect" in said
    assert ours.tunnel().spi_i == before
    assert ours.is_up()
