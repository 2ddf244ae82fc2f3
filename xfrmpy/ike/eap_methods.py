"""The methods of EAP by the names that a policy has for them; each further one is a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeAlias

from xfrmpy.eap.eap_tls import TlsPeer, TlsServer
from xfrmpy.eap.gtc import GtcPeer, GtcServer
from xfrmpy.eap.md5 import Md5Peer, Md5Server
from xfrmpy.eap.method import PeerMethod, Random, ServerMethod, Users
from xfrmpy.eap.mschapv2 import Mschapv2Peer, Mschapv2Server
from xfrmpy.eap.peap import PeapPeer, PeapServer
from xfrmpy.eap.tls import TlsEnd
from xfrmpy.eap.ttls import EapInside as TtlsEap
from xfrmpy.eap.ttls import Mschapv2Inside, PapInside, TtlsInside, TtlsPeer, TtlsServer
from xfrmpy.ike.tls_trust import asking_end, client_end, server_end
from xfrmpy.policy.model import (
    EapAcceptance,
    EapClientTls,
    EapCredential,
    EapInside,
    EapMethod,
    EapServerTls,
)

SERVER_NAME = b"xfrmpy"
"""Who asks, as some methods tell the peer: it means nothing to anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """As whom we call. `now` is the time of day, by which certificates are judged."""

    credential: EapCredential
    random: Random
    now: datetime

    @property
    def name(self) -> bytes:
        return self.credential.identity.encode()

    @property
    def password(self) -> str:
        """As text, which MSCHAPv2 hashes as UTF-16 and others send as UTF-8."""
        assert self.credential.password is not None
        return self.credential.password.octets.decode()

    @property
    def tls(self) -> EapClientTls:
        assert self.credential.tls is not None
        return self.credential.tls

    @property
    def end(self) -> TlsEnd:
        return client_end(self.tls, self.now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Whom we let in, and how."""

    acceptance: EapAcceptance
    random: Random
    now: datetime

    @property
    def users(self) -> Users:
        known = self.acceptance.users
        return dict(() if known is None else known.passwords).get

    @property
    def tls(self) -> EapServerTls:
        assert self.acceptance.tls is not None
        return self.acceptance.tls

    def inside(self, *methods: EapMethod) -> list[Callable[[bytes], ServerMethod]]:
        """Those of EAP within TLS."""
        return [partial(SERVERS[method], self) for method in methods]


PEERS: dict[EapMethod, Callable[[User], PeerMethod]] = {
    EapMethod.MSCHAPV2: lambda our: Mschapv2Peer(our.name, our.password, our.random),
    EapMethod.MD5: lambda our: Md5Peer(our.password),
    EapMethod.GTC: lambda our: GtcPeer(our.password),
    EapMethod.TLS: lambda our: TlsPeer(our.end),
    EapMethod.TTLS: lambda our: TtlsPeer(our.end, INSIDE[our.tls.inside](our)),
    EapMethod.PEAP: lambda our: PeapPeer(our.end, our.name, _within(our)),
}
"""The peer's side of each, by what a policy has of us."""

_WITHIN = {
    EapInside.EAP_MSCHAPV2: EapMethod.MSCHAPV2,
    EapInside.EAP_MD5: EapMethod.MD5,
    EapInside.EAP_GTC: EapMethod.GTC,
}
"""Those within TLS that are methods of EAP."""

INSIDE: dict[EapInside, Callable[[User], TtlsInside]] = {
    EapInside.PAP: lambda our: PapInside(our.name, our.password),
    EapInside.MSCHAPV2: lambda our: Mschapv2Inside(our.name, our.password, our.random),
    **dict.fromkeys(_WITHIN, lambda our: TtlsEap(our.name, _within(our))),
}
"""What is said within TTLS."""

ServerMaker: TypeAlias = Callable[[Service, bytes], ServerMethod]

SERVERS: dict[EapMethod, ServerMaker] = {
    EapMethod.MSCHAPV2: lambda our, _: Mschapv2Server(SERVER_NAME, our.users, our.random),
    EapMethod.MD5: lambda our, user: Md5Server(user, our.users, our.random),
    EapMethod.GTC: lambda our, user: GtcServer(user, our.users),
    EapMethod.TLS: lambda our, user: TlsServer(asking_end(our.tls, user, our.now)),
    EapMethod.TTLS: lambda our, _: TtlsServer(
        server_end(our.tls), our.users, our.inside(*_WITHIN.values()), our.random
    ),
    EapMethod.PEAP: lambda our, _: PeapServer(
        server_end(our.tls), our.inside(EapMethod.MSCHAPV2, EapMethod.GTC), our.random(1)[0]
    ),
}
"""The server's side of each, for who the peer says it is."""


def peer_methods(
    credential: EapCredential, random: Random, now: datetime
) -> list[Callable[[], PeerMethod]]:
    """Those by which we may prove who we are."""
    user = User(credential=credential, random=random, now=now)
    return [partial(PEERS[method], user) for method in credential.methods]


def server_methods(
    acceptance: EapAcceptance, random: Random, now: datetime
) -> list[Callable[[bytes], ServerMethod]]:
    """Those by which the users that are known here may."""
    service = Service(acceptance=acceptance, random=random, now=now)
    return service.inside(*acceptance.methods)


def _within(our: User) -> list[Callable[[], PeerMethod]]:
    return [partial(PEERS[_WITHIN[our.tls.inside]], our)]
