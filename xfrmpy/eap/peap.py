"""PEAP version 0 ([MS-PEAP]): TLS with the server's certificate, and EAP inside.

The packets inside have no heads but those of the extensions method (type 33), whose TLVs say at the
end, protected, how it has ended. No cryptobinding: whose tunnel it is the certificate has proved.
FreeRADIUS writes the question who we are with its head; both are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from struct import Struct
from typing import ClassVar

from xfrmpy.eap.method import EapFailed, PeerMethod, ServerMethod
from xfrmpy.eap.packet import EapCode, EapMalformed, EapPacket, EapType, decode_eap_untrusted
from xfrmpy.eap.peer import EapPeer
from xfrmpy.eap.server import EapServer, ServerState
from xfrmpy.eap.tls import TlsEnd
from xfrmpy.eap.tunnelled import TunnelPeer, TunnelServer

_TLV = Struct(">HH")
_MANDATORY = 0x8000
_RESULT = 3
_HEAD_SIZE = 4


class Result(IntEnum):
    """Of the Result TLV of [MS-PEAP]."""

    SUCCESS = 1
    FAILURE = 2


class PeapPeer(TunnelPeer):
    """The peer's side. The identity outside can be anybody's: who we are is said inside."""

    type: ClassVar[EapType] = EapType.PEAP

    def __init__(
        self, end: TlsEnd, identity: bytes, methods: Sequence[Callable[[], PeerMethod]]
    ) -> None:
        super().__init__(end)
        self._inside = EapPeer(identity, methods)
        self._is_told = False

    def _has_proof(self) -> bool:
        return self._is_told

    def _speak(self, plain: bytes) -> bytes:
        if not plain:
            return b""
        if self._is_told:
            raise EapFailed("the server has more to say, and all was said")
        request = _with_head(plain, EapCode.REQUEST, self._identifier)
        if request.type == EapType.EXTENSIONS:
            return self._conclude(request)
        response = self._inside.handle(request.encode())
        assert response is not None  # only to EAP-Success, which is none of these
        return response[_HEAD_SIZE:]

    def _conclude(self, request: EapPacket) -> bytes:
        """Success only if the method inside has had all its proofs."""
        if decode_result_untrusted(request.data) is not Result.SUCCESS:
            raise EapFailed("the server refuses us inside the tunnel")
        success = EapPacket(code=EapCode.SUCCESS, identifier=request.identifier)
        self._inside.handle(success.encode())
        self._is_told = True
        return _extensions(EapCode.RESPONSE, request.identifier, Result.SUCCESS)


class PeapServer(TunnelServer):
    """The server's side. `methods` are those inside, whose answers need no identifier.

    The user is who is proved inside.
    """

    type: ClassVar[EapType] = EapType.PEAP

    def __init__(
        self, end: TlsEnd, methods: Sequence[Callable[[bytes], ServerMethod]], first_id: int
    ) -> None:
        super().__init__(end)
        self._inside = EapServer(methods, first_id)
        self._asked = b""

    @property
    def user(self) -> bytes:
        outcome = self._inside.outcome
        return b"" if outcome is None else outcome.identity

    def _speak(self, plain: bytes) -> bytes:
        if not self._asked:
            if plain:
                raise EapFailed("the peer of PEAP speaks first")
            return self._ask(self._inside.begin())
        if not plain:
            raise EapFailed("the peer does not answer inside the tunnel")
        response = _with_head(plain, EapCode.RESPONSE, self._asked[1])
        if self._inside.outcome is not None:
            self._conclude(response)
            return b""
        further = self._inside.handle(response.encode())
        if self._inside.state is ServerState.FAILED:
            raise EapFailed(f"inside the tunnel: {self._inside.failure}")
        if self._inside.outcome is None:
            return self._ask(further)
        return _extensions(EapCode.REQUEST, further[1], Result.SUCCESS)

    def _ask(self, request: bytes) -> bytes:
        self._asked = request
        return request[_HEAD_SIZE:]

    def _conclude(self, response: EapPacket) -> None:
        if (
            response.type != EapType.EXTENSIONS
            or decode_result_untrusted(response.data) is not Result.SUCCESS
        ):
            raise EapFailed("the peer does not agree that it has succeeded")
        self._is_done = True


def decode_result_untrusted(octets: bytes) -> Result:
    """The one result among the TLVs of the extensions method. Raises `EapMalformed`."""
    results = [value for kind, value in _tlvs(octets) if kind == _RESULT]
    if len(results) != 1 or len(results[0]) != 2:
        raise EapMalformed("PEAP's extensions have no result, or several")
    number = int.from_bytes(results[0])
    if number not in [*Result]:
        raise EapMalformed(f"PEAP has a result of {number}")
    return Result(number)


def _tlvs(octets: bytes) -> Iterator[tuple[int, bytes]]:
    while octets:
        if len(octets) < _TLV.size:
            raise EapMalformed("a TLV of PEAP ends in its head")
        word, length = _TLV.unpack_from(octets)
        end = _TLV.size + length
        if end > len(octets):
            raise EapMalformed(f"a TLV of PEAP of {end} octets, where {len(octets)} are left")
        if word & _MANDATORY and word & ~_MANDATORY != _RESULT:
            raise EapMalformed(f"a mandatory TLV {word & ~_MANDATORY} of PEAP is unknown")
        yield word & ~_MANDATORY, octets[_TLV.size : end]
        octets = octets[end:]


def _extensions(code: EapCode, identifier: int, result: Result) -> bytes:
    tlv = _TLV.pack(_MANDATORY | _RESULT, 2) + result.to_bytes(2)
    return EapPacket(code=code, identifier=identifier, type=EapType.EXTENSIONS, data=tlv).encode()


def _with_head(plain: bytes, code: EapCode, identifier: int) -> EapPacket:
    """The packet that is meant: none without a head begins as one with it, and its length."""
    has_head = (
        len(plain) > _HEAD_SIZE
        and plain[0] == code
        and int.from_bytes(plain[2:_HEAD_SIZE]) == len(plain)
        and plain[_HEAD_SIZE] in (EapType.IDENTITY, EapType.EXTENSIONS)
    )
    if has_head:
        return decode_eap_untrusted(plain)
    return EapPacket(code=code, identifier=identifier, type=EapType(plain[0]), data=plain[1:])
