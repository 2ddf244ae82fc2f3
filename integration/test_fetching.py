"""The small HTTP client against servers that do what they should not; it asks, we judge."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from integration.lab.process import Background, eventually
from integration.lab.site import Site

pytestmark = pytest.mark.native

PORT = 8080

_SERVER = """
import asyncio, sys

HEAD = b"HTTP/1.1 200 OK\\r\\n"
ANSWERS = {
    "/good": HEAD + b"Content-Length: 4\\r\\n\\r\\nlist",
    "/without-length": HEAD + b"\\r\\nlist",
    "/redirected": b"HTTP/1.1 302 Found\\r\\nLocation: http://127.0.0.1/\\r\\n\\r\\n",
    "/missing": b"HTTP/1.1 404 Not Found\\r\\n\\r\\n",
    "/too-long": HEAD + b"Content-Length: 5000\\r\\n\\r\\n" + b"x" * 5000,
    "/too-long-untold": HEAD + b"\\r\\n" + b"x" * 5000,
    "/too-short": HEAD + b"Content-Length: 9\\r\\n\\r\\nlist",
    "/negative": HEAD + b"Content-Length: -1\\r\\n\\r\\nlist",
    "/chunked": HEAD + b"Transfer-Encoding: chunked\\r\\n\\r\\n4\\r\\nlist\\r\\n0\\r\\n\\r\\n",
    "/compressed": HEAD + b"Content-Encoding: gzip\\r\\n\\r\\nlist",
    "/no-http": b"220 mail.example.net ESMTP\\r\\n\\r\\n",
    "/endless-head": HEAD + b"X: " + b"x" * 100000,
    "/nothing": b"",
}

async def answer(reader, writer):
    head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode()
    method, target, version = head.split("\\r\\n")[0].split()
    assert version == "HTTP/1.0", head
    if target == "/slow":
        writer.write(HEAD + b"\\r\\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.2)
    elif target == "/silent":
        await asyncio.sleep(600)
    elif target == "/echo":
        size = int(head.lower().split("content-length: ")[1].split()[0])
        assert method == "POST" and "application/ocsp-request" in head, head
        writer.write(HEAD + b"\\r\\n" + await reader.readexactly(size))
    else:
        writer.write(ANSWERS[target])
    await writer.drain()
    writer.close()

async def main():
    async with await asyncio.start_server(answer, sys.argv[1], int(sys.argv[2])) as server:
        await server.serve_forever()

asyncio.run(main())
"""

_CLIENT = """
import asyncio, json, sys
from xfrmpy.daemon.fetching import NotFetched, fetch

async def outcome(url, request=b""):
    try:
        return (await fetch(url, 4096, request, seconds=4.0)).decode()
    except NotFetched as error:
        return "! " + str(error)

async def main():
    urls = sys.argv[1:]
    request = b"is it revoked?"
    asked = [outcome(url, request if url.endswith("/echo") else b"") for url in urls]
    print(json.dumps(dict(zip(urls, await asyncio.gather(*asked)))))

asyncio.run(main())
"""


@pytest.fixture
def server(site: Site) -> Iterator[str]:
    sun = site.network.sun
    address = sun.outside[4]
    command = sun.command(sys.executable, "-c", _SERVER, address, str(PORT))
    running = Background(command, site.log)
    try:
        eventually("the server to listen", lambda: f":{PORT} " in sun.run("ss", "-Hltn"))
        yield f"http://{address}:{PORT}"
    finally:
        running.stop()


def test_what_may_not_be_is_refused_with_a_reason_and_in_time(site: Site, server: str) -> None:
    expected = {
        "/good": "list",
        "/without-length": "list",
        "/echo": "is it revoked?",
        "/redirected": "! the server answers 302 Found",
        "/missing": "! the server answers 404 Not Found",
        "/too-long": "! the answer has more than 4096 octets",
        "/too-long-untold": "! the answer has more than 4096 octets",
        "/too-short": "! the answer ends too early",
        "/negative": "! the answer's length is no number",
        "/chunked": "! the answer is encoded in a way that was not asked for",
        "/compressed": "! the answer is encoded in a way that was not asked for",
        "/no-http": "! what answers there does not speak HTTP",
        "/endless-head": "! what answers there does not speak HTTP",
        "/nothing": "! what answers there does not speak HTTP",
        "/slow": "! no answer within 4 s",
        "/silent": "! no answer within 4 s",
    }
    elsewhere = {
        "http://127.0.0.1:8080/good": "! 127.0.0.1 is this host's or its link's own",
        "http://[::1]/good": "! ::1 is this host's or its link's own",
        "http://[::ffff:127.0.0.1]/good": "! ::ffff:127.0.0.1 is this host's or its link's own",
        "http://169.254.169.254/latest": "! 169.254.169.254 is this host's or its link's own",
        "http://0.0.0.0/good": "! 0.0.0.0 is this host's or its link's own",
        "http://224.0.0.1/good": "! 224.0.0.1 is this host's or its link's own",
        "https://192.0.2.2/good": "! not a plain http URL",
        "ftp://192.0.2.2/good": "! not a plain http URL",
        "http://user@192.0.2.2/good": "! not a plain http URL",
        "http://192.0.2.2:99999/good": "! not a URL",
        "http://192.0.2.2/a b": "! not a URL",
        f"http://{64 * 'a'}.example/good": "! not a URL",
        "http://ca..example/good": "! not a URL",
        "http:///good": "! not a plain http URL",
        f"{server[:-4]}9/good": "! cannot be reached: Connect call failed",
    }
    wanted = {server + path: answer for path, answer in expected.items()} | elsewhere
    moon = site.network.moon
    told = json.loads(moon.run(sys.executable, "-c", _CLIENT, *wanted))
    assert {url: told[url][: len(answer)] for url, answer in wanted.items()} == wanted
