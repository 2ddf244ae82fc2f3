"""Two ends whose messages arrive when a test says so: interleavings told step by step.

Each step is a short sentence about the ends `a` and `b`:

    a: rekey          a command to `a`: see `COMMANDS`
    a rekey?          the oldest request of `a` of that kind arrives
    b rekey!          the oldest answer of `b` to such a request arrives
    lost a rekey?     it is lost
    again a rekey?    it arrives, and stays to arrive once more
    wait 12           seconds pass, and nothing arrives
    rest              everything arrives in the order in which it was sent, until there is no more

The kinds of messages are `init`, `auth`, `create`, `rekey` (of a Child SA), `rekey-ike`, `delete`
(of Child SAs), `end` (of an IKE SA), and `check` for any other INFORMATIONAL exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import pytest

from xfrmpy.ike.outputs import ChildSaClosed, SendDatagram, TunnelClosed
from xfrmpy.ike.protection import Protection
from xfrmpy.ike.states import ChildSaState, IkeSaState
from xfrmpy.ike.succession import DELETION_PATIENCE_SECONDS, OVERLAP_SECONDS
from xfrmpy.ike.uniqueness import THEIRS_SECONDS
from xfrmpy.ipsec.addresses import Path
from xfrmpy.ipsec.sad import Direction
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.model import ChildPolicy
from xfrmpy.registry import ExchangeType, NotifyType, ProtocolId
from xfrmpy.wire.header import decode_header_untrusted
from xfrmpy.wire.message import Message, decode_message_untrusted
from xfrmpy.wire.payloads import (
    DeletePayload,
    NoncePayload,
    NotifyPayload,
    OpenPayload,
    Payload,
    SaPayload,
)

MARKED_NONCE_SIZE = 33
"""Longer than ours are and than anything else that is drawn: so nonces are told from keys."""

ROOM_SECONDS = 2 * DELETION_PATIENCE_SECONDS + OVERLAP_SECONDS + 2 * THEIRS_SECONDS + 1
"""Longer than all that two ends wait for each other after a collision."""

EXPIRY_SECONDS = 250.0
"""Longer than every retransmission, half-open and lingering together."""

LOWEST = ("a asks", "a answers", "b asks", "b answers")
"""Whose nonce is the lowest of the four, the one it asks with or the one it answers with."""

KEPT = {"a asks": "b", "a answers": "a", "b asks": "a", "b answers": "b"}
"""Whose exchange prevails then: the one in which the lowest nonce is not (section 2.8.1)."""

FURTHER = {
    "voice": ("10.7.0.0/16", "10.8.0.0/16"),
    "video": ("10.9.0.0/16", "10.10.0.0/16"),
}
"""What policy may want besides `net`, and between what: at moon, and at sun."""

EXCHANGES = {ExchangeType.IKE_SA_INIT: "init", ExchangeType.IKE_AUTH: "auth"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A datagram on its way, and what it is called."""

    name: str
    receiver: Any
    data: bytes
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What happens, who says no and how, and whose exchange has made what is there in the end.

    `kept` "winner" is he whom the nonces favour. `is_news`: a tunnel that stood has ended on the
    way.
    """

    name: str
    steps: tuple[str, ...]
    errors: tuple[str, ...] = ()
    kept: str = ""
    is_news: bool = False


def named(cases: tuple[Case, ...]) -> list[Any]:
    """The cases as parameters of a test."""
    return [pytest.param(case, id=case.name.replace(" ", "_")) for case in cases]


class Interleaving:
    """The ends `a` and `b` of a pair, and everything that is on its way between them."""

    def __init__(self, pair: Any, monkeypatch: Any, *, first: str, lowest: str) -> None:
        self.pair = pair
        others = {"moon": pair.sun, "sun": pair.moon}
        self.hosts = {"a": getattr(pair, first), "b": others[first]}
        self.mail: list[Letter] = []
        self.errors: list[str] = []
        self.asked: dict[str, list[bytes]] = {"a": [], "b": []}
        self.watched: tuple[str, ...] = ()
        self._lowest = lowest
        self._acting = ""
        self._is_answering = False
        self._kinds: dict[tuple[bytes, int, str], str] = {}
        self._inside: dict[bytes, tuple[OpenPayload, ...]] = {}
        self._look_inside(monkeypatch)
        for module in ("create_child_sa", "rekey_ike_sa", "init"):
            monkeypatch.setattr(f"xfrmpy.ike.{module}.NONCE_SIZE", MARKED_NONCE_SIZE)
        for end, host in self.hosts.items():
            self._mark_nonces(end, host)

    # What happens.

    def play(self, *steps: str) -> None:
        """Do one step after the other."""
        for step in steps:
            self._do(step)
            for end in self.watched:
                self._check_path(step, end)

    def shuffle(self, seed: int) -> None:
        """Everything arrives, in an order that the seed decides."""
        chance = Random(seed)
        while self.mail:
            chance.shuffle(self.mail)
            self.play(self.mail[0].name)

    def up(self) -> None:
        """The tunnel stands, and what is asked from now on is of the test."""
        self.pair.up()
        for asked in self.asked.values():
            asked.clear()

    def _do(self, step: str) -> None:
        match step.split():
            case ["rest"]:
                while self.mail:
                    self._arrive(self.mail.pop(0))
            case ["wait", seconds]:
                self._wait(float(seconds))
            case ["lost", *name]:
                self.mail.remove(self._oldest(" ".join(name)))
            case ["again", *name]:
                self._arrive(self._oldest(" ".join(name)))
            case [("a:" | "b:") as end, *command]:
                self._act(end[0], lambda: COMMANDS[" ".join(command)](self, self.hosts[end[0]]))
            case _:
                letter = self._oldest(step)
                self.mail.remove(letter)
                self._arrive(letter)

    def _oldest(self, name: str) -> Letter:
        for letter in self.mail:
            if letter.name == name:
                return letter
        raise AssertionError(f"no {name} is on its way, but {[x.name for x in self.mail]}")

    def _arrive(self, letter: Letter) -> None:
        end = self._end_of(letter.receiver)
        self._is_answering = letter.name.endswith("?")
        self._act(end, lambda: letter.receiver.receive(letter.data, letter.path, self.pair.now))
        self._is_answering = False

    def _act(self, end: str, action: Callable[[], None]) -> None:
        self._acting = end
        action()
        self._collect(end)

    def _wait(self, seconds: float) -> None:
        until = self.pair.now + seconds
        while True:
            due = [host.endpoint.next_timeout() for host in self.hosts.values()]
            moments = [moment for moment in due if moment is not None and moment <= until]
            if not moments:
                break
            self.pair.now = max(self.pair.now, min(moments))
            for end, host in self.hosts.items():
                self._act(end, lambda h=host: h.endpoint.handle_timeout(self.pair.now))  # type: ignore[misc]
        self.pair.now = until

    def _collect(self, end: str) -> None:
        host = self.hosts[end]
        for output in host.take_outputs():
            path = Path(local=output.path.remote, remote=output.path.local, natt=output.path.natt)
            name = f"{end} {self._name(output, end)}"
            receiver = self.hosts["b" if end == "a" else "a"]
            self.mail.append(Letter(name=name, receiver=receiver, data=output.data, path=path))

    # What the messages are.

    def _name(self, output: SendDatagram, end: str) -> str:
        header = decode_header_untrusted(output.data)
        other = "b" if end == "a" else "a"
        if header.is_response:
            return self._kinds[header.spi_i, header.message_id, other] + "!"
        inside = self._inside.get(output.data) or decode_message_untrusted(output.data).payloads
        kind = EXCHANGES.get(header.exchange) or _kind(inside)
        self.asked[end] += [p.data for p in inside if isinstance(p, NoncePayload)]
        self._kinds[header.spi_i, header.message_id, end] = kind
        return kind + "?"

    def _look_inside(self, monkeypatch: Any) -> None:
        seal = Protection.seal

        def remember(
            protection: Protection, message: Message, payloads: tuple[OpenPayload, ...]
        ) -> bytes:
            octets = seal(protection, message, payloads)
            self._inside[octets] = payloads
            self.errors += [
                f"{self._acting} {payload.type.name}"
                for payload in payloads
                if isinstance(payload, NotifyPayload)
                and payload.type.is_error
                and message.is_response
            ]
            return octets

        monkeypatch.setattr(Protection, "seal", remember)

    def _mark_nonces(self, end: str, host: Any) -> None:
        """Let the lowest nonce be that of whom the test names."""
        random = host.endpoint._core.random

        def draw(size: int) -> bytes:
            octets: bytes = random(size)
            if size != MARKED_NONCE_SIZE:
                return octets
            does = f"{end} {'answers' if self._is_answering else 'asks'}"
            return (b"\0" if does == self._lowest else b"\1") + octets[1:]

        host.endpoint._core.random = draw

    def _end_of(self, host: Any) -> str:
        return "a" if host is self.hosts["a"] else "b"

    # What must hold.

    def _check_path(self, step: str, end: str) -> None:
        """An end can send at any moment, never in clear, and nothing that the other cannot take."""
        host, other = self.hosts[end], self.hosts["b" if end == "a" else "a"]
        out = {e.spi for e in host.datapath.dump().sad if e.direction is Direction.OUT}
        into = {e.spi for e in other.datapath.dump().sad if e.direction is Direction.IN}
        assert out, f"{end} cannot send after: {step}"
        assert host.datapath.dump().spd, f"{end} sends in clear after: {step}"
        assert out <= into, f"{end} sends in vain after: {step}"

    def settle(self, seconds: float = ROOM_SECONDS) -> None:
        """Nothing is held back any more, for a while."""
        self.play("rest")
        end = self.pair.now + seconds
        while True:
            due = [host.endpoint.next_timeout() for host in self.hosts.values()]
            moments = [moment for moment in due if moment is not None and moment <= end]
            if not moments:
                break
            self.play(f"wait {max(0.0, min(moments) - self.pair.now)}", "rest")
        self.pair.now = end

    def assert_up(self, *children: str) -> None:
        """One IKE SA at each end, the same, at peace; each child once; nothing else in force."""
        spis = set()
        for end, host in self.hosts.items():
            (view,) = host.views
            spis.add((view.spi_i, view.spi_r))
            sa = host.ike_sa
            assert sa.state is IkeSaState.ESTABLISHED, end
            assert sorted(c.policy.name for c in sa.children) == sorted(children), end
            assert {c.state for c in sa.children} <= {ChildSaState.INSTALLED}, end
            assert sa.channel.window.is_idle, end
            assert not sa.is_rekeying, end
            assert not sa.retired, end
            assert len(host.datapath.dump().sad) == 2 * len(children), end
            assert len(host.endpoint._core.children) == len(children), end
        assert len(spis) == 1
        self.pair.assert_mirrored()

    def assert_undisturbed(self) -> None:
        """Nobody was told that anything ended."""
        self.assert_not_closed()
        for end, host in self.hosts.items():
            assert not host.reports(ChildSaClosed), end

    def assert_not_closed(self) -> None:
        """Whatever became of its Child SAs, nobody was told that a tunnel ended that stood."""
        for end, host in self.hosts.items():
            assert not [o for o in host.reports(TunnelClosed) if o.was_established], end

    def kept_by(self, nonces: tuple[bytes, bytes]) -> str:
        """Whose request made the SA with these nonces; `old` if it was there before."""
        makers = [end for end, asked in self.asked.items() if nonces[0] in asked]
        return makers[0] if makers else "old"


def _kind(payloads: tuple[Payload, ...]) -> str:
    for payload in payloads:
        match payload:
            case NotifyPayload(type=NotifyType.REKEY_SA):
                return "rekey"
            case SaPayload():
                ike = payload.proposals[0].protocol == ProtocolId.IKE
                return "rekey-ike" if ike else "create"
            case DeletePayload():
                return "end" if payload.protocol == ProtocolId.IKE else "delete"
    return "check"


# What an operator, the clock or the datapath makes an end do.


def _rekey(run: Interleaving, host: Any) -> None:
    host.endpoint.rekey_child_sas("tunnel-a", run.pair.now)


def _rekey_first(run: Interleaving, host: Any, index: int = 0) -> None:
    sa = host.ike_sa
    sa.children[index].rekey_at = run.pair.now
    host.endpoint._run(sa, sa.attend, run.pair.now)


def _rekey_newest(run: Interleaving, host: Any) -> None:
    _rekey_first(run, host, -1)


def _rekey_named(run: Interleaving, host: Any, *, name: str) -> None:
    names = [child.policy.name for child in host.ike_sa.children]
    _rekey_first(run, host, names.index(name))


def _rekey_ike(run: Interleaving, host: Any) -> None:
    host.endpoint.rekey_ike_sas("tunnel-a", run.pair.now)


def _reauthenticate(run: Interleaving, host: Any) -> None:
    host.endpoint.reauthenticate("tunnel-a", run.pair.now)


def _up(run: Interleaving, host: Any) -> None:
    run.pair.initiate(host)


def _down(run: Interleaving, host: Any) -> None:
    host.endpoint.terminate("tunnel-a", run.pair.now)


def _create(run: Interleaving, host: Any) -> None:
    sa = host.ike_sa
    sa.create_at = run.pair.now
    host.endpoint._run(sa, sa.attend, run.pair.now)


def _acquire(run: Interleaving, host: Any, index: int = -1) -> None:
    child = host.policy.children[index]
    source, destination = child.local[0], child.remote[0]
    host.endpoint.handle_acquire("tunnel-a", child.name, source, destination, run.pair.now)


def _acquire_named(run: Interleaving, host: Any, *, name: str) -> None:
    names = [child.name for child in host.policy.children]
    _acquire(run, host, names.index(name))


def _end_oldest(run: Interleaving, host: Any) -> None:
    sa = host.ike_sas[0]
    host.endpoint._run(sa, lambda now: sa.terminate(None, now), run.pair.now)


def _delete(run: Interleaving, host: Any) -> None:
    _delete_children(run, host, host.ike_sa.children[:1])


def _delete_newest(run: Interleaving, host: Any) -> None:
    _delete_children(run, host, host.ike_sa.children[-1:])


def _delete_named(run: Interleaving, host: Any, *, name: str) -> None:
    named = [child for child in host.ike_sa.children if child.policy.name == name]
    _delete_children(run, host, named)


def _delete_children(run: Interleaving, host: Any, children: list[Any]) -> None:
    sa = host.ike_sa
    for child in children:
        if child.state is not ChildSaState.DELETING:
            child.move_to(ChildSaState.DELETING)
    host.endpoint._run(sa, sa.attend, run.pair.now)


def _lose_child(_run: Interleaving, host: Any) -> None:
    host.ike_sa.children.pop(0).close()


def _expire(run: Interleaving, host: Any, *, hard: bool) -> None:
    entry = host.ike_sa.children[0].entries[0]
    if hard:
        host.datapath.sad.pop(entry.id)
    host.endpoint.handle_expire(entry.id, run.pair.now, hard=hard)


def _soft_limit(run: Interleaving, host: Any) -> None:
    _expire(run, host, hard=False)


def _hard_limit(run: Interleaving, host: Any) -> None:
    _expire(run, host, hard=True)


def _check(run: Interleaving, host: Any) -> None:
    host.ike_sa.suspect(run.pair.now)


def _restart(_run: Interleaving, host: Any) -> None:
    random = host.endpoint._core.random
    host.start()
    host.endpoint._core.random = random
    host.datapath.remove_ours()


COMMANDS: dict[str, Callable[[Interleaving, Any], None]] = {
    "rekey": _rekey,
    "rekey net": _rekey_first,
    "rekey newest": _rekey_newest,
    "rekey ike": _rekey_ike,
    "reauthenticate": _reauthenticate,
    "up": _up,
    "down": _down,
    "create": _create,
    "acquire": _acquire,
    "end oldest": _end_oldest,
    "delete": _delete,
    "delete newest": _delete_newest,
    "delete all": partial(_delete_named, name="net"),
    "lose child": _lose_child,
    "soft limit": _soft_limit,
    "hard limit": _hard_limit,
    "check": _check,
    "restart": _restart,
    **{f"acquire {name}": partial(_acquire_named, name=name) for name in ("net", *FURTHER)},
    **{f"rekey {name}": partial(_rekey_named, name=name) for name in FURTHER},
    **{f"delete {name}": partial(_delete_named, name=name) for name in FURTHER},
}
"""`delete` and the limits are of the oldest Child SA; `create` is of what policy wants and is not
there; `acquire` is a packet for the last child of the policy."""


def further_children(net: ChildPolicy, count: int, *, is_moon: bool) -> tuple[ChildPolicy, ...]:
    """The policies of so many Child SAs more."""

    def child(number: int, name: str, ends: tuple[str, str]) -> ChildPolicy:
        local, remote = (TrafficSelector.parse(end) for end in (ends if is_moon else ends[::-1]))
        reqid = net.reqid + number
        return replace(net, name=name, reqid=reqid, local=(local,), remote=(remote,))

    named = list(FURTHER.items())[:count]
    return tuple(child(number, *further) for number, further in enumerate(named, 1))
