"""Proposals: which algorithms may be combined, how they are written, and how one is chosen.

Read RFC 7296 sections 2.7 and 3.3 first. A policy's proposal and a peer's are the same value, so
choosing is an intersection. Sets of algorithms come from here; `algorithms.py` knows their sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, TypeAlias

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

MAX_SUITES = 64
"""Of each protocol that are kept, so that thousands of SAs share the few that are in use."""

FURTHER_KEY_EXCHANGES = tuple(kind for kind in TransformType if kind.name.startswith("ADDKE"))
"""The seven types of transform that RFC 9370 adds, in the order of their exchanges."""

KEY_EXCHANGES = (TransformType.KE, *FURTHER_KEY_EXCHANGES)

_POST_QUANTUM = frozenset(group.id for group in algorithms.GROUPS if group.is_post_quantum)

MAX_CHOICES = 64
"""Offers beside policies whose outcome is kept: most peers offer the same, each several times."""


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
        return tuple([t for t in self.transforms if t.type == kind])

    def without(self, *kinds: TransformType) -> Proposal:
        """The same proposal lacking every transform of some types."""
        left = tuple([t for t in self.transforms if t.type not in kinds])
        return self if left == self.transforms else replace(self, transforms=left)

    @property
    def is_post_quantum(self) -> bool:
        """Whether any choice from it has a key exchange that resists quantum computers."""
        return any(
            found and all(t.id in _POST_QUANTUM for t in found)
            for found in map(self.of_type, KEY_EXCHANGES)
        )

    @property
    def offers_post_quantum(self) -> bool:
        """Whether some choice from it has one."""
        return any(t.type in KEY_EXCHANGES and t.id in _POST_QUANTUM for t in self.transforms)

    def __str__(self) -> str:
        return "-".join(str(t) for t in self.transforms)


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSuite:
    """The algorithms of one IKE SA; `integrity` is None for an AEAD cipher.

    `further` are the key exchanges behind the one of `group`, by their type (RFC 9370).
    """

    cipher: algorithms.Cipher
    integrity: algorithms.Integrity | None
    prf: algorithms.Prf
    group: algorithms.KeyExchangeGroup
    further: tuple[tuple[TransformType, algorithms.KeyExchangeGroup], ...] = ()

    @property
    def icv(self) -> int:
        """Octets of the integrity check value in each message."""
        return self.cipher.icv if self.integrity is None else self.integrity.icv

    def __str__(self) -> str:
        parts = (self.cipher, self.integrity, self.prf, self.group)
        further = (further_name(kind, group) for kind, group in self.further)
        return "-".join((*(part.name for part in parts if part is not None), *further))


@dataclass(frozen=True, slots=True, kw_only=True)
class EspSuite:
    """The algorithms of one ESP SA; `integrity` is None for an AEAD cipher."""

    cipher: algorithms.Cipher
    integrity: algorithms.Integrity | None
    esn: bool

    protocol: ClassVar[ProtocolId] = ProtocolId.ESP

    @property
    def icv(self) -> int:
        """Octets of the integrity check value in each packet."""
        return self.cipher.icv if self.integrity is None else self.integrity.icv

    @property
    def keymat(self) -> int:
        """Octets of the encryption key and its salt."""
        return self.cipher.keymat

    def __str__(self) -> str:
        names = [self.cipher.name]
        if self.integrity is not None:
            names.append(self.integrity.name)
        if self.esn:
            names.append("esn")
        return "-".join(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class AhSuite:
    """The algorithm of one AH SA (RFC 4302); written as `ah-sha256-esn`."""

    integrity: algorithms.Integrity
    esn: bool

    protocol: ClassVar[ProtocolId] = ProtocolId.AH
    keymat: ClassVar[int] = 0

    @property
    def icv(self) -> int:
        """Octets of the integrity check value in each packet."""
        return self.integrity.icv

    def __str__(self) -> str:
        return "-".join(("ah", self.integrity.name, *(("esn",) if self.esn else ())))


ChildSuite: TypeAlias = EspSuite | AhSuite
"""What protects the packets of a Child SA."""


def choose_proposal(offered: Iterable[Proposal], ours: Iterable[Proposal]) -> Proposal | None:
    """The first of `ours` that meets an offer, as the answer to send, or None.

    The answer has the number and the SPI of the offer and one transform of each type, in the order
    of our preference (RFC 7296 section 2.7). A type that we do not use is answered with NONE where
    the offer has that, else the offer is passed over, as is one with a type unknown to us. A
    further key exchange that is optional to us, having NONE, may be lacking in the offer; no method
    is chosen twice (RFC 9370 section 2.2.1).
    """
    offered = tuple(offered)
    for mine in ours:
        for offer in offered:
            is_alike = offer.protocol == mine.protocol
            common = _common_transforms(offer.transforms, mine.transforms) if is_alike else None
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
            optional = {t.type for t in mine.transforms if t == _NONE.get(t.type)}
            wanted = {t.type for t in mine.transforms}
            return (
                len(set(kinds)) == len(kinds)
                and set(chosen.transforms) <= set(mine.transforms)
                and wanted - optional <= set(kinds) <= wanted
                and _are_distinct(methods_of(chosen))
            )
    return False


def methods_of(chosen: Proposal) -> tuple[KeyExchangeMethod, ...]:
    """The key exchanges of a chosen proposal in their order, but for NONE (RFC 9370 2.2.1)."""
    in_order = sorted(chosen.transforms, key=lambda t: t.type)
    return tuple(
        KeyExchangeMethod(t.id)
        for t in in_order
        if t.type in KEY_EXCHANGES and t.id != KeyExchangeMethod.NONE
    )


def further_name(kind: TransformType, group: algorithms.KeyExchangeGroup) -> str:
    """How a further key exchange is written, e.g. `ke1_mlkem768`."""
    return f"ke{FURTHER_KEY_EXCHANGES.index(kind) + 1}_{group.name}"


def ike_suite(chosen: Proposal) -> IkeSuite:
    """The algorithms of a chosen IKE proposal. Raises `KeyError` where one is not implemented."""
    return _ike_suite(chosen.transforms)


def esp_suite(chosen: Proposal) -> EspSuite:
    """The algorithms of a chosen ESP proposal. Raises `KeyError` where one is not implemented."""
    return _esp_suite(chosen.transforms)


def ah_suite(chosen: Proposal) -> AhSuite:
    """The algorithms of a chosen AH proposal. Raises `KeyError` where one is not implemented."""
    return _ah_suite(chosen.transforms)


def child_suite(chosen: Proposal) -> ChildSuite:
    """The algorithms of a chosen ESP or AH proposal, as `esp_suite` and `ah_suite`."""
    return ah_suite(chosen) if chosen.protocol == ProtocolId.AH else esp_suite(chosen)


def supported_part(proposal: Proposal, suites: frozenset[str], *, esn: bool) -> Proposal | None:
    """What is left of an ESP or AH proposal on a datapath that can do `suites`; None if nothing.

    `suites` are names as in `EspSuite` and `AhSuite`, without the ESN part. A peer may choose any
    cipher with any integrity algorithm of a proposal, so only ciphers that go with all that the
    first one goes with are left beside it.
    """
    integrities: tuple[Transform | None, ...] = proposal.of_type(TransformType.INTEG) or (None,)
    ciphers: tuple[Transform | None, ...] = proposal.of_type(TransformType.ENCR) or (None,)
    partners = {
        cipher: {i for i in integrities if _suite_name(cipher, i) in suites} for cipher in ciphers
    }
    best = next((found for found in partners.values() if found), None)
    numbers = [
        t for t in proposal.of_type(TransformType.ESN) if esn or t.id != ExtendedSequenceNumbers.ESN
    ]
    if not best or not numbers:
        return None
    wide_enough = [cipher for cipher, found in partners.items() if found >= best]
    exchanges = (t for t in proposal.transforms if t.type in KEY_EXCHANGES)
    kept = {*wide_enough, *best, *numbers, *exchanges}
    return replace(proposal, transforms=tuple(t for t in proposal.transforms if t in kept))


def without_algorithms(proposal: Proposal, names: frozenset[str]) -> Proposal | None:
    """The proposal lacking the named algorithms; None if a type of transform is then empty."""
    kept = tuple(t for t in proposal.transforms if _algorithm_name(t) not in names)
    if {t.type for t in kept} != {t.type for t in proposal.transforms}:
        return None
    return replace(proposal, transforms=kept)


@lru_cache(maxsize=1024)  # A thousand tunnels have a handful of proposals.
def parse_proposal(text: str, protocol: ProtocolId) -> Proposal:
    """Read a proposal such as `aes256gcm16-aes128gcm16-prfsha384-x25519` or `aes256-sha256-esn`.

    Every combination of the named algorithms is meant. For IKE, `sha256` beside a cipher that is
    not AEAD also names the PRF unless one is named; for ESP and AH, ESN is meant unless `noesn` is
    named. `ke1_mlkem768` to `ke7_...` are key exchanges behind the first (RFC 9370), `ke1_none`
    makes one optional. Raises `ValueError` with a sentence for the operator.
    """
    transforms: list[Transform] = []
    for word in text.strip().lower().split("-"):
        if word not in TRANSFORMS_BY_NAME:
            raise ValueError(f"unknown algorithm {word!r}")
        if TRANSFORMS_BY_NAME[word] in transforms:
            raise ValueError(f"{word!r} is named twice")
        transforms.append(TRANSFORMS_BY_NAME[word])
    proposal = Proposal(protocol=protocol, transforms=tuple(transforms))
    _check_key_exchanges(proposal)
    proposal = _COMPLETIONS[protocol](proposal)
    order = [TransformType.ENCR, TransformType.PRF, TransformType.INTEG, *TransformType]
    return replace(
        proposal, transforms=tuple(sorted(proposal.transforms, key=lambda t: order.index(t.type)))
    )


@lru_cache(maxsize=MAX_CHOICES)
def _common_transforms(
    offered: tuple[Transform, ...], ours: tuple[Transform, ...]
) -> tuple[Transform, ...] | None:
    # INTEG "none" beside an AEAD cipher is the same as no INTEG at all (RFC 7296 section 3.3.3).
    kinds = {t.type for t in offered}
    optional = {t.type for t in offered if t.id == 0 and t == _NONE.get(t.type)}
    wanted = {t.type for t in ours}
    dispensable = {t.type for t in ours if t.type in FURTHER_KEY_EXCHANGES and t.id == 0}
    if kinds - optional - wanted or wanted - dispensable - kinds:
        return None
    common = [
        tuple(t for t in ours if t.type == kind and t in offered)
        for kind in dict.fromkeys(t.type for t in ours)
        if kind in kinds
    ]
    if not all(common):
        return None
    exchanges = [found for found in common if found[0].type in KEY_EXCHANGES]
    methods = _distinct_methods(exchanges, frozenset())
    if methods is None:
        return None
    best = {found[0].type: found[0] for found in common} | {t.type: t for t in methods}
    chosen = tuple(best.values())
    # Section 2.7: "exactly one transform of each type included in the proposal".
    chosen += tuple(_NONE[kind] for kind in sorted(optional - wanted))
    return chosen if _has_key_exchanges_in_order(chosen) else None


def _distinct_methods(
    exchanges: Sequence[tuple[Transform, ...]], used: frozenset[int]
) -> tuple[Transform, ...] | None:
    """The best method of each key exchange, but none twice; the first ones have precedence."""
    if not exchanges:
        return ()
    for transform in exchanges[0]:
        if transform.id in used:
            continue
        taken = used | {transform.id} - {KeyExchangeMethod.NONE}
        rest = _distinct_methods(exchanges[1:], taken)
        if rest is not None:
            return (transform, *rest)
    return None


def _has_key_exchanges_in_order(chosen: Iterable[Transform]) -> bool:
    """There is no further key exchange without a first one (RFC 9370 section 2.2.4)."""
    methods = {t.type for t in chosen if t.type in KEY_EXCHANGES and t.id != KeyExchangeMethod.NONE}
    return not methods or TransformType.KE in methods


def _are_distinct(methods: tuple[KeyExchangeMethod, ...]) -> bool:
    return len(set(methods)) == len(methods)


@lru_cache(maxsize=MAX_SUITES)
def _ike_suite(transforms: tuple[Transform, ...]) -> IkeSuite:
    cipher = _cipher(transforms)
    if not cipher.is_for_ike:
        raise KeyError(cipher.id)
    return IkeSuite(
        cipher=cipher,
        integrity=_integrity_beside(cipher, transforms),
        prf=algorithms.prf(PseudorandomFunction(_single(transforms, TransformType.PRF).id)),
        group=algorithms.group(KeyExchangeMethod(_single(transforms, TransformType.KE).id)),
        further=tuple(
            (t.type, algorithms.group(KeyExchangeMethod(t.id)))
            for t in sorted(transforms, key=lambda t: t.type)
            if t.type in FURTHER_KEY_EXCHANGES and t.id != KeyExchangeMethod.NONE
        ),
    )


@lru_cache(maxsize=MAX_SUITES)
def _esp_suite(transforms: tuple[Transform, ...]) -> EspSuite:
    cipher = _cipher(transforms)
    return EspSuite(
        cipher=cipher,
        integrity=_integrity_beside(cipher, transforms),
        esn=_is_extended(transforms),
    )


@lru_cache(maxsize=MAX_SUITES)
def _ah_suite(transforms: tuple[Transform, ...]) -> AhSuite:
    kind = IntegrityAlgorithm(_single(transforms, TransformType.INTEG).id)
    return AhSuite(integrity=algorithms.integrity(kind), esn=_is_extended(transforms))


def _is_extended(transforms: tuple[Transform, ...]) -> bool:
    numbers = ExtendedSequenceNumbers(_single(transforms, TransformType.ESN).id)
    if numbers not in algorithms.SEQUENCE_NUMBERS:
        raise KeyError(numbers)
    return numbers == ExtendedSequenceNumbers.ESN


def _single(transforms: tuple[Transform, ...], kind: TransformType) -> Transform:
    found = [t for t in transforms if t.type == kind]
    if len(found) != 1:
        raise KeyError(kind)
    return found[0]


def _cipher(transforms: tuple[Transform, ...]) -> algorithms.Cipher:
    return _row(_single(transforms, TransformType.ENCR))


def _row(encryption: Transform) -> algorithms.Cipher:
    return algorithms.cipher(EncryptionAlgorithm(encryption.id), encryption.key_bits)


def _integrity_beside(
    cipher: algorithms.Cipher, transforms: tuple[Transform, ...]
) -> algorithms.Integrity | None:
    """None for an AEAD cipher; any other is never without (RFC 7296 section 3.3)."""
    if not cipher.is_aead:
        return algorithms.integrity(IntegrityAlgorithm(_single(transforms, TransformType.INTEG).id))
    if any(t.type == TransformType.INTEG and t.id != IntegrityAlgorithm.NONE for t in transforms):
        raise KeyError(TransformType.INTEG)
    return None


def _suite_name(cipher: Transform | None, integrity: Transform | None) -> str:
    if cipher is None:
        return f"ah-{integrity}"
    return str(cipher) if integrity is None else f"{cipher}-{integrity}"


def _complete_ike(proposal: Proposal) -> Proposal:
    for transform in proposal.of_type(TransformType.ENCR):
        if not _row(transform).is_for_ike:
            raise ValueError(f"{transform}: not for IKE, which has no use for it")
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
    return _with_numbers(proposal)


def _complete_ah(proposal: Proposal) -> Proposal:
    _reject(proposal, TransformType.PRF, "an AH proposal has no PRF")
    _reject(proposal, TransformType.ENCR, "AH encrypts nothing")
    if not proposal.of_type(TransformType.INTEG):
        raise ValueError("AH needs an integrity algorithm, e.g. sha256")
    return _with_numbers(proposal)


def _check_key_exchanges(proposal: Proposal) -> None:
    exchanges = [found for found in map(proposal.of_type, KEY_EXCHANGES) if found]
    if exchanges and not proposal.of_type(TransformType.KE):
        raise ValueError(f"{exchanges[0][0]}: there is no first key exchange, e.g. x25519")
    if _distinct_methods(exchanges, frozenset()) is None:
        raise ValueError(f"{exchanges[-1][0]}: a method cannot be used twice")


_COMPLETIONS: dict[ProtocolId, Callable[[Proposal], Proposal]] = {
    ProtocolId.IKE: _complete_ike,
    ProtocolId.AH: _complete_ah,
    ProtocolId.ESP: _complete_esp,
}


def _with_numbers(proposal: Proposal) -> Proposal:
    if proposal.of_type(TransformType.ESN):
        return proposal
    esn = Transform(type=TransformType.ESN, id=ExtendedSequenceNumbers.ESN)
    return replace(proposal, transforms=(*proposal.transforms, esn))


def _check_cipher(proposal: Proposal) -> None:
    ciphers = proposal.of_type(TransformType.ENCR)
    if not ciphers:
        raise ValueError("no cipher is named, e.g. aes256gcm16")
    kinds = {_row(t).is_aead for t in ciphers}
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


def _algorithm_name(transform: Transform) -> str:
    """The name in the table, whichever of the key exchanges a method is for."""
    if transform.type in FURTHER_KEY_EXCHANGES:
        return str(replace(transform, type=TransformType.KE))
    return str(transform)


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
    for kind in FURTHER_KEY_EXCHANGES:
        for group in algorithms.GROUPS:
            named[further_name(kind, group)] = Transform(type=kind, id=group.id)
        none = f"ke{FURTHER_KEY_EXCHANGES.index(kind) + 1}_none"
        named[none] = Transform(type=kind, id=KeyExchangeMethod.NONE)
    for number, name in algorithms.SEQUENCE_NUMBERS.items():
        named[name] = Transform(type=TransformType.ESN, id=number)
    return named


ESP_SUITES = frozenset(
    cipher.name if cipher.is_aead else f"{cipher.name}-{integrity.name}"
    for cipher in algorithms.CIPHERS
    for integrity in algorithms.INTEGRITY
)
AH_SUITES = frozenset(f"ah-{integrity.name}" for integrity in algorithms.INTEGRITY)
"""Every suite by its name, without the part about ESN."""

TRANSFORMS_BY_NAME = _transforms_by_name()
_NAMES_BY_TRANSFORM = {transform: name for name, transform in TRANSFORMS_BY_NAME.items()}
_PRF_OF_INTEGRITY = {
    integrity.id: TRANSFORMS_BY_NAME[f"prf{integrity.name}"] for integrity in algorithms.INTEGRITY
}
_NONE = {
    kind: Transform(type=kind, id=0)
    for kind in TransformType
    if kind is TransformType.INTEG or kind in KEY_EXCHANGES
}
"""By type, where 0 is NONE in its registry (RFC 7296 section 3.3.2, RFC 9370 section 2.2.2)."""
_TYPE_NAMES = {TransformType.PRF: "PRF", TransformType.KE: "key exchange method"}
