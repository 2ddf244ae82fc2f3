"""Users of strongSwan at our gateway, whom FreeRADIUS knows: who comes in where, and what is told
of their sessions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.lab.freeradius import Freeradius
from integration.lab.gateway import XfrmpyGateway
from integration.lab.keys import make_key
from integration.lab.process import eventually
from integration.lab.site import Pair, Role, Site
from integration.lab.strongswan import StrongswanPeer
from integration.lab.tunnel import User

pytestmark = pytest.mark.native

METHODS = ("mschapv2", "md5", "gtc")
PASSWORDS = {"carol": "correct horse: battery", "dave": "staple", "frank": "hospitality"}
REPLIES = {
    "carol": ('Class := "staff"', "Framed-IP-Address := 10.9.0.7"),
    "frank": ('Class := "guests"',),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A user at sun, who has a tunnel of his own, and what moon says to him."""

    name: str = "carol"
    password: str = PASSWORDS["carol"]
    method: str = "mschapv2"
    group: str = "corp"
    code: str = ""

    @property
    def user(self) -> User:
        return User(name=self.name, password=self.password, method=self.method)

    @property
    def acceptance(self) -> dict[str, Any]:
        return {"radius": self.group, "groups": ["staff", "admins"]}


WELCOME = tuple(Caller(method=method) for method in METHODS)
REFUSED = {
    "wrong password": Caller(name="dave", password="guessed", code="XF2052"),
    "unknown": Caller(name="eve", password="none", method="md5", code="XF2052"),
    "another group": Caller(name="frank", password=PASSWORDS["frank"], code="XF2053"),
    "no server": Caller(name="grace", password="none", group="lost", code="XF2055"),
}


@dataclass(frozen=True, slots=True)
class Realm:
    """Moon is the gateway, sun strongSwan with a user for each tunnel; the server is at moon."""

    pair: Pair
    server: Freeradius

    @property
    def moon(self) -> XfrmpyGateway:
        assert isinstance(self.pair.ours, XfrmpyGateway)
        return self.pair.ours

    @property
    def sun(self) -> StrongswanPeer:
        assert isinstance(self.pair.theirs, StrongswanPeer)
        return self.pair.theirs

    def records(self, before: int, count: int) -> list[dict[str, str]]:
        """What the server was told behind so many records, as soon as it is so much."""

        def are_told() -> bool:
            return len(self.server.records()) >= before + count

        eventually(f"{count} records of sessions", are_told)
        return self.server.records()[before:]


@contextmanager
def realm(*callers: Caller) -> Iterator[Realm]:
    with Site() as site:
        key = make_key(site.directory, "ecdsa256", "moon")
        tunnels = [
            site.network.tunnel(number, acceptance=caller.acceptance).called_by(
                caller.user, key, is_ours=False
            )
            for number, caller in enumerate(callers)
        ]
        server = Freeradius(
            site.network.moon.command(),
            site.directory / "freeradius",
            users=PASSWORDS,
            replies=REPLIES,
        )
        try:
            secret = site.directory / "radius.secret"
            secret.touch(0o600)
            secret.write_text(server.secret)
            site.policy_files["radius.yaml"] = groups(secret)
            theirs = site.strongswan(site.network.sun, *(t.mirrored() for t in tunnels))
            ours = site.xfrmpy(site.network.moon, *tunnels)
            yield Realm(Pair(site, ours, theirs), server)
        finally:
            server.stop()


def groups(secret: Path) -> str:
    """Of `corp` the second server is there, of `near` the only one, of `lost` none."""
    common = {"secret": f"file:{secret}", "timeout": "1s"}
    told = {"accounting": "yes", "nas_id": "gw.example.net"}
    corp = {"servers": ["127.0.0.9", "127.0.0.1"], **common, **told}
    near = {**corp, "servers": "127.0.0.1"}
    lost = {**common, "servers": "127.0.0.9"}
    return yaml.safe_dump({"radius": {"corp": corp, "near": near, "lost": lost}})


@pytest.fixture(scope="module")
def users() -> Iterator[Realm]:
    with realm(*WELCOME, *REFUSED.values()) as opened:
        yield opened


@pytest.mark.parametrize("method", METHODS)
def test_a_user_of_the_server_comes_in_and_is_accounted(users: Realm, method: str) -> None:
    number, before = METHODS.index(method), len(users.server.records())
    users.pair.connect(Role.RESPONDER, number)
    users.pair.site.assert_protected(number)
    status = users.moon.tunnel(number)
    assert status.remote_id == "eap:carol"
    users.pair.disconnect(Role.RESPONDER, number)
    start, stop = users.records(before, 2)
    assert (start["Acct-Status-Type"], stop["Acct-Status-Type"]) == ("Start", "Stop")
    for record in (start, stop):
        assert record["User-Name"] == "carol"
        assert record["Class"] == "0x" + b"staff".hex()
        assert record["NAS-Identifier"] == "gw.example.net"
        assert record["Framed-IP-Address"] == "10.9.0.7"
        assert status.remote_address.startswith(f"{record['Calling-Station-Id']}:")
    assert start["Acct-Session-Id"] == stop["Acct-Session-Id"]
    assert int(stop["Acct-Input-Packets"]) >= 3
    assert int(stop["Acct-Output-Octets"]) > 0
    assert stop["Acct-Terminate-Cause"] == "User-Request"


def test_a_session_goes_on_through_rekeyings(users: Realm) -> None:
    before = len(users.server.records())
    users.pair.connect(Role.RESPONDER)
    users.moon.rekey()
    users.sun.rekey_ike_sa()
    eventually("both rekeyings to be done", lambda: users.moon.is_up() and users.sun.is_up())
    users.pair.site.assert_protected()
    users.pair.disconnect(Role.RESPONDER)
    records = users.records(before, 2)
    assert [record["Acct-Status-Type"] for record in records] == ["Start", "Stop"]
    assert int(records[-1]["Acct-Input-Packets"]) >= 3


@pytest.mark.parametrize("why", REFUSED)
def test_who_is_not_let_in_stays_out_and_our_operator_knows_why(users: Realm, why: str) -> None:
    number, caller = len(WELCOME) + list(REFUSED).index(why), REFUSED[why]
    child = f"net{number}"
    users.sun.swanctl("--initiate", "--child", child, "--timeout", "60", check=False)

    def is_told() -> bool:
        lines = users.moon.command("log").output.splitlines()
        return any(caller.code in line and f"eap:{caller.name}" in line for line in lines)

    eventually(f"{caller.code} to be told", is_told, seconds=30)
    assert not users.moon.is_up(number)
    assert caller.name not in {record["User-Name"] for record in users.server.records()}
    assert users.server.secret not in users.moon.log
    assert "guessed" not in users.moon.log


def test_the_end_of_the_daemon_is_the_end_of_its_sessions() -> None:
    with realm(Caller(group="near")) as opened:
        opened.pair.connect(Role.RESPONDER)
        opened.records(0, 1)
        opened.moon.stop()
        _, stop = opened.records(0, 2)
        assert stop["Acct-Status-Type"] == "Stop"
        assert stop["Acct-Terminate-Cause"] == "Admin-Reset"
