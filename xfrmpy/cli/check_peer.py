"""`xfrmpy check --peer`: whether two ends would agree, before the policy of either is in force."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xfrmpy.cli.check import finding_lines, load_checked
from xfrmpy.cli.documents import document
from xfrmpy.cli.terminal import Painter, say
from xfrmpy.failures import CATALOGUE, ExitCode
from xfrmpy.policy.load import LoadedPolicy
from xfrmpy.policy.pairing import Pairing, pair_policies


def check_pairs(paths: Sequence[Path], peer: Path, *, as_json: bool) -> int:
    """Each tunnel of ours with the other end's; 65 if one would not come up, or a file is bad.

    Who it is that has none at the other end is no fault, unless none has one.
    """
    ours, theirs = (load_checked(each, public_halves=True) for each in (paths, [peer]))
    pairs = pair_policies(ours.tunnels, theirs.tunnels)
    if as_json:
        say(
            document(
                "CheckPeer", pairs=[_pair_value(pair) for pair in pairs], **_errors(ours, theirs)
            )
        )
    else:
        _tell(ours, theirs, pairs, Painter(sys.stdout))
    found = [pair for pair in pairs if pair.theirs is not None]
    is_good = found and all(pair.works for pair in found) and not (ours.errors or theirs.errors)
    return ExitCode.DONE if is_good else ExitCode.BAD_POLICY


def _tell(
    ours: LoadedPolicy, theirs: LoadedPolicy, pairs: Sequence[Pairing], paint: Painter
) -> None:
    for error in (*ours.errors, *theirs.errors):
        for line in finding_lines(error, "red", paint):
            say(line)
        say()
    for pair in pairs:
        for line in _pair_lines(pair, paint):
            say(line)
    works = sum(pair.works for pair in pairs)
    say(paint(f"{works} of {len(pairs)} tunnels would come up", "bold"))


def _pair_lines(pair: Pairing, paint: Painter) -> Iterator[str]:
    name = paint(pair.ours.name, "bold")
    if pair.theirs is None:
        yield f"{name}: {paint('nothing of the other end is meant for it', 'yellow')}"
        return
    verdict = paint("agree", "green") if pair.works else paint("would not come up", "red")
    yield f"{name} and {pair.theirs.name} ({pair.theirs.origin}): {verdict}"
    for agreed in pair.agreed if pair.works else ():
        yield f"  {agreed}"
    for found in pair.disagreements:
        code = paint(found.code, "red") if found.code else paint("note", "yellow")
        yield f"  {code}  {found.message}"
        yield f"    {paint('ours', 'dim')}    {found.ours}"
        yield f"    {paint('theirs', 'dim')}  {found.theirs}"


def _pair_value(pair: Pairing) -> dict[str, Any]:
    return {
        "tunnel": pair.ours.name,
        "peer_tunnel": None if pair.theirs is None else pair.theirs.name,
        "works": pair.works,
        "agreed": list(pair.agreed),
        "disagreements": [
            {**asdict(d), "title": CATALOGUE[d.code].title if d.code else ""}
            for d in pair.disagreements
        ],
    }


def _errors(ours: LoadedPolicy, theirs: LoadedPolicy) -> dict[str, Any]:
    return {"errors": [str(error) for error in (*ours.errors, *theirs.errors)]}
