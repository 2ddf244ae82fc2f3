"""EAP-TTLS version 0 (RFC 5281): TLS with the server's certificate, and attributes inside.

What is inside proves the peer: a password as it is (PAP), MSCHAPv2, or a method of EAP. The peer
speaks first, and says nothing before the tunnel is open.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

from xfrmpy.eap.avps import Avp, AvpType, decode_avps_untrusted, encode_avps
from xfrmpy.eap.method import EapFailed, PeerMethod, Random, ServerMethod, Users
from xfrmpy.eap.mschap import CHALLENGE_SIZE, RESPONSE_SIZE, Challenges, Secret
from xfrmpy.eap.packet import EapCode, EapPacket, EapType
from xfrmpy.eap.peer import EapPeer
from xfrmpy.eap.server import EapServer, ServerState
from xfrmpy.eap.tls import TlsEnd, Tunnel
from xfrmpy.eap.tunnelled import TunnelPeer, TunnelServer

_CHALLENGE_LABEL = b"ttls challenge"
_PASSWORD_BLOCK = 16
_VALUE_SIZE = 2 + CHALLENGE_SIZE + 8 + RESPONSE_SIZE
"""Of MS-CHAP2-Response: identifier, flags, challenge, eight octets reserved, response."""


class TtlsInside(Protocol):
    """How the peer proves who it is; finished when the server may say that we have succeeded."""

    @property
    def is_finished(self) -> bool: ...

    def begin(self, tunnel: Tunnel) -> Iterable[Avp]:
        """What is said first."""

    def handle(self, avps: Sequence[Avp]) -> Iterable[Avp]:
        """What is said to the server's attributes. Raises `EapFailed`."""


class TtlsPeer(TunnelPeer):
    """The peer's side. The identity outside can be anybody's: who we are is said inside."""

    type: ClassVar[EapType] = EapType.TTLS

    def __init__(self, end: TlsEnd, inside: TtlsInside) -> None:
        super().__init__(end)
        self._inside = inside
        self._has_begun = False

    def _has_proof(self) -> bool:
        return self._inside.is_finished

    def _speak(self, plain: bytes) -> bytes:
        if not self._has_begun:
            if plain:
                raise EapFailed("the server of EAP-TTLS speaks first")
            self._has_begun = True
            return encode_avps(self._inside.begin(self._tunnel))
        if not plain:
            return b""
        return encode_avps(self._inside.handle(decode_avps_untrusted(plain)))


class PapInside:
    """RFC 5281 section 11.2.5: the password, with zeros that hide its length."""

    def __init__(self, user: bytes, password: str) -> None:
        self._user = user
        self._password = password.encode()
        self.is_finished = False

    def begin(self, tunnel: Tunnel) -> Iterable[Avp]:  # noqa: ARG002 (others need it)
        self.is_finished = True
        padded = self._password + bytes(-len(self._password) % _PASSWORD_BLOCK)
        return Avp(AvpType.USER_NAME, self._user), Avp(AvpType.USER_PASSWORD, padded)

    def handle(self, avps: Sequence[Avp]) -> Iterable[Avp]:
        if any(avp.type is not AvpType.REPLY_MESSAGE for avp in avps):
            raise EapFailed("the server of PAP has a question")
        return ()


class Mschapv2Inside:
    """RFC 5281 section 11.2.4: both ends know the challenge by the tunnel's keys."""

    def __init__(self, user: bytes, password: str, random: Random) -> None:
        self._user = user
        self._secret = Secret.of_password(password)
        self._random = random
        self._expected = b""
        self.is_finished = False

    def begin(self, tunnel: Tunnel) -> Iterable[Avp]:
        implicit = _Challenge.of(tunnel)
        challenges = Challenges(
            authenticator=implicit.octets, peer=self._random(CHALLENGE_SIZE), user=self._user
        )
        response = self._secret.response(challenges)
        proof = self._secret.authenticator_response(challenges, response)
        self._expected = implicit.identifier + proof
        value = implicit.identifier + bytes(1) + challenges.peer + bytes(8) + response
        return (
            Avp(AvpType.USER_NAME, self._user),
            Avp(AvpType.MS_CHAP_CHALLENGE, implicit.octets),
            Avp(AvpType.MS_CHAP2_RESPONSE, value),
        )

    def handle(self, avps: Sequence[Avp]) -> Iterable[Avp]:
        proof = _only(avps, AvpType.MS_CHAP2_SUCCESS)
        if proof is None:
            raise EapFailed("the server refuses our MSCHAPv2 response")
        if self.is_finished or not hmac.compare_digest(
            proof[: len(self._expected)], self._expected
        ):
            raise EapFailed("the server does not know the user's password")
        self.is_finished = True
        return ()


class EapInside:
    """RFC 5281 section 11.2.1: EAP again, which begins with our identity, unasked."""

    def __init__(self, identity: bytes, methods: Sequence[Callable[[], PeerMethod]]) -> None:
        self._peer = EapPeer(identity, methods)

    @property
    def is_finished(self) -> bool:
        return self._peer.is_ready

    def begin(self, tunnel: Tunnel) -> Iterable[Avp]:  # noqa: ARG002 (others need it)
        question = EapPacket(code=EapCode.REQUEST, identifier=0, type=EapType.IDENTITY)
        return self._answer(question.encode())

    def handle(self, avps: Sequence[Avp]) -> Iterable[Avp]:
        packet = _eap_message(avps)
        if not packet:
            raise EapFailed("the server says nothing that is EAP")
        return self._answer(packet)

    def _answer(self, packet: bytes) -> Iterable[Avp]:
        response = self._peer.handle(packet)
        return () if response is None else (Avp(AvpType.EAP_MESSAGE, response),)


Methods: TypeAlias = Sequence[Callable[[bytes], ServerMethod]]


class TtlsServer(TunnelServer):
    """The server's side: whatever of the three the peer begins with. `methods` are EAP's, inside.

    The user is who is named and proved inside.
    """

    type: ClassVar[EapType] = EapType.TTLS

    def __init__(self, end: TlsEnd, users: Users, methods: Methods, random: Random) -> None:
        super().__init__(end)
        self._users = users
        self._methods = methods
        self._nobodys = random(_PASSWORD_BLOCK).hex()
        self._eap: EapServer | None = None
        self._is_proved = False
        self._user = b""

    @property
    def user(self) -> bytes:
        return self._user

    def _speak(self, plain: bytes) -> bytes:
        if self._is_proved:
            if plain:
                raise EapFailed("the peer has more to say, and all was said")
            self._is_done = True
            return b""
        if not plain:
            return b""
        avps = decode_avps_untrusted(plain)
        if packet := _eap_message(avps):
            return encode_avps(self._ask(packet))
        if self._eap is not None:
            raise EapFailed("the peer leaves EAP for something else")
        user = _only(avps, AvpType.USER_NAME) or b""
        password = _only(avps, AvpType.USER_PASSWORD)
        if password is not None:
            self._judge_password(user, password)
            return b""
        return encode_avps(self._judge_response(user, avps))

    def _ask(self, packet: bytes) -> Iterable[Avp]:
        if self._eap is None:
            # The peer has answered a question that nobody has asked, with a number of its choice.
            first = packet[1] if len(packet) > 1 else 0
            self._eap = EapServer(self._methods, first_id=first - 1)
            self._eap.begin()
        further = self._eap.handle(packet)
        if self._eap.state is ServerState.FAILED:
            raise EapFailed(f"inside the tunnel: {self._eap.failure}")
        if self._eap.outcome is None:
            return (Avp(AvpType.EAP_MESSAGE, further),)
        self._user, self._is_done = self._eap.outcome.identity, True
        return ()

    def _judge_password(self, user: bytes, padded: bytes) -> None:
        known = self._users(user)
        right = (known or self._nobodys).encode()
        if not hmac.compare_digest(padded.rstrip(b"\0"), right) or not known:
            raise EapFailed("the password is not that of the user")
        self._user, self._is_done = user, True

    def _judge_response(self, user: bytes, avps: Sequence[Avp]) -> Iterable[Avp]:
        implicit = _Challenge.of(self._tunnel)
        value = _only(avps, AvpType.MS_CHAP2_RESPONSE)
        theirs = _only(avps, AvpType.MS_CHAP_CHALLENGE)
        if value is None or theirs is None or len(value) != _VALUE_SIZE:
            raise EapFailed("neither a password nor a whole MSCHAPv2 response, nor EAP")
        if not hmac.compare_digest(theirs + value[:1], implicit.octets + implicit.identifier):
            raise EapFailed("the MSCHAPv2 challenge is not that of the tunnel")
        challenges = Challenges(
            authenticator=implicit.octets, peer=value[2 : 2 + CHALLENGE_SIZE], user=user
        )
        password = self._users(user)
        secret = Secret.of_password(password or self._nobodys)
        response = value[-RESPONSE_SIZE:]
        if not hmac.compare_digest(response, secret.response(challenges)) or not password:
            raise EapFailed("the MSCHAPv2 response is not that of the user's password")
        self._user, self._is_proved = user, True
        proof = secret.authenticator_response(challenges, response)
        return (Avp(AvpType.MS_CHAP2_SUCCESS, implicit.identifier + proof),)


@dataclass(frozen=True, slots=True)
class _Challenge:
    """RFC 5281 section 11.1, and with TLS 1.3 RFC 9427: what nobody can choose."""

    octets: bytes
    identifier: bytes

    @classmethod
    def of(cls, tunnel: Tunnel) -> _Challenge:
        material = tunnel.export(_CHALLENGE_LABEL, CHALLENGE_SIZE + 1)
        return cls(material[:CHALLENGE_SIZE], material[CHALLENGE_SIZE:])


def _only(avps: Sequence[Avp], kind: AvpType) -> bytes | None:
    found = [avp.data for avp in avps if avp.type is kind]
    if len(found) > 1:
        raise EapFailed(f"{kind.name} comes {len(found)} times")
    return found[0] if found else None


def _eap_message(avps: Sequence[Avp]) -> bytes:
    """One packet; it may come in several attributes, as RADIUS has them."""
    return b"".join(avp.data for avp in avps if avp.type is AvpType.EAP_MESSAGE)
