"""Room for each tunnel in the kernel, so that none fills another's.

What the host gives a device waits in the kernel, 500 packets in each of its queues, and what finds
no room is lost, whose ever it is. So if several tunnels share `DEVICE`, each reqid is given another
device behind it, up to `MAX_QUEUES`. Routes and firewalls know nothing of these: on the way out of
`DEVICE` a rule of nf_tables passes on what is for the prefixes of the reqid's policies (a chain at
the egress of a device, Linux 5.16), the longest prefix first. It is read by the workers that the
reqid's packets leave by, so nothing need be handed over. With one tunnel there is none of this;
where the kernel refuses the rules or a device, all tunnels share `DEVICE`, that is found to be
amiss, and `mend` tries again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from xfrmpy.datapath import nftables
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.links import Links
from xfrmpy.datapath.nftables import Field, NfTables, Request
from xfrmpy.datapath.userspace.tun import DEVICE, queue_name
from xfrmpy.datapath.userspace.workers import Workers
from xfrmpy.datapath.watch import Source
from xfrmpy.ipsec.addresses import IpNetwork
from xfrmpy.ipsec.drift import Difference, Finding
from xfrmpy.ipsec.sad import Direction, SadEntry
from xfrmpy.ipsec.spd import Place, SpdEntry

MAX_QUEUES = 32
"""Each is a device. Tunnels beyond share `DEVICE` with one another."""

TABLE = nftables.Table("xfrmpy-queues", nftables.NETDEV)
CHAIN = "out"

_PRIORITY = 0
_DESTINATIONS = {4: (0x0800, 16, 4, 7), 6: (0x86DD, 24, 16, 8)}
"""By IP version: the ethertype, where the destination is and how long, nft's datatype of it."""


class Queues:
    """See the module; of the network namespace of the thread that makes this.

    Nothing here but `mend` fails: what cannot be had is done without. `lanes` of a reqid are the
    workers by which its packets leave.
    """

    def __init__(self, workers: Workers, links: Links) -> None:
        self._workers = workers
        self._links = links
        self._nf_tables = NfTables()
        self._prefixes = _Prefixes()
        self._lanes: dict[int, frozenset[int]] = {}  # of those that have a device
        self._enforced = _Ways()
        self._is_known = False
        self._refusal: DatapathError | None = None
        self._news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def take_over(self, policies: Iterable[SpdEntry]) -> None:
        """Go on with the devices of an earlier daemon, as far as these policies want them."""
        for policy in policies:
            self._prefixes.enter(policy)
        with self._forgiven():
            self._lanes = self._there()
            self._settle({*self._lanes, *self._prefixes})
            self._enforce()

    def revive(self) -> None:
        """A worker has ended, and what it had is gone."""
        self._is_known = False
        with self._forgiven():
            self._reopen()

    def follow(self, entries: Iterable[SadEntry | SpdEntry]) -> None:
        """These are in force now."""
        concerned: dict[int, None] = {}
        for entry in entries:
            if isinstance(entry, SpdEntry):
                concerned |= dict.fromkeys(self._prefixes.enter(entry))
            elif entry.direction is Direction.OUT:
                concerned[entry.reqid] = None
        with self._forgiven():
            self._settle(concerned)

    def forget(self, entry: SpdEntry) -> None:
        """It is in force no more."""
        reqid = self._prefixes.strike(entry.place)
        if reqid is not None:
            with self._forgiven():
                self._settle([reqid])

    def clear(self) -> None:
        """Nothing is in force."""
        self._prefixes.clear()
        self._refusal = None
        with self._forgiven():
            self._remove_all()

    def close(self) -> None:
        """What is there stays."""
        self._nf_tables.close()
        os.close(self._news)

    # What others do.

    def watch(self) -> tuple[Source, int]:
        """See `NfTables.watch`."""
        return self._nf_tables.watch(TABLE, self._doubt)

    def _doubt(self) -> None:
        self._is_known = False

    def fileno(self) -> int:
        """A descriptor that is readable when `read_news` has something to say."""
        return self._news

    def read_news(self) -> bool:
        """Whether something was refused since the last time; never blocks."""
        try:
            return bool(os.eventfd_read(self._news))
        except BlockingIOError:
            return False

    def find_amiss(self) -> Iterator[Difference]:
        if self._refusal is not None and len(self._prefixes) > 1:
            what = f"a queue for each tunnel behind {DEVICE}"
            yield Difference(finding=Finding.QUEUES_MISSING, what=what)
        elif self._lanes and not (self._is_known and self._ways() == self._enforced):
            yield Difference(finding=Finding.QUEUES_CHANGED, what=f"the queues of {DEVICE}")

    def mend(self) -> None:
        """Whatever is there, make it anew; what was refused is asked for again. Raises
        `DatapathError` if something is."""
        refusal, self._is_known, self._refusal = self._refusal, False, None
        try:
            self._reopen()
            self._settle(self._prefixes)
        except DatapathError as error:
            self._give_up(error, is_news=refusal is None)
            raise

    # What is there.

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        """If something cannot be had, there is none of it until it is asked for again."""
        try:
            yield
        except DatapathError as error:
            self._give_up(error, is_news=True)

    def _give_up(self, error: DatapathError, *, is_news: bool) -> None:
        self._refusal = error
        if is_news:
            os.eventfd_write(self._news, 1)
        with contextlib.suppress(DatapathError):
            self._remove_all()

    def _settle(self, reqids: Iterable[int]) -> None:
        """Have devices for those that want one, as far as there are some to be had."""
        if self._refusal is not None:
            return
        if not self._lanes and len(self._prefixes) > 1:
            reqids = self._prefixes
        are_touched = False
        for reqid in (*reqids,):
            if reqid not in self._prefixes:
                are_touched |= self._close(reqid)
            elif reqid in self._lanes or self._is_room:
                self._follow_lanes(reqid)
                are_touched |= reqid in self._lanes
        if are_touched:
            self._enforce()

    @property
    def _is_room(self) -> bool:
        """For one more, if any are needed."""
        return len(self._prefixes) > 1 and len(self._lanes) < MAX_QUEUES

    def _there(self) -> dict[int, frozenset[int]]:
        """Which workers have each."""
        there: dict[int, frozenset[int]] = {}
        for lane, told in enumerate(self._workers.ask_each("queues")):
            assert isinstance(told, list)
            for reqid in told:
                assert isinstance(reqid, int)
                there[reqid] = there.get(reqid, frozenset()) | {lane}
        return there

    def _follow_lanes(self, reqid: int) -> None:
        """An SA of a reqid may be in another worker than the one before."""
        lanes, there = self._workers.lanes_of(reqid), self._lanes.get(reqid, frozenset())
        if lanes and lanes != there:  # Without an SA nobody knows which worker it is going to be.
            self._lanes[reqid] = lanes
            self._open(reqid, there)

    def _open(self, reqid: int, there: frozenset[int]) -> None:
        """In its workers, and no others of those that are `there`."""
        for lane in self._lanes[reqid]:
            self._workers.ask_at(lane, "open_queue", reqid)
        for lane in there - self._lanes[reqid]:
            self._workers.ask_at(lane, "close_queue", reqid)

    def _reopen(self) -> None:
        """All that should be there, and the rules."""
        there = self._there()
        for reqid in self._lanes:
            self._open(reqid, there.get(reqid, frozenset()))
        self._enforce()

    def _close(self, reqid: int) -> bool:
        """Whether there was one."""
        lanes = self._lanes.pop(reqid, frozenset())
        for lane in lanes:
            self._workers.ask_at(lane, "close_queue", reqid)
        return bool(lanes)

    def _remove_all(self) -> None:
        """The rules first, for what they pass on is lost without the devices."""
        lanes, self._lanes = self._lanes, {}
        try:
            self._enforce()
        finally:
            self._lanes = lanes
            for reqid in (*lanes,):
                with contextlib.suppress(DatapathError):
                    self._close(reqid)

    def _ways(self) -> _Ways:
        """What the rules are to say, by what there is."""
        if not self._lanes:
            return _Ways()
        devices: dict[IpNetwork, int] = {}
        with self._links.stand_still():
            for reqid in self._lanes:
                index = self._index(queue_name(reqid))
                devices |= dict.fromkeys(self._prefixes.of(reqid), index)
            return _Ways(self._index(DEVICE), devices)

    def _index(self, name: str) -> int:
        """Of a device; 0 if it is not there, or carries nothing."""
        try:
            link = self._links.named(name)
        except DatapathError as error:
            if error.errno != errno.ENODEV:
                raise
            return 0
        return link.index if link.is_up else 0

    def _enforce(self) -> None:
        ways = self._ways()
        if not (self._is_known and ways == self._enforced):
            self._nf_tables.send(ways.requests())
            self._enforced, self._is_known = ways, True


class _Prefixes:
    """Those of each reqid, by the policies in force; to iterate gives the reqids."""

    def __init__(self) -> None:
        self._by_reqid: dict[int, dict[Place, IpNetwork]] = {}
        self._reqids: dict[Place, int] = {}

    def __len__(self) -> int:
        return len(self._by_reqid)

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_reqid)

    def __contains__(self, reqid: int) -> bool:
        return reqid in self._by_reqid

    def of(self, reqid: int) -> Iterable[IpNetwork]:
        return self._by_reqid[reqid].values()

    def enter(self, policy: SpdEntry) -> Iterable[int]:
        """Gives those whose prefixes are others by it."""
        concerned = [self.strike(policy.place)]
        if policy.is_led and policy.template is not None:
            reqid = self._reqids[policy.place] = policy.template.reqid
            self._by_reqid.setdefault(reqid, {})[policy.place] = policy.selector.destination
            concerned.append(reqid)
        return [reqid for reqid in concerned if reqid is not None]

    def strike(self, place: Place) -> int | None:
        """Whose prefix it was, if anyone's."""
        reqid = self._reqids.pop(place, None)
        if reqid is not None:
            del self._by_reqid[reqid][place]
            if not self._by_reqid[reqid]:
                del self._by_reqid[reqid]
        return reqid

    def clear(self) -> None:
        self._by_reqid.clear()
        self._reqids.clear()


def remove_rules() -> None:
    """What an earlier daemon has left. Raises `DatapathError`."""
    with contextlib.closing(NfTables()) as nf_tables:
        nf_tables.send(TABLE.delete())


@dataclass(frozen=True, slots=True)
class _Ways:
    """The numbers of `DEVICE`, and of the devices that packets for prefixes are passed on to."""

    device: int = 0
    devices: dict[IpNetwork, int] = field(default_factory=dict)

    def requests(self) -> list[Request]:
        """To have these and no others. By a device that is not there no packet would come."""
        requests = TABLE.delete()
        maps: dict[tuple[int, int], list[IpNetwork]] = {}
        for network, index in self.devices.items():
            if index:
                maps.setdefault((network.prefixlen, network.version), []).append(network)
        if not (self.device and maps):
            return requests
        requests += [TABLE.add(), TABLE.add_chain(CHAIN, nftables.EGRESS, _PRIORITY, DEVICE)]
        for networks in (maps[shape] for shape in sorted(maps, reverse=True)):
            requests += self._passing_on(networks)
        return requests

    def _passing_on(self, networks: Sequence[IpNetwork]) -> Iterator[Request]:
        """A rule and its map, for prefixes of one length and IP version."""
        version, length = networks[0].version, networks[0].prefixlen
        ethertype, offset, size, datatype = _DESTINATIONS[version]
        key = nftables.load(nftables.NETWORK_HEADER, offset, size)
        key += nftables.mask(networks[0].netmask.packed)
        name = f"ip{version}-to-{length}"
        yield TABLE.add_map(name, [Field(size, datatype, key)], to_devices=True)
        rule = nftables.is_of_ethertype(ethertype) + key + nftables.pass_on_by(name)
        yield TABLE.add_rule(CHAIN, rule)
        for network in networks:
            yield TABLE.add_device(name, network.network_address.packed, self.devices[network])
