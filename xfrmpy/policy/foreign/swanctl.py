"""swanctl.conf(5) into policies: a `connection` is a tunnel, a `child` one of its children."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.foreign.credentials import (
    OF_PROOFS,
    EapSecret,
    Keyring,
    NoFiles,
    Proofs,
    Unproved,
    auth_of,
    constrains_signatures,
    proofs_of,
)
from xfrmpy.policy.foreign.importing import (
    Draft,
    Imported,
    Rule,
    find_secret,
    is_address,
    is_host,
    listed,
    one_or_list,
    put,
    selector_text,
    suite_settings,
)
from xfrmpy.policy.foreign.syntax import Section, Setting, SharedSecret, secret_octets
from xfrmpy.policy.foreign.words import (
    Untranslatable,
    number,
    octets,
    one_of,
    replay_window,
    seconds_of,
    span,
    span_of,
    strongswan_proposal,
    yes_no,
)
from xfrmpy.registry import ProtocolId

SHARED_KEYS_ONLY = "keys and certificates are not carried over: `auth`, `cert` and `ca` name them"
NO_REMOTE_ACCESS = "xfrmpy has no virtual addresses"
IKEV1 = "is of IKEv1 alone, which xfrmpy does not speak"
INTERFACES = "xfrmpy makes the interface itself: see `interface` in docs/routes.md"
UNKNOWN = "is not known here"
SOFT = "moments of rekeying are spread by xfrmpy itself"

CONNECTION = {
    "version": Rule(ours="IKEv2, whatever it is", loss=UNKNOWN, harmless=("0", "2")),
    "local_addrs": Rule(ours="local_address"),
    "remote_addrs": Rule(ours="peer"),
    "local_port": Rule(loss="ports of this host are options of the daemon", harmless=("500",)),
    "remote_port": Rule(ours="peer_port", convert=partial(number, 1, 65535), harmless=("500",)),
    "proposals": Rule(ours="ike.proposals"),
    "encap": Rule(
        ours="encapsulation", convert=partial(one_of, {"yes": "force"}), harmless=("no",)
    ),
    "mobike": Rule(loss="xfrmpy has no MOBIKE", harmless=("no",)),
    "dpd_delay": Rule(ours="dpd", convert=span),
    "dpd_timeout": Rule(loss=f"{IKEV1}; `retransmission` says when a peer is given up"),
    "fragmentation": Rule(
        ours="fragmentation", convert=partial(one_of, {"no": "no"}), harmless=("yes", "accept")
    ),
    "childless": Rule(
        ours="childless",
        convert=partial(one_of, {"prefer": "yes", "force": "yes"}),
        harmless=("allow",),
    ),
    "unique": Rule(
        ours="unique",
        convert=partial(one_of, {w: w for w in ("no", "never", "keep", "replace")}),
    ),
    "reauth_time": Rule(ours="ike.reauth"),
    "rekey_time": Rule(ours="ike.lifetime"),
    "over_time": Rule(ours="added to `ike.lifetime` and `ike.reauth`"),
    "rand_time": Rule(loss=SOFT),
    "keyingtries": Rule(loss="xfrmpy tries for ever, ever less often", harmless=("0", "%forever")),
    "aggressive": Rule(loss=IKEV1, harmless=("no",)),
    "pull": Rule(loss=IKEV1, harmless=("yes",)),
    "send_certreq": Rule(loss="authorities are always named", harmless=("yes",)),
    "send_cert": Rule(loss="certificates are always sent", harmless=("always", "ifasked")),
    "ocsp": Rule(loss="OCSP answers are always asked for and given", harmless=("both",)),
    "vips": Rule(loss=NO_REMOTE_ACCESS),
    "pools": Rule(loss=NO_REMOTE_ACCESS),
    "ppk_id": Rule(loss="its secret is not read: write `ppk`"),
    "ppk_required": Rule(loss="its secret is not read: write `ppk`", harmless=("no",)),
    "if_id_in": Rule(loss=INTERFACES),
    "if_id_out": Rule(loss=INTERFACES),
    "dscp": Rule(loss="the DSCP of IKE is the kernel's default", harmless=("000000",)),
    "mediation": Rule(loss="xfrmpy has no mediation", harmless=("no",)),
    "mediated_by": Rule(loss="xfrmpy has no mediation"),
    "mediation_peer": Rule(loss="xfrmpy has no mediation"),
}
END = {
    "auth": Rule(ours="psk, auth.local, auth.remote: `psk`, `pubkey`, and EAP with passwords"),
    "id": Rule(ours="id, peer_id"),
    "round": Rule(loss="one authentication is done"),
    "certs": Rule(ours="auth.local.cert, with `auth.local.key`"),
    "cacerts": Rule(ours="auth.remote.ca, if it is one file"),
    "ca_id": Rule(loss="authorities are files here: see `ca`"),
    "cert_policy": Rule(loss="policies of certificates are not looked at"),
    "pubkeys": Rule(ours="auth.local.key, auth.remote.key"),
    "revocation": Rule(
        ours="auth.remote.revocation",
        convert=partial(one_of, {"strict": "strict", "relaxed": "soft"}),
    ),
    "eap_id": Rule(ours="auth.local.eap.identity, auth.remote.eap.identities"),
    "aaa_id": Rule(loss="see `server` of `auth.local.eap`"),
    "xauth_id": Rule(loss=IKEV1),
    "groups": Rule(loss="xfrmpy knows no groups of peers"),
}
CHILD = {
    "local_ts": Rule(ours="local"),
    "remote_ts": Rule(ours="remote"),
    "esp_proposals": Rule(ours="esp.proposals"),
    "ah_proposals": Rule(ours="ah.proposals"),
    "mode": Rule(ours="mode; `pass` and `drop` are shunts"),
    "start_action": Rule(ours="start"),
    "rekey_time": Rule(ours="lifetime"),
    "life_time": Rule(ours="lifetime"),
    "rekey_bytes": Rule(ours="esp.max_bytes"),
    "life_bytes": Rule(ours="esp.max_bytes"),
    "rekey_packets": Rule(ours="esp.max_packets"),
    "life_packets": Rule(ours="esp.max_packets"),
    "rand_time": Rule(loss=SOFT),
    "rand_bytes": Rule(loss=SOFT),
    "rand_packets": Rule(loss=SOFT),
    "inactivity": Rule(ours="inactivity", convert=span),
    "ipcomp": Rule(ours="esp.ipcomp", convert=yes_no, harmless=("no",)),
    "replay_window": Rule(ours="esp.replay_window", convert=replay_window),
    "tfc_padding": Rule(ours="esp.tfc", convert=partial(number, 1, 65535), harmless=("0",)),
    "hw_offload": Rule(
        ours="esp.offload",
        convert=partial(one_of, dict.fromkeys(("yes", "auto", "crypto"), "crypto")),
        harmless=("no",),
    ),
    "copy_df": Rule(
        ours="esp.dont_fragment", convert=partial(one_of, {"no": "clear", "yes": "copy"})
    ),
    "copy_ecn": Rule(ours="esp.copy_ecn", convert=yes_no, harmless=("yes",)),
    "copy_dscp": Rule(
        ours="esp.copy_dscp, esp.restore_dscp", loss=UNKNOWN, harmless=("out", "in", "yes", "no")
    ),
    "mark_in": Rule(ours="mark_in", convert=str),
    "mark_out": Rule(ours="mark_out", convert=str),
    "mark_in_sa": Rule(loss="marks name policies, not SAs", harmless=("no",)),
    "set_mark_in": Rule(loss="`mark_in` is what packets get that come out of the tunnel"),
    "set_mark_out": Rule(ours="mark_set", convert=str),
    "if_id_in": Rule(loss=INTERFACES),
    "if_id_out": Rule(loss=INTERFACES),
    "interface": Rule(loss=INTERFACES),
    "dpd_action": Rule(
        loss="by `start` a tunnel that is lost comes again, waits for traffic, or does not",
        harmless=("clear", "none", "trap", "restart", "start"),
    ),
    "close_action": Rule(
        loss="by `start` a tunnel that is closed comes again, waits for traffic, or does not",
        harmless=("none", "trap", "start", "restart"),
    ),
    "updown": Rule(loss="xfrmpy runs no scripts; `xfrmpy log -f -o json` tells what happens"),
    "hostaccess": Rule(loss="xfrmpy makes no rules for the firewall", harmless=("no",)),
    "policies": Rule(loss="policies are installed always", harmless=("yes",)),
    "policies_fwd_out": Rule(loss="xfrmpy has no need of them", harmless=("no",)),
    "reqid": Rule(loss="reqids are given by xfrmpy itself", harmless=("0",)),
    "priority": Rule(loss="priorities have another scale: see `priority`", harmless=("0",)),
    "sha256_96": Rule(loss="xfrmpy has the truncation of RFC 4868 alone", harmless=("no",)),
    "label": Rule(loss="xfrmpy has no security labels"),
    "label_mode": Rule(loss="xfrmpy has no security labels"),
    "per_cpu_sas": Rule(loss="see `per_resource`", harmless=("no",)),
}
_START = {"none": "", "": "", "start": "auto", "trap": "on-demand", "route": "on-demand"}


def import_swanctl(root: Section, keyring: Keyring | None = None) -> Imported:
    """The policies of a file that `parse_swanctl` has read, with the files of the `keyring`.

    Raises `ForeignSyntaxError`.
    """
    draft = Draft()
    secrets = _Secrets.of(root.sections.get("secrets"), draft)
    for name, section in root.sections.items():
        if name not in ("connections", "secrets"):
            draft.note(section.place, name, "the section is not carried over")
    for key, setting in root.settings.items():
        draft.note(setting.place, key, "stands in no section")
    connections = root.sections.get("connections")
    for name, section in connections.sections.items() if connections is not None else ():
        _Connection(draft, name, section).carry_over(secrets, keyring or NoFiles())
    return draft.result()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Secrets:
    shared: tuple[SharedSecret, ...]
    users: tuple[EapSecret, ...]

    @classmethod
    def of(cls, section: Section | None, draft: Draft) -> _Secrets:
        shared: list[SharedSecret] = []
        users: list[EapSecret] = []
        for name, inner in section.sections.items() if section is not None else ():
            if not name.startswith(("ike", "eap")):
                draft.note(inner.place, name, "is not carried over: `passphrase` decrypts a key")
                continue
            secret = inner.settings.get("secret")
            if secret is None:
                draft.note(inner.place, name, "has no `secret`")
                continue
            ids = tuple(s.value for key, s in inner.settings.items() if key.startswith("id"))
            octets = secret_octets(secret.value, secret.place)
            if name.startswith("ike"):
                shared.append(SharedSecret(octets=octets, identities=ids))
            else:
                users.append(EapSecret(octets=octets, users=ids))
        return cls(shared=tuple(shared), users=tuple(users))


class _Connection:
    """One connection on its way into a tunnel."""

    def __init__(self, draft: Draft, name: str, section: Section) -> None:
        self._draft = draft
        self._name = name
        self._section = section
        self._what = f"connection {name}"
        self._tunnel: dict[str, Any] = {}
        self._revocation = ""

    def carry_over(self, secrets: _Secrets, keyring: Keyring) -> None:
        holder = self._section.sections.get("children")
        children = dict(holder.sections) if holder is not None else {}
        for name, child in list(children.items()):
            if _text(child, "mode") in ("pass", "drop"):
                self._shunt(name, children.pop(name))
        if not children and holder is not None and holder.sections:
            return
        name = self._draft.free_name(self._section.place, self._name, self._what)
        try:
            ours, theirs = self._ends()
            proofs = proofs_of(ours, theirs, keyring, secrets.users, name)
            self._check_peer(theirs, proofs)
        except Unproved as error:
            self._draft.note(self._section.place, self._what, f"left out: {error}")
            return
        self._connection(ours, theirs)
        self._proofs(proofs, ours, theirs)
        if not self._children(children):
            reason = "left out: it has no child that could be carried over"
            self._draft.note(self._section.place, self._what, reason)
            return
        addresses = [
            [x for x in (self._tunnel.get(key[0]), *_addresses(self._section, key[1])) if x]
            for key in (("id", "local_addrs"), ("peer_id", "remote_addrs"))
        ]
        secret = find_secret(secrets.shared, *addresses)
        self._draft.add(
            self._section.place,
            name,
            self._tunnel,
            secret,
            self._what,
            is_shared=proofs.is_shared,
        )
        for behind, text in proofs.passwords.items():
            self._draft.passwords[f"{name}.{behind}"] = text

    def _ends(self) -> tuple[Section, Section]:
        """Raises `Unproved`."""
        if _text(self._section, "version") == "1":
            raise Unproved("it is IKEv1, which xfrmpy does not speak")
        ends = {name: each for name, each in self._section.sections.items() if name != "children"}
        found: list[Section] = []
        for side in ("local", "remote"):
            rounds = [each for name, each in ends.items() if name.startswith(side)]
            if len(rounds) > 1:
                raise Unproved(f"several rounds of authentication ({side}) are not supported")
            found.append(rounds[0] if rounds else Section(place=self._section.place))
        return found[0], found[1]

    def _check_peer(self, theirs: Section, proofs: Proofs) -> None:
        """Raises `Unproved`."""
        is_known = len(_addresses(self._section, "remote_addrs")) == 1
        if not (is_known or proofs.has_users or self._identity(theirs, "remote")):
            raise Unproved("without one address of the peer, an identity must say who may call")

    def _proofs(self, proofs: Proofs, ours: Section, theirs: Section) -> None:
        draft, tunnel = self._draft, self._tunnel
        tunnel.update(proofs.settings)
        if self._revocation and "ca" in tunnel.get("auth", {}).get("remote", {}):
            put(tunnel, "auth.remote.revocation", self._revocation)
        if proofs.our_id is not None:
            tunnel.setdefault("id", proofs.our_id)
        if proofs.has_users:
            for key in ("peer", "peer_id"):
                if tunnel.pop(key, None) is not None:
                    draft.note(theirs.place, key, "users call from anywhere, by their names")
        for side, end in (("local", ours), ("remote", theirs)):
            if constrains_signatures(end):
                place = end.settings["auth"].place
                reason = "any signature that is not weak will do"
                draft.note(place, f"{side} auth = {end.settings['auth'].value}", reason)
            for key in sorted(OF_PROOFS - proofs.used[side] & end.settings.keys()):
                setting = end.settings[key]
                reason = f"is not looked at beside auth = {auth_of(end)}"
                draft.note(setting.place, f"{key} = {setting.value}", reason)

    def _identity(self, end: Section, side: str) -> str | None:
        return self._draft.identity(end.settings.get("id"), f"{side} id")

    def _connection(self, ours: Section, theirs: Section) -> None:
        draft, tunnel = self._draft, self._tunnel
        peers = _addresses(self._section, "remote_addrs")
        if peers:
            tunnel["peer"] = one_or_list(peers)
        identities = (("id", ours, "local"), ("peer_id", theirs, "remote"))
        for key, end, side in identities:
            identity = self._identity(end, side)
            if identity is not None:
                tunnel[key] = identity
            carried: dict[str, Any] = {}
            draft.carry(end, END, carried)
            if key == "peer_id" and "revocation" in carried.get("auth", {}).get("remote", {}):
                self._revocation = carried["auth"]["remote"]["revocation"]
        if "peer_id" not in tunnel and peers:
            message = f"any identity was accepted; here the peer must prove to be {peers[0]}"
            draft.note(theirs.place, "remote id", message)
        self._our_address()
        self._lost_addresses("remote_addrs", peers)
        draft.carry(self._section, CONNECTION, tunnel)
        self._ike()

    def _our_address(self) -> None:
        found = _addresses(self._section, "local_addrs")
        if len(found) == 1 and is_address(found[0]):
            self._tunnel["local_address"] = found[0]
            found = found[1:]
            self._lost_addresses("local_addrs", [self._tunnel["local_address"]])
        else:
            self._lost_addresses("local_addrs", [])

    def _lost_addresses(self, key: str, kept: list[str]) -> None:
        setting = self._section.settings.get(key)
        lost = [each for each in listed(setting) if each not in kept and each != "%any"]
        if setting is not None and lost:
            reason = "is not one address, or not the only one; the route to the peer decides"
            if key == "remote_addrs":
                reason = "ranges of addresses and families say nothing to xfrmpy"
            self._draft.note(setting.place, f"{key} = {', '.join(lost)}", reason)

    def _ike(self) -> None:
        setting = self._section.settings.get("proposals")
        read = partial(strongswan_proposal, ProtocolId.IKE)
        proposals = self._draft.proposals(setting, "proposals", read)
        if "default" in listed(setting) or not proposals:
            place = setting.place if setting is not None else self._section.place
            self._draft.note(place, "proposals", _default_reason("ike", bool(proposals)))
        settings = dict(self._tunnel.pop("ike", {}))
        over = self._span("over_time")
        for theirs, key in (("rekey_time", "lifetime"), ("reauth_time", "reauth")):
            seconds = self._span(theirs)
            if seconds is not None and (seconds or key == "lifetime"):
                more = seconds // 10 if over is None else over
                settings[key] = span_of(seconds + more if seconds else 0)
        if proposals or settings:
            self._tunnel["ike"] = suite_settings(proposals, settings)

    def _span(self, key: str) -> int | None:
        return _span(self._draft, self._section, key)

    def _children(self, children: dict[str, Section]) -> bool:
        """Whether there are any that can be."""
        made: dict[str, dict[str, Any]] = {}
        shared: dict[str, Any] = {}
        for name, section in children.items():
            traffic, common = self._child(name, section)
            if traffic is None:
                continue
            made[name] = traffic
            self._share(shared, common, name, section)
        if len(made) == 1:
            self._tunnel.update(*made.values())
        elif made:
            named: dict[str, Any] = {}
            for name, traffic in made.items():
                place, what = children[name].place, f"child {name}"
                named[self._draft.free_name(place, name, what, named)] = traffic
            self._tunnel["children"] = named
        for key in ("esp", "ah"):
            if key in shared:
                proposals = shared[key].pop("proposals", [])
                shared[key] = suite_settings(proposals, shared[key])
                if not shared[key]:
                    del shared[key]
        self._tunnel.update(shared)
        return bool(made)

    def _share(
        self, shared: dict[str, Any], common: dict[str, Any], name: str, at: Section
    ) -> None:
        """What is the same for all children here; proposals of all of them count."""
        if not shared:
            shared.update(common)
            return
        for key in ("esp", "ah"):
            ours, theirs = shared.get(key, {}), common.get(key, {})
            if bool(ours.get("proposals")) != bool(theirs.get("proposals")):
                reason = f"the children of a tunnel have the same `{key}`: what is named counts"
                self._draft.note(at.place, f"child {name}", reason)
            ours["proposals"] = list(
                dict.fromkeys([*ours.get("proposals", []), *theirs.get("proposals", [])])
            )
            if ours["proposals"]:
                shared[key] = ours
                common = {**common, key: {**theirs, "proposals": ours["proposals"]}}
        for key in sorted({*shared, *common}):
            if shared.get(key) != common.get(key):
                reason = f"the children of a tunnel have one `{key}`: that of the first counts"
                self._draft.note(at.place, f"child {name}", reason)

    def _child(self, name: str, section: Section) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """What is a child's here, and what its tunnel's."""
        draft = self._draft
        carried: dict[str, Any] = {}
        mode = _text(section, "mode") or "tunnel"
        if mode not in ("tunnel", "transport", "beet", "iptfs"):
            place = section.settings["mode"].place
            draft.note(place, f"mode = {mode}", f"child {name} is left out")
            return None, {}
        draft.carry(section, CHILD, carried)
        common = {key: carried.pop(key) for key in ("esp",) if key in carried}
        traffic = self._selectors(name, section, mode)
        if traffic is None:
            return None, {}
        self._limits(section, carried, common)
        self._copied(section, common)
        self._packets(section, common)
        if mode != "tunnel":
            common["mode"] = mode
        start = self._start(section)
        if start:
            common["start"] = start
        return {**traffic, **carried}, common

    def _selectors(self, name: str, section: Section, mode: str) -> dict[str, Any] | None:
        traffic: dict[str, Any] = {}
        for key, ours, addresses in (
            ("local_ts", "local", "local_addrs"),
            ("remote_ts", "remote", "remote_addrs"),
        ):
            setting = section.settings.get(key)
            given = [t for t in listed(setting) if t != "dynamic"]
            is_dynamic = len(given) < len(listed(setting)) or setting is None
            own = [a for a in _addresses(self._section, addresses) if is_address(a)]
            if is_dynamic and mode != "transport":
                if len(own) != 1:
                    place = setting.place if setting is not None else section.place
                    reason = f"the address of that end is not known: child {name} is left out"
                    self._draft.note(place, f"{key} = dynamic", reason)
                    return None
                given += own
            try:
                given = [selector_text(text) for text in given]
            except ValueError as error:
                place = setting.place if setting is not None else section.place
                what = f"{key} = {', '.join(given)}"
                self._draft.note(place, what, f"child {name} is left out: {error}")
                return None
            if given:
                traffic[ours] = one_or_list(given)
        if mode == "transport" and len(traffic) == 1:
            # One end's traffic is limited, and the other's is all that it says to it.
            key = "local" if "remote" in traffic else "remote"
            version = TrafficSelector.parse(_first(traffic)).start_address.version
            traffic[key] = "0.0.0.0/0" if version == 4 else "::/0"
        return traffic

    def _limits(self, section: Section, child: dict[str, Any], common: dict[str, Any]) -> None:
        hard, soft = (_span(self._draft, section, key) for key in ("life_time", "rekey_time"))
        seconds = hard if hard is not None else soft + soft // 10 if soft is not None else None
        if seconds is not None:
            child["lifetime"] = span_of(seconds)
        for what, read in (("bytes", octets), ("packets", partial(number, 1000, 1 << 62))):
            setting = section.settings.get(f"life_{what}") or section.settings.get(f"rekey_{what}")
            if setting is None or setting.value == "0":
                continue
            try:
                put(common, f"esp.max_{what}", read(setting.value))
            except Untranslatable as error:
                self._draft.note(setting.place, f"{what} = {setting.value}", str(error))

    def _copied(self, section: Section, common: dict[str, Any]) -> None:
        value = _text(section, "copy_dscp")
        if value in ("in", "no"):
            put(common, "esp.copy_dscp", "no")
        if value in ("in", "yes"):
            put(common, "esp.restore_dscp", "yes")

    def _packets(self, section: Section, common: dict[str, Any]) -> None:
        """Proposals; in the place of `esp` all is in `ah` where there are those of AH."""
        has_ah = "ah_proposals" in section.settings
        protocol = ProtocolId.AH if has_ah else ProtocolId.ESP
        name = "ah" if has_ah else "esp"
        setting = section.settings.get(f"{name}_proposals")
        read = partial(strongswan_proposal, protocol)
        proposals = self._draft.proposals(setting, f"{name}_proposals", read)
        if "default" in listed(setting) or not proposals:
            place = setting.place if setting is not None else section.place
            reason = _default_reason(name, bool(proposals))
            self._draft.note(place, f"{name}_proposals", reason)
        settings = common.pop("esp", {})
        if proposals or settings or has_ah:
            common[name] = {"proposals": proposals, **settings}

    def _start(self, section: Section) -> str:
        setting = section.settings.get("start_action")
        if setting is None:
            return ""
        words = [_START.get(word.strip(), "?") for word in setting.value.split("|")]
        if "?" in words:
            self._draft.note(setting.place, f"start_action = {setting.value}", "is not known here")
        chosen = next((word for word in ("auto", "on-demand") if word in words), "")
        if chosen and not _addresses(self._section, "remote_addrs"):
            self._draft.note(
                setting.place, f"start_action = {setting.value}", "there is no peer to call"
            )
            return ""
        return chosen

    def _shunt(self, name: str, section: Section) -> None:
        draft = self._draft
        draft.carry(section, CHILD, {})
        ends = {}
        for key, ours in (("local_ts", "local"), ("remote_ts", "remote")):
            given = [t for t in listed(section.settings.get(key)) if t != "dynamic"]
            if given:
                ends[ours] = one_or_list(given)
        if "remote" not in ends:
            draft.note(section.place, f"child {name}", "a shunt needs `remote_ts`: left out")
            return
        action = {"pass": "bypass", "drop": "drop"}[_text(section, "mode")]
        given_name = draft.free_name(section.place, name, f"child {name}")
        draft.shunts[given_name] = {"action": action, **ends}


def _default_reason(key: str, some: bool) -> str:
    if some:
        return "`default` is left out; what is named counts"
    return f"strongSwan's default is not carried over: `{key}` is that of the profile `modern`"


def _first(traffic: dict[str, Any]) -> str:
    (value,) = traffic.values()
    return str(value if isinstance(value, str) else value[0])


def _text(section: Section, key: str) -> str:
    setting = section.settings.get(key)
    return setting.value.lower() if setting is not None else ""


def _span(draft: Draft, section: Section, key: str) -> int | None:
    setting: Setting | None = section.settings.get(key)
    if setting is None or not setting.value:
        return None
    try:
        return seconds_of(setting.value)
    except Untranslatable as error:
        draft.note(setting.place, f"{key} = {setting.value}", str(error))
        return None


def _addresses(section: Section, key: str) -> list[str]:
    return [each for each in listed(section.settings.get(key)) if is_host(each)]
