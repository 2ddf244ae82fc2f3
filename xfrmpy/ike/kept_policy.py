"""The policy that a tunnel follows, as a record: by it another process sees what has changed.

A tunnel has one as long as one of its IKE SAs has one (`snapshot`), and they change together. It
has everything but our secret keys, of which it only tells whether others are the same. A field
that was not there yet when a record was written has its default; one that is unknown makes the
record unreadable.
"""

from __future__ import annotations

import hmac
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from xfrmpy.ike.core import Core
from xfrmpy.ike.record_codecs import read_proposals, write_proposals
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.proposals import Proposal
from xfrmpy.policy.model import EapAcceptance, EapCredential, FurtherRound, TunnelPolicy
from xfrmpy.wire.cursor import Malformed

FORMAT = 1
_PREFIX = b"policy of "
"""Of a record's name; no SPI is so long."""
_SALT_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPolicy:
    """A policy as it was in force, its secret keys of no octets, and what tells the true ones."""

    policy: TunnelPolicy
    salt: bytes
    print: bytes

    def beside(self, present: TunnelPolicy) -> TunnelPolicy:
        """The policy with its secret keys, if they are those that the tunnel has at present.

        Whom EAP lets in is always as at present: another list of users touches no tunnel.
        """
        is_alike = len(self.policy.rounds) == len(present.rounds)
        kept = _admitting(self.policy, present)
        if is_alike:
            rounds = map(_admitting, kept.rounds, present.rounds)
            kept = replace(kept, rounds=tuple(rounds))
        if is_alike and hmac.compare_digest(_print(present, self.salt), self.print):
            return replace(
                _proving(kept, present),
                shared_key=present.shared_key,
                ppks=present.ppks,
                rounds=tuple(map(_proving, kept.rounds, present.rounds)),
            )
        return kept


_Proofs = TypeVar("_Proofs", TunnelPolicy, FurtherRound)


def _admitting(kept: _Proofs, present: _Proofs) -> _Proofs:
    return replace(kept, remote_eap=None if kept.remote_eap is None else present.remote_eap)


def _proving(kept: _Proofs, present: _Proofs) -> _Proofs:
    return replace(kept, local_key=present.local_key, local_eap=present.local_eap)


def is_policy(name: bytes) -> bool:
    """Whether the record of this name is a policy's, and not an IKE SA's."""
    return name.startswith(_PREFIX)


def write_policy(policy: TunnelPolicy, salt: bytes) -> bytes:
    children = (_write(child.proposals) for child in policy.children)
    record = {
        "format": FORMAT,
        "policy": to_plain(_without_proposals(_without_secrets(policy))),
        "proposals": [_write(policy.proposals), *children],
        "salt": salt.hex(),
        "print": _print(policy, salt).hex(),
    }
    return json.dumps(record, separators=(",", ":")).encode()


def read_policies(records: Mapping[bytes, bytes]) -> dict[str, KeptPolicy]:
    """The policies among some records, by the names of their tunnels, but unreadable ones."""
    found: dict[str, KeptPolicy] = {}
    for name, record in records.items():
        if is_policy(name):
            try:
                kept = _read_policy(record)
            except (KeyError, TypeError, ValueError, Malformed):
                continue
            found[kept.policy.name] = kept
    return found


def _read_policy(record: bytes) -> KeptPolicy:
    plain = json.loads(record)
    if plain["format"] != FORMAT:
        raise ValueError("the record is of another format")
    of_tunnel, *of_children = map(_read, plain["proposals"])
    bare = from_plain(TunnelPolicy, plain["policy"])
    children = tuple(
        replace(child, proposals=proposals)
        for child, proposals in zip(bare.children, of_children, strict=True)
    )
    return KeptPolicy(
        policy=replace(bare, proposals=of_tunnel, children=children),
        salt=from_plain(bytes, plain["salt"]),
        print=from_plain(bytes, plain["print"]),
    )


def _without_secrets(policy: TunnelPolicy) -> TunnelPolicy:
    shared = policy.shared_key
    return replace(
        _without_proofs(policy),
        shared_key=None if shared is None else replace(shared, octets=b""),
        rounds=tuple(map(_without_proofs, policy.rounds)),
        ppks=tuple(replace(ppk, key=replace(ppk.key, octets=b"")) for ppk in policy.ppks),
    )


def _without_proofs(proofs: _Proofs) -> _Proofs:
    ours = proofs.local_key
    return replace(
        proofs,
        local_key=None if ours is None else replace(ours, octets=b"", token=None),
        local_eap=proofs.local_eap and _without_ours(proofs.local_eap),
        remote_eap=proofs.remote_eap and _without_theirs(proofs.remote_eap),
    )


def _without_ours(eap: EapCredential) -> EapCredential:
    password = eap.password and replace(eap.password, octets=b"")
    tls = eap.tls
    if tls is not None and tls.key is not None:
        tls = replace(tls, key=replace(tls.key, octets=b""))
    return replace(eap, password=password, tls=tls)


def _without_theirs(eap: EapAcceptance) -> EapAcceptance:
    users = eap.users and replace(eap.users, passwords=())
    tls = eap.tls and replace(eap.tls, key=replace(eap.tls.key, octets=b""))
    return replace(eap, users=users, tls=tls, radius=None)


def _without_proposals(policy: TunnelPolicy) -> TunnelPolicy:
    children = tuple(replace(child, proposals=()) for child in policy.children)
    return replace(policy, proposals=(), children=children)


def _write(proposals: tuple[Proposal, ...]) -> Plain:
    """Each by itself: the numbers are a policy's, where one may have been left out."""
    return [[p.number, write_proposals((replace(p, number=1),))] for p in proposals]


def _read(plain: list[tuple[int, Plain]]) -> tuple[Proposal, ...]:
    return tuple(
        replace(proposal, number=number)
        for number, octets in plain
        for proposal in read_proposals(octets)
    )


def _print(policy: TunnelPolicy, salt: bytes) -> bytes:
    return hmac.digest(salt, policy.secrets, "sha256")


class PolicyRecords:
    """Which tunnels have a record, and what it says."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tunnels: dict[bytes, str] = {}
        self._users: Counter[str] = Counter()
        self._touched: set[str] = set()
        self._written: dict[str, TunnelPolicy | None] = {}

    def resume(self, names: Iterator[bytes], in_force: Mapping[str, TunnelPolicy]) -> None:
        """An earlier daemon has written these; `in_force` are those that could be read."""
        tunnels = [name.removeprefix(_PREFIX).decode() for name in names]
        self._written = {tunnel: in_force.get(tunnel) for tunnel in tunnels}
        self._touched.update(tunnels)

    def follow(self, spi: bytes, tunnel: str | None) -> None:
        """An IKE SA has a record now, and belongs to a tunnel; None: it has none."""
        before = self._tunnels.pop(spi, None)
        if before is not None:
            self._users[before] -= 1
            self._touched.add(before)
        if tunnel is not None:
            self._tunnels[spi] = tunnel
            self._users[tunnel] += 1
            self._touched.add(tunnel)

    @property
    def have_changed(self) -> bool:
        """Whether `changes` may have any."""
        return bool(self._touched)

    def changes(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Since the last time; None for a record that is not needed any more."""
        for tunnel in self._touched:
            name = _PREFIX + tunnel.encode()
            present = self._core.tunnels.get(tunnel)
            if not self._users[tunnel]:
                del self._users[tunnel]
                if tunnel in self._written:
                    del self._written[tunnel]
                    yield name, None
            elif present is not None and self._written.get(tunnel) != present.policy:
                self._written[tunnel] = present.policy
                yield name, write_policy(present.policy, self._core.random(_SALT_SIZE))
        self._touched.clear()
