"""Distinguished names (X.501) as operators write them, as octets, and compared.

The library that knows them is imported where it is needed: the commands that only look at tunnels
do without it.
"""

# ruff: noqa: PLC0415 - see above
from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.x509 import Name

MAX_NAME_OCTETS = 4096
"""Ours; of a name as a peer sends it."""

_KEY = re.compile(r"(?:^|(?<=(?<!\\)[,+]))\s*([A-Za-z]+|[0-9.]+)\s*=\s*")
_MORE_KEYS = {"E": "1.2.840.113549.1.9.1", "EMAILADDRESS": "1.2.840.113549.1.9.1"}
"""What openssl and strongSwan write, beside the keys of RFC 4514."""

Comparable = tuple[frozenset[tuple[str, str]], ...]
"""Of each relative name, from the first octets on, its attributes: OID and what is compared."""


def encode_distinguished_name(text: str) -> bytes:
    """The DER of `O=Example, CN=sun`, its parts in the order in which they are written.

    That is the order of openssl and strongSwan; LDAP's is the other way round. Escapes are those of
    RFC 4514 section 2.4. Raises `ValueError` with a sentence for the operator.
    """
    from cryptography.x509 import Name

    tidy = _KEY.sub(_tidied, re.sub(r"\s+(?=,|$)", "", text))
    try:
        if not text.isprintable():
            raise ValueError
        return Name(Name.from_rfc4514_string(tidy).rdns[::-1]).public_bytes()
    except ValueError:
        example = "as in `C=CH, O=Example, CN=sun`"
        raise ValueError(f"{text!r} is not a distinguished name {example}") from None


def _tidied(key: re.Match[str]) -> str:
    name = key[1].upper()
    return f"{_MORE_KEYS.get(name, name)}="


def show_distinguished_name(octets: bytes) -> str:
    """As `encode_distinguished_name` reads it, in ASCII. Raises `ValueError`."""
    name = decode_distinguished_name_untrusted(octets)
    text = ", ".join(rdn.rfc4514_string() for rdn in name.rdns)
    same = decode_distinguished_name_untrusted(encode_distinguished_name(text))
    if not text.isascii() or comparable(same) != comparable(name):
        raise ValueError("a name that cannot be written")
    return text


def decode_distinguished_name_untrusted(octets: bytes) -> Name:
    """Raises `ValueError`."""
    from cryptography.x509 import Name

    if len(octets) > MAX_NAME_OCTETS:
        raise ValueError(f"a name of more than {MAX_NAME_OCTETS} octets")
    try:
        return Name.from_bytes(octets)
    except TypeError as error:  # of a string whose type does not go with its attribute
        raise ValueError(str(error)) from error


def comparable_name(octets: bytes) -> bytes:
    """The same octets for one name, also if it is written in LDAP's order; no DER.

    Octets that are no name are their own.
    """
    try:
        parts = comparable(decode_distinguished_name_untrusted(octets))
    except ValueError:
        return octets
    forward = [sorted(part) for part in parts]
    return repr(min(forward, forward[::-1])).encode()


def comparable(name: Name) -> Comparable:
    """What two equal names have in common (RFC 5280 section 7.1): neither case nor the type of
    string nor runs of white space matter."""
    return tuple(
        frozenset((a.oid.dotted_string, _folded(a.value)) for a in rdn) for rdn in name.rdns
    )


def wildcards(octets: bytes) -> int:
    """How many attributes of a name are `*`, which stands for any one; octets that are no name
    have none."""
    try:
        parts = comparable(decode_distinguished_name_untrusted(octets))
    except ValueError:
        return 0
    return sum(value == "*" for part in parts for _, value in part)


def matches_name(pattern: bytes, octets: bytes) -> bool:
    """Whether a name has as many attributes as the pattern, of the same types in the same order or
    in LDAP's, and each value that is not `*` there."""
    try:
        wanted, told = (
            comparable(decode_distinguished_name_untrusted(each)) for each in (pattern, octets)
        )
    except ValueError:
        return False
    return _match(wanted, told) or _match(wanted, told[::-1])


def _match(wanted: Comparable, told: Comparable) -> bool:
    """Of several attributes in one relative name each type is there once, so sorting pairs them."""
    return len(wanted) == len(told) and all(
        len(theirs) == len(ours)
        and all(a[0] == b[0] and a[1] in ("*", b[1]) for a, b in zip(ours, theirs, strict=True))
        for ours, theirs in (
            (sorted(part), sorted(other)) for part, other in zip(wanted, told, strict=True)
        )
    )


def _folded(value: str | bytes) -> str:
    text = value if isinstance(value, str) else value.hex()
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
