"""A tunnel of ours as its other end is to see it: what `rendering.py` writes."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from xfrmpy.ipsec.proposals import FURTHER_KEY_EXCHANGES, Proposal
from xfrmpy.ipsec.sad import Mode
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.pki.certificate import decode_certificate_untrusted
from xfrmpy.policy.foreign.rendering import ForeignChild, ForeignEnd, ForeignFile, Unrenderable
from xfrmpy.policy.model import ChildPolicy, StartMode, TunnelPolicy
from xfrmpy.registry import ProtocolId, TransformType


def other_end(tunnel: TunnelPolicy, address: str = "") -> ForeignEnd:
    """The other gateway's view. `address` is ours, by default the one that the policy names.

    Proposals with further key exchanges (ML-KEM, RFC 9370) stay at home where there are others:
    strongSwan before version 6 and libreswan refuse a file that has them. Raises `Unrenderable`.
    """
    if tunnel.interface is not None:
        raise Unrenderable("interface has nothing that stands for it there")
    if tunnel.local_null or tunnel.remote_null:
        raise Unrenderable("null_auth is not carried over: write the other end by hand")
    if tunnel.rounds:
        raise Unrenderable("auth.then is not carried over: write the other end by hand")
    if tunnel.local_eap is not None or tunnel.remote_eap is not None:
        raise Unrenderable("EAP is not carried over: write the other end by hand")
    if tunnel.ppk_required:
        raise Unrenderable("ppk is not carried over, and required: write the other end by hand")
    ours = address or (str(tunnel.local_address) if tunnel.local_address is not None else "")
    if not ours:
        raise Unrenderable("no address of this end is known: give --address, or `local_address`")
    theirs = tunnel.peers[0] if tunnel.peers else "%any"
    if tunnel.remote_id is None and not tunnel.peers:
        raise Unrenderable("who the other end is, is not known: it needs `peer` or `peer_id`")
    proofs = _our_proof(tunnel), _their_proof(tunnel)
    secret = b"" if tunnel.shared_key is None else tunnel.shared_key.octets
    return ForeignEnd(
        name=tunnel.name,
        our_address=theirs,
        their_address=ours,
        our_id=str(tunnel.remote_id or theirs),
        their_id=str(tunnel.local_id or ours),
        mode=tunnel.children[0].mode.value,
        calls=tunnel.start is StartMode.LISTEN or not tunnel.peers,
        in_udp=tunnel.forces_encapsulation,
        ike=tuple(map(str, _without_further(tunnel.proposals))),
        children=tuple(_child(child) for child in tunnel.children),
        has_ah=tunnel.children[0].protocol == ProtocolId.AH,
        compresses=tunnel.children[0].compresses,
        secret=secret,
        our_proof=proofs[1][0],
        their_proof=proofs[0][0],
        files=tuple(file for _, files in proofs for file in files),
    )


_Proof = tuple[tuple[str, ...], tuple[ForeignFile, ...]]
_SHARED: _Proof = ("auth = psk",), ()


def _our_proof(tunnel: TunnelPolicy) -> _Proof:
    """How the other end knows us."""
    if tunnel.local_key is None:
        return _SHARED
    file = f"{tunnel.name}-peer.pem"
    if tunnel.local_certificates is None:
        what = f"the public key of {tunnel.local_id}"
        return _known("pubkeys", f"pubkey/{file}", what, "PUBLIC KEY", tunnel.local_key.public)
    leaf, *above = map(decode_certificate_untrusted, tunnel.local_certificates.ders)
    top = next((c for c in reversed(above) if c.is_authority), None)
    if top is not None:
        what = f"the authority that vouches for {tunnel.local_id}"
        return _known("cacerts", f"x509ca/{file}", what, "CERTIFICATE", top.der)
    what = f"the certificate of {leaf.issuer_name}, which vouches for {tunnel.local_id}"
    return _signed("cacerts", file), (ForeignFile(path=f"x509ca/{file}", what=what),)


def _their_proof(tunnel: TunnelPolicy) -> _Proof:
    """How the other end proves who it is; its private key is nowhere but there."""
    file = f"{tunnel.name}.pem"
    behind = "; its private key goes to private/"
    if tunnel.remote_key is not None:
        what = f"the public key of {tunnel.remote_id}{behind}"
        return _known("pubkeys", f"pubkey/{file}", what, "PUBLIC KEY", tunnel.remote_key.spki)
    if tunnel.remote_authorities is None:
        return _SHARED
    vouching = [decode_certificate_untrusted(der) for der in tunnel.remote_authorities.ders]
    names = " or ".join(authority.name for authority in vouching[:4])
    what = f"the certificate of {tunnel.remote_id}, from {names}{behind}"
    return _signed("certs", file), (ForeignFile(path=f"x509/{file}", what=what),)


def _known(key: str, path: str, what: str, label: str, der: bytes) -> _Proof:
    text = pem(label, der)
    return _signed(key, path.rpartition("/")[2]), (ForeignFile(path=path, what=what, text=text),)


def _signed(key: str, file: str) -> tuple[str, ...]:
    return "auth = pubkey", f"{key} = {file}"


def pem(label: str, der: bytes) -> str:
    """RFC 7468 section 2."""
    lines = (base64.b64encode(der[at : at + 48]).decode() for at in range(0, len(der), 48))
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----\n"))


def _child(child: ChildPolicy) -> ForeignChild:
    is_limited = child.mode is not Mode.TRANSPORT or not (
        _is_everything(child.local) and _is_everything(child.remote)
    )
    return ForeignChild(
        name=child.name,
        local=tuple(map(str, child.remote)) if is_limited else (),
        remote=tuple(map(str, child.local)) if is_limited else (),
        esp=tuple(map(str, _with_forward_secrecy(child.proposals))),
    )


def _with_forward_secrecy(proposals: tuple[Proposal, ...]) -> tuple[Proposal, ...]:
    """Those with a key exchange of their own, if some have one: libreswan takes all or none."""
    secrecy = tuple(p for p in proposals if p.of_type(TransformType.KE))
    return _without_further(secrecy or proposals)


def _is_everything(selectors: Iterable[TrafficSelector]) -> bool:
    """What a policy in transport mode means that limits nothing."""
    return {str(each) for each in selectors} == {"0.0.0.0/0", "::/0"}


def _without_further(proposals: tuple[Proposal, ...]) -> tuple[Proposal, ...]:
    plain = tuple(
        p for p in proposals if not any(p.of_type(kind) for kind in FURTHER_KEY_EXCHANGES)
    )
    return plain or proposals
