"""TLS without sockets (RFC 8446, 5246): what EAP-TLS, EAP-TTLS and PEAP are made of.

The protocol is OpenSSL's, through pyOpenSSL, for the ssl module of Python 3.11 exports no keys (RFC
5705). It is imported with the first tunnel. TLS 1.2 with ephemeral keys and AEAD, or 1.3; nothing
is renegotiated or compressed, nor resumed: no session is kept, whatever a ticket of OpenSSL's may
say. Randomness is OpenSSL's own, so a run does not repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key

from xfrmpy.eap.method import EapFailed
from xfrmpy.eap.packet import EapType

if TYPE_CHECKING:
    from OpenSSL import SSL

Verify: TypeAlias = Callable[[tuple[bytes, ...]], bytes]
"""Whom a peer's certificates (DER, leaf first) prove it to be. Raises `EapFailed`."""

CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2; those of 1.3 are all of this kind."""

MSK_SIZE = 64
_MATERIAL_SIZE = 128
"""MSK and EMSK (RFC 5216 section 2.3)."""

_LABEL = b"EXPORTER_EAP_TLS_Key_Material"
"""For TLS 1.3, with the method's type as context (RFC 9190 section 2.3, RFC 9427)."""

_OLD_LABELS = {
    EapType.TLS: b"client EAP encryption",
    EapType.TTLS: b"ttls keying material",
    EapType.PEAP: b"client EAP encryption",
}
"""For TLS 1.2: RFC 5216 section 2.3, RFC 5281 section 8, [MS-PEAP]."""

_READ_SIZE = 16384


class TlsVersion(IntEnum):
    """As TLS writes them."""

    TLS12 = 0x0303
    TLS13 = 0x0304


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsKey:
    """Certificates (DER, leaf first, without the anchor) for a private key, PKCS #8 in DER."""

    certificates: tuple[bytes, ...]
    pkcs8: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsTrust:
    """By whom the other end is to be known. No store of the system is ever looked at.

    OpenSSL wants a path to one of `anchors` (DER) that is valid at `now`, so that a wrong end is
    told so by TLS; `verify` is asked before anything more goes out.
    """

    anchors: tuple[bytes, ...] = field(repr=False)
    verify: Verify = field(repr=False)
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsEnd:
    """One end's part. A client must have `trust`, a server `key`.

    A client that has a `key` shows its certificate if it is asked; a server that has `trust` wants
    one, and refuses who has none.
    """

    key: TlsKey | None = None
    trust: TlsTrust | None = None
    newest: TlsVersion = TlsVersion.TLS13


class Tunnel:
    """One connection of TLS. It is open when the other end has proved who it is."""

    def __init__(self, end: TlsEnd, *, is_server: bool) -> None:
        if (end.key if is_server else end.trust) is None:
            raise EapFailed("a TLS server without a key, or a client that trusts nobody")
        # 0.1 s, and only those who use TLS have it.
        from OpenSSL import SSL, crypto  # noqa: PLC0415

        self._ssl = SSL
        self._trust = end.trust
        try:
            self._connection = SSL.Connection(_context(end), None)
        except (SSL.Error, crypto.Error) as error:
            raise EapFailed(f"our key or anchors are of no use: {_reason(error)}") from error
        if is_server:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()
        self.is_open = False
        self.peer = b""

    @property
    def is_tls13(self) -> bool:
        return self._connection.get_protocol_version() == TlsVersion.TLS13

    def advance(self, octets: bytes) -> tuple[bytes, bytes]:
        """What the octets of a message hold in clear, and what TLS itself wants to have sent.

        Raises `EapFailed`; the connection is then of no use any more.
        """
        plain = b""
        try:
            if octets:
                self._connection.bio_write(octets)
            if not self.is_open:
                self._shake_hands()
            if self.is_open:
                plain = self._read()
        except self._ssl.ZeroReturnError as error:
            raise EapFailed("the other end has closed TLS") from error
        except self._ssl.Error as error:
            raise EapFailed(f"TLS has failed: {_reason(error)}") from error
        return plain, self._outgoing()

    def seal(self, plain: bytes) -> bytes:
        """What is to be sent so that the other end reads `plain`."""
        assert self.is_open
        if plain:
            self._connection.sendall(plain)
        return self._outgoing()

    def export(self, label: bytes, size: int, context: bytes | None = None) -> bytes:
        """Keying material (RFC 5705, RFC 8446 section 7.5)."""
        assert self.is_open
        return self._connection.export_keying_material(label, size, context)

    def msk(self, method: EapType) -> bytes:
        """The MSK of a method that has ended well: 64 octets."""
        if self.is_tls13:
            material = self.export(_LABEL, _MATERIAL_SIZE, bytes([method]))
        else:
            material = self.export(_OLD_LABELS[method], _MATERIAL_SIZE)
        return material[:MSK_SIZE]

    def _shake_hands(self) -> None:
        finished = True
        try:
            self._connection.do_handshake()
        except self._ssl.WantReadError:
            finished = False
        self._verify(finished)
        self.is_open = finished

    def _verify(self, finished: bool) -> None:
        """As soon as there are certificates, so before our own, or a password, is shown to them."""
        if self._trust is None or self.peer:
            return
        chain = self._chain()
        if chain:
            self.peer = self._trust.verify(chain)
        elif finished:
            raise EapFailed("the other end has shown no certificate")

    def _chain(self) -> tuple[bytes, ...]:
        """Leaf first; OpenSSL leaves it out of the chain that a server has received."""
        leaf = self._connection.get_peer_certificate(as_cryptography=True)
        if leaf is None:
            return ()
        chain = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        ders = (c.public_bytes(Encoding.DER) for c in (leaf, *chain))
        return tuple(dict.fromkeys(ders))

    def _read(self) -> bytes:
        parts = []
        try:
            while True:
                parts.append(self._connection.recv(_READ_SIZE))
        except self._ssl.WantReadError:
            return b"".join(parts)

    def _outgoing(self) -> bytes:
        parts = []
        try:
            while True:
                parts.append(self._connection.bio_read(_READ_SIZE))
        except self._ssl.WantReadError:
            return b"".join(parts)


def _context(end: TlsEnd) -> SSL.Context:
    from OpenSSL import SSL  # noqa: PLC0415

    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(TlsVersion.TLS12)
    context.set_max_proto_version(end.newest)
    context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET)
    # strongSwan has no RFC 5746 for TLS 1.2, but then it never renegotiates, no more than we do.
    context.set_options(SSL.OP_LEGACY_SERVER_CONNECT)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_cipher_list(CIPHERS)
    if end.key is not None:
        leaf, *others = map(x509.load_der_x509_certificate, end.key.certificates)
        context.use_certificate(leaf)
        # Whatever is no key of a certificate is refused here.
        context.use_privatekey(load_der_private_key(end.key.pkcs8, None))  # type: ignore[arg-type]
        for certificate in others:
            context.add_extra_chain_cert(certificate)
    if end.trust is not None:
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        _trust(context, end.trust)
    return context


def _trust(context: SSL.Context, trust: TlsTrust) -> None:
    from OpenSSL import crypto  # noqa: PLC0415

    store = context.get_cert_store()
    assert store is not None
    for der in trust.anchors:
        store.add_cert(crypto.X509.from_cryptography(x509.load_der_x509_certificate(der)))
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    store.set_time(trust.now.astimezone(UTC))


def _reason(error: Exception) -> str:
    """OpenSSL's words for the first failure."""
    details = error.args[0] if error.args else None
    if isinstance(details, list) and details:
        return str(details[0][-1])
    return str(error) or type(error).__name__
