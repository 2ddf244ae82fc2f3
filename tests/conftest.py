"""Hypothesis for all tests: no deadlines, for machines are shared; the same examples in CI."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("xfrmpy", deadline=None)
settings.register_profile("xfrmpy-ci", deadline=None, derandomize=True)
settings.load_profile("xfrmpy-ci" if os.environ.get("CI") else "xfrmpy")
