"""EAP in a policy: as whom and by what we prove who we are to a gateway, or who may call ours.

Read RFC 7296 section 2.16 and RFC 5998 first. The list of users is read here, too: a name and a
password on each line. Nothing of it but the number of a line gets into a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.eap_tls import Shown, client_tls, server_tls
from xfrmpy.policy.model import (
    EapAcceptance,
    EapCredential,
    EapMethod,
    StartMode,
)
from xfrmpy.policy.values import MAX_SHORT_TEXT, SecretReference

if TYPE_CHECKING:
    from xfrmpy.policy.keys import KeyReader
    from xfrmpy.policy.resolve import Keypath, Place
    from xfrmpy.policy.schema.authentication import OurAuthentication, TheirAuthentication, TheirEap
    from xfrmpy.policy.schema.tunnel import Tunnel

DEFAULT_METHODS = (EapMethod.MSCHAPV2,)
"""What every client has, and more than a challenge to the password."""

MAX_PASSWORD = 256
"""Characters; RFC 2759 section 8.3 takes no more."""


def credential_of(
    ours: OurAuthentication,
    gateway: Identity | None,
    tunnel: Tunnel,
    place: Place,
    reader: KeyReader,
) -> EapCredential | None:
    """As whom we call; None if we prove ourselves otherwise, or with an error for each reason.

    `gateway` is whom we call.
    """
    eap, path = ours.eap, ("auth", "local", "eap")
    if eap is None:
        return None
    if not tunnel.peer or tunnel.start is StartMode.LISTEN:
        message = "who proves itself by EAP calls: 'eap' of our end needs a 'peer', and no listen"
        place.error("XF1004", path, message, at_key=True)
    _check_together(tunnel, place)
    identity = eap.identity or ("" if ours.id is None else str(ours.id))
    if not identity:
        message = "'identity' of 'eap' is missing: the name of the user that we are"
        place.error("XF1005", path, message, "eap: {identity: NAME, ...}", at_key=True)
    methods = tuple(dict.fromkeys(eap.method or DEFAULT_METHODS))
    _check_alone(bool(eap.alone), methods, path, place)
    _check_needed("password", eap.password, methods, path, place)
    tls = client_tls(eap, methods, gateway, place, reader)
    password = eap.password and reader.password(
        eap.password, place.mark((*path, "password")), place.findings
    )
    if eap.password is not None and password is None:
        return None
    return EapCredential(
        identity=identity, methods=methods, password=password, tls=tls, alone=bool(eap.alone)
    )


def acceptance_of(
    theirs: TheirAuthentication,
    shown: Shown | None,
    tunnel: Tunnel,
    place: Place,
    reader: KeyReader,
) -> EapAcceptance | None:
    """Who may call; None if the peer proves itself otherwise, or with an error for each reason.

    `shown` is by what we prove ourselves, if that is a certificate, as far as it could be read.
    """
    eap, path = theirs.eap, ("auth", "remote", "eap")
    if eap is None:
        return None
    if tunnel.peer:
        message = "who proves itself by EAP calls: 'peer' has no meaning with 'eap' of that end"
        place.error("XF1004", ("peer",), message, "leave it out", at_key=True)
    if theirs.id is not None:
        message = "'id' says nothing of who proves itself by EAP"
        hint = "write eap: {identities: [...]} in its place"
        place.error("XF1004", ("auth", "remote", "id"), message, hint, at_key=True)
    _check_together(tunnel, place)
    if eap.radius is not None:
        return _left_to(eap.radius, eap, path, place)
    if eap.groups is not None:
        message = "'groups' are those of a RADIUS server, and 'users' has none"
        place.error("XF1004", (*path, "groups"), message, "leave it out", at_key=True)
    methods = tuple(dict.fromkeys(eap.methods or DEFAULT_METHODS))
    _check_alone(bool(eap.alone), methods, path, place)
    _check_needed("users", eap.users, methods, path, place)
    tls = server_tls(eap, methods, shown, place, reader)
    users = eap.users and reader.users(eap.users, place.mark((*path, "users")), place.findings)
    if eap.users is not None and users is None:
        return None
    return EapAcceptance(
        methods=methods,
        users=users,
        tls=tls,
        identities=tuple(eap.identities or ()),
        alone=bool(eap.alone),
    )


_NEEDED = {
    "password": ("'password' of 'eap' is missing", "eap: {password: secret:NAME, ...}"),
    "users": (
        "'users' of 'eap' is missing: the list of names and passwords",
        "eap: {users: file:/PATH}, or {radius: GROUP}",
    ),
}


def _check_needed(
    word: str,
    value: SecretReference | None,
    methods: tuple[EapMethod, ...],
    path: Keypath,
    place: Place,
) -> None:
    """Of all methods, tls alone has no passwords."""
    has_passwords = methods != (EapMethod.TLS,)
    message, hint = _NEEDED[word]
    if has_passwords and value is None:
        place.error("XF1005", path, message, hint, at_key=True)
    if not has_passwords and value is not None:
        message = f"'{word}' has no meaning with the method tls, which takes certificates"
        place.error("XF1004", (*path, word), message, "leave it out", at_key=True)


def _left_to(group: str, eap: TheirEap, path: Keypath, place: Place) -> EapAcceptance:
    """Users whom servers know; these choose the method, too."""
    for key in ("users", "methods", "cert", "ca", "alone"):
        if getattr(eap, key):
            message = f"'{key}' is not ours to say: the servers of 'radius' decide"
            place.error("XF1004", (*path, key), message, "leave it out", at_key=True)
    return EapAcceptance(
        server=group,
        identities=tuple(eap.identities or ()),
        groups=tuple(eap.groups or ()),
    )


def _check_alone(alone: bool, methods: tuple[EapMethod, ...], path: Keypath, place: Place) -> None:
    unfit = [method for method in methods if not method.is_fit_alone]
    if alone and unfit:
        message = (
            f"'alone' would tell anybody the password by {unfit[0]}: it takes methods that prove "
            "the gateway, too"
        )
        place.error("XF1004", (*path, "alone"), message, "leave it out", at_key=True)


def _check_together(tunnel: Tunnel, place: Place) -> None:
    """What is not had together with EAP."""
    if tunnel.ppk:
        message = "'ppk' and 'eap' exclude each other"
        place.error("XF1004", ("ppk",), message, "keep one of them", at_key=True)
    if tunnel.resumption:
        message = "'resumption' would let a user in who is not asked again"
        place.error("XF1004", ("resumption",), message, "leave it out", at_key=True)


def parse_users(data: bytes) -> tuple[tuple[bytes, str], ...]:
    """A list of users: `NAME: PASSWORD` on each line, but empty ones and those that begin with `#`.

    Blanks around either belong to none; a password may have colons. Raises `ValueError` with the
    number of the line that is wrong, and nothing else of it.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        broken = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {broken} is not UTF-8") from None
    found: dict[bytes, str] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, password = _parse_user(stripped, number)
        if name in found:
            raise ValueError(f"line {number} has a user who is there already")
        found[name] = password
    if not found:
        raise ValueError("it has no users")
    return tuple(found.items())


def _parse_user(line: str, number: int) -> tuple[bytes, str]:
    name, colon, password = line.partition(":")
    octets, password = name.strip().encode(), password.strip()
    if not colon or not octets or not password:
        raise ValueError(f"line {number} is not NAME: PASSWORD")
    if len(octets) > MAX_SHORT_TEXT or not name.isprintable():
        limit = f"text of at most {MAX_SHORT_TEXT} octets"
        raise ValueError(f"the name in line {number} is not {limit}")
    if len(password) > MAX_PASSWORD or not password.isprintable():
        raise ValueError(f"the password in line {number} is not {MAX_PASSWORD} characters at most")
    return octets, password
