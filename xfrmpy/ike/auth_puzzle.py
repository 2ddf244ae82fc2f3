"""Puzzles in IKE_AUTH: keys that a responder does not compute before the initiator has worked.

Read RFC 8019 section 7.2 first. Who has solved a puzzle in IKE_SA_INIT may get another one with the
answer, while IKE_AUTH requests come that do not open. Its solution stands in clear before the
Encrypted payload; until it is there, half of the key exchange is not done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xfrmpy.failures import Failure
from xfrmpy.ike.errors import Drop, DropReason, PeerMisbehaved
from xfrmpy.ike.puzzles import Puzzle, check_solution
from xfrmpy.registry import ExchangeType
from xfrmpy.wire.payloads import PuzzleSolutionPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa
    from xfrmpy.wire.message import Message


_FIRST_WITH_KEYS = (ExchangeType.IKE_AUTH, ExchangeType.IKE_INTERMEDIATE)
"""RFC 8019 knows of IKE_AUTH alone; no message before it can be opened without the keys, either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthPuzzle:
    """What an IKE SA without keys waits for; `agree` computes them."""

    puzzle: Puzzle
    text: bytes
    agree: Callable[[], None] = field(repr=False)


def puzzle_text(nonce_r: bytes, spi_r: bytes) -> bytes:
    """The string S of section 7.2.3."""
    return nonce_r + spi_r


def take_solution(sa: IkeSa, message: Message, now: float) -> None:
    """Compute the keys if a message brings the solution. Raises `Drop` if it does not.

    Section 7.2.4: the responder "MUST silently discard all the IKE_AUTH request messages without
    the PS payload". The keys are kept, so that what comes after it need not bring it again.
    """
    waiting = sa.auth_puzzle
    if waiting is None:
        return
    if message.is_response or message.exchange not in _FIRST_WITH_KEYS:
        raise Drop(DropReason.WRONG_STATE)
    solutions = [p for p in message.payloads if isinstance(p, PuzzleSolutionPayload)]
    is_one = len(solutions) == 1 and message.sealed is not None
    if not is_one or not check_solution(waiting.puzzle, waiting.text, solutions[0]):
        raise Drop(DropReason.PUZZLE_UNSOLVED)
    sa.core.handling = sa
    sa.auth_puzzle = None
    try:
        waiting.agree()
    except PeerMisbehaved as error:
        sa.close(Failure(code="XF2008", summary=str(error)), now)
        raise
