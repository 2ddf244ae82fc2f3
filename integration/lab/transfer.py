"""A stream of pseudo-random octets from one host to another, its hash taken at both ends.

`transfer` is for the tests; run as a program, this file is one of the two ends.
"""

from __future__ import annotations

import hashlib
import random
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from integration.lab.network import Host, Network
from integration.lab.process import PATIENCE, Background, eventually

_PORT = 5001
_CHUNK = 1 << 18
_STALL_SECONDS = 30.0 * PATIENCE


def transfer(
    source: Host, sink: Host, address: str, octets: int, log: Path, seconds: float = 300.0
) -> None:
    """Send `octets` from one host to `address` of the other; `AssertionError` unless intact."""
    log.unlink(missing_ok=True)
    receiver = Background(sink.command(sys.executable, "-m", __name__, "receive", address), log)
    try:
        eventually("the receiver to listen", lambda: "listening" in receiver.output)
        arguments = ("send", address, str(octets))
        sent = source.run(sys.executable, "-m", __name__, *arguments, seconds=seconds).split()
        assert receiver.process.wait(60 * PATIENCE) == 0, receiver.output
        received = receiver.output.split()[-2:]
    finally:
        receiver.stop()
    assert received == sent == [str(octets), sent[1]]


def transfer_both_ways(
    network: Network, octets: int, directory: Path, seconds: float = 300.0
) -> None:
    """As `transfer`, between alice and bob, from each to the other at the same time."""
    ends = (network.alice, network.bob), (network.bob, network.alice)
    with ThreadPoolExecutor(len(ends)) as pool:
        for each in [
            pool.submit(
                transfer,
                source,
                sink,
                sink.inside_address(),
                octets,
                directory / f"from-{source.name}.log",
                seconds,
            )
            for source, sink in ends
        ]:
            each.result()


def _receive(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, _PORT), family=family) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
    digest = hashlib.sha256()
    total = 0
    with connection:
        connection.settimeout(_STALL_SECONDS)
        while chunk := connection.recv(_CHUNK):
            digest.update(chunk)
            total += len(chunk)
    print(total, digest.hexdigest())


def _send(address: str, octets: int) -> None:
    digest = hashlib.sha256()
    source = random.Random(octets)
    with socket.create_connection((address, _PORT), timeout=_STALL_SECONDS) as connection:
        for start in range(0, octets, _CHUNK):
            chunk = source.randbytes(min(_CHUNK, octets - start))
            digest.update(chunk)
            connection.sendall(chunk)
    print(octets, digest.hexdigest())


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        _receive(sys.argv[2])
    else:
        _send(sys.argv[2], int(sys.argv[3]))
