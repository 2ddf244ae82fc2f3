"""Which tunnels a peer may begin on, by where its first message comes from and goes to.

Whoever calls is not known yet, and may be anybody: of thousands of tunnels not each can be asked
for one datagram. So they are grouped by the peer's address, those that accept any address apart,
and what IKE_SA_INIT and IKE_AUTH want to know of a group is found out once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from xfrmpy.ike.auth_methods import Expectation, expectations
from xfrmpy.ike.credentials import CertRequest, certificate_requests
from xfrmpy.ipsec.addresses import IpAddress, Path
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import Proposal
from xfrmpy.ipsec.sad import Mode
from xfrmpy.policy.model import Ppk, TunnelPolicy


@dataclass(slots=True, kw_only=True)
class Tunnel:
    """A policy with the addresses that its peer has now; none if it accepts any address.

    They are None as long as the peer's names have not been looked up.
    """

    policy: TunnelPolicy
    peer_addresses: tuple[IpAddress, ...] | None = None

    @classmethod
    def of(cls, policy: TunnelPolicy) -> Tunnel:
        """A tunnel at its beginning: an address stands for itself."""
        try:
            addresses = tuple(ip_address(peer) for peer in policy.peers)
        except ValueError:
            return cls(policy=policy)
        return cls(policy=policy, peer_addresses=addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    policies: tuple[TunnelPolicy, ...]
    proposals: tuple[Proposal, ...]
    by_identity: dict[Identity | None, tuple[TunnelPolicy, ...]]
    with_pattern: tuple[TunnelPolicy, ...]
    by_name: dict[str, TunnelPolicy]
    with_eap: tuple[TunnelPolicy, ...]
    forces_encapsulation: bool
    fragmentation: bool
    redirects_to: frozenset[str | None]
    has_beet: bool
    ppks: dict[bytes, tuple[Ppk, ...]]
    has_rounds: bool
    requires_ppk: bool
    sign: bool
    certificate_requests: tuple[CertRequest, ...]
    expectations: tuple[Expectation, ...]


class Candidates:
    """The policies that a peer may be meant by, those that name its address first."""

    def __init__(self, groups: Iterable[_Group]) -> None:
        self._groups = tuple(group for group in groups if group.policies)

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def policies(self) -> Iterator[TunnelPolicy]:
        """There may be thousands."""
        return (policy for group in self._groups for policy in group.policies)

    def named(self, name: str) -> TunnelPolicy | None:
        """The policy of one tunnel, if it may be meant."""
        return next((g.by_name[name] for g in self._groups if name in g.by_name), None)

    def of_peer(self, identity: Identity) -> tuple[TunnelPolicy, ...]:
        """Those whose peer must have this identity, and then those that it may have."""
        exact = (group.by_identity.get(identity.comparable, ()) for group in self._groups)
        by_pattern = (
            policy
            for group in self._groups
            for policy in group.with_pattern
            if policy.remote_id is not None and policy.remote_id.matches(identity)
        )
        return (*(policy for policies in exact for policy in policies), *by_pattern)

    @property
    def with_eap(self) -> tuple[TunnelPolicy, ...]:
        """Those whose peers prove themselves by EAP."""
        return tuple(policy for group in self._groups for policy in group.with_eap)

    @property
    def proposals(self) -> tuple[Proposal, ...]:
        """Each once, in the order of preference."""
        if len(self._groups) == 1:
            return self._groups[0].proposals
        return tuple(dict.fromkeys(p for group in self._groups for p in group.proposals))

    @property
    def forces_encapsulation(self) -> bool:
        return any(group.forces_encapsulation for group in self._groups)

    @property
    def fragmentation(self) -> bool:
        return any(group.fragmentation for group in self._groups)

    @property
    def has_beet(self) -> bool:
        return any(group.has_beet for group in self._groups)

    @property
    def has_ppk(self) -> bool:
        return any(group.ppks for group in self._groups)

    def ppks_named(self, id_octets: bytes) -> tuple[Ppk, ...]:
        """The post-quantum preshared keys of that name; of each tunnel it may be another."""
        found = (ppk for group in self._groups for ppk in group.ppks.get(id_octets, ()))
        return tuple(dict.fromkeys(found))

    @property
    def has_rounds(self) -> bool:
        """Whether one of them has more than one round of authentication."""
        return any(group.has_rounds for group in self._groups)

    @property
    def requires_ppk(self) -> bool:
        """Whether none of them does without."""
        return all(group.requires_ppk for group in self._groups)

    @property
    def sign(self) -> bool:
        """Whether there are signatures by one of the two ends."""
        return any(group.sign for group in self._groups)

    @property
    def certificate_requests(self) -> tuple[CertRequest, ...]:
        """What the peer is asked to show, whichever it is."""
        return tuple(dict.fromkeys(r for g in self._groups for r in g.certificate_requests))

    @property
    def expectations(self) -> tuple[Expectation, ...]:
        """What is taken as the peer's proof, whichever it is."""
        return tuple(dict.fromkeys(e for g in self._groups for e in g.expectations))

    @property
    def redirects_to(self) -> frozenset[str | None]:
        """To where they redirect; None if one of them does not."""
        return frozenset(to for group in self._groups for to in group.redirects_to)


class TunnelIndex:
    """The tunnels as they are at the moment; made anew when one changes.

    `is_complete` says whether the addresses of all peers are known, as far as they can be.
    """

    def __init__(self, tunnels: Iterable[Tunnel]) -> None:
        self._by_address: dict[IpAddress, list[TunnelPolicy]] = {}
        self._listening: list[TunnelPolicy] = []
        self._groups: dict[tuple[IpAddress, IpAddress | None], _Group] = {}
        self.is_complete = True
        for tunnel in tunnels:
            if not tunnel.policy.peers:
                self._listening.append(tunnel.policy)
            elif tunnel.peer_addresses is None:
                self.is_complete = False
            for address in (tunnel.policy.peers and tunnel.peer_addresses) or ():
                self._by_address.setdefault(address, []).append(tunnel.policy)

    def candidates(self, path: Path) -> Candidates:
        remote = path.remote.address
        named = [remote] if remote in self._by_address else []
        return Candidates(self._group(path.local.address, peer) for peer in (*named, None))

    def _group(self, local: IpAddress, peer: IpAddress | None) -> _Group:
        """Those for one address of ours and one of a peer's, or any; found out once."""
        if (local, peer) not in self._groups:
            everyone = self._listening if peer is None else self._by_address[peer]
            here = [p for p in everyone if p.local_address in (None, local)]
            self._groups[local, peer] = _group_of(here)
        return self._groups[local, peer]


def wants_beet(policy: TunnelPolicy) -> bool:
    return any(child.mode is Mode.BEET for child in policy.children)


def _group_of(policies: Iterable[TunnelPolicy]) -> _Group:
    policies = tuple(policies)
    by_identity: dict[Identity | None, list[TunnelPolicy]] = {}
    for policy in policies:
        by_identity.setdefault(policy.remote_id and policy.remote_id.comparable, []).append(policy)
    ppks: dict[bytes, list[Ppk]] = {}
    for ppk in (ppk for policy in policies for ppk in policy.ppks):
        ppks.setdefault(ppk.id_octets, []).append(ppk)
    return _Group(
        policies=policies,
        proposals=tuple(dict.fromkeys(p for policy in policies for p in policy.proposals)),
        by_identity={identity: tuple(found) for identity, found in by_identity.items()},
        with_pattern=tuple(p for p in policies if p.remote_id and p.remote_id.is_pattern),
        by_name={policy.name: policy for policy in policies},
        with_eap=tuple(policy for policy in policies if policy.remote_eap is not None),
        forces_encapsulation=any(policy.forces_encapsulation for policy in policies),
        fragmentation=any(policy.fragmentation for policy in policies),
        redirects_to=frozenset(policy.redirect_to for policy in policies),
        has_beet=any(wants_beet(policy) for policy in policies),
        ppks={name: tuple(dict.fromkeys(found)) for name, found in ppks.items()},
        has_rounds=any(policy.rounds for policy in policies),
        requires_ppk=all(policy.ppk_required for policy in policies),
        sign=any(policy.signs for policy in policies),
        certificate_requests=certificate_requests(policies),
        expectations=expectations(policies),
    )
