"""The IKEv2 endpoint: octets, moments and commands in; ordered outputs out. It does no I/O.

Feed it with `receive_datagram`, `handle_timeout` and the commands; after each call take
`next_output()` until it is None, in order, telling `handle_failure` of what could not be done
before taking the next; and call `handle_timeout` again at `next_timeout()`. `now` is any clock that
does not go back, in seconds. `random(n)` gives n octets; everything unpredictable comes from it.
With a `qcd_secret`, the same after a restart, we can prove that we lost our state (`crash`). On
`natt_port` we take IKE beside ESP in UDP; the userspace datapath has `lanes` workers, the kernel
`cpus`. Who `keeps` what the outputs ask to be kept can `restore` it in another process.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from xfrmpy.crypto.authentication import SignaturePolicy
from xfrmpy.failures import Failure
from xfrmpy.ike.admission import (
    Admission,
    AdmissionLimits,
    Admitted,
    Effort,
    Request,
    request_digest,
)
from xfrmpy.ike.candidates import Tunnel
from xfrmpy.ike.certificates import WallClock, stopped_clock
from xfrmpy.ike.channel import NON_ESP_MARKER, with_marker
from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.comparison import compare, find_lost, find_moved, is_recovering
from xfrmpy.ike.core import Core, Deferred
from xfrmpy.ike.crash import TokenMaker, show_token
from xfrmpy.ike.create_child_sa import stop_waiting
from xfrmpy.ike.demand import carries, demand_of
from xfrmpy.ike.eap_authenticator import Verdict
from xfrmpy.ike.eap_responder import take_verdict
from xfrmpy.ike.errors import (
    CriticalPayload,
    Drop,
    DropReason,
    PeerIncompatible,
    PeerMisbehaved,
)
from xfrmpy.ike.exchange import FIRST_EXCHANGES, Exchange
from xfrmpy.ike.ike_sa import HALF_OPEN_SECONDS, HURRIED_SECONDS, IkeSa
from xfrmpy.ike.init import IkeSaInit, answer_ike_sa_init
from xfrmpy.ike.keepalive import KEEPALIVE
from xfrmpy.ike.liveness import ask_peer
from xfrmpy.ike.modes import check_ends
from xfrmpy.ike.nat import first_path, path_for
from xfrmpy.ike.notices import Notices, is_hint_for, may_be_lost
from xfrmpy.ike.outputs import (
    AddPolicy,
    AddSa,
    AskAaa,
    AskSignature,
    DatagramDropped,
    DefectFound,
    MoveSa,
    Output,
    RequestRefused,
    SendDatagram,
)
from xfrmpy.ike.puzzles import Puzzle
from xfrmpy.ike.reception import receive, resume
from xfrmpy.ike.reconfigure import is_unsettled, reconfigure
from xfrmpy.ike.redirect import parse_gateway, redirect_established
from xfrmpy.ike.restoration import Restored, changes_of_policy, restore
from xfrmpy.ike.resumption import usable_ticket
from xfrmpy.ike.sequence import Sequence as OutputSequence
from xfrmpy.ike.session_resume import SessionResume, answer_session_resume
from xfrmpy.ike.states import ChildSaState, IkeSaState
from xfrmpy.ike.timers import Timers
from xfrmpy.ike.traps import set_traps, trap_apart, traps_refused
from xfrmpy.ike.views import IkeSaView, view
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IpAddress, Path, SocketAddress
from xfrmpy.ipsec.drift import Difference, Dump, Ends
from xfrmpy.ipsec.sad import SadEntry, SaId
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import SpdEntry
from xfrmpy.pki.lookups import Lookup
from xfrmpy.pki.sources import Source, SourceKind
from xfrmpy.policy.model import StartMode, TunnelPolicy
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.cursor import Malformed
from xfrmpy.wire.header import IkeHeader, decode_header_untrusted
from xfrmpy.wire.message import Message, decode_message_untrusted, encode_message
from xfrmpy.wire.payloads import NotifyPayload

DEMANDS = {
    Effort.COOKIE: DropReason.COOKIE_DEMANDED,
    Effort.PUZZLE: DropReason.PUZZLE_DEMANDED,
}
"""How a request is counted that was answered by a demand only."""

_LIVING = (IkeSaState.INITIATING, IkeSaState.AUTHENTICATING, IkeSaState.ESTABLISHED)

MAX_DUE = 250
"""IKE SAs whose time has come that are attended to before what has arrived gets its turn: some 50
ms of work, and fewer answers than a socket has room for."""


class IkeEndpoint:
    """See the module."""

    def __init__(
        self,
        tunnels: Iterable[TunnelPolicy],
        random: Callable[[int], bytes],
        *,
        limits: AdmissionLimits | None = None,
        qcd_secret: bytes = b"",
        keeps: bool = False,
        natt_port: int = IKE_NATT_PORT,
        lanes: int = 1,
        cpus: int = 1,
        signatures: SignaturePolicy | None = None,
        wall_clock: WallClock = stopped_clock,
    ) -> None:
        self._core = Core(random, natt_port, lanes, cpus)
        self._core.signatures = signatures or SignaturePolicy()
        self._core.wall_clock = wall_clock
        if qcd_secret:
            self._core.crash_tokens = TokenMaker(qcd_secret)
        self._core.reauthenticate = self._reauthenticate
        self._core.tunnels = {t.name: Tunnel.of(t) for t in tunnels}
        self._admission = Admission(limits or AdmissionLimits(), random)
        self._notices = Notices(random)
        self._sequence = OutputSequence(self._core, keeps=keeps)
        self._timers = Timers()

    # Inputs.

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        """A UDP datagram with its non-ESP marker, if the path has one."""
        self._core.handling = None
        try:
            self._receive(data, path, now)
        except Drop as drop:
            self._drop(path, drop.reason)
        except (Malformed, PeerMisbehaved) as error:
            self._drop(path, DropReason.MALFORMED, str(error))
        except Exception:
            self._drop(path, DropReason.DEFECT)
            self._contain_defect(self._core.handling, data, path, now)

    def handle_timeout(self, now: float) -> None:
        """Do whatever is due, of so many IKE SAs at a time."""
        self._schedule_touched()
        for spi in self._timers.take_due(now, MAX_DUE):
            sa = self._core.ike_sas.get(spi)
            if sa is not None:
                self._run(sa, sa.handle_timeout, now)

    def handle_status(self, source: Source, answer: bytes | str, now: float) -> None:
        """What a source of `AskStatus` has answered, or a sentence that says why it has not."""
        for sa, step in self._core.inquiries.answered(source, answer):
            self._run(sa, partial(resume, sa, step), now)

    def handle_certificates(self, lookup: Lookup, answer: bytes | str, now: float) -> None:
        """What was at a URL of `AskCertificates`, or a sentence that says why nothing was."""
        for sa, step in self._core.lookups.answered(lookup, answer):
            self._run(sa, partial(resume, sa, step), now)

    def handle_signature(self, asked: AskSignature, answer: bytes | str, now: float) -> None:
        """What a token has signed, or a sentence that says why it has not."""
        due = self._core.signings.answered(asked, answer)
        if due is not None:
            sa, step = due
            self._run(sa, partial(resume, sa, step), now)

    def recall_status(self, kind: SourceKind, data: bytes) -> None:
        """What a source has answered to an earlier endpoint.

        Raises `CertificateRefused` if it is damaged or out of date.
        """
        self._core.inquiries.book.recall(kind, data, self._core.wall_clock())

    def handle_failure(
        self, output: AddSa | AddPolicy, reason: str, not_done: Iterable[AddSa | AddPolicy] = ()
    ) -> None:
        """The datapath could not do an output; `reason` is a sentence for the operator.

        `not_done` are those of `next_additions` that were to come after it.
        """
        child = self._core.children.get(output.owner)
        if child is not None:
            child.refused(output, reason, not_done)
            self._core.touched.update(self._core.ike_sas_of(output.tunnel))
        elif output.tunnel in self._core.trapped:
            traps_refused(self._core, output, reason, not_done)

    def handle_expire(self, sa_id: SaId, now: float, *, hard: bool) -> None:
        """An SA reached its soft limit, or its hard one and is gone from the datapath."""
        for sa, child in self._holders(sa_id):
            if hard and child.state in (ChildSaState.REKEYED, ChildSaState.DELETING):
                stop_waiting(sa, child, now)
                self._run(sa, sa.attend, now)
            elif hard and not child.is_gone:
                summary = f"{sa_id} reached its hard limit"
                sa.terminate(Failure(code="XF2014", summary=summary), now)
            elif child.state is ChildSaState.INSTALLED:
                child.rekey_at = now
                self._run(sa, sa.attend, now)

    def handle_acquire(
        self,
        tunnel: str,
        child: str,
        source: TrafficSelector,
        destination: TrafficSelector,
        now: float,
    ) -> bool:
        """A packet has met a policy of ours that has no SA: get one that carries the packet.

        False where an IKE SA is to be begun for that: the next `initiate` takes the packet along.
        """
        packet = ((source,), (destination,))
        living = [s for s in self._core.ike_sas_of(tunnel) if s.state in _LIVING]
        if any(carries(c, child, packet) for sa in living for c in sa.children):
            return True
        for sa in (*self._established(tunnel), *living)[:1]:
            assert sa.tunnel is not None
            for policy in (c for c in sa.tunnel.children if c.name == child):
                sa.demand.add(policy, packet)
            self._run(sa, sa.attend, now)
            return True
        self._core.demands.setdefault(tunnel, {}).setdefault(child, packet)
        return False

    def asked_for(self, reqid: int) -> tuple[str, str] | None:
        """The tunnel and the child that an acquire with this reqid means."""
        found = self._core.trapped_children.get(reqid)
        if found is not None:
            return found
        children = (c for c in self._core.children.values() if c.reqid == reqid)
        return next(((c.tunnel.name, c.policy.name) for c in children), None)

    def handle_usage(self, sa_id: SaId, seconds_idle: float, now: float) -> None:
        """An answer to `AskUsage`: the last packet was so long ago."""
        child = self._core.holders.get(sa_id)
        if child is not None:
            direction = child.entries[child.ids.index(sa_id)].direction
            child.handle_usage(direction, seconds_idle, now)

    def handle_verdict(self, asked: AskAaa, verdict: Verdict, now: float) -> None:
        """An AAA server has decided on what it was asked, or could not be."""
        sa = self._core.ike_sas.get(asked.session)
        if sa is not None:
            self._run(sa, partial(take_verdict, sa, asked.round, verdict), now)

    def handle_mapping(self, sa_id: SaId, new: SocketAddress, now: float) -> None:
        """Authentic packets of an inbound SA, the newest of it, come from elsewhere."""
        for sa, _ in self._holders(sa_id):
            self._run(sa, partial(self._follow, sa, new), now)

    def handle_move_failure(self, output: MoveSa, reason: str, now: float) -> None:
        """The datapath could not move an SA, and has it no more."""
        for sa, _ in self._holders(output.entry.id):
            sa.terminate(Failure(code="XF3002", summary=reason), now)

    @staticmethod
    def _follow(sa: IkeSa, new: SocketAddress, _now: float) -> None:
        sa.follow_peer(replace(sa.path, remote=new))

    def restore(
        self,
        records: Mapping[bytes, bytes],
        sad: Iterable[SadEntry],
        spd: Sequence[SpdEntry],
        now: float,
    ) -> Restored:
        """Go on where an earlier endpoint was killed, by its records and what is in force.

        Comes first of all; the clock is the same. The policies may be others than they were.
        """
        changes = changes_of_policy(self._core, records)
        restored = restore(self._core, records, changes, sad, spd, now)
        in_force = {name: change.before for name, change in changes.items() if change.before}
        self._sequence.resume(records, in_force)
        return restored

    # What others do to what is in force.

    def compare(self, tunnels: Collection[str], dump: Dump) -> tuple[Difference, ...]:
        """How a datapath differs from what its tunnels want in force; nothing is done about it."""
        return compare(self._core, tunnels, dump)

    def recover(self, differences: Iterable[Difference], now: float) -> None:
        """Replace what is missing of the SAs, and move back what was changed."""
        for child, missing in find_lost(self._core, differences).items():
            for sa in self._core.ike_sas_of(child.tunnel.name):
                if child in sa.children or child in (retired for _, retired in sa.retired):
                    self._run(sa, partial(child.lose, missing), now)
        for move in find_moved(self._core, differences):
            self._core.emit(move)

    def is_recovering(self, tunnel: str, now: float) -> bool:
        """Whether a Child SA of a tunnel has lost an SA, and is being replaced at this moment."""
        established = self._established(tunnel)
        return any(is_recovering(child, now) for sa in established for child in sa.children)

    def check_paths(self, ends: Collection[Ends], now: float) -> None:
        """Ask the peers whether they are still reached between these addresses."""
        for sa in tuple(self._core.ike_sas.values()):
            if (sa.path.local.address, sa.path.remote.address) in ends:
                self._run(sa, partial(ask_peer, sa), now)

    # Traps.

    def set_traps(self, tunnel: str, path: Path) -> None:
        """Have packets for a tunnel of `start: on-demand` ask for it; its SAs are to go that way.

        In place of the traps that it has. Of another tunnel there are none.
        """
        if self._core.trapped.get(tunnel) != path:
            set_traps(self._core, tunnel, path)

    def trap_apart(self, spi_in: int) -> SpdEntry | None:
        """The trap that stands beside a Child SA because that has a part of the traffic only."""
        return trap_apart(self._core, spi_in)

    def has_traps(self, tunnel: str) -> bool:
        """Whether packets for a tunnel ask for it."""
        return tunnel in self._core.trapped

    def has_traps_to_keep(self) -> bool:
        """Whether an earlier daemon's traps may be wanted, though it had no IKE SA."""
        tunnels = self._core.tunnels.values()
        return any(tunnel.policy.start is StartMode.ON_DEMAND for tunnel in tunnels)

    def forget_demand(self, tunnel: str) -> None:
        """What its packets have asked for cannot be had now; the next will ask again."""
        self._core.demands.pop(tunnel, None)

    def is_demanded(self, tunnel: str) -> bool:
        """Whether a packet waits for an IKE SA to be begun."""
        return tunnel in self._core.demands

    # Commands.

    def set_peer_addresses(self, tunnel: str, addresses: tuple[IpAddress, ...]) -> None:
        """The addresses that the names of a tunnel's peer have now; a responder goes by them."""
        if self._core.tunnels[tunnel].peer_addresses != addresses:
            self._core.tunnels[tunnel].peer_addresses = addresses
            self._core.tunnels_changed()

    def replace_tunnel(self, policy: TunnelPolicy) -> None:
        """New IKE SAs of the tunnel follow this policy; those there are stay as they are."""
        self._core.tunnels[policy.name].policy = policy
        self._core.tunnels_changed()

    def add_tunnel(self, policy: TunnelPolicy) -> None:
        """One more; the addresses of a peer that has a name are to follow."""
        self._core.tunnels[policy.name] = Tunnel.of(policy)
        self._core.tunnels_changed()

    def remove_tunnel(self, tunnel: str, now: float) -> None:
        """Its IKE SAs end, and nobody can begin another."""
        self.terminate(tunnel, now)
        set_traps(self._core, tunnel, None)
        self.forget_demand(tunnel)
        del self._core.tunnels[tunnel]
        self._core.tunnels_changed()

    def reconfigure(self, policy: TunnelPolicy, now: float) -> None:
        """A tunnel follows another policy, and so do its IKE SAs, short of being taken down."""
        reconfigure(self._core, policy, now)
        for sa in self._core.ike_sas_of(policy.name):
            self._run(sa, sa.attend, now)

    def initiate(
        self, tunnel: str, path: Path, now: float, redirected_from: IpAddress | None = None
    ) -> None:
        """Begin an IKE SA with the peer of a tunnel, or where it has redirected us to."""
        sa, policy = self._new_ike_sa(tunnel, path)
        sa.demand = demand_of(policy, self._core.demands.pop(tunnel, {}))
        held = usable_ticket(self._core, policy, now)
        if held is None or redirected_from is not None:
            self._begin(sa, IkeSaInit(sa, policy, redirected_from), now)
        else:
            self._begin(sa, SessionResume(sa, policy, held), now)

    def rekey_ike_sas(self, tunnel: str, now: float) -> None:
        """Rekey every IKE SA of a tunnel, as if its time had come."""
        for sa in self._established(tunnel):
            sa.rekey_at = now
            self._run(sa, sa.attend, now)

    def rekey_child_sas(self, tunnel: str, now: float) -> None:
        """Rekey every Child SA of a tunnel, as if its time had come."""
        for sa in self._established(tunnel):
            for child in sa.children:
                child.rekey_at = now
            self._run(sa, sa.attend, now)

    def reauthenticate(self, tunnel: str, now: float) -> None:
        """Make every IKE SA of a tunnel anew, with its Child SAs, before the old one goes."""
        for sa in self._established(tunnel):
            if sa.can_begin_anew:
                sa.reauth_at = now
            self._run(sa, sa.attend, now)

    def reauthenticate_on(self, tunnel: str, path: Path, now: float) -> None:
        """Make the IKE SA of a tunnel anew on another path; the old one goes when that is up."""
        for old in self._established(tunnel)[-1:]:
            old.reauth_at = None
            self._succeed(old, path, now)

    def terminate(self, tunnel: str, now: float) -> None:
        """End every IKE SA of a tunnel, and tell the peer."""
        self._core.tickets.pop(tunnel, None)
        for sa in self._core.ike_sas_of(tunnel):
            sa.terminate(None, now)
            sa.bury_retired()

    def redirect(self, tunnel: str, gateway: str, now: float) -> int:
        """Send the clients of a tunnel that are up to another gateway; gives how many can go."""
        return redirect_established(self._core, tunnel, parse_gateway(gateway), now)

    # Outputs.

    def next_output(self) -> Output | None:
        """The next thing to do, or None; see the module about the order."""
        while (item := self._core.next_item()) is not None:
            if isinstance(item, Deferred):
                self._run(item.sa, item.step, item.now)
            elif (output := self._sequence.pass_on(item)) is not None:
                return output
        return self._sequence.next_held()

    def next_additions(self, output: AddSa | AddPolicy) -> list[AddSa | AddPolicy]:
        """The outputs that come next and may be done in one go with this one."""
        return self._sequence.next_additions(output.owner)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` should be called, if ever."""
        self._schedule_touched()
        return self._timers.next_at

    def has_ike_sas(self, tunnel: str) -> bool:
        """Whether a tunnel has a living IKE SA."""
        found = self._core.ike_sas_of(tunnel)
        return any(sa.state is not IkeSaState.DELETED for sa in found)

    def is_up(self, tunnel: str) -> bool:
        """Whether a tunnel carries traffic."""
        found = self._core.ike_sas_of(tunnel)
        living = (sa for sa in found if sa.state is not IkeSaState.DELETED)
        return any(child.sends for sa in living for child in sa.children)

    def is_unsettled(self, tunnel: str, now: float) -> bool:
        """Whether something is being done about a tunnel, or is to be: it is on its way."""
        found = [s for s in self._core.ike_sas_of(tunnel) if s.state is not IkeSaState.DELETED]
        return any(is_unsettled(sa, now) for sa in found)

    def ike_sas(self, tunnel: str) -> tuple[IkeSaView, ...]:
        """The living IKE SAs of a tunnel, the oldest first."""
        return tuple(
            view(sa) for sa in self._core.ike_sas_of(tunnel) if sa.state is not IkeSaState.DELETED
        )

    # The way of a datagram.

    def _receive(self, data: bytes, path: Path, now: float) -> None:
        if path.natt and data == KEEPALIVE:
            return  # RFC 3948 section 2.3: "The receiver SHOULD ignore" it.
        data = _without_marker(data, path)
        header = decode_header_untrusted(data)
        if header.major != 2:
            if header.major > 2:  # Section 2.5: tell the version that we speak.
                self._notify(header, NotifyType.INVALID_MAJOR_VERSION, path, now)
            raise Drop(DropReason.WRONG_VERSION)
        message = decode_message_untrusted(data, header)
        self._take_hint(message, path, now)
        if not any(header.spi_r) and not header.is_response:
            self._receive_first(message, data, path, now)
            return
        sa = self._core.ike_sas.get(header.spi_r if header.is_initiator else header.spi_i)
        if sa is None:
            if may_be_lost(self._core, message):
                proof = show_token(self._core, message)
                self._notify(header, NotifyType.INVALID_IKE_SPI, path, now, *proof)
            raise Drop(DropReason.UNKNOWN_SPI)
        if any(sa.channel.their_spi) and sa.channel.their_spi not in (header.spi_i, header.spi_r):
            raise Drop(DropReason.UNKNOWN_SPI)
        self._core.touched.add(sa)
        if is_hint_for(sa, message, path):
            sa.suspect(now)
            raise Drop(DropReason.HINT)
        try:
            receive(sa, message, data, path, now)
        except Drop as drop:
            if drop.reason is DropReason.NOT_AUTHENTIC:
                self._admission.forged(sa.our_spi)
            raise
        sa.attend(now)

    def _notify(
        self, request: IkeHeader, kind: NotifyType, path: Path, now: float, *proof: NotifyPayload
    ) -> None:
        answer = self._notices.answer(request, kind, path, now, *proof)
        if answer is not None:
            self._core.emit(SendDatagram(path=path, data=with_marker(path, answer)))

    def _take_hint(self, message: Message, path: Path, now: float) -> None:
        suspects = self._notices.suspects(self._core, message, path, now)
        for sa in suspects:
            self._core.touched.add(sa)
            sa.suspect(now)
        if suspects:
            raise Drop(DropReason.HINT)

    def _receive_first(self, message: Message, data: bytes, path: Path, now: float) -> None:
        """A request that begins an IKE SA: new, or the repetition of one that was answered."""
        if message.exchange not in FIRST_EXCHANGES or not message.is_initiator:
            raise Drop(DropReason.WRONG_EXCHANGE)
        if message.message_id != 0 or not any(message.spi_i):
            raise Drop(DropReason.WRONG_MESSAGE_ID)
        if message.spi_i in self._core.ike_sas:
            raise Drop(DropReason.WRONG_ROLE)  # Our own request, sent back to us.
        self._schedule_touched()
        digest = request_digest(data, path)
        known = self._core.ike_sas.get(self._admission.answered(digest) or b"")
        if known is not None:
            answer = with_marker(path, known.channel.init_response)
            self._core.emit(SendDatagram(path=path, data=answer))
            return
        verdict = self._admission.examine(Request.of(message, digest, path), now)
        if isinstance(verdict, Admitted):
            self._serve(message, data, path, verdict, now)
        else:
            self._answer_in_clear(message, path, *verdict.payloads)
            raise Drop(DEMANDS[verdict.effort])

    def _serve(
        self, message: Message, data: bytes, path: Path, admitted: Admitted, now: float
    ) -> None:
        try:
            sa = self._answer_first(message, data, path, admitted.puzzle, now)
        except PeerIncompatible as incompatible:
            self._answer_in_clear(message, path, incompatible.notify)
            if incompatible.notify.type is not NotifyType.INVALID_KE_PAYLOAD:
                self._core.emit(RequestRefused(tunnel="", path=path, failure=incompatible.failure))
        except CriticalPayload as error:
            self._answer_in_clear(message, path, error.notify)
        else:
            self._admission.opened(sa.our_spi, admitted, now)
            seconds = HURRIED_SECONDS if admitted.is_hurried else HALF_OPEN_SECONDS
            sa.expect_authentication(now + seconds)

    def _answer_first(
        self, message: Message, data: bytes, path: Path, puzzle: Puzzle | None, now: float
    ) -> IkeSa:
        if message.exchange is ExchangeType.IKE_SESSION_RESUME:
            return answer_session_resume(self._core, message, data, path, now)
        return answer_ike_sa_init(self._core, message, data, path, puzzle)

    def _answer_in_clear(self, request: Message, path: Path, *notifies: NotifyPayload) -> None:
        """Answer a first request without serving it: no state, so the responder's SPI is zero."""
        answer = replace(request, is_response=True, is_initiator=False, payloads=notifies)
        self._core.emit(SendDatagram(path=path, data=with_marker(path, encode_message(answer))))

    def _run(self, sa: IkeSa, step: Callable[[float], None], now: float) -> None:
        """A step that no datagram at hand has caused, and what becomes due by it."""
        self._core.touched.add(sa)
        try:
            step(now)
            sa.attend(now)
        except Exception:
            self._contain_defect(sa, b"", sa.path, now)

    def _contain_defect(self, sa: IkeSa | None, data: bytes, path: Path, now: float) -> None:
        """A bug of ours costs the IKE SA that met it, at most; none if anybody could cause it."""
        report = traceback.format_exc()
        self._core.emit(DefectFound(path=path, datagram=data, traceback=report))
        if sa is not None:
            sa.close(Failure(code="XF4006", summary=report.splitlines()[-1]), now)

    def _drop(self, path: Path, reason: DropReason, detail: str = "") -> None:
        self._core.emit(DatagramDropped(path=path, reason=reason, detail=detail))

    def _new_ike_sa(self, tunnel: str, path: Path) -> tuple[IkeSa, TunnelPolicy]:
        policy = self._core.tunnels[tunnel].policy
        sa = IkeSa(
            self._core,
            path=path_for(policy.peer_port, path, self._core.natt_port),
            is_initiator=True,
            schedule=policy.retransmission,
            tunnel=policy,
        )
        return sa, policy

    @staticmethod
    def _begin(sa: IkeSa, exchange: Exchange, now: float) -> None:
        """The first exchange, if what the policy wants can be had between these ends."""
        assert sa.tunnel is not None
        unusable = check_ends(sa.tunnel.children, sa.path)
        if unusable is not None:
            sa.close(unusable, now)
        else:
            sa.start(exchange, now)

    def _reauthenticate(self, old: IkeSa, now: float) -> None:
        """Begin an IKE SA that takes the place of another, where its peer was reached at first."""
        self._succeed(old, first_path(old.path), now)

    def _succeed(self, old: IkeSa, path: Path, now: float) -> None:
        sa, policy = self._new_ike_sa(old.tunnel_name, path)
        sa.replaces = old
        sa.demand.restrict_to(old.children, policy)
        self._begin(sa, IkeSaInit(sa, policy), now)

    def _established(self, tunnel: str) -> list[IkeSa]:
        found = self._core.ike_sas_of(tunnel)
        return [sa for sa in found if sa.state is IkeSaState.ESTABLISHED]

    def _holders(self, sa_id: SaId) -> list[tuple[IkeSa, ChildSa]]:
        """The Child SA that an SA belongs to, with its IKE SA."""
        child = self._core.holders.get(sa_id)
        if child is None:
            return []
        found = self._core.ike_sas_of(child.tunnel.name)
        return [(sa, child) for sa in found if child in sa.children]

    # Timers.

    def _schedule_touched(self) -> None:
        touched, attended = self._core.touched, self._core.attended
        for sa in touched:
            self._schedule(sa, sa.next_timeout)
        for sa, duty_at in attended.items():
            if sa not in touched:
                self._schedule(sa, sa.timeout_with(duty_at))
        touched.clear()
        attended.clear()

    def _schedule(self, sa: IkeSa, at: float | None) -> None:
        spi = sa.our_spi
        is_known = spi in self._core.ike_sas
        if spi in self._admission:
            if sa.state is not IkeSaState.AUTHENTICATING:
                self._admission.went_on(spi)
            if sa.is_authenticated or not is_known:
                self._admission.closed(spi, is_authenticated=sa.is_authenticated)
        self._timers.set(spi, at if is_known else None)


def _without_marker(data: bytes, path: Path) -> bytes:
    if not path.natt:
        return data
    if data[:4] != NON_ESP_MARKER:
        raise Drop(DropReason.NO_MARKER)
    return data[4:]
