"""SET_WINDOW_SIZE: for how many requests each end keeps state (RFC 7296 section 2.3).

Both ends say it in IKE_AUTH. A rekeyed IKE SA begins with one again: who rekeyed it says it anew,
to a peer that has ever said it itself, and that one says it in its answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfrmpy.ike.exchange import notifications
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.window import OUR_WINDOW_SIZE
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

WINDOW_SIZE = NotifyPayload(
    type=NotifyType.SET_WINDOW_SIZE, data=OUR_WINDOW_SIZE.to_bytes(4, "big")
)
"""In IKE_AUTH it holds once that exchange is done, later at once."""

WINDOW_SIZE_OCTETS = 4


def offer_window(new: IkeSa, old: IkeSa) -> tuple[NotifyPayload, ...]:
    """For the first request on an IKE SA that our rekeying has made."""
    if not old.channel.window.takes_several:
        return ()
    new.channel.window.widen_ours(OUR_WINDOW_SIZE)
    return (WINDOW_SIZE,)


def answer_window(sa: IkeSa, _theirs: NotifyPayload, _now: float) -> tuple[OpenPayload, ...]:
    """The peer says its own: say ours, unless we have."""
    if sa.channel.window.keeps_several:
        return ()
    sa.channel.window.widen_ours(OUR_WINDOW_SIZE)
    return (WINDOW_SIZE,)


def note_window(sa: IkeSa, payloads: tuple[OpenPayload, ...]) -> None:
    """The peer may say at any time that it keeps state for more."""
    if sa.state is IkeSaState.ESTABLISHED:
        for announced in notifications(payloads, NotifyType.SET_WINDOW_SIZE):
            if len(announced.data) == WINDOW_SIZE_OCTETS:
                sa.channel.window.widen_theirs(int.from_bytes(announced.data, "big"))
