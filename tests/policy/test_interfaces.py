"""Route-based tunnels in the policy: what `interface` means, and what it excludes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from xfrmpy.ipsec.interfaces import InterfaceAddress, TunnelInterface
from xfrmpy.ipsec.sad import OUR_REQIDS
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.blocking import block_exits, blocked_traffic
from xfrmpy.policy.changes import Impact, compare_tunnels, keep_reqids
from xfrmpy.policy.load import LoadedPolicy
from xfrmpy.policy.model import OnDown, TunnelPolicy
from xfrmpy.policy.resolve import EVERYTHING

Load = Callable[..., LoadedPolicy]
Lines = Callable[[LoadedPolicy], list[str]]

PAGE = (Path(__file__).parents[2] / "docs" / "routes.md").read_text()
EXAMPLES = re.findall(
    r"^```yaml\n# /etc/xfrmpy/conf\.d/(\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL
)

HEAD = "peer: 192.0.2.1\npsk: secret:key\n"


def test_the_short_form_is_an_address_and_the_tunnel_carries_everything(load: Load) -> None:
    (tunnel,) = load(**{"east.yaml": f"{HEAD}interface: 169.254.10.1/30\n"}).tunnels
    interface = tunnel.interface
    assert interface is not None
    assert interface == TunnelInterface(
        name="east",
        if_id=interface.if_id,
        addresses=(InterfaceAddress(address=ip_address("169.254.10.1"), prefixlen=30),),
    )
    assert interface.if_id in OUR_REQIDS
    (child,) = tunnel.children
    assert (child.local, child.remote, child.if_id) == (EVERYTHING, EVERYTHING, interface.if_id)


def test_the_long_form_says_everything(load: Load) -> None:
    text = (
        "interface: {name: to-east, address: [10.0.0.1/31, 'fd00::1/64'], mtu: 1380, vrf: red, "
        "namespace: inside, routes: [10.2.0.0/16], if_id: 42}\n"
    )
    (tunnel,) = load(**{"east.yaml": HEAD + text}).tunnels
    assert tunnel.interface == TunnelInterface(
        name="to-east",
        if_id=42,
        addresses=(
            InterfaceAddress(address=ip_address("10.0.0.1"), prefixlen=31),
            InterfaceAddress(address=ip_address("fd00::1"), prefixlen=64),
        ),
        mtu=1380,
        vrf="red",
        namespace="inside",
        routes=(ip_network("10.2.0.0/16"),),
    )
    assert tunnel.children[0].if_id == 42


def test_selectors_that_are_named_limit_the_interface(load: Load) -> None:
    text = f"{HEAD}interface: 10.0.0.1/30\nremote: 10.2.0.0/16\n"
    ((child,),) = (t.children for t in load(**{"east.yaml": text}).tunnels)
    assert child.local == EVERYTHING
    assert child.remote == (TrafficSelector.parse("10.2.0.0/16"),)


def test_tunnels_with_interfaces_may_carry_equal_traffic(load: Load) -> None:
    files = {f"{name}.yaml": f"{HEAD}interface: 10.0.{n}.1/30\n" for n, name in enumerate("abc")}
    plain = {"plain.yaml": f"{HEAD}local: 10.1.0.0/16\nremote: 10.2.0.0/16\n"}
    loaded = load(**files, **plain)
    assert loaded.errors == ()
    numbers = {t.interface.if_id for t in loaded.tunnels if t.interface is not None}
    assert len(numbers) == 3


def test_two_tunnels_cannot_have_one_interface(load: Load, lines: Lines) -> None:
    first = f"{HEAD}interface: {{name: same, if_id: 5}}\n"
    second = f"{HEAD}interface: {{name: same, namespace: other, if_id: 5}}\n"
    third = f"{HEAD}interface: {{name: same}}\n"
    assert lines(load(**{"a.yaml": first, "b.yaml": second, "c.yaml": third})) == [
        "b.yaml:3:1: XF1018: the interface of 'b' has the if_id 5, as that of 'a' (a.yaml:1)",
        "c.yaml:3:1: XF1018: the interface of 'c' is called 'same', as that of 'a' (a.yaml:1)",
    ]


def test_two_tunnels_with_one_peer_cannot_both_compress_what_their_interfaces_carry(
    load: Load, lines: Lines
) -> None:
    text = f"{HEAD}interface: 10.0.0.1/30\nesp: {{ipcomp: yes}}\n"
    ours = {"a.yaml": text, "b.yaml": text}
    others = {
        "plain.yaml": f"{HEAD}interface: 10.0.0.1/30\n",
        "c.yaml": f"{text}datapath: userspace\n",
    }
    (line,) = lines(load(**ours, **others))
    assert line.startswith("b.yaml:3:1: XF1004: 'b' has the peer, 'interface' and 'ipcomp' of 'a'")


def test_tunnels_of_whoever_calls_may_both_compress(load: Load) -> None:
    text = f"{HEAD}interface: 10.0.0.1/30\nesp: {{ipcomp: yes}}\n"
    anyone = "\n".join(line for line in text.splitlines() if not line.startswith("peer:"))
    assert (
        load(**{f"{name}.yaml": f"{anyone}\npeer_id: {name}.example\n" for name in "ab"}).errors
        == ()
    )


def test_a_long_name_of_a_tunnel_makes_a_short_one_of_its_device(load: Load) -> None:
    files = {
        f"branch-office-of-{city}.yaml": f"{HEAD}interface: 10.0.0.1/30\n" for city in ("x", "y")
    }
    names = {t.interface.name for t in load(**files).tunnels if t.interface is not None}
    assert names == {"branch-off-45a7", "branch-off-61c8"}


def test_an_interface_needs_tunnel_mode(load: Load, lines: Lines) -> None:
    text = f"{HEAD}mode: transport\ninterface: 10.0.0.1/30\n"
    assert lines(load(**{"a.yaml": text})) == [
        "a.yaml:3:7: XF1004: 'interface' needs tunnel mode: in transport mode nothing is routed"
    ]


def test_block_needs_to_know_what_the_interface_carries(load: Load, lines: Lines) -> None:
    head = f"{HEAD}on_down: block\n"
    loaded = load(
        **{
            "a.yaml": f"{head}interface: 10.0.0.1/30\n",
            "b.yaml": f"{head}interface: {{namespace: inside, routes: 10.2.0.0/16}}\n",
        }
    )
    assert lines(loaded) == [
        (
            "a.yaml:3:10: XF1004: 'on_down' cannot be block where nothing says what the interface "
            "carries (name 'remote', or 'routes' in 'interface')"
        ),
        (
            "b.yaml:3:10: XF1004: 'on_down' cannot be block where the interface is in another "
            "namespace (what enters it there never leaves in clear)"
        ),
    ]


def test_what_is_blocked_is_what_is_routed_into_the_interface(load: Load) -> None:
    text = f"{HEAD}on_down: block\ninterface: {{routes: [10.2.0.0/16, 10.3.0.0/16]}}\n"
    loaded = load(**{"east.yaml": text})
    assert {str(s.destination) for s in loaded.blocked} == {"10.2.0.0/16", "10.3.0.0/16"}
    assert loaded.blocked == blocked_traffic(loaded.tunnels)
    assert loaded.block_exits == block_exits(loaded.tunnels) == {"east"}


def test_block_is_the_default_where_it_can_be_kept(load: Load) -> None:
    loaded = load(
        **{
            "a.yaml": f"{HEAD}interface: {{routes: 10.2.0.0/16}}\n",
            "b.yaml": f"{HEAD}interface: 10.0.0.1/30\nremote: 10.3.0.0/16\n",
            "c.yaml": f"{HEAD}interface: 10.0.1.1/30\n",
            "d.yaml": f"{HEAD}interface: {{namespace: inside, routes: 10.4.0.0/16}}\n",
        }
    )
    assert loaded.errors == ()
    assert [t.on_down for t in loaded.tunnels] == [
        OnDown.BLOCK,
        OnDown.BLOCK,
        OnDown.CLEAR,
        OnDown.CLEAR,
    ]


def test_the_examples_of_the_page_load(load: Load) -> None:
    secrets = {f"../secrets/{name}": "x" * 32 for name in ("dc-east", "dc-west")}
    loaded = load(**dict(EXAMPLES), **secrets)
    assert (loaded.errors, loaded.warnings) == ((), ())
    assert [t.interface is not None for t in loaded.tunnels] == [True, True]
    assert len(EXAMPLES) == PAGE.count("```yaml")


def test_a_route_to_the_peer_is_allowed_where_it_cannot_loop(load: Load) -> None:
    text = f"{HEAD}interface: {{vrf: red, routes: 0.0.0.0/0}}\n"
    assert load(**{"east.yaml": text}).errors == ()


def test_a_number_that_is_in_force_is_kept_and_another_gives_way(load: Load) -> None:
    east, west = load(
        **{f"{n}.yaml": f"{HEAD}interface: 10.0.0.1/30\n" for n in ("east", "west")}
    ).tunnels
    assert east.interface is not None
    assert west.interface is not None
    (moved,) = keep_reqids([_numbered(east, west.interface.if_id)], [])
    kept, other = keep_reqids([east, west], [moved])
    assert kept.interface is not None
    assert other.interface is not None
    assert kept.interface.if_id == kept.children[0].if_id == west.interface.if_id
    assert other.interface.if_id == other.children[0].if_id == west.interface.if_id + 1


def _numbered(tunnel: TunnelPolicy, if_id: int) -> TunnelPolicy:
    assert tunnel.interface is not None
    return replace(
        tunnel,
        interface=replace(tunnel.interface, if_id=if_id),
        children=tuple(replace(child, if_id=if_id) for child in tunnel.children),
    )


def test_an_address_changes_hot_and_becoming_route_based_replaces_the_child(load: Load) -> None:
    plain, first, second = load(
        **{
            "a.yaml": f"{HEAD}local: 10.1.0.0/16\nremote: 10.2.0.0/16\n",
            "b.yaml": f"{HEAD}interface: {{name: x, if_id: 1}}\n",
            "c.yaml": f"{HEAD}interface: {{name: y, if_id: 2, address: 10.0.0.1/30}}\n",
        }
    ).tunnels
    assert first.interface is not None
    renamed = replace(second, interface=first.interface)
    change = compare_tunnels(replace(renamed, children=second.children), second)
    assert [str(d.impact) for d in change.differences] == ["hot"]
    assert (change.differences[0].before, change.differences[0].after) == (
        "x, if_id 0x1",
        "y, 10.0.0.1/30, if_id 0x2",
    )
    grown = compare_tunnels(replace(plain, name="b"), first)
    assert grown.impact is Impact.REPLACE
    assert not grown.takes_down
