"""Two endpoints in memory, a virtual clock, and a link that the test controls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TypeVar, cast

import pytest

from tests.ike.interleaving import Interleaving, further_children
from xfrmpy.datapath.interface import DatapathError, NotAdded
from xfrmpy.datapath.recording import RecordingDatapath
from xfrmpy.ike import init
from xfrmpy.ike.admission import AdmissionLimits
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.exchange import Exchange
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.outputs import (
    AddPolicy,
    AddSa,
    AskUsage,
    DatagramDropped,
    DefectFound,
    MoveSa,
    Output,
    Persist,
    RemovePolicy,
    RemoveSa,
    SendDatagram,
)
from xfrmpy.ike.ppk import USE_PPK
from xfrmpy.ike.protection import Protection
from xfrmpy.ike.restoration import Restored
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.views import IkeSaView
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IKE_PORT, Path, SocketAddress
from xfrmpy.ipsec.drift import Dump
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.ipsec.sad import Direction
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import PolicyDirection
from xfrmpy.policy.model import ChildPolicy, DatapathChoice, SharedKey, TunnelPolicy
from xfrmpy.registry import ExchangeType, NotifyType, ProtocolId
from xfrmpy.wire.header import IkeHeader, decode_header_untrusted
from xfrmpy.wire.message import Message, decode_message_untrusted, encode_message
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

Report = TypeVar("Report")
Payloads = tuple[OpenPayload, ...]


def seeded_random(seed: str) -> Callable[[int], bytes]:
    """A reproducible source of octets: the same seed, the same run."""
    blocks = _blocks(seed)
    buffer = bytearray()

    def take(size: int) -> bytes:
        while len(buffer) < size:
            buffer.extend(next(blocks))
        octets = bytes(buffer[:size])
        del buffer[:size]
        return octets

    return take


def _blocks(seed: str) -> Iterator[bytes]:
    counter = 0
    while True:
        yield hashlib.sha256(f"{seed}/{counter}".encode()).digest()
        counter += 1


def tunnel_policy(
    local: str = "10.1.0.0/16",
    remote: str = "10.2.0.0/16",
    *,
    here: str = "moon",
    there: str = "sun",
    ike: str = "aes128gcm16-prfsha256-x25519",
    esp: str = "aes128gcm16",
    key: bytes = b"a shared key of thirty-two octets",
    peer: str = "192.0.2.2",
) -> TunnelPolicy:
    """A policy as the loader would make it; several selectors or proposals are split at blanks.

    An idle peer is asked after half a minute.
    """

    def selectors(text: str) -> tuple[TrafficSelector, ...]:
        return tuple(TrafficSelector.parse(word) for word in text.split())

    child = ChildPolicy(
        name="net",
        reqid=0x58460001,
        local=selectors(local),
        remote=selectors(remote),
        proposals=tuple(parse_proposal(p, ProtocolId.ESP) for p in esp.split()),
    )
    return TunnelPolicy(
        name="tunnel-a",
        origin="test:1",
        peers=(peer,),
        local_id=Identity.parse(here),
        remote_id=Identity.parse(there),
        shared_key=SharedKey(octets=key, origin="test"),
        proposals=tuple(parse_proposal(p, ProtocolId.IKE) for p in ike.split()),
        children=(child,),
        dpd_seconds=10.0,
        datapath=DatapathChoice.KERNEL,
    )


def mirrored(policy: TunnelPolicy, *, peer: str = "192.0.2.1") -> TunnelPolicy:
    """The policy of the other end."""
    children = tuple(replace(c, local=c.remote, remote=c.local) for c in policy.children)
    return replace(
        policy,
        peers=(peer,),
        local_id=policy.remote_id,
        remote_id=policy.local_id,
        children=children,
    )


@dataclass
class Host:
    """One end: its endpoint, its datapath, and everything that its endpoint put out."""

    name: str
    policy: TunnelPolicy
    address: str
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    outputs: list[Output] = field(default_factory=list)
    outbox: list[SendDatagram] = field(default_factory=list)
    refused: list[AddSa | AddPolicy] = field(default_factory=list)
    expects_defects: bool = False
    clock: Callable[[], float] = lambda: 0.0
    secret: bytes = b""
    keeps: bool = False
    natt_port: int = IKE_NATT_PORT
    lanes: int = 1
    cpus: int = 1
    today: datetime = datetime(2026, 6, 1, 12, tzinfo=UTC)
    kept: dict[bytes, bytes] = field(default_factory=dict)
    dies_after: int | None = None
    lives_again: bool = False
    takeovers: list[Restored] = field(default_factory=list)
    _starts: int = 0

    def __post_init__(self) -> None:
        self.start()
        self.datapath = RecordingDatapath()
        self.datapath.close()  # Nobody waits for its events here.

    def start(self) -> None:
        """Start the endpoint; or start it anew after a crash, which only its secret survives."""
        random = seeded_random(self.name + "'" * self._starts)
        self._starts += 1
        self.endpoint = IkeEndpoint(
            [self.policy],
            random,
            limits=self.limits,
            qcd_secret=self.secret,
            keeps=self.keeps,
            natt_port=self.natt_port,
            lanes=self.lanes,
            cpus=self.cpus,
            wall_clock=lambda: self.today,
        )
        peers = tuple(ip_address(peer) for peer in self.policy.peers)
        self.endpoint.set_peer_addresses("tunnel-a", peers)

    def take_over(self) -> Restored:
        """Start the endpoint anew after a kill, from what was kept and what is in force."""
        self.start()
        dump = self.datapath.dump()
        restored = self.endpoint.restore(self.kept, dump.sad, dump.spd, self.clock())
        for sa in dump.sad:
            if sa.id not in restored.sad:
                self.datapath.remove_sa(sa.id)
        for policy in dump.spd:
            if policy.place not in restored.spd:
                self.datapath.remove_policy(policy)
        return restored

    def receive(self, data: bytes, path: Path, now: float) -> None:
        """As the daemon does it: what one datagram causes is done before the next one is read."""
        self.endpoint.receive_datagram(data, path, now)
        self.outbox = self.take_outputs()

    def take_outputs(self) -> list[SendDatagram]:
        """Do what the endpoint wants done; returns the datagrams it wants sent."""
        sent, self.outbox = self.outbox, []
        while not self._is_dead() and (output := self.endpoint.next_output()) is not None:
            self.outputs.append(output)
            match output:
                case SendDatagram():
                    sent.append(output)
                case Persist():
                    self._keep(output)
                case AddSa() | AddPolicy():
                    self._add(output)
                case MoveSa():
                    self._move(output)
                case RemoveSa():
                    self.datapath.remove_sa(output.sa)
                case RemovePolicy():
                    self.datapath.remove_policy(output.entry)
                case AskUsage():
                    self._tell_usage(output)
                case DefectFound() if not self.expects_defects:
                    pytest.fail(output.traceback)
        if self.lives_again and self.dies_after is not None and self.dies_after < 0:
            self.dies_after = None
            self.takeovers.append(self.take_over())
            sent += self.take_outputs()
        return sent

    def _is_dead(self) -> bool:
        """Whether the daemon has been killed: `dies_after` so many more outputs, if at all."""
        if self.dies_after is None:
            return False
        self.dies_after -= 1
        return self.dies_after < 0

    def _keep(self, output: Persist) -> None:
        for spi, record in output.records:
            if record is None:
                del self.kept[spi]
            else:
                self.kept[spi] = record

    def _tell_usage(self, output: AskUsage) -> None:
        sas = [sa for _, sa in output.sas]
        for sa, seconds_idle in zip(sas, self.datapath.seconds_idle(sas), strict=True):
            if seconds_idle is not None:
                self.endpoint.handle_usage(sa, seconds_idle, self.clock())

    def _add(self, output: AddSa | AddPolicy) -> None:
        """As the daemon does it: with all that may be done in one go."""
        further = self.endpoint.next_additions(output)
        self.outputs += further
        wanted = [output, *further]
        try:
            self.datapath.add([each.entry for each in wanted])
        except NotAdded as error:
            refused, *not_done = wanted[error.done :]
            self.refused += [refused, *not_done]
            self.endpoint.handle_failure(refused, str(error), not_done)

    def _move(self, output: MoveSa) -> None:
        try:
            self.datapath.move_sa(output.sa, output.entry)
        except DatapathError as error:
            self.datapath.remove_sa(output.sa)
            self.endpoint.handle_move_failure(output, str(error), self.clock())

    def reports(self, kind: type[Report]) -> list[Report]:
        return [o for o in self.outputs if isinstance(o, kind)]

    @property
    def drops(self) -> list[DropReason]:
        return [o.reason for o in self.reports(DatagramDropped)]

    @property
    def ike_sas(self) -> list[IkeSa]:
        """Every IKE SA that the core holds, half-open and lingering ones too."""
        return list(self.endpoint._core.ike_sas.values())

    @property
    def ike_sa(self) -> IkeSa:
        """The one IKE SA that is not deleted."""
        (living,) = (sa for sa in self.ike_sas if sa.state is not IkeSaState.DELETED)
        return living

    @property
    def views(self) -> tuple[IkeSaView, ...]:
        return self.endpoint.ike_sas("tunnel-a")

    def snapshot(self) -> tuple[tuple[IkeSaView, ...], Dump]:
        """What an operator sees, and what is in force."""
        return self.views, self.datapath.dump()


Impairment = Callable[[SendDatagram, Host], list[bytes]]


class Pair:
    """Moon (the initiator by habit) and sun. `impair` may drop, repeat or change what is sent.

    `translate` is what a NAT makes of a source address, `reach` of a destination: None is nowhere.
    """

    def __init__(
        self,
        moon: TunnelPolicy,
        sun: TunnelPolicy | None = None,
        limits: AdmissionLimits = AdmissionLimits(),  # noqa: B008 (frozen)
        *,
        secrets: bool = False,
        keeps: bool = False,
    ) -> None:
        self.now = 0.0
        sun = sun or mirrored(moon)
        moons, suns = (b"secret of moon", b"secret of sun") if secrets else (b"", b"")
        self.moon = Host("moon", moon, sun.peers[0], limits, secret=moons, keeps=keeps)
        self.sun = Host("sun", sun, moon.peers[0], limits, secret=suns, keeps=keeps)
        for host in (self.moon, self.sun):
            host.clock = lambda: self.now
        self.impair: Impairment = lambda output, _sender: [output.data]
        self.translate: Callable[[SocketAddress], SocketAddress] = lambda address: address
        self.reach: Callable[[SocketAddress], SocketAddress | None] = lambda address: address
        self.sent: list[tuple[str, SendDatagram]] = []

    def ends(self, first: str) -> tuple[Host, Host]:
        """The end that a test calls the first, and the other."""
        return (self.moon, self.sun) if first == "moon" else (self.sun, self.moon)

    def up(self) -> None:
        """Moon brings the tunnel up; everything is delivered."""
        self.initiate()
        self.deliver()

    def initiate(self, host: Host | None = None) -> None:
        host = host or self.moon
        other = self.sun if host is self.moon else self.moon
        path = Path(
            local=SocketAddress(ip_address(host.address), IKE_PORT),
            remote=SocketAddress(ip_address(other.address), IKE_PORT),
        )
        host.endpoint.initiate("tunnel-a", path, self.now)

    def deliver(self) -> None:
        """Carry datagrams both ways until there are none."""
        while True:
            moved = [self._carry(self.moon, self.sun), self._carry(self.sun, self.moon)]
            if not any(moved):
                return

    def _carry(self, sender: Host, receiver: Host) -> bool:
        datagrams = sender.take_outputs()
        for output in datagrams:
            self.sent.append((sender.name, output))
            local = self.reach(output.path.remote)
            for data in self.impair(output, sender) if local else []:
                assert local is not None
                path = Path(
                    local=local,
                    remote=self.translate(output.path.local),
                    natt=output.path.natt,
                )
                receiver.receive(data, path, self.now)
        return bool(datagrams)

    def assert_up(self) -> None:
        """Both ends have the tunnel, and their datapaths mirror each other."""
        for host in (self.moon, self.sun):
            assert [v.state for v in host.views] == [IkeSaState.ESTABLISHED], host.name
            assert len(host.views[0].children) == 1
            assert host.views[0].children[0].entries == host.datapath.dump().sad
        self.assert_mirrored()

    def assert_mirrored(self) -> None:
        """What one end sends, the other can receive, and nothing else."""
        for one, other in ((self.moon, self.sun), (self.sun, self.moon)):
            assert _sas(one, Direction.OUT) == _sas(other, Direction.IN)
            out = _selectors(one, PolicyDirection.OUT)
            assert out == _selectors(other, PolicyDirection.IN)
            assert out == _selectors(other, PolicyDirection.FORWARD)

    def assert_down(self) -> None:
        """Nothing is in force anywhere."""
        nothing = Dump(sad=(), spd=())
        assert self.moon.datapath.dump() == self.sun.datapath.dump() == nothing
        assert self.moon.endpoint._core.children == self.sun.endpoint._core.children == {}

    def assert_forgotten(self) -> None:
        """Nothing is in force, and nothing is kept in memory."""
        self.assert_down()
        for endpoint in (self.moon.endpoint, self.sun.endpoint):
            assert endpoint.next_timeout() is None
            admission = endpoint._admission
            kept = (endpoint._core.ike_sas, admission._strangers, admission._answered)
            assert not any(kept), kept
            assert not admission._proven
            assert not endpoint._timers

    def run(self, seconds: float) -> None:
        """Let time pass, from one timeout to the next."""
        end = self.now + seconds
        while True:
            self.deliver()
            due = [h.endpoint.next_timeout() for h in (self.moon, self.sun)]
            moments = [moment for moment in due if moment is not None and moment <= end]
            if not moments:
                break
            self.now = max(self.now, min(moments))
            for host in (self.moon, self.sun):
                host.endpoint.handle_timeout(self.now)
        self.now = end


def _sas(host: Host, direction: Direction) -> set[tuple[object, ...]]:
    """The SAs of one direction without what a NAT changes."""
    return {
        (e.spi, e.suite, e.encryption_key, e.integrity_key, e.encapsulation is None)
        for e in host.datapath.sad.values()
        if e.direction is direction
    }


def _selectors(host: Host, direction: PolicyDirection) -> set[object]:
    return {selector for kind, selector, *_ in host.datapath.spd if kind is direction}


class Held:
    """A link that holds back what a test names, and delivers it when the test says so."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.is_held: Callable[[IkeHeader, str], bool] = lambda _message, _sender: False
        self.waiting: list[tuple[Host, bytes, Path]] = []
        pair.impair = self._impair

    def _impair(self, output: SendDatagram, sender: Host) -> list[bytes]:
        header = decode_header_untrusted(output.data)
        if not self.is_held(header, sender.name):
            return [output.data]
        receiver = self.pair.sun if sender is self.pair.moon else self.pair.moon
        path = Path(local=output.path.remote, remote=output.path.local, natt=output.path.natt)
        self.waiting.append((receiver, output.data, path))
        return []

    def release(self) -> None:
        """Deliver what was held, in order, and hold nothing any more."""
        self.is_held = lambda _message, _sender: False
        for receiver, data, path in self.waiting:
            receiver.endpoint.receive_datagram(data, path, self.pair.now)
            self.pair.deliver()
        self.waiting.clear()


@dataclass
class Sealing:
    """Sees every message inside before it is sealed, and may change it: authentic, yet wrong."""

    sent: list[tuple[Message, Payloads]] = field(default_factory=list)
    change: Callable[[Message, Payloads], Payloads] = lambda _message, payloads: payloads

    def answers(self, exchange: ExchangeType) -> list[Payloads]:
        return [p for m, p in self.sent if m.is_response and m.exchange is exchange]

    def errors(self, exchange: ExchangeType) -> list[NotifyType]:
        """Those that answers of an exchange reported."""
        return [
            p.type
            for answer in self.answers(exchange)
            for p in answer
            if isinstance(p, NotifyPayload) and p.type.is_error
        ]


class Ask:
    """A request of the test's own making; `answer` is what came back."""

    def __init__(self, kind: ExchangeType, *payloads: OpenPayload) -> None:
        self.type = kind
        self.payloads = payloads
        self.answer: Payloads | None = None

    def request(self) -> Payloads:
        return self.payloads

    def handle_response(self, payloads: Payloads, now: float) -> None:  # noqa: ARG002
        self.answer = payloads

    def on(self, host: Host, now: float = 0.0) -> Ask:
        """Send it on the living IKE SA of a host."""
        host.ike_sa.start(cast("Exchange", self), now)
        return self


def answer_in_clear(request: bytes, *payloads: OpenPayload, spi_r: bytes = bytes(8)) -> bytes:
    """What anybody who has seen an IKE_SA_INIT request can answer."""
    message = decode_message_untrusted(request)
    return encode_message(
        replace(
            message,
            spi_r=spi_r,
            is_response=True,
            is_initiator=not message.is_initiator,
            payloads=payloads,
        )
    )


def backwards(path: Path) -> Path:
    """The path as the other end sees it."""
    return replace(path, local=path.remote, remote=path.local)


def with_notification(
    kind: NotifyType,
    data: Callable[[bytes], bytes | None],
    concerns: Callable[[Message], bool] = lambda _: True,
) -> Callable[[Message, Payloads], Payloads]:
    """For `Sealing.change`: each notification of a type with other data, or without it."""

    def change(message: Message, payloads: Payloads) -> Payloads:
        found: list[OpenPayload] = []
        for p in payloads:
            if not (isinstance(p, NotifyPayload) and p.type == kind and concerns(message)):
                found.append(p)
            elif (new := data(p.data)) is not None:
                found.append(replace(p, data=new))
        return tuple(found)

    return change


@pytest.fixture
def sealing(monkeypatch: pytest.MonkeyPatch) -> Sealing:
    seen = Sealing()
    seal, seal_in_parts = Protection.seal, Protection.seal_in_parts

    def changed(self: Protection, message: Message, payloads: Payloads) -> bytes:
        payloads = seen.change(message, payloads)
        seen.sent.append((message, payloads))
        return seal(self, message, payloads)

    def in_parts(self: Protection, message: Message, _: Payloads, limit: int) -> tuple[bytes, ...]:
        """Of what turned out to be too large as a whole."""
        return seal_in_parts(self, message, seen.sent[-1][1], limit)

    monkeypatch.setattr(Protection, "seal", changed)
    monkeypatch.setattr(Protection, "seal_in_parts", in_parts)
    return seen


@pytest.fixture
def make_ask() -> type[Ask]:
    return Ask


@pytest.fixture
def make_answer() -> Callable[..., bytes]:
    return answer_in_clear


@pytest.fixture
def make_backwards() -> Callable[[Path], Path]:
    return backwards


@pytest.fixture
def make_random() -> Callable[[str], Callable[[int], bytes]]:
    return seeded_random


@pytest.fixture
def make_pair() -> type[Pair]:
    return Pair


@pytest.fixture
def ppk_in_auth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initiators know of post-quantum preshared keys what RFC 8784 says, and not RFC 9867."""
    offer_ppk_in_auth_alone(monkeypatch)


def offer_ppk_in_auth_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "offer_ppk", lambda policy: (USE_PPK,) if policy.ppks else ())


@pytest.fixture
def make_policy() -> Callable[..., TunnelPolicy]:
    return tunnel_policy


@pytest.fixture
def make_mirror() -> Callable[..., TunnelPolicy]:
    return mirrored


@pytest.fixture
def pair() -> Pair:
    """A pair whose ends agree in everything."""
    return Pair(tunnel_policy())


@pytest.fixture
def up(pair: Pair) -> Pair:
    """The same, and the tunnel is up."""
    pair.up()
    return pair


@pytest.fixture
def hold() -> type[Held]:
    return Held


@pytest.fixture
def make_seeded() -> Callable[[int], Pair]:
    """A pair that is up, with nonces of its own: collisions are decided by them."""

    def make(seed: int) -> Pair:
        pair = Pair(tunnel_policy())
        for host in (pair.moon, pair.sun):
            host.endpoint._core.random = seeded_random(f"{host.name}{seed}")
        pair.up()
        return pair

    return make


@pytest.fixture
def add_tunnels() -> Callable[[Host, int], None]:
    """Give a host so many tunnels more, each with a peer of its own at the address of the first."""

    def add(host: Host, count: int) -> None:
        core = host.endpoint._core
        first = core.tunnels["tunnel-a"]
        for number in range(count):
            identity = Identity.parse(f"peer-{number}.example")
            policy = replace(first.policy, name=f"tunnel-{number}", remote_id=identity)
            core.tunnels[policy.name] = replace(first, policy=policy)
        core.tunnels_changed()

    return add


@pytest.fixture
def interleave(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Interleaving]:
    """A pair whose messages arrive when the test says so; `first` is the end called `a`.

    With `further`, policy wants so many other Child SAs, which are not there until asked for.
    """

    def make(
        first: str = "moon",
        lowest: str = "b asks",
        *,
        is_up: bool = True,
        further: int = 0,
        window: int = 8,
        esp: str = "aes128gcm16",
    ) -> Interleaving:
        pair = Pair(tunnel_policy(esp=esp))
        run = Interleaving(pair, monkeypatch, first=first, lowest=lowest)
        if is_up:
            run.up()
            for host in run.hosts.values():
                host.ike_sa.channel.window._their_size = window
        for host in run.hosts.values() if further else ():
            (net,) = host.policy.children
            more = further_children(net, further, is_moon=host is pair.moon)
            host.policy = replace(host.policy, children=(net, *more))
            host.endpoint.replace_tunnel(host.policy)
            if is_up:
                host.ike_sa.tunnel = host.policy
        return run

    return make
