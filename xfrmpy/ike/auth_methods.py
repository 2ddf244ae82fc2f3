"""Which proofs the two ends take: told to the peer, and heard from it (RFC 9593).

Read RFC 9593 section 3.1 first. A responder says it in IKE_SA_INIT, for all tunnels that the caller
may mean, an initiator in IKE_AUTH. It is advice: what nobody announces may be right all the same,
and an announcement proves nothing. Between ends that know the shared key alone, nothing is said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from xfrmpy.crypto.authentication import SignaturePolicy
from xfrmpy.crypto.signatures import EXPERIMENTAL, KeyKind, verifying_key
from xfrmpy.ike.exchange import notifications
from xfrmpy.policy.model import Experiment, TunnelPolicy
from xfrmpy.registry import AuthenticationMethod, NotifyType
from xfrmpy.wire.auth_methods import (
    AuthAnnouncement,
    decode_auth_methods_untrusted,
    encode_auth_methods,
)
from xfrmpy.wire.cursor import Malformed
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

MAX_ANNOUNCEMENTS = 64
"""Ours; of a peer. We have 14."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a tunnel takes as the peer's proof; by a signature, with a key of one of the kinds."""

    method: AuthenticationMethod
    kinds: frozenset[KeyKind] = frozenset()


SHARED_KEY = Expectation(method=AuthenticationMethod.SHARED_KEY)


def expectations(policies: Iterable[TunnelPolicy]) -> tuple[Expectation, ...]:
    """Each once; none where all is by the shared key, or by EAP, which has a way of its own."""
    policies = tuple(policies)
    found = dict.fromkeys(
        _expectation(of_round)
        for policy in policies
        for number, of_round in enumerate(policy.every_round)
        if policy.they_prove(number) and of_round.remote_eap is None
    )
    is_plain = not any(p.signs or p.local_null for p in policies) and set(found) <= {SHARED_KEY}
    return () if is_plain else tuple(found)


def _expectation(policy: TunnelPolicy) -> Expectation:
    if policy.remote_null:
        return Expectation(method=AuthenticationMethod.NULL)
    if not policy.peer_signs:
        return SHARED_KEY
    kinds = frozenset(KeyKind)
    if policy.remote_key is not None:
        kinds = frozenset({verifying_key(policy.remote_key.spki).kind})
    elif policy.experiment is not Experiment.ML_DSA:
        kinds -= EXPERIMENTAL
    return Expectation(method=AuthenticationMethod.DIGITAL_SIGNATURE, kinds=kinds)


@lru_cache(maxsize=32)
def announce(
    expected: tuple[Expectation, ...], usable: SignaturePolicy
) -> tuple[NotifyPayload, ...]:
    """SUPPORTED_AUTH_METHODS, if there is something to say: the best first."""
    found = dict.fromkeys(a for each in expected for a in _announcements(each, usable))
    if not found:
        return ()
    data = encode_auth_methods(found)
    return (NotifyPayload(type=NotifyType.SUPPORTED_AUTH_METHODS, data=data),)


def _announcements(expected: Expectation, usable: SignaturePolicy) -> list[AuthAnnouncement]:
    if expected.method != AuthenticationMethod.DIGITAL_SIGNATURE:
        return [AuthAnnouncement(method=expected.method)]
    return [
        AuthAnnouncement(method=expected.method, algorithm=scheme.identifiers[0])
        for scheme in usable.schemes
        if scheme.kinds & expected.kinds
    ]


def heard_methods(payloads: tuple[OpenPayload, ...]) -> tuple[AuthAnnouncement, ...]:
    """What the peer says that it takes; nothing if it does not say, or in a way that is wrong."""
    found: list[AuthAnnouncement] = []
    for notify in notifications(payloads, NotifyType.SUPPORTED_AUTH_METHODS):
        try:
            found += _decoded_untrusted(notify.data)
        except Malformed:
            return ()
    return tuple(found[:MAX_ANNOUNCEMENTS])


@lru_cache(maxsize=32)
def _decoded_untrusted(data: bytes) -> tuple[AuthAnnouncement, ...]:
    """Peers of one kind all say the same."""
    return decode_auth_methods_untrusted(data)


def as_announced(
    policy: SignaturePolicy,
    kind: KeyKind,
    hashes: Collection[int],
    heard: Iterable[AuthAnnouncement],
) -> SignaturePolicy:
    """How a key of ours signs for a peer that has said what it verifies, with these hashes.

    As ever if it has said nothing that this key can do: it may know more than it says.
    """
    algorithms = {announcement.algorithm for announcement in heard}
    fitting = tuple(
        scheme
        for scheme in policy.schemes
        if kind in scheme.kinds
        and scheme.hash in hashes
        and not algorithms.isdisjoint(scheme.identifiers)
    )
    if not fitting:
        return policy
    forms = [scheme.form for scheme in fitting]
    form = policy.rsa_form if policy.rsa_form in forms else forms[0]
    return replace(policy, schemes=fitting, rsa_form=form)


def shown_methods(heard: Iterable[AuthAnnouncement], usable: SignaturePolicy) -> tuple[str, ...]:
    """For our operator: a scheme by its name, where we know it."""
    names = {i: scheme.name for scheme in usable.schemes for i in scheme.identifiers}
    return tuple(dict.fromkeys(names.get(a.algorithm, a.method.name) for a in heard))
