"""Which requests for an IKE SA a responder serves, and what it wants to see first.

Read RFC 7296 section 2.6 and RFC 8019 sections 4 and 6 first. To serve a request costs a key
exchange and the memory of a half-open IKE SA, and anybody can ask. So nothing is done and nothing
kept for a request before it is admitted here. While little goes on, all are. Above a threshold a
caller must show by a cookie that it is where it says: a flood from addresses that are not the
sender's then gets nothing but cookies, and takes nothing from those who bring theirs back. Above a
second one it must solve a puzzle too; who does not is served by lot, the more rarely the less room
is left (RFC 8019 section 7.1). While there is much room, how hard the puzzle is, is left to the
caller, and who has solved one gets another for IKE_AUTH while requests come there that do not open
(section 7.2). A ticket (RFC 5723) takes the place of the puzzle, but not that of
the cookie (RFC 8019 section 4.5).

What strangers may cost is bounded twice: by their number, in all and from one address, and by the
work done for them in a second. A caller is a stranger until it has proved who it is; then what it
cost is not counted any more.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv6Address

from xfrmpy.ike.agreement import has_further_key_exchanges
from xfrmpy.ike.budget import Budget
from xfrmpy.ike.cookies import INFO_SIZE, SECRET_SECONDS, Caller, CookieJar
from xfrmpy.ike.errors import Drop, DropReason
from xfrmpy.ike.exchange import notifications, only, optional, payloads_in_clear
from xfrmpy.ike.puzzles import Puzzle, solved_bits
from xfrmpy.ike.resumption import presented_ticket
from xfrmpy.ipsec import algorithms
from xfrmpy.ipsec.addresses import IpAddress, Path
from xfrmpy.ipsec.proposals import Proposal
from xfrmpy.registry import (
    ExchangeType,
    KeyExchangeMethod,
    NotifyType,
    PseudorandomFunction,
    TransformType,
)
from xfrmpy.wire.message import Message
from xfrmpy.wire.payloads import (
    KePayload,
    NoncePayload,
    NotifyPayload,
    PuzzleSolutionPayload,
    SaPayload,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """How many strangers there may be, and what they may cost.

    Strangers are half-open IKE SAs, and those whose peer failed to prove who it is until they are
    forgotten. RFC 8019 section 6 takes 100 of them for an attack on a gateway of 10,000 peers;
    strongSwan demands cookies from 30 on. `work_per_second` is in milliseconds of computing, so
    that 250 is a quarter of a core. Puzzles in IKE_AUTH begin when so many strangers have sent what
    does not open there: a tenth of those for whom puzzles begin at all.
    """

    cookies_at: int = 30
    puzzles_at: int = 300
    auth_puzzles_at: int = 30
    strangers: int = 1000
    strangers_per_address: int = 100
    work_per_second: float = 250.0

    @property
    def puzzles_at_per_address(self) -> int:
        """RFC 8019 section 6 has 3 to 5; but many initiators may be behind one NAT."""
        return max(1, self.strangers_per_address // 5)


WORK: dict[KeyExchangeMethod, float] = {
    KeyExchangeMethod.CURVE25519: 0.3,
    KeyExchangeMethod.ECP_256: 0.4,
    KeyExchangeMethod.ECP_384: 1.2,
    KeyExchangeMethod.ECP_521: 1.2,
    KeyExchangeMethod.MODP_2048: 1.5,
    KeyExchangeMethod.MODP_3072: 3.5,
    KeyExchangeMethod.MODP_4096: 6.0,
    KeyExchangeMethod.ML_KEM_768: 0.2,
    KeyExchangeMethod.ML_KEM_1024: 0.2,
}
"""Milliseconds to answer one request, measured on a server of 2023. Only their proportions and
their order of magnitude matter."""

LEAST_WORK = 0.1
"""Milliseconds to refuse a request: it offers nothing that we know."""

FURTHER_WORK = 0.3
"""Milliseconds more where key exchanges may follow (RFC 9370): one of ML-KEM, with its messages."""

RESUMPTION_WORK = 0.3
"""Milliseconds to open a ticket and to derive keys from it."""

BUDGET_SECONDS = 2.0
"""For so long may more work come than flows in: many peers begin at once after a power cut."""

RESERVE = 0.5
"""The share of the budget that is kept for those who show a cookie."""

PUZZLE_RESERVE = 0.25
"""The share of the budget that is kept for those who solve puzzles."""

EASIEST_DEMAND, HARDEST_DEMAND = 12, 18
"""Zero bits that are enough, from where puzzles begin to where nothing is left. RFC 8019 section
4.4: "18 bits is believed to be a reasonable choice", 3.4 seconds in 2016 in C; the same in Python
now."""

AS_MUCH_AS_YOU_CAN = 0
"""Zero bits of a puzzle whose difficulty is left to the caller, which is RECOMMENDED "unless the
attack volume is very high" (section 7.1.1.1)."""

ROOM_TO_CHOOSE = 0.5
"""While so much room is left, it is."""

AUTH_DIFFICULTY = 14
"""Zero bits in IKE_AUTH: a tenth of a second in Python, ten times what the keys cost us at most. It
must not be 0 there (section 7.2.1.1)."""

IPV6_SITE_BITS = 64
"""RFC 8019 section 4.2: ISPs assign between a /48 and a /64, so single addresses mean nothing."""

LOTTERY_SECRET_SIZE = 16
_NO_INFO = bytes(INFO_SIZE)


class Effort(IntEnum):
    """What a caller has done to be served, or has to do."""

    NOTHING = 0
    COOKIE = 1
    PUZZLE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A first request as far as admission looks at it. `source` is whom its limit is for.

    `resumes`: it presents a ticket in IKE_SESSION_RESUME.
    """

    digest: bytes
    source: bytes
    caller: Caller
    cookie: bytes | None
    solution: PuzzleSolutionPayload | None
    prfs: tuple[PseudorandomFunction, ...]
    work: float
    resumes: bool

    @classmethod
    def of(cls, message: Message, digest: bytes, path: Path) -> Request:
        """Raises `PeerMisbehaved` for what is no whole request.

        Such a request is longer than any demand of ours, so nobody is answered by more octets
        than it sent.
        """
        payloads = payloads_in_clear(message)
        resumes = message.exchange is ExchangeType.IKE_SESSION_RESUME
        if resumes:
            presented_ticket(payloads)
        offered = () if resumes else only(payloads, SaPayload).proposals
        nonce = only(payloads, NoncePayload)
        cookies = notifications(payloads, NotifyType.COOKIE)
        remote = path.remote.address
        return cls(
            digest=digest,
            source=_source(remote),
            caller=Caller(address=remote, spi_i=message.spi_i, nonce_i=nonce.data),
            cookie=cookies[0].data if cookies else None,
            solution=optional(payloads, PuzzleSolutionPayload),
            prfs=_prfs(offered),
            work=RESUMPTION_WORK if resumes else _work(only(payloads, KePayload), offered),
            resumes=resumes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A request that is to be served, and may become an IKE SA.

    `is_hurried`: its IKE_AUTH should come soon (RFC 8019 section 4.1). `puzzle` is to be solved
    there.
    """

    request: Request
    effort: Effort
    has_solution: bool
    is_hurried: bool
    puzzle: Puzzle | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a cookie and a solution show: the puzzle that the caller was given, if any, and how many
    zero bits all its keys have, if it sent a solution."""

    effort: Effort = Effort.NOTHING
    puzzle: Puzzle | None = None
    bits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What to answer a caller who has not done enough."""

    effort: Effort
    payloads: tuple[NotifyPayload, ...]


class Admission:
    """See the module."""

    def __init__(self, limits: AdmissionLimits, random: Callable[[int], bytes]) -> None:
        self._limits = limits
        self._random = random
        self._cookies = CookieJar(random)
        self._budget = Budget(
            per_second=limits.work_per_second, most=limits.work_per_second * BUDGET_SECONDS
        )
        self._answered: dict[bytes, bytes] = {}
        self._strangers: dict[bytes, Admitted] = {}
        self._proven: Counter[bytes] = Counter()
        self._spent: dict[bytes, float] = {}
        self._forged: set[bytes] = set()
        self._lottery = b""

    def examine(self, request: Request, now: float) -> Admitted | Demand:
        """Serve a request, or demand something first. Raises `Drop` if it can be neither."""
        shown = self._read_cookie(request, now)
        room = self._room(request, now)
        wanted = self._wanted(request, room, now)
        effort = _effort(shown, room)
        if effort < wanted and shown.puzzle is None:
            bits = AS_MUCH_AS_YOU_CAN if room > ROOM_TO_CHOOSE else _enough_bits(room)
            return self._demand(request, wanted, bits, now)
        if effort < wanted and not self._is_drawn(request, _chance(shown, room)):
            if not shown.bits:
                raise Drop(DropReason.PUZZLE_UNSOLVED)
            return self._demand(request, wanted, _enough_bits(room), now)
        self._check_limits(request, now)
        return Admitted(
            request=request,
            effort=effort,
            has_solution=shown.bits > 0,
            is_hurried=room < 1,
            puzzle=self._auth_puzzle(request, effort),
        )

    def _check_limits(self, request: Request, now: float) -> None:
        if len(self._strangers) >= self._limits.strangers:
            raise Drop(DropReason.HALF_OPEN_LIMIT)
        if self._proven[request.source] >= self._limits.strangers_per_address:
            raise Drop(DropReason.ADDRESS_LIMIT)
        # RFC 8019 section 4.5: "SHOULD NOT serve resumed Initiators exclusively".
        is_kept = request.resumes and self._share_left(now) < PUZZLE_RESERVE
        if is_kept or not self._budget.spend(request.work, now):
            raise Drop(DropReason.WORK_LIMIT)

    # The strangers, by our SPI.

    def answered(self, digest: bytes) -> bytes | None:
        """Our SPI of the half-open IKE SA that a request has made before."""
        return self._answered.get(digest)

    def opened(self, spi: bytes, admitted: Admitted, now: float) -> None:
        """A request has become a half-open IKE SA."""
        if admitted.has_solution:
            self._spend(admitted.request.cookie or b"", now)
        self._answered[admitted.request.digest] = spi
        self._strangers[spi] = admitted
        if admitted.effort > Effort.NOTHING:
            self._proven[admitted.request.source] += 1

    def __contains__(self, spi: bytes) -> bool:
        """Whether an IKE SA is, or was until now, a stranger's."""
        return spi in self._strangers

    def went_on(self, spi: bytes) -> None:
        """An IKE SA is not half-open any more: its first request has no answer to repeat."""
        admitted = self._strangers.get(spi)
        if admitted is not None and self._answered.get(admitted.request.digest) == spi:
            del self._answered[admitted.request.digest]

    def forged(self, spi: bytes) -> None:
        """What came for an IKE SA does not open; it counts while that is a stranger's."""
        if spi in self._strangers:
            self._forged.add(spi)

    def closed(self, spi: bytes, *, is_authenticated: bool) -> None:
        """A stranger has proved who it is, or has been forgotten."""
        self.went_on(spi)
        self._forged.discard(spi)
        admitted = self._strangers.pop(spi, None)
        if admitted is None:
            return
        if is_authenticated:
            self._budget.give_back(admitted.request.work)
        if admitted.effort > Effort.NOTHING:
            self._leave(admitted.request.source)

    def _leave(self, source: bytes) -> None:
        self._proven[source] -= 1
        if not self._proven[source]:
            del self._proven[source]

    # The decision.

    def _read_cookie(self, request: Request, now: float) -> Shown:
        cookie = request.cookie
        if cookie is None or cookie in self._spent:
            return Shown()
        info = self._cookies.recognise(cookie, request.caller, now)
        if info is None:
            return Shown()
        if info == _NO_INFO:
            return Shown(effort=Effort.COOKIE)
        puzzle, solution = Puzzle.decode(info), request.solution
        bits = 0 if solution is None else solved_bits(puzzle.prf, cookie, solution)
        if bits < puzzle.difficulty:  # "marked with the lowest priority" (section 7.1.4)
            return Shown(effort=Effort.COOKIE, puzzle=puzzle)
        return Shown(effort=Effort.PUZZLE, puzzle=puzzle, bits=bits)

    def _spend(self, cookie: bytes, now: float) -> None:
        """RFC 8019 section 10: nobody may profit from one solution twice."""
        forgotten_at = now + 2 * SECRET_SECONDS
        while self._spent and next(iter(self._spent.values())) <= now:
            del self._spent[next(iter(self._spent))]
        self._spent[cookie] = forgotten_at

    def _wanted(self, request: Request, room: float, now: float) -> Effort:
        if room < 1:
            return Effort.COOKIE if request.resumes else Effort.PUZZLE
        is_busy = len(self._strangers) >= self._limits.cookies_at
        if is_busy or self._share_left(now) - request.work / self._budget.most < RESERVE:
            return Effort.COOKIE
        return Effort.NOTHING

    def _room(self, request: Request, now: float) -> float:
        """1 while nobody need solve puzzles, down to 0 where nobody is served any more."""
        limits = self._limits
        return min(
            _room_between(limits.puzzles_at, len(self._strangers), limits.strangers),
            _room_between(
                limits.puzzles_at_per_address,
                self._proven[request.source],
                limits.strangers_per_address,
            ),
            self._share_left(now) / PUZZLE_RESERVE,
        )

    def _share_left(self, now: float) -> float:
        return self._budget.left(now) / self._budget.most

    def _is_drawn(self, request: Request, chance: float) -> bool:
        """The lot, for those who have not done enough (section 7.1.4).

        A cookie has one lot, and the caller cannot know it before it has done its work.
        """
        self._lottery = self._lottery or self._random(LOTTERY_SECRET_SIZE)
        lot = hmac.digest(self._lottery, request.cookie or b"", "sha256")
        return int.from_bytes(lot[:2], "big") < chance * 0x10000

    def _auth_puzzle(self, request: Request, effort: Effort) -> Puzzle | None:
        """Section 7.2.1: not "unless a puzzle has been previously presented and solved"."""
        if effort < Effort.PUZZLE or len(self._forged) < self._limits.auth_puzzles_at:
            return None
        return Puzzle(prf=request.prfs[0], difficulty=AUTH_DIFFICULTY)

    def _demand(self, request: Request, effort: Effort, bits: int, now: float) -> Demand:
        if effort is Effort.COOKIE:
            return self._demand_of(request, effort, None, now)
        if not request.prfs:  # Then there is no IKE SA anyway (section 7.1.1.2).
            refusal = NotifyPayload(type=NotifyType.NO_PROPOSAL_CHOSEN)
            return Demand(effort=effort, payloads=(refusal,))
        puzzle = Puzzle(prf=request.prfs[0], difficulty=bits)
        return self._demand_of(request, effort, puzzle, now)

    def _demand_of(
        self, request: Request, effort: Effort, puzzle: Puzzle | None, now: float
    ) -> Demand:
        info = _NO_INFO if puzzle is None else puzzle.encode()
        cookie = self._cookies.bake(request.caller, info, now)
        notify = NotifyPayload(type=NotifyType.COOKIE, data=cookie)
        more = () if puzzle is None else (puzzle.notify(),)
        return Demand(effort=effort, payloads=(notify, *more))


def _effort(shown: Shown, room: float) -> Effort:
    """What a caller has done; a puzzle that it made too easy for itself does not count."""
    if shown.puzzle is None or shown.puzzle.difficulty:
        return shown.effort
    return Effort.PUZZLE if shown.bits >= _enough_bits(room) else Effort.COOKIE


def _chance(shown: Shown, room: float) -> float:
    """Section 7.1.4: "The higher number of zero bits the Initiator provides, the higher priority
    its request should receive". Each doubles the work, and the part of what the lot alone refuses
    that is served all the same."""
    work = 2.0 ** (shown.bits - _enough_bits(room)) if shown.bits else 0.0
    return room + (1 - room) * work


def _enough_bits(room: float) -> int:
    hardness = (1 - max(0.0, room)) * (HARDEST_DEMAND - EASIEST_DEMAND)
    return EASIEST_DEMAND + round(hardness)


def _room_between(start: int, count: int, end: int) -> float:
    """1 below `start`, then less and less, and 0 at `end`."""
    if count < start:
        return 1.0
    return (end - count) / (end - start + 1) if count < end else 0.0


def _work(ke: KePayload, offered: tuple[Proposal, ...]) -> float:
    further = FURTHER_WORK if has_further_key_exchanges(offered) else 0.0
    return WORK.get(ke.method, LEAST_WORK) + further


def _prfs(proposals: tuple[Proposal, ...]) -> tuple[PseudorandomFunction, ...]:
    """Those offered that we know, in our order: the cheapest to check first."""
    offered = {t.id for p in proposals for t in p.of_type(TransformType.PRF)}
    return tuple(row.id for row in algorithms.PRFS if row.id in offered)


def request_digest(data: bytes, path: Path) -> bytes:
    """By which a repeated request is known: all its octets and where it came from (section 2.1)."""
    return hashlib.sha256(data + str(path.remote).encode()).digest()


def _source(address: IpAddress) -> bytes:
    octets = address.packed
    return octets[: IPV6_SITE_BITS // 8] if isinstance(address, IPv6Address) else octets
