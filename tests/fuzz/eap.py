"""EAP of strangers: to a server who knows nobody's password, and to a user who is asked.

The first octet of an input chooses the end and whether packets are whole (their header is then made
for them); each further one is a packet's length, with the packet behind it. A finding is any
exception but a refusal, and success that nobody has earned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import IntEnum
from itertools import count

from tests.fuzz.findings import Finding
from xfrmpy.eap.method import EapFailed
from xfrmpy.eap.packet import EapCode, EapPacket, EapType, decode_eap_untrusted
from xfrmpy.eap.peer import EapPeer
from xfrmpy.eap.server import EapServer
from xfrmpy.ike.eap_methods import peer_methods, server_methods
from xfrmpy.policy.eap import parse_users
from xfrmpy.policy.model import EapAcceptance, EapCredential, EapMethod, EapUsers, SharedKey

PASSWORD = "a password that no input will have guessed"
USERS = EapUsers(passwords=((b"carol", PASSWORD),), origin="fuzz")
METHODS = tuple(EapMethod)


class End(IntEnum):
    """Who gets the packets, made whole or as they are; or whose list of users it is."""

    SERVER = 0
    SERVER_RAW = 1
    PEER = 2
    PEER_RAW = 3
    USERS = 4


def play_eap(data: bytes) -> None:
    """Raises `Finding`, or whatever should not be raised."""
    end, octets = End(data[0] % len(End)) if data else End.SERVER, data[1:]
    if end in (End.SERVER, End.SERVER_RAW):
        _play_server(octets, is_whole=end is End.SERVER)
    elif end is End.USERS:
        with suppress(ValueError):
            parse_users(octets)
    else:
        for method in METHODS:
            with suppress(EapFailed):
                _play_peer(method, octets, is_whole=end is End.PEER)


def _play_server(octets: bytes, *, is_whole: bool) -> None:
    random = _random()
    acceptance = EapAcceptance(methods=METHODS, users=USERS)
    server = EapServer(server_methods(acceptance, random), 0)
    request = server.begin()
    for packet in _packets(octets):
        request = server.handle(
            _whole(EapCode.RESPONSE, request[1], packet) if is_whole else packet
        )
        decode_eap_untrusted(request)
    if server.outcome is not None:
        raise Finding("who does not know the password is let in")


def _play_peer(method: EapMethod, octets: bytes, *, is_whole: bool) -> None:
    key = SharedKey(octets=PASSWORD.encode(), origin="fuzz")
    credential = EapCredential(identity="carol", methods=(method,), password=key)
    peer = EapPeer(b"carol", peer_methods(credential, _random()))
    for number, packet in enumerate(_packets(octets)):
        response = peer.handle(
            _whole(EapCode.REQUEST, number % 256, packet) if is_whole else packet
        )
        if response is not None:
            decode_eap_untrusted(response)
        if peer.outcome is not None and method is EapMethod.MSCHAPV2:
            raise Finding("a server that does not know the password is believed")


def _whole(code: EapCode, identifier: int, packet: bytes) -> bytes:
    """A packet of a type with its data; one of nothing is a success."""
    if not packet:
        return EapPacket(code=EapCode.SUCCESS, identifier=identifier).encode()
    kind = EapType(packet[0])
    return EapPacket(code=code, identifier=identifier, type=kind, data=packet[1:]).encode()


def _packets(octets: bytes) -> Iterator[bytes]:
    while octets:
        size, octets = octets[0], octets[1:]
        yield octets[:size]
        octets = octets[size:]


def _random() -> Callable[[int], bytes]:
    numbers = count()
    return lambda size: hashlib.sha512(b"%d" % next(numbers)).digest()[:size]


def eap_seeds() -> dict[str, bytes]:
    """Each method as far as it goes, at either end."""
    identity = bytes([EapType.IDENTITY]) + b"carol"
    challenge = bytes([16]) + bytes(16)
    mschap = b"\x01\x05\x00\x1a\x10" + bytes(16) + b"name!"
    response = b"\x02\x02\x00\x3b\x31" + bytes(49) + b"carol"
    return {
        "server-md5": _script(
            End.SERVER, identity, bytes([EapType.NAK, 4]), bytes([4]) + challenge
        ),
        "server-mschapv2": _script(End.SERVER, identity, bytes([26]) + response, b"\x1a\x04"),
        "server-gtc": _script(End.SERVER, identity, bytes([EapType.NAK, 6]), b"\x06guess"),
        "server-raw": _script(End.SERVER_RAW, b"\x02\x01\x00\x0a\x01carol"),
        "peer-md5": _script(End.PEER, b"\x01", bytes([4]) + challenge, b""),
        "peer-mschapv2": _script(
            End.PEER, b"\x01", bytes([26]) + mschap, b"\x1a\x03\x05\x00\x2eS=" + b"0" * 40, b""
        ),
        "peer-gtc": _script(End.PEER, b"\x01", b"\x02a notice", b"\x06Password: ", b""),
        "peer-raw": _script(End.PEER_RAW, b"\x01\x01\x00\x05\x01", b"\x03\x02\x00\x04"),
        "users": bytes([End.USERS]) + b"# who\ncarol: correct horse\n",
    }


def _script(end: End, *packets: bytes) -> bytes:
    return bytes([end]) + b"".join(bytes([len(packet)]) + packet for packet in packets)
