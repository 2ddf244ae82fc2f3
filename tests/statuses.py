"""A tunnel that is up, as `status` tells of it: for tests of commands and of the control socket,
and for benchmarks."""

from __future__ import annotations

from xfrmpy.control.protocol import ChildSaStatus, TunnelStatus

OFFICE = TunnelStatus(
    name="office",
    state="up",
    peer="vpn.example.org",
    local_address="192.0.2.1:4500",
    remote_address="198.51.100.1:4500",
    local_id="gw1.example.net",
    remote_id="vpn.example.org",
    role="initiator",
    suite="aes256gcm16-prfsha384-x25519",
    ppk="office-2026",
    ppk_exchange="IKE_INTERMEDIATE",
    nat="local, forced",
    datapath="userspace",
    datapath_reason="the kernel has no ESP",
    seconds_up=11_520.5,
    spi_i="0123456789abcdef",
    spi_r="fedcba9876543210",
    children=[
        ChildSaStatus(
            child="office",
            spi_in="0xc0ffee01",
            spi_out="0xdeadbeef",
            suite="aes256gcm16",
            mode="tunnel",
            local=["10.1.0.0/16"],
            remote=["10.2.0.0/16", "10.3.0.0/24"],
            octets_in=1_288_490_188,
            octets_out=35_651_584,
            packets_in=1_203_112,
            packets_out=1,
            replayed=3,
            integrity_failed=0,
            seconds_up=301.0,
            total_octets_in=2_000_000_000,
            total_octets_out=40_000_000,
            total_packets_in=2_000_001,
            total_packets_out=30_001,
            total_replayed=4,
            total_integrity_failed=1,
            total_seconds_up=11_500.5,
        )
    ],
    failure=None,
)
