"""RFC 4478: the responder says by when the initiator must authenticate again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.outputs import IkeSaRekeyed, TunnelClosed
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import NotifyPayload


def _lifetimes(payloads: Any) -> list[bytes]:
    return [
        p.data
        for p in payloads
        if isinstance(p, NotifyPayload) and p.type == NotifyType.AUTH_LIFETIME
    ]


@pytest.fixture
def limited(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], make_mirror: Any
) -> Any:
    """Only sun, the responder, has a limit."""
    policy = make_policy()
    return make_pair(policy, replace(make_mirror(policy), reauth_seconds=1000.0))


def test_the_responder_says_it_in_its_answer_alone(limited: Any, sealing: Any) -> None:
    limited.up()
    said = {m.is_response: _lifetimes(p) for m, p in sealing.sent}
    assert said == {False: [], True: [(1000).to_bytes(4, "big")]}


def test_the_initiator_authenticates_again_before_the_time_is_over(limited: Any) -> None:
    limited.up()
    limited.run(795)
    assert not limited.moon.reports(IkeSaRekeyed)
    limited.run(110)
    (report,) = limited.moon.reports(IkeSaRekeyed)
    assert (report.reauthenticated, report.is_initiator) == (True, True)
    limited.run(3000)
    assert 3 <= len(limited.moon.reports(IkeSaRekeyed)) <= 5
    assert not limited.moon.reports(TunnelClosed)


def test_the_responder_does_it_where_the_initiator_does_not(limited: Any, sealing: Any) -> None:
    def forget(_message: Any, payloads: Any) -> Any:
        return tuple(p for p in payloads if getattr(p, "type", None) != NotifyType.AUTH_LIFETIME)

    sealing.change = forget
    limited.up()
    limited.run(1000)
    (report,) = limited.sun.reports(IkeSaRekeyed)
    assert (report.reauthenticated, report.is_initiator) == (True, True)
    assert not limited.sun.reports(TunnelClosed)


def test_it_may_come_later_and_may_only_shorten_the_time(pair: Any, make_ask: Any) -> None:
    pair.up()

    def tell(seconds: int) -> None:
        notify = NotifyPayload(type=NotifyType.AUTH_LIFETIME, data=seconds.to_bytes(4, "big"))
        make_ask(ExchangeType.INFORMATIONAL, notify).on(pair.sun, pair.now)
        pair.deliver()

    tell(500)
    tell(100_000)
    pair.run(460)
    assert [r.reauthenticated for r in pair.moon.reports(IkeSaRekeyed)] == [True]


def test_an_initiator_that_says_it_is_not_obeyed(pair: Any, make_ask: Any) -> None:
    pair.up()
    notify = NotifyPayload(type=NotifyType.AUTH_LIFETIME, data=(100).to_bytes(4, "big"))
    make_ask(ExchangeType.INFORMATIONAL, notify).on(pair.moon, pair.now)
    pair.run(200)
    assert not pair.sun.reports(IkeSaRekeyed)


def test_a_lifetime_of_another_size_is_none(pair: Any, make_ask: Any) -> None:
    pair.up()
    notify = NotifyPayload(type=NotifyType.AUTH_LIFETIME, data=b"now")
    make_ask(ExchangeType.INFORMATIONAL, notify).on(pair.sun, pair.now)
    pair.run(1000)
    pair.assert_up()
