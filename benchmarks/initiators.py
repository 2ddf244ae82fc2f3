"""Many initiators in one process: they bring up IKE SAs, each with a Child SA, and go on living.

`python -m benchmarks.initiators TERMS` (JSON) reads numbers from its standard input, one a line,
brings up so many more, and answers with a line: the seconds that it took. Then it answers what the
responder asks. Each initiator has a name of its own, and so a tunnel of its own at the responder.
Their datapaths are nobody's business here, so these are left out.
"""

from __future__ import annotations

import json
import secrets
import select
import socket
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from typing import TextIO

from xfrmpy.daemon.sockets import IkeSockets
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.outputs import ChildSaEstablished, SendDatagram, TunnelClosed
from xfrmpy.ipsec.addresses import IKE_PORT, IpAddress, Path, SocketAddress
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.model import ChildPolicy, DatapathChoice, SharedKey, TunnelPolicy
from xfrmpy.registry import ProtocolId

AT_ONCE = 4
"""Handshakes under way at any moment: fewer than the five half-open ones of one address at which
charon begins to ignore it."""

_SUBNET = 256
"""Addresses that each initiator has to itself, where they do not share one subnet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the initiators bring along, at most `count` of them. `subnets` holds one subnet for
    each, or, if `shared`, one for all."""

    address: str
    responder: str
    id: str
    responder_id: str
    psk: str
    ike: str
    esp: str
    subnets: str
    shared: bool
    remote: str
    count: int


def tunnel_policy(terms: Terms) -> TunnelPolicy:
    child = ChildPolicy(
        name="net",
        reqid=1,
        local=(TrafficSelector.parse(terms.subnets),),
        remote=(TrafficSelector.parse(terms.remote),),
        proposals=(parse_proposal(terms.esp, ProtocolId.ESP),),
    )
    return TunnelPolicy(
        name="net0",
        origin="benchmark",
        peers=(terms.responder,),
        local_id=Identity.parse(terms.id),
        remote_id=Identity.parse(terms.responder_id),
        shared_key=SharedKey(octets=terms.psk.encode(), origin="benchmark"),
        proposals=(parse_proposal(terms.ike, ProtocolId.IKE),),
        children=(child,),
        datapath=DatapathChoice.USERSPACE,  # Both rivals put ESP in UDP.
        dpd_seconds=0,
    )


def policy_of(terms: Terms, number: int) -> TunnelPolicy:
    """The policy of one initiator."""
    policy = tunnel_policy(terms)
    mine = TrafficSelector.parse(subnet_of(terms, number))
    return replace(
        policy,
        name=f"net{number}",
        local_id=Identity.parse(identity_of(terms, number)),
        children=(replace(policy.children[0], reqid=1 + number, local=(mine,)),),
    )


def identity_of(terms: Terms, number: int) -> str:
    return f"n{number}.{terms.id}"


def subnet_of(terms: Terms, number: int) -> str:
    if terms.shared:
        return terms.subnets
    first = IPv4Address(int(IPv4Address(terms.subnets.partition("/")[0])) + number * _SUBNET)
    return f"{first}/24"


def path_to(responder: str, address: str) -> Path:
    def at_port(text: str) -> SocketAddress:
        parsed: IpAddress = ip_address(text)
        return SocketAddress(parsed, IKE_PORT)

    return Path(local=at_port(address), remote=at_port(responder))


class Initiators:
    """See the module."""

    def __init__(self, terms: Terms, sockets: IkeSockets) -> None:
        self._terms = terms
        self._sockets = sockets
        self._path = path_to(terms.responder, terms.address)
        policies = [policy_of(terms, number) for number in range(terms.count)]
        self._endpoint = IkeEndpoint(policies, secrets.token_bytes)
        self._begun = 0
        self._established = 0

    def bring_up(self, count: int) -> float:
        """So many more; returns the seconds that it took. Raises `RuntimeError` if one fails."""
        begun_at = time.monotonic()
        wanted = self._begun + count
        while self._established < wanted:
            while self._begun < min(wanted, self._established + AT_ONCE):
                self._initiate()
            self._wait()
        return time.monotonic() - begun_at

    def live_on(self, until: TextIO) -> None:
        """Answer the responder until there is something to read."""
        while not self._wait(until):
            pass

    def _initiate(self) -> None:
        self._endpoint.initiate(f"net{self._begun}", self._path, time.monotonic())
        self._begun += 1
        self._settle()

    def _wait(self, until: TextIO | None = None) -> bool:
        """Until something has arrived or is due; whether it is in `until`."""
        due_at = self._endpoint.next_timeout()
        left = None if due_at is None else max(0.0, due_at - time.monotonic())
        sockets = self._sockets.all()
        wanted: list[socket.socket | TextIO] = [*sockets]
        if until is not None:
            wanted.append(until)
        ready = select.select(wanted, (), (), left)[0]
        for each in sockets:
            for data, path in self._sockets.read(each) if each in ready else ():
                self._endpoint.receive_datagram(data, path, time.monotonic())
                self._settle()
        self._endpoint.handle_timeout(time.monotonic())
        self._settle()
        return until in ready

    def _settle(self) -> None:
        while (output := self._endpoint.next_output()) is not None:
            match output:
                case SendDatagram():
                    self._sockets.send(output.data, output.path)
                case ChildSaEstablished():
                    self._established += 1
                case TunnelClosed():
                    raise RuntimeError(f"initiator {self._begun}: {output.failure}")


def main() -> None:
    terms = Terms(**json.loads(sys.argv[1]))
    with closing(IkeSockets()) as sockets:
        initiators = Initiators(terms, sockets)
        while line := sys.stdin.readline():
            print(initiators.bring_up(int(line)), flush=True)
            initiators.live_on(sys.stdin)


if __name__ == "__main__":
    main()
