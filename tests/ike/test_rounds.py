"""Several rounds of authentication (RFC 4739): who comes in by all of them, and nobody by fewer.

Moon calls. The first round is by shared keys or certificates; the tables say what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.ike.conftest import Pair, mirrored, tunnel_policy
from tests.ike.test_certificates import ISSUING, certified, gateway
from tests.ike.test_eap import METHODS, USERS, Aaa, failures, of_kind, said
from tests.ike.test_signatures import signing
from tests.keypairs import private_key, public_key
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.ike.ike_sa import HALF_OPEN_SECONDS
from xfrmpy.ike.kept_policy import read_policies, write_policy
from xfrmpy.ike.outputs import IkeSaEstablished, Persist
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.model import (
    EapAcceptance,
    EapCredential,
    EapMethod,
    EapUsers,
    FurtherRound,
    SharedKey,
    TunnelPolicy,
)
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import decode_message_untrusted
from xfrmpy.wire.payloads import (
    AuthPayload,
    EapPayload,
    IdiPayload,
    IdrPayload,
    NotifyPayload,
    OpenPayload,
    SaPayload,
)

Policies = tuple[TunnelPolicy, TunnelPolicy]
AUTH = ExchangeType.IKE_AUTH
ANOTHER = NotifyType.ANOTHER_AUTH_FOLLOWS
PASSWORD = SharedKey(octets=b"correct horse", origin="test")


def by_shared_key() -> Policies:
    moon = tunnel_policy()
    return moon, mirrored(moon)


def by_certificates() -> Policies:
    moon = certified(tunnel_policy(), gateway("moon"), ISSUING)
    return moon, certified(mirrored(moon), gateway("sun"), ISSUING)


def then_key(
    policies: Policies, *, moon: str = "moon", sun: str = "sun", kind: KeyKind = KeyKind.ECDSA_P256
) -> Policies:
    """Followed by a round of keys, under names of their own; an end with no name proves nothing."""
    ours = _round(moon, sun, kind)
    theirs = _round(sun, moon, kind)
    one, other = policies
    return replace(one, rounds=(*one.rounds, ours)), replace(other, rounds=(*other.rounds, theirs))


def _round(we: str, they: str, kind: KeyKind) -> FurtherRound:
    return FurtherRound(
        local_id=Identity.parse(f"{we or 'nobody'}.hosts"),
        local_key=private_key(kind, we) if we else None,
        remote_id=Identity.parse(f"{they or 'nobody'}.hosts"),
        remote_key=public_key(kind, they) if they else None,
    )


def then_user(
    policies: Policies, method: EapMethod = EapMethod.MSCHAPV2, *, sun: bool = False
) -> Policies:
    """Followed by EAP, which asks moon; with `sun` its key proves it once more in that round."""
    ours, theirs = policies
    credential = EapCredential(identity="carol", methods=(method,), password=PASSWORD)
    acceptance = EapAcceptance(methods=tuple(METHODS), users=USERS)
    ours_again = FurtherRound(
        local_id=ours.local_id, local_eap=credential, remote_id=ours.remote_id
    )
    theirs_again = FurtherRound(local_id=theirs.local_id, remote_eap=acceptance)
    if sun:
        ours_again = replace(ours_again, remote_key=public_key(KeyKind.ED448, "sun"))
        theirs_again = replace(theirs_again, local_key=private_key(KeyKind.ED448, "sun"))
    return (
        replace(ours, rounds=(*ours.rounds, ours_again)),
        replace(theirs, rounds=(*theirs.rounds, theirs_again)),
    )


WAYS: dict[str, Callable[[], Policies]] = {
    "shared key, then keys": lambda: then_key(by_shared_key()),
    "certificates, then keys": lambda: then_key(by_certificates()),
    "keys twice": lambda: then_key(signing(KeyKind.ED25519)),
    "keys three times": lambda: then_key(then_key(signing()), kind=KeyKind.RSA),
    "moon twice": lambda: then_key(by_certificates(), sun=""),
    "sun twice": lambda: then_key(by_certificates(), moon=""),
    "sun three times": lambda: then_key(then_key(by_shared_key(), moon=""), moon=""),
    "moon three times, sun twice": lambda: then_key(then_key(by_shared_key()), sun=""),
    "certificates, then a user": lambda: then_user(by_certificates()),
    "shared key, then a user": lambda: then_user(by_shared_key()),
    "certificates, then a user and a key": lambda: then_user(by_certificates(), sun=True),
    "keys twice, then a user": lambda: then_user(then_key(signing())),
}


@pytest.mark.parametrize("way", WAYS)
def test_both_ends_come_in_by_all_rounds(way: str) -> None:
    moon, sun = WAYS[way]()
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_up()
    is_user = sun.acceptance is not None
    assert pair.sun.ike_sa.remote_id == (Identity.of_eap(b"carol") if is_user else moon.local_id)
    assert pair.moon.ike_sa.remote_id == moon.remote_id
    assert pair.moon.ike_sa.local_id == moon.local_id
    assert pair.sun.ike_sa.local_id == moon.remote_id
    assert pair.sun.ike_sa.rounds is None


@pytest.mark.parametrize("method", METHODS)
def test_a_user_of_a_known_host_comes_in_by_each_method(method: EapMethod) -> None:
    pair = Pair(*then_user(by_certificates(), method))
    pair.up()
    pair.assert_up()


def test_the_messages_are_those_of_rfc_4739(sealing: Any) -> None:
    """Section 1.3: a certificate, and then EAP."""
    pair = Pair(*then_user(by_certificates()))
    pair.up()
    first, second, *_, last = said(sealing, is_response=False)
    assert says(first, NotifyType.MULTIPLE_AUTH_SUPPORTED)
    assert says(first, ANOTHER)
    assert of_kind(first, AuthPayload)
    assert of_kind(first, SaPayload)
    assert [type(p) for p in second] == [IdiPayload]
    assert [type(p) for p in last] == [AuthPayload]
    answer, question, *_, granted = said(sealing, is_response=True)
    assert of_kind(answer, AuthPayload)
    assert of_kind(answer, IdrPayload)
    assert not says(answer, ANOTHER)
    assert [type(p) for p in question] == [EapPayload]
    assert of_kind(granted, SaPayload)
    (init,) = [p for m, p in clear(pair) if m == "sun"]
    assert says(init, NotifyType.MULTIPLE_AUTH_SUPPORTED)


def says(payloads: tuple[OpenPayload, ...], kind: NotifyType) -> bool:
    return any(p.type == kind for p in of_kind(payloads, NotifyPayload))


def clear(pair: Pair) -> list[tuple[str, tuple[OpenPayload, ...]]]:
    """What was said in IKE_SA_INIT, by whom."""
    messages = [(name, decode_message_untrusted(sent.data)) for name, sent in pair.sent]
    return [
        (name, message.payloads)  # type: ignore[misc]
        for name, message in messages
        if message.exchange is ExchangeType.IKE_SA_INIT
    ]


def test_who_has_one_round_says_nothing_of_several(sealing: Any) -> None:
    pair = Pair(*by_certificates())
    pair.up()
    kinds = (NotifyType.MULTIPLE_AUTH_SUPPORTED, ANOTHER)
    all_said = [p for _, p in clear(pair)] + [p for _, p in sealing.sent]
    assert not any(says(payloads, kind) for payloads in all_said for kind in kinds)


def test_the_second_auth_is_over_the_second_identity(sealing: Any) -> None:
    pair = Pair(*then_key(signing()))
    pair.up()
    identities = [of_kind(p, IdiPayload)[0].identity for p in said(sealing, is_response=False)]
    assert identities == [Identity.parse("moon"), Identity.parse("moon.hosts")]
    identities = [of_kind(p, IdrPayload)[0].identity for p in said(sealing, is_response=True)]
    assert identities == [Identity.parse("sun"), Identity.parse("sun.hosts")]


@pytest.mark.parametrize("way", WAYS)
def test_rounds_survive_loss(way: str) -> None:
    """Every third datagram is lost; each step is repeated, none is taken twice."""
    pair = Pair(*WAYS[way]())
    count = iter(range(1_000_000))
    pair.impair = lambda output, _: [output.data] if next(count) % 3 else []
    pair.up()
    pair.run(HALF_OPEN_SECONDS)
    pair.assert_up()


@pytest.mark.parametrize("way", WAYS)
def test_rounds_stand_beside_further_key_exchanges(way: str) -> None:
    """IntAuth is in every AUTH (RFC 9242)."""
    ike = tunnel_policy(ike="aes128gcm16-prfsha256-x25519-ke1_mlkem768").proposals
    moon, sun = (replace(policy, proposals=ike) for policy in WAYS[way]())
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_up()


@pytest.mark.parametrize("way", ["keys twice", "certificates, then a user and a key"])
def test_whoever_is_killed_at_any_output_comes_in_again(way: str) -> None:
    """What was kept amid the rounds is enough, or it is begun anew."""
    for end in ("moon", "sun"):
        outputs = _outputs_of(way, end)
        for count in range(0, outputs, 4):
            moon, sun = (replace(p, start=p.start) for p in WAYS[way]())
            pair = Pair(moon, sun, keeps=True)
            host, _ = pair.ends(end)
            host.dies_after, host.lives_again = count, True
            pair.up()
            pair.run(120.0)
            if not [v for v in pair.moon.views if v.state is IkeSaState.ESTABLISHED]:
                pair.up()
                pair.run(120.0)
            states = [v.state for v in pair.moon.views]
            assert states == [IkeSaState.ESTABLISHED], (end, count)


def _outputs_of(way: str, end: str) -> int:
    pair = Pair(*WAYS[way](), keeps=True)
    pair.up()
    return len(pair.ends(end)[0].outputs)


def test_nothing_is_kept_of_rounds_that_are_not_done(sealing: Any) -> None:
    """The peer cannot have established anything before our last AUTH."""
    pair = Pair(*then_key(then_key(signing()), kind=KeyKind.RSA), keeps=True)
    stop: list[int] = []

    def hold(message: Any, payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
        if message.exchange is AUTH and not message.is_response:
            stop.append(len(pair.moon.reports(Persist)))
        return payloads

    sealing.change = hold
    pair.up()
    pair.assert_up()
    assert stop[:2] == [0, 0]
    assert pair.moon.reports(Persist)


def test_a_rekeyed_and_a_renewed_ike_sa_is_the_users_still() -> None:
    moon, sun = then_user(by_certificates())
    pair = Pair(moon, replace(sun, reauth_seconds=100.0))
    pair.up()
    pair.moon.endpoint.rekey_ike_sas("tunnel-a", 1.0)
    pair.deliver()
    assert [v.remote_id for v in pair.sun.views if v.state is IkeSaState.ESTABLISHED] == [
        Identity.of_eap(b"carol")
    ]
    assert not pair.sun.ike_sas[-1].can_begin_anew
    pair.run(99.0)
    pair.assert_up()
    assert len(pair.sun.reports(IkeSaEstablished)) == 2


def test_a_ticket_resumes_what_several_rounds_have_made() -> None:
    moon, sun = (replace(p, resumption=True) for p in then_key(signing()))
    pair = Pair(moon, sun, secrets=True)
    pair.up()
    pair.assert_up()
    pair.moon.start()
    pair.up()
    assert [v.state for v in pair.moon.views] == [IkeSaState.ESTABLISHED]


def test_a_user_in_the_second_round_may_be_asked_by_an_aaa_server() -> None:
    moon, sun = then_user(by_certificates())
    left = replace(sun.rounds[-1], remote_eap=EapAcceptance(server="corp"))
    pair = Pair(moon, replace(sun, rounds=(left,)))
    pair.up()
    Aaa(pair).answer_all()
    pair.assert_up()
    assert pair.sun.ike_sa.remote_id == Identity.of_eap(b"carol")


# Not let in.


@dataclass(frozen=True, kw_only=True)
class Theft:
    """A way in which one end takes, in round `number`, what is its neighbour's."""

    way: str
    end: str
    number: int
    change: dict[str, Any]
    codes: tuple[str, ...]


THEFTS = {
    "another key of the caller": Theft(
        way="keys twice",
        end="moon",
        number=1,
        change={"local_key": private_key(KeyKind.ECDSA_P256, "mars")},
        codes=("XF2041", "XF2042"),
    ),
    "another key of the gateway": Theft(
        way="keys twice",
        end="sun",
        number=1,
        change={"local_key": private_key(KeyKind.ECDSA_P256, "mars")},
        codes=("XF2041", "XF2042"),
    ),
    "another name of the caller": Theft(
        way="keys twice",
        end="moon",
        number=1,
        change={"local_id": Identity.parse("mars.hosts")},
        codes=("XF2007",),
    ),
    "another name of the gateway": Theft(
        way="keys twice",
        end="sun",
        number=1,
        change={"local_id": Identity.parse("mars.hosts")},
        codes=("XF2007",),
    ),
    "another key in the third round": Theft(
        way="keys three times",
        end="moon",
        number=2,
        change={"local_key": private_key(KeyKind.RSA, "mars")},
        codes=("XF2041", "XF2042"),
    ),
    "a gateway's key of the second round, behind the caller's last": Theft(
        way="sun twice",
        end="sun",
        number=1,
        change={"local_key": private_key(KeyKind.ECDSA_P256, "mars")},
        codes=("XF2041", "XF2042"),
    ),
    "a gateway's key in the round of a user": Theft(
        way="certificates, then a user and a key",
        end="sun",
        number=1,
        change={"local_key": private_key(KeyKind.ED448, "mars")},
        codes=("XF2041", "XF2042"),
    ),
}


def stolen(theft: Theft) -> Policies:
    moon, sun = WAYS[theft.way]()
    thief = moon if theft.end == "moon" else sun
    rounds = list(thief.rounds)
    rounds[theft.number - 1] = replace(rounds[theft.number - 1], **theft.change)
    thief = replace(thief, rounds=tuple(rounds))
    return (thief, sun) if theft.end == "moon" else (moon, thief)


@pytest.mark.parametrize("name", THEFTS)
def test_a_wrong_proof_in_a_later_round_lets_nobody_in(name: str, sealing: Any) -> None:
    theft = THEFTS[name]
    pair = Pair(*stolen(theft))
    pair.up()
    pair.assert_down()
    refuser = pair.sun if theft.end == "moon" else pair.moon
    assert not refuser.reports(IkeSaEstablished)
    (failure,) = failures(refuser)
    assert failure.code in theft.codes
    assert failure.evidence
    if theft.way.endswith("a key"):
        assert not any(of_kind(p, EapPayload) for p in said(sealing, is_response=False))


@pytest.mark.parametrize("name", THEFTS)
def test_the_end_that_is_refused_is_told_by_code(name: str) -> None:
    theft = THEFTS[name]
    pair = Pair(*stolen(theft))
    pair.up()
    told = failures(pair.moon if theft.end == "moon" else pair.sun)
    assert [f.code for f in told] in (["XF2005"], ["XF2058"], ["XF2056"], [])


@pytest.mark.parametrize(("user", "password"), [("carol", b"wrong"), ("mallory", b"x")])
def test_a_known_host_with_a_wrong_user_stays_out(user: str, password: bytes) -> None:
    moon, sun = then_user(by_certificates())
    (last,) = moon.rounds
    assert last.local_eap is not None
    key = SharedKey(octets=password, origin="test")
    wrong = replace(last, local_eap=replace(last.local_eap, identity=user, password=key))
    pair = Pair(replace(moon, rounds=(wrong,)), sun)
    pair.up()
    pair.assert_down()
    assert [f.code for f in failures(pair.moon)] == ["XF2050"]
    assert [f.code for f in failures(pair.sun)] == ["XF2052"]


def test_a_right_user_at_an_unknown_host_is_not_even_asked(sealing: Any) -> None:
    moon, sun = then_user(by_certificates())
    pair = Pair(certified(moon, gateway("mars"), ISSUING), sun)
    pair.up()
    pair.assert_down()
    assert not any(of_kind(p, EapPayload) for _, p in sealing.sent)


def test_no_eap_answer_to_a_gateway_that_does_not_prove_itself_in_the_first_round(
    sealing: Any,
) -> None:
    """CVE-2015-4171, by rounds."""
    moon, sun = then_user(by_certificates())
    pair = Pair(moon, certified(sun, gateway("mars"), ISSUING))
    pair.up()
    pair.assert_down()
    assert not any(of_kind(p, EapPayload) for _, p in sealing.sent)
    assert failures(pair.moon)[0].code == "XF2114"


@pytest.mark.parametrize("end", ["moon", "sun"])
@pytest.mark.parametrize("way", ["keys twice", "certificates, then a user", "sun twice"])
def test_an_end_that_leaves_its_second_round_out_gets_nothing(way: str, end: str) -> None:
    """The one end has the policy of one round."""
    moon, sun = WAYS[way]()
    moon, sun = (
        (replace(moon, rounds=()), sun) if end == "moon" else (moon, replace(sun, rounds=()))
    )
    pair = Pair(moon, sun)
    pair.up()
    pair.run(HALF_OPEN_SECONDS + 5.0)
    pair.assert_down()
    assert not pair.moon.reports(IkeSaEstablished)
    assert not pair.sun.reports(IkeSaEstablished)
    refuser = pair.sun if end == "moon" else pair.moon
    assert [f.code for f in failures(refuser)] == ["XF2057"]


@pytest.mark.parametrize("is_response", [False, True])
def test_who_says_that_nothing_follows_is_believed_and_refused(
    is_response: bool, sealing: Any
) -> None:
    """Whoever has the notification taken out of its message gets no further by it."""
    pair = Pair(*then_key(signing()))
    sealing.change = lambda message, payloads: (
        tuple(p for p in payloads if not (isinstance(p, NotifyPayload) and p.type == ANOTHER))
        if message.is_response is is_response
        else payloads
    )
    pair.up()
    pair.assert_down()
    assert failures(pair.moon if is_response else pair.sun)[0].code == "XF2057"
    assert not pair.sun.reports(IkeSaEstablished)


@pytest.mark.parametrize("is_response", [False, True])
def test_who_wants_more_rounds_than_our_policy_is_refused(is_response: bool, sealing: Any) -> None:
    pair = Pair(*by_certificates())
    sealing.change = lambda message, payloads: (
        (*payloads, NotifyPayload(type=ANOTHER))
        if message.exchange is AUTH and message.is_response is is_response
        else payloads
    )
    pair.up()
    refuser = pair.moon if is_response else pair.sun
    assert [f.code for f in failures(refuser)] == ["XF2057"]
    assert not refuser.reports(IkeSaEstablished)


@pytest.mark.parametrize("way", ["keys twice", "certificates, then a user"])
def test_a_second_round_without_a_proof_is_refused(way: str, sealing: Any) -> None:
    """An empty message, where AUTH or a user is expected."""
    pair = Pair(*WAYS[way]())
    seen: list[int] = []

    def empty(message: Any, payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
        if message.exchange is AUTH and not message.is_response:
            seen.append(message.message_id)
            return () if len(seen) == 2 else payloads
        return payloads

    sealing.change = empty
    pair.up()
    pair.assert_down()
    assert not pair.sun.reports(IkeSaEstablished)
    assert [f.code for f in failures(pair.sun)] in (["XF2057"], ["XF2008"])


def test_the_first_proof_does_not_serve_twice() -> None:
    """Of a caller that has one key alone, and says the same again."""
    moon, sun = then_key(signing(), sun="")
    again = replace(moon.rounds[0], local_key=moon.local_key, local_id=Identity.parse("moon.hosts"))
    pair = Pair(replace(moon, rounds=(again,)), sun)
    pair.up()
    pair.assert_down()
    assert failures(pair.sun)[0].code in ("XF2041", "XF2042")


def test_a_peer_that_vanishes_between_two_rounds_leaves_nothing() -> None:
    pair = Pair(*then_key(signing()))
    passed = iter(range(100))
    pair.impair = lambda output, _: [output.data] if next(passed) < 4 else []
    pair.up()
    pair.run(HALF_OPEN_SECONDS + 300.0)
    assert not pair.sun.reports(IkeSaEstablished)
    pair.assert_down()


def test_of_two_tunnels_the_caller_gets_the_one_with_as_many_rounds() -> None:
    once, twice = signing(), then_key(signing())
    for moon, expected in ((once[0], "once"), (twice[0], "tunnel-a")):
        pair = Pair(moon, twice[1])
        pair.sun.endpoint.add_tunnel(replace(once[1], name="once", peers=()))
        pair.up()
        assert [r.tunnel for r in pair.sun.reports(IkeSaEstablished)] == [expected]


def test_another_daemon_finds_the_policy_without_its_secrets() -> None:
    for policy in (*then_user(then_key(signing())),):
        record = write_policy(policy, b"salt")
        (kept,) = read_policies({b"policy of tunnel-a": record}).values()
        assert all(r.local_key is None or not r.local_key.octets for r in kept.policy.rounds)
        assert b"correct horse" not in record
        assert kept.beside(policy) == policy
        other = replace(policy, rounds=policy.rounds[:1])
        assert kept.beside(other) != other
    users = EapUsers(passwords=((b"dave", "x"),), origin="test")
    (first, last) = policy.rounds
    assert last.remote_eap is not None
    changed = replace(last, remote_eap=replace(last.remote_eap, users=users))
    present = replace(policy, rounds=(first, changed))
    assert kept.beside(present) == present
