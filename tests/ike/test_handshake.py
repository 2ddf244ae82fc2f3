"""Bringing a tunnel up: what each end puts out and in which order, and every way that leads there.

RFC 7296 sections 1.2, 1.3, 2.4, 2.6, 2.9 and 2.23.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.failures import Failure
from xfrmpy.ike.auth_answer import REAUTH_PATIENCE_SECONDS
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.ike_sa import REFUSAL_SECONDS
from xfrmpy.ike.init import MAX_REPETITIONS
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ike.outputs import (
    AddPolicy,
    AddSa,
    ChildSaClosed,
    ExchangeRepeated,
    ExchangeStarted,
    IkeSaEstablished,
    NatDetected,
    RequestRefused,
    SendDatagram,
    TunnelClosed,
)
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.algorithms import CIPHERS, GROUPS, INTEGRITY, PRFS
from xfrmpy.ipsec.sad import Direction, UdpEncapsulation
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.model import Encapsulation
from xfrmpy.registry import ExchangeType, KeyExchangeMethod, NotifyType
from xfrmpy.wire.message import decode_message_untrusted
from xfrmpy.wire.payloads import KePayload, NotifyPayload, SaPayload, TsiPayload, TsrPayload

MakePair = Callable[..., Any]
MakePolicy = Callable[..., Any]

# The order of things.


def test_the_outputs_of_both_ends_come_in_their_order(pair: Any) -> None:
    pair.up()
    assert [type(o).__name__ for o in pair.moon.outputs] == [
        *("SendDatagram", "ExchangeStarted"),
        *("SendDatagram", "ExchangeStarted"),
        *("IkeSaEstablished", "AddSa", "AddSa", "AddPolicy", "AddPolicy", "AddPolicy"),
        "ChildSaEstablished",
    ]
    assert [type(o).__name__ for o in pair.sun.outputs] == [
        "SendDatagram",
        *("IkeSaEstablished", "AddSa", "AddSa", "AddPolicy", "AddPolicy", "AddPolicy"),
        "SendDatagram",
        "ChildSaEstablished",
    ]
    pair.assert_up()


def test_a_responders_inbound_sa_is_the_first_and_stands_before_the_response(pair: Any) -> None:
    pair.up()
    kinds = [type(o) for o in pair.sun.outputs]
    first = kinds.index(AddSa)
    assert pair.sun.outputs[first].entry.direction is Direction.IN
    answer = len(kinds) - 1 - kinds[::-1].index(SendDatagram)
    assert first < answer
    assert all(kinds.index(kind) < answer for kind in (AddSa, AddPolicy))


def test_nobody_is_established_before_the_peers_auth_was_verified(pair: Any) -> None:
    pair.initiate()
    pair._carry(pair.moon, pair.sun)
    pair._carry(pair.sun, pair.moon)
    requests = pair.moon.take_outputs()  # IKE_AUTH is on its way.
    for host in (pair.moon, pair.sun):
        assert host.ike_sa.state is IkeSaState.AUTHENTICATING
        assert not host.reports(IkeSaEstablished)
        assert not host.reports(AddSa)
    path = replace(requests[0].path, local=requests[0].path.remote, remote=requests[0].path.local)
    pair.sun.endpoint.receive_datagram(requests[0].data, path, pair.now)
    pair.sun.take_outputs()  # Its answer is lost.
    assert pair.sun.ike_sa.state is IkeSaState.ESTABLISHED
    assert pair.moon.ike_sa.state is IkeSaState.AUTHENTICATING


def test_a_tunnel_is_made_in_two_exchanges(pair: Any) -> None:
    pair.up()
    exchanges = [o.exchange for o in pair.moon.reports(ExchangeStarted)]
    assert exchanges == [ExchangeType.IKE_SA_INIT, ExchangeType.IKE_AUTH]
    assert len(pair.sent) == 4


# Algorithms.


@pytest.mark.parametrize("group", [g.name for g in GROUPS])
def test_every_ike_algorithm_comes_up(
    make_pair: MakePair, make_policy: MakePolicy, group: str
) -> None:
    """Each cipher, and round them each integrity algorithm and each PRF."""
    for number, cipher in enumerate(cipher for cipher in CIPHERS if cipher.is_for_ike):
        integrity = "" if cipher.is_aead else f"-{INTEGRITY[number % len(INTEGRITY)].name}"
        suite = f"{cipher.name}{integrity}-{PRFS[number % len(PRFS)].name}-{group}"
        pair = make_pair(make_policy(ike=suite))
        pair.up()
        pair.assert_up()
        parts = sorted(suite.split("-"))
        assert sorted(pair.sun.views[0].suite.split("-")) == parts
        assert sorted(pair.moon.views[0].suite.split("-")) == parts


@pytest.mark.parametrize("numbers", ["esn", "noesn"])
@pytest.mark.parametrize(
    "suite",
    [
        f"{c.name}-{i.name}" if i else c.name
        for c in CIPHERS
        for i in ((None,) if c.is_aead else INTEGRITY)
    ],
)
def test_every_esp_suite_comes_up(
    make_pair: MakePair, make_policy: MakePolicy, suite: str, numbers: str
) -> None:
    pair = make_pair(make_policy(esp=f"{suite}-{numbers}"))
    pair.up()
    pair.assert_up()
    for entry in pair.sun.datapath.dump().sad:
        assert str(entry.suite) == suite + ("-esn" if numbers == "esn" else "")
        assert entry.suite.esn == (numbers == "esn")


def test_of_several_proposals_the_responders_first_choice_wins(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any]
) -> None:
    moon = make_policy(
        ike="aes128gcm16-prfsha256-x25519 aes256gcm16-prfsha384-x25519",
        esp="aes128gcm16 chacha20poly1305",
    )
    sun = make_mirror(
        make_policy(ike="aes256gcm16-prfsha384-x25519", esp="chacha20poly1305 aes128gcm16")
    )
    pair = make_pair(moon, sun)
    pair.up()
    pair.assert_up()
    assert pair.moon.views[0].suite == "aes256gcm16-prfsha384-x25519"
    assert str(pair.moon.datapath.dump().sad[0].suite) == "chacha20poly1305-esn"


# Addresses and selectors.


@pytest.mark.parametrize("outside", [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")])
@pytest.mark.parametrize(
    "inside", [("10.1.0.0/16", "10.2.0.0/16"), ("2001:db8:1::/48", "2001:db8:2::/48")]
)
def test_ipv4_and_ipv6_go_in_and_around_each_other(
    make_pair: MakePair,
    make_policy: MakePolicy,
    make_mirror: Callable[..., Any],
    outside: tuple[str, str],
    inside: tuple[str, str],
) -> None:
    moon = make_policy(*inside, peer=outside[1])
    pair = make_pair(moon, make_mirror(moon, peer=outside[0]))
    pair.up()
    pair.assert_up()
    (inbound, outbound) = pair.moon.datapath.dump().sad
    assert (inbound.destination, outbound.destination) == tuple(map(ip_address, outside))
    assert str(pair.moon.views[0].children[0].local[0]) == inside[0]


def test_several_selectors_make_a_policy_for_each_pair(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    pair = make_pair(
        make_policy("10.1.0.0/24 10.1.2.0/24 2001:db8:1::/64", "10.2.0.0/16 2001:db8:2::/64")
    )
    pair.up()
    pair.assert_up()
    assert len(pair.moon.datapath.dump().spd) == 3 * (2 + 1)


def test_a_responder_narrows_to_what_its_policy_allows(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any]
) -> None:
    moon = make_policy("10.1.0.0/16", "0.0.0.0/0")
    sun = make_mirror(make_policy("10.1.4.0/24 10.1.9.0/24[tcp/443]", "10.2.0.0/16"))
    pair = make_pair(moon, sun)
    pair.up()
    pair.assert_up()
    child = pair.moon.views[0].children[0]
    assert [str(s) for s in child.local] == ["10.1.4.0/24", "10.1.9.0/24[tcp/443]"]
    assert [str(s) for s in child.remote] == ["10.2.0.0/16"]


def _answering_selectors(sealing: Any, **selectors: str) -> None:
    """Have every responder answer with these traffic selectors in place of its own."""
    kinds = {"tsi": TsiPayload, "tsr": TsrPayload}

    def change(message: Any, payloads: tuple[Any, ...]) -> tuple[Any, ...]:
        if not message.is_response:
            return payloads
        for name, text in selectors.items():
            kind = kinds[name]
            wanted = kind(selectors=tuple(TrafficSelector.parse(t) for t in text.split()))
            payloads = tuple(wanted if isinstance(p, kind) else p for p in payloads)
        return payloads

    sealing.change = change


@pytest.mark.parametrize("name", ["tsi", "tsr"])
def test_an_initiator_takes_a_subset_of_its_selectors(pair: Any, sealing: Any, name: str) -> None:
    subset = {"tsi": "10.1.7.0/24 10.1.8.0-10.1.8.9[udp]", "tsr": "10.2.7.0/24 10.2.8.1/32[udp]"}
    _answering_selectors(sealing, **{name: subset[name]})
    pair.up()
    child = pair.moon.views[0].children[0]
    taken = child.local if name == "tsi" else child.remote
    assert list(taken) == [TrafficSelector.parse(t) for t in subset[name].split()]


@pytest.mark.parametrize(
    "selectors",
    [
        {"tsi": "10.0.0.0/8"},
        {"tsi": "10.1.0.0/16 10.3.0.0/16"},
        {"tsr": "10.2.0.0-10.3.0.0"},
        {"tsr": "0.0.0.0/0"},
        {"tsr": "2001:db8::/32"},
    ],
)
def test_an_initiator_refuses_selectors_that_it_did_not_offer(
    pair: Any, sealing: Any, selectors: dict[str, str]
) -> None:
    _answering_selectors(sealing, **selectors)
    pair.up()
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2008"
    assert not pair.moon.reports(AddSa)
    pair.assert_down()


def test_selectors_that_would_make_endless_policies_are_refused(
    make_pair: MakePair, make_policy: MakePolicy, sealing: Any
) -> None:
    """An authentic peer may still not exhaust us."""
    pair = make_pair(make_policy("10.0.0.0/8", "11.0.0.0/8"))
    odd = tuple(
        TrafficSelector(
            protocol=6,
            start_port=1,
            end_port=65534,
            start_address=ip_address(f"10.{n}.0.1"),
            end_address=ip_address(f"10.{n}.255.254"),
        )
        for n in range(255)
    )

    def change(message: Any, payloads: tuple[Any, ...]) -> tuple[Any, ...]:
        if message.is_response:
            return payloads
        return tuple(
            TsiPayload(selectors=odd) if isinstance(p, TsiPayload) else p for p in payloads
        )

    sealing.change = change
    pair.up()
    (refused,) = pair.sun.reports(RequestRefused)
    assert refused.failure.code == "XF2004"
    pair.assert_down()


# Another group, and cookies (sections 1.2 and 2.6).


@pytest.fixture
def two_groups(make_policy: MakePolicy) -> Any:
    return make_policy(ike="aes128gcm16-prfsha256-ecp256-x25519")


def test_a_responder_gets_the_group_it_asks_for(
    make_pair: MakePair,
    make_policy: MakePolicy,
    make_mirror: Callable[..., Any],
    two_groups: Any,
) -> None:
    pair = make_pair(two_groups, make_mirror(make_policy()))
    pair.up()
    pair.assert_up()
    assert len(pair.moon.reports(ExchangeRepeated)) == 1
    messages: list[Any] = [decode_message_untrusted(o.data) for _, o in pair.sent[:3]]
    first, refusal, second = messages
    assert (first.message_id, second.message_id) == (0, 0)
    assert first.spi_i == second.spi_i
    assert [p.data for p in refusal.payloads] == [b"\x00\x1f"]
    # The full set is offered again, as the refusal was not authentic (section 1.2).
    assert _payload(first, SaPayload) == _payload(second, SaPayload)
    assert _payload(second, KePayload).method is KeyExchangeMethod.CURVE25519


def test_asking_for_another_group_leaves_no_state_at_the_responder(
    make_pair: MakePair,
    make_policy: MakePolicy,
    make_mirror: Callable[..., Any],
    two_groups: Any,
) -> None:
    pair = make_pair(two_groups, make_mirror(make_policy()))
    pair.initiate()
    pair._carry(pair.moon, pair.sun)
    pair.sun.take_outputs()
    assert pair.sun.ike_sas == []
    assert not pair.sun.reports(RequestRefused)


class _Impostor:
    """Answers moon's IKE_SA_INIT requests without any key."""

    def __init__(self, pair: Any, answer: Callable[..., bytes], backwards: Callable[..., Any]):
        self.pair, self.answer, self.backwards = pair, answer, backwards
        pair.initiate()
        self.requests: list[Any] = []
        self.listen()

    def listen(self) -> None:
        self.requests += self.pair.moon.take_outputs()

    def say(self, *payloads: Any, **changes: Any) -> None:
        request = self.requests[-1]
        data = self.answer(request.data, *payloads, **changes)
        self.pair.moon.endpoint.receive_datagram(
            data, self.backwards(self.backwards(request.path)), self.pair.now
        )
        self.listen()

    def wait_alone(self) -> None:
        """The true peer hears nothing, and time passes."""
        self.pair.impair = lambda _output, _sender: []
        self.pair.run(REFUSAL_SECONDS)

    @property
    def latest(self) -> Any:
        return decode_message_untrusted(self.requests[-1].data)

    def let_the_true_peer_answer(self) -> None:
        """The honest responder gets the latest request after all."""
        pair, request = self.pair, self.requests[-1]
        path = self.backwards(request.path)
        pair.sun.endpoint.receive_datagram(request.data, path, pair.now)
        pair.deliver()


@pytest.fixture
def impostor(
    make_pair: MakePair,
    two_groups: Any,
    make_answer: Callable[..., bytes],
    make_backwards: Callable[..., Any],
) -> Any:
    return _Impostor(make_pair(two_groups), make_answer, make_backwards)


def _wants(method: int) -> NotifyPayload:
    return NotifyPayload(type=NotifyType.INVALID_KE_PAYLOAD, data=method.to_bytes(2, "big"))


def _payload(message: Any, kind: type) -> Any:
    (found,) = (p for p in message.payloads if isinstance(p, kind))
    return found


def _failures(host: Any) -> list[Failure]:
    return [o.failure for o in host.reports(TunnelClosed)]


def test_a_group_that_was_not_offered_ends_the_attempt_with_both_sides_values(
    impostor: Any,
) -> None:
    impostor.say(_wants(KeyExchangeMethod.MODP_1024))
    assert len(impostor.requests) == 1
    impostor.wait_alone()
    (failure,) = _failures(impostor.pair.moon)
    assert failure.code == "XF2010"
    evidence = dict(failure.evidence)
    assert "x25519" in evidence["we offered"]
    assert evidence["they want"] == "MODP_1024"


@pytest.mark.parametrize(
    "data", [b"", b"\x1f", b"\x00\x1f\x00"], ids=["empty", "one octet", "three octets"]
)
def test_a_group_that_cannot_be_read_is_ignored(impostor: Any, data: bytes) -> None:
    impostor.say(NotifyPayload(type=NotifyType.INVALID_KE_PAYLOAD, data=data))
    assert impostor.pair.moon.drops == [DropReason.MALFORMED]
    impostor.let_the_true_peer_answer()
    impostor.pair.assert_up()


def test_asking_for_the_group_that_was_sent_is_ignored(impostor: Any) -> None:
    impostor.say(_wants(KeyExchangeMethod.ECP_256))
    assert impostor.pair.moon.drops == [DropReason.MALFORMED]
    impostor.let_the_true_peer_answer()
    impostor.pair.assert_up()


def test_asking_for_one_group_and_the_other_by_turns_ends(impostor: Any) -> None:
    groups = (KeyExchangeMethod.CURVE25519, KeyExchangeMethod.ECP_256)
    for turn in range(MAX_REPETITIONS + 3):
        impostor.say(_wants(groups[turn % 2]))
    assert len(impostor.requests) == MAX_REPETITIONS + 1
    impostor.wait_alone()
    assert [f.code for f in _failures(impostor.pair.moon)] == ["XF2008"]


@pytest.mark.parametrize(
    "refusal",
    [
        NotifyPayload(type=NotifyType.NO_PROPOSAL_CHOSEN),
        NotifyPayload(type=NotifyType.INVALID_SYNTAX),
        NotifyPayload(type=NotifyType(8191)),
        _wants(KeyExchangeMethod.MODP_1024),
    ],
    ids=str,
)
def test_a_forged_refusal_does_not_end_an_attempt_that_the_peer_answers(
    impostor: Any, refusal: NotifyPayload
) -> None:
    """Section 2.21.1: the recipient should continue trying for some time before giving up."""
    impostor.say(refusal, spi_r=b"forgery!")
    impostor.let_the_true_peer_answer()
    impostor.pair.assert_up()
    impostor.pair.run(REFUSAL_SECONDS * 2)
    impostor.pair.assert_up()


def test_a_refusal_is_believed_after_a_while(impostor: Any) -> None:
    impostor.say(NotifyPayload(type=NotifyType.NO_PROPOSAL_CHOSEN))
    assert not _failures(impostor.pair.moon)
    impostor.wait_alone()
    (failure,) = _failures(impostor.pair.moon)
    assert failure.code == "XF2002"
    assert dict(failure.evidence)["they answered"] == "NO_PROPOSAL_CHOSEN"
    impostor.pair.run(100)
    impostor.pair.assert_forgotten()


@pytest.mark.parametrize("size", [1, 64])
def test_a_cookie_comes_back_first_with_everything_else_unchanged(impostor: Any, size: int) -> None:
    before = impostor.latest
    impostor.say(NotifyPayload(type=NotifyType.COOKIE, data=b"c" * size))
    first, *rest = impostor.latest.payloads
    assert first == NotifyPayload(type=NotifyType.COOKIE, data=b"c" * size)
    assert tuple(rest) == before.payloads
    assert (impostor.latest.message_id, impostor.latest.spi_i) == (0, before.spi_i)
    impostor.let_the_true_peer_answer()
    impostor.pair.assert_up()


def test_a_cookie_stays_when_another_group_is_asked_for(impostor: Any) -> None:
    """Section 2.6.1: the cookie goes with the new group, or a round trip is lost."""
    impostor.say(NotifyPayload(type=NotifyType.COOKIE, data=b"cookie"))
    impostor.say(_wants(KeyExchangeMethod.CURVE25519))
    assert impostor.latest.payloads[0].data == b"cookie"
    assert _payload(impostor.latest, KePayload).method is KeyExchangeMethod.CURVE25519
    impostor.let_the_true_peer_answer()
    impostor.pair.assert_up()


def test_another_group_and_then_a_cookie_keeps_the_group(impostor: Any) -> None:
    impostor.say(_wants(KeyExchangeMethod.CURVE25519))
    impostor.say(NotifyPayload(type=NotifyType.COOKIE, data=b"cookie"))
    assert _payload(impostor.latest, KePayload).method is KeyExchangeMethod.CURVE25519
    impostor.let_the_true_peer_answer()
    impostor.pair.assert_up()


def test_a_newer_cookie_replaces_the_old_one(impostor: Any) -> None:
    for cookie in (b"old", b"new"):
        impostor.say(NotifyPayload(type=NotifyType.COOKIE, data=cookie))
    cookies = [p for p in impostor.latest.payloads if getattr(p, "type", 0) == NotifyType.COOKIE]
    assert [c.data for c in cookies] == [b"new"]


@pytest.mark.parametrize("size", [0, 65, 1000])
def test_a_cookie_of_a_wrong_size_is_ignored(impostor: Any, size: int) -> None:
    impostor.say(NotifyPayload(type=NotifyType.COOKIE, data=bytes(size)))
    assert len(impostor.requests) == 1
    assert impostor.pair.moon.drops == [DropReason.MALFORMED]


def test_cookies_without_end_end(impostor: Any) -> None:
    for turn in range(50):
        impostor.say(NotifyPayload(type=NotifyType.COOKIE, data=bytes([turn])))
    assert len(impostor.requests) == MAX_REPETITIONS + 1
    impostor.wait_alone()
    assert [f.code for f in _failures(impostor.pair.moon)] == ["XF2008"]


# NAT (section 2.23).


@pytest.fixture
def natted(pair: Any) -> Any:
    """A pair with NATs in front of the ends named: `natted("moon", "sun")`."""

    def set_up(*ends: str) -> Any:
        hidden = {ip_address(getattr(pair, end).address): end for end in ends}
        outside = {end: ip_address(f"198.51.100.{len(end)}") for end in ends}
        inside = {outside[end]: address for address, end in hidden.items()}

        def carry(sender: Any, receiver: Any) -> bool:
            datagrams = sender.take_outputs()
            for output in datagrams:
                pair.sent.append((sender.name, output))
                source, target = output.path.local, output.path.remote
                if source.address in hidden and sender is pair.moon:
                    source = SocketAddress(outside[hidden[source.address]], source.port + 40000)
                elif source.address in hidden:
                    source = SocketAddress(outside[hidden[source.address]], source.port)
                if target.address in inside:
                    target = SocketAddress(inside[target.address], target.port % 40000)
                path = replace(output.path, local=target, remote=source)
                receiver.endpoint.receive_datagram(output.data, path, pair.now)
            return bool(datagrams)

        pair._carry = carry
        for host, other in ((pair.moon, "sun"), (pair.sun, "moon")):
            if other in outside:
                host.endpoint.set_peer_addresses("tunnel-a", (outside[other],))
        if "sun" in outside:
            pair.sun_address = str(outside["sun"])
        return pair

    return set_up


@pytest.mark.parametrize("ends", [(), ("moon",), ("sun",), ("moon", "sun")], ids=str)
def test_each_end_finds_out_who_is_behind_a_nat(
    natted: Callable[..., Any], ends: tuple[str, ...]
) -> None:
    pair = natted(*ends)
    path_to = getattr(pair, "sun_address", pair.sun.address)
    pair.sun.address, inner = path_to, pair.sun.address
    pair.initiate()
    pair.sun.address = inner
    pair.deliver()
    pair.assert_up()
    moon, sun = "moon" in ends, "sun" in ends
    assert pair.moon.views[0].nat == NatSituation(ours=moon, theirs=sun, supported=True)
    assert pair.sun.views[0].nat == NatSituation(ours=sun, theirs=moon, supported=True)
    assert len(pair.moon.reports(NatDetected)) == len(pair.sun.reports(NatDetected)) == bool(ends)
    for _, output in pair.sent[2:]:
        assert output.path.natt == bool(ends)
        assert (output.data[:4] == bytes(4)) == bool(ends)
    inbound, outbound = pair.sun.datapath.dump().sad
    mapped = 44500 if moon else 4500
    if ends:
        assert inbound.encapsulation == UdpEncapsulation(mapped, 4500)
        assert outbound.encapsulation == UdpEncapsulation(4500, mapped)
        assert {e.encapsulation for e in pair.moon.datapath.dump().sad} == {
            UdpEncapsulation(4500, 4500)
        }
    else:
        assert inbound.encapsulation is outbound.encapsulation is None


@pytest.mark.parametrize("end", ["moon", "sun", "both"])
def test_forced_encapsulation_looks_like_a_nat_to_the_peer(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any], end: str
) -> None:
    moon, sun = make_policy(), make_mirror(make_policy())
    if end != "sun":
        moon = replace(moon, encapsulation=Encapsulation.FORCE)
    if end != "moon":
        sun = replace(sun, encapsulation=Encapsulation.FORCE)
    pair = make_pair(moon, sun)
    pair.up()
    pair.assert_up()
    assert all(e.encapsulation == UdpEncapsulation(4500, 4500) for e in _all_sas(pair))
    assert pair.moon.views[0].nat.forced == (end != "sun")
    assert pair.moon.views[0].nat.theirs == (end != "moon")
    assert pair.sun.views[0].nat.theirs == (end != "sun")


def _all_sas(pair: Any) -> list[Any]:
    return [e for h in (pair.moon, pair.sun) for e in h.datapath.dump().sad]


def test_a_peer_without_nat_detection_gets_plain_esp(pair: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("xfrmpy.ike.init.detection_payloads", lambda *_a, **_k: ())
    pair.up()
    pair.assert_up()
    assert {e.encapsulation for e in _all_sas(pair)} == {None}


def test_a_peer_that_cannot_encapsulate_is_no_peer_where_that_is_forced(
    make_pair: MakePair, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xfrmpy.ike.init.detection_payloads", lambda *_a, **_k: ())
    moon = replace(make_policy(), encapsulation=Encapsulation.FORCE)
    pair = make_pair(moon)
    pair.up()
    assert [f.code for f in _failures(pair.moon)] == ["XF3001"]
    assert len(pair.sent) == 2  # No INFORMATIONAL before the initial exchanges (section 1.4).
    pair.run(100)
    pair.assert_forgotten()


# Two at once, and beginning anew (section 2.4).


def test_both_ends_may_begin_at_once(pair: Any) -> None:
    """Both IKE SAs come up: each end has the same two, and no end thinks one of them dead."""
    pair.initiate()
    pair.initiate(pair.sun)
    pair.deliver()
    for host in (pair.moon, pair.sun):
        assert [v.state for v in host.views] == [IkeSaState.ESTABLISHED] * 2
        assert len(host.datapath.dump().sad) == 4
        assert len(host.datapath.dump().spd) == 3
    spis = [{(v.spi_i, v.spi_r) for v in h.views} for h in (pair.moon, pair.sun)]
    assert spis[0] == spis[1]
    pair.assert_mirrored()


@pytest.mark.parametrize("steps", range(1, 8))
def test_crossing_attempts_leave_both_ends_with_the_same(pair: Any, steps: int) -> None:
    """The second end begins when the first one has come `steps` datagrams far."""
    pair.initiate()
    for step in range(steps):
        pair._carry(*((pair.moon, pair.sun) if step % 2 == 0 else (pair.sun, pair.moon)))
    pair.initiate(pair.sun)
    pair.run(20)
    pair.assert_mirrored()
    spis = [{(v.spi_i, v.spi_r) for v in h.views} for h in (pair.moon, pair.sun)]
    assert spis[0] == spis[1]
    assert spis[0]


def test_a_tunnel_that_crossed_goes_down_whole(pair: Any) -> None:
    pair.initiate()
    pair.initiate(pair.sun)
    pair.deliver()
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.run(100)
    pair.assert_forgotten()


ALWAYS_SAID = {NotifyType.SET_WINDOW_SIZE, NotifyType.IKEV2_MESSAGE_ID_SYNC_SUPPORTED}


def _notifies(sealing: Any) -> list[set[NotifyType]]:
    return [
        {p.type for p in payloads if isinstance(p, NotifyPayload)} - ALWAYS_SAID
        for message, payloads in sealing.sent
        if message.exchange is ExchangeType.IKE_AUTH and not message.is_response
    ]


def test_initial_contact_is_said_by_who_has_no_other_ike_sa(pair: Any, sealing: Any) -> None:
    pair.up()
    pair.up()
    assert _notifies(sealing) == [{NotifyType.INITIAL_CONTACT}, set()]
    assert len(pair.sun.views) == 2


def test_initial_contact_is_said_although_a_dead_ike_sa_still_lingers(
    pair: Any, sealing: Any
) -> None:
    pair.up()
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.deliver()
    assert pair.moon.ike_sas
    pair.up()
    assert _notifies(sealing)[-1] == {NotifyType.INITIAL_CONTACT}


def test_a_peer_that_restarted_replaces_what_we_still_hold(
    pair: Any, make_pair: MakePair, make_random: Callable[..., Any]
) -> None:
    pair.up()
    old = set(pair.sun.datapath.sad)
    reborn = make_pair(pair.moon.policy)
    reborn.sun = pair.sun
    reborn.moon.endpoint._core.random = make_random("another moon")
    reborn.up()
    reborn.run(20)
    assert not old & set(pair.sun.datapath.sad)
    assert [f.code for f in _failures(pair.sun)] == ["XF2011"]
    assert len(pair.sun.reports(ChildSaClosed)) == 1
    reborn.assert_up()


def test_initial_contact_does_not_end_an_attempt_of_ours_that_is_on_its_way(pair: Any) -> None:
    pair.initiate(pair.sun)
    pair._carry(pair.sun, pair.moon)  # Sun's own attempt waits for an answer.
    held = pair.moon.take_outputs()
    pair.up()
    assert not _failures(pair.sun)
    for output in held:
        path = replace(output.path, local=output.path.remote, remote=output.path.local)
        pair.sun.endpoint.receive_datagram(output.data, path, pair.now)
    pair.deliver()
    assert len(pair.sun.views) == len(pair.moon.views) == 2
    pair.run(REAUTH_PATIENCE_SECONDS)
    pair.assert_mirrored()
