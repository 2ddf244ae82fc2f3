"""What distinguishes two policies, and what it takes to get from the one to the other.

Every field of `model.py` stands in one of the two tables below, with the key that an operator knows
it by, what becomes of a living tunnel when it changes, and how its value is shown. A secret is
never shown: only where it comes from, and that it is another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from hashlib import sha256
from typing import Any

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.sad import MAX_RESOURCES, OUR_REQIDS
from xfrmpy.policy.model import (
    Certificates,
    ChildPolicy,
    EapAcceptance,
    FurtherRound,
    PrivateKey,
    PublicKey,
    RadiusGroup,
    SharedKey,
    TunnelPolicy,
)


class Impact(IntEnum):
    """What a change does to a tunnel that is up, from nothing to the worst.

    HOT: it is in force at once, and no SA is touched. REKEY: SAs are replaced without losing a
    packet. REAUTH: the IKE SA and its Child SAs are made anew, before the old ones go. REPLACE: the
    tunnel goes and comes again; of a child, that other traffic is carried, by a new Child SA that
    is made before the old one goes.
    """

    HOT = 0
    REKEY = 1
    REAUTH = 2
    REPLACE = 3

    def __str__(self) -> str:
        return self.name.lower()


class Action(StrEnum):
    """What happens to a tunnel as a whole."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A key whose value is another; `child` is empty where it is the tunnel's.

    `before` and `after` are empty where there was or is no such thing.
    """

    key: str
    child: str
    before: str
    after: str
    impact: Impact


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happens to one tunnel; `before` is None if it is new, `after` if it goes."""

    before: TunnelPolicy | None
    after: TunnelPolicy | None
    differences: tuple[Difference, ...] = ()

    @property
    def tunnel(self) -> str:
        policy = self.after or self.before
        assert policy is not None
        return policy.name

    @property
    def action(self) -> Action:
        if self.before is None:
            return Action.CREATE
        return Action.DELETE if self.after is None else Action.UPDATE

    @property
    def impact(self) -> Impact:
        if self.action is Action.DELETE:
            return Impact.REPLACE
        return max((difference.impact for difference in self.differences), default=Impact.HOT)

    @property
    def takes_down(self) -> bool:
        """Whether the tunnel goes, if only to come again."""
        return self.action is Action.DELETE or any(
            difference.impact is Impact.REPLACE and not difference.child
            for difference in self.differences
        )


def compare_policies(
    before: Iterable[TunnelPolicy], after: Iterable[TunnelPolicy]
) -> tuple[Change, ...]:
    """What changes, by the names of the tunnels: those that go first, and new ones last.

    So a tunnel may take over what another one gives up. Equal tunnels are not in it.
    """
    old, new = ({policy.name: policy for policy in policies} for policies in (before, after))
    deleted = [Change(before=old[name], after=None) for name in sorted(old.keys() - new.keys())]
    created = [Change(before=None, after=new[name]) for name in sorted(new.keys() - old.keys())]
    kept = (compare_tunnels(old[name], new[name]) for name in sorted(old.keys() & new.keys()))
    return (*deleted, *(change for change in kept if change.differences), *created)


def compare_tunnels(before: TunnelPolicy, after: TunnelPolicy) -> Change:
    """What distinguishes two policies of one tunnel, as the operator wrote them."""
    differences = [
        *_differences(before, after, _OF_TUNNEL),
        *_of_rounds(before, after),
        *_of_children(before, after),
    ]
    return Change(before=before, after=after, differences=tuple(differences))


def child_impact(before: ChildPolicy, after: ChildPolicy) -> Impact:
    """What it takes to have a Child SA follow another policy."""
    found = (
        difference.impact
        for difference in _differences(before, after, _OF_CHILD | _DERIVED_OF_CHILD)
    )
    return max(found, default=Impact.HOT)


def keep_reqids(
    policies: Iterable[TunnelPolicy], in_force: Iterable[TunnelPolicy]
) -> tuple[TunnelPolicy, ...]:
    """The policies with the reqids that their children have already, and free ones for the others.

    Loading gives a reqid by a hash of the name, which may move on when another tunnel comes or
    goes; a Child SA that is in force must not be disturbed by that. The same holds for the numbers
    of interfaces, but those that a policy names.
    """
    in_force = tuple(in_force)
    policies = _keep_if_ids(tuple(policies), in_force)
    known = {(t.name, c.name): c.reqid for t in in_force for c in t.children}
    wanted = policies
    keys = [(t.name, c.name) for t in wanted for c in t.children]
    taken = {known[key] for key in keys if key in known}

    def reqid(tunnel: TunnelPolicy, child: ChildPolicy) -> int:
        if (tunnel.name, child.name) in known:
            return known[tunnel.name, child.name]
        free = _free(child.reqid, taken)
        taken.add(free)
        return free

    return tuple(
        replace(t, children=tuple(replace(c, reqid=reqid(t, c)) for c in t.children))
        for t in wanted
    )


def _keep_if_ids(
    policies: tuple[TunnelPolicy, ...], in_force: tuple[TunnelPolicy, ...]
) -> tuple[TunnelPolicy, ...]:
    known = {p.name: _if_id(p) for p in in_force if _if_id(p) in OUR_REQIDS}
    made = {p.name: _if_id(p) for p in policies if _if_id(p) in OUR_REQIDS}
    taken = {known[name] for name in made if name in known}
    for name, number in made.items():
        if name not in known:
            made[name] = _free(number, taken)
            taken.add(made[name])
    numbers = {**made, **{name: known[name] for name in made if name in known}}
    return tuple(_with_if_id(p, numbers.get(p.name, _if_id(p))) for p in policies)


def _free(number: int, taken: set[int]) -> int:
    while number in taken:
        number = OUR_REQIDS[(number - OUR_REQIDS.start + 1) % len(OUR_REQIDS)]
    return number


def _if_id(policy: TunnelPolicy) -> int:
    return 0 if policy.interface is None else policy.interface.if_id


def _with_if_id(policy: TunnelPolicy, number: int) -> TunnelPolicy:
    if policy.interface is None or policy.interface.if_id == number:
        return policy
    return replace(
        policy,
        interface=replace(policy.interface, if_id=number),
        children=tuple(replace(child, if_id=number) for child in policy.children),
    )


def carries(policy: TunnelPolicy, local: IpAddress, remote: IpAddress) -> bool:
    """Whether packets between an address of this host's side and a remote one are the tunnel's."""
    return any(
        any(s.has(local) for s in child.local) and any(s.has(remote) for s in child.remote)
        for child in policy.children
    )


@dataclass(frozen=True, slots=True)
class _Key:
    """How a field is told of. `impact` None: it is no difference to anybody.

    `compared` is what of the value makes a difference.
    """

    name: str
    impact: Impact | None
    show: Callable[[Any], str] = str
    compared: Callable[[Any], Any] = lambda value: value


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _listed_or_none(values: Iterable[object]) -> str:
    return _listed(values) or "none"


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def _or_off(value: object) -> str:
    return "off" if value is None or value == 0 else f"{value:g} s"


def _or_none(value: object) -> str:
    return "none" if value is None else str(value)


def _or_usual(value: object) -> str:
    return "as usual" if value is None else str(value)


def _origin(key: SharedKey | PrivateKey | PublicKey | None) -> str:
    return "none" if key is None else key.origin


def _certificates(certificates: Certificates | None) -> str:
    """Where they are from, and what tells them from others of that place."""
    if certificates is None:
        return "none"
    digest = sha256(b"".join((*certificates.ders, certificates.crl))).hexdigest()
    return f"{certificates.origin} ({digest[:16]})"


def _acceptance(eap: EapAcceptance | None) -> str:
    """Whom it lets in; of the users their number and where they are from."""
    if eap is None:
        return "none"
    known = eap.users or "users by certificate"
    who = known if eap.radius is None else f"users of {_radius(eap.radius)}"
    named = _listed((*eap.identities, *(f"group {group}" for group in eap.groups)))
    limits = [named and f"only {named}", "without a certificate of ours" if eap.alone else ""]
    return "; ".join([f"{who}, by {_listed(eap.methods) or 'any'}", *filter(None, limits)])


def _radius(group: RadiusGroup) -> str:
    """Its servers, and what tells their secrets from others of that place."""
    secrets = b"".join(sha256(server.secret.octets).digest() for server in group.servers)
    return f"{group} ({sha256(secrets).hexdigest()[:16]})"


def _weak_or_not(value: bool) -> str:
    return f"signatures with SHA-1 {_onoff(value)}"


def _octets_or_off(value: int) -> str:
    return f"{value} octets" if value else "off"


def _resources(value: int) -> str:
    return {0: "off", MAX_RESOURCES: "auto"}.get(value, str(value))


def _onoff(value: bool) -> str:
    return "on" if value else "off"


def _lasting(rounds: tuple[FurtherRound, ...]) -> tuple[FurtherRound, ...]:
    """Without what may change and touch no tunnel."""
    return tuple(
        replace(
            r,
            local_certificates=None,
            certificate_hosts=(),
            remote_eap=r.remote_eap and EapAcceptance(),
        )
        for r in rounds
    )


_OF_TUNNEL: dict[str, _Key] = {
    "name": _Key("name", None),
    "origin": _Key("origin", None),
    "children": _Key("children", None),
    "peers": _Key("peer", Impact.REPLACE, _listed),
    "peer_port": _Key("peer_port", Impact.REPLACE, _or_usual),
    "local_address": _Key("local_address", Impact.REPLACE, _or_none),
    "local_id": _Key("id", Impact.REAUTH, _or_none),
    "remote_id": _Key("peer_id", Impact.REAUTH, _or_none),
    "ppks": _Key("ppk", Impact.REAUTH, _listed_or_none),
    "ppk_required": _Key("ppk.required", Impact.REAUTH, _yes_or_no),
    "shared_key": _Key("psk", Impact.REAUTH, _origin),
    "local_key": _Key("auth.local.key", Impact.REAUTH, _origin),
    "local_certificates": _Key("auth.local.cert", Impact.HOT, _certificates),
    "remote_authorities": _Key("auth.remote.ca", Impact.REAUTH, _certificates),
    "revocation": _Key("auth.remote.revocation", Impact.REAUTH),
    "certificate_hosts": _Key("auth.remote.hash_and_url", Impact.HOT, _listed_or_none),
    "remote_key": _Key("auth.remote.key", Impact.REAUTH, _origin),
    "local_null": _Key("auth.local.null_auth", Impact.REAUTH, _yes_or_no),
    "remote_null": _Key("auth.remote.null_auth", Impact.REAUTH, _yes_or_no),
    "local_eap": _Key("auth.local.eap", Impact.REAUTH, _or_none),
    "remote_eap": _Key("auth.remote.eap", Impact.HOT, _acceptance),
    "rounds": _Key("auth.then", Impact.REAUTH, _listed_or_none, _lasting),
    "weak_signatures": _Key("ike.profile", Impact.REAUTH, _weak_or_not),
    "experiment": _Key("ike.experimental", Impact.REAUTH, _or_none),
    "proposals": _Key("ike.proposals", Impact.REKEY, _listed),
    "start": _Key("start", Impact.HOT),
    "datapath": _Key("datapath", Impact.REPLACE),
    "encapsulation": _Key("encapsulation", Impact.REAUTH),
    "fragmentation": _Key("fragmentation", Impact.REAUTH, _onoff),
    "dpd_seconds": _Key("dpd", Impact.HOT, _or_off),
    "nat_keepalive_seconds": _Key("nat_keepalive", Impact.HOT, _or_off),
    "lifetime_seconds": _Key("ike.lifetime", Impact.HOT, _or_off),
    "reauth_seconds": _Key("ike.reauth", Impact.HOT, _or_off),
    "retransmission": _Key("retransmission", Impact.HOT),
    "crash_detection": _Key("crash_detection", Impact.HOT, _onoff),
    "unique": _Key("unique", Impact.HOT),
    "resumption": _Key("resumption", Impact.HOT, _onoff),
    "childless": _Key("childless", Impact.HOT, _onoff),
    "redirect": _Key("redirect", Impact.HOT, _onoff),
    "redirect_to": _Key("redirect_to", Impact.HOT, _or_none),
    "on_down": _Key("on_down", Impact.HOT),
    "interface": _Key("interface", Impact.HOT, _or_none),
}

_HOT_OF_ROUND = {
    "local_certificates": _Key("auth.then.local.cert", Impact.HOT, _certificates),
    "remote_eap": _Key("auth.then.remote.eap", Impact.HOT, _acceptance),
}

_OF_CHILD: dict[str, _Key] = {
    "name": _Key("name", None),
    "reqid": _Key("reqid", None),
    "local": _Key("local", Impact.REPLACE, _listed),
    "remote": _Key("remote", Impact.REPLACE, _listed),
    "mode": _Key("mode", Impact.REPLACE),
    "proposals": _Key("esp.proposals", Impact.REKEY, _listed),
    "replay_window": _Key("esp.replay_window", Impact.REKEY),
    "offload": _Key("esp.offload", Impact.REKEY, _or_none),
    "copies_dscp": _Key("esp.copy_dscp", Impact.REKEY, _onoff),
    "restores_dscp": _Key("esp.restore_dscp", Impact.REKEY, _onoff),
    "copies_ecn": _Key("esp.copy_ecn", Impact.REKEY, _onoff),
    "tfc": _Key("esp.tfc", Impact.REKEY, _octets_or_off),
    "compresses": _Key("esp.ipcomp", Impact.REKEY, _onoff),
    "dont_fragment": _Key("esp.dont_fragment", Impact.REKEY, _or_usual),
    "lifetime_seconds": _Key("lifetime", Impact.HOT, _or_off),
    "lifetime_octets": _Key("esp.max_bytes", Impact.REKEY, _or_none),
    "lifetime_packets": _Key("esp.max_packets", Impact.REKEY, _or_none),
    "inactivity_seconds": _Key("inactivity", Impact.HOT, _or_off),
    "priority": _Key("priority", Impact.REKEY, _or_none),
    "mark_out": _Key("mark_out", Impact.REKEY, _or_none),
    "mark_in": _Key("mark_in", Impact.REKEY, _or_none),
    "mark_set": _Key("mark_set", Impact.REKEY, _or_none),
    "if_id": _Key("interface.if_id", Impact.REPLACE),
    "per_resource": _Key("per_resource", Impact.REKEY, _resources),
}

_DERIVED_OF_CHILD = {
    "protocol": _Key("ah", Impact.REPLACE, lambda protocol: protocol.name),
}
"""What is no field: a Child SA cannot be rekeyed to another protocol."""


def _differences(
    before: Any, after: Any, keys: dict[str, _Key], child: str = ""
) -> Iterator[Difference]:
    for field, key in keys.items():
        old, new = getattr(before, field), getattr(after, field)
        if key.impact is not None and key.compared(old) != key.compared(new):
            shown = key.show(old), key.show(new)
            if shown[0] == shown[1]:
                shown = shown[0], f"{shown[1]}, with another value"
            yield Difference(
                key=key.name, child=child, before=shown[0], after=shown[1], impact=key.impact
            )


def _of_rounds(before: TunnelPolicy, after: TunnelPolicy) -> Iterator[Difference]:
    for old, new in zip(before.rounds, after.rounds, strict=False):
        yield from _differences(old, new, _HOT_OF_ROUND)


def _of_children(before: TunnelPolicy, after: TunnelPolicy) -> Iterator[Difference]:
    old, new = ({child.name: child for child in policy.children} for policy in (before, after))
    for name in sorted(old.keys() | new.keys()):
        if name in old and name in new:
            yield from _differences(old[name], new[name], _OF_CHILD | _DERIVED_OF_CHILD, child=name)
        else:
            yield Difference(
                key="children",
                child=name,
                before=_traffic(old.get(name)),
                after=_traffic(new.get(name)),
                impact=Impact.HOT if name in new else Impact.REPLACE,
            )


def _traffic(child: ChildPolicy | None) -> str:
    return "" if child is None else f"{_listed(child.local)} to {_listed(child.remote)}"
