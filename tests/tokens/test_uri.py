"""URIs of keys on tokens (RFC 7512): what they name, and what is refused without being quoted."""

from __future__ import annotations

import pytest

from xfrmpy.tokens.uri import TokenUri, UriRefused, parse_uri

MODULE = "?module-path=/usr/lib/softhsm/libsofthsm2.so"
PATH = "/usr/lib/softhsm/libsofthsm2.so"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("token=gw;object=key", TokenUri(module=PATH, token="gw", object="key")),
        ("object=key;token=gw;type=private", TokenUri(module=PATH, token="gw", object="key")),
        ("token=The%20one;id=%01%ff", TokenUri(module=PATH, token="The one", id=b"\1\xff")),
        ("serial=0f64;id=a", TokenUri(module=PATH, serial="0f64", id=b"a")),
        (
            "token=%e2%82%ac;manufacturer=M;model=N;object=k",
            TokenUri(module=PATH, token="€", manufacturer="M", model="N", object="k"),
        ),
    ],
)
def test_a_uri_names_a_key(path: str, meant: TokenUri) -> None:
    assert parse_uri(f"pkcs11:{path}{MODULE}") == meant


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("file:/key", "must begin with pkcs11:"),
        (f"pkcs11:{'a' * 3000}", "at most"),
        (f"pkcs11:token=a b;object=k{MODULE}", "as %XX"),
        (f"pkcs11:token=a%2;object=k{MODULE}", "as %XX"),
        (f"pkcs11:token=ä;object=k{MODULE}", "as %XX"),
        (f"pkcs11:token=a;token=b;object=k{MODULE}", "each name once"),
        (f"pkcs11:token;object=k{MODULE}", "NAME=VALUE"),
        (f"pkcs11:token=a;object=k{MODULE}&pin-value=1234", "must not hold the PIN"),
        (f"pkcs11:token=a;object=k{MODULE}&pin-source=file:/x", "not known here"),
        (f"pkcs11:token=a;object=k;slot-id=1{MODULE}", "not known here"),
        (f"pkcs11:token=a;object=k;type=cert{MODULE}", "private key"),
        (f"pkcs11:token=a{MODULE}", "must name the key"),
        (f"pkcs11:object=k{MODULE}", "must name the token"),
        ("pkcs11:token=a;object=k", "must end with the module"),
        ("pkcs11:token=a;object=k?module-path=libsofthsm2.so", "must end with the module"),
    ],
)
def test_a_uri_that_names_no_key_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(UriRefused, match=reason) as refused:
        parse_uri(uri)
    assert "1234" not in str(refused.value)
