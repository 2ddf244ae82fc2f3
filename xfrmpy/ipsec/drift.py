"""How what is in force differs from what should be: the words that all who compare have in common.

The IKE core knows which SAs and policies should be in force (`ike.comparison`), a datapath which
routes, rules and devices lead packets to them. What is found is told and healed in one way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from xfrmpy.ipsec.addresses import IpAddress, IpNetwork
from xfrmpy.ipsec.sad import SadEntry, SaId
from xfrmpy.ipsec.spd import PolicyDirection, SpdEntry

Ends: TypeAlias = tuple[IpAddress, IpAddress]
"""An address of ours, and the peer's."""

Subject: TypeAlias = SadEntry | SpdEntry | SaId | IpNetwork | Ends | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """The objects in force that are ours: the very values that were added.

    `blocked` are the directions in which nothing passes that no entry matches, as far as that is
    ours (`DefaultPolicy.set`). Where others have their hands in it, too: SAs that are marked as
    ours, and are nothing that we would have added; and the policies of others, by which ours may be
    overruled.
    """

    sad: tuple[SadEntry, ...]
    spd: tuple[SpdEntry, ...]
    strange: tuple[SaId, ...] = ()
    others: tuple[SpdEntry, ...] = ()
    blocked: frozenset[PolicyDirection] = frozenset()


class Finding(StrEnum):
    """Missing: should be there and is not. Surplus: marked as ours, and not of our making."""

    SA_MISSING = "sa-missing"
    SA_CHANGED = "sa-changed"
    SA_SURPLUS = "sa-surplus"
    POLICY_MISSING = "policy-missing"
    POLICY_CHANGED = "policy-changed"
    POLICY_SURPLUS = "policy-surplus"
    POLICY_SHADOWED = "policy-shadowed"
    DEFAULT_CHANGED = "default-changed"
    DEVICE_MISSING = "device-missing"
    DEVICE_CHANGED = "device-changed"
    QUEUES_MISSING = "queues-missing"
    QUEUES_CHANGED = "queues-changed"
    GUARD_CHANGED = "guard-changed"
    RULE_MISSING = "rule-missing"
    SHUNT_RULES_CHANGED = "shunt-rules-changed"
    ROUTE_MISSING = "route-missing"
    ROUTE_CHANGED = "route-changed"
    ROUTE_SURPLUS = "route-surplus"
    PATH_CHANGED = "path-changed"
    INTERFACE_MISSING = "interface-missing"
    INTERFACE_CHANGED = "interface-changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not as it should be; `what` names it to an operator.

    `subject` is what should be in force or, where it is surplus, what is: an entry, a destination,
    the two ends of a path, the IP version of a rule, the number of an
    interface. `there` is where a changed SA is found.
    `tunnel` is empty where it is nobody's, or everybody's.
    """

    finding: Finding
    what: str
    subject: Subject = None
    there: SaId | None = None
    tunnel: str = ""
    child: str = ""

    def __str__(self) -> str:
        return f"{self.what} {_VERDICTS[self.finding.rpartition('-')[2]]}"


_VERDICTS = {
    "missing": "is missing",
    "changed": "was changed",
    "surplus": "is not of our making",
    "shadowed": "is overruled by another program's",
}
