"""Every state against every kind of message: the machine moves, or says why it does not.

Exchange types known and unknown, requests and responses, in clear, sealed with a wrong key and
with the right one, with a Message ID that is due and with one that is not. Nothing that is not
authentic changes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.outputs import SendDatagram
from xfrmpy.ike.protection import Protection
from xfrmpy.ike.states import IKE_SA_TRANSITIONS, IkeSaState
from xfrmpy.ike.window import OUR_WINDOW_SIZE
from xfrmpy.ipsec.addresses import Path
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import Message, decode_message_untrusted, encode_message
from xfrmpy.wire.payloads import NotifyPayload

S = IkeSaState

EXCHANGES = [*ExchangeType, *map(ExchangeType, (0, 1, 33, 45, 99, 240, 255))]
PLACES = [
    *(("moon", state) for state in S),
    *(("sun", state) for state in S if state is not S.INITIATING),
]
IN_CLEAR = {ExchangeType.IKE_SA_INIT, ExchangeType.IKE_SESSION_RESUME}
LIVING = {S.ESTABLISHED, S.REKEYED, S.DELETING}
MAY_ASK = {
    ExchangeType.IKE_INTERMEDIATE: {S.AUTHENTICATING},
    ExchangeType.IKE_AUTH: {S.AUTHENTICATING},
    ExchangeType.CREATE_CHILD_SA: LIVING,
    ExchangeType.IKE_FOLLOWUP_KE: LIVING,
    ExchangeType.INFORMATIONAL: LIVING,
}
"""In which states a peer's request is answered: from the RFC, not from our table."""


@dataclass(frozen=True)
class Case:
    exchange: ExchangeType
    is_response: bool
    protection: str
    id_is_due: bool


CASES = [
    Case(*row)
    for row in product(EXCHANGES, (False, True), ("clear", "forged", "sealed"), (True, False))
]


@dataclass
class Scene:
    """A host in a state, and its peer's side of the IKE SA, whose keys can seal."""

    host: Any
    sa: Any
    peer: Any
    path: Path


def _scene(pair: Any, name: str, state: IkeSaState) -> Scene:
    host, other = (pair.moon, pair.sun) if name == "moon" else (pair.sun, pair.moon)
    pair.initiate()
    if state is S.INITIATING:
        pair.moon.take_outputs()
    elif state is S.AUTHENTICATING:
        pair._carry(pair.moon, pair.sun)
        pair._carry(pair.sun, pair.moon)
        pair.moon.take_outputs()
    else:
        pair.deliver()
    sa = host.ike_sa
    peer = other.ike_sa if other.ike_sas else None
    if state is S.REKEYED:
        other.endpoint.rekey_ike_sas("tunnel-a", pair.now)
        pair._carry(other, host)
    elif state is S.DELETING:
        host.endpoint.terminate("tunnel-a", pair.now)
    elif state is S.DELETED:
        sa.close(None, pair.now)
    host.take_outputs()
    assert sa.state is state
    path = Path(local=sa.path.local, remote=sa.path.remote, natt=sa.path.natt)
    return Scene(host, sa, peer, path)


def _datagram(scene: Scene, case: Case, *, from_initiator: bool) -> bytes:
    window = scene.sa.channel.window
    due = window._expected_id
    if case.is_response:
        due = min(window.outstanding, default=window._next_id)
    message = Message(
        spi_i=scene.sa.channel.spi_i,
        spi_r=scene.sa.channel.spi_r if any(scene.sa.channel.spi_r) else b"responds",
        exchange=case.exchange,
        is_response=case.is_response,
        is_initiator=from_initiator,
        message_id=due if case.id_is_due else due + OUR_WINDOW_SIZE,
        payloads=(),
    )
    if case.protection == "clear":
        return encode_message(message)
    if scene.peer is None:
        return Protection.seal(_any_protection(), message, ())
    data: bytes = scene.peer.channel._protection.seal(message, ())
    return data[:-1] + bytes([data[-1] ^ 1]) if case.protection == "forged" else data


_PROTECTIONS: list[Protection] = []


def _any_protection() -> Protection:
    return _PROTECTIONS[0]


def _expected(scene: Scene, case: Case) -> DropReason | None:
    """Why the message is to be dropped; None if it is to be taken."""
    sa = scene.sa
    if sa.state is S.INITIATING:
        if case.exchange not in IN_CLEAR or not case.is_response:
            return DropReason.WRONG_STATE
        if not case.id_is_due:
            return DropReason.UNEXPECTED_RESPONSE
        asked = case.exchange is ExchangeType.IKE_SA_INIT
        return DropReason.MALFORMED if asked else DropReason.WRONG_EXCHANGE
    if case.exchange in IN_CLEAR:
        return DropReason.WRONG_STATE
    if case.protection == "clear":
        return DropReason.NOT_PROTECTED
    if case.protection == "forged":
        return DropReason.NOT_AUTHENTIC
    if case.is_response:
        outstanding = list(sa.channel.window.outstanding.values())
        if not outstanding or not case.id_is_due:
            return DropReason.UNEXPECTED_RESPONSE
        same = outstanding[0].exchange.type is case.exchange
        return None if same else DropReason.WRONG_EXCHANGE
    if not case.id_is_due:
        return DropReason.WRONG_MESSAGE_ID
    if case.exchange not in MAY_ASK:
        return DropReason.WRONG_EXCHANGE
    return None if sa.state in MAY_ASK[case.exchange] else DropReason.WRONG_STATE


@pytest.mark.parametrize(("name", "state"), PLACES)
def test_every_message_in_every_state_moves_the_machine_or_is_dropped_for_its_reason(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], name: str, state: IkeSaState
) -> None:
    donor = make_pair(make_policy())
    donor.up()
    _PROTECTIONS[:] = [donor.sun.ike_sa.channel._protection]
    scene = _scene(make_pair(make_policy()), name, state)
    taken = 0
    for case in CASES:
        before = (scene.host.snapshot(), scene.sa.state, scene.sa.channel.window._expected_id)
        expected = _expected(scene, case)
        data = _datagram(scene, case, from_initiator=name == "sun")
        scene.host.outputs.clear()
        scene.host.endpoint.receive_datagram(data, scene.path, 0.0)
        sent = scene.host.take_outputs()
        after = (scene.host.snapshot(), scene.sa.state, scene.sa.channel.window._expected_id)
        if expected is not None:
            assert scene.host.drops == [expected], case
            assert after == before, case
            assert not sent, case
            continue
        taken += 1
        assert scene.host.drops == [], case
        assert case.protection == "sealed", case
        assert scene.sa.state is state or _is_reachable(state, scene.sa.state), case
        assert case.is_response or sent, case
        scene = _scene(make_pair(make_policy()), name, state)
    asked = sum(state in states for states in MAY_ASK.values())
    answered = state is S.DELETING or (name == "moon" and state is S.AUTHENTICATING)
    assert taken == asked + answered


def _is_reachable(state: IkeSaState, target: IkeSaState) -> bool:
    following = IKE_SA_TRANSITIONS[state]
    return target in following or any(_is_reachable(f, target) for f in following)


@pytest.mark.parametrize(("name", "state"), PLACES)
def test_a_message_of_the_wrong_role_or_for_another_spi_finds_no_ike_sa(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], name: str, state: IkeSaState
) -> None:
    donor = make_pair(make_policy())
    donor.up()
    _PROTECTIONS[:] = [donor.sun.ike_sa.channel._protection]
    scene = _scene(make_pair(make_policy()), name, state)
    before = (scene.host.snapshot(), scene.sa.state)
    for case in CASES:
        right = _datagram(scene, case, from_initiator=name == "sun")
        reversed_role = _datagram(scene, case, from_initiator=name == "moon")
        other_i = bytes([right[0] ^ 1]) + right[1:]
        other_r = right[:8] + bytes([right[8] ^ 1]) + right[9:]
        scene.host.outputs.clear()
        for data in (reversed_role, other_i, other_r):
            scene.host.endpoint.receive_datagram(data, scene.path, 0.0)
        for answer in scene.host.take_outputs():  # A request may be told that nobody knows it.
            (told,) = decode_message_untrusted(answer.data).payloads
            assert told == NotifyPayload(type=NotifyType.INVALID_IKE_SPI)
        if state is not S.INITIATING:  # Before the first answer, any SPI of the peer will do.
            assert set(scene.host.drops) == {DropReason.UNKNOWN_SPI}
        assert len(scene.host.drops) == 3
    assert (scene.host.snapshot(), scene.sa.state) == before


@pytest.mark.parametrize("state", [S.ESTABLISHED, S.DELETING, S.DELETED])
def test_the_last_request_is_answered_again_in_every_later_state(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], state: IkeSaState
) -> None:
    pair = make_pair(make_policy())
    scene = _scene(pair, "sun", state)
    request = next(o for n, o in pair.sent if n == "moon" and o.data[18] == ExchangeType.IKE_AUTH)
    answer = next(o for n, o in pair.sent if n == "sun" and o.data[18] == ExchangeType.IKE_AUTH)
    before = (scene.host.snapshot(), scene.sa.state)
    scene.host.endpoint.receive_datagram(request.data, scene.path, 0.0)
    assert scene.host.take_outputs() == [SendDatagram(path=scene.path, data=answer.data)]
    assert (scene.host.snapshot(), scene.sa.state) == before
