"""EAP-MSCHAPv2 (draft-kamath-pppext-eap-mschapv2-02): both ends prove that they know a password.

A packet is an OpCode, an identifier of its own, a length and what the OpCode means; the peer's
answers to success and failure are an OpCode alone.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from enum import Enum, IntEnum, auto
from struct import Struct
from typing import ClassVar

from xfrmpy.eap.method import EapFailed, Random, Users
from xfrmpy.eap.mschap import CHALLENGE_SIZE, RESPONSE_SIZE, Challenges, Secret
from xfrmpy.eap.packet import EapType


class OpCode(IntEnum):
    """Section 2 of the draft."""

    CHALLENGE = 1
    RESPONSE = 2
    SUCCESS = 3
    FAILURE = 4


class _Step(Enum):
    BEGINNING = auto()
    CHALLENGED = auto()
    SUCCEEDED = auto()
    FAILED = auto()


_HEAD = Struct(">BBH")
_VALUE_SIZE = CHALLENGE_SIZE + 8 + RESPONSE_SIZE + 1
"""Of a response: the peer's challenge, eight octets reserved, the response, flags."""

_PROOF_SIZE = len("S=") + 40
_REFUSED = 691
"""ERROR_AUTHENTICATION_FAILURE (RFC 2759 section 6)."""


class Mschapv2Peer:
    """The peer's side. It is finished when the server has proved that it knows the password."""

    type: ClassVar[EapType] = EapType.MSCHAPV2

    def __init__(self, user: bytes, password: str, random: Random) -> None:
        self._user = user
        self._secret = Secret.of_password(password)
        self._random = random
        self._step = _Step.BEGINNING
        self._expected = b""
        self._response = b""

    @property
    def is_finished(self) -> bool:
        return self._step is _Step.SUCCEEDED

    @property
    def msk(self) -> bytes:
        return self._secret.msk(self._response) if self.is_finished else b""

    def respond(self, identifier: int, data: bytes) -> bytes:  # noqa: ARG002 (others need it)
        code, number, body = _take(data)
        match code, self._step:
            case OpCode.CHALLENGE, _Step.BEGINNING:
                return self._take_challenge(number, body)
            case OpCode.SUCCESS, _Step.CHALLENGED:
                return self._take_proof(body)
            case OpCode.FAILURE, _Step.CHALLENGED:
                self._step = _Step.FAILED
                return bytes([OpCode.FAILURE])
            case _:
                raise EapFailed(f"MSCHAPv2 {code.name} at the wrong time")

    def _take_challenge(self, number: int, body: bytes) -> bytes:
        if len(body) < 1 + CHALLENGE_SIZE or body[0] != CHALLENGE_SIZE:
            raise EapFailed("an MSCHAPv2 challenge has 16 octets")
        challenges = Challenges(
            authenticator=body[1 : 1 + CHALLENGE_SIZE],
            peer=self._random(CHALLENGE_SIZE),
            user=self._user,
        )
        self._response = self._secret.response(challenges)
        self._expected = self._secret.authenticator_response(challenges, self._response)
        self._step = _Step.CHALLENGED
        value = challenges.peer + bytes(8) + self._response + bytes(1)
        return _packet(OpCode.RESPONSE, number, bytes([_VALUE_SIZE]) + value + self._user)

    def _take_proof(self, body: bytes) -> bytes:
        """Without it somebody who does not know the password could seem to be the server."""
        if not hmac.compare_digest(body[:_PROOF_SIZE].upper(), self._expected):
            raise EapFailed("the server does not know the password")
        self._step = _Step.SUCCEEDED
        return bytes([OpCode.SUCCESS])


class Mschapv2Server:
    """The server's side. The user is whom the response names, and not the identity before it."""

    type: ClassVar[EapType] = EapType.MSCHAPV2

    def __init__(self, name: bytes, users: Users, random: Random) -> None:
        self._name = name
        self._users = users
        self._challenge = random(CHALLENGE_SIZE)
        self._nobodys = random(CHALLENGE_SIZE).hex()
        self._step = _Step.BEGINNING
        self._number = 0
        self.user = b""
        self._finished_msk: Callable[[], bytes] = bytes

    @property
    def msk(self) -> bytes:
        return self._finished_msk() if self._step is _Step.SUCCEEDED else b""

    def begin(self, identifier: int) -> bytes:
        self._number = identifier
        body = bytes([CHALLENGE_SIZE]) + self._challenge + self._name
        return _packet(OpCode.CHALLENGE, self._number, body)

    def judge(self, identifier: int, data: bytes) -> bytes | None:  # noqa: ARG002
        if self._step is _Step.BEGINNING:
            return self._judge_response(data)
        if self._step is _Step.CHALLENGED and data == bytes([OpCode.SUCCESS]):
            self._step = _Step.SUCCEEDED
            return None
        if self._step is _Step.FAILED:
            raise EapFailed("the MSCHAPv2 response is not that of the user's password")
        raise EapFailed("the peer does not take our proof")

    def _judge_response(self, data: bytes) -> bytes:
        code, number, body = _take(data)
        if code is not OpCode.RESPONSE or number != self._number:
            raise EapFailed(f"MSCHAPv2 {code.name} is no answer to the challenge")
        if len(body) <= 1 + _VALUE_SIZE or body[0] != _VALUE_SIZE:
            raise EapFailed("an MSCHAPv2 response has 49 octets, and a name")
        value, user = body[1 : 1 + _VALUE_SIZE], body[1 + _VALUE_SIZE :]
        peer, theirs = value[:CHALLENGE_SIZE], value[CHALLENGE_SIZE + 8 : -1]
        challenges = Challenges(authenticator=self._challenge, peer=peer, user=user)
        password = self._users(user)
        secret = Secret.of_password(password or self._nobodys)
        if not hmac.compare_digest(theirs, secret.response(challenges)) or not password:
            self._step = _Step.FAILED
            text = f"E={_REFUSED} R=0 C={self._challenge.hex().upper()} V=3 M=Authentication failed"
            return _packet(OpCode.FAILURE, self._number, text.encode())
        self._step, self.user = _Step.CHALLENGED, user
        self._finished_msk = lambda: secret.msk(theirs)
        proof = secret.authenticator_response(challenges, theirs)
        return _packet(OpCode.SUCCESS, self._number, proof + b" M=OK")


def _packet(code: OpCode, number: int, body: bytes) -> bytes:
    return _HEAD.pack(code, number, _HEAD.size + len(body)) + body


def _take(data: bytes) -> tuple[OpCode, int, bytes]:
    """A packet that is whole. Raises `EapFailed`."""
    if len(data) < _HEAD.size:
        raise EapFailed("an MSCHAPv2 packet is cut off")
    number, identifier, length = _HEAD.unpack_from(data)
    if length != len(data) or number not in [*OpCode]:
        raise EapFailed(f"an MSCHAPv2 packet of {len(data)} octets says {number}, {length} octets")
    return OpCode(number), identifier, data[_HEAD.size :]
