"""Child SAs of one traffic, each of a worker, are one child in `status`, and count once."""

from __future__ import annotations

import io
from dataclasses import replace

from tests.statuses import OFFICE
from xfrmpy.cli.status import overview_lines, tunnel_lines
from xfrmpy.cli.terminal import Painter
from xfrmpy.control.protocol import StatusReply, TunnelStatus

PLAIN = Painter(io.StringIO())


def spread() -> TunnelStatus:
    (child,) = OFFICE.children
    children = [
        replace(child, worker=worker, spi_in=f"0x8000000{worker}", octets_out=1024 * (worker + 1))
        for worker in (1, 0)
    ]
    return replace(OFFICE, children=children)


def test_they_stand_together_by_worker() -> None:
    lines = [*tunnel_lines(spread(), PLAIN)]
    assert sum("child office" in line for line in lines) == 1
    assert sum("38.1 MiB" in line for line in lines) == 1, "what they carried together"
    told = "\n".join(lines)
    places = [told.index(words) for words in ("worker 0", "1.00 KiB", "worker 1", "2.00 KiB")]
    assert places == sorted(places)


def test_those_of_cpus_stand_beside_that_of_none() -> None:
    (child,) = OFFICE.children
    cpus = [replace(child, cpu=cpu, spi_in=f"0x0000100{cpu or 7}") for cpu in (1, None, 0)]
    lines = [*tunnel_lines(replace(OFFICE, children=cpus), PLAIN)]
    assert sum("child office" in line for line in lines) == 1
    places = ["\n".join(lines).index(words) for words in ("cpu any", "cpu 0", "cpu 1")]
    assert places == sorted(places)
    alone = [*tunnel_lines(replace(OFFICE, children=cpus[1:2]), PLAIN)]
    assert not any("cpu" in line for line in alone)


def test_what_they_carried_is_counted_once() -> None:
    def row(tunnel: TunnelStatus) -> str:
        reply = StatusReply(version="1", pid=1, seconds_up=1.0, drops={}, tunnels=[tunnel])
        return overview_lines(reply, PLAIN)[1]

    assert row(spread()) == row(OFFICE)
