from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import Camellia, TripleDES
from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm, Cipher, aead, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from tests.suites import PAIRS
from xfrmpy.crypto.cipher import (
    Chained,
    ChainedInPlace,
    InPlace,
    IntegrityFailed,
    PacketCipher,
    packet_cipher,
)
from xfrmpy.crypto.mac import keyed_mac
from xfrmpy.ipsec import algorithms
from xfrmpy.ipsec.proposals import ike_suite, parse_proposal
from xfrmpy.registry import EncryptionAlgorithm, ProtocolId

Suite: TypeAlias = tuple[algorithms.Cipher, algorithms.Integrity | None]

CIPHERS = {cipher.name: cipher for cipher in algorithms.CIPHERS}
SHA256 = algorithms.INTEGRITY[0]
SUITES: list[Suite] = PAIRS
COMBINED_SUITES = [suite for suite in SUITES if suite[1] is not None]
BLOCK_SUITES = [suite for suite in SUITES if suite[0].block > 1]
AEAD_SUITES = [suite for suite in SUITES if suite[1] is None]


def _name(suite: Suite) -> str:
    return "-".join(part.name for part in suite if part is not None)


every_suite = pytest.mark.parametrize("suite", SUITES, ids=_name)
every_combined_suite = pytest.mark.parametrize("suite", COMBINED_SUITES, ids=_name)
every_block_suite = pytest.mark.parametrize("suite", BLOCK_SUITES, ids=_name)
every_aead_suite = pytest.mark.parametrize("suite", AEAD_SUITES, ids=_name)


def _keys(suite: Suite) -> tuple[bytes, bytes]:
    cipher, integrity = suite
    return bytes(range(cipher.keymat)), bytes(range(integrity.key if integrity else 0))


def _cipher(suite: Suite) -> PacketCipher:
    return packet_cipher(*suite, *_keys(suite))


def _sample(suite: Suite) -> tuple[bytes, bytes, bytes, bytes]:
    """An IV, a plaintext, associated data and a trailer that suit the suite."""
    trailer = b"" if suite[1] is None else b"high"
    return bytes(range(suite[0].whole_iv)), bytes(64), b"header", trailer


def _mac(suite: Suite, message: bytes) -> bytes:
    """The truncated MAC of a message; `test_mac` proves what gives it."""
    assert suite[1] is not None
    return keyed_mac(suite[1].mac, _keys(suite)[1])(message)[: suite[1].icv]


_BLOCK_CIPHERS: dict[EncryptionAlgorithm, Callable[[bytes], BlockCipherAlgorithm]] = {
    EncryptionAlgorithm.AES_CBC: AES,
    EncryptionAlgorithm.CAMELLIA_CBC: Camellia,
    EncryptionAlgorithm.TRIPLE_DES: TripleDES,
}


def _aead(name: str, keymat: bytes) -> PacketCipher:
    return packet_cipher(CIPHERS[name], None, keymat, b"")


def _cbc(key: bytes) -> PacketCipher:
    return _combined(f"aes{len(key) * 8}", key)


def _combined(name: str, key: bytes) -> PacketCipher:
    return packet_cipher(CIPHERS[name], SHA256, key, bytes(SHA256.key))


def test_chacha20_poly1305_seals_the_packets_of_rfc_7634(vectors: Callable[[str], Any]) -> None:
    for case in vectors("rfc7634")["cases"]:
        keymat, iv, associated, plaintext, sealed, packet = (
            bytes.fromhex(case[name])
            for name in ("keymat", "iv", "associated", "plaintext", "sealed", "packet")
        )
        cipher = _aead("chacha20poly1305", keymat)
        assert cipher.seal(iv, plaintext, associated) == sealed, case["case"]
        assert cipher.open(iv, sealed, associated) == plaintext, case["case"]
        assert packet.endswith(associated + iv + sealed)


def test_aes_gcm_seals_the_packets_of_the_gcm_draft(vectors: Callable[[str], Any]) -> None:
    for case in vectors("draft-mcgrew-gcm-test-01")["cases"]:
        key, salt, iv, associated, plaintext, sealed = (
            bytes.fromhex(case[name])
            for name in ("key", "salt", "iv", "associated", "plaintext", "sealed")
        )
        cipher = _aead(f"aes{len(key) * 8}gcm16", key + salt)
        assert cipher.seal(iv, plaintext, associated) == sealed, case["case"]
        assert cipher.open(iv, sealed, associated) == plaintext, case["case"]


@pytest.mark.parametrize("icv", [16, 12, 8])
@pytest.mark.parametrize("bits", [128, 192, 256])
def test_aes_gcm_opens_and_refuses_as_the_nist_cases_say(
    bits: int, icv: int, nist_records: Callable[[str], Iterator[dict[str, str]]]
) -> None:
    opened = refused = 0
    for record in nist_records(f"ciphers/AES/GCM/gcmDecrypt{bits}.rsp"):
        if (record["IVlen"], record["Taglen"]) != ("96", str(icv * 8)):
            continue
        nonce = bytes.fromhex(record["IV"])
        cipher = _aead(f"aes{bits}gcm{icv}", bytes.fromhex(record["Key"]) + nonce[:4])
        sealed, associated = bytes.fromhex(record["CT"] + record["Tag"]), record["AAD"]
        if "FAIL" in record:
            refused += 1
            with pytest.raises(IntegrityFailed):
                cipher.open(nonce[4:], sealed, bytes.fromhex(associated))
        else:
            opened += 1
            plaintext = cipher.open(nonce[4:], sealed, bytes.fromhex(associated))
            assert plaintext.hex() == record["PT"], record["Count"]
            assert cipher.seal(nonce[4:], plaintext, bytes.fromhex(associated)) == sealed
    assert opened + refused == 375
    assert min(opened, refused) > 150


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_aes_gmac_authenticates_as_the_nist_cases_without_plaintext(
    bits: int, nist_records: Callable[[str], Iterator[dict[str, str]]]
) -> None:
    """RFC 4543: all is associated data, and the IV comes before what ESP would encrypt."""
    checked = 0
    for record in nist_records(f"ciphers/AES/GCM/gcmDecrypt{bits}.rsp"):
        nonce, associated = bytes.fromhex(record["IV"]), bytes.fromhex(record["AAD"])
        sizes = (record["IVlen"], record["Taglen"], record["PTlen"])
        if sizes != ("96", "128", "0") or len(associated) < 20 or "FAIL" in record:
            continue
        # A published packet that has the IV where GMAC has it is not to be had; so the header is
        # whatever is left of the associated data when IV and payload are taken off its end.
        cipher = _aead(f"aes{bits}gmac", bytes.fromhex(record["Key"]) + nonce[:4])
        primitive = aead.AESGCM(bytes.fromhex(record["Key"]))
        assert primitive.encrypt(nonce, b"", associated).hex() == record["Tag"]
        header, payload = associated[:8], associated[8:]
        sealed = cipher.seal(nonce[4:], payload, header)
        tag = primitive.encrypt(nonce, b"", header + nonce[4:] + payload)
        assert sealed == payload + tag
        assert cipher.open(nonce[4:], sealed, header) == payload
        checked += 1
    assert checked > 10


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_aes_ccm_seals_as_the_nist_cases_with_nonces_of_our_size(
    bits: int, nist_records: Callable[[str], Iterator[dict[str, str]]]
) -> None:
    sealed = 0
    key = b""
    for record in nist_records(f"ciphers/AES/CCM/VNT{bits}.rsp"):
        key = bytes.fromhex(record["Key"]) if "Key" in record else key
        nonce = bytes.fromhex(record.get("Nonce", ""))
        if len(nonce) != 11:
            continue
        cipher = _aead(f"aes{bits}ccm16", key + nonce[:3])
        associated, plaintext = (bytes.fromhex(record[n]) for n in ("Adata", "Payload"))
        assert cipher.seal(nonce[3:], plaintext, associated).hex() == record["CT"]
        assert cipher.open(nonce[3:], bytes.fromhex(record["CT"]), associated) == plaintext
        sealed += 1
    assert sealed == 10


def test_aes_ccm_with_short_icvs_seals_as_the_published_cases(
    vectors: Callable[[str], Any],
) -> None:
    for case in vectors("nist-ccm-nonce-11")["cases"]:
        key, salt, iv, associated, plaintext, sealed = (
            bytes.fromhex(case[name])
            for name in ("key", "salt", "iv", "associated", "plaintext", "sealed")
        )
        bits, icv = case["case"].split("-")
        cipher = _aead(f"aes{bits}ccm{icv}", key + salt)
        assert cipher.seal(iv, plaintext, associated) == sealed, case["case"]
        assert cipher.open(iv, sealed, associated) == plaintext, case["case"]


def test_aes_ctr_gives_the_ciphertexts_of_rfc_3686(vectors: Callable[[str], Any]) -> None:
    cases = vectors("rfc3686")["cases"]
    assert len(cases) == 9
    for case in cases:
        key, salt, iv, plaintext = (
            bytes.fromhex(case[name]) for name in ("key", "salt", "iv", "plaintext")
        )
        cipher = _combined(f"aes{len(key) * 8}ctr", key + salt)
        sealed = cipher.seal(iv, plaintext, b"header")
        assert sealed[: -cipher.icv_size].hex() == case["ciphertext"], case["case"]
        assert cipher.open(iv, sealed, b"header") == plaintext, case["case"]


def test_camellia_cbc_gives_the_ciphertexts_of_openssl(
    nist_records: Callable[[str], Iterator[dict[str, str]]],
) -> None:
    """Those of RFC 3713's cipher in CBC mode."""
    records = list(nist_records("ciphers/Camellia/camellia-cbc.txt"))
    assert len(records) == 12
    for record in records:
        key, iv, plaintext = (bytes.fromhex(record[n]) for n in ("KEY", "IV", "PLAINTEXT"))
        cipher = _combined(f"camellia{len(key) * 8}", key)
        sealed = cipher.seal(iv, plaintext, b"")
        assert sealed[: -cipher.icv_size].hex() == record["CIPHERTEXT"].lower()
        assert cipher.open(iv, sealed, b"") == plaintext


def test_3des_cbc_gives_the_ciphertexts_of_nist(
    nist_records: Callable[[str], Iterator[dict[str, str]]],
) -> None:
    records = list(nist_records("ciphers/3DES/CBC/TCBCMMT3.rsp"))
    assert len(records) == 20
    for record in records:
        key = bytes.fromhex("".join(record[f"KEY{number}"] for number in (1, 2, 3)))
        iv, plaintext = bytes.fromhex(record["IV"]), bytes.fromhex(record["PLAINTEXT"])
        cipher = _combined("3des", key)
        sealed = cipher.seal(iv, plaintext, b"")
        assert sealed[: -cipher.icv_size].hex() == record["CIPHERTEXT"], record["COUNT"]
        assert cipher.open(iv, sealed, b"") == plaintext


@pytest.mark.parametrize("name", ["aes256gcm16", "aes128ccm8", "chacha20poly1305"])
def test_an_implicit_iv_changes_nothing_but_whether_it_travels(name: str) -> None:
    """RFC 8750 section 4: "All other aspects and parameters of those algorithms are unchanged"."""
    implicit, explicit = CIPHERS[f"{name}iiv"], CIPHERS[name]
    assert (implicit.keymat, implicit.whole_iv) == (explicit.keymat, explicit.iv)
    keymat, iv = bytes(range(implicit.keymat)), bytes(range(8))
    sealed = _aead(f"{name}iiv", keymat).seal(iv, b"plaintext", b"header")
    assert sealed == _aead(name, keymat).seal(iv, b"plaintext", b"header")


def test_aes_cbc_gives_the_ciphertexts_of_rfc_3602(vectors: Callable[[str], Any]) -> None:
    for case in vectors("rfc3602")["cases"]:
        key, iv, plaintext = (bytes.fromhex(case[name]) for name in ("key", "iv", "plaintext"))
        header = bytes.fromhex(case.get("header", ""))
        cipher = _cbc(key)
        sealed = cipher.seal(iv, plaintext, header)
        assert sealed[: -cipher.icv_size].hex() == case["ciphertext"], case["case"]
        assert cipher.open(iv, sealed, header) == plaintext, case["case"]


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_aes_cbc_gives_the_ciphertexts_of_nist(
    bits: int, nist_records: Callable[[str], Iterator[dict[str, str]]]
) -> None:
    records = list(nist_records(f"ciphers/AES/CBC/CBCMMT{bits}.rsp"))
    assert len(records) == 20
    for record in records:
        cipher = _cbc(bytes.fromhex(record["KEY"]))
        iv, plaintext = bytes.fromhex(record["IV"]), bytes.fromhex(record["PLAINTEXT"])
        sealed = cipher.seal(iv, plaintext, b"")
        assert sealed[: -cipher.icv_size].hex() == record["CIPHERTEXT"], record["COUNT"]
        assert cipher.open(iv, sealed, b"") == plaintext


def test_the_sk_payloads_of_strongswan_open_and_are_sealed_alike(
    vectors: Callable[[str], Any],
) -> None:
    for case in vectors("strongswan-exchanges")["cases"]:
        suite = ike_suite(parse_proposal(case["ike"], ProtocolId.IKE))
        for end in ("i", "r"):
            message = bytes.fromhex(case[f"ike_auth_{end}"])
            keys = (bytes.fromhex(case["keys"].get(f"sk_{use}{end}", "")) for use in ("e", "a"))
            cipher = packet_cipher(suite.cipher, suite.integrity, *keys)
            header, rest = message[:32], message[32:]
            iv, sealed = rest[: cipher.iv_size], rest[cipher.iv_size :]
            plaintext = cipher.open(iv, sealed, header)
            assert bytes.fromhex(case[f"identity_{end}"]) in plaintext
            assert bytes.fromhex(case[f"auth_{end}"]) in plaintext
            assert cipher.seal(iv, plaintext, header) == sealed


@every_combined_suite
def test_the_icv_covers_associated_iv_ciphertext_and_trailer_in_this_order(suite: Suite) -> None:
    iv, plaintext, associated, trailer = _sample(suite)
    integrity = suite[1]
    assert integrity is not None
    sealed = _cipher(suite).seal(iv, plaintext, associated, trailer)
    ciphertext, icv = sealed[: -integrity.icv], sealed[-integrity.icv :]
    covered = associated + iv + ciphertext + trailer
    assert icv == _mac(suite, covered)
    assert len(ciphertext) == len(plaintext)


@every_block_suite
def test_a_kept_cbc_context_does_what_a_new_one_for_each_packet_does(suite: Suite) -> None:
    dice = random.Random(7)
    cipher = _cipher(suite)
    algorithm, block = _BLOCK_CIPHERS[suite[0].id](_keys(suite)[0]), suite[0].block
    for _ in range(200):
        iv, plaintext = dice.randbytes(block), dice.randbytes(block * dice.randint(1, 12))
        encryptor = Cipher(algorithm, modes.CBC(iv)).encryptor()
        expected = encryptor.update(plaintext) + encryptor.finalize()
        sealed = cipher.seal(iv, plaintext, b"header")
        assert sealed[: -cipher.icv_size] == expected
        with pytest.raises(IntegrityFailed):
            cipher.open(iv, sealed, b"forged")
        if dice.random() < 0.7:
            assert cipher.open(iv, sealed, b"header") == plaintext


@every_suite
def test_the_sizes_are_those_of_the_table(suite: Suite) -> None:
    cipher, integrity = suite
    made = _cipher(suite)
    icv = cipher.icv if integrity is None else integrity.icv
    sizes = (cipher.iv + cipher.implicit_iv, icv, cipher.block, cipher.is_aead)
    assert (made.iv_size, made.icv_size, made.block, made.is_aead) == sizes
    iv, plaintext, associated, trailer = _sample(suite)
    assert len(made.seal(iv, plaintext, associated, trailer)) == len(plaintext) + made.icv_size


@every_suite
def test_a_packet_changed_in_any_octet_does_not_open(suite: Suite) -> None:
    iv, plaintext, associated, trailer = _sample(suite)
    cipher = _cipher(suite)
    genuine = [iv, cipher.seal(iv, plaintext, associated, trailer), associated, trailer]
    for part, octets in enumerate(genuine):
        for position in range(len(octets)):
            forged = bytearray(octets)
            forged[position] ^= 1 << position % 8
            packet = [*genuine[:part], bytes(forged), *genuine[part + 1 :]]
            with pytest.raises(IntegrityFailed):
                cipher.open(*packet)
    assert cipher.open(*genuine) == plaintext


@every_suite
def test_a_packet_cut_short_or_drawn_out_does_not_open(suite: Suite) -> None:
    iv, plaintext, associated, trailer = _sample(suite)
    cipher = _cipher(suite)
    sealed = cipher.seal(iv, plaintext, associated, trailer)
    for other in [sealed[:length] for length in range(len(sealed))] + [sealed + b"\0"]:
        with pytest.raises(IntegrityFailed):
            cipher.open(iv, other, associated, trailer)
    for other in {b"", iv[:-1], iv + b"\0"} - {iv}:
        with pytest.raises(IntegrityFailed):
            cipher.open(other, sealed, associated, trailer)


@every_block_suite
def test_a_right_icv_over_half_a_block_or_nothing_does_not_open(suite: Suite) -> None:
    iv, _, associated, trailer = _sample(suite)
    half = suite[0].block // 2
    for ciphertext in (b"", bytes(half), bytes(3 * half)):
        icv = _mac(suite, associated + iv + ciphertext + trailer)
        with pytest.raises(IntegrityFailed):
            _cipher(suite).open(iv, ciphertext + icv, associated, trailer)


@every_suite
def test_sealing_with_a_wrong_iv_size_is_refused(suite: Suite) -> None:
    iv, plaintext, associated, trailer = _sample(suite)
    for other in {b"", iv[:-1], iv + b"\0"} - {iv}:
        with pytest.raises(ValueError, match="wrong IV size"):
            _cipher(suite).seal(other, plaintext, associated, trailer)


@every_block_suite
def test_sealing_what_is_not_padded_is_refused(suite: Suite) -> None:
    iv, _, associated, trailer = _sample(suite)
    for size in (0, 1, 15, 17):
        with pytest.raises(ValueError, match="not padded"):
            _cipher(suite).seal(iv, bytes(size), associated, trailer)


@every_aead_suite
def test_an_aead_cipher_refuses_a_trailer(suite: Suite) -> None:
    iv, plaintext, associated, _ = _sample(suite)
    cipher = _cipher(suite)
    sealed = cipher.seal(iv, plaintext, associated)
    with pytest.raises(ValueError, match="trailer"):
        cipher.seal(iv, plaintext, associated, b"high")
    with pytest.raises(ValueError, match="trailer"):
        cipher.open(iv, sealed, associated, b"high")


@every_suite
def test_keys_of_the_wrong_size_make_no_cipher(suite: Suite) -> None:
    encryption_key, integrity_key = _keys(suite)
    for wrong in {encryption_key[:-1], encryption_key + b"\0", b""} - {encryption_key}:
        with pytest.raises(ValueError, match="octets of key and salt"):
            packet_cipher(*suite, wrong, integrity_key)
    with pytest.raises(ValueError, match="integrity key"):
        packet_cipher(*suite, encryption_key, integrity_key + b"\0")


def test_an_integrity_algorithm_goes_with_a_cipher_that_needs_it_only() -> None:
    for cipher in algorithms.CIPHERS:
        integrity = SHA256 if cipher.is_aead else None
        integrity_key = bytes(SHA256.key if cipher.is_aead else 0)
        with pytest.raises(ValueError, match="do not go together"):
            packet_cipher(cipher, integrity, bytes(cipher.keymat), integrity_key)


_E = EncryptionAlgorithm
CHAINED = [suite for suite in BLOCK_SUITES if suite[1] and suite[1].icv >= suite[0].block - 1]
every_chained_suite = pytest.mark.parametrize("suite", CHAINED, ids=_name)
IN_PLACE = [suite for suite in AEAD_SUITES if not suite[0].name.endswith(("gcm8", "gcm12", "gmac"))]


@pytest.mark.parametrize("suite", IN_PLACE, ids=_name)
def test_in_place_a_packet_is_sealed_and_opened_as_by_copying(suite: Suite) -> None:
    """What copies is proved by the published vectors above."""
    cipher, (iv, plaintext, associated, _) = _cipher(suite), _sample(suite)
    sealed = cipher.seal(iv, plaintext, associated)
    in_place = cipher.in_place
    assert isinstance(in_place, InPlace)
    nonce, buffer = bytearray(in_place.salt + iv), memoryview(bytearray(len(sealed)))
    opened = buffer[: len(plaintext)]
    opened[:] = plaintext
    assert in_place.seal_into(nonce, opened, memoryview(associated), buffer) == len(sealed)
    assert buffer == sealed
    assert in_place.open_into(nonce, buffer, memoryview(associated), opened) == len(plaintext)
    assert opened == plaintext


@pytest.mark.parametrize("suite", IN_PLACE, ids=_name)
def test_in_place_a_packet_changed_in_any_octet_does_not_open(suite: Suite) -> None:
    cipher, (iv, plaintext, associated, _) = _cipher(suite), _sample(suite)
    sealed = cipher.seal(iv, plaintext, associated)
    in_place = cipher.in_place
    assert isinstance(in_place, InPlace)
    for at in range(len(sealed)):
        buffer = bytearray(sealed)
        buffer[at] ^= 1
        opened = memoryview(buffer)[: len(plaintext)]
        with pytest.raises(IntegrityFailed):
            in_place.open_into(in_place.salt + iv, buffer, associated, opened)


def test_what_is_put_together_from_pieces_is_not_done_in_place() -> None:
    others = [suite for suite in SUITES if suite not in IN_PLACE + CHAINED]
    assert all(_cipher(suite).in_place is None for suite in others)
    assert {suite[0].id for suite in others} >= {_E.NULL, _E.AES_CTR, _E.NULL_AUTH_AES_GMAC}
    short = {suite[1].name for suite in others if suite[1] and suite[0].id == _E.AES_CBC}
    assert short == {"sha1", "aesxcbc", "aescmac"}, "an ICV is too small for a block"


def _in_one_buffer(packets: list[bytes], head: int, icv: int) -> Chained:
    """Whole packets, with views of them as their form wants."""
    buffer, views, at = memoryview(bytearray(b"".join(packets))), [], 0
    for packet in packets:
        views.append(buffer[at : at + len(packet)])
        at += len(packet)
    return Chained(
        [view[:-icv] for view in views],
        [view[head:-icv] for view in views],
        [view[head:] for view in views],
        [view[-icv:] for view in views],
    )


def _in_a_row(suite: Suite, trailer: bytes) -> tuple[list[bytes], list[bytes]]:
    """Plaintexts, and the packets of them, each sealed by itself behind four octets."""
    dice, cipher = random.Random(3), _cipher(suite)
    plaintexts = [dice.randbytes(suite[0].block * dice.randint(1, 9)) for _ in range(20)]
    packets = []
    for number, plaintext in enumerate(plaintexts):
        head, iv = number.to_bytes(4), dice.randbytes(cipher.iv_size)
        packets.append(head + iv + cipher.seal(iv, plaintext, head, trailer))
    return plaintexts, packets


def _chained(cipher: PacketCipher) -> ChainedInPlace:
    in_place = cipher.in_place
    assert in_place is not None
    assert not isinstance(in_place, InPlace)
    return in_place


@every_chained_suite
@pytest.mark.parametrize("trailer", [b"", b"high"])
def test_packets_are_sealed_in_a_row_as_one_by_one(suite: Suite, trailer: bytes) -> None:
    """With the IVs that come out; and so is what follows by itself."""
    cipher, twin = _cipher(suite), _cipher(suite)
    iv_size, icv = cipher.iv_size, cipher.icv_size
    plaintexts, _ = _in_a_row(suite, trailer)
    given = [
        bytes([number] * 4) + random.Random(number).randbytes(iv_size) + plaintext + bytes(icv)
        for number, plaintext in enumerate(plaintexts)
    ]
    for _ in range(2):
        packets = _in_one_buffer(given, 4, icv)
        _chained(cipher).seal_each(packets, trailer)
        for view, made, before, plaintext in zip(
            packets.covered, packets.icvs, given, plaintexts, strict=True
        ):
            head, iv = bytes(view[:4]), bytes(view[4 : 4 + iv_size])
            assert head == before[:4]
            assert iv != before[4 : 4 + iv_size]
            expected = twin.seal(iv, plaintext, head, trailer)
            assert bytes(view[4 + iv_size :]) + bytes(made) == expected
        iv = bytes(range(iv_size))
        assert cipher.seal(iv, bytes(32), b"") == twin.seal(iv, bytes(32), b"")


@every_chained_suite
@pytest.mark.parametrize("trailer", [b"", b"high"])
def test_packets_are_opened_in_a_row_as_one_by_one(suite: Suite, trailer: bytes) -> None:
    cipher = _cipher(suite)
    plaintexts, sealed = _in_a_row(suite, trailer)
    for forged in ([], [3], [0, 19], range(20)):
        came = [_flipped(packet, n) if n in forged else packet for n, packet in enumerate(sealed)]
        packets = _in_one_buffer(came, 4, cipher.icv_size)
        are_authentic = _chained(cipher).open_each(packets, trailer)
        assert are_authentic == [number not in forged for number in range(20)]
        for number, (view, plaintext) in enumerate(zip(packets.chains, plaintexts, strict=True)):
            if number in forged:
                whole = bytes(packets.covered[number]) + bytes(packets.icvs[number])
                assert whole == came[number], "what is forged is not decrypted"
            else:
                assert view[cipher.iv_size :] == plaintext
        assert (
            cipher.open(
                sealed[5][4:][: cipher.iv_size],
                sealed[5][4 + cipher.iv_size :],
                sealed[5][:4],
                trailer,
            )
            == plaintexts[5]
        )


def _flipped(packet: bytes, seed: int) -> bytes:
    """One bit of it, wherever."""
    at, bit = random.Random(seed).randrange(len(packet)), 1 << seed % 8
    return packet[:at] + bytes([packet[at] ^ bit]) + packet[at + 1 :]


@every_chained_suite
def test_the_upper_half_is_authenticated_with_each(suite: Suite) -> None:
    cipher = _cipher(suite)
    for made, told in ((b"high", b"high"[::-1]), (b"", b"high"), (b"high", b"")):
        packets = _in_one_buffer(_in_a_row(suite, made)[1], 4, cipher.icv_size)
        assert not any(_chained(cipher).open_each(packets, told))


def test_every_cipher_of_the_table_can_be_made() -> None:
    kinds = {cipher.id for cipher, _ in SUITES if _cipher((cipher, _))}
    assert kinds == {cipher.id for cipher in algorithms.CIPHERS}
