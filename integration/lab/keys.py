"""Key pairs of gateways, in files as all implementations read them."""

from __future__ import annotations

from pathlib import Path

from integration.lab.process import run
from integration.lab.tunnel import KeyFiles

_OPTIONS = {
    "rsa": ("RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "ecdsa256": ("EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "ecdsa384": ("EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "ecdsa521": ("EC", "-pkeyopt", "ec_paramgen_curve:P-521"),
    "ed25519": ("ED25519",),
    "ed448": ("ED448",),
}
KINDS = tuple(_OPTIONS)


def make_key(directory: Path, kind: str, name: str) -> KeyFiles:
    """A new pair of one of the `KINDS`."""
    private, public = directory / f"{name}.key", directory / f"{name}.pub"
    private.touch(0o600)
    run("openssl", "genpkey", "-algorithm", *_OPTIONS[kind], "-out", str(private))
    run("openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public))
    return KeyFiles(private=private, public=public)
