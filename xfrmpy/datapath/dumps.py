"""No core dump of a process that holds keys, whatever the host does with those of others."""

from __future__ import annotations

import ctypes

_PR_SET_DUMPABLE = 4


def forbid_dumps() -> None:
    """From now on this process has no core dump, and nobody but root traces it or reads its memory.

    Its children are as they would be without. PR_SET_DUMPABLE of prctl(2), and not RLIMIT_CORE:
    core(5) has that bind no program that dumps are piped to.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)
