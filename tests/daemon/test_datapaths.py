"""Where a tunnel is placed, by what each datapath is said to be able to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.policy.test_changes import OFFICE
from xfrmpy.daemon.datapaths import Datapaths, Placement
from xfrmpy.datapath.interface import Capabilities
from xfrmpy.datapath.recording import EVERYTHING
from xfrmpy.ipsec.sad import DontFragment, Mode
from xfrmpy.policy.model import DatapathChoice, Encapsulation, TunnelPolicy

NO_RAW = replace(EVERYTHING, raw_esp=False, missing={"raw esp": "there are no raw sockets"})


def placed(runtime_dir: Path, policy: TunnelPolicy, **known: Capabilities | str) -> Placement:
    datapaths = Datapaths(runtime_dir)
    datapaths._capabilities = {DatapathChoice(name): can for name, can in known.items()}
    return datapaths.place(policy)


@pytest.mark.parametrize(
    ("encapsulation", "can", "is_had"),
    [
        (Encapsulation.NAT, NO_RAW, False),
        (Encapsulation.NAT, EVERYTHING, True),
        (Encapsulation.AUTO, NO_RAW, True),
        (Encapsulation.FORCE, NO_RAW, True),
    ],
)
def test_esp_without_udp_is_refused_where_there_are_no_raw_sockets(
    tmp_path: Path, encapsulation: Encapsulation, can: Capabilities, is_had: bool
) -> None:
    policy = replace(OFFICE, encapsulation=encapsulation)
    placement = placed(tmp_path, policy, kernel="no ESP", userspace=can)
    assert (placement.failure is None) == is_had
    if placement.failure is not None:
        assert placement.failure.code == "XF3001"
        reasons = dict(placement.failure.evidence)
        assert reasons["userspace"] == "`encapsulation: nat`: there are no raw sockets"


def test_df_that_the_kernel_cannot_set_is_for_the_userspace_datapath(tmp_path: Path) -> None:
    (lan,) = OFFICE.children
    policy = replace(OFFICE, children=(replace(lan, dont_fragment=DontFragment.SET),))
    kernel = replace(EVERYTHING, dont_fragment=frozenset({DontFragment.COPY}))
    placement = placed(tmp_path, policy, kernel=kernel, userspace=EVERYTHING)
    assert placement.policy.datapath is DatapathChoice.USERSPACE
    assert placement.reason == "the kernel datapath cannot set DF"


@pytest.mark.parametrize(
    ("choice", "usual"),
    [
        (DatapathChoice.KERNEL, DontFragment.COPY),
        (DatapathChoice.USERSPACE, DontFragment.CLEAR),
    ],
)
def test_df_is_treated_as_is_usual_for_the_datapath(
    tmp_path: Path, choice: DatapathChoice, usual: DontFragment
) -> None:
    policy = replace(OFFICE, datapath=choice)
    placement = placed(tmp_path, policy, kernel=EVERYTHING, userspace=EVERYTHING)
    assert {child.dont_fragment for child in placement.policy.children} == {usual}


def test_compression_that_the_kernel_datapath_lacks_is_for_the_userspace_one(
    tmp_path: Path,
) -> None:
    (lan,) = OFFICE.children
    policy = replace(OFFICE, children=(replace(lan, compresses=True),))
    kernel = replace(EVERYTHING, compression=False, missing={"compression": "no deflate"})
    placement = placed(tmp_path, policy, kernel=kernel, userspace=EVERYTHING)
    assert placement.policy.datapath is DatapathChoice.USERSPACE
    assert placement.reason == "no deflate"


def test_beet_mode_is_refused_with_the_reason_that_the_datapath_gives(tmp_path: Path) -> None:
    (lan,) = OFFICE.children
    policy = replace(OFFICE, children=(replace(lan, mode=Mode.BEET),))
    modes = frozenset({Mode.TUNNEL, Mode.TRANSPORT})
    userspace = replace(EVERYTHING, modes=modes, missing={"beet mode": "no BEET mode here"})
    placement = placed(tmp_path, policy, kernel=EVERYTHING, userspace=userspace)
    assert placement.policy.datapath is DatapathChoice.KERNEL
    placement = placed(tmp_path, policy, kernel="no kernel", userspace=userspace)
    assert placement.failure is not None
    assert dict(placement.failure.evidence)["userspace"] == "no BEET mode here"


def test_what_is_compressed_and_padded_too_is_for_the_userspace_one(tmp_path: Path) -> None:
    (lan,) = OFFICE.children
    policy = replace(OFFICE, children=(replace(lan, compresses=True, tfc=1000),))
    kernel = replace(EVERYTHING, pads_compressed=False)
    placement = placed(tmp_path, policy, kernel=kernel, userspace=EVERYTHING)
    assert placement.policy.datapath is DatapathChoice.USERSPACE
    assert placement.reason == (
        "`tfc` with `ipcomp`: the kernel datapath does not pad what it compresses"
    )
    alone = replace(policy, children=(replace(lan, compresses=True),))
    placement = placed(tmp_path, alone, kernel=kernel, userspace=EVERYTHING)
    assert placement.policy.datapath is DatapathChoice.KERNEL


def test_a_kernel_without_sas_of_one_cpu_has_none_beside_others(tmp_path: Path) -> None:
    (lan,) = OFFICE.children
    policy = replace(OFFICE, children=(replace(lan, per_resource=4),))
    lacks = "since Linux 6.13: this kernel passes over it"
    kernel = replace(EVERYTHING, resources=False, missing={"resources": lacks})
    placement = placed(tmp_path, policy, kernel=kernel, userspace=EVERYTHING)
    assert placement.policy.datapath is DatapathChoice.USERSPACE
    assert placement.reason == f"`per_resource`: SAs of one CPU: {lacks}"
    able = placed(tmp_path, policy, kernel=EVERYTHING, userspace=EVERYTHING)
    assert able.policy.datapath is DatapathChoice.KERNEL
    refused = placed(
        tmp_path,
        replace(policy, datapath=DatapathChoice.KERNEL),
        kernel=kernel,
        userspace=EVERYTHING,
    )
    assert refused.failure is not None
    assert refused.failure.code == "XF3001"
