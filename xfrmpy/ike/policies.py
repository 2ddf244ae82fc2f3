"""Which SPD entries are in force for whom.

Policies belong to a Child SA lineage: while two IKE SAs of one tunnel overlap, both want the same
entries, and the one that goes must not take them from the one that stays. A selector has one owner
at a time, the newest; the entry of an older owner comes back when the newest goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from xfrmpy.ike.outputs import AddPolicy, RemovePolicy
from xfrmpy.ipsec.spd import Place, SpdEntry


class PolicyBook:
    """The claims on each place of the SPD, oldest first."""

    def __init__(self) -> None:
        self._claims: dict[Place, list[AddPolicy]] = {}
        self._places: dict[int, list[Place]] = {}
        self.count = 0

    def new_number(self) -> int:
        """The next of the numbers that tell in which order owners have come."""
        self.count += 1
        return self.count

    def of_owner(self, owner: int) -> Iterator[SpdEntry]:
        """What an owner wants, in force or not."""
        for place in self._places.get(owner, ()):
            yield from (claim.entry for claim in self._claims[place] if claim.owner == owner)

    def in_force(self) -> tuple[AddPolicy, ...]:
        """What holds at each place."""
        return tuple(claims[-1] for claims in self._claims.values())

    def claim(self, wanted: AddPolicy) -> AddPolicy | None:
        """Enter a claim; returns it if it changes what is in force."""
        place = wanted.entry.place
        claims = self._claims.setdefault(place, [])
        self._places.setdefault(wanted.owner, []).append(place)
        changes = not claims or claims[-1].entry != wanted.entry
        claims.append(wanted)
        return wanted if changes else None

    def stand(self, wanted: AddPolicy) -> AddPolicy | None:
        """Enter a claim beneath all others, or change it; returns it if that is in force."""
        place = wanted.entry.place
        claims = self._claims.setdefault(place, [])
        if any(claim.owner == wanted.owner for claim in claims):
            return self.renew(wanted)
        self._places.setdefault(wanted.owner, []).append(place)
        claims.insert(0, wanted)
        return wanted if len(claims) == 1 else None

    def renew(self, wanted: AddPolicy) -> AddPolicy | None:
        """Change the entry of a claim that its owner has; returns it if that is in force."""
        claims = self._claims.get(wanted.entry.place, [])
        in_force = claims[-1:]
        claims[:] = [wanted if claim.owner == wanted.owner else claim for claim in claims]
        is_wanted = claims[-1:] == [wanted] and in_force != [wanted]
        return wanted if is_wanted and in_force[0].entry != wanted.entry else None

    def release(self, owner: int, but: Collection[Place] = ()) -> list[AddPolicy | RemovePolicy]:
        """Strike every claim of an owner, but for those places; returns what changes by it."""
        changes: list[AddPolicy | RemovePolicy] = []
        places = self._places.pop(owner, [])
        kept = [place for place in places if place in but]
        if kept:
            self._places[owner] = kept
        for place in (place for place in places if place not in but):
            claims = self._claims[place]
            in_force = claims[-1]
            claims[:] = [claim for claim in claims if claim.owner != owner]
            if not claims:
                del self._claims[place]
                changes.append(
                    RemovePolicy(
                        owner=owner,
                        tunnel=in_force.tunnel,
                        child=in_force.child,
                        entry=in_force.entry,
                    )
                )
            elif claims[-1].entry != in_force.entry:
                changes.append(replace(claims[-1], is_in_place=True))
        return changes
