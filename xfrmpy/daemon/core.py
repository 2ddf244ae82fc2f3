"""The IKE core as the rest of the daemon has it: questions, and commands.

Whatever a command makes the core put out is done before it returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from xfrmpy.daemon.datapath_events import DatapathEvents
from xfrmpy.daemon.enforcement import Enforcement
from xfrmpy.datapath.interface import Datapath
from xfrmpy.ike.eap_authenticator import Verdict
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.outputs import AskAaa
from xfrmpy.ike.views import IkeSaView
from xfrmpy.ipsec.addresses import IpAddress, Path
from xfrmpy.ipsec.drift import Difference, Ends
from xfrmpy.policy.model import TunnelPolicy


class Core:
    """See the module. `settle` does what the core puts out."""

    def __init__(
        self,
        endpoint: IkeEndpoint,
        tunnels: dict[str, TunnelPolicy],
        enforcement: Enforcement,
        events: DatapathEvents,
        settle: Callable[[], None],
    ) -> None:
        self._endpoint = endpoint
        self._tunnels = tunnels
        self._enforcement = enforcement
        self._events = events
        self._settle = settle
        self._loop = asyncio.get_running_loop()

    # IKE SAs.

    def initiate(self, tunnel: str, path: Path, redirected_from: IpAddress | None = None) -> None:
        self._endpoint.initiate(tunnel, path, self._loop.time(), redirected_from)
        self._settle()

    def terminate(self, tunnel: str) -> None:
        self._endpoint.terminate(tunnel, self._loop.time())
        self._settle()

    def rekey_child_sas(self, tunnel: str) -> None:
        self._endpoint.rekey_child_sas(tunnel, self._loop.time())
        self._settle()

    def rekey_ike_sas(self, tunnel: str) -> None:
        self._endpoint.rekey_ike_sas(tunnel, self._loop.time())
        self._settle()

    def set_peer_addresses(self, tunnel: str, addresses: tuple[IpAddress, ...]) -> None:
        self._endpoint.set_peer_addresses(tunnel, addresses)

    def has_ike_sas(self, tunnel: str) -> bool:
        return self._endpoint.has_ike_sas(tunnel)

    def is_up(self, tunnel: str) -> bool:
        return self._endpoint.is_up(tunnel)

    def ike_sas(self, tunnel: str) -> tuple[IkeSaView, ...]:
        return self._endpoint.ike_sas(tunnel)

    def decide(self, asked: AskAaa, verdict: Verdict) -> None:
        self._endpoint.handle_verdict(asked, verdict, self._loop.time())
        self._settle()

    # Traps.

    def set_traps(self, tunnel: str, path: Path) -> None:
        self._enforcement.hold_packets(tunnel)
        self._endpoint.set_traps(tunnel, path)
        self._settle()

    def has_traps(self, tunnel: str) -> bool:
        return self._endpoint.has_traps(tunnel)

    def is_demanded(self, tunnel: str) -> bool:
        return self._endpoint.is_demanded(tunnel)

    def forget_demand(self, tunnel: str) -> None:
        self._endpoint.forget_demand(tunnel)

    # Changes of policy.

    def add_tunnel(self, policy: TunnelPolicy) -> None:
        """One more; its datapath may be one that none had until now."""
        self._tunnels[policy.name] = policy
        self._endpoint.add_tunnel(policy)
        self._events.listen()

    def remove_tunnel(self, tunnel: str) -> None:
        """It has no IKE SA any more, and gets none."""
        self._endpoint.remove_tunnel(tunnel, self._loop.time())
        self._settle()
        del self._tunnels[tunnel]

    def reconfigure(self, policy: TunnelPolicy) -> None:
        """What is up of a tunnel follows another policy, on the same datapath."""
        self._tunnels[policy.name] = policy
        self._endpoint.reconfigure(policy, self._loop.time())
        self._settle()

    def is_unsettled(self, tunnel: str) -> bool:
        return self._endpoint.is_unsettled(tunnel, self._loop.time())

    def is_recovering(self, tunnel: str) -> bool:
        return self._endpoint.is_recovering(tunnel, self._loop.time())

    # What others do to what is in force.

    def compare(self, datapath: Datapath) -> tuple[Difference, ...]:
        """How its SAs and policies differ from those wanted. Raises `DatapathError`."""
        return self._enforcement.compare(datapath)

    def recover(self, differences: Sequence[Difference]) -> None:
        """Have the core replace or move the SAs that are missing or were changed."""
        self._endpoint.recover(differences, self._loop.time())
        self._settle()

    def check_path(self, ends: Ends) -> None:
        self._endpoint.check_paths([ends], self._loop.time())
        self._settle()

    def reauthenticate_on(self, tunnel: str, path: Path) -> None:
        self._endpoint.reauthenticate_on(tunnel, path, self._loop.time())
        self._settle()
