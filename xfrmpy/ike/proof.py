"""How each end proves in IKE_AUTH that it is who it says: AUTH made, and AUTH verified.

Read RFC 7296 section 2.15, RFC 7427 section 3 and RFC 7619 section 2.1 first. The two ends need not
do it by the same method (RFC 7296 section 2.16). Which keys count is decided in `credentials`; a
peer that fails learns only that it has failed, and our operator at which step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from xfrmpy.crypto.authentication import (
    AuthenticationMismatch,
    NoSchemeInCommon,
    choose_method,
    resumed_auth,
    shared_key_auth,
    signature_auth,
    signed_octets,
    verify_auth,
    verify_signed_auth,
)
from xfrmpy.crypto.key_schedule import IkeKeys
from xfrmpy.crypto.signatures import fingerprint
from xfrmpy.failures import Failure
from xfrmpy.ike.auth_methods import as_announced, shown_methods
from xfrmpy.ike.credentials import acceptable_keys, our_credential, signature_policy
from xfrmpy.ike.errors import AuthenticationFailed
from xfrmpy.ike.evidence import listed
from xfrmpy.ike.exchange import only
from xfrmpy.ike.inquiries import inquire, our_status
from xfrmpy.ike.signing import Refuse, sign
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.model import TunnelPolicy
from xfrmpy.registry import AuthenticationMethod, HashAlgorithm
from xfrmpy.wire.payloads import (
    AuthPayload,
    CertPayload,
    CertreqPayload,
    IdiPayload,
    IdrPayload,
    OpenPayload,
)

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

_IdPayload: TypeAlias = IdiPayload | IdrPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Our CERT payloads and AUTH."""

    certs: tuple[CertPayload, ...] = ()
    auth: AuthPayload


def prove(
    sa: IkeSa,
    tunnel: TunnelPolicy,
    identity: _IdPayload,
    requests: tuple[CertreqPayload, ...],
    then: Callable[[Proof, float], None],
    refuse: Refuse,
    now: float,
    keys: IkeKeys | None = None,
) -> None:
    """Hand our proof to `then`, at once or when a token has signed; `refuse` is told if our key
    cannot sign for the peer, or the token does not.

    With `keys` AUTH is made by them in the place of those of the IKE SA.
    """
    octets = _octets(sa, identity, keys, of_initiator=sa.is_initiator)
    credential = None if sa.resumed is not None else our_credential(tunnel, requests)
    if credential is None:
        method, data = _by_secret(sa, tunnel, octets, keys, is_ours=True)
        then(Proof(auth=AuthPayload(method=method, data=data)), now)
        return
    heard, usable = sa.heard, signature_policy(tunnel, sa.core.signatures)
    policy = as_announced(usable, credential.kind, heard.hashes, heard.methods)
    try:
        method, scheme = choose_method(credential.kind, heard.hashes, policy)
    except NoSchemeInCommon as error:
        refuse(AuthenticationFailed(_cannot_sign(sa, tunnel, error)), now)
        return
    status = our_status(sa.core, tunnel, requests) if credential.certs else ()
    certs = (*credential.certs, *status)

    def signed(signature: bytes, moment: float) -> None:
        data = signature_auth(method, scheme, signature)
        then(Proof(certs=certs, auth=AuthPayload(method=method, data=data)), moment)

    sign(sa, credential.key, scheme, octets, signed, refuse, now)


def check_signing(sa: IkeSa, tunnel: TunnelPolicy) -> Failure | None:
    """Why an initiator's key cannot sign for a peer whose IKE_SA_INIT it has, if so."""
    policy = signature_policy(tunnel, sa.core.signatures)
    for of_round in tunnel.every_round:
        credential = our_credential(of_round, ())
        try:
            if credential is not None:
                choose_method(credential.kind, sa.heard.hashes, policy)
        except NoSchemeInCommon as error:
            return _cannot_sign(sa, of_round, error)
    return None


def _cannot_sign(sa: IkeSa, tunnel: TunnelPolicy, error: NoSchemeInCommon) -> Failure:
    return Failure(
        code="XF2040",
        summary=f"our key cannot sign for the peer: {error}",
        evidence=(
            ("our key", _our_key(tunnel)),
            ("their hashes", listed(HashAlgorithm(h).name for h in sa.heard.hashes) or "none"),
        ),
    )


def verify_proof(
    sa: IkeSa,
    tunnel: TunnelPolicy,
    identity: _IdPayload,
    payloads: tuple[OpenPayload, ...],
    keys: IkeKeys | None = None,
) -> None:
    """Raises `AuthenticationFailed` unless the peer has proved to be `identity`.

    Whether its certificate is revoked may not be known yet: `settle_status` is to follow. With
    `keys` AUTH must be made by them in the place of those of the IKE SA.
    """
    auth = only(payloads, AuthPayload)
    octets = _octets(sa, identity, keys, of_initiator=not sa.is_initiator)
    if sa.resumed is None and tunnel.peer_signs:
        _verify_signature(sa, tunnel, identity, payloads, octets)
        return
    method, expected = _by_secret(sa, tunnel, octets, keys, is_ours=False)
    is_null = method == AuthenticationMethod.NULL
    code, wanted = ("XF2043", "none") if is_null else ("XF2006", _shared_key(tunnel))
    if auth.method != method:
        what = "NULL authentication" if is_null else "a shared key"
        summary = f"the peer authenticates by {auth.method.name}, our policy wants {what}"
        raise _not_proved(code, summary, identity, ("our key", wanted))
    try:
        verify_auth(expected, auth.data)
    except AuthenticationMismatch as error:
        fits = "the keys of this IKE SA" if is_null else "our shared key"
        summary = f"the peer's AUTH does not match {fits}"
        raise _not_proved(code, summary, identity, ("our key", wanted)) from error


def _verify_signature(
    sa: IkeSa,
    tunnel: TunnelPolicy,
    identity: _IdPayload,
    payloads: tuple[OpenPayload, ...],
    octets: bytes,
) -> None:
    auth = only(payloads, AuthPayload)
    certs = tuple(p for p in payloads if isinstance(p, CertPayload))
    found = acceptable_keys(tunnel, identity.identity, certs, sa.core.wall_clock)
    wanted = ("we expect", listed(f"{key.kind} {fingerprint(key.spki)}" for key in found.keys))
    if auth.method == AuthenticationMethod.SHARED_KEY:
        summary = "the peer authenticates by a shared key, our policy wants a signature"
        raise _not_proved("XF2041", summary, identity, wanted)
    policy = signature_policy(tunnel, sa.core.signatures)
    try:
        verify_signed_auth(found.keys, auth.method, auth.data, octets, policy)
    except AuthenticationMismatch as error:
        summary = f"the peer's AUTH ({auth.method.name}) is not right: {error}"
        raise _not_proved("XF2041", summary, identity, wanted) from error
    if found.path:
        sa.certified = (*sa.certified, found.path)
    inquire(sa, tunnel, identity.identity, found.path, certs)


def eap_proof(
    sa: IkeSa, identity: _IdPayload, msk: bytes, keys: IkeKeys | None = None
) -> AuthPayload:
    """Our AUTH behind EAP, by the key that EAP has made (RFC 7296 section 2.16)."""
    data = _eap_auth(sa, identity, msk, keys, of_initiator=sa.is_initiator)
    return AuthPayload(method=AuthenticationMethod.SHARED_KEY, data=data)


def verify_eap_proof(
    sa: IkeSa,
    identity: _IdPayload,
    msk: bytes,
    payloads: tuple[OpenPayload, ...],
    keys: IkeKeys | None = None,
) -> None:
    """Raises `AuthenticationFailed` unless the peer has the key that EAP has made."""
    auth = only(payloads, AuthPayload)
    expected = _eap_auth(sa, identity, msk, keys, of_initiator=not sa.is_initiator)
    kind = "the key of EAP" if msk else "the keys of the IKE SA, for EAP has made none"
    wanted = ("AUTH must be by", kind)
    if auth.method != AuthenticationMethod.SHARED_KEY:
        summary = f"behind EAP the peer authenticates by {auth.method.name}"
        raise _not_proved("XF2054", summary, identity, wanted)
    try:
        verify_auth(expected, auth.data)
    except AuthenticationMismatch as error:
        summary = "the peer's AUTH does not match what EAP has come to"
        raise _not_proved("XF2054", summary, identity, wanted) from error


def _eap_auth(
    sa: IkeSa, identity: _IdPayload, msk: bytes, keys: IkeKeys | None, *, of_initiator: bool
) -> bytes:
    """Without a key of EAP "the AUTH payloads in messages 7 and 8 MUST be generated using SK_pi and
    SK_pr, respectively"."""
    keys = keys or sa.keys
    assert keys is not None
    assert sa.suite is not None
    octets = _octets(sa, identity, keys, of_initiator=of_initiator)
    key = msk or (keys.sk_pi if of_initiator else keys.sk_pr)
    return shared_key_auth(sa.suite.prf, key, octets)


def _not_proved(
    code: str, summary: str, identity: _IdPayload, wanted: tuple[str, str]
) -> AuthenticationFailed:
    evidence = (("their identity", str(identity.identity)), wanted)
    return AuthenticationFailed(Failure(code=code, summary=summary, evidence=evidence))


def check_identity(tunnel: TunnelPolicy, identity: Identity) -> None:
    """Raises `AuthenticationFailed` unless who a responder has proved to be is whom we expect."""
    if tunnel.remote_null:
        return
    if tunnel.remote_id is None or not tunnel.remote_id.matches(identity):
        raise AuthenticationFailed(
            Failure(
                code="XF2007",
                summary=f"the peer proved to be {identity}",
                evidence=(("we expect", str(tunnel.remote_id)), ("they are", str(identity))),
            )
        )


def accepted_by_peer(sa: IkeSa) -> tuple[tuple[str, str], ...]:
    """Evidence: the proofs that the peer takes, if it has said so."""
    if not sa.heard.methods:
        return ()
    return (("they accept", listed(shown_methods(sa.heard.methods, sa.core.signatures))),)


def key_origin(tunnel: TunnelPolicy) -> str:
    """Where the key is from by which we prove ourselves."""
    if tunnel.local_null:
        return "none, by NULL authentication"
    if tunnel.local_eap is not None:
        return f"EAP as {tunnel.local_eap}"
    return _shared_key(tunnel) if tunnel.local_key is None else _our_key(tunnel)


def _our_key(tunnel: TunnelPolicy) -> str:
    assert tunnel.local_key is not None
    return f"{fingerprint(tunnel.local_key.public)}, from {tunnel.local_key.origin}"


def _shared_key(tunnel: TunnelPolicy) -> str:
    return "none" if tunnel.shared_key is None else tunnel.shared_key.origin


def _octets(sa: IkeSa, identity: _IdPayload, keys: IkeKeys | None, *, of_initiator: bool) -> bytes:
    """What one end signs: its own first message, the other's nonce, and its identity."""
    keys = keys or sa.keys
    assert keys is not None
    assert sa.suite is not None
    return signed_octets(
        sa.suite.prf,
        message=sa.channel.init_request if of_initiator else sa.channel.init_response,
        peer_nonce=sa.nonces[1] if of_initiator else sa.nonces[0],
        sk_p=keys.sk_pi if of_initiator else keys.sk_pr,
        identity=identity.encode_body(),
        int_auth=b"" if sa.resumed is not None else sa.transcript.octets,
    )


def _by_secret(
    sa: IkeSa, tunnel: TunnelPolicy, octets: bytes, keys: IkeKeys | None, *, is_ours: bool
) -> tuple[AuthenticationMethod, bytes]:
    """AUTH of one end without a signature: its method and data.

    RFC 7619 section 2.1: for who proves nothing SK_pi or SK_pr takes the place of the shared key.
    """
    keys = keys or sa.keys
    assert keys is not None
    assert sa.suite is not None
    sk_p = keys.sk_pi if sa.is_initiator == is_ours else keys.sk_pr
    if sa.resumed is not None:
        return AuthenticationMethod.SHARED_KEY, resumed_auth(sa.suite.prf, sk_p, octets)
    if tunnel.local_null if is_ours else tunnel.remote_null:
        return AuthenticationMethod.NULL, shared_key_auth(sa.suite.prf, sk_p, octets)
    assert tunnel.shared_key is not None
    data = shared_key_auth(sa.suite.prf, tunnel.shared_key.octets, octets)
    return AuthenticationMethod.SHARED_KEY, data
