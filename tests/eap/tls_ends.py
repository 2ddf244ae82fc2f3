"""Servers and peers of the methods that speak TLS, with certificates of the tests' authority."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.eap.parties import USERS, numbered
from tests.pki.chains import NOW, Entity, authority, dns, extended
from xfrmpy.eap.eap_tls import TlsPeer, TlsServer
from xfrmpy.eap.gtc import GtcPeer, GtcServer
from xfrmpy.eap.md5 import Md5Peer, Md5Server
from xfrmpy.eap.method import PeerMethod, ServerMethod
from xfrmpy.eap.mschapv2 import Mschapv2Peer, Mschapv2Server
from xfrmpy.eap.peap import PeapPeer, PeapServer
from xfrmpy.eap.peer import EapPeer
from xfrmpy.eap.server import EapServer
from xfrmpy.eap.tls import TlsEnd, TlsKey, TlsVersion
from xfrmpy.eap.ttls import EapInside, Mschapv2Inside, PapInside, TtlsInside, TtlsPeer, TtlsServer
from xfrmpy.ike.tls_trust import TlsRole, trust_in
from xfrmpy.ipsec.identity import Identity

ROOT = authority("root")
ISSUING = authority("issuing", issuer=ROOT)
STRANGER = authority("another root")
GATEWAY, CLIENT = "gw.example.net", "alice.example.net"


def leaf(host: str, issuer: Entity = ISSUING, **wishes: Any) -> Entity:
    usages = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
    usual = {"extensions": [extended(*(oid.dotted_string for oid in usages))]}
    return issuer.issue(host, names=[dns(host)], **{**usual, **wishes})


def key_of(entity: Entity, *above: Entity) -> TlsKey:
    pkcs8 = entity.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return TlsKey(certificates=tuple(e.certificate.der for e in (entity, *above)), pkcs8=pkcs8)


def client(
    entity: Entity | None = None,
    *,
    server: str = GATEWAY,
    anchor: Entity = ROOT,
    newest: TlsVersion = TlsVersion.TLS13,
) -> TlsEnd:
    """A client that trusts one server, and has a certificate if `entity` is its."""
    return TlsEnd(
        key=None if entity is None else key_of(entity, ISSUING),
        trust=trust_in(Identity.parse(server), TlsRole.SERVER, [anchor.certificate], NOW),
        newest=newest,
    )


def gateway(
    entity: Entity,
    *,
    peer: str = "",
    anchor: Entity = ROOT,
    newest: TlsVersion = TlsVersion.TLS13,
) -> TlsEnd:
    """A server, that wants the certificate of `peer` if there is one."""
    anchors = [anchor.certificate]
    wanted = trust_in(Identity.parse(peer), TlsRole.CLIENT, anchors, NOW) if peer else None
    return TlsEnd(key=key_of(entity, ISSUING), trust=wanted, newest=newest)


SERVER_METHODS: dict[str, Callable[[bytes], ServerMethod]] = {
    "md5": lambda user: Md5Server(user, USERS.get, numbered("md5")),
    "mschapv2": lambda _: Mschapv2Server(b"gw", USERS.get, numbered("server")),
    "gtc": lambda user: GtcServer(user, USERS.get),
}


def peer_methods(kind: str, user: bytes, password: str) -> Sequence[Callable[[], PeerMethod]]:
    make: dict[str, Callable[[], PeerMethod]] = {
        "md5": lambda: Md5Peer(password),
        "mschapv2": lambda: Mschapv2Peer(user, password, numbered("peer")),
        "gtc": lambda: GtcPeer(password),
    }
    return [make[kind]]


def inside(kind: str, user: bytes, password: str) -> TtlsInside:
    """What a peer of TTLS says: `pap`, `mschapv2`, or `eap-` and a method."""
    if kind == "pap":
        return PapInside(user, password)
    if kind == "mschapv2":
        return Mschapv2Inside(user, password, numbered("peer"))
    return EapInside(user, peer_methods(kind.removeprefix("eap-"), user, password))


KINDS = (
    "tls",
    *("ttls pap", "ttls mschapv2", "ttls eap-md5", "ttls eap-mschapv2", "ttls eap-gtc"),
    *("peap mschapv2", "peap gtc"),
)


def peer_of(
    kind: str, end: TlsEnd, user: bytes = b"alice", password: str = USERS[b"alice"]
) -> EapPeer:
    """The peer of a kind; its identity outside a tunnel is nobody's."""
    method, _, within = kind.partition(" ")
    make: dict[str, Callable[[], PeerMethod]] = {
        "tls": lambda: TlsPeer(end),
        "ttls": lambda: TtlsPeer(end, inside(within, user, password)),
        "peap": lambda: PeapPeer(end, user, peer_methods(within, user, password)),
    }
    return EapPeer(user if method == "tls" else b"anonymous", [make[method]])


def server_of(kind: str, end: TlsEnd) -> EapServer:
    method, _, within = kind.partition(" ")
    methods = [SERVER_METHODS[name] for name in SERVER_METHODS if within.endswith(name)]
    make: dict[str, Callable[[bytes], ServerMethod]] = {
        "tls": lambda _: TlsServer(end),
        "ttls": lambda _: TtlsServer(end, USERS.get, methods, numbered("ttls")),
        "peap": lambda _: PeapServer(end, methods, first_id=0),
    }
    return EapServer([make[method]], first_id=250)


def pair(
    kind: str, newest: TlsVersion = TlsVersion.TLS13, **wishes: Any
) -> tuple[EapPeer, EapServer]:
    """Both ends of a kind, that trust each other."""
    ours = leaf(CLIENT) if kind == "tls" else None
    theirs = gateway(leaf(GATEWAY), peer=CLIENT if ours else "")
    return peer_of(kind, client(ours, newest=newest), **wishes), server_of(kind, theirs)


def run(ours: EapPeer, theirs: EapServer) -> Iterator[bytes]:
    """What is said, in turn, the server first."""
    request = theirs.begin()
    while True:
        yield request
        response = ours.handle(request)
        if response is None:
            return
        yield response
        request = theirs.handle(response)
