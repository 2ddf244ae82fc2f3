"""EAP-TLS, EAP-TTLS and PEAP with FreeRADIUS as the server, and wpa_supplicant as the peer.

Both are without IKE: what they carry EAP in is RADIUS, which tells the keys as well.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from integration.lab.authority import Hierarchy, expired, key_pem, pem
from integration.lab.freeradius import Freeradius
from integration.lab.process import PATIENCE, run
from integration.lab.radius_server import SECRET, EapOverRadius
from integration.test_radius import at, attempt
from tests.eap.tls_ends import CLIENT, GATEWAY, key_of
from tests.pki.chains import Entity
from xfrmpy.eap.eap_tls import TlsPeer, TlsServer
from xfrmpy.eap.gtc import GtcPeer, GtcServer
from xfrmpy.eap.md5 import Md5Peer, Md5Server
from xfrmpy.eap.method import EapFailed, PeerMethod, ServerMethod
from xfrmpy.eap.mschapv2 import Mschapv2Peer, Mschapv2Server
from xfrmpy.eap.peap import PeapPeer, PeapServer
from xfrmpy.eap.peer import EapPeer, PeerState
from xfrmpy.eap.server import EapServer
from xfrmpy.eap.tls import TlsEnd, TlsVersion
from xfrmpy.eap.ttls import EapInside, Mschapv2Inside, PapInside, TtlsInside, TtlsPeer, TtlsServer
from xfrmpy.ike.tls_trust import TlsRole, trust_in
from xfrmpy.ipsec.identity import Identity

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("gateway")]

USER, PASSWORD = b"alice", "correct horse"
USERS = {USER: PASSWORD}
OTHERS = Hierarchy.of("p384")
OURS = Hierarchy.of("p256")
SERVER = OURS.gateway(GATEWAY)
VERSIONS = {TlsVersion.TLS12: "1.2", TlsVersion.TLS13: "1.3"}

KINDS = (
    "tls",
    *("ttls pap", "ttls mschapv2", "ttls eap-md5", "ttls eap-mschapv2", "ttls eap-gtc"),
    *("peap mschapv2", "peap gtc"),
)

_TLS = """
tls-config tls-common {{
    private_key_file = {directory}/server.key
    certificate_file = {directory}/server.pem
    ca_file = {directory}/ca.pem
    auto_chain = no
    cipher_list = "DEFAULT"
    tls_min_version = "1.2"
    tls_max_version = "{newest}"
    fragment_size = 1024
    cache {{
        enable = no
    }}
}}
tls {{
    tls = tls-common
}}
ttls {{
    tls = tls-common
    virtual_server = inner-tunnel
    default_eap_type = md5
}}
peap {{
    tls = tls-common
    virtual_server = inner-tunnel
    default_eap_type = {inside}
}}
"""

_INNER = """
server inner-tunnel {
    authorize {
        mschap
        eap {
            ok = return
        }
        files
        pap
    }
    authenticate {
        Auth-Type PAP {
            pap
        }
        mschap
        eap
    }
}
"""


@contextmanager
def freeradius(
    directory: Path, newest: TlsVersion, *, server: Entity = SERVER
) -> Iterator[Freeradius]:
    files = {
        "server.key": key_pem(server),
        "server.pem": pem(server, OURS.issuing),
        "ca.pem": pem(OURS.root),
    }
    for name, octets in files.items():
        (directory / name).write_bytes(octets)
    started = Freeradius(
        (),
        directory / "radius",
        users={name.decode(): password for name, password in USERS.items()},
        eap=_TLS.format(directory=directory, newest=VERSIONS[newest], inside="mschapv2"),
        servers=_INNER,
    )
    try:
        yield started
    finally:
        started.stop()


def method_of(kind: str) -> str:
    return kind.partition(" ")[0]


def client_end(*, anchor: Entity = OURS.root, server: str = GATEWAY, own: Entity | None) -> TlsEnd:
    return TlsEnd(
        key=None if own is None else key_of(own, OURS.issuing),
        trust=trust_in(
            Identity.parse(server), TlsRole.SERVER, [anchor.certificate], datetime.now(UTC)
        ),
    )


def peer(kind: str, end: TlsEnd, password: str = PASSWORD) -> EapPeer:
    """Its identity outside of a tunnel is nobody's."""
    method, _, within = kind.partition(" ")
    simple: dict[str, Callable[[], PeerMethod]] = {
        "md5": lambda: Md5Peer(password),
        "mschapv2": lambda: Mschapv2Peer(USER, password, secrets.token_bytes),
        "gtc": lambda: GtcPeer(password),
    }

    def inside() -> TtlsInside:
        if within == "pap":
            return PapInside(USER, password)
        if within == "mschapv2":
            return Mschapv2Inside(USER, password, secrets.token_bytes)
        return EapInside(USER, [simple[within.removeprefix("eap-")]])

    make: dict[str, Callable[[], PeerMethod]] = {
        "tls": lambda: TlsPeer(end),
        "ttls": lambda: TtlsPeer(end, inside()),
        "peap": lambda: PeapPeer(end, USER, [simple[within]]),
    }
    return EapPeer(CLIENT.encode() if kind == "tls" else b"anonymous", [make[method]])


@pytest.fixture(scope="module", params=TlsVersion, ids=lambda version: version.name)
def version(request: pytest.FixtureRequest) -> TlsVersion:
    return TlsVersion(request.param)


@pytest.fixture(scope="module")
def server(
    gateway: str, version: TlsVersion, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Freeradius]:
    del gateway
    with freeradius(tmp_path_factory.mktemp("eap"), version) as started:
        yield started


@pytest.mark.parametrize("kind", KINDS)
def test_freeradius_and_we_have_one_key(server: Freeradius, version: TlsVersion, kind: str) -> None:
    own = OURS.gateway(CLIENT) if kind == "tls" else None
    before = len(server.words)
    done = attempt(at(server), ours=peer(kind, client_end(own=own)))
    assert done.peer.state is PeerState.SUCCEEDED
    assert done.peer.outcome is not None
    assert len(done.grant.msk) == 64
    assert done.peer.outcome.msk == done.grant.msk
    assert f"send TLS {VERSIONS[version]} Handshake, ServerHello" in server.words[before:]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tls"])
def test_freeradius_refuses_a_wrong_password(server: Freeradius, kind: str) -> None:
    """PEAP says so inside the tunnel, before RADIUS does."""
    ours = peer(kind, client_end(own=None), password="guessed")
    if method_of(kind) == "peap":
        with pytest.raises(EapFailed, match="refuses us inside the tunnel"):
            attempt(at(server), ours=ours)
    else:
        assert "refuses the user" in attempt(at(server), ours=ours).failure
    assert ours.outcome is None


@pytest.mark.parametrize("own", [OTHERS.gateway(CLIENT), OURS.gateway(CLIENT, **expired()), None])
def test_freeradius_refuses_a_wrong_certificate(server: Freeradius, own: Entity | None) -> None:
    ours = peer("tls", client_end(own=own))
    with suppress(EapFailed):  # an alert of TLS may come first, and may not
        assert "refuses the user" in attempt(at(server), ours=ours).failure
    assert ours.outcome is None


@pytest.mark.parametrize("kind", ["tls", "ttls pap", "peap mschapv2"])
@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        ({"anchor": OTHERS.root}, "certificate verify failed"),
        ({"server": "other.example.net"}, "XF2114"),
    ],
)
def test_freeradius_learns_nothing_from_us_if_it_is_not_the_right_server(
    server: Freeradius, kind: str, wishes: dict[str, Any], why: str
) -> None:
    """CVE-2015-4171: neither a password nor the name that stands inside the tunnel."""
    before = len(server.words)
    own = OURS.gateway(CLIENT) if kind == "tls" else None
    with pytest.raises(EapFailed, match=why):
        attempt(at(server), ours=peer(kind, client_end(own=own, **wishes)))
    words = server.words[before:]
    assert "Received Access-Request" in words
    assert USER.decode() not in words.replace(CLIENT, "")


# The other way round: wpa_supplicant's peer, and a server of ours behind RADIUS.

_SUPPLICANT = """
network={{
    key_mgmt=IEEE8021X
    eap={method}
    identity="{identity}"
    anonymous_identity="anonymous"
    password="{password}"
    ca_cert="{directory}/ca.pem"
    domain_match="{server}"
    {key}
    phase1="tls_disable_tlsv1_3={no_tls13}"
    fragment_size=300
    {inside}
}}
"""

_KEY = 'client_cert="{directory}/client.pem"\n    private_key="{directory}/client.key"'

_INSIDE = {
    "tls": "",
    "ttls pap": 'phase2="auth=PAP"',
    "ttls mschapv2": 'phase2="auth=MSCHAPV2"',
    "ttls eap-md5": 'phase2="autheap=MD5"',
    "ttls eap-mschapv2": 'phase2="autheap=MSCHAPV2"',
    "ttls eap-gtc": 'phase2="autheap=GTC"',
    "peap mschapv2": 'phase2="auth=MSCHAPV2"',
    "peap gtc": 'phase2="auth=GTC"',
}


def eap_server(kind: str) -> EapServer:
    method, _, within = kind.partition(" ")
    wanted = trust_in(
        Identity.parse(CLIENT), TlsRole.CLIENT, [OURS.root.certificate], datetime.now(UTC)
    )
    key = key_of(SERVER, OURS.issuing)
    simple: dict[str, Callable[[bytes], ServerMethod]] = {
        "md5": lambda user: Md5Server(user, USERS.get, secrets.token_bytes),
        "mschapv2": lambda _: Mschapv2Server(b"gw", USERS.get, secrets.token_bytes),
        "gtc": lambda user: GtcServer(user, USERS.get),
    }
    inside = [make for name, make in simple.items() if within.endswith(name)]
    make: dict[str, Callable[[bytes], ServerMethod]] = {
        "tls": lambda _: TlsServer(TlsEnd(key=key, trust=wanted)),
        "ttls": lambda _: TtlsServer(TlsEnd(key=key), USERS.get, inside, secrets.token_bytes),
        "peap": lambda _: PeapServer(TlsEnd(key=key), inside, first_id=0),
    }
    return EapServer([make[method]], first_id=secrets.randbelow(256))


def supplicant(
    kind: str,
    version: TlsVersion,
    directory: Path,
    port: int,
    *,
    password: str = PASSWORD,
    own: Entity | None = None,
    server: str = GATEWAY,
    anchor: Entity = OURS.root,
    again: int = 0,
) -> tuple[int, str]:
    """The exit code of `eapol_test`, 0 for success and equal keys, and what it has said.

    Its pieces are smaller than ours. It authenticates `again` so many times.
    """
    client = own or OURS.gateway(CLIENT)
    (directory / "ca.pem").write_bytes(pem(anchor))
    (directory / "client.pem").write_bytes(pem(client, OURS.issuing))
    (directory / "client.key").write_bytes(key_pem(client))
    configuration = directory / "supplicant.conf"
    configuration.write_text(
        _SUPPLICANT.format(
            method=method_of(kind).upper(),
            identity=CLIENT if kind == "tls" else USER.decode(),
            password=password,
            directory=directory,
            server=server,
            key=_KEY.format(directory=directory) if kind == "tls" else "",
            no_tls13=int(version is TlsVersion.TLS12),
            inside=_INSIDE[kind],
        )
    )
    seconds = int(30 * PATIENCE)
    argv = ("-c", str(configuration), "-p", str(port), "-s", SECRET, "-t", str(seconds))
    done = run("eapol_test", *argv, "-r", str(again), check=False, seconds=2 * seconds)
    return done.returncode, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_wpa_supplicant_and_our_server_have_one_key(
    version: TlsVersion, tmp_path: Path, kind: str
) -> None:
    with EapOverRadius.serving(lambda: eap_server(kind)) as serving:
        code, said = supplicant(kind, version, tmp_path, serving.port)
        assert code == 0, f"{serving.server.failure}\n{said[-6000:]}"
        assert "MPPE keys OK: 1  mismatch: 0" in said
        outcome = serving.outcome
        assert outcome is not None
        assert outcome.identity == (CLIENT.encode() if kind == "tls" else USER)
        assert f"Using TLS version TLSv{VERSIONS[version]}" in said


@pytest.mark.parametrize("kind", ["tls", "ttls eap-mschapv2", "peap mschapv2"])
def test_wpa_supplicant_that_comes_again_resumes_nothing(
    version: TlsVersion, tmp_path: Path, kind: str
) -> None:
    with EapOverRadius.serving(lambda: eap_server(kind)) as serving:
        code, said = supplicant(kind, version, tmp_path, serving.port, again=1)
    assert code == 0, f"{serving.server.failure}\n{said[-6000:]}"
    assert "MPPE keys OK: 2  mismatch: 0" in said
    assert said.count("Handshake finished - resumed=0") >= 2
    assert "resumed=1" not in said


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tls"])
def test_wpa_supplicant_with_a_wrong_password_is_refused(
    version: TlsVersion, tmp_path: Path, kind: str
) -> None:
    with EapOverRadius.serving(lambda: eap_server(kind)) as serving:
        code, said = supplicant(kind, version, tmp_path, serving.port, password="guessed")
    assert code != 0
    assert "password" in serving.server.failure, said[-6000:]
    assert serving.outcome is None


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (OTHERS.gateway(CLIENT), "certificate verify failed"),
        (OURS.gateway(CLIENT, **expired()), "certificate verify failed"),
        (OURS.gateway("mallory.example.net"), "XF2114"),
    ],
)
def test_wpa_supplicant_with_a_wrong_certificate_is_refused(
    version: TlsVersion, tmp_path: Path, own: Entity, why: str
) -> None:
    with EapOverRadius.serving(lambda: eap_server("tls")) as serving:
        code, said = supplicant("tls", version, tmp_path, serving.port, own=own)
    assert code != 0
    assert why in serving.server.failure, said[-6000:]
    assert serving.outcome is None


@pytest.mark.parametrize("wishes", [{"anchor": OTHERS.root}, {"server": "other.example.net"}])
def test_wpa_supplicant_that_does_not_believe_us_does_not_come_in(
    version: TlsVersion, tmp_path: Path, wishes: dict[str, Any]
) -> None:
    with EapOverRadius.serving(lambda: eap_server("ttls pap")) as serving:
        code, said = supplicant("ttls pap", version, tmp_path, serving.port, **wishes)
    assert code != 0
    assert "TLS" in serving.server.failure, said[-6000:]
    assert serving.outcome is None
