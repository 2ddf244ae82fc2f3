"""How a key on a token is named: a URI of RFC 7512, of which what follows decides is taken.

Read RFC 7512 section 2.3 first. A URI names exactly one key here, and the module that leads to it;
a PIN never stands in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, unquote_to_bytes

SCHEME = "pkcs11:"

MAX_URI = 2048
"""Characters; ours."""


class UriRefused(ValueError):
    """Why a URI names no key, in a sentence that goes on behind the URI's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUri:
    """What leads to a key. What is empty may be anything, but there must be one such key only."""

    module: str
    token: str = ""
    serial: str = ""
    manufacturer: str = ""
    model: str = ""
    object: str = ""
    id: bytes = b""


_PATH = ("token", "serial", "manufacturer", "model", "object", "id", "type")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def parse_uri(text: str) -> TokenUri:
    """Raises `UriRefused`, which quotes nothing that might be a PIN."""
    if not text.startswith(SCHEME) or len(text) > MAX_URI:
        raise UriRefused(f"must begin with {SCHEME} and have at most {MAX_URI} characters")
    if not text.isascii() or not text.isprintable() or " " in text or _PERCENT.search(text):
        raise UriRefused("must write all but ASCII, and spaces, as %XX")
    path, _, query = text.removeprefix(SCHEME).partition("?")
    named = _attributes(path, ";")
    asked = _attributes(query, "&")
    if "pin-value" in asked or "pin-value" in named:
        raise UriRefused("must not hold the PIN: name it as 'passphrase'")
    if not named.keys() <= set(_PATH) or not asked.keys() <= {"module-path"}:
        known = ", ".join((*_PATH, "module-path"))
        raise UriRefused(f"has an attribute that is not known here: {known} are")
    if named.get("type", "private") != "private":
        raise UriRefused("must be of a private key: type=private, or no type")
    module = unquote(asked.get("module-path", ""))
    if not module.startswith("/"):
        raise UriRefused("must end with the module: ?module-path=/PATH/OF/MODULE.so")
    if not (named.get("object") or named.get("id")):
        raise UriRefused("must name the key by object=LABEL or id=%XX")
    if not (named.get("token") or named.get("serial")):
        raise UriRefused("must name the token by token=LABEL or serial=NUMBER")
    words = {name: unquote(value) for name, value in named.items() if name not in ("id", "type")}
    return TokenUri(module=module, id=unquote_to_bytes(named.get("id", "")), **words)


def _attributes(text: str, separator: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(separator) if text else ():
        name, is_given, value = part.partition("=")
        if not is_given or name in found:
            raise UriRefused("must be NAME=VALUE, each name once")
        found[name] = value
    return found
