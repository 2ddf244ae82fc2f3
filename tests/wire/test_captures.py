"""Messages of a real peer, field by field as that peer logged them, and octet for octet back."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.registry import (
    AuthenticationMethod,
    CertificateEncoding,
    ConfigurationAttributeType,
    ConfigurationType,
    ExchangeType,
    KeyExchangeMethod,
    NotifyType,
    PayloadType,
    ProtocolId,
)
from xfrmpy.wire.header import decode_header_untrusted
from xfrmpy.wire.message import (
    Message,
    decode_message_untrusted,
    decode_payloads_untrusted,
    encode_message,
    encode_payloads,
    encrypted_prefix,
)
from xfrmpy.wire.payloads import (
    AuthPayload,
    CertPayload,
    CertreqPayload,
    ConfigurationAttribute,
    ConfigurationPayload,
    DeletePayload,
    EncryptedFragmentPayload,
    EncryptedPayload,
    IdiPayload,
    IdrPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    OpenPayload,
    SaPayload,
    TsiPayload,
    TsrPayload,
)

CAPTURES = Path(__file__).parent / "captures"
DATAGRAMS = sorted(p.stem for p in CAPTURES.glob("*.hex") if ".plain" not in p.name)
SEALED = [n for n in DATAGRAMS if (CAPTURES / f"{n}.plain.hex").exists()]
SPI_I, SPI_R = bytes.fromhex("bd69d467ccd69f25"), bytes.fromhex("e407209fc3d0b87b")


def octets(name: str) -> bytes:
    return bytes.fromhex((CAPTURES / f"{name}.hex").read_text())


def message(name: str) -> Message:
    return decode_message_untrusted(octets(name))


def inside(name: str) -> tuple[OpenPayload, ...]:
    sealed = message(name).sealed
    assert sealed is not None
    return decode_payloads_untrusted(sealed.first_inner, octets(f"{name}.plain"))


def notifies(payloads: tuple[object, ...]) -> list[NotifyType]:
    return [p.type for p in payloads if isinstance(p, NotifyPayload)]


@pytest.mark.parametrize("name", DATAGRAMS)
def test_a_captured_datagram_is_encoded_to_the_same_octets(name: str) -> None:
    assert encode_message(message(name)) == octets(name)


@pytest.mark.parametrize("name", SEALED)
def test_captured_inner_payloads_are_encoded_to_the_same_octets(name: str) -> None:
    sealed = message(name).sealed
    assert sealed is not None
    assert encode_payloads(inside(name)) == (sealed.first_inner, octets(f"{name}.plain"))


@pytest.mark.parametrize("name", SEALED)
def test_the_prefix_is_what_stood_before_the_sealed_octets(name: str) -> None:
    captured = message(name)
    sealed = captured.sealed
    assert isinstance(sealed, EncryptedPayload)
    prefix = encrypted_prefix(
        spi_i=captured.spi_i,
        spi_r=captured.spi_r,
        exchange=captured.exchange,
        is_response=captured.is_response,
        is_initiator=captured.is_initiator,
        message_id=captured.message_id,
        first_inner=sealed.first_inner,
        sealed_size=len(sealed.sealed),
    )
    assert prefix == octets(name)[: captured.sealed_at]
    assert prefix + sealed.sealed == octets(name)


def test_the_ike_sa_init_request_reads_as_its_sender_logged_it() -> None:
    header = decode_header_untrusted(octets("ike-sa-init-request"))
    assert (header.spi_i, header.spi_r) == (SPI_I, bytes(8))
    assert (header.is_initiator, header.is_response) == (True, False)
    assert (header.exchange, header.message_id) == (ExchangeType.IKE_SA_INIT, 0)
    assert (header.next_payload, header.length) == (PayloadType.SA, 356)
    assert (header.major, header.minor) == (2, 0)
    request = message("ike-sa-init-request")
    assert (request.sealed, request.sealed_at) == (None, 0)
    sa, ke, nonce = request.payloads[:3]
    assert isinstance(sa, SaPayload)
    assert [(p.number, p.protocol, p.spi) for p in sa.proposals] == [
        (1, ProtocolId.IKE, b""),
        (2, ProtocolId.IKE, b""),
    ]
    assert [str(p) for p in sa.proposals] == [
        "aes256gcm16-aes128gcm16-chacha20poly1305-prfsha384-prfsha256-x25519-ecp256-modp2048",
        "aes256-aes128-sha256-sha512-prfsha256-prfsha512-x25519-ecp384",
    ]
    assert isinstance(ke, KePayload)
    assert (ke.method, len(ke.data)) == (KeyExchangeMethod.CURVE25519, 32)
    assert isinstance(nonce, NoncePayload)
    assert len(nonce.data) == 32
    assert notifies(request.payloads) == [
        NotifyType.NAT_DETECTION_SOURCE_IP,
        NotifyType.NAT_DETECTION_DESTINATION_IP,
        NotifyType.IKEV2_FRAGMENTATION_SUPPORTED,
        NotifyType.SIGNATURE_HASH_ALGORITHMS,
        NotifyType.REDIRECT_SUPPORTED,
    ]
    assert request.payloads[6] == NotifyPayload(
        type=NotifyType.SIGNATURE_HASH_ALGORITHMS, data=bytes.fromhex("0002000300040005")
    )


def test_the_ike_sa_init_response_reads_as_its_receiver_logged_it() -> None:
    response = message("ike-sa-init-response")
    assert (response.spi_i, response.spi_r) == (SPI_I, SPI_R)
    assert (response.is_initiator, response.is_response) == (False, True)
    sa = response.payloads[0]
    assert isinstance(sa, SaPayload)
    assert [str(p) for p in sa.proposals] == ["aes256gcm16-prfsha384-x25519"]
    assert response.payloads[5] == CertreqPayload(
        encoding=CertificateEncoding.X509_SIGNATURE,
        data=bytes.fromhex("7189ce42575ba198b5c7ac87e400441ac9f7360b"),
    )
    assert notifies(response.payloads)[2:] == [
        NotifyType.IKEV2_FRAGMENTATION_SUPPORTED,
        NotifyType.SIGNATURE_HASH_ALGORITHMS,
        NotifyType.CHILDLESS_IKEV2_SUPPORTED,
        NotifyType.MULTIPLE_AUTH_SUPPORTED,
    ]


def test_the_ike_auth_exchange_reads_as_its_ends_logged_it() -> None:
    request, response = inside("ike-auth-request"), inside("ike-auth-response")
    assert request[0] == IdiPayload(identity=Identity.parse("a.example.net"))
    assert request[3] == IdrPayload(identity=Identity.parse("b.example.net"))
    auth = request[4]
    assert isinstance(auth, AuthPayload)
    assert (auth.method, len(auth.data)) == (AuthenticationMethod.SHARED_KEY, 48)
    sa = request[6]
    assert isinstance(sa, SaPayload)
    assert [str(p) for p in sa.proposals] == ["aes256-sha256-noesn", "aes128gcm16-esn-noesn"]
    assert {p.protocol for p in sa.proposals} == {ProtocolId.ESP}
    assert {p.spi.hex() for p in sa.proposals} == {"d469c0d6"}
    assert notifies(request) == [
        NotifyType.INITIAL_CONTACT,
        NotifyType.MOBIKE_SUPPORTED,
        NotifyType.ADDITIONAL_IP6_ADDRESS,
        NotifyType.MULTIPLE_AUTH_SUPPORTED,
        NotifyType.EAP_ONLY_AUTHENTICATION,
        NotifyType.IKEV2_MESSAGE_ID_SYNC_SUPPORTED,
    ]
    assert response[2] == ConfigurationPayload(
        kind=ConfigurationType.CFG_REPLY,
        attributes=(
            ConfigurationAttribute(
                type=ConfigurationAttributeType.INTERNAL_IP4_ADDRESS,
                data=ip_address("10.3.0.1").packed,
            ),
            ConfigurationAttribute(
                type=ConfigurationAttributeType.INTERNAL_IP4_DNS,
                data=ip_address("192.0.2.53").packed,
            ),
        ),
    )
    assert response[4:6] == (
        TsiPayload(
            selectors=(
                TrafficSelector.parse("10.3.0.1"),
                TrafficSelector.parse("10.1.0.0/16[tcp/443]"),
                TrafficSelector.parse("2001:db8:1::/48"),
            )
        ),
        TsrPayload(
            selectors=(
                TrafficSelector.parse("10.2.0.0/16"),
                TrafficSelector.parse("2001:db8:2::/48"),
            )
        ),
    )


def test_rekeying_and_deletion_name_the_spis_of_the_log() -> None:
    assert inside("rekey-child-request")[0] == NotifyPayload(
        type=NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=bytes.fromhex("d469c0d6")
    )
    assert inside("delete-child-request") == (
        DeletePayload(protocol=ProtocolId.ESP, spis=(bytes.fromhex("d469c0d6"),)),
    )
    assert inside("delete-ike-request") == (DeletePayload(protocol=ProtocolId.IKE),)
    assert inside("delete-ike-response") == ()
    sa = inside("rekey-ike-response")[0]
    assert isinstance(sa, SaPayload)
    assert [len(p.spi) for p in sa.proposals] == [8]


def test_fragments_are_numbered_and_only_the_first_names_the_inner_payload() -> None:
    first, last = message("fragment-1"), message("fragment-3")
    assert isinstance(first.sealed, EncryptedFragmentPayload)
    assert isinstance(last.sealed, EncryptedFragmentPayload)
    assert (first.sealed.number, first.sealed.total, first.sealed_at) == (1, 3, 36)
    assert (last.sealed.number, last.sealed.total, last.sealed_at) == (3, 3, 36)
    assert first.sealed.first_inner == PayloadType.IDI
    assert last.sealed.first_inner == PayloadType.NO_NEXT_PAYLOAD
    assert octets("fragment-1")[first.sealed_at :] == first.sealed.sealed


def test_joined_fragments_hold_a_certificate_and_a_signature() -> None:
    plain = octets("fragments.plain")
    payloads = decode_payloads_untrusted(PayloadType.IDI, plain)
    assert encode_payloads(payloads) == (PayloadType.IDI, plain)
    cert, auth = payloads[1], payloads[5]
    assert isinstance(cert, CertPayload)
    assert cert.encoding == CertificateEncoding.X509_SIGNATURE
    assert cert.data[:2] == b"\x30\x82"
    assert isinstance(auth, AuthPayload)
    assert auth.method == AuthenticationMethod.DIGITAL_SIGNATURE
