"""How addresses and paths are written."""

from __future__ import annotations

from ipaddress import ip_address

from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IKE_PORT, Path, SocketAddress

OURS = SocketAddress(ip_address("192.0.2.1"), IKE_PORT)
THEIRS = SocketAddress(ip_address("2001:db8::2"), IKE_NATT_PORT)


def test_an_ipv4_address_stands_before_its_port() -> None:
    assert str(OURS) == "192.0.2.1:500"


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert str(THEIRS) == "[2001:db8::2]:4500"


def test_a_path_goes_from_us_to_them() -> None:
    assert str(Path(local=OURS, remote=THEIRS, natt=True)) == "192.0.2.1:500 -> [2001:db8::2]:4500"


def test_paths_are_keys() -> None:
    plain, natt = (Path(local=OURS, remote=THEIRS, natt=natt) for natt in (False, True))
    assert {plain: 1}[Path(local=OURS, remote=THEIRS)] == 1
    assert plain != natt
