"""What the keys of a tunnel mean together: defaults, what is needed, what excludes what.

A `Tunnel` of `schema.py`, whose values are right each for itself, becomes a `TunnelPolicy` here or
gives errors at the keys that disagree. Also what tunnels mean together: their reqids, and whose
traffic is whose. Reading RFC 7296 section 2.9 and RFC 4301 section 4.4.1 helps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from ipaddress import ip_address
from typing import Any

from xfrmpy.crypto.signatures import EXPERIMENTAL, verifying_key
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.algorithms import WEAKNESSES, cipher
from xfrmpy.ipsec.identity import NOBODY, Identity
from xfrmpy.ipsec.marks import are_apart
from xfrmpy.ipsec.proposals import Proposal
from xfrmpy.ipsec.sad import OUR_REQIDS, DontFragment, Mode
from xfrmpy.ipsec.selectors import TrafficSelector, meet
from xfrmpy.pki.verdicts import Strictness
from xfrmpy.policy.certificates import Where, identity_in
from xfrmpy.policy.document import Node
from xfrmpy.policy.eap import acceptance_of, credential_of
from xfrmpy.policy.errors import Findings, Mark
from xfrmpy.policy.interfaces import block_obstacle, resolve_interface
from xfrmpy.policy.keys import KeyReader
from xfrmpy.policy.model import (
    ChildPolicy,
    DatapathChoice,
    Encapsulation,
    Experiment,
    OnDown,
    PostQuantum,
    PrivateKey,
    Retransmission,
    RsaSignature,
    StartMode,
    TunnelPolicy,
    Uniqueness,
)
from xfrmpy.policy.ppk import resolve_ppks
from xfrmpy.policy.profiles import (
    DEFAULT_PROFILE,
    WEAK_PROFILE,
    ah_proposals,
    esp_proposals,
    ike_proposals,
)
from xfrmpy.policy.schema import (
    Authentication,
    Child,
    EspSettings,
    IkeSettings,
    OurAuthentication,
    Retransmit,
    TheirAuthentication,
    Tunnel,
)
from xfrmpy.policy.values import SecretReference
from xfrmpy.registry import EncryptionAlgorithm, TransformType

MAX_TUNNELS = len(OUR_REQIDS) // 2
"""Half of the reqids, so that a free one is found in two steps on average. Of Child SAs, too."""


Keypath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tunnel stands: its own map, that of the defaults, and the file they are in."""

    findings: Findings
    node: Node
    defaults: Node | None = None

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
    _check_null(tunnel, place)
    keys = _keys(tunnel, place, reader)
    ppks = resolve_ppks(tunnel, place, reader)
    local_id, remote_id = _identities(tunnel, place)
    _check_pattern(tunnel, remote_id, place)
    if (certificates := keys["local_certificates"]) is not None:
        path = ("id",) if tunnel.auth is None else ("auth", "local", "id")
        local_id = identity_in(certificates, local_id, place.where(path))
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
        local_id=local_id,
        remote_id=remote_id,
        ppks=ppks,
        ppk_required=any(ppk.required for ppk in tunnel.ppk or ()),
        proposals=proposals,
        children=children,
        interface=interface,
        **keys,
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
    known = [_address(peer) is not None for peer in tunnel.peer or ()]
    return tunnel.mode is not Mode.TRANSPORT or (bool(known) and all(known))


def _check_peer(tunnel: Tunnel, place: Place) -> None:
    if not tunnel.peer and tunnel.start not in (None, StartMode.LISTEN):
        message = f"'start' cannot be {tunnel.start} without a 'peer'"
        place.error("XF1004", ("start",), message, "write listen, or add 'peer'")
    if not tunnel.peer and tunnel.peer_port is not None:
        place.error("XF1004", ("peer_port",), "'peer_port' has no meaning without a 'peer'")
    addresses = [address for address in map(_address, tunnel.peer or ()) if address is not None]
    if tunnel.on_down is OnDown.BLOCK and tunnel.interface is None and not _can_block(tunnel):
        message = "'on_down' cannot be block in transport mode without the peer's address"
        place.error("XF1004", ("on_down",), message, "write the address in 'peer'")
    ours = tunnel.local_address
    if ours is not None and any(theirs.version != ours.version for theirs in addresses):
        message = f"'local_address' is IPv{ours.version}, and an address of 'peer' is not"
        place.error("XF1004", ("local_address",), message)


def _check_null(tunnel: Tunnel, place: Place) -> None:
    """An end that proves nothing has nothing else, and cannot be told from others of its kind."""
    auth = tunnel.auth or Authentication()
    for end, keys in (("local", auth.local), ("remote", auth.remote)):
        if keys is None or not keys.null_auth:
            continue
        for other in sorted(keys.model_fields_set - {"null_auth"}):
            message = f"'{other}' stands beside 'null_auth', by which this end proves nothing"
            place.error("XF1004", ("auth", end, other), message, "keep one", at_key=True)
        if (auth.local and auth.local.eap) or (auth.remote and auth.remote.eap):
            message = "'null_auth' does not go with 'eap': a password is for who proves who it is"
            place.error("XF1004", ("auth", end, "null_auth"), message, "leave it out", at_key=True)
        if tunnel.unique not in (None, Uniqueness.NEVER):
            message = "'unique' has no meaning where an end has 'null_auth': nobody is known"
            place.error("XF1004", ("unique",), message, "leave it out", at_key=True)


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


def _keys(tunnel: Tunnel, place: Place, reader: KeyReader) -> dict[str, Any]:
    """By what each end proves itself."""
    path: Keypath = ("psk",)
    psk = tunnel.psk
    ours = OurAuthentication.model_construct(cert=tunnel.cert)
    theirs = TheirAuthentication.model_construct(ca=tunnel.ca)
    if tunnel.auth is not None:
        _check_alone("auth", ("psk", "id", "peer_id", "cert", "ca"), tunnel, place)
        path, psk = ("auth", "psk"), tunnel.auth.psk
        ours = tunnel.auth.local or OurAuthentication()
        theirs = tunnel.auth.remote or TheirAuthentication()
    _check_keys(ours, theirs, psk is not None, path, place)
    ike = tunnel.ike or IkeSettings()
    certified = _certified(ours, theirs, place, reader)
    local_key, remote_key = certified["local_key"], None
    if theirs.key is not None:
        mark = place.mark(("auth", "remote", "key"))
        remote_key = reader.public_key(theirs.key, mark, place.findings)
    gateway = theirs.id or (_identity_at(tunnel.peer[0]) if tunnel.peer else None)
    shown = (certified["local_certificates"], local_key) if ours.cert else None
    _check_experimental("local", b"" if local_key is None else local_key.public, ike, place)
    _check_experimental("remote", b"" if remote_key is None else remote_key.spki, ike, place)
    return {
        "shared_key": psk and reader.shared_key(psk, place.mark(path), place.findings),
        **certified,
        "remote_key": remote_key,
        "local_eap": credential_of(ours, gateway, tunnel, place, reader),
        "remote_eap": acceptance_of(theirs, shown, tunnel, place, reader),
        "weak_signatures": ike.profile == WEAK_PROFILE,
        "experiment": ike.experimental,
        "local_null": bool(ours.null_auth),
        "remote_null": bool(theirs.null_auth),
    }


def _check_experimental(end: str, spki: bytes, ike: IkeSettings, place: Place) -> None:
    """A key that signs by a draft needs to be wanted by name."""
    kind = verifying_key(spki).kind if spki else None
    if kind in EXPERIMENTAL and ike.experimental is not Experiment.ML_DSA:
        message = f"a key of {kind} signs by a draft, which may yet change"
        place.error("XF1004", ("auth", end, "key"), message, "ike: {experimental: ml-dsa}")


def _certified(
    ours: OurAuthentication, theirs: TheirAuthentication, place: Place, reader: KeyReader
) -> dict[str, Any]:
    """Our key with our certificates, and whom we trust to certify the peer."""
    files = reader.certificates
    key = _private_key(ours, place, reader)
    certs = authorities = None
    if files is not None and ours.cert is not None:
        path = ("cert",) if place.has("cert") else ("auth", "local", "cert")
        certs = files.ours(ours.cert, key, place.where(path))
    elif ours.key is not None and key is not None:
        where = place.where(("auth", "local", "key"))
        certs = reader.certificates_with(ours.key, ours.passphrase, key, where)
    if files is not None and theirs.ca is not None:
        path = ("ca",) if place.has("ca") else ("auth", "remote", "ca")
        authorities = files.authorities(theirs.ca, place.where(path))
    return {
        "local_key": key,
        "local_certificates": certs,
        "remote_authorities": authorities,
        "revocation": theirs.revocation or Strictness.SOFT,
    }


def _private_key(ours: OurAuthentication, place: Place, reader: KeyReader) -> PrivateKey | None:
    """Of a certificate, the one beside it unless the policy names another."""
    path: Keypath = ("auth", "local", "key")
    reference, files = ours.key, reader.certificates
    if reference is None and ours.cert is not None and files is not None:
        path = ("cert",) if place.has("cert") else ("auth", "local", "cert")
        if ours.cert.startswith("file:"):
            message = f"the key of '{ours.cert}' is not named"
            place.error("XF1005", path, message, "auth: {local: {cert: ..., key: file:/PATH}}")
            return None
        reference = SecretReference("file", files.key_path(ours.cert))
    if reference is None:
        return None
    mark = place.mark(path)
    key = reader.private_key(reference, ours.passphrase, mark, place.findings)
    return None if key is None else replace(key, rsa=ours.rsa or RsaSignature.PSS)


_MISSING = {
    "local": "add auth.local.key, or auth.psk, or auth.local.cert",
    "remote": "add auth.remote.key, or auth.psk, or auth.remote.ca",
}


def _check_keys(
    ours: OurAuthentication,
    theirs: TheirAuthentication,
    has_psk: bool,
    path: Keypath,
    place: Place,
) -> None:
    """Each end has one way to prove itself, and nothing is there in vain."""
    ends = (
        ("local", ours.key or ours.cert or ours.eap or ours.null_auth),
        ("remote", theirs.key or theirs.ca or theirs.eap or theirs.null_auth),
    )
    with_key = [end for end, key in ends if key]
    if theirs.key is not None and theirs.ca is not None:
        message = "'ca' and 'key' exclude each other: the peer has one way to prove itself"
        place.error("XF1004", ("auth", "remote", "ca"), message, "keep one", at_key=True)
    if theirs.revocation is not None and theirs.ca is None:
        message = "'revocation' has no meaning without a 'ca'"
        place.error("XF1004", ("auth", "remote", "revocation"), message, at_key=True)
    _check_eap(ours, theirs, place)
    if has_psk and len(with_key) == 2:
        message = "'psk' proves nothing, for both ends have another way"
        place.error("XF1004", path, message, "leave it out", at_key=True)
    if not has_psk and len(with_key) < 2:
        message, hint = "'psk' is missing", "psk: secret:NAME"
        if with_key:
            other = "remote" if with_key == ["local"] else "local"
            message += f": of the two ends '{with_key[0]}' alone has another way to prove itself"
            hint = _MISSING[other]
        place.error("XF1005", path, message, hint, at_key=True)
    for name in ("passphrase", "rsa"):
        if not (ours.key or ours.cert) and getattr(ours, name) is not None:
            message = f"'{name}' has no meaning without a 'key'"
            place.error("XF1004", ("auth", "local", name), message, at_key=True)


def _check_pattern(tunnel: Tunnel, peer: Identity | None, place: Place) -> None:
    """Whoever has a shared key could call himself anything."""
    theirs = None if tunnel.auth is None else tunnel.auth.remote
    if peer is None or not peer.is_pattern or tunnel.ca or (theirs and theirs.ca):
        return
    path: Keypath = ("peer_id",) if theirs is None else ("auth", "remote", "id")
    message = f"{peer} could be anybody's: a peer proves by a certificate only which one it is"
    place.error("XF1004", path, message, "add 'ca', or write one identity")


def _check_eap(ours: OurAuthentication, theirs: TheirAuthentication, place: Place) -> None:
    """One end asks and the other answers, and neither has another way besides."""
    if ours.eap is not None and theirs.eap is not None:
        message = "of the two ends one alone proves itself by 'eap': who asks, proves itself first"
        place.error("XF1004", ("auth", "local", "eap"), message, at_key=True)
    for end, eap, other in (
        ("local", ours.eap, ours.key or ours.cert),
        ("remote", theirs.eap, theirs.key or theirs.ca),
    ):
        if eap is not None and other is not None:
            message = "'eap' and a key exclude each other: an end has one way to prove itself"
            place.error("XF1004", ("auth", end, "eap"), message, "keep one", at_key=True)


def _identities(tunnel: Tunnel, place: Place) -> tuple[Identity | None, Identity | None]:
    ours, theirs = tunnel.id, tunnel.peer_id
    if tunnel.auth is not None:
        local = tunnel.auth.local or OurAuthentication()
        remote = tunnel.auth.remote or TheirAuthentication()
        ours = NOBODY if local.null_auth else local.id
        theirs = NOBODY if remote.null_auth else remote.id
        if remote.eap is not None:
            return ours, None
    if theirs is not None:
        return ours, theirs
    match tunnel.peer or []:
        case [peer]:
            return ours, _identity_at(peer)
        case []:
            message = "'peer_id' is missing: without a 'peer', nothing else says who may call"
        case _:
            message = "'peer_id' is missing: with several peers, it must say who they all are"
    place.error("XF1005", ("peer",), message, at_key=True)
    return ours, None


def _identity_at(peer: str) -> Identity:
    """Who is expected where a policy says no more than the peer's address or name."""
    address = _address(peer)
    name = peer.removesuffix(".")
    return Identity.parse(name) if address is None else Identity.of_address(address)


def _address(peer: str) -> IpAddress | None:
    try:
        return ip_address(peer)
    except ValueError:
        return None


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
        _check_alone("children", ("local", "remote"), tunnel, place)
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


def _check_alone(long: str, short: tuple[str, ...], tunnel: Tunnel, place: Place) -> None:
    beside = [f"'{key}'" for key in short if getattr(tunnel, key) is not None]
    if beside:
        message = f"'{long}' stands beside {' and '.join(beside)}, to be written inside it"
        place.error("XF1004", (long,), message, at_key=True)


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
