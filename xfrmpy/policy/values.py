"""What single values of a policy file may be: each function takes one and parses or refuses it.

A refusal is a `PydanticCustomError` whose type is the failure code; its message goes on from the
quoted name of the key (`'start' must be ...`). Nothing that may be a secret is ever quoted.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Callable, Iterable
from enum import StrEnum
from ipaddress import ip_address, ip_interface, ip_network
from typing import NamedTuple, NoReturn

from pydantic_core import PydanticCustomError

from xfrmpy.ipsec.addresses import IKE_PORT, IpAddress, IpNetwork
from xfrmpy.ipsec.distinguished_name import wildcards
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.interfaces import InterfaceAddress
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.proposals import TRANSFORMS_BY_NAME, Proposal, parse_proposal
from xfrmpy.ipsec.sad import MAX_RESOURCES, OUR_REQIDS
from xfrmpy.ipsec.selectors import MAX_PORT, TrafficSelector
from xfrmpy.ipsec.spd import PolicyDirection
from xfrmpy.policy.errors import shown
from xfrmpy.policy.profiles import FUTURE_PROFILES, PROFILES
from xfrmpy.registry import IdType, ProtocolId
from xfrmpy.tokens.uri import SCHEME, UriRefused, parse_uri

MAX_ITEMS = 255
"""Of a list: RFC 7296 counts selectors (section 3.13) and numbers proposals (3.3.1) in an octet."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
"""Of tunnels, children and secrets: safe as a file name and on a command line."""

NAME_RULE = "1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit"


class SecretReference(NamedTuple):
    """`secret:NAME`, `credential:NAME` or `file:/PATH`; of a key also `pkcs11:REST`."""

    scheme: str
    name: str


def refuse(code: str, message: str, hint: str = "", *, at_key: bool = False) -> NoReturn:
    """Give up on a value; `at_key` points to its key."""
    context = {"message": message, "hint": hint, "at_key": at_key}
    raise PydanticCustomError(code, "{message}", context)


def parse_text(value: object, limit: int = 255) -> str:
    if value is None:
        refuse("XF1004", "has no value")
    if isinstance(value, bool | int | float):
        refuse("XF1004", f"must be text, not {shown(value)}", "put it between quotes")
    if not isinstance(value, str):
        refuse("XF1004", "must be text")
    if not 0 < len(value) <= limit:
        refuse("XF1004", f"must have 1 to {limit} characters")
    return value


def as_list(value: object) -> list[object]:
    if isinstance(value, dict):
        refuse("XF1004", "must be text or a list")
    values = value if isinstance(value, list) else [value]
    if not 0 < len(values) <= MAX_ITEMS:
        refuse("XF1004", f"must have 1 to {MAX_ITEMS} items")
    return values


def parse_name(value: object) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        refuse("XF1004", f"is not a name: {NAME_RULE}")
    return value


def parse_choice(kind: type[StrEnum], value: object) -> StrEnum:
    text = parse_text(value)
    if text not in list(kind):
        choices = ", ".join(kind)
        refuse("XF1004", f"must be one of {choices}, not {shown(text)}", nearest(text, kind))
    return kind(text)


def parse_shunt_action(value: object) -> str:
    text = parse_text(value)
    if text not in ("bypass", "drop"):
        hint = nearest(text, ("bypass", "drop"))
        refuse("XF1004", f"must be bypass or drop, not {shown(text)}", hint)
    return text


def parse_default_directions(value: object) -> tuple[PolicyDirection, ...]:
    """In the order of `DEFAULT_DIRECTIONS`, each once."""
    texts = [parse_text(item) for item in as_list(value)]
    for text in texts:
        if text not in DEFAULT_DIRECTIONS:
            hint = nearest(text, DEFAULT_DIRECTIONS)
            refuse("XF1004", f"must be in, out, forward, or several, not {shown(text)}", hint)
    return tuple(each for word, each in DEFAULT_DIRECTIONS.items() if word in texts)


DEFAULT_DIRECTIONS = {
    "in": PolicyDirection.IN,
    "out": PolicyDirection.OUT,
    "forward": PolicyDirection.FORWARD,
}


def parse_mark(parse: Callable[[str], Mark], value: object) -> Mark:
    """A number is a mark, too."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    try:
        return parse(parse_text(text))
    except ValueError as error:
        message = str(error)
    refuse("XF1004", f"is no mark: {message[:120]}", "write VALUE or VALUE/MASK, in hex or decimal")


def parse_number(least: float, most: float, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        refuse("XF1004", f"must be a number from {least:g} to {most:g}, not {shown(value)}")
    return value


def parse_whole_number(least: int, most: int, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        refuse("XF1004", f"must be a whole number from {least} to {most}, not {shown(value)}")
    return value


def parse_resources(value: object) -> int:
    """Zero for `off`, the most there can be for `auto`."""
    if value in ("auto", "off"):
        return MAX_RESOURCES if value == "auto" else 0
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= MAX_RESOURCES:
        number = f"a whole number from 2 to {MAX_RESOURCES}"
        refuse("XF1004", f"must be auto, off or {number}, not {shown(value)}")
    return value


def parse_peer_port(value: object) -> int:
    """One on which IKE messages have a marker before them, for ESP comes there too."""
    port = parse_whole_number(1, MAX_PORT, value)
    if port == IKE_PORT:
        refuse("XF1004", "cannot be 500, where no ESP goes (RFC 7296 section 2.23)")
    return port


_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(least: float, most: float, value: object) -> float:
    """Seconds; a bare number is seconds too."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    seconds = float(found[1]) * _UNITS[found[2]] if found else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        refuse("XF1004", f"must be a time such as 30s, 5m or 1h, not {shown(value)}")
    if not least <= seconds <= most:
        refuse("XF1004", f"must be from {least:g}s to {most:g}s, not {shown(value)}")
    return float(seconds)


def parse_duration_or_off(shortest: float, longest: float, value: object) -> float:
    """Zero for `off`."""
    return 0.0 if value == "off" else parse_duration(shortest, longest, value)


_OCTETS = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(kB|MB|GB|TB)", re.ASCII)
_OCTET_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
LEAST_OCTETS = 10**6
"""Fewer pass a tunnel in less time than a rekeying takes."""


def parse_octets(value: object) -> int:
    found = _OCTETS.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        refuse("XF1004", f"must be an amount such as 500MB or 2TB, not {shown(value)}")
    octets = int(float(found[1]) * _OCTET_UNITS[found[2]])
    if octets < LEAST_OCTETS:
        refuse("XF1004", f"must be at least 1MB, not {shown(value)}")
    return octets


MAX_LIFETIME = 30 * 86400


def parse_lifetime(value: object) -> float:
    """Seconds; 0 is `off`."""
    return parse_duration_or_off(10, MAX_LIFETIME, value)


_YES_AND_NO = {"yes": True, "no": False}


DEVICE_NAME = re.compile(r"(?!(?:all|default|lo)$)[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)
"""As the kernel has them, less what is of another meaning somewhere."""


def parse_device_name(value: object) -> str:
    text = parse_text(value)
    if not DEVICE_NAME.fullmatch(text):
        rule = "1 to 15 letters, digits, '.', '_' and '-', the first a letter or digit"
        refuse("XF1004", f"must be the name of a network device: {rule}")
    return text


def parse_interface_address(value: object) -> InterfaceAddress:
    text = parse_text(value)
    try:
        found = ip_interface(text)
    except ValueError:
        refuse("XF1004", f"must be an address such as 169.254.10.1/30, not {shown(text)}")
    if "%" in text or found.ip.is_unspecified or found.ip.is_multicast:
        refuse("XF1004", f"must be the address of one host without a zone, not {shown(text)}")
    return InterfaceAddress.of(found)


def parse_network(value: object) -> IpNetwork:
    text = parse_text(value)
    try:
        return ip_network(text)
    except ValueError:
        refuse("XF1004", f"must be a prefix, not {shown(text)}", _network_hint(text))


def parse_if_id(value: object) -> int:
    number = parse_whole_number(1, 0xFFFFFFFF, value)
    if number in OUR_REQIDS:
        refuse("XF1004", f"cannot be {shown(value)}: such are given by xfrmpy itself")
    return number


def as_interface_settings(value: object) -> object:
    """Short forms of `interface`: an address, or a list of them."""
    return value if isinstance(value, dict) else {"address": value}


def parse_yes_no(value: object) -> bool:
    """Words to YAML 1.2; `true` and `false` are taken too."""
    found = value if isinstance(value, bool) else _YES_AND_NO.get(str(value))
    if found is None:
        refuse("XF1004", f"must be yes or no, not {shown(value)}")
    return found


_HOST_NAME = re.compile(
    r"(?=.{1,253}$)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*"
    r"(?=.*[A-Za-z])[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.?",
    re.ASCII,
)
"""The last label must hold a letter, or 203.0.113.777 would pass for a name."""


def parse_peer(value: object) -> str:
    text = parse_text(value)
    try:
        address = ip_address(text)
    except ValueError:
        if _HOST_NAME.fullmatch(text):
            return text
        hint = "leave 'peer' out to listen for any peer" if text in ("%any", "*") else ""
        refuse("XF1004", f"must be an address or a host name, not {shown(text)}", hint)
    return str(_usable(address))


def parse_address(value: object) -> IpAddress:
    text = parse_text(value)
    try:
        address = ip_address(text)
    except ValueError:
        refuse("XF1004", f"must be an IP address, not {shown(text)}")
    return _usable(address)


def _usable(address: IpAddress) -> IpAddress:
    if address.is_unspecified or address.is_multicast or "%" in str(address):
        refuse("XF1004", f"must be the address of one host without a zone, not {address}")
    return address


def parse_peer_identity(value: object) -> Identity:
    """One identity, or a pattern: `*.` or `*@` and a name, or a name with values that are `*`."""
    text = parse_text(value)
    try:
        pattern = Identity.parse(text)
    except ValueError:
        pattern = None
    if pattern is None or not pattern.is_pattern or len(text) <= len("*."):
        return parse_identity(text)
    is_name = pattern.type == IdType.ID_DER_ASN1_DN
    if text.count("*") != (wildcards(pattern.data) if is_name else 1):
        return parse_identity(text)
    return pattern


def parse_identity(value: object) -> Identity:
    text = parse_text(value)
    if text.startswith("%") or "*" in text:
        refuse("XF1004", f"must be one identity: {shown(text)} could be anybody's")
    try:
        identity = Identity.parse(text)
    except ValueError:
        identity = None
    if identity is None or not identity.data:
        forms = "an address, a domain name, user@host, keyid:TEXT, keyid:0xHEX or O=Name, CN=Name"
        refuse("XF1004", f"must be {forms}, not {shown(text)}")
    return identity


def parse_selector(value: object) -> TrafficSelector:
    text = parse_text(value)
    try:
        if "%" in text:
            raise ValueError("an address of a traffic selector has no zone")
        return TrafficSelector.parse(text)
    except ValueError as error:
        message = str(error)
    refuse("XF1004", f"is not a traffic selector: {message[:120]}", _network_hint(text))


def _network_hint(text: str) -> str:
    try:
        return f"did you mean {ip_network(text, strict=False)}?"
    except ValueError:
        return ""


def parse_one_proposal(protocol: ProtocolId, value: object) -> Proposal:
    text = parse_text(value, limit=1000)
    try:
        return parse_proposal(text, protocol)
    except ValueError as error:
        message = str(error)
    unknown = [w for w in text.strip().lower().split("-") if w not in TRANSFORMS_BY_NAME]
    hint = nearest(unknown[0], TRANSFORMS_BY_NAME) if unknown else ""
    refuse("XF1004", f"is not a proposal: {message[:120]}", hint)


def parse_profile(value: object) -> str:
    text = parse_text(value)
    if text in FUTURE_PROFILES:
        refuse("XF1011", f"cannot be {text} yet")
    if text not in PROFILES:
        choices = ", ".join(PROFILES)
        refuse("XF1004", f"must be one of {choices}, not {shown(text)}", nearest(text, PROFILES))
    return text


def parse_secret_reference(value: object) -> SecretReference:
    """Refuses without quoting: whatever stands here may be the secret itself."""
    if isinstance(value, dict | list) or value is None:
        refuse("XF1004", "must be a reference such as secret:NAME")
    scheme, colon, name = str(value).partition(":")
    match scheme if colon else None:
        case "secret" if NAME.fullmatch(name):
            return SecretReference(scheme, name)
        case "secret":
            refuse("XF1004", f"must name the secret with {NAME_RULE}")
        case "file" if name.startswith("/") and len(name) < 4096:
            return SecretReference(scheme, name)
        case "file":
            refuse("XF1004", "must give the whole path of the file, as in file:/PATH")
        case "credential" if NAME.fullmatch(name):
            return SecretReference(scheme, name)
        case "credential":
            refuse("XF1004", f"must name the credential with {NAME_RULE}")
        case _:
            hint = "put it into a file and write secret:NAME or file:/PATH"
            refuse("XF1010", "must not hold the secret itself", hint)


def parse_key_reference(value: object) -> SecretReference:
    """A secret, or a URI of a key on a token, which is quoted as little."""
    if not isinstance(value, str) or not value.startswith(SCHEME):
        return parse_secret_reference(value)
    try:
        parse_uri(value)
    except UriRefused as error:
        message = str(error)
    else:
        return SecretReference(SCHEME.removesuffix(":"), value.removeprefix(SCHEME))
    example = "pkcs11:token=LABEL;object=LABEL?module-path=/PATH/OF/MODULE.so"
    refuse("XF1010" if "PIN" in message else "XF1004", message, example)


MAX_PPK_ID = 128
"""Octets of the name of a post-quantum preshared key."""


def parse_ppk_id(value: object) -> str:
    text = parse_text(value, limit=2 * MAX_PPK_ID + 2)
    if text.startswith("0x"):
        digits = text[2:]
        if not digits or len(digits) % 2 or not set(digits) <= set(string.hexdigits):
            refuse("XF1004", "must have pairs of hex digits behind 0x")
        return text.lower()
    if not text.isprintable() or len(text.encode()) > MAX_PPK_ID:
        refuse("XF1004", f"must be printable text of at most {MAX_PPK_ID} octets")
    return text


MAX_SHORT_TEXT = 253
"""Octets: the most that an attribute of RADIUS carries (RFC 2865 section 5)."""


def parse_short_text(value: object) -> str:
    """A name that an AAA server may have to be told."""
    text = parse_text(value)
    if not text.isprintable() or len(text.encode()) > MAX_SHORT_TEXT:
        refuse("XF1004", f"must be printable text of at most {MAX_SHORT_TEXT} octets")
    return text


def as_list_of_maps(value: object) -> object:
    """One map, or its short form, is a list of one."""
    return as_list(value) if isinstance(value, list) else [value]


def as_ppk_settings(value: object) -> object:
    """The short form: where the secret is."""
    return value if isinstance(value, dict) else {"secret": value}


def as_radius_server(value: object) -> object:
    """The short form: its address."""
    return value if isinstance(value, dict) else {"address": value}


def parse_public_key(value: object) -> str:
    """Refuses without quoting: somebody may have taken the private key."""
    text = parse_text(value, limit=4096)
    if not text.startswith("file:/") and not _BASE64.fullmatch(text):
        refuse("XF1004", "must be a public key in base64, or file:/PATH of one")
    return text


_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}", re.ASCII)


def parse_certificate_reference(value: object) -> str:
    """A name, of a file in the directory for its kind, or `file:/PATH`."""
    text = parse_text(value)
    if not text.startswith("file:/") and not NAME.fullmatch(text):
        refuse("XF1004", "must be the name of a certificate, or file:/PATH of a file of them")
    return text


def refuse_not_yet(_value: object) -> NoReturn:
    refuse("XF1011", "is not supported yet", at_key=True)


def as_suite_settings(value: object) -> object:
    """Short forms of `ike` and `esp`: a profile's name, a proposal, or a list of proposals."""
    if isinstance(value, str) and (value in PROFILES or value in FUTURE_PROFILES):
        return {"profile": value}
    return value if isinstance(value, dict) else {"proposals": value}


def nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word[:100], list(known), n=1)
    return f"did you mean {found[0]}?" if found else ""
