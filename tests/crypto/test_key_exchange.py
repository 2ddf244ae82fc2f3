from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import cryptography_vectors
import pytest

from xfrmpy.crypto import modp
from xfrmpy.crypto.key_exchange import (
    InvalidPublicValue,
    KeyExchange,
    answer_key_exchange,
    resume_key_exchange,
    start_key_exchange,
)
from xfrmpy.crypto.modp import ModpKeyExchange
from xfrmpy.ipsec import algorithms
from xfrmpy.registry import KeyExchangeMethod

M = KeyExchangeMethod
GROUPS = {group.name: group for group in algorithms.GROUPS}
ECP = [M.ECP_256, M.ECP_384, M.ECP_521]
MODP = [M.MODP_2048, M.MODP_3072, M.MODP_4096]
ML_KEM = [M.ML_KEM_768, M.ML_KEM_1024]

ML_KEM_RECORDS, ML_KEM_STEP = 1000, 10

every_group = pytest.mark.parametrize("group", algorithms.GROUPS, ids=lambda group: group.name)
every_ecp = pytest.mark.parametrize("method", ECP, ids=lambda method: method.name)
every_ml_kem = pytest.mark.parametrize("method", ML_KEM, ids=lambda method: method.name)
every_modp = pytest.mark.parametrize("method", MODP, ids=lambda method: method.name)


def _counting(size: int) -> bytes:
    return bytes(range(size))


def _ecp(method: KeyExchangeMethod, scalar: int) -> KeyExchange:
    """An exchange with this private value; see how `_Ecp` makes one of random octets."""
    return start_key_exchange(method, (scalar - 1).to_bytes)


def _x25519(scalar: bytes) -> KeyExchange:
    return start_key_exchange(M.CURVE25519, lambda _: scalar)


def _refused(exchange: KeyExchange, public_value: bytes) -> None:
    with pytest.raises(InvalidPublicValue):
        exchange.shared_secret(public_value)


def _prime(method: KeyExchangeMethod) -> int:
    bits = GROUPS[method.name.replace("_", "").lower()].public_value * 8
    with cryptography_vectors.open_vector_file("asymmetric/DH/rfc3526.txt", "r") as file:
        primes = [int(digits, 16) for digits in re.findall(r"P = (\w+)", file.read())]
    return next(prime for prime in primes if prime.bit_length() == bits)


def test_the_ecp_groups_agree_with_rfc_5903(vectors: Callable[[str], Any]) -> None:
    cases = vectors("rfc5903")["cases"]
    assert [GROUPS[case["group"]].id for case in cases] == ECP
    for case in cases:
        method = GROUPS[case["group"]].id
        initiator, responder = (_ecp(method, int(case[end], 16)) for end in ("i", "r"))
        assert initiator.public_value.hex() == case["gix"] + case["giy"]
        assert responder.public_value.hex() == case["grx"] + case["gry"]
        assert initiator.shared_secret(responder.public_value).hex() == case["girx"]
        assert responder.shared_secret(initiator.public_value).hex() == case["girx"]


@pytest.mark.parametrize("role", ["init", "resp"])
def test_the_ecp_groups_agree_with_nist(
    role: str, nist_records: Callable[[str], Iterator[dict[str, str]]]
) -> None:
    name = f"asymmetric/ECDH/KASValidityTest_ECCStaticUnified_NOKC_ZZOnly_{role}.fax"
    sections = {"EC - SHA256": M.ECP_256, "ED - SHA384": M.ECP_384, "EE - SHA512": M.ECP_521}
    good = refused = 0
    for record in nist_records(name):
        method = next((sections[key] for key in record if key in sections), None)
        # The codes that are left out spoil our own key pair or the expected result.
        code = int(re.findall(r"\((\d+)", record["Result"])[0])
        if method is None or code not in {0, 1, 2, 13}:
            continue
        exchange = _ecp(method, int(record["dsIUT"], 16))
        width = len(exchange.public_value) // 2
        x, y = (int(record[f"QsCAVS{axis}"], 16).to_bytes(width) for axis in "xy")
        if code in {1, 2}:
            _refused(exchange, x + y)
            refused += 1
        else:
            secret = int(record["Z"], 16).to_bytes(width)
            assert exchange.shared_secret(x + y) == secret, record["COUNT"]
            good += 1
    assert (good, refused) == (54, 12)


def test_x25519_agrees_with_rfc_8031(vectors: Callable[[str], Any]) -> None:
    [case] = vectors("rfc8031")["cases"]
    initiator, responder = (_x25519(bytes.fromhex(case[f"random_{end}"])) for end in ("i", "r"))
    assert initiator.public_value.hex() == case["public_i"]
    assert responder.public_value.hex() == case["public_r"]
    assert initiator.shared_secret(responder.public_value).hex() == case["shared_secret"]
    assert responder.shared_secret(initiator.public_value).hex() == case["shared_secret"]


def test_x25519_agrees_with_rfc_7748(vectors: Callable[[str], Any]) -> None:
    published = vectors("rfc7748")
    for case in published["cases"]:
        result = _x25519(bytes.fromhex(case["scalar"])).shared_secret(bytes.fromhex(case["u"]))
        assert result.hex() == case["result"]
    pair = published["diffie_hellman"]
    ours = _x25519(bytes.fromhex(pair["private_a"]))
    assert ours.public_value.hex() == pair["public_a"]
    assert ours.shared_secret(bytes.fromhex(pair["public_b"])).hex() == pair["shared_secret"]


def test_x25519_agrees_with_rfc_7748_after_a_thousand_rounds(
    vectors: Callable[[str], Any],
) -> None:
    scalar = u = bytes([9]) + bytes(31)
    results = []
    for _ in range(1000):
        scalar, u = _x25519(scalar).shared_secret(u), scalar
        results.append(scalar.hex())
    published = vectors("rfc7748")
    assert (results[0], results[-1]) == (published["after_1"], published["after_1000"])


def test_modp_2048_agrees_with_the_key_pairs_of_nist(vectors: Callable[[str], Any]) -> None:
    pairs = vectors("acvp-safe-primes-modp2048")["cases"]
    ours, theirs = (ModpKeyExchange(M.MODP_2048, int(pair["private"], 16)) for pair in pairs)
    assert [ours.public_value.hex(), theirs.public_value.hex()] == [p["public"] for p in pairs]
    assert ours.shared_secret(theirs.public_value) == theirs.shared_secret(ours.public_value)


@every_modp
def test_modp_groups_have_the_primes_of_rfc_3526_and_python_agrees(
    method: KeyExchangeMethod,
) -> None:
    prime = _prime(method)
    size = modp.EXPONENT_SIZE[method]
    exponent = int.from_bytes(b"\x01" + _counting(size))
    exchange = start_key_exchange(method, _counting)
    peer = pow(2, 0x1234567890ABCDEF << 2000, prime)
    width = prime.bit_length() // 8
    assert exchange.public_value == pow(2, exponent, prime).to_bytes(width)
    secret = pow(peer, exponent, prime).to_bytes(width)
    assert exchange.shared_secret(peer.to_bytes(width)) == secret


@every_modp
def test_modp_values_keep_their_leading_zeros(method: KeyExchangeMethod) -> None:
    exchange = ModpKeyExchange(method, 100)
    width = _prime(method).bit_length() // 8
    assert exchange.public_value == (1 << 100).to_bytes(width)
    assert exchange.shared_secret((4).to_bytes(width)) == (1 << 200).to_bytes(width)


@every_group
def test_two_ends_come_to_one_secret(group: algorithms.KeyExchangeGroup) -> None:
    ours = start_key_exchange(group.id, _counting)
    theirs = answer_key_exchange(
        group.id, ours.public_value, lambda size: bytes(reversed(range(size)))
    )
    assert ours.public_value != theirs.public_value
    assert len(ours.public_value) == group.size(of_answer=False) == group.public_value
    assert len(theirs.public_value) == group.size(of_answer=True)
    secret = ours.shared_secret(theirs.public_value)
    assert secret == theirs.shared_secret()
    width = group.public_value // (2 if group.id in ECP else 1)
    assert len(secret) == (32 if group.id in ML_KEM else width)
    assert ours.method is group.id


@every_group
def test_nobody_answers_a_value_of_another_size(group: algorithms.KeyExchangeGroup) -> None:
    good = start_key_exchange(group.id, _counting).public_value
    for wrong in (b"", good[:-1], good + b"\0"):
        with pytest.raises(InvalidPublicValue):
            answer_key_exchange(group.id, wrong, _counting).shared_secret()


@every_group
def test_the_private_value_comes_from_the_random_octets_alone(
    group: algorithms.KeyExchangeGroup,
) -> None:
    def changed(size: int) -> bytes:
        return b"\x40" + _counting(size)[1:]

    first, again, other = (
        start_key_exchange(group.id, source).public_value
        for source in (_counting, _counting, changed)
    )
    assert first == again != other


@every_group
def test_an_exchange_goes_on_from_its_seed(group: algorithms.KeyExchangeGroup) -> None:
    ours = start_key_exchange(group.id, _counting)
    theirs = answer_key_exchange(
        group.id, ours.public_value, lambda size: b"\x55" * size
    ).public_value
    again = resume_key_exchange(group.id, ours.seed)
    assert (again.method, again.public_value) == (ours.method, ours.public_value)
    assert again.shared_secret(theirs) == ours.shared_secret(theirs)
    for wrong in (b"", ours.seed[:-1], ours.seed + b"\0"):
        with pytest.raises(ValueError, match="octets in place of"):
            resume_key_exchange(group.id, wrong)


@every_group
@pytest.mark.parametrize("octet", [b"\x00", b"\xff"])
def test_the_most_improbable_random_octets_still_make_a_key(
    group: algorithms.KeyExchangeGroup, octet: bytes
) -> None:
    ours = start_key_exchange(group.id, lambda size: octet * size)
    theirs = answer_key_exchange(group.id, ours.public_value, _counting)
    assert ours.shared_secret(theirs.public_value) == theirs.shared_secret()


@every_group
def test_public_values_of_another_size_are_refused(group: algorithms.KeyExchangeGroup) -> None:
    exchange = start_key_exchange(group.id, _counting)
    good = answer_key_exchange(
        group.id, exchange.public_value, lambda size: b"\x55" * size
    ).public_value
    for wrong in (b"", good[:-1], good[1:], good + b"\0", b"\0" + good, good * 2):
        _refused(exchange, wrong)
    assert exchange.shared_secret(good)


@every_modp
def test_degenerate_modp_values_are_refused(method: KeyExchangeMethod) -> None:
    exchange = start_key_exchange(method, _counting)
    prime = _prime(method)
    width = prime.bit_length() // 8
    largest = (1 << 8 * width) - 1
    for value in (0, 1, prime - 1, prime, prime + 1, prime + 2, largest):
        _refused(exchange, value.to_bytes(width))
    for value in (2, prime - 2):
        assert len(exchange.shared_secret(value.to_bytes(width))) == width


@every_ecp
def test_ecp_values_off_the_curve_are_refused(method: KeyExchangeMethod) -> None:
    exchange = start_key_exchange(method, _counting)
    good = start_key_exchange(method, lambda size: b"\x55" * size).public_value
    half = len(good) // 2
    x, y = good[:half], good[half:]
    prime = {
        M.ECP_256: 2**256 - 2**224 + 2**192 + 2**96 - 1,
        M.ECP_384: 2**384 - 2**128 - 2**96 + 2**32 - 1,
        M.ECP_521: 2**521 - 1,
    }[method]
    _refused(exchange, bytes(2 * half))
    _refused(exchange, b"\xff" * (2 * half))
    _refused(exchange, y + x)
    _refused(exchange, x + bytes(half))
    for position in (0, half - 1, half, 2 * half - 1):
        off = bytearray(good)
        off[position] ^= 1
        _refused(exchange, bytes(off))
    # The same point with coordinates that are not reduced, where they still fit.
    for number in (int.from_bytes(x) + prime, int.from_bytes(y) + prime):
        if number < 1 << 8 * half:
            other = number.to_bytes(half)
            _refused(exchange, other + y if number % prime == int.from_bytes(x) else x + other)
    # The mirrored point is another good one with the same x coordinate.
    mirrored = x + (prime - int.from_bytes(y)).to_bytes(half)
    assert exchange.shared_secret(mirrored) == exchange.shared_secret(good)


def test_x25519_points_of_low_order_are_refused() -> None:
    exchange = start_key_exchange(M.CURVE25519, _counting)
    prime = 2**255 - 19
    order_8 = (
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    )
    for u in (0, 1, *order_8, prime - 1, prime, prime + 1):
        for high_bit in (0, 1 << 255):
            _refused(exchange, (u | high_bit).to_bytes(32, "little"))


def test_x25519_takes_values_that_are_not_canonical_and_masks_the_high_bit() -> None:
    # RFC 8031 section 3.2: both are a MUST.
    exchange = start_key_exchange(M.CURVE25519, _counting)
    secret = exchange.shared_secret((9).to_bytes(32, "little"))
    for u in (9 | 1 << 255, 9 + 2**255 - 19, 9 + 2**255 - 19 | 1 << 255):
        assert exchange.shared_secret(u.to_bytes(32, "little")) == secret


@every_ml_kem
def test_ml_kem_agrees_with_the_published_answers(method: KeyExchangeMethod) -> None:
    name = f"asymmetric/MLKEM/kat_{method.name.replace('ML_KEM', 'MLKEM')}.rsp"
    with cryptography_vectors.open_vector_file(name, "r") as file:
        parts = re.split(r"^count = ", file.read(), flags=re.MULTILINE)[1:]
    assert len(parts) == ML_KEM_RECORDS
    for part in parts[::ML_KEM_STEP]:
        record = dict(re.findall(r"^(\w+) = (\w+)$", part, flags=re.MULTILINE))
        seed = bytes.fromhex(record["d"] + record["z"])
        exchange = start_key_exchange(method, lambda _, seed=seed: seed)  # type: ignore[misc]
        assert exchange.public_value.hex() == record["pk"].lower()
        for ciphertext, secret in (("ct", "ss"), ("ct_n", "ss_n")):
            found = exchange.shared_secret(bytes.fromhex(record[ciphertext]))
            assert found.hex() == record[secret].lower()


@every_ml_kem
def test_an_encapsulation_key_that_is_not_reduced_is_refused(method: KeyExchangeMethod) -> None:
    """The modulus check of FIPS 203 section 7.2: the first coefficient is 3329, then 4095."""
    good = start_key_exchange(method, _counting).public_value
    for coefficient in (3329, 4095):
        low, high = coefficient & 0xFF, coefficient >> 8
        bad = bytes([low, good[1] & 0xF0 | high]) + good[2:]
        with pytest.raises(InvalidPublicValue):
            answer_key_exchange(method, bad, _counting)
    answer_key_exchange(method, bytes([0, good[1] & 0xF0 | 0xD]) + good[2:], _counting)  # 3328


@every_ml_kem
def test_a_ciphertext_for_another_key_gives_another_secret(method: KeyExchangeMethod) -> None:
    """Implicit rejection (FIPS 203 section 6.3): no error tells what is wrong."""
    ours = start_key_exchange(method, _counting)
    answer = answer_key_exchange(method, ours.public_value, _counting)
    bad = bytes([answer.public_value[0] ^ 1]) + answer.public_value[1:]
    assert ours.shared_secret(bad) != answer.shared_secret()
    assert ours.shared_secret(bad) == ours.shared_secret(bad)


def test_only_methods_of_the_table_are_started() -> None:
    listed = {group.id for group in algorithms.GROUPS}
    for number in range(0x10000):
        if number not in listed:
            with pytest.raises(KeyError):
                start_key_exchange(KeyExchangeMethod(number), _counting)
            with pytest.raises(KeyError):
                answer_key_exchange(KeyExchangeMethod(number), b"", _counting)
