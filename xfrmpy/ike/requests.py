"""What a peer may ask of us once messages are protected, and in which states.

Each row names the handler that answers by `IkeSa.respond`, at once or when the datapath has done
its part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from xfrmpy.ike.auth_answer import answer_ike_auth
from xfrmpy.ike.create_child_sa import answer_create_child_sa, conclude_child
from xfrmpy.ike.eap_responder import answer_amid_auth
from xfrmpy.ike.exchange import only
from xfrmpy.ike.followup import answer_followup_ke
from xfrmpy.ike.informational import answer_informational
from xfrmpy.ike.intermediate import answer_ike_intermediate
from xfrmpy.ike.rekey_ike_sa import answer_ike_rekey, conclude_ike_rekey
from xfrmpy.ike.states import IkeSaState
from xfrmpy.registry import ExchangeType, ProtocolId
from xfrmpy.wire.payloads import OpenPayload, SaPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa


Handler: TypeAlias = "Callable[[IkeSa, tuple[OpenPayload, ...], float], None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """In which states an exchange may begin, and who answers it; and who answers it `amid_auth`,
    between two messages of IKE_AUTH, if it may come there."""

    states: frozenset[IkeSaState]
    handler: Handler
    amid_auth: Handler | None = None

    def handler_for(self, sa: IkeSa) -> Handler | None:
        """Who answers a request at this moment; None if it must not come now."""
        if sa.state in self.states:
            return self.handler
        is_amid = sa.eap_serving is not None or sa.rounds is not None
        return self.amid_auth if is_amid and sa.state in _AUTHENTICATING else None


def _answer_create_child_sa(sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
    """What is to be created is told by the proposals alone (RFC 7296 sections 1.3.1 to 1.3.3)."""
    protocols = {p.protocol for p in only(payloads, SaPayload).proposals}
    if protocols == {ProtocolId.IKE}:
        answer_ike_rekey(sa, payloads, now)
    else:
        answer_create_child_sa(sa, payloads, now)


def _answer_followup_ke(sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
    finished = answer_followup_ke(sa, payloads, now)
    if finished is None:
        return
    done, answer = finished
    if done.child is None:
        conclude_ike_rekey(sa, done, now, answer)
    else:
        conclude_child(sa, done.child, done.agreement, now, answer)


_AUTHENTICATING = frozenset({IkeSaState.AUTHENTICATING})
_LIVING = frozenset({IkeSaState.ESTABLISHED, IkeSaState.REKEYED, IkeSaState.DELETING})

REQUESTS: dict[ExchangeType, RequestRow] = {
    ExchangeType.IKE_INTERMEDIATE: RequestRow(
        states=_AUTHENTICATING, handler=answer_ike_intermediate
    ),
    ExchangeType.IKE_AUTH: RequestRow(states=_AUTHENTICATING, handler=answer_ike_auth),
    ExchangeType.CREATE_CHILD_SA: RequestRow(states=_LIVING, handler=_answer_create_child_sa),
    ExchangeType.IKE_FOLLOWUP_KE: RequestRow(states=_LIVING, handler=_answer_followup_ke),
    ExchangeType.INFORMATIONAL: RequestRow(
        states=_LIVING, handler=answer_informational, amid_auth=answer_amid_auth
    ),
}
