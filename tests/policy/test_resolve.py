"""What a policy means: defaults, identities, proposals, reqids and whose traffic is whose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from textwrap import indent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.conftest import key_of
from xfrmpy.ipsec.algorithms import WEAKNESSES
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import (
    EspSuite,
    IkeSuite,
    choose_proposal,
    esp_suite,
    ike_suite,
    parse_proposal,
)
from xfrmpy.ipsec.sad import DEFAULT_REPLAY_WINDOW, OUR_REQIDS, Mode
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.load import LoadedPolicy, load_policy
from xfrmpy.policy.model import (
    ChildPolicy,
    DatapathChoice,
    Encapsulation,
    Retransmission,
    SharedKey,
    StartMode,
    TunnelPolicy,
)
from xfrmpy.policy.profiles import PROFILES, ah_proposals, esp_proposals, ike_proposals
from xfrmpy.policy.resolve import assign_reqids, find_overlaps
from xfrmpy.registry import IdType, ProtocolId, TransformType

Load = Callable[..., LoadedPolicy]
Lines = Callable[[LoadedPolicy], list[str]]

OFFICE = "peer: vpn.example.org\npsk: secret:key\nlocal: 10.1.0.0/16\nremote: 10.2.0.0/16\n"
GOOD = "psk: secret:key\nlocal: 10.1.0.0/16\nremote: 10.2.0.0/16\n"


def only(loaded: LoadedPolicy) -> TunnelPolicy:
    assert loaded.errors == ()
    (tunnel,) = loaded.tunnels
    return tunnel


def test_five_keys_are_enough(load: Load) -> None:
    tunnel = only(load(**{"office.yaml": f"peer: vpn.example.org\nid: gw1.example.net\n{GOOD}"}))
    assert tunnel == TunnelPolicy(
        name="office",
        origin=tunnel.origin,
        peers=("vpn.example.org",),
        peer_port=None,
        local_address=None,
        local_id=Identity(type=IdType.ID_FQDN, data=b"gw1.example.net"),
        remote_id=Identity(type=IdType.ID_FQDN, data=b"vpn.example.org"),
        shared_key=tunnel.shared_key,
        proposals=tuple(replace(p, number=n) for n, p in enumerate(ike_proposals("modern"), 1)),
        children=(
            ChildPolicy(
                name="office",
                reqid=tunnel.children[0].reqid,
                local=(TrafficSelector.parse("10.1.0.0/16"),),
                remote=(TrafficSelector.parse("10.2.0.0/16"),),
                proposals=tuple(
                    replace(p, number=n) for n, p in enumerate(esp_proposals("modern"), 1)
                ),
                mode=Mode.TUNNEL,
                replay_window=DEFAULT_REPLAY_WINDOW,
            ),
        ),
        start=StartMode.MANUAL,
        datapath=DatapathChoice.AUTO,
        encapsulation=Encapsulation.AUTO,
        fragmentation=True,
        dpd_seconds=30.0,
        retransmission=Retransmission(),
    )
    assert tunnel.origin.endswith("/office.yaml:1")
    assert key_of(tunnel).octets == b"0123456789abcdef0123456789abcdef"


def test_every_key_reaches_the_policy(load: Load) -> None:
    text = f"""
peer: [192.0.2.1, 192.0.2.2]
peer_port: 4510
peer_id: sun@example.org
id: keyid:0x0102
local_address: 198.51.100.4
ike: [aes256-sha256-ecp256, aes128gcm16-prfsha256-x25519]
esp: {{proposals: aes128-sha256-noesn, replay_window: 64}}
start: auto
datapath: userspace
encapsulation: force
fragmentation: no
dpd: off
retransmission: {{tries: 2, initial: 250ms, factor: 1.5, jitter: 0}}
mode: tunnel
{GOOD}"""
    tunnel = only(load(**{"t.yaml": text}))
    assert tunnel.peers == ("192.0.2.1", "192.0.2.2")
    assert tunnel.peer_port == 4510
    assert str(tunnel.remote_id) == "sun@example.org"
    assert tunnel.local_id == Identity(type=IdType.ID_KEY_ID, data=b"\x01\x02")
    assert tunnel.local_address == ip_address("198.51.100.4")
    assert [str(p) for p in tunnel.proposals] == [
        "aes256-prfsha256-sha256-ecp256",
        "aes128gcm16-prfsha256-x25519",
    ]
    assert [p.number for p in tunnel.proposals] == [1, 2]
    assert [str(p) for p in tunnel.children[0].proposals] == ["aes128-sha256-noesn"]
    assert tunnel.children[0].replay_window == 64
    assert (tunnel.start, tunnel.datapath) == (StartMode.AUTO, DatapathChoice.USERSPACE)
    assert (tunnel.encapsulation, tunnel.dpd_seconds) == (Encapsulation.FORCE, 0.0)
    assert tunnel.fragmentation is False
    assert tunnel.retransmission == Retransmission(
        initial_seconds=0.25, factor=1.5, tries=2, jitter=0
    )


@pytest.mark.parametrize(
    ("peer", "identity"),
    [
        ("192.0.2.1", Identity.of_address(ip_address("192.0.2.1"))),
        ("2001:DB8:0::1", Identity.of_address(ip_address("2001:db8::1"))),
        ("vpn.example.org", Identity(type=IdType.ID_FQDN, data=b"vpn.example.org")),
        ("vpn.example.org.", Identity(type=IdType.ID_FQDN, data=b"vpn.example.org")),
    ],
)
def test_without_peer_id_the_peer_must_be_what_we_call(
    load: Load, peer: str, identity: Identity
) -> None:
    assert only(load(**{"t.yaml": f"peer: {peer}\n{GOOD}"})).remote_id == identity


def test_without_a_peer_we_listen_for_the_peer_id(load: Load) -> None:
    tunnel = only(load(**{"t.yaml": f"peer_id: road@example.org\n{GOOD}"}))
    assert (tunnel.peers, tunnel.start) == ((), StartMode.LISTEN)
    assert str(tunnel.remote_id) == "road@example.org"


def test_the_long_form_of_authentication_says_the_same(load: Load) -> None:
    selectors = GOOD.partition("\n")[2]
    short = f"peer: 192.0.2.1\npsk: secret:key\nid: a.example\npeer_id: b.example\n{selectors}"
    auth = "{psk: secret:key, local: {id: a.example}, remote: {id: b.example}}"
    one = only(load(**{"t.yaml": short}))
    assert load_again(f"peer: 192.0.2.1\nauth: {auth}\n{selectors}", one) == (one,)


def load_again(text: str, one: TunnelPolicy) -> Sequence[TunnelPolicy]:
    """Load another text into the same place."""
    path = Path(one.origin.rpartition(":")[0])
    path.write_text(text)
    loaded = load_policy([path.parent])
    assert loaded.errors == ()
    return loaded.tunnels


def test_one_child_by_its_name_says_the_same_as_local_and_remote(load: Load) -> None:
    text = (
        "peer: a\npsk: secret:key\nchildren: {lan: {local: 10.1.0.0/16, remote: [10.2.0.0/16]}}\n"
    )
    (child,) = only(load(**{"t.yaml": text})).children
    assert (child.name, str(child.local[0]), str(child.remote[0])) == (
        "lan",
        "10.1.0.0/16",
        "10.2.0.0/16",
    )


def test_transport_mode_needs_no_selectors_and_overlaps_with_nothing(load: Load) -> None:
    text = "peer: 192.0.2.{}\npsk: secret:key\nmode: transport\n"
    loaded = load(**{f"{n}.yaml": text.format(n) for n in (1, 2)})
    assert loaded.errors == ()
    for tunnel in loaded.tunnels:
        (child,) = tunnel.children
        assert child.mode is Mode.TRANSPORT
        assert [str(s) for s in child.local] == ["0.0.0.0/0", "::/0"]
        assert child.remote == child.local


def test_transport_mode_may_be_limited(load: Load) -> None:
    text = "peer: a\npsk: secret:key\nmode: transport\nremote: 0.0.0.0/0[tcp/5432]\n"
    (child,) = only(load(**{"t.yaml": text})).children
    assert [str(s) for s in child.remote] == ["0.0.0.0/0[tcp/5432]"]


BEET = "peer: 192.0.2.1\npsk: secret:key\nmode: beet\n"


def test_beet_mode_is_between_one_address_and_another(load: Load) -> None:
    text = f"{BEET}local: ['10.1.0.1[tcp/80]', '10.1.0.1[udp]']\nremote: 10.2.0.1\n"
    (child,) = only(load(**{"t.yaml": text})).children
    assert child.mode is Mode.BEET


def test_beet_mode_between_networks_is_an_error(load: Load, lines: Lines) -> None:
    text = f"{BEET}local: [10.1.0.1, 10.1.0.2]\nremote: 10.2.0.0/31\n"
    assert lines(load(**{"t.yaml": text})) == [
        f"t.yaml:{line}: XF1004: 'mode: beet' is between two addresses: '{side}' has to be one "
        f"({side}: ADDRESS)"
        for line, side in (("4:8", "local"), ("5:9", "remote"))
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("ah: sha256", "is of ESP"),
        ("esp: {ipcomp: yes}", "does not compress in BEET mode"),
        ("datapath: userspace", "the userspace datapath has no BEET mode"),
        ("interface: 10.0.0.1/30", "in beet mode nothing is routed"),
    ],
)
def test_beet_mode_goes_without_much(load: Load, more: str, message: str) -> None:
    text = f"{BEET}local: 10.1.0.1\nremote: 10.2.0.1\n{more}\n"
    assert [message in str(error) for error in load(**{"t.yaml": text}).errors] == [True]


def test_ip_tfs_is_a_mode(load: Load) -> None:
    text = BEET.replace("beet", "iptfs") + "local: 10.1.0.0/16\nremote: 10.2.0.0/16\n"
    (child,) = only(load(**{"t.yaml": text})).children
    assert child.mode is Mode.IPTFS


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("ah: sha256", "is of ESP (RFC 9347)"),
        ("esp: {ipcomp: yes}", "does not compress in IP-TFS"),
        ("esp: {tfc: 1280}", "fills its packets up by itself"),
        ("datapath: userspace", "the userspace datapath has no IP-TFS"),
    ],
)
def test_ip_tfs_goes_without_much(load: Load, more: str, message: str) -> None:
    text = BEET.replace("beet", "iptfs") + "local: 10.1.0.0/16\nremote: 10.2.0.0/16\n"
    errors = load(**{"t.yaml": f"{text}{more}\n"}).errors
    assert [message in str(error) for error in errors] == [True]


def test_defaults_give_way_to_what_a_tunnel_says_as_a_whole(load: Load) -> None:
    text = """
defaults:
  psk: secret:key
  local: 10.1.0.0/16
  id: gw.example
  esp: {replay_window: 64, profile: compat}
  dpd: 5s
tunnels:
  a: {peer: 192.0.2.1, remote: 10.2.0.0/16}
  b: {peer: 192.0.2.1, remote: 10.3.0.0/16, esp: {replay_window: 128}, dpd: off}
  c: {peer: 192.0.2.1, children: {lan: {local: 10.5.0.0/16, remote: 10.4.0.0/16}}}
  d: {peer: 192.0.2.1, remote: 10.6.0.0/16, auth: {psk: secret:key}}
"""
    loaded = load(**{"t.yaml": text})
    assert loaded.errors == ()
    a, b, c, d = loaded.tunnels
    assert (a.children[0].replay_window, a.dpd_seconds) == (64, 5.0)
    assert a.children[0].proposals[0].transforms == esp_proposals("compat")[0].transforms
    assert (b.children[0].replay_window, b.dpd_seconds) == (128, 0.0)
    assert b.children[0].proposals[0].transforms == esp_proposals("modern")[0].transforms
    assert str(c.children[0].local[0]) == "10.5.0.0/16"
    assert (str(a.local_id), d.local_id) == ("gw.example", None)


def test_the_profile_of_ike_is_that_of_esp_too(load: Load) -> None:
    tunnel = only(load(**{"t.yaml": f"peer: a.example\nike: compat\n{GOOD}"}))
    assert [p.transforms for p in tunnel.proposals] == [
        p.transforms for p in ike_proposals("compat")
    ]
    assert [p.transforms for p in tunnel.children[0].proposals] == [
        p.transforms for p in esp_proposals("compat")
    ]


@pytest.mark.parametrize("profile", PROFILES)
def test_everything_that_a_profile_offers_is_implemented(profile: str) -> None:
    for kind, suite, proposals in (
        (IkeSuite, ike_suite, ike_proposals(profile)),
        (EspSuite, esp_suite, esp_proposals(profile)),
    ):
        chosen = choose_proposal(proposals, proposals)
        assert chosen is not None
        assert isinstance(suite(chosen), kind)


@pytest.mark.parametrize(
    "text",
    ["aes256gcm16-prfsha384-ecp384", "aes128gcm16-prfsha256-x25519", "aes256-sha256-modp3072"],
)
def test_modern_meets_common_ike_suites(text: str) -> None:
    offer = parse_proposal(text, ProtocolId.IKE)
    assert choose_proposal([offer], ike_proposals("modern")) is not None


def test_modern_meets_no_group_below_3072_bits_and_compat_does() -> None:
    offer = parse_proposal("aes256-sha256-modp2048", ProtocolId.IKE)
    assert choose_proposal([offer], ike_proposals("modern")) is None
    assert choose_proposal([offer], ike_proposals("compat")) is not None


@pytest.mark.parametrize(
    ("keys", "weak"),
    [
        ("ike: {profile: compat, proposals: 3des-sha1-x25519}\n", ["3des", "prfsha1", "sha1"]),
        ("esp: {profile: compat, proposals: [aes128gcm8, null-sha256]}\n", ["aes128gcm8", "null"]),
        ("ike: compat\nesp: aes128-aesxcbc\n", ["aesxcbc"]),
        ("ah: {profile: compat, proposals: sha256-sha1}\n", ["sha1"]),
    ],
)
def test_compat_allows_what_is_weak_and_warns_of_each(
    load: Load, keys: str, weak: list[str]
) -> None:
    loaded = load(**{"office.yaml": OFFICE + keys})
    assert loaded.errors == ()
    only(loaded)
    assert {warning.code for warning in loaded.warnings} == {"XF1020"}
    assert sorted(str(w).split("'")[1] for w in loaded.warnings) == weak


def test_no_profile_offers_what_is_weak_by_itself() -> None:
    for name in PROFILES:
        proposals = (*ike_proposals(name), *esp_proposals(name), *ah_proposals(name))
        offered = {str(t) for proposal in proposals for t in proposal.transforms}
        assert not offered & WEAKNESSES.keys()


def test_ah_takes_the_place_of_esp(load: Load) -> None:
    tunnel = only(
        load(**{"office.yaml": OFFICE + "ah: {proposals: sha512-noesn, replay_window: 64}\n"})
    )
    (child,) = tunnel.children
    assert (child.protocol, child.replay_window) == (ProtocolId.AH, 64)
    assert [str(proposal) for proposal in child.proposals] == ["sha512-noesn"]


def test_ah_has_the_proposals_of_a_profile(load: Load) -> None:
    tunnel = only(load(**{"office.yaml": OFFICE + "ah: modern\n"}))
    assert {proposal.protocol for proposal in tunnel.children[0].proposals} == {ProtocolId.AH}
    assert str(tunnel.children[0].proposals[-1]) == "sha256-sha512-esn-noesn"


def test_ah_of_a_tunnel_does_without_the_esp_of_the_defaults(load: Load) -> None:
    text = f"defaults: {{esp: aes256gcm16}}\ntunnels:\n  office:\n{indent(OFFICE, '    ')}"
    tunnel = only(load(**{"all.yaml": text + "    ah: sha256\n"}))
    assert tunnel.children[0].protocol == ProtocolId.AH


def test_lifetimes_are_given_for_the_tunnel_or_for_a_child(load: Load) -> None:
    text = (
        "peer: vpn.example.org\npsk: secret:key\nlifetime: 20m\ninactivity: 1h\n"
        "ike: {lifetime: 8h, reauth: 1d}\nesp: {max_bytes: 2GB, max_packets: 5000}\n"
        "children:\n"
        "  lan: {local: 10.1.0.0/16, remote: 10.2.0.0/16}\n"
        "  voice: {local: 10.1.9.0/24, remote: 10.2.9.0/24, lifetime: off, inactivity: off}\n"
    )
    tunnel = only(load(**{"t.yaml": text}))
    assert (tunnel.lifetime_seconds, tunnel.reauth_seconds) == (8 * 3600, 86400)
    lan, voice = tunnel.children
    assert (lan.lifetime_seconds, lan.inactivity_seconds) == (1200, 3600)
    assert (voice.lifetime_seconds, voice.inactivity_seconds) == (None, 0)
    assert {(c.lifetime_octets, c.lifetime_packets) for c in tunnel.children} == {(2 * 10**9, 5000)}
    assert lan.reqid != voice.reqid


def test_lifetimes_may_be_off(load: Load) -> None:
    text = f"peer: vpn.example.org\n{GOOD}lifetime: off\nike: {{lifetime: off, reauth: off}}\n"
    tunnel = only(load(**{"t.yaml": text}))
    assert (tunnel.lifetime_seconds, tunnel.reauth_seconds) == (None, None)
    assert tunnel.children[0].lifetime_seconds is None


@pytest.mark.parametrize("profile", ["modern", "compat"])
def test_profiles_have_forward_secrecy_first_and_take_a_peer_without(profile: str) -> None:
    ours = esp_proposals(profile)
    assert ours[0].of_type(TransformType.KE)
    with_it = parse_proposal("aes256gcm16-x25519-esn", ProtocolId.ESP)
    without = parse_proposal("aes256gcm16-esn", ProtocolId.ESP)
    assert choose_proposal([without, with_it], ours) == with_it
    assert choose_proposal([without], ours) == without


@pytest.mark.parametrize("esn", ["esn", "noesn"])
def test_both_profiles_take_a_peer_with_and_without_extended_sequence_numbers(esn: str) -> None:
    offer = parse_proposal(f"aes256gcm16-{esn}", ProtocolId.ESP)
    for profile in PROFILES:
        assert choose_proposal([offer], esp_proposals(profile)) == offer


def test_reqids_are_ours_and_unique() -> None:
    reqids = assign_reqids(f"tunnel-{n}" for n in range(5000))
    assert len(set(reqids.values())) == 5000
    assert set(reqids.values()) <= set(OUR_REQIDS)


def test_one_more_tunnel_leaves_the_reqids_of_the_others_alone() -> None:
    names = [f"tunnel-{n}" for n in range(500)]
    before = assign_reqids(names)
    for extra in (f"site-{n}" for n in range(20)):
        after = assign_reqids([*names, extra])
        moved = [name for name in names if after[name] != before[name]]
        assert moved == []


def test_reqids_do_not_depend_on_the_order_even_where_hashes_collide() -> None:
    names = [f"tunnel-{n}" for n in range(3000)]
    assert len({assign_reqids([name])[name] for name in names}) < 3000  # some do collide
    assert assign_reqids(names) == assign_reqids(reversed(names))


def test_the_reqid_of_a_name_is_the_same_for_ever() -> None:
    assert assign_reqids(["office"]) == {"office": 0x584604D9}


def make_tunnel(name: str, local: Sequence[str], remote: Sequence[str]) -> TunnelPolicy:
    child = ChildPolicy(
        name=name,
        reqid=OUR_REQIDS[0],
        local=tuple(map(TrafficSelector.parse, local)),
        remote=tuple(map(TrafficSelector.parse, remote)),
        proposals=(),
    )
    return TunnelPolicy(
        name=name,
        origin="f:1",
        peers=(),
        shared_key=SharedKey(octets=b"", origin="nowhere"),
        proposals=(),
        children=(child,),
    )


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (("10.1.0.0/16", "10.2.0.0/16"), ("10.1.0.0/16", "10.2.0.0/16"), "10.2.0.0/16"),
        (("10.1.0.0/16", "0.0.0.0/0"), ("10.1.0.0/16", "10.2.0.0/16"), "10.2.0.0/16"),
        (("10.1.0.0/16", "10.2.0.0/16"), ("10.0.0.0/8", "10.2.3.0/24"), "10.2.3.0/24"),
        (("10.1.0.0/16", "10.2.0.0/16"), ("10.9.0.0/16", "10.2.0.0/16"), None),
        (("10.1.0.0/16", "10.2.0.0/16"), ("10.1.0.0/16", "10.3.0.0/16"), None),
        (("0.0.0.0/0", "0.0.0.0/0"), ("::/0", "::/0"), None),
        (("10.1.0.0/16", "10.2.0.0/16[tcp]"), ("10.1.0.0/16", "10.2.0.0/16[udp]"), None),
        (("10.1.0.0/16[tcp]", "10.2.0.0/16"), ("10.1.0.0/16", "10.2.0.0/16[udp]"), None),
        (
            ("10.1.0.0/16", "10.2.0.0/16[tcp/80-90]"),
            ("10.1.0.0/16", "10.2.0.0/16[tcp/90-99]"),
            "10.2.0.0/16[tcp/90]",
        ),
        (("10.1.0.0/16", "10.2.0.1-10.2.0.9"), ("10.1.0.0/16", "10.2.0.9/32"), "10.2.0.9/32"),
    ],
)
def test_traffic_that_two_tunnels_claim_is_found(
    one: tuple[str, str], other: tuple[str, str], common: str | None
) -> None:
    tunnels = [make_tunnel("a", one[:1], one[1:]), make_tunnel("b", other[:1], other[1:])]
    for pair in (tunnels, tunnels[::-1]):
        found = find_overlaps(pair)
        assert [str(overlap.remote) for overlap in found] == ([common] if common else [])
        assert [(overlap.earlier, overlap.later) for overlap in found] == [(0, 1)] * len(found)


_selector = st.builds(
    lambda network, bits, service: f"{network << (8 - bits)}.0.0.0/{bits}{service}",
    st.integers(0, 3),
    st.integers(2, 2),
    st.sampled_from(["", "", "[tcp]", "[udp/53]"]),
) | st.sampled_from(["0.0.0.0/0", "2001:db8::/32", "::/0", "64.1.0.0-129.0.0.0"])
_selectors = st.lists(_selector, min_size=1, max_size=3)


@given(st.lists(st.tuples(_selectors, _selectors), max_size=6))
@settings(deadline=None)
def test_overlaps_are_those_that_comparing_every_pair_finds(
    sides: list[tuple[list[str], list[str]]],
) -> None:
    tunnels = [make_tunnel(f"t{n}", *pair) for n, pair in enumerate(sides)]
    expected = {
        later
        for later in range(len(tunnels))
        for earlier in range(later)
        if claims(tunnels[earlier].children[0], tunnels[later].children[0])
    }
    found = find_overlaps(tunnels)
    assert {overlap.later for overlap in found} == expected
    for overlap in found:
        assert claims(tunnels[overlap.earlier].children[0], tunnels[overlap.later].children[0])


def claims(one: ChildPolicy, other: ChildPolicy) -> bool:
    """The slow and obvious way: is there a packet that is in both?"""
    for local in (a.intersect(b) for a in one.local for b in other.local):
        for remote in (a.intersect(b) for a in one.remote for b in other.remote):
            if local is None or remote is None:
                continue
            if local.start_address.version != remote.start_address.version:
                continue
            if 0 in (local.protocol, remote.protocol) or local.protocol == remote.protocol:
                return True
    return False


def test_a_thousand_tunnels_load_in_the_order_of_their_names(load: Load) -> None:
    entries = (
        f"  t{n:03}: {{peer: 192.0.2.1, remote: 10.{n // 250}.{n % 250}.0/24}}\n"
        for n in range(1000)
    )
    head = "defaults: {psk: secret:key, local: 192.168.0.0/16}\ntunnels:\n"
    loaded = load(**{"t.yaml": head + "".join(entries)})
    assert loaded.errors == ()
    assert [t.name for t in loaded.tunnels] == [f"t{n:03}" for n in range(1000)]
    assert len({t.children[0].reqid for t in loaded.tunnels}) == 1000


@pytest.mark.parametrize(
    ("ike", "is_hybrid"),
    [
        ("{}", [True, False, False]),
        ("{post_quantum: prefer}", [True, False, False]),
        ("{post_quantum: require}", [True]),
        ("{post_quantum: off}", [False, False]),
        ("{post_quantum: require, proposals: aes256gcm16-prfsha384-mlkem768}", [True]),
        (
            (
                "{post_quantum: require, proposals: "
                "[aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke1_none, "
                "aes256gcm16-prfsha384-x25519-ke1_ecp256-ke2_mlkem1024]}"
            ),
            [True],
        ),
    ],
)
def test_post_quantum_key_exchange_is_preferred_required_or_off(
    load: Load, ike: str, is_hybrid: list[bool]
) -> None:
    tunnel = only(load(**{"t.yaml": f"peer: vpn.example.org\n{GOOD}ike: {ike}\n"}))
    assert [p.is_post_quantum for p in tunnel.proposals] == is_hybrid
    assert [p.number for p in tunnel.proposals] == list(range(1, len(is_hybrid) + 1))


@pytest.mark.parametrize(
    "ike",
    [
        "{post_quantum: require, profile: compat}",
        "{post_quantum: require, proposals: aes256gcm16-prfsha384-x25519}",
        "{post_quantum: require, proposals: aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke1_none}",
        "{post_quantum: off, proposals: aes256gcm16-prfsha384-x25519-ke1_mlkem768}",
    ],
)
def test_post_quantum_that_leaves_no_proposal_is_an_error(load: Load, ike: str) -> None:
    loaded = load(**{"t.yaml": f"peer: vpn.example.org\n{GOOD}ike: {ike}\n"})
    (error,) = loaded.errors
    assert error.code == "XF1004"
    assert "no proposal is left" in str(error)
