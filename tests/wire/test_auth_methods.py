"""SUPPORTED_AUTH_METHODS (RFC 9593): the three forms of an announcement, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.registry import AuthenticationMethod
from xfrmpy.wire.auth_methods import (
    AuthAnnouncement,
    decode_auth_methods_untrusted,
    encode_auth_methods,
)
from xfrmpy.wire.cursor import Malformed

ED25519 = bytes.fromhex("300506032b6570")

FORMS = {
    "0202": AuthAnnouncement(method=AuthenticationMethod.SHARED_KEY),
    "020d": AuthAnnouncement(method=AuthenticationMethod.NULL),
    "030100": AuthAnnouncement(method=AuthenticationMethod.RSA_SIGNATURE),
    "030902": AuthAnnouncement(method=AuthenticationMethod.ECDSA_SHA256_P256, authority=2),
    "0a0e00300506032b6570": AuthAnnouncement(
        method=AuthenticationMethod.DIGITAL_SIGNATURE, algorithm=ED25519
    ),
}


@pytest.mark.parametrize("octets", FORMS)
def test_each_form_is_written_and_read(octets: str) -> None:
    """Figures 4 to 6."""
    assert encode_auth_methods([FORMS[octets]]).hex() == octets
    assert decode_auth_methods_untrusted(bytes.fromhex(octets)) == (FORMS[octets],)


def test_announcements_follow_one_another() -> None:
    octets = bytes.fromhex("".join(FORMS))
    assert decode_auth_methods_untrusted(octets) == tuple(FORMS.values())
    assert encode_auth_methods(FORMS.values()) == octets


@pytest.mark.parametrize(
    "unknown", ["02c8", "0201", "030200", "04010030", "020e", "030e00", "04c80030"]
)
def test_what_is_not_understood_is_passed_over(unknown: str) -> None:
    """A method of tomorrow, or a form that a method does not have."""
    octets = bytes.fromhex("0202" + unknown + "020d")
    methods = [a.method for a in decode_auth_methods_untrusted(octets)]
    assert methods == [AuthenticationMethod.SHARED_KEY, AuthenticationMethod.NULL]


@pytest.mark.parametrize("octets", ["00", "0002", "0102", "02", "0302", "ff0e00", "020205"])
def test_a_length_that_cannot_be_is_malformed(octets: str) -> None:
    with pytest.raises(Malformed):
        decode_auth_methods_untrusted(bytes.fromhex(octets))


def test_an_algorithm_that_no_length_octet_can_tell_is_not_written() -> None:
    method = AuthenticationMethod.DIGITAL_SIGNATURE
    with pytest.raises(ValueError, match="252"):
        AuthAnnouncement(method=method, algorithm=bytes(253)).encode()


@given(st.binary(max_size=64))
def test_no_octets_raise_anything_but_malformed(octets: bytes) -> None:
    try:
        found = decode_auth_methods_untrusted(octets)
    except Malformed:
        return
    assert decode_auth_methods_untrusted(encode_auth_methods(found)) == found
