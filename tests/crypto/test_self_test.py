from __future__ import annotations

import hashlib
import sys

import pytest

from xfrmpy.crypto import self_test
from xfrmpy.crypto.key_exchange import start_key_exchange
from xfrmpy.crypto.self_test import KNOWN_ANSWERS, failed_algorithms
from xfrmpy.ipsec import algorithms
from xfrmpy.ipsec.proposals import TRANSFORMS_BY_NAME
from xfrmpy.registry import KeyExchangeMethod


def test_every_algorithm_of_the_table_works_here() -> None:
    assert failed_algorithms() == {}


def test_every_row_of_the_table_has_a_known_answer() -> None:
    ciphers = {cipher.name for cipher in algorithms.CIPHERS}
    integrities = {integrity.name for integrity in algorithms.INTEGRITY}
    prfs = {row.name for row in algorithms.PRFS}
    groups = {row.name for row in algorithms.GROUPS}
    assert set(KNOWN_ANSWERS) == ciphers | integrities | prfs | groups


def test_what_fails_can_be_left_out_of_a_proposal_by_its_name() -> None:
    assert set(KNOWN_ANSWERS) <= set(TRANSFORMS_BY_NAME)


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_a_wrong_or_missing_answer_is_reported_under_the_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN_ANSWERS, name, "0" * 16)
    assert failed_algorithms() == {name: "the result differs from the known answer"}
    monkeypatch.delitem(KNOWN_ANSWERS, name)
    assert failed_algorithms() == {name: "the result differs from the known answer"}


def test_what_the_library_raises_becomes_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("no such cipher in this build")

    monkeypatch.setattr(self_test, "packet_cipher", refuse)
    failed = failed_algorithms()
    assert set(failed.values()) == {"NotImplementedError: no such cipher in this build"}
    assert "aes256gcm16" in failed
    assert "aes256" in failed
    assert "sha256" not in failed
    assert "x25519" not in failed


def test_without_finite_field_diffie_hellman_only_the_modp_groups_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What a library that has dropped it would look like.
    monkeypatch.delattr("xfrmpy.crypto.modp")
    monkeypatch.setitem(sys.modules, "xfrmpy.crypto.modp", None)
    assert set(failed_algorithms()) == {"modp2048", "modp3072", "modp4096"}


def test_a_cipher_that_opens_forged_packets_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Credulous:
        def seal(self, _iv: bytes, plaintext: bytes, _associated: bytes) -> bytes:
            return plaintext

        def open(self, _iv: bytes, sealed: bytes, _associated: bytes) -> bytes:
            return sealed

    monkeypatch.setattr(self_test, "packet_cipher", lambda *_: Credulous())
    assert failed_algorithms()["aes128gcm16"] == "ValueError: a forged packet opens"


def _answer(method: KeyExchangeMethod) -> str:
    name = next(group.name for group in algorithms.GROUPS if group.id == method)
    return KNOWN_ANSWERS[name]


def _digest(public_value: bytes, shared_secret: bytes) -> str:
    return hashlib.sha256(public_value + shared_secret).hexdigest()[:16]


# The known answers of the groups, computed again with nothing but Python's integers.


def test_the_known_answer_of_x25519_is_that_of_plain_integers() -> None:
    scalar = bytes(range(32))
    public = _montgomery_ladder(scalar, (9).to_bytes(32, "little"))
    assert _digest(public, _montgomery_ladder(scalar, public)) == _answer(
        KeyExchangeMethod.CURVE25519
    )


def _montgomery_ladder(scalar: bytes, u: bytes) -> bytes:
    """X25519 by the doubling and differential addition formulas of a Montgomery curve."""
    p, a24 = 2**255 - 19, 121665
    k = int.from_bytes(scalar, "little") & (2**255 - 8) | 2**254
    x1 = int.from_bytes(u, "little") % 2**255
    near, far = (1, 0), (x1, 1)
    for bit in format(k, "b"):
        if bit == "1":
            near, far = far, near
        (x2, z2), (x3, z3) = near, far
        cross, other = (x3 - z3) * (x2 + z2), (x3 + z3) * (x2 - z2)
        far = ((cross + other) ** 2 % p, x1 * (cross - other) ** 2 % p)
        plus, minus = (x2 + z2) ** 2, (x2 - z2) ** 2
        near = (plus * minus % p, (plus - minus) * (plus + a24 * (plus - minus)) % p)
        if bit == "1":
            near, far = far, near
    x, z = near
    return (x * pow(z, -1, p) % p).to_bytes(32, "little")


@pytest.mark.parametrize(
    ("method", "prime", "order"),
    [
        (
            KeyExchangeMethod.ECP_256,
            2**256 - 2**224 + 2**192 + 2**96 - 1,
            0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
        ),
        (
            KeyExchangeMethod.ECP_384,
            2**384 - 2**128 - 2**96 + 2**32 - 1,
            int("f" * 48 + "c7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16),
        ),
        (
            KeyExchangeMethod.ECP_521,
            2**521 - 1,
            int(
                "1"
                + "f" * 65
                + "a51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409",
                16,
            ),
        ),
    ],
    ids=["ecp256", "ecp384", "ecp521"],
)
def test_the_known_answers_of_the_ecp_groups_are_those_of_plain_integers(
    method: KeyExchangeMethod, prime: int, order: int
) -> None:
    # The generator is the public value of the private value one.
    generator = start_key_exchange(method, bytes).public_value
    width = len(generator) // 2
    octets = bytes(range((order.bit_length() + 7) // 8 + 8))
    scalar = int.from_bytes(octets) % (order - 1) + 1
    base = int.from_bytes(generator[:width]), int.from_bytes(generator[width:])
    x, y = _multiply(scalar, base, prime)
    secret, _ = _multiply(scalar, (x, y), prime)
    public = x.to_bytes(width) + y.to_bytes(width)
    assert _digest(public, secret.to_bytes(width)) == _answer(method)


def _multiply(scalar: int, point: tuple[int, int], p: int) -> tuple[int, int]:
    """Double and add on a curve with a = -3, affine and slow."""
    result = point
    for bit in format(scalar, "b")[1:]:
        x, y = result
        result = _third_point(result, result, (3 * x * x - 3) * pow(2 * y, -1, p), p)
        if bit == "1":
            (x, y), (px, py) = result, point
            result = _third_point(result, point, (py - y) * pow(px - x, -1, p), p)
    return result


def _third_point(
    one: tuple[int, int], other: tuple[int, int], slope: int, p: int
) -> tuple[int, int]:
    x = (slope * slope - one[0] - other[0]) % p
    return x, (slope * (one[0] - x) - one[1]) % p


@pytest.mark.parametrize(
    ("method", "bits", "exponent_size"),
    [
        (KeyExchangeMethod.MODP_2048, 2048, 40),
        (KeyExchangeMethod.MODP_3072, 3072, 53),
        (KeyExchangeMethod.MODP_4096, 4096, 60),
    ],
    ids=["modp2048", "modp3072", "modp4096"],
)
def test_the_known_answers_of_the_modp_groups_are_those_of_plain_integers(
    method: KeyExchangeMethod, bits: int, exponent_size: int
) -> None:
    prime = _modp_prime(bits)
    exponent = int.from_bytes(b"\x01" + bytes(range(exponent_size)))
    public = pow(2, exponent, prime)
    secret = pow(public, exponent, prime)
    assert _digest(public.to_bytes(bits // 8), secret.to_bytes(bits // 8)) == _answer(method)


def _modp_prime(bits: int) -> int:
    """The prime as RFC 3526 defines it: 2^n - 2^(n-64) - 1 + 2^64 * ([2^(n-130) pi] + k)."""
    k = {2048: 124476, 3072: 1690314, 4096: 240904}[bits]
    scale = bits - 130
    return (1 << bits) - (1 << bits - 64) - 1 + ((_pi(scale) + k) << 64)


def _pi(scale: int) -> int:
    """floor(2^scale * pi), by Machin's formula with some bits to spare."""
    guard = 64
    one = 1 << scale + guard
    return 4 * (4 * _arctan_of_inverse(5, one) - _arctan_of_inverse(239, one)) >> guard


def _arctan_of_inverse(n: int, one: int) -> int:
    total = term = one // n
    divisor, sign = 1, 1
    while term:
        term //= n * n
        divisor, sign = divisor + 2, -sign
        total += sign * (term // divisor)
    return total
