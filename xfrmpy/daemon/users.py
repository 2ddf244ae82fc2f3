"""Users who are known elsewhere: what speaks RADIUS, if a policy leaves users to such servers.

It is imported by no daemon whose policy does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from xfrmpy.daemon.events import Report
from xfrmpy.daemon.totals import Totals
from xfrmpy.ike.eap_authenticator import Verdict
from xfrmpy.ike.outputs import AskAaa
from xfrmpy.ike.views import IkeSaView
from xfrmpy.policy.model import TunnelPolicy

if TYPE_CHECKING:
    from xfrmpy.daemon.aaa import Aaa
    from xfrmpy.daemon.sessions import Sessions

FAREWELL_SECONDS = 2.0
"""How long a daemon that ends waits for the servers to hear of the sessions that end with it."""

_AGAIN_SECONDS = 0.02


class Users:
    """See the module. `tell` is given the verdict on what was asked, after `ask` has returned."""

    def __init__(
        self,
        policy_of: Callable[[str], TunnelPolicy],
        ike_sas: Callable[[str], tuple[IkeSaView, ...]],
        totals: Totals,
        tell: Callable[[AskAaa, Verdict], None],
    ) -> None:
        self._policy_of = policy_of
        self._ike_sas = ike_sas
        self._totals = totals
        self._tell = tell
        self._aaa: Aaa | None = None
        self._sessions: Sessions | None = None

    def prepare(self, policies: Iterable[TunnelPolicy]) -> None:
        """Import what they take before there is traffic that would have to wait for it."""
        accepted = (policy.acceptance for policy in policies)
        if any(each is not None and each.radius is not None for each in accepted):
            self._servers()

    def ask(self, asked: AskAaa) -> None:
        """Have the servers of a tunnel decide on a packet of a peer's."""
        self._servers().ask(asked, self._policy_of(asked.tunnel))

    def hear(self, report: Report) -> None:
        """What has happened may be the begin of a session, or its end."""
        if self._sessions is not None:
            self._sessions.hear(report)

    def drops(self) -> Mapping[str, int]:
        return {} if self._aaa is None else self._aaa.drops()

    async def stop(self) -> None:
        """The servers hear of what has ended before."""
        if self._aaa is None or self._sessions is None:
            return
        self._sessions.stop()
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                while not self._aaa.is_idle:
                    await asyncio.sleep(_AGAIN_SECONDS)
        except TimeoutError:
            pass
        self._aaa.close()

    def _servers(self) -> Aaa:
        if self._aaa is None:
            from xfrmpy.daemon.aaa import Aaa  # noqa: PLC0415
            from xfrmpy.daemon.sessions import Sessions  # noqa: PLC0415

            self._aaa = Aaa(self._tell)
            self._sessions = Sessions(self._ike_sas, self._totals, self._aaa.account)
            self._aaa.on_admission = self._sessions.admit
        return self._aaa
