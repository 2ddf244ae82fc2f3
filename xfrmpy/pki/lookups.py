"""Certificates that a peer does not send, but names by a hash and a URL.

Read RFC 7296 section 3.6 first. Where they are a stranger says, so nothing is fetched but from the
hosts that our policy names, and what comes counts for nothing before its hash has been compared.
Nothing is fetched here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from xfrmpy.pki.certificate import MAX_CERTIFICATE_OCTETS, decode_certificate_untrusted
from xfrmpy.pki.paths import MAX_PATH
from xfrmpy.pki.places import MAX_URL_OCTETS, parse_host, parse_place
from xfrmpy.pki.verdicts import CertificateRefused, Evidence, Problem

HASH_OCTETS = 20
"""RFC 7296 section 3.6: "a 20-octet SHA-1 hash of the replaced value"."""

MAX_LOOKUPS = 4
"""Of one message: "Implementations MUST be capable of being configured to send and accept up to
four X.509 certificates"."""

MAX_BUNDLE_OCTETS = 64 * 1024
"""Ours: a path of large certificates, and not the lists that may stand among them."""

_SEQUENCE = 0x30
_CERTIFICATE = 0xA0
_LIST = 0xA1
"""CertificateOrCRL of RFC 7296 section 3.6, whose tags are explicit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """What is to be fetched: one certificate, or a bundle of them. `digest` is its SHA-1."""

    is_bundle: bool
    digest: bytes
    url: str

    @property
    def limit(self) -> int:
        """How many octets it may have."""
        return MAX_BUNDLE_OCTETS if self.is_bundle else MAX_CERTIFICATE_OCTETS

    @property
    def evidence(self) -> Evidence:
        return (("named by URL", self.url), ("and by SHA-1", self.digest.hex()))

    def __str__(self) -> str:
        return "bundle" if self.is_bundle else "certificate"


def decode_lookup_untrusted(data: bytes, *, is_bundle: bool) -> Lookup:
    """A hash and the URL behind it. Raises `CertificateRefused` (MALFORMED)."""
    digest, octets = data[:HASH_OCTETS], data[HASH_OCTETS:]
    is_url = 0 < len(octets) <= MAX_URL_OCTETS and all(0x21 <= each <= 0x7E for each in octets)
    if not is_url:
        raise CertificateRefused(Problem.MALFORMED, "neither a hash nor a URL of a certificate")
    return Lookup(is_bundle=is_bundle, digest=digest, url=octets.decode("ascii"))


def check_place(lookup: Lookup, hosts: Iterable[str]) -> None:
    """Raises `CertificateRefused` (NOT_FETCHED) unless the URL is one of http at one of `hosts`."""
    try:
        place = parse_place(lookup.url)
    except ValueError as error:
        raise not_fetched(lookup, str(error)) from error
    hosts = tuple(hosts)
    allowed = {(each.host, each.port) for each in map(parse_host, hosts)}
    if (place.host, place.port) not in allowed:
        summary = f"our policy fetches no certificates from {place.authority}"
        raise not_fetched(lookup, summary, (("we fetch from", ", ".join(hosts)),))


def take_found(lookup: Lookup, data: bytes) -> tuple[bytes, ...]:
    """The certificates, in DER, of what was there.

    Raises `CertificateRefused`: NOT_FETCHED for another hash, MALFORMED, TOO_MUCH.
    """
    found = hashlib.sha1(data, usedforsecurity=False).digest()
    if not hmac.compare_digest(found, lookup.digest):
        more = (("found there", f"{len(data)} octets of SHA-1 {found.hex()}"),)
        raise not_fetched(lookup, "what is there has another hash", more)
    try:
        ders = tuple(_certificates(data)) if lookup.is_bundle else (data,)
        for der in ders:
            decode_certificate_untrusted(der)
    except CertificateRefused as refused:
        evidence = (*refused.evidence, *lookup.evidence)
        raise CertificateRefused(refused.problem, refused.summary, evidence) from refused
    return ders


def not_fetched(lookup: Lookup, why: str, more: Evidence = ()) -> CertificateRefused:
    """That a certificate could not be had, with a sentence that says why."""
    summary = f"the {lookup} that the peer names by a URL is not to be had: {why}"
    return CertificateRefused(Problem.NOT_FETCHED, summary, (*lookup.evidence, *more))


def _certificates(bundle: bytes) -> Iterator[bytes]:
    """Those of a CertificateBundle in its order. What lists stand among them nobody looks at."""
    tag, rest, behind = _element(bundle)
    if tag != _SEQUENCE or behind:
        raise _no_bundle()
    count = 0
    while rest:
        tag, content, rest = _element(rest)
        if tag not in (_CERTIFICATE, _LIST):
            raise _no_bundle()
        if tag == _CERTIFICATE:
            count += 1
            if count > MAX_PATH:
                raise CertificateRefused(
                    Problem.TOO_MUCH, f"a bundle of more than {MAX_PATH} certificates"
                )
            yield content
    if not count:
        raise CertificateRefused(Problem.MALFORMED, "a bundle without a certificate")


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """The tag and content of the DER element that `data` begins with, and what is behind it."""
    if len(data) < 2:
        raise _no_bundle()
    tag, size, start = data[0], data[1], 2
    if size >= 0x80:
        octets = size & 0x7F
        start += octets
        size = int.from_bytes(data[2:start])
        is_shortest = size >= 0x80 and size.bit_length() > 8 * (octets - 1)
        if not 0 < octets <= 3 or not is_shortest:
            raise _no_bundle()
    if start + size > len(data):
        raise _no_bundle()
    return tag, data[start : start + size], data[start + size :]


def _no_bundle() -> CertificateRefused:
    return CertificateRefused(Problem.MALFORMED, "not a bundle of certificates")
