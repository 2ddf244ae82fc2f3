"""Which datagrams are replies: those that have both authenticators, and no others."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.radius.replies import FAILURE, IDENTITY, SECRET, SUCCESS, asked, reply
from xfrmpy.radius.attributes import MICROSOFT, Attribute, Code, Kind, eap_attributes, values_of
from xfrmpy.radius.packet import (
    Refusal,
    ReplyRefused,
    SentRequest,
    access_request,
    accounting_request,
    decode_reply_untrusted,
)

SEND, RECV = bytes(range(32)), bytes(range(32, 64))


def refusal(octets: bytes, request: SentRequest | None = None) -> Refusal:
    with pytest.raises(ReplyRefused) as refused:
        decode_reply_untrusted(octets, request or asked())
    return refused.value.reason


def test_an_access_request_has_its_message_authenticator_first() -> None:
    """RFC 3579 section 3.2, computed here by hand; first, as CVE-2024-3596 asks for."""
    octets = asked().octets
    assert octets[20:22] == bytes([80, 18])
    blank = octets[:22] + bytes(16) + octets[38:]
    assert hmac.digest(SECRET, blank, "md5") == octets[22:38]


def test_an_accounting_request_is_authenticated_by_the_secret() -> None:
    """RFC 2866 section 3."""
    octets = accounting_request(9, SECRET, [Attribute.number(Kind.ACCT_STATUS_TYPE, 1)]).octets
    signed = hashlib.md5(octets[:4] + bytes(16) + octets[20:] + SECRET).digest()
    assert octets[4:20] == signed


def test_an_eap_packet_of_any_size_is_cut_and_comes_together_again() -> None:
    for size in (1, 253, 254, 506, 1400):
        packet = bytes(range(256))[:1] * size
        parts = list(eap_attributes(packet))
        assert all(0 < len(part.value) <= 253 for part in parts)
        assert b"".join(values_of(parts, Kind.EAP_MESSAGE)) == packet


def test_a_genuine_reply_is_taken_with_its_keys_decrypted() -> None:
    octets = reply(asked(), Code.ACCESS_ACCEPT, eap=SUCCESS, keys=(SEND, RECV))
    found = decode_reply_untrusted(octets, asked())
    assert found.code is Code.ACCESS_ACCEPT
    assert values_of(found.attributes, (MICROSOFT, 16)) == (SEND,)
    assert values_of(found.attributes, (MICROSOFT, 17)) == (RECV,)
    assert RECV.hex() not in repr(found)
    assert repr(SECRET)[2:-1] not in repr(asked())


def test_octets_behind_the_packet_are_padding() -> None:
    octets = reply(asked(), Code.ACCESS_REJECT, eap=FAILURE) + b"\0\0\0"
    assert decode_reply_untrusted(octets, asked()).code is Code.ACCESS_REJECT


def test_a_reply_without_a_message_authenticator_is_refused_though_it_is_authentic() -> None:
    """CVE-2024-3596: that is what a collision of MD5 makes of a reject."""
    octets = reply(asked(), Code.ACCESS_ACCEPT, eap=SUCCESS, signed=False)
    signed = octets[:4] + asked().authenticator + octets[20:] + SECRET
    assert hashlib.md5(signed).digest() == octets[4:20]
    assert refusal(octets) is Refusal.NO_MESSAGE_AUTHENTICATOR


def test_a_wrong_message_authenticator_is_refused_though_the_reply_is_authentic() -> None:
    """As above, by who puts one in whose value nobody could know."""
    octets = reply(asked(), Code.ACCESS_ACCEPT, eap=SUCCESS)
    at = octets.index(b"\x50\x12") + 2
    changed = octets[:at] + bytes(16) + octets[at + 16 :]
    signed = changed[:4] + asked().authenticator + changed[20:] + SECRET
    forged = changed[:4] + hashlib.md5(signed).digest() + changed[20:]
    assert refusal(forged) is Refusal.NOT_GENUINE


def test_a_reply_with_two_message_authenticators_is_refused() -> None:
    octets = reply(asked(), Code.ACCESS_ACCEPT, eap=SUCCESS)
    at = octets.index(b"\x50\x12")
    twice = octets + octets[at : at + 18]
    assert refusal(twice[:2] + len(twice).to_bytes(2, "big") + twice[4:]) is Refusal.MALFORMED


def test_the_reply_that_rfc_2865_shows_would_not_do_today() -> None:
    """Section 7.1: genuine, as its time had it."""
    request = SentRequest(
        code=Code.ACCESS_REQUEST,
        identifier=0,
        authenticator=bytes.fromhex("0f403f9473978057bd83d5cb98f4227a"),
        secret=b"xyzzy5461",
        octets=b"",
    )
    octets = bytes.fromhex(
        "0200002686fe220e7624ba2a1005f6bf9b55e0b20606000000010f06000000000e06c0a80103"
    )
    assert refusal(octets, request) is Refusal.NO_MESSAGE_AUTHENTICATOR


def test_a_reply_with_a_proxy_state_is_refused_for_we_send_none() -> None:
    octets = reply(asked(), Code.ACCESS_ACCEPT, [(33, b"x")], eap=SUCCESS)
    assert refusal(octets) is Refusal.PROXY_STATE


def test_a_reply_of_another_secret_request_or_kind_is_refused() -> None:
    other = access_request(7, bytes(16), SECRET, list(eap_attributes(IDENTITY)))
    accounting = accounting_request(7, SECRET, [])
    accept = reply(asked(), Code.ACCESS_ACCEPT, eap=SUCCESS)
    wrong_secret = reply(asked(), Code.ACCESS_ACCEPT, eap=SUCCESS, secret=b"guessed")
    assert refusal(wrong_secret) is Refusal.NOT_GENUINE
    assert refusal(accept, other) is Refusal.NOT_GENUINE
    assert refusal(accept, accounting) is Refusal.CODE
    assert refusal(accept, asked(identifier=8)) is Refusal.NOT_ASKED
    assert refusal(reply(asked(), Code.ACCOUNTING_RESPONSE)) is Refusal.CODE


def test_any_changed_octet_makes_a_reply_none() -> None:
    octets = reply(asked(), Code.ACCESS_ACCEPT, [(25, b"staff")], eap=SUCCESS, keys=(SEND, RECV))
    for at in range(len(octets)):
        for bit in (1, 0x80):
            changed = octets[:at] + bytes([octets[at] ^ bit]) + octets[at + 1 :]
            assert refusal(changed) in Refusal


@pytest.mark.parametrize("extra", [b"\x19\x00", b"\x19\x01", b"\x19\x05xx", b"\x19"])
def test_attributes_whose_lengths_do_not_add_up_are_refused(extra: bytes) -> None:
    octets = reply(asked(), Code.ACCESS_ACCEPT, eap=SUCCESS)
    length = (len(octets) + len(extra)).to_bytes(2, "big")
    assert refusal(octets[:2] + length + octets[4:] + extra) is Refusal.MALFORMED


@pytest.mark.parametrize(
    "inner", [b"\x11\x00", b"\x11\x23" + bytes(33), b"\x11\x02", b"\x11\x03\x01", b"\x11"]
)
def test_keys_that_cannot_be_read_are_refused_though_the_reply_is_genuine(inner: bytes) -> None:
    vendor = MICROSOFT.to_bytes(4, "big") + inner
    octets = reply(asked(), Code.ACCESS_ACCEPT, [(26, vendor)], eap=SUCCESS)
    assert refusal(octets) in (Refusal.KEYS, Refusal.MALFORMED)


@given(st.binary(max_size=200), st.booleans())
def test_no_octets_make_the_decoder_raise_anything_else(octets: bytes, framed: bool) -> None:
    if framed:
        head = bytes([2, 7]) + (20 + len(octets)).to_bytes(2, "big") + bytes(16)
        octets = head + octets
    with pytest.raises(ReplyRefused):
        decode_reply_untrusted(octets, asked())
