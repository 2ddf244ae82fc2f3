"""What distinguishes two policies, and what that does to a tunnel that is up."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.interfaces import TunnelInterface
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.ipsec.sad import OUR_REQIDS, DontFragment, Mode, Offload
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.pki.verdicts import Strictness
from xfrmpy.policy import changes
from xfrmpy.policy.changes import (
    Action,
    Impact,
    child_impact,
    compare_policies,
    compare_tunnels,
    keep_reqids,
)
from xfrmpy.policy.model import (
    Certificates,
    ChildPolicy,
    DatapathChoice,
    EapAcceptance,
    EapCredential,
    EapMethod,
    EapUsers,
    Encapsulation,
    Experiment,
    FurtherRound,
    OnDown,
    Ppk,
    PrivateKey,
    PublicKey,
    Retransmission,
    SharedKey,
    StartMode,
    TunnelPolicy,
    Uniqueness,
)
from xfrmpy.registry import ProtocolId

LAN = ChildPolicy(
    name="lan",
    reqid=OUR_REQIDS[7],
    local=(TrafficSelector.parse("10.1.0.0/16"),),
    remote=(TrafficSelector.parse("10.2.0.0/16"),),
    proposals=(parse_proposal("aes128gcm16-x25519", ProtocolId.ESP),),
)
OFFICE = TunnelPolicy(
    name="office",
    origin="office.yaml:1",
    peers=("192.0.2.2",),
    shared_key=SharedKey(octets=b"one secret of the office", origin="secrets/office"),
    proposals=(parse_proposal("aes128gcm16-prfsha256-x25519", ProtocolId.IKE),),
    children=(LAN,),
)

OTHER_OF_TUNNEL: dict[str, tuple[Any, Impact]] = {
    "peers": (("192.0.2.3",), Impact.REPLACE),
    "peer_port": (4510, Impact.REPLACE),
    "local_address": (ip_address("192.0.2.9"), Impact.REPLACE),
    "local_id": (Identity.parse("moon"), Impact.REAUTH),
    "remote_id": (Identity.parse("sun"), Impact.REAUTH),
    "shared_key": (SharedKey(octets=b"another secret", origin="secrets/office"), Impact.REAUTH),
    "ppks": (
        (Ppk(id="q", key=SharedKey(octets=b"a post-quantum key", origin="secrets/q")),),
        Impact.REAUTH,
    ),
    "ppk_required": (True, Impact.REAUTH),
    "local_key": (
        PrivateKey(octets=b"a private key", public=b"its public half", origin="secrets/gw"),
        Impact.REAUTH,
    ),
    "remote_key": (PublicKey(spki=b"a public key", origin="office.yaml"), Impact.REAUTH),
    "local_certificates": (Certificates(ders=(b"renewed",), origin="certs/gw"), Impact.HOT),
    "remote_authorities": (Certificates(ders=(b"another",), origin="cas/corp"), Impact.REAUTH),
    "revocation": (Strictness.STRICT, Impact.REAUTH),
    "certificate_hosts": (("certs.example.net",), Impact.HOT),
    "local_null": (True, Impact.REAUTH),
    "remote_null": (True, Impact.REAUTH),
    "weak_signatures": (True, Impact.REAUTH),
    "experiment": (Experiment.ML_DSA, Impact.REAUTH),
    "local_eap": (
        EapCredential(
            identity="carol",
            methods=(EapMethod.MSCHAPV2,),
            password=SharedKey(octets=b"a password", origin="secrets/carol"),
        ),
        Impact.REAUTH,
    ),
    "remote_eap": (
        EapAcceptance(methods=(EapMethod.MSCHAPV2,), users=EapUsers(passwords=(), origin="users")),
        Impact.HOT,
    ),
    "rounds": (
        (FurtherRound(remote_key=PublicKey(spki=b"a public key", origin="office.yaml")),),
        Impact.REAUTH,
    ),
    "proposals": (
        (parse_proposal("aes256gcm16-prfsha384-ecp384", ProtocolId.IKE),),
        Impact.REKEY,
    ),
    "start": (StartMode.AUTO, Impact.HOT),
    "datapath": (DatapathChoice.USERSPACE, Impact.REPLACE),
    "encapsulation": (Encapsulation.FORCE, Impact.REAUTH),
    "fragmentation": (False, Impact.REAUTH),
    "dpd_seconds": (0.0, Impact.HOT),
    "nat_keepalive_seconds": (10.0, Impact.HOT),
    "lifetime_seconds": (None, Impact.HOT),
    "reauth_seconds": (3600.0, Impact.HOT),
    "retransmission": (Retransmission(tries=3), Impact.HOT),
    "crash_detection": (False, Impact.HOT),
    "unique": (Uniqueness.KEEP, Impact.HOT),
    "resumption": (True, Impact.HOT),
    "childless": (True, Impact.HOT),
    "redirect": (False, Impact.HOT),
    "redirect_to": ("192.0.2.8", Impact.HOT),
    "on_down": (OnDown.CLEAR, Impact.HOT),
    "interface": (TunnelInterface(name="office", if_id=7), Impact.HOT),
}
OTHER_OF_CHILD: dict[str, tuple[Any, Impact]] = {
    "local": ((TrafficSelector.parse("10.3.0.0/16"),), Impact.REPLACE),
    "remote": ((TrafficSelector.parse("10.4.0.0/16"),), Impact.REPLACE),
    "mode": (Mode.TRANSPORT, Impact.REPLACE),
    "proposals": ((parse_proposal("aes256gcm16", ProtocolId.ESP),), Impact.REKEY),
    "replay_window": (1024, Impact.REKEY),
    "offload": (Offload.CRYPTO, Impact.REKEY),
    "copies_dscp": (False, Impact.REKEY),
    "restores_dscp": (True, Impact.REKEY),
    "copies_ecn": (False, Impact.REKEY),
    "compresses": (True, Impact.REKEY),
    "tfc": (1280, Impact.REKEY),
    "dont_fragment": (DontFragment.CLEAR, Impact.REKEY),
    "lifetime_seconds": (600.0, Impact.HOT),
    "lifetime_octets": (1 << 30, Impact.REKEY),
    "lifetime_packets": (1 << 20, Impact.REKEY),
    "inactivity_seconds": (60.0, Impact.HOT),
    "priority": (500, Impact.REKEY),
    "mark_out": (Mark(1), Impact.REKEY),
    "mark_in": (Mark(2, 0xF), Impact.REKEY),
    "mark_set": (Mark(0x10000, 0xFFFF0000), Impact.REKEY),
    "if_id": (7, Impact.REPLACE),
    "per_resource": (4, Impact.REKEY),
}


def test_every_field_of_a_policy_is_compared_or_said_to_make_no_difference() -> None:
    assert set(changes._OF_TUNNEL) == {f.name for f in fields(TunnelPolicy)}
    assert set(changes._OF_CHILD) == {f.name for f in fields(ChildPolicy)}
    silent = {n for n, key in changes._OF_TUNNEL.items() if key.impact is None}
    assert (
        silent == {"name", "origin", "children"} == set(changes._OF_TUNNEL) - set(OTHER_OF_TUNNEL)
    )
    assert set(changes._OF_CHILD) - set(OTHER_OF_CHILD) == {"name", "reqid"}


@pytest.mark.parametrize("field", OTHER_OF_TUNNEL)
def test_another_value_of_a_tunnel_is_one_difference_with_its_impact(field: str) -> None:
    value, impact = OTHER_OF_TUNNEL[field]
    change = compare_tunnels(OFFICE, replace(OFFICE, **{field: value}))
    (difference,) = change.differences
    assert (change.action, change.impact, difference.child) == (Action.UPDATE, impact, "")
    assert difference.before != difference.after


def test_ah_in_the_place_of_esp_replaces_the_child() -> None:
    children = (replace(LAN, proposals=(parse_proposal("sha256", ProtocolId.AH),)),)
    change = compare_tunnels(OFFICE, replace(OFFICE, children=children))
    assert {d.key: (d.before, d.after) for d in change.differences}["ah"] == ("ESP", "AH")
    assert change.impact is Impact.REPLACE
    assert child_impact(LAN, children[0]) is Impact.REPLACE


@pytest.mark.parametrize("field", OTHER_OF_CHILD)
def test_another_value_of_a_child_is_one_difference_with_its_impact(field: str) -> None:
    value, impact = OTHER_OF_CHILD[field]
    children = (replace(LAN, **{field: value}),)
    change = compare_tunnels(OFFICE, replace(OFFICE, children=children))
    (difference,) = change.differences
    assert (change.impact, difference.child) == (impact, "lan")


def test_a_child_more_is_hot_and_one_less_takes_it_away() -> None:
    voice = replace(LAN, name="voice", local=(TrafficSelector.parse("10.9.0.0/16"),))
    more = replace(OFFICE, children=(LAN, voice))
    (gained,) = compare_tunnels(OFFICE, more).differences
    (lost,) = compare_tunnels(more, OFFICE).differences
    assert (gained.impact, gained.before, gained.child) == (Impact.HOT, "", "voice")
    assert (lost.impact, lost.after, lost.before) == (
        Impact.REPLACE,
        "",
        "10.9.0.0/16 to 10.2.0.0/16",
    )


def test_a_secret_is_told_to_be_another_and_never_shown() -> None:
    other = SharedKey(octets=b"another secret", origin="secrets/office")
    change = compare_tunnels(OFFICE, replace(OFFICE, shared_key=other))
    (difference,) = change.differences
    assert (difference.before, difference.after) == (
        "secrets/office",
        "secrets/office, with another value",
    )
    assert "another secret" not in repr(change)


def test_tunnels_that_go_come_first_and_equal_ones_are_left_out() -> None:
    policies = {name: replace(OFFICE, name=name) for name in "abcd"}
    after = [policies["a"], replace(policies["b"], dpd_seconds=1.0), replace(OFFICE, name="new")]
    found = compare_policies(policies.values(), after)
    assert [(c.action, c.tunnel) for c in found] == [
        (Action.DELETE, "c"),
        (Action.DELETE, "d"),
        (Action.UPDATE, "b"),
        (Action.CREATE, "new"),
    ]
    assert [c.impact for c in found] == [Impact.REPLACE, Impact.REPLACE, Impact.HOT, Impact.HOT]
    assert compare_policies(after, after) == ()


def test_a_child_keeps_the_reqid_that_it_has_and_a_new_one_gets_a_free_one() -> None:
    moved = replace(OFFICE, children=(replace(LAN, reqid=OUR_REQIDS[8]),))
    rival = replace(OFFICE, name="rival", children=(replace(LAN, reqid=OUR_REQIDS[7]),))
    last = replace(OFFICE, name="last", children=(replace(LAN, reqid=OUR_REQIDS[-1]),))
    kept, other, end = keep_reqids((moved, rival, last), [OFFICE])
    assert kept == OFFICE
    assert other.children[0].reqid == OUR_REQIDS[8]
    assert end.children[0].reqid == OUR_REQIDS[-1]
    full = replace(OFFICE, name="full", children=(replace(LAN, reqid=OUR_REQIDS[-1]),))
    (_, wrapped) = keep_reqids((last, full), [last])
    assert wrapped.children[0].reqid == OUR_REQIDS[0]


def test_a_policy_carries_the_packets_between_addresses_of_one_child() -> None:
    ours, theirs, neither = map(ip_address, ("10.1.0.1", "10.2.0.1", "10.3.0.1"))
    assert changes.carries(OFFICE, ours, theirs)
    assert not changes.carries(OFFICE, theirs, ours)
    assert not changes.carries(OFFICE, ours, neither)
    assert not changes.carries(OFFICE, ip_address("fd00::1"), theirs)


def test_a_public_key_whose_line_has_moved_is_the_same() -> None:
    here, there = (PublicKey(spki=b"a key", origin=f"office.yaml:{line}") for line in (4, 5))
    old, new = (replace(OFFICE, shared_key=None, remote_key=key) for key in (here, there))
    assert compare_tunnels(old, new).differences == ()
