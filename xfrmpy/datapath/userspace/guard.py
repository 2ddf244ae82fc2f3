"""Keeps out what comes in clear and should have been protected (RFC 4301 section 5.2).

A packet that does not come out of our device is judged by the IN and FORWARD policies before the
host takes or forwards it: the first that matches must say BYPASS. A kernel with ESP does this
itself; here it is a table of our own in nf_tables, replaced as a whole at each change and left
standing when the worker dies. Layouts: nf_tables.h and nfnetlink.h of <linux/netfilter/>.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IKE_PORT, IpNetwork
from xfrmpy.ipsec.selectors import ANY_PROTOCOL, MaskedPort, Selector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry

TABLE = "xfrmpy-userspace"

PRIORITY = -300
"""That of `raw`: before connection tracking, which should not know of what is dropped."""

_UDP, _ICMPV6 = 17, 58

_NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE = 32
_HEADER = Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ERROR = Struct("=i")  # the start of struct nlmsgerr
_NLMSG_ERROR = 2
_GENERAL = Struct(">BBH")  # struct nfgenmsg: family, version, resource
_ATTRIBUTE = Struct("=HH")  # struct nlattr: length, type
_NESTED = 0x8000
_NUMBER = Struct(">I")
_SIGNED = Struct(">i")

_REQUEST, _CREATE, _APPEND = 0x001, 0x400, 0x800  # NLM_F_*
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = (_SUBSYSTEM << 8 | n for n in (0, 2, 3, 6))
_INET = 1  # NFPROTO_INET: IPv4 and IPv6
_NFPROTO = {4: 2, 6: 10}
_BEGIN = (0x10, 0, _GENERAL.pack(0, 0, _SUBSYSTEM))
_END = (0x11, 0, _GENERAL.pack(0, 0, _SUBSYSTEM))

_META_IIFNAME, _META_NFPROTO, _META_L4PROTO = 6, 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_ADDRESS_OFFSETS = {4: (12, 16), 6: (8, 24)}
_CMP_EQ, _CMP_NEQ, _CMP_LTE, _CMP_GTE = 0, 1, 3, 5
_DROP, _ACCEPT = 0, 1
_REGISTER = 1
_PREROUTING = 0


class Guard:
    """The table of the network namespace of the thread that makes this. Raises `DatapathError`."""

    def __init__(self) -> None:
        try:
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        except OSError as error:
            raise _refused(error.errno) from error
        self._netlink.setblocking(False)
        self._rules: dict[_Key, _Rule] = {}
        self._in_force: tuple[bytes, ...] | None = None

    def enforce(self, entries: Iterable[SpdEntry]) -> None:
        """Judge by these IN and FORWARD policies and no others; by none, let everything in."""
        self._put_in_force({_key(entry): _rule_of(entry) for entry in entries})

    def add(self, entry: SpdEntry) -> None:
        """Judge by this one too, in place of any of the same direction and selector."""
        self._put_in_force({**self._rules, _key(entry): _rule_of(entry)})

    def remove(self, entry: SpdEntry) -> None:
        rest = dict(self._rules)
        rest.pop(_key(entry), None)
        self._put_in_force(rest)

    def close(self) -> None:
        """What is enforced stays enforced."""
        self._netlink.close()

    def _put_in_force(self, rules: dict[_Key, _Rule]) -> None:
        """Nothing is sent if that changes nothing: IN and FORWARD mostly say the same."""
        in_order = sorted(rules.values(), key=_priority)
        bodies = tuple(dict.fromkeys(rule.body for rule in in_order))
        if bodies != self._in_force:
            self._send(_replacement(bodies))
            self._in_force = bodies
        self._rules = rules

    def _send(self, requests: list[tuple[int, int, bytes]]) -> None:
        batch = b"".join(
            _message(kind, flags, body, number)
            for number, (kind, flags, body) in enumerate([_BEGIN, *requests, _END])
        )
        try:
            self._make_room(2 * len(batch) + 65536)
            self._netlink.send(batch)
            failures = list(self._failures())
        except OSError as error:
            raise _refused(error.errno) from error
        if failures:
            raise _refused(failures[0])

    def _make_room(self, octets: int) -> None:
        """A batch goes in one piece: replacing the table is all or nothing."""
        try:
            self._netlink.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, octets)
        except PermissionError:  # Root of a user namespace only: as much as the host allows.
            self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, octets)

    def _failures(self) -> Iterator[int]:
        """The error numbers that wait; the kernel has answered before `send` returns."""
        while True:
            try:
                answer = self._netlink.recv(65536)
            except BlockingIOError:
                return
            number = _ERROR.unpack_from(answer, _HEADER.size)[0]
            if _HEADER.unpack_from(answer)[1] == _NLMSG_ERROR and number:
                yield -number


_Key = tuple[PolicyDirection, Selector]


@dataclass(frozen=True, slots=True)
class _Rule:
    """`body` is the message that makes it, made once: a table may be replaced ever so often."""

    priority: int
    body: bytes


def _key(entry: SpdEntry) -> _Key:
    return entry.direction, entry.selector


def _priority(rule: _Rule) -> int:
    return rule.priority


def _replacement(bodies: Sequence[bytes]) -> list[tuple[int, int, bytes]]:
    """Adding what may be there and then deleting it is how an absent table is no error."""
    requests = [_table(_NEWTABLE, _CREATE), _table(_DELTABLE)]
    if bodies:
        requests += [_table(_NEWTABLE, _CREATE), _chain()]
        requests += [(_NEWRULE, _CREATE | _APPEND, body) for body in (*_EXEMPT, *bodies)]
    return requests


def _refused(number: int | None) -> DatapathError:
    reason = os.strerror(number or errno.EIO)
    return DatapathError(f"nf_tables, which keeps unprotected packets out: {reason}", number)


# Rules: each expression leaves the rule if it is not met, the last says what to do.


def _rule_of(entry: SpdEntry) -> _Rule:
    verdict = _ACCEPT if entry.action is Action.BYPASS else _DROP
    expressions = b"".join([*_matches(entry.selector), _verdict(verdict)])
    return _Rule(entry.priority, _rule_body(expressions))


def _matches(selector: Selector) -> Iterator[bytes]:
    source, destination = selector.source, selector.destination
    version = source.version
    yield _load_meta(_META_NFPROTO) + _compare(bytes([_NFPROTO[version]]))
    source_offset, destination_offset = _ADDRESS_OFFSETS[version]
    yield from _is_within(source_offset, source)
    yield from _is_within(destination_offset, destination)
    if _contains(source, destination):
        # As with our routes: what comes from our own side is not the peer's to protect.
        yield from _is_within(source_offset, destination, _CMP_NEQ)
    if selector.protocol != ANY_PROTOCOL:
        yield _load_meta(_META_L4PROTO) + _compare(bytes([selector.protocol]))
    yield from _has_port(0, selector.source_port)
    yield from _has_port(2, selector.destination_port)


def _is_within(offset: int, network: IpNetwork, operator: int = _CMP_EQ) -> Iterator[bytes]:
    if network.prefixlen:
        address = network.network_address.packed
        yield _load(_NETWORK_HEADER, offset, len(address))
        yield _mask(network.netmask.packed)
        yield _compare(address, operator)


def _has_port(offset: int, port: MaskedPort) -> Iterator[bytes]:
    if port.mask:
        yield _load(_TRANSPORT_HEADER, offset, 2)
        yield _mask(port.mask.to_bytes(2, "big"))
        yield _compare(port.value.to_bytes(2, "big"))


def _contains(outer: IpNetwork, inner: IpNetwork) -> bool:
    return outer != inner and outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]


# Messages.


def _message(kind: int, flags: int, body: bytes, number: int) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, number, 0) + body


def _table(kind: int, flags: int = 0) -> tuple[int, int, bytes]:
    return kind, flags, _GENERAL.pack(_INET, 0, 0) + _text(1, TABLE)


def _chain() -> tuple[int, int, bytes]:
    hook = _attribute(1, _NUMBER.pack(_PREROUTING)) + _attribute(2, _SIGNED.pack(PRIORITY))
    names = _text(1, TABLE) + _text(3, _CHAIN)
    body = _GENERAL.pack(_INET, 0, 0) + names + _nested(4, hook) + _text(7, "filter")
    return _NEWCHAIN, _CREATE, body


def _rule_body(expressions: bytes) -> bytes:
    names = _text(1, TABLE) + _text(2, _CHAIN)
    return _GENERAL.pack(_INET, 0, 0) + names + _nested(4, expressions)


_CHAIN = "in"


def _load_meta(key: int) -> bytes:
    return _expression("meta", _number(2, key) + _number(1, _REGISTER))


def _load(base: int, offset: int, size: int) -> bytes:
    fields = _number(1, _REGISTER) + _number(2, base) + _number(3, offset) + _number(4, size)
    return _expression("payload", fields)


def _mask(mask: bytes) -> bytes:
    registers = _number(1, _REGISTER) + _number(2, _REGISTER) + _number(3, len(mask))
    return _expression("bitwise", registers + _data(4, mask) + _data(5, bytes(len(mask))))


def _compare(value: bytes, operator: int = _CMP_EQ) -> bytes:
    return _expression("cmp", _number(1, _REGISTER) + _number(2, operator) + _data(3, value))


def _verdict(code: int) -> bytes:
    return _expression("immediate", _number(1, 0) + _nested(2, _nested(2, _number(1, code))))


def _expression(name: str, fields: bytes) -> bytes:
    return _nested(1, _text(1, name) + _nested(2, fields))


def _data(kind: int, value: bytes) -> bytes:
    return _nested(kind, _attribute(1, value))


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, _NUMBER.pack(value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _nested(kind: int, payload: bytes) -> bytes:
    return _attribute(kind | _NESTED, payload)


def _attribute(kind: int, payload: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(size, kind) + payload + bytes(-size % 4)


def _from_device(name: str) -> bytes:
    return _load_meta(_META_IIFNAME) + _compare(name.encode().ljust(16, b"\0"))


def _to_udp_port(port: int) -> bytes:
    to_port = _load(_TRANSPORT_HEADER, 2, 2) + _compare(port.to_bytes(2, "big"))
    return _load_meta(_META_L4PROTO) + _compare(bytes([_UDP])) + to_port


def _neighbour_discovery() -> bytes:
    a_type = _load(_TRANSPORT_HEADER, 0, 1)
    is_between = _compare(bytes([133]), _CMP_GTE) + _compare(bytes([137]), _CMP_LTE)
    return _load_meta(_META_L4PROTO) + _compare(bytes([_ICMPV6])) + a_type + is_between


_EXEMPT = tuple(
    _rule_body(matches + _verdict(_ACCEPT))
    for matches in (
        _from_device(DEVICE),
        _from_device("lo"),
        # IKE and ESP themselves, where a policy covers the gateways (RFC 7296 section 2.23).
        _to_udp_port(IKE_PORT),
        _to_udp_port(IKE_NATT_PORT),
        # Hop limit 255 keeps it on the link (RFC 4861 section 6.1); without it nothing moves.
        _neighbour_discovery(),
    )
)
"""What is let in whatever the policies say."""
