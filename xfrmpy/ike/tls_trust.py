"""Whom the ends of a TLS within EAP believe: `pki` judges, which `eap` does not know."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import Enum

from xfrmpy.eap.method import EapFailed
from xfrmpy.eap.tls import TlsTrust
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.certificate import Certificate, decode_certificate_untrusted
from xfrmpy.pki.checks import TLS_CLIENT_USAGES, TLS_SERVER_USAGES
from xfrmpy.pki.identities import check_identity
from xfrmpy.pki.paths import MAX_PATH, validate
from xfrmpy.pki.verdicts import CertificateRefused


class TlsRole(Enum):
    """What the other end is, by the extended key usages of which its certificate has one."""

    SERVER = TLS_SERVER_USAGES
    CLIENT = TLS_CLIENT_USAGES


def trust_in(
    identity: Identity, role: TlsRole, anchors: Iterable[Certificate], now: datetime
) -> TlsTrust:
    """Trust in one end, which must prove by a path to one of `anchors` that it has `identity`."""
    trusted = tuple(anchors)

    def verify(chain: tuple[bytes, ...]) -> bytes:
        try:
            leaf, *others = map(decode_certificate_untrusted, chain[:MAX_PATH])
            validate(leaf, intermediates=others, anchors=trusted, now=now, usages=role.value)
            check_identity(leaf, identity)
        except CertificateRefused as refused:
            raise EapFailed(f"{refused.problem.value}: {refused.summary}") from refused
        return identity.data

    return TlsTrust(anchors=tuple(c.der for c in trusted), verify=verify, now=now)
