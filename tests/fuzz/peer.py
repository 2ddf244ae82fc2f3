"""The other end of an IKE SA, which says whatever it is told, protected with the right keys.

It stands on `wire` and `crypto` alone, so that the core cannot share its mistakes. It has one
private value for each group and one nonce, so that scripts can have them in their octets; what
depends on the endpoint's own choices stands there as a placeholder of the same size, which is
filled in before it is sent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from tests.fuzz.script import split_chain
from tests.ike.conftest import seeded_random
from xfrmpy.crypto.authentication import shared_key_auth, signed_octets
from xfrmpy.crypto.cipher import IntegrityFailed, PacketCipher, packet_cipher
from xfrmpy.crypto.key_exchange import InvalidPublicValue, KeyExchange, start_key_exchange
from xfrmpy.crypto.key_schedule import IkeKeys, derive_ike_keys, derive_rekeyed_ike_keys
from xfrmpy.ipsec.addresses import Path, SocketAddress
from xfrmpy.ipsec.proposals import IkeSuite, ike_suite
from xfrmpy.registry import ExchangeType, KeyExchangeMethod, PayloadType, ProtocolId
from xfrmpy.wire.cursor import Malformed
from xfrmpy.wire.header import SPI_SIZE, IkeHeader
from xfrmpy.wire.message import (
    Message,
    decode_message_untrusted,
    decode_payloads_untrusted,
    encrypted_prefix,
)
from xfrmpy.wire.payloads import (
    EncryptedPayload,
    KePayload,
    NoncePayload,
    OpenPayload,
    Payload,
    SaPayload,
)

P = TypeVar("P", bound=Payload)

SPI = b"peer-spi"
NEXT_SPI = b"peer-new"  # of an IKE SA that takes the place of another
CHILD_SPI = b"\x0c\xaf\xfe\x01"
NONCE = b"a nonce of the peer's, 32 octets"

THEIR_CHILD_SPI = b"\xf5SPI"
OUR_AUTH = b"\xf5AUTH".ljust(32, b"\xf5")
SOURCE_HASH = b"\xf5SOURCE".ljust(20, b"\xf5")
DESTINATION_HASH = b"\xf5DESTINATION".ljust(20, b"\xf5")


@cache
def key_exchange(method: KeyExchangeMethod) -> KeyExchange:
    """The peer's private value of a group; raises `KeyError` for a group that nobody has."""
    return start_key_exchange(method, seeded_random("peer"))


@dataclass(slots=True, kw_only=True)
class Association:
    """An IKE SA as the peer knows it. `asked` is the request that waits for the peer's answer."""

    spi_i: bytes
    spi_r: bytes
    is_initiator: bool
    next_id: int
    suite: IkeSuite | None = None
    keys: IkeKeys | None = None
    asked: tuple[ExchangeType, int] = (ExchangeType.IKE_SA_INIT, 0)
    request: tuple[Payload, ...] = ()
    sealed: int = 0
    _ciphers: tuple[PacketCipher, PacketCipher] | None = None

    def ciphers(self) -> tuple[PacketCipher, PacketCipher]:
        """The peer's own, and the endpoint's."""
        if self._ciphers is None:
            self._ciphers = self._make_ciphers()
        return self._ciphers

    def _make_ciphers(self) -> tuple[PacketCipher, PacketCipher]:
        assert self.suite is not None
        assert self.keys is not None
        keys, suite = self.keys, self.suite
        of_initiator = packet_cipher(suite.cipher, suite.integrity, keys.sk_ei, keys.sk_ai)
        of_responder = packet_cipher(suite.cipher, suite.integrity, keys.sk_er, keys.sk_ar)
        both = (of_initiator, of_responder)
        return both if self.is_initiator else both[::-1]


class Peer:
    """See the module. `path` is the endpoint's; datagrams have no non-ESP marker here."""

    def __init__(self, *, begins: bool, path: Path, key: bytes) -> None:
        first = Association(
            spi_i=SPI if begins else bytes(8),
            spi_r=bytes(8) if begins else SPI,
            is_initiator=begins,
            next_id=0,
        )
        self.associations = [first]
        self.current = first
        self._path = path
        self._key = key
        self._our_init = b""
        self._their_init = b""
        self._their_nonce = b""
        self._child_spi = bytes(4)
        self._heard = b""

    # What it says.

    def say(
        self,
        exchange: ExchangeType,
        first: int,
        octets: bytes,
        *,
        is_response: bool = False,
        skip: int = 0,
    ) -> bytes:
        """A message with this chain of payloads, protected if there are keys."""
        message_id = self._message_id(is_response=is_response, skip=skip)
        octets = self._filled(first, octets)
        if self.current.keys is None:
            return self._say_init(exchange, first, octets, is_response, message_id)
        self._note_said(first, octets, is_response=is_response)
        return self._sealed(exchange, first, octets, is_response, message_id)

    def say_in_clear(self, exchange: ExchangeType, first: int, octets: bytes) -> bytes:
        """A request that nothing protects, whatever has been agreed upon."""
        message_id = self._message_id(is_response=False, skip=0)
        return self._in_clear(exchange, first, octets, False, message_id)

    def say_fragment(self, first: int, octets: bytes, *, number: int, total: int) -> bytes:
        """One fragment (RFC 7383) of a request, whose Message ID is used up by the last one."""
        exchange = ExchangeType.INFORMATIONAL
        if self.current.keys is None or not 1 <= number <= total:
            return self.say_in_clear(exchange, first, octets)
        message_id = self.current.next_id % 2**32
        self.current.next_id += number == total
        first = first if number == 1 else PayloadType.NO_NEXT_PAYLOAD
        head = number.to_bytes(2) + total.to_bytes(2)
        return self._sealed(exchange, first, octets, False, message_id, fragment=head)

    def _message_id(self, *, is_response: bool, skip: int) -> int:
        if is_response:
            return self.current.asked[1]
        message_id = (self.current.next_id + skip) % 2**32
        self.current.next_id += 1
        return message_id

    def _say_init(
        self, exchange: ExchangeType, first: int, octets: bytes, is_response: bool, message_id: int
    ) -> bytes:
        data = self._in_clear(exchange, first, octets, is_response, message_id)
        self._our_init = data
        if is_response:
            self._agree(request=self._their_init, response=data)
        return data

    def _in_clear(
        self, exchange: ExchangeType, first: int, octets: bytes, is_response: bool, message_id: int
    ) -> bytes:
        header = IkeHeader(
            spi_i=self.current.spi_i,
            spi_r=self.current.spi_r,
            next_payload=PayloadType(first),
            exchange=exchange,
            is_response=is_response,
            is_initiator=self.current.is_initiator,
            message_id=message_id,
            length=28 + len(octets),
        )
        return header.encode() + octets

    def _sealed(
        self,
        exchange: ExchangeType,
        first: int,
        octets: bytes,
        is_response: bool,
        message_id: int,
        *,
        fragment: bytes = b"",
    ) -> bytes:
        cipher, _ = self.current.ciphers()
        padding = -(len(octets) + 1) % cipher.block
        plaintext = octets + bytes(padding) + bytes([padding])
        prefix = encrypted_prefix(
            spi_i=self.current.spi_i,
            spi_r=self.current.spi_r,
            exchange=exchange,
            is_response=is_response,
            is_initiator=self.current.is_initiator,
            message_id=message_id,
            first_inner=PayloadType(first),
            sealed_size=len(fragment) + cipher.iv_size + len(plaintext) + cipher.icv_size,
        )
        if fragment:
            prefix = prefix[:16] + bytes([PayloadType.SKF]) + prefix[17:] + fragment
        self.current.sealed += 1
        iv = self.current.sealed.to_bytes(cipher.iv_size)
        return prefix + iv + cipher.seal(iv, plaintext, prefix)

    def _filled(self, first: int, octets: bytes) -> bytes:
        """The octets with the placeholders replaced."""
        if b"\xf5" not in octets:
            return octets
        remote, local = self._path.remote, self._path.local
        octets = octets.replace(THEIR_CHILD_SPI, self._child_spi)
        octets = octets.replace(SOURCE_HASH, self._address_hash(remote))
        octets = octets.replace(DESTINATION_HASH, self._address_hash(local))
        if OUR_AUTH in octets:
            octets = octets.replace(OUR_AUTH, self._auth(first, octets))
        return octets

    def _address_hash(self, socket: SocketAddress) -> bytes:
        where = socket.address.packed + socket.port.to_bytes(2)
        return hashlib.sha1(self.current.spi_i + self.current.spi_r + where).digest()

    def _auth(self, first: int, octets: bytes) -> bytes:
        """The AUTH data over the identity that stands in the same chain."""
        sa = self.current
        if sa.keys is None or sa.suite is None:
            return OUR_AUTH
        ours = PayloadType.IDI if sa.is_initiator else PayloadType.IDR
        identities = [p.body for p in split_chain(first, octets) if p.type == ours]
        signed = signed_octets(
            sa.suite.prf,
            message=self._our_init,
            peer_nonce=self._their_nonce,
            sk_p=sa.keys.sk_pi if sa.is_initiator else sa.keys.sk_pr,
            identity=identities[0] if identities else b"",
        )
        return shared_key_auth(sa.suite.prf, self._key, signed)

    # What it hears.

    def hear(self, data: bytes) -> tuple[OpenPayload, ...]:
        """Learn from a message of the endpoint what scripts need; returns what is new in it."""
        if data == self._heard:
            return ()
        self._heard = data
        message = decode_message_untrusted(data)
        if message.exchange is ExchangeType.IKE_SA_INIT:
            self._hear_init(message, data)
            return ()
        for sa in self.associations:
            if (message.spi_i, message.spi_r) == (sa.spi_i, sa.spi_r) and sa.keys is not None:
                return self._hear_sealed(sa, message, data)
        return ()

    def _hear_init(self, message: Message, data: bytes) -> None:
        first = self.associations[0]
        if first.keys is not None:
            return
        self._their_init = data
        if message.is_response and first.is_initiator:
            first.spi_r = message.spi_r
            self._agree(request=self._our_init, response=data)
        elif not message.is_response and not first.is_initiator:
            first.spi_i = message.spi_i

    def _hear_sealed(
        self, sa: Association, message: Message, data: bytes
    ) -> tuple[OpenPayload, ...]:
        if not isinstance(message.sealed, EncryptedPayload):
            return ()  # A fragment; or in clear, as what refuses another version is.
        _, cipher = sa.ciphers()
        sealed, prefix = message.sealed.sealed, data[: message.sealed_at]
        try:
            plaintext = cipher.open(sealed[: cipher.iv_size], sealed[cipher.iv_size :], prefix)
        except IntegrityFailed:
            return ()  # The endpoint has other keys: this peer's KE payload was not its own.
        payloads = decode_payloads_untrusted(
            message.sealed.first_inner, plaintext[: -plaintext[-1] - 1]
        )
        self._note_heard(sa, message, payloads)
        return payloads

    def _note_heard(
        self, sa: Association, message: Message, payloads: tuple[OpenPayload, ...]
    ) -> None:
        for payload in payloads:
            if isinstance(payload, SaPayload) and payload.proposals[0].protocol == ProtocolId.ESP:
                self._child_spi = payload.proposals[0].spi
        if message.is_response:
            self._follow(sa, request=sa.request, response=payloads, is_initiator=True)
        else:
            sa.asked = (message.exchange, message.message_id)
            sa.request = payloads

    def _note_said(self, first: int, octets: bytes, *, is_response: bool) -> None:
        try:
            payloads = decode_payloads_untrusted(PayloadType(first), octets)
        except Malformed:
            return
        sa = self.current
        if is_response:
            self._follow(sa, request=sa.request, response=payloads, is_initiator=False)
        else:
            sa.request = payloads

    # What it knows.

    def _agree(self, *, request: bytes, response: bytes) -> None:
        """Both IKE_SA_INIT messages are there: derive the keys, if they can be."""
        sa = self.associations[0]
        try:
            asked, answered = map(decode_message_untrusted, (request, response))
            exchange = _Exchange(asked.payloads, answered.payloads, peer_asked=sa.is_initiator)
            sa.suite = ike_suite(exchange.proposal)
            secret = exchange.shared_secret()
        except (Malformed, LookupError, ValueError, InvalidPublicValue):
            return
        self._their_nonce = exchange.nonces[sa.is_initiator]
        sa.next_id = 1 if sa.is_initiator else 0
        sa.keys = derive_ike_keys(
            sa.suite,
            shared_secret=secret,
            nonce_i=exchange.nonces[0],
            nonce_r=exchange.nonces[1],
            spi_i=sa.spi_i,
            spi_r=sa.spi_r,
        )

    def _follow(
        self,
        old: Association,
        *,
        request: tuple[Payload, ...],
        response: tuple[Payload, ...],
        is_initiator: bool,
    ) -> None:
        """If these two have rekeyed the IKE SA, there is a new one (RFC 7296 section 2.18)."""
        try:
            exchange = _Exchange(request, response, peer_asked=is_initiator)
            suite = ike_suite(exchange.proposal)
            spi_i, spi_r = exchange.new_spis()
            secret = exchange.shared_secret()
        except (LookupError, ValueError, InvalidPublicValue):
            return
        assert old.suite is not None
        assert old.keys is not None
        keys = derive_rekeyed_ike_keys(
            suite,
            old_prf=old.suite.prf,
            old_sk_d=old.keys.sk_d,
            shared_secret=secret,
            nonce_i=exchange.nonces[0],
            nonce_r=exchange.nonces[1],
            spi_i=spi_i,
            spi_r=spi_r,
        )
        self.associations.append(
            Association(
                spi_i=spi_i,
                spi_r=spi_r,
                is_initiator=is_initiator,
                next_id=0,
                suite=suite,
                keys=keys,
            )
        )


class _Exchange:
    """What two messages agree upon. Raises `LookupError` if anything is not there."""

    def __init__(
        self, request: tuple[Payload, ...], response: tuple[Payload, ...], *, peer_asked: bool
    ) -> None:
        ours, theirs = (request, response) if peer_asked else (response, request)
        self._our_ke, self._their_ke = _first(ours, KePayload), _first(theirs, KePayload)
        self.proposal = _first(response, SaPayload).proposals[0]
        if self.proposal.protocol != ProtocolId.IKE:
            raise LookupError("it is about a Child SA")
        offers = _first(request, SaPayload).proposals
        spis = [offer.spi for offer in offers if offer.number == self.proposal.number]
        self._spis = (spis[0], self.proposal.spi)
        self.nonces = (_first(request, NoncePayload).data, _first(response, NoncePayload).data)

    def new_spis(self) -> tuple[bytes, bytes]:
        """Those of the IKE SA that takes the place of this one."""
        if any(len(spi) != SPI_SIZE for spi in self._spis):
            raise LookupError("no SPI of an IKE SA")
        return self._spis

    def shared_secret(self) -> bytes:
        return key_exchange(self._our_ke.method).shared_secret(self._their_ke.data)


def _first(payloads: tuple[Payload, ...], kind: type[P]) -> P:
    for payload in payloads:
        if isinstance(payload, kind):
            return payload
    raise LookupError(kind.__name__)
