"""TLS within EAP in a policy: whom a user believes, and what a gateway shows (the rest: `eap.py`).

What stands there in vain is an error, as everywhere: it was meant for something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.certificate import decode_certificate_untrusted
from xfrmpy.pki.checks import TLS_CLIENT_USAGES, TLS_SERVER_USAGES, check_leaf
from xfrmpy.pki.verdicts import CertificateRefused
from xfrmpy.policy.model import (
    Certificates,
    EapClientTls,
    EapInside,
    EapMethod,
    EapServerTls,
    PrivateKey,
)
from xfrmpy.policy.values import SecretReference

if TYPE_CHECKING:
    from xfrmpy.policy.certificates import CertificateFiles
    from xfrmpy.policy.keys import KeyReader
    from xfrmpy.policy.resolve import Keypath, Place
    from xfrmpy.policy.schema.authentication import OurEap, TheirEap

Shown: TypeAlias = tuple[Certificates | None, PrivateKey | None]
"""A certificate and its key, as far as they could be read."""

_OURS: Keypath = ("auth", "local", "eap")
_THEIRS: Keypath = ("auth", "remote", "eap")
_IN_PEAP = (EapInside.EAP_MSCHAPV2, EapInside.EAP_GTC)


def client_tls(
    eap: OurEap,
    methods: Sequence[EapMethod],
    server: Identity | None,
    place: Place,
    reader: KeyReader,
) -> EapClientTls | None:
    """What a user has of TLS, None if no method speaks it, or with an error for each reason.

    `server` is the gateway, which is the server within EAP, too, unless the policy names another.
    """
    words = {"ca": eap.ca, "cert": eap.cert, "server": eap.server, "inside": eap.inside}
    has_inside = any(m.is_tunnel and m is not EapMethod.TLS for m in methods)
    _check_in_vain(words, methods, _OURS, place)
    if not any(method.is_tunnel for method in methods):
        return None
    if eap.cert is not None and EapMethod.TLS not in methods:
        message = "'cert' of 'eap' has no meaning without the method tls"
        place.error("XF1004", (*_OURS, "cert"), message, "leave it out", at_key=True)
    if eap.inside is not None and not has_inside:
        message = "'inside' has no meaning with the method tls, within which nothing is said"
        place.error("XF1004", (*_OURS, "inside"), message, "leave it out", at_key=True)
    inside = eap.inside or EapInside.EAP_MSCHAPV2
    if EapMethod.PEAP in methods and inside not in _IN_PEAP:
        message = f"within peap there is no {inside}"
        place.error("XF1004", (*_OURS, "inside"), message, f"write {' or '.join(_IN_PEAP)}")
    wanted = eap.server or server
    if wanted is None:
        message = "'server' of 'eap' is missing: whose certificate the server within EAP must have"
        place.error("XF1005", _OURS, message, "eap: {server: NAME, ...}", at_key=True)
    if eap.ca is None:
        message = "'ca' of 'eap' is missing: who vouches for the server within EAP"
        place.error("XF1005", _OURS, message, "eap: {ca: NAME, ...}", at_key=True)
    if eap.cert is None and EapMethod.TLS in methods:
        message = "'cert' of 'eap' is missing: the certificate of the user that we are"
        place.error("XF1005", _OURS, message, "eap: {cert: NAME, ...}", at_key=True)
        return None
    files = reader.certificates
    if wanted is None or eap.ca is None or files is None:
        return None
    authorities = files.authorities(eap.ca, place.where((*_OURS, "ca")))
    shown = None
    if eap.cert is not None:
        shown = _shown(eap.cert, (*_OURS, "cert"), TLS_CLIENT_USAGES, files, place, reader)
    if authorities is None or (eap.cert is not None and shown is None):
        return None
    certificates, key = shown or (None, None)
    return EapClientTls(
        authorities=authorities, server=wanted, certificates=certificates, key=key, inside=inside
    )


def server_tls(
    eap: TheirEap,
    methods: Sequence[EapMethod],
    ours: Shown | None,
    place: Place,
    reader: KeyReader,
) -> EapServerTls | None:
    """What a gateway has of TLS, None if no method speaks it, or with an error for each reason.

    `ours` is by what it proves itself in IKE, and so within TLS, too, unless the policy names
    something else.
    """
    _check_in_vain({"ca": eap.ca, "cert": eap.cert}, methods, _THEIRS, place)
    if not any(method.is_tunnel for method in methods):
        return None
    if EapMethod.TLS not in methods and eap.ca is not None:
        message = "'ca' of 'eap' has no meaning without the method tls"
        place.error("XF1004", (*_THEIRS, "ca"), message, "leave it out", at_key=True)
    if EapMethod.TLS in methods and eap.ca is None:
        message = "'ca' of 'eap' is missing: who vouches for the certificates of users"
        place.error("XF1005", _THEIRS, message, "eap: {ca: NAME, ...}", at_key=True)
    files = reader.certificates
    if files is None:
        return None
    shown: Shown | None = ours
    if eap.cert is not None:
        shown = _shown(eap.cert, (*_THEIRS, "cert"), TLS_SERVER_USAGES, files, place, reader)
    elif ours is None:
        message = "'cert' of 'eap' is missing: what the gateway shows within TLS"
        place.error("XF1005", _THEIRS, message, "eap: {cert: NAME, ...}", at_key=True)
    elif ours[0] is not None and not _is_for_servers(ours[0], place):
        return None
    elif ours[1] is not None and ours[1].token is not None:
        message = "TLS within EAP signs by a key in a file, and ours is on a token"
        place.error("XF1011", _THEIRS, message, "name another certificate as 'cert' of 'eap'")
        return None
    authorities = eap.ca and files.authorities(eap.ca, place.where((*_THEIRS, "ca")))
    certificates, key = shown or (None, None)
    if certificates is None or key is None or (eap.ca is not None and not authorities):
        return None
    return EapServerTls(certificates=certificates, key=key, authorities=authorities or None)


def _check_in_vain(
    words: Mapping[str, object], methods: Sequence[EapMethod], path: Keypath, place: Place
) -> None:
    if any(method.is_tunnel for method in methods):
        return
    for word, value in words.items():
        if value is not None:
            message = f"'{word}' of 'eap' has no meaning with {', '.join(methods)}"
            hint = "leave it out, or take a method with TLS: tls, ttls or peap"
            place.error("XF1004", (*path, word), message, hint, at_key=True)


def _shown(
    name: str,
    path: Keypath,
    usages: frozenset[str],
    files: CertificateFiles,
    place: Place,
    reader: KeyReader,
) -> tuple[Certificates, PrivateKey] | None:
    """A certificate, with those above it, and the key that is called as it is."""
    if name.startswith("file:"):
        message = f"the key of '{name}' is not named"
        hint = "write a name: certs/NAME.pem and keys/NAME.key"
        place.error("XF1004", path, message, hint)
        return None
    reference = SecretReference("file", files.key_path(name))
    key = reader.private_key(reference, None, place.mark(path), place.findings)
    certificates = files.ours(name, key, place.where(path), usages)
    return None if key is None or certificates is None else (certificates, key)


def _is_for_servers(certificates: Certificates, place: Place) -> bool:
    try:
        check_leaf(decode_certificate_untrusted(certificates.ders[0]), TLS_SERVER_USAGES)
    except CertificateRefused as refused:
        message = f"{certificates.origin} cannot be shown within TLS: {refused.summary}"
        place.error("XF1031", _THEIRS, message, "name another as 'cert' of 'eap'", at_key=True)
        return False
    return True
