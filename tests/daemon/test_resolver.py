"""Paths to a peer, as far as they need neither DNS nor privileges."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from xfrmpy.daemon.resolver import has_names, paths_to, resolve_peer
from xfrmpy.failures import OperatorError
from xfrmpy.policy.model import SharedKey, TunnelPolicy


def policy(*peers: str, local: str | None = None) -> TunnelPolicy:
    return TunnelPolicy(
        name="a",
        origin="a.yaml:1",
        peers=peers,
        local_address=None if local is None else ip_address(local),
        shared_key=SharedKey(octets=b"k", origin="test"),
        proposals=(),
        children=(),
    )


def test_addresses_are_their_own_resolution_in_their_order() -> None:
    found = asyncio.run(resolve_peer(policy("127.0.0.2", "::1", "127.0.0.2")))
    assert [str(a) for a in found] == ["127.0.0.2", "::1"]


def test_only_names_may_come_to_stand_for_something_else() -> None:
    assert not has_names(policy("127.0.0.2", "::1"))
    assert has_names(policy("127.0.0.2", "localhost"))
    assert not has_names(policy())


def test_a_name_that_does_not_resolve_is_named() -> None:
    with pytest.raises(OperatorError) as caught:
        asyncio.run(resolve_peer(policy("no-such-host.invalid")))
    assert caught.value.failure.code == "XF2012"
    assert caught.value.failure.evidence[0][0] == "no-such-host.invalid"


def test_one_name_that_resolves_is_enough() -> None:
    found = asyncio.run(resolve_peer(policy("no-such-host.invalid", "127.0.0.1")))
    assert found == (ip_address("127.0.0.1"),)


def test_a_fixed_local_address_takes_only_peers_of_its_family() -> None:
    addresses = (ip_address("::1"), ip_address("127.0.0.1"))
    (path,) = paths_to(policy("x", local="127.0.0.9"), addresses)
    assert str(path) == "127.0.0.9:500 -> 127.0.0.1:500"


def test_a_peer_of_the_other_family_only_is_explained() -> None:
    with pytest.raises(OperatorError) as caught:
        paths_to(policy("x", local="127.0.0.9"), (ip_address("::1"),))
    assert caught.value.failure.code == "XF2013"
