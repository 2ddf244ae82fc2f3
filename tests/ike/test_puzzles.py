"""Client puzzles (RFC 8019), by themselves and between two ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike import init as init_module
from xfrmpy.ike.admission import EASIEST_DEMAND, HARDEST_DEMAND, AdmissionLimits
from xfrmpy.ike.errors import DropReason, PeerMisbehaved
from xfrmpy.ike.ike_sa import HURRIED_SECONDS
from xfrmpy.ike.init import MAX_REPETITIONS
from xfrmpy.ike.outputs import ExchangeRepeated, SendDatagram
from xfrmpy.ike.puzzles import HARDEST, OUR_CHOICE, Puzzle, Solver, check_solution, zero_bits
from xfrmpy.ike.states import IkeSaState
from xfrmpy.registry import NotifyType, PseudorandomFunction
from xfrmpy.wire.message import Message, decode_message_untrusted, encode_message
from xfrmpy.wire.payloads import NoncePayload, NotifyPayload, PuzzleSolutionPayload, SaPayload

MakePair = Callable[..., Any]
MakePolicy = Callable[..., Any]

SHA_256 = PseudorandomFunction.HMAC_SHA2_256
COOKIE = bytes.fromhex("739ae7492d8a810cf5e8dc0f9626c9dda773c5a3")
KEYS = ("00499b", "00cd8a", "01b4dc", "01c244")
"""Found by a loop over `hmac.new`. The keys that RFC 8019 section 4.4 gives for this cookie are not
solutions of it, under none of the usual hashes."""

DIFFICULTY = 14
"""The fewest zero bits among the results of these keys."""


def puzzle(difficulty: int, prf: PseudorandomFunction = SHA_256) -> Puzzle:
    return Puzzle(prf=prf, difficulty=difficulty)


def solution_of(*keys: str) -> PuzzleSolutionPayload:
    return PuzzleSolutionPayload(keys=tuple(bytes.fromhex(key) for key in keys))


def test_four_keys_with_enough_zero_bits_are_a_solution() -> None:
    solution = solution_of(*KEYS)
    assert check_solution(puzzle(DIFFICULTY), COOKIE, solution)
    assert not check_solution(puzzle(DIFFICULTY + 1), COOKIE, solution)
    assert not check_solution(puzzle(DIFFICULTY), COOKIE + b"\0", solution)


@pytest.mark.parametrize(
    "keys",
    [
        (KEYS[0],) * 4,
        (*KEYS[:3], KEYS[2]),
        (*KEYS[:3], "ffffff"),
        tuple(key + "00" * 30 for key in KEYS),
    ],
    ids=["one key", "three keys", "one wrong", "too long"],
)
def test_less_than_four_keys_of_a_size_for_the_prf_are_no_solution(keys: tuple[str, ...]) -> None:
    """HMAC fills a short key with zeros, so the last would solve it, were they not too long."""
    assert not check_solution(puzzle(DIFFICULTY), COOKIE, solution_of(*keys))


@pytest.mark.parametrize(
    ("octets", "bits"), [(b"\x01", 0), (b"\x01\x00", 8), (b"\xff\x50", 4), (b"\0" * 4, 32)]
)
def test_zero_bits_are_counted_from_the_end(octets: bytes, bits: int) -> None:
    assert zero_bits(octets) == bits


@pytest.mark.parametrize("prf", [SHA_256, PseudorandomFunction.HMAC_SHA2_512])
@pytest.mark.parametrize("difficulty", [0, 8, 12])
def test_what_the_solver_finds_is_a_solution(prf: PseudorandomFunction, difficulty: int) -> None:
    solver = Solver(puzzle(difficulty, prf), b"a cookie")
    while (solution := solver.work()) is None:
        pass
    wanted = puzzle(difficulty or OUR_CHOICE, prf)
    assert check_solution(wanted, b"a cookie", solution)


@pytest.mark.parametrize("data", [b"", b"\0\5", b"\0\5\x10\0"])
def test_a_puzzle_of_another_size_is_refused(data: bytes) -> None:
    with pytest.raises(PeerMisbehaved):
        Puzzle.of(NotifyPayload(type=NotifyType.PUZZLE, data=data))


def test_a_puzzle_is_laid_out_as_in_the_rfc() -> None:
    asked = puzzle(18)
    assert asked.notify().data == b"\x00\x05\x12"
    assert Puzzle.of(asked.notify()) == asked


# Between two ends.

PUZZLES = AdmissionLimits(cookies_at=0, puzzles_at=0)


@pytest.fixture
def puzzled(make_pair: MakePair, make_policy: MakePolicy) -> Any:
    """A pair whose ends demand puzzles always."""
    return make_pair(make_policy(), limits=PUZZLES)


def decoded(datagram: SendDatagram) -> Message:
    return decode_message_untrusted(datagram.data)


def test_a_puzzle_is_demanded_solved_and_brings_the_tunnel_up(puzzled: Any) -> None:
    puzzled.up()
    puzzled.run(0.9)
    puzzled.assert_up()
    demand, again = decoded(puzzled.sent[1][1]), decoded(puzzled.sent[2][1])
    cookie, asked = demand.payloads
    assert isinstance(asked, NotifyPayload)
    assert Puzzle.of(asked) == puzzle(EASIEST_DEMAND)
    assert again.payloads[0] == cookie
    assert isinstance(again.payloads[1], PuzzleSolutionPayload)
    assert again.payloads[2:] == decoded(puzzled.sent[0][1]).payloads
    assert puzzled.sun.drops == [DropReason.PUZZLE_DEMANDED]
    (repeated,) = puzzled.moon.reports(ExchangeRepeated)
    assert "puzzle" in repeated.reason


def test_a_demand_of_a_puzzle_is_smaller_than_the_request(puzzled: Any) -> None:
    puzzled.initiate()
    puzzled.deliver()
    (_, request), (_, demand) = puzzled.sent[:2]
    assert len(demand.data) <= len(request.data)


def test_solving_leaves_every_other_thing_its_turn(puzzled: Any) -> None:
    """Each slice is a timeout of its own: datagrams and other IKE SAs come in between."""
    puzzled.initiate()
    puzzled.deliver()
    slices = 0
    while len(puzzled.sent) == 2:
        due_at = puzzled.moon.endpoint.next_timeout()
        assert due_at > puzzled.now
        puzzled.now = due_at
        puzzled.moon.endpoint.handle_timeout(puzzled.now)
        puzzled._carry(puzzled.moon, puzzled.sun)
        slices += 1
    assert slices >= 2


def test_an_answer_that_comes_while_we_solve_ends_the_solving(puzzled: Any) -> None:
    """The peer may be less busy by then, and the puzzle may have been a forgery."""
    puzzled.initiate()
    (request,) = puzzled.moon.take_outputs()
    cookie = NotifyPayload(type=NotifyType.COOKIE, data=b"forged")
    puzzled.sun.endpoint._admission._limits = AdmissionLimits()
    path = replace(request.path, local=request.path.remote, remote=request.path.local)
    forgery = _answer(request, cookie, puzzle(HARDEST).notify())
    puzzled.moon.endpoint.receive_datagram(forgery, request.path, 0.0)
    puzzled.sun.endpoint.receive_datagram(request.data, path, 0.0)
    puzzled.deliver()
    puzzled.assert_up()
    puzzled.run(0.1)
    assert not puzzled.moon.reports(ExchangeRepeated)
    assert puzzled.moon.endpoint.next_timeout() >= 1.0


def _answer(request: SendDatagram, *payloads: Any) -> bytes:
    message = decoded(request)
    answer = replace(message, is_response=True, is_initiator=False, payloads=payloads)
    return encode_message(answer)


def test_a_puzzle_that_is_too_hard_gets_its_cookie_back_alone(puzzled: Any) -> None:
    puzzled.initiate()
    (request,) = puzzled.moon.take_outputs()
    cookie = NotifyPayload(type=NotifyType.COOKIE, data=b"cookie")
    forgery = _answer(request, cookie, puzzle(HARDEST + 1).notify())
    puzzled.moon.endpoint.receive_datagram(forgery, request.path, 0.0)
    (again,) = puzzled.moon.take_outputs()
    assert decoded(again).payloads == (cookie, *decoded(request).payloads)
    (repeated,) = puzzled.moon.reports(ExchangeRepeated)
    assert "21 bits" in repeated.reason


def test_a_puzzle_of_an_unknown_prf_gets_its_cookie_back_alone(puzzled: Any) -> None:
    puzzled.initiate()
    (request,) = puzzled.moon.take_outputs()
    cookie = NotifyPayload(type=NotifyType.COOKIE, data=b"cookie")
    forgery = _answer(request, cookie, puzzle(8, PseudorandomFunction(999)).notify())
    puzzled.moon.endpoint.receive_datagram(forgery, request.path, 0.0)
    (again,) = puzzled.moon.take_outputs()
    assert decoded(again).payloads[0] == cookie


@pytest.mark.parametrize("others", [(), (NotifyPayload(type=NotifyType.COOKIE, data=b""),)])
def test_a_puzzle_without_a_good_cookie_is_ignored(puzzled: Any, others: Any) -> None:
    """RFC 8019 section 7.1.2: "the Initiator MUST ignore the received message"."""
    puzzled.initiate()
    (request,) = puzzled.moon.take_outputs()
    forgery = _answer(request, *others, puzzle(8).notify())
    puzzled.moon.endpoint.receive_datagram(forgery, request.path, 0.0)
    assert puzzled.moon.take_outputs() == []
    assert puzzled.moon.drops == [DropReason.MALFORMED]
    puzzled.run(5)
    puzzled.assert_up()


def test_where_the_difficulty_is_left_to_us_we_choose_one(
    puzzled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 7.1.1.1: 0 means that the initiator spends as much power as it can afford."""
    monkeypatch.setattr("xfrmpy.ike.puzzles.OUR_CHOICE", 10)
    puzzled.initiate()
    (request,) = puzzled.moon.take_outputs()
    cookie = NotifyPayload(type=NotifyType.COOKIE, data=b"cookie")
    demand = _answer(request, cookie, puzzle(0).notify())
    puzzled.moon.endpoint.receive_datagram(demand, request.path, 0.0)
    puzzled.impair = lambda _output, _sender: []
    puzzled.run(0.5)
    solution = decoded(puzzled.sent[0][1]).payloads[1]
    assert isinstance(solution, PuzzleSolutionPayload)
    assert check_solution(puzzle(10), b"cookie", solution)


def test_solving_has_an_end(puzzled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Solver, "work", lambda _self: None)
    monkeypatch.setattr(init_module, "SOLVING_SECONDS", 0.5)
    puzzled.initiate()
    puzzled.deliver()
    puzzled.run(0.6)
    again = decoded(puzzled.sent[2][1])
    assert not [p for p in again.payloads if isinstance(p, PuzzleSolutionPayload)]
    assert len(puzzled.sun.ike_sas) == 1  # Served by lot: there is much room.


def test_puzzles_without_end_end(puzzled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xfrmpy.ike.admission.check_solution", lambda *_: False)
    monkeypatch.setattr("xfrmpy.ike.admission.Admission._is_drawn", lambda *_: False)
    puzzled.initiate()
    puzzled.run(300)
    assert len(puzzled.moon.reports(ExchangeRepeated)) <= MAX_REPETITIONS
    puzzled.assert_forgotten()


def test_no_work_is_done_for_who_does_none(puzzled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cookie comes back without a solution, and the lot falls against it."""
    monkeypatch.setattr("xfrmpy.ike.admission.Admission._is_drawn", lambda *_: False)
    monkeypatch.setattr("xfrmpy.ike.puzzles.Puzzle.is_solvable", False)
    puzzled.initiate()
    puzzled.deliver()
    assert puzzled.sun.drops == [DropReason.PUZZLE_DEMANDED, DropReason.PUZZLE_UNSOLVED]
    assert puzzled.sun.ike_sas == []


def test_who_knows_no_puzzles_is_served_by_lot(
    puzzled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xfrmpy.ike.puzzles.Puzzle.is_solvable", False)
    puzzled.up()
    puzzled.assert_up()


def test_a_wrong_solution_is_worth_no_more_than_none(
    puzzled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xfrmpy.ike.admission.Admission._is_drawn", lambda *_: False)
    wrong = solution_of("00", "01", "02", "03")
    monkeypatch.setattr(Solver, "work", lambda _self: wrong)
    puzzled.initiate()
    puzzled.run(0.1)
    assert DropReason.PUZZLE_UNSOLVED in puzzled.sun.drops
    assert puzzled.sun.ike_sas == []


def test_nobody_profits_from_one_solution_twice(puzzled: Any) -> None:
    """RFC 8019 section 10. The same cookie and solution, and another key exchange value."""
    puzzled.up()
    puzzled.run(0.9)
    puzzled.assert_up()
    _, output = puzzled.sent[2]
    solved = decoded(output)
    path = replace(output.path, local=output.path.remote, remote=output.path.local)
    extra = NotifyPayload(type=NotifyType(40000))
    again = encode_message(replace(solved, payloads=(*solved.payloads, extra)))
    puzzled.sun.endpoint.receive_datagram(again, path, puzzled.now)
    (answer,) = puzzled.sun.take_outputs()
    assert [getattr(p, "type", None) for p in decoded(answer).payloads] == [
        NotifyType.COOKIE,
        NotifyType.PUZZLE,
    ]
    assert len(puzzled.sun.ike_sas) == 1


def test_a_solution_for_another_nonce_is_worth_nothing(puzzled: Any) -> None:
    puzzled.up()
    puzzled.run(0.9)
    _, output = puzzled.sent[2]
    solved = decoded(output)
    path = replace(output.path, local=output.path.remote, remote=output.path.local)
    payloads = tuple(
        NoncePayload(data=bytes(32)) if isinstance(p, NoncePayload) else p for p in solved.payloads
    )
    again = encode_message(replace(solved, payloads=payloads))
    puzzled.sun.endpoint.receive_datagram(again, path, puzzled.now)
    puzzled.sun.take_outputs()
    assert len(puzzled.sun.ike_sas) == 1


def test_puzzles_grow_harder_with_the_load(make_pair: MakePair, make_policy: MakePolicy) -> None:
    limits = AdmissionLimits(
        cookies_at=0, puzzles_at=2, strangers=42, strangers_per_address=500, work_per_second=1e6
    )
    pair = make_pair(make_policy(), limits=limits)
    asked: list[int] = []
    for number in range(42):
        pair.initiate()
        pair._carry(pair.moon, pair.sun)
        (demand,) = pair.sun.take_outputs()
        asked += [
            Puzzle.of(notify).difficulty
            for notify in decoded(demand).payloads
            if isinstance(notify, NotifyPayload) and notify.type is NotifyType.PUZZLE
        ]
        pair.sun.endpoint._admission._strangers[bytes([number])] = None
    assert asked == sorted(asked)
    assert (asked[0], asked[-1]) == (EASIEST_DEMAND, HARDEST_DEMAND)


def test_who_solved_a_puzzle_has_to_go_on_soon(puzzled: Any) -> None:
    puzzled.initiate()
    puzzled.run(0.001)
    while not puzzled.sun.ike_sas:
        puzzled.impair = lambda output, sender: [output.data] if sender is puzzled.moon else []
        puzzled.run(0.01)
    began_at = puzzled.now
    assert puzzled.sun.endpoint.next_timeout() <= began_at + HURRIED_SECONDS
    puzzled.impair = lambda _output, _sender: []
    puzzled.run(HURRIED_SECONDS)
    assert puzzled.sun.ike_sas == []


def test_there_is_no_puzzle_without_a_common_prf(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    """RFC 8019 section 7.1.1.2: the responder returns NO_PROPOSAL_CHOSEN."""
    pair = make_pair(make_policy(), limits=PUZZLES)
    pair.initiate()
    (request,) = pair.moon.take_outputs()
    message = decoded(request)
    sa, *rest = message.payloads
    assert isinstance(sa, SaPayload)
    proposal = sa.proposals[0]
    transforms = tuple(
        replace(t, id=PseudorandomFunction(4)) if t.id == SHA_256 and t.type == 2 else t
        for t in proposal.transforms
    )
    other = replace(sa, proposals=(replace(proposal, transforms=transforms),))
    data = encode_message(replace(message, payloads=(other, *rest)))
    path = replace(request.path, local=request.path.remote, remote=request.path.local)
    pair.sun.endpoint.receive_datagram(data, path, 0.0)
    (answer,) = pair.sun.take_outputs()
    (refusal,) = decoded(answer).payloads
    assert isinstance(refusal, NotifyPayload)
    assert refusal.type is NotifyType.NO_PROPOSAL_CHOSEN


@pytest.mark.parametrize("copies", [0, 2])
@pytest.mark.parametrize("nth", range(6))
def test_a_datagram_lost_or_doubled_among_the_puzzles_does_no_harm(
    puzzled: Any, nth: int, copies: int
) -> None:
    count = 0

    def impair(output: SendDatagram, _sender: Any) -> list[bytes]:
        nonlocal count
        count += 1
        return [output.data] * (copies if count == nth + 1 else 1)

    puzzled.impair = impair
    puzzled.up()
    puzzled.run(100)
    assert [v.state for v in puzzled.moon.views] == [IkeSaState.ESTABLISHED]
    puzzled.assert_up()
