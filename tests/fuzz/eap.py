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
from functools import cache
from itertools import count

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.fuzz.findings import Finding
from tests.pki.chains import NOW, authority, dns
from xfrmpy.eap.avps import Avp, AvpType, decode_avps_untrusted, encode_avps
from xfrmpy.eap.fragments import decode_piece_untrusted
from xfrmpy.eap.method import EapFailed
from xfrmpy.eap.packet import EapCode, EapMalformed, EapPacket, EapType, decode_eap_untrusted
from xfrmpy.eap.peap import decode_result_untrusted
from xfrmpy.eap.peer import EapPeer
from xfrmpy.eap.server import EapServer
from xfrmpy.ike.eap_methods import peer_methods, server_methods
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.eap import parse_users
from xfrmpy.policy.model import (
    Certificates,
    EapAcceptance,
    EapClientTls,
    EapCredential,
    EapMethod,
    EapServerTls,
    EapUsers,
    PrivateKey,
    SharedKey,
)

PASSWORD = "a password that no input will have guessed"
USERS = EapUsers(passwords=((b"carol", PASSWORD),), origin="fuzz")
METHODS = tuple(EapMethod)
PROVING = {EapMethod.MSCHAPV2, EapMethod.TLS, EapMethod.TTLS, EapMethod.PEAP}
"""Those in which the server proves something, too."""


class End(IntEnum):
    """Who gets the packets, made whole or as they are; or what parses the octets."""

    SERVER = 0
    SERVER_RAW = 1
    PEER = 2
    PEER_RAW = 3
    USERS = 4
    INSIDE = 5


def play_eap(data: bytes) -> None:
    """Raises `Finding`, or whatever should not be raised."""
    end, octets = End(data[0] % len(End)) if data else End.SERVER, data[1:]
    if end in (End.SERVER, End.SERVER_RAW):
        _play_server(octets, is_whole=end is End.SERVER)
    elif end is End.USERS:
        with suppress(ValueError):
            parse_users(octets)
    elif end is End.INSIDE:
        for decode in (decode_piece_untrusted, decode_avps_untrusted, decode_result_untrusted):
            with suppress(EapMalformed):
                decode(octets)
    else:
        for method in METHODS:
            with suppress(EapFailed):
                _play_peer(method, octets, is_whole=end is End.PEER)


def _play_server(octets: bytes, *, is_whole: bool) -> None:
    random = _random()
    acceptance = EapAcceptance(methods=METHODS, users=USERS, tls=_server_tls())
    server = EapServer(server_methods(acceptance, random, NOW), 0)
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
    credential = EapCredential(identity="carol", methods=(method,), password=key, tls=_client_tls())
    peer = EapPeer(b"carol", peer_methods(credential, _random(), NOW))
    for number, packet in enumerate(_packets(octets)):
        response = peer.handle(
            _whole(EapCode.REQUEST, number % 256, packet) if is_whole else packet
        )
        if response is not None:
            decode_eap_untrusted(response)
        if peer.outcome is not None and method in PROVING:
            raise Finding("a server that has proved nothing is believed")


@cache
def _server_tls() -> EapServerTls:
    root, server = _certified("gw.example.net")
    return EapServerTls(certificates=server[0], key=server[1], authorities=root)


@cache
def _client_tls() -> EapClientTls:
    root, (certificates, key) = _certified("carol")
    server = Identity.parse("gw.example.net")
    return EapClientTls(authorities=root, server=server, certificates=certificates, key=key)


def _certified(name: str) -> tuple[Certificates, tuple[Certificates, PrivateKey]]:
    """An authority, and what it has issued to somebody."""
    root = authority("root")
    leaf = root.issue(name, names=[dns(name)])
    pkcs8 = leaf.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    key = PrivateKey(octets=pkcs8, public=leaf.certificate.public_key_info, origin="fuzz")
    bundles = [Certificates(ders=(e.certificate.der,), origin="fuzz") for e in (root, leaf)]
    return bundles[0], (bundles[1], key)


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
    hello = bytes.fromhex("160301001b 0100001703 03") + bytes(21)
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
        "server-tls": _script(
            End.SERVER, identity, bytes([EapType.NAK, 13]), b"\x0d\x00" + hello, b"\x0d\x00"
        ),
        "server-pieces": _script(
            End.SERVER,
            identity,
            bytes([EapType.NAK, 21]),
            b"\x15\xc0\x00\x00\x00\x20" + hello[:16],
            b"\x15\x00" + hello[16:],
        ),
        "peer-tls": _script(End.PEER, b"\x01", b"\x0d\x20", b"\x0d\x00", b""),
        "peer-peap": _script(End.PEER, b"\x01", b"\x19\x20", b"\x19\x00" + hello, b""),
        "avps": bytes([End.INSIDE]) + encode_avps([Avp(AvpType.USER_NAME, b"carol")] * 2),
        "result": bytes([End.INSIDE]) + bytes.fromhex("800300020001"),
        "users": bytes([End.USERS]) + b"# who\ncarol: correct horse\n",
    }


def _script(end: End, *packets: bytes) -> bytes:
    return bytes([end]) + b"".join(bytes([len(packet)]) + packet for packet in packets)
