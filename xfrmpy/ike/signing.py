"""Signatures of ours: made at once by a key in memory, or by a token, for which IKE_AUTH waits.

A token is another device: it takes its time, or is not there. It is asked through `AskSignature`,
and meanwhile nobody else waits. What is signed, and by which scheme, is decided in `proof`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from xfrmpy.crypto.signatures import Scheme, signing_key
from xfrmpy.failures import Failure
from xfrmpy.ike.errors import AuthenticationFailed
from xfrmpy.ike.outputs import AskSignature
from xfrmpy.ike.states import IkeSaState
from xfrmpy.policy.model import PrivateKey

if TYPE_CHECKING:
    from xfrmpy.ike.core import Core
    from xfrmpy.ike.ike_sa import IkeSa

Step: TypeAlias = Callable[[float], None]
Signed: TypeAlias = Callable[[bytes, float], None]
Refuse: TypeAlias = Callable[[AuthenticationFailed, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Awaited:
    sa: IkeSa
    key: PrivateKey
    go_on: Signed
    refuse: Refuse


class Signings:
    """The signatures of one endpoint that a token has been asked for."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._awaited: dict[int, _Awaited] = {}
        self._count = 0

    def __contains__(self, sa: IkeSa) -> bool:
        return any(awaited.sa is sa for awaited in self._awaited.values())

    def ask(
        self,
        sa: IkeSa,
        key: PrivateKey,
        scheme: Scheme,
        octets: bytes,
        go_on: Signed,
        refuse: Refuse,
    ) -> None:
        self._count += 1
        self._awaited[self._count] = _Awaited(sa=sa, key=key, go_on=go_on, refuse=refuse)
        self._core.emit(AskSignature(number=self._count, key=key, scheme=scheme, octets=octets))

    def answered(self, asked: AskSignature, answer: bytes | str) -> tuple[IkeSa, Step] | None:
        """What is to be done now with a signature, or with the sentence why there is none."""
        awaited = self._awaited.pop(asked.number, None)
        if awaited is None or awaited.sa.state is not IkeSaState.AUTHENTICATING:
            return None
        if isinstance(answer, bytes):
            return awaited.sa, partial(awaited.go_on, answer)
        failure = Failure(
            code="XF2044",
            summary=f"our token does not sign: {answer}",
            evidence=(("our key", awaited.key.origin),),
        )
        return awaited.sa, partial(awaited.refuse, AuthenticationFailed(failure))


def sign(
    sa: IkeSa,
    key: PrivateKey,
    scheme: Scheme,
    octets: bytes,
    go_on: Signed,
    refuse: Refuse,
    now: float,
) -> None:
    """Have `octets` signed; `go_on` gets the signature in the encoding of the scheme."""
    if key.token is not None:
        sa.core.signings.ask(sa, key, scheme, octets, go_on, refuse)
    else:
        go_on(signing_key(key.octets).sign(scheme, octets), now)
