"""Large messages in parts: agreed, cut, lost, repeated, put together, bounded (RFC 7383)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.ike import fragments as fragments_module
from xfrmpy.ike.channel import DATAGRAM_SIZES, PROBES
from xfrmpy.ike.errors import Drop, DropReason, PeerMisbehaved
from xfrmpy.ike.fragments import (
    MAX_FRAGMENTS,
    MAX_MESSAGE_OCTETS,
    REASSEMBLY_SECONDS,
    FragmentStore,
    Reassembler,
    Whole,
    split,
)
from xfrmpy.ike.ike_sa import HALF_OPEN_SECONDS, LINGER_SECONDS
from xfrmpy.ike.outputs import FragmentSizeReduced, SendDatagram, TunnelClosed
from xfrmpy.ike.states import IkeSaState
from xfrmpy.policy.model import Retransmission
from xfrmpy.registry import ExchangeType, NotifyType, PayloadType
from xfrmpy.wire.message import Message, decode_message_untrusted
from xfrmpy.wire.payloads import (
    EncryptedFragmentPayload,
    EncryptedPayload,
    NotifyPayload,
    VendorIdPayload,
)

MakePair = Callable[..., Any]
MakePolicy = Callable[..., Any]

HEADERS = {4: 28, 6: 48}
"""IP and UDP, of which a test sees nothing."""

LONG = f"keyid:{'s' * 2300}"
"""An identity of sun's that makes IKE_AUTH about 2,500 octets in both directions."""


@pytest.fixture
def policy(make_policy: MakePolicy) -> Any:
    return replace(make_policy(there=LONG), retransmission=Retransmission(jitter=0))


@pytest.fixture
def large(make_pair: MakePair, policy: Any) -> Any:
    """A pair whose IKE_AUTH needs fragments both ways."""
    return make_pair(policy)


def _message(output: SendDatagram) -> Message:
    return decode_message_untrusted(output.data[4:] if output.path.natt else output.data)


def _sealed(output: SendDatagram) -> Any:
    return _message(output).sealed


def _fragments(pair: Any, sender: str = "") -> list[tuple[int, int]]:
    """Number and total of every fragment that was sent, in order."""
    found = [_sealed(o) for name, o in pair.sent if sender in ("", name)]
    return [(f.number, f.total) for f in found if isinstance(f, EncryptedFragmentPayload)]


def _held(host: Any) -> int:
    """The octets of fragments that an endpoint holds."""
    return int(host.endpoint._core.fragments.octets)


# The agreement (section 2.3).


def _asks_for_fragments(output: SendDatagram) -> bool:
    kinds = [p.type for p in _message(output).payloads if isinstance(p, NotifyPayload)]
    return NotifyType.IKEV2_FRAGMENTATION_SUPPORTED in kinds


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("theirs", [True, False])
def test_fragments_are_used_only_if_both_ends_want_them(
    make_pair: MakePair, make_mirror: Any, policy: Any, ours: bool, theirs: bool
) -> None:
    sun = replace(make_mirror(policy), fragmentation=theirs)
    pair = make_pair(replace(policy, fragmentation=ours), sun)
    pair.up()
    pair.assert_up()
    first, second = (_asks_for_fragments(output) for _, output in pair.sent[:2])
    assert (first, second) == (ours, ours and theirs)
    assert bool(_fragments(pair)) is (ours and theirs)


def test_the_notification_is_empty_and_names_no_protocol(large: Any) -> None:
    large.up()
    for _, output in large.sent[:2]:
        kinds = [p for p in _message(output).payloads if isinstance(p, NotifyPayload)]
        assert NotifyPayload(type=NotifyType.IKEV2_FRAGMENTATION_SUPPORTED) in kinds


def test_fragments_that_were_not_agreed_are_dropped(
    make_pair: MakePair, make_mirror: Any, policy: Any
) -> None:
    pair = make_pair(policy, replace(make_mirror(policy), fragmentation=False))
    pair.initiate()
    pair._carry(pair.moon, pair.sun)
    pair._carry(pair.sun, pair.moon)
    pair.moon.take_outputs()
    forger = Forger(pair.moon, pair.sun, pair.sun)
    forger.send(1, 2, b"part")
    pair.sun.take_outputs()
    assert pair.sun.drops == [DropReason.FRAGMENTS_NOT_AGREED]


# Cutting.


def test_split_takes_everything_and_always_gives_a_part() -> None:
    assert split(b"abcdef", 4) == (b"abcd", b"ef")
    assert split(b"abcd", 4) == (b"abcd",)
    assert split(b"", 4) == (b"",)


@pytest.mark.parametrize(
    "suite", ["aes128gcm16-prfsha256-x25519", "aes256-sha384-x25519", "aes128-sha256-x25519"]
)
@pytest.mark.parametrize("version", [4, 6])
def test_large_messages_go_in_fragments_of_the_right_size_both_ways(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Any, suite: str, version: int
) -> None:
    here, there = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}[version]
    policy = make_policy(there=LONG, ike=suite, peer=there)
    pair = make_pair(policy, make_mirror(policy, peer=here))
    pair.up()
    pair.assert_up()
    assert _fragments(pair) == [(1, 3), (2, 3), (3, 3)] * 2
    limit = DATAGRAM_SIZES[version][0]
    sizes = [len(o.data) + HEADERS[version] for _, o in pair.sent]
    assert max(sizes) <= limit
    assert max(sizes) > limit - 16, "the room is not used"


def test_the_first_inner_type_is_named_in_the_first_fragment_only(large: Any) -> None:
    """Section 2.5: "In the rest of the Fragment messages ... this field MUST be set to zero"."""
    large.up()
    kinds = [_sealed(o).first_inner for _, o in large.sent[2:]]
    rest = [PayloadType.NO_NEXT_PAYLOAD] * 2
    assert kinds == [PayloadType.IDI, *rest, PayloadType.IDR, *rest]


def test_all_fragments_have_the_header_of_the_message_and_nonces_of_their_own(large: Any) -> None:
    large.up()
    messages = [_message(o) for name, o in large.sent[2:] if name == "moon"]
    assert len({(m.exchange, m.message_id, m.spi_i, m.spi_r) for m in messages}) == 1
    assert len({_sealed(o).sealed[:8] for _, o in large.sent[2:5]}) == 3


def test_a_small_message_goes_in_one_datagram(pair: Any) -> None:
    """Section 2.4: "there is no point in fragmenting liveness check messages"."""
    pair.up()
    pair.run(100)
    assert len(pair.sent) > 4
    assert all(isinstance(_sealed(o), EncryptedPayload) for _, o in pair.sent[2:])


def test_a_small_fragment_of_the_request_makes_small_ones_of_the_answer(large: Any) -> None:
    """Section 2.5.1: the responder may go by "the maximum size of the received" ones."""
    large.initiate()
    large._carry(large.moon, large.sun)
    large.moon.ike_sa.channel._size_step = 1
    large.deliver()
    large.assert_up()
    sizes = {e: [len(o.data) for name, o in large.sent[2:] if name == e] for e in ("moon", "sun")}
    assert max(sizes["sun"]) <= max(sizes["moon"]) <= 576 - HEADERS[4]


# Loss, doubling, reordering.


def _impair_nth(pair: Any, nth: int, copies: int) -> None:
    count = 0

    def impair(output: SendDatagram, _sender: Any) -> list[bytes]:
        nonlocal count
        count += 1
        return [output.data] * (copies if count == nth + 1 else 1)

    pair.impair = impair


@pytest.mark.parametrize("copies", [0, 2, 5], ids=["lost", "doubled", "five times"])
@pytest.mark.parametrize("nth", range(8))
def test_a_fragment_lost_or_doubled_does_no_harm(large: Any, nth: int, copies: int) -> None:
    _impair_nth(large, nth, copies)
    large.up()
    large.run(10)
    large.assert_up()
    large.run(HALF_OPEN_SECONDS + LINGER_SECONDS)
    large.assert_up()
    assert (_held(large.moon), _held(large.sun)) == (0, 0)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("end", ["moon", "sun"])
def test_fragments_may_come_in_any_order(
    large: Any, make_backwards: Any, order: tuple[int, ...], end: str
) -> None:
    large.initiate()
    large._carry(large.moon, large.sun)
    large._carry(large.sun, large.moon)
    if end == "moon":
        large._carry(large.moon, large.sun)
    sender, receiver = (large.sun, large.moon) if end == "moon" else (large.moon, large.sun)
    outputs = sender.take_outputs()
    assert len(outputs) == 3
    for index in order:
        output = outputs[index]
        receiver.endpoint.receive_datagram(output.data, make_backwards(output.path), large.now)
    large.deliver()
    large.assert_up()


def test_a_lost_fragment_costs_the_retransmission_of_all_and_the_others_are_kept(
    large: Any,
) -> None:
    """The same octets again (RFC 7296 section 2.1): those that came before are replays."""
    _impair_nth(large, 3, 0)
    large.up()
    assert _held(large.sun) > 0
    large.run(1)
    large.assert_up()
    requests = [o.data for name, o in large.sent[2:] if name == "moon"]
    assert requests[:3] == requests[3:]
    assert large.sun.drops == [DropReason.FRAGMENT_REPEATED] * 2


def test_only_the_first_fragment_of_a_repeated_request_is_answered_again(
    large: Any, make_backwards: Any
) -> None:
    """Section 2.6.1: "if the Fragment Number field in the received fragment is set to 1"."""
    large.up()
    requests = [o for name, o in large.sent if name == "moon"][1:]
    answers = [o.data for name, o in large.sent if name == "sun"][1:]
    for number, output in enumerate(requests, 1):
        large.sun.endpoint.receive_datagram(output.data, make_backwards(output.path), large.now)
        repeated = [o.data for o in large.sun.take_outputs()]
        assert repeated == (answers if number == 1 else [])
    assert large.sun.drops == [DropReason.FRAGMENT_REPEATED] * 2
    large.assert_up()


def test_a_request_that_nobody_completes_is_forgotten(large: Any) -> None:
    large.up()
    forger = Forger(large.moon, large.sun, large.sun)
    forger.send(1, 2, b"part", ExchangeType.INFORMATIONAL)
    assert _held(large.sun) == 4
    large.impair = lambda _output, _sender: []
    assert large.sun.endpoint.next_timeout() <= large.now + REASSEMBLY_SECONDS
    large.now += REASSEMBLY_SECONDS
    large.sun.endpoint.handle_timeout(large.now)
    assert _held(large.sun) == 0
    assert large.sun.ike_sa.state is IkeSaState.ESTABLISHED


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_an_ike_sa_that_ends_takes_its_fragments_with_it(large: Any, end: str) -> None:
    large.up()
    host = getattr(large, end)
    other = large.sun if host is large.moon else large.moon
    forger = Forger(other, host, large.sun)
    forger.send(1, 2, b"part", ExchangeType.INFORMATIONAL)
    assert _held(host) == 4
    large.moon.endpoint.terminate("tunnel-a", large.now)
    large.deliver()
    assert _held(host) == 0
    forger.send(2, 2, b"late", ExchangeType.INFORMATIONAL, message_id=3)
    assert _held(host) == 0
    large.run(LINGER_SECONDS * 2)
    large.assert_forgotten()


# A path that large datagrams do not pass (section 2.5.2).


def _narrow(pair: Any, limit: int, *senders: str) -> None:
    def impair(output: SendDatagram, sender: Any) -> list[bytes]:
        is_small = len(output.data) + HEADERS[4] <= limit or sender.name not in senders
        return [output.data] if is_small else []

    pair.impair = impair


@pytest.mark.parametrize("senders", [("moon",), ("sun",), ("moon", "sun")], ids=" and ".join)
def test_datagrams_become_smaller_where_large_ones_do_not_pass(
    large: Any, senders: tuple[str, ...]
) -> None:
    _narrow(large, 600, *senders)
    large.up()
    large.run(30)
    large.assert_up()
    reduced = [o for h in (large.moon, large.sun) for o in h.reports(FragmentSizeReduced)]
    assert {o.octets for o in reduced} == {576}
    sizes = [len(o.data) + HEADERS[4] for name, o in large.sent if name in senders]
    assert max(sizes) > 600 >= sizes[-1]


def test_smaller_fragments_are_more_have_new_nonces_and_start_the_timers_over(large: Any) -> None:
    times: list[tuple[float, tuple[int, int], bytes]] = []

    def impair(output: SendDatagram, sender: Any) -> list[bytes]:
        if sender is large.moon and large.sent[2:]:
            sealed = _sealed(output)
            times.append((large.now, (sealed.number, sealed.total), sealed.sealed))
            return []
        return [output.data]

    large.impair = impair
    large.up()
    large.run(200)
    firsts = [(moment, total) for moment, (number, total), _ in times if number == 1]
    before, after = firsts[: PROBES + 1], firsts[PROBES + 1 :]
    assert before == [(0, 3), (1, 3), (3, 3)]
    assert after == [(7 + t, 6) for t in (0, 1, 3, 7, 15, 31)]
    by_part: dict[tuple[int, int], set[bytes]] = {}
    for _, part, octets in times:
        by_part.setdefault(part, set()).add(octets)
    assert all(len(copies) == 1 for copies in by_part.values()), "a repetition differs"
    nonces = {next(iter(copies))[:8] for copies in by_part.values()}
    assert len(nonces) == len(by_part) == 3 + 6
    (closed,) = large.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2001"


def test_the_size_that_passed_is_kept_for_later_messages(large: Any, make_ask: Any) -> None:
    _narrow(large, 600, "moon", "sun")
    large.up()
    large.run(30)
    large.assert_up()
    start = len(large.sent)
    ask = make_ask(ExchangeType.INFORMATIONAL, VendorIdPayload(data=bytes(3000)))
    ask.on(large.moon, large.now)
    large.deliver()
    assert ask.answer == ()
    assert _sealed(large.sent[start][1]).total == 6 + 1


def test_a_message_that_fits_the_smallest_size_never_changes(pair: Any) -> None:
    pair.up()
    pair.impair = lambda _output, _sender: []
    start = len(pair.sent)
    pair.run(200)
    assert len({o.data for name, o in pair.sent[start:] if name == "moon"}) == 1
    assert not pair.moon.reports(FragmentSizeReduced)


def test_a_middling_message_is_cut_only_when_it_does_not_pass(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    pair = make_pair(make_policy(there=f"keyid:{'s' * 400}"))
    _narrow(pair, 600, "moon", "sun")
    pair.up()
    assert isinstance(_sealed(pair.sent[2][1]), EncryptedPayload)
    pair.run(30)
    pair.assert_up()
    assert (1, 2) in _fragments(pair, "moon")


# Putting together: the rules of section 2.6 one by one.


def _piece(
    number: int,
    total: int,
    *,
    message_id: int = 1,
    exchange: ExchangeType = ExchangeType.INFORMATIONAL,
    is_response: bool = False,
) -> Message:
    first = PayloadType.VENDOR_ID if number == 1 else PayloadType.NO_NEXT_PAYLOAD
    payload = EncryptedFragmentPayload(first_inner=first, number=number, total=total, sealed=b"x")
    return Message(
        spi_i=b"initiate",
        spi_r=b"response",
        exchange=exchange,
        is_response=is_response,
        is_initiator=True,
        message_id=message_id,
        payloads=(payload,),
    )


@pytest.fixture
def store() -> FragmentStore:
    return FragmentStore()


@pytest.fixture
def reassembler(store: FragmentStore) -> Reassembler:
    return Reassembler(store)


def _collect(
    reassembler: Reassembler, number: int, total: int, octets: bytes = b"part", **of: Any
) -> Whole | None:
    return reassembler.collect(_piece(number, total, **of), octets, 100, 0.0)


def _refuses(reassembler: Reassembler, reason: DropReason, *piece: Any, **of: Any) -> None:
    with pytest.raises(Drop) as drop:
        _collect(reassembler, *piece, **of)
    assert drop.value.reason is reason


@given(
    octets=st.binary(max_size=300),
    size=st.integers(1, 60),
    data=st.data(),
)
def test_whatever_is_cut_comes_together_in_any_order_and_with_any_repetitions(
    octets: bytes, size: int, data: Any
) -> None:
    parts = split(octets, size)
    if len(parts) > MAX_FRAGMENTS:
        return
    numbers = data.draw(st.permutations(range(1, len(parts) + 1)))
    reassembler = Reassembler(store := FragmentStore())
    for number in numbers[:-1]:
        assert _collect(reassembler, number, len(parts), parts[number - 1]) is None
        _refuses(reassembler, DropReason.FRAGMENT_REPEATED, number, len(parts), b"other")
    whole = _collect(reassembler, numbers[-1], len(parts), parts[numbers[-1] - 1])
    assert whole is not None
    assert (whole.octets, whole.first_inner) == (octets, PayloadType.VENDOR_ID)
    assert store.octets == 0
    assert reassembler.next_timeout is None


def test_a_repeated_fragment_with_other_octets_changes_nothing(reassembler: Reassembler) -> None:
    _collect(reassembler, 1, 2, b"first")
    _refuses(reassembler, DropReason.FRAGMENT_REPEATED, 1, 2, b"other")
    whole = _collect(reassembler, 2, 2, b"second")
    assert whole is not None
    assert whole.octets == b"firstsecond"


def test_a_message_is_not_complete_while_a_fragment_is_missing(reassembler: Reassembler) -> None:
    for number in (1, 2, 4):
        assert _collect(reassembler, number, 4) is None


def test_a_larger_total_begins_anew_without_mixing(reassembler: Reassembler) -> None:
    _collect(reassembler, 1, 2, b"old")
    assert _collect(reassembler, 2, 3, b"two") is None
    assert _collect(reassembler, 3, 3, b"three") is None
    whole = _collect(reassembler, 1, 3, b"one")
    assert whole is not None
    assert whole.octets == b"onetwothree"


def test_a_smaller_total_is_refused_and_nothing_of_it_kept(
    reassembler: Reassembler, store: FragmentStore
) -> None:
    _collect(reassembler, 1, 3, b"new")
    for number in (1, 2):
        _refuses(reassembler, DropReason.FRAGMENT_OUTDATED, number, 2, b"old")
    assert store.octets == 3


def test_fragments_of_another_exchange_are_not_mixed_in(reassembler: Reassembler) -> None:
    _collect(reassembler, 1, 2)
    other = ExchangeType.CREATE_CHILD_SA
    _refuses(reassembler, DropReason.WRONG_EXCHANGE, 2, 2, exchange=other)


def test_directions_and_message_ids_are_apart(reassembler: Reassembler) -> None:
    _collect(reassembler, 1, 2, b"a")
    assert _collect(reassembler, 2, 2, b"b", is_response=True) is None
    assert _collect(reassembler, 2, 2, b"c", message_id=2) is None
    whole = _collect(reassembler, 2, 2, b"d")
    assert whole is not None
    assert whole.octets == b"ad"


def test_a_whole_copy_of_the_message_replaces_its_parts(
    reassembler: Reassembler, store: FragmentStore
) -> None:
    _collect(reassembler, 1, 2)
    payload = EncryptedPayload(first_inner=PayloadType.VENDOR_ID, sealed=b"x")
    message = replace(_piece(1, 1), payloads=(payload,))
    whole = reassembler.collect(message, b"all", 100, 0.0)
    assert whole == Whole(message=message, octets=b"all")
    assert store.octets == 0


# Limits (section 5): of fragments, of octets, of a peer and of all.


def test_more_fragments_than_we_would_take_are_misbehaviour(reassembler: Reassembler) -> None:
    _collect(reassembler, 1, MAX_FRAGMENTS)
    for total in (MAX_FRAGMENTS + 1, 0xFFFF):
        with pytest.raises(PeerMisbehaved):
            _collect(reassembler, 1, total)


def test_more_octets_than_we_would_take_are_misbehaviour(
    reassembler: Reassembler, store: FragmentStore
) -> None:
    half = bytes(MAX_MESSAGE_OCTETS // 2)
    _collect(reassembler, 1, 3, half)
    _collect(reassembler, 2, 3, half)
    with pytest.raises(PeerMisbehaved):
        _collect(reassembler, 3, 3, b"x")
    assert store.octets == MAX_MESSAGE_OCTETS


def test_the_oldest_message_goes_when_all_together_are_too_large(
    monkeypatch: pytest.MonkeyPatch, store: FragmentStore
) -> None:
    monkeypatch.setattr(fragments_module, "MAX_OCTETS_IN_ALL", 100)
    peers = [Reassembler(store) for _ in range(3)]
    for peer in peers:
        _collect(peer, 1, 2, bytes(40))
        assert store.octets <= 100
    whole = _collect(peers[2], 2, 2, b"new")
    assert whole is not None
    assert _collect(peers[0], 2, 2, b"old") is None, "its first part is gone"
    whole = _collect(peers[0], 1, 2, b"again")
    assert whole is not None
    assert whole.octets == b"againold"
    for peer in peers:
        peer.clear()
    assert store.octets == 0


def test_the_parts_of_a_message_expire_together(
    reassembler: Reassembler, store: FragmentStore
) -> None:
    reassembler.collect(_piece(1, 3), b"a", 100, 10.0)
    reassembler.collect(_piece(2, 3), b"b", 100, 20.0)
    assert reassembler.next_timeout == 10 + REASSEMBLY_SECONDS
    reassembler.expire(9.9 + REASSEMBLY_SECONDS)
    assert store.octets == 2
    reassembler.expire(10 + REASSEMBLY_SECONDS)
    assert store.octets == 0
    assert reassembler.next_timeout is None


# A peer that holds the keys, and means no good; and one that does not hold them.


@dataclass
class Forger:
    """Seals fragments of its own making with the keys of `sender`, for `receiver`."""

    sender: Any
    receiver: Any
    sun: Any

    def __post_init__(self) -> None:
        self.sa = self.sender.ike_sa
        self.protection = self.sa.channel._protection
        self.next_id = self.receiver.ike_sa.channel.window._expected_id

    def make(
        self,
        number: int,
        total: int,
        octets: bytes,
        exchange: ExchangeType = ExchangeType.IKE_AUTH,
        message_id: int | None = None,
        is_response: bool = False,
    ) -> bytes:
        message = self.sa.channel._message(
            exchange,
            self.next_id if message_id is None else message_id,
            (),
            is_response=is_response,
        )
        inner = (PayloadType.NO_NEXT_PAYLOAD, octets)
        data: bytes = self.protection._seal(message, inner, (number, total))
        return data

    def send(self, *fragment: Any, **of: Any) -> None:
        self.deliver(self.make(*fragment, **of))

    def deliver(self, data: bytes) -> None:
        path = replace(self.sa.path, local=self.sa.path.remote, remote=self.sa.path.local)
        marked = bytes(4) + data if path.natt else data
        self.receiver.endpoint.receive_datagram(marked, path, 0.0)


def _to_half_open(pair: Any) -> Forger:
    """Moon has keys and has proved nothing: what anybody can reach."""
    pair.initiate()
    pair._carry(pair.moon, pair.sun)
    pair._carry(pair.sun, pair.moon)
    pair.moon.take_outputs()
    return Forger(pair.moon, pair.sun, pair.sun)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("total", [0, 1, 2])
def test_impossible_numbers_are_malformed(pair: Any, number: int, total: int) -> None:
    forger = _to_half_open(pair)
    data = bytearray(forger.make(2, 2, b"part"))
    data[32:36] = number.to_bytes(2, "big") + total.to_bytes(2, "big")
    forger.deliver(bytes(data))
    pair.sun.take_outputs()
    possible = 1 <= number <= total
    genuine = (number, total) == (2, 2)
    expected = [] if genuine else [DropReason.NOT_AUTHENTIC if possible else DropReason.MALFORMED]
    assert pair.sun.drops == expected
    assert _held(pair.sun) == (4 if genuine else 0)


def test_a_fragment_that_is_not_authentic_is_not_stored(pair: Any) -> None:
    forger = _to_half_open(pair)
    genuine = forger.make(1, 2, b"part")
    for position in range(len(genuine)):
        damaged = bytearray(genuine)
        damaged[position] ^= 1
        forger.deliver(bytes(damaged))
        pair.sun.take_outputs()
        assert _held(pair.sun) == 0, position
    forger.deliver(genuine)
    assert _held(pair.sun) == 4


def test_a_forged_fragment_cannot_take_the_place_of_a_genuine_one(large: Any) -> None:
    """Each fragment that passes is preceded by forgeries of all, of this total and of others."""

    def impair(output: SendDatagram, _sender: Any) -> list[bytes]:
        sealed = _sealed(output)
        if not isinstance(sealed, EncryptedFragmentPayload):
            return [output.data]
        forged = []
        for number, total in ((1, 3), (2, 3), (3, 3), (1, 1), (1, 4), (128, 128), (1, 65535)):
            data = bytearray(output.data)
            data[32:36] = number.to_bytes(2, "big") + total.to_bytes(2, "big")
            data[-1] ^= 0xFF
            forged.append(bytes(data))
        return [*forged, output.data]

    large.impair = impair
    large.up()
    large.assert_up()
    assert set(large.moon.drops + large.sun.drops) == {DropReason.NOT_AUTHENTIC}


def test_a_half_open_peer_that_sends_without_measure_is_closed_in_silence(pair: Any) -> None:
    forger = _to_half_open(pair)
    for number in range(1, MAX_FRAGMENTS + 1):
        forger.send(number, MAX_FRAGMENTS, bytes(1400))
        pair.sun.take_outputs()
        assert _held(pair.sun) <= MAX_MESSAGE_OCTETS
    assert _held(pair.sun) == 0
    assert [sa.state for sa in pair.sun.ike_sas] == [IkeSaState.DELETED]
    assert len(pair.sun.reports(SendDatagram)) == 1, "nothing but IKE_SA_INIT was answered"


def test_an_authenticated_peer_that_sends_without_measure_loses_its_ike_sa(pair: Any) -> None:
    pair.up()
    forger = Forger(pair.moon, pair.sun, pair.sun)
    forger.send(1, 0xFFFF, b"part", ExchangeType.INFORMATIONAL)
    pair.deliver()
    (closed,) = pair.sun.reports(TunnelClosed)
    assert closed.failure.code == "XF2008"
    assert _held(pair.sun) == 0
    pair.run(100)
    pair.assert_forgotten()


def test_fragments_of_what_is_not_expected_are_not_stored(pair: Any) -> None:
    pair.up()
    forger = Forger(pair.moon, pair.sun, pair.sun)
    for message_id in (0, forger.next_id + 9, 0xFFFFFFFF):
        forger.send(2, 2, b"part", ExchangeType.INFORMATIONAL, message_id=message_id)
    for message_id in (0, 1, 7):
        forger.send(1, 2, b"part", ExchangeType.INFORMATIONAL, message_id, is_response=True)
    pair.sun.take_outputs()
    assert _held(pair.sun) == 0
    assert len(pair.sun.drops) == 6


def test_a_message_of_more_payloads_than_we_take_is_refused_whole(pair: Any) -> None:
    pair.up()
    forger = Forger(pair.moon, pair.sun, pair.sun)
    payloads = bytes([PayloadType.VENDOR_ID, 0, 0, 4]) * 1000
    forger.send(2, 2, payloads, ExchangeType.INFORMATIONAL)
    message = forger.sa.channel._message(
        ExchangeType.INFORMATIONAL, forger.next_id, (), is_response=False
    )
    inner = (PayloadType.VENDOR_ID, payloads)
    forger.deliver(forger.protection._seal(message, inner, (1, 2)))
    pair.deliver()
    (closed,) = pair.sun.reports(TunnelClosed)
    assert closed.failure.code == "XF2008"


def test_peers_that_leave_their_messages_unfinished_do_not_keep_an_honest_one_out(
    make_pair: MakePair, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fragments_module, "MAX_OCTETS_IN_ALL", 20_000)
    pair = make_pair(policy)
    for _ in range(30):
        pair.initiate()
        (request,) = pair.moon.take_outputs()
        path = replace(request.path, local=request.path.remote, remote=request.path.local)
        pair.sun.endpoint.receive_datagram(request.data, path, 0.0)
        (answer,) = pair.sun.take_outputs()
        pair.moon.endpoint.receive_datagram(answer.data, request.path, 0.0)
        for output in pair.moon.take_outputs()[:2]:
            pair.sun.endpoint.receive_datagram(output.data, path, 0.0)
        assert _held(pair.sun) <= 20_000
    pair.moon.endpoint._core.ike_sas.clear()
    pair.up()
    assert IkeSaState.ESTABLISHED in [v.state for v in pair.sun.views]


def test_ike_sa_init_is_never_taken_in_fragments(pair: Any, make_backwards: Any) -> None:
    """Section 2.2: "messages of the IKE_SA_INIT exchange cannot be fragmented"."""
    pair.initiate()
    (request,) = pair.moon.take_outputs()
    data = bytearray(request.data)
    data[16] = PayloadType.SKF
    body = bytes(data[:28]) + bytes((33, 0, 0, 60)) + bytes((0, 1, 0, 1)) + bytes(52)
    body = body[:24] + len(body).to_bytes(4, "big") + body[28:]
    pair.sun.endpoint.receive_datagram(body, make_backwards(request.path), 0.0)
    assert pair.sun.take_outputs() == []
    assert pair.sun.drops == [DropReason.MALFORMED]
    assert pair.sun.ike_sas == []
