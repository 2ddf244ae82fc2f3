"""Key exchanges between IKE_SA_INIT and IKE_AUTH (RFC 9242, RFC 9370)."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from struct import Struct
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from xfrmpy.crypto.authentication import signed_octets
from xfrmpy.crypto.key_schedule import IkeKeys
from xfrmpy.ike import auth as auth_module
from xfrmpy.ike import intermediate as intermediate_module
from xfrmpy.ike import proof as proof_module
from xfrmpy.ike.admission import AdmissionLimits
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.exchange import Exchange
from xfrmpy.ike.ike_sa import HALF_OPEN_SECONDS, IkeSa
from xfrmpy.ike.intermediate import mix_in
from xfrmpy.ike.outputs import RequestRefused, SendDatagram, TunnelClosed
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.transcript import Transcript
from xfrmpy.registry import ExchangeType, KeyExchangeMethod, NotifyType, PayloadType
from xfrmpy.wire.message import Message, decode_message_untrusted, encode_message
from xfrmpy.wire.payloads import KePayload, NotifyPayload, OpenPayload

MakePair = Callable[..., Any]
MakePolicy = Callable[..., Any]
Payloads = tuple[OpenPayload, ...]

X = ExchangeType
HYBRID = "aes128gcm16-prfsha256-x25519-ke1_mlkem768"
THREE = "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke3_mlkem1024-ke7_ecp256"
CBC = "aes128-sha256-x25519-ke1_mlkem768"
CLASSICAL = "aes128gcm16-prfsha256-x25519"


@pytest.fixture
def hybrid(make_pair: MakePair, make_policy: MakePolicy) -> Any:
    return make_pair(make_policy(ike=HYBRID))


def _exchanges(pair: Any, sender: str) -> list[tuple[ExchangeType, int]]:
    """What an end has sent, fragments of a message once."""
    messages = (decode_message_untrusted(_octets(o)) for name, o in pair.sent if name == sender)
    return list(dict.fromkeys((m.exchange, m.message_id) for m in messages))


def _octets(output: SendDatagram) -> bytes:
    return output.data[4:] if output.path.natt else output.data


@pytest.mark.parametrize(("ike", "count"), [(HYBRID, 1), (CBC, 1), (THREE, 3)])
def test_every_key_exchange_has_an_exchange_before_ike_auth(
    make_pair: MakePair, make_policy: MakePolicy, ike: str, count: int
) -> None:
    pair = make_pair(make_policy(ike=ike))
    pair.up()
    pair.assert_up()
    middle = [(X.IKE_INTERMEDIATE, number) for number in range(1, count + 1)]
    expected = [(X.IKE_SA_INIT, 0), *middle, (X.IKE_AUTH, count + 1)]
    assert _exchanges(pair, "moon") == _exchanges(pair, "sun") == expected
    assert pair.moon.views[0].suite == pair.sun.views[0].suite
    assert pair.moon.views[0].suite.endswith(ike[ike.index("-x25519") :])
    assert pair.moon.drops == pair.sun.drops == []


def test_what_was_agreed_does_not_outlive_ike_auth(hybrid: Any) -> None:
    hybrid.up()
    for host in (hybrid.moon, hybrid.sun):
        assert host.ike_sa.transcript == Transcript()
        assert host.ike_sa.channel._replaced is None


def test_seven_further_key_exchanges_are_done(make_pair: MakePair, make_policy: MakePolicy) -> None:
    methods = ["mlkem768", "mlkem1024", "ecp256", "ecp384", "ecp521", "modp2048", "modp3072"]
    further = "-".join(f"ke{number}_{method}" for number, method in enumerate(methods, 1))
    pair = make_pair(make_policy(ike=f"{CLASSICAL}-{further}"))
    pair.up()
    pair.assert_up()
    assert _exchanges(pair, "moon")[-1] == (X.IKE_AUTH, 8)


# The keys and AUTH against a slow twin, which sees the datagrams and knows the secrets.

_IKE_HEADER = Struct(">8s8sBBBBII")
_GENERIC = Struct(">BBH")


class Twin:
    """Both RFCs by hand, for AES-GCM with HMAC-SHA2-384: no code of the package but the records."""

    def __init__(self, keys: IkeKeys, nonces: bytes, spis: bytes) -> None:
        self.keys, self.nonces, self.spis = keys, nonces, spis
        self.int_auth = {"moon": b"", "sun": b""}

    @staticmethod
    def prf(key: bytes, data: bytes) -> bytes:
        return hmac.digest(key, data, "sha384")

    def covered(self, sender: str, datagrams: list[bytes]) -> bytes:
        """IntAuth_A and IntAuth_P of a message that came in one piece or several."""
        key = self.keys.sk_ei if sender == "moon" else self.keys.sk_er
        inside, first, head = b"", 0, b""
        for number, data in enumerate(datagrams, 1):
            spi_i, spi_r, kind, version, exchange, flags, number_id, _ = _IKE_HEADER.unpack(
                data[:28]
            )
            fixed = 32 if kind == PayloadType.SK else 36
            if number == 1:
                first = data[28]
                head = _IKE_HEADER.pack(
                    spi_i, spi_r, PayloadType.SK, version, exchange, flags, number_id, 0
                )
            iv = data[fixed : fixed + 8]
            opened = AESGCM(key[:32]).decrypt(key[32:] + iv, data[fixed + 8 :], data[:fixed])
            inside += opened[: -opened[-1] - 1]
        generic = _GENERIC.pack(first, 0, 4 + len(inside))
        return head[:24] + (32 + len(inside)).to_bytes(4, "big") + generic + inside

    def take(self, messages: dict[str, list[bytes]], shared_secret: bytes) -> None:
        sk_p = {"moon": self.keys.sk_pi, "sun": self.keys.sk_pr}
        for sender in ("moon", "sun"):
            covered = self.covered(sender, messages[sender])
            self.int_auth[sender] = self.prf(sk_p[sender], self.int_auth[sender] + covered)
        seed, stream, block = self.nonces + self.spis, b"", b""
        skeyseed = self.prf(self.keys.sk_d, shared_secret + self.nonces)
        for number in range(1, 20):
            block = self.prf(skeyseed, block + seed + bytes([number]))
            stream += block
        cuts = [0, 48, 84, 120, 168, 216]
        sk_d, sk_ei, sk_er, sk_pi, sk_pr = (stream[start:end] for start, end in pairwise(cuts))
        self.keys = IkeKeys(
            sk_d=sk_d, sk_ai=b"", sk_ar=b"", sk_ei=sk_ei, sk_er=sk_er, sk_pi=sk_pi, sk_pr=sk_pr
        )


def test_keys_and_int_auth_are_those_of_the_rfcs(
    make_pair: MakePair, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[IkeSa, IkeKeys, bytes, IkeKeys]] = []
    signed: list[bytes] = []

    def spy(sa: IkeSa, shared_secret: bytes, _ppk: object) -> None:
        before = cast("IkeKeys", sa.keys)
        mix_in(sa, shared_secret)
        steps.append((sa, before, shared_secret, cast("IkeKeys", sa.keys)))

    real = signed_octets

    def spy_auth(*args: Any, int_auth: bytes, **kwargs: Any) -> bytes:
        signed.append(int_auth)
        return real(*args, int_auth=int_auth, **kwargs)

    monkeypatch.setattr(intermediate_module, "mix_in", spy)
    monkeypatch.setattr(proof_module, "signed_octets", spy_auth)
    pair = make_pair(make_policy(ike=THREE))
    pair.up()
    pair.assert_up()

    ours = [step for step in steps if step[0].is_initiator]
    theirs = [step for step in steps if not step[0].is_initiator]
    assert [step[1:] for step in ours] == [step[1:] for step in theirs]
    sa = ours[0][0]
    twin = Twin(ours[0][1], b"".join(sa.nonces), sa.channel.spi_i + sa.channel.spi_r)
    for number, (_, _, secret, keys) in enumerate(ours, 1):
        messages: dict[str, list[bytes]] = {"moon": [], "sun": []}
        for name, output in pair.sent:
            message = decode_message_untrusted(_octets(output))
            if (message.exchange, message.message_id) == (X.IKE_INTERMEDIATE, number):
                messages[name].append(_octets(output))
        twin.take(messages, secret)
        assert twin.keys == keys
    expected = twin.int_auth["moon"] + twin.int_auth["sun"] + (4).to_bytes(4, "big")
    assert len(signed) == 4
    assert set(signed) == {expected}


@pytest.mark.parametrize("host", ["moon", "sun"])
@pytest.mark.parametrize("which", ["intermediate_request", "intermediate_response"])
def test_an_end_that_has_seen_another_message_does_not_authenticate(
    hybrid: Any, monkeypatch: pytest.MonkeyPatch, host: str, which: str
) -> None:
    """What somebody in the middle who can break x25519 would change is found by AUTH."""

    def spy(sa: IkeSa, shared_secret: bytes, _ppk: object) -> None:
        if sa.is_initiator is (host == "moon"):
            octets = bytearray(getattr(sa.channel, which))
            octets[-1] ^= 1
            setattr(sa.channel, which, bytes(octets))
        mix_in(sa, shared_secret)

    monkeypatch.setattr(intermediate_module, "mix_in", spy)
    hybrid.up()
    hybrid.assert_down()
    (closed,) = hybrid.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2005"


# What gets lost, or comes twice.


@pytest.mark.parametrize(
    ("sender", "lost"), [*(("moon", n) for n in range(5)), *(("sun", n) for n in range(4))]
)
def test_whatever_is_lost_once_is_sent_again(
    make_pair: MakePair, make_policy: MakePolicy, sender: str, lost: int
) -> None:
    """A responder repeats its answer under the old keys, when it has the new ones already."""
    pair = make_pair(make_policy(ike=THREE))
    seen: list[bytes] = []

    def impair(output: SendDatagram, host: Any) -> list[bytes]:
        message = decode_message_untrusted(_octets(output))
        if host.name == sender and message.exchange is X.IKE_INTERMEDIATE:
            seen.append(output.data)
            return [] if len(seen) == lost + 1 else [output.data]
        return [output.data]

    pair.impair = impair
    pair.up()
    pair.run(5)
    assert len(seen) > lost
    pair.assert_up()


def test_under_heavy_loss_it_comes_up_in_smaller_fragments(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    """A path that swallows what is larger than 700 octets, of both ends."""
    pair = make_pair(make_policy(ike=HYBRID))
    pair.impair = lambda output, _: [output.data] if len(output.data) <= 700 else []
    pair.up()
    pair.run(60)
    pair.assert_up()


def test_everything_twice_and_backwards_changes_nothing(hybrid: Any) -> None:
    held: dict[str, list[bytes]] = {"moon": [], "sun": []}

    def impair(output: SendDatagram, host: Any) -> list[bytes]:
        """Fragments in reverse, each of them twice."""
        message = decode_message_untrusted(_octets(output))
        if message.exchange is not X.IKE_INTERMEDIATE or message.is_response:
            return [output.data, output.data]
        held[host.name].insert(0, output.data)
        return [d for d in held[host.name] for _ in range(2)] if len(held[host.name]) == 2 else []

    hybrid.impair = impair
    hybrid.up()
    hybrid.assert_up()


# Peers that cannot, will not, or do it wrong.


def _without_notify(output: SendDatagram, _: Any) -> list[bytes]:
    """Take INTERMEDIATE_EXCHANGE_SUPPORTED out of IKE_SA_INIT; so AUTH will not match."""
    message = decode_message_untrusted(output.data)
    if message.exchange is not X.IKE_SA_INIT:
        return [output.data]
    kept = tuple(
        p
        for p in message.payloads
        if not (
            isinstance(p, NotifyPayload) and p.type is NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED
        )
    )
    return [encode_message(replace(message, payloads=kept))]


def test_a_peer_without_the_exchange_is_answered_classically(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    pair = make_pair(make_policy(ike=f"{HYBRID} {CLASSICAL}"))
    pair.impair = _without_notify
    pair.up()
    assert (X.IKE_INTERMEDIATE, 1) not in _exchanges(pair, "moon")
    assert pair.moon.reports(TunnelClosed)[0].failure.code == "XF2005", "AUTH finds the change"


def test_a_responder_that_chooses_what_it_has_no_exchange_for_is_not_believed(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    pair = make_pair(make_policy(ike=HYBRID))
    pair.impair = lambda o, h: [o.data] if h.name == "moon" else _without_notify(o, h)
    pair.up()
    assert pair.moon.drops == [DropReason.MALFORMED]
    assert pair.moon.ike_sa.state is IkeSaState.INITIATING


@pytest.mark.parametrize(
    ("moons", "suns"), [(f"{HYBRID} {CLASSICAL}", CLASSICAL), (CLASSICAL, f"{HYBRID} {CLASSICAL}")]
)
def test_an_end_without_ml_kem_gets_a_classical_ike_sa(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: MakePolicy, moons: str, suns: str
) -> None:
    pair = make_pair(make_policy(ike=moons), make_mirror(make_policy(ike=suns)))
    pair.up()
    pair.assert_up()
    assert pair.moon.views[0].suite == CLASSICAL


@pytest.mark.parametrize(("moons", "suns"), [(HYBRID, CLASSICAL), (CLASSICAL, HYBRID)])
def test_where_it_is_required_an_end_without_is_refused_with_both_values(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: MakePolicy, moons: str, suns: str
) -> None:
    pair = make_pair(make_policy(ike=moons), make_mirror(make_policy(ike=suns)))
    pair.up()
    pair.run(10)
    pair.assert_down()
    if suns == HYBRID:
        failure = pair.sun.reports(RequestRefused)[0].failure
        assert failure.evidence == (("we accept", HYBRID), ("they offered", CLASSICAL))
    else:
        failure = pair.moon.reports(TunnelClosed)[0].failure
        assert failure.evidence[0] == ("we offered", HYBRID)
    assert failure.code == "XF2031"


def _with_ke(method: KeyExchangeMethod, data: bytes) -> Callable[[Message, Payloads], Payloads]:
    def change(message: Message, payloads: Payloads) -> Payloads:
        if message.exchange is not X.IKE_INTERMEDIATE:
            return payloads
        return (KePayload(method=method, data=data),)

    return change


@pytest.mark.parametrize("of_answer", [False, True])
@pytest.mark.parametrize(
    "ke",
    [
        (KeyExchangeMethod.ML_KEM_1024, bytes(1568)),
        (KeyExchangeMethod.ML_KEM_768, bytes(1183)),
        (KeyExchangeMethod.ML_KEM_768, b"\xff" * 1184),
        (KeyExchangeMethod.ML_KEM_768, b""),
    ],
)
def test_a_bad_key_exchange_ends_it(
    hybrid: Any, sealing: Any, ke: tuple[KeyExchangeMethod, bytes], *, of_answer: bool
) -> None:
    wrong = _with_ke(*ke)
    sealing.change = lambda m, p: wrong(m, p) if m.is_response is of_answer else p
    hybrid.up()
    hybrid.run(1)
    assert hybrid.moon.reports(TunnelClosed)
    assert hybrid.moon.ike_sas[0].state is IkeSaState.DELETED
    hybrid.run(100)
    hybrid.assert_forgotten()


def test_a_ciphertext_for_another_key_is_found_by_the_message_behind_it(
    hybrid: Any, sealing: Any
) -> None:
    """Implicit rejection: the ends have other keys, so nothing opens any more."""
    wrong = _with_ke(KeyExchangeMethod.ML_KEM_768, bytes(1088))
    sealing.change = lambda m, p: wrong(m, p) if m.is_response else p
    hybrid.up()
    assert DropReason.NOT_AUTHENTIC in hybrid.sun.drops
    hybrid.run(200)
    hybrid.assert_forgotten()


class Instead:
    """In the place of what an initiator does next."""

    def __init__(self, kind: ExchangeType, *payloads: OpenPayload) -> None:
        self.type = kind
        self._payloads = payloads

    def request(self) -> Payloads:
        return self._payloads

    def handle_response(self, payloads: Payloads, now: float) -> None:
        """Whatever it is."""


def test_ike_auth_before_the_key_exchanges_is_refused(
    hybrid: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An initiator that knows the shared key cannot leave them out, either."""
    monkeypatch.setattr(
        "xfrmpy.ike.init.begin_next",
        lambda sa, tunnel, now, _=None: auth_module.IkeAuth(sa, tunnel).begin(now),
    )
    hybrid.up()
    (refused,) = hybrid.sun.reports(RequestRefused)
    assert refused.failure.code == "XF2008"
    assert hybrid.sun.ike_sas[0].state is IkeSaState.DELETED


@pytest.mark.parametrize("ike", [CLASSICAL, HYBRID])
def test_an_exchange_that_was_not_agreed_on_is_refused(
    make_pair: MakePair, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch, ike: str
) -> None:
    """Where none was agreed on, and one too many."""
    pair = make_pair(make_policy(ike=ike))
    surplus = Instead(X.IKE_INTERMEDIATE, KePayload(method=KeyExchangeMethod.NONE, data=b""))
    module = "init" if ike == CLASSICAL else "intermediate"
    monkeypatch.setattr(
        f"xfrmpy.ike.{module}.begin_next",
        lambda sa, _tunnel, now, *_: sa.start(cast("Exchange", surplus), now),
    )
    pair.up()
    (refused,) = pair.sun.reports(RequestRefused)
    assert "agreed" in refused.failure.summary
    assert pair.sun.ike_sas[0].state is IkeSaState.DELETED


def test_an_intermediate_exchange_of_an_ike_sa_that_is_up_is_dropped(
    hybrid: Any, make_ask: Callable[..., Any]
) -> None:
    hybrid.up()
    make_ask(X.IKE_INTERMEDIATE).on(hybrid.moon)
    hybrid.deliver()
    assert hybrid.sun.drops == [DropReason.WRONG_STATE]


def test_a_stranger_gains_no_time_by_key_exchanges(
    hybrid: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has as long for all of them as others have for IKE_AUTH alone."""
    stop = Instead(X.IKE_AUTH)
    monkeypatch.setattr(
        intermediate_module,
        "begin_next",
        lambda sa, _tunnel, now, *_: sa.start(cast("Exchange", stop), now),
    )
    hybrid.impair = lambda o, _: (
        [] if decode_message_untrusted(_octets(o)).exchange is X.IKE_AUTH else [o.data]
    )
    hybrid.up()
    hybrid.run(HALF_OPEN_SECONDS - 1)
    assert hybrid.sun.ike_sas
    hybrid.run(2)
    assert hybrid.sun.ike_sas == []


def test_key_exchanges_follow_cookies_and_the_puzzle_of_ike_auth(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    limits = AdmissionLimits(cookies_at=0, puzzles_at=0, auth_puzzles_at=0)
    pair = make_pair(make_policy(ike=HYBRID), limits=limits)
    pair.up()
    pair.run(60)
    pair.assert_up()
    assert (X.IKE_INTERMEDIATE, 1) in _exchanges(pair, "moon")


# A daemon that is killed meanwhile.


@pytest.mark.parametrize("after", range(1, 14))
@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_kill_in_the_middle_of_it_is_survived(
    make_pair: MakePair, make_policy: MakePolicy, end: str, after: int
) -> None:
    """An initiator goes on with the same keys; a responder that forgot begins anew with it."""
    pair = make_pair(make_policy(ike=THREE), keeps=True)
    host = pair.moon if end == "moon" else pair.sun
    host.lives_again = True
    host.dies_after = after
    pair.initiate()
    pair.run(200)
    if not any(v.state is IkeSaState.ESTABLISHED for v in pair.moon.views):
        pair.initiate()
        pair.run(200)
    assert [v.state for v in pair.moon.views] == [IkeSaState.ESTABLISHED]
    pair.assert_mirrored()
