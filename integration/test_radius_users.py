"""Users of strongSwan at our gateway, whom FreeRADIUS knows: who comes in where, and what is told
of their sessions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
PASSWORD = "correct horse: battery"
REPLIES = {"carol": ('Class := "staff"', "Framed-IP-Address := 10.9.0.7")}


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

    def attempt(self, number: int = 0) -> None:
        """Have sun call, and not come in."""
        child = f"net{number}"
        self.sun.swanctl("--initiate", "--child", child, "--timeout", "30", check=False)


def carol(method: str, **other: str) -> User:
    return User(**{"name": "carol", "password": PASSWORD, "method": method, **other})


@contextmanager
def realm(
    *callers: User, tell: str = "", servers: tuple[str, ...] = ("127.0.0.1",), **eap: Any
) -> Iterator[Realm]:
    """`eap` are further keys of who may call, `tell` is the secret that moon has for the server."""
    with Site() as site:
        key = make_key(site.directory, "ecdsa256", "moon")
        tunnels = [
            site.network.tunnel(number, acceptance={"radius": "corp", **eap}).called_by(
                user, key, is_ours=False
            )
            for number, user in enumerate(callers)
        ]
        secret = site.directory / "radius.secret"
        secret.touch(0o600)
        server = Freeradius(
            site.network.moon.command(),
            site.directory / "freeradius",
            users={"carol": PASSWORD},
            replies=REPLIES,
        )
        try:
            secret.write_text(tell or server.secret)
            site.policy_files["radius.yaml"] = radius(secret, servers)
            theirs = site.strongswan(site.network.sun, *(t.mirrored() for t in tunnels))
            ours = site.xfrmpy(site.network.moon, *tunnels)
            yield Realm(Pair(site, ours, theirs), server)
        finally:
            server.stop()


def radius(secret: Path, servers: Sequence[str]) -> str:
    group = {
        "servers": list(servers),
        "secret": f"file:{secret}",
        "timeout": "1s",
        "accounting": "yes",
        "nas_id": "gw.example.net",
    }
    return yaml.safe_dump({"radius": {"corp": group}})


@pytest.fixture(scope="module")
def users() -> Iterator[Realm]:
    """The first of two servers is not there."""
    servers = ("127.0.0.9", "127.0.0.1")
    with realm(*map(carol, METHODS), servers=servers, groups=["staff", "admins"]) as opened:
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


@pytest.mark.parametrize("user", [carol("mschapv2", password="guessed"), carol("md5", name="eve")])
def test_who_is_none_of_the_server_s_stays_out(user: User) -> None:
    with realm(user) as opened:
        opened.attempt()
        eventually("the refusal to be told", lambda: "XF205" in opened.moon.log)
        assert not opened.moon.is_up()
        assert opened.server.records() == []
        assert user.password not in opened.moon.log


def test_a_user_of_another_group_stays_out() -> None:
    with realm(carol("mschapv2"), groups=["admins"]) as opened:
        opened.attempt()
        eventually("the refusal to be told", lambda: "XF2053" in opened.moon.log)
        assert "staff" in opened.moon.log
        assert not opened.moon.is_up()
        assert opened.server.records() == []


def test_a_server_with_another_secret_lets_nobody_in() -> None:
    with realm(carol("mschapv2"), tell="another secret than the server's") as opened:
        opened.attempt()
        eventually("the refusal to be told", lambda: "XF2055" in opened.moon.log)
        assert not opened.moon.is_up()
        assert "invalid Message-Authenticator" in opened.server.words
        assert opened.server.secret not in opened.moon.log


def test_the_end_of_the_daemon_is_the_end_of_its_sessions() -> None:
    with realm(carol("mschapv2")) as opened:
        opened.pair.connect(Role.RESPONDER)
        opened.records(0, 1)
        opened.moon.stop()
        _, stop = opened.records(0, 2)
        assert stop["Acct-Status-Type"] == "Stop"
        assert stop["Acct-Terminate-Cause"] == "Admin-Reset"
