"""The fuzzers' own tools: they reach what they are for, and see what is planted."""

from __future__ import annotations

import base64
import contextlib
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.endpoint import path_of, play, prepared
from tests.fuzz.findings import Endless, Finding, limited_cpu
from tests.fuzz.mutator import Mutator
from tests.fuzz.peer import NEXT_SPI, Peer
from tests.fuzz.script import (
    Op,
    Situation,
    Step,
    decode_script,
    encode_script,
    join_chain,
    split_chain,
)
from tests.fuzz.seeds import VARIANTS, endpoint_seeds, opening
from tests.fuzz.targets import TARGETS
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.outputs import ChildSaEstablished, DatagramDropped
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.addresses import Path
from xfrmpy.registry import ExchangeType, NotifyType, PayloadType
from xfrmpy.wire.message import decode_payloads_untrusted
from xfrmpy.wire.payloads import DECODERS, NotifyPayload

S = Situation
SEEDS = endpoint_seeds()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("situation", S)
def test_a_situation_is_what_it_is_called(situation: Situation, variant: int) -> None:
    stage = prepared(situation, variant)
    assert not stage.host.reports(DatagramDropped)
    states = [view.state for view in stage.host.views]
    if situation in (S.RESPONDER_ESTABLISHED, S.INITIATOR_ESTABLISHED):
        assert states == [IkeSaState.ESTABLISHED]
        assert stage.host.views[0].children
    elif situation is S.INITIATOR_NEW:
        assert states == [IkeSaState.INITIATING]
    elif situation is S.INITIATOR_HALF_OPEN:
        assert states == [IkeSaState.AUTHENTICATING]
    else:
        assert states == []


@pytest.mark.parametrize("name", [name for name in SEEDS if name.endswith("goes-on")])
def test_a_script_of_valid_messages_leads_to_a_child_sa(name: str) -> None:
    assert play(SEEDS[name]).host.reports(ChildSaEstablished)


def _planted(*_: object) -> None:
    raise KeyError("planted")


def test_a_defect_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IkeSa, "respond", _planted)
    with pytest.raises(Finding, match="KeyError: 'planted'"):
        play(SEEDS["responder_established-0-liveness"])


def test_what_outlives_a_silent_peer_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IkeEndpoint, "next_timeout", lambda _: None)
    with pytest.raises(Finding, match="after a day of silence"):
        play(SEEDS["responder_established-0-goes-on"])


def test_a_timer_that_does_not_rest_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IkeEndpoint, "handle_timeout", lambda *_: None)
    with pytest.raises(Finding, match="2001 timeouts"):
        play(SEEDS["responder_established-0-goes-on"])


def test_an_input_that_takes_too_long_is_a_finding_even_behind_a_firewall() -> None:
    with pytest.raises(Endless):
        _be_endless()


def _be_endless() -> None:
    with limited_cpu(0.05):
        while True:
            with contextlib.suppress(Exception):
                sum(range(1000))


def test_an_exception_of_a_decoder_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, PayloadType.NONCE, _planted)
    with pytest.raises(KeyError):
        TARGETS["wire"].execute(bytes([3, PayloadType.NONCE]) + bytes(16))


@given(st.binary(max_size=60))
def test_any_octets_are_a_script_and_a_script_comes_back_as_it_went(data: bytes) -> None:
    script = decode_script(data)
    assert decode_script(encode_script(script)) == script


@given(st.integers(0, 255), st.binary(max_size=60))
def test_any_octets_are_a_chain_and_a_chain_comes_back_as_it_went(
    first: int, octets: bytes
) -> None:
    parts = split_chain(first, octets)
    assert split_chain(*join_chain(parts)) == parts


def _havoc(data: bytes, max_size: int) -> bytes:
    chance = random.Random(data)
    return (data + chance.randbytes(2))[chance.randint(0, 2) :][:max_size]


def test_most_changed_scripts_are_looked_at_behind_their_lengths() -> None:
    """As often as not, what the peer says can be decoded: it is the meaning that was changed."""
    mutator = Mutator(list(SEEDS.values()), _havoc)
    mutants = [
        mutator.mutate(SEEDS["responder_established-0-rekey-child"], 4096, seed)
        for seed in range(300)
    ]
    assert len(set(mutants)) > 150
    steps = [s for data in mutants for s in decode_script(data).steps if s.op is Op.REQUEST]
    assert sum(map(_can_be_decoded, steps)) > len(steps) / 2


def _can_be_decoded(step: Step) -> bool:
    try:
        decode_payloads_untrusted(PayloadType(step.first), step.octets)
    except Exception:
        return False
    return True


def test_two_peers_rekey_their_ike_sa_and_understand_each_other_on_the_new_one() -> None:
    """What the endpoint's rekeying will be fuzzed with, against itself."""
    one, other = _two_peers()
    rekey = decode_script(SEEDS["responder_established-0-rekey-ike"]).steps[0]
    other.hear(one.say(ExchangeType.CREATE_CHILD_SA, rekey.first, rekey.octets))
    octets = rekey.octets.replace(NEXT_SPI, b"other---")
    one.hear(other.say(ExchangeType.CREATE_CHILD_SA, rekey.first, octets, is_response=True))
    one.current, other.current = one.associations[1], other.associations[1]
    said = one.say(ExchangeType.INFORMATIONAL, PayloadType.NOTIFY, b"\0\0\0\x08\0\0\x40\0")
    assert other.hear(said) == (NotifyPayload(type=NotifyType.INITIAL_CONTACT),)


def _two_peers() -> tuple[Peer, Peer]:
    path = path_of(0)
    one = Peer(begins=True, path=path, key=b"key")
    other = Peer(begins=False, path=Path(local=path.remote, remote=path.local), key=b"key")
    request, *_ = opening(S.RESPONDER_HALF_OPEN, 0)
    other.hear(one.say(ExchangeType.IKE_SA_INIT, request.first, request.octets))
    one.hear(other.say(ExchangeType.IKE_SA_INIT, request.first, request.octets, is_response=True))
    return one, other


def test_a_finding_is_replayed_from_its_line() -> None:
    octets = base64.b64encode(SEEDS["responder_established-0-liveness"]).decode()
    command = [sys.executable, "-m", "tests.fuzz", "endpoint", "--input", octets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "nothing found\n"), done.stderr
