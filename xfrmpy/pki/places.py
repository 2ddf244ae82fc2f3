"""What an address of http says: for all that is fetched, so that two readers never differ.

Read RFC 3986 section 3 and RFC 9110 section 4.2 first. What is no plain address is refused here;
whether anybody may be asked there is the business of whoever wants to.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_URL_OCTETS = 1024
"""Ours; nginx and others take eight times as much in a whole request line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What an address says."""

    host: str
    port: int
    target: str
    authority: str


def parse_place(url: str) -> Place:
    """Raises `ValueError`, with a sentence, for anything but an ordinary address of http."""
    try:
        parts = urlsplit(url)
        port = parts.port or 80
        (parts.hostname or "").encode("idna")  # as whoever looks it up will
    except ValueError as error:
        raise ValueError("not a URL") from error
    if parts.scheme != "http" or not parts.hostname or parts.username is not None:
        raise ValueError("not a plain http URL")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not all("!" <= character <= "~" for character in target + parts.netloc):
        raise ValueError("not a URL")
    return Place(host=parts.hostname, port=port, target=target, authority=parts.netloc)


def parse_host(text: str) -> Place:
    """`HOST` or `HOST:PORT`, without a port that of http. Raises `ValueError`."""
    place = parse_place(f"http://{text}/")
    if place.authority != text or place.target != "/":
        raise ValueError("not a host")
    return place
