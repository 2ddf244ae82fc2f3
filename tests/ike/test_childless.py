"""IKE SAs that begin without a Child SA (RFC 6023)."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from xfrmpy.ike.agreement import Agreement
from xfrmpy.ike.childless import CHILDLESS_SECONDS
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.outputs import ChildSaEstablished, RequestRefused, TunnelClosed
from xfrmpy.ike.states import IkeSaState
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import Message, decode_message_untrusted
from xfrmpy.wire.payloads import (
    AuthPayload,
    DeletePayload,
    IdrPayload,
    KePayload,
    NotifyPayload,
    SaPayload,
    TsiPayload,
    TsrPayload,
)

CHILD_PAYLOADS = (SaPayload, TsiPayload, TsrPayload)
SUPPORTED = NotifyPayload(type=NotifyType.CHILDLESS_IKEV2_SUPPORTED)


def leave_out(sealing: Any, *kinds: type) -> None:
    """Moon's IKE_AUTH request lacks payloads."""

    def without(message: Message, payloads: Any) -> Any:
        if message.is_response or message.exchange is not ExchangeType.IKE_AUTH:
            return payloads
        return tuple(p for p in payloads if not isinstance(p, kinds))

    sealing.change = without


@pytest.fixture
def childless(pair: Any, sealing: Any) -> Any:
    """Sun has answered a request without a Child SA; moon has not heard the answer."""
    leave_out(sealing, *CHILD_PAYLOADS)
    pair.initiate()
    for sender, receiver in ((pair.moon, pair.sun), (pair.sun, pair.moon), (pair.moon, pair.sun)):
        pair._carry(sender, receiver)
    pair.impair = lambda _output, _sender: []
    pair.sun.take_outputs()
    return pair


def test_a_responder_says_that_it_takes_childless_requests(pair: Any) -> None:
    pair.up()
    request, response = (decode_message_untrusted(output.data) for _, output in pair.sent[:2])
    assert SUPPORTED in response.payloads
    assert SUPPORTED not in request.payloads


def test_a_request_without_a_child_sa_makes_an_ike_sa_without_one(
    childless: Any, sealing: Any
) -> None:
    (view,) = childless.sun.views
    assert view.state is IkeSaState.ESTABLISHED
    assert view.children == ()
    assert not childless.sun.reports(ChildSaEstablished)
    (answer,) = sealing.answers(ExchangeType.IKE_AUTH)
    kinds = [type(p) for p in answer if not isinstance(p, NotifyPayload)]
    assert kinds == [IdrPayload, AuthPayload]
    assert childless.sun.datapath.dump().sad == ()
    assert childless.sun.datapath.dump().spd == ()


def test_a_request_with_a_child_sa_is_answered_with_one(pair: Any, sealing: Any) -> None:
    """RFC 6023: a responder does not leave out what the initiator did not leave out."""
    pair.up()
    (answer,) = sealing.answers(ExchangeType.IKE_AUTH)
    kinds = [type(p) for p in answer if not isinstance(p, NotifyPayload)]
    assert kinds[2:] == list(CHILD_PAYLOADS)


@pytest.mark.parametrize(
    "kinds",
    [kinds for count in (1, 2) for kinds in combinations(CHILD_PAYLOADS, count)],
    ids=lambda kinds: "-".join(kind.__name__ for kind in kinds),
)
def test_half_a_child_sa_is_none(pair: Any, sealing: Any, kinds: tuple[type, ...]) -> None:
    leave_out(sealing, *kinds)
    pair.up()
    assert pair.sun.views == ()
    (refused,) = pair.sun.reports(RequestRefused)
    assert refused.failure.code == "XF2008"
    pair.assert_down()


def test_who_cannot_prove_itself_gets_no_childless_ike_sa(
    make_pair: Any, make_policy: Any, make_mirror: Any, sealing: Any
) -> None:
    moon = make_policy()
    pair = make_pair(moon, make_mirror(make_policy(key=b"another key of thirty-two octets")))
    leave_out(sealing, *CHILD_PAYLOADS)
    pair.up()
    assert pair.sun.views == ()
    assert pair.sun.reports(RequestRefused)[0].failure.code == "XF2006"


def test_an_ike_sa_that_stays_without_a_child_sa_is_closed_and_the_peer_told(
    childless: Any, sealing: Any
) -> None:
    begun_at = childless.now
    childless.run(CHILDLESS_SECONDS - 1)
    assert childless.sun.ike_sa.state is IkeSaState.ESTABLISHED
    childless.run(1.5)
    (closed,) = childless.sun.reports(TunnelClosed)
    assert closed.failure.code == "XF2023"
    assert childless.now - begun_at < CHILDLESS_SECONDS + 1
    assert any(isinstance(p, DeletePayload) for _, payloads in sealing.sent for p in payloads)
    childless.run(120)
    assert childless.sun.ike_sas == []


@pytest.mark.parametrize("by", ["policy", "datapath"])
def test_an_ike_sa_whose_first_child_sa_we_refused_waits_as_long_for_another(
    make_pair: Any, make_policy: Any, make_mirror: Any, by: str
) -> None:
    esp = "aes128gcm16" if by == "datapath" else "aes256-sha256"
    pair = make_pair(make_policy(), make_mirror(make_policy(esp=esp)))
    pair.initiate()
    if by == "datapath":
        pair.sun.datapath.refuse("add_sa in", reason="no memory")
    for sender, receiver in ((pair.moon, pair.sun), (pair.sun, pair.moon), (pair.moon, pair.sun)):
        pair._carry(sender, receiver)
    pair.impair = lambda _output, _sender: []
    pair.run(CHILDLESS_SECONDS - 1)
    assert pair.sun.ike_sa.state is IkeSaState.ESTABLISHED
    pair.run(1.5)
    (closed,) = pair.sun.reports(TunnelClosed)
    assert closed.failure.code == "XF2023"
    pair.run(200)
    assert pair.sun.ike_sas == []


def test_an_ike_sa_without_a_child_sa_wins_no_time_by_a_rekeying(childless: Any) -> None:
    sun = childless.sun.ike_sa
    agreement = Agreement(chosen=sun.proposal, nonces=sun.nonces, secrets=(bytes(32),))
    new = sun.successor(agreement, spis=(b"s" * 8, b"m" * 8), is_initiator=True, now=9.0)
    assert new.childless_until == sun.childless_until == CHILDLESS_SECONDS


def test_an_ike_sa_that_got_a_child_sa_in_time_stays(pair: Any) -> None:
    """As when CREATE_CHILD_SA makes it: the IKE SA only looks whether it has one."""
    pair.up()
    pair.sun.ike_sa.expect_child(pair.now)
    pair.run(CHILDLESS_SECONDS * 4)
    pair.assert_up()
    assert not pair.sun.reports(TunnelClosed)


def test_a_childless_ike_sa_that_is_deleted_in_time_ends_once(childless: Any) -> None:
    childless.sun.endpoint.terminate("tunnel-a", childless.now)
    childless.run(200)
    (closed,) = childless.sun.reports(TunnelClosed)
    assert closed.failure is None
    assert childless.sun.ike_sas == []


def test_a_repeated_childless_request_gets_the_same_answer(childless: Any) -> None:
    (auth,) = (o for name, o in childless.sent[-1:] if name == "moon")
    before = childless.sun.snapshot()
    childless.impair = lambda output, _sender: [output.data]
    childless.sun.outputs.clear()
    path = childless.sun.ike_sa.path
    childless.sun.endpoint.receive_datagram(auth.data, path, childless.now)
    assert len(childless.sun.take_outputs()) == 1
    assert childless.sun.snapshot() == before
    assert DropReason.WRONG_STATE not in childless.sun.drops


# As initiator.


@pytest.fixture
def wants(make_pair: Any, make_policy: Any) -> Any:
    """Moon begins without a Child SA; each Child SA has a key exchange."""
    return make_pair(replace(make_policy(esp="aes128gcm16-x25519"), childless=True))


def test_an_initiator_makes_the_child_sa_after_the_ike_sa(wants: Any, sealing: Any) -> None:
    wants.up()
    wants.assert_up()
    assert [m.exchange for m, _ in sealing.sent if not m.is_response] == [
        ExchangeType.IKE_AUTH,
        ExchangeType.CREATE_CHILD_SA,
    ]
    assert not any(isinstance(p, CHILD_PAYLOADS) for p in sealing.sent[0][1])
    assert any(isinstance(p, KePayload) for p in sealing.sent[2][1])
    wants.run(CHILDLESS_SECONDS * 4)
    wants.assert_up()


def test_an_initiator_leaves_nothing_out_if_the_peer_does_not_know_of_it(
    wants: Any, sealing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 6023: it must not, if the notification was not in the IKE_SA_INIT response."""
    other = NotifyPayload(type=NotifyType.HTTP_CERT_LOOKUP_SUPPORTED)
    monkeypatch.setattr("xfrmpy.ike.init.childless_supported", lambda: other)
    wants.up()
    wants.assert_up()
    assert any(isinstance(p, SaPayload) for p in sealing.sent[0][1])


def test_a_refused_first_child_sa_ends_the_ike_sa(
    make_pair: Any, make_policy: Any, make_mirror: Any
) -> None:
    moon = replace(make_policy(), childless=True)
    pair = make_pair(moon, make_mirror(make_policy(esp="aes256-sha256")))
    pair.up()
    pair.run(1)
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2003"
    pair.run(200)
    pair.assert_forgotten()


def test_a_childless_ike_sa_takes_the_place_of_another(wants: Any) -> None:
    """A reauthentication: the old one goes when the new one has its Child SA."""
    wants.up()
    old = wants.moon.ike_sa.our_spi
    wants.moon.endpoint.reauthenticate("tunnel-a", wants.now)
    wants.run(20)
    wants.assert_up()
    assert wants.moon.ike_sa.our_spi != old
    assert wants.moon.ike_sa.replaces is None
