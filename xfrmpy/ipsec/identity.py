"""Who a peer says it is: the identities of RFC 7296 section 3.5, as text and as octets."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.distinguished_name import (
    comparable_name,
    encode_distinguished_name,
    matches_name,
    show_distinguished_name,
    wildcards,
)
from xfrmpy.registry import IdType

EAP_IDENTITY = IdType(201)
"""Of a user that EAP has authenticated: of the private numbers (201 to 255), and never on the wire,
so that no user of that name is taken for the peer with such an identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """An ID type with its octets, compared octet for octet."""

    type: IdType
    data: bytes

    @classmethod
    def parse(cls, text: str) -> Identity:
        """Read an identity as operators write it.

        An address is an address, `user@host` an e-mail address, `keyid:TEXT` or `keyid:0xHEX` an
        opaque key id, what has a `=` a distinguished name, anything else a fully qualified domain
        name (a leading `@` forces that). `NOBODY` and users of EAP cannot be written.
        Raises `ValueError` with a sentence for the operator.
        """
        if text.startswith("keyid:"):
            return cls(type=IdType.ID_KEY_ID, data=_key_id(text.removeprefix("keyid:")))
        if text == _NOBODY:
            raise ValueError(f"{text!r} is who proves nothing, which null_auth asks for")
        if text.startswith(_USER):
            raise ValueError(
                f"{text!r} is a user of EAP, whom auth: {{remote: {{eap: ...}}}} accepts"
            )
        if "=" in text:
            return cls(type=IdType.ID_DER_ASN1_DN, data=encode_distinguished_name(text))
        try:
            return cls.of_address(ip_address(text))
        except ValueError:
            pass
        if not text.isascii() or not text.isprintable() or " " in text or not text.strip("@"):
            raise ValueError(f"{text!r} is neither an address, a domain name nor user@host")
        if "@" in text[1:]:
            return cls(type=IdType.ID_RFC822_ADDR, data=text.encode())
        return cls(type=IdType.ID_FQDN, data=text.removeprefix("@").encode())

    @classmethod
    def of_address(cls, address: IpAddress) -> Identity:
        kind = IdType.ID_IPV4_ADDR if address.version == 4 else IdType.ID_IPV6_ADDR
        return cls(type=kind, data=address.packed)

    @classmethod
    def of_eap(cls, user: bytes) -> Identity:
        """A user as EAP knows it."""
        return cls(type=EAP_IDENTITY, data=user)

    @property
    def comparable(self) -> Identity:
        """Itself; of a distinguished name, what all ways of writing it have in common."""
        if self.type != IdType.ID_DER_ASN1_DN:
            return self
        return Identity(type=self.type, data=comparable_name(self.data))

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for many in a policy: `*.example.net`, `*@example.net`, `O=E, CN=*`."""
        match self.type:
            case IdType.ID_FQDN:
                return self.data.startswith(b"*.")
            case IdType.ID_RFC822_ADDR:
                return self.data.startswith(b"*@")
            case IdType.ID_DER_ASN1_DN:
                return wildcards(self.data) > 0
        return False

    def matches(self, told: Identity) -> bool:
        """Whether `told` is this identity, or one of those that a pattern stands for.

        `*.` is for host names of any depth below, but not for the name itself.
        """
        if not self.is_pattern:
            return told.comparable == self.comparable
        if told.type != self.type or told.is_pattern:
            return False
        if self.type == IdType.ID_DER_ASN1_DN:
            return matches_name(self.data, told.data)
        below = self.data[1:].lower()
        name = told.data.lower()
        return name.endswith(below) and len(name) > len(below) and b"*" not in name

    def __str__(self) -> str:
        """As `parse` reads it where it can: no two identities look alike, whatever a peer sends."""
        match self.type:
            case IdType.ID_FQDN | IdType.ID_RFC822_ADDR:
                text = self.data.decode("ascii", "backslashreplace")
                readable = (t for t in (text, f"@{text}") if _means(t, self))
                return next(readable, f"{self.type.name}:{ascii(text)[1:-1]}")
            case IdType.ID_IPV4_ADDR if len(self.data) == 4:
                return str(ip_address(self.data))
            case IdType.ID_IPV6_ADDR if len(self.data) == 16:
                return str(ip_address(self.data))
            case IdType.ID_KEY_ID:
                return f"keyid:0x{self.data.hex()}"
            case _ if self.type == EAP_IDENTITY:
                return f"{_USER}{ascii(self.data.decode('utf-8', 'backslashreplace'))[1:-1]}"
            case IdType.ID_DER_ASN1_DN:
                return _name(self.data) or f"{self.type.name}:0x{self.data.hex()}"
            case IdType.ID_NULL if not self.data:
                return _NOBODY
            case _:
                return f"{self.type.name}:0x{self.data.hex()}"


_NOBODY = "%null"
"""As libreswan writes it."""

_USER = "eap:"
"""As we do."""

NOBODY = Identity(type=IdType.ID_NULL, data=b"")
"""Of an end that proves nothing (RFC 7619 section 2.2)."""


def _name(octets: bytes) -> str:
    try:
        return show_distinguished_name(octets)
    except ValueError:
        return ""


def _means(text: str, identity: Identity) -> bool:
    try:
        return Identity.parse(text) == identity
    except ValueError:
        return False


def _key_id(text: str) -> bytes:
    try:
        octets = bytes.fromhex(text[2:]) if text.startswith("0x") else text.encode()
    except ValueError:
        raise ValueError(f"{text!r} is not an even number of hexadecimal digits") from None
    if not octets:
        raise ValueError("an empty key id")
    return octets
