"""What an input of the endpoint's target says: where to begin, and step by step what happens.

Every string of octets is a script, so that a fuzzer may do with it what it likes; and a script that
was written by hand comes back as it went. The octets of a step are a chain of payloads in most
cases, which `split_chain` reads however broken it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

MAX_STEPS = 24
MAX_OCTETS = 60000  # of a step: it must fit into a payload

_BEGINNING = Struct(">BB")  # situation, variant
_STEP = Struct(">BBBH")  # op, argument, type of the first payload, octets
_GENERIC_HEADER = Struct(">BBH")


class Situation(IntEnum):
    """How far the endpoint has come, with a peer that made no mistake, when the script begins."""

    RESPONDER_NEW = 0
    RESPONDER_HALF_OPEN = 1
    RESPONDER_ESTABLISHED = 2
    INITIATOR_NEW = 3
    INITIATOR_HALF_OPEN = 4
    INITIATOR_ESTABLISHED = 5

    @property
    def peer_begins(self) -> bool:
        return self < Situation.INITIATOR_NEW


class Op(IntEnum):
    """What `Step.argument` means stands behind each."""

    REQUEST = 0  # the exchange type; protected as soon as there are keys
    ANSWER = 1  # the exchange type, or 0 for that of the request
    CLEAR = 2  # the exchange type, of a request; never protected
    FRAGMENT = 3  # number and total of a fragment of an INFORMATIONAL request, four bits each
    RAW = 4  # nothing: the octets are the datagram
    AGAIN = 5  # which bit to turn over in the last datagram; 0 for none
    SKIP = 6  # by how much the Message ID of the next request is wrong
    SWITCH = 7  # which of the peer's IKE SAs is used from now on
    WAIT = 8  # half seconds
    COMMAND = 9  # which command of the operator, or event of the datapath
    REFUSE = 10  # which call the datapath will refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    op: Op
    argument: int = 0
    first: int = 0
    octets: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    situation: Situation
    variant: int = 0
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A payload as it stands in a chain, whatever it may be."""

    type: int
    flags: int = 0
    body: bytes


def encode_script(script: Script) -> bytes:
    parts = [_BEGINNING.pack(script.situation, script.variant)]
    for step in script.steps:
        parts += [
            _STEP.pack(step.op, step.argument, step.first, len(step.octets)),
            step.octets,
        ]
    return b"".join(parts)


def decode_script(data: bytes) -> Script:
    """The script that any octets are; what is too short is filled up with zeros."""
    situation, variant = _BEGINNING.unpack(data[:2].ljust(2, b"\0"))
    steps: list[Step] = []
    position = _BEGINNING.size
    while position < len(data) and len(steps) < MAX_STEPS:
        head = data[position : position + _STEP.size].ljust(_STEP.size, b"\0")
        op, argument, first, size = _STEP.unpack(head)
        position += _STEP.size
        octets = data[position : position + min(size, MAX_OCTETS)]
        position += size
        steps.append(Step(op=Op(op % len(Op)), argument=argument, first=first, octets=octets))
    return Script(
        situation=Situation(situation % len(Situation)), variant=variant, steps=tuple(steps)
    )


def split_chain(first: int, octets: bytes) -> list[Part]:
    """The payloads of a chain; from a wrong length on, all that is left is one payload."""
    parts: list[Part] = []
    kind = first
    while kind and octets:
        following, flags, size = _GENERIC_HEADER.unpack(octets[:4].ljust(4, b"\0"))
        if not _GENERIC_HEADER.size <= size <= len(octets):
            following, size = 0, len(octets)
        parts.append(Part(type=kind, flags=flags, body=octets[_GENERIC_HEADER.size : size]))
        octets, kind = octets[size:], following
    return parts


def join_chain(parts: list[Part]) -> tuple[int, bytes]:
    """The type of the first payload, and the octets of all with the lengths that are right."""
    kinds = [part.type for part in parts] + [0]
    octets = b"".join(
        _GENERIC_HEADER.pack(following, part.flags, _GENERIC_HEADER.size + len(part.body))
        + part.body
        for part, following in zip(parts, kinds[1:], strict=True)
    )
    return kinds[0], octets
