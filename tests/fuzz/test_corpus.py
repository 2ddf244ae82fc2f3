"""Every input of the fuzzers' corpora, as ordinary tests: what was found once stays mended."""

from __future__ import annotations

import pytest

from tests.fuzz.targets import CORPUS, TARGETS, Target

INPUTS = [
    pytest.param(target, data, id=f"{target.name}-{name}")
    for target in TARGETS.values()
    for name, data in target.inputs()
]


@pytest.mark.parametrize(("target", "data"), INPUTS)
def test_an_input_of_the_corpus_finds_nothing(target: Target, data: bytes) -> None:
    target.execute(data)


def test_every_corpus_belongs_to_a_target_and_is_small() -> None:
    for file in CORPUS.iterdir():
        assert file.stem in TARGETS
        assert file.stat().st_size < 200_000
