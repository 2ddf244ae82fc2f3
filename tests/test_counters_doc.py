"""`docs/counters.md` is drawn from the tables; `python -m tests.test_counters_doc` renews it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from xfrmpy.datapath.inventory import Explanation
from xfrmpy.datapath.kernel.statistics import COUNTERS as OF_KERNEL
from xfrmpy.datapath.kernel.statistics import read_statistics
from xfrmpy.datapath.userspace.forwarding import Refusal
from xfrmpy.datapath.userspace.inventory import COUNTERS as OF_WORKER
from xfrmpy.datapath.userspace.inventory import explain
from xfrmpy.esp.sa import EspDrop

PAGE = Path(__file__).parent.parent / "docs" / "counters.md"

HEAD = """# Counters of dropped packets

What `xfrmpy show kernel` tells of counters that are not zero, all of it. The kernel counts since
its network namespace was made (`/proc/net/xfrm_stat`), for everybody's IPsec; the userspace
datapath since its worker was started, and the metrics have its counters as `xfrmpy_drops_total`
with `esp-` before the name.
"""

OF_SYSTEM = ["udp-send-enobufs", "raw-send-emsgsize", "clear-send-eperm", "tun-write-eio"]

OF_LINUX_6_18 = """
XfrmInError XfrmInBufferError XfrmInHdrError XfrmInNoStates XfrmInStateProtoError
XfrmInStateModeError XfrmInStateSeqError XfrmInStateExpired XfrmInStateMismatch XfrmInStateInvalid
XfrmInTmplMismatch XfrmInNoPols XfrmInPolBlock XfrmInPolError XfrmOutError XfrmOutBundleGenError
XfrmOutBundleCheckError XfrmOutNoStates XfrmOutStateProtoError XfrmOutStateModeError
XfrmOutStateSeqError XfrmOutStateExpired XfrmOutPolBlock XfrmOutPolDead XfrmOutPolError
XfrmFwdHdrError XfrmOutStateInvalid XfrmAcquireError XfrmOutStateDirError XfrmInStateDirError
XfrmInIptfsError XfrmOutNoQueueSpace
"""
"""All that /proc/net/xfrm_stat has there, in its order."""


def page() -> str:
    return "\n".join(
        [
            *(HEAD, "## The kernel", "", *_table(OF_KERNEL)),
            *("", "## The userspace worker", "", *_table(OF_WORKER)),
            "",
        ]
    )


def _table(counters: Mapping[str, Explanation]) -> list[str]:
    rows = [f"| `{name}` | {e.meaning} | {e.look_at} |" for name, e in counters.items()]
    return ["| counter | what it counts | what to look at |", "|---|---|---|", *rows]


def test_the_page_of_counters_is_the_tables() -> None:
    assert PAGE.read_text() == page()


def test_every_counter_of_the_kernel_is_explained() -> None:
    assert list(OF_KERNEL) == OF_LINUX_6_18.split()
    assert read_statistics().keys() <= OF_KERNEL.keys()


@pytest.mark.parametrize("reason", [*Refusal, *EspDrop, *OF_SYSTEM])
def test_every_counter_of_the_worker_is_explained(reason: str) -> None:
    assert explain(reason) is not None


def test_a_counter_that_the_worker_has_not_is_not_explained() -> None:
    assert explain("udp") is None


if __name__ == "__main__":
    PAGE.write_text(page())
