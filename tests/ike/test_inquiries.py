"""Is the peer's certificate revoked? IKE_AUTH waits for those who know, and for nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from tests.ike.conftest import Host, Pair, mirrored, tunnel_policy
from tests.ike.test_certificates import ISSUING, ROOT, bundle, certified
from tests.ike.test_signatures import failure_at
from tests.keypairs import private_key
from tests.pki.chains import DAY, NOW, Entity, dns, issue, key
from tests.pki.test_revocation import answer as answer_of
from tests.pki.test_revocation import crl
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.outputs import AskStatus, RequestRefused, TunnelClosed
from xfrmpy.ike.states import IkeSaState
from xfrmpy.pki.revocation import RevocationList
from xfrmpy.pki.sources import Source, SourceKind
from xfrmpy.pki.verdicts import Strictness
from xfrmpy.registry import CertificateEncoding
from xfrmpy.wire.payloads import CertPayload, CertreqPayload, SaPayload

LIST_AT, DELTA_AT, RESPONDER = (f"http://ca.example.net/{n}" for n in ("crl", "delta", "ocsp"))
ROOT_CRL = crl(ROOT).library.public_bytes(Encoding.PEM)


def point(url: str) -> x509.DistributionPoint:
    return x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)


BY_LIST = (x509.CRLDistributionPoints([point(LIST_AT)]), False)
BY_DELTA = (x509.FreshestCRL([point(DELTA_AT)]), False)
BY_OCSP = (
    x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(
                AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(RESPONDER)
            )
        ]
    ),
    False,
)


def shown(*extensions: Any, number: int = 400) -> Entity:
    """The certificate of the end that is asked about, moon or sun."""
    names, own = [dns("moon"), dns("sun")], key("p256", number)
    return issue("shown", issuer=ISSUING, private_key=own, names=names, extensions=extensions)


class Case:
    """`end` wants to know whether the other end's certificate is revoked."""

    def __init__(
        self, end: str, leaf: Entity, strictness: Strictness = Strictness.STRICT, **changes: Any
    ) -> None:
        self.leaf = leaf
        plain = shown(number=401)
        asks: dict[str, Any] = {
            "revocation": strictness,
            "remote_authorities": replace(bundle(ROOT), crl=ROOT_CRL),
            **changes,
        }
        off = {"revocation": Strictness.OFF}
        base = tunnel_policy()
        moon = certified(base, plain if end == "moon" else leaf, ISSUING)
        sun = certified(mirrored(base), plain if end == "sun" else leaf, ISSUING)
        self.pair = Pair(
            replace(moon, **(asks if end == "moon" else off)),
            replace(sun, **(asks if end == "sun" else off)),
        )
        self.end = end
        self.host, self.other = self.pair.ends(end)

    def up(self) -> None:
        self.pair.up()

    @property
    def asked(self) -> list[Source]:
        return [source for each in self.host.reports(AskStatus) for source in each.sources]

    def tell(self, source: Source, what: bytes | str) -> None:
        self.host.endpoint.handle_status(source, what, self.pair.now)
        self.pair.deliver()

    def assert_waiting(self) -> None:
        assert self.host.ike_sa.state is IkeSaState.AUTHENTICATING
        assert self.host.datapath.dump().sad == ()

    def assert_refused(self, code: str) -> tuple[tuple[str, str], ...]:
        self.pair.assert_down()
        failure = failure_at(self.pair, self.end)
        assert failure.code == code
        return failure.evidence


def octets(taken: RevocationList) -> bytes:
    return taken.library.public_bytes(Encoding.DER)


def answer(**wishes: Any) -> bytes:
    return answer_of(**{"signer": ISSUING, "issuer": ISSUING, **wishes})


ends = pytest.mark.parametrize("end", ["moon", "sun"])


@ends
def test_strict_refuses_whoever_names_nobody_that_knows(end: str) -> None:
    case = Case(end, shown())
    case.up()
    evidence = case.assert_refused("XF2116")
    assert any(case.leaf.certificate.serial == value for _, value in evidence)
    assert case.asked == []


@ends
@pytest.mark.parametrize("strictness", [Strictness.SOFT, Strictness.OFF])
def test_soft_and_off_take_him(end: str, strictness: Strictness) -> None:
    case = Case(end, shown(), strictness)
    case.up()
    case.pair.assert_up()


@ends
def test_strict_is_content_with_the_lists_beside_the_authority(end: str) -> None:
    """Of the issuing authority and of the one above it, in one file."""
    listed = crl(ISSUING).library.public_bytes(Encoding.PEM)
    trusted = replace(bundle(ROOT), crl=ROOT_CRL + listed)
    case = Case(end, shown(BY_LIST), remote_authorities=trusted)
    case.up()
    case.pair.assert_up()
    assert case.asked == []


@ends
def test_a_revoked_intermediate_is_refused(end: str) -> None:
    listed = crl(ROOT, [ISSUING]).library.public_bytes(Encoding.PEM)
    trusted = replace(bundle(ROOT), crl=listed)
    case = Case(end, shown(), Strictness.SOFT, remote_authorities=trusted)
    case.up()
    case.assert_refused("XF2115")


@ends
@pytest.mark.parametrize("strictness", [Strictness.STRICT, Strictness.SOFT])
def test_ike_auth_waits_for_the_list_that_the_certificate_names(
    end: str, strictness: Strictness
) -> None:
    case = Case(end, shown(BY_LIST), strictness)
    case.up()
    case.assert_waiting()
    (source,) = case.asked
    assert (source.kind, source.url) == (SourceKind.CRL, LIST_AT)
    case.tell(source, octets(crl(ISSUING)))
    case.pair.assert_up()


@ends
@pytest.mark.parametrize("strictness", [Strictness.STRICT, Strictness.SOFT])
def test_whom_that_list_names_is_refused(end: str, strictness: Strictness) -> None:
    case = Case(end, shown(BY_LIST), strictness)
    case.up()
    case.tell(case.asked[0], octets(crl(ISSUING, [case.leaf])))
    case.assert_refused("XF2115")


NOT_BELIEVED: dict[str, tuple[Callable[[], bytes | str], str]] = {
    "nothing": (lambda: "no answer within 5 s", "no answer within 5 s"),
    "an old list": (lambda: octets(crl(ISSUING, end=NOW - DAY / 2)), "it held until"),
    "another's list": (lambda: octets(crl(ROOT)), "it is another authority's"),
    "a forged list": (lambda: octets(crl(ROOT, name_of=ISSUING)), "its signature is not"),
    "a page of HTML": (lambda: b"<html>", "not a list of revoked certificates"),
}


@ends
@pytest.mark.parametrize("what", NOT_BELIEVED)
def test_an_answer_of_no_use_is_none_and_the_operator_is_told_why(end: str, what: str) -> None:
    make, sentence = NOT_BELIEVED[what]
    case = Case(end, shown(BY_LIST))
    case.up()
    case.tell(case.asked[0], make())
    told = dict(case.assert_refused("XF2116"))
    assert told[f"CRL {LIST_AT}"].startswith(sentence)


@ends
def test_soft_goes_on_when_nobody_answers(end: str) -> None:
    case = Case(end, shown(BY_LIST), Strictness.SOFT)
    case.up()
    case.tell(case.asked[0], "no answer within 5 s")
    case.pair.assert_up()


@ends
def test_ocsp_is_asked_first_and_the_list_if_it_does_not_help(end: str) -> None:
    case = Case(end, shown(BY_LIST, BY_OCSP))
    case.up()
    (source,) = case.asked
    assert (source.kind, source.url) == (SourceKind.OCSP, RESPONDER)
    question = ocsp.load_der_ocsp_request(source.request)
    assert question.serial_number == case.leaf.library.serial_number
    assert question.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == source.nonce
    assert len(source.nonce) == 32
    case.tell(source, "the server answers 503")
    case.assert_waiting()
    _, fallback = case.asked
    assert fallback.kind is SourceKind.CRL
    case.tell(fallback, octets(crl(ISSUING)))
    case.pair.assert_up()


@ends
@pytest.mark.parametrize(
    ("status", "code"),
    [(ocsp.OCSPCertStatus.REVOKED, "XF2115"), (ocsp.OCSPCertStatus.UNKNOWN, "XF2116")],
)
def test_what_a_responder_says_counts(end: str, status: ocsp.OCSPCertStatus, code: str) -> None:
    case = Case(end, shown(BY_OCSP))
    case.up()
    source = case.asked[0]
    case.tell(source, answer(about=case.leaf, status=status, nonce=source.nonce))
    case.assert_refused(code)


@ends
def test_an_answer_to_another_s_question_is_a_replay(end: str) -> None:
    case = Case(end, shown(BY_OCSP))
    case.up()
    case.tell(case.asked[0], answer(about=case.leaf, nonce=b"o" * 32))
    told = dict(case.assert_refused("XF2116"))
    assert told[f"OCSP {RESPONDER}"] == "the answer has another nonce than the question"


@ends
def test_what_was_answered_once_is_not_asked_again_until_it_ends(end: str) -> None:
    case = Case(end, shown(BY_OCSP))
    case.up()
    case.tell(case.asked[0], answer(about=case.leaf, nonce=case.asked[0].nonce))
    case.pair.assert_up()
    case.pair.moon.endpoint.terminate("tunnel-a", case.pair.now)
    case.pair.deliver()
    case.up()
    case.pair.assert_up()
    assert len(case.asked) == 1
    case.pair.moon.endpoint.terminate("tunnel-a", case.pair.now)
    case.pair.deliver()
    case.host.today += 2 * DAY
    case.up()
    assert len(case.asked) == 2
    case.assert_waiting()


@ends
def test_a_source_that_failed_is_left_alone_for_a_minute(end: str) -> None:
    case = Case(end, shown(BY_LIST))
    case.up()
    case.tell(case.asked[0], "connection refused")
    case.assert_refused("XF2116")
    case.pair.run(60)
    case.up()
    case.pair.assert_down()
    assert len(case.asked) == 1


@ends
def test_a_list_that_says_where_its_additions_are_is_completed_by_them(end: str) -> None:
    case = Case(end, shown(BY_LIST, BY_DELTA))
    case.up()
    case.tell(case.asked[0], octets(crl(ISSUING, number=5)))
    case.assert_waiting()
    delta = case.asked[1]
    assert (delta.kind, delta.url) == (SourceKind.DELTA, DELTA_AT)
    added = crl(ISSUING, [case.leaf], number=7, extensions=[(x509.DeltaCRLIndicator(5), True)])
    case.tell(delta, octets(added))
    case.assert_refused("XF2115")


@ends
def test_nobody_is_asked_before_the_peer_has_proved_that_it_has_the_key(end: str) -> None:
    """CVE-2022-40617, CVE-2026-35331: everybody can show a certificate that was sent to him."""
    case = Case(end, shown(BY_LIST, BY_OCSP))
    thief = private_key(KeyKind.ECDSA_P256, "mars")
    case.other.endpoint.replace_tunnel(replace(case.other.policy, local_key=thief))
    case.up()
    case.assert_refused("XF2041")
    assert case.asked == []


@ends
def test_nobody_is_asked_for_a_certificate_of_no_authority_of_ours(end: str) -> None:
    case = Case(end, shown(BY_LIST), remote_authorities=bundle(shown(number=402)))
    case.up()
    case.assert_refused("XF2103")
    assert case.asked == []


def test_repetitions_of_ike_auth_wait_too() -> None:
    case = Case("sun", shown(BY_LIST))
    case.up()
    case.pair.run(5)
    assert DropReason.REQUEST_IN_HAND in case.host.drops
    assert len(case.asked) == 1
    case.tell(case.asked[0], octets(crl(ISSUING)))
    case.pair.assert_up()


@ends
def test_a_tunnel_that_is_taken_down_meanwhile_stays_down(end: str) -> None:
    case = Case(end, shown(BY_LIST))
    case.up()
    case.host.endpoint.terminate("tunnel-a", case.pair.now)
    case.other.endpoint.terminate("tunnel-a", case.pair.now)
    case.pair.run(200)
    case.tell(case.asked[0], octets(crl(ISSUING)))
    case.pair.assert_forgotten()


@ends
def test_an_answer_that_never_comes_ends_the_wait(end: str) -> None:
    """The daemon always tells something; a core that is not told does not keep the IKE SA."""
    case = Case(end, shown(BY_LIST))
    case.up()
    case.pair.run(400)
    assert case.host.endpoint._core.ike_sas == {}
    assert case.host.datapath.dump().sad == ()


def test_what_is_malformed_behind_the_wait_is_answered_as_ever(sealing: Any) -> None:
    sealing.change = lambda message, payloads: (
        payloads
        if message.is_response
        else (*payloads, *[p for p in payloads if isinstance(p, SaPayload)])
    )
    case = Case("sun", shown(BY_LIST))
    case.up()
    case.tell(case.asked[0], octets(crl(ISSUING)))
    case.pair.assert_down()
    assert [told.failure.code for told in case.host.reports(RequestRefused)] == ["XF2008"]


def sent_answers(sealing: Any) -> list[CertPayload]:
    seen: list[CertPayload] = []

    def look(_: Any, payloads: Any) -> Any:
        certs = [p for p in payloads if isinstance(p, CertPayload)]
        seen.extend(c for c in certs if c.encoding == CertificateEncoding.OCSP_CONTENT)
        return payloads

    sealing.change = look
    return seen


def knows(host: Host, leaf: Entity) -> None:
    host.endpoint.recall_status(SourceKind.OCSP, answer(about=leaf))


@ends
def test_an_answer_that_the_peer_sends_along_will_do(end: str, sealing: Any) -> None:
    """RFC 4806: asked by a CERTREQ of its own, answered by a CERT."""
    seen = sent_answers(sealing)
    case = Case(end, shown())
    knows(case.other, case.leaf)
    case.up()
    case.pair.assert_up()
    assert [c.data for c in seen] == [answer_in(case.other, case.leaf)]


def answer_in(host: Host, leaf: Entity) -> bytes:
    book = host.endpoint._core.inquiries.book
    found = book.answer_about(leaf.certificate, ISSUING.certificate, NOW)
    assert found is not None
    return found


@ends
def test_we_have_none_sent_along_at_first_and_fetch_it_for_the_next(end: str) -> None:
    case = Case(end, shown(BY_OCSP))
    case.up()
    (source,) = [s for each in case.other.reports(AskStatus) for s in each.sources]
    assert source.certificate == case.leaf.certificate
    case.other.endpoint.handle_status(
        source, answer(about=case.leaf, nonce=source.nonce), case.pair.now
    )
    assert answer_in(case.other, case.leaf)


@ends
def test_an_answer_that_is_not_asked_for_is_not_sent(end: str, sealing: Any) -> None:
    seen = sent_answers(sealing)
    case = Case(end, shown(), Strictness.OFF)
    knows(case.other, case.leaf)
    case.up()
    case.pair.assert_up()
    assert seen == []


def without_status(_: Any, payloads: Any) -> Any:
    return tuple(
        p
        for p in payloads
        if not isinstance(p, CertreqPayload) or p.encoding != CertificateEncoding.OCSP_CONTENT
    )


def test_a_peer_that_knows_nothing_of_rfc_4806_is_asked_about_elsewhere(sealing: Any) -> None:
    sealing.change = without_status
    case = Case("moon", shown(BY_LIST))
    knows(case.other, case.leaf)
    case.up()
    case.tell(case.asked[0], octets(crl(ISSUING)))
    case.pair.assert_up()


@ends
@pytest.mark.parametrize(
    "forged",
    [
        b"\x30",
        answer(about=shown(number=403)),
        answer(about=ISSUING, issuer=ROOT, signer=ROOT),
    ],
    ids=["octets", "another's", "the issuer's"],
)
def test_an_answer_sent_along_proves_nothing_but_what_is_in_it(
    end: str, sealing: Any, forged: bytes
) -> None:
    def add(_: Any, payloads: Any) -> Any:
        if not any(isinstance(p, CertPayload) for p in payloads):
            return payloads
        return (CertPayload(encoding=CertificateEncoding.OCSP_CONTENT, data=forged), *payloads)

    sealing.change = add
    case = Case(end, shown())
    case.up()
    case.assert_refused("XF2116")


@ends
@pytest.mark.parametrize("rekeyed", [False, True])
def test_a_list_that_comes_later_ends_what_is_up(end: str, rekeyed: bool) -> None:
    case = Case(end, shown(), Strictness.SOFT)
    case.up()
    case.pair.assert_up()
    if rekeyed:
        case.host.endpoint.rekey_ike_sas("tunnel-a", case.pair.now)
        case.pair.run(10)
        case.pair.assert_up()
    trusted = case.host.policy.remote_authorities
    assert trusted is not None
    listed = crl(ISSUING, [case.leaf]).library.public_bytes(Encoding.PEM)
    policy = replace(case.host.policy, remote_authorities=replace(trusted, crl=ROOT_CRL + listed))
    case.host.endpoint.reconfigure(policy, case.pair.now)
    case.pair.deliver()
    case.pair.assert_down()
    codes = [closed.failure.code for closed in case.host.reports(TunnelClosed) if closed.failure]
    assert codes == ["XF2115"]


def test_who_is_revoked_when_he_authenticates_anew_does_not_keep_the_old_ike_sa() -> None:
    """As after a restart, when the old one does not know any more how he has proved himself."""
    case = Case("moon", shown(), Strictness.SOFT)
    case.up()
    case.host.ike_sa.certified = ()
    trusted = case.host.policy.remote_authorities
    assert trusted is not None
    listed = crl(ISSUING, [case.leaf]).library.public_bytes(Encoding.PEM)
    policy = replace(case.host.policy, remote_authorities=replace(trusted, crl=ROOT_CRL + listed))
    case.host.endpoint.reconfigure(policy, case.pair.now)
    case.pair.run(10)
    case.pair.assert_down()
