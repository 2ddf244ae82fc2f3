"""Where the IKE core and the datapaths meet.

Every input goes to the core; then everything that the core puts out is done, in order, before the
next input is looked at (`_do_all`). What cannot be done is told to the core at once. What it wants
kept is in the store before the next output is done.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from xfrmpy.daemon.datapaths import Datapaths
from xfrmpy.daemon.events import Report
from xfrmpy.daemon.fetching import Fetcher
from xfrmpy.daemon.occurrences import datapath_revived, offload_refused
from xfrmpy.daemon.restraint import Restraint
from xfrmpy.daemon.shunts import Shunts
from xfrmpy.daemon.sockets import IkeSockets
from xfrmpy.daemon.statuses import StatusFetcher
from xfrmpy.daemon.totals import Totals
from xfrmpy.datapath.interface import (
    Acquire,
    Datapath,
    DatapathError,
    Expired,
    MappingChanged,
    NotAdded,
    OffloadRefused,
)
from xfrmpy.datapath.kernel.datapath import KernelDatapath
from xfrmpy.datapath.kernel.holding import hold_packets
from xfrmpy.datapath.kernel.sockets import enable_udp_encapsulation, exempt_from_policies
from xfrmpy.failures import OperatorError
from xfrmpy.ike.eap_authenticator import Verdict
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.outputs import (
    AddPolicy,
    AddSa,
    AskAaa,
    AskCertificates,
    AskSignature,
    AskStatus,
    AskUsage,
    ChildSaEstablished,
    DatagramDropped,
    DefectFound,
    MoveSa,
    Output,
    Persist,
    RemovePolicy,
    RemoveSa,
    SendDatagram,
)
from xfrmpy.ike.views import IkeSaView
from xfrmpy.ipsec.addresses import IpAddress, Path
from xfrmpy.ipsec.drift import Difference, Ends
from xfrmpy.ipsec.sad import SaId
from xfrmpy.pki.lookups import Lookup
from xfrmpy.pki.sources import Source
from xfrmpy.policy.model import TunnelPolicy
from xfrmpy.store.interface import Store, StoreError

if TYPE_CHECKING:
    from xfrmpy.daemon.signing import TokenSigner

log = logging.getLogger(__name__)

MAX_REPLAY_FILES = 20
"""Datagrams that met a defect of ours are kept for the report, so many of them."""


class Engine:
    """See the module.

    `report` is called with every output that is news about a tunnel, `lose` when a datapath has
    ended and nothing more can be done with it, `demand` when a packet for a child of a tunnel waits
    for an IKE SA, `ask` when somebody else is to decide on a user, whose verdict `decide` takes.
    What `shunts` have in force is not the core's. In `cache_dir` is kept what is known of revoked
    certificates.
    """

    def __init__(
        self,
        endpoint: IkeEndpoint,
        tunnels: dict[str, TunnelPolicy],
        sockets: IkeSockets,
        datapaths: Datapaths,
        runtime_dir: FilePath,
        report: Callable[[Report], None],
        lose: Callable[[OperatorError], None],
        store: Store | None,
        demand: Callable[[str, str, Acquire], None],
        ask: Callable[[AskAaa], None],
        shunts: Shunts,
        cache_dir: FilePath,
    ) -> None:
        self.drops: Counter[str] = Counter()
        self._tunnels = tunnels
        self._sockets = sockets
        self._datapaths = datapaths
        self._runtime_dir = runtime_dir
        self._report = report
        self._lose = lose
        self._store = store
        self._demand = demand
        self._ask = ask
        self._shunts = shunts
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self.totals = Totals(self._loop.time)
        self._signer: TokenSigner | None = None
        self._statuses = StatusFetcher(cache_dir / "revocation", self._tell_status)
        self._certificates = Fetcher()
        self._timer: asyncio.TimerHandle | None = None
        self._heard: list[Datapath] = []
        self._revivals = Restraint()
        self._defects = 0
        self._holds = False

    @property
    def keeps(self) -> bool:
        """Whether another daemon could go on with every SA."""
        return self._store is not None

    def start(self) -> None:
        """Listen to the peers and to the datapaths."""
        self._statuses.recall(self._endpoint.recall_status)
        self._listen_to_datapaths()
        self._count_what_was_taken_over()
        for each in self._sockets.all():
            self._loop.add_reader(each, self._receive, each)
        self._settle()  # What was taken over has something to do, perhaps.

    def _count_what_was_taken_over(self) -> None:
        for tunnel, policy in self._tunnels.items():
            for sa in self._endpoint.ike_sas(tunnel):
                for child in sa.children:
                    self.totals.adopt(tunnel, child, self._datapaths.of(policy))

    def _listen_to_datapaths(self) -> None:
        for datapath in self._datapaths.opened():
            if datapath in self._heard:
                continue
            self._heard.append(datapath)
            self._loop.add_reader(datapath.fileno(), self._read_events, datapath)
            self._loop.call_soon(self._read_events, datapath)
            if isinstance(datapath, KernelDatapath):
                self._prepare_sockets()

    def stop(self) -> None:
        self._statuses.stop()
        self._certificates.stop()
        if self._signer is not None:
            self._signer.stop()
        if self._timer is not None:
            self._timer.cancel()
        for datapath in self._datapaths.opened():
            self._loop.remove_reader(datapath.fileno())
        for each in self._sockets.all():
            self._loop.remove_reader(each)

    # Commands to the core.

    def initiate(self, tunnel: str, path: Path, redirected_from: IpAddress | None = None) -> None:
        self._endpoint.initiate(tunnel, path, self._loop.time(), redirected_from)
        self._settle()

    def terminate(self, tunnel: str) -> None:
        self._endpoint.terminate(tunnel, self._loop.time())
        self._settle()

    def rekey_child_sas(self, tunnel: str) -> None:
        self._endpoint.rekey_child_sas(tunnel, self._loop.time())
        self._settle()

    def rekey_ike_sas(self, tunnel: str) -> None:
        self._endpoint.rekey_ike_sas(tunnel, self._loop.time())
        self._settle()

    def set_peer_addresses(self, tunnel: str, addresses: tuple[IpAddress, ...]) -> None:
        self._endpoint.set_peer_addresses(tunnel, addresses)

    def has_ike_sas(self, tunnel: str) -> bool:
        return self._endpoint.has_ike_sas(tunnel)

    def is_up(self, tunnel: str) -> bool:
        return self._endpoint.is_up(tunnel)

    def ike_sas(self, tunnel: str) -> tuple[IkeSaView, ...]:
        return self._endpoint.ike_sas(tunnel)

    def _ask_token(self, asked: AskSignature) -> None:
        if self._signer is None:
            from xfrmpy.daemon.signing import TokenSigner  # noqa: PLC0415

            self._signer = TokenSigner(self._tell_signature)
        self._signer.ask(asked)

    def _tell_signature(self, asked: AskSignature, answer: bytes | str) -> None:
        self._endpoint.handle_signature(asked, answer, self._loop.time())
        self._settle()

    def decide(self, asked: AskAaa, verdict: Verdict) -> None:
        self._endpoint.handle_verdict(asked, verdict, self._loop.time())
        self._settle()

    # Traps.

    def set_traps(self, tunnel: str, path: Path) -> None:
        self._hold_packets(self._datapaths.of(self._tunnels[tunnel]))
        self._endpoint.set_traps(tunnel, path)
        self._settle()

    def has_traps(self, tunnel: str) -> bool:
        return self._endpoint.has_traps(tunnel)

    def is_demanded(self, tunnel: str) -> bool:
        return self._endpoint.is_demanded(tunnel)

    def forget_demand(self, tunnel: str) -> None:
        self._endpoint.forget_demand(tunnel)

    # Changes of policy.

    def add_tunnel(self, policy: TunnelPolicy) -> None:
        """One more; its datapath may be one that none had until now."""
        self._tunnels[policy.name] = policy
        self._endpoint.add_tunnel(policy)
        self._listen_to_datapaths()

    def remove_tunnel(self, tunnel: str) -> None:
        """It has no IKE SA any more, and gets none."""
        self._endpoint.remove_tunnel(tunnel, self._loop.time())
        self._settle()
        del self._tunnels[tunnel]

    def reconfigure(self, policy: TunnelPolicy) -> None:
        """What is up of a tunnel follows another policy, on the same datapath."""
        self._tunnels[policy.name] = policy
        self._endpoint.reconfigure(policy, self._loop.time())
        self._settle()

    def is_unsettled(self, tunnel: str) -> bool:
        return self._endpoint.is_unsettled(tunnel, self._loop.time())

    def is_recovering(self, tunnel: str) -> bool:
        return self._endpoint.is_recovering(tunnel, self._loop.time())

    # What others do to what is in force.

    def compare(self, datapath: Datapath) -> tuple[Difference, ...]:
        """How its SAs and policies differ from those wanted. Raises `DatapathError`."""
        self._read_events(datapath)  # What has expired is not missing.
        carried = {n for n, p in self._tunnels.items() if self._datapaths.of(p) is datapath}
        dump, of_shunts = self._shunts.part(datapath.dump())
        return (*self._endpoint.compare(carried, dump), *of_shunts)

    def recover(self, differences: Sequence[Difference]) -> None:
        """Have the core replace or move the SAs that are missing or were changed."""
        self._endpoint.recover(differences, self._loop.time())
        self._settle()

    def check_path(self, ends: Ends) -> None:
        self._endpoint.check_paths([ends], self._loop.time())
        self._settle()

    def reauthenticate_on(self, tunnel: str, path: Path) -> None:
        self._endpoint.reauthenticate_on(tunnel, path, self._loop.time())
        self._settle()

    # Inputs of the core.

    def _receive(self, ready: socket.socket) -> None:
        for data, path in self._sockets.read(ready):
            self._endpoint.receive_datagram(data, path, self._loop.time())
            self._do_all()
        self._arm_timer()

    def _handle_timeout(self) -> None:
        self._timer = None
        self._endpoint.handle_timeout(self._loop.time())
        self._settle()

    def _read_events(self, datapath: Datapath) -> None:
        try:
            events = datapath.read_events()
        except DatapathError as error:
            self._loop.remove_reader(datapath.fileno())
            self._revive(datapath, f"the {datapath.name} datapath is gone: {error}")
            return
        for event in events:
            log.debug("%s datapath: %s", datapath.name, event)
            if isinstance(event, Expired):
                self._endpoint.handle_expire(event.sa, self._loop.time(), hard=event.hard)
            elif isinstance(event, MappingChanged):
                self._endpoint.handle_mapping(event.sa, event.new, self._loop.time())
            elif isinstance(event, OffloadRefused):
                whose = self._endpoint.asked_for(event.reqid) or ("", "")
                self._report(offload_refused(*whose, event))
            else:
                self._acquire(event)
        self._settle()

    def _revive(self, datapath: Datapath, summary: str) -> None:
        """What it had in force is found to be missing then; one that ends again and again does not
        get well by that."""
        now = self._loop.time()
        try:
            if self._revivals.wait_seconds(datapath.name, now):
                raise DatapathError("too often")
            self._revivals.note(datapath.name, now)
            datapath.revive()
        except DatapathError as error:
            self._lose(OperatorError("XF3003", summary, (("another", str(error)),)))
            return
        self._loop.add_reader(datapath.fileno(), self._read_events, datapath)
        self._report(datapath_revived(summary))

    def _acquire(self, event: Acquire) -> None:
        asked = self._endpoint.asked_for(event.reqid)
        if asked is None:
            return
        ends, now = (event.source, event.destination), self._loop.time()
        if not self._endpoint.handle_acquire(*asked, *ends, now):
            self._demand(*asked, event)

    # Outputs of the core.

    def _settle(self) -> None:
        self._do_all()
        self._arm_timer()

    def _do_all(self) -> None:
        while (output := self._endpoint.next_output()) is not None:
            self._do(output)

    def _do(self, output: Output) -> None:
        match output:
            case SendDatagram():
                self._send(output)
            case Persist():
                self._keep(output)
            case AddSa() | AddPolicy():
                self._add(output)
            case MoveSa() | RemoveSa() | RemovePolicy():
                self._change(output)
            case AskUsage():
                self._tell_usage(output)
            case AskAaa() | AskSignature() | AskStatus() | AskCertificates():
                self._ask_outside(output)
            case DatagramDropped():
                self.drops[output.reason.value] += 1
                log.debug("dropped from %s: %s %s", output.path, output.reason, output.detail)
            case DefectFound():
                self._keep_defect(output)
            case ChildSaEstablished():
                self._ask_again(output)
                self._report(output)
            case _:
                self._report(output)

    def _send(self, output: SendDatagram) -> None:
        try:
            self._sockets.send(output.data, output.path)
        except OSError as error:
            # Like a datagram lost on the way: it will be sent again, or given up in its time.
            self.drops["send-failed"] += 1
            log.warning("cannot send on %s: %s", output.path, error)

    def _keep(self, output: Persist) -> None:
        """A store that has missed something is worse than none: its nonces have been used."""
        if self._store is None:
            return
        try:
            self._store.commit(output.records)
        except StoreError as error:
            log.error("from now on a kill of this daemon costs every SA: %s", error)
            store, self._store = self._store, None
            try:
                store.clear()
            except StoreError as left:
                self._lose(OperatorError("XF4003", f"what was kept is out of date: {left}"))

    def _add(self, first: AddSa | AddPolicy) -> None:
        """With all that comes right behind it and is the same Child SA's."""
        datapath = self._datapaths.of(self._tunnels[first.tunnel])
        wanted = [first, *self._endpoint.next_additions(first)]
        for output in wanted:
            self.totals.note(output, datapath)
        try:
            self._refuse_shunted(wanted)
            datapath.add([output.entry for output in wanted])
        except NotAdded as error:
            log.error("%s: the %s datapath: %s", first.tunnel, datapath.name, error)
            refused, *not_done = wanted[error.done :]
            self._endpoint.handle_failure(refused, f"{datapath.name}: {error}", not_done)
        if any(isinstance(each, AddSa) and each.entry.offload for each in wanted):
            self._loop.call_soon(self._read_events, datapath)  # Whether it was refused.

    def _refuse_shunted(self, wanted: Sequence[AddSa | AddPolicy]) -> None:
        """An SPD has one entry of a selector; what a peer narrows must not take a shunt's place."""
        for output in wanted:
            if isinstance(output, AddPolicy) and output.entry.place in self._shunts.places:
                reason = f"a shunt has the selector {output.entry.selector}"
                raise NotAdded(0, DatapathError(reason, errno.EEXIST))

    def _change(self, output: MoveSa | RemoveSa | RemovePolicy) -> None:
        datapath = self._datapaths.of(self._tunnels[output.tunnel])
        self.totals.note(output, datapath)
        try:
            match output:
                case MoveSa():
                    datapath.move_sa(output.sa, output.entry)
                case RemoveSa():
                    datapath.remove_sa(output.sa)
                case RemovePolicy():
                    datapath.remove_policy(output.entry)
        except DatapathError as error:
            log.error("%s: the %s datapath: %s", output.tunnel, datapath.name, error)
            if isinstance(output, MoveSa):
                reason = f"{datapath.name}: {error}"
                self._endpoint.handle_move_failure(output, reason, self._loop.time())

    def _ask_outside(self, output: AskAaa | AskSignature | AskStatus | AskCertificates) -> None:
        """The answer comes later, as an input."""
        match output:
            case AskAaa():
                self._ask(output)
            case AskSignature():
                self._ask_token(output)
            case AskStatus():
                for source in output.sources:
                    self._statuses.ask(source)
            case AskCertificates():
                for lookup in output.lookups:
                    told = partial(self._tell_certificates, lookup)
                    self._certificates.begin(lookup.url, lookup.limit, told)

    def _tell_usage(self, output: AskUsage) -> None:
        asked: defaultdict[Datapath, list[SaId]] = defaultdict(list)
        for tunnel, sa in output.sas:
            asked[self._datapaths.of(self._tunnels[tunnel])].append(sa)
        for datapath, sas in asked.items():
            try:
                answers = datapath.seconds_idle(sas)
            except DatapathError as error:
                log.warning("the %s datapath has no counters: %s", datapath.name, error)
                continue
            for sa, seconds_idle in zip(sas, answers, strict=True):
                if seconds_idle is not None:
                    self._endpoint.handle_usage(sa, seconds_idle, self._loop.time())

    def _tell_status(self, source: Source, answer: bytes | str) -> None:
        self._endpoint.handle_status(source, answer, self._loop.time())
        self._settle()

    def _tell_certificates(self, lookup: Lookup, answer: bytes | str) -> None:
        outcome = answer if isinstance(answer, str) else f"{len(answer)} octets"
        log.info("%s of %s: %s", lookup, lookup.url, outcome)
        self._endpoint.handle_certificates(lookup, answer, self._loop.time())
        self._settle()

    def _keep_defect(self, output: DefectFound) -> None:
        self._defects += 1
        file = self._runtime_dir / f"defect-{self._defects % MAX_REPLAY_FILES}.datagram"
        log.critical("a defect met a datagram on %s, kept as %s", output.path, file)
        log.critical("%s", output.traceback)
        try:
            file.write_bytes(output.datagram)
        except OSError as error:
            log.error("cannot keep it: %s", error)
        self._report(output)

    def _arm_timer(self) -> None:
        """A timer that comes too early is left, and sets the next: most are never reached."""
        due_at = self._endpoint.next_timeout()
        if due_at is None or (self._timer is not None and self._timer.when() <= due_at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due_at, self._handle_timeout)

    def _ask_again(self, output: ChildSaEstablished) -> None:
        """A packet has its SA; another one may meet the same trap and need another."""
        trap = self._endpoint.trap_apart(output.spi_in)
        datapath = self._datapaths.of(self._tunnels[output.tunnel])
        if trap is None or not isinstance(datapath, KernelDatapath):
            return
        try:
            datapath.ask_again(trap)
        except DatapathError as error:
            log.info("%s: %s", output.tunnel, error)

    def _hold_packets(self, datapath: Datapath) -> None:
        """The packet that asks for a tunnel is not to be lost by that."""
        if self._holds or not isinstance(datapath, KernelDatapath):
            return
        self._holds = True
        try:
            hold_packets()
        except OSError as error:
            log.warning(
                "packets that wait for a tunnel are dropped, not held: %s=0 is refused: %s",
                "net.core.xfrm_larval_drop",
                error.strerror,
            )

    def _prepare_sockets(self) -> None:
        try:
            for each in self._sockets.natt_sockets():
                enable_udp_encapsulation(each)
            for each in self._sockets.all():
                exempt_from_policies(each)
        except OSError as error:
            raise OperatorError(
                "XF4005", f"the kernel refuses what IKE's sockets need: {error.strerror}"
            ) from error
