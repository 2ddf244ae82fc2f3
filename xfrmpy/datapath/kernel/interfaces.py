"""The kernel's xfrm interfaces as the devices of route-based tunnels: they know their number.

Ours are told by their group, with which they are made, so that a killed daemon leaves none that the
next one would take for somebody else's.
"""

from __future__ import annotations

import errno
from collections.abc import Collection

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.netdevices import OUR_GROUP, Device, Devices
from xfrmpy.datapath.tunnel_interfaces import taken


class XfrmMaker:
    """See the module, and `Maker`."""

    def refresh(self) -> None:
        """The kernel is asked each time."""

    def obtain(self, home: Devices, name: str, if_id: int) -> Device:
        try:
            home.make_xfrm(name, if_id, OUR_GROUP)
        except DatapathError as error:
            if error.errno == errno.EOPNOTSUPP:
                reason = "this kernel has no xfrm interfaces (there is no xfrm_interface module)"
                raise DatapathError(reason, error.errno) from error
            if error.errno != errno.EEXIST:
                raise
        there = home.find(name)
        if there is not None and there.if_id == if_id:
            return there
        same = next((device for device in home.all() if device.if_id == if_id), None)
        if same is not None:
            return same
        if there is not None:
            raise taken(there)
        reason = f"an interface in another namespace has the if_id 0x{if_id:x}"
        raise DatapathError(f"cannot make the interface {name}: {reason}")

    def is_of(self, device: Device, if_id: int) -> bool:
        return device.if_id == if_id

    def is_ours(self, device: Device) -> bool:
        return device.group == OUR_GROUP

    def drop(self, place: Devices, device: Device, if_id: int) -> None:
        if device.if_id == if_id and self.is_ours(device):
            place.remove(device)

    def drop_all_but(self, home: Devices, if_ids: Collection[int]) -> None:
        for device in home.all():
            if device.if_id and device.if_id not in if_ids and self.is_ours(device):
                home.remove(device)
