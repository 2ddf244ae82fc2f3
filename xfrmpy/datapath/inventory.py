"""What is in force, whosever it is, as an operator looks at it: values to be shown, and no keys.

Unlike `Datapath.dump`, which gives back what was added, this also has what others have put in force
and what we would never add. Names of what has no name with us are the kernel's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.sad import Direction, Lifetime, Usage
from xfrmpy.ipsec.selectors import ANY_PROTOCOL, ICMP_PROTOCOLS, PROTOCOL_NAMES, MaskedPort


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSa:
    """An SA in force; `direction` is None where nothing tells it.

    `protocol`, `mode` and `suite` are words. `options` are what it has beside, by their names:
    encapsulation, marks, an interface id, offload. `seconds_old` is None where it is not known.
    """

    spi: int
    protocol: str
    mode: str
    direction: Direction | None
    source: IpAddress
    destination: IpAddress
    reqid: int
    suite: str
    usage: Usage
    lifetime: Lifetime
    seconds_old: float | None
    is_ours: bool
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTemplate:
    """What a policy asks for; without addresses any will do."""

    protocol: str
    mode: str
    reqid: int
    source: str = ""
    destination: str = ""
    is_optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPolicy:
    """A policy in force; `direction` is in, out or fwd, or of one socket: socket-in, socket-out."""

    direction: str
    selector: str
    action: str
    priority: int
    index: int | None
    is_ours: bool
    templates: tuple[HeldTemplate, ...] = ()
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldDefault:
    """What becomes of packets of a direction that no policy matches."""

    direction: str
    blocks: bool
    is_ours: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldInterface:
    """A device that leads to SAs: an xfrm interface with its id, or a TUN device of ours."""

    name: str
    kind: str
    mtu: int
    is_up: bool
    if_id: int | None = None
    underlying: str = ""
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All of one datapath, at about one moment."""

    sas: tuple[HeldSa, ...] = ()
    policies: tuple[HeldPolicy, ...] = ()
    defaults: tuple[HeldDefault, ...] = ()
    interfaces: tuple[HeldInterface, ...] = ()
    errors: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a counter of errors counts, and where to look when it goes up."""

    meaning: str
    look_at: str


# What the kernel and the worker count alike.
UNKNOWN_SPI = Explanation(
    meaning="a packet bears an SPI and an address that no SA of ours has",
    look_at=(
        "`xfrmpy status TUNNEL` at both ends: the peer may still use SAs that are gone here; "
        "a few after a restart are usual, and anybody can send such packets"
    ),
)
REPLAYED = Explanation(
    meaning="a packet was replayed, or is older than the replay window reaches",
    look_at=(
        "`replayed` of each SA in `xfrmpy show kernel`; a wider `replay_window` if paths "
        "reorder much"
    ),
)
NOT_AUTHENTIC = Explanation(
    meaning="ESP or AH refused a packet: mostly it was not authentic",
    look_at=(
        "`integrity_failed` of each SA in `xfrmpy show kernel`: keys that differ, packets that "
        "were changed on the way, or a forger"
    ),
)
NO_SA = Explanation(
    meaning="a policy protects a packet that was to go out, and there is no SA for it",
    look_at="`xfrmpy status`: the tunnel is down, or about to come up",
)
OUTSIDE_SELECTORS = Explanation(
    meaning="an authentic packet came out of an SA that is not for it",
    look_at="`local` and `remote` at both ends",
)


def selector_words(
    source: str,
    destination: str,
    protocol: int,
    source_port: MaskedPort,
    destination_port: MaskedPort,
) -> str:
    """Such as `10.1.0.0/24 -> 10.2.0.0/24 tcp dport 443`; of ICMP, with type and code."""
    words = [source, "->", destination]
    if protocol != ANY_PROTOCOL:
        words.append(_PROTOCOL_WORDS.get(protocol, f"protocol {protocol}"))
    names = ("type", "code") if protocol in ICMP_PROTOCOLS else ("sport", "dport")
    for name, port in zip(names, (source_port, destination_port), strict=True):
        if port.mask:
            whole = port.mask in (0xFF, 0xFFFF)
            words.append(f"{name} {port.value}" + ("" if whole else f"/{port.mask:#x}"))
    return " ".join(words)


_PROTOCOL_WORDS = {number: name for name, number in PROTOCOL_NAMES.items()}
