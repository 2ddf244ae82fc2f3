"""When a forwarder gives one SA's numbers for packets that it has not looked at one by one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.datapath.userspace.test_forwarding import (
    REQID,
    gateway,
    gateway_of_interfaces,
    packet,
    policies,
    sa,
)
from xfrmpy.datapath.interface import Expired
from xfrmpy.datapath.userspace import forwarding
from xfrmpy.datapath.userspace.forwarding import Forwarder, InClear, Refused, Waits
from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY
from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.ipsec.sad import Lifetime, Mode, UdpEncapsulation

NATTED = UdpEncapsulation(4500, 61000)
HEAD = packet()[:28]
"""With the length of the whole, which is not there."""


def met(made: Forwarder, if_id: int = 0) -> Forwarder:
    """One that has seen a packet of the flow, and knows its way."""
    with suppress(Refused, Waits, InClear):
        made.protect(packet(), 0.0, if_id)
    return made


def test_a_run_takes_the_numbers_that_the_packets_would_have_taken() -> None:
    ours, twin = met(gateway(0)), gateway(0)
    for _ in range(6):
        twin.protect(packet(), 2.0)
    found = ours.run_of(HEAD, 5, 5 * len(packet()), 2.0)
    assert found is not None
    run, entry = found
    assert (run.spi, run.first, run.is_extended) == (entry.spi, 2, True)
    assert entry == sa(0)
    assert ours.sad.usage(entry.id, 3.0) == twin.sad.usage(entry.id, 3.0)
    assert ours.protect(packet(), 4.0)[0] == twin.protect(packet(), 4.0)[0]


@pytest.mark.parametrize(
    "head",
    [packet("10.1.0.9", "10.3.0.7")[:28], b"", b"\x45", b"\x00" * 28, b"\x41" + HEAD[1:]],
    ids=["no policy", "nothing", "stump", "version", "header size"],
)
def test_no_run_is_for_what_no_policy_protects(head: bytes) -> None:
    assert met(gateway(0)).run_of(head, 2, 100, 1.0) is None


CTR = EspSuite(cipher=next(c for c in CIPHERS if "ctr" in c.name), integrity=INTEGRITY[0], esn=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": Mode.TRANSPORT},
        {"cpi": 77},
        {"tfc": 1280},
        {"encapsulation": None},
        {
            "suite": CTR,
            "encryption_key": bytes(CTR.cipher.keymat),
            "integrity_key": bytes(INTEGRITY[0].key),
        },
        {
            "suite": AhSuite(integrity=INTEGRITY[0], esn=True),
            "encryption_key": b"",
            "integrity_key": bytes(INTEGRITY[0].key),
            "encapsulation": None,
        },
    ],
    ids=["transport", "compression", "padding", "raw", "no AEAD", "AH"],
)
def test_no_run_is_of_an_sa_that_does_more_than_seal(changes: dict[str, object]) -> None:
    made = Forwarder(bytes)
    made.add_sa(replace(sa(0), **changes), 0.0)  # type: ignore[arg-type]
    for policy in policies(0):
        made.add_policy(policy)
    assert met(made).run_of(HEAD, 2, 100, 1.0) is None


CHANGES: dict[str, Callable[[Forwarder], None]] = {
    "another SA": lambda made: made.add_sa(sa(0, serial=1), 0.0),
    "no SA": lambda made: made.sad.remove(sa(0).id),
    "an SA elsewhere": lambda made: made.sad.update(replace(sa(0), encapsulation=NATTED)),
    "another policy": lambda made: made.add_policy(replace(policies(0)[0], priority=1)),
    "no policy": lambda made: made.remove_policy(policies(0)[0]),
    "nothing": lambda made: [made.remove_all()].clear(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_a_way_is_looked_for_anew(change: str) -> None:
    made = met(gateway(0))
    assert made.run_of(HEAD, 2, 100, 1.0) is not None
    CHANGES[change](made)
    assert made.run_of(HEAD, 2, 100, 1.0) is None


def test_the_newest_sa_carries_a_flow_that_was_met_before() -> None:
    made = met(gateway(0))
    made.add_sa(sa(0, serial=1), 0.0)
    assert made.protect(packet(), 1.0)[1] == sa(0, serial=1)
    found = made.run_of(HEAD, 2, 100, 1.0)
    assert found is not None
    assert found[1] == sa(0, serial=1)


def test_not_every_flow_that_was_ever_met_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "MAX_PATHS", 3)
    made = gateway(0)
    for host in range(1, 20):
        made.protect(packet("10.1.0.9", f"10.2.0.{host}"), 1.0)
    assert len(made._paths) <= 3


def test_no_run_begins_at_a_hard_limit() -> None:
    made = met(gateway(0, lifetime=Lifetime(hard_seconds=10)))
    assert made.run_of(HEAD, 2, 100, 9.9) is not None
    assert made.run_of(HEAD, 2, 100, 10.0) is None


def test_a_soft_limit_by_time_is_told_with_a_run() -> None:
    made = met(gateway(0, lifetime=Lifetime(soft_seconds=10)))
    assert made.run_of(HEAD, 2, 100, 10.0) is not None
    assert list(made.events) == [Expired(sa=sa(0).id, reqid=REQID, hard=False)]


def test_a_run_is_of_the_interface_into_which_it_was_led() -> None:
    made = gateway_of_interfaces(0)
    for if_id in (1, 2):
        found = met(made, if_id).run_of(HEAD, 2, 100, 1.0, if_id)
        assert found is not None
        assert found[1].if_id == if_id
    assert met(made, 3).run_of(HEAD, 2, 100, 1.0, 3) is None


def test_a_tunnels_own_packets_are_no_run() -> None:
    made = gateway_of_interfaces(0)
    entry = replace(sa(0, serial=1), reqid=REQID + 1, if_id=1)
    for policy in policies(0, REQID + 1, remote=f"{entry.destination}/32", local="0.0.0.0/0"):
        made.add_policy(replace(policy, if_id=1))
    own = packet(str(entry.source), str(entry.destination))
    own = own[:20] + (4500).to_bytes(2, "big") * 2 + own[24:]
    with pytest.raises(Refused, match="routing-loop"):
        made.protect(own, 1.0, 1)
    assert made.run_of(own[:28], 2, 100, 1.0, 1) is None
