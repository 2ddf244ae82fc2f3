"""What a server is told of a user's session: that it began, how it goes, that it ended (RFC 2866).

What no server takes is told again later, for as long as somebody may still want to know. Of what
is too much, the interim records go first: the next one has all that they had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from itertools import count

from xfrmpy.radius.attributes import Attribute, Code, Kind, values_of
from xfrmpy.radius.client import RadiusClient

MAX_RECORDS = 10_000
"""Records that wait for a server."""

AGAIN_SECONDS = 30.0
"""After nobody has taken a record."""

MAX_AGE_SECONDS = 3600.0
"""So long a record is told again, if it is not an interim one."""

_BY_RADIUS = 1  # Acct-Authentic (RFC 2866 section 5.6)
_WORD = 1 << 32


class Status(IntEnum):
    """Acct-Status-Type (RFC 2866 section 5.1)."""

    START = 1
    STOP = 2
    INTERIM_UPDATE = 3


class Cause(IntEnum):
    """Acct-Terminate-Cause (RFC 2866 section 5.10), those that a session of ours may have."""

    USER_REQUEST = 1
    LOST_SERVICE = 3
    IDLE_TIMEOUT = 4
    SESSION_TIMEOUT = 5
    ADMIN_RESET = 6
    ADMIN_REBOOT = 7
    NAS_ERROR = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One IKE SA of a user; `id` is unique to it among all of this gateway, also over restarts.

    `nas` are the attributes of `Nas`. `classes` are what the server gave, which it gets back (RFC
    2865 section 5.25).
    """

    id: str
    user: bytes
    nas: tuple[Attribute, ...] = ()
    classes: tuple[bytes, ...] = ()
    address: IPv4Address | None = None
    address6: IPv6Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What has been carried of a session: `in` is from the user to us, as RFC 2866 has it."""

    octets_in: int = 0
    octets_out: int = 0
    packets_in: int = 0
    packets_out: int = 0


def start_record(session: Session, at: int) -> tuple[Attribute, ...]:
    """`at` is in Unix time."""
    return _record(session, Status.START, at)


def interim_record(
    session: Session, at: int, seconds: int, traffic: Traffic
) -> tuple[Attribute, ...]:
    """`seconds` is how long the session has been there."""
    return (*_record(session, Status.INTERIM_UPDATE, at), *_usage(seconds, traffic))


def stop_record(
    session: Session, at: int, seconds: int, traffic: Traffic, cause: Cause
) -> tuple[Attribute, ...]:
    return (
        *_record(session, Status.STOP, at),
        *_usage(seconds, traffic),
        Attribute.number(Kind.ACCT_TERMINATE_CAUSE, cause),
    )


def _record(session: Session, status: Status, at: int) -> tuple[Attribute, ...]:
    addresses = (
        Attribute.of_address(Kind.FRAMED_IP_ADDRESS, Kind.FRAMED_IPV6_ADDRESS, address)
        for address in (session.address, session.address6)
        if address is not None
    )
    return (
        Attribute.number(Kind.ACCT_STATUS_TYPE, status),
        Attribute.text(Kind.ACCT_SESSION_ID, session.id),
        Attribute.text(Kind.USER_NAME, session.user),
        *session.nas,
        Attribute.number(Kind.ACCT_AUTHENTIC, _BY_RADIUS),
        Attribute.number(Kind.EVENT_TIMESTAMP, at % _WORD),
        *addresses,
        *(Attribute(type=Kind.CLASS, value=value) for value in session.classes),
    )


def _usage(seconds: int, traffic: Traffic) -> tuple[Attribute, ...]:
    """Octets go on in the gigawords where 32 bits end (RFC 2869 sections 5.1 and 5.2)."""
    wrapped = (
        (Kind.ACCT_INPUT_OCTETS, traffic.octets_in % _WORD),
        (Kind.ACCT_OUTPUT_OCTETS, traffic.octets_out % _WORD),
        (Kind.ACCT_INPUT_GIGAWORDS, traffic.octets_in // _WORD),
        (Kind.ACCT_OUTPUT_GIGAWORDS, traffic.octets_out // _WORD),
        (Kind.ACCT_INPUT_PACKETS, traffic.packets_in % _WORD),
        (Kind.ACCT_OUTPUT_PACKETS, traffic.packets_out % _WORD),
    )
    return (
        Attribute.number(Kind.ACCT_SESSION_TIME, min(seconds, _WORD - 1)),
        *(Attribute.number(kind, value % _WORD) for kind, value in wrapped),
    )


@dataclass(slots=True, kw_only=True)
class _Told:
    """A record on its way, or waiting: for the next attempt, or for what is before it."""

    attributes: tuple[Attribute, ...]
    since: float
    again_at: float | None = None

    @property
    def session(self) -> bytes:
        return values_of(self.attributes, Kind.ACCT_SESSION_ID)[0]

    @property
    def is_interim(self) -> bool:
        return _INTERIM in self.attributes


_INTERIM = Attribute.number(Kind.ACCT_STATUS_TYPE, Status.INTERIM_UPDATE)


class Accountant:
    """Hands records to a client until a server has taken them; `lost` counts those that none has.

    Of a session one is told after the other, so that none is heard to end before it begins. Whoever
    drives the client hands over what it says of our tickets (`handle_answer`, `handle_silence`),
    and calls `handle_timeout` in time.
    """

    def __init__(self, client: RadiusClient) -> None:
        self.lost = 0
        self._client = client
        self._tickets = count(1)
        self._told: dict[int, _Told] = {}
        self._behind: dict[bytes, deque[_Told]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether every record is with a server, or lost."""
        return not self._told

    def tell(self, attributes: Sequence[Attribute], now: float) -> None:
        """Have a record told; it bears the time since `now` when it goes out later."""
        if len(self._told) + sum(map(len, self._behind.values())) >= MAX_RECORDS:
            self._make_room(now)
        told = _Told(attributes=tuple(attributes), since=now)
        if told.session in self._behind:
            self._behind[told.session].append(told)
        else:
            self._behind[told.session] = deque()
            self._ask(told, now)

    def handle_answer(self, ticket: int, now: float) -> None:
        """A server has taken it (RFC 2866 section 4.2)."""
        told = self._told.pop(ticket, None)
        if told is not None:
            self._go_on(told.session, now)

    def handle_silence(self, ticket: int, now: float) -> None:
        told = self._told.get(ticket)
        if told is None:
            return
        if told.is_interim or now - told.since > MAX_AGE_SECONDS:
            self._lose(ticket, now)
        else:
            told.again_at = now + AGAIN_SECONDS

    def handle_timeout(self, now: float) -> None:
        for ticket in [t for t, told in self._told.items() if _is_due(told, now)]:
            told = self._told.pop(ticket)
            told.again_at = None
            self._ask(told, now)

    def next_timeout(self) -> float | None:
        waiting = (told.again_at for told in self._told.values() if told.again_at is not None)
        return min(waiting, default=None)

    def _ask(self, told: _Told, now: float) -> None:
        ticket = next(self._tickets)
        self._told[ticket] = told
        self._client.ask(ticket, Code.ACCOUNTING_REQUEST, told.attributes, now, since=told.since)

    def _go_on(self, session: bytes, now: float) -> None:
        """With the next record of a session."""
        behind = self._behind[session]
        if behind:
            self._ask(behind.popleft(), now)
        else:
            del self._behind[session]

    def _make_room(self, now: float) -> None:
        interim = (ticket for ticket, told in self._told.items() if told.is_interim)
        ticket = next(interim, None) or next(iter(self._told))
        self._client.forget(ticket)
        self._lose(ticket, now)

    def _lose(self, ticket: int, now: float) -> None:
        self.lost += 1
        self._go_on(self._told.pop(ticket).session, now)


def _is_due(told: _Told, now: float) -> bool:
    return told.again_at is not None and told.again_at <= now
