"""TLS within EAP in policy files: what a user and a gateway need for it, and what is in vain."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.eap.tls_ends import CLIENT, GATEWAY
from tests.pki.chains import DAY, Entity, authority, dns, extended
from tests.policy.test_eap import CLIENT as CLIENT_FILE
from tests.policy.test_eap import SERVER as SERVER_FILE
from tests.policy.test_eap import USERS, Lines, Load, is_told, only
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.load import LoadedPolicy
from xfrmpy.policy.model import EapInside, EapMethod

TODAY = datetime.now(UTC)
DATES = {"start": TODAY - DAY, "end": TODAY + 300 * DAY}
ROOT = authority("root", **DATES)
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH.dotted_string
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH.dotted_string
IPSEC_IKE = ExtendedKeyUsageOID.IPSEC_IKE.dotted_string


def leaf(host: str, *usages: str) -> Entity:
    return ROOT.issue(host, names=[dns(host)], extensions=[extended(*usages)], **DATES)


ENTITIES = {
    "carol": leaf(CLIENT, CLIENT_AUTH),
    "gw1": leaf(GATEWAY, SERVER_AUTH),
    "ike": leaf("gw1.example.net", IPSEC_IKE),
    "both": leaf("gw1.example.net", IPSEC_IKE, SERVER_AUTH),
}
FILES: dict[str, str | bytes] = {
    "../cas/corp.pem": ROOT.library.public_bytes(Encoding.PEM),
    **{f"../certs/{n}.pem": e.library.public_bytes(Encoding.PEM) for n, e in ENTITIES.items()},
    **{
        f"../keys/{n}.key": e.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for n, e in ENTITIES.items()
    },
    "../secrets/carol": "correct horse\n",
    "../secrets/users": USERS,
}


def client(load: Load, eap: str) -> LoadedPolicy:
    return load(**FILES, **{"office.yaml": CLIENT_FILE.replace("EAP", f"{{{eap}}}")})


def server(load: Load, eap: str, ours: str = "key: secret:gw") -> LoadedPolicy:
    text = SERVER_FILE.replace("EAP", f"{{{eap}}}").replace("key: secret:gw", ours)
    return load(**FILES, **{"office.yaml": text, "../secrets/gw": FILES["../keys/gw1.key"]})


PASSWORD = "identity: carol, password: secret:carol"


def test_a_user_by_certificate_needs_no_password(load: Load) -> None:
    ours = only(client(load, f"method: tls, identity: {CLIENT}, cert: carol, ca: corp")).local_eap
    assert ours is not None
    assert (ours.methods, ours.password) == ((EapMethod.TLS,), None)
    assert ours.tls is not None
    assert ours.tls.server == Identity.parse("vpn.example.org")
    assert ours.tls.certificates is not None
    assert ours.tls.key is not None
    assert ours.tls.key.public == ENTITIES["carol"].certificate.public_key_info
    assert "keys/carol.key" in str(ours)


def test_a_user_within_ttls_believes_the_server_that_the_policy_names(load: Load) -> None:
    text = f"method: [ttls, peap], {PASSWORD}, ca: corp, server: radius.example.org"
    ours = only(client(load, text)).local_eap
    assert ours is not None
    assert ours.tls is not None
    assert ours.tls.server == Identity.parse("radius.example.org")
    assert (ours.tls.inside, ours.tls.certificates) == (EapInside.EAP_MSCHAPV2, None)


@pytest.mark.parametrize(
    ("eap", "ours", "name"),
    [
        ("methods: [peap, ttls], cert: gw1", "key: secret:gw", "gw1"),
        ("methods: ttls", "cert: both", "both"),
    ],
)
def test_a_gateway_shows_a_certificate_of_its_own_or_that_of_ike(
    eap: str, ours: str, name: str, load: Load
) -> None:
    theirs = only(server(load, f"users: secret:users, {eap}", ours)).remote_eap
    assert theirs is not None
    assert theirs.tls is not None
    shown = ENTITIES[name].certificate
    assert theirs.tls.certificates.ders == (shown.der,)
    assert theirs.tls.key.public == shown.public_key_info
    assert theirs.tls.authorities is None


def test_a_gateway_that_takes_certificates_needs_no_users(load: Load) -> None:
    theirs = only(server(load, "methods: tls, cert: gw1, ca: corp")).remote_eap
    assert theirs is not None
    assert theirs.users is None
    assert theirs.tls is not None
    assert theirs.tls.authorities is not None


@pytest.mark.parametrize(
    ("eap", "message"),
    [
        (f"method: tls, identity: {CLIENT}, ca: corp", "4: XF1005: 'cert' of 'eap' is missing"),
        (f"method: peap, {PASSWORD}", "4: XF1005: 'ca' of 'eap' is missing"),
        ("method: ttls, identity: carol, ca: corp", "4: XF1005: 'password' of 'eap' is missing"),
        (f"method: tls, {PASSWORD}, cert: carol, ca: corp", "4: XF1004: 'password' has no meaning"),
        (f"method: ttls, {PASSWORD}, cert: carol, ca: corp", "4: XF1004: 'cert' of 'eap' has no"),
        (f"method: md5, {PASSWORD}, ca: corp", "4: XF1004: 'ca' of 'eap' has no meaning with md5"),
        (f"method: gtc, {PASSWORD}, inside: pap", "4: XF1004: 'inside' of 'eap' has no meaning"),
        (f"method: peap, {PASSWORD}, ca: corp, inside: pap", "4: XF1004: within peap there is no"),
        (f"method: peap, {PASSWORD}, ca: corp, inside: md4", "4: XF1004: 'inside' must be one of"),
        (
            f"method: tls, identity: {CLIENT}, cert: carol, ca: corp, inside: pap",
            "4: XF1004: 'inside' has no meaning with the method tls",
        ),
        (
            f"method: tls, identity: {CLIENT}, cert: gw1, ca: corp",
            "4: XF1031: ",
        ),
        (f"method: tls, identity: {CLIENT}, cert: nobody, ca: corp", "4: XF1031: "),
        (f"method: tls, identity: {CLIENT}, cert: file:/x, ca: corp", "4: XF1004: the key of"),
        (f"method: peap, {PASSWORD}, ca: nobody", "4: XF1031: "),
    ],
)
def test_what_is_wrong_with_our_end_is_told_where_it_stands(
    eap: str, message: str, load: Load, lines: Lines
) -> None:
    found = client(load, eap)
    assert is_told(message, lines(found)), lines(found)
    assert found.tunnels == ()


@pytest.mark.parametrize(
    ("eap", "ours", "message"),
    [
        ("methods: ttls, cert: gw1", "key: secret:gw", "3: XF1005: 'users' of 'eap' is missing"),
        ("methods: tls, cert: gw1", "key: secret:gw", "3: XF1005: 'ca' of 'eap' is missing"),
        (
            "users: secret:users, methods: ttls",
            "key: secret:gw",
            "3: XF1005: 'cert' of 'eap' is missing",
        ),
        (
            "users: secret:users, methods: ttls, cert: gw1, ca: corp",
            "key: secret:gw",
            "3: XF1004: 'ca' of 'eap' has no meaning without the method tls",
        ),
        (
            "users: secret:users, methods: md5, cert: gw1",
            "key: secret:gw",
            "3: XF1004: 'cert' of 'eap' has no meaning with md5",
        ),
        (
            "users: secret:users, methods: tls, cert: gw1, ca: corp",
            "key: secret:gw",
            "3: XF1004: 'users' has no meaning with the method tls",
        ),
        ("users: secret:users, methods: ttls", "cert: ike", "3: XF1031: "),
        ("users: secret:users, methods: ttls, cert: carol", "key: secret:gw", "3: XF1031: "),
    ],
)
def test_what_is_wrong_with_their_end_is_told_where_it_stands(
    eap: str, ours: str, message: str, load: Load, lines: Lines
) -> None:
    found = server(load, eap, ours)
    assert is_told(message, lines(found)), lines(found)
    assert found.tunnels == ()
