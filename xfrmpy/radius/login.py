"""One user's authentication by a RADIUS server: EAP packets to it and from it, and what it grants.

The server judges; here is decided only whether what it says makes sense (RFC 3579 section 2.6.3):
who is accepted has an EAP Success, who is refused no word of that, and keys come with acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from xfrmpy.eap.packet import EapCode, EapMalformed, EapPacket, EapType, decode_eap_untrusted
from xfrmpy.radius.attributes import (
    MAX_VALUE,
    MICROSOFT,
    NAS_PORT_VIRTUAL,
    SERVICE_FRAMED,
    Attribute,
    Code,
    Kind,
    MicrosoftKind,
    eap_attributes,
    values_of,
)
from xfrmpy.radius.packet import Reply

MAX_ROUNDS = 64
"""Requests of one authentication: a long chain of certificates comes in pieces of a kilobyte."""

FRAMED_MTU = 1400
"""Octets of an EAP packet that the server may send; IKE would carry more, and fragments it."""

MSK_SIZE = 64
"""Octets (RFC 3748 section 7.10); what a method's keys leave open is zero, as in MSCHAPv2."""

_REAUTHENTICATE = 1  # RFC 2865 section 5.29, RADIUS-Request
_NO_ADDRESS = {IPv4Address("255.255.255.255"), IPv4Address("255.255.255.254")}  # section 5.8


class LoginFailed(Exception):
    """The user does not come in; the sentence is for our operator alone."""


class ServersSilent(LoginFailed):
    """No server could be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nas:
    """Who asks for the user, and where the user comes from (RFC 2865 section 5)."""

    identifier: str
    our_address: IPv4Address | IPv6Address
    called: str = ""
    calling: str = ""

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        stations = ((Kind.CALLED_STATION_ID, self.called), (Kind.CALLING_STATION_ID, self.calling))
        return (
            Attribute.of_address(Kind.NAS_IP_ADDRESS, Kind.NAS_IPV6_ADDRESS, self.our_address),
            Attribute.text(Kind.NAS_IDENTIFIER, self.identifier),
            Attribute.number(Kind.NAS_PORT_TYPE, NAS_PORT_VIRTUAL),
            *(Attribute.text(kind, text) for kind, text in stations if text),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an Access-Accept gives to a user.

    `user` is whom the server names, or else who the peer said it is: the server has proved it, by
    `method`.
    `session_seconds` end the session, or with `reauthenticates` ask for another authentication.
    """

    user: bytes
    eap: bytes
    method: EapType
    msk: bytes = field(default=b"", repr=False)
    classes: tuple[bytes, ...] = ()
    address: IPv4Address | None = None
    address6: IPv6Address | None = None
    prefix6: IPv6Network | None = None
    session_seconds: int | None = None
    reauthenticates: bool = False
    idle_seconds: int | None = None
    interim_seconds: int | None = None
    message: str = ""

    @property
    def groups(self) -> tuple[str, ...]:
        """The classes that are text: by them a policy tells users apart."""
        return tuple(c.decode() for c in self.classes if c.isascii() and c.decode().isprintable())


class Login:
    """One authentication, of a peer that a NAS speaks for.

    `request` makes an Access-Request of each EAP response of the peer, `handle` says what the
    server's answer is: the next EAP request, or the `Grant`. Raises `LoginFailed`, for good.
    `server` is the only one to be asked further, and `method` what it has asked for last.
    """

    def __init__(self, nas: Nas) -> None:
        self._nas = nas
        self._identity = b""
        self._states: tuple[bytes, ...] = ()
        self._rounds = 0
        self.server: int | None = None
        self.method: EapType | None = None

    @property
    def identity(self) -> bytes:
        """Who the peer says it is."""
        return self._identity

    def request(self, response: bytes) -> tuple[Attribute, ...]:
        """The attributes of an Access-Request; the first response is the peer's Identity.

        RFC 3579 section 2.1: the NAS "MUST copy the contents of the Type-Data field of the
        EAP-Response/Identity [...] into the User-Name attribute".
        """
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            raise LoginFailed(f"more than {MAX_ROUNDS} rounds")
        try:
            packet = decode_eap_untrusted(response)
        except EapMalformed as error:
            raise LoginFailed(f"the peer's EAP packet is none: {error}") from error
        if packet.code is not EapCode.RESPONSE:
            raise LoginFailed(f"the peer sends {packet.code.name}, which is no response")
        if not self._identity:
            if packet.type != EapType.IDENTITY or not 0 < len(packet.data) <= MAX_VALUE:
                raise LoginFailed("the peer does not say who it is")
            self._identity = packet.data
        return (
            Attribute(type=Kind.USER_NAME, value=self._identity),
            *self._nas.attributes,
            Attribute.number(Kind.SERVICE_TYPE, SERVICE_FRAMED),
            Attribute.number(Kind.FRAMED_MTU, FRAMED_MTU),
            *eap_attributes(response),
            *(Attribute(type=Kind.STATE, value=state) for state in self._states),
        )

    def handle(self, server: int, reply: Reply) -> bytes | Grant:
        """The peer's next EAP request, or what it is granted. Raises `LoginFailed`."""
        eap = b"".join(values_of(reply.attributes, Kind.EAP_MESSAGE))
        match reply.code:
            case Code.ACCESS_CHALLENGE:
                self.method = _require(eap, EapCode.REQUEST, "challenges").type
                self.server = server  # What State means only that one knows.
                self._states = values_of(reply.attributes, Kind.STATE)
                return eap
            case Code.ACCESS_ACCEPT:
                _require(eap, EapCode.SUCCESS, "accepts")
                if self.method is None:
                    raise LoginFailed("the server accepts who has proved nothing")
                return _grant(self._identity, eap, self.method, reply.attributes)
            case _:
                raise LoginFailed(_refusal(reply.attributes))


def _require(eap: bytes, code: EapCode, does: str) -> EapPacket:
    try:
        found = decode_eap_untrusted(eap)
    except EapMalformed as error:
        raise LoginFailed(f"the server {does}, and its EAP packet is none: {error}") from error
    if found.code is not code:
        raise LoginFailed(f"the server {does}, and says {found.code.name}")
    return found


def _refusal(attributes: Sequence[Attribute]) -> str:
    words = _message(attributes)
    return f"the server refuses the user: {words}" if words else "the server refuses the user"


def _message(attributes: Sequence[Attribute]) -> str:
    """What a server wants to be shown, on one line: it may be anything."""
    text = b"".join(values_of(attributes, Kind.REPLY_MESSAGE)).decode(errors="replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()[:MAX_VALUE]


def _grant(identity: bytes, eap: bytes, method: EapType, attributes: Sequence[Attribute]) -> Grant:
    names = values_of(attributes, Kind.USER_NAME)
    seconds = _number(attributes, Kind.SESSION_TIMEOUT)
    return Grant(
        user=names[0] if names and names[0] else identity,
        eap=eap,
        method=method,
        msk=_msk(attributes),
        classes=values_of(attributes, Kind.CLASS),
        address=_address(attributes),
        address6=_address6(attributes),
        prefix6=_prefix6(attributes),
        session_seconds=seconds,
        reauthenticates=_number(attributes, Kind.TERMINATION_ACTION) == _REAUTHENTICATE,
        idle_seconds=_number(attributes, Kind.IDLE_TIMEOUT),
        interim_seconds=_number(attributes, Kind.ACCT_INTERIM_INTERVAL),
        message=_message(attributes),
    )


def _msk(attributes: Sequence[Attribute]) -> bytes:
    """What the NAS receives with is the first half (RFC 3748 section 7.10, RFC 2548 section 2.4).

    Both keys or none: half a key would be one that somebody may know.
    """
    halves = [
        values_of(attributes, (MICROSOFT, kind))
        for kind in (MicrosoftKind.MPPE_RECV_KEY, MicrosoftKind.MPPE_SEND_KEY)
    ]
    if halves == [(), ()]:
        return b""
    if any(len(half) != 1 for half in halves):
        raise LoginFailed("the server accepts with one of two keys, or with several")
    return (halves[0][0] + halves[1][0]).ljust(MSK_SIZE, b"\0")


def _number(attributes: Sequence[Attribute], kind: Kind) -> int | None:
    value = _one(attributes, kind)
    if value is None:
        return None
    if len(value) != 4:
        raise LoginFailed(f"the server's {kind.name} has {len(value)} octets")
    return int.from_bytes(value, "big")


def _address(attributes: Sequence[Attribute]) -> IPv4Address | None:
    """None, too, where the server leaves it to us or to the user (RFC 2865 section 5.8)."""
    value = _number(attributes, Kind.FRAMED_IP_ADDRESS)
    address = None if value is None else IPv4Address(value)
    return None if address in _NO_ADDRESS else address


def _address6(attributes: Sequence[Attribute]) -> IPv6Address | None:
    value = _one(attributes, Kind.FRAMED_IPV6_ADDRESS)
    if value is not None and len(value) != 16:
        raise LoginFailed(f"the server's FRAMED_IPV6_ADDRESS has {len(value)} octets")
    return None if value is None else IPv6Address(value)


def _prefix6(attributes: Sequence[Attribute]) -> IPv6Network | None:
    """RFC 3162 section 2.3: a reserved octet, the length, and no more octets than it takes."""
    value = _one(attributes, Kind.FRAMED_IPV6_PREFIX)
    if value is None:
        return None
    if not 2 <= len(value) <= 18 or value[1] > 128:
        raise LoginFailed("the server's FRAMED_IPV6_PREFIX is none")
    return IPv6Network((value[2:].ljust(16, b"\0"), value[1]), strict=False)


def _one(attributes: Sequence[Attribute], kind: Kind) -> bytes | None:
    values = values_of(attributes, kind)
    if len(values) > 1:
        raise LoginFailed(f"the server says {kind.name} {len(values)} times")
    return values[0] if values else None
