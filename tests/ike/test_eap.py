"""EAP in IKE_AUTH: who comes in by each method, and the ways in that are none.

Moon is the user, sun the gateway, which proves itself by a key.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from tests.ike.conftest import Ask, Host, Pair, mirrored, tunnel_policy
from tests.keypairs import private_key, public_key
from tests.pki.chains import NOW
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.eap.packet import EapCode, EapPacket, EapType, decode_eap_untrusted
from xfrmpy.eap.server import EapServer
from xfrmpy.failures import Failure
from xfrmpy.ike import eap_initiator, eap_responder
from xfrmpy.ike.auth import IkeAuth
from xfrmpy.ike.eap_authenticator import Accepted, Challenge, Refused
from xfrmpy.ike.eap_methods import server_methods
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.exchange import Exchange
from xfrmpy.ike.ike_sa import HALF_OPEN_SECONDS
from xfrmpy.ike.kept_policy import read_policies, write_policy
from xfrmpy.ike.outputs import AskAaa, IkeSaEstablished, RequestRefused, TunnelClosed
from xfrmpy.ike.proof import eap_proof
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.drift import Dump
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy import model
from xfrmpy.policy.model import (
    EapAcceptance,
    EapCredential,
    EapMethod,
    EapUsers,
    SharedKey,
    TunnelPolicy,
)
from xfrmpy.registry import AuthenticationMethod, ExchangeType, NotifyType
from xfrmpy.wire.payloads import (
    AuthPayload,
    EapPayload,
    IdiPayload,
    NotifyPayload,
    OpenPayload,
    SaPayload,
)

USERS = EapUsers(passwords=((b"carol", "correct horse"), (b"dave@example.org", "x")), origin="test")
METHODS = [method for method in EapMethod if not method.is_tunnel]
SUCCESS = EapPacket(code=EapCode.SUCCESS, identifier=1).encode()
AUTH, IDENTITY = ExchangeType.IKE_AUTH, Identity.of_eap(b"carol")


def policies(
    method: EapMethod = EapMethod.MSCHAPV2,
    *,
    user: str = "carol",
    password: bytes = b"correct horse",
    ours: dict[str, Any] | None = None,
    theirs: dict[str, Any] | None = None,
    **sun: Any,
) -> tuple[TunnelPolicy, TunnelPolicy]:
    """Of moon and sun; `ours` and `theirs` change what they say of EAP, `sun` the tunnel there."""
    plain = replace(tunnel_policy(), shared_key=None)
    key = SharedKey(octets=password, origin="test")
    credential = EapCredential(identity=user, methods=(method,), password=key)
    acceptance = EapAcceptance(methods=tuple(METHODS), users=USERS)
    moon = replace(
        plain,
        local_eap=replace(credential, **(ours or {})),
        remote_key=public_key(KeyKind.ED25519, "sun"),
    )
    gateway = replace(
        mirrored(plain),
        remote_id=None,
        local_key=private_key(KeyKind.ED25519, "sun"),
        remote_eap=replace(acceptance, **(theirs or {})),
    )
    return moon, replace(gateway, **sun)


def pair_of(*args: Any, **changes: Any) -> Pair:
    return Pair(*policies(*args, **changes))


def failures(host: Host) -> list[Failure]:
    closed = [report.failure for report in host.reports(TunnelClosed)]
    refused = [report.failure for report in host.reports(RequestRefused)]
    return [failure for failure in (*closed, *refused) if failure is not None]


def assert_refused(pair: Pair, moon: str, sun: str) -> None:
    """Nothing stands, and each end's operator has this code."""
    pair.assert_down()
    assert not pair.moon.reports(IkeSaEstablished)
    assert not pair.sun.reports(IkeSaEstablished)
    assert [f.code for f in failures(pair.moon)] == [moon]
    assert [f.code for f in failures(pair.sun)] == [sun]


def of_kind(payloads: tuple[OpenPayload, ...], kind: type[Any]) -> list[Any]:
    return [p for p in payloads if isinstance(p, kind)]


def said(sealing: Any, *, is_response: bool) -> list[tuple[OpenPayload, ...]]:
    """What one end has said in IKE_AUTH."""
    return [p for m, p in sealing.sent if m.exchange is AUTH and m.is_response is is_response]


def changed(sealing: Any, *, is_response: bool, number: int, change: Any) -> None:
    """Have the IKE_AUTH message of that number, from 0 on, of one end say something else."""
    seen: list[int] = []

    def alter(message: Any, payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
        if message.exchange is not AUTH or message.is_response is not is_response:
            return payloads
        seen.append(message.message_id)
        return change(payloads) if len(seen) == number + 1 else payloads

    sealing.change = alter


@pytest.mark.parametrize("method", METHODS)
def test_a_user_comes_in_by_each_method(method: EapMethod, sealing: Any) -> None:
    pair = pair_of(method)
    pair.up()
    pair.assert_up()
    assert pair.sun.ike_sa.remote_id == IDENTITY
    assert str(pair.sun.ike_sa.remote_id) == "eap:carol"
    assert pair.sun.ike_sa.eap_serving is None
    first, *_, last = said(sealing, is_response=False)
    assert of_kind(first, SaPayload)
    assert not of_kind(first, AuthPayload)
    assert [type(p) for p in last] == [AuthPayload]
    greeting = said(sealing, is_response=True)[0]
    (proof,), (request,) = of_kind(greeting, AuthPayload), of_kind(greeting, EapPayload)
    assert proof.method == AuthenticationMethod.DIGITAL_SIGNATURE
    assert decode_eap_untrusted(request.data).type == EapType.IDENTITY


def test_a_gateway_may_prove_itself_by_a_shared_key() -> None:
    moon, sun = policies()
    key = SharedKey(octets=b"a key of the gateway's", origin="test")
    pair = Pair(
        replace(moon, shared_key=key, remote_key=None), replace(sun, shared_key=key, local_key=None)
    )
    pair.up()
    pair.assert_up()


def test_the_peers_wishes_of_the_first_request_are_granted_with_the_last(sealing: Any) -> None:
    pair = pair_of()
    pair.up()
    *early, last = said(sealing, is_response=True)
    assert not any(of_kind(p, SaPayload) for p in early)
    assert of_kind(last, SaPayload)
    assert of_kind(last, AuthPayload)


def test_eap_survives_loss() -> None:
    """Every third datagram is lost; each step is repeated, none is taken twice."""
    pair = pair_of()
    count = iter(range(1_000_000))
    pair.impair = lambda output, _: [output.data] if next(count) % 3 else []
    pair.up()
    pair.run(HALF_OPEN_SECONDS)
    pair.assert_up()


def test_a_rekeyed_ike_sa_is_the_users_still() -> None:
    pair = pair_of()
    pair.up()
    pair.moon.endpoint.rekey_ike_sas("tunnel-a", 1.0)
    pair.deliver()
    pair.run(60.0)
    assert [v.remote_id for v in pair.sun.views] == [IDENTITY]
    pair.assert_up()


def test_a_user_authenticates_anew_and_the_tunnel_stays_up() -> None:
    pair = pair_of(reauth_seconds=100.0)
    pair.up()
    before = pair.sun.ike_sa.our_spi
    pair.run(99.0)
    pair.assert_up()
    assert pair.sun.ike_sa.our_spi != before
    assert len(pair.sun.reports(IkeSaEstablished)) == 2


def test_a_gateway_never_calls_a_user() -> None:
    """It could not ask who answers; the user is to call again before the time is over."""
    pair = pair_of(reauth_seconds=100.0)
    pair.up()
    assert not pair.sun.ike_sa.can_begin_anew
    assert pair.sun.ike_sa.reauth_at is None


# Not let in.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("user", "password"), [("carol", b"wrong"), ("mallory", b"x")])
def test_who_does_not_know_the_password_stays_out_and_learns_nothing(
    method: EapMethod, user: str, password: bytes, sealing: Any
) -> None:
    """An unknown user and a wrong password look the same to the peer."""
    pair = pair_of(method, user=user, password=password)
    pair.up()
    assert_refused(pair, "XF2050", "XF2052")
    evidence = dict(failures(pair.sun)[0].evidence)
    assert evidence["they say they are"] == f"eap:{user}"
    assert evidence["we know"] == "2 users from test"
    last = said(sealing, is_response=True)[-1]
    (refusal,) = last
    assert isinstance(refusal, EapPayload)
    assert decode_eap_untrusted(refusal.data).code is EapCode.FAILURE


def test_a_password_is_in_no_report_and_no_repr() -> None:
    pair = pair_of(password=b"a bad guess")
    pair.up()
    shown = repr((pair.moon.outputs, pair.sun.outputs, pair.moon.policy, pair.sun.policy))
    assert "a bad guess" not in shown
    assert "correct horse" not in shown


def test_methods_that_have_nothing_in_common_are_told_to_both_operators() -> None:
    pair = pair_of(EapMethod.GTC, theirs={"methods": (EapMethod.MSCHAPV2, EapMethod.MD5)})
    pair.up()
    assert_refused(pair, "XF2050", "XF2052")
    assert "none of our methods" in failures(pair.sun)[0].summary


def test_a_user_whom_policy_does_not_admit_stays_out() -> None:
    pair = pair_of(theirs={"identities": ("*@example.org",)})
    pair.up()
    assert_refused(pair, "XF2050", "XF2053")


def test_of_two_tunnels_a_user_gets_the_one_that_admits_it() -> None:
    """IDi is anything: which tunnel it is, says who EAP has authenticated."""
    moon, sun = policies(user="dave@example.org", password=b"x")
    assert sun.remote_eap is not None
    pair = Pair(moon, replace(sun, remote_eap=replace(sun.remote_eap, identities=("carol",))))
    others = replace(sun, name="others", remote_eap=replace(sun.remote_eap, identities=("*.org",)))
    pair.sun.endpoint.add_tunnel(others)
    pair.up()
    assert [r.tunnel for r in pair.sun.reports(IkeSaEstablished)] == ["others"]


def test_a_tunnel_whose_users_are_others_is_not_reached_by_a_detour() -> None:
    """Of tunnels that authenticate in another way none is chosen in the end."""
    moon, sun = policies()
    assert sun.remote_eap is not None
    pair = Pair(moon, replace(sun, remote_eap=replace(sun.remote_eap, identities=("dave",))))
    stranger = replace(sun.remote_eap, users=replace(USERS, passwords=((b"carol", "other"),)))
    others = replace(sun, name="others", remote_eap=stranger)
    pair.sun.endpoint.add_tunnel(others)
    pair.up()
    assert_refused(pair, "XF2050", "XF2053")


def test_an_identity_of_ike_that_a_user_has_chosen_does_not_end_another_peers_tunnel() -> None:
    """INITIAL_CONTACT of a user who is called as a peer is not that peer's."""
    moon, sun = policies(user="moon")
    users = EapUsers(passwords=((b"moon", "correct horse"),), origin="test")
    assert sun.remote_eap is not None
    pair = Pair(moon, replace(sun, remote_eap=replace(sun.remote_eap, users=users)))
    pair.up()
    (user,) = pair.sun.ike_sas
    assert user.remote_id != Identity.parse("moon")
    assert user.remote_id == Identity.of_eap(b"moon")


# CVE-2015-4171: the password goes to nobody who has not proved to be the gateway.


def answered_eap(sealing: Any) -> bool:
    return any(of_kind(p, EapPayload) for p in said(sealing, is_response=False))


def test_no_eap_answer_to_a_gateway_with_another_key(sealing: Any) -> None:
    pair = pair_of(local_key=private_key(KeyKind.ED25519, "mars"))
    pair.up()
    assert_refused(pair, "XF2042", "XF2056")
    assert not answered_eap(sealing)


def test_no_eap_answer_to_a_gateway_of_another_identity(sealing: Any) -> None:
    moon, sun = policies()
    pair = Pair(replace(moon, remote_id=Identity.parse("venus")), sun)
    changed(
        sealing,
        is_response=False,
        number=0,
        change=lambda p: tuple(x for x in p if type(x).__name__ != "IdrPayload"),
    )
    pair.up()
    assert_refused(pair, "XF2007", "XF2056")
    assert not answered_eap(sealing)


def test_no_eap_answer_to_a_gateway_that_leaves_its_proof_out(sealing: Any) -> None:
    pair = pair_of()
    changed(
        sealing,
        is_response=True,
        number=0,
        change=lambda p: tuple(x for x in p if not isinstance(x, AuthPayload)),
    )
    pair.up()
    assert_refused(pair, "XF2051", "XF2056")
    assert not answered_eap(sealing)


def test_no_eap_answer_to_a_gateway_that_proves_another_kind_of_key(sealing: Any) -> None:
    """It knows a shared key, policy wants a signature."""
    key = SharedKey(octets=b"a key of the gateway's", origin="test")
    pair = pair_of(local_key=None, shared_key=key)
    pair.up()
    assert_refused(pair, "XF2041", "XF2056")
    assert not answered_eap(sealing)


def test_no_eap_answer_to_a_gateway_that_may_prove_nothing(sealing: Any) -> None:
    """NULL authentication (RFC 7619) is AUTH, and no proof."""
    moon, sun = policies(local_key=None, local_null=True)
    pair = Pair(replace(moon, remote_key=None, remote_null=True), sun)
    pair.up()
    assert_refused(pair, "XF2051", "XF2056")
    assert not answered_eap(sealing)


# CVE-2015-8023, CVE-2021-45079: success before its time, steps that are left out.


@pytest.mark.parametrize("number", range(4))
def test_success_at_each_step_is_believed_only_after_the_method(number: int, sealing: Any) -> None:
    """A gateway that says success at once, after the identity, and after the challenge."""

    def early(payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
        success = EapPayload(data=SUCCESS)
        return (*(p for p in payloads if not isinstance(p, EapPayload)), success)

    pair = pair_of()
    changed(sealing, is_response=True, number=number, change=early)
    pair.up()
    if number == 3:  # The method is finished: it is the success that was due.
        pair.assert_up()
        return
    assert_refused(pair, "XF2050", "XF2056")


@pytest.mark.parametrize("in_place", [True, False], ids=["in its place", "beside it"])
@pytest.mark.parametrize("number", range(1, 4))
def test_auth_before_eap_has_succeeded_is_no_way_in(
    number: int, in_place: bool, sealing: Any
) -> None:
    """With the keys of the IKE SA, as where EAP makes no key."""
    pair = pair_of()

    def skip(payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
        sa = pair.moon.ike_sa
        proof = eap_proof(sa, IdiPayload(identity=Identity.parse("moon")), b"")
        return (proof,) if in_place else (*payloads, proof)

    changed(sealing, is_response=False, number=number, change=skip)
    pair.up()
    pair.assert_down()
    assert not pair.sun.reports(IkeSaEstablished)
    assert [f.code for f in failures(pair.sun)] == ["XF2008"]


@pytest.mark.parametrize("is_response", [False, True])
def test_auth_behind_eap_must_be_by_the_key_that_eap_has_made(
    is_response: bool, sealing: Any
) -> None:
    """Where EAP makes a key, that of the IKE SA proves nothing (a man in the middle has it)."""
    pair = pair_of()

    def without(payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
        sa = (pair.sun if is_response else pair.moon).ike_sa
        name = Identity.parse("sun" if is_response else "moon")
        proof = eap_proof(sa, IdiPayload(identity=name), b"")
        return tuple(proof if isinstance(p, AuthPayload) else p for p in payloads)

    changed(sealing, is_response=is_response, number=4, change=without)
    pair.up()
    pair.run(1.0)
    codes = [f.code for f in failures(pair.moon if is_response else pair.sun)]
    assert codes == ["XF2054"]
    pair.assert_down()


@pytest.mark.parametrize("is_response", [False, True])
def test_auth_behind_eap_is_by_no_other_method_whatever_its_octets(
    is_response: bool, sealing: Any
) -> None:
    pair = pair_of()

    def renamed(payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
        return tuple(
            replace(p, method=AuthenticationMethod.NULL) if isinstance(p, AuthPayload) else p
            for p in payloads
        )

    changed(sealing, is_response=is_response, number=4, change=renamed)
    pair.up()
    pair.run(1.0)
    codes = [f.code for f in failures(pair.moon if is_response else pair.sun)]
    assert codes == ["XF2054"]
    pair.assert_down()


@pytest.mark.parametrize("is_response", [False, True])
@pytest.mark.parametrize("number", range(5))
def test_each_payload_left_out_of_each_step_ends_it_and_nothing_else(
    number: int, is_response: bool, sealing: Any
) -> None:
    """CVE-2013-6467 and the like: no step does without EAP or AUTH, and none is a defect."""
    pair = pair_of()
    kinds = (EapPayload, AuthPayload) if number else (EapPayload, IdiPayload)
    changed(
        sealing,
        is_response=is_response,
        number=number,
        change=lambda p: tuple(x for x in p if not isinstance(x, kinds)),
    )
    pair.up()
    pair.run(1.0)
    pair.assert_down()


@pytest.mark.parametrize(
    ("kind", "is_answered"),
    [
        (ExchangeType.INFORMATIONAL, True),
        (ExchangeType.CREATE_CHILD_SA, False),
        (ExchangeType.IKE_FOLLOWUP_KE, False),
    ],
)
def test_amid_eap_nothing_comes_but_ike_auth_and_a_word_of_farewell(
    kind: ExchangeType, is_answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2014-2338, CVE-2019-12312: a message in the wrong state."""
    pair = pair_of()
    ask = Ask(kind)
    monkeypatch.setattr(
        IkeAuth, "handle_response", lambda self, *_: self._sa.start(cast("Exchange", ask), 0.0)
    )
    pair.up()
    assert (ask.answer is not None) is is_answered
    assert (DropReason.WRONG_STATE in pair.sun.drops) is not is_answered
    assert [sa.state for sa in pair.sun.ike_sas] == [IkeSaState.AUTHENTICATING]
    assert pair.sun.datapath.dump() == Dump(sad=(), spd=())


def test_eap_out_of_its_time_is_refused_where_a_key_is_to_prove_the_peer(sealing: Any) -> None:
    """An EAP payload beside a right AUTH changes nothing."""
    pair = Pair(tunnel_policy())
    changed(
        sealing,
        is_response=False,
        number=0,
        change=lambda p: (
            *p,
            EapPayload(data=SUCCESS),
        ),
    )
    pair.up()
    pair.assert_up()


# Several users of one tunnel.


def test_users_of_one_tunnel_are_apart_and_each_leaves_alone() -> None:
    """Each with an address of its own: what one does, the other does not feel."""
    moon, sun = policies(dpd_seconds=0.0)
    (child,) = sun.children
    everybody = replace(child, remote=(TrafficSelector.parse("10.1.0.0/16"),))
    pair = Pair(_from("10.1.0.7/32", moon), replace(sun, children=(everybody,)))
    dave, _ = policies(user="dave@example.org", password=b"x")
    venus = Pair(_from("10.1.0.8/32", dave), sun)
    venus.sun, venus.moon.address = pair.sun, "192.0.2.9"
    pair.sun.endpoint.replace_tunnel(replace(pair.sun.policy, peers=()))
    pair.up()
    venus.up()
    carol, dave_there = pair.sun.views
    assert [str(v.remote_id) for v in (carol, dave_there)] == ["eap:carol", "eap:dave@example.org"]
    pair.run(30.0)
    assert len(pair.sun.views) == 2
    venus.moon.endpoint.terminate("tunnel-a", 60.0)
    venus.deliver()
    assert [v.remote_id for v in pair.sun.views] == [IDENTITY]
    assert [c.remote for v in pair.sun.views for c in v.children] == [
        (TrafficSelector.parse("10.1.0.7/32"),)
    ]
    pair.assert_mirrored()


def _from(address: str, policy: TunnelPolicy) -> TunnelPolicy:
    (child,) = policy.children
    narrow = (replace(child, local=(TrafficSelector.parse(address),)),)
    return replace(policy, dpd_seconds=0.0, children=narrow)


# Bounds.


def test_eap_ends_after_so_many_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eap_responder, "MAX_EAP_ROUNDS", 2)
    pair = pair_of()
    pair.up()
    pair.assert_down()
    assert [f.code for f in failures(pair.sun)] == ["XF2008"]
    assert "more than 2 rounds" in failures(pair.sun)[0].summary


def test_a_gateway_that_asks_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eap_initiator, "MAX_EAP_ROUNDS", 2)
    pair = pair_of()
    pair.up()
    pair.assert_down()
    assert [f.code for f in failures(pair.moon)] == ["XF2050"]


def test_a_user_who_does_not_go_on_is_forgotten_with_all_that_was_kept(sealing: Any) -> None:
    pair = pair_of()
    changed(sealing, is_response=False, number=2, change=lambda p: p)
    pair.impair = lambda output, sender: (
        [] if sender is pair.moon and len(said(sealing, is_response=False)) > 2 else [output.data]
    )
    pair.up()
    assert pair.sun.ike_sas
    pair.run(300.0)
    pair.assert_forgotten()


def test_wishes_without_measure_are_not_kept(sealing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eap_responder, "MAX_WANTED", 100)
    pair = pair_of()
    pair.up()
    pair.assert_down()
    assert [f.code for f in failures(pair.sun)] == ["XF2008"]
    assert not answered_eap(sealing)


# EAP alone (RFC 5998).


def alone(monkeypatch: pytest.MonkeyPatch, *, moon: bool = True, sun: bool = True) -> Pair:
    monkeypatch.setattr(model, "_FIT_ALONE", frozenset({EapMethod.MSCHAPV2}))
    return pair_of(ours={"alone": moon}, theirs={"alone": sun})


def has_auth(payloads: tuple[OpenPayload, ...]) -> bool:
    return bool(of_kind(payloads, AuthPayload))


def test_eap_alone_where_both_want_it(monkeypatch: pytest.MonkeyPatch, sealing: Any) -> None:
    pair = alone(monkeypatch)
    pair.up()
    pair.assert_up()
    greeting, *_, last = said(sealing, is_response=True)
    assert not has_auth(greeting)
    assert has_auth(last)


@pytest.mark.parametrize("sun", [False, True])
def test_a_gateway_proves_itself_to_a_user_who_did_not_ask_for_eap_alone(
    sun: bool, monkeypatch: pytest.MonkeyPatch, sealing: Any
) -> None:
    pair = alone(monkeypatch, moon=not sun, sun=sun)
    pair.up()
    pair.assert_up()
    assert has_auth(said(sealing, is_response=True)[0])


def test_a_gateway_that_proves_itself_wrongly_gets_no_eap_answer_even_then(
    monkeypatch: pytest.MonkeyPatch, sealing: Any
) -> None:
    pair = alone(monkeypatch, sun=False)
    pair.sun.endpoint.replace_tunnel(
        replace(pair.sun.policy, local_key=private_key(KeyKind.ED25519, "mars"))
    )
    pair.up()
    pair.assert_down()
    assert not answered_eap(sealing)


def test_a_method_that_makes_no_key_is_not_enough_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_FIT_ALONE", frozenset({EapMethod.MD5}))
    pair = pair_of(EapMethod.MD5, ours={"alone": True}, theirs={"alone": True})
    pair.up()
    assert_refused(pair, "XF2050", "XF2056")
    assert "no key" in failures(pair.moon)[0].summary


def test_a_method_that_is_not_fit_for_it_answers_nobody_alone(sealing: Any) -> None:
    """Not a word but that we take part in none of what is asked for."""
    pair = pair_of(ours={"alone": True}, theirs={"alone": True})
    pair.up()
    assert_refused(pair, "XF2050", "XF2052")
    packets = [
        p.data for said_ in said(sealing, is_response=False) for p in of_kind(said_, EapPayload)
    ]
    kinds = [decode_eap_untrusted(packet).type for packet in packets]
    assert kinds == [EapType.IDENTITY, EapType.NAK]


# An AAA server decides.


class Aaa:
    """An AAA server of its own: EAP by the very machine that would decide here."""

    def __init__(self, pair: Pair, **of_acceptance: Any) -> None:
        self.pair = pair
        self.acceptance = EapAcceptance(methods=tuple(METHODS), users=USERS)
        self.of_verdict = of_acceptance
        self.sessions: dict[bytes, EapServer] = {}
        self.asked: list[AskAaa] = []

    def answer_all(self) -> None:
        """Answer what is asked until nothing is."""
        while len(self.asked) < len(asked := self.pair.sun.reports(AskAaa)):
            ask = asked[len(self.asked)]
            self.asked.append(ask)
            self.pair.sun.endpoint.handle_verdict(ask, self.verdict(ask), self.pair.now)
            self.pair.deliver()

    def verdict(self, ask: AskAaa) -> Accepted | Challenge | Refused:
        if ask.session not in self.sessions:
            random = self.pair.sun.endpoint._core.random
            server = EapServer(server_methods(self.acceptance, random, NOW), 0)
            server.begin()
            self.sessions[ask.session] = server
            packet = decode_eap_untrusted(ask.packet)
            server._identifier = packet.identifier
        server = self.sessions[ask.session]
        answer = server.handle(ask.packet)
        if server.outcome is not None:
            return Accepted(packet=answer, outcome=server.outcome, **self.of_verdict)
        if server.failure:
            return Refused(packet=answer, reason=server.failure, user=ask.user)
        return Challenge(packet=answer)


def relayed(**theirs: Any) -> Pair:
    return pair_of(theirs={"users": None, "methods": (), "server": "radius1", **theirs})


def test_an_aaa_server_lets_a_user_in() -> None:
    pair = relayed()
    aaa = Aaa(pair)
    pair.up()
    aaa.answer_all()
    pair.assert_up()
    assert pair.sun.ike_sa.remote_id == IDENTITY
    assert {(a.server, a.user, a.tunnel) for a in aaa.asked} == {("radius1", b"carol", "tunnel-a")}
    assert [a.round for a in aaa.asked] == [1, 2, 3]


def test_an_aaa_servers_refusal_is_told_to_our_operator_alone(sealing: Any) -> None:
    pair = pair_of(password=b"wrong", theirs={"users": None, "methods": (), "server": "radius1"})
    aaa = Aaa(pair)
    pair.up()
    aaa.answer_all()
    assert_refused(pair, "XF2050", "XF2052")
    assert [type(p) for p in said(sealing, is_response=True)[-1]] == [EapPayload]


def test_an_aaa_server_that_cannot_be_asked_is_another_failure() -> None:
    pair = relayed()
    pair.up()
    (ask,) = pair.sun.reports(AskAaa)
    refused = Refused(
        packet=EapPacket(code=EapCode.FAILURE, identifier=1).encode(),
        reason="radius1 does not answer",
        user=ask.user,
        is_unreachable=True,
    )
    pair.sun.endpoint.handle_verdict(ask, refused, 1.0)
    pair.deliver()
    assert_refused(pair, "XF2050", "XF2055")


def test_while_an_aaa_server_thinks_the_peer_repeats_itself_and_is_not_asked_about_twice() -> None:
    pair = relayed()
    pair.up()
    pair.run(4.0)
    assert len(pair.sun.reports(AskAaa)) == 1
    assert DropReason.REQUEST_IN_HAND in pair.sun.drops
    Aaa(pair).answer_all()
    pair.assert_up()


def test_a_verdict_that_comes_late_or_twice_changes_nothing() -> None:
    pair = relayed()
    pair.up()
    aaa = Aaa(pair)
    (ask,) = pair.sun.reports(AskAaa)
    verdict = aaa.verdict(ask)
    aaa.asked.append(ask)
    for _ in range(2):
        pair.sun.endpoint.handle_verdict(ask, verdict, 1.0)
        pair.deliver()
    aaa.answer_all()
    pair.assert_up()
    pair.sun.endpoint.handle_verdict(ask, verdict, 2.0)
    pair.deliver()
    pair.assert_up()
    pair.sun.endpoint.handle_verdict(replace(ask, session=b"12345678"), verdict, 2.0)
    pair.assert_up()


def test_groups_of_an_aaa_server_decide_who_is_admitted() -> None:
    inside, outside = relayed(groups=("staff",)), relayed(groups=("staff",))
    for pair, groups in ((inside, ("guests", "staff")), (outside, ("guests",))):
        pair.up()
        Aaa(pair, groups=groups).answer_all()
    inside.assert_up()
    assert_refused(outside, "XF2050", "XF2053")


def test_an_aaa_server_says_for_how_long_a_user_is_believed() -> None:
    """And the user is told (RFC 4478), and proves again in time."""
    pair = relayed()
    aaa = Aaa(pair, session_seconds=100.0)
    pair.up()
    aaa.answer_all()
    pair.assert_up()
    reauth_at = pair.moon.ike_sa.reauth_at
    assert reauth_at is not None
    assert reauth_at < 100.0
    pair.run(101.0)  # The AAA server is not heard of any more.
    assert not pair.sun.endpoint.is_up("tunnel-a")


def test_success_of_the_aaa_server_alone_is_no_way_in() -> None:
    """The peer must have the key that the AAA server says it has."""
    pair = relayed()
    aaa = Aaa(pair)
    honest = aaa.verdict

    def with_another_key(ask: AskAaa) -> Accepted | Challenge | Refused:
        verdict = honest(ask)
        if not isinstance(verdict, Accepted):
            return verdict
        return replace(verdict, outcome=replace(verdict.outcome, msk=bytes(64)))

    aaa.verdict = with_another_key  # type: ignore[method-assign]
    pair.up()
    aaa.answer_all()
    assert_refused(pair, "XF2005", "XF2054")


# A kill of the daemon at any moment.


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_kill_of_the_daemon_amid_eap_leaves_nothing_half_done(end: str) -> None:
    """At each of its outputs; the tunnel is up, or comes up when the user calls again."""
    for moment in range(60):
        pair = Pair(*policies(), keeps=True)
        host = pair.moon if end == "moon" else pair.sun
        host.dies_after, host.lives_again = moment, True
        pair.up()
        pair.run(40.0)
        if host.dies_after is not None:
            break
        if not all(h.views and h.views[0].children for h in (pair.moon, pair.sun)):
            pair.up()
            pair.run(40.0)
        pair.assert_mirrored()
        assert any(v.children for v in pair.moon.views)
    else:
        pytest.fail("it never came to the end")


def test_the_records_of_a_policy_have_no_password() -> None:
    for policy in policies():
        record = write_policy(policy, bytes(16))
        assert b"correct horse".hex().encode() not in record
        assert b"correct horse" not in record
        (kept,) = read_policies({b"policy of tunnel-a": record}).values()
        assert kept.beside(policy) == policy


def test_who_wants_to_prove_itself_by_eap_where_that_is_not_accepted_is_told_nothing(
    sealing: Any,
) -> None:
    moon, sun = policies()
    pair = Pair(
        moon,
        replace(
            sun,
            remote_eap=None,
            remote_id=moon.local_id,
            remote_key=public_key(KeyKind.ED25519, "moon"),
        ),
    )
    pair.up()
    pair.assert_down()
    assert [f.code for f in failures(pair.sun)] == ["XF2007"]
    assert sealing.errors(AUTH) == [NotifyType.AUTHENTICATION_FAILED]
    assert isinstance(said(sealing, is_response=True)[-1][0], NotifyPayload)


def test_a_peer_with_a_key_is_not_taken_for_a_user() -> None:
    """A tunnel for users has no key of a peer, and lets nobody in by one."""
    _, sun = policies()
    moon = replace(
        mirrored(replace(sun, remote_id=Identity.parse("moon")), peer="192.0.2.2"),
        remote_eap=None,
        local_key=private_key(KeyKind.ED25519, "moon"),
        remote_key=public_key(KeyKind.ED25519, "sun"),
    )
    pair = Pair(moon, sun)
    pair.up()
    assert_refused(pair, "XF2005", "XF2007")


def test_a_gateway_cannot_call_an_end_that_proves_itself_by_eap() -> None:
    moon, sun = policies()
    caller = replace(
        sun, remote_eap=None, remote_id=moon.local_id, shared_key=SharedKey(octets=b"x", origin="")
    )
    pair = Pair(moon, caller)
    pair.initiate(pair.sun)
    pair.deliver()
    pair.assert_down()
    assert [f.code for f in failures(pair.moon)] == ["XF2007"]
