"""Keeping in force what should be: what others change is found, put right, and told.

The kernel tells of every change of somebody else's. A tenth of a second later, when the rest of a
burst has come too, what is in force is compared with what should be. What costs long is done more
rarely, and what somebody takes away again and again is not put back at once for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from xfrmpy.daemon.core import Core
from xfrmpy.daemon.datapaths import Datapaths
from xfrmpy.daemon.events import Occurrence
from xfrmpy.daemon.occurrences import drift_healed, drift_left
from xfrmpy.daemon.restraint import FREELY, WITHIN_SECONDS, Restraint
from xfrmpy.datapath.interface import Datapath, DatapathError, NotAdded, Realm
from xfrmpy.ipsec.drift import Difference, Ends, Finding
from xfrmpy.ipsec.sad import SadEntry, SaId
from xfrmpy.ipsec.spd import SpdEntry

log = logging.getLogger(__name__)

BURST_SECONDS = 0.1
"""From the first change that is told to the look at what has become of it."""

LEISURE = 10
"""After a look, so many times as long as it took there is no other."""

REMEDIES: dict[Finding, str] = {
    Finding.SA_MISSING: "its Child SA is rekeyed",
    Finding.SA_CHANGED: "changed back",
    Finding.SA_SURPLUS: "removed",
    Finding.POLICY_MISSING: "put back",
    Finding.POLICY_CHANGED: "changed back",
    Finding.POLICY_SURPLUS: "removed",
    Finding.DEFAULT_CHANGED: "changed back",
    Finding.DEVICE_MISSING: "brought up again",
    Finding.DEVICE_CHANGED: "brought up again",
    Finding.QUEUES_CHANGED: "made anew",
    Finding.GUARD_CHANGED: "made anew",
    Finding.INTERFACE_MISSING: "put back",
    Finding.INTERFACE_CHANGED: "changed back",
    Finding.RULE_MISSING: "put back",
    Finding.SHUNT_RULES_CHANGED: "made anew",
    Finding.ROUTE_MISSING: "put back",
    Finding.ROUTE_CHANGED: "changed back",
    Finding.ROUTE_SURPLUS: "removed",
    Finding.PATH_CHANGED: "followed, and the peer is asked whether it is reached",
}
"""What is done about each; about what is not here, nothing."""

DISPENSABLE: dict[Finding, str] = {Finding.QUEUES_MISSING: "made"}
"""What tunnels can do without, and some kernels have not: nothing was promised. It is asked for
again every `RETRY_SECONDS`."""

RETRY_SECONDS = 60.0

SA_PUT_BACK = "put back, and it goes on where it was"
"""Where the datapath knows how far it had got."""

NOT_OURS = "it is not ours to touch"


@dataclass(slots=True)
class _Watched:
    """What was heard of a datapath and not looked at yet, and when there may be another look."""

    realm: Realm = Realm.NOTHING
    not_before: float = 0.0
    look: asyncio.TimerHandle | None = None


class Reconciler:
    """See the module. `follow` is called with the ends of a path that has changed."""

    def __init__(
        self,
        core: Core,
        datapaths: Datapaths,
        hear: Callable[[Occurrence], None],
        follow: Callable[[Ends], None],
    ) -> None:
        self._core = core
        self._datapaths = datapaths
        self._hear = hear
        self._follow = follow
        self._loop = asyncio.get_running_loop()
        self._watched: dict[Datapath, _Watched] = {}
        self._restraint = Restraint()
        self._left: dict[tuple[Datapath, Realm], set[Difference]] = {}
        self._refused: dict[Hashable, tuple[str, float]] = {}  # why, and when to ask again

    def watch(self) -> None:
        """Listen to every datapath that is open by now."""
        for datapath in self._datapaths.opened():
            if datapath not in self._watched:
                self._watched[datapath] = _Watched()
                self._loop.add_reader(datapath.changes_fileno(), self._wake, datapath)

    def stop(self) -> None:
        """Whatever happens from now on is left as it is."""
        for datapath, watched in self._watched.items():
            self._loop.remove_reader(datapath.changes_fileno())
            if watched.look is not None:
                watched.look.cancel()
        self._watched.clear()

    def find(self) -> tuple[Difference, ...]:
        """How what is in force differs from what should be, now; nothing is done about it.

        Raises `DatapathError`.
        """
        found: list[Difference] = []
        for datapath, watched in self._watched.items():
            watched.realm |= datapath.read_changes()
            if watched.realm:
                # What has been read is not told again.
                self._expect_look(datapath, self._loop.time() + BURST_SECONDS)
            found += [*self._core.compare(datapath), *datapath.find_amiss()]
        return tuple(found)

    def heal(self) -> tuple[Difference, ...]:
        """Look at everything, and put right what can be, however often; gives what was found.

        Raises `DatapathError`.
        """
        self._restraint = Restraint()
        self._refused.clear()
        found: list[Difference] = []
        for datapath, watched in tuple(self._watched.items()):
            datapath.read_changes()
            watched.realm = Realm.NOTHING
            found += self._heal(datapath, Realm.EVERYTHING)
        return tuple(found)

    # What is told by the kernel.

    def _wake(self, datapath: Datapath) -> None:
        self._loop.remove_reader(datapath.changes_fileno())
        not_before = self._watched[datapath].not_before
        self._expect_look(datapath, max(self._loop.time() + BURST_SECONDS, not_before))

    def _expect_look(self, datapath: Datapath, at: float) -> None:
        """At that time, unless one comes earlier."""
        watched = self._watched[datapath]
        if watched.look is not None:
            if watched.look.when() <= at:
                return
            watched.look.cancel()
        watched.look = self._loop.call_at(at, self._look, datapath)

    def _look(self, datapath: Datapath) -> None:
        watched = self._watched[datapath]
        begun_at = self._loop.time()
        watched.look = None
        try:
            watched.realm |= datapath.read_changes()
            realm, watched.realm = watched.realm, Realm.NOTHING
            self._heal(datapath, realm)
        except DatapathError as error:
            log.error("the %s datapath cannot be looked at: %s", datapath.name, error)
        now = self._loop.time()
        watched.not_before = now + LEISURE * (now - begun_at)
        self._loop.add_reader(datapath.changes_fileno(), self._wake, datapath)

    # Finding and healing.

    def _heal(self, datapath: Datapath, realm: Realm) -> list[Difference]:
        """Entries first: where a policy is missing, packets may leave in clear."""
        found: list[Difference] = []
        if Realm.ENTRIES in realm:
            found += self._put_right(datapath, Realm.ENTRIES, self._core.compare(datapath))
        if Realm.WAYS in realm:
            found += self._put_right(datapath, Realm.WAYS, datapath.find_amiss())
        return found

    def _put_right(
        self, datapath: Datapath, realm: Realm, found: tuple[Difference, ...]
    ) -> tuple[Difference, ...]:
        outcome: dict[Difference, str | None] = {}
        for difference in found:
            outcome[difference] = self._reason_to_leave(datapath, difference)
        healed = [d for d in found if outcome[d] is None]
        put_back = _put_back(datapath, healed)
        self._core.recover([d for d in healed if d.finding in _OF_CORE and d not in put_back])
        for difference in healed:
            if difference.finding not in _OF_CORE and difference not in put_back:
                outcome[difference] = self._mend(datapath, difference)
        for thing in {_thing(d) for d, reason in outcome.items() if reason is None}:
            self._restraint.note(thing, self._loop.time())
        self._tell(outcome, put_back, self._left.get((datapath, realm), set()))
        self._left[datapath, realm] = {d for d, reason in outcome.items() if reason is not None}
        return found

    def _reason_to_leave(self, datapath: Datapath, difference: Difference) -> str | None:
        if difference.finding not in REMEDIES | DISPENSABLE:
            return NOT_OURS
        why, ask_at = self._refused.get(_thing(difference), ("", 0.0))
        if self._loop.time() < ask_at:
            self._return_to(datapath, Realm.WAYS, ask_at - self._loop.time())
            return why
        seconds = self._restraint.wait_seconds(_thing(difference), self._loop.time())
        if not seconds:
            return None
        self._return_to(datapath, Realm.EVERYTHING, seconds)
        return f"put right {FREELY} times within {WITHIN_SECONDS:g} seconds, it has to wait"

    def _return_to(self, datapath: Datapath, realm: Realm, seconds: float) -> None:
        """Look again so much later: nobody else will remind of it."""
        self._watched[datapath].realm |= realm
        self._expect_look(datapath, self._loop.time() + seconds)

    def _mend(self, datapath: Datapath, difference: Difference) -> str | None:
        """None if it is put right, else why it is not."""
        try:
            _do(datapath, difference)
            reason = None
        except DatapathError as error:
            reason = str(error)
            if difference.finding in DISPENSABLE:
                ask_at = self._loop.time() + RETRY_SECONDS
                self._refused[_thing(difference)] = reason, ask_at
                self._return_to(datapath, Realm.WAYS, RETRY_SECONDS)
        if difference.finding is Finding.PATH_CHANGED:
            assert isinstance(difference.subject, tuple)
            self._follow(difference.subject)
        return reason

    def _tell(
        self,
        outcome: dict[Difference, str | None],
        put_back: set[Difference],
        known: set[Difference],
    ) -> None:
        """Of many of one kind in one sentence; of what is left, only when it is news."""
        healed: defaultdict[tuple[str, Finding, str], list[Difference]] = defaultdict(list)
        for difference, reason in outcome.items():
            if reason is None:
                is_back = difference.finding is Finding.SA_MISSING and difference in put_back
                remedy = SA_PUT_BACK if is_back else (REMEDIES | DISPENSABLE)[difference.finding]
                healed[difference.tunnel, difference.finding, remedy].append(difference)
            elif difference not in known:
                self._hear(drift_left(difference, reason))
        for (_, _, remedy), differences in healed.items():
            self._hear(drift_healed(differences, remedy))


def _put_back(datapath: Datapath, amiss: Sequence[Difference]) -> set[Difference]:
    """The entries of them that can be added again, in one go, for a flush takes all; not those
    behind a refused one. SAs first: a packet that meets its policy then asks for no other."""
    gone = [*_resumable(datapath, amiss), *_policies(amiss)]
    try:
        datapath.add([entry for _, entry in gone])
    except NotAdded as error:
        gone = gone[: error.done]
    return {difference for difference, _ in gone}


def _resumable(
    datapath: Datapath, amiss: Sequence[Difference]
) -> Iterator[tuple[Difference, SadEntry | SpdEntry]]:
    lost = [
        (difference, difference.subject)
        for difference in amiss
        if difference.finding is Finding.SA_MISSING and isinstance(difference.subject, SadEntry)
    ]
    answers = datapath.are_resumable([entry for _, entry in lost])
    return (each for each, is_resumable in zip(lost, answers, strict=True) if is_resumable)


def _policies(amiss: Sequence[Difference]) -> Iterator[tuple[Difference, SadEntry | SpdEntry]]:
    for difference in amiss:
        if difference.finding in _PUT_BACK and isinstance(difference.subject, SpdEntry):
            yield difference, difference.subject


_PUT_BACK = (Finding.POLICY_MISSING, Finding.POLICY_CHANGED)

_OF_CORE = (Finding.SA_MISSING, Finding.SA_CHANGED)
"""What only the IKE core can put right."""


def _do(datapath: Datapath, difference: Difference) -> None:
    subject = difference.subject
    match difference.finding:
        case Finding.SA_SURPLUS:
            assert isinstance(subject, SaId)
            datapath.remove_sa(subject)
        case Finding.POLICY_MISSING | Finding.POLICY_CHANGED:  # One that was refused before.
            assert isinstance(subject, SpdEntry)
            datapath.add_policy(subject)
        case Finding.POLICY_SURPLUS:
            assert isinstance(subject, SpdEntry)
            datapath.remove_policy(subject)
        case _:
            datapath.mend(difference)


def _thing(difference: Difference) -> Hashable:
    """What is the same when it is found again: an SA that is replaced has another SPI then."""
    owner = (difference.tunnel, difference.child)
    return (difference.finding, *(owner if difference.tunnel else (difference.what,)))
