"""Keeps the traffic of tunnels from going or coming in clear, whatever becomes of the tunnels.

A table of our own in nf_tables, which knows of no SA and of neither datapath: what is to be blocked
passes only into an SA of the kernel's or out of one, through the userspace datapath's device, or
through a route-based tunnel's. So it stands before there is a daemon, and when there is none any
more, and nothing has to be changed when a tunnel comes up or goes down. Each change of it comes
into force as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from xfrmpy.datapath import nftables
from xfrmpy.datapath.interface import Realm
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.datapath.nftables import NFTABLES, NfTables, Request
from xfrmpy.datapath.shapes import Shape, element_of, of_fragments, shape_of
from xfrmpy.datapath.watch import Source, Watch
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IKE_PORT
from xfrmpy.ipsec.selectors import Selector

TABLE = nftables.Table("xfrmpy-block")

_IN, _OUT = "in", "out"
_AFTER_NAT = 300  # nft's own priorities: the source's translation is at 100
_ESP, _AH = 50, 51

_Maps = dict[Shape, set[bytes]]


class Block:
    """The table of the network namespace of the thread that makes this. Raises `DatapathError`.

    `natt_port` is that on which we take IKE beside ESP in UDP.
    """

    def __init__(self, natt_port: int = IKE_NATT_PORT) -> None:
        self._ports = (IKE_PORT, natt_port)
        self._nf_tables = NfTables()

    def enforce(
        self,
        traffic: Iterable[Selector],
        devices: Iterable[str],
        *,
        passing: Iterable[Selector] = (),
        keep_others: bool = False,
    ) -> None:
        """Block what leaves like this and what comes back, and nothing else; none: no table.

        What is `passing` passes all the same, and into and out of `devices` everything: that of the
        userspace datapath, and those of route-based tunnels. With `keep_others` also what is
        blocked already.
        """
        maps = _maps(traffic)
        requests = [] if keep_others else TABLE.delete()
        if maps:
            requests += _requests(maps, _passing(passing), sorted(devices), self._ports)
        self._nf_tables.send(requests)

    def watch(self) -> Watch:
        """What tells of others that take something out of it."""
        groups = (nftables.CHANGES_GROUP,)
        source = Source(family=NFTABLES, groups=groups, concerns=_is_taken_away)
        return Watch([source], [self._nf_tables.port])

    def close(self) -> None:
        """What is blocked stays blocked."""
        self._nf_tables.close()


def _requests(
    maps: _Maps, passing: _Maps, devices: Sequence[str], ports: Sequence[int]
) -> list[Request]:
    requests = [
        TABLE.add(),
        TABLE.add_chain(_IN, nftables.PREROUTING, nftables.RAW_PRIORITY),
        TABLE.add_chain(_OUT, nftables.POSTROUTING, _AFTER_NAT),
    ]
    requests += [TABLE.add_map(shape.name, shape.fields()) for shape in (*passing, *maps)]
    # IKE and ESP in UDP, where the traffic of the gateways is blocked.
    calls = [nftables.to_udp_port(port) + nftables.is_to_us() for port in ports]
    answers = [nftables.from_udp_port(port) + nftables.is_from_us() for port in ports]
    let_in = [*map(nftables.from_device, devices), *calls, *_LET_IN]
    let_out = [*map(nftables.to_device, devices), *answers, *_LET_OUT]
    for chain, let in ((_IN, let_in), (_OUT, let_out)):
        accept = nftables.conclude(nftables.ACCEPT)
        requests += [TABLE.add_rule(chain, matches + accept) for matches in let]
    requests += [
        TABLE.add_rule(_OUT if shape.is_outbound else _IN, shape.rule())
        for shape in (*passing, *maps)
    ]
    requests += [
        TABLE.add_element(shape.name, value, verdict)
        for of_verdict, verdict in ((passing, nftables.ACCEPT), (maps, nftables.DROP))
        for shape, values in of_verdict.items()
        for value in values
    ]
    return requests


def _is_taken_away(message: Message | None) -> Realm:
    """What others add blocks no less."""
    is_loss = message is None or (TABLE.is_told_of(message) and nftables.is_deletion(message))
    return Realm.WAYS if is_loss else Realm.NOTHING


def _maps(traffic: Iterable[Selector]) -> _Maps:
    maps: _Maps = defaultdict(set)
    for selector in traffic:
        for each, is_outbound in ((selector, True), (selector.reversed(), False)):
            shape = shape_of(each, is_outbound=is_outbound)
            maps[shape].add(element_of(each))
            # RFC 4301 section 7: fragments are not to pass because they have no ports.
            if (later := of_fragments(each, shape)) is not None:
                maps[later[0]].add(element_of(later[1]))
    return maps


def _passing(traffic: Iterable[Selector]) -> _Maps:
    """Both ways. What of it is within our own side is judged by nobody else, either."""
    maps: _Maps = defaultdict(set)
    for selector in traffic:
        for each, is_outbound in ((selector, True), (selector.reversed(), False)):
            shape = replace(shape_of(each, _PASSING, is_outbound=is_outbound), own_side=None)
            maps[shape].add(element_of(each))
    return maps


_PASSING = 1
"""In the place of a priority: the maps of what passes have other names than those of the rest."""

_LET_IN = (
    nftables.was_protected(),
    nftables.from_device("lo"),
    nftables.neighbour_discovery(),
    nftables.later_udp_fragment(4) + nftables.is_to_us(),
    nftables.later_udp_fragment(6) + nftables.is_to_us(),
    nftables.has_protocol(_ESP) + nftables.is_to_us(),
    nftables.has_protocol(_AH) + nftables.is_to_us(),
)
_LET_OUT = (
    nftables.will_be_protected(),
    nftables.to_device("lo"),
    nftables.neighbour_discovery(),
    nftables.has_protocol(_ESP) + nftables.is_from_us(),
    nftables.has_protocol(_AH) + nftables.is_from_us(),
)
"""What passes whatever is blocked."""
