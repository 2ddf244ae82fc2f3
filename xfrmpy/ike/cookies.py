"""Stateless cookies: what a responder can recognise without having remembered it.

Read RFC 7296 section 2.6 and RFC 8019 section 7.1.1.3 first:

    Cookie = <VersionIDofSecret> | <AdditionalInfo> |
                      Hash(Ni | IPi | SPIi | <AdditionalInfo> | <secret>)

Neither the port nor the KE payload is in it: a NAT may change the one between two requests, and
the initiator changes the other when it is asked for another group (section 2.6.1).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

from xfrmpy.ipsec.addresses import IpAddress

INFO_SIZE = 3
"""Octets of additional information, which a cookie carries in clear, but authentic."""

SECRET_SECONDS = 60.0
"""How long a secret makes cookies; for as long again it recognises them. strongSwan changes its
secret every 10 to 120 seconds, and keeps the one before, too."""

_SECRET_SIZE = 32
_HASH = "sha256"
_MAC_SIZE = 32
_COOKIE_SIZE = 1 + INFO_SIZE + _MAC_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who a cookie is for: what its request will show again."""

    address: IpAddress
    spi_i: bytes
    nonce_i: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Secret:
    version: int
    octets: bytes = field(repr=False)
    renew_at: float


class CookieJar:
    """The current secret and the one before it; none is made before a cookie is wanted."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._secrets: tuple[_Secret, ...] = ()

    def bake(self, caller: Caller, info: bytes, now: float) -> bytes:
        """A cookie for a caller: 36 octets, `INFO_SIZE` of them `info`."""
        self._renew(now)
        return _cookie(self._secrets[0], caller, info)

    def recognise(self, cookie: bytes, caller: Caller, now: float) -> bytes | None:
        """The information in a cookie; None if it is not one of ours for this caller, or too old.

        Such a cookie is to be ignored (RFC 7296 section 2.6).
        """
        if len(cookie) != _COOKIE_SIZE:
            return None
        info = cookie[1 : 1 + INFO_SIZE]
        for secret in self._secrets:
            is_known = secret.version == cookie[0] and now < secret.renew_at + SECRET_SECONDS
            if is_known and hmac.compare_digest(_cookie(secret, caller, info), cookie):
                return info
        return None

    def _renew(self, now: float) -> None:
        if self._secrets and now < self._secrets[0].renew_at:
            return
        secret = _Secret(
            version=(self._secrets[0].version + 1) % 256 if self._secrets else 0,
            octets=self._random(_SECRET_SIZE),
            renew_at=now + SECRET_SECONDS,
        )
        self._secrets = (secret, *self._secrets[:1])


def _cookie(secret: _Secret, caller: Caller, info: bytes) -> bytes:
    head = bytes([secret.version]) + info
    address = caller.address
    content = head + bytes([address.version]) + address.packed + caller.spi_i + caller.nonce_i
    return head + hmac.digest(secret.octets, content, _HASH)
