# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""From the members of a mesh to the policy of each: full mesh, or hubs and spokes."""

from __future__ import annotations

import base64
import ipaddress
import os
from itertools import combinations

import yaml
from ansible.errors import AnsibleFilterError

KEYS = {"name", "address", "id", "subnets", "policy"}
TOPOLOGIES = ("full", "hub")
OCTETS = 32
STAND_IN = "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
"""In a check, for keys that the run will make: a public key that there is (RFC 8032, TEST 1)."""


class FilterModule:
    def filters(self):
        return {
            "mesh_members": mesh_members,
            "mesh": mesh,
            "mesh_secrets": mesh_secrets,
            "mesh_public_keys": mesh_public_keys,
        }


def mesh_members(hosts, hostvars):
    """What `mesh` takes, from the variables of hosts; see mesh_members.yml."""
    unknown = [host for host in hosts if host not in hostvars]
    _require(not unknown, f"not in the inventory: {', '.join(unknown)}")
    for host in hosts:
        told = "has no `mesh_subnets` in the inventory; those of a play are not seen from others"
        _require("mesh_subnets" in hostvars[host], f"{host} {told}")
    keys = sorted(KEYS - {"name"})
    return [
        {
            "name": host,
            **{
                key: hostvars[host][f"mesh_{key}"]
                for key in keys
                if f"mesh_{key}" in hostvars[host]
            },
        }
        for host in hosts
    ]


def mesh(members, topology="full", hubs=(), policy=None, pairs=(), keys=None):
    """What each member's tunnels are; see mesh.yml.

    Returns `policies`, `pairs` and `secrets` by member: its policy file; by each peer that it
    calls, what `ours` and `theirs` have of it for the tunnel between the two; and by secret, the
    peer that has it too. With the members' public `keys` there are no secrets, and pairs of which
    one key is not known have no tunnel: they are `waiting`.
    """
    by_name = _checked(members)
    _require(topology in TOPOLOGIES, f"the topology is one of {', '.join(TOPOLOGIES)}")
    unknown = sorted({*hubs} - {*by_name})
    _require(not unknown, f"no such member to be a hub: {', '.join(unknown)}")
    _require(topology != "hub" or hubs, "a mesh with hubs names at least one of them in `hubs`")
    _check_overlaps(by_name)
    links = _links(by_name, topology, hubs)
    special = _pair_policies(pairs, links)
    tunnels = {name: {} for name in by_name}
    called_by = {name: {} for name in by_name}
    secrets = {name: {} for name in by_name}
    waiting = [] if keys is None else [link for link in links if not {*link} <= {*keys}]
    for caller, called in links:
        if (caller, called) in waiting:
            continue
        if keys is None:
            _share_secret(secrets, caller, called)
        for us, them, start in ((caller, called, "auto"), (called, caller, "listen")):
            tunnels[us][f"mesh-{them}"] = {
                **_ends(by_name[us], by_name[them], keys),
                "local": _reached(by_name, us, them, topology, hubs),
                "remote": _reached(by_name, them, us, topology, hubs),
                "start": start,
                **(policy or {}),
                **(by_name[us].get("policy") or {}),
                **special.get(frozenset((us, them)), {}),
            }
        called_by[caller][called] = {
            end: {"mesh": {"tunnels": {f"mesh-{them}": tunnels[us][f"mesh-{them}"]}}}
            for end, us, them in (("ours", caller, called), ("theirs", called, caller))
        }
        if keys is not None:
            shown = {"ours": keys[caller], "theirs": keys[called]}
            called_by[caller][called]["keys"] = shown
    policies = {name: {"tunnels": tunnels[name]} for name in by_name}
    told = [f"{caller} and {called}" for caller, called in waiting]
    return {"policies": policies, "pairs": called_by, "secrets": secrets, "waiting": told}


def mesh_secrets(known, found, rotate=False):
    """The secret of every pair, from what the members have; see mesh_secrets.yml."""
    values, generated = {}, {}
    for name, secrets in known.items():
        for secret, peer in secrets.items():
            if secret in values:
                continue
            here = [found.get(member, {}).get(secret) for member in sorted((name, peer))]
            there = [value for value in here if value]
            if rotate or not there:
                generated[secret] = True
                values[secret] = os.urandom(OCTETS).hex()
            else:
                values[secret] = there[0]
    return {
        "values": {n: {s: values[s] for s in secrets} for n, secrets in known.items()},
        "generated": {n: [s for s in secrets if s in generated] for n, secrets in known.items()},
    }


def mesh_public_keys(found, files):
    """The public key of every member that is known; see mesh_public_keys.yml."""
    keys = {}
    for file in files.values():
        text = base64.b64decode(file.get("content") or "")
        tunnels = (yaml.safe_load(text) or {}).get("tunnels") or {}
        for tunnel, policy in tunnels.items():
            key = ((policy.get("auth") or {}).get("remote") or {}).get("key")
            if key and tunnel.startswith("mesh-"):
                keys[tunnel.removeprefix("mesh-")] = key
    keys.update({name: each.get("key") or STAND_IN for name, each in found.items()})
    generated = {keys[name] for name, each in found.items() if each.get("changed")}
    if STAND_IN in keys.values():
        generated.add(STAND_IN)
    return {"keys": keys, "generated": sorted(generated)}


def _share_secret(secrets, one, other):
    secret = _secret_name(one, other)
    _require(
        secret not in secrets[one] and secret not in secrets[other],
        f"two pairs of members would share the secret {secret}: rename one of the members",
    )
    secrets[one][secret], secrets[other][secret] = other, one


def _require(condition, fault):
    if not condition:
        raise AnsibleFilterError(f"mesh: {fault}")


def _checked(members):
    _require(isinstance(members, (list, tuple)), "the members are a list of mappings")
    by_name = {}
    for member in members:
        _require(isinstance(member, dict), f"{member!r} is no member: a mapping is")
        name = member.get("name")
        _require(name and isinstance(name, str), f"a member has no name: {member!r}")
        _require(name not in by_name, f"{name} is a member twice")
        unknown = sorted({*member} - KEYS)
        _require(
            not unknown,
            f"{name}: unknown key {', '.join(unknown)}; there are {', '.join(sorted(KEYS))}",
        )
        subnets = member.get("subnets")
        _require(
            isinstance(subnets, list) and subnets,
            f"{name}: `subnets` is a list of prefixes, such as [10.1.0.0/16]",
        )
        for subnet in subnets:
            try:
                ipaddress.ip_network(subnet)
            except ValueError as error:
                raise AnsibleFilterError(f"mesh: {name}: {error}") from error
        by_name[name] = member
    _require(len(by_name) > 1, "a mesh has two members at least")
    return by_name


def _check_overlaps(by_name):
    owned = [
        (name, ipaddress.ip_network(subnet))
        for name, member in by_name.items()
        for subnet in member["subnets"]
    ]
    for (one, first), (other, second) in combinations(owned, 2):
        _require(
            first.version != second.version or not first.overlaps(second),
            f"{one} and {other} both have what {first} and {second} share",
        )


def _links(by_name, topology, hubs):
    """Pairs that have a tunnel: who calls, and who is called."""
    links = []
    for one, other in combinations(sorted(by_name), 2):
        if topology == "hub" and not {one, other} & {*hubs}:
            continue
        caller, called = (other, one) if topology == "hub" and one in hubs else (one, other)
        if not by_name[called].get("address"):
            caller, called = called, caller
        _require(
            by_name[called].get("address"),
            f"neither {one} nor {other} has an `address` at which the other could call it",
        )
        links.append((caller, called))
    return links


def _pair_policies(pairs, links):
    """Keys of a policy for both ends of a pair, by the pair."""
    known = {frozenset(link) for link in links}
    found = {}
    for pair in pairs:
        _require(
            isinstance(pair, dict)
            and {*pair} == {"between", "policy"}
            and isinstance(pair["between"], list)
            and isinstance(pair["policy"], dict),
            f"{pair!r} is no pair: {{between: [ONE, OTHER], policy: {{KEY: VALUE}}}} is",
        )
        between = frozenset(pair["between"])
        _require(between in known, f"no tunnel is between {' and '.join(pair['between'])}")
        found[between] = {**found.get(between, {}), **pair["policy"]}
    return found


def _secret_name(one, other):
    return "mesh-" + "--".join(sorted((one, other)))


def _ends(ours, theirs, keys):
    """Where the peer is, and how each of the two proves who it is."""
    peer = {"peer": theirs["address"]} if theirs.get("address") else {}
    here, there = _identity(ours), _identity(theirs)
    if keys is None:
        secret = _secret_name(ours["name"], theirs["name"])
        return {**peer, "id": here, "peer_id": there, "psk": f"secret:{secret}"}
    local = {"id": here, "key": "secret:host.key"}
    return {**peer, "auth": {"local": local, "remote": {"id": there, "key": keys[theirs["name"]]}}}


def _identity(member):
    return member.get("id") or member["name"]


def _reached(by_name, near, far, topology, hubs):
    """What a member carries for another: its own subnets, and those that are reached through it."""
    subnets = list(by_name[near]["subnets"])
    if topology == "hub" and near == hubs[0] and far not in hubs:
        spokes = (name for name in sorted(by_name) if name not in (*hubs, far))
        subnets += [subnet for name in spokes for subnet in by_name[name]["subnets"]]
    return subnets
