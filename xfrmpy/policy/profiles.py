"""The named sets of proposals, best first.

What is offered first is what a good peer takes. AEAD ciphers and others cannot share a proposal
(RFC 7296 section 3.3), so each profile has one of each. Read RFC 8247 and RFC 8221 before changing.
"""

from __future__ import annotations

from dataclasses import dataclass

from xfrmpy.ipsec.proposals import Proposal, parse_proposal
from xfrmpy.registry import ProtocolId


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The proposals of one profile, as an operator would write them."""

    ike: tuple[str, ...]
    esp: tuple[str, ...]
    ah: tuple[str, ...]


DEFAULT_PROFILE = "modern"

_GROUPS = "x25519-ecp384-ecp256-modp3072-modp4096"
_ML_KEM = "ke1_mlkem768-ke1_mlkem1024"
_ALL_GROUPS = f"{_GROUPS}-ecp521-modp2048"


def _with_and_without_groups(groups: str, *proposals: str) -> tuple[str, ...]:
    """Forward secrecy first; and none, for a peer that rekeys its Child SAs without."""
    return (*(f"{proposal}-{groups}" for proposal in proposals), *proposals)


PROFILES = {
    "modern": Profile(
        ike=(
            f"aes256gcm16-aes128gcm16-chacha20poly1305-prfsha384-prfsha256-{_GROUPS}-{_ML_KEM}",
            f"aes256gcm16-aes128gcm16-chacha20poly1305-prfsha384-prfsha256-{_GROUPS}",
            f"aes256-aes128-sha384-sha256-{_GROUPS}",
        ),
        esp=_with_and_without_groups(
            _GROUPS,
            "aes256gcm16-aes128gcm16-chacha20poly1305-esn-noesn",
            "aes256-sha256-esn-noesn",
        ),
        ah=_with_and_without_groups(_GROUPS, "sha256-sha512-esn-noesn"),
    ),
    "compat": Profile(
        ike=(
            f"aes256gcm16-aes128gcm16-chacha20poly1305-prfsha384-prfsha256-prfsha512-{_ALL_GROUPS}",
            f"aes256-aes128-aes192-sha256-sha384-sha512-{_ALL_GROUPS}",
        ),
        esp=_with_and_without_groups(
            _ALL_GROUPS,
            "aes256gcm16-aes128gcm16-aes192gcm16-chacha20poly1305-esn-noesn",
            "aes256-aes128-aes192-sha256-sha384-sha512-esn-noesn",
        ),
        ah=_with_and_without_groups(_ALL_GROUPS, "sha256-sha384-sha512-esn-noesn"),
    ),
}
"""`modern` has nothing that RFC 8247 and RFC 8221 do not recommend, and IKE SAs with ML-KEM behind
a classical key exchange first (RFC 9370): Child SAs take their keys from these. A peer that knows
nothing of it takes one of the others. `compat` has none of it, and adds what older peers speak and
what is not broken: groups down to 2048 bits, AES-192, every HMAC-SHA2. What is weak neither offers
by itself: `compat` allows it where `proposals` name it."""

WEAK_PROFILE = "compat"

FUTURE_PROFILES = ("cnsa", "aws", "azure", "gcp", "windows", "apple")


def ike_proposals(profile: str) -> tuple[Proposal, ...]:
    """Raises `KeyError` for an unknown profile."""
    return tuple(parse_proposal(text, ProtocolId.IKE) for text in PROFILES[profile].ike)


def ah_proposals(profile: str) -> tuple[Proposal, ...]:
    """Raises `KeyError` for an unknown profile."""
    return tuple(parse_proposal(text, ProtocolId.AH) for text in PROFILES[profile].ah)


def esp_proposals(profile: str) -> tuple[Proposal, ...]:
    """Raises `KeyError` for an unknown profile."""
    return tuple(parse_proposal(text, ProtocolId.ESP) for text in PROFILES[profile].esp)
