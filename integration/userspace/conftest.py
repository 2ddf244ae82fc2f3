"""The networks of these tests, and what of a datapath is in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from integration.contract.sites import inside
from integration.lab.network import Network
from integration.userspace.laboratory import Laboratory, laboratory_in
from integration.userspace.place import daemon_sockets, end_workers


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    with laboratory_in(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """A network without datapaths; whatever the test starts in it ends with it."""
    with ExitStack() as stack:
        built = Network()
        stack.callback(built.close)
        stack.callback(end_workers, tmp_path)
        yield built


@pytest.fixture
def moon(network: Network) -> Iterator[str]:
    """This thread in the namespace of a gateway, with the daemon's sockets open."""
    with inside(network.moon.namespace), daemon_sockets():
        yield network.moon.namespace
