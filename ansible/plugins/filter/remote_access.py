# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""From the clients of a gateway to its policy, and to that of each client."""

from __future__ import annotations

import ipaddress
import re

from ansible.errors import AnsibleFilterError

KEYS = {"address", "id", "policy"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class FilterModule:
    def filters(self):
        return {"remote_access": remote_access}


def remote_access(clients, gateway, subnets, identity, policy=None):
    """What the gateway has for its clients, and each of them for it; see remote_access.yml."""
    _require(isinstance(clients, dict), "the clients are a mapping, by name")
    _require(gateway, "`remote_access_gateway` is the address or name at which clients call it")
    _require(isinstance(subnets, list) and subnets, "`subnets` is a list, such as [10.1.0.0/16]")
    taken, tunnels, ends = {}, {}, {}
    for name, client in clients.items():
        _check(name, client)
        address = _address(name, client)
        _require(
            address not in taken,
            f"{name} and {taken.get(address)} have the same address, {address}",
        )
        taken[address] = name
        _require(not _is_within(address, subnets), f"{name}: {address} is in what it is to reach")
        them = client.get("id") or name
        keys = {**(policy or {}), **(client.get("policy") or {}), "psk": f"secret:{_secret(name)}"}
        inside = str(ipaddress.ip_network(address))
        tunnels[_secret(name)] = {
            **keys, "id": identity, "peer_id": them, "local": [*subnets], "remote": inside,
            "start": "listen",
        }  # fmt: skip
        ends[name] = {
            **keys, "peer": gateway, "id": them, "peer_id": identity, "local": inside,
            "remote": [*subnets], "start": "auto",
        }  # fmt: skip
    return {
        "policy": {"tunnels": tunnels},
        "clients": ends,
        "secrets": {_secret(name): name for name in clients},
    }


def _secret(name):
    return f"client-{name}"


def _check(name, client):
    _require(
        isinstance(name, str) and _NAME.match(name),
        f"{name!r} cannot be a client's name: letters, digits, `.`, `_` and `-`, no dot in front",
    )
    _require(isinstance(client, dict), f"{name}: {client!r} is no client: a mapping is")
    unknown = sorted({*client} - KEYS)
    _require(
        not unknown,
        f"{name}: unknown key {', '.join(map(str, unknown))}; there are {', '.join(sorted(KEYS))}",
    )


def _address(name, client):
    try:
        return ipaddress.ip_address(client.get("address"))
    except ValueError as error:
        raise AnsibleFilterError(
            f"remote_access: {name}: `address` is its inner address, such as 10.99.0.1: {error}"
        ) from error


def _is_within(address, subnets):
    try:
        networks = [ipaddress.ip_network(subnet) for subnet in subnets]
    except ValueError as error:
        raise AnsibleFilterError(f"remote_access: {error}") from error
    return any(
        address in net for net in networks if net.version == address.version and net.prefixlen
    )


def _require(condition, fault):
    if not condition:
        raise AnsibleFilterError(f"remote_access: {fault}")
