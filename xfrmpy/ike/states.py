"""The legal states and transitions of IKE SAs and Child SAs, as data.

`docs/states.md` is drawn from these tables. A machine that asks for any other transition has a
defect, and says so by an exception that the endpoint's firewall catches.
"""

from __future__ import annotations

from enum import StrEnum


class IkeSaState(StrEnum):
    """INITIATING: IKE_SA_INIT is on its way. AUTHENTICATING: keys, but no proof yet who it is.

    REKEYED: its successor has the Child SAs, and the peer is to delete it. The successor itself is
    ESTABLISHED from the first, for who it is has been proved.
    """

    INITIATING = "initiating"
    AUTHENTICATING = "authenticating"
    ESTABLISHED = "established"
    REKEYED = "rekeyed"
    DELETING = "deleting"
    DELETED = "deleted"


class ChildSaState(StrEnum):
    """CREATING: negotiated or being installed. INSTALLED: in force, and the peer knows.

    REKEYING: we have asked to replace it. REKEYED: another is in its place, and the peer is to
    delete it, or to take the other back. DELETING: we delete it.
    """

    CREATING = "creating"
    INSTALLED = "installed"
    REKEYING = "rekeying"
    REKEYED = "rekeyed"
    DELETING = "deleting"
    DELETED = "deleted"


IKE_SA_TRANSITIONS: dict[IkeSaState, frozenset[IkeSaState]] = {
    IkeSaState.INITIATING: frozenset({IkeSaState.AUTHENTICATING, IkeSaState.DELETED}),
    IkeSaState.AUTHENTICATING: frozenset(
        {IkeSaState.ESTABLISHED, IkeSaState.DELETING, IkeSaState.DELETED}
    ),
    IkeSaState.ESTABLISHED: frozenset(
        {IkeSaState.REKEYED, IkeSaState.DELETING, IkeSaState.DELETED}
    ),
    IkeSaState.REKEYED: frozenset({IkeSaState.DELETING, IkeSaState.DELETED}),
    IkeSaState.DELETING: frozenset({IkeSaState.DELETED}),
    IkeSaState.DELETED: frozenset(),
}

CHILD_SA_TRANSITIONS: dict[ChildSaState, frozenset[ChildSaState]] = {
    ChildSaState.CREATING: frozenset(
        {ChildSaState.INSTALLED, ChildSaState.DELETING, ChildSaState.DELETED}
    ),
    ChildSaState.INSTALLED: frozenset(
        {
            ChildSaState.REKEYING,
            ChildSaState.REKEYED,
            ChildSaState.DELETING,
            ChildSaState.DELETED,
        }
    ),
    ChildSaState.REKEYING: frozenset(
        {
            ChildSaState.INSTALLED,
            ChildSaState.REKEYED,
            ChildSaState.DELETING,
            ChildSaState.DELETED,
        }
    ),
    ChildSaState.REKEYED: frozenset(
        {ChildSaState.INSTALLED, ChildSaState.DELETING, ChildSaState.DELETED}
    ),
    ChildSaState.DELETING: frozenset({ChildSaState.DELETED}),
    ChildSaState.DELETED: frozenset(),
}


class IllegalTransition(Exception):
    """A machine asked for a transition that its table does not have: a defect of ours."""
