"""CREATE_CHILD_SA for Child SAs: replaced without a gap, whoever begins and whatever crosses.

Read RFC 7296 sections 1.3.3, 2.8.1 and 2.25.1 beside it: each collision there has its test here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.create_child_sa import DELETE_PATIENCE_SECONDS, CreateChildSa
from xfrmpy.ike.outputs import (
    AddPolicy,
    AddSa,
    ChildSaClosed,
    ChildSaRekeyed,
    IkeSaRekeyed,
    RemovePolicy,
    RemoveSa,
    SaNotCreated,
    SendDatagram,
    TunnelClosed,
)
from xfrmpy.ike.states import ChildSaState
from xfrmpy.ike.succession import BUSY_PATIENCE_SECONDS, OVERLAP_SECONDS
from xfrmpy.ipsec.sad import Direction, Lifetime, Usage
from xfrmpy.registry import ExchangeType, NotifyType, ProtocolId
from xfrmpy.wire.payloads import (
    DeletePayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    SaPayload,
    TsiPayload,
)

ENDS = ("moon", "sun")
CREATE = ExchangeType.CREATE_CHILD_SA


@pytest.fixture
def replacements(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every Child SA that was installed in the place of another."""
    seen: list[Any] = []
    install = ChildSa.install

    def remember(self: ChildSa, *args: Any, **keywords: Any) -> None:
        if self.replaces is not None:
            seen.append(self)
        install(self, *args, **keywords)

    monkeypatch.setattr(ChildSa, "install", remember)
    return seen


def _rekey(pair: Any, host: Any) -> None:
    host.endpoint.rekey_child_sas("tunnel-a", pair.now)


def _spis(host: Any) -> tuple[int, int]:
    (child,) = host.views[0].children
    return child.entries[0].spi, child.entries[1].spi


def _at_rest(pair: Any) -> None:
    """One Child SA at each end, and nothing left of any other."""
    pair.run(OVERLAP_SECONDS + 2 * DELETE_PATIENCE_SECONDS + 1)
    pair.assert_up()
    for host in (pair.moon, pair.sun):
        assert len(host.datapath.dump().sad) == 2
        assert len(host.endpoint._core.children) == 1
        assert not host.reports(TunnelClosed)
        assert not host.reports(ChildSaClosed)


# Without collision.


@pytest.mark.parametrize("end", ENDS)
def test_a_child_sa_is_replaced_by_either_end(up: Any, end: str) -> None:
    host, other = up.ends(end)
    before = _spis(host)
    _rekey(up, host)
    up.deliver()
    assert not set(_spis(host)) & set(before)
    assert _spis(host) == _spis(other)[::-1]
    for each in (host, other):
        assert [r.spi_in for r in each.reports(ChildSaRekeyed)] == [_spis(each)[0]]
    _at_rest(up)


@pytest.mark.parametrize("end", ENDS)
def test_a_rekeying_leaves_the_policies_alone(up: Any, end: str) -> None:
    host, other = up.ends(end)
    before = [len(each.outputs) for each in (host, other)]
    _rekey(up, host)
    _at_rest(up)
    for each, start in zip((host, other), before, strict=True):
        assert not [o for o in each.outputs[start:] if isinstance(o, AddPolicy | RemovePolicy)]


@pytest.mark.parametrize("end", ENDS)
def test_the_new_sas_are_in_force_before_the_old_ones_go(up: Any, end: str) -> None:
    """Initiator: both new ones, then the old outbound. Responder: inbound, answer; outbound, when
    the old one is deleted. Inbound goes last at both ends, after what was on its way."""
    host, other = up.ends(end)
    old = {each.name: _spis(each) for each in (host, other)}
    for each in (host, other):
        each.outputs.clear()
    _rekey(up, host)
    up.run(OVERLAP_SECONDS + 0.1)

    def steps(each: Any) -> list[str]:
        names = []
        for output in each.outputs:
            match output:
                case AddSa():
                    names.append(f"add {output.entry.direction}")
                case RemoveSa():
                    names.append(f"remove {'in' if output.sa.spi == old[each.name][0] else 'out'}")
                case SendDatagram():
                    names.append("send")
        return names

    assert steps(host) == ["send", "add in", "add out", "remove out", "send", "remove in"]
    assert steps(other) == ["add in", "send", "add out", "send", "remove out", "remove in"]


@pytest.mark.parametrize("end", ENDS)
def test_there_is_an_outbound_sa_at_every_moment(up: Any, end: str) -> None:
    """And the other end can receive on it."""
    host, other = up.ends(end)

    def check(output: Any, _sender: Any) -> list[bytes]:
        for each, peer in ((host, other), (other, host)):
            out = [e.spi for e in each.datapath.dump().sad if e.direction is Direction.OUT]
            into = {e.spi for e in peer.datapath.dump().sad if e.direction is Direction.IN}
            assert out
            assert set(out) <= into
        return [output.data]

    up.impair = check
    for each in (host, other, host):
        _rekey(up, each)
        up.deliver()
    _at_rest(up)


@pytest.mark.parametrize("esp", ["aes128gcm16-ecp256-x25519", "aes256-sha256-modp2048"])
def test_a_rekeying_with_forward_secrecy_exchanges_keys(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], sealing: Any, esp: str
) -> None:
    pair = make_pair(make_policy(esp=esp))
    pair.up()
    _rekey(pair, pair.moon)
    pair.deliver()
    ((answer,), (request,)) = (
        sealing.answers(CREATE),
        [p for m, p in sealing.sent if m.exchange is CREATE and not m.is_response],
    )
    assert [p.method for p in answer + request if isinstance(p, KePayload)]
    (report,) = pair.moon.reports(ChildSaRekeyed)
    assert report.suite.endswith(("x25519", "modp2048"))
    _at_rest(pair)


def test_the_method_of_the_ike_sa_is_tried_first(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    pair = make_pair(
        make_policy(ike="aes128gcm16-prfsha256-ecp256", esp="aes128gcm16-x25519-ecp256")
    )
    pair.up()
    _rekey(pair, pair.moon)
    pair.deliver()
    assert pair.moon.reports(ChildSaRekeyed)[0].suite == "aes128gcm16-esn-ecp256"


def test_a_wrong_guess_of_the_method_is_mended(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], make_mirror: Any, sealing: Any
) -> None:
    policy = make_policy(esp="aes128gcm16-x25519-ecp384")
    pair = make_pair(policy, make_mirror(make_policy(esp="aes128gcm16-ecp384")))
    pair.up()
    _rekey(pair, pair.moon)
    pair.deliver()
    assert sealing.errors(CREATE) == [NotifyType.INVALID_KE_PAYLOAD]
    assert pair.moon.reports(ChildSaRekeyed)[0].suite == "aes128gcm16-esn-ecp384"
    _at_rest(pair)


def test_a_child_sa_does_not_keep_its_forerunners_in_memory(up: Any) -> None:
    for _ in range(5):
        _rekey(up, up.moon)
        up.run(OVERLAP_SECONDS + 1)
    for host in (up.moon, up.sun):
        (child,) = host.ike_sa.children
        assert child.replaces.replaces is None


def test_keys_differ_from_those_before_and_nonces_are_new(up: Any) -> None:
    keys = set()
    for host in (up.moon, up.sun, up.moon):
        keys |= {e.encryption_key for e in host.datapath.dump().sad}
        _rekey(up, host)
        up.run(OVERLAP_SECONDS + 1)
    keys |= {e.encryption_key for e in up.moon.datapath.dump().sad}
    assert len(keys) == 8


# When it happens.


def test_a_child_sa_is_replaced_ahead_of_its_end_and_not_always_at_one_moment(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    policy = make_policy()
    child = replace(policy.children[0], lifetime_seconds=1000.0)
    pair = make_pair(replace(policy, children=(child,)))
    pair.up()
    moments = []
    for _ in range(20):
        count = len(pair.moon.reports(ChildSaRekeyed))
        begun = pair.now
        while len(pair.moon.reports(ChildSaRekeyed)) == count:
            pair.run(1)
        moments.append(pair.now - begun)
    assert all(799 <= moment <= 902 for moment in moments)
    assert len({int(moment) for moment in moments}) > 5
    _at_rest(pair)


@pytest.mark.parametrize("index", [0, 1], ids=["inbound", "outbound"])
def test_a_soft_limit_of_the_datapath_replaces_the_child_sa(up: Any, index: int) -> None:
    entry = up.moon.datapath.dump().sad[index]
    up.moon.endpoint.handle_expire(entry.id, up.now, hard=False)
    up.deliver()
    assert len(up.moon.reports(ChildSaRekeyed)) == 1
    up.moon.endpoint.handle_expire(entry.id, up.now, hard=False)
    _at_rest(up)
    assert len(up.moon.reports(ChildSaRekeyed)) == 1


def test_the_datapath_counts_octets_and_packets_and_ends_what_is_too_old(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    policy = make_policy(esp="aes128gcm16-noesn")
    child = replace(
        policy.children[0], lifetime_octets=10_000, lifetime_packets=None, lifetime_seconds=900.0
    )
    pair = make_pair(replace(policy, children=(child,)))
    pair.up()
    for entry in pair.moon.datapath.dump().sad:
        life = entry.lifetime
        assert isinstance(life, Lifetime)
        assert (life.hard_seconds, life.soft_seconds, life.hard_bytes) == (900, None, 10_000)
        assert 8_000 <= (life.soft_bytes or 0) <= 9_000
        # RFC 4303 section 3.3.3: 32-bit sequence numbers must not cycle.
        assert life.hard_packets == 1 << 32
        assert 0.8 <= (life.soft_packets or 0) / (1 << 32) <= 0.9


# Collisions of rekeyings (section 2.8.1).


def _crossing(pair: Any) -> None:
    """Both ends ask before either has heard the other."""
    _rekey(pair, pair.moon)
    _rekey(pair, pair.sun)
    pair.deliver()


@pytest.mark.parametrize("seed", range(12))
def test_of_two_crossing_rekeyings_the_one_with_the_lowest_nonce_is_undone(
    make_seeded: Callable[[int], Any], replacements: list[Any], seed: int
) -> None:
    pair = make_seeded(seed)
    _crossing(pair)
    _at_rest(pair)
    moon, sun = pair.moon.ike_sa.children[0], pair.sun.ike_sa.children[0]
    assert moon.nonces == sun.nonces
    made = {c.nonces for c in replacements}
    assert len(made) == 2
    assert min(moon.nonces) == max(min(nonces) for nonces in made)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("slow", ENDS)
def test_the_answer_to_one_of_two_crossing_rekeyings_may_come_last(
    make_seeded: Callable[[int], Any], hold: Any, seed: int, slow: str
) -> None:
    """Whatever the other end has concluded and done meanwhile."""
    pair = make_seeded(seed)
    link = hold(pair)
    link.is_held = lambda header, sender: header.is_response and sender != slow
    _rekey(pair, pair.moon)
    _rekey(pair, pair.sun)
    pair.deliver()
    link.release()
    _at_rest(pair)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slow", ENDS)
def test_the_peer_may_finish_before_it_hears_of_our_rekeying(
    make_seeded: Callable[[int], Any], hold: Any, sealing: Any, seed: int, slow: str
) -> None:
    """The second sequence of section 2.8.1: our request is lost; the peer has rekeyed and deleted
    when it comes again."""
    pair = make_seeded(seed)
    link = hold(pair)
    link.is_held = lambda header, sender: (
        header.exchange is CREATE and (sender == slow and not header.is_response)
    )
    _rekey(pair, pair.moon)
    _rekey(pair, pair.sun)
    pair.deliver()
    link.release()
    assert sealing.errors(CREATE) == [NotifyType.CHILD_SA_NOT_FOUND]
    _at_rest(pair)


def test_child_sa_not_found_names_the_spi_that_was_asked_for(up: Any, make_ask: Any) -> None:
    rekey = NotifyPayload(
        type=NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=b"\xfe\xdc\xba\x98"
    )
    ask = make_ask(CREATE, rekey, *_offer(up.moon)).on(up.moon)
    up.deliver()
    (answer,) = ask.answer
    assert (answer.type, answer.spi) == (NotifyType.CHILD_SA_NOT_FOUND, rekey.spi)
    assert answer.protocol is ProtocolId.ESP
    _at_rest(up)


def _offer(host: Any) -> list[Any]:
    child = ChildSa(
        host.endpoint._core, host.policy, host.policy.children[0], host.policy.children[0].proposals
    )
    child.close()
    return [*child.offer(), NoncePayload(data=bytes(range(32)))]


def test_a_peer_that_knows_nothing_of_a_child_sa_gets_a_new_one(up: Any, sealing: Any) -> None:
    """Section 2.25: delete it silently, and "send a request to create a new Child SA"."""

    def forget(_message: Any, payloads: Any) -> Any:
        return tuple(
            replace(p, spi=b"\0\1\2\3") if getattr(p, "type", None) == NotifyType.REKEY_SA else p
            for p in payloads
        )

    before = _spis(up.moon)
    sealing.change = forget
    _rekey(up, up.moon)
    up.deliver()
    assert sealing.errors(CREATE) == [NotifyType.CHILD_SA_NOT_FOUND]
    assert not set(_spis(up.moon)) & set(before)


# Rekeying against deletion (section 2.25.1).


def _delete(pair: Any, host: Any) -> None:
    sa = host.ike_sa
    sa.children[0].move_to(ChildSaState.DELETING)
    host.endpoint._run(sa, sa.attend, pair.now)


@pytest.mark.parametrize("end", ENDS)
def test_a_request_to_rekey_what_we_are_deleting_must_wait(up: Any, sealing: Any, end: str) -> None:
    host, other = up.ends(end)
    _delete(up, host)
    _rekey(up, other)
    up.deliver()
    assert sealing.errors(CREATE) == [NotifyType.TEMPORARY_FAILURE]
    up.run(100)
    up.assert_down()


@pytest.mark.parametrize("end", ENDS)
def test_a_child_sa_that_is_deleted_while_we_rekey_it_is_gone(
    up: Any, hold: Any, sealing: Any, end: str
) -> None:
    """The answer to the Delete names our half of the pair, as usual."""
    host, other = up.ends(end)
    link = hold(up)
    link.is_held = lambda header, _sender: header.exchange is CREATE and not header.is_response
    _rekey(up, host)
    up.deliver()
    spi = host.ike_sa.children[0].spi_in
    _delete(up, other)
    up.deliver()
    answers = sealing.answers(ExchangeType.INFORMATIONAL)
    assert DeletePayload(protocol=ProtocolId.ESP, spis=(spi.to_bytes(4, "big"),)) in answers[0]
    link.release()
    up.run(100)
    up.assert_down()


def test_two_crossing_deletions_of_one_child_sa_name_no_spi_in_their_answers(
    up: Any, sealing: Any
) -> None:
    _delete(up, up.moon)
    _delete(up, up.sun)
    up.deliver()
    assert sealing.answers(ExchangeType.INFORMATIONAL)[:2] == [(), ()]
    up.run(100)
    up.assert_down()


# A peer that cannot, or will not.


@pytest.mark.parametrize("seconds", [BUSY_PATIENCE_SECONDS / 2, 2 * BUSY_PATIENCE_SECONDS])
def test_a_busy_peer_is_asked_again_for_minutes_and_then_given_up(
    up: Any, sealing: Any, seconds: float
) -> None:
    up.sun.ike_sa.is_rekeying = True
    _rekey(up, up.moon)
    up.run(seconds)
    asked = len(sealing.answers(CREATE))
    assert 3 < asked <= seconds / 5
    if seconds > BUSY_PATIENCE_SECONDS:
        assert [o.failure.code for o in up.moon.reports(TunnelClosed)] == ["XF2016"]
    else:
        up.assert_up()


@pytest.mark.parametrize(
    "refusal", [NotifyType.NO_ADDITIONAL_SAS, NotifyType.NO_PROPOSAL_CHOSEN], ids=lambda n: n.name
)
def test_where_the_peer_does_not_rekey_a_new_ike_sa_takes_its_place(
    up: Any, sealing: Any, refusal: NotifyType
) -> None:
    """Section 2.8: the old one is closed, and a new one MAY be started; ours is made before."""

    def refuse(message: Any, payloads: Any) -> Any:
        is_answer = message.exchange is CREATE and message.is_response
        return (NotifyPayload(type=refusal),) if is_answer else payloads

    sealing.change = refuse
    before = {sa.our_spi for sa in up.moon.ike_sas}
    _rekey(up, up.moon)
    _at_rest(up)
    assert [o.failure.code for o in up.moon.reports(SaNotCreated)] == ["XF2015"]
    assert [o.reauthenticated for o in up.moon.reports(IkeSaRekeyed)] == [True]
    assert up.moon.ike_sa.our_spi not in before


def test_a_difference_in_forward_secrecy_shows_with_both_sides_values(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], make_mirror: Any
) -> None:
    policy = make_policy(esp="aes128gcm16-x25519")
    pair = make_pair(policy, make_mirror(make_policy(esp="aes128gcm16-ecp384")))
    pair.up()
    _rekey(pair, pair.moon)
    pair.run(1)
    (report,) = pair.moon.reports(SaNotCreated)
    assert dict(report.failure.evidence)["we offered"] == "aes128gcm16-x25519-esn"
    assert dict(report.failure.evidence)["they answered"] == "NO_PROPOSAL_CHOSEN"
    _at_rest(pair)


@pytest.mark.parametrize(
    ("end", "kind"), [("moon", "add_sa in"), ("moon", "add_sa out"), ("sun", "add_sa in")]
)
def test_a_datapath_that_refuses_the_new_sas_leaves_the_old_ones(
    up: Any, end: str, kind: str
) -> None:
    host, _ = up.ends(end)
    host.datapath.refuse(kind, nth=2)
    _rekey(up, up.moon)
    up.run(40)
    up.assert_up()
    assert host.refused
    assert len(up.moon.reports(ChildSaRekeyed)) >= 1
    _at_rest(up)


def test_what_a_responder_cannot_send_on_after_all_is_given_up(up: Any) -> None:
    up.sun.datapath.refuse("add_sa out", nth=2, reason="no memory")
    _rekey(up, up.moon)
    up.run(20)
    assert [o.failure.code for o in up.sun.reports(TunnelClosed)] == ["XF3002"]
    up.assert_down()


@pytest.mark.parametrize("end", ENDS)
def test_a_peer_that_does_not_delete_what_it_replaced_is_not_waited_for(
    up: Any, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    host, other = up.ends(end)
    monkeypatch.setattr(CreateChildSa, "_take_place", lambda *_: None, raising=False)
    monkeypatch.setattr("xfrmpy.ike.create_child_sa._take_place", lambda *_: None)
    _rekey(up, host)
    up.run(2 * DELETE_PATIENCE_SECONDS + 1)
    up.run(OVERLAP_SECONDS + 1)
    assert len(other.endpoint._core.children) == 1
    assert other.ike_sa.children[0].sends


def test_what_is_created_is_told_by_the_proposals_and_needs_them(up: Any, make_ask: Any) -> None:
    selectors = [p for p in _offer(up.moon) if isinstance(p, TsiPayload)]
    make_ask(CREATE, *selectors).on(up.moon)
    up.deliver()
    assert [o.failure.code for o in up.sun.reports(TunnelClosed)] == ["XF2008"]


def test_a_peer_may_have_only_so_many_child_sas(
    up: Any, make_ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xfrmpy.ike.create_child_sa.MAX_CHILDREN", 2)
    answers = []
    for _ in range(2):
        ask = make_ask(CREATE, *_offer(up.moon)).on(up.moon)
        up.deliver()
        answers.append(any(isinstance(p, SaPayload) for p in ask.answer))
    assert answers == [True, False]
    assert ask.answer == (NotifyPayload(type=NotifyType.NO_ADDITIONAL_SAS),)


# What is used, and what is not.


def test_traffic_from_the_peer_spares_it_the_question_whether_it_lives(
    up: Any, sealing: Any
) -> None:
    for host in (up.moon, up.sun):
        for entry in host.datapath.dump().sad:
            host.datapath.used[entry.id] = Usage(octets=100, packets=1, seconds_idle=0.0)
    sealing.sent.clear()
    up.run(300)
    assert not sealing.sent
    for host in (up.moon, up.sun):
        host.datapath.used.clear()
    up.run(31)
    assert sealing.sent


def test_outbound_traffic_alone_does_not(up: Any, sealing: Any) -> None:
    for host in (up.moon, up.sun):
        for entry in host.datapath.dump().sad:
            if entry.direction is Direction.OUT:
                host.datapath.used[entry.id] = Usage(octets=100, packets=1, seconds_idle=0.0)
    sealing.sent.clear()
    up.run(31)
    assert sealing.sent


@pytest.mark.parametrize("is_used", [True, False])
def test_a_child_sa_that_nothing_passes_is_deleted_if_policy_says_so(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], is_used: bool
) -> None:
    policy = make_policy()
    child = replace(policy.children[0], inactivity_seconds=60.0)
    pair = make_pair(replace(policy, children=(child,)))
    pair.up()
    if is_used:
        for entry in pair.moon.datapath.dump().sad + pair.sun.datapath.dump().sad:
            for host in (pair.moon, pair.sun):
                host.datapath.used[entry.id] = Usage(octets=1, packets=1, seconds_idle=1.0)
    pair.run(62)
    if is_used:
        pair.assert_up()
    else:
        pair.assert_down()
        codes = [o.failure.code for h in (pair.moon, pair.sun) for o in h.reports(TunnelClosed)]
        assert "XF2017" in codes
