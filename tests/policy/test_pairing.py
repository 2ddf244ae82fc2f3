"""Whether two policies would agree: each way in which two ends are known to misunderstand."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from tests.keypairs import private_key, public_key
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.ipsec.sad import OUR_REQIDS, Mode
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.model import ChildPolicy, Ppk, SharedKey, StartMode, TunnelPolicy
from xfrmpy.policy.pairing import Pairing, pair_policies
from xfrmpy.registry import ProtocolId

MOON, SUN = Identity.parse("moon.example.net"), Identity.parse("sun.example.net")


def selectors(*texts: str) -> tuple[TrafficSelector, ...]:
    return tuple(map(TrafficSelector.parse, texts))


def ike(text: str) -> Any:
    return (parse_proposal(text, ProtocolId.IKE),)


def esp(*texts: str) -> Any:
    return tuple(parse_proposal(text, ProtocolId.ESP) for text in texts)


LAN = ChildPolicy(
    name="lan",
    reqid=OUR_REQIDS[1],
    local=selectors("10.1.0.0/16"),
    remote=selectors("10.2.0.0/16"),
    proposals=esp("aes128gcm16-x25519"),
)
OURS = TunnelPolicy(
    name="to-sun",
    origin="moon.yaml:1",
    peers=("192.0.2.2",),
    local_id=MOON,
    remote_id=SUN,
    shared_key=SharedKey(octets=b"a shared key of thirty-two octets", origin="secrets/to-sun"),
    proposals=ike("aes128gcm16-prfsha256-x25519"),
    children=(LAN,),
    start=StartMode.AUTO,
)
THEIRS = replace(
    OURS,
    name="to-moon",
    origin="sun.yaml:1",
    peers=("192.0.2.1",),
    local_id=SUN,
    remote_id=MOON,
    children=(replace(LAN, local=LAN.remote, remote=LAN.local),),
    start=StartMode.LISTEN,
)


def theirs(**keys: Any) -> TunnelPolicy:
    child = {key: keys.pop(key) for key in ("local", "remote", "mode", "esp") if key in keys}
    terms = {"proposals" if key == "esp" else key: value for key, value in child.items()}
    return replace(THEIRS, **keys, children=(replace(THEIRS.children[0], **terms),))


def pairing(*others: TunnelPolicy, ours: TunnelPolicy = OURS) -> Pairing:
    (found,) = pair_policies([ours], others)
    return found


def test_two_ends_that_mirror_each_other_agree_and_it_is_told_in_what() -> None:
    found = pairing(THEIRS)
    assert (found.works, found.disagreements) == (True, ())
    assert found.agreed == (
        "IKE: aes128gcm16-prfsha256-x25519",
        "lan: aes128gcm16-esn, 10.1.0.0/16 to 10.2.0.0/16",
    )


@pytest.mark.parametrize(
    ("other", "codes"),
    [
        (theirs(proposals=ike("aes256gcm16-prfsha384-ecp384")), ["XF2002"]),
        (theirs(esp=esp("aes256gcm16-x25519")), ["XF2003"]),
        (theirs(esp=esp("aes128gcm16")), ["XF2015"]),
        (theirs(esp=esp("aes128gcm16-ecp256")), ["XF2015"]),
        (theirs(remote=selectors("10.9.0.0/16")), ["XF2004", "XF2004"]),
        (theirs(remote=selectors("10.1.0.0/17")), [""]),
        (theirs(mode=Mode.TRANSPORT), ["XF2020"]),
        (theirs(local_id=Identity.parse("mars.example.net")), ["XF2005"]),
        (theirs(remote_id=Identity.parse("luna.example.net")), ["XF2005"]),
        (theirs(shared_key=SharedKey(octets=b"another", origin="there")), ["XF2005"]),
        (theirs(local_address=ip_address("192.0.2.3")), ["XF2001"]),
    ],
)
def test_what_would_fail_has_the_code_that_it_would_have(
    other: TunnelPolicy, codes: list[str]
) -> None:
    found = pairing(other)
    assert [d.code for d in found.disagreements] == codes
    assert found.works == (not any(codes))
    assert all(d.ours != d.theirs for d in found.disagreements)


def by_keys(here: str = "moon", there: str = "sun") -> tuple[TunnelPolicy, TunnelPolicy]:
    """Both ends by keys; `here` and `there` are whose the other end expects."""
    kind = KeyKind.ED25519
    ours = replace(
        OURS,
        shared_key=None,
        local_key=private_key(kind, "moon"),
        remote_key=public_key(kind, there),
    )
    other = theirs(
        shared_key=None, local_key=private_key(kind, "sun"), remote_key=public_key(kind, here)
    )
    return ours, other


def test_keys_that_belong_together_work() -> None:
    ours, other = by_keys()
    assert pairing(other, ours=ours).disagreements == ()


@pytest.mark.parametrize("whose", ["here", "there"])
def test_a_key_that_is_not_the_expected_one_is_told(whose: str) -> None:
    ours, other = by_keys(**{whose: "mars"})
    (told,) = pairing(other, ours=ours).disagreements
    assert told.code == "XF2005"
    assert "mars (public)" in (told.theirs if whose == "here" else told.ours)


def test_ends_that_expect_another_method_are_told() -> None:
    ours, other = by_keys()
    both = replace(other, local_key=None, shared_key=OURS.shared_key)
    (told,) = pairing(both, ours=ours).disagreements
    assert told.code == "XF2005"
    assert told.message == "they prove by one method, and another counts"


def test_no_secret_is_in_what_is_told() -> None:
    other = theirs(shared_key=SharedKey(octets=b"another secret", origin="there"))
    told = repr(pairing(other).disagreements)
    assert "secrets/to-sun" in told
    assert "thirty-two" not in told
    assert "another secret" not in told


def test_ends_of_which_none_begins_are_told_apart_from_ends_of_which_none_can() -> None:
    idle = replace(OURS, start=StartMode.MANUAL)
    assert [d.code for d in pairing(THEIRS, ours=idle).disagreements] == [""]
    silent = replace(OURS, peers=(), start=StartMode.LISTEN)
    assert [d.code for d in pairing(theirs(peers=()), ours=silent).disagreements] == ["XF1014"]


def test_without_an_identity_an_end_is_its_address() -> None:
    ours = replace(OURS, local_id=None)
    assert pairing(theirs(remote_id=Identity.parse("192.0.2.1")), ours=ours).works
    wrong = pairing(theirs(remote_id=Identity.parse("192.0.2.9")), ours=ours)
    assert [d.code for d in wrong.disagreements] == ["XF2005"]
    unknown = theirs(peers=("moon.example.net",), remote_id=Identity.parse("192.0.2.9"))
    assert pairing(unknown, ours=ours).works


def test_each_tunnel_meets_the_one_that_is_meant_for_it_and_strangers_meet_nobody() -> None:
    mars = Identity.parse("mars.example.net")
    stranger = theirs(remote_id=mars, remote=selectors("10.8.0.0/16"), name="to-mars")
    assert pairing(stranger, THEIRS).theirs == THEIRS
    alone = replace(OURS, remote_id=mars, children=(replace(LAN, remote=selectors("10.7.0.0/16")),))
    far = replace(stranger, local_id=SUN)
    assert pairing(far, ours=alone).theirs is None
    assert not pairing(ours=alone).works


KEY = SharedKey(octets=b"a post-quantum key of both ends.", origin="secrets/ppk")
FALSE = SharedKey(octets=b"a post-quantum key of one of us.", origin="secrets/false")
ONE, TWO = Ppk(id="one", key=KEY), Ppk(id="two", key=KEY)


@pytest.mark.parametrize(
    ("here", "there", "required", "codes"),
    [
        ((), (), False, []),
        ((ONE,), (ONE,), True, []),
        ((ONE, TWO), (TWO, ONE), True, []),
        ((ONE,), (), False, [""]),
        ((), (ONE,), False, [""]),
        ((ONE,), (), True, ["XF2033"]),
        ((ONE,), (TWO,), True, ["XF2033"]),
        ((ONE, TWO), (TWO,), True, []),
        ((ONE,), (replace(ONE, key=FALSE),), False, ["XF2034"]),
    ],
)
def test_who_names_a_post_quantum_key_finds_it_at_the_other_end(
    here: tuple[Ppk, ...], there: tuple[Ppk, ...], required: bool, codes: list[str]
) -> None:
    found = pairing(theirs(ppks=there), ours=replace(OURS, ppks=here, ppk_required=required))
    assert [d.code for d in found.disagreements] == codes
    shown = repr(found.disagreements)
    assert KEY.octets.decode() not in shown
    assert FALSE.octets.decode() not in shown


def test_a_second_tunnel_that_would_take_us_is_told() -> None:
    rival = replace(THEIRS, name="also-moon", origin="sun.yaml:9")
    found = pairing(THEIRS, rival)
    assert [d.code for d in found.disagreements] == ["XF1007"]
    assert "also-moon" in found.disagreements[0].message


def test_a_child_that_one_end_has_not_is_told_whichever_end_that_is() -> None:
    voice = replace(
        LAN, name="voice", local=selectors("10.5.0.0/24"), remote=selectors("10.6.0.0/24")
    )
    more = replace(OURS, children=(LAN, voice))
    assert [d.message for d in pairing(THEIRS, ours=more).disagreements] == [
        "no traffic of 'voice' in common"
    ]
    mirrored = replace(voice, local=voice.remote, remote=voice.local)
    other = replace(THEIRS, children=(*THEIRS.children, mirrored))
    assert [d.code for d in pairing(other).disagreements] == ["XF2004"]
    assert pairing(other, ours=more).works
