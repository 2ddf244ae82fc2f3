"""ipsec.conf(5), strongSwan's or libreswan's, into policies: a `conn` is a tunnel, or a child.

Conns that differ in their traffic alone are children of one tunnel, as they share an IKE SA there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import partial
from typing import Any

from xfrmpy.policy.foreign.importing import (
    Draft,
    Imported,
    Rule,
    find_secret,
    is_address,
    is_host,
    one_or_list,
    selector_text,
    suite_settings,
)
from xfrmpy.policy.foreign.swanctl import (
    IKEV1,
    INTERFACES,
    NO_REMOTE_ACCESS,
    SHARED_KEYS_ONLY,
    SOFT,
    UNKNOWN,
)
from xfrmpy.policy.foreign.syntax import Section, Setting, SharedSecret
from xfrmpy.policy.foreign.words import (
    Untranslatable,
    libreswan_proposal,
    number,
    octets,
    one_of,
    replay_window,
    seconds_of,
    span,
    span_of,
    strongswan_proposal,
)
from xfrmpy.registry import ProtocolId


class Dialect(StrEnum):
    """Whose ipsec.conf it is."""

    STRONGSWAN = "strongswan"
    LIBRESWAN = "libreswan"


_YES = ("yes", "force", "accept", "insist", "always")
_BY_START = "by `start` a tunnel that is lost comes again, waits for traffic, or does not"

CONN = {
    "keyexchange": Rule(ours="IKEv2, whatever it is", loss=UNKNOWN, harmless=("ike", "ikev2")),
    "ikev2": Rule(
        ours="IKEv2, whatever it is", loss=UNKNOWN, harmless=("yes", "insist", "propose", "permit")
    ),
    "authby": Rule(ours="`psk` alone"),
    "type": Rule(ours="mode; `passthrough` and `drop` are shunts"),
    "ike": Rule(ours="ike.proposals"),
    "esp": Rule(ours="esp.proposals"),
    "phase2alg": Rule(ours="esp.proposals, ah.proposals"),
    "ah": Rule(ours="ah.proposals"),
    "phase2": Rule(ours="esp, ah", loss=UNKNOWN, harmless=("esp", "ah")),
    "esn": Rule(
        ours="`esn` and `noesn` of esp.proposals", loss=UNKNOWN, harmless=("yes", "no", "either")
    ),
    "pfs": Rule(ours="key exchanges of esp.proposals", loss=UNKNOWN, harmless=("yes", "no")),
    "auto": Rule(ours="start"),
    "ikelifetime": Rule(ours="ike.lifetime, ike.reauth"),
    "lifetime": Rule(ours="lifetime", convert=span),
    "keylife": Rule(ours="lifetime", convert=span),
    "salifetime": Rule(ours="lifetime", convert=span),
    "lifebytes": Rule(ours="esp.max_bytes", convert=octets),
    "lifepackets": Rule(ours="esp.max_packets", convert=partial(number, 1000, 1 << 62)),
    "ipsec-max-bytes": Rule(ours="esp.max_bytes", convert=octets),
    "ipsec-max-packets": Rule(ours="esp.max_packets", convert=partial(number, 1000, 1 << 62)),
    "reauth": Rule(ours="ike.reauth", loss=UNKNOWN, harmless=("yes", "no")),
    "rekey": Rule(loss="SAs are always replaced ahead of their end", harmless=("yes",)),
    **{
        key: Rule(loss=SOFT)
        for key in ("margintime", "rekeymargin", "rekeyfuzz", "marginbytes", "marginpackets")
    },
    "dpddelay": Rule(ours="dpd", convert=span),
    "dpdtimeout": Rule(loss=f"{IKEV1}; `retransmission` says when a peer is given up"),
    "dpdaction": Rule(loss=_BY_START, harmless=("none", "clear", "hold", "restart")),
    "closeaction": Rule(loss=_BY_START, harmless=("none", "clear", "hold", "restart")),
    "keyingtries": Rule(loss="xfrmpy tries for ever, ever less often", harmless=("0", "%forever")),
    "forceencaps": Rule(
        ours="encapsulation", convert=partial(one_of, {"yes": "force"}), harmless=("no",)
    ),
    "encapsulation": Rule(
        ours="encapsulation",
        convert=partial(one_of, {"yes": "force"}),
        harmless=("auto", "no"),
    ),
    "fragmentation": Rule(
        ours="fragmentation", convert=partial(one_of, {"no": "no"}), harmless=_YES
    ),
    "mobike": Rule(loss="xfrmpy has no MOBIKE", harmless=("no",)),
    "compress": Rule(ours="esp.ipcomp", convert=partial(one_of, {"yes": "yes"}), harmless=("no",)),
    "inactivity": Rule(ours="inactivity", convert=span),
    "tfc": Rule(ours="esp.tfc", convert=partial(number, 1, 65535), harmless=("0",)),
    "replay_window": Rule(ours="esp.replay_window", convert=replay_window),
    "replay-window": Rule(ours="esp.replay_window", convert=replay_window),
    "nic-offload": Rule(
        ours="esp.offload",
        convert=partial(one_of, dict.fromkeys(("yes", "auto", "crypto"), "crypto")),
        harmless=("no",),
    ),
    "hw_offload": Rule(
        ours="esp.offload",
        convert=partial(one_of, dict.fromkeys(("yes", "auto"), "crypto")),
        harmless=("no",),
    ),
    "mark": Rule(ours="mark", convert=str),
    "mark_in": Rule(ours="mark_in", convert=str),
    "mark_out": Rule(ours="mark_out", convert=str),
    "mark-in": Rule(ours="mark_in", convert=str),
    "mark-out": Rule(ours="mark_out", convert=str),
    "priority": Rule(loss="priorities have another scale: see `priority`", harmless=("0",)),
    "reqid": Rule(loss="reqids are given by xfrmpy itself", harmless=("0",)),
    "aggressive": Rule(loss=IKEV1, harmless=("no",)),
    "aggrmode": Rule(loss=IKEV1, harmless=("no",)),
    "installpolicy": Rule(loss="policies are installed always", harmless=("yes",)),
    "sha2-truncbug": Rule(loss="xfrmpy has the truncation of RFC 4868 alone", harmless=("no",)),
    "mtu": Rule(loss="routes have the MTU that fits through the tunnel"),
    "metric": Rule(loss="routes of tunnels stand in a table of their own"),
    "narrowing": Rule(ours="always so", harmless=("yes", "no")),
    "failureshunt": Rule(loss="see `on_down`"),
    "negotiationshunt": Rule(loss="see `on_down`"),
    "ipsec-interface": Rule(loss=INTERFACES, harmless=("no",)),
    "vti-interface": Rule(loss=INTERFACES),
    "vti-routing": Rule(loss=INTERFACES),
    "retransmit-timeout": Rule(loss="see `retransmission`"),
    "retransmit-interval": Rule(loss="see `retransmission`"),
    "ppk": Rule(loss="its secret is not read: write `ppk`", harmless=("no",)),
    "modecfgpull": Rule(loss=IKEV1),
    "xauth": Rule(loss=IKEV1),
    "decap-dscp": Rule(
        ours="esp.restore_dscp", convert=partial(one_of, {"yes": "yes"}), harmless=("no",)
    ),
    "nopmtudisc": Rule(
        ours="esp.dont_fragment", convert=partial(one_of, {"yes": "clear"}), harmless=("no",)
    ),
}
SIDE = {
    "": Rule(ours="local_address, peer"),
    "id": Rule(ours="id, peer_id"),
    "auth": Rule(ours="`psk` alone"),
    "subnet": Rule(ours="local, remote"),
    "subnets": Rule(ours="children, one for each pair"),
    "protoport": Rule(ours="`[PROTOCOL/PORT]` behind local, remote"),
    "ikeport": Rule(loss="see `peer_port`", harmless=("500",)),
    "nexthop": Rule(loss="routes lead to the peer", harmless=("%defaultroute", "%direct")),
    "updown": Rule(loss="xfrmpy runs no scripts; `xfrmpy log -f -o json` tells what happens"),
    "firewall": Rule(loss="xfrmpy makes no rules for the firewall", harmless=("no",)),
    "hostaccess": Rule(loss="xfrmpy makes no rules for the firewall", harmless=("no",)),
    "sourceip": Rule(loss=NO_REMOTE_ACCESS),
    "addresspool": Rule(loss=NO_REMOTE_ACCESS),
    "dns": Rule(loss=NO_REMOTE_ACCESS),
    "allowany": Rule(loss="leave out `peer`, and give `peer_id`", harmless=("no",)),
    "vti": Rule(loss=INTERFACES),
    "interface-ip": Rule(loss=INTERFACES),
    "groups": Rule(loss="xfrmpy knows no groups of peers"),
    **{
        key: Rule(loss=SHARED_KEYS_ONLY)
        for key in ("cert", "rsasigkey", "ecdsakey", "pubkey", "sigkey", "ca", "sendcert", "ckaid")
    },
}
_LIBRESWAN_ALONE = {"ikev2", "phase2", "phase2alg", "esn", "encapsulation", "salifetime"}
_START = {"add": "", "ignore": "", "start": "auto", "up": "auto", "keep": "auto"} | dict.fromkeys(
    ("route", "ondemand"), "on-demand"
)
_SIDES = ("left", "right")
_OF_CHILD = ("local", "remote", "lifetime", "inactivity", "mark", "mark_in", "mark_out")


def import_ipsec_conf(
    root: Section,
    secrets: Sequence[SharedSecret],
    *,
    dialect: Dialect | None = None,
    ours: str = "left",
) -> Imported:
    """The policies of a file that `parse_ipsec_conf` has read; `ours` is `left` or `right`."""
    draft = Draft()
    merged: dict[str, list[_Conn]] = {}
    spoken = dialect or _dialect(root.sections.values())
    for heading, section in root.sections.items():
        kind, _, name = heading.partition(" ")
        if kind == "ca":
            draft.note(section.place, heading, SHARED_KEYS_ONLY)
        elif kind == "config":
            for key, setting in section.settings.items():
                reason = "settings of the whole daemon are not carried over"
                draft.note(setting.place, f"{key} = {setting.value}", reason)
        elif {*_SIDES} & section.settings.keys():
            conn = _Conn(draft, name, section, spoken, ours)
            if conn.carry_over():
                merged.setdefault(repr(sorted(conn.tunnel.items())), []).append(conn)
    for conns in merged.values():
        _add(draft, conns, secrets)
    return draft.result()


def _dialect(sections: Iterable[Section]) -> Dialect:
    """By what one of them has alone."""
    for section in sections:
        named = (section.settings.get(key) for key in ("ike", "esp", "phase2alg"))
        words = "-".join(setting.value for setting in named if setting is not None)
        if _LIBRESWAN_ALONE & section.settings.keys() or re.search(r"_|\bdh\d|[+;]", words):
            return Dialect.LIBRESWAN
    return Dialect.STRONGSWAN


def _add(draft: Draft, conns: list[_Conn], secrets: Sequence[SharedSecret]) -> None:
    first, *others = conns
    children = [(name, child) for conn in conns for name, child in conn.children]
    tunnel = dict(first.tunnel)
    if len(children) == 1:
        tunnel.update(children[0][1])
    else:
        named: dict[str, Any] = {}
        for name, child in children:
            place = first.section.place
            named[draft.free_name(place, name, f"conn {name}", named)] = child
        tunnel["children"] = named
    for other in others:
        reason = f"is a child of {first.name}, with which it shares all but its traffic"
        draft.note(other.section.place, f"conn {other.name}", reason)
    ids = [first.names_of(end) for end in ("local", "remote")]
    what = f"conn {first.name}"
    draft.add(first.section.place, first.name, tunnel, find_secret(secrets, *ids), what)


class _Conn:
    """One conn on its way into a tunnel: what is an IKE SA's, and its children by name."""

    def __init__(
        self, draft: Draft, name: str, section: Section, dialect: Dialect, ours: str
    ) -> None:
        self.name = name
        self.section = section
        self.tunnel: dict[str, Any] = {}
        self.children: list[tuple[str, dict[str, Any]]] = []
        self._draft = draft
        self._dialect = dialect
        theirs = _SIDES[ours == "left"]
        self._sides = {"local": ours, "remote": theirs}

    def carry_over(self) -> bool:
        """Whether it has become one."""
        kind = self._text("type") or "tunnel"
        if kind in ("passthrough", "drop", "reject"):
            self._shunt(kind)
            return False
        reason = self._impossible(kind)
        if reason:
            self._draft.note(self.section.place, f"conn {self.name}", f"left out: {reason}")
            return False
        self._ends()
        self._tables()
        if kind == "transport":
            self.tunnel["mode"] = kind
        start = _START.get(self._text("auto") or "ignore")
        if start is None:
            self._lost("auto", "is not known here")
        elif self._text("auto") in ("", "ignore"):
            setting = self.section.settings.get("auto")
            place = setting.place if setting is not None else self.section.place
            reason = "nothing was done with it; here it waits for `xfrmpy up`, or for the peer"
            self._draft.note(place, "auto = ignore", reason)
        elif start and "peer" in self.tunnel:
            self.tunnel["start"] = start
        self._ike()
        self._packets()
        return self._make_children(kind)

    def names_of(self, end: str) -> list[str]:
        """By which a secret may be found: its identity and its address."""
        return [s.value for s in (self._side(end, "id"), self._side(end, "")) if s is not None]

    def _impossible(self, kind: str) -> str:
        if kind not in ("tunnel", "transport"):
            return f"type={kind} has nothing that stands for it"
        if self._text("keyexchange") == "ikev1" or self._text("ikev2") in ("no", "never"):
            return "it is IKEv1, which xfrmpy does not speak"
        both = self._text("authby") or "pubkey, by default"
        for end in ("local", "remote"):
            setting = self._side(end, "auth")
            auth = setting.value.lower() if setting is not None else both
            if auth not in ("secret", "psk"):
                return f"authentication by {auth}: {SHARED_KEYS_ONLY}"
        peer, identity = self._side("remote", ""), self._side("remote", "id")
        if (peer is None or not is_host(peer.value)) and self._identity("remote", identity) is None:
            return "without one address of the peer, an identity must say who may call"
        return ""

    def _identity(self, end: str, setting: Setting | None) -> str | None:
        return self._draft.identity(setting, f"{self._sides[end]}id")

    def _ends(self) -> None:
        peer, here = self._side("remote", ""), self._side("local", "")
        if peer is not None and is_host(peer.value):
            self.tunnel["peer"] = peer.value
        elif peer is not None and peer.value != "%any":
            self._draft.note(peer.place, f"peer {peer.value}", "any address may call")
        if here is not None and is_address(here.value):
            self.tunnel["local_address"] = here.value
        elif here is not None and here.value not in ("%any", "%defaultroute"):
            reason = "is not an address; the route to the peer decides"
            self._draft.note(here.place, f"{self._sides['local']} = {here.value}", reason)
        for end, key in (("local", "id"), ("remote", "peer_id")):
            identity = self._identity(end, self._side(end, "id"))
            if identity is not None:
                self.tunnel[key] = identity

    def _tables(self) -> None:
        for key, setting in self.section.settings.items():
            side = next((s for s in _SIDES if key.startswith(s)), None)
            rest, rules = (key.removeprefix(side), SIDE) if side else (key, CONN)
            rules = {key: rules[rest]} if rest in rules else {}
            one = Section(place=setting.place, settings={key: setting})
            self._draft.carry(one, rules, self.tunnel)

    def _ike(self) -> None:
        read = partial(strongswan_proposal, ProtocolId.IKE)
        if self._dialect is Dialect.LIBRESWAN:
            read = partial(libreswan_proposal, ProtocolId.IKE, ())
        setting = self.section.settings.get("ike")
        proposals = self._draft.proposals(_without_mark(setting), "ike", read)
        self._tell_default(setting, "ike", proposals)
        settings: dict[str, Any] = {}
        lifetime = self.section.settings.get("ikelifetime")
        reauthenticates = self._text("reauth") or (
            "no" if self._dialect is Dialect.LIBRESWAN else "yes"
        )
        key = "reauth" if reauthenticates == "yes" else "lifetime"
        if lifetime is not None:
            try:
                settings[key] = span_of(seconds_of(lifetime.value))
            except Untranslatable as error:
                self._lost("ikelifetime", str(error))
        elif key == "reauth":
            place = self.section.settings.get("reauth")
            reason = "IKE SAs were made anew, with authentication, every 3h; here they are rekeyed"
            self._draft.note(place.place if place else self.section.place, "reauth", reason)
        if proposals or settings:
            self.tunnel["ike"] = suite_settings(proposals, settings)

    def _packets(self) -> None:
        has_ah = "ah" in self.section.settings or self._text("phase2") == "ah"
        key = next((k for k in ("ah", "esp", "phase2alg") if k in self.section.settings), "esp")
        protocol = ProtocolId.AH if has_ah else ProtocolId.ESP
        read = partial(strongswan_proposal, protocol)
        if self._dialect is Dialect.LIBRESWAN:
            esn = {"yes": ("esn",), "no": ("noesn",)}.get(self._text("esn"), ("esn", "noesn"))
            read = partial(libreswan_proposal, protocol, esn)
        setting = self.section.settings.get(key)
        proposals = self._draft.proposals(_without_mark(setting), key, read)
        self._tell_default(setting, key, proposals)
        settings = self.tunnel.pop("esp", {})
        if self._dialect is Dialect.LIBRESWAN and self._text("pfs") != "no":
            proposals = self._with_forward_secrecy(proposals)
        if proposals or settings or has_ah:
            self.tunnel["ah" if has_ah else "esp"] = suite_settings(proposals, settings)

    def _with_forward_secrecy(self, proposals: list[str]) -> list[str]:
        """`pfs=yes`, libreswan's default, is by the key exchange of the IKE SA; or by none."""
        ike = self.tunnel.get("ike", {})
        named = ike.get("proposals", []) if isinstance(ike, dict) else ike
        texts = [named] if isinstance(named, str) else named
        groups = re.findall(r"(?:x25519|ecp\d+|modp\d+)", "-".join(texts))
        suffix = "-".join(dict.fromkeys(groups))
        if not suffix or any(re.search(r"x25519|ecp\d|modp\d", p) for p in proposals):
            return proposals
        return [*(_with_groups(p, suffix) for p in proposals), *proposals]

    def _tell_default(self, setting: Setting | None, key: str, proposals: list[str]) -> None:
        if not proposals:
            reason = f"{self._dialect}'s default is not carried over: it is that of `modern`"
            self._draft.note(setting.place if setting else self.section.place, key, reason)

    def _make_children(self, kind: str) -> bool:
        limits = {key: self.tunnel.pop(key) for key in _OF_CHILD if key in self.tunnel}
        found = {end: self._selectors(end, kind) for end in ("local", "remote")}
        local, remote = found["local"], found["remote"]
        if local is None or remote is None:
            return False
        several = any(self._side(end, "subnets") is not None for end in found)
        if several:
            self.children = [
                (f"{self.name}-{i}x{j}", {"local": here, "remote": there, **limits})
                for i, here in enumerate(local, 1)
                for j, there in enumerate(remote, 1)
            ]
            return True
        traffic = {k: one_or_list(v) for k, v in (("local", local), ("remote", remote)) if v}
        self.children = [(self.name, {**traffic, **limits})]
        return True

    def _selectors(self, end: str, kind: str) -> list[str] | None:
        """None if they cannot be said here; none at all are the end's own address."""
        one, many = self._side(end, "subnet"), self._side(end, "subnets")
        setting = many or one
        service = self._service(end)
        given = re.split(r"[,\s]+", setting.value.strip(" {}")) if setting is not None else []
        if not given and (kind == "tunnel" or service):
            address = self._side(end, "")
            if address is None or not is_address(address.value):
                if kind == "transport":
                    given = ["0.0.0.0/0"]
                else:
                    reason = "left out: the address of that end is not known"
                    what = f"{self._sides[end]}subnet, of itself"
                    self._draft.note(self.section.place, what, reason)
                    return None
            else:
                given = [address.value]
        selectors = []
        for text in filter(None, given):
            written = text.replace("/%any]", "]") + ("" if "[" in text else service)
            try:
                selectors.append(selector_text(written))
            except ValueError as error:
                place = setting.place if setting is not None else self.section.place
                what = f"{self._sides[end]}subnet = {text}"
                self._draft.note(place, what, f"conn {self.name} is left out: {error}")
                return None
        return selectors

    def _service(self, end: str) -> str:
        setting = self._side(end, "protoport")
        if setting is None:
            return ""
        protocol, _, port = setting.value.partition("/")
        return f"[{protocol}/{port}]" if port and port != "%any" else f"[{protocol}]"

    def _shunt(self, kind: str) -> None:
        self._tables()
        ends = {
            end: self._selectors(end, "tunnel" if end == "remote" else "") for end in self._sides
        }
        if not ends["remote"]:
            self._draft.note(self.section.place, f"conn {self.name}", "left out: it has no remote")
            return
        if kind == "reject":
            self._lost("type", "is `drop` here: nobody is told")
        name = self._draft.free_name(self.section.place, self.name, f"conn {self.name}")
        action = "bypass" if kind == "passthrough" else "drop"
        traffic = {end: one_or_list(found) for end, found in ends.items() if found}
        self._draft.shunts[name] = {"action": action, **traffic}

    def _side(self, end: str, key: str) -> Setting | None:
        return self.section.settings.get(self._sides[end] + key)

    def _text(self, key: str) -> str:
        setting = self.section.settings.get(key)
        return setting.value.lower() if setting is not None else ""

    def _lost(self, key: str, reason: str) -> None:
        setting = self.section.settings[key]
        self._draft.note(setting.place, f"{key} = {setting.value}", reason)


def _with_groups(proposal: str, groups: str) -> str:
    """A proposal of ours with key exchanges, in the order in which it is written."""
    words = proposal.split("-")
    numbers = [word for word in words if word in ("esn", "noesn")]
    return "-".join([*(w for w in words if w not in numbers), groups, *numbers])


def _without_mark(setting: Setting | None) -> Setting | None:
    """strongSwan's `!`, which allows nothing else: that is always so here."""
    if setting is None:
        return None
    return Setting(value=setting.value.rstrip("! "), place=setting.place)
