"""IP compression: who asks and who agrees, in both roles and across rekeys (RFC 7296 2.22)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.compression import compression_payloads, cpi_of, named_cpi
from xfrmpy.ike.errors import PeerMisbehaved
from xfrmpy.ipsec.sad import NEGOTIATED_CPIS
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import NotifyPayload

Connect = Callable[[bool, bool], Any]


def wanting(policy: Any, wanted: bool) -> Any:
    return replace(policy, children=tuple(replace(c, compresses=wanted) for c in policy.children))


@pytest.fixture
def connect(make_pair: Any, make_policy: Any, make_mirror: Any) -> Connect:
    """A pair of which moon, the initiator, wants it, and sun, the responder."""

    def make(moon: bool, sun: bool) -> Any:
        policy = make_policy()
        pair = make_pair(wanting(policy, moon), wanting(make_mirror(policy), sun))
        pair.initiate()
        pair.deliver()
        return pair

    return make


def cpis(host: Any) -> set[tuple[int, int | None]]:
    return {(entry.spi, entry.cpi) for entry in host.datapath.dump().sad}


@pytest.mark.parametrize(
    ("moon", "sun"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_it_takes_both(connect: Connect, moon: bool, sun: bool) -> None:
    pair = connect(moon, sun)
    assert cpis(pair.moon) == cpis(pair.sun)
    expected = {cpi is not None for _, cpi in cpis(pair.moon)}
    assert expected == {moon and sun}
    for spi, cpi in cpis(pair.moon):
        assert cpi in (None, cpi_of(spi))


def test_each_new_sa_has_an_index_of_its_own(connect: Connect) -> None:
    pair = connect(True, True)
    for host in (pair.moon, pair.sun):
        before = cpis(pair.moon)
        host.endpoint.rekey_child_sas("tunnel-a", pair.now)
        pair.deliver()
        pair.run(30)
        assert cpis(pair.moon) == cpis(pair.sun)
        assert not before & cpis(pair.moon)
        assert all(cpi == cpi_of(spi) for spi, cpi in cpis(pair.moon))


def test_no_two_sas_have_one_index(connect: Connect) -> None:
    """A kernel would refuse the second."""
    core = connect(True, True).moon.endpoint._core
    ((spi, child),) = core.children.items()
    offset = len(NEGOTIATED_CPIS)
    same = spi - offset if spi > 2 * offset else spi + offset
    free = same ^ 1
    for compresses, expected in ((True, free), (False, same)):
        drawn = iter(number.to_bytes(4, "big") for number in (same, free))
        core.random = lambda _, drawn=drawn: next(drawn)
        policy = replace(child.policy, compresses=compresses)
        assert core.new_child_spi(child.tunnel, policy) == expected


def _notify(octets: str) -> NotifyPayload:
    return NotifyPayload(type=NotifyType.IPCOMP_SUPPORTED, data=bytes.fromhex(octets))


LZS, DEFLATE, ANOTHER = _notify("010003"), _notify("020002"), _notify("020102")


def test_an_offer_may_name_other_algorithms_too() -> None:
    assert named_cpi((LZS, DEFLATE), is_answer=False) == 0x0200
    assert named_cpi((LZS,), is_answer=False) is None
    assert named_cpi((), is_answer=False) is None
    assert named_cpi((DEFLATE,), is_answer=True) == 0x0200


@pytest.mark.parametrize("answer", [(LZS,), (LZS, DEFLATE), (DEFLATE, ANOTHER)], ids=str)
def test_an_answer_may_name_only_what_was_offered_and_once(answer: Any) -> None:
    with pytest.raises(PeerMisbehaved):
        named_cpi(answer, is_answer=True)


@pytest.mark.parametrize("octets", ["", "0200", "00ff02", "f00002"])
def test_an_index_that_cannot_be_is_refused(octets: str) -> None:
    with pytest.raises(PeerMisbehaved):
        named_cpi((_notify(octets),), is_answer=False)


@pytest.mark.parametrize("spi", [0x80000000, 0xFFFFFFFF, 0x1234_5678])
def test_ours_is_one_that_may_be_negotiated(spi: int) -> None:
    (payload,) = compression_payloads(spi, wanted=True)
    assert named_cpi((payload,), is_answer=True) == cpi_of(spi)
    assert cpi_of(spi) in NEGOTIATED_CPIS
