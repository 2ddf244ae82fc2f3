"""Lists of revoked certificates and OCSP answers: who is revoked, and which are not believed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pki.chains import DAY, NOW, Entity, authority, extended, key
from xfrmpy.pki.ocsp import check_by_ocsp
from xfrmpy.pki.revocation import (
    RevocationList,
    check_by_crls,
    decode_crl_untrusted,
)
from xfrmpy.pki.statuses import Proofs, check_revocation
from xfrmpy.pki.verdicts import CertificateRefused, Problem, Strictness

ROOT = authority("root")
ISSUING = authority("issuing", issuer=ROOT)
LEAF = ISSUING.issue("leaf")
IMPOSTOR = authority("issuing")
PATH = (LEAF.certificate, ISSUING.certificate, ROOT.certificate)
ED = authority("ed", private_key=key("ed25519"))

UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")


def point(**wishes: object) -> x509.IssuingDistributionPoint:
    every: dict[str, object] = {
        "full_name": None,
        "relative_name": None,
        "only_some_reasons": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**{**every, **wishes})  # type: ignore[arg-type]


def crl(
    signer: Entity,
    revoked: Iterable[Entity] = (),
    *,
    name_of: Entity | None = None,
    start: datetime = NOW - DAY,
    end: datetime = NOW + DAY,
    number: int = 5,
    reason: x509.ReasonFlags = x509.ReasonFlags.key_compromise,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> RevocationList:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name((name_of or signer).library.subject)
        .last_update(start)
        .next_update(end)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    for entity in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(entity.library.serial_number)
            .revocation_date(NOW - DAY)
            .add_extension(x509.CRLReason(reason), critical=False)
            .build()
        )
    own = isinstance(signer.key, ed25519.Ed25519PrivateKey)
    made = builder.sign(signer.key, None if own else hashes.SHA256())
    return decode_crl_untrusted(made.public_bytes(Encoding.DER))


def verdict(*crls: RevocationList, leaf: Entity = LEAF, issuer: Entity = ISSUING) -> Problem | None:
    try:
        check_by_crls(leaf.certificate, issuer.certificate, crls, NOW)
    except CertificateRefused as refused:
        return refused.problem
    return None


def test_a_leaf_on_its_issuer_s_list_is_revoked_with_date_and_reason() -> None:
    with pytest.raises(CertificateRefused) as caught:
        check_by_crls(LEAF.certificate, ISSUING.certificate, [crl(ISSUING, [LEAF])], NOW)
    evidence = dict(caught.value.evidence)
    assert caught.value.problem is Problem.REVOKED
    assert evidence["reason"] == "keyCompromise"
    assert evidence["revoked at"] == "2026-05-31T12:00:00+00:00"


def test_a_list_of_ed25519_is_read() -> None:
    leaf = ED.issue("leaf")
    assert verdict(crl(ED, [leaf]), leaf=leaf, issuer=ED) is Problem.REVOKED
    assert verdict(crl(ED), leaf=leaf, issuer=ED) is None


def test_an_intermediate_that_is_revoked_ends_the_path() -> None:
    lists = [crl(ISSUING), crl(ROOT, [ISSUING])]
    for strictness in (Strictness.STRICT, Strictness.SOFT):
        with pytest.raises(CertificateRefused) as caught:
            check_revocation(PATH, Proofs(lists=tuple(lists)), strictness, NOW)
        assert caught.value.problem is Problem.REVOKED
    check_revocation(PATH, Proofs(lists=tuple(lists)), Strictness.OFF, NOW)


def test_strict_wants_to_know_of_each_and_soft_does_not() -> None:
    check_revocation(PATH, Proofs(lists=(crl(ISSUING), crl(ROOT))), Strictness.STRICT, NOW)
    for lists in ([], [crl(ISSUING)], [crl(ROOT)]):
        with pytest.raises(CertificateRefused) as caught:
            check_revocation(PATH, Proofs(lists=tuple(lists)), Strictness.STRICT, NOW)
        assert caught.value.problem is Problem.STATUS_UNKNOWN
        check_revocation(PATH, Proofs(lists=tuple(lists)), Strictness.SOFT, NOW)


NOT_BELIEVED = {
    "an impostor's": lambda: crl(IMPOSTOR, [LEAF]),
    "another authority's": lambda: crl(ROOT, [LEAF]),
    "another authority's, with the same key": lambda: crl(
        authority("elsewhere", private_key=ISSUING.key), [LEAF]
    ),
    "old": lambda: crl(ISSUING, [LEAF], end=NOW - DAY / 2),
    "of the future": lambda: crl(ISSUING, [LEAF], start=NOW + DAY / 2),
    "with an unknown critical extension": lambda: crl(
        ISSUING, [LEAF], extensions=[(UNKNOWN, True)]
    ),
    "indirect": lambda: crl(ISSUING, [LEAF], extensions=[(point(indirect_crl=True), True)]),
    "of authorities only": lambda: crl(
        ISSUING, [LEAF], extensions=[(point(only_contains_ca_certs=True), True)]
    ),
    "of some reasons only": lambda: crl(
        ISSUING,
        [LEAF],
        extensions=[(point(only_some_reasons=frozenset({x509.ReasonFlags.key_compromise})), True)],
    ),
    "of another distribution point": lambda: crl(
        ISSUING,
        [LEAF],
        extensions=[(point(full_name=[x509.UniformResourceIdentifier("http://a/")]), True)],
    ),
    "a delta alone": lambda: crl(
        ISSUING, [LEAF], number=6, extensions=[(x509.DeltaCRLIndicator(5), True)]
    ),
}


@pytest.mark.parametrize("case", NOT_BELIEVED)
def test_a_list_that_is_not_believed_tells_nothing(case: str) -> None:
    assert verdict(NOT_BELIEVED[case]()) is Problem.STATUS_UNKNOWN
    if case != "a delta alone":
        assert verdict(NOT_BELIEVED[case](), crl(ISSUING)) is None


def test_a_list_by_an_authority_without_crl_sign_tells_nothing() -> None:
    signer = authority("issuing", issuer=ROOT, usage=("key_cert_sign",))
    leaf = signer.issue("leaf")
    assert verdict(crl(signer, [leaf]), leaf=leaf, issuer=signer) is Problem.STATUS_UNKNOWN


def test_a_list_of_users_only_tells_of_users() -> None:
    extensions = [(point(only_contains_user_certs=True), True)]
    assert verdict(crl(ISSUING, [LEAF], extensions=extensions)) is Problem.REVOKED


def test_the_newest_full_list_counts() -> None:
    old = crl(ISSUING, [LEAF], start=NOW - 2 * DAY, number=4)
    assert verdict(old) is Problem.REVOKED
    assert verdict(old, crl(ISSUING)) is None
    assert verdict(crl(ISSUING), old) is None


def delta(*revoked: Entity, base: int = 5, **wishes: object) -> RevocationList:
    extensions = [(x509.DeltaCRLIndicator(base), True)]
    return crl(ISSUING, revoked, extensions=extensions, start=NOW - DAY / 4, **wishes)  # type: ignore[arg-type]


def test_a_delta_adds_to_its_base_and_takes_back() -> None:
    assert verdict(crl(ISSUING), delta(LEAF, number=6)) is Problem.REVOKED
    released = delta(LEAF, number=6, reason=x509.ReasonFlags.remove_from_crl)
    assert verdict(crl(ISSUING, [LEAF]), released) is None


def test_a_delta_of_another_base_is_not_applied() -> None:
    released = x509.ReasonFlags.remove_from_crl
    newer = delta(LEAF, base=7, number=8, reason=released)
    assert verdict(crl(ISSUING, [LEAF]), newer) is Problem.REVOKED
    older = delta(LEAF, base=3, number=4, reason=released)
    assert verdict(crl(ISSUING, [LEAF]), older) is Problem.REVOKED


GOOD_LIST = crl(ISSUING, [ROOT]).library.public_bytes(Encoding.DER)


@given(st.integers(0, len(GOOD_LIST) - 1), st.integers(0, 255), st.binary(max_size=3))
@settings(deadline=None)
def test_a_damaged_list_is_refused_or_not_believed(place: int, octet: int, more: bytes) -> None:
    damaged = bytearray(GOOD_LIST + more)
    damaged[place] = octet
    if damaged == GOOD_LIST:
        return
    with pytest.raises(CertificateRefused):
        check_by_crls(
            LEAF.certificate, ISSUING.certificate, [decode_crl_untrusted(bytes(damaged))], NOW
        )


DELEGATE = ISSUING.issue(
    "responder",
    extensions=[
        extended(ExtendedKeyUsageOID.OCSP_SIGNING.dotted_string),
        (x509.OCSPNoCheck(), False),
    ],
)


def answer(
    signer: Entity = ISSUING,
    *,
    about: Entity = LEAF,
    issuer: Entity = ISSUING,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    start: datetime = NOW - DAY,
    end: datetime | None = NOW + DAY,
    nonce: bytes | None = None,
    algorithm: hashes.HashAlgorithm | None = None,
    includes: Entity | None = None,
) -> bytes:
    is_revoked = status is ocsp.OCSPCertStatus.REVOKED
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=about.library,
            issuer=issuer.library,
            algorithm=algorithm or hashes.SHA1(),
            cert_status=status,
            this_update=start,
            next_update=end,
            revocation_time=NOW - DAY if is_revoked else None,
            revocation_reason=x509.ReasonFlags.superseded if is_revoked else None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, signer.library)
    )
    if signer is not issuer:
        builder = builder.certificates([(includes or signer).library])
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    made = builder.sign(signer.key, hashes.SHA256())
    return made.public_bytes(Encoding.DER)


def ocsp_verdict(response: bytes, nonce: bytes | None = None) -> Problem | None:
    try:
        check_by_ocsp(LEAF.certificate, ISSUING.certificate, response, NOW, nonce)
    except CertificateRefused as refused:
        return refused.problem
    return None


@pytest.mark.parametrize("signer", [ISSUING, DELEGATE], ids=["issuer", "delegate"])
def test_an_answer_says_good_revoked_or_unknown(signer: Entity) -> None:
    assert ocsp_verdict(answer(signer)) is None
    assert ocsp_verdict(answer(signer, status=ocsp.OCSPCertStatus.REVOKED)) is Problem.REVOKED
    unknown = answer(signer, status=ocsp.OCSPCertStatus.UNKNOWN)
    assert ocsp_verdict(unknown) is Problem.STATUS_UNKNOWN


def test_an_answer_may_hash_with_sha_256() -> None:
    assert ocsp_verdict(answer(algorithm=hashes.SHA256())) is None


def test_the_nonce_of_the_question_must_come_back() -> None:
    assert ocsp_verdict(answer(nonce=b"n" * 16), b"n" * 16) is None
    assert ocsp_verdict(answer(nonce=b"o" * 16), b"n" * 16) is Problem.STATUS_UNKNOWN
    assert ocsp_verdict(answer(), b"n" * 16) is None, "a prepared answer has none"


def delegate(*, issuer: Entity = ISSUING, signs: bool = True, **wishes: object) -> Entity:
    usage = ExtendedKeyUsageOID.OCSP_SIGNING if signs else ExtendedKeyUsageOID.SERVER_AUTH
    extensions = [extended(usage.dotted_string), (x509.OCSPNoCheck(), False)]
    return issuer.issue("responder", **{"extensions": extensions, **wishes})


NO_ANSWER = {
    "about another certificate": lambda: answer(about=ISSUING, issuer=ROOT),
    "old": lambda: answer(end=NOW - DAY / 2),
    "without an end": lambda: answer(end=None),
    "of the future": lambda: answer(start=NOW + DAY / 2),
    "changed after it was signed": lambda: answer(nonce=b"n" * 16).replace(b"n" * 16, b"o" * 16),
    "by an impostor": lambda: answer(IMPOSTOR),
    "by a delegate of another": lambda: answer(delegate(issuer=ROOT)),
    "by one without OCSPSigning": lambda: answer(delegate(signs=False)),
    "by a leaf": lambda: answer(LEAF),
    "by a delegate without nocheck": lambda: answer(
        delegate(extensions=[extended(ExtendedKeyUsageOID.OCSP_SIGNING.dotted_string)])
    ),
    "by a delegate whose certificate is missing": lambda: answer(DELEGATE, includes=LEAF),
    "none at all": lambda: ocsp.OCSPResponseBuilder.build_unsuccessful(
        ocsp.OCSPResponseStatus.TRY_LATER
    ).public_bytes(Encoding.DER),
}


@pytest.mark.parametrize("case", NO_ANSWER)
def test_an_answer_that_is_not_believed_tells_nothing(case: str) -> None:
    assert ocsp_verdict(NO_ANSWER[case]()) is Problem.STATUS_UNKNOWN


def test_a_delegate_that_has_expired_tells_nothing() -> None:
    assert ocsp_verdict(answer(delegate(end=NOW - DAY / 2))) is Problem.EXPIRED


ANSWER = answer(DELEGATE)


@given(st.integers(0, len(ANSWER) - 1), st.integers(0, 255))
@settings(deadline=None)
def test_a_damaged_answer_is_one_kind_of_error(place: int, octet: int) -> None:
    damaged = bytearray(ANSWER)
    damaged[place] = octet
    with suppress(CertificateRefused):
        check_by_ocsp(LEAF.certificate, ISSUING.certificate, bytes(damaged), NOW)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_octets_are_refused_as_answer_and_as_list(data: bytes) -> None:
    with pytest.raises(CertificateRefused):
        check_by_ocsp(LEAF.certificate, ISSUING.certificate, data, NOW)
    with pytest.raises(CertificateRefused):
        decode_crl_untrusted(data)
