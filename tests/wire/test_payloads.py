"""One payload at a time: octets written by hand after the figures of RFC 7296 section 3."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

import pytest

from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import Proposal, Transform
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.registry import (
    ConfigurationAttributeType,
    ConfigurationType,
    EncryptionAlgorithm,
    IdType,
    KeyExchangeMethod,
    NotifyType,
    PayloadType,
    ProtocolId,
    TransformType,
)
from xfrmpy.wire.cursor import Malformed
from xfrmpy.wire.message import decode_payloads_untrusted, encode_payloads
from xfrmpy.wire.payloads import (
    MAX_CONFIGURATION_ATTRIBUTES,
    ConfigurationAttribute,
    ConfigurationPayload,
    DeletePayload,
    EncryptedFragmentPayload,
    IdiPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    OpenPayload,
    PuzzleSolutionPayload,
    SaPayload,
    TsiPayload,
    TsrPayload,
)
from xfrmpy.wire.proposals import MAX_ATTRIBUTES, MAX_PROPOSALS, MAX_TRANSFORMS

SA, TSI = PayloadType.SA, PayloadType.TSI
AES_256 = "0300000c 0100000c 800e0100"  # ENCR_AES_CBC with a 256-bit key, more to come
SHA_256 = "00000008 0300000c"  # AUTH_HMAC_SHA2_256_128, the last
TRANSFORMS = (
    Transform(type=TransformType.ENCR, id=EncryptionAlgorithm.AES_CBC, key_bits=256),
    Transform(type=TransformType.INTEG, id=12),
)
LOW, HIGH = "20010db8000000000000000000000001", "20010db8000000000000000000000002"
ALL_IPV4 = TrafficSelector.parse("0.0.0.0/0")


def decode(kind: PayloadType, body: str) -> OpenPayload:
    """Decode the body, in hex, of a payload of this type."""
    data = bytes.fromhex(body)
    generic = bytes([0, 0]) + (4 + len(data)).to_bytes(2, "big")
    (payload,) = decode_payloads_untrusted(kind, generic + data)
    return payload


def proposal(transforms: str, *, mark: int = 0, number: int = 1, count: int = 2) -> str:
    body = bytes([number, 3, 0, count]) + bytes.fromhex(transforms)
    return bytes([mark, 0, 0, 4 + len(body)]).hex() + body.hex()


@pytest.mark.parametrize(
    ("payload", "body"),
    [
        (
            SaPayload(
                proposals=(
                    Proposal(
                        protocol=ProtocolId.ESP, spi=b"\xaa\xbb\xcc\xdd", transforms=TRANSFORMS
                    ),
                    Proposal(protocol=ProtocolId.AH, number=2, transforms=TRANSFORMS[1:]),
                )
            ),
            "02000020 01030402 aabbccdd" + AES_256 + SHA_256 + "00000010 02020001" + SHA_256,
        ),
        (
            KePayload(method=KeyExchangeMethod.CURVE25519, data=b"\x01\x02"),
            "001f 0000 0102",
        ),
        (
            IdiPayload(identity=Identity(type=IdType.ID_KEY_ID, data=b"me"), reserved=b"abc"),
            "0b 616263 6d65",
        ),
        (
            NotifyPayload(
                type=NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=b"\1\2\3\4", data=b"x"
            ),
            "03 04 4009 01020304 78",
        ),
        (
            NotifyPayload(type=NotifyType.INVALID_KE_PAYLOAD, data=b"\x00\x13"),
            "00 00 0011 0013",
        ),
        (DeletePayload(protocol=ProtocolId.IKE), "01 00 0000"),
        (
            DeletePayload(protocol=ProtocolId.AH, spis=(b"\1\2\3\4", b"\5\6\7\x08")),
            "02 04 0002 01020304 05060708",
        ),
        (
            TsiPayload(
                selectors=(
                    TrafficSelector.parse("198.51.100.66[udp/100]"),
                    TrafficSelector(
                        start_port=0xFFFF,
                        end_port=0,
                        start_address=ip_address("2001:db8::1"),
                        end_address=ip_address("2001:db8::2"),
                    ),
                )
            ),
            "02000000 07110010 00640064 c6336442 c6336442 08000028 ffff0000" + LOW + HIGH,
        ),
        (
            ConfigurationPayload(
                kind=ConfigurationType.CFG_REQUEST,
                attributes=(
                    ConfigurationAttribute(type=ConfigurationAttributeType.INTERNAL_IP4_ADDRESS),
                    ConfigurationAttribute(
                        type=ConfigurationAttributeType.APPLICATION_VERSION, data=b"x"
                    ),
                ),
            ),
            "01 000000 0001 0000 0007 0001 78",
        ),
        (PuzzleSolutionPayload(keys=(b"\1\2", b"\3\4", b"\5\6", b"\7\x08")), "0102030405060708"),
    ],
)
def test_a_payload_is_laid_out_as_in_the_rfc(payload: OpenPayload, body: str) -> None:
    assert payload.encode_body() == bytes.fromhex(body)
    assert decode(payload.payload_type, body) == payload


@pytest.mark.parametrize(
    ("kind", "body", "clean"),
    [
        (PayloadType.KE, "001f ffff 01", "001f 0000 01"),
        (PayloadType.AUTH, "02 ffffff 01", "02 000000 01"),
        (PayloadType.CP, "01 ffffff 8001 0000", "01 000000 0001 0000"),
        (
            PayloadType.TSI,
            "01 ffffff 07000010 0000ffff 00000000 ffffffff",
            "01 000000 07000010 0000ffff 00000000 ffffffff",
        ),
        (
            PayloadType.SA,
            "00ff 0010 01030001 00ff 0008 03ff 000c",
            "0000 0010 01030001 0000 0008 0300 000c",
        ),
    ],
)
def test_reserved_fields_are_ignored_and_sent_as_zero(
    kind: PayloadType, body: str, clean: str
) -> None:
    payload = decode(kind, body)
    assert payload == decode(kind, clean)
    assert payload.encode_body() == bytes.fromhex(clean)


def test_the_reserved_octets_of_an_identity_are_kept_for_auth() -> None:
    assert decode(PayloadType.IDR, "02 010203 61").encode_body() == bytes.fromhex("02 010203 61")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(PayloadType.KE, "001f00", id="KE without its reserved field"),
        pytest.param(PayloadType.IDI, "010000", id="ID without its reserved field"),
        pytest.param(PayloadType.AUTH, "02", id="AUTH without its reserved field"),
        pytest.param(PayloadType.CERT, "", id="CERT without an encoding"),
        pytest.param(PayloadType.NONCE, "00" * 15, id="a nonce of 15 octets"),
        pytest.param(PayloadType.NONCE, "00" * 257, id="a nonce of 257 octets"),
        pytest.param(PayloadType.NOTIFY, "000040", id="half a notify type"),
        pytest.param(PayloadType.NOTIFY, "03054009 01020304", id="an SPI that is not there"),
        pytest.param(PayloadType.DELETE, "01040001 01020304", id="the IKE SA by an ESP SPI"),
        pytest.param(PayloadType.DELETE, "0100ffff", id="the IKE SA 65535 times"),
        pytest.param(PayloadType.DELETE, "03000000", id="ESP SPIs of size 0"),
        pytest.param(PayloadType.DELETE, "03080001 0102030405060708", id="an ESP SPI of 8"),
        pytest.param(PayloadType.DELETE, "03040002 01020304", id="fewer SPIs than announced"),
        pytest.param(PayloadType.DELETE, "03040001 0102030405060708", id="more SPIs"),
        pytest.param(PayloadType.DELETE, "00000000", id="deletion for no protocol"),
        pytest.param(PayloadType.DELETE, "0904000101020304", id="deletion, protocol unknown"),
        pytest.param(TSI, "00000000", id="no traffic selector"),
        pytest.param(TSI, "02000000 070000100000ffff00000000ffffffff", id="1 selector of 2"),
        pytest.param(TSI, "01000000" + "070000100000ffff00000000ffffffff" * 2, id="2 of 1"),
        pytest.param(TSI, "01000000 070000080000ffff", id="a selector without addresses"),
        pytest.param(TSI, "01000000 0700000f0000ffff00000000ffffff", id="short addresses"),
        pytest.param(TSI, "01000000 080000100000ffff00000000ffffffff", id="IPv6 in 4 octets"),
        pytest.param(TSI, "01000000 070000100000ffff00000002 00000001", id="reversed addresses"),
        pytest.param(TSI, "01000000 070000100002000100000000ffffffff", id="reversed ports"),
        pytest.param(TSI, "01000000 07000003", id="a selector shorter than its header"),
        pytest.param(PayloadType.CP, "01000000 00010001", id="an attribute value missing"),
        pytest.param(PayloadType.CP, "01000000 0001", id="half an attribute"),
        pytest.param(
            PayloadType.CP,
            "01000000" + "00010000" * (MAX_CONFIGURATION_ATTRIBUTES + 1),
            id="too many attributes",
        ),
        pytest.param(SA, "", id="no proposal"),
        pytest.param(SA, "00000008 01030000", id="no transform"),
        pytest.param(SA, proposal(AES_256 + SHA_256, number=0), id="proposal 0"),
        pytest.param(SA, proposal(AES_256 + SHA_256, mark=2), id="more marked, none there"),
        pytest.param(SA, proposal(AES_256 + SHA_256, mark=3), id="a mark of 3"),
        pytest.param(SA, proposal(AES_256 + SHA_256) * 2, id="last marked, one more there"),
        pytest.param(
            SA,
            proposal(AES_256 + SHA_256, mark=2) + proposal(AES_256 + SHA_256),
            id="proposal 1 twice",
        ),
        pytest.param(
            SA,
            proposal(AES_256 + SHA_256, mark=2, number=2)
            + proposal(AES_256 + SHA_256, number=3),
            id="proposals 2 and 3",
        ),
        pytest.param(SA, proposal(AES_256 + SHA_256, count=1), id="1 transform said, 2 there"),
        pytest.param(SA, proposal(AES_256 + SHA_256, count=3), id="3 transforms said, 2 there"),
        pytest.param(SA, proposal(SHA_256 + SHA_256), id="the first transform marked last"),
        pytest.param(SA, proposal(AES_256 + AES_256), id="the last transform marked more"),
        pytest.param(SA, proposal("00000007 030000", count=1), id="a transform of 7 octets"),
        pytest.param(SA, proposal("0000000a 0100000c 800e", count=1), id="half an attribute"),
        pytest.param(
            SA,
            proposal("00000010 0100000c 800e0100 800e0080", count=1),
            id="KEY_LENGTH doubled",
        ),
        pytest.param(
            SA,
            proposal("0000000e 0100000c 000e0002 0100", count=1),
            id="KEY_LENGTH of variable size",
        ),
        pytest.param(
            SA, proposal("0000000c 0100000c 000f0001", count=1), id="an attribute value missing"
        ),
        pytest.param(
            SA,
            proposal(
                "000000" + bytes([8 + 4 * (MAX_ATTRIBUTES + 1)]).hex() + "0100000c"
                + "".join(f"80{n:02x}0000" for n in range(20, 21 + MAX_ATTRIBUTES)),
                count=1,
            ),
            id="too many transform attributes",
        ),
        pytest.param(PayloadType.PS, "", id="a puzzle solution of nothing"),
        pytest.param(PayloadType.PS, "010203", id="less than four keys"),
        pytest.param(PayloadType.PS, "0102030405", id="keys of two sizes"),
    ],
)  # fmt: skip
def test_a_body_against_the_rfc_is_malformed(kind: PayloadType, body: str) -> None:
    with pytest.raises(Malformed, match=rf"inside SK, {kind.name}.*, octet \d+: "):
        decode(kind, body)


def test_proposals_are_read_up_to_a_limit_only() -> None:
    def many(count: int) -> str:
        return "".join(
            proposal(SHA_256, mark=0 if number == count else 2, number=number, count=1)
            for number in range(1, count + 1)
        )

    payload = decode(SA, many(MAX_PROPOSALS))
    assert isinstance(payload, SaPayload)
    assert len(payload.proposals) == MAX_PROPOSALS
    with pytest.raises(Malformed, match="more than"):
        decode(SA, many(MAX_PROPOSALS + 1))


def test_transforms_are_read_up_to_a_limit_only() -> None:
    def many(count: int) -> str:
        transforms = "03000008 0300000c" * (count - 1) + SHA_256
        length = 8 + 8 * count
        return f"0000{length:04x}010300{count:02x}{transforms}"

    payload = decode(SA, many(MAX_TRANSFORMS))
    assert isinstance(payload, SaPayload)
    assert len(payload.proposals[0].transforms) == MAX_TRANSFORMS
    with pytest.raises(Malformed, match="more than"):
        decode(SA, many(MAX_TRANSFORMS + 1))


def test_a_single_proposal_may_have_the_number_of_the_offer_it_accepts() -> None:
    payload = decode(SA, proposal(AES_256 + SHA_256, number=9))
    assert isinstance(payload, SaPayload)
    assert payload.proposals[0].number == 9


def test_a_transform_with_unknown_attributes_is_kept_and_not_sent() -> None:
    # One of fixed and one of variable size, beside a key length.
    attributes = "80130007 00140003 616263 800e0100"
    payload = decode(SA, proposal("00000017 0100000c" + attributes, count=1))
    assert isinstance(payload, SaPayload)
    assert payload.proposals[0].transforms == (
        Transform(
            type=TransformType.ENCR,
            id=EncryptionAlgorithm.AES_CBC,
            key_bits=256,
            unknown_attributes=(0x13, 0x14),
        ),
    )
    with pytest.raises(ValueError, match="not known"):
        payload.encode_body()


@pytest.mark.parametrize(("kind", "number"), [(1, 65000), (6, 36), (200, 1)])
def test_unknown_transforms_survive(kind: int, number: int) -> None:
    payload = decode(SA, proposal(f"00000008 {kind:02x}00{number:04x}", count=1))
    assert isinstance(payload, SaPayload)
    (transform,) = payload.proposals[0].transforms
    assert (transform.type, transform.id) == (kind, number)


def test_a_transform_id_is_a_member_of_the_registry_of_its_type() -> None:
    payload = decode(SA, proposal(AES_256 + SHA_256))
    assert isinstance(payload, SaPayload)
    assert payload.proposals[0].transforms[0].id is EncryptionAlgorithm.AES_CBC


def test_traffic_selectors_of_unknown_types_are_counted_and_not_sent() -> None:
    label = "0a00000c 6c6162656c210000"  # TS_SECLABEL, RFC 9478 section 2.1
    range_ = "07000010 0000ffff 00000000 ffffffff"
    payload = decode(PayloadType.TSR, "02000000" + label + range_)
    assert payload == TsrPayload(selectors=(ALL_IPV4,), unknown=1)
    with pytest.raises(ValueError, match="unknown types"):
        payload.encode_body()


@pytest.mark.parametrize(
    "make",
    [
        lambda: NoncePayload(data=bytes(15)),
        lambda: SaPayload(proposals=()),
        lambda: SaPayload(proposals=(Proposal(protocol=ProtocolId.ESP, transforms=()),)),
        lambda: SaPayload(
            proposals=(Proposal(protocol=ProtocolId.ESP, transforms=TRANSFORMS),) * 2
        ),
        lambda: TsiPayload(selectors=()),
        lambda: DeletePayload(protocol=ProtocolId.NONE),
        lambda: DeletePayload(protocol=ProtocolId.ESP, spis=(bytes(8),)),
        lambda: IdiPayload(identity=Identity.parse("a.example"), reserved=b""),
        lambda: EncryptedFragmentPayload(first_inner=PayloadType.SA, number=0, total=1, sealed=b""),
        lambda: EncryptedFragmentPayload(first_inner=PayloadType.SA, number=3, total=2, sealed=b""),
    ],
)
def test_a_payload_against_the_rfc_cannot_be_made(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()


@pytest.mark.parametrize(
    "payload",
    [
        KePayload(method=KeyExchangeMethod.CURVE25519, data=bytes(0x10000)),
        KePayload(method=KeyExchangeMethod.CURVE25519, data=bytes(0x10000 - 8)),
        NotifyPayload(type=NotifyType.COOKIE, spi=bytes(256)),
        NotifyPayload(type=NotifyType.COOKIE, protocol=ProtocolId(256)),
        IdiPayload(identity=Identity(type=IdType(256), data=b"")),
        DeletePayload(protocol=ProtocolId.ESP, spis=(bytes(4),) * 0x10000),
        TsiPayload(selectors=(ALL_IPV4,) * 256),
        ConfigurationPayload(
            kind=ConfigurationType.CFG_SET,
            attributes=(ConfigurationAttribute(type=ConfigurationAttributeType(0x8001)),),
        ),
        SaPayload(proposals=(Proposal(protocol=ProtocolId.ESP, transforms=TRANSFORMS * 128),)),
        SaPayload(
            proposals=(
                Proposal(
                    protocol=ProtocolId.ESP,
                    transforms=(Transform(type=TransformType.ENCR, id=1, key_bits=0x10000),),
                ),
            )
        ),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_what_does_not_fit_is_not_encoded(payload: OpenPayload) -> None:
    with pytest.raises(ValueError, match=r"does not fit|is no configuration"):
        encode_payloads((payload,))


def test_the_largest_payload_is_encoded() -> None:
    ke = KePayload(method=KeyExchangeMethod.CURVE25519, data=bytes(0xFFFF - 8))
    first, data = encode_payloads((ke,))
    assert decode_payloads_untrusted(first, data) == (ke,)
