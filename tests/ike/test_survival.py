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
from xfrmpy.ike.outputs import AddSa, ChildSaRekeyed, Persist, SendDatagram, TunnelClosed
from xfrmpy.ike.restoration import Restored
from xfrmpy.ike.sequence import Sequence
from xfrmpy.ike.session_resume import SessionResume
from xfrmpy.ike.snapshot import (
    CHANNEL,
    CHILD_SA,
    EXCHANGES,
    FORMAT,
    IKE_SA,
    LEFT_OUT,
    WINDOW,
    count_of,
    write_count,
    write_ike_sa,
)
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.sad import Direction
from xfrmpy.policy.model import SharedKey

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
                records = [json.loads(r) for _, r in output.records if r is not None]
                sealed = sum(record["channel"]["sealed"] for record in records)
            elif isinstance(output, SendDatagram) and output.data[-1:] and _is_sealed(output):
                assert sealed > 0, words


def test_a_liveness_check_is_kept_in_a_small_record_until_more_than_that_changes(
    kept: Any,
) -> None:
    kept.up()
    kept.run(5.0)
    moon, (spi,) = kept.moon, kept.moon.kept
    before = dict(moon.kept)
    kept.run(100.0)
    assert moon.kept == {**before, count_of(spi): moon.kept[count_of(spi)]}
    assert len(moon.kept[count_of(spi)]) < len(moon.kept[spi]) / 3
    moon.endpoint.rekey_child_sas("tunnel-a", kept.now)
    kept.run(1.0)
    assert moon.kept.keys() == {spi}
    assert moon.kept[spi] != before[spi]


@pytest.mark.parametrize("end", ENDS)
def test_after_liveness_checks_a_restored_ike_sa_goes_on_with_their_numbers(
    kept: Any, end: str
) -> None:
    kept.up()
    kept.run(100.0)
    host = getattr(kept, end)
    before = dict(host.kept)
    assert len(before) == 2
    assert host.take_over().unreadable == ()
    assert {count_of(sa.our_spi): write_count(sa) for sa in host.ike_sas}.items() <= before.items()
    host.endpoint.rekey_child_sas("tunnel-a", kept.now)
    kept.run(5.0)
    kept.assert_mirrored()
    assert host.reports(ChildSaRekeyed)
    assert not host.reports(TunnelClosed)


def _is_sealed(output: SendDatagram) -> bool:
    return output.data[4 * output.path.natt + 16] == 46


def test_a_restored_ike_sa_is_kept_as_the_same_octets(kept: Any) -> None:
    kept.up()
    before = dict(kept.moon.kept)
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


@pytest.mark.parametrize(
    "change",
    [
        lambda policy: replace(policy, shared_key=SharedKey(octets=b"another", origin="test")),
        lambda policy: replace(
            policy, children=(replace(policy.children[0], local=policy.children[0].remote),)
        ),
        lambda policy: replace(policy, children=(replace(policy.children[0], name="other"),)),
        lambda policy: replace(policy, name="tunnel-b"),
    ],
)
def test_an_ike_sa_that_policy_does_not_allow_any_more_is_deleted(
    kept: Any, change: Callable[[Any], Any]
) -> None:
    kept.up()
    kept.moon.policy = change(kept.moon.policy)
    kept.moon.start = lambda: _start(kept.moon)
    restored = kept.moon.take_over()
    assert (restored.ike_sas, restored.given_up) == (0, 1)
    kept.run(5.0)
    kept.assert_down()
    assert kept.sun.reports(TunnelClosed)
    kept.run(100.0)
    assert kept.moon.ike_sas == []
    assert kept.moon.kept == {}


def _start(host: Any) -> None:
    host.endpoint = type(host.endpoint)([host.policy], host.endpoint._core.random, keeps=host.keeps)


@pytest.mark.parametrize("end", ENDS)
def test_an_unknown_or_missing_part_of_a_record_costs_that_ike_sa_only(kept: Any, end: str) -> None:
    kept.up()
    host = getattr(kept, end)
    ((spi, record),) = host.kept.items()
    for bad in _mangled(json.loads(record)):
        host.kept = {spi: json.dumps(bad).encode()}
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
    before: dict[bytes, bytes | None] = {}

    def late(self: Sequence) -> list[tuple[bytes, bytes | None]]:
        changes = now(self)
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
