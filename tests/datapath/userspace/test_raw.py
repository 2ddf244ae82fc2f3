"""Which packets the raw sockets let in, by a tiny twin of the kernel's BPF.

That the kernel sees it the same way is for `integration/userspace/test_raw.py`.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datapath.userspace.bpf import result_of
from xfrmpy.datapath.userspace.raw import NUMBERS, filter_program
from xfrmpy.datapath.userspace.shares import MAX_WORKERS, Share
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT
from xfrmpy.registry import ProtocolId


@pytest.mark.parametrize("protocol", NUMBERS, ids=lambda p: p.name)
@given(words=st.integers(5, 15), spi=st.integers(0, 0xFFFFFFFF), rest=st.binary(max_size=40))
def test_a_packet_is_let_in_by_its_spi(
    protocol: ProtocolId, words: int, spi: int, rest: bytes
) -> None:
    before = b"" if protocol is ProtocolId.ESP else b"\x04\x05\x00\x00"
    payload = before + spi.to_bytes(4, "big") + rest
    header = bytes([0x40 | words]) + bytes(words * 4 - 1)
    for version, packet in ((4, header + payload), (6, payload)):
        assert bool(result_of(filter_program(protocol, version), packet)) == bool(
            spi & USERSPACE_SPI_BIT
        )


@pytest.mark.parametrize("version", [4, 6])
@given(spi=st.integers(0, 0xFFFFFFFF), count=st.integers(2, MAX_WORKERS), data=st.data())
def test_of_several_workers_one_lets_it_in(
    version: int, spi: int, count: int, data: st.DataObject
) -> None:
    share = Share(data.draw(st.integers(0, count - 1)), count)
    packet = (b"\x45" + bytes(19) if version == 4 else b"") + spi.to_bytes(4, "big")
    program = filter_program(ProtocolId.ESP, version, share)
    assert bool(result_of(program, packet)) == share.has(spi.to_bytes(4, "big"))
    is_ours = spi & USERSPACE_SPI_BIT and spi % count == share.index
    assert share.has(spi.to_bytes(4, "big")) == bool(is_ours)


@pytest.mark.parametrize("protocol", NUMBERS, ids=lambda p: p.name)
@given(packet=st.binary(max_size=23))
def test_what_is_too_short_for_an_spi_is_not(protocol: ProtocolId, packet: bytes) -> None:
    size = {ProtocolId.ESP: 4, ProtocolId.AH: 8}[protocol]
    short = b"\x45" + packet[: 20 + size - 2]
    assert result_of(filter_program(protocol, 4), short) == 0
    assert result_of(filter_program(protocol, 6), packet[: size - 1]) == 0
