"""What hosts behind two gateways see of the userspace datapath, and what is on the wire between."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace

import pytest

from integration.contract.entries import ESP, GCM
from integration.contract.sites import run
from integration.lab.process import Background, eventually
from integration.lab.transfer import transfer
from integration.userspace.laboratory import CBC, Laboratory, udp_packet
from integration.userspace.place import largest_inner, our_routes
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.esp.packet import IPV4_IN_ESP, OutboundSa
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import Direction, DontFragment, Mode, OuterHeader

pytestmark = pytest.mark.native


ONE_OF_EACH_KIND = (
    *("aes256gcm16-esn", "aes128gcm8", "aes256ccm16-esn", "aes128gmac", "chacha20poly1305-esn"),
    *("aes256gcm16iiv-esn", "aes128ccm8iiv", "chacha20poly1305iiv", "aes256ctr-sha256-esn"),
    *("camellia256-sha256", "3des-sha256", "null-sha256-esn", "aes256-sha512-esn"),
    *("aes256-aesxcbc", "aes256-aescmac-esn", "aes256-sha1"),
)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_each_kind_of_suite_carries_hosts_streams_intact(laboratory: Laboratory, name: str) -> None:
    pair = laboratory.connect(ESP[name])
    network = laboratory.network
    assert network.bob.ping(network.alice.inside_address()) == 0
    transfer(network.alice, network.bob, laboratory.bob(4), 5_000_000, laboratory.directory / "log")
    for datapath in (laboratory.moon, laboratory.sun):
        # A host acknowledges what reaches it joined all at once.
        for entry, least in ((pair.forth, 3000), (pair.back, 20)):
            usage = datapath.usage(entry.id)
            assert usage.packets > least
            assert (usage.replayed, usage.integrity_failed) == (0, 0)


def test_how_long_many_have_been_idle_is_one_question(laboratory: Laboratory) -> None:
    """In the order in which it is asked; and of one that is not in force nothing is told."""
    pair = laboratory.connect(ESP["aes128gcm8"])
    network = laboratory.network
    assert network.bob.ping(network.alice.inside_address()) == 0
    asked = [pair.forth.id, replace(pair.forth.id, spi=pair.forth.spi ^ 1), pair.back.id]
    forth, nothing, back = laboratory.moon.seconds_idle(asked)
    assert nothing is None
    for entry, seconds in ((pair.forth, forth), (pair.back, back)):
        later = laboratory.moon.usage(entry.id).seconds_idle
        assert seconds is not None
        assert later is not None
        assert 0 <= seconds <= later


@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
def test_streams_of_either_family_pass_in_either_and_nothing_in_clear(
    laboratory: Laboratory, outer: int, inner: int
) -> None:
    laboratory.connect(GCM, outer=outer, inner=inner)
    network = laboratory.network
    with laboratory.capture() as wire:
        assert network.alice.ping(laboratory.bob(inner)) == 0
        log = laboratory.directory / "log"
        transfer(network.alice, network.bob, laboratory.bob(inner), 5_000_000, log)
    assert wire.kinds["clear"] == 0
    assert wire.protected > 3000


@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("suite", [GCM, CBC], ids=str)
def test_a_host_is_told_what_fits_and_that_fits(
    laboratory: Laboratory, suite: EspSuite, outer: int, inner: int
) -> None:
    laboratory.connect(suite, outer=outer, inner=inner)
    alice, largest = laboratory.network.alice, largest_inner(suite, outer)
    headers = {4: 28, 6: 48}[inner]

    def ping(octets: int) -> str:
        alice.run("ip", f"-{inner}", "route", "flush", "cache")
        size = str(octets - headers)
        command = ("ping", "-n", "-c", "2", "-i", "0.2", "-W", "5", "-M", "do", "-s", size)
        return alice.run(*command, laboratory.bob(inner), check=False)

    told = re.search(r"(?:Frag needed.*mtu = |Packet too big: mtu=)(\d+)", ping(largest + 1))
    assert told
    assert int(told[1]) == largest
    with laboratory.capture() as wire:
        assert " 0% packet loss" in ping(largest)
    assert wire.protected == 4
    assert wire.kinds["clear"] == 0, "no fragments"


def test_ipv6_has_its_least_mtu_whatever_the_path(laboratory: Laboratory) -> None:
    """RFC 8200 section 5: the outer packets are fragmented instead."""
    network = laboratory.network
    devices = [(network.moon, "wan"), (network.sun, "wan"), (network.internet, "moon")]
    devices.append((network.internet, "sun"))
    for host, device in devices:
        host.batch(f"link set {device} mtu 1300")
    try:
        laboratory.connect(GCM, inner=6)
        assert "mtu 1280" in our_routes(network.moon.namespace, 6)
        assert network.alice.ping(laboratory.bob(6), octets=1280 - 48) == 0
    finally:
        for host, device in devices:
            host.batch(f"link set {device} mtu 1500")


@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
def test_a_path_that_becomes_narrower_costs_fragments_and_no_stream(
    laboratory: Laboratory, outer: int, inner: int
) -> None:
    """The kernel takes no datagrams together that do not fit the device."""
    may_be_cut = OuterHeader(dont_fragment=DontFragment.CLEAR)
    laboratory.connect(GCM, outer=outer, inner=inner, header=may_be_cut)
    network = laboratory.network
    before = laboratory.moon.drops()
    network.moon.batch("link set wan mtu 1400")
    network.sun.batch("link set wan mtu 1400")
    try:
        log = laboratory.directory / "log"
        transfer(network.alice, network.bob, laboratory.bob(inner), 5_000_000, log)
    finally:
        network.moon.batch("link set wan mtu 1500")
        network.sun.batch("link set wan mtu 1500")
    assert laboratory.moon.drops() == before


def test_bad_packets_are_counted_and_the_tunnel_is_unharmed(laboratory: Laboratory) -> None:
    pair = laboratory.connect(ESP["aes256gcm16"])
    bob, alice = laboratory.bob(4), laboratory.network.alice.inside_address()
    attacker = OutboundSa(replace(pair.back, direction=Direction.OUT), os.urandom)
    before = laboratory.moon.drops()
    sealed = attacker.seal(udp_packet(bob, alice), IPV4_IN_ESP)
    unknown = (pair.back.spi ^ 0x40000000).to_bytes(4, "big")
    laboratory.throw(
        sealed,
        *[sealed] * 7,
        *[sealed[:7] + bytes([9]) + sealed[8:]] * 6,
        *[attacker.seal(udp_packet("203.0.113.1", alice), IPV4_IN_ESP) for _ in range(5)],
        *[attacker.seal(udp_packet(bob, "192.0.2.254"), IPV4_IN_ESP) for _ in range(4)],
        *[unknown + os.urandom(60)] * 3,
        *[sealed[:10]] * 2,
        attacker.seal(b"no packet at all", IPV4_IN_ESP),
    )
    expected = {
        "replayed": 7,
        "not-authentic": 6,
        "outside-selectors": 9,
        "unknown-spi": 3,
        "too-short": 2,
        "not-ip": 1,
    }

    def counted() -> dict[str, int]:
        drops = laboratory.moon.drops()
        return {reason: drops.get(reason, 0) - before.get(reason, 0) for reason in expected}

    eventually(f"{expected}", lambda: counted() == expected)
    usage = laboratory.moon.usage(pair.back.id)
    assert (usage.replayed, usage.integrity_failed) == (7, 6)
    # The attacker of this test had the key, and used up eleven sequence numbers.
    assert laboratory.network.alice.ping(bob, count=15) <= 11
    assert laboratory.network.alice.ping(bob) == 0


def test_a_flood_of_junk_does_not_end_the_worker(laboratory: Laboratory) -> None:
    pair = laboratory.connect(GCM)
    spi = pair.back.spi.to_bytes(4, "big")
    laboratory.throw(*(spi[: n % 5] + os.urandom(n % 90) for n in range(20_000)))
    # While the flood waits in the worker's socket there is no room for anything else.
    alice, bob = laboratory.network.alice, laboratory.bob(4)
    eventually("three answers of three", lambda: alice.ping(bob) == 0)
    assert laboratory.moon.drops().get("defect", 0) == 0


_TSHARK = {
    "aes256gcm16": ("AES-GCM with 16 octet ICV [RFC4106]", "NULL"),
    "aes256-sha256": ("AES-CBC [RFC3602]", "HMAC-SHA-256-128 [RFC4868]"),
}


@pytest.mark.parametrize("mode", [Mode.TUNNEL, Mode.TRANSPORT])
@pytest.mark.parametrize("encapsulated", [True, False], ids=["udp", "esp"])
@pytest.mark.parametrize("name", _TSHARK)
def test_tshark_reads_our_packets_with_the_keys(
    laboratory: Laboratory, name: str, encapsulated: bool, mode: Mode
) -> None:
    pair = laboratory.connect(ESP[name], encapsulated=encapsulated, mode=mode)
    moon, sun = laboratory.network.moon, laboratory.network.sun
    sender, target = laboratory.network.alice, laboratory.bob(4)
    address = sender.inside_address()
    if mode is Mode.TRANSPORT:
        sender, target, address = moon, sun.outside[4], moon.outside[4]
    network, file = laboratory.network, laboratory.directory / f"{name}.pcap"
    log = laboratory.directory / "tcpdump.log"
    log.unlink(missing_ok=True)
    options = ("-Z", "root", "-U", "-n", "-i", "br0", "-w", str(file), "udp port 4500 or esp")
    tcpdump = Background(network.internet.command("tcpdump", *options), log)
    try:
        eventually("tcpdump to listen", lambda: "listening on" in tcpdump.output)
        with moon.sending_one_by_one(), sun.sending_one_by_one():
            assert sender.ping(target) == 0
        eventually("six packets", lambda: file.stat().st_size >= 6 * 130)
    finally:
        tcpdump.stop(signal.SIGINT)
    command = ["tshark", "-r", str(file), "-o", "esp.enable_encryption_decode:TRUE"]
    command += ["-o", "esp.enable_authentication_check:TRUE"]
    for sa in (pair.forth, pair.back):
        encryption, integrity = _TSHARK[name]
        fields = ["IPv4", "*", "*", f"0x{sa.spi:08x}", encryption]
        fields += [f"0x{sa.encryption_key.hex()}", integrity]
        fields += [f"0x{sa.integrity_key.hex()}" if sa.integrity_key else "", "32-bit", "0x0"]
        command += ["-o", "uat:esp_sa:" + ",".join(f'"{field}"' for field in fields)]
    command += ["-T", "fields", "-e", "ip.src", "-e", "icmp.type", "-e", "icmp.checksum.status"]
    command += ["-e", "esp.icv_good", "-e", "udp.port"]
    lines = [line.split("\t") for line in run(*command).splitlines()]
    assert sorted(line[1] for line in lines) == ["0"] * 3 + ["8"] * 3
    assert {line[2] for line in lines} == {"1"}, "the echo's checksum is right"
    assert lines[0][0].split(",")[-1] == address
    assert {bool(line[4]) for line in lines} == {encapsulated}
    assert {line[3] for line in lines} <= {"1", "True", ""}


def test_a_device_that_was_down_works_again(laboratory: Laboratory) -> None:
    laboratory.connect(GCM)
    moon = laboratory.network.moon
    moon.batch(f"link set {DEVICE} down")
    moon.batch(f"link set {DEVICE} up")
    laboratory.connect(GCM)
    assert laboratory.network.alice.ping(laboratory.bob(4)) == 0
