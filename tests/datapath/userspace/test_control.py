"""The daemon's sockets in a worker's keeping: they are shared, so they must stay as they are."""

from __future__ import annotations

import os
import socket

import pytest

from xfrmpy.datapath.userspace.control import _duplicate


def test_a_socket_that_is_kept_goes_on_not_to_block_its_owner() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owned:
        owned.setblocking(False)
        with _duplicate(owned.fileno()) as kept:
            assert kept.fileno() != owned.fileno()
            assert (kept.family, kept.type) == (owned.family, owned.type)
            assert not os.get_blocking(kept.fileno())
        assert not os.get_blocking(owned.fileno())


def test_what_is_no_socket_is_refused_and_not_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    reading, writing = os.pipe()
    with pytest.raises(OSError, match="socket"):
        _duplicate(reading)
    os.close(reading)
    os.close(writing)
    assert os.listdir("/proc/self/fd") == before
