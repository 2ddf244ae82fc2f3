"""What an authority has on the network: an HTTP server with its lists, and `openssl ocsp`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from integration.lab.authority import key_pem, pem
from integration.lab.network import Host
from integration.lab.process import Background, eventually
from tests.pki.chains import Entity

HTTP_PORT, OCSP_PORT = 8080, 8888


_SERVER = """
import functools, http.server, socketserver, sys

class Server(http.server.ThreadingHTTPServer):
    # Its parent asks a name server, which there is none, for its own name.
    server_bind = socketserver.TCPServer.server_bind

address, port, directory = sys.argv[1:]
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=directory)
Server((address, int(port)), handler).serve_forever()
"""


@contextmanager
def http_server(host: Host, address: str, directory: Path) -> Iterator[Background]:
    """Python's own, of the files of a directory; what it was asked for is in its output."""
    directory.mkdir(exist_ok=True)
    command = (sys.executable, "-u", "-c", _SERVER, address, str(HTTP_PORT), str(directory))
    server = Background(host.command(*command), directory / "server.log")
    try:
        _await_port(host, HTTP_PORT)
        yield server
    finally:
        server.stop()


@contextmanager
def ocsp_responder(
    host: Host, directory: Path, issuer: Entity, signer: Entity, *known: Entity, revoked: Entity
) -> Iterator[Background]:
    """`openssl ocsp` at every address of the host, with the index of `openssl ca` for its book."""
    directory.mkdir(exist_ok=True)
    lines = [_line(entity, is_revoked=entity is revoked) for entity in (*known, revoked)]
    (directory / "index.txt").write_text("".join(lines))
    (directory / "ca.pem").write_bytes(pem(issuer))
    (directory / "signer.pem").write_bytes(pem(signer))
    (directory / "signer.key").write_bytes(key_pem(signer))
    command = (
        *("openssl", "ocsp", "-port", str(OCSP_PORT), "-index", str(directory / "index.txt")),
        *("-CA", str(directory / "ca.pem"), "-rsigner", str(directory / "signer.pem")),
        *("-rkey", str(directory / "signer.key"), "-ndays", "1", "-text"),
    )
    responder = Background(host.command(*command), directory / "responder.log")
    try:
        _await_port(host, OCSP_PORT)
        yield responder
    finally:
        responder.stop()


def _line(entity: Entity, *, is_revoked: bool) -> str:
    """Status, end, revocation, serial number, file and subject, as `openssl ca` writes them."""
    end = entity.library.not_valid_after_utc
    at = datetime.now(UTC) - timedelta(hours=1)
    revoked_at = f"{at:%y%m%d%H%M%SZ},keyCompromise" if is_revoked else ""
    serial = f"{entity.library.serial_number:X}"
    serial = serial.rjust(len(serial) + len(serial) % 2, "0")
    status = "R" if is_revoked else "V"
    return f"{status}\t{end:%y%m%d%H%M%SZ}\t{revoked_at}\t{serial}\tunknown\t/CN={serial}\n"


def _await_port(host: Host, port: int) -> None:
    eventually(f"port {port} to listen", lambda: f":{port} " in host.run("ss", "-Hltn"))
