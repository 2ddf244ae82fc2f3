"""What a handshake costs the responder: CPU time and memory, xfrmpy beside strongSwan.

`python -m benchmarks.handshake`, as root, from the checkout. The initiators are ours for both
rivals (`benchmarks.initiators`), in another process and namespace; the responders are whole daemons
with their userspace datapaths, so a handshake here is IKE_SA_INIT, IKE_AUTH with a shared key, two
SAs, their policies and a route. At xfrmpy each initiator has a tunnel of its own; strongSwan has
one connection for all of them, unless `--each`: it looks through its connections and secrets one by
one, and several thousand take it longer than an initiator waits. `--idle` goes on and measures what
the SAs cost the responder that nobody uses: it checks every `--dpd` seconds whether each peer
lives, and the initiators check nothing. `--profile` needs no root: where the time of the core alone
goes. Nor does `--kinds`: what ML-KEM-768 behind x25519, and certificates in place of the shared
key, add to the core and to what is on the wire.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks.initiators import Terms, identity_of, path_to, policy_of, subnet_of
from benchmarks.measure import (
    RIVALS,
    conditions,
    cpu_seconds,
    medians,
    prepare,
    processes,
    resident_kib,
    table,
    write_json,
)
from integration.lab.authority import Hierarchy
from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import subnet
from integration.lab.process import LAB
from integration.lab.site import Site
from integration.lab.strongswan import StrongswanPeer
from integration.lab.tunnel import End, Tunnel
from tests.pki.chains import Entity
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.outputs import SendDatagram
from xfrmpy.ipsec.addresses import Path as IkePath
from xfrmpy.policy.model import Certificates, PrivateKey, TunnelPolicy

Responder = XfrmpyGateway | StrongswanPeer
Figures = dict[str, float]

WARM_UP = 20
"""Handshakes before the measurement: what is loaded and cached at first use is not counted."""

DEFAULT_DPD = 30
"""xfrmpy's default. Whoever is idle is asked so often whether it is alive."""

_UNDEFENDED = ("dos_protection=no",)
"""strongSwan neither demands cookies nor ignores an address from which much comes: a stall of the
machine must not make another measurement of this one."""

_ALL_INITIATORS = "10.64.0.0/10"
MAX_COUNT = 16_000
"""A subnet of /24 for each, within that."""

_PROFILE_LINES = 30


def main() -> None:
    options = _parse()
    if options.profile:
        profile(options.count, shared=options.shared)
        return
    if options.kinds:
        kinds(options.count, options.rounds)
        return
    prepare()
    facts = conditions()
    rounds: dict[str, list[Figures]] = {rival: [] for rival in RIVALS}
    for number in range(options.rounds):
        for rival in RIVALS:
            figures = measure(rival, options)
            rounds[rival].append(figures)
            print(f"round {number + 1}, {rival}: {_brief(figures)}", file=sys.stderr)
    results = {rival: medians(rounds[rival]) for rival in RIVALS}
    print(report(facts, results))
    write_json(
        options.output,
        conditions=facts,
        count=options.count,
        idle=options.idle,
        dpd=options.dpd,
        shared=options.shared,
        each=options.each,
        rounds=rounds,
        medians=results,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.handshake",
        description="Responder CPU time and memory of a handshake, xfrmpy beside strongSwan.",
    )
    parser.add_argument("--count", type=int, default=500, help="handshakes a round (500)")
    parser.add_argument("--rounds", type=int, default=3, help="of each rival, alternating (3)")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="all Child SAs carry the same subnets, so policies and route are made only once",
    )
    parser.add_argument(
        "--each",
        action="store_true",
        help="strongSwan has a connection for each initiator, as xfrmpy has a tunnel",
    )
    parser.add_argument(
        "--idle",
        type=int,
        default=0,
        metavar="SECONDS",
        help="then leave them alone so long, with liveness checks, and measure that too (0)",
    )
    parser.add_argument(
        "--dpd",
        type=int,
        default=DEFAULT_DPD,
        metavar="SECONDS",
        help="how often it is checked meanwhile whether a peer lives (30)",
    )
    parser.add_argument("--profile", action="store_true", help="profile our core, in this process")
    parser.add_argument(
        "--kinds",
        action="store_true",
        help="our core with ML-KEM-768, and with certificates besides, beside itself without",
    )
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="write JSON")
    options = parser.parse_args()
    if not 1 <= options.count <= MAX_COUNT or options.rounds < 1:
        parser.error(f"--count is 1 to {MAX_COUNT}, --rounds at least 1")
    return options


# The two daemons.


def measure(rival: str, options: argparse.Namespace) -> Figures:
    """One round: a fresh responder and fresh initiators."""
    count, idle = options.count, options.idle
    with Site() as site:
        tunnel = _terms_for_lab(site)
        terms = _terms(tunnel, WARM_UP + count, shared=options.shared)
        tunnels = [_tunnel_of(tunnel, terms, number).mirrored() for number in range(terms.count)]
        if rival == "strongswan" and not options.each:
            tunnels = [_tunnel_of_all(tunnel).mirrored()]
        responder: Responder
        if rival == "xfrmpy":
            dpd = f"{options.dpd}s" if idle else "off"
            responder = site.xfrmpy(site.network.sun, *tunnels, dpd=dpd)
        else:
            dpd = f"dpd_delay = {options.dpd if idle else 0}s"
            responder = site.strongswan(
                site.network.sun, *tunnels, connection=dpd, settings=_UNDEFENDED
            )
        pids = processes(responder)
        with _initiators(site, terms) as initiators:
            _bring_up(initiators, WARM_UP)
            before = _usage(pids)
            seconds = _bring_up(initiators, count)
            after = _usage(pids)
            figures = _figures(before, after, count, seconds)
            if idle:
                time.sleep(idle)
                figures["idle %"] = 100 * (_cpu(_usage(pids)) - _cpu(after)) / idle
        # Hundreds of farewells to peers that are gone would take longer than the measurement.
        responder.kill()
        return figures


def _terms_for_lab(site: Site) -> Tunnel:
    """Moon has the initiators; sun is the responder, and narrows."""
    return site.network.tunnel().between((_ALL_INITIATORS,), (subnet(2),))


def _tunnel_of(tunnel: Tunnel, terms: Terms, number: int) -> Tunnel:
    """That of one initiator, as it sees it."""
    end = replace(tunnel.ours, id=identity_of(terms, number), subnets=(subnet_of(terms, number),))
    return replace(tunnel, ours=end)


def _tunnel_of_all(tunnel: Tunnel) -> Tunnel:
    """That of every initiator: whoever it is, with a subnet of its own."""
    end = replace(tunnel.ours, id="%any", subnets=(_ALL_INITIATORS,))
    return replace(tunnel, ours=end)


def _terms(tunnel: Tunnel, count: int, *, shared: bool) -> Terms:
    return Terms(
        address=tunnel.ours.address,
        responder=tunnel.theirs.public,
        id=tunnel.ours.id,
        responder_id=tunnel.theirs.id,
        psk=tunnel.psk,
        ike=tunnel.ike,
        esp=tunnel.esp,
        subnets=tunnel.ours.subnets[0],
        shared=shared,
        remote=tunnel.theirs.subnets[0],
        count=count,
    )


@contextmanager
def _initiators(site: Site, terms: Terms) -> Iterator[subprocess.Popen[str]]:
    command = (sys.executable, "-m", "benchmarks.initiators", json.dumps(asdict(terms)))
    process = subprocess.Popen(
        site.network.moon.command(*command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=LAB.parent.parent,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _bring_up(initiators: subprocess.Popen[str], count: int) -> float:
    assert initiators.stdin is not None
    assert initiators.stdout is not None
    initiators.stdin.write(f"{count}\n")
    initiators.stdin.flush()
    answer = initiators.stdout.readline()
    if not answer:
        raise SystemExit("the initiators failed; they say why above")
    return float(answer)


def _usage(pids: dict[str, int]) -> dict[str, tuple[float, int]]:
    return {trade: (cpu_seconds(pid), resident_kib(pid)) for trade, pid in pids.items()}


def _cpu(usage: dict[str, tuple[float, int]]) -> float:
    return sum(seconds for seconds, _ in usage.values())


def _figures(
    before: dict[str, tuple[float, int]],
    after: dict[str, tuple[float, int]],
    count: int,
    seconds: float,
) -> Figures:
    cpu = {t: 1000 * (after[t][0] - before[t][0]) / count for t in before}
    memory = {t: (after[t][1] - before[t][1]) / count for t in before}
    return {
        **({f"{t} ms": value for t, value in cpu.items()} if len(cpu) > 1 else {}),
        "ms": sum(cpu.values()),
        **({f"{t} KiB": value for t, value in memory.items()} if len(memory) > 1 else {}),
        "KiB": sum(memory.values()),
        "seconds": seconds,
    }


def _brief(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


_ROWS = {
    "ms": "CPU a handshake, ms",
    "KiB": "memory an IKE SA, KiB",
    "idle %": "CPU while idle, % of a core",
}


def report(facts: dict[str, str], results: dict[str, Figures]) -> str:
    ours, theirs = (results[rival] for rival in RIVALS)
    rows = [
        (f"CPU of the {trade}, ms", f"{ours[f'{trade} ms']:.2f}", "", "")
        for trade in ("daemon", "worker")
    ]
    for name, words in _ROWS.items():
        if name not in ours:
            continue
        ratio = f"{ours[name] / theirs[name]:.1f}" if theirs[name] else "-"
        rows.append((words, f"{ours[name]:.2f}", f"{theirs[name]:.2f}", ratio))
    lines = "\n".join(f"{name}: {value}" for name, value in facts.items())
    return f"{lines}\n\n{table(('', *RIVALS, 'ratio'), rows)}"


# The core alone.


def profile(count: int, *, shared: bool) -> None:
    """Initiators and responder in this process; only the responder is timed, then profiled."""
    plain = _handshakes(count, shared=shared, profiler=None)
    print(
        f"the core alone, without sockets and datapath: {1000 * plain / count:.2f} ms a handshake"
    )
    profiler = cProfile.Profile()
    _handshakes(count, shared=shared, profiler=profiler)
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(_PROFILE_LINES)
    pstats.Stats(profiler).strip_dirs().sort_stats("cumulative").print_stats(_PROFILE_LINES)


CLASSICAL, HYBRID = (
    f"aes128gcm16-prfsha256-{exchanges}" for exchanges in ("x25519", "x25519-ke1_mlkem768")
)


KINDS = {
    "shared key": (CLASSICAL, False),
    "shared key, ML-KEM-768": (HYBRID, False),
    "ECDSA certificates": (CLASSICAL, True),
    "ECDSA certificates, ML-KEM-768": (HYBRID, True),
}
"""What is proposed, and whether certificates prove both ends."""


def kinds(count: int, rounds: int) -> None:
    """In turn, and the median of each, beside the first."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    wire: dict[str, list[int]] = {}
    for _ in range(rounds):
        for kind, (ike, certified) in KINDS.items():
            wire[kind] = []
            seconds[kind].append(
                _handshakes(
                    count,
                    shared=False,
                    profiler=None,
                    ike=ike,
                    certified=certified,
                    wire=wire[kind],
                )
            )
    first = median(seconds[next(iter(KINDS))])
    for kind, spent in seconds.items():
        milliseconds, ratio = 1000 * median(spent) / count, median(spent) / first
        octets, datagrams = sum(wire[kind]) / count, len(wire[kind]) / count
        print(
            f"{kind:<32} {milliseconds:5.2f} ms  {ratio:4.2f}  "
            f"{octets:5.0f} octets in {datagrams:2.0f} datagrams"
        )


def _handshakes(
    count: int,
    *,
    shared: bool,
    profiler: cProfile.Profile | None,
    ike: str = CLASSICAL,
    certified: bool = False,
    wire: list[int] | None = None,
) -> float:
    """CPU seconds of the responder; the sizes of UDP payloads both ways go into `wire`."""
    terms = _terms(replace(_two_ends(), ike=ike), count, shared=shared)
    policies = [policy_of(terms, number) for number in range(count)]
    mirrored = [_mirrored(policy) for policy in policies]
    if certified:
        policies, mirrored = [*_certified(policies)], [*_certified(mirrored)]
    initiator = IkeEndpoint(policies, secrets.token_bytes, wall_clock=_wall_clock)
    responder = IkeEndpoint(mirrored, secrets.token_bytes, wall_clock=_wall_clock)
    path = path_to(terms.responder, terms.address)
    spent = 0.0
    for policy in policies:
        initiator.initiate(policy.name, path, 0.0)
        while requests := _sent(initiator):
            answers = []
            begun = time.process_time()
            if profiler is not None:
                profiler.enable()
            for request in requests:
                responder.receive_datagram(request.data, _reversed(request.path), 0.0)
                answers += _sent(responder)
                responder.next_timeout()
            if profiler is not None:
                profiler.disable()
            spent += time.process_time() - begun
            if wire is not None:
                wire += [len(datagram.data) for datagram in (*requests, *answers)]
            for answer in answers:
                initiator.receive_datagram(answer.data, _reversed(answer.path), 0.0)
    established = sum(len(responder.ike_sas(policy.name)) for policy in policies)
    assert established == count, f"{established} of {count} IKE SAs came up"
    return spent


_AUTHORITIES = Hierarchy.of("p256")


def _certified(policies: list[TunnelPolicy]) -> Iterator[TunnelPolicy]:
    """With a certificate for each end, issued by an intermediate authority, in place of the key."""
    trusted = Certificates(ders=(_AUTHORITIES.root.certificate.der,), origin="benchmark")
    issued: dict[str, Entity] = {}
    for policy in policies:
        name = str(policy.local_id)
        leaf = issued.get(name) or issued.setdefault(name, _AUTHORITIES.gateway(name))
        shown = (leaf.certificate.der, _AUTHORITIES.issuing.certificate.der)
        yield replace(
            policy,
            shared_key=None,
            local_key=PrivateKey(
                octets=leaf.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
                public=leaf.certificate.public_key_info,
                origin="benchmark",
            ),
            local_certificates=Certificates(ders=shown, origin="benchmark"),
            remote_authorities=trusted,
        )


def _wall_clock() -> datetime:
    return datetime.now(UTC)


def _two_ends() -> Tunnel:
    address, responder = "192.0.2.1", "192.0.2.2"
    return Tunnel(
        ours=End(address=address, public=address, id="moon", subnets=(_ALL_INITIATORS,)),
        theirs=End(address=responder, public=responder, id="sun", subnets=("10.2.0.0/24",)),
    )


def _mirrored(policy: TunnelPolicy) -> TunnelPolicy:
    (child,) = policy.children
    return replace(
        policy,
        peers=(),
        local_id=policy.remote_id,
        remote_id=policy.local_id,
        children=(replace(child, local=child.remote, remote=child.local),),
    )


def _sent(endpoint: IkeEndpoint) -> list[SendDatagram]:
    outputs = []
    while (output := endpoint.next_output()) is not None:
        if isinstance(output, SendDatagram):
            outputs.append(output)
    return outputs


def _reversed(path: IkePath) -> IkePath:
    return replace(path, local=path.remote, remote=path.local)


if __name__ == "__main__":
    main()
