"""What holds of every message: it comes back as it went, and no octets raise but `Malformed`."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import Proposal, Transform
from xfrmpy.ipsec.selectors import MAX_PORT, TrafficSelector
from xfrmpy.registry import (
    ALGORITHM_REGISTRIES,
    AuthenticationMethod,
    CertificateEncoding,
    ConfigurationAttributeType,
    ConfigurationType,
    ExchangeType,
    IdType,
    KeyExchangeMethod,
    NotifyType,
    PayloadType,
    ProtocolId,
    TransformType,
)
from xfrmpy.wire.cursor import Malformed
from xfrmpy.wire.header import decode_header_untrusted
from xfrmpy.wire.message import (
    MAX_PAYLOADS,
    Message,
    decode_message_untrusted,
    decode_payloads_untrusted,
    encode_message,
    encode_payloads,
    encrypted_prefix,
)
from xfrmpy.wire.payloads import (
    DECODERS,
    SEALED_DECODERS,
    AuthPayload,
    CertPayload,
    CertreqPayload,
    ConfigurationAttribute,
    ConfigurationPayload,
    DeletePayload,
    EapPayload,
    EncryptedFragmentPayload,
    EncryptedPayload,
    IdiPayload,
    IdrPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    OpenPayload,
    PuzzleSolutionPayload,
    SaPayload,
    SealedPayload,
    TsiPayload,
    TsrPayload,
    UnknownPayload,
    VendorIdPayload,
)

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
octets = st.binary(max_size=40)
spis = st.binary(min_size=8, max_size=8)
protocols = u8.map(ProtocolId)
payload_types = u8.map(PayloadType)


@st.composite
def transforms(draw: st.DrawFn) -> Transform:
    kind = TransformType(draw(st.integers(0, 15) | u8))
    number = draw(st.integers(0, 40) | u16)
    return Transform(
        type=kind,
        id=ALGORITHM_REGISTRIES[kind](number) if kind in ALGORITHM_REGISTRIES else number,
        key_bits=draw(st.none() | u16),
    )


@st.composite
def sa_payloads(draw: st.DrawFn) -> SaPayload:
    bodies = draw(
        st.lists(
            st.tuples(protocols, octets, st.lists(transforms(), min_size=1, max_size=6)),
            min_size=1,
            max_size=4,
        )
    )
    first = draw(st.integers(1, 255)) if len(bodies) == 1 else 1
    return SaPayload(
        proposals=tuple(
            Proposal(protocol=protocol, number=number, spi=spi, transforms=tuple(chosen))
            for number, (protocol, spi, chosen) in enumerate(bodies, first)
        )
    )


@st.composite
def selectors(draw: st.DrawFn) -> TrafficSelector:
    addresses = draw(st.sampled_from([st.ip_addresses(v=4), st.ip_addresses(v=6)]))
    start, end = sorted((draw(addresses), draw(addresses)), key=int)
    ports = draw(st.tuples(u16, u16).map(sorted) | st.just([MAX_PORT, 0]))
    return TrafficSelector(
        protocol=draw(u8),
        start_port=ports[0],
        end_port=ports[1],
        start_address=start,
        end_address=end,
    )


@st.composite
def fragments(draw: st.DrawFn) -> EncryptedFragmentPayload:
    total = draw(st.integers(1, 0xFFFF))
    return EncryptedFragmentPayload(
        first_inner=draw(payload_types),
        number=draw(st.integers(1, total)),
        total=total,
        sealed=draw(octets),
    )


identities = st.builds(Identity, type=u8.map(IdType), data=octets)
reserved = st.binary(min_size=3, max_size=3)
some_selectors = st.lists(selectors(), min_size=1, max_size=4).map(tuple)
encodings = u8.map(CertificateEncoding)
attributes = st.builds(
    ConfigurationAttribute,
    type=st.integers(0, 0x7FFF).map(ConfigurationAttributeType),
    data=octets,
)
KNOWN: dict[int, st.SearchStrategy[OpenPayload]] = {
    PayloadType.SA: sa_payloads(),
    PayloadType.KE: st.builds(KePayload, method=u16.map(KeyExchangeMethod), data=octets),
    PayloadType.IDI: st.builds(IdiPayload, identity=identities, reserved=reserved),
    PayloadType.IDR: st.builds(IdrPayload, identity=identities, reserved=reserved),
    PayloadType.CERT: st.builds(CertPayload, encoding=encodings, data=octets),
    PayloadType.CERTREQ: st.builds(CertreqPayload, encoding=encodings, data=octets),
    PayloadType.AUTH: st.builds(AuthPayload, method=u8.map(AuthenticationMethod), data=octets),
    PayloadType.NONCE: st.builds(NoncePayload, data=st.binary(min_size=16, max_size=256)),
    PayloadType.NOTIFY: st.builds(
        NotifyPayload, type=u16.map(NotifyType), data=octets, protocol=protocols, spi=octets
    ),
    PayloadType.DELETE: st.just(DeletePayload(protocol=ProtocolId.IKE))
    | st.builds(
        DeletePayload,
        protocol=st.sampled_from([ProtocolId.ESP, ProtocolId.AH]),
        spis=st.lists(st.binary(min_size=4, max_size=4), max_size=4).map(tuple),
    ),
    PayloadType.VENDOR_ID: st.builds(VendorIdPayload, data=octets),
    PayloadType.TSI: st.builds(TsiPayload, selectors=some_selectors),
    PayloadType.TSR: st.builds(TsrPayload, selectors=some_selectors),
    PayloadType.CP: st.builds(
        ConfigurationPayload,
        kind=u8.map(ConfigurationType),
        attributes=st.lists(attributes, max_size=4).map(tuple),
    ),
    PayloadType.EAP: st.builds(EapPayload, data=octets),
    PayloadType.PS: st.builds(
        PuzzleSolutionPayload,
        keys=st.integers(1, 64).flatmap(
            lambda size: st.tuples(*[st.binary(min_size=size, max_size=size)] * 4)
        ),
    ),
}
unknown_payloads = st.builds(
    UnknownPayload,
    type=st.sampled_from(
        [PayloadType(n) for n in range(1, 256) if n not in DECODERS | SEALED_DECODERS]
    ),
    critical=st.booleans(),
    data=octets,
)
open_payloads = st.one_of(*KNOWN.values(), unknown_payloads)
sealed_payloads: st.SearchStrategy[SealedPayload] = (
    st.builds(EncryptedPayload, first_inner=payload_types, sealed=octets) | fragments()
)
chains = st.lists(open_payloads, max_size=6).map(tuple)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    return Message(
        spi_i=draw(spis),
        spi_r=draw(spis),
        exchange=ExchangeType(draw(u8)),
        is_response=draw(st.booleans()),
        is_initiator=draw(st.booleans()),
        message_id=draw(st.integers(0, 2**32 - 1)),
        payloads=draw(chains) + draw(st.just(()) | st.tuples(sealed_payloads)),
    )


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """The octets after a few of them were replaced, inserted or cut out."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 4)))
        data[start:end] = draw(st.binary(max_size=4))
    return bytes(data)


def with_length(data: bytes) -> bytes:
    """The datagram with the right length in its header, so that the payloads are looked at."""
    return data[:24] + len(data).to_bytes(4, "big") + data[28:]


def can_be_sent(payload: object) -> bool:
    """False for what is kept for display only: see `Transform` and `TsiPayload`."""
    match payload:
        case SaPayload(proposals=proposals):
            return not any(t.unknown_attributes for p in proposals for t in p.transforms)
        case TsiPayload(unknown=unknown) | TsrPayload(unknown=unknown):
            return unknown == 0
        case _:
            return True


def decodes_or_is_malformed(data: bytes) -> None:
    try:
        message = decode_message_untrusted(data)
    except Malformed:
        return
    if all(map(can_be_sent, message.payloads)):
        assert decode_message_untrusted(encode_message(message)) == message


def test_every_decoder_is_exercised_below() -> None:
    assert set(KNOWN) == set(DECODERS)


@pytest.mark.parametrize("kind", sorted(KNOWN))
@given(data=st.data())
def test_a_payload_comes_back_as_it_went(kind: int, data: st.DataObject) -> None:
    payload = data.draw(KNOWN[kind])
    first, octets_sent = encode_payloads((payload,))
    assert first == kind
    assert decode_payloads_untrusted(first, octets_sent) == (payload,)


@given(chains)
def test_inner_payloads_come_back_as_they_went(chain: tuple[OpenPayload, ...]) -> None:
    assert decode_payloads_untrusted(*encode_payloads(chain)) == chain


@given(messages())
def test_a_message_comes_back_as_it_went(message: Message) -> None:
    data = encode_message(message)
    decoded = decode_message_untrusted(data)
    assert decoded == message
    assert decode_header_untrusted(data).length == len(data)
    sealed = message.sealed
    assert data[decoded.sealed_at :] == (data if sealed is None else sealed.sealed)


@given(messages(), payload_types, octets)
def test_prefix_and_sealed_octets_make_a_message(
    message: Message, first_inner: PayloadType, sealed: bytes
) -> None:
    prefix = encrypted_prefix(
        spi_i=message.spi_i,
        spi_r=message.spi_r,
        exchange=message.exchange,
        is_response=message.is_response,
        is_initiator=message.is_initiator,
        message_id=message.message_id,
        first_inner=first_inner,
        sealed_size=len(sealed),
    )
    decoded = decode_message_untrusted(prefix + sealed)
    assert decoded.payloads == (EncryptedPayload(first_inner=first_inner, sealed=sealed),)
    assert decoded.sealed_at == len(prefix)


@given(st.binary(max_size=400))
@example(b"")
@example(bytes(28))
def test_any_octets_are_a_message_or_malformed(data: bytes) -> None:
    decodes_or_is_malformed(data)
    if len(data) >= 28:
        decodes_or_is_malformed(with_length(data[:17] + b"\x20" + data[18:]))


@given(payload_types, st.binary(max_size=400))
def test_any_octets_are_payloads_or_malformed(first: PayloadType, data: bytes) -> None:
    try:
        payloads = decode_payloads_untrusted(first, data)
    except Malformed:
        return
    assert len(payloads) <= MAX_PAYLOADS


@given(messages().map(encode_message).flatmap(mutated))
def test_a_damaged_message_is_a_message_or_malformed(data: bytes) -> None:
    decodes_or_is_malformed(data)
    if len(data) >= 28:
        decodes_or_is_malformed(with_length(data))


@functools.cache
def captured() -> list[bytes]:
    folder = Path(__file__).parent / "captures"
    return [bytes.fromhex(p.read_text()) for p in sorted(folder.glob("ike-sa-init-*.hex"))]


@given(st.data())
def test_a_damaged_captured_message_is_a_message_or_malformed(data: st.DataObject) -> None:
    damaged = data.draw(mutated(data.draw(st.sampled_from(captured()))))
    decodes_or_is_malformed(damaged)
    if len(damaged) >= 28:
        decodes_or_is_malformed(with_length(damaged))
