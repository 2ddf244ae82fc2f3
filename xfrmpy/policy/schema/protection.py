"""`ike`, `esp` and `ah`: algorithms, lifetimes and how packets are made."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

from xfrmpy.ipsec.proposals import Proposal
from xfrmpy.ipsec.sad import DontFragment, Offload
from xfrmpy.policy import values
from xfrmpy.policy.model import Experiment, PostQuantum
from xfrmpy.policy.profiles import PROFILES
from xfrmpy.policy.schema.keys import Keys, described
from xfrmpy.policy.schema.types import (
    ONE_OR_MORE,
    TEXT_OR_LIST,
    Lifetime,
    Switch,
    choice,
    whole_number,
)
from xfrmpy.registry import ProtocolId

ProfileName = Annotated[
    str, PlainValidator(values.parse_profile), WithJsonSchema({"enum": [*PROFILES]})
]
IkeProposals = Annotated[
    list[Annotated[Proposal, PlainValidator(partial(values.parse_one_proposal, ProtocolId.IKE))]],
    ONE_OR_MORE,
    TEXT_OR_LIST,
]
EspProposals = Annotated[
    list[Annotated[Proposal, PlainValidator(partial(values.parse_one_proposal, ProtocolId.ESP))]],
    ONE_OR_MORE,
    TEXT_OR_LIST,
]
AhProposals = Annotated[
    list[Annotated[Proposal, PlainValidator(partial(values.parse_one_proposal, ProtocolId.AH))]],
    ONE_OR_MORE,
    TEXT_OR_LIST,
]


class IkeSettings(Keys):
    """How the IKE SA is protected."""

    profile: ProfileName | None = described(
        "Named set of algorithms, `modern` or `compat`; ESP follows it too. Default: `modern`.",
        "compat",
    )
    proposals: IkeProposals | None = described(
        "Algorithms in place of the profile's: one proposal, or a list with the best first. Weak "
        "ones need `profile: compat` beside them.",
        "aes256gcm16-prfsha384-x25519-ke1_mlkem768",
    )
    post_quantum: Annotated[PostQuantum, choice(PostQuantum)] | None = described(
        "`require`: only with ML-KEM, never with a classical key exchange alone; `off`: never with "
        "it. Default: `prefer`, which takes what comes first in `proposals` and suits the peer.",
        "require",
    )
    experimental: Annotated[Experiment, choice(Experiment)] | None = described(
        "`ml-dsa`: keys of ML-DSA may sign, by a draft that may yet change, so both ends should be "
        "of one version. Default: nothing of the kind.",
        "ml-dsa",
    )
    lifetime: Lifetime | None = described(
        "How long an IKE SA may live; it is rekeyed ahead, or `off`. Default: 4h.", "8h"
    )
    reauth: Lifetime | None = described(
        "After what time at most both ends prove again who they are, or `off`. Default: off.", "24h"
    )


class EspSettings(Keys):
    """How the packets are protected."""

    profile: ProfileName | None = described(
        "Named set of algorithms. Default: that of `ike`.",
        "compat",
    )
    proposals: EspProposals | None = described(
        "Algorithms in place of the profile's; `esn` is meant unless `noesn` is named. Weak ones "
        "need `profile: compat` beside them, or in `ike`.",
        "aes256-sha256-noesn",
    )
    replay_window: Annotated[int, whole_number(32, 4096)] | None = described(
        "How many packets may overtake one another, 32 to 4096. Default: 256.", 1024
    )
    offload: Annotated[Offload, choice(Offload)] | None = described(
        "`crypto` asks the network device to encrypt (kernel datapath). A refusal is told, and the "
        "kernel does it itself. Default: not asked.",
        "crypto",
    )
    ipcomp: Switch | None = described(
        "Whether packets are compressed before they are encrypted (RFC 3173, DEFLATE), if the peer "
        "agrees; beside `tfc` on the userspace datapath alone. How much smaller a packet gets "
        "tells of what is in it. Default: no.",
        "yes",
    )
    tfc: Annotated[int, whole_number(1, 65535)] | None = described(
        "Octets to which smaller packets are padded in tunnel mode to hide their size, as far as "
        "the path takes that and the peer accepts it. Refused on the kernel datapath while the "
        "module esp4_offload is loaded (`offload`): it pads nothing. Default: no padding.",
        1280,
    )
    copy_dscp: Switch | None = described(
        "Whether the outer packet has the inner one's DSCP. Default: yes.", "no"
    )
    restore_dscp: Switch | None = described(
        "Whether the inner packet gets the DSCP that the outer one arrives with. Default: no.",
        "yes",
    )
    copy_ecn: Switch | None = described(
        "Whether congestion on the way is told across the tunnel (RFC 6040). Default: yes.", "no"
    )
    dont_fragment: Annotated[DontFragment, choice(DontFragment)] | None = described(
        "DF of the outer IPv4 packet: `copy` the inner one's, `clear` it so that a narrow path may "
        "cut the packet, or `set` it (on the userspace datapath alone). Default: `copy` on the "
        "kernel datapath, which heeds what the path says of its MTU; `clear` on the userspace one.",
        "clear",
    )
    max_bytes: (
        Annotated[int, PlainValidator(values.parse_octets), WithJsonSchema({"type": "string"})]
        | None
    ) = described("How much an SA may carry; it is rekeyed ahead. Default: no limit.", "500GB")
    max_packets: (
        Annotated[
            int,
            PlainValidator(partial(values.parse_whole_number, 1000, 1 << 62)),
            WithJsonSchema({"type": "integer", "minimum": 1000}),
        ]
        | None
    ) = described(
        "How many packets an SA may carry. Default: no limit, or 4294967296 without `esn`.",
        1_000_000_000,
    )


class AhSettings(EspSettings):
    """How the packets are authenticated."""

    proposals: AhProposals | None = described(
        "Integrity algorithms in place of the profile's, written as those of `esp`.",
        "sha256-sha512",
    )
