"""The tunnels that a caller may mean, beside a search through all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ike.conftest import tunnel_policy
from xfrmpy.ike.candidates import Tunnel, TunnelIndex
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ipsec.addresses import IKE_PORT, IpAddress, Path, SocketAddress
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.model import TunnelPolicy

HERE = [ip_address(f"192.0.2.{n}") for n in (1, 2)]
THERE = [ip_address(f"203.0.113.{n}") for n in (1, 2, 3)]
NAMES = [Identity.parse(f"peer{n}.example") for n in range(3)]
POLICY = tunnel_policy()


def _path(local: IpAddress, remote: IpAddress) -> Path:
    return Path(local=SocketAddress(local, IKE_PORT), remote=SocketAddress(remote, IKE_PORT))


tunnels = st.builds(
    lambda addresses, listens, local, identity, fragmentation: Tunnel(
        policy=replace(
            POLICY,
            peers=() if listens else ("peer.example",),
            local_address=local,
            remote_id=identity,
            fragmentation=fragmentation,
        ),
        peer_addresses=tuple(addresses),
    ),
    st.lists(st.sampled_from(THERE), unique=True),
    st.booleans(),
    st.sampled_from([None, *HERE]),
    st.sampled_from(NAMES),
    st.booleans(),
)


def _may_mean(tunnel: Tunnel, path: Path) -> bool:
    policy = tunnel.policy
    if policy.local_address not in (None, path.local.address):
        return False
    return not policy.peers or path.remote.address in (tunnel.peer_addresses or ())


@given(
    everyone=st.lists(tunnels, max_size=8),
    local=st.sampled_from(HERE),
    remote=st.sampled_from(THERE),
    identity=st.sampled_from(NAMES),
)
def test_the_index_finds_what_a_search_finds(
    everyone: list[Tunnel], local: IpAddress, remote: IpAddress, identity: Identity
) -> None:
    path = _path(local, remote)
    found = [tunnel.policy for tunnel in everyone if _may_mean(tunnel, path)]
    found.sort(key=lambda policy: not policy.peers)
    candidates = TunnelIndex(everyone).candidates(path)
    assert list(candidates.policies) == found
    assert bool(candidates) == bool(found)
    assert list(candidates.of_peer(identity)) == [p for p in found if p.remote_id == identity]
    assert candidates.redirects_to == {policy.redirect_to for policy in found}
    assert candidates.named("tunnel-a") in found or not found
    assert candidates.named("tunnel-b") is None
    assert candidates.fragmentation == any(policy.fragmentation for policy in found)


@pytest.mark.parametrize(
    ("peers", "addresses"),
    [
        ((), ()),
        (("192.0.2.7", "2001:db8::7"), (ip_address("192.0.2.7"), ip_address("2001:db8::7"))),
        (("192.0.2.7", "vpn.example"), None),
    ],
)
def test_an_address_need_not_be_looked_up(
    peers: tuple[str, ...], addresses: tuple[IpAddress, ...] | None
) -> None:
    assert Tunnel.of(replace(POLICY, peers=peers)).peer_addresses == addresses


def test_a_caller_at_a_new_address_of_the_peer_is_known_at_once(
    make_policy: Callable[..., TunnelPolicy],
) -> None:
    policy = make_policy()
    endpoint = IkeEndpoint([policy], bytes)
    core = endpoint._core
    for address in THERE:
        assert not core.tunnel_index.candidates(_path(HERE[0], address))
        endpoint.set_peer_addresses(policy.name, (address,))
        assert list(core.tunnel_index.candidates(_path(HERE[0], address)).policies) == [policy]
        assert core.tunnel_index.is_complete
    endpoint.replace_tunnel(replace(policy, peers=()))
    (listening,) = core.tunnel_index.candidates(_path(HERE[0], THERE[0])).policies
    assert listening.peers == ()
