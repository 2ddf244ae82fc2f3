"""The registries against IANA's, as copied from it by hand and number by number."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfrmpy.registry import (
    ALGORITHM_REGISTRIES,
    AuthenticationMethod,
    CertificateEncoding,
    ConfigurationAttributeType,
    ConfigurationType,
    EncryptionAlgorithm,
    ExchangeType,
    ExtendedSequenceNumbers,
    GatewayIdentityType,
    HashAlgorithm,
    IdType,
    IntegrityAlgorithm,
    IpCompressionTransform,
    KeyExchangeMethod,
    NotifyType,
    PayloadType,
    ProtocolId,
    PseudorandomFunction,
    Registry,
    TrafficSelectorType,
    TransformAttributeType,
    TransformType,
)

REGISTRIES: list[type[Registry]] = [
    each for each in Registry.__subclasses__() if each.__module__ == Registry.__module__
]


def ranges(*parts: int | tuple[int, int]) -> set[int]:
    return {
        number
        for part in parts
        for number in (range(part[0], part[1] + 1) if isinstance(part, tuple) else (part,))
    }


ASSIGNED: dict[type[Registry], set[int]] = {
    ExchangeType: ranges((34, 44)),
    PayloadType: ranges(0, (33, 54)),
    ProtocolId: ranges((0, 6)),
    TransformType: ranges((1, 14)),
    TransformAttributeType: ranges(14, 18),
    EncryptionAlgorithm: ranges((1, 9), (11, 16), (18, 35)),
    PseudorandomFunction: ranges((1, 9)),
    IntegrityAlgorithm: ranges((0, 14)),
    KeyExchangeMethod: ranges((0, 2), 5, (14, 37)),
    ExtendedSequenceNumbers: ranges((0, 2)),
    IdType: ranges((1, 3), 5, (9, 13)),
    CertificateEncoding: ranges((1, 4), (6, 15)),
    AuthenticationMethod: ranges((1, 3), (9, 14)),
    NotifyType: ranges(1, 4, 5, 7, 9, 11, 14, 17, 24, (34, 49), (16384, 16447)),
    TrafficSelectorType: ranges((7, 10)),
    ConfigurationType: ranges((1, 4)),
    ConfigurationAttributeType: ranges((1, 4), (6, 8), 10, (12, 29)),
    GatewayIdentityType: ranges((1, 3)),
    HashAlgorithm: ranges((1, 7)),
    IpCompressionTransform: ranges((1, 4)),
}
"""Which numbers IANA has given away; none that is reserved, unassigned or for private use."""

NAMED = [
    (ExchangeType.CREATE_CHILD_SA, 36),
    (ExchangeType.IKE_INTERMEDIATE, 43),
    (PayloadType.SK, 46),
    (PayloadType.GSPM, 49),
    (PayloadType.SKF, 53),
    (TransformType.ADDKE7, 12),
    (EncryptionAlgorithm.NULL, 11),
    (EncryptionAlgorithm.AES_CBC, 12),
    (EncryptionAlgorithm.AES_GCM_16, 20),
    (EncryptionAlgorithm.CHACHA20_POLY1305, 28),
    (EncryptionAlgorithm.AES_GCM_16_IIV, 30),
    (PseudorandomFunction.HMAC_SHA2_512, 7),
    (IntegrityAlgorithm.AES_CMAC_96, 8),
    (IntegrityAlgorithm.HMAC_SHA2_256_128, 12),
    (IntegrityAlgorithm.HMAC_SHA2_512_256, 14),
    (KeyExchangeMethod.MODP_1536, 5),
    (KeyExchangeMethod.MODP_2048, 14),
    (KeyExchangeMethod.ECP_256, 19),
    (KeyExchangeMethod.BRAINPOOL_P224R1, 27),
    (KeyExchangeMethod.CURVE25519, 31),
    (KeyExchangeMethod.ML_KEM_768, 36),
    (IdType.ID_DER_ASN1_DN, 9),
    (IdType.ID_KEY_ID, 11),
    (IdType.ID_NULL, 13),
    (CertificateEncoding.X509_SIGNATURE, 4),
    (CertificateEncoding.OCSP_CONTENT, 14),
    (AuthenticationMethod.SHARED_KEY, 2),
    (AuthenticationMethod.DIGITAL_SIGNATURE, 14),
    (NotifyType.INVALID_KE_PAYLOAD, 17),
    (NotifyType.TS_UNACCEPTABLE, 38),
    (NotifyType.CHILD_SA_NOT_FOUND, 44),
    (NotifyType.COOKIE, 16390),
    (NotifyType.AUTH_LIFETIME, 16403),
    (NotifyType.LINK_ID, 16414),
    (NotifyType.QUICK_CRASH_DETECTION, 16419),
    (NotifyType.SIGNATURE_HASH_ALGORITHMS, 16431),
    (NotifyType.PUZZLE, 16434),
    (NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED, 16438),
    (NotifyType.ADDITIONAL_KEY_EXCHANGE, 16441),
    (NotifyType.IKE_SA_INIT_FULL_TRANSCRIPT_AUTH, 16447),
    (ConfigurationAttributeType.INTERNAL_IP6_SUBNET, 15),
    (ConfigurationAttributeType.INTERNAL_IP6_LINK, 17),
    (ConfigurationAttributeType.FTT_KAT, 22),
    (ConfigurationAttributeType.INTERNAL_DNS_DOMAIN, 25),
    (ConfigurationAttributeType.ENCDNS_DIGEST_INFO, 29),
    (GatewayIdentityType.IPV6, 2),
    (HashAlgorithm.IDENTITY, 5),
    (IpCompressionTransform.LZS, 3),
]
"""One in the middle of each run of numbers, so that a name that slipped by one is found."""


def test_every_registry_is_listed_here() -> None:
    assert set(ASSIGNED) == set(REGISTRIES)


@pytest.mark.parametrize("kind", REGISTRIES, ids=lambda kind: kind.__name__)
def test_a_registry_holds_just_what_iana_assigned(kind: type[Registry]) -> None:
    assert {int(member) for member in kind} == ASSIGNED[kind]
    assert len(kind.__members__) == len(kind), "two names for one number"


@pytest.mark.parametrize(("member", "number"), NAMED)
def test_a_name_has_its_number(member: Registry, number: int) -> None:
    assert member.value == number
    assert type(member)(number) is member


@pytest.mark.parametrize("kind", REGISTRIES, ids=lambda kind: kind.__name__)
def test_a_number_of_16_bits_survives(kind: type[Registry]) -> None:
    for number in [*range(300), *range(16_300, 16_500), *range(0, 1 << 16, 97), 0xFFFF]:
        member = kind(number)
        assert member == number
        assert type(member) is kind
        assert member.is_known == (number in ASSIGNED[kind])


@pytest.mark.parametrize("kind", REGISTRIES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("value", [-1, 1 << 16, 1 << 64, 0.5, "34", "IKE_AUTH", b"\x22", None, ()])
def test_what_is_no_number_of_16_bits_is_refused(kind: type[Registry], value: Any) -> None:
    with pytest.raises(ValueError, match="is not a valid"):
        kind(value)


@pytest.mark.parametrize("kind", REGISTRIES, ids=lambda kind: kind.__name__)
def test_unknown_numbers_are_not_kept(kind: type[Registry]) -> None:
    members, numbers = len(kind.__members__), len(kind._value2member_map_)
    first = [kind(number) for number in range(50_000, 50_100)]
    assert all(kind(member.value) is not member for member in first)
    assert len(kind.__members__) == members
    assert len(kind._value2member_map_) == numbers


@given(st.sampled_from(REGISTRIES), st.integers(0, 0xFFFF))
@settings(deadline=None)
def test_a_member_compares_hashes_and_sorts_as_its_number(
    kind: type[Registry], number: int
) -> None:
    member = kind(number)
    assert member == number
    assert member == kind(number)
    assert hash(member) == hash(number)
    assert {number: 1}[member] == 1
    assert sorted([member, number + 1, number - 1]) == [number - 1, number, number + 1]
    assert f"{member}" == str(number)
    assert number.to_bytes(2, "big") == member.to_bytes(2, "big")


@given(st.sampled_from(REGISTRIES), st.integers(0, 0xFFFF))
@settings(deadline=None)
def test_a_member_comes_through_copies_and_pickles(kind: type[Registry], number: int) -> None:
    member = kind(number)
    for again in (copy.copy(member), copy.deepcopy(member), pickle.loads(pickle.dumps(member))):
        assert again == member
        assert type(again) is kind
        assert again.name == member.name


def test_an_unknown_number_has_a_name_that_says_so() -> None:
    assert NotifyType(40_961).name == "UNKNOWN_40961"
    assert repr(IdType(200)) == "<IdType.UNKNOWN_200: 200>"


def test_notifications_below_16384_are_errors() -> None:
    assert NotifyType(16_383).is_error
    assert not NotifyType(16_384).is_error
    assert NotifyType.NO_PROPOSAL_CHOSEN.is_error
    assert not NotifyType.COOKIE.is_error


def test_the_transform_registries_are_those_of_their_types() -> None:
    kinds = {1: EncryptionAlgorithm, 2: PseudorandomFunction, 3: IntegrityAlgorithm}
    kinds |= {4: KeyExchangeMethod, 5: ExtendedSequenceNumbers}
    assert kinds == ALGORITHM_REGISTRIES
