"""Users whom FreeRADIUS knows: who comes in, with which keys, and whose word does not count."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pyrad.packet import AccessAccept, AuthPacket

from integration.lab.freeradius import Freeradius
from integration.lab.process import PATIENCE
from xfrmpy.daemon.radius import Judgement, RadiusAccounts, RadiusLogins
from xfrmpy.eap.gtc import GtcPeer
from xfrmpy.eap.md5 import Md5Peer
from xfrmpy.eap.mschapv2 import Mschapv2Peer
from xfrmpy.eap.packet import EapCode, EapPacket, EapType
from xfrmpy.eap.peer import EapPeer, PeerState
from xfrmpy.radius.accounting import (
    Cause,
    Session,
    Traffic,
    interim_record,
    start_record,
    stop_record,
)
from xfrmpy.radius.client import Server, Timing
from xfrmpy.radius.login import Grant, LoginFailed, Nas

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("gateway")]

USERS = {"alice": "correct horse", "bob@example.net": 'battery "staple"'}
REPLIES = {
    "alice": (
        'Class := "staff"',
        "Framed-IP-Address := 10.9.0.7",
        "Framed-IPv6-Address := 2001:db8:9::7",
        "Session-Timeout := 3600",
        "Termination-Action := RADIUS-Request",
        'Reply-Message := "welcome"',
    )
}
NAS = Nas(
    identifier="gw.example.net",
    our_address=ip_address("192.0.2.1"),
    called="192.0.2.1",
    calling="192.0.2.2",
)
PATIENT = Timing(wait_seconds=2 * PATIENCE, tries=3)
QUICK = Timing(wait_seconds=0.2 * PATIENCE, tries=2)

Methods = dict[EapType, Callable[[str, str], Any]]
METHODS: Methods = {
    EapType.MD5_CHALLENGE: lambda _, password: partial(Md5Peer, password),
    EapType.MSCHAPV2: lambda user, password: partial(
        Mschapv2Peer, user.encode(), password, secrets.token_bytes
    ),
    EapType.GTC: lambda _, password: partial(GtcPeer, password),
}

T = TypeVar("T")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Freeradius]:
    with closing_server(tmp_path / "radius", "127.0.0.1") as started:
        yield started


@contextmanager
def closing_server(directory: Path, address: str) -> Iterator[Freeradius]:
    started = Freeradius((), directory, users=USERS, replies=REPLIES, address=address)
    try:
        yield started
    finally:
        started.stop()


def at(server: Freeradius, secret: str = "") -> Server:
    return Server(address=(server.address, server.port), secret=(secret or server.secret).encode())


def peer(kind: EapType, user: str, password: str) -> EapPeer:
    return EapPeer(user.encode(), [METHODS[kind](user, password)])


@dataclass(slots=True)
class Attempt:
    """What became of a login: its grant or the reason for none, and what was not believed."""

    peer: EapPeer
    judged: Judgement = b""
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def grant(self) -> Grant:
        assert isinstance(self.judged, Grant), self.judged
        return self.judged

    @property
    def failure(self) -> str:
        assert isinstance(self.judged, LoginFailed), self.judged
        return str(self.judged)


async def log_in(logins: RadiusLogins, ours: EapPeer) -> Attempt:
    """Play the peer against the servers until they have judged."""
    attempt = Attempt(ours)
    request = EapPacket(code=EapCode.REQUEST, identifier=7, type=EapType.IDENTITY).encode()
    loop = asyncio.get_running_loop()
    while True:
        response = ours.handle(request)
        assert response is not None
        answer: asyncio.Future[Judgement] = loop.create_future()
        logins.ask(b"an IKE SA", NAS, response, answer.set_result)
        attempt.judged = await asyncio.wait_for(answer, 60 * PATIENCE)
        attempt.refused = logins.refused
        if isinstance(attempt.judged, Grant):
            assert ours.handle(attempt.judged.eap) is None
        if not isinstance(attempt.judged, bytes):
            return attempt
        request = attempt.judged


def attempt(*servers: Server, ours: EapPeer, timing: Timing = PATIENT) -> Attempt:
    async def run() -> Attempt:
        with closing(RadiusLogins(servers, timing, "corp")) as logins:
            return await log_in(logins, ours)

    return asyncio.run(run())


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
def test_a_user_of_freeradius_comes_in_by_each_method(
    server: Freeradius, kind: EapType, user: str
) -> None:
    done = attempt(at(server), ours=peer(kind, user, USERS[user]))
    assert done.peer.state is PeerState.SUCCEEDED
    assert done.grant.user.decode() == user
    assert done.refused == {}


def test_the_keys_of_a_method_are_the_same_at_the_user_and_from_the_server(
    server: Freeradius,
) -> None:
    done = attempt(at(server), ours=peer(EapType.MSCHAPV2, "alice", USERS["alice"]))
    assert done.peer.outcome is not None
    assert len(done.grant.msk) == 64
    assert done.grant.msk == done.peer.outcome.msk
    assert done.grant.msk.hex() not in repr(done.grant)


def test_a_method_without_keys_grants_none(server: Freeradius) -> None:
    done = attempt(at(server), ours=peer(EapType.MD5_CHALLENGE, "alice", USERS["alice"]))
    assert done.grant.msk == b""


def test_what_the_server_gives_to_a_user_is_understood(server: Freeradius) -> None:
    given = attempt(at(server), ours=peer(EapType.MSCHAPV2, "alice", USERS["alice"])).grant
    assert given.groups == ("staff",)
    assert given.address == ip_address("10.9.0.7")
    assert given.address6 == ip_address("2001:db8:9::7")
    assert (given.session_seconds, given.reauthenticates) == (3600, True)
    assert given.message == "welcome"


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("user", ["alice", "mallory"])
def test_a_wrong_password_and_an_unknown_user_are_refused(
    server: Freeradius, kind: EapType, user: str
) -> None:
    done = attempt(at(server), ours=peer(kind, user, "guessed"))
    assert done.failure.startswith("the server refuses the user")
    assert done.peer.state is not PeerState.SUCCEEDED


def test_a_server_that_knows_another_secret_lets_nobody_in(server: Freeradius) -> None:
    ours = peer(EapType.MSCHAPV2, "alice", USERS["alice"])
    done = attempt(at(server, secret="another"), ours=ours, timing=QUICK)
    assert done.failure == "no answer, the last one asked was 127.0.0.1:1812"
    assert "invalid Message-Authenticator" in server.words


def test_the_next_server_answers_where_the_first_does_not(server: Freeradius) -> None:
    absent = Server(address=("127.0.0.9", 1812), secret=b"any")
    ours = peer(EapType.MSCHAPV2, "alice", USERS["alice"])
    done = attempt(absent, at(server), ours=ours, timing=QUICK)
    assert done.grant.groups == ("staff",)


def test_forged_replies_are_dropped_counted_and_change_nothing(server: Freeradius) -> None:
    """Each comes before the true answer, to which the request was led by a proxy."""
    with forger(server) as address:
        proxied = Server(address=address, secret=server.secret.encode())
        done = attempt(proxied, ours=peer(EapType.MSCHAPV2, "alice", USERS["alice"]))
    assert done.grant.groups == ("staff",)
    rounds = done.refused["not-asked"]
    assert rounds == 3  # Identity, the response to the challenge, the acknowledgement
    assert done.refused == dict.fromkeys(
        (
            "not-asked",
            "not-from-the-server",
            "not-genuine",
            "without-message-authenticator",
            "with-proxy-state",
        ),
        rounds,
    )


@contextmanager
def forger(server: Freeradius) -> Iterator[tuple[str, int]]:
    """Someone on the way, who answers each request in his own ways before the server does.

    What has neither a Message-Authenticator nor a wrong Response Authenticator he may have by the
    collision of CVE-2024-3596; here he is given the secret for it.
    """
    front, back, elsewhere = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(3))
    front.bind(("127.0.0.2", 0))
    back.connect((server.address, server.port))
    ended = threading.Event()

    def reply(octets: bytes, secret: str, *, signed: bool, **more: Any) -> bytes:
        request = AuthPacket(packet=octets, secret=secret.encode())
        made = request.CreateReply(message_authenticator=signed)
        made.code = AccessAccept
        made[79] = [EapPacket(code=EapCode.SUCCESS, identifier=octets[26]).encode()]
        for kind, value in more.items():
            made[int(kind.removeprefix("of_"))] = [value]
        done: bytes = made.ReplyPacket()
        return done

    def relay() -> None:
        while True:
            octets, asker = front.recvfrom(4096)
            if ended.is_set():
                return
            for forged in (
                reply(octets, "guessed", signed=True),
                reply(octets, server.secret, signed=False),
                reply(octets, server.secret, signed=True, of_33=b"collision"),
                octets[:1] + bytes([octets[1] ^ 1]) + octets[2:],
            ):
                front.sendto(forged, asker)
            back.send(octets)
            true = back.recv(4096)
            elsewhere.sendto(true, asker)
            front.sendto(true, asker)

    thread = threading.Thread(target=relay)
    with front, back, elsewhere:
        back.settimeout(60 * PATIENCE)
        thread.start()
        try:
            yield front.getsockname()
        finally:
            ended.set()
            elsewhere.sendto(b"", front.getsockname())
            thread.join()


ALICE = Session(
    id="5f0c-1",
    user=b"alice",
    nas=NAS.attributes,
    classes=(b"staff", b"\x00\xff"),
    address=None,
)
MUCH = Traffic(octets_in=5 * 2**32 + 17, octets_out=99, packets_in=4, packets_out=3)


def test_a_session_is_accounted_from_its_start_to_its_end(server: Freeradius) -> None:
    async def run() -> None:
        with closing(accounts(server, PATIENT)) as told:
            told.tell(start_record(ALICE, at=1_700_000_000))
            told.tell(interim_record(ALICE, 1_700_000_060, 60, Traffic(octets_in=1)))
            told.tell(stop_record(ALICE, 1_700_000_120, 120, MUCH, Cause.SESSION_TIMEOUT))
            await until(lambda: told.is_idle)
            assert told.lost == 0

    asyncio.run(run())
    records = {record["Acct-Status-Type"]: record for record in server.records()}
    assert records.keys() == {"Start", "Interim-Update", "Stop"}
    for record in records.values():
        assert record["User-Name"] == "alice"
        assert record["Acct-Session-Id"] == "5f0c-1"
        assert record["NAS-Identifier"] == "gw.example.net"
        assert record["Calling-Station-Id"] == "192.0.2.2"
        assert record["Class"] == "0x00ff"  # the last of two
    stop = records["Stop"]
    assert (stop["Acct-Input-Gigawords"], stop["Acct-Input-Octets"]) == ("5", "17")
    assert (stop["Acct-Output-Octets"], stop["Acct-Output-Packets"]) == ("99", "3")
    assert stop["Acct-Session-Time"] == "120"
    assert stop["Acct-Terminate-Cause"] == "Session-Timeout"


def test_a_record_that_waited_for_its_server_says_how_long(server: Freeradius) -> None:
    server.stop()

    async def run() -> None:
        with closing(accounts(server, Timing(wait_seconds=1.2, tries=20))) as told:
            told.tell(stop_record(ALICE, 1_700_000_000, 1, MUCH, Cause.USER_REQUEST))
            await asyncio.sleep(0)
            await asyncio.to_thread(server.start)
            await until(lambda: told.is_idle)

    asyncio.run(run())
    (record,) = server.records()
    assert int(record["Acct-Delay-Time"]) >= 1


def accounts(server: Freeradius, timing: Timing) -> RadiusAccounts:
    where = Server(address=(server.address, server.accounting_port), secret=server.secret.encode())
    return RadiusAccounts([where], timing, "corp")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60 * PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)
