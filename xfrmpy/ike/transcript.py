"""The exchanges between IKE_SA_INIT and IKE_AUTH, and what AUTH covers of them.

Read RFC 9242 section 3.3.2 first. The octets of a message are the business of `channel`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xfrmpy.crypto.key_schedule import IkeKeys
from xfrmpy.crypto.prf import prf
from xfrmpy.ipsec import algorithms
from xfrmpy.registry import KeyExchangeMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """The IKE_INTERMEDIATE exchanges of an IKE SA that is being made: to come, and covered by AUTH.

    `pending` are the key exchanges that must be done before IKE_AUTH, NONE for an exchange without
    one. `initiator` and `responder` are IntAuth_iN and IntAuth_rN of RFC 9242 section 3.3.2. A
    post-quantum preshared key went into the keys in the last of them if there is a
    `ppk_confirmation`, which tells it from others of its name (RFC 9867).
    """

    pending: tuple[KeyExchangeMethod, ...] = ()
    initiator: bytes = field(default=b"", repr=False)
    responder: bytes = field(default=b"", repr=False)
    exchanges: int = 0
    ppk_confirmation: bytes = field(default=b"", repr=False)

    def extended(
        self, row: algorithms.Prf, keys: IkeKeys, request: bytes, response: bytes
    ) -> Transcript:
        """With the next exchange done; `keys` are those that have protected it."""
        return Transcript(
            pending=self.pending[1:],
            initiator=prf(row, keys.sk_pi, self.initiator + request),
            responder=prf(row, keys.sk_pr, self.responder + response),
            exchanges=self.exchanges + 1,
        )

    @property
    def octets(self) -> bytes:
        """IntAuth, which ends with the Message ID of IKE_AUTH; empty without such exchanges."""
        if not self.exchanges:
            return b""
        message_id = self.exchanges + 1  # IKE_SA_INIT has 0.
        return self.initiator + self.responder + message_id.to_bytes(4, "big")


NOTHING_BETWEEN = Transcript()
"""IKE_AUTH follows IKE_SA_INIT at once, or has been."""
