"""What xfrmpy is installed with beyond what every gateway needs: `pip install xfrmpy[EXTRA]`."""

from __future__ import annotations

from enum import Enum
from importlib.util import find_spec


class Extra(Enum):
    """The extras of `pyproject.toml` by their names, each with the module that it brings."""

    radius = "pyrad"
    hsm = "pkcs11"

    @property
    def is_installed(self) -> bool:
        """Looked for, and not imported."""
        return find_spec(self.value) is not None
