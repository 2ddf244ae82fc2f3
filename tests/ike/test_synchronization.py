"""A peer that is a cluster fails over, and both ends go on with new Message IDs (RFC 6311)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.informational import LivenessCheck
from xfrmpy.ike.outputs import SendDatagram
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.synchronization import SYNC_SUPPORTED, MessageIdSync
from xfrmpy.ike.window import OUR_WINDOW_SIZE
from xfrmpy.registry import ExchangeType, NotifyType, PayloadType
from xfrmpy.wire.message import decode_message_untrusted, decode_payloads_untrusted
from xfrmpy.wire.payloads import NotifyPayload, VendorIdPayload

INFORMATIONAL = ExchangeType.INFORMATIONAL
NONCE = b"once"


@dataclass
class Cluster:
    """The member that takes over from one end, and what it hears from the other."""

    gone: Any
    peer: Any
    answers: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sa = self.gone.ike_sa
        path = self.sa.path
        self.path = replace(path, local=path.remote, remote=path.local)

    def sync(self, next_sent: int, next_expected: int, *more: Any, nonce: bytes = NONCE) -> Any:
        """Ask; returns what came back, or None."""
        asked = MessageIdSync(nonce=nonce, next_sent=next_sent, next_expected=next_expected)
        return self.say(asked.encode(), *more)

    def say(self, *payloads: Any, message_id: int = 0) -> Any:
        return self.deliver(self.make(*payloads, message_id=message_id))

    def make(self, *payloads: Any, message_id: int = 0) -> bytes:
        channel = self.sa.channel
        message = channel._message(INFORMATIONAL, message_id, payloads, is_response=False)
        data: bytes = channel._protection.seal(message, payloads)
        return data

    def deliver(self, data: bytes) -> Any:
        marked = bytes(4) + data if self.path.natt else data
        self.peer.receive(marked, self.path, 0.0)
        answers = [self._opened(o) for o in self.peer.take_outputs()]
        return next((a for a in answers if a is not None), None)

    def _opened(self, output: SendDatagram) -> Any:
        data = output.data[4:] if output.path.natt else output.data
        message = decode_message_untrusted(data)
        if not message.is_response:
            return None
        inner = self.sa.channel._protection.open(message, data)
        payloads = decode_payloads_untrusted(*inner)
        self.answers.append(payloads)
        return message, payloads


@pytest.fixture(params=["moon", "sun"])
def cluster(pair: Any, request: pytest.FixtureRequest) -> Cluster:
    """Either end may be the cluster: the original initiator or the responder."""
    pair.up()
    gone, peer = (pair.moon, pair.sun) if request.param == "moon" else (pair.sun, pair.moon)
    return Cluster(gone, peer)


def _synced(answer: Any) -> MessageIdSync:
    message, payloads = answer
    assert (message.message_id, message.exchange) == (0, INFORMATIONAL)
    (notify,) = payloads
    assert notify.type == NotifyType.IKEV2_MESSAGE_ID_SYNC
    return MessageIdSync.decode(notify)


# The agreement in IKE_AUTH.


def test_both_ends_say_that_they_can(pair: Any, sealing: Any) -> None:
    pair.up()
    assert [SYNC_SUPPORTED in payloads for _, payloads in sealing.sent] == [True, True]
    assert all(h.ike_sa.channel.may_sync for h in (pair.moon, pair.sun))


@pytest.mark.parametrize("silent", ["request", "response"])
def test_what_was_not_agreed_is_not_done(pair: Any, sealing: Any, silent: str) -> None:
    """A responder "MUST NOT assert support of a capability unless" the initiator has."""
    sealing.change = lambda message, payloads: tuple(
        p for p in payloads if p != SYNC_SUPPORTED or message.is_response is (silent == "request")
    )
    pair.up()
    (answer,) = sealing.answers(ExchangeType.IKE_AUTH)
    assert SYNC_SUPPORTED not in answer
    cluster = Cluster(pair.sun, pair.moon)
    assert cluster.sync(10, 10) is not None, "an ordinary request with Message ID zero is answered"
    assert cluster.answers == [()]
    assert pair.moon.ike_sa.channel.window._next_id == 2


def test_replay_counters_are_not_offered(pair: Any, sealing: Any) -> None:
    """No datapath can be told to skip sequence numbers, so we do not say that we could."""
    pair.up()
    said = {p.type for _, s in sealing.sent for p in s if isinstance(p, NotifyPayload)}
    assert NotifyType.IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED not in said


def test_a_cluster_that_offers_replay_counters_is_not_joined_in_that(
    pair: Any, sealing: Any
) -> None:
    """Section 5: "Only a capability whose support was asserted by both parties can be used"."""
    offer = NotifyPayload(type=NotifyType.IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED)
    sealing.change = lambda message, payloads: (
        payloads if message.is_response else (*payloads, offer)
    )
    pair.up()
    pair.assert_up()
    (answer,) = sealing.answers(ExchangeType.IKE_AUTH)
    assert offer not in answer
    assert SYNC_SUPPORTED in answer


# The rules for M1, P1, M2 and P2 (section 5.1).


@pytest.mark.parametrize(("p1", "ahead"), [(0, 0), (1, 0), (50, 48), (0xFFFFFFFF, 0xFFFFFFFD)])
def test_both_ends_go_on_with_the_higher_numbers(cluster: Cluster, p1: int, ahead: int) -> None:
    window = cluster.peer.ike_sa.channel.window
    ours = window._next_id
    answer = _synced(cluster.sync(40, p1))
    assert answer.nonce == NONCE
    assert answer.next_expected == 40
    assert answer.next_sent == max(ours, p1)
    assert window._next_id == max(ours, p1)
    assert not ahead or window._next_id > ours


def test_after_it_requests_flow_both_ways_with_the_new_numbers(
    pair: Any, cluster: Cluster, make_ask: Any
) -> None:
    cluster.sync(40, 30)
    theirs = cluster.gone.ike_sa.channel.window
    theirs.synchronize(cluster.peer.ike_sa.channel.window._next_id, 40)
    asks = [make_ask(INFORMATIONAL).on(host) for host in (pair.moon, pair.sun)]
    pair.deliver()
    assert [ask.answer for ask in asks] == [(), ()]
    assert (theirs._next_id, theirs._expected_id) == (41, 31)
    pair.assert_up()


def test_what_was_answered_before_is_neither_repeated_nor_taken_again(cluster: Cluster) -> None:
    expected = cluster.peer.ike_sa.channel.window._expected_id
    old = cluster.make(message_id=expected)
    assert cluster.deliver(old) is not None
    assert cluster.deliver(old) is not None
    cluster.sync(expected + OUR_WINDOW_SIZE, 0)
    assert cluster.deliver(old) is None
    assert cluster.peer.drops == [DropReason.WRONG_MESSAGE_ID]


def test_a_synchronization_that_is_replayed_is_dropped_in_silence(cluster: Cluster) -> None:
    asked = MessageIdSync(nonce=NONCE, next_sent=40, next_expected=0).encode()
    captured = cluster.make(asked)
    assert cluster.deliver(captured) is not None
    before = vars(cluster.peer.ike_sa.channel.window).copy()
    for _ in range(3):
        assert cluster.deliver(captured) is None
    assert cluster.peer.drops == [DropReason.SYNC_REPLAYED] * 3
    assert vars(cluster.peer.ike_sa.channel.window) == before


@pytest.mark.parametrize("m1", [0, 1, 38, 39, 40])
def test_numbers_that_the_cluster_has_used_are_refused(cluster: Cluster, m1: int) -> None:
    cluster.sync(40, 0)
    assert cluster.sync(m1, 100) is None
    assert cluster.peer.drops == [DropReason.SYNC_REPLAYED]


def test_a_request_counts_as_seen_as_soon_as_it_has_been_taken(cluster: Cluster) -> None:
    expected = cluster.peer.ike_sa.channel.window._expected_id
    assert cluster.say(message_id=expected + 3) is not None
    assert cluster.sync(expected + 3, 0) is None
    assert _synced(cluster.sync(expected + 4, 0)).next_expected == expected + 4


def test_a_second_failover_is_answered_too(cluster: Cluster) -> None:
    assert _synced(cluster.sync(40, 0)).next_expected == 40
    assert _synced(cluster.sync(41, 90, nonce=b"more")).next_expected == 41
    assert cluster.peer.ike_sa.channel.window._next_id == 90


# What was on its way (section 9).


def test_what_was_answered_before_is_forgotten_for_good(make_pair: Any, make_policy: Any) -> None:
    """A kill of ours brings back neither the answers nor the numbers."""
    pair = make_pair(make_policy(), keeps=True)
    pair.up()
    cluster = Cluster(pair.moon, pair.sun)
    assert pair.sun.ike_sa.channel.window._answers
    assert cluster.sync(3, 0) is not None
    assert pair.sun.take_over().unreadable == ()
    window = pair.sun.ike_sa.channel.window
    assert (window._answers, window._expected_id) == ({}, 3)


def test_nobody_waits_for_a_request_that_was_lost(cluster: Cluster) -> None:
    """The RFC's example: 4 to 7 have come and 3 has not; 8 is expected from now on."""
    expected = cluster.peer.ike_sa.channel.window._expected_id
    for message_id in range(expected + 1, expected + 5):
        assert cluster.say(message_id=message_id) is not None
    assert _synced(cluster.sync(expected + 5, 0)).next_expected == expected + 5
    assert cluster.say(message_id=expected) is None
    assert cluster.say(message_id=expected + 5) is not None


def test_what_we_asked_in_vain_is_asked_again_with_new_numbers(
    pair: Any, cluster: Cluster, make_ask: Any
) -> None:
    asks = [make_ask(INFORMATIONAL).on(cluster.peer) for _ in range(OUR_WINDOW_SIZE + 2)]
    assert len(cluster.peer.take_outputs()) == OUR_WINDOW_SIZE
    used = cluster.peer.ike_sa.channel.window._next_id
    assert _synced(cluster.sync(40, 0)).next_sent == used
    theirs = cluster.gone.ike_sa.channel.window
    theirs.synchronize(used, 40)
    pair.run(10)
    assert [ask.answer for ask in asks] == [()] * len(asks)
    assert theirs._expected_id == used + len(asks)


def test_a_farewell_is_said_to_the_member_that_takes_over(pair: Any, cluster: Cluster) -> None:
    cluster.peer.endpoint.terminate("tunnel-a", pair.now)
    cluster.peer.take_outputs()
    answer = _synced(cluster.sync(40, 0))
    cluster.gone.ike_sa.channel.window.synchronize(answer.next_sent, 40)
    assert cluster.peer.ike_sa.state is IkeSaState.DELETING
    pair.run(100)
    pair.assert_forgotten()


def test_it_is_a_sign_of_life(pair: Any, cluster: Cluster) -> None:
    pair.run(20)
    sa = cluster.peer.ike_sa
    cluster.peer.endpoint.receive_datagram(
        cluster.make(MessageIdSync(nonce=NONCE, next_sent=40, next_expected=0).encode()),
        cluster.path,
        pair.now,
    )
    cluster.peer.take_outputs()
    assert sa.next_timeout == pair.now + sa.tunnel.dpd_seconds


# What is not as it must be.


@pytest.mark.parametrize(
    "payloads",
    [
        (MessageIdSync(nonce=NONCE, next_sent=40, next_expected=0).encode(),) * 2,
        (
            MessageIdSync(nonce=NONCE, next_sent=40, next_expected=0).encode(),
            VendorIdPayload(data=b"more"),
        ),
        (
            MessageIdSync(nonce=NONCE, next_sent=40, next_expected=0).encode(),
            NotifyPayload(type=NotifyType.INITIAL_CONTACT),
        ),
        (NotifyPayload(type=NotifyType.IKEV2_MESSAGE_ID_SYNC, data=bytes(11)),),
        (NotifyPayload(type=NotifyType.IKEV2_MESSAGE_ID_SYNC, data=bytes(13)),),
        (NotifyPayload(type=NotifyType.IKEV2_MESSAGE_ID_SYNC),),
    ],
)
def test_a_synchronization_with_anything_else_is_dropped(cluster: Cluster, payloads: Any) -> None:
    window = cluster.peer.ike_sa.channel.window
    before = vars(window).copy()
    assert cluster.say(*payloads) is None
    assert cluster.peer.drops == [DropReason.MALFORMED]
    assert vars(window) == before


def test_replay_counters_beside_it_are_passed_over(cluster: Cluster) -> None:
    """What was not agreed "can[not] be used"; the Message IDs are synchronized all the same."""
    assert _synced(cluster.sync(40, 0, COUNTERS)).next_expected == 40


COUNTERS = NotifyPayload(type=NotifyType.IPSEC_REPLAY_COUNTER_SYNC, data=bytes(3) + b"\x01")


def test_replay_counters_alone_are_acknowledged_and_change_nothing(cluster: Cluster) -> None:
    """Who asks did not hear that we could, so it must not count on it."""
    before = cluster.peer.snapshot()
    _, payloads = cluster.say(COUNTERS, message_id=cluster.sa.channel.window._next_id)
    assert payloads == ()
    assert cluster.peer.snapshot() == before
    assert cluster.peer.drops == []


def test_replay_counters_alone_with_message_id_zero_are_no_synchronization(
    cluster: Cluster,
) -> None:
    window = cluster.peer.ike_sa.channel.window
    window._expected_id = window._highest_id = 7
    window._answers.clear()
    assert cluster.say(COUNTERS) is None
    assert cluster.peer.drops == [DropReason.WRONG_MESSAGE_ID]
    assert window._expected_id == 7


def test_another_message_id_than_zero_synchronizes_nothing(cluster: Cluster) -> None:
    window = cluster.peer.ike_sa.channel.window
    expected, ours = window._expected_id, window._next_id
    asked = MessageIdSync(nonce=NONCE, next_sent=40, next_expected=40).encode()
    answer = cluster.say(asked, message_id=expected + 1)
    assert answer[1] == ()
    assert (window._expected_id, window._next_id) == (expected, ours)


def test_fragments_synchronize_nothing(cluster: Cluster) -> None:
    """RFC 7383 section 3: such messages "MUST NOT be sent fragmented"."""
    channel = cluster.sa.channel
    asked = MessageIdSync(nonce=NONCE, next_sent=40, next_expected=40).encode()
    message = channel._message(INFORMATIONAL, 0, (asked,), is_response=False)
    body = bytes([0, 0, 0, 20]) + asked.encode_body()
    data = channel._protection._seal(message, (PayloadType.NOTIFY, body), (1, 1))
    before = cluster.peer.ike_sa.channel.window._next_id
    cluster.deliver(data)
    assert cluster.peer.ike_sa.channel.window._next_id == before


def test_a_synchronization_that_is_not_authentic_is_dropped(cluster: Cluster) -> None:
    data = cluster.make(MessageIdSync(nonce=NONCE, next_sent=40, next_expected=0).encode())
    assert cluster.deliver(data[:-1] + bytes([data[-1] ^ 1])) is None
    assert cluster.peer.drops == [DropReason.NOT_AUTHENTIC]


def test_nothing_is_synchronized_before_the_peer_is_authenticated(pair: Any) -> None:
    pair.initiate()
    pair._carry(pair.moon, pair.sun)
    pair._carry(pair.sun, pair.moon)
    pair.moon.take_outputs()
    cluster = Cluster(pair.moon, pair.sun)
    cluster.sync(40, 40)
    assert pair.sun.ike_sa.channel.window._next_id == 0
    pair.run(5)
    pair.assert_up()


def test_the_first_request_of_a_responder_has_message_id_zero_and_is_none(pair: Any) -> None:
    pair.up()
    ask: Callable[..., Any] = pair.sun.ike_sa.start
    ask(LivenessCheck(pair.sun.ike_sa), pair.now)
    pair.deliver()
    assert pair.sun.ike_sa.channel.window.is_idle
    pair.assert_up()
