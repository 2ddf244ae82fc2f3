"""Who is served when many ask: cookies, limits, and the work that strangers may cause."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ike import init as init_module
from xfrmpy.ike.admission import (
    BUDGET_SECONDS,
    PUZZLE_RESERVE,
    RESERVE,
    RESUMPTION_WORK,
    WORK,
    Admission,
    AdmissionLimits,
    Admitted,
    Demand,
    Effort,
    Request,
)
from xfrmpy.ike.budget import Budget
from xfrmpy.ike.cookies import INFO_SIZE, SECRET_SECONDS, Caller, CookieJar
from xfrmpy.ike.errors import Drop, DropReason
from xfrmpy.ike.ike_sa import HALF_OPEN_SECONDS, LINGER_SECONDS
from xfrmpy.ike.outputs import SendDatagram
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.policy.model import Encapsulation
from xfrmpy.registry import KeyExchangeMethod, NotifyType, PseudorandomFunction
from xfrmpy.wire.message import Message, decode_message_untrusted, encode_message
from xfrmpy.wire.payloads import KePayload, NoncePayload, NotifyPayload, SaPayload

MakePair = Callable[..., Any]
MakePolicy = Callable[..., Any]

ALWAYS = AdmissionLimits(cookies_at=0)
MANY = 10**6
NO_OTHER_LIMIT = {
    "cookies_at": MANY,
    "puzzles_at": MANY,
    "strangers": MANY,
    "strangers_per_address": MANY,
}
INFO = bytes(INFO_SIZE)
CALLER = Caller(address=ip_address("192.0.2.1"), spi_i=b"initiatr", nonce_i=b"n" * 32)


# Cookies by themselves (section 2.6).


@pytest.fixture
def jar(make_random: Callable[[str], Any]) -> CookieJar:
    return CookieJar(make_random("jar"))


def test_a_cookie_is_recognised_with_its_information(jar: CookieJar) -> None:
    cookie = jar.bake(CALLER, b"abc", 0.0)
    assert 1 <= len(cookie) <= 64
    assert jar.recognise(cookie, CALLER, 1.0) == b"abc"


@pytest.mark.parametrize(
    "other",
    [
        replace(CALLER, address=ip_address("192.0.2.2")),
        replace(CALLER, address=ip_address("c000:201::")),
        replace(CALLER, spi_i=b"another1"),
        replace(CALLER, nonce_i=b"m" * 32),
    ],
    ids=["address", "family", "spi", "nonce"],
)
def test_a_cookie_of_another_caller_is_worth_nothing(jar: CookieJar, other: Caller) -> None:
    assert jar.recognise(jar.bake(CALLER, INFO, 0.0), other, 0.0) is None


def test_every_octet_of_a_cookie_is_guarded(jar: CookieJar) -> None:
    cookie = jar.bake(CALLER, INFO, 0.0)
    for position in range(len(cookie)):
        mangled = bytearray(cookie)
        mangled[position] ^= 1
        assert jar.recognise(bytes(mangled), CALLER, 0.0) is None
    for other in (cookie[:-1], cookie + b"\0", b"", bytes(len(cookie))):
        assert jar.recognise(other, CALLER, 0.0) is None


def test_the_secret_before_stays_good_for_a_while(jar: CookieJar) -> None:
    old = jar.bake(CALLER, INFO, 0.0)
    new = jar.bake(CALLER, INFO, SECRET_SECONDS)
    assert old[0] != new[0]
    assert old[1 + INFO_SIZE :] != new[1 + INFO_SIZE :]
    for cookie in (old, new):
        assert jar.recognise(cookie, CALLER, SECRET_SECONDS * 2 - 1) is not None
    assert jar.recognise(old, CALLER, SECRET_SECONDS * 2) is None
    assert jar.recognise(new, CALLER, SECRET_SECONDS * 2) is not None


def test_a_cookie_is_worth_nothing_after_a_long_quiet(jar: CookieJar) -> None:
    cookie = jar.bake(CALLER, INFO, 0.0)
    assert jar.recognise(cookie, CALLER, 10 * SECRET_SECONDS) is None
    jar.bake(CALLER, INFO, 10 * SECRET_SECONDS)
    assert jar.recognise(cookie, CALLER, 10 * SECRET_SECONDS) is None


def test_another_daemon_s_cookie_is_worth_nothing(
    jar: CookieJar, make_random: Callable[[str], Any]
) -> None:
    cookie = CookieJar(make_random("another")).bake(CALLER, INFO, 0.0)
    jar.bake(CALLER, INFO, 0.0)
    assert jar.recognise(cookie, CALLER, 0.0) is None


# The budget.


def test_a_budget_is_full_at_first_and_fills_again() -> None:
    budget = Budget(per_second=10, most=20)
    assert budget.spend(20, 5.0)
    assert not budget.spend(0.1, 5.0)
    assert budget.left(6.0) == 10
    assert budget.left(100.0) == 20
    budget.give_back(5)
    assert budget.left(100.0) == 20


def test_a_budget_is_earned_again_and_never_saved_beyond_its_most() -> None:
    budget = Budget(per_second=2, most=2)

    def spent(now: float) -> int:
        count = 0
        while budget.spend(1, now):
            count += 1
        return count

    assert [spent(now) for now in (0, 0, 0.5, 1.5, 100, 100)] == [2, 0, 1, 2, 2, 0]


# A responder under load, whole.


@pytest.fixture
def guarded(make_pair: MakePair, make_policy: MakePolicy) -> Any:
    """A pair whose ends demand a cookie always."""
    return make_pair(make_policy(), limits=ALWAYS)


def ask(
    pair: Any, request: SendDatagram, make_backwards: Callable[..., Any], source: str
) -> list[SendDatagram]:
    path = make_backwards(request.path)
    path = replace(path, remote=SocketAddress(ip_address(source), 500))
    pair.sun.endpoint.receive_datagram(request.data, path, pair.now)
    sent: list[SendDatagram] = pair.sun.take_outputs()
    return sent


def decoded(datagram: SendDatagram) -> Message:
    return decode_message_untrusted(datagram.data)


def test_a_cookie_is_demanded_and_brings_the_tunnel_up(guarded: Any) -> None:
    guarded.up()
    guarded.assert_up()
    demand = decoded(guarded.sent[1][1])
    (cookie,) = demand.payloads
    assert isinstance(cookie, NotifyPayload)
    assert cookie.type is NotifyType.COOKIE
    assert not any(demand.spi_r)
    again = decoded(guarded.sent[2][1])
    assert again.payloads == (cookie, *decoded(guarded.sent[0][1]).payloads)
    assert guarded.sun.drops == [DropReason.COOKIE_DEMANDED]


def test_before_a_cookie_comes_back_there_is_no_state_and_no_key_exchange(
    guarded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded.initiate()
    (request,) = guarded.moon.take_outputs()
    monkeypatch.setattr(init_module, "answer_ke", None)
    path = replace(request.path, local=request.path.remote, remote=request.path.local)
    guarded.sun.endpoint.receive_datagram(request.data, path, 0.0)
    guarded.sun.take_outputs()
    assert guarded.sun.ike_sas == []
    guarded.moon.ike_sa.close(None, 0.0)
    guarded.moon.take_outputs()
    guarded.run(100)
    guarded.assert_forgotten()


def test_cookies_are_demanded_only_while_many_strangers_are_there(
    make_pair: MakePair, make_policy: MakePolicy, make_backwards: Callable[..., Any]
) -> None:
    pair = make_pair(make_policy(), limits=AdmissionLimits(cookies_at=3))
    for _ in range(5):
        pair.initiate()
    for request in pair.moon.take_outputs():
        ask(pair, request, make_backwards, "192.0.2.1")
    assert pair.sun.drops == [DropReason.COOKIE_DEMANDED] * 2
    assert len(pair.sun.ike_sas) == 3
    pair.impair = lambda _output, _sender: []
    pair.run(HALF_OPEN_SECONDS)
    pair.impair = lambda output, _sender: [output.data]
    assert pair.sun.ike_sas == []
    pair.sun.outputs.clear()
    pair.up()
    assert pair.sun.drops == []


def test_established_ike_sas_are_no_strangers(make_pair: MakePair, make_policy: MakePolicy) -> None:
    pair = make_pair(make_policy(), limits=AdmissionLimits(cookies_at=1, strangers=1))
    for count in range(1, 4):
        pair.up()
        assert len(pair.sun.views) == count
    assert pair.sun.drops == []


@pytest.mark.parametrize("what", ["mangled", "of another", "empty", "too long", "old"])
def test_a_cookie_that_is_not_ours_is_ignored_and_another_demanded(
    guarded: Any, make_backwards: Callable[..., Any], what: str
) -> None:
    guarded.initiate()
    guarded.initiate()
    request, another = guarded.moon.take_outputs()
    first, second = (ask(guarded, r, make_backwards, "192.0.2.1") for r in (request, another))
    (cookie,) = (p for p in decoded(first[0]).payloads if isinstance(p, NotifyPayload))
    (other,) = (p for p in decoded(second[0]).payloads if isinstance(p, NotifyPayload))
    if what == "old":
        guarded.now = SECRET_SECONDS * 3
    data = {
        "mangled": cookie.data[:-1] + bytes([cookie.data[-1] ^ 1]),
        "of another": other.data,
        "empty": b"",
        "too long": cookie.data + b"\0",
        "old": cookie.data,
    }[what]
    (answer,) = ask(guarded, _with_cookie(request, data), make_backwards, "192.0.2.1")
    (fresh,) = decoded(answer).payloads
    assert isinstance(fresh, NotifyPayload)
    assert (fresh.type, fresh.data == data) == (NotifyType.COOKIE, False)
    assert guarded.sun.ike_sas == []
    ask(guarded, _with_cookie(request, fresh.data), make_backwards, "192.0.2.1")
    assert len(guarded.sun.ike_sas) == 1


def _with_cookie(request: SendDatagram, cookie: bytes) -> SendDatagram:
    message = decoded(request)
    payloads = (NotifyPayload(type=NotifyType.COOKIE, data=cookie), *message.payloads)
    return replace(request, data=encode_message(replace(message, payloads=payloads)))


def test_a_cookie_is_good_at_its_address_only(
    guarded: Any, make_backwards: Callable[..., Any]
) -> None:
    guarded.initiate()
    (request,) = guarded.moon.take_outputs()
    (answer,) = ask(guarded, request, make_backwards, "192.0.2.1")
    (cookie,) = decoded(answer).payloads
    assert isinstance(cookie, NotifyPayload)
    ask(guarded, _with_cookie(request, cookie.data), make_backwards, "192.0.2.77")
    assert guarded.sun.ike_sas == []


def test_a_changed_port_does_not_spoil_a_cookie(
    guarded: Any, make_backwards: Callable[..., Any]
) -> None:
    """A NAT may take another port for the next datagram."""
    guarded.initiate()
    (request,) = guarded.moon.take_outputs()
    (answer,) = ask(guarded, request, make_backwards, "192.0.2.1")
    (cookie,) = decoded(answer).payloads
    assert isinstance(cookie, NotifyPayload)
    path = replace(
        make_backwards(request.path), remote=SocketAddress(ip_address("192.0.2.1"), 40123)
    )
    data = _with_cookie(request, cookie.data).data
    guarded.sun.endpoint.receive_datagram(data, path, 0.0)
    assert len(guarded.sun.ike_sas) == 1


def test_a_cookie_and_another_group_take_three_round_trips(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: MakePolicy
) -> None:
    """Section 2.6.1, the shorter exchange: the cookie of the first request serves the third."""
    moon = make_policy(ike="aes128gcm16-prfsha256-ecp256-x25519")
    sun = make_mirror(make_policy(ike="aes128gcm16-prfsha256-x25519"))
    pair = make_pair(moon, sun, limits=ALWAYS)
    pair.up()
    pair.assert_up()
    answers = [decoded(o).payloads[0] for name, o in pair.sent[:6] if name == "sun"]
    kinds = [getattr(p, "type", None) for p in answers]
    assert kinds == [NotifyType.COOKIE, NotifyType.INVALID_KE_PAYLOAD, None]


def test_all_other_payloads_are_unchanged_when_we_feign_a_nat(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    """The hash of a source address that we do not have is noise, but not a new one each time."""
    policy = replace(make_policy(), encapsulation=Encapsulation.FORCE)
    pair = make_pair(policy, limits=ALWAYS)
    pair.up()
    pair.assert_up()
    first, again = decoded(pair.sent[0][1]), decoded(pair.sent[2][1])
    assert again.payloads[1:] == first.payloads


@pytest.mark.parametrize("copies", [0, 2])
@pytest.mark.parametrize("nth", range(6))
def test_a_datagram_lost_or_doubled_among_the_cookies_does_no_harm(
    guarded: Any, nth: int, copies: int
) -> None:
    count = 0

    def impair(output: SendDatagram, _sender: Any) -> list[bytes]:
        nonlocal count
        count += 1
        return [output.data] * (copies if count == nth + 1 else 1)

    guarded.impair = impair
    guarded.up()
    guarded.run(10)
    guarded.assert_up()
    guarded.run(HALF_OPEN_SECONDS + LINGER_SECONDS)
    assert len(guarded.moon.ike_sas) == len(guarded.sun.ike_sas) == 1


# Limits.


def test_a_spoofed_flood_gets_cookies_and_an_honest_peer_its_tunnel(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: MakePolicy, make_backwards: Any
) -> None:
    """Unbounded work before authentication: 3,000 requests in a second from as many addresses."""
    policy = make_policy()
    pair = make_pair(policy, replace(make_mirror(policy), peers=("192.0.2.1",)))
    _accept_any_address(pair.sun)
    pair.initiate()
    (request,) = pair.moon.take_outputs()
    for number in range(3000):
        spoofed = _renewed(request, number)
        (answer,) = ask(pair, spoofed, make_backwards, f"198.18.{number // 250}.{number % 250}")
        assert len(answer.data) <= len(spoofed.data) or number < AdmissionLimits().cookies_at
        pair.now += 1 / 3000
    assert len(pair.sun.ike_sas) == AdmissionLimits().cookies_at
    assert set(pair.sun.drops) == {DropReason.COOKIE_DEMANDED}
    pair.run(2)
    assert IkeSaState.ESTABLISHED in [v.state for v in pair.sun.views]


def _accept_any_address(host: Any) -> None:
    tunnel = host.endpoint._core.tunnels["tunnel-a"]
    host.endpoint.replace_tunnel(replace(tunnel.policy, peers=()))


def _renewed(request: SendDatagram, number: int) -> SendDatagram:
    """The same request of another initiator."""
    message = decoded(request)
    nonce = number.to_bytes(32, "big")
    payloads = tuple(
        NoncePayload(data=nonce) if isinstance(p, NoncePayload) else p for p in message.payloads
    )
    changed = replace(message, spi_i=b"spi " + number.to_bytes(4, "big"), payloads=payloads)
    return replace(request, data=encode_message(changed))


def test_strangers_are_limited_in_all_and_make_room_again(
    make_pair: MakePair, make_policy: MakePolicy, make_backwards: Callable[..., Any]
) -> None:
    pair = make_pair(make_policy(), limits=AdmissionLimits(cookies_at=50, strangers=20))
    for _ in range(25):
        pair.initiate()
    for request in pair.moon.take_outputs():
        ask(pair, request, make_backwards, "192.0.2.1")
    assert len(pair.sun.ike_sas) == 20
    assert pair.sun.drops == [DropReason.HALF_OPEN_LIMIT] * 5
    pair.impair = lambda _output, _sender: []
    pair.run(HALF_OPEN_SECONDS)
    assert pair.sun.ike_sas == []
    assert not pair.sun.endpoint._timers
    pair.impair = lambda output, _sender: [output.data]
    pair.initiate()
    pair.deliver()
    assert IkeSaState.ESTABLISHED in [v.state for v in pair.sun.views]


def test_who_fails_to_prove_who_it_is_stays_a_stranger_until_it_is_forgotten(
    make_pair: MakePair, make_policy: MakePolicy, make_mirror: MakePolicy
) -> None:
    sun = make_mirror(make_policy(key=b"another key"))
    pair = make_pair(make_policy(), sun, limits=AdmissionLimits(strangers=2))
    for _ in range(3):
        pair.up()
    assert pair.sun.drops == [DropReason.HALF_OPEN_LIMIT]
    pair.run(200)
    pair.assert_forgotten()


def _request(
    source: str, number: int = 0, method: KeyExchangeMethod = KeyExchangeMethod.CURVE25519
) -> Request:
    return Request(
        digest=f"{source} {number}".encode(),
        source=ip_address(source).packed[:8],
        caller=Caller(
            address=ip_address(source), spi_i=number.to_bytes(8, "big"), nonce_i=b"n" * 32
        ),
        cookie=None,
        solution=None,
        prfs=(PseudorandomFunction.HMAC_SHA2_256,),
        work=WORK[method],
        resumes=False,
    )


def _resumption(source: str, number: int = 0) -> Request:
    return replace(_request(source, number), prfs=(), work=RESUMPTION_WORK, resumes=True)


def _with_its_cookie(admission: Admission, request: Request, now: float = 0.0) -> Request:
    demand = admission.examine(request, now)
    assert not isinstance(demand, Admitted)
    return replace(request, cookie=demand.payloads[0].data)


@pytest.fixture
def make_admission(make_random: Callable[[str], Any]) -> Callable[..., Admission]:
    return lambda **limits: Admission(AdmissionLimits(**limits), make_random("admission"))


def test_one_address_has_only_so_many_strangers(
    make_admission: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Admission, "_is_drawn", lambda *_: True)
    admission = make_admission(cookies_at=0, strangers_per_address=3)
    for number in range(4):
        request = _with_its_cookie(admission, _request("192.0.2.1", number))
        if number == 3:
            with pytest.raises(Drop, match=DropReason.ADDRESS_LIMIT):
                admission.examine(request, 0.0)
        else:
            admission.opened(request.caller.spi_i, admission.examine(request, 0.0), 0.0)
    other = _with_its_cookie(admission, _request("192.0.2.2"))
    assert isinstance(admission.examine(other, 0.0), Admitted)
    admission.closed((0).to_bytes(8, "big"), is_authenticated=False)
    again = _with_its_cookie(admission, _request("192.0.2.1", 4))
    assert isinstance(admission.examine(again, 0.0), Admitted)


def test_an_ipv6_site_counts_as_one_address(guarded: Any) -> None:
    guarded.initiate()
    (output,) = guarded.moon.take_outputs()
    message = decoded(output)

    def source(address: str) -> bytes:
        path = replace(output.path, remote=SocketAddress(ip_address(address), 500))
        return Request.of(message, b"digest", path).source

    assert source("2001:db8::1") == source("2001:db8::ffff:1") != source("2001:db8:0:1::1")
    assert source("192.0.2.1") != source("192.0.2.2")


def test_who_shows_no_cookie_takes_nothing_from_the_quota_of_an_address(
    make_admission: Any,
) -> None:
    """Anybody can write an honest peer's address on a datagram."""
    admission = make_admission(cookies_at=5, strangers_per_address=10)
    for number in range(5):
        spoofed = _request("192.0.2.1", number)
        admission.opened(spoofed.caller.spi_i, admission.examine(spoofed, 0.0), 0.0)
    honest = _with_its_cookie(admission, _request("192.0.2.1", 9))
    assert isinstance(admission.examine(honest, 0.0), Admitted)


def test_work_for_strangers_is_limited_and_a_share_kept_for_those_with_cookies(
    make_admission: Any,
) -> None:
    admission = make_admission(**NO_OTHER_LIMIT)
    method = KeyExchangeMethod.MODP_4096
    most = AdmissionLimits().work_per_second * BUDGET_SECONDS
    served = 0
    while isinstance(admission.examine(_request("192.0.2.1", served, method), 0.0), Admitted):
        served += 1
    assert served == int(most * (1 - RESERVE) / WORK[method])
    while _is_served_with_cookie(admission, _request("192.0.2.2", served, method), 0.0):
        served += 1
    assert served == math.ceil(most * (1 - PUZZLE_RESERVE) / WORK[method])
    later = _request("192.0.2.2", served, method)
    assert _is_served_with_cookie(admission, later, 0.25)


def test_a_ticket_takes_the_place_of_a_puzzle_and_not_of_a_cookie(make_admission: Any) -> None:
    """RFC 8019 section 4.5."""
    admission = make_admission(puzzles_at=0)
    for request, effort in (
        (_request("192.0.2.1"), Effort.PUZZLE),
        (_resumption("192.0.2.1"), Effort.COOKIE),
    ):
        demand = admission.examine(request, 0.0)
        assert isinstance(demand, Demand)
        assert demand.effort is effort
    shown = _with_its_cookie(admission, _resumption("192.0.2.1"))
    assert isinstance(admission.examine(shown, 0.0), Admitted)


def test_tickets_leave_the_share_of_those_who_solve_puzzles(make_admission: Any) -> None:
    """RFC 8019 section 4.5: "SHOULD NOT serve resumed Initiators exclusively"."""
    limits = {**NO_OTHER_LIMIT, "cookies_at": 0}
    admission = make_admission(**limits, work_per_second=10.1)
    enough = math.ceil(10.1 * BUDGET_SECONDS * (1 - PUZZLE_RESERVE) / RESUMPTION_WORK)
    for number in range(enough):
        assert _is_served_with_cookie(admission, _resumption("192.0.2.1", number), 0.0)
    one_more = _with_its_cookie(admission, _resumption("192.0.2.1", enough))
    with pytest.raises(Drop, match=DropReason.WORK_LIMIT):
        admission.examine(one_more, 0.0)
    assert admission._share_left(0.0) == pytest.approx(PUZZLE_RESERVE, abs=0.02)


def _is_served_with_cookie(admission: Admission, request: Request, now: float) -> bool:
    verdict = admission.examine(request, now)
    assert isinstance(verdict, Demand)
    return verdict.effort is Effort.COOKIE and isinstance(
        admission.examine(replace(request, cookie=verdict.payloads[0].data), now), Admitted
    )


def test_no_work_is_done_beyond_the_budget(make_admission: Any) -> None:
    admission = make_admission(work_per_second=WORK[KeyExchangeMethod.CURVE25519] / 4)
    request = _with_its_cookie(admission, _request("192.0.2.1"))
    with pytest.raises(Drop, match=DropReason.WORK_LIMIT):
        admission.examine(request, 0.0)


def test_work_for_peers_that_prove_who_they_are_does_not_count(make_admission: Any) -> None:
    admission = make_admission(work_per_second=WORK[KeyExchangeMethod.CURVE25519] * 4)
    for number in range(1000):
        request = _request("192.0.2.1", number)
        admitted = admission.examine(request, 0.0)
        assert isinstance(admitted, Admitted)
        admission.opened(request.caller.spi_i, admitted, 0.0)
        admission.closed(request.caller.spi_i, is_authenticated=True)


@pytest.mark.parametrize("missing", [SaPayload, KePayload, NoncePayload])
def test_what_is_no_whole_request_gets_no_cookie(
    guarded: Any, make_backwards: Callable[..., Any], missing: type
) -> None:
    """A cookie for less than a request would be more octets than were sent."""
    guarded.initiate()
    (request,) = guarded.moon.take_outputs()
    message = decoded(request)
    payloads = tuple(p for p in message.payloads if not isinstance(p, missing))
    short = replace(request, data=encode_message(replace(message, payloads=payloads)))
    assert ask(guarded, short, make_backwards, "192.0.2.1") == []
    assert guarded.sun.drops == [DropReason.MALFORMED]


def test_our_own_request_sent_back_to_us_is_dropped_under_load_too(
    guarded: Any, make_backwards: Callable[..., Any]
) -> None:
    guarded.initiate()
    (request,) = guarded.moon.take_outputs()
    guarded.moon.endpoint.receive_datagram(request.data, make_backwards(request.path), 0.0)
    assert guarded.moon.take_outputs() == []
    assert guarded.moon.drops == [DropReason.WRONG_ROLE]
