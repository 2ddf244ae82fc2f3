"""A tunnel: the keys of its own, and the sections that stand in it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, PlainValidator, WithJsonSchema

from xfrmpy.ipsec.sad import Mode
from xfrmpy.policy import values
from xfrmpy.policy.model import DatapathChoice, Encapsulation, OnDown, StartMode, Uniqueness
from xfrmpy.policy.schema.authentication import Authentication, PpkSettings
from xfrmpy.policy.schema.children import Child
from xfrmpy.policy.schema.interface import InterfaceSettings
from xfrmpy.policy.schema.keys import Keys, NotYet, described
from xfrmpy.policy.schema.protection import AhSettings, EspSettings, IkeSettings
from xfrmpy.policy.schema.types import (
    ONE_OR_MORE,
    TEXT,
    TEXT_OR_LIST,
    Address,
    CertificateName,
    Lifetime,
    Name,
    OuterMark,
    PeerIdentity,
    Priority,
    Resources,
    Secret,
    Selectors,
    SomeIdentity,
    SomeMark,
    Switch,
    choice,
    duration,
    duration_or_off,
    number,
    whole_number,
)

Peers = Annotated[
    list[Annotated[str, PlainValidator(values.parse_peer)]], ONE_OR_MORE, TEXT_OR_LIST
]


class Retransmit(Keys):
    """When an unanswered request is sent again."""

    tries: Annotated[int, whole_number(0, 30)] | None = described(
        "How often, before the peer is given up. Default: 5.", 8
    )
    initial: Annotated[float, duration(0.1, 60)] | None = described(
        "Wait before the first time. Default: 1s.", "500ms"
    )
    factor: Annotated[float, number(1, 10)] | None = described(
        "How much longer each wait is than the one before. Default: 2.", 1.8
    )
    jitter: Annotated[float, number(0, 0.9)] | None = described(
        "Random part of each wait, 0 to 0.9. Default: 0.1.", 0.2
    )


class Tunnel(Keys):
    """One tunnel, or a file that is one."""

    peer: Peers | None = described(
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
    ) = described(
        "The UDP port on which the peer takes IKE, and ESP in UDP. Default: 500, and 4500 where "
        "there is a NAT.",
        4510,
    )
    id: SomeIdentity | None = described(
        "Who we say we are. Default: our address.", "gw1.example.net"
    )
    peer_id: PeerIdentity | None = described(
        "Who the peer must prove to be. Default: what `peer` says, if that is one. With `ca` it "
        "may stand for many: `*.example.net`, `*@example.net`, or `O=Example, CN=*`.",
        "gw2.example.org",
    )
    psk: Secret | None = described(
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
    ) = described(
        "Post-quantum preshared key beside `psk` (RFC 8784): a reference, a map, or a list of "
        "which the first is the one that we name, and the peer may name any.",
        "secret:office-ppk",
    )
    auth: Authentication | None = described(
        "Who proves what, and how: in place of `psk`, `id` and `peer_id`.",
        {"psk": "secret:office"},
    )
    local: Selectors | None = described(
        "Traffic of our side: prefixes or ranges, with `[PROTOCOL/PORT]` behind if wanted.",
        "10.1.0.0/16",
    )
    remote: Selectors | None = described(
        "Traffic of the peer's side, written as `local`.", ["10.2.0.0/16", "10.3.0.1[tcp/443]"]
    )
    children: dict[Name, Child] | None = described(
        "`local` and `remote` by name: a Child SA for each. The first comes with the IKE SA.",
        {"lan": {"local": "10.1.0.0/16", "remote": "10.2.0.0/16"}},
    )
    lifetime: Lifetime | None = described(
        "How long a Child SA may live; it is rekeyed ahead, or `off`. Default: 1h.", "30m"
    )
    inactivity: Lifetime | None = described(
        "After what time without traffic a Child SA is deleted, or `off`. Default: off.", "10m"
    )
    per_resource: Resources | None = described(
        "Whether each worker of the userspace datapath (`xfrmpy daemon --workers`), or each CPU of "
        "a kernel that has SAs of one CPU (Linux 6.13), gets a Child SA with the same traffic, so "
        "that one tunnel uses every core, if the peer agrees (RFC 9611): `auto`, as many as "
        "workers at either end, or as CPUs and one of no CPU; a number, so many at most; `off`. "
        "Default: off.",
        "auto",
    )
    priority: Priority | None = described(
        "Which traffic comes first where several tunnels or shunts could have it, 1 to 1000000, "
        "the lower. Default: the more specific (67136 to 100000).",
        500,
    )
    mark: SomeMark | None = described(
        "`mark_out` and `mark_in` in one: packets with this mark are the tunnel's, and get it when "
        "they come out of it. VALUE or VALUE/MASK.",
        42,
    )
    mark_out: SomeMark | None = described(
        "Only packets that leave with this mark are the tunnel's. Default: any, marked or not.",
        "0x2a/0xff",
    )
    mark_in: SomeMark | None = described(
        "The mark that packets get when they come out of the tunnel. Default: they keep theirs.",
        "0x2a/0xff",
    )
    mark_set: OuterMark | None = described(
        "The mark of the ESP or AH packets that leave, in the upper 16 bits, for rules of routing "
        "to lead them by. VALUE or VALUE/MASK. Default: none beside xfrmpy's own.",
        "0x10000",
    )
    local_address: Address | None = described(
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
    ) = described(
        "How IKE is protected: a profile, a proposal, a list of them, or a map.", "compat"
    )
    esp: (
        Annotated[
            EspSettings,
            BeforeValidator(
                values.as_suite_settings, json_schema_input_type=str | list[str] | EspSettings
            ),
        ]
        | None
    ) = described("How packets are protected, written as `ike`.", "aes256gcm16")
    ah: (
        Annotated[
            AhSettings,
            BeforeValidator(
                values.as_suite_settings, json_schema_input_type=str | list[str] | AhSettings
            ),
        ]
        | None
    ) = described(
        "In place of `esp`: packets are authenticated with their headers, and not encrypted (RFC "
        "4302). Not through a NAT.",
        "sha256",
    )
    mode: Annotated[Mode, choice(Mode)] | None = described(
        "`tunnel`, or `transport`: the traffic of the two ends themselves, of which `local` and "
        "`remote` may leave out some; or `beet`: a tunnel from one address to another without "
        "inner headers, as strongSwan has it (kernel datapath); or `iptfs`: a tunnel that hides "
        "the sizes of packets by putting them together and apart (RFC 9347; kernels that have "
        "it, from Linux 6.14). Default: `tunnel`.",
        "transport",
    )
    start: Annotated[StartMode, choice(StartMode)] | None = described(
        "`auto`: with the daemon; `on-demand`: by the first packet for it; `manual`: by "
        "`xfrmpy up`; `listen`: by the peer alone. "
        "Default: `manual`, or `listen` without a `peer`.",
        "auto",
    )
    datapath: Annotated[DatapathChoice, choice(DatapathChoice)] | None = described(
        "Who moves the packets: `kernel`, `userspace`, or `auto`: the kernel if it can. "
        "Default: `auto`.",
        "userspace",
    )
    encapsulation: Annotated[Encapsulation, choice(Encapsulation)] | None = described(
        "ESP in UDP: `nat`, behind a NAT only; `force`, always; `auto`, as `nat` on the kernel "
        "datapath and as `force` on the userspace one, which has to have CAP_NET_RAW for `nat`. "
        "Default: `auto`.",
        "force",
    )
    fragmentation: Switch | None = described(
        "Large IKE messages go in parts that need no IP fragments, if the peer can: `yes` or `no`. "
        "Default: `yes`.",
        "no",
    )
    dpd: Annotated[float, duration_or_off(1, 86400)] | None = described(
        "Silence after which the peer is asked whether it lives, or `off`; three times that where "
        "nothing is sent to it. Default: 30s.",
        "10s",
    )
    nat_keepalive: Annotated[float, duration_or_off(1, 3600)] | None = described(
        "Silence of ours after which a NAT before us is reminded of its mapping, or `off`. "
        "Default: 20s.",
        "15s",
    )
    retransmission: Retransmit | None = described(
        "When an unanswered request is sent again.", {"tries": 8}
    )
    crash_detection: Switch | None = described(
        "Whether the two ends give each other a token by which one that lost its state proves it "
        "(RFC 6290). `no` where several gateways share an address and a runtime directory. "
        "Default: yes.",
        "no",
    )
    unique: Annotated[Uniqueness, choice(Uniqueness)] | None = described(
        "Several IKE SAs between the same two identities: `no`, an old one ends at once if the "
        "peer says that it began anew, else a surplus one within seconds; `never`, all may stay; "
        "`keep`, a second one is refused; `replace`, the second one ends the first at once, so a "
        "peer that authenticates anew loses packets. Default: `no`.",
        "replace",
    )
    resumption: Switch | None = described(
        "Whether a lost IKE SA may be made again from the old one's keys, without a key exchange "
        "(RFC 5723): quicker, with no forward secrecy between the two. We ask the peer for tickets "
        "and give it ours. Default: no.",
        "yes",
    )
    childless: Switch | None = described(
        "Whether we make the IKE SA first and its Child SA then, with a key exchange of its own if "
        "`esp` names one (RFC 6023), where the peer knows of that. Default: no.",
        "yes",
    )
    redirect: Switch | None = described(
        "Whether we go where the peer redirects us (RFC 5685). The gateway there must prove the "
        "same `peer_id`. Default: yes.",
        "no",
    )
    redirect_to: Annotated[str, PlainValidator(values.parse_peer), TEXT] | None = described(
        "The gateway, by address or name, to which peers that call this tunnel are redirected, if "
        "they can be; those that have come to that very address are served.",
        "vpn2.example.org",
    )
    on_down: Annotated[OnDown, choice(OnDown)] | None = described(
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
    ) = described(
        "The tunnel has a network device, and routes say what it carries: its address, a list of "
        "them, or a map. `local` and `remote` may then be left out: everything. It is there as "
        "long as the tunnel is in the policy, up or down, and removed with it; one that somebody "
        "else made, of the same `if_id`, is used and left.",
        "169.254.10.1/30",
    )
    cert: CertificateName | None = described(
        "The certificate by which we prove who we are, in place of `psk`: NAME is "
        "`/etc/xfrmpy/certs/NAME.pem`, our own first and then the intermediate ones, with the key "
        "`/etc/xfrmpy/keys/NAME.key` (or `auth: {local: {key: ...}}`); or `file:/PATH`. Without "
        "`id` we are who it says first.",
        "gw1",
    )
    ca: CertificateName | None = described(
        "The authorities of which one must have issued the peer's certificate, in place of `psk`, "
        "and no others: NAME is `/etc/xfrmpy/cas/NAME.pem`; or `file:/PATH`.",
        "corp-root",
    )
    traffic: NotYet = None
