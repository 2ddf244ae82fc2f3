"""The payloads of IKEv2 as values, each with its own body (RFC 7296 sections 3.3 to 3.16).

A payload's generic header (next payload, critical, length) belongs to the chain that it stands in:
`message.py`. Every class has `payload_type`, `encode_body` and, but for the two sealed ones,
`decode_body_untrusted`, which `DECODERS` looks up by type. What the RFC forbids inside one payload
is refused when the value is made (`ValueError`); what depends on other payloads is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Self, TypeAlias

from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import Proposal
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.registry import (
    AuthenticationMethod,
    CertificateEncoding,
    ConfigurationAttributeType,
    ConfigurationType,
    IdType,
    KeyExchangeMethod,
    NotifyType,
    PayloadType,
    ProtocolId,
)
from xfrmpy.wire.cursor import Cursor, Members, pack
from xfrmpy.wire.proposals import check_proposals, decode_proposals_untrusted, encode_proposals
from xfrmpy.wire.selectors import decode_selectors_untrusted, encode_selectors

MIN_NONCE, MAX_NONCE = 16, 256  # octets, RFC 7296 section 3.9
PUZZLE_KEYS = 4  # RFC 8019 section 7.1.3

# Ours. The longest reply seen in the field has some tens of attributes.
MAX_CONFIGURATION_ATTRIBUTES = 256

_KE = Struct(">H2x")
_TYPE_AND_RESERVED = Struct(">B3x")
_NOTIFY = Struct(">BBH")  # protocol, SPI size, type
_DELETE = Struct(">BBH")  # protocol, SPI size, number of SPIs
_ENCODING = Struct(">B")
_ATTRIBUTE = Struct(">HH")  # reserved bit and type, length
FRAGMENT_HEADER = Struct(">HH")  # number, total

_DELETED_SPI_SIZES: dict[int, int] = {ProtocolId.IKE: 0, ProtocolId.AH: 4, ProtocolId.ESP: 4}
_ATTRIBUTE_TYPE_MASK = 0x7FFF
_NOTIFY_TYPES = Members(NotifyType)
_PROTOCOLS = Members(ProtocolId)


class _Payload:
    """What every payload of a fixed type has."""

    __slots__ = ()
    TYPE: ClassVar[PayloadType]

    @property
    def payload_type(self) -> PayloadType:
        return self.TYPE


@dataclass(frozen=True, slots=True, kw_only=True)
class SaPayload(_Payload):
    """Section 3.3. Proposals are numbered from 1; a single one may have any number but 0."""

    TYPE: ClassVar = PayloadType.SA
    proposals: tuple[Proposal, ...]

    def __post_init__(self) -> None:
        check_proposals(self.proposals)

    def encode_body(self) -> bytes:
        return encode_proposals(self.proposals)

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor) -> Self:
        return cls(proposals=decode_proposals_untrusted(cursor))


@dataclass(frozen=True, slots=True, kw_only=True)
class KePayload(_Payload):
    """Section 3.4. Whether `data` has the size of the method's public value is not checked."""

    TYPE: ClassVar = PayloadType.KE
    method: KeyExchangeMethod
    data: bytes

    def encode_body(self) -> bytes:
        return pack(_KE, self.method) + self.data

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor) -> Self:
        (method,) = cursor.unpack(_KE)
        return cls(method=KeyExchangeMethod(method), data=cursor.rest())


@dataclass(frozen=True, slots=True, kw_only=True)
class _IdPayload(_Payload):
    """Section 3.5.

    `reserved` is kept as received, because what AUTH signs is the body octet for octet
    (RFC 7296 section 2.15: "the entire ID payloads excluding the fixed header").
    """

    identity: Identity
    reserved: bytes = bytes(3)

    def __post_init__(self) -> None:
        if len(self.reserved) != 3:
            raise ValueError("an ID payload has 3 reserved octets")

    def encode_body(self) -> bytes:
        return pack(_ENCODING, self.identity.type) + self.reserved + self.identity.data

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor) -> Self:
        (kind,) = cursor.unpack(_ENCODING)
        reserved = cursor.take(3)
        return cls(identity=Identity(type=IdType(kind), data=cursor.rest()), reserved=reserved)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdiPayload(_IdPayload):
    """The initiator's identity."""

    TYPE: ClassVar = PayloadType.IDI


@dataclass(frozen=True, slots=True, kw_only=True)
class IdrPayload(_IdPayload):
    """The responder's identity."""

    TYPE: ClassVar = PayloadType.IDR


@dataclass(frozen=True, slots=True, kw_only=True)
class _EncodedPayload(_Payload):
    """An encoding and data: sections 3.6 and 3.7."""

    encoding: CertificateEncoding
    data: bytes

    def encode_body(self) -> bytes:
        return pack(_ENCODING, self.encoding) + self.data

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor) -> Self:
        (encoding,) = cursor.unpack(_ENCODING)
        return cls(encoding=CertificateEncoding(encoding), data=cursor.rest())


@dataclass(frozen=True, slots=True, kw_only=True)
class CertPayload(_EncodedPayload):
    """Section 3.6."""

    TYPE: ClassVar = PayloadType.CERT


@dataclass(frozen=True, slots=True, kw_only=True)
class CertreqPayload(_EncodedPayload):
    """Section 3.7."""

    TYPE: ClassVar = PayloadType.CERTREQ


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthPayload(_Payload):
    """Section 3.8."""

    TYPE: ClassVar = PayloadType.AUTH
    method: AuthenticationMethod
    data: bytes

    def encode_body(self) -> bytes:
        return pack(_TYPE_AND_RESERVED, self.method) + self.data

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor) -> Self:
        (method,) = cursor.unpack(_TYPE_AND_RESERVED)
        return cls(method=AuthenticationMethod(method), data=cursor.rest())


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpaquePayload(_Payload):
    """A body without structure of ours."""

    data: bytes

    def encode_body(self) -> bytes:
        return self.data

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor) -> Self:
        return cls(data=cursor.rest())


@dataclass(frozen=True, slots=True, kw_only=True)
class NoncePayload(_OpaquePayload):
    """Section 3.9: 16 to 256 octets."""

    TYPE: ClassVar = PayloadType.NONCE

    def __post_init__(self) -> None:
        if not MIN_NONCE <= len(self.data) <= MAX_NONCE:
            raise ValueError(f"a nonce of {len(self.data)} octets")


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorIdPayload(_OpaquePayload):
    """Section 3.12."""

    TYPE: ClassVar = PayloadType.VENDOR_ID


@dataclass(frozen=True, slots=True, kw_only=True)
class EapPayload(_OpaquePayload):
    """Section 3.16: `data` is the EAP message of RFC 3748 section 4."""

    TYPE: ClassVar = PayloadType.EAP


@dataclass(frozen=True, slots=True, kw_only=True)
class PuzzleSolutionPayload(_Payload):
    """PS, RFC 8019 section 8.2: four keys of one size. Whether they solve anything is not known."""

    TYPE: ClassVar = PayloadType.PS
    keys: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if len(self.keys) != PUZZLE_KEYS or len({len(key) for key in self.keys}) != 1:
            raise ValueError("a puzzle solution is four keys of one size")
        if not self.keys[0]:
            raise ValueError("a puzzle solution of empty keys")

    def encode_body(self) -> bytes:
        return b"".join(self.keys)

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor) -> Self:
        size, left_over = divmod(cursor.remaining, PUZZLE_KEYS)
        if left_over:
            raise cursor.malformed("a puzzle solution whose size is no multiple of 4")
        return cls(keys=tuple([cursor.take(size) for _ in range(PUZZLE_KEYS)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyPayload(_Payload):
    """Section 3.10. `protocol` means nothing without an `spi`; it is kept as received."""

    TYPE: ClassVar = PayloadType.NOTIFY
    type: NotifyType
    data: bytes = b""
    protocol: ProtocolId = ProtocolId.NONE
    spi: bytes = b""

    def encode_body(self) -> bytes:
        return pack(_NOTIFY, self.protocol, len(self.spi), self.type) + self.spi + self.data

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor) -> Self:
        protocol, spi_size, kind = cursor.unpack(_NOTIFY)
        return cls(
            type=_NOTIFY_TYPES[kind],
            protocol=_PROTOCOLS[protocol],
            spi=cursor.take(spi_size),
            data=cursor.rest(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePayload(_Payload):
    """Section 3.11: the IKE SA itself (no SPI), or AH or ESP SAs by SPIs of 4 octets."""

    TYPE: ClassVar = PayloadType.DELETE
    protocol: ProtocolId
    spis: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        size = _DELETED_SPI_SIZES.get(self.protocol)
        if size is None:
            raise ValueError(f"deletion of an SA of protocol {self.protocol.name}")
        if self.spis and (size == 0 or {len(spi) for spi in self.spis} != {size}):
            raise ValueError(f"deletion of {self.protocol.name} SAs by SPIs of the wrong size")

    def encode_body(self) -> bytes:
        size = _DELETED_SPI_SIZES[self.protocol]
        return pack(_DELETE, self.protocol, size, len(self.spis)) + b"".join(self.spis)

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor) -> Self:
        protocol, size, count = cursor.unpack(_DELETE)
        if size != _DELETED_SPI_SIZES.get(protocol, size):
            raise cursor.malformed(f"an SPI size of {size} for protocol {protocol}")
        spis = tuple([cursor.take(size) for _ in range(count)])
        return cls(protocol=_PROTOCOLS[protocol], spis=spis)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TsPayload(_Payload):
    """Section 3.13.

    Selectors of types that we do not know (TS_SECLABEL of RFC 9478) are only counted in `unknown`,
    and cannot be sent.
    """

    selectors: tuple[TrafficSelector, ...]
    unknown: int = 0

    def __post_init__(self) -> None:
        if not self.selectors and not self.unknown:
            raise ValueError("no traffic selector")

    def encode_body(self) -> bytes:
        if self.unknown:
            raise ValueError("traffic selectors of unknown types cannot be sent")
        return encode_selectors(self.selectors)

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor) -> Self:
        selectors, unknown = decode_selectors_untrusted(cursor)
        return cls(selectors=selectors, unknown=unknown)


@dataclass(frozen=True, slots=True, kw_only=True)
class TsiPayload(_TsPayload):
    """The traffic selectors of the initiator's end."""

    TYPE: ClassVar = PayloadType.TSI


@dataclass(frozen=True, slots=True, kw_only=True)
class TsrPayload(_TsPayload):
    """The traffic selectors of the responder's end."""

    TYPE: ClassVar = PayloadType.TSR


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationAttribute:
    """Section 3.15.1; an empty value in a request asks for one."""

    type: ConfigurationAttributeType
    data: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationPayload(_Payload):
    """Section 3.15."""

    TYPE: ClassVar = PayloadType.CP
    kind: ConfigurationType
    attributes: tuple[ConfigurationAttribute, ...] = ()

    def encode_body(self) -> bytes:
        parts = [pack(_TYPE_AND_RESERVED, self.kind)]
        for attribute in self.attributes:
            if attribute.type > _ATTRIBUTE_TYPE_MASK:
                raise ValueError(f"{attribute.type} is no configuration attribute type")
            parts += [pack(_ATTRIBUTE, attribute.type, len(attribute.data)), attribute.data]
        return b"".join(parts)

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor) -> Self:
        (kind,) = cursor.unpack(_TYPE_AND_RESERVED)
        attributes: list[ConfigurationAttribute] = []
        while cursor.remaining:
            if len(attributes) == MAX_CONFIGURATION_ATTRIBUTES:
                raise cursor.malformed(f"more than {MAX_CONFIGURATION_ATTRIBUTES} attributes")
            number, length = cursor.unpack(_ATTRIBUTE)
            attribute_type = ConfigurationAttributeType(number & _ATTRIBUTE_TYPE_MASK)
            attributes.append(ConfigurationAttribute(type=attribute_type, data=cursor.take(length)))
        return cls(kind=ConfigurationType(kind), attributes=tuple(attributes))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptedPayload(_Payload):
    """SK, section 3.14. `sealed` is IV, ciphertext and ICV; `first_inner` is within."""

    TYPE: ClassVar = PayloadType.SK
    first_inner: PayloadType
    sealed: bytes

    def encode_body(self) -> bytes:
        return self.sealed

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor, first_inner: PayloadType) -> Self:
        return cls(first_inner=first_inner, sealed=cursor.rest())


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptedFragmentPayload(_Payload):
    """SKF, RFC 7383 section 2.5: fragment `number` of `total`, counted from 1.

    `first_inner` is NO_NEXT_PAYLOAD in all fragments but the first.
    """

    TYPE: ClassVar = PayloadType.SKF
    first_inner: PayloadType
    number: int
    total: int
    sealed: bytes

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.total:
            raise ValueError(f"fragment {self.number} of {self.total}")

    def encode_body(self) -> bytes:
        return pack(FRAGMENT_HEADER, self.number, self.total) + self.sealed

    @classmethod
    def decode_body_untrusted(cls, cursor: Cursor, first_inner: PayloadType) -> Self:
        number, total = cursor.unpack(FRAGMENT_HEADER)
        return cls(first_inner=first_inner, number=number, total=total, sealed=cursor.rest())


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownPayload:
    """A payload of a type that stands neither in `DECODERS` nor in `SEALED_DECODERS`."""

    type: PayloadType
    critical: bool
    data: bytes

    @property
    def payload_type(self) -> PayloadType:
        return self.type

    def encode_body(self) -> bytes:
        return self.data


OpenPayload: TypeAlias = (
    SaPayload
    | KePayload
    | IdiPayload
    | IdrPayload
    | CertPayload
    | CertreqPayload
    | AuthPayload
    | NoncePayload
    | NotifyPayload
    | DeletePayload
    | VendorIdPayload
    | TsiPayload
    | TsrPayload
    | ConfigurationPayload
    | EapPayload
    | PuzzleSolutionPayload
    | UnknownPayload
)
SealedPayload: TypeAlias = EncryptedPayload | EncryptedFragmentPayload
Payload: TypeAlias = OpenPayload | SealedPayload

DECODERS: dict[int, Callable[[Cursor], OpenPayload]] = {
    kind.TYPE: kind.decode_body_untrusted
    for kind in (
        SaPayload,
        KePayload,
        IdiPayload,
        IdrPayload,
        CertPayload,
        CertreqPayload,
        AuthPayload,
        NoncePayload,
        NotifyPayload,
        DeletePayload,
        VendorIdPayload,
        TsiPayload,
        TsrPayload,
        ConfigurationPayload,
        EapPayload,
        PuzzleSolutionPayload,
    )
}
SEALED_DECODERS: dict[int, Callable[[Cursor, PayloadType], SealedPayload]] = {
    kind.TYPE: kind.decode_body_untrusted for kind in (EncryptedPayload, EncryptedFragmentPayload)
}
