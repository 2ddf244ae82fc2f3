"""The methods of EAP by the names that a policy has for them; each further one is a row here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from xfrmpy.eap.gtc import GtcPeer, GtcServer
from xfrmpy.eap.md5 import Md5Peer, Md5Server
from xfrmpy.eap.method import PeerMethod, Random, ServerMethod, Users
from xfrmpy.eap.mschapv2 import Mschapv2Peer, Mschapv2Server
from xfrmpy.policy.model import EapAcceptance, EapCredential, EapMethod

SERVER_NAME = b"xfrmpy"
"""Who asks, as some methods tell the peer: it means nothing to anybody."""

MakePeer: TypeAlias = Callable[[EapCredential, Random], PeerMethod]
MakeServer: TypeAlias = Callable[[bytes, Users, Random], ServerMethod]

PEERS: dict[EapMethod, MakePeer] = {
    EapMethod.MSCHAPV2: lambda ours, random: Mschapv2Peer(
        ours.identity.encode(), password_of(ours), random
    ),
    EapMethod.MD5: lambda ours, _: Md5Peer(password_of(ours)),
    EapMethod.GTC: lambda ours, _: GtcPeer(password_of(ours)),
}
"""The peer's side of each, by what a policy has of us."""

SERVERS: dict[EapMethod, MakeServer] = {
    EapMethod.MSCHAPV2: lambda _, users, random: Mschapv2Server(SERVER_NAME, users, random),
    EapMethod.MD5: Md5Server,
    EapMethod.GTC: lambda user, users, _: GtcServer(user, users),
}
"""The server's side of each, for who the peer says it is."""


def password_of(credential: EapCredential) -> str:
    """As text, which MSCHAPv2 hashes as UTF-16 and others send as UTF-8."""
    return credential.password.octets.decode()


def peer_methods(credential: EapCredential, random: Random) -> list[Callable[[], PeerMethod]]:
    """Those by which we may prove who we are."""
    return [partial(PEERS[method], credential, random) for method in credential.methods]


def server_methods(
    acceptance: EapAcceptance, random: Random
) -> list[Callable[[bytes], ServerMethod]]:
    """Those by which the users that are known here may."""
    assert acceptance.users is not None
    users = dict(acceptance.users.passwords).get
    return [
        partial(_begin, SERVERS[method], users=users, random=random)
        for method in acceptance.methods
    ]


def _begin(make: MakeServer, user: bytes, *, users: Users, random: Random) -> ServerMethod:
    return make(user, users, random)
