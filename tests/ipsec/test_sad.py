"""SAD entries: what is refused, what names them, and what is never shown."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import OUR_REQIDS, USERSPACE_SPI_BIT, Direction, Lifetime, SadEntry, SaId
from xfrmpy.registry import ProtocolId

SUITES = [
    EspSuite(cipher=cipher, integrity=integrity, esn=True)
    for cipher in CIPHERS
    for integrity in ((None,) if cipher.is_aead else INTEGRITY)
]


def entry(
    suite: EspSuite, *, spi: int = 0x1000, longer: int = 0, longer_integrity: int = 0
) -> SadEntry:
    integrity_size = 0 if suite.integrity is None else suite.integrity.key
    return SadEntry(
        direction=Direction.IN,
        spi=spi,
        source=ip_address("192.0.2.1"),
        destination=ip_address("192.0.2.2"),
        reqid=OUR_REQIDS[1],
        suite=suite,
        encryption_key=b"\xaa" * (suite.cipher.key_bits // 8 + suite.cipher.salt + longer),
        integrity_key=b"\xbb" * (integrity_size + longer_integrity),
    )


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_keys_of_the_right_size_make_an_entry(suite: EspSuite) -> None:
    assert entry(suite).id == SaId(
        spi=0x1000, protocol=ProtocolId.ESP, destination=ip_address("192.0.2.2")
    )


@pytest.mark.parametrize("suite", SUITES, ids=str)
@pytest.mark.parametrize("longer", [-1, 1])
def test_keys_of_another_size_are_refused(suite: EspSuite, longer: int) -> None:
    if suite.keymat or longer > 0:
        with pytest.raises(ValueError, match="the encryption key has the wrong size"):
            entry(suite, longer=longer)
    if suite.integrity is not None or longer > 0:
        with pytest.raises(ValueError, match="the integrity key has the wrong size"):
            entry(suite, longer_integrity=longer)


@pytest.mark.parametrize("spi", [-1, 0, 1, 255, 1 << 32])
def test_reserved_spis_are_refused(spi: int) -> None:
    with pytest.raises(ValueError, match="is out of range"):
        entry(SUITES[0], spi=spi)


@pytest.mark.parametrize("spi", [256, USERSPACE_SPI_BIT, 0xFFFFFFFF])
def test_every_other_spi_will_do(spi: int) -> None:
    assert entry(SUITES[0], spi=spi).spi == spi


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_keys_are_not_shown(suite: EspSuite) -> None:
    shown = repr(entry(suite))
    assert "encryption_key" not in shown
    assert "integrity_key" not in shown
    assert r"\xaa" not in shown
    assert r"\xbb" not in shown


def test_an_id_is_shown_with_its_spi_in_hex() -> None:
    assert str(entry(SUITES[0]).id) == "ESP 0x00001000 to 192.0.2.2"


def test_an_entry_without_lifetime_has_no_limit() -> None:
    limits = entry(SUITES[0]).lifetime
    assert limits == Lifetime()
    assert limits.hard_seconds is limits.hard_bytes is limits.hard_packets is None


def test_our_reqids_fit_32_bits_and_are_marked() -> None:
    assert {reqid >> 16 for reqid in (OUR_REQIDS[0], OUR_REQIDS[-1])} == {0x5846}
    assert (0x5846).to_bytes(2, "big") == b"XF"
