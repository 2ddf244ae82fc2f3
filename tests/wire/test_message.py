"""The chain of payloads, the encrypted payload at its end, and lengths that lie."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.registry import (
    ConfigurationAttributeType,
    ConfigurationType,
    ExchangeType,
    KeyExchangeMethod,
    NotifyType,
    PayloadType,
    ProtocolId,
)
from xfrmpy.wire.cursor import Malformed
from xfrmpy.wire.message import (
    ENCRYPTED_PREFIX_SIZE,
    MAX_CLEAR_SIZE,
    MAX_PAYLOADS,
    Message,
    decode_message_untrusted,
    decode_payloads_untrusted,
    encode_message,
    encode_payloads,
    encrypted_prefix,
)
from xfrmpy.wire.payloads import (
    ConfigurationAttribute,
    ConfigurationPayload,
    DeletePayload,
    EncryptedFragmentPayload,
    EncryptedPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    OpenPayload,
    SaPayload,
    TsiPayload,
    UnknownPayload,
    VendorIdPayload,
)

SEALED = EncryptedPayload(first_inner=PayloadType.IDI, sealed=b"sealed octets")
VENDOR = VendorIdPayload(data=b"xfrmpy")
MESSAGE = Message(
    spi_i=b"initiate",
    spi_r=b"respond!",
    exchange=ExchangeType.IKE_AUTH,
    is_response=False,
    is_initiator=True,
    message_id=1,
    payloads=(VENDOR, SEALED),
)
# Every payload with a length or a count of its own within.
CHAIN: tuple[OpenPayload, ...] = (
    SaPayload(
        proposals=(
            parse_proposal("aes256-aes128-sha256-x25519", ProtocolId.IKE),
            replace(parse_proposal("aes256gcm16-prfsha384-ecp256", ProtocolId.IKE), number=2),
        )
    ),
    KePayload(method=KeyExchangeMethod.CURVE25519, data=bytes(range(32))),
    NoncePayload(data=bytes(range(100, 116))),
    NotifyPayload(type=NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=b"\xc0\xff\xee\x01"),
    DeletePayload(protocol=ProtocolId.ESP, spis=(b"\xc0\xff\xee\x01", b"\xc0\xff\xee\x02")),
    TsiPayload(
        selectors=(TrafficSelector.parse("10.1.0.0/16"), TrafficSelector.parse("2001:db8::/32"))
    ),
    ConfigurationPayload(
        kind=ConfigurationType.CFG_REPLY,
        attributes=(
            ConfigurationAttribute(
                type=ConfigurationAttributeType.INTERNAL_IP4_ADDRESS, data=b"\x0a\x03\x00\x01"
            ),
        ),
    ),
)


def lengths(payloads: tuple[OpenPayload, ...]) -> list[tuple[int, int, str]]:
    """Offset, size in octets and name of every length and count of an encoded chain."""
    found: list[tuple[int, int, str]] = []
    at = 0
    for payload in payloads:
        body = at + 4
        found.append((at + 2, 2, f"{payload.payload_type.name} length"))
        match payload:
            case SaPayload(proposals=proposals):
                for proposal in proposals:
                    found.append((body + 2, 2, "proposal length"))
                    found.append((body + 6, 1, "SPI size"))
                    found.append((body + 7, 1, "number of transforms"))
                    body += 8
                    for transform in proposal.transforms:
                        found.append((body + 2, 2, "transform length"))
                        body += 8 if transform.key_bits is None else 12
            case DeletePayload():
                found.append((body + 1, 1, "SPI size"))
                found.append((body + 2, 2, "number of SPIs"))
            case TsiPayload(selectors=selectors):
                found.append((body, 1, "number of selectors"))
                body += 4
                for selector in selectors:
                    found.append((body + 2, 2, "selector length"))
                    body += 16 if selector.start_address.version == 4 else 40
            case ConfigurationPayload():
                found.append((body + 6, 2, "attribute length"))
        at += 4 + len(payload.encode_body())
    return found


@pytest.mark.parametrize(
    ("at", "size", "delta"),
    [
        pytest.param(at, size, delta, id=f"{name} at {at}: {delta:+}")
        for at, size, name in lengths(CHAIN)
        for delta in (-8, -4, -1, 1, 4, 8, 100)
    ],
)
def test_a_length_or_count_that_lies_is_malformed(at: int, size: int, delta: int) -> None:
    first, data = encode_payloads(CHAIN)
    assert decode_payloads_untrusted(first, data) == CHAIN
    lie = (int.from_bytes(data[at : at + size], "big") + delta) % 256**size
    with pytest.raises(Malformed):
        decode_payloads_untrusted(first, data[:at] + lie.to_bytes(size, "big") + data[at + size :])


def test_every_truncation_is_malformed() -> None:
    first, data = encode_payloads(CHAIN)
    for size in range(len(data)):
        with pytest.raises(Malformed):
            decode_payloads_untrusted(first, data[:size])


def test_octets_behind_the_last_payload_are_malformed() -> None:
    first, data = encode_payloads(CHAIN)
    with pytest.raises(Malformed, match=r"inside SK, octet .*: 1 octets too many"):
        decode_payloads_untrusted(first, data + b"\0")
    with pytest.raises(Malformed):
        decode_payloads_untrusted(PayloadType.NO_NEXT_PAYLOAD, b"\0")


def test_octets_behind_the_encrypted_payload_are_malformed() -> None:
    data = encode_message(MESSAGE) + b"\0"
    with pytest.raises(Malformed, match=r"IKE_AUTH, octet .*: 1 octets too many"):
        decode_message_untrusted(data[:24] + len(data).to_bytes(4, "big") + data[28:])


def test_a_message_without_payloads_is_a_header() -> None:
    empty = replace(MESSAGE, payloads=())
    assert len(encode_message(empty)) == 28
    assert decode_message_untrusted(encode_message(empty)) == empty


@pytest.mark.parametrize("version", [0x10, 0x30])
def test_a_message_of_another_major_version_is_malformed(version: int) -> None:
    data = encode_message(MESSAGE)
    with pytest.raises(Malformed, match="version"):
        decode_message_untrusted(data[:17] + bytes([version]) + data[18:])


def test_the_minor_version_is_ignored() -> None:
    data = encode_message(MESSAGE)
    assert decode_message_untrusted(data[:17] + b"\x2f" + data[18:]) == MESSAGE


def test_the_critical_bit_of_a_known_payload_is_ignored() -> None:
    first, data = encode_payloads((VENDOR,))
    assert decode_payloads_untrusted(first, data[:1] + b"\x80" + data[2:]) == (VENDOR,)


@pytest.mark.parametrize(("flags", "critical"), [(0x80, True), (0x7F, False), (0xFF, True)])
def test_an_unknown_payload_keeps_its_critical_bit(flags: int, critical: bool) -> None:
    data = bytes([0, flags, 0, 6]) + b"??"
    payload = UnknownPayload(type=PayloadType(200), critical=critical, data=b"??")
    assert decode_payloads_untrusted(PayloadType(200), data) == (payload,)
    sent = bytes([0, 0x80 if critical else 0, 0, 6]) + b"??"
    assert encode_payloads((payload,)) == (200, sent)


def test_payloads_are_read_up_to_a_limit_only() -> None:
    first, data = encode_payloads((VENDOR,) * MAX_PAYLOADS)
    assert len(decode_payloads_untrusted(first, data)) == MAX_PAYLOADS
    first, data = encode_payloads((VENDOR,) * (MAX_PAYLOADS + 1))
    with pytest.raises(Malformed, match="more than"):
        decode_payloads_untrusted(first, data)


def test_a_message_in_clear_is_read_up_to_a_limit_only() -> None:
    def padded(size: int) -> bytes:
        vendor = VendorIdPayload(data=bytes(size - 28 - 4))
        return encode_message(replace(MESSAGE, payloads=(vendor,)))

    assert len(decode_message_untrusted(padded(MAX_CLEAR_SIZE)).payloads) == 1
    with pytest.raises(Malformed, match="in clear"):
        decode_message_untrusted(padded(MAX_CLEAR_SIZE + 1))


def test_an_encrypted_message_may_be_as_large_as_a_payload_can() -> None:
    largest = EncryptedPayload(first_inner=PayloadType.IDI, sealed=bytes(0xFFFF - 4))
    message = replace(MESSAGE, payloads=(largest,))
    assert decode_message_untrusted(encode_message(message)) == message


@pytest.mark.parametrize("kind", [PayloadType.SK, PayloadType.SKF])
def test_an_encrypted_payload_within_an_encrypted_one_is_malformed(kind: PayloadType) -> None:
    with pytest.raises(Malformed, match="another encrypted payload"):
        decode_payloads_untrusted(kind, bytes([0, 0, 0, 8, 0, 1, 0, 1]))


@pytest.mark.parametrize(("number", "total"), [(0, 0), (0, 1), (2, 1), (1, 0)])
def test_a_fragment_number_out_of_range_is_malformed(number: int, total: int) -> None:
    fragment = EncryptedFragmentPayload(
        first_inner=PayloadType.IDI, number=1, total=1, sealed=b"sealed"
    )
    data = encode_message(replace(MESSAGE, payloads=(fragment,)))
    assert decode_message_untrusted(data).sealed_at == 36
    with pytest.raises(Malformed, match=f"fragment {number} of {total}"):
        decode_message_untrusted(data[:32] + bytes([0, number, 0, total]) + data[36:])


def test_an_encrypted_payload_that_is_not_the_last_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="must be the last"):
        replace(MESSAGE, payloads=(SEALED, VENDOR))


def test_an_spi_of_the_wrong_size_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="8 octets"):
        replace(MESSAGE, spi_r=b"")


def test_payloads_before_the_encrypted_one_count_as_associated_data() -> None:
    data = encode_message(MESSAGE)
    decoded = decode_message_untrusted(data)
    assert decoded.sealed == SEALED
    assert data[decoded.sealed_at :] == SEALED.sealed
    assert decoded.sealed_at == ENCRYPTED_PREFIX_SIZE + 4 + len(VENDOR.data)


@pytest.mark.parametrize(("sealed_size", "fits"), [(0xFFFF - 4, True), (0xFFFF - 3, False)])
def test_the_prefix_refuses_what_does_not_fit(sealed_size: int, fits: bool) -> None:
    def prefix() -> bytes:
        return encrypted_prefix(
            spi_i=MESSAGE.spi_i,
            spi_r=MESSAGE.spi_r,
            exchange=ExchangeType.INFORMATIONAL,
            is_response=True,
            is_initiator=False,
            message_id=3,
            first_inner=PayloadType.NO_NEXT_PAYLOAD,
            sealed_size=sealed_size,
        )

    if fits:
        assert len(prefix()) == ENCRYPTED_PREFIX_SIZE
        return
    with pytest.raises(ValueError, match="does not fit"):
        prefix()
