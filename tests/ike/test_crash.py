"""Quick crash detection between two ends: who proves what, and who believes it (RFC 6290)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.crash import (
    LEAST_TOKEN,
    MAX_TOKENS,
    MOST_TOKEN,
    PROOFS_PER_SECOND,
    TOKEN_SIZE,
    TokenMaker,
    offer_token,
)
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.informational import LivenessCheck
from xfrmpy.ike.notices import MOST_NOTICES, NOTICES_PER_SECOND, PROOF_EXCESS
from xfrmpy.ike.outputs import SendDatagram, TunnelClosed
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.addresses import Path, SocketAddress
from xfrmpy.registry import ExchangeType, NotifyType, ProtocolId
from xfrmpy.wire.message import Message, decode_message_untrusted, encode_message
from xfrmpy.wire.payloads import NotifyPayload

QCD = NotifyType.QUICK_CRASH_DETECTION
LOST = NotifyPayload(type=NotifyType.INVALID_IKE_SPI)
SMALLEST_REQUEST = 57
"""Octets of an empty request, sealed with AES-GCM."""


@pytest.fixture
def up(make_pair: Any, make_policy: Any) -> Any:
    """Moon and sun up, each with a secret that survives a crash."""
    pair = make_pair(make_policy(), secrets=True)
    pair.up()
    pair.assert_up()
    return pair


def tokens(payloads: Any) -> list[NotifyPayload]:
    return [p for p in payloads if isinstance(p, NotifyPayload) and p.type == QCD]


def ask(pair: Any, host: Any) -> SendDatagram:
    """A liveness check of a host, on its way."""
    host.ike_sa.start(LivenessCheck(host.ike_sa), pair.now)
    (request,) = host.take_outputs()
    assert isinstance(request, SendDatagram)
    return request


def give(pair: Any, host: Any, request: SendDatagram, **changes: Any) -> list[SendDatagram]:
    """What a host sends when it receives a datagram of the other, after what has been changed."""
    data = request.data
    if changes:
        data = encode_message(replace(decode_message_untrusted(data), **changes))
    path = Path(local=request.path.remote, remote=request.path.local)
    host.endpoint.receive_datagram(data, path, pair.now)
    sent: list[SendDatagram] = host.take_outputs()
    return sent


def show(pair: Any, host: Any, *payloads: NotifyPayload, **changes: Any) -> None:
    """Give a host a message in clear on its IKE SA."""
    sa = host.ike_sa
    message = Message(
        spi_i=sa.channel.spi_i,
        spi_r=sa.channel.spi_r,
        exchange=ExchangeType.INFORMATIONAL,
        is_response=True,
        is_initiator=not sa.is_initiator,
        message_id=2,
        payloads=payloads,
    )
    data = encode_message(replace(message, **changes))
    host.endpoint.receive_datagram(data, sa.path, pair.now)
    host.take_outputs()


def their_token(host: Any) -> NotifyPayload:
    (token,) = host.ike_sa.their_tokens.tokens
    return NotifyPayload(type=QCD, data=token, protocol=ProtocolId.IKE)


# The way of a token (sections 4.1 and 4.2).


def test_each_end_gives_the_other_its_token_behind_auth(
    make_pair: Any, make_policy: Any, sealing: Any
) -> None:
    pair = make_pair(make_policy(), secrets=True)
    pair.up()
    (_, request), (_, response) = sealing.sent
    for host, payloads in ((pair.moon, request), (pair.sun, response)):
        kinds = [type(p).__name__ for p in payloads]
        (token,) = tokens(payloads)
        assert kinds[payloads.index(token) - 1 :][:3] == [
            "AuthPayload",
            "NotifyPayload",
            "SaPayload",
        ]
        assert (token.protocol, token.spi) == (ProtocolId.IKE, b"")
        assert (token,) == offer_token(host.ike_sa)
        assert LEAST_TOKEN <= len(token.data) <= MOST_TOKEN
    assert their_token(pair.moon).data == offer_token(pair.sun.ike_sa)[0].data
    assert their_token(pair.sun).data == offer_token(pair.moon.ike_sa)[0].data


def test_an_end_without_a_secret_gives_no_token_and_takes_the_peers(
    make_pair: Any, make_policy: Any
) -> None:
    """Section 4.2: the lack of a token "MUST NOT be taken as an indication" of anything."""
    pair = make_pair(make_policy(), secrets=True)
    pair.moon.secret = b""
    pair.moon.start()
    pair.up()
    pair.assert_up()
    assert pair.sun.ike_sa.their_tokens is None
    assert pair.moon.ike_sa.their_tokens is not None


def test_the_policy_turns_it_off(make_pair: Any, make_policy: Any, sealing: Any) -> None:
    pair = make_pair(replace(make_policy(), crash_detection=False), secrets=True)
    pair.up()
    pair.assert_up()
    assert not [t for _, payloads in sealing.sent for t in tokens(payloads)]


def test_the_policy_of_one_end_turns_it_off_for_both_directions(
    make_pair: Any, make_policy: Any, make_mirror: Any
) -> None:
    moon = make_policy()
    pair = make_pair(moon, replace(make_mirror(moon), crash_detection=False), secrets=True)
    pair.up()
    assert pair.sun.ike_sa.their_tokens is None
    assert pair.moon.ike_sa.their_tokens is None


@pytest.mark.parametrize("size", [0, LEAST_TOKEN - 1, MOST_TOKEN + 1])
def test_a_token_of_a_size_that_is_not_allowed_is_not_kept(
    make_pair: Any, make_policy: Any, sealing: Any, size: int
) -> None:
    """Section 5: "at least 16 octets long, and no more than 128"."""

    def resize(_message: Message, payloads: Any) -> Any:
        given = tokens(payloads)
        return tuple(replace(p, data=bytes(size)) if p in given else p for p in payloads)

    sealing.change = resize
    pair = make_pair(make_policy(), secrets=True)
    pair.up()
    pair.assert_up()
    assert pair.moon.ike_sa.their_tokens is pair.sun.ike_sa.their_tokens is None


# Tokens (section 5 and 9.1).


def test_the_same_secret_makes_the_same_token_after_a_restart() -> None:
    before = TokenMaker(b"s").token(b"i" * 8, b"r" * 8)
    after = TokenMaker(b"s").token(b"i" * 8, b"r" * 8)
    assert before == after
    assert len(before) == TOKEN_SIZE


def test_another_secret_or_another_ike_sa_makes_another_token() -> None:
    made = {
        TokenMaker(secret).token(i, r)
        for secret in (b"one", b"other")
        for i in (b"i" * 8, b"j" * 8)
        for r in (b"r" * 8, b"i" * 8)
    }
    assert len(made) == 8


def test_a_token_is_in_no_representation(up: Any) -> None:
    token = their_token(up.moon).data
    shown = repr(up.moon.ike_sa.their_tokens) + repr(up.moon.views)
    assert repr(token) not in shown
    assert token.hex() not in shown


# A crash (sections 3, 4.5).


@pytest.mark.parametrize(("lost", "left"), [("sun", "moon"), ("moon", "sun")])
def test_a_peer_that_crashed_is_noticed_at_the_first_question(
    up: Any, lost: str, left: str
) -> None:
    crashed, host = getattr(up, lost), getattr(up, left)
    crashed.start()
    asked_at = up.now + 30
    up.run(32)
    (closed,) = host.reports(TunnelClosed)
    assert closed.failure is not None
    assert (closed.failure.code, closed.was_established) == ("XF2026", True)
    assert host.views == ()
    assert host.datapath.dump().sad == ()
    assert host.datapath.dump().spd == ()
    answers = [o for name, o in up.sent if name == lost][-1:]
    assert decode_message_untrusted(answers[0].data).payloads[0] == LOST
    assert up.now - asked_at < 3


def test_a_crash_is_not_noticed_so_soon_without_a_secret(make_pair: Any, make_policy: Any) -> None:
    """What plain liveness checks take, for comparison: the same, and every retransmission."""
    pair = make_pair(make_policy())
    pair.up()
    pair.sun.start()
    pair.run(80)
    assert not pair.moon.reports(TunnelClosed)
    pair.run(40)
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2001"


def test_the_ike_sa_is_discarded_silently(up: Any) -> None:
    """Section 4.5: the receiver "MUST silently discard the IKE SA and all associated child SAs"."""
    up.sun.start()
    show(up, up.moon, LOST, their_token(up.moon))
    sent = len(up.sent)
    up.run(60)
    assert len(up.sent) == sent
    assert up.moon.ike_sas == []


def test_the_tunnel_comes_back_after_a_proof(up: Any) -> None:
    up.sun.datapath.sad.clear()
    up.sun.datapath.spd.clear()
    up.sun.start()
    up.run(35)
    assert up.moon.views == ()
    up.up()
    up.assert_up()


def test_the_answer_has_the_spis_and_the_message_id_of_the_request(up: Any) -> None:
    request = ask(up, up.moon)
    up.sun.start()
    (answer,) = give(up, up.sun, request)
    asked, told = map(decode_message_untrusted, (request.data, answer.data))
    assert (told.spi_i, told.spi_r) == (asked.spi_i, asked.spi_r)
    assert (told.message_id, told.exchange) == (asked.message_id, asked.exchange)
    assert (told.is_response, told.is_initiator) == (True, not asked.is_initiator)
    assert answer.path.remote == request.path.local


def test_the_answer_is_hardly_larger_than_the_request(up: Any) -> None:
    request = ask(up, up.moon)
    up.sun.start()
    (answer,) = give(up, up.sun, request)
    assert len(request.data) == SMALLEST_REQUEST
    assert len(answer.data) - len(request.data) == PROOF_EXCESS


def test_what_is_smaller_than_a_request_can_be_is_not_answered(up: Any) -> None:
    request = ask(up, up.moon)
    up.sun.start()
    sealed = decode_message_untrusted(request.data).sealed
    assert sealed is not None
    shorter = replace(sealed, sealed=sealed.sealed[:-1])
    assert give(up, up.sun, request, payloads=(shorter,)) == []
    assert up.sun.drops == [DropReason.UNKNOWN_SPI]


# A token of a living IKE SA is shown to nobody (section 9.2).


@pytest.mark.parametrize(
    "disguise",
    [
        {"is_initiator": False},
        {"is_initiator": True},
        {"message_id": 7},
        {"exchange": ExchangeType.IKE_AUTH},
    ],
    ids=str,
)
@pytest.mark.parametrize("end", ["moon", "sun"])
def test_the_token_of_a_living_ike_sa_is_never_shown(
    up: Any, end: str, disguise: dict[str, Any]
) -> None:
    asker, asked = (up.moon, up.sun) if end == "sun" else (up.sun, up.moon)
    request = ask(up, asker)
    for sent in give(up, asked, request, **disguise):
        assert decode_message_untrusted(sent.data).sealed is not None


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_the_token_is_not_shown_to_who_exchanges_the_spis(up: Any, end: str) -> None:
    asker, asked = (up.moon, up.sun) if end == "sun" else (up.sun, up.moon)
    request = ask(up, asker)
    channel = asker.ike_sa.channel
    turned = {"spi_i": channel.spi_r, "spi_r": channel.spi_i}
    for flag in (True, False):
        assert give(up, asked, request, is_initiator=flag, **turned) == []


def test_a_token_is_not_shown_while_the_deleted_ike_sa_lingers(up: Any) -> None:
    request = ask(up, up.moon)
    up.sun.ike_sa.close(None, up.now)
    up.sun.take_outputs()
    give(up, up.sun, request)
    for flag in (True, False):
        assert give(up, up.sun, request, is_initiator=flag) == []


@pytest.mark.parametrize(
    "disguise",
    [
        {"is_response": True},
        {"spi_i": bytes(8)},
        {"exchange": ExchangeType.IKE_SA_INIT},
        {"payloads": (NotifyPayload(type=NotifyType.COOKIE, data=bytes(64)),)},
    ],
    ids=["response", "no SPI", "IKE_SA_INIT", "in clear"],
)
def test_what_is_no_sealed_request_is_not_answered(up: Any, disguise: dict[str, Any]) -> None:
    request = ask(up, up.moon)
    up.sun.start()
    assert give(up, up.sun, request, **disguise) == []


# Floods (section 8.1).


def test_one_address_is_answered_so_often_and_no_more(up: Any) -> None:
    request = ask(up, up.moon)
    up.sun.start()
    answers = [give(up, up.sun, request) for _ in range(100)]
    assert sum(map(len, answers)) == MOST_NOTICES
    assert up.sun.drops == [DropReason.UNKNOWN_SPI] * 100
    up.now += 1
    answers = [give(up, up.sun, request) for _ in range(100)]
    assert sum(map(len, answers)) == NOTICES_PER_SECOND


def test_a_flood_from_one_address_leaves_most_others_their_answers(up: Any) -> None:
    request = ask(up, up.moon)
    up.sun.start()
    for _ in range(100):
        give(up, up.sun, request)
    answered = 0
    for number in range(100):
        source = replace(request.path.local, address=request.path.local.address + 256 + number)
        elsewhere = replace(request, path=replace(request.path, local=source))
        answered += len(give(up, up.sun, elsewhere))
    assert answered > 80


def test_tokens_are_verified_so_often_and_no_more(up: Any) -> None:
    before = up.moon.snapshot()
    wrong = replace(their_token(up.moon), data=bytes(TOKEN_SIZE))
    for _ in range(50):
        show(up, up.moon, LOST, wrong)
    assert up.moon.drops.count(DropReason.WRONG_TOKEN) == PROOFS_PER_SECOND
    assert up.moon.drops.count(DropReason.RATE_LIMIT) == 50 - PROOFS_PER_SECOND
    assert up.moon.snapshot() == before


# What is believed (section 4.5).


def changed(token: NotifyPayload, at: int) -> NotifyPayload:
    data = bytearray(token.data)
    data[at] ^= 1
    return replace(token, data=bytes(data))


WRONG: dict[str, Callable[[NotifyPayload], NotifyPayload]] = {
    "first octet": lambda token: changed(token, 0),
    "last octet": lambda token: changed(token, -1),
    "longer": lambda token: replace(token, data=token.data + b"\0"),
    "shorter": lambda token: replace(token, data=token.data[:-1]),
    "empty": lambda token: replace(token, data=b""),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_token_changes_nothing_and_is_not_answered(up: Any, name: str) -> None:
    """Section 4.5: "a response MUST NOT be sent, and the event may be logged"."""
    before, sent = up.moon.snapshot(), len(up.moon.reports(SendDatagram))
    show(up, up.moon, LOST, WRONG[name](their_token(up.moon)))
    assert up.moon.snapshot() == before
    assert len(up.moon.reports(SendDatagram)) == sent
    assert up.moon.drops == [DropReason.WRONG_TOKEN]
    up.assert_up()


def test_our_own_token_is_no_proof(up: Any) -> None:
    show(up, up.moon, LOST, *offer_token(up.moon.ike_sa))
    assert up.moon.drops == [DropReason.WRONG_TOKEN]
    up.assert_up()


def test_a_token_of_another_ike_sa_is_no_proof(up: Any) -> None:
    up.initiate()
    up.deliver()
    first, second = (sa for sa in up.moon.ike_sas)
    token = NotifyPayload(type=QCD, data=first.their_tokens.tokens[0])
    message = Message(
        spi_i=second.channel.spi_i,
        spi_r=second.channel.spi_r,
        exchange=ExchangeType.INFORMATIONAL,
        is_response=True,
        is_initiator=False,
        message_id=2,
        payloads=(LOST, token),
    )
    up.moon.endpoint.receive_datagram(encode_message(message), second.path, up.now)
    up.moon.take_outputs()
    assert up.moon.drops == [DropReason.WRONG_TOKEN]
    assert second.state is IkeSaState.ESTABLISHED


@pytest.mark.parametrize("at", range(MAX_TOKENS))
def test_any_of_four_tokens_is_enough(up: Any, at: int) -> None:
    """Section 4.5: a taker "MUST support at least four QCD_TOKEN notifications"."""
    token = their_token(up.moon)
    shown = [changed(token, number) for number in range(MAX_TOKENS)]
    shown[at] = token
    show(up, up.moon, LOST, *shown)
    assert up.moon.views == ()


def test_a_token_behind_many_is_not_looked_for(up: Any) -> None:
    token = their_token(up.moon)
    show(up, up.moon, LOST, *(changed(token, number) for number in range(MAX_TOKENS)), token)
    assert up.moon.drops == [DropReason.WRONG_TOKEN]
    up.assert_up()


def test_a_token_is_believed_from_any_address(up: Any) -> None:
    """Section 3: "from any IP address and port combination"."""
    sa = up.moon.ike_sa
    elsewhere = SocketAddress(sa.path.remote.address + 99, 12345)
    data = encode_message(
        Message(
            spi_i=sa.channel.spi_i,
            spi_r=sa.channel.spi_r,
            exchange=ExchangeType.INFORMATIONAL,
            is_response=True,
            is_initiator=False,
            message_id=0,
            payloads=(LOST, their_token(up.moon)),
        )
    )
    up.moon.endpoint.receive_datagram(data, replace(sa.path, remote=elsewhere), up.now)
    assert up.moon.views == ()


FORM: dict[str, dict[str, Any]] = {
    "INVALID_IKE_SPI": {},
    "INVALID_SPI": {"is_response": False},
}
"""How a message is that has the error in clear."""


def error_about(host: Any, error: str) -> NotifyPayload:
    """An error that is about what a host has."""
    if error == "INVALID_IKE_SPI":
        return LOST
    spi = host.ike_sa.children[0].spi_out.to_bytes(4, "big")
    return NotifyPayload(type=NotifyType.INVALID_SPI, data=spi)


def test_a_token_may_come_with_invalid_spi(up: Any) -> None:
    """Sections 4.5 and 8.2: a peer that remembers whose a Child SA was answers ESP with it."""
    invalid = NotifyPayload(type=NotifyType.INVALID_SPI, data=b"\1\2\3\4")
    show(up, up.moon, invalid, their_token(up.moon), is_response=False)
    assert up.moon.views == ()


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_an_error_without_a_token_is_a_hint_and_a_token_without_an_error_is_noise(
    up: Any, end: str
) -> None:
    host = getattr(up, end)
    before = host.snapshot()
    show(up, host, LOST)
    show(up, host, their_token(host))
    assert host.drops == [DropReason.HINT, DropReason.NOT_PROTECTED]
    assert host.snapshot() == before


@pytest.mark.parametrize("error", ["INVALID_IKE_SPI", "INVALID_SPI"])
def test_an_error_with_a_token_that_cannot_be_compared_is_a_hint(
    make_pair: Any, make_policy: Any, error: str
) -> None:
    """Section 4.5: it is sent with the error for those who do not know of tokens, too."""
    pair = make_pair(make_policy())
    pair.up()
    show(
        pair,
        pair.moon,
        error_about(pair.moon, error),
        NotifyPayload(type=QCD, data=bytes(16)),
        **FORM[error],
    )
    assert pair.moon.drops == [DropReason.HINT]
    pair.assert_up()


@pytest.mark.parametrize("error", ["INVALID_IKE_SPI", "INVALID_SPI"])
def test_a_wrong_token_makes_no_hint_of_its_error(up: Any, error: str) -> None:
    """Section 4.5: "a response MUST NOT be sent"; a liveness check would be one of a kind."""
    wrong = replace(their_token(up.moon), data=bytes(TOKEN_SIZE))
    sent = len(up.moon.reports(SendDatagram))
    show(up, up.moon, error_about(up.moon, error), wrong, **FORM[error])
    assert up.moon.drops == [DropReason.WRONG_TOKEN]
    assert len(up.moon.reports(SendDatagram)) == sent


def test_a_token_with_an_spi_of_ours_closes_and_is_no_hint(up: Any) -> None:
    error = error_about(up.moon, "INVALID_SPI")
    show(up, up.moon, error, their_token(up.moon), **FORM["INVALID_SPI"])
    assert up.moon.views == ()
    (closed,) = up.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2026"


def test_the_role_of_the_message_must_be_the_peers(up: Any) -> None:
    show(up, up.moon, LOST, their_token(up.moon), is_initiator=True)
    assert up.moon.drops == [DropReason.UNKNOWN_SPI]
    up.assert_up()


def test_a_token_for_an_ike_sa_that_is_ending_ends_it_at_once(up: Any) -> None:
    up.moon.endpoint.terminate("tunnel-a", up.now)
    up.moon.take_outputs()
    show(up, up.moon, LOST, their_token(up.moon))
    assert up.moon.views == ()
    (closed,) = up.moon.reports(TunnelClosed)
    assert closed.failure is None  # Our operator's wish was the reason.


def test_a_token_shown_twice_closes_once(up: Any) -> None:
    token = their_token(up.moon)
    sa = up.moon.ike_sa
    show(up, up.moon, LOST, token)
    message = Message(
        spi_i=sa.channel.spi_i,
        spi_r=sa.channel.spi_r,
        exchange=ExchangeType.INFORMATIONAL,
        is_response=True,
        is_initiator=False,
        message_id=2,
        payloads=(LOST, token),
    )
    up.moon.endpoint.receive_datagram(encode_message(message), sa.path, up.now)
    up.moon.take_outputs()
    assert len(up.moon.reports(TunnelClosed)) == 1


# Replacing a token (sections 4.3 and 4.4).


def test_a_token_in_a_protected_message_replaces_the_one_before(up: Any, make_ask: Any) -> None:
    old = their_token(up.sun)
    new = NotifyPayload(type=QCD, protocol=ProtocolId.IKE, data=b"n" * 32)
    told = make_ask(ExchangeType.INFORMATIONAL, new).on(up.moon)
    up.deliver()
    assert told.answer == ()
    show(up, up.sun, LOST, old)
    assert up.sun.drops == [DropReason.WRONG_TOKEN]
    show(up, up.sun, LOST, new)
    assert up.sun.views == ()


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_the_tokens_of_a_rekeyed_ike_sa_are_exchanged(up: Any, end: str) -> None:
    """Section 4.3: by the responder in its answer, by the initiator right behind it."""
    old = [their_token(up.moon).data, their_token(up.sun).data]
    getattr(up, end).endpoint.rekey_ike_sas("tunnel-a", up.now)
    up.run(1)
    assert (their_token(up.moon),) == offer_token(up.sun.ike_sa)
    assert (their_token(up.sun),) == offer_token(up.moon.ike_sa)
    assert their_token(up.moon).data not in old
    show(up, up.moon, LOST, their_token(up.moon))
    assert up.moon.views == ()


def test_a_rekeyed_ike_sa_without_secrets_has_no_tokens(pair: Any) -> None:
    pair.up()
    pair.moon.endpoint.rekey_ike_sas("tunnel-a", pair.now)
    pair.run(1)
    assert pair.moon.ike_sa.their_tokens is pair.sun.ike_sa.their_tokens is None
