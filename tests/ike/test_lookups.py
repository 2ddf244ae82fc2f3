"""Certificates by hash and URL: IKE_AUTH waits for what may be fetched, and nothing else is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from tests.ike.conftest import Pair, mirrored, tunnel_policy
from tests.ike.test_certificates import ISSUING, STRANGER, certified, gateway, leaf
from tests.ike.test_signatures import failure_at
from tests.keypairs import private_key
from tests.pki.chains import Entity
from tests.pki.test_lookups import bundled
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.ike.credentials import HTTP_CERT_LOOKUP_SUPPORTED
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.lookups import MAX_KEPT, MAX_UNDER_WAY
from xfrmpy.ike.outputs import AskCertificates, RequestRefused
from xfrmpy.ike.states import IkeSaState
from xfrmpy.pki.lookups import MAX_LOOKUPS, Lookup
from xfrmpy.policy.model import FurtherRound, TunnelPolicy
from xfrmpy.registry import AuthenticationMethod, CertificateEncoding, ExchangeType, NotifyType
from xfrmpy.wire.message import decode_message_untrusted
from xfrmpy.wire.payloads import AuthPayload, CertPayload, SaPayload

HOST = "certs.example.net"
BASE = f"http://{HOST}/"
X509, BUNDLE = CertificateEncoding.HASH_AND_URL_X509, CertificateEncoding.HASH_AND_URL_BUNDLE

ends = pytest.mark.parametrize("end", ["moon", "sun"])


def sha1(data: bytes) -> bytes:
    return hashlib.sha1(data, usedforsecurity=False).digest()


def by_url(data: bytes, url: str = "", encoding: CertificateEncoding = X509) -> CertPayload:
    digest = sha1(data)
    url = url or BASE + digest.hex()
    return CertPayload(encoding=encoding, data=digest + url.encode())


def each_by_url(certs: Iterable[CertPayload]) -> list[CertPayload]:
    return [by_url(cert.data) for cert in certs]


class Case:
    """`end` is told by the other end where its certificates are; `send` says how."""

    def __init__(
        self,
        end: str,
        sealing: Any,
        send: Callable[[list[CertPayload]], Iterable[CertPayload]] = each_by_url,
        hosts: tuple[str, ...] = (HOST,),
        shown: tuple[Entity, ...] = (),
        *,
        resumes: bool = False,
        **changes: Any,
    ) -> None:
        base = replace(tunnel_policy(), resumption=resumes)
        policies = {
            "moon": certified(base, gateway("moon"), ISSUING),
            "sun": certified(mirrored(base), gateway("sun"), ISSUING),
        }
        other = "sun" if end == "moon" else "moon"
        if shown:
            policies[other] = certified(policies[other], *shown)
        policies[end] = replace(policies[end], **{"certificate_hosts": hosts, **changes})
        self.end, self.sealing, self.send = end, sealing, send
        self.sealed: list[tuple[Any, Any]] = []
        self.served: dict[str, bytes] = {}
        sealing.change = self._change
        self.pair = Pair(policies["moon"], policies["sun"], keeps=True)
        self.host, self.other = self.pair.ends(end)

    def _change(self, message: Any, payloads: Any) -> Any:
        self.sealed.append((message, payloads))
        certs = [p for p in payloads if isinstance(p, CertPayload)]
        if not certs or message.is_response is not (self.end == "moon"):
            return payloads
        self.served.update((BASE + sha1(cert.data).hex(), cert.data) for cert in certs)
        at = payloads.index(certs[0])
        others = [p for p in payloads if not isinstance(p, CertPayload)]
        return (*others[:at], *self.send(certs), *others[at:])

    @property
    def asked(self) -> list[Lookup]:
        return [each for ask in self.host.reports(AskCertificates) for each in ask.lookups]

    def tell(self, lookup: Lookup, answer: bytes | str) -> None:
        self.host.endpoint.handle_certificates(lookup, answer, self.pair.now)
        self.pair.deliver()

    def serve(self) -> None:
        for lookup in self.asked:
            self.tell(lookup, self.served[lookup.url])

    def again(self) -> None:
        self.pair.moon.endpoint.terminate("tunnel-a", self.pair.now)
        self.pair.deliver()
        self.pair.up()

    def assert_waiting(self) -> None:
        assert self.host.ike_sa.state is IkeSaState.AUTHENTICATING
        assert self.host.datapath.dump().sad == ()

    def assert_refused(self, code: str) -> dict[str, str]:
        self.pair.assert_down()
        failure = failure_at(self.pair, self.end)
        assert failure.code == code
        return {"": failure.summary, **dict(failure.evidence)}


@ends
def test_ike_auth_waits_for_what_the_peer_names_and_goes_on_with_it(end: str, sealing: Any) -> None:
    case = Case(end, sealing)
    case.pair.up()
    case.assert_waiting()
    first, second = case.asked
    assert first.url == BASE + sha1(gateway(case.other.name).certificate.der).hex()
    assert (first.is_bundle, second.is_bundle) == (False, False)
    case.tell(second, case.served[second.url])
    case.assert_waiting()
    case.tell(first, case.served[first.url])
    case.pair.assert_up()


@ends
def test_a_bundle_has_the_whole_path(end: str, sealing: Any) -> None:
    sent: list[bytes] = []

    def send(certs: list[CertPayload]) -> list[CertPayload]:
        sent.append(bundled(*(cert.data for cert in certs)))
        return [by_url(sent[0], encoding=BUNDLE)]

    case = Case(end, sealing, send)
    case.pair.up()
    (lookup,) = case.asked
    assert lookup.is_bundle
    case.tell(lookup, sent[0])
    case.pair.assert_up()


@ends
def test_some_may_be_sent_and_others_named(end: str, sealing: Any) -> None:
    case = Case(end, sealing, lambda certs: [certs[0], *each_by_url(certs[1:])])
    case.pair.up()
    (lookup,) = case.asked
    assert lookup.digest == sha1(ISSUING.certificate.der)
    case.serve()
    case.pair.assert_up()


@ends
def test_what_was_found_once_is_not_fetched_again(end: str, sealing: Any) -> None:
    case = Case(end, sealing)
    case.pair.up()
    case.serve()
    case.again()
    case.pair.assert_up()
    assert len(case.asked) == 2


@ends
def test_only_so_many_are_kept(end: str, sealing: Any) -> None:
    case = Case(end, sealing)
    case.pair.up()
    case.serve()
    lookups = case.host.endpoint._core.lookups
    for number in range(MAX_KEPT):
        lookups._keep(Lookup(is_bundle=False, digest=bytes([number]) * 20, url=BASE), (b"",))
    assert len(lookups._kept) == MAX_KEPT
    case.again()
    assert len(case.asked) == 4


NOT_TO_BE_HAD: dict[str, tuple[str, Callable[[], bytes | str], str]] = {
    "no answer": ("XF2118", lambda: "no answer within 5 s", "no answer within 5 s"),
    "another one": ("XF2118", lambda: STRANGER.certificate.der, "has another hash"),
    "nothing": ("XF2118", lambda: b"", "has another hash"),
}


@ends
@pytest.mark.parametrize("what", NOT_TO_BE_HAD)
def test_what_is_not_there_is_told_with_url_and_hashes(end: str, what: str, sealing: Any) -> None:
    code, make, words = NOT_TO_BE_HAD[what]
    case = Case(end, sealing)
    case.pair.up()
    answer = make()
    case.tell(case.asked[0], answer)
    told = case.assert_refused(code)
    assert words in told[""]
    assert told["named by URL"] == case.asked[0].url
    assert told["and by SHA-1"] == case.asked[0].digest.hex()
    if isinstance(answer, bytes):
        assert sha1(answer).hex() in told["found there"]


@ends
def test_octets_of_the_right_hash_that_are_no_certificate_are_refused(
    end: str, sealing: Any
) -> None:
    case = Case(end, sealing, lambda _: [by_url(b"<html>", BASE)])
    case.pair.up()
    case.tell(case.asked[0], b"<html>")
    assert case.assert_refused("XF2101")["named by URL"] == BASE


@ends
def test_a_right_certificate_of_somebody_else_s_authority_is_worth_nothing(
    end: str, sealing: Any
) -> None:
    case = Case(end, sealing, shown=(leaf(issuer=STRANGER), STRANGER))
    case.pair.up()
    case.serve()
    case.assert_refused("XF2103")


@ends
def test_the_key_of_what_was_fetched_must_have_signed(end: str, sealing: Any) -> None:
    """CVE-2020-16088: everybody can name a certificate that is on the network."""
    case = Case(end, sealing)
    thief = private_key(KeyKind.ECDSA_P256, "mars")
    case.other.endpoint.replace_tunnel(replace(case.other.policy, local_key=thief))
    case.pair.up()
    case.serve()
    case.assert_refused("XF2041")


NOT_FETCHED: dict[str, tuple[str, list[CertPayload]]] = {
    "of another host": ("XF2118", [by_url(b"", "http://metadata.example.net/")]),
    "of another port": ("XF2118", [by_url(b"", f"http://{HOST}:22/")]),
    "of this host": ("XF2118", [by_url(b"", "http://127.0.0.1/")]),
    "of its link": ("XF2118", [by_url(b"", "http://169.254.169.254/latest")]),
    "of https": ("XF2118", [by_url(b"", f"https://{HOST}/")]),
    "of ftp": ("XF2118", [by_url(b"", f"ftp://{HOST}/")]),
    "of a file": ("XF2118", [by_url(b"", "file:///etc/passwd")]),
    "with a user": ("XF2118", [by_url(b"", f"http://{HOST}@evil.example/")]),
    "with a name before it": ("XF2118", [by_url(b"", f"http://x@{HOST}/")]),
    "with another host behind": ("XF2118", [by_url(b"", f"http://{HOST}.evil.example/")]),
    "with a line of its own": ("XF2101", [by_url(b"", f"{BASE}\r\nX: y")]),
    "with a blank": ("XF2101", [by_url(b"", f"{BASE} HTTP/1.1")]),
    "that is too long": ("XF2101", [by_url(b"", BASE + "x" * 1024)]),
    "without octets": ("XF2101", [CertPayload(encoding=X509, data=b"")]),
    "without a URL": ("XF2101", [CertPayload(encoding=X509, data=bytes(20))]),
    "of octets": ("XF2101", [CertPayload(encoding=BUNDLE, data=bytes(range(256)))]),
    "that is one of too many": (
        "XF2102",
        [by_url(bytes([number])) for number in range(MAX_LOOKUPS + 1)],
    ),
}


@ends
@pytest.mark.parametrize("what", NOT_FETCHED)
def test_nothing_is_fetched_for_a_url(end: str, what: str, sealing: Any) -> None:
    """SSRF: neither this one, nor any other of the same message."""
    code, wrong = NOT_FETCHED[what]
    case = Case(end, sealing, lambda certs: [*each_by_url(certs[:1]), *wrong])
    case.pair.up()
    case.assert_refused(code)
    assert case.asked == []


@ends
def test_nothing_is_fetched_unless_policy_says_where(end: str, sealing: Any) -> None:
    case = Case(end, sealing, hosts=())
    case.pair.up()
    told = case.assert_refused("XF2117")
    assert told[""] == "the peer names its certificate by a URL, and our policy fetches none"
    assert case.asked == []


def test_nothing_is_fetched_for_a_caller_of_whom_no_tunnel_is(sealing: Any) -> None:
    case = Case("sun", sealing)
    case.host.endpoint.replace_tunnel(
        replace(case.host.policy, remote_id=case.host.policy.local_id)
    )
    case.pair.up()
    case.assert_refused("XF2007")
    assert case.asked == []


@pytest.mark.parametrize("method", [AuthenticationMethod.NULL, None])
def test_nothing_is_fetched_for_a_caller_that_does_not_sign(
    method: AuthenticationMethod | None, sealing: Any
) -> None:
    """By NULL, or with EAP to come: then there is no AUTH."""
    case = Case("sun", sealing)
    plain = case._change

    def change(message: Any, payloads: Any) -> Any:
        payloads = plain(message, payloads)
        if message.is_response:
            return payloads
        auths = () if method is None else (AuthPayload(method=method, data=bytes(32)),)
        return (*(p for p in payloads if not isinstance(p, AuthPayload)), *auths)

    sealing.change = change
    case.pair.up()
    case.assert_refused("XF2007")
    assert case.asked == []


@ends
def test_the_peer_is_told_that_urls_are_welcome_where_they_are(end: str, sealing: Any) -> None:
    """Section 3.10.1: in a message that can have a CERTREQ, which are the first request of ours in
    IKE_AUTH and our answer in IKE_SA_INIT."""
    for hosts in ((HOST,), ()):
        case = Case(end, sealing, lambda certs: certs, hosts)
        case.pair.up()
        case.pair.assert_up()
        in_request = any(HTTP_CERT_LOOKUP_SUPPORTED in payloads for _, payloads in case.sealed)
        init_response = next(sent.data for name, sent in case.pair.sent if name == "sun")
        in_response = HTTP_CERT_LOOKUP_SUPPORTED in decode_message_untrusted(init_response).payloads
        assert in_request is (end == "moon" and bool(hosts))
        assert in_response is (end == "sun" and bool(hosts))


def test_repetitions_of_ike_auth_wait_too(sealing: Any) -> None:
    case = Case("sun", sealing)
    case.pair.up()
    case.pair.run(5)
    assert DropReason.REQUEST_IN_HAND in case.host.drops
    assert len(case.asked) == 2
    case.serve()
    case.pair.assert_up()


@ends
def test_a_tunnel_that_is_taken_down_meanwhile_stays_down(end: str, sealing: Any) -> None:
    case = Case(end, sealing)
    case.pair.up()
    case.host.endpoint.terminate("tunnel-a", case.pair.now)
    case.other.endpoint.terminate("tunnel-a", case.pair.now)
    case.pair.run(200)
    case.serve()
    case.pair.assert_forgotten()


@ends
def test_an_answer_that_never_comes_ends_the_wait(end: str, sealing: Any) -> None:
    case = Case(end, sealing)
    case.pair.up()
    case.pair.run(400)
    assert case.host.endpoint._core.ike_sas == {}
    assert case.host.datapath.dump().sad == ()


@ends
def test_nothing_of_the_wait_is_kept_for_another_daemon(end: str, sealing: Any) -> None:
    """Who waits is a stranger: the peer begins anew, as it does with one that answers never."""
    case = Case(end, sealing)
    case.pair.up()
    case.assert_waiting()
    assert case.host.kept == {}
    case.host.take_over()
    assert case.host.ike_sas == []
    case.pair.run(200)
    case.pair.up()
    case.serve()
    case.pair.assert_up()


def test_what_is_malformed_behind_the_wait_is_answered_as_ever(sealing: Any) -> None:
    case = Case("sun", sealing)
    plain = case._change
    sealing.change = lambda message, payloads: (
        *plain(message, payloads),
        *([] if message.is_response else [p for p in payloads if isinstance(p, SaPayload)]),
    )
    case.pair.up()
    case.serve()
    case.pair.assert_down()
    assert [told.failure.code for told in case.host.reports(RequestRefused)] == ["XF2008"]


def test_one_fetch_does_for_all_who_wait_for_it(sealing: Any) -> None:
    case = Case("sun", sealing)
    case.pair.up()
    case.pair.moon.endpoint.terminate("tunnel-a", case.pair.now)
    case.pair.up()
    assert [sa.state for sa in case.host.ike_sas] == [IkeSaState.AUTHENTICATING] * 2
    assert len(case.asked) == 2
    case.serve()
    assert IkeSaState.AUTHENTICATING not in [sa.state for sa in case.host.ike_sas]
    assert case.host.ike_sa.state is case.other.ike_sa.state is IkeSaState.ESTABLISHED


def test_what_is_under_way_for_all_strangers_together_has_a_limit(sealing: Any) -> None:
    case = Case("sun", sealing)
    under_way = case.host.endpoint._core.lookups._under_way
    for number in range(MAX_UNDER_WAY - 1):
        under_way.add(Lookup(is_bundle=False, digest=bytes(20), url=f"{BASE}{number}"))
    case.pair.up()
    assert "too many" in case.assert_refused("XF2118")[""]
    assert case.asked == []
    under_way.pop()
    case.pair.up()
    case.serve()
    case.pair.assert_up()


@ends
def test_in_a_further_round_too(end: str, sealing: Any) -> None:
    """RFC 4739; what each round's policy allows counts for it alone."""
    moon = tunnel_policy()
    policies = [
        replace(policy, rounds=(further_round(policy, name, (HOST,) if name == end else ()),))
        for name, policy in (("moon", moon), ("sun", mirrored(moon)))
    ]
    case = Case(end, sealing)
    case.pair = Pair(policies[0], policies[1])
    case.host, case.other = case.pair.ends(end)
    case.pair.up()
    case.assert_waiting()
    case.serve()
    case.pair.assert_up()


def further_round(policy: TunnelPolicy, name: str, hosts: tuple[str, ...]) -> FurtherRound:
    proving = certified(policy, gateway(name), ISSUING)
    return FurtherRound(
        local_id=proving.local_id,
        local_key=proving.local_key,
        local_certificates=proving.local_certificates,
        remote_id=proving.remote_id,
        remote_authorities=proving.remote_authorities,
        certificate_hosts=hosts,
    )


@ends
def test_nothing_is_fetched_for_a_session_that_is_resumed(end: str, sealing: Any) -> None:
    """RFC 5723: no certificate proves anything there."""
    case = Case(end, sealing, lambda certs: certs, resumes=True)
    case.pair.sun.policy = replace(case.pair.sun.policy, dpd_seconds=0.0)
    case.pair.sun.start()
    case.pair.up()
    case.pair.assert_up()
    deliver, case.pair.impair = case.pair.impair, lambda _output, _sender: []
    case.pair.run(150)
    case.pair.impair = deliver
    sealing.change = lambda message, payloads: (
        (*payloads, by_url(b""))
        if message.exchange is ExchangeType.IKE_AUTH and message.is_response is (case.end == "moon")
        else payloads
    )
    case.pair.up()
    assert case.pair.moon.ike_sa.resumed is not None
    case.pair.assert_up()
    assert case.asked == []


def test_the_other_host_learns_no_more_than_that_it_failed(sealing: Any) -> None:
    case = Case("sun", sealing)
    case.pair.up()
    case.tell(case.asked[0], "cannot be reached: Connection refused")
    case.assert_refused("XF2118")
    assert sealing.errors(ExchangeType.IKE_AUTH) == [NotifyType.AUTHENTICATION_FAILED]
