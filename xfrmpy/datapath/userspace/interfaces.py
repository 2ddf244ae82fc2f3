"""TUN devices of the workers as the devices of route-based tunnels: they know which is whose.

A device goes with the descriptors that workers have of it, unless somebody else made it to stay.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.netdevices import Device, Devices
from xfrmpy.datapath.tunnel_interfaces import taken
from xfrmpy.datapath.userspace.workers import Workers

_KIND = "tun"


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    is_adopted: bool


class TunMaker:
    """See the module, and `Maker`."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._known: dict[int, _Known] = {}

    def refresh(self) -> None:
        told = self._workers.ask("interfaces")
        assert isinstance(told, list)
        self._known = {if_id: _Known(name, is_adopted) for if_id, name, is_adopted in told}

    def obtain(self, home: Devices, name: str, if_id: int) -> Device:
        self.refresh()
        known = self._known.get(if_id)
        found = home.find(known.name) if known is not None and known.name else None
        if found is not None:
            return found
        if known is not None:  # Removed, or taken elsewhere.
            self._close(if_id)
        there = home.find(name)
        if there is not None and there.kind != _KIND:
            raise taken(there)
        self._workers.ask_each("open_interface", [if_id, name])
        self.refresh()
        made = home.find(name)
        if made is None:
            raise DatapathError(f"the interface {name} is gone as soon as it was made")
        return made

    def is_of(self, device: Device, if_id: int) -> bool:
        known = self._known.get(if_id)
        return known is not None and device.kind == _KIND and known.name == device.name

    def is_ours(self, device: Device) -> bool:
        return any(k.name == device.name and not k.is_adopted for k in self._known.values())

    def drop(self, place: Devices, device: Device, if_id: int) -> None:  # noqa: ARG002
        self._close(if_id)

    def drop_all_but(self, home: Devices, if_ids: Collection[int]) -> None:  # noqa: ARG002
        self.refresh()
        for if_id in self._known.keys() - if_ids:
            self._close(if_id)

    def _close(self, if_id: int) -> None:
        self._workers.ask_each("close_interface", if_id)
        self._known.pop(if_id, None)
