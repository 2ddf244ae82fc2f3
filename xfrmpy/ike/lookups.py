"""Certificates that a peer names by a hash and a URL: IKE_AUTH waits until they are there.

Read RFC 7296 sections 3.6 and 3.10.1 first. They are needed to verify AUTH, so they are fetched for
somebody who has not proved anything yet. All that he has to do before is an IKE_SA_INIT and an
IKE_AUTH from where he is, as whom a tunnel expects; so policy names the hosts that are asked, and
there are limits: of a message, of octets, of time, and of all that is under way. What has come is
handed on as if the peer had sent it; whether it is worth anything is decided where that always is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from xfrmpy.ike.certificates import BY_URL, not_believed
from xfrmpy.ike.errors import AuthenticationFailed
from xfrmpy.ike.exchange import optional
from xfrmpy.ike.outputs import AskCertificates
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.identity import NOBODY, Identity
from xfrmpy.pki.lookups import (
    MAX_LOOKUPS,
    Lookup,
    check_place,
    decode_lookup_untrusted,
    not_fetched,
    take_found,
)
from xfrmpy.pki.verdicts import CertificateRefused, Problem
from xfrmpy.policy.model import Certificates, TunnelPolicy
from xfrmpy.registry import CertificateEncoding
from xfrmpy.wire.payloads import CertPayload, IdiPayload, IdrPayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.core import Core
    from xfrmpy.ike.ike_sa import IkeSa

MAX_UNDER_WAY = 32
"""Ours, of all peers: with eight at once, and five seconds for each, the last one is answered
before a half-open IKE SA is given up."""

MAX_KEPT = 64
"""Ours; with the largest bundles these are 4 MiB."""

PATIENCE_SECONDS = 30.0
"""Ours; an initiator waits no longer. A responder has begun to wait with IKE_SA_INIT."""

Taken: TypeAlias = Callable[[tuple[OpenPayload, ...], float], None]
Refuse: TypeAlias = Callable[[AuthenticationFailed, float], None]
Step: TypeAlias = Callable[[float], None]


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """An IKE SA whose message goes on to `take` when nothing is `pending` any more."""

    sa: IkeSa
    identity: Identity
    authorities: Certificates
    payloads: tuple[OpenPayload, ...]
    take: Taken
    refuse: Refuse
    found: dict[Lookup, tuple[bytes, ...]] = field(default_factory=dict)
    pending: set[Lookup] = field(default_factory=set)

    def failed(self, refused: CertificateRefused) -> AuthenticationFailed:
        return not_believed(refused, self.identity, self.authorities)

    @property
    def as_if_sent(self) -> tuple[OpenPayload, ...]:
        """The payloads with the certificates in the places of their URLs."""
        whole: list[OpenPayload] = []
        for payload in self.payloads:
            lookup = _lookup_of(payload)
            if lookup is None:
                whole.append(payload)
            else:
                encoding = CertificateEncoding.X509_SIGNATURE
                whole += [CertPayload(encoding=encoding, data=der) for der in self.found[lookup]]
        return tuple(whole)


class Lookups:
    """Those of one endpoint, and what the last of them have found, by its hash."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._waiting: dict[bytes, _Waiting] = {}
        self._under_way: set[Lookup] = set()
        self._kept: dict[tuple[bool, bytes], tuple[bytes, ...]] = {}

    def __contains__(self, sa: IkeSa) -> bool:
        return sa.our_spi in self._waiting

    def begin(self, waiting: _Waiting, lookups: tuple[Lookup, ...], now: float) -> None:
        """Go on at once with what is known, else when the outside has answered.

        Raises `CertificateRefused` if there is more under way than there may be.
        """
        for lookup in lookups:
            kept = self._kept.get((lookup.is_bundle, lookup.digest))
            if kept is None:
                waiting.pending.add(lookup)
            else:
                waiting.found[lookup] = kept
        if not waiting.pending:
            waiting.take(waiting.as_if_sent, now)
            return
        new = tuple(each for each in lookups if each in waiting.pending - self._under_way)
        if len(self._under_way) + len(new) > MAX_UNDER_WAY:
            raise not_fetched(new[0], "too many are being fetched at the moment")
        self._waiting[waiting.sa.our_spi] = waiting
        self._under_way.update(new)
        if new:
            self._core.emit(AskCertificates(lookups=new))
        if waiting.sa.is_initiator:
            waiting.sa.expect_authentication(now + PATIENCE_SECONDS)

    def answered(self, lookup: Lookup, answer: bytes | str) -> tuple[tuple[IkeSa, Step], ...]:
        """What was there, or why nothing was; gives what is to be done now."""
        self._under_way.discard(lookup)
        waiting = [each for each in self._waiting.values() if lookup in each.pending]
        try:
            if isinstance(answer, str):
                raise not_fetched(lookup, answer)
            found = take_found(lookup, answer)
        except CertificateRefused as refused:
            return tuple((w.sa, partial(w.refuse, w.failed(refused))) for w in self._end(waiting))
        self._keep(lookup, found)
        for each in waiting:
            each.found[lookup] = found
            each.pending.discard(lookup)
        done = self._end([each for each in waiting if not each.pending])
        return tuple((w.sa, partial(w.take, w.as_if_sent)) for w in done)

    def _end(self, waiting: list[_Waiting]) -> list[_Waiting]:
        """They wait no more; gives those that it still matters to."""
        for each in waiting:
            del self._waiting[each.sa.our_spi]
        return [each for each in waiting if each.sa.state is IkeSaState.AUTHENTICATING]

    def _keep(self, lookup: Lookup, found: tuple[bytes, ...]) -> None:
        """Instead of what was found longest ago, if there is no room."""
        while len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[lookup.is_bundle, lookup.digest] = found


def names_certificates(payloads: tuple[OpenPayload, ...]) -> bool:
    """Whether a message has URLs in the place of certificates."""
    return any(isinstance(p, CertPayload) and p.encoding in BY_URL for p in payloads)


def look_up(
    sa: IkeSa,
    tunnel: TunnelPolicy,
    payloads: tuple[OpenPayload, ...],
    take: Taken,
    refuse: Refuse,
    now: float,
) -> None:
    """Hand the payloads to `take`, with the certificates that they name if the policy fetches any.

    At once, or when they are there; `refuse` is told why they cannot be had.
    """
    authorities = tunnel.remote_authorities
    is_in_vain = sa.resumed is not None or not tunnel.certificate_hosts
    if authorities is None or is_in_vain or not names_certificates(payloads):
        take(payloads, now)
        return
    waiting = _Waiting(
        sa=sa,
        identity=_identity_in(payloads),
        authorities=authorities,
        payloads=payloads,
        take=take,
        refuse=refuse,
    )
    try:
        sa.core.lookups.begin(waiting, _lookups_in(payloads, tunnel.certificate_hosts), now)
    except CertificateRefused as refused:
        refuse(waiting.failed(refused), now)


def _lookups_in(payloads: tuple[OpenPayload, ...], hosts: tuple[str, ...]) -> tuple[Lookup, ...]:
    """Each once. Raises `CertificateRefused`."""
    found = [lookup for lookup in map(_lookup_of, payloads) if lookup is not None]
    if len(found) > MAX_LOOKUPS:
        summary = f"the peer names {len(found)} certificates by URLs"
        raise CertificateRefused(Problem.TOO_MUCH, summary)
    for lookup in found:
        check_place(lookup, hosts)
    return tuple(dict.fromkeys(found))


def _lookup_of(payload: OpenPayload) -> Lookup | None:
    """Raises `CertificateRefused`."""
    if not isinstance(payload, CertPayload) or payload.encoding not in BY_URL:
        return None
    is_bundle = payload.encoding == CertificateEncoding.HASH_AND_URL_BUNDLE
    return decode_lookup_untrusted(payload.data, is_bundle=is_bundle)


def _identity_in(payloads: tuple[OpenPayload, ...]) -> Identity:
    found = optional(payloads, IdiPayload) or optional(payloads, IdrPayload)
    return NOBODY if found is None else found.identity
