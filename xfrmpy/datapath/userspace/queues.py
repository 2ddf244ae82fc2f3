"""The queues of the device of all tunnels: one for each tunnel, so that none fills another's.

What the host gives a device waits in the kernel, 500 packets in each of its queues, and what finds
no room is lost, whose ever it is. So each reqid is given a queue, up to `MAX_QUEUES`, and the
kernel a program that finds it by the address a packet is for (TUNSETSTEERINGEBPF, Linux 4.16). The
worker reads them in turns (`turns`). A host with one tunnel has one queue and no program. Where the
kernel lets us have no program, which takes CAP_BPF, all tunnels share one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace.ebpf import PrefixTable, instruction, load_filter
from xfrmpy.datapath.userspace.tun import Tun
from xfrmpy.ipsec.spd import Place, PolicyDirection, SpdEntry

MAX_QUEUES = 16
"""Each is a descriptor, and room for 500 packets. Of more tunnels some share one."""

MAX_PREFIXES = 1 << 17
"""What is beyond goes by the first queue."""

_ADDRESS = 16  # octets; IPv4's are those that IPv6 has for them (RFC 4291 section 2.5.5.2)
_MAPPED = bytes(10) + b"\xff\xff"
_LICENCE = b"Apache-2.0"

_Prefix = tuple[bytes, int]


class Queues:
    """See the module. `begin` and `end` are called with each queue but the first, when it is to be
    read, and before it is closed."""

    def __init__(self, begin: Callable[[Tun], None], end: Callable[[Tun], None]) -> None:
        self._begin = begin
        self._end = end
        self._first: Tun | None = None
        self._others: list[Tun] = []
        self._table: PrefixTable | None = None
        self._is_refused = False
        self._led: dict[_Prefix, dict[Place, int]] = {}  # by whose policies, and to which reqid
        self._policies: Counter[int] = Counter()  # of each reqid
        self._chosen: dict[int, int] = {}  # the queue of each reqid

    def open(self, first: Tun) -> None:
        """Go on with a device, the first queue of which is this one, from the beginning."""
        self.close()
        self._first = first
        for prefix in self._led:
            self._settle(prefix)

    def close(self) -> None:
        """Close all but the first; what is led where is remembered."""
        for each in self._others:
            self._end(each)
            each.close()
        if self._table is not None:
            self._table.close()
        self._others, self._first, self._table = [], None, None
        self._is_refused = False
        self._chosen.clear()

    def lead(self, entry: SpdEntry) -> None:
        """What the policy protects is to come by its reqid's queue."""
        self.forget(entry)
        is_ours = entry.direction is PolicyDirection.OUT and not entry.if_id
        if not is_ours or entry.template is None:
            return
        prefix, reqid = _prefix_of(entry.selector.destination), entry.template.reqid
        self._led.setdefault(prefix, {})[entry.place] = reqid
        self._policies[reqid] += 1
        self._settle(prefix)

    def forget(self, entry: SpdEntry) -> None:
        """The policy that has this one's place is no more, if there is one."""
        prefix = _prefix_of(entry.selector.destination)
        reqid = self._led.get(prefix, {}).pop(entry.place, None)
        if reqid is None:
            return
        self._policies[reqid] -= 1
        if not self._policies[reqid]:
            del self._policies[reqid]
            self._chosen.pop(reqid, None)
        self._settle(prefix)

    def clear(self) -> None:
        """There are no policies any more."""
        for prefix in (*self._led,):
            self._led[prefix].clear()
            self._settle(prefix)
        self._policies.clear()
        self._chosen.clear()

    def _settle(self, prefix: _Prefix) -> None:
        """Have packets for a prefix come by the queue of the policy that was last put there."""
        reqids = [*self._led[prefix].values()]
        if not reqids:
            del self._led[prefix]
        if self._first is None:
            return
        queue = self._queue_of(reqids[-1]) if reqids else None
        if self._table is not None:
            with contextlib.suppress(OSError):  # One too many, or it never was there.
                if queue is None:
                    self._table.remove(*prefix)
                else:
                    self._table.put(*prefix, queue)

    def _queue_of(self, reqid: int) -> int:
        """That with the fewest others, and one more if all have some."""
        chosen = self._chosen.get(reqid)
        if chosen is None:
            loads = Counter(dict.fromkeys(range(1 + len(self._others)), 0))
            loads.update(self._chosen.values())
            chosen, others = min(loads.items(), key=lambda each: (each[1], each[0]))
            if others and self._open_another():
                chosen = len(self._others)
            self._chosen[reqid] = chosen
        return chosen

    def _open_another(self) -> bool:
        if self._is_refused or len(self._others) + 1 >= MAX_QUEUES:
            return False
        try:
            if self._table is None:
                self._steer()
            assert self._first is not None, "without a device there are no queues"
            another = self._first.another_queue()
        except (OSError, DatapathError):
            self._is_refused = True
            return False
        self._others.append(another)
        self._begin(another)
        return True

    def _steer(self) -> None:
        """Raises `OSError`."""
        assert self._first is not None, "without a device there are no queues"
        table = PrefixTable(_ADDRESS, MAX_PREFIXES)
        try:
            program = load_filter(_program(table.fileno()), _LICENCE)
            try:
                self._first.steer(program)
            finally:
                os.close(program)
        except OSError:
            table.close()
            raise
        self._table = table
        for prefix, reqids in self._led.items():  # Those that have shared the first until now.
            queue = self._chosen.get([*reqids.values()][-1])
            if queue is not None:
                table.put(*prefix, queue)


def _prefix_of(network: IPv4Network | IPv6Network) -> _Prefix:
    mapped = _MAPPED if network.version == 4 else b""
    return mapped + network.network_address.packed, 8 * len(mapped) + network.prefixlen


_CONTEXT, _FRAME, _RESULT = 6, 10, 0
_KEY = -20  # in the frame: how many bits of the address, and the address
_MOVE, _MOVE_OPERAND, _ADD, _SHIFT_RIGHT = 0xBF, 0xB7, 0x07, 0x77
_LOAD_OCTET, _LOAD_WORD, _LOAD = 0x30, 0x20, 0x61  # of the packet; of memory
_STORE_OPERAND, _STORE_OPERAND_8, _STORE = 0x62, 0x7A, 0x63
_TO_NETWORK_ORDER, _LOAD_TABLE, _CALL, _EXIT = 0xDC, 0x18, 0x85, 0x95
_JUMP, _IF_EQUAL, _IF_NOT_EQUAL = 0x05, 0x15, 0x55
_LOOK_UP = 1  # BPF_FUNC_map_lookup_elem


def _program(table: int) -> bytes:
    """Which number the table, of this descriptor, has for a packet's destination; else 0, as of
    what is too short for one."""
    of_ipv4 = [
        instruction(_STORE_OPERAND_8, _FRAME, jump=_KEY + 4),
        instruction(_STORE_OPERAND, _FRAME, jump=_KEY + 12, operand=_signed(_MAPPED[8:])),
        *_copied(16, _KEY + 16),
    ]
    of_ipv6 = [each for at in range(0, 16, 4) for each in _copied(24 + at, _KEY + 4 + at)]
    look_up = [
        instruction(_LOAD_TABLE, 1, 1, operand=table),
        instruction(0),  # the second half of that number
        instruction(_MOVE, 2, _FRAME),
        instruction(_ADD, 2, operand=_KEY),
        instruction(_CALL, operand=_LOOK_UP),
        instruction(_IF_NOT_EQUAL, _RESULT, jump=1),
        instruction(_EXIT),
        instruction(_LOAD, _RESULT, _RESULT),
        instruction(_EXIT),
    ]
    begin = [
        instruction(_MOVE, _CONTEXT, 1),
        instruction(_STORE_OPERAND, _FRAME, jump=_KEY, operand=8 * _ADDRESS),
        instruction(_LOAD_OCTET),
        instruction(_SHIFT_RIGHT, _RESULT, operand=4),
        instruction(_IF_EQUAL, _RESULT, jump=len(of_ipv4) + 1, operand=6),
    ]
    over_the_other = instruction(_JUMP, jump=len(of_ipv6))
    return b"".join([*begin, *of_ipv4, over_the_other, *of_ipv6, *look_up])


def _copied(at: int, to: int) -> list[bytes]:
    """A word of the packet, put into the frame."""
    return [
        instruction(_LOAD_WORD, operand=at),
        instruction(_TO_NETWORK_ORDER, _RESULT, operand=32),
        instruction(_STORE, _FRAME, _RESULT, jump=to),
    ]


def _signed(word: bytes) -> int:
    return int.from_bytes(word, sys.byteorder, signed=True)
