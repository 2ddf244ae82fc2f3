"""One end of a tunnel as swanctl.conf or ipsec.conf.

Standard library only, and nothing of ours: the Ansible collection, which runs where there is no
xfrmpy, has a copy (`python -m tests.test_ansible_filters` renews it).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field


class Unrenderable(ValueError):
    """The other maker has nothing for it; a sentence for the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignChild:
    """A Child SA: traffic selectors in xfrmpy's words. Empty ones are the ends' own addresses."""

    name: str
    local: tuple[str, ...]
    remote: tuple[str, ...]
    esp: tuple[str, ...]
    """Proposals in xfrmpy's words, with `esn` or `noesn` where that is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignFile:
    """What has to be in the directory of swanctl.conf beside it: its path there, what that is, and
    its text, where the other end knows it."""

    path: str
    what: str
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignEnd:
    """A tunnel as the gateway sees it whose configuration is written: `our` is that gateway's.

    An `address` is one, a name, or `%any`. It `calls` if it begins by itself. A `proof` is how an
    end proves who it is, in lines of swanctl.conf; it needs the `files`, if there are any.
    """

    name: str
    our_address: str
    their_address: str
    our_id: str
    their_id: str
    mode: str
    calls: bool
    in_udp: bool
    ike: tuple[str, ...]
    children: tuple[ForeignChild, ...]
    has_ah: bool = False
    compresses: bool = False
    secret: bytes = field(default=b"", repr=False)
    our_proof: tuple[str, ...] = ("auth = psk",)
    their_proof: tuple[str, ...] = ("auth = psk",)
    files: tuple[ForeignFile, ...] = ()


MODES = ("tunnel", "transport")

LIBRESWAN = {
    **{f"aes{bits}gcm16": f"aes_gcm{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}gcm8": f"aes_gcm_a_{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}gcm12": f"aes_gcm_b_{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}ccm8": f"aes_ccm_a_{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}ccm12": f"aes_ccm_b_{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}ccm16": f"aes_ccm_c_{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}ctr": f"aes_ctr{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}gmac": f"null_auth_aes_gmac_{bits}" for bits in (128, 192, 256)},
    **{f"aes{bits}": f"aes{bits}" for bits in (128, 192, 256)},
    "3des": "3des",
    "chacha20poly1305": "chacha20_poly1305",
    "aesxcbc": "aes_xcbc",
    "aescmac": "aes_cmac",
    "sha1": "sha1",
    "sha256": "sha2_256",
    "sha384": "sha2_384",
    "sha512": "sha2_512",
    "prfaesxcbc": "aes_xcbc",
    "prfsha1": "sha1",
    "prfsha256": "sha2_256",
    "prfsha384": "sha2_384",
    "prfsha512": "sha2_512",
    "modp2048": "dh14",
    "modp3072": "dh15",
    "modp4096": "dh16",
    "ecp256": "dh19",
    "ecp384": "dh20",
    "ecp521": "dh21",
    "x25519": "dh31",
}
"""xfrmpy's names of algorithms in libreswan's."""

_SWANCTL = """\
{files}connections {{
    {section} {{
        version = 2
        local_addrs = {our_address}
        remote_addrs = {their_address}
        proposals = {ike}
        encap = {encap}
        local {{
            {our_proof}
            id = {our_id}
        }}
        remote {{
            {their_proof}
            id = {their_id}
        }}
        children {{
{children}        }}
    }}
}}
"""
_PROOF_LINES = "\n" + 12 * " "
_SWANCTL_SECRETS = """\
secrets {{
    ike-{section} {{
        id-1 = {our_id}
        id-2 = {their_id}
        secret = 0x{secret}
    }}
}}
"""
_SWANCTL_CHILD = """\
            {section} {{
                mode = {mode}
                local_ts = {local}
                remote_ts = {remote}
                {protocol}_proposals = {proposals}
                start_action = {start}
{compression}            }}
"""
_IPSEC = """\
conn {name}
    left={our_address}
    leftid={our_id}
    right={their_address}
    rightid={their_id}
    authby=secret
    ikev2=insist
    type={mode}
    ike={ike}
{protocol}    esp={esp}
    esn={esn}
    encapsulation={encap}
    auto={start}
{compression}{selectors}"""


def swanctl_conf(end: ForeignEnd) -> str:
    """strongSwan's end, without its secret. Raises `Unrenderable`."""
    _check_mode(end)
    children = "".join(
        _SWANCTL_CHILD.format(
            section=_section(child.name),
            mode=end.mode,
            local=", ".join(child.local) or "dynamic",
            remote=", ".join(child.remote) or "dynamic",
            protocol="ah" if end.has_ah else "esp",
            proposals=", ".join(child.esp),
            start="start" if end.calls else "none",
            compression="                ipcomp = yes\n" if end.compresses else "",
        )
        for child in end.children
    )
    return _SWANCTL.format(
        files="".join(map(_described, end.files)),
        our_proof=_PROOF_LINES.join(end.our_proof),
        their_proof=_PROOF_LINES.join(end.their_proof),
        section=_section(end.name),
        our_address=end.our_address,
        their_address=end.their_address,
        our_id=_swanctl_id(end.our_id),
        their_id=_swanctl_id(end.their_id),
        ike=", ".join(end.ike),
        encap="yes" if end.in_udp else "no",
        children=children,
    )


def _described(file: ForeignFile) -> str:
    lines = [f"{file.path}: {file.what}", *file.text.splitlines()]
    return "".join(f"# {line}\n" for line in lines)


def swanctl_secrets(end: ForeignEnd) -> str:
    """The part of swanctl.conf that has the secret of `swanctl_conf`. Raises `Unrenderable`."""
    _check_secret(end)
    return _SWANCTL_SECRETS.format(
        section=_section(end.name),
        our_id=_swanctl_id(end.our_id),
        their_id=_swanctl_id(end.their_id),
        secret=end.secret.hex(),
    )


def ipsec_conf(end: ForeignEnd) -> str:
    """libreswan's end, a `conn` for each Child SA. Raises `Unrenderable`."""
    _check_mode(end)
    if end.files:
        raise Unrenderable(
            "keys and certificates of libreswan are in its NSS database: `ipsec import FILE.p12` "
            "there, and write `leftcert` and `rightca` by hand"
        )
    return "\n".join(_conn(end, child, number) for number, child in enumerate(end.children))


def ipsec_secrets(end: ForeignEnd) -> str:
    """The line of libreswan's ipsec.secrets. Raises `Unrenderable`."""
    _check_secret(end)
    ids = f"{_libreswan_id(end.our_id)} {_libreswan_id(end.their_id)}"
    is_text = end.secret.isascii() and end.secret.decode("latin-1").isprintable()
    if is_text and b'"' not in end.secret:
        return f'{ids} : PSK "{end.secret.decode()}"\n'
    return f"{ids} : PSK 0x{end.secret.hex()}\n"


def _conn(end: ForeignEnd, child: ForeignChild, number: int) -> str:
    selectors = ""
    if end.mode == "tunnel":
        if not len(child.local) == len(child.remote) == 1:
            raise Unrenderable("libreswan has one subnet at either end")
        local, remote = (_subnet(each) for each in (child.local[0], child.remote[0]))
        selectors = f"    leftsubnet={local}\n    rightsubnet={remote}\n"
    elif child.local or child.remote:
        raise Unrenderable("transport mode is rendered for all that the ends say to each other")
    words = {word for proposal in child.esp for word in proposal.split("-")}
    return _IPSEC.format(
        name=end.name if not number else f"{end.name}-{child.name}",
        our_address=end.our_address,
        our_id=_libreswan_id(end.our_id),
        their_address=end.their_address,
        their_id=_libreswan_id(end.their_id),
        mode=end.mode,
        ike=",".join(_libreswan(each, "-") for each in end.ike),
        protocol="    phase2=ah\n" if end.has_ah else "",
        esp=",".join(dict.fromkeys(_libreswan(each, ";") for each in child.esp)),
        esn=("either" if "esn" in words else "no") if "noesn" in words else "yes",
        encap="yes" if end.in_udp else "auto",
        start="start" if end.calls else "add",
        compression="    compress=yes\n" if end.compresses else "",
        selectors=selectors,
    )


def _check_mode(end: ForeignEnd) -> None:
    if end.mode not in MODES:
        raise Unrenderable(f"the mode is {' or '.join(MODES)} there, and not {end.mode}")


def _check_secret(end: ForeignEnd) -> None:
    if not end.secret:
        raise Unrenderable("there is no shared key; private keys stay where they are")


def _section(name: str) -> str:
    """A dot in strongSwan's names of sections stands between sections."""
    return name.replace(".", "_")


def _swanctl_id(identity: str) -> str:
    text = _key_id(identity)
    if re.fullmatch(r"[\w.:/@%+*-]+", text, re.ASCII):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _libreswan_id(identity: str) -> str:
    """libreswan looks a name up unless it is marked as one."""
    text = _key_id(identity)
    if re.search(r"[\s\"',\\{}]", text) or (not text.startswith("@#") and "#" in text):
        raise Unrenderable(f"the identity {identity} has characters that ipsec.conf has not")
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return text if "@" in text or text.startswith("%") else f"@{text}"
    return text


def _key_id(identity: str) -> str:
    """`keyid:0xHEX` and `keyid:TEXT` are `@#HEX` to both of them."""
    if not identity.startswith("keyid:"):
        return identity
    text = identity.removeprefix("keyid:")
    return f"@#{text[2:] if text.startswith('0x') else text.encode().hex()}"


def _subnet(selector: str) -> str:
    try:
        return str(ipaddress.ip_network(selector))
    except ValueError as error:
        raise Unrenderable(f"libreswan has prefixes alone: {error}") from error


def _libreswan(proposal: str, before_groups: str) -> str:
    """`aes256gcm16-prfsha256-x25519` is `aes_gcm256-sha2_256-dh31`; `+` joins alternatives."""
    words = [word for word in proposal.split("-") if word not in ("esn", "noesn")]
    unknown = [word for word in words if word not in LIBRESWAN]
    if unknown:
        raise Unrenderable(f"libreswan's word for {', '.join(unknown)} is not known here")
    ciphers, hashes, groups = (_joined(words, kind) for kind in ("cipher", "hash", "group"))
    return "-".join(filter(None, (ciphers, hashes))) + (groups and before_groups + groups)


def _joined(words: Iterable[str], kind: str) -> str:
    return "+".join(dict.fromkeys(LIBRESWAN[word] for word in words if _kind_of(word) == kind))


def _kind_of(word: str) -> str:
    theirs = LIBRESWAN[word]
    if theirs.startswith("dh"):
        return "group"
    return "hash" if theirs.startswith(("sha", "aes_xcbc", "aes_cmac")) else "cipher"
