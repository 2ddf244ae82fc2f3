"""AH in the place of ESP: negotiated, rekeyed and deleted under its own protocol number.

RFC 7296 sections 1.4.1, 2.17, 3.3.1 and 3.11; RFC 4302; RFC 3948 section 1 for the NAT.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.ike.conftest import tunnel_policy
from tests.ike.test_traps import ENDS
from xfrmpy.crypto.prf import prf_plus
from xfrmpy.ike.create_child_sa import DELETE_PATIENCE_SECONDS
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ike.outputs import ChildSaEstablished, ChildSaRekeyed, RequestRefused, TunnelClosed
from xfrmpy.ike.succession import OVERLAP_SECONDS
from xfrmpy.ipsec.algorithms import PRFS
from xfrmpy.ipsec.proposals import AhSuite, parse_proposal
from xfrmpy.ipsec.sad import Direction
from xfrmpy.policy.model import Encapsulation, StartMode, TunnelPolicy
from xfrmpy.registry import ExchangeType, NotifyType, ProtocolId
from xfrmpy.wire.payloads import DeletePayload, NotifyPayload, SaPayload

AH, ESP = ProtocolId.AH, ProtocolId.ESP


def with_ah(*proposals: str, **changes: Any) -> TunnelPolicy:
    policy = tunnel_policy()
    parsed = tuple(parse_proposal(text, AH) for text in proposals)
    children = tuple(replace(child, proposals=parsed) for child in policy.children)
    return replace(policy, children=children, **changes)


@pytest.fixture
def up_with_ah(make_pair: Any) -> Any:
    pair = make_pair(with_ah("sha256-esn-x25519"))
    pair.up()
    return pair


def test_both_ends_have_sas_and_policies_of_ah(up_with_ah: Any) -> None:
    for host in (up_with_ah.moon, up_with_ah.sun):
        dump = host.datapath.dump()
        assert len(dump.sad) == 2
        assert {entry.protocol for entry in dump.sad} == {AH}
        assert {str(entry.suite) for entry in dump.sad} == {"ah-sha256-esn"}
        assert {entry.encryption_key for entry in dump.sad} == {b""}
        assert {entry.template.protocol for entry in dump.spd} == {AH}
        (established,) = host.reports(ChildSaEstablished)
        assert established.suite == "ah-sha256-esn"


def test_a_trap_asks_for_ah_and_stays_as_it_is_when_that_is_there(make_pair: Any) -> None:
    pair = make_pair(with_ah("sha256-esn-x25519", start=StartMode.ON_DEMAND))
    pair.moon.endpoint.set_traps("tunnel-a", ENDS)
    pair.deliver()
    before = pair.moon.datapath.dump().spd
    assert {entry.template.protocol for entry in before} == {AH}
    pair.up()
    assert pair.moon.datapath.dump().spd == before


def test_the_keys_are_for_integrity_only(up_with_ah: Any) -> None:
    """RFC 7296 section 2.17: keys are taken in order, and AH has none for encryption."""
    moon, sun = up_with_ah.moon, up_with_ah.sun
    (prf,) = (row for row in PRFS if row.name == "prfsha256")
    sa = moon.ike_sa
    stream = prf_plus(prf, sa.keys.sk_d, b"".join(sa.nonces), 64)
    by_direction = {entry.direction: entry for entry in moon.datapath.dump().sad}
    assert isinstance(by_direction[Direction.OUT].suite, AhSuite)
    assert by_direction[Direction.OUT].integrity_key == stream[:32]
    assert by_direction[Direction.IN].integrity_key == stream[32:]
    theirs = {entry.spi: entry.integrity_key for entry in sun.datapath.dump().sad}
    assert theirs == {entry.spi: entry.integrity_key for entry in by_direction.values()}


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_rekeying_names_the_old_sa_by_ah(up_with_ah: Any, sealing: Any, end: str) -> None:
    host, other = up_with_ah.ends(end)
    (before,) = host.views[0].children
    host.endpoint.rekey_child_sas("tunnel-a", up_with_ah.now)
    up_with_ah.deliver()
    up_with_ah.run(OVERLAP_SECONDS + 2 * DELETE_PATIENCE_SECONDS + 1)
    for each in (host, other):
        (rekeyed,) = each.reports(ChildSaRekeyed)
        assert rekeyed.suite == "ah-sha256-esn-x25519"
        assert len(each.datapath.dump().sad) == 2
    sent = [p for message, p in sealing.sent if message.exchange is ExchangeType.CREATE_CHILD_SA]
    (rekey,) = [
        n for n in sent[0] if isinstance(n, NotifyPayload) and n.type is NotifyType.REKEY_SA
    ]
    assert (rekey.protocol, rekey.spi) == (AH, before.entries[0].spi.to_bytes(4, "big"))
    (offered,) = [p for p in sent[0] if isinstance(p, SaPayload)]
    assert {proposal.protocol for proposal in offered.proposals} == {AH}
    deletes = [d for _, p in sealing.sent for d in p if isinstance(d, DeletePayload)]
    assert len(deletes) == 2
    assert {delete.protocol for delete in deletes} == {AH}


def test_a_rekeying_that_names_the_sa_as_one_of_esp_finds_none(
    up_with_ah: Any, make_ask: Any, sealing: Any
) -> None:
    (child,) = up_with_ah.moon.views[0].children
    spi = child.entries[0].spi.to_bytes(4, "big")
    rekey = NotifyPayload(type=NotifyType.REKEY_SA, protocol=ESP, spi=spi)
    proposal = replace(parse_proposal("sha256-esn-x25519", AH), spi=b"\x0c\0\0\1")
    make_ask(ExchangeType.CREATE_CHILD_SA, rekey, SaPayload(proposals=(proposal,))).on(
        up_with_ah.moon
    )
    up_with_ah.deliver()
    assert NotifyType.CHILD_SA_NOT_FOUND in sealing.errors(ExchangeType.CREATE_CHILD_SA)


def test_a_delete_of_esp_leaves_an_sa_of_ah_alone(up_with_ah: Any, make_ask: Any) -> None:
    (child,) = up_with_ah.moon.views[0].children
    spi = child.entries[0].spi.to_bytes(4, "big")
    make_ask(ExchangeType.INFORMATIONAL, DeletePayload(protocol=ESP, spis=(spi,))).on(
        up_with_ah.moon
    )
    up_with_ah.deliver()
    assert len(up_with_ah.sun.datapath.dump().sad) == 2
    make_ask(ExchangeType.INFORMATIONAL, DeletePayload(protocol=AH, spis=(spi,))).on(
        up_with_ah.moon
    )
    up_with_ah.deliver()
    assert not up_with_ah.sun.datapath.dump().sad


def test_a_restarted_daemon_goes_on_with_sas_of_ah(make_pair: Any) -> None:
    pair = make_pair(with_ah("sha256-esn-x25519"), keeps=True)
    pair.up()
    before = pair.moon.snapshot()
    assert pair.moon.take_over().unreadable == ()
    assert pair.moon.snapshot() == before
    pair.moon.endpoint.rekey_child_sas("tunnel-a", pair.now)
    pair.deliver()
    assert pair.sun.reports(ChildSaRekeyed)


def test_ah_and_esp_have_no_proposal_in_common(make_pair: Any, make_mirror: Any) -> None:
    pair = make_pair(with_ah("sha256"), make_mirror(tunnel_policy(esp="null-sha256")))
    pair.initiate()
    pair.deliver()
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2003"
    (refused,) = pair.sun.reports(RequestRefused)
    assert "no ESP proposal" in refused.failure.summary


def test_an_initiator_that_finds_a_nat_says_why_it_stops(make_pair: Any, make_mirror: Any) -> None:
    """One end pretends to be behind one, as where every ESP packet must go in UDP."""
    policy = with_ah("sha256")
    forcing = replace(make_mirror(policy), encapsulation=Encapsulation.FORCE)
    pair = make_pair(policy, forcing)
    pair.initiate()
    pair.deliver()
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2030"
    assert not pair.moon.datapath.dump().sad
    assert not pair.sun.datapath.dump().sad


def test_a_responder_that_finds_a_nat_refuses_the_child_sa_alone(
    make_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The initiator, who would have stopped by itself, is one that does not look."""
    monkeypatch.setattr("xfrmpy.ike.init.check_nat", lambda _tunnel, _nat: None)
    monkeypatch.setattr(NatSituation, "encapsulated", property(lambda _self: True))
    pair = make_pair(with_ah("sha256"))
    pair.initiate()
    pair.deliver()
    (refused,) = pair.sun.reports(RequestRefused)
    assert refused.failure.code == "XF2030"
    assert not pair.sun.datapath.dump().sad
