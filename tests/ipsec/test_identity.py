"""Identities as operators write them, as octets, and as they are shown."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xfrmpy.ipsec.identity import Identity
from xfrmpy.registry import IdType

EXAMPLE = bytes.fromhex("301a310b3009060355040a0c024578310b300906035504030c026777")
MAILBOX = bytes.fromhex("30143112301006092a864886f70d0109011603614062")


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        ("gw.example.org", IdType.ID_FQDN, b"gw.example.org"),
        ("gateway", IdType.ID_FQDN, b"gateway"),
        ("@gw.example.org", IdType.ID_FQDN, b"gw.example.org"),
        ("@192.0.2.1", IdType.ID_FQDN, b"192.0.2.1"),
        ("ann@example.org", IdType.ID_RFC822_ADDR, b"ann@example.org"),
        ("192.0.2.1", IdType.ID_IPV4_ADDR, bytes([192, 0, 2, 1])),
        ("2001:db8::1", IdType.ID_IPV6_ADDR, bytes.fromhex("20010db8") + bytes(11) + b"\1"),
        ("keyid:branch 7", IdType.ID_KEY_ID, b"branch 7"),
        ("keyid:0x00ff", IdType.ID_KEY_ID, b"\x00\xff"),
        ("keyid:a=b", IdType.ID_KEY_ID, b"a=b"),
        ("O=Ex, CN=gw", IdType.ID_DER_ASN1_DN, EXAMPLE),
        (" O = Ex,CN=gw ", IdType.ID_DER_ASN1_DN, EXAMPLE),
        ("emailAddress=a@b", IdType.ID_DER_ASN1_DN, MAILBOX),
    ],
)
def test_an_identity_is_read(text: str, kind: IdType, data: bytes) -> None:
    assert Identity.parse(text) == Identity(type=kind, data=data)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is neither an address, a domain name nor user@host"),
        ("@", "'@' is neither"),
        ("two words", "'two words' is neither"),
        ("gw\n", "is neither"),
        ("m\u00fcnchen.example", "is neither"),
        ("O=Example, CN", "'O=Example, CN' is not a distinguished name as in `C=CH, O=Exa"),
        ("O=Example, colour=red", "is not a distinguished name"),
        ("=", "is not a distinguished name"),
        ("CN=a\nb", "is not a distinguished name"),
        ("keyid:", "an empty key id"),
        ("keyid:0x", "an empty key id"),
        ("keyid:0x123", "'0x123' is not an even number of hexadecimal digits"),
        ("keyid:0xgg", "'0xgg' is not an even number of hexadecimal digits"),
    ],
)
def test_what_is_no_identity_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Identity.parse(text)


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1"])
def test_an_address_is_an_identity(text: str) -> None:
    assert Identity.of_address(ip_address(text)) == Identity.parse(text)


@given(st.text())
@example("@192.0.2.1")
@example("@keyid:x")
@example("@@")
@example("fe80::1%eth0")
@settings(deadline=None)
def test_what_is_read_is_shown_as_it_can_be_read_again(text: str) -> None:
    try:
        identity = Identity.parse(text)
    except ValueError:
        return
    assert Identity.parse(str(identity)) == identity


ANY_IDENTITY = st.builds(
    Identity,
    type=st.sampled_from(IdType) | st.integers(0, 255).map(IdType),
    data=st.binary(max_size=20) | st.from_regex(rb"[a-z0-9.@:=]{1,20}", fullmatch=True),
)


BIT_STRING_AS_CN = bytes.fromhex("300e310c300a06035504030303000000")


@given(ANY_IDENTITY)
@example(Identity(type=IdType.ID_DER_ASN1_DN, data=BIT_STRING_AS_CN))
@example(Identity(type=IdType.ID_IPV4_ADDR, data=bytes(16)))
@example(Identity(type=IdType.ID_IPV6_ADDR, data=bytes(4)))
@example(Identity(type=IdType.ID_FQDN, data=b"\xff\x1b[2J\n"))
@example(Identity(type=IdType.ID_FQDN, data=b""))
@settings(deadline=None)
def test_whatever_a_peer_sends_can_be_printed(identity: Identity) -> None:
    text = str(identity)
    assert text
    assert text.isascii()
    assert text.isprintable()


@given(ANY_IDENTITY)
@example(Identity(type=IdType.ID_FQDN, data=b"192.0.2.1"))
@example(Identity(type=IdType.ID_FQDN, data=b"keyid:0x00"))
@example(Identity(type=IdType.ID_FQDN, data=b"eap:carol"))
@example(Identity.of_eap(b"carol"))
@example(Identity.of_eap(b""))
@example(Identity(type=IdType.ID_RFC822_ADDR, data=b"gw.example.org"))
@settings(deadline=None)
def test_no_peer_can_look_like_what_the_operator_wrote(identity: Identity) -> None:
    try:
        expected = Identity.parse(str(identity))
    except ValueError:
        return
    if not str(identity).startswith(("ID_", "UNKNOWN_")):
        assert expected == identity


def test_an_unknown_type_is_shown_with_its_octets() -> None:
    assert str(Identity(type=IdType(77), data=b"\x01")) == "UNKNOWN_77:0x01"
    assert str(Identity(type=IdType.ID_DER_ASN1_DN, data=EXAMPLE)) == "O=Ex, CN=gw"
    assert str(Identity(type=IdType.ID_DER_ASN1_DN, data=b"\x30\x00")) == "ID_DER_ASN1_DN:0x3000"


def test_a_distinguished_name_is_the_same_in_ldap_s_order_and_in_any_case() -> None:
    texts = ("O=Ex, CN=gw", "cn=GW, o=eX", "O=Ex, CN=g  w", "O=Ex", "CN=gw, O=Ex, C=CH")
    one, same, *others = (Identity.parse(text).comparable for text in texts)
    assert one == same
    assert one not in others


@given(ANY_IDENTITY)
@settings(deadline=None)
def test_whatever_is_no_name_is_only_itself(identity: Identity) -> None:
    if identity.type != IdType.ID_DER_ASN1_DN or not str(identity).count("="):
        assert identity.comparable == identity


@pytest.mark.parametrize(
    ("pattern", "told", "matches"),
    [
        ("*.example.net", "gw.example.net", True),
        ("*.example.net", "GW.Branch.Example.NET", True),
        ("*.example.net", "example.net", False),
        ("*.example.net", ".example.net", False),
        ("*.example.net", "gw.example.net.evil.org", False),
        ("*.example.net", "gwexample.net", False),
        ("*.example.net", "*.example.net", False),
        ("*.example.net", "a.*.example.net", False),
        ("*.example.net", "user@gw.example.net", False),
        ("*.example.net", "O=x.example.net, CN=a.example.net", False),
        ("*@example.net", "ann@example.net", True),
        ("*@example.net", "@example.net", False),
        ("*@example.net", "ann@gw.example.net", False),
        ("*@example.net", "*@example.net", False),
        ("O=Example, CN=*", "O=Example, CN=gw", True),
        ("O=Example, CN=*", "CN=gw, O=example", True),
        ("O=Example, CN=*", "O=Other, CN=gw", False),
        ("O=Example, CN=*", "O=Example, OU=a, CN=gw", False),
        ("O=Example, CN=*", "O=Example, OU=gw", False),
        ("O=Example, CN=*", "O=Example", False),
        ("O=Example, CN=*", "O=Example, CN=*", False),
        ("OU=*, CN=*", "OU=a, CN=b", True),
        ("gw.example.net", "gw.example.net", True),
        ("gw.example.net", "sun.example.net", False),
    ],
)
def test_a_pattern_stands_for_what_is_below_it_and_of_its_kind(
    pattern: str, told: str, matches: bool
) -> None:
    assert Identity.parse(pattern).matches(Identity.parse(told)) is matches


@given(st.binary(max_size=80), st.sampled_from(list(IdType)))
def test_whatever_a_peer_says_is_no_pattern_s_defect(data: bytes, kind: IdType) -> None:
    told = Identity(type=kind, data=data)
    for pattern in ("*.example.net", "*@example.net", "O=Example, CN=*"):
        assert not Identity.parse(pattern).matches(told) or kind != IdType.ID_DER_ASN1_DN
