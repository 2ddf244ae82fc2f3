"""`xfrmpy describe`: one tunnel, its policy, what it waits for, what happened and why it failed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

from xfrmpy.cli.documents import document, failure_of, tunnel_value
from xfrmpy.cli.failure import failure_lines
from xfrmpy.cli.log import moment
from xfrmpy.cli.status import labelled, tunnel_lines
from xfrmpy.cli.terminal import Painter, duration, printable, say, wrapped
from xfrmpy.control.client import Client
from xfrmpy.control.observed import ChildPolicyStatus, DescribeReply, Event, IkeSaDetails
from xfrmpy.failures import ExitCode


def describe_tunnel(client: Client, tunnel: str, *, as_json: bool) -> int:
    """Print it; 0, or 3 if it is not up."""
    reply = client.describe(tunnel)
    if as_json:
        say(document("Description", **{**asdict(reply), "tunnel": tunnel_value(reply.tunnel)}))
    else:
        for line in description_lines(reply, Painter(sys.stdout)):
            say(line)
    return ExitCode.DONE if reply.tunnel.state == "up" else ExitCode.NOT_UP


def description_lines(reply: DescribeReply, paint: Painter) -> Iterator[str]:
    """What `status` says, and everything else; the failure comes with the moment it is of."""
    yield from tunnel_lines(replace(reply.tunnel, failure=None), paint)
    yield from _section("by the clock", _clock_lines(reply, paint), paint)
    yield from _section("policy", _policy_lines(reply, paint), paint)
    failure = reply.last_failure
    if failure is not None and failure.failure is not None:
        told = failure_lines(failure_of(failure.failure), paint, tunnel=reply.tunnel.name)
        yield from _section(f"last failure, at {moment(failure)}", told, paint)
    elif reply.tunnel.failure is not None:
        told = failure_lines(failure_of(reply.tunnel.failure), paint, tunnel=reply.tunnel.name)
        yield from _section("failure", told, paint)
    yield from _section("events", _event_lines(reply.events, paint), paint)


def _section(title: str, lines: list[str], paint: Painter) -> list[str]:
    return ["", paint(title, "bold"), *lines] if lines else []


def _clock_lines(reply: DescribeReply, paint: Painter) -> list[str]:
    lines: list[str] = []
    for sa in reply.ike_sas:
        lines += labelled("IKE SA", (f"{sa.spi_i} {sa.state}", *_ike_moments(sa)), paint)
    for child in reply.child_sas:
        parts = (f"{child.child} {child.spi_in}", *_moments(child.rekey_in_seconds, "rekeyed"))
        ends = _moments(child.expires_in_seconds, "ends")
        lines += labelled("Child SA", (*parts, *ends), paint)
    return lines


def _ike_moments(sa: IkeSaDetails) -> Iterator[str]:
    yield from _moments(sa.rekey_in_seconds, "rekeyed")
    yield from _moments(sa.reauth_in_seconds, "authenticated anew")


def _moments(seconds: float | None, what: str) -> Iterator[str]:
    if seconds is not None:
        yield f"{what} in {duration(seconds)}"


def _policy_lines(reply: DescribeReply, paint: Painter) -> list[str]:
    policy = reply.policy
    lines: list[str] = []
    for label, parts in (
        ("from", (policy.origin,)),
        ("start", (policy.start, "wanted: it comes back by itself" if reply.wanted else "")),
        ("key from", (policy.key_from,)),
        ("PPK", (", ".join(policy.ppks), "required" if policy.ppk_required else "")),
        ("IKE", (", ".join(policy.proposals),)),
        ("lifetime", (_span(policy.lifetime_seconds),)),
        ("reauth", (_span(policy.reauth_seconds),)),
        ("liveness", (_span(policy.dpd_seconds or None),)),
    ):
        lines += labelled(label, parts, paint)
    for child in policy.children:
        lines += _child_policy_lines(child, paint)
    return lines


def _child_policy_lines(child: ChildPolicyStatus, paint: Painter) -> list[str]:
    carries = f"{', '.join(child.local)} <=> {', '.join(child.remote)}"
    head = (child.child, f"{child.mode} mode", f"lifetime {_span(child.lifetime_seconds)}")
    return [
        *labelled("child", head, paint),
        *labelled("carries", (carries,), paint, indent="    "),
        *labelled("ESP", (", ".join(child.proposals),), paint, indent="    "),
    ]


def _event_lines(events: list[Event], paint: Painter) -> list[str]:
    lines: list[str] = []
    for event in events:
        first = f"  {moment(event)}  "
        told = wrapped(printable(event.text), paint.width, first=first)
        lines += [paint(first, "dim") + told[0][len(first) :], *told[1:]]
    return lines


def _span(seconds: float | None) -> str:
    return "never" if seconds is None else duration(seconds)
