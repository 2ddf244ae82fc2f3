"""`auth` and `ppk`: who proves what, by what, and as whom."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, PlainValidator, WithJsonSchema

from xfrmpy.pki.verdicts import Strictness
from xfrmpy.policy import values
from xfrmpy.policy.model import EapInside, EapMethod, RsaSignature
from xfrmpy.policy.schema.keys import Keys, NotYet, described
from xfrmpy.policy.schema.types import (
    ONE_OR_MORE,
    TEXT,
    CertificateName,
    Name,
    PeerIdentity,
    Secret,
    ShortText,
    ShortTexts,
    SomeIdentity,
    Switch,
    choice,
)

KeyPlace = Annotated[values.SecretReference, PlainValidator(values.parse_key_reference), TEXT]
PublicKeyText = Annotated[str, PlainValidator(values.parse_public_key), TEXT]
EapMethods = Annotated[
    list[Annotated[EapMethod, choice(EapMethod)]],
    ONE_OR_MORE,
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": [*EapMethod]},
                {"type": "array", "items": {"enum": [*EapMethod]}, "minItems": 1},
            ]
        }
    ),
]


class OurEap(Keys):
    """As whom and by what we prove who we are by EAP."""

    method: EapMethods | None = described(
        "`mschapv2`, `md5`, `gtc`, `tls`, `ttls` or `peap`, or a list with the best first. "
        "Default: `mschapv2`.",
        "mschapv2",
    )
    identity: ShortText | None = described(
        "The name of the user that we are. Default: `id`.", "carol"
    )
    password: Secret | None = described("The password by reference, as `psk`.", "secret:carol")
    cert: CertificateName | None = described(
        "With `tls`: our certificate, `certs/NAME.pem`, whose key is `keys/NAME.key`.", "carol"
    )
    ca: CertificateName | None = described(
        "With `tls`, `ttls` and `peap`: who vouches for the server within EAP, as `ca` of the "
        "tunnel.",
        "corp-root",
    )
    server: SomeIdentity | None = described(
        "With these: the name that the server within EAP must have in its certificate. Default: "
        "who the gateway is.",
        "radius.example.org",
    )
    inside: Annotated[EapInside, choice(EapInside)] | None = described(
        "What is said within `ttls` (`eap-mschapv2`, `eap-md5`, `eap-gtc`, `mschapv2`, `pap`) and "
        "`peap` (`eap-mschapv2`, `eap-gtc`). Default: `eap-mschapv2`.",
        "eap-mschapv2",
    )
    alone: Switch | None = described(
        "Whether the gateway need not prove itself by anything but EAP (RFC 5998), which takes "
        "methods that do so. Default: no.",
        "no",
    )


class TheirEap(Keys):
    """Who may call and prove who it is by EAP."""

    users: Secret | None = described(
        "The list of users by reference, as `psk`: a file with `NAME: PASSWORD` on each line.",
        "file:/etc/xfrmpy/users",
    )
    methods: EapMethods | None = described(
        "By which methods, the best first: `mschapv2`, `md5`, `gtc`, `tls`, `ttls`, `peap`. "
        "Default: `mschapv2`.",
        ["peap", "mschapv2"],
    )
    cert: CertificateName | None = described(
        "With `tls`, `ttls` and `peap`: what we show within EAP, `certs/NAME.pem` with "
        "`keys/NAME.key`. Default: the certificate that we prove ourselves by.",
        "gw1",
    )
    ca: CertificateName | None = described(
        "With `tls`: who vouches for the certificates of users, each of which has the user's name.",
        "corp-root",
    )
    identities: ShortTexts | None = described(
        "Which of the users may use this tunnel: names, or `*` and what they end in. Default: all.",
        ["carol", "*@example.org"],
    )
    radius: Name | None = described(
        "The group of RADIUS servers, under `radius`, that knows the users, in place of `users`.",
        "corp",
    )
    groups: ShortTexts | None = described(
        "Which users of `radius` may use this tunnel: those to whom the servers give one of these "
        "classes. Default: all.",
        "staff",
    )
    alone: Switch | None = described(
        "Whether we prove ourselves by nothing but EAP to those who ask for that (RFC 5998). "
        "Default: no.",
        "no",
    )


class OurAuthentication(Keys):
    """How we prove who we are."""

    id: SomeIdentity | None = described("The same as `id` of the tunnel.", "gw1.example.net")
    key: KeyPlace | None = described(
        "The private key that we sign with, in place of `psk`: PEM or DER (PKCS #8), of RSA (2048 "
        "bits at least), ECDSA (P-256, P-384, P-521), Ed25519, Ed448 or, if `ike.experimental` has "
        "it, ML-DSA. A PKCS #12 file has our certificates, too, unless `cert` names others. "
        "`pkcs11:...` is a key on a token (RFC 7512, docs/tokens.md), and the certificates there.",
        "secret:gw1.key",
    )
    passphrase: Secret | None = described(
        "What the key is encrypted with, or the PIN of its token.", "secret:gw1.passphrase"
    )
    rsa: Annotated[RsaSignature, choice(RsaSignature)] | None = described(
        "How an RSA key signs: `pss`, or `pkcs1` for peers that know nothing else. Default: `pss`.",
        "pkcs1",
    )
    cert: CertificateName | None = described("The same as `cert` of the tunnel.", "gw1")
    null_auth: Switch | None = described(
        "`yes`: we prove nothing and say no name (RFC 7619). Default: no.", "yes"
    )
    eap: OurEap | None = described(
        "As whom we call a gateway that asks by EAP, in place of a key of ours.",
        {"identity": "carol", "password": "secret:carol"},
    )


class TheirAuthentication(Keys):
    """How the peer proves who it is."""

    id: PeerIdentity | None = described("The same as `peer_id` of the tunnel.", "gw2.example.org")
    key: PublicKeyText | None = described(
        "The public key that the peer signs with, in place of `psk`: base64 as `xfrmpy key show` "
        "shows it, or `file:/PATH` of one in PEM.",
        "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    )
    ca: CertificateName | None = described("The same as `ca` of the tunnel.", "corp-root")
    revocation: Annotated[Strictness, choice(Strictness)] | None = described(
        "Whether the peer's certificate, and those above it, may be revoked. It is asked of the "
        "list beside `ca`, of the peer's OCSP answers, and of the OCSP responders and the lists "
        "that the certificates name (over http). `strict` refuses what is not known to be good, "
        "`soft` what is known to be revoked, and `off` asks nobody. Default: `soft`.",
        "strict",
    )
    eap: TheirEap | None = described(
        "Who may call and prove by EAP who it is, in place of a key of the peer's: of all these "
        "users each has IKE SAs of its own. There is no `peer` then.",
        {"users": "file:/etc/xfrmpy/users"},
    )
    cert: NotYet = None
    null_auth: Switch | None = described(
        "`yes`: whoever calls from where `peer` says is let in, and proves nothing (RFC 7619): "
        "the packets are safe from those who only listen. Default: no.",
        "yes",
    )


class FurtherAuthentication(Keys):
    """Who proves itself once more, and how."""

    local: OurAuthentication | None = described(
        "Our end, if it does so: a `cert`, a `key`, or, last of all, `eap`.",
        {"eap": {"identity": "carol", "password": "secret:carol"}},
    )
    remote: TheirAuthentication | None = described(
        "The peer's end, if it does so: by a `ca`, a `key`, or, last of all, `eap`.",
        {"ca": "corp-root"},
    )


class Authentication(Keys):
    """Who proves what, and how."""

    psk: Secret | None = described(
        "The same as `psk` of the tunnel; of an end that has a `key` it proves nothing.",
        "secret:office",
    )
    local: OurAuthentication | None = described("Our end.", {"id": "gw1.example.net"})
    remote: TheirAuthentication | None = described("The peer's end.", {"id": "gw2.example.org"})
    then: (
        Annotated[
            list[FurtherAuthentication],
            BeforeValidator(
                values.as_list_of_maps,
                json_schema_input_type=FurtherAuthentication | list[FurtherAuthentication],
            ),
        ]
        | None
    ) = described(
        "By what the ends prove themselves once more, behind that (RFC 4739): a certificate of the "
        "host and then a user's password, or two certificates. A map, or a list of one for each "
        "further round.",
        {"local": {"eap": {"identity": "carol", "password": "secret:carol"}}},
    )


class PpkSettings(Keys):
    """A post-quantum preshared key."""

    secret: Secret | None = described("The key by reference, as `psk`.", "secret:office-ppk")
    id: Annotated[str, PlainValidator(values.parse_ppk_id), TEXT] | None = described(
        "The name by which both ends know it, or `0x` and hex. Default: what `secret:` names.",
        "office-2026",
    )
    required: Switch | None = described(
        "Whether a peer without it is refused. Default: no: the tunnel comes up without.", "yes"
    )
