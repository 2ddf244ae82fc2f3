"""Signatures by tokens, beside the loop: a thread of each module asks, for a module may take long.

A module that hangs holds up its own tokens and nothing else: what waits for it fails in its time.
Imported where a policy has a key on a token.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable

from xfrmpy.ike.outputs import AskSignature
from xfrmpy.tokens.access import TokenFailed, sign

log = logging.getLogger(__name__)

SECONDS = 10.0
"""Ours, for a signature. The slowest tokens take one or two; a peer's retransmissions go on."""

MAX_WAITING = 64
"""Ours: signatures that one module is to make. What comes beyond is refused at once."""


class TokenSigner:
    """`tell` gets the signature, or a sentence that says why there is none."""

    def __init__(self, tell: Callable[[AskSignature, bytes | str], None]) -> None:
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._desks: dict[str, _Desk] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def ask(self, asked: AskSignature) -> None:
        """Begin to; `tell` is called when it is done, or has taken too long."""
        assert asked.key.token is not None
        module = asked.key.token.uri.module
        desk = self._desks.get(module)
        if desk is None:
            desk = self._desks[module] = _Desk(self._loop, self._done)
        late = f"no answer within {SECONDS:g} s"
        self._timers[asked.number] = self._loop.call_later(SECONDS, self._done, asked, late)
        if not desk.put(asked):
            self._loop.call_soon(self._done, asked, f"{MAX_WAITING} others are waiting for it")

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _done(self, asked: AskSignature, answer: bytes | str) -> None:
        """The first answer counts."""
        timer = self._timers.pop(asked.number, None)
        if timer is not None:
            timer.cancel()
            self._tell(asked, answer)


class _Desk:
    """The thread of one module. It ends with the process, whatever it waits for."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[AskSignature, bytes | str], None],
    ) -> None:
        self._loop = loop
        self._done = done
        self._waiting: queue.Queue[AskSignature] = queue.Queue(MAX_WAITING)
        threading.Thread(target=self._work, name="token", daemon=True).start()

    def put(self, asked: AskSignature) -> bool:
        """Whether there is room."""
        try:
            self._waiting.put_nowait(asked)
        except queue.Full:
            return False
        return True

    def _work(self) -> None:
        while not self._loop.is_closed():
            asked = self._waiting.get()
            answer = _sign(asked)
            try:
                self._loop.call_soon_threadsafe(self._done, asked, answer)
            except RuntimeError:  # The loop was closed meanwhile.
                return


def _sign(asked: AskSignature) -> bytes | str:
    token = asked.key.token
    assert token is not None
    try:
        return sign(token.uri, token.pin, asked.key.public, asked.scheme, asked.octets)
    except TokenFailed as error:
        return str(error)
    except Exception as error:  # The thread must live: the next signature may be of another token.
        log.exception("a token's module met a defect")
        return type(error).__name__
