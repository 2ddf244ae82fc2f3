"""Post-quantum preshared keys in IKE_INTERMEDIATE (RFC 9867), in both roles."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from tests.ike.conftest import with_notification
from tests.ike.test_ppk import BRANCH, FALSE, HYBRID, OFFICE, OTHER, refusal
from tests.keypairs import private_key, public_key
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.ike import init as init_module
from xfrmpy.ike import intermediate as intermediate_module
from xfrmpy.ike.admission import AdmissionLimits
from xfrmpy.ike.ike_sa import REFUSAL_SECONDS, IkeSa
from xfrmpy.ike.intermediate import mix_in
from xfrmpy.ike.outputs import SendDatagram, TunnelClosed
from xfrmpy.ike.ppk import MAX_NAMED, USE_PPK_INT
from xfrmpy.ike.transcript import Transcript
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.model import Ppk, TunnelPolicy
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import decode_message_untrusted, encode_message
from xfrmpy.wire.payloads import EncryptedFragmentPayload, IdiPayload, KePayload, NotifyPayload

MakePair = Callable[..., Any]
MakePolicy = Callable[..., TunnelPolicy]

X = ExchangeType
CLASSICAL = "aes128gcm16-prfsha256-x25519"
THREE = "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke3_mlkem1024-ke7_ecp256"
IDENTITY_KEY = NotifyType.PPK_IDENTITY_KEY


@pytest.fixture
def ends(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., TunnelPolicy]
) -> Callable[..., Any]:
    """A pair whose ends have these keys, and are as strict as is said."""

    def make(
        moon: tuple[Ppk, ...] = (OFFICE,),
        sun: tuple[Ppk, ...] = (OFFICE,),
        *,
        required: str = "",
        ike: str = CLASSICAL,
        host_keys: dict[str, Any] | None = None,
        **keys: Any,
    ) -> Any:
        policy = replace(make_policy(ike=ike), **keys)
        return make_pair(
            replace(policy, ppks=moon, ppk_required="moon" in required),
            replace(make_mirror(policy), ppks=sun, ppk_required="sun" in required),
            **host_keys or {},
        )

    return make


def between(sealing: Any) -> list[list[tuple[NotifyType, bytes]]]:
    """The notifications of every message of IKE_INTERMEDIATE, in order."""
    return [
        [(p.type, p.data) for p in payloads if isinstance(p, NotifyPayload)]
        for message, payloads in sealing.sent
        if message.exchange is X.IKE_INTERMEDIATE
    ]


def exchanges(sealing: Any) -> list[ExchangeType]:
    return [message.exchange for message, _ in sealing.sent if not message.is_response]


@pytest.mark.parametrize("required", ["", "moon", "sun", "moon and sun"])
@pytest.mark.parametrize(
    ("ike", "count"), [(CLASSICAL, 1), (HYBRID, 1), ("aes128-sha256-x25519", 1), (THREE, 3)]
)
def test_a_key_of_both_ends_goes_into_the_last_exchange_before_ike_auth(
    ends: Any, sealing: Any, required: str, ike: str, count: int
) -> None:
    pair = ends(required=required, ike=ike)
    pair.up()
    pair.assert_up()
    assert exchanges(sealing)[: count + 1] == [*[X.IKE_INTERMEDIATE] * count, X.IKE_AUTH]
    *earlier, request, response = between(sealing)
    assert earlier == [[]] * (2 * count - 2)
    ((kind, data),) = request
    assert (kind, data[:-8], response) == (
        IDENTITY_KEY,
        b"\x02office",
        [(NotifyType.PPK_IDENTITY, b"\x02office")],
    )
    for host in (pair.moon, pair.sun):
        assert host.views[0].ppk_id == "office"
        assert host.ike_sa.ppk_exchange is X.IKE_INTERMEDIATE
        assert host.ike_sa.transcript == Transcript()
    said = [p.type for _, ps in sealing.sent for p in ps if isinstance(p, NotifyPayload)]
    assert NotifyType.NO_PPK_AUTH not in said


def test_one_to_itself_has_no_key_exchange(ends: Any, sealing: Any) -> None:
    pair = ends()
    pair.up()
    messages = [ps for m, ps in sealing.sent if m.exchange is X.IKE_INTERMEDIATE]
    assert not any(isinstance(p, KePayload) for payloads in messages for p in payloads)


@pytest.mark.parametrize("ike", [CLASSICAL, HYBRID])
def test_keys_and_confirmation_are_those_of_the_rfc(
    ends: Any, sealing: Any, monkeypatch: pytest.MonkeyPatch, ike: str
) -> None:
    """Against the formulas by hand, for AES-GCM with 128 bits and HMAC-SHA2-256."""
    steps: list[tuple[Any, ...]] = []

    def spy(sa: IkeSa, shared_secret: bytes, ppk: Ppk | None) -> None:
        before = sa.keys
        mix_in(sa, shared_secret, ppk)
        steps.append((before, shared_secret, sa.keys))

    monkeypatch.setattr(intermediate_module, "mix_in", spy)
    pair = ends(ike=ike)
    pair.up()
    pair.assert_up()
    assert steps[0] == steps[1]
    before, secret, after = steps[0]
    sa = pair.moon.ike_sa
    nonces, spis = b"".join(sa.nonces), sa.channel.spi_i + sa.channel.spi_r

    def prf(key: bytes, data: bytes) -> bytes:
        return hmac.digest(key, data, "sha256")

    def expanded(skeyseed: bytes) -> list[bytes]:
        stream = block = b""
        for number in range(1, 10):
            block = prf(skeyseed, block + nonces + spis + bytes([number]))
            stream += block
        return [stream[a:b] for a, b in pairwise((0, 32, 52, 72, 104, 136))]

    sk_d = before.sk_d
    if secret:
        sk_d = expanded(prf(sk_d, secret + nonces))[0]
    keys = expanded(prf(OFFICE.key.octets, sk_d + b"\x01"))
    assert [after.sk_d, after.sk_ei, after.sk_er, after.sk_pi, after.sk_pr] == keys
    ((_, data),) = between(sealing)[0]
    assert data[-8:] == prf(OFFICE.key.octets, nonces + spis)[:8]


def test_identities_are_under_keys_that_have_it(
    ends: Any, sealing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is what it is for: who has broken the key exchange cannot read IKE_AUTH."""
    old: list[Any] = []
    real = mix_in

    def spy(sa: IkeSa, shared_secret: bytes, ppk: Ppk | None) -> None:
        assert sa.keys is not None
        old.append(sa.keys)
        real(sa, shared_secret, ppk)

    monkeypatch.setattr(intermediate_module, "mix_in", spy)
    pair = ends()
    pair.up()
    assert exchanges(sealing)[1] is X.IKE_AUTH
    assert any(isinstance(p, IdiPayload) for p in sealing.sent[2][1])
    new = pair.moon.ike_sa.keys
    assert {new.sk_ei, new.sk_er}.isdisjoint({old[0].sk_ei, old[0].sk_er})


def test_all_are_named_and_the_first_that_both_have_is_taken(ends: Any, sealing: Any) -> None:
    pair = ends((FALSE, BRANCH), (OFFICE, BRANCH), required="moon and sun")
    pair.up()
    pair.assert_up()
    named = [data[:-8] for _, data in between(sealing)[0]]
    assert named == [b"\x02office", b"\x02\x00\xff"]
    assert [h.views[0].ppk_id for h in (pair.moon, pair.sun)] == ["0x00ff", "0x00ff"]


@pytest.mark.parametrize(
    ("moon", "sun"),
    [((OFFICE,), (BRANCH,)), ((OFFICE,), (FALSE,)), ((OFFICE,), ()), ((), (OFFICE,)), ((), ())],
)
def test_without_one_in_common_the_tunnel_comes_up_if_neither_end_requires_it(
    ends: Any, moon: tuple[Ppk, ...], sun: tuple[Ppk, ...]
) -> None:
    pair = ends(moon, sun)
    pair.up()
    pair.assert_up()
    assert [h.views[0].ppk_id for h in (pair.moon, pair.sun)] == ["", ""]


@pytest.mark.parametrize(
    ("moon", "sun", "code", "said"),
    [
        (BRANCH, OFFICE, "XF2033", "0x0200ff"),
        (FALSE, OFFICE, "XF2034", "under the names of ours"),
    ],
)
def test_a_responder_that_requires_one_refuses_before_it_hears_who_calls(
    ends: Any, sealing: Any, moon: Ppk, sun: Ppk, code: str, said: str
) -> None:
    pair = ends((moon,), (sun,), required="sun")
    pair.up()
    failure = refusal(pair.sun)
    assert failure.code == code
    assert said in failure.summary
    assert ("our PPKs", "office (o.ppk)") in failure.evidence
    assert exchanges(sealing) == [X.IKE_INTERMEDIATE]
    assert sealing.sent[-1][1] == (NotifyPayload(type=NotifyType.AUTHENTICATION_FAILED),)
    told = refusal(pair.moon, TunnelClosed)
    assert told.code == "XF2033"
    assert ("our PPKs", str(moon)) in told.evidence


@pytest.mark.parametrize("sun", [BRANCH, FALSE])
def test_an_initiator_that_requires_one_says_nothing_more(
    ends: Any, sealing: Any, sun: Ppk
) -> None:
    pair = ends((OFFICE,), (sun,), required="moon")
    pair.up()
    assert refusal(pair.moon, TunnelClosed).code == "XF2033"
    assert exchanges(sealing) == [X.IKE_INTERMEDIATE]


# Who the peer is, is known after the choice.


def two_tunnels(pair: Any, remote: str, **theirs: Any) -> None:
    """Sun has a second tunnel with whoever calls, for another identity."""
    more = replace(pair.sun.policy, name="tunnel-b", remote_id=Identity.parse(remote), **theirs)
    pair.sun.endpoint.add_tunnel(more)


def test_a_key_of_another_tunnel_does_not_let_the_peer_in(ends: Any) -> None:
    """Both tunnels are of the same address; the key that was chosen is of the wrong one."""
    pair = ends((BRANCH,), (OFFICE,))
    two_tunnels(pair, "mars.example.org", ppks=(BRANCH,))
    pair.up()
    pair.assert_down()
    failure = refusal(pair.sun)
    assert failure.code == "XF2033"
    assert "'0x00ff' is not of who the peer says it is" in failure.summary
    assert ("our PPKs", "office (o.ppk)") in failure.evidence


def test_tunnels_with_other_keys_of_one_name_are_told_apart(ends: Any) -> None:
    pair = ends((OFFICE,), (OFFICE,), required="moon and sun")
    two_tunnels(pair, "mars.example.org", ppks=(FALSE,))
    pair.up()
    pair.assert_up()
    assert pair.sun.views[0].ppk_id == "office"


def test_a_tunnel_that_requires_one_is_not_had_without_beside_one_that_does_not(ends: Any) -> None:
    pair = ends((OTHER,), (OFFICE,), required="sun")
    two_tunnels(pair, "mars.example.org", ppks=(), ppk_required=False)
    pair.up()
    pair.assert_down()
    assert refusal(pair.sun).code == "XF2033"


# Peers of RFC 8784 alone, and those on the way.


@pytest.mark.parametrize("required", ["", "moon and sun"])
def test_a_responder_of_the_older_rfc_goes_on_as_that_says(
    ends: Any, sealing: Any, monkeypatch: pytest.MonkeyPatch, required: str
) -> None:
    monkeypatch.setattr(init_module, "choose_ppk_exchange", lambda *_: X.IKE_AUTH)
    pair = ends(required=required)
    pair.up()
    pair.assert_up()
    assert between(sealing) == []
    for host in (pair.moon, pair.sun):
        assert host.views[0].ppk_id == "office"
        assert host.ike_sa.ppk_exchange is X.IKE_AUTH


@pytest.mark.usefixtures("ppk_in_auth")
def test_an_initiator_of_the_older_rfc_is_answered_as_that_says(ends: Any, sealing: Any) -> None:
    pair = ends(ike=HYBRID, required="moon and sun")
    pair.up()
    pair.assert_up()
    assert between(sealing) == [[], []]
    assert pair.sun.ike_sa.ppk_exchange is X.IKE_AUTH


def without(kind: NotifyType, sender: str) -> Callable[..., list[bytes]]:
    """Somebody on the way takes a notification out of IKE_SA_INIT."""

    def strip(output: SendDatagram, host: Any) -> list[bytes]:
        message = decode_message_untrusted(output.data[4:] if output.path.natt else output.data)
        if host.name != sender or message.exchange is not X.IKE_SA_INIT:
            return [output.data]
        kept = tuple(
            p for p in message.payloads if not (isinstance(p, NotifyPayload) and p.type == kind)
        )
        return [encode_message(replace(message, payloads=kept))]

    return strip


@pytest.mark.parametrize("sender", ["moon", "sun"])
@pytest.mark.parametrize("required", ["", "moon and sun"])
def test_a_downgrade_by_somebody_on_the_way_is_noticed(
    ends: Any, sender: str, required: str
) -> None:
    """AUTH covers IKE_SA_INIT (RFC 7296 section 2.15)."""
    pair = ends(required=required)
    pair.impair = without(NotifyType.USE_PPK_INT, sender)
    pair.up()
    pair.run(REFUSAL_SECONDS + 1)
    pair.assert_down()


@pytest.mark.parametrize(
    "more", [(NotifyType.USE_PPK, ""), (None, NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED)]
)
def test_an_answer_that_makes_no_sense_is_waited_out(
    ends: Any, more: tuple[NotifyType | None, NotifyType | str]
) -> None:
    added, taken = more
    pair = ends(required="moon")

    def twist(output: SendDatagram, host: Any) -> list[bytes]:
        message = decode_message_untrusted(output.data[4:] if output.path.natt else output.data)
        if host is not pair.sun or message.exchange is not X.IKE_SA_INIT:
            return [output.data]
        kept = tuple(p for p in message.payloads if getattr(p, "type", None) != taken)
        extra = () if added is None else (NotifyPayload(type=added),)
        return [encode_message(replace(message, payloads=(*kept, *extra))), output.data]

    pair.impair = twist
    pair.up()
    pair.assert_up()
    assert pair.moon.ike_sa.ppk_exchange is X.IKE_INTERMEDIATE


# Wrong in themselves.


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        b"\x02office",
        b"\x02office1234567",
        b"\x01office12345678",
        bytes(9),
        b"\x02\xff\x1b[2J" + bytes(8),
        b"\x02" + b"x" * 5000,
    ],
)
def test_a_name_of_any_octets_is_one_that_we_do_not_have(
    ends: Any, sealing: Any, data: bytes
) -> None:
    pair = ends(required="sun")
    sealing.change = with_notification(IDENTITY_KEY, lambda _: data)
    pair.up()
    pair.assert_down()
    failure = refusal(pair.sun)
    assert failure.code in {"XF2033", "XF2034"}
    assert failure.summary.isprintable()
    assert len(failure.summary) < 300


@pytest.mark.parametrize("bit", range(0, 64, 9))
def test_a_confirmation_with_one_bit_wrong_confirms_nothing(
    ends: Any, sealing: Any, bit: int
) -> None:
    def flip(data: bytes) -> bytes:
        tail = int.from_bytes(data[-8:], "big") ^ (1 << bit)
        return data[:-8] + tail.to_bytes(8, "big")

    pair = ends(required="sun")
    sealing.change = with_notification(IDENTITY_KEY, flip)
    pair.up()
    assert refusal(pair.sun).code == "XF2034"


def test_only_so_many_names_are_looked_at(ends: Any, sealing: Any) -> None:
    pair = ends(required="sun")
    junk = tuple(
        NotifyPayload(type=IDENTITY_KEY, data=b"\x02office" + n.to_bytes(8, "big"))
        for n in range(MAX_NAMED)
    )
    sealing.change = lambda message, payloads: (
        (*junk, *payloads)
        if message.exchange is X.IKE_INTERMEDIATE and not message.is_response
        else payloads
    )
    pair.up()
    assert refusal(pair.sun).code == "XF2034"


@pytest.mark.parametrize("data", [b"", b"\x02", b"\x02branch", b"\x01office", b"\x02office\x00"])
def test_a_choice_of_what_was_not_named_breaks_the_protocol(
    ends: Any, sealing: Any, data: bytes
) -> None:
    pair = ends()
    sealing.change = with_notification(NotifyType.PPK_IDENTITY, lambda _: data)
    pair.up()
    assert refusal(pair.moon, TunnelClosed).code == "XF2008"


def test_two_choices_break_the_protocol(ends: Any, sealing: Any) -> None:
    pair = ends()
    twice = NotifyPayload(type=NotifyType.PPK_IDENTITY, data=b"\x02office")
    sealing.change = lambda message, payloads: (
        (*payloads, twice)
        if message.exchange is X.IKE_INTERMEDIATE and message.is_response
        else payloads
    )
    pair.up()
    assert refusal(pair.moon, TunnelClosed).code == "XF2008"


def test_a_choice_that_is_not_told_leaves_the_ends_with_different_keys(
    ends: Any, sealing: Any
) -> None:
    pair = ends()
    sealing.change = with_notification(NotifyType.PPK_IDENTITY, lambda _: None)
    pair.up()
    assert not any(host.datapath.dump().sad for host in (pair.moon, pair.sun))


def test_a_confirmation_in_ike_auth_breaks_the_protocol(ends: Any, sealing: Any) -> None:
    pair = ends()
    late = NotifyPayload(type=NotifyType.PPK_IDENTITY)
    sealing.change = lambda message, payloads: (
        (*payloads, late) if message.exchange is X.IKE_AUTH and message.is_response else payloads
    )
    pair.up()
    assert refusal(pair.moon, TunnelClosed).code == "XF2008"


def test_ike_auth_before_it_breaks_the_protocol(
    ends: Any, sealing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An initiator cannot leave out what has been agreed on."""
    pair = ends()
    real = intermediate_module.begin_next

    def hurry(sa: IkeSa, *rest: Any) -> None:
        sa.transcript = replace(sa.transcript, pending=())
        real(sa, *rest)

    monkeypatch.setattr(init_module, "begin_next", hurry)
    pair.up()
    pair.assert_down()
    assert not pair.sun.datapath.dump().sad
    assert exchanges(sealing)[0] is X.IKE_AUTH


# Beside the rest of the protocol.


@pytest.mark.parametrize("kind", [KeyKind.RSA, KeyKind.ED25519])
def test_signatures_are_over_keys_that_have_it(ends: Any, kind: KeyKind) -> None:
    pair = ends(required="moon and sun")
    for host, other in ((pair.moon, "sun"), (pair.sun, "moon")):
        keys = {"local_key": private_key(kind, host.name), "remote_key": public_key(kind, other)}
        host.policy = replace(host.policy, **keys)
        host.start()
    pair.up()
    pair.assert_up()
    assert pair.sun.views[0].ppk_id == "office"


def test_rekeyed_ike_sas_have_it(ends: Any, sealing: Any) -> None:
    pair = ends(required="moon and sun")
    pair.up()
    pair.moon.endpoint.rekey_ike_sas("tunnel-a", pair.now)
    pair.deliver()
    pair.assert_up()
    for host in (pair.moon, pair.sun):
        assert host.views[-1].ppk_id == "office"
        assert host.ike_sas[-1].ppk_exchange is X.IKE_INTERMEDIATE
    assert len(between(sealing)) == 2


def test_a_resumed_ike_sa_follows_from_keys_that_have_it(ends: Any, sealing: Any) -> None:
    pair = ends(required="moon and sun", resumption=True)
    pair.sun.policy = replace(pair.sun.policy, dpd_seconds=0.0)
    pair.sun.start()
    pair.up()
    deliver, pair.impair = pair.impair, lambda _output, _sender: []
    pair.run(150)
    pair.impair = deliver
    pair.up()
    pair.assert_up()
    assert len(between(sealing)) == 2
    assert [h.views[-1].ppk_id for h in (pair.moon, pair.sun)] == ["office", "office"]


@pytest.mark.parametrize("ike", [CLASSICAL, HYBRID])
@pytest.mark.parametrize("limits", [{"cookies_at": 0}, {"cookies_at": 0, "puzzles_at": 0}])
def test_cookies_and_puzzles_come_before_it(ends: Any, ike: str, limits: dict[str, int]) -> None:
    pair = ends(required="moon and sun", ike=ike, host_keys={"limits": AdmissionLimits(**limits)})
    pair.up()
    pair.run(30)
    pair.assert_up()
    assert pair.sun.views[-1].ppk_id == "office"


def test_another_group_may_be_asked_for_before_it(ends: Any, make_policy: MakePolicy) -> None:
    pair = ends(required="moon and sun", ike="aes128gcm16-prfsha256-x25519-ecp256")
    proposals = make_policy(ike="aes128gcm16-prfsha256-ecp256").proposals
    pair.sun.policy = replace(pair.sun.policy, proposals=proposals)
    pair.sun.start()
    pair.up()
    pair.assert_up()
    assert pair.sun.views[0].ppk_id == "office"


def test_many_names_go_in_fragments(ends: Any) -> None:
    many = tuple(replace(BRANCH, id=f"0x{n:04x}" + "00" * 120) for n in range(MAX_NAMED - 1))
    pair = ends((*many, OFFICE), required="moon and sun")
    pair.up()
    pair.assert_up()
    assert pair.sun.views[0].ppk_id == "office"
    messages = [
        decode_message_untrusted(o.data[4:] if o.path.natt else o.data)
        for name, o in pair.sent
        if name == "moon"
    ]
    parts = [m.sealed for m in messages if m.exchange is X.IKE_INTERMEDIATE]
    assert len(parts) > 1
    assert all(isinstance(part, EncryptedFragmentPayload) for part in parts)


@pytest.mark.parametrize("lost", range(6))
def test_every_message_may_be_lost_or_come_twice(ends: Any, lost: int) -> None:
    pair = ends(required="moon and sun", ike=HYBRID)
    count = 0

    def impair(output: SendDatagram, _sender: Any) -> list[bytes]:
        nonlocal count
        count += 1
        return [] if count - 1 == lost else [output.data, output.data]

    pair.impair = impair
    pair.up()
    pair.run(40)
    pair.assert_up()
    assert [h.views[-1].ppk_id for h in (pair.moon, pair.sun)] == ["office", "office"]


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_it_outlives_a_kill_at_every_step(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Any, end: str
) -> None:
    for outputs in range(1, 30, 2):
        policy = replace(make_policy(), ppks=(OFFICE,), ppk_required=True)
        pair = make_pair(policy, make_mirror(policy), keeps=True)
        host = pair.ends(end)[0]
        host.dies_after, host.lives_again = outputs, True
        pair.up()
        pair.run(100)
        if not pair.moon.views:  # Sun has forgotten what was half open.
            pair.up()
        pair.assert_up()
        for each in (pair.moon, pair.sun):
            assert each.views[-1].ppk_id == "office"
            assert each.ike_sas[-1].ppk_exchange is X.IKE_INTERMEDIATE


def test_the_offer_is_both_rfcs_and_the_exchange_for_the_newer(ends: Any) -> None:
    pair = ends()
    pair.up()
    first = decode_message_untrusted(pair.sent[0][1].data)
    types = [p.type for p in first.payloads if isinstance(p, NotifyPayload)]
    assert {
        NotifyType.USE_PPK,
        NotifyType.USE_PPK_INT,
        NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED,
    } <= set(types)
    answer = decode_message_untrusted(pair.sent[1][1].data)
    assert USE_PPK_INT in answer.payloads
    assert not any(
        p.type == NotifyType.USE_PPK for p in answer.payloads if isinstance(p, NotifyPayload)
    )
