"""`xfrmpy plan`, `diff`, `apply`, `confirm` and `rollback`: the policy as a whole.

The daemon decides what changes and does it. Here files are read and, once what they say is in
force, kept: the daemon may not write where the operator's files are.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from xfrmpy.cli.change import steps_shown
from xfrmpy.cli.documents import document, failure_of, failure_value
from xfrmpy.cli.failure import tell_failure
from xfrmpy.cli.terminal import Painter, note, printable, say
from xfrmpy.control.calls import ApplyCall, PlanCall, PolicyText
from xfrmpy.control.client import Client
from xfrmpy.control.plans import ChangeReply, DriftReply, PlanReply
from xfrmpy.control.protocol import Progress
from xfrmpy.failures import ExitCode, OperatorError

_SIGNS = {"create": ("+", "green"), "update": ("~", "yellow"), "delete": ("-", "red")}

_NEW_FILE_MODE = 0o644


def read_policy(path: str | None, name: str | None) -> list[PolicyText] | None:
    """The files that a command names, None if it names none. Raises `OperatorError`."""
    if path is None:
        return None
    if path == "-":
        if name is None:
            summary = "a policy from `-` has no file name"
            raise OperatorError("XF5001", summary, (("add", "--name NAME"),))
        return [_text(f"{name}.yaml", sys.stdin.buffer.read())]
    given = Path(path)
    try:
        files = sorted(given.glob("*.yaml")) if given.is_dir() else [given]
        visible = [file for file in files if not file.name.startswith(".")]
        return [
            _text((name and f"{name}.yaml") or file.name, file.read_bytes()) for file in visible
        ]
    except OSError as error:
        reason = f"{given} cannot be read: {error.strerror}"
        raise OperatorError("XF1012", reason) from error


def show_plan(
    client: Client,
    files: list[PolicyText] | None,
    prune: bool,
    as_json: bool,
    *,
    detailed: bool,
) -> int:
    """What would be done; 0, with `detailed` 2 if that is not nothing."""
    reply = client.plan(PlanCall(files=files, prune=prune, session=_session()))
    if as_json:
        say(_document("Plan", reply))
    else:
        _tell_warnings(reply)
        for line in _plan_lines(reply, Painter(sys.stdout)):
            say(line)
    if reply.failure is not None and not as_json:
        return tell_failure(failure_of(reply.failure))
    pending = reply.changes or _healable(reply.drift)
    return ExitCode.CHANGES_PENDING if detailed and pending else ExitCode.DONE


def _healable(drift: list[DriftReply]) -> list[DriftReply]:
    return [each for each in drift if each.remedy]


def show_diff(
    client: Client, files: list[PolicyText] | None, prune: bool, *, detailed: bool
) -> int:
    """The same, key by key."""
    reply = client.plan(PlanCall(files=files, prune=prune))
    for line in _diff_lines(reply.changes, Painter(sys.stdout)):
        say(line)
    return ExitCode.CHANGES_PENDING if detailed and reply.changes else ExitCode.DONE


def apply_policy(
    client: Client,
    files: list[PolicyText] | None,
    *,
    prune: bool,
    confirm_seconds: float,
    accept_cut: bool,
    allow_pending: bool,
    timeout_seconds: float,
    as_json: bool,
) -> int:
    """Do it, and keep the files unless that is to be confirmed first."""
    call = ApplyCall(
        files=files,
        prune=prune,
        session=_session(),
        timeout_seconds=timeout_seconds,
        confirm_seconds=confirm_seconds,
        accept_cut=accept_cut,
        allow_pending=allow_pending,
    )
    reply = _follow(client.apply(call))
    waits = bool(confirm_seconds and reply.changes)
    if files is not None and not waits:
        _keep(files, Path(reply.directory), prune=prune)
    if as_json:
        say(_document("Apply", reply, confirm_seconds=confirm_seconds if waits else None))
        return ExitCode.DONE
    _tell_warnings(reply)
    mended = len(_healable(reply.drift))
    if reply.changes or not mended:
        say(_summary(reply.changes, "changed", Painter(sys.stdout)))
    if mended:
        say(f"{mended} thing{'s' * (mended > 1)} put right that others had changed.")
    if waits:
        say(f"It is taken back in {confirm_seconds:g} seconds unless you say: xfrmpy confirm")
    return ExitCode.DONE


def confirm_policy(client: Client, *, as_json: bool) -> int:
    """What was applied stays, and so do its files."""
    reply = client.confirm()
    if reply.files is not None:
        _keep(reply.files, Path(reply.directory), prune=reply.prune)
    names = [file.name for file in reply.files or ()]
    if as_json:
        say(document("Confirm", directory=reply.directory, files=names))
    else:
        say("Confirmed." + (f" Kept in {reply.directory}: {', '.join(names)}" if names else ""))
    return ExitCode.DONE


def roll_back(client: Client, timeout_seconds: float, *, as_json: bool) -> int:
    """What was in force before the last policy is in force again."""
    reply = _follow(client.rollback(timeout_seconds))
    if as_json:
        say(_document("Rollback", reply))
    else:
        say(_summary(reply.changes, "changed back", Painter(sys.stdout)))
        note("The policy files are as they were: `xfrmpy plan` shows how they differ.")
    return ExitCode.DONE


def _text(name: str, octets: bytes) -> PolicyText:
    try:
        return PolicyText(name=name, text=octets.decode(errors="surrogateescape"))
    except ValueError as error:
        raise OperatorError("XF5001", f"the policy file {error}") from error


def _session() -> list[str] | None:
    """The two ends of the SSH session that this is typed in, ours first; None if there is none.

    `sudo` takes the variable away, so the processes above are asked too.
    """
    pid = os.getpid()
    while pid > 1:
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return None
        for variable in environ:
            if variable.startswith(b"SSH_CONNECTION="):
                theirs, _, ours, *_ = [*variable[15:].decode(errors="replace").split(), "", "", ""]
                return [ours, theirs]
        pid = int(status.rpartition(")")[2].split()[1])
    return None


def _follow(replies: Iterable[Progress | PlanReply]) -> PlanReply:
    with steps_shown(time.monotonic()) as shown:
        for reply in replies:
            if isinstance(reply, PlanReply):
                return reply
            shown.step(reply)
    raise OperatorError("XF4006", "the daemon's last answer was no result")


def _keep(files: list[PolicyText], directory: Path, *, prune: bool) -> None:
    """Put the files where the daemon reads them at its next start; each is whole or not there."""
    kept = {file.name for file in files}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file in files:
            _replace_file(directory / file.name, file.text.encode(errors="surrogateescape"))
        for other in directory.glob("*.yaml") if prune else ():
            if other.name not in kept and not other.name.startswith("."):
                other.unlink()
    except OSError as error:
        evidence = (("directory", str(directory)), ("files", ", ".join(sorted(kept))))
        reason = error.strerror or str(error)
        raise OperatorError("XF4024", f"cannot write: {reason}", evidence) from error


def _replace_file(path: Path, octets: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(octets)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o7777 if path.exists() else _NEW_FILE_MODE)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _tell_warnings(reply: PlanReply) -> None:
    for warning in reply.warnings:
        note(f"warning: {printable(warning)}")


def _plan_lines(reply: PlanReply, paint: Painter) -> Iterator[str]:
    changes = reply.changes
    columns = max((len(change.tunnel) for change in changes), default=0)
    for change in changes:
        sign, style = _SIGNS[change.action]
        name = printable(change.tunnel).ljust(columns)
        what = change.action if change.action != "update" else change.impact
        yield f"{paint(sign, style)} {paint(name, 'bold')}  {what}{_remark(change)}"
        for difference in change.differences:
            place = f"{difference.child}: " if difference.child else ""
            yield printable(
                f"    {place}{difference.key}: {difference.before or 'none'}"
                f" -> {difference.after or 'none'}  ({difference.impact})"
            )
    if changes:
        yield ""
    yield from _drift_lines(reply.drift, paint)
    if changes or not reply.drift:
        yield _summary(changes, "to change", paint)


def _drift_lines(drift: list[DriftReply], paint: Painter) -> Iterator[str]:
    """What others have changed, and what becomes of it."""
    if not drift:
        return
    yield "Not as it was put in force:"
    for each in drift:
        sign = paint("!", "yellow")
        owner = f"{paint(printable(each.tunnel), 'bold')}  " if each.tunnel else ""
        remedy = f"  ({printable(each.remedy)})" if each.remedy else "  (not ours: stays)"
        yield f"{sign} {owner}{printable(each.what)}{remedy}"
    count = len(_healable(drift))
    yield ""
    yield f"{count} thing{'s' * (count != 1)} to put right."


def _remark(change: ChangeReply) -> str:
    if change.cuts:
        return ", CUTS THE SESSION THAT THIS IS TYPED IN"
    if not change.live:
        return "" if change.action == "create" else ", not up now"
    return {
        "hot": ", nothing that is up is touched",
        "rekey": ", no packet is lost",
        "reauth": ", the new IKE SA comes before the old one goes",
        "replace": ", takes down what is up" if _takes_down(change) else ", other traffic",
    }[change.impact]


def _takes_down(change: ChangeReply) -> bool:
    return change.action == "delete" or any(
        d.impact == "replace" and not d.child for d in change.differences
    )


def _summary(changes: list[ChangeReply], verb: str, paint: Painter) -> str:
    if not changes:
        return "Nothing " + verb + ": what is in force is what the policy says."
    counts = Counter(change.action for change in changes)
    parts = (
        f"{counts[action]} {paint(word, _SIGNS[action][1])}"
        for action, word in (("create", "new"), ("update", "different"), ("delete", "gone"))
        if counts[action]
    )
    shunts = sum(change.is_of_shunt for change in changes)
    subjects = (
        f"{count} {kind}{'s' * (count > 1)}"
        for kind, count in (("tunnel", len(changes) - shunts), ("shunt", shunts))
        if count
    )
    return f"{' and '.join(subjects)} {verb}: {', '.join(parts)}."


def _diff_lines(changes: list[ChangeReply], paint: Painter) -> Iterator[str]:
    for change in changes:
        name = printable(change.tunnel)
        yield paint(f"--- {name if change.action != 'create' else 'nothing'}  (in force)", "bold")
        yield paint(f"+++ {name if change.action != 'delete' else 'nothing'}  (policy)", "bold")
        for d in change.differences:
            key = f"{d.child}.{d.key}" if d.child else d.key
            if d.before:
                yield paint(printable(f"-{key}: {d.before}"), "red")
            if d.after:
                yield paint(printable(f"+{key}: {d.after}"), "green")


def _document(kind: str, reply: PlanReply, **more: object) -> str:
    return document(
        kind,
        changes=[asdict(change) for change in reply.changes],
        drift=[asdict(each) for each in reply.drift],
        warnings=reply.warnings,
        directory=reply.directory,
        failure=reply.failure and failure_value(failure_of(reply.failure)),
        **more,
    )
