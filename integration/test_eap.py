"""EAP with strongSwan: its users at our gateway, and ours at its; who does not get in, and why.

A tunnel for each case, whose index is its number, beside one daemon of each kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.keys import make_key
from integration.lab.process import eventually
from integration.lab.site import Pair, Role, Site
from integration.lab.strongswan import StrongswanPeer
from integration.lab.tunnel import KeyFiles, Tunnel, User

pytestmark = pytest.mark.native


@dataclass(frozen=True)
class Case:
    """A user as the one who calls and as the gateway knows it, and what proves the gateway.

    `is_known` is whether the gateway's key is the one that the user expects, None: it shows none.
    """

    method: str
    name: str = "carol"
    password: str = "correct horse: battery"
    known_as: str = ""
    known_password: str = ""
    is_known: bool | None = True

    @property
    def caller(self) -> User:
        return User(name=self.name, password=self.password, method=self.method)

    @property
    def known(self) -> User:
        return User(
            name=self.known_as or self.name,
            password=self.known_password or self.password,
            method=self.method,
        )


ENTERING = {
    "mschapv2": Case("mschapv2"),
    "md5": Case("md5"),
    "gtc": Case("gtc"),
}
WRONG_PASSWORD = Case("mschapv2", name="dave", password="no good", known_password="good")
UNKNOWN = Case("md5", name="mallory", password="any word", known_as="trent")

AT_OURS = (*ENTERING.values(), WRONG_PASSWORD, UNKNOWN)
AT_THEIRS = (
    *(ENTERING[method] for method in ("mschapv2", "md5")),  # As a gateway its GTC asks PAM.
    WRONG_PASSWORD,
    Case("md5", name="frank", is_known=False),
    Case("mschapv2", name="grace", is_known=None),
)


@contextmanager
def beside_strongswan(cases: Sequence[Case], role: Role) -> Iterator[Pair]:
    """Our end calls as a user, or is the gateway."""
    calls = role is Role.INITIATOR
    with Site() as site:
        right, other = (make_key(site.directory, "ecdsa256", name) for name in ("one", "two"))
        ours: list[Tunnel] = []
        theirs: list[Tunnel] = []
        for number, case in enumerate(cases):
            tunnel = site.network.tunnel(number)
            caller = tunnel.called_by(case.caller, right, is_ours=calls)
            gateway = tunnel.called_by(case.known, right, is_ours=calls)
            gateway = _proving(gateway, case, other, is_ours=not calls)
            ours.append(caller if calls else gateway)
            theirs.append((gateway if calls else caller).mirrored())
        peer = site.strongswan(site.network.sun, *theirs)
        yield Pair(site, site.xfrmpy(site.network.moon, *ours), peer)


def _proving(tunnel: Tunnel, case: Case, other: KeyFiles, *, is_ours: bool) -> Tunnel:
    """A gateway with another key, or with none but EAP alone."""
    if case.is_known:
        return tunnel
    end = tunnel.ours if is_ours else tunnel.theirs
    alone = case.known if case.is_known is None else None
    end = replace(end, key=other if case.is_known is False else None, user=alone)
    return replace(tunnel, ours=end) if is_ours else replace(tunnel, theirs=end)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Pair]:
    with beside_strongswan(AT_OURS, Role.RESPONDER) as pair:
        yield pair


@pytest.fixture(scope="module")
def user() -> Iterator[Pair]:
    with beside_strongswan(AT_THEIRS, Role.INITIATOR) as pair:
        yield pair


def charon(pair: Pair) -> StrongswanPeer:
    assert isinstance(pair.theirs, StrongswanPeer)
    return pair.theirs


@pytest.mark.parametrize("method", ENTERING)
def test_a_user_of_strongswan_comes_in_at_our_gateway(gateway: Pair, method: str) -> None:
    number = AT_OURS.index(ENTERING[method])
    gateway.connect(Role.RESPONDER, number)
    gateway.site.assert_protected(number)
    assert gateway.ours.tunnel(number).remote_id == "eap:carol"
    gateway.disconnect(Role.RESPONDER, number)


def test_a_tunnel_of_a_user_is_rekeyed_by_either_end(gateway: Pair) -> None:
    gateway.connect(Role.RESPONDER)
    gateway.ours.rekey()
    charon(gateway).rekey_ike_sa()
    eventually("it to be up again", lambda: gateway.ours.is_up() and gateway.theirs.is_up())
    gateway.site.assert_protected()
    assert gateway.ours.tunnel().remote_id == "eap:carol"
    gateway.disconnect(Role.RESPONDER)


@pytest.mark.parametrize(
    ("case", "code"), [(WRONG_PASSWORD, "XF2056"), (UNKNOWN, "XF2052")], ids=["password", "name"]
)
def test_a_user_of_strongswan_who_is_none_of_ours_stays_out(
    gateway: Pair, case: Case, code: str
) -> None:
    """With MSCHAPv2 charon itself breaks off at the first refusal. The log tells only some of what
    strangers do; the events tell it all."""
    number, moon = AT_OURS.index(case), gateway.ours
    charon(gateway).swanctl("--initiate", "--child", f"net{number}", "--timeout", "30", check=False)
    events = eventually("the refusal to be told", lambda: _told(moon, code))
    assert f"eap:{case.name}" in events
    assert not moon.is_up(number)
    assert not gateway.theirs.is_up(number)
    assert case.password not in events + moon.log


def _told(moon: XfrmpyGateway, code: str) -> str:
    """All events, once one has this code."""
    events = moon.command("log", "-o", "json").output
    return events if code in events else ""


@pytest.mark.parametrize("method", ["mschapv2", "md5"])
def test_our_user_comes_in_at_a_gateway_of_strongswan(user: Pair, method: str) -> None:
    number = AT_THEIRS.index(ENTERING[method])
    user.connect(Role.INITIATOR, number)
    user.site.assert_protected(number)
    assert f"EAP method EAP_{method.upper()} succeeded" in charon(user).log
    user.disconnect(Role.INITIATOR, number)


def refused(moon: XfrmpyGateway, number: int) -> str:
    """What the command says that does not bring a tunnel up."""
    answer = moon.command("up", f"net{number}")
    assert answer.code == 5
    assert not moon.is_up(number)
    return answer.errors


def test_our_user_with_a_wrong_password_is_told_by_code(user: Pair) -> None:
    said = refused(user.ours, AT_THEIRS.index(WRONG_PASSWORD))
    assert "XF2050" in said
    assert WRONG_PASSWORD.password not in said + user.ours.log


def test_our_user_says_nothing_to_a_gateway_with_another_key(user: Pair) -> None:
    """CVE-2015-4171: not even a name."""
    said = refused(user.ours, 3)
    assert "XF2041" in said
    assert "received EAP identity 'frank'" not in charon(user).log


def test_our_user_says_nothing_to_a_gateway_that_proves_itself_by_eap_alone(user: Pair) -> None:
    """It wants to be asked for that (RFC 5998), and we have not done so."""
    said = refused(user.ours, 4)
    assert "XF2005" in said
    assert "received EAP identity 'grace'" not in charon(user).log
