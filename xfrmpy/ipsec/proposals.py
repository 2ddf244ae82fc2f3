"""Proposals: which algorithms may be combined, how they are written, and how one is chosen.

Read RFC 7296 sections 2.7 and 3.3 first. A policy's proposal and a peer's are the same value, so
choosing is an intersection. Sets of algorithms come from here; `algorithms.py` knows their sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from xfrmpy.ipsec import algorithms
from xfrmpy.registry import (
    EncryptionAlgorithm,
    ExtendedSequenceNumbers,
    IntegrityAlgorithm,
    KeyExchangeMethod,
    ProtocolId,
    PseudorandomFunction,
    TransformType,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """One algorithm of a proposal.

    `id` is a member of the registry of its `type`, or a plain number where xfrmpy has no registry
    for the type. `key_bits` is the KEY_LENGTH attribute. A transform with `unknown_attributes` is
    kept, to be shown, and never chosen (RFC 7296 section 3.3.6).
    """

    type: TransformType
    id: int
    key_bits: int | None = None
    unknown_attributes: tuple[int, ...] = ()

    def __str__(self) -> str:
        return _transform_name(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A set of transforms for one protocol, from each type of which one is to be chosen."""

    protocol: ProtocolId
    transforms: tuple[Transform, ...]
    number: int = 1
    spi: bytes = b""

    def of_type(self, kind: TransformType) -> tuple[Transform, ...]:
        return tuple(t for t in self.transforms if t.type == kind)

    def without(self, kind: TransformType) -> Proposal:
        """The same proposal lacking every transform of one type."""
        return replace(self, transforms=tuple(t for t in self.transforms if t.type != kind))

    def __str__(self) -> str:
        return "-".join(str(t) for t in self.transforms)


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSuite:
    """The algorithms of one IKE SA; `integrity` is None for an AEAD cipher."""

    cipher: algorithms.Cipher
    integrity: algorithms.Integrity | None
    prf: algorithms.Prf
    group: algorithms.KeyExchangeGroup

    def __str__(self) -> str:
        parts = (self.cipher, self.integrity, self.prf, self.group)
        return "-".join(part.name for part in parts if part is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EspSuite:
    """The algorithms of one ESP SA; `integrity` is None for an AEAD cipher."""

    cipher: algorithms.Cipher
    integrity: algorithms.Integrity | None
    esn: bool

    @property
    def icv(self) -> int:
        """Octets of the integrity check value in each packet."""
        return self.cipher.icv if self.integrity is None else self.integrity.icv

    def __str__(self) -> str:
        names = [self.cipher.name]
        if self.integrity is not None:
            names.append(self.integrity.name)
        if self.esn:
            names.append("esn")
        return "-".join(names)


def choose_proposal(offered: Iterable[Proposal], ours: Iterable[Proposal]) -> Proposal | None:
    """The first of `ours` that meets an offer, as the answer to send, or None.

    The answer has the number and the SPI of the offer and one transform of each type, in the order
    of our preference (RFC 7296 section 2.7). A type that we do not use is answered with NONE where
    the offer has that, else the offer is passed over, as is one with a type unknown to us.
    """
    offered = tuple(offered)
    for mine in ours:
        for offer in offered:
            common = _common_transforms(offer, mine)
            if common is not None:
                return replace(offer, transforms=common)
    return None


def answers(chosen: Proposal, ours: Iterable[Proposal]) -> bool:
    """Whether `chosen` picks one transform of each type out of the proposal of the same number.

    An initiator must check this (RFC 7296 section 2.7): a responder may not invent.
    """
    for mine in ours:
        if mine.number == chosen.number and mine.protocol == chosen.protocol:
            kinds = [t.type for t in chosen.transforms]
            return (
                len(set(kinds)) == len(kinds)
                and set(chosen.transforms) <= set(mine.transforms)
                and set(kinds) == {t.type for t in mine.transforms}
            )
    return False


def ike_suite(chosen: Proposal) -> IkeSuite:
    """The algorithms of a chosen IKE proposal. Raises `KeyError` where one is not implemented."""
    cipher = _cipher(chosen)
    return IkeSuite(
        cipher=cipher,
        integrity=_integrity_beside(cipher, chosen),
        prf=algorithms.prf(PseudorandomFunction(_single(chosen, TransformType.PRF).id)),
        group=algorithms.group(KeyExchangeMethod(_single(chosen, TransformType.KE).id)),
    )


def esp_suite(chosen: Proposal) -> EspSuite:
    """The algorithms of a chosen ESP proposal. Raises `KeyError` where one is not implemented."""
    cipher = _cipher(chosen)
    numbers = ExtendedSequenceNumbers(_single(chosen, TransformType.ESN).id)
    if numbers not in algorithms.SEQUENCE_NUMBERS:
        raise KeyError(numbers)
    return EspSuite(
        cipher=cipher,
        integrity=_integrity_beside(cipher, chosen),
        esn=numbers == ExtendedSequenceNumbers.ESN,
    )


def supported_part(proposal: Proposal, suites: frozenset[str], *, esn: bool) -> Proposal | None:
    """What is left of an ESP proposal on a datapath that can do only `suites`; None if nothing.

    `suites` are names as in `EspSuite`, without the ESN part. A peer may choose any cipher with any
    integrity algorithm of a proposal, so only ciphers that go with all that the first one goes with
    are left beside it.
    """
    integrities = proposal.of_type(TransformType.INTEG)
    partners = {
        cipher: {i for i in integrities or (None,) if _suite_name(cipher, i) in suites}
        for cipher in proposal.of_type(TransformType.ENCR)
    }
    best = next((found for found in partners.values() if found), None)
    numbers = [
        t for t in proposal.of_type(TransformType.ESN) if esn or t.id != ExtendedSequenceNumbers.ESN
    ]
    if not best or not numbers:
        return None
    ciphers = [cipher for cipher, found in partners.items() if found >= best]
    kept = {*ciphers, *best, *numbers, *proposal.of_type(TransformType.KE)}
    return replace(proposal, transforms=tuple(t for t in proposal.transforms if t in kept))


def without_algorithms(proposal: Proposal, names: frozenset[str]) -> Proposal | None:
    """The proposal lacking the named algorithms; None if a type of transform is then empty."""
    kept = tuple(t for t in proposal.transforms if str(t) not in names)
    if {t.type for t in kept} != {t.type for t in proposal.transforms}:
        return None
    return replace(proposal, transforms=kept)


@lru_cache(maxsize=1024)  # A thousand tunnels have a handful of proposals.
def parse_proposal(text: str, protocol: ProtocolId) -> Proposal:
    """Read a proposal such as `aes256gcm16-aes128gcm16-prfsha384-x25519` or `aes256-sha256-esn`.

    Every combination of the named algorithms is meant. For IKE, `sha256` beside a cipher that is
    not AEAD also names the PRF unless one is named; for ESP, ESN is meant unless `noesn` is named.
    Raises `ValueError` with a sentence for the operator.
    """
    transforms: list[Transform] = []
    for word in text.strip().lower().split("-"):
        if word not in TRANSFORMS_BY_NAME:
            raise ValueError(f"unknown algorithm {word!r}")
        if TRANSFORMS_BY_NAME[word] in transforms:
            raise ValueError(f"{word!r} is named twice")
        transforms.append(TRANSFORMS_BY_NAME[word])
    proposal = Proposal(protocol=protocol, transforms=tuple(transforms))
    proposal = _complete_ike(proposal) if protocol == ProtocolId.IKE else _complete_esp(proposal)
    order = [TransformType.ENCR, TransformType.PRF, TransformType.INTEG, *TransformType]
    return replace(
        proposal, transforms=tuple(sorted(proposal.transforms, key=lambda t: order.index(t.type)))
    )


def _common_transforms(offer: Proposal, mine: Proposal) -> tuple[Transform, ...] | None:
    if offer.protocol != mine.protocol:
        return None
    # INTEG "none" beside an AEAD cipher is the same as no INTEG at all (RFC 7296 section 3.3.3).
    kinds = {t.type for t in offer.transforms}
    optional = {k for k in kinds & _WITH_NONE if Transform(type=k, id=0) in offer.transforms}
    wanted = {t.type for t in mine.transforms}
    if kinds - optional - wanted or wanted - kinds:
        return None
    chosen: list[Transform] = []
    for kind in dict.fromkeys(t.type for t in mine.transforms):
        theirs = offer.of_type(kind)
        match = next((t for t in mine.of_type(kind) if t in theirs), None)
        if match is None:
            return None
        chosen.append(match)
    # Section 2.7: "exactly one transform of each type included in the proposal".
    chosen += [Transform(type=kind, id=0) for kind in sorted(optional - wanted)]
    return tuple(chosen)


def _single(chosen: Proposal, kind: TransformType) -> Transform:
    transforms = chosen.of_type(kind)
    if len(transforms) != 1:
        raise KeyError(kind)
    return transforms[0]


def _cipher(chosen: Proposal) -> algorithms.Cipher:
    encryption = _single(chosen, TransformType.ENCR)
    return algorithms.cipher(EncryptionAlgorithm(encryption.id), encryption.key_bits)


def _integrity_beside(cipher: algorithms.Cipher, chosen: Proposal) -> algorithms.Integrity | None:
    """None for an AEAD cipher; any other is never without (RFC 7296 section 3.3)."""
    if not cipher.is_aead:
        return algorithms.integrity(IntegrityAlgorithm(_single(chosen, TransformType.INTEG).id))
    if any(t.id != IntegrityAlgorithm.NONE for t in chosen.of_type(TransformType.INTEG)):
        raise KeyError(TransformType.INTEG)
    return None


def _suite_name(cipher: Transform, integrity: Transform | None) -> str:
    return str(cipher) if integrity is None else f"{cipher}-{integrity}"


def _complete_ike(proposal: Proposal) -> Proposal:
    _reject(proposal, TransformType.ESN, "an IKE proposal has no sequence numbers to extend")
    if not proposal.of_type(TransformType.PRF):
        implied = [
            _PRF_OF_INTEGRITY[IntegrityAlgorithm(t.id)]
            for t in proposal.of_type(TransformType.INTEG)
        ]
        proposal = replace(proposal, transforms=proposal.transforms + tuple(implied))
    _check_cipher(proposal)
    for kind, example in ((TransformType.PRF, "prfsha256"), (TransformType.KE, "x25519")):
        if not proposal.of_type(kind):
            raise ValueError(f"no {_TYPE_NAMES[kind]} is named, e.g. {example}")
    return proposal


def _complete_esp(proposal: Proposal) -> Proposal:
    _reject(proposal, TransformType.PRF, "an ESP proposal has no PRF")
    _check_cipher(proposal)
    if not proposal.of_type(TransformType.ESN):
        esn = Transform(type=TransformType.ESN, id=ExtendedSequenceNumbers.ESN)
        proposal = replace(proposal, transforms=(*proposal.transforms, esn))
    return proposal


def _check_cipher(proposal: Proposal) -> None:
    ciphers = proposal.of_type(TransformType.ENCR)
    if not ciphers:
        raise ValueError("no cipher is named, e.g. aes256gcm16")
    kinds = {algorithms.cipher(EncryptionAlgorithm(t.id), t.key_bits).is_aead for t in ciphers}
    if len(kinds) > 1:
        raise ValueError("ciphers with and without built-in integrity need proposals of their own")
    if kinds == {True}:
        _reject(proposal, TransformType.INTEG, "an AEAD cipher takes no integrity algorithm")
    elif not proposal.of_type(TransformType.INTEG):
        raise ValueError("the cipher needs an integrity algorithm, e.g. sha256")


def _reject(proposal: Proposal, kind: TransformType, why: str) -> None:
    if found := proposal.of_type(kind):
        raise ValueError(f"{found[0]}: {why}")


def _transform_name(transform: Transform) -> str:
    name = _NAMES_BY_TRANSFORM.get(transform)
    if name is not None:
        return name
    number = getattr(transform.id, "name", transform.id)
    bits = f"_{transform.key_bits}" if transform.key_bits is not None else ""
    odd = "?" if transform.unknown_attributes else ""
    return f"{transform.type.name}:{number}{bits}{odd}"


def _transforms_by_name() -> dict[str, Transform]:
    named: dict[str, Transform] = {}
    for cipher in algorithms.CIPHERS:
        bits = cipher.key_bits if cipher.sends_key_length else None
        named[cipher.name] = Transform(type=TransformType.ENCR, id=cipher.id, key_bits=bits)
    for prf in algorithms.PRFS:
        named[prf.name] = Transform(type=TransformType.PRF, id=prf.id)
    for integrity in algorithms.INTEGRITY:
        named[integrity.name] = Transform(type=TransformType.INTEG, id=integrity.id)
    for group in algorithms.GROUPS:
        named[group.name] = Transform(type=TransformType.KE, id=group.id)
    for number, name in algorithms.SEQUENCE_NUMBERS.items():
        named[name] = Transform(type=TransformType.ESN, id=number)
    return named


TRANSFORMS_BY_NAME = _transforms_by_name()
_NAMES_BY_TRANSFORM = {transform: name for name, transform in TRANSFORMS_BY_NAME.items()}
_PRF_OF_INTEGRITY = {
    integrity.id: TRANSFORMS_BY_NAME[f"prf{integrity.name}"] for integrity in algorithms.INTEGRITY
}
_WITH_NONE = frozenset(
    kind
    for kind in TransformType
    if kind in (TransformType.INTEG, TransformType.KE) or kind.name.startswith("ADDKE")
)
"""The types in whose registry 0 is NONE (RFC 7296 section 3.3.2, RFC 9370 section 2.2.2)."""
_TYPE_NAMES = {TransformType.PRF: "PRF", TransformType.KE: "key exchange method"}
