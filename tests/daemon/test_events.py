"""Events: every report of the core has one, with its values and without its secrets."""

from __future__ import annotations

import dataclasses
import typing
from ipaddress import ip_address

import pytest

from tests.daemon.test_narration import NEWS
from xfrmpy.daemon import events
from xfrmpy.daemon.events import EVENTS, Occurrence, event_name, event_of, is_of_stranger
from xfrmpy.failures import Failure
from xfrmpy.ike import outputs
from xfrmpy.ipsec.addresses import Path, SocketAddress
from xfrmpy.registry import ExchangeType

PATH = Path(
    local=SocketAddress(ip_address("192.0.2.1"), 4500),
    remote=SocketAddress(ip_address("198.51.100.7"), 4500),
)
IMPERATIVES = {
    outputs.SendDatagram,
    outputs.AddSa,
    outputs.MoveSa,
    outputs.RemoveSa,
    outputs.AddPolicy,
    outputs.RemovePolicy,
    outputs.AskAaa,
    outputs.AskUsage,
    outputs.AskStatus,
    outputs.AskCertificates,
    outputs.AskSignature,
    outputs.Persist,
}
COUNTED = {outputs.DatagramDropped}
"""Not events: anybody can have as many datagrams dropped as he sends."""


def failed(code: str) -> Failure:
    return Failure(code=code, summary="no", evidence=(("we offered", "a"), ("they said", "b")))


def test_every_report_of_the_core_is_an_event_of_the_table() -> None:
    reports = set(typing.get_args(outputs.Output)) - IMPERATIVES - COUNTED
    assert reports == set(events._NAMES)
    assert set(events._NAMES.values()) <= set(EVENTS)


@pytest.mark.parametrize("report", [report for report, _ in NEWS], ids=repr)
def test_every_news_has_an_event_that_says_it(report: outputs.Output) -> None:
    event = event_of(report, 1, 0.0, 0.0)
    assert event is not None
    assert event.event in EVENTS
    assert event.text
    assert event.tunnel == getattr(report, "tunnel", "")


@pytest.mark.parametrize(
    ("report", "name"),
    [
        (
            outputs.TunnelClosed(
                tunnel="a", was_established=True, is_initiator=True, failure=failed("XF2001")
            ),
            "tunnel-lost",
        ),
        (
            outputs.TunnelClosed(
                tunnel="a", was_established=False, is_initiator=True, failure=failed("XF2001")
            ),
            "tunnel-failed",
        ),
        (
            outputs.TunnelClosed(tunnel="a", was_established=True, is_initiator=True, failure=None),
            "tunnel-closed",
        ),
        (
            outputs.IkeSaRekeyed(
                tunnel="a", path=PATH, suite="s", is_initiator=True, reauthenticated=True
            ),
            "ike-sa-reauthenticated",
        ),
        (
            outputs.IkeSaRekeyed(
                tunnel="a", path=PATH, suite="s", is_initiator=True, reauthenticated=False
            ),
            "ike-sa-rekeyed",
        ),
        (
            outputs.RequestRefused(tunnel="a", path=PATH, failure=failed("XF2006")),
            "authentication-failed",
        ),
        (
            outputs.RequestRefused(tunnel="a", path=PATH, failure=failed("XF2004")),
            "request-refused",
        ),
        (outputs.AskUsage(sas=()), None),
    ],
)
def test_the_name_says_what_became_of_it(report: outputs.Output, name: str | None) -> None:
    assert event_name(report) == name


def test_a_failure_has_its_code_and_what_both_sides_said() -> None:
    report = outputs.RequestRefused(tunnel="a", path=PATH, failure=failed("XF2004"))
    event = event_of(report, 7, 1764090000.125, 12.5)
    assert event is not None
    assert (event.number, event.time, event.monotonic) == (7, "2025-11-25T17:00:00.125Z", 12.5)
    assert (event.code, event.severity) == ("XF2004", "warning")
    assert event.failure is not None
    assert event.failure.evidence == [["we offered", "a"], ["they said", "b"]]
    assert event.details == {"local": "192.0.2.1:4500", "remote": "198.51.100.7:4500"}


def test_details_are_what_the_report_has_in_the_words_of_operators() -> None:
    report = outputs.ChildSaEstablished(
        tunnel="a", child="lan", spi_in=0xC0FFEE01, spi_out=0x1234, suite="aes256gcm16"
    )
    event = event_of(report, 1, 0.0, 0.0)
    assert event is not None
    assert event.child == "lan"
    assert event.details == {
        "spi_in": "0xc0ffee01",
        "spi_out": "0x00001234",
        "suite": "aes256gcm16",
    }


def test_what_keeps_a_tunnel_alive_is_no_news() -> None:
    def severity(exchange: ExchangeType) -> str:
        report = outputs.ExchangeStarted(tunnel="a", exchange=exchange, path=PATH)
        event = event_of(report, 1, 0.0, 0.0)
        assert event is not None
        return event.severity

    assert severity(ExchangeType.INFORMATIONAL) == "debug"
    assert severity(ExchangeType.IKE_AUTH) == "info"


def test_of_callers_without_a_tunnel_only_refusals_are_news() -> None:
    refused = event_of(
        outputs.RequestRefused(tunnel="", path=PATH, failure=failed("XF2002")), 1, 0.0, 0.0
    )
    began = event_of(
        outputs.NatDetected(tunnel="", ours=True, theirs=False, forced=False), 2, 0.0, 0.0
    )
    own = event_of(Occurrence(event="daemon-started", text="ready"), 3, 0.0, 0.0)
    assert refused is not None
    assert began is not None
    assert own is not None
    assert (refused.severity, began.severity, own.severity) == ("warning", "debug", "info")
    assert (is_of_stranger(refused), is_of_stranger(own)) == (True, False)


def test_a_datagram_that_met_a_defect_is_not_in_its_event() -> None:
    report = outputs.DefectFound(path=PATH, datagram=b"secret", traceback="Traceback: secret")
    event = event_of(report, 1, 0.0, 0.0)
    assert event is not None
    assert event.severity == "critical"
    assert "secret" not in repr(dataclasses.asdict(event))
