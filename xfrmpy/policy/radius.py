"""The servers of RADIUS that a policy names, in groups of those that know the same users."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.policy import values
from xfrmpy.policy.document import Node
from xfrmpy.policy.errors import Findings
from xfrmpy.policy.extras import Extra
from xfrmpy.policy.keys import KeyReader
from xfrmpy.policy.model import RadiusGroup, RadiusServer, TunnelPolicy
from xfrmpy.policy.resolve import Place
from xfrmpy.policy.schema.radius import RadiusKeys
from xfrmpy.policy.schema.validation import validate

PORT, ACCOUNTING_PORT = 1812, 1813
"""RFC 2865 section 3, RFC 2866 section 3."""


def resolve_groups(
    sections: Iterable[tuple[Node | None, Findings]], reader: KeyReader
) -> dict[str, RadiusGroup | None]:
    """The groups of all files by their names; None for one that has an error.

    A section is the value of the key `radius` of a file, with the findings of that file.
    """
    groups: dict[str, RadiusGroup | None] = {}
    first: dict[str, str] = {}
    for node, findings in sections:
        for name, each in node.value.items() if node and isinstance(node.value, dict) else ():
            place = Place(findings=findings, node=each)
            if name in first:
                message = f"RADIUS group '{name}' is defined already at {first[name]}"
                place.error("XF1006", (), message, at_key=True)
                continue
            first[name] = f"{findings.file}:{each.key_mark.line}:{each.key_mark.column}"
            # What is wrong with a key by itself is reported with the rest of the file.
            keys = validate(RadiusKeys, each, Findings(file=findings.file))
            groups[name] = None if keys is None else _resolve(name, keys, place, reader)
    return groups


def with_servers(
    policy: TunnelPolicy, place: Place, groups: Mapping[str, RadiusGroup | None]
) -> TunnelPolicy:
    """The policy with the group that its users are left to; an error if there is none."""
    acceptance = policy.acceptance
    if acceptance is None or not acceptance.server:
        return policy
    name = acceptance.server
    group = groups.get(name)
    if group is None:
        fault = "has an error" if name in groups else "is defined nowhere"
        hint = "" if name in groups else values.nearest(name, list(groups))
        further = () if policy.remote_eap else ("then", len(policy.rounds) - 1)
        path = ("auth", *further, "remote", "eap", "radius")
        place.error("XF1004", path, f"the RADIUS group '{name}' {fault}", hint)
    known = replace(acceptance, radius=group)
    if policy.remote_eap:
        return replace(policy, remote_eap=known)
    *before, last = policy.rounds
    return replace(policy, rounds=(*before, replace(last, remote_eap=known)))


def _resolve(name: str, keys: RadiusKeys, place: Place, reader: KeyReader) -> RadiusGroup | None:
    before = len(place.findings.errors)
    reader.has_extra(Extra.radius, place.node.key_mark, place.findings)
    if not keys.servers:
        message = f"'servers' of RADIUS group '{name}' is missing"
        place.error("XF1005", (), message, "servers: ADDRESS", at_key=True)
    servers = tuple(_servers(keys, place, reader))
    if keys.interim and not keys.accounting:
        message = "'interim' is about accounting, which is off"
        place.error("XF1004", ("interim",), message, "accounting: yes")
    if len(place.findings.errors) > before:
        return None
    return RadiusGroup(
        name=name,
        servers=servers,
        accounting=bool(keys.accounting),
        interim_seconds=keys.interim or 0.0,
        nas_id=keys.nas_id or "",
        **_given(wait_seconds=keys.timeout, tries=keys.tries),
    )


def _servers(keys: RadiusKeys, place: Place, reader: KeyReader) -> Iterator[RadiusServer]:
    seen: set[tuple[IpAddress, int]] = set()
    for number, written in enumerate(keys.servers or ()):
        path = ("servers", number)
        own = (*path, "secret") if written.secret else ("secret",)
        reference = written.secret or keys.secret
        if written.address is None:
            message = "'address' of a RADIUS server is missing"
            place.error("XF1005", path, message, "address: 192.0.2.10")
            continue
        if reference is None:
            message = f"the RADIUS server {written.address} has no 'secret'"
            place.error("XF1005", (), message, "secret: secret:NAME", at_key=True)
            continue
        port = written.port or PORT
        if (written.address, port) in seen:
            place.error("XF1004", path, f"the RADIUS server {written.address} is there twice")
        seen.add((written.address, port))
        secret = reader.shared_key(reference, place.mark(own), place.findings)
        if secret is not None:
            yield RadiusServer(
                address=written.address,
                port=port,
                accounting_port=written.accounting_port or ACCOUNTING_PORT,
                secret=secret,
            )


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
