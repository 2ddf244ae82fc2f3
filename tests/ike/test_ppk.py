"""Post-quantum preshared keys in IKE_AUTH (RFC 8784), in both roles."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.ike.conftest import with_notification
from tests.keypairs import private_key, public_key
from xfrmpy.crypto.key_schedule import IkeKeys, mix_in_ppk
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.failures import Failure
from xfrmpy.ike import ppk as ppk_module
from xfrmpy.ike.ike_sa import REFUSAL_SECONDS
from xfrmpy.ike.outputs import RequestRefused, SendDatagram, TunnelClosed
from xfrmpy.ike.ppk import PPK_ID_FIXED
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.proposals import IkeSuite, ike_suite, parse_proposal
from xfrmpy.policy.model import Ppk, SharedKey, TunnelPolicy
from xfrmpy.registry import ExchangeType, NotifyType, ProtocolId
from xfrmpy.wire.message import decode_message_untrusted, encode_message
from xfrmpy.wire.payloads import AuthPayload, NotifyPayload

pytestmark = pytest.mark.usefixtures("ppk_in_auth")

MakePair = Callable[..., Any]
MakePolicy = Callable[..., TunnelPolicy]

OFFICE = Ppk(id="office", key=SharedKey(octets=b"a quantum-safe key of thirty-two", origin="o.ppk"))
BRANCH = Ppk(
    id="0x00ff", key=SharedKey(octets=b"another one that is of forty octets too!", origin="b")
)
FALSE = replace(OFFICE, key=SharedKey(octets=b"not the key that the other has!!", origin="false"))
OTHER = replace(BRANCH, key=FALSE.key)
HYBRID = "aes128gcm16-prfsha256-x25519-ke1_mlkem768"


@pytest.fixture
def ends(
    make_pair: MakePair,
    make_policy: MakePolicy,
    make_mirror: Callable[[TunnelPolicy], TunnelPolicy],
) -> Callable[..., Any]:
    """A pair whose ends have these keys, and are as strict as is said."""

    def make(
        moon: tuple[Ppk, ...] = (OFFICE,),
        sun: tuple[Ppk, ...] = (OFFICE,),
        *,
        required: str = "",
        ike: str = "aes128gcm16-prfsha256-x25519",
        **keys: Any,
    ) -> Any:
        policy = replace(make_policy(ike=ike), **keys)
        return make_pair(
            replace(policy, ppks=moon, ppk_required="moon" in required),
            replace(make_mirror(policy), ppks=sun, ppk_required="sun" in required),
        )

    return make


def in_auth(sealing: Any, kind: NotifyType) -> list[list[bytes]]:
    """The data of a type of notification, in the request and in the response of IKE_AUTH."""
    messages = [p for m, p in sealing.sent if m.exchange is ExchangeType.IKE_AUTH]
    return [
        [n.data for n in payloads if isinstance(n, NotifyPayload) and n.type == kind]
        for payloads in messages
    ]


def refusal(host: Any, kind: type[Any] = RequestRefused) -> Failure:
    (report,) = host.reports(kind)
    assert isinstance(report.failure, Failure)
    return report.failure


@pytest.mark.parametrize("required", ["", "moon", "sun", "moon and sun"])
@pytest.mark.parametrize("ike", ["aes128gcm16-prfsha256-x25519", HYBRID, "aes128-sha256-x25519"])
def test_a_key_of_both_ends_is_in_the_keys_and_both_say_so(
    ends: Any, sealing: Any, required: str, ike: str
) -> None:
    pair = ends(required=required, ike=ike)
    pair.up()
    pair.assert_up()
    assert [host.views[0].ppk_id for host in (pair.moon, pair.sun)] == ["office", "office"]
    assert in_auth(sealing, NotifyType.PPK_IDENTITY) == [[b"\x02office"], [b""]]
    assert [len(found) for found in in_auth(sealing, NotifyType.NO_PPK_AUTH)] == [
        0 if "moon" in required else 1,
        0,
    ]


def test_the_keys_are_those_of_the_rfc(ends: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 3: SK_d = prf+ (PPK, SK_d'), and SK_pi and SK_pr likewise; the others stay."""
    plain: list[IkeKeys] = []

    def spy(suite: IkeSuite, keys: IkeKeys, ppk: bytes) -> IkeKeys:
        plain.append(keys)
        return mix_in_ppk(suite, keys, ppk)

    monkeypatch.setattr(ppk_module, "mix_in_ppk", spy)
    pair = ends()
    pair.up()
    (before,) = set(plain)
    for host in (pair.moon, pair.sun):
        keys = host.ike_sa.keys
        for name in ("sk_d", "sk_pi", "sk_pr"):
            block = hmac.digest(OFFICE.key.octets, getattr(before, name) + b"\x01", "sha256")
            assert getattr(keys, name) == block
        for name in ("sk_ai", "sk_ar", "sk_ei", "sk_er"):
            assert getattr(keys, name) == getattr(before, name)


def test_other_prfs_have_keys_of_other_sizes() -> None:
    suite = ike_suite(parse_proposal("aes256-sha512-prfsha512-x25519", ProtocolId.IKE))
    keys = IkeKeys(
        sk_d=b"d" * 64, sk_ai=b"", sk_ar=b"", sk_ei=b"", sk_er=b"", sk_pi=b"i" * 64, sk_pr=b"r" * 64
    )
    mixed = mix_in_ppk(suite, keys, b"ppk")
    assert mixed.sk_d == hmac.digest(b"ppk", b"d" * 64 + b"\x01", "sha512")
    assert len({mixed.sk_d, mixed.sk_pi, mixed.sk_pr}) == 3


@pytest.mark.parametrize(
    ("moon", "sun"),
    [((), ()), ((OFFICE,), ()), ((), (OFFICE,)), ((OFFICE,), (BRANCH,)), ((BRANCH,), (OFFICE,))],
)
def test_without_a_key_in_common_the_tunnel_comes_up_if_neither_end_requires_one(
    ends: Any, moon: tuple[Ppk, ...], sun: tuple[Ppk, ...]
) -> None:
    pair = ends(moon, sun)
    pair.up()
    pair.assert_up()
    assert pair.moon.views[0].ppk_id == pair.sun.views[0].ppk_id == ""
    pair.moon.endpoint.rekey_ike_sas("tunnel-a", pair.now)
    pair.deliver()
    pair.assert_up()


def test_the_initiator_names_its_first_and_the_responder_has_several(ends: Any) -> None:
    pair = ends((BRANCH, OFFICE), (OFFICE, BRANCH), required="moon and sun")
    pair.up()
    pair.assert_up()
    assert pair.sun.views[0].ppk_id == "0x00ff"
    pair.sun.endpoint.terminate("tunnel-a", pair.now)
    pair.deliver()
    pair.initiate(pair.sun)
    pair.deliver()
    assert pair.moon.views[-1].ppk_id == "office"


def test_an_initiator_that_requires_one_does_not_go_on_with_a_responder_without(ends: Any) -> None:
    pair = ends((OFFICE,), (), required="moon")
    pair.up()
    assert not any(m.exchange is ExchangeType.IKE_AUTH for m in _messages(pair))
    pair.run(REFUSAL_SECONDS + 1)
    assert refusal(pair.moon, TunnelClosed).code == "XF2033"
    assert "office (o.ppk)" in str(refusal(pair.moon, TunnelClosed).evidence)


def test_anybody_can_take_use_ppk_out_and_the_true_answer_wins(ends: Any) -> None:
    """Nothing protects IKE_SA_INIT: what seems to be a responder without is waited out."""
    pair = ends(required="moon")

    def strip(output: SendDatagram, sender: Any) -> list[bytes]:
        message = decode_message_untrusted(output.data[4:] if output.path.natt else output.data)
        if sender is not pair.sun or message.exchange is not ExchangeType.IKE_SA_INIT:
            return [output.data]
        kept = tuple(p for p in message.payloads if p != ppk_module.USE_PPK)
        return [encode_message(replace(message, payloads=kept)), output.data]

    pair.impair = strip
    pair.up()
    pair.assert_up()
    assert pair.moon.views[0].ppk_id == "office"


def test_a_downgrade_by_somebody_on_the_way_is_noticed(ends: Any) -> None:
    """AUTH covers IKE_SA_INIT: without a requirement no key is used, and nothing comes up."""
    pair = ends()

    def strip(output: SendDatagram, sender: Any) -> list[bytes]:
        message = decode_message_untrusted(output.data[4:] if output.path.natt else output.data)
        if sender is not pair.sun or message.exchange is not ExchangeType.IKE_SA_INIT:
            return [output.data]
        kept = tuple(p for p in message.payloads if p != ppk_module.USE_PPK)
        return [encode_message(replace(message, payloads=kept))]

    pair.impair = strip
    pair.up()
    assert not pair.moon.ike_sas or pair.moon.ike_sas[0].state is IkeSaState.DELETED
    assert refusal(pair.moon, TunnelClosed).code in {"XF2005", "XF2006"}


def test_a_responder_that_requires_one_refuses_who_has_none_at_once(ends: Any) -> None:
    pair = ends((), (OFFICE,), required="sun")
    pair.up()
    assert refusal(pair.sun).code == "XF2033"
    assert pair.sun.ike_sas == []


def test_a_responder_that_requires_one_refuses_a_name_that_it_does_not_have(
    ends: Any, sealing: Any
) -> None:
    pair = ends((BRANCH,), (OFFICE,), required="sun")
    pair.up()
    assert refusal(pair.sun).code == "XF2033"
    assert "0x0200ff" in refusal(pair.sun).summary
    answer = sealing.sent[-1][1]
    assert answer == (NotifyPayload(type=NotifyType.AUTHENTICATION_FAILED),)
    failure = refusal(pair.moon, TunnelClosed)
    assert failure.code == "XF2005"
    assert ("our PPK", "0x00ff (b)") in failure.evidence


def test_who_requires_one_is_refused_by_a_responder_that_has_another(ends: Any) -> None:
    pair = ends((OFFICE,), (BRANCH,), required="moon")
    pair.up()
    assert refusal(pair.sun).code == "XF2033"
    assert "'office'" in refusal(pair.sun).summary


def test_another_key_under_the_same_name_is_no_way_in_and_our_operator_is_told(ends: Any) -> None:
    """NO_PPK_AUTH is right, but the key is there: it does not count (Table 2)."""
    pair = ends((FALSE,), (OFFICE,))
    pair.up()
    assert not pair.sun.ike_sas or pair.sun.ike_sas[0].state is IkeSaState.DELETED
    failure = refusal(pair.sun)
    assert failure.code == "XF2034"
    assert ("our PPK", "office (o.ppk)") in failure.evidence
    assert refusal(pair.moon, TunnelClosed).code == "XF2005"


def test_of_two_wrong_keys_the_shared_one_is_told(ends: Any) -> None:
    other = SharedKey(octets=b"another shared key of the peer's!", origin="other")
    pair = ends((FALSE,), (OFFICE,))
    pair.moon.policy = replace(pair.moon.policy, shared_key=other)
    pair.moon.start()
    pair.up()
    assert refusal(pair.sun).code == "XF2006"


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_the_name_twice_breaks_the_protocol(ends: Any, sealing: Any, end: str) -> None:
    pair = ends()
    name = NotifyPayload(type=NotifyType.PPK_IDENTITY, data=bytes([PPK_ID_FIXED]) + b"office")
    sealing.change = lambda message, payloads: (
        (*payloads, name)
        if message.exchange is ExchangeType.IKE_AUTH and message.is_response is (end == "sun")
        else payloads
    )
    pair.up()
    assert not any(host.datapath.dump().sad for host in (pair.moon, pair.sun))


@pytest.mark.parametrize(
    "data", [b"", b"\x02", b"\x01office", b"\x00", b"\x02\xff\xfe\x1b[2J", b"\x02" + b"x" * 5000]
)
def test_a_name_of_any_octets_is_one_that_we_do_not_have(
    ends: Any, sealing: Any, data: bytes
) -> None:
    pair = ends(required="sun")

    sealing.change = with_notification(
        NotifyType.PPK_IDENTITY, lambda _: data, lambda message: not message.is_response
    )
    pair.up()
    failure = refusal(pair.sun)
    assert failure.code == "XF2033"
    assert failure.summary.isprintable()
    assert len(failure.summary) < 300


def test_a_confirmation_of_what_was_not_named_breaks_the_protocol(ends: Any, sealing: Any) -> None:
    pair = ends((), ())
    sealing.change = lambda message, payloads: (
        (*payloads, NotifyPayload(type=NotifyType.PPK_IDENTITY))
        if message.exchange is ExchangeType.IKE_AUTH and message.is_response
        else payloads
    )
    pair.up()
    assert refusal(pair.moon, TunnelClosed).code == "XF2008"


def test_a_responder_that_leaves_the_confirmation_out_is_not_believed(
    ends: Any, sealing: Any
) -> None:
    """Then its AUTH must be without the key, and it is not."""
    pair = ends()
    sealing.change = with_notification(
        NotifyType.PPK_IDENTITY, lambda _: None, lambda message: message.is_response
    )
    pair.up()
    assert refusal(pair.moon, TunnelClosed).code == "XF2006"


def test_no_ppk_auth_is_verified_like_auth(ends: Any, sealing: Any) -> None:
    pair = ends((OFFICE,), (BRANCH,))

    sealing.change = with_notification(NotifyType.NO_PPK_AUTH, lambda data: bytes(len(data)))
    pair.up()
    assert refusal(pair.sun).code == "XF2006"


def test_auth_alone_does_not_do_where_no_ppk_auth_counts(ends: Any, sealing: Any) -> None:
    """A responder without the key must not take AUTH, of which it cannot know what is in it."""
    pair = ends((OFFICE,), (BRANCH,))

    def swap(message: Any, payloads: Any) -> Any:
        if message.is_response:
            return payloads
        (auth,) = (p for p in payloads if isinstance(p, AuthPayload))
        return tuple(
            replace(p, data=auth.data)
            if isinstance(p, NotifyPayload) and p.type == NotifyType.NO_PPK_AUTH
            else p
            for p in payloads
        )

    sealing.change = swap
    pair.up()
    assert refusal(pair.sun).code == "XF2006"


def test_rekeyed_ike_sas_have_it_and_new_ones_name_it_again(ends: Any, sealing: Any) -> None:
    pair = ends(required="moon and sun")
    pair.up()
    pair.moon.endpoint.rekey_ike_sas("tunnel-a", pair.now)
    pair.deliver()
    assert [h.views[-1].ppk_id for h in (pair.moon, pair.sun)] == ["office", "office"]
    pair.assert_up()
    assert len(in_auth(sealing, NotifyType.PPK_IDENTITY)) == 2


@pytest.mark.parametrize("required", ["", "moon and sun"])
def test_a_resumed_ike_sa_follows_from_keys_that_have_it(ends: Any, required: str) -> None:
    pair = ends(required=required, resumption=True)
    pair.sun.policy = replace(pair.sun.policy, dpd_seconds=0.0)
    pair.sun.start()
    pair.up()
    deliver, pair.impair = pair.impair, lambda _output, _sender: []
    pair.run(150)
    pair.impair = deliver
    pair.sent.clear()
    pair.up()
    pair.assert_up()
    exchanges = {m.exchange for m in _messages(pair)}
    assert ExchangeType.IKE_SESSION_RESUME in exchanges
    assert ExchangeType.IKE_SA_INIT not in exchanges
    assert [h.views[-1].ppk_id for h in (pair.moon, pair.sun)] == ["office", "office"]


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_another_key_in_the_policy_makes_tickets_void(ends: Any, end: str) -> None:
    pair = ends((OFFICE, BRANCH), (OFFICE, BRANCH), resumption=True)
    pair.up()
    host = pair.ends(end)[0]
    host.endpoint.replace_tunnel(replace(host.policy, ppks=(OFFICE, OTHER)))
    deliver, pair.impair = pair.impair, lambda _output, _sender: []
    pair.run(150)
    pair.impair = deliver
    pair.sent.clear()
    pair.up()
    assert ExchangeType.IKE_SA_INIT in {m.exchange for m in _messages(pair)}


def test_the_childless_beginning_has_it_too(ends: Any) -> None:
    pair = ends(required="moon and sun", childless=True)
    pair.up()
    pair.assert_up()
    assert pair.sun.views[0].ppk_id == "office"


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_it_outlives_a_kill_at_every_step(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Any, end: str
) -> None:
    for outputs in range(1, 30):
        policy = replace(make_policy(), ppks=(OFFICE,), ppk_required=True)
        pair = make_pair(policy, make_mirror(policy), keeps=True)
        host = pair.ends(end)[0]
        host.dies_after, host.lives_again = outputs, True
        pair.up()
        pair.run(100)
        if not pair.moon.views:  # Sun has forgotten what was half open.
            pair.up()
        pair.assert_up()
        assert [h.views[-1].ppk_id for h in (pair.moon, pair.sun)] == ["office", "office"]


def test_no_octet_of_it_is_in_a_record_of_the_policy(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    pair = make_pair(replace(make_policy(), ppks=(OFFICE, BRANCH)), keeps=True)
    pair.up()
    everything = b"".join(b for b in pair.moon.kept.values())
    for ppk in (OFFICE, BRANCH):
        for form in (ppk.key.octets, ppk.key.octets.hex().encode()):
            assert form not in everything
    assert OFFICE.key.octets.decode() not in repr(pair.moon.policy)


def _messages(pair: Any) -> list[Any]:
    octets = (o.data[4:] if o.path.natt else o.data for _, o in pair.sent)
    return [decode_message_untrusted(data) for data in octets]


@pytest.mark.parametrize("kind", [KeyKind.RSA, KeyKind.ED25519])
@pytest.mark.parametrize("sun", [(OFFICE,), (BRANCH,), (FALSE,)], ids=["same", "other", "wrong"])
def test_signatures_are_over_keys_with_it_or_without(
    ends: Any, kind: KeyKind, sun: tuple[Ppk, ...]
) -> None:
    """NO_PPK_AUTH is by the same method as AUTH (section 3), so it has no method of its own."""
    pair = ends((OFFICE,), sun)
    for host, other in ((pair.moon, "sun"), (pair.sun, "moon")):
        keys = {
            "local_key": private_key(kind, host.name),
            "remote_key": public_key(kind, other),
        }
        host.policy = replace(host.policy, **keys)
        host.start()
    pair.up()
    if sun == (FALSE,):
        assert refusal(pair.sun).code == "XF2034"
    else:
        pair.assert_up()
        assert pair.sun.views[0].ppk_id == ("office" if sun == (OFFICE,) else "")
