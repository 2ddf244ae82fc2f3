"""EAP in IKE_AUTH, the responder's side: we are the authenticator of the peer.

Read RFC 7296 sections 2.16 and 3.16 and RFC 5998 first. The first request names who calls, which is
nothing to go by, and what it wants; we prove who we are and ask. All that is wanted waits for the
last request, whose AUTH proves that the peer has the key that EAP has made, and so that nobody
stands between the two. Until then the IKE SA is half-open, and bounded like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from xfrmpy.failures import Failure
from xfrmpy.ike.eap_authenticator import (
    AaaAuthenticator,
    Accepted,
    Authenticator,
    Challenge,
    Refused,
    Verdict,
    authenticator_of,
    failure_packet,
)
from xfrmpy.ike.errors import PeerMisbehaved
from xfrmpy.ike.evidence import listed
from xfrmpy.ike.exchange import first_error, notifications, only, optional
from xfrmpy.ike.ppk import confirm_ppk, verify_with_ppk
from xfrmpy.ike.proof import Proof, eap_proof, prove, verify_eap_proof
from xfrmpy.ike.signing import Refuse
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.model import TunnelPolicy
from xfrmpy.registry import NotifyType
from xfrmpy.wire.message import encode_payloads
from xfrmpy.wire.payloads import (
    AuthPayload,
    CertreqPayload,
    DeletePayload,
    EapPayload,
    IdiPayload,
    IdrPayload,
    NotifyPayload,
    OpenPayload,
    SaPayload,
    TsiPayload,
    TsrPayload,
)

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

MAX_EAP_ROUNDS = 64
"""Packets of the peer, ours. strongSwan takes as many of one method; EAP-TLS with long chains of
certificates has some twenty."""

EAP_SECONDS = 30.0
"""How long all of it may take from the first IKE_AUTH on; as long as a half-open IKE SA may."""

MAX_WANTED = 16384
"""Octets of what a stranger wants, which we keep meanwhile: hundreds of traffic selectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticated:
    """Whose IKE_AUTH is right, and with which tunnel: all that making it takes.

    `request` is what the peer wants, `proof` our identity and AUTH, as our answer has them, if they
    are made already.
    """

    tunnel: TunnelPolicy
    local: Identity
    remote: Identity
    request: tuple[OpenPayload, ...]
    proof: tuple[OpenPayload, ...] = ()
    session_seconds: float | None = None


class EapServing:
    """EAP with one peer. `tunnels` are those that it may be meant by, whose authentication is the
    same; which it is, says who it proves to be."""

    def __init__(
        self,
        sa: IkeSa,
        tunnels: tuple[TunnelPolicy, ...],
        local: Identity,
        payloads: tuple[OpenPayload, ...],
    ) -> None:
        self.tunnels = tunnels
        self.idi = only(payloads, IdiPayload)
        self.idr = IdrPayload(identity=local)
        self.request = tuple(p for p in payloads if isinstance(p, _WANTED))
        if len(encode_payloads(self.request)[1]) > MAX_WANTED:
            raise PeerMisbehaved(f"more than {MAX_WANTED} octets of wishes before EAP")
        self.authenticator: Authenticator = authenticator_of(sa, tunnels[0])
        self.rounds = 0
        self.packet = b""
        self.accepted: Accepted | None = None
        self.tunnel = tunnels[0]

    def choose_tunnel(self, accepted: Accepted) -> TunnelPolicy | None:
        """The first whose policy admits the user."""
        user, groups = accepted.outcome.identity, accepted.groups
        return next((t for t in self.tunnels if _admits(t, user, groups)), None)


_WANTED = (SaPayload, TsiPayload, TsrPayload, NotifyPayload)


def _admits(tunnel: TunnelPolicy, user: bytes, groups: tuple[str, ...]) -> bool:
    return tunnel.remote_eap is not None and tunnel.remote_eap.admits(user, groups)


def begin_eap(
    sa: IkeSa,
    tunnels: tuple[TunnelPolicy, ...],
    local: Identity,
    payloads: tuple[OpenPayload, ...],
    refuse: Refuse,
    now: float,
) -> None:
    """Prove who we are, and ask the peer who it is; `refuse` is told if we cannot.

    We leave our proof out where both ends want that.
    """
    serving = _serve(sa, tunnels, local, payloads, now)
    acceptance = serving.tunnel.remote_eap
    assert acceptance is not None
    if acceptance.alone and notifications(payloads, NotifyType.EAP_ONLY_AUTHENTICATION):
        sa.respond((serving.idr, EapPayload(data=serving.authenticator.begin())))
        return
    requests = tuple(p for p in payloads if isinstance(p, CertreqPayload))
    _prove_and_ask(sa, serving, requests, refuse, now)


def continue_by_eap(
    sa: IkeSa,
    tunnel: TunnelPolicy,
    local: Identity,
    payloads: tuple[OpenPayload, ...],
    now: float,
) -> None:
    """Ask, in a further round, a peer to whom we have proved who we are."""
    serving = _serve(sa, (tunnel,), local, payloads, now)
    sa.respond((EapPayload(data=serving.authenticator.begin()),))


def prove_again_before_eap(
    sa: IkeSa,
    tunnel: TunnelPolicy,
    local: Identity,
    payloads: tuple[OpenPayload, ...],
    requests: tuple[CertreqPayload, ...],
    refuse: Refuse,
    now: float,
) -> None:
    """As `continue_by_eap`, in a round in which we prove ourselves, too."""
    _prove_and_ask(sa, _serve(sa, (tunnel,), local, payloads, now), requests, refuse, now)


def _serve(
    sa: IkeSa,
    tunnels: tuple[TunnelPolicy, ...],
    local: Identity,
    payloads: tuple[OpenPayload, ...],
    now: float,
) -> EapServing:
    sa.eap_serving = EapServing(sa, tunnels, local, payloads)
    sa.expect_authentication(now + EAP_SECONDS)
    return sa.eap_serving


def _prove_and_ask(
    sa: IkeSa,
    serving: EapServing,
    requests: tuple[CertreqPayload, ...],
    refuse: Refuse,
    now: float,
) -> None:
    def proved(proof: Proof, _moment: float) -> None:
        packet = EapPayload(data=serving.authenticator.begin())
        sa.respond((serving.idr, *proof.certs, proof.auth, packet))

    prove(sa, serving.tunnel, serving.idr, requests, proved, refuse, now)


def take_eap(
    sa: IkeSa, serving: EapServing, payloads: tuple[OpenPayload, ...], now: float
) -> Authenticated | None:
    """A further request: a packet of EAP, which is answered now or later, or AUTH at the end.

    Raises `PeerMisbehaved` for AUTH before its time, `AuthenticationFailed` for a wrong one.
    """
    if serving.accepted is not None:
        return _conclude(sa, serving, serving.accepted, payloads)
    if optional(payloads, AuthPayload) is not None:
        raise PeerMisbehaved("AUTH before EAP has succeeded")
    serving.packet = only(payloads, EapPayload).data
    serving.rounds += 1
    if serving.rounds > MAX_EAP_ROUNDS:
        raise PeerMisbehaved(f"more than {MAX_EAP_ROUNDS} rounds of EAP")
    verdict = serving.authenticator.handle(serving.packet)
    if verdict is not None:
        _settle(sa, serving, verdict, now)
    return None


def take_verdict(sa: IkeSa, round_: int, verdict: Verdict, now: float) -> None:
    """An AAA server has decided on a packet of the peer; too late, it changes nothing."""
    serving = sa.eap_serving
    if serving is None or not isinstance(serving.authenticator, AaaAuthenticator):
        return
    if sa.state is IkeSaState.AUTHENTICATING and serving.authenticator.is_awaited(round_):
        _settle(sa, serving, verdict, now)


def answer_amid_auth(sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
    """The peer has something to say before its last AUTH: that it does not believe us, or gives
    up."""
    serving, error = sa.eap_serving, first_error(payloads)
    sa.respond(())
    if error is None and optional(payloads, DeletePayload) is None:
        return
    said = "deletes the IKE SA" if error is None else f"says {error.type.name}"
    if serving is None:
        assert sa.rounds is not None
        summary = f"{sa.rounds.made.remote} {said} behind round {sa.rounds.number}"
        sa.close(Failure(code="XF2058", summary=summary), now)
        return
    summary = f"{serving.idi.identity} {said} amid EAP"
    evidence = (("they say they are", str(Identity.of_eap(serving.authenticator.user))),)
    sa.close(Failure(code="XF2056", summary=summary, evidence=evidence), now)


def _settle(sa: IkeSa, serving: EapServing, verdict: Verdict, now: float) -> None:
    if isinstance(verdict, Accepted):
        tunnel = serving.choose_tunnel(verdict)
        if tunnel is not None:
            serving.accepted, serving.tunnel = verdict, tunnel
            sa.respond((EapPayload(data=verdict.packet),))
        else:
            _refuse(sa, failure_packet(serving.packet), _not_admitted(serving, verdict), now)
    elif isinstance(verdict, Challenge):
        sa.respond((EapPayload(data=verdict.packet),))
    else:
        _refuse(sa, verdict.packet, _not_proved(serving, verdict), now)


def _refuse(sa: IkeSa, packet: bytes, failure: Failure, now: float) -> None:
    """The peer learns that it has failed, and nothing else."""
    sa.respond((EapPayload(data=packet),))
    sa.close(failure, now)


def _conclude(
    sa: IkeSa, serving: EapServing, accepted: Accepted, payloads: tuple[OpenPayload, ...]
) -> Authenticated:
    msk = accepted.outcome.msk
    verify = partial(verify_eap_proof, sa, serving.idi, msk)
    verify_with_ppk(sa, serving.tunnel, serving.idi.identity, payloads, verify)
    remote = Identity.of_eap(accepted.outcome.identity)
    said = tuple(p for p in payloads if isinstance(p, NotifyPayload))
    return Authenticated(
        tunnel=serving.tunnel,
        local=serving.idr.identity,
        remote=remote,
        request=(*serving.request, *said),
        proof=(eap_proof(sa, serving.idr, msk), *confirm_ppk(sa)),
        session_seconds=accepted.session_seconds,
    )


def _not_proved(serving: EapServing, verdict: Refused) -> Failure:
    user = str(Identity.of_eap(verdict.user))
    evidence = [("they say they are", user), ("and in IKE", str(serving.idi.identity))]
    acceptance = serving.tunnel.remote_eap
    assert acceptance is not None
    if acceptance.users is not None:
        evidence.append(("we know", str(acceptance.users)))
    code = "XF2055" if verdict.is_unreachable else "XF2052"
    return Failure(code=code, summary=verdict.reason, evidence=tuple(evidence))


def _not_admitted(serving: EapServing, accepted: Accepted) -> Failure:
    user = Identity.of_eap(accepted.outcome.identity)
    identities = (i for t in serving.tunnels if t.remote_eap for i in t.remote_eap.identities)
    groups = (g for t in serving.tunnels if t.remote_eap for g in t.remote_eap.groups)
    evidence = (
        ("we admit", listed(identities) or "anybody"),
        ("of the groups", listed(groups) or "any"),
        ("they are in", listed(accepted.groups) or "none"),
    )
    summary = f"{user} has proved who it is, and no tunnel of ours admits it"
    return Failure(code="XF2053", summary=summary, evidence=evidence)
