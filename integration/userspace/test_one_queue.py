"""Where tunnels can have no queues of their own, and where nobody else may have one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from integration.contract.sites import run
from integration.userspace.test_queues import (
    Site,
    assert_together,
    assert_told_apart,
    lead_all,
    routed_namespace,
)
from xfrmpy.datapath import nftables
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace.tun import DEVICE, Tun

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


def test_a_device_that_was_made_with_one_queue_has_one(namespace: str, tmp_path: Path) -> None:
    run("ip", "-n", namespace, "tuntap", "add", DEVICE, "mode", "tun")
    with closing(Site(namespace, tmp_path, 1)) as site:
        lead_all(site)
        assert_told_apart(site)


def test_whoever_has_the_device_has_it_alone(namespace: str) -> None:
    del namespace
    with closing(Tun.of_all_tunnels()), pytest.raises(DatapathError, match="another process"):
        Tun.of_all_tunnels()
