"""An endpoint that plays a script with a peer that is authentic, but not always well-behaved.

A finding is a defect that the endpoint reports, an exception that leaves it, a timer that does not
rest, more answers than questions, or anything that is still in force when the peer has been silent
for a day. Only the public interface of `IkeEndpoint` is used.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from ipaddress import ip_address
from typing import assert_never

from tests.fuzz.findings import Finding
from tests.fuzz.peer import Peer
from tests.fuzz.script import Op, Script, Situation, Step, decode_script
from tests.ike.conftest import Host, tunnel_policy
from xfrmpy.ike.outputs import AddPolicy, DefectFound, RemovePolicy
from xfrmpy.ipsec.addresses import IKE_PORT, Path, SocketAddress
from xfrmpy.ipsec.drift import Dump
from xfrmpy.policy.model import Encapsulation, TunnelPolicy
from xfrmpy.registry import ExchangeType

NATT_PORT = 4500
NON_ESP_MARKER = bytes(4)
SHARED_KEY = b"a shared key of thirty-two octets"

MAX_TIMEOUTS = 2000
"""For one input. An IKE SA whose peer is silent has about ten."""

MAX_OUTPUTS = 200
"""For one datagram, one timeout or one command."""

SILENT_SECONDS = 86400.0

REFUSALS = ("add_sa in", "add_sa out", "add_policy in", "add_policy out", "add_policy fwd")


def play(data: bytes) -> Stage:
    """Play what `data` says, to the end of everything. Raises `Finding`."""
    script = decode_script(data)
    stage = prepared(script.situation, script.variant)
    for step in script.steps:
        stage.act(step)
    stage.fall_silent()
    return stage


def prepared(situation: Situation, variant: int) -> Stage:
    """An endpoint in a situation, brought there by the valid messages of `opening`."""
    from tests.fuzz.seeds import opening  # noqa: PLC0415 (the seeds know the situations)

    stage = Stage(Script(situation=situation, variant=variant, steps=()))
    for step in opening(situation, variant):
        stage.act(step)
    return stage


@cache
def policy_of(variant: int) -> TunnelPolicy:
    """The policy of the endpoint; its lowest four bits say what is unusual in it."""
    policy = tunnel_policy(
        "10.1.0.0/16 2001:db8:1::/48" if variant & 2 else "10.1.0.0/16",
        "10.2.0.0/16 2001:db8:2::/48" if variant & 2 else "10.2.0.0/16",
        ike="aes128-sha256-prfsha256-x25519" if variant & 1 else "aes128gcm16-prfsha256-x25519",
        esp="aes128-sha256-noesn" if variant & 1 else "aes128gcm16",
        key=SHARED_KEY,
    )
    return replace(policy, encapsulation=Encapsulation.FORCE) if variant & 4 else policy


@cache
def path_of(variant: int) -> Path:
    port = NATT_PORT if variant & 8 else IKE_PORT
    return Path(
        local=SocketAddress(ip_address("192.0.2.1"), port),
        remote=SocketAddress(ip_address("192.0.2.2"), port),
        natt=bool(variant & 8),
    )


class Stage:
    """The endpoint, its peer and the clock."""

    def __init__(self, script: Script) -> None:
        self.path = path_of(script.variant)
        self.host = Host("moon", policy_of(script.variant), "192.0.2.1", expects_defects=True)
        self.peer = Peer(begins=script.situation.peer_begins, path=self.path, key=SHARED_KEY)
        self.now = 0.0
        self.timeouts = 0
        self._last = b""
        self._skip = 0

    def act(self, step: Step) -> None:
        """Do one step of a script, and all that follows from it at once."""
        match step.op:
            case Op.REQUEST | Op.ANSWER | Op.CLEAR | Op.FRAGMENT:
                self._deliver(self._message(step))
            case Op.RAW:
                self._deliver(step.octets)
            case Op.AGAIN:
                self._deliver(_with_bit_turned(self._last, step.argument))
            case Op.SKIP:
                self._skip = step.argument - 256 if step.argument > 127 else step.argument
            case Op.SWITCH:
                associations = self.peer.associations
                self.peer.current = associations[step.argument % len(associations)]
            case Op.WAIT:
                self.wait(step.argument / 2)
            case Op.COMMAND:
                self._command(step.argument)
            case Op.REFUSE:
                kind = REFUSALS[step.argument % len(REFUSALS)]
                self.host.datapath.refuse(kind, nth=step.argument // len(REFUSALS) + 1)
            case _:
                assert_never(step.op)

    def wait(self, seconds: float) -> None:
        """Let the time pass, from one timeout to the next."""
        end = self.now + seconds
        while (due := self.host.endpoint.next_timeout()) is not None and due <= end:
            self.timeouts += 1
            if self.timeouts > MAX_TIMEOUTS:
                raise Finding(f"{self.timeouts} timeouts; at {self.now} one is due at {due}")
            self.now = max(self.now, due)
            self.host.endpoint.handle_timeout(self.now)
            self._settle()
        self.now = end

    def fall_silent(self) -> None:
        """The peer says no more: nothing may be left of what there was."""
        self.wait(SILENT_SECONDS)
        if self.host.views:
            raise Finding(f"still there after a day of silence: {self.host.views}")
        if (dump := self.host.datapath.dump()) != Dump(sad=(), spd=()):
            raise Finding(f"still in force after a day of silence: {dump}")

    def _message(self, step: Step) -> bytes:
        exchange = ExchangeType(step.argument)
        skip, self._skip = self._skip, 0
        match step.op:
            case Op.ANSWER:
                if not step.argument:
                    exchange = self.peer.current.asked[0]
                return self.peer.say(exchange, step.first, step.octets, is_response=True)
            case Op.CLEAR:
                return self.peer.say_in_clear(exchange, step.first, step.octets)
            case Op.FRAGMENT:
                return self.peer.say_fragment(
                    step.first, step.octets, number=step.argument >> 4, total=step.argument & 15
                )
            case _:
                return self.peer.say(exchange, step.first, step.octets, skip=skip)

    def _deliver(self, data: bytes) -> None:
        self._last = data
        if self.path.natt:
            data = NON_ESP_MARKER + data
        self.host.endpoint.receive_datagram(data, self.path, self.now)
        self._settle()

    def _command(self, argument: int) -> None:
        endpoint = self.host.endpoint
        match argument % 6:
            case 0:
                endpoint.initiate("tunnel-a", self.path, self.now)
            case 1:
                endpoint.terminate("tunnel-a", self.now)
            case 2:
                endpoint.rekey_child_sas("tunnel-a", self.now)
            case 3:
                endpoint.rekey_ike_sas("tunnel-a", self.now)
            case 4:
                endpoint.reauthenticate("tunnel-a", self.now)
            case _:
                for entry in self.host.datapath.dump().sad[:1]:
                    endpoint.handle_expire(entry.id, self.now, hard=bool(argument & 8))
        self._settle()

    def _settle(self) -> None:
        """Take what the endpoint puts out; the peer hears what is sent."""
        seen = len(self.host.outputs)
        for output in self.host.take_outputs():
            self.peer.hear(output.data[len(NON_ESP_MARKER) if output.path.natt else 0 :])
        new = self.host.outputs[seen:]
        for defect in new:
            if isinstance(defect, DefectFound):
                raise Finding(defect.traceback)
        if len([o for o in new if not isinstance(o, AddPolicy | RemovePolicy)]) > MAX_OUTPUTS:
            raise Finding(f"{len(new)} outputs at once")


def _with_bit_turned(data: bytes, argument: int) -> bytes:
    """The datagram itself for 0, otherwise another bit for each argument, all over it."""
    if not argument or not data:
        return data
    at = argument * 37 % (len(data) * 8)
    octets = bytearray(data)
    octets[at // 8] ^= 1 << at % 8
    return bytes(octets)
