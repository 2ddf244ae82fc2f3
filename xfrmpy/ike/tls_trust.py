"""The ends of a TLS within EAP, by what a policy has: `pki` judges, which `eap` does not know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from enum import Enum
from itertools import pairwise

from xfrmpy.eap.method import EapFailed
from xfrmpy.eap.tls import TlsEnd, TlsKey, TlsTrust
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.certificate import Certificate, decode_certificate_untrusted
from xfrmpy.pki.checks import TLS_CLIENT_USAGES, TLS_SERVER_USAGES
from xfrmpy.pki.identities import check_identity
from xfrmpy.pki.paths import MAX_PATH, Path, validate
from xfrmpy.pki.revocation import RevocationList, check_by_crls, load_lists
from xfrmpy.pki.verdicts import CertificateRefused, Problem
from xfrmpy.policy.model import Certificates, EapClientTls, EapServerTls, PrivateKey


class TlsRole(Enum):
    """What the other end is, by the extended key usages of which its certificate has one."""

    SERVER = TLS_SERVER_USAGES
    CLIENT = TLS_CLIENT_USAGES


def trust_in(
    identity: Identity,
    role: TlsRole,
    anchors: Iterable[Certificate],
    now: datetime,
    lists: Sequence[RevocationList] = (),
) -> TlsTrust:
    """Trust in one end, which must prove by a path to one of `anchors` that it has `identity`.

    What one of `lists` has revoked is refused; where none tells, it is taken.
    """
    trusted = tuple(anchors)

    def verify(chain: tuple[bytes, ...]) -> bytes:
        try:
            leaf, *others = map(decode_certificate_untrusted, chain[:MAX_PATH])
            path = validate(leaf, intermediates=others, anchors=trusted, now=now, usages=role.value)
            _check_not_revoked(path, lists, now)
            check_identity(leaf, identity)
        except CertificateRefused as refused:
            raise EapFailed(f"{refused.problem.value}: {refused.summary}") from refused
        return str(identity).encode()

    return TlsTrust(anchors=tuple(c.der for c in trusted), verify=verify, now=now)


def client_end(tls: EapClientTls, now: datetime) -> TlsEnd:
    """Of a user, as whom we call."""
    key = None
    if tls.key is not None and tls.certificates is not None:
        key = _key(tls.certificates, tls.key)
    return TlsEnd(key=key, trust=_trust(tls.server, TlsRole.SERVER, tls.authorities, now))


def server_end(tls: EapServerTls) -> TlsEnd:
    """Of a server that asks for no certificate."""
    return TlsEnd(key=_key(tls.certificates, tls.key))


def asking_end(tls: EapServerTls, user: bytes, now: datetime) -> TlsEnd:
    """Of a server that wants the certificate of `user`, as the user says it is called."""
    if tls.authorities is None:
        raise EapFailed("there are no authorities for the certificates of users")
    try:
        identity = Identity.parse(user.decode())
    except ValueError as error:
        raise EapFailed("the user's name is none that a certificate could have") from error
    trust = _trust(identity, TlsRole.CLIENT, tls.authorities, now)
    return replace(server_end(tls), trust=trust)


def _trust(identity: Identity, role: TlsRole, authorities: Certificates, now: datetime) -> TlsTrust:
    anchors = map(decode_certificate_untrusted, authorities.ders)
    lists = load_lists(authorities.crl) if authorities.crl else ()
    return trust_in(identity, role, anchors, now, lists)


def _key(certificates: Certificates, key: PrivateKey) -> TlsKey:
    """The top of a hierarchy proves nothing to whoever does not have it already."""
    leaf, *above = map(decode_certificate_untrusted, certificates.ders)
    sent = (leaf, *(c for c in above if not c.is_self_issued))
    return TlsKey(certificates=tuple(c.der for c in sent), pkcs8=key.octets)


def _check_not_revoked(path: Path, lists: Sequence[RevocationList], now: datetime) -> None:
    for certificate, issuer in pairwise(path):
        try:
            check_by_crls(certificate, issuer, lists, now)
        except CertificateRefused as refused:
            if refused.problem is not Problem.STATUS_UNKNOWN:
                raise
