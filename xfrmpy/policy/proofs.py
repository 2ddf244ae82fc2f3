"""By what the ends of a tunnel prove who they are, once or in several rounds (`auth.then`).

The keys that `auth` has, or `psk`, `id`, `peer_id`, `cert` and `ca` in its place, become the fields
of the model here, or give errors where they disagree. Files are read by `keys.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from xfrmpy.crypto.signatures import EXPERIMENTAL, verifying_key
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.identity import NOBODY, Identity
from xfrmpy.pki.verdicts import Strictness
from xfrmpy.policy.certificates import identity_in
from xfrmpy.policy.eap import acceptance_of, credential_of
from xfrmpy.policy.keys import KeyReader
from xfrmpy.policy.model import (
    Experiment,
    FurtherRound,
    PrivateKey,
    PublicKey,
    RsaSignature,
    Uniqueness,
)
from xfrmpy.policy.profiles import WEAK_PROFILE
from xfrmpy.policy.schema.authentication import (
    Authentication,
    FurtherAuthentication,
    OurAuthentication,
    TheirAuthentication,
)
from xfrmpy.policy.schema.protection import IkeSettings
from xfrmpy.policy.schema.tunnel import Tunnel
from xfrmpy.policy.values import SecretReference

if TYPE_CHECKING:
    from xfrmpy.policy.resolve import Keypath, Place


def resolve_proofs(tunnel: Tunnel, place: Place, reader: KeyReader) -> dict[str, Any]:
    """The fields of a `TunnelPolicy` that say who the ends are, and by what they prove it."""
    _check_null(tunnel, place)
    keys = _keys(tunnel, place, reader)
    local_id, remote_id = _identities(tunnel, place)
    _check_pattern(tunnel, remote_id, place)
    if (certificates := keys["local_certificates"]) is not None:
        path = ("id",) if tunnel.auth is None else ("auth", "local", "id")
        local_id = identity_in(certificates, local_id, place.where(path))
    first = {**keys, "local_id": local_id, "remote_id": remote_id}
    then = () if tunnel.auth is None else tunnel.auth.then or ()
    _check_order(tunnel, then, place)
    rounds = tuple(
        _further(written, first, tunnel, replace(place, further=number), reader)
        for number, written in enumerate(then)
    )
    return {**first, "rounds": rounds}


def _further(
    written: FurtherAuthentication,
    first: dict[str, Any],
    tunnel: Tunnel,
    place: Place,
    reader: KeyReader,
) -> FurtherRound:
    """A round of `then`; who an end is, where it does not say so, is as in the first round."""
    ours, theirs = written.local or OurAuthentication(), written.remote or TheirAuthentication()
    _check_ends(ours, theirs, place)
    for end, given, has_proof in (
        ("local", written.local, ours.key or ours.cert or ours.eap),
        ("remote", written.remote, theirs.key or theirs.ca or theirs.eap),
    ):
        if given is not None and not has_proof:
            message = f"'{end}' has nothing to prove itself by once more"
            hint = "add cert, key or eap" if end == "local" else "add ca, key or eap"
            place.error("XF1005", ("auth", end), message, hint, at_key=True)
    certified = _certified(ours, theirs, tunnel, place, reader)
    certificates, local_id = certified["local_certificates"], ours.id
    if certificates is not None:
        local_id = identity_in(certificates, local_id, place.where(("auth", "local", "id")))
    shown = (first["local_certificates"], first["local_key"])
    return FurtherRound(
        **certified,
        local_id=local_id or first["local_id"],
        local_eap=credential_of(ours, first["remote_id"], tunnel, place, reader),
        remote_id=None if theirs.eap else theirs.id or first["remote_id"],
        remote_key=_public_key(theirs, tunnel, place, reader),
        remote_eap=acceptance_of(
            theirs, shown if shown[0] is not None else None, tunnel, place, reader
        ),
    )


def _check_order(tunnel: Tunnel, then: Sequence[FurtherAuthentication], place: Place) -> None:
    """Who asks by EAP has proved itself, and so EAP is the last of both ends."""
    auth = tunnel.auth or Authentication()
    if not then:
        return
    if tunnel.ppk:
        message = "'then' does not go with 'ppk'"
        place.error("XF1004", ("auth", "then"), message, "leave out one of them", at_key=True)
    local, remote = auth.local or OurAuthentication(), auth.remote or TheirAuthentication()
    rounds = [(local, remote), *((each.local, each.remote) for each in then)]
    for number, (ours, theirs) in enumerate(rounds):
        where = replace(place, further=number - 1) if number else place
        for end, keys in (("local", ours), ("remote", theirs)):
            is_last = number == len(rounds) - 1
            if keys is not None and keys.eap and not is_last:
                message = "'eap' is the last proof of all: who asks by it has proved itself"
                where.error("XF1004", ("auth", end, "eap"), message, "move it", at_key=True)
            if keys is not None and keys.null_auth:
                message = "'null_auth' does not go with 'then': this end proves nothing"
                where.error("XF1004", ("auth", end, "null_auth"), message, at_key=True)
            if number and keys is not None and keys.eap and keys.eap.alone:
                message = "'alone' has no meaning in 'then': the gateway has proved itself"
                where.error("XF1004", ("auth", end, "eap", "alone"), message, at_key=True)
        if number and ours is None and theirs is None:
            message = "a round of 'then' needs 'local' or 'remote', or both"
            where.error("XF1005", ("auth",), message, "local: {eap: ...}")
    for end in ("local", "remote"):
        has_proof = [getattr(each, end) is not None for each in then]
        if has_proof != sorted(has_proof, reverse=True):
            message = f"'{end}' proves itself again behind a round in which it proves nothing"
            place.error("XF1004", ("auth", "then"), message, "move it up", at_key=True)


def _check_null(tunnel: Tunnel, place: Place) -> None:
    """An end that proves nothing has nothing else, and cannot be told from others of its kind."""
    auth = tunnel.auth or Authentication()
    for end, keys in (("local", auth.local), ("remote", auth.remote)):
        if keys is None or not keys.null_auth:
            continue
        for other in sorted(keys.model_fields_set - {"null_auth"}):
            message = f"'{other}' stands beside 'null_auth', by which this end proves nothing"
            place.error("XF1004", ("auth", end, other), message, "keep one", at_key=True)
        if (auth.local and auth.local.eap) or (auth.remote and auth.remote.eap):
            message = "'null_auth' does not go with 'eap': a password is for who proves who it is"
            place.error("XF1004", ("auth", end, "null_auth"), message, "leave it out", at_key=True)
        if tunnel.unique not in (None, Uniqueness.NEVER):
            message = "'unique' has no meaning where an end has 'null_auth': nobody is known"
            place.error("XF1004", ("unique",), message, "leave it out", at_key=True)


def _keys(tunnel: Tunnel, place: Place, reader: KeyReader) -> dict[str, Any]:
    """By what each end proves itself."""
    path: Keypath = ("psk",)
    psk = tunnel.psk
    ours = OurAuthentication.model_construct(cert=tunnel.cert)
    theirs = TheirAuthentication.model_construct(ca=tunnel.ca)
    if tunnel.auth is not None:
        check_alone("auth", ("psk", "id", "peer_id", "cert", "ca"), tunnel, place)
        path, psk = ("auth", "psk"), tunnel.auth.psk
        ours = tunnel.auth.local or OurAuthentication()
        theirs = tunnel.auth.remote or TheirAuthentication()
    _check_keys(ours, theirs, psk is not None, path, place)
    ike = tunnel.ike or IkeSettings()
    certified = _certified(ours, theirs, tunnel, place, reader)
    gateway = theirs.id or (_identity_at(tunnel.peer[0]) if tunnel.peer else None)
    shown = (certified["local_certificates"], certified["local_key"]) if ours.cert else None
    return {
        "shared_key": psk and reader.shared_key(psk, place.mark(path), place.findings),
        **certified,
        "remote_key": _public_key(theirs, tunnel, place, reader),
        "local_eap": credential_of(ours, gateway, tunnel, place, reader),
        "remote_eap": acceptance_of(theirs, shown, tunnel, place, reader),
        "weak_signatures": ike.profile == WEAK_PROFILE,
        "experiment": ike.experimental,
        "local_null": bool(ours.null_auth),
        "remote_null": bool(theirs.null_auth),
    }


def _public_key(
    theirs: TheirAuthentication, tunnel: Tunnel, place: Place, reader: KeyReader
) -> PublicKey | None:
    if theirs.key is None:
        return None
    key = reader.public_key(theirs.key, place.mark(("auth", "remote", "key")), place.findings)
    _check_experimental("remote", b"" if key is None else key.spki, tunnel, place)
    return key


def _check_experimental(end: str, spki: bytes, tunnel: Tunnel, place: Place) -> None:
    """A key that signs by a draft needs to be wanted by name."""
    ike = tunnel.ike or IkeSettings()
    kind = verifying_key(spki).kind if spki else None
    if kind in EXPERIMENTAL and ike.experimental is not Experiment.ML_DSA:
        message = f"a key of {kind} signs by a draft, which may yet change"
        place.error("XF1004", ("auth", end, "key"), message, "ike: {experimental: ml-dsa}")


def _certified(
    ours: OurAuthentication,
    theirs: TheirAuthentication,
    tunnel: Tunnel,
    place: Place,
    reader: KeyReader,
) -> dict[str, Any]:
    """Our key with our certificates, and whom we trust to certify the peer."""
    files = reader.certificates
    key = _private_key(ours, place, reader)
    _check_experimental("local", b"" if key is None else key.public, tunnel, place)
    certs = authorities = None
    if files is not None and ours.cert is not None:
        path = ("cert",) if place.has("cert") else ("auth", "local", "cert")
        certs = files.ours(ours.cert, key, place.where(path))
    elif ours.key is not None and key is not None:
        where = place.where(("auth", "local", "key"))
        certs = reader.certificates_with(ours.key, ours.passphrase, key, where)
    if files is not None and theirs.ca is not None:
        path = ("ca",) if place.has("ca") else ("auth", "remote", "ca")
        authorities = files.authorities(theirs.ca, place.where(path))
    return {
        "local_key": key,
        "local_certificates": certs,
        "remote_authorities": authorities,
        "revocation": theirs.revocation or Strictness.SOFT,
    }


def _private_key(ours: OurAuthentication, place: Place, reader: KeyReader) -> PrivateKey | None:
    """Of a certificate, the one beside it unless the policy names another."""
    path: Keypath = ("auth", "local", "key")
    reference, files = ours.key, reader.certificates
    if reference is None and ours.cert is not None and files is not None:
        path = ("cert",) if place.has("cert") else ("auth", "local", "cert")
        if ours.cert.startswith("file:"):
            message = f"the key of '{ours.cert}' is not named"
            place.error("XF1005", path, message, "auth: {local: {cert: ..., key: file:/PATH}}")
            return None
        reference = SecretReference("file", files.key_path(ours.cert))
    if reference is None:
        return None
    mark = place.mark(path)
    key = reader.private_key(reference, ours.passphrase, mark, place.findings)
    return None if key is None else replace(key, rsa=ours.rsa or RsaSignature.PSS)


_MISSING = {
    "local": "add auth.local.key, or auth.psk, or auth.local.cert",
    "remote": "add auth.remote.key, or auth.psk, or auth.remote.ca",
}


def _check_keys(
    ours: OurAuthentication,
    theirs: TheirAuthentication,
    has_psk: bool,
    path: Keypath,
    place: Place,
) -> None:
    """Each end has one way to prove itself, and nothing is there in vain."""
    ends = (
        ("local", ours.key or ours.cert or ours.eap or ours.null_auth),
        ("remote", theirs.key or theirs.ca or theirs.eap or theirs.null_auth),
    )
    with_key = [end for end, key in ends if key]
    _check_ends(ours, theirs, place)
    if has_psk and len(with_key) == 2:
        message = "'psk' proves nothing, for both ends have another way"
        place.error("XF1004", path, message, "leave it out", at_key=True)
    if not has_psk and len(with_key) < 2:
        message, hint = "'psk' is missing", "psk: secret:NAME"
        if with_key:
            other = "remote" if with_key == ["local"] else "local"
            message += f": of the two ends '{with_key[0]}' alone has another way to prove itself"
            hint = _MISSING[other]
        place.error("XF1005", path, message, hint, at_key=True)


def _check_ends(ours: OurAuthentication, theirs: TheirAuthentication, place: Place) -> None:
    """No end has two ways to prove itself in one round, or keys in vain."""
    if theirs.key is not None and theirs.ca is not None:
        message = "'ca' and 'key' exclude each other: the peer has one way to prove itself"
        place.error("XF1004", ("auth", "remote", "ca"), message, "keep one", at_key=True)
    if theirs.revocation is not None and theirs.ca is None:
        message = "'revocation' has no meaning without a 'ca'"
        place.error("XF1004", ("auth", "remote", "revocation"), message, at_key=True)
    _check_eap(ours, theirs, place)
    for name in ("passphrase", "rsa"):
        if not (ours.key or ours.cert) and getattr(ours, name) is not None:
            message = f"'{name}' has no meaning without a 'key'"
            place.error("XF1004", ("auth", "local", name), message, at_key=True)


def _check_pattern(tunnel: Tunnel, peer: Identity | None, place: Place) -> None:
    """Whoever has a shared key could call himself anything."""
    theirs = None if tunnel.auth is None else tunnel.auth.remote
    if peer is None or not peer.is_pattern or tunnel.ca or (theirs and theirs.ca):
        return
    path: Keypath = ("peer_id",) if theirs is None else ("auth", "remote", "id")
    message = f"{peer} could be anybody's: a peer proves by a certificate only which one it is"
    place.error("XF1004", path, message, "add 'ca', or write one identity")


def _check_eap(ours: OurAuthentication, theirs: TheirAuthentication, place: Place) -> None:
    """One end asks and the other answers, and neither has another way besides."""
    if ours.eap is not None and theirs.eap is not None:
        message = "of the two ends one alone proves itself by 'eap': who asks, proves itself first"
        place.error("XF1004", ("auth", "local", "eap"), message, at_key=True)
    for end, eap, other in (
        ("local", ours.eap, ours.key or ours.cert),
        ("remote", theirs.eap, theirs.key or theirs.ca),
    ):
        if eap is not None and other is not None:
            message = "'eap' and a key exclude each other: an end has one way to prove itself"
            place.error("XF1004", ("auth", end, "eap"), message, "keep one", at_key=True)


def _identities(tunnel: Tunnel, place: Place) -> tuple[Identity | None, Identity | None]:
    ours, theirs = tunnel.id, tunnel.peer_id
    if tunnel.auth is not None:
        local = tunnel.auth.local or OurAuthentication()
        remote = tunnel.auth.remote or TheirAuthentication()
        ours = NOBODY if local.null_auth else local.id
        theirs = NOBODY if remote.null_auth else remote.id
        if remote.eap is not None:
            return ours, None
    if theirs is not None:
        return ours, theirs
    match tunnel.peer or []:
        case [peer]:
            return ours, _identity_at(peer)
        case []:
            message = "'peer_id' is missing: without a 'peer', nothing else says who may call"
        case _:
            message = "'peer_id' is missing: with several peers, it must say who they all are"
    place.error("XF1005", ("peer",), message, at_key=True)
    return ours, None


def _identity_at(peer: str) -> Identity:
    """Who is expected where a policy says no more than the peer's address or name."""
    address = address_at(peer)
    name = peer.removesuffix(".")
    return Identity.parse(name) if address is None else Identity.of_address(address)


def address_at(peer: str) -> IpAddress | None:
    try:
        return ip_address(peer)
    except ValueError:
        return None


def check_alone(long: str, short: tuple[str, ...], tunnel: Tunnel, place: Place) -> None:
    beside = [f"'{key}'" for key in short if getattr(tunnel, key) is not None]
    if beside:
        message = f"'{long}' stands beside {' and '.join(beside)}, to be written inside it"
        place.error("XF1004", (long,), message, at_key=True)
