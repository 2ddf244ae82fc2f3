"""The data of the notifications REDIRECT and REDIRECTED_FROM (RFC 5685 sections 9.2 and 9.3)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from struct import Struct
from typing import TypeAlias

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.registry import GatewayIdentityType
from xfrmpy.wire.cursor import Cursor, Members, pack

Gateway: TypeAlias = "IpAddress | str"
"""An address, or a fully qualified domain name."""

LEAST_NONCE, MOST_NONCE = 16, 256
"""Octets, RFC 7296 section 3.9."""

_IDENTITY = Struct(">BB")
_TYPES = Members(GatewayIdentityType)
_SIZES = {GatewayIdentityType.IPV4: 4, GatewayIdentityType.IPV6: 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """Where to go instead. `nonce` is the initiator's, in IKE_SA_INIT only."""

    gateway: Gateway
    nonce: bytes = b""

    def encode(self) -> bytes:
        """Raises `ValueError` for a name that is too long or not ASCII."""
        return _encode_gateway(self.gateway) + self.nonce


def decode_redirect_untrusted(data: bytes) -> Redirect:
    """The data of REDIRECT. Raises `Malformed`."""
    cursor = Cursor(data, "REDIRECT")
    gateway = _decode_gateway(cursor)
    nonce = cursor.rest()
    if nonce and not LEAST_NONCE <= len(nonce) <= MOST_NONCE:
        raise cursor.malformed(f"a nonce of {len(nonce)} octets")
    return Redirect(gateway=gateway, nonce=nonce)


def encode_redirected_from(original: IpAddress) -> bytes:
    """The data of REDIRECTED_FROM."""
    return _encode_gateway(original)


def decode_redirected_from_untrusted(data: bytes) -> IpAddress:
    """The gateway that redirected the initiator, which has an address here. Raises `Malformed`."""
    cursor = Cursor(data, "REDIRECTED_FROM")
    original = _decode_gateway(cursor)
    cursor.expect_end()
    if isinstance(original, str):
        raise cursor.malformed("a name")
    return original


def _encode_gateway(gateway: Gateway) -> bytes:
    if isinstance(gateway, str):
        octets, kind = gateway.encode("ascii"), GatewayIdentityType.FQDN
    else:
        octets = gateway.packed
        is_v4 = gateway.version == 4
        kind = GatewayIdentityType.IPV4 if is_v4 else GatewayIdentityType.IPV6
    return pack(_IDENTITY, kind, len(octets)) + octets


def _decode_gateway(cursor: Cursor) -> Gateway:
    number, size = cursor.unpack(_IDENTITY)
    kind = _TYPES[number]
    octets = cursor.take(size)
    if kind is GatewayIdentityType.FQDN:
        return _name(cursor, octets)
    if _SIZES.get(kind) != size:
        raise cursor.malformed(f"{kind.name} of {size} octets")
    address = ip_address(octets)
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        raise cursor.malformed(f"{address} is no gateway's")
    return address


def _name(cursor: Cursor, octets: bytes) -> str:
    """A host name of letters, digits, hyphens and dots; what it resolves to is looked up."""
    name = octets.decode("ascii", errors="replace").lower()
    labels = name.removesuffix(".").split(".")
    if not all(0 < len(label) < 64 and _is_label(label) for label in labels):
        raise cursor.malformed("no host name")
    return name


def _is_label(label: str) -> bool:
    return all(c.isascii() and (c.isalnum() or c == "-") for c in label) and label[0] != "-"
