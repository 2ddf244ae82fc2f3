"""Whether two policies, one of each end, would agree: told before anything is deployed.

The tunnels of the two ends are matched by who each end says it is and expects; then each pair is
compared as the negotiation would do it. What would fail there has the code that it would have.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import KEY_EXCHANGES, Proposal, choose_proposal
from xfrmpy.ipsec.sad import Mode
from xfrmpy.ipsec.selectors import TrafficSelector, covered_by, narrow_selectors
from xfrmpy.policy.certificates import refusal_of
from xfrmpy.policy.model import (
    Certificates,
    ChildPolicy,
    EapAcceptance,
    EapCredential,
    PrivateKey,
    PublicKey,
    StartMode,
    TunnelPolicy,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """What the two ends say differently. Without a `code` it works, but perhaps not as meant."""

    code: str
    message: str
    ours: str
    theirs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """A tunnel of ours, the other end's for it, and what they disagree in.

    `theirs` is None if the other end has none. `agreed` are what a negotiation would choose: the
    suite of the IKE SA, then of each Child SA.
    """

    ours: TunnelPolicy
    theirs: TunnelPolicy | None
    agreed: tuple[str, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()

    @property
    def works(self) -> bool:
        return self.theirs is not None and not any(d.code for d in self.disagreements)


def pair_policies(
    ours: Iterable[TunnelPolicy], theirs: Sequence[TunnelPolicy]
) -> tuple[Pairing, ...]:
    """Each tunnel of ours with the one of theirs that is most likely meant for it."""
    return tuple(_pair(tunnel, theirs) for tunnel in ours)


def _pair(ours: TunnelPolicy, theirs: Sequence[TunnelPolicy]) -> Pairing:
    scores = [(_likeness(ours, other), other) for other in theirs]
    best, chosen = max(scores, key=lambda score: score[0], default=(0, None))
    if chosen is None or not best:
        return Pairing(ours=ours, theirs=None)
    rivals = [other for _, other in scores if other is not chosen and _would_take(other, ours)]
    disagreements = [
        *_of_beginning(ours, chosen),
        *_of_proof(ours, chosen),
        *_of_ppk(ours, chosen),
        *_of_ike(ours, chosen),
        *_of_children(ours, chosen),
        *_of_rivals(ours, chosen, rivals),
    ]
    return Pairing(
        ours=ours,
        theirs=chosen,
        agreed=tuple(_agreed(ours, chosen)),
        disagreements=tuple(disagreements),
    )


def _likeness(ours: TunnelPolicy, theirs: TunnelPolicy) -> int:
    """Identities count most, then traffic, then the name; 0 is a stranger."""
    named = _is_meant(theirs, _says(ours, theirs)) + _is_meant(ours, _says(theirs, ours))
    carries = any(_common(a, b) for a in ours.children for b in theirs.children)
    if not named and not carries:
        return 0
    return 4 * named + 2 * carries + (ours.name == theirs.name)


def _is_meant(listener: TunnelPolicy, told: Identity | None) -> bool:
    expected = listener.remote_id
    if told is None or expected is None:
        return told is expected
    return expected.matches(told)


def _says(speaker: TunnelPolicy, listener: TunnelPolicy) -> Identity | None:
    """Who one end says it is, None if that depends on an address that no policy tells."""
    if speaker.local_id is not None:
        return speaker.local_id
    if speaker.local_address is not None:
        return Identity.of_address(speaker.local_address)
    try:
        (address,) = {ip_address(peer) for peer in listener.peers}
    except ValueError:
        return None
    return Identity.of_address(address)


def _would_take(other: TunnelPolicy, ours: TunnelPolicy) -> bool:
    """Whether we may be taken for another tunnel's peer, with some of its traffic."""
    return _is_meant(other, _says(ours, other)) and any(
        _common(a, b) for a in ours.children for b in other.children
    )


def _of_beginning(ours: TunnelPolicy, theirs: TunnelPolicy) -> Iterator[Disagreement]:
    if not ours.peers and not theirs.peers:
        message = "each end waits for the other to begin"
        yield Disagreement(code="XF1014", message=message, ours="no peer", theirs="no peer")
    elif not {StartMode.AUTO, StartMode.ON_DEMAND} & {ours.start, theirs.start}:
        message = "neither end begins by itself"
        yield Disagreement(code="", message=message, ours=ours.start, theirs=theirs.start)
    for here, there, is_ours in ((ours, theirs, True), (theirs, ours, False)):
        address = here.local_address
        named = {_address(peer) for peer in there.peers}
        if address is not None and named and None not in named and str(address) not in named:
            told, sought = f"local_address {address}", f"peer {', '.join(there.peers)}"
            message = "an address of the one end is not where the other looks for it"
            yield Disagreement(
                code="XF2001",
                message=message,
                ours=told if is_ours else sought,
                theirs=sought if is_ours else told,
            )


def _address(peer: str) -> str | None:
    try:
        return str(ip_address(peer))
    except ValueError:
        return None


def _of_proof(ours: TunnelPolicy, theirs: TunnelPolicy) -> Iterator[Disagreement]:
    told, expected = _says(ours, theirs), theirs.remote_id
    if told is not None and expected is not None and not expected.matches(told):
        yield Disagreement(
            code="XF2005",
            message="we are not who they expect",
            ours=f"id {told}",
            theirs=f"peer_id {expected}",
        )
    told, expected = _says(theirs, ours), ours.remote_id
    if told is not None and expected is not None and not expected.matches(told):
        yield Disagreement(
            code="XF2005",
            message="they are not who we expect",
            ours=f"peer_id {expected}",
            theirs=f"id {told}",
        )
    yield from _of_keys(ours, theirs)
    yield from _of_rounds(ours, theirs)


def _of_rounds(ours: TunnelPolicy, theirs: TunnelPolicy) -> Iterator[Disagreement]:
    """How often each end proves itself, and by what behind the first time."""
    here = [(r.we_prove, r.they_prove) for r in ours.rounds]
    there = [(r.they_prove, r.we_prove) for r in theirs.rounds]
    if here != there:
        yield Disagreement(
            code="XF2057",
            message="the ends have other rounds of authentication",
            ours=", then ".join(map(str, ours.rounds)) or "one round",
            theirs=", then ".join(map(str, theirs.rounds)) or "one round",
        )
        return
    for number in range(1, len(here) + 1):
        yield from _of_keys(ours.in_round(number), theirs.in_round(number))


def _of_keys(ours: TunnelPolicy, theirs: TunnelPolicy) -> Iterator[Disagreement]:
    """Each end proves itself by what the other expects; a shared key is told of once."""
    told: list[Disagreement] = []
    for prover, verifier in ((ours, theirs), (theirs, ours)):
        is_ours = prover is ours
        if prover.local_eap is not None or verifier.remote_eap is not None:
            told += _of_eap(prover.local_eap, verifier.remote_eap, is_ours=is_ours)
            continue
        if prover.local_null and verifier.remote_null:
            continue
        if prover.local_certificates and verifier.remote_authorities:
            told += _of_certificates(
                prover.local_certificates, verifier.remote_authorities, is_ours=is_ours
            )
            continue
        proves = prover.local_key
        expects = verifier.remote_key or verifier.remote_authorities
        shown = (
            _proof(proves, prover, is_null=prover.local_null),
            _proof(expects, verifier, is_null=verifier.remote_null),
        )
        is_one_null = prover.local_null != verifier.remote_null
        if is_one_null or (proves is None) != (expects is None):
            message = f"{'we prove' if is_ours else 'they prove'} by one method, and another counts"
        elif proves is not None and expects is not None:
            if isinstance(expects, PublicKey) and proves.public == expects.spki:
                continue
            message = f"{'our' if is_ours else 'their'} key is not the one that is expected"
        elif not hmac.compare_digest(_secret(prover), _secret(verifier)):
            message, shown = "the shared keys are not the same", shown if is_ours else shown[::-1]
            is_ours = True
        else:
            continue
        here, there = shown if is_ours else shown[::-1]
        told.append(Disagreement(code="XF2005", message=message, ours=here, theirs=there))
    yield from dict.fromkeys(told)


def _is_known(credential: EapCredential, acceptance: EapAcceptance) -> bool:
    """Whether the users have this one, as far as passwords go."""
    if acceptance.users is None or credential.password is None:
        return True
    known = dict(acceptance.users.passwords).get(credential.identity.encode())
    right = (known or "").encode()
    return known is not None and hmac.compare_digest(right, credential.password.octets)


def _of_eap(
    credential: EapCredential | None, acceptance: EapAcceptance | None, *, is_ours: bool
) -> Iterator[Disagreement]:
    """Whether the other end knows the user that the one is, and by a method in common."""
    who = "we" if is_ours else "they"
    message = ""
    if credential is None or acceptance is None:
        message = f"{who} prove by one method, and another counts"
    elif acceptance.server:
        pass  # What its servers know is not known here.
    elif not set(credential.methods) & set(acceptance.methods):
        message = "the ends have no method of EAP in common"
    elif not _is_known(credential, acceptance):
        message = "the users do not have that name with that password"
    elif acceptance.server == "" and not acceptance.admits(credential.identity.encode()):
        message = "the user may not use the tunnel"
    if message:
        shown = str(credential or "no EAP"), str((acceptance and acceptance.users) or "no EAP")
        here, there = shown if is_ours else shown[::-1]
        yield Disagreement(code="XF2005", message=message, ours=here, theirs=there)


def _of_certificates(
    shown: Certificates, trusted: Certificates, *, is_ours: bool
) -> Iterator[Disagreement]:
    """Whether the authorities that one end trusts vouch for what the other one shows."""
    refused = refusal_of(shown, trusted)
    if refused is not None:
        whose = "our" if is_ours else "their"
        here, there = (shown, trusted) if is_ours else (trusted, shown)
        yield Disagreement(
            code=refused.problem.value,
            message=f"{whose} certificate is not accepted: {refused.summary}",
            ours=here.origin,
            theirs=there.origin,
        )


def _proof(
    key: PrivateKey | PublicKey | Certificates | None, tunnel: TunnelPolicy, *, is_null: bool
) -> str:
    if is_null:
        return "null_auth"
    if key is not None:
        return f"key {key.origin}"
    return "no psk" if tunnel.shared_key is None else tunnel.shared_key.origin


def _secret(tunnel: TunnelPolicy) -> bytes:
    return b"" if tunnel.shared_key is None else tunnel.shared_key.octets


def _of_ppk(ours: TunnelPolicy, theirs: TunnelPolicy) -> Iterator[Disagreement]:
    """Who begins names all that it has, and the other end must have one of them."""
    if not ours.ppks and not theirs.ppks:
        return
    shown = _listed(ours.ppks) or "none", _listed(theirs.ppks) or "none"
    shared = [(a, b) for a in ours.ppks for b in theirs.ppks if a.id_octets == b.id_octets]
    for a, b in shared:
        if not hmac.compare_digest(a.key.octets, b.key.octets):
            message = f"the post-quantum preshared keys '{a.id}' are not the same"
            yield Disagreement(code="XF2034", message=message, ours=str(a), theirs=str(b))
    if shared:
        return
    is_required = ours.ppk_required or theirs.ppk_required
    message = "the two ends have no name of a post-quantum preshared key in common"
    code = "XF2033" if is_required else ""
    yield Disagreement(code=code, message=message, ours=shown[0], theirs=shown[1])


def _of_ike(ours: TunnelPolicy, theirs: TunnelPolicy) -> Iterator[Disagreement]:
    if choose_proposal(ours.proposals, theirs.proposals) is None:
        yield Disagreement(
            code="XF2002",
            message="no proposal for the IKE SA in common",
            ours=_listed(ours.proposals),
            theirs=_listed(theirs.proposals),
        )


def _of_children(ours: TunnelPolicy, theirs: TunnelPolicy) -> Iterator[Disagreement]:
    for child in ours.children:
        other = _counterpart(child, theirs.children)
        if other is None:
            yield Disagreement(
                code="XF2004",
                message=f"no traffic of '{child.name}' in common",
                ours=_traffic(child.local, child.remote),
                theirs="; ".join(_traffic(c.remote, c.local) for c in theirs.children),
            )
        else:
            yield from _of_child(child, other)
    for other in theirs.children:
        if _counterpart(other, ours.children) is None:
            yield Disagreement(
                code="XF2004",
                message=f"their '{other.name}' has no traffic in common with ours",
                ours="; ".join(_traffic(c.local, c.remote) for c in ours.children),
                theirs=_traffic(other.remote, other.local),
            )


def _of_child(ours: ChildPolicy, theirs: ChildPolicy) -> Iterator[Disagreement]:
    if ours.mode is not theirs.mode:
        message = f"'{ours.name}' is in different modes"
        yield Disagreement(code="XF2020", message=message, ours=ours.mode, theirs=theirs.mode)
    elif ours.mode is not Mode.TRANSPORT and not _mirror(ours, theirs):
        yield Disagreement(
            code="",
            message=f"only a part of the traffic of '{ours.name}' is carried: what both have",
            ours=_traffic(ours.local, ours.remote),
            theirs=_traffic(theirs.remote, theirs.local),
        )
    first = [_without_key_exchange(child) for child in (ours, theirs)]
    if choose_proposal(*first) is None:
        yield Disagreement(
            code="XF2003",
            message=f"no proposal for the packets of '{ours.name}' in common",
            ours=_listed(ours.proposals),
            theirs=_listed(theirs.proposals),
        )
    elif choose_proposal(ours.proposals, theirs.proposals) is None:
        yield Disagreement(
            code="XF2015",
            message=f"'{ours.name}' comes up, and cannot be rekeyed: key exchanges differ",
            ours=_listed(ours.proposals),
            theirs=_listed(theirs.proposals),
        )


def _of_rivals(
    ours: TunnelPolicy, theirs: TunnelPolicy, rivals: Iterable[TunnelPolicy]
) -> Iterator[Disagreement]:
    for rival in rivals:
        yield Disagreement(
            code="XF1007",
            message=f"we may be taken for the peer of '{rival.name}', not of '{theirs.name}'",
            ours=ours.name,
            theirs=f"{theirs.origin} and {rival.origin}",
        )


def _agreed(ours: TunnelPolicy, theirs: TunnelPolicy) -> Iterator[str]:
    chosen = choose_proposal(ours.proposals, theirs.proposals)
    if chosen is not None:
        yield f"IKE: {chosen}"
    for child in ours.children:
        other = _counterpart(child, theirs.children)
        common = None if other is None else _common(child, other)
        if other is None or common is None:
            continue
        chosen = choose_proposal(*(_without_key_exchange(c) for c in (child, other)))
        if chosen is not None:
            yield f"{child.name}: {chosen}, {_traffic(*common)}"


def _counterpart(child: ChildPolicy, others: Iterable[ChildPolicy]) -> ChildPolicy | None:
    """The child of the other end that carries the same traffic: just that, or some of it."""
    found = [other for other in others if _common(child, other)]
    return max(found, key=lambda o: (_mirror(child, o), o.name == child.name), default=None)


def _common(
    ours: ChildPolicy, theirs: ChildPolicy
) -> tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]] | None:
    """Our selectors and the peer's, narrowed to what both have; None if that is nothing."""
    local = narrow_selectors(ours.local, theirs.remote)
    remote = narrow_selectors(ours.remote, theirs.local)
    return (local, remote) if local and remote else None


def _mirror(ours: ChildPolicy, theirs: ChildPolicy) -> bool:
    return all(
        covered_by(here, there) and covered_by(there, here)
        for here, there in ((ours.local, theirs.remote), (ours.remote, theirs.local))
    )


def _without_key_exchange(child: ChildPolicy) -> tuple[Proposal, ...]:
    """What counts in IKE_AUTH, where the IKE SA's key exchange serves (RFC 7296 section 1.2)."""
    return tuple(proposal.without(*KEY_EXCHANGES) for proposal in child.proposals)


def _traffic(local: Iterable[TrafficSelector], remote: Iterable[TrafficSelector]) -> str:
    return f"{_listed(local)} to {_listed(remote)}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
