"""Coverage-guided fuzzing by hand, with atheris, which is no dependency of the tests:

    .venv/bin/pip install atheris
    .venv/bin/python -m tests.fuzz endpoint --seconds 600

A run ends with its time or with the first finding, of which it prints a line that replays it:

    .venv/bin/python -m tests.fuzz endpoint --input 'AgAA...'

`--corpus DIRECTORY` keeps what was found from one run to the next. `--pack` writes the fewest of
its inputs that cover the same, beside the seeds, to `tests/fuzz/corpus`. Those and the seeds are
replayed by `test_corpus.py` in every test run, without atheris.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

TraceFunction: TypeAlias = Callable[[FrameType, str, Any], Any]

NAMES = ("wire", "endpoint", "policy", "pki", "eap", "control")

ARTIFACTS = f"{tempfile.gettempdir()}/xfrmpy-fuzz-"
LIMITS = ("-timeout=60", "-rss_limit_mb=1500", "-malloc_limit_mb=200")
"""The last resort of libFuzzer: memory that grows, and a hang that is not in Python."""


def main() -> None:
    options = _options()
    if options.input is not None:
        _target(options.target).execute(base64.b64decode(options.input))
        print("nothing found")
    elif options.pack:
        _pack(options.corpus, _target(options.target))
    else:
        with _directory(options.corpus) as corpus:
            _fuzz(options, corpus)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="fuzz one target")
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="a directory to begin with and to add to")
    parser.add_argument("--pack", action="store_true", help="write down what is worth keeping")
    parser.add_argument("--input", help="replay this one input, in base64")
    return parser.parse_args()


def _target(name: str) -> Target:
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 (atheris must see the import)

    return TARGETS[name]


@contextlib.contextmanager
def _directory(path: Path | None) -> Iterator[Path]:
    if path is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
    else:
        path.mkdir(parents=True, exist_ok=True)
        yield path


def _pack(corpus: Path, target: Target) -> None:
    """The smallest inputs first; each must go a way through the code that none before has gone."""
    known: set[tuple[str, int, int]] = set()
    for seed in target.seeds().values():
        known |= _ways(target, seed)
    kept: list[str] = []
    for data in sorted({path.read_bytes() for path in corpus.iterdir()}, key=len):
        if new := _ways(target, data) - known:
            known |= new
            kept.append(data.hex())
    target.kept.write_text("".join(f"{line}\n" for line in kept))


def _ways(target: Target, data: bytes) -> set[tuple[str, int, int]]:
    """From which line to which one an input goes, in which file of ours."""
    ways: set[tuple[str, int, int]] = set()

    def trace(frame: FrameType, _event: str, _argument: object) -> TraceFunction | None:
        if "/xfrmpy/" not in frame.f_code.co_filename:
            return None
        last = 0

        def trace_line(frame: FrameType, event: str, _argument: object) -> TraceFunction:
            nonlocal last
            if event == "line":
                ways.add((frame.f_code.co_filename, last, frame.f_lineno))
                last = frame.f_lineno
            return trace_line

        return trace_line

    sys.settrace(trace)
    try:
        target.run(data)
    finally:
        sys.settrace(None)
    return ways


def _fuzz(options: argparse.Namespace, corpus: Path) -> None:
    import atheris  # noqa: PLC0415 (not there when only one input is replayed)

    with atheris.instrument_imports(include=["xfrmpy"]):
        target = _target(options.target)
        from tests.fuzz.mutator import Mutator  # noqa: PLC0415 (atheris must see the import)
    inputs = dict(target.inputs())
    for name, data in inputs.items():
        (corpus / name).write_bytes(data)
    arguments = [
        f"-max_len={target.max_size}",
        f"-max_total_time={options.seconds}",
        f"-artifact_prefix={ARTIFACTS}",
        *LIMITS,
        str(corpus),
    ]
    hooks = {}
    if target.is_script:
        # `atheris.Mutate` becomes another function when the fuzzer starts.
        mutator = Mutator(list(inputs.values()), lambda *octets: atheris.Mutate(*octets))  # noqa: PLW0108
        hooks = {"custom_mutator": mutator.mutate, "custom_crossover": mutator.cross}
    atheris.Setup([sys.argv[0], *arguments], lambda data: _run(target, data), **hooks)
    atheris.Fuzz()


def _run(target: Target, data: bytes) -> None:
    try:
        target.execute(data)
    except BaseException as finding:
        what = str(finding).rstrip().rpartition("\n")[2]
        octets = base64.b64encode(data).decode()
        print(f"FOUND {type(finding).__name__}: {what}")
        print(f"REPLAY {sys.executable} -m tests.fuzz {target.name} --input '{octets}'", flush=True)
        raise


if __name__ == "__main__":
    main()
