"""Changes to inputs that keep enough of their structure for the change to be looked at.

A change of random octets breaks a length or a chain in most cases, and tests one refusal again and
again. Here a script stays a script, a chain has the lengths that it should (mostly), and proposals
are changed as values. `havoc` is the fuzzer's own way to change octets: data and its greatest size
in, changed data out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias, TypeVar

from tests.fuzz.script import (
    Op,
    Part,
    Script,
    Situation,
    Step,
    decode_script,
    encode_script,
    join_chain,
    split_chain,
)
from xfrmpy.ipsec.proposals import Proposal, Transform
from xfrmpy.registry import (
    ALGORITHM_REGISTRIES,
    ExchangeType,
    NotifyType,
    PayloadType,
    ProtocolId,
    TransformType,
)
from xfrmpy.wire.cursor import Cursor, Malformed
from xfrmpy.wire.proposals import decode_proposals_untrusted, encode_proposals

T = TypeVar("T")
Havoc: TypeAlias = Callable[[bytes, int], bytes]

MAX_BODY = 600
FIELDS_SIZE = 16
NOTIFY_TYPE_AT = 2  # octets into the body of a Notify payload (RFC 7296 section 3.10)


class Mutator:
    """Changes scripts; `library` are scripts whose steps and payloads are put into others."""

    def __init__(self, library: Iterable[bytes], havoc: Havoc) -> None:
        self._havoc = havoc
        self._scripts = [decode_script(data) for data in library]
        self._steps = [step for script in self._scripts for step in script.steps]
        self._parts = [
            part
            for step in self._steps
            if step.op is not Op.RAW
            for part in split_chain(step.first, step.octets)
        ]

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """An input that is like `data`, and not the same in most cases."""
        return self._mutated(decode_script(data), data, max_size, random.Random(seed))

    def cross(self, one: bytes, other: bytes, max_size: int, seed: int) -> bytes:
        """The beginning of one script and the end of another, and a change besides."""
        chance = random.Random(seed)
        first, second = decode_script(one), decode_script(other)
        head = first.steps[: chance.randint(0, len(first.steps))]
        tail = second.steps[chance.randint(0, len(second.steps)) :]
        return self._mutated(replace(first, steps=head + tail), one, max_size, chance)

    def _mutated(self, script: Script, data: bytes, max_size: int, chance: random.Random) -> bytes:
        """Several changes at once: running an input costs more than making one."""
        for _ in range(chance.choice((1, 1, 2, 3, 5, 8))):
            script = self._mutate_script(script, chance)
        mutated = encode_script(script)
        return mutated if len(mutated) <= max_size else self._havoc(data, max_size)

    # Steps.

    def _mutate_script(self, script: Script, chance: random.Random) -> Script:
        if not script.steps or chance.random() < 0.05:
            return self._other_beginning(script, chance)
        steps = list(script.steps)
        at = chance.randrange(len(steps))
        if chance.random() < 0.65:
            steps[at] = self._mutate_step(steps[at], chance)
        else:
            _shuffle_in(steps, chance.choice(self._steps), at, chance)
        return replace(script, steps=tuple(steps))

    def _other_beginning(self, script: Script, chance: random.Random) -> Script:
        """Steps of the library in any situation: a half of them in one that they belong to."""
        known = chance.choice(self._scripts)
        if chance.random() < 0.5:
            return replace(script, situation=known.situation, steps=known.steps + script.steps)
        return replace(
            script, situation=chance.choice(list(Situation)), variant=chance.randrange(16)
        )

    def _mutate_step(self, step: Step, chance: random.Random) -> Step:
        if chance.random() < 0.1:
            return replace(step, op=chance.choice(list(Op)))
        if not step.octets or chance.random() < 0.1:
            return replace(step, argument=_argument(step, chance))
        if step.op is Op.RAW or chance.random() < 0.1:
            return replace(step, octets=self._havoc(step.octets, len(step.octets) + 8))
        parts = split_chain(step.first, step.octets)
        self._mutate_chain(parts, chance)
        first, octets = join_chain([p for p in parts if len(p.body) < 2**16 - 4])
        return replace(step, first=first, octets=octets)

    # Payloads.

    def _mutate_chain(self, parts: list[Part], chance: random.Random) -> None:
        if not parts or chance.random() < 0.3:
            _shuffle_in(parts, chance.choice(self._parts), chance.randint(0, len(parts)), chance)
            return
        at = chance.randrange(len(parts))
        part = parts[at]
        match chance.randrange(8):
            case 0:
                parts[at] = replace(part, type=chance.choice((*PayloadType, 1, 255)))
            case 1:
                parts[at] = replace(part, flags=part.flags ^ 0x80)
            case _:
                parts[at] = replace(part, body=self._mutate_body(part, chance))

    def _mutate_body(self, part: Part, chance: random.Random) -> bytes:
        if part.type == PayloadType.SA and chance.random() < 0.7:
            return _mutate_proposals(part.body, chance)
        if part.type == PayloadType.NOTIFY and chance.random() < 0.6:
            kind = int(chance.choice(list(NotifyType))).to_bytes(2)
            return part.body[:NOTIFY_TYPE_AT] + kind + part.body[NOTIFY_TYPE_AT + 2 :]
        if part.body and chance.random() < 0.4:
            return _with_field_changed(part.body, chance)
        return self._havoc(part.body, MAX_BODY) if part.body else chance.randbytes(4)


def _argument(step: Step, chance: random.Random) -> int:
    if step.op in (Op.REQUEST, Op.ANSWER, Op.CLEAR) and chance.random() < 0.8:
        return int(chance.choice((0, *ExchangeType)))
    return chance.choice((0, 1, 2, 3, chance.randrange(256)))


def _shuffle_in(items: list[T], other: T, at: int, chance: random.Random) -> None:
    """Take one of the items out, double it, exchange it, or put another one beside it."""
    match chance.randrange(4) if at < len(items) else 0:
        case 0:
            items.insert(at, other)
        case 1:
            del items[at]
        case 2:
            items.insert(chance.randint(0, len(items)), items[at])
        case _:
            beside = chance.randrange(len(items))
            items[at], items[beside] = items[beside], items[at]


def _with_field_changed(body: bytes, chance: random.Random) -> bytes:
    """Protocols, kinds, counts and sizes: small numbers that stand at the beginning."""
    at = chance.randrange(min(len(body), FIELDS_SIZE))
    return body[:at] + bytes([chance.choice((0, 1, 2, 3, 4, 5, 8, 16, 255))]) + body[at + 1 :]


def _mutate_proposals(body: bytes, chance: random.Random) -> bytes:
    """The body of an SA payload with one of its proposals changed; itself if it has none."""
    try:
        proposals = list(decode_proposals_untrusted(Cursor(body, "")))
        at = chance.randrange(len(proposals))
        proposals[at] = _mutate_proposal(proposals[at], chance)
        if chance.random() < 0.2:
            _shuffle_in(proposals, proposals[at], at, chance)
        return encode_proposals(tuple(proposals))
    except (Malformed, ValueError):
        return body[: chance.randint(0, len(body))]


def _mutate_proposal(proposal: Proposal, chance: random.Random) -> Proposal:
    match chance.randrange(6):
        case 0:
            spi = chance.randbytes(chance.choice((0, 1, 4, 8)))
            return replace(proposal, spi=chance.choice((spi, bytes(4), b"\0\0\0\xff")))
        case 1:
            return replace(proposal, protocol=chance.choice((*ProtocolId, ProtocolId(9))))
        case 2:
            return replace(proposal, number=chance.choice((0, 1, 2, 255)))
        case _:
            transforms = list(proposal.transforms)
            at = chance.randint(0, len(transforms))
            _shuffle_in(transforms, _any_transform(chance), at, chance)
            return replace(proposal, transforms=tuple(transforms))


def _any_transform(chance: random.Random) -> Transform:
    kind = chance.choice(list(TransformType))
    registry = ALGORITHM_REGISTRIES.get(kind)
    known = list(registry) if registry else [0]
    number = chance.choice((*known, chance.randrange(2**16)))
    return Transform(type=kind, id=number, key_bits=chance.choice((None, None, 0, 128, 65535)))
