"""IKE_SA_INIT in both roles: proposals, key exchange, nonces, NAT detection.

Read RFC 7296 sections 1.2, 1.3, 2.6, 2.7 and 2.23 first. Nothing in this exchange is authentic, so
an initiator ignores what makes no sense and goes on waiting, and a responder keeps no state for
what it refuses.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Protocol

from xfrmpy.crypto.key_exchange import KeyExchange, start_key_exchange
from xfrmpy.failures import Failure
from xfrmpy.ike.agreement import (
    agreed_secret,
    answer_ke,
    choose_for_method,
    demanded_method,
    has_further_key_exchanges,
    ke_payload,
    key_exchange_methods,
    without_further,
)
from xfrmpy.ike.auth_methods import announce
from xfrmpy.ike.auth_puzzle import AuthPuzzle, puzzle_text
from xfrmpy.ike.candidates import Candidates, wants_beet
from xfrmpy.ike.childless import childless_supported
from xfrmpy.ike.core import Core
from xfrmpy.ike.credentials import Heard, hash_list
from xfrmpy.ike.errors import Drop, DropReason, PeerIncompatible, PeerMisbehaved
from xfrmpy.ike.evidence import listed
from xfrmpy.ike.exchange import check_critical, first_error, notifications, only, payloads_in_clear
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.intermediate import INTERMEDIATE_SUPPORTED, begin_next, supports_intermediate
from xfrmpy.ike.modes import STRONGSWAN, check_nat
from xfrmpy.ike.nat import detect_nat, detection_payloads, natt_path
from xfrmpy.ike.nonces import NONCE_SIZE
from xfrmpy.ike.outputs import ExchangeRepeated
from xfrmpy.ike.ppk import (
    answer_ppk,
    answered_ppk_exchange,
    choose_ppk_exchange,
    offer_ppk,
    refusal_without_ppk,
)
from xfrmpy.ike.proof import check_signing
from xfrmpy.ike.puzzles import Puzzle, Solver
from xfrmpy.ike.redirect import (
    announce_support,
    check_redirect_in_init,
    follows_redirects,
    redirect_of_init,
    redirected_from,
    refusal_to_follow,
)
from xfrmpy.ike.rounds import MULTIPLE_AUTH_SUPPORTED, refusal_without_rounds
from xfrmpy.ipsec.addresses import IpAddress, Path
from xfrmpy.ipsec.proposals import Proposal, answers, ike_suite
from xfrmpy.policy.model import Retransmission, TunnelPolicy
from xfrmpy.registry import ExchangeType, KeyExchangeMethod, NotifyType
from xfrmpy.wire.message import Message
from xfrmpy.wire.payloads import (
    KePayload,
    NoncePayload,
    NotifyPayload,
    OpenPayload,
    PuzzleSolutionPayload,
    SaPayload,
)

if TYPE_CHECKING:
    from xfrmpy.wire.redirect import Gateway
MAX_COOKIE = 64
"""Octets, RFC 7296 section 2.6."""

FRAGMENTATION_SUPPORTED = NotifyPayload(type=NotifyType.IKEV2_FRAGMENTATION_SUPPORTED)
"""RFC 7383 section 2.3."""
SOLVING_SECONDS = 30.0
"""After so long a puzzle is given up, and its cookie returned without a solution."""

MAX_REPETITIONS = 5
"""How often a peer may send us back to the start with cookies or another group. One of each is
usual, two cookies happen when the peer changes its secret; more is a loop."""


class Finish(Protocol):
    """What happens with the solution of a puzzle; None if there is none in time."""

    def __call__(self, solution: PuzzleSolutionPayload | None, *, now: float) -> None: ...


class IkeSaInit:
    """The initiator's side."""

    type: ClassVar[ExchangeType] = ExchangeType.IKE_SA_INIT

    def __init__(
        self, sa: IkeSa, tunnel: TunnelPolicy, redirected_from: IpAddress | None = None
    ) -> None:
        self._sa = sa
        self._tunnel = tunnel
        self._redirected_from = redirected_from
        self._random = sa.core.random
        self._nonce = self._random(NONCE_SIZE)
        self._cookie: bytes | None = None
        self._solution: PuzzleSolutionPayload | None = None
        self._solver: Solver | None = None
        self._offered = tuple(replace(p, number=n) for n, p in enumerate(tunnel.proposals, 1))
        self._key_exchange = self._start_key_exchange(key_exchange_methods(self._offered)[0])
        # Made once: "all other payloads unchanged" when a cookie is returned (section 2.6).
        self._detection = detection_payloads(
            sa.channel.spi_i,
            bytes(8),
            sa.path,
            force=tunnel.forces_encapsulation,
            random=self._random,
        )
        self._repetitions = 0

    def request(self) -> tuple[OpenPayload, ...]:
        payloads: list[OpenPayload] = []
        if self._cookie is not None:
            payloads.append(NotifyPayload(type=NotifyType.COOKIE, data=self._cookie))
        if self._solution is not None:
            payloads.append(self._solution)
        payloads += [
            SaPayload(proposals=self._offered),
            ke_payload(self._key_exchange),
            NoncePayload(data=self._nonce),
        ]
        if has_further_key_exchanges(self._offered) or self._tunnel.ppks:
            payloads.append(INTERMEDIATE_SUPPORTED)
        payloads += offer_ppk(self._tunnel)
        if self._tunnel.signs:
            payloads.append(hash_list(self._sa.core.signatures))
        payloads += self._detection
        payloads += announce_support(self._tunnel, self._redirected_from)
        if wants_beet(self._tunnel):
            payloads.append(STRONGSWAN)
        if self._tunnel.fragmentation:
            payloads.append(FRAGMENTATION_SUPPORTED)
        return tuple(payloads)

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        error = first_error(payloads)
        gateway = redirect_of_init(payloads, self._nonce, self._tunnel)
        if gateway is not None:
            self._follow(gateway, now)
        elif notifications(payloads, NotifyType.COOKIE):
            self._handle_cookie(payloads, now)
        elif error is None:
            self._handle_choice(payloads, now)
        elif error.type == NotifyType.INVALID_KE_PAYLOAD:
            self._repeat_with_group(error, now)
        else:
            self._sa.refused(self._refusal(error), now)

    def _follow(self, gateway: Gateway, now: float) -> None:
        failure = refusal_to_follow(self._sa, self._tunnel, gateway, now)
        if failure is None:
            self._sa.redirected(gateway, now)
        else:
            self._sa.refused(failure, now)

    def _handle_cookie(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        """A cookie alone goes back at once; one with a puzzle when that is solved."""
        cookie = notifications(payloads, NotifyType.COOKIE)[0].data
        if not 1 <= len(cookie) <= MAX_COOKIE:
            raise PeerMisbehaved("a cookie has 1 to 64 octets")
        puzzles = notifications(payloads, NotifyType.PUZZLE)
        if not puzzles:
            reason = "the peer is busy and asks for a cookie"
            self._repeat_with_cookie(cookie, None, reason=reason, now=now)
            return
        puzzle = Puzzle.of(puzzles[0])
        if not puzzle.is_solvable:
            # Section 7.1.2 of RFC 8019 lets us, and the peer may serve us all the same.
            reason = (
                f"the peer asks for a puzzle that we do not solve: {puzzle}; it gets its cookie"
            )
            self._repeat_with_cookie(cookie, None, reason=reason, now=now)
        elif self._solver is None:
            # Meanwhile the request is sent again: the peer may have become less busy.
            reason = f"the peer is busy and asks for a puzzle: {puzzle}"
            repeat = partial(self._repeat_with_cookie, cookie, reason=reason)
            self._solve(Solver(puzzle, cookie), repeat, now)

    def _solve(self, solver: Solver, finish: Finish, now: float) -> None:
        """Call `finish` with the solution or after a while without, if it still matters then."""
        self._solver, state = solver, self._sa.state
        give_up_at = now + SOLVING_SECONDS

        def step(moment: float) -> bool:
            if self._solver is not solver or self._sa.state is not state:
                return False
            solution = solver.work()
            if solution is None and moment < give_up_at:
                return True
            finish(solution, now=moment)
            return False

        self._sa.compute(step, now)

    def _repeat_with_cookie(
        self, cookie: bytes, solution: PuzzleSolutionPayload | None, *, reason: str, now: float
    ) -> None:
        self._cookie, self._solution, self._solver = cookie, solution, None
        self._repeat(reason, now)

    def _repeat_with_group(self, error: NotifyPayload, now: float) -> None:
        method = demanded_method(error)
        if method not in key_exchange_methods(self._offered):
            summary = f"the peer asks for the key exchange method {method.name}"
            evidence = (("we offered", listed(self._offered)), ("they want", method.name))
            self._sa.refused(Failure(code="XF2010", summary=summary, evidence=evidence), now)
            return
        if method == self._key_exchange.method:
            raise PeerMisbehaved("the peer asks for the key exchange method that it was sent")
        self._key_exchange = self._start_key_exchange(method)
        self._repeat(f"the peer asks for {method.name}", now)

    def _repeat(self, reason: str, now: float) -> None:
        self._repetitions += 1
        if self._repetitions > MAX_REPETITIONS:
            summary = "the peer asks for IKE_SA_INIT again and again"
            self._sa.refused(Failure(code="XF2008", summary=summary), now)
            return
        self._sa.channel.their_spi = bytes(8)
        self._sa.channel.window.restart()
        self._sa.core.emit(
            ExchangeRepeated(tunnel=self._tunnel.name, exchange=self.type, reason=reason)
        )
        self._sa.start(self, now)

    def _handle_choice(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        sa = self._sa
        proposals = only(payloads, SaPayload).proposals
        if len(proposals) != 1 or not answers(proposals[0], self._offered):
            raise PeerMisbehaved("the peer chose an IKE proposal that we did not offer")
        suite = ike_suite(proposals[0])
        ke = only(payloads, KePayload)
        ppk_exchange = answered_ppk_exchange(self._tunnel, payloads)
        needs_more = suite.further or ppk_exchange is ExchangeType.IKE_INTERMEDIATE
        if needs_more and not supports_intermediate(payloads):
            raise PeerMisbehaved("the peer chose what it has no exchange for")
        if not ke.method == suite.group.id == self._key_exchange.method:
            raise PeerMisbehaved("the key exchange is not of the method chosen")
        if not any(sa.channel.their_spi):
            raise PeerMisbehaved("the peer gave no SPI")
        without_ppk = refusal_without_ppk(self._tunnel, ppk_exchange)
        refusal = without_ppk or refusal_without_rounds(self._tunnel, payloads)
        if refusal is not None:
            sa.refused(refusal, now)
            return
        nonce = only(payloads, NoncePayload).data
        puzzles = [Puzzle.of(p) for p in notifications(payloads, NotifyType.PUZZLE)]
        shared_secret = agreed_secret(self._key_exchange, ke)
        forced = self._tunnel.forces_encapsulation
        nat = detect_nat(payloads, sa.channel.spi_i, sa.channel.spi_r, sa.path, forced=forced)
        sa.channel.window.complete(0)
        sa.channel.fragments = self._tunnel.fragmentation and can_fragment(payloads)
        sa.ppk_exchange = ppk_exchange
        sa.agree_keys(proposals[0], shared_secret, (self._nonce, nonce))
        sa.found_nat(nat)
        sa.heard = Heard.of(payloads)
        supported = notifications(payloads, NotifyType.CHILDLESS_IKEV2_SUPPORTED)
        sa.peer_takes_childless = bool(supported)
        obstacle = check_nat(self._tunnel, nat) or check_signing(sa, self._tunnel)
        if obstacle is not None:
            sa.close(obstacle, now)
            return
        if nat.encapsulated:
            sa.channel.path = natt_path(sa.path, sa.core.natt_port)
        if puzzles:
            self._solve_for_auth(puzzles[0], puzzle_text(nonce, sa.channel.spi_r), now)
        else:
            begin_next(sa, self._tunnel, now)

    def _solve_for_auth(self, puzzle: Puzzle, text: bytes, now: float) -> None:
        """RFC 8019 section 7.2.2: who supports puzzles "MUST solve the puzzle"."""
        if puzzle.is_solvable:
            self._solve(Solver(puzzle, text), self._authenticate, now)
        else:
            self._give_up(puzzle, now)

    def _authenticate(self, solution: PuzzleSolutionPayload | None, *, now: float) -> None:
        if solution is None:
            assert self._solver is not None
            self._give_up(self._solver.puzzle, now)
        else:
            begin_next(self._sa, self._tunnel, now, solution)

    def _give_up(self, puzzle: Puzzle, now: float) -> None:
        summary = f"the peer asks for a puzzle that we do not solve: {puzzle}"
        self._sa.close(Failure(code="XF2009", summary=summary), now)

    def _refusal(self, error: NotifyPayload) -> Failure:
        evidence = (("we offered", listed(self._offered)), ("they answered", error.type.name))
        if error.type == NotifyType.NO_PROPOSAL_CHOSEN and are_post_quantum(self._offered):
            summary = "the peer accepts none of our IKE proposals, all of them post-quantum"
            return Failure(code="XF2031", summary=summary, evidence=evidence)
        if error.type == NotifyType.NO_PROPOSAL_CHOSEN:
            summary = "the peer accepts none of our IKE proposals, or knows no tunnel to us"
            return Failure(code="XF2002", summary=summary, evidence=evidence)
        return Failure(code="XF2009", summary="the peer refused IKE_SA_INIT", evidence=evidence)

    def _start_key_exchange(self, method: KeyExchangeMethod) -> KeyExchange:
        return start_key_exchange(method, self._random)


def answer_ike_sa_init(
    core: Core, message: Message, data: bytes, path: Path, puzzle: Puzzle | None = None
) -> IkeSa:
    """Answer a new IKE_SA_INIT request with an IKE SA that waits for IKE_AUTH.

    With a `puzzle`, which IKE_AUTH must solve, it has no keys before. Raises `PeerIncompatible` or
    `CriticalPayload` with the notification to answer instead, or `PeerMisbehaved`.
    """
    payloads = payloads_in_clear(message)
    check_critical(payloads)
    offered = only(payloads, SaPayload).proposals
    ke = only(payloads, KePayload)
    nonce_i = only(payloads, NoncePayload).data
    candidates = _candidates_for(core, path)
    check_redirect_in_init(candidates, payloads, nonce_i, path)
    acceptable = offered if supports_intermediate(payloads) else without_further(offered)
    chosen = _choose(offered, acceptable, candidates.proposals, ke)
    ppk_exchange = choose_ppk_exchange(candidates, payloads, path)
    suite = ike_suite(chosen)
    answered = answer_ke(suite.group.id, ke, core.random)
    shared_secret = answered.secret() if puzzle is None else b""
    nonce_r = core.random(NONCE_SIZE)
    forced = candidates.forces_encapsulation
    sa = IkeSa(core, path=path, is_initiator=False, schedule=Retransmission())
    sa.channel.their_spi = message.spi_i
    sa.peer_follows = follows_redirects(payloads)
    sa.ppk_exchange = ppk_exchange
    sa.redirected_from = redirected_from(payloads)
    sa.heard = Heard.of(payloads)
    is_more_to_come = suite.further or ppk_exchange is ExchangeType.IKE_INTERMEDIATE
    nat = detect_nat(payloads, message.spi_i, bytes(8), path, forced=forced)
    sa.channel.begin_answer(message, path)
    sa.channel.init_request = data
    sa.channel.fragments = candidates.fragmentation and can_fragment(payloads)
    sa.channel.respond(
        (
            SaPayload(proposals=(chosen,)),
            answered.payload,
            NoncePayload(data=nonce_r),
            *candidates.certificate_requests,
            *announce(candidates.expectations, core.signatures),
            *([INTERMEDIATE_SUPPORTED] if is_more_to_come else []),
            *([hash_list(core.signatures)] if sa.heard.hashes and candidates.sign else []),
            childless_supported(),
            *answer_ppk(ppk_exchange),
            *([MULTIPLE_AUTH_SUPPORTED] if candidates.has_rounds else []),
            *([STRONGSWAN] if candidates.has_beet else []),
            *detection_payloads(
                sa.channel.spi_i, sa.channel.spi_r, path, force=forced, random=core.random
            ),
            *([FRAGMENTATION_SUPPORTED] if sa.channel.fragments else []),
            *([] if puzzle is None else [puzzle.notify()]),
        )
    )

    nonces = (nonce_i, nonce_r)
    if puzzle is None:
        sa.agree_keys(chosen, shared_secret, nonces)
    else:
        sa.expect_solution(
            AuthPuzzle(
                puzzle=puzzle,
                text=puzzle_text(nonce_r, sa.channel.spi_r),
                agree=lambda: sa.agree_keys(chosen, answered.secret(), nonces),
            )
        )
    sa.found_nat(nat)
    return sa


def are_post_quantum(proposals: tuple[Proposal, ...]) -> bool:
    """Whether there is none with classical key exchanges alone."""
    return all(proposal.is_post_quantum for proposal in proposals)


def can_fragment(payloads: tuple[OpenPayload, ...]) -> bool:
    """Whether the peer can send and take messages in fragments (RFC 7383 section 2.3)."""
    return bool(notifications(payloads, NotifyType.IKEV2_FRAGMENTATION_SUPPORTED))


def _candidates_for(core: Core, path: Path) -> Candidates:
    candidates = core.tunnel_index.candidates(path)
    if not candidates and not core.tunnel_index.is_complete:
        # It may be a peer whose name is being looked up, and will ask again; refused, it gives up.
        raise Drop(DropReason.PEERS_UNKNOWN)
    if not candidates:
        raise PeerIncompatible.of(
            "XF2009",
            f"no tunnel of ours has a peer at {path.remote.address}",
            NotifyType.NO_PROPOSAL_CHOSEN,
            evidence=(
                ("they came from", str(path.remote)),
                (
                    "our tunnels have",
                    listed(p for t in core.tunnels.values() for p in t.policy.peers),
                ),
            ),
        )
    return candidates


def _choose(
    offered: tuple[Proposal, ...],
    acceptable: tuple[Proposal, ...],
    ours: tuple[Proposal, ...],
    ke: KePayload,
) -> Proposal:
    """Our first choice, or our first with the method that spares us a repetition."""
    chosen = choose_for_method(acceptable, ours, ke.method)
    if chosen is None:
        is_lacking = are_post_quantum(ours) and not any(p.is_post_quantum for p in acceptable)
        raise PeerIncompatible.of(
            "XF2031" if is_lacking else "XF2002",
            "the peer offers no post-quantum key exchange, and we accept nothing else"
            if is_lacking
            else "no IKE proposal of the peer is one of ours",
            NotifyType.NO_PROPOSAL_CHOSEN,
            evidence=(("we accept", listed(ours)), ("they offered", listed(offered))),
        )
    return chosen
