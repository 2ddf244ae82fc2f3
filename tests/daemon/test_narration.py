"""The sentences of the log and of `up`: every report has one, and none holds a secret."""

from __future__ import annotations

import typing
from dataclasses import replace
from ipaddress import ip_address

import pytest

from xfrmpy.daemon.narration import is_routine, narrate, summarize
from xfrmpy.failures import Failure
from xfrmpy.ike import outputs
from xfrmpy.ike.errors import DropReason
from xfrmpy.ipsec.addresses import Path, SocketAddress
from xfrmpy.registry import ExchangeType

PATH = Path(
    local=SocketAddress(ip_address("192.0.2.1"), 500),
    remote=SocketAddress(ip_address("2001:db8::2"), 500),
)
FAILURE = Failure(code="XF2004", summary="no selectors", evidence=(("our local", "10.1.0.0/16"),))

NEWS: list[tuple[outputs.Output, str]] = [
    (
        outputs.ExchangeStarted(tunnel="a", exchange=ExchangeType.IKE_AUTH, path=PATH),
        "IKE_AUTH to [2001:db8::2]:500",
    ),
    (
        outputs.RequestRetransmitted(
            tunnel="a", exchange=ExchangeType.IKE_SA_INIT, path=PATH, count=2, of=5
        ),
        "no answer yet: IKE_SA_INIT to [2001:db8::2]:500 again, 2 of 5",
    ),
    (
        outputs.FragmentSizeReduced(
            tunnel="a", exchange=ExchangeType.IKE_AUTH, path=PATH, octets=576
        ),
        "no answer yet: IKE_AUTH with [2001:db8::2]:500 again, in datagrams of at most 576 octets",
    ),
    (
        outputs.ExchangeRepeated(tunnel="a", exchange=ExchangeType.IKE_SA_INIT, reason="why"),
        "IKE_SA_INIT once more: why",
    ),
    (
        outputs.NatDetected(tunnel="a", ours=True, theirs=False, forced=False),
        "ESP goes in UDP: this host is behind a NAT",
    ),
    (
        outputs.NatDetected(tunnel="a", ours=True, theirs=True, forced=True),
        "ESP goes in UDP: both ends are behind a NAT",
    ),
    (
        outputs.NatDetected(tunnel="a", ours=False, theirs=True, forced=False),
        "ESP goes in UDP: the peer is behind a NAT, or says so",
    ),
    (
        outputs.NatDetected(tunnel="a", ours=False, theirs=True, forced=True),
        "ESP goes in UDP: the policy or the datapath wants it",
    ),
    (
        outputs.IkeSaEstablished(
            tunnel="a", path=PATH, suite="aes", remote_id="sun", is_initiator=True
        ),
        "IKE SA with sun at [2001:db8::2]:500, aes",
    ),
    (
        outputs.IkeSaEstablished(
            tunnel="a",
            path=PATH,
            suite="aes",
            remote_id="moon",
            is_initiator=False,
            redirected_from=PATH.local.address,
        ),
        "IKE SA with moon at [2001:db8::2]:500, sent on by 192.0.2.1, aes",
    ),
    (
        outputs.PeerMoved(tunnel="a", old=PATH.remote, new=replace(PATH.remote, port=4500)),
        "the peer is now at [2001:db8::2]:4500, it was at [2001:db8::2]:500",
    ),
    (
        outputs.ChildSaEstablished(
            tunnel="a", child="net", spi_in=0x100, spi_out=0xFFFFFFFF, suite="aes"
        ),
        "Child SA net: aes, SPI in 0x00000100, out 0xffffffff",
    ),
    (
        outputs.ChildSaClosed(tunnel="a", child="net", spi_in=0x100),
        "Child SA net closed (SPI in 0x00000100)",
    ),
    (
        outputs.TunnelClosed(tunnel="a", was_established=True, is_initiator=True, failure=None),
        "the IKE SA is deleted",
    ),
    (
        outputs.TunnelClosed(tunnel="a", was_established=True, is_initiator=True, failure=FAILURE),
        "closed: XF2004 no selectors (our local: 10.1.0.0/16)",
    ),
    (
        outputs.Redirected(
            tunnel="a", gateway="vpn2.example.org", original=ip_address("192.0.2.2")
        ),
        "192.0.2.2 sends us to vpn2.example.org",
    ),
    (
        outputs.RequestRefused(tunnel="", path=PATH, failure=FAILURE),
        "refused [2001:db8::2]:500: XF2004 no selectors (our local: 10.1.0.0/16)",
    ),
    (
        outputs.ChildSaRekeyed(
            tunnel="a", child="net", spi_in=0x12345678, spi_out=0x9ABCDEF0, suite="aes256gcm16"
        ),
        "Child SA net rekeyed: aes256gcm16, SPI in 0x12345678, out 0x9abcdef0",
    ),
    (
        outputs.IkeSaRekeyed(
            tunnel="a", path=PATH, suite="aes256gcm16", is_initiator=True, reauthenticated=False
        ),
        f"IKE SA rekeyed with {PATH.remote}, aes256gcm16",
    ),
    (
        outputs.IkeSaRekeyed(
            tunnel="a", path=PATH, suite="aes256gcm16", is_initiator=True, reauthenticated=True
        ),
        f"IKE SA made anew with {PATH.remote}, aes256gcm16",
    ),
    (
        outputs.TrapsRefused(tunnel="a", child="net", failure=Failure(code="XF3002", summary="no")),
        "no trap for net: XF3002 no",
    ),
    (
        outputs.SaNotCreated(tunnel="a", child="net", failure=Failure(code="XF2015", summary="no")),
        "no Child SA net: XF2015 no",
    ),
    (
        outputs.SaNotCreated(tunnel="a", child="", failure=Failure(code="XF2015", summary="no")),
        "no new IKE SA: XF2015 no",
    ),
    (
        outputs.DefectFound(path=PATH, datagram=b"", traceback=""),
        "a datagram from [2001:db8::2]:500 met a defect of ours",
    ),
]

NO_NEWS = {
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
    outputs.DatagramDropped,
}


@pytest.mark.parametrize(("report", "sentence"), NEWS)
def test_a_report_has_its_sentence(report: outputs.Output, sentence: str) -> None:
    assert narrate(report) == sentence


def test_every_output_is_news_or_known_to_be_none() -> None:
    every = set(typing.get_args(outputs.Output))
    assert {type(report) for report, _ in NEWS} | NO_NEWS == every


def test_only_that_an_informational_exchange_begins_is_routine() -> None:
    """Every peer that is silent is asked, twice a minute."""
    began = outputs.ExchangeStarted(tunnel="a", exchange=ExchangeType.INFORMATIONAL, path=PATH)
    assert is_routine(began)
    assert not any(is_routine(report) for report, _ in NEWS)


def test_what_is_no_news_has_no_sentence() -> None:
    assert narrate(outputs.DatagramDropped(path=PATH, reason=DropReason.MALFORMED)) == ""


def test_a_failure_without_evidence_is_its_summary() -> None:
    assert summarize(Failure(code="XF2001", summary="silence")) == "XF2001 silence"
