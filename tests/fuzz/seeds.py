"""The first inputs: valid messages of every exchange, in every situation that they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from functools import cache

import yaml

from tests.fuzz.decoders import Decoder
from tests.fuzz.endpoint import policy_of
from tests.fuzz.peer import (
    CHILD_SPI,
    DESTINATION_HASH,
    NEXT_SPI,
    NONCE,
    OUR_AUTH,
    SOURCE_HASH,
    THEIR_CHILD_SPI,
    key_exchange,
)
from tests.fuzz.script import Op, Script, Situation, Step, encode_script
from xfrmpy.control.protocol import ChildSaStatus, TunnelStatus
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import Proposal, Transform, parse_proposal
from xfrmpy.registry import (
    AuthenticationMethod,
    CertificateEncoding,
    ConfigurationAttributeType,
    ConfigurationType,
    ExchangeType,
    KeyExchangeMethod,
    NotifyType,
    PayloadType,
    ProtocolId,
)
from xfrmpy.wire.message import Message, encode_message, encode_payloads
from xfrmpy.wire.payloads import (
    AuthPayload,
    CertPayload,
    CertreqPayload,
    ConfigurationAttribute,
    ConfigurationPayload,
    DeletePayload,
    EapPayload,
    EncryptedFragmentPayload,
    EncryptedPayload,
    IdiPayload,
    IdrPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    OpenPayload,
    SaPayload,
    TsiPayload,
    TsrPayload,
    UnknownPayload,
    VendorIdPayload,
)

S = Situation
VARIANTS = (0, 1, 2, 4, 8, 15)


def _step(op: Op, argument: int, payloads: Iterable[OpenPayload] = ()) -> Step:
    first, octets = encode_payloads(tuple(payloads))
    return Step(op=op, argument=argument, first=first, octets=octets)


def _notify(kind: NotifyType, data: bytes = b"", **fields: object) -> NotifyPayload:
    return NotifyPayload(type=kind, data=data, **fields)  # type: ignore[arg-type]


@cache
def _ke(method: KeyExchangeMethod = KeyExchangeMethod.CURVE25519) -> KePayload:
    return KePayload(method=method, data=key_exchange(method).public_value)


def _init(variant: int) -> tuple[OpenPayload, ...]:
    return (
        SaPayload(proposals=policy_of(variant).proposals),
        _ke(),
        NoncePayload(data=NONCE),
        _notify(NotifyType.NAT_DETECTION_SOURCE_IP, SOURCE_HASH),
        _notify(NotifyType.NAT_DETECTION_DESTINATION_IP, DESTINATION_HASH),
        _notify(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED),
    )


def _child(variant: int, *, spi: bytes = CHILD_SPI, asks: bool) -> tuple[OpenPayload, ...]:
    """SA and traffic selectors of a Child SA that the policy wants."""
    child = policy_of(variant).children[0]
    (offer,) = child.proposals
    proposal = Proposal(
        protocol=ProtocolId.ESP,
        spi=spi,
        transforms=offer.transforms if asks else _one_of_each(offer),
    )
    ends = (child.remote, child.local) if asks else (child.local, child.remote)
    return (
        SaPayload(proposals=(proposal,)),
        TsiPayload(selectors=ends[0]),
        TsrPayload(selectors=ends[1]),
    )


def _one_of_each(offer: Proposal) -> tuple[Transform, ...]:
    chosen = {t.type: t for t in reversed(offer.transforms)}
    return tuple(t for t in offer.transforms if chosen[t.type] is t)


def _auth(variant: int, *, asks: bool) -> tuple[OpenPayload, ...]:
    sun, moon = Identity.parse("sun"), Identity.parse("moon")
    auth = AuthPayload(method=AuthenticationMethod.SHARED_KEY, data=OUR_AUTH)
    child = _child(variant, asks=asks)
    if not asks:
        return (IdrPayload(identity=sun), auth, *child)
    return (
        IdiPayload(identity=sun),
        _notify(NotifyType.INITIAL_CONTACT),
        IdrPayload(identity=moon),
        auth,
        *child,
    )


@cache
def opening(situation: Situation, variant: int) -> tuple[Step, ...]:
    """What brings a new endpoint into a situation."""
    if situation.peer_begins:
        asked = (
            _step(Op.REQUEST, ExchangeType.IKE_SA_INIT, _init(variant)),
            _step(Op.REQUEST, ExchangeType.IKE_AUTH, _auth(variant, asks=True)),
        )
        return asked[: situation - S.RESPONDER_NEW]
    answered = (
        _step(Op.COMMAND, 0),
        _step(Op.ANSWER, 0, _init(variant)),
        _step(Op.ANSWER, 0, _auth(variant, asks=False)),
    )
    return answered[: situation - S.INITIATOR_NEW + 1]


def _requests(variant: int) -> dict[str, tuple[Step, ...]]:
    """What an authentic peer may ask for."""
    return {
        name: (_step(Op.REQUEST, exchange, payloads),)
        for name, exchange, payloads in (
            ("liveness", ExchangeType.INFORMATIONAL, ()),
            (
                "delete-child",
                ExchangeType.INFORMATIONAL,
                (DeletePayload(protocol=ProtocolId.ESP, spis=(CHILD_SPI,)),),
            ),
            (
                "delete-ike",
                ExchangeType.INFORMATIONAL,
                (DeletePayload(protocol=ProtocolId.IKE),),
            ),
            (
                "notifications",
                ExchangeType.INFORMATIONAL,
                (
                    _notify(NotifyType.INITIAL_CONTACT),
                    _notify(NotifyType.INVALID_SPI, bytes(4)),
                    _notify(NotifyType.UPDATE_SA_ADDRESSES),
                    _notify(NotifyType.AUTH_LIFETIME, b"\0\0\x0e\x10"),
                    UnknownPayload(type=PayloadType(200), critical=False, data=b"what?"),
                ),
            ),
            (
                "configuration",
                ExchangeType.INFORMATIONAL,
                (_configuration(),),
            ),
            ("new-child", ExchangeType.CREATE_CHILD_SA, _create_child(variant)),
            ("rekey-child", ExchangeType.CREATE_CHILD_SA, _rekey_child(variant)),
            ("rekey-ike", ExchangeType.CREATE_CHILD_SA, _rekey_ike(variant)),
        )
    }


def _configuration() -> ConfigurationPayload:
    kinds = (ConfigurationAttributeType.INTERNAL_IP4_ADDRESS, ConfigurationAttributeType(25))
    return ConfigurationPayload(
        kind=ConfigurationType.CFG_REQUEST,
        attributes=tuple(ConfigurationAttribute(type=kind, data=b"") for kind in kinds),
    )


def _create_child(variant: int, *, spi: bytes = b"\x0c\xaf\xfe\x02") -> tuple[OpenPayload, ...]:
    sa, *selectors = _child(variant, spi=spi, asks=True)
    return (sa, NoncePayload(data=NONCE), *selectors)


def _rekey_child(variant: int) -> tuple[OpenPayload, ...]:
    """With a key exchange of its own."""
    notify = _notify(NotifyType.REKEY_SA, protocol=ProtocolId.ESP, spi=CHILD_SPI)
    text = "aes128-sha256-x25519-noesn" if variant & 1 else "aes128gcm16-x25519"
    proposal = parse_proposal(text, ProtocolId.ESP)
    sa = SaPayload(
        proposals=(
            Proposal(
                protocol=ProtocolId.ESP, spi=b"\x0c\xaf\xfe\x03", transforms=proposal.transforms
            ),
        )
    )
    _, nonce, *selectors = _create_child(variant)
    return (notify, sa, nonce, _ke(), *selectors)


def _rekey_ike(variant: int) -> tuple[OpenPayload, ...]:
    (offer,) = policy_of(variant).proposals
    proposal = Proposal(protocol=ProtocolId.IKE, spi=NEXT_SPI, transforms=offer.transforms)
    return (SaPayload(proposals=(proposal,)), NoncePayload(data=NONCE), _ke())


def _inside_rekeyed(variant: int) -> tuple[Step, ...]:
    """The IKE SA is rekeyed, the old one deleted, and the new one used."""
    requests = _requests(variant)
    return (
        *requests["rekey-ike"],
        *requests["delete-ike"],
        Step(op=Op.SWITCH, argument=1),
        *requests["liveness"],
        *requests["rekey-child"],
        *requests["delete-child"],
    )


def endpoint_seeds() -> dict[str, bytes]:
    """Scripts by name."""
    scripts: dict[str, Script] = {}
    for variant in VARIANTS:
        for situation in S:
            following = opening(_established(situation), variant)[
                len(opening(situation, variant)) :
            ]
            name = f"{situation.name.lower()}-{variant}"
            scripts[f"{name}-goes-on"] = Script(
                situation=situation, variant=variant, steps=following
            )
    for number, situation in enumerate((S.RESPONDER_ESTABLISHED, S.INITIATOR_ESTABLISHED)):
        for variant in VARIANTS[number::2]:
            for name, steps in (_requests(variant) | _stories(variant)).items():
                scripts[f"{situation.name.lower()}-{variant}-{name}"] = Script(
                    situation=situation, variant=variant, steps=steps
                )
    scripts |= _refusals()
    everything = _step(Op.REQUEST, ExchangeType.INFORMATIONAL, _every_payload())
    scripts["every-payload"] = Script(situation=S.RESPONDER_ESTABLISHED, steps=(everything,))
    return {name: encode_script(script) for name, script in scripts.items()}


def _established(situation: Situation) -> Situation:
    return S.RESPONDER_ESTABLISHED if situation.peer_begins else S.INITIATOR_ESTABLISHED


def _stories(variant: int) -> dict[str, tuple[Step, ...]]:
    """Several steps on an IKE SA that is established."""
    requests = _requests(variant)
    answer = _step(Op.ANSWER, 0)
    first, octets = encode_payloads((_notify(NotifyType.INITIAL_CONTACT), _configuration()))
    return {
        "dpd": (Step(op=Op.WAIT, argument=70), answer, Step(op=Op.WAIT, argument=70)),
        "farewell": (Step(op=Op.COMMAND, argument=1), answer, Step(op=Op.AGAIN)),
        "expired": (Step(op=Op.COMMAND, argument=2), answer),
        "crossing": (Step(op=Op.COMMAND, argument=1), *requests["delete-ike"], answer),
        "again": (*requests["liveness"], Step(op=Op.AGAIN), Step(op=Op.AGAIN, argument=200)),
        "skipped": (Step(op=Op.SKIP, argument=2), *requests["liveness"]),
        "refused": (Step(op=Op.REFUSE, argument=5), *requests["new-child"]),
        "second": (Step(op=Op.COMMAND, argument=0), *requests["liveness"]),
        "their-spi": (
            _step(
                Op.REQUEST,
                ExchangeType.INFORMATIONAL,
                (DeletePayload(protocol=ProtocolId.ESP, spis=(THEIR_CHILD_SPI,)),),
            ),
        ),
        "fragments": (
            Step(op=Op.FRAGMENT, argument=0x12, first=first, octets=octets[:5]),
            Step(op=Op.FRAGMENT, argument=0x22, octets=octets[5:]),
        ),
        "rekeyed": _inside_rekeyed(variant),
    }


def _refusals() -> dict[str, Script]:
    """IKE_SA_INIT and IKE_AUTH that one of the two does not take."""
    other_group = (
        SaPayload(proposals=policy_of(0).proposals),
        _ke(KeyExchangeMethod.ECP_256),
        NoncePayload(data=NONCE),
    )
    answers = {
        "cookie": (_notify(NotifyType.COOKIE, b"a cookie"),),
        "invalid-ke": (_notify(NotifyType.INVALID_KE_PAYLOAD, b"\0\x1f"),),
        "no-proposal": (_notify(NotifyType.NO_PROPOSAL_CHOSEN),),
        "other-group": other_group,
    }
    scripts = {
        f"init-answered-{name}": Script(
            situation=S.INITIATOR_NEW,
            steps=(_step(Op.ANSWER, 0, payloads), _step(Op.ANSWER, 0, _init(0))),
        )
        for name, payloads in answers.items()
    }
    for kind in (NotifyType.AUTHENTICATION_FAILED, NotifyType.TS_UNACCEPTABLE):
        scripts[f"auth-answered-{kind.name.lower()}"] = Script(
            situation=S.INITIATOR_HALF_OPEN, steps=(_step(Op.ANSWER, 0, (_notify(kind),)),)
        )
    scripts["init-asked-other-group"] = Script(
        situation=S.RESPONDER_NEW,
        steps=(_step(Op.REQUEST, ExchangeType.IKE_SA_INIT, other_group),),
    )
    return scripts


def decoder_seeds() -> dict[str, bytes]:
    """Every payload, and messages with chains of them."""
    seeds = {
        f"body-{payload.payload_type.name}-{number}": bytes([Decoder.BODY, payload.payload_type])
        + payload.encode_body()
        for number, payload in enumerate(_every_payload())
    }
    for name, payloads in {
        "init": _init(0),
        "auth": _auth(2, asks=True),
        "rekey": _rekey_child(1),
        "every": _every_payload(),
    }.items():
        first, octets = encode_payloads(payloads)
        seeds[f"chain-{name}"] = bytes([Decoder.CHAIN, first]) + octets
        for suffix in (
            (),
            (EncryptedPayload(first_inner=PayloadType(first), sealed=bytes(40)),),
            (
                EncryptedFragmentPayload(
                    first_inner=PayloadType(first), number=1, total=2, sealed=bytes(40)
                ),
            ),
        ):
            message = Message(
                spi_i=b"initiate",
                spi_r=b"responds",
                exchange=ExchangeType.IKE_SA_INIT,
                is_response=False,
                is_initiator=True,
                message_id=0,
                payloads=(*payloads[:3], *suffix),
            )
            kind = Decoder.MESSAGE if not suffix else Decoder.MESSAGE_OF_RIGHT_LENGTH
            tail = "-".join(type(p).__name__ for p in suffix) or "clear"
            seeds[f"message-{name}-{tail}"] = bytes([kind, 0]) + encode_message(message)
    return seeds


def _every_payload() -> tuple[OpenPayload, ...]:
    return (
        *_init(1),
        *_auth(2, asks=True),
        *_requests_payloads(),
        CertPayload(encoding=CertificateEncoding(4), data=b"certificate"),
        CertreqPayload(encoding=CertificateEncoding(4), data=bytes(20)),
        VendorIdPayload(data=b"vendor"),
        EapPayload(data=b"\x01\x01\x00\x05\x01"),
    )


def _requests_payloads() -> tuple[OpenPayload, ...]:
    return (
        DeletePayload(protocol=ProtocolId.ESP, spis=(CHILD_SPI, b"\0\0\1\0")),
        DeletePayload(protocol=ProtocolId.AH, spis=(CHILD_SPI,)),
        DeletePayload(protocol=ProtocolId.IKE),
        _configuration(),
        _notify(NotifyType.REKEY_SA, protocol=ProtocolId.AH, spi=CHILD_SPI),
        UnknownPayload(type=PayloadType(200), critical=True, data=b"what?"),
    )


POLICIES: tuple[object, ...] = (
    {"peer": "192.0.2.1", "psk": "secret:key", "local": "10.1.0.0/16", "remote": "10.2.0.0/16"},
    {
        "defaults": {"psk": "secret:key", "local": "10.1.0.0/16", "dpd": "5s"},
        "tunnels": {
            "a": {"peer": "192.0.2.1", "remote": ["10.2.0.0/16", "10.3.0.1[tcp/443]"]},
            "b": {
                "peer_id": "keyid:b",
                "ike": "compat",
                "children": {"lan": {"local": "::1/128", "remote": "2001:db8::/32"}},
                "esp": {"proposals": "aes256-sha256", "replay_window": 64},
            },
        },
    },
)


def policy_seeds() -> dict[str, bytes]:
    return {f"policy-{n}": yaml.safe_dump(policy).encode() for n, policy in enumerate(POLICIES)}


def control_seeds() -> dict[str, bytes]:
    call = {"method": "org.xfrmpy.Up", "parameters": {"tunnel": "a", "timeout_seconds": 9.5}}
    child = dict.fromkeys((field.name for field in fields(ChildSaStatus)), 0)
    tunnel = dict.fromkeys((field.name for field in fields(TunnelStatus)), "")
    failure = {"code": "XF2001", "summary": "silence", "evidence": [["we", "they"]]}
    return {
        "call": json.dumps(call).encode(),
        "tunnel": json.dumps({**tunnel, "children": [child], "failure": failure}).encode(),
    }
