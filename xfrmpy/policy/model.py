"""What an operator's policy means, resolved: no defaults left to fill in, no file to read.

`schema/` is the language of the files, `load.py` reads them into these values, and everything
below and beside (the IKE core first) knows only these. They hold no file positions and no pydantic.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.interfaces import TunnelInterface
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.proposals import Proposal
from xfrmpy.ipsec.sad import (
    DEFAULT_REPLAY_WINDOW,
    DontFragment,
    Mode,
    Offload,
    OuterHeader,
)
from xfrmpy.ipsec.selectors import Selector, TrafficSelector
from xfrmpy.ipsec.spd import Action, PolicyDirection
from xfrmpy.pki.verdicts import Strictness
from xfrmpy.registry import ProtocolId
from xfrmpy.tokens.uri import TokenUri


class StartMode(StrEnum):
    """When a tunnel is brought up."""

    AUTO = "auto"
    ON_DEMAND = "on-demand"
    LISTEN = "listen"
    MANUAL = "manual"


class DatapathChoice(StrEnum):
    """Who moves the packets; AUTO is the kernel if it can do what the policy asks."""

    AUTO = "auto"
    KERNEL = "kernel"
    USERSPACE = "userspace"


class Encapsulation(StrEnum):
    """NAT: ESP in UDP when there is a NAT on the way. FORCE: always.

    AUTO is FORCE on the userspace datapath, which shares UDP port 4500 with IKE and for anything
    else needs raw sockets; and NAT on the kernel's.
    """

    AUTO = "auto"
    NAT = "nat"
    FORCE = "force"


class Uniqueness(StrEnum):
    """What a new IKE SA between two identities means to one that there is; as strongSwan has it.

    NO: it ends at once if the peer says that it began anew (INITIAL_CONTACT), else one of the two
    ends within seconds. NEVER: all may stay, and we say nothing of the kind. KEEP: a second one is
    refused. REPLACE: the second one ends the first at once.
    """

    NO = "no"
    NEVER = "never"
    KEEP = "keep"
    REPLACE = "replace"


class PostQuantum(StrEnum):
    """Whether IKE SAs have a key exchange that resists quantum computers (ML-KEM, RFC 9370).

    PREFER: where the proposals have one and the peer takes it. REQUIRE: what has none is neither
    offered nor accepted. OFF: what has one is not.
    """

    PREFER = "prefer"
    REQUIRE = "require"
    OFF = "off"


class RsaSignature(StrEnum):
    """How an RSA key of ours signs: RSASSA-PSS, or RSASSA-PKCS1-v1_5 (RFC 8017)."""

    PSS = "pss"
    PKCS1 = "pkcs1"


class Experiment(StrEnum):
    """What is of a draft, and may mean something else in the next version.

    ML_DSA: signatures by draft-ietf-ipsecme-ikev2-pqc-auth.
    """

    ML_DSA = "ml-dsa"


class EapMethod(StrEnum):
    """By what a user proves who it is in EAP."""

    MSCHAPV2 = "mschapv2"
    MD5 = "md5"
    GTC = "gtc"
    TLS = "tls"
    TTLS = "ttls"
    PEAP = "peap"

    @property
    def is_tunnel(self) -> bool:
        """Whether it speaks TLS, and so needs certificates."""
        return self in _TUNNELS

    @property
    def is_fit_alone(self) -> bool:
        """Whether it proves the server too, makes a key, and tells whoever answers in the server's
        place nothing to guess a password by: what EAP without another proof of the server asks of
        a method (RFC 5998 section 4). A challenge of MSCHAPv2 is not."""
        return self in _FIT_ALONE


_TUNNELS = frozenset({EapMethod.TLS, EapMethod.TTLS, EapMethod.PEAP})
_FIT_ALONE = _TUNNELS


class EapInside(StrEnum):
    """By what a user proves who it is within TLS: a method of EAP, or attributes of TTLS."""

    EAP_MSCHAPV2 = "eap-mschapv2"
    EAP_MD5 = "eap-md5"
    EAP_GTC = "eap-gtc"
    MSCHAPV2 = "mschapv2"
    PAP = "pap"


class OnDown(StrEnum):
    """What becomes of a tunnel's traffic that no SA carries: it goes in clear, or not at all."""

    BLOCK = "block"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedKey:
    """A pre-shared key, and where it came from, in words that may be shown."""

    octets: bytes = field(repr=False)
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ppk:
    """A post-quantum preshared key (RFC 8784), and the name by which both ends know it."""

    id: str
    key: SharedKey

    @property
    def id_octets(self) -> bytes:
        """As the wire has it: text, or what `0x` is before in hex."""
        return bytes.fromhex(self.id[2:]) if self.id.startswith("0x") else self.id.encode()

    def __str__(self) -> str:
        return f"{self.id} ({self.key.origin})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """Where a key is that never leaves its token, and the PIN, empty if it takes none."""

    uri: TokenUri
    pin: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateKey:
    """A key that signs for us: unencrypted PKCS #8 and, in `public`, SubjectPublicKeyInfo, as DER.

    One of a `token` has no octets. `rsa` is how it signs if it is an RSA key.
    """

    octets: bytes = field(repr=False)
    public: bytes
    origin: str
    rsa: RsaSignature = RsaSignature.PSS
    token: TokenKey | None = None

    @property
    def secret(self) -> bytes:
        """What tells it from another key, as secret as it is."""
        return self.octets if self.token is None else self.public + self.token.pin


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """The one key that the peer may sign with: a DER SubjectPublicKeyInfo.

    It is the same wherever it stands: `origin` may be a line that moves when another is written.
    """

    spki: bytes
    origin: str = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """X.509 certificates in DER, all well-formed: ours and those above it, or authorities'.

    `expires_at` is the Unix time at which the first of them ends; `crl` the lists in PEM,
    or one in DER, of what they have revoked, empty if there is none.
    """

    ders: tuple[bytes, ...] = field(repr=False)
    origin: str
    expires_at: float = 0.0
    crl: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EapClientTls:
    """TLS within EAP: the server must be `server` by one of the authorities.

    `certificates` and `key` are what we show it, `inside` what we say within it.
    """

    authorities: Certificates
    server: Identity
    certificates: Certificates | None = None
    key: PrivateKey | None = None
    inside: EapInside = EapInside.EAP_MSCHAPV2


@dataclass(frozen=True, slots=True, kw_only=True)
class EapServerTls:
    """TLS within EAP: what we show to users; `authorities` know those who come by certificate."""

    certificates: Certificates
    key: PrivateKey
    authorities: Certificates | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RadiusServer:
    """A server of RADIUS, and the secret that we share with it."""

    address: IpAddress
    port: int
    accounting_port: int
    secret: SharedKey

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port} ({self.secret.origin})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RadiusGroup:
    """Servers that know the same users, the first to be asked first.

    A server is asked `tries` times, the first wait being `wait_seconds`. With `accounting` they are
    told of each session, and every `interim_seconds` how it goes: 0 is not, if the server does not
    ask for it. `nas_id` is what we call ourselves; empty is what we are to the user.
    """

    name: str
    servers: tuple[RadiusServer, ...]
    wait_seconds: float = 2.0
    tries: int = 3
    accounting: bool = False
    interim_seconds: float = 0.0
    nas_id: str = ""

    def __str__(self) -> str:
        accounting = f", accounting, interim {self.interim_seconds:g} s" if self.accounting else ""
        waits = f"{self.tries} tries from {self.wait_seconds:g} s on"
        as_whom = f", as {self.nas_id}" if self.nas_id else ""
        return f"{self.name}: {', '.join(map(str, self.servers))}, {waits}{accounting}{as_whom}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EapCredential:
    """By what we prove who we are in EAP: as the user `identity`, by one of the methods, the best
    first. `alone` if the server need not prove who it is by anything else (RFC 5998)."""

    identity: str
    methods: tuple[EapMethod, ...]
    password: SharedKey | None = None
    tls: EapClientTls | None = None
    alone: bool = False

    def __str__(self) -> str:
        methods = ", ".join(self.methods)
        key = None if self.tls is None else self.tls.key
        origins = [f", {secret.origin}" for secret in (self.password, key) if secret]
        return f"{self.identity}, by {methods}{''.join(origins)}"

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """All that proves who we are, and by whom the server is to be known."""
        tls = self.tls
        known = () if tls is None else (*tls.authorities.ders, tls.authorities.crl)
        keys = (self.password, None if tls is None else tls.key)
        return (*(key.octets if key else b"" for key in keys), *known)


@dataclass(frozen=True, slots=True, kw_only=True)
class EapUsers:
    """Names with their passwords, each name once."""

    passwords: tuple[tuple[bytes, str], ...] = field(repr=False)
    origin: str

    def __str__(self) -> str:
        return f"{len(self.passwords)} users from {self.origin}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EapAcceptance:
    """Who may call and prove who it is by EAP, by which methods, the best first.

    `users` are those known here; without them the AAA `server` of this name decides, which is the
    group `radius`. Of these the `identities` may call, where there are any: names, or a `*` with
    what they end in; and who is in one of the `groups`, as the AAA server has them, where there are
    any. `alone` if we need not prove who we are by anything else to a client that asks for that
    (RFC 5998).
    """

    methods: tuple[EapMethod, ...] = ()
    users: EapUsers | None = None
    tls: EapServerTls | None = None
    server: str = ""
    radius: RadiusGroup | None = None
    identities: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    alone: bool = False

    def admits(self, user: bytes, groups: tuple[str, ...] = ()) -> bool:
        """Whether a user who is authenticated may call."""
        is_named = not self.identities or any(_is_meant(i, user) for i in self.identities)
        return is_named and (not self.groups or not set(self.groups).isdisjoint(groups))


def _is_meant(identity: str, user: bytes) -> bool:
    wanted = identity.encode()
    return user.endswith(wanted[1:]) if wanted[:1] == b"*" else user == wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Retransmission:
    """When an unanswered request is sent again, and when the peer is given up.

    The n-th retransmission follows the one before after `initial_seconds * factor ** n`, with up
    to `jitter` of that added or taken off; after `tries` retransmissions and one more such wait the
    peer is dead. RFC 7296 section 2.4 leaves all of it to the implementation; the defaults give up
    after about 63 seconds (strongSwan: 165, WireGuard: 90).
    """

    initial_seconds: float = 1.0
    factor: float = 2.0
    tries: int = 5
    jitter: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildPolicy:
    """One Child SA: what it carries and how. Proposals are in the order of preference.

    `reqid` is unique to it on this host: by it a policy finds the SAs that may carry its traffic.

    `copies_dscp` to `dont_fragment` are as in `OuterHeader`; a `dont_fragment` of None is what is
    usual for the datapath, once that is decided.

    The first Child SA of an IKE SA has no key exchange of its own (RFC 7296 section 1.2): the
    proposals' methods are for those that come later. A lifetime of None is no limit; the SA is
    replaced ahead of its end. Without traffic for `inactivity_seconds` it is deleted; 0 is never.
    `priority` is that of its SPD entries; None: the more specific ones come first. Only what leaves
    with `mark_out` is its traffic, what comes in gets `mark_in`, and what carries it `mark_set`.
    `if_id` is that of the tunnel's interface, 0 if it has none. There may be `per_resource` Child
    SAs with the same traffic, each of a userspace worker of its own (RFC 9611); 0: but one.
    """

    name: str
    reqid: int
    local: tuple[TrafficSelector, ...]
    remote: tuple[TrafficSelector, ...]
    proposals: tuple[Proposal, ...]
    mode: Mode = Mode.TUNNEL
    replay_window: int = DEFAULT_REPLAY_WINDOW
    offload: Offload | None = None
    copies_dscp: bool = True
    restores_dscp: bool = False
    copies_ecn: bool = True
    dont_fragment: DontFragment | None = None
    compresses: bool = False
    tfc: int = 0
    lifetime_seconds: float | None = 3600.0
    lifetime_octets: int | None = None
    lifetime_packets: int | None = None
    inactivity_seconds: float = 0.0
    priority: int | None = None
    mark_out: Mark | None = None
    mark_in: Mark | None = None
    mark_set: Mark | None = None
    if_id: int = 0
    per_resource: int = 0

    @property
    def protocol(self) -> ProtocolId:
        """ESP or AH: all its proposals are of one."""
        return self.proposals[0].protocol

    @property
    def outer(self) -> OuterHeader:
        return OuterHeader(
            copies_dscp=self.copies_dscp,
            restores_dscp=self.restores_dscp,
            copies_ecn=self.copies_ecn,
            dont_fragment=self.dont_fragment or DontFragment.COPY,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shunt:
    """Traffic of this host that passes in clear (BYPASS) or not at all (DISCARD), without a peer.

    `priority` None is before every tunnel that has no explicit one; the lower comes first. With
    `default` directions it is about what no entry of an SPD matches in these, and has no traffic
    of its own; `inside` is what tunnels and bypasses carry for hosts behind this one, as it leaves.
    """

    name: str
    origin: str
    action: Action
    local: tuple[TrafficSelector, ...]
    remote: tuple[TrafficSelector, ...]
    priority: int | None = None
    default: tuple[PolicyDirection, ...] = ()
    inside: tuple[Selector, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherRound:
    """By what the ends prove themselves once more, behind the first time (RFC 4739).

    The fields are those of `TunnelPolicy`; an end that has no key and no EAP here proves nothing
    more. An end that proves itself by EAP does so last of all.
    """

    local_id: Identity | None = None
    local_key: PrivateKey | None = None
    local_certificates: Certificates | None = None
    local_eap: EapCredential | None = None
    remote_id: Identity | None = None
    remote_key: PublicKey | None = None
    remote_authorities: Certificates | None = None
    revocation: Strictness = Strictness.SOFT
    remote_eap: EapAcceptance | None = None

    @property
    def we_prove(self) -> bool:
        return self.local_key is not None or self.local_eap is not None

    @property
    def they_prove(self) -> bool:
        theirs = (self.remote_key, self.remote_authorities, self.remote_eap)
        return any(each is not None for each in theirs)

    def __str__(self) -> str:
        ours = (self.local_key and self.local_key.origin, self.local_eap)
        theirs = (
            self.remote_key and self.remote_key.origin,
            self.remote_authorities and self.remote_authorities.origin,
            self.remote_eap and "users by EAP",
        )
        ends = (("we by", ours), ("they by", theirs))
        shown = [f"{who} {proof}" for who, proofs in ends for proof in proofs if proof]
        return " and ".join(shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelPolicy:
    """One IKE SA with one peer, and its Child SAs.

    `peers` are addresses or names as written, in order; empty means any peer (then we only
    listen). With a `peer_port`, IKE goes to that one from the first message on, on the port that we
    share with ESP; None is 500, and 4500 where there is a NAT. `local_id` None is the address that
    we happen to use. `origin` is `file:line`. `dpd_seconds` 0 asks never, `nat_keepalive_seconds` 0
    sends none. The IKE SA is rekeyed ahead of the end of `lifetime_seconds`, and made anew, with
    authentication, ahead of `reauth_seconds`; None is never. The initiator makes the Child SAs in
    the order of `children`. The first of `ppks` is the one that we name; a caller may name any.

    We prove ourselves by `local_key`, and show `local_certificates` (our own, which is of that key,
    comes first); the peer by `remote_key`, or by a certificate that `remote_authorities` vouch for;
    where there is none of these, by the `shared_key`; or not at all (`local_null`, `remote_null`:
    RFC 7619), and then the identity of that end is `NOBODY`. `revocation` is how much must be known
    of whom those authorities have taken back. With `weak_signatures` an RSA key may sign with SHA-1
    where RFC 7427 is unknown. ML-DSA needs the `experiment`. With `local_eap` we call and prove
    ourselves by EAP, and the peer by what it has of those; with `remote_eap` it is the other way
    round, and `remote_id` is None: whom EAP authenticates is who calls. All this is the first time;
    `rounds` are the others.
    """

    name: str
    origin: str
    peers: tuple[str, ...]
    peer_port: int | None = None
    local_address: IpAddress | None = None
    local_id: Identity | None = None
    remote_id: Identity | None = None
    shared_key: SharedKey | None = None
    ppks: tuple[Ppk, ...] = ()
    ppk_required: bool = False
    local_key: PrivateKey | None = None
    local_certificates: Certificates | None = None
    remote_key: PublicKey | None = None
    remote_authorities: Certificates | None = None
    revocation: Strictness = Strictness.SOFT
    local_null: bool = False
    remote_null: bool = False
    weak_signatures: bool = False
    experiment: Experiment | None = None
    local_eap: EapCredential | None = None
    remote_eap: EapAcceptance | None = None
    rounds: tuple[FurtherRound, ...] = ()
    proposals: tuple[Proposal, ...]
    children: tuple[ChildPolicy, ...]
    start: StartMode = StartMode.MANUAL
    datapath: DatapathChoice = DatapathChoice.AUTO
    encapsulation: Encapsulation = Encapsulation.AUTO
    fragmentation: bool = True
    dpd_seconds: float = 30.0
    nat_keepalive_seconds: float = 20.0
    lifetime_seconds: float | None = 4 * 3600.0
    reauth_seconds: float | None = None
    retransmission: Retransmission = Retransmission()
    crash_detection: bool = True
    unique: Uniqueness = Uniqueness.NO
    resumption: bool = False
    childless: bool = False
    redirect: bool = True
    redirect_to: str | None = None
    on_down: OnDown = OnDown.BLOCK
    interface: TunnelInterface | None = None

    @property
    def signs(self) -> bool:
        """Whether one of the two ends proves itself by a signature, at any time."""
        further = (r.local_key or r.remote_key or r.remote_authorities for r in self.rounds)
        return self.local_key is not None or self.peer_signs or any(further)

    @property
    def peer_signs(self) -> bool:
        """Whether the peer must; the shared key proves nothing of it then."""
        return self.remote_key is not None or self.remote_authorities is not None

    def in_round(self, number: int) -> TunnelPolicy:
        """The policy with what proves the ends in a round, counted from 0."""
        if number == 0:
            return self
        further = self.rounds[number - 1]
        proofs = {field.name: getattr(further, field.name) for field in fields(further)}
        return replace(self, **proofs, shared_key=None, rounds=())

    def we_prove(self, number: int) -> bool:
        """Whether we prove ourselves in a round."""
        return number == 0 or (number <= len(self.rounds) and self.rounds[number - 1].we_prove)

    def they_prove(self, number: int) -> bool:
        """Whether the peer must in a round."""
        return number == 0 or (number <= len(self.rounds) and self.rounds[number - 1].they_prove)

    @property
    def every_round(self) -> tuple[TunnelPolicy, ...]:
        return tuple(self.in_round(number) for number in range(len(self.rounds) + 1))

    @property
    def acceptance(self) -> EapAcceptance | None:
        """Whom EAP lets in, in whichever round the peer is asked by it."""
        further = (of_round.remote_eap for of_round in self.rounds)
        return self.remote_eap or next(filter(None, further), None)

    @property
    def credential(self) -> EapCredential | None:
        """As whom we call, in whichever round we are asked by EAP."""
        further = (of_round.local_eap for of_round in self.rounds)
        return self.local_eap or next(filter(None, further), None)

    @property
    def tells_apart(self) -> bool:
        """Whether who the peer is says which IKE SAs it has.

        RFC 7619 section 2.3: of an end that proves nothing, no other IKE SA may be closed because
        it has the same identity.
        """
        may_be_many = self.unique is Uniqueness.NEVER
        return not (may_be_many or self.local_null or self.remote_null)

    @property
    def secrets(self) -> bytes:
        """All that proves an end and must be the same, for whoever wants to know if it still is."""
        ppks = [part for ppk in self.ppks for part in (ppk.id_octets, ppk.key.octets)]
        first = (self.shared_key and self.shared_key.octets, *_secrets(self))
        further = (secret for each in self.rounds for secret in _secrets(each))
        known = [key or b"" for key in (*first, *ppks, *further)]
        return b"".join(len(key).to_bytes(4, "big") + key for key in known)

    def identity_at(self, address: IpAddress) -> Identity:
        """Who we say we are when we use this address of ours."""
        return self.local_id or Identity.of_address(address)

    @property
    def forces_encapsulation(self) -> bool:
        """Whether ESP must go in UDP, NAT or not; AH never does."""
        is_automatic = self.encapsulation is Encapsulation.AUTO
        has_ah = any(p.protocol == ProtocolId.AH for c in self.children for p in c.proposals)
        return self.encapsulation is Encapsulation.FORCE or (
            is_automatic and self.datapath is DatapathChoice.USERSPACE and not has_ah
        )


def _secrets(proofs: TunnelPolicy | FurtherRound) -> tuple[bytes | None, ...]:
    """What proves the two ends in one round, beside a shared key."""
    ours, theirs, trusted = proofs.local_key, proofs.remote_key, proofs.remote_authorities
    return (
        None if ours is None else ours.secret,
        *(proofs.local_eap.secrets if proofs.local_eap else (b"",)),
        None if theirs is None else theirs.spki,
        *((*trusted.ders, trusted.crl) if trusted else ()),
    )
