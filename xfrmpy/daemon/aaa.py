"""Who answers the core where policy leaves users to servers of RADIUS, and tells these of sessions.

Its connections follow the policy: a group that is another now gets others with the next question.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from xfrmpy.daemon.radius import Judgement, RadiusAccounts, RadiusLogins
from xfrmpy.eap.method import Outcome
from xfrmpy.ike.eap_authenticator import Accepted, Challenge, Refused, Verdict, failure_packet
from xfrmpy.ike.outputs import AskAaa
from xfrmpy.policy.model import RadiusGroup, RadiusServer, TunnelPolicy
from xfrmpy.radius.attributes import Attribute
from xfrmpy.radius.client import Server, Timing
from xfrmpy.radius.login import Grant, LoginFailed, Nas, ServersSilent

log = logging.getLogger(__name__)

C = TypeVar("C", bound=RadiusLogins | RadiusAccounts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A user whom a group of servers has let in, and by which gateway from where."""

    group: RadiusGroup
    nas: Nas
    grant: Grant


class Aaa:
    """See the module.

    `tell` is given the verdict on what was asked, after `ask` has returned. `on_admission` is told
    of each user whom a server lets in, under the session that was asked for.
    """

    def __init__(
        self,
        tell: Callable[[AskAaa, Verdict], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tell = tell
        self.on_admission: Callable[[bytes, Admitted], None] = _nobody
        self._logins = _OfGroups(RadiusLogins, lambda server: server.port)
        self._accounts = _OfGroups(RadiusAccounts, lambda server: server.accounting_port)

    @property
    def is_idle(self) -> bool:
        """Whether every record of a session is with a server, or lost."""
        return all(accounts.is_idle for accounts in self._accounts)

    def drops(self) -> dict[str, int]:
        """Datagrams that were no replies of a server, by the reason, and records that none took."""
        counts: dict[str, int] = {}
        for logins in self._logins:
            for reason, number in logins.refused.items():
                counts[f"radius-{reason}"] = counts.get(f"radius-{reason}", 0) + number
        lost = sum(accounts.lost for accounts in self._accounts)
        return counts | ({"radius-record-lost": lost} if lost else {})

    def ask(self, asked: AskAaa, policy: TunnelPolicy) -> None:
        """Have the servers of a tunnel decide on a packet of a peer's."""
        acceptance = policy.acceptance
        assert acceptance is not None
        assert acceptance.radius is not None
        group = acceptance.radius
        address = asked.path.local.address
        nas = Nas(
            identifier=group.nas_id or str(policy.identity_at(address)),
            our_address=address,
            called=str(address),
            calling=str(asked.path.remote.address),
        )

        def judge(judgement: Judgement) -> None:
            if isinstance(judgement, Grant):
                if judgement.message:
                    log.info("%s: RADIUS says to %s: %s", asked.tunnel, user, judgement.message)
                self.on_admission(asked.session, Admitted(group=group, nas=nas, grant=judgement))
            self._loop.call_soon(self._tell, asked, _verdict(asked, judgement))

        user = ascii(asked.user.decode(errors="replace"))
        self._logins.of(group).ask(asked.session, nas, asked.packet, judge)

    def account(self, group: RadiusGroup, record: tuple[Attribute, ...]) -> None:
        """Tell the servers of a session."""
        self._accounts.of(group).tell(record)

    def close(self) -> None:
        for connection in (*self._logins, *self._accounts):
            connection.close()


class _OfGroups(Generic[C]):
    """The connections to groups of servers, each made when it is wanted first, to their port of a
    kind; to a group that has changed another is made."""

    def __init__(
        self,
        connect: Callable[[Sequence[Server], Timing, str], C],
        port_of: Callable[[RadiusServer], int],
    ) -> None:
        self._connect = connect
        self._port_of = port_of
        self._made: dict[str, tuple[RadiusGroup, C]] = {}

    def __iter__(self) -> Iterator[C]:
        return (connection for _, connection in self._made.values())

    def of(self, group: RadiusGroup) -> C:
        known, connection = self._made.get(group.name, (None, None))
        if connection is None or known != group:
            if connection is not None:
                connection.close()
            servers = [
                Server(address=(str(s.address), self._port_of(s)), secret=s.secret.octets)
                for s in group.servers
            ]
            timing = Timing(wait_seconds=group.wait_seconds, tries=group.tries)
            connection = self._connect(servers, timing, group.name)
            self._made[group.name] = (group, connection)
        return connection


def _nobody(_session: bytes, _admitted: Admitted) -> None:
    """Nobody wants to know."""


def _verdict(asked: AskAaa, judgement: Judgement) -> Verdict:
    match judgement:
        case Grant():
            seconds = judgement.session_seconds
            return Accepted(
                packet=judgement.eap,
                outcome=Outcome(
                    identity=judgement.user, method=judgement.method, msk=judgement.msk
                ),
                groups=judgement.groups,
                session_seconds=None if seconds is None else float(seconds),
            )
        case LoginFailed():
            return Refused(
                packet=failure_packet(asked.packet),
                reason=str(judgement),
                user=asked.user,
                is_unreachable=isinstance(judgement, ServersSilent),
            )
        case _:
            return Challenge(packet=judgement)
