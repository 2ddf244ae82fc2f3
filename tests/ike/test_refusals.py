"""What cannot be agreed: the code, the evidence and the notification, as each end sees it.

RFC 7296 sections 2.7, 2.9 and 2.21. Whatever was refused, nothing stays in force, and no secret
stands in anything that is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.failures import Failure
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.outputs import (
    AddPolicy,
    AddSa,
    ChildSaEstablished,
    IkeSaEstablished,
    RequestRefused,
    TunnelClosed,
)
from xfrmpy.ipsec.drift import Dump
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.sad import Direction, SadEntry
from xfrmpy.ipsec.spd import PolicyDirection, SpdEntry
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import decode_message_untrusted
from xfrmpy.wire.payloads import (
    AuthPayload,
    EapPayload,
    IdrPayload,
    NotifyPayload,
)

MakePair = Callable[..., Any]
MakePolicy = Callable[..., Any]

SECRET = b"a shared key of thirty-two octets"


def _closed(host: Any) -> Failure:
    (report,) = host.reports(TunnelClosed)
    failure: Failure = report.failure
    return failure


def _refused(host: Any) -> Failure:
    (report,) = host.reports(RequestRefused)
    failure: Failure = report.failure
    return failure


def _errors(sealing: Any, *, in_response: bool = True) -> list[int]:
    """The errors that were sent protected, in their order."""
    return [
        p.type
        for message, payloads in sealing.sent
        for p in payloads
        if isinstance(p, NotifyPayload) and p.type.is_error and message.is_response == in_response
    ]


def _has_no_secret(pair: Any) -> None:
    secrets = {SECRET}
    for host in (pair.moon, pair.sun):
        for sa in host.ike_sas:
            names = ("sk_d", "sk_ei", "sk_er", "sk_pi", "sk_pr")
            secrets |= {getattr(sa.keys, name) for name in names if sa.keys}
        for report in host.reports(AddSa):
            secrets.add(report.entry.encryption_key)
    for output in (*pair.moon.outputs, *pair.sun.outputs):
        shown = repr(output)
        assert not any(s.hex() in shown or repr(s)[2:-1] in shown for s in secrets)


def _nothing_is_left(pair: Any) -> None:
    _has_no_secret(pair)
    pair.assert_down()
    for host in (pair.moon, pair.sun):
        assert not host.reports(ChildSaEstablished)
    pair.run(200)
    pair.assert_down()


# Who they are.


def test_a_wrong_key_of_the_initiator_is_refused_by_the_responder(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any], sealing: Any
) -> None:
    sun = make_mirror(make_policy(key=b"another shared key of many octets"))
    pair = make_pair(make_policy(), sun)
    pair.up()
    assert _errors(sealing) == [NotifyType.AUTHENTICATION_FAILED]
    theirs = _refused(pair.sun)
    assert (theirs.code, dict(theirs.evidence)["their identity"]) == ("XF2006", "moon")
    ours = _closed(pair.moon)
    assert ours.code == "XF2005"
    assert dict(ours.evidence)["our identity"] == "moon"
    assert dict(ours.evidence)["they answered"] == "AUTHENTICATION_FAILED"
    for host in (pair.moon, pair.sun):
        assert not host.reports(IkeSaEstablished)
        assert not host.reports(AddSa)
    _nothing_is_left(pair)
    pair.assert_forgotten()


def test_a_responder_that_does_not_know_the_key_is_refused_by_the_initiator(
    pair: Any, sealing: Any
) -> None:
    def change(message: Any, payloads: tuple[Any, ...]) -> tuple[Any, ...]:
        if not message.is_response:
            return payloads
        return tuple(
            replace(p, data=bytes(len(p.data))) if isinstance(p, AuthPayload) else p
            for p in payloads
        )

    sealing.change = change
    pair.up()
    assert _closed(pair.moon).code == "XF2006"
    assert not pair.moon.reports(IkeSaEstablished)
    assert not pair.moon.reports(AddSa)
    # Section 2.21.2: the initiator says so in an INFORMATIONAL of its own.
    assert _errors(sealing, in_response=False) == [NotifyType.AUTHENTICATION_FAILED]
    assert _closed(pair.sun).code == "XF2005"
    pair.assert_down()
    pair.run(100)
    pair.assert_forgotten()


def test_an_initiator_of_an_unknown_identity_is_refused(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any], sealing: Any
) -> None:
    pair = make_pair(make_policy(here="mars"), make_mirror(make_policy()))
    pair.up()
    theirs = _refused(pair.sun)
    assert theirs.code == "XF2007"
    assert dict(theirs.evidence)["they are"] == "mars"
    assert dict(theirs.evidence)["we expect"] == "moon"
    assert _closed(pair.moon).code == "XF2005"
    assert _errors(sealing) == [NotifyType.AUTHENTICATION_FAILED]
    _nothing_is_left(pair)


def test_an_initiator_that_wants_somebody_else_is_refused(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any]
) -> None:
    pair = make_pair(make_policy(there="venus"), make_mirror(make_policy()))
    pair.up()
    theirs = dict(_refused(pair.sun).evidence)
    assert (theirs["they want"], theirs["we are"]) == ("venus", "sun")
    assert dict(_closed(pair.moon).evidence)["the identity we expect"] == "venus"
    _nothing_is_left(pair)


def test_a_responder_of_another_identity_is_refused_though_it_knows_the_key(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any], sealing: Any
) -> None:
    """It ignores our IDr, which it may (section 1.2), and authenticates rightly as somebody."""
    sun = replace(make_mirror(make_policy()), local_id=Identity.parse("venus"))
    pair = make_pair(make_policy(), sun)
    sealing.change = lambda message, payloads: tuple(
        p for p in payloads if message.is_response or not isinstance(p, IdrPayload)
    )
    pair.up()
    failure = _closed(pair.moon)
    assert failure.code == "XF2007"
    assert dict(failure.evidence) == {"we expect": "sun", "they are": "venus"}
    assert not pair.moon.reports(IkeSaEstablished)
    assert _closed(pair.sun).code == "XF2005"
    pair.assert_down()


def test_identities_are_compared_with_their_type(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any]
) -> None:
    sun = make_mirror(make_policy(here="keyid:moon"))
    pair = make_pair(make_policy(here="moon"), sun)
    pair.up()
    assert _refused(pair.sun).code == "XF2007"


# What they want.


def test_no_common_ike_proposal_is_said_in_clear_and_kept_by_nobody(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any]
) -> None:
    sun = make_mirror(make_policy(ike="aes256gcm16-prfsha384-ecp384"))
    pair = make_pair(make_policy(), sun)
    pair.up()
    assert pair.sun.ike_sas == []
    answer: Any = decode_message_untrusted(pair.sent[1][1].data)
    assert [p.type for p in answer.payloads] == [NotifyType.NO_PROPOSAL_CHOSEN]
    assert answer.spi_r == bytes(8)
    evidence = dict(_refused(pair.sun).evidence)
    assert evidence["we accept"] == "aes256gcm16-prfsha384-ecp384"
    assert evidence["they offered"] == "aes128gcm16-prfsha256-x25519"
    pair.run(5)
    ours = _closed(pair.moon)
    assert ours.code == "XF2002"
    assert dict(ours.evidence)["we offered"] == "aes128gcm16-prfsha256-x25519"
    _nothing_is_left(pair)
    pair.assert_forgotten()


def test_a_stranger_is_refused_as_if_no_proposal_fitted(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any]
) -> None:
    pair = make_pair(make_policy(), make_mirror(make_policy()))
    pair.sun.endpoint.set_peer_addresses("tunnel-a", ())
    pair.up()
    assert "192.0.2.1" in dict(_refused(pair.sun).evidence)["they came from"]
    assert pair.sun.ike_sas == []


def test_a_caller_waits_until_the_names_of_the_peers_are_looked_up(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any]
) -> None:
    """As at the start of a daemon: many an initiator that is refused does not ask again."""
    pair = make_pair(make_policy(), make_mirror(make_policy()))
    tunnel = pair.sun.endpoint._core.tunnels["tunnel-a"]
    known, tunnel.peer_addresses = tunnel.peer_addresses, None
    pair.sun.endpoint._core.tunnels_changed()
    pair.up()
    assert pair.sun.drops == [DropReason.PEERS_UNKNOWN]
    pair.sun.endpoint.set_peer_addresses("tunnel-a", known)
    pair.run(5)
    pair.assert_up()


def test_no_common_esp_proposal_leaves_both_ends_without_a_child(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any], sealing: Any
) -> None:
    sun = make_mirror(make_policy(esp="aes256-sha512"))
    pair = make_pair(make_policy(esp="chacha20poly1305"), sun)
    pair.up()
    assert _errors(sealing) == [NotifyType.NO_PROPOSAL_CHOSEN]
    (answer,) = sealing.answers(ExchangeType.IKE_AUTH)
    assert [type(p) for p in answer] == [IdrPayload, AuthPayload, NotifyPayload]
    theirs = _refused(pair.sun)
    assert theirs.code == "XF2003"
    assert dict(theirs.evidence) == {
        "we accept": "aes256-sha512-esn",
        "they offered": "chacha20poly1305-esn",
    }
    ours = _closed(pair.moon)
    assert ours.code == "XF2003"
    assert dict(ours.evidence)["we offered"] == "chacha20poly1305-esn"
    _nothing_is_left(pair)
    pair.assert_forgotten()


def test_esn_on_one_end_only_is_no_common_proposal(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: Callable[..., Any]
) -> None:
    sun = make_mirror(make_policy(esp="aes128gcm16-noesn"))
    pair = make_pair(make_policy(esp="aes128gcm16-esn"), sun)
    pair.up()
    assert _closed(pair.moon).code == "XF2003"
    _nothing_is_left(pair)


@pytest.mark.parametrize(
    ("local", "remote"),
    [
        ("10.3.0.0/16", "10.2.0.0/16"),
        ("10.1.0.0/16", "10.3.0.0/16"),
        ("2001:db8::/32", "10.2.0.0/16"),
        ("10.1.0.0/16[udp]", "10.2.0.0/16"),
    ],
)
def test_no_common_selectors_leave_both_ends_without_a_child(
    make_pair: MakePair,
    make_policy: MakePolicy,
    make_mirror: Callable[..., Any],
    sealing: Any,
    local: str,
    remote: str,
) -> None:
    sun = make_mirror(make_policy("10.1.0.0/16[tcp]", "10.2.0.0/16"))
    pair = make_pair(make_policy(local, remote), sun)
    pair.up()
    assert _errors(sealing) == [NotifyType.TS_UNACCEPTABLE]
    theirs = dict(_refused(pair.sun).evidence)
    assert (theirs["their TSi"], theirs["their TSr"]) == (local, remote)
    assert theirs["our remote"] == "10.1.0.0/16[tcp]"
    ours = _closed(pair.moon)
    assert ours.code == "XF2004"
    assert (dict(ours.evidence)["our local"], dict(ours.evidence)["our remote"]) == (local, remote)
    _nothing_is_left(pair)
    pair.assert_forgotten()


# Requests for what we do not do.


def _asking(sealing: Any, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
    """Change moon's IKE_AUTH request."""

    def changed(message: Any, payloads: tuple[Any, ...]) -> tuple[Any, ...]:
        is_auth = message.exchange is ExchangeType.IKE_AUTH and not message.is_response
        return change(payloads) if is_auth else payloads

    sealing.change = changed


def test_transport_mode_is_answered_with_tunnel_mode(pair: Any, sealing: Any) -> None:
    """Section 1.3.1: a responder that declines does not say USE_TRANSPORT_MODE."""
    _asking(sealing, lambda p: (*p, NotifyPayload(type=NotifyType.USE_TRANSPORT_MODE)))
    pair.up()
    (answer,) = sealing.answers(ExchangeType.IKE_AUTH)
    kinds = {p.type for p in answer if isinstance(p, NotifyPayload)}
    assert NotifyType.USE_TRANSPORT_MODE not in kinds
    pair.assert_up()


def test_eap_is_refused(pair: Any, sealing: Any) -> None:
    _asking(sealing, lambda p: tuple(x for x in p if not isinstance(x, AuthPayload)))
    pair.up()
    assert _errors(sealing) == [NotifyType.AUTHENTICATION_FAILED]
    assert "EAP" in _refused(pair.sun).summary
    _nothing_is_left(pair)


def test_an_eap_payload_in_place_of_auth_is_refused(pair: Any, sealing: Any) -> None:
    _asking(
        sealing,
        lambda p: tuple(EapPayload(data=b"\x02") if isinstance(x, AuthPayload) else x for x in p),
    )
    pair.up()
    assert _errors(sealing) == [NotifyType.AUTHENTICATION_FAILED]
    _nothing_is_left(pair)


# The datapath refuses.

REFUSALS = ["add_sa in", "add_sa out", "add_policy out", "add_policy in", "add_policy fwd"]


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("end", ["moon", "sun"])
def test_what_the_datapath_refuses_is_rolled_back_at_both_ends(
    pair: Any, sealing: Any, kind: str, end: str
) -> None:
    host = getattr(pair, end)
    host.datapath.refuse(kind, reason="no memory")
    pair.up()
    report = _closed(pair.moon) if end == "moon" else _refused(pair.sun)
    assert report.code == "XF3002"
    assert "no memory" in report.summary
    if end == "sun":
        assert _errors(sealing) == [NotifyType.TEMPORARY_FAILURE]
        assert _closed(pair.moon).code == "XF2009"
    else:
        assert _closed(pair.sun).code == "XF2011"
    assert not host.reports(ChildSaEstablished)
    pair.assert_down()
    _has_no_secret(pair)
    pair.run(100)
    pair.assert_forgotten()


@pytest.mark.parametrize("nth", range(1, 5))
@pytest.mark.parametrize("end", ["moon", "sun"])
def test_with_two_selectors_each_policy_may_be_refused(
    make_pair: MakePair, make_policy: MakePolicy, nth: int, end: str
) -> None:
    pair = make_pair(make_policy("10.1.0.0/24 10.1.2.0/24", "10.2.0.0/16"))
    getattr(pair, end).datapath.refuse("add_policy", nth=nth)
    pair.up()
    pair.assert_down()


def test_a_policy_of_ours_that_could_not_be_changed_back_goes_with_its_child_sa(up: Any) -> None:
    """Another Child SA had taken its place in force, and has gone."""
    (child,) = up.moon.ike_sa.children
    entry = up.moon.datapath.dump().spd[0]
    other = replace(entry, template=replace(entry.template, reqid=entry.template.reqid + 1))
    book = child._core.policies
    claim = AddPolicy(owner=1, tunnel="tunnel-a", child="net", entry=other)
    assert book.claim(claim) is claim
    up.moon.datapath.add([other])
    (back,) = book.release(1)
    up.moon.endpoint.handle_failure(back, "no memory")
    up.moon.endpoint.terminate("tunnel-a", up.now)
    up.deliver()
    assert up.moon.datapath.dump() == Dump(sad=(), spd=())


@pytest.mark.parametrize("end", ["moon", "sun"])
@pytest.mark.parametrize("kind", REFUSALS)
def test_nothing_is_asked_of_the_datapath_after_its_refusal_but_to_undo(
    pair: Any, end: str, kind: str
) -> None:
    host = getattr(pair, end)
    host.datapath.refuse(kind)
    pair.up()
    names = [call.name for call in host.datapath.calls]
    additions = [n for n in names if n.startswith("add")]
    assert names[: len(additions)] == additions
    undone = [call.argument for call in host.datapath.calls if call.name.startswith("remove")]
    assert len(undone) == len(additions) - 1


def _foreign_sa(entry: SadEntry) -> SadEntry:
    return replace(entry, reqid=7, encryption_key=bytes(len(entry.encryption_key)))


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("end", ["moon", "sun"])
def test_an_sa_of_somebody_else_is_left_alone(
    make_pair: MakePair, make_policy: MakePolicy, end: str, direction: Direction
) -> None:
    """Another daemon holds the very SPI: the addition fails (EEXIST), and nothing removes it."""
    trial = make_pair(make_policy())
    trial.up()  # The same seed gives the same SPIs.
    sad = getattr(trial, end).datapath.dump().sad
    (foreign,) = (_foreign_sa(e) for e in sad if e.direction is direction)
    pair = make_pair(make_policy())
    host = getattr(pair, end)
    host.datapath.sad[foreign.id] = foreign
    pair.up()
    assert host.datapath.dump() == Dump(sad=(foreign,), spd=())
    pair.run(100)
    assert host.datapath.dump() == Dump(sad=(foreign,), spd=())


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_policy_of_somebody_else_is_left_alone_by_a_refusal(
    make_pair: MakePair, make_policy: MakePolicy, end: str
) -> None:
    trial = make_pair(make_policy())
    trial.up()
    ours = getattr(trial, end).datapath.dump().spd
    (foreign,) = (replace(e, priority=1) for e in ours if e.direction is PolicyDirection.IN)
    assert isinstance(foreign, SpdEntry)
    pair = make_pair(make_policy())
    host = getattr(pair, end)
    host.datapath.spd[foreign.place] = foreign
    host.datapath.refuse("add_policy in")
    pair.up()
    assert host.datapath.dump() == Dump(sad=(), spd=(foreign,))


def test_a_tunnel_that_works_is_untouched_by_a_second_one_that_is_refused(pair: Any) -> None:
    pair.up()
    before = pair.sun.snapshot(), pair.moon.snapshot()
    for kind in ("add_sa", "add_sa out"):
        count = sum(c.name == "add_sa" for c in pair.sun.datapath.calls)
        nth = count + 1 if kind == "add_sa" else count // 2 + 1
        pair.sun.datapath.refuse(kind, nth=nth)
        pair.up()
        pair.run(20)
        assert pair.sun.reports(RequestRefused)[-1].failure.code == "XF3002"
    assert (pair.sun.snapshot(), pair.moon.snapshot()) == before
    pair.assert_up()


# Nothing that is shown holds a secret.


def test_no_output_of_a_tunnels_life_shows_a_secret(pair: Any) -> None:
    pair.up()
    _has_no_secret(pair)
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.deliver()
    _has_no_secret(pair)
    assert pair.moon.reports(AddSa)
