"""The sessions of users, as accounting servers are told of them: one for each IKE SA.

An IKE SA that is rekeyed is the same session; it is known by who the peer is and since when. What
has happened is seen by a look at the IKE SAs after whatever may have changed them. What the SAs of
a session carry is read when it is asked for, and a last time just before each of them is removed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from xfrmpy.daemon.aaa import Admitted
from xfrmpy.daemon.events import Report
from xfrmpy.daemon.totals import Totals
from xfrmpy.failures import Failure
from xfrmpy.ike.outputs import (
    ChildSaEstablished,
    ChildSaRekeyed,
    IkeSaEstablished,
    IkeSaRekeyed,
    PeerMoved,
    TunnelClosed,
)
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.views import IkeSaView
from xfrmpy.ipsec.sad import Direction, SaId, Usage
from xfrmpy.policy.model import RadiusGroup
from xfrmpy.radius.accounting import (
    Cause,
    Session,
    Traffic,
    interim_record,
    start_record,
    stop_record,
)
from xfrmpy.radius.attributes import Attribute

MAX_ADMITTED = 1000
"""Users who were let in by a server and whose IKE SA is not there yet."""

MIN_INTERIM_SECONDS = 60.0
"""RFC 2869 section 5.16: "MUST NOT be smaller than 60"."""

_Key: TypeAlias = tuple[str, str, float]
"""A tunnel, who the peer is, and since when it is up."""

_CAUSES = {
    "XF2001": Cause.LOST_SERVICE,
    "XF2011": Cause.USER_REQUEST,
    "XF2014": Cause.SESSION_TIMEOUT,
    "XF2017": Cause.IDLE_TIMEOUT,
    "XF2026": Cause.LOST_SERVICE,
}
"""Why a session ends, by the code of why its IKE SA does."""

_CHANGES = (
    *(IkeSaEstablished, IkeSaRekeyed, ChildSaEstablished, ChildSaRekeyed),
    *(PeerMoved, TunnelClosed),
)


@dataclass(slots=True, kw_only=True)
class _Open:
    """A session that has begun; `closed` is what its SAs had carried that are gone."""

    session: Session
    group: RadiusGroup
    interim_seconds: float
    closed: Traffic = field(default_factory=Traffic)
    sas: dict[SaId, Direction] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None


class Sessions:
    """See the module. `tell` hands a record to the servers of a group."""

    def __init__(
        self,
        ike_sas: Callable[[str], tuple[IkeSaView, ...]],
        totals: Totals,
        tell: Callable[[RadiusGroup, tuple[Attribute, ...]], None],
    ) -> None:
        self._ike_sas = ike_sas
        self._totals = totals
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._admitted: dict[bytes, Admitted] = {}
        self._open: dict[_Key, _Open] = {}
        self._of_sa: dict[SaId, _Open] = {}
        self._causes: dict[str, Cause] = {}
        totals.on_removal = self._put_away

    def admit(self, spi: bytes, admitted: Admitted) -> None:
        """A server has let a user in, whose IKE SA, if it comes to be, has this SPI of ours."""
        if not admitted.group.accounting:
            return
        if len(self._admitted) >= MAX_ADMITTED:
            del self._admitted[next(iter(self._admitted))]
        self._admitted[spi] = admitted

    def hear(self, report: Report) -> None:
        """Look at a tunnel's IKE SAs when all is done that belongs to this."""
        if isinstance(report, _CHANGES) and (self._admitted or self._open):
            if isinstance(report, TunnelClosed):
                self._causes[report.tunnel] = _cause(report.failure)
            self._loop.call_soon(self.look, report.tunnel)

    def look(self, tunnel: str) -> None:
        """Find which sessions of a tunnel have begun, which SAs they have, and which are over."""
        there: set[_Key] = set()
        for sa in self._ike_sas(tunnel):
            key = (tunnel, str(sa.remote_id), sa.up_since)
            if sa.state in _LIVE:
                there.add(key)
                self._follow(key, sa)
        for key in [key for key in self._open if key[0] == tunnel and key not in there]:
            self._end(key, self._causes.get(tunnel, Cause.NAS_ERROR))
        self._causes.pop(tunnel, None)

    def stop(self) -> None:
        for opened in self._open.values():
            if opened.timer is not None:
                opened.timer.cancel()

    def _follow(self, key: _Key, sa: IkeSaView) -> None:
        if sa.state is IkeSaState.ESTABLISHED:
            admitted = self._admitted.pop(sa.spi_r, None)
            if admitted is not None and key not in self._open:
                self._begin(key, admitted)
        opened = self._open.get(key)
        for entry in (e for child in sa.children for e in child.entries) if opened else ():
            assert opened is not None
            opened.sas[entry.id] = entry.direction
            self._of_sa[entry.id] = opened

    def _begin(self, key: _Key, admitted: Admitted) -> None:
        grant = admitted.grant
        opened = _Open(
            session=Session(
                id=secrets.token_hex(8),
                user=grant.user,
                nas=admitted.nas.attributes,
                classes=grant.classes,
                address=grant.address,
                address6=grant.address6,
            ),
            group=admitted.group,
            interim_seconds=admitted.group.interim_seconds or float(grant.interim_seconds or 0),
        )
        self._open[key] = opened
        self._tell(opened.group, start_record(opened.session, int(time.time())))
        self._arm(key, opened)

    def _arm(self, key: _Key, opened: _Open) -> None:
        if opened.interim_seconds:
            wait = max(opened.interim_seconds, MIN_INTERIM_SECONDS)
            opened.timer = self._loop.call_later(wait, self._tell_interim, key)

    def _tell_interim(self, key: _Key) -> None:
        opened = self._open[key]
        record = interim_record(
            opened.session, int(time.time()), self._seconds(key), self._traffic(opened)
        )
        self._tell(opened.group, record)
        self._arm(key, opened)

    def _end(self, key: _Key, cause: Cause) -> None:
        opened = self._open.pop(key)
        if opened.timer is not None:
            opened.timer.cancel()
        traffic = self._traffic(opened)
        for sa in opened.sas:
            del self._of_sa[sa]
        record = stop_record(opened.session, int(time.time()), self._seconds(key), traffic, cause)
        self._tell(opened.group, record)

    def _seconds(self, key: _Key) -> int:
        return int(self._loop.time() - key[2])

    def _traffic(self, opened: _Open) -> Traffic:
        total = opened.closed
        for sa, direction in opened.sas.items():
            total = _more(total, direction, self._totals.now_of(sa))
        return total

    def _put_away(self, sa: SaId, usage: Usage) -> None:
        opened = self._of_sa.pop(sa, None)
        if opened is not None:
            opened.closed = _more(opened.closed, opened.sas.pop(sa), usage)


_LIVE = (IkeSaState.ESTABLISHED, IkeSaState.REKEYED, IkeSaState.DELETING)


def _more(traffic: Traffic, direction: Direction, usage: Usage) -> Traffic:
    if direction is Direction.IN:
        return replace(
            traffic,
            octets_in=traffic.octets_in + usage.octets,
            packets_in=traffic.packets_in + usage.packets,
        )
    return replace(
        traffic,
        octets_out=traffic.octets_out + usage.octets,
        packets_out=traffic.packets_out + usage.packets,
    )


def _cause(failure: Failure | None) -> Cause:
    """Without a failure our operator has ended it."""
    return Cause.ADMIN_RESET if failure is None else _CAUSES.get(failure.code, Cause.NAS_ERROR)
