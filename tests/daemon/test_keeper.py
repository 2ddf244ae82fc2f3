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

    def keeper(self) -> Keeper:
        engine: Any = self.endpoint
        return Keeper(self.tunnels, engine, self.heard.append, 60)

    def run(self) -> None:
        async def resolve() -> None:
            await self.keeper().resolve(self.tunnel)

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


def test_a_defect_is_no_reason_to_give_a_wanted_tunnel_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lookup = Lookup(monkeypatch, "vpn.example")
    monkeypatch.setattr(keeper_module, "FIRST_RETRY_SECONDS", 0.0)
    asked: list[None] = []

    def defect() -> Any:
        asked.append(None)
        raise ZeroDivisionError

    lookup.answer = defect  # type: ignore[method-assign]

    async def want() -> None:
        keeper = lookup.keeper()
        keeper.want(lookup.tunnel)
        async with asyncio.timeout(10):
            while len(asked) < 3:
                await asyncio.sleep(0)
        keeper.stop()

    asyncio.run(want())
    assert "a defect met tunnel-a" in caplog.text
    assert {occurrence.event for occurrence in lookup.heard} == {"tunnel-wanted", "tunnel-retrying"}


def test_a_tunnel_that_is_wanted_again_at_once_is_kept_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being ended of the one before brings nothing up any more."""
    lookup = Lookup(monkeypatch, "vpn.example")
    lookup.answer = _no_such_name  # type: ignore[method-assign]

    async def want() -> None:
        keeper = lookup.keeper()
        keeper.want(lookup.tunnel)
        await asyncio.sleep(0)
        keeper.let_go(lookup.tunnel)
        keeper.want(lookup.tunnel)
        async with asyncio.timeout(10):
            while all(occurrence.event != "tunnel-retrying" for occurrence in lookup.heard):
                await asyncio.sleep(0)
        assert lookup.tunnel.keeping is not None
        assert not lookup.tunnel.keeping.done()
        keeper.stop()

    asyncio.run(want())
