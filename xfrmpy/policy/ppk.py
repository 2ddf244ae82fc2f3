"""The post-quantum preshared keys of a tunnel: what their names are, and what they must not be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfrmpy.policy.model import Ppk
from xfrmpy.policy.schema.tunnel import Tunnel

if TYPE_CHECKING:
    from xfrmpy.policy.keys import KeyReader
    from xfrmpy.policy.resolve import Keypath, Place

WEAK_PPK = 32
"""Octets. RFC 8784 section 6 asks for 256 bits, of which a quantum computer leaves 128."""


def resolve_ppks(tunnel: Tunnel, place: Place, reader: KeyReader) -> tuple[Ppk, ...]:
    """The post-quantum preshared keys that can be read, each under a name of its own."""
    found: dict[bytes, Ppk] = {}
    for number, written in enumerate(tunnel.ppk or ()):
        path: Keypath = ("ppk", number)
        if written.secret is None:
            message = "'secret' of 'ppk' is missing"
            place.error("XF1005", path, message, "ppk: {secret: secret:NAME}", at_key=True)
            continue
        name = written.id or (written.secret.name if written.secret.scheme != "file" else "")
        if not name:
            message = "'id' of 'ppk' is missing: the name by which the peer knows the key"
            place.error("XF1005", path, message, "ppk: {secret: file:/PATH, id: NAME}")
            continue
        key = reader.shared_key(written.secret, place.mark((*path, "secret")), place.findings)
        if key is None:
            continue
        if len(key.octets) < WEAK_PPK:
            message = (
                f"the post-quantum preshared key {key.origin} has fewer than {WEAK_PPK} octets"
            )
            place.warn("XF1015", path, message)
        ppk = Ppk(id=name, key=key)
        if ppk.id_octets in found:
            place.error("XF1004", path, f"'id' of 'ppk': '{name}' is there twice")
        found[ppk.id_octets] = ppk
    return tuple(found.values())
