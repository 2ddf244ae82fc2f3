"""How often the same thing is put right: somebody who fights us must not keep the daemon busy."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable

FREELY = 5
"""So many times within `WITHIN_SECONDS` a thing is put right as soon as it is found."""

WITHIN_SECONDS = 60.0

RESPITE_SECONDS = 10.0
"""Beyond it, how long it is left as it is: what should be protected may have to wait so long."""


class Restraint:
    """What was put right, and when, of each thing."""

    def __init__(self) -> None:
        self._moments: defaultdict[Hashable, deque[float]] = defaultdict(
            lambda: deque(maxlen=FREELY)
        )

    def wait_seconds(self, thing: Hashable, now: float) -> float:
        """How long a thing is not to be touched, from now on."""
        moments = self._moments.get(thing)
        if moments is None or len(moments) < FREELY or now - moments[0] >= WITHIN_SECONDS:
            return 0.0
        return max(0.0, moments[-1] + RESPITE_SECONDS - now)

    def note(self, thing: Hashable, now: float) -> None:
        """It is put right now."""
        for other, moments in tuple(self._moments.items()):
            if now - moments[-1] >= WITHIN_SECONDS:
                del self._moments[other]
        self._moments[thing].append(now)
