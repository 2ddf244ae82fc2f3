"""Where the vectors are, and how the published files are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cryptography_vectors
import pytest

_LINE = re.compile(r"^(\[?)(\w[\w -]*?)\]?(?: ?= ?(.*?))?\]?$", re.MULTILINE)
_VECTORS = Path(__file__).parents[1] / "vectors"


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Any]:
    """Reads `tests/vectors/NAME.json`; that folder's README names the sources."""
    return lambda name: json.loads((_VECTORS / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def nist_records() -> Callable[[str], Iterator[dict[str, str]]]:
    """Reads a NIST response file of the package cryptography_vectors, record by record.

    A record has the values of the `[NAME = VALUE]` lines above it; a bare word (`FAIL`, a
    `[SECTION]`) is a name with an empty value.
    """

    def read(name: str) -> Iterator[dict[str, str]]:
        section: dict[str, str] = {}
        with cryptography_vectors.open_vector_file(name, "r") as file:
            for paragraph in re.split(r"\n\s*\n", file.read()):
                fields = _LINE.findall(paragraph)
                if any(bracket for bracket, _, _ in fields):
                    opens_anew = not any(value for _, _, value in fields)
                    section = {} if opens_anew else section
                    section = section | {key: value for _, key, value in fields}
                elif fields:
                    yield section | {key: value for _, key, value in fields}

    return read
