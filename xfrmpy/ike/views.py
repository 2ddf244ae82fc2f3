"""What an IKE SA and its Child SAs are at the moment, for who asks: nothing can be done with it."""

from __future__ import annotations

from dataclasses import dataclass

from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.addresses import Path
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.sad import SadEntry
from xfrmpy.ipsec.selectors import TrafficSelector


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSaView:
    """A Child SA in force, for who asks; `entries` are inbound and outbound.

    `rekey_at` is None if nothing of time asks for it.
    """

    child: str
    local: tuple[TrafficSelector, ...]
    remote: tuple[TrafficSelector, ...]
    entries: tuple[SadEntry, ...]
    established_at: float
    rekey_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSaView:
    """An IKE SA, for who asks. Suite and identities are empty before they are known. `ppk_id` names
    the post-quantum preshared key in its keys, if there is one, and `ppk_exchange` the exchange
    from which on it is in them, IKE_INTERMEDIATE (RFC 9867) or IKE_AUTH (RFC 8784); empty for a
    resumed one, whose keys have it from the beginning.

    `up_since` is when the first of those that it has replaced was established.
    """

    state: IkeSaState
    path: Path
    is_initiator: bool
    spi_i: bytes
    spi_r: bytes
    suite: str
    ppk_id: str
    ppk_exchange: str
    local_id: Identity | None
    remote_id: Identity | None
    nat: NatSituation
    established_at: float
    up_since: float
    rekey_at: float | None
    reauth_at: float | None
    children: tuple[ChildSaView, ...]


def view(sa: IkeSa) -> IkeSaView:
    return IkeSaView(
        state=sa.state,
        path=sa.path,
        is_initiator=sa.is_initiator,
        spi_i=sa.channel.spi_i,
        spi_r=sa.channel.spi_r,
        suite="" if sa.suite is None else str(sa.suite),
        ppk_id=sa.ppk_id,
        ppk_exchange=sa.ppk_exchange.name if sa.ppk_exchange and sa.ppk_id else "",
        local_id=sa.local_id,
        remote_id=sa.remote_id,
        nat=sa.nat,
        established_at=sa.established_at,
        up_since=sa.up_since,
        rekey_at=sa.rekey_at,
        reauth_at=sa.reauth_at,
        children=tuple(
            ChildSaView(
                child=child.policy.name,
                local=child.local,
                remote=child.remote,
                entries=child.entries,
                established_at=child.established_at,
                rekey_at=child.rekey_at,
            )
            for child in sa.children
            if child.sends
        ),
    )
