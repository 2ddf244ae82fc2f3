"""A daemon is killed, and another goes on from what was kept and what is in force."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import xfrmpy.ike
from xfrmpy.ike.init import IkeSaInit
from xfrmpy.ike.kept_policy import is_policy, read_policies
from xfrmpy.ike.outputs import (
    AddSa,
    ChildSaEstablished,
    ChildSaRekeyed,
    IkeSaEstablished,
    IkeSaRekeyed,
    Persist,
    SendDatagram,
    TunnelClosed,
)
from xfrmpy.ike.record_tables import CHANNEL, CHILD_SA, EXCHANGES, IKE_SA, LEFT_OUT, WINDOW
from xfrmpy.ike.restoration import Restored
from xfrmpy.ike.sequence import Sequence
from xfrmpy.ike.session_resume import SessionResume
from xfrmpy.ike.snapshot import FORMAT, count_of, write_count, write_ike_sa
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.window import OUR_WINDOW_SIZE
from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.ipsec.sad import Direction
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.model import SharedKey, TunnelPolicy
from xfrmpy.registry import ProtocolId

Make = Callable[..., Any]

ENDS = ("moon", "sun")
WORDS = ("up", "rekey child", "rekey ike", "reauthenticate", "down")
PATIENCE_SECONDS = 120.0
"""Longer than an initiator waits for a responder that has forgotten what was half open."""

MOST_OUTPUTS = 40
"""More than an end puts out in any of these."""


@pytest.fixture
def kept(make_pair: Make, make_policy: Make) -> Any:
    """A pair whose ends keep what they are asked to."""
    pair = make_pair(make_policy(esp="aes128gcm16-x25519"), keeps=True)
    for host in (pair.moon, pair.sun):
        host.lives_again = True
    return pair


def _say(pair: Any, words: str) -> None:
    moon = pair.moon.endpoint
    if words == "up":
        pair.initiate()
    elif words == "rekey child":
        moon.rekey_child_sas("tunnel-a", pair.now)
    elif words == "rekey ike":
        moon.rekey_ike_sas("tunnel-a", pair.now)
    elif words == "reauthenticate":
        moon.reauthenticate("tunnel-a", pair.now)
    else:
        moon.terminate("tunnel-a", pair.now)


def _run(pair: Any, words: str, end: str, dies_after: int | None) -> Any:
    """Do something, and kill one end after so many outputs of it."""
    host = getattr(pair, end)
    if words != "up":
        pair.up()
    for each in (pair.moon, pair.sun):
        each.outputs.clear()
    host.dies_after = dies_after
    _say(pair, words)
    pair.run(PATIENCE_SECONDS)
    return host


def _outcome(pair: Any) -> Any:
    """What both ends have in the end."""
    return [
        [(len(view.children), view.state) for view in host.views] for host in (pair.moon, pair.sun)
    ]


def _of_ike_sas(host: Any) -> list[tuple[bytes, bytes]]:
    return [(name, record) for name, record in host.kept.items() if not is_policy(name)]


def _keys(host: Any) -> list[bytes]:
    added = [o for o in host.outputs if isinstance(o, AddSa)]
    return [o.entry.encryption_key for o in added]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("end", ENDS)
def test_whenever_an_end_is_killed_it_goes_on_as_if_it_had_not_been(
    words: str, end: str, make_pair: Make, make_policy: Make
) -> None:
    def fresh() -> Any:
        pair = make_pair(make_policy(esp="aes128gcm16-x25519"), keeps=True)
        pair.moon.lives_again = pair.sun.lives_again = True
        return pair

    calm = fresh()
    _run(calm, words, end, None)
    kills = 0
    for dies_after in range(MOST_OUTPUTS):
        pair = fresh()
        host = _run(pair, words, end, dies_after)
        if not host.takeovers:
            break
        kills += 1
        if not any(isinstance(o, Persist) for o in host.outputs[:dies_after]):
            continue  # Nothing has left that is worth keeping: who asked for it asks again.
        assert _outcome(pair) == _outcome(calm), dies_after
        pair.assert_mirrored()
        closed = [o for h in (pair.moon, pair.sun) for o in h.reports(TunnelClosed)]
        assert all(o.failure is None or words == "down" for o in closed), dies_after
        for each in (pair.moon, pair.sun):
            assert len(_keys(each)) == len(set(_keys(each))), "a key came back"
        for restored in host.takeovers:
            assert (restored.unreadable, restored.lost, restored.given_up) == ((), (), 0)
    assert kills > 5


@pytest.mark.parametrize("end", ENDS)
def test_nothing_that_is_sealed_leaves_before_it_is_kept(end: str, kept: Any) -> None:
    host = getattr(kept, end)
    for words in WORDS:
        host.outputs.clear()
        _say(kept, words)
        kept.run(20.0)
        sealed = 0
        for output in host.outputs:
            if isinstance(output, Persist):
                kept_now = [r for n, r in output.records if r is not None and not is_policy(n)]
                records = [json.loads(r) for r in kept_now]
                sealed = sum(record["channel"]["sealed"] for record in records)
            elif isinstance(output, SendDatagram) and output.data[-1:] and _is_sealed(output):
                assert sealed > 0, words


def test_a_liveness_check_is_kept_in_a_small_record_until_more_than_that_changes(
    kept: Any,
) -> None:
    kept.up()
    kept.run(5.0)
    moon, spi = kept.moon, kept.moon.ike_sa.our_spi
    before = dict(moon.kept)
    kept.run(100.0)
    assert moon.kept == {**before, count_of(spi): moon.kept[count_of(spi)]}
    assert len(moon.kept[count_of(spi)]) < len(moon.kept[spi]) / 3
    moon.endpoint.rekey_child_sas("tunnel-a", kept.now)
    kept.run(1.0)
    assert moon.kept.keys() == before.keys()
    assert moon.kept[spi] != before[spi]


@pytest.mark.parametrize("end", ENDS)
def test_after_liveness_checks_a_restored_ike_sa_goes_on_with_their_numbers(
    kept: Any, end: str
) -> None:
    kept.up()
    kept.run(100.0)
    host = getattr(kept, end)
    before = dict(host.kept)
    assert count_of(host.ike_sa.our_spi) in before
    assert host.take_over().unreadable == ()
    assert {count_of(sa.our_spi): write_count(sa) for sa in host.ike_sas}.items() <= before.items()
    host.endpoint.rekey_child_sas("tunnel-a", kept.now)
    kept.run(5.0)
    kept.assert_mirrored()
    assert host.reports(ChildSaRekeyed)
    assert not host.reports(TunnelClosed)


@pytest.mark.parametrize("checks", [1, 5, 20])
def test_answers_of_both_records_are_there_after_a_kill_and_each_is_in_one_of_them(
    make_pair: Make, make_policy: Make, make_mirror: Make, checks: int
) -> None:
    """One is that of IKE_AUTH, as long as the window reaches back to it."""
    policy = make_policy()
    pair = make_pair(policy, replace(make_mirror(policy), dpd_seconds=0), keeps=True)
    pair.up()
    pair.run(31.0 * checks)
    sun, spi = pair.sun, pair.sun.ike_sa.our_spi
    answers = {n: sent.datagrams for n, sent in sun.ike_sa.channel.window._answers.items()}
    assert (1 in answers) == (checks < OUR_WINDOW_SIZE)
    whole = {a["message_id"] for a in json.loads(sun.kept[spi])["window"]["_answers"]}
    since = {a["message_id"] for a in json.loads(sun.kept[count_of(spi)])["answers"]}
    assert whole & since == set()
    assert sun.take_over().unreadable == ()
    again = {n: sent.datagrams for n, sent in sun.ike_sa.channel.window._answers.items()}
    assert again == answers
    assert write_count(sun.ike_sa) == sun.kept[count_of(spi)]


def _is_sealed(output: SendDatagram) -> bool:
    return output.data[4 * output.path.natt + 16] == 46


def test_a_restored_ike_sa_is_kept_as_the_same_octets(kept: Any) -> None:
    kept.up()
    before = dict(_of_ike_sas(kept.moon))
    kept.moon.take_over()
    assert {sa.our_spi: write_ike_sa(sa) for sa in kept.moon.ike_sas} == before


def test_message_ids_and_sequence_of_nonces_go_on_after_a_kill(kept: Any) -> None:
    kept.up()
    for _ in range(3):
        kept.moon.take_over()
        kept.sun.take_over()
        kept.run(100.0)
    assert _outcome(kept) == [[(1, IkeSaState.ESTABLISHED)]] * 2
    assert kept.moon.reports(TunnelClosed) == []
    nonces = [o.data[16:40] for _, o in kept.sent if o.data[16] == 46]
    assert len(set(nonces)) > 3


def test_a_rekeying_that_becomes_due_meanwhile_is_done(kept: Any) -> None:
    kept.up()
    kept.now = 3590.0
    kept.moon.take_over()
    kept.sun.take_over()
    kept.run(5.0)
    assert kept.moon.reports(ChildSaRekeyed)
    assert kept.moon.reports(TunnelClosed) == []


def test_a_child_sa_that_is_not_in_force_any_more_is_never_put_in_force_again(kept: Any) -> None:
    kept.up()
    old = [e.encryption_key for e in kept.moon.datapath.dump().sad]
    policies = kept.moon.datapath.dump().spd
    kept.moon.datapath.sad.clear()
    restored = kept.moon.take_over()
    assert restored.lost == (kept.moon.ike_sa.children[0].spi_in,)
    assert kept.moon.datapath.dump().spd == policies
    kept.moon.outputs.clear()
    kept.run(5.0)
    assert not {*_keys(kept.moon)} & {*old}
    kept.assert_up()
    assert kept.moon.reports(TunnelClosed) == []
    assert len(kept.moon.datapath.dump().spd) == len(policies)


@pytest.mark.parametrize("direction", Direction)
def test_an_sa_that_was_being_moved_when_the_daemon_was_killed_is_replaced_at_once(
    kept: Any, direction: Direction
) -> None:
    """The kernel cannot move one: it is deleted, and made again; in between it is nowhere."""
    kept.up()
    policies = kept.moon.datapath.dump().spd
    (moving,) = (e for e in kept.moon.datapath.dump().sad if e.direction is direction)
    kept.moon.datapath.remove_sa(moving.id)
    restored = kept.moon.take_over()
    assert len(restored.lost) == 1
    kept.moon.outputs.clear()
    kept.run(0.5)
    assert kept.moon.reports(ChildSaRekeyed)
    assert not kept.moon.reports(TunnelClosed)
    assert kept.moon.datapath.dump().spd == policies
    assert moving.encryption_key not in _keys(kept.moon)
    kept.run(20.0)
    kept.assert_up()
    kept.assert_mirrored()


def test_what_is_in_force_and_in_no_record_is_removed(kept: Any) -> None:
    kept.up()
    entry = kept.moon.datapath.dump().sad[0]
    kept.moon.datapath.add_sa(replace(entry, spi=0x4711))
    kept.moon.take_over()
    assert [e.spi for e in kept.moon.datapath.dump().sad if e.spi == 0x4711] == []
    kept.assert_up()


def test_a_policy_that_is_missing_is_put_in_force_again(kept: Any) -> None:
    kept.up()
    before = set(kept.moon.datapath.dump().spd)
    kept.moon.datapath.spd.popitem()
    kept.moon.take_over()
    kept.moon.take_outputs()
    assert set(kept.moon.datapath.dump().spd) == before


def test_an_outbound_sa_that_a_killed_step_has_added_is_kept_with_its_numbers(kept: Any) -> None:
    """A responder of a rekeying waits; the step in which it begins to send is killed."""
    kept.up()
    kept.sun.endpoint.rekey_child_sas("tunnel-a", kept.now)
    kept._carry(kept.sun, kept.moon)
    (waiting,) = [c for c in kept.moon.ike_sa.children if c.entries and not c.sends]
    kept.moon.datapath.add_sa(waiting.entries[1])
    kept.moon.take_over()
    kept.moon.outputs.clear()
    kept.run(20.0)
    assert waiting.entries[1].encryption_key not in _keys(kept.moon)
    assert waiting.entries[1].id in kept.moon.datapath.sad


def _other(policy: TunnelPolicy, **terms: Any) -> TunnelPolicy:
    """The policy, with its child as said."""
    (child,) = policy.children
    return replace(policy, children=(replace(child, **terms),))


def _restart_with(kept: Any, end: str, policy: TunnelPolicy) -> Restored:
    """An end is killed, and its policy changed before it is started again."""
    host = getattr(kept, end)
    host.policy = policy
    host.outputs.clear()
    host.start = lambda: _start(host)
    restored: Restored = host.take_over()
    return restored


CHANGES: dict[str, Callable[[TunnelPolicy], TunnelPolicy]] = {
    "nothing": lambda policy: policy,
    "hot": lambda policy: replace(policy, dpd_seconds=7.0),
    "rekey": lambda policy: _other(policy, replay_window=512),
    "rekey of the ike sa": lambda policy: replace(
        policy, proposals=(parse_proposal("aes256gcm16-prfsha256-x25519", ProtocolId.IKE),)
    ),
    "reauth": lambda policy: replace(policy, fragmentation=False),
    "more traffic": lambda policy: _other(
        policy, local=(*policy.children[0].local, TrafficSelector.parse("10.77.0.0/16"))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("end", ENDS)
def test_a_policy_that_changed_meanwhile_is_followed_as_if_the_daemon_had_lived(
    end: str, change: str, make_pair: Make, make_policy: Make
) -> None:
    ike = "aes128gcm16-prfsha256-x25519 aes256gcm16-prfsha256-x25519"
    outcomes = []
    for is_killed in (False, True):
        pair = make_pair(make_policy(ike=ike, esp="aes128gcm16-x25519"), keeps=True)
        pair.up()
        host = getattr(pair, end)
        policy = CHANGES[change](host.policy)
        host.outputs.clear()
        if is_killed:
            restored = _restart_with(pair, end, policy)
            assert (restored.ike_sas, restored.given_up, restored.lost) == (1, 0, ())
        else:
            host.policy = policy
            host.endpoint.reconfigure(policy, pair.now)
        pair.run(30.0)
        pair.assert_mirrored()
        outcomes.append(_told(host))
        assert {s.tunnel for s in host.ike_sas} == {policy}
        assert read_policies(host.kept)["tunnel-a"].beside(policy) == policy
        host.take_over()
        host.outputs.clear()
        pair.run(30.0)
        assert _told(host) == [], "what has been followed is followed again"
    assert outcomes[0] == outcomes[1]


def _told(host: Any) -> list[str]:
    """What an operator hears of it."""
    kinds = (ChildSaRekeyed, ChildSaEstablished, IkeSaRekeyed, IkeSaEstablished, TunnelClosed)
    return [type(o).__name__ for o in host.outputs if isinstance(o, kinds)]


@pytest.mark.parametrize("end", ENDS)
def test_another_shared_key_is_proved_before_the_old_ike_sa_goes(kept: Any, end: str) -> None:
    kept.up()
    key = SharedKey(octets=b"another", origin="test")
    other = kept.sun if end == "moon" else kept.moon
    other.policy = replace(other.policy, shared_key=key)
    other.endpoint.reconfigure(other.policy, kept.now)
    host = getattr(kept, end)
    before = host.ike_sa.our_spi
    restored = _restart_with(kept, end, replace(host.policy, shared_key=key))
    assert (restored.ike_sas, restored.given_up) == (1, 0)
    kept.run(60.0)
    kept.assert_up()
    assert host.ike_sa.our_spi != before
    assert "IkeSaEstablished" in _told(host)
    assert "TunnelClosed" not in _told(host)
    assert all(key.octets not in record for record in host.kept.values())


@pytest.mark.parametrize("dies_after", range(12))
def test_a_change_that_a_kill_interrupts_is_followed_to_its_end(
    dies_after: int, make_pair: Make, make_policy: Make
) -> None:
    """A child that is no more in the policy, while its Child SA is still there."""
    pair = make_pair(make_policy(esp="aes128gcm16-x25519"), keeps=True)
    pair.moon.lives_again = True
    pair.up()
    _rename(pair.sun, pair.now)
    pair.moon.dies_after = dies_after
    _rename(pair.moon, pair.now)
    pair.run(PATIENCE_SECONDS)
    assert pair.moon.takeovers
    assert [r.given_up for r in pair.moon.takeovers] == [0]
    assert not pair.moon.reports(TunnelClosed)
    ((child,),) = [view.children for view in pair.moon.views]
    assert child.child == "other"
    pair.assert_mirrored()


def _rename(host: Any, now: float) -> None:
    host.policy = _other(host.policy, name="other")
    host.endpoint.reconfigure(host.policy, now)


@pytest.mark.parametrize(
    ("change", "replaced"),
    [
        (lambda policy: replace(policy, peers=("192.0.2.77",)), frozenset({"tunnel-a"})),
        (lambda policy: replace(policy, name="tunnel-b"), frozenset()),
    ],
    ids=["takes it down", "deletes it"],
)
def test_a_tunnel_that_has_to_go_says_goodbye(
    kept: Any, change: Callable[[Any], Any], replaced: frozenset[str]
) -> None:
    kept.up()
    restored = _restart_with(kept, "moon", change(kept.moon.policy))
    assert (restored.ike_sas, restored.given_up, restored.replaced) == (0, 1, replaced)
    kept.run(5.0)
    kept.assert_down()
    assert kept.sun.reports(TunnelClosed)
    kept.run(100.0)
    assert kept.moon.ike_sas == []
    assert kept.moon.kept == {}


def test_a_policy_that_cannot_be_read_costs_its_tunnel_and_no_other(kept: Any) -> None:
    kept.up()
    for name in filter(is_policy, kept.moon.kept):
        record = json.loads(kept.moon.kept[name])
        kept.moon.kept[name] = json.dumps({**record, "policy": {"what": 1}}).encode()
    restored = kept.moon.take_over()
    assert (restored.ike_sas, restored.given_up) == (0, 1)
    kept.run(100.0)
    assert kept.sun.reports(TunnelClosed)
    assert kept.moon.kept == {}


def _start(host: Any) -> None:
    host.endpoint = type(host.endpoint)([host.policy], host.endpoint._core.random, keeps=host.keeps)


@pytest.mark.parametrize("end", ENDS)
def test_an_unknown_or_missing_part_of_a_record_costs_that_ike_sa_only(kept: Any, end: str) -> None:
    kept.up()
    host = getattr(kept, end)
    ((spi, record),) = _of_ike_sas(host)
    good = dict(host.kept)
    for bad in _mangled(json.loads(record)):
        host.kept = {**good, spi: json.dumps(bad).encode()}
        restored = host.take_over()
        assert len(restored.unreadable) == 1, bad
        assert restored.ike_sas == 0
        assert host.ike_sas == []
        assert host.endpoint._core.children == host.endpoint._core.holders == {}
        host.take_outputs()
        assert host.kept == {}, "what cannot be read is not kept"


def _mangled(record: Any) -> Iterator[Any]:
    yield {**record, "format": FORMAT + 1}
    yield {**record, "more": 1}
    yield [record]
    for name in record:
        yield {k: v for k, v in record.items() if k != name}
    for part in ("ike_sa", "channel", "window"):
        for name in record[part]:
            yield {**record, part: {k: v for k, v in record[part].items() if k != name}}
            yield {**record, part: {**record[part], name: {"no": "sense"}}}
    (child,) = record["children"]
    for name in child:
        yield {**record, "children": [{k: v for k, v in child.items() if k != name}]}


def test_every_attribute_is_kept_or_left_out_on_purpose(kept: Any) -> None:
    kept.up()
    sa = kept.moon.ike_sa
    parts = {
        sa: IKE_SA,
        sa.channel: CHANNEL,
        sa.channel.window: WINDOW,
        sa.children[0]: CHILD_SA,
    }
    for thing, table in parts.items():
        known = {*table, *LEFT_OUT[type(thing)]}
        attributes = {*getattr(thing, "__dict__", ()), *getattr(thing, "__slots__", ())}
        assert attributes - known == set(), type(thing)
        assert {*LEFT_OUT[type(thing)]} <= attributes, type(thing)


def test_every_exchange_of_an_ike_sa_with_keys_can_be_kept() -> None:
    modules = [
        importlib.import_module(f"xfrmpy.ike.{m.name}")
        for m in pkgutil.iter_modules(xfrmpy.ike.__path__)
    ]
    kinds = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type)
        and hasattr(kind, "handle_response")
        and not getattr(kind, "_is_protocol", False)
    }
    assert kinds - {row.kind for row in EXCHANGES.values()} == {IkeSaInit, SessionResume}


def test_a_step_that_is_not_kept_is_found(
    make_pair: Make, make_policy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: what is kept is one step behind what leaves."""
    now = Sequence._changes
    of_each: dict[Sequence, dict[bytes, bytes | None]] = {}

    def late(self: Sequence) -> list[tuple[bytes, bytes | None]]:
        changes = now(self)
        before = of_each.setdefault(self, {})
        kept = [(spi, before.get(spi, record)) for spi, record in changes]
        before.update(changes)
        return kept

    monkeypatch.setattr(Sequence, "_changes", late)
    with pytest.raises(AssertionError):
        test_whenever_an_end_is_killed_it_goes_on_as_if_it_had_not_been(
            "rekey child", "moon", make_pair, make_policy
        )


def test_an_sa_that_is_put_in_force_twice_is_found(
    make_pair: Make, make_policy: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: what an exchange that is repeated wants is taken for surplus first."""
    monkeypatch.setattr("xfrmpy.ike.restoration._keep_leftovers", lambda *_: None)
    with pytest.raises(AssertionError, match="a key came back"):
        test_whenever_an_end_is_killed_it_goes_on_as_if_it_had_not_been(
            "rekey child", "moon", make_pair, make_policy
        )


def test_strangers_make_nobody_write_anything(kept: Any) -> None:
    kept.initiate()
    for output in kept.moon.take_outputs():
        path = replace(output.path, local=output.path.remote, remote=output.path.local)
        kept.sun.receive(output.data, path, kept.now)
    assert kept.sun.ike_sas
    assert kept.sun.reports(Persist) == []


def test_what_is_taken_over_is_counted(kept: Any) -> None:
    kept.up()
    restored: Restored = kept.moon.take_over()
    assert (restored.ike_sas, restored.child_sas) == (1, 1)
    assert {e.direction for e in kept.moon.datapath.dump().sad} == set(Direction)
