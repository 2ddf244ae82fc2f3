# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The other end of a tunnel, for gateways of other makers: swanctl.conf and ipsec.conf."""

from __future__ import annotations

import ipaddress

from ansible.errors import AnsibleFilterError
from ansible_collections.xfrmpy.gateway.plugins.plugin_utils import foreign_end

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


class FilterModule:
    def filters(self):
        return {
            "swanctl_conf": swanctl_conf,
            "ipsec_conf": ipsec_conf,
            "ipsec_secrets": ipsec_secrets,
        }


def swanctl_conf(policy, name, address, secret):
    """strongSwan's end, with its secret; see swanctl_conf.yml."""
    end = _mirror(policy, name, address, secret)
    return _rendered(foreign_end.swanctl_conf, end) + foreign_end.swanctl_secrets(end)


def ipsec_conf(policy, name, address):
    """libreswan's end; see ipsec_conf.yml."""
    return _rendered(foreign_end.ipsec_conf, _mirror(policy, name, address))


def ipsec_secrets(policy, name, address, secret):
    """The line of libreswan's ipsec.secrets; see ipsec_secrets.yml."""
    return _rendered(foreign_end.ipsec_secrets, _mirror(policy, name, address, secret))


def _rendered(render, end):
    try:
        return render(end)
    except foreign_end.Unrenderable as error:
        raise AnsibleFilterError(f"{end.name}: {error}") from error


def _require(condition, name, fault):
    if not condition:
        raise AnsibleFilterError(f"{name}: {fault}")


def _mirror(policy, name, address, secret=""):
    """The tunnel as its other end sees it."""
    _require(isinstance(policy, dict), name, "the policy of a tunnel is a mapping")
    other = sorted({*policy} - RENDERED - OURS_ALONE)
    _require(not other, name, f"{', '.join(other)} has nothing that stands for it there")
    peer = _list(policy.get("peer"))[:1]
    our_id = policy.get("peer_id") or (peer and peer[0])
    _require(our_id, name, "without `peer` it needs `peer_id`")
    return foreign_end.ForeignEnd(
        name=name,
        our_address=peer[0] if peer else "%any",
        their_address=address,
        our_id=our_id,
        their_id=policy.get("id") or address,
        mode=policy.get("mode", "tunnel"),
        calls=policy.get("start") == "listen" or not peer,
        in_udp=policy.get("encapsulation") == "force",
        ike=tuple(_proposals(policy, "ike", IKE, name)),
        children=tuple(_children(policy, name)),
        secret=secret.strip().encode(),
    )


def _children(policy, name):
    esp = tuple(_proposals(policy, "esp", ESP, name))
    for child, traffic in (policy.get("children") or {name: policy}).items():
        local, remote = (tuple(_list(traffic.get(key))) for key in ("remote", "local"))
        for selector in (*local, *remote):
            try:
                ipaddress.ip_network(selector)
            except ValueError as error:
                raise AnsibleFilterError(f"{name}: prefixes alone are rendered: {error}") from error
        yield foreign_end.ForeignChild(name=child, local=local, remote=remote, esp=esp)


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
