"""Two ends, a bad link, and an operator at each who changes his mind: seeded, so that it replays.

Every seed is a run of its own: for a while the link loses, reorders, doubles, delays and damages,
a NAT forgets its mapping, daemons restart, datapaths refuse, and tunnels go up and down; then
everything is quiet. Invariants hold after every step, and at rest both ends agree.

`python -m tests.ike.simulation 0:1000000` runs so many, on every core; a failure prints the line
that replays it. `make test` runs the first 5,000.
"""

from __future__ import annotations

import heapq
import json
import multiprocessing
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from math import inf
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.ike.conftest import Host, Pair, mirrored, seeded_random, tunnel_policy
from xfrmpy.ike import admission as admission_module
from xfrmpy.ike import channel as channel_module
from xfrmpy.ike import puzzles as puzzles_module
from xfrmpy.ike.admission import AdmissionLimits
from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.core import Core
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.keepalive import KEEPALIVE
from xfrmpy.ike.kept_policy import is_policy, read_policies
from xfrmpy.ike.outputs import AddSa, SendDatagram, TunnelClosed
from xfrmpy.ike.snapshot import count_of, is_lasting, spi_of, with_count, write_ike_sa
from xfrmpy.ike.states import ChildSaState, IkeSaState
from xfrmpy.ipsec.addresses import IKE_PORT, Path, SocketAddress
from xfrmpy.ipsec.sad import MAX_RESOURCES, Direction, UdpEncapsulation
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.model import (
    ChildPolicy,
    DatapathChoice,
    EapAcceptance,
    EapCredential,
    EapMethod,
    EapUsers,
    Encapsulation,
    Ppk,
    PrivateKey,
    PublicKey,
    SharedKey,
    TunnelPolicy,
)
from xfrmpy.registry import ExchangeType

COMMANDS = (
    *("up", "up", "up", "up", "both", "down", "restart", "rebind"),
    *("rekey child", "rekey child", "rekey ike", "rekey ike", "reauthenticate"),
    *("rekey child at once", "rekey ike at once", "part"),
)
"""`at once` is at both ends; a partition (`part`) lets nothing pass for a while, or nothing of one
end."""

TICK_SECONDS = 1e-6
"""Clocks of great numbers are not exact: an end is woken a little late, never too early."""

SETTLING_SECONDS = 60.0
"""At rest, an exchange may be under way, because lifetimes go on being short; it ends by then."""

STORM_SECONDS, QUIET_SECONDS = 90.0, 400.0
"""The quiet is longer than liveness, every retransmission, half-open and lingering together."""

SMALL_SIZES = {4: (300, 200), 6: (300, 200)}
"""So small that IKE_AUTH goes in fragments: in every third run."""

FEW_BITS = 8
"""Puzzles as such are what matters here, not how hard they are."""

NAT_ADDRESS = ip_address("198.51.100.1")


class Simulation:
    """One run. `chance` is all that is left to it, but for the extensions, which `extras` choose:
    more of them leave the runs as they were. The ends have randomness of their own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.extras = random.Random(f"{seed}/extras")
        self.kills = random.Random(f"{seed}/kills")
        self.workers = random.Random(f"{seed}/workers")
        self.is_mortal = self.kills.random() < 0.25
        self.is_audited = self.kills.random() < 0.1
        policy = self._with_workers(self._policy())
        sun = mirrored(policy)
        if self.workers.random() < 0.3:  # Which knows nothing of it.
            sun = replace(sun, children=tuple(replace(c, per_resource=0) for c in sun.children))
        if self.chance.random() < 0.3:
            sun = replace(sun, proposals=sun.proposals[::-1])
        self.has_users = random.Random(f"{seed}/eap").random() < 0.1
        if self.has_users:
            policy, sun = _by_eap(policy, sun)
        elif random.Random(f"{seed}/signatures").random() < 0.1:
            policy, sun = _by_signatures(policy, sun)
        secrets = self.extras.random() < 0.5
        self.pair = Pair(policy, sun, self._limits(), secrets=secrets, keeps=self.is_mortal)
        self.hosts = (self.pair.moon, self.pair.sun)
        for host in self.hosts if policy.children[0].per_resource else ():
            host.lanes = self.workers.choice((1, 2, 3, 5))
            host.cpus = host.lanes - 1 or 1
            host.start()
        self.now = 0.0
        self.flying: list[tuple[float, int, Host, bytes, Path]] = []
        self.count = 0
        self.is_storm = True
        self.parted: dict[str, float] = {}
        self.clocks = {
            name: (self.extras.choice((0.0, 1e3, 1e9)), self.extras.choice((1.0, 0.97, 1.03)))
            for name in ("moon", "sun")
        }
        self.badness = self.chance.choice((0.0, 0.05, 0.2, 0.4))
        self.mappings: dict[int, int] = {}
        self.has_nat = self.chance.random() < 0.3
        if self.has_nat:
            self.pair.sun.endpoint.set_peer_addresses("tunnel-a", (NAT_ADDRESS,))
        self.commands = sorted(self._command() for _ in range(self.chance.randint(2, 12)))
        self.accidents = {what for _, what, _ in self.commands} & {"restart", "rebind", "part"}
        self.policies = {"moon": policy, "sun": sun}
        self._plan_changes()
        self.spis: set[tuple[str, int]] = set()
        self.keys: set[bytes] = set()
        self.sent_with: set[bytes] = set()
        self.sealed: dict[bytes, bytes] = {}
        for host in self.hosts:
            host.clock = partial(self._time_at, host)
            host.endpoint._core.random = seeded_random(f"{seed}/{host.name}")
            self._doom(host)
            for _ in range(self.chance.choice((0, 0, 0, 1, 2)) if self.badness else 0):
                kind = self.chance.choice(("add_sa", "add_policy", "add_sa out", "add_policy fwd"))
                host.datapath.refuse(kind, nth=self.chance.randint(1, 6))

    def _limits(self) -> AdmissionLimits:
        """In every fifth run the ends demand cookies from the first request on, in some puzzles, in
        some of these in IKE_AUTH too."""
        if self.seed % 5:
            return AdmissionLimits()
        if self.seed % 50:
            return AdmissionLimits(cookies_at=0)
        return AdmissionLimits(cookies_at=0, puzzles_at=0, auth_puzzles_at=self.seed % 100)

    def _policy(self) -> TunnelPolicy:
        groups = self.chance.choice(("x25519", "ecp256-x25519"))
        hybrid = random.Random(f"{self.seed}/hybrid")
        further = hybrid.choice(("", "", "-ke1_mlkem768", "-ke1_mlkem768-ke3_ecp384"))
        policy = tunnel_policy(
            self.chance.choice(("10.1.0.0/16", "10.1.0.0/24 2001:db8:1::/48")),
            self.chance.choice(("10.2.0.0/16", "10.2.0.0/24[tcp/443] 2001:db8:2::/48")),
            ike=f"aes128gcm16-prfsha256-{groups}{further} aes256-sha256-x25519",
            esp=self.chance.choice(
                (
                    "aes128gcm16",
                    "aes256-sha256-noesn",
                    f"aes128gcm16-ecp256-x25519{further and hybrid.choice((further, ''))}",
                )
            ),
        )
        (child,) = policy.children
        if self.chance.random() < 0.3:
            seconds = self.chance.choice((40.0, 100.0))
            policy = replace(policy, children=(replace(child, lifetime_seconds=seconds),))
        if self.extras.random() < 0.3:
            policy = replace(policy, children=(*policy.children, _another(policy.children[0])))
        policy = replace(policy, **self._post_quantum_keys())
        if self.chance.random() < 0.2:
            policy = replace(policy, encapsulation=Encapsulation.FORCE)
        if self.extras.random() < 0.5:
            policy = replace(policy, resumption=True)
        if self.chance.random() < 0.3:
            policy = replace(
                policy,
                lifetime_seconds=self.chance.choice((None, 100.0, 300.0)),
                reauth_seconds=self.chance.choice((None, None, 150.0)),
            )
        return policy

    def _post_quantum_keys(self) -> dict[str, Any]:
        """In some runs the ends have post-quantum preshared keys, and in some of these must."""
        chance = random.Random(f"{self.seed}/ppk")
        names = chance.choice(((), (), ("one",), ("one", "other")))
        ppks = tuple(Ppk(id=n, key=SharedKey(octets=n.encode() * 16, origin=n)) for n in names)
        return {"ppks": ppks, "ppk_required": bool(ppks) and chance.random() < 0.5}

    def _with_workers(self, policy: TunnelPolicy) -> TunnelPolicy:
        """In every fourth run the first child is to have several Child SAs (RFC 9611)."""
        if self.workers.random() >= 0.25:
            return policy
        net, *more = policy.children
        net = replace(net, per_resource=self.workers.choice((2, 3, MAX_RESOURCES)))
        in_kernel = self.workers.random() < 0.3
        datapath = DatapathChoice.KERNEL if in_kernel else DatapathChoice.USERSPACE
        return replace(policy, datapath=datapath, children=(net, *more))

    def _command(self) -> tuple[float, str, str]:
        what = self.chance.choice(COMMANDS)
        calls = what in {"up", "both"}
        who = "moon" if self.has_nat and calls else self.chance.choice(("moon", "sun"))
        who = "moon" if self.has_users and calls else who
        return self.chance.uniform(0, STORM_SECONDS * self.chance.random()), what, who

    def _plan_changes(self) -> None:
        """In some runs the operators change the policy, the one earlier than the other."""
        for _ in range(self.extras.choice((0, 0, 0, 1, 2, 3))):
            begins_at = self.extras.uniform(5.0, STORM_SECONDS - 30.0)
            lag = self.extras.choice((0.0, 0.5, 20.0))
            first, second = self.extras.sample(("moon", "sun"), 2)
            self.commands.append((begins_at, "change", first))
            self.commands.append((begins_at + lag + TICK_SECONDS, "follow", second))
            self.accidents |= {"change"}
        self.commands.sort()

    def run(self) -> None:
        self._until(STORM_SECONDS)
        self.is_storm = False
        for host in self.hosts:
            self._doom(host)
        self._until(STORM_SECONDS + QUIET_SECONDS)
        end = self.now
        while not self._is_settled() and self.now < end + SETTLING_SECONDS:
            self._until(self.now + 0.5)
        self._check_rest()

    def _is_settled(self) -> bool:
        if not any(host.views for host in self.hosts):  # What was there is kept for a while.
            return all(host.endpoint.next_timeout() is None for host in self.hosts)
        return not self.flying and all(
            sa.state in (IkeSaState.ESTABLISHED, IkeSaState.DELETED)
            and sa.channel.window.is_idle
            and not sa.retired
            and all(c.state is ChildSaState.INSTALLED for c in sa.children)
            for host in self.hosts
            for sa in host.ike_sas
        )

    # Time. Each end has a clock that began at another moment and runs at another pace.

    def _time_at(self, host: Host) -> float:
        start, pace = self.clocks[host.name]
        return start + self.now * pace

    def _due(self, host: Host) -> float | None:
        """When an end wants to be woken, by the time of the world."""
        due_at = host.endpoint.next_timeout()
        if due_at is None:
            return None
        start, pace = self.clocks[host.name]
        return (due_at - start) / pace

    def _until(self, end: float) -> None:
        while True:
            moments = [self._due(host) for host in self.hosts]
            moments += [self.flying[0][0]] if self.flying else []
            moments += [self.commands[0][0]] if self.commands else []
            due = min((m for m in moments if m is not None), default=end)
            if due >= end:
                self.now = end
                return
            self.now = max(self.now, due + TICK_SECONDS)
            self._step()

    def _step(self) -> None:
        while self.commands and self.commands[0][0] <= self.now:
            self._obey(*self.commands.pop(0)[1:])
        while self.flying and self.flying[0][0] <= self.now:
            _, _, host, data, path = heapq.heappop(self.flying)
            host.endpoint.receive_datagram(data, path, self._time_at(host))
            self._settle(host)
        for host in self.hosts:
            host.endpoint.handle_timeout(self._time_at(host))
            self._settle(host)

    def _obey(self, what: str, who: str) -> None:
        host = self.pair.moon if who == "moon" else self.pair.sun
        other = self.pair.sun if who == "moon" else self.pair.moon
        if what == "both" and not (self.has_nat or self.has_users):
            self._obey("up", other.name)
        if what in {"up", "both"}:
            ends = (SocketAddress(ip_address(h.address), IKE_PORT) for h in (host, other))
            path = Path(local=next(ends), remote=next(ends))
            host.endpoint.initiate("tunnel-a", path, self._time_at(host))
        elif what == "down":
            host.endpoint.terminate("tunnel-a", self._time_at(host))
        elif what == "part":
            self._part(host)
        elif what.startswith("rekey") or what == "reauthenticate":
            self._replace(what, host, other)
        elif what == "restart":
            self._restart(host)
        elif what in {"change", "follow"}:
            if what == "change":
                self._change_policies()
            host.policy = self.policies[host.name]
            host.endpoint.reconfigure(host.policy, self._time_at(host))
        else:
            self.mappings.clear()
        self._settle(host)

    def _replace(self, what: str, host: Host, other: Host) -> None:
        ends = (host, other) if what.endswith("at once") else (host,)
        for end in ends:
            now = self._time_at(end)
            if what.startswith("rekey child"):
                end.endpoint.rekey_child_sas("tunnel-a", now)
            elif what.startswith("rekey ike"):
                end.endpoint.rekey_ike_sas("tunnel-a", now)
            else:
                end.endpoint.reauthenticate("tunnel-a", now)
        for end in ends:
            self._settle(end)

    def _change_policies(self) -> None:
        """What both operators have agreed on, each of whom does it in his own time."""
        moon, sun = self.policies["moon"], self.policies["sun"]
        net, *more = moon.children
        terms: dict[str, Any] = self.extras.choice(
            (
                {"dpd_seconds": self.extras.choice((5.0, 60.0))},
                {"shared_key": SharedKey(octets=self.extras.randbytes(32), origin="changed")},
                {"proposals": moon.proposals[::-1]},
                {"lifetime_seconds": self.extras.choice((60.0, None))},
                {"children": (net,) if more else (net, _another(net))},
                {"children": (replace(net, replay_window=2 * net.replay_window), *more)},
                {"children": (replace(net, local=(*net.local, _LATER)), *more)},
                {"children": (replace(net, remote=net.remote[:1], local=net.local[:1]), *more)},
            )
        )
        if net.per_resource and self.workers.random() < 0.5:
            few = replace(net, per_resource=self.workers.choice((0, 2, 3, MAX_RESOURCES)))
            terms = {"children": (few, *more)}
        moon = replace(moon, **terms)
        others = {key: getattr(mirrored(moon), key) for key in terms}
        self.policies = {"moon": moon, "sun": replace(sun, **others)}

    def _part(self, sender: Host) -> None:
        """Nothing of one end passes for a while, or nothing at all."""
        until = self.now + self.chance.choice((1.0, 5.0, 30.0))
        silent = (sender,) if self.chance.random() < 0.5 else self.hosts
        self.parted.update({host.name: until for host in silent})

    def _restart(self, host: Host) -> None:
        peers = host.endpoint._core.tunnels["tunnel-a"].peer_addresses or ()
        host.endpoint = IkeEndpoint(
            [host.policy],
            seeded_random(f"{self.seed}/{host.name}/{self.now}"),
            limits=host.limits,
            qcd_secret=host.secret,
            keeps=host.keeps,
            lanes=host.lanes,
            cpus=host.cpus,
        )
        host.endpoint.set_peer_addresses("tunnel-a", peers)
        host.datapath.remove_ours()
        host.kept.clear()

    # Kills. What is kept and what is in force is all that survives them.

    def _doom(self, host: Host) -> None:
        """Some ends die, perhaps again and again: after any output, in the middle of a step."""
        is_doomed = self.is_mortal and self.is_storm and self.kills.random() < 0.8
        host.dies_after = self.kills.randrange(self.kills.choice((10, 60))) if is_doomed else None

    def _revive(self, host: Host) -> None:
        peers = host.endpoint._core.tunnels["tunnel-a"].peer_addresses or ()
        self._doom(host)
        restored = host.take_over()
        host.endpoint.set_peer_addresses("tunnel-a", peers)
        assert not restored.unreadable, restored.unreadable
        assert not restored.given_up
        assert not restored.lost, "an SA was lost by a kill"

    # The link.

    def _settle(self, host: Host) -> None:
        before = len(host.outputs)
        for output in host.take_outputs():
            self._check_nonce(output)
            for _ in range(self._copies(host)):
                self._send(host, output)
        self._check_additions(host, host.outputs[before:])
        if host.dies_after is not None and host.dies_after < 0:
            self._revive(host)
            self._settle(host)
            return
        self._check_host(host)
        self._check_kept(host)

    def _copies(self, sender: Host) -> int:
        if self.is_storm and self.now < self.parted.get(sender.name, 0.0):
            return 0
        if not self.is_storm or self.chance.random() >= self.badness:
            return 1
        return self.chance.choice((0, 0, 0, 2, 3))

    def _send(self, sender: Host, output: SendDatagram) -> None:
        receiver = self.pair.sun if sender is self.pair.moon else self.pair.moon
        path = Path(local=output.path.remote, remote=output.path.local, natt=output.path.natt)
        if self.has_nat:
            translated = self._translate(sender, path)
            if translated is None:
                return
            path = translated
        data, delay = output.data, 0.02
        if self.is_storm and self.chance.random() < self.badness:
            delay = self.chance.choice((0.01, 0.1, 0.5, 3.0, 40.0))
        if self.is_storm and self.chance.random() < self.badness / 3:
            position = self.chance.randrange(len(data))
            flipped = data[position] ^ 1 << self.chance.randrange(8)
            data = data[:position] + bytes([flipped]) + data[position + 1 :]
        self.count += 1
        heapq.heappush(self.flying, (self.now + delay, self.count, receiver, data, path))

    def _translate(self, sender: Host, path: Path) -> Path | None:
        """Moon's ports are mapped to others; what comes for a forgotten mapping is lost."""
        if sender is self.pair.moon:
            port = path.remote.port
            if port not in self.mappings:
                self.mappings[port] = self.chance.randrange(10000, 60000)
            return replace(path, remote=SocketAddress(NAT_ADDRESS, self.mappings[port]))
        inner = next((i for i, o in self.mappings.items() if o == path.local.port), None)
        if inner is None or path.local.address != NAT_ADDRESS:
            return None
        return replace(path, local=SocketAddress(ip_address(self.pair.moon.address), inner))

    # Invariants.

    def _check_nonce(self, output: SendDatagram) -> None:
        """No two messages are sealed with one key and one nonce.

        Each IKE_INTERMEDIATE has keys of its own, and the same SPIs as all others.
        """
        if output.data == KEEPALIVE:
            return
        data = output.data[4:] if output.path.natt else output.data
        if data[16] in (46, 53):
            start = 32 if data[16] == 46 else 36
            keys = data[20:24] if data[18] == ExchangeType.IKE_INTERMEDIATE else bytes(4)
            nonce = data[:16] + keys + bytes([data[19] & 8]) + data[start : start + 8]
            assert self.sealed.setdefault(nonce, data) == data, "a nonce was used twice"

    def _check_additions(self, host: Host, outputs: list[Any]) -> None:
        """Neither SPIs nor keys come back, and who calls is understood before he speaks."""
        done = [o for o in outputs if isinstance(o, AddSa) and o not in host.refused]
        for entry in (o.entry for o in done):
            if entry.direction is Direction.IN:
                assert (host.name, entry.spi) not in self.spis, "an SPI came back"
                assert entry.encryption_key not in self.keys, "a key came back"
                self.spis.add((host.name, entry.spi))
                self.keys.add(entry.encryption_key)
            else:
                assert entry.encryption_key not in self.sent_with, "a key came back"
                self.sent_with.add(entry.encryption_key)
            if entry.direction is Direction.OUT and self._asked_for(host, entry, outputs):
                other = "sun" if host.name == "moon" else "moon"
                assert (other, entry.spi) in self.spis, "the responder had no inbound SA"

    def _asked_for(self, host: Host, entry: Any, outputs: list[Any]) -> bool:
        """Whether an outbound SA is of an exchange that this end began, and so has an answer to.

        Of a Child SA in the place of another, only who began adds both SAs at once.
        """
        added = [o.entry for o in outputs if isinstance(o, AddSa)]
        holders = ((sa, c) for sa in host.ike_sas for c in sa.children if entry in c.entries)
        return any(
            set(child.entries) <= set(added)
            and (child.replaces is not None or (sa.is_initiator and child.nonces == sa.nonces))
            for sa, child in holders
        )

    def _check_host(self, host: Host) -> None:
        core = host.endpoint._core
        owned = [c for sa in host.ike_sas for c in sa.children]
        retired = [c for sa in host.ike_sas for _, c in sa.retired]
        self._check_indices(core)
        spis = {c.spi_in for c in owned + retired}
        assert spis == set(core.children), "a Child SA has no owner"
        entries = [e for c in owned + retired for e in c.in_force]
        entries += [left.entry for left in core.leftovers.values()]
        assert sorted(e.spi for e in entries) == sorted(i.spi for i in host.datapath.sad), (
            "the SAD is not what the Child SAs have"
        )
        in_use = [e for c in owned for e in c.in_force if c.state is not ChildSaState.DELETING]
        spd = host.datapath.spd
        assert spd or not in_use, "SAs without policies"
        assert any(c.in_force for c in owned) or not spd, "policies without SAs"
        assert all(e.direction is Direction.IN for c in retired for e in c.in_force)
        next_timeout = host.endpoint.next_timeout()
        timeouts = [sa.next_timeout for sa in host.ike_sas]
        wanted = min((at for at in timeouts if at is not None), default=inf)
        assert (inf if next_timeout is None else next_timeout) <= wanted, "it wakes up too late"
        for sa in host.ike_sas:
            for request in sa.channel.window.outstanding.values():
                assert next_timeout is not None
                assert next_timeout <= request.due_at, "a request without a timer"
            if sa.state is IkeSaState.DELETING:
                assert not sa.channel.window.is_idle, "deleting for ever"
            if sa.state is IkeSaState.DELETED:
                assert not sa.children

    def _check_kept(self, host: Host) -> None:
        """What an end would know after a kill is what it knows; in some runs, for it costs much."""
        if not self.is_audited:
            return
        lasting = {sa.our_spi: sa for sa in host.ike_sas if host.keeps and is_lasting(sa)}
        kept_names = {name for name in host.kept if not is_policy(name)}
        assert lasting.keys() == {spi_of(name) for name in kept_names}, "one SA too many, or few"
        assert lasting.keys() == {name for name in kept_names if spi_of(name) == name}
        self._check_kept_policy(host)
        for spi, sa in lasting.items():
            record = json.loads(host.kept[spi])
            if count_of(spi) in host.kept:
                record = with_count(record, json.loads(host.kept[count_of(spi)]))
            records = (record, json.loads(write_ike_sa(sa)))
            kept, held = (settled(self._without_forgotten(host, record)) for record in records)
            self._strike_answered_checks(kept, sa)
            assert kept == held, f"a change was not kept: {difference(kept, held)}"

    @staticmethod
    def _strike_answered_checks(record: Any, sa: IkeSa) -> None:
        """That a peer has answered whether it lives is not kept: at worst it is asked again."""
        record["window"]["outstanding"] = [
            request
            for request in record["window"]["outstanding"]
            if request["message_id"] in sa.channel.window.outstanding
            or request["exchange"][0] != "liveness-check"
        ]

    @staticmethod
    def _check_kept_policy(host: Host) -> None:
        """A tunnel's is kept as long as there is a record of it, and is the present one."""
        kept = read_policies(host.kept)
        assert len(kept) == any(map(is_policy, host.kept)) == bool(host.kept)
        for name, tunnel in host.endpoint._core.tunnels.items():
            assert name not in kept or kept[name].beside(tunnel.policy) == tunnel.policy

    @staticmethod
    def _without_forgotten(host: Host, record: Any) -> Any:
        """A name of what is forgotten names nothing."""
        known = {sa.our_spi.hex() for sa in host.ike_sas}
        for name in ("heir", "replaces"):
            if record["ike_sa"][name] not in known:
                record["ike_sa"][name] = None
        return record

    @staticmethod
    def _check_indices(core: Core) -> None:
        """What is found by a name is what a search finds."""
        for name in core.tunnels:
            found = {sa for sa in core.ike_sas.values() if sa.tunnel_name == name}
            assert set(core.ike_sas_of(name)) == found
            peer = core.tunnels[name].policy.remote_id
            filed = {
                sa: sa.tunnel.remote_id for sa in core.ike_sas.values() if sa.tunnel is not None
            }
            found = {sa for sa, known in filed.items() if known == peer}
            assert set(core.ike_sas_with(peer)) == found
        for child in core.children.values():
            kin = {c for c in core.children.values() if c.policy.reqid == child.policy.reqid}
            assert {child, *core.kin_of(child)} == kin
        named = {e.id for c in core.children.values() for e in c.entries}
        assert core.holders.keys() == named

    def _check_rest(self) -> None:
        assert not self.flying or self.flying[0][0] > STORM_SECONDS
        moon, sun = self.hosts
        spis = [{(v.spi_i, v.spi_r) for v in h.views} for h in self.hosts]
        assert spis[0] == spis[1], "the ends do not agree on their IKE SAs"
        for host in self.hosts:
            living = [sa for sa in host.ike_sas if sa.state is not IkeSaState.DELETED]
            assert {sa.state for sa in living} <= {IkeSaState.ESTABLISHED}
            assert not host.endpoint._admission._answered
            for sa in living:
                assert {c.state for c in sa.children} == {ChildSaState.INSTALLED}
                names = Counter(
                    (c.policy.name, *((c.local, c.remote) if "change" in self.accidents else ()))
                    for c in sa.children
                )
                most = {c.policy.name: self._most(c) for c in sa.children}
                surplus = {name: n for name, n in names.items() if n > most[name[0]]}
                assert not surplus, "a child is there too often"
                assert not sa.is_rekeying
                assert sa.tunnel == host.policy, "an IKE SA of another policy"
                assert not any(c.is_outdated for c in sa.children)
        self.pair.assert_mirrored()
        if not spis[0]:
            self.pair.assert_forgotten()
        if not self.badness and not self.accidents:
            closed = [o for h in self.hosts for o in h.reports(TunnelClosed)]
            failures = {
                (o.failure.code, o.was_established) for o in closed if o.failure is not None
            }
            expected = {("XF2011", True), ("XF2011", False)}
            if self.is_mortal:  # What is half open goes with its responder.
                expected.add(("XF2001", False))
            assert failures <= expected, "without an accident something failed"
        if not self.has_nat:
            encapsulations = {e.encapsulation for h in (moon, sun) for e in h.datapath.dump().sad}
            assert encapsulations <= {None, UdpEncapsulation(4500, 4500)}

    def _most(self, child: ChildSa) -> int:
        """How many Child SAs of one traffic there may be: one more where both ends began one."""
        wanted = max(h.endpoint._core.lanes_of(child.tunnel, child.policy) for h in self.hosts)
        return min(child.policy.per_resource, wanted + 1) if child.is_per_resource else 1


_LATER = TrafficSelector.parse("10.9.0.0/16")


def _by_eap(moon: TunnelPolicy, sun: TunnelPolicy) -> tuple[TunnelPolicy, TunnelPolicy]:
    """Moon is a user of sun's, which proves itself by the shared key; there are no tickets then."""
    methods = (EapMethod.MSCHAPV2, EapMethod.MD5)
    password = SharedKey(octets=b"correct horse", origin="test")
    users = EapUsers(passwords=((b"carol", "correct horse"),), origin="test")
    user = EapCredential(identity="carol", methods=methods, password=password)
    return (
        replace(moon, local_eap=user, resumption=False),
        replace(
            sun,
            remote_id=None,
            remote_eap=EapAcceptance(methods=methods[::-1], users=users),
            resumption=False,
        ),
    )


def _by_signatures(moon: TunnelPolicy, sun: TunnelPolicy) -> tuple[TunnelPolicy, TunnelPolicy]:
    """Both ends sign, by keys that are the same in every run."""
    keys = [ed25519.Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2)]
    (ours, our_public), (theirs, their_public) = map(_halves, keys)
    return (
        replace(moon, shared_key=None, local_key=ours, remote_key=their_public),
        replace(sun, shared_key=None, local_key=theirs, remote_key=our_public),
    )


def _halves(key: ed25519.Ed25519PrivateKey) -> tuple[PrivateKey, PublicKey]:
    octets = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return (
        PrivateKey(octets=octets, public=spki, origin="test"),
        PublicKey(spki=spki, origin="test"),
    )


def _another(child: ChildPolicy) -> ChildPolicy:
    """A second child of the tunnel, for other traffic."""
    return replace(
        child,
        name="lab",
        reqid=child.reqid + 1,
        local=(TrafficSelector.parse("10.5.0.0/16"),),
        remote=(TrafficSelector.parse("10.6.0.0/16"),),
    )


UNSETTLED = {
    *("heard_at", "sent_at", "last_received_at", "last_sent_at", "last_used_at", "due_at"),
    *("alone_at", "rekey_at", "reauth_at", "create_at", "widen_at"),
}
"""Moments: what was found out since is found out again, what was due is due again."""


def settled(record: Any) -> Any:
    """A record without what need not be kept at once."""
    match record:
        case dict():
            return {k: settled(v) for k, v in record.items() if k not in UNSETTLED}
        case list():
            return [settled(item) for item in record]
        case _:
            return record


def difference(one: Any, other: Any, where: str = "") -> str:
    """Where two records differ first."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = (difference(one[k], other[k], f"{where}.{k}") for k in one)
        return next(filter(None, found), "")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (difference(a, b, f"{where}[{i}]") for i, (a, b) in pairs)), "")
    return "" if one == other else f"{where}: {one} and {other}"


def run_seed(seed: int) -> str:
    """What went wrong, with the line that replays it; empty if nothing did."""
    changes = pytest.MonkeyPatch()
    if seed % 3 == 0:
        changes.setattr(channel_module, "DATAGRAM_SIZES", SMALL_SIZES)
    changes.setattr(puzzles_module, "OUR_CHOICE", FEW_BITS)
    changes.setattr(admission_module, "AUTH_DIFFICULTY", FEW_BITS)
    changes.setattr(admission_module, "EASIEST_DEMAND", FEW_BITS)
    try:
        Simulation(seed).run()
    except (Exception, pytest.fail.Exception):
        return f"{traceback.format_exc()}\nreplay with: {COMMAND} {seed}:{seed + 1}"
    finally:
        changes.undo()
    return ""


def run_seeds(seeds: range) -> Iterator[str]:
    """The result of each seed, as they come, on every core."""
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=20)


COMMAND = "python -m tests.ike.simulation"


def main() -> int:
    """Run the seeds FIRST:END that are asked for; 1 if one of them fails."""
    seeds = range(*map(int, sys.argv[1].split(":")))
    started_at, failed = time.monotonic(), 0
    results = map(run_seed, seeds) if len(seeds) == 1 else run_seeds(seeds)
    for count, result in enumerate(results, 1):
        if result:
            failed += 1
            print(result, flush=True)
        if count % 1000 == 0:
            seconds = time.monotonic() - started_at
            print(f"{count} runs, {failed} failed, {seconds:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
