"""What `on_down: block` keeps from going in clear, also of tunnels that are left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xfrmpy.policy.load import LoadedPolicy

Load = Callable[..., LoadedPolicy]

OFFICE = """\
peer: vpn.example.org
psk: secret:key
local: [10.1.0.0/16, fd01::/64]
remote: [10.2.0.0/16, "10.3.0.1[tcp/443]"]
on_down: block
"""
HOSTS = """\
peer: [192.0.2.1, 2001:db8::1]
peer_id: a.example.org
psk: secret:key
mode: transport
on_down: block
"""
OFFICE_TRAFFIC = ["10.1.0.0/16 -> 10.2.0.0/16", "10.1.0.0/16 -> 10.3.0.1/32 tcp"]


def blocked(loaded: LoadedPolicy) -> list[str]:
    return [str(selector) for selector in loaded.blocked]


def test_each_pair_of_selectors_that_any_packet_can_match_is_blocked(load: Load) -> None:
    loaded = load(**{"a.yaml": OFFICE})
    assert loaded.errors == ()
    assert blocked(loaded) == OFFICE_TRAFFIC


def test_a_policy_that_says_nothing_of_it_is_the_safe_one(load: Load) -> None:
    assert blocked(load(**{"a.yaml": OFFICE.replace("on_down: block\n", "")})) == OFFICE_TRAFFIC


def test_nothing_is_blocked_where_the_policy_says_clear(load: Load) -> None:
    loaded = load(**{"a.yaml": OFFICE.replace("block", "clear")})
    assert (len(loaded.tunnels), loaded.blocked) == (1, ())


def test_in_transport_mode_it_is_the_traffic_with_the_peer(load: Load) -> None:
    loaded = load(**{"a.yaml": HOSTS})
    assert loaded.errors == ()
    assert blocked(loaded) == ["0.0.0.0/0 -> 192.0.2.1/32", "::/0 -> 2001:db8::1/128"]


def test_in_transport_mode_the_policy_limits_it(load: Load) -> None:
    loaded = load(**{"a.yaml": HOSTS + 'remote: "0.0.0.0/0[tcp/5432]"\n'})
    assert blocked(loaded) == ["0.0.0.0/0 -> 192.0.2.1/32 tcp"]


@pytest.mark.parametrize("peer", ["[192.0.2.1, b.example.org]", "c.example.org"])
def test_in_transport_mode_the_peer_must_be_given_by_address(load: Load, peer: str) -> None:
    """At boot there is nobody to ask for names."""
    loaded = load(**{"a.yaml": HOSTS.replace("[192.0.2.1, 2001:db8::1]", peer)})
    assert [(error.code, error.line) for error in loaded.errors] == [("XF1004", 5)]
    assert "without the peer's address" in loaded.errors[0].message


@pytest.mark.parametrize("peer", ["peer: [192.0.2.1, b.example.org]", "", "peer: c.example.org"])
def test_in_transport_mode_without_an_address_nothing_is_blocked_unasked(
    load: Load, peer: str
) -> None:
    written = HOSTS.replace("peer: [192.0.2.1, 2001:db8::1]", peer)
    loaded = load(**{"a.yaml": written.replace("on_down: block\n", "")})
    assert (loaded.errors, len(loaded.tunnels), loaded.blocked) == ((), 1, ())


def test_a_tunnel_whose_secret_is_not_there_is_blocked_all_the_same(load: Load) -> None:
    loaded = load(**{"a.yaml": OFFICE.replace("secret:key", "secret:lost")})
    assert [error.code for error in loaded.errors] == ["XF1008"]
    assert loaded.tunnels == ()
    assert blocked(loaded) == OFFICE_TRAFFIC


def test_a_tunnel_whose_neighbour_in_the_file_is_wrong_is_blocked_all_the_same(load: Load) -> None:
    indented = "".join(f"    {line}\n" for line in OFFICE.splitlines())
    loaded = load(**{"a.yaml": f"tunnels:\n  wrong: {{start: atuo}}\n  office:\n{indented}"})
    assert loaded.tunnels == ()
    assert blocked(loaded) == OFFICE_TRAFFIC
