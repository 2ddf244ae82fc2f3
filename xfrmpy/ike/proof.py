"""How each end proves in IKE_AUTH that it is who it says: AUTH made, and AUTH verified.

Read RFC 7296 section 2.15 and RFC 7427 section 3 first. The two ends need not do it by the same
method (section 2.16). Which keys count is decided in `credentials`; a peer that fails learns only
that it has failed, and our operator at which step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from xfrmpy.crypto.authentication import (
    AuthenticationMismatch,
    NoSchemeInCommon,
    choose_method,
    resumed_auth,
    shared_key_auth,
    sign_auth,
    signed_octets,
    verify_auth,
    verify_signed_auth,
)
from xfrmpy.crypto.key_schedule import IkeKeys
from xfrmpy.crypto.signatures import fingerprint
from xfrmpy.failures import Failure
from xfrmpy.ike.credentials import acceptable_keys, our_credential, signature_policy
from xfrmpy.ike.errors import AuthenticationFailed
from xfrmpy.ike.evidence import listed
from xfrmpy.ike.exchange import only
from xfrmpy.ike.inquiries import inquire, our_status
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


def our_proof(
    sa: IkeSa,
    tunnel: TunnelPolicy,
    identity: _IdPayload,
    requests: tuple[CertreqPayload, ...],
    keys: IkeKeys | None = None,
) -> tuple[tuple[CertPayload, ...], AuthPayload]:
    """Our CERT payloads and AUTH. Raises `AuthenticationFailed` if our key cannot sign for them.

    With `keys` AUTH is made by them in the place of those of the IKE SA.
    """
    octets = _octets(sa, identity, keys, of_initiator=sa.is_initiator)
    credential = None if sa.resumed is not None else our_credential(tunnel, requests)
    if credential is None:
        data = _expected_auth(sa, tunnel, octets, of_initiator=sa.is_initiator)
        return (), AuthPayload(method=AuthenticationMethod.SHARED_KEY, data=data)
    policy = signature_policy(tunnel, sa.core.signatures)
    try:
        method, data = sign_auth(credential.signer, octets, sa.heard.hashes, policy)
    except NoSchemeInCommon as error:
        raise AuthenticationFailed(_cannot_sign(sa, tunnel, error)) from error
    status = our_status(sa.core, tunnel, requests) if credential.certs else ()
    return (*credential.certs, *status), AuthPayload(method=method, data=data)


def check_signing(sa: IkeSa, tunnel: TunnelPolicy) -> Failure | None:
    """Why an initiator's key cannot sign for a peer whose IKE_SA_INIT it has, if so."""
    credential = our_credential(tunnel, ())
    if credential is None:
        return None
    policy = signature_policy(tunnel, sa.core.signatures)
    try:
        choose_method(credential.signer.kind, sa.heard.hashes, policy)
    except NoSchemeInCommon as error:
        return _cannot_sign(sa, tunnel, error)
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
    if auth.method != AuthenticationMethod.SHARED_KEY:
        summary = f"the peer authenticates by {auth.method.name}, our policy wants a shared key"
        raise _not_proved("XF2006", summary, identity, ("our key", _shared_key(tunnel)))
    expected = _expected_auth(sa, tunnel, octets, of_initiator=not sa.is_initiator)
    try:
        verify_auth(expected, auth.data)
    except AuthenticationMismatch as error:
        summary = "the peer's AUTH does not match our shared key"
        raise _not_proved("XF2006", summary, identity, ("our key", _shared_key(tunnel))) from error


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
    sa.certified = found.path
    inquire(sa, tunnel, identity.identity, found.path, certs)


def _not_proved(
    code: str, summary: str, identity: _IdPayload, wanted: tuple[str, str]
) -> AuthenticationFailed:
    evidence = (("their identity", str(identity.identity)), wanted)
    return AuthenticationFailed(Failure(code=code, summary=summary, evidence=evidence))


def key_origin(tunnel: TunnelPolicy) -> str:
    """Where the key is from by which we prove ourselves."""
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


def _expected_auth(sa: IkeSa, tunnel: TunnelPolicy, octets: bytes, *, of_initiator: bool) -> bytes:
    assert sa.keys is not None
    assert sa.suite is not None
    if sa.resumed is not None:
        sk_p = sa.keys.sk_pi if of_initiator else sa.keys.sk_pr
        return resumed_auth(sa.suite.prf, sk_p, octets)
    assert tunnel.shared_key is not None
    return shared_key_auth(sa.suite.prf, tunnel.shared_key.octets, octets)
