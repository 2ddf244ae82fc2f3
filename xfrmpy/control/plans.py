"""What `org.xfrmpy.Plan`, `Apply` and the rest of the policy methods are answered with."""

from __future__ import annotations

from dataclasses import dataclass

from xfrmpy.control.calls import PolicyText
from xfrmpy.control.protocol import FailureReply


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceReply:
    """A key of the policy with another value; `impact` is `hot`, `rekey`, `reauth` or `replace`."""

    key: str
    child: str
    before: str
    after: str
    impact: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeReply:
    """What happens to a tunnel, or to a shunt, which has the word `shunt` before its name.

    `action` is `create`, `update` or `delete`. `impact` is what it does to what is up; `live` says
    whether anything is. `cuts` is whether the session that it is asked from would be cut.
    """

    tunnel: str
    action: str
    impact: str
    live: bool
    cuts: bool
    differences: list[DifferenceReply]

    @property
    def is_of_shunt(self) -> bool:
        return self.tunnel.startswith(SHUNT)


SHUNT = "shunt "
"""No tunnel's name has a space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReply:
    """What others have changed of what is in force; `finding` is such as `route-missing`.

    `tunnel` and `child` are empty where it is nobody's. `remedy` is what is done about it, empty
    if nothing is, because it is not ours.
    """

    finding: str
    what: str
    tunnel: str
    child: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReply:
    """What would be done, or was, in this order; `failure` is why it cannot be done here.

    `drift` is put right when the policy is applied, also if that is unchanged. `directory` is where
    the operator's policy files are.
    """

    changes: list[ChangeReply]
    drift: list[DriftReply]
    warnings: list[str]
    directory: str
    failure: FailureReply | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepReply:
    """What was confirmed: files to keep in `directory`, and whether others in it are to go.

    `files` is None if none were sent with the policy: they are there already.
    """

    files: list[PolicyText] | None
    prune: bool
    directory: str
