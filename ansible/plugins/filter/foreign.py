# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The other end of a tunnel, for gateways of other makers: swanctl.conf and ipsec.conf."""

from __future__ import annotations

import ipaddress

from ansible.errors import AnsibleFilterError

GROUPS = "x25519-ecp384-ecp256-modp3072-modp4096"
ALL_GROUPS = f"{GROUPS}-ecp521-modp2048"
# The profiles, but for ML-KEM, which strongSwan has from version 6 on and libreswan has not.
IKE = {
    "modern": (
        f"aes256gcm16-aes128gcm16-chacha20poly1305-prfsha384-prfsha256-{GROUPS}",
        f"aes256-aes128-sha384-sha256-{GROUPS}",
    ),
    "compat": (
        f"aes256gcm16-aes128gcm16-chacha20poly1305-prfsha384-prfsha256-prfsha512-{ALL_GROUPS}",
        f"aes256-aes128-aes192-sha256-sha384-sha512-{ALL_GROUPS}",
    ),
}
ESP = {
    "modern": (
        f"aes256gcm16-aes128gcm16-chacha20poly1305-esn-noesn-{GROUPS}",
        f"aes256-sha256-esn-noesn-{GROUPS}",
    ),
    "compat": (
        f"aes256gcm16-aes128gcm16-aes192gcm16-chacha20poly1305-esn-noesn-{ALL_GROUPS}",
        f"aes256-aes128-aes192-sha256-sha384-sha512-esn-noesn-{ALL_GROUPS}",
    ),
}
"""What a policy means that names a profile, or none; those with forward secrecy."""

OURS_ALONE = {
    *("start", "datapath", "dpd", "nat_keepalive", "retransmission", "on_down", "priority"),
    *("mark", "mark_out", "mark_in", "mark_set", "fragmentation", "unique", "lifetime"),
    *("inactivity", "crash_detection", "resumption", "childless", "redirect", "local_address"),
    "per_resource",
}
"""Keys of which the other end need not know."""

RENDERED = {
    *("peer", "id", "peer_id", "psk", "local", "remote", "children", "mode", "ike", "esp"),
    "encapsulation",
}
INSIDE = {"profile", "proposals", "lifetime", "reauth", "replay_window", "offload"}
MODES = ("tunnel", "transport")

LIBRESWAN = {
    "aes128gcm16": "aes_gcm128",
    "aes192gcm16": "aes_gcm192",
    "aes256gcm16": "aes_gcm256",
    "chacha20poly1305": "chacha20_poly1305",
    "sha256": "sha2_256",
    "sha384": "sha2_384",
    "sha512": "sha2_512",
    "prfsha256": "sha2_256",
    "prfsha384": "sha2_384",
    "prfsha512": "sha2_512",
    "aes128": "aes128",
    "aes192": "aes192",
    "aes256": "aes256",
    "modp2048": "dh14",
    "modp3072": "dh15",
    "modp4096": "dh16",
    "ecp256": "dh19",
    "ecp384": "dh20",
    "ecp521": "dh21",
    "x25519": "dh31",
}
"""Our names of algorithms in libreswan's."""

SWANCTL = """\
connections {{
    {name} {{
        version = 2
        local_addrs = {our_address}
        remote_addrs = {their_address}
        proposals = {ike}
        encap = {encap}
        local {{
            auth = psk
            id = {our_id}
        }}
        remote {{
            auth = psk
            id = {their_id}
        }}
        children {{
{children}        }}
    }}
}}
secrets {{
    ike-{name} {{
        id-1 = {our_id}
        id-2 = {their_id}
        secret = 0x{secret}
    }}
}}
"""

SWANCTL_CHILD = """\
            {child} {{
                mode = {mode}
                local_ts = {local}
                remote_ts = {remote}
                esp_proposals = {esp}
                start_action = {start}
            }}
"""

IPSEC = """\
conn {name}
    left={our_address}
    leftid={our_id}
    right={their_address}
    rightid={their_id}
    authby=secret
    ikev2=insist
    type={mode}
    ike={ike}
    esp={esp}
    esn={esn}
    encapsulation={encap}
    auto={start}
{selectors}"""


class FilterModule:
    def filters(self):
        return {
            "swanctl_conf": swanctl_conf,
            "ipsec_conf": ipsec_conf,
            "ipsec_secrets": ipsec_secrets,
        }


def swanctl_conf(policy, name, address, secret):
    """strongSwan's end, with its secret; see swanctl_conf.yml."""
    end = _mirror(policy, name, address)
    children = "".join(
        SWANCTL_CHILD.format(
            child=child,
            mode=end["mode"],
            local=", ".join(local) or "dynamic",
            remote=", ".join(remote) or "dynamic",
            esp=", ".join(end["esp"]),
            start="start" if end["calls"] else "none",
        )
        for child, local, remote in end["children"]
    )
    return SWANCTL.format(
        name=name,
        our_address=end["our_address"],
        their_address=end["their_address"],
        our_id=end["our_id"],
        their_id=end["their_id"],
        ike=", ".join(end["ike"]),
        encap="yes" if end["encap"] else "no",
        children=children,
        secret=secret.strip().encode().hex(),
    )


def ipsec_conf(policy, name, address):
    """libreswan's end; see ipsec_conf.yml."""
    end = _mirror(policy, name, address)
    words = {word for proposal in end["esp"] for word in proposal.split("-")}
    esn = ("either" if "esn" in words else "no") if "noesn" in words else "yes"
    conns = []
    for number, (child, local, remote) in enumerate(end["children"]):
        selectors = ""
        if end["mode"] == "tunnel":
            _require(len(local) == len(remote) == 1, name, "libreswan has one subnet at either end")
            selectors = f"    leftsubnet={local[0]}\n    rightsubnet={remote[0]}\n"
        conns.append(
            IPSEC.format(
                name=name if not number else f"{name}-{child}",
                our_address=end["our_address"],
                our_id=_at(end["our_id"]),
                their_address=end["their_address"],
                their_id=_at(end["their_id"]),
                mode=end["mode"],
                ike=",".join(_libreswan(each, name, "-") for each in end["ike"]),
                esp=",".join(_libreswan(each, name, ";") for each in end["esp"]),
                esn=esn,
                encap="yes" if end["encap"] else "auto",
                start="start" if end["calls"] else "add",
                selectors=selectors,
            )
        )
    return "\n".join(conns)


def ipsec_secrets(policy, name, address, secret):
    """The line of libreswan's ipsec.secrets; see ipsec_secrets.yml."""
    end = _mirror(policy, name, address)
    return f'{_at(end["our_id"])} {_at(end["their_id"])} : PSK "{secret.strip()}"\n'


def _require(condition, name, fault):
    if not condition:
        raise AnsibleFilterError(f"{name}: {fault}")


def _mirror(policy, name, address):
    """The tunnel as its other end sees it."""
    _require(isinstance(policy, dict), name, "the policy of a tunnel is a mapping")
    other = sorted({*policy} - RENDERED - OURS_ALONE)
    _require(not other, name, f"{', '.join(other)} has nothing that stands for it there")
    peer = _list(policy.get("peer"))[:1]
    their_id = policy.get("id") or address
    our_id = policy.get("peer_id") or (peer and peer[0])
    _require(our_id, name, "without `peer` it needs `peer_id`")
    mode = policy.get("mode", "tunnel")
    _require(mode in MODES, name, f"the mode is {' or '.join(MODES)} there, and not {mode}")
    return {
        "our_address": peer[0] if peer else "%any",
        "their_address": address,
        "our_id": our_id,
        "their_id": their_id,
        "mode": mode,
        "calls": policy.get("start") == "listen" or not peer,
        "encap": policy.get("encapsulation") == "force",
        "children": list(_children(policy, name)),
        "ike": _proposals(policy, "ike", IKE, name),
        "esp": _proposals(policy, "esp", ESP, name),
    }


def _children(policy, name):
    """Names, what the other end calls its own, and what it calls ours."""
    for child, traffic in (policy.get("children") or {name: policy}).items():
        ends = [_list(traffic.get(key)) for key in ("remote", "local")]
        for selector in (*ends[0], *ends[1]):
            try:
                ipaddress.ip_network(selector)
            except ValueError as error:
                raise AnsibleFilterError(f"{name}: prefixes alone are rendered: {error}") from error
        yield child, *ends


def _proposals(policy, key, profiles, name):
    """Those named, or those of the profile that is."""
    settings = _settings(policy.get(key), profiles)
    other = sorted({*settings} - INSIDE)
    _require(not other, name, f"{key}.{', '.join(other)} has nothing that stands for it there")
    named = _list(settings.get("proposals"))
    if named:
        return named if key == "ike" else [_with_esn(each) for each in named]
    ike = _settings(policy.get("ike"), profiles)
    profile = settings.get("profile") or ike.get("profile") or "modern"
    _require(profile in profiles, name, f"there is no profile {profile!r}")
    return list(profiles[profile])


def _settings(value, profiles):
    """The long form of `ike` and `esp`: a word is a profile or a proposal, a list is proposals."""
    if isinstance(value, dict) or value is None:
        return value or {}
    return {"profile": value} if value in profiles else {"proposals": value}


def _with_esn(proposal):
    """With what we mean where it says nothing: elsewhere that means none."""
    words = proposal.split("-")
    return proposal if {"esn", "noesn"} & {*words} else f"{proposal}-esn"


def _list(value):
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _libreswan(proposal, name, before_groups):
    """`aes256gcm16-prfsha256-x25519` is `aes_gcm256-sha2_256-dh31`; `+` joins alternatives."""
    words = [word for word in proposal.split("-") if word not in ("esn", "noesn")]
    unknown = [word for word in words if word not in LIBRESWAN]
    _require(not unknown, name, f"libreswan's word for {', '.join(unknown)} is not known here")
    kinds = {"cipher": {}, "hash": {}, "group": {}}
    for word in words:
        theirs = LIBRESWAN[word]
        kind = "group" if theirs.startswith("dh") else "hash" if "sha2" in theirs else "cipher"
        kinds[kind][theirs] = None
    ciphers, hashes, groups = ("+".join(kind) for kind in kinds.values())
    return "-".join(filter(None, (ciphers, hashes))) + (groups and before_groups + groups)


def _at(identity):
    """libreswan looks a name up unless it is marked as one."""
    try:
        ipaddress.ip_address(identity)
    except ValueError:
        return identity if "@" in identity or identity.startswith("%") else f"@{identity}"
    return identity
