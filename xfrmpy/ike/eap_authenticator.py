"""Who decides, with a responder, whether a user has proved who it is by EAP: we, or an AAA server.

Either is an `Authenticator`: packets of the peer go in, and a `Verdict` comes out, at once or, from
somebody who is asked (`AskAaa`), by `IkeEndpoint.handle_verdict`. What a verdict means to the IKE
SA is the business of `eap_responder`; that the peer has the key too, that of AUTH behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from xfrmpy.eap.method import EapFailed, Outcome
from xfrmpy.eap.packet import EapCode, EapMalformed, EapPacket, EapType, decode_eap_untrusted
from xfrmpy.eap.server import MAX_IDENTITY, EapServer, ServerState
from xfrmpy.ike.eap_methods import server_methods
from xfrmpy.ike.outputs import AskAaa
from xfrmpy.policy.model import EapAcceptance, TunnelPolicy

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """The peer is to be asked this; an EAP request, whole."""

    packet: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A user has proved who it is; `packet` is the EAP success.

    `groups` are those that the user is in, and after `session_seconds` who it is must be proved
    again, None: whenever policy says; both as an AAA server has them.
    """

    packet: bytes
    outcome: Outcome
    groups: tuple[str, ...] = ()
    session_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Nobody has; `packet` is the EAP failure, `reason` for our operator alone.

    `user` is who the peer said it is, if it did. An AAA server that could not be asked is another
    failure: `is_unreachable`.
    """

    packet: bytes
    reason: str
    user: bytes = b""
    is_unreachable: bool = False


Verdict: TypeAlias = Challenge | Accepted | Refused


class Authenticator(Protocol):
    """One authentication of one peer."""

    @property
    def user(self) -> bytes:
        """Who the peer says it is; empty before it has."""

    def begin(self) -> bytes:
        """The first request to the peer, whole."""

    def handle(self, packet: bytes) -> Verdict | None:
        """What comes of an EAP packet of the peer; None if that is not known yet."""


def authenticator_of(sa: IkeSa, tunnel: TunnelPolicy) -> Authenticator:
    """Who decides, by the policy of a tunnel that accepts EAP."""
    acceptance = tunnel.remote_eap
    assert acceptance is not None
    if acceptance.server:
        return AaaAuthenticator(sa, tunnel.name, acceptance.server)
    return LocalAuthenticator(sa, acceptance)


def failure_packet(packet: bytes) -> bytes:
    """The EAP failure that answers a packet of the peer (RFC 3748 section 4.2)."""
    return EapPacket(code=EapCode.FAILURE, identifier=packet[1] if len(packet) > 1 else 0).encode()


class LocalAuthenticator:
    """By methods of ours and users that we know."""

    def __init__(self, sa: IkeSa, acceptance: EapAcceptance) -> None:
        random = sa.core.random
        self._server = EapServer(server_methods(acceptance, random), random(1)[0])

    @property
    def user(self) -> bytes:
        return self._server.identity

    def begin(self) -> bytes:
        return self._server.begin()

    def handle(self, packet: bytes) -> Verdict:
        server = self._server
        answer = server.handle(packet)
        if server.outcome is not None:
            return Accepted(packet=answer, outcome=server.outcome)
        if server.state is ServerState.FAILED:
            return Refused(packet=answer, reason=server.failure, user=server.identity)
        return Challenge(packet=answer)


class AaaAuthenticator:
    """By an AAA server, to which all that the peer says behind its identity is passed on."""

    def __init__(self, sa: IkeSa, tunnel: str, server: str) -> None:
        self._sa = sa
        self._tunnel = tunnel
        self._server = server
        self._identifier = sa.core.random(1)[0]
        self.user = b""
        self._rounds = 0

    def begin(self) -> bytes:
        request = EapPacket(
            code=EapCode.REQUEST, identifier=self._identifier, type=EapType.IDENTITY
        )
        return request.encode()

    def handle(self, packet: bytes) -> Verdict | None:
        try:
            self._check(decode_eap_untrusted(packet))
        except (EapFailed, EapMalformed) as error:
            return Refused(packet=failure_packet(packet), reason=str(error), user=self.user)
        self._rounds += 1
        self._sa.core.emit(
            AskAaa(
                tunnel=self._tunnel,
                server=self._server,
                session=self._sa.our_spi,
                round=self._rounds,
                user=self.user,
                packet=packet,
                path=self._sa.path,
            )
        )
        return None

    def is_awaited(self, round_: int) -> bool:
        """Whether a verdict is the one on the peer's newest packet."""
        return round_ == self._rounds

    def _check(self, response: EapPacket) -> None:
        if response.code is not EapCode.RESPONSE:
            raise EapFailed(f"{response.code.name} is no answer to us")
        if self.user:
            return
        is_ours = response.identifier == self._identifier and response.type == EapType.IDENTITY
        if not is_ours or not 0 < len(response.data) <= MAX_IDENTITY:
            raise EapFailed("the peer does not say who it is")
        self.user = response.data
