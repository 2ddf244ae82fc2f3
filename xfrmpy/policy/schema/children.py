"""`children`: what a Child SA has of its own."""

from __future__ import annotations

from xfrmpy.policy.schema.keys import Keys, NotYet, described
from xfrmpy.policy.schema.types import Lifetime, OuterMark, Priority, Resources, Selectors, SomeMark


class Child(Keys):
    """One Child SA."""

    local: Selectors | None = described(
        "Traffic of our side, as `local` of the tunnel.", "10.1.0.0/16"
    )
    remote: Selectors | None = described(
        "Traffic of the peer's side, as `remote` of the tunnel.", "10.2.0.0/16"
    )
    lifetime: Lifetime | None = described("As `lifetime` of the tunnel, for this Child SA.", "30m")
    inactivity: Lifetime | None = described(
        "As `inactivity` of the tunnel, for this Child SA.", "10m"
    )
    per_resource: Resources | None = described(
        "As `per_resource` of the tunnel, for this Child SA.", 4
    )
    priority: Priority | None = described("As `priority` of the tunnel, for this Child SA.", 500)
    mark: SomeMark | None = described("As `mark` of the tunnel, for this Child SA.", 42)
    mark_out: SomeMark | None = described("As `mark_out` of the tunnel, for this Child SA.", 42)
    mark_in: SomeMark | None = described(
        "As `mark_in` of the tunnel, for this Child SA.", "0x20/0xf0"
    )
    mark_set: OuterMark | None = described(
        "As `mark_set` of the tunnel, for this Child SA.", "0x20000"
    )
    traffic: NotYet = None
