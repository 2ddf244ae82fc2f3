"""What is known of where the peers are, while their names are looked up."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from tests.ike.conftest import tunnel_policy
from xfrmpy.daemon import keeper as keeper_module
from xfrmpy.daemon.datapaths import Placement
from xfrmpy.daemon.keeper import Keeper
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.failures import OperatorError
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.policy.model import TunnelPolicy

NAME = "tunnel-a"
ADDRESS = ip_address("203.0.113.9")


class Lookup:
    """A keeper of one tunnel, whose peer's names stand for what `answer` gives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *peers: str) -> None:
        self.tunnel = Tunnel(Placement(policy=replace(tunnel_policy(), peers=peers)))
        self.tunnels = {NAME: self.tunnel}
        self.endpoint = IkeEndpoint([self.tunnel.policy], bytes)
        self.heard: list[Any] = []
        monkeypatch.setattr(keeper_module, "resolve_peer", self._resolve)

    def answer(self) -> Any:
        return (ADDRESS,)

    async def _resolve(self, _policy: TunnelPolicy) -> Any:
        return self.answer()

    def run(self) -> None:
        async def resolve() -> None:
            engine: Any = self.endpoint
            await Keeper(self.tunnels, engine, self.heard.append, 60).resolve(self.tunnel)

        asyncio.run(resolve())

    @property
    def known(self) -> Any:
        return self.endpoint._core.tunnels[NAME].peer_addresses


def _no_such_name() -> Any:
    raise OperatorError("XF2012", "vpn.example cannot be resolved", ())


def test_a_name_that_stands_for_nothing_is_known_to(monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = Lookup(monkeypatch, "vpn.example")
    assert lookup.known is None
    lookup.answer = _no_such_name  # type: ignore[method-assign]
    lookup.run()
    assert lookup.known == ()
    assert [occurrence.event for occurrence in lookup.heard] == ["peer-unresolved"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_tunnel_may_be_removed_meanwhile(monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    lookup = Lookup(monkeypatch, "vpn.example")

    def removed() -> Any:
        lookup.endpoint.remove_tunnel(NAME, 0.0)
        del lookup.tunnels[NAME]
        return (ADDRESS,) if is_there else _no_such_name()

    lookup.answer = removed  # type: ignore[method-assign]
    lookup.run()


def test_who_accepts_any_peer_has_nothing_to_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = Lookup(monkeypatch)
    lookup.answer = _no_such_name  # type: ignore[method-assign]
    lookup.run()
    assert lookup.heard == []
