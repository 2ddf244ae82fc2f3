"""The language of the policy files: every key, what it takes and what it means.

Each value is parsed where it stands, so a valid `Tunnel` holds selectors, identities and proposals.
What keys mean together, and their defaults, is decided in `resolve.py`. The descriptions feed the
JSON schema and the reference page; a key of type `NotYet` is known and refused with XF1011.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import ErrorDetails

from xfrmpy.ipsec.addresses import IpAddress, IpNetwork
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.interfaces import InterfaceAddress
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.proposals import Proposal
from xfrmpy.ipsec.sad import MAX_RESOURCES, DontFragment, Mode, Offload
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import MAX_PRIORITY, PolicyDirection
from xfrmpy.pki.verdicts import Strictness
from xfrmpy.policy import values
from xfrmpy.policy.document import Node
from xfrmpy.policy.errors import MAX_FINDINGS, Findings, shown
from xfrmpy.policy.model import (
    DatapathChoice,
    EapInside,
    EapMethod,
    Encapsulation,
    Experiment,
    OnDown,
    PostQuantum,
    RsaSignature,
    StartMode,
    Uniqueness,
)
from xfrmpy.policy.profiles import PROFILES
from xfrmpy.registry import ProtocolId

_Text = WithJsonSchema({"type": "string"})
_TextOrList = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
)
_Number = WithJsonSchema({"type": "number"})
_Time = WithJsonSchema({"type": ["string", "number"]})
_YesNo = WithJsonSchema({"enum": ["yes", "no", True, False]})
_OneOrMore = BeforeValidator(values.as_list)

Name = Annotated[str, PlainValidator(values.parse_name), _Text]
ShortText = Annotated[str, PlainValidator(values.parse_short_text), _Text]
ShortTexts = Annotated[list[ShortText], _OneOrMore, _TextOrList]
NotYet = Annotated[SkipJsonSchema[None], PlainValidator(values.refuse_not_yet)]
Peers = Annotated[list[Annotated[str, PlainValidator(values.parse_peer)]], _OneOrMore, _TextOrList]
HttpHosts = Annotated[
    list[Annotated[str, PlainValidator(values.parse_http_host)]], _OneOrMore, _TextOrList
]
Selectors = Annotated[
    list[Annotated[TrafficSelector, PlainValidator(values.parse_selector)]], _OneOrMore, _TextOrList
]
IkeProposals = Annotated[
    list[Annotated[Proposal, PlainValidator(partial(values.parse_one_proposal, ProtocolId.IKE))]],
    _OneOrMore,
    _TextOrList,
]
EspProposals = Annotated[
    list[Annotated[Proposal, PlainValidator(partial(values.parse_one_proposal, ProtocolId.ESP))]],
    _OneOrMore,
    _TextOrList,
]
AhProposals = Annotated[
    list[Annotated[Proposal, PlainValidator(partial(values.parse_one_proposal, ProtocolId.AH))]],
    _OneOrMore,
    _TextOrList,
]
PeerIdentity = Annotated[Identity, PlainValidator(values.parse_peer_identity), _Text]
SomeIdentity = Annotated[Identity, PlainValidator(values.parse_identity), _Text]
Address = Annotated[IpAddress, PlainValidator(values.parse_address), _Text]
Device = Annotated[str, PlainValidator(values.parse_device_name), _Text]
Switch = Annotated[bool, PlainValidator(values.parse_yes_no), _YesNo]
Secret = Annotated[values.SecretReference, PlainValidator(values.parse_secret_reference), _Text]
KeyPlace = Annotated[values.SecretReference, PlainValidator(values.parse_key_reference), _Text]
CertificateName = Annotated[str, PlainValidator(values.parse_certificate_reference), _Text]
PublicKeyText = Annotated[str, PlainValidator(values.parse_public_key), _Text]
Lifetime = Annotated[float, PlainValidator(values.parse_lifetime), _Time]
EapMethods = Annotated[
    list[Annotated[EapMethod, PlainValidator(partial(values.parse_choice, EapMethod, ()))]],
    _OneOrMore,
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": [*EapMethod]},
                {"type": "array", "items": {"enum": [*EapMethod]}, "minItems": 1},
            ]
        }
    ),
]
SomeMark = Annotated[
    Mark,
    PlainValidator(partial(values.parse_mark, Mark.parse)),
    WithJsonSchema({"type": ["string", "integer"]}),
]
OuterMark = Annotated[
    Mark,
    PlainValidator(partial(values.parse_mark, Mark.parse_outer)),
    WithJsonSchema({"type": ["string", "integer"]}),
]
Priority = Annotated[
    int,
    PlainValidator(partial(values.parse_whole_number, 1, MAX_PRIORITY)),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_PRIORITY}),
]
Resources = Annotated[
    int,
    PlainValidator(values.parse_resources),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["auto", "off"]},
                {"type": "integer", "minimum": 2, "maximum": MAX_RESOURCES},
            ]
        }
    ),
]
UdpPort = Annotated[
    int,
    PlainValidator(partial(values.parse_whole_number, 1, 65535)),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 65535}),
]
ProfileName = Annotated[
    str, PlainValidator(values.parse_profile), WithJsonSchema({"enum": [*PROFILES]})
]


def _key(description: str, example: object) -> Any:
    return Field(default=None, description=description, examples=[example])


def _choice(kind: type[Any], *future: str) -> PlainValidator:
    parse = partial(values.parse_choice, kind, future)
    return PlainValidator(parse, json_schema_input_type=kind)


def _without_null(schema: dict[str, Any]) -> None:
    for key in schema["properties"].values():
        key.pop("default", None)
        key.pop("title", None)
        forms = [form for form in key.pop("anyOf", []) if form != {"type": "null"}]
        key.update(forms[0] if len(forms) == 1 else {"anyOf": forms} if forms else {})


class Keys(BaseModel):
    """A map of known keys; every one may be left out, none may be left empty."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
        json_schema_extra=_without_null,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_given(cls, value: object, info: ValidationInfo) -> object:
        if value is None and not is_future(cls.model_fields[str(info.field_name)]):
            values.refuse("XF1004", "has no value")
        return value


class IkeSettings(Keys):
    """How the IKE SA is protected."""

    profile: ProfileName | None = _key(
        "Named set of algorithms, `modern` or `compat`; ESP follows it too. Default: `modern`.",
        "compat",
    )
    proposals: IkeProposals | None = _key(
        "Algorithms in place of the profile's: one proposal, or a list with the best first. Weak "
        "ones need `profile: compat` beside them.",
        "aes256gcm16-prfsha384-x25519-ke1_mlkem768",
    )
    post_quantum: Annotated[PostQuantum, _choice(PostQuantum)] | None = _key(
        "`require`: only with ML-KEM, never with a classical key exchange alone; `off`: never with "
        "it. Default: `prefer`, which takes what comes first in `proposals` and suits the peer.",
        "require",
    )
    experimental: Annotated[Experiment, _choice(Experiment)] | None = _key(
        "`ml-dsa`: keys of ML-DSA may sign, by a draft that may yet change, so both ends should be "
        "of one version. Default: nothing of the kind.",
        "ml-dsa",
    )
    lifetime: Lifetime | None = _key(
        "How long an IKE SA may live; it is rekeyed ahead, or `off`. Default: 4h.", "8h"
    )
    reauth: Lifetime | None = _key(
        "After what time at most both ends prove again who they are, or `off`. Default: off.", "24h"
    )


class EspSettings(Keys):
    """How the packets are protected."""

    profile: ProfileName | None = _key(
        "Named set of algorithms. Default: that of `ike`.",
        "compat",
    )
    proposals: EspProposals | None = _key(
        "Algorithms in place of the profile's; `esn` is meant unless `noesn` is named. Weak ones "
        "need `profile: compat` beside them, or in `ike`.",
        "aes256-sha256-noesn",
    )
    replay_window: (
        Annotated[
            int,
            PlainValidator(partial(values.parse_whole_number, 32, 4096)),
            WithJsonSchema({"type": "integer", "minimum": 32, "maximum": 4096}),
        ]
        | None
    ) = _key("How many packets may overtake one another, 32 to 4096. Default: 256.", 1024)
    offload: Annotated[Offload, _choice(Offload)] | None = _key(
        "`crypto` asks the network device to encrypt (kernel datapath). A refusal is told, and the "
        "kernel does it itself. Default: not asked.",
        "crypto",
    )
    ipcomp: Switch | None = _key(
        "Whether packets are compressed before they are encrypted (RFC 3173, DEFLATE), if the peer "
        "agrees; beside `tfc` on the userspace datapath alone. How much smaller a packet gets "
        "tells of what is in it. Default: no.",
        "yes",
    )
    tfc: (
        Annotated[
            int,
            PlainValidator(partial(values.parse_whole_number, 1, 65535)),
            WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 65535}),
        ]
        | None
    ) = _key(
        "Octets to which smaller packets are padded in tunnel mode to hide their size, as far as "
        "the path takes that and the peer accepts it. Refused on the kernel datapath while the "
        "module esp4_offload is loaded (`offload`): it pads nothing. Default: no padding.",
        1280,
    )
    copy_dscp: Switch | None = _key(
        "Whether the outer packet has the inner one's DSCP. Default: yes.", "no"
    )
    restore_dscp: Switch | None = _key(
        "Whether the inner packet gets the DSCP that the outer one arrives with. Default: no.",
        "yes",
    )
    copy_ecn: Switch | None = _key(
        "Whether congestion on the way is told across the tunnel (RFC 6040). Default: yes.", "no"
    )
    dont_fragment: Annotated[DontFragment, _choice(DontFragment)] | None = _key(
        "DF of the outer IPv4 packet: `copy` the inner one's, `clear` it so that a narrow path may "
        "cut the packet, or `set` it (on the userspace datapath alone). Default: `copy` on the "
        "kernel datapath, which heeds what the path says of its MTU; `clear` on the userspace one.",
        "clear",
    )
    max_bytes: (
        Annotated[int, PlainValidator(values.parse_octets), WithJsonSchema({"type": "string"})]
        | None
    ) = _key("How much an SA may carry; it is rekeyed ahead. Default: no limit.", "500GB")
    max_packets: (
        Annotated[
            int,
            PlainValidator(partial(values.parse_whole_number, 1000, 1 << 62)),
            WithJsonSchema({"type": "integer", "minimum": 1000}),
        ]
        | None
    ) = _key(
        "How many packets an SA may carry. Default: no limit, or 4294967296 without `esn`.",
        1_000_000_000,
    )


class AhSettings(EspSettings):
    """How the packets are authenticated."""

    proposals: AhProposals | None = _key(
        "Integrity algorithms in place of the profile's, written as those of `esp`.",
        "sha256-sha512",
    )


class OurEap(Keys):
    """As whom and by what we prove who we are by EAP."""

    method: EapMethods | None = _key(
        "`mschapv2`, `md5`, `gtc`, `tls`, `ttls` or `peap`, or a list with the best first. "
        "Default: `mschapv2`.",
        "mschapv2",
    )
    identity: ShortText | None = _key("The name of the user that we are. Default: `id`.", "carol")
    password: Secret | None = _key("The password by reference, as `psk`.", "secret:carol")
    cert: CertificateName | None = _key(
        "With `tls`: our certificate, `certs/NAME.pem`, whose key is `keys/NAME.key`.", "carol"
    )
    ca: CertificateName | None = _key(
        "With `tls`, `ttls` and `peap`: who vouches for the server within EAP, as `ca` of the "
        "tunnel.",
        "corp-root",
    )
    server: SomeIdentity | None = _key(
        "With these: the name that the server within EAP must have in its certificate. Default: "
        "who the gateway is.",
        "radius.example.org",
    )
    inside: Annotated[EapInside, _choice(EapInside)] | None = _key(
        "What is said within `ttls` (`eap-mschapv2`, `eap-md5`, `eap-gtc`, `mschapv2`, `pap`) and "
        "`peap` (`eap-mschapv2`, `eap-gtc`). Default: `eap-mschapv2`.",
        "eap-mschapv2",
    )
    alone: Switch | None = _key(
        "Whether the gateway need not prove itself by anything but EAP (RFC 5998), which takes "
        "methods that do so. Default: no.",
        "no",
    )


class TheirEap(Keys):
    """Who may call and prove who it is by EAP."""

    users: Secret | None = _key(
        "The list of users by reference, as `psk`: a file with `NAME: PASSWORD` on each line.",
        "file:/etc/xfrmpy/users",
    )
    methods: EapMethods | None = _key(
        "By which methods, the best first: `mschapv2`, `md5`, `gtc`, `tls`, `ttls`, `peap`. "
        "Default: `mschapv2`.",
        ["peap", "mschapv2"],
    )
    cert: CertificateName | None = _key(
        "With `tls`, `ttls` and `peap`: what we show within EAP, `certs/NAME.pem` with "
        "`keys/NAME.key`. Default: the certificate that we prove ourselves by.",
        "gw1",
    )
    ca: CertificateName | None = _key(
        "With `tls`: who vouches for the certificates of users, each of which has the user's name.",
        "corp-root",
    )
    identities: ShortTexts | None = _key(
        "Which of the users may use this tunnel: names, or `*` and what they end in. Default: all.",
        ["carol", "*@example.org"],
    )
    radius: Name | None = _key(
        "The group of RADIUS servers, under `radius`, that knows the users, in place of `users`.",
        "corp",
    )
    groups: ShortTexts | None = _key(
        "Which users of `radius` may use this tunnel: those to whom the servers give one of these "
        "classes. Default: all.",
        "staff",
    )
    alone: Switch | None = _key(
        "Whether we prove ourselves by nothing but EAP to those who ask for that (RFC 5998). "
        "Default: no.",
        "no",
    )


class OurAuthentication(Keys):
    """How we prove who we are."""

    id: SomeIdentity | None = _key("The same as `id` of the tunnel.", "gw1.example.net")
    key: KeyPlace | None = _key(
        "The private key that we sign with, in place of `psk`: PEM or DER (PKCS #8), of RSA (2048 "
        "bits at least), ECDSA (P-256, P-384, P-521), Ed25519, Ed448 or, if `ike.experimental` has "
        "it, ML-DSA. A PKCS #12 file has our certificates, too, unless `cert` names others. "
        "`pkcs11:...` is a key on a token (RFC 7512, docs/tokens.md), and the certificates there.",
        "secret:gw1.key",
    )
    passphrase: Secret | None = _key(
        "What the key is encrypted with, or the PIN of its token.", "secret:gw1.passphrase"
    )
    rsa: Annotated[RsaSignature, _choice(RsaSignature)] | None = _key(
        "How an RSA key signs: `pss`, or `pkcs1` for peers that know nothing else. Default: `pss`.",
        "pkcs1",
    )
    cert: CertificateName | None = _key("The same as `cert` of the tunnel.", "gw1")
    null_auth: Switch | None = _key(
        "`yes`: we prove nothing and say no name (RFC 7619). Default: no.", "yes"
    )
    eap: OurEap | None = _key(
        "As whom we call a gateway that asks by EAP, in place of a key of ours.",
        {"identity": "carol", "password": "secret:carol"},
    )


class TheirAuthentication(Keys):
    """How the peer proves who it is."""

    id: PeerIdentity | None = _key("The same as `peer_id` of the tunnel.", "gw2.example.org")
    key: PublicKeyText | None = _key(
        "The public key that the peer signs with, in place of `psk`: base64 as `xfrmpy key show` "
        "shows it, or `file:/PATH` of one in PEM.",
        "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    )
    ca: CertificateName | None = _key("The same as `ca` of the tunnel.", "corp-root")
    revocation: Annotated[Strictness, _choice(Strictness)] | None = _key(
        "Whether the peer's certificate, and those above it, may be revoked. It is asked of the "
        "list beside `ca`, of the peer's OCSP answers, and of the OCSP responders and the lists "
        "that the certificates name (over http). `strict` refuses what is not known to be good, "
        "`soft` what is known to be revoked, and `off` asks nobody. Default: `soft`.",
        "strict",
    )
    hash_and_url: HttpHosts | None = _key(
        "The host, or a list of them, each with its port unless that is 80, from which "
        "certificates are fetched that the peer names by a hash and a URL in place of sending them "
        "(RFC 7296 section 3.6, over http). Left out: the peer has to send them.",
        "certs.example.org",
    )
    eap: TheirEap | None = _key(
        "Who may call and prove by EAP who it is, in place of a key of the peer's: of all these "
        "users each has IKE SAs of its own. There is no `peer` then.",
        {"users": "file:/etc/xfrmpy/users"},
    )
    cert: NotYet = None
    null_auth: Switch | None = _key(
        "`yes`: whoever calls from where `peer` says is let in, and proves nothing (RFC 7619): "
        "the packets are safe from those who only listen. Default: no.",
        "yes",
    )


class FurtherAuthentication(Keys):
    """Who proves itself once more, and how."""

    local: OurAuthentication | None = _key(
        "Our end, if it does so: a `cert`, a `key`, or, last of all, `eap`.",
        {"eap": {"identity": "carol", "password": "secret:carol"}},
    )
    remote: TheirAuthentication | None = _key(
        "The peer's end, if it does so: by a `ca`, a `key`, or, last of all, `eap`.",
        {"ca": "corp-root"},
    )


class Authentication(Keys):
    """Who proves what, and how."""

    psk: Secret | None = _key(
        "The same as `psk` of the tunnel; of an end that has a `key` it proves nothing.",
        "secret:office",
    )
    local: OurAuthentication | None = _key("Our end.", {"id": "gw1.example.net"})
    remote: TheirAuthentication | None = _key("The peer's end.", {"id": "gw2.example.org"})
    then: (
        Annotated[
            list[FurtherAuthentication],
            BeforeValidator(
                values.as_list_of_maps,
                json_schema_input_type=FurtherAuthentication | list[FurtherAuthentication],
            ),
        ]
        | None
    ) = _key(
        "By what the ends prove themselves once more, behind that (RFC 4739): a certificate of the "
        "host and then a user's password, or two certificates. A map, or a list of one for each "
        "further round.",
        {"local": {"eap": {"identity": "carol", "password": "secret:carol"}}},
    )


class Child(Keys):
    """One Child SA."""

    local: Selectors | None = _key("Traffic of our side, as `local` of the tunnel.", "10.1.0.0/16")
    remote: Selectors | None = _key(
        "Traffic of the peer's side, as `remote` of the tunnel.", "10.2.0.0/16"
    )
    lifetime: Lifetime | None = _key("As `lifetime` of the tunnel, for this Child SA.", "30m")
    inactivity: Lifetime | None = _key("As `inactivity` of the tunnel, for this Child SA.", "10m")
    per_resource: Resources | None = _key("As `per_resource` of the tunnel, for this Child SA.", 4)
    priority: Priority | None = _key("As `priority` of the tunnel, for this Child SA.", 500)
    mark: SomeMark | None = _key("As `mark` of the tunnel, for this Child SA.", 42)
    mark_out: SomeMark | None = _key("As `mark_out` of the tunnel, for this Child SA.", 42)
    mark_in: SomeMark | None = _key("As `mark_in` of the tunnel, for this Child SA.", "0x20/0xf0")
    mark_set: OuterMark | None = _key("As `mark_set` of the tunnel, for this Child SA.", "0x20000")
    traffic: NotYet = None


class ShuntKeys(Keys):
    """Traffic that passes in clear or not at all, whatever tunnels say."""

    action: (
        Annotated[
            str,
            PlainValidator(values.parse_shunt_action),
            WithJsonSchema({"enum": ["bypass", "drop"]}),
        ]
        | None
    ) = _key("`bypass`: it passes in clear; `drop`: it does not pass, in either direction.", "drop")
    local: Selectors | None = _key(
        "Traffic of our side, as `local` of a tunnel. Default: any.", "10.1.0.0/16"
    )
    remote: Selectors | None = _key(
        "Traffic of the other side, as `remote` of a tunnel.", ["10.0.0.0/8", "0.0.0.0/0[tcp/25]"]
    )
    priority: Priority | None = _key(
        "Which comes first, 1 to 1000000, the lower. Default: before every tunnel, and of shunts "
        "the more specific first (17136 to 50000; tunnels are 67136 to 100000).",
        200000,
    )
    default: (
        Annotated[
            tuple[PolicyDirection, ...],
            PlainValidator(values.parse_default_directions),
            WithJsonSchema(
                {"type": "array", "items": {"enum": [*values.DEFAULT_DIRECTIONS]}, "minItems": 1}
            ),
        ]
        | None
    ) = _key(
        "With `action: drop`, in the place of `local`, `remote` and `priority`: it is about all "
        "that no tunnel and no other shunt is about, in these directions. It is the kernel's "
        "default policy.",
        ["in", "out", "forward"],
    )


class RadiusServerKeys(Keys):
    """A server of RADIUS."""

    address: Address | None = _key("Its address.", "192.0.2.10")
    port: UdpPort | None = _key("Where it takes Access-Requests. Default: 1812.", 1645)
    accounting_port: UdpPort | None = _key(
        "Where it takes Accounting-Requests. Default: 1813.", 1646
    )
    secret: Secret | None = _key("As `secret` of all, for this server.", "secret:radius-2")


class RadiusKeys(Keys):
    """Servers of RADIUS that know the same users."""

    servers: (
        Annotated[
            list[Annotated[RadiusServerKeys, BeforeValidator(values.as_radius_server)]],
            BeforeValidator(
                values.as_list_of_maps,
                json_schema_input_type=str | RadiusServerKeys | list[str | RadiusServerKeys],
            ),
        ]
        | None
    ) = _key(
        "Their addresses, or a map for each, in the order in which they are asked.",
        ["192.0.2.10", "192.0.2.11"],
    )
    secret: Secret | None = _key("What we share with them, by reference.", "secret:radius")
    timeout: (
        Annotated[float, PlainValidator(partial(values.parse_duration, 0.1, 60)), _Time] | None
    ) = _key("Wait before a request is sent again; each wait doubles. Default: 2s.", "1s")
    tries: (
        Annotated[
            int,
            PlainValidator(partial(values.parse_whole_number, 1, 10)),
            WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 10}),
        ]
        | None
    ) = _key("How often a server is asked before the next one is. Default: 3.", 2)
    accounting: Switch | None = _key(
        "Whether they are told of each session: its begin, its end, and what it has carried. "
        "Default: no.",
        "yes",
    )
    interim: (
        Annotated[float, PlainValidator(partial(values.parse_duration_or_off, 60, 86400)), _Time]
        | None
    ) = _key(
        "How often they are told how a session goes, or `off`. Default: as they say when they let "
        "a user in.",
        "10m",
    )
    nas_id: ShortText | None = _key(
        "What we call ourselves to them (NAS-Identifier). Default: as the user knows us.",
        "gw1.example.net",
    )


class InterfaceSettings(Keys):
    """The network device of a route-based tunnel."""

    address: (
        Annotated[
            list[Annotated[InterfaceAddress, PlainValidator(values.parse_interface_address)]],
            _OneOrMore,
            _TextOrList,
        ]
        | None
    ) = _key(
        "Addresses of the interface, with the length of the prefix on its link.",
        ["169.254.10.1/30", "fd00:10::1/64"],
    )
    name: Device | None = _key(
        "What it is called. Default: as the tunnel, or what of its name fits.", "dc-east"
    )
    mtu: (
        Annotated[
            int,
            PlainValidator(partial(values.parse_whole_number, 576, 65535)),
            WithJsonSchema({"type": "integer", "minimum": 576, "maximum": 65535}),
        ]
        | None
    ) = _key("Its MTU. Default: what fits through the tunnel in one packet.", 1400)
    vrf: Device | None = _key("The VRF that it belongs to, which must be there.", "customers")
    namespace: Annotated[str, PlainValidator(values.parse_name), _Text] | None = _key(
        "The network namespace that it is moved to, as `ip netns` names it; the tunnel's own "
        "packets stay outside.",
        "inside",
    )
    routes: (
        Annotated[
            list[Annotated[IpNetwork, PlainValidator(values.parse_network)]],
            _OneOrMore,
            _TextOrList,
        ]
        | None
    ) = _key(
        "Prefixes that are routed into it, in the main table, or that of its VRF.",
        ["10.2.0.0/16"],
    )
    if_id: (
        Annotated[
            int,
            PlainValidator(values.parse_if_id),
            WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 0xFFFFFFFF}),
        ]
        | None
    ) = _key(
        "The number that ties SAs and policies to it, needed only where somebody else makes the "
        "interface. Default: one of our own.",
        42,
    )


class PpkSettings(Keys):
    """A post-quantum preshared key."""

    secret: Secret | None = _key("The key by reference, as `psk`.", "secret:office-ppk")
    id: Annotated[str, PlainValidator(values.parse_ppk_id), _Text] | None = _key(
        "The name by which both ends know it, or `0x` and hex. Default: what `secret:` names.",
        "office-2026",
    )
    required: Switch | None = _key(
        "Whether a peer without it is refused. Default: no: the tunnel comes up without.", "yes"
    )


class Retransmit(Keys):
    """When an unanswered request is sent again."""

    tries: (
        Annotated[
            int,
            PlainValidator(partial(values.parse_whole_number, 0, 30)),
            WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 30}),
        ]
        | None
    ) = _key("How often, before the peer is given up. Default: 5.", 8)
    initial: (
        Annotated[float, PlainValidator(partial(values.parse_duration, 0.1, 60)), _Time] | None
    ) = _key("Wait before the first time. Default: 1s.", "500ms")
    factor: (
        Annotated[float, PlainValidator(partial(values.parse_number, 1, 10)), _Number] | None
    ) = _key("How much longer each wait is than the one before. Default: 2.", 1.8)
    jitter: (
        Annotated[float, PlainValidator(partial(values.parse_number, 0, 0.9)), _Number] | None
    ) = _key("Random part of each wait, 0 to 0.9. Default: 0.1.", 0.2)


class Tunnel(Keys):
    """One tunnel, or a file that is one."""

    peer: Peers | None = _key(
        "The peer's address or host name, or a list to try in turn. Left out: any peer may call.",
        "vpn.example.org",
    )
    peer_port: (
        Annotated[
            int,
            PlainValidator(values.parse_peer_port),
            WithJsonSchema(
                {"type": "integer", "minimum": 1, "maximum": 65535, "not": {"const": 500}}
            ),
        ]
        | None
    ) = _key(
        "The UDP port on which the peer takes IKE, and ESP in UDP. Default: 500, and 4500 where "
        "there is a NAT.",
        4510,
    )
    id: SomeIdentity | None = _key("Who we say we are. Default: our address.", "gw1.example.net")
    peer_id: PeerIdentity | None = _key(
        "Who the peer must prove to be. Default: what `peer` says, if that is one. With `ca` it "
        "may stand for many: `*.example.net`, `*@example.net`, or `O=Example, CN=*`.",
        "gw2.example.org",
    )
    psk: Secret | None = _key(
        "Pre-shared key by reference: `secret:NAME`, `file:/PATH`, or systemd's `credential:NAME`.",
        "secret:office",
    )
    ppk: (
        Annotated[
            list[Annotated[PpkSettings, BeforeValidator(values.as_ppk_settings)]],
            BeforeValidator(
                values.as_list_of_maps,
                json_schema_input_type=str | PpkSettings | list[str | PpkSettings],
            ),
        ]
        | None
    ) = _key(
        "Post-quantum preshared key beside `psk` (RFC 8784): a reference, a map, or a list of "
        "which the first is the one that we name, and the peer may name any.",
        "secret:office-ppk",
    )
    auth: Authentication | None = _key(
        "Who proves what, and how: in place of `psk`, `id` and `peer_id`.",
        {"psk": "secret:office"},
    )
    local: Selectors | None = _key(
        "Traffic of our side: prefixes or ranges, with `[PROTOCOL/PORT]` behind if wanted.",
        "10.1.0.0/16",
    )
    remote: Selectors | None = _key(
        "Traffic of the peer's side, written as `local`.", ["10.2.0.0/16", "10.3.0.1[tcp/443]"]
    )
    children: dict[Name, Child] | None = _key(
        "`local` and `remote` by name: a Child SA for each. The first comes with the IKE SA.",
        {"lan": {"local": "10.1.0.0/16", "remote": "10.2.0.0/16"}},
    )
    lifetime: Lifetime | None = _key(
        "How long a Child SA may live; it is rekeyed ahead, or `off`. Default: 1h.", "30m"
    )
    inactivity: Lifetime | None = _key(
        "After what time without traffic a Child SA is deleted, or `off`. Default: off.", "10m"
    )
    per_resource: Resources | None = _key(
        "Whether each worker of the userspace datapath (`xfrmpy daemon --workers`), or each CPU of "
        "a kernel that has SAs of one CPU (Linux 6.13), gets a Child SA with the same traffic, so "
        "that one tunnel uses every core, if the peer agrees (RFC 9611): `auto`, as many as "
        "workers at either end, or as CPUs and one of no CPU; a number, so many at most; `off`. "
        "Default: off.",
        "auto",
    )
    priority: Priority | None = _key(
        "Which traffic comes first where several tunnels or shunts could have it, 1 to 1000000, "
        "the lower. Default: the more specific (67136 to 100000).",
        500,
    )
    mark: SomeMark | None = _key(
        "`mark_out` and `mark_in` in one: packets with this mark are the tunnel's, and get it when "
        "they come out of it. VALUE or VALUE/MASK.",
        42,
    )
    mark_out: SomeMark | None = _key(
        "Only packets that leave with this mark are the tunnel's. Default: any, marked or not.",
        "0x2a/0xff",
    )
    mark_in: SomeMark | None = _key(
        "The mark that packets get when they come out of the tunnel. Default: they keep theirs.",
        "0x2a/0xff",
    )
    mark_set: OuterMark | None = _key(
        "The mark of the ESP or AH packets that leave, in the upper 16 bits, for rules of routing "
        "to lead them by. VALUE or VALUE/MASK. Default: none beside xfrmpy's own.",
        "0x10000",
    )
    local_address: Address | None = _key(
        "Which of our addresses to use. Default: the one that the route to the peer takes.",
        "198.51.100.4",
    )
    ike: (
        Annotated[
            IkeSettings,
            BeforeValidator(
                values.as_suite_settings, json_schema_input_type=str | list[str] | IkeSettings
            ),
        ]
        | None
    ) = _key("How IKE is protected: a profile, a proposal, a list of them, or a map.", "compat")
    esp: (
        Annotated[
            EspSettings,
            BeforeValidator(
                values.as_suite_settings, json_schema_input_type=str | list[str] | EspSettings
            ),
        ]
        | None
    ) = _key("How packets are protected, written as `ike`.", "aes256gcm16")
    ah: (
        Annotated[
            AhSettings,
            BeforeValidator(
                values.as_suite_settings, json_schema_input_type=str | list[str] | AhSettings
            ),
        ]
        | None
    ) = _key(
        "In place of `esp`: packets are authenticated with their headers, and not encrypted (RFC "
        "4302). Not through a NAT.",
        "sha256",
    )
    mode: Annotated[Mode, _choice(Mode)] | None = _key(
        "`tunnel`, or `transport`: the traffic of the two ends themselves, of which `local` and "
        "`remote` may leave out some; or `beet`: a tunnel from one address to another without "
        "inner headers, as strongSwan has it (kernel datapath); or `iptfs`: a tunnel that hides "
        "the sizes of packets by putting them together and apart (RFC 9347; kernels that have "
        "it, from Linux 6.14). Default: `tunnel`.",
        "transport",
    )
    start: Annotated[StartMode, _choice(StartMode)] | None = _key(
        "`auto`: with the daemon; `on-demand`: by the first packet for it; `manual`: by "
        "`xfrmpy up`; `listen`: by the peer alone. "
        "Default: `manual`, or `listen` without a `peer`.",
        "auto",
    )
    datapath: Annotated[DatapathChoice, _choice(DatapathChoice)] | None = _key(
        "Who moves the packets: `kernel`, `userspace`, or `auto`: the kernel if it can. "
        "Default: `auto`.",
        "userspace",
    )
    encapsulation: Annotated[Encapsulation, _choice(Encapsulation)] | None = _key(
        "ESP in UDP: `nat`, behind a NAT only; `force`, always; `auto`, as `nat` on the kernel "
        "datapath and as `force` on the userspace one, which has to have CAP_NET_RAW for `nat`. "
        "Default: `auto`.",
        "force",
    )
    fragmentation: Switch | None = _key(
        "Large IKE messages go in parts that need no IP fragments, if the peer can: `yes` or `no`. "
        "Default: `yes`.",
        "no",
    )
    dpd: (
        Annotated[float, PlainValidator(partial(values.parse_duration_or_off, 1, 86400)), _Time]
        | None
    ) = _key(
        "Silence after which the peer is asked whether it lives, or `off`; three times that where "
        "nothing is sent to it. Default: 30s.",
        "10s",
    )
    nat_keepalive: (
        Annotated[float, PlainValidator(partial(values.parse_duration_or_off, 1, 3600)), _Time]
        | None
    ) = _key(
        "Silence of ours after which a NAT before us is reminded of its mapping, or `off`. "
        "Default: 20s.",
        "15s",
    )
    retransmission: Retransmit | None = _key(
        "When an unanswered request is sent again.", {"tries": 8}
    )
    crash_detection: Switch | None = _key(
        "Whether the two ends give each other a token by which one that lost its state proves it "
        "(RFC 6290). `no` where several gateways share an address and a runtime directory. "
        "Default: yes.",
        "no",
    )
    unique: Annotated[Uniqueness, _choice(Uniqueness)] | None = _key(
        "Several IKE SAs between the same two identities: `no`, an old one ends at once if the "
        "peer says that it began anew, else a surplus one within seconds; `never`, all may stay; "
        "`keep`, a second one is refused; `replace`, the second one ends the first at once, so a "
        "peer that authenticates anew loses packets. Default: `no`.",
        "replace",
    )
    resumption: Switch | None = _key(
        "Whether a lost IKE SA may be made again from the old one's keys, without a key exchange "
        "(RFC 5723): quicker, with no forward secrecy between the two. We ask the peer for tickets "
        "and give it ours. Default: no.",
        "yes",
    )
    childless: Switch | None = _key(
        "Whether we make the IKE SA first and its Child SA then, with a key exchange of its own if "
        "`esp` names one (RFC 6023), where the peer knows of that. Default: no.",
        "yes",
    )
    redirect: Switch | None = _key(
        "Whether we go where the peer redirects us (RFC 5685). The gateway there must prove the "
        "same `peer_id`. Default: yes.",
        "no",
    )
    redirect_to: Annotated[str, PlainValidator(values.parse_peer), _Text] | None = _key(
        "The gateway, by address or name, to which peers that call this tunnel are redirected, if "
        "they can be; those that have come to that very address are served.",
        "vpn2.example.org",
    )
    on_down: Annotated[OnDown, _choice(OnDown)] | None = _key(
        "What becomes of the traffic that no SA carries: `block`, never in clear, from boot on and "
        "whatever becomes of the daemon; or `clear`, where the routes lead. Default: `block`; "
        "`clear` in transport mode with a peer whose address is not written, and where an "
        "`interface` says neither `routes` nor what is `remote`: only what enters it is safe.",
        "clear",
    )
    interface: (
        Annotated[
            InterfaceSettings,
            BeforeValidator(
                values.as_interface_settings,
                json_schema_input_type=str | list[str] | InterfaceSettings,
            ),
        ]
        | None
    ) = _key(
        "The tunnel has a network device, and routes say what it carries: its address, a list of "
        "them, or a map. `local` and `remote` may then be left out: everything. It is there as "
        "long as the tunnel is in the policy, up or down, and removed with it; one that somebody "
        "else made, of the same `if_id`, is used and left.",
        "169.254.10.1/30",
    )
    cert: CertificateName | None = _key(
        "The certificate by which we prove who we are, in place of `psk`: NAME is "
        "`/etc/xfrmpy/certs/NAME.pem`, our own first and then the intermediate ones, with the key "
        "`/etc/xfrmpy/keys/NAME.key` (or `auth: {local: {key: ...}}`); or `file:/PATH`. Without "
        "`id` we are who it says first.",
        "gw1",
    )
    ca: CertificateName | None = _key(
        "The authorities of which one must have issued the peer's certificate, in place of `psk`, "
        "and no others: NAME is `/etc/xfrmpy/cas/NAME.pem`; or `file:/PATH`.",
        "corp-root",
    )
    traffic: NotYet = None


class PolicyFile(Keys):
    """The long form of a file."""

    tunnels: dict[Name, Tunnel] | None = _key(
        "The tunnels by name.", {"office": {"peer": "vpn.example.org"}}
    )
    defaults: Tunnel | None = _key(
        "Keys that every tunnel of this file has unless it gives its own.", {"dpd": "10s"}
    )
    shunts: dict[Name, ShuntKeys] | None = _key(
        "Traffic that passes in clear, or not at all, by name.",
        {"printers": {"action": "bypass", "remote": "10.1.7.0/24"}},
    )
    radius: dict[Name, RadiusKeys] | None = _key(
        "Servers of RADIUS that know users, by the name of their group, for tunnels of any file.",
        {"corp": {"servers": "192.0.2.10", "secret": "secret:radius"}},
    )
    gateways: NotYet = None


Model = TypeVar("Model", bound=Keys)


def validate(model: type[Model], node: Node, findings: Findings) -> Model | None:
    """The keys of a map, parsed; or None, with an error for each thing that is wrong."""
    try:
        return model.model_validate(node.plain())
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False)[:MAX_FINDINGS]:
            _report(model, node, detail, findings)
    return None


def json_schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) of a policy file in either form."""
    schema = TypeAdapter(Union[PolicyFile, Tunnel]).json_schema()  # noqa: UP007
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def keys_of(model: type[Keys]) -> list[str]:
    """The keys that can be given now."""
    return [name for name, field in model.model_fields.items() if not is_future(field)]


def is_future(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is None and field.annotation is types.NoneType


def nested(field: FieldInfo) -> tuple[type[Keys] | None, bool]:
    """The model of a key that takes a map, and whether names of the operator's stand between."""
    parts = list(_parts(field.annotation))
    models = [part for part in parts if isinstance(part, type) and issubclass(part, Keys)]
    return (models[0] if models else None), dict in parts


def _parts(annotation: Any) -> Iterator[Any]:
    yield get_origin(annotation) or annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def _report(model: type[Keys], root: Node, detail: ErrorDetails, findings: Findings) -> None:
    path, code = detail["loc"], detail["type"]
    wrong_key = code == "XF1004" and path[-1:] == ("[key]",)  # pydantic's mark for a map's key
    path = path[:-1] if wrong_key else path
    node, depth = root.find(path)
    if findings.has("XF1001", node.mark):
        return  # what stands here was refused already
    names = [part for part in path[:depth] if isinstance(part, str)]
    subject = shown(names[-1]) if names else "the file"
    context = detail.get("ctx", {})
    match code:
        case "extra_forbidden":
            hint = _known_keys(_model_at(model, path[:-1]), str(path[-1]))
            findings.error("XF1002", node.key_mark, f"unknown key {subject}", hint)
        case "model_type" | "dict_type":
            problem = "has no value" if node.value is None else "must be a map of keys"
            findings.error("XF1004", node.mark, f"{subject} {problem}")
        case _:
            mark = node.key_mark if wrong_key or context["at_key"] else node.mark
            findings.error(code, mark, f"{subject} {context['message']}", context["hint"])


def _known_keys(model: type[Keys], key: str) -> str:
    known = keys_of(model)
    if model is PolicyFile and key in Tunnel.model_fields:
        return "a key of a tunnel belongs under tunnels: NAME:"
    few = f"known here: {', '.join(known)}" if len(known) < 8 else ""
    return values.nearest(key, known) or few


def _model_at(model: type[Keys], path: tuple[str | int, ...]) -> type[Keys]:
    parts = iter(part for part in path if isinstance(part, str))
    for part in parts:
        inner, named = nested(model.model_fields[part])
        if named:
            next(parts)
        model = inner or model
    return model
