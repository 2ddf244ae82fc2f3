"""Tickets by value: what a gateway seals into them, and the keys it seals them with.

Read RFC 5723 sections 5, 6.1, 6.2 and 9 first. A ticket is the state of an IKE SA under a key that
nobody else has, so that its holder can bring it back and cannot read it. The keys live in memory
and go with the process: a key in a file would open what was recorded on the wire for as long as
the file is there, and the full exchange that follows a refused ticket costs one round trip.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct

from xfrmpy.crypto.cipher import IntegrityFailed, packet_cipher
from xfrmpy.ipsec.algorithms import CIPHERS
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import Proposal
from xfrmpy.registry import EncryptionAlgorithm
from xfrmpy.wire.cursor import Cursor
from xfrmpy.wire.payloads import IdiPayload, IdrPayload, SaPayload

TICKET_SECONDS = 3600
"""How long a ticket is good: section 9.8 names an hour as an example of a short time."""

KEY_SECONDS = 24 * 3600.0
"""How long a key seals: much longer than a ticket lives, as section 6.2 demands."""

TICKETS_OF_KEY = 1 << 16
"""How many tickets a key seals at most; those used are remembered with it."""

FORMAT = 2
"""The version of the sealed layout."""

_CIPHER = next(c for c in CIPHERS if c.id is EncryptionAlgorithm.AES_GCM_16 and c.key_bits == 256)
_HEAD = Struct(">B8s8s")  # version, identity of the key, IV: associated data
_FIXED = Struct(">d8s32s")  # expiry, our SPI of the IKE SA, binding to the shared key
_SIZE = Struct(">H")


class TicketRefused(Exception):
    """A ticket that opens nothing here; the sentence says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketState:
    """What is needed to resume an IKE SA: all that section 5 takes "from the ticket".

    `spi` is ours of the old IKE SA. `binding` ties the ticket to the shared key that proved the
    peer: see `bind_to_key`.
    """

    tunnel: str
    id_i: Identity
    id_r: Identity
    proposal: Proposal
    sk_d: bytes = field(repr=False)
    ppk_id: str = ""
    spi: bytes
    binding: bytes = field(repr=False)
    expires_at: float


class TicketKeys:
    """Seals tickets and opens them, each at most once for good."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._keys: list[_Key] = []

    def seal(self, state: TicketState, now: float) -> bytes:
        return self._current(now).seal(_encode(state))

    def open(self, ticket: bytes, now: float) -> TicketState:
        """Raises `TicketRefused` for what we did not seal, or have forgotten, or have seen used."""
        key = self._key_of(ticket, now)
        try:
            state = _decode(key.open(ticket))
        except IntegrityFailed as error:
            raise TicketRefused("it is not as we sealed it") from error
        if now >= state.expires_at:
            raise TicketRefused("it has expired")
        if ticket in key.used:
            raise TicketRefused("it has been used")
        return state

    def spend(self, ticket: bytes, now: float) -> None:
        """An IKE SA has been established with it. Raises `TicketRefused` if one was before."""
        key = self._key_of(ticket, now)
        if ticket in key.used:
            raise TicketRefused("it has been used")
        key.used.add(ticket)

    def _current(self, now: float) -> _Key:
        self._forget(now)
        key = self._keys[-1] if self._keys else None
        if key is None or now >= key.made_at + KEY_SECONDS or key.sealed >= TICKETS_OF_KEY:
            key = _Key(self._random, now)
            self._keys.append(key)
        return key

    def _key_of(self, ticket: bytes, now: float) -> _Key:
        self._forget(now)
        for key in self._keys:
            if ticket[: _HEAD.size - 8] == bytes([FORMAT]) + key.id:
                return key
        raise TicketRefused("it is none of ours, or our key for it is gone")

    def _forget(self, now: float) -> None:
        self._keys = [k for k in self._keys if now < k.made_at + KEY_SECONDS + TICKET_SECONDS]


class _Key:
    """AES-GCM with 256 bits; its IV counts, so it never repeats."""

    def __init__(self, random: Callable[[int], bytes], now: float) -> None:
        self.id = random(8)
        self.made_at = now
        self.sealed = 0
        self.used: set[bytes] = set()
        self._cipher = packet_cipher(_CIPHER, None, random(_CIPHER.keymat), b"")

    def seal(self, plaintext: bytes) -> bytes:
        self.sealed += 1
        iv = self.sealed.to_bytes(8, "big")
        head = _HEAD.pack(FORMAT, self.id, iv)
        return head + self._cipher.seal(iv, plaintext, head)

    def open(self, ticket: bytes) -> bytes:
        """Raises `IntegrityFailed`."""
        head, sealed = ticket[: _HEAD.size], ticket[_HEAD.size :]
        return self._cipher.open(head[-8:], sealed, head)


def bind_to_key(shared_key: bytes, sk_d: bytes) -> bytes:
    """Ties an IKE SA to the shared key by which its peer was known: with another key in the policy,
    the ticket is void (section 6.2, "credentials ... are invalidated")."""
    return hmac.digest(shared_key, b"ticket" + sk_d, "sha256")


def _encode(state: TicketState) -> bytes:
    parts = (
        state.tunnel.encode(),
        IdiPayload(identity=state.id_i).encode_body(),
        IdrPayload(identity=state.id_r).encode_body(),
        SaPayload(proposals=(state.proposal,)).encode_body(),
        state.sk_d,
        state.ppk_id.encode(),
    )
    fixed = _FIXED.pack(state.expires_at, state.spi, state.binding)
    return fixed + b"".join(_SIZE.pack(len(part)) + part for part in parts)


def _decode(octets: bytes) -> TicketState:
    """What we sealed ourselves, so it is well formed."""
    cursor = Cursor(octets, "ticket")
    expires_at, spi, binding = cursor.unpack(_FIXED)
    parts = (cursor.take(*cursor.unpack(_SIZE)) for _ in range(6))
    tunnel, id_i, id_r, proposals, sk_d, ppk_id = parts
    (proposal,) = SaPayload.decode_body_untrusted(Cursor(proposals, "ticket")).proposals
    return TicketState(
        tunnel=tunnel.decode(),
        id_i=IdiPayload.decode_body_untrusted(Cursor(id_i, "ticket")).identity,
        id_r=IdrPayload.decode_body_untrusted(Cursor(id_r, "ticket")).identity,
        proposal=proposal,
        sk_d=sk_d,
        ppk_id=ppk_id.decode(),
        spi=spi,
        binding=binding,
        expires_at=expires_at,
    )
