"""Where tunnels can have no queues of their own, and where nobody else may have one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from integration.contract.sites import run
from integration.userspace.test_queues import (
    PREFIXES,
    Site,
    assert_together,
    assert_told_apart,
    findings,
    lead_all,
    routed_namespace,
)
from xfrmpy.datapath import nftables
from xfrmpy.datapath.interface import DatapathError, Realm
from xfrmpy.datapath.userspace.tun import DEVICE, Tun, queue_name
from xfrmpy.ipsec.drift import Finding

pytestmark = pytest.mark.native


@pytest.fixture
def namespace() -> Iterator[str]:
    with routed_namespace() as name:
        yield name


def test_where_there_can_be_no_rules_all_share_one(
    namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a kernel that has no chains at the egress of a device: it refuses the hook."""
    monkeypatch.setattr(nftables, "EGRESS", 7)
    with closing(Site(namespace, tmp_path, 1)) as site:
        lead_all(site)
        assert_together(site)
        # It is told that something is amiss, and why.
        assert Realm.WAYS in site.datapath.read_changes()
        assert findings(site) == [Finding.QUEUES_MISSING]
        (amiss,) = site.datapath.find_amiss()
        with pytest.raises(DatapathError, match="nf_tables"):
            site.datapath.mend(amiss)
        assert_together(site)
        assert findings(site) == [Finding.QUEUES_MISSING]
        # Once there can be some, they are there.
        monkeypatch.undo()
        site.datapath.mend(amiss)
        assert_told_apart(site)
        assert findings(site) == []


def test_one_tunnel_wants_no_queue_and_misses_none(
    namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nftables, "EGRESS", 7)
    with closing(Site(namespace, tmp_path, 1)) as site:
        lead_all(site)
        assert findings(site) == [Finding.QUEUES_MISSING]
        for reqid, prefix in enumerate(PREFIXES[1:], 2):
            site.forget(prefix, reqid=reqid)
        assert findings(site) == []


def test_a_worker_that_has_no_device_to_give_is_asked_again(namespace: str, tmp_path: Path) -> None:
    """Somebody else has a device of that name."""
    pair = ("type", "veth", "peer", "name", "other")
    run("ip", "-n", namespace, "link", "add", queue_name(1), *pair)
    with closing(Site(namespace, tmp_path, 1)) as site:
        lead_all(site)
        assert site.queues == [queue_name(1)]
        (amiss,) = site.datapath.find_amiss()
        with pytest.raises(DatapathError, match=queue_name(1)):
            site.datapath.mend(amiss)
        run("ip", "-n", namespace, "link", "del", queue_name(1))
        site.datapath.mend(amiss)
        assert_told_apart(site)


def test_a_device_that_was_made_with_one_queue_has_one(namespace: str, tmp_path: Path) -> None:
    run("ip", "-n", namespace, "tuntap", "add", DEVICE, "mode", "tun")
    with closing(Site(namespace, tmp_path, 1)) as site:
        lead_all(site)
        assert_told_apart(site)


def test_whoever_has_the_device_has_it_alone(namespace: str) -> None:
    del namespace
    with closing(Tun.of_all_tunnels()), pytest.raises(DatapathError, match="another process"):
        Tun.of_all_tunnels()
