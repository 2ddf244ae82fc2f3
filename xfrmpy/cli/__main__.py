"""The `xfrmpy` command, and `python -m xfrmpy.cli`.

Nothing of what is imported becomes garbage, and looking for garbage among it would take a tenth of
a short command's time.
"""

# ruff: noqa: E402 - see above
from __future__ import annotations

import gc

gc.disable()

from xfrmpy.cli.main import main

gc.freeze()
gc.enable()

if __name__ == "__main__":
    main()
