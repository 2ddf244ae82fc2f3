"""The attack classes that this field has suffered, as far as they concern what exists here.

Each test says what a hostile or broken peer, or somebody on the way, does; the answer is a clear
reason, a right refusal or silence, and no harm to anything else. A defect found fails any of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from itertools import combinations
from typing import Any

import pytest

from xfrmpy.ike import channel as channel_module
from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.outputs import (
    ChildSaEstablished,
    DefectFound,
    IkeSaEstablished,
    RequestRefused,
    SendDatagram,
    TunnelClosed,
)
from xfrmpy.ike.protection import Protection
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.drift import Dump
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.model import SharedKey
from xfrmpy.registry import (
    AuthenticationMethod,
    ExchangeType,
    KeyExchangeMethod,
    NotifyType,
    PayloadType,
    TransformType,
)
from xfrmpy.wire.message import decode_message_untrusted, encode_message, encrypted_prefix
from xfrmpy.wire.payloads import (
    AuthPayload,
    IdiPayload,
    IdrPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    SaPayload,
    TsiPayload,
    TsrPayload,
    UnknownPayload,
)

MakePair = Callable[..., Any]
MakePolicy = Callable[..., Any]
Change = Callable[[tuple[Any, ...]], tuple[Any, ...]]
Tamper = Callable[[int, Change], None]

STEPS = [
    (ExchangeType.IKE_SA_INIT, False),
    (ExchangeType.IKE_SA_INIT, True),
    (ExchangeType.IKE_AUTH, False),
    (ExchangeType.IKE_AUTH, True),
]
STEP_IDS = [f"{e.name}-{'response' if r else 'request'}" for e, r in STEPS]


@pytest.fixture
def tamper(sealing: Any, monkeypatch: pytest.MonkeyPatch) -> Tamper:
    """Change the payloads of one step before they are signed and sealed: an odd, honest peer."""

    def set_up(step: int, change: Change) -> None:
        def changed(message: Any, payloads: tuple[Any, ...]) -> tuple[Any, ...]:
            is_step = (message.exchange, message.is_response) == STEPS[step]
            return change(payloads) if is_step else payloads

        sealing.change = changed
        monkeypatch.setattr(
            channel_module,
            "encode_message",
            lambda m: encode_message(replace(m, payloads=changed(m, m.payloads))),
        )

    return set_up


def _is_established(host: Any) -> bool:
    return bool(host.reports(IkeSaEstablished))


def _settles(pair: Any, *, up: bool) -> None:
    """After enough time both ends have the tunnel, or neither has anything."""
    pair.run(400)
    if up:
        pair.assert_up()
    else:
        pair.assert_forgotten()


def _size_of(step: int, tamper: Any, pair: Any) -> int:
    """How many payloads a message has when nothing is amiss."""
    sizes: list[int] = []

    def count(payloads: Any) -> Any:
        sizes.append(len(payloads))
        return payloads

    tamper(step, count)
    pair.up()
    return sizes[0]


# What is missing.

MANDATORY = [
    (SaPayload, KePayload, NoncePayload),
    (SaPayload, KePayload, NoncePayload),
    (IdiPayload, AuthPayload, SaPayload, TsiPayload, TsrPayload),
    (IdrPayload, AuthPayload, SaPayload, TsiPayload, TsrPayload),
]


@pytest.mark.parametrize("step", range(4), ids=STEP_IDS)
@pytest.mark.parametrize("how_many", [1, 2])
def test_a_message_that_lacks_payloads_makes_no_tunnel_unless_they_are_optional(
    make_pair: MakePair, make_policy: MakePolicy, tamper: Any, step: int, how_many: int
) -> None:
    size = _size_of(step, tamper, make_pair(make_policy()))
    for absent in combinations(range(size), how_many):
        lacking: list[Any] = []

        def drop(payloads: Any, absent: Any = absent, lacking: Any = lacking) -> Any:
            assert len(payloads) == size
            lacking[:] = [payloads[i] for i in absent]
            return tuple(p for i, p in enumerate(payloads) if i not in absent)

        tamper(step, drop)
        pair = make_pair(make_policy())
        pair.up()
        needed = [p for p in lacking if isinstance(p, MANDATORY[step])]
        if any(isinstance(p, IdiPayload | IdrPayload | AuthPayload) for p in needed):
            receiver = pair.sun if step == 2 else pair.moon
            assert not _is_established(receiver)
        _settles(pair, up=not needed)


@pytest.mark.parametrize("step", range(4), ids=STEP_IDS)
def test_a_message_with_a_payload_doubled_makes_no_tunnel_but_for_notifications(
    make_pair: MakePair, make_policy: MakePolicy, tamper: Any, step: int
) -> None:
    for index in range(_size_of(step, tamper, make_pair(make_policy()))):
        doubled: list[Any] = []

        def double(payloads: Any, index: int = index, doubled: Any = doubled) -> Any:
            doubled[:] = [payloads[index]]
            return (*payloads, payloads[index])

        tamper(step, double)
        pair = make_pair(make_policy())
        pair.up()
        _settles(pair, up=isinstance(doubled[0], NotifyPayload))


def _without_transforms(payloads: Any, absent: tuple[int, ...]) -> Any:
    def cut(payload: Any) -> Any:
        if not isinstance(payload, SaPayload):
            return payload
        (proposal,) = payload.proposals
        kept = tuple(t for i, t in enumerate(proposal.transforms) if i not in absent)
        return SaPayload(proposals=(replace(proposal, transforms=kept),))

    return tuple(cut(p) for p in payloads)


@pytest.mark.parametrize("step", range(4), ids=STEP_IDS)
@pytest.mark.parametrize("cipher", ["aes128gcm16", "aes128-sha256"])
def test_a_proposal_that_lacks_transforms_is_refused(
    make_pair: MakePair, make_policy: MakePolicy, tamper: Any, step: int, cipher: str
) -> None:
    size = {"aes128gcm16": (3, 2), "aes128-sha256": (4, 3)}[cipher][step // 2]
    for how_many in (1, 2):
        if how_many >= size:
            continue
        for absent in combinations(range(size), how_many):
            tamper(step, lambda p, absent=absent: _without_transforms(p, absent))
            pair = make_pair(make_policy(ike=f"{cipher}-prfsha256-x25519", esp=cipher))
            pair.up()
            assert not pair.moon.reports(ChildSaEstablished)
            _settles(pair, up=False)


@pytest.mark.parametrize("step", range(4), ids=STEP_IDS)
@pytest.mark.parametrize("bits", [None, 0, 64, 129, 192, 65535])
def test_a_cipher_of_another_key_length_is_refused(
    make_pair: MakePair, make_policy: MakePolicy, tamper: Any, step: int, bits: int | None
) -> None:
    def change(payloads: Any) -> Any:
        def odd(payload: Any) -> Any:
            if not isinstance(payload, SaPayload):
                return payload
            (proposal,) = payload.proposals
            changed = tuple(
                replace(t, key_bits=bits) if t.type == TransformType.ENCR else t
                for t in proposal.transforms
            )
            return SaPayload(proposals=(replace(proposal, transforms=changed),))

        return tuple(odd(p) for p in payloads)

    tamper(step, change)
    pair = make_pair(make_policy())
    pair.up()
    _settles(pair, up=False)


@pytest.mark.parametrize("step", [1, 3], ids=["IKE", "ESP"])
def test_a_chosen_proposal_that_was_not_offered_is_refused(
    make_pair: MakePair, make_policy: MakePolicy, tamper: Any, step: int
) -> None:
    """Each field of the choice on its own: number, protocol, and every algorithm's id."""
    odd: list[Callable[[Any], Any]] = [lambda p: replace(p, number=2)]
    for index in range((3, 2)[step // 2]):
        for number in (0, 1, 2, 13, 99, 65535):

            def other(p: Any, index: int = index, number: int = number) -> Any:
                kept = list(p.transforms)
                kept[index] = replace(kept[index], id=number)
                return replace(p, transforms=tuple(kept))

            odd.append(other)
    for change in odd:
        original: list[Any] = []

        def choose(payloads: Any, change: Any = change, original: Any = original) -> Any:
            def swap(p: Any) -> Any:
                if not isinstance(p, SaPayload):
                    return p
                original[:] = [p.proposals[0], change(p.proposals[0])]
                return SaPayload(proposals=(original[1],))

            return tuple(swap(p) for p in payloads)

        tamper(step, choose)
        pair = make_pair(make_policy())
        pair.up()
        _settles(pair, up=original[0] == original[1])


# Key exchange and nonces.


def _with(kind: type, *substitutes: Any) -> Callable[[Any], Any]:
    def change(payloads: Any) -> Any:
        out: list[Any] = []
        for p in payloads:
            out += substitutes if isinstance(p, kind) else [p]
        return tuple(out)

    return change


X25519 = KeyExchangeMethod.CURVE25519
LOW_ORDER = bytes(32)


@pytest.mark.parametrize("step", [0, 1], ids=STEP_IDS[:2])
@pytest.mark.parametrize(
    "ke",
    [
        KePayload(method=X25519, data=b""),
        KePayload(method=X25519, data=b"\x09"),
        KePayload(method=X25519, data=bytes(33)),
        KePayload(method=X25519, data=LOW_ORDER),
        KePayload(method=X25519, data=b"\1" + bytes(31)),
        KePayload(method=KeyExchangeMethod.ECP_256, data=bytes(64)),
        KePayload(method=KeyExchangeMethod.MODP_768, data=bytes(96)),
        KePayload(method=KeyExchangeMethod(0), data=b""),
        KePayload(method=KeyExchangeMethod(40000), data=bytes(32)),
    ],
    ids=lambda ke: f"{ke.method.name}-{len(ke.data)}-{ke.data[:1].hex()}",
)
def test_a_bad_public_value_makes_no_keys(pair: Any, tamper: Any, step: int, ke: KePayload) -> None:
    tamper(step, _with(KePayload, ke))
    pair.up()
    for host in (pair.moon, pair.sun):
        assert not _is_established(host)
    assert not pair.moon.ike_sa.keys
    _settles(pair, up=False)


@pytest.mark.parametrize("group", ["modp2048", "ecp256", "ecp521"])
@pytest.mark.parametrize("step", [0, 1], ids=STEP_IDS[:2])
def test_degenerate_public_values_make_no_keys(
    make_pair: MakePair, make_policy: MakePolicy, tamper: Any, group: str, step: int
) -> None:
    policy = make_policy(ike=f"aes128gcm16-prfsha256-{group}")
    method = KeyExchangeMethod[{"modp2048": "MODP_2048"}.get(group, f"ECP_{group[-3:]}")]
    size = {"modp2048": 256, "ecp256": 64, "ecp521": 132}[group]
    for data in (bytes(size), bytes(size - 1) + b"\1", b"\xff" * size, bytes(size - 1), b""):
        tamper(step, _with(KePayload, KePayload(method=method, data=data)))
        pair = make_pair(policy)
        pair.up()
        assert not pair.moon.ike_sa.keys
        assert not _is_established(pair.sun)


@pytest.mark.parametrize("step", [0, 1], ids=STEP_IDS[:2])
@pytest.mark.parametrize(("size", "good"), [(0, 0), (15, 0), (16, 1), (256, 1), (257, 0)])
def test_a_nonce_has_16_to_256_octets(
    pair: Any, tamper: Any, step: int, size: int, good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if good:
        monkeypatch.setattr("xfrmpy.ike.init.NONCE_SIZE", size)
    else:
        odd = UnknownPayload(type=PayloadType.NONCE, critical=False, data=bytes(size))
        tamper(step, _with(NoncePayload, odd))
    pair.up()
    _settles(pair, up=bool(good))


# Versions and reserved bits (section 2.5, 3.1).


@pytest.mark.parametrize(
    ("octet", "bits"),
    [(17, 0x01), (17, 0x0F), (19, 0x10), (19, 0xC7)],
    ids=["minor version 1", "minor version 15", "version flag", "reserved flags"],
)
def test_reserved_bits_and_minor_versions_are_ignored(
    pair: Any, monkeypatch: pytest.MonkeyPatch, octet: int, bits: int
) -> None:
    def bumped(data: bytes) -> bytes:
        return data[:octet] + bytes([data[octet] | bits]) + data[octet + 1 :]

    monkeypatch.setattr(channel_module, "encode_message", lambda m: bumped(encode_message(m)))
    monkeypatch.setattr(
        "xfrmpy.ike.protection.encrypted_prefix", lambda **f: bumped(encrypted_prefix(**f))
    )
    pair.up()
    pair.assert_up()


@pytest.mark.parametrize("major", [0, 1, 3, 15])
@pytest.mark.parametrize("nth", range(4), ids=STEP_IDS)
def test_another_major_version_is_refused_and_a_newer_one_told_so(
    pair: Any, nth: int, major: int
) -> None:
    pair.up()
    sender, output = pair.sent[nth]
    receiver = pair.sun if sender == "moon" else pair.moon
    before = receiver.snapshot()
    receiver.outputs.clear()
    data = output.data[:17] + bytes([major << 4]) + output.data[18:]
    path = replace(output.path, local=output.path.remote, remote=output.path.local)
    receiver.endpoint.receive_datagram(data, path, pair.now)
    sent = receiver.take_outputs()
    assert receiver.drops == [DropReason.WRONG_VERSION]
    assert receiver.snapshot() == before
    is_request = nth % 2 == 0
    assert len(sent) == (1 if major > 2 and is_request else 0)
    for answer in sent:
        message: Any = decode_message_untrusted(answer.data)
        assert [p.type for p in message.payloads] == [NotifyType.INVALID_MAJOR_VERSION]
        assert message.is_response
        assert message.is_initiator != (sender == "moon")
        assert len(answer.data) <= len(data) + 8


def test_a_version_refusal_is_not_answered_with_another(pair: Any) -> None:
    """Two gateways of newer versions may not be set on each other."""
    pair.up()
    _, output = pair.sent[0]
    path = replace(output.path, local=output.path.remote, remote=output.path.local)
    data = output.data[:17] + b"\x30" + output.data[18:]
    pair.sun.endpoint.receive_datagram(data, path, 0.0)
    (answer,) = pair.sun.take_outputs()
    bumped = answer.data[:17] + b"\x30" + answer.data[18:]
    pair.sun.endpoint.receive_datagram(bumped, path, 0.0)
    assert not pair.sun.take_outputs()


# Messages in the wrong order, from the wrong sender, and our own.


def test_ike_auth_before_ike_sa_init_is_over_is_dropped(pair: Any) -> None:
    pair.up()
    auth = [o for n, o in pair.sent if o.data[18] == ExchangeType.IKE_AUTH]
    fresh = IkeEndpoint([pair.sun.policy], pair.sun.endpoint._core.random)
    for output in auth:
        fresh.receive_datagram(output.data, output.path, 0.0)
        zero_spi = output.data[:8] + bytes(8) + output.data[16:]
        fresh.receive_datagram(zero_spi, output.path, 0.0)
    reasons = []
    while (item := fresh.next_output()) is not None:
        if not isinstance(item, SendDatagram):
            reasons.append(getattr(item, "reason", item))
    assert set(reasons) <= {DropReason.UNKNOWN_SPI, DropReason.WRONG_EXCHANGE}
    assert len(reasons) == 4
    assert not fresh._core.ike_sas


@pytest.mark.parametrize("also_forwarded", [True, False])
def test_our_own_messages_sent_back_to_us_do_nothing(pair: Any, also_forwarded: bool) -> None:
    def impair(output: SendDatagram, sender: Any) -> list[bytes]:
        path = replace(output.path, local=output.path.local, remote=output.path.remote)
        reversed_flags = bytes([output.data[19] ^ 0x08])
        swapped = output.data[:19] + reversed_flags + output.data[20:]
        for data in (output.data, swapped):
            sender.endpoint.receive_datagram(data, path, pair.now)
        return [output.data] if also_forwarded else []

    pair.impair = impair
    pair.up()
    assert DropReason.WRONG_ROLE in pair.moon.drops
    assert all(sa.is_initiator for sa in pair.moon.ike_sas)
    if also_forwarded:
        pair.assert_up()
    _settles(pair, up=also_forwarded)
    assert len(pair.moon.reports(IkeSaEstablished)) == also_forwarded


def test_a_forged_answer_cannot_hide_the_true_one(
    pair: Any, make_answer: Callable[..., bytes], make_backwards: Callable[..., Any]
) -> None:
    """The first, useless answer with an SPI of its own must not become the peer's."""
    pair.initiate()
    (request,) = pair.moon.take_outputs()
    forgeries = [
        make_answer(request.data, spi_r=b"forgery!"),
        make_answer(request.data, NoncePayload(data=bytes(32)), spi_r=b"forgery!"),
        make_answer(
            request.data,
            UnknownPayload(type=PayloadType(200), critical=True, data=b""),
            spi_r=b"forgery!",
        ),
    ]
    for forgery in forgeries:
        pair.moon.endpoint.receive_datagram(forgery, request.path, 0.0)
    assert not pair.moon.take_outputs()
    assert pair.moon.drops == [DropReason.MALFORMED] * 3
    pair.sun.endpoint.receive_datagram(request.data, make_backwards(request.path), 0.0)
    pair.deliver()
    pair.assert_up()


@pytest.mark.parametrize("nth", range(1, 7))
@pytest.mark.parametrize("at", [0, 8], ids=["SPIi", "SPIr"])
def test_a_message_with_another_spi_finds_nothing(pair: Any, nth: int, at: int) -> None:
    pair.up()
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.deliver()
    if nth >= len(pair.sent):
        return
    sender, output = pair.sent[nth]
    receiver = pair.sun if sender == "moon" else pair.moon
    data = output.data[:at] + b"somebody" + output.data[at + 8 :]
    path = replace(output.path, local=output.path.remote, remote=output.path.local)
    receiver.outputs.clear()
    receiver.endpoint.receive_datagram(data, path, pair.now)
    for answer in receiver.take_outputs():  # A request may be told so.
        (told,) = decode_message_untrusted(answer.data).payloads
        assert told == NotifyPayload(type=NotifyType.INVALID_IKE_SPI)
    assert receiver.drops == [DropReason.UNKNOWN_SPI]


# Keys and identities.


@pytest.fixture
def two_tunnels(make_policy: MakePolicy, make_mirror: Callable[..., Any]) -> tuple[Any, Any]:
    """Sun's tunnels with moon and with mars, each with a key of its own."""
    moon = make_mirror(make_policy())
    mars = replace(
        moon,
        name="tunnel-b",
        remote_id=Identity.parse("mars"),
        shared_key=SharedKey(octets=b"the key that only mars may know..", origin="mars"),
    )
    return moon, mars


@pytest.mark.parametrize(("identity", "key", "good"), [("moon", 0, True), ("moon", 1, False)])
def test_a_valid_key_proves_no_other_identity_than_its_own(
    make_pair: MakePair,
    make_policy: MakePolicy,
    two_tunnels: tuple[Any, Any],
    identity: str,
    key: int,
    good: bool,
) -> None:
    secret = two_tunnels[key].shared_key.octets
    pair = make_pair(make_policy(here=identity, key=secret), two_tunnels[0])
    pair.sun.endpoint = IkeEndpoint(two_tunnels, pair.sun.endpoint._core.random)
    for tunnel in two_tunnels:
        pair.sun.endpoint.set_peer_addresses(tunnel.name, (ip_address(pair.moon.address),))
    pair.up()
    assert _is_established(pair.sun) == good
    if not good:
        (refused,) = pair.sun.reports(RequestRefused)
        assert refused.failure.code == "XF2006"


@pytest.mark.parametrize("end", ["moon", "sun"])
@pytest.mark.parametrize(
    "method", [m for m in AuthenticationMethod if m != AuthenticationMethod.SHARED_KEY], ids=str
)
def test_another_method_of_authentication_is_refused_whatever_its_octets(
    pair: Any, tamper: Any, end: str, method: AuthenticationMethod
) -> None:
    def change(payloads: Any) -> Any:
        return tuple(
            replace(p, method=method) if isinstance(p, AuthPayload) else p for p in payloads
        )

    tamper(2 if end == "moon" else 3, change)
    pair.up()
    assert not _is_established(pair.sun if end == "moon" else pair.moon)
    _settles(pair, up=False)


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_auth_of_every_other_length_or_with_any_bit_wrong_is_refused(
    make_pair: MakePair, make_policy: MakePolicy, tamper: Any, end: str
) -> None:
    changes: list[Callable[[bytes], bytes]] = [
        lambda _d: b"",
        lambda d: d[:-1],
        lambda d: d + b"\0",
        lambda d: bytes(len(d)),
        lambda d: d[::-1],
    ]
    changes += [
        lambda d, i=i: d[:i] + bytes([d[i] ^ 0x80]) + d[i + 1 :]  # type: ignore[misc]
        for i in range(0, 32, 5)
    ]
    for change in changes:
        tamper(
            2 if end == "moon" else 3,
            lambda payloads, change=change: tuple(
                replace(p, data=change(p.data)) if isinstance(p, AuthPayload) else p
                for p in payloads
            ),
        )
        pair = make_pair(make_policy())
        pair.up()
        assert not _is_established(pair.sun if end == "moon" else pair.moon)


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_the_auth_of_an_earlier_ike_sa_is_worth_nothing(
    make_pair: MakePair, make_policy: MakePolicy, make_random: Any, tamper: Any, end: str
) -> None:
    seen: list[AuthPayload] = []

    def replay(payloads: Any) -> Any:
        mine = [p for p in payloads if isinstance(p, AuthPayload)]
        seen.extend(mine)
        return tuple(seen[0] if p in mine else p for p in payloads)

    tamper(2 if end == "moon" else 3, replay)
    first = make_pair(make_policy())
    first.up()
    first.assert_up()
    second = make_pair(make_policy())
    for host in (second.moon, second.sun):
        host.endpoint._core.random = make_random(f"second {host.name}")
    second.up()
    assert not _is_established(second.sun if end == "moon" else second.moon)


# Damage on the way.


def _flips(data: bytes) -> list[bytes]:
    return [data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :] for i in range(len(data))]


def test_every_octet_of_a_protected_datagram_is_guarded(pair: Any) -> None:
    pair.up()
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    (farewell,) = pair.moon.take_outputs()
    path = replace(farewell.path, local=farewell.path.remote, remote=farewell.path.local)
    before = pair.sun.snapshot()
    for data in _flips(farewell.data):
        pair.sun.endpoint.receive_datagram(data, path, pair.now)
        for answer in pair.sun.take_outputs():  # Only what is in clear is answered, in clear.
            message: Any = decode_message_untrusted(answer.data)
            assert message.payloads[0].type in {
                NotifyType.INVALID_MAJOR_VERSION,
                NotifyType.INVALID_IKE_SPI,
            }
    assert len(pair.sun.drops) == len(farewell.data)
    assert pair.sun.snapshot() == before
    pair.sun.endpoint.receive_datagram(farewell.data, path, pair.now)
    pair.deliver()
    pair.assert_down()


@pytest.mark.parametrize("nth", [2, 3], ids=STEP_IDS[2:])
def test_every_octet_of_ike_auth_is_guarded(pair: Any, nth: int) -> None:
    count = 0

    def impair(output: SendDatagram, _sender: Any) -> list[bytes]:
        nonlocal count
        count += 1
        return [*_flips(output.data), output.data] if count == nth + 1 else [output.data]

    pair.impair = impair
    pair.up()
    pair.assert_up()
    receiver = pair.sun if nth == 2 else pair.moon
    assert len(receiver.drops) == len(pair.sent[nth][1].data)


@pytest.mark.parametrize("nth", [0, 1], ids=STEP_IDS[:2])
def test_every_octet_of_ike_sa_init_is_guarded_by_auth(
    make_pair: MakePair, make_policy: MakePolicy, nth: int
) -> None:
    """Whatever is damaged in clear, nobody is established on it (section 2.15)."""
    probe = make_pair(make_policy())
    probe.up()
    size = len(probe.sent[nth][1].data)
    for position in range(size):
        pair = make_pair(make_policy())
        count = 0

        def impair(output: SendDatagram, _sender: Any, position: int = position) -> list[bytes]:
            nonlocal count
            count += 1
            return [_flips(output.data)[position] if count == nth + 1 else output.data]

        pair.impair = impair
        pair.up()
        assert not _is_established(pair.moon), position
        assert pair.moon.datapath.calls == []
        # A responder may believe the initiator, whose AUTH covers not the response but the
        # request; then the initiator tells it.
        if nth == 0:
            assert not _is_established(pair.sun), position
        assert pair.sun.datapath.dump() == Dump(sad=(), spd=())


# Junk.


def test_ten_thousand_junk_datagrams_leave_a_tunnel_and_the_memory_as_they_were(
    pair: Any,
) -> None:
    pair.up()
    pair.assert_up()
    chance = random.Random(7)
    seeds = [o.data for _, o in pair.sent]
    spis = (pair.sun.ike_sa.channel.spi_i, pair.sun.ike_sa.channel.spi_r)
    path = replace(pair.sent[0][1].path)
    before = [(h, h.snapshot()) for h in (pair.moon, pair.sun)]
    for number in range(10_000):
        data = _junk(chance, seeds, spis)
        natt = replace(path, natt=bool(number % 2))
        for host, _ in before:
            host.endpoint.receive_datagram(data, natt, pair.now)
        if number % 500 == 0:
            _drain(pair)
    _drain(pair)
    for host, snapshot in before:
        assert host.snapshot() == snapshot
        living = [sa for sa in host.ike_sas if sa.state is IkeSaState.ESTABLISHED]
        assert len(living) == 1
    pair.run(500)
    pair.assert_up()
    assert len(pair.moon.ike_sas) == len(pair.sun.ike_sas) == 1
    assert len(pair.sun.endpoint._timers) == 1


def _drain(pair: Any) -> None:
    for host in (pair.moon, pair.sun):
        host.take_outputs()
        host.outputs.clear()


def _junk(chance: random.Random, seeds: list[bytes], spis: tuple[bytes, bytes]) -> bytes:
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randrange(200))
    data = bytearray(chance.choice(seeds))
    if kind == 1:
        return bytes(data[: chance.randrange(len(data))])
    if kind == 2:
        for _ in range(chance.randrange(1, 20)):
            data[chance.randrange(28, len(data))] = chance.randrange(256)
        data[18] = chance.choice((34, 35, 36, 37, 43, 99))
        data[19] = chance.choice((0, 8, 0x20, 0x28))
        data[8:16] = chance.choice((spis[1], chance.randbytes(8)))
        return bytes(data)
    body = chance.randbytes(chance.randrange(100))
    header = spis[0] + spis[1] + bytes([chance.choice((33, 41, 46, 53, 200)), 0x20])
    header += bytes([chance.choice((34, 35, 36, 37)), chance.choice((0, 8, 0x20, 0x28))])
    header += chance.randrange(4).to_bytes(4, "big") + (28 + len(body)).to_bytes(4, "big")
    return header + body


def test_an_empty_or_endless_datagram_is_malformed(pair: Any) -> None:
    pair.up()
    path = pair.sent[0][1].path
    for data in (b"", b"\0", bytes(27), bytes(28), bytes(65535), b"\xff" * 65535):
        for natt in (False, True):
            pair.sun.endpoint.receive_datagram(data, replace(path, natt=natt), 0.0)
    pair.sun.take_outputs()
    assert len(pair.sun.drops) == 12
    assert set(pair.sun.drops) <= {
        DropReason.MALFORMED,
        DropReason.NO_MARKER,
        DropReason.WRONG_VERSION,
    }


# Defects of ours: contained, told, and at the cost of one IKE SA at most.


def test_a_defect_that_anybody_can_cause_costs_no_ike_sa(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.up()
    before = pair.sun.snapshot()
    pair.sun.expects_defects = True

    def fail(*_arguments: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Protection, "open", fail)
    _, output = pair.sent[2]
    path = replace(output.path, local=output.path.remote, remote=output.path.local)
    pair.sun.endpoint.receive_datagram(output.data, path, 0.0)
    assert not pair.sun.take_outputs()
    (found,) = pair.sun.reports(DefectFound)
    assert found.datagram == output.data
    assert "a defect" in found.traceback
    assert pair.sun.drops == [DropReason.DEFECT]
    assert pair.sun.snapshot() == before


def test_a_defect_in_a_handler_costs_that_ike_sa_only(
    pair: Any, make_ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.up()
    pair.up()
    first, second = pair.moon.ike_sas
    respond = IkeSa.respond
    pair.sun.expects_defects = True

    def fail(self: IkeSa, payloads: Any) -> None:
        if self.channel.their_spi == second.our_spi:
            raise RuntimeError("a defect")
        respond(self, payloads)

    monkeypatch.setattr(IkeSa, "respond", fail)
    for sa in (first, second):
        sa.start(make_ask(ExchangeType.INFORMATIONAL), 0.0)
    pair.deliver()
    assert [v.spi_i for v in pair.sun.views] == [first.our_spi]
    assert [o.failure.code for o in pair.sun.reports(TunnelClosed)] == ["XF4006"]
    assert len(pair.sun.datapath.dump().sad) == 2
    assert pair.sun.datapath.dump().spd


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_defect_in_what_waits_for_the_datapath_is_contained(
    pair: Any, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    host = getattr(pair, end)
    host.expects_defects = True
    established = ChildSa.established

    def fail(self: ChildSa, now: float) -> None:
        if self._core is host.endpoint._core:
            raise RuntimeError("a defect")
        established(self, now)

    monkeypatch.setattr(ChildSa, "established", fail)
    pair.up()
    assert len(host.reports(DefectFound)) == 1
    assert host.datapath.dump().sad == host.datapath.dump().spd == ()
    assert host.endpoint._core.children == {}
    _settles(pair, up=False)


def test_a_defect_at_a_timeout_costs_that_ike_sa_only(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.up()
    pair.up()
    pair.moon.expects_defects = True
    (first, second), timeout = pair.moon.ike_sas, IkeSa.handle_timeout

    def fail(self: IkeSa, now: float) -> None:
        if self is first and self.state is IkeSaState.ESTABLISHED:
            raise RuntimeError("a defect")
        timeout(self, now)

    monkeypatch.setattr(IkeSa, "handle_timeout", fail)
    pair.run(2)
    first.rekey_at = pair.now
    pair.moon.endpoint._core.touched.add(first)
    pair.run(0.1)
    assert [v.spi_i for v in pair.moon.views] == [second.our_spi]
    assert len(pair.moon.reports(DefectFound)) == 1
    pair.run(400)
    pair.assert_up()
