"""Whose certificate an end of TLS within EAP believes, as `pki` judges it."""

from __future__ import annotations

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.eap.tls_ends import GATEWAY, ISSUING, ROOT, STRANGER, leaf
from tests.pki.chains import DAY, NOW, Entity, authority, extended
from xfrmpy.eap.method import EapFailed
from xfrmpy.ike.tls_trust import TlsRole, trust_in
from xfrmpy.ipsec.identity import Identity

USAGE = ExtendedKeyUsageOID


def only(*usages: str) -> Entity:
    return leaf(GATEWAY, extensions=[extended(*usages)])


def verify(role: TlsRole, *chain: Entity, identity: str = GATEWAY) -> bytes:
    trust = trust_in(Identity.parse(identity), role, [ROOT.certificate], NOW)
    return trust.verify(tuple(entity.certificate.der for entity in chain))


@pytest.mark.parametrize("role", TlsRole)
def test_a_certificate_for_both_is_believed_of_both(role: TlsRole) -> None:
    assert verify(role, leaf(GATEWAY), ISSUING) == GATEWAY.encode()


@pytest.mark.parametrize(
    ("role", "usages", "why"),
    [
        (TlsRole.SERVER, (USAGE.CLIENT_AUTH.dotted_string,), "without serverAuth"),
        (TlsRole.CLIENT, (USAGE.SERVER_AUTH.dotted_string,), "without clientAuth"),
        (TlsRole.SERVER, (USAGE.IPSEC_IKE.dotted_string,), "without serverAuth"),
    ],
)
def test_a_certificate_for_something_else_is_not(
    role: TlsRole, usages: tuple[str, ...], why: str
) -> None:
    with pytest.raises(EapFailed, match=f"XF2112: .*{why}"):
        verify(role, only(*usages), ISSUING)


def test_a_certificate_without_extended_key_usage_is_for_everything() -> None:
    assert verify(TlsRole.SERVER, leaf(GATEWAY, extensions=[]), ISSUING) == GATEWAY.encode()


@pytest.mark.parametrize(
    ("chain", "code"),
    [
        ([leaf(GATEWAY)], "XF2103"),
        ([leaf(GATEWAY, issuer=STRANGER), STRANGER], "XF2103"),
        ([leaf(GATEWAY, end=NOW - DAY / 2), ISSUING], "XF2106"),
        ([leaf(GATEWAY), authority("issuing", issuer=STRANGER)], "XF210"),
        ([leaf("other.example.net"), ISSUING], "XF2114"),
        ([leaf("*.example.net"), ISSUING], "XF2114"),
        ([ISSUING], "XF2111"),
    ],
)
def test_what_is_wrong_has_its_code(chain: list[Entity], code: str) -> None:
    with pytest.raises(EapFailed, match=code):
        verify(TlsRole.SERVER, *chain)
