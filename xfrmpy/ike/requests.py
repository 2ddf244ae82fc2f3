"""What a peer may ask of us once messages are protected, and in which states.

Each row names the handler that answers by `IkeSa.respond`, at once or when the datapath has done
its part. CREATE_CHILD_SA is refused whole, as RFC 7296 section 4 allows: a peer that wants to
rekey makes a new IKE SA instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xfrmpy.ike.auth import answer_ike_auth
from xfrmpy.ike.informational import answer_informational
from xfrmpy.ike.states import IkeSaState
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """In which states an exchange may begin, and who answers it."""

    states: frozenset[IkeSaState]
    handler: Callable[[IkeSa, tuple[OpenPayload, ...], float], None]


def _refuse_create_child_sa(sa: IkeSa, _payloads: tuple[OpenPayload, ...], _now: float) -> None:
    sa.respond((NotifyPayload(type=NotifyType.NO_ADDITIONAL_SAS),))


_AUTHENTICATING = frozenset({IkeSaState.AUTHENTICATING})
_LIVING = frozenset({IkeSaState.ESTABLISHED, IkeSaState.DELETING})

REQUESTS: dict[ExchangeType, RequestRow] = {
    ExchangeType.IKE_AUTH: RequestRow(states=_AUTHENTICATING, handler=answer_ike_auth),
    ExchangeType.CREATE_CHILD_SA: RequestRow(states=_LIVING, handler=_refuse_create_child_sa),
    ExchangeType.INFORMATIONAL: RequestRow(states=_LIVING, handler=answer_informational),
}
