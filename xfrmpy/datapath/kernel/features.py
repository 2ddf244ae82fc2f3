"""What only some kernels can do with an SA or a policy: each is tried, and says why it cannot.

A kernel passes over attributes that it does not know, so an SA with the attribute is put in force,
read back, and removed. What is no attribute is asked for in a way that changes nothing. What makes
a feature of use to a tunnel is elsewhere; docs/datapaths.md says which of them xfrmpy uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from errno import EINVAL, ENOPROTOOPT
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET
from typing import Any

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.kernel import sad
from xfrmpy.datapath.kernel.messages import Attribute, MessageType
from xfrmpy.datapath.netlink.messages import Message, Values
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request
from xfrmpy.ipsec.algorithms import CIPHERS
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import OUR_REQIDS, Direction, SadEntry, UdpEncapsulation

SPI = 0x5846FFFE

PER_CPU = "SAs of one CPU (RFC 9611)"

_IPTFS = 5  # XFRM_MODE_IPTFS
_DONT_ENCAP_DSCP, _OSEQ_MAY_WRAP = 1, 2  # XFRM_SA_XFLAG_*


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """`attributes` and `body` are what an SA has by it; `needs` what else it wants beside."""

    since: str
    attributes: Mapping[int, Any] = field(default_factory=dict)
    body: Mapping[str, int] = field(default_factory=dict)
    needs: Mapping[int, Any] = field(default_factory=dict)
    direction: Direction = Direction.OUT


def _number(value: int) -> Values:
    return {"value": value}


_OUTBOUND: dict[int, Any] = {Attribute.SA_DIR: _number(sad.SA_OUT)}
_INBOUND: dict[int, Any] = {Attribute.SA_DIR: _number(sad.SA_IN)}

FEATURES: dict[str, Feature] = {
    "marks": Feature(since="2.6.34", attributes={Attribute.MARK: {"v": 5, "m": 0xFF}}),
    "TFC padding": Feature(since="2.6.38", attributes={Attribute.TFCPAD: _number(1400)}),
    "DSCP not copied": Feature(
        since="3.10", attributes={Attribute.SA_EXTRA_FLAGS: _number(_DONT_ENCAP_DSCP)}
    ),
    "masked output marks": Feature(
        since="4.19", attributes={Attribute.SET_MARK_MASK: _number(0xFFFF)}
    ),
    "interface ids": Feature(since="4.19", attributes={Attribute.IF_ID: _number(7)}),
    "sequence numbers that wrap": Feature(
        since="5.9", attributes={Attribute.SA_EXTRA_FLAGS: _number(_OSEQ_MAY_WRAP)}
    ),
    "mapping changes told rarely": Feature(
        since="5.17",
        attributes={Attribute.MTIMER_THRESH: _number(10)},
        direction=Direction.IN,
    ),
    "SAs of one direction": Feature(since="6.10", attributes=_OUTBOUND),
    "NAT keepalives by the kernel": Feature(
        since="6.11",
        attributes={Attribute.NAT_KEEPALIVE_INTERVAL: _number(20)},
        needs=_OUTBOUND,
    ),
    PER_CPU: Feature(since="6.13", attributes={Attribute.SA_PCPU: _number(0)}, needs=_OUTBOUND),
    "IP-TFS (RFC 9347)": Feature(
        since="6.14",
        attributes={
            Attribute.IPTFS_PKT_SIZE: _number(1400),
            Attribute.IPTFS_MAX_QSIZE: _number(1 << 20),
            Attribute.IPTFS_INIT_DELAY: _number(100),
            Attribute.IPTFS_DONT_FRAG: {},
        },
        body={"mode": _IPTFS},
        needs=_OUTBOUND,
    ),
    "IP-TFS, received": Feature(
        since="6.14",
        attributes={
            Attribute.IPTFS_DROP_TIME: _number(1000),
            Attribute.IPTFS_REORDER_WINDOW: _number(3),
        },
        body={"mode": _IPTFS},
        needs=_INBOUND,
        direction=Direction.IN,
    ),
}
"""Those of an SA, by the names of docs/datapaths.md."""

OTHERS = {
    "events of replay and lifetime (NEWAE)": "2.6.17",
    "migration (MIGRATE)": "2.6.21",
    "default policy (SETDEFAULT)": "5.15",
}
"""What is no attribute of an SA, and since when."""


def pads() -> bool:
    """Whether the kernel heeds XFRMA_TFCPAD: where its offload is loaded it does not, for no SA
    ("TFC padding" in esp4_offload.c and esp6_offload.c of Linux)."""
    return not any(Path("/sys/module", f"esp{v}_offload").exists() for v in (4, 6))


def probe_features(requests: NetlinkSocket) -> dict[str, str]:
    """For each feature the sentence why it cannot be used; an empty one if it can.

    Offload is not tried: it would load what `pads` looks for.
    """
    found = {"migration (MIGRATE)": _try_migrate(requests)}
    found["default policy (SETDEFAULT)"] = _try_default(requests)
    try:
        _put_and_read(requests, sample(Feature(since="")), "an SA")
    except DatapathError:
        unknown = dict.fromkeys([*FEATURES, *OTHERS], "this kernel has no ESP to try it with")
        return unknown | found
    found |= {name: _try(requests, name, feature) for name, feature in FEATURES.items()}
    found["events of replay and lifetime (NEWAE)"] = _try_newae(requests)
    return {name: found[name] for name in (*FEATURES, *OTHERS)}


def _try(requests: NetlinkSocket, name: str, feature: Feature) -> str:
    """Put an SA with it in force, and look whether it is still there when it is read back."""
    try:
        taken = _put_and_read(requests, sample(feature), name)
    except DatapathError as error:
        return f"since Linux {feature.since}: {error}"
    keeps = all(taken.body[name] == value for name, value in feature.body.items())
    if keeps and all(taken.attributes.get(n) == v for n, v in feature.attributes.items()):
        return ""
    return f"since Linux {feature.since}: this kernel passes over it"


def sample(feature: Feature, attributes: Mapping[int, Any] | None = None) -> Message:
    """A throw-away SA with a feature."""
    message = sad.encode_sa(_entry(feature.direction))
    more = {**feature.needs, **feature.attributes, **(attributes or {})}
    return Message(
        type=message.type,
        body={**message.body, **feature.body},
        attributes={**message.attributes, **more},
    )


def _put_and_read(requests: NetlinkSocket, message: Message, name: str) -> Message:
    what = f"use {name}"
    sa = _entry(Direction.OUT).id
    delete = Request(sad.encode_sa_id(sa, MessageType.DELSA), what)
    requests.exchange([delete])  # if a probe was killed
    requests.ask(Request(message, what, create=True))
    try:
        get = Request(sad.encode_sa_id(sa, MessageType.GETSA), what)
        get.message.attributes.update(_looked_up_by(message))
        (taken,) = requests.ask(get)
    finally:
        delete.message.attributes.update(_looked_up_by(message))
        requests.exchange([delete])
    return taken


def _looked_up_by(message: Message) -> dict[int, Any]:
    """An SA with a mark is found by that mark only."""
    return {n: v for n, v in message.attributes.items() if n == Attribute.MARK}


def _entry(direction: Direction) -> SadEntry:
    cipher = next(c for c in CIPHERS if c.name == "aes128gcm16")
    return SadEntry(
        direction=direction,
        spi=SPI,
        source=ip_address("192.0.2.1"),  # RFC 5737: nobody's
        destination=ip_address("192.0.2.2"),
        reqid=OUR_REQIDS[-1],
        suite=EspSuite(cipher=cipher, integrity=None, esn=False),
        encryption_key=bytes(range(cipher.keymat)),
        encapsulation=UdpEncapsulation(4500, 4500),
        replay_window=0 if direction is Direction.OUT else 32,
    )


def _try_newae(requests: NetlinkSocket) -> str:
    """Whether an SA tells its replay state and lifetime (GETAE)."""
    what = "read the replay state of an SA"
    message = sad.encode_sa(_entry(Direction.OUT))
    sa = _entry(Direction.OUT).id
    delete = Request(sad.encode_sa_id(sa, MessageType.DELSA), what)
    body = sad.encode_sa_id(sa, MessageType.GETSA).body
    get = Message(type=MessageType.GETAE, body={f"sa_{name}": v for name, v in body.items()})
    try:
        requests.ask(Request(message, what, create=True))
        (told,) = requests.ask(Request(get, what))
    except DatapathError as error:
        return str(error)
    finally:
        requests.exchange([delete])
    return "" if Attribute.LTIME_VAL in told.attributes else "this kernel does not tell lifetimes"


def _try_migrate(requests: NetlinkSocket) -> str:
    """One that names nothing to be migrated is refused by a kernel that can, too: otherwise."""
    request = Request(Message(type=MessageType.MIGRATE, body={"sel_family": AF_INET}), "migrate")
    (reply,) = requests.exchange([request])
    code = None if reply.error is None else reply.error.errno
    return "the kernel was built without it" if code == ENOPROTOOPT else ""


def _try_default(requests: NetlinkSocket) -> str:
    get = Request(Message(type=MessageType.GETDEFAULT), "read the default policy")
    (reply,) = requests.exchange([get])
    if reply.error is None:
        return ""
    return "since Linux 5.15" if reply.error.errno == EINVAL else str(reply.error)
