"""Certificates, lists of revocations, OCSP answers and names of strangers.

The first octet of an input chooses what the others are. A finding is any exception but a refusal.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from enum import IntEnum

from cryptography.hazmat.primitives.serialization import Encoding

from tests.pki.chains import NOW, address, constraints, dns, extended
from tests.pki.test_lookups import bundled
from tests.pki.test_revocation import DELEGATE, ISSUING, LEAF, PATH, ROOT, answer, crl, delta
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.certificate import decode_certificate_untrusted, load_bundle
from xfrmpy.pki.identities import check_identity, identities_of
from xfrmpy.pki.lookups import Lookup, check_place, decode_lookup_untrusted, take_found
from xfrmpy.pki.ocsp import check_by_ocsp
from xfrmpy.pki.paths import validate
from xfrmpy.pki.revocation import check_by_crls, decode_crl_untrusted
from xfrmpy.pki.verdicts import CertificateRefused
from xfrmpy.registry import IdType


class Kind(IntEnum):
    """What the octets are."""

    LEAF = 0
    AUTHORITY = 1
    BUNDLE = 2
    LIST = 3
    ANSWER = 4
    NAME = 5
    LOOKUP = 6
    FETCHED = 7


def decode_pki(data: bytes) -> None:
    """Everything of `pki` that looks at octets of others."""
    kind, octets = Kind(data[0] % len(Kind)) if data else Kind.LEAF, data[1:]
    with suppress(CertificateRefused):
        match kind:
            case Kind.LEAF:
                leaf = decode_certificate_untrusted(octets)
                for identity in identities_of(leaf):
                    check_identity(leaf, identity)
                validate(leaf, intermediates=PATH[1:2], anchors=PATH[2:], now=NOW)
            case Kind.AUTHORITY:
                above = decode_certificate_untrusted(octets)
                validate(LEAF.certificate, intermediates=[above], anchors=PATH[2:], now=NOW)
            case Kind.BUNDLE:
                load_bundle(octets)
            case Kind.LIST:
                lists = [decode_crl_untrusted(octets)]
                check_by_crls(LEAF.certificate, ISSUING.certificate, lists, NOW)
            case Kind.ANSWER:
                check_by_ocsp(LEAF.certificate, ISSUING.certificate, octets, NOW)
            case Kind.LOOKUP:
                check_place(
                    decode_lookup_untrusted(octets, is_bundle=False), ("certs.example.net",)
                )
            case Kind.FETCHED:
                digest = hashlib.sha1(octets, usedforsecurity=False).digest()
                take_found(Lookup(is_bundle=True, digest=digest, url="http://a/"), octets)
            case Kind.NAME:
                identity = Identity(type=IdType.ID_DER_ASN1_DN, data=octets)
                assert str(identity).isascii()
                assert identity.comparable
                check_identity(LEAF.certificate, identity)


def pki_seeds() -> dict[str, bytes]:
    """One of each, with whatever extensions there are."""
    names = [dns("gw.example.org"), address("192.0.2.1"), address("2001:db8::1")]
    full = ISSUING.issue(
        "full",
        names=names,
        usage=["digital_signature"],
        extensions=[extended("1.3.6.1.5.5.7.3.17")],
    )
    above = ROOT.issue("issuing", ca=True, extensions=[constraints(permitted=[dns("org")])])
    pem = b"".join(e.library.public_bytes(Encoding.PEM) for e in (full, ROOT))
    of_kind = {
        "leaf": (Kind.LEAF, full.certificate.der),
        "authority": (Kind.AUTHORITY, above.certificate.der),
        "bundle-pem": (Kind.BUNDLE, pem),
        "bundle-der": (Kind.BUNDLE, full.certificate.der + ROOT.certificate.der),
        "list": (Kind.LIST, crl(ISSUING, [LEAF]).library.public_bytes(Encoding.DER)),
        "delta": (Kind.LIST, delta(LEAF).library.public_bytes(Encoding.DER)),
        "answer": (Kind.ANSWER, answer(DELEGATE, nonce=b"n" * 16)),
        "lookup": (Kind.LOOKUP, bytes(20) + b"http://certs.example.net:80/a?b#c"),
        "fetched": (Kind.FETCHED, bundled(LEAF.certificate.der, lists=(b"\x30\x00",))),
        "name": (Kind.NAME, LEAF.certificate.subject),
    }
    return {name: bytes([kind]) + octets for name, (kind, octets) in of_kind.items()}
