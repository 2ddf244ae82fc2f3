"""Requests to several servers, answered by one: who is asked, how often, and who comes next.

Sans-IO: `ask`, `receive_datagram` and `handle_timeout` take what happens, `next_output` and
`next_timeout` say what is to be done. A request keeps its identifier and its authenticator for as
long as its octets are the same (RFC 2865 section 2.5); waits grow as RFC 5080 section 2.2.1 has
them. A server that does not answer is passed over for a while; if none does, each is tried anyway.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from xfrmpy.radius.attributes import Attribute, Code, Kind
from xfrmpy.radius.packet import (
    Refusal,
    Reply,
    ReplyRefused,
    SentRequest,
    access_request,
    accounting_request,
    decode_reply_untrusted,
)

MAX_OUTSTANDING = 200
"""Requests that a server may have unanswered at a time; an identifier has 8 bits."""

MAX_WAITING = 1000
"""Requests that wait for one of those to end."""

MAX_WAIT_SECONDS = 16.0
"""RFC 5080 section 2.2.1, MRT."""

JITTER = 0.1
"""Of each wait, up or down (ibid., RAND)."""

HOLD_DOWN_SECONDS = 60.0
"""So long a server that did not answer is asked after the others; FreeRADIUS has 120 of it."""

Random: TypeAlias = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where it takes requests of one kind; `address` is as the transport has it."""

    address: tuple[str, int]
    secret: bytes = field(repr=False)

    def __str__(self) -> str:
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The first wait, which doubles, and how often a server is asked before the next is."""

    wait_seconds: float = 2.0
    tries: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """To the server of that number."""

    server: int
    octets: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A genuine reply to what was asked as `ticket`."""

    ticket: int
    server: int
    reply: Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """Nobody answers; `reason` is for our operator."""

    ticket: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSilent:
    """A server that answered before, or was never asked, does not."""

    server: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBack:
    """A server that was silent has answered."""

    server: int


Output: TypeAlias = Send | Answered | Unanswered | ServerSilent | ServerBack


@dataclass(slots=True, kw_only=True)
class _Question:
    """Something asked; `servers` are those that are left to be tried, the present one first."""

    ticket: int
    code: Code
    attributes: tuple[Attribute, ...]
    since: float
    servers: list[int]
    tries_left: int = 0
    wait_seconds: float = 0.0
    due_at: float = 0.0
    sent: SentRequest | None = None


class RadiusClient:
    """See the module. All requests to `servers` are of one kind, Access or Accounting.

    `refused` counts what was not believed to be a reply.
    """

    def __init__(self, servers: Sequence[Server], timing: Timing, random: Random) -> None:
        self.servers = tuple(servers)
        self.refused: Counter[Refusal] = Counter()
        self._timing = timing
        self._random = random
        self._outstanding: list[dict[int, _Question]] = [{} for _ in self.servers]
        self._last_identifier = [random(1)[0] for _ in self.servers]
        self._waiting: deque[_Question] = deque()
        self._silent_until: dict[int, float] = {}
        self._outputs: deque[Output] = deque()

    def ask(
        self,
        ticket: int,
        code: Code,
        attributes: Sequence[Attribute],
        now: float,
        server: int | None = None,
        since: float | None = None,
    ) -> None:
        """Have it answered or not, as `ticket`; by that server alone if one is named.

        An accounting request gets its Acct-Delay-Time, from `since` on, whenever it is sent.
        """
        question = _Question(
            ticket=ticket,
            code=code,
            attributes=tuple(attributes),
            since=now if since is None else since,
            servers=self._order(now) if server is None else [server],
        )
        if len(self._waiting) >= MAX_WAITING:
            self._give_up(question, f"{MAX_WAITING} other requests wait already")
        elif self._waiting:
            self._waiting.append(question)
        else:
            self._begin(question, now)

    def forget(self, ticket: int) -> None:
        """Nobody waits for that answer any more."""
        for table in self._outstanding:
            for identifier in [i for i, q in table.items() if q.ticket == ticket]:
                del table[identifier]
        self._waiting = deque(q for q in self._waiting if q.ticket != ticket)

    def receive_datagram(
        self, server: int, source: tuple[str, int], octets: bytes, now: float
    ) -> None:
        """What came to the socket from which that server is asked, from wherever it came."""
        try:
            if source != self.servers[server].address:
                raise ReplyRefused(Refusal.SOURCE)
            if len(octets) < 2:
                raise ReplyRefused(Refusal.MALFORMED)
            question = self._outstanding[server].get(octets[1])
            if question is None or question.sent is None:
                raise ReplyRefused(Refusal.NOT_ASKED)
            reply = decode_reply_untrusted(octets, question.sent)
        except ReplyRefused as refused:
            self.refused[refused.reason] += 1
            return
        del self._outstanding[server][octets[1]]
        if self._silent_until.pop(server, None) is not None:
            self._outputs.append(ServerBack(server=server))
        self._outputs.append(Answered(ticket=question.ticket, server=server, reply=reply))
        self._begin_waiting(now)

    def handle_timeout(self, now: float) -> None:
        """Send again what is due, or turn to the next server."""
        due = [q for table in self._outstanding for q in table.values() if q.due_at <= now]
        for question in sorted(due, key=lambda q: q.due_at):
            if question.tries_left > 0:
                self._send(question, now)
            else:
                self._turn_from(question, now)
        self._begin_waiting(now)

    def next_timeout(self) -> float | None:
        return min((q.due_at for t in self._outstanding for q in t.values()), default=None)

    def next_output(self) -> Output | None:
        return self._outputs.popleft() if self._outputs else None

    def _order(self, now: float) -> list[int]:
        """As they are configured, those behind that were silent of late."""
        numbers = range(len(self.servers))
        return sorted(numbers, key=lambda n: self._silent_until.get(n, 0.0) > now)

    def _begin(self, question: _Question, now: float) -> None:
        """With the first of its servers, or as soon as that one has room."""
        if len(self._outstanding[question.servers[0]]) >= MAX_OUTSTANDING:
            self._waiting.append(question)
            return
        question.tries_left = self._timing.tries
        question.wait_seconds = self._timing.wait_seconds
        question.sent = None
        self._send(question, now)

    def _begin_waiting(self, now: float) -> None:
        for _ in range(len(self._waiting)):
            self._begin(self._waiting.popleft(), now)

    def _send(self, question: _Question, now: float) -> None:
        server = question.servers[0]
        if question.sent is None or question.code is Code.ACCOUNTING_REQUEST:
            self._encode(question, server, now)
        assert question.sent is not None
        question.tries_left -= 1
        swing = (self._random(1)[0] / 127.5 - 1) * JITTER
        question.due_at = now + question.wait_seconds * (1 + swing)
        question.wait_seconds = min(2 * question.wait_seconds, MAX_WAIT_SECONDS)
        self._outputs.append(Send(server=server, octets=question.sent.octets))

    def _encode(self, question: _Question, server: int, now: float) -> None:
        """RFC 2866 section 5.2: another Acct-Delay-Time is another request, with its identifier."""
        table, secret = self._outstanding[server], self.servers[server].secret
        if question.sent is not None:
            del table[question.sent.identifier]
        identifier = self._free_identifier(server)
        if question.code is Code.ACCOUNTING_REQUEST:
            delay = Attribute.number(Kind.ACCT_DELAY_TIME, int(now - question.since))
            sent = accounting_request(identifier, secret, (*question.attributes, delay))
        else:
            sent = access_request(identifier, self._random(16), secret, question.attributes)
        table[identifier] = question
        question.sent = sent

    def _free_identifier(self, server: int) -> int:
        """The one that was not used for the longest time, lest a late answer meets it."""
        table, identifier = self._outstanding[server], self._last_identifier[server]
        while (identifier := (identifier + 1) % 256) in table:
            pass
        self._last_identifier[server] = identifier
        return identifier

    def _turn_from(self, question: _Question, now: float) -> None:
        server = question.servers.pop(0)
        assert question.sent is not None
        del self._outstanding[server][question.sent.identifier]
        if server not in self._silent_until:
            self._outputs.append(ServerSilent(server=server))
        self._silent_until[server] = now + HOLD_DOWN_SECONDS
        if question.servers:
            self._begin(question, now)
        else:
            self._give_up(question, f"no answer, the last one asked was {self.servers[server]}")

    def _give_up(self, question: _Question, reason: str) -> None:
        self._outputs.append(Unanswered(ticket=question.ticket, reason=reason))
