"""The worker's SAD and SPD as an operator looks at them, and what its counters of drops mean."""

from __future__ import annotations

from collections.abc import Iterator

from xfrmpy.datapath.inventory import (
    NO_SA,
    NOT_AUTHENTIC,
    OUTSIDE_SELECTORS,
    REPLAYED,
    UNKNOWN_SPI,
    Explanation,
    HeldPolicy,
    HeldSa,
    HeldTemplate,
    selector_words,
)
from xfrmpy.datapath.userspace.forwarding import Refusal
from xfrmpy.esp.sa import EspDrop
from xfrmpy.ipsec.sad import SadEntry, Usage
from xfrmpy.ipsec.spd import SpdEntry


def held_sa(entry: SadEntry, usage: Usage, seconds_old: float) -> HeldSa:
    return HeldSa(
        spi=entry.spi,
        protocol=entry.protocol.name.lower(),
        mode=entry.mode.value,
        direction=entry.direction,
        source=entry.source,
        destination=entry.destination,
        reqid=entry.reqid,
        suite=str(entry.suite),
        usage=usage,
        lifetime=entry.lifetime,
        seconds_old=seconds_old,
        is_ours=True,
        options=dict(_options(entry)),
    )


def _options(entry: SadEntry) -> Iterator[tuple[str, str]]:
    encapsulation = entry.encapsulation
    if encapsulation is not None:
        ports = f"{encapsulation.source_port} to {encapsulation.destination_port}"
        yield "encapsulation", f"espinudp {ports}"
    yield "replay_window", str(entry.replay_window)


def held_policy(entry: SpdEntry) -> HeldPolicy:
    selector, template = entry.selector, entry.template
    return HeldPolicy(
        direction=entry.direction.value,
        selector=selector_words(
            str(selector.source),
            str(selector.destination),
            selector.protocol,
            selector.source_port,
            selector.destination_port,
        ),
        action=entry.action.value,
        priority=entry.priority,
        index=None,
        is_ours=True,
        templates=()
        if template is None
        else (
            HeldTemplate(
                protocol=template.protocol.name.lower(),
                mode=template.mode.value,
                reqid=template.reqid,
                source=str(template.source),
                destination=str(template.destination),
            ),
        ),
    )


def explain(reason: str) -> Explanation | None:
    """What a counter of the worker's counts; those of the system's refusals bear an errno."""
    for name, explanation in COUNTERS.items():
        if reason == name or reason.startswith(f"{name}-"):
            return explanation
    return None


COUNTERS: dict[str, Explanation] = {
    Refusal.NOT_IP: Explanation(
        meaning="what came out of the device or of an SA is no IP packet, or not the one announced",
        look_at="who sends it; the mode at the peer",
    ),
    Refusal.NO_POLICY: Explanation(
        meaning="a packet was led into the device and no policy protects it",
        look_at="`local` and `remote`; `xfrmpy plan` for routes that drifted",
    ),
    Refusal.NO_SA: NO_SA,
    Refusal.UNKNOWN_SPI: UNKNOWN_SPI,
    Refusal.OUTSIDE_SELECTORS: OUTSIDE_SELECTORS,
    Refusal.NOT_FOR_TRANSPORT: Explanation(
        meaning="transport mode cannot carry the packet as it is: a fragment, or with options",
        look_at="what the host sends; `mode: tunnel` carries it",
    ),
    Refusal.CONGESTED: Explanation(
        meaning="a packet was marked as congested on the way, and its inside must not be marked",
        look_at="the load on the way to the peer (RFC 6040 section 4.2)",
    ),
    Refusal.BAD_COMPRESSION: Explanation(
        meaning="an authentic packet is compressed in a way that was not agreed to, or too large",
        look_at="`ipcomp` at both ends, and the peer's log",
    ),
    Refusal.BAD_OFFLOAD: Explanation(
        meaning="a packet was to be cut or completed for its host in a way that does not fit it",
        look_at="programs that write to the device's raw sockets; the host's other devices",
    ),
    Refusal.ROUTING_LOOP: Explanation(
        meaning="the tunnel's own packets were led into its interface",
        look_at="`ip route get PEER`: a route to the peer must not lead into the tunnel",
    ),
    "no-interface": Explanation(
        meaning="a packet came out of an SA whose interface is not there",
        look_at="`xfrmpy status TUNNEL`; `xfrmpy log TUNNEL` for `interface-refused`",
    ),
    EspDrop.TOO_SHORT: Explanation(
        meaning="an ESP packet is shorter than its cipher makes any",
        look_at="whether something on the way cuts packets",
    ),
    EspDrop.REPLAYED: REPLAYED,
    EspDrop.NOT_AUTHENTIC: NOT_AUTHENTIC,
    EspDrop.BAD_PADDING: Explanation(
        meaning="an authentic packet is padded otherwise than RFC 4303 section 2.4 says",
        look_at="the peer's implementation",
    ),
    EspDrop.BAD_HEADER: Explanation(
        meaning="an AH packet, or the IP header before it, is not laid out as RFC 4302 says",
        look_at="whether something on the way adds options, and the peer's implementation",
    ),
    EspDrop.DUMMY: Explanation(
        meaning="a dummy packet came, which hides how much is really sent (RFC 4303 section 2.6)",
        look_at="nothing: that is what they are for",
    ),
    EspDrop.EXPIRED: Explanation(
        meaning="a packet met an SA at its hard limit",
        look_at="`xfrmpy log TUNNEL`: rekeying should have come earlier, and does not succeed",
    ),
    "raw-send": Explanation(
        meaning="the system did not take a raw ESP packet, for the errno that stands behind",
        look_at="the route to the peer; free memory; the rules of nf_tables",
    ),
    "clear-send": Explanation(
        meaning="the system did not take a packet that goes in clear, for the errno behind it",
        look_at="the route to where it goes; free memory; the rules of nf_tables",
    ),
    "udp-send": Explanation(
        meaning="the system did not take an ESP packet that was to go out, for the errno behind it",
        look_at="the route to the peer; free memory; the rules of nf_tables",
    ),
    "handed-overflow": Explanation(
        meaning="another worker has the SA of a packet, and has no room for more of them",
        look_at="the load of the host: each worker needs a core for itself",
    ),
    "handed-twice": Explanation(
        meaning="two workers each took the other for the one that has the SA of a packet",
        look_at="nothing, unless it goes on: an SA has just moved from one to the other",
    ),
    "handed": Explanation(
        meaning="another worker has the SA of a packet, and does not take it, for the errno behind",
        look_at="`xfrmpy log` for `datapath-revived`: it has ended, and another takes its place",
    ),
    "udp-overflow": Explanation(
        meaning="packets came faster than they were opened, one or, joined by the kernel, several",
        look_at="the load of the host: the worker needs a core for itself",
    ),
    "tun-write": Explanation(
        meaning="the system did not take a packet out of an SA, for the errno that stands behind",
        look_at="whether the device is up (`xfrmpy plan`); free memory",
    ),
}
