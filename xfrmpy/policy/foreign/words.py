"""Proposals and spans of time in the words of strongSwan and libreswan, put into ours."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

from xfrmpy.ipsec.algorithms import WEAKNESSES
from xfrmpy.ipsec.proposals import TRANSFORMS_BY_NAME, parse_proposal
from xfrmpy.policy.foreign.rendering import LIBRESWAN
from xfrmpy.registry import ProtocolId, TransformType


class Untranslatable(ValueError):
    """There is no word of ours for it; a sentence for the operator."""


_STRONGSWAN = {
    **{
        f"aes{bits}gcm{octets * 8}": f"aes{bits}gcm{octets}"
        for bits in (128, 192, 256)
        for octets in (12, 16)
    },
    **{f"aes{bits}gcm64": f"aes{bits}gcm8" for bits in (128, 192, 256)},
    **{f"aes{bits}gcm": f"aes{bits}gcm16" for bits in (128, 192, 256)},
    **{
        f"aes{bits}ccm{octets * 8}": f"aes{bits}ccm{octets}"
        for bits in (128, 192, 256)
        for octets in (8, 12, 16)
    },
    "aes": "aes128",
    "sha": "sha1",
    "sha2_256": "sha256",
    "sha2_384": "sha384",
    "sha2_512": "sha512",
    "curve25519": "x25519",
    "camellia": "camellia128",
}
"""Other names that strongSwan has for what we call as it does."""

_LIBRESWAN = {
    **{theirs: (ours,) for ours, theirs in LIBRESWAN.items() if not ours.startswith("prf")},
    **{f"aes_gcm_c_{bits}": (f"aes{bits}gcm16",) for bits in (128, 192, 256)},
    **{f"aes_gcm_16_{bits}": (f"aes{bits}gcm16",) for bits in (128, 192, 256)},
    **{f"aes_gcm{bits}": (f"aes{bits}gcm16",) for bits in (128, 192, 256)},
    **{f"aes_{bits}": (f"aes{bits}",) for bits in (128, 192, 256)},
    **{f"aes_cbc_{bits}": (f"aes{bits}",) for bits in (128, 192, 256)},
    "aes": ("aes256", "aes128"),
    "aes_cbc": ("aes256", "aes128"),
    "aes_gcm": ("aes256gcm16", "aes128gcm16"),
    "aes_gcm_c": ("aes256gcm16", "aes128gcm16"),
    "sha": ("sha1",),
    "sha2": ("sha256",),
    "sha2_256_128": ("sha256",),
    **{f"modp{bits}": (f"modp{bits}",) for bits in (2048, 3072, 4096)},
    **{f"ecp_{bits}": (f"ecp{bits}",) for bits in (256, 384, 521)},
    "curve25519": ("x25519",),
    "null": (),
    "none": (),
}
_LIBRESWAN_GROUPS = ("ecp256", "ecp384", "ecp521", "x25519", "modp4096", "modp3072", "modp2048")
_LIBRESWAN_PRFS = ("sha512", "sha256")
"""What libreswan means where a proposal for IKE names none, as far as we have it."""


def strongswan_proposal(protocol: ProtocolId, text: str) -> str:
    """`aes128-sha256-modp3072` of strongSwan; it says `esn` where it means that, and we `noesn`.

    Raises `Untranslatable`.
    """
    words = [_STRONGSWAN.get(word, word) for word in text.lower().split("-")]
    if protocol == ProtocolId.IKE:
        return _checked(protocol, _with_prf(words))
    return _checked(protocol, words if {"esn", "noesn"} & {*words} else [*words, "noesn"])


def libreswan_proposal(protocol: ProtocolId, esn: tuple[str, ...], text: str) -> str:
    """`aes_gcm256+aes_gcm128-sha2_256;dh19+dh31` of libreswan. Raises `Untranslatable`."""
    parts = [part for part in re.split("[-;,]", text.lower()) if part]
    words = [ours for part in parts for word in part.split("+") for ours in _libreswan_word(word)]
    if protocol != ProtocolId.IKE:
        return _checked(protocol, [*dict.fromkeys(words), *esn])
    kinds = {_type_of(word) for word in words}
    if TransformType.INTEG not in kinds:
        words += _LIBRESWAN_PRFS
    if TransformType.KE not in kinds:
        words += _LIBRESWAN_GROUPS
    return _checked(protocol, _with_prf([*dict.fromkeys(words)]))


def _libreswan_word(word: str) -> tuple[str, ...]:
    if word in _LIBRESWAN:
        return _LIBRESWAN[word]
    return (_STRONGSWAN.get(word, word),)


def _with_prf(words: list[str]) -> list[str]:
    """Beside an AEAD cipher a hash is the PRF: both of them mean that, and xfrmpy has a word."""
    is_aead = any(re.match(r"aes\d+(gcm|ccm)|chacha", word) for word in words)
    if not is_aead:
        return words
    found = [f"prf{w}" if _type_of(w) == TransformType.INTEG else w for w in words]
    return [*dict.fromkeys(found)]


def _type_of(word: str) -> TransformType | None:
    transform = TRANSFORMS_BY_NAME.get(word)
    return None if transform is None else transform.type


def _checked(protocol: ProtocolId, words: Iterable[str]) -> str:
    text = "-".join(words)
    try:
        return str(parse_proposal(text, protocol))
    except ValueError as error:
        raise Untranslatable(str(error)) from error


def is_weak(proposal: str) -> bool:
    return not WEAKNESSES.keys().isdisjoint(proposal.split("-"))


_SPAN = re.compile(r"(\d{1,9})\s*(ms|s|m|h|d|w)?")
_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds_of(text: str) -> int:
    """`4h`, `90s` or `90`. Raises `Untranslatable`."""
    found = _SPAN.fullmatch(text.strip().lower())
    if found is None or found[2] == "ms":
        raise Untranslatable(f"{text} is no time such as 30s, 5m or 1h")
    return int(found[1]) * _SECONDS[found[2]]


def span_of(seconds: int) -> str:
    """As a policy has it: `90s`, `4h`, or `off` for none."""
    if not seconds:
        return "off"
    unit = next(u for u in ("d", "h", "m", "s") if seconds % _SECONDS[u] == 0)
    return f"{seconds // _SECONDS[unit]}{unit}"


def span(text: str) -> str:
    """A span in our words. Raises `Untranslatable`."""
    return span_of(seconds_of(text))


def octets(text: str) -> str:
    """An amount of octets in our words, rounded down. Raises `Untranslatable`."""
    if not text.isdecimal() or int(text) < 10**6:
        raise Untranslatable("an SA that carries less than 1MB is always being replaced")
    megabytes = int(text) // 10**6
    return f"{megabytes}MB" if megabytes < 10**6 else f"{megabytes // 1000}GB"


def yes_no(text: str) -> str:
    """Raises `Untranslatable`."""
    match text.lower():
        case "yes" | "true" | "on" | "1" | "enabled":
            return "yes"
        case "no" | "false" | "off" | "0" | "disabled":
            return "no"
    raise Untranslatable(f"{text} is neither yes nor no")


def number(least: int, most: int, text: str) -> int:
    """Raises `Untranslatable`."""
    if not text.isdecimal() or not least <= int(text) <= most:
        raise Untranslatable(f"here it is a number from {least} to {most}")
    return int(text)


def one_of(choices: dict[str, str], text: str) -> str:
    """Raises `Untranslatable`."""
    if text.lower() not in choices:
        raise Untranslatable(f"only {', '.join(choices)} have something that stands for them")
    return choices[text.lower()]


replay_window = partial(number, 32, 4096)
