"""Whether the kernel holds the packets that wait for an SA, or drops them.

With `net.core.xfrm_larval_drop` off, packets that meet a policy without an SA wait in a queue of
the policy, up to 100 of them and a minute, and leave when there is one; by default they are
dropped. The setting is a network namespace's.
"""

from __future__ import annotations

from pathlib import Path

LARVAL_DROP = Path("/proc/sys/net/core/xfrm_larval_drop")


def hold_packets() -> None:
    """Have packets wait for SAs from now on. Raises `OSError`."""
    if LARVAL_DROP.read_text(encoding="ascii").strip() != "0":
        LARVAL_DROP.write_text("0\n", encoding="ascii")
