"""Where keys come from: ours that signs and what goes with it, and the peer's that are acceptable.

Read RFC 7296 sections 3.6 and 3.7 and RFC 7670. Whether a signature is right is decided in `proof`,
which knows nothing of where a key is from; here nothing is signed or verified. Every further kind
of credential (a certificate, a key in a token) is a case in these functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from xfrmpy.crypto.authentication import SignaturePolicy
from xfrmpy.crypto.signatures import (
    EXPERIMENTAL,
    Form,
    KeyKind,
    VerifyingKey,
    fingerprint,
    verifying_key,
)
from xfrmpy.failures import Failure
from xfrmpy.ike.auth_methods import heard_methods
from xfrmpy.ike.certificates import (
    WallClock,
    authorities_request,
    certified_path,
    sent_certificates,
)
from xfrmpy.ike.errors import AuthenticationFailed
from xfrmpy.ike.exchange import notifications
from xfrmpy.ike.inquiries import OCSP_REQUEST
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.paths import Path
from xfrmpy.pki.verdicts import Strictness
from xfrmpy.policy.model import Experiment, PrivateKey, RsaSignature, TunnelPolicy
from xfrmpy.registry import CertificateEncoding, HashAlgorithm, NotifyType
from xfrmpy.wire.auth_methods import AuthAnnouncement
from xfrmpy.wire.payloads import CertPayload, CertreqPayload, NotifyPayload, OpenPayload

MAX_HASHES = 16
"""Of a peer's list. IANA knows 7."""

RAW_KEY_REQUEST = CertreqPayload(encoding=CertificateEncoding.RAW_PUBLIC_KEY, data=b"")
"""RFC 7670 section 3; a raw key has no authority that could be named."""

HTTP_CERT_LOOKUP_SUPPORTED = NotifyPayload(type=NotifyType.HTTP_CERT_LOOKUP_SUPPORTED)
"""RFC 7296 section 3.10.1: for "any message that can include a CERTREQ payload"."""

CertRequest: TypeAlias = CertreqPayload | NotifyPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a peer's IKE_SA_INIT said of authentication.

    `hashes` are those that it verifies signatures with, none if it does not know RFC 7427;
    `requests` are a responder's: what it wants to see of us. An initiator's come in IKE_AUTH.
    `methods` are the proofs that it takes, if it says so: an initiator in IKE_AUTH.
    """

    hashes: tuple[int, ...] = ()
    requests: tuple[CertreqPayload, ...] = ()
    methods: tuple[AuthAnnouncement, ...] = ()

    @classmethod
    def of(cls, payloads: tuple[OpenPayload, ...]) -> Heard:
        """Nothing of it is authentic yet; AUTH covers it."""
        lists = notifications(payloads, NotifyType.SIGNATURE_HASH_ALGORITHMS)
        octets = b"".join(notify.data for notify in lists)
        pairs = [octets[at : at + 2] for at in range(0, len(octets) - 1, 2)]
        return cls(
            hashes=tuple(int.from_bytes(pair, "big") for pair in pairs[:MAX_HASHES]),
            requests=tuple(p for p in payloads if isinstance(p, CertreqPayload)),
            methods=heard_methods(payloads),
        )


NOTHING_HEARD = Heard()


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """How we prove ourselves by a signature: what signs, and the CERT payloads to go before it."""

    key: PrivateKey
    certs: tuple[CertPayload, ...]

    @property
    def kind(self) -> KeyKind:
        return verifying_key(self.key.public).kind


def our_credential(tunnel: TunnelPolicy, requests: Iterable[CertreqPayload]) -> Credential | None:
    """Ours towards the peer of a tunnel that asked for `requests`; None is the shared key.

    Certificates go to a peer that asks for nothing, too, for it may want them all the same; and
    whichever authorities it names, for we have no others to choose from.
    """
    if tunnel.local_key is None:
        return None
    certs: tuple[CertPayload, ...] = ()
    wanted = {request.encoding for request in requests} - {OCSP_REQUEST.encoding}
    if tunnel.local_certificates is not None and wanted != {RAW_KEY_REQUEST.encoding}:
        certs = sent_certificates(tunnel.local_certificates)
    elif RAW_KEY_REQUEST.encoding in wanted:
        certs = (_raw_key(tunnel.local_key.public),)
    return Credential(key=tunnel.local_key, certs=certs)


def certificate_requests(policies: Iterable[TunnelPolicy]) -> tuple[CertRequest, ...]:
    """What we ask a peer to show that may be any of these tunnels'; it may name it by URLs if any
    of them fetches that."""
    policies = tuple(p for policy in policies for p in policy.every_round)
    authorities = [p.remote_authorities for p in policies if p.remote_authorities is not None]
    asks_status = any(
        p.remote_authorities is not None and p.revocation is not Strictness.OFF for p in policies
    )
    return (
        *((authorities_request(authorities),) if authorities else ()),
        *((OCSP_REQUEST,) if asks_status else ()),
        *((RAW_KEY_REQUEST,) if any(p.remote_key is not None for p in policies) else ()),
        *((HTTP_CERT_LOOKUP_SUPPORTED,) if any(p.certificate_hosts for p in policies) else ()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptable:
    """The keys by which a peer may sign: at least one. A certificate proves it by its `path`."""

    keys: tuple[VerifyingKey, ...]
    path: Path = ()


def acceptable_keys(
    tunnel: TunnelPolicy, identity: Identity, certs: tuple[CertPayload, ...], clock: WallClock
) -> Acceptable:
    """The keys by which the peer may sign as `identity`. `certs` are its CERTs.

    Raises `AuthenticationFailed` if it shows another key than policy has, or no certificate that
    our authorities vouch for at the moment.
    """
    if tunnel.remote_authorities is not None:
        ours = tunnel.local_certificates
        path = certified_path(identity, certs, tunnel.remote_authorities, ours, clock())
        return Acceptable(keys=(verifying_key(path[0].public_key_info),), path=path)
    assert tunnel.remote_key is not None
    expected = tunnel.remote_key
    shown = [c.data for c in certs if c.encoding == CertificateEncoding.RAW_PUBLIC_KEY]
    if shown and expected.spki not in shown:
        raise AuthenticationFailed(
            Failure(
                code="XF2042",
                summary=f"{identity} shows another public key than the one in our policy",
                evidence=(
                    ("their key", fingerprint(shown[0])),
                    ("we expect", fingerprint(expected.spki)),
                    ("from", expected.origin),
                ),
            )
        )
    return Acceptable(keys=(verifying_key(expected.spki),))


def signature_policy(tunnel: TunnelPolicy, usable: SignaturePolicy) -> SignaturePolicy:
    """How signatures are made and taken with a tunnel, of what is usable on this host."""
    is_pkcs1 = tunnel.local_key is not None and tunnel.local_key.rsa is RsaSignature.PKCS1
    takes_all = tunnel.experiment is Experiment.ML_DSA
    return SignaturePolicy(
        schemes=tuple(s for s in usable.schemes if takes_all or not s.kinds & EXPERIMENTAL),
        rsa_form=Form.PKCS1 if is_pkcs1 else Form.PSS,
        weak_rsa=tunnel.weak_signatures,
    )


def hash_list(usable: SignaturePolicy) -> NotifyPayload:
    """SIGNATURE_HASH_ALGORITHMS (RFC 7427 section 4): what we verify with."""
    data = b"".join(HashAlgorithm(h).to_bytes(2, "big") for h in usable.hashes)
    return NotifyPayload(type=NotifyType.SIGNATURE_HASH_ALGORITHMS, data=data)


def _raw_key(spki: bytes) -> CertPayload:
    return CertPayload(encoding=CertificateEncoding.RAW_PUBLIC_KEY, data=spki)
