"""Key exchanges behind CREATE_CHILD_SA (RFC 9370 section 2.2.4)."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import pytest

from xfrmpy.crypto.key_schedule import derive_child_keys
from xfrmpy.ike import create_child_sa as create_module
from xfrmpy.ike import ike_sa as ike_sa_module
from xfrmpy.ike.followup import FOLLOWUP_SECONDS, MAX_UNFINISHED
from xfrmpy.ike.outputs import ChildSaRekeyed, IkeSaRekeyed, SendDatagram, TunnelClosed
from xfrmpy.ike.states import IkeSaState
from xfrmpy.registry import ExchangeType, KeyExchangeMethod, NotifyType
from xfrmpy.wire.message import Message, decode_message_untrusted
from xfrmpy.wire.payloads import KePayload, NotifyPayload, OpenPayload

MakePair = Callable[..., Any]
MakePolicy = Callable[..., Any]
Payloads = tuple[OpenPayload, ...]

X = ExchangeType
IKE = "aes128gcm16-prfsha256-x25519-ke1_mlkem768-ke4_ecp256"
ESP = "aes128gcm16-x25519-ke1_mlkem768-ke2_ecp384"
ENDS = ("moon", "sun")
SUBJECTS = ("ike", "child")


@pytest.fixture
def make_up(make_pair: MakePair, make_policy: MakePolicy) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        pair = make_pair(make_policy(ike=IKE, esp=ESP), **options)
        pair.up()
        pair.sent.clear()
        return pair

    return make


@pytest.fixture
def up(make_up: Callable[..., Any]) -> Any:
    return make_up()


def _begin(pair: Any, end: str, subject: str) -> None:
    endpoint = pair.ends(end)[0].endpoint
    rekey = endpoint.rekey_ike_sas if subject == "ike" else endpoint.rekey_child_sas
    rekey("tunnel-a", pair.now)


def _rekeyed(host: Any, subject: str) -> int:
    return len(host.reports(IkeSaRekeyed if subject == "ike" else ChildSaRekeyed))


def _at_rest(pair: Any) -> None:
    """One IKE SA and one Child SA at each end, and nothing half done."""
    pair.run(FOLLOWUP_SECONDS + 15)
    for host in (pair.moon, pair.sun):
        assert [v.state for v in host.views] == [IkeSaState.ESTABLISHED], host.name
        (child,) = host.ike_sa.children
        assert host.ike_sa.unfinished == []
        assert not host.ike_sa.is_rekeying
        assert host.datapath.dump().sad == tuple(child.in_force)
    pair.assert_mirrored()


def _exchanges(pair: Any, sender: str) -> list[ExchangeType]:
    messages = (decode_message_untrusted(o.data) for name, o in pair.sent if name == sender)
    seen = dict.fromkeys((m.exchange, m.message_id) for m in messages if not m.is_response)
    return [exchange for exchange, _ in seen]


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("end", ENDS)
def test_key_exchanges_follow_and_then_the_new_one_is_there(
    up: Any, end: str, subject: str
) -> None:
    _begin(up, end, subject)
    up.deliver()
    assert _exchanges(up, end)[:3] == [X.CREATE_CHILD_SA, X.IKE_FOLLOWUP_KE, X.IKE_FOLLOWUP_KE]
    assert _rekeyed(up.moon, subject) == _rekeyed(up.sun, subject) == 1
    _at_rest(up)
    suites = {r.suite for h in (up.moon, up.sun) for r in h.reports(ChildSaRekeyed)}
    assert suites == ({"aes128gcm16-esn-x25519-ke1_mlkem768-ke2_ecp384"} if suites else set())


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_keys_are_those_of_rfc_9370(
    up: Any, monkeypatch: pytest.MonkeyPatch, subject: str
) -> None:
    """By hand, from what the ends have agreed on."""
    found: list[dict[str, Any]] = []
    real = (derive_child_keys, ike_sa_module.derive_rekeyed_ike_keys)  # type: ignore[attr-defined]

    def spy(row: Any, sk_d: bytes, suite: Any, **kwargs: Any) -> Any:
        found.append({"sk_d": sk_d, "keys": real[0](row, sk_d, suite, **kwargs), **kwargs})
        return found[-1]["keys"]

    def spy_ike(suite: Any, **kwargs: Any) -> Any:
        found.append({"sk_d": kwargs["old_sk_d"], "keys": real[1](suite, **kwargs), **kwargs})
        return found[-1]["keys"]

    monkeypatch.setattr(create_module, "derive_child_keys", spy)
    monkeypatch.setattr(ike_sa_module, "derive_rekeyed_ike_keys", spy_ike)
    _begin(up, "moon", subject)
    up.deliver()
    ours, theirs = found
    assert ours["keys"] == theirs["keys"]
    for name in ("shared_secret", "further_secrets", "nonce_i", "nonce_r", "sk_d"):
        assert ours[name] == theirs[name]
    # x25519; ML-KEM-768 and ecp384, or ecp256 for the IKE SA.
    assert len(ours["shared_secret"]) == 32
    assert len(ours["further_secrets"]) == 32 + (32 if subject == "ike" else 48)

    seed = ours["shared_secret"] + ours["nonce_i"] + ours["nonce_r"] + ours["further_secrets"]
    key = ours["sk_d"]
    if subject == "ike":
        key = hmac.digest(key, seed, "sha256")
        seed = ours["nonce_i"] + ours["nonce_r"] + ours["spi_i"] + ours["spi_r"]
    block = hmac.digest(key, seed + b"\1", "sha256")
    first = ours["keys"].sk_d if subject == "ike" else ours["keys"].encryption_i
    assert first == block[: len(first)]


@pytest.mark.parametrize("lost", range(12))
@pytest.mark.parametrize("subject", SUBJECTS)
def test_whatever_is_lost_once_is_sent_again(up: Any, lost: int, subject: str) -> None:
    seen: list[bytes] = []

    def impair(output: SendDatagram, _: Any) -> list[bytes]:
        seen.append(output.data)
        return [] if len(seen) == lost + 1 else [output.data]

    up.impair = impair
    _begin(up, "moon", subject)
    up.deliver()
    up.run(5)
    assert _rekeyed(up.moon, subject) == _rekeyed(up.sun, subject) == 1
    _at_rest(up)


@pytest.mark.parametrize("subjects", [("ike", "ike"), ("child", "child"), ("ike", "child")])
@pytest.mark.parametrize("seed", range(8))
def test_rekeyings_that_cross_leave_one(
    make_up: Callable[..., Any], subjects: tuple[str, str], seed: int
) -> None:
    """Whoever has the lowest nonce; `Pair` delivers moon's first, so each order comes up too."""
    pair = make_up()
    for host in (pair.moon, pair.sun):
        host.endpoint._core.random = _seeded(f"{host.name}{seed}")
    first, second = ENDS if seed % 2 else ENDS[::-1]
    _begin(pair, first, subjects[0])
    _begin(pair, second, subjects[1])
    pair.deliver()
    pair.run(60)
    _at_rest(pair)
    assert _rekeyed(pair.moon, subjects[0]) >= 1
    assert _rekeyed(pair.moon, subjects[0]) == _rekeyed(pair.sun, subjects[0])


def _seeded(seed: str) -> Callable[[int], bytes]:
    from tests.ike.conftest import seeded_random  # noqa: PLC0415

    return seeded_random(seed)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("held", [X.CREATE_CHILD_SA, X.IKE_FOLLOWUP_KE])
@pytest.mark.parametrize("end", ENDS)
def test_a_rekeying_that_is_late_meets_one_that_is_under_way(
    up: Any, hold: Any, held: ExchangeType, end: str, subject: str
) -> None:
    """One end's messages wait until the other end is done."""
    other = "sun" if end == "moon" else "moon"
    link = hold(up)
    link.is_held = lambda header, sender: header.exchange is held and sender == end
    _begin(up, end, subject)
    _begin(up, other, subject)
    up.deliver()
    link.release()
    up.run(60)
    _at_rest(up)
    assert _rekeyed(up.moon, subject) == _rekeyed(up.sun, subject) >= 1


@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_the_peer_does_not_go_on_with_is_forgotten(up: Any, hold: Any, subject: str) -> None:
    link = hold(up)
    link.is_held = lambda header, sender: sender == "moon" and header.exchange is X.IKE_FOLLOWUP_KE
    before = up.sun.ike_sa.children[:]
    _begin(up, "moon", subject)
    up.deliver()
    (unfinished,) = up.sun.ike_sa.unfinished
    assert unfinished.until == up.now + FOLLOWUP_SECONDS
    up.run(FOLLOWUP_SECONDS + 1)
    assert up.sun.ike_sa.unfinished == []
    assert up.sun.ike_sa.children == before
    link.release()
    up.run(60)
    _at_rest(up)
    errors = {r.suite for r in up.moon.reports(ChildSaRekeyed)}
    assert errors or up.moon.reports(IkeSaRekeyed), "it was begun anew"


def test_an_end_that_cannot_go_on_says_so_once_it_knows_nothing_of_it(
    up: Any, make_ask: Callable[..., Any]
) -> None:
    link = NotifyPayload(type=NotifyType.ADDITIONAL_KEY_EXCHANGE, data=b"whatever")
    for payloads in ((link,), (), (link, link)):
        ask = make_ask(X.IKE_FOLLOWUP_KE, *payloads).on(up.moon)
        up.deliver()
        assert ask.answer is not None
        assert [p.type for p in ask.answer] == [NotifyType.STATE_NOT_FOUND]
    up.assert_up()


def test_a_peer_cannot_have_us_keep_much(
    up: Any, hold: Any, sealing: Any, make_ask: Callable[..., Any]
) -> None:
    """It begins new Child SAs without end, and goes on with none."""
    link = hold(up)
    link.is_held = lambda header, sender: sender == "moon" and header.exchange is X.IKE_FOLLOWUP_KE
    _begin(up, "moon", "child")
    up.deliver()
    (request,) = [
        p for m, p in sealing.sent if m.exchange is X.CREATE_CHILD_SA and not m.is_response
    ]
    fresh = tuple(p for p in request if not isinstance(p, NotifyPayload))
    up.moon.ike_sa.channel.window.abandon()
    for _ in range(MAX_UNFINISHED + 3):
        make_ask(X.CREATE_CHILD_SA, *fresh).on(up.moon)
        up.deliver()
    assert len(up.sun.ike_sa.unfinished) == MAX_UNFINISHED
    assert len(up.sun.ike_sa.children) == MAX_UNFINISHED + 1
    up.run(FOLLOWUP_SECONDS + 1)
    assert up.sun.ike_sa.unfinished == []
    assert len(up.sun.ike_sa.children) == 1


@pytest.mark.parametrize(
    "ke",
    [
        KePayload(method=KeyExchangeMethod.ECP_256, data=bytes(64)),
        KePayload(method=KeyExchangeMethod.ML_KEM_768, data=b"\xff" * 1184),
        KePayload(method=KeyExchangeMethod.ML_KEM_768, data=bytes(1088)[1:]),
    ],
)
@pytest.mark.parametrize("of_answer", [False, True])
def test_a_bad_key_exchange_makes_nothing(
    up: Any, sealing: Any, ke: KePayload, *, of_answer: bool
) -> None:
    def change(message: Message, payloads: Payloads) -> Payloads:
        if message.exchange is not X.IKE_FOLLOWUP_KE or message.is_response is not of_answer:
            return payloads
        return tuple(ke if isinstance(p, KePayload) else p for p in payloads)

    sealing.change = change
    _begin(up, "moon", "child")
    up.deliver()
    up.run(100)
    assert not up.moon.reports(ChildSaRekeyed)
    assert not up.sun.reports(ChildSaRekeyed)
    assert [r.failure.code for r in up.sun.reports(TunnelClosed)] in (["XF2008"], ["XF2011"])


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("after", range(1, 16, 2))
def test_a_kill_in_the_middle_of_it_is_survived(
    make_up: Callable[..., Any], end: str, subject: str, after: int
) -> None:
    pair = make_up(keeps=True)
    host = pair.ends(end)[0]
    host.lives_again = True
    host.dies_after = after
    _begin(pair, "moon", subject)
    pair.run(5)
    host.dies_after = None
    assert _rekeyed(pair.moon, subject) + _rekeyed(pair.sun, subject) >= 1
    pair.run(60)
    assert [t.unreadable for t in host.takeovers] in ([], [()])
    _at_rest(pair)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("end", ENDS)
def test_what_is_half_done_is_kept_as_the_same_octets(
    make_up: Callable[..., Any], hold: Any, end: str, subject: str
) -> None:
    """Both roles, between two of its exchanges; and it goes on from the record."""
    pair = make_up(keeps=True)
    link = hold(pair)
    link.is_held = lambda header, _: header.exchange is X.IKE_FOLLOWUP_KE
    _begin(pair, "moon", subject)
    pair.deliver()
    host = pair.ends(end)[0]
    kept = dict(host.kept)
    assert host.take_over().unreadable == ()
    host.take_outputs()
    assert host.kept == kept
    link.release()
    pair.run(5)
    assert _rekeyed(pair.moon, subject) + _rekeyed(pair.sun, subject) >= 1
    _at_rest(pair)


def test_what_is_to_be_rekeyed_waits_for_the_ike_sa_that_the_peer_is_making(
    up: Any, hold: Any
) -> None:
    link = hold(up)
    link.is_held = lambda header, sender: sender == "moon" and header.exchange is X.IKE_FOLLOWUP_KE
    _begin(up, "moon", "ike")
    up.deliver()
    up.sent.clear()
    _begin(up, "sun", "child")
    up.deliver()
    assert _exchanges(up, "sun") == []
    assert len(up.sun.ike_sa.children) == 1
    link.release()
    up.run(5)
    assert _rekeyed(up.sun, "child") == _rekeyed(up.moon, "child") == 1
    _at_rest(up)


def test_the_tunnel_can_be_ended_while_the_peer_is_at_it(up: Any, hold: Any) -> None:
    """Not that anything waits for what the peer may never do."""
    link = hold(up)
    link.is_held = lambda header, sender: sender == "moon" and header.exchange is X.IKE_FOLLOWUP_KE
    _begin(up, "moon", "ike")
    up.deliver()
    up.sun.endpoint.terminate("tunnel-a", up.now)
    up.deliver()
    up.run(100)
    up.assert_down()


def test_a_peer_without_it_is_rekeyed_classically(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: MakePolicy
) -> None:
    classical = "aes128gcm16-x25519"
    moon = make_policy(esp=f"{ESP} {classical}")
    pair = make_pair(moon, make_mirror(make_policy(esp=classical)))
    pair.up()
    for end in ENDS:
        _begin(pair, end, "child")
        pair.deliver()
    assert {r.suite for r in pair.moon.reports(ChildSaRekeyed)} == {"aes128gcm16-esn-x25519"}
