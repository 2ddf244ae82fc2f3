"""What strongSwan's and libreswan's files mean here, and ours there: the other end, and back."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.conftest import key_of
from xfrmpy.policy.foreign import rendering
from xfrmpy.policy.foreign.exporting import other_end
from xfrmpy.policy.foreign.importing import Imported
from xfrmpy.policy.foreign.ipsec_conf import CONN, SIDE, Dialect, import_ipsec_conf
from xfrmpy.policy.foreign.rendering import Unrenderable
from xfrmpy.policy.foreign.swanctl import CHILD, CONNECTION, END, import_swanctl
from xfrmpy.policy.foreign.syntax import (
    ForeignSyntaxError,
    Text,
    parse_ipsec_conf,
    parse_ipsec_secrets,
    parse_swanctl,
)
from xfrmpy.policy.load import Overlay, load_policy
from xfrmpy.policy.model import TunnelPolicy
from xfrmpy.policy.pairing import pair_policies

SWANCTL = """\
connections {
    office {
        version = 2  # a comment
        local_addrs = 192.0.2.1
        remote_addrs = 192.0.2.2, sun.example.net
        proposals = aes128gcm16-sha256-curve25519, aes256-sha256-modp3072
        dpd_delay = 30s
        reauth_time = 10h
        local { auth = psk
            id = moon.example.net
        }
        remote {
            auth = psk
            id = "sun.example.net"
        }
        children {
            lan {
                local_ts = 10.1.0.0/16, fd00:1::/64
                remote_ts = 10.2.0.0/16[tcp/443]
                esp_proposals = aes128gcm16-x25519, aes128-sha256
                rekey_time = 1h
                start_action = trap
            }
        }
    }
}
secrets {
    ike-office {
        id-1 = sun.example.net
        secret = 0x6b6579
    }
}
"""
IPSEC = """\
version 2.0
config setup
conn %default
    keyexchange=ikev2
    authby=secret
conn base
    left=192.0.2.1
    leftid=@moon.example.net
    leftsubnet=10.1.0.0/16
    right=192.0.2.2
    also=far
    ike=aes_gcm256-sha2_256;dh19+dh31
    esp=aes_gcm256
    ikev2=insist
    auto=start
conn far
    rightid=@#616263
    rightsubnet=10.2.0.0/16
conn voice
    also=base
    leftsubnet=10.3.0.0/16
"""


def nothing(_pattern: str, _within: str) -> Iterable[Text]:
    return ()


def of_swanctl(text: str) -> Imported:
    return import_swanctl(parse_swanctl(Text(name="s.conf", content=text), nothing))


def of_ipsec(text: str, secrets: str = "", **options: Any) -> Imported:
    root = parse_ipsec_conf(Text(name="ipsec.conf", content=text), nothing)
    keys = parse_ipsec_secrets(Text(name="ipsec.secrets", content=secrets), nothing)
    return import_ipsec_conf(root, keys, **options)


def test_a_connection_is_a_tunnel_and_nothing_of_it_is_lost() -> None:
    imported = of_swanctl(SWANCTL)
    assert imported.notes == ()
    assert imported.tunnels == {
        "office": {
            "peer": ["192.0.2.2", "sun.example.net"],
            "id": "moon.example.net",
            "peer_id": "sun.example.net",
            "psk": "secret:office",
            "local_address": "192.0.2.1",
            "dpd": "30s",
            "ike": {
                "proposals": [
                    "aes128gcm16-prfsha256-x25519",
                    "aes256-prfsha256-sha256-modp3072",
                ],
                "reauth": "11h",
            },
            "local": ["10.1.0.0/16", "fd00:1::/64"],
            "remote": "10.2.0.0/16[tcp/443]",
            "lifetime": "66m",
            "esp": ["aes128gcm16-x25519-noesn", "aes128-sha256-noesn"],
            "start": "on-demand",
        }
    }
    assert imported.secrets == {"office": b"key"}


def test_conns_that_differ_in_their_traffic_are_children_of_one_tunnel() -> None:
    imported = of_ipsec(IPSEC, '192.0.2.1 @#616263 : PSK "a key"\n')
    assert imported.tunnels == {
        "base": {
            "peer": "192.0.2.2",
            "id": "moon.example.net",
            "peer_id": "keyid:0x616263",
            "psk": "secret:base",
            "local_address": "192.0.2.1",
            "start": "auto",
            "ike": "aes256gcm16-prfsha256-ecp256-x25519",
            "esp": ["aes256gcm16-ecp256-x25519-esn-noesn", "aes256gcm16-esn-noesn"],
            "children": {
                "base": {"local": "10.1.0.0/16", "remote": "10.2.0.0/16"},
                "voice": {"local": "10.3.0.0/16", "remote": "10.2.0.0/16"},
            },
        }
    }
    assert imported.secrets == {"base": b"a key"}
    assert [note.setting for note in imported.notes] == ["conn voice"]


def test_what_passes_in_clear_or_not_at_all_is_a_shunt() -> None:
    lines = "local_ts = 10.1.0.0/16\nremote_ts = 10.1.7.0/24"
    text = f"connections {{ a {{ children {{ printers {{\nmode = pass\n{lines}\n}} }} }} }}"
    imported = of_swanctl(text)
    assert (imported.tunnels, imported.notes) == ({}, ())
    assert imported.shunts == {
        "printers": {"action": "bypass", "local": "10.1.0.0/16", "remote": "10.1.7.0/24"}
    }
    conn = "conn mail\n  left=%any\n  right=%any\n  type=drop\n  rightsubnet=0.0.0.0/0\n"
    imported = of_ipsec(conn + "  rightprotoport=tcp/25\n")
    assert imported.shunts == {"mail": {"action": "drop", "remote": "0.0.0.0/0[tcp/25]"}}


def test_subnets_are_a_child_for_each_pair_and_protocols_stand_behind_addresses() -> None:
    text = IPSEC.replace("rightsubnet=10.2.0.0/16", "rightsubnets={10.2.0.0/16 10.4.0.0/16}")
    children = of_ipsec(text).tunnels["base"]["children"]
    assert children["base-1x2"] == {"local": "10.1.0.0/16", "remote": "10.4.0.0/16"}
    assert len(children) == 4
    text = "conn a\n  left=192.0.2.1\n  right=192.0.2.2\n  authby=psk\n  type=transport\n"
    plain = of_ipsec(text).tunnels["a"]
    assert plain["mode"] == "transport"
    assert not {"local", "remote"} & plain.keys()
    tunnel = of_ipsec(text + "  leftprotoport=17/1701\n  rightprotoport=udp/%any\n").tunnels["a"]
    assert (tunnel["local"], tunnel["remote"]) == (
        "192.0.2.1/32[udp/1701]",
        "192.0.2.2/32[udp]",
    )


def test_what_a_prefix_has_behind_its_length_counts_for_nothing() -> None:
    text = SWANCTL.replace("local_ts = 10.1.0.0/16", "local_ts = 10.1.2.3/16")
    assert of_swanctl(text).tunnels == of_swanctl(SWANCTL).tunnels


def test_a_conn_that_nothing_was_done_with_is_told_of() -> None:
    notes = of_ipsec(IPSEC.replace("auto=start", "auto=ignore")).notes
    assert "auto = ignore" in [note.setting for note in notes]
    assert "auto = ignore" not in [note.setting for note in of_ipsec(IPSEC).notes]


def test_a_dynamic_end_is_its_address_and_left_out_if_nobody_knows_it() -> None:
    text = SWANCTL.replace("local_ts = 10.1.0.0/16, fd00:1::/64", "local_ts = dynamic")
    assert of_swanctl(text).tunnels["office"]["local"] == "192.0.2.1/32"
    imported = of_swanctl(text.replace("local_addrs = 192.0.2.1", ""))
    assert imported.tunnels == {}
    assert ["child lan is left out" in n.reason or n.setting for n in imported.notes] == [
        True,
        "connection office",
    ]


def test_children_share_what_is_a_tunnels_here_and_what_differs_is_told() -> None:
    more = """voice {
        local_ts = 10.3.0.0/16
        remote_ts = 10.4.0.0/16
        esp_proposals = aes256gcm16
        start_action = start
        life_time = 1h
    }
    lan {"""
    imported = of_swanctl(SWANCTL.replace("lan {", more))
    tunnel = imported.tunnels["office"]
    assert [*tunnel["children"]] == ["voice", "lan"]
    assert tunnel["children"]["voice"]["lifetime"] == "1h"
    assert tunnel["esp"] == ["aes256gcm16-noesn", "aes128gcm16-x25519-noesn", "aes128-sha256-noesn"]
    assert tunnel["start"] == "auto"
    assert [(n.setting, "one `start`" in n.reason) for n in imported.notes] == [("child lan", True)]


def test_no_child_is_lost_because_its_name_is_none_of_ours() -> None:
    voice = "local_ts = 10.3.0.0/16\n remote_ts = 10.4.0.0/16\n start_action = trap\n }"
    other = voice.replace("10.3", "10.5")
    text = SWANCTL.replace("lan {", f"a@b {{ {voice} a-b {{ {other} lan {{")
    imported = of_swanctl(text)
    assert [*imported.tunnels["office"]["children"]] == ["a-b", "a-b-2", "lan"]
    assert {"child a@b", "child a-b"} <= {note.setting for note in imported.notes}


def test_a_secret_that_stands_where_it_should_not_is_not_shown() -> None:
    imported = of_swanctl(SWANCTL.replace("version = 2", "version = 2\nsecret = hush"))
    assert [note.setting for note in imported.notes] == ["secret"]
    imported = of_ipsec(IPSEC.replace("    auto=start", "    auto=start\n    leftpsk=hush"))
    assert "hush" not in repr(imported.notes)


def test_right_is_ours_if_we_say_so() -> None:
    tunnel = of_ipsec(IPSEC, ours="right").tunnels["base"]
    assert (tunnel["peer"], tunnel["local_address"]) == ("192.0.2.1", "192.0.2.2")
    assert tunnel["children"]["base"] == {"local": "10.2.0.0/16", "remote": "10.1.0.0/16"}


def test_strongswan_and_libreswan_mean_different_things_by_silence() -> None:
    """Of extended sequence numbers, forward secrecy and reauthentication."""
    text = (
        IPSEC.replace("ikev2=insist", "ikelifetime=8h")
        .replace("aes_gcm256-sha2_256;dh19+dh31", "aes256gcm16-prfsha256-ecp256")
        .replace("aes_gcm256", "aes256gcm16")
    )
    strongswan = of_ipsec(text).tunnels["base"]
    assert strongswan["esp"] == "aes256gcm16-noesn"
    assert strongswan["ike"]["reauth"] == "8h"
    libreswan = of_ipsec(text, dialect=Dialect.LIBRESWAN).tunnels["base"]
    assert libreswan["esp"] == ["aes256gcm16-ecp256-esn-noesn", "aes256gcm16-esn-noesn"]
    assert libreswan["ike"]["lifetime"] == "8h"


LOST = [
    ("mobike = yes", "xfrmpy has no MOBIKE"),
    ("vips = 0.0.0.0", "xfrmpy has no virtual addresses"),
    ("proposals = aes128-md5-modp1024", "left out: unknown algorithm"),
    ("dpd_delay = soon", "is no time"),
    ("local_addrs = 192.0.2.0/24", "is not one address"),
    ("local_addrs = 192.0.2.1, 192.0.2.9", "not the only one"),
    ("remote_addrs = 192.0.2.2, 192.0.2.0/24", "say nothing to xfrmpy"),
    ("a_new_one = 5", "does not know it"),
    ("if_id_in = 5", "docs/routes.md"),
    ("unique = sometimes", "only no, never, keep, replace"),
]


@pytest.mark.parametrize(("line", "words"), LOST)
def test_what_a_connection_loses_is_told_with_its_place(line: str, words: str) -> None:
    key = line.partition(" ")[0]
    kept = [each for each in SWANCTL.splitlines() if each.split()[:1] != [key]]
    imported = of_swanctl("\n".join([*kept[:2], line, *kept[2:]]))
    assert [*imported.tunnels] == ["office"]
    assert any(
        note.place == "s.conf:3" and note.setting.startswith(key) and words in note.reason
        for note in imported.notes
    ), imported.notes


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("version = 2", "version = 1", "it is IKEv1"),
        ("auth = psk", "auth = pubkey", "without `certs` or `pubkeys`"),
        ("auth = psk", "auth = eap-radius", "its servers are in strongswan.conf"),
        ("remote {", "remote-2 { auth = eap }\n remote {", "several rounds"),
        ("192.0.2.2, sun.example.net", "%any\n", "no"),
    ],
)
def test_a_connection_that_cannot_be_is_left_out_and_told(old: str, new: str, words: str) -> None:
    text = SWANCTL.replace(old, new, 1)
    if words == "no":
        text = text.replace('id = "sun.example.net"', "id = %any")
        words = "an identity must say who may call"
    imported = of_swanctl(text)
    assert imported.tunnels == {}
    assert any("left out" in note.reason and words in note.reason for note in imported.notes)


def test_every_line_of_a_file_is_carried_over_or_told_of() -> None:
    """Each setting that there is a rule for, alone, with a value that nothing expects."""
    free = ("mark_in", "mark_out", "set_mark_out")  # what a mark is, the loader knows
    lines = SWANCTL.splitlines()
    for where, rules in ((1, CONNECTION), (17, CHILD)):
        for key in {*rules} - {*free}:
            kept = [line for line in lines[where:] if line.split()[:1] != [key]]
            text = "\n".join([*lines[:where], lines[where], f"{key} = odd%", *kept[1:]])
            assert of_swanctl(text).notes, key
    for key in {*END} - {"id"}:  # any text is an identity
        text = SWANCTL.replace("id = moon.example.net", "").replace(
            "auth = psk", f"auth = psk\n{key} = odd%(", 1
        )
        assert of_swanctl(text).notes, key
    for key in CONN:
        imported = of_ipsec(IPSEC.replace("    auto=start", f"    auto=start\n    {key}=odd"))
        told = [note for note in imported.notes if note.setting != "conn voice"]
        passed = ("mark", "mark_in", "mark_out", "mark-in", "mark-out")
        assert told or key in passed, key
    for key in {*SIDE} - {"id"}:
        imported = of_ipsec(IPSEC.replace("    auto=start", f"    auto=start\n    left{key}=odd%"))
        assert [n for n in imported.notes if n.setting != "conn voice"], key


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a {\n b = 1\n", "s.conf:3"),
        ("a { b = 1 }\n}", "s.conf:2"),
        ("a b", "s.conf:1"),
        ("\n= 5", "s.conf:2"),
        ("a : b { }", "s.conf:1"),
        ("a : a { }", "s.conf:1"),
        ("a {" * 20 + "}" * 20, "s.conf:1"),
        ("secrets { ike { secret = 0xzz } }", "s.conf:1"),
    ],
)
def test_a_swanctl_conf_that_is_none_has_a_place(text: str, place: str) -> None:
    with pytest.raises(ForeignSyntaxError) as caught:
        of_swanctl(text)
    assert caught.value.place == place
    assert "zz" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("conn a\n  left\n", "ipsec.conf:2"),
        ("  left=1\n", "ipsec.conf:1"),
        ("connect a\n", "ipsec.conf:1"),
        ("conn a\n also=b\n left=1\n", "ipsec.conf:1"),
        ("conn a\n also=a\n left=1\n", "ipsec.conf:1"),
    ],
)
def test_an_ipsec_conf_that_is_none_has_a_place(text: str, place: str) -> None:
    with pytest.raises(ForeignSyntaxError) as caught:
        of_ipsec(text)
    assert caught.value.place == place


def test_sections_refer_to_others_and_files_to_files() -> None:
    files = {"more/*.conf": "base { dpd_delay = 5s }"}
    text = Text(name="s.conf", content="a : base { x = 1 }\ninclude more/*.conf\n")
    root = parse_swanctl(text, lambda pattern, _: [Text(name="m", content=files[pattern])])
    assert {k: s.value for k, s in root.sections["a"].settings.items()} == {
        "dpd_delay": "5s",
        "x": "1",
    }


@given(st.text(alphabet='ab{}=:,"# \n\\', max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (of_swanctl, of_ipsec):
        with contextlib.suppress(ForeignSyntaxError):
            read(text)


# The other end, and back.

_ADDRESSES = st.integers(1, 250)
_IKE = (
    "aes128gcm16-prfsha256-x25519",
    "aes256-sha256-modp2048-ecp256",
    "aes256gcm16-aes128gcm16-prfsha512-ecp384",
)
_ESP = (
    "aes128gcm16-noesn",
    "aes256gcm16-x25519-esn-noesn",
    "aes256-sha512-esn",
    "aes256gcm16-aes128ccm16-ecp256-noesn",
)
_IDS = st.sampled_from(
    [
        "moon.example.net",
        "you@example.org",
        "keyid:0x00ff",
        "192.0.2.77",
        "2001:db8::5",
        'a"b#c',
        "@x",
        "keyid:text",
    ]
)


@st.composite
def policies(draw: st.DrawFn, *, for_libreswan: bool) -> dict[str, Any]:
    number = draw(_ADDRESSES)
    identity = _IDS if not for_libreswan else _IDS.filter(lambda text: '"' not in text)
    policy: dict[str, Any] = {
        "peer": f"192.0.2.{number}",
        "local_address": f"198.51.100.{draw(_ADDRESSES)}",
        "psk": "secret:one",
        "id": draw(identity),
        "peer_id": draw(identity),
        "ike": draw(st.lists(st.sampled_from(_IKE), min_size=1, max_size=2, unique=True)),
        "esp": draw(
            st.lists(
                st.sampled_from(_ESP[: 1 if for_libreswan else None]),
                min_size=1,
                max_size=2,
                unique=True,
            )
        ),
    }
    policy["esp"] = {"proposals": policy["esp"], "ipcomp": draw(st.booleans())}
    if draw(st.booleans()):
        policy["encapsulation"] = "force"
    if draw(st.booleans()):
        policy["mode"] = "transport"
        return policy
    services = [""] if for_libreswan else ["", "[tcp/443]", "[udp]"]
    children: dict[str, dict[str, str]] = {}
    for child in draw(st.sampled_from([("one",), ("one", "two.three")])):
        net = 2 * len(children)
        service = draw(st.sampled_from(services))
        children[child] = {
            "local": f"10.{net}.0.0/16{service}",
            "remote": f"10.{net + 1}.0.0/16{service}",
        }
    policy |= children["one"] if len(children) == 1 else {"children": children}
    return policy


@settings(max_examples=40)
@given(policies(for_libreswan=False))
def test_the_other_end_for_strongswan_is_a_pair_and_back_again_is_ours(
    policy: dict[str, Any],
) -> None:
    _there_and_back(policy, _by_swanctl)


@settings(max_examples=40)
@given(policies(for_libreswan=True))
def test_the_other_end_for_libreswan_is_a_pair_and_back_again_is_ours(
    policy: dict[str, Any],
) -> None:
    _there_and_back(policy, _by_ipsec)


def _by_swanctl(tunnel: TunnelPolicy) -> Imported:
    end = other_end(tunnel)
    return of_swanctl(rendering.swanctl_conf(end) + rendering.swanctl_secrets(end))


def _by_ipsec(tunnel: TunnelPolicy) -> Imported:
    end = other_end(tunnel)
    return of_ipsec(
        rendering.ipsec_conf(end), rendering.ipsec_secrets(end), dialect=Dialect.LIBRESWAN
    )


def _there_and_back(policy: dict[str, Any], other: Any) -> None:
    ours = _loaded({"tunnels": {"one": policy}}, {"one": b"sixteen octets, and more"})
    there = other(ours)
    theirs = _loaded(yaml.safe_load(there.policy_text()), there.secrets)
    (pairing,) = pair_policies([ours], [theirs])
    assert pairing.works, pairing.disagreements
    assert {d.message for d in pairing.disagreements} <= {"neither end begins by itself"}
    back = other(theirs)
    again = _loaded(yaml.safe_load(back.policy_text()), back.secrets)
    assert [*_essence(again)] == [*_essence(ours)]


def _essence(tunnel: TunnelPolicy) -> Iterator[object]:
    yield tunnel.peers, tunnel.local_address, tunnel.local_id, tunnel.remote_id
    yield key_of(tunnel).octets, tunnel.encapsulation
    yield {str(p) for p in tunnel.proposals}
    for child in tunnel.children:
        yield child.mode, child.local, child.remote, child.compresses


def _loaded(policy: Any, secrets: dict[str, bytes]) -> TunnelPolicy:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "secrets").mkdir()
        for name, octets in secrets.items():
            file = Path(directory, "secrets", name)
            file.touch(0o600)
            file.write_bytes(octets)
        overlay = Overlay(files={"p.yaml": yaml.safe_dump(policy).encode()})
        loaded = load_policy([Path(directory, "conf.d")], overlay)
    assert loaded.errors == ()
    (tunnel,) = loaded.tunnels
    return tunnel


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"interface": "169.254.10.1/30"}, "interface has nothing"),
        ({"mode": "beet", "local": "10.1.0.1", "remote": "10.2.0.1"}, "tunnel or transport"),
        ({"local_address": None}, "no address of this end"),
        ({"local": ["10.1.0.0/16", "10.3.0.0/16"]}, "one subnet at either end"),
        ({"local": "10.1.0.0/16[tcp]"}, "prefixes alone"),
        ({"ike": "aes256gcm16-prfsha256-x25519-ke1_mlkem768"}, "ke1_mlkem768"),
        ({"id": "a'b"}, "has characters"),
    ],
)
def test_what_libreswan_cannot_be_told_is_an_error(change: dict[str, Any], words: str) -> None:
    policy = {
        "peer": "192.0.2.2",
        "local_address": "192.0.2.1",
        "psk": "secret:one",
        "local": "10.1.0.0/16",
        "remote": "10.2.0.0/16",
        **change,
    }
    policy = {key: value for key, value in policy.items() if value is not None}
    ours = _loaded({"tunnels": {"one": policy}}, {"one": b"k" * 32})
    with pytest.raises(Unrenderable, match=words):
        rendering.ipsec_conf(other_end(ours))


def test_ml_kem_stays_at_home_where_there_is_something_else() -> None:
    policy = {
        "peer": "192.0.2.2",
        "local_address": "192.0.2.1",
        "psk": "secret:one",
        "mode": "transport",
    }
    ours = _loaded({"tunnels": {"one": policy}}, {"one": b"k" * 32})
    assert any(p.is_post_quantum for p in ours.proposals)
    assert "mlkem" not in rendering.swanctl_conf(other_end(ours))
