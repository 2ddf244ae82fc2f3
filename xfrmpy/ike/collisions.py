"""What to do when both ends change the same SA at the same time: decisions, and nothing else.

Read RFC 7296 sections 2.8.1, 2.8.2 and 2.25 first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from xfrmpy.ike.states import ChildSaState
from xfrmpy.registry import NotifyType

Nonces: TypeAlias = tuple[bytes, bytes]
"""Ni and Nr of one exchange."""

UNSETTLED = frozenset({ChildSaState.CREATING, ChildSaState.REKEYING, ChildSaState.DELETING})
"""The states in which a Child SA is the subject of an exchange that we have begun."""


def survives(ours: Nonces, theirs: Nonces) -> bool:
    """Whether what our exchange made stays, of two exchanges that replaced the same SA.

    RFC 7296 section 2.8.1: "the SA created with the lowest of the four nonces used in the two
    exchanges SHOULD be closed by the endpoint that created it". Octets are compared from the first;
    a nonce that is the beginning of another is the lower one. That is how Python orders bytes.
    """
    return min(ours) > min(theirs)


def objection_to_new_child(*, ike_sa_is_rekeying: bool) -> NotifyType | None:
    """Why a peer cannot have another Child SA just now (section 2.25.2)."""
    return NotifyType.TEMPORARY_FAILURE if ike_sa_is_rekeying else None


def objection_to_child_rekey(
    child: ChildSaState | None, *, ike_sa_is_rekeying: bool
) -> NotifyType | None:
    """Why a peer cannot replace a Child SA just now; `child` None: there is none (2.25.1)."""
    if ike_sa_is_rekeying:
        return NotifyType.TEMPORARY_FAILURE
    match child:
        case None | ChildSaState.DELETED:
            return NotifyType.CHILD_SA_NOT_FOUND
        case ChildSaState.INSTALLED | ChildSaState.REKEYING:
            return None
        case ChildSaState.CREATING | ChildSaState.REKEYED | ChildSaState.DELETING:
            return NotifyType.TEMPORARY_FAILURE


def objection_to_ike_rekey(children: Iterable[ChildSaState]) -> NotifyType | None:
    """Why a peer cannot replace the IKE SA just now (section 2.25.1, last paragraph)."""
    return NotifyType.TEMPORARY_FAILURE if UNSETTLED.intersection(children) else None
