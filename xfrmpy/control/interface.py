"""The methods of the control socket: what each takes and gives, who may call it, in one table.

The interface description that `org.varlink.service.GetInterfaceDescription` answers with is drawn
from this table and the dataclasses of `protocol`, so that it cannot tell anything else. The
language is Varlink's: https://varlink.org/Interface-Definition.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from xfrmpy.control import protocol
from xfrmpy.control.calls import (
    ApplyCall,
    ChangeCall,
    ConfirmCall,
    DescribeCall,
    MetricsCall,
    MonitorCall,
    PlanCall,
    RollbackCall,
    StatusCall,
    WaitCall,
)
from xfrmpy.control.kernel import KernelCall, KernelReply
from xfrmpy.control.observed import DescribeReply, EventsReply, MetricsReply, WaitReply
from xfrmpy.control.plans import KeepReply, PlanReply
from xfrmpy.control.protocol import FailureReply, Progress, StatusReply, TunnelReply
from xfrmpy.control.values import field_types

INTERFACE = "org.xfrmpy"


class Replies(Enum):
    """How often a method replies to a caller that asks for `more`.

    `STEPS` are told on the way to the one reply; a `STREAM` goes on until the caller hangs up.
    """

    ONCE = auto()
    STEPS = auto()
    STREAM = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """`for_readers` says whether it is for those who may only look."""

    takes: type
    gives: type
    help: str
    replies: Replies = Replies.ONCE
    for_readers: bool = False


METHODS: dict[str, Method] = {
    protocol.STATUS: Method(
        takes=StatusCall,
        gives=StatusReply,
        help="The daemon and its tunnels.",
        for_readers=True,
    ),
    protocol.DESCRIBE: Method(
        takes=DescribeCall,
        gives=DescribeReply,
        help="Everything about one tunnel.",
        for_readers=True,
    ),
    protocol.MONITOR: Method(
        takes=MonitorCall,
        gives=EventsReply,
        help="What has happened. With `more` it goes on with what happens then.",
        replies=Replies.STREAM,
        for_readers=True,
    ),
    protocol.WAIT: Method(
        takes=WaitCall,
        gives=WaitReply,
        help="Wait until a tunnel is up or down, without bringing it there.",
        for_readers=True,
    ),
    protocol.METRICS: Method(
        takes=MetricsCall,
        gives=MetricsReply,
        help="The metrics.",
        for_readers=True,
    ),
    protocol.SHOW_KERNEL: Method(
        takes=KernelCall,
        gives=KernelReply,
        help="What is in force on both datapaths, whosever it is; no keys.",
        for_readers=True,
    ),
    protocol.UP: Method(
        takes=ChangeCall,
        gives=TunnelReply,
        help="Bring a tunnel up, and wait until it is.",
        replies=Replies.STEPS,
    ),
    protocol.DOWN: Method(
        takes=ChangeCall,
        gives=TunnelReply,
        help="Take a tunnel down, telling the peer.",
        replies=Replies.STEPS,
    ),
    protocol.REKEY: Method(
        takes=ChangeCall,
        gives=TunnelReply,
        help="Replace the keys of a tunnel.",
        replies=Replies.STEPS,
    ),
    protocol.PLAN: Method(
        takes=PlanCall,
        gives=PlanReply,
        help="What it takes to get from what is in force to what policy says.",
    ),
    protocol.APPLY: Method(
        takes=ApplyCall,
        gives=PlanReply,
        help="Put the policy in force, all of it or nothing.",
        replies=Replies.STEPS,
    ),
    protocol.CONFIRM: Method(
        takes=ConfirmCall,
        gives=KeepReply,
        help="Keep what was applied to be confirmed.",
    ),
    protocol.ROLLBACK: Method(
        takes=RollbackCall,
        gives=PlanReply,
        help="Put the policy before the last one in force again.",
        replies=Replies.STEPS,
    ),
}


SERVICE_DESCRIPTION = """\
# What every Varlink service has.
interface org.varlink.service

# The implementation, and the interfaces that it has.
method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

# An interface in the words of Varlink's interface definition.
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)

error MethodNotFound (method: string)

error MethodNotImplemented (method: string)

error InvalidParameter (parameter: string)

# The caller may not call this method.
error PermissionDenied ()

# The method replies more than once, so the call must ask for `more`.
error ExpectedMore ()
"""
"""https://varlink.org/Service, and the two errors that systemd has added to it."""


def describe_interface() -> str:
    """Our interface, in Varlink's interface definition language."""
    blocks = [f"# The control socket of the xfrmpy daemon.\ninterface {INTERFACE}"]
    blocks += [_describe_type(kind) for kind in _kinds()]
    blocks += [_describe_method(name, method) for name, method in METHODS.items()]
    failed = ", ".join(_fields(FailureReply))
    blocks.append(
        f"# What went wrong: XFnnnn, as docs/failures.md lists them.\nerror Failed ({failed})"
    )
    return "\n\n".join(blocks) + "\n"


def _kinds() -> list[type]:
    """Every dataclass that a method's fields speak of, in the order of its first use."""
    found: dict[type, None] = {}
    for method in METHODS.values():
        if method.replies is Replies.STEPS:
            found[Progress] = None
        for whole in (method.takes, method.gives):
            found.update(dict.fromkeys(_inner_kinds(whole)))
    return list(found)


def _inner_kinds(kind: Any) -> Iterator[type]:
    for hint in field_types(kind).values():
        for part in _flattened(hint):
            if dataclasses.is_dataclass(part):
                yield from _inner_kinds(part)
                yield typing.cast("type", part)


def _flattened(hint: Any) -> Iterator[Any]:
    yield hint
    for argument in typing.get_args(hint):
        yield from _flattened(argument)


def _describe_type(kind: type) -> str:
    return f"{_comment(kind)}type {kind.__name__} ({_listed(_fields(kind))})"


def _describe_method(name: str, method: Method) -> str:
    who = "" if method.for_readers else " Not for those who may only look."
    with_steps = " With `more` it tells of its steps; without, only how it ended."
    steps = with_steps if method.replies is Replies.STEPS else ""
    gives = list(_fields(method.gives))
    if method.replies is Replies.STEPS:
        gives = [f"progress: ?{Progress.__name__}", *_fields(method.gives, optional=True)]
    lines = textwrap.wrap(
        f"{method.help}{steps}{who}", 96, initial_indent="# ", subsequent_indent="# "
    )
    takes = ", ".join(_fields(method.takes))
    short = name.removeprefix(f"{INTERFACE}.")
    return "\n".join([*lines, f"method {short}({takes}) -> ({_listed(gives)})"])


def _listed(fields: typing.Iterable[str]) -> str:
    return "\n  " + ",\n  ".join(fields) + "\n"


def _fields(kind: type, *, optional: bool = False) -> Iterator[str]:
    for name, hint in field_types(kind).items():
        told = _type_name(hint)
        yield f"{name}: {'?' if optional and not told.startswith('?') else ''}{told}"


def _comment(kind: type) -> str:
    text = inspect.cleandoc(kind.__doc__ or "")
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())


def _type_name(hint: Any) -> str:
    match typing.get_origin(hint):
        case types.UnionType:
            optional = next(a for a in typing.get_args(hint) if a is not types.NoneType)
            return f"?{_type_name(optional)}"
        case origin if origin is list:
            return f"[]{_type_name(typing.get_args(hint)[0])}"
        case origin if origin is dict:
            return f"[string]{_type_name(typing.get_args(hint)[1])}"
    return {str: "string", bool: "bool", int: "int", float: "float"}.get(hint) or hint.__name__
