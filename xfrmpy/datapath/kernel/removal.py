"""What is ours is taken away by the ten thousand: dumps are read, deletions written, as octets.

Whose an entry is, and by what it is deleted, are a few of its fields; to decode all of them, and to
hold them until the last deletion is sent, would take most of the time. What the fields mean is in
`sad.py` and `spd.py`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.kernel import events, sad, spd, structs, values
from xfrmpy.datapath.kernel.messages import XFRM, XFRM_UNREAD, Attribute, MessageType
from xfrmpy.datapath.netlink.messages import Message, encode_attributes, split_attributes
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request
from xfrmpy.ipsec.sad import OUR_REQIDS

GONE = (errno.ENOENT, errno.ESRCH)
"""What the kernel answers to who deletes what is not there."""


@contextmanager
def gone_is_fine() -> Iterator[None]:
    try:
        yield
    except DatapathError as error:
        if error.errno not in GONE:
            raise


def remove_ours(requests: NetlinkSocket) -> int:
    """Delete every SA and policy of ours, whoever has put it there; returns how many there were.

    What compresses beside an SA is no SA of its own. Raises `DatapathError`.
    """
    states = [*_deletions_of_states(requests)]
    policies = [*filter(None, map(deletion_of_policy, _dump(requests, MessageType.GETPOLICY)))]
    count = _delete(requests, MessageType.DELPOLICY, policies)
    count += _delete(requests, MessageType.DELSA, [s for s in states if not _is_beside(s)])
    _delete(requests, MessageType.DELSA, [*filter(_is_beside, states)])
    return count


def _delete(requests: NetlinkSocket, kind: MessageType, deletions: Sequence[bytes]) -> int:
    """How many were there. In pieces: what is in hand is not to get old (see `additions.py`)."""
    count = 0
    for start in range(0, len(deletions), _PIECE):
        piece = deletions[start : start + _PIECE]
        replies = requests.exchange([Request(Message(type=kind, octets=o), _WHAT) for o in piece])
        count += sum(reply.unless(*GONE).error is None for reply in replies)
    return count


_PIECE = 100

_WHAT = "remove what is ours"


def _deletions_of_states(requests: NetlinkSocket) -> Iterator[bytes]:
    larval: list[Message] = []
    for octets in _dump(requests, MessageType.GETSA):
        deletion = deletion_of_state(octets)
        if deletion is not None:
            yield deletion
        elif _is_our_larval(octets):
            larval.append(XFRM.decode(MessageType.NEWSA, octets))
    for state in _claim(requests, larval):
        yield XFRM.encode(sad.encode_state_id(state, MessageType.DELSA))


def deletion_of_state(octets: bytes) -> bytes | None:
    """DELSA for the state of a NEWSA message; None for another's, and for a larval one."""
    address, spi, protocol, reqid, family = _read_state(octets, 0)
    if reqid not in OUR_REQIDS or not spi:
        return None
    naming = _naming(split_attributes(octets, structs.USERSA_INFO.size))
    return sad.pack_sa_id(address, spi, family, protocol) + naming


def deletion_of_policy(octets: bytes) -> bytes | None:
    """DELPOLICY for the policy of a NEWPOLICY message; None for another's."""
    index, direction = _read_policy(octets, 0)
    attributes = split_attributes(octets, structs.USERPOLICY_INFO.size)
    if not _is_ours(index, attributes.get(Attribute.TMPL, b"")):
        return None
    return spd.pack_policy_index(index, direction) + _naming(attributes)


def _claim(requests: NetlinkSocket, larval: Sequence[Message]) -> Iterator[Message]:
    """Larval SAs get SPIs, so that they can be removed; else they last 30 s."""
    claims = [
        Request(events.encode_larval_spi(state, events.LARVAL_SPI + n), _WHAT)
        for n, state in enumerate(larval)
    ]
    for reply in requests.exchange(claims):
        yield from reply.messages


def _is_beside(deletion: bytes) -> bool:
    """Whether it deletes what is no SA but compresses beside one."""
    (protocol,) = _read_protocol(deletion, 0)
    return bool(protocol == values.IPPROTO_COMP)


def _is_our_larval(octets: bytes) -> bool:
    _, spi, _, reqid, _ = _read_state(octets, 0)
    return not spi and reqid in OUR_REQIDS


def _is_ours(index: int, templates: bytes) -> bool:
    """See `spd.is_our_policy`."""
    if not templates:
        return index in spd.OUR_INDICES
    places = range(0, len(templates), structs.USER_TMPL.size)
    return any(_read_template(templates, place)[0] in OUR_REQIDS for place in places)


def _naming(attributes: Mapping[int, bytes]) -> bytes:
    naming: dict[int, bytes] = {k: attributes[k] for k in values.NAMING if k in attributes}
    return encode_attributes(naming) if naming else b""


def _dump(requests: NetlinkSocket, kind: MessageType) -> Iterator[bytes]:
    request = Request(Message(type=kind), _WHAT, dump=True, reads=XFRM_UNREAD)
    return (message.octets for message in requests.ask(request))


_read_state = structs.USERSA_INFO.reader("id_daddr", "id_spi", "id_proto", "reqid", "family")
_read_protocol = structs.USERSA_ID.reader("proto")
_read_policy = structs.USERPOLICY_INFO.reader("index", "dir")
_read_template = structs.USER_TMPL.reader("reqid")
