"""What an import has: policies as they would be written, secrets, and what was not carried over.

`swanctl.py` and `ipsec_conf.py` say what the settings of either mean; here is what both need. A
setting that has no rule is told of, so nothing is lost without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import yaml

from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.foreign.syntax import Section, Setting, SharedSecret
from xfrmpy.policy.foreign.words import Untranslatable, is_weak
from xfrmpy.policy.values import NAME
from xfrmpy.registry import IdType


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A setting that was not carried over as it was, and why; `place` is `file:line`."""

    place: str
    setting: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.setting}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Tunnels and shunts by name, in the keys of the policy language; secrets by their names.

    `passwords` are secrets, too, and text as it is: lists of users, and what users say.
    """

    tunnels: Mapping[str, dict[str, Any]]
    shunts: Mapping[str, dict[str, Any]]
    secrets: Mapping[str, bytes] = field(repr=False)
    passwords: Mapping[str, bytes] = field(repr=False)
    notes: tuple[Note, ...]

    def policy_text(self) -> str:
        """A policy file in the long form; empty if there is nothing for it."""
        found = {"tunnels": dict(self.tunnels), "shunts": dict(self.shunts)}
        content = {key: value for key, value in found.items() if value}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True) if content else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What becomes of a setting.

    `ours` is the path of our key, or what stands for it in words. With a `convert` its result is
    put there; without, the importer's code looks at it. With a `loss`, which says why nothing
    stands for it, only values that are `harmless` are passed over: those that mean what is so
    anyway, or that the code looks at.
    """

    ours: str = ""
    convert: Callable[[str], object] | None = None
    loss: str = ""
    harmless: tuple[str, ...] = ()


class Draft:
    """What is being made; all of one import share it."""

    def __init__(self) -> None:
        self.tunnels: dict[str, dict[str, Any]] = {}
        self.shunts: dict[str, dict[str, Any]] = {}
        self.secrets: dict[str, bytes] = {}
        self.passwords: dict[str, bytes] = {}
        self.notes: dict[Note, None] = {}

    def note(self, place: str, setting: str, reason: str) -> None:
        self.notes[Note(place=place, setting=setting, reason=reason)] = None

    def carry(self, section: Section, rules: Mapping[str, Rule], into: dict[str, Any]) -> None:
        """Put what has a rule with `convert` in its place, and tell of what is lost."""
        for key, setting in section.settings.items():
            rule = rules.get(key)
            shown = key if _SECRET.search(key) else f"{key} = {setting.value}"
            if rule is None:
                self.note(setting.place, shown, "xfrmpy's importer does not know it")
            elif setting.value.lower() in ("", *rule.harmless):
                continue
            elif rule.loss:
                self.note(setting.place, shown, rule.loss)
            elif rule.convert is not None:
                try:
                    put(into, rule.ours, rule.convert(setting.value))
                except Untranslatable as error:
                    self.note(setting.place, shown, str(error))

    def proposals(self, setting: Setting | None, key: str, read: Callable[[str], str]) -> list[str]:
        """Those of a list that have a meaning here; of the others it tells."""
        found: list[str] = []
        for text in listed(setting):
            if text == "default":
                continue
            try:
                found.append(read(text))
            except Untranslatable as error:
                assert setting is not None
                self.note(setting.place, f"{key} = {text}", f"left out: {error}")
        return list(dict.fromkeys(found))

    def identity(self, setting: Setting | None, key: str) -> str | None:
        """As we write it; None for none, and where it is none of ours, which is told."""
        if setting is None or setting.value in ("", "%any"):
            return None
        try:
            return identity_text(setting.value)
        except ValueError as error:
            self.note(setting.place, f"{key} = {setting.value}", str(error))
            return None

    def add(
        self,
        place: str,
        name: str,
        tunnel: dict[str, Any],
        secret: bytes | None,
        setting: str,
        *,
        is_shared: bool = True,
    ) -> None:
        """A tunnel that is whole; its secret, if it has one, is called as it."""
        given = self.free_name(place, name, setting)
        names = ("peer", "id", "peer_id")
        made = {key: tunnel[key] for key in names if key in tunnel}
        if is_shared:
            made["psk"] = f"secret:{given}"
        made.update((key, value) for key, value in tunnel.items() if key not in names)
        for key, path in _WITHIN_AUTH.items() if "auth" in made else ():
            if key in made:
                put(made, path, made.pop(key))
        self.tunnels[given] = made
        if not is_shared:
            return
        if secret is None:
            self.note(place, setting, f"no shared key was found: put it into secrets/{given}")
        else:
            self.secrets[given] = secret

    def free_name(
        self, place: str, name: str, setting: str, taken: Collection[str] | None = None
    ) -> str:
        """A name as ours are, that nothing has; `taken` are those of children."""
        taken = {*self.tunnels, *self.shunts} if taken is None else taken
        text = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:60] or "tunnel"
        given, number = text, 2
        while given in taken:
            given, number = f"{text}-{number}", number + 1
        assert NAME.fullmatch(given)
        if given != name:
            self.note(place, setting, f"is called {given} here")
        return given

    def result(self) -> Imported:
        return Imported(
            tunnels=self.tunnels,
            shunts=self.shunts,
            secrets=self.secrets,
            passwords=self.passwords,
            notes=tuple(self.notes),
        )


_WITHIN_AUTH = {"id": "auth.local.id", "peer_id": "auth.remote.id", "psk": "auth.psk"}
"""Where they stand in a policy that has more to say of proofs."""

_SECRET = re.compile("secret|psk|passw|pin|key")
"""In the name of a setting that stands where it should not: its value is not shown."""


def put(into: dict[str, Any], path: str, value: object) -> None:
    """At a dotted path: `ike.lifetime`."""
    *parts, last = path.split(".")
    for part in parts:
        into = into.setdefault(part, {})
    into[last] = value


def listed(setting: Setting | None) -> list[str]:
    """A list with commas."""
    if setting is None:
        return []
    return [part for part in (each.strip() for each in setting.value.split(",")) if part]


def one_or_list(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values


def suite_settings(proposals: list[str], others: Mapping[str, Any]) -> Any:
    """`ike`, `esp` or `ah` as short as it goes; with `compat` where that allows what is weak."""
    settings = dict(others)
    if proposals:
        settings = {"proposals": one_or_list(proposals), **settings}
    if any(map(is_weak, proposals)):
        settings = {"profile": "compat", **settings}
    return settings["proposals"] if settings.keys() == {"proposals"} else settings


def selector_text(text: str) -> str:
    """Traffic of theirs as ours: bits of a prefix that count for nothing there are none here.

    Raises `ValueError` with a sentence for the operator.
    """
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        return str(TrafficSelector.parse(text))


_PREFIXES = re.compile(r"(ipv4|ipv6|fqdn|dns|email|rfc822|userfqdn):", re.IGNORECASE)


def identity_text(text: str) -> str:
    """An identity of theirs as ours. Raises `ValueError` with a sentence for the operator."""
    if text.startswith("%") or "*" in text:
        raise ValueError("is not one identity; xfrmpy has one peer for a tunnel")
    if found := re.fullmatch(r"(?:@#|keyid:#)(?:0x)?([0-9a-fA-F]+)", text):
        return f"keyid:0x{found[1].lower()}"
    if text.startswith("keyid:"):
        return text
    if text.startswith("@["):
        return f"keyid:{text[2:].removesuffix(']')}"
    stripped = _PREFIXES.sub("", text, count=1).removeprefix("@@")
    if text.startswith("@") and "@" in text[1:] and not text.startswith("@@"):
        raise ValueError("is a domain name with an @ in it")
    identity = Identity.parse(stripped)
    if identity.type == IdType.ID_FQDN and not identity.data:
        raise ValueError("is empty")
    return str(identity)


def find_secret(
    secrets: Iterable[SharedSecret], ours: Iterable[str], theirs: Iterable[str]
) -> bytes | None:
    """That of the identities, the one that names both first; else one that is for any."""

    def score(secret: SharedSecret) -> int:
        named = {_identity_or_text(each) for each in secret.identities} - {"%any"}
        if not named:
            return 1
        met = [bool(named & {_identity_or_text(e) for e in end}) for end in (ours, theirs)]
        if len(named) > 1:
            return 4 if all(met) else 0
        return 3 if met[1] else 2 if met[0] else 0

    ours, theirs = tuple(ours), tuple(theirs)
    best = max(secrets, key=score, default=None)
    return best.octets if best is not None and score(best) else None


def _identity_or_text(text: str) -> str:
    try:
        return identity_text(text)
    except ValueError:
        return text


def is_address(text: str) -> bool:
    """Of one host."""
    try:
        return not ip_address(text).is_unspecified
    except ValueError:
        return False


def is_host(text: str) -> bool:
    """An address or a name, and no range, prefix or `%any`."""
    return is_address(text) or bool(re.fullmatch(r"(?=.*[A-Za-z])[A-Za-z0-9._-]+", text))
