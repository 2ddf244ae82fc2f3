"""What accounting servers are told of the sessions of users, from looks at their IKE SAs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest

from tests.daemon.test_totals import Engine, entry
from xfrmpy.daemon import sessions
from xfrmpy.daemon.aaa import Admitted
from xfrmpy.daemon.sessions import Sessions
from xfrmpy.eap.packet import EapType
from xfrmpy.failures import Failure
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ike.outputs import ChildSaEstablished, IkeSaEstablished, TunnelClosed
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.views import ChildSaView, IkeSaView
from xfrmpy.ipsec.addresses import Path, SocketAddress
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.sad import Direction
from xfrmpy.policy.model import RadiusGroup, RadiusServer, SharedKey
from xfrmpy.radius.attributes import Attribute, Kind, values_of
from xfrmpy.radius.login import Grant, Nas

GROUP = RadiusGroup(
    name="corp",
    servers=(
        RadiusServer(
            address=ip_address("192.0.2.10"),
            port=1812,
            accounting_port=1813,
            secret=SharedKey(octets=b"x" * 16, origin="secret"),
        ),
    ),
    accounting=True,
)
NAS = Nas(identifier="gw", our_address=ip_address("192.0.2.1"))
PATH = Path(
    local=SocketAddress(ip_address("192.0.2.1"), 4500),
    remote=SocketAddress(ip_address("192.0.2.2"), 4500),
)
NO_NAT = NatSituation(ours=False, theirs=False, forced=False)
START, STOP, INTERIM = 1, 2, 3


def admitted(user: bytes = b"alice", group: RadiusGroup = GROUP, interim: int = 0) -> Admitted:
    grant = Grant(
        user=user,
        eap=b"",
        method=EapType.MSCHAPV2,
        classes=(b"staff",),
        address=IPv4Address("10.9.0.7"),
        interim_seconds=interim or None,
    )
    return Admitted(group=group, nas=NAS, grant=grant)


class Desk:
    """The IKE SAs of the tunnel `home`, and what was told of them."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.sas: dict[str, IkeSaView] = {}
        self.told: list[tuple[Attribute, ...]] = []
        self.sessions = Sessions(
            lambda tunnel: tuple(self.sas.values()) if tunnel == "home" else (),
            self.engine.totals,
            lambda _, record: self.told.append(record),
        )

    def establish(self, user: str, *spis: int, since: float = 50.0, spi_r: bytes = b"r") -> None:
        child = ChildSaView(
            child="lan",
            local=(),
            remote=(),
            entries=tuple(entry(spi) for spi in spis),
            established_at=since,
            rekey_at=None,
        )
        self.sas[user] = IkeSaView(
            state=IkeSaState.ESTABLISHED,
            path=PATH,
            is_initiator=False,
            spi_i=b"i",
            spi_r=spi_r,
            suite="",
            ppk_id="",
            ppk_exchange="",
            local_id=None,
            remote_id=Identity.of_eap(user.encode()),
            nat=NO_NAT,
            established_at=since,
            up_since=since,
            rekey_at=None,
            reauth_at=None,
            children=(child,),
        )
        for spi in spis:
            self.engine.add(spi)

    def kinds(self) -> list[int]:
        return [values_of(each, Kind.ACCT_STATUS_TYPE)[0][3] for each in self.told]

    def number(self, kind: Kind) -> int:
        """Of the newest record."""
        return int.from_bytes(values_of(self.told[-1], kind)[0], "big")


def at_a_desk(play: Callable[[Desk], None]) -> None:
    async def run() -> None:
        desk = Desk()
        try:
            play(desk)
        finally:
            desk.sessions.stop()
            desk.engine.datapath.close()

    asyncio.run(run())


def test_a_session_is_from_its_ike_sa_to_the_end_of_the_last_that_replaced_it() -> None:
    def play(desk: Desk) -> None:
        desk.sessions.admit(b"r", admitted())
        desk.establish("alice", 0x1001)
        desk.sessions.look("home")
        desk.engine.carry(0x1001, 1000)
        desk.establish("alice", 0x1002, spi_r=b"another")  # rekeyed, both it and its child
        desk.sessions.look("home")
        desk.engine.carry(0x1001, 100)
        desk.engine.remove(0x1001)
        desk.engine.carry(0x1002, 10)
        assert desk.kinds() == [START]
        desk.sas.clear()
        desk.engine.remove(0x1002)
        desk.sessions.look("home")
        assert desk.kinds() == [START, STOP]
        assert desk.number(Kind.ACCT_INPUT_OCTETS) == 1110
        assert desk.number(Kind.ACCT_INPUT_PACKETS) == 3
        assert desk.number(Kind.ACCT_OUTPUT_OCTETS) == 0
        for record in desk.told:
            assert values_of(record, Kind.CLASS) == (b"staff",)
            assert values_of(record, Kind.USER_NAME) == (b"alice",)
        ids = {values_of(record, Kind.ACCT_SESSION_ID) for record in desk.told}
        assert len(ids) == 1
        desk.sessions.look("home")
        assert len(desk.told) == 2

    at_a_desk(play)


def test_two_users_of_a_tunnel_have_a_session_each() -> None:
    def play(desk: Desk) -> None:
        for user, spi, spi_r in (("alice", 0x1001, b"a"), ("bob", 0x1002, b"b")):
            desk.sessions.admit(spi_r, admitted(user.encode()))
            desk.establish(user, spi, spi_r=spi_r)
        desk.sessions.look("home")
        desk.engine.carry(0x1001, 7)
        desk.engine.carry(0x1002, 8)
        del desk.sas["alice"]
        desk.sessions.look("home")
        assert desk.kinds() == [START, START, STOP]
        assert values_of(desk.told[-1], Kind.USER_NAME) == (b"alice",)
        assert desk.number(Kind.ACCT_INPUT_OCTETS) == 7

    at_a_desk(play)


def test_who_was_let_in_and_did_not_come_has_no_session() -> None:
    """That a server said yes is no AUTH of the peer's."""

    def play(desk: Desk) -> None:
        desk.sessions.admit(b"r", admitted())
        desk.establish("alice", 0x1001)
        desk.sas["alice"] = replace(desk.sas["alice"], state=IkeSaState.DELETING)
        desk.sessions.look("home")
        assert desk.told == []

    at_a_desk(play)


def test_nothing_is_told_where_policy_has_no_accounting() -> None:
    def play(desk: Desk) -> None:
        desk.sessions.admit(b"r", admitted(group=replace(GROUP, accounting=False)))
        desk.establish("alice", 0x1001)
        desk.sessions.look("home")
        desk.sas.clear()
        desk.sessions.look("home")
        assert desk.told == []

    at_a_desk(play)


@pytest.mark.parametrize(
    ("code", "cause"), [("", 6), ("XF2011", 1), ("XF2001", 3), ("XF2017", 4), ("XF2008", 9)]
)
def test_the_cause_of_the_end_is_that_of_the_ike_sa(code: str, cause: int) -> None:
    failure = Failure(code=code, summary="it ended") if code else None
    closed = TunnelClosed(tunnel="home", was_established=True, is_initiator=False, failure=failure)
    made = IkeSaEstablished(
        tunnel="home", path=PATH, suite="", remote_id="alice", is_initiator=False
    )

    async def run() -> None:
        desk = Desk()
        desk.sessions.admit(b"r", admitted())
        desk.establish("alice", 0x1001)
        desk.sessions.hear(made)
        assert desk.told == []  # what else belongs to it is done first
        await asyncio.sleep(0)
        assert desk.kinds() == [START]
        desk.sessions.hear(closed)
        desk.sas.clear()
        await asyncio.sleep(0)
        assert desk.kinds() == [START, STOP]
        assert desk.number(Kind.ACCT_TERMINATE_CAUSE) == cause
        desk.engine.datapath.close()

    asyncio.run(run())


def test_a_session_is_told_of_meanwhile_as_often_as_the_server_wants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "MIN_INTERIM_SECONDS", 0.01)

    async def run() -> None:
        desk = Desk()
        group = replace(GROUP, interim_seconds=0.01)
        desk.sessions.admit(b"r", admitted(group=group))
        desk.establish("alice", 0x1001)
        desk.sessions.look("home")
        desk.engine.carry(0x1001, 5)
        async with asyncio.timeout(60):
            while desk.kinds().count(INTERIM) < 2:
                await asyncio.sleep(0.01)
        assert desk.number(Kind.ACCT_INPUT_OCTETS) == 5
        desk.sas.clear()
        desk.sessions.look("home")
        told = len(desk.told)
        await asyncio.sleep(0.05)
        assert len(desk.told) == told
        assert desk.kinds()[-1] == STOP
        desk.engine.datapath.close()

    asyncio.run(run())


def test_only_so_many_are_remembered_who_did_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_ADMITTED", 2)

    def play(desk: Desk) -> None:
        for spi_r in (b"1", b"2", b"3"):
            desk.sessions.admit(spi_r, admitted())
        for spi_r in (b"1", b"3"):
            desk.establish(spi_r.decode(), 0x1000 + spi_r[0], spi_r=spi_r)
        desk.sessions.look("home")
        assert desk.kinds() == [START]

    at_a_desk(play)


def test_a_report_that_changes_no_session_costs_no_look() -> None:
    looked: list[str] = []

    async def run() -> None:
        desk = Desk()
        watched = Sessions(
            lambda tunnel: looked.append(tunnel) or (),  # type: ignore[func-returns-value]
            desk.engine.totals,
            lambda *_: None,
        )
        report = ChildSaEstablished(tunnel="home", child="lan", spi_in=1, spi_out=2, suite="")
        watched.hear(report)
        await asyncio.sleep(0)
        assert looked == []
        watched.admit(b"r", admitted())
        watched.hear(report)
        await asyncio.sleep(0)
        assert looked == ["home"]
        desk.engine.datapath.close()

    asyncio.run(run())


def test_the_direction_in_is_from_the_user_to_us() -> None:
    """RFC 2866 section 5.3: Acct-Input-Octets "have been received from the port"."""
    assert entry(0x1001).direction is Direction.IN
