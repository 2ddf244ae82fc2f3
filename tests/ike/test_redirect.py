"""Gateways that send their clients on, and clients that go (RFC 5685)."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ike.childless import CHILDLESS_SECONDS
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.outputs import (
    ChildSaEstablished,
    IkeSaEstablished,
    Redirected,
    RequestRefused,
    SendDatagram,
    TunnelClosed,
)
from xfrmpy.ike.redirect import MAX_REDIRECTS, REDIRECT_LOOP_DETECT_PERIOD
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.addresses import IKE_PORT, IpAddress, Path, SocketAddress
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import Message, decode_message_untrusted, encode_message
from xfrmpy.wire.payloads import (
    AuthPayload,
    DeletePayload,
    IdrPayload,
    NoncePayload,
    NotifyPayload,
    SaPayload,
)
from xfrmpy.wire.redirect import (
    Redirect,
    decode_redirect_untrusted,
    decode_redirected_from_untrusted,
)

FIRST, OTHER = ip_address("192.0.2.2"), ip_address("192.0.2.22")
HERE = ip_address("192.0.2.1")
ELSEWHERE = NotifyPayload(type=NotifyType.REDIRECT, data=Redirect(gateway=OTHER).encode())


@pytest.fixture
def pair(make_pair: Any, make_policy: Any, make_mirror: Any) -> Any:
    """Sun has two addresses, and sends those that come to the first on to the other."""
    moon = make_policy()
    return make_pair(moon, replace(make_mirror(moon), redirect_to=str(OTHER)))


@pytest.fixture
def up(make_pair: Any, make_policy: Any) -> Any:
    pair = make_pair(make_policy())
    pair.up()
    pair.assert_up()
    return pair


def follow(pair: Any) -> None:
    """What the daemon does: go where the last redirect sends us."""
    redirect = pair.moon.reports(Redirected)[-1]
    path = Path(
        local=SocketAddress(HERE, IKE_PORT), remote=SocketAddress(redirect.gateway, IKE_PORT)
    )
    pair.moon.endpoint.initiate("tunnel-a", path, pair.now, redirect.original)
    pair.deliver()


def clear(pair: Any) -> list[Message]:
    messages = (decode_message_untrusted(output.data) for _, output in pair.sent)
    return [message for message in messages if message.sealed is None]


def notified(payloads: Any, kind: NotifyType) -> list[NotifyPayload]:
    return [p for p in payloads if isinstance(p, NotifyPayload) and p.type == kind]


# IKE_SA_INIT (section 3).


def test_a_client_is_redirected_and_served_where_it_is_sent(pair: Any) -> None:
    pair.up()
    assert pair.moon.reports(Redirected) == [
        Redirected(tunnel="tunnel-a", gateway=OTHER, original=FIRST)
    ]
    assert pair.moon.views == pair.sun.views == ()
    follow(pair)
    pair.assert_up()
    assert pair.moon.views[0].path.remote.address == OTHER
    assert not pair.moon.reports(TunnelClosed)


def test_the_redirect_has_the_nonce_and_no_state_is_kept(pair: Any) -> None:
    pair.up()
    request, response = clear(pair)
    (nonce,) = (p for p in request.payloads if isinstance(p, NoncePayload))
    (payload,) = response.payloads
    assert isinstance(payload, NotifyPayload)
    assert decode_redirect_untrusted(payload.data) == Redirect(gateway=OTHER, nonce=nonce.data)
    assert (payload.protocol, payload.spi) == (0, b"")
    assert response.spi_r == bytes(8)
    assert pair.sun.ike_sas == []


def test_support_is_announced_at_first_and_the_first_gateway_named_then(pair: Any) -> None:
    pair.up()
    follow(pair)
    first, _, second, _ = clear(pair)
    assert notified(first.payloads, NotifyType.REDIRECT_SUPPORTED)
    assert not notified(first.payloads, NotifyType.REDIRECTED_FROM)
    (named,) = notified(second.payloads, NotifyType.REDIRECTED_FROM)
    assert decode_redirected_from_untrusted(named.data) == FIRST


def come_from(pair: Any, origin: IpAddress) -> None:
    """Another gateway has sent moon to the first address of sun."""
    path = Path(local=SocketAddress(HERE, IKE_PORT), remote=SocketAddress(FIRST, IKE_PORT))
    pair.moon.endpoint.initiate("tunnel-a", path, pair.now, origin)
    pair.deliver()


def test_a_gateway_reports_which_one_has_sent_its_client(pair: Any) -> None:
    pair.up()
    follow(pair)
    (established,) = pair.sun.reports(IkeSaEstablished)
    assert established.redirected_from == FIRST
    (ours,) = pair.moon.reports(IkeSaEstablished)
    assert ours.redirected_from is None


def test_nobody_is_sent_back_to_the_gateway_that_has_sent_him(pair: Any) -> None:
    """RFC 5685 section 7: "two or more gateways redirecting the client to each other"."""
    come_from(pair, OTHER)
    pair.assert_up()
    assert not pair.moon.reports(Redirected)


def test_who_was_sent_by_a_third_gateway_may_be_sent_on(pair: Any) -> None:
    """Section 3: "The client MAY get redirected again"."""
    come_from(pair, ip_address("192.0.2.33"))
    assert [report.gateway for report in pair.moon.reports(Redirected)] == [OTHER]


@pytest.mark.parametrize("octets", ["", "0104c00002", "0304737562", "0104c000020201"])
def test_a_request_from_no_address_at_all_is_none(
    pair: Any, monkeypatch: pytest.MonkeyPatch, octets: str
) -> None:
    data = bytes.fromhex(octets)
    monkeypatch.setattr("xfrmpy.ike.redirect.encode_redirected_from", lambda _origin: data)
    come_from(pair, OTHER)
    assert pair.sun.drops == [DropReason.MALFORMED]
    assert pair.sun.ike_sas == []


def test_a_client_that_cannot_be_redirected_is_served(pair: Any, make_policy: Any) -> None:
    pair.moon.policy = replace(make_policy(), redirect=False)
    pair.moon.start()
    pair.up()
    pair.assert_up()
    assert not notified(clear(pair)[0].payloads, NotifyType.REDIRECT_SUPPORTED)


def test_the_policy_of_the_tunnel_is_the_same_wherever_it_goes(pair: Any) -> None:
    """Section 3: a redirect "MUST NOT result in the modification of any PAD or SPD entries"."""
    before = pair.moon.endpoint._core.tunnels["tunnel-a"]
    policy, addresses = before.policy, before.peer_addresses
    pair.up()
    follow(pair)
    after = pair.moon.endpoint._core.tunnels["tunnel-a"]
    assert (after.policy, after.peer_addresses) == (policy, addresses)


def test_the_new_gateway_must_prove_the_same_identity(
    pair: Any, make_policy: Any, make_mirror: Any
) -> None:
    pair.up()
    pair.sun.policy = make_mirror(make_policy(there="venus"))
    pair.sun.start()
    follow(pair)
    assert pair.moon.views == ()
    assert not pair.moon.reports(IkeSaEstablished)


@pytest.mark.parametrize("nonce", [b"", bytes(16), bytes(32)], ids=["none", "shorter", "another"])
def test_a_redirect_without_our_nonce_is_ignored(
    make_pair: Any, make_policy: Any, make_answer: Any, nonce: bytes
) -> None:
    """Section 3: it "MUST silently discard the response (and keep waiting for another)"."""
    pair = make_pair(make_policy())
    pair.initiate()
    (request,) = (o for o in pair.moon.take_outputs() if isinstance(o, SendDatagram))
    forged = NotifyPayload(
        type=NotifyType.REDIRECT, data=Redirect(gateway=OTHER, nonce=nonce).encode()
    )
    answer = make_answer(request.data, forged)
    pair.moon.endpoint.receive_datagram(answer, request.path, pair.now)
    assert pair.moon.take_outputs() == []
    assert pair.moon.drops == [DropReason.MALFORMED]
    assert not pair.moon.reports(Redirected)
    back = replace(request.path, local=request.path.remote, remote=request.path.local)
    pair.sun.endpoint.receive_datagram(request.data, back, pair.now)
    pair.deliver()
    pair.assert_up()


def test_a_redirect_that_was_not_asked_for_is_ignored(
    make_pair: Any, make_policy: Any, make_answer: Any
) -> None:
    pair = make_pair(replace(make_policy(), redirect=False))
    pair.initiate()
    (request,) = pair.moon.take_outputs()
    message = decode_message_untrusted(request.data)
    (nonce,) = (p.data for p in message.payloads if isinstance(p, NoncePayload))
    right = NotifyPayload(
        type=NotifyType.REDIRECT, data=Redirect(gateway=OTHER, nonce=nonce).encode()
    )
    answer = make_answer(request.data, right)
    pair.moon.endpoint.receive_datagram(answer, request.path, pair.now)
    pair.moon.take_outputs()
    assert pair.moon.drops == [DropReason.MALFORMED]
    assert pair.moon.ike_sa.state is IkeSaState.INITIATING


# Loops (section 7).


def test_so_many_redirects_are_followed_and_no_more(pair: Any) -> None:
    for _ in range(MAX_REDIRECTS):
        pair.up()
    assert len(pair.moon.reports(Redirected)) == MAX_REDIRECTS
    pair.up()
    pair.run(3)
    assert len(pair.moon.reports(Redirected)) == MAX_REDIRECTS
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2022"


def test_after_a_while_redirects_are_followed_again(pair: Any) -> None:
    for _ in range(MAX_REDIRECTS):
        pair.up()
    pair.run(REDIRECT_LOOP_DETECT_PERIOD)
    pair.up()
    assert len(pair.moon.reports(Redirected)) == MAX_REDIRECTS + 1


def test_an_established_tunnel_that_has_been_sent_about_too_often_stays(
    up: Any, make_ask: Any
) -> None:
    followed = deque([up.now] * MAX_REDIRECTS, maxlen=MAX_REDIRECTS)
    up.moon.endpoint._core.redirects["tunnel-a"] = followed
    ask = make_ask(ExchangeType.INFORMATIONAL, ELSEWHERE).on(up.sun)
    up.deliver()
    assert ask.answer == ()
    assert not up.moon.reports(Redirected)
    assert up.moon.reports(RequestRefused)[0].failure.code == "XF2022"
    up.assert_up()


# IKE_AUTH (section 6).


@pytest.fixture
def told_in_auth(pair: Any) -> Any:
    """Two tunnels of sun are for moon's address; which it is shows in IKE_AUTH only."""
    core = pair.sun.endpoint._core
    tunnel = core.tunnels["tunnel-a"]
    other = replace(pair.sun.policy, name="tunnel-b", redirect_to=None, remote_id=None)
    core.tunnels["tunnel-b"] = replace(tunnel, policy=other)
    return pair


def test_a_client_is_redirected_when_it_has_proved_who_it_is(
    told_in_auth: Any, sealing: Any
) -> None:
    pair = told_in_auth
    pair.up()
    (answer,) = sealing.answers(ExchangeType.IKE_AUTH)
    assert [type(p) for p in answer] == [IdrPayload, AuthPayload, NotifyPayload]
    assert answer[2] == ELSEWHERE  # Section 9.2: no nonce here.
    assert len(pair.moon.reports(Redirected)) == 1
    assert not pair.moon.reports(ChildSaEstablished)
    assert any(isinstance(p, DeletePayload) for _, ps in sealing.sent for p in ps)
    pair.assert_down()
    follow(pair)
    pair.assert_up()


def test_nobody_is_sent_back_in_ike_auth_either(told_in_auth: Any) -> None:
    come_from(told_in_auth, OTHER)
    told_in_auth.assert_up()
    assert not told_in_auth.moon.reports(Redirected)


def test_who_has_not_proved_himself_is_not_redirected(
    told_in_auth: Any, make_policy: Any, sealing: Any
) -> None:
    """Section 6: "The gateway MUST verify the client's AUTH payload before"."""
    pair = told_in_auth
    pair.moon.policy = make_policy(key=b"another key of thirty-two octets")
    pair.moon.start()
    pair.up()
    (answer,) = sealing.answers(ExchangeType.IKE_AUTH)
    assert [p.type for p in answer] == [NotifyType.AUTHENTICATION_FAILED]


def test_a_redirect_of_a_gateway_that_has_not_proved_itself_is_not_followed(
    told_in_auth: Any, sealing: Any
) -> None:
    """Section 6: "the client MUST verify the gateway's AUTH payload before acting"."""

    def forge(message: Message, payloads: Any) -> Any:
        if not message.is_response:
            return payloads
        return tuple(
            replace(p, data=bytes(32)) if isinstance(p, AuthPayload) else p for p in payloads
        )

    sealing.change = forge
    told_in_auth.up()
    assert not told_in_auth.moon.reports(Redirected)
    (closed,) = told_in_auth.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2006"


def test_a_client_that_does_not_go_is_not_kept(told_in_auth: Any) -> None:
    pair = told_in_auth
    pair.impair = lambda output, _sender: [output.data] if len(pair.sent) <= 4 else []
    pair.up()
    assert [v.state for v in pair.sun.views] == [IkeSaState.ESTABLISHED]
    pair.run(CHILDLESS_SECONDS + 200)
    assert pair.sun.ike_sas == []


def test_a_client_whose_policy_does_not_follow_is_served_in_ike_auth_too(
    told_in_auth: Any, make_policy: Any
) -> None:
    pair = told_in_auth
    pair.moon.policy = replace(make_policy(), redirect=False)
    pair.moon.start()
    pair.up()
    pair.assert_up()


def test_a_redirect_in_ike_auth_against_our_policy_ends_the_attempt(
    make_pair: Any, make_policy: Any, sealing: Any
) -> None:
    sealing.change = lambda message, payloads: (
        (*payloads[:2], ELSEWHERE) if message.is_response else payloads
    )
    pair = make_pair(replace(make_policy(), redirect=False))
    pair.up()
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2022"
    assert not pair.moon.reports(Redirected)


# In the middle of a session (section 5).


def test_a_gateway_moves_its_clients(up: Any, sealing: Any) -> None:
    assert up.sun.endpoint.redirect("tunnel-a", str(OTHER), up.now) == 1
    up.deliver()
    sent = [(m.is_response, payloads) for m, payloads in sealing.sent]
    assert sent[0] == (False, (ELSEWHERE,))
    assert sent[1] == (True, ())  # The answer first, and then the Delete.
    assert [type(p) for p in sent[2][1]] == [DeletePayload]
    up.assert_down()
    assert up.moon.reports(Redirected) == [
        Redirected(tunnel="tunnel-a", gateway=OTHER, original=FIRST)
    ]
    follow(up)
    up.assert_up()
    assert up.moon.views[0].path.remote.address == OTHER


def test_a_gateway_may_be_named(up: Any) -> None:
    up.sun.endpoint.redirect("tunnel-a", "vpn2.example.org", up.now)
    up.deliver()
    assert up.moon.reports(Redirected)[0].gateway == "vpn2.example.org"


def test_only_the_responder_redirects(up: Any, make_ask: Any) -> None:
    """Section 10: "only the original responder can redirect the original initiator"."""
    assert up.moon.endpoint.redirect("tunnel-a", str(OTHER), up.now) == 0
    ask = make_ask(ExchangeType.INFORMATIONAL, ELSEWHERE).on(up.moon)
    up.deliver()
    assert ask.answer == ()
    assert not up.sun.reports(Redirected)
    up.assert_up()


def test_a_client_that_has_not_said_that_it_can_is_not_moved(
    make_pair: Any, make_policy: Any
) -> None:
    pair = make_pair(replace(make_policy(), redirect=False))
    pair.up()
    assert pair.sun.endpoint.redirect("tunnel-a", str(OTHER), pair.now) == 0
    pair.assert_up()


def test_a_client_whose_policy_does_not_follow_stays(
    make_pair: Any, make_policy: Any, make_ask: Any
) -> None:
    pair = make_pair(replace(make_policy(), redirect=False))
    pair.up()
    make_ask(ExchangeType.INFORMATIONAL, ELSEWHERE).on(pair.sun)
    pair.deliver()
    assert pair.moon.reports(RequestRefused)[0].failure.code == "XF2022"
    pair.assert_up()


def test_a_redirect_with_a_nonce_in_a_session_is_wrong(up: Any, make_ask: Any) -> None:
    """Section 5: "The gateway MUST NOT include any nonce data"."""
    data = Redirect(gateway=OTHER, nonce=bytes(32)).encode()
    wrong = NotifyPayload(type=NotifyType.REDIRECT, data=data)
    ask = make_ask(ExchangeType.INFORMATIONAL, wrong).on(up.sun)
    up.deliver()
    assert [p.type for p in ask.answer] == [NotifyType.INVALID_SYNTAX]
    assert not up.moon.reports(Redirected)


def test_a_redirect_in_clear_moves_nobody(up: Any) -> None:
    sa = up.moon.ike_sa
    message = Message(
        spi_i=sa.channel.spi_i,
        spi_r=sa.channel.spi_r,
        exchange=ExchangeType.INFORMATIONAL,
        is_response=False,
        is_initiator=False,
        message_id=0,
        payloads=(ELSEWHERE,),
    )
    up.moon.endpoint.receive_datagram(encode_message(message), sa.path, up.now)
    up.moon.take_outputs()
    assert up.moon.drops == [DropReason.NOT_PROTECTED]
    up.assert_up()


def test_a_normal_answer_has_no_redirect(up: Any) -> None:
    response = clear(up)[1]
    assert not notified(response.payloads, NotifyType.REDIRECT)
    assert any(isinstance(p, SaPayload) for p in response.payloads)


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_who_redirects_whom_is_the_same_after_a_rekeying(up: Any, end: str) -> None:
    getattr(up, end).endpoint.rekey_ike_sas("tunnel-a", up.now)
    up.run(1)
    assert up.moon.endpoint.redirect("tunnel-a", str(OTHER), up.now) == 0
    assert up.sun.endpoint.redirect("tunnel-a", str(OTHER), up.now) == 1
    up.deliver()
    assert len(up.moon.reports(Redirected)) == 1
