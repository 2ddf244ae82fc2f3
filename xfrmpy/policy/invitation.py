"""How two hosts come to know each other's key: an invitation, its reply, and the policies of both.

The invitation says who one end is and holds a secret that serves once: who carries it to the other
host must be trusted with it. The reply says who the other end is, and that it has the invitation,
by an HMAC: nobody else can reply. Neither holds a private key. What both say is data, which the
policy language then takes or refuses like what an operator has written.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from dataclasses import asdict, dataclass, field

import yaml

from xfrmpy.crypto.signatures import VerifyingKey
from xfrmpy.policy.values import NAME

SECRET_SIZE = 32
MAX_TOKEN = 8192
_INVITE, _REPLY = "xfrmpy-invite-1.", "xfrmpy-reply-1."


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one end says of itself: `key` is its SubjectPublicKeyInfo in base64; it may be that
    nobody can call it, and its `address` is empty then."""

    tunnel: str
    id: str
    address: str
    key: str
    local: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """An offer, and what the reply must know."""

    offer: Offer
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The other end's offer, with the proof that it was invited."""

    offer: Offer
    proof: bytes


def identity_of(spki: bytes) -> str:
    """A name that no other host has, as the policy writes it."""
    return f"keyid:{hashlib.sha256(spki).hexdigest()[:32]}"


def write_invitation(invitation: Invitation) -> str:
    return _write(_INVITE, invitation.offer, invitation.secret)


def write_reply(offer: Offer, invitation: Invitation) -> str:
    return _write(_REPLY, offer, _proof(offer, invitation))


def read_token(token: str) -> Invitation | Reply:
    """What a token says. Raises `ValueError` for anything else."""
    for prefix in (_INVITE, _REPLY):
        if token.startswith(prefix) and len(token) <= MAX_TOKEN:
            offer, octets = _read(token.removeprefix(prefix))
            if prefix == _INVITE:
                return Invitation(offer=offer, secret=octets)
            return Reply(offer=offer, proof=octets)
    raise ValueError("this is no token of `xfrmpy invite` or `xfrmpy join`")


def check_reply(reply: Reply, invitation: Invitation) -> None:
    """Raises `ValueError` unless who replies has the invitation."""
    if not hmac.compare_digest(reply.proof, _proof(reply.offer, invitation)):
        raise ValueError("the reply is not to the invitation that this host has given")


def policy_text(ours: Offer, theirs: Offer, *, key: str, begins: bool) -> str:
    """The policy file of our end; `key` is the reference of our private key."""
    policy = {
        **({"peer": theirs.address} if theirs.address else {}),
        "auth": {
            "local": {"id": ours.id, "key": key},
            "remote": {"id": theirs.id, "key": theirs.key},
        },
        "local": list(ours.local),
        "remote": list(theirs.local),
        **({"start": "auto"} if begins and theirs.address else {}),
    }
    return yaml.safe_dump(policy, sort_keys=False, width=200)


def _proof(offer: Offer, invitation: Invitation) -> bytes:
    return hmac.digest(invitation.secret, _plain(offer).encode(), "sha256")


def _plain(offer: Offer) -> str:
    return json.dumps(asdict(offer), sort_keys=True)


def _write(prefix: str, offer: Offer, octets: bytes) -> str:
    plain = json.dumps({**asdict(offer), "octets": octets.hex()}, separators=(",", ":"))
    return prefix + urlsafe_b64encode(plain.encode()).decode().rstrip("=")


def _read(text: str) -> tuple[Offer, bytes]:
    try:
        plain = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        octets = bytes.fromhex(plain.pop("octets"))
        local = plain.pop("local")
        words = [*local, *plain.values()]
        if not all(isinstance(word, str) and word.isprintable() for word in words):
            raise ValueError("what stands in it is not text")
        offer = Offer(local=tuple(local), **plain)
        VerifyingKey.of_spki(b64decode(offer.key, validate=True))
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError("the token is damaged: it must be copied as a whole") from error
    if len(octets) != SECRET_SIZE or not NAME.fullmatch(offer.tunnel) or not local:
        raise ValueError("the token is damaged: it must be copied as a whole")
    return offer, octets
