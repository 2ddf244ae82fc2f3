"""The shunts' default: what comes before what, and what a later daemon makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import cast

import pytest

from xfrmpy.daemon.datapaths import Datapaths
from xfrmpy.daemon.shunts import Shunts
from xfrmpy.datapath.recording import RecordedDefaultPolicy, RecordingDatapath
from xfrmpy.failures import OperatorError
from xfrmpy.ipsec.drift import Finding
from xfrmpy.ipsec.spd import Action, PolicyDirection, default_exceptions
from xfrmpy.policy.model import Shunt

IN, OUT = PolicyDirection.IN, PolicyDirection.OUT


class _One:
    """Of `Datapaths`, what shunts need: those that are open."""

    def __init__(self, datapath: RecordingDatapath) -> None:
        self._datapath = datapath

    def opened(self) -> tuple[RecordingDatapath, ...]:
        return (self._datapath,)

    def open_one(self) -> None:
        """It is open."""


class _NoDefault(RecordedDefaultPolicy):
    def refusal(self) -> str:
        return "it has none"


@pytest.fixture
def datapath() -> Iterator[RecordingDatapath]:
    with closing(RecordingDatapath()) as opened:
        yield opened


def shunts(datapath: RecordingDatapath, *directions: PolicyDirection) -> Shunts:
    wanted = [_default(*directions)] if directions else []
    return Shunts(cast(Datapaths, _One(datapath)), wanted)


def _default(*directions: PolicyDirection) -> Shunt:
    return Shunt(
        name="rest",
        origin="a:1",
        action=Action.DISCARD,
        local=(),
        remote=(),
        default=directions,
    )


def test_what_passes_all_the_same_is_there_before_and_after(datapath: RecordingDatapath) -> None:
    ours = shunts(datapath, IN)
    ours.enforce()
    names = [call.name for call in datapath.calls]
    assert names == ["add_policy"] * len(default_exceptions()) + ["set_default"]
    assert datapath.default_policy.blocked == {IN}
    datapath.calls.clear()
    ours.follow([_default(IN, OUT)])
    assert [call.name for call in datapath.calls] == ["set_default"]
    datapath.calls.clear()
    ours.follow([])
    names = [call.name for call in datapath.calls]
    assert names == ["set_default"] + ["remove_policy"] * len(default_exceptions())
    assert (datapath.default_policy.blocked, datapath.spd) == (frozenset(), {})
    datapath.calls.clear()
    ours.enforce()
    assert datapath.calls == []


def test_a_daemon_that_wants_it_no_more_sets_back_what_an_earlier_one_has_set(
    datapath: RecordingDatapath,
) -> None:
    shunts(datapath, IN, OUT).enforce()
    shunts(datapath).enforce()
    assert datapath.default_policy.blocked == frozenset()


def test_that_others_change_it_is_found(datapath: RecordingDatapath) -> None:
    ours = shunts(datapath, IN)
    ours.enforce()
    assert ours.part(datapath.dump())[1] == ()
    datapath.default_policy.blocked = frozenset()
    rest, (difference,) = ours.part(datapath.dump())
    assert rest.spd == ()
    assert difference.finding is Finding.DEFAULT_CHANGED
    assert str(difference) == "the default policy was changed"


def test_a_datapath_without_one_takes_no_shunt_of_it_and_others_as_before() -> None:
    with closing(RecordingDatapath()) as datapath:
        datapath.default_policy = _NoDefault(datapath._record)
        with pytest.raises(OperatorError) as caught:
            shunts(datapath, IN).enforce()
        assert caught.value.failure.code == "XF3010"
        assert caught.value.failure.evidence == (("because", "it has none"),)
        assert datapath.calls == []
        shunts(datapath).enforce()
