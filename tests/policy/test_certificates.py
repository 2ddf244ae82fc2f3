"""Certificates in a policy: where they are looked for, and what is told of those that do not do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    load_pem_private_key,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates

from tests.ike.conftest import mirrored, tunnel_policy
from tests.policy.conftest import STRONG
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.certificate import load_bundle
from xfrmpy.pki.issuing import Authority, Issued, KeyType, make_authority, pem_of
from xfrmpy.policy.load import LoadedPolicy
from xfrmpy.policy.model import Certificates, PrivateKey, TunnelPolicy
from xfrmpy.policy.pairing import Disagreement, pair_policies

NOW = datetime.now(UTC)
SHORT = """
peer: 192.0.2.1
cert: gw
ca: corp
local: 10.1.0.0/16
remote: 10.2.0.0/16
"""
WITH_SECRET = """
peer: 192.0.2.1
psk: secret:key
local: 10.1.0.0/16
remote: 10.2.0.0/16
"""
LONG = """
peer: 192.0.2.1
auth: {local: {cert: gw%s}, remote: {ca: corp, id: "CN=sun, O=Example"}}
local: 10.1.0.0/16
remote: 10.2.0.0/16
"""

Load = Callable[..., LoadedPolicy]


def an_authority(name: str = "Example", days: int = 30, now: datetime = NOW) -> Authority:
    made = make_authority(f"O={name}, CN=CA", KeyType.P256, serial=1, now=now, days=days)
    return Authority.load(made.certificate, made.key_pem)


CORP = an_authority()


def issued(*ids: str, authority: Authority = CORP, now: datetime = NOW, days: int = 20) -> Issued:
    identities = [Identity.parse(text) for text in ids]
    return authority.issue("gw", identities, KeyType.P256, serial=7, now=now, days=days)


GW = issued("gw.example.net", "192.0.2.7")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the certificates of the operator's layer are; what a gateway has is in it."""
    etc = tmp_path / "etc"
    for name in ("certs", "keys", "cas"):
        (etc / name).mkdir(parents=True)
    (etc / "certs/gw.pem").write_bytes(pem_of(GW.certificate))
    (etc / "cas/corp.pem").write_bytes(pem_of(CORP.certificate))
    write_key(etc / "keys/gw.key", GW)
    return etc


def write_key(path: Path, of: Issued) -> None:
    path.touch(0o600)
    path.write_bytes(of.key_pem)


def only(loaded: LoadedPolicy) -> TunnelPolicy:
    assert loaded.errors == ()
    (tunnel,) = loaded.tunnels
    return tunnel


def test_the_short_form_is_enough(load: Load, place: Path) -> None:
    loaded = load(**{"a.yaml": SHORT})
    tunnel = only(loaded)
    assert loaded.warnings == ()
    assert tunnel.local_certificates is not None
    assert tunnel.local_certificates.ders == (GW.certificate.der,)
    assert tunnel.local_certificates.origin == str(place / "certs/gw.pem")
    assert tunnel.remote_authorities is not None
    assert tunnel.remote_authorities.ders == (CORP.certificate.der,)
    assert tunnel.local_key is not None
    assert tunnel.local_key.public == GW.certificate.public_key_info
    assert tunnel.shared_key is None
    assert str(tunnel.local_id) == "gw.example.net"


@pytest.mark.usefixtures("place")
def test_the_long_form_names_identities_as_the_certificate_writes_them(load: Load) -> None:
    tunnel = only(load(**{"a.yaml": LONG % ', id: "o=EXAMPLE, CN=gw"'}))
    assert tunnel.local_id is not None
    assert tunnel.local_id.data == GW.certificate.subject
    assert str(tunnel.remote_id) == "CN=sun, O=Example"


def test_a_certificate_and_its_key_may_be_anywhere(load: Load, place: Path) -> None:
    (place / "certs/gw.pem").rename(place / "x.pem")
    (place / "keys/gw.key").rename(place / "x.key")
    local = f"{{cert: 'file:{place}/x.pem', key: 'file:{place}/x.key'}}"
    assert only(load(**{"a.yaml": LONG.replace("{cert: gw%s}", local)})).local_certificates


def test_a_certificate_that_is_anywhere_needs_a_key_that_is_named(load: Load, place: Path) -> None:
    local = f"{{cert: 'file:{place}/certs/gw.pem'}}"
    (error,) = load(**{"a.yaml": LONG.replace("{cert: gw%s}", local)}).errors
    assert (error.code, error.line) == ("XF1005", 3)


def test_a_certificate_and_a_shared_key_may_each_prove_one_end(load: Load, place: Path) -> None:
    assert place
    mixed = SHORT.replace("ca: corp", "psk: secret:key")
    tunnel = only(load(**{"a.yaml": mixed, "../secrets/key": STRONG}))
    assert tunnel.remote_authorities is None
    assert tunnel.shared_key is not None
    assert tunnel.local_certificates is not None


def put(path: str, *certificates: Issued | Authority) -> Callable[[Path], None]:
    return _writes(path, b"".join(pem_of(each.certificate) for each in certificates))


def let_others_write(place: Path) -> None:
    (place / "cas/corp.pem").chmod(0o666)


def be_seen(place: Path) -> None:
    (place / "keys/gw.key").chmod(0o644)


def vanish(path: str) -> Callable[[Path], None]:
    return lambda place: (place / path).unlink()


def spoil(path: str) -> Callable[[Path], None]:
    return _writes(path, b"nothing of the kind")


def _writes(path: str, data: bytes) -> Callable[[Path], None]:
    def write(place: Path) -> None:
        (place / path).write_bytes(data)

    return write


WRONG: dict[str, tuple[str, int, str, Callable[[Path], None]]] = {
    "no certificate": ("XF1031", 3, "certs/gw.pem cannot be used: No such", vanish("certs/gw.pem")),
    "no authority": ("XF1031", 4, "cas/corp.pem cannot be used: No such", vanish("cas/corp.pem")),
    "no key": ("XF1008", 3, "keys/gw.key cannot be read", vanish("keys/gw.key")),
    "a damaged certificate": ("XF1031", 3, "neither PEM nor DER", spoil("certs/gw.pem")),
    "a damaged authority": ("XF1031", 4, "neither PEM nor DER", spoil("cas/corp.pem")),
    "an authority as our own": ("XF1031", 3, "authority's certificate", put("certs/gw.pem", CORP)),
    "a leaf as authority": ("XF1031", 4, "is not an authority", put("cas/corp.pem", GW)),
    "another's key": ("XF1032", 3, "is not that of", put("certs/gw.pem", issued("x"))),
    "an authority that others can change": ("XF1031", 4, "changed by others", let_others_write),
    "a key that others can read": ("XF1009", 3, "can be read by others", be_seen),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_do_is_told_where_it_is_written(load: Load, place: Path, case: str) -> None:
    code, line, message, spoils = WRONG[case]
    spoils(place)
    loaded = load(**{"a.yaml": SHORT})
    (error,) = loaded.errors
    assert (error.code, error.line) == (code, line)
    assert message in error.message
    assert loaded.tunnels == ()


@pytest.mark.usefixtures("place")
def test_an_identity_that_the_certificate_has_not_is_told_with_those_it_has(load: Load) -> None:
    (error,) = load(**{"a.yaml": SHORT + "id: other.example.net\n"}).errors
    assert error.code == "XF1033"
    assert (error.line, error.column) == (7, 5)
    assert "gw.example.net, 192.0.2.7, O=Example, CN=gw" in error.hint


@pytest.mark.parametrize("which", ["ours", "the authority"])
def test_what_has_expired_is_a_warning_for_the_clock_may_be_wrong(
    load: Load, place: Path, which: str
) -> None:
    past = NOW - timedelta(days=100)
    if which == "ours":
        old = issued("gw.example.net", now=past)
        put("certs/gw.pem", old)(place)
        write_key(place / "keys/gw.key", old)
    else:
        put("cas/corp.pem", an_authority(now=past))(place)
    loaded = load(**{"a.yaml": SHORT})
    assert only(loaded)
    (warning,) = loaded.warnings
    assert (warning.code, warning.line) == ("XF1034", 3 if which == "ours" else 4)
    assert "has expired" in warning.message


def test_the_list_beside_the_authorities_is_read(load: Load, place: Path) -> None:
    crl = CORP.revoke([7], None, now=NOW, days=3)
    (place / "cas/corp.crl").write_bytes(crl)
    loaded = load(**{"a.yaml": SHORT})
    authorities = only(loaded).remote_authorities
    assert authorities is not None
    assert (authorities.crl, loaded.warnings) == (crl, ())


BY_URL = """
peer: 192.0.2.1
auth: {local: {cert: gw}, remote: {ca: corp, id: "CN=sun, O=Example", hash_and_url: %s}}
local: 10.1.0.0/16
remote: 10.2.0.0/16
"""


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("certs.example.net", ("certs.example.net",)),
        ("['192.0.2.1:8080', '[2001:db8::1]:81']", ("192.0.2.1:8080", "[2001:db8::1]:81")),
    ],
)
def test_hosts_of_certificates_are_read_with_their_ports(
    load: Load, text: str, hosts: tuple[str, ...]
) -> None:
    loaded = load(**{"a.yaml": BY_URL % text})
    assert only(loaded).certificate_hosts == hosts


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "text",
    [
        "'http://certs.example.net/'",
        "certs.example.net/x",
        "user@certs.example.net",
        "'certs.example.net:99999'",
        "yes",
        "[]",
        "'*'",
        "'*.example.net'",
        "'certs.example.net?'",
        "'2001:db8::1'",
        "'[fe80::1%eth0]'",
    ],
)
def test_what_is_no_host_is_told(load: Load, text: str) -> None:
    (error,) = load(**{"a.yaml": BY_URL % text}).errors
    assert (error.code, error.line) == ("XF1004", 3)
    assert "hash_and_url" in error.message


def test_hosts_of_certificates_have_no_meaning_without_authorities(load: Load) -> None:
    text = WITH_SECRET + "auth: {remote: {hash_and_url: certs.example.net}}"
    messages = [error.message for error in load(**{"a.yaml": text}).errors]
    assert "'hash_and_url' has no meaning without a 'ca'" in messages


@pytest.mark.parametrize("days", [-3, None])
def test_a_list_that_is_old_or_none_is_told(load: Load, place: Path, days: int | None) -> None:
    past = NOW - timedelta(days=5)
    crl = b"none" if days is None else CORP.revoke([7], None, now=past, days=2)
    (place / "cas/corp.crl").write_bytes(crl)
    loaded = load(**{"a.yaml": SHORT})
    found = loaded.errors if days is None else loaded.warnings
    code = "XF1031" if days is None else "XF1036"
    assert [(each.code, each.line) for each in found] == [(code, 4)]


def test_what_expires_soon_is_a_warning(load: Load, place: Path) -> None:
    near = issued("gw.example.net", days=13)
    put("certs/gw.pem", near)(place)
    write_key(place / "keys/gw.key", near)
    loaded = load(**{"a.yaml": SHORT})
    assert [(w.code, w.line) for w in loaded.warnings] == [("XF1035", 3)]
    certificates = only(loaded).local_certificates
    assert certificates is not None
    assert certificates.expires_at == near.certificate.validity.not_after.timestamp()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (SHORT.replace("ca: corp\n", ""), "XF1005"),
        (SHORT + "psk: secret:key\n", "XF1004"),
        (SHORT.replace("cert: gw", "cert: ../gw"), "XF1004"),
        (SHORT.replace("ca: corp", "ca: [corp]"), "XF1004"),
        (SHORT + "auth: {local: {cert: gw}}\n", "XF1004"),
        (LONG.replace("ca: corp", "ca: corp, key: MCow") % "", "XF1004"),
    ],
)
@pytest.mark.usefixtures("place")
def test_ways_that_exclude_each_other_are_told(load: Load, text: str, code: str) -> None:
    loaded = load(**{"a.yaml": text, "../secrets/key": STRONG})
    assert code in {error.code for error in loaded.errors}
    assert loaded.tunnels == ()


def test_a_bundle_with_intermediates_is_taken_whole(load: Load, place: Path) -> None:
    put("certs/gw.pem", GW, CORP)(place)
    tunnel = only(load(**{"a.yaml": SHORT}))
    assert tunnel.local_certificates is not None
    assert len(tunnel.local_certificates.ders) == 2
    assert load_bundle((place / "certs/gw.pem").read_bytes())[1] == CORP.certificate


def both_ends(ours: Authority, trusted: Authority) -> tuple[TunnelPolicy, TunnelPolicy]:
    """Policies of which both show a certificate of `ours`, and the second trusts `trusted`."""

    def given(*certificates: Issued | Authority) -> Certificates:
        ders = tuple(each.certificate.der for each in certificates)
        return Certificates(ders=ders, origin="test")

    one, other = issued("moon", authority=ours), issued("sun", authority=ours)
    keys = [
        PrivateKey(octets=b"", public=each.certificate.public_key_info, origin="test")
        for each in (one, other)
    ]
    moon = replace(
        tunnel_policy(),
        shared_key=None,
        local_key=keys[0],
        local_certificates=given(one),
        remote_authorities=given(ours),
    )
    sun = replace(
        mirrored(moon),
        local_key=keys[1],
        local_certificates=given(other),
        remote_authorities=given(trusted),
    )
    return moon, sun


def disagreements(moon: TunnelPolicy, sun: TunnelPolicy) -> tuple[Disagreement, ...]:
    """Those that keep the tunnel down."""
    (pairing,) = pair_policies([moon], [sun])
    return tuple(found for found in pairing.disagreements if found.code)


def test_two_ends_agree_if_each_trusts_the_other_s_authority() -> None:
    moon, sun = both_ends(CORP, CORP)
    assert disagreements(moon, sun) == ()


def test_two_ends_of_which_one_trusts_another_authority_disagree_with_its_code() -> None:
    moon, sun = both_ends(CORP, an_authority("Else"))
    (found,) = disagreements(moon, sun)
    assert found.code == "XF2103"
    assert found.message.startswith("our certificate is not accepted: no trusted authority")


def test_a_certificate_and_a_shared_key_are_no_match() -> None:
    moon, _ = both_ends(CORP, CORP)
    found = disagreements(moon, mirrored(tunnel_policy()))
    assert {each.code for each in found} == {"XF2005"}
    assert len(found) == 2


CONTAINED = """
peer: 192.0.2.1
auth:
  local: {key: "file:%(keys)s/gw.p12", passphrase: "file:%(keys)s/word"%(more)s}
  remote: {ca: corp, id: sun}
local: 10.1.0.0/16
remote: 10.2.0.0/16
"""
WORD = b"a word of twenty octets"


def container(key: Issued | None, shown: Issued | None, *above: Authority) -> bytes:
    """PKCS #12 with a key, a certificate of it, and those above."""
    return serialize_key_and_certificates(
        b"gw",
        None if key is None else load_pem_private_key(key.key_pem, None),  # type: ignore[arg-type]
        None if shown is None else shown.certificate.library,
        [each.certificate.library for each in above],
        BestAvailableEncryption(WORD),
    )


def write_container(place: Path, data: bytes, word: bytes = WORD) -> None:
    for name, octets in (("gw.p12", data), ("word", word)):
        (place / "keys" / name).touch(0o600)
        (place / "keys" / name).write_bytes(octets)


def contained(place: Path, more: str = "") -> str:
    return CONTAINED % {"keys": place / "keys", "more": more}


def test_pkcs12_is_a_key_with_its_certificates(load: Load, place: Path) -> None:
    write_container(place, container(GW, GW, CORP))
    tunnel = only(load(**{"a.yaml": contained(place)}))
    assert tunnel.local_key is not None
    assert tunnel.local_certificates is not None
    assert tunnel.local_key.public == GW.certificate.public_key_info
    assert tunnel.local_certificates.ders == (GW.certificate.der, CORP.certificate.der)
    assert tunnel.local_certificates.origin == tunnel.local_key.origin
    assert str(tunnel.local_id) == "gw.example.net"


def test_a_container_may_be_of_ber_as_nss_writes_it(load: Load, place: Path) -> None:
    der = container(GW, GW, CORP)
    assert der[:2] == b"\x30\x82"
    write_container(place, b"\x30\x80" + der[4:] + b"\x00\x00")
    loaded = load(**{"a.yaml": contained(place)})
    assert loaded.errors == ()
    assert only(loaded).local_certificates is not None


def test_a_certificate_that_is_named_beside_it_counts(load: Load, place: Path) -> None:
    write_container(place, container(GW, None, CORP))
    tunnel = only(load(**{"a.yaml": contained(place, ", cert: gw")}))
    assert tunnel.local_certificates is not None
    assert tunnel.local_certificates.ders == (GW.certificate.der,)


@pytest.mark.parametrize(
    ("make", "word", "code", "words"),
    [
        (lambda: container(GW, GW), b"another word, as long as it", "XF1030", "is another"),
        (lambda: container(GW, GW)[:-40], WORD, "XF1030", "it is damaged"),
        (lambda: container(None, None, CORP), WORD, "XF1030", "no private key is in it"),
        (lambda: container(GW, None, CORP), WORD, "XF1031", "no certificate of the key"),
    ],
    ids=["wrong passphrase", "damaged", "no key", "no certificate"],
)
def test_a_container_that_lacks_something_is_told_of(
    make: Callable[[], bytes], word: bytes, code: str, words: str, load: Load, place: Path
) -> None:
    write_container(place, make(), word)
    loaded = load(**{"a.yaml": contained(place)})
    (error,) = loaded.errors
    assert error.code == code
    assert words in str(error)
    assert word.decode() not in str(error)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("peer_id", ["*.example.net", "*@example.net", "O=Example, CN=*"])
def test_a_peer_id_may_stand_for_many_where_a_certificate_proves_which(
    peer_id: str, load: Load
) -> None:
    tunnel = only(load(**{"a.yaml": SHORT + f'peer_id: "{peer_id}"\n'}))
    assert tunnel.remote_id == Identity.parse(peer_id)
    assert tunnel.remote_id.is_pattern


def test_with_a_secret_it_is_refused(load: Load) -> None:
    (error,) = load(**{"a.yaml": WITH_SECRET + 'peer_id: "*.example.net"\n'}).errors
    assert error.code == "XF1004"
    assert "could be anybody's" in str(error)


@pytest.mark.parametrize(
    "peer_id",
    ["*", "*.", "*@", "*.*.net", "gw*.example.net", "a.*.net", "an*@x.net", "O=Ex*, CN=*", "%any"],
)
@pytest.mark.usefixtures("place")
def test_other_wildcards_are_refused(peer_id: str, load: Load) -> None:
    (error,) = load(**{"a.yaml": SHORT + f'peer_id: "{peer_id}"\n'}).errors
    assert error.code == "XF1004"
