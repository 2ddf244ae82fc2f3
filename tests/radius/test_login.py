"""What a server's answer means for a user: nobody comes in by half of one."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from tests.radius.replies import ANSWER, CHALLENGE, FAILURE, IDENTITY, SUCCESS
from xfrmpy.eap.packet import EapCode, EapPacket, EapType
from xfrmpy.radius.attributes import MICROSOFT, Attribute, Code, Kind, values_of
from xfrmpy.radius.login import MAX_ROUNDS, Grant, Login, LoginFailed, Nas
from xfrmpy.radius.packet import Reply

NAS = Nas(identifier="gw", our_address=ip_address("192.0.2.9"), calling="198.51.100.7")
KEYS = (
    Attribute(type=(MICROSOFT, 16), value=b"s" * 16),
    Attribute(type=(MICROSOFT, 17), value=b"r" * 16),
)


def reply(code: Code, *attributes: Attribute, eap: bytes = b"") -> Reply:
    more = (Attribute(type=Kind.EAP_MESSAGE, value=eap),) if eap else ()
    return Reply(code=code, attributes=(*attributes, *more))


def begun() -> Login:
    """One whose server has asked for something."""
    login = Login(NAS)
    login.request(IDENTITY)
    login.handle(0, reply(Code.ACCESS_CHALLENGE, eap=CHALLENGE))
    login.request(ANSWER)
    return login


def granted(*attributes: Attribute) -> Grant:
    judged = begun().handle(0, reply(Code.ACCESS_ACCEPT, *attributes, eap=SUCCESS))
    assert isinstance(judged, Grant)
    return judged


def refused(answer: Reply) -> str:
    with pytest.raises(LoginFailed) as failed:
        begun().handle(0, answer)
    return str(failed.value)


def test_the_first_request_names_the_user_as_the_peer_did_and_the_gateway() -> None:
    found = Login(NAS).request(IDENTITY)
    assert values_of(found, Kind.USER_NAME) == (b"alice",)
    assert values_of(found, Kind.EAP_MESSAGE) == (IDENTITY,)
    assert values_of(found, Kind.NAS_IP_ADDRESS) == (bytes([192, 0, 2, 9]),)
    assert values_of(found, Kind.NAS_IDENTIFIER) == (b"gw",)
    assert values_of(found, Kind.CALLING_STATION_ID) == (b"198.51.100.7",)
    assert values_of(found, Kind.STATE) == ()


def test_state_is_echoed_to_the_server_that_gave_it_and_replaced_by_the_next() -> None:
    login = Login(NAS)
    login.request(IDENTITY)
    assert login.server is None
    for state in (b"one", b"two"):
        given = Attribute(type=Kind.STATE, value=state)
        assert login.handle(1, reply(Code.ACCESS_CHALLENGE, given, eap=CHALLENGE)) == CHALLENGE
        asked = login.request(ANSWER)
        assert values_of(asked, Kind.STATE) == (state,)
        assert values_of(asked, Kind.USER_NAME) == (b"alice",)
        assert login.server == 1


@pytest.mark.parametrize("eap", [b"", FAILURE, CHALLENGE, SUCCESS + b"\0", ANSWER])
def test_acceptance_without_an_eap_success_lets_nobody_in(eap: bytes) -> None:
    """RFC 3579 section 2.6.3; CVE-2015-8023 and CVE-2021-45079 are of this kind."""
    assert refused(reply(Code.ACCESS_ACCEPT, *KEYS, eap=eap)).startswith("the server accepts")


def test_acceptance_of_who_has_proved_nothing_lets_nobody_in() -> None:
    """A server may trust whom it will; our policy asks for a proof by EAP."""
    login = Login(NAS)
    login.request(IDENTITY)
    with pytest.raises(LoginFailed, match="proved nothing"):
        login.handle(0, reply(Code.ACCESS_ACCEPT, *KEYS, eap=SUCCESS))


@pytest.mark.parametrize("eap", [b"", SUCCESS, FAILURE, ANSWER])
def test_a_challenge_that_asks_nothing_of_the_peer_ends_the_login(eap: bytes) -> None:
    assert refused(reply(Code.ACCESS_CHALLENGE, eap=eap)).startswith("the server challenges")


@pytest.mark.parametrize("eap", [b"", FAILURE, SUCCESS])
def test_a_reject_is_one_whatever_it_has_inside(eap: bytes) -> None:
    words = Attribute(type=Kind.REPLY_MESSAGE, value=b"account\nlocked\xff")
    said = refused(reply(Code.ACCESS_REJECT, words, *KEYS, eap=eap))
    assert said == "the server refuses the user: account locked\N{REPLACEMENT CHARACTER}"


def test_the_msk_is_what_we_receive_with_and_then_what_we_send_with() -> None:
    assert granted(*KEYS).msk == b"r" * 16 + b"s" * 16 + bytes(32)
    assert granted(*reversed(KEYS)).msk == granted(*KEYS).msk
    assert granted().msk == b""


@pytest.mark.parametrize("keys", [KEYS[:1], KEYS[1:], (*KEYS, KEYS[0])])
def test_half_of_the_keys_or_too_many_let_nobody_in(keys: tuple[Attribute, ...]) -> None:
    assert "one of two keys" in refused(reply(Code.ACCESS_ACCEPT, *keys, eap=SUCCESS))


def test_the_user_is_whom_the_server_names_if_it_does() -> None:
    assert granted().user == b"alice"
    assert granted().method is EapType.MD5_CHALLENGE
    assert granted(Attribute(type=Kind.USER_NAME, value=b"alice@corp")).user == b"alice@corp"


def test_addresses_times_and_groups_are_read() -> None:
    found = granted(
        Attribute.number(Kind.FRAMED_IP_ADDRESS, int(ip_address("10.9.0.7"))),
        Attribute(type=Kind.FRAMED_IPV6_ADDRESS, value=ip_address("2001:db8::7").packed),
        Attribute(type=Kind.FRAMED_IPV6_PREFIX, value=bytes.fromhex("003020010db80001")),
        Attribute.number(Kind.SESSION_TIMEOUT, 3600),
        Attribute.number(Kind.IDLE_TIMEOUT, 60),
        Attribute.number(Kind.ACCT_INTERIM_INTERVAL, 300),
        Attribute.number(Kind.TERMINATION_ACTION, 1),
        Attribute(type=Kind.CLASS, value=b"staff"),
        Attribute(type=Kind.CLASS, value=b"\xff\x00"),
        Attribute(type=Kind.CLASS, value=b"admins"),
    )
    assert found.address == ip_address("10.9.0.7")
    assert found.address6 == ip_address("2001:db8::7")
    assert found.prefix6 == ip_network("2001:db8:1::/48")
    assert (found.session_seconds, found.idle_seconds, found.interim_seconds) == (3600, 60, 300)
    assert found.reauthenticates
    assert found.groups == ("staff", "admins")
    assert found.classes == (b"staff", b"\xff\x00", b"admins")


@pytest.mark.parametrize("address", ["255.255.255.255", "255.255.255.254"])
def test_an_address_that_is_left_to_others_is_none(address: str) -> None:
    given = Attribute.number(Kind.FRAMED_IP_ADDRESS, int(ip_address(address)))
    assert granted(given).address is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.FRAMED_IP_ADDRESS, b"\x0a\x09\x00"),
        (Kind.SESSION_TIMEOUT, b""),
        (Kind.FRAMED_IPV6_ADDRESS, bytes(15)),
        (Kind.FRAMED_IPV6_PREFIX, b"\0"),
        (Kind.FRAMED_IPV6_PREFIX, b"\0\x81" + bytes(16)),
        (Kind.FRAMED_IPV6_PREFIX, b"\0\x40" + bytes(17)),
    ],
)
def test_values_of_a_wrong_length_let_nobody_in(kind: Kind, value: bytes) -> None:
    given = Attribute(type=kind, value=value)
    assert kind.name in refused(reply(Code.ACCESS_ACCEPT, given, eap=SUCCESS))


@pytest.mark.parametrize("response", [b"", CHALLENGE, SUCCESS, ANSWER, IDENTITY[:-1]])
def test_nothing_is_asked_before_the_peer_says_who_it_is(response: bytes) -> None:
    with pytest.raises(LoginFailed):
        Login(NAS).request(response)


@pytest.mark.parametrize("name", [b"", b"a" * 254])
def test_a_name_that_radius_cannot_carry_is_none(name: bytes) -> None:
    packet = EapPacket(code=EapCode.RESPONSE, identifier=1, type=EapType.IDENTITY, data=name)
    with pytest.raises(LoginFailed, match="who it is"):
        Login(NAS).request(packet.encode())


def test_a_login_does_not_go_on_for_ever() -> None:
    login = begun()
    for _ in range(MAX_ROUNDS - 2):
        login.request(ANSWER)
    with pytest.raises(LoginFailed, match="rounds"):
        login.request(ANSWER)
