"""EAP in IKE_AUTH, the initiator's side: the peer asks us who we are.

Read RFC 7296 section 2.16 and RFC 5998 first. Nothing of EAP is answered before the responder has
proved who it is, unless policy has asked for EAP alone: the password would go to anybody. And what
says success is not the success, but AUTH by the key that both ends have got.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xfrmpy.eap.method import EapFailed
from xfrmpy.eap.peer import EapPeer
from xfrmpy.failures import Failure
from xfrmpy.ike.eap_methods import peer_methods
from xfrmpy.ike.eap_responder import MAX_EAP_ROUNDS
from xfrmpy.ike.errors import AuthenticationFailed
from xfrmpy.ike.exchange import only, optional
from xfrmpy.ike.ppk import keys_with, name_ppk, no_ppk_auth, our_ppk, take_ppk_answer
from xfrmpy.ike.proof import check_identity, eap_proof, verify_eap_proof, verify_proof
from xfrmpy.policy.model import EapCredential, TunnelPolicy
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import (
    AuthPayload,
    EapPayload,
    IdiPayload,
    IdrPayload,
    NotifyPayload,
    OpenPayload,
)

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

EAP_ONLY = NotifyPayload(type=NotifyType.EAP_ONLY_AUTHENTICATION)


class EapDialogue:
    """EAP with the responder of one IKE SA.

    `idr` is who that is, None before it has proved it; `msk` is None until EAP has succeeded, and
    empty if its method makes no key.
    """

    __slots__ = ("_credential", "_peer", "_response", "_rounds", "idr", "msk")

    def __init__(
        self,
        credential: EapCredential,
        *,
        idr: IdrPayload | None = None,
        msk: bytes | None = None,
    ) -> None:
        self.idr = idr
        self.msk = msk
        self._credential = credential
        self._peer: EapPeer | None = None
        self._response = b""
        self._rounds = 0

    @property
    def has_begun(self) -> bool:
        """Whether the responder has been heard."""
        return self._peer is not None or self.msk is not None

    def announcement(self) -> tuple[NotifyPayload, ...]:
        """For the first request."""
        return (EAP_ONLY,) if self._credential.alone else ()

    def request(
        self, sa: IkeSa, tunnel: TunnelPolicy, identity: IdiPayload
    ) -> tuple[OpenPayload, ...]:
        """A further one: what answers the responder, or AUTH at the end."""
        if self.msk is None:
            return (EapPayload(data=self._response),)
        ppk = our_ppk(sa, tunnel)
        proof = eap_proof(sa, identity, self.msk, keys_with(sa, ppk))
        if ppk is None:
            return (proof,)
        spare = () if tunnel.ppk_required else (no_ppk_auth(eap_proof(sa, identity, self.msk)),)
        return (proof, name_ppk(ppk), *spare)

    def take(
        self, sa: IkeSa, tunnel: TunnelPolicy, payloads: tuple[OpenPayload, ...]
    ) -> IdrPayload | None:
        """What the responder answers; who it is, if that was the last of it.

        Raises `AuthenticationFailed`.
        """
        if self.idr is None:
            self.idr = self._verified(sa, tunnel, payloads)
        if not self.has_begun:
            methods = peer_methods(self._credential, sa.core.random, sa.core.wall_clock())
            self._peer = EapPeer(self._credential.identity.encode(), methods)
        elif self.msk is not None:
            take_ppk_answer(sa, tunnel, payloads)
            verify_eap_proof(sa, self.idr, self.msk, payloads)
            return self.idr
        self._answer(only(payloads, EapPayload).data)
        return None

    def _verified(
        self, sa: IkeSa, tunnel: TunnelPolicy, payloads: tuple[OpenPayload, ...]
    ) -> IdrPayload:
        """Who asks must prove who it is: here, or by the method where that is enough."""
        idr = only(payloads, IdrPayload)
        credential = self._credential
        has_auth = optional(payloads, AuthPayload) is not None
        if has_auth:
            verify_proof(sa, tunnel, idr, payloads)
        is_proved = has_auth and not tunnel.remote_null
        if not is_proved and not credential.alone:
            summary = f"{idr.identity} asks for EAP and does not prove who it is"
            raise AuthenticationFailed(Failure(code="XF2051", summary=summary))
        if not is_proved:
            fit = tuple(method for method in credential.methods if method.is_fit_alone)
            self._credential = replace(credential, methods=fit)
        check_identity(tunnel, idr.identity)
        return idr

    def _answer(self, packet: bytes) -> None:
        assert self._peer is not None
        self._rounds += 1
        try:
            if self._rounds > MAX_EAP_ROUNDS:
                raise EapFailed(f"the server asks more than {MAX_EAP_ROUNDS} times")
            response = self._peer.handle(packet)
        except EapFailed as failed:
            raise AuthenticationFailed(self._failure(str(failed))) from failed
        if response is not None:
            self._response = response
            return
        outcome = self._peer.outcome
        assert outcome is not None
        if self._credential.alone and not outcome.msk:
            raise AuthenticationFailed(self._failure("EAP alone has made no key"))
        self.msk = outcome.msk

    def _failure(self, summary: str) -> Failure:
        notes = [note.decode("utf-8", "backslashreplace") for note in self._notes()]
        evidence = (
            ("we are", str(self._credential)),
            *(("they want you to know", ascii(note)) for note in notes),
        )
        return Failure(code="XF2050", summary=summary, evidence=evidence)

    def _notes(self) -> list[bytes]:
        return [] if self._peer is None else self._peer.notes[-1:]
