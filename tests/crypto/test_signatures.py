"""Published vectors, RFC 7427's AlgorithmIdentifiers, and what lenient checks have let through."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from hashlib import shake_256
from typing import Any

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, mldsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.keypairs import key_pair
from xfrmpy.crypto import self_test
from xfrmpy.crypto.authentication import (
    AuthenticationMismatch,
    NoSchemeInCommon,
    SignaturePolicy,
    choose_method,
    signature_auth,
    verify_signed_auth,
)
from xfrmpy.crypto.self_test import KNOWN_SIGNATURES, failed_schemes
from xfrmpy.crypto.signatures import (
    LEGACY_ECDSA,
    LEGACY_RSA,
    SCHEMES,
    WEAK_RSA,
    Form,
    KeyKind,
    KeyRefused,
    Scheme,
    SignatureMismatch,
    SigningKey,
    VerifyingKey,
    choose_scheme,
    scheme_of,
)
from xfrmpy.registry import AuthenticationMethod, HashAlgorithm

BY_NAME = {s.name: s for s in (*SCHEMES, *LEGACY_ECDSA.values())}
ALL_HASHES = SignaturePolicy().hashes
KINDS = list(KeyKind)


def spki_of(key: Any) -> bytes:
    octets: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return octets


# Published vectors.


def test_wycheproofs_signatures_are_verified_or_refused_as_they_must_be(
    vectors: Callable[[str], Any],
) -> None:
    published = vectors("wycheproof-signatures")
    seen = set()
    for case in published["cases"]:
        scheme, spki = BY_NAME[case["scheme"]], bytes.fromhex(published["keys"][case["key"]])
        try:
            key = VerifyingKey.of_spki(spki)
        except KeyRefused:
            assert spki.endswith(b"\2\1\3")  # The exponent.
            continue
        try:
            key.verify(scheme, bytes.fromhex(case["signature"]), bytes.fromhex(case["message"]))
            result = "valid"
        except SignatureMismatch:
            result = "invalid"
        # "Acceptable" is a DigestInfo without the NULL that PKCS #1 asks for: not to us.
        expected = case["result"].replace("acceptable", "invalid")
        assert result == expected, (case["file"], case["id"], case["comment"])
        seen.add((scheme.form, result))
    assert len(seen) == 2 * len(set(Form) - {Form.ML_DSA})


ML_DSA: dict[KeyKind, tuple[Any, Any]] = {
    KeyKind.ML_DSA_44: (mldsa.MLDSA44PrivateKey, mldsa.MLDSA44PublicKey),
    KeyKind.ML_DSA_65: (mldsa.MLDSA65PrivateKey, mldsa.MLDSA65PublicKey),
    KeyKind.ML_DSA_87: (mldsa.MLDSA87PrivateKey, mldsa.MLDSA87PublicKey),
}


@pytest.mark.parametrize("kind", list(ML_DSA))
def test_ml_dsa_verifies_the_known_answers_and_signs_with_an_empty_context(kind: KeyKind) -> None:
    """Published answers have contexts, IKE has none: its octets are made here by FIPS 204 5.2."""
    private, public = ML_DSA[kind]
    name = (
        f"asymmetric/MLDSA/kat_{kind.upper().replace('ML-', 'ML').replace('-', '_')}_det_pure.rsp"
    )
    with cryptography_vectors.open_vector_file(name, "r") as file:
        cases = [case for _, case in zip(range(10), _known_answers(file), strict=False)]
    for case in cases:
        theirs = public.from_public_bytes(case["pk"])
        signature, message = case["sm"][: -len(case["msg"])], case["msg"]
        theirs.verify(signature, message, case["ctx"])
        key = signing(private.from_seed_bytes(case["xi"]))
        assert (key.kind, key.public.spki[-len(case["pk"]) :]) == (kind, case["pk"])
        with pytest.raises(SignatureMismatch):
            key.public.verify(BY_NAME[kind], signature, message)
        mu = shake_256(shake_256(case["pk"]).digest(64) + bytes(2) + message).digest(64)
        theirs.verify_mu(key.sign(BY_NAME[kind], message), mu)
        key.public.verify(BY_NAME[kind], key._key.sign_mu(mu), message)  # type: ignore[union-attr]
    assert len(cases) == 10


def _known_answers(file: Any) -> Iterator[dict[str, bytes]]:
    """The groups of lines `name = hex`, each of which begins with its number."""
    case: dict[str, bytes] = {}
    for line in file:
        name, _, value = line.strip().partition(" = ")
        if name == "count" and case:
            yield case
            case = {}
        elif name in ("xi", "pk", "msg", "sm", "ctx"):
            case[name] = bytes.fromhex(value)
    yield case


def test_ed25519_signs_as_its_authors_do() -> None:
    with cryptography_vectors.open_vector_file("asymmetric/Ed25519/sign.input", "r") as file:
        for line in [next(file) for _ in range(64)]:
            secret, public, message, signed = (bytes.fromhex(part) for part in line.split(":")[:4])
            key = signing(ed25519.Ed25519PrivateKey.from_private_bytes(secret[:32]))
            assert key.public.spki[-32:] == public
            assert key.sign(BY_NAME["ed25519"], message) == signed[:64]


@pytest.mark.parametrize(
    ("curve", "number", "scheme", "r_and_s"),
    [
        (
            ec.SECP256R1(),
            0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721,
            "ecdsa-p256-sha256",
            (
                "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
                "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
            ),
        ),
        (
            ec.SECP384R1(),
            0x6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5,
            "ecdsa-p384-sha384",
            (
                "94edbb92a5ecb8aad4736e56c691916b3f88140666ce9fa73d64c4ea95ad133c81a648152e44acf96e36dd1e80fabe46"
                "99ef4aeb15f178cea1fe40db2603138f130e740a19624526203b6351d0a3a94fa329c145786e679e7b82c71a38628ac8"
            ),
        ),
    ],
)
def test_ecdsa_signs_as_rfc_6979_does(
    curve: ec.EllipticCurve, number: int, scheme: str, r_and_s: str
) -> None:
    """Appendix A.2.5 and A.2.6, of "sample"; r and s side by side are RFC 4754's encoding."""
    key = signing(ec.derive_private_key(number, curve))
    assert key.sign(BY_NAME[scheme], b"sample").hex() == r_and_s


# RFC 7427.


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("rsa-pkcs1-sha256", "300d06092a864886f70d01010b0500"),
        ("rsa-pkcs1-sha384", "300d06092a864886f70d01010c0500"),
        ("rsa-pkcs1-sha512", "300d06092a864886f70d01010d0500"),
        ("ecdsa-sha256", "300a06082a8648ce3d040302"),
        ("ecdsa-sha384", "300a06082a8648ce3d040303"),
        ("ecdsa-sha512", "300a06082a8648ce3d040304"),
        (
            "rsa-pss-sha256",
            (
                "304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c301a06092a86"
                "4886f70d010108300d06096086480165030402010500a203020120"
            ),
        ),
        ("ed25519", "300506032b6570"),
        ("ed448", "300506032b6571"),
    ],
)
def test_the_identifiers_are_those_of_the_rfcs(name: str, identifier: str) -> None:
    """RFC 7427 appendix A.1, A.3 and A.4.3; RFC 8420 appendix A."""
    assert BY_NAME[name].identifiers[0].hex() == identifier
    assert scheme_of(SCHEMES, bytes.fromhex(identifier)) is BY_NAME[name]


@pytest.mark.parametrize(
    ("what", "identifier"),
    [
        ("nothing", ""),
        ("sha1WithRSAEncryption (A.1.1)", "300d06092a864886f70d0101050500"),
        ("ecdsa-with-SHA1 (A.3.1)", "300906072a8648ce3d0401"),
        ("dsa-with-sha256 (A.2.2)", "300b0609608648016503040302"),
        ("RSASSA-PSS without parameters (A.4.1)", "300b06092a864886f70d01010a"),
        ("RSASSA-PSS with default parameters (A.4.2)", "300d06092a864886f70d01010a3000"),
        (
            "RSASSA-PSS with another hash in MGF1",
            (
                "304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c301a06092a86"
                "4886f70d010108300d06096086480165030402030500a203020120"
            ),
        ),
        (
            "RSASSA-PSS with no salt",
            (
                "304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c301a06092a86"
                "4886f70d010108300d06096086480165030402010500a203020100"
            ),
        ),
        ("octets behind the identifier", "300506032b65700000"),
        ("a length in the long form", "30810506032b6570"),
        ("parameters of Ed25519", "300706032b65700500"),
    ],
)
def test_an_identifier_with_missing_or_odd_parameters_is_none(what: str, identifier: str) -> None:
    """CVE-2018-16151 and CVE-2018-17540: what a lenient ASN.1 parser has let through."""
    assert scheme_of(SCHEMES, bytes.fromhex(identifier)) is None, what


def signed(kind: KeyKind, policy: SignaturePolicy = SignaturePolicy()) -> bytes:  # noqa: B008
    method, scheme = choose_method(kind, ALL_HASHES, policy)
    assert method == AuthenticationMethod.DIGITAL_SIGNATURE
    return signature_auth(method, scheme, key_pair(kind).sign(scheme, b"octets"))


def verify(kind: KeyKind, data: bytes, whose: str = "ours", **policy: Any) -> None:
    verify_signed_auth(
        [key_pair(kind, whose).public],
        AuthenticationMethod.DIGITAL_SIGNATURE,
        data,
        b"octets",
        SignaturePolicy(**policy),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_auth_payload_is_verified_and_every_other_one_refused(kind: KeyKind) -> None:
    """Empty, truncated, oversized, another's, and with any bit of it wrong (CVE-2021-41990)."""
    data = signed(kind)
    verify(kind, data)
    wrong = [b"", data[:1], data[: 1 + data[0]], data[:-1], data + b"\0", b"\0" + data[1:]]
    wrong += [data + data, data + bytes(4096), data[: 1 + data[0]] + bytes(len(data))]
    for bit in range(0, 8 * len(data), 7):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        wrong.append(bytes(flipped))
    for received in wrong:
        with pytest.raises(AuthenticationMismatch):
            verify(kind, received)
    with pytest.raises(AuthenticationMismatch, match="not by this key"):
        verify(kind, data, whose="theirs")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_key_verifies_nothing_that_a_key_of_another_kind_signed(
    kind: KeyKind, other: KeyKind
) -> None:
    if kind is not other:
        with pytest.raises(AuthenticationMismatch):
            verify(other, signed(kind))


def test_a_signature_is_found_among_several_acceptable_keys() -> None:
    keys = [key_pair(kind, whose).public for kind in KINDS for whose in ("theirs", "ours")]
    found = verify_signed_auth(
        keys,
        AuthenticationMethod.DIGITAL_SIGNATURE,
        signed(KeyKind.ED448),
        b"octets",
        SignaturePolicy(),
    )
    assert found is key_pair(KeyKind.ED448).public


def test_no_key_verifies_nothing() -> None:
    with pytest.raises(AuthenticationMismatch, match="no key"):
        verify_signed_auth(
            [],
            AuthenticationMethod.DIGITAL_SIGNATURE,
            signed(KeyKind.ED25519),
            b"octets",
            SignaturePolicy(),
        )


@given(st.binary(max_size=300), st.sampled_from([*AuthenticationMethod]))
def test_no_octets_of_a_peer_raise_anything_but_a_mismatch(
    data: bytes, method: AuthenticationMethod
) -> None:
    keys = [key_pair(kind).public for kind in KINDS]
    with pytest.raises(AuthenticationMismatch):
        verify_signed_auth(keys, method, data, b"octets", SignaturePolicy(weak_rsa=True))


# Which scheme.


@pytest.mark.parametrize(
    ("kind", "hashes", "expected"),
    [
        (KeyKind.RSA, ALL_HASHES, "rsa-pss-sha256"),
        (KeyKind.RSA, [HashAlgorithm.SHA2_512], "rsa-pss-sha512"),
        (KeyKind.RSA, [HashAlgorithm.SHA1, HashAlgorithm.IDENTITY], None),
        (KeyKind.ECDSA_P256, ALL_HASHES, "ecdsa-sha256"),
        (KeyKind.ECDSA_P384, ALL_HASHES, "ecdsa-sha384"),
        (KeyKind.ECDSA_P521, ALL_HASHES, "ecdsa-sha512"),
        (KeyKind.ECDSA_P521, [HashAlgorithm.SHA2_256, HashAlgorithm.SHA2_384], "ecdsa-sha256"),
        (KeyKind.ED25519, ALL_HASHES, "ed25519"),
        (KeyKind.ED25519, [HashAlgorithm.SHA2_256], None),
        (KeyKind.ED448, ALL_HASHES, "ed448"),
        (KeyKind.RSA, [999], None),
    ],
)
def test_a_key_signs_with_the_hash_of_its_strength_that_the_peer_verifies(
    kind: KeyKind, hashes: list[int], expected: str | None
) -> None:
    chosen = choose_scheme(SCHEMES, kind, hashes)
    assert (chosen.name if chosen else None) == expected


@pytest.mark.parametrize("kind", [KeyKind.RSA, KeyKind.ED25519, KeyKind.ED448])
def test_a_peer_without_rfc_7427_gets_no_weak_signature(kind: KeyKind) -> None:
    with pytest.raises(NoSchemeInCommon):
        choose_method(kind, (), SignaturePolicy())


def _verify_rsa(scheme: Scheme, *, weak: bool) -> None:
    signature = key_pair(KeyKind.RSA).sign(scheme, b"octets")
    verify_signed_auth(
        [key_pair(KeyKind.RSA).public],
        AuthenticationMethod.RSA_SIGNATURE,
        signature,
        b"octets",
        SignaturePolicy(weak_rsa=weak),
    )


def test_the_old_rsa_method_is_believed_with_sha2_and_with_sha1_on_demand_only() -> None:
    """RFC 7296 section 3.8: "can" be another hash; RFC 8247 section 3.1 wants SHA-1 gone."""
    for scheme in LEGACY_RSA:
        _verify_rsa(scheme, weak=False)
    _verify_rsa(WEAK_RSA, weak=True)
    with pytest.raises(AuthenticationMismatch):
        _verify_rsa(WEAK_RSA, weak=False)


@pytest.mark.parametrize("size", [0, 1, 63, 65, 96, 132])
def test_an_ecdsa_signature_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(AuthenticationMismatch, match="octets"):
        verify_signed_auth(
            [key_pair(KeyKind.ECDSA_P256).public],
            AuthenticationMethod.ECDSA_SHA256_P256,
            b"\1" * size,
            b"octets",
            SignaturePolicy(),
        )


# Keys.


def rsa_spki(n: int, e: int) -> bytes:
    """What the library would not make: a key with any numbers."""

    def der(tag: int, body: bytes) -> bytes:
        size = len(body)
        octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
        length = octets if size < 128 else bytes([0x80 + len(octets)]) + octets
        return bytes([tag]) + length + body

    def integer(value: int) -> bytes:
        return der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))

    key = der(0x30, integer(n) + integer(e))
    algorithm = bytes.fromhex("300d06092a864886f70d0101010500")
    return der(0x30, algorithm + der(3, b"\0" + key))


@pytest.mark.parametrize("exponent", [1, 2, 3, 17, 65535, 65536, 2**64 + 13])
def test_an_rsa_key_with_a_bad_exponent_is_refused(exponent: int) -> None:
    modulus = key_pair(KeyKind.RSA)._key.public_key().public_numbers().n  # type: ignore[union-attr]
    VerifyingKey.of_spki(rsa_spki(modulus, 65537))
    with pytest.raises(KeyRefused):
        VerifyingKey.of_spki(rsa_spki(modulus, exponent))


@pytest.mark.parametrize("bits", [512, 1024, 2047, 8193])
def test_an_rsa_key_that_is_too_short_or_too_long_is_refused(bits: int) -> None:
    with pytest.raises(KeyRefused, match="bits"):
        VerifyingKey.of_spki(rsa_spki((1 << bits) - 1, 65537))


@pytest.mark.parametrize(
    "key",
    [
        ec.derive_private_key(5, ec.SECP256K1()),
        ec.derive_private_key(5, ec.SECP224R1()),
        ec.derive_private_key(5, ec.BrainpoolP256R1()),
        x25519.X25519PrivateKey.generate(),
        dsa.generate_private_key(2048),
    ],
    ids=["secp256k1", "p224", "brainpool", "x25519", "dsa"],
)
def test_a_key_of_another_curve_or_kind_is_refused(key: Any) -> None:
    with pytest.raises(KeyRefused):
        VerifyingKey.of_spki(spki_of(key.public_key()))
    with pytest.raises(KeyRefused):
        signing(key)


@pytest.mark.parametrize("kind", KINDS)
def test_a_public_key_has_one_encoding(kind: KeyKind) -> None:
    spki = key_pair(kind).public.spki
    for wrong in (b"", spki[:-1], spki + b"\0", spki * 2, bytes(9000)):
        with pytest.raises(KeyRefused):
            VerifyingKey.of_spki(wrong)


def test_a_point_off_the_curve_is_no_key() -> None:
    spki = bytearray(key_pair(KeyKind.ECDSA_P256).public.spki)
    spki[-1] ^= 1
    with pytest.raises(KeyRefused):
        VerifyingKey.of_spki(bytes(spki))


def test_an_rsa_key_for_pss_alone_is_refused() -> None:
    """RFC 4055 section 3.1: it must not sign otherwise, and its parameters are not looked at."""
    ours = key_pair(KeyKind.RSA).public.spki
    pss = ours.replace(bytes.fromhex("300d06092a864886f70d0101010500"), PSS_ALONE)
    pss = b"\x30\x82" + (len(pss) - 4).to_bytes(2, "big") + pss[4:]
    with pytest.raises(KeyRefused):
        VerifyingKey.of_spki(pss)


PSS_ALONE = bytes.fromhex("300b06092a864886f70d01010a")


def signing(key: Any) -> SigningKey:
    octets = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return SigningKey.of_pkcs8(octets)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_keys_are_read_as_people_keep_them(kind: KeyKind, encoding: Encoding) -> None:
    key = key_pair(kind)
    loaded = load_der_private_key(key.pkcs8(), None)
    plain = loaded.private_bytes(encoding, PrivateFormat.PKCS8, NoEncryption())
    assert SigningKey.of_file(plain).public.spki == key.public.spki
    locked = loaded.private_bytes(encoding, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))
    assert SigningKey.of_file(locked, b"word").public.spki == key.public.spki
    for data, passphrase, reason in (
        (locked, None, "is missing"),
        (locked, b"another", "passphrase is another"),
        (plain, b"word", "not encrypted"),
        (plain[:-9], None, "can be read"),
    ):
        with pytest.raises(KeyRefused, match=reason):
            SigningKey.of_file(data, passphrase)
    public = loaded.public_key()
    shown = public.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    text = base64.encodebytes(key.public.spki)
    assert VerifyingKey.of_file(shown).spki == VerifyingKey.of_file(text).spki == key.public.spki


def test_a_private_key_shows_nothing_of_itself() -> None:
    key = SigningKey.generate()
    assert key.kind is KeyKind.ED25519
    assert "SigningKey object" in repr(key)
    assert key.pkcs8() != SigningKey.generate().pkcs8()


# The start-up test.


def test_every_scheme_works_here_and_has_a_known_answer() -> None:
    assert failed_schemes() == {}
    assert set(KNOWN_SIGNATURES) == {scheme.name for scheme in SCHEMES}


@pytest.mark.parametrize("name", KNOWN_SIGNATURES)
def test_a_scheme_that_signs_otherwise_is_reported(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN_SIGNATURES, name, "0" * 16)
    assert failed_schemes() == {name: "the result differs from the known answer"}


def test_a_library_that_verifies_whatever_it_gets_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(VerifyingKey, "_verify", lambda *_: None)
    assert set(failed_schemes()) == {scheme.name for scheme in SCHEMES}
    assert self_test.failed_algorithms() == {}
