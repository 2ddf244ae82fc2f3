"""Proposals, transforms and their attributes (RFC 7296 sections 3.3.1, 3.3.2 and 3.3.5).

"Assembly of Security Association payloads requires great peace of mind": three levels of lengths,
two of counts and two of last-or-more marks, all of which must agree.
"""

from __future__ import annotations

from struct import Struct

from xfrmpy.ipsec.proposals import Proposal, Transform
from xfrmpy.registry import (
    ALGORITHM_REGISTRIES,
    ProtocolId,
    TransformAttributeType,
    TransformType,
)
from xfrmpy.wire.cursor import Cursor, Members, pack

# Ours. The largest seen are Windows with 18 proposals and strongSwan's default with about 40
# transforms in one; every one of them is looked at when one is chosen.
MAX_PROPOSALS = 64
MAX_TRANSFORMS = 128
MAX_ATTRIBUTES = 8

_PROPOSAL = Struct(">BxHBBBB")  # last or more, length, number, protocol, SPI size, transforms
_TRANSFORM = Struct(">BxHBxH")  # last or more, length, type, id
_ATTRIBUTE = Struct(">HH")  # format and type, value or length

_PROTOCOLS = Members(ProtocolId)
_TYPES = Members(TransformType)
_ALGORITHMS = {kind: Members(registry) for kind, registry in ALGORITHM_REGISTRIES.items()}

_LAST = 0
_MORE_PROPOSALS = 2
_MORE_TRANSFORMS = 3
_FIXED_SIZE = 0x8000  # the AF bit: the value itself stands in place of the length
_KEY_LENGTH = int(TransformAttributeType.KEY_LENGTH)


def check_proposals(proposals: tuple[Proposal, ...]) -> None:
    """Raise `ValueError` for proposals that cannot stand in one SA payload.

    Section 3.3.1: "the first proposal in an SA payload MUST be 1, and subsequent proposals MUST be
    one more than the previous proposal". A single one may have any number from 1, since in an
    answer it has that of the offer it accepts.
    """
    numbers = [proposal.number for proposal in proposals]
    is_lone = len(numbers) == 1 and numbers[0] > 0
    if not numbers or not (is_lone or numbers == list(range(1, len(numbers) + 1))):
        raise ValueError(f"proposals are numbered from 1 upward, not {numbers}")
    if not all(proposal.transforms for proposal in proposals):
        raise ValueError("a proposal without transforms")


def encode_proposals(proposals: tuple[Proposal, ...]) -> bytes:
    """The body of an SA payload.

    Raises `ValueError` for what does not fit, and for transforms with attributes that we do not
    know: the values of those were not kept.
    """
    last = len(proposals) - 1
    return b"".join(
        _encode_proposal(proposal, _LAST if index == last else _MORE_PROPOSALS)
        for index, proposal in enumerate(proposals)
    )


def _encode_proposal(proposal: Proposal, mark: int) -> bytes:
    last = len(proposal.transforms) - 1
    transforms = b"".join(
        _encode_transform(transform, _LAST if index == last else _MORE_TRANSFORMS)
        for index, transform in enumerate(proposal.transforms)
    )
    head = pack(
        _PROPOSAL,
        mark,
        _PROPOSAL.size + len(proposal.spi) + len(transforms),
        proposal.number,
        proposal.protocol,
        len(proposal.spi),
        len(proposal.transforms),
    )
    return head + proposal.spi + transforms


def _encode_transform(transform: Transform, mark: int) -> bytes:
    if transform.unknown_attributes:
        raise ValueError(f"{transform}: attributes that are not known cannot be sent")
    attributes = b""
    if transform.key_bits is not None:
        attributes = pack(_ATTRIBUTE, _FIXED_SIZE | _KEY_LENGTH, transform.key_bits)
    length = _TRANSFORM.size + len(attributes)
    return pack(_TRANSFORM, mark, length, transform.type, transform.id) + attributes


def decode_proposals_untrusted(cursor: Cursor) -> tuple[Proposal, ...]:
    """The proposals of an SA payload's body, their lengths, counts and marks checked."""
    proposals: list[Proposal] = []
    mark = _MORE_PROPOSALS
    while mark == _MORE_PROPOSALS:
        if len(proposals) == MAX_PROPOSALS:
            raise cursor.malformed(f"more than {MAX_PROPOSALS} proposals")
        mark, length, *fields = cursor.unpack(_PROPOSAL)
        if mark not in (_LAST, _MORE_PROPOSALS):
            raise cursor.malformed(f"a proposal is marked {mark}, neither last nor more")
        with cursor.nested(length - _PROPOSAL.size, "proposal"):
            proposals.append(_decode_proposal(cursor, *fields))
    return tuple(proposals)


def _decode_proposal(
    cursor: Cursor, number: int, protocol: int, spi_size: int, count: int
) -> Proposal:
    spi = cursor.take(spi_size)
    if count > MAX_TRANSFORMS:
        raise cursor.malformed(f"{count} transforms, more than {MAX_TRANSFORMS}")
    return Proposal(
        protocol=_PROTOCOLS[protocol],
        number=number,
        spi=spi,
        transforms=tuple(
            [_decode_transform(cursor, is_last=left == 0) for left in range(count - 1, -1, -1)]
        ),
    )


def _decode_transform(cursor: Cursor, *, is_last: bool) -> Transform:
    mark, length, type_number, number = cursor.unpack(_TRANSFORM)
    if mark != (_LAST if is_last else _MORE_TRANSFORMS):
        raise cursor.malformed(f"a transform is marked {mark}, against the count of transforms")
    kind = _TYPES[type_number]
    if kind in _ALGORITHMS:
        number = _ALGORITHMS[kind][number]
    if length == _TRANSFORM.size:
        return Transform(type=kind, id=number)
    with cursor.nested(length - _TRANSFORM.size, "transform attributes"):
        attributes = _decode_attributes(cursor)
    key_bits = attributes.pop(_KEY_LENGTH, None)
    return Transform(type=kind, id=number, key_bits=key_bits, unknown_attributes=tuple(attributes))


def _decode_attributes(cursor: Cursor) -> dict[int, int]:
    """The fixed values, or the lengths, by attribute type.

    "A transform MUST NOT have multiple attributes of the same type" (section 3.3).
    """
    attributes: dict[int, int] = {}
    while cursor.remaining:
        kind, value = cursor.unpack(_ATTRIBUTE)
        if not kind & _FIXED_SIZE:
            cursor.take(value)
            if kind == _KEY_LENGTH:
                raise cursor.malformed("KEY_LENGTH of variable size")
        kind &= ~_FIXED_SIZE
        if kind in attributes or len(attributes) == MAX_ATTRIBUTES:
            raise cursor.malformed("an attribute is doubled, or there are too many")
        attributes[kind] = value
    return attributes
