"""Goes into a network namespace of its own, and becomes the program that tries what works there."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from xfrmpy.cli.demo_network import leave_the_host
from xfrmpy.cli.terminal import note
from xfrmpy.failures import OperatorError


def main() -> NoReturn:
    try:
        leave_the_host()
    except OperatorError as error:
        seen = "; ".join(f"{label}: {value}" for label, value in error.failure.evidence)
        note(f"{error.failure.summary} ({seen})")
        sys.exit(error.failure.kind.exit_code)
    # -P: the current directory, which may be anybody's, does not belong on a root's import path.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "xfrmpy.daemon.trial"])


if __name__ == "__main__":
    main()
