"""Client puzzles (RFC 8019), by themselves and between two ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ike import init as init_module
from xfrmpy.ike.admission import (
    AUTH_DIFFICULTY,
    EASIEST_DEMAND,
    HARDEST_DEMAND,
    Admission,
    AdmissionLimits,
    Admitted,
    Demand,
    Effort,
    Request,
    Shown,
    _chance,
)
from xfrmpy.ike.auth import IkeAuth
from xfrmpy.ike.cookies import Caller
from xfrmpy.ike.errors import DropReason, PeerMisbehaved
from xfrmpy.ike.ike_sa import HURRIED_SECONDS
from xfrmpy.ike.init import MAX_REPETITIONS
from xfrmpy.ike.outputs import ExchangeRepeated, IkeSaEstablished, SendDatagram, TunnelClosed
from xfrmpy.ike.puzzles import HARDEST, OUR_CHOICE, Puzzle, Solver, check_solution, zero_bits
from xfrmpy.ike.states import IkeSaState
from xfrmpy.registry import ExchangeType, NotifyType, PseudorandomFunction
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
    assert Puzzle.of(asked) == puzzle(0)
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
    monkeypatch.setattr("xfrmpy.ike.admission.solved_bits", lambda *_: 0)
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
    half = (EASIEST_DEMAND + HARDEST_DEMAND) // 2
    assert set(asked) == {0, *range(half, HARDEST_DEMAND + 1)}


# A puzzle whose difficulty is left to the caller.


def _demand(admission: Admission, **changes: Any) -> tuple[Request, Demand]:
    demand = admission.examine(_request(**changes), 0.0)
    assert isinstance(demand, Demand)
    return _request(cookie=demand.payloads[0].data, **changes), demand


def _request(**changes: Any) -> Request:
    caller = Caller(address=ip_address("192.0.2.1"), spi_i=b"i" * 8, nonce_i=b"n" * 32)
    request = Request(
        digest=b"",
        source=b"",
        caller=caller,
        cookie=None,
        solution=None,
        prfs=(SHA_256,),
        work=0.3,
        resumes=False,
    )
    return replace(request, **changes)


def _with_bits(request: Request, bits: int) -> Request:
    """A solution of this difficulty, and no better."""
    solver = Solver(puzzle(bits), request.cookie or b"")
    while (solution := solver.work()) is None:
        pass
    return replace(request, solution=solution)


def _caller(number: int) -> Caller:
    return Caller(address=ip_address("192.0.2.1"), spi_i=b"i" * 8, nonce_i=b"%032d" % number)


@pytest.fixture
def half_full(make_random: Callable[[str], Callable[[int], bytes]]) -> Admission:
    """So full that 15 bits would be enough, and little is left to the lot."""
    limits = replace(PUZZLES, strangers=100, strangers_per_address=500, work_per_second=1e6)
    admission = Admission(limits, make_random("admission"))
    admission._strangers.update({bytes([n]): None for n in range(49)})  # type: ignore[misc]
    return admission


def test_enough_bits_of_ones_own_choice_are_served(half_full: Admission) -> None:
    request, demand = _demand(half_full)
    assert Puzzle.of(demand.payloads[1]).difficulty == 0
    admitted = half_full.examine(_with_bits(request, 15), 0.0)
    assert isinstance(admitted, Admitted)
    assert admitted.effort is Effort.PUZZLE


def test_the_more_bits_the_better_the_chance() -> None:
    """RFC 8019 section 7.1.4."""
    for room in (0.3, 0.5, 0.9):
        chances = [_chance(Shown(bits=bits), room) for bits in range(13)]
        assert chances[0] == room
        assert chances == sorted(set(chances))
        assert chances[-1] <= 1


def test_who_made_it_too_easy_gets_a_definite_puzzle(
    half_full: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 8019 section 7.1.5: "then the Responder SHOULD give it another puzzle"."""
    monkeypatch.setattr(Admission, "_is_drawn", lambda *_: False)
    request, _ = _demand(half_full)
    again = half_full.examine(_with_bits(request, 3), 0.0)
    assert isinstance(again, Demand)
    assert Puzzle.of(again.payloads[1]).difficulty == 15


def test_a_cookie_has_one_lot(half_full: Admission) -> None:
    """Else its holder would send it until it wins."""
    verdicts: set[frozenset[type]] = set()
    for number in range(40):
        request, _ = _demand(half_full, caller=_caller(number))
        easy = _with_bits(request, 1)
        verdicts.add(frozenset(type(half_full.examine(easy, 0.0)) for _ in range(5)))
    assert verdicts == {frozenset({Admitted}), frozenset({Demand})}


def test_who_won_by_lot_with_a_solution_has_spent_it(half_full: Admission) -> None:
    for number in range(40):
        request, _ = _demand(half_full, caller=_caller(number))
        easy = _with_bits(request, 1)
        admitted = half_full.examine(easy, 0.0)
        if isinstance(admitted, Admitted):
            break
    assert isinstance(admitted, Admitted)
    half_full.opened(b"an SPI", admitted, 0.0)
    half_full.closed(b"an SPI", is_authenticated=False)
    assert isinstance(half_full.examine(easy, 0.0), Demand)


# In IKE_AUTH.

AUTH_PUZZLES = replace(PUZZLES, auth_puzzles_at=0)


@pytest.fixture
def twice_puzzled(make_pair: MakePair, make_policy: MakePolicy) -> Any:
    """A pair whose ends demand a puzzle in IKE_AUTH too."""
    return make_pair(make_policy(), limits=AUTH_PUZZLES)


def _auth_requests(pair: Any) -> list[Message]:
    requests = [decoded(output) for name, output in pair.sent if name == "moon"]
    return [message for message in requests if message.exchange is ExchangeType.IKE_AUTH]


def _until_sun_has_answered(pair: Any) -> None:
    """Moon has solved the first puzzle; what it sends from now on waits for the test."""
    pair.initiate()
    while not pair.sun.ike_sas:
        pair.run(0.001)


def test_a_puzzle_in_ike_auth_is_solved_and_brings_the_tunnel_up(twice_puzzled: Any) -> None:
    _until_sun_has_answered(twice_puzzled)
    (waiting,) = twice_puzzled.sun.ike_sas
    assert waiting.state is IkeSaState.AUTHENTICATING
    assert waiting.keys is None
    twice_puzzled.run(3)
    twice_puzzled.assert_up()
    (request,) = _auth_requests(twice_puzzled)
    solution, _sealed = request.payloads
    assert isinstance(solution, PuzzleSolutionPayload)
    text = waiting.nonces[1] + waiting.channel.spi_r
    assert check_solution(puzzle(AUTH_DIFFICULTY), text, solution)
    assert not twice_puzzled.moon.drops
    twice_puzzled.moon.endpoint.rekey_ike_sas("tunnel-a", twice_puzzled.now)
    twice_puzzled.run(5)
    twice_puzzled.assert_up()


def test_it_is_in_the_first_fragment_only(make_pair: MakePair, make_policy: MakePolicy) -> None:
    """RFC 8019 section 7.2.2, and RFC 7383 section 2.5.3."""
    pair = make_pair(make_policy(" ".join(f"10.{n}.0.0/16" for n in range(70))), None, AUTH_PUZZLES)
    pair.initiate()
    pair.run(3)
    pair.assert_up()
    requests = _auth_requests(pair)
    assert len(requests) > 1
    outer = [[type(p) for p in message.payloads[:-1]] for message in requests]
    assert outer == [[PuzzleSolutionPayload], *[[]] * (len(requests) - 1)]
    assert all(len(output.data) <= 1200 for _, output in pair.sent)


def test_fragments_before_the_first_wait_to_be_sent_again(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    pair = make_pair(make_policy(" ".join(f"10.{n}.0.0/16" for n in range(70))), None, AUTH_PUZZLES)
    _until_sun_has_answered(pair)
    held: list[SendDatagram] = []
    pair.impair = lambda output, _sender: held.append(output) or []  # type: ignore[func-returns-value]
    pair.run(1.5)
    first, second = held[:2]
    path = replace(first.path, local=first.path.remote, remote=first.path.local)
    for output in (second, first):
        pair.sun.receive(output.data, path, pair.now)
    assert pair.sun.drops[-1] is DropReason.PUZZLE_UNSOLVED
    assert pair.sun.ike_sas[0].state is IkeSaState.AUTHENTICATING
    pair.impair = lambda output, _sender: [output.data]
    pair.run(5)
    pair.assert_up()


@pytest.mark.parametrize("kind", ["none", "wrong", "two"])
def test_without_the_solution_no_key_is_computed(
    twice_puzzled: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """RFC 8019 section 7.2.4."""
    wrong = solution_of("00", "01", "02", "03")
    solutions = {"none": (), "wrong": (wrong,), "two": (wrong, wrong)}[kind]
    request = IkeAuth.request
    monkeypatch.setattr(
        IkeAuth,
        "request",
        lambda self: (
            *solutions,
            *(p for p in request(self) if not isinstance(p, PuzzleSolutionPayload)),
        ),
    )
    _until_sun_has_answered(twice_puzzled)
    (waiting,) = twice_puzzled.sun.ike_sas
    twice_puzzled.run(4)
    assert DropReason.PUZZLE_UNSOLVED in twice_puzzled.sun.drops
    assert waiting.keys is None
    twice_puzzled.run(300)
    assert twice_puzzled.sun.ike_sas == []
    assert twice_puzzled.moon.ike_sas == []


def test_keys_are_kept_when_what_solved_the_puzzle_does_not_open(twice_puzzled: Any) -> None:
    """RFC 8019 section 7.2.4: "it SHOULD save the calculated keys in the IKE SA state"."""
    twice_puzzled.initiate()
    spoiled: list[bytes] = []

    def spoil(output: SendDatagram, _sender: Any) -> list[bytes]:
        if decoded(output).exchange is not ExchangeType.IKE_AUTH or spoiled:
            return [output.data]
        spoiled.append(output.data)
        return [output.data[:-1] + bytes([output.data[-1] ^ 1])]

    twice_puzzled.impair = spoil
    while not spoiled:
        twice_puzzled.run(0.001)
    assert twice_puzzled.sun.drops[-1] is DropReason.NOT_AUTHENTIC
    (waiting,) = twice_puzzled.sun.ike_sas
    keys = waiting.keys
    assert keys is not None
    twice_puzzled.run(4)
    twice_puzzled.assert_up()
    assert twice_puzzled.sun.ike_sa.keys is keys


def test_no_puzzle_is_in_ike_auth_while_what_comes_there_opens(puzzled: Any) -> None:
    puzzled.up()
    puzzled.run(0.9)
    (request,) = _auth_requests(puzzled)
    assert len(request.payloads) == 1


def test_what_does_not_open_brings_puzzles_into_ike_auth(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    pair = make_pair(make_policy(), None, replace(PUZZLES, auth_puzzles_at=1))

    def spoil(output: SendDatagram, sender: Any) -> list[bytes]:
        is_auth = decoded(output).exchange is ExchangeType.IKE_AUTH and sender is pair.moon
        return [output.data[:-1] + bytes([output.data[-1] ^ 1])] if is_auth else [output.data]

    pair.impair = spoil
    pair.initiate()
    while DropReason.NOT_AUTHENTIC not in pair.sun.drops:
        pair.run(0.01)
    pair.impair = lambda output, _sender: [output.data]
    pair.initiate()
    pair.run(60)
    assert [len(message.payloads) for message in _auth_requests(pair)].count(2) == 1
    pair.assert_up()
    assert not pair.sun.endpoint._admission._forged


def test_no_puzzle_is_in_ike_auth_for_who_solved_none_before(
    twice_puzzled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 8019 section 7.2.1: it MUST NOT be."""
    monkeypatch.setattr("xfrmpy.ike.puzzles.Puzzle.is_solvable", False)
    twice_puzzled.up()
    twice_puzzled.assert_up()
    (request,) = _auth_requests(twice_puzzled)
    assert len(request.payloads) == 1


@pytest.mark.parametrize("difficulty", [HARDEST + 1, 255])
def test_a_puzzle_in_ike_auth_that_is_too_hard_ends_the_attempt(
    twice_puzzled: Any, monkeypatch: pytest.MonkeyPatch, difficulty: int
) -> None:
    monkeypatch.setattr("xfrmpy.ike.admission.AUTH_DIFFICULTY", difficulty)
    twice_puzzled.initiate()
    twice_puzzled.run(1)
    (closed,) = twice_puzzled.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2009"
    assert f"{difficulty} bits" in closed.failure.summary


def test_solving_for_ike_auth_has_an_end(
    twice_puzzled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _until_sun_has_answered(twice_puzzled)
    monkeypatch.setattr(Solver, "work", lambda _self: None)
    twice_puzzled.run(40)
    (closed,) = twice_puzzled.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2009"
    twice_puzzled.run(100)
    twice_puzzled.assert_forgotten()


def test_down_while_a_puzzle_of_ike_auth_is_solved_ends_it(twice_puzzled: Any) -> None:
    _until_sun_has_answered(twice_puzzled)
    twice_puzzled.run(0.002)
    twice_puzzled.moon.endpoint.terminate("tunnel-a", twice_puzzled.now)
    twice_puzzled.run(300)
    twice_puzzled.assert_forgotten()
    assert not any(o.remote_id for h in (twice_puzzled.moon,) for o in h.reports(IkeSaEstablished))


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
        replace(t, id=PseudorandomFunction(1)) if t.id == SHA_256 and t.type == 2 else t
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
