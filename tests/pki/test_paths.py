"""Good and bad chains, each with its verdict: a path, or the code and what is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_network

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPublicKey,
    RSAPublicNumbers,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.pki.chains import (
    DAY,
    NOW,
    Entity,
    Key,
    address,
    authority,
    constraints,
    dns,
    extended,
    issue,
    key,
    name,
)
from xfrmpy.failures import CATALOGUE
from xfrmpy.pki.certificate import Certificate, decode_certificate_untrusted
from xfrmpy.pki.paths import MAX_PATH, validate
from xfrmpy.pki.verdicts import CertificateRefused, Problem

IPSEC_IKE = ExtendedKeyUsageOID.IPSEC_IKE.dotted_string
SERVER = ExtendedKeyUsageOID.SERVER_AUTH.dotted_string
ANY = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE.dotted_string
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")

ROOT = authority("root", private_key=key("p384"))
OTHER = authority("other")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What a peer sends, and whom we trust."""

    leaf: Entity
    intermediates: tuple[Entity, ...] = ()
    anchors: tuple[Entity, ...] = (ROOT,)

    def validate(self) -> tuple[Certificate, ...]:
        return validate(
            self.leaf.certificate,
            intermediates=[e.certificate for e in self.intermediates],
            anchors=[e.certificate for e in self.anchors],
            now=NOW,
        )


def chained(*subjects: str, top: Entity = ROOT) -> tuple[Entity, ...]:
    """Authorities, each issued by the one before."""
    made: list[Entity] = []
    for subject in subjects:
        made.append(authority(subject, issuer=(made or [top])[-1]))
    return tuple(made)


def of_kind(leaf: str, root: str) -> Chain:
    top = authority("top", private_key=key(root))
    return Chain(leaf=top.issue("leaf", private_key=key(leaf, 1)), anchors=(top,))


def beneath(*subjects: str, **wishes: object) -> Chain:
    above = chained(*subjects)
    return Chain(leaf=(above or (ROOT,))[-1].issue("leaf", **wishes), intermediates=above)


def with_root(leaf: dict[str, object] | None = None, **wishes: object) -> Chain:
    """A leaf beneath a root of its own, made as wished."""
    top = authority("top", **wishes)
    return Chain(leaf=top.issue("leaf", **(leaf or {})), anchors=(top,))


def cross_signed() -> Chain:
    """The intermediate is certified by two roots; the one that is trusted comes last."""
    shared = key("p256", 77)
    by_other = authority("shared", issuer=OTHER, private_key=shared)
    by_root = authority("shared", issuer=ROOT, private_key=shared)
    return Chain(leaf=by_other.issue("leaf"), intermediates=(by_other, by_root))


def cross_signed_and_expired() -> Chain:
    shared = key("p256", 78)
    expired = authority("shared", issuer=ROOT, private_key=shared, end=NOW - DAY / 2)
    valid = authority("shared", issuer=ROOT, private_key=shared)
    return Chain(leaf=valid.issue("leaf"), intermediates=(expired, valid))


def looped_with_a_way_out() -> Chain:
    loop = looped()
    out = authority("ring-0", issuer=ROOT, private_key=loop.intermediates[0].key)
    return Chain(leaf=loop.leaf, intermediates=(*loop.intermediates, out))


def renewed_authority() -> Chain:
    """Two anchors of one name: the one whose key it is not comes first."""
    old, new = (authority("top", private_key=key("p256", n)) for n in (80, 81))
    return Chain(leaf=new.issue("leaf"), anchors=(old, new))


def pinned_intermediate() -> Chain:
    (issuing,) = chained("issuing")
    return Chain(leaf=issuing.issue("leaf"), anchors=(issuing,))


def self_issued() -> Chain:
    """A change of the authority's key (RFC 5280 section 4.2.1.9)."""
    top = authority("top", path_length=0)
    renewed = authority("top", issuer=top, private_key=key("p256", 79))
    return Chain(leaf=renewed.issue("leaf"), intermediates=(renewed,), anchors=(top,))


GOOD: dict[str, Callable[[], Chain]] = {
    "a leaf of the root": beneath,
    "a leaf of an intermediate": lambda: beneath("issuing"),
    "the longest path": lambda: beneath(*(f"ca-{n}" for n in range(MAX_PATH - 2))),
    "cross-signed, one issuer unknown": cross_signed,
    "cross-signed, one certificate expired": cross_signed_and_expired,
    "a loop that has a way out": looped_with_a_way_out,
    "an authority with a new key": renewed_authority,
    "an intermediate is the anchor": pinned_intermediate,
    **{
        f"{leaf} beneath {root}": lambda leaf=leaf, root=root: of_kind(leaf, root)  # type: ignore[misc]
        for leaf, root in (
            *(("rsa", "rsa"), ("p256", "rsa"), ("p384", "p521"), ("p521", "p256")),
            *(("ed25519", "ed25519"), ("ed448", "ed448"), ("p256", "ed25519"), ("rsa", "ed448")),
            *(("mldsa44", "mldsa65"), ("mldsa87", "mldsa87"), ("mldsa65", "p384")),
        )
    },
    "digitalSignature": lambda: beneath(usage=["digital_signature"]),
    "nonRepudiation alone": lambda: beneath(usage=["content_commitment"]),
    "ipsecIKE": lambda: beneath(extensions=[extended(IPSEC_IKE)]),
    "any extended key usage": lambda: beneath(extensions=[extended(ANY)]),
    "ipsecIKE among others": lambda: beneath(extensions=[extended(SERVER, IPSEC_IKE)]),
    "an unknown extension": lambda: beneath(extensions=[(UNKNOWN, False)]),
    "a path length that just fits": lambda: with_root(path_length=0),
    "a self-issued authority does not count": self_issued,
    "a name that is permitted": lambda: with_root(
        leaf={"names": [dns("gw.example.org"), address("192.0.2.9")]},
        extensions=[
            constraints(
                permitted=[dns("example.org"), x509.IPAddress(ip_network("192.0.2.0/24"))],
                excluded=[dns("bad.example.org")],
            )
        ],
    ),
    "a mailbox in the subject that is permitted": lambda: mailbox_in_subject("ann@example.org"),
    "a directory name that is permitted": lambda: with_root(
        extensions=[constraints(permitted=[x509.DirectoryName(_organisation("EXAMPLE"))])]
    ),
}


def _organisation(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, text)])


def looped() -> Chain:
    """Three authorities that certify one another in a ring."""
    keys = [key("p256", 90 + n) for n in range(3)]
    ring = [authority(f"ring-{n}", private_key=keys[n]) for n in range(3)]
    made = [authority(f"ring-{n}", issuer=ring[(n + 1) % 3], private_key=keys[n]) for n in range(3)]
    return Chain(leaf=ring[0].issue("leaf"), intermediates=tuple(made))


def bush() -> Chain:
    """Many authorities of one name and different keys: ways without end."""
    keys = [key("p256", 200 + n) for n in range(12)]
    same = [authority("bush", private_key=k) for k in keys]
    crossed = [
        authority("bush", issuer=one, private_key=other.key)
        for one in same
        for other in same
        if one is not other
    ]
    return Chain(leaf=same[0].issue("leaf"), intermediates=tuple(crossed))


def impostor() -> Chain:
    """A stranger's authority that calls itself as the trusted one."""
    return Chain(leaf=authority("root").issue("leaf"))


def forged(leaf: str, root: str) -> Chain:
    """The leaf names the authority that is trusted, and another key of its kind has signed it."""
    top = authority("top", private_key=key(root))
    made = top.issue("leaf", private_key=key(leaf, 1), signed_with=key(root, 2))
    return Chain(leaf=made, anchors=(top,))


def forged_in_between() -> Chain:
    """A stranger's authority that calls itself as one that ours has certified, and is known."""
    good = beneath("issuing")
    good.validate()
    above = authority("issuing", issuer=ROOT, signed_with=key("p384", 2))
    return Chain(leaf=above.issue("leaf"), intermediates=(above, *good.intermediates))


def leaf_issues() -> Chain:
    """The peer of a valid certificate makes certificates with it."""
    leaf = ROOT.issue("leaf", usage=["digital_signature"])
    return Chain(leaf=leaf.issue("victim"), intermediates=(leaf,))


def leaf_issues_by_eddsa() -> Chain:
    """The same, of a kind that the library is not asked about, and with no key usage."""
    top = authority("top", private_key=key("ed25519"))
    leaf = top.issue("leaf", private_key=key("ed25519", 1))
    victim = leaf.issue("victim", private_key=key("ed25519", 2))
    return Chain(leaf=victim, intermediates=(leaf,), anchors=(top,))


def namesake() -> Chain:
    """A leaf that is called as the authority which it names, and that another key has signed."""
    top = authority("top")
    return Chain(leaf=top.issue("top", signed_with=key("p256", 2)), anchors=(top,))


def constrained_in_between() -> Chain:
    """An authority whose own name the one above it may not certify."""
    top = authority("top", extensions=[constraints(permitted=[dns("example.org")])])
    middle = authority("issuing", issuer=top, names=[dns("ca.example.net")])
    return Chain(leaf=middle.issue("leaf"), intermediates=(middle,), anchors=(top,))


class PublicRsa:
    """A public key that nobody has the private half of, for a certificate."""

    def __init__(self, bits: int, exponent: int) -> None:
        self._numbers = RSAPublicNumbers(exponent, (1 << bits - 1) + 1)

    def public_key(self) -> RSAPublicKey:
        return self._numbers.public_key()


def too_long_for(path_length: int, *subjects: str) -> Chain:
    top = authority("top", path_length=path_length)
    above = chained(*subjects, top=top)
    return Chain(leaf=above[-1].issue("leaf"), intermediates=above, anchors=(top,))


def constrained(*permitted: x509.GeneralName, names: Iterable[x509.GeneralName]) -> Chain:
    return with_root(leaf={"names": names}, extensions=[constraints(permitted=permitted)])


def mailbox_in_subject(mailbox: str) -> Chain:
    """As older certificates have it (RFC 5280 section 4.2.1.10)."""
    top = authority("top", extensions=[constraints(permitted=[x509.RFC822Name("example.org")])])
    subject = x509.Name([x509.NameAttribute(NameOID.EMAIL_ADDRESS, mailbox)])
    return Chain(leaf=top.issue(subject), anchors=(top,))


def excluded(*bases: x509.GeneralName, names: Iterable[x509.GeneralName]) -> Chain:
    return with_root(leaf={"names": names}, extensions=[constraints(excluded=bases)])


def constrained_above() -> Chain:
    """The constraint of the root holds beneath an intermediate that has none."""
    top = authority("top", extensions=[constraints(permitted=[dns("example.org")])])
    (issuing,) = chained("issuing", top=top)
    leaf = issuing.issue("leaf", names=[dns("gw.example.net")])
    return Chain(leaf=leaf, intermediates=(issuing,), anchors=(top,))


def in_between(**wishes: object) -> Chain:
    """A leaf beneath an intermediate that is made as wished."""
    middle = authority("issuing", issuer=ROOT, **wishes)
    return Chain(leaf=middle.issue("leaf"), intermediates=(middle,))


URI = x509.UniformResourceIdentifier
MAIL = x509.RFC822Name

BAD: dict[str, tuple[Problem, Callable[..., Chain]]] = {
    "a wrong authority": (Problem.UNTRUSTED, lambda: Chain(leaf=OTHER.issue("leaf"))),
    "nobody is trusted": (Problem.UNTRUSTED, lambda: Chain(leaf=ROOT.issue("leaf"), anchors=())),
    "the intermediate is missing": (
        Problem.UNTRUSTED,
        lambda: Chain(leaf=chained("issuing")[0].issue("leaf")),
    ),
    "self-signed": (Problem.UNTRUSTED, lambda: Chain(leaf=issue("leaf"))),
    "a loop": (Problem.UNTRUSTED, looped),
    "a bush of equal names": (Problem.TOO_MUCH, bush),
    "an impostor's signature": (Problem.BAD_SIGNATURE, impostor),
    **{
        f"another key's signature: {leaf} beneath {root}": (
            Problem.BAD_SIGNATURE,
            lambda leaf=leaf, root=root: forged(leaf, root),
        )
        for leaf, root in (
            *(("rsa", "rsa"), ("p256", "p384"), ("p521", "p521"), ("ed25519", "p256")),
            *(("ed25519", "ed25519"), ("p256", "ed448"), ("mldsa44", "mldsa65")),
        )
    },
    "another key's signature in between": (Problem.BAD_SIGNATURE, forged_in_between),
    "one more than the longest path": (
        Problem.PATH_TOO_LONG,
        lambda: beneath(*(f"ca-{n}" for n in range(MAX_PATH - 1))),
    ),
    "expired": (Problem.EXPIRED, lambda: beneath(end=NOW - DAY / 2)),
    "not yet valid": (Problem.NOT_YET_VALID, lambda: beneath(start=NOW + DAY / 2)),
    "an intermediate that has expired": (
        Problem.EXPIRED,
        lambda: in_between(end=NOW - DAY / 2),
    ),
    "an anchor that has expired": (Problem.EXPIRED, lambda: with_root(end=NOW - DAY / 2)),
    "an authority as leaf": (
        Problem.AUTHORITY_AS_LEAF,
        lambda: Chain(leaf=chained("issuing")[0]),
    ),
    "the anchor as leaf": (Problem.UNTRUSTED, lambda: Chain(leaf=ROOT)),
    "a leaf that issues": (Problem.NOT_AN_AUTHORITY, leaf_issues),
    "a leaf that issues, by Ed25519": (Problem.NOT_AN_AUTHORITY, leaf_issues_by_eddsa),
    "a leaf that is called as its authority": (Problem.BAD_SIGNATURE, namesake),
    "an authority without keyCertSign": (
        Problem.NOT_AN_AUTHORITY,
        lambda: in_between(usage=["crl_sign"]),
    ),
    "a path length of none, and one": (Problem.PATH_TOO_LONG, lambda: too_long_for(0, "a")),
    "a path length of one, and two": (Problem.PATH_TOO_LONG, lambda: too_long_for(1, "a", "b")),
    "a usage without signatures": (
        Problem.WRONG_USAGE,
        lambda: beneath(usage=["key_encipherment"]),
    ),
    "an extended usage without ipsecIKE": (
        Problem.WRONG_USAGE,
        lambda: beneath(extensions=[extended(SERVER)]),
    ),
    "an unknown critical extension": (
        Problem.UNKNOWN_CRITICAL,
        lambda: beneath(extensions=[(UNKNOWN, True)]),
    ),
    "an unknown critical extension above": (
        Problem.UNKNOWN_CRITICAL,
        lambda: in_between(extensions=[(UNKNOWN, True)]),
    ),
    "RSA with the exponent 3": (Problem.WEAK, lambda: beneath(private_key=key("rsa3"))),
    "RSA with the exponent 3 above": (Problem.WEAK, lambda: in_between(private_key=key("rsa3"))),
    "RSA of 1024 bits": (Problem.WEAK, lambda: beneath(private_key=key("rsa1024"))),
    "RSA of 1024 bits above": (Problem.WEAK, lambda: in_between(private_key=key("rsa1024"))),
    "RSA of more than 8192 bits": (
        Problem.WEAK,
        lambda: beneath(private_key=PublicRsa(8200, 65537)),
    ),
    "RSA with an exponent of 65 bits": (
        Problem.WEAK,
        lambda: beneath(private_key=PublicRsa(2048, (1 << 64) + 1)),
    ),
    "a DSA key": (Problem.WEAK, lambda: beneath(private_key=key("dsa"))),
    "another curve": (Problem.WEAK, lambda: beneath(private_key=key("k1"))),
    "another host": (
        Problem.NAME_NOT_PERMITTED,
        lambda: constrained(dns("example.org"), names=[dns("gw.example.net")]),
    ),
    "a host that only ends alike": (
        Problem.NAME_NOT_PERMITTED,
        lambda: constrained(dns("example.org"), names=[dns("gw.notexample.org")]),
    ),
    "one host of two": (
        Problem.NAME_NOT_PERMITTED,
        lambda: constrained(dns("a.org"), names=[dns("gw.a.org"), dns("gw.b.org")]),
    ),
    "a host that is excluded": (
        Problem.NAME_NOT_PERMITTED,
        lambda: excluded(dns("Example.org"), names=[dns("gw.example.ORG")]),
    ),
    "another address": (
        Problem.NAME_NOT_PERMITTED,
        lambda: constrained(
            x509.IPAddress(ip_network("192.0.2.0/24")), names=[address("198.51.100.1")]
        ),
    ),
    "an address of another family": (
        Problem.NAME_NOT_PERMITTED,
        lambda: constrained(
            x509.IPAddress(ip_network("192.0.2.0/24")), names=[address("2001:db8::1")]
        ),
    ),
    "another mailbox": (
        Problem.NAME_NOT_PERMITTED,
        lambda: constrained(MAIL("example.org"), names=[MAIL("ann@sub.example.org")]),
    ),
    "another mailbox in the subject": (
        Problem.NAME_NOT_PERMITTED,
        lambda: mailbox_in_subject("ann@example.net"),
    ),
    "another organisation": (
        Problem.NAME_NOT_PERMITTED,
        lambda: constrained(x509.DirectoryName(_organisation("Else")), names=[]),
    ),
    "a form that nobody compares": (
        Problem.NAME_NOT_PERMITTED,
        lambda: constrained(URI("example.org"), names=[URI("https://example.org/")]),
    ),
    "an exclusion of a form that nobody compares": (
        Problem.NAME_NOT_PERMITTED,
        lambda: excluded(URI("example.org"), names=[URI("https://example.org/")]),
    ),
    "a constraint far above": (Problem.NAME_NOT_PERMITTED, constrained_above),
    "an authority of another host": (Problem.NAME_NOT_PERMITTED, constrained_in_between),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_good_chain_is_a_path_to_its_anchor(case: str) -> None:
    chain = GOOD[case]()
    path = chain.validate()
    assert path[0] is chain.leaf.certificate
    assert path[-1] in {entity.certificate for entity in chain.anchors}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_chain_is_refused_for_its_reason(case: str) -> None:
    problem, make = BAD[case]
    with pytest.raises(CertificateRefused) as caught:
        make().validate()
    assert caught.value.problem is problem
    assert caught.value.evidence
    assert caught.value.summary.isascii()


def test_each_problem_is_a_failure_of_the_catalogue() -> None:
    assert [p for p in Problem if p.value not in CATALOGUE] == []


@pytest.mark.parametrize(
    ("algorithm", "last"), [(hashes.SHA1(), 5), (hashes.MD5(), 4), (hashes.SHA224(), 14)]
)
def test_a_weak_hash_signs_nothing(algorithm: hashes.HashAlgorithm, last: int) -> None:
    top = authority("top", private_key=key("rsa"))
    chain = Chain(leaf=signed_anew(top.issue("leaf"), top.key, algorithm, last), anchors=(top,))
    with pytest.raises(CertificateRefused) as caught:
        chain.validate()
    assert caught.value.problem is Problem.WEAK


def signed_anew(leaf: Entity, by: Key, algorithm: hashes.HashAlgorithm, last: int) -> Entity:
    """A right signature of PKCS #1 with a hash that the library signs no certificate with.

    `last` is the end of its OID, 1.2.840.113549.1.1.x, in the place of sha256WithRSAEncryption.
    """
    assert isinstance(by, RSAPrivateKey)
    old, new = (bytes.fromhex("2a864886f70d0101") + bytes([end]) for end in (11, last))
    tbs = leaf.library.tbs_certificate_bytes.replace(old, new)
    signature = by.sign(tbs, PKCS1v15(), algorithm)
    der = leaf.certificate.der.replace(old, new).replace(leaf.library.signature, signature)
    return Entity(certificate=decode_certificate_untrusted(der), key=leaf.key)


def test_a_signature_of_sha_256_that_is_made_anew_is_right() -> None:
    """What the test above does changes nothing but the hash."""
    top = authority("top", private_key=key("rsa"))
    leaf = signed_anew(top.issue("leaf"), top.key, hashes.SHA256(), 11)
    assert Chain(leaf=leaf, anchors=(top,)).validate()


def test_the_evidence_of_an_expired_certificate_has_both_clocks() -> None:
    with pytest.raises(CertificateRefused) as caught:
        beneath(end=NOW - DAY / 2).validate()
    evidence = dict(caught.value.evidence)
    assert evidence["valid to"] == "2026-06-01T00:00:00+00:00"
    assert evidence["our clock"] == "2026-06-01T12:00:00+00:00"
    assert evidence["issuer"] == "O=Example, CN=root"


def test_the_evidence_of_an_unknown_authority_names_it_and_those_trusted() -> None:
    with pytest.raises(CertificateRefused) as caught:
        Chain(leaf=OTHER.issue("leaf")).validate()
    evidence = dict(caught.value.evidence)
    assert evidence["missing"] == "O=Example, CN=other"
    assert evidence["trusted"] == "O=Example, CN=root"


def test_a_name_cannot_break_out_of_its_line() -> None:
    with pytest.raises(CertificateRefused) as caught:
        Chain(leaf=OTHER.issue(name("x\n\x1b[2J\u202e"))).validate()
    assert all(text.isascii() and text.isprintable() for _, text in caught.value.evidence)
