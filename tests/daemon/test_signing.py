"""Signatures by tokens beside the loop: what a module does not do in its time costs that alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.ike.test_signing import URI, on_token
from tests.keypairs import key_pair, private_key
from xfrmpy.crypto.signatures import SCHEMES, KeyKind
from xfrmpy.daemon import signing
from xfrmpy.ike.outputs import AskSignature

KEY = on_token(private_key(KeyKind.ED25519, "moon"))
(SCHEME,) = (scheme for scheme in SCHEMES if KeyKind.ED25519 in scheme.kinds)


def asked(number: int, module: str = URI.module) -> AskSignature:
    assert KEY.token is not None
    uri = replace(URI, module=module)
    key = replace(KEY, token=replace(KEY.token, uri=uri))
    return AskSignature(number=number, key=key, scheme=SCHEME, octets=b"%d" % number)


class Module:
    """Signs by the key of moon; a call about `stuck.so` hangs until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def sign(self, uri: object, _pin: bytes, _spki: bytes, _scheme: object, octets: bytes) -> bytes:
        if getattr(uri, "module", "") == "stuck.so":
            self.let_go.wait(60)
        return key_pair(KeyKind.ED25519, "moon").sign(SCHEME, octets)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    made = Module()
    monkeypatch.setattr(signing, "sign", made.sign)
    yield made
    made.let_go.set()


async def answers(*numbers_and_modules: tuple[int, str]) -> dict[int, bytes | str]:
    """What is told about each that was asked for, once all have been answered."""
    told: dict[int, bytes | str] = {}
    complete = asyncio.Event()

    def tell(about: AskSignature, answer: bytes | str) -> None:
        assert about.number not in told
        told[about.number] = answer
        if len(told) == len(numbers_and_modules):
            complete.set()

    signer = signing.TokenSigner(tell)
    for number, name in numbers_and_modules:
        signer.ask(asked(number, name))
    async with asyncio.timeout(60):
        await complete.wait()
    signer.stop()
    return told


def test_a_module_that_hangs_costs_its_own_signatures_alone(
    module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "SECONDS", 3.0)
    told = asyncio.run(answers((1, "stuck.so"), (2, "stuck.so"), (3, "other.so")))
    assert not module.let_go.is_set()
    assert told[1] == told[2] == "no answer within 3 s"
    assert told[3] == key_pair(KeyKind.ED25519, "moon").sign(SCHEME, b"3")


def test_what_is_too_much_for_a_module_is_refused_at_once(
    module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "MAX_WAITING", 1)
    monkeypatch.setattr(signing, "SECONDS", 5.0)
    told = asyncio.run(answers(*((number, "stuck.so") for number in range(4))))
    refused = [answer for answer in told.values() if answer == "1 others are waiting for it"]
    assert len(refused) >= 2
    assert not module.let_go.is_set()
