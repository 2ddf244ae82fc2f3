"""What the keys of a tunnel mean together: defaults, what is needed, what excludes what.

A `Tunnel` of `schema/`, whose values are right each for itself, becomes a `TunnelPolicy` here or
gives errors at the keys that disagree. Also what tunnels mean together: their reqids, and whose
traffic is whose. Reading RFC 7296 section 2.9 and RFC 4301 section 4.4.1 helps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.algorithms import WEAKNESSES, cipher
from xfrmpy.ipsec.marks import are_apart
from xfrmpy.ipsec.proposals import Proposal
from xfrmpy.ipsec.sad import OUR_REQIDS, DontFragment, Mode
from xfrmpy.ipsec.selectors import TrafficSelector, meet
from xfrmpy.policy.certificates import Where
from xfrmpy.policy.document import Node
from xfrmpy.policy.errors import Findings, Mark
from xfrmpy.policy.interfaces import block_obstacle, resolve_interface
from xfrmpy.policy.keys import KeyReader
from xfrmpy.policy.model import (
    ChildPolicy,
    DatapathChoice,
    Encapsulation,
    OnDown,
    PostQuantum,
    Retransmission,
    StartMode,
    TunnelPolicy,
)
from xfrmpy.policy.ppk import resolve_ppks
from xfrmpy.policy.profiles import (
    DEFAULT_PROFILE,
    WEAK_PROFILE,
    ah_proposals,
    esp_proposals,
    ike_proposals,
)
from xfrmpy.policy.proofs import address_at, check_alone, resolve_proofs
from xfrmpy.policy.schema.children import Child
from xfrmpy.policy.schema.protection import EspSettings, IkeSettings
from xfrmpy.policy.schema.tunnel import Retransmit, Tunnel
from xfrmpy.registry import EncryptionAlgorithm, TransformType

MAX_TUNNELS = len(OUR_REQIDS) // 2
"""Half of the reqids, so that a free one is found in two steps on average. Of Child SAs, too."""


Keypath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tunnel stands: its own map, that of the defaults, and the file they are in.

    With `further` what it says of `auth` is about that round of `then`.
    """

    findings: Findings
    node: Node
    defaults: Node | None = None
    further: int | None = None

    def error(
        self, code: str, path: Keypath, message: str, hint: str = "", *, at_key: bool = False
    ) -> None:
        """An error at the value of `path` or at its key; else at the tunnel's name."""
        found = self._find(path)
        mark = found.key_mark if at_key or found is self.node else found.mark
        self.findings.error(code, mark, message, hint)

    def warn(self, code: str, path: Keypath, message: str) -> None:
        """A warning at the value of `path`."""
        self.findings.warn(code, self._find(path).mark, message)

    def has(self, key: str) -> bool:
        return self._find((key,)) is not self.node

    def where(self, path: Keypath) -> Where:
        return Where(mark=self.mark(path), findings=self.findings)

    def mark(self, path: Keypath) -> Mark:
        return self._find(path).mark

    def _find(self, path: Keypath) -> Node:
        if self.further is not None and path[:1] == ("auth",):
            path = ("auth", "then", self.further, *path[1:])
        for node in (self.node, self.defaults):
            if node is not None:
                found, depth = node.find(path)
                if depth:
                    return found
        return self.node


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Those that are a tunnel's alone on this host: of its interface, and of its children."""

    if_id: int
    reqids: Mapping[str, int]


def resolve_tunnel(
    name: str, tunnel: Tunnel, place: Place, numbers: Numbers, reader: KeyReader
) -> TunnelPolicy | None:
    """The policy of one tunnel, its defaults filled in; or None, with an error for each reason."""
    before = len(place.findings.errors)
    _check_peer(tunnel, place)
    _check_mode(tunnel, place)
    proofs = resolve_proofs(tunnel, place, reader)
    ppks = resolve_ppks(tunnel, place, reader)
    proposals = _ike_proposals(tunnel.ike or IkeSettings(), place)
    interface = resolve_interface(name, tunnel, place, numbers.if_id)
    if_id = 0 if interface is None else interface.if_id
    children = _children(name, tunnel, place, replace(numbers, if_id=if_id))
    if len(place.findings.errors) > before or not children:
        return None
    return TunnelPolicy(
        name=name,
        origin=f"{place.findings.file}:{place.node.key_mark.line}",
        peers=tuple(tunnel.peer or ()),
        peer_port=tunnel.peer_port,
        local_address=tunnel.local_address,
        ppks=ppks,
        ppk_required=any(ppk.required for ppk in tunnel.ppk or ()),
        proposals=proposals,
        children=children,
        interface=interface,
        **proofs,
        **_lifetimes(tunnel.ike or IkeSettings()),
        **_given(
            start=tunnel.start if tunnel.peer else StartMode.LISTEN,
            datapath=tunnel.datapath,
            encapsulation=tunnel.encapsulation,
            fragmentation=tunnel.fragmentation,
            dpd_seconds=tunnel.dpd,
            nat_keepalive_seconds=tunnel.nat_keepalive,
            crash_detection=tunnel.crash_detection,
            unique=tunnel.unique,
            resumption=tunnel.resumption,
            childless=tunnel.childless,
            redirect=tunnel.redirect,
            redirect_to=tunnel.redirect_to,
            on_down=on_down(tunnel),
            retransmission=_retransmission(tunnel.retransmission or Retransmit()),
        ),
    )


def _given(**values: object) -> dict[str, Any]:
    """The arguments that are not None: the model has the defaults of the others."""
    return {name: value for name, value in values.items() if value is not None}


def on_down(tunnel: Tunnel) -> OnDown:
    """What the policy says, or the safe way where it can be gone."""
    if tunnel.on_down is not None:
        return tunnel.on_down
    return OnDown.BLOCK if _can_block(tunnel) else OnDown.CLEAR


def _can_block(tunnel: Tunnel) -> bool:
    """Transport mode is about the peer's address, and so must know it; an interface is about what
    is routed, and so must be told."""
    if tunnel.interface is not None:
        return block_obstacle(tunnel) is None
    known = [address_at(peer) is not None for peer in tunnel.peer or ()]
    return tunnel.mode is not Mode.TRANSPORT or (bool(known) and all(known))


def _check_peer(tunnel: Tunnel, place: Place) -> None:
    if not tunnel.peer and tunnel.start not in (None, StartMode.LISTEN):
        message = f"'start' cannot be {tunnel.start} without a 'peer'"
        place.error("XF1004", ("start",), message, "write listen, or add 'peer'")
    if not tunnel.peer and tunnel.peer_port is not None:
        place.error("XF1004", ("peer_port",), "'peer_port' has no meaning without a 'peer'")
    addresses = [address for address in map(address_at, tunnel.peer or ()) if address is not None]
    if tunnel.on_down is OnDown.BLOCK and tunnel.interface is None and not _can_block(tunnel):
        message = "'on_down' cannot be block in transport mode without the peer's address"
        place.error("XF1004", ("on_down",), message, "write the address in 'peer'")
    ours = tunnel.local_address
    if ours is not None and any(theirs.version != ours.version for theirs in addresses):
        message = f"'local_address' is IPv{ours.version}, and an address of 'peer' is not"
        place.error("XF1004", ("local_address",), message)


def _check_mode(tunnel: Tunnel, place: Place) -> None:
    """What does not go with BEET mode, or with IP-TFS."""
    if tunnel.mode not in _OF_ESP:
        return
    name, source = _OF_ESP[tunnel.mode]
    if tunnel.ah is not None:
        message = f"'mode: {tunnel.mode}' is of ESP ({source}), and this is AH"
        place.error("XF1004", ("ah",), message, "write esp in its place")
    if tunnel.esp is not None and tunnel.esp.ipcomp:
        message = f"Linux does not compress in {name}"
        place.error("XF1004", ("esp", "ipcomp"), message, "leave it out")
    if tunnel.esp is not None and tunnel.esp.tfc and tunnel.mode is Mode.IPTFS:
        message = "IP-TFS fills its packets up by itself"
        place.error("XF1004", ("esp", "tfc"), message, "leave it out")
    if tunnel.datapath is DatapathChoice.USERSPACE:
        message = f"the userspace datapath has no {name}: 'datapath' cannot be userspace"
        place.error("XF1004", ("datapath",), message, "write auto, or kernel")


_OF_ESP = {
    Mode.BEET: ("BEET mode", "draft-nikander-esp-beet-mode"),
    Mode.IPTFS: ("IP-TFS", "RFC 9347"),
}


def _ike_proposals(ike: IkeSettings, place: Place) -> tuple[Proposal, ...]:
    profile = ike.profile or DEFAULT_PROFILE
    _check_algorithms(ike, "ike", profile, place)
    proposals = _wanted(ike.post_quantum, ike.proposals or ike_proposals(profile))
    if not proposals:
        message = f"'post_quantum' cannot be {ike.post_quantum}: no proposal is left"
        hint = "write a proposal such as aes256gcm16-prfsha384-x25519"
        if ike.post_quantum is PostQuantum.REQUIRE:
            hint += "-ke1_mlkem768"
        place.error("XF1004", ("ike", "post_quantum"), message, hint)
    return _numbered(proposals)


def _wanted(
    post_quantum: PostQuantum | None, proposals: Iterable[Proposal]
) -> tuple[Proposal, ...]:
    """Those that may be offered and accepted."""
    match post_quantum:
        case PostQuantum.REQUIRE:
            return tuple(p for p in proposals if p.is_post_quantum)
        case PostQuantum.OFF:
            return tuple(p for p in proposals if not p.offers_post_quantum)
        case PostQuantum.PREFER | None:
            return tuple(proposals)


def _packet_proposals(tunnel: Tunnel, place: Place) -> tuple[Proposal, ...]:
    """Those of ESP, or of AH where the tunnel has `ah`."""
    key, settings = ("esp", tunnel.esp) if tunnel.ah is None else ("ah", tunnel.ah)
    settings = settings or EspSettings()
    profile = settings.profile or (tunnel.ike or IkeSettings()).profile or DEFAULT_PROFILE
    _check_algorithms(settings, key, profile, place)
    if tunnel.ah is not None:
        _check_ah(tunnel, place)
        return _numbered(settings.proposals or ah_proposals(profile))
    proposals = settings.proposals or esp_proposals(profile)
    if tunnel.datapath is DatapathChoice.KERNEL and not any(map(_is_in_linux, proposals)):
        message = "'datapath' cannot be kernel: Linux has none of the ciphers of 'esp'"
        place.error("XF1004", ("datapath",), message, "write auto or userspace")
    return _numbered(proposals)


def _check_ah(tunnel: Tunnel, place: Place) -> None:
    if tunnel.esp is not None:
        message = "'ah' and 'esp' exclude each other"
        place.error("XF1004", ("ah",), message, "keep one of them", at_key=True)
    if tunnel.ah is not None and tunnel.ah.tfc is not None:
        message = "'tfc' hides sizes under encryption, and AH does not encrypt"
        place.error("XF1004", ("ah", "tfc"), message, "leave it out", at_key=True)
    if tunnel.encapsulation is Encapsulation.FORCE:
        message = "'encapsulation' cannot be force with 'ah', which does not go in UDP"
        place.error("XF1004", ("encapsulation",), message, "write auto")


def _check_datapath(tunnel: Tunnel, place: Place) -> None:
    """What the datapath that is named can on no host do to packets."""
    key, packets = ("esp", tunnel.esp) if tunnel.ah is None else ("ah", tunnel.ah)
    if packets is None:
        return
    if packets.offload is not None and tunnel.datapath is DatapathChoice.USERSPACE:
        message = "'offload' is the kernel's, and 'datapath' is userspace"
        place.error("XF1004", (key, "offload"), message, "leave out one of them")
    sets_df = packets.dont_fragment is DontFragment.SET
    if sets_df and tunnel.datapath is DatapathChoice.KERNEL:
        message = "with 'datapath: kernel', DF is copied or cleared"
        place.error("XF1004", (key, "dont_fragment"), message, "write copy or clear")


def _is_in_linux(proposal: Proposal) -> bool:
    rows = (
        cipher(EncryptionAlgorithm(t.id), t.key_bits) for t in proposal.of_type(TransformType.ENCR)
    )
    return any(row.kernel_name for row in rows)


def _check_algorithms(
    settings: IkeSettings | EspSettings, key: str, profile: str, place: Place
) -> None:
    """Weak ones are refused unless the profile allows them, and are warned of then."""
    if settings.proposals is None:
        return
    if settings.profile not in (None, WEAK_PROFILE):
        message = "'profile' and 'proposals' exclude each other"
        place.error("XF1004", (key, "profile"), message, at_key=True)
    named = dict.fromkeys(str(t) for p in settings.proposals for t in p.transforms)
    for name in [name for name in named if name in WEAKNESSES]:
        message = f"'{name}' is weak: {WEAKNESSES[name]}"
        if profile == WEAK_PROFILE:
            place.warn("XF1020", (key, "proposals"), message)
        else:
            hint = f"{key}: {{profile: {WEAK_PROFILE}, proposals: ...}} allows it"
            place.error("XF1020", (key, "proposals"), message, hint)


def _numbered(proposals: Iterable[Proposal]) -> tuple[Proposal, ...]:
    return tuple(replace(p, number=number) for number, p in enumerate(proposals, 1))


def _lifetimes(ike: IkeSettings) -> dict[str, Any]:
    return _limits(lifetime_seconds=ike.lifetime, reauth_seconds=ike.reauth)


def _limits(**seconds: float | None) -> dict[str, Any]:
    """The times that are given; one that is `off` is no limit."""
    return {name: value or None for name, value in seconds.items() if value is not None}


def child_names(name: str, tunnel: Tunnel) -> tuple[str, ...]:
    """What the Child SAs of a tunnel are called: the one of the short form as the tunnel."""
    return (name,) if tunnel.children is None else tuple(tunnel.children)


def _children(name: str, tunnel: Tunnel, place: Place, numbers: Numbers) -> tuple[ChildPolicy, ...]:
    """Every child of a tunnel, or fewer, with an error for each reason."""
    if tunnel.children is None:
        written: list[tuple[str, Tunnel | Child, Keypath]] = [(name, tunnel, ())]
    else:
        check_alone("children", ("local", "remote"), tunnel, place)
        if not tunnel.children:
            place.error("XF1005", ("children",), "'children' is empty")
        written = [(n, child, ("children", n)) for n, child in tunnel.children.items()]
    proposals = _packet_proposals(tunnel, place)
    _check_datapath(tunnel, place)
    found = [
        _child(child_name, keys, path, place, tunnel, proposals, numbers)
        for child_name, keys, path in written
    ]
    children = tuple(child for child in found if child is not None)
    _check_children_apart(children, place)
    return children


def _child(
    name: str,
    keys: Tunnel | Child,
    path: Keypath,
    place: Place,
    tunnel: Tunnel,
    proposals: tuple[Proposal, ...],
    numbers: Numbers,
) -> ChildPolicy | None:
    local, remote = keys.local, keys.remote
    if tunnel.mode is Mode.TRANSPORT or tunnel.interface is not None:
        local, remote = local or [*EVERYTHING], remote or [*EVERYTHING]
    for side, selectors in (("local", local), ("remote", remote)):
        if selectors is None:
            place.error("XF1005", path, f"'{side}' is missing", f"{side}: PREFIX", at_key=True)
    if not local or not remote:
        return None
    if not any(meet(ours, theirs) for ours in local for theirs in remote):
        message = "'local' and 'remote' have no address family and protocol in common"
        place.error("XF1004", (*path, "remote"), message)
    if tunnel.datapath is DatapathChoice.USERSPACE and (
        mark := _mark_key(keys) or _mark_key(tunnel)
    ):
        message = "the userspace datapath does not see marks: 'datapath' cannot be userspace"
        place.error("XF1004", (*path, mark), message, "leave the marks out, or the datapath")
    packets = tunnel.ah or tunnel.esp or EspSettings()
    if tunnel.mode is Mode.BEET:
        for side, selectors in (("local", local), ("remote", remote)):
            if len({address for s in selectors for address in _ends_of(s)}) != 1:
                message = f"'mode: beet' is between two addresses: '{side}' has to be one"
                place.error("XF1004", (*path, side), message, f"{side}: ADDRESS")
    inactivity = tunnel.inactivity if keys.inactivity is None else keys.inactivity
    if inactivity and tunnel.start is StartMode.AUTO:
        message = "'inactivity' would take down what 'start: auto' brings up again"
        place.error("XF1004", ("start",), message, "write on-demand, or manual")
    return ChildPolicy(
        name=name,
        reqid=numbers.reqids.get(name, 0),
        local=tuple(local),
        remote=tuple(remote),
        proposals=proposals,
        if_id=numbers.if_id,
        lifetime_octets=packets.max_bytes,
        lifetime_packets=packets.max_packets,
        **_limits(lifetime_seconds=tunnel.lifetime if keys.lifetime is None else keys.lifetime),
        **_given(
            mode=tunnel.mode,
            replay_window=packets.replay_window,
            offload=packets.offload,
            copies_dscp=packets.copy_dscp,
            restores_dscp=packets.restore_dscp,
            copies_ecn=packets.copy_ecn,
            dont_fragment=packets.dont_fragment,
            compresses=packets.ipcomp,
            tfc=packets.tfc,
            inactivity_seconds=inactivity,
            per_resource=tunnel.per_resource if keys.per_resource is None else keys.per_resource,
            priority=tunnel.priority if keys.priority is None else keys.priority,
            mark_out=keys.mark_out or keys.mark or tunnel.mark_out or tunnel.mark,
            mark_in=keys.mark_in or keys.mark or tunnel.mark_in or tunnel.mark,
            mark_set=keys.mark_set or tunnel.mark_set,
        ),
    )


def _mark_key(keys: Tunnel | Child) -> str | None:
    """One that is given, if any is."""
    names = ("mark", "mark_out", "mark_in", "mark_set")
    return next((name for name in names if getattr(keys, name) is not None), None)


def _ends_of(selector: TrafficSelector) -> tuple[IpAddress, IpAddress]:
    return selector.start_address, selector.end_address


def _check_children_apart(children: Sequence[ChildPolicy], place: Place) -> None:
    """Of two children of a tunnel one may be the more specific, and has its traffic; not both."""
    for number, later in enumerate(children):
        for earlier in children[:number]:
            if _are_marked_apart(earlier, later):
                continue
            local = [s for s in later.local if s in earlier.local]
            remote = [s for s in later.remote if s in earlier.remote]
            if local and remote:
                message = (
                    f"child '{later.name}' would carry the same traffic as '{earlier.name}': "
                    f"{local[0]} to {remote[0]}"
                )
                place.error("XF1007", ("children", later.name), message, at_key=True)


def _retransmission(keys: Retransmit) -> Retransmission:
    given = _given(
        tries=keys.tries,
        initial_seconds=keys.initial,
        factor=keys.factor,
        jitter=keys.jitter,
    )
    return Retransmission(**given)


def assign_reqids(names: Iterable[str]) -> dict[str, int]:
    """A number of `OUR_REQIDS` for each of at most `MAX_TUNNELS` names of Child SAs.

    A hash of the name, so that a new tunnel leaves the others' alone; of two names that collide
    (1 in 65,000 for each pair), the one that sorts later moves on.
    """
    taken: dict[int, str] = {}
    for name in sorted(set(names)):
        attempt = 0
        while (reqid := _reqid(name, attempt)) in taken:
            attempt += 1
        taken[reqid] = name
    return {name: reqid for reqid, name in taken.items()}


def _reqid(name: str, attempt: int) -> int:
    digest = sha256(f"{attempt}:{name}".encode()).digest()
    return OUR_REQIDS[int.from_bytes(digest[:8], "big") % len(OUR_REQIDS)]


EVERYTHING = (TrafficSelector.parse("0.0.0.0/0"), TrafficSelector.parse("::/0"))
"""What transport mode and an interface are limited to when a policy does not limit them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Traffic that two tunnels both claim; they are numbered in the order of loading."""

    earlier: int
    later: int
    local: TrafficSelector
    remote: TrafficSelector


def find_overlaps(tunnels: Sequence[TunnelPolicy]) -> list[Overlap]:
    """For each tunnel whose traffic an earlier one claims already, one such overlap.

    Nested selectors count too. The more specific SPD entry would win, but a peer may narrow the
    wider one (RFC 7296 section 2.9) to just what another tunnel protects, and so take it over.
    """
    found: dict[int, Overlap] = {}
    for one, other in _remotes_that_touch(tunnels):
        earlier, later = sorted((one, other))
        if later not in found:
            common = _common_traffic(tunnels[earlier], tunnels[later])
            if common is not None:
                local, remote = common
                found[later] = Overlap(earlier=earlier, later=later, local=local, remote=remote)
    return [found[later] for later in sorted(found)]


def _remotes_that_touch(tunnels: Sequence[TunnelPolicy]) -> Iterator[tuple[int, int]]:
    """Pairs of tunnels with a remote address in common, by a sweep over the address space."""
    spans = sorted(
        (remote.start_address.version, int(remote.start_address), int(remote.end_address), number)
        for number, tunnel in enumerate(tunnels)
        for child in tunnel.children
        # In transport mode selectors only limit the ends' traffic; interfaces are apart.
        if child.mode is not Mode.TRANSPORT and not child.if_id
        for remote in child.remote
    )
    open_spans: list[tuple[int, int]] = []
    current_version = 0
    for version, start, end, number in spans:
        if version != current_version:
            open_spans, current_version = [], version
        open_spans = [span for span in open_spans if span[0] >= start]
        yield from ((other, number) for _, other in open_spans if other != number)
        open_spans.append((end, number))


def _common_traffic(
    one: TunnelPolicy, other: TunnelPolicy
) -> tuple[TrafficSelector, TrafficSelector] | None:
    for ours in one.children:
        for theirs in other.children:
            if ours.if_id != theirs.if_id or _are_marked_apart(ours, theirs):
                continue
            remotes = _common(ours.remote, theirs.remote)
            for local in _common(ours.local, theirs.local):
                for remote in remotes:
                    if meet(local, remote):
                        return local, remote
    return None


def _are_marked_apart(one: ChildPolicy, other: ChildPolicy) -> bool:
    """Whether no packet is both's, in either direction, whatever its addresses."""
    return are_apart(one.mark_out, other.mark_out) and are_apart(one.mark_in, other.mark_in)


def _common(
    ours: Iterable[TrafficSelector], theirs: Collection[TrafficSelector]
) -> list[TrafficSelector]:
    pairs = (a.intersect(b) for a in ours for b in theirs)
    return [common for common in pairs if common is not None]
